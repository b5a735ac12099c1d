//! The partition the outbox lies on: how much of it may be used, and what is given up before any record is: a ballast
//! file first, then stores that were set aside. Owns both; knows nothing of what is stored.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};

use crate::{host::Defence, limits};

const QUARANTINE: &str = "quarantine-";

/// The outbox's share of a partition.
#[derive(Debug, Clone)]
pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// The share of the partition that `folder` lies on.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Bytes all of the outbox may take on disk; everything, where the partition's size cannot be known.
    pub fn quota(&self) -> u64 {
        let size = statvfs(&self.folder).map_or(u64::MAX, |fs| fs.blocks().saturating_mul(fs.fragment_size()));
        size / 100 * limits::DISK_SHARE_PERCENT
    }

    /// Bytes that anyone may still write.
    fn free(&self) -> u64 {
        statvfs(&self.folder).map_or(u64::MAX, |fs| fs.blocks_available().saturating_mul(fs.fragment_size()))
    }

    /// Bytes all of the outbox takes now, without the ballast.
    pub fn used(&self) -> u64 {
        used(&self.folder).saturating_sub(used(&self.ballast()))
    }

    /// Room for so many more bytes within the quota; stores that were set aside leave for it, oldest first.
    pub fn has_room(&self, more: u64) -> bool {
        let quota = self.quota();
        while self.used().saturating_add(more) > quota {
            let Some(oldest) = self.quarantines().into_iter().next() else { return false };
            let path = self.folder.join(format!("{QUARANTINE}{oldest}"));
            tracing::warn!(path = path.display().to_string(), "no room: an old damaged store is removed");
            if fs::remove_dir_all(&path).is_err() {
                return false;
            }
        }
        true
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }

    /// Makes the ballast where there is room for it twice over. A disk without room has none; that is no error. Returns
    /// whether it is worth while to try again later.
    pub fn keep_ballast(&self) -> bool {
        let size = (self.quota() / limits::BALLAST_SHARE).min(limits::BALLAST_BYTES);
        if !Defence::Ballast.stands() || used(&self.ballast()) >= size || self.free() < 2 * size {
            return true;
        }
        let made = File::create(self.ballast()).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, size as i64)?;
            file.sync_all()
        });
        // Not every file system can set blocks aside; there is no ballast on those.
        if let Err(why) = &made {
            let _ = fs::remove_file(self.ballast());
            return why.kind() == io::ErrorKind::StorageFull;
        }
        true
    }

    /// The disk is full: the ballast leaves. Whether there was one.
    pub fn give_up_ballast(&self) -> bool {
        let given = fs::remove_file(self.ballast()).is_ok();
        if given {
            tracing::warn!("the disk is full: the outbox gives up its ballast");
            let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        }
        given
    }

    /// Moves a store that cannot be used out of the way, beside it; only so many are kept.
    pub fn set_aside(&self, store: &Path) -> io::Result<PathBuf> {
        let taken = self.quarantines();
        let aside = self.folder.join(format!("{QUARANTINE}{}", taken.last().map_or(1, |n| n + 1)));
        fs::rename(store, &aside)?;
        for old in taken.iter().take((taken.len() + 1).saturating_sub(limits::QUARANTINES)) {
            fs::remove_dir_all(self.folder.join(format!("{QUARANTINE}{old}")))?;
        }
        File::open(&self.folder)?.sync_all()?;
        Ok(aside)
    }

    /// Numbers of the stores that were set aside, oldest first.
    pub fn quarantines(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut all: Vec<u64> =
            entries.filter_map(|e| e.file_name().to_str()?.strip_prefix(QUARANTINE)?.parse().ok()).collect();
        all.sort_unstable();
        all
    }
}

/// Bytes that a file, or all files below a folder, take on disk.
fn used(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let below = if meta.is_dir() {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| used(&entry.path())).sum()
    } else {
        0
    };
    meta.blocks() * 512 + below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_damaged_stores_are_kept_and_the_ballast_is_given_up_once() {
        let dir = tempfile::tempdir().expect("folder");
        let disk = Disk::new(dir.path().into());
        for _ in 0..limits::QUARANTINES + 2 {
            let store = dir.path().join("store");
            fs::create_dir(&store).expect("store");
            disk.set_aside(&store).expect("set aside");
        }
        let kept = limits::QUARANTINES as u64;
        assert_eq!(disk.quarantines(), (3..3 + kept).collect::<Vec<_>>());
        disk.keep_ballast();
        disk.keep_ballast();
        assert!(disk.give_up_ballast());
        assert!(!disk.give_up_ballast());
        assert!(!disk.has_room(u64::MAX), "what was set aside leaves for room");
        assert!(disk.quarantines().is_empty());
    }
}
