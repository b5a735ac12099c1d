//! Installs model bundles, as a machine: brings, verifies and proves a bundle, tries it on live windows, then commits it or
//! rolls it back. One job at a time. Each step is saved before it takes effect, so the next process continues from there.
//! Until the commit, a restart serves the previous model. No I/O: `bundles.rs` performs the actions.
//!
//! ```text
//! bring (file │ HTTPS │ chunks by MQTT) ─▶ open ─▶ [Verified] ─▶ prove ─▶ [Trial] ─▶ swap ─▶ watch ─▶ [Steady]
//! ```
//!
//! A job ends with one write: what it changed, and its result (`Ended`), which stays until control has saved it too. So a kill
//! between the two loses no result.
//!
//! This file begins jobs and takes them from step to step; `bring.rs` receives bundles, `back.rs` ends jobs.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    action::JobNews,
    args::Install,
    command_state::CommandState,
    model_action::{Caller, ModelAction, ModelEvent, ModelKeys, ModelRules, Moment, Open, Opened, Proving, Undone},
    refusal::{Refusal, Why},
    tell::Outcome,
};
use crate::{
    flow::{
        order::Respond,
        verdict::{Said, Verdict},
    },
    limits,
    model::{
        manifest::Release,
        rollout::{Proof, Report},
        shelf::{Brings, Device, End, Ended, InstallJob, Saved, Shelf, Stage},
        slot::{Held, Origin, SlotStep},
    },
};

/// The phase of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// The bundle is being received; by chunks: bytes received so far, the last of them at `moved_ns`.
    Bringing { have: u64, told_ns: u64, began_ns: u64, moved_ns: u64 },
    /// The bundle is verified.
    Opening,
    /// The model answers golden cases.
    Proving,
    /// The trial runs; these groups of pipelines have not sent a verdict.
    Watched { groups: BTreeSet<usize>, since_ns: u64 },
}

/// What a job is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    /// A new bundle. Saved: another process continues it.
    Install(InstallJob),
    /// A model that served before. Not watched, not a new release, and not continued by another process.
    Back { command: String, respond: Option<Respond>, model: String, to: Origin },
}

/// The job in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Work {
    /// Unique in this process.
    pub(super) number: u64,
    pub(super) goal: Goal,
    pub(super) phase: Phase,
}

/// The machine.
#[derive(Debug)]
pub struct Models {
    pub(super) rules: ModelRules,
    pub(super) at: Moment,
    actions: Vec<ModelAction>,
    /// What is known of slots and jobs.
    pub(super) shelf: Shelf,
    /// Slots and jobs as they are on the disk, while a change of them is to be saved.
    before: Option<Box<Saved>>,
    pub(super) work: Option<Work>,
    /// The id of the local caller whose file is copied.
    pub(super) copying: Option<String>,
    /// The result of the last job, for status and D-Bus.
    pub(super) ended: Option<(String, CommandState, String)>,
    /// When `model.failed` was published last for a model without a previous one.
    pub(super) none_told_ns: Option<u64>,
    /// Jobs started in this process.
    begun: u64,
    pub(super) keys: ModelKeys,
    /// `dn/channel` is out of date.
    pub(super) stale: bool,
}

impl Phase {
    /// Why the phase is overdue, if it is; `trial_ns` is the minimum time of a trial.
    fn overdue(&self, trial_ns: u64, now_ns: u64) -> Option<String> {
        let over = |since_ns: u64, most: std::time::Duration| now_ns.saturating_sub(since_ns) > most.as_nanos() as u64;
        let hours = |most: std::time::Duration| most.as_secs() / 3600;
        match self {
            Phase::Bringing { moved_ns, .. } if over(*moved_ns, limits::BRING_SILENCE) => {
                Some(format!("no byte of it arrived for {} h", hours(limits::BRING_SILENCE)))
            }
            Phase::Bringing { began_ns, .. } if over(*began_ns, limits::BRING_MOST) => {
                Some(format!("it was not complete after {} h", hours(limits::BRING_MOST)))
            }
            Phase::Watched { since_ns, .. } if over(since_ns.saturating_add(trial_ns), limits::TRIAL_MOST) => {
                Some("too few windows to judge it; the same bundle may be installed again".into())
            }
            _ => None,
        }
    }
}

