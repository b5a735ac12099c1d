//! A configuration on trial: it is in use, and is rolled back unless it is confirmed. The previous layer is saved before
//! anything changes, so after a power cut at any moment the old or the new layer is in use. A process that finds the trial of
//! another process rolls it back.
//!
//! ```text
//! STATE/config/remote.toml      the remote layer
//!              previous         the remote layer before the last committed change
//! STATE/control/trial.json      the trial in progress; two copies with checksums
//! ```
//!
//! begin: trial.json → remote.toml.  commit: previous → trial.json removed.  roll back: remote.toml → trial.json removed.

use std::{path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    flow::order::Respond,
    host::{Keep, Unloaded},
    model::file::hex,
};

const FILE: &str = "trial.json";
const CONFIG: &str = "remote.toml";
const PREVIOUS: &str = "previous";

/// The trial of another process could not be rolled back: a file cannot be read or written; which, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unrecovered(String);

/// Digest of a configuration's text.
pub fn digest(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// The requester of the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    /// A command, by its id.
    Command(String),
    /// The desired state of this version.
    Desired(u64),
}

/// The change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The requester.
    pub asker: Asker,
    /// The previous layer, if there was one.
    pub previous: Option<String>,
    /// The new layer; `None`: none.
    pub text: Option<String>,
    /// Digest of the new layer.
    pub digest: String,
    /// It is rolled back unless it is confirmed through the broker within so many seconds.
    pub confirm_s: Option<u64>,
    /// The process that began it; another process rolls it back.
    pub process: String,
    /// It was rolled back already, for this reason; the report is pending.
    pub put_back: Option<String>,
    /// Where the result goes beside `up/res`.
    pub respond: Option<Respond>,
}

/// The files of a trial.
#[derive(Debug, Clone)]
pub struct Trials {
    control: Keep,
    config: Keep,
}

impl Trials {
    /// Below the state directory.
    pub fn open(state_dir: &Path) -> Self {
        Self { control: Keep::at(state_dir.join("control")), config: Keep::at(state_dir.join("config")) }
    }

    /// The longest wait between two connects, while a change that could cut the device off is on trial.
    pub fn wait_most(&self) -> Option<Duration> {
        let trial = self.found().ok().flatten().filter(|trial| trial.put_back.is_none())?;
        Some(wait_most(trial.confirm_s?))
    }

