//! Windows into predictions and alarms. ONNX Runtime lives in worker processes (`worker_main`); here is the daemon's
//! side: one thread and one worker for each model, however many pipelines use it.

mod artifact;
mod calibrate;
mod calls;
pub mod channel;
mod check;
mod drift;
mod engine;
mod error;
pub mod escalate;
mod feeds;
mod fit;
mod judge;
mod lag;
mod meaning;
mod placement;
mod plan;
mod prebuilt;
pub mod rollout;
mod running;
mod runtime;
mod sandbox;
mod served;
mod shape;
mod state;
mod stderr;
mod tail;
mod thin;
mod warm_up;
pub mod worker;
pub mod worker_main;

use std::time::Duration;

pub use artifact::Artifact;
pub use check::check;
pub use engine::{Engine, Setup};
pub use error::InferError;
pub use running::{Column, Launching, Outcome, Running};
pub use runtime::find as find_runtime;
pub use served::{Keeps, Served};
#[cfg(test)]
pub use {
    fit::{Fit, Known},
    served::Answered,
    state::State,
};

use crate::{
    flow::{Sink, Stamp, Window, lane, lane::Took, verdict::Serving},
    limits,
};

/// The stage as a thread, for one model. Ends when its lane is closed and each window in it was served or recorded as lost: in a stop
/// the windows that it served in `limits::DRAIN_MODEL` are, in a replay all.
/// `beat` is called at least every `limits::BEAT`, `tell` with what serves and how many workers were lost.
pub fn run(
    mut engine: Engine,
    windows: lane::Receiver<Window>,
    now: impl Fn() -> Stamp,
    mut sink: impl Sink,
    beat: impl Fn(),
    tell: impl Fn(Option<&Serving>, u64),
) {
    let mut taken = Vec::new();
    let mut wait = Duration::ZERO;
    let mut served_ns = now().boot_ns;
    let patient = engine.setup.patient;
    while patient || !windows.is_closed() {
        beat();
        engine.look(now(), &mut sink, &beat);
        if engine.serving().is_none() && wait.is_zero() {
            wait = match engine.start(Some(now()), &mut sink, &beat) {
                Ok(()) => Duration::ZERO,
                Err(_) => engine.retry_after().max(limits::WORKER_RETRY_MIN),
            };
        }
        tell(engine.serving(), engine.lost_workers);
        if engine.serving().is_some() {
            served_ns = now().boot_ns;
        } else if now().boot_ns.saturating_sub(served_ns) > limits::ALARM_UNKNOWN.as_nanos() as u64 {
            engine.unwatched(now(), &mut sink);
        }
        if engine.serving().is_none() {
            // What arrives while there is no worker stays in the lane, which sheds and counts the oldest.
            if windows.is_closed() {
                break;
            }
            let step = wait.min(limits::BEAT / 4);
            std::thread::sleep(step);
            wait -= step;
            continue;
        }
        if engine.waiting() == 0 {
            match windows.take(&mut taken, engine.appetite(), engine.patience()) {
                Took::Closed => break,
                Took::Nothing => {
                    engine.idle(&mut sink);
                    continue;
                }
                Took::Some => engine.take(&mut taken),
            }
        }
        if engine.turn(&mut sink, &beat).is_err() {
            wait = engine.retry_after();
        }
    }
    while windows.take(&mut taken, usize::MAX, Duration::ZERO) == Took::Some {
        engine.take(&mut taken);
    }
    let stopped_ns = now().boot_ns;
    let has_time = || patient || now().boot_ns.saturating_sub(stopped_ns) < limits::DRAIN_MODEL.as_nanos() as u64;
    while has_time() && engine.serving().is_some() && engine.waiting() > 0 && engine.turn(&mut sink, &beat).is_ok() {
        beat();
    }
    engine.give_up_waiting("stopped", &mut sink);
}