impl Work {
    /// The command that requested it, and where its result goes.
    pub(super) fn requester(&self) -> (&str, &Option<Respond>) {
        match &self.goal {
            Goal::Install(InstallJob { command, respond, .. }) | Goal::Back { command, respond, .. } => {
                (command, respond)
            }
        }
    }

    /// The model, once it is known.
    pub(super) fn model(&self) -> Option<&str> {
        match &self.goal {
            Goal::Install(InstallJob { stage: Stage::InSlot { model, .. }, .. }) | Goal::Back { model, .. } => {
                Some(model)
            }
            Goal::Install(_) => None,
        }
    }

    /// Whether a verdict on this bundle belongs to this work; the last one of a cancelled trial does not.
    fn is_about(&self, bundle: &str, shelf: &Shelf) -> bool {
        match &self.goal {
            Goal::Install(job) => job.sha256 == bundle,
            Goal::Back { model, to: Origin::Slot(id), .. } => {
                shelf.line(model).slot(*id).held().is_some_and(|held| held.sha256 == bundle)
            }
            Goal::Back { model, to: Origin::Factory, .. } => {
                shelf.line(model).held_bundles().all(|held| held != bundle)
            }
        }
    }
}

impl Models {
    /// With what the previous process left.
    pub fn new(rules: ModelRules, shelf: Shelf, keys: ModelKeys, at: Moment) -> Self {
        Self {
            rules,
            at,
            actions: Vec::new(),
            shelf,
            before: None,
            work: None,
            copying: None,
            ended: None,
            none_told_ns: None,
            begun: 0,
            keys,
            stale: false,
        }
    }

    /// What is to be done about this event, in this order.
    pub fn on(&mut self, at: Moment, event: ModelEvent) -> Vec<ModelAction> {
        self.at = at;
        if !matches!(event, ModelEvent::NotDone(..)) {
            self.before = None;
        }
        let quiet = matches!(event, ModelEvent::Tick);
        match event {
            ModelEvent::Began => self.began(),
            ModelEvent::Install(call, install, room) => self.install(Caller::Command(call), install, room, false),
            ModelEvent::RollBack(call, model) => self.roll_back(Caller::Command(call), model.as_deref()),
            ModelEvent::LocalFile(size, room) => self.local_file(size, room),
            ModelEvent::LocalRollBack(model) => self.roll_back(Caller::Local(self.local_id()), model.as_deref()),
            ModelEvent::Copied(id, copied) => self.copied(id, copied),
            ModelEvent::Chunk(sha256, offset, bytes) => self.chunk(&sha256, offset, &bytes),
            // A report about work that was cancelled meanwhile.
            ModelEvent::Found(number, _) | ModelEvent::Brought(number, _) | ModelEvent::Opened(number, _)
                if !self.is_current(number) => {}
            ModelEvent::Rollout(Report::Proven(number, _)) if !self.is_current(number) => {}
            ModelEvent::Found(_, there) => self.found(there),
            ModelEvent::Brought(_, Ok(())) => self.open_incoming(),
            ModelEvent::Opened(_, Ok(opened)) => self.opened(*opened),
            ModelEvent::Rollout(Report::Proven(_, Ok(proof))) => self.proven(proof),
            ModelEvent::Brought(_, Err(why)) | ModelEvent::Opened(_, Err(why)) => self.job_failed(End::Failed, &why),
            ModelEvent::Rollout(Report::Proven(_, Err(why))) => self.job_failed(End::Failed, &why.to_string()),
            ModelEvent::Rollout(Report::Verdict(verdict)) => self.judged(verdict),
            ModelEvent::Keys(keys) => self.keys = keys,
            ModelEvent::Stale(stale) => self.stale = stale,
            ModelEvent::Heard(command) => {
                if self.shelf.forget_ended(&command) {
                    self.save(Undone::Log(format!("the next start looks at the result of {command} again")));
                }
            }
            ModelEvent::Tick => self.tick(),
            ModelEvent::Leaving => self.leaving(),
            ModelEvent::NotDone(undone, why) => self.not_done(undone, &why),
        }
        if !quiet || !self.actions.is_empty() {
            self.act(ModelAction::Show(self.shown()));
        }
        std::mem::take(&mut self.actions)
    }

