//! The partition the outbox lies on: how much of it may be used, and what is given up before any record is: a ballast
//! file first, then stores that were set aside and salvaged. Owns both; knows nothing of what is stored.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};

use super::quarantine;
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

    /// Whether it takes a write and gives it back: an error elsewhere is not an error of the whole disk then.
    ///
    /// # Errors
    /// What the disk, or the lack of a descriptor, says.
    pub fn works(&self) -> io::Result<()> {
        let path = self.folder.join("check");
        let bytes = [0x5A; 4096];
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.write_all(&bytes).and_then(|()| file.sync_all())?;
        let same = fs::read(&path)? == bytes;
        fs::remove_file(&path)?;
        if same { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Room for so many more bytes within the quota; stores that were set aside leave for it, oldest first, but for those
    /// that are not salvaged yet.
    pub fn has_room(&self, more: u64) -> bool {
        let quota = self.quota();
        while self.used().saturating_add(more) > quota {
            let Some(oldest) = self.salvaged().into_iter().next() else { return false };
            let path = self.quarantine(oldest);
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
            tracing::warn!(
                "the disk is full: the outbox frees its reserve file, to go on storing for a while; make space on the partition"
            );
            let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        }
        given
    }

    /// Moves a store that cannot be used out of the way, beside it; only so many are kept, but for those that are not
    /// salvaged yet. Returns its number.
    ///
    /// # Errors
    /// The store could not be moved, or that is not safe on disk.
    pub fn set_aside(&self, store: &Path) -> io::Result<u64> {
        let number = self.quarantines().last().map_or(1, |n| n + 1);
        fs::rename(store, self.quarantine(number))?;
        File::open(&self.folder)?.sync_all()?;
        let over = (self.quarantines().len()).saturating_sub(limits::QUARANTINES);
        for old in self.salvaged().into_iter().filter(|old| *old != number).take(over) {
            if let Err(why) = fs::remove_dir_all(self.quarantine(old)) {
                tracing::warn!("remove {QUARANTINE}{old}: {why}");
            }
        }
        Ok(number)
    }

    /// Where a store that was set aside lies.
    pub fn quarantine(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{QUARANTINE}{number}"))
    }

    /// Those that were salvaged as far as they can be, oldest first.
    fn salvaged(&self) -> Vec<u64> {
        let all = self.quarantines().into_iter();
        all.filter(|number| !quarantine::is_unsalvaged(&self.quarantine(*number))).collect()
    }

    /// Those that are still to be salvaged, oldest first.
    pub fn unsalvaged(&self) -> Vec<u64> {
        let all = self.quarantines().into_iter();
        all.filter(|number| quarantine::is_unsalvaged(&self.quarantine(*number))).collect()
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

    #[test]
    fn stores_that_are_not_salvaged_yet_are_never_removed() {
        let dir = tempfile::tempdir().expect("folder");
        let disk = Disk::new(dir.path().into());
        for n in 0..limits::QUARANTINES + 2 {
            let store = dir.path().join("store");
            fs::create_dir(&store).expect("store");
            if n == 0 {
                quarantine::Todo::new(0, 0).save(&store).expect("marker");
            }
            disk.set_aside(&store).expect("set aside");
        }
        assert_eq!((disk.quarantines().len(), disk.unsalvaged()), (limits::QUARANTINES, vec![1]));
        assert!(!disk.has_room(u64::MAX));
        assert_eq!(disk.quarantines(), [1]);
    }
}
