//! One model in one worker, with what it has learnt of each pipeline it serves. Windows in, answers out; knows nothing of
//! what answers are for.

#[path = "learn.rs"]
mod learn;

use std::{cmp::Ordering, path::PathBuf, sync::Arc, time::Duration};

use super::{
    InferError,
    artifact::Artifact,
    channel::{Loaded, Tensor},
    drift::Inputs,
    feeds::{Feed, Windows},
    fit::{Fit, Known},
    meaning::{Meaning, Misfits, Score},
    plan::{Plan, plan},
    prebuilt::{self, Prebuilt, Started},
    runtime,
    served::{Answered, Keeps, published},
    state::State,
    worker::{Launch, Rung, Worker},
};
use crate::{
    alarm::explain::{self, Usual},
    config::{self, Config, Models, Provider},
    flow::{Direction, Window, verdict::Serving},
    host::{Host, Later, accelerator::Machine},
    model::{manifest::Manifest, slot::Origin},
};

/// One channel of a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Where its values come from and what they are, `source.column × scale + offset unit [how it is read]`: what was learnt of
    /// it belongs to that.
    pub meaning: String,
}

impl Column {
    fn of(config: &Config, channel: usize) -> Self {
        let config::Channel { name, source, column, unit, scale, offset, .. } = &config.channels[channel];
        let from = &config.sources[usize::from(source.0)];
        let value = format!("{}.{column} × {scale} + {offset} {unit}", from.name);
        let meaning = format!("{} [{}]", value.trim_end(), from.origin(&config.channels[channel]));
        Self { name: name.clone(), meaning }
    }
}

/// What workers are started with.
#[derive(Debug, Clone)]
pub struct Launching {
    /// This program, which is also the worker.
    pub program: PathBuf,
    /// ONNX Runtime's library, or why it cannot be used.
    pub runtime: Result<PathBuf, InferError>,
    /// What is to run models.
    pub models: Models,
    /// Pipelines that use the model, in the order of `at`.
    pub pipelines: Vec<config::Pipeline>,
    /// By pipeline: its channels, in the model's order.
    pub columns: Vec<Vec<Column>>,
    /// Where calibrations are kept.
    pub keep: Option<Later>,
    /// The folder of installed models, where engines that a provider builds are kept.
    pub engines: Option<PathBuf>,
}

impl Launching {
    /// For one group of pipelines of a configuration. Without `keeps` nothing is kept.
    pub fn new(host: &Host, config: &Config, group: &[usize], keeps: Option<&Keeps>) -> Self {
        Self {
            program: host.program.clone(),
            runtime: runtime::find(config.models.runtime.as_deref()),
            models: config.models.clone(),
            pipelines: group.iter().map(|pipeline| config.pipelines[*pipeline].clone()).collect(),
            columns: group
                .iter()
                .map(|pipeline| config.pipelines[*pipeline].channels.iter().map(|c| Column::of(config, *c)).collect())
                .collect(),
            keep: keeps.map(|keeps| keeps.calibration.clone()),
            engines: keeps.map(|_| config.device.state_dir.join("models")),
        }
    }

    /// The first pipeline: all of them have the same model and window.
    ///
    /// # Errors
    /// No pipeline uses the model.
    pub fn first(&self) -> Result<&config::Pipeline, InferError> {
        self.pipelines.first().ok_or_else(|| "no pipeline uses the model".into())
    }