    pub(super) fn act(&mut self, action: ModelAction) {
        self.actions.push(action);
    }

    /// Changes slots or jobs; saved before anything that stands behind it. If it cannot be saved, they are as they were.
    pub(super) fn change(&mut self, undone: Undone, change: impl FnOnce(&mut Shelf)) {
        self.before = Some(Box::new(self.shelf.saved().clone()));
        change(&mut self.shelf);
        self.save(undone);
    }

    /// Saves slots and jobs.
    pub(super) fn save(&mut self, undone: Undone) {
        self.act(ModelAction::Save(self.shelf.to_save().map(Box::new).map_err(String::from), undone));
    }

    fn save_high(&mut self, then: String) {
        self.act(ModelAction::SaveHigh(self.shelf.high_to_save().map(Box::new).map_err(String::from), then));
    }

    /// Starts a job, in this phase. Returns its number.
    pub(super) fn begin_work(&mut self, goal: Goal, phase: Phase) -> u64 {
        self.begun += 1;
        self.ended = None;
        self.work = Some(Work { number: self.begun, goal, phase });
        self.begun
    }

    fn is_current(&self, number: u64) -> bool {
        self.work.as_ref().is_some_and(|work| work.number == number)
    }

    pub(super) fn local_id(&self) -> String {
        format!("local-{}", self.at.now_ns)
    }

    /// At the start: continues the install that the previous process did not end.
    fn began(&mut self) {
        let Some(mut job) = self.shelf.job().cloned() else { return self.sweep() };
        let Stage::InSlot { model, id, begun } = &mut job.stage else {
            tracing::info!(job = job.command, "going on with the installation of a model");
            return self.bring(job);
        };
        *begun += 1;
        let (model, id, begun) = (model.clone(), *id, *begun);
        if begun > limits::INSTALL_STARTS {
            let why = format!("the daemon ended {} times while it was installed", begun - 1);
            self.begin_work(Goal::Install(job), Phase::Opening);
            return self.job_failed(End::RolledBack, &why);
        }
        tracing::info!(job = job.command, "going on with the installation of a model");
        let mut line = self.shelf.line(&model);
        line.again(id);
        self.shelf.set_line(&model, line);
        self.shelf.set_job(Some(job.clone()));
        self.save(Undone::Log(format!("this attempt of job {} is not counted", job.command)));
        let sha256 = job.sha256.clone();
        let number = self.begin_work(Goal::Install(job), Phase::Opening);
        self.act(ModelAction::Open(number, sha256, Open::Stored));
    }

    /// A requested restart or reload does not count as a failed attempt of the install.
    fn leaving(&mut self) {
        let Some(mut job) = self.shelf.job().cloned() else { return };
        let Stage::InSlot { begun, .. } = &mut job.stage else { return };
        *begun = begun.saturating_sub(1);
        self.shelf.set_job(Some(job));
        self.save(Undone::Log("this restart counts as a failed attempt of the install".into()));
    }

    fn tick(&mut self) {
        let overdue = |work: &Work| work.phase.overdue(self.rules.trial_ns, self.at.now_ns);
        if let Some(why) = self.work.as_ref().and_then(overdue) {
            self.leave_job(&why);
        }
    }

    /// The requester gets this result at once.
    pub(super) fn answer(&mut self, caller: Caller, outcome: Outcome) {
        match caller {
            Caller::Command(call) => self.act(ModelAction::Done(call, outcome)),
            Caller::Local(id) => self.ended = Some((id, outcome.state, outcome.text)),
        }
    }

    /// An action failed: what it belongs to does not happen.
    fn not_done(&mut self, undone: Undone, why: &str) {
        if let Undone::Log(then) = &undone {
            return tracing::error!("{why}; {then}");
        }
        if let Some(before) = self.before.take() {
            self.shelf.undo(*before);
        }
        match undone {
            Undone::Begin(caller) => {
                self.work = None;
                self.answer(caller, Outcome::failed(why));
            }
            Undone::Step => {
                if let (Some(Work { goal: Goal::Install(job), .. }), Some(saved)) = (&mut self.work, self.shelf.job()) {
                    *job = saved.clone();
                }
                // A disk that is not writable is not the bundle's fault: it may be installed again.
                self.end_job(End::Failed, why, false);
            }
            Undone::Commit { command, respond, model } => {
                // The previous model is no longer in memory. The job is still on the disk: a restart tries it again.
                let text =
                    format!("the new model serves, but is not saved ({why}); a restart serves the previous model");
                tracing::error!("model {model}: {text}");
                self.tell_ended(Ended { command, end: End::Failed, text, respond });
            }
            Undone::Log(_) => {}
        }
    }

