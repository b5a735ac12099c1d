//! The end of a calibration: the windows that were learnt from are scored with what was learnt, for the threshold.

use std::time::Duration;

use super::super::fit::Fit;
use super::Running;

impl Running {
    /// Whether any pipeline's statistics are still being taken.
    pub fn is_learning(&self) -> bool {
        self.fits.iter().any(Fit::is_learning)
    }

    /// Finishes every calibration that has its windows: scores them with what was learnt, for the threshold. Returns what
    /// to tell, by pipeline.
    pub fn calibrate_if_due(
        &mut self,
        deadline: Option<Duration>,
        beat: &dyn Fn(),
    ) -> Result<Vec<(usize, String)>, String> {
        let mut finished = Vec::new();
        for at in 0..self.fits.len() {
            let Some(learning) = self.fits[at].learning().filter(|learning| learning.needed() == 0) else {
                continue;
            };
            let statistics = learning.statistics();
            let windows = std::mem::take(&mut learning.windows);
            self.fits[at].set_statistics(Some(statistics));
            let scores = self.scores(at, &windows, deadline, beat);
            let fit = &mut self.fits[at];
            if let Some(learning) = fit.learning() {
                learning.windows = windows;
            }
            match scores {
                Ok(scores) => finished.push((at, fit.learnt(&scores))),
                Err(why) => {
                    fit.set_statistics(None);
                    return Err(why);
                }
            }
        }
        Ok(finished)
    }

    /// The scores of windows, as far as they are numbers. A state begins as zeros and ends as the last of them leaves it.
    fn scores(
        &mut self,
        at: usize,
        windows: &[(u64, Box<[f32]>)],
        deadline: Option<Duration>,
        beat: &dyn Fn(),
    ) -> Result<Vec<f32>, String> {
        let mut scores = Vec::with_capacity(windows.len());
        self.fits[at].state.reset();
        let at_once = if self.plan.state.is_empty() { self.worker.slots() } else { 1 };
        for chunk in windows.chunks(at_once) {
            for (slot, (number, window)) in chunk.iter().enumerate() {
                self.fits[at].state.follow(*number);
                self.fill(slot, at, window);
            }
            if let Some(why) = self.worker.ring(chunk.len(), deadline, beat).died {
                return Err(why);
            }
            for (slot, (number, window)) in chunk.iter().enumerate() {
                if self.worker.outcome(slot).0 {
                    self.carry(slot, at, *number);
                    scores.extend(self.score(slot, at, window).filter(|score| score.is_finite()));
                }
            }
        }
        Ok(scores)
    }
}
