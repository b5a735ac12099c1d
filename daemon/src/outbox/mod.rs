//! Records on their way to the broker: a bounded tail in RAM, and a body on disk for what the broker did not take.
//!
//! While the broker acknowledges, a record is sent from RAM and dropped on PUBACK; no flash is touched. It goes to the
//! store when the link is down, when it stays unacknowledged for a second, when the tail is nearly full, at the stop,
//! and at once, beside being sent, when it is an alarm. Only an acknowledgement removes it.
//!
//! `tail` holds the rules, `store` the disk, `committer` the thread between them. The tail is the queue between the
//! stages that make records, the link and the committer; it is locked for moves in RAM only, never over I/O.
//!
//! ```text
//! STATE/outbox/  store/            the database, see `store`
//!                watermark         what it held when it was last synced, see `watermark`
//!                sequences.json    numbers in use, see `seqs`; two copies
//!                ledger.json       sums of all losses; two copies
//!                ballast           given up first when the disk is full
//!                store.attempt     an opening of the store that has not come to an end
//!                quarantine-N/     stores that could not be opened
//! ```

mod committer;
mod disk;
mod ledger;
mod opening;
mod salvage;
mod sealed;
mod seqs;
mod store;
mod tail;
mod watermark;

use std::{
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

pub use committer::{Around, Committer, Expiry};
pub use ledger::{Loss, Sums};
pub use opening::probe_main;
pub use sealed::Sealed;
pub use tail::{ParcelId, ToSend};

use self::{
    disk::Disk,
    ledger::{Entry, Ledger},
    opening::Opening,
    sealed::Item,
    seqs::Seqs,
    tail::Tail,
};
use crate::{
    flow::{Class, Draft, Retain, Sink, Stamp, StreamId, event::Kind},
    host::{Clock, Keep},
    limits,
};

struct State {
    tail: Tail,
    seqs: Seqs,
    /// The disk does not take anything: pushes shed instead of waiting.
    disk_failed: bool,
    closing: bool,
    stored_records: u64,
    stored_bytes: u64,
    /// Damaged stores that are kept for a look.
    quarantines: u64,
    /// When the oldest stored record was made, ns since boot; `None`: none is, or it is of another boot.
    oldest_stored_ns: Option<u64>,
}

impl State {
    /// Takes a record in without waiting for room: what the outbox and the link say of themselves, which is little.
    /// Returns its number.
    fn push_now(&mut self, draft: Draft, now_ns: u64) -> u64 {
        let stream = usize::from(draft.stream.0);
        let seq = self.seqs.take(stream, 1).unwrap_or_else(|| self.unreserved(stream, 1));
        self.tail.push(draft, seq, now_ns);
        seq
    }

    /// Numbers where the disk takes no reservation; those left out are in the ledger as never used.
    fn unreserved(&mut self, stream: usize, n: u64) -> u64 {
        let (first, left_out) = self.seqs.take_unreserved(stream, n);
        if let Some(left_out) = left_out {
            let name = self.tail.name(stream).to_owned();
            self.tail.ledger.enter(&name, left_out, 0, "renumbered");
        }
        first
    }

    /// Entries of the ledger as a message to be stored at once.
    fn seal_ledger(&mut self, entries: &[Entry], loss: StreamId, stamp: Stamp, boot: &str) -> Sealed {
        let stream = usize::from(loss.0);
        let first = self.seqs.take_next(stream, entries.len() as u64);
        let items = (first..).zip(entries).map(|(seq, entry)| {
            let body = entry.draft(loss, stamp).body;
            Item { seq, at_ns: stamp.boot_ns, body }
        });
        Sealed {
            stream: self.tail.name(stream).to_owned(),
            class: Class::Status,
            retain: Retain::No,
            boot: boot.to_owned(),
            clk: stamp.clk,
            wall_ms: stamp.wall_ms,
            lineage: None,
            items: items.collect(),
        }
    }
}

struct Shared {
    state: Mutex<State>,
    /// Room for producers, or new sequence numbers.
    room: Condvar,
    /// Something for the committer.
    work: Condvar,
    /// Something for the link.
    ready: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The outbox, taken apart by its users.
pub struct Outbox {
    /// For the stages that make records; clone it.
    pub writer: Writer,
    /// For the link.
    pub reader: Reader,
    /// For the outbox's own thread.
    pub committer: Committer,
    /// What opening found that is to be told.
    pub told: Vec<(Kind, String)>,
}

/// How the outbox is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Under which `outbox/` lies.
    pub state_dir: PathBuf,
    /// This boot.
    pub boot: String,
    /// Names of all streams below `up/`.
    pub streams: Vec<String>,
    /// The one that carries the ledger.
    pub loss: StreamId,
    /// Cap of what is stored, bytes of packed messages.
    pub max_bytes: u64,
    /// How old it may become.
    pub expiry: Expiry,
    /// This program, to try the store in a process of its own.
    pub program: Option<PathBuf>,
    /// The time.
    pub now: Stamp,
    /// Wall time, or a bound below it, s since 1970.
    pub now_s: u64,
}

/// What the outbox holds and did.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Records in RAM that are not acknowledged.
    pub ram_records: u64,
    /// Bytes in RAM.
    pub ram_bytes: u64,
    /// Records in the store.
    pub stored_records: u64,
    /// Bytes of sealed messages in the store.
    pub stored_bytes: u64,
    /// Records acknowledged since the start.
    pub delivered: u64,
    /// The connection stands.
    pub online: bool,
    /// The disk takes records.
    pub disk_ok: bool,
    /// Damaged stores that are kept for a look.
    pub quarantines: u64,
    /// How long the oldest record has been unacknowledged, ns; at least, where it is of another boot.
    pub oldest_ns: Option<u64>,
    /// Losses since the device was set up, by stream and reason.
    pub lost: Sums,
}

