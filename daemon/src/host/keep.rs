//! Small state files that outlive the process: written whole, or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A folder of state files.
#[derive(Debug, Clone)]
pub struct Keep(PathBuf);

/// What was saved cannot be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged;

impl Keep {
    /// A folder under the state directory; made if it is not there.
    pub fn open(state_dir: &Path, name: &str) -> io::Result<Self> {
        let folder = state_dir.join(name);
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// A folder that may not be there yet: until it is, nothing is found in it, and nothing can be saved.
    pub fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Where `name` is saved.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What was saved under `name`, if anything.
    pub fn load(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.0.join(name)).ok()
    }

    /// The names of what is saved, in order.
    pub fn names(&self) -> Vec<String> {
        let all = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<String> = all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Write, fsync, rename, fsync the folder: after a power cut either the old or the new content is there.
    pub fn save(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, fresh) = (self.0.join(name), self.0.join(format!("{name}.new")));
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(&self.0)?.sync_all()
    }

    /// Saves two copies, each with a checksum: `crc hex, line feed, JSON`.
    pub fn save_checked(&self, name: &str, value: &impl serde::Serialize) -> io::Result<()> {
        let json = serde_json::to_vec(value)?;
        let bytes = [format!("{:08x}\n", crc32fast::hash(&json)).into_bytes(), json].concat();
        self.save(&format!("{name}.bak"), &bytes)?;
        self.save(name, &bytes)
    }

    /// The first copy that checks. `Err` where there is one and none checks.
    pub fn load_checked<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Damaged> {
        let any = [name, &format!("{name}.bak")].iter().any(|copy| self.load(copy).is_some());
        let value = self.load_copies(name).into_iter().next();
        if any && value.is_none() { Err(Damaged) } else { Ok(value) }
    }

    /// Every copy that checks.
    pub fn load_copies<T: serde::de::DeserializeOwned>(&self, name: &str) -> Vec<T> {
        let checked = |bytes: Vec<u8>| {
            let (head, json) = bytes.split_at_checked(9)?;
            let crc = u32::from_str_radix(std::str::from_utf8(&head[..8]).ok()?, 16).ok()?;
            (crc32fast::hash(json) == crc).then(|| serde_json::from_slice(json).ok())?
        };
        [name, &format!("{name}.bak")].iter().filter_map(|copy| self.load(copy)).filter_map(checked).collect()
    }

    /// Forgets what was saved, also after a power cut.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.and_then(|()| File::open(&self.0)?.sync_all()),
        }
    }
}
