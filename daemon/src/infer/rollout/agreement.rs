//! How a candidate that runs beside the serving model compares with it, for one pipeline: verdicts, scores, windows, labels. Pure.

use std::fmt::Write;

use super::{
    super::thin::Thinned,
    labelled::{Labelled, Opinion},
};
use crate::{
    flow::{
        Stamp,
        record::{json_num, json_str},
        samples::Label,
    },
    host::clock::rfc3339_ms,
};

/// What both said of a window.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// The serving model's score.
    pub serving: Option<f32>,
    /// Whether it is beyond its threshold.
    pub serving_above: Option<bool>,
    /// The candidate's.
    pub candidate: Option<f32>,
    /// See `serving_above`.
    pub candidate_above: Option<bool>,
}

/// Counts and scores so far.
pub struct Agreement {
    began: Stamp,
    windows: u64,
    /// Windows that the candidate was not given: it is slower.
    skipped: u64,
    unanswered: u64,
    /// By what the serving model said (normal, anomaly), and by what the candidate said.
    verdicts: [[u64; 2]; 2],
    serving: Thinned,
    candidate: Thinned,
    both: Correlation,
    /// Verdicts of windows that may get labels; `None`: no window is kept, so none gets one.
    labelled: Option<Labelled>,
}

impl Agreement {
    /// Begins now. `labels`: windows may get labels.
    pub fn new(began: Stamp, labels: bool) -> Self {
        let (serving, candidate, both) = (Thinned::default(), Thinned::default(), Correlation::default());
        let (verdicts, labelled) = ([[0; 2]; 2], labels.then(Labelled::default));
        Self { began, windows: 0, skipped: 0, unanswered: 0, verdicts, serving, candidate, both, labelled }
    }

    /// A window that both answered.
    pub fn take(&mut self, pair: Pair) {
        self.windows += 1;
        if let Some((serving, candidate)) = pair.serving_above.zip(pair.candidate_above) {
            self.verdicts[usize::from(serving)][usize::from(candidate)] += 1;
        }
        let finite = |score: Option<f32>| score.map(f64::from).filter(|score| score.is_finite());
        if let Some((serving, candidate)) = finite(pair.serving).zip(finite(pair.candidate)) {
            self.serving.take(serving);
            self.candidate.take(candidate);
            self.both.take(serving, candidate);
        }
    }

    /// The values of that window, and what both said of it, for a label that may come.
    pub fn judged(&mut self, values: &[f32], serving: Opinion<'_>, candidate: Opinion<'_>) {
        if let Some(labelled) = &mut self.labelled {
            labelled.judged(values, serving, candidate);
        }
    }

    /// A label of the window with this digest.
    pub fn label(&mut self, digest: &str, label: Label) {
        if let Some(labelled) = &mut self.labelled {
            labelled.label(digest, label);
        }
    }

    /// Labels that count, those on which the serving model was right, and those on which the candidate was.
    pub fn right(&self) -> (u64, u64, u64) {
        self.labelled.as_ref().map_or((0, 0, 0), Labelled::right)
    }

    /// A window to which the candidate gave no answer.
    pub fn unanswered(&mut self) {
        self.windows += 1;
        self.unanswered += 1;
    }

    /// A window that it was not given.
    pub fn skip(&mut self) {
        self.skipped += 1;
    }

    /// Nothing came yet.
    pub fn is_empty(&self) -> bool {
        self.windows + self.skipped == 0
    }

    /// Verdicts that were compared, and those that differ.
    pub fn compared(&self) -> (u64, u64) {
        let [[normal, only_candidate], [only_serving, anomaly]] = self.verdicts;
        (normal + anomaly + only_serving + only_candidate, only_serving + only_candidate)
    }

    /// Members of the record (`docs/schema/up.q.json`). `over`: the candidate does not run beside any more.
    pub fn members(&self, pipeline: &str, (candidate, serving): (&str, &str), now: Stamp, over: bool) -> String {
        let mut out = String::from("\"pipeline\":");
        json_str(&mut out, pipeline);
        out.push_str(",\"candidate\":");
        json_str(&mut out, candidate);
        out.push_str(",\"serving\":");
        json_str(&mut out, serving);
        out.push_str(",\"since\":");
        match self.began.wall_ms {
            Some(ms) => json_str(&mut out, &rfc3339_ms(ms)),
            None => out.push_str("null"),
        }
        let since_s = now.boot_ns.saturating_sub(self.began.boot_ns) / 1_000_000_000;
        let Self { windows, skipped, unanswered, .. } = self;
        let _ = write!(
            out,
            ",\"since_s\":{since_s},\"over\":{over},\"windows\":{windows},\"skipped\":{skipped},\"unanswered\":{unanswered}"
        );
        let [[normal, only_candidate], [only_serving, anomaly]] = self.verdicts;
        let _ = write!(out, ",\"verdicts\":{{\"both_normal\":{normal},\"both_anomaly\":{anomaly}");
        let _ = write!(out, ",\"only_serving\":{only_serving},\"only_candidate\":{only_candidate}}}");
        out.push_str(",\"correlation\":");
        json_num(&mut out, self.both.coefficient().unwrap_or(f64::NAN));
        for (name, scores) in [("serving_score", &self.serving), ("candidate_score", &self.candidate)] {
            let _ = write!(out, ",\"{name}\":");
            match scores.quantiles([0.1, 0.5, 0.9, 0.99]) {
                Some([low, middle, high, most]) => {
                    let named = [("p10", low), ("p50", middle), ("p90", high), ("p99", most)];
                    for (i, (name, value)) in named.into_iter().enumerate() {
                        let _ = write!(out, "{}\"{name}\":", if i == 0 { "{" } else { "," });
                        json_num(&mut out, value);
                    }
                    out.push('}');
                }
                None => out.push_str("null"),
            }
        }
        if let Some(labelled) = &self.labelled {
            out.push(',');
            labelled.member(&mut out);
        }
        out
    }
}

