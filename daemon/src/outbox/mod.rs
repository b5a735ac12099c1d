//! Records on their way to the broker: a bounded tail in RAM, and a body on disk for what the broker did not take.
//!
//! While the broker acknowledges, a record is sent from RAM and dropped on PUBACK; no flash is touched. It goes to the
//! store when the link is down, when it stays unacknowledged for a second, when the tail is nearly full, at the stop,
//! and at once, beside being sent, when it is an alarm. Only an acknowledgement removes it.
//!
//! `tail` holds the rules, `store` the disk, `committer` the thread between them. The tail is the queue between the
//! stages that make records, the link and the committer; it is locked for moves in RAM only, never over I/O.

mod committer;
mod ledger;
mod sealed;
mod seqs;
mod store;
mod tail;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

pub use committer::Committer;
pub use sealed::Sealed;
pub use tail::{ParcelId, ToSend};

use self::{seqs::Seqs, store::Store, tail::Tail};
use crate::{
    flow::{Draft, Sink, StreamId},
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
    /// Why an older store was set aside, if one was.
    pub set_aside: Option<String>,
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
    /// Losses since the start, by stream and reason.
    pub lost: BTreeMap<(String, &'static str), u64>,
}

impl Outbox {
    /// Opens the store in `state_dir`. One that cannot be opened is set aside and a new one begun.
    pub fn open(
        state_dir: &Path,
        boot: &str,
        streams: Vec<String>,
        loss: StreamId,
        max_bytes: u64,
    ) -> Result<Self, String> {
        let what = |why: String| format!("open the outbox in {}: {why}", state_dir.display());
        let keep = Keep::open(state_dir, "outbox").map_err(|why| what(why.to_string()))?;
        let seqs = Seqs::open(keep, streams.clone()).map_err(what)?;
        let folder = state_dir.join("outbox/store");
        let (store, set_aside) = match Store::open(&folder) {
            Ok(store) => (store, None),
            Err(why) => {
                let aside = store::set_aside(&folder).map_err(|e| what(format!("{why}; set it aside: {e}")))?;
                let text = format!("the store could not be opened ({why}); it was set aside as {}", aside.display());
                tracing::error!("{text}");
                (Store::open(&folder).map_err(what)?, Some(text))
            }
        };
        let mut tail = Tail::new(boot, streams);
        if store.damaged > 0 {
            tail.ledger.enter("store", (0, 0), store.damaged, "damaged");
        }
        let state = State {
            tail,
            seqs,
            disk_failed: false,
            closing: false,
            stored_records: store.records(),
            stored_bytes: store.bytes(),
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
            committer: Committer::new(shared, folder, store, loss, max_bytes),
            set_aside,
        })
    }
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
        Stats {
            ram_records: state.tail.records() as u64,
            ram_bytes: state.tail.bytes() as u64,
            stored_records: state.stored_records,
            stored_bytes: state.stored_bytes,
            delivered: state.tail.delivered,
            online: state.tail.is_online(),
            disk_ok: !state.disk_failed,
            lost: state.tail.ledger.sums().clone(),
        }
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
                let first = state.seqs.take_unreserved(usize::from(stream.0), n);
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
    /// The next message to send, if any.
    pub fn take(&self) -> Option<ToSend> {
        self.0.lock().tail.take()
    }

    /// Waits until there may be something to send.
    pub async fn ready(&self) {
        if !self.0.lock().tail.has_to_send() {
            self.0.ready.notified().await;
        }
    }

    /// The broker acknowledged it.
    pub fn acked(&self, id: ParcelId) {
        self.settle(|tail| tail.acked(id));
    }

    /// The broker refused it for good.
    pub fn refused(&self, id: ParcelId, reason: &'static str) {
        self.settle(|tail| tail.refused(id, reason));
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
mod tests {
    use super::*;
    use crate::flow::{Class, Clk, Retain, Stamp};

    #[test]
    fn a_disk_that_takes_nothing_stops_no_one_even_when_the_numbers_run_out() {
        let dir = std::env::temp_dir().join(format!("kentledge-outbox-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let Outbox { mut writer, committer, .. } =
            Outbox::open(&dir, "b", vec!["p/x".into(), "loss".into()], StreamId(1), 1 << 20).expect("open");
        let stamp = Stamp { boot_ns: 1, wall_ms: None, clk: Clk::Unset };
        let close = committer.closer();
        let thread = std::thread::spawn(move || committer.run(|| stamp, || {}));
        std::fs::remove_dir_all(&dir).expect("the disk is gone");
        for _ in 0..2 * limits::SEQ_BLOCK / 32_768 {
            writer.lost(StreamId(0), 32_768, "gap");
        }
        let body = bytes::Bytes::from_static(b"\"a\":1");
        let draft = Draft { stream: StreamId(0), class: Class::Score, stamp, lineage: None, body, retain: Retain::No };
        writer.put(&mut vec![draft]);
        let stats = writer.stats();
        assert!(!stats.disk_ok);
        assert_eq!(stats.lost[&("p/x".to_owned(), "gap")], 2 * limits::SEQ_BLOCK);
        close();
        assert!(thread.join().expect("no panic").is_err(), "what was left could not be stored, and that is said");
    }
}
