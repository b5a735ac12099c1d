//! One model in one worker, with what it has learnt of each pipeline it serves. Windows in, answers out; knows nothing of
//! what answers are for.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    artifact::Artifact,
    channel::{Loaded, Tensor},
    drift::Inputs,
    fit::Fit,
    meaning::{Meaning, Misfits, Score},
    plan::{Feed, Plan, plan},
    runtime,
    served::{Answered, Keeps, published},
    worker::{Launch, Rung, Worker},
};
use crate::{
    alarm::explain::{self, Usual},
    config::{self, Config, Models, Provider},
    flow::{Direction, Window, verdict::Serving},
    host::{Host, Later},
};

/// What workers are started with.
#[derive(Debug, Clone)]
pub struct Launching {
    /// This program, which is also the worker.
    pub program: PathBuf,
    /// ONNX Runtime's library, or why it cannot be used.
    pub runtime: Result<PathBuf, String>,
    /// What is to run models.
    pub models: Models,
    /// Pipelines that use the model, in the order of `at`.
    pub pipelines: Vec<config::Pipeline>,
    /// Where calibrations are kept.
    pub keep: Option<Later>,
}

impl Launching {
    /// For one group of pipelines of a configuration. Without `keeps` nothing is kept.
    pub fn new(host: &Host, config: &Config, group: &[usize], keeps: Option<&Keeps>) -> Self {
        Self {
            program: host.program.clone(),
            runtime: runtime::find(config.models.runtime.as_deref()),
            models: config.models.clone(),
            pipelines: group.iter().map(|pipeline| config.pipelines[*pipeline].clone()).collect(),
            keep: keeps.map(|keeps| keeps.calibration.clone()),
        }
    }

    /// The first pipeline: all of them have the same model and window.
    ///
    /// # Errors
    /// No pipeline uses the model.
    pub fn first(&self) -> Result<&config::Pipeline, String> {
        self.pipelines.first().ok_or_else(|| "no pipeline uses the model".into())
    }
}

/// What came of a window.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// An answer; the score means nothing while it is learning.
    Answer(Answered),
    /// None, and why.
    None(&'static str),
}

/// A model that runs.
pub struct Running {
    worker: Worker,
    plan: Plan,
    published: Vec<Vec<(usize, Arc<str>)>>,
    /// Place of the output that says which channels drove the score, where the model has one.
    contributions: Option<usize>,
    /// By pipeline.
    pub fits: Vec<Fit>,
    /// By pipeline: whether its inputs still look like what the model was made with, where the bundle says.
    inputs: Vec<Option<Inputs>>,
    /// By pipeline: what is usual for its channels.
    usual: Vec<Usual>,
    /// What it was started from.
    pub source: Artifact,
    /// For the status document.
    pub serving: Serving,
    /// File name of ONNX Runtime's library, which has its version.
    pub runtime: String,
    /// Providers that were passed over, and why.
    pub passed_over: Vec<String>,
    declared: (Declared, Declared),
    values: Vec<f64>,
}

/// Outputs by name.
pub type Outputs = Vec<(String, Vec<f64>)>;

type Declared = Vec<(String, String, Vec<i64>)>;

impl Running {
    /// Starts a worker on the first provider that takes the model. With `require` there is no other way than those named.
    ///
    /// # Errors
    /// What does not fit, or why no provider takes the model.
    pub fn start(launching: &Launching, source: &Artifact, extra: &[String], beat: &dyn Fn()) -> Result<Self, Misfits> {
        let (mut passed_over, mut all) = (Vec::new(), Vec::new());
        for provider in launching.models.providers_for(&source.manifest) {
            match Self::start_on(launching, source, &provider, extra, None, beat) {
                Ok(mut running) => {
                    running.passed_over = passed_over;
                    return Ok(running);
                }
                // A fault of the model or the library shows on every provider; the last provider's error is reported.
                Err(why) => {
                    passed_over.push(format!("{}: {why}", provider.name));
                    all.push(why);
                }
            }
        }
        match all.as_slice() {
            [first, rest @ ..] if rest.iter().all(|other| other == first) => Err(first.clone()),
            _ => Err(passed_over.join("; ").into()),
        }
    }

