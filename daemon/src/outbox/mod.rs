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
//!                store.unsynced    a sync failed: the store is written again before it is opened
//!                quarantine-N/     stores that could not be opened, see `quarantine`
//! ```
//!
//! The store is opened by the outbox's own thread, which may take minutes after an unclean stop. Until then all is in RAM,
//! and no stage waits for it, or for a disk that fails or hangs.

mod committer;
mod disk;
mod key;
mod ledger;
mod opening;
mod packed;
mod quarantine;
mod salvage;
mod sealed;
mod seqs;
mod store;
mod tail;
mod trouble;
mod watermark;

use std::{
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;

pub use committer::{Around, Committer, Expiry};
pub use ledger::{Loss, Sums};
pub use opening::probe_main;
pub use sealed::Sealed;
pub use tail::{ParcelId, ToSend};

use self::{
    ledger::{Entry, Ledger},
    opening::Opening,
    sealed::Record,
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
    /// The store is being opened for the first time: pushes shed instead of waiting, but later.
    opening: bool,
    closing: bool,
    /// Producers that wait for room or numbers. To wake no one is a system call too, and each acknowledgement comes by here.
    waiting: usize,
    stored_records: u64,
    stored_bytes: u64,
    /// Damaged stores that are kept for a look.
    quarantines: u64,
    /// When the oldest stored record was made, ns since boot; `None`: none is, or it is of another boot.
    oldest_stored_ns: Option<u64>,
}

impl State {
    /// How many bytes the tail may hold before a record of this class is let in. Alarms wait for nothing, and while the
    /// store is being opened there is room for more.
    fn room_bytes(&self, class: Class) -> usize {
        let room = if self.opening { limits::TAIL_OPENING_BYTES } else { limits::TAIL_BYTES };
        if class == Class::Event { room + limits::TAIL_ALARM_BYTES } else { room }
    }

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
            Record { seq, at_ns: stamp.boot_ns, body }
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
    /// When the committer began what it does on disk now, ns since boot; 0: nothing.
    on_disk_ns: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk neither takes what it was given nor fails.
    fn hangs(&self) -> bool {
        let since_ns = self.on_disk_ns.load(Relaxed);
        since_ns > 0 && Clock::boot_ns().saturating_sub(since_ns) >= limits::DISK_PATIENCE.as_nanos() as u64
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
    /// What opening found and the caller reports as events.
    pub reports: Vec<(Kind, String)>,
}

/// What the outbox is opened with.
#[derive(Debug, Clone)]
pub struct OpenWith {
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
    /// Wall time, or a bound below it, s since 1970.
    pub now_s: u64,
    /// How long a live record may wait for others of its stream, ms.
    pub linger_ms: u64,
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
    /// What is stored is being opened; until then only RAM is counted.
    pub opening: bool,
    /// Damaged stores that are kept for a look.
    pub quarantines: u64,
    /// How long the oldest record has been unacknowledged, ns; at least, where it is of another boot.
    pub oldest_ns: Option<u64>,
    /// Losses since the device was set up, by stream and reason.
    pub lost: Sums,
}

impl Outbox {
    /// Opens the numbers and the ledger, which is quick; the store is opened by the committer's first turn. Whatever is
    /// damaged is reported; a disk that does not work is waited for.
    pub fn open(setup: OpenWith) -> Self {
        let OpenWith { state_dir, boot, streams, loss, max_bytes, expiry, program, now_s, linger_ms } = setup;
        let folder = state_dir.join("outbox");
        if let Err(why) = std::fs::create_dir_all(&folder) {
            tracing::error!("make {}: {why}; keeping in memory until it can be made", folder.display());
        }
        let keep = Keep::at(folder.clone());
        let opening = Opening::new(&folder, keep.clone(), program);
        let mut reports = Vec::new();
        let (mut seqs, lost) = Seqs::open(keep.clone(), streams.clone(), opening.is_there(), now_s);
        if lost {
            let text = "sequence numbers are damaged: the streams continue far above every number that was used";
            reports.push((Kind::StoreDamaged, text.into()));
        }
        let (ledger, damaged) = Ledger::load(&keep);
        if damaged {
            let text = "the saved sums of the loss ledger are damaged: they restart at 0";
            reports.push((Kind::StoreDamaged, text.into()));
        }
        let mut reserved = seqs.reserve();
        if reserved.is_err() && opening.disk.give_up_ballast() {
            reserved = seqs.reserve();
        }
        let mut tail = Tail::new(&boot, streams, usize::from(loss.0), ledger);
        tail.linger(linger_ms * 1_000_000);
        let state = State {
            tail,
            seqs,
            disk_failed: reserved.is_err(),
            opening: true,
            closing: false,
            waiting: 0,
            stored_records: 0,
            stored_bytes: 0,
            quarantines: 0,
            oldest_stored_ns: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            room: Condvar::new(),
            work: Condvar::new(),
            ready: Notify::new(),
            on_disk_ns: AtomicU64::new(0),
        });
        Self {
            writer: Writer(shared.clone()),
            reader: Reader(shared.clone()),
            committer: Committer::new(shared, opening, loss, &boot, (max_bytes, expiry)),
            reports,
        }
    }
}

/// Takes records. Waits when there is no room, and sheds only when the disk is not writable either; then it never waits.
#[derive(Clone)]
pub struct Writer(Arc<Shared>);

impl Sink for Writer {
    fn put(&mut self, drafts: &mut Vec<Draft>) {
        let now_ns = Clock::boot_ns();
        // An alarm does not wait behind the prediction that raised it.
        if drafts.len() > 1 && drafts.iter().any(|draft| draft.class == Class::Event) {
            drafts.sort_by_key(|draft| draft.class != Class::Event);
        }
        let mut state = self.0.lock();
        for draft in drafts.drain(..) {
            state = self.make_room(state, draft.class);
            let (guard, seq) = self.number(state, draft.stream, 1);
            state = guard;
            state.tail.push(draft, seq, now_ns);
        }
        self.after(state);
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
            disk_ok: !state.disk_failed && !state.opening && !self.0.hangs(),
            opening: state.opening,
            quarantines: state.quarantines,
            lost: state.tail.ledger.sums().clone(),
        }
    }

    /// Takes a record in without ever waiting: for those who make room by going on. Returns its number.
    pub fn put_now(&self, draft: Draft) -> u64 {
        let mut state = self.0.lock();
        let seq = state.push_now(draft, Clock::boot_ns());
        self.after(state);
        seq
    }

    fn make_room<'a>(&'a self, mut state: MutexGuard<'a, State>, class: Class) -> MutexGuard<'a, State> {
        while state.tail.bytes() >= state.room_bytes(class) {
            if state.disk_failed || state.opening || state.closing || self.0.hangs() {
                if !state.tail.shed("no_room") {
                    break;
                }
            } else {
                self.0.work.notify_one();
                state = self.wait(state);
            }
        }
        state
    }

    /// Waits for room, for a moment.
    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let waited = self.0.room.wait_timeout(state, Duration::from_millis(100));
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting -= 1;
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
            if state.disk_failed || state.opening || self.0.hangs() {
                let first = state.unreserved(usize::from(stream.0), n);
                return (state, first);
            }
            self.0.work.notify_one();
            state = self.wait(state);
        }
    }

    /// Wakes whom it concerns, who finds the lock free.
    fn after(&self, state: MutexGuard<'_, State>) {
        let has_work = state.tail.wants_commit() || state.seqs.is_low();
        drop(state);
        self.0.ready.notify_one();
        if has_work {
            self.0.work.notify_one();
        }
    }
}

