//! Bundles from the moment they are asked for to the moment they serve for good: brought, verified, proven, tried on live
//! windows, kept or put back. One at a time. What is written is written before it counts, so that whoever starts next
//! goes on from there, and until the very end what served before serves after a start.
//!
//! ```text
//! bring (file │ HTTPS │ chunks by MQTT) ─▶ open ─▶ [Verified] ─▶ prove ─▶ [Proven] ─▶ [Trial] ─▶ swap ─▶ watch ─▶ [Steady]
//! ```
//!
//! What takes long (bringing, opening, proving) is done by a thread that ends with it; its word comes back as `News`.

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
};

use serde_json::Value;

use super::{
    Control, Outcome, Respond, State,
    request::{Refusal, Why},
};
use crate::{
    config::Config,
    flow::{
        event::Kind,
        verdict::{Said, Verdict},
    },
    host::{Clock, fetch::Waits},
    limits,
    model::{
        bundle::Bundle,
        slot::{Held, Line, Origin, SlotId, Step},
        store::{Brings, Device, Job, Store},
    },
};

/// What a thread, or the stage that runs models, has to say.
pub enum News {
    /// The file is there, or will not be.
    Brought(Result<(), String>),
    /// A file of somebody on the machine was copied, for this job: its digest and size.
    Copied(String, Result<(String, u64), String>),
    /// A bundle was looked at from the first byte to the last.
    Opened(Result<Box<Bundle>, String>),
    /// It answered as it must; called, it takes over.
    Proven(Result<Proof, String>),
    /// What became of it on live windows.
    Verdict(Verdict),
    /// Of an operating system.
    System(super::system::Word),
}

/// A model that proved itself.
pub struct Proof {
    /// The figures.
    pub text: String,
    /// Groups of pipelines that it serves.
    pub groups: BTreeSet<usize>,
    /// Hands it to them.
    pub go: Box<dyn FnOnce() + Send>,
}

/// What is proven.
pub enum What {
    /// A bundle in a slot.
    Slot(Box<Bundle>, SlotId),
    /// What the configuration names.
    Factory(String),
}

/// Someone on the machine asks.
pub enum Local {
    /// To install this file.
    Install(OwnedFd),
    /// To go back.
    RollBack(String),
}

/// Tells whoever runs this model to go back, and why.
pub type Back = Box<dyn Fn(&str, &str) + Send>;

/// What models are run by.
pub struct Stage {
    /// Proves in a thread of its own; with whether it is watched afterwards. The word comes as `News::Proven`.
    pub prove: Box<dyn Fn(What, bool) + Send>,
    /// Whoever runs this model goes back.
    pub back: Back,
    /// What they say.
    pub news: (mpsc::SyncSender<News>, mpsc::Receiver<News>),
    /// Who asks on the machine.
    pub asks: mpsc::Receiver<Local>,
    /// For whoever looks.
    pub show: Box<dyn Fn(Value) + Send>,
}

/// How far the job is.
pub(super) enum Phase {
    /// The file comes; by chunks, so many bytes of it are there.
    Bringing { have: u64, told_ns: u64 },
    /// It is looked at.
    Opening,
    /// It answers golden cases.
    Proving,
    /// These groups of pipelines have not said their last word.
    Watched { groups: BTreeSet<usize>, since_ns: u64 },
}

/// The job under way.
pub(super) struct Work {
    pub(super) job: Job,
    pub(super) phase: Phase,
    /// A way back to what was well: not watched, and not a new release.
    pub(super) back_to: Option<Origin>,
}

/// The owner's part.
pub(super) struct Models {
    pub(super) store: Store,
    pub(super) work: Option<Work>,
    /// The last job's end, for those who look.
    pub(super) ended: Option<(String, State, String)>,
    /// It was told that the channel's word is out of date.
    pub(super) stale_told: bool,
    /// When it was told that no model serves and none is there to go back to.
    none_told_ns: Option<u64>,
    /// A fetch ends when this is gone.
    pub(super) waits: Waits,
}

/// What `model.install` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// Of the whole bundle.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// `https://…`; `None`: chunks come by MQTT.
    pub url: Option<String>,
}

impl Models {
    pub(super) fn new(store: Store) -> Self {
        Self { store, work: None, ended: None, stale_told: false, none_told_ns: None, waits: Waits::default() }
    }

    /// The command whose job goes on.
    pub(super) fn command(&self) -> Option<&str> {
        self.store.job().map(|job| job.command.as_str())
    }
}

pub(super) type Refused<T> = Result<T, Refusal>;

pub(super) fn refuse<T>(why: Why, text: impl Into<String>) -> Refused<T> {
    Err(Refusal(why, text.into()))
}

