//! The budget of one pipeline: so many windows in any hour, so many bytes in any day. Pure; a caller saves it before it sends what
//! was charged, so a kill never makes room.
//!
//! What was charged is counted in slots of five minutes. A slot counts to the hour (the day) until its end has left it, so the
//! budget is never exceeded in any hour or day, and a window counts for five minutes too long at most. The day has 289 slots at
//! most, and they are all that is kept.
//!
//! ```text
//! {"v":1,"boot":"…","at":{"boot_ns":…,"wall_ms":…,"clk":"sync"},"spent":[[slot,windows,bytes],…]}     slots since that boot
//! ```
//!
//! After another boot only a synchronised clock says how much time has passed. Without one none has: what was charged counts from
//! the start again.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    flow::{Clk, Stamp},
    limits,
};

const HOUR_NS: i128 = 3_600_000_000_000;
const DAY_NS: i128 = 24 * HOUR_NS;
const SLOT_NS: i128 = limits::ESCALATION_SLOT_NS as i128;

/// How much may be spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// Windows in any hour.
    pub per_hour: u32,
    /// Bytes in any day.
    pub day_bytes: u64,
}

/// What was charged in one slot: its number since boot (below 0: before it), windows, bytes.
type Spent = (i64, u32, u64);

/// What was spent, and how much may be.
#[derive(Debug)]
pub struct Budget {
    most: Most,
    boot: String,
    spent: VecDeque<Spent>,
    /// Of another boot: its slots are moved to this one's when the time is asked for first.
    earlier: Option<Saved>,
}

/// As it is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Saved {
    v: u8,
    boot: String,
    at: Stamp,
    spent: Vec<Spent>,
}

impl Budget {
    /// Goes on with what was saved. `saved`: `None` where nothing ever was. Where it is damaged, the whole budget counts as spent just
    /// now.
    pub fn new(most: Most, boot: &str, saved: Option<&[u8]>) -> Self {
        let mut budget = Self { most, boot: boot.to_owned(), spent: VecDeque::new(), earlier: None };
        let slots = limits::ESCALATION_SLOTS;
        let read = |bytes: &[u8]| {
            let saved: Saved = serde_json::from_slice(bytes).ok()?;
            // In order and in number, or it is no budget of ours.
            let ordered = saved.spent.windows(2).all(|pair| pair[0].0 < pair[1].0);
            (saved.v == 1 && ordered && saved.spent.len() <= slots).then_some(saved)
        };
        match saved.map(read) {
            None => {}
            Some(Some(saved)) if saved.boot == boot => budget.spent = saved.spent.into(),
            Some(Some(saved)) => budget.earlier = Some(saved),
            Some(None) => {
                let at = Stamp { boot_ns: 0, wall_ms: None, clk: Clk::Unset };
                let spent = vec![(0, most.per_hour, most.day_bytes)];
                budget.earlier = Some(Saved { v: 1, boot: String::new(), at, spent });
            }
        }
        budget
    }

    /// Whether one more window of so many bytes may be sent now.
    pub fn has_room(&mut self, now: &Stamp, bytes: u64) -> bool {
        let (hour, day_bytes) = self.used(now);
        hour < self.most.per_hour && day_bytes.saturating_add(bytes) <= self.most.day_bytes
    }

    /// One window of so many bytes is spent. What it is then, to be saved.
    pub fn charge(&mut self, now: &Stamp, bytes: u64) -> Vec<u8> {
        self.move_to(now);
        let slot = slot_of(i128::from(now.boot_ns));
        match self.spent.back_mut() {
            // Slots are in order, whatever the caller calls now.
            Some((last, windows, sum)) if *last >= slot => {
                *windows = windows.saturating_add(1);
                *sum = sum.saturating_add(bytes);
            }
            _ => self.spent.push_back((slot, 1, bytes)),
        }
        self.forget(now);
        let saved = Saved { v: 1, boot: self.boot.clone(), at: *now, spent: self.spent.iter().copied().collect() };
        serde_json::to_vec(&saved).unwrap_or_default()
    }

