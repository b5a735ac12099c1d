//! The ring: the last minute of all sources, where an alarm is to save it as a tape.

use std::time::Duration;

use super::{super::crew::Crew, Base};
use crate::{
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
}
