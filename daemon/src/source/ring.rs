//! The last minute of all sources, packed, in memory: an alarm saves it, with what follows, as a tape.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::tape::{self, Block, Head, Served};
use crate::{
    config::Tapes,
    flow::{
        Arrival,
        board::Board,
        lane::{self, Took},
    },
    host::Keep,
    limits,
};

/// What the stage works with.
pub struct Setup {
    /// How much is kept.
    pub tapes: Tapes,
    /// What each tape says of itself.
    pub head: Head,
    /// Which alarms save one: index and name.
    pub alarms: Vec<(usize, String)>,
    /// Which are raised.
    pub board: Arc<Board>,
    /// Where tapes go.
    pub keep: Keep,
    /// What evaluates the sources now.
    pub served: Box<dyn Fn() -> Served + Send>,
}

/// The stage as a thread: ends when the lane is closed and empty.
pub fn run(setup: Setup, arrivals: lane::Receiver<Arrival>, beat: impl Fn()) {
    let mut ring = Ring::new(setup);
    let mut taken = Vec::new();
    loop {
        beat();
        match arrivals.take(&mut taken, limits::TAPE_LANE, TURN) {
            Took::Closed => break,
            Took::Nothing => {}
            Took::Some => taken.drain(..).for_each(|arrival| ring.take(&arrival)),
        }
        ring.look();
    }
    // The stop is not an end of what the alarm was for: what there is, is saved.
    ring.save_due(u64::MAX);
}

/// How often alarms are looked at.
const TURN: Duration = Duration::from_millis(200);

/// A block closes when it is so old, so that the ring lets go of what is too old in small pieces.
const BLOCK_NS: u64 = 1_000_000_000;

struct Ring {
    setup: Setup,
    block: Block,
    block_from_ns: u64,
    now_ns: u64,
    now_ms: Option<i64>,
    /// Packed blocks, with the time of their last arrival.
    blocks: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// How often each alarm had been raised when last looked at: one may be over before the next look.
    raised: Vec<u64>,
    /// A tape to be saved: by which alarm, and when.
    due: Option<(String, u64)>,
}

impl Ring {
    fn new(setup: Setup) -> Self {
        let raised = setup.alarms.iter().map(|(i, _)| setup.board.alarms[*i].times_raised()).collect();
        let (block, blocks) = (Block::default(), VecDeque::new());
        Self { setup, block, block_from_ns: 0, now_ns: 0, now_ms: None, blocks, bytes: 0, raised, due: None }
    }

    fn take(&mut self, arrival: &Arrival) {
        let stamp = arrival.stamp();
        (self.now_ns, self.now_ms) = (stamp.boot_ns, stamp.wall_ms);
        if self.block_from_ns == 0 {
            self.block_from_ns = self.now_ns;
        }
        let full = self.block.push(arrival);
        if full || self.now_ns.saturating_sub(self.block_from_ns) > BLOCK_NS {
            self.close();
        }
    }

    fn close(&mut self) {
        self.block_from_ns = 0;
        match self.block.pack() {
            Ok(Some(packed)) => {
                self.bytes += packed.len();
                self.blocks.push_back((self.now_ns, packed));
            }
            Ok(None) => {}
            Err(why) => tracing::error!("compress a block of source data: {why}; alarm tapes lack this block"),
        }
        let oldest = self.now_ns.saturating_sub((self.setup.tapes.before_s + self.setup.tapes.after_s) * 1_000_000_000);
        while self.blocks.front().is_some_and(|(at, _)| *at < oldest) || self.bytes > self.setup.tapes.ring_bytes {
            let Some((_, gone)) = self.blocks.pop_front() else { break };
            self.bytes -= gone.len();
        }
    }

    fn look(&mut self) {
        for ((i, name), was) in self.setup.alarms.iter().zip(&mut self.raised) {
            let now = self.setup.board.alarms[*i].times_raised();
            if now != *was && self.due.is_none() {
                self.due = Some((name.clone(), self.now_ns + self.setup.tapes.after_s * 1_000_000_000));
            }
            *was = now;
        }
        self.save_due(self.now_ns);
    }

    fn save_due(&mut self, now_ns: u64) {
        let Some((alarm, _)) = self.due.take_if(|(_, at)| *at <= now_ns) else { return };
        self.close();
        let when = self.now_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let when = when.map_or_else(
            || format!("boot-{:012}", self.now_ns / 1_000_000),
            |at| at.strftime("%Y%m%dT%H%M%SZ").to_string(),
        );
        let name = format!("{when}-{alarm}.tape");
        self.setup.head.served = (self.setup.served)();
        let saved = tape::whole(&self.setup.head, self.blocks.iter().map(|(_, block)| block.as_slice()))
            .and_then(|bytes| self.setup.keep.save(&name, &bytes));
        match saved {
            Ok(()) => tracing::info!(alarm, "alarm tape saved: tapes/{name}"),
            Err(why) => tracing::error!(alarm, "save the alarm tape: {why}; the tape is lost"),
        }
        let mut names = self.setup.keep.names();
        names.retain(|name| name.ends_with(".tape"));
        for old in names.iter().rev().skip(self.setup.tapes.kept) {
            let _ = self.setup.keep.remove(old);
        }
    }
}
