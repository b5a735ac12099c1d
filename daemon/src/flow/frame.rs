//! What a source delivers: the whole frames one read brought, ticks that let silence be seen, and breaks.

use bytes::Bytes;

use super::{lane::Weigh, stamp::Stamp};

/// Index of a source in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u16);

/// All complete frames of one read, without their delimiters, stamped where the bytes arrived.
#[derive(Debug, Clone)]
pub struct FrameBatch {
    /// Where they came from.
    pub source: SourceId,
    /// When the read returned.
    pub stamp: Stamp,
    /// The bytes; `ranges` points into them.
    pub bytes: Bytes,
    /// Start and end of each frame in `bytes`; empty where the framing refused one that was too long.
    pub ranges: Vec<(u32, u32)>,
}

impl FrameBatch {
    /// The frames in the order they arrived; an empty one was too long.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.ranges.iter().map(|&(from, to)| &self.bytes[from as usize..to as usize])
    }
}

/// One item of the frame lane.
#[derive(Debug, Clone)]
pub enum Arrival {
    /// Frames of one read.
    Frames(FrameBatch),
    /// Time went on and nothing came.
    Tick(SourceId, Stamp),
    /// The port was closed, hung up or reopened, or the kernel lost bytes: what follows does not join what was before.
    Break(SourceId, Stamp, &'static str),
}

impl Arrival {
    /// When it arrived.
    pub fn stamp(&self) -> Stamp {
        match self {
            Arrival::Frames(batch) => batch.stamp,
            Arrival::Tick(_, stamp) | Arrival::Break(_, stamp, _) => *stamp,
        }
    }
}

impl Weigh for Arrival {
    fn weight(&self) -> usize {
        match self {
            Arrival::Frames(batch) => batch.bytes.len() + batch.ranges.len() * 8 + 96,
            _ => 96,
        }
    }
}
