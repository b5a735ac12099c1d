//! Small state files that outlive the process: written whole, or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A folder of state files.
#[derive(Debug, Clone)]
pub struct Keep(PathBuf);

impl Keep {
    /// A folder under the state directory; made if it is not there.
    pub fn open(state_dir: &Path, name: &str) -> io::Result<Self> {
        let folder = state_dir.join(name);
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// What was saved under `name`, if anything.
    pub fn load(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.0.join(name)).ok()
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

    /// Forgets what was saved.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
