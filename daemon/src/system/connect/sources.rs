//! The sources: a task for each, and the lane of frames that they share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{super::crew::Crew, Base};
use crate::{
    config::Watches,
    flow::{Arrival, SourceId, Window, lane},
    limits, source,
};

/// The other end of the lane.
pub struct Frames {
    /// For the signal stage.
    pub lane: lane::Receiver<Arrival>,
    /// Frames that the lane shed.
    pub shed: Shed,
    /// Keeps the lane open on a device without sources: it runs on, to be managed.
    pub idle: Option<lane::Sender<Arrival>>,
}

impl Base<'_> {
    /// Starts the tasks. A full lane waits 50 ms and then sheds its oldest frames, counted. One that floods delays no other, and where
    /// it can be held back, it is while frames or windows of it are late. `windows[i]` takes the windows of pipeline `i`.
    pub fn sources(&self, crew: &mut Crew, windows: &[lane::Sender<Window>]) -> Frames {
        let (sender, lane) = lane::lane(lane::Bounds {
            items: limits::FRAME_BATCHES,
            bytes: limits::FRAME_LANE_BYTES,
            patience: Some(limits::LANE_PATIENCE),
        });
        let (shed, lots) = (Shed::default(), self.config.lots());
        for (i, port) in self.config.sources.iter().enumerate() {
            let source = SourceId(i as u16);
            let frames = sender.of_lot(lots[i]);
            // An alarm on one of its channels waits for no model.
            let is_of = |channel: usize| self.config.channels[channel].source == source;
            let is_alarmed = (self.config.alarms.iter())
                .any(|alarm| matches!(alarm.watches, Watches::Channel(channel) if is_of(channel)));
            let fed = (self.config.pipelines.iter().zip(windows))
                .filter(|(pipeline, _)| !is_alarmed && pipeline.channels.iter().any(|channel| is_of(*channel)));
            let ahead =
                fed.map(|(_, lane)| lane.watch(limits::LANE_LATE_WINDOWS, limits::LANE_AGE, limits::LANE_PATIENCE));
            let ahead = ahead.chain([frames.watch(1, limits::LANE_AGE, limits::LANE_PATIENCE)]).collect();
            let outlet = |beat| source::Outlet {
                source,
                clock: self.host.clock.clone(),
                frames,
                ahead,
                shed: shed.counter(),
                beat,
            };
            crew.task(&format!("source {}", port.name), |beat| source::run(port.port.clone(), outlet(beat)));
        }
        Frames { lane, shed, idle: self.config.sources.is_empty().then_some(sender) }
    }
}

/// Frames that the lane shed, between the ports that met it and the stage that reports it.
#[derive(Clone, Default)]
pub struct Shed(Arc<Mutex<BTreeMap<SourceId, u64>>>);

impl Shed {
    fn counter(&self) -> Arc<dyn Fn(SourceId, u64) + Send + Sync> {
        let shed = self.0.clone();
        Arc::new(move |source, frames| {
            *shed.lock().unwrap_or_else(PoisonError::into_inner).entry(source).or_default() += frames;
        })
    }

    /// Since the last call, by source.
    pub fn take(&self) -> Vec<(SourceId, u64)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }
}
