//! Bundles on the device: `STATE/models/bundles/SHA256.kmb`, their slots, the highest sequence of each model, and
//! the keysets that followed the one in the read-only root (`STATE/keys/N.json`, `N.minisig…`). One owner: control.
//!
//! ```text
//! models/bundles/SHA256.kmb   named by its digest, moved there when complete
//! models/slots.json           {v, lines: {MODEL: {a, b, serving}}, failed: [[SHA256, why], …], job, keyset}   two copies, CRC
//! models/high.json            {v, seqs: {MODEL: N}, keyset: N}                                                two copies, CRC
//! keys/2.json, 2.0.minisig    the keyset of version 2 and its signatures
//! ```
//!
//! A keyset takes effect with one write: that of `keys/N.json`, after its signatures. What it lowers follows from it: each copy
//! of the other files records under which keyset it was written, and reading it applies what a later keyset lowers. So
//! a power cut between two of these writes leaves a consistent state.
//!
//! The highest sequence is the largest in any of its copies, in a steady slot, or in the configured bundle: restoring an
//! old copy does not lower it.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    bundle::Bundle,
    keyset::Keyset,
    manifest::Release,
    slot::{Held, Line, Origin, Slot, SlotId},
};
use crate::{
    host::{Defence, Keep, Unloaded},
    limits,
};

const SLOTS: &str = "slots.json";
const HIGH: &str = "high.json";

/// How a bundle is received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Brings {
    /// From this URL.
    Https(String),
    /// By chunks over MQTT.
    Chunks,
    /// It is complete.
    Nothing,
}

/// An install in progress, saved so that another process can continue it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The command that requested it.
    pub command: String,
    /// Response topic and correlation data of the requester.
    pub respond: Option<(String, Option<Vec<u8>>)>,
    /// SHA-256 of the whole bundle.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// How it is received.
    pub brings: Brings,
    /// Model and slot, once known.
    pub target: Option<(String, SlotId)>,
    /// Processes that began with it and did not finish it.
    pub begun: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    v: u32,
    lines: BTreeMap<String, Line>,
    /// Bundles that failed here, and why: they are not tried again.
    failed: VecDeque<(String, String)>,
    job: Option<Job>,
    /// The keyset in use when this was written; `None`: written by a version that did not record it.
    #[serde(default)]
    keyset: Option<u64>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct High {
    v: u32,
    seqs: BTreeMap<String, u64>,
    keyset: u64,
    /// When the newest bundle that was verified here was made, ms since 1970: for expiry, the time is not earlier than that.
    #[serde(default)]
    newest_ms: i64,
}

/// A keyset's bytes and its signatures.
type SignedKeyset = (Vec<u8>, Vec<String>);

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

/// The store.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    keep: Keep,
    keys: PathBuf,
    saved: Saved,
    high: High,
    /// The saved state cannot be read: it is not overwritten, and nothing is removed that it may name.
    unread: Option<String>,
    /// The copies of `high.json`, as read.
    copies: Vec<High>,
}

impl Store {
    /// Opens the store; the daemon always starts. A damaged file is replaced by an empty one. On a disk that is not writable
    /// the store is empty. An unreadable file stays unchanged until the next start. The second value says what is wrong.
    pub fn open(state_dir: &Path) -> (Self, Option<String>) {
        let folder = state_dir.join("models");
        let (keep, keys) = (Keep::at(folder.clone()), state_dir.join("keys"));
        let mut damaged = None;
        for path in [folder.join("bundles"), folder.join("incoming"), keys.clone()] {
            if let Err(why) = fs::create_dir_all(&path) {
                damaged = Some(format!("make {}: {why}", path.display()));
            }
        }
        let mut unread = None;
        let mut trouble = |what: &str, why: &Unloaded, follows: &str| {
            let text = format!("what was known of the {what} {why}");
            damaged = Some(format!("{text}; {follows}"));
            if matches!(why, Unloaded::Unreadable(_)) {
                unread = Some(text);
            }
        };
        let saved = patiently(|| keep.load_checked::<Saved>(SLOTS)).unwrap_or_else(|why| {
            trouble("model slots", &why, "the configured models serve");
            None
        });
        let copies = patiently(|| match keep.load_copies::<High>(HIGH) {
            (copies, Some(why)) if copies.is_empty() => Err(why),
            (copies, _) => Ok(copies),
        });
        let copies = copies.unwrap_or_else(|why| {
            trouble("highest sequences", &why, "those of the slots and of the image count");
            Vec::new()
        });
        let high = merged(&copies, &[]);
        let saved = saved.unwrap_or(Saved { v: 1, ..Saved::default() });
        (Self { folder, keep, keys, saved, high, copies, unread }, damaged)
    }

