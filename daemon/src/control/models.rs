//! Installs model bundles: brings, verifies and proves a bundle, tries it on live windows, then commits it or rolls it back.
//! One job at a time. Each step is saved before it takes effect, so the next process continues from there. Until the commit,
//! a restart serves the previous model.
//!
//! ```text
//! bring (file │ HTTPS │ chunks by MQTT) ─▶ open ─▶ [Verified] ─▶ prove ─▶ [Proven] ─▶ [Trial] ─▶ swap ─▶ watch ─▶ [Steady]
//! ```
//!
//! Bring and open run in a thread each, which reports its result as `News`. Prove, swap and watch belong to the rollout, which
//! is requested and reports in the words of `model::rollout`.

use std::{collections::BTreeSet, fs::File, os::fd::OwnedFd};

use super::{
    Outcome, State,
    command::Install,
    jobs::{JobNews, Jobs, respond_of, respond_to},
    request::{Refusal, Why},
    system::{SystemEvent, Word},
};
use crate::{
    config::Config,
    flow::{
        order::Respond,
        verdict::{Said, Verdict},
    },
    host::{Clock, fetch::Waits},
    limits,
    model::{
        bundle::Bundle,
        rollout::{Proof, Report, Request, Target},
        slot::{Held, Origin, Step},
        store::{Brings, Device, Job, Store},
    },
};

/// A report of a thread.
pub(super) enum News {
    /// The bundle is received, or will not be. These reports begin with the number of their work: another one may have
    /// started meanwhile.
    Brought(u64, Result<(), String>),
    /// The file of a local caller was copied, for this job: its digest and size.
    Copied(String, Result<(String, u64), String>),
    /// A bundle was read and verified from the first byte to the last.
    Opened(u64, Result<Box<Bundle>, String>),
    /// A report about an operating system.
    System(Word),
}

/// A request of a local caller, by D-Bus.
pub enum Local {
    /// Install this file.
    Install(OwnedFd),
    /// Roll back.
    RollBack(String),
}

/// The phase of a job.
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

/// The job in progress.
pub(super) struct Work {
    pub(super) job: Job,
    /// Unique in this process.
    pub(super) number: u64,
    pub(super) phase: Phase,
    /// The target of a rollback: not watched, and not a new release.
    pub(super) back_to: Option<Origin>,
}

/// Control's state for models.
pub(super) struct Models {
    pub(super) store: Store,
    pub(super) work: Option<Work>,
    /// The result of the last job, for status and D-Bus.
    pub(super) ended: Option<(String, State, String)>,
    /// When `model.failed` was published last for a model without a previous one.
    pub(super) none_told_ns: Option<u64>,
    /// Jobs started in this process.
    begun: u64,
    /// Dropping it ends a fetch.
    pub(super) waits: Waits,
}

impl Models {
    pub(super) fn new(store: Store) -> Self {
        let (work, ended, waits) = (None, None, Waits::default());
        Self { store, work, ended, none_told_ns: None, begun: 0, waits }
    }

    /// Starts a job, in this phase.
    pub(super) fn begin(&mut self, job: Job, phase: Phase, back_to: Option<Origin>) -> u64 {
        self.begun += 1;
        self.work = Some(Work { job, number: self.begun, phase, back_to });
        self.begun
    }

    /// The command of the job in progress.
    pub(super) fn command(&self) -> Option<&str> {
        self.store.job().map(|job| job.command.as_str())
    }
}

pub(super) type Refused<T> = Result<T, Refusal>;

pub(super) fn refuse<T>(why: Why, text: impl Into<String>) -> Refused<T> {
    Err(Refusal(why, text.into()))
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
    /// Whether a verdict on this bundle belongs to this work; the last one of a cancelled trial does not.
    fn is_about(&self, bundle: &str, store: &Store) -> bool {
        let line = self.job.target.as_ref().map(|(model, _)| store.line(model)).unwrap_or_default();
        match self.back_to {
            None => self.job.sha256 == bundle,
            Some(Origin::Slot(id)) => line.slot(id).held().is_some_and(|held| held.sha256 == bundle),
            Some(Origin::Factory) => line.held_bundles().all(|held| held != bundle),
        }
    }
}

