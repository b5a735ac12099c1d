//! One model and the pipelines that use it: windows in, records out. Owns the worker; starts it again when it dies.
//! The window that was in the worker is lost and booked; those behind it are served by the next worker.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use super::{
    plan::{Plan, plan},
    served::{Answered, Served, published},
    worker::{Launch, Worker},
};
use crate::{
    flow::{
        Draft, Sink, Stamp, Window,
        event::{EventStreams, Kind},
    },
    limits,
    model::file::ModelFile,
};

/// What an engine is made with.
pub struct Setup {
    /// This program, which is also the worker.
    pub program: PathBuf,
    /// ONNX Runtime's library, or why there is none.
    pub runtime: Result<PathBuf, String>,
    /// The model file.
    pub model: PathBuf,
    /// The pipelines that use it.
    pub served: Vec<Served>,
    /// Where events go.
    pub events: EventStreams,
    /// Deadlines do not decide (replay).
    pub patient: bool,
}

struct Serving {
    worker: Worker,
    plan: Plan,
    published: Vec<Vec<(usize, String)>>,
}

/// The engine.
pub struct Engine {
    setup: Setup,
    file: Option<ModelFile>,
    serving: Option<Serving>,
    waiting: VecDeque<Window>,
    /// Longest wait before the next start.
    retry: Duration,
    told: String,
    drafts: Vec<Draft>,
    values: Vec<f64>,
    /// Stamp of the newest window that was answered, for events.
    last: Option<Stamp>,
    /// Workers lost since the start.
    pub lost_workers: u64,
}

