//! Sequence numbers: unsigned 64 bit for each stream, growing through restarts, never used twice. They are reserved on
//! disk in blocks. A start after a stop in order goes on at the next number; one after a kill goes on at the next
//! block. Which numbers it cannot account for is known when the store was read; until that is reported, it stays in the file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    host::{Keep, Unloaded},
    limits,
};

/// Numbers of all streams.
#[derive(Debug)]
pub struct Seqs {
    keep: Keep,
    names: Vec<String>,
    next: Vec<u64>,
    /// Where this run began.
    first: Vec<u64>,
    /// End of the block that is reserved on disk, exclusive.
    reserved: Vec<u64>,
    /// Half of some block is used up: known at each number, so that no record looks at all streams.
    low: bool,
    /// Numbers from here on were used by no run that began in an earlier second.
    base: u64,
    /// Numbers of earlier runs of which nothing is known, until that is reported: stream, first, last.
    unknown: Vec<Unknown>,
    /// The file still names numbers that were reported.
    reported: bool,
    /// Where streams begin that the file does not name.
    from: u64,
}

/// Numbers of a stream: its name, the first, the last.
pub type Unknown = (String, u64, u64);

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    v: u8,
    /// Written at a stop in order: `next` is exact.
    clean: bool,
    streams: BTreeMap<String, Block>,
    /// Numbers of earlier runs of which nothing is known and nothing was reported yet.
    #[serde(default)]
    unknown: Vec<Unknown>,
    /// Where a stream begins that is not named: above 1 where an earlier file was lost, for it may have named it.
    #[serde(default)]
    from: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Block {
    next: u64,
    /// Exclusive.
    end: u64,
}

const FILE: &str = "sequences.json";
const VERSION: u8 = 1;

impl Seqs {
    /// Goes on where the numbers ended; the next blocks are still to be reserved. `is_used`: there is a store, so there were
    /// numbers. `now_s`: wall time or the clock's floor, for a base above all numbers used when the file is lost: second ×
    /// block is more than any device has used that starts less than once a second. Returns whether the file is lost.
    pub fn open(keep: Keep, names: Vec<String>, is_used: bool, now_s: u64) -> (Self, bool) {
        let kept = keep.load_checked::<Kept>(FILE).ok().filter(|kept| kept.as_ref().is_none_or(|k| k.v == VERSION));
        // Unreadable, or taken away from beside a store.
        let lost = kept.as_ref().is_none_or(|kept| kept.is_none() && is_used);
        let base = now_s.saturating_mul(limits::SEQ_BLOCK);
        let kept = kept.flatten();
        let first = if lost { base } else { kept.as_ref().map_or(1, |kept| kept.from.max(1)) };
        let clean = kept.as_ref().is_none_or(|kept| kept.clean);
        let mut unknown = kept.as_ref().map_or_else(Vec::new, |kept| kept.unknown.clone());
        let next = names.iter().map(|name| {
            let Some(block) = kept.as_ref().and_then(|kept| kept.streams.get(name)) else {
                if lost {
                    unknown.push((name.clone(), 1, first - 1));
                }
                return first;
            };
            if !clean && block.next < block.end {
                unknown.push((name.clone(), block.next, block.end - 1));
            }
            if clean { block.next } else { block.next.max(block.end) }
        });
        let next: Vec<u64> = next.collect();
        (
            Self {
                keep,
                low: !next.is_empty(),
                reserved: next.clone(),
                first: next.clone(),
                names,
                next,
                base,
                unknown,
                reported: false,
                from: first,
            },
            lost,
        )
    }

    /// The store was read: `highest` is the highest number of each stream in it. What it has is not unknown. Returns what
    /// is to be reported: numbers of earlier runs of which nothing is known, and those left out now because they are used.
    pub fn settle(&mut self, highest: &BTreeMap<String, u64>) -> (Vec<Unknown>, Vec<Unknown>) {
        for (name, first, last) in &mut self.unknown {
            if let Some(known) = highest.get(name).filter(|known| *first <= **known && **known <= *last) {
                *first = known.saturating_add(1);
            }
        }
        self.unknown.retain(|(_, first, last)| first <= last);
        let mut left_out = Vec::new();
        for ((name, next), first) in self.names.iter().zip(&mut self.next).zip(&mut self.first) {
            // Numbers that an earlier run took from its base, and could not reserve any more.
            if let Some(known) = highest.get(name).filter(|known| *next <= **known) {
                left_out.push((name.clone(), *next, *known));
                *next = known.saturating_add(1);
                *first = *next;
            }
        }
        self.low = self.any_is_low();
        (self.unknown.clone(), left_out)
    }

