//! What is held in RAM: records that wait, and sealed messages that wait, fly or are being stored. Pure: no disk, no
//! threads; ages come in as numbers. The rules of who goes first and what goes to the store are all here.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

#[path = "turns.rs"]
mod turns;

use super::{
    key::Key,
    ledger::{Ledger, Loss},
    sealed::{Record, Sealed},
};
use crate::{
    flow::{Class, Clk, Draft, Retain},
    limits,
};

/// Names one sealed message in RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParcelId(u64);

/// A record that is in no message yet, and what decides which message it goes into.
#[derive(Debug)]
struct Waiting {
    item: Record,
    class: Class,
    retain: Retain,
    clk: Clk,
    wall_ms: Option<i64>,
    lineage: Option<Arc<str>>,
    /// When it came in, ns since boot.
    since_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting,
    Flight,
    Committing,
}

#[derive(Debug)]
struct Parcel {
    sealed: Arc<Sealed>,
    place: Place,
    stored: Option<Key>,
    hist: bool,
    /// It came from the store: the store is where it goes back to.
    backlog: bool,
    since_ns: u64,
    bytes: usize,
}

/// A message to send.
#[derive(Debug, Clone)]
pub struct ToSend {
    /// Its name, for the acknowledgement.
    pub id: ParcelId,
    /// What to send.
    pub sealed: Arc<Sealed>,
    /// It was kept during an outage.
    pub hist: bool,
    /// It comes from the store, after everything else.
    pub backlog: bool,
}

/// A message to store.
#[derive(Debug, Clone)]
pub struct ToStore {
    /// Its name.
    pub id: ParcelId,
    /// What to store.
    pub sealed: Arc<Sealed>,
}

/// RAM.
#[derive(Debug)]
pub struct Tail {
    boot: String,
    names: Vec<String>,
    /// The stream that carries the ledger.
    loss: usize,
    waiting: Vec<VecDeque<Waiting>>,
    /// Streams with waiting replies, each once, in turn.
    replies: VecDeque<usize>,
    /// Streams with waiting records of the live lane, each once, in turn.
    turns: VecDeque<usize>,
    parcels: BTreeMap<ParcelId, Parcel>,
    urgent: BTreeSet<ParcelId>,
    resend: BTreeSet<ParcelId>,
    backlog: BTreeSet<ParcelId>,
    backlog_bytes: usize,
    next_id: u64,
    bytes: usize,
    records: usize,
    /// Records of those that are not on disk yet either.
    at_risk: usize,
    online: bool,
    /// How long a live record may wait for others of its stream, ns; 0: not at all.
    linger_ns: u64,
    /// Connections lost since the start: what was read ahead before is read again after.
    breaks: u64,
    /// Stored messages that are in RAM as well.
    held: BTreeSet<Key>,
    /// Stored messages that were acknowledged and are to be removed.
    doomed: Vec<Key>,
    /// What was lost.
    pub ledger: Ledger,
    /// Records acknowledged since the start.
    pub delivered: u64,
    /// The same when the committer last looked.
    delivered_before: u64,
}

impl Tail {
    /// Empty, offline.
    pub fn new(boot: &str, names: Vec<String>, loss: usize, ledger: Ledger) -> Self {
        Self {
            boot: boot.to_owned(),
            waiting: names.iter().map(|_| VecDeque::new()).collect(),
            names,
            loss,
            replies: VecDeque::new(),
            turns: VecDeque::new(),
            parcels: BTreeMap::new(),
            urgent: BTreeSet::new(),
            resend: BTreeSet::new(),
            backlog: BTreeSet::new(),
            backlog_bytes: 0,
            next_id: 0,
            bytes: 0,
            records: 0,
            at_risk: 0,
            online: false,
            linger_ns: 0,
            breaks: 0,
            held: BTreeSet::new(),
            doomed: Vec::new(),
            ledger,
            delivered: 0,
            delivered_before: 0,
        }
    }