impl Outbox {
    /// Opens what is in the state directory. Whatever is damaged is set aside and told; where nothing can be written it all
    /// stays in RAM until it can.
    pub fn open(setup: Setup) -> Result<Self, String> {
        let Setup { state_dir, boot, streams, loss, max_bytes, expiry, program, now, now_s } = setup;
        let folder = state_dir.join("outbox");
        let keep = Keep::at(folder.clone());
        let disk = Disk::new(folder.clone());
        let opening = Opening { folder: folder.join("store"), disk: disk.clone(), keep: keep.clone(), program };
        let mut opened = opening.open(&|| {});
        let mut told = opened.told;
        if let Some(why) = opened.waiting {
            tracing::error!("the store cannot be opened: {why}; keeping in memory until it can");
            told.push((Kind::DiskFailed, why));
        }
        let highest = opened.store.as_ref().map(|store| store.found.highest.clone()).unwrap_or_default();
        let (mut seqs, found) = Seqs::open(keep.clone(), streams.clone(), &highest, now_s);
        if found.lost {
            let text = "the sequence numbers in use could not be read; they go on far above all that were used";
            tracing::error!("{text}");
            told.push((Kind::StoreDamaged, text.into()));
        }
        let (mut ledger, damaged) = Ledger::load(&keep);
        if damaged {
            let text = "the loss ledger's sums could not be read; they begin anew";
            tracing::error!("{text}");
            told.push((Kind::StoreDamaged, text.into()));
        }
        for (stream, first, last) in found.unknown {
            ledger.unknown(&stream, (first, last), last - first + 1, "unclean_stop");
        }
        opened.lost.iter().for_each(|(n, reason)| ledger.enter("store", (0, 0), *n, reason));
        let mut tail = Tail::new(&boot, streams, usize::from(loss.0), ledger);
        // What the last run left unknown is on disk before the blocks that tell of it are renewed.
        for entry in tail.ledger.take() {
            let seq = seqs.take_next(usize::from(loss.0), 1);
            tail.push(entry.draft(loss, now), seq, now.boot_ns);
        }
        if let Some(store) = &mut opened.store
            && let Err(why) = keep_all(&mut tail, store)
        {
            tracing::warn!("store the ledger: {why}");
        }
        let mut reserved = seqs.reserve();
        if reserved.is_err() && disk.give_up_ballast() {
            reserved = seqs.reserve();
        }
        let state = State {
            tail,
            seqs,
            disk_failed: opened.store.is_none() || reserved.is_err(),
            closing: false,
            stored_records: opened.store.as_ref().map_or(0, store::Store::records),
            stored_bytes: opened.store.as_ref().map_or(0, store::Store::bytes),
            quarantines: disk.quarantines().len() as u64,
            oldest_stored_ns: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            room: Condvar::new(),
            work: Condvar::new(),
            ready: Notify::new(),
        });
        Ok(Self {
            writer: Writer(shared.clone()),
            reader: Reader(shared.clone()),
            committer: Committer::new(shared, opening, opened.store, loss, &boot, (max_bytes, expiry)),
            told,
        })
    }
}

/// Stores all that waits.
fn keep_all(tail: &mut Tail, store: &mut store::Store) -> Result<(), String> {
    let waiting = tail.take_to_store(0, true);
    let packed: Result<Vec<_>, _> = waiting.iter().map(|message| store::Packed::new(&message.sealed)).collect();
    let stored = packed.and_then(|packed| store.insert(&packed)).and_then(|keys| store.commit().map(|()| keys));
    match stored {
        Ok(keys) => waiting.iter().zip(keys).for_each(|(message, key)| tail.stored(message.id, key)),
        Err(why) => {
            waiting.iter().for_each(|message| tail.not_stored(message.id));
            return Err(why);
        }
    }
    Ok(())
}

/// Takes records. Waits when there is no room, and sheds only when the disk takes nothing either.
#[derive(Clone)]
pub struct Writer(Arc<Shared>);