    /// Windows that count to the last hour, and bytes that count to the last day.
    pub fn used(&mut self, now: &Stamp) -> (u32, u64) {
        self.move_to(now);
        self.forget(now);
        let now_ns = i128::from(now.boot_ns);
        let within = |slot: i64, ns: i128| i128::from(slot + 1) * SLOT_NS > now_ns - ns;
        let of_hour = self.spent.iter().filter(|(slot, ..)| within(*slot, HOUR_NS));
        let windows = of_hour.fold(0u32, |sum, (_, windows, _)| sum.saturating_add(*windows));
        (windows, self.spent.iter().fold(0u64, |sum, (.., bytes)| sum.saturating_add(*bytes)))
    }

    fn forget(&mut self, now: &Stamp) {
        let over = i128::from(now.boot_ns) - DAY_NS;
        while self.spent.front().is_some_and(|(slot, ..)| i128::from(*slot + 1) * SLOT_NS <= over) {
            self.spent.pop_front();
        }
    }

    /// Moves what was spent in another boot to this one's time: as young as it can be.
    fn move_to(&mut self, now: &Stamp) {
        let Some(Saved { at, spent, .. }) = self.earlier.take() else { return };
        let passed_ms = match (at.clk, now.clk, at.wall_ms.zip(now.wall_ms)) {
            (Clk::Sync, Clk::Sync, Some((then, now))) => now.saturating_sub(then).max(0),
            _ => 0,
        };
        let (saved_ns, begin_ns) =
            (i128::from(at.boot_ns), i128::from(now.boot_ns) - i128::from(passed_ms) * 1_000_000);
        let mut moved: VecDeque<Spent> = VecDeque::new();
        for (slot, windows, bytes) in spent {
            let end_ns = (i128::from(slot) + 1) * SLOT_NS;
            let slot = slot_of(begin_ns - (saved_ns - end_ns.min(saved_ns)));
            match moved.back_mut() {
                Some(last) if last.0 >= slot => {
                    *last = (last.0, last.1.saturating_add(windows), last.2.saturating_add(bytes))
                }
                _ => moved.push_back((slot, windows, bytes)),
            }
        }
        self.spent = moved;
    }
}

