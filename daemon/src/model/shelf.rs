//! What is known of the installed models: the slots of each, the job in progress, results that may not be published yet,
//! bundles that failed here, the highest sequences. All in memory: `store.rs` reads and writes it, control's machine changes it.
//!
//! The highest sequence is the largest in any of its copies, in a steady slot, or in the configured bundle: restoring an
//! old copy does not lower it.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    error::{BundleError, StoreError},
    keyset::Keyset,
    manifest::Release,
    slot::{Held, ModelSlots, Slot, SlotId},
};
use crate::{flow::order::Respond, limits};

/// How a bundle is received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brings {
    /// From this URL.
    Https(String),
    /// By chunks over MQTT.
    Chunks,
}

/// How far an install is, with what is known then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// The bundle is being received. Each process begins with it again, without a limit.
    Bringing(Brings),
    /// The bundle is in a slot.
    InSlot {
        /// The model.
        model: String,
        /// The slot.
        id: SlotId,
        /// Processes that began with it and did not finish it.
        begun: u32,
    },
}

/// An install in progress, saved so that another process can continue it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "InstallJobFile", into = "InstallJobFile")]
pub struct InstallJob {
    /// The command that requested it.
    pub command: String,
    /// Where its result goes beside `up/res`.
    pub respond: Option<Respond>,
    /// SHA-256 of the whole bundle.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// How far it is.
    pub stage: Stage,
}

/// The job as `slots.json` holds it; the daemon of another system, older or newer, reads it too.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct InstallJobFile {
    command: String,
    respond: Option<Respond>,
    sha256: String,
    size: u64,
    brings: BringsFile,
    target: Option<(String, SlotId)>,
    begun: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BringsFile {
    Https(String),
    Chunks,
    Nothing,
}

impl From<InstallJobFile> for InstallJob {
    fn from(file: InstallJobFile) -> Self {
        let InstallJobFile { command, respond, sha256, size, brings, target, begun } = file;
        let stage = match (target, brings) {
            (Some((model, id)), _) => Stage::InSlot { model, id, begun },
            (None, BringsFile::Https(url)) => Stage::Bringing(Brings::Https(url)),
            (None, BringsFile::Chunks | BringsFile::Nothing) => Stage::Bringing(Brings::Chunks),
        };
        Self { command, respond, sha256, size, stage }
    }
}

impl From<InstallJob> for InstallJobFile {
    fn from(job: InstallJob) -> Self {
        let InstallJob { command, respond, sha256, size, stage } = job;
        let (brings, target, begun) = match stage {
            Stage::Bringing(Brings::Https(url)) => (BringsFile::Https(url), None, 1),
            Stage::Bringing(Brings::Chunks) => (BringsFile::Chunks, None, 1),
            Stage::InSlot { model, id, begun } => (BringsFile::Nothing, Some((model, id)), begun),
        };
        Self { command, respond, sha256, size, brings, target, begun }
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// What was asked for is in use.
    Success,
    /// It could not be done.
    Failed,
    /// It was in use, and was undone.
    RolledBack,
}

/// A job that ended. It is saved with what it changed, and stays until the result of its command is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The command that requested it.
    pub command: String,
    /// How it ended.
    pub end: End,
    /// The text of the result, for people.
    pub text: String,
    /// Where the result goes.
    pub respond: Option<Respond>,
}

/// What `slots.json` holds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Saved {
    v: u32,
    lines: BTreeMap<String, ModelSlots>,
    /// Bundles that failed here, and why: they are not tried again.
    failed: VecDeque<(String, String)>,
    job: Option<InstallJob>,
    /// The keyset in use when this was written; `None`: written by a version that did not record it.
    #[serde(default)]
    keyset: Option<u64>,
    /// Jobs that ended; an older version did not write it.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    ended: VecDeque<Ended>,
}

/// What `high.json` holds.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct High {
    v: u32,
    seqs: BTreeMap<String, u64>,
    keyset: u64,
    /// When the newest bundle that was verified here was made, ms since 1970: for expiry, the time is not earlier than that.
    #[serde(default)]
    newest_ms: i64,
}

/// The properties of a device that decide whether a bundle may be installed.
#[derive(Debug, Clone)]
pub struct Device {
    /// Device class; empty: not configured.
    pub class: String,
    /// The release channel in use.
    pub channel: String,
    /// The time, or a bound below it, ms since 1970.
    pub now_ms: i64,
    /// Version of this daemon.
    pub version: semver::Version,
}

/// What is known of the installed models.
#[derive(Debug, Clone)]
pub struct Shelf {
    saved: Saved,
    high: High,
    /// The saved state cannot be read: it is not overwritten, and nothing is removed that it may name.
    unread: Option<String>,
    /// The copies of `high.json`, as read.
    copies: Vec<High>,
}

impl Shelf {
    /// With what was read. `unread`: a file is unreadable, and stays so until the next start.
    pub fn new(saved: Option<Saved>, copies: Vec<High>, unread: Option<String>) -> Self {
        let saved = saved.unwrap_or(Saved { v: 1, ..Saved::default() });
        Self { saved, high: merged(&copies, &[]), unread, copies }
    }

