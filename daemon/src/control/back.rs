//! Rollback by command, fallback when the worker of the serving model fails repeatedly, and the end of a failed install.
//! A rollback never waits for an install: it cancels it.

use std::sync::Arc;

use super::{
    Outcome, State,
    jobs::{JobNews, Jobs, respond_to},
    models::{Phase, Refused, Work, refuse},
    request::Why,
};
use crate::{
    flow::{event::Kind, order::Respond},
    host::{Clock, Defence, fetch::Waits},
    limits,
    model::{
        rollout::{Request, Target},
        slot::{Line, Origin},
        store::{Brings, Job},
    },
};

/// The object of a rollback.
enum Back {
    /// The serving slot of this model.
    Model(String),
    /// Only the install in progress.
    Install,
}

impl Jobs {
    /// `model.rollback`. `None`: it is in progress.
    pub(super) fn roll_back(
        &mut self,
        id: &str,
        model: Option<String>,
        respond: Option<Respond>,
    ) -> Refused<Option<Outcome>> {
        let waits = |work: &Work| work.back_to.is_some() || !Defence::RollbackWins.stands();
        if self.models.work.as_ref().is_some_and(waits) {
            return refuse(Why::Busy, "another rollback is under way");
        }
        let back = self.what_goes_back(model.as_deref())?;
        let cancelled = self.cancel_install("cancelled by a rollback");
        let Back::Model(model) = back else {
            return Ok(Some(Outcome::new(State::Success, format!("{cancelled}; the previous model serves"))));
        };
        let respond = respond_to(respond);
        let to = self.models.store.line(&model).previous();
        self.go_to(way_back(id.into(), respond), &model, to);
        Ok(None)
    }

    fn what_goes_back(&self, model: Option<&str>) -> Refused<Back> {
        let is_asked = |name: &str| model.is_none_or(|model| model == name);
        let installing = self.models.work.as_ref();
        let on_trial = |work: &&Work| matches!(work.phase, Phase::Watched { .. });
        let target = |work: &Work| work.job.target.as_ref().map(|(model, _)| model.clone());
        // When its trial ends, the previous model serves.
        if installing.filter(on_trial).and_then(target).is_some_and(|model| is_asked(&model)) {
            return Ok(Back::Install);
        }
        let mut in_slots = self.models.store.lines().filter(|(name, line)| line.held().is_some() && is_asked(name));
        match (in_slots.next(), in_slots.next()) {
            (Some((model, _)), None) => Ok(Back::Model(model.clone())),
            (Some(_), Some(_)) => refuse(Why::Invalid, "say which `model`"),
            (None, _) if installing.is_some_and(|work| target(work).is_none_or(|model| is_asked(&model))) => {
                Ok(Back::Install)
            }
            (None, _) => refuse(Why::Invalid, "nothing was installed that could be taken back"),
        }
    }