    /// What nothing is known of is reported, by a record that is on disk.
    pub fn reported(&mut self) {
        self.reported = !self.unknown.is_empty();
        self.unknown.clear();
    }

    /// Reserves the next blocks.
    ///
    /// # Errors
    /// The disk is not writable; the numbers that are reserved go on.
    pub fn reserve(&mut self) -> Result<(), String> {
        let ends = self.renewal().save()?;
        self.apply(ends);
        Ok(())
    }

    /// The next blocks, to be saved without holding up anyone who takes numbers. Of the latest numbers, a block of them, it
    /// is not known after a kill whether their records were still in RAM.
    pub fn renewal(&self) -> Renewal {
        let block = |(first, next): (&u64, &u64)| Block {
            next: next.saturating_sub(limits::SEQ_BLOCK).max(*first),
            end: next.saturating_add(limits::SEQ_BLOCK),
        };
        let blocks = self.first.iter().zip(&self.next).map(block).collect();
        let unknown = self.unknown.clone();
        Renewal { keep: self.keep.clone(), names: self.names.clone(), blocks, clean: false, unknown, from: self.from }
    }

    /// What is saved at a stop in order.
    pub fn ending(&self) -> Renewal {
        let blocks = self.next.iter().map(|next| Block { next: *next, end: *next }).collect();
        Renewal { blocks, clean: true, ..self.renewal() }
    }

    /// What was saved may be used.
    pub fn apply(&mut self, ends: Vec<u64>) {
        self.reserved = ends;
        self.reported = false;
        self.low = self.any_is_low();
    }

    /// Takes `n` numbers of a stream, the first of them; `None` when the block does not hold them.
    pub fn take(&mut self, stream: usize, n: u64) -> Option<u64> {
        let first = self.next[stream];
        let end = first.checked_add(n)?;
        if end > self.reserved[stream] {
            return None;
        }
        self.next[stream] = end;
        self.low |= self.stream_is_low(stream);
        Some(first)
    }

    /// Takes `n` numbers in any case, for what is on disk itself before they can be used again.
    pub fn take_next(&mut self, stream: usize, n: u64) -> u64 {
        let first = self.next[stream];
        self.next[stream] = first.saturating_add(n);
        self.low |= self.stream_is_low(stream);
        first
    }

    /// Takes `n` numbers although the block is used up and the disk takes no other: from far above, where no other run
    /// comes. Returns the first of them, and the numbers left out.
    pub fn take_unreserved(&mut self, stream: usize, n: u64) -> (u64, Option<(u64, u64)>) {
        let next = self.next[stream];
        let jumps = next < self.base;
        self.next[stream] = next.max(self.base);
        (self.take_next(stream, n), jumps.then(|| (next, self.base - 1)))
    }

    /// Half of some block is used up, or the file names what was reported.
    pub fn is_low(&self) -> bool {
        self.reported || self.low
    }

    fn stream_is_low(&self, stream: usize) -> bool {
        self.reserved[stream].saturating_sub(self.next[stream]) < limits::SEQ_BLOCK / 2
    }

    fn any_is_low(&self) -> bool {
        (0..self.next.len()).any(|stream| self.stream_is_low(stream))
    }
}

/// Blocks on their way to the disk.
pub struct Renewal {
    keep: Keep,
    names: Vec<String>,
    blocks: Vec<Block>,
    clean: bool,
    unknown: Vec<Unknown>,
    from: u64,
}

