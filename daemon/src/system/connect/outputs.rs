//! Outputs: alarms to lines, by a bell. A process of its own, the guard, holds the lines.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{super::crew::Crew, Base};
use crate::{error::Fatal, output};

impl Base<'_> {
    /// Starts the thread, if outputs are configured; a guard that is left from before releases its lines otherwise. The
    /// flag stops it.
    pub fn outputs(&self, crew: &mut Crew) -> Result<Arc<AtomicBool>, Fatal> {
        let beats = crew.beats.clone();
        let decides = |(name, _): &(String, u64)| name == "signal" || name.starts_with("infer ");
        let setup = output::Setup {
            outputs: self.config.outputs.clone(),
            board: self.board(),
            program: self.host.program.clone(),
            socket: self.config.device.state_dir.join("guard.socket"),
            moved: Box::new(move || beats.counts().into_iter().filter(decides).collect()),
        };
        let stop = Arc::new(AtomicBool::new(false));
        if setup.outputs.is_empty() {
            output::release(&setup.socket);
            return Ok(stop);
        }
        let stopped = stop.clone();
        crew.thread("outputs", move |beat| {
            output::run(setup, || stopped.load(Ordering::Relaxed), || beat.beat());
            Ok(())
        })?;
        Ok(stop)
    }
}
