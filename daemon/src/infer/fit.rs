//! One model as it fits one pipeline: what it has learnt there, what it is fed, and how its answers are signed (lineage).

use std::{fmt::Write, sync::Arc};

use super::{
    artifact::Artifact,
    calibrate::{Calibration, Learning, Learnt, Wanted},
    feeds::Feed,
    state::State,
};
use crate::{
    config,
    flow::{Direction, record::json_str},
    host::Later,
    model::manifest::Layout,
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
        let (sha, slot, cal) = (&self.sha256, self.source.origin.word(), self.calibration.word());
        let _ = write!(out, ",\"sha256\":\"{sha}\",\"slot\":\"{slot}\",\"provider\":");
        json_str(&mut out, &self.provider);
        let _ = write!(out, ",\"cal\":\"{cal}\",\"unsigned\":{}}}", self.source.unsigned);
        out.into()
    }

    /// Discards the calibration, in memory and on disk, and starts another one.
    pub fn recalibrate(&mut self) {
        let Some(config) = self.source.manifest.calibration.clone() else { return };
        tracing::info!(pipeline = self.pipeline, "recalibrating: the previous calibration is discarded");
        for name in [self.file(), self.pipeline.clone()] {
            if let Some(keep) = &self.keep {
                keep.remove(&name);
            }
        }
        self.statistics = None;
        self.state.reset();
        self.calibration = Calibration::Learning(Learning::new(config));
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
        self.lineage = self.lineage_json();
        text
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
        match &self.calibration {
            Calibration::Learnt(learnt) => Some(self.threshold.unwrap_or(learnt.threshold)),
            Calibration::Learning(_) => None,
            Calibration::None => self.threshold,
        }
    }
}