impl Renewal {
    /// Writes them down, beside those of streams that are not configured now. Returns the ends.
    ///
    /// # Errors
    /// The disk does not take them, or what is there cannot be read: then it names streams that would be forgotten.
    pub fn save(self) -> Result<Vec<u64>, String> {
        let kept = match self.keep.load_checked::<Kept>(FILE) {
            Ok(kept) => kept.filter(|kept| kept.v == VERSION),
            Err(Unloaded::Damaged) => None,
            Err(Unloaded::Unreadable(why)) => {
                return Err(format!("reserve sequence numbers: read those in use: {why}"));
            }
        };
        let (mut streams, from) = kept.map_or_else(Default::default, |kept| (kept.streams, kept.from));
        streams.extend(self.names.into_iter().zip(self.blocks.iter().copied()));
        let kept = Kept { v: VERSION, clean: self.clean, streams, unknown: self.unknown, from: self.from.max(from) };
        self.keep.save_checked(FILE, &kept).map_err(|why| format!("reserve sequence numbers: {why}"))?;
        Ok(self.blocks.iter().map(|block| block.end).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn open(dir: &std::path::Path) -> (Seqs, bool) {
        let keep = Keep::open(dir, "s").expect("keep");
        let (mut seqs, lost) = Seqs::open(keep, vec!["a".into(), "b".into()], false, NOW_S);
        seqs.reserve().expect("reserve");
        (seqs, lost)
    }

    fn unknown(seqs: &mut Seqs) -> Vec<Unknown> {
        let (unknown, left_out) = seqs.settle(&BTreeMap::new());
        assert!(left_out.is_empty());
        unknown
    }

    #[test]
    fn after_a_kill_the_next_block_begins_and_the_numbers_between_are_said() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, lost) = open(dir.path());
        assert!(!lost && unknown(&mut seqs).is_empty());
        assert_eq!(seqs.take(0, 10), Some(1));
        assert_eq!(seqs.take(0, limits::SEQ_BLOCK), None);
        assert_eq!(seqs.take(0, limits::SEQ_BLOCK / 2), Some(11));
        assert!(seqs.is_low());
        let ends = seqs.renewal().save().expect("renew");
        seqs.apply(ends);
        assert!(!seqs.is_low());
        let used = seqs.take(0, 1).expect("number");
        drop(seqs);
        std::fs::write(dir.path().join("s").join(FILE), b"torn").expect("write");
        let (mut seqs, _) = open(dir.path());
        let next = seqs.take(0, 1).expect("number");
        assert!(next > used);
        let (unknown, left_out) = seqs.settle(&BTreeMap::from([("a".to_owned(), used)]));
        assert_eq!(unknown, [("a".into(), used + 1, next - 1), ("b".into(), 1, limits::SEQ_BLOCK)]);
        assert!(left_out.is_empty());
    }