impl Jobs {
    /// At the start: continues the job that the previous process did not end.
    pub(super) fn take_up_models(&mut self) {
        if let Some(mut job) = self.models.store.job().cloned() {
            // A bundle that is still being received cannot prevent a start, so only later steps are counted.
            job.begun += u32::from(job.target.is_some());
            if job.begun > limits::INSTALL_STARTS {
                let why = format!("the daemon ended {} times while it was installed", job.begun - 1);
                self.models.begin(job, Phase::Opening, None);
                self.job_failed(State::RolledBack, &why);
            } else {
                tracing::info!(job = job.command, "going on with the installation of a model");
                if let Err(why) = self.models.store.set_job(Some(job.clone())) {
                    tracing::error!("{why}; this attempt of job {} is not counted", job.command);
                }
                match job.target.clone() {
                    None => self.bring(job),
                    Some((model, id)) => {
                        let sha256 = job.sha256.clone();
                        let mut line = self.models.store.line(&model);
                        line.again(id);
                        if let Err(why) = self.models.store.change(&model, line, Some(job.clone())) {
                            tracing::error!("model {model}: {why}; this attempt of the install is not counted");
                        }
                        self.models.begin(job, Phase::Opening, None);
                        self.open_stored(&sha256);
                    }
                }
            }
        } else {
            self.models.store.sweep();
        }
        self.show_models();
    }

    /// At the end of the process: a requested restart or reload does not count as a failed attempt of the install.
    pub(super) fn leave_models(&mut self) {
        let Some(mut job) = self.models.store.job().filter(|job| job.target.is_some()).cloned() else {
            return;
        };
        job.begun = job.begun.saturating_sub(1);
        if let Err(why) = self.models.store.set_job(Some(job)) {
            tracing::warn!("{why}; this restart counts as a failed attempt of the install");
        }
    }

    /// `model.install`. `None`: it is in progress.
    pub(super) fn install(&mut self, id: &str, install: Install, respond: Option<Respond>) -> Refused<Option<Outcome>> {
        self.make_way()?;
        self.keys_for_models().map_err(|why| Refusal(Why::Invalid, why))?;
        if let Some(why) = self.models.store.why_failed(&install.sha256) {
            return refuse(Why::Invalid, format!("it failed here before ({why}); a new release is needed"));
        }
        let serves = self.models.store.lines().any(|(_, line)| line.held().is_some_and(|h| h.sha256 == install.sha256));
        if serves {
            return Ok(Some(Outcome::new(State::Success, "it serves already")));
        }
        self.room_for(install.size).map_err(|why| Refusal(Why::Invalid, why))?;
        let brings = install.url.map_or(Brings::Chunks, Brings::Https);
        self.begin(id, install.sha256, install.size, brings, respond)
    }

    fn begin(
        &mut self,
        command: &str,
        sha256: String,
        size: u64,
        brings: Brings,
        respond: Option<Respond>,
    ) -> Refused<Option<Outcome>> {
        let respond = respond_to(respond);
        let job = Job { command: command.into(), respond, sha256, size, brings, target: None, begun: 1 };
        if let Err(why) = self.models.store.set_job(Some(job.clone())) {
            return Ok(Some(Outcome::new(State::Failed, why)));
        }
        self.models.ended = None;
        let text = if job.brings == Brings::Chunks { "waiting for its chunks" } else { "it is brought" };
        self.tell_job(&job, text);
        self.bring(job);
        Ok(None)
    }

    /// Handles a request of a local caller, or a report of a thread or of the rollout.
    pub(super) fn look_at_models(&mut self, now_ns: u64) {
        while let Ok(ask) = self.local.try_recv() {
            self.asked_locally(ask);
        }
        while let Ok(news) = self.reports.1.try_recv() {
            self.heard(news);
        }
        while let Some(report) = self.rollout.report() {
            self.rollout_reported(report, now_ns);
        }
        let models = &self.config.models;
        let trial_ns = (models.shadow_s + models.trial_s) * 1_000_000_000;
        let late = self.models.work.as_ref().and_then(|work| work.phase.overdue(trial_ns, now_ns));
        if let Some(why) = late {
            self.leave_job(&why);
        }
    }

    fn asked_locally(&mut self, ask: Local) {
        let id = format!("local-{}", Clock::boot_ns());
        let outcome = match ask {
            Local::RollBack(model) => self.roll_back(&id, Some(model).filter(|m| !m.is_empty()), None),
            Local::Install(fd) => self.copy_file(&id, File::from(fd)),
        };
        self.local_came(&id, outcome);
    }

    fn local_came(&mut self, id: &str, outcome: Refused<Option<Outcome>>) {
        let id = id.to_owned();
        match outcome {
            Ok(None) => {}
            Ok(Some(outcome)) => self.models.ended = Some((id, outcome.state, outcome.text)),
            Err(Refusal(_, text)) => self.models.ended = Some((id, State::Rejected, text)),
        }
        self.show_models();
    }

    pub(super) fn open_stored(&mut self, sha256: &str) {
        let Some(Work { number, back_to, .. }) = &self.models.work else { return };
        let (number, sha256) = (*number, sha256.to_owned());
        let file = self.models.store.open_bundle(&sha256);
        // A bundle that served here before stays trusted. A new bundle is verified with the keyset in use.
        let keys = if back_to.is_none() { self.keys_for_models().cloned().map(Some) } else { Ok(None) };
        self.long(
            move || Bundle::open_asked(&file?, &sha256, keys?.as_ref()).map(Box::new),
            move |opened| News::Opened(number, opened),
        );
    }

