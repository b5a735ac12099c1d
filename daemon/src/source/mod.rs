//! Where bytes come in. Owns the ports; stamps what it reads; knows nothing of what the bytes mean.

pub mod framing;
mod gpio;
mod modbus;
pub mod packets;
pub mod ports;
pub mod ring;
mod serial;
mod sysfs;
pub mod tape;

use std::{sync::Arc, time::Duration};

use crate::{
    config::Port,
    flow::{Arrival, Fault, FrameBatch, SourceId, Stamp, beat::Beat, lane},
    host::Clock,
    limits,
    source::framing::Cut,
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

    /// Sends what one read completed.
    pub async fn send_cut(&self, cut: Cut, stamp: Stamp) {
        if cut.ranges.is_empty() {
            return;
        }
        let Cut { bytes, ranges } = cut;
        self.send(Arrival::Frames(FrameBatch { source: self.source, stamp, bytes, ranges })).await;
    }
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
            tracing::warn!("open {}: {why}", self.what);
            why.clone_into(&mut self.said);
        }
    }

    /// Half to the whole of the wait, so that many ports do not retry in step; then longer.
    async fn pause(&mut self, outlet: &Outlet) {
        outlet.pause(self.wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.wait = (self.wait * 2).min(limits::REOPEN_MAX);
    }
}
