//! An answer from elsewhere: read with suspicion, compared with the requests that await one, and the record that it becomes. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    sync::Arc,
};

use serde::Deserialize;

use super::rules::Why;
use crate::{
    flow::{
        WindowTag,
        escalation::Came,
        record::{json_num, json_str},
    },
    limits,
};

/// What it says of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is an anomaly.
    Anomaly,
    /// It is not.
    Normal,
    /// The larger model does not know either.
    Unsure,
}

impl Verdict {
    /// The word in payloads.
    pub fn word(self) -> &'static str {
        match self {
            Self::Anomaly => "anomaly",
            Self::Normal => "normal",
            Self::Unsure => "unsure",
        }
    }
}

/// A valid answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Answer {
    v: u8,
    id: String,
    /// What it says.
    pub verdict: Verdict,
    model: String,
    sha256: String,
    score: Option<f64>,
    threshold: Option<f64>,
    /// The class, where the model names classes.
    pub class: Option<String>,
    #[serde(default)]
    probabilities: BTreeMap<String, f64>,
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `NAME@VERSION`
fn is_model(text: &str) -> bool {
    let ok = |part: &str, most: usize| {
        (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
    };
    text.split_once('@').is_some_and(|(name, version)| ok(name, 64) && ok(version, 32))
}

impl Answer {
    /// Reads and checks it. Members that are not known are ignored.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > limits::ESCALATION_ANSWER_BYTES {
            return None;
        }
        let answer: Self = serde_json::from_slice(bytes).ok()?;
        let is_class = |name: &String| (1..=64).contains(&name.chars().count());
        let sound = answer.v == 1
            && is_hex(&answer.id, 16)
            && is_hex(&answer.sha256, 64)
            && is_model(&answer.model)
            && answer.class.iter().all(is_class)
            && (answer.probabilities.is_empty() || (2..=limits::CLASSES).contains(&answer.probabilities.len()))
            && answer.probabilities.iter().all(|(name, p)| is_class(name) && (0.0..=1.0).contains(p));
        sound.then_some(answer)
    }

    /// The envelope's `lineage` of what it says.
    pub fn lineage(&self) -> Arc<str> {
        let mut out = String::from("{\"model\":");
        json_str(&mut out, &format!("cloud:{}", self.model));
        let _ =
            write!(out, ",\"sha256\":\"{}\",\"slot\":\"cloud\",\"provider\":\"cloud\",\"cal\":\"none\"}}", self.sha256);
        out.into()
    }

    /// Members of the record, as of a prediction (`docs/schema/up.p.json`), with what the device itself said.
    pub fn members(&self, request: &Request, now_ns: u64) -> String {
        let (seq, t) = (request.tag.in_seq, request.tag.in_t_ns);
        let mut out = format!("\"in_seq\":[{},{}],\"in_t_ns\":[{},{}],\"score\":", seq.0, seq.1, t.0, t.1);
        json_num(&mut out, self.score.unwrap_or(f64::NAN));
        out.push_str(",\"threshold\":");
        json_num(&mut out, self.threshold.unwrap_or(f64::NAN));
        let took_us = now_ns.saturating_sub(request.asked_ns) / 1000;
        let _ = write!(out, ",\"took_us\":{took_us},\"win\":\"sha256:{}\",\"out\":{{}}", request.digest);
        if let Some(class) = &self.class {
            out.push_str(",\"class\":");
            json_str(&mut out, class);
        }
        if !self.probabilities.is_empty() {
            out.push_str(",\"probabilities\":{");
            for (i, (name, probability)) in self.probabilities.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                json_str(&mut out, name);
                out.push(':');
                json_num(&mut out, *probability);
            }
            out.push('}');
        }
        let (verdict, why) = (self.verdict.word(), request.why.word());
        let _ = write!(
            out,
            ",\"verdict\":\"{verdict}\",\"why\":\"{why}\",\"id\":\"{}\",\"local\":{}",
            request.id, request.local
        );
        out
    }
}