fn slot_of(ns: i128) -> i64 {
    i64::try_from(ns.div_euclid(SLOT_NS)).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: u64 = 60_000_000_000;
    const MOST: Most = Most { per_hour: 3, day_bytes: 1000 };

    fn at(min: u64) -> Stamp {
        Stamp { boot_ns: min * MIN, wall_ms: None, clk: Clk::Unset }
    }

    fn synced(min: u64, wall_min: i64) -> Stamp {
        Stamp { boot_ns: min * MIN, wall_ms: Some(wall_min * 60_000), clk: Clk::Sync }
    }

    #[test]
    fn number_an_hour_and_bytes_a_day_are_each_enough_to_refuse() {
        let mut budget = Budget::new(MOST, "a", None);
        for _ in 0..3 {
            assert!(budget.has_room(&at(1), 10));
            budget.charge(&at(1), 10);
        }
        assert!(!budget.has_room(&at(1), 10) && !budget.has_room(&at(60), 10), "a fourth one within the hour");
        assert!(budget.has_room(&at(66), 10), "the slot has left the hour");
        assert_eq!(budget.used(&at(66)), (0, 30));
        assert!(budget.has_room(&at(66), 970) && !budget.has_room(&at(66), 971));
        assert!(budget.has_room(&at(24 * 60 + 5), 1000), "and the day");
        assert!(!budget.has_room(&at(24 * 60 + 5), 1001), "larger than the budget");
    }

    #[test]
    fn restart_within_a_boot_goes_on_and_forgets_nothing() {
        let mut budget = Budget::new(MOST, "a", None);
        budget.charge(&at(1), 400);
        let saved = budget.charge(&at(7), 400);
        let mut again = Budget::new(MOST, "a", Some(&saved));
        assert_eq!(again.used(&at(8)), (2, 800));
        assert_eq!(again.used(&at(66)), (1, 800));
        assert_eq!(again.used(&at(24 * 60 + 11)), (0, 0));
    }

    #[test]
    fn after_another_boot_time_has_passed_only_by_a_synchronised_clock() {
        let mut budget = Budget::new(MOST, "a", None);
        let saved = budget.charge(&synced(1000, 50_000), 400);
        let used = |now: Stamp| Budget::new(MOST, "b", Some(&saved)).used(&now);
        assert_eq!(used(at(1)), (1, 400), "no clock: as if it had been now");
        assert_eq!(used(Stamp { clk: Clk::Hold, ..synced(1, 60_000) }), (1, 400), "a clock without a time server");
        assert_eq!(used(synced(1, 50_030)), (1, 400));
        assert_eq!(used(synced(1, 50_070)), (0, 400), "off for 70 minutes");
        assert_eq!(used(synced(1, 50_000 + 24 * 60 + 6)), (0, 0), "off for a day");
        assert_eq!(used(synced(1, 10)), (1, 400), "a clock that was put back");
        // What is moved stays moved while the time goes on.
        let mut budget = Budget::new(MOST, "b", Some(&saved));
        assert_eq!((budget.used(&at(1)), budget.used(&at(70))), ((1, 400), (0, 400)));
    }

    #[test]
    fn damaged_file_counts_as_a_spent_budget_and_an_absent_one_as_none() {
        for bytes in [
            &b""[..],
            b"{}",
            b"{\"v\":2,\"boot\":\"a\",\"at\":{\"boot_ns\":1,\"wall_ms\":null,\"clk\":\"unset\"},\"spent\":[]}",
        ] {
            let mut budget = Budget::new(MOST, "a", Some(bytes));
            assert_eq!(budget.used(&at(5)), (3, 1000));
            assert_eq!(budget.used(&at(71)), (0, 1000));
        }
        assert_eq!(Budget::new(MOST, "a", None).used(&at(5)), (0, 0));
    }

    /// Four weeks of random requests, restarts, reboots and pauses: in no hour and in no day is more sent than the budget allows,
    /// and what is kept stays small.
    #[test]
    fn random_histories_never_exceed_the_budget_in_any_hour_or_day() {
        for seed in 0..40 {
            let mut random = fastrand::Rng::with_seed(seed);
            let most = Most { per_hour: random.u32(1..40), day_bytes: random.u64(1_000..60_000) };
            // Real time, this boot's begin in it, and whether the clock is synchronised.
            let (mut now_s, mut boot_s, mut boot, mut sync) = (0u64, 0u64, 0u32, true);
            let (mut budget, mut saved) = (Budget::new(most, "0", None), None::<Vec<u8>>);
            let mut sent: VecDeque<(u64, u64)> = VecDeque::new();
            let mut total = 0;
            while now_s < 28 * 86_400 {
                now_s += match random.u8(0..100) {
                    0 => random.u64(0..100_000),
                    1..20 => random.u64(0..4_000),
                    _ => random.u64(0..30),
                };
                if random.u8(0..50) == 0 {
                    if random.bool() {
                        (boot, boot_s) = (boot + 1, now_s);
                    }
                    sync = random.bool();
                    budget = Budget::new(most, &boot.to_string(), saved.as_deref());
                }
                let wall_ms = Some((1_700_000_000 + now_s as i64) * 1000);
                let clk = if sync { Clk::Sync } else { Clk::Hold };
                let now = Stamp { boot_ns: (now_s - boot_s) * 1_000_000_000 + 1, wall_ms, clk };
                let bytes = random.u64(1..2_000);
                if budget.has_room(&now, bytes) {
                    saved = Some(budget.charge(&now, bytes));
                    sent.push_back((now_s, bytes));
                    total += 1;
                }
                sent.retain(|(at, _)| now_s - at < 86_400);
                let hour = sent.iter().filter(|(at, _)| now_s - at < 3_600).count();
                let day: u64 = sent.iter().map(|(_, bytes)| bytes).sum();
                assert!(hour as u32 <= most.per_hour && day <= most.day_bytes, "seed {seed}, {now_s} s: {hour}, {day}");
                assert!(budget.spent.len() <= limits::ESCALATION_SLOTS, "{}", budget.spent.len());
            }
            assert!(total > 100, "seed {seed}: {total} sent: the test must send something");
        }
    }
}
