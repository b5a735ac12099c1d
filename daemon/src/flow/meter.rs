//! Counters of the stages, for the status document and metrics: plain atomics, written by one stage and read by many
//! without a lock. The configuration fixes the shape at the start. No stage acts on them: what stages act on is in `board`.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{count::Count, escalation::EscalationMeter, samples::SampleMeters};

/// Buckets of a histogram: up to 1, 2, 4 … 2^23 µs (8.4 s), and all beyond.
pub const BUCKETS: usize = 25;

/// How long something took, in buckets of powers of two.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Histogram {
    /// One took so long.
    pub fn took(&self, us: u64) {
        // Bucket i holds what is at most 2^i µs.
        let bucket = us.max(1).next_power_of_two().trailing_zeros() as usize;
        self.counts[if us > 1 << (BUCKETS - 2) { BUCKETS - 1 } else { bucket }].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// One took so long.
    pub fn took_time(&self, time: Duration) {
        self.took(u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2));
    }

    /// Each bucket's count. The upper bound of bucket i is 2^i µs; the last bucket has no bound.
    pub fn counts(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|i| self.counts[i].load(Relaxed))
    }

    /// Sum of all, µs.
    pub fn sum_us(&self) -> u64 {
        self.sum_us.load(Relaxed)
    }

    /// The bound below which this share of all lies, µs; `None`: nothing was measured.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let counts = self.counts();
        let all: u64 = counts.iter().sum();
        let wanted = (all as f64 * share).ceil() as u64;
        let mut below = 0;
        let at = counts.iter().position(|n| {
            below += n;
            below >= wanted.max(1)
        })?;
        Some(1 << at)
    }
}

/// A number that changes; not a number until it is known.
#[derive(Debug)]
pub struct Gauge(AtomicU32);

impl Default for Gauge {
    fn default() -> Self {
        Self(AtomicU32::new(f32::NAN.to_bits()))
    }
}

impl Gauge {
    /// It is this now.
    pub fn set(&self, value: f32) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// What it is, if known.
    pub fn get(&self) -> Option<f32> {
        Some(f32::from_bits(self.0.load(Relaxed))).filter(|x| x.is_finite())
    }
}

/// Why a source delivers nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Lost {
    /// It delivers.
    No,
    /// Its port is not there, or cannot be opened.
    Closed,
    /// Its port is open, and nothing comes.
    Silent,
    /// What comes is no row.
    Refused,
    /// Its device does not answer.
    NoAnswer,
}

impl Lost {
    const ALL: [Lost; 5] = [Self::No, Self::Closed, Self::Silent, Self::Refused, Self::NoAnswer];

    /// In words, after `the source delivers nothing: `; `None`: it does.
    pub fn text(self) -> Option<&'static str> {
        match self {
            Self::No => None,
            Self::Closed => Some("its port is not there or cannot be opened"),
            Self::Silent => Some("its port is open, but nothing comes"),
            Self::Refused => Some("what comes is no row"),
            Self::NoAnswer => Some("its device does not answer"),
        }
    }
}

/// How the values of a channel are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ChannelState {
    /// Most of them can be used.
    #[default]
    Good,
    /// Most of them cannot.
    Bad,
    /// None come, while others of the same bus do.
    Silent,
}

impl ChannelState {
    const ALL: [ChannelState; 3] = [Self::Good, Self::Bad, Self::Silent];

    /// The word in the status document.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Silent => "silent",
        }
    }
}

/// One channel.
#[derive(Debug, Default)]
pub struct ChannelMeter {
    /// Values that came.
    pub values: Count,
    /// Of them, those that cannot be used.
    pub bad: Count,
    /// Share of these in the last look.
    pub share: Gauge,
    state: AtomicU8,
}

impl ChannelMeter {
    /// It is so now.
    pub fn set_state(&self, state: ChannelState) {
        self.state.store(state as u8, Relaxed);
    }

    /// How it is.
    pub fn state(&self) -> ChannelState {
        ChannelState::ALL.get(usize::from(self.state.load(Relaxed))).copied().unwrap_or_default()
    }
}

