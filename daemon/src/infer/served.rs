//! One pipeline, whichever model serves it: its stream, its alarms, the record of each prediction.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    escalate::{Escalation, Verdict},
    fit::Fit,
    plan::Plan,
};
use crate::{
    alarm::{self, Alarms, overrule},
    config,
    flow::{
        Class, Classes, Draft, Finished, Kept, Retain, Scored, Stamp, StreamId, Window,
        board::{Board, LabelSaid},
        lane,
        meter::Meters,
        record::{json_list, json_num, json_str},
    },
    host::Later,
    model::file::hex,
};

/// Folders for what outlives the process; without them nothing is kept (replay).
#[derive(Debug, Clone)]
pub struct Keeps {
    /// Calibrations, by pipeline.
    pub calibration: Later,
    /// Open episodes of alarms, by alarm.
    pub alarms: Later,
    /// Budgets of escalation, by pipeline.
    pub escalation: Later,
}

/// One pipeline being served.
pub struct Served {
    config: config::Pipeline,
    index: u16,
    stream: StreamId,
    drift: StreamId,
    shadow: StreamId,
    /// Channel names, in the model's order.
    names: Vec<String>,
    alarms: Alarms,
    keeps: Option<Keeps>,
    replay: bool,
    meters: Arc<Meters>,
    board: Arc<Board>,
    /// Windows that go to a larger model elsewhere, where that is configured; never in a replay.
    escalation: Option<Escalation>,
    /// What the model said of the newest window.
    said: Scored,
    /// To the store of samples, where it is configured.
    samples: Option<lane::Sender<Finished>>,
}

/// What a worker answered for one window.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The score; `None`: the model only names classes.
    pub score: Option<f32>,
    /// The classes, where the model names them.
    pub classes: Option<Classes>,
    /// µs.
    pub took_us: u32,
    /// Values of the outputs to be published, by name.
    pub outputs: Vec<(Arc<str>, Vec<f64>)>,
    /// By how much each channel drove the score, where the model says it itself.
    pub contributions: Option<Vec<f32>>,
}

impl Served {
    /// A pipeline.
    pub fn new(
        index: u16,
        config: &config::Config,
        (stream, drift, shadow): (StreamId, StreamId, StreamId),
        alarm_streams: &[StreamId],
        boot: &str,
        keeps: Option<Keeps>,
        (meters, board): (Arc<Meters>, Arc<Board>),
    ) -> Self {
        let pipeline = config.pipelines[usize::from(index)].clone();
        let keep = keeps.as_ref().map(|keeps| keeps.alarms.clone());
        let setup = alarm::Parts { config, streams: alarm_streams, boot, keep, board: board.clone() };
        let alarms = Alarms::of_pipeline(setup, index.into());
        let replay = keeps.is_none();
        let names = pipeline.channels.iter().map(|c| config.channels[*c].name.clone()).collect();
        let (escalation, said, samples) = (None, Scored::default(), None);
        Self {
            index,
            stream,
            drift,
            shadow,
            names,
            alarms,
            keeps,
            replay,
            meters,
            board,
            escalation,
            said,
            samples,
            config: pipeline,
        }
    }

    /// The same, and its unsure windows go to a larger model elsewhere.
    #[must_use]
    pub fn with_escalation(self, escalation: Option<Escalation>) -> Self {
        Self { escalation, ..self }
    }

    /// The same, and its windows go to the store of samples.
    #[must_use]
    pub fn with_samples(self, samples: Option<lane::Sender<Finished>>) -> Self {
        Self { samples, ..self }
    }

    /// Which pipeline this is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Where its calibrations are kept.
    pub fn calibrations(&self) -> Option<Later> {
        self.keeps.as_ref().map(|keeps| keeps.calibration.clone())
    }

    /// Its configuration.
    pub fn config(&self) -> &config::Pipeline {
        &self.config
    }

    /// Names of its channels, in the model's order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether any of its alarms is raised.
    pub fn is_alarmed(&self) -> bool {
        self.alarms.is_raised()
    }