    /// A model's slots.
    pub fn line(&self, model: &str) -> Line {
        self.saved.lines.get(model).cloned().unwrap_or_default()
    }

    /// The slots of all models.
    pub fn lines(&self) -> impl Iterator<Item = (&String, &Line)> {
        self.saved.lines.iter()
    }

    /// The install in progress.
    pub fn job(&self) -> Option<&Job> {
        self.saved.job.as_ref()
    }

    /// Changes the job only.
    pub fn set_job(&mut self, job: Option<Job>) -> Result<(), String> {
        let before = std::mem::replace(&mut self.saved.job, job);
        self.save().inspect_err(|_| self.saved.job = before)
    }

    /// Changes a model's slots and the job; saved before it takes effect.
    pub fn change(&mut self, model: &str, line: Line, job: Option<Job>) -> Result<(), String> {
        let before = (self.saved.lines.insert(model.to_owned(), line), std::mem::replace(&mut self.saved.job, job));
        self.save().inspect_err(|_| {
            match before.0 {
                Some(line) => self.saved.lines.insert(model.to_owned(), line),
                None => self.saved.lines.remove(model),
            };
            self.saved.job = before.1;
        })
    }

    /// A file of the store is unreadable; it stays so until the next start.
    pub fn is_unread(&self) -> bool {
        self.unread.is_some()
    }

    fn may_save(&self) -> Result<(), String> {
        self.unread.as_ref().map_or(Ok(()), |why| Err(format!("{why}; nothing is written over it")))
    }

    fn save(&self) -> Result<(), String> {
        self.may_save()?;
        self.keep.save_checked(SLOTS, &self.saved).map_err(|why| format!("save the model slots: {why}"))
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
    pub fn raise(&mut self, model: &str, seq: u64) -> Result<(), String> {
        let known = self.high.seqs.entry(model.to_owned()).or_default();
        *known = seq.max(*known);
        self.save_high()
    }

    fn save_high(&self) -> Result<(), String> {
        self.may_save()?;
        self.keep.save_checked(HIGH, &self.high).map_err(|why| format!("save the highest sequences of models: {why}"))
    }

    /// Records the signed time of a verified bundle, as a lower bound if the clock steps back. Used for expiry only, because
    /// the clock of the machine that made the bundle may be wrong too.
    pub fn not_before(&mut self, made_ms: i64) {
        self.high.newest_ms = made_ms.max(self.high.newest_ms);
        if let Err(why) = self.save_high() {
            tracing::warn!("{why}; a restart forgets the time of the newest signed bundle");
        }
    }

    /// See `not_before`.
    pub fn newest_ms(&self) -> i64 {
        self.high.newest_ms
    }

    /// Checks whether a bundle may be installed: its manifest against the properties and the known sequences of this device.
    pub fn admit(&self, bundle: &Bundle, device: &Device, keys: &Keyset, floor: u64) -> Result<(), String> {
        self.may_save()?;
        if keys.expires_ms <= device.now_ms {
            return Err("the keyset of this device expired; it needs a newer one before anything is installed".into());
        }
        if let Some(why) = self.why_failed(&bundle.sha256) {
            return Err(format!("it failed here before ({why}); a new release is needed"));
        }
        let line = self.line(&bundle.release.model);
        // A bundle that a slot holds may be installed again.
        let known = line.held_bundles().any(|sha256| sha256 == bundle.sha256);
        admit(&bundle.release, device, self.high(&bundle.release.model, floor), known)
    }

    /// The path of a bundle that is being received.
    pub fn incoming(&self, name: &str) -> PathBuf {
        self.folder.join("incoming").join(name)
    }

    /// Moves a complete bundle to its final place.
    pub fn take_in(&self, from: &Path, sha256: &str) -> Result<(), String> {
        let to = self.path(sha256);
        let moved = File::open(from)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(from, &to))
            .and_then(|()| File::open(self.folder.join("bundles"))?.sync_all());
        moved.map_err(|why| format!("take {} into the store: {why}", from.display()))
    }

