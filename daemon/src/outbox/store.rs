//! The only file that names sled. Sealed messages on disk, in segment trees that are dropped whole.
//!
//! ```text
//! tree "seg-XXXXXXXX" (segment number, hex)
//!    key  n: u32be                 place in the segment
//!    value                         a sealed message, see `sealed`
//! ```
//!
//! sled's own `flush` is no fsync on Linux: after it the database file is synced here. sled panics on a damaged store;
//! `open` catches that, and the caller sets the folder aside.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use super::sealed::Sealed;
use crate::{flow::Class, limits};

/// Place of a stored message: segment and number in it. Later ones are larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    segment: u32,
    n: u32,
}

#[cfg(test)]
impl Key {
    /// A key for tests of what only passes keys on.
    pub fn test(n: u32) -> Self {
        Self { segment: 0, n }
    }
}

/// What is known of a stored message without reading it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Bytes on disk, before sled's own overhead.
    pub bytes: u32,
    /// Records in it.
    pub records: u32,
    /// What it is worth.
    pub class: Class,
}

/// Why a message could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// The disk, or sled after it met a failure of the disk: the message may be whole.
    Disk(String),
    /// The message itself.
    Damaged(String),
}

struct Segment {
    tree: sled::Tree,
    records: u64,
    next: u32,
}

/// The store.
pub struct Store {
    folder: PathBuf,
    db: sled::Db,
    segments: BTreeMap<u32, Segment>,
    /// Number of the next segment. It only grows while the store is open, so that a later message always has the
    /// larger key, also when all before it are gone.
    next_segment: u32,
    index: BTreeMap<Key, Entry>,
    /// Keys by class, so that the one to leave first is found without a search.
    classes: BTreeMap<Class, BTreeSet<Key>>,
    bytes: u64,
    records: u64,
    /// Messages that did not check while opening, by reason.
    pub damaged: u64,
    dirty: bool,
}

