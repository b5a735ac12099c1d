//! The outbox's own thread: takes from the tail what must be stored, commits it, removes what was acknowledged, reads
//! the backlog ahead, publishes the ledger, reserves sequence numbers. Owns the store; all disk I/O is here.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Instant,
};

use super::{
    Shared,
    key::Key,
    ledger::{Ledger, Sums},
    opening::{Opened, Opening},
    packed::Packed,
    sealed::Record,
    store::Store,
    tail::ToStore,
    trouble::Unread,
};
use crate::{
    flow::{Class, Clk, Draft, Stamp, StreamId, event::Kind},
    host::Clock,
    limits,
};

/// How old what is stored may become, ns by class; none: as old as there is room.
#[derive(Debug, Clone, Default)]
pub struct Expiry(pub Vec<(Class, u64)>);

/// What the stage needs from the rest of the daemon.
pub struct Around {
    /// The time.
    pub now: Box<dyn Fn() -> Stamp + Send>,
    /// The clock's floor, ms since 1970: no right clock is earlier.
    pub floor_ms: i64,
    /// Signs of life.
    pub beat: Box<dyn Fn() + Send>,
    /// Makes an event of a kind and a text.
    pub event: Event,
    /// A commit took so long.
    pub committed: Box<dyn Fn(std::time::Duration) + Send>,
}

/// Makes an event of a kind and a text.
pub type Event = Box<dyn Fn(Kind, Stamp, &str) -> Draft + Send>;

/// The thread's state.
pub struct Committer {
    shared: Arc<Shared>,
    opening: Opening,
    /// `None` before the first opening, and after the disk failed: sled answers nothing any more then, not even reads,
    /// until it is opened again.
    store: Option<Store>,
    /// Why it could not be opened.
    waiting: String,
    /// The first opening came to its end: it is known which numbers are in the store.
    opened: bool,
    /// What the last run left unknown is not on disk yet.
    unreported: bool,
    /// When it is looked again at stores that were set aside, ns since boot.
    salvage_ns: u64,
    /// When it is opened again, ns since boot.
    reopen_ns: u64,
    /// Acknowledged messages that are still stored.
    doomed: BTreeSet<Key>,
    loss: StreamId,
    max_bytes: u64,
    expiry: Expiry,
    boot: String,
    /// Last message of the backlog that was read ahead; `None` starts from the beginning.
    cursor: Option<Key>,
    /// Connections lost when it was last set.
    cursor_breaks: u64,
    /// When these are due, ns since boot.
    expiry_ns: u64,
    /// When the log may say again that the store is full.
    full_said_ns: u64,
    ballast_ns: u64,
    /// The file system can set blocks aside.
    can_ballast: bool,
    ledger_ns: u64,
    /// Sums that are not saved yet.
    sums: Option<Sums>,
    /// The oldest stored message, and when it was made, ns since boot; 0: before it.
    oldest: Option<Key>,
    oldest_ns: Option<u64>,
    said: String,
}

/// What leaves the store with the next commit. What tells of it goes into the store before it leaves: of a commit that was
/// not finished the beginning may be on disk, and then nothing has left of which nothing tells.
#[derive(Default)]
struct Leaving {
    keys: BTreeSet<Key>,
    bytes: u64,
    ledger: Ledger,
}

impl Leaving {
    fn take(&mut self, store: &Store, key: Key, reason: &'static str) -> Result<(), String> {
        match store.read(key) {
            Ok(sealed) => self.ledger.enter(&sealed.stream, sealed.seqs(), sealed.items.len() as u64, reason),
            Err(Unread::Damaged(_)) => self.ledger.enter("store", (0, 0), 1, reason),
            Err(Unread::Disk(why)) => return Err(why),
        }
        self.bytes += store.size(key);
        self.keys.insert(key);
        Ok(())
    }
}