    pub(super) fn set_phase(&mut self, phase: Phase) {
        if let Some(work) = &mut self.models.work {
            work.phase = phase;
        }
        self.show_models();
    }

    fn heard(&mut self, news: News) {
        match news {
            // A report about work that was cancelled meanwhile.
            News::Brought(number, _) | News::Opened(number, _) if !self.is_current(number) => {}
            News::Brought(_, Ok(())) => {
                if let Some(work) = &self.models.work {
                    self.open(self.models.store.incoming(&work.job.sha256));
                }
            }
            News::Copied(id, copied) => {
                let outcome =
                    copied.map_err(|why| Refusal(Why::Invalid, why)).and_then(|copy| self.install_copy(&id, copy));
                self.local_came(&id, outcome);
            }
            News::Opened(_, Ok(bundle)) => {
                if let Err(why) = self.opened(bundle) {
                    self.job_failed(State::Failed, &why);
                }
            }
            News::Brought(_, Err(why)) | News::Opened(_, Err(why)) => self.job_failed(State::Failed, &why),
            News::System(word) => {
                self.system(SystemEvent::Report(word));
            }
        }
        self.show_models();
    }

    fn rollout_reported(&mut self, report: Report, now_ns: u64) {
        match report {
            // A report about work that was cancelled meanwhile.
            Report::Proven(number, _) if !self.is_current(number) => {}
            Report::Proven(number, proof) => {
                if let Err(why) = proof.and_then(|proof| self.proven(number, proof, now_ns)) {
                    self.job_failed(State::Failed, &why);
                }
            }
            Report::Verdict(verdict) => self.judged(verdict),
        }
        self.show_models();
    }

    fn is_current(&self, number: u64) -> bool {
        self.models.work.as_ref().is_some_and(|work| work.number == number)
    }

    /// The bundle is verified: checks whether it may be installed.
    fn opened(&mut self, bundle: Box<Bundle>) -> Result<(), String> {
        let Some(work) = &mut self.models.work else { return Ok(()) };
        if let Some(Origin::Slot(id)) = work.back_to {
            work.phase = Phase::Proving;
            self.rollout.request(Request::Prove {
                number: work.number,
                target: Target::Slot(bundle, id),
                watched: false,
            });
            return Ok(());
        }
        let (job, number) = (work.job.clone(), work.number);
        let (model, seq) = (bundle.release.model.clone(), bundle.release.seq);
        let floor = self.floor(&model).ok_or_else(|| format!("no pipeline uses a model called `{model}`"))?;
        let keys = self.keys_for_models()?;
        self.models.store.admit(&bundle, &self.device_of(), keys, floor)?;
        self.models.store.not_before(bundle.release.created_ms);
        let mut line = self.models.store.line(&model);
        let id = match &job.target {
            Some((_, id)) => *id,
            None => {
                if !self.models.store.has(&job.sha256) {
                    self.models.store.take_in(&self.models.store.incoming(&job.sha256), &job.sha256)?;
                }
                line.stage(Held { sha256: job.sha256.clone(), version: bundle.release.version.clone(), seq })
            }
        };
        line.step(id, Step::Verified).map_err(|why| why.to_string())?;
        let job = Job { target: Some((model.clone(), id)), ..job };
        self.models.store.change(&model, line, Some(job.clone()))?;
        if let Some(work) = &mut self.models.work {
            work.job = job;
            work.phase = Phase::Proving;
        }
        let (version, by) = (&bundle.release.version, bundle.signed_by.join(", "));
        tracing::info!("model {model} {version}: its bundle is verified, signed by {by}");
        self.rollout.request(Request::Prove { number, target: Target::Slot(bundle, id), watched: true });
        Ok(())
    }

    /// The sequence of the read-only root for a model; `None`: no pipeline uses it.
    pub(super) fn floor(&self, model: &str) -> Option<u64> {
        floor(&self.config, model)
    }

    fn device_of(&self) -> Device {
        Device {
            class: self.config.device.class.clone(),
            channel: self.config.models.channel.clone(),
            now_ms: self.now_ms().max(self.models.store.newest_ms()),
            version: semver::Version::parse(env!("CARGO_PKG_VERSION")).unwrap_or(semver::Version::new(0, 0, 0)),
        }
    }

