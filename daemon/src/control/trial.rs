//! A configuration on trial: it is in use, and is put back unless it is confirmed. What is needed to put it back lies on
//! the disk before anything is changed, so a power cut at any moment leaves the old or the new one, and a process that
//! finds another's trial puts it back.
//!
//! ```text
//! STATE/config/remote.toml      what is set remotely
//!              previous         what it was before the last change that stayed
//! STATE/control/trial.json      the trial that goes on; two copies with checksums
//! ```
//!
//! begin: trial.json → remote.toml.  stays: previous → trial.json removed.  put back: remote.toml → trial.json removed.

use std::{path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use crate::host::{Keep, Unloaded};

const FILE: &str = "trial.json";
const CONFIG: &str = "remote.toml";
const PREVIOUS: &str = "previous";

/// Who asked for the change.
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
    /// Who asked.
    pub asker: Asker,
    /// What was set before, if anything.
    pub previous: Option<String>,
    /// What is set now; `None`: nothing.
    pub text: Option<String>,
    /// Digest of that.
    pub digest: String,
    /// It is put back unless it is confirmed through the broker.
    pub confirm_s: Option<u64>,
    /// The process that began it; another one that finds it puts it back.
    pub process: String,
    /// It was put back already, for this reason; what remains is to tell.
    pub put_back: Option<String>,
    /// Topic and correlation data of whoever waits for the answer.
    pub respond: Option<(String, Option<Vec<u8>>)>,
}

/// Where trials and what they change lie.
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

    /// What is set remotely.
    ///
    /// # Errors
    /// It cannot be read, so nobody knows what a change would have to put back.
    pub fn current(&self) -> Result<Option<String>, String> {
        let bytes = self.config.load(CONFIG).map_err(|why| format!("read {CONFIG}: {why}"))?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    /// The trial that goes on, or was put back and not told yet.
    ///
    /// # Errors
    /// It cannot be read; whether there is one is not known.
    pub fn found(&self) -> Result<Option<Trial>, String> {
        match self.control.load_checked(FILE) {
            Ok(found) => Ok(found),
            // One that is damaged in both copies cannot be put back; the layer it left is validated like any other.
            Err(Unloaded::Damaged) => Ok(None),
            Err(Unloaded::Unreadable(why)) => Err(format!("read the configuration's trial: {why}")),
        }
    }

    /// Writes down how to go back, then the new text.
    pub fn begin(&self, trial: &Trial) -> Result<(), String> {
        let done = self.control.save_checked(FILE, trial).and_then(|()| self.write(CONFIG, trial.text.as_deref()));
        done.map_err(|why| format!("write the configuration: {why}"))
    }

    /// It stays.
    pub fn keep(&self, trial: &Trial) -> Result<(), String> {
        let done = self.write(PREVIOUS, trial.previous.as_deref()).and_then(|()| self.forget());
        done.map_err(|why| format!("keep the configuration: {why}"))
    }

    /// Puts back what was set before. What is to be told of it stays until `told`.
    pub fn put_back(&self, trial: &Trial, why: &str) -> Result<(), String> {
        let mark = Trial { put_back: Some(why.into()), ..trial.clone() };
        let done = self.write(CONFIG, trial.previous.as_deref());
        let done = done.and_then(|()| self.control.save_checked(FILE, &mark));
        done.map_err(|why| format!("put the configuration back: {why}"))
    }

    /// It was told that it was put back.
    pub fn told(&self) -> Result<(), String> {
        self.forget().map_err(|why| format!("forget the trial: {why}"))
    }

    /// At the start of a process, before the configuration is read: a trial of another process never came to its end.
    pub fn recover(&self, process: &str) -> Result<(), String> {
        match self.found()? {
            Some(trial) if trial.put_back.is_none() && trial.process != process => {
                self.put_back(&trial, "the daemon did not live until it was confirmed")
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

    /// The steps are file writes; a power cut falls between two of them. Each state it can leave is made here.
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
            trials.told().expect("told");
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
