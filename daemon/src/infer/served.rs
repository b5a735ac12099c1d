//! One pipeline as its worker's answers see it: calibration, score, prediction record, alarms.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    alarm::{Alarm, Raised},
    calibrate::{Calibration, Learning, Learnt},
    plan::{Feed, Plan},
};
use crate::{
    config,
    flow::{
        Class, Draft, Phase, Retain, StreamId, Window,
        event::{ALARM_CLEARED, ALARM_RAISED},
        meter::Meters,
        record::{json_list, json_num, json_str},
    },
    host::Keep,
    model::{file::hex, manifest::Layout},
};

/// Folders for what outlives the process; `None` keeps nothing (replay).
#[derive(Debug, Clone)]
pub struct Keeps {
    /// Calibrations, by pipeline.
    pub calibration: Keep,
    /// Raised alarms, by alarm.
    pub alarms: Keep,
}

/// One pipeline being served.
pub struct Served {
    config: config::Pipeline,
    index: u16,
    stream: StreamId,
    alarms: Vec<(Alarm, StreamId, usize)>,
    keeps: Option<Keeps>,
    replay: bool,
    model_sha256: Arc<str>,
    calibration: Option<Calibration>,
    /// Center and scale that are fed; `None` while learning: 0 and 1.
    statistics: Option<(Vec<f32>, Vec<f32>)>,
    lineage: Arc<str>,
    scratch: Vec<f32>,
    meters: Arc<Meters>,
}

/// What a worker answered for one window.
pub struct Answered<'a> {
    /// The score.
    pub score: f32,
    /// µs.
    pub took_us: u32,
    /// Values of the outputs to be published, by name.
    pub outputs: Vec<(&'a str, Vec<f64>)>,
}

impl Served {
    /// A pipeline before its model is known to work.
    pub fn new(
        index: u16,
        config: &config::Config,
        stream: StreamId,
        alarm_streams: &[StreamId],
        boot: &str,
        keeps: Option<Keeps>,
        meters: Arc<Meters>,
    ) -> Self {
        let pipeline = config.pipelines[usize::from(index)].clone();
        let all = config.alarms.iter().zip(alarm_streams).enumerate();
        let mine = all.filter(|(_, (alarm, _))| alarm.pipeline == usize::from(index));
        let alarms = mine.map(|(place, (alarm, stream))| {
            let raised =
                keeps.as_ref().and_then(|k| serde_json::from_slice::<Raised>(&k.alarms.load(&alarm.name)?).ok());
            meters.alarms[place].store(raised.is_some(), Relaxed);
            (Alarm::new(alarm.clone(), boot, raised), *stream, place)
        });
        let alarms = alarms.collect();
        let replay = keeps.is_none();
        Self {
            index,
            stream,
            alarms,
            keeps,
            replay,
            model_sha256: "".into(),
            calibration: None,
            statistics: None,
            lineage: "".into(),
            scratch: Vec::new(),
            meters,
            config: pipeline,
        }
    }

    /// Which pipeline this is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Its configuration.
    pub fn config(&self) -> &config::Pipeline {
        &self.config
    }

    /// The model serves: takes up the calibration that was kept, or begins one. A second call changes nothing.
    pub fn model_serves(&mut self, model_sha256: &str, features: usize) {
        if self.calibration.is_some() {
            return;
        }
        self.model_sha256 = model_sha256.into();
        let kept = || {
            let bytes = self.keeps.as_ref()?.calibration.load(&self.config.name)?;
            let learnt = Learnt::read(&bytes, model_sha256, features);
            if learnt.is_none() {
                tracing::warn!(
                    pipeline = self.config.name,
                    "the kept calibration is not of this model; calibrating anew"
                );
            }
            learnt
        };
        self.calibration = Some(match &self.config.model.manifest.calibration {
            None => Calibration::None,
            Some(config) => match kept() {
                Some(learnt) => {
                    self.statistics = Some((learnt.center.clone(), learnt.scale.clone()));
                    Calibration::Learnt(Box::new(learnt))
                }
                None => Calibration::Learning(Learning::new(config.clone())),
            },
        });
        self.lineage = self.lineage_json();
    }

    fn lineage_json(&self) -> Arc<str> {
        let manifest = &self.config.model.manifest;
        let mut out = String::from("{\"model\":");
        json_str(&mut out, &format!("{}@{}", manifest.model, manifest.version));
        let cal = self.calibration.as_ref().map_or_else(|| "none".into(), Calibration::word);
        let sha = &self.model_sha256;
        let _ = write!(
            out,
            ",\"sha256\":\"{sha}\",\"slot\":\"a\",\"provider\":\"cpu\",\"cal\":\"{cal}\",\"unsigned\":true}}"
        );
        out.into()
    }

