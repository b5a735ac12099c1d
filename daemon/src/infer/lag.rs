//! Whether a pipeline keeps up: how long its oldest window has waited, whether that wait shrinks, and how long a run of its
//! model takes. Pure.

use crate::limits;

/// What is known of one model's windows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lag {
    /// While a window waits for longer than it may: the shortest wait since then, and when that was, ns.
    over: Option<(u64, u64)>,
    behind: bool,
}

impl Lag {
    /// The oldest window has waited for `waited_ns`; up to `most_ns` is allowed. Returns `true` when the pipeline is behind from
    /// now on, `false` when it has caught up, `None` when nothing changed. After a late start of a worker or the first install
    /// of a model the wait shrinks: behind is only a wait that does not shrink within `BEHIND_FOR`.
    pub fn look(&mut self, waited_ns: u64, most_ns: u64, now_ns: u64) -> Option<bool> {
        if waited_ns <= most_ns {
            self.over = None;
            return std::mem::take(&mut self.behind).then_some(false);
        }
        match self.over {
            Some((least_ns, at_ns)) if waited_ns >= least_ns => {
                let still = now_ns.saturating_sub(at_ns) >= limits::BEHIND_FOR.as_nanos() as u64;
                (still && !std::mem::replace(&mut self.behind, still)).then_some(true)
            }
            _ => {
                self.over = Some((waited_ns, now_ns));
                None
            }
        }
    }

    /// A window waits for longer than it may, whether that gets better or not.
    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }
}

/// About the slowest of the last runs, µs; at least 1.
pub fn slowest(before_us: u32, took_us: u32) -> u32 {
    (before_us - before_us / 8).max(took_us).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const MOST: u64 = 5 * S;

    /// The wait at each second, and when it changed to what.
    fn play(waits: impl Iterator<Item = u64>) -> Vec<(usize, bool)> {
        let mut lag = Lag::default();
        let changes = waits.enumerate().map(|(i, waited)| (i, lag.look(waited, MOST, i as u64 * S)));
        changes.filter_map(|(i, change)| Some((i, change?))).collect()
    }

    #[test]
    fn pipeline_whose_windows_wait_longer_and_longer_is_behind_until_they_do_not() {
        // 50 windows/s and 226 ms for each: each second the wait grows by 0.91 s; then fewer come.
        let waits = (0..30).map(|i| i * 910_000_000).chain((0..30u64).map(|i| 27 * S - 27.min(i) * S));
        let changes = play(waits);
        assert_eq!(changes, [(11, true), (52, false)]);
    }

    #[test]
    fn backlog_that_is_worked_off_is_not_behind() {
        assert_eq!(play((0..3600).map(|i| 3600 * S - i * S)), []);
        let mut lag = Lag::default();
        lag.look(9 * S, MOST, 0);
        assert!(lag.is_over());
        lag.look(MOST, MOST, S);
        assert!(!lag.is_over());
    }

    #[test]
    fn pipeline_that_stays_as_far_behind_as_it_is_is_behind() {
        assert_eq!(play(std::iter::repeat_n(80 * S, 100)), [(5, true)]);
    }
}
