//! The view of models for status and `up/reported`: slots, and the job in progress.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::models::{Models, Phase};
use crate::model::slot::{Slot, SlotId};

impl Models {
    /// For status.
    pub(super) fn shown(&self) -> Value {
        let phase = self.work.as_ref().map(|work| {
            let (phase, have) = match &work.phase {
                Phase::Bringing { have, .. } => ("bringing", Some(*have)),
                Phase::Opening => ("verifying", None),
                Phase::Proving => ("proving", None),
                Phase::Watched { .. } => ("trial", None),
            };
            json!({"id": work.requester().0, "state": "running", "phase": phase, "have_bytes": have, "text": ""})
        });
        let ended = self.ended.as_ref();
        let ended = ended.map(|(id, state, text)| {
            json!({"id": id, "state": state.word(), "phase": null, "have_bytes": null, "text": text})
        });
        json!({"slots": self.slots(), "job": phase.or(ended), "keyset": self.keys.version, "stale": self.stale})
    }

    /// The content of each slot.
    pub(super) fn slots(&self) -> Value {
        let slot = |slot: &Slot| match slot {
            Slot::Empty => json!({"state": "empty"}),
            Slot::Rejected { held, why } => {
                json!({"state": "rejected", "version": held.version, "seq": held.seq, "sha256": held.sha256, "why": why})
            }
            slot => match slot.held() {
                Some(held) => {
                    json!({"state": slot.word(), "version": held.version, "seq": held.seq, "sha256": held.sha256})
                }
                None => json!({"state": slot.word()}),
            },
        };
        let lines: BTreeMap<&String, Value> = (self.shelf.lines())
            .map(|(name, line)| {
                let (a, b) = (slot(line.slot(SlotId::A)), slot(line.slot(SlotId::B)));
                (name, json!({"serving": line.serving().word(), "a": a, "b": b}))
            })
            .collect();
        json!(lines)
    }
}
