//! Handlers of `feedback`, `samples.pull` and `tape.pull`, and what comes back from the store of samples.

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
    config::Pipeline,
    flow::samples::{About, Answer, Ask, Feedback, Filter, Order, Refused, Said, Wanted},
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
