//! What a source delivers: the whole frames one read brought, ticks that let silence be seen, and breaks.

use bytes::Bytes;

use super::{lane::Weigh, stamp::Stamp};

/// Index of a source in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u16);

/// Why the framing refused what stands at a frame's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Flaw {
    /// Longer than a frame may be.
    Oversize,
    /// The checksum does not match.
    Checksum,
    /// An escape or a length that cannot be.
    Encoding,
    /// Bytes between frames that belong to none.
    Garbage,
}

impl Flaw {
    /// Every flaw, by number.
    pub const ALL: [Flaw; 4] = [Self::Oversize, Self::Checksum, Self::Encoding, Self::Garbage];

    /// Marks a flawed frame in a list of ranges: no valid range has its start behind its end.
    pub fn mark(self) -> (u32, u32) {
        (u32::MAX, self as u32)
    }
}

/// What went wrong between a source and its devices, where no frame can say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fault {
    /// A device that was asked did not answer in time.
    NoAnswer,
    /// Its response does not match the request, or has a wrong checksum.
    WrongAnswer,
    /// The question itself was heard before the answer, and no echo is configured.
    Echo,
    /// Modbus exception 1.
    IllegalFunction,
    /// Modbus exception 2.
    IllegalDataAddress,
    /// Modbus exception 3.
    IllegalDataValue,
    /// Modbus exception 4, and those without a better word.
    DeviceFailure,
    /// Modbus exceptions 5 and 6.
    DeviceBusy,
    /// Modbus exceptions 10 and 11.
    Gateway,
    /// The kernel dropped edges of a GPIO line.
    LostEdges,
    /// Edges come faster than they may; the line is polled meanwhile.
    Storm,
    /// A file of the kernel's that holds a reading could not be read.
    Unreadable,
}

impl Fault {
    /// Every fault, by number.
    pub const ALL: [Fault; 12] = [
        Self::NoAnswer,
        Self::WrongAnswer,
        Self::Echo,
        Self::IllegalFunction,
        Self::IllegalDataAddress,
        Self::IllegalDataValue,
        Self::DeviceFailure,
        Self::DeviceBusy,
        Self::Gateway,
        Self::LostEdges,
        Self::Storm,
        Self::Unreadable,
    ];

    /// The word in payloads.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoAnswer => "no_answer",
            Self::WrongAnswer => "wrong_answer",
            Self::Echo => "echo",
            Self::IllegalFunction => "illegal_function",
            Self::IllegalDataAddress => "illegal_data_address",
            Self::IllegalDataValue => "illegal_data_value",
            Self::DeviceFailure => "device_failure",
            Self::DeviceBusy => "device_busy",
            Self::Gateway => "gateway",
            Self::LostEdges => "lost_edges",
            Self::Storm => "storm",
            Self::Unreadable => "unreadable",
        }
    }
}

/// All complete frames of one read, without their delimiters, stamped where the bytes arrived.
#[derive(Debug, Clone)]
pub struct FrameBatch {
    /// Where they came from.
    pub source: SourceId,
    /// When the read returned.
    pub stamp: Stamp,
    /// The bytes; `ranges` points into them.
    pub bytes: Bytes,
    /// Start and end of each frame in `bytes`; `Flaw::mark` where the framing refused one, so that the gap it leaves is
    /// known by its place.
    pub ranges: Vec<(u32, u32)>,
}

impl FrameBatch {
    /// The frames in the order they arrived.
    pub fn frames(&self) -> impl Iterator<Item = Result<&[u8], Flaw>> {
        self.ranges.iter().map(|&(from, to)| {
            let flaw = || Flaw::ALL.get(to as usize).copied().unwrap_or(Flaw::Encoding);
            self.bytes.get(from as usize..to as usize).ok_or_else(flaw)
        })
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
    /// Something else went wrong, so many times.
    Fault(SourceId, Stamp, Fault, u32),
}

impl Arrival {
    /// When it arrived.
    pub fn stamp(&self) -> Stamp {
        match self {
            Arrival::Frames(batch) => batch.stamp,
            Arrival::Tick(_, stamp) | Arrival::Break(_, stamp, _) | Arrival::Fault(_, stamp, ..) => *stamp,
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