/// A window that was sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Names it.
    pub id: String,
    /// Of the window's values, hex.
    pub digest: String,
    /// Why it was sent.
    pub why: Why,
    /// Where the window comes from.
    pub tag: WindowTag,
    /// When it was sent, ns since boot.
    pub asked_ns: u64,
    /// Until when an answer counts, ns since boot.
    pub deadline_ns: u64,
    /// What the device itself said, a JSON object.
    pub local: String,
}

/// Requests that await an answer, and the last ones that do not any more.
#[derive(Debug, Default)]
pub struct Requests {
    open: VecDeque<Request>,
    ended: VecDeque<(String, Came)>,
}

impl Requests {
    /// One more may await its answer.
    pub fn has_room(&self) -> bool {
        self.open.len() < limits::ESCALATIONS_PENDING
    }

    /// The same values await an answer: a machine at rest.
    pub fn awaits(&self, digest: &str) -> bool {
        self.open.iter().any(|request| request.digest == digest)
    }

    /// How many await an answer.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// A window is sent.
    pub fn add(&mut self, request: Request) {
        self.open.push_back(request);
    }

    /// It was not sent after all.
    pub fn cancel(&mut self, id: &str) {
        self.open.retain(|request| request.id != id);
    }

    /// Ends those whose deadline has passed. How many.
    pub fn expire(&mut self, now_ns: u64) -> usize {
        let before = self.open.len();
        let (left, over) = std::mem::take(&mut self.open).into_iter().partition(|request| request.deadline_ns > now_ns);
        self.open = left;
        over.into_iter().for_each(|request: Request| self.end(request.id, Came::Late));
        before - self.open.len()
    }

    /// Takes the request that this answer is for; call `expire` before.
    ///
    /// # Errors
    /// It is late, double or foreign.
    pub fn answered(&mut self, digest: &str, answer: &Answer) -> Result<Request, Came> {
        let fits = |request: &Request| request.id == answer.id && request.digest == digest;
        match self.open.iter().position(fits).and_then(|at| self.open.remove(at)) {
            Some(request) => {
                self.end(request.id.clone(), Came::Double);
                Ok(request)
            }
            None => {
                let known = self.ended.iter().find(|(id, _)| *id == answer.id);
                Err(known.map_or(Came::Foreign, |(_, came)| *came))
            }
        }
    }

