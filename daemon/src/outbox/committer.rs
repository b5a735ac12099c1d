//! The outbox's own thread: takes from the tail what must be stored, commits it, removes what was acknowledged, reads
//! the backlog ahead, publishes the ledger, reserves sequence numbers. Owns the store; all disk I/O is here.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use super::{
    Sealed, Shared,
    store::{Entry, Key, Store, Unread},
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
    folder: PathBuf,
    /// `None` after the disk failed: sled answers nothing any more then, not even reads, until it is opened anew.
    store: Option<Store>,
    /// When it is opened anew, ns since boot.
    reopen_ns: u64,
    /// Acknowledged messages that are still stored.
    doomed: Vec<Key>,
    loss: StreamId,
    max_bytes: u64,
    /// Last message of the backlog that was read ahead; `None` begins anew.
    cursor: Option<Key>,
    /// Connections lost when it was last set.
    cursor_breaks: u64,
    said: String,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, folder: PathBuf, store: Store, loss: StreamId, max_bytes: u64) -> Self {
        Self {
            shared,
            folder,
            store: Some(store),
            reopen_ns: 0,
            doomed: Vec::new(),
            loss,
            max_bytes,
            cursor: None,
            cursor_breaks: 0,
            said: String::new(),
        }
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
        let reserved = self.reserve();
        self.tell_losses(stamp);
        self.reopen();
        let to_store = {
            let mut state = self.shared.lock();
            self.doomed.extend(state.tail.take_doomed());
            state.tail.take_to_store(Clock::boot_ns(), closing)
        };
        let result = self.write(&to_store);
        let mut state = self.shared.lock();
        match &result {
            Ok(keys) => to_store.iter().zip(keys).for_each(|(parcel, key)| state.tail.stored(parcel.id, *key)),
            Err(_) => to_store.iter().for_each(|parcel| state.tail.not_stored(parcel.id)),
        }
        state.disk_failed = result.is_err() || reserved.is_err();
        drop(state);
        self.shared.room.notify_all();
        let result = result.and_then(|_| if closing { Ok(()) } else { self.read_ahead() });
        if result.is_err() {
            self.close();
        }
        let mut state = self.shared.lock();
        if let Some(store) = &self.store {
            state.stored_records = store.records();
            state.stored_bytes = store.bytes();
        }
        result.and(reserved)
    }

    /// Lets go of a store whose disk failed.
    fn close(&mut self) {
        if self.store.take().is_some() {
            self.reopen_ns = Clock::boot_ns() + limits::STORE_REOPEN.as_nanos() as u64;
            self.cursor = None;
        }
    }

    /// Opens the store again, a while after its disk failed.
    fn reopen(&mut self) {
        if self.store.is_some() || Clock::boot_ns() < self.reopen_ns {
            return;
        }
        match Store::open(&self.folder) {
            Ok(store) => {
                tracing::info!(records = store.records(), "the outbox's disk works again");
                (0..store.damaged).for_each(|_| book(&self.shared, None, "damaged"));
                self.store = Some(store);
            }
            Err(_) => self.reopen_ns = Clock::boot_ns() + limits::STORE_REOPEN.as_nanos() as u64,
        }
    }

    fn write(&mut self, to_store: &[ToStore]) -> Result<Vec<Key>, String> {
        let Some(store) = &mut self.store else { return Err("waiting for the disk to work again".into()) };
        let removes = !self.doomed.is_empty();
        store.remove(&self.doomed)?;
        self.doomed.clear();
        let mut messages = Vec::new();
        for parcel in to_store {
            let bytes = parcel.sealed.to_bytes()?;
            let records = parcel.sealed.items.len() as u32;
            let entry = Entry { bytes: bytes.len() as u32, records, class: parcel.sealed.class };
            messages.push((bytes, entry));
        }
        let more: u64 = messages.iter().map(|(bytes, _)| bytes.len() as u64).sum();
        // Full: the oldest of the least class leaves first, and is booked.
        while store.bytes() + more > self.max_bytes {
            let Some(key) = store.least() else { break };
            let lost = match store.read(key) {
                Ok(sealed) => Some(sealed),
                Err(Unread::Damaged(_)) => None,
                Err(Unread::Disk(why)) => return Err(why),
            };
            store.remove(&[key])?;
            book(&self.shared, lost.as_ref(), "evicted");
        }
        let keys = store.insert(&messages)?;
        if removes || !messages.is_empty() {
            store.commit()?;
        }
        Ok(keys)
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

    /// Reads the next messages of the backlog while there is room for them.
    fn read_ahead(&mut self) -> Result<(), String> {
        let Some(store) = &mut self.store else { return Ok(()) };
        let breaks = self.shared.lock().tail.breaks();
        if breaks != self.cursor_breaks {
            (self.cursor, self.cursor_breaks) = (None, breaks);
        }
        while let Some(key) = store.next(self.cursor) {
            {
                let state = self.shared.lock();
                if !state.tail.wants_backlog() {
                    return Ok(());
                }
                if state.tail.holds(key) || self.doomed.contains(&key) {
                    self.cursor = Some(key);
                    continue;
                }
            }
            match store.read(key) {
                Ok(sealed) => {
                    let mut state = self.shared.lock();
                    // The link may have broken meanwhile; then the store keeps it.
                    if state.tail.breaks() != breaks {
                        return Ok(());
                    }
                    state.tail.push_backlog(sealed, key);
                    self.shared.ready.notify_one();
                }
                Err(Unread::Disk(why)) => return Err(why),
                Err(Unread::Damaged(why)) => {
                    tracing::error!("a stored message is damaged: {why}; it is removed");
                    book(&self.shared, None, "damaged");
                    store.remove(&[key])?;
                }
            }
            self.cursor = Some(key);
        }
        Ok(())
    }
}

/// Enters a stored message in the ledger; of one that cannot be read no more is known than that it was there.
fn book(shared: &Shared, lost: Option<&Sealed>, reason: &'static str) {
    let ledger = &mut shared.lock().tail.ledger;
    match lost {
        Some(sealed) => ledger.enter(&sealed.stream, sealed.seqs(), sealed.items.len() as u64, reason),
        None => ledger.enter("store", (0, 0), 1, reason),
    }
}
