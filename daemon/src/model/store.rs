//! The files of the installed models: bundles (`STATE/models/bundles/SHA256.kmb`), the slots and the highest sequence of each
//! model, and the keysets that followed the one in the read-only root (`STATE/keys/N.json`, `N.minisig…`). One owner: control.
//! What is known is the shelf (`shelf.rs`); `Disk` reads and writes it, and decides nothing.
//!
//! ```text
//! models/bundles/SHA256.kmb   named by its digest, moved there when complete
//! models/incoming/SHA256      a bundle that is being received
//! models/engines/             see `engines.rs`
//! models/slots.json           {v, lines: {MODEL: {a, b, serving}}, failed: [[SHA256, why], …], job, keyset, ended: […]}
//!                                                                                                     two copies, CRC
//! models/high.json            {v, seqs: {MODEL: N}, keyset: N}                                        two copies, CRC
//! keys/2.json, 2.0.minisig    the keyset of version 2 and its signatures
//! ```
//!
//! A keyset takes effect with one write: that of `keys/N.json`, after its signatures. What it lowers follows from it: each copy
//! of the other files records under which keyset it was written, and reading it applies what a later keyset lowers. So
//! a power cut between two of these writes leaves a consistent state.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    bundle::Bundle,
    engines::Engines,
    error::{BundleError, KeysetError, StoreError},
    keyset::Keyset,
    shelf::{High, Lowered, Saved, Shelf},
    slot::{Origin, SlotId},
};
use crate::{
    host::{Defence, Keep, Unloaded},
    limits,
};

const SLOTS: &str = "slots.json";
const HIGH: &str = "high.json";
/// The name in the incoming folder for the copy of a local file.
const COPY: &str = "copy";

/// A keyset's bytes and its signatures.
type SignedKeyset = (Vec<u8>, Vec<String>);

/// How much of a bundle is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum There {
    /// It is in the store.
    Whole,
    /// So many bytes of it were received.
    Part(u64),
}

/// The files.
#[derive(Debug, Clone)]
pub struct Disk {
    folder: PathBuf,
    keep: Keep,
    keys: PathBuf,
}

/// The files, and what they hold.
#[derive(Debug)]
pub struct Store {
    /// The files.
    pub disk: Disk,
    /// What they hold.
    pub shelf: Shelf,
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
        (Self { disk: Disk { folder, keep, keys }, shelf: Shelf::new(saved, copies, unread) }, damaged)
    }

    /// The bundle that serves a model: of the serving slot, else of the other one, else the configured model (`None`). A slot
    /// whose file is damaged or below the floor is skipped; the second value says why.
    pub fn serving(&self, model: &str, floor: u64) -> (Option<(SlotId, Bundle)>, Vec<String>) {
        let line = self.shelf.line(model);
        let mut why = Vec::new();
        for origin in [line.serving(), line.previous()] {
            let Origin::Slot(id) = origin else { break };
            let Some(held) = line.slot(id).held() else { continue };
            if held.seq < floor {
                why.push(format!("slot {} holds sequence {}, and the system brings {floor}", origin.word(), held.seq));
                continue;
            }
            // Expiry, revocation and the like block installing, never running: the bundle was verified when it was installed.
            match self.disk.open_bundle(&held.sha256, None) {
                Ok(bundle) => return (Some((id, bundle)), why),
                Err(reason) => why.push(format!("slot {} cannot be used: {reason}", origin.word())),
            }
        }
        (None, why)
    }
}

