//! Engines that a provider built for a model: TensorRT and its like compile a model for one board in seconds or minutes, and read the
//! result in less than one. A worker of its own builds an engine into a folder that no other process writes. When it has ended, its
//! files are digested and sealed here; the worker that serves reads them, and cannot write. A seal says for what they were made. An
//! engine whose seal or digests do not fit is never read by a provider: it is removed, and built again.
//!
//! ```text
//! models/engines/KEY/seal.json   {v, made_for: {model, window, provider, runtime, driver, device}, bundle, files}  two copies, CRC
//! models/engines/KEY/files/      what the provider wrote
//! models/engines/KEY.new/        the same while it is being built
//! ```
//!
//! KEY is made of what does not change with an update of the system (model, window, provider), so an update replaces an engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{error::EngineError, file::hex};
use crate::{host::Keep, limits};

const SEAL: &str = "seal.json";
const FILES: &str = "files";
/// Version of the seal.
const VERSION: u32 = 1;

/// Engines that are being built by this process, which alone writes the state directory.
static BUILT_NOW: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// All that an engine depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFor {
    /// SHA-256 of the ONNX file, hex.
    pub model: String,
    /// Shape of the windows: another one may be another engine.
    pub window: String,
    /// Name, plugin and options of the provider.
    pub provider: String,
    /// ONNX Runtime and the libraries beside it.
    pub runtime: String,
    /// Versions of the drivers.
    pub driver: String,
    /// Boards and processor.
    pub device: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    v: u32,
    made_for: MadeFor,
    /// The bundle of the model, while it lies in a slot: the engine is removed with it.
    bundle: Option<String>,
    /// Size and SHA-256 by name.
    files: BTreeMap<String, (u64, String)>,
}

/// Why there is no engine that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// None was built.
    Absent,
    /// It was made for something else.
    Foreign(String),
    /// It is not what was sealed.
    Damaged(String),
}

/// The engines of this device.
#[derive(Debug, Clone)]
pub struct Engines(PathBuf);

/// An engine that is being built. Removed when it is dropped before it was sealed.
#[derive(Debug)]
pub struct Building {
    folder: PathBuf,
    sealed: PathBuf,
    made_for: MadeFor,
}

impl MadeFor {
    fn key(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.model, &self.window, &self.provider] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hex(&hash.finalize()[..16])
    }

    /// The first part in which an engine for `self` does not fit `now`.
    fn differs(&self, now: &Self) -> Option<String> {
        let parts = [
            ("model", &self.model, &now.model),
            ("window", &self.window, &now.window),
            ("provider", &self.provider, &now.provider),
            ("runtime", &self.runtime, &now.runtime),
            ("driver", &self.driver, &now.driver),
            ("device", &self.device, &now.device),
        ];
        let (what, was, is) = parts.into_iter().find(|(_, was, is)| was != is)?;
        let named = |text: &String| if text.is_empty() { "none".to_owned() } else { text.clone() };
        Some(format!("it was made for {what} {}, and this is {}", named(was), named(is)))
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is none yet"),
            Self::Foreign(why) => write!(f, "the one that is there does not fit: {why}"),
            Self::Damaged(why) => write!(f, "the one that is there is damaged: {why}"),
        }
    }
}

impl Engines {
    /// Below this folder of models. Nothing is made there before an engine is built.
    pub fn below(models: &Path) -> Self {
        Self(models.join("engines"))
    }

    /// The files of the engine for this, as they were sealed.
    ///
    /// # Errors
    /// There is none, or it must not be used; why.
    pub fn find(&self, made_for: &MadeFor) -> Result<PathBuf, Unusable> {
        let folder = self.0.join(made_for.key());
        if !folder.exists() {
            return Err(Unusable::Absent);
        }
        let seal = read_seal(&folder).ok_or_else(|| Unusable::Damaged(format!("{SEAL} cannot be read")))?;
        if let Some(why) = seal.made_for.differs(made_for) {
            return Err(Unusable::Foreign(why));
        }
        let files = folder.join(FILES);
        match digests(&files) {
            Err(why) => Err(Unusable::Damaged(why.to_string())),
            Ok(found) if found == seal.files => Ok(files),
            Ok(found) => Err(Unusable::Damaged(odd(&seal.files, &found))),
        }
    }

    /// Begins to build the engine for this; one that is there stays until the new one is sealed.
    ///
    /// # Errors
    /// It is being built already, or the disk is not writable or too full.
    pub fn build(&self, made_for: &MadeFor) -> Result<Building, EngineError> {
        let (folder, sealed) = (self.new_of(&made_for.key()), self.0.join(made_for.key()));
        let mut now = BUILT_NOW.lock().unwrap_or_else(PoisonError::into_inner);
        if !now.insert(folder.clone()) {
            return Err("it is being built for another pipeline".into());
        }
        drop(now);
        // From here on its drop takes it off the list again.
        let building = Building { folder, sealed, made_for: made_for.clone() };
        let made = remove(&building.folder).and_then(|()| fs::create_dir_all(building.files()));
        made.map_err(|why| EngineError(format!("make {}: {why}", building.files().display())))?;
        building.look()?;
        Ok(building)
    }

    /// Removes the engine for this: no provider takes it.
    pub fn remove(&self, made_for: &MadeFor) {
        logged(&self.0.join(made_for.key()));
    }

