//! Which windows are unsure. Pure.

use crate::{
    config::{Band, Escalate},
    flow::Scored,
};

/// Why a window goes to a larger model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The score is near its threshold.
    Band,
    /// The likeliest class has a low probability.
    Class,
    /// The inputs drift from the model's baseline.
    Drift,
}

impl Why {
    /// The word in payloads.
    pub fn word(self) -> &'static str {
        match self {
            Self::Band => "band",
            Self::Class => "class",
            Self::Drift => "drift",
        }
    }
}

/// Why the model is unsure of this window; `None`: it is not. While it learns there is no score, and so nothing is unsure.
pub fn unsure(rules: &Escalate, said: &Scored) -> Option<Why> {
    let near = |band: &Band| {
        let (score, threshold) = said.score.zip(said.threshold)?;
        let most = match band {
            Band::Width(width) => *width,
            Band::Share(share) => threshold.abs() * share,
        };
        ((score - threshold).abs() <= most).then_some(Why::Band)
    };
    let doubtful = |least: f32| {
        let classes = said.classes.as_ref()?;
        let likeliest = classes.of(classes.likeliest()?)?;
        (likeliest < least).then_some(Why::Class)
    };
    rules.band.as_ref().and_then(near).or_else(|| rules.class_below.and_then(doubtful))
}

/// Why this window is escalated. `drifted`: it completes a look at the inputs that found drift.
pub fn why(rules: &Escalate, said: &Scored, drifted: bool) -> Option<Why> {
    unsure(rules, said).or((rules.drift && drifted).then_some(Why::Drift))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::flow::Classes;

    /// All of it off.
    pub fn rules() -> Escalate {
        Escalate {
            band: None,
            class_below: None,
            drift: false,
            max_per_hour: 10,
            max_day_bytes: 1 << 20,
            deadline_ms: 10_000,
            alarms: false,
        }
    }

    fn scored(score: f32, threshold: f32) -> Scored {
        Scored { score: Some(score), threshold: Some(threshold), ..Scored::default() }
    }

    #[test]
    fn band_lies_on_both_sides_of_the_threshold_and_has_a_width_or_a_share() {
        let width = Escalate { band: Some(Band::Width(0.25)), ..rules() };
        let inside = |rules: &Escalate, score, threshold| unsure(rules, &scored(score, threshold)) == Some(Why::Band);
        assert!(inside(&width, 1.25, 1.0) && inside(&width, 0.75, 1.0) && inside(&width, 1.0, 1.0));
        assert!(!inside(&width, 1.26, 1.0) && !inside(&width, 0.74, 1.0));
        assert!(inside(&width, -0.1, 0.0), "a threshold of 0 has a band too");
        let share = Escalate { band: Some(Band::Share(0.1)), ..rules() };
        assert!(inside(&share, 21.9, 20.0) && !inside(&share, 22.1, 20.0) && inside(&share, -21.9, -20.0));
        assert!(!inside(&share, f32::NAN, 20.0) && !inside(&share, 20.0, f32::NAN));
    }

    #[test]
    fn without_score_or_threshold_nothing_lies_in_the_band() {
        let rules = Escalate { band: Some(Band::Width(9.0)), ..rules() };
        assert_eq!(unsure(&rules, &Scored { score: None, ..scored(1.0, 1.0) }), None);
        assert_eq!(unsure(&rules, &Scored { threshold: None, ..scored(1.0, 1.0) }), None);
    }

    #[test]
    fn class_counts_by_the_likeliest_alone_and_the_first_reason_is_named() {
        let names: std::sync::Arc<[String]> = ["ok", "wear"].map(str::to_owned).into();
        let classes = |ok: f32| Some(Classes { names: names.clone(), probabilities: vec![ok, 1.0 - ok] });
        let rules = Escalate { class_below: Some(0.7), drift: true, ..rules() };
        let said = |ok: f32| Scored { classes: classes(ok), ..scored(1.0, 1.0) };
        assert_eq!((unsure(&rules, &said(0.6)), unsure(&rules, &said(0.3))), (Some(Why::Class), None));
        assert_eq!(why(&rules, &said(0.3), true), Some(Why::Drift));
        assert_eq!(why(&Escalate { drift: false, ..rules.clone() }, &said(0.3), true), None);
        let both = Escalate { band: Some(Band::Width(1.0)), ..rules };
        assert_eq!(why(&both, &said(0.6), true), Some(Why::Band));
        assert_eq!(unsure(&both, &Scored { classes: classes(f32::NAN), ..Scored::default() }), None);
    }
}
