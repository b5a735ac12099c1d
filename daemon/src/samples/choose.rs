//! Which of the windows that models answered are kept, and as what. Pure: windows in, decisions out, time by their stamps.
//!
//! ```text
//!  before, before, before  raised  after, after        around an alarm: windows without a row in common, but for `raised`
//!  ──────────────────────────┴────────────────▶
//!  one of each interval, every one with the same chance             uniform: of windows that no alarm and no threshold marks
//!  the first of a drift, then one of each interval                  drift
//! ```

use std::collections::{BTreeSet, VecDeque};

use super::{
    index::Episode,
    record::{At, Described},
};
use crate::{
    flow::{Finished, Kept, lane::Weigh},
    limits,
};

/// A window that is to be kept.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The window.
    pub finished: Finished,
    /// As what.
    pub class: Kept,
    /// Where it lies, seen from these alarms.
    pub around: Option<(At, Vec<Episode>)>,
}

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Windows before an alarm, and after it.
    pub around: usize,
    /// One normal window each so many ns; `None`: none.
    pub every_ns: Option<u64>,
}

/// The choice among the windows of one pipeline.
#[derive(Debug)]
pub struct Chooser {
    rules: Rules,
    apart: u64,
    /// The last windows, without a row in common.
    before: VecDeque<Finished>,
    before_bytes: usize,
    /// Episodes that are open.
    open: BTreeSet<Episode>,
    /// Windows after an alarm that are still to come, of these episodes, and the number of the last one.
    after: usize,
    episodes: Vec<Episode>,
    last_kept: u64,
    /// The window of this interval, among so many, and the interval's end.
    candidate: Option<Finished>,
    among: u64,
    ends_ns: u64,
    /// When a window of a drift was kept.
    drift_ns: Option<u64>,
}

impl Chooser {
    /// For one pipeline.
    pub fn new(rules: Rules, pipeline: &Described) -> Self {
        Self {
            rules,
            apart: pipeline.apart.max(1),
            before: VecDeque::new(),
            before_bytes: 0,
            open: BTreeSet::new(),
            after: 0,
            episodes: Vec::new(),
            last_kept: 0,
            candidate: None,
            among: 0,
            ends_ns: 0,
            drift_ns: None,
        }
    }

    /// Takes the next window. `is_known`: windows of this episode are in the store (the process was restarted meanwhile).
    /// `random(n)`: a number below n.
    pub fn take(
        &mut self,
        finished: Finished,
        is_known: impl Fn(&Episode) -> bool,
        random: impl FnOnce(u64) -> u64,
    ) -> Vec<Chosen> {
        let mut chosen = Vec::new();
        self.around_alarm(&finished, is_known, &mut chosen);
        self.at_drift(&finished, &mut chosen);
        if let Some(class) = finished.keep {
            chosen.push(Chosen { finished: finished.clone(), class, around: None });
        }
        self.uniform(&finished, random, &mut chosen);
        self.remember(finished);
        chosen
    }

    fn around_alarm(&mut self, finished: &Finished, is_known: impl Fn(&Episode) -> bool, chosen: &mut Vec<Chosen>) {
        let number = finished.window.tag.number;
        let raised = finished.raised.iter().map(|(alarm, id)| Episode { alarm: alarm.clone(), id: id.clone() });
        let before = std::mem::replace(&mut self.open, raised.collect());
        let is_fresh = |of: &&Episode| !before.contains(of) && !is_known(of);
        let fresh: Vec<Episode> = self.open.iter().filter(is_fresh).cloned().collect();
        let mut keep = |finished: Finished, at: At, episodes: &[Episode]| {
            chosen.push(Chosen { finished, class: Kept::Alarm, around: Some((at, episodes.to_vec())) });
        };
        if !fresh.is_empty() {
            self.before_bytes = 0;
            std::mem::take(&mut self.before).into_iter().for_each(|before| keep(before, At::Before, &fresh));
            keep(finished.clone(), At::Raised, &fresh);
            (self.after, self.episodes, self.last_kept) = (self.rules.around, fresh, number);
        } else if self.after > 0 && number >= self.last_kept.saturating_add(self.apart) {
            keep(finished.clone(), At::After, &self.episodes);
            (self.after, self.last_kept) = (self.after - 1, number);
        }
    }

    fn at_drift(&mut self, finished: &Finished, chosen: &mut Vec<Chosen>) {
        let now_ns = finished.window.tag.last.boot_ns;
        if !finished.drifting {
            self.drift_ns = None;
            return;
        }
        let every_ns = self.rules.every_ns.unwrap_or(u64::MAX);
        if self.drift_ns.is_none_or(|at_ns| now_ns.saturating_sub(at_ns) >= every_ns) {
            self.drift_ns = Some(now_ns);
            chosen.push(Chosen { finished: finished.clone(), class: Kept::Drift, around: None });
        }
    }

    fn uniform(&mut self, finished: &Finished, random: impl FnOnce(u64) -> u64, chosen: &mut Vec<Chosen>) {
        let (Some(every_ns), now_ns) = (self.rules.every_ns, finished.window.tag.last.boot_ns) else { return };
        if self.ends_ns == 0 {
            self.ends_ns = now_ns.saturating_add(every_ns);
        }
        if now_ns >= self.ends_ns {
            let candidate = self.candidate.take();
            chosen.extend(candidate.map(|finished| Chosen { finished, class: Kept::Uniform, around: None }));
            (self.among, self.ends_ns) = (0, now_ns.saturating_add(every_ns));
        }
        let normal = finished.raised.is_empty() && !finished.beyond && !finished.drifting && self.after == 0;
        if normal {
            self.among += 1;
            if random(self.among) == 0 {
                self.candidate = Some(finished.clone());
            }
        }
    }

