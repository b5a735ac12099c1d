//! Bundles on the device: `STATE/models/bundles/SHA256.kmb`, what became of them, the highest sequence of each model, and
//! the keysets that followed the one in the read-only root (`STATE/keys/N.json`, `N.minisig…`). One owner: control.
//!
//! ```text
//! models/bundles/SHA256.kmb   named by what is in it, moved there whole
//! models/slots.json           {v, lines: {MODEL: {a, b, serving}}, failed: [[SHA256, why], …], job, keyset}   two copies, CRC
//! models/high.json            {v, seqs: {MODEL: N}, keyset: N}                                                two copies, CRC
//! keys/2.json, 2.0.minisig    the keyset of version 2 and its signatures
//! ```
//!
//! A keyset takes over with one write: that of `keys/N.json`, after its signatures. What it lowers follows from it: each copy
//! of the other files says under which keyset it was written, and what a later one lowers is lowered whenever it is read. So
//! a power cut between two of these writes leaves nothing half done.
//!
//! The highest sequence is the largest that any of its copies, a slot that was well, or the configured bundle knows: an
//! old copy put back lowers nothing.

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

/// How a bundle comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Brings {
    /// From this address.
    Https(String),
    /// Chunk by chunk, by MQTT.
    Chunks,
    /// It is there.
    Nothing,
}

/// An install on its way, so that another process can go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The command that asked for it.
    pub command: String,
    /// Where the answer goes as well: topic, correlation data.
    pub respond: Option<(String, Option<Vec<u8>>)>,
    /// Of the whole bundle.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// How it comes.
    pub brings: Brings,
    /// Model and slot, once it is known.
    pub target: Option<(String, SlotId)>,
    /// Processes that began with it and did not see its end.
    pub begun: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    v: u32,
    lines: BTreeMap<String, Line>,
    /// Bundles that failed here, and why: not tried again.
    failed: VecDeque<(String, String)>,
    job: Option<Job>,
    /// The keyset in use when this was written; `None`: written before this was noted.
    #[serde(default)]
    keyset: Option<u64>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct High {
    v: u32,
    seqs: BTreeMap<String, u64>,
    keyset: u64,
    /// When the newest bundle that was verified here was made, ms since 1970: for expiry, it is not earlier than that.
    #[serde(default)]
    newest_ms: i64,
}

/// A keyset's bytes and its signatures.
type SignedKeyset = (Vec<u8>, Vec<String>);

/// What a device is, as far as a bundle asks.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its class; empty: it was given none.
    pub class: String,
    /// The channel it follows.
    pub channel: String,
    /// The time, or a bound below it, ms since 1970.
    pub now_ms: i64,
    /// This daemon.
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
    /// What is there cannot be read: it is neither written over, nor is anything removed that it may name.
    unread: Option<String>,
    /// As they were found.
    copies: Vec<High>,
}

impl Store {
    /// Opens it. What is damaged is begun anew, and on a disk that takes nothing it is empty: the daemon starts all the same.
    /// What cannot be read stays as it is until the next start. The second value says what is wrong.
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

    /// All of them.
    pub fn lines(&self) -> impl Iterator<Item = (&String, &Line)> {
        self.saved.lines.iter()
    }

    /// The install on its way.
    pub fn job(&self) -> Option<&Job> {
        self.saved.job.as_ref()
    }

    /// Changes the job alone.
    pub fn set_job(&mut self, job: Option<Job>) -> Result<(), String> {
        let before = std::mem::replace(&mut self.saved.job, job);
        self.save().inspect_err(|_| self.saved.job = before)
    }

    /// Changes a model's slots and the job, on the disk before it counts.
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

    /// What is there cannot be read until the next start.
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

    /// Remembers that a bundle failed here.
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

    /// The highest sequence of a model that this device has known; `floor` is what its read-only root says.
    pub fn high(&self, model: &str, floor: u64) -> u64 {
        let line = self.line(model);
        let steady = [SlotId::A, SlotId::B].into_iter().filter_map(|id| match line.slot(id) {
            Slot::Steady(held) => Some(held.seq),
            _ => None,
        });
        let kept = self.high.seqs.get(model).copied().unwrap_or(0);
        steady.chain([kept, floor]).max().unwrap_or(0)
    }

    /// A bundle of this sequence was well.
    pub fn raise(&mut self, model: &str, seq: u64) -> Result<(), String> {
        let known = self.high.seqs.entry(model.to_owned()).or_default();
        *known = seq.max(*known);
        self.save_high()
    }

    fn save_high(&self) -> Result<(), String> {
        self.may_save()?;
        self.keep.save_checked(HIGH, &self.high).map_err(|why| format!("save the highest sequences: {why}"))
    }