    /// The windows that a model with this manifest is fed: it may call the channels by names of its own.
    fn windows(&self, manifest: &Manifest) -> Windows {
        let steps = self.pipelines.first().map_or(0, |pipeline| pipeline.steps);
        let names = self.columns.iter().map(|columns| match &manifest.channels {
            Some(own) if own.len() == columns.len() => own.clone(),
            _ => columns.iter().map(|column| column.name.clone()).collect(),
        });
        Windows { steps, names: names.collect() }
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
    /// By output: values that answer one window.
    lens: Vec<usize>,
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
        launching.first()?;
        let mut extra = extra.to_vec();
        extra.extend(launching.pipelines.iter().flat_map(|p| p.outputs.clone()));
        extra.extend(source.manifest.contributions.clone());
        let windows = launching.windows(&source.manifest);
        let launch = Launch {
            name: source.name(),
            program: launching.program.clone(),
            runtime: launching.runtime.clone()?,
            model,
            provider: provider.clone(),
            memory_bytes: launching.models.memory_bytes,
            engine: None,
            warm_up: launching.pipelines.iter().any(|p| p.warm_up),
            judge,
        };
        if let Some(why) = Machine::default().missing(&provider.name, &launch.runtime) {
            return Err(why.into());
        }
        let manifest = &source.manifest;
        let window = format!("{} rows of {}", windows.steps, windows.width());
        let bundle = matches!(source.origin, Origin::Slot(_)).then(|| source.bundle.to_string());
        let prebuilt = Prebuilt::new(launching.engines.as_deref(), &launch, window, bundle);
        let plan = |loaded: &Loaded| plan(loaded, manifest, &windows, &extra);
        let Started { worker, loaded, mut plan, note } = prebuilt::start(&launch, prebuilt.as_ref(), &plan, beat)?;
        let lens = answer_lens(&plan, &worker, manifest, &windows)?;
        taken(provider, &loaded)?;
        plan.notes.extend(note);
        plan.notes.extend(launching.pipelines.iter().filter(|_| !plan.state.is_empty()).filter_map(overlap));
        let sha256 = &launch.model.sha256;
        let fit = |(p, columns): (&config::Pipeline, &Vec<Column>)| {
            let known = Known {
                sha256,
                provider: &provider.name,
                features: plan.features.map_or(0, |f| lens[f]),
                inputs: columns.iter().map(|column| column.meaning.clone()).chain([rows_of(p)]).collect(),
                state: State::new(plan.state.iter().map(|(_, input)| worker.input_len(*input))),
            };
            Fit::new(p, source, known, launching.keep.clone())
        };
        Ok(Self {
            contributions: source
                .manifest
                .contributions
                .as_ref()
                .and_then(|name| plan.outputs.iter().position(|o| o == name)),
            fits: launching.pipelines.iter().zip(&launching.columns).map(fit).collect(),
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
            lens,
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
        for note in &self.plan.notes {
            text.push_str("; ");
            text.push_str(note);
        }
        for (fit, why) in self.fits.iter().filter_map(|fit| Some((fit, fit.discarded.as_ref()?))) {
            text.push_str(&format!("; pipeline {} calibrates again: {why}", fit.pipeline));
        }
        text
    }

    /// What its outputs mean and what its inputs take, in words.
    pub fn meaning(&self) -> String {
        let meaning = self.plan.meaning.describe(&self.source.manifest, &self.plan.outputs);
        std::iter::once(&meaning).chain(&self.plan.notes).cloned().collect::<Vec<_>>().join("; ")
    }

    /// What the worker could do that it must not be able to, where that was asked.
    pub fn judged(&self) -> &[(String, String)] {
        &self.worker.judged
    }

    /// Windows that fit one ring.
    pub fn slots(&self) -> usize {
        self.worker.slots()
    }

    /// Puts a window of the pipeline at `at` into a slot, behind the windows of this pipeline that were answered so far.
    pub fn put(&mut self, slot: usize, at: usize, window: &Window) {
        self.fits[at].state.follow(window.tag.number);
        self.fill(slot, at, &window.values);
    }

    fn fill(&mut self, slot: usize, at: usize, window: &[f32]) {
        for (input, feed) in self.plan.feeds[at].iter().enumerate() {
            let len = self.worker.input_len(input);
            let values = self.fits[at].feed(feed, window, len);
            self.worker.write(slot, input, values);
        }
    }

    /// Windows of the next ring, of those for the pipelines at `places`: it ends with the window that completes a
    /// calibration, because those behind it must be run with what was learnt. With a state it has one window of a pipeline.
    pub fn ring_size(&mut self, places: &[usize]) -> usize {
        let mut needed: Vec<Option<usize>> =
            self.fits.iter_mut().map(|fit| fit.learning().map(|learning| learning.needed())).collect();
        for (i, at) in places.iter().enumerate() {
            if !self.plan.state.is_empty() && places[..i].contains(at) {
                return i;
            }
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

    /// Whether an input takes a state.
    pub fn is_state(&self, input: &str) -> bool {
        self.plan.state.iter().any(|(_, place)| self.plan.inputs[*place] == input)
    }

    /// What the first pipeline feeds the model for this window, by input; without a state.
    pub fn fed(&mut self, window: &[f32]) -> std::collections::BTreeMap<String, Vec<f32>> {
        let mut all = std::collections::BTreeMap::new();
        for (input, feed) in self.plan.feeds[0].iter().enumerate().filter(|(_, feed)| !matches!(feed, Feed::State(_))) {
            let len = self.worker.input_len(input);
            all.insert(self.plan.inputs[input].clone(), self.fits[0].feed(feed, window, len).to_vec());
        }
        all
    }

    /// What its worker holds.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.worker.memory_bytes()
    }

    /// Whether its worker is still there.
    pub fn is_alive(&mut self) -> bool {
        self.worker.is_alive()
    }

    /// One case: every input by name, and the outputs that come. A state that the case does not name begins as zeros.
    ///
    /// # Errors
    /// An input is missing or has another length, or the worker died, was too late or failed.
    pub fn case(
        &mut self,
        inputs: &std::collections::BTreeMap<String, Vec<f32>>,
        deadline: Duration,
        beat: &dyn Fn(),
    ) -> Result<(Outputs, u32), InferError> {
        for (place, name) in self.plan.inputs.iter().enumerate() {
            let len = self.worker.input_len(place);
            let zeros = || self.plan.state.iter().any(|(_, input)| *input == place).then(|| vec![0.0; len]);
            let values = inputs.get(name).cloned().or_else(zeros);
            let values = values.ok_or_else(|| format!("says nothing for input `{name}`"))?;
            if values.len() != len {
                return Err(format!("input `{name}` has {} values, and the model takes {len}", values.len()).into());
            }
            self.worker.write(0, place, &values);
        }
        if let Some(why) = self.worker.ring(1, Some(deadline), beat).died {
            return Err(why.into());
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
        self.carry(slot, at, window.tag.number);
        let score = self.score(slot, at, &window.values);
        let (values, worker, lens) = (&mut self.values, &self.worker, &self.lens);
        let mut read = |place: usize| {
            worker.read(slot, place, values);
            values.truncate(lens[place]);
            values.clone()
        };
        let classes = self.plan.meaning.classes.as_ref().map(|(place, names)| Meaning::classes(names, &read(*place)));
        match (self.fits[at].learning(), self.plan.features) {
            (Some(learning), Some(features)) => {
                if window.tag.coverage >= 1.0 {
                    learning.learn((window.tag.number, &window.values), &read(features));
                }
            }
            (Some(learning), None) => {
                if window.tag.coverage >= 1.0 && score.is_some_and(f32::is_finite) {
                    learning.learn((window.tag.number, &window.values), &[]);
                }
            }
            (None, _) => {
                let of_classes = classes.iter().flat_map(|classes| &classes.probabilities);
                if !score.iter().chain(of_classes).all(|x| x.is_finite()) {
                    return Outcome::None("not_finite");
                }
            }
        }
        let contributions = self.contributions.map(|place| read(place).iter().map(|x| *x as f32).collect());
        let outputs = self.published[at].iter().map(|(place, name)| (name.clone(), read(*place)));
        Outcome::Answer(Answered { score, classes, took_us, outputs: outputs.collect(), contributions })
    }

    /// What a window that ran leaves for the next one.
    fn carry(&mut self, slot: usize, at: usize, number: u64) {
        if self.plan.state.is_empty() {
            return;
        }
        let mut left = Vec::with_capacity(self.plan.state.len());
        for (output, _) in &self.plan.state {
            self.worker.read(slot, *output, &mut self.values);
            left.push(self.values.iter().map(|x| *x as f32).collect());
        }
        if !self.fits[at].state.took(number, left) {
            let pipeline = &self.fits[at].pipeline;
            tracing::warn!(
                pipeline,
                "the state of model {} is no number: it begins again as zeros",
                self.source.name()
            );
        }
    }

    /// The score in a slot that ran on this window; `None`: the model only names classes.
    fn score(&mut self, slot: usize, at: usize, window: &[f32]) -> Option<f32> {
        let (place, score) = self.plan.meaning.score?;
        self.worker.read(slot, place, &mut self.values);
        self.values.truncate(self.lens[place]);
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

    /// Whether the inputs of this pipeline drift, as far as the bundle says what they should be.
    pub fn is_drifting(&self, at: usize) -> bool {
        self.inputs[at].as_ref().is_some_and(Inputs::is_drifting)
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
        // With the state that the window itself was fed.
        self.fits[at].state.swap();
        for (slot, values) in occluded.iter().enumerate().take(n) {
            self.fill(slot, at, values);
        }
        self.fits[at].state.swap();
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
}

/// By output: how many values answer one window.
///
/// # Errors
/// Sizes that do not fit what the model's outputs are used for.
fn answer_lens(plan: &Plan, worker: &Worker, manifest: &Manifest, windows: &Windows) -> Result<Vec<usize>, Misfits> {
    let (outputs, inputs) = (|output| worker.output_len(output), |input| worker.input_len(input));
    let lens: Vec<usize> = (0..plan.outputs.len()).map(|output| plan.answer_len(output, outputs(output))).collect();
    let mut misfits = plan.meaning.check(manifest, &plan.outputs, &lens, windows.steps * windows.width());
    misfits.0.extend(plan.check_state(outputs, inputs).0);
    if misfits.0.is_empty() { Ok(lens) } else { Err(misfits) }
}

/// What a window is, apart from its channels.
fn rows_of(pipeline: &config::Pipeline) -> String {
    let grid = pipeline.step_ms.map(|ms| format!(" of {ms} ms")).unwrap_or_default();
    format!("{} rows{grid}", pipeline.steps)
}

/// Rows that go into a state several times, or not at all.
fn overlap(pipeline: &config::Pipeline) -> Option<String> {
    let config::Pipeline { name, hop, steps, .. } = pipeline;
    match hop.cmp(steps) {
        Ordering::Less => Some(format!(
            "pipeline {name}: its windows overlap (hop_steps is {hop}, a window has {steps} rows): rows go into the state more than once"
        )),
        Ordering::Greater => Some(format!(
            "pipeline {name}: rows between its windows (hop_steps is {hop}, a window has {steps} rows) do not go into the state"
        )),
        Ordering::Equal => None,
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
