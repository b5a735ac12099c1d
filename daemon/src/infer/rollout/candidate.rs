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
    agreement::{Agreement, Pair},
    gate::{Gate, Terms},
    labelled::Opinion,
};
use crate::{
    flow::{Stamp, Window, board::LabelSaid},
    limits,
};

/// A window that the serving model answered.
pub struct Shadowed {
    /// The window.
    pub window: Window,
    /// Its score; `None`: it has none, or is learning.
    pub score: Option<f32>,
    /// Whether that is beyond its threshold.
    pub above: Option<bool>,
    /// Its likeliest class.
    pub class: Option<String>,
}

/// A model that runs beside the serving one.
pub struct Candidate {
    pub(in crate::infer) running: Running,
    pub(super) terms: Option<Terms>,
    pub(super) why: String,
    pub(super) shadow_ns: u64,
    began_ns: u64,
    /// By pipeline: how it compares with the serving model.
    agreements: Vec<Agreement>,
    /// When that was published last, ns since boot.
    published_ns: u64,
    /// One run takes about so long, µs.
    pub(super) took_us: u32,
}

impl Candidate {
    /// Offered now. `labels`: windows are kept, so they may get labels.
    pub fn new(offer: Offer, began: Stamp, labels: bool) -> Self {
        let Offer { running, terms, shadow_ns, why } = offer;
        let agreements = running.fits.iter().map(|_| Agreement::new(began, labels)).collect();
        let began_ns = began.boot_ns;
        Self { running, terms, why, shadow_ns, began_ns, agreements, published_ns: began_ns, took_us: 0 }
    }

    /// Windows that it is not given.
    pub fn skip(&mut self, places: impl Iterator<Item = usize>) {
        places.for_each(|at| self.agreements[at].skip());
    }

    /// Labels of windows of the pipeline at this place.
    pub fn labelled(&mut self, at: usize, labels: Vec<LabelSaid>) {
        labels.into_iter().for_each(|said| self.agreements[at].label(&said.win, said.label));
    }

    /// How it compares with the serving model, by pipeline, where it is time to publish that; `over`: a last time.
    pub fn agreements(&mut self, now_ns: u64, over: bool) -> impl Iterator<Item = (usize, &Agreement)> {
        let due = over || now_ns.saturating_sub(self.published_ns) >= limits::SHADOW_EVERY_NS;
        if due {
            self.published_ns = now_ns;
        }
        self.agreements.iter().enumerate().filter(move |(_, agreement)| due && !agreement.is_empty())
    }

    /// It has learnt what it must, and ran beside the serving model for long enough.
    pub fn is_ready(&self, now_ns: u64) -> bool {
        !self.running.is_learning() && now_ns.saturating_sub(self.began_ns) >= self.shadow_ns
    }

    /// Answers windows that the serving model answered.
    /// `place` says which pipeline a window is for.
    ///
    /// # Errors
    /// Why it must not take over.
    pub fn run_beside(
        &mut self,
        windows: &[Shadowed],
        place: impl Fn(&Window) -> usize,
        deadline: Option<Duration>,
        beat: &dyn Fn(),
    ) -> Result<(), String> {
        let mut left = windows;
        while !left.is_empty() {
            let running = &mut self.running;
            let places: Vec<usize> =
                left.iter().take(running.slots()).map(|shadowed| place(&shadowed.window)).collect();
            let count = running.ring_size(&places);
            for (slot, at) in places.iter().take(count).enumerate() {
                running.put(slot, *at, &left[slot].window);
            }
            if let Some(why) = running.ring(count, deadline, beat).died {
                return Err(why);
            }
            for (slot, (shadowed, at)) in left.iter().zip(&places).take(count).enumerate() {
                let (window, agreement) = (&shadowed.window, &mut self.agreements[*at]);
                match running.answer(slot, *at, window) {
                    Outcome::None(why) if window.tag.coverage >= 1.0 => {
                        return Err(format!("inference failed for one window: {why}"));
                    }
                    Outcome::None(_) => agreement.unanswered(),
                    Outcome::Answer(answered) => {
                        self.took_us = slowest(self.took_us, answered.took_us);
                        let fit = &running.fits[*at];
                        let candidate = answered.score.filter(|_| !fit.is_learning());
                        let candidate_above = fit.is_beyond(candidate);
                        let (serving, serving_above) = (shadowed.score, shadowed.above);
                        agreement.take(Pair { serving, serving_above, candidate, candidate_above });
                        let class = answered.classes.as_ref().and_then(|classes| classes.likeliest());
                        let serving = Opinion { anomaly: serving_above, class: shadowed.class.as_deref() };
                        agreement.judged(&window.values, serving, Opinion { anomaly: candidate_above, class });
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
        let all = self.agreements.iter().map(Agreement::compared);
        let (compared, differed) = all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let mut text = match compared {
            0 => String::new(),
            _ => format!("; beside the previous model it differed on {differed} of {compared} windows"),
        };
        let right = self.agreements.iter().map(Agreement::right);
        let (labels, serving, own) = right.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
        if labels > 0 {
            text += &format!("; of {labels} labels the previous model was right on {serving}, and it on {own}");
        }
        text
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