impl Control {
    /// At the start: the job that the last process did not end.
    pub(super) fn take_up_models(&mut self) {
        if let Some(mut job) = self.models.store.job().cloned() {
            // A file that is still on its way to us keeps nobody from starting.
            job.begun += u32::from(job.target.is_some());
            if job.begun > limits::INSTALL_STARTS {
                let why = format!("the daemon ended {} times while it was installed", job.begun - 1);
                self.models.work = Some(Work { job, phase: Phase::Opening, back_to: None });
                self.job_failed(State::RolledBack, &why);
            } else {
                tracing::info!(job = job.command, "going on with the installation of a model");
                if let Err(why) = self.models.store.set_job(Some(job.clone())) {
                    tracing::error!("{why}");
                }
                match job.target.clone() {
                    None => self.bring(job),
                    Some((model, id)) => {
                        let sha256 = job.sha256.clone();
                        let mut line = self.models.store.line(&model);
                        line.again(id);
                        if let Err(why) = self.models.store.change(&model, line, Some(job.clone())) {
                            tracing::error!("{why}");
                        }
                        self.models.work = Some(Work { job, phase: Phase::Opening, back_to: None });
                        self.open_stored(&sha256);
                    }
                }
            }
        } else {
            self.models.store.sweep();
        }
        self.show_models();
    }

