//! `feedback`, `samples.pull` and `tape.pull`: their arguments, their handlers, and what comes back from the store of samples.

use serde::Deserialize;
use serde_json::Value;

use super::{
    Control,
    action::{Action, Call, JobNews},
    args::{Args, parse},
    jobs::Jobs,
    memory::CommandState,
    refusal::{Refusal, Why, malformed, time_ms},
    tell::Outcome,
};
use crate::{
    config::Pipeline,
    flow::{
        Kept,
        samples::{About, Answer, Ask, Feedback, Filter, Label, Order, Refused, Said, Wanted},
    },
    limits,
};

/// Arguments of `samples.pull`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamplesPull(Ask);

/// Arguments of `tape.pull`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapePull(Ask);

impl Args for Feedback {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            alarm: Option<String>,
            id: Option<String>,
            window: Option<String>,
            label: Label,
            by: Option<String>,
            note: Option<String>,
        }
        let Raw { alarm, id, window, label, by, note } = parse(text)?;
        let about = match (alarm, window) {
            (Some(alarm), None) => About::Alarm(alarm, id),
            (None, Some(window)) if id.is_none() => About::Window(digest(&window)?),
            _ => return Err(malformed("args: either `alarm`, with or without `id`, or `window`")),
        };
        if let Label::Class(class) = &label {
            is_text("label", class, limits::LABEL_TEXT)?;
        }
        for (key, text, most) in [("by", &by, limits::LABEL_TEXT), ("note", &note, limits::LABEL_NOTE)] {
            text.as_ref().map_or(Ok(()), |text| is_text(key, text, most))?;
        }
        Ok(Self { about, label, by, note })
    }
}

impl Args for SamplesPull {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            pipeline: Option<String>,
            class: Option<String>,
            labelled: Option<bool>,
            since: Option<String>,
            until: Option<String>,
            kib_s: Option<u64>,
            max_kib: Option<u64>,
            cancel: Option<bool>,
        }
        let raw: Raw = parse(text)?;
        if raw.cancel == Some(true) {
            return Ok(Self(Ask::Cancel));
        }
        let class = raw.class.as_deref().map(|word| {
            let words = Kept::ALL.map(Kept::word).join("`, `");
            Kept::of(word).ok_or_else(|| malformed(format!("args: invalid class `{word}`: expected one of `{words}`")))
        });
        let time = |text: Option<String>| text.as_deref().map(time_ms).transpose();
        let filter = Filter {
            pipeline: raw.pipeline,
            class: class.transpose()?,
            labelled: raw.labelled.unwrap_or(false),
            since_ms: time(raw.since)?,
            until_ms: time(raw.until)?,
        };
        pull(Wanted::Samples(filter), raw.kib_s, raw.max_kib).map(Self)
    }
}

impl Args for TapePull {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            tape: Option<String>,
            alarm: Option<String>,
            kib_s: Option<u64>,
            max_kib: Option<u64>,
        }
        let Raw { tape, alarm, kib_s, max_kib } = parse(text)?;
        pull(Wanted::Tape { name: tape, alarm }, kib_s, max_kib).map(Self)
    }
}

fn pull(wanted: Wanted, kib_s: Option<u64>, max_kib: Option<u64>) -> Result<Ask, Refusal> {
    let bound = |key: &str, kib: Option<u64>, most: u64| match kib {
        Some(n) if !(1..=most).contains(&n) => Err(malformed(format!("args: {key} is not within 1 to {most}"))),
        kib => Ok(kib.map(|kib| kib << 10)),
    };
    Ok(Ask::Pull { wanted, bytes_s: bound("kib_s", kib_s, 1024)?, most: bound("max_kib", max_kib, 1 << 20)? })
}

/// The digits of `sha256:…`.
fn digest(text: &str) -> Result<String, Refusal> {
    let hex = text.strip_prefix("sha256:").unwrap_or("");
    if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(malformed("args: window is `sha256:` with 64 of 0-9 a-f, as `win` of a prediction"));
    }
    Ok(hex.to_owned())
}

fn is_text(key: &str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.is_empty() || text.chars().count() > most || text.chars().any(char::is_control) {
        return Err(malformed(format!("args: {key} has 1 to {most} printable characters")));
    }
    Ok(())
}

impl Control {
    pub(super) fn feedback(&mut self, call: Call, feedback: Feedback) {
        if let About::Alarm(alarm, _) = &feedback.about
            && !self.rules.alarms.contains(alarm)
        {
            return self.finish(call, &Outcome::rejected(Why::Invalid, format!("no alarm is called `{alarm}`")));
        }
        self.act(Action::Samples(call, Ask::Feedback(feedback)));
    }

    pub(super) fn samples_pull(&mut self, call: Call, SamplesPull(ask): SamplesPull) {
        if let Ask::Pull { wanted: Wanted::Samples(Filter { pipeline: Some(name), .. }), .. } = &ask
            && !self.rules.pipelines.iter().any(|(pipeline, _)| pipeline == name)
        {
            return self.finish(call, &Outcome::rejected(Why::Invalid, format!("no pipeline is called `{name}`")));
        }
        self.act(Action::Samples(call, ask));
    }

    pub(super) fn tape_pull(&mut self, call: Call, TapePull(ask): TapePull) {
        self.act(Action::Samples(call, ask));
    }

    /// What the store answered. It may answer a second time after a restart: the first result counts.
    pub(super) fn answered(&mut self, call: Call, outcome: Outcome) {
        let id = call.id.clone();
        if !self.memory.known(&id).is_some_and(|known| known.state.is_final()) {
            self.done(call, outcome);
        }
        self.act(Action::JobHeard(id));
    }
}

