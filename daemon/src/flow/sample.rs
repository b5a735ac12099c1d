//! The quality word on a sample, in the sense OPC UA gives these words.

/// Why a sample is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// Not a number that can be used: text, `nan`, or beyond what a double holds.
    NotANumber,
    /// The device says that it has no value.
    NotAvailable,
    /// Outside the channel's configured range.
    Range,
    /// Nothing arrived for longer than `stale_ms`.
    Stale,
    /// Changed faster than `rate_max_per_s` allows.
    Rate,
    /// Has not moved for `stuck_ms`.
    Stuck,
    /// The device says: above what it can measure.
    Overload,
    /// The device says: below what it can measure.
    Underload,
    /// The device says: the sensor is broken.
    Fault,
    /// The device says: the value has not settled.
    Unstable,
    /// The device says: the value is not valid.
    Invalid,
    /// What it means is not certain: its unit or its reference is another one, or unknown.
    Ambiguous,
}

impl Why {
    /// What a device can say by a word of its own.
    pub const BY_DEVICE: [Why; 5] = [Self::Overload, Self::Underload, Self::Fault, Self::Unstable, Self::Invalid];

    /// The word used in payloads.
    pub fn word(self) -> &'static str {
        match self {
            Why::NotANumber => "not_a_number",
            Why::NotAvailable => "not_available",
            Why::Range => "range",
            Why::Stale => "stale",
            Why::Rate => "rate",
            Why::Stuck => "stuck",
            Why::Overload => "overload",
            Why::Underload => "underload",
            Why::Fault => "fault",
            Why::Unstable => "unstable",
            Why::Invalid => "invalid",
            Why::Ambiguous => "ambiguous",
        }
    }
}

/// How far a sample can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// Nothing speaks against it.
    Good,
    /// It must not be used as if it were right.
    Bad(Why),
    /// There is no sample at this place.
    Missing,
    /// There was not to be one: this row is of other channels.
    Absent,
}

impl Quality {
    /// Good enough to count as coverage.
    pub fn is_good(self) -> bool {
        self == Quality::Good
    }

    /// `good`, `bad:range`, `missing`.
    pub fn word(self) -> &'static str {
        match self {
            Quality::Good => "good",
            Quality::Missing => "missing",
            Quality::Absent => "absent",
            Quality::Bad(Why::NotANumber) => "bad:not_a_number",
            Quality::Bad(Why::NotAvailable) => "bad:not_available",
            Quality::Bad(Why::Range) => "bad:range",
            Quality::Bad(Why::Stale) => "bad:stale",
            Quality::Bad(Why::Rate) => "bad:rate",
            Quality::Bad(Why::Stuck) => "bad:stuck",
            Quality::Bad(Why::Overload) => "bad:overload",
            Quality::Bad(Why::Underload) => "bad:underload",
            Quality::Bad(Why::Fault) => "bad:fault",
            Quality::Bad(Why::Unstable) => "bad:unstable",
            Quality::Bad(Why::Invalid) => "bad:invalid",
            Quality::Bad(Why::Ambiguous) => "bad:ambiguous",
        }
    }
}