    /// A model's slots.
    pub fn line(&self, model: &str) -> ModelSlots {
        self.saved.lines.get(model).cloned().unwrap_or_default()
    }

    /// The slots of all models.
    pub fn lines(&self) -> impl Iterator<Item = (&String, &ModelSlots)> {
        self.saved.lines.iter()
    }

    /// Changes a model's slots.
    pub fn set_line(&mut self, model: &str, line: ModelSlots) {
        self.saved.lines.insert(model.to_owned(), line);
    }

    /// The install in progress.
    pub fn job(&self) -> Option<&InstallJob> {
        self.saved.job.as_ref()
    }

    /// Changes the job.
    pub fn set_job(&mut self, job: Option<InstallJob>) {
        self.saved.job = job;
    }

    /// Jobs that ended and whose results may not be saved yet.
    pub fn ended(&self) -> impl Iterator<Item = &Ended> {
        self.saved.ended.iter()
    }

    /// Records that a job ended.
    pub fn end(&mut self, ended: Ended) {
        while self.saved.ended.len() >= limits::JOBS_ENDED {
            self.saved.ended.pop_front();
        }
        self.saved.ended.push_back(ended);
    }

    /// The result of this command is saved. Returns whether it was recorded here.
    pub fn forget_ended(&mut self, command: &str) -> bool {
        let before = self.saved.ended.len();
        self.saved.ended.retain(|ended| ended.command != command);
        self.saved.ended.len() < before
    }

    /// A file is unreadable; it stays so until the next start.
    pub fn is_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// What `slots.json` is to hold.
    ///
    /// # Errors
    /// A file could not be read, so nothing is written over it.
    pub fn to_save(&self) -> Result<Saved, StoreError> {
        self.may_save().map(|()| self.saved.clone())
    }

    /// What `high.json` is to hold.
    ///
    /// # Errors
    /// A file could not be read, so nothing is written over it.
    pub fn high_to_save(&self) -> Result<High, StoreError> {
        self.may_save().map(|()| self.high.clone())
    }

    fn may_save(&self) -> Result<(), StoreError> {
        self.unread.as_ref().map_or(Ok(()), |why| Err(StoreError::Unread(why.clone())))
    }

    /// What could not be saved is undone: slots and jobs are as they were. Bundles that failed stay known.
    pub fn undo(&mut self, before: Saved) {
        self.saved = Saved { failed: std::mem::take(&mut self.saved.failed), ..before };
    }

    /// Slots and jobs, for `undo`.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Records that a bundle failed here.
    pub fn failed(&mut self, sha256: &str, why: &str) {
        self.saved.failed.retain(|(known, _)| known != sha256);
        while self.saved.failed.len() >= limits::BUNDLES_FAILED_KNOWN {
            self.saved.failed.pop_front();
        }
        self.saved.failed.push_back((sha256.to_owned(), why.chars().take(limits::RESULT_TEXT).collect()));
    }

    /// Why a bundle failed here before.
    pub fn why_failed(&self, sha256: &str) -> Option<&str> {
        self.saved.failed.iter().find(|(known, _)| known == sha256).map(|(_, why)| why.as_str())
    }

    /// The highest known sequence of a model; `floor` is the sequence of the read-only root.
    pub fn high(&self, model: &str, floor: u64) -> u64 {
        let line = self.line(model);
        let steady = [SlotId::A, SlotId::B].into_iter().filter_map(|id| match line.slot(id) {
            Slot::Steady(held) => Some(held.seq),
            _ => None,
        });
        let kept = self.high.seqs.get(model).copied().unwrap_or(0);
        steady.chain([kept, floor]).max().unwrap_or(0)
    }

    /// Raises the highest sequence of a model: a bundle of this sequence passed its trial.
    pub fn raise(&mut self, model: &str, seq: u64) {
        let known = self.high.seqs.entry(model.to_owned()).or_default();
        *known = seq.max(*known);
    }

    /// Records the signed time of a verified bundle, as a lower bound if the clock steps back. Used for expiry only, because
    /// the clock of the machine that made the bundle may be wrong too.
    pub fn not_before(&mut self, made_ms: i64) {
        self.high.newest_ms = made_ms.max(self.high.newest_ms);
    }

    /// See `not_before`.
    pub fn newest_ms(&self) -> i64 {
        self.high.newest_ms
    }

