//! The rollout of a model on this device: prove, offer, watch, verdict. `model::rollout` has the words that control and the
//! rollout exchange.
//!
//! ```text
//!            Prove, Offer, Back                 Offer, Back                       each engine's own thread
//! control ───────────────────────▶ `prover` ───────────────────▶ engine: `candidate` ─▶ `takeover` ─▶ `gate`
//!         ◀────────── Proven ──────────┘                                                                │
//!         ◀─────────────────────────────────── Verdict ─────────────────────────────────────────────────┘
//! ```
//!
//! Owns the thread that starts workers for proofs: a worker dies with the thread that started it, so it lives as long as
//! control does. A model is offered to all groups of pipelines that use it, or to none.

mod agreement;
pub mod candidate;
pub mod gate;
mod labelled;
pub mod prove;
pub mod prover;
pub mod takeover;
pub mod window;

use std::sync::{Arc, mpsc};

use self::gate::Terms;
use super::{Keeps, running::Running};
use crate::{
    config::Config,
    error::{Context, Fatal},
    flow::{
        beat::Beat,
        verdict::{Said, Verdict},
    },
    host::Host,
    limits,
    model::rollout::{Inbox, Report},
};

/// To an engine. `R` is a model that is ready to serve; tests have another.
pub enum Message<R = Running> {
    /// This model is to take over.
    Offer(Box<Offer<R>>),
    /// The candidate, or the model on trial, is to go, for this reason.
    Back(String),
}

/// A model that proved itself.
pub struct Offer<R = Running> {
    /// In its worker.
    pub running: R,
    /// How long it is watched; `None`: it passed its trial before, and is committed at once.
    pub terms: Option<Terms>,
    /// It runs beside the serving model for at least this long first, ns.
    pub shadow_ns: u64,
    /// Why, for the event.
    pub why: String,
}

/// An engine's place in rollouts. A replay has none.
pub struct Seat {
    group: usize,
    mail: mpsc::Receiver<Message>,
    reports: mpsc::SyncSender<Report>,
}

impl Seat {
    /// The next message, if there is one.
    pub fn message(&self) -> Option<Message> {
        self.mail.try_recv().ok()
    }

    /// Reports a verdict on this bundle.
    pub fn report(&self, bundle: Arc<str>, said: Said) {
        let group = self.group;
        if self.reports.try_send(Report::Verdict(Verdict { group, bundle, said })).is_err() {
            tracing::error!(group, "drop a model's verdict: control's queue is full or closed");
        }
    }
}

/// The rollout before it starts: each engine takes its seat.
pub struct Rollout {
    inbox: Inbox,
    engines: Vec<mpsc::SyncSender<Message>>,
}

impl Rollout {
    /// Without engines.
    pub fn new(inbox: Inbox) -> Self {
        Self { inbox, engines: Vec::new() }
    }

    /// The seat of the next group's engine. Called once for each of `config::groups`, in their order.
    pub fn seat(&mut self) -> Seat {
        let (to_engine, mail) = mpsc::sync_channel(limits::ROLLOUT_MESSAGES);
        self.engines.push(to_engine);
        Seat { group: self.engines.len() - 1, mail, reports: self.inbox.reports.clone() }
    }

    /// Starts its thread, which ends when control's end is gone.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(self, host: &Host, config: &Config, keeps: Keeps, beat: Beat) -> Result<(), Fatal> {
        let workers = prover::Device { host: host.clone(), config: config.clone(), keeps };
        let groups = prover::groups(config);
        let prover = prover::Prover::new(groups, config.models.clone(), workers, self.engines, self.inbox);
        let run = move || prover.run(&|| beat.beat());
        std::thread::Builder::new().name("prove".into()).spawn(run).context("start a thread")?;
        Ok(())
    }
}