/// What was left at the stop could not be stored; why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotStored(String);

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        opening: Opening,
        loss: StreamId,
        boot: &str,
        (max_bytes, expiry): (u64, Expiry),
    ) -> Self {
        Self {
            shared,
            opening,
            store: None,
            waiting: String::new(),
            opened: false,
            unreported: false,
            salvage_ns: 0,
            reopen_ns: 0,
            doomed: BTreeSet::new(),
            loss,
            max_bytes,
            expiry,
            boot: boot.to_owned(),
            cursor: None,
            cursor_breaks: 0,
            expiry_ns: 0,
            full_said_ns: 0,
            ballast_ns: 0,
            can_ballast: true,
            ledger_ns: 0,
            sums: None,
            oldest: None,
            oldest_ns: None,
            said: String::new(),
        }
    }

    /// For tests: what is older leaves.
    #[cfg(test)]
    pub(super) fn expire_after(&mut self, class: Class, ns: u64) {
        self.expiry.0.push((class, ns));
    }

    /// Tells the thread that nothing more will be put in and the link has ended: it stores what is left and ends.
    pub fn closer(&self) -> impl FnOnce() + Send + use<> {
        let shared = self.shared.clone();
        move || {
            shared.lock().closing = true;
            shared.work.notify_all();
        }
    }

    /// The stage as a thread.
    ///
    /// # Errors
    /// What was left could not be stored, though it was tried as long as a stop may take.
    pub fn run(mut self, around: Around) -> Result<(), NotStored> {
        let mut stopping = None;
        loop {
            (around.beat)();
            let closing = self.wait();
            let stamp = (around.now)();
            let now_ms = stamp.wall_ms.filter(|_| stamp.clk == Clk::Sync).unwrap_or(0).max(around.floor_ms);
            let done = self.turn(stamp, now_ms, closing, &around);
            if closing {
                let began = *stopping.get_or_insert_with(Instant::now);
                let done = done.and_then(|()| self.end());
                if done.is_ok() || began.elapsed() >= limits::STOP_RETRY {
                    return done.map_err(NotStored);
                }
                std::thread::sleep(limits::OUTBOX_TURN);
                continue;
            }
            match done {
                Ok(()) => self.said.clear(),
                Err(why) if why != self.said => {
                    tracing::error!("the outbox cannot write: {why}; keeping in memory");
                    if self.said.is_empty() {
                        self.tell((around.event)(Kind::DiskFailed, stamp, &why), stamp);
                    }
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

    /// One turn; also what a test plays step by step. `now_ms`: wall time, or a bound below it.
    pub(super) fn turn(&mut self, stamp: Stamp, now_ms: i64, closing: bool, around: &Around) -> Result<(), String> {
        self.on_disk();
        let reserved = self.reserve();
        if closing {
            self.reopen_ns = 0;
        }
        self.reopen(stamp, around);
        self.tell_losses(stamp);
        let mut to_store = {
            let mut state = self.shared.lock();
            self.doomed.extend(state.tail.take_doomed());
            let mut to_store = state.tail.take_to_store(stamp.boot_ns, closing);
            if self.unreported && self.store.is_some() {
                let more = state.tail.take_ledger_to_store();
                let is_new = |parcel: &ToStore| to_store.iter().all(|taken| taken.id != parcel.id);
                let more: Vec<_> = more.into_iter().filter(is_new).collect();
                to_store.extend(more);
            }
            to_store
        };
        self.on_disk();
        let began_ns = (!to_store.is_empty()).then(Clock::boot_ns);
        let mut result = self.write(&mut to_store, stamp, now_ms);
        if let Some(began_ns) = began_ns.filter(|_| result.is_ok()) {
            (around.committed)(std::time::Duration::from_nanos(Clock::boot_ns().saturating_sub(began_ns)));
        }
        if result.is_err() {
            self.close(stamp);
            // What was kept for this moment lets the store be opened and written once more, at once.
            if self.opening.disk.give_up_ballast() {
                self.reopen_ns = 0;
                self.reopen(stamp, around);
                result = self.write(&mut to_store, stamp, now_ms);
            }
        }
        let mut state = self.shared.lock();
        match &result {
            Ok(keys) => {
                to_store.iter().zip(keys).for_each(|(parcel, key)| state.tail.stored(parcel.id, *key));
                if std::mem::take(&mut self.unreported) {
                    state.seqs.reported();
                }
            }
            Err(_) => to_store.iter().for_each(|parcel| state.tail.not_stored(parcel.id)),
        }
        (state.disk_failed, state.opening) = (result.is_err() || reserved.is_err(), false);
        drop(state);
        self.shared.room.notify_all();
        let result = result
            .and_then(|_| if closing { Ok(()) } else { self.salvage(stamp, around).and_then(|()| self.read_ahead()) });
        if result.is_err() {
            self.close(stamp);
        } else {
            self.keep_house(stamp);
        }
        self.look_at_oldest();
        let mut state = self.shared.lock();
        if let Some(store) = &self.store {
            state.stored_records = store.records();
            state.stored_bytes = store.bytes();
            state.oldest_stored_ns = self.oldest_ns;
        }
        drop(state);
        self.shared.on_disk_ns.store(0, Relaxed);
        result.and(reserved)
    }

    /// Something on disk begins: who waits for the disk sees when it hangs.
    fn on_disk(&self) {
        self.shared.on_disk_ns.store(Clock::boot_ns(), Relaxed);
    }

    /// When the oldest stored message was made; it is read when it is another one.
    fn look_at_oldest(&mut self) {
        let oldest = self.store.as_ref().and_then(|store| store.next(None));
        if oldest != self.oldest {
            let read = self.store.as_ref().zip(oldest).and_then(|(store, key)| store.read(key).ok());
            let made_ns =
                |item: &Record| if read.as_ref().is_some_and(|s| s.boot == self.boot) { item.at_ns } else { 0 };
            self.oldest_ns = read.as_ref().and_then(|sealed| sealed.items.first().map(made_ns));
            self.oldest = oldest;
        }
    }

    /// What is done now and then while the disk works.
    fn keep_house(&mut self, stamp: Stamp) {
        if stamp.boot_ns >= self.ballast_ns {
            self.ballast_ns = stamp.boot_ns + limits::BALLAST_EVERY.as_nanos() as u64;
            self.can_ballast = self.can_ballast && self.opening.disk.keep_ballast();
            let quarantines = self.opening.disk.quarantines().len() as u64;
            self.shared.lock().quarantines = quarantines;
        }
        if stamp.boot_ns >= self.ledger_ns {
            self.ledger_ns = stamp.boot_ns + limits::LEDGER_SAVE.as_nanos() as u64;
            if let Err(why) = self.save_ledger() {
                tracing::warn!(
                    "loss ledger not saved: {why}; the next attempt is in {} s",
                    limits::LEDGER_SAVE.as_secs()
                );
            }
        }
    }

    fn save_ledger(&mut self) -> Result<(), String> {
        let changes = self.shared.lock().tail.ledger.changes();
        if changes.is_some() {
            self.sums = changes;
        }
        if let Some(sums) = &self.sums {
            Ledger::save(&self.opening.keep, sums)?;
            self.sums = None;
        }
        Ok(())
    }

    /// The stop in order: the next start knows every number.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.save_ledger()?;
        let ending = self.shared.lock().seqs.ending();
        ending.save().map(|_| ())?;
        // sled syncs once more when it is let go.
        if let Some(store) = self.store.take() {
            self.opening.close(store);
        }
        Ok(())
    }

    /// Lets go of a store whose disk failed.
    fn close(&mut self, stamp: Stamp) {
        if let Some(store) = self.store.take() {
            self.opening.close(store);
            self.reopen_ns = stamp.boot_ns + limits::STORE_REOPEN.as_nanos() as u64;
            self.cursor = None;
        }
    }

    /// Opens the store, at the start and a while after its disk failed.
    fn reopen(&mut self, stamp: Stamp, around: &Around) {
        if self.store.is_some() || stamp.boot_ns < self.reopen_ns {
            return;
        }
        self.reopen_ns = stamp.boot_ns + limits::STORE_REOPEN.as_nanos() as u64;
        let mut opened = self.opening.open(&around.beat);
        self.waiting = opened.waiting.take().unwrap_or_default();
        if let Some(store) = opened.store.take() {
            if std::mem::replace(&mut self.opened, true) {
                tracing::info!(records = store.records(), "the outbox's disk works again");
            } else {
                tracing::info!(records = store.records(), "the outbox's store is open");
                self.settle_numbers(&store, stamp);
            }
            self.store = Some(store);
        }
        self.tell_opened(opened, stamp, around);
    }

    /// The first opening shows which numbers of the last run are known; the others are reported before anything else.
    fn settle_numbers(&mut self, store: &Store, stamp: Stamp) {
        let mut state = self.shared.lock();
        let (unknown, left_out) = state.seqs.settle(&store.found.highest);
        self.unreported = !unknown.is_empty();
        for (stream, first, last) in unknown {
            state.tail.ledger.unknown(&stream, (first, last), last - first + 1, "unclean_stop");
        }
        for (stream, first, last) in left_out {
            state.tail.ledger.enter(&stream, (first, last), 0, "renumbered");
        }
        for entry in state.tail.ledger.take() {
            let seq = state.seqs.take_next(usize::from(self.loss.0), 1);
            state.tail.push(entry.draft(self.loss, stamp), seq, stamp.boot_ns);
        }
        self.shared.ready.notify_one();
    }

    /// What an opening, or a salvage, found.
    fn tell_opened(&self, opened: Opened, stamp: Stamp, around: &Around) {
        for (kind, text) in &opened.reports {
            self.tell((around.event)(*kind, stamp, text), stamp);
        }
        let mut state = self.shared.lock();
        opened.lost.iter().for_each(|(n, reason)| state.tail.ledger.enter("store", (0, 0), *n, reason));
    }

    /// Looks again at stores that were set aside, of which something could not be read or found no room.
    fn salvage(&mut self, stamp: Stamp, around: &Around) -> Result<(), String> {
        let Some(store) = self.store.as_mut().filter(|_| stamp.boot_ns >= self.salvage_ns) else { return Ok(()) };
        self.salvage_ns = stamp.boot_ns + limits::SALVAGE_EVERY.as_nanos() as u64;
        if !self.opening.has_unsalvaged() {
            return Ok(());
        }
        let mut opened = Opened::default();
        let done = self.opening.salvage_quarantines(store, &around.beat, &mut opened);
        // What was taken over lies before what was read ahead.
        self.cursor = None;
        self.tell_opened(opened, stamp, around);
        done
    }

    /// An event of the outbox itself.
    fn tell(&self, draft: Draft, stamp: Stamp) {
        self.shared.lock().push_now(draft, stamp.boot_ns);
        self.shared.ready.notify_one();
    }

    fn write(&mut self, to_store: &mut Vec<ToStore>, stamp: Stamp, now_ms: i64) -> Result<Vec<Key>, String> {
        let Some(store) = &mut self.store else {
            let why = Some(self.waiting.as_str()).filter(|why| !why.is_empty()).unwrap_or("its disk failed");
            return Err(format!("the store is not open: {why}"));
        };
        let mut leaving = Leaving::default();
        store.remove(self.doomed.iter().copied())?;
        if stamp.boot_ns >= self.expiry_ns {
            expire(&self.shared, store, &self.expiry, (stamp, now_ms, &self.boot), &mut leaving)?;
            self.expiry_ns = stamp.boot_ns + limits::EXPIRY_EVERY.as_nanos() as u64;
        }
        let mut packed: Vec<Packed> = to_store.iter().map(|p| Packed::new(&p.sealed)).collect::<Result<_, _>>()?;
        if !packed.is_empty() {
            let more = packed.iter().map(Packed::size).sum();
            // At the quota what is stored may not grow: as much leaves as comes.
            let cap = if self.opening.disk.has_room(more) { self.max_bytes } else { store.bytes().min(self.max_bytes) };
            let evicted = evict(&self.shared, store, cap.saturating_sub(more), &mut leaving)?;
            if evicted > 0 && stamp.boot_ns >= self.full_said_ns {
                self.full_said_ns = stamp.boot_ns + limits::FULL_SAID.as_nanos() as u64;
                let mib = cap as f64 / 1_048_576.0;
                tracing::warn!("the store is full ({mib:.1} MiB): its oldest records are evicted; up/loss names them");
            }
        }
        let Leaving { keys: leaving, mut ledger, .. } = leaving;
        let entries = ledger.take();
        let mut report = None;
        if !entries.is_empty() {
            let mut state = self.shared.lock();
            // Entries that wait go before it: each stream is stored in its order.
            for parcel in state.tail.take_ledger_to_store() {
                let sealed = parcel.sealed.clone();
                to_store.push(parcel);
                packed.push(Packed::new(&sealed)?);
            }
            report = Some(state.seal_ledger(&entries, self.loss, stamp, &self.boot));
        }
        let written = store.insert(&packed).and_then(|keys| {
            report.iter().try_for_each(|report| store.insert(&[Packed::new(report)?]).map(|_| ()))?;
            store.remove(leaving)?;
            store.commit().map(|()| keys)
        });
        match written {
            Ok(keys) => {
                self.doomed.clear();
                self.shared.lock().tail.ledger.add(&entries);
                Ok(keys)
            }
            Err(why) => {
                // It is all done again from the beginning. The numbers may be on disk, so they are not used again.
                if let Some(report) = report {
                    let n = report.items.len() as u64;
                    self.shared.lock().tail.ledger.enter(&report.stream, report.seqs(), n, "no_room");
                }
                Err(why)
            }
        }
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
        let mut entries = state.tail.ledger.take().into_iter();
        while let Some(entry) = entries.next() {
            let loss = usize::from(self.loss.0);
            let seq = match state.seqs.take(loss, 1) {
                Some(seq) => seq,
                None if state.disk_failed => state.unreserved(loss, 1),
                None => {
                    state.tail.ledger.put_back(std::iter::once(entry).chain(entries).collect());
                    return;
                }
            };
            state.tail.push(entry.draft(self.loss, stamp), seq, stamp.boot_ns);
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
            self.shared.on_disk_ns.store(Clock::boot_ns(), Relaxed);
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
                    store.remove([key])?;
                    self.shared.lock().tail.ledger.enter("store", (0, 0), 1, "damaged");
                }
            }
            self.cursor = Some(key);
        }
        Ok(())
    }
}

