//! One model as it fits one pipeline: what it has learnt there, what it is fed, and how its answers are signed (lineage).

use std::{fmt::Write, sync::Arc};

use sha2::{Digest, Sha256};

use super::{
    artifact::Artifact,
    calibrate::{Calibration, Learning, Learnt, Wanted},
    feeds::Feed,
    state::State,
    tail::{self, Tail},
};
use crate::{
    config,
    flow::{Direction, board::LabelSaid, record::json_str, samples::Label},
    host::Later,
    model::{file::hex, manifest::Layout},
};

/// What the worker showed of a model, and what is known of a pipeline's channels.
pub struct Known<'a> {
    /// SHA-256 of the model's file, hex.
    pub sha256: &'a str,
    /// What runs it.
    pub provider: &'a str,
    /// How many features it has.
    pub features: usize,
    /// What the channels are, in the model's order: `Column::meaning`; and the window at the end.
    pub inputs: Vec<String>,
    /// What is carried from window to window.
    pub state: State,
}

/// A model in a pipeline.
pub struct Fit {
    source: Artifact,
    /// Its name.
    pub pipeline: String,
    width: usize,
    threshold: Option<f32>,
    /// False alarms a week from which a threshold is learnt, and the tail of the scores; without one while a calibration is
    /// learnt, on which the scores depend.
    budget: Option<f64>,
    tail: Option<Tail>,
    sha256: String,
    provider: String,
    keep: Option<Later>,
    calibration: Calibration,
    /// Center and scale that are fed; `None` while learning: 0 and 1.
    statistics: Option<(Vec<f32>, Vec<f32>)>,
    inputs: Vec<String>,
    /// What is carried from window to window.
    pub state: State,
    /// Why a saved calibration was discarded, if one was.
    pub discarded: Option<String>,
    /// The envelope's `lineage`.
    pub lineage: Arc<str>,
    scratch: Vec<f32>,
}

impl Fit {
    /// Takes up the calibration that was kept for this very model, or begins one.
    pub fn new(pipeline: &config::Pipeline, source: &Artifact, known: Known<'_>, keep: Option<Later>) -> Self {
        let Known { sha256, provider, features, inputs, state } = known;
        let mut fit = Self {
            pipeline: pipeline.name.clone(),
            width: pipeline.channels.len(),
            threshold: pipeline.threshold.or(source.manifest.threshold),
            budget: pipeline.budget,
            tail: None,
            source: source.clone(),
            sha256: sha256.into(),
            provider: provider.into(),
            keep,
            calibration: Calibration::None,
            statistics: None,
            inputs,
            state,
            discarded: None,
            lineage: "".into(),
            scratch: Vec::new(),
        };
        if let Some(config) = &source.manifest.calibration {
            fit.calibration = match fit.kept(features) {
                Some(learnt) => {
                    fit.statistics = Some((learnt.center.clone(), learnt.scale.clone()));
                    Calibration::Learnt(Box::new(learnt))
                }
                None => Calibration::Learning(Learning::new(config.clone())),
            };
        }
        fit.begin_tail();
        fit.lineage = fit.lineage_json();
        fit
    }

    /// One file per model, so that a rollback to the previous model needs no calibration.
    fn file(&self) -> String {
        format!("{}.{}", self.pipeline, &self.sha256[..16.min(self.sha256.len())])
    }

    fn kept(&mut self, features: usize) -> Option<Learnt> {
        let keep = self.keep.as_ref()?;
        // Before there were slots it was kept by the pipeline's name alone.
        let bytes = match keep
            .load_patiently(&self.file())
            .transpose()
            .or_else(|| keep.load_patiently(&self.pipeline).transpose())?
        {
            Ok(bytes) => bytes,
            Err(why) => {
                let pipeline = &self.pipeline;
                tracing::error!(
                    pipeline,
                    "read the saved calibration: {why}; calibrating again, and the file is overwritten"
                );
                return None;
            }
        };
        match Learnt::read(&bytes, &self.wanted(&self.basis(), features)) {
            Ok(learnt) => {
                // Of an earlier build: from now on it says what its channels were.
                if learnt.to_bytes() != bytes {
                    keep.save(&self.file(), learnt.to_bytes());
                }
                Some(learnt)
            }
            Err(why) => {
                let pipeline = &self.pipeline;
                tracing::warn!(pipeline, "the saved calibration is discarded: {why}; calibrating again");
                self.discarded = Some(why);
                None
            }
        }
    }

