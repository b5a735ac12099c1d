//! The thread of the rollout: carries out control's requests one after the other, and goes on reading them while it
//! proves a model. Rules:
//!
//! - The newest request to prove counts; an earlier one is stopped, or its workers are dropped before new ones start.
//! - A model is proven for all groups of pipelines that use it, or offered to none of them.
//! - Each request to prove is answered once, also after a panic: control waits for the answer.
//! - `Back` reaches the engines while a proof runs, and stops the proof of that model.

use std::{
    cell::RefCell,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError},
    time::Duration,
};

use super::{super::Artifact, Message, Offer, gate::Terms, prove, window};
use crate::{
    config::{self, Config},
    host::{Host, beats::caught},
    infer::{Keeps, Launching, Running},
    limits,
    model::{
        error::Unproven,
        manifest::Manifest,
        rollout::{Inbox, Proof, Report, Request, Target},
        slot::Origin,
    },
};

/// A group of pipelines that share an engine.
pub struct Group {
    /// Of the configured model: its name, and the windows that are made.
    pub manifest: Manifest,
    /// Places of its pipelines in the configuration.
    pub pipelines: Vec<usize>,
}

/// All groups of a configuration, in the order of their engines.
pub fn groups(config: &Config) -> Vec<Group> {
    let group =
        |pipelines: Vec<usize>| Group { manifest: config.pipelines[pipelines[0]].model.manifest.clone(), pipelines };
    config::groups(config).into_iter().map(group).collect()
}

/// Reads models and proves them in workers.
pub trait Workers {
    /// A model that is ready to serve.
    type Ready;

    /// Reads the model; `group` is the first one that uses it.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, target: Target, group: &Group) -> Result<Artifact, String>;

    /// Proves the model for one group; returns the measured figures as well. `beat` is called while waiting; the proof is
    /// left when `stopped` says so.
    ///
    /// # Errors
    /// Why the model does not serve.
    fn prove(
        &self,
        group: &Group,
        source: &Artifact,
        beat: &dyn Fn(),
        stopped: &dyn Fn() -> bool,
    ) -> Result<(Self::Ready, String), String>;
}

/// The workers of this device.
pub struct Device {
    /// The machine.
    pub host: Host,
    /// The configuration.
    pub config: Config,
    /// Where calibrations are saved.
    pub keeps: Keeps,
}

impl Workers for Device {
    type Ready = Running;

    fn read(&self, target: Target, group: &Group) -> Result<Artifact, String> {
        match target {
            Target::Slot(bundle, id) => Ok(Artifact::bundle(*bundle, Origin::Slot(id))),
            Target::Factory(_) => Ok(Artifact::factory(&self.config.pipelines[group.pipelines[0]].model)?),
        }
    }

    fn prove(
        &self,
        group: &Group,
        source: &Artifact,
        beat: &dyn Fn(),
        stopped: &dyn Fn() -> bool,
    ) -> Result<(Running, String), String> {
        let launching = Launching::new(&self.host, &self.config, &group.pipelines, Some(&self.keeps));
        let proven = prove::prove(&launching, source, beat, stopped)?;
        let text = proven.describe();
        Ok((proven.running, text))
    }
}

/// A request to prove.
struct Wanted {
    number: u64,
    target: Target,
    watched: bool,
}

/// What is offered to each group.
type Offers<R> = Vec<(usize, Offer<R>)>;

/// The requests of control, and their results.
struct Requests<R> {
    inbox: Receiver<Request>,
    reports: SyncSender<Report>,
    engines: Vec<SyncSender<Message<R>>>,
    /// By group: its model.
    models: Vec<String>,
    /// To be proven next.
    next: Option<Wanted>,
    /// The model that is being proven.
    proving: Option<String>,
    /// Why its proof is of no use any more.
    stopped: Option<String>,
    /// Proven for this job, and not offered yet.
    ready: Option<(u64, String, Offers<R>)>,
    /// Control is gone.
    closed: bool,
}

impl<R> Requests<R> {
    /// Waits for a request.
    fn wait(&mut self, most: Duration) {
        match self.inbox.recv_timeout(most) {
            Ok(request) => self.on(request),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.closed = true,
        }
    }

