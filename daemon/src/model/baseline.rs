//! Drift: compares inputs with the data that a model was made with (`baseline.json` of a bundle). Pure.
//!
//! For each channel 33 quantiles (0, 1/32 … 1) and the interdecile range of the values the model was made with, and a
//! threshold. The distance of a set of values from them is the first Wasserstein distance, W1 = ∫ |F⁻¹(p) − G⁻¹(p)| dp
//! over p in 0…1 (Vallender 1974, "Calculation of the Wasserstein distance between probability distributions on the
//! line"), here by the mean over the 33 places, divided by the baseline's interdecile range so that it has no unit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::BundleError;
use crate::limits;

/// Quantiles per channel.
pub const QUANTILES: usize = 33;

/// One channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Values at 0, 1/32 … 1.
    pub quantiles: Vec<f64>,
    /// Difference between the last and the first decile.
    pub idr: f64,
    /// A distance above this is drift.
    pub threshold: f64,
}

/// The baseline of all channels; `score`: of the model's output, if the file has it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// By channel name.
    pub channels: BTreeMap<String, Spread>,
    /// Baseline of the score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Spread>,
}

impl Baseline {
    /// Parses and checks the file.
    ///
    /// # Errors
    /// It has another shape, or values out of bounds.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let baseline: Self = serde_json::from_slice(bytes).map_err(|why| format!("baseline.json: {why}"))?;
        if baseline.channels.len() > limits::CHANNELS_MAX {
            return Err(format!("baseline.json: more than {} channels", limits::CHANNELS_MAX).into());
        }
        let all = baseline.channels.iter().map(|(name, c)| (name.as_str(), c));
        for (name, channel) in all.chain(baseline.score.iter().map(|c| ("score", c))) {
            let wrong = |why: &str| Err(format!("baseline.json: `{name}`: {why}").into());
            if channel.quantiles.len() != QUANTILES {
                return wrong("needs 33 quantiles");
            }
            if !channel.quantiles.iter().all(|q| q.is_finite()) || channel.quantiles.windows(2).any(|q| q[0] > q[1]) {
                return wrong("quantiles are numbers that grow");
            }
            if !(channel.idr.is_finite()
                && channel.idr > 0.0
                && channel.threshold.is_finite()
                && channel.threshold > 0.0)
            {
                return wrong("idr and threshold are above 0");
            }
        }
        Ok(baseline)
    }
}

/// The 33 quantiles of values, by linear interpolation (type 7 of Hyndman and Fan 1996). Sorts them. `None`: no values.
pub fn quantiles(values: &mut [f64]) -> Option<Vec<f64>> {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |i: usize| {
        let place = i as f64 / (QUANTILES - 1) as f64 * last as f64;
        let (low, share) = (place.floor() as usize, place.fract());
        values[low] + (values[(low + 1).min(last)] - values[low]) * share
    };
    Some((0..QUANTILES).map(at).collect())
}

impl Spread {
    /// A baseline of the values that a model was made with; the maker chooses the threshold.
    pub fn of(values: &mut [f64], threshold: f64) -> Option<Self> {
        let quantiles = quantiles(values)?;
        // Deciles by the same interpolation as the quantiles.
        let decile = |share: f64| {
            let place = share * (values.len() - 1) as f64;
            let (low, rest) = (place.floor() as usize, place.fract());
            values[low] + (values[(low + 1).min(values.len() - 1)] - values[low]) * rest
        };
        let idr = (decile(0.9) - decile(0.1)).max(f64::MIN_POSITIVE);
        Some(Self { quantiles, idr, threshold })
    }

    /// W1 / IDR of values from the baseline. Sorts them.
    pub fn distance(&self, values: &mut [f64]) -> Option<f64> {
        let theirs = quantiles(values)?;
        let sum: f64 = self.quantiles.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).sum();
        Some(sum / QUANTILES as f64 / self.idr)
    }
}

/// The verdict on the distances of one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drift {
    /// All channels are within their thresholds.
    None,
    /// One channel is beyond its threshold: a sensor fault is more likely than a change of the process.
    SensorSuspect,
    /// Two or more channels are beyond their thresholds.
    Drift,
}

impl Drift {
    /// By the number of channels beyond their threshold.
    pub fn of(beyond: usize) -> Self {
        match beyond {
            0 => Self::None,
            1 => Self::SensorSuspect,
            _ => Self::Drift,
        }
    }

    /// The published word.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SensorSuspect => "sensor_suspect",
            Self::Drift => "drift",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_of_a_shift_is_the_shift_over_the_interdecile_range() {
        let mut base: Vec<f64> = (0..=1000).map(f64::from).collect();
        let channel = Spread::of(&mut base, 0.3).expect("values");
        assert!((channel.idr - 800.0).abs() < 1e-9);
        let mut same = base.clone();
        assert!(channel.distance(&mut same).expect("values") < 1e-12);
        let mut shifted: Vec<f64> = base.iter().map(|x| x + 80.0).collect();
        assert!((channel.distance(&mut shifted).expect("values") - 0.1).abs() < 1e-9);
        assert_eq!(channel.distance(&mut []), None);
    }

    #[test]
    fn one_channel_is_a_sensor_and_two_are_drift() {
        assert_eq!([0, 1, 2, 9].map(Drift::of), [Drift::None, Drift::SensorSuspect, Drift::Drift, Drift::Drift]);
    }

    #[test]
    fn a_baseline_that_is_none_is_refused() {
        assert!(Baseline::parse(b"{}").is_err());
        assert!(Baseline::parse(br#"{"channels":{"a":{"quantiles":[1,2],"idr":1,"threshold":1}}}"#).is_err());
        let mut values: Vec<f64> = (0..100).map(f64::from).collect();
        let channel = Spread::of(&mut values, 0.2).expect("values");
        let baseline = Baseline { channels: [("a".to_owned(), channel)].into(), score: None };
        assert_eq!(Baseline::parse(&serde_json::to_vec(&baseline).expect("json")), Ok(baseline.clone()));
        let mut flat = baseline;
        flat.channels.iter_mut().for_each(|(_, c)| c.idr = 0.0);
        assert!(Baseline::parse(&serde_json::to_vec(&flat).expect("json")).is_err());
    }
}
