//! Small state files that outlive the process: written whole, or not at all. A file that is absent, one that cannot be read
//! now, and one that is damaged are three things: only the first means that nothing was saved.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
};

use super::Defence;
use crate::limits;

/// A folder of state files. It need not be there: nothing is found in it then, and the first save makes it.
#[derive(Debug, Clone)]
pub struct Keep(PathBuf);

/// Why a file that is there gives nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unloaded {
    /// The disk does not give it out now (EIO, no descriptor left): what was saved may still be there, so it must not be
    /// taken for absent, nor written over, before the caller has waited for it.
    Unreadable(String),
    /// It was read, and no copy checks.
    Damaged,
}

impl fmt::Display for Unloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Self::Damaged => f.write_str("is damaged"),
        }
    }
}

impl Keep {
    /// A folder under the state directory. Never fails: the daemon starts without a writable state directory.
    pub fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The same, made now.
    ///
    /// # Errors
    /// It cannot be made. At a start that is no reason to end: use `at`.
    pub fn open(state_dir: &Path, name: &str) -> io::Result<Self> {
        let folder = state_dir.join(name);
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// What was saved under `name`; `None` where nothing was.
    ///
    /// # Errors
    /// It is there, or may be, and cannot be read.
    pub fn load(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.0.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(why) if why.kind() == io::ErrorKind::NotFound || !Defence::Unreadable.stands() => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// The same, tried again for a second while it cannot be read: for what is looked at once.
    ///
    /// # Errors
    /// It could not be read all the while.
    pub fn load_patiently(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut tries = limits::READ_TRIES;
        loop {
            tries -= 1;
            match self.load(name) {
                Err(_) if tries > 0 => thread::sleep(limits::READ_WAIT),
                other => return other,
            }
        }
    }

    /// Where `name` is saved.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names of what is saved, in order.
    pub fn names(&self) -> Vec<String> {
        let all = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<String> = all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Write, fsync, rename, fsync the folder: after a power cut either the old or the new content is there.
    ///
    /// # Errors
    /// The disk is not writable; the old content is there.
    pub fn save(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, fresh) = (self.0.join(name), self.0.join(format!("{name}.new")));
        let made = File::create(&fresh);
        let made = match made {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.0).and_then(|()| File::create(&fresh))
            }
            other => other,
        };
        let mut file = made?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(&self.0)?.sync_all()
    }

    /// Saves two copies, each with a checksum: `crc hex, line feed, JSON`. `name.bak` first: it is never the older one.
    ///
    /// # Errors
    /// The disk is not writable; at least one old or new copy is there.
    pub fn save_checked(&self, name: &str, value: &impl serde::Serialize) -> io::Result<()> {
        let json = serde_json::to_vec(value)?;
        let bytes = [format!("{:08x}\n", crc32fast::hash(&json)).into_bytes(), json].concat();
        self.save(&format!("{name}.bak"), &bytes)?;
        self.save(name, &bytes)
    }

    /// The first copy that checks; `None` where there is no copy.
    ///
    /// # Errors
    /// No copy checks, and at least one is there. `Unreadable` where one of them could not be read: it may be whole.
    pub fn load_checked<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Unloaded> {
        let (copies, unloaded) = self.load_copies(name);
        match (copies.into_iter().next(), unloaded) {
            (Some(value), _) => Ok(Some(value)),
            (None, None) => Ok(None),
            (None, Some(why)) => Err(why),
        }
    }

    /// Every copy that checks, and what is wrong with the others.
    pub fn load_copies<T: serde::de::DeserializeOwned>(&self, name: &str) -> (Vec<T>, Option<Unloaded>) {
        let checked = |bytes: Vec<u8>| {
            let (head, json) = bytes.split_at_checked(9)?;
            let crc = u32::from_str_radix(std::str::from_utf8(&head[..8]).ok()?, 16).ok()?;
            (crc32fast::hash(json) == crc).then(|| serde_json::from_slice(json).ok())?
        };
        let (mut copies, mut unloaded) = (Vec::new(), None);
        for copy in [name, &format!("{name}.bak")] {
            match self.load(copy) {
                Ok(None) => {}
                Ok(Some(bytes)) => match checked(bytes) {
                    Some(value) => copies.push(value),
                    None => unloaded = unloaded.or(Some(Unloaded::Damaged)),
                },
                Err(why) => unloaded = Some(Unloaded::Unreadable(format!("{}: {why}", self.0.join(copy).display()))),
            }
        }
        (copies, unloaded)
    }

    /// Forgets what was saved, also after a power cut.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.and_then(|()| File::open(&self.0)?.sync_all()),
        }
    }
}

/// For tests: makes a saved file unreadable, for root as well, and puts it back.
#[cfg(test)]
pub mod unreadable {
    use std::{fs, os::unix::fs::symlink, path::Path};

    /// A link to itself in its place: reading it fails with ELOOP, writing over it does not. The file waits beside it.
    pub fn make(path: &Path) {
        fs::rename(path, path.with_extension("hidden")).expect("hide");
        symlink(path, path).expect("link");
    }

    /// The medium works again.
    pub fn mend(path: &Path) {
        assert!(path.is_symlink(), "{} was written over", path.display());
        fs::rename(path.with_extension("hidden"), path).expect("show");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_unreadable_and_damaged_files_are_three_things() {
        let dir = tempfile::tempdir().expect("folder");
        let keep = Keep::at(dir.path().join("k"));
        assert_eq!(keep.load_checked::<u64>("n"), Ok(None));
        keep.save_checked("n", &7u64).expect("the first save makes the folder");
        let (main, bak) = (dir.path().join("k/n"), dir.path().join("k/n.bak"));
        unreadable::make(&main);
        assert_eq!(keep.load_checked::<u64>("n"), Ok(Some(7)), "one copy is enough");
        fs::write(&bak, "torn").expect("tear");
        assert!(matches!(keep.load_checked::<u64>("n"), Err(Unloaded::Unreadable(why)) if why.contains("k/n")));
        unreadable::mend(&main);
        assert_eq!(keep.load_checked::<u64>("n"), Ok(Some(7)));
        fs::write(&main, "torn").expect("tear");
        assert_eq!(keep.load_checked::<u64>("n"), Err(Unloaded::Damaged));
    }
}
