//! The ring: the last minute of all sources, where an alarm is to save it as a tape.

use std::time::Duration;

use super::{super::crew::Crew, Base};
use crate::{
    config,
    error::Fatal,
    flow::{Arrival, lane},
    host::Keep,
    limits,
    source::{ring, tape},
};

impl Base<'_> {
    /// Starts the thread, if an alarm saves a tape. Returns the way into the ring, which never waits.
    pub fn ring(&self, crew: &mut Crew) -> Result<impl Fn(&Arrival) + Send + use<>, Fatal> {
        let config = self.config;
        let alarms = config.alarms.iter().enumerate().filter(|(_, alarm)| alarm.tape);
        let alarms: Vec<_> = alarms.map(|(i, alarm)| (i, alarm.name.clone())).collect();
        let (bytes, patience) = (limits::FRAME_LANE_BYTES, Some(Duration::ZERO));
        let (to_ring, arrivals) = lane::lane(lane::Bounds { items: limits::TAPE_LANE, bytes, patience });
        let wanted = !alarms.is_empty();
        if wanted {
            let sources = config.sources.iter().map(|source| source.name.clone()).collect();
            let setup = ring::Setup {
                tapes: config.tapes,
                head: tape::Head::new(&self.host.boot, sources),
                alarms,
                board: self.board(),
                keep: Keep::at(config.device.state_dir.join("tapes")),
                served: Box::new(self.served()),
            };
            crew.thread("ring", move |beat| {
                ring::run(setup, arrivals, || beat.beat());
                Ok(())
            })?;
        }
        Ok(move |arrival: &Arrival| {
            if wanted {
                to_ring.push(arrival.clone(), &mut Vec::new());
            }
        })
    }

    /// What serves each pipeline, and what it has learnt: a replay of the tape works with the same.
    fn served(&self) -> impl Fn() -> tape::Served + Send + use<> {
        let (counters, groups) = (self.counters(), config::groups(self.config));
        let name = |pipeline: &usize| self.config.pipelines[*pipeline].name.clone();
        let groups: Vec<Vec<String>> = groups.iter().map(|group| group.iter().map(name).collect()).collect();
        let kept = Keep::at(self.config.device.state_dir.join("calibration"));
        move || {
            let (mut served, mut left) = (tape::Served::default(), limits::TAPE_CALIBRATIONS_BYTES);
            for (group, pipelines) in groups.iter().enumerate() {
                let Some(serving) = counters.serving(group) else { continue };
                for pipeline in pipelines {
                    let model = tape::Model { model: serving.model.clone(), sha256: serving.sha256.clone() };
                    let own = format!("{pipeline}.{}", serving.sha256.get(..16).unwrap_or(&serving.sha256));
                    for own in [format!("{own}.tail"), own] {
                        let text = kept.load(&own).ok().flatten().and_then(|bytes| String::from_utf8(bytes).ok());
                        if let Some(text) = text.filter(|text| text.len() <= left) {
                            left -= text.len();
                            served.calibrations.insert(own, text);
                        }
                    }
                    served.models.insert(pipeline.clone(), model);
                }
            }
            served
        }
    }
}
