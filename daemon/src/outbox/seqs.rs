//! Sequence numbers: unsigned 64 bit for each stream, growing through restarts, never used twice. They are reserved on
//! disk in blocks. A start after a stop in order goes on at the next number; one after a kill goes on at the next
//! block, and says which numbers it cannot account for.

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
    /// End of the block that is reserved on disk, exclusive.
    reserved: Vec<u64>,
    /// Numbers from here on were used by no run that began in an earlier second.
    base: u64,
    /// Where streams begin that the file does not name.
    from: u64,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    v: u8,
    /// Written at a stop in order: `next` is exact.
    clean: bool,
    streams: BTreeMap<String, Block>,
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

/// What the start found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// After an unclean stop: by stream the first and the last number of which nothing is known.
    pub unknown: Vec<(String, u64, u64)>,
    /// The file is damaged, gone or cannot be read; numbers begin far above those used.
    pub lost: bool,
}

const FILE: &str = "sequences.json";
const VERSION: u8 = 1;

impl Seqs {
    /// Goes on where the numbers ended; the next blocks are still to be reserved. `highest`: the highest number of each
    /// stream in the store; `now_s`: wall time or the clock's floor, for a base above all numbers used when the file is
    /// lost: second × block is more than any device has used that starts less than once a second.
    pub fn open(keep: Keep, names: Vec<String>, highest: &BTreeMap<String, u64>, now_s: u64) -> (Self, Found) {
        let mut found = Found::default();
        let kept = keep.load_checked::<Kept>(FILE).ok().filter(|kept| kept.as_ref().is_none_or(|k| k.v == VERSION));
        let base = now_s.saturating_mul(limits::SEQ_BLOCK);
        // No file, but a store: it was taken away.
        let gone = matches!(kept, Some(None)) && !highest.is_empty();
        found.lost = kept.is_none() || gone;
        let known = kept.as_ref().and_then(Option::as_ref);
        let first = if found.lost { base } else { known.map_or(1, |kept| kept.from.max(1)) };
        let kept = kept.flatten();
        let clean = kept.as_ref().is_none_or(|kept| kept.clean);
        let next = names.iter().map(|name| {
            let stored = highest.get(name).map_or(1, |last| last.saturating_add(1));
            let Some(block) = kept.as_ref().and_then(|kept| kept.streams.get(name)) else {
                return first.max(stored);
            };
            let known = block.next.max(stored);
            if !clean && known < block.end {
                found.unknown.push((name.clone(), known, block.end - 1));
            }
            if clean { known } else { known.max(block.end) }
        });
        let next: Vec<u64> = next.collect();
        (Self { keep, reserved: next.clone(), names, next, base, from: first }, found)
    }

    /// Reserves the next blocks.
    pub fn reserve(&mut self) -> Result<(), String> {
        let ends = self.renewal().save()?;
        self.apply(ends);
        Ok(())
    }

    /// The next blocks, to be saved without holding up anyone who takes numbers.
    pub fn renewal(&self) -> Renewal {
        let end = |next: u64| next.saturating_add(limits::SEQ_BLOCK);
        let blocks = self.next.iter().map(|next| Block { next: *next, end: end(*next) }).collect();
        Renewal { keep: self.keep.clone(), names: self.names.clone(), blocks, clean: false, from: self.from }
    }

    /// What is saved at a stop in order.
    pub fn ending(&self) -> Renewal {
        let blocks = self.next.iter().map(|next| Block { next: *next, end: *next }).collect();
        Renewal { blocks, clean: true, ..self.renewal() }
    }

    /// What was saved may be used.
    pub fn apply(&mut self, ends: Vec<u64>) {
        self.reserved = ends;
    }

    /// Takes `n` numbers of a stream, the first of them; `None` when the block does not hold them.
    pub fn take(&mut self, stream: usize, n: u64) -> Option<u64> {
        let first = self.next[stream];
        let end = first.checked_add(n)?;
        if end > self.reserved[stream] {
            return None;
        }
        self.next[stream] = end;
        Some(first)
    }