    /// Handles the requests that are there.
    fn poll(&mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(request) => self.on(request),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    /// The proof in progress is of no use any more.
    fn is_stopped(&self) -> bool {
        self.closed || self.stopped.is_some()
    }

    /// Waits for room: control waits for this answer.
    fn answer(&self, number: u64, proof: Result<Proof, Unproven>) {
        let _ = self.reports.send(Report::Proven(number, proof));
    }

    fn on(&mut self, request: Request) {
        match request {
            Request::Prove { number, target, watched } => {
                // Its workers are stopped before those of the next one start.
                self.ready = None;
                if self.proving.is_some() {
                    self.stopped = Some("stopped: another model is to be proven".into());
                }
                self.leave_next(|_| true, "stopped: another model is to be proven");
                self.next = Some(Wanted { number, target, watched });
            }
            Request::Offer { number } => self.offer(number),
            Request::Back { model, why } => {
                self.ready.take_if(|(_, of, _)| *of == model);
                if self.proving.as_ref() == Some(&model) {
                    self.stopped = Some(format!("stopped: {why}"));
                }
                self.leave_next(|next| next.target.model() == model, &format!("stopped: {why}"));
                for (group, _) in self.models.iter().enumerate().filter(|(_, of)| **of == model) {
                    if let Err(TrySendError::Full(_)) = self.engines[group].try_send(Message::Back(why.clone())) {
                        tracing::error!("model {model}: roll back: the queue of engine {group} is full; it serves on");
                    }
                }
            }
        }
    }

    /// Answers the request that waits, if it is one of these.
    fn leave_next(&mut self, these: impl Fn(&Wanted) -> bool, why: &str) {
        if let Some(next) = self.next.take_if(|next| these(next)) {
            self.answer(next.number, Err(why.into()));
        }
    }

    fn offer(&mut self, number: u64) {
        let Some((_, _, offers)) = self.ready.take_if(|(of, ..)| *of == number) else {
            return self.answer(number, Err("offer the model: its proof was dropped".into()));
        };
        for (group, offer) in offers {
            if self.engines[group].try_send(Message::Offer(Box::new(offer))).is_err() {
                return self.answer(number, Err(format!("offer the model: engine {group} takes no offer").into()));
            }
        }
    }

    /// The proof ended: its model waits for the offer, or is dropped.
    fn proven(&mut self, number: u64, result: Result<(Offers<R>, String), String>) {
        // Requests that came meanwhile count first.
        self.poll();
        let model = self.proving.take().unwrap_or_default();
        let stopped = self.stopped.take();
        let proof = match (stopped, result) {
            (Some(why), _) | (None, Err(why)) => Err(why.into()),
            (None, Ok((offers, text))) => {
                let groups = offers.iter().map(|(group, _)| *group).collect();
                self.ready = Some((number, model, offers));
                Ok(Proof { text, groups })
            }
        };
        self.answer(number, proof);
    }
}

/// The rollout's thread.
pub struct Prover<W: Workers> {
    groups: Vec<Group>,
    models: config::Models,
    workers: W,
    requests: RefCell<Requests<W::Ready>>,
}

impl<W: Workers> Prover<W> {
    /// `engines` are those of `groups`.
    pub fn new(
        groups: Vec<Group>,
        models: config::Models,
        workers: W,
        engines: Vec<SyncSender<Message<W::Ready>>>,
        inbox: Inbox,
    ) -> Self {
        let requests = Requests {
            inbox: inbox.requests,
            reports: inbox.reports,
            engines,
            models: groups.iter().map(|group| group.manifest.model.clone()).collect(),
            next: None,
            proving: None,
            stopped: None,
            ready: None,
            closed: false,
        };
        Self { groups, models, workers, requests: RefCell::new(requests) }
    }

    /// The thread; ends when control is gone.
    pub fn run(self, beat: &dyn Fn()) {
        while !self.requests.borrow().closed {
            beat();
            self.turn(limits::BEAT, beat);
        }
    }

    /// Proves the newest model, or waits for a request.
    fn turn(&self, most: Duration, beat: &dyn Fn()) {
        let next = self.requests.borrow_mut().next.take();
        let Some(Wanted { number, target, watched }) = next else {
            return self.requests.borrow_mut().wait(most);
        };
        self.requests.borrow_mut().proving = Some(target.model().to_owned());
        let beat = || {
            beat();
            self.requests.borrow_mut().poll();
        };
        let stopped = || {
            self.requests.borrow_mut().poll();
            self.requests.borrow().is_stopped()
        };
        let result = caught(|| self.prove(target, watched, &beat, &stopped));
        self.requests.borrow_mut().proven(number, result);
    }

    /// Proves a model for each group that uses it.
    fn prove(
        &self,
        target: Target,
        watched: bool,
        beat: &dyn Fn(),
        stopped: &dyn Fn() -> bool,
    ) -> Result<(Offers<W::Ready>, String), String> {
        let model = target.model().to_owned();
        let uses = |(_, group): &(usize, &Group)| group.manifest.model == model;
        let groups: Vec<_> = self.groups.iter().enumerate().filter(uses).collect();
        let (_, first) = groups.first().ok_or_else(|| format!("no pipeline uses a model called `{model}`"))?;
        let source = self.workers.read(target, first)?;
        // Before any worker is started.
        groups.iter().try_for_each(|(_, group)| window::same(&group.manifest, &source.manifest))?;
        let scores = source.baseline.as_ref().and_then(|baseline| baseline.score.clone());
        let (mut offers, mut figures) = (Vec::new(), None);
        for (place, group) in groups {
            if stopped() {
                return Err("stopped".into());
            }
            let (running, text) = self.workers.prove(group, &source, beat, stopped)?;
            figures.get_or_insert(text);
            let terms = watched.then(|| Terms::new(&self.models, scores.clone()));
            let shadow_ns = if watched { self.models.shadow_s * 1_000_000_000 } else { 0 };
            let why = if watched { "it is on trial".to_owned() } else { "back to it".to_owned() };
            offers.push((place, Offer { running, terms, shadow_ns, why }));
        }
        Ok((offers, figures.unwrap_or_default()))
    }
}

#[cfg(test)]
#[path = "prover_tests.rs"]
mod tests;