impl Sink for Writer {
    fn put(&mut self, drafts: &mut Vec<Draft>) {
        let now_ns = Clock::boot_ns();
        let mut state = self.0.lock();
        for draft in drafts.drain(..) {
            state = self.make_room(state);
            let (guard, seq) = self.number(state, draft.stream, 1);
            state = guard;
            state.tail.push(draft, seq, now_ns);
        }
        self.after(&state);
    }

    fn lost(&mut self, stream: StreamId, n: u64, reason: &'static str) {
        let n = n.clamp(1, limits::SEQ_BLOCK / 2);
        let (mut state, first) = self.number(self.0.lock(), stream, n);
        let name = state.tail.name(usize::from(stream.0)).to_owned();
        state.tail.ledger.enter(&name, (first, first.saturating_add(n - 1)), n, reason);
    }
}

impl Writer {
    /// What the outbox holds and did.
    pub fn stats(&self) -> Stats {
        let state = self.0.lock();
        let oldest_ns = state.tail.oldest_ns().into_iter().chain(state.oldest_stored_ns).min();
        Stats {
            oldest_ns: oldest_ns.map(|at| Clock::boot_ns().saturating_sub(at)),
            ram_records: state.tail.records() as u64,
            ram_bytes: state.tail.bytes() as u64,
            stored_records: state.stored_records,
            stored_bytes: state.stored_bytes,
            delivered: state.tail.delivered,
            online: state.tail.is_online(),
            disk_ok: !state.disk_failed,
            quarantines: state.quarantines,
            lost: state.tail.ledger.sums().clone(),
        }
    }

    /// Takes a record in without ever waiting: for those who make room by going on. Returns its number.
    pub fn put_now(&self, draft: Draft) -> u64 {
        let mut state = self.0.lock();
        let seq = state.push_now(draft, Clock::boot_ns());
        self.after(&state);
        seq
    }

    fn make_room<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.tail.bytes() >= limits::TAIL_BYTES {
            if state.disk_failed || state.closing {
                state.tail.shed("no_room");
            } else {
                self.0.work.notify_one();
                let waited = self.0.room.wait_timeout(state, Duration::from_millis(100));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        state
    }

    /// Takes `n` sequence numbers; waits for the committer to reserve more where the block is used up and the disk works.
    fn number<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        stream: StreamId,
        n: u64,
    ) -> (MutexGuard<'a, State>, u64) {
        loop {
            if let Some(first) = state.seqs.take(usize::from(stream.0), n) {
                return (state, first);
            }
            if state.disk_failed {
                let first = state.unreserved(usize::from(stream.0), n);
                return (state, first);
            }
            self.0.work.notify_one();
            let waited = self.0.room.wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wakes whom it concerns.
    fn after(&self, state: &State) {
        self.0.ready.notify_one();
        if state.tail.wants_commit() || state.seqs.is_low() {
            self.0.work.notify_one();
        }
    }
}

/// The link's end.
pub struct Reader(Arc<Shared>);

impl Reader {
    /// The next message to send, if any; the backlog only where it may go.
    pub fn take(&self, backlog: bool) -> Option<ToSend> {
        self.0.lock().tail.take(backlog)
    }

    /// Waits until there may be something to send.
    pub async fn ready(&self, backlog: bool) {
        if !self.0.lock().tail.has_to_send(backlog) {
            self.0.ready.notified().await;
        }
    }

    /// The broker acknowledged it.
    #[cfg(test)]
    pub fn acked(&self, id: ParcelId) {
        self.settle(|tail| tail.acked(id));
    }

    /// The broker refused it for good.
    #[cfg(test)]
    pub fn refused(&self, id: ParcelId, reason: &'static str) {
        self.settle(|tail| tail.refused(id, reason));
    }

    /// The broker acknowledged it, but for records that it will never take.
    pub fn settled(&self, id: ParcelId, lost: &[Loss]) {
        self.settle(|tail| tail.settled(id, lost));
    }

    /// The connection stands.
    pub fn online(&self) {
        self.settle(Tail::went_online);
        self.0.work.notify_one();
    }

    /// The connection broke.
    pub fn offline(&self) {
        self.settle(Tail::went_offline);
        self.0.work.notify_one();
    }

    /// Nothing that was made since the start is unacknowledged.
    pub fn is_drained(&self) -> bool {
        self.0.lock().tail.records() == 0
    }

    fn settle(&self, act: impl FnOnce(&mut Tail)) {
        let mut state = self.0.lock();
        let before = state.tail.bytes();
        act(&mut state.tail);
        let after = state.tail.bytes();
        // Producers and the committer care only when a bound was crossed.
        if after < before && (before >= limits::TAIL_BYTES || state.tail.wants_backlog()) {
            self.0.room.notify_all();
            if state.stored_records > 0 {
                self.0.work.notify_one();
            }
        }
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