    /// Takes `n` numbers in any case, for what is on disk itself before they can be used again.
    pub fn take_next(&mut self, stream: usize, n: u64) -> u64 {
        let first = self.next[stream];
        self.next[stream] = first.saturating_add(n);
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

    /// Half of some block is used up.
    pub fn is_low(&self) -> bool {
        self.next
            .iter()
            .zip(&self.reserved)
            .any(|(next, reserved)| reserved.saturating_sub(*next) < limits::SEQ_BLOCK / 2)
    }
}

/// Blocks on their way to the disk.
pub struct Renewal {
    keep: Keep,
    names: Vec<String>,
    blocks: Vec<Block>,
    clean: bool,
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
        let kept = Kept { v: VERSION, clean: self.clean, streams, from: self.from.max(from) };
        self.keep.save_checked(FILE, &kept).map_err(|why| format!("reserve sequence numbers: {why}"))?;
        Ok(self.blocks.iter().map(|block| block.end).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn open(dir: &std::path::Path) -> (Seqs, Found) {
        open_with(dir, &BTreeMap::new())
    }

    fn open_with(dir: &std::path::Path, highest: &BTreeMap<String, u64>) -> (Seqs, Found) {
        let keep = Keep::open(dir, "s").expect("keep");
        let (mut seqs, found) = Seqs::open(keep, vec!["a".into(), "b".into()], highest, NOW_S);
        seqs.reserve().expect("reserve");
        (seqs, found)
    }

    #[test]
    fn after_a_kill_the_next_block_begins_and_the_numbers_between_are_said() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, found) = open(dir.path());
        assert_eq!(found, Found::default());
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
        let (mut seqs, found) = open_with(dir.path(), &BTreeMap::from([("a".to_owned(), used)]));
        let next = seqs.take(0, 1).expect("number");
        assert!(next > used);
        assert_eq!(found.unknown[0], ("a".into(), used + 1, next - 1));
        assert_eq!(found.unknown[1], ("b".into(), 1, limits::SEQ_BLOCK));
    }

    #[test]
    fn after_a_stop_in_order_not_one_number_is_left_out() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        assert_eq!(seqs.take(0, 10), Some(1));
        seqs.ending().save().expect("end");
        let (mut seqs, found) = open(dir.path());
        assert_eq!(found, Found::default());
        assert_eq!(seqs.take(0, 1), Some(11));
        // Only the ending counts, not that there was one before.
        let (mut seqs, found) = open(dir.path());
        assert_eq!(found.unknown[0], ("a".into(), 11, 10 + limits::SEQ_BLOCK));
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

    fn open_at(dir: &std::path::Path, now_s: u64) -> (Seqs, Found) {
        Seqs::open(Keep::open(dir, "s").expect("keep"), vec!["a".into()], &BTreeMap::new(), now_s)
    }

    #[test]
    fn without_both_copies_numbers_begin_above_all_that_can_have_been_used() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        let used = seqs.take(0, limits::SEQ_BLOCK).expect("numbers") + limits::SEQ_BLOCK;
        for name in [FILE.to_owned(), format!("{FILE}.bak")] {
            std::fs::write(dir.path().join("s").join(name), b"torn").expect("write");
        }
        let (mut seqs, found) = open(dir.path());
        assert!(found.lost);
        let next = seqs.take(0, 1).expect("number");
        assert!(next > used && next < 1 << 53, "{next}");
    }

    #[test]
    fn unreadable_numbers_are_not_taken_for_none_and_not_written_over() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut seqs, _) = open(dir.path());
        assert_eq!((seqs.take(0, 10), seqs.take(1, 10)), (Some(1), Some(1)));
        seqs.ending().save().expect("end");
        let copies = [FILE.to_owned(), format!("{FILE}.bak")].map(|name| dir.path().join("s").join(name));
        copies.iter().for_each(|path| crate::host::keep::unreadable::make(path));
        let (mut seqs, found) = open_at(dir.path(), NOW_S);
        assert!(found.lost && seqs.reserve().is_err());
        assert_eq!(seqs.take_unreserved(0, 1).0, NOW_S * limits::SEQ_BLOCK, "not 1 again");
        copies.iter().for_each(|path| crate::host::keep::unreadable::mend(path));
        seqs.reserve().expect("it can be read again");
        assert!(seqs.take(0, 1).is_some_and(|n| n > NOW_S * limits::SEQ_BLOCK));
        // The stream that this run did not name is still known.
        let (mut seqs, found) = open(dir.path());
        assert!(!found.lost);
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
