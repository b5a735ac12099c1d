//! Where bytes come in. Owns the ports; stamps what it reads; knows nothing of what the bytes mean.

pub mod blocks;
pub mod cut;
pub mod framing;
mod gpio;
mod modbus;
pub mod packets;
mod polling;
pub mod ports;
pub mod ring;
mod serial;
mod suggest;
mod sysfs;
pub mod tape;

use std::{sync::Arc, time::Duration};

use crate::{
    config::Port,
    flow::{Arrival, Fault, FrameBatch, SourceId, Stamp, beat::Beat, lane},
    host::Clock,
    limits,
    source::cut::Cut,
};

/// Reads a port for ever; ends only when the task is dropped.
pub async fn run(port: Port, outlet: Outlet) {
    match port {
        Port::Serial(settings) => serial::run(settings, outlet).await,
        Port::Modbus(settings) => modbus::run(settings, outlet).await,
        Port::Gpio(settings) => gpio::run(settings, outlet).await,
        Port::Sysfs(settings) => sysfs::run(settings, outlet).await,
    }
}

/// Where a source puts what it read, and what it tells of itself.
pub struct Outlet {
    /// Which source this is.
    pub source: SourceId,
    /// The clock that stamps.
    pub clock: Arc<Clock>,
    /// The frame lane.
    pub frames: lane::Sender<Arrival>,
    /// Lanes that hold what is made of its frames, and that of its frames.
    pub ahead: Vec<lane::Watch>,
    /// Where frames that had to be shed are counted.
    pub shed: Arc<dyn Fn(SourceId, u64) + Send + Sync>,
    /// Its sign of life: what it sends, a tick at least.
    pub beat: Beat,
}

impl Outlet {
    /// Sends one arrival on and counts what the lane had to shed for it.
    pub async fn send(&self, arrival: Arrival) {
        let mut shed = Vec::new();
        self.frames.push_async(arrival, &mut shed).await;
        self.beat.beat();
        for old in shed {
            if let Arrival::Frames(batch) = old {
                (self.shed)(batch.source, batch.ranges.len() as u64);
            }
        }
    }

    /// Waits while what was read of this source waits for too long behind it: for a source that loses nothing by it.
    pub async fn clear(&self) {
        lane::clear(&self.ahead).await;
    }

    /// Something went wrong that no frame can say.
    pub async fn fault(&self, fault: Fault, n: u32) {
        self.send(Arrival::Fault(self.source, self.clock.now(), fault, n)).await;
    }

    /// One frame.
    pub async fn send_frame(&self, frame: Vec<u8>) {
        let ranges = vec![(0, frame.len() as u32)];
        self.send_cut(Cut { bytes: frame.into(), ranges }, self.clock.now()).await;
    }

    /// Waits, ticking, so that silence is seen downstream.
    pub async fn pause(&self, wait: Duration) {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(limits::TICK.min(left)).await;
            self.send(Arrival::Tick(self.source, self.clock.now())).await;
        }
    }

    /// Waits for something, ticking, so that silence is seen downstream.
    async fn ticking<T>(&self, waited_for: impl Future<Output = T>) -> T {
        let mut waited_for = std::pin::pin!(waited_for);
        loop {
            tokio::select! {
                biased;
                done = &mut waited_for => return done,
                _ = tokio::time::sleep(limits::TICK) => self.send(Arrival::Tick(self.source, self.clock.now())).await,
            }
        }
    }

    /// Sends what one read completed, in pieces of a bounded number of frames: other sources have their turn in between.
    pub async fn send_cut(&self, cut: Cut, stamp: Stamp) {
        for Cut { bytes, ranges } in pieces(&cut, limits::BATCH_FRAMES) {
            self.send(Arrival::Frames(FrameBatch { source: self.source, stamp, bytes, ranges })).await;
        }
    }
}

/// The frames of a cut, at most so many together; each piece holds its own bytes alone.
fn pieces(cut: &Cut, most: usize) -> impl Iterator<Item = Cut> {
    cut.ranges.chunks(most).map(|ranges| {
        // A flaw's mark is no range: its start lies behind its end.
        let real = || ranges.iter().filter(|(from, to)| from <= to);
        let (from, to) = (real().map(|r| r.0).min().unwrap_or(0), real().map(|r| r.1).max().unwrap_or(0));
        let moved = |&(a, b): &(u32, u32)| if a <= b { (a - from, b - from) } else { (a, b) };
        Cut { bytes: cut.bytes.slice(from as usize..to as usize), ranges: ranges.iter().map(moved).collect() }
    })
}

/// Opens something again and again: waits longer each time, says why once for each reason.
struct Reopening {
    what: String,
    wait: Duration,
    said: String,
}

impl Reopening {
    fn new(what: String) -> Self {
        Self { what, wait: limits::REOPEN_MIN, said: String::new() }
    }

    /// It is open.
    fn opened(&mut self) {
        self.said.clear();
    }

    /// It gave something: its next open is tried at once.
    fn was_healthy(&mut self) {
        self.wait = limits::REOPEN_MIN;
    }

    /// It could not be opened.
    fn failed(&mut self, why: &str) {
        if why != self.said {
            tracing::warn!("open {}: {why}; trying again", self.what);
            why.clone_into(&mut self.said);
        }
    }

    /// Half to the whole of the wait, so that many ports do not retry in step; then longer.
    async fn pause(&mut self, outlet: &Outlet) {
        outlet.pause(self.wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.wait = (self.wait * 2).min(limits::REOPEN_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Flaw;

    #[test]
    fn large_read_is_sent_in_pieces_with_the_same_frames_and_flaws() {
        let ranges = vec![(0, 2), Flaw::Garbage.mark(), (2, 2), (5, 7), (7, 9), Flaw::Checksum.mark()];
        let cut = Cut { bytes: bytes::Bytes::from_static(b"aabbbccdd"), ranges };
        let frames = |cut: Cut| {
            let stamp = Clock::default().now();
            let batch = FrameBatch { source: SourceId(0), stamp, bytes: cut.bytes, ranges: cut.ranges };
            batch.frames().map(|frame| frame.map(<[u8]>::to_vec)).collect::<Vec<_>>()
        };
        let whole = frames(Cut { bytes: cut.bytes.clone(), ranges: cut.ranges.clone() });
        for most in 1..7 {
            let sizes: Vec<usize> = pieces(&cut, most).map(|piece| piece.bytes.len()).collect();
            assert!(sizes.iter().sum::<usize>() <= cut.bytes.len(), "{sizes:?}");
            assert_eq!(pieces(&cut, most).flat_map(frames).collect::<Vec<_>>(), whole, "{most}");
        }
    }
}
