//! The disk in the world of tests. The tests below play the same on the real files and compare: what stories are played on is
//! worth as much as it resembles the real disk.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    memory::Saved,
    model_action::{ModelKeys, ModelRules, Moment},
    models::Models,
    trial::Trial,
};
use crate::model::{
    shelf::{High, Saved as SavedSlots, Shelf},
    store::There,
};

/// What outlives a process.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub memory: Option<Saved>,
    pub layer: Option<String>,
    pub trial: Option<Trial>,
    /// Ids whose results are in the audit log.
    pub audited: BTreeSet<String>,
    pub files: Files,
    /// Writes fail.
    pub full: bool,
    /// Reads of the memory fail.
    pub unreadable: bool,
    /// The memory is damaged, until it is written again.
    pub damaged: bool,
}

impl Disk {
    /// As `Trials::begin`.
    pub fn begin(&mut self, trial: &Trial) {
        self.layer.clone_from(&trial.text);
        self.trial = Some(trial.clone());
    }

    /// As `Trials::put_back`.
    pub fn put_back(&mut self, trial: &Trial, why: &str) {
        self.layer.clone_from(&trial.previous);
        self.trial = Some(Trial { put_back: Some(why.to_owned()), ..trial.clone() });
    }

    /// As `Trials::keep` and `Trials::end`.
    pub fn forget(&mut self) {
        self.trial = None;
    }

    /// As `Trials::recover`.
    pub fn recover(&mut self, process: &str) {
        if let Some(trial) = self.trial.clone().filter(|trial| trial.put_back.is_none() && trial.process != process) {
            self.put_back(&trial, "the daemon did not live until it was confirmed");
        }
    }
}

/// The files of the models.
#[derive(Debug, Clone, Default)]
pub struct Files {
    pub saved: Option<SavedSlots>,
    pub high: Option<High>,
    pub bundles: BTreeSet<String>,
    /// Bytes of each incoming bundle.
    pub incoming: BTreeMap<String, u64>,
    /// A copy of a local file.
    pub copy: Option<u64>,
}

impl Files {
    pub fn shelf(&self) -> Shelf {
        Shelf::new(self.saved.clone(), self.high.iter().cloned().collect(), None)
    }

    pub fn find(&self, sha256: &str) -> There {
        match self.bundles.contains(sha256) {
            true => There::Whole,
            false => There::Part(self.incoming.get(sha256).copied().unwrap_or(0)),
        }
    }

    pub fn append(&mut self, sha256: &str, bytes: &[u8]) {
        *self.incoming.entry(sha256.to_owned()).or_default() += bytes.len() as u64;
    }

    pub fn take_copy(&mut self, sha256: &str) -> Result<(), String> {
        let size = self.copy.take().ok_or("there is no copy")?;
        self.incoming.insert(sha256.to_owned(), size);
        Ok(())
    }

    pub fn take_in(&mut self, sha256: &str) -> Result<(), String> {
        if !self.bundles.contains(sha256) {
            self.incoming.remove(sha256).ok_or("it is not there")?;
            self.bundles.insert(sha256.to_owned());
        }
        Ok(())
    }

    pub fn remove_incoming(&mut self, sha256: &str) {
        self.incoming.remove(sha256);
    }

    pub fn sweep(&mut self, bundles: &[String], incoming: Option<&str>) {
        self.bundles.retain(|sha256| bundles.contains(sha256));
        self.incoming.retain(|sha256, _| Some(sha256.as_str()) == incoming);
        self.copy = None;
    }

    /// The machine of a process that starts with these files.
    pub fn machine(&self, at: Moment) -> Models {
        let rules = ModelRules {
            class: String::new(),
            channel: "stable".into(),
            version: semver::Version::new(0, 1, 0),
            floors: [("m".to_owned(), 0)].into(),
            trial_ns: 0,
        };
        Models::new(rules, self.shelf(), ModelKeys { version: Some(1), expires_ms: Ok(i64::MAX) }, at)
    }
}

#[cfg(test)]
#[path = "world_disk_tests.rs"]
mod tests;
