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
    /// What it was learnt from: `running::Column::meaning` of each channel in the model's order, and the window at the end. Empty
    /// in files of earlier builds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
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
        for input in &self.inputs {
            hash.update([0]);
            hash.update(input.as_bytes());
        }
        for x in self.center.iter().chain(&self.scale).chain([&self.threshold]) {
            hash.update(x.to_le_bytes());
        }
        hash.update((self.windows as u64).to_le_bytes());
        hex(&hash.finalize())
    }

    /// Reads what was kept for `wanted`.
    ///
    /// # Errors
    /// It is torn, of another model or another score, of another size, or of channels that were changed since.
    pub fn read(bytes: &[u8], wanted: &Wanted<'_>) -> Result<Self, String> {
        let mut learnt: Self = serde_json::from_slice(bytes).map_err(|_| "it is damaged".to_owned())?;
        if learnt.v != 1 || learnt.digest != learnt.digest() {
            return Err("it is damaged".into());
        }
        if learnt.model_sha256 != wanted.model_sha256 {
            return Err("it belongs to another model file".into());
        }
        if learnt.basis != wanted.basis {
            return Err("it belongs to another score of the model".into());
        }
        if (learnt.center.len(), learnt.scale.len()) != (wanted.features, wanted.features) {
            return Err("it has another number of features".into());
        }
        if learnt.inputs.is_empty() {
            // Of an earlier build, which did not keep what it was learnt from.
            learnt.inputs = wanted.inputs.to_vec();
            learnt.digest = learnt.digest();
        }
        if let Some(why) = changed(&learnt.inputs, wanted.inputs) {
            return Err(why);
        }
        if learnt.inputs != wanted.inputs {
            // Of 0.1, which did not keep how its channels were read.
            learnt.inputs = wanted.inputs.to_vec();
            learnt.digest = learnt.digest();
        }
        Ok(learnt)
    }

    /// As it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// What a calibration must belong to.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The model's file.
    pub model_sha256: &'a str,
    /// `Scoring::basis`.
    pub basis: &'a str,
    /// What it is learnt from: its channels in the model's order, and the window at the end.
    pub inputs: &'a [String],
    /// How many features it has.
    pub features: usize,
}

/// Whether a channel is what it was. An earlier build kept nothing of how it is read, which stands in brackets at the end.
fn is_same(was: &str, is: &str) -> bool {
    was == is || is.strip_prefix(was).is_some_and(|read| read.starts_with(" ["))
}

/// The first channel that is not what it was, or the window.
fn changed(was: &[String], is: &[String]) -> Option<String> {
    let channels = |all: &[String]| all.len().saturating_sub(1);
    if was.len() != is.len() {
        return Some(format!("the pipeline had {} channels, and has {}", channels(was), channels(is)));
    }
    let last = channels(is);
    let (at, (was, is)) = was.iter().zip(is).enumerate().find(|(_, (was, is))| !is_same(was, is))?;
    let what = if at == last { "the window".to_owned() } else { format!("channel {}", at + 1) };
    Some(format!("{what} of the pipeline was `{was}`, and is `{is}`"))
}

/// Learning under way.
#[derive(Debug)]
pub struct Learning {
    config: manifest::Calibration,
    /// Windows learnt from, with their numbers: they are scored when the statistics are known.
    pub windows: Vec<(u64, Box<[f32]>)>,
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