    /// The signed times of what was verified here are a bound for a clock that stepped back; only for expiry, for whoever
    /// made the bundle may have had a wrong clock himself.
    pub fn not_before(&mut self, made_ms: i64) {
        self.high.newest_ms = made_ms.max(self.high.newest_ms);
        if let Err(why) = self.save_high() {
            tracing::warn!("{why}");
        }
    }

    /// See `not_before`.
    pub fn newest_ms(&self) -> i64 {
        self.high.newest_ms
    }

    /// Whether a bundle may be installed: what its manifest says against what this device is and has known.
    pub fn admit(&self, bundle: &Bundle, device: &Device, keys: &Keyset, floor: u64) -> Result<(), String> {
        self.may_save()?;
        if keys.expires_ms <= device.now_ms {
            return Err("the keyset of this device expired; it needs a newer one before anything is installed".into());
        }
        if let Some(why) = self.why_failed(&bundle.sha256) {
            return Err(format!("it failed here before ({why}); a new release is needed"));
        }
        let line = self.line(&bundle.release.model);
        // One that was well here may come back: the slots know it.
        let known = line.held_bundles().any(|sha256| sha256 == bundle.sha256);
        admit(&bundle.release, device, self.high(&bundle.release.model, floor), known)
    }

    /// Where a bundle is put together.
    pub fn incoming(&self, name: &str) -> PathBuf {
        self.folder.join("incoming").join(name)
    }

    /// Moves a whole bundle to its place, where nothing is changed any more.
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

    /// A bundle's file, to read.
    pub fn open_bundle(&self, sha256: &str) -> Result<File, String> {
        let path = self.path(sha256);
        File::open(&path).map_err(|why| format!("open {}: {why}", path.display()))
    }

    /// Whether it is there.
    pub fn has(&self, sha256: &str) -> bool {
        self.path(sha256).is_file()
    }

    /// Removes bundles that no slot names, and parts of some that nobody goes on with.
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

    /// What serves a model: the slot that serves, else the other, else what the configuration names (`None`). A slot whose
    /// file is damaged or below the floor is passed over; the second value says why.
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
            // Expiry, revocation and the like block installing, never running: it was verified when it came.
            match self.open_bundle(&held.sha256).and_then(|file| Bundle::open_asked(&file, &held.sha256, None)) {
                Ok(bundle) => return (Some((id, bundle)), why),
                Err(reason) => why.push(format!("slot {} cannot be used: {reason}", origin.word())),
            }
        }
        (None, why)
    }

    /// The keyset in use: the one of the read-only root, and those that followed it; and what is wrong with these. Then
    /// the last one that is right goes on being believed for commands, and nothing is installed.
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

    /// The keyset of this version, if it is there. One that cannot be read is not absent: a key that it revokes must not be
    /// believed meanwhile.
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

    /// Takes up the keyset that follows.
    pub fn take_keyset(&mut self, now: &Keyset, bytes: &[u8], minisigs: &[String]) -> Result<Keyset, String> {
        if bytes.len() as u64 > limits::KEYSET_BYTES || minisigs.len() > limits::KEYSET_SIGNATURES {
            return Err("it is larger than a keyset may be".into());
        }
        let next = now.successor(bytes, minisigs)?;
        let keep = Keep::at(self.keys.clone());
        let what = |why: std::io::Error| format!("save the keyset: {why}");
        for (n, minisig) in minisigs.iter().enumerate() {
            keep.save(&format!("{}.{n}.minisig", next.version), minisig.as_bytes()).map_err(what)?;
        }
        // This write is the change. Whatever comes after it is done again by the next start if a power cut comes between.
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

    /// What lies in the slots counts as no newer than what keysets since then say.
    fn lower_lines(&mut self, lowered: &[Lowered]) {
        // What was written before this was noted was lowered before the keyset was saved.
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

/// Tries again for a second what the disk does not give out.
fn patiently<T>(load: impl Fn() -> Result<T, Unloaded>) -> Result<T, Unloaded> {
    for _ in 1..limits::READ_TRIES {
        match load() {
            Err(Unloaded::Unreadable(_)) => std::thread::sleep(limits::READ_WAIT),
            other => return other,
        }
    }
    load()
}

/// What a keyset lowers that dropped a key for models: what was signed with a key that is no longer believed says nothing of
/// the order of releases.
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

/// The largest that any copy knows, each lowered by the keysets that came after it was written.
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
    /// What lies in the slots counts as no newer than this.
    fn lower(&mut self, seq: u64) {
        let serving = self.clone();
        for id in [SlotId::A, SlotId::B] {
            if let Slot::Steady(held) = serving.slot(id) {
                self.set_steady(id, Held { seq: held.seq.min(seq), ..held.clone() });
            }
        }
    }
}

/// The same without a store.
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