    /// Name of a stream.
    pub fn name(&self, stream: usize) -> &str {
        &self.names[stream]
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest of them was made, ns since boot.
    pub fn oldest_ns(&self) -> Option<u64> {
        let waiting = self.waiting.iter().filter_map(|queue| queue.front().map(|record| record.since_ns));
        waiting.chain(self.parcels.values().filter(|p| !p.backlog).map(|p| p.since_ns)).min()
    }

    /// Records held that did not come from the store.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Whether anything could be sent now; the backlog counts only where it may go.
    pub fn has_to_send(&self, backlog: bool, now_ns: u64) -> bool {
        let waits = [self.replies.len(), self.urgent.len(), self.resend.len()].iter().any(|n| *n > 0);
        waits || self.turns.iter().any(|s| self.is_ripe(*s, now_ns)) || (backlog && !self.backlog.is_empty())
    }

    /// Takes a record in.
    pub fn push(&mut self, draft: Draft, seq: u64, now_ns: u64) {
        let stream = usize::from(draft.stream.0);
        if draft.body.len() > limits::RECORD_BYTES {
            let name = self.names[stream].clone();
            self.ledger.enter(&name, (seq, seq), 1, "oversize");
            return;
        }
        let record = Waiting {
            item: Record { seq, at_ns: draft.stamp.boot_ns, body: draft.body },
            class: draft.class,
            retain: draft.retain,
            clk: draft.stamp.clk,
            wall_ms: draft.stamp.wall_ms,
            lineage: draft.lineage,
            since_ns: now_ns,
        };
        self.bytes += cost(&record.item);
        self.records += 1;
        self.at_risk += 1;
        let queue = &mut self.waiting[stream];
        queue.push_back(record);
        if draft.class == Class::Event {
            // An alarm is a message of its own at once: it is stored beside being sent.
            if let Some(id) = self.seal(stream) {
                self.urgent.insert(id);
            }
        } else if queue.len() == 1 {
            let lane = if draft.class == Class::Reply { &mut self.replies } else { &mut self.turns };
            lane.push_back(stream);
        }
    }

    /// Seals what waits at the head of a stream into one message.
    fn seal(&mut self, stream: usize) -> Option<ParcelId> {
        let queue = &mut self.waiting[stream];
        let first = queue.pop_front()?;
        let since_ns = first.since_ns;
        let (mut size, mut bytes) = (first.item.body.len() + 48, cost(&first.item));
        let Waiting { item, class, retain, clk, wall_ms, lineage, .. } = first;
        let mut items = vec![item];
        let bytes_max = if self.online { limits::MESSAGE_BYTES } else { limits::STORED_MESSAGE_BYTES };
        while items.len() < limits::MESSAGE_RECORDS {
            let joins = |r: &&Waiting| {
                // What the broker keeps, and a command's result, whose topic names the command, are alone.
                r.clk == clk
                    && r.retain == Retain::No
                    && retain == Retain::No
                    && class != Class::Reply
                    && r.lineage == lineage
                    && size + r.item.body.len() + 48 <= bytes_max
            };
            if queue.front().filter(joins).is_none() {
                break;
            }
            if let Some(next) = queue.pop_front() {
                size += next.item.body.len() + 48;
                bytes += cost(&next.item);
                items.push(next.item);
            }
        }
        let sealed = Sealed {
            stream: self.names[stream].clone(),
            class,
            retain,
            boot: self.boot.clone(),
            clk,
            wall_ms,
            lineage: lineage.map(|l| l.to_string()),
            items,
        };
        let hist = !self.online;
        let id = self.enter(Parcel {
            sealed: Arc::new(sealed),
            place: Place::Waiting,
            stored: None,
            hist,
            backlog: false,
            since_ns,
            bytes,
        });
        Some(id)
    }

    fn enter(&mut self, parcel: Parcel) -> ParcelId {
        let id = ParcelId(self.next_id);
        self.next_id += 1;
        self.parcels.insert(id, parcel);
        id
    }

    /// The next message to send: alarms, replies, what a broken connection left, live streams in turn, and the backlog
    /// where it may go.
    pub fn take(&mut self, backlog: bool, now_ns: u64) -> Option<ToSend> {
        let id = match self.urgent.pop_first() {
            Some(id) => id,
            None => match self.next_reply() {
                Some(id) => id,
                None => match self.resend.pop_first().or_else(|| self.next_live(now_ns)) {
                    Some(id) => id,
                    None if backlog => self.backlog.pop_first()?,
                    None => return None,
                },
            },
        };
        let parcel = self.parcels.get_mut(&id)?;
        parcel.place = Place::Flight;
        Some(ToSend { id, sealed: parcel.sealed.clone(), hist: parcel.hist, backlog: parcel.backlog })
    }

    /// The broker has it.
    #[cfg(test)]
    pub fn acked(&mut self, id: ParcelId) {
        self.settled(id, &[]);
    }

    /// The broker has it, but for records that it will never take.
    pub fn settled(&mut self, id: ParcelId, lost: &[Loss]) {
        if let Some(parcel) = self.forget(id) {
            for loss in lost {
                self.ledger.enter(&parcel.sealed.stream, loss.seqs, loss.n, loss.reason);
            }
            let lost: u64 = lost.iter().map(|loss| loss.n).sum();
            self.delivered += (parcel.sealed.items.len() as u64).saturating_sub(lost);
            self.doomed.extend(parcel.stored);
        }
    }

    /// The broker will never take it.
    pub fn refused(&mut self, id: ParcelId, reason: &'static str) {
        if let Some(parcel) = self.forget(id) {
            let n = parcel.sealed.items.len() as u64;
            self.ledger.enter(&parcel.sealed.stream, parcel.sealed.seqs(), n, reason);
            self.doomed.extend(parcel.stored);
        }
    }

    fn forget(&mut self, id: ParcelId) -> Option<Parcel> {
        let parcel = self.parcels.remove(&id)?;
        self.urgent.remove(&id);
        self.resend.remove(&id);
        self.backlog.remove(&id);
        self.bytes -= parcel.bytes;
        if parcel.backlog {
            self.backlog_bytes -= parcel.bytes;
        } else {
            self.records -= parcel.sealed.items.len();
        }
        match &parcel.stored {
            None => self.at_risk -= parcel.sealed.items.len(),
            Some(key) => {
                self.held.remove(key);
            }
        }
        Some(parcel)
    }

    /// The connection stands.
    pub fn went_online(&mut self) {
        self.online = true;
    }

    /// Whether the connection stands.
    pub fn is_online(&self) -> bool {
        self.online
    }

    /// Connections lost since the start.
    pub fn breaks(&self) -> u64 {
        self.breaks
    }

    /// The connection broke: what flew waits again, in its order. What the store has is left to the store, but for
    /// alarms, which go first when the connection is back.
    pub fn went_offline(&mut self) {
        self.online = false;
        self.breaks += 1;
        let ids: Vec<ParcelId> = self.parcels.keys().copied().collect();
        for id in ids {
            let Some(parcel) = self.parcels.get_mut(&id) else {
                continue;
            };
            let event = parcel.sealed.class == Class::Event;
            if parcel.backlog || (parcel.stored.is_some() && !event) {
                self.forget(id);
            } else if parcel.place == Place::Flight {
                parcel.place = Place::Waiting;
                parcel.hist |= event;
                if event {
                    self.urgent.insert(id)
                } else {
                    self.resend.insert(id)
                };
            }
        }
    }

    /// What must be stored now; each is marked so that it is not sent or taken twice meanwhile. `all`: the stop.
    pub fn take_to_store(&mut self, now_ns: u64, all: bool) -> Vec<ToStore> {
        let age = |since: u64| now_ns.saturating_sub(since);
        // A record that waits for others is unacknowledged on purpose: it does not cost a write to the disk.
        let unacked_ns = limits::UNACKED.as_nanos() as u64 - limits::OUTBOX_TURN.as_nanos() as u64 + self.linger_ns;
        let commit_ns = limits::COMMIT_EVERY.as_nanos() as u64 - limits::OUTBOX_TURN.as_nanos() as u64;
        let oldest = self.waiting.iter().filter_map(|q| q.front()).map(|r| r.since_ns);
        let oldest = oldest.chain(self.resend.iter().map(|id| self.parcels[id].since_ns)).min();
        let due = self.at_risk >= limits::COMMIT_RECORDS || oldest.is_some_and(|since| age(since) >= commit_ns);
        let everything = all || (!self.online && due);
        // Nearly full while acknowledgements come is a sensor faster than the broker: the producers wait, which costs
        // less than a way over the disk. Nearly full and no answer is a broker that hangs.
        let answered = std::mem::replace(&mut self.delivered_before, self.delivered) != self.delivered;
        let spill = self.bytes >= limits::TAIL_SPILL_BYTES && !answered;
        for stream in 0..self.waiting.len() {
            let old = |r: &Waiting| age(r.since_ns) >= unacked_ns;
            while self.waiting[stream].front().is_some_and(|r| everything || spill || old(r)) {
                let Some(id) = self.seal(stream) else { break };
                self.resend.insert(id);
            }
            self.leave_lane(stream);
        }
        let is_due = |parcel: &Parcel| {
            let old = age(parcel.since_ns) >= unacked_ns;
            let free = parcel.stored.is_none() && parcel.place != Place::Committing;
            free && (parcel.sealed.class == Class::Event || everything || spill || old)
        };
        let mut out = Vec::new();
        // A number that is safe on disk must not hide that one before that one is in the ledger: its entry is stored with it.
        if self.parcels.values().any(is_due) {
            out = self.take_ledger_to_store();
        }
        for (id, parcel) in &mut self.parcels {
            let event = parcel.sealed.class == Class::Event;
            if !is_due(parcel) || out.iter().any(|taken| taken.id == *id) {
                continue;
            }
            // A message in flight stays in flight and an alarm may be sent meanwhile; others wait for the disk.
            if parcel.place == Place::Waiting && !event {
                parcel.place = Place::Committing;
                self.resend.remove(id);
            }
            out.push(ToStore { id: *id, sealed: parcel.sealed.clone() });
        }
        out
    }

    /// All that tells of losses and is not on disk.
    pub fn take_ledger_to_store(&mut self) -> Vec<ToStore> {
        while let Some(id) = self.seal(self.loss) {
            self.resend.insert(id);
        }
        self.leave_lane(self.loss);
        let mut out = Vec::new();
        for (id, parcel) in &mut self.parcels {
            let free = parcel.stored.is_none() && parcel.place != Place::Committing;
            if !free || parcel.sealed.stream != self.names[self.loss] {
                continue;
            }
            if parcel.place == Place::Waiting {
                parcel.place = Place::Committing;
                self.resend.remove(id);
            }
            out.push(ToStore { id: *id, sealed: parcel.sealed.clone() });
        }
        out
    }

    /// A stream without waiting records has no turn.
    fn leave_lane(&mut self, stream: usize) {
        if self.waiting[stream].is_empty() {
            self.turns.retain(|s| *s != stream);
            self.replies.retain(|s| *s != stream);
        }
    }

    /// It is on disk.
    pub fn stored(&mut self, id: ParcelId, key: Key) {
        match self.parcels.get_mut(&id) {
            // Acknowledged while it was being stored.
            None => self.doomed.push(key),
            // Entries of the ledger in flight may be taken twice for one commit.
            Some(parcel) if parcel.stored.is_some() => self.doomed.push(key),
            Some(parcel) if parcel.place == Place::Committing => {
                self.forget(id);
            }
            Some(parcel) => {
                parcel.stored = Some(key);
                self.held.insert(key);
                self.at_risk -= parcel.sealed.items.len();
                if !self.online && parcel.sealed.class != Class::Event {
                    self.forget(id);
                } else if !self.online && self.urgent.len() > limits::EVENTS_IN_RAM {
                    let stored = self.urgent.iter().copied().find(|id| self.parcels[id].stored.is_some());
                    stored.map(|id| self.forget(id));
                }
            }
        }
    }

    /// The disk did not take it: it waits in RAM again.
    pub fn not_stored(&mut self, id: ParcelId) {
        if let Some(parcel) = self.parcels.get_mut(&id)
            && parcel.place == Place::Committing
        {
            parcel.place = Place::Waiting;
            self.resend.insert(id);
        }
    }

    /// Something should be stored before the next turn.
    pub fn wants_commit(&self) -> bool {
        let event_at_risk = self.urgent.iter().any(|id| self.parcels[id].stored.is_none());
        event_at_risk || (!self.online && self.at_risk >= limits::COMMIT_RECORDS)
    }

    /// Room for more of the backlog.
    pub fn wants_backlog(&self) -> bool {
        self.online && self.backlog_bytes < limits::BACKLOG_RAM_BYTES
    }

    /// Is this stored message in RAM already, or on its way out?
    pub fn holds(&self, key: Key) -> bool {
        self.held.contains(&key) || self.doomed.contains(&key)
    }

    /// A message of the backlog, read ahead.
    pub fn push_backlog(&mut self, sealed: Sealed, key: Key) {
        let bytes: usize = sealed.items.iter().map(cost).sum();
        self.bytes += bytes;
        self.backlog_bytes += bytes;
        let parcel = Parcel {
            sealed: Arc::new(sealed),
            place: Place::Waiting,
            stored: Some(key),
            hist: true,
            backlog: true,
            since_ns: 0,
            bytes,
        };
        let urgent = parcel.sealed.class == Class::Event;
        self.held.insert(key);
        let id = self.enter(parcel);
        if urgent {
            self.urgent.insert(id)
        } else {
            self.backlog.insert(id)
        };
    }

    /// Stored messages that may be removed.
    pub fn take_doomed(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.doomed)
    }