    /// Takes one window with its number and features; windows whose features are not finite teach nothing.
    pub fn learn(&mut self, (number, window): (u64, &[f32]), features: &[f64]) {
        if features.iter().all(|x| x.is_finite()) {
            self.stats.resize(features.len(), (0.0, 0.0));
            let n = (self.windows.len() + 1) as f64;
            for ((mean, squares), x) in self.stats.iter_mut().zip(features) {
                let delta = x - *mean;
                *mean += delta / n;
                *squares += delta * (x - *mean);
            }
            self.windows.push((number, window.into()));
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
    pub fn finish(&self, wanted: &Wanted<'_>, scores: &[f32], direction: Direction) -> Learnt {
        let (center, scale) = self.statistics();
        let mut learnt = Learnt {
            v: 1,
            model_sha256: wanted.model_sha256.to_owned(),
            basis: wanted.basis.to_owned(),
            inputs: wanted.inputs.to_vec(),
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
        l.learn((0, &[0.0]), &[f64::NAN, 1.0]);
        assert_eq!(l.needed(), 4);
        [2.0, 4.0, 4.0, 6.0].iter().for_each(|x| l.learn((0, &[0.0]), &[*x, 7.0]));
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
        l.learn((0, &[0.0]), &[]);
        l.learn((0, &[1.0]), &[]);
        assert_eq!((l.needed(), l.statistics()), (0, (vec![], vec![])));
    }

    fn channels(scale: f64) -> Vec<String> {
        vec!["s.a × 1 + 0".into(), format!("s.b × {scale} + 0 l/min"), "4 rows".into()]
    }

    fn wanted<'a>(model_sha256: &'a str, basis: &'a str, inputs: &'a [String], features: usize) -> Wanted<'a> {
        Wanted { model_sha256, basis, inputs, features }
    }

    fn learnt(channels: &[String]) -> Learnt {
        let mut l = learning(2, vec![]);
        l.learn((0, &[0.0]), &[1.0]);
        l.learn((1, &[0.0]), &[2.0]);
        l.finish(&wanted("abc", "", channels, 1), &[1.0, 2.0], Direction::High)
    }

    #[test]
    fn what_is_kept_is_refused_when_torn_or_of_another_model() {
        let (one, none) = (channels(1.0), []);
        let learnt = learnt(&one);
        assert_eq!(learnt.threshold, 3.5);
        let bytes = learnt.to_bytes();
        assert_eq!(Learnt::read(&bytes, &wanted("abc", "", &one, 1)), Ok(learnt));
        let why = |wanted: &Wanted<'_>| Learnt::read(&bytes, wanted).expect_err("another");
        assert!(why(&wanted("abd", "", &one, 1)).contains("another model"));
        assert!(why(&wanted("abc", "", &one, 2)).contains("features"));
        assert!(why(&wanted("abc", "other", &one, 1)).contains("another score"));
        assert!(why(&wanted("abc", "", &none, 1)).contains("had 2 channels, and has 0"));
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            let read = Learnt::read(&torn, &wanted("abc", "", &one, 1));
            assert!(read.map_or(true, |l| l.to_bytes() == bytes), "byte {at}");
            assert!(Learnt::read(&bytes[..at], &wanted("abc", "", &one, 1)).is_err());
        }
    }

    #[test]
    fn what_was_learnt_of_a_channel_that_changed_is_refused_with_both_sides() {
        let bytes = learnt(&channels(1.0)).to_bytes();
        let now = channels(0.06);
        let why = Learnt::read(&bytes, &wanted("abc", "", &now, 1)).expect_err("another scale");
        assert_eq!(why, "channel 2 of the pipeline was `s.b × 1 + 0 l/min`, and is `s.b × 0.06 + 0 l/min`");
        let mut turned = channels(1.0);
        turned.swap(0, 1);
        assert!(Learnt::read(&bytes, &wanted("abc", "", &turned, 1)).is_err(), "another order");
        let mut longer = channels(1.0);
        longer[2] = "8 rows".into();
        let why = Learnt::read(&bytes, &wanted("abc", "", &longer, 1)).expect_err("another window");
        assert_eq!(why, "the window of the pipeline was `4 rows`, and is `8 rows`");
    }

    #[test]
    fn what_was_learnt_of_a_channel_that_is_read_in_another_way_is_refused_and_that_of_an_earlier_build_is_taken() {
        let read = |how: &str| vec!["s.a × 1 + 0".into(), format!("s.b × 1 + 0 l/min{how}"), "4 rows".into()];
        let (csv, hex) = (read(" [csv column 2]"), read(" [csv column 2, hex]"));
        let bytes = learnt(&csv).to_bytes();
        let why = Learnt::read(&bytes, &wanted("abc", "", &hex, 1)).expect_err("read in another way");
        let was = "channel 2 of the pipeline was `s.b × 1 + 0 l/min [csv column 2]`, and is";
        assert_eq!(why, format!("{was} `s.b × 1 + 0 l/min [csv column 2, hex]`"));
        let old = learnt(&read("")).to_bytes();
        let taken = Learnt::read(&old, &wanted("abc", "", &csv, 1)).expect("taken up");
        assert!(
            Learnt::read(&taken.to_bytes(), &wanted("abc", "", &hex, 1)).is_err(),
            "it keeps how it is read from now on"
        );
        let other = vec!["s.a × 1 + 0".into(), "s.b × 1 + 0 l/minute [csv column 2]".into(), "4 rows".into()];
        assert!(Learnt::read(&old, &wanted("abc", "", &other, 1)).is_err(), "another unit that begins alike");
    }

    #[test]
    fn what_an_earlier_build_kept_belongs_to_the_channels_of_today() {
        let old = learnt(&[]).to_bytes();
        assert!(!String::from_utf8_lossy(&old).contains("inputs"));
        let now = channels(1.0);
        let taken = Learnt::read(&old, &wanted("abc", "", &now, 1)).expect("taken up");
        let later = channels(0.06);
        assert!(Learnt::read(&taken.to_bytes(), &wanted("abc", "", &later, 1)).is_err());
    }
}
