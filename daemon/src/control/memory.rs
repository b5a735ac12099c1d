//! What must be remembered of commands so that none is done twice: ids, each issuer's highest sequence, the desired
//! state's highest version. Saved before the act, in two copies with checksums.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::request::needs_signature;
use crate::{host::Keep, limits};

const FILE: &str = "memory.json";

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It will be done.
    Accepted,
    /// It is being done.
    Running,
    /// It was done, and is well.
    Success,
    /// It could not be done.
    Failed,
    /// It will not be done.
    Rejected,
    /// It came too late.
    Expired,
    /// It was done, was not well, and was undone.
    RolledBack,
}

impl State {
    /// As the result says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Nothing comes after it.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Accepted | Self::Running)
    }
}

/// A command that was taken in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Known {
    /// Its id.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// Of type and arguments.
    pub digest: String,
    /// What became of it.
    pub state: State,
    /// The same for people.
    pub text: String,
    /// The boot it began in.
    pub boot: String,
    /// The broker has its end.
    #[serde(default)]
    pub told: bool,
}

/// The desired state that was last looked at.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Wish {
    /// Highest version seen.
    pub version: u64,
    /// `none`, `applying`, `applied`, `rejected`, `rolled_back`.
    pub state: String,
    /// The same for people.
    pub text: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    commands: VecDeque<Known>,
    issuers: BTreeMap<String, u64>,
    wish: Wish,
    /// Digests of configurations that were put back, for desired states.
    put_back: VecDeque<String>,
    /// The memory was lost once: an issuer that is not in it must show that its command is fresh.
    #[serde(default)]
    lost: bool,
}

/// The memory.
pub struct Memory {
    keep: Keep,
    saved: Saved,
}

impl Memory {
    /// What was saved. What cannot be read is begun anew, with distrust.
    pub fn open(keep: Keep) -> (Self, bool) {
        let (saved, damaged) = match keep.load_checked::<Saved>(FILE) {
            Ok(saved) => (saved.unwrap_or_default(), false),
            Err(_) => (Saved { lost: true, ..Saved::default() }, true),
        };
        (Self { keep, saved }, damaged)
    }

    /// A command by its id.
    pub fn known(&self, id: &str) -> Option<&Known> {
        self.saved.commands.iter().rev().find(|known| known.id == id)
    }

    /// Commands that were begun and did not come to an end.
    pub fn unfinished(&self) -> Vec<Known> {
        self.saved.commands.iter().filter(|known| !known.state.is_final()).cloned().collect()
    }

    /// Commands that ended, and nobody may have heard of it.
    pub fn untold(&self) -> Vec<Known> {
        let ended = self.saved.commands.iter().filter(|known| known.state.is_final() && !known.told);
        ended.filter(|known| needs_signature(&known.kind)).cloned().collect()
    }

    /// The broker has its end.
    pub fn told(&mut self, id: &str) {
        self.saved.commands.iter_mut().filter(|known| known.id == id).for_each(|known| known.told = true);
    }

    /// The issuer's highest sequence.
    pub fn issuer(&self, issuer: &str) -> u64 {
        self.saved.issuers.get(issuer).copied().unwrap_or(0)
    }

    /// What this issuer sent before may have been forgotten.
    pub fn distrusts(&self, issuer: &str) -> bool {
        self.saved.lost && !self.saved.issuers.contains_key(issuer)
    }

    /// Remembers a new command, and its issuer's sequence.
    pub fn take(&mut self, known: Known, issuer: Option<(&str, u64)>) {
        // A verified command may take an id that one without a signature had: ids stay unique.
        self.saved.commands.retain(|before| before.id != known.id);
        while self.saved.commands.len() >= limits::COMMANDS_KNOWN {
            // What changes nothing may come twice: it is forgotten first.
            let least = self.saved.commands.iter().position(|known| !needs_signature(&known.kind));
            self.saved.commands.remove(least.unwrap_or(0));
        }
        self.saved.commands.push_back(known);
        if let Some((issuer, iseq)) = issuer {
            let highest = self.saved.issuers.entry(issuer.to_owned()).or_default();
            *highest = iseq.max(*highest);
        }
    }

    /// What became of a command.
    pub fn became(&mut self, id: &str, state: State, text: &str) {
        if let Some(known) = self.saved.commands.iter_mut().rev().find(|known| known.id == id) {
            known.state = state;
            known.told = false;
            known.text = text.chars().take(limits::RESULT_TEXT).collect();
        }
    }

    /// The desired state.
    pub fn wish(&self) -> &Wish {
        &self.saved.wish
    }

    /// Another desired state.
    pub fn wished(&mut self, version: u64, state: &str, text: &str) {
        let version = version.max(self.saved.wish.version);
        self.saved.wish = Wish { version, state: state.into(), text: text.into() };
    }

    /// This configuration was put back once.
    pub fn was_put_back(&self, digest: &str) -> bool {
        self.saved.put_back.iter().any(|d| d == digest)
    }

    /// This configuration was put back.
    pub fn put_back(&mut self, digest: &str) {
        if !self.was_put_back(digest) {
            while self.saved.put_back.len() >= limits::PUT_BACK_KNOWN {
                self.saved.put_back.pop_front();
            }
            self.saved.put_back.push_back(digest.into());
        }
    }

    /// Onto the disk.
    pub fn save(&self) -> Result<(), String> {
        self.keep.save_checked(FILE, &self.saved).map_err(|why| format!("remember the command: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_in_is_known_after_a_restart_and_a_lost_memory_distrusts() {
        let dir = tempfile::tempdir().expect("folder");
        let keep = || Keep::open(dir.path(), "control").expect("keep");
        let (mut memory, damaged) = Memory::open(keep());
        assert!(!damaged && !memory.distrusts("ops"));
        for n in 0..limits::COMMANDS_KNOWN + 3 {
            let (id, kind, digest) = (format!("c{n}"), "ping".into(), "d".into());
            let known =
                Known { id, kind, digest, state: State::Running, text: String::new(), boot: "b".into(), told: false };
            memory.take(known, Some(("ops", n as u64 + 1)));
        }
        memory.became("c5", State::Success, "done");
        memory.save().expect("save");
        let (memory, _) = Memory::open(keep());
        assert!(memory.known("c0").is_none(), "the oldest leave");
        assert_eq!(memory.known("c5").map(|k| k.state), Some(State::Success));
        assert_eq!(memory.issuer("ops"), limits::COMMANDS_KNOWN as u64 + 3);
        for copy in ["memory.json", "memory.json.bak"] {
            std::fs::write(dir.path().join("control").join(copy), "torn").expect("tear");
        }
        let (mut memory, damaged) = Memory::open(keep());
        assert!(damaged && memory.distrusts("ops"));
        memory.take(
            Known {
                id: "x".into(),
                kind: "ping".into(),
                digest: "d".into(),
                state: State::Accepted,
                text: String::new(),
                boot: "b".into(),
                told: false,
            },
            Some(("ops", 9)),
        );
        assert!(!memory.distrusts("ops") && memory.distrusts("other"));
    }
}