    /// Cancels the install in progress, if there is one. Returns what was done, for a result.
    fn cancel_install(&mut self, why: &str) -> &'static str {
        let text = match self.models.work.as_ref().map(|work| &work.phase) {
            Some(Phase::Watched { .. }) => "the trial is ended",
            Some(_) => "the installation is cancelled",
            None => "nothing was under way",
        };
        self.leave_job(why);
        text
    }

    /// Starts a rollback to a model that served without a fault before.
    fn go_to(&mut self, job: Job, model: &str, to: Origin) {
        let line = self.models.store.line(model);
        tracing::info!("model {model}: rolling back to slot {}", to.word());
        self.models.ended = None;
        match to {
            Origin::Factory => {
                // The slot that stops serving; it names the model.
                let job = Job { target: Some((model.into(), line.spare())), ..job };
                let number = self.models.begin(job, Phase::Proving, Some(to));
                let target = Target::Factory(model.into());
                self.rollout.request(Request::Prove { number, target, watched: false });
            }
            Origin::Slot(id) => {
                let sha256 = line.slot(id).held().map(|held| held.sha256.clone()).unwrap_or_default();
                self.models.begin(Job { target: Some((model.into(), id)), ..job }, Phase::Opening, Some(to));
                self.open_stored(&sha256);
            }
        }
        self.show_models();
    }

    /// The model that serves fails repeatedly: rolls back to the previous model, if there is one.
    pub(super) fn failing(&mut self, bundle: &Arc<str>, why: &str) {
        if self.models.work.as_ref().is_some_and(|work| work.back_to.is_some()) {
            return;
        }
        let of = |line: &Line| line.held().is_some_and(|held| *held.sha256 == **bundle);
        let found = self.models.store.lines().find(|(_, line)| of(line)).map(|(name, _)| name.clone());
        let Some(model) = found else {
            // The configuration names this model: no previous model exists, and its worker is started again from time to time.
            let now_ns = Clock::boot_ns();
            if self.models.none_told_ns.is_some_and(|at| now_ns - at < limits::NO_MODEL_TOLD_NS) {
                return;
            }
            self.models.none_told_ns = Some(now_ns);
            return self.event(
                Kind::ModelFailed,
                "models",
                &format!(
                    "no previous model exists for sha256 {:.12}…, which fails: {why}; its worker is started again",
                    bundle
                ),
            );
        };
        self.cancel_install(&format!(
            "cancelled: the model that serves `{model}` fails ({why}), and the device rolls back"
        ));
        let mut line = self.models.store.line(&model);
        let Origin::Slot(id) = line.serving() else { return };
        let to = line.previous();
        line.reject(id, why);
        self.models.store.failed(bundle, why);
        // Save first: the next start must not start this model again.
        if let Err(why) = self.models.store.change(&model, line, None) {
            tracing::error!("model {model}: {why}; a restart may start the failing model again");
        }
        self.event(Kind::ModelRolledBack, &model, &format!("{why}, again and again; rolling back to {}", to.word()));
        self.go_to(way_back(format!("failing-{}", Clock::boot_ns()), None), &model, to);
    }

    /// The job failed: its model does not serve, or no longer serves.
    pub(super) fn job_failed(&mut self, state: State, why: &str) {
        let Some(work) = &mut self.models.work else { return };
        // Only a bundle that was tried here counts as failed here; a full disk is not the bundle's fault.
        let tried = !matches!(work.phase, Phase::Bringing { .. } | Phase::Opening) || state == State::RolledBack;
        self.end_install(state, why, tried);
    }

    /// Ends the job for a reason that is not the bundle's fault: the same bundle may be installed again.
    pub(super) fn leave_job(&mut self, why: &str) {
        let on_trial = self.models.work.as_ref().is_some_and(|work| matches!(work.phase, Phase::Watched { .. }));
        self.end_install(if on_trial { State::RolledBack } else { State::Failed }, why, false);
    }

    fn end_install(&mut self, state: State, why: &str, tried: bool) {
        let Some(work) = self.models.work.take() else { return };
        // Ends a fetch in progress.
        self.models.waits = Waits::default();
        let job = &work.job;
        if let Some((model, id)) = &job.target {
            self.rollout.request(Request::Back { model: model.clone(), why: why.to_owned() });
            let mut line = self.models.store.line(model);
            if work.back_to.is_none() {
                if tried {
                    self.models.store.failed(&job.sha256, why);
                }
                line.reject(*id, why);
            }
            if let Err(why) = self.models.store.change(model, line, None) {
                tracing::error!("model {model}: {why}; a restart repeats job {}", job.command);
            }
        } else {
            let path = self.models.store.incoming(&job.sha256);
            if path.is_file()
                && let Err(why) = std::fs::remove_file(&path)
            {
                tracing::warn!("remove {}: {why}", path.display());
            }
            if let Err(why) = self.models.store.set_job(None) {
                tracing::error!("{why}; a restart repeats job {}", job.command);
            }
            self.models.store.sweep();
        }
        tracing::warn!("model rejected: {why}; command {} ends as {}", job.command, state.word());
        self.end_job(job, state, why);
        self.tell(JobNews::Slots);
    }
}

fn way_back(command: String, respond: Option<(String, Option<Vec<u8>>)>) -> Job {
    Job { command, respond, sha256: String::new(), size: 0, brings: Brings::Nothing, target: None, begun: 1 }
}
