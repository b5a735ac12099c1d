//! The store of samples: windows that are kept, labels, and pulls.

use std::{sync::atomic::Ordering, time::Duration};

use super::{super::crew::Crew, Base};
use crate::{
    config::{Config, Pipeline},
    error::Fatal,
    flow::{
        Finished, lane,
        samples::{self as orders, Desk},
    },
    limits, samples,
};

impl Base<'_> {
    /// Starts the thread, if windows are kept, tapes are saved, or a pull is to be ended. Returns control's end, and the lane of
    /// windows: it never waits, and drops its oldest.
    pub fn samples(&self, crew: &mut Crew) -> Result<(Option<Desk>, Option<lane::Sender<Finished>>), Fatal> {
        let config = self.config;
        let left = samples::left(&config.device.state_dir);
        let on = config.samples.is_on();
        if !on && left.is_none() && !config.alarms.iter().any(|alarm| alarm.tape) {
            return Ok((None, None));
        }
        let (bytes, patience) = (limits::SAMPLES_LANE_BYTES, Some(Duration::ZERO));
        let (sender, windows) = lane::lane(lane::Bounds { items: limits::SAMPLES_LANE, bytes, patience });
        let (desk, inbox) = orders::desk(limits::SAMPLES_ORDERS, left);
        let setup = self.samples_setup();
        crew.thread("samples", move |beat| {
            samples::run(setup, inbox, windows, || beat.beat());
            Ok(())
        })?;
        Ok((Some(desk), on.then_some(sender)))
    }

    fn samples_setup(&self) -> samples::Setup {
        let (config, meters) = (self.config, self.status.meters.clone());
        let samples = &config.samples;
        let device = format!("{}/{}", config.device.site, config.device.id);
        let place = samples.is_on().then(|| samples::Place {
            folder: config.device.state_dir.join("samples"),
            max_bytes: samples.max_bytes,
            days: samples.days,
            names: (device, self.host.boot.clone()),
            meters: meters.clone(),
        });
        let every_ns = 86_400_000_000_000u64.checked_div(samples.normal_per_day);
        let (writer, online, board, clock) =
            (self.writer.clone(), self.writer.clone(), self.board(), self.host.clock.clone());
        samples::Setup {
            state_dir: config.device.state_dir.clone(),
            place,
            rules: samples::Rules { around: samples.around, every_ns },
            pipelines: config.pipelines.iter().map(|pipeline| described(config, pipeline)).collect(),
            pulls: (samples.pull_bytes_s, samples.pull_bytes_day),
            boot: self.host.boot.clone(),
            meters,
            blob: self.table.blob,
            put: Box::new(move |draft| writer.put_now(draft)),
            acked: Box::new(move || board.blob_acked.load(Ordering::Relaxed)),
            online: Box::new(move || online.stats().online),
            now: Box::new(move || clock.now()),
        }
    }
}

fn described(config: &Config, pipeline: &Pipeline) -> samples::Described {
    let channels = || pipeline.channels.iter().map(|channel| &config.channels[*channel]);
    samples::Described {
        name: pipeline.name.clone(),
        channels: channels().map(|channel| channel.name.clone()).collect(),
        units: channels().map(|channel| channel.unit.clone()).collect(),
        steps: pipeline.steps,
        apart: pipeline.steps.div_ceil(pipeline.hop.max(1)) as u64,
    }
}