/// The link's end.
pub struct Reader(Arc<Shared>);

impl Reader {
    /// The next message to send, if any; the backlog only where it may go.
    pub fn take(&self, backlog: bool) -> Option<ToSend> {
        self.0.lock().tail.take(backlog, Clock::boot_ns())
    }

    /// Whether something that is not of the backlog could be sent now.
    pub fn has_live(&self) -> bool {
        self.0.lock().tail.has_to_send(false, Clock::boot_ns())
    }

    /// Waits until there may be something to send.
    pub async fn ready(&self, backlog: bool) {
        let now_ns = Clock::boot_ns();
        let ripe_ns = {
            let state = self.0.lock();
            if state.tail.has_to_send(backlog, now_ns) {
                return;
            }
            state.tail.ripe_ns()
        };
        let lingers = Duration::from_nanos(ripe_ns.map_or(u64::MAX, |ripe| ripe.saturating_sub(now_ns)));
        let _ = tokio::time::timeout(lingers, self.0.ready.notified()).await;
    }

    /// No record waits for others any more: the stop.
    pub fn hurry(&self) {
        self.0.lock().tail.linger(0);
    }

    /// The broker acknowledged it.
    #[cfg(test)]
    pub fn acked(&self, id: ParcelId) {
        self.settle(|tail| tail.acked(id));
    }

    /// The broker rejected it; it is not sent again.
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
            let (is_waited, has_backlog) = (state.waiting > 0, state.stored_records > 0);
            drop(state);
            if is_waited {
                self.0.room.notify_all();
            }
            if has_backlog {
                self.0.work.notify_one();
            }
        }
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