    /// Checks whether a bundle may be installed: its manifest against the properties and the known sequences of this device.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(
        &self,
        (sha256, release): (&str, &Release),
        device: &Device,
        keys_expire_ms: i64,
        floor: u64,
    ) -> Result<(), BundleError> {
        self.may_save().map_err(|why| BundleError(why.to_string()))?;
        if keys_expire_ms <= device.now_ms {
            return Err("the keyset of this device expired; it needs a newer one before anything is installed".into());
        }
        if let Some(why) = self.why_failed(sha256) {
            return Err(BundleError(format!("it failed here before ({why}); a new release is needed")));
        }
        let line = self.line(&release.model);
        // A bundle that a slot holds may be installed again.
        let known = line.held_bundles().any(|held| held == sha256);
        admit(release, device, self.high(&release.model, floor), known)
    }

    /// The bundles that slots name.
    pub fn bundles(&self) -> impl Iterator<Item = &str> {
        self.saved.lines.values().flat_map(ModelSlots::held_bundles)
    }

    /// This keyset was found at a start or later, after these steps: what they lower is lowered again if it was not saved.
    /// Returns why nothing may be installed with it.
    pub fn found_keyset(&mut self, version: u64, lowered: &[Lowered], rotates: bool) -> Option<String> {
        if rotates {
            self.high.seqs = merged(&self.copies, lowered).seqs;
        }
        self.lower_lines(lowered);
        self.saved.keyset = Some(version);
        let lost = || format!("keyset {version} is there, and {} was in use", self.high.keyset);
        let trouble = (version < self.high.keyset).then(lost);
        self.high.keyset = version.max(self.high.keyset);
        trouble
    }

    /// The next keyset is in use.
    pub fn took_keyset(&mut self, version: u64, lowered: &[Lowered]) {
        lowered.iter().for_each(|lowered| lowered.apply(&mut self.high.seqs));
        self.lower_lines(lowered);
        self.saved.keyset = Some(version);
        self.high.keyset = version;
    }

    /// Lowers the sequences of the slots to what later keysets allow.
    fn lower_lines(&mut self, lowered: &[Lowered]) {
        // A file without that record was lowered before the keyset was saved.
        let written = self.saved.keyset.unwrap_or(self.high.keyset);
        for Lowered { min_seq, .. } in lowered.iter().filter(|lowered| lowered.version > written) {
            for (model, seq) in min_seq {
                if let Some(line) = self.saved.lines.get_mut(model) {
                    line.lower(*seq);
                }
            }
        }
    }
}

/// The sequences that a keyset lowers when it drops a key for models: a bundle that was signed with a key that is no longer
/// trusted does not count for the order of releases.
#[derive(Debug, Clone)]
pub struct Lowered {
    version: u64,
    min_seq: BTreeMap<String, u64>,
}

impl Lowered {
    /// What this step from a keyset to the next one lowers.
    pub fn by(now: &Keyset, next: &Keyset) -> Option<Self> {
        now.drops_a_model_key(next).then(|| Self { version: next.version, min_seq: next.min_seq.clone() })
    }

    fn apply(&self, seqs: &mut BTreeMap<String, u64>) {
        for (model, seq) in &self.min_seq {
            if let Some(known) = seqs.get_mut(model) {
                *known = (*seq).min(*known);
            }
        }
    }
}

/// The largest sequence in any copy, each lowered by the keysets that came after it was written.
fn merged(copies: &[High], lowered: &[Lowered]) -> High {
    let mut high = High { v: 1, ..High::default() };
    for copy in copies {
        high.keyset = high.keyset.max(copy.keyset);
        high.newest_ms = high.newest_ms.max(copy.newest_ms);
        let mut seqs = copy.seqs.clone();
        lowered.iter().filter(|lowered| lowered.version > copy.keyset).for_each(|lowered| lowered.apply(&mut seqs));
        for (model, seq) in seqs {
            let known = high.seqs.entry(model).or_default();
            *known = seq.max(*known);
        }
    }
    high
}

impl ModelSlots {
    /// Lowers the sequences of the slots to this.
    fn lower(&mut self, seq: u64) {
        let serving = self.clone();
        for id in [SlotId::A, SlotId::B] {
            if let Slot::Steady(held) = serving.slot(id) {
                self.set_steady(id, Held { seq: held.seq.min(seq), ..held.clone() });
            }
        }
    }
}

/// The same check without a shelf.
fn admit(release: &Release, device: &Device, high: u64, known: bool) -> Result<(), BundleError> {
    if release.expires_ms <= device.now_ms {
        return Err(BundleError(format!("it expired at {}", crate::host::clock::rfc3339_ms(release.expires_ms))));
    }
    if release.min_supervisor > device.version {
        return Err(BundleError(format!(
            "it needs kentledge {} or newer, and this is {}",
            release.min_supervisor, device.version
        )));
    }
    if !release.device_class.iter().any(|class| class == "any" || *class == device.class) {
        let mine = if device.class.is_empty() { "none (device.class)" } else { &device.class };
        return Err(BundleError(format!(
            "it is for {}, and this device's class is {mine}",
            release.device_class.join(", ")
        )));
    }
    if release.channel != device.channel {
        return Err(BundleError(format!(
            "it is of the channel `{}`, and this device follows `{}`",
            release.channel, device.channel
        )));
    }
    if release.seq < high || release.seq == high && high > 0 && !known {
        return Err(BundleError(format!(
            "its sequence {} is not above {high}, the newest this device has known",
            release.seq
        )));
    }
    if release.seq - high > limits::MODEL_SEQ_JUMP {
        return Err(BundleError(format!(
            "its sequence {} is more than {} above {high}",
            release.seq,
            limits::MODEL_SEQ_JUMP
        )));
    }
    Ok(())
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