    fn path(&self, sha256: &str) -> PathBuf {
        self.folder.join("bundles").join(format!("{sha256}.kmb"))
    }

    /// Opens a bundle's file for reading.
    pub fn open_bundle(&self, sha256: &str) -> Result<File, String> {
        let path = self.path(sha256);
        File::open(&path).map_err(|why| format!("open {}: {why}", path.display()))
    }

    /// Whether the bundle is in the store.
    pub fn has(&self, sha256: &str) -> bool {
        self.path(sha256).is_file()
    }

    /// Removes bundles that no slot names, and partial bundles that no job continues.
    pub fn sweep(&self) {
        if self.unread.is_some() {
            return;
        }
        let used: Vec<PathBuf> =
            self.saved.lines.values().flat_map(Line::held_bundles).map(|sha256| self.path(sha256)).collect();
        let going_on = self.saved.job.as_ref().map(|job| self.incoming(&job.sha256));
        let files = |folder: &str| fs::read_dir(self.folder.join(folder)).into_iter().flatten().flatten();
        let there = files("bundles").chain(files("incoming")).map(|entry| entry.path());
        for path in there.filter(|path| !used.contains(path) && going_on.as_ref() != Some(path)) {
            if let Err(why) = fs::remove_file(&path) {
                tracing::warn!("remove {}: {why}", path.display());
            }
        }
    }

    /// The bundle that serves a model: of the serving slot, else of the other one, else the configured model (`None`). A slot
    /// whose file is damaged or below the floor is skipped; the second value says why.
    pub fn serving(&self, model: &str, floor: u64) -> (Option<(SlotId, Bundle)>, Vec<String>) {
        let line = self.line(model);
        let mut why = Vec::new();
        for origin in [line.serving(), line.previous()] {
            let Origin::Slot(id) = origin else { break };
            let Some(held) = line.slot(id).held() else { continue };
            if held.seq < floor {
                why.push(format!("slot {} holds sequence {}, and the system brings {floor}", origin.word(), held.seq));
                continue;
            }
            // Expiry, revocation and the like block installing, never running: the bundle was verified when it was installed.
            match self.open_bundle(&held.sha256).and_then(|file| Bundle::open_asked(&file, &held.sha256, None)) {
                Ok(bundle) => return (Some((id, bundle)), why),
                Err(reason) => why.push(format!("slot {} cannot be used: {reason}", origin.word())),
            }
        }
        (None, why)
    }

    /// The keyset in use: that of the read-only root, or the last valid successor; and why a later one is not used. In that
    /// case the last valid one counts for commands, and nothing is installed.
    pub fn keyset(&mut self, base: &Path) -> Result<(Keyset, Option<String>), String> {
        let mut keys = Keyset::read(base)?;
        let mut lowered = Vec::new();
        while let Some((bytes, minisigs)) = self.kept_keyset(keys.version + 1)? {
            match keys.successor(&bytes, &minisigs) {
                Ok(next) => {
                    lowered.extend(Lowered::by(&keys, &next));
                    keys = next;
                }
                Err(why) => return Ok((keys.clone(), Some(format!("keyset {}: {why}", keys.version + 1)))),
            }
        }
        if Defence::Rotation.stands() {
            self.high.seqs = merged(&self.copies, &lowered).seqs;
        }
        self.lower_lines(&lowered);
        self.saved.keyset = Some(keys.version);
        let lost = || format!("keyset {} is there, and {} was in use", keys.version, self.high.keyset);
        let trouble = (keys.version < self.high.keyset).then(lost);
        self.high.keyset = keys.version.max(self.high.keyset);
        Ok((keys, trouble))
    }

