//! The states of a model's two slots, and which bundle serves. Pure: each step is a function of the previous state, and an
//! illegal step is rejected.
//!
//! ```text
//! Empty ─▶ Staged ─▶ Verified ─▶ Proven ─▶ Trial ─▶ Steady
//!             └──────────┴──────────┴────────┴──▶ Rejected       (a slot that does not serve can be staged again)
//! ```
//!
//! While a slot is on trial, `serving` still names the previous model: a restart starts that one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the two slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotId {
    /// First.
    A,
    /// Second.
    B,
}

/// The origin of the model that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The model that the configuration names.
    Factory,
    /// A slot.
    Slot(SlotId),
}

impl Origin {
    /// The published word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Factory => "factory",
            Self::Slot(SlotId::A) => "a",
            Self::Slot(SlotId::B) => "b",
        }
    }
}

/// A bundle in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// SHA-256 of the whole bundle: its file name in the store.
    pub sha256: String,
    /// Version, for people.
    pub version: String,
    /// Sequence: its place in the order of releases.
    pub seq: u64,
}

/// The state of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// Empty.
    #[default]
    Empty,
    /// The bundle is in the store.
    Staged(Held),
    /// Signature, digests and scan passed: it may be tried.
    Verified(Held),
    /// It passed its golden cases on this device.
    Proven(Held),
    /// It serves, and is watched.
    Trial(Held),
    /// It passed its trial.
    Steady(Held),
    /// It failed.
    Rejected {
        /// The bundle.
        held: Held,
        /// Why.
        why: String,
    },
}

/// The next step of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotStep {
    /// Staged → Verified.
    Verified,
    /// Verified → Proven.
    Proven,
    /// Proven → Trial.
    Trial,
    /// Trial → Steady, and it serves.
    Steady,
}

/// An illegal step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Illegal(String);

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Slot {
    /// The bundle in it.
    pub fn held(&self) -> Option<&Held> {
        match self {
            Self::Empty => None,
            Self::Staged(held) | Self::Verified(held) | Self::Proven(held) | Self::Trial(held) | Self::Steady(held) => {
                Some(held)
            }
            Self::Rejected { held, .. } => Some(held),
        }
    }

    /// The word in status.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Staged(_) => "staged",
            Self::Verified(_) => "verified",
            Self::Proven(_) => "proven",
            Self::Trial(_) => "trial",
            Self::Steady(_) => "steady",
            Self::Rejected { .. } => "rejected",
        }
    }

    fn step(self, step: SlotStep) -> Result<Self, Illegal> {
        match (self, step) {
            (Self::Staged(held), SlotStep::Verified) => Ok(Self::Verified(held)),
            (Self::Verified(held), SlotStep::Proven) => Ok(Self::Proven(held)),
            (Self::Proven(held), SlotStep::Trial) => Ok(Self::Trial(held)),
            (Self::Trial(held), SlotStep::Steady) => Ok(Self::Steady(held)),
            (slot, step) => Err(Illegal(format!("a slot that is {} cannot become {step:?}", slot.word()))),
        }
    }
}

/// One model's slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSlots {
    a: Slot,
    b: Slot,
    serving: Origin,
}

impl Default for ModelSlots {
    fn default() -> Self {
        Self { a: Slot::Empty, b: Slot::Empty, serving: Origin::Factory }
    }
}

impl ModelSlots {
    /// A slot.
    pub fn slot(&self, id: SlotId) -> &Slot {
        match id {
            SlotId::A => &self.a,
            SlotId::B => &self.b,
        }
    }

    fn slot_mut(&mut self, id: SlotId) -> &mut Slot {
        match id {
            SlotId::A => &mut self.a,
            SlotId::B => &mut self.b,
        }
    }

    /// The origin of the model that serves, or would after a start.
    pub fn serving(&self) -> Origin {
        self.serving
    }

    /// The bundle that serves, if it is in a slot.
    pub fn held(&self) -> Option<&Held> {
        match self.serving {
            Origin::Factory => None,
            Origin::Slot(id) => self.slot(id).held(),
        }
    }

    /// The slot that does not serve.
    pub fn spare(&self) -> SlotId {
        if self.serving == Origin::Slot(SlotId::A) { SlotId::B } else { SlotId::A }
    }

    /// Puts a bundle into the spare slot, as `Staged`, also if the slot holds the same bundle as `Steady`.
    pub fn stage(&mut self, held: Held) -> SlotId {
        let id = self.spare();
        *self.slot_mut(id) = Slot::Staged(held);
        id
    }

