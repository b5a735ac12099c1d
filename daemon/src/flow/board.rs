//! What stages show each other and act on, beside the data and the orders. Each word has one writer, named beside it. Plain
//! atomics: no reader or writer waits. The configuration fixes the shape at the start.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{alarm::AlarmSign, escalation::Exchange, samples::Label};

/// Wakes a thread that waits.
#[derive(Debug, Default)]
pub struct Bell(Mutex<bool>, Condvar);

impl Bell {
    /// Wakes the thread that waits, or the next one that will wait.
    pub fn ring(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.1.notify_one();
    }

    /// Until it rings, `most` at the longest.
    pub fn wait(&self, most: Duration) {
        let rung = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.1.wait_timeout_while(rung, most, |rung| !*rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// A label, with what is known of its window.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelSaid {
    /// What it says.
    pub label: Label,
    /// Digest of the window, 64 hexadecimal digits.
    pub win: String,
    /// The score that the model gave it when it served, where it gave one.
    pub score: Option<f32>,
    /// Digest of that model's file.
    pub sha256: String,
}

/// All of it, by the configuration's indices.
#[derive(Debug, Default)]
pub struct Board {
    /// By alarm: whether it is raised, and what else is shown of it. Written by the stage that evaluates the alarm.
    pub alarms: Vec<AlarmSign>,
    /// Rung by the same stage when an alarm changed; outputs wait for it.
    pub alarm_bell: Bell,
    /// By pipeline: a recalibration is requested. Set by control, taken by the engine.
    recalibrate: Vec<AtomicBool>,
    /// By pipeline: labels that were stored. Set by control, taken by the engine; a few.
    labels: Vec<Mutex<Vec<LabelSaid>>>,
    /// The guard holds the outputs and answers. Written by outputs.
    pub outputs_held: AtomicBool,
    /// Where it does: every coil and register could be written. Written by outputs.
    pub outputs_follow: AtomicBool,
    /// Highest sequence of a command's result that was acknowledged. Written by the link.
    pub result_acked: AtomicU64,
    /// Highest sequence of a chunk of a pull that was acknowledged. Written by the link.
    pub blob_acked: AtomicU64,
    /// When the broker acknowledged something last, ns since boot; 0: never. Written by the link.
    pub acked_ns: AtomicU64,
    /// Windows for a larger model elsewhere, and its answers. Between the engines and the link.
    pub exchange: Exchange,
}

impl Board {
    /// For so many of each.
    pub fn new(pipelines: usize, alarms: usize) -> Self {
        Self {
            alarms: std::iter::repeat_with(AlarmSign::default).take(alarms).collect(),
            recalibrate: std::iter::repeat_with(AtomicBool::default).take(pipelines).collect(),
            labels: std::iter::repeat_with(Mutex::default).take(pipelines).collect(),
            ..Self::default()
        }
    }

    /// A label was stored; `most` of them wait.
    pub fn label(&self, pipeline: usize, said: LabelSaid, most: usize) {
        let mut waiting = self.labels[pipeline].lock().unwrap_or_else(PoisonError::into_inner);
        // The label itself is kept elsewhere; who sends so many at once has other worries than the last one.
        if waiting.len() < most {
            waiting.push(said);
        }
    }

    /// Takes the labels that wait.
    pub fn take_labels(&self, pipeline: usize) -> Vec<LabelSaid> {
        std::mem::take(&mut self.labels[pipeline].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests that this pipeline's model is calibrated again.
    pub fn recalibrate(&self, pipeline: usize) {
        self.recalibrate[pipeline].store(true, Relaxed);
    }

    /// Takes the request, if there is one.
    pub fn take_recalibrate(&self, pipeline: usize) -> bool {
        self.recalibrate[pipeline].swap(false, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_to_recalibrate_is_of_one_pipeline_and_taken_once() {
        let board = Board::new(2, 0);
        board.recalibrate(1);
        board.recalibrate(1);
        assert!(!board.take_recalibrate(0));
        assert_eq!((board.take_recalibrate(1), board.take_recalibrate(1)), (true, false));
    }

    #[test]
    fn bell_that_rang_before_the_wait_wakes_it_at_once() {
        let bell = Bell::default();
        bell.ring();
        let began = std::time::Instant::now();
        bell.wait(Duration::from_secs(5));
        assert!(began.elapsed() < Duration::from_secs(1));
        bell.wait(Duration::from_millis(1));
    }
}
