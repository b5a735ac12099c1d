//! A window: what one inference looks at.

use super::{lane::Weigh, stamp::Stamp};

/// Where a window comes from, so that any prediction can be traced to its input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowTag {
    /// Index of the pipeline in the configuration.
    pub pipeline: u16,
    /// Stamp of the last row.
    pub last: Stamp,
    /// First and last sensor sequence number (the sensor's own where declared, else rows counted by us).
    pub in_seq: (u64, u64),
    /// First and last sensor time, ns (the sensor's own clock where declared, else ours since boot).
    pub in_t_ns: (i64, i64),
    /// Number of the window among all that were due, also those that were not made; one more is counted where rows are
    /// missing and nothing holds their place. So a window joins the previous one exactly if its number is one higher.
    pub number: u64,
    /// Share of values that are good samples, 0–1. Below 1 only where the pipeline says `on_bad = "flag"` or `"hold"`.
    pub coverage: f32,
}

/// steps × channels values, row-major, in engineering units.
#[derive(Debug, Clone)]
pub struct Window {
    /// Its origin.
    pub tag: WindowTag,
    /// steps × channels, row-major.
    pub values: Box<[f32]>,
}

impl Weigh for Window {
    fn weight(&self) -> usize {
        self.values.len() * 4 + size_of::<Self>()
    }
}
