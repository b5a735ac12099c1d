//! The signal stage: frames in, windows and measurements out. What it makes for the broker waits for room in the outbox.

use std::sync::atomic::Ordering;

use super::{super::crew::Crew, Base, sources::Shed};
use crate::{
    error::Fatal,
    flow::{Arrival, Window, lane},
    host::Clock,
    signal::{self, Inlet, Signal},
};

impl Base<'_> {
    /// Starts the thread; `tap` sees all that arrives. `windows[i]` takes the windows of pipeline `i`.
    pub fn signal(
        &self,
        crew: &mut Crew,
        (frames, shed): (lane::Receiver<Arrival>, Shed),
        tap: impl Fn(&Arrival) + Send + 'static,
        windows: Vec<lane::Sender<Window>>,
    ) -> Result<(), Fatal> {
        let stage = Signal::new(self.config, self.table.signal.clone(), self.status.meters.clone());
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
