//! One decoded frame, and what the channels do with its raw numbers: scale, offset and range. What the decoders share.

use super::number::Reading;
use crate::{
    config::Channel,
    flow::{Flaw, Quality, Why},
};

/// What one column is for.
#[derive(Debug, Clone, Default)]
pub(super) struct Column {
    /// It is the sensor's own sequence number.
    pub(super) seq: bool,
    /// It is the sensor's clock, or the time of day of it.
    pub(super) time: bool,
    /// It is the date of that clock.
    pub(super) date: bool,
    /// The channels that take it.
    pub(super) channels: Vec<usize>,
}

impl Column {
    /// Whether it is the sensor's own number or clock.
    pub(super) fn is_own(&self) -> bool {
        self.seq || self.time || self.date
    }
}

/// Why a whole frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refused {
    /// Bytes that are no UTF-8 text.
    NotText,
    /// Fewer or more columns than declared.
    Columns,
    /// Not one JSON object.
    NotJson,
    /// The declared sequence column holds no whole number.
    Sequence,
    /// The declared clock column holds no time.
    Clock,
    /// Longer than a frame may be.
    Oversize,
    /// The checksum does not match.
    Checksum,
    /// Stuffing, an escape or a length that cannot be.
    Encoding,
    /// Bytes between frames that belong to none.
    Garbage,
    /// Another length than the fields have together.
    Length,
    /// No NMEA sentence.
    NotNmea,
    /// No pattern fits, or no label stands in it.
    Unmatched,
    /// An NMEA sentence without the checksum that is required.
    NoChecksum,
}

impl From<Flaw> for Refused {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Oversize => Self::Oversize,
            Flaw::Checksum => Self::Checksum,
            Flaw::Encoding => Self::Encoding,
            Flaw::Garbage => Self::Garbage,
        }
    }
}

impl Refused {
    /// Every reason, in the order of `index`.
    pub const ALL: [Refused; 13] = [
        Self::NotText,
        Self::Columns,
        Self::NotJson,
        Self::Sequence,
        Self::Clock,
        Self::Oversize,
        Self::Checksum,
        Self::Encoding,
        Self::Garbage,
        Self::Length,
        Self::NotNmea,
        Self::Unmatched,
        Self::NoChecksum,
    ];

    /// The word in payloads.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotText => "not_text",
            Self::Columns => "columns",
            Self::NotJson => "not_json",
            Self::Sequence => "sequence",
            Self::Clock => "clock",
            Self::Oversize => "oversize",
            Self::Checksum => "checksum",
            Self::Encoding => "encoding",
            Self::Garbage => "garbage",
            Self::Length => "length",
            Self::NotNmea => "not_nmea",
            Self::Unmatched => "unmatched",
            Self::NoChecksum => "no_checksum",
        }
    }
}

impl Refused {
    /// What to do where everything is refused for this reason, beside what can be said of any.
    pub fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::Columns => "the line has more or fewer columns than `columns`: compare them with the example",
            Self::NotText => "the line is text in another encoding than UTF-8",
            Self::NoChecksum => "if the device never sends checksums, set `checksum = \"optional\"`",
            Self::Checksum => {
                "frames come whole, but their checksum does not match: compare the kind of check with the device"
            }
            Self::Length => "frames have another length than `fields` together",
            Self::Sequence => "the column `seq` holds no number up to `seq_modulo`",
            Self::Clock => "the column `time` holds no time of `time_format`",
            Self::Oversize => "frames are longer than `frame_max_bytes`, or end with another character",
            _ => return None,
        })
    }
}

/// One decoded frame; reused from frame to frame.
#[derive(Debug, Default)]
pub struct Row {
    /// The sensor's own sequence number.
    pub seq: Option<u64>,
    /// The sensor's own time, ns.
    pub t_ns: Option<i64>,
    /// One value for each channel of the source, engineering units; NaN: no value.
    pub values: Vec<f64>,
    /// One word for each value.
    pub quality: Vec<Quality>,
    /// Date and time of day as text, where they are two columns.
    pub(super) written: [String; 2],
}

/// What one channel does with its raw number.
#[derive(Debug, Clone)]
struct Scaling {
    scale: f64,
    offset: f64,
    min: f64,
    max: f64,
}

impl Scaling {
    fn apply(&self, raw: Option<f64>) -> (f64, Quality) {
        let value = raw.unwrap_or(f64::NAN) * self.scale + self.offset;
        if !value.is_finite() {
            (f64::NAN, Quality::Bad(Why::NotANumber))
        } else if value < self.min || value > self.max {
            (value, Quality::Bad(Why::Range))
        } else {
            (value, Quality::Good)
        }
    }
}

/// What the channels do with raw numbers.
#[derive(Debug)]
pub struct Scales(Vec<Scaling>);

impl Scales {
    /// Of these channels, in this order.
    pub fn new(channels: &[&Channel]) -> Self {
        let scaling = |c: &&Channel| Scaling {
            scale: c.scale,
            offset: c.offset,
            min: c.min.unwrap_or(f64::NEG_INFINITY),
            max: c.max.unwrap_or(f64::INFINITY),
        };
        Self(channels.iter().map(scaling).collect())
    }

    /// One raw number into its place.
    #[inline(always)]
    pub fn set(&self, row: &mut Row, channel: usize, raw: Option<f64>) {
        (row.values[channel], row.quality[channel]) = self.0[channel].apply(raw);
    }

    /// What a text means into its place.
    #[inline(always)]
    pub fn put(&self, row: &mut Row, channel: usize, reading: Reading) {
        match reading {
            Reading::Value(raw) => self.set(row, channel, Some(raw)),
            Reading::Missing => (row.values[channel], row.quality[channel]) = (f64::NAN, Quality::Missing),
            Reading::Bad(why) => (row.values[channel], row.quality[channel]) = (f64::NAN, Quality::Bad(why)),
        }
    }

    /// Before a frame: no value, and this quality for each channel.
    pub fn clear(&self, row: &mut Row, quality: Quality) {
        row.seq = None;
        row.t_ns = None;
        row.written.iter_mut().for_each(String::clear);
        row.values.clear();
        row.values.resize(self.0.len(), f64::NAN);
        row.quality.clear();
        row.quality.resize(self.0.len(), quality);
    }
}