/// One source.
#[derive(Debug, Default)]
pub struct SourceMeter {
    /// Frames that were read as rows.
    pub rows: Count,
    /// Frames that could not be.
    pub refused: Count,
    /// Rows known to be missing.
    pub missing: Count,
    /// Frames the lane shed.
    pub shed: Count,
    /// Its noise: 0 fine, 1 noisy, 2 nothing but noise, 3 nothing in its format.
    pub noise: AtomicU64,
    /// When the last row came, ns since boot; 0: none yet.
    pub last_ns: AtomicU64,
    /// Rows a second, over the last seconds.
    pub rate: Gauge,
    lost: AtomicU8,
}

impl SourceMeter {
    /// It is lost for this reason, or not.
    pub fn set_lost(&self, lost: Lost) {
        self.lost.store(lost as u8, Relaxed);
    }

    /// Whether it is lost, and why.
    pub fn lost(&self) -> Lost {
        Lost::ALL.get(usize::from(self.lost.load(Relaxed))).copied().unwrap_or(Lost::No)
    }
}

/// One pipeline.
#[derive(Debug, Default)]
pub struct PipelineMeter {
    /// Predictions made.
    pub predictions: Count,
    /// The last score; none while learning.
    pub score: Gauge,
    /// What it is compared with.
    pub threshold: Gauge,
    /// Highest score since this was last looked at.
    pub peak: AtomicU32,
    /// Statistics are being taken.
    pub learning: AtomicBool,
    /// A run of the model.
    pub infer: Histogram,
    /// Its windows wait for too long, and that gets no better.
    pub behind: AtomicBool,
    /// When the last window that was answered arrived, ns since boot; 0: none was.
    pub last_ns: AtomicU64,
    /// How far apart these are, ns; 0: not known.
    pub period_ns: AtomicU64,
    /// Its windows that go to a larger model elsewhere.
    pub escalation: EscalationMeter,
}

impl PipelineMeter {
    /// A window that arrived then was answered. Called by one thread.
    pub fn answered(&self, at_ns: u64) {
        let last = self.last_ns.swap(at_ns, Relaxed);
        let step = at_ns.saturating_sub(last);
        if last > 0 && step > 0 {
            let before = self.period_ns.load(Relaxed);
            self.period_ns.store(if before == 0 { step } else { before - before / 8 + step / 8 }, Relaxed);
        }
    }

    /// A score was made. Scores are at least 0, so their bits compare as they do.
    pub fn scored(&self, score: f32) {
        self.score.set(score);
        self.peak.fetch_max(score.max(0.0).to_bits(), Relaxed);
    }

    /// The highest score since the last call.
    pub fn take_peak(&self) -> f32 {
        f32::from_bits(self.peak.swap(0, Relaxed))
    }
}

/// All of them, by the configuration's indices.
#[derive(Debug, Default)]
pub struct Meters {
    /// By source.
    pub sources: Vec<SourceMeter>,
    /// By channel.
    pub channels: Vec<ChannelMeter>,
    /// By pipeline.
    pub pipelines: Vec<PipelineMeter>,
    /// From the bytes' arrival to the end of the signal stage's work on them.
    pub signal: Histogram,
    /// A commit of the store.
    pub commit: Histogram,
    /// From handing a message to the connection to its acknowledgement.
    pub acknowledge: Histogram,
    /// Commands that were accepted.
    pub commands_accepted: Count,
    /// Commands that were refused, with an answer or without.
    pub commands_refused: Count,
    /// Commands that control did not take in time.
    pub commands_dropped: Count,
    /// Connections made.
    pub connections: Count,
    /// The store of samples.
    pub samples: SampleMeters,
}

impl Meters {
    /// For so many of each.
    pub fn new(sources: usize, channels: usize, pipelines: usize) -> Self {
        fn many<T: Default>(n: usize) -> Vec<T> {
            std::iter::repeat_with(T::default).take(n).collect()
        }
        Self { sources: many(sources), channels: many(channels), pipelines: many(pipelines), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_tells_the_bound_below_which_a_share_lies() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(0.5), None);
        for us in [0, 1, 2, 3, 4, 100, 100, 100, 100, 5000] {
            histogram.took(us);
        }
        assert_eq!((histogram.quantile_us(0.2), histogram.quantile_us(0.5)), (Some(1), Some(4)));
        assert_eq!((histogram.quantile_us(0.9), histogram.quantile_us(0.99)), (Some(128), Some(8192)));
        histogram.took(u64::MAX / 4);
        assert_eq!(histogram.counts()[BUCKETS - 1], 1);
        assert_eq!(histogram.counts().iter().sum::<u64>(), 11);
    }
}