    /// `model.install`. `None`: it is under way.
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
        let respond = respond.map(|r| (r.topic, r.correlation.map(|bytes| bytes.to_vec())));
        let job = Job { command: command.into(), respond, sha256, size, brings, target: None, begun: 1 };
        if let Err(why) = self.models.store.set_job(Some(job.clone())) {
            return Ok(Some(Outcome::new(State::Failed, why)));
        }
        self.models.ended = None;
        let text = if job.brings == Brings::Chunks { "waiting for its chunks" } else { "it is brought" };
        self.tell_job(&job, &Outcome::new(State::Running, text));
        self.bring(job);
        Ok(None)
    }

    /// `model.rollback`. `None`: it is under way.
    pub(super) fn roll_back(
        &mut self,
        id: &str,
        model: Option<String>,
        respond: Option<Respond>,
    ) -> Refused<Option<Outcome>> {
        if self.models.work.is_some() {
            return refuse(Why::Busy, "another model is on its way");
        }
        let lines: Vec<(String, Line)> =
            self.models.store.lines().map(|(name, line)| (name.clone(), line.clone())).collect();
        let in_slots: Vec<&(String, Line)> = lines
            .iter()
            .filter(|(name, line)| line.held().is_some() && model.as_ref().is_none_or(|m| m == name))
            .collect();
        let [(model, line)] = in_slots[..] else {
            let text = if in_slots.is_empty() {
                "nothing was installed that could be taken back"
            } else {
                "say which `model`"
            };
            return refuse(Why::Invalid, text);
        };
        let respond = respond.map(|r| (r.topic, r.correlation.map(|bytes| bytes.to_vec())));
        let (sha256, size) = (String::new(), 0);
        let job = Job { command: id.into(), respond, sha256, size, brings: Brings::Nothing, target: None, begun: 1 };
        self.go_to(job, model, line.previous());
        Ok(None)
    }

    /// Begins the way to what was well before.
    fn go_to(&mut self, job: Job, model: &str, to: Origin) {
        let line = self.models.store.line(model);
        tracing::info!(model, to = to.word(), "going back to a model that was well");
        self.models.ended = None;
        match to {
            Origin::Factory => {
                self.models.work = Some(Work { job, phase: Phase::Proving, back_to: Some(to) });
                (self.setup.stage.prove)(What::Factory(model.into()), false);
            }
            Origin::Slot(id) => {
                let sha256 = line.slot(id).held().map(|held| held.sha256.clone()).unwrap_or_default();
                let job = Job { target: Some((model.into(), id)), ..job };
                self.models.work = Some(Work { job, phase: Phase::Opening, back_to: Some(to) });
                self.open_stored(&sha256);
            }
        }
        if let Some(work) = &mut self.models.work
            && work.job.target.is_none()
        {
            // The slot that is left; it names the model.
            work.job.target = Some((model.into(), line.spare()));
        }
        self.show_models();
    }

    /// Someone on the machine, or a thread, or the stage that runs models, said something.
    pub(super) fn look_at_models(&mut self, now_ns: u64) {
        while let Ok(ask) = self.setup.stage.asks.try_recv() {
            self.asked_locally(ask);
        }
        while let Ok(news) = self.setup.stage.news.1.try_recv() {
            self.heard(news, now_ns);
        }
        let late = |work: &Work| match &work.phase {
            Phase::Watched { since_ns, .. } => now_ns.saturating_sub(*since_ns) > limits::TRIAL_MOST.as_nanos() as u64,
            _ => false,
        };
        if self.models.work.as_ref().is_some_and(late) {
            self.job_failed(State::RolledBack, "too few windows came to tell whether it is well");
        }
        self.look_at_channel();
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
        let file = self.models.store.open_bundle(sha256);
        // What was well here goes on being believed; what is on its way is looked at with today's keys.
        let on_its_way = self.models.work.as_ref().is_some_and(|work| work.back_to.is_none());
        let keys = if on_its_way { self.keys_for_models().cloned().map(Some) } else { Ok(None) };
        self.thread(move || {
            let opened = keys.and_then(|keys| file.and_then(|file| Bundle::open(&file, keys.as_ref())));
            News::Opened(opened.map(Box::new))
        });
    }

    pub(super) fn set_phase(&mut self, phase: Phase) {
        if let Some(work) = &mut self.models.work {
            work.phase = phase;
        }
        self.show_models();
    }

    fn heard(&mut self, news: News, now_ns: u64) {
        match news {
            News::Brought(Ok(())) => {
                if let Some(work) = &self.models.work {
                    self.open(self.models.store.incoming(&work.job.sha256));
                }
            }
            News::Brought(Err(why)) => self.job_failed(State::Failed, &why),
            News::Copied(id, copied) => {
                let outcome =
                    copied.map_err(|why| Refusal(Why::Invalid, why)).and_then(|copy| self.install_copy(&id, copy));
                self.local_came(&id, outcome);
            }
            News::Opened(Ok(bundle)) => {
                if let Err(why) = self.opened(bundle) {
                    self.job_failed(State::Failed, &why);
                }
            }
            News::Opened(Err(why)) => self.job_failed(State::Failed, &why),
            News::Proven(Ok(proof)) => {
                if let Err(why) = self.proven(proof, now_ns) {
                    self.job_failed(State::Failed, &why);
                }
            }
            News::Proven(Err(why)) => self.job_failed(State::Failed, &why),
            News::Verdict(verdict) => self.judged(verdict),
            News::System(word) => self.heard_of_system(word),
        }
        self.show_models();
    }

    /// It is what it says it is: may it be installed?
    fn opened(&mut self, bundle: Box<Bundle>) -> Result<(), String> {
        let Some(work) = &mut self.models.work else { return Ok(()) };
        if let Some(Origin::Slot(id)) = work.back_to {
            work.phase = Phase::Proving;
            (self.setup.stage.prove)(What::Slot(bundle, id), false);
            return Ok(());
        }
        let job = work.job.clone();
        if bundle.sha256 != job.sha256 {
            return Err(format!("its sha256 is {}, and {} was asked for", bundle.sha256, job.sha256));
        }
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
        tracing::info!(
            model,
            version = bundle.release.version,
            by = bundle.signed_by.join(", "),
            "a bundle is verified"
        );
        (self.setup.stage.prove)(What::Slot(bundle, id), true);
        Ok(())
    }

    /// The sequence that the read-only root brings for a model; `None`: no pipeline uses it.
    pub(super) fn floor(&self, model: &str) -> Option<u64> {
        floor(&self.setup.config, model)
    }

    fn device_of(&self) -> Device {
        Device {
            class: self.setup.config.device.class.clone(),
            channel: self.setup.config.models.channel.clone(),
            now_ms: self.now_ms().max(self.models.store.newest_ms()),
            version: semver::Version::parse(env!("CARGO_PKG_VERSION")).unwrap_or(semver::Version::new(0, 0, 0)),
        }
    }

    fn proven(&mut self, proof: Proof, now_ns: u64) -> Result<(), String> {
        let Some(work) = &mut self.models.work else { return Ok(()) };
        let (job, back) = (work.job.clone(), work.back_to.is_some());
        if !back {
            let (model, id) = job.target.clone().ok_or("it lies in no slot")?;
            let mut line = self.models.store.line(&model);
            for step in [Step::Proven, Step::Trial] {
                line.step(id, step).map_err(|why| why.to_string())?;
                self.models.store.change(&model, line.clone(), Some(job.clone()))?;
            }
            self.tell_job(&job, &Outcome::new(State::Running, format!("proven ({}); on trial", proof.text)));
        }
        self.set_phase(Phase::Watched { groups: proof.groups, since_ns: now_ns });
        (proof.go)();
        Ok(())
    }

    fn judged(&mut self, verdict: Verdict) {
        let Verdict { group, bundle, said } = verdict;
        if let Said::Failing(why) = &said {
            return self.failing(&bundle, why);
        }
        let Some(Work { job, phase: Phase::Watched { groups, .. }, back_to }) = &mut self.models.work else { return };
        if back_to.is_none() && *job.sha256 != *bundle {
            // A late word on the one before.
            return;
        }
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

    /// What serves dies again and again: back to the one before, if there is one.
    fn failing(&mut self, bundle: &Arc<str>, why: &str) {
        if self.models.work.is_some() {
            return;
        }
        let of = |line: &Line| line.held().is_some_and(|held| *held.sha256 == **bundle);
        let found =
            self.models.store.lines().find(|(_, line)| of(line)).map(|(name, line)| (name.clone(), line.clone()));
        let Some((model, mut line)) = found else {
            // It is what the configuration names: there is nothing before it, and it is tried again now and then.
            let now_ns = Clock::boot_ns();
            if self.models.none_told_ns.is_some_and(|at| now_ns - at < limits::NO_MODEL_TOLD_NS) {
                return;
            }
            self.models.none_told_ns = Some(now_ns);
            return self.event(
                Kind::ModelFailed,
                "models",
                &format!("no model serves, and there is none to go back to: {why}"),
            );
        };
        let Origin::Slot(id) = line.serving() else { return };
        let to = line.previous();
        line.reject(id, why);
        self.models.store.failed(bundle, why);
        // Written first: whoever starts next must not start it again.
        if let Err(why) = self.models.store.change(&model, line, None) {
            tracing::error!("{why}");
        }
        self.event(Kind::ModelRolledBack, &model, &format!("{why}, again and again; going back to {}", to.word()));
        let command = format!("failing-{}", Clock::boot_ns());
        let (sha256, size) = (String::new(), 0);
        let job = Job { command, respond: None, sha256, size, brings: Brings::Nothing, target: None, begun: 1 };
        self.go_to(job, &model, to);
    }

    /// It was well: it serves for good.
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
                    tracing::error!("{why}");
                }
            }
        }
        if let Err(why) = self.models.store.change(&model, line, None) {
            // The one before is gone from memory already. What is on the disk still has the job: a start tries it again.
            let text = format!("it serves, but that could not be saved ({why}); a start begins with the one before");
            tracing::error!("{text}");
            return self.end_job(&work.job, State::Failed, &text);
        }
        if let Some(held) = held {
            if let Err(why) = self.models.store.raise(&model, held.seq) {
                tracing::error!("{why}");
            }
            tracing::info!(model, version = held.version, "a new model stays: {text}");
        }
        self.models.store.sweep();
        self.end_job(&work.job, State::Success, text);
        self.report();
    }

    /// It will not serve, or does not any more.
    pub(super) fn job_failed(&mut self, state: State, why: &str) {
        let Some(work) = self.models.work.take() else { return };
        let job = &work.job;
        if let Some((model, id)) = &job.target {
            (self.setup.stage.back)(model, why);
            let mut line = self.models.store.line(model);
            if work.back_to.is_none() {
                // Only what was tried here counts as failed here; a disk that was full is no fault of the bundle's.
                if !matches!(work.phase, Phase::Bringing { .. } | Phase::Opening) || state == State::RolledBack {
                    self.models.store.failed(&job.sha256, why);
                }
                line.reject(*id, why);
            }
            if let Err(why) = self.models.store.change(model, line, None) {
                tracing::error!("{why}");
            }
        } else {
            let path = self.models.store.incoming(&job.sha256);
            if path.is_file()
                && let Err(why) = std::fs::remove_file(&path)
            {
                tracing::warn!("remove {}: {why}", path.display());
            }
            if let Err(why) = self.models.store.set_job(None) {
                tracing::error!("{why}");
            }
            self.models.store.sweep();
        }
        tracing::warn!(id = job.command, state = state.word(), "a model is not taken: {why}");
        self.end_job(job, state, why);
        self.report();
    }

    fn end_job(&mut self, job: &Job, state: State, text: &str) {
        self.models.ended = Some((job.command.clone(), state, text.to_owned()));
        let respond = job.respond.clone().map(|(topic, bytes)| Respond { topic, correlation: bytes.map(Into::into) });
        if let Some(known) = self.memory.known(&job.command).map(|known| known.kind.clone()) {
            self.finish(&known, &job.command, respond.as_ref(), &Outcome::new(state, text));
        }
        self.show_models();
    }

    fn tell_job(&mut self, job: &Job, outcome: &Outcome) {
        if self.memory.known(&job.command).is_some() {
            self.result("model.install", &job.command, None, outcome);
        }
    }
}

/// The sequence that the read-only root brings for a model; `None`: no pipeline uses it.
pub fn floor(config: &Config, model: &str) -> Option<u64> {
    let mut of = config.pipelines.iter().filter(|p| p.model.manifest.model == model).map(|p| p.model.floor);
    let first = of.next()?;
    Some(of.fold(first, u64::max))
}