impl Engine {
    /// An engine without a worker yet.
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            file: None,
            serving: None,
            waiting: VecDeque::new(),
            retry: Duration::ZERO,
            told: String::new(),
            drafts: Vec::new(),
            values: Vec::new(),
            last: None,
            lost_workers: 0,
        }
    }

    /// Name for logs and events: the model's.
    pub fn name(&self) -> String {
        self.setup.served.first().map_or_else(String::new, |s| s.config().model.manifest.model.clone())
    }

    /// Whether a worker serves.
    pub fn is_serving(&self) -> bool {
        self.serving.is_some()
    }

    /// How long to wait before `start` is called again after it failed; jittered, growing.
    pub fn retry_after(&mut self) -> Duration {
        let wait = self.retry.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.retry = (self.retry * 2).clamp(limits::WORKER_RETRY_MIN, limits::WORKER_RETRY_MAX);
        wait
    }

    /// Starts a worker. On failure the reason is told once, and the daemon lives on without the model.
    pub fn start(&mut self, stamp: Option<Stamp>, sink: &mut dyn Sink, beat: &dyn Fn()) -> Result<(), String> {
        match self.try_start(beat) {
            Ok(text) => {
                if std::mem::take(&mut self.told) != text || self.told.is_empty() {
                    self.tell(Kind::ModelServing, stamp, &text, sink);
                }
                Ok(())
            }
            Err(why) => {
                if self.told != why {
                    self.tell(Kind::ModelFailed, stamp, &why, sink);
                    self.told.clone_from(&why);
                }
                Err(why)
            }
        }
    }

    fn try_start(&mut self, beat: &dyn Fn()) -> Result<String, String> {
        let runtime = self.setup.runtime.clone()?;
        let model = match self.file.take() {
            Some(file) => file,
            None => ModelFile::read(&self.setup.model)?,
        };
        let launch = Launch { program: self.setup.program.clone(), runtime, model };
        let Some(first) = self.setup.served.first() else {
            return Err("no pipeline uses the model".into());
        };
        let (config, path) = (first.config(), self.setup.model.display());
        let extra: Vec<String> = self.setup.served.iter().flat_map(|s| s.config().outputs.clone()).collect();
        let shape = (config.steps, config.channels.len());
        let manifest = &config.model.manifest;
        let started = Worker::start(&launch, |loaded| plan(loaded, manifest, shape, &extra), beat);
        let (worker, loaded, plan) = started.map_err(|why| format!("use model {path}: {why}"))?;
        if worker.output_len(plan.score) != 1 {
            let (name, n) = (&plan.outputs[plan.score], worker.output_len(plan.score));
            return Err(format!(
                "use model {path}: output `{name}` has {n} values, and a score is one; name another as `score`"
            ));
        }
        let features = plan.features.map_or(0, |f| worker.output_len(f));
        for served in &mut self.setup.served {
            served.model_serves(&launch.model.sha256, features);
        }
        let sha = &launch.model.sha256[..12];
        let text = format!("serving {path} (sha256 {sha}…) on cpu, {}", loaded.runtime);
        self.file = Some(launch.model);
        let published = self.setup.served.iter().map(|s| published(&plan, s.config())).collect();
        self.serving = Some(Serving { worker, plan, published });
        Ok(text)
    }

    fn tell(&self, kind: Kind, stamp: Option<Stamp>, text: &str, sink: &mut dyn Sink) {
        if let Some(stamp) = stamp {
            sink.put(&mut vec![self.setup.events.draft(kind, stamp, &self.name(), text)]);
        }
    }

    /// Books windows that no worker will see.
    pub fn book_lost(&self, windows: impl Iterator<Item = Window>, why: &'static str, sink: &mut dyn Sink) {
        for window in windows {
            if let Some(served) = self.setup.served.iter().find(|s| s.index() == window.tag.pipeline) {
                sink.lost(served.stream(), 1, why);
            }
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

    /// Windows that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Serves what waits, one ring of the doorbell. `Err` when the worker died.
    pub fn turn(&mut self, sink: &mut dyn Sink, beat: &dyn Fn()) -> Result<(), String> {
        let Some(mut serving) = self.serving.take() else {
            return Err("no worker".into());
        };
        self.setup.served.iter_mut().for_each(Served::recalibrate_if_asked);
        let rung = self.calibrate_if_due(&mut serving, beat).and_then(|()| {
            let count = self.ring_size(serving.worker.slots());
            for slot in 0..count {
                let Self { waiting, setup, .. } = &mut *self;
                fill(&mut serving, &mut setup.served, slot, &waiting[slot].values, waiting[slot].tag.pipeline);
            }
            if count == 0 {
                return Ok(());
            }
            let rung = serving.worker.ring(count, self.deadline(), beat);
            for slot in 0..rung.done.min(count) {
                let Some(window) = self.waiting.pop_front() else {
                    break;
                };
                self.answered(&serving, slot, &window, sink);
            }
            if let Some(why) = rung.died {
                // Only the window that was in the worker is lost; the others go to the next one.
                let inside = self.waiting.pop_front();
                self.book_lost(inside.into_iter(), "worker_lost", sink);
                return Err(why);
            }
            self.calibrate_if_due(&mut serving, beat)
        });
        if !self.drafts.is_empty() {
            sink.put(&mut self.drafts);
        }
        match rung {
            Ok(()) => {
                self.retry = Duration::ZERO;
                self.serving = Some(serving);
                Ok(())
            }
            Err(why) => {
                self.lost_workers += 1;
                let stamp = self.last.or(self.waiting.front().map(|w| w.tag.last));
                self.tell(Kind::WorkerLost, stamp, &why, sink);
                Err(why)
            }
        }
    }

    fn deadline(&self) -> Option<Duration> {
        let ms = self.setup.served.first().map_or(1000, |s| s.config().model.manifest.deadline_ms);
        (!self.setup.patient).then_some(Duration::from_millis(ms))
    }

    /// Windows of the next ring: it ends with a window that completes a calibration, for those behind it must be run
    /// with what was learnt.
    fn ring_size(&mut self, slots: usize) -> usize {
        let most = self.waiting.len().min(slots);
        let mut needed: Vec<Option<usize>> =
            self.setup.served.iter_mut().map(|s| s.learning().map(|learning| learning.needed())).collect();
        for i in 0..most {
            let pipeline = self.waiting[i].tag.pipeline;
            let at = self.setup.served.iter().position(|s| s.index() == pipeline);
            if let Some(left) = at.and_then(|at| needed[at].as_mut()) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    return i + 1;
                }
            }
        }
        most
    }

    /// One window's answer: into the statistics, and out as a prediction.
    fn answered(&mut self, serving: &Serving, slot: usize, window: &Window, sink: &mut dyn Sink) {
        let Some(at) = self.setup.served.iter().position(|s| s.index() == window.tag.pipeline) else {
            return;
        };
        let served = &mut self.setup.served[at];
        self.last = Some(window.tag.last);
        let (ok, took_us) = serving.worker.outcome(slot);
        if !ok {
            return sink.lost(served.stream(), 1, "run_failed");
        }
        let values = &mut self.values;
        serving.worker.read(slot, serving.plan.score, values);
        let score = values[0] as f32;
        match served.learning() {
            Some(learning) => {
                if let Some(features) = serving.plan.features {
                    serving.worker.read(slot, features, values);
                    if window.tag.coverage >= 1.0 {
                        learning.learn(&window.values, values);
                    }
                }
            }
            None if !score.is_finite() => return sink.lost(served.stream(), 1, "not_finite"),
            None => {}
        }
        let outputs = serving.published[at].iter().map(|(place, name)| {
            serving.worker.read(slot, *place, values);
            (name.as_str(), values.clone())
        });
        let answered = Answered { score, took_us, outputs: outputs.collect() };
        served.predicted(window, &answered, &mut self.drafts);
    }

    /// Finishes every calibration that has its windows: scores them with what was learnt, for the threshold.
    fn calibrate_if_due(&mut self, serving: &mut Serving, beat: &dyn Fn()) -> Result<(), String> {
        for at in 0..self.setup.served.len() {
            let served = &mut self.setup.served[at];
            let Some(learning) = served.learning().filter(|learning| learning.needed() == 0) else {
                continue;
            };
            let statistics = learning.statistics();
            let windows = std::mem::take(&mut learning.windows);
            served.set_statistics(statistics);
            let highest = self.highest_score(serving, at, &windows, beat);
            let served = &mut self.setup.served[at];
            let Some(learning) = served.learning() else {
                continue;
            };
            learning.windows = windows;
            let highest = match highest {
                Ok(highest) => highest,
                Err(why) => {
                    served.forget_statistics();
                    return Err(why);
                }
            };
            let sha256 = self.file.as_ref().map_or("", |file| &file.sha256);
            let learnt = learning.finish(sha256, highest);
            let text = served.learnt(learnt);
            let name = served.config().name.clone();
            if let Some(stamp) = self.last {
                self.drafts.push(self.setup.events.draft(Kind::ModelCalibrated, stamp, &name, &text));
            }
        }
        Ok(())
    }

    fn highest_score(
        &mut self,
        serving: &mut Serving,
        at: usize,
        windows: &[Box<[f32]>],
        beat: &dyn Fn(),
    ) -> Result<f32, String> {
        let (pipeline, deadline) = (self.setup.served[at].index(), self.deadline());
        let mut highest = 0f32;
        for chunk in windows.chunks(serving.worker.slots()) {
            for (slot, window) in chunk.iter().enumerate() {
                fill(serving, &mut self.setup.served, slot, window, pipeline);
            }
            if let Some(why) = serving.worker.ring(chunk.len(), deadline, beat).died {
                return Err(why);
            }
            for slot in 0..chunk.len() {
                serving.worker.read(slot, serving.plan.score, &mut self.values);
                let score = self.values[0] as f32;
                highest = if score.is_finite() { highest.max(score) } else { highest };
            }
        }
        Ok(highest)
    }
}

fn fill(serving: &mut Serving, served: &mut [Served], slot: usize, values: &[f32], pipeline: u16) {
    let Some(served) = served.iter_mut().find(|s| s.index() == pipeline) else {
        return;
    };
    for (input, feed) in serving.plan.feeds.iter().enumerate() {
        let len = serving.worker.input_len(input);
        let values = served.feed(feed, values, len);
        serving.worker.write(slot, input, values);
    }
}