    /// Starts a worker on one provider.
    ///
    /// # Errors
    /// What does not fit, or why the provider does not take the model.
    pub fn start_on(
        launching: &Launching,
        source: &Artifact,
        provider: &Provider,
        extra: &[String],
        judge: Option<PathBuf>,
        beat: &dyn Fn(),
    ) -> Result<Self, Misfits> {
        let model = source.file_for(provider)?.clone();
        let first = launching.first()?;
        let mut extra = extra.to_vec();
        extra.extend(launching.pipelines.iter().flat_map(|p| p.outputs.clone()));
        extra.extend(source.manifest.contributions.clone());
        let shape = (first.steps, first.channels.len());
        let launch = Launch {
            name: source.name(),
            program: launching.program.clone(),
            runtime: launching.runtime.clone()?,
            model,
            provider: provider.clone(),
            memory_bytes: launching.models.memory_bytes,
            judge,
        };
        let manifest = &source.manifest;
        let (worker, loaded, plan) = Worker::start(&launch, |loaded| plan(loaded, manifest, shape, &extra), beat)?;
        let sizes: Vec<usize> = (0..plan.outputs.len()).map(|output| worker.output_len(output)).collect();
        let misfits = plan.meaning.check(manifest, &plan.outputs, &sizes, shape.0 * shape.1);
        if !misfits.0.is_empty() {
            return Err(misfits);
        }
        taken(provider, &loaded)?;
        let features = plan.features.map_or(0, |f| worker.output_len(f));
        let sha256 = &launch.model.sha256;
        let fit = |p| Fit::new(p, source, (sha256, &provider.name), features, launching.keep.clone());
        Ok(Self {
            contributions: source
                .manifest
                .contributions
                .as_ref()
                .and_then(|name| plan.outputs.iter().position(|o| o == name)),
            fits: launching.pipelines.iter().map(fit).collect(),
            published: launching.pipelines.iter().map(|p| published(&plan, p)).collect(),
            inputs: launching.pipelines.iter().map(|p| inputs(p, source)).collect(),
            usual: launching.pipelines.iter().map(|_| Usual::default()).collect(),
            serving: Serving {
                model: source.name(),
                sha256: sha256.clone(),
                slot: source.origin.word(),
                unsigned: source.unsigned,
                provider: provider.name.clone(),
                placement: loaded.placement.iter().map(|p| (p.provider.clone(), p.nodes)).collect(),
                sandbox: loaded.sandbox,
            },
            source: source.clone(),
            runtime: loaded.runtime,
            passed_over: Vec::new(),
            values: Vec::new(),
            declared: (declared(&loaded.inputs), declared(&loaded.outputs)),
            worker,
            plan,
        })
    }

    /// What it says of itself: `serving m@1 (sha256 …) in slot a on cpu: CPUExecutionProvider 12 nodes; …`.
    pub fn describe(&self) -> String {
        let Serving { sha256, provider, slot, sandbox, .. } = &self.serving;
        let nodes: Vec<String> = self.serving.placement.iter().map(|(name, n)| format!("{name} {n} nodes")).collect();
        let (name, sha, nodes) = (self.source.name(), &sha256[..12], nodes.join(", "));
        let mut text = format!("{name} (sha256 {sha}…, {slot}) on {provider}: {nodes}; {sandbox}; {}", self.runtime);
        for why in &self.passed_over {
            text.push_str("; passed over ");
            text.push_str(why);
        }
        text
    }

    /// What its outputs mean, in words.
    pub fn meaning(&self) -> String {
        self.plan.meaning.describe(&self.source.manifest, &self.plan.outputs)
    }

    /// What the worker could do that it must not be able to, where that was asked.
    pub fn judged(&self) -> &[(String, String)] {
        &self.worker.judged
    }

    /// Windows that fit one ring.
    pub fn slots(&self) -> usize {
        self.worker.slots()
    }

    /// Puts a window of the pipeline at `at` into a slot.
    pub fn fill(&mut self, slot: usize, at: usize, window: &[f32]) {
        for (input, feed) in self.plan.feeds.iter().enumerate() {
            let len = self.worker.input_len(input);
            let values = self.fits[at].feed(feed, window, len);
            self.worker.write(slot, input, values);
        }
    }

