//! A new model before and after it takes over: the candidate runs beside the serving model on the same windows; on trial
//! it serves and is watched, and the previous model is kept as the fallback.

use std::time::Duration;

use super::{
    super::{
        artifact::Artifact,
        fit::Fit,
        lag::slowest,
        running::{Outcome, Running},
    },
    Offer,
    gate::{Gate, Terms},
};
use crate::flow::Window;

/// A model that runs beside the serving one.
pub struct Candidate {
    pub(in crate::infer) running: Running,
    pub(super) terms: Option<Terms>,
    pub(super) why: String,
    pub(super) shadow_ns: u64,
    began_ns: u64,
    compared: u64,
    differed: u64,
    /// One run takes about so long, µs.
    pub(super) took_us: u32,
}

impl Candidate {
    /// Offered at this time, ns since boot.
    pub fn new(offer: Offer, began_ns: u64) -> Self {
        let Offer { running, terms, shadow_ns, why } = offer;
        Self { running, terms, why, shadow_ns, began_ns, compared: 0, differed: 0, took_us: 0 }
    }

    /// It has learnt what it must, and ran beside the serving model for long enough.
    pub fn is_ready(&self, now_ns: u64) -> bool {
        !self.running.is_learning() && now_ns.saturating_sub(self.began_ns) >= self.shadow_ns
    }

    /// Answers windows that the serving model answered; each comes with whether that score was above its threshold.
    /// `place` says which pipeline a window is for.
    ///
    /// # Errors
    /// Why it must not take over.
    pub fn run_beside(
        &mut self,
        windows: &[(Window, Option<bool>)],
        place: impl Fn(&Window) -> usize,
        deadline: Option<Duration>,
        beat: &dyn Fn(),
    ) -> Result<(), String> {
        let mut left = windows;
        while !left.is_empty() {
            let running = &mut self.running;
            let places: Vec<usize> = left.iter().take(running.slots()).map(|(window, _)| place(window)).collect();
            let count = running.ring_size(&places);
            for (slot, at) in places.iter().take(count).enumerate() {
                running.put(slot, *at, &left[slot].0);
            }
            if let Some(why) = running.ring(count, deadline, beat).died {
                return Err(why);
            }
            for (slot, ((window, above), at)) in left.iter().zip(&places).take(count).enumerate() {
                match running.answer(slot, *at, window) {
                    Outcome::None(why) if window.tag.coverage >= 1.0 => {
                        return Err(format!("inference failed for one window: {why}"));
                    }
                    Outcome::None(_) => {}
                    Outcome::Answer(answered) => {
                        self.took_us = slowest(self.took_us, answered.took_us);
                        if let (Some(above), Some(beyond)) = (above, running.fits[*at].is_beyond(answered.score)) {
                            self.compared += 1;
                            self.differed += u64::from(*above != beyond);
                        }
                    }
                }
            }
            running.calibrate_if_due(deadline, beat)?;
            left = &left[count..];
        }
        Ok(())
    }

    /// How often it differed from the previous model, for the event; empty if there was nothing to compare.
    pub fn compared(&self) -> String {
        let (differed, compared) = (self.differed, self.compared);
        if compared == 0 {
            return String::new();
        }
        format!("; beside the previous model it differed on {differed} of {compared} windows")
    }
}

/// A model that serves and is watched.
pub struct Trial {
    pub(super) gate: Gate,
    pub(super) fallback: Option<Running>,
    /// What to start where the fallback's worker is gone.
    pub(super) before: Option<Artifact>,
}

impl Trial {
    /// What is wrong with an answer, if anything.
    pub fn sign(&mut self, outcome: &Outcome, fit: &Fit, window: &Window) -> Option<String> {
        match outcome {
            Outcome::None(why) => self.gate.unanswered(why, window.tag.coverage),
            Outcome::Answer(_) if fit.is_learning() => None,
            Outcome::Answer(answered) => {
                let mut hash = crc32fast::Hasher::new();
                window.values.iter().for_each(|x| hash.update(&x.to_le_bytes()));
                // Without a score nothing is compared: no number equals none.
                self.gate.answered(answered.score.unwrap_or(f32::NAN), u64::from(hash.finalize()))
            }
        }
    }

    /// Time passes.
    pub fn look(&mut self, now_ns: u64) {
        self.gate.look(now_ns);
    }
}
