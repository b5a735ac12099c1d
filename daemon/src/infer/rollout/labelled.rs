//! What labels say of a candidate and of the serving model, for one pipeline: which windows both have judged, and who was right on those
//! that got a label. Pure.
//!
//! A label comes hours after its window. So verdicts are remembered by the digest of the window, 16 bytes each: those with an anomaly by
//! themselves, because they are few and most labels are about them, and so many of the others.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
};

use sha2::{Digest, Sha256};

use crate::{flow::samples::Label, limits};

/// What one model said of a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opinion<'a> {
    /// Its score is beyond its threshold; `None`: it has none of both.
    pub anomaly: Option<bool>,
    /// The likeliest class; `None`: it names none.
    pub class: Option<&'a str>,
}

/// A window that both judged: the serving model first.
#[derive(Debug, Clone, Copy)]
struct Judged {
    window: u64,
    anomaly: [Option<bool>; 2],
    /// Places in `Labelled::classes`.
    class: [Option<u8>; 2],
}

/// Windows and labels of one pipeline, as long as a candidate runs beside.
#[derive(Debug, Default)]
pub struct Labelled {
    anomalies: VecDeque<Judged>,
    others: VecDeque<Judged>,
    /// Names of classes that were said.
    classes: Vec<String>,
    /// By window, with its newest label.
    labels: BTreeMap<u64, (Label, Judged)>,
    /// Labels of windows that are not known here.
    unknown: u64,
}

/// Two models by what they said, as in `verdicts`: the place of the serving one, then that of the candidate.
type Counts = [[u64; 2]; 2];

impl Labelled {
    /// A window that both answered.
    pub fn judged(&mut self, values: &[f32], serving: Opinion<'_>, candidate: Opinion<'_>) {
        let mut hash = Sha256::new();
        values.iter().for_each(|x| hash.update(x.to_le_bytes()));
        let digest: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        let judged = Judged {
            window: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            anomaly: [serving.anomaly, candidate.anomaly],
            class: [self.class(serving.class), self.class(candidate.class)],
        };
        let (ring, most) = if judged.anomaly.contains(&Some(true)) {
            (&mut self.anomalies, limits::SHADOW_ANOMALIES)
        } else {
            (&mut self.others, limits::SHADOW_WINDOWS)
        };
        if ring.len() == most {
            ring.pop_front();
        }
        ring.push_back(judged);
    }

    fn class(&mut self, name: Option<&str>) -> Option<u8> {
        let name = name?;
        let known = self.classes.iter().position(|class| class == name);
        let place = known.unwrap_or_else(|| {
            self.classes.push(name.to_owned());
            self.classes.len() - 1
        });
        u8::try_from(place).ok()
    }

    /// A label of the window with this digest, 64 hexadecimal digits. A later label of a window replaces the earlier one.
    pub fn label(&mut self, digest: &str, label: Label) {
        let found = digest.get(..16).and_then(|text| u64::from_str_radix(text, 16).ok());
        let all = || self.anomalies.iter().rev().chain(self.others.iter().rev());
        let known = |window: u64| {
            let before = self.labels.get(&window).map(|(_, judged)| *judged);
            before.or_else(|| all().find(|judged| judged.window == window).copied())
        };
        match found.and_then(|window| Some((window, known(window)?))) {
            Some((window, judged)) if self.labels.contains_key(&window) || self.labels.len() < limits::LABELS_MAX => {
                self.labels.insert(window, (label, judged));
            }
            _ => self.unknown += 1,
        }
    }

    /// Verdicts of windows labelled `true`, of those labelled `false`, and who named the class of those labelled with one; and labels
    /// that could not be counted.
    fn counts(&self) -> ([Counts; 3], u64) {
        let (mut counts, mut uncounted) = ([[[0; 2]; 2]; 3], self.unknown);
        for (label, judged) in self.labels.values() {
            let (of, said) = match label {
                Label::Truth(truth) => (usize::from(!truth), judged.anomaly),
                Label::Class(name) => {
                    let named = |place: u8| self.classes.get(usize::from(place)) == Some(name);
                    (2, judged.class.map(|class| class.map(named)))
                }
            };
            match said {
                [Some(serving), Some(candidate)] => counts[of][usize::from(serving)][usize::from(candidate)] += 1,
                _ => uncounted += 1,
            }
        }
        (counts, uncounted)
    }

    /// Labels that count, those on which the serving model was right, and those on which the candidate was.
    pub fn right(&self) -> (u64, u64, u64) {
        let ([truly, falsely, classes], _) = self.counts();
        let sum = |of: &dyn Fn(usize, usize) -> u64, serving: bool| {
            let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter();
            pairs.filter(|(s, c)| if serving { *s == 1 } else { *c == 1 }).map(|(s, c)| of(s, c)).sum::<u64>()
        };
        // Right is: an anomaly where the label says so, none where it does not, the class that it names.
        let right = |s: usize, c: usize| truly[s][c] + falsely[1 - s][1 - c] + classes[s][c];
        let all = [truly, falsely, classes].into_iter().flatten().flatten().sum();
        (all, sum(&right, true), sum(&right, false))
    }

