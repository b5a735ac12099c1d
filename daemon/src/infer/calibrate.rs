//! Fitting a model to its machine: statistics of the features over the first windows, where it has features, then the
//! threshold from the scores of those same windows. Kept across restarts, bound to the model's digest. Pure.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    flow::Direction,
    model::{file::hex, manifest},
};

/// What was learnt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Learnt {
    /// Format of this file.
    pub v: u32,
    /// Model it belongs to.
    pub model_sha256: String,
    /// What makes the score, where that is not only the model: `Scoring::basis`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub basis: String,
    /// Mean of each feature.
    pub center: Vec<f32>,
    /// Standard deviation of each feature, not below its floor.
    pub scale: Vec<f32>,
    /// Threshold of the score.
    pub threshold: f32,
    /// Windows it was learnt from.
    pub windows: usize,
    /// SHA-256 over all of the above, hex.
    pub digest: String,
}

impl Learnt {
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.model_sha256.as_bytes());
        hash.update(self.basis.as_bytes());
        for x in self.center.iter().chain(&self.scale).chain([&self.threshold]) {
            hash.update(x.to_le_bytes());
        }
        hash.update((self.windows as u64).to_le_bytes());
        hex(&hash.finalize())
    }

    /// Reads what was kept; `None` if it is torn, of another model or another score, or of another size.
    pub fn read(bytes: &[u8], model_sha256: &str, basis: &str, features: usize) -> Option<Self> {
        let learnt: Self = serde_json::from_slice(bytes).ok()?;
        let fits = learnt.v == 1
            && learnt.model_sha256 == model_sha256
            && learnt.basis == basis
            && learnt.center.len() == features
            && learnt.scale.len() == features
            && learnt.digest == learnt.digest();
        fits.then_some(learnt)
    }

    /// As it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Learning under way.
#[derive(Debug)]
pub struct Learning {
    config: manifest::Calibration,
    /// Windows learnt from: they are scored when the statistics are known.
    pub windows: Vec<Box<[f32]>>,
    /// Welford's running mean and sum of squared deviations (Knuth, TAOCP vol. 2, 4.2.2), by feature.
    stats: Vec<(f64, f64)>,
}

/// Where a pipeline stands.
#[derive(Debug)]
pub enum Calibration {
    /// The model needs none.
    None,
    /// Taking statistics.
    Learning(Learning),
    /// Done.
    Learnt(Box<Learnt>),
}

impl Learning {
    /// Begins.
    pub fn new(config: manifest::Calibration) -> Self {
        Self { config, windows: Vec::new(), stats: Vec::new() }
    }

    /// Windows still to be learnt from.
    pub fn needed(&self) -> usize {
        self.config.windows.saturating_sub(self.windows.len())
    }

    /// Takes one window with its features; windows whose features are not finite teach nothing.
    pub fn learn(&mut self, window: &[f32], features: &[f64]) {
        if features.iter().all(|x| x.is_finite()) {
            self.stats.resize(features.len(), (0.0, 0.0));
            let n = (self.windows.len() + 1) as f64;
            for ((mean, squares), x) in self.stats.iter_mut().zip(features) {
                let delta = x - *mean;
                *mean += delta / n;
                *squares += delta * (x - *mean);
            }
            self.windows.push(window.into());
        }
    }

    /// Mean and standard deviation of each feature. Without a configured floor the deviation is held above a
    /// millionth of the mean, so that a channel that never moved does not make every later value an alarm.
    pub fn statistics(&self) -> (Vec<f32>, Vec<f32>) {
        let n = self.windows.len().max(1) as f64;
        let floor = |i: usize, mean: f64| {
            let floors = &self.config.scale_floor;
            floors
                .get(i)
                .or(floors.first().filter(|_| floors.len() == 1))
                .copied()
                .unwrap_or(mean.abs() * 1e-6)
                .max(1e-12)
        };
        let scale = |(i, (mean, squares)): (usize, &(f64, f64))| (squares / n).sqrt().max(floor(i, *mean)) as f32;
        (self.stats.iter().map(|(mean, _)| *mean as f32).collect(), self.stats.iter().enumerate().map(scale).collect())
    }

