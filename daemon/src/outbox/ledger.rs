//! The loss ledger: nothing is dropped in silence. Entries wait to be published; sums outlive the process.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;

use crate::{
    flow::{Class, Draft, Retain, Stamp, StreamId, record::json_str},
    host::Keep,
    limits,
};

/// One loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Topic below `up/`.
    pub stream: String,
    /// First lost sequence number.
    pub first: u64,
    /// Last lost sequence number.
    pub last: u64,
    /// How many are lost between them, both included; 0 where that is not known.
    pub n: u64,
    /// Where it is not known: no more than this.
    pub at_most: Option<u64>,
    /// Why.
    pub reason: &'static str,
}

/// Records of one message that the broker will never take.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// First and last sequence.
    pub seqs: (u64, u64),
    /// How many.
    pub n: u64,
    /// Why.
    pub reason: &'static str,
}

/// Sums by stream and reason.
pub type Sums = BTreeMap<(String, String), u64>;

/// The ledger.
#[derive(Debug, Default)]
pub struct Ledger {
    open: Vec<Entry>,
    sums: Sums,
    changed: bool,
}

const FILE: &str = "ledger.json";

impl Ledger {
    /// With the sums that were saved. `Err` where they were and cannot be read: a new ledger begins.
    pub fn load(keep: &Keep) -> (Self, bool) {
        let kept = keep.load_checked::<Vec<(String, String, u64)>>(FILE);
        let damaged = kept.is_err();
        let sums = kept.ok().flatten().unwrap_or_default();
        let sums = sums.into_iter().map(|(stream, reason, n)| ((stream, reason), n)).collect();
        (Self { sums, ..Self::default() }, damaged)
    }

    /// What is to be saved, if anything changed since this was asked before.
    pub fn changes(&mut self) -> Option<Sums> {
        std::mem::take(&mut self.changed).then(|| self.sums.clone())
    }

    /// Saves sums.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn save(keep: &Keep, sums: &Sums) -> Result<(), String> {
        let rows: Vec<_> = sums.iter().map(|((stream, reason), n)| (stream, reason, n)).collect();
        keep.save_checked(FILE, &rows).map_err(|why| format!("save the loss ledger: {why}"))
    }

    /// Enters a loss; joined with the last one of the same stream and reason where nothing lies between, or where
    /// too many wait.
    pub fn enter(&mut self, stream: &str, (first, last): (u64, u64), n: u64, reason: &'static str) {
        if n > 0 {
            *self.sums.entry((stream.to_owned(), reason.to_owned())).or_default() += n;
            self.changed = true;
        }
        let crowded = self.open.len() >= limits::LEDGER_ENTRIES;
        let same = self.open.iter_mut().rev().find(|e| e.stream == stream && e.reason == reason);
        match same {
            Some(entry) if crowded || entry.last.checked_add(1) == Some(first) => {
                entry.first = entry.first.min(first);
                entry.last = entry.last.max(last);
                entry.n += n;
            }
            _ => self.open.push(Entry { stream: stream.to_owned(), first, last, n, at_most: None, reason }),
        }
    }

    /// Adds entries to the sums that are published in another way.
    pub fn add(&mut self, entries: &[Entry]) {
        for entry in entries {
            *self.sums.entry((entry.stream.clone(), entry.reason.to_owned())).or_default() += entry.n;
            self.changed = true;
        }
    }

    /// Enters numbers of which it is not known how many were used and lost: at most all of them.
    pub fn unknown(&mut self, stream: &str, (first, last): (u64, u64), at_most: u64, reason: &'static str) {
        let entry = Entry { stream: stream.to_owned(), first, last, n: 0, at_most: Some(at_most), reason };
        self.open.push(entry);
    }

    /// Entries to publish.
    pub fn take(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.open)
    }

    /// Entries that could not be published yet.
    pub fn put_back(&mut self, entries: Vec<Entry>) {
        self.open.splice(0..0, entries);
    }

    /// All losses since the device was set up, by stream and reason.
    pub fn sums(&self) -> &Sums {
        &self.sums
    }
}

impl Entry {
    /// The entry as a record of the stream that carries the ledger.
    pub fn draft(&self, stream: StreamId, stamp: Stamp) -> Draft {
        Draft { stream, class: Class::Status, stamp, lineage: None, body: self.body(), retain: Retain::No }
    }

    /// The record's members.
    fn body(&self) -> Bytes {
        let mut out = String::from("\"stream\":");
        json_str(&mut out, &self.stream);
        let _ = write!(
            out,
            ",\"first\":{},\"last\":{},\"n\":{},\"reason\":\"{}\"",
            self.first, self.last, self.n, self.reason
        );
        if let Some(at_most) = self.at_most {
            let _ = write!(out, ",\"at_most\":{at_most}");
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjoining_losses_are_joined_and_none_is_forgotten() {
        let mut ledger = Ledger::default();
        ledger.enter("p/a", (1, 1), 1, "gap");
        ledger.enter("p/a", (2, 5), 4, "gap");
        ledger.enter("p/a", (9, 9), 1, "gap");
        ledger.enter("p/a", (10, 10), 1, "shed");
        let spans: Vec<_> = ledger.take().iter().map(|e| (e.first, e.last, e.n)).collect();
        assert_eq!(spans, [(1, 5, 5), (9, 9, 1), (10, 10, 1)]);
        for i in 0..10_000 {
            ledger.enter("p/a", (i * 2, i * 2), 1, "gap");
        }
        let open = ledger.take();
        assert!(open.len() <= limits::LEDGER_ENTRIES);
        assert_eq!(open.iter().map(|e| e.n).sum::<u64>(), 10_000);
        assert_eq!(ledger.sums().values().sum::<u64>(), 10_007);
    }

    #[test]
    fn sums_outlive_the_process_and_a_torn_file() {
        let dir = tempfile::tempdir().expect("folder");
        let keep = Keep::open(dir.path(), "l").expect("keep");
        let (mut ledger, damaged) = Ledger::load(&keep);
        assert!(!damaged && ledger.changes().is_none());
        ledger.enter("p/a", (1, 3), 3, "evicted");
        Ledger::save(&keep, &ledger.changes().expect("changes")).expect("save");
        assert!(ledger.changes().is_none());
        std::fs::write(dir.path().join("l").join(FILE), b"torn").expect("tear");
        let (ledger, damaged) = Ledger::load(&keep);
        assert!(!damaged);
        assert_eq!(ledger.sums()[&("p/a".into(), "evicted".into())], 3);
        std::fs::write(dir.path().join("l").join(format!("{FILE}.bak")), b"torn").expect("tear");
        let (ledger, damaged) = Ledger::load(&keep);
        assert!(damaged && ledger.sums().is_empty());
    }
}
