//! The words of a rollout. Control owns the slots and decides; the stage that runs models proves a model, offers it to its
//! engines and watches it.
//!
//! ```text
//! control ─ Prove ─▶ a worker for each group answers golden cases ─ Proven ─▶ control saves [Trial]
//!         ─ Offer ─▶ candidate beside ─▶ swap ─▶ gate ─────────── Verdict ─▶ control saves [Steady], or rolls back
//!         ─ Back ──▶ the previous model serves again
//! ```
//!
//! Each `Prove` gets exactly one `Proven`. An `Offer` that cannot be carried out gets one too, with the reason.

use std::{
    collections::BTreeSet,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use super::{bundle::Bundle, error::Unproven, slot::SlotId};
use crate::{flow::verdict::Verdict, limits};

/// A model to prove.
#[derive(Debug)]
pub enum Target {
    /// A bundle in a slot.
    Slot(Box<Bundle>, SlotId),
    /// The model that the configuration names.
    Factory(String),
}

impl Target {
    /// The model's name.
    pub fn model(&self) -> &str {
        match self {
            Self::Slot(bundle, _) => &bundle.release.model,
            Self::Factory(model) => model,
        }
    }
}

/// What control requests.
#[derive(Debug)]
pub enum Request {
    /// Prove this model in workers that could serve. The newest request counts: an earlier proof that was not offered yet
    /// is stopped or dropped.
    Prove {
        /// The job that needs it; unique in this process.
        number: u64,
        /// The model.
        target: Target,
        /// It is on trial once it serves. A model that served without a fault before is not.
        watched: bool,
    },
    /// Offer the model that was proven for this job to its groups of pipelines.
    Offer {
        /// The job.
        number: u64,
    },
    /// The engines of this model roll back; a proof of it is stopped or dropped.
    Back {
        /// The model.
        model: String,
        /// Why, for events.
        why: String,
    },
}

/// A model that passed its golden cases in each group of pipelines that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Measured figures.
    pub text: String,
    /// These groups.
    pub groups: BTreeSet<usize>,
}

/// What control learns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The result of `Prove`, for the job of this number: the proof, or why the model does not serve.
    Proven(u64, Result<Proof, Unproven>),
    /// The verdict of an engine on the model that it runs.
    Verdict(Verdict),
}

/// Control's end.
#[derive(Debug)]
pub struct Desk {
    requests: SyncSender<Request>,
    answers: SyncSender<Report>,
    reports: Receiver<Report>,
}

/// The other end. The rollout is over when `requests` is closed.
#[derive(Debug)]
pub struct Inbox {
    /// From control.
    pub requests: Receiver<Request>,
    /// To control; engines have clones.
    pub reports: SyncSender<Report>,
}

/// The two ends.
pub fn desk() -> (Desk, Inbox) {
    let (requests_tx, requests) = sync_channel(limits::ROLLOUT_REQUESTS);
    let (reports_tx, reports) = sync_channel(limits::MODEL_NEWS);
    (Desk { requests: requests_tx, answers: reports_tx.clone(), reports }, Inbox { requests, reports: reports_tx })
}

impl Desk {
    /// Sends a request; never waits. One that finds no room is answered at once.
    pub fn request(&self, request: Request) {
        let Err(refused) = self.requests.try_send(request) else { return };
        let (why, request) = match refused {
            std::sync::mpsc::TrySendError::Full(request) => ("its queue is full", request),
            std::sync::mpsc::TrySendError::Disconnected(request) => ("its thread has ended", request),
        };
        match request {
            Request::Prove { number, .. } | Request::Offer { number } => {
                let _ = self.answers.try_send(Report::Proven(number, Err(format!("start the rollout: {why}").into())));
            }
            Request::Back { model, .. } => {
                tracing::error!("model {model}: tell the rollout to roll back: {why}; it goes on until its trial ends");
            }
        }
    }

    /// The next report, if there is one.
    pub fn report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prove(number: u64) -> Request {
        Request::Prove { number, target: Target::Factory("m".into()), watched: false }
    }

    #[test]
    fn request_that_finds_no_thread_or_no_room_is_answered_with_an_error() {
        let (desk, inbox) = desk();
        for number in 0..=limits::ROLLOUT_REQUESTS as u64 {
            desk.request(prove(number));
        }
        let full = limits::ROLLOUT_REQUESTS as u64;
        assert!(
            matches!(desk.report(), Some(Report::Proven(number, Err(why))) if number == full && why.0.contains("full"))
        );
        assert_eq!(desk.report(), None, "the others wait for the rollout");
        drop(inbox);
        desk.request(Request::Offer { number: 9 });
        assert!(matches!(desk.report(), Some(Report::Proven(9, Err(why))) if why.0.contains("ended")));
    }
}
