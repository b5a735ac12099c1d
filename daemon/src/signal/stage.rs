//! The stage as a thread: takes what arrives, and hands over what is made of it.

use super::{Made, Signal};
use crate::{
    flow::{Arrival, Sink, SourceId, Window, lane, lane::Took},
    limits,
};

/// Where the stage takes from.
pub struct Inlet<S, T> {
    /// What the sources send.
    pub frames: lane::Receiver<Arrival>,
    /// Frames that were shed on the way, since it was asked last.
    pub shed: S,
    /// Sees all that arrives.
    pub tap: T,
}

/// The stage as a thread: ends when the frame lane is closed and empty.
///
/// `lanes[i]` takes the windows of pipeline `i`; `beat` is called at least every `limits::BEAT` with the batches that wait.
pub fn run(
    mut signal: Signal,
    inlet: Inlet<impl Fn() -> Vec<(SourceId, u64)>, impl Fn(&Arrival)>,
    lanes: Vec<lane::Sender<Window>>,
    mut sink: impl Sink,
    now_ns: impl Fn() -> u64,
    beat: impl Fn(usize),
) {
    let Inlet { frames, shed, tap } = inlet;
    let (mut arrivals, mut made, mut overflow) = (Vec::new(), Made::default(), Vec::new());
    let mut last = None;
    loop {
        beat(frames.depth());
        match frames.take(&mut arrivals, limits::FRAME_TAKE, limits::BEAT) {
            Took::Closed => break,
            Took::Nothing => continue,
            Took::Some => {}
        }
        for (source, frames) in shed() {
            signal.shed(source, frames);
        }
        for arrival in arrivals.drain(..) {
            last = Some(arrival.stamp());
            tap(&arrival);
            signal.step(&arrival, &mut made);
            hand_over(&signal, &mut made, &lanes, &mut sink, &mut overflow);
            signal.meters.signal.took(now_ns().saturating_sub(arrival.stamp().boot_ns) / 1000);
        }
    }
    if let Some(stamp) = last {
        signal.finish(stamp, &mut made);
        hand_over(&signal, &mut made, &lanes, &mut sink, &mut overflow);
    }
}

fn hand_over(
    signal: &Signal,
    made: &mut Made,
    lanes: &[lane::Sender<Window>],
    sink: &mut impl Sink,
    overflow: &mut Vec<Window>,
) {
    for ((stream, why), n) in std::mem::take(&mut made.lost) {
        sink.lost(stream, n, why);
    }
    for window in made.windows.drain(..) {
        lanes[usize::from(window.tag.pipeline)].push(window, overflow);
    }
    for window in overflow.drain(..) {
        sink.lost(signal.streams.prediction[usize::from(window.tag.pipeline)], 1, "shed");
    }
    if !made.drafts.is_empty() {
        sink.put(&mut made.drafts);
    }
}
