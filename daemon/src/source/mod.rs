//! Where bytes come in. Owns the ports; stamps what it reads; knows nothing of what the bytes mean.

pub mod framing;
pub mod serial;
pub mod tape;

use std::sync::Arc;

use crate::{
    flow::{Arrival, FrameBatch, SourceId, Stamp, lane},
    host::Clock,
    source::framing::Cut,
};

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
}

impl Outlet {
    /// Sends one arrival on and counts what the lane had to shed for it.
    pub async fn send(&self, arrival: Arrival) {
        let mut shed = Vec::new();
        self.frames.push_async(arrival, &mut shed).await;
        for old in shed {
            if let Arrival::Frames(batch) = old {
                (self.shed)(batch.source, batch.ranges.len() as u64);
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
