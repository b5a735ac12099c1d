//! Whose turn it is of the records that wait, and how long live ones wait for others of their stream. Part of the tail.

use super::{ParcelId, Tail, Waiting};
use crate::{flow::Retain, limits};

impl Tail {
    /// Lets live records wait for others of their stream; 0: not any more.
    pub fn linger(&mut self, ns: u64) {
        self.linger_ns = ns;
    }

    /// Whether a stream's waiting records go now: they waited long enough, fill a message, or RAM is needed. What the broker
    /// keeps is a message of its own, so it waits for nothing.
    pub(super) fn is_ripe(&self, stream: usize, now_ns: u64) -> bool {
        let queue = &self.waiting[stream];
        let waited = |r: &Waiting| r.retain != Retain::No || now_ns.saturating_sub(r.since_ns) >= self.linger_ns;
        queue.len() >= limits::MESSAGE_RECORDS || self.bytes >= limits::LINGER_BYTES || queue.front().is_none_or(waited)
    }

    /// When the next of them is, ns since boot.
    pub fn ripe_ns(&self) -> Option<u64> {
        let fronts = self.turns.iter().filter_map(|s| self.waiting[*s].front());
        fronts.map(|record| record.since_ns.saturating_add(self.linger_ns)).min()
    }

    /// Seals what the next stream has waiting of replies.
    pub(super) fn next_reply(&mut self) -> Option<ParcelId> {
        let stream = self.replies.pop_front()?;
        let id = self.seal(stream)?;
        if !self.waiting[stream].is_empty() {
            self.replies.push_back(stream);
        }
        Some(id)
    }

    /// The same of the live lane, if one of its streams waited long enough.
    pub(super) fn next_live(&mut self, now_ns: u64) -> Option<ParcelId> {
        let at = self.turns.iter().position(|s| self.is_ripe(*s, now_ns))?;
        let stream = self.turns.remove(at)?;
        let id = self.seal(stream)?;
        if !self.waiting[stream].is_empty() {
            self.turns.push_back(stream);
        }
        Some(id)
    }
}