impl Store {
    /// Opens or makes the store. The error says why it cannot be used; the folder is then as it was.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let opened = catch_unwind(AssertUnwindSafe(|| Self::try_open(folder)));
        opened.unwrap_or_else(|_| Err("the database is damaged (it panicked while opening)".into()))
    }

    fn try_open(folder: &Path) -> Result<Self, String> {
        let fresh = !folder.join("db").exists();
        let db = sled::Config::default()
            .path(folder)
            .cache_capacity(limits::STORE_CACHE_BYTES)
            // Commits are ours alone: no thread of sled's writes behind our back.
            .flush_every_ms(None)
            .mode(sled::Mode::LowSpace)
            .open()
            .map_err(|why| why.to_string())?;
        let mut store = Self {
            folder: folder.to_owned(),
            db,
            segments: BTreeMap::new(),
            next_segment: 0,
            index: BTreeMap::new(),
            classes: BTreeMap::new(),
            bytes: 0,
            records: 0,
            damaged: 0,
            dirty: fresh,
        };
        store.scan()?;
        if fresh {
            store.commit()?;
            let parent = folder.parent().unwrap_or(Path::new("/"));
            for folder in [folder, parent] {
                File::open(folder)
                    .and_then(|f| f.sync_all())
                    .map_err(|why| format!("sync {}: {why}", folder.display()))?;
            }
        }
        Ok(store)
    }

    /// Reads every message once: what does not check is counted and removed.
    fn scan(&mut self) -> Result<(), String> {
        for name in self.db.tree_names() {
            let Some(number) = std::str::from_utf8(&name)
                .ok()
                .and_then(|n| n.strip_prefix("seg-"))
                .and_then(|n| u32::from_str_radix(n, 16).ok())
            else {
                continue;
            };
            let tree = self.db.open_tree(&name).map_err(|why| why.to_string())?;
            let mut segment = Segment { tree, records: 0, next: 0 };
            let mut damaged = Vec::new();
            for item in segment.tree.iter() {
                let (key, value) = item.map_err(|why| why.to_string())?;
                let n = key.as_ref().try_into().map(u32::from_be_bytes).map_err(|_| "a key is damaged".to_owned())?;
                segment.next = n.checked_add(1).ok_or("a key is damaged")?;
                match Sealed::from_bytes(&value) {
                    Ok(sealed) => {
                        let key = Key { segment: number, n };
                        let records = sealed.items.len() as u32;
                        segment.records += u64::from(records);
                        self.enter(key, Entry { bytes: value.len() as u32, records, class: sealed.class });
                    }
                    Err(_) => damaged.push(key),
                }
            }
            self.damaged += damaged.len() as u64;
            for key in damaged {
                segment.tree.remove(key).map_err(|why| why.to_string())?;
                self.dirty = true;
            }
            self.next_segment = self.next_segment.max(number.wrapping_add(1));
            self.segments.insert(number, segment);
        }
        Ok(())
    }

    /// Puts messages in; they are safe after `commit`.
    pub fn insert(&mut self, messages: &[(Vec<u8>, Entry)]) -> Result<Vec<Key>, String> {
        let mut keys = Vec::new();
        for (bytes, entry) in messages {
            let number = self.current()?;
            let Some(segment) = self.segments.get_mut(&number) else {
                return Err("no segment".into());
            };
            let key = Key { segment: number, n: segment.next };
            segment.tree.insert(key.n.to_be_bytes(), bytes.as_slice()).map_err(|why| why.to_string())?;
            self.dirty = true;
            segment.next += 1;
            segment.records += u64::from(entry.records);
            self.enter(key, entry.clone());
            keys.push(key);
        }
        Ok(keys)
    }

    fn enter(&mut self, key: Key, entry: Entry) {
        self.bytes += u64::from(entry.bytes);
        self.records += u64::from(entry.records);
        self.classes.entry(entry.class).or_default().insert(key);
        self.index.insert(key, entry);
    }

    /// The segment that takes more; a full one is followed by a new one.
    fn current(&mut self) -> Result<u32, String> {
        let newest = self.next_segment.wrapping_sub(1);
        if self.segments.get(&newest).is_some_and(|segment| segment.records < limits::SEGMENT_RECORDS) {
            return Ok(newest);
        }
        let number = self.next_segment;
        let tree = self.db.open_tree(format!("seg-{number:08x}")).map_err(|why| why.to_string())?;
        self.segments.insert(number, Segment { tree, records: 0, next: 0 });
        self.next_segment = number.wrapping_add(1);
        Ok(number)
    }

    /// Forgets messages. A segment is dropped whole when its last one goes.
    pub fn remove(&mut self, keys: &[Key]) -> Result<(), String> {
        for key in keys {
            let Some(entry) = self.index.remove(key) else {
                continue;
            };
            self.bytes -= u64::from(entry.bytes);
            if let Some(keys) = self.classes.get_mut(&entry.class) {
                keys.remove(key);
            }
            self.records -= u64::from(entry.records);
            let first = Key { segment: key.segment, n: 0 };
            let last = Key { segment: key.segment, n: u32::MAX };
            let empty = self.index.range(first..=last).next().is_none();
            self.dirty = true;
            if empty {
                self.segments.remove(&key.segment);
                self.db.drop_tree(format!("seg-{:08x}", key.segment)).map_err(|why| why.to_string())?;
            } else if let Some(segment) = self.segments.get(&key.segment) {
                segment.tree.remove(key.n.to_be_bytes()).map_err(|why| why.to_string())?;
            }
        }
        Ok(())
    }

    /// Makes everything before it safe against a power cut.
    pub fn commit(&mut self) -> Result<(), String> {
        if !self.dirty {
            return Ok(());
        }
        self.db.flush().map_err(|why| why.to_string())?;
        let file = self.folder.join("db");
        File::open(&file).and_then(|f| f.sync_data()).map_err(|why| format!("sync {}: {why}", file.display()))?;
        self.dirty = false;
        Ok(())
    }

    /// The next message after `after`.
    pub fn next(&self, after: Option<Key>) -> Option<Key> {
        match after {
            None => self.index.keys().next().copied(),
            Some(after) => {
                use std::ops::Bound::{Excluded, Unbounded};
                self.index.range((Excluded(after), Unbounded)).next().map(|(key, _)| *key)
            }
        }
    }

    /// Reads a message.
    pub fn read(&self, key: Key) -> Result<Sealed, Unread> {
        let gone = |what: &str| Unread::Damaged(format!("no such {what}"));
        let segment = self.segments.get(&key.segment).ok_or_else(|| gone("segment"))?;
        let value = segment.tree.get(key.n.to_be_bytes()).map_err(|why| Unread::Disk(why.to_string()))?;
        Sealed::from_bytes(&value.ok_or_else(|| gone("message"))?).map_err(Unread::Damaged)
    }

    /// The oldest message of the least class: the one that leaves first when room is short.
    pub fn least(&self) -> Option<Key> {
        self.classes.values().rev().find_map(|keys| keys.first().copied())
    }

    /// Bytes of all messages.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Records of all messages.
    pub fn records(&self) -> u64 {
        self.records
    }
}

/// Moves a store that cannot be opened out of the way: `quarantine-N` beside it; the oldest ones are removed.
pub fn set_aside(folder: &Path) -> std::io::Result<PathBuf> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let mut taken: Vec<u64> = std::fs::read_dir(parent)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("quarantine-")?.parse().ok())
        .collect();
    taken.sort_unstable();
    let aside = parent.join(format!("quarantine-{}", taken.last().map_or(1, |n| n + 1)));
    std::fs::rename(folder, &aside)?;
    for old in taken.iter().take((taken.len() + 1).saturating_sub(limits::QUARANTINES)) {
        std::fs::remove_dir_all(parent.join(format!("quarantine-{old}")))?;
    }
    File::open(parent)?.sync_all()?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_message_has_the_larger_key_even_when_all_before_it_are_gone() {
        let dir = std::env::temp_dir().join(format!("kentledge-store-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let mut store = Store::open(&dir).expect("open");
        let message = || (vec![0u8; 8], Entry { bytes: 8, records: 1, class: Class::Score });
        let first = store.insert(&[message(), message()]).expect("insert");
        store.remove(&first).expect("remove");
        let second = store.insert(&[message()]).expect("insert");
        assert!(second[0] > first[1], "{second:?} after {first:?}");
        assert_eq!(store.next(Some(first[1])), Some(second[0]));
    }
}
