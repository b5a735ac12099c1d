//! The signal stage: frames in, windows and measurements out. What it makes for the broker waits for room in the outbox.

use std::sync::{Arc, atomic::Ordering};

use super::{
    super::{crew::Crew, streams::Table},
    Base,
    sources::Shed,
};
use crate::{
    alarm::{Alarms, Parts},
    config::Config,
    error::Fatal,
    flow::{Arrival, Window, board::Board, lane},
    host::{Clock, Host},
    infer::Keeps,
    signal::{self, Inlet, Signal},
};

/// The alarms on channels, evaluated where the samples are. Without `keeps` it is a replay: nothing is kept.
pub fn channel_alarms(
    host: &Host,
    config: &Config,
    table: &Table,
    keeps: Option<&Keeps>,
    board: &Arc<Board>,
) -> Alarms {
    let keep = keeps.map(|keeps| keeps.alarms.clone());
    let (boot, board) = (host.boot.as_str(), board.clone());
    Alarms::of_channels(Parts { config, streams: &table.alarms, boot, keep, board })
}

impl Base<'_> {
    /// Starts the thread; `tap` sees all that arrives. `windows[i]` takes the windows of pipeline `i`.
    pub fn signal(
        &self,
        crew: &mut Crew,
        keeps: &Keeps,
        (frames, shed): (lane::Receiver<Arrival>, Shed),
        tap: impl Fn(&Arrival) + Send + 'static,
        windows: Vec<lane::Sender<Window>>,
    ) -> Result<(), Fatal> {
        let alarms = channel_alarms(self.host, self.config, self.table, Some(keeps), &self.board());
        let stage = Signal::new(self.config, self.table.signal.clone(), alarms, self.status.meters.clone());
        let (sink, counters) = (self.writer.clone(), self.counters());
        crew.thread("signal", move |beat| {
            let inlet = Inlet { frames, shed: || shed.take(), tap };
            let moved = |waiting| {
                beat.beat();
                counters.frames_waiting.store(waiting as u64, Ordering::Relaxed);
            };
            signal::run(stage, inlet, windows, sink, Clock::boot_ns, moved);
            Ok(())
        })
    }
}
