//! What a model said of one window: its score with the end that is bad, and the probability of each class. The stage that
//! runs models makes a `Scored` for each window; alarms decide by it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Which end of a score is bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// A score above its level is bad.
    #[default]
    High,
    /// A score below its level is bad.
    Low,
}

impl Direction {
    /// Whether the score lies on the bad side of the level. At the level it does not.
    pub fn is_beyond(self, score: f32, level: f32) -> bool {
        match self {
            Self::High => score > level,
            Self::Low => score < level,
        }
    }

    /// The worse of two scores.
    pub fn worse(self, a: f32, b: f32) -> f32 {
        match self {
            Self::High => a.max(b),
            Self::Low => a.min(b),
        }
    }
}

/// The probability of each class that a model names.
#[derive(Debug, Clone, PartialEq)]
pub struct Classes {
    /// Names, in the order of the model's output.
    pub names: Arc<[String]>,
    /// 0 to 1, by class.
    pub probabilities: Vec<f32>,
}

impl Classes {
    /// The probability of one class; `None`: the model has no such class.
    pub fn of(&self, class: &str) -> Option<f32> {
        let place = self.names.iter().position(|name| name == class)?;
        self.probabilities.get(place).copied()
    }

    /// The class with the highest probability; the first of several. `None`: no probability is a number.
    pub fn likeliest(&self) -> Option<&str> {
        let all = self.names.iter().zip(&self.probabilities).filter(|(_, p)| p.is_finite());
        let best = all.reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.map(|(name, _)| name.as_str())
    }
}

/// What one window's answer means.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// The score; `None` while the model is being calibrated, and for a model that only names classes.
    pub score: Option<f32>,
    /// The model's threshold for the score, where it has one.
    pub threshold: Option<f32>,
    /// Which end of the score is bad.
    pub direction: Direction,
    /// The classes, where the model names them; also while it is being calibrated.
    pub classes: Option<Classes>,
    /// The model is unsure of it, as the pipeline's escalation says; never without one.
    pub unsure: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direction_says_which_side_of_a_level_is_bad() {
        assert!(Direction::High.is_beyond(1.1, 1.0) && !Direction::High.is_beyond(1.0, 1.0));
        assert!(Direction::Low.is_beyond(-0.2, -0.1) && !Direction::Low.is_beyond(-0.1, -0.1));
        assert!(!Direction::High.is_beyond(f32::NAN, 1.0) && !Direction::Low.is_beyond(f32::NAN, 1.0));
        assert_eq!((Direction::High.worse(1.0, 2.0), Direction::Low.worse(1.0, 2.0)), (2.0, 1.0));
    }

    #[test]
    fn likeliest_class_is_the_first_of_the_highest_and_unknown_classes_have_no_probability() {
        let names: Arc<[String]> = ["ok", "wear", "leak"].map(str::to_owned).into();
        let classes = |p: [f32; 3]| Classes { names: names.clone(), probabilities: p.to_vec() };
        assert_eq!(classes([0.2, 0.4, 0.4]).likeliest(), Some("wear"));
        assert_eq!(classes([f32::NAN, 0.1, 0.2]).likeliest(), Some("leak"));
        assert_eq!(classes([f32::NAN; 3]).likeliest(), None);
        assert_eq!(classes([0.2, 0.4, 0.4]).of("leak"), Some(0.4));
        assert_eq!(classes([0.2, 0.4, 0.4]).of("rust"), None);
    }
}
