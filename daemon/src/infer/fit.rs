//! One model as it fits one pipeline: what it has learnt there, what it is fed, and how its answers are signed (lineage).

use std::{fmt::Write, sync::Arc};

use super::{
    artifact::Artifact,
    calibrate::{Calibration, Learning, Learnt},
    plan::Feed,
};
use crate::{
    config,
    flow::{Direction, record::json_str},
    host::Later,
    model::manifest::Layout,
};

/// A model in a pipeline.
pub struct Fit {
    source: Artifact,
    pipeline: String,
    width: usize,
    threshold: Option<f32>,
    sha256: String,
    provider: String,
    keep: Option<Later>,
    calibration: Calibration,
    /// Center and scale that are fed; `None` while learning: 0 and 1.
    statistics: Option<(Vec<f32>, Vec<f32>)>,
    /// The envelope's `lineage`.
    pub lineage: Arc<str>,
    scratch: Vec<f32>,
}

impl Fit {
    /// Takes up the calibration that was kept for this very model, or begins one.
    pub fn new(
        pipeline: &config::Pipeline,
        source: &Artifact,
        (sha256, provider): (&str, &str),
        features: usize,
        keep: Option<Later>,
    ) -> Self {
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

    fn kept(&self, features: usize) -> Option<Learnt> {
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
        let learnt = Learnt::read(&bytes, &self.sha256, &self.basis(), features);
        if learnt.is_none() {
            tracing::warn!(
                pipeline = self.pipeline,
                "the saved calibration does not fit this model: it is discarded; calibrating again"
            );
        }
        learnt
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
        self.calibration = Calibration::Learning(Learning::new(config));
        self.lineage = self.lineage_json();
    }

    /// Values for one input of the model, for this window.
    pub fn feed(&mut self, feed: &Feed, window: &[f32], len: usize) -> &[f32] {
        self.scratch.clear();
        match (feed, &self.statistics) {
            (Feed::Window(Layout::StepsFirst), _) => self.scratch.extend_from_slice(window),
            (Feed::Window(Layout::ChannelsFirst), _) => {
                let width = self.width;
                self.scratch.extend((0..width).flat_map(|c| window.iter().skip(c).step_by(width)));
            }
            (Feed::Param(values), _) => self.scratch.extend_from_slice(values),
            (Feed::Center, Some((center, _))) => self.scratch.extend_from_slice(center),
            (Feed::Scale, Some((_, scale))) => self.scratch.extend_from_slice(scale),
            (Feed::Center, None) => self.scratch.resize(len, 0.0),
            (Feed::Scale, None) => self.scratch.resize(len, 1.0),
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
        let learnt = learning.finish(&self.sha256, &self.basis(), scores, self.source.manifest.scoring.direction);
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
