//! The bytes that a pull sends: files one behind the other, by their names. They are links in a folder of their own, so what is
//! evicted or replaced while the pull goes on is still there for it, also after a restart.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::record::hex;

/// A blob.
#[derive(Debug)]
pub struct Blob {
    folder: PathBuf,
    /// Names and lengths, in the order of the blob.
    parts: Vec<(String, u64)>,
}

impl Blob {
    /// Links these files, by their names, into the folder, in place of what was there.
    ///
    /// # Errors
    /// The disk is not writable, or the file system has no links.
    pub fn make(folder: PathBuf, from: &Path, names: &[String], beat: &dyn Fn()) -> io::Result<Self> {
        clear(&folder)?;
        fs::create_dir_all(&folder)?;
        for name in names {
            beat();
            match fs::hard_link(from.join(name), folder.join(name)) {
                // Evicted, or removed by hand, in this moment.
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        File::open(&folder)?.sync_all()?;
        Self::open(folder)
    }

    /// What is in the folder.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        let mut parts = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            parts.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
        }
        parts.sort();
        Ok(Self { folder, parts })
    }

    /// Number of files.
    pub fn files(&self) -> u64 {
        self.parts.len() as u64
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.parts.iter().map(|(_, len)| len).sum()
    }

    /// Digest of all of it, hex.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn digest(&self, beat: &dyn Fn()) -> io::Result<String> {
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 * 1024]);
        for (name, _) in &self.parts {
            let mut file = File::open(self.folder.join(name))?;
            loop {
                beat();
                match file.read(&mut buffer)? {
                    0 => break,
                    n => hash.update(&buffer[..n]),
                }
            }
        }
        Ok(hex(&hash.finalize()))
    }

    /// The bytes from `offset` on.
    ///
    /// # Errors
    /// A file cannot be read, or is shorter than it was.
    pub fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut out = vec![0; len as usize];
        let (mut begins, mut filled) = (0, 0);
        for (name, size) in &self.parts {
            let ends = begins + size;
            let at = offset + filled as u64;
            if at < ends && filled < out.len() {
                let n = (out.len() - filled).min((ends - at) as usize);
                File::open(self.folder.join(name))?.read_exact_at(&mut out[filled..filled + n], at - begins)?;
                filled += n;
            }
            begins = ends;
        }
        if filled < out.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(out) }
    }
}

/// Removes the folder's files.
///
/// # Errors
/// The disk is not writable.
pub fn clear(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_stays_whole_when_its_files_are_removed_or_replaced() {
        let dir = tempfile::tempdir().expect("folder");
        let names: Vec<String> = (0..5).map(|i| format!("f-{i}")).collect();
        let mut whole = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let bytes = vec![i as u8; 1000 * i];
            fs::write(dir.path().join(name), &bytes).expect("write");
            whole.extend(bytes);
        }
        let missing = [names.clone(), vec!["f-9".into()]].concat();
        let folder = dir.path().join("pull");
        drop(Blob::make(folder.clone(), dir.path(), &missing, &|| ()).expect("links"));
        fs::remove_file(dir.path().join("f-1")).expect("evicted");
        fs::write(dir.path().join("new"), "another label").expect("write");
        fs::rename(dir.path().join("new"), dir.path().join("f-2")).expect("replaced");
        let blob = Blob::open(folder.clone()).expect("the next process");
        assert_eq!((blob.files(), blob.size()), (5, 10_000));
        assert_eq!(blob.digest(&|| ()).expect("digest"), hex(&Sha256::digest(&whole)));
        let chunks: Vec<u8> =
            (0..10_000).step_by(777).flat_map(|at| blob.read(at, 777.min(10_000 - at)).expect("read")).collect();
        assert_eq!(chunks, whole);
        assert!(blob.read(9_999, 2).is_err());
        clear(&folder).expect("clear");
        clear(&folder).expect("nothing to clear");
    }
}
