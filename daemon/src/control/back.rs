//! The machine of models, when a job goes back: rollback by command, fallback when the worker of the serving model fails
//! repeatedly, and the end of a failed install. A rollback never waits for an install: it cancels it.

use std::sync::Arc;

use super::{
    action::JobNews,
    command_state::CommandState,
    model_action::{Caller, ModelAction, Open, Proving, Undone},
    models::{Goal, Models, Phase, Work, refuse},
    refusal::{Refusal, Why},
    tell::Outcome,
};
use crate::{
    flow::{event::Kind, order::Respond},
    host::Defence,
    limits,
    model::{
        shelf::{End, Ended, InstallJob, Stage},
        slot::{ModelSlots, Origin},
    },
};

/// The object of a rollback.
enum Back {
    /// The serving slot of this model.
    Model(String),
    /// Only the install in progress.
    Install,
}

impl Models {
    /// `model.rollback`, or a local request.
    pub(super) fn roll_back(&mut self, caller: Caller, model: Option<&str>) {
        let back = match self.what_goes_back(model) {
            Ok(back) => back,
            Err(refusal) => return self.answer(caller, Outcome::refused(refusal)),
        };
        let (command, respond) = match caller {
            Caller::Command(call) => (call.id, call.respond),
            Caller::Local(id) => (id, None),
        };
        match back {
            Back::Model(model) => {
                self.leave_job("cancelled by a rollback");
                let to = self.shelf.line(&model).previous();
                self.go_to(command, respond, model, to);
            }
            Back::Install => {
                let text = match self.work.as_ref().map(|work| &work.phase) {
                    Some(Phase::Watched { .. }) => "the trial is ended",
                    Some(_) => "the installation is cancelled",
                    None => "nothing was under way",
                };
                let text = format!("{text}; the previous model serves");
                let ended = Ended { command, end: End::Success, text, respond };
                // Both results are saved with one write.
                self.shelf.end(ended.clone());
                self.leave_job("cancelled by a rollback");
                self.tell_ended(ended);
            }
        }
    }

    fn what_goes_back(&self, model: Option<&str>) -> Result<Back, Refusal> {
        let rolls_back = |work: &Work| matches!(work.goal, Goal::Back { .. }) || !Defence::RollbackWins.stands();
        if self.work.as_ref().is_some_and(rolls_back) {
            return refuse(Why::Busy, "another rollback is under way");
        }
        let is_asked = |name: &str| model.is_none_or(|model| model == name);
        let installing = self.work.as_ref();
        let on_trial = |work: &&Work| matches!(work.phase, Phase::Watched { .. });
        // When its trial ends, the previous model serves.
        if installing.filter(on_trial).and_then(Work::model).is_some_and(is_asked) {
            return Ok(Back::Install);
        }
        let mut in_slots = self.shelf.lines().filter(|(name, line)| line.held().is_some() && is_asked(name));
        match (in_slots.next(), in_slots.next()) {
            (Some((model, _)), None) => Ok(Back::Model(model.clone())),
            (Some(_), Some(_)) => refuse(Why::Invalid, "say which `model`"),
            (None, _) if installing.is_some_and(|work| work.model().is_none_or(is_asked)) => Ok(Back::Install),
            (None, _) => refuse(Why::Invalid, "nothing was installed that could be taken back"),
        }
    }

    /// Starts a rollback to a model that served without a fault before.
    fn go_to(&mut self, command: String, respond: Option<Respond>, model: String, to: Origin) {
        tracing::info!("model {model}: rolling back to slot {}", to.word());
        let line = self.shelf.line(&model);
        let goal = Goal::Back { command, respond, model: model.clone(), to };
        match to {
            Origin::Factory => {
                let number = self.begin_work(goal, Phase::Proving);
                self.act(ModelAction::Prove { number, what: Proving::Factory(model), watched: false });
            }
            Origin::Slot(id) => {
                let sha256 = line.slot(id).held().map(|held| held.sha256.clone()).unwrap_or_default();
                let number = self.begin_work(goal, Phase::Opening);
                self.act(ModelAction::Open(number, sha256, Open::Served));
            }
        }
    }