impl Disk {
    /// Writes `slots.json`.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        self.keep.save_checked(SLOTS, saved).map_err(|why| StoreError::Disk(format!("save the model slots: {why}")))
    }

    /// Writes `high.json`.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn save_high(&self, high: &High) -> Result<(), StoreError> {
        self.keep
            .save_checked(HIGH, high)
            .map_err(|why| StoreError::Disk(format!("save the highest sequences of models: {why}")))
    }

    /// The path of a bundle that is being received.
    pub fn incoming(&self, sha256: &str) -> PathBuf {
        self.folder.join("incoming").join(sha256)
    }

    /// The path for the copy of a local file whose digest is not known yet.
    pub fn copy(&self) -> PathBuf {
        self.incoming(COPY)
    }

    fn path(&self, sha256: &str) -> PathBuf {
        self.folder.join("bundles").join(format!("{sha256}.kmb"))
    }

    /// How much of a bundle is there.
    pub fn find(&self, sha256: &str) -> There {
        match self.path(sha256).is_file() {
            true => There::Whole,
            false => There::Part(self.incoming(sha256).metadata().map_or(0, |meta| meta.len())),
        }
    }

    /// The copy of a local file becomes the incoming bundle of this digest.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn take_copy(&self, sha256: &str) -> Result<(), StoreError> {
        fs::rename(self.copy(), self.incoming(sha256)).map_err(|why| StoreError::Disk(format!("copy it: {why}")))
    }

    /// Appends to an incoming bundle; on the disk when it returns.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn append(&self, sha256: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.incoming(sha256);
        let written = OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_data()
        });
        written.map_err(|why| StoreError::Disk(format!("write {}: {why}", path.display())))
    }

    /// Moves a complete bundle to its final place, unless it is there.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn take_in(&self, sha256: &str) -> Result<(), StoreError> {
        let (from, to) = (self.incoming(sha256), self.path(sha256));
        if to.is_file() {
            return Ok(());
        }
        let moved = File::open(&from)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&from, &to))
            .and_then(|()| File::open(self.folder.join("bundles"))?.sync_all());
        moved.map_err(|why| StoreError::Disk(format!("take {} into the store: {why}", from.display())))
    }

    /// Opens and verifies an incoming bundle.
    ///
    /// # Errors
    /// Why it is rejected.
    pub fn open_incoming(&self, sha256: &str, keys: &Keyset) -> Result<Bundle, BundleError> {
        open(&self.incoming(sha256), sha256, Some(keys))
    }

    /// Opens and checks a bundle of the store; without a keyset signatures are not verified.
    ///
    /// # Errors
    /// Why it is rejected.
    pub fn open_bundle(&self, sha256: &str, keys: Option<&Keyset>) -> Result<Bundle, BundleError> {
        open(&self.path(sha256), sha256, keys)
    }

    /// Removes an incoming bundle.
    pub fn remove_incoming(&self, sha256: &str) {
        remove(&self.incoming(sha256));
    }

    /// Removes all bundles but these, their engines, and all partial bundles but the one that a job continues.
    pub fn sweep(&self, bundles: &[String], incoming: Option<&str>) {
        let of_models: Vec<&str> = bundles.iter().map(String::as_str).chain(incoming).collect();
        Engines::below(&self.folder).sweep(&of_models);
        let used: Vec<PathBuf> = bundles.iter().map(|sha256| self.path(sha256)).collect();
        let going_on = incoming.map(|sha256| self.incoming(sha256));
        let files = |folder: &str| fs::read_dir(self.folder.join(folder)).into_iter().flatten().flatten();
        let there = files("bundles").chain(files("incoming")).map(|entry| entry.path());
        there.filter(|path| !used.contains(path) && going_on.as_ref() != Some(path)).for_each(|path| remove(&path));
    }

    /// The keyset in use: that of the read-only root, or the last valid successor; and why a later one is not used. In that
    /// case the last valid one counts for commands, and nothing is installed. The shelf takes over what it lowers.
    ///
    /// # Errors
    /// The first keyset is missing or invalid, or a later one cannot be read.
    pub fn keyset(&self, shelf: &mut Shelf, base: &Path) -> Result<(Keyset, Option<String>), KeysetError> {
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
        let trouble = shelf.found_keyset(keys.version, &lowered, Defence::Rotation.stands());
        Ok((keys, trouble))
    }

    /// The keyset of this version, if it exists. An unreadable keyset does not count as absent: a key that it revokes must
    /// not be trusted meanwhile.
    fn kept_keyset(&self, version: u64) -> Result<Option<SignedKeyset>, KeysetError> {
        let keep = Keep::at(self.keys.clone());
        let read = |name: &str| {
            keep.load(name).map_err(|why| KeysetError(format!("read keyset {version}: keys/{name}: {why}")))
        };
        let Some(bytes) = read(&format!("{version}.json"))? else { return Ok(None) };
        let mut minisigs = Vec::new();
        for n in 0..limits::KEYSET_SIGNATURES {
            let Some(sig) = read(&format!("{version}.{n}.minisig"))? else { break };
            minisigs.push(String::from_utf8_lossy(&sig).into_owned());
        }
        Ok(Some((bytes, minisigs)))
    }

    /// Verifies and saves the next keyset. The shelf takes over what it lowers.
    ///
    /// # Errors
    /// It does not follow the one in use, it expired before `now_ms` (a device whose keyset expired installs nothing), or it
    /// cannot be saved.
    pub fn take_keyset(
        &self,
        shelf: &mut Shelf,
        now: &Keyset,
        (bytes, minisigs): (&[u8], &[String]),
        now_ms: i64,
    ) -> Result<Keyset, KeysetError> {
        if bytes.len() as u64 > limits::KEYSET_BYTES || minisigs.len() > limits::KEYSET_SIGNATURES {
            return Err("it is larger than a keyset may be".into());
        }
        let next = now.successor(bytes, minisigs)?;
        if next.expires_ms <= now_ms {
            let (version, expired) = (next.version, crate::host::clock::rfc3339_ms(next.expires_ms));
            let why = format!("keyset {version} expired at {expired}, and nothing could be installed with it");
            return Err(KeysetError(why));
        }
        let keep = Keep::at(self.keys.clone());
        let what = |why: io::Error| KeysetError(format!("save the keyset: {why}"));
        for (n, minisig) in minisigs.iter().enumerate() {
            keep.save(&format!("{}.{n}.minisig", next.version), minisig.as_bytes()).map_err(what)?;
        }
        // This write is the change. After a power cut, the next start repeats the steps that follow.
        keep.save(&format!("{}.json", next.version), bytes).map_err(what)?;
        let lowered: Vec<Lowered> = Lowered::by(now, &next).into_iter().collect();
        shelf.took_keyset(next.version, &lowered);
        let saved = shelf.to_save().and_then(|saved| self.save(&saved));
        if let Err(why) = saved.and_then(|()| self.save_high(&shelf.high_to_save()?)) {
            tracing::error!("save what keyset {} lowers: {why}; the next start does it again", next.version);
        }
        Ok(next)
    }
}

fn open(path: &Path, sha256: &str, keys: Option<&Keyset>) -> Result<Bundle, BundleError> {
    let file = File::open(path).map_err(|why| BundleError(format!("open {}: {why}", path.display())))?;
    Bundle::open_asked(&file, sha256, keys)
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => tracing::warn!("remove {}: {why}", path.display()),
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

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