    /// No room and no disk: what is on disk as well leaves RAM without a loss; else the oldest of the least class leaves,
    /// and is entered in the ledger, also where it is in flight or being stored and may still arrive. Returns whether
    /// anything left.
    pub fn shed(&mut self, reason: &'static str) -> bool {
        let spare = |(_, p): &(&ParcelId, &Parcel)| p.stored.is_some() && p.place == Place::Waiting;
        if let Some(id) = self.parcels.iter().find(spare).map(|(id, _)| *id) {
            self.forget(id);
            return true;
        }
        let least = (0..self.waiting.len())
            .filter_map(|s| self.waiting[s].front().map(|r| ((r.class, std::cmp::Reverse(r.since_ns)), s)))
            .max();
        let parcel = self.parcels.iter().filter(|(_, p)| p.stored.is_none());
        let parcel = parcel.map(|(id, p)| ((p.sealed.class, std::cmp::Reverse(p.since_ns)), *id)).max();
        match (least, parcel) {
            (Some((a, stream)), b) if b.is_none_or(|(b, _)| a >= b) => {
                if let Some(record) = self.waiting[stream].pop_front() {
                    self.bytes -= cost(&record.item);
                    self.records -= 1;
                    self.at_risk -= 1;
                    let name = self.names[stream].clone();
                    self.ledger.enter(&name, (record.item.seq, record.item.seq), 1, reason);
                }
                self.leave_lane(stream);
            }
            (_, Some((_, id))) => self.refused(id, reason),
            // All that is left is stored and in flight.
            _ => return self.parcels.keys().next().copied().and_then(|id| self.forget(id)).is_some(),
        }
        true
    }
}

fn cost(item: &Record) -> usize {
    item.body.len() + limits::RECORD_OVERHEAD
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