    /// The model that serves fails repeatedly: rolls back to the previous model, if there is one.
    pub(super) fn failing(&mut self, bundle: &Arc<str>, why: &str) {
        if matches!(self.work, Some(Work { goal: Goal::Back { .. }, .. })) {
            return;
        }
        let of = |line: &ModelSlots| line.held().is_some_and(|held| *held.sha256 == **bundle);
        let found = self.shelf.lines().find(|(_, line)| of(line)).map(|(name, _)| name.clone());
        let Some(model) = found else { return self.none_to_go_back_to(bundle, why) };
        self.leave_job(&format!("cancelled: the model that serves `{model}` fails ({why}), and the device rolls back"));
        let mut line = self.shelf.line(&model);
        let Origin::Slot(id) = line.serving() else { return };
        let to = line.previous();
        line.reject(id, why);
        self.shelf.failed(bundle, why);
        self.shelf.set_line(&model, line);
        // Save first: the next start must not start this model again.
        self.save(Undone::Log(format!("a restart may start the failing model {model} again")));
        let text = format!("{why}, again and again; rolling back to {}", to.word());
        self.event(Kind::ModelRolledBack, model.clone(), text);
        self.go_to(format!("failing-{}", self.at.now_ns), None, model, to);
    }

    /// The configuration names this model: no previous model exists, and its worker is started again from time to time.
    fn none_to_go_back_to(&mut self, bundle: &str, why: &str) {
        let now_ns = self.at.now_ns;
        if self.none_told_ns.is_some_and(|at| now_ns - at < limits::NO_MODEL_TOLD_NS) {
            return;
        }
        self.none_told_ns = Some(now_ns);
        let text = format!(
            "no previous model exists for sha256 {:.12}…, which fails: {why}; its worker is started again",
            bundle
        );
        self.event(Kind::ModelFailed, "models".into(), text);
    }

    fn event(&mut self, kind: Kind, subject: String, text: String) {
        self.act(ModelAction::Tell(JobNews::Event(kind, subject, text)));
    }

    /// The job failed: its model does not serve, or no longer serves.
    pub(super) fn job_failed(&mut self, end: End, why: &str) {
        let Some(work) = &self.work else { return };
        // Only a bundle that was tried here counts as failed here; a full disk is not the bundle's fault.
        let tried = !matches!(work.phase, Phase::Bringing { .. } | Phase::Opening) || end == End::RolledBack;
        self.end_job(end, why, tried);
    }

    /// Ends the job for a reason that is not the bundle's fault: the same bundle may be installed again.
    pub(super) fn leave_job(&mut self, why: &str) {
        let on_trial = self.work.as_ref().is_some_and(|work| matches!(work.phase, Phase::Watched { .. }));
        self.end_job(if on_trial { End::RolledBack } else { End::Failed }, why, false);
    }

    /// `tried`: the bundle failed here, and is not tried again.
    pub(super) fn end_job(&mut self, end: End, why: &str, tried: bool) {
        let Some(work) = self.work.take() else { return };
        self.act(ModelAction::StopFetch);
        if let Some(model) = work.model() {
            self.act(ModelAction::Back(model.to_owned(), why.to_owned()));
        }
        let (command, respond) = work.requester();
        let ended = Ended { command: command.to_owned(), end, text: why.to_owned(), respond: respond.clone() };
        match &work.goal {
            Goal::Install(InstallJob { sha256, stage: Stage::InSlot { model, id, .. }, .. }) => {
                let mut line = self.shelf.line(model);
                line.reject(*id, why);
                self.shelf.set_line(model, line);
                if tried {
                    self.shelf.failed(sha256, why);
                }
            }
            Goal::Install(InstallJob { sha256, .. }) => self.act(ModelAction::RemoveIncoming(sha256.clone())),
            Goal::Back { .. } => {}
        }
        if matches!(work.goal, Goal::Install(_)) {
            self.shelf.set_job(None);
        }
        self.shelf.end(ended.clone());
        self.save(Undone::Log(format!("a restart repeats job {command}")));
        if work.model().is_none() {
            self.sweep();
        }
        tracing::warn!("bundle of command {command} rejected ({}): {why}", CommandState::from(end).word());
        self.tell_ended(ended);
        self.act(ModelAction::Tell(JobNews::Slots));
    }
}