    /// Learns anew, where that was asked for.
    pub fn recalibrate_if_asked(&mut self) {
        let asked = self.meters.pipelines[usize::from(self.index)].recalibrate.swap(false, Relaxed);
        let Some(config) = self.config.model.manifest.calibration.clone().filter(|_| asked) else { return };
        tracing::info!(pipeline = self.config.name, "learning anew what is normal");
        if let Some(keeps) = &self.keeps
            && let Err(why) = keeps.calibration.remove(&self.config.name)
        {
            tracing::error!(pipeline = self.config.name, "forget the calibration: {why}");
        }
        self.statistics = None;
        self.calibration = Some(Calibration::Learning(Learning::new(config)));
        self.lineage = self.lineage_json();
    }

    /// Values for one input of the model, for this window.
    pub fn feed(&mut self, feed: &Feed, window: &[f32], len: usize) -> &[f32] {
        self.scratch.clear();
        match (feed, &self.statistics) {
            (Feed::Window(Layout::StepsFirst), _) => self.scratch.extend_from_slice(window),
            (Feed::Window(Layout::ChannelsFirst), _) => {
                let width = self.config.channels.len();
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
            Some(Calibration::Learning(learning)) => Some(learning),
            _ => None,
        }
    }

    /// From now on these are fed.
    pub fn set_statistics(&mut self, statistics: (Vec<f32>, Vec<f32>)) {
        self.statistics = Some(statistics);
    }

    /// Back to learning: the worker died before the threshold was known.
    pub fn forget_statistics(&mut self) {
        self.statistics = None;
    }

    /// The calibration is done. Returns what to tell.
    pub fn learnt(&mut self, learnt: Learnt) -> String {
        if let Some(keeps) = &self.keeps
            && let Err(why) = keeps.calibration.save(&self.config.name, &learnt.to_bytes())
        {
            tracing::error!(pipeline = self.config.name, "keep the calibration: {why}");
        }
        let text = format!("calibrated on {} windows, threshold {}", learnt.windows, learnt.threshold);
        self.calibration = Some(Calibration::Learnt(Box::new(learnt)));
        self.lineage = self.lineage_json();
        text
    }

    fn threshold(&self) -> Option<f32> {
        match &self.calibration {
            Some(Calibration::Learnt(learnt)) => Some(self.config.threshold.unwrap_or(learnt.threshold)),
            Some(Calibration::Learning(_)) => None,
            _ => self.config.threshold,
        }
    }

    /// The prediction's record, and those of alarms that changed by it.
    pub fn predicted(&mut self, window: &Window, answered: &Answered<'_>, drafts: &mut Vec<Draft>) {
        let learning = matches!(self.calibration, Some(Calibration::Learning(_)));
        let threshold = self.threshold();
        let score = (!learning).then_some(answered.score);
        let meter = &self.meters.pipelines[usize::from(self.index)];
        meter.predictions.add(1);
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
            lineage: Some(self.lineage.clone()),
            body: self.body(window, score, threshold, answered).into(),
            retain: Retain::No,
        });
        let Some(score) = score else { return };
        for (alarm, stream, place) in &mut self.alarms {
            let Some(change) = alarm.step(score, threshold, &window.tag) else {
                continue;
            };
            if let Some(keeps) = &self.keeps {
                let saved = match alarm.raised() {
                    Some(raised) => keeps.alarms.save(alarm.name(), &serde_json::to_vec(raised).unwrap_or_default()),
                    None => keeps.alarms.remove(alarm.name()),
                };
                if let Err(why) = saved {
                    tracing::error!(alarm = alarm.name(), "keep the alarm's state: {why}");
                }
            }
            self.meters.alarms[*place].store(change.phase == Phase::Raised, Relaxed);
            match change.phase {
                Phase::Raised => {
                    tracing::warn!(message_id = ALARM_RAISED, alarm = alarm.name(), score, "alarm raised");
                }
                Phase::Cleared => {
                    tracing::info!(message_id = ALARM_CLEARED, alarm = alarm.name(), score, "alarm cleared");
                }
            }
            drafts.push(Draft {
                stream: *stream,
                class: Class::Event,
                stamp: window.tag.last,
                lineage: Some(self.lineage.clone()),
                body: change.body,
                retain: if change.phase == Phase::Raised { Retain::Keep } else { Retain::Remove },
            });
        }
    }

    fn body(&self, window: &Window, score: Option<f32>, threshold: Option<f32>, answered: &Answered<'_>) -> String {
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
        out
    }
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
pub fn published(plan: &Plan, config: &config::Pipeline) -> Vec<(usize, String)> {
    let place = |name: &String| plan.outputs.iter().position(|o| o == name).map(|i| (i, name.clone()));
    config.outputs.iter().filter_map(place).collect()
}