    fn wanted<'a>(&'a self, basis: &'a str, features: usize) -> Wanted<'a> {
        Wanted { model_sha256: &self.sha256, basis, inputs: &self.inputs, features }
    }

    fn lineage_json(&self) -> Arc<str> {
        let mut out = String::from("{\"model\":");
        json_str(&mut out, &self.source.name());
        let (sha, slot) = (&self.sha256, self.source.origin.word());
        let cal = match self.tail.as_ref().and_then(Tail::digest) {
            Some(tail) => format!("sha256:{}", hex(&Sha256::digest(self.calibration.word() + &tail))),
            None => self.calibration.word(),
        };
        let _ = write!(out, ",\"sha256\":\"{sha}\",\"slot\":\"{slot}\",\"provider\":");
        json_str(&mut out, &self.provider);
        let _ = write!(out, ",\"cal\":\"{cal}\",\"unsigned\":{}}}", self.source.unsigned);
        out.into()
    }

    /// Discards the calibration, in memory and on disk, and starts another one.
    pub fn recalibrate(&mut self) {
        let config = self.source.manifest.calibration.clone();
        if config.is_none() && self.budget.is_none() {
            return;
        }
        tracing::info!(pipeline = self.pipeline, "recalibrating: the previous calibration is discarded");
        for name in [self.file(), self.pipeline.clone(), self.tail_file()] {
            if let Some(keep) = &self.keep {
                keep.remove(&name);
            }
        }
        if let Some(config) = config {
            self.statistics = None;
            self.state.reset();
            self.calibration = Calibration::Learning(Learning::new(config));
        }
        self.tail = self.new_tail();
        self.lineage = self.lineage_json();
    }

    /// Values for one input of the model, for this window.
    pub fn feed(&mut self, feed: &Feed, window: &[f32], len: usize) -> &[f32] {
        self.scratch.clear();
        let width = self.width;
        match (feed, &self.statistics) {
            (Feed::Window(Layout::StepsFirst), _) => self.scratch.extend_from_slice(window),
            (Feed::Window(Layout::ChannelsFirst), _) => {
                self.scratch.extend((0..width).flat_map(|c| window.iter().skip(c).step_by(width)));
            }
            (Feed::Channels(places, Layout::StepsFirst), _) => {
                self.scratch.extend(window.chunks_exact(width).flat_map(|row| places.iter().map(|c| row[*c])));
            }
            (Feed::Channels(places, Layout::ChannelsFirst), _) => {
                self.scratch.extend(places.iter().flat_map(|c| window.iter().skip(*c).step_by(width)));
            }
            (Feed::State(place), _) => self.scratch.extend_from_slice(self.state.of(*place)),
            (Feed::Param(values), _) => self.scratch.extend_from_slice(values),
            (Feed::Center, Some((center, _))) => self.scratch.extend_from_slice(center),
            (Feed::Scale, Some((_, scale))) => self.scratch.extend_from_slice(scale),
            (Feed::Center, None) => self.scratch.resize(len, 0.0),
            (Feed::Scale, None) => self.scratch.resize(len, 1.0),
        }
        // A batch that is fixed: the same window in each place.
        let one = self.scratch.len();
        while one > 0 && matches!(feed, Feed::Window(_) | Feed::Channels(..)) && self.scratch.len() + one <= len {
            self.scratch.extend_from_within(..one);
        }
        &self.scratch
    }

    /// Still taking statistics.
    pub fn learning(&mut self) -> Option<&mut Learning> {
        match &mut self.calibration {
            Calibration::Learning(learning) => Some(learning),
            _ => None,
        }
    }

    /// The same, to look at.
    pub fn is_learning(&self) -> bool {
        matches!(self.calibration, Calibration::Learning(_))
    }

    /// From now on these are fed; `None`: the worker died before the threshold was known.
    pub fn set_statistics(&mut self, statistics: Option<(Vec<f32>, Vec<f32>)>) {
        self.statistics = statistics;
    }

    /// The calibration is done: `scores` are those of the windows learnt from. Returns what to tell.
    pub fn learnt(&mut self, scores: &[f32]) -> String {
        let Calibration::Learning(learning) = &self.calibration else { return String::new() };
        let basis = self.basis();
        let learnt = learning.finish(&self.wanted(&basis, 0), scores, self.source.manifest.scoring.direction);
        if let Some(keep) = &self.keep {
            keep.save(&self.file(), learnt.to_bytes());
        }
        let text = format!("calibrated on {} windows, threshold {}", learnt.windows, learnt.threshold);
        self.calibration = Calibration::Learnt(Box::new(learnt));
        self.tail = self.new_tail();
        self.lineage = self.lineage_json();
        text
    }

