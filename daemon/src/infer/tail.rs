//! A threshold with a budget: so many false alarms a week. The tail of the scores of normal running is learnt, and read at the
//! probability that the budget leaves for each window: peaks over threshold (Siffer, Fouque, Termier, Largouët: Anomaly
//! detection in streams with extreme value theory, KDD 2017). The tail is a generalised Pareto distribution, fitted by
//! probability-weighted moments (Hosking, Wallis: Parameter and quantile estimation for the generalized Pareto distribution,
//! Technometrics 1987). Pure.
//!
//! It is learnt once, over a day at least, and then stays: a threshold that learnt for ever would learn a slow fault. Its
//! estimate leans to the safe side by one and a half standard errors of the shape, and never has a tail that ends. Two
//! bounds hold it: the level above which the tail was learnt, and that level and ten times its distance from the mean. Labels
//! (`false`) raise it within them.
//!
//! Scores here have their bad side above. Scores of windows that overlap come in clusters, and a cluster is one alarm: the
//! budget counts each window of it, so there are fewer alarms than it allows.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{limits, model::file::hex};

const WEEK_S: f64 = 7.0 * 86_400.0;

/// The tail of the scores of one model in one pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tail {
    /// Format of this file.
    v: u32,
    /// What it belongs to: the model's file, what makes the score, the channels, the calibration, the budget.
    of: String,
    /// False alarms a week.
    per_week: f64,
    /// Scores that were learnt from.
    n: u64,
    /// How long that took, without the time between two runs.
    seconds: f64,
    /// Their mean.
    mean: f64,
    /// Those of windows with a raised alarm.
    alarmed: u64,
    /// The largest, ascending.
    largest: Vec<f32>,
    /// When the window before ended, ns since boot.
    #[serde(skip)]
    last_ns: Option<u64>,
    limit: Option<Limit>,
}

/// What was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// A score above it is an anomaly.
    pub threshold: f32,
    /// It is never below.
    pub low: f32,
    /// It is never above.
    pub high: f32,
    /// Scores of the tail.
    pub peaks: usize,
    /// Its shape: near 0 it falls like an exponential, above it is heavier.
    pub shape: f64,
    /// Labels that raised it.
    pub labels: u32,
}

/// The result of learning, when all windows have come.
#[derive(Debug, Clone, PartialEq)]
pub enum Learnt {
    /// This threshold counts from now on.
    Limit(Limit),
    /// Nothing could be learnt, and it begins again; why.
    Again(String),
}

impl Tail {
    /// Begins. `of` says what it belongs to.
    pub fn new(per_week: f64, of: String) -> Self {
        Self {
            v: 1,
            of,
            per_week,
            n: 0,
            seconds: 0.0,
            mean: 0.0,
            alarmed: 0,
            largest: Vec::new(),
            last_ns: None,
            limit: None,
        }
    }

    /// What was kept, where it belongs to `of`.
    ///
    /// # Errors
    /// It is damaged, or belongs to another model, score, calibration or budget.
    pub fn read(bytes: &[u8], per_week: f64, of: &str) -> Result<Self, String> {
        let tail: Self = serde_json::from_slice(bytes).map_err(|_| "it is damaged".to_owned())?;
        let finite = tail.largest.iter().all(|x| x.is_finite()) && tail.largest.len() <= limits::TAIL_KEPT;
        if tail.v != 1 || !finite {
            return Err("it is damaged".into());
        }
        if tail.of != of || tail.per_week != per_week {
            return Err("it belongs to another model, score, calibration or budget".into());
        }
        Ok(tail)
    }

    /// As it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What was learnt; `None`: not yet.
    pub fn limit(&self) -> Option<&Limit> {
        self.limit.as_ref()
    }

    /// Whether it is time to keep what was learnt so far.
    pub fn is_due(&self) -> bool {
        self.limit.is_none() && self.n.is_multiple_of(limits::TAIL_SAVE)
    }

    /// Digest of the threshold, for the lineage; `None`: not learnt yet.
    pub fn digest(&self) -> Option<String> {
        let limit = self.limit?;
        let mut hash = Sha256::new();
        hash.update(self.of.as_bytes());
        hash.update(self.per_week.to_le_bytes());
        for x in [limit.threshold, limit.low, limit.high] {
            hash.update(x.to_le_bytes());
        }
        Some(hex(&hash.finalize()))
    }