    #[test]
    fn low_block_is_known_after_every_step_without_looking_at_all_streams() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        let mut seen = [0; 2];
        for step in 0..400u64 {
            let (stream, n) = (usize::from(step % 3 == 0), 1 + step * 7919 % (limits::SEQ_BLOCK / 5));
            match step % 17 {
                3 => drop(seqs.take_next(stream, n)),
                5 => drop(seqs.take_unreserved(stream, n)),
                11 => drop(seqs.settle(&BTreeMap::from([("b".to_owned(), step)]))),
                16 => seqs.reserve().expect("disk"),
                _ => drop(seqs.take(stream, n)),
            }
            assert_eq!(seqs.is_low(), seqs.any_is_low(), "step {step}");
            seen[usize::from(seqs.is_low())] += 1;
        }
        assert!(seen.iter().all(|n| *n > 50), "{seen:?}");
    }

    #[test]
    fn unknown_numbers_stay_in_the_file_until_they_are_reported() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        assert_eq!(seqs.take(0, 10), Some(1));
        drop(seqs);
        // A run that ends before its store was opened tells nothing.
        drop(open(dir.path()));
        let (mut seqs, _) = open(dir.path());
        let block = limits::SEQ_BLOCK;
        let (unknown, _) = seqs.settle(&BTreeMap::from([("a".to_owned(), 10)]));
        let of_a: Vec<_> = unknown.iter().filter(|(name, ..)| name == "a").map(|(_, a, b)| (*a, *b)).collect();
        assert_eq!(of_a, [(11, block), (block + 1, 2 * block)]);
        seqs.reported();
        assert!(seqs.is_low());
        seqs.ending().save().expect("end");
        let (mut seqs, _) = open(dir.path());
        assert_eq!(seqs.settle(&BTreeMap::new()).0, []);
    }

    #[test]
    fn numbers_in_the_store_above_the_block_are_not_used_again() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        let (_, left_out) = seqs.settle(&BTreeMap::from([("b".to_owned(), 77)]));
        assert_eq!(left_out, [("b".into(), 1, 77)]);
        assert_eq!(seqs.take(1, 1), Some(78));
    }

    #[test]
    fn after_a_stop_in_order_not_one_number_is_left_out() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        assert_eq!(seqs.take(0, 10), Some(1));
        seqs.ending().save().expect("end");
        let (mut seqs, lost) = open(dir.path());
        assert!(!lost && unknown(&mut seqs).is_empty());
        assert_eq!(seqs.take(0, 1), Some(11));
        drop(seqs);
        // Only the ending counts, not that there was one before.
        let (mut seqs, _) = open(dir.path());
        assert_eq!(unknown(&mut seqs)[0], ("a".into(), 11, 10 + limits::SEQ_BLOCK));
        assert_eq!(seqs.take(0, 1), Some(11 + limits::SEQ_BLOCK));
    }

    #[test]
    fn what_could_not_be_reserved_is_used_by_no_other_run() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        assert_eq!(seqs.take(0, 10), Some(1));
        seqs.ending().save().expect("end");
        let (mut seqs, _) = open_at(dir.path(), NOW_S + 5);
        let base = (NOW_S + 5) * limits::SEQ_BLOCK;
        assert_eq!(seqs.take_unreserved(0, 7), (base, Some((11, base - 1))));
        assert_eq!(seqs.take_unreserved(0, 1), (base + 7, None));
        drop(seqs);
        let (mut seqs, _) = open_at(dir.path(), NOW_S + 9);
        assert_eq!(seqs.take_next(0, 1), 11);
        assert!(seqs.take_unreserved(0, 1).0 > base + 8);
    }

    fn open_at(dir: &std::path::Path, now_s: u64) -> (Seqs, bool) {
        Seqs::open(Keep::open(dir, "s").expect("keep"), vec!["a".into()], false, now_s)
    }

    #[test]
    fn without_both_copies_numbers_begin_above_all_that_can_have_been_used() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        let used = seqs.take(0, limits::SEQ_BLOCK).expect("numbers") + limits::SEQ_BLOCK;
        for name in [FILE.to_owned(), format!("{FILE}.bak")] {
            std::fs::write(dir.path().join("s").join(name), b"torn").expect("write");
        }
        let (mut seqs, lost) = open(dir.path());
        assert!(lost);
        let next = seqs.take(0, 1).expect("number");
        assert!(next > used && next < 1 << 53, "{next}");
        drop(seqs);
        for name in [FILE.to_owned(), format!("{FILE}.bak")] {
            std::fs::remove_file(dir.path().join("s").join(name)).expect("taken away");
        }
        let keep = Keep::open(dir.path(), "s").expect("keep");
        let (mut seqs, lost) = Seqs::open(keep, vec!["a".into()], true, NOW_S + 1);
        assert!(lost && seqs.take_next(0, 1) > next);
    }

    #[test]
    fn unreadable_numbers_are_not_taken_for_none_and_not_written_over() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        assert_eq!((seqs.take(0, 10), seqs.take(1, 10)), (Some(1), Some(1)));
        seqs.ending().save().expect("end");
        let copies = [FILE.to_owned(), format!("{FILE}.bak")].map(|name| dir.path().join("s").join(name));
        copies.iter().for_each(|path| crate::host::keep::unreadable::make(path));
        let (mut seqs, lost) = open_at(dir.path(), NOW_S);
        assert!(lost && seqs.reserve().is_err());
        assert_eq!(seqs.take_unreserved(0, 1).0, NOW_S * limits::SEQ_BLOCK, "not 1 again");
        copies.iter().for_each(|path| crate::host::keep::unreadable::mend(path));
        seqs.reserve().expect("it can be read again");
        assert!(seqs.take(0, 1).is_some_and(|n| n > NOW_S * limits::SEQ_BLOCK));
        // The stream that this run did not name is still known.
        let (mut seqs, lost) = open(dir.path());
        assert!(!lost);
        assert!(seqs.take(1, 1).is_some_and(|n| n > 1), "b was used before");
    }

    #[test]
    fn stream_not_named_when_the_file_was_lost_does_not_begin_at_1() {
        let dir = tempfile::tempdir().expect("folder");
        drop(open(dir.path()));
        for name in [FILE.to_owned(), format!("{FILE}.bak")] {
            std::fs::write(dir.path().join("s").join(name), b"torn").expect("write");
        }
        let (mut seqs, _) = open_at(dir.path(), NOW_S);
        seqs.reserve().expect("reserve");
        let (mut seqs, _) = open(dir.path());
        assert!(seqs.take(1, 1).is_some_and(|n| n >= NOW_S * limits::SEQ_BLOCK), "b may have been used before");
    }
}
