//! Handlers of `feedback`, `samples.pull` and `tape.pull`, and what comes back from the store of samples.

use serde::Deserialize;
use serde_json::Value;

use super::{
    Control,
    action::{Action, Call, JobNews},
    command_state::CommandState,
    jobs::Jobs,
    refusal::Why,
    samples_args::{SamplesPull, TapePull},
    tell::Outcome,
};
use crate::{
    flow::{
        board::LabelSaid,
        samples::{About, Answer, Ask, Feedback, Filter, Label, Order, Refused, Said, Wanted},
    },
    limits,
};

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

    /// The engine of its pipeline hears of a label: a threshold may move by it, and a candidate is compared with it.
    fn take_label(&self, result: &Value) {
        let names = self.config.pipelines.iter().map(|pipeline| pipeline.name.as_str());
        if let Some((place, said)) = said(names, result) {
            self.board.label(place, said, limits::LABELS_WAITING);
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

/// The label that the result of a command says was stored, and the place of its pipeline; `None`: it was another command.
fn said<'a>(mut pipelines: impl Iterator<Item = &'a str>, result: &Value) -> Option<(usize, LabelSaid)> {
    let label = Label::deserialize(&result["label"]).ok()?;
    let place = pipelines.position(|name| result["pipeline"] == name)?;
    let win = result["win"].as_str()?.strip_prefix("sha256:")?.to_owned();
    let score = result["score"].as_f64().map(|score| score as f32);
    let sha256 = result["lineage"]["sha256"].as_str().unwrap_or_default().to_owned();
    Some((place, LabelSaid { label, win, score, sha256 }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stored_label_goes_to_its_pipeline_and_no_other_result_is_a_label() {
        let result =
            json!({"label": false, "win": "sha256:0f", "pipeline": "b", "lineage": {"sha256": "ab"}, "score": 1.5});
        let expected =
            LabelSaid { label: Label::Truth(false), win: "0f".into(), score: Some(1.5), sha256: "ab".into() };
        let said = |result: &Value| said(["a", "b"].into_iter(), result);
        assert_eq!(said(&result), Some((1, expected)));
        for (member, other) in [("pipeline", json!("c")), ("label", json!(null)), ("win", json!(null))] {
            let mut result = result.clone();
            result[member] = other;
            assert_eq!(said(&result), None, "{member}");
        }
        assert_eq!(said(&json!({"sha256": "ab", "size": 1, "files": 1})), None, "a pull");
    }
}