    fn tail_file(&self) -> String {
        format!("{}.tail", self.file())
    }

    /// What a tail of scores belongs to.
    fn tail_of(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.sha256, &self.basis(), &self.calibration.word()].into_iter().chain(&self.inputs) {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hex(&hash.finalize())
    }

    /// An empty tail; none without a budget, or while a calibration is learnt.
    fn new_tail(&self) -> Option<Tail> {
        self.budget.filter(|_| !self.is_learning()).map(|per_week| Tail::new(per_week, self.tail_of()))
    }

    /// Takes up the tail that was kept, or begins one.
    fn begin_tail(&mut self) {
        self.tail = self.new_tail();
        let (Some(per_week), Some(keep)) = (self.budget.filter(|_| self.tail.is_some()), &self.keep) else { return };
        let pipeline = &self.pipeline;
        match keep.load_patiently(&self.tail_file()) {
            Ok(None) => {}
            Ok(Some(bytes)) => match Tail::read(&bytes, per_week, &self.tail_of()) {
                Ok(tail) => self.tail = Some(tail),
                Err(why) => tracing::warn!(pipeline, "the saved tail of scores is discarded: {why}; learning again"),
            },
            Err(why) => tracing::error!(pipeline, "read the saved tail of scores: {why}; learning again"),
        }
    }

    fn save_tail(&self) {
        if let (Some(keep), Some(tail)) = (&self.keep, &self.tail) {
            keep.save(&self.tail_file(), tail.to_bytes());
        }
    }

    /// 1, or -1 where low scores are bad.
    fn sign(&self) -> f32 {
        if self.direction() == Direction::Low { -1.0 } else { 1.0 }
    }

    /// Learns the threshold of a budget from the score of a window that ended at this moment, ns since boot. Returns what to
    /// tell when it is learnt.
    pub fn learn_tail(&mut self, score: Option<f32>, now_ns: u64, alarmed: bool) -> Option<String> {
        let sign = self.sign();
        let (tail, per_week) = (self.tail.as_mut()?, self.budget?);
        let learnt = tail.learn(score.filter(|score| score.is_finite())? * sign, now_ns, alarmed);
        if learnt.is_some() || tail.is_due() {
            self.save_tail();
        }
        Some(match learnt? {
            tail::Learnt::Limit(limit) => {
                self.lineage = self.lineage_json();
                limit.describe(per_week, sign)
            }
            tail::Learnt::Again(why) => {
                format!("no threshold was learnt for {per_week} false alarms a week: {why}; it is learnt again")
            }
        })
    }

    /// A label of a window. If it says that this model raised an alarm and should not have, the threshold of the budget may move.
    /// Returns what to tell if it did.
    pub fn labelled(&mut self, said: &LabelSaid) -> Option<String> {
        let (sign, per_week) = (self.sign(), self.budget?);
        let score = said.score.filter(|_| said.label == Label::Truth(false))?;
        let tail = self.tail.as_mut().filter(|_| self.sha256 == said.sha256)?;
        if !tail.was_false(score * sign) {
            return None;
        }
        let text = tail.limit()?.describe(per_week, sign);
        self.save_tail();
        self.lineage = self.lineage_json();
        Some(format!("a label `false` for score {score}: {text}"))
    }

    /// What the threshold belongs to, beside the model's file.
    fn basis(&self) -> String {
        let manifest = &self.source.manifest;
        manifest.scoring.basis(manifest.calibration.as_ref().is_some_and(|cal| cal.features.is_some()))
    }

    /// Whether a score is on the bad side of the threshold; `None` without a score or a threshold.
    pub fn is_beyond(&self, score: Option<f32>) -> Option<bool> {
        Some(self.source.manifest.scoring.direction.is_beyond(score?, self.threshold()?))
    }

    /// Which end of the score is bad.
    pub fn direction(&self) -> Direction {
        self.source.manifest.scoring.direction
    }

    /// What a score is compared with.
    pub fn threshold(&self) -> Option<f32> {
        if let Some(limit) = self.tail.as_ref().and_then(Tail::limit) {
            return Some(limit.threshold * self.sign());
        }
        match &self.calibration {
            Calibration::Learnt(learnt) => Some(self.threshold.unwrap_or(learnt.threshold)),
            Calibration::Learning(_) => None,
            Calibration::None => self.threshold,
        }
    }
}