    /// Removes engines of bundles that are in no slot any more, what a build left behind, and the oldest beyond `limits::ENGINES`.
    pub fn sweep(&self, bundles: &[&str]) {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ext| ext == "new") {
                let is_built_now = BUILT_NOW.lock().unwrap_or_else(PoisonError::into_inner).contains(&path);
                if !is_built_now {
                    logged(&path);
                }
                continue;
            }
            let seal = read_seal(&path);
            let is_used = seal.is_some_and(|seal| seal.bundle.is_none_or(|bundle| bundles.contains(&bundle.as_str())));
            match is_used.then(|| fs::metadata(path.join(SEAL)).and_then(|meta| meta.modified())) {
                Some(Ok(sealed)) => kept.push((sealed, path)),
                _ => logged(&path),
            }
        }
        kept.sort();
        let many = kept.len().saturating_sub(limits::ENGINES);
        kept.iter().take(many).for_each(|(_, path)| logged(path));
    }

    fn new_of(&self, key: &str) -> PathBuf {
        self.0.join(format!("{key}.new"))
    }
}

impl Building {
    /// Where the provider writes.
    pub fn files(&self) -> PathBuf {
        self.folder.join(FILES)
    }

    /// Bytes written so far.
    ///
    /// # Errors
    /// They are more than an engine may have, or the disk is nearly full: the build must end.
    pub fn look(&self) -> Result<u64, EngineError> {
        let entries = fs::read_dir(self.files()).into_iter().flatten().flatten();
        let bytes = entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum::<u64>();
        if bytes > limits::ENGINE_BYTES {
            return Err(EngineError(format!("it has more than {} MiB", limits::ENGINE_BYTES >> 20)));
        }
        let left = nix::sys::statvfs::statvfs(&self.folder)
            .map_or(u64::MAX, |fs| fs.blocks_available().saturating_mul(fs.fragment_size()));
        if left < limits::ENGINE_DISK_LEFT {
            return Err(EngineError(format!("the disk has only {} MiB left", left >> 20)));
        }
        Ok(bytes)
    }

    /// Takes what was built, when its builder has ended. `bundle`: of the slot that the model lies in.
    ///
    /// # Errors
    /// The provider left nothing, or what must not be there, or the disk is not writable.
    pub fn seal(self, bundle: Option<String>) -> Result<PathBuf, EngineError> {
        self.look()?;
        let files = self.files();
        let what = |why: io::Error| EngineError(format!("seal {}: {why}", files.display()));
        let found = digests(&files).map_err(what)?;
        if found.is_empty() {
            return Err("the provider wrote no file".into());
        }
        for name in found.keys() {
            File::open(files.join(name)).and_then(|file| file.sync_all()).map_err(what)?;
        }
        File::open(&files).and_then(|folder| folder.sync_all()).map_err(what)?;
        let seal = Seal { v: VERSION, made_for: self.made_for.clone(), bundle, files: found };
        Keep::at(self.folder.clone()).save_checked(SEAL, &seal).map_err(what)?;
        remove(&self.sealed).and_then(|()| fs::rename(&self.folder, &self.sealed)).map_err(what)?;
        if let Some(parent) = self.sealed.parent() {
            File::open(parent).and_then(|folder| folder.sync_all()).map_err(what)?;
        }
        Ok(self.sealed.join(FILES))
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        logged(&self.folder);
        BUILT_NOW.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.folder);
    }
}

fn read_seal(folder: &Path) -> Option<Seal> {
    let seal: Seal = Keep::at(folder.to_owned()).load_checked(SEAL).ok().flatten()?;
    (seal.v == VERSION).then_some(seal)
}

/// Size and SHA-256 of each file of a folder.
///
/// # Errors
/// Something in it is no plain file, or there is more than an engine may have.
fn digests(folder: &Path) -> io::Result<BTreeMap<String, (u64, String)>> {
    let (mut found, mut left) = (BTreeMap::new(), limits::ENGINE_BYTES);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|_| io::Error::other("a file's name is invalid UTF-8"))?;
        if found.len() >= limits::ENGINE_FILES {
            return Err(io::Error::other(format!("more than {} files", limits::ENGINE_FILES)));
        }
        // A builder may have left a link, or a pipe that would hold us up: neither is opened.
        if !entry.file_type()?.is_file() {
            return Err(io::Error::other(format!("`{name}` is no plain file")));
        }
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(entry.path())?;
        let (mut hash, mut size) = (Sha256::new(), 0u64);
        let (mut file, mut part) = (file.take(left + 1), vec![0u8; 64 * 1024]);
        loop {
            match file.read(&mut part)? {
                0 => break,
                n => {
                    hash.update(&part[..n]);
                    size += n as u64;
                }
            }
        }
        left = left.checked_sub(size).ok_or_else(|| io::Error::other("it is larger than an engine may be"))?;
        found.insert(name, (size, hex(&hash.finalize())));
    }
    Ok(found)
}

/// The first file that is not what was sealed.
fn odd(sealed: &BTreeMap<String, (u64, String)>, found: &BTreeMap<String, (u64, String)>) -> String {
    let changed = sealed.iter().find(|(name, digest)| found.get(*name) != Some(*digest));
    match (changed, found.keys().find(|name| !sealed.contains_key(*name))) {
        (Some((name, _)), _) if !found.contains_key(name) => format!("file `{name}` is missing"),
        (Some((name, _)), _) => format!("file `{name}` was changed"),
        (None, Some(name)) => format!("file `{name}` was added"),
        (None, None) => "its files were changed".into(),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(why) => Err(why),
    };
    removed.or_else(|why| if why.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(why) })
}

fn logged(path: &Path) {
    if let Err(why) = remove(path) {
        tracing::warn!("remove {}: {why}", path.display());
    }
}

#[cfg(test)]
#[path = "engines_tests.rs"]
mod tests;
