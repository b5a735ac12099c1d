//! The engine's steps of a rollout: a new model learns beside the one that serves, takes over between two windows, and is
//! watched. At the first bad sign the previous model serves again, from the window that was the sign.

use std::sync::Arc;

use super::{
    super::{engine::Engine, lag::Lag, served::Served},
    Message,
    agreement::Agreement,
    candidate::{Candidate, Trial},
    gate::Gate,
};
use crate::flow::{Draft, Sink, Stamp, Window, event::Kind, verdict::Said};

impl Engine {
    pub(in crate::infer) fn read_mail(&mut self, now: Stamp, sink: &mut dyn Sink) {
        let Some(message) = self.setup.seat.as_ref().and_then(|seat| seat.message()) else { return };
        match message {
            Message::Offer(offer) => {
                if self.trial.is_some() {
                    self.go_back("another model is to take over", sink);
                }
                // What was labelled before is about windows that it did not see.
                self.setup.served.iter().for_each(|served| drop(served.take_labels()));
                let labels = self.setup.served.iter().any(Served::keeps_samples);
                self.candidate = Some(Candidate::new(*offer, now, labels));
            }
            Message::Back(why) => {
                self.refuse_candidate(&why, sink);
                if self.trial.is_some() {
                    self.go_back(&why, sink);
                }
            }
        }
    }

    pub(in crate::infer) fn refuse_candidate(&mut self, why: &str, sink: &mut dyn Sink) {
        let Some(mut candidate) = self.candidate.take() else { return };
        self.shadowed.clear();
        self.tell_agreement(&mut candidate, true, sink);
        let text = format!("{}: {why}; it never served", candidate.running.source.name());
        self.tell(Kind::ModelRolledBack, self.last, &text, sink);
        self.report(candidate.running.source.bundle.clone(), Said::Bad(why.to_owned()));
    }

    /// The candidate runs on the windows that were just answered.
    pub(in crate::infer) fn shadow(&mut self, sink: &mut dyn Sink, beat: &dyn Fn()) {
        let Some(mut candidate) = self.candidate.take() else { return };
        let mut windows = std::mem::take(&mut self.shadowed);
        // A slow one must not hold up the one that serves: it sees fewer windows.
        let place = |window: &Window| self.place(window).unwrap_or(0);
        let most = self.ring_most(candidate.took_us, candidate.running.slots()).min(windows.len());
        candidate.skip(windows.drain(most..).map(|skipped| place(&skipped.window)));
        let deadline = self.deadline(&candidate.running);
        let run = candidate.run_beside(&windows, place, deadline, beat);
        self.tell_agreement(&mut candidate, false, sink);
        self.candidate = Some(candidate);
        if let Err(why) = run {
            self.refuse_candidate(&why, sink);
        }
    }

    /// Publishes how the candidate compares with the serving model, now and then; `over`: a last time.
    fn tell_agreement(&self, candidate: &mut Candidate, over: bool, sink: &mut dyn Sink) {
        let Some(now) = self.now else { return };
        let name = candidate.running.source.name();
        let lineages: Vec<Arc<str>> = candidate.running.fits.iter().map(|fit| fit.lineage.clone()).collect();
        let serving = self.source.as_ref().map_or_else(String::new, |source| source.name());
        let draft = |(at, agreement): (usize, &Agreement)| {
            let served = &self.setup.served[at];
            let members = agreement.members(&served.config().name, (&name, &serving), now, over);
            served.shadow(members, lineages[at].clone(), now)
        };
        let mut drafts: Vec<Draft> = candidate.agreements(now.boot_ns, over).map(draft).collect();
        if !drafts.is_empty() {
            sink.put(&mut drafts);
        }
    }

    /// Between two windows: the candidate serves from the next one on.
    pub(in crate::infer) fn swap_if_ready(&mut self, now: Stamp, sink: &mut dyn Sink) {
        // Where nothing serves there is nothing to learn beside.
        let alone = self.running.is_none() && self.source.is_none();
        let ready = |candidate: &mut Candidate| alone || candidate.is_ready(now.boot_ns);
        let Some(mut candidate) = self.candidate.take_if(ready) else { return };
        self.shadowed.clear();
        self.tell_agreement(&mut candidate, true, sink);
        let (compared, shadow_ns) = (candidate.compared(), if alone { candidate.shadow_ns } else { 0 });
        let fallback = self.running.replace(candidate.running);
        (self.took_us, self.lag) = (candidate.took_us, Lag::default());
        let Some(running) = &self.running else { return };
        let before = self.source.replace(running.source.clone());
        let bundle: Arc<str> = running.source.bundle.clone();
        let text = format!("{} serves: {}{compared}", running.describe(), candidate.why);
        self.tell(Kind::ModelSwapped, Some(now), &text, sink);
        self.report(bundle.clone(), Said::Swapped(text.clone()));
        match candidate.terms {
            Some(terms) => self.trial = Some(Trial { gate: Gate::new(terms.alone(shadow_ns)), fallback, before }),
            None => self.report(bundle, Said::Passed(text)),
        }
    }

    pub(in crate::infer) fn end_trial_if_over(&mut self, sink: &mut dyn Sink) {
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
                self.report(bundle, Said::Passed(text));
            }
        }
    }

    /// The model on trial showed a bad sign: the previous model serves again.
    pub(in crate::infer) fn go_back(&mut self, why: &str, sink: &mut dyn Sink) {
        let Some(trial) = self.trial.take() else { return };
        (self.took_us, self.lag) = (0, Lag::default());
        let bad = std::mem::replace(&mut self.source, trial.before);
        self.running = trial.fallback.and_then(|mut running| running.is_alive().then_some(running));
        let name = bad.as_ref().map_or_else(String::new, |source| source.name());
        let now = self.source.as_ref().map_or_else(|| "nothing".into(), |source| source.name());
        self.tell(Kind::ModelRolledBack, self.last, &format!("{name}: {why}; {now} serves again"), sink);
        let bundle = bad.map_or_else(|| "".into(), |source| source.bundle);
        self.report(bundle, Said::Bad(why.to_owned()));
    }
}
