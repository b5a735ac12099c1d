//! The steps of a new model on live windows: it learns beside the one that serves, takes over between two windows, and is
//! watched. At the first bad sign the previous model serves again, from the window that was the sign.

use std::sync::Arc;

use super::{
    artifact::Artifact,
    engine::{Engine, ring_size, slowest},
    fit::Fit,
    gate::{Gate, Terms},
    lag::Lag,
    running::{Outcome, Running},
};
use crate::{
    config::Models,
    flow::{Sink, Stamp, Window, event::Kind, verdict::Said},
    model::baseline::Channel,
};

/// What is asked of an engine.
pub enum Message {
    /// This model is to take over.
    Offer(Box<Offer>),
    /// The model on trial, or on its way there, is not to stay.
    Back(String),
}

/// A model that proved itself.
pub struct Offer {
    /// In its worker.
    pub running: Running,
    /// How long it is watched; `None`: it passed its trial before, and is committed at once.
    pub terms: Option<Terms>,
    /// It runs beside the other one for at least this long before, ns.
    pub shadow_ns: u64,
    /// Why, for the event.
    pub why: String,
}

/// A model that runs beside the one that serves.
pub struct Candidate {
    pub(super) running: Running,
    terms: Option<Terms>,
    shadow_ns: u64,
    why: String,
    began_ns: u64,
    compared: u64,
    differed: u64,
    took_us: u32,
}

/// A model that serves and is watched.
pub struct Trial {
    gate: Gate,
    fallback: Option<Running>,
    /// What to start where the fallback's worker is gone.
    before: Option<Artifact>,
}

impl Trial {
    /// What is wrong with an answer, if anything.
    pub(super) fn sign(&mut self, outcome: &Outcome, fit: &Fit, window: &Window) -> Option<String> {
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
    pub(super) fn look(&mut self, now_ns: u64) {
        self.gate.look(now_ns);
    }
}

impl Engine {
    pub(super) fn read_mail(&mut self, now: Stamp, sink: &mut dyn Sink) {
        let Some(message) = self.setup.mailbox.as_ref().and_then(|mail| mail.try_recv().ok()) else { return };
        match message {
            Message::Offer(offer) => {
                let Offer { running, terms, shadow_ns, why } = *offer;
                if self.trial.is_some() {
                    self.go_back("another model is to take over", sink);
                }
                let began_ns = now.boot_ns;
                self.candidate =
                    Some(Candidate { running, terms, shadow_ns, why, began_ns, compared: 0, differed: 0, took_us: 0 });
            }
            Message::Back(why) => {
                self.refuse_candidate(&why, sink);
                if self.trial.is_some() {
                    self.go_back(&why, sink);
                }
            }
        }
    }

    pub(super) fn refuse_candidate(&mut self, why: &str, sink: &mut dyn Sink) {
        let Some(candidate) = self.candidate.take() else { return };
        self.shadowed.clear();
        let text = format!("{}: {why}; it never served", candidate.running.source.name());
        self.tell(Kind::ModelRolledBack, self.last, &text, sink);
        (self.setup.report)(candidate.running.source.bundle.clone(), Said::Bad(why.to_owned()));
    }

    /// The candidate runs on the windows that were just answered.
    pub(super) fn shadow(&mut self, sink: &mut dyn Sink, beat: &dyn Fn()) {
        let Some(mut candidate) = self.candidate.take() else { return };
        let mut windows = std::mem::take(&mut self.shadowed);
        // A slow one must not hold up the one that serves: it sees fewer windows.
        windows.truncate(self.ring_most(candidate.took_us, candidate.running.slots()));
        let run = self.run_beside(&mut candidate, &windows, beat);
        self.candidate = Some(candidate);
        if let Err(why) = run {
            self.refuse_candidate(&why, sink);
        }
    }

