//! The loss ledger: nothing is dropped in silence. Entries wait to be published; sums are kept for health. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;

use crate::{flow::record::json_str, limits};

/// One loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Topic below `up/`.
    pub stream: String,
    /// First lost sequence number.
    pub first: u64,
    /// Last lost sequence number.
    pub last: u64,
    /// How many are lost between them, both included.
    pub n: u64,
    /// Why.
    pub reason: &'static str,
}

/// The ledger.
#[derive(Debug, Default)]
pub struct Ledger {
    open: Vec<Entry>,
    sums: BTreeMap<(String, &'static str), u64>,
}

impl Ledger {
    /// Enters a loss; joined with the last one of the same stream and reason where nothing lies between, or where
    /// too many wait.
    pub fn enter(&mut self, stream: &str, (first, last): (u64, u64), n: u64, reason: &'static str) {
        *self.sums.entry((stream.to_owned(), reason)).or_default() += n;
        let crowded = self.open.len() >= limits::LEDGER_ENTRIES;
        let same = self.open.iter_mut().rev().find(|e| e.stream == stream && e.reason == reason);
        match same {
            Some(entry) if crowded || entry.last.checked_add(1) == Some(first) => {
                entry.first = entry.first.min(first);
                entry.last = entry.last.max(last);
                entry.n += n;
            }
            _ => self.open.push(Entry { stream: stream.to_owned(), first, last, n, reason }),
        }
    }

    /// Entries to publish.
    pub fn take(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.open)
    }

    /// All losses since the start, by stream and reason.
    pub fn sums(&self) -> &BTreeMap<(String, &'static str), u64> {
        &self.sums
    }
}

impl Entry {
    /// The record's members.
    pub fn body(&self) -> Bytes {
        let mut out = String::from("\"stream\":");
        json_str(&mut out, &self.stream);
        let _ = write!(
            out,
            ",\"first\":{},\"last\":{},\"n\":{},\"reason\":\"{}\"",
            self.first, self.last, self.n, self.reason
        );
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
}