    /// The bundle is verified: checks whether it may be installed.
    fn opened(&mut self, opened: Opened) {
        let Some(Work { number, goal, phase }) = &mut self.work else { return };
        let number = *number;
        match goal {
            Goal::Back { to: Origin::Factory, .. } => {}
            Goal::Back { to: Origin::Slot(id), .. } => {
                let what = Proving::Opened(*id);
                *phase = Phase::Proving;
                self.act(ModelAction::Prove { number, what, watched: false });
            }
            Goal::Install(job) => {
                let job = job.clone();
                if let Err(why) = self.admitted(number, job, opened) {
                    self.job_failed(End::Failed, &why);
                }
            }
        }
    }

    fn admitted(&mut self, number: u64, job: InstallJob, Opened { release, signed_by }: Opened) -> Result<(), String> {
        let floor = self.rules.floors.get(&release.model);
        let floor = *floor.ok_or_else(|| format!("no pipeline uses a model called `{}`", release.model))?;
        let device = Device {
            class: self.rules.class.clone(),
            channel: self.rules.channel.clone(),
            now_ms: self.at.now_ms.max(self.shelf.newest_ms()),
            version: self.rules.version.clone(),
        };
        self.shelf.admit((&job.sha256, &release), &device, self.keys.expires_ms.clone()?, floor)?;
        let Release { model, version, seq, created_ms, .. } = release;
        let mut line = self.shelf.line(&model);
        let (id, begun) = match &job.stage {
            Stage::InSlot { id, begun, .. } => (*id, *begun),
            Stage::Bringing(_) => (line.stage(Held { sha256: job.sha256.clone(), version: version.clone(), seq }), 1),
        };
        line.step(id, SlotStep::Verified).map_err(|why| why.to_string())?;
        self.shelf.not_before(created_ms);
        self.save_high("a restart forgets the time of the newest signed bundle".into());
        if matches!(job.stage, Stage::Bringing(_)) {
            self.act(ModelAction::TakeIn(job.sha256.clone()));
        }
        let job = InstallJob { stage: Stage::InSlot { model: model.clone(), id, begun }, ..job };
        self.change(Undone::Step, |shelf| {
            shelf.set_line(&model, line);
            shelf.set_job(Some(job.clone()));
        });
        if let Some(work) = &mut self.work {
            (work.goal, work.phase) = (Goal::Install(job), Phase::Proving);
        }
        tracing::info!("model {model} {version}: its bundle is verified, signed by {}", signed_by.join(", "));
        self.act(ModelAction::Prove { number, what: Proving::Opened(id), watched: true });
        Ok(())
    }

    fn proven(&mut self, proof: Proof) {
        let Some(Work { number, goal, .. }) = &self.work else { return };
        let number = *number;
        if let Goal::Install(InstallJob { command, stage: Stage::InSlot { model, id, .. }, .. }) = goal {
            let (command, model, mut line) = (command.clone(), model.clone(), self.shelf.line(model));
            let stepped = line.step(*id, SlotStep::Proven).and_then(|()| line.step(*id, SlotStep::Trial));
            if let Err(why) = stepped {
                return self.job_failed(End::Failed, &why.to_string());
            }
            self.change(Undone::Step, |shelf| shelf.set_line(&model, line));
            self.tell_running(command, &format!("proven ({}); on trial", proof.text));
        }
        if let Some(work) = &mut self.work {
            work.phase = Phase::Watched { groups: proof.groups, since_ns: self.at.now_ns };
        }
        self.act(ModelAction::Offer(number));
    }

