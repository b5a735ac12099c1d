//! One model and the pipelines that use it: windows in, records out. Owns the worker and restarts it when it dies. The
//! window that was in the worker is recorded in the loss ledger; the next worker serves those behind it. `rollout/takeover`
//! has the steps of a new model before and after it takes over.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    artifact::Artifact,
    lag::{Lag, slowest},
    rollout::{
        Seat,
        candidate::{Candidate, Shadowed, Trial},
    },
    running::{Launching, Outcome, Running},
    served::{Answered, Served},
};
use crate::{
    flow::{
        Draft, Kept, Sink, Stamp, Window,
        event::{EventStreams, Kind},
        verdict::{Said, Serving},
    },
    limits,
};

/// What an engine is made with.
pub struct Setup {
    /// How workers are started.
    pub launching: Launching,
    /// What serves at the start instead of the configured model. It is taken once: a large model must not stay in memory
    /// after another one took its place.
    pub installed: Option<Artifact>,
    /// The pipelines that use it, in the order of `launching`.
    pub served: Vec<Served>,
    /// Where events go.
    pub events: EventStreams,
    /// Deadlines do not decide (replay).
    pub patient: bool,
    /// Its place in rollouts; without one, its model stays as it is.
    pub seat: Option<Seat>,
}

/// Why a ring of the doorbell did not come to its end.
pub(super) enum Broken {
    /// The worker is gone.
    Died(String),
    /// The model on trial showed a bad sign; its window waits again.
    Sign(String),
}

/// The engine.
pub struct Engine {
    pub(super) setup: Setup,
    pub(super) source: Option<Artifact>,
    pub(super) running: Option<Running>,
    pub(super) candidate: Option<Candidate>,
    pub(super) trial: Option<Trial>,
    waiting: VecDeque<Window>,
    /// Windows that were answered, for the candidate beside.
    pub(super) shadowed: Vec<Shadowed>,
    /// Longest wait before the next start.
    retry: Duration,
    /// Last reason or description that was reported, so that each is reported once.
    reported: String,
    drafts: Vec<Draft>,
    /// Alarms that were raised in this ring: their places among the drafts, and the window that raised them.
    to_explain: Vec<(Vec<usize>, usize, Window, Answered)>,
    /// Stamp of the newest window that was answered, for events.
    pub(super) last: Option<Stamp>,
    /// When it was looked at last.
    pub(super) now: Option<Stamp>,
    /// How long its windows wait.
    pub(super) lag: Lag,
    /// One run of what serves takes about so long, µs; 0: not known yet.
    pub(super) took_us: u32,
    /// When workers were lost, ns since boot.
    deaths: VecDeque<u64>,
    looked_ns: u64,
    /// Workers lost since the start.
    pub lost_workers: u64,
}

