//! The scribe: the thread that may wait for the disk when a small file is written. It also saves the time and looks how
//! much room the disk has.

use std::{path::Path, time::Instant};

use super::{super::crew::Crew, Base};
use crate::{
    error::Fatal,
    host::{Host, Keep, Scribe},
    infer::Keeps,
    limits,
};

/// Folders for what models and alarms save, written by the scribe.
pub fn keeps(state_dir: &Path, scribe: &Scribe) -> Keeps {
    let folder = |name: &str| scribe.folder(Keep::at(state_dir.join(name)));
    Keeps { calibration: folder("calibration"), alarms: folder("alarms"), escalation: folder("escalation") }
}

/// The folder of the last known time, which is taken up.
pub fn times(host: &Host, state_dir: &Path) -> Keep {
    let keep = Keep::at(state_dir.join("clock"));
    host.clock.load_floor(&keep);
    keep
}

impl Base<'_> {
    /// Starts the thread.
    pub fn scribe(&self, crew: &mut Crew, scribe: &Scribe, times: Keep) -> Result<(), Fatal> {
        let (clock, counters) = (self.host.clock.clone(), self.counters());
        let (scribe, state_dir) = (scribe.clone(), self.config.device.state_dir.clone());
        crew.thread("scribe", move |beat| {
            let (mut look, mut save) = (None::<Instant>, Instant::now());
            scribe.run(|| {
                beat.beat();
                if look.is_none_or(|at| at.elapsed() >= limits::DISK_LOOK) {
                    look = Some(Instant::now());
                    counters.look_at_disk(&state_dir);
                }
                if save.elapsed() >= limits::CLOCK_SAVE {
                    save = Instant::now();
                    clock.save_floor(&times);
                }
            });
            clock.save_floor(&times);
            Ok(())
        })
    }
}