    /// Learns from the score of one window; when it ended, ns since boot; whether an alarm was raised. Returns what came of
    /// it with the last one.
    pub fn learn(&mut self, score: f32, now_ns: u64, alarmed: bool) -> Option<Learnt> {
        if self.limit.is_some() || !score.is_finite() {
            return None;
        }
        let passed_s = self.last_ns.map_or(0.0, |last| now_ns.saturating_sub(last) as f64 / 1e9);
        self.last_ns = Some(now_ns);
        // A longer pause is no time in which windows came.
        self.seconds += passed_s.min(limits::TAIL_PAUSE_S);
        self.n += 1;
        self.alarmed += u64::from(alarmed);
        self.mean += (f64::from(score) - self.mean) / self.n as f64;
        if self.largest.len() < limits::TAIL_KEPT || self.largest.first().is_some_and(|least| score > *least) {
            let at = self.largest.partition_point(|x| *x < score);
            self.largest.insert(at, score);
            if self.largest.len() > limits::TAIL_KEPT {
                self.largest.remove(0);
            }
        }
        if self.n < limits::TAIL_WINDOWS || self.seconds < limits::TAIL_S {
            return None;
        }
        Some(self.finish())
    }

    fn finish(&mut self) -> Learnt {
        let share = self.alarmed as f64 / self.n as f64;
        let found = match self.fit() {
            _ if share > limits::TAIL_ALARMED => {
                Err(format!("{:.0} % of its windows had a raised alarm, so they are not normal running", share * 100.0))
            }
            None => Err("its scores have no tail: nearly all have one value".to_owned()),
            Some(limit) => Ok(limit),
        };
        match found {
            Ok(limit) => {
                self.limit = Some(limit);
                self.largest.clear();
                Learnt::Limit(limit)
            }
            Err(why) => {
                *self = Self { last_ns: self.last_ns, ..Self::new(self.per_week, std::mem::take(&mut self.of)) };
                Learnt::Again(why)
            }
        }
    }

    /// Scores of a week, as they came.
    fn week(&self) -> f64 {
        self.n as f64 / self.seconds.max(1e-9) * WEEK_S
    }

    fn fit(&self) -> Option<Limit> {
        let k = (self.n / limits::TAIL_SHARE).min(self.largest.len().checked_sub(1)? as u64) as usize;
        let (below, tail) = self.largest.split_at(self.largest.len() - k);
        let level = f64::from(*below.last()?);
        let peaks: Vec<f64> = tail.iter().map(|score| f64::from(*score) - level).collect();
        let (mean, shape) = shape(&peaks)?;
        let error = 1.155 / (k as f64).sqrt();
        let shape = (shape + limits::TAIL_ERRORS * error).clamp(limits::TAIL_SHAPE.0, limits::TAIL_SHAPE.1);
        // The mean of the peaks is known best: the scale follows from it.
        let scale = mean * (1.0 - shape);
        let times = self.week() / self.per_week * k as f64 / self.n as f64;
        let beyond = (times.powf(shape) - 1.0) / shape;
        let high = level + limits::TAIL_SPREAD * (level - self.mean);
        let threshold = (level + scale * beyond).clamp(level, high.max(level));
        let limit =
            Limit { threshold: threshold as f32, low: level as f32, high: high as f32, peaks: k, shape, labels: 0 };
        (limit.threshold.is_finite() && limit.high > limit.low).then_some(limit)
    }

    /// A window with this score raised an alarm, and a label says that it was false: the threshold goes a little above it, and
    /// never out of its bounds. Returns whether it moved.
    pub fn was_false(&mut self, score: f32) -> bool {
        let Some(limit) = self.limit.as_mut().filter(|limit| score.is_finite() && score >= limit.threshold) else {
            return false;
        };
        let next = (score + limits::TAIL_STEP * (limit.high - limit.low)).clamp(limit.low, limit.high);
        let moved = next > limit.threshold;
        if moved {
            limit.threshold = next;
            limit.labels += 1;
        }
        moved
    }
}

impl Limit {
    /// In words; `sign`: -1 where low scores are bad.
    pub fn describe(&self, per_week: f64, sign: f32) -> String {
        let Self { threshold, low, high, peaks, shape, .. } = self;
        let (threshold, low, high) = (threshold * sign, low * sign, high * sign);
        format!(
            "threshold {threshold} for {per_week} false alarms a week, from {peaks} peaks above {low} (shape {shape:.2}); \
             labels move it up to {high}"
        )
    }
}

/// Mean of the peaks, which ascend, and the shape of their distribution; `None`: they are no distribution.
fn shape(peaks: &[f64]) -> Option<(f64, f64)> {
    let n = peaks.len() as f64;
    let mean = peaks.iter().sum::<f64>() / n;
    let weighted = |(i, x): (usize, &f64)| (1.0 - (i as f64 + 0.65) / n) * x;
    let second = peaks.iter().enumerate().map(weighted).sum::<f64>() / n;
    let shape = 2.0 - mean / (mean - 2.0 * second);
    (peaks.len() >= limits::TAIL_PEAKS_LEAST && mean > 0.0 && shape.is_finite()).then_some((mean, shape))
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