    /// A further answer to this one is that.
    fn end(&mut self, id: String, further: Came) {
        if self.ended.len() == limits::ESCALATIONS_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back((id, further));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::flow::{Clk, Stamp};

    fn whole() -> Value {
        json!({"v": 1, "id": "0123456789abcdef", "verdict": "anomaly", "model": "big@2.0.0", "sha256": "ab".repeat(32), "score": 3.5,
               "threshold": null, "class": "wear", "probabilities": {"ok": 0.25, "wear": 0.75}, "extra": [1]})
    }

    fn parse(value: &Value) -> Option<Answer> {
        Answer::parse(value.to_string().as_bytes())
    }

    fn request(id: &str, digest: &str, deadline_ns: u64) -> Request {
        let last = Stamp { boot_ns: 1, wall_ms: None, clk: Clk::Unset };
        let tag = WindowTag { pipeline: 0, last, in_seq: (1, 2), in_t_ns: (3, 4), number: 1, coverage: 1.0 };
        let (id, digest, local) = (id.to_owned(), digest.to_owned(), "{\"score\":1}".to_owned());
        Request { id, digest, why: Why::Band, tag, asked_ns: 1_000, deadline_ns, local }
    }

    #[test]
    fn each_member_that_is_missing_or_out_of_bounds_makes_an_answer_malformed() {
        assert!(parse(&whole()).is_some());
        let wrong: &[(&str, Value)] = &[
            ("v", json!(2)),
            ("id", json!("0123456789ABCDEF")),
            ("id", json!("0123")),
            ("verdict", json!("maybe")),
            ("model", json!("big")),
            ("model", json!("big@")),
            ("model", json!("b ig@1")),
            ("model", json!("x".repeat(65) + "@1")),
            ("sha256", json!("ab")),
            ("score", json!("3.5")),
            ("class", json!("")),
            ("class", json!("x".repeat(65))),
            ("probabilities", json!({"ok": 1.0})),
            ("probabilities", json!({"ok": 0.5, "wear": 1.5})),
        ];
        for (key, value) in wrong {
            let mut answer = whole();
            answer[*key] = value.clone();
            assert_eq!(parse(&answer), None, "{key}: {value}");
        }
        for key in ["v", "id", "verdict", "model", "sha256"] {
            let mut answer = whole();
            answer.as_object_mut().expect("object").remove(key);
            assert_eq!(parse(&answer), None, "without {key}");
        }
        assert_eq!(Answer::parse(b"not json"), None);
        assert_eq!(Answer::parse(b""), None);
        let mut long = whole();
        long["extra"] = json!("x".repeat(limits::ESCALATION_ANSWER_BYTES));
        assert_eq!(parse(&long), None, "too long");
    }

    #[test]
    fn first_answer_counts_and_late_double_and_foreign_ones_are_told_apart() {
        let mut requests = Requests::default();
        let answer = parse(&whole()).expect("sound");
        assert_eq!(requests.answered("d", &answer).map(drop), Err(Came::Foreign), "nothing was asked");
        requests.add(request("0123456789abcdef", "d", 100));
        assert_eq!(requests.answered("other", &answer).map(drop), Err(Came::Foreign), "of another window");
        assert_eq!(requests.answered("d", &answer).map(|r| r.tag.in_seq), Ok((1, 2)));
        assert_eq!(requests.answered("d", &answer).map(drop), Err(Came::Double));
        let mut requests = Requests::default();
        requests.add(request("0123456789abcdef", "d", 100));
        assert_eq!((requests.expire(99), requests.expire(100), requests.expire(101)), (0, 1, 0));
        assert_eq!(requests.answered("d", &answer).map(drop), Err(Came::Late));
        requests.add(request("0123456789abcdef", "d", 200));
        requests.cancel("0123456789abcdef");
        assert_eq!(requests.len(), 0);
    }

    #[test]
    fn requests_and_what_is_remembered_of_them_are_bounded() {
        let mut requests = Requests::default();
        for i in 0..10 * limits::ESCALATIONS_ENDED {
            assert!(requests.has_room());
            requests.add(request(&format!("{i:016x}"), "d", i as u64));
            requests.expire(i as u64);
        }
        assert_eq!((requests.len(), requests.ended.len()), (0, limits::ESCALATIONS_ENDED));
        (0..limits::ESCALATIONS_PENDING).for_each(|i| requests.add(request(&format!("{i:016x}"), "d", u64::MAX)));
        assert!(!requests.has_room() && requests.awaits("d") && !requests.awaits("e"));
    }

    #[test]
    fn record_has_the_members_of_a_prediction_with_the_lineage_of_the_cloud() {
        let answer = parse(&whole()).expect("sound");
        let lineage: Value = serde_json::from_str(&answer.lineage()).expect("JSON");
        assert_eq!((&lineage["model"], &lineage["slot"]), (&"cloud:big@2.0.0".into(), &"cloud".into()));
        let members = answer.members(&request("0123456789abcdef", "d", 9), 3_001_000);
        let record: Value = serde_json::from_str(&format!("{{{members}}}")).expect("JSON");
        assert_eq!((&record["score"], &record["threshold"]), (&3.5.into(), &Value::Null));
        assert_eq!((&record["took_us"], &record["verdict"]), (&3000.into(), &"anomaly".into()));
        assert_eq!((&record["probabilities"]["wear"], &record["local"]["score"]), (&0.75.into(), &1.into()));
    }
}