    fn judged(&mut self, verdict: Verdict) {
        let Verdict { group, bundle, said } = verdict;
        if let Said::Failing(why) = &said {
            return self.failing(&bundle, why);
        }
        let Some(work) = &mut self.work else { return };
        if !work.is_about(&bundle, &self.shelf) {
            // A late verdict on the previous job.
            return;
        }
        let Phase::Watched { groups, .. } = &mut work.phase else { return };
        match said {
            Said::Passed(text) => {
                groups.remove(&group);
                if groups.is_empty() {
                    self.job_done(text);
                }
            }
            Said::Bad(why) => self.job_failed(End::RolledBack, &why),
            Said::Swapped(_) | Said::Failing(_) => {}
        }
    }

    /// The trial passed: commits the model.
    fn job_done(&mut self, text: String) {
        let Some(work) = self.work.take() else { return };
        let Some(model) = work.model().map(str::to_owned) else { return };
        let (command, respond) = work.requester();
        let (command, respond) = (command.to_owned(), respond.clone());
        let mut line = self.shelf.line(&model);
        let mut fresh = None;
        match &work.goal {
            Goal::Back { to, .. } if line.serving() == *to => {}
            Goal::Back { .. } => {
                line.roll_back();
            }
            Goal::Install(InstallJob { stage: Stage::InSlot { id, .. }, .. }) => {
                if let Err(why) = line.step(*id, SlotStep::Steady) {
                    tracing::error!("model {model}: commit its slot: {why}");
                }
                fresh = line.slot(*id).held().cloned();
            }
            Goal::Install(_) => {}
        }
        let ended = Ended { command: command.clone(), end: End::Success, text: text.clone(), respond: respond.clone() };
        self.change(Undone::Commit { command, respond, model: model.clone() }, |shelf| {
            shelf.set_line(&model, line);
            shelf.set_job(None);
            shelf.end(ended.clone());
        });
        if let Some(held) = fresh {
            self.shelf.raise(&model, held.seq);
            self.save_high(format!("only the slot of model {model} records sequence {}", held.seq));
            tracing::info!("model {model} {} passed its trial: {text}", held.version);
        }
        self.sweep();
        self.tell_ended(ended);
        self.act(ModelAction::Tell(JobNews::Slots));
    }

    /// Removes bundles that no slot names, and partial bundles that no job continues.
    pub(super) fn sweep(&mut self) {
        if !self.shelf.is_unread() {
            let bundles = self.shelf.bundles().map(str::to_owned).collect();
            let incoming = self.shelf.job().map(|job| job.sha256.clone());
            self.act(ModelAction::Sweep(bundles, incoming));
        }
    }

    pub(super) fn tell_ended(&mut self, ended: Ended) {
        self.ended = Some((ended.command.clone(), ended.end.into(), ended.text.clone()));
        self.act(ModelAction::Tell(JobNews::Ended(None, ended)));
    }

    pub(super) fn tell_running(&mut self, command: String, text: &str) {
        self.act(ModelAction::Tell(JobNews::Running { kind: None, command, text: text.to_owned() }));
    }

    /// Logs newer models that `dn/channel` names.
    pub fn newest(&self, models: &BTreeMap<String, u64>) {
        for (model, seq) in models {
            let held = self.shelf.line(model).held().map_or(0, |held| held.seq);
            if *seq > held.max(self.rules.floors.get(model).copied().unwrap_or(u64::MAX)) {
                tracing::info!("model {model}: dn/channel names a newer sequence, {seq}; it is not installed yet");
            }
        }
    }

    /// Commands whose jobs go on, and jobs that ended and whose results control may not have saved.
    pub fn going(&self) -> (Option<&str>, Vec<Ended>) {
        (self.shelf.job().map(|job| job.command.as_str()), self.shelf.ended().cloned().collect())
    }
}

pub(super) fn refuse<T>(why: Why, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(why, text.into()))
}

/// How an install begins: its bundle is received.
pub(super) fn new_job(caller: &Caller, install: Install) -> InstallJob {
    let Install { sha256, size, url } = install;
    let (command, respond) = match caller {
        Caller::Command(call) => (call.id.clone(), call.respond.clone()),
        Caller::Local(id) => (id.clone(), None),
    };
    InstallJob { command, respond, sha256, size, stage: Stage::Bringing(url.map_or(Brings::Chunks, Brings::Https)) }
}

#[cfg(test)]
#[path = "models_tests.rs"]
mod tests;