impl Engine {
    /// An engine without a worker yet.
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            source: None,
            running: None,
            candidate: None,
            trial: None,
            waiting: VecDeque::new(),
            shadowed: Vec::new(),
            retry: Duration::ZERO,
            reported: String::new(),
            drafts: Vec::new(),
            to_explain: Vec::new(),
            last: None,
            now: None,
            lag: Lag::default(),
            took_us: 0,
            deaths: VecDeque::new(),
            looked_ns: 0,
            lost_workers: 0,
        }
    }

    /// Name for logs and events: the model's.
    pub fn name(&self) -> String {
        self.setup.served.first().map_or_else(String::new, |s| s.config().model.manifest.model.clone())
    }

    /// What serves, if anything does.
    pub fn serving(&self) -> Option<&Serving> {
        self.running.as_ref().map(|running| &running.serving)
    }

    /// How long to wait before `start` is called again after it failed; jittered, growing.
    pub fn retry_after(&mut self) -> Duration {
        let wait = self.retry.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.retry = (self.retry * 2).clamp(limits::WORKER_RETRY_MIN, limits::WORKER_RETRY_MAX);
        wait
    }

    /// Starts a worker. A failure is reported once per reason, and the daemon goes on without the model.
    pub fn start(&mut self, stamp: Option<Stamp>, sink: &mut dyn Sink, beat: &dyn Fn()) -> Result<(), String> {
        match self.try_start(beat) {
            Ok(text) => {
                if std::mem::take(&mut self.reported) != text || self.reported.is_empty() {
                    self.tell(Kind::ModelServing, stamp, &text, sink);
                }
                Ok(())
            }
            Err(why) => {
                if self.reported != why {
                    self.tell(Kind::ModelFailed, stamp, &why, sink);
                    self.reported.clone_from(&why);
                }
                // That there is no library, or no model yet, is no fault of a model's.
                if self.setup.launching.runtime.is_ok() && self.source.is_some() {
                    self.died(stamp, &why);
                }
                Err(why)
            }
        }
    }

    fn try_start(&mut self, beat: &dyn Fn()) -> Result<String, String> {
        let source = match self.source.clone() {
            Some(source) => source,
            None => self.first_source()?,
        };
        self.source = Some(source.clone());
        let what = |why| format!("use model {}: {why}", source.name());
        let running = Running::start(&self.setup.launching, &source, &[], beat).map_err(what)?;
        self.took_us = 0;
        let text = format!("serving {}", running.describe());
        self.running = Some(running);
        Ok(text)
    }

    fn first_source(&mut self) -> Result<Artifact, String> {
        match self.setup.installed.take() {
            Some(installed) => Ok(installed),
            None => Ok(Artifact::factory(&self.setup.launching.first()?.model)?),
        }
    }

    pub(super) fn report(&self, bundle: Arc<str>, said: Said) {
        if let Some(seat) = &self.setup.seat {
            seat.report(bundle, said);
        }
    }

    pub(super) fn tell(&self, kind: Kind, stamp: Option<Stamp>, text: &str, sink: &mut dyn Sink) {
        if let Some(stamp) = stamp {
            sink.put(&mut vec![self.setup.events.draft(kind, stamp, &self.name(), text)]);
        }
    }

    /// A worker was lost, or could not be started. Repeated deaths are reported to control, which owns the slots.
    fn died(&mut self, stamp: Option<Stamp>, why: &str) {
        let now_ns = stamp.map_or(0, |stamp| stamp.boot_ns);
        self.deaths.push_back(now_ns);
        self.deaths.retain(|at| now_ns.saturating_sub(*at) < limits::WORKERS_LOST_WITHIN_NS);
        if self.deaths.len() >= limits::WORKERS_LOST {
            self.deaths.clear();
            let bundle = self.source.as_ref().map_or_else(|| "".into(), |source| source.bundle.clone());
            self.report(bundle, Said::Failing(why.to_owned()));
        }
    }

    /// Books windows that no worker will see.
    pub fn book_lost(&self, windows: impl Iterator<Item = Window>, why: &'static str, sink: &mut dyn Sink) {
        for window in windows {
            if let Some(at) = self.place(&window) {
                sink.lost(self.setup.served[at].stream(), 1, why);
            }
        }
    }

    pub(super) fn place(&self, window: &Window) -> Option<usize> {
        self.setup.served.iter().position(|s| s.index() == window.tag.pipeline)
    }

    /// Nothing has served for long: their alarms are reported as unknown.
    pub fn unwatched(&mut self, stamp: Stamp, sink: &mut dyn Sink) {
        self.setup.served.iter_mut().for_each(|served| served.unwatched(stamp, &mut self.drafts));
        if !self.drafts.is_empty() {
            sink.put(&mut self.drafts);
        }
    }

    /// Books every window that waits.
    pub fn give_up_waiting(&mut self, why: &'static str, sink: &mut dyn Sink) {
        let waiting = std::mem::take(&mut self.waiting);
        self.book_lost(waiting.into_iter(), why, sink);
    }

    /// Takes windows; serve them with `turn`.
    pub fn take(&mut self, windows: &mut Vec<Window>) {
        self.waiting.extend(windows.drain(..));
    }

    /// How long it may wait for windows: less while an answer is awaited.
    pub fn patience(&self) -> Duration {
        if self.setup.served.iter().any(Served::awaits) { limits::BEAT / 10 } else { limits::BEAT }
    }

    /// Windows that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Serves what waits, one ring of the doorbell. `Err` when there is no worker any more.
    pub fn turn(&mut self, sink: &mut dyn Sink, beat: &dyn Fn()) -> Result<(), String> {
        self.look_at_lag(sink);
        let Some(mut running) = self.running.take() else {
            return Err("no worker".into());
        };
        for (at, (served, fit)) in self.setup.served.iter().zip(&mut running.fits).enumerate() {
            if served.take_recalibrate() {
                fit.recalibrate();
            }
            let labels = served.take_labels();
            let moved = labels.iter().filter_map(|said| fit.labelled(said)).last();
            if let Some((text, stamp)) = moved.zip(self.last) {
                self.drafts.push(self.setup.events.draft(Kind::ModelCalibrated, stamp, &served.config().name, &text));
            }
            if let Some(candidate) = &mut self.candidate {
                candidate.labelled(at, labels);
            }
        }
        let rung = self.ring(&mut running, sink, beat);
        if !self.drafts.is_empty() {
            sink.put(&mut self.drafts);
        }
        // They name places among the drafts, which are gone now; a ring that broke off leaves some.
        self.to_explain.clear();
        match rung {
            Ok(()) => {
                self.retry = Duration::ZERO;
                self.running = Some(running);
                self.shadow(sink, beat);
                self.end_trial_if_over(sink);
                Ok(())
            }
            Err(Broken::Sign(why) | Broken::Died(why)) if self.trial.is_some() => {
                drop(running);
                self.shadowed.clear();
                self.go_back(&why, sink);
                if self.running.is_some() { Ok(()) } else { Err(why) }
            }
            Err(Broken::Sign(why) | Broken::Died(why)) => {
                self.lost_workers += 1;
                let stamp = self.last.or(self.waiting.front().map(|w| w.tag.last));
                self.tell(Kind::WorkerLost, stamp, &lost_worker(&why), sink);
                self.died(stamp, &why);
                Err(why)
            }
        }
    }

    /// No window waits.
    pub fn idle(&mut self, sink: &mut dyn Sink) {
        self.look_at_lag(sink);
    }

    /// Looks how long the oldest window has waited. A pipeline that falls behind ends what runs beside it, then the trial; an
    /// event reports it where there is neither.
    fn look_at_lag(&mut self, sink: &mut dyn Sink) {
        let Some(now) = self.now.filter(|_| !self.setup.patient) else { return };
        let oldest = self.waiting.front().map(|window| {
            let pipeline = self.setup.served[self.place(window).unwrap_or(0)].config();
            let late = Duration::from_millis(pipeline.late_ms + pipeline.step_ms.unwrap_or(0));
            (now.boot_ns.saturating_sub(window.tag.last.boot_ns), (limits::BEHIND + late).as_nanos() as u64)
        });
        let (waited_ns, most_ns) = oldest.unwrap_or_default();
        let Some(behind) = self.lag.look(waited_ns, most_ns, now.boot_ns) else { return };
        let waited_s = waited_ns / 1_000_000_000;
        let why =
            format!("it falls behind: the oldest window has waited for {waited_s} s, and the wait does not shrink");
        if behind && (self.candidate.is_some() || self.trial.is_some()) {
            self.lag = Lag::default();
            if self.candidate.is_some() {
                return self.refuse_candidate(&why, sink);
            }
            return self.go_back(&why, sink);
        }
        self.setup.served.iter().for_each(|served| served.set_behind(behind));
        let (kind, text) = if behind {
            (Kind::PipelineBehind, why)
        } else {
            (Kind::PipelineCaughtUp, "no window waits longer than it may any more".to_owned())
        };
        let names = self.setup.served.iter().map(|served| served.config().name.clone());
        let mut drafts = names.map(|name| self.setup.events.draft(kind, now, &name, &text)).collect();
        sink.put(&mut drafts);
    }

    /// Windows of one ring: their predictions are published, and messages of control are read, only after it. In a replay it does
    /// not depend on how fast the machine is.
    pub(super) fn ring_most(&self, took_us: u32, slots: usize) -> usize {
        match (self.setup.patient, took_us) {
            (true, _) => slots,
            (false, 0) => 1,
            (false, took_us) => (limits::RING.as_micros() as usize / took_us as usize).clamp(1, slots),
        }
    }

    /// Windows to take from the lane at a time: those of one ring, so that the others wait where it is seen that they do.
    pub fn appetite(&self) -> usize {
        self.running.as_ref().map_or(1, |running| self.ring_most(self.took_us, running.slots()))
    }

    fn ring(&mut self, running: &mut Running, sink: &mut dyn Sink, beat: &dyn Fn()) -> Result<(), Broken> {
        let deadline = self.deadline(running);
        self.calibrate(running, deadline, beat)?;
        let most = self.ring_most(self.took_us, running.slots());
        let places: Vec<usize> = self.waiting.iter().take(most).map(|w| self.place(w).unwrap_or(0)).collect();
        let count = running.ring_size(&places);
        for (slot, at) in places.iter().take(count).enumerate() {
            running.put(slot, *at, &self.waiting[slot]);
        }
        if count == 0 {
            return Ok(());
        }
        let rung = running.ring(count, deadline, beat);
        for (slot, at) in places.iter().enumerate().take(rung.done.min(count)) {
            let Some(window) = self.waiting.pop_front() else {
                break;
            };
            self.answered(running, slot, *at, window, sink)?;
        }
        if rung.died.is_none() {
            self.explain(running, deadline, beat)?;
        }
        if let Some(why) = rung.died {
            if self.trial.is_none() {
                // Only the window that was in the worker is lost; the others go to the next one. On trial, the model
                // before gets this one too.
                let inside = self.waiting.pop_front();
                // The event about the worker has a time also where this was its first window.
                self.last = inside.as_ref().map(|window| window.tag.last).or(self.last);
                self.book_lost(inside.into_iter(), "worker_lost", sink);
            }
            return Err(Broken::Died(why));
        }
        self.calibrate(running, deadline, beat)
    }

    pub(super) fn deadline(&self, running: &Running) -> Option<Duration> {
        (!self.setup.patient).then_some(Duration::from_millis(running.source.manifest.deadline_ms))
    }

    fn calibrate(&mut self, running: &mut Running, deadline: Option<Duration>, beat: &dyn Fn()) -> Result<(), Broken> {
        for (at, text) in running.calibrate_if_due(deadline, beat).map_err(Broken::Died)? {
            let name = self.setup.served[at].config().name.clone();
            if let Some(stamp) = self.last {
                self.drafts.push(self.setup.events.draft(Kind::ModelCalibrated, stamp, &name, &text));
            }
        }
        Ok(())
    }

    /// One window's answer: into the statistics, and out as a prediction.
    fn answered(
        &mut self,
        running: &mut Running,
        slot: usize,
        at: usize,
        window: Window,
        sink: &mut dyn Sink,
    ) -> Result<(), Broken> {
        self.last = Some(window.tag.last);
        let outcome = running.answer(slot, at, &window);
        if let Some(why) = self.trial.as_mut().and_then(|trial| trial.sign(&outcome, &running.fits[at], &window)) {
            // The previous model answers the window that the model on trial could not.
            self.waiting.push_front(window);
            return Err(Broken::Sign(why));
        }
        let score = match &outcome {
            Outcome::Answer(answered) => answered.score.filter(|_| !running.fits[at].is_learning()),
            Outcome::None(_) => None,
        };
        let above = running.fits[at].is_beyond(score);
        let class = match &outcome {
            Outcome::Answer(Answered { classes: Some(classes), .. }) if self.candidate.is_some() => {
                classes.likeliest().map(str::to_owned)
            }
            _ => None,
        };
        let served = &mut self.setup.served[at];
        match outcome {
            Outcome::Answer(answered) => {
                self.took_us = slowest(self.took_us, answered.took_us);
                let raised = served.predicted(&running.fits[at], &window, &answered, &mut self.drafts);
                let width = served.names().len();
                let looked = running.looked_at(at, &window, width, served.is_alarmed());
                let drifted = looked.is_some() && running.is_drifting(at);
                if let Some(members) = looked {
                    self.drafts.push(served.drift(members, &running.fits[at], &window));
                }
                let end_ns = window.tag.last.boot_ns;
                if let Some(text) = running.fits[at].learn_tail(answered.score, end_ns, served.is_alarmed()) {
                    let (events, name) = (&self.setup.events, &served.config().name);
                    self.drafts.push(events.draft(Kind::ModelCalibrated, window.tag.last, name, &text));
                }
                let sent = served.escalate(self.now, &running.fits[at], &window, drifted);
                let keep = sent.then_some(Kept::Escalated);
                served.keep_sample(&running.fits[at], &window, &answered, (running.is_drifting(at), keep));
                if !raised.is_empty() {
                    self.to_explain.push((raised, at, window.clone(), answered));
                }
            }
            Outcome::None(why) => sink.lost(served.stream(), 1, why),
        }
        if self.candidate.is_some() {
            self.shadowed.push(Shadowed { window, score, above, class });
        }
        Ok(())
    }

    /// Says of alarms that were just raised which channels drove them; after the ring, for it takes the worker's slots.
    fn explain(&mut self, running: &mut Running, deadline: Option<Duration>, beat: &dyn Fn()) -> Result<(), Broken> {
        for (places, at, window, answered) in std::mem::take(&mut self.to_explain) {
            let names = self.setup.served[at].names();
            let members = running.explain(at, &window, &answered, names, deadline, beat).map_err(Broken::Died)?;
            for place in places {
                let body = &mut self.drafts[place].body;
                *body = [body.as_ref(), members.as_bytes()].concat().into();
            }
        }
        Ok(())
    }

    /// What is to be done beside windows: a model that was offered, one that is ready to take over, a worker that grows.
    pub fn look(&mut self, now: Stamp, sink: &mut dyn Sink, beat: &dyn Fn()) {
        self.now = Some(now);
        self.setup.served.iter_mut().for_each(|served| served.look(now, &mut self.drafts));
        if !self.drafts.is_empty() {
            sink.put(&mut self.drafts);
        }
        if let Some(trial) = &mut self.trial {
            trial.look(now.boot_ns);
            self.end_trial_if_over(sink);
        }
        self.read_mail(now, sink);
        self.swap_if_ready(now, sink);
        if now.boot_ns.saturating_sub(self.looked_ns) < limits::MEMORY_EVERY_NS {
            return;
        }
        self.looked_ns = now.boot_ns;
        let grown = |running: &Running| {
            running
                .over_memory()
                .map(|bytes| format!("it holds {} MiB, more than models.memory_mib allows", bytes >> 20))
        };
        if let Some(why) = self.candidate.as_ref().and_then(|candidate| grown(&candidate.running)) {
            self.refuse_candidate(&why, sink);
        }
        if let Some(why) = self.running.as_ref().and_then(grown) {
            self.running = None;
            if self.trial.is_some() {
                return self.go_back(&why, sink);
            }
            self.lost_workers += 1;
            self.tell(Kind::WorkerLost, Some(now), &lost_worker(&why), sink);
            self.died(Some(now), &why);
        }
        beat();
    }
}

/// What the event says: what happened and follows first, the worker's own words after it.
fn lost_worker(why: &str) -> String {
    format!("the worker is gone and is started again, its window is booked as lost: {why}")
}