    /// A word on its inputs, as a record.
    pub fn drift(&self, members: String, fit: &Fit, window: &Window) -> Draft {
        Draft {
            stream: self.drift,
            class: Class::Status,
            stamp: window.tag.last,
            lineage: Some(fit.lineage.clone()),
            body: members.into(),
            retain: Retain::No,
        }
    }

    /// How a candidate compares with what serves, as a record.
    pub fn shadow(&self, members: String, lineage: Arc<str>, stamp: Stamp) -> Draft {
        let (class, lineage, retain) = (Class::Status, Some(lineage), Retain::No);
        Draft { stream: self.shadow, class, stamp, lineage, body: members.into(), retain }
    }

    /// Its windows wait for too long, or do not any more.
    pub fn set_behind(&self, behind: bool) {
        self.meters.pipelines[usize::from(self.index)].behind.store(behind, Relaxed);
    }

    /// Takes the labels of this pipeline that wait.
    pub fn take_labels(&self) -> Vec<LabelSaid> {
        self.board.take_labels(usize::from(self.index))
    }

    /// Its windows go to the store of samples, so they may get labels.
    pub fn keeps_samples(&self) -> bool {
        self.samples.is_some()
    }

    /// Takes a pending request to recalibrate.
    pub fn take_recalibrate(&self) -> bool {
        self.board.take_recalibrate(usize::from(self.index))
    }

    /// The prediction's record, and those of alarms that changed by it. Returns the places of those that were raised.
    pub fn predicted(
        &mut self,
        fit: &Fit,
        window: &Window,
        answered: &Answered,
        drafts: &mut Vec<Draft>,
    ) -> Vec<usize> {
        let learning = fit.is_learning();
        let threshold = fit.threshold();
        let score = answered.score.filter(|_| !learning);
        let classes = answered.classes.clone();
        let mut said = Scored { score, threshold, direction: fit.direction(), classes, unsure: false };
        said.unsure = self.escalation.as_mut().is_some_and(|escalation| escalation.said(&said));
        let meter = &self.meters.pipelines[usize::from(self.index)];
        meter.predictions.add(1);
        meter.answered(window.tag.last.boot_ns);
        meter.infer.took(u64::from(answered.took_us));
        meter.learning.store(learning, Relaxed);
        meter.threshold.set(threshold.unwrap_or(f32::NAN));
        match score {
            Some(score) => meter.scored(score),
            None => meter.score.set(f32::NAN),
        }
        drafts.push(Draft {
            stream: self.stream,
            class: Class::Score,
            stamp: window.tag.last,
            lineage: Some(fit.lineage.clone()),
            body: self.body(window, score, threshold, answered).into(),
            retain: Retain::No,
        });
        let raised = self.alarms.scored(&said, learning, (&window.tag, &fit.lineage), drafts);
        self.said = said;
        raised
    }

    /// Sends the window that was just predicted to a larger model, where it is configured and the window is unsure. `true`: it is on
    /// its way.
    pub fn escalate(&mut self, now: Option<Stamp>, fit: &Fit, window: &Window, drifted: bool) -> bool {
        let Some((escalation, now)) = self.escalation.as_mut().zip(now) else { return false };
        escalation.window(&now, window, &self.said, &fit.lineage, drifted).is_some()
    }

    /// It awaits an answer, or the disk.
    pub fn awaits(&self) -> bool {
        self.escalation.as_ref().is_some_and(Escalation::awaits)
    }

    /// Hands an answered window to the store of samples, which decides whether it is kept. Never waits: a full lane drops its
    /// oldest window, and that is counted. `keep`: it is kept in any case, as this.
    pub fn keep_sample(&self, fit: &Fit, window: &Window, answered: &Answered, (drifting, keep): (bool, Option<Kept>)) {
        let Some(samples) = &self.samples else { return };
        let score = answered.score.filter(|_| !fit.is_learning());
        let finished = Finished {
            window: window.clone(),
            lineage: fit.lineage.clone(),
            score,
            threshold: fit.threshold(),
            beyond: fit.is_beyond(score) == Some(true),
            drifting,
            raised: self.alarms.raised(),
            keep,
        };
        let mut dropped = Vec::new();
        samples.push(finished, &mut dropped);
        self.meters.samples.lane.add(dropped.len() as u64);
    }