/// Pearson's correlation, by running means (Welford 1962): scores far from 0 lose no digits.
#[derive(Default)]
struct Correlation {
    n: f64,
    means: (f64, f64),
    squares: (f64, f64),
    products: f64,
}

impl Correlation {
    fn take(&mut self, x: f64, y: f64) {
        self.n += 1.0;
        let (dx, dy) = (x - self.means.0, y - self.means.1);
        self.means.0 += dx / self.n;
        self.means.1 += dy / self.n;
        let (rx, ry) = (x - self.means.0, y - self.means.1);
        self.squares.0 += dx * rx;
        self.squares.1 += dy * ry;
        self.products += dx * ry;
    }

    /// `None`: one of both does not change.
    fn coefficient(&self) -> Option<f64> {
        let most = (self.squares.0 * self.squares.1).sqrt();
        (most > 0.0 && most.is_finite()).then(|| (self.products / most).clamp(-1.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::flow::Clk;

    fn at(s: u64) -> Stamp {
        Stamp { boot_ns: s * 1_000_000_000, wall_ms: Some(0), clk: Clk::Sync }
    }

    fn pair(serving: f32, candidate: f32) -> Pair {
        let above = |score: f32, level: f32| Some(score > level);
        Pair {
            serving: Some(serving),
            serving_above: above(serving, 10.0),
            candidate: Some(candidate),
            candidate_above: above(candidate, 20.0),
        }
    }

    fn record(agreement: &Agreement) -> Value {
        let members = agreement.members("x", ("m@2", "m@1"), at(70), false);
        serde_json::from_str(&format!("{{{members}}}")).expect("JSON")
    }

    #[test]
    fn verdicts_are_counted_by_who_said_what_and_each_by_its_own_threshold() {
        let mut agreement = Agreement::new(at(10), false);
        assert!(agreement.is_empty());
        for (serving, candidate, times) in [(1.0, 2.0, 5), (11.0, 21.0, 3), (11.0, 2.0, 2), (1.0, 21.0, 1)] {
            (0..times).for_each(|_| agreement.take(pair(serving, candidate)));
        }
        agreement.take(Pair { candidate: None, candidate_above: None, ..pair(1.0, 1.0) });
        agreement.unanswered();
        agreement.skip();
        let record = record(&agreement);
        let verdicts = json!({"both_normal": 5, "both_anomaly": 3, "only_serving": 2, "only_candidate": 1});
        assert_eq!(record["verdicts"], verdicts);
        assert_eq!((&record["windows"], &record["unanswered"], &record["skipped"]), (&json!(13), &json!(1), &json!(1)));
        assert_eq!((&record["since"], &record["since_s"]), (&json!("1970-01-01T00:00:00.000Z"), &json!(60)));
        assert_eq!(agreement.compared(), (11, 3));
    }

    #[test]
    fn correlation_is_that_of_the_scores_and_null_where_one_does_not_change() {
        let correlation = |candidate: fn(f32) -> f32| {
            let mut agreement = Agreement::new(at(0), false);
            (0..100).map(|i| (i * 37 % 100) as f32 + 1e4).for_each(|x| agreement.take(pair(x, candidate(x))));
            record(&agreement)["correlation"].as_f64()
        };
        assert!(correlation(|x| 3.0 * x + 1.0).is_some_and(|r| (r - 1.0).abs() < 1e-9));
        assert!(correlation(|x| -x).is_some_and(|r| (r + 1.0).abs() < 1e-9));
        assert!(correlation(|x| (x * 17.0) % 31.0).is_some_and(|r| r.abs() < 0.3));
        assert_eq!(correlation(|_| 5.0), None);
        let nothing = record(&Agreement::new(at(0), false));
        assert!(nothing["correlation"].is_null() && nothing["serving_score"].is_null());
        assert_eq!(nothing.get("labels"), None, "no window is kept, so none has a label");
        assert_eq!(record(&Agreement::new(at(0), true))["labels"]["uncounted"], 0);
    }
}