    /// The keyset of this version, if it exists. An unreadable keyset does not count as absent: a key that it revokes must
    /// not be trusted meanwhile.
    fn kept_keyset(&self, version: u64) -> Result<Option<SignedKeyset>, String> {
        let keep = Keep::at(self.keys.clone());
        let read = |name: &str| keep.load(name).map_err(|why| format!("read keyset {version}: keys/{name}: {why}"));
        let Some(bytes) = read(&format!("{version}.json"))? else { return Ok(None) };
        let mut minisigs = Vec::new();
        for n in 0..limits::KEYSET_SIGNATURES {
            let Some(sig) = read(&format!("{version}.{n}.minisig"))? else { break };
            minisigs.push(String::from_utf8_lossy(&sig).into_owned());
        }
        Ok(Some((bytes, minisigs)))
    }

    /// Saves the next keyset.
    ///
    /// # Errors
    /// It does not follow the one in use, it expired before `now_ms` (a device whose keyset expired installs nothing), or it
    /// cannot be saved.
    pub fn take_keyset(
        &mut self,
        now: &Keyset,
        (bytes, minisigs): (&[u8], &[String]),
        now_ms: i64,
    ) -> Result<Keyset, String> {
        if bytes.len() as u64 > limits::KEYSET_BYTES || minisigs.len() > limits::KEYSET_SIGNATURES {
            return Err("it is larger than a keyset may be".into());
        }
        let next = now.successor(bytes, minisigs)?;
        if next.expires_ms <= now_ms {
            let (version, expired) = (next.version, crate::host::clock::rfc3339_ms(next.expires_ms));
            return Err(format!("keyset {version} expired at {expired}, and nothing could be installed with it"));
        }
        let keep = Keep::at(self.keys.clone());
        let what = |why: std::io::Error| format!("save the keyset: {why}");
        for (n, minisig) in minisigs.iter().enumerate() {
            keep.save(&format!("{}.{n}.minisig", next.version), minisig.as_bytes()).map_err(what)?;
        }
        // This write is the change. After a power cut, the next start repeats the steps that follow.
        keep.save(&format!("{}.json", next.version), bytes).map_err(what)?;
        let lowered: Vec<Lowered> = Lowered::by(now, &next).into_iter().collect();
        lowered.iter().for_each(|lowered| lowered.apply(&mut self.high.seqs));
        self.lower_lines(&lowered);
        self.saved.keyset = Some(next.version);
        self.high.keyset = next.version;
        if let Err(why) = self.save().and_then(|()| self.save_high()) {
            tracing::error!("save what keyset {} lowers: {why}; the next start does it again", next.version);
        }
        Ok(next)
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

/// Repeats a failing read for a second.
fn patiently<T>(load: impl Fn() -> Result<T, Unloaded>) -> Result<T, Unloaded> {
    for _ in 1..limits::READ_TRIES {
        match load() {
            Err(Unloaded::Unreadable(_)) => std::thread::sleep(limits::READ_WAIT),
            other => return other,
        }
    }
    load()
}

/// The sequences that a keyset lowers when it drops a key for models: a bundle that was signed with a key that is no longer
/// trusted does not count for the order of releases.
#[derive(Debug, Clone)]
struct Lowered {
    version: u64,
    min_seq: BTreeMap<String, u64>,
}

impl Lowered {
    fn by(now: &Keyset, next: &Keyset) -> Option<Self> {
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

impl Line {
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

/// The same check without a store.
fn admit(release: &Release, device: &Device, high: u64, known: bool) -> Result<(), String> {
    if release.expires_ms <= device.now_ms {
        return Err(format!("it expired at {}", crate::host::clock::rfc3339_ms(release.expires_ms)));
    }
    if release.min_supervisor > device.version {
        return Err(format!("it needs kentledge {} or newer, and this is {}", release.min_supervisor, device.version));
    }
    if !release.device_class.iter().any(|class| class == "any" || *class == device.class) {
        let mine = if device.class.is_empty() { "none (device.class)" } else { &device.class };
        return Err(format!("it is for {}, and this device's class is {mine}", release.device_class.join(", ")));
    }
    if release.channel != device.channel {
        return Err(format!(
            "it is of the channel `{}`, and this device follows `{}`",
            release.channel, device.channel
        ));
    }
    if release.seq < high || release.seq == high && high > 0 && !known {
        return Err(format!("its sequence {} is not above {high}, the newest this device has known", release.seq));
    }
    if release.seq - high > limits::MODEL_SEQ_JUMP {
        return Err(format!("its sequence {} is more than {} above {high}", release.seq, limits::MODEL_SEQ_JUMP));
    }
    Ok(())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