    /// The member `labels` of the record, without a comma before it.
    pub fn member(&self, out: &mut String) {
        let ([truly, falsely, classes], uncounted) = self.counts();
        out.push_str("\"labels\":{");
        for (name, [[none, only_candidate], [only_serving, both]]) in [("true", truly), ("false", falsely)] {
            let _ = write!(out, "\"{name}\":{{\"both_normal\":{none},\"both_anomaly\":{both},");
            let _ = write!(out, "\"only_serving\":{only_serving},\"only_candidate\":{only_candidate}}},");
        }
        let [[none, only_candidate], [only_serving, both]] = classes;
        let _ = write!(out, "\"class\":{{\"both_right\":{both},\"both_wrong\":{none},");
        let _ = write!(out, "\"only_serving_right\":{only_serving},\"only_candidate_right\":{only_candidate}}},");
        let _ = write!(out, "\"uncounted\":{uncounted}}}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(values: &[f32]) -> String {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn said(anomaly: bool) -> Opinion<'static> {
        Opinion { anomaly: Some(anomaly), class: None }
    }

    fn record(labelled: &Labelled) -> Value {
        let mut out = String::from("{");
        labelled.member(&mut out);
        out.push('}');
        serde_json::from_str::<Value>(&out).expect("JSON")["labels"].clone()
    }

    fn four(normal: u64, anomaly: u64, serving: u64, candidate: u64) -> Value {
        json!({"both_normal": normal, "both_anomaly": anomaly, "only_serving": serving, "only_candidate": candidate})
    }

    #[test]
    fn labels_count_by_what_both_models_said_of_their_window_and_a_later_one_replaces_an_earlier_one() {
        let mut labelled = Labelled::default();
        let said_of = [(false, false), (true, true), (true, false), (false, true)];
        for (i, (serving, candidate)) in said_of.into_iter().enumerate() {
            labelled.judged(&[i as f32, 1.0], said(serving), said(candidate));
        }
        for i in 0..4 {
            labelled.label(&digest(&[i as f32, 1.0]), Label::Truth(true));
        }
        labelled.label(&digest(&[2.0, 1.0]), Label::Truth(false));
        labelled.label(&digest(&[3.0, 1.0]), Label::Truth(false));
        labelled.label(&digest(&[3.0, 1.0]), Label::Truth(false));
        let found = record(&labelled);
        assert_eq!((&found["true"], &found["false"]), (&four(1, 1, 0, 0), &four(0, 0, 1, 1)));
        assert_eq!(found["uncounted"], 0);
        assert_eq!(
            labelled.right(),
            (4, 2, 2),
            "true: the second window; false: each on the window that it left alone"
        );
    }

    #[test]
    fn labels_that_name_a_class_count_where_both_models_name_classes() {
        let mut labelled = Labelled::default();
        let of = |class| Opinion { anomaly: None, class: Some(class) };
        labelled.judged(&[1.0], of("outer"), of("ball"));
        labelled.judged(&[2.0], of("ok"), of("ball"));
        labelled.judged(&[3.0], said(true), of("ball"));
        for window in [1.0, 2.0, 3.0] {
            labelled.label(&digest(&[window]), Label::Class("ball".into()));
        }
        let class = json!({"both_right": 0, "both_wrong": 0, "only_serving_right": 0, "only_candidate_right": 2});
        assert_eq!((&record(&labelled)["class"], &record(&labelled)["uncounted"]), (&class, &json!(1)));
        assert_eq!(labelled.right(), (2, 0, 2));
        labelled.label(&digest(&[1.0]), Label::Class("inner".into()));
        assert_eq!(record(&labelled)["class"]["both_wrong"], 1);
    }

    #[test]
    fn labels_of_windows_without_two_verdicts_are_not_counted() {
        let mut labelled = Labelled::default();
        labelled.judged(&[1.0], said(true), Opinion::default());
        labelled.label(&digest(&[1.0]), Label::Truth(true));
        labelled.label(&digest(&[2.0]), Label::Truth(true));
        labelled.label("no digest", Label::Truth(true));
        labelled.label("", Label::Truth(true));
        assert_eq!((labelled.right(), &record(&labelled)["uncounted"]), ((0, 0, 0), &json!(4)));
    }

    #[test]
    fn windows_with_an_anomaly_outlive_a_day_of_normal_ones_and_memory_is_bounded() {
        let mut labelled = Labelled::default();
        labelled.judged(&[-1.0], said(true), said(false));
        labelled.judged(&[-2.0], said(false), said(false));
        for i in 0..=limits::SHADOW_WINDOWS {
            labelled.judged(&[i as f32], said(false), said(false));
        }
        assert_eq!((labelled.anomalies.len(), labelled.others.len()), (1, limits::SHADOW_WINDOWS));
        labelled.label(&digest(&[-1.0]), Label::Truth(false));
        labelled.label(&digest(&[-2.0]), Label::Truth(false));
        let found = record(&labelled);
        assert_eq!((&found["false"], &found["uncounted"]), (&four(0, 0, 1, 0), &json!(1)));
        for i in 0..=limits::SHADOW_ANOMALIES {
            labelled.judged(&[i as f32 + 0.5], said(true), said(true));
        }
        assert_eq!(labelled.anomalies.len(), limits::SHADOW_ANOMALIES);
        labelled.label(&digest(&[-1.0]), Label::Truth(true));
        assert_eq!(record(&labelled)["true"], four(0, 0, 1, 0), "a window that has a label is not forgotten");
        assert!(size_of::<Judged>() <= 16);
    }
}