    /// The threshold from the scores of the windows learnt from. With features a score is a distance from 0: the threshold is
    /// the factor times the largest. Other scores have no such zero (an isolation forest's lie on both sides of it): there the
    /// factor stretches the distance from their mean to the worst, and a factor of 1 is the worst itself.
    pub fn threshold(&self, scores: &[f32], direction: Direction) -> f32 {
        let factor = self.config.factor;
        if self.config.features.is_some() && direction == Direction::High {
            return (f64::from(scores.iter().copied().fold(0f32, f32::max)) * factor) as f32;
        }
        let worst = scores.iter().copied().reduce(|a, b| direction.worse(a, b)).map_or(f64::NAN, f64::from);
        let mean = scores.iter().copied().map(f64::from).sum::<f64>() / scores.len() as f64;
        (mean + factor * (worst - mean)) as f32
    }

    /// Ends it, with the scores of the windows learnt from.
    pub fn finish(&self, model_sha256: &str, basis: &str, scores: &[f32], direction: Direction) -> Learnt {
        let (center, scale) = self.statistics();
        let mut learnt = Learnt {
            v: 1,
            model_sha256: model_sha256.to_owned(),
            basis: basis.to_owned(),
            center,
            scale,
            threshold: self.threshold(scores, direction),
            windows: self.windows.len(),
            digest: String::new(),
        };
        learnt.digest = learnt.digest();
        learnt
    }
}

impl Calibration {
    /// The envelope's `lineage.cal`.
    pub fn word(&self) -> String {
        match self {
            Calibration::None => "none".into(),
            Calibration::Learning(_) => "learning".into(),
            Calibration::Learnt(learnt) => format!("sha256:{}", learnt.digest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learning(windows: usize, scale_floor: Vec<f64>) -> Learning {
        Learning::new(manifest::Calibration {
            windows,
            features: Some("f".into()),
            center: None,
            scale: None,
            factor: 1.75,
            scale_floor,
        })
    }

    #[test]
    fn statistics_are_mean_and_deviation_with_a_floor_and_skip_what_is_not_finite() {
        let mut l = learning(4, vec![0.5]);
        l.learn(&[0.0], &[f64::NAN, 1.0]);
        assert_eq!(l.needed(), 4);
        [2.0, 4.0, 4.0, 6.0].iter().for_each(|x| l.learn(&[0.0], &[*x, 7.0]));
        assert_eq!(l.needed(), 0);
        let (center, scale) = l.statistics();
        assert_eq!(center, [4.0, 7.0]);
        assert!((scale[0] - 2f32.sqrt()).abs() < 1e-6);
        assert_eq!(scale[1], 0.5);
    }

    #[test]
    fn threshold_without_features_lies_beyond_the_worst_score_on_the_bad_side() {
        let mut l = learning(2, vec![]);
        l.config.features = None;
        (l.config.factor, l.config.windows) = (2.0, 3);
        // Mean 0.25, the worst 0.5 above or 0.25 below it.
        let scores = [0.0, 0.0, 0.75, 0.25];
        assert_eq!(l.threshold(&scores, Direction::High), 1.25);
        assert_eq!(l.threshold(&scores, Direction::Low), -0.25);
        let negative = scores.map(|score| score - 10.0);
        assert_eq!(l.threshold(&negative, Direction::High), -8.75, "wherever its zero is");
        l.config.factor = 1.0;
        assert_eq!(l.threshold(&scores, Direction::Low), 0.0, "the worst itself");
        assert!(l.threshold(&[], Direction::High).is_nan());
    }

    #[test]
    fn windows_without_features_are_counted_and_no_statistics_are_taken() {
        let mut l = learning(2, vec![]);
        l.config.features = None;
        l.learn(&[0.0], &[]);
        l.learn(&[1.0], &[]);
        assert_eq!((l.needed(), l.statistics()), (0, (vec![], vec![])));
    }

    #[test]
    fn what_is_kept_is_refused_when_torn_or_of_another_model() {
        let mut l = learning(2, vec![]);
        l.learn(&[0.0], &[1.0]);
        l.learn(&[0.0], &[2.0]);
        let learnt = l.finish("abc", "", &[1.0, 2.0], Direction::High);
        assert_eq!(learnt.threshold, 3.5);
        let bytes = learnt.to_bytes();
        assert_eq!(Learnt::read(&bytes, "abc", "", 1), Some(learnt));
        assert_eq!(Learnt::read(&bytes, "abd", "", 1), None);
        assert_eq!(Learnt::read(&bytes, "abc", "", 2), None);
        assert_eq!(Learnt::read(&bytes, "abc", "another score", 1), None);
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            assert!(Learnt::read(&torn, "abc", "", 1).is_none_or(|l| l.to_bytes() == bytes), "byte {at}");
            assert_eq!(Learnt::read(&bytes[..at], "abc", "", 1), None);
        }
    }
}