    /// No model serves: nothing evaluates its alarms any more.
    pub fn unwatched(&mut self, stamp: Stamp, drafts: &mut Vec<Draft>) {
        self.alarms.unwatched(stamp, drafts);
    }

    /// Time went on: takes acknowledgements of its alarms, and answers of a larger model.
    pub fn look(&mut self, stamp: Stamp, drafts: &mut Vec<Draft>) {
        self.alarms.acknowledged(stamp, drafts);
        let Some(escalation) = &mut self.escalation else { return };
        for second in escalation.look(&stamp, drafts).iter().filter(|second| second.verdict != Verdict::Unsure) {
            let answer = overrule::Answer {
                anomaly: second.verdict == Verdict::Anomaly,
                class: second.class.as_deref(),
                lineage: &second.lineage,
                digest: &second.digest,
            };
            escalation.acted(self.alarms.overrule(&answer, stamp, drafts));
        }
    }

    fn body(&self, window: &Window, score: Option<f32>, threshold: Option<f32>, answered: &Answered) -> String {
        let tag = &window.tag;
        let mut out = String::with_capacity(160);
        let _ = write!(
            out,
            "\"in_seq\":[{},{}],\"in_t_ns\":[{},{}],\"score\":",
            tag.in_seq.0, tag.in_seq.1, tag.in_t_ns.0, tag.in_t_ns.1
        );
        number(&mut out, score);
        out.push_str(",\"threshold\":");
        number(&mut out, threshold);
        if !self.replay {
            let _ = write!(out, ",\"took_us\":{}", answered.took_us);
        }
        if tag.coverage < 1.0 {
            let _ = write!(out, ",\"coverage\":{}", tag.coverage);
        }
        if self.config.lineage_full {
            let _ = write!(out, ",\"win\":\"sha256:{}\"", digest(&window.values));
        }
        out.push_str(",\"out\":{");
        for (i, (name, values)) in answered.outputs.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            json_str(&mut out, name);
            out.push(':');
            if let [value] = values.as_slice() {
                json_num(&mut out, *value);
            } else {
                out.push('[');
                json_list(&mut out, values);
                out.push(']');
            }
        }
        out.push('}');
        if let Some(classes) = &answered.classes {
            body_of(&mut out, classes);
        }
        out
    }
}

/// The likeliest class, and the probability of each.
fn body_of(out: &mut String, classes: &Classes) {
    if let Some(class) = classes.likeliest() {
        out.push_str(",\"class\":");
        json_str(out, class);
    }
    out.push_str(",\"probabilities\":{");
    for (i, (name, probability)) in classes.names.iter().zip(&classes.probabilities).enumerate() {
        if i > 0 {
            out.push(',');
        }
        json_str(out, name);
        out.push(':');
        number(out, Some(*probability));
    }
    out.push('}');
}

/// A float's shortest text, or null.
fn number(out: &mut String, value: Option<f32>) {
    match value {
        Some(value) if value.is_finite() => {
            let _ = write!(out, "{value}");
        }
        _ => out.push_str("null"),
    }
}

fn digest(values: &[f32]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    values.iter().for_each(|x| hash.update(x.to_le_bytes()));
    hex(&hash.finalize())
}

/// Which of a plan's outputs are published, as (place, name).
pub fn published(plan: &Plan, config: &config::Pipeline) -> Vec<(usize, Arc<str>)> {
    let place = |name: &String| plan.outputs.iter().position(|o| o == name).map(|i| (i, name.as_str().into()));
    config.outputs.iter().filter_map(place).collect()
}