    /// The remote layer.
    ///
    /// # Errors
    /// The file cannot be read; without it, a change could not be rolled back.
    pub fn current(&self) -> Result<Option<String>, String> {
        let bytes = self.config.load(CONFIG).map_err(|why| format!("read {CONFIG}: {why}"))?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    /// The trial in progress, or one that was rolled back and not reported yet.
    ///
    /// # Errors
    /// The file cannot be read; whether a trial exists is unknown.
    pub fn found(&self) -> Result<Option<Trial>, String> {
        match self.control.load_checked(FILE) {
            Ok(found) => Ok(found),
            // A trial that is damaged in both copies cannot be rolled back; the layer is validated like any other.
            Err(Unloaded::Damaged) => Ok(None),
            Err(Unloaded::Unreadable(why)) => Err(format!("read the configuration's trial: {why}")),
        }
    }

    /// Saves the trial, which holds the previous layer, then writes the new layer.
    ///
    /// # Errors
    /// The disk is not writable: `put_back` restores what was there.
    pub fn begin(&self, trial: &Trial) -> Result<(), String> {
        let done = self.control.save_checked(FILE, trial).and_then(|()| self.write(CONFIG, trial.text.as_deref()));
        done.map_err(|why| format!("write the configuration: {why}"))
    }

    /// Commits the change: saves the previous layer as a copy and removes the trial.
    ///
    /// # Errors
    /// The disk is not writable: the trial is still there.
    pub fn keep(&self, trial: &Trial) -> Result<(), String> {
        let done = self.write(PREVIOUS, trial.previous.as_deref()).and_then(|()| self.forget());
        done.map_err(|why| format!("commit the configuration: {why}"))
    }

    /// Restores the previous layer. The trial stays on the disk, marked as rolled back, until `end`.
    ///
    /// # Errors
    /// The disk is not writable: the trial is still there.
    pub fn put_back(&self, trial: &Trial, why: &str) -> Result<(), String> {
        let mark = Trial { put_back: Some(why.into()), ..trial.clone() };
        let done = self.write(CONFIG, trial.previous.as_deref());
        let done = done.and_then(|()| self.control.save_checked(FILE, &mark));
        done.map_err(|why| format!("restore the previous configuration: {why}"))
    }

    /// Removes a trial whose rollback was reported.
    ///
    /// # Errors
    /// The disk is not writable: the rollback is reported again.
    pub fn end(&self) -> Result<(), String> {
        self.forget().map_err(|why| format!("remove the trial of a configuration: {why}"))
    }

    /// At the start of a process, before the configuration is read: rolls back the trial of another process.
    ///
    /// # Errors
    /// A file cannot be read or written; the next start tries again.
    pub fn recover(&self, process: &str) -> Result<(), Unrecovered> {
        match self.found().map_err(Unrecovered)? {
            Some(trial) if trial.put_back.is_none() && trial.process != process => {
                self.put_back(&trial, "the daemon did not live until it was confirmed").map_err(Unrecovered)
            }
            _ => Ok(()),
        }
    }

    fn forget(&self) -> std::io::Result<()> {
        self.control.remove(FILE)?;
        self.control.remove(&format!("{FILE}.bak"))
    }

    fn write(&self, name: &str, text: Option<&str>) -> std::io::Result<()> {
        match text {
            Some(text) => self.config.save(name, text.as_bytes()),
            None => self.config.remove(name),
        }
    }
}

/// The longest wait between two connects while a change is to be confirmed within so many seconds.
pub fn wait_most(confirm_s: u64) -> Duration {
    Duration::from_millis(confirm_s * 1000 / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(previous: Option<&str>, text: &str) -> Trial {
        Trial {
            asker: Asker::Command("c".into()),
            previous: previous.map(str::to_owned),
            text: Some(text.into()),
            digest: "d".into(),
            confirm_s: Some(120),
            process: "mine".into(),
            put_back: None,
            respond: None,
        }
    }

    /// The steps are file writes; a power cut falls between two of them. The test makes each state that it can leave.
    #[test]
    fn a_power_cut_at_each_step_leaves_the_old_or_the_new_one_and_says_so() {
        for (steps, expected) in [(1, "old"), (2, "old"), (3, "new")] {
            let dir = tempfile::tempdir().expect("folder");
            let trials = Trials::open(dir.path());
            trials.write(CONFIG, Some("old")).expect("write");
            let trial = trial(Some("old"), "new");
            if steps == 1 {
                trials.control.save_checked(FILE, &trial).expect("save");
            } else {
                trials.begin(&trial).expect("begin");
            }
            if steps == 3 {
                trials.keep(&trial).expect("keep");
            }
            trials.recover("mine").expect("recover");
            assert!(trials.found().expect("read").is_none_or(|t| t.put_back.is_none()), "our own goes on");
            trials.recover("another").expect("recover");
            trials.recover("yet another").expect("recover");
            assert_eq!(trials.current().expect("read").as_deref(), Some(expected));
            assert_eq!(trials.found().expect("read").is_some_and(|t| t.put_back.is_some()), steps < 3);
            trials.end().expect("end");
            assert_eq!(trials.found(), Ok(None));
        }
    }

    #[test]
    fn the_first_one_put_back_leaves_none() {
        let dir = tempfile::tempdir().expect("folder");
        let trials = Trials::open(dir.path());
        trials.begin(&trial(None, "new")).expect("begin");
        assert_eq!(trials.current().expect("read").as_deref(), Some("new"));
        trials.recover("another").expect("recover");
        assert_eq!(trials.current(), Ok(None));
    }

    #[test]
    fn unreadable_trial_is_not_taken_for_none_and_is_put_back_once_it_can_be_read() {
        let dir = tempfile::tempdir().expect("folder");
        let trials = Trials::open(dir.path());
        trials.write(CONFIG, Some("old")).expect("write");
        trials.begin(&trial(Some("old"), "new")).expect("begin");
        let copies = [FILE.to_owned(), format!("{FILE}.bak")].map(|name| dir.path().join("control").join(name));
        copies.iter().for_each(|path| crate::host::keep::unreadable::make(path));
        assert!(trials.found().is_err() && trials.recover("another").is_err());
        copies.iter().for_each(|path| crate::host::keep::unreadable::mend(path));
        trials.recover("another").expect("recover");
        assert_eq!(trials.current(), Ok(Some("old".into())));
        crate::host::keep::unreadable::make(&dir.path().join("config").join(CONFIG));
        assert!(trials.current().is_err(), "a change must know what to put back");
    }
}