    /// Takes a step; `Steady` makes the slot serve.
    ///
    /// # Errors
    /// The slot is not at the step before.
    pub fn step(&mut self, id: SlotId, step: SlotStep) -> Result<(), Illegal> {
        let next = self.slot(id).clone().step(step)?;
        *self.slot_mut(id) = next;
        if step == SlotStep::Steady {
            self.serving = Origin::Slot(id);
        }
        Ok(())
    }

    /// Rejects the bundle of a slot. If it serves, the previous model serves instead.
    pub fn reject(&mut self, id: SlotId, why: &str) {
        if let Some(held) = self.slot(id).held().cloned() {
            *self.slot_mut(id) = Slot::Rejected { held, why: why.to_owned() };
        }
        if self.serving == Origin::Slot(id) {
            self.serving = self.previous();
        }
    }

    /// A slot whose install was interrupted when the process ended.
    pub fn interrupted(&self) -> Option<SlotId> {
        let on_its_way = |id: &SlotId| {
            matches!(self.slot(*id), Slot::Staged(_) | Slot::Verified(_) | Slot::Proven(_) | Slot::Trial(_))
        };
        [SlotId::A, SlotId::B].into_iter().find(on_its_way)
    }

    /// Sets a slot back to `Staged`: its bundle is verified again from the first byte.
    pub fn again(&mut self, id: SlotId) {
        if let Some(held) = self.slot(id).held().cloned() {
            *self.slot_mut(id) = Slot::Staged(held);
        }
    }

    /// Replaces what the slot holds, as `Steady`.
    pub(super) fn set_steady(&mut self, id: SlotId, held: Held) {
        *self.slot_mut(id) = Slot::Steady(held);
    }

    /// The target of a rollback: the other slot if it is `Steady`, else the model that the configuration names.
    pub fn previous(&self) -> Origin {
        let other = self.spare();
        match self.slot(other) {
            Slot::Steady(_) => Origin::Slot(other),
            _ => Origin::Factory,
        }
    }

    /// Rolls back to the previous model; both slots keep their state.
    pub fn roll_back(&mut self) -> Origin {
        self.serving = self.previous();
        self.serving
    }

    /// The bundles in the slots, in any state.
    pub fn held_bundles(&self) -> impl Iterator<Item = &str> {
        [&self.a, &self.b].into_iter().filter_map(|slot| slot.held().map(|held| held.sha256.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(seq: u64) -> Held {
        Held { sha256: format!("{seq:064}"), version: seq.to_string(), seq }
    }

    const WAY: [SlotStep; 4] = [SlotStep::Verified, SlotStep::Proven, SlotStep::Trial, SlotStep::Steady];

    #[test]
    fn a_bundle_serves_only_after_every_step() {
        let mut line = ModelSlots::default();
        let id = line.stage(held(1));
        for (i, step) in WAY.into_iter().enumerate() {
            for wrong in WAY.into_iter().filter(|s| *s != step) {
                assert!(line.step(id, wrong).is_err(), "{wrong:?} after {i} steps");
            }
            assert_eq!(line.serving(), Origin::Factory);
            line.step(id, step).expect("the next step");
        }
        assert_eq!((line.serving(), line.spare()), (Origin::Slot(SlotId::A), SlotId::B));
    }

    #[test]
    fn whatever_goes_wrong_leaves_the_one_before_serving() {
        for steps in 0..WAY.len() {
            let mut line = ModelSlots::default();
            let a = line.stage(held(1));
            WAY.iter().for_each(|step| line.step(a, *step).expect("step"));
            let b = line.stage(held(2));
            WAY[..steps].iter().for_each(|step| line.step(b, *step).expect("step"));
            assert_eq!((line.interrupted(), line.serving()), (Some(b), Origin::Slot(a)));
            line.reject(b, "bad");
            assert_eq!((line.slot(b).word(), line.serving(), line.interrupted()), ("rejected", Origin::Slot(a), None));
            assert!(WAY.iter().all(|step| line.step(b, *step).is_err()), "what was rejected stays so");
        }
    }

    #[test]
    fn going_back_ends_at_the_factory() {
        let mut line = ModelSlots::default();
        for seq in 1..=3 {
            let id = line.stage(held(seq));
            WAY.iter().for_each(|step| line.step(id, *step).expect("step"));
        }
        assert_eq!(line.held().map(|h| h.seq), Some(3));
        line.roll_back();
        assert_eq!(line.held().map(|h| h.seq), Some(2));
        let Origin::Slot(serving) = line.serving() else { panic!("a slot serves") };
        line.reject(serving, "bad");
        assert_eq!(line.held().map(|h| h.seq), Some(3), "the other slot is steady");
        let Origin::Slot(serving) = line.serving() else { panic!("a slot serves") };
        line.reject(serving, "bad");
        assert_eq!(line.serving(), Origin::Factory);
    }
}