    /// Windows of the next ring, of those for the pipelines at `places`: it ends with the window that completes a
    /// calibration, because those behind it must be run with what was learnt.
    pub fn ring_size(&mut self, places: &[usize]) -> usize {
        let mut needed: Vec<Option<usize>> =
            self.fits.iter_mut().map(|fit| fit.learning().map(|learning| learning.needed())).collect();
        for (i, at) in places.iter().enumerate() {
            if let Some(left) = needed[*at].as_mut() {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    return i + 1;
                }
            }
        }
        places.len()
    }

    /// Runs the first slots.
    pub fn ring(&mut self, count: usize, deadline: Option<Duration>, beat: &dyn Fn()) -> Rung {
        self.worker.ring(count, deadline, beat)
    }

    /// How much it holds, where that is more than it may, bytes.
    pub fn over_memory(&self) -> Option<u64> {
        self.worker.over_memory()
    }

    /// What the model declares of its inputs: name, type, shape.
    pub fn inputs(&self) -> Vec<(String, String, Vec<i64>)> {
        self.declared.0.clone()
    }

    /// The same of its outputs.
    pub fn outputs(&self) -> Vec<(String, String, Vec<i64>)> {
        self.declared.1.clone()
    }

    /// Values of each input.
    pub fn input_sizes(&self) -> Vec<(String, usize)> {
        let sizes = self.plan.inputs.iter().enumerate();
        sizes.map(|(place, name)| (name.clone(), self.worker.input_len(place))).collect()
    }

    /// What its worker holds.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.worker.memory_bytes()
    }

    /// Whether its worker is still there.
    pub fn is_alive(&mut self) -> bool {
        self.worker.is_alive()
    }

    /// One case: every input by name, and the outputs that come.
    pub fn case(
        &mut self,
        inputs: &std::collections::BTreeMap<String, Vec<f32>>,
        deadline: Duration,
        beat: &dyn Fn(),
    ) -> Result<(Outputs, u32), String> {
        for (place, name) in self.plan.inputs.iter().enumerate() {
            let len = self.worker.input_len(place);
            let values = inputs.get(name).ok_or_else(|| format!("says nothing for input `{name}`"))?;
            if values.len() != len {
                return Err(format!("input `{name}` has {} values, and the model takes {len}", values.len()));
            }
            self.worker.write(0, place, values);
        }
        if let Some(why) = self.worker.ring(1, Some(deadline), beat).died {
            return Err(why);
        }
        let (ok, took_us) = self.worker.outcome(0);
        if !ok {
            return Err("the run failed".into());
        }
        let mut all = Vec::new();
        for (place, name) in self.plan.outputs.iter().enumerate() {
            let mut values = Vec::new();
            self.worker.read(0, place, &mut values);
            all.push((name.clone(), values));
        }
        Ok((all, took_us))
    }

    /// Takes a slot's answer: into the statistics while learning, and out.
    pub fn answer(&mut self, slot: usize, at: usize, window: &Window) -> Outcome {
        let (ok, took_us) = self.worker.outcome(slot);
        if !ok {
            return Outcome::None("run_failed");
        }
        let score = self.score(slot, at, &window.values);
        let values = &mut self.values;
        let classes = self.plan.meaning.classes.as_ref().map(|(place, names)| {
            self.worker.read(slot, *place, values);
            Meaning::classes(names, values)
        });
        match (self.fits[at].learning(), self.plan.features) {
            (Some(learning), Some(features)) => {
                self.worker.read(slot, features, values);
                if window.tag.coverage >= 1.0 {
                    learning.learn(&window.values, values);
                }
            }
            (Some(learning), None) => {
                if window.tag.coverage >= 1.0 && score.is_some_and(f32::is_finite) {
                    learning.learn(&window.values, &[]);
                }
            }
            (None, _) => {
                let of_classes = classes.iter().flat_map(|classes| &classes.probabilities);
                if !score.iter().chain(of_classes).all(|x| x.is_finite()) {
                    return Outcome::None("not_finite");
                }
            }
        }
        let contributions = self.contributions.map(|place| {
            self.worker.read(slot, place, values);
            values.iter().map(|x| *x as f32).collect()
        });
        let outputs = self.published[at].iter().map(|(place, name)| {
            self.worker.read(slot, *place, values);
            (name.clone(), values.clone())
        });
        Outcome::Answer(Answered { score, classes, took_us, outputs: outputs.collect(), contributions })
    }

    /// The score in a slot that ran on this window; `None`: the model only names classes.
    fn score(&mut self, slot: usize, at: usize, window: &[f32]) -> Option<f32> {
        let (place, score) = self.plan.meaning.score?;
        self.worker.read(slot, place, &mut self.values);
        let fed = match score {
            Score::Distance(_) => self.fits[at].feed(&Feed::Window(self.plan.layout()), window, window.len()),
            Score::Value(_) | Score::Reduced(_) => &[],
        };
        Some(score.of(&self.values, fed) as f32)
    }

    /// What an answered window says of the inputs: the members of a record, when a stretch of time is over.
    pub fn looked_at(&mut self, at: usize, window: &Window, width: usize, alarmed: bool) -> Option<String> {
        if !alarmed {
            self.usual[at].take(window, width);
        }
        self.inputs[at].as_mut()?.take(window, alarmed)
    }

    /// Which channels drove a score: members for the alarm's record; empty where that cannot be said in time.
    pub fn explain(
        &mut self,
        at: usize,
        window: &Window,
        answered: &Answered,
        names: &[String],
        deadline: Option<Duration>,
        beat: &dyn Fn(),
    ) -> Result<String, String> {
        if let Some(said) = answered.contributions.as_ref().filter(|said| said.len() == names.len()) {
            return Ok(explain::members("model", names.iter().map(String::as_str).zip(said.iter().copied()).collect()));
        }
        let Some(score) = answered.score else { return Ok(String::new()) };
        let is_low = self.source.manifest.scoring.direction == Direction::Low;
        let occluded = self.usual[at].occluded(window, answered.took_us);
        let n = occluded.len().min(self.slots());
        for (slot, values) in occluded.iter().enumerate().take(n) {
            self.fill(slot, at, values);
        }
        if n == 0 {
            return Ok(String::new());
        }
        if let Some(why) = self.ring(n, deadline, beat).died {
            return Err(why);
        }
        let mut left = Vec::new();
        for (slot, name) in names.iter().enumerate().take(n) {
            // A slot that did not run has no answer in it.
            if !self.worker.outcome(slot).0 {
                return Ok(String::new());
            }
            let without = self.score(slot, at, &occluded[slot]).unwrap_or(f32::NAN);
            left.push((name.as_str(), if is_low { without - score } else { score - without }));
        }
        Ok(explain::members("occlusion", left))
    }

    /// Whether any pipeline's statistics are still being taken.
    pub fn is_learning(&self) -> bool {
        self.fits.iter().any(Fit::is_learning)
    }

    /// Finishes every calibration that has its windows: scores them with what was learnt, for the threshold. Returns what
    /// to tell, by pipeline.
    pub fn calibrate_if_due(
        &mut self,
        deadline: Option<Duration>,
        beat: &dyn Fn(),
    ) -> Result<Vec<(usize, String)>, String> {
        let mut finished = Vec::new();
        for at in 0..self.fits.len() {
            let Some(learning) = self.fits[at].learning().filter(|learning| learning.needed() == 0) else {
                continue;
            };
            let statistics = learning.statistics();
            let windows = std::mem::take(&mut learning.windows);
            self.fits[at].set_statistics(Some(statistics));
            let scores = self.scores(at, &windows, deadline, beat);
            let fit = &mut self.fits[at];
            if let Some(learning) = fit.learning() {
                learning.windows = windows;
            }
            match scores {
                Ok(scores) => finished.push((at, fit.learnt(&scores))),
                Err(why) => {
                    fit.set_statistics(None);
                    return Err(why);
                }
            }
        }
        Ok(finished)
    }

    /// The scores of windows, as far as they are numbers.
    fn scores(
        &mut self,
        at: usize,
        windows: &[Box<[f32]>],
        deadline: Option<Duration>,
        beat: &dyn Fn(),
    ) -> Result<Vec<f32>, String> {
        let mut scores = Vec::with_capacity(windows.len());
        for chunk in windows.chunks(self.worker.slots()) {
            for (slot, window) in chunk.iter().enumerate() {
                self.fill(slot, at, window);
            }
            if let Some(why) = self.worker.ring(chunk.len(), deadline, beat).died {
                return Err(why);
            }
            for (slot, window) in chunk.iter().enumerate() {
                if self.worker.outcome(slot).0 {
                    scores.extend(self.score(slot, at, window).filter(|score| score.is_finite()));
                }
            }
        }
        Ok(scores)
    }
}

fn inputs(pipeline: &config::Pipeline, source: &Artifact) -> Option<Inputs> {
    let names = source.manifest.channels.as_ref().filter(|names| names.len() == pipeline.channels.len())?;
    Inputs::new(&pipeline.name, names, pipeline.hop, source.baseline.as_ref()?)
}

fn declared(tensors: &[Tensor]) -> Declared {
    tensors.iter().map(|t| (t.name.clone(), t.kind.clone(), t.shape.clone())).collect()
}

/// Rejects a provider that was requested and runs no node: ONNX Runtime does not report this by itself.
fn taken(provider: &Provider, loaded: &Loaded) -> Result<(), String> {
    let on_it =
        loaded.placement.iter().filter(|p| p.provider != "CPUExecutionProvider").map(|p| p.nodes).sum::<usize>();
    if provider.name == "cpu" || on_it > 0 { Ok(()) } else { Err("it took no node of the model".into()) }
}
