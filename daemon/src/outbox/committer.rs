//! The outbox's own thread: takes from the tail what must be stored, commits it, removes what was acknowledged, reads
//! the backlog ahead, publishes the ledger, reserves sequence numbers. Owns the store; all disk I/O is here.

use std::sync::{Arc, PoisonError};

use super::{
    Shared,
    store::{Entry, Key, Store},
    tail::ToStore,
};
use crate::{
    flow::{Class, Draft, Retain, Stamp, StreamId},
    host::Clock,
    limits,
};

/// The thread's state.
pub struct Committer {
    shared: Arc<Shared>,
    store: Store,
    loss: StreamId,
    max_bytes: u64,
    /// Last message of the backlog that was read ahead; `None` begins anew.
    cursor: Option<Key>,
    /// Connections lost when it was last set.
    cursor_breaks: u64,
    said: String,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, store: Store, loss: StreamId, max_bytes: u64) -> Self {
        Self { shared, store, loss, max_bytes, cursor: None, cursor_breaks: 0, said: String::new() }
    }

    /// Tells the thread that nothing more will be put in and the link has ended: it stores what is left and ends.
    pub fn closer(&self) -> impl FnOnce() + Send + 'static {
        let shared = self.shared.clone();
        move || {
            shared.lock().closing = true;
            shared.work.notify_all();
        }
    }

    /// The stage as a thread. Fails when what was left could not be stored.
    pub fn run(mut self, now: impl Fn() -> Stamp, beat: impl Fn()) -> Result<(), String> {
        loop {
            beat();
            let closing = self.wait();
            let done = self.turn(now(), closing);
            if closing {
                return done;
            }
            match done {
                Ok(()) => self.said.clear(),
                Err(why) if why != self.said => {
                    tracing::error!("the outbox cannot write: {why}; keeping in memory");
                    self.said = why;
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for work, a turn at most. Returns whether it is the last one.
    fn wait(&self) -> bool {
        let state = self.shared.lock();
        if state.closing {
            return true;
        }
        let waited = self.shared.work.wait_timeout(state, limits::OUTBOX_TURN);
        waited.unwrap_or_else(PoisonError::into_inner).0.closing
    }

    fn turn(&mut self, stamp: Stamp, closing: bool) -> Result<(), String> {
        self.reserve()?;
        self.tell_losses(stamp);
        let (to_store, doomed) = {
            let mut state = self.shared.lock();
            (state.tail.take_to_store(Clock::boot_ns(), closing), state.tail.take_doomed())
        };
        let result = self.write(&to_store, &doomed);
        let mut state = self.shared.lock();
        match &result {
            Ok(keys) => to_store.iter().zip(keys).for_each(|(parcel, key)| state.tail.stored(parcel.id, *key)),
            Err(_) => to_store.iter().for_each(|parcel| state.tail.not_stored(parcel.id)),
        }
        state.disk_failed = result.is_err();
        drop(state);
        self.shared.room.notify_all();
        if result.is_ok() && !closing {
            self.read_ahead();
        }
        let mut state = self.shared.lock();
        state.stored_records = self.store.records();
        state.stored_bytes = self.store.bytes();
        result.map(|_| ())
    }

    fn write(&mut self, to_store: &[ToStore], doomed: &[Key]) -> Result<Vec<Key>, String> {
        self.store.remove(doomed)?;
        let mut messages = Vec::new();
        for parcel in to_store {
            let bytes = parcel.sealed.to_bytes()?;
            let entry = Entry {
                bytes: bytes.len() as u32,
                records: parcel.sealed.items.len() as u32,
                class: parcel.sealed.class,
            };
            messages.push((bytes, entry));
        }
        let more: u64 = messages.iter().map(|(bytes, _)| bytes.len() as u64).sum();
        self.evict(more)?;
        let keys = self.store.insert(&messages)?;
        if !messages.is_empty() || !doomed.is_empty() {
            self.store.commit()?;
        }
        Ok(keys)
    }

    /// Full: the oldest of the least class leaves first, and is booked.
    fn evict(&mut self, more: u64) -> Result<(), String> {
        while self.store.bytes() + more > self.max_bytes {
            let Some(key) = self.store.least() else {
                return Ok(());
            };
            let sealed = self.store.read(key)?;
            self.store.remove(&[key])?;
            let n = sealed.items.len() as u64;
            self.shared.lock().tail.ledger.enter(&sealed.stream, sealed.seqs(), n, "evicted");
        }
        Ok(())
    }

    fn reserve(&self) -> Result<(), String> {
        let renewal = {
            let state = self.shared.lock();
            state.seqs.is_low().then(|| state.seqs.renewal())
        };
        if let Some(renewal) = renewal {
            let ends = renewal.save()?;
            self.shared.lock().seqs.apply(ends);
            self.shared.room.notify_all();
        }
        Ok(())
    }

    /// Ledger entries become records themselves.
    fn tell_losses(&self, stamp: Stamp) {
        let mut state = self.shared.lock();
        for entry in state.tail.ledger.take() {
            let Some(seq) = state.seqs.take(usize::from(self.loss.0), 1) else {
                return;
            };
            let draft = Draft {
                stream: self.loss,
                class: Class::Status,
                stamp,
                lineage: None,
                body: entry.body(),
                retain: Retain::No,
            };
            state.tail.push(draft, seq, Clock::boot_ns());
            self.shared.ready.notify_one();
        }
    }

    fn read_ahead(&mut self) {
        let breaks = self.shared.lock().tail.breaks();
        if breaks != self.cursor_breaks {
            (self.cursor, self.cursor_breaks) = (None, breaks);
        }
        while let Some(key) = self.store.next(self.cursor) {
            {
                let state = self.shared.lock();
                if !state.tail.wants_backlog() {
                    return;
                }
                if state.tail.holds(key) {
                    self.cursor = Some(key);
                    continue;
                }
            }
            match self.store.read(key) {
                Ok(sealed) => {
                    let mut state = self.shared.lock();
                    // The link may have broken meanwhile; then the store keeps it.
                    if state.tail.breaks() != breaks {
                        return;
                    }
                    state.tail.push_backlog(sealed, key);
                    self.shared.ready.notify_one();
                }
                Err(why) => {
                    tracing::error!("read a stored message: {why}; it is removed");
                    self.shared.lock().tail.ledger.enter("store", (0, 0), 1, "damaged");
                    if self.store.remove(&[key]).is_err() {
                        return;
                    }
                }
            }
            self.cursor = Some(key);
        }
    }
}