    fn remember(&mut self, finished: Finished) {
        let number = finished.window.tag.number;
        let apart = self.before.back().is_none_or(|last| {
            let last = last.window.tag.number;
            number >= last.saturating_add(self.apart) || number < last
        });
        if self.rules.around == 0 || !apart {
            return;
        }
        self.before_bytes += finished.weight();
        self.before.push_back(finished);
        while self.before.len() > self.rules.around || self.before_bytes > limits::SAMPLES_BEFORE_BYTES {
            let Some(oldest) = self.before.pop_front() else { break };
            self.before_bytes -= oldest.weight();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::record::tests::finished;

    fn chooser(around: usize, every_s: Option<u64>, apart: u64) -> Chooser {
        let rules = Rules { around, every_ns: every_s.map(|s| s * 1_000_000_000) };
        Chooser::new(rules, &Described { apart, ..Described::default() })
    }

    fn alarmed(n: u64) -> Finished {
        Finished { raised: vec![("high".into(), "b-1".into())], beyond: true, ..finished(n) }
    }

    fn played(chooser: &mut Chooser, windows: impl IntoIterator<Item = Finished>) -> Vec<(u64, Kept, Option<At>)> {
        let mut random = fastrand::Rng::with_seed(1);
        let all = windows.into_iter().flat_map(|f| chooser.take(f, |_| false, |n| random.u64(..n)));
        all.map(|c| (c.finished.window.tag.number, c.class, c.around.map(|(at, _)| at))).collect()
    }

    #[test]
    fn windows_around_an_alarm_have_no_row_in_common_but_the_one_that_raised_it() {
        let mut chooser = chooser(2, None, 4);
        let normal = (1..=10).map(finished);
        let kept = played(&mut chooser, normal.chain((11..=30).map(alarmed)));
        let want = [(5, At::Before), (9, At::Before), (11, At::Raised), (15, At::After), (19, At::After)];
        assert_eq!(kept, want.map(|(n, at)| (n, Kept::Alarm, Some(at))));
        assert_eq!(played(&mut chooser, (31..40).map(finished)), [], "it cleared");
        let again = played(&mut chooser, [alarmed(40)]);
        assert_eq!(again.last(), Some(&(40, Kept::Alarm, Some(At::Raised))), "the next episode");
    }

    #[test]
    fn episode_that_the_store_knows_is_not_kept_a_second_time_after_a_restart() {
        let chosen = chooser(2, None, 1).take(alarmed(1), |of| of.id == "b-1", |_| 0);
        assert!(chosen.is_empty(), "{chosen:?}");
    }

    #[test]
    fn each_normal_window_of_an_interval_has_the_same_chance_and_no_other_has_any() {
        let mut counts = [0u32; 10];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..5000 {
            let mut chooser = chooser(0, Some(10), 1);
            let marked = |n: u64| match n {
                5 => Finished { beyond: true, ..finished(n) },
                6 => Finished { drifting: true, ..finished(n) },
                n => finished(n),
            };
            for n in 1..=11 {
                for chosen in chooser.take(marked(n), |_| false, |n| random.u64(..n)) {
                    if chosen.class == Kept::Uniform {
                        counts[chosen.finished.window.tag.number as usize - 1] += 1;
                    }
                }
            }
        }
        assert_eq!((counts[4], counts[5], counts.iter().sum::<u32>()), (0, 0, 5000));
        let others = counts.iter().enumerate().filter(|(i, _)| *i != 4 && *i != 5);
        // 625 each; the standard deviation is 23.
        assert!(others.clone().all(|(_, n)| (510..740).contains(n)), "{counts:?}");
    }

    #[test]
    fn drift_is_kept_at_its_begin_and_once_an_interval_while_it_lasts() {
        let mut chooser = chooser(0, Some(10), 1);
        let drifting = |n: u64| Finished { drifting: (5..30).contains(&n), ..finished(n) };
        let kept = played(&mut chooser, (1..40).map(drifting));
        let drift: Vec<u64> = kept.iter().filter(|(_, class, _)| *class == Kept::Drift).map(|(n, ..)| *n).collect();
        assert_eq!(drift, [5, 15, 25]);
    }

    #[test]
    fn window_that_another_stage_marked_is_kept_as_that() {
        let mut chooser = chooser(0, None, 1);
        let marked = Finished { keep: Some(Kept::Escalated), ..finished(3) };
        assert_eq!(played(&mut chooser, [finished(2), marked]), [(3, Kept::Escalated, None)]);
    }

    #[test]
    fn memory_for_what_lies_before_an_alarm_is_bounded_in_bytes() {
        let mut chooser = chooser(64, None, 1);
        for n in 0..64 {
            let mut large = finished(n);
            large.window.values = vec![0.0; 64 * 1024].into();
            chooser.take(large, |_| false, |_| 0);
        }
        assert!(
            chooser.before_bytes <= limits::SAMPLES_BEFORE_BYTES && chooser.before.len() == 7,
            "{}",
            chooser.before.len()
        );
    }
}