/// Full: the oldest of the least class leaves first. What is in RAM as well is on its way out anyway.
/// Returns how many messages leave.
fn evict(shared: &Shared, store: &Store, most: u64, leaving: &mut Leaving) -> Result<usize, String> {
    let mut over = store.bytes().saturating_sub(leaving.bytes).saturating_sub(most);
    let mut keys = Vec::new();
    {
        let state = shared.lock();
        let mut least = store.least().filter(|key| !leaving.keys.contains(key) && !state.tail.holds(*key));
        while over > 0 {
            let Some(key) = least.next() else { break };
            keys.push(key);
            over = over.saturating_sub(store.size(key));
        }
    }
    let evicted = keys.len();
    keys.into_iter().try_for_each(|key| leaving.take(store, key, "evicted"))?;
    Ok(evicted)
}

/// What became too old leaves: the age is exact within this boot, and a bound below it across boots.
fn expire(
    shared: &Shared,
    store: &Store,
    expiry: &Expiry,
    (stamp, now_ms, boot): (Stamp, i64, &str),
    leaving: &mut Leaving,
) -> Result<(), String> {
    for (class, most_ns) in &expiry.0 {
        for key in store.of_class(*class) {
            if shared.lock().tail.holds(key) {
                break;
            }
            let Ok(sealed) = store.read(key) else { break };
            let made_ns = sealed.items.first().map_or(0, |item| item.at_ns);
            let age_ns = if sealed.boot == boot {
                stamp.boot_ns.saturating_sub(made_ns)
            } else {
                let made_ms = sealed.wall_ms.filter(|_| sealed.clk == Clk::Sync);
                let age_ms = made_ms.map_or(0, |made_ms| now_ms.saturating_sub(made_ms));
                u64::try_from(age_ms).unwrap_or(0).saturating_mul(1_000_000)
            };
            if age_ns <= *most_ns {
                break;
            }
            leaving.take(store, key, "expired")?;
        }
    }
    Ok(())
}