    fn run_beside(
        &mut self,
        candidate: &mut Candidate,
        windows: &[(Window, Option<bool>)],
        beat: &dyn Fn(),
    ) -> Result<(), String> {
        let deadline = self.deadline(&candidate.running);
        let place =
            |window: &Window| self.setup.served.iter().position(|s| s.index() == window.tag.pipeline).unwrap_or(0);
        let mut left = windows;
        while !left.is_empty() {
            let running = &mut candidate.running;
            let places: Vec<usize> = left.iter().take(running.slots()).map(|(window, _)| place(window)).collect();
            let count = ring_size(running, &places);
            for (slot, at) in places.iter().take(count).enumerate() {
                running.fill(slot, *at, &left[slot].0.values);
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
                        candidate.took_us = slowest(candidate.took_us, answered.took_us);
                        if let (Some(above), Some(beyond)) = (above, running.fits[*at].is_beyond(answered.score)) {
                            candidate.compared += 1;
                            candidate.differed += u64::from(*above != beyond);
                        }
                    }
                }
            }
            running.calibrate_if_due(deadline, beat)?;
            left = &left[count..];
        }
        Ok(())
    }

    /// Between two windows: the candidate serves from the next one on.
    pub(super) fn swap_if_ready(&mut self, now: Stamp, sink: &mut dyn Sink) {
        // Where nothing serves there is nothing to learn beside.
        let alone = self.running.is_none() && self.source.is_none();
        let ready =
            |c: &Candidate| alone || !c.running.is_learning() && now.boot_ns.saturating_sub(c.began_ns) >= c.shadow_ns;
        let Some(candidate) = self.candidate.take_if(|candidate| ready(candidate)) else { return };
        self.shadowed.clear();
        let fallback = self.running.replace(candidate.running);
        (self.took_us, self.lag) = (candidate.took_us, Lag::default());
        let Some(running) = &self.running else { return };
        let before = self.source.replace(running.source.clone());
        let bundle: Arc<str> = running.source.bundle.clone();
        let mut text = format!("{} serves: {}", running.describe(), candidate.why);
        if candidate.compared > 0 {
            let (differed, compared) = (candidate.differed, candidate.compared);
            text.push_str(&format!("; beside the previous model it differed on {differed} of {compared} windows"));
        }
        self.tell(Kind::ModelSwapped, Some(now), &text, sink);
        (self.setup.report)(bundle.clone(), Said::Swapped(text.clone()));
        match candidate.terms {
            Some(terms) => self.trial = Some(Trial { gate: Gate::new(terms), fallback, before }),
            None => (self.setup.report)(bundle, Said::Passed(text)),
        }
    }

    pub(super) fn end_trial_if_over(&mut self, sink: &mut dyn Sink) {
        // A model that is still behind is not healthy yet: it catches up, or being behind becomes a bad sign.
        if self.lag.is_over() {
            return;
        }
        let Some(over) = self.trial.as_mut().and_then(|trial| trial.gate.over()) else { return };
        match over {
            Err(why) => self.go_back(&why, sink),
            Ok(text) => {
                // The previous model is not needed any more: dropping it frees its memory.
                self.trial = None;
                let bundle = self.source.as_ref().map_or_else(|| "".into(), |source| source.bundle.clone());
                (self.setup.report)(bundle, Said::Passed(text));
            }
        }
    }

    /// The model on trial showed a bad sign: the previous model serves again.
    pub(super) fn go_back(&mut self, why: &str, sink: &mut dyn Sink) {
        let Some(trial) = self.trial.take() else { return };
        (self.took_us, self.lag) = (0, Lag::default());
        let bad = std::mem::replace(&mut self.source, trial.before);
        self.running = trial.fallback.and_then(|mut running| running.is_alive().then_some(running));
        let name = bad.as_ref().map_or_else(String::new, |source| source.name());
        let now = self.source.as_ref().map_or_else(|| "nothing".into(), |source| source.name());
        self.tell(Kind::ModelRolledBack, self.last, &format!("{name}: {why}; {now} serves again"), sink);
        let bundle = bad.map_or_else(|| "".into(), |source| source.bundle);
        (self.setup.report)(bundle, Said::Bad(why.to_owned()));
    }
}

/// The terms of a configuration and a bundle.
pub fn terms(models: &Models, scores: Option<Channel>) -> Terms {
    Terms { least_ns: models.trial_s * 1_000_000_000, windows: models.trial_windows.max(1), scores }
}