impl Jobs {
    /// Hands an order to the store of samples. Returns the command where it does not take it.
    pub(super) fn order_samples(&self, call: Call, ask: Ask) -> Option<(Call, Outcome)> {
        let Call { kind, id, respond, .. } = call.clone();
        let needs = match &ask {
            Ask::Pull { wanted: Wanted::Tape { .. }, .. } => "no alarm saves a tape on this device (alarm.NAME.tape)",
            _ => "no window is kept on this device (samples.max_mib)",
        };
        let Some(desk) = &self.samples else {
            return Some((call, Outcome::rejected(Why::Invalid, needs)));
        };
        let taken = desk.order(Order::Ask { kind, id, respond, ask });
        (!taken).then(|| (call, Outcome::rejected(Why::Busy, "the store of samples has not taken the last orders yet")))
    }

    /// Takes what the store of samples answered.
    pub(super) fn hear_samples(&mut self) {
        while let Some(Answer { kind, id, respond, said }) = self.samples.as_ref().and_then(|desk| desk.answer()) {
            let call = Call { kind, id, respond, ticket: None };
            let outcome = match said {
                Said::Running(text) => {
                    self.tell(JobNews::Running { kind: None, command: call.id, text });
                    continue;
                }
                Said::Done(text, result) => {
                    self.take_label(&result);
                    Outcome { result: Some(result), ..Outcome::new(CommandState::Success, text) }
                }
                Said::Refused(Refused::Invalid, text) => Outcome::rejected(Why::Invalid, text),
                Said::Refused(Refused::Busy, text) => Outcome::rejected(Why::Busy, text),
                Said::Failed(text) => Outcome::failed(text),
            };
            self.tell(JobNews::Answered(call, outcome));
        }
    }

    /// A label `false`: the threshold of a budget of false alarms may move.
    fn take_label(&self, result: &Value) {
        let of = |pipeline: &Pipeline| result["pipeline"] == pipeline.name.as_str() && pipeline.budget.is_some();
        let place = self.config.pipelines.iter().position(of).filter(|_| result["label"] == false);
        if let (Some(place), Some(score)) = (place, result["score"].as_f64()) {
            let sha256 = result["lineage"]["sha256"].as_str().unwrap_or_default();
            self.board.false_alarm(place, score as f32, sha256.to_owned(), limits::FALSE_ALARMS_WAITING);
        }
    }

    /// The result of this command is saved.
    pub(super) fn samples_heard(&self, command: &str) {
        if let Some(desk) = &self.samples {
            desk.order(Order::Heard(command.to_owned()));
        }
    }

    /// The pull that goes on, for `Going`.
    pub(super) fn pull_left(&self) -> Option<&str> {
        self.samples.as_ref()?.left.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn feedback(args: &Value) -> Result<Feedback, Refusal> {
        Feedback::read(&args.to_string())
    }

    #[test]
    fn feedback_is_about_an_alarm_or_a_window_and_its_label_is_a_truth_or_a_class() {
        let win = format!("sha256:{}", "0a".repeat(32));
        let read = feedback(&json!({"window": win, "label": "cavitation", "by": "ana", "note": "heard it"}));
        let read = read.expect("valid");
        assert_eq!((read.about, read.label), (About::Window("0a".repeat(32)), Label::Class("cavitation".into())));
        let read = feedback(&json!({"alarm": "high", "id": "b-1", "label": false})).expect("valid");
        assert_eq!((read.about, read.label), (About::Alarm("high".into(), Some("b-1".into())), Label::Truth(false)));
        for wrong in [
            json!({"alarm": "high"}),
            json!({"label": true}),
            json!({"alarm": "high", "window": win, "label": true}),
            json!({"window": win, "id": "b-1", "label": true}),
            json!({"window": "0a".repeat(32), "label": true}),
            json!({"alarm": "high", "label": 1}),
            json!({"alarm": "high", "label": ""}),
            json!({"alarm": "high", "label": "a\nb"}),
            json!({"alarm": "high", "label": true, "by": "x".repeat(65)}),
            json!({"alarm": "high", "label": true, "sure": true}),
        ] {
            assert!(feedback(&wrong).is_err_and(|refused| refused.0 == Why::Malformed), "{wrong}");
        }
    }

    #[test]
    fn pulls_have_bounds_and_times_in_utc() {
        let samples = |args: Value| SamplesPull::read(&args.to_string());
        let all = samples(
            json!({"class": "alarm", "labelled": true, "since": "2026-01-01T00:00:00Z", "kib_s": 4, "max_kib": 64}),
        );
        let Ok(SamplesPull(Ask::Pull { wanted: Wanted::Samples(filter), bytes_s, most })) = all else {
            panic!("valid")
        };
        assert_eq!(
            (filter.class, filter.labelled, filter.since_ms),
            (Some(Kept::Alarm), true, Some(1_767_225_600_000))
        );
        assert_eq!((bytes_s, most), (Some(4096), Some(65_536)));
        assert_eq!(samples(json!({"cancel": true})), Ok(SamplesPull(Ask::Cancel)));
        for wrong in [
            json!({"class": "all"}),
            json!({"kib_s": 0}),
            json!({"kib_s": 1025}),
            json!({"max_kib": 0}),
            json!({"since": "now"}),
        ] {
            assert!(samples(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(
            TapePull::read("{\"tape\":\"a.tape\",\"alarm\":\"high\"}").is_ok() && TapePull::read("{\"x\":1}").is_err()
        );
    }
}
