//! What stages count for whoever looks at the device: plain atomics, written by one stage and read by many, never waited
//! for. The shape is fixed at the start by the configuration.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Buckets of a histogram: up to 1, 2, 4 … 2^23 µs (8.4 s), and all beyond.
pub const BUCKETS: usize = 25;

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// So many more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

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

    /// Each bucket's count; the bound of bucket i is 2^i µs, the last one's is none.
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
    /// Its noise: 0 fine, 1 noisy, 2 nothing but noise.
    pub noise: AtomicU64,
    /// When the last row came, ns since boot; 0: none yet.
    pub last_ns: AtomicU64,
    /// Rows a second, over the last seconds.
    pub rate: Gauge,
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
    /// Asked to learn anew.
    pub recalibrate: AtomicBool,
}

impl PipelineMeter {
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

/// Wakes one who waits.
#[derive(Debug, Default)]
pub struct Bell(std::sync::Mutex<bool>, std::sync::Condvar);

impl Bell {
    /// Wakes whoever waits, or who will wait next.
    pub fn ring(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = true;
        self.1.notify_one();
    }

    /// Until it rings, `most` at the longest.
    pub fn wait(&self, most: Duration) {
        let rung = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let waited = self.1.wait_timeout_while(rung, most, |rung| !*rung);
        *waited.unwrap_or_else(std::sync::PoisonError::into_inner).0 = false;
    }
}

/// All of them, by the configuration's indices.
#[derive(Debug, Default)]
pub struct Meters {
    /// By source.
    pub sources: Vec<SourceMeter>,
    /// By pipeline.
    pub pipelines: Vec<PipelineMeter>,
    /// By alarm: it is raised.
    pub alarms: Vec<AtomicBool>,
    /// Rings when one of them changed.
    pub alarm_bell: Bell,
    /// The guard holds the outputs and answers.
    pub outputs_held: AtomicBool,
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
    /// Commands nobody took in time.
    pub commands_dropped: Count,
    /// Highest sequence of a command's result that was acknowledged.
    pub result_acked: AtomicU64,
    /// When the broker acknowledged something last, ns since boot; 0: never.
    pub acked_ns: AtomicU64,
    /// Connections made.
    pub connections: Count,
}

impl Meters {
    /// For so many of each.
    pub fn new(sources: usize, pipelines: usize, alarms: usize) -> Self {
        fn many<T: Default>(n: usize) -> Vec<T> {
            std::iter::repeat_with(T::default).take(n).collect()
        }
        Self { sources: many(sources), pipelines: many(pipelines), alarms: many(alarms), ..Self::default() }
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
