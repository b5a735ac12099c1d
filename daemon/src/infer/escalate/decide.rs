//! Whether an unsure window is sent: in time, connected, its rows not sent before, within the budget. Pure.

use super::budget::{Budget, Most};
use crate::flow::{Stamp, WindowTag, escalation::NotSent};

/// What is known of a window when it is decided about.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// Now.
    pub now: &'a Stamp,
    /// The window.
    pub tag: &'a WindowTag,
    /// Bytes of its packet at least, as far as they are known.
    pub bytes: u64,
    /// A connection stands on which an answer would arrive.
    pub open: bool,
    /// There is room for one more that awaits its answer.
    pub room: bool,
}

/// Decides for one pipeline.
#[derive(Debug)]
pub struct Decider {
    deadline_ns: u64,
    /// Windows from one that shares no row with the next.
    apart: u64,
    budget: Budget,
    /// Number of the window that was sent last.
    last: Option<u64>,
}

impl Decider {
    /// `steps`: rows of a window; `hop`: rows from one to the next.
    pub fn new(deadline_ms: u64, (steps, hop): (usize, usize), budget: Budget) -> Self {
        let apart = steps.div_ceil(hop.max(1)).max(1) as u64;
        Self { deadline_ns: deadline_ms * 1_000_000, apart, budget, last: None }
    }

    /// Until when the answer may come, ns since boot.
    pub fn deadline_ns(&self, tag: &WindowTag) -> u64 {
        tag.last.boot_ns.saturating_add(self.deadline_ns)
    }

    /// Looks before the packet is made, at what costs nothing.
    ///
    /// # Errors
    /// Why the window is not sent.
    pub fn check(&mut self, look: Look<'_>) -> Result<(), NotSent> {
        let Look { now, tag, bytes, open, room } = look;
        if now.boot_ns >= self.deadline_ns(tag) {
            return Err(NotSent::Late);
        }
        if !open {
            return Err(NotSent::Offline);
        }
        if self.last.is_some_and(|last| tag.number.saturating_sub(last) < self.apart) {
            return Err(NotSent::Repeated);
        }
        if !room {
            return Err(NotSent::Full);
        }
        if self.budget.has_room(now, bytes) { Ok(()) } else { Err(NotSent::Budget) }
    }

    /// Charges the budget with the whole packet. What is to be saved before the packet is sent.
    ///
    /// # Errors
    /// As `check`.
    pub fn charge(&mut self, look: Look<'_>) -> Result<Vec<u8>, NotSent> {
        self.check(look)?;
        self.last = Some(look.tag.number);
        Ok(self.budget.charge(look.now, look.bytes))
    }

    /// Windows that count to the last hour, bytes that count to the last day.
    pub fn used(&mut self, now: &Stamp) -> (u32, u64) {
        self.budget.used(now)
    }
}

/// For a configuration.
pub fn most(rules: &crate::config::Escalate) -> Most {
    Most { per_hour: rules.max_per_hour, day_bytes: rules.max_day_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Clk;

    const S: u64 = 1_000_000_000;

    fn stamp(ns: u64) -> Stamp {
        Stamp { boot_ns: ns, wall_ms: None, clk: Clk::Unset }
    }

    fn tag(number: u64, arrived_ns: u64) -> WindowTag {
        WindowTag { pipeline: 0, last: stamp(arrived_ns), in_seq: (0, 0), in_t_ns: (0, 0), number, coverage: 1.0 }
    }

    fn decider(per_hour: u32, day_bytes: u64) -> Decider {
        Decider::new(10_000, (64, 16), Budget::new(Most { per_hour, day_bytes }, "b", None))
    }

    fn at(decider: &mut Decider, now_ns: u64, tag: &WindowTag) -> Result<(), NotSent> {
        decider.charge(Look { now: &stamp(now_ns), tag, bytes: 100, open: true, room: true }).map(drop)
    }

    #[test]
    fn window_of_a_backlog_is_late_and_offline_sends_nothing() {
        let mut decider = decider(10, 10_000);
        assert_eq!(at(&mut decider, 20 * S, &tag(1, 10 * S)), Err(NotSent::Late), "at the deadline");
        let tag = tag(1, 11 * S);
        let look = Look { now: &stamp(20 * S), tag: &tag, bytes: 100, open: false, room: true };
        assert_eq!(decider.check(look), Err(NotSent::Offline));
        assert_eq!(decider.check(Look { open: true, room: false, ..look }), Err(NotSent::Full));
        assert_eq!(decider.used(&stamp(20 * S)), (0, 0), "what is not sent costs nothing");
        assert_eq!(at(&mut decider, 20 * S, &tag), Ok(()));
        assert_eq!(decider.used(&stamp(20 * S)), (1, 100));
    }

    #[test]
    fn rows_leave_once() {
        let mut decider = decider(10, 10_000);
        let sent: Vec<u64> = (1..=13).filter(|n| at(&mut decider, n * S, &tag(*n, n * S)).is_ok()).collect();
        assert_eq!(sent, [1, 5, 9, 13], "64 rows, 16 apart: every fourth");
    }

    /// A week of a pipeline at 1 window/s whose every window is unsure, with outages, late windows and restarts.
    #[test]
    fn simulated_week_of_unsure_windows_stays_within_both_budgets() {
        for (seed, per_hour, day_bytes) in [(1, 10, 1 << 20), (2, 600, 20_000), (3, 1, 1 << 30)] {
            let mut random = fastrand::Rng::with_seed(seed);
            let most = Most { per_hour, day_bytes };
            let (mut decider, mut saved, mut sent) = (decider(per_hour, day_bytes), None::<Vec<u8>>, Vec::new());
            let (mut open_until, mut closed_until) = (0, 0);
            for s in 1..7 * 86_400u64 {
                if s > closed_until {
                    open_until = s + random.u64(60..20_000);
                    closed_until = open_until + random.u64(1..10_000);
                }
                if random.u32(0..20_000) == 0 {
                    let budget = Budget::new(most, "b", saved.as_deref());
                    decider = Decider::new(10_000, (64, 16), budget);
                }
                let tag = tag(s, (s - random.u64(0..12).min(s)) * S);
                let bytes = random.u64(1_000..4_000);
                let look =
                    Look { now: &stamp(s * S), tag: &tag, bytes, open: s < open_until, room: random.u8(0..9) > 0 };
                if let Ok(budget) = decider.charge(look) {
                    assert!(s < open_until && s * S < tag.last.boot_ns + 10 * S);
                    saved = Some(budget);
                    sent.push((s, bytes));
                }
            }
            // Each hour and each day that ends with a window holds the most of those that begin after its begin.
            for (i, (end, _)) in sent.iter().enumerate() {
                let within = |span: u64| sent[..=i].iter().rev().take_while(move |(at, _)| end - at < span);
                assert!(within(3_600).count() <= per_hour as usize);
                assert!(within(86_400).map(|(_, bytes)| bytes).sum::<u64>() <= day_bytes);
            }
            assert!(sent.len() > 30, "{}", sent.len());
        }
    }
}
