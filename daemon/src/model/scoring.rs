//! What a model's score means, as its manifest or the configuration says: which output it is, which end is bad, how several
//! values become one, what the classes are called. Pure; `infer::meaning` fits it to a model's outputs.

use serde::Deserialize;

use crate::{flow::Direction, limits};

/// How several values become one score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduce {
    /// The largest value.
    Max,
    /// Their mean.
    Mean,
    /// The mean of their squares.
    Mse,
    /// The root of the mean of their squares.
    Rms,
}

impl Reduce {
    /// The words of the manifest and the configuration.
    pub const WORDS: [(&str, Self); 4] =
        [("max", Self::Max), ("mean", Self::Mean), ("mse", Self::Mse), ("rms", Self::Rms)];

    /// As written in a manifest.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, reduce)| *reduce == self).map_or("", |(word, _)| word)
    }

    /// One value of several; NaN if one of them is NaN, or if there is no value.
    pub fn of(self, values: impl ExactSizeIterator<Item = f64>) -> f64 {
        let n = values.len() as f64;
        match self {
            // Not f64::max: it would step over what is no number.
            Self::Max => values.reduce(|a, b| if a >= b || a.is_nan() { a } else { b }).unwrap_or(f64::NAN),
            Self::Mean => values.sum::<f64>() / n,
            Self::Mse => values.map(|x| x * x).sum::<f64>() / n,
            Self::Rms => (values.map(|x| x * x).sum::<f64>() / n).sqrt(),
        }
    }
}

/// What is said of a model's score.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scoring {
    /// The output with the score, `output` or `output[index]`.
    pub score: Option<String>,
    /// Which end of the score is bad.
    pub direction: Direction,
    /// How several values become the score.
    pub reduce: Option<Reduce>,
    /// The output that repeats the window: the score is its distance to the window.
    pub reconstruction: Option<String>,
    /// Names of the classes, in the order of the output with their probabilities.
    pub classes: Vec<String>,
    /// That output; `None`: the only one with as many values as there are classes.
    pub probabilities: Option<String>,
}

impl Scoring {
    /// What contradicts itself: the key, and why.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut all = Vec::new();
        if self.score.is_some() && self.reconstruction.is_some() {
            all.push(("reconstruction", "does not go with `score`: both say what the score is".into()));
        }
        if self.reduce.is_some() && self.score.as_deref().is_some_and(|score| element(score).1.is_some()) {
            all.push(("reduce", "does not go with a `score` that names one value".into()));
        }
        if self.probabilities.is_some() && self.classes.is_empty() {
            all.push(("probabilities", "needs `classes`: the names of its values".into()));
        }
        if self.classes.len() == 1 || self.classes.len() > limits::CLASSES {
            let (n, most) = (self.classes.len(), limits::CLASSES);
            all.push(("classes", format!("must be 2 to {most} names, not {n}")));
        }
        for (i, name) in self.classes.iter().enumerate() {
            if name.is_empty() || name.len() > 64 {
                all.push(("classes", format!("invalid name `{name}`: expected 1 to 64 bytes")));
            } else if self.classes[..i].contains(name) {
                all.push(("classes", format!("`{name}` occurs twice")));
            }
        }
        all
    }

    /// What a threshold that was learnt belongs to, beside the model's file: with other words the same model has other scores.
    /// Empty where only `features` decide, so that what was learnt before these words existed stays valid.
    pub fn basis(&self, has_features: bool) -> String {
        if has_features && *self == (Self { score: self.score.clone(), ..Self::default() }) {
            return String::new();
        }
        let name = |output: &Option<String>| output.clone().unwrap_or_default();
        format!("{}|{:?}|{:?}|{}", name(&self.score), self.direction, self.reduce, name(&self.reconstruction))
    }
}

/// Splits `output[index]`; a text of another form is an output's name as a whole.
pub fn element(score: &str) -> (&str, Option<usize>) {
    let split = score.strip_suffix(']').and_then(|rest| rest.rsplit_once('['));
    match split.and_then(|(name, index)| Some((name, index.parse().ok()?))) {
        Some((name, index)) if !name.is_empty() => (name, Some(index)),
        _ => (score, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_of_an_output_is_named_by_its_index() {
        assert_eq!(element("probabilities[1]"), ("probabilities", Some(1)));
        assert_eq!(element("scores"), ("scores", None));
        for whole in ["a[b]", "[1]", "a[-1]", "a[1", "a[]"] {
            assert_eq!(element(whole), (whole, None));
        }
    }

    #[test]
    fn several_values_become_the_largest_or_a_mean() {
        let of = |reduce: Reduce, values: &[f64]| reduce.of(values.iter().copied());
        assert_eq!(of(Reduce::Max, &[-3.0, -1.0, -2.0]), -1.0);
        assert_eq!(of(Reduce::Mean, &[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(of(Reduce::Mse, &[3.0, -4.0, 0.0, 0.0]), 6.25);
        assert_eq!(of(Reduce::Rms, &[3.0, -4.0, 0.0, 0.0]), 2.5);
        for reduce in Reduce::WORDS.map(|(_, reduce)| reduce) {
            assert!(of(reduce, &[1.0, f64::NAN, 2.0]).is_nan() && of(reduce, &[]).is_nan(), "{reduce:?}");
        }
    }

    #[test]
    fn words_that_contradict_each_other_are_all_named() {
        let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let scoring = Scoring {
            score: Some("y[0]".into()),
            reduce: Some(Reduce::Max),
            reconstruction: Some("y".into()),
            classes: names(&["ok", "ok", ""]),
            ..Scoring::default()
        };
        let keys: Vec<_> = scoring.problems().iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["reconstruction", "reduce", "classes", "classes"]);
        let alone = Scoring { probabilities: Some("p".into()), ..Scoring::default() };
        assert_eq!(alone.problems().len(), 1);
        assert_eq!(Scoring { classes: names(&["ok"]), ..Scoring::default() }.problems().len(), 1);
        let good = Scoring { score: Some("y".into()), reduce: Some(Reduce::Rms), ..Scoring::default() };
        assert_eq!(good.problems(), []);
    }

    #[test]
    fn learnt_threshold_belongs_to_the_words_that_make_the_score() {
        let low = Scoring { direction: Direction::Low, ..Scoring::default() };
        assert_eq!(Scoring { score: Some("s".into()), ..Scoring::default() }.basis(true), "");
        assert_ne!(low.basis(true), "");
        assert_ne!(low.basis(false), Scoring::default().basis(false));
    }
}
