//! The handlers of commands: each pushes what is to be done. What only the machine knows is asked for (`Action::Ask`), and
//! `done` finishes the command with it.

use super::{
    CommandState, Control,
    action::{Action, Ask, Call, JobNews, Leave},
    args::{
        Acknowledge, AuditPull, Calibrate, ConfigGet, ConfigSet, Erase, Install, InstallSystem, KeysetUpdate, NoArgs,
        RollBack,
    },
    audit,
    candidate::Change,
    refusal::Why,
    tell::Outcome,
    trial::Asker,
};
use crate::{flow::order::LogQuery, limits, model::shelf::Ended};

impl Control {
    pub(super) fn ping(&mut self, call: Call, _: NoArgs) {
        let outcome = Outcome::done(serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"), "boot": self.rules.boot, "device": self.device(),
        }));
        self.finish(call, &outcome);
    }

    pub(super) fn status(&mut self, call: Call, _: NoArgs) {
        self.act(Action::Ask(call, Ask::Status));
    }

    pub(super) fn publish_report(&mut self, call: Call, _: NoArgs) {
        self.report();
        self.finish(call, &Outcome::new(CommandState::Success, "up/reported is published again"));
    }

    pub(super) fn config_get(&mut self, call: Call, which: ConfigGet) {
        let ask = if which == ConfigGet::Merged { Ask::Config } else { Ask::RemoteLayer };
        self.act(Action::Ask(call, ask));
    }

    pub(super) fn config_set(&mut self, call: Call, set: ConfigSet) {
        if self.live.is_some() {
            return self.finish(call, &Outcome::rejected(Why::Busy, "another change is not confirmed yet"));
        }
        self.act(Action::Compare(Change { asker: Asker::Command(call.id), set, respond: call.respond }));
    }

    pub(super) fn calibrate(&mut self, call: Call, Calibrate { pipeline: name }: Calibrate) {
        let outcome = match self.rules.pipelines.iter().position(|(pipeline, _)| *pipeline == name) {
            None => Outcome::rejected(Why::Invalid, format!("no pipeline is called `{name}`")),
            Some(place) if !self.rules.pipelines[place].1 => {
                Outcome::rejected(Why::Invalid, format!("the model of `{name}` is not calibrated"))
            }
            Some(place) => {
                self.act(Action::Recalibrate(place));
                Outcome::new(CommandState::Success, "the model learns again; up/e/model.calibrated reports the end")
            }
        };
        self.finish(call, &outcome);
    }

    pub(super) fn acknowledge(&mut self, call: Call, Acknowledge { alarm, id }: Acknowledge) {
        match self.rules.alarms.iter().position(|name| *name == alarm) {
            None => self.finish(call, &Outcome::rejected(Why::Invalid, format!("no alarm is called `{alarm}`"))),
            Some(place) => self.act(Action::Ask(call, Ask::Acknowledge(place, id))),
        }
    }

    pub(super) fn audit_pull(&mut self, call: Call, AuditPull { from }: AuditPull) {
        self.act(Action::Ask(call, Ask::Audit(from)));
    }

    pub(super) fn log_pull(&mut self, call: Call, query: LogQuery) {
        self.act(Action::Ask(call, Ask::Log(query)));
    }

    pub(super) fn restart(&mut self, call: Call, _: NoArgs) {
        // Answer on the response topic now: the next process does not know that topic.
        let outcome = Outcome::new(CommandState::Running, "draining");
        self.result(&call, &outcome);
        self.respond(&call, &outcome);
        self.leave(Leave::Restart);
    }

    pub(super) fn reboot(&mut self, call: Call, _: NoArgs) {
        self.act(Action::Ask(call, Ask::Reboot));
    }

    pub(super) fn erase(&mut self, call: Call, Erase { confirm }: Erase) {
        let device = self.device();
        if confirm != device {
            return self.finish(call, &Outcome::rejected(Why::Invalid, format!("`confirm` is not `{device}`")));
        }
        self.act(Action::Ask(call, Ask::Erase));
    }

    pub(super) fn model_install(&mut self, call: Call, install: Install) {
        self.act(Action::Install(call, install));
    }

    pub(super) fn model_rollback(&mut self, call: Call, back: RollBack) {
        self.act(Action::RollBack(call, back));
    }

    pub(super) fn os_install(&mut self, call: Call, install: InstallSystem) {
        self.act(Action::InstallSystem(call, install));
    }

    pub(super) fn keyset_update(&mut self, call: Call, update: KeysetUpdate) {
        self.act(Action::TakeKeys(call, update));
    }

    /// The result of what was asked for.
    pub(super) fn done(&mut self, call: Call, outcome: Outcome) {
        if !outcome.is_final() {
            // The next process finishes it, and does not know the response topic.
            self.result(&call, &outcome);
            return self.respond(&call, &outcome);
        }
        let bytes = outcome.result.as_ref().map_or(0, |result| result.to_string().len());
        if bytes > limits::RESULT_BYTES {
            let text = format!("{bytes} bytes are more than {}", limits::RESULT_BYTES);
            return self.finish(call, &Outcome::failed(text));
        }
        self.finish(call, &outcome);
    }

    /// Whether this command has its final result.
    fn is_over(&self, id: &str) -> bool {
        self.memory.known(id).is_some_and(|known| known.state.is_final())
    }

    /// A report about a job: control publishes it, and ends the command of a job that ended.
    pub(super) fn job(&mut self, news: JobNews) {
        let kind_of = |control: &Self, kind: Option<&str>, id: &str| {
            kind.map(str::to_owned).or_else(|| control.memory.known(id).map(|known| known.kind.clone()))
        };
        match news {
            JobNews::Running { command, .. } if self.is_over(&command) => {}
            JobNews::Running { kind, command, text } => {
                let Some(kind) = kind_of(self, kind, &command) else { return };
                self.result_about(&kind, &command, &Outcome::new(CommandState::Running, text), None);
            }
            // The memory, once it can be read, may say that the command is not finished.
            JobNews::Ended(..) if self.memory.unread().is_some() => {}
            JobNews::Ended(kind, Ended { command, end, text, respond }) => {
                // A job whose end could not be saved is repeated: its command has its result.
                let kind = kind_of(self, kind, &command);
                if kind.is_none() && !self.audited.contains(&command) {
                    let (state, text) = (CommandState::from(end).word(), audit::short(&text));
                    self.act(Action::Audit(audit::Act::Local { id: command.clone(), state, text }));
                }
                if let Some(kind) = kind.filter(|_| !self.is_over(&command)) {
                    let call = Call { kind, id: command.clone(), respond, ticket: None };
                    self.finish(call, &Outcome::new(end.into(), text));
                }
                self.act(Action::JobHeard(command));
            }
            JobNews::Answered(call, outcome) => self.answered(call, outcome),
            JobNews::Event(kind, subject, text) => self.event(kind, &subject, &text),
            JobNews::Slots => self.report(),
            JobNews::Blob(members) => self.act(Action::Publish(super::Record::Blob(members))),
        }
    }
}