    fn proven(&mut self, number: u64, proof: Proof, now_ns: u64) -> Result<(), String> {
        let Some(work) = &mut self.models.work else { return Ok(()) };
        let (job, back) = (work.job.clone(), work.back_to.is_some());
        if !back {
            let (model, id) = job.target.clone().ok_or("it lies in no slot")?;
            let mut line = self.models.store.line(&model);
            for step in [Step::Proven, Step::Trial] {
                line.step(id, step).map_err(|why| why.to_string())?;
                self.models.store.change(&model, line.clone(), Some(job.clone()))?;
            }
            self.tell_job(&job, &format!("proven ({}); on trial", proof.text));
        }
        self.set_phase(Phase::Watched { groups: proof.groups, since_ns: now_ns });
        self.rollout.request(Request::Offer { number });
        Ok(())
    }

    fn judged(&mut self, verdict: Verdict) {
        let Verdict { group, bundle, said } = verdict;
        if let Said::Failing(why) = &said {
            return self.failing(&bundle, why);
        }
        let Some(work) = &self.models.work else { return };
        if !work.is_about(&bundle, &self.models.store) {
            // A late verdict on the previous job.
            return;
        }
        let Some(Work { phase: Phase::Watched { groups, .. }, .. }) = &mut self.models.work else { return };
        match said {
            Said::Passed(text) => {
                groups.remove(&group);
                if groups.is_empty() {
                    self.job_done(&text);
                }
            }
            Said::Bad(why) => self.job_failed(State::RolledBack, &why),
            Said::Swapped(_) | Said::Failing(_) => {}
        }
    }

    /// The trial passed: commits the model.
    fn job_done(&mut self, text: &str) {
        let Some(work) = self.models.work.take() else { return };
        let Some((model, id)) = work.job.target.clone() else { return };
        let mut line = self.models.store.line(&model);
        let mut held = line.slot(id).held().cloned();
        match work.back_to {
            Some(to) => {
                if line.serving() != to {
                    line.roll_back();
                }
                held = None;
            }
            None => {
                if let Err(why) = line.step(id, Step::Steady) {
                    tracing::error!("model {model}: commit its slot: {why}");
                }
            }
        }
        if let Err(why) = self.models.store.change(&model, line, None) {
            // The previous model is no longer in memory. The job is still on the disk: a restart tries it again.
            let text = format!("the new model serves, but is not saved ({why}); a restart serves the previous model");
            tracing::error!("model {model}: {text}");
            return self.end_job(&work.job, State::Failed, &text);
        }
        if let Some(held) = held {
            if let Err(why) = self.models.store.raise(&model, held.seq) {
                tracing::error!("model {model}: {why}; only its slot records sequence {}", held.seq);
            }
            tracing::info!("model {model} {} passed its trial: {text}", held.version);
        }
        self.models.store.sweep();
        self.end_job(&work.job, State::Success, text);
        self.tell(JobNews::Slots);
    }

    pub(super) fn end_job(&mut self, job: &Job, state: State, text: &str) {
        self.models.ended = Some((job.command.clone(), state, text.to_owned()));
        self.tell(JobNews::Ended {
            kind: None,
            command: job.command.clone(),
            state,
            text: text.to_owned(),
            respond: respond_of(job.respond.clone()),
        });
        self.show_models();
    }

    fn tell_job(&mut self, job: &Job, text: &str) {
        self.tell(JobNews::Running { kind: None, command: job.command.clone(), text: text.to_owned() });
    }
}

/// The sequence of the read-only root for a model; `None`: no pipeline uses it.
pub fn floor(config: &Config, model: &str) -> Option<u64> {
    let mut of = config.pipelines.iter().filter(|p| p.model.manifest.model == model).map(|p| p.model.floor);
    let first = of.next()?;
    Some(of.fold(first, u64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_NS: u64 = 3_600_000_000_000;

    #[test]
    fn bringing_ends_when_nothing_comes_and_in_any_case() {
        let bringing = |began_h: u64, moved_h: u64| Phase::Bringing {
            have: 1,
            told_ns: 0,
            began_ns: began_h * HOUR_NS,
            moved_ns: moved_h * HOUR_NS,
        };
        assert_eq!(bringing(0, 0).overdue(0, 24 * HOUR_NS), None);
        assert!(
            bringing(0, 0).overdue(0, 25 * HOUR_NS).is_some_and(|why| why.contains("no byte of it arrived for 24 h"))
        );
        assert_eq!(bringing(0, 160).overdue(0, 168 * HOUR_NS), None, "a slow line");
        assert!(bringing(0, 168).overdue(0, 169 * HOUR_NS).is_some_and(|why| why.contains("after 168 h")));
        assert_eq!(Phase::Proving.overdue(0, 1000 * HOUR_NS), None);
    }

    #[test]
    fn trial_without_windows_ends_a_day_after_it_could_have_passed() {
        let watched = Phase::Watched { groups: BTreeSet::new(), since_ns: 0 };
        assert_eq!(watched.overdue(168 * HOUR_NS, 191 * HOUR_NS), None, "a trial of a week takes a week");
        assert!(watched.overdue(168 * HOUR_NS, 193 * HOUR_NS).is_some());
    }
}
