//! The only file that names sled. Sealed messages on disk, in segment trees that are dropped whole.
//!
//! ```text
//! tree "seg-XXXXXXXX" (segment number, hex)
//!    key  n: u32be                 place in the segment
//!    value                         a sealed message, see `sealed`
//! default tree
//!    key  "mark"                   state: u8 (1 a commit was begun, 2 it is whole) │ generation: u64be
//! ```
//!
//! sled's own `flush` is no fsync on Linux: after it the database file is synced here, and so are the files in `blobs/`,
//! where sled puts large pages without ever syncing them. A commit ends with the watermark, which shows at the next
//! opening whether all that was synced is still there. sled panics on a damaged store; `open` catches that, but the
//! caller tries it in a process of its own first, for not every damage ends in a panic.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use super::{
    sealed::Sealed,
    watermark::{Mark, Watermark},
};
use crate::{flow::Class, host::Defence, limits};

/// Place of a stored message: segment and number in it. Later ones are larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    segment: u32,
    n: u32,
}

impl Key {
    /// As one number; later ones are larger.
    pub fn place(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.n)
    }

    /// A key for tests of what only passes keys on.
    #[cfg(test)]
    pub fn test(n: u32) -> Self {
        Self { segment: 0, n }
    }
}

/// What is known of a stored message without reading it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u32,
    records: u32,
    class: Class,
}

/// A message on its way in.
#[derive(Debug)]
pub struct Packed {
    bytes: Vec<u8>,
    entry: Entry,
}

impl Packed {
    /// Packs a message.
    pub fn new(sealed: &Sealed) -> Result<Self, String> {
        let bytes = sealed.pack()?;
        let entry = Entry { bytes: bytes.len() as u32, records: sealed.items.len() as u32, class: sealed.class };
        Ok(Self { bytes, entry })
    }

    /// Bytes on disk, before sled's own overhead.
    pub fn size(&self) -> u64 {
        u64::from(self.entry.bytes)
    }
}

/// Why a store could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unopened {
    /// The disk does not let it: full, read-only. The store may be whole.
    Disk(String),
    /// The store itself.
    Damaged(String),
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
    watermark: Watermark,
    segments: BTreeMap<u32, Segment>,
    /// Number of the next segment. It only grows while the store is open, so that a later message always has the
    /// larger key, also when all before it are gone.
    next_segment: u32,
    index: BTreeMap<Key, Entry>,
    /// Keys by class, so that the one to leave first is found without a search.
    classes: BTreeMap<Class, BTreeSet<Key>>,
    bytes: u64,
    records: u64,
    digest: u64,
    generation: u64,
    /// Files in `blobs/` that were synced.
    blobs: BTreeSet<std::ffi::OsString>,
    dirty: bool,
    /// What opening found.
    pub found: Found,
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Messages that did not check; they were removed.
    pub damaged: u64,
    /// Records that were synced and are not there any more, at least; `None`: all are.
    pub missing: Option<u64>,
    /// Highest sequence number of each stream.
    pub highest: BTreeMap<String, u64>,
}

/// Where a store's watermark lies: beside its folder.
pub fn watermark_path(folder: &Path) -> PathBuf {
    folder.with_file_name("watermark")
}

const MARK: &[u8] = b"mark";
const BEGUN: u8 = 1;
const WHOLE: u8 = 2;

fn disk(why: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        why.kind(),
        K::StorageFull | K::QuotaExceeded | K::ReadOnlyFilesystem | K::PermissionDenied | K::OutOfMemory
    )
}

fn unopened(why: sled::Error) -> Unopened {
    match &why {
        sled::Error::Io(io) if disk(io) || is_locked(&why) => Unopened::Disk(why.to_string()),
        _ => Unopened::Damaged(why.to_string()),
    }
}

/// Somebody still holds the database's file: a child between fork and exec, or a thread of the one just let go. sled says
/// so in words only.
fn is_locked(why: &sled::Error) -> bool {
    matches!(why, sled::Error::Io(io) if io.to_string().contains("could not acquire lock"))
}

fn io(what: &str, why: std::io::Error) -> Unopened {
    let text = format!("{what}: {why}");
    if disk(&why) { Unopened::Disk(text) } else { Unopened::Damaged(text) }
}

fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

impl Store {
    /// Opens or makes the store. The error says why it cannot be used.
    pub fn open(folder: &Path) -> Result<Self, Unopened> {
        let opened = catch_unwind(AssertUnwindSafe(|| Self::try_open(folder)));
        opened.unwrap_or_else(|_| Err(Unopened::Damaged("the database panicked while it was opened".into())))
    }

    /// Only looks whether it opens and can be read to its end; says nothing of what is missing, and mends nothing.
    pub fn probe(folder: &Path) -> Result<(), Unopened> {
        Self::unmarked(folder)?.scan().map(|_| ())
    }

    fn try_open(folder: &Path) -> Result<Self, Unopened> {
        let fresh = !folder.join("db").exists();
        let mark = Watermark::read(&watermark_path(folder));
        let mut store = Self::unmarked(folder)?;
        let damaged = store.scan()?;
        let whole = store.compare(mark)?;
        for key in damaged {
            store.begin().map_err(Unopened::Disk)?;
            let segment = store.segments.get(&key.segment);
            segment.map_or(Ok(None), |s| s.tree.remove(key.n.to_be_bytes())).map_err(unopened)?;
            store.digest ^= fold(key);
        }
        // The mark that tells of missing records stays until the caller has salvaged what can be, and settles.
        if store.found.missing.is_none() && (!whole || store.dirty) {
            store.settle().map_err(Unopened::Disk)?;
        }
        if fresh {
            let parent = folder.parent().unwrap_or(Path::new("/"));
            for folder in [&folder.join("blobs"), folder, parent] {
                sync(folder).map_err(|why| io("sync the store's folders", why))?;
            }
        }
        Ok(store)
    }

    /// The database, not yet read.
    fn unmarked(folder: &Path) -> Result<Self, Unopened> {
        let config = sled::Config::default()
            .path(folder)
            .cache_capacity(limits::STORE_CACHE_BYTES)
            // Commits are ours alone: no thread of sled's writes behind our back.
            .flush_every_ms(None)
            .mode(sled::Mode::LowSpace);
        let mut tries = limits::STORE_LOCK_TRIES;
        let db = loop {
            match config.open() {
                Err(why) if is_locked(&why) && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(limits::STORE_LOCK_WAIT);
                }
                other => break other.map_err(unopened)?,
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            db,
            watermark: Watermark::open(&watermark_path(folder)).map_err(|why| io("open the watermark", why))?,
            segments: BTreeMap::new(),
            next_segment: 0,
            index: BTreeMap::new(),
            classes: BTreeMap::new(),
            bytes: 0,
            records: 0,
            digest: 0,
            generation: 0,
            blobs: BTreeSet::new(),
            dirty: false,
            found: Found::default(),
        })
    }

    /// Reads every message once; returns the keys of those that do not check.
    fn scan(&mut self) -> Result<Vec<Key>, Unopened> {
        let broken = |what: &str| Unopened::Damaged(format!("{what} is damaged"));
        let mut damaged = Vec::new();
        for name in self.db.tree_names() {
            let Some(number) = std::str::from_utf8(&name)
                .ok()
                .and_then(|n| n.strip_prefix("seg-"))
                .and_then(|n| u32::from_str_radix(n, 16).ok())
            else {
                continue;
            };
            let tree = self.db.open_tree(&name).map_err(unopened)?;
            let mut segment = Segment { tree, records: 0, next: 0 };
            for item in segment.tree.iter() {
                let (key, value) = item.map_err(unopened)?;
                let n = key.as_ref().try_into().map(u32::from_be_bytes).map_err(|_| broken("a key"))?;
                segment.next = n.checked_add(1).ok_or_else(|| broken("a key"))?;
                let key = Key { segment: number, n };
                match Sealed::from_bytes(&value) {
                    Ok((place, sealed)) if place == key.place() => {
                        let packed = value.len().saturating_sub(super::sealed::HEAD) as u32;
                        let records = sealed.items.len() as u32;
                        segment.records += u64::from(records);
                        let last = sealed.items.iter().map(|item| item.seq).max().unwrap_or(0);
                        let highest = self.found.highest.entry(sealed.stream).or_default();
                        *highest = last.max(*highest);
                        self.enter(key, Entry { bytes: packed, records, class: sealed.class });
                    }
                    other => {
                        // An older system after a rollback: what it cannot read is kept, set aside whole, not removed.
                        if let (Err(_), Some(version)) = (other, Sealed::newer(&value)) {
                            let text = format!("messages of version {version} in it are of a newer program than this");
                            return Err(Unopened::Damaged(text));
                        }
                        damaged.push(key);
                        self.digest ^= fold(key);
                    }
                }
            }
            self.next_segment = self.next_segment.max(number.checked_add(1).ok_or_else(|| broken("a segment"))?);
            self.segments.insert(number, segment);
        }
        self.found.damaged = damaged.len() as u64;
        Ok(damaged)
    }

    /// Compares what is there with what was synced. Returns whether the last commit is whole and marked.
    fn compare(&mut self, mark: Option<Mark>) -> Result<bool, Unopened> {
        let value = self.db.get(MARK).map_err(unopened)?;
        let own: Option<[u8; 9]> = value.as_ref().and_then(|v| v.as_ref().try_into().ok());
        let (state, generation) = own.map_or((WHOLE, 0), |own| {
            let [state, generation @ ..] = own;
            (state, u64::from_be_bytes(generation))
        });
        self.generation = generation;
        let Some(mark) = mark.filter(|_| Defence::Watermark.stands()) else { return Ok(false) };
        self.generation = self.generation.max(mark.generation);
        if generation > mark.generation {
            // The power failed, or the process ended, between the commit and its mark, or in the commit.
            return Ok(false);
        }
        let here = self.mark();
        let same = (here.messages + self.found.damaged, here.digest) == (mark.messages, mark.digest);
        if state == WHOLE && generation == mark.generation && same {
            return Ok(true);
        }
        self.found.missing = Some(mark.records.saturating_sub(self.records));
        Ok(false)
    }

    fn mark(&self) -> Mark {
        Mark {
            generation: self.generation,
            messages: self.index.len() as u64,
            records: self.records,
            digest: self.digest,
            oldest: self.index.keys().next().map_or(u64::from(self.next_segment) << 32, |key| key.place()),
        }
    }

    /// Takes what is there now for all there is: what is missing is not missed again.
    pub fn settle(&mut self) -> Result<(), String> {
        self.begin().and_then(|()| self.commit())
    }

    /// Before the first change of a commit: what is found begun at the next opening was never whole.
    fn begin(&mut self) -> Result<(), String> {
        if !self.dirty {
            self.generation += 1;
            self.dirty = true;
            self.put_mark(BEGUN)?;
        }
        Ok(())
    }

    fn put_mark(&self, state: u8) -> Result<(), String> {
        let mut value = [state; 9];
        value[1..].copy_from_slice(&self.generation.to_be_bytes());
        self.db.insert(MARK, &value).map(|_| ()).map_err(|why| why.to_string())
    }

    /// Puts messages in; they are safe after `commit`.
    pub fn insert(&mut self, messages: &[Packed]) -> Result<Vec<Key>, String> {
        let mut keys = Vec::new();
        for message in messages {
            self.begin()?;
            let number = self.current()?;
            let Some(segment) = self.segments.get_mut(&number) else {
                return Err("no segment".into());
            };
            let key = Key { segment: number, n: segment.next };
            let value = Sealed::frame(key.place(), &message.bytes);
            segment.tree.insert(key.n.to_be_bytes(), value).map_err(|why| why.to_string())?;
            segment.next += 1;
            segment.records += u64::from(message.entry.records);
            self.enter(key, message.entry);
            keys.push(key);
        }
        Ok(keys)
    }

    fn enter(&mut self, key: Key, entry: Entry) {
        self.bytes += u64::from(entry.bytes);
        self.records += u64::from(entry.records);
        self.digest ^= fold(key);
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
        self.next_segment = number.checked_add(1).ok_or("the store is used up")?;
        Ok(number)
    }

    /// Forgets messages. A segment is dropped whole when its last one goes.
    pub fn remove(&mut self, keys: impl IntoIterator<Item = Key>) -> Result<(), String> {
        for key in keys {
            if !self.index.contains_key(&key) {
                continue;
            }
            self.begin()?;
            let Some(entry) = self.index.remove(&key) else { continue };
            self.bytes -= u64::from(entry.bytes);
            self.records -= u64::from(entry.records);
            self.digest ^= fold(key);
            if let Some(keys) = self.classes.get_mut(&entry.class) {
                keys.remove(&key);
            }
            let first = Key { segment: key.segment, n: 0 };
            let last = Key { segment: key.segment, n: u32::MAX };
            let empty = self.index.range(first..=last).next().is_none();
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
        self.put_mark(WHOLE)?;
        self.db.flush().map_err(|why| why.to_string())?;
        if Defence::SyncData.stands() {
            let file = self.folder.join("db");
            let what = |why: std::io::Error| format!("sync {}: {why}", file.display());
            File::open(&file).and_then(|f| f.sync_data()).map_err(what)?;
            self.sync_blobs().map_err(what)?;
        }
        self.watermark.write(self.mark()).map_err(|why| format!("write the watermark: {why}"))?;
        self.dirty = false;
        Ok(())
    }

    /// Pages larger than a quarter of sled's segment lie in files of their own, which sled never syncs.
    fn sync_blobs(&mut self) -> std::io::Result<()> {
        let folder = self.folder.join("blobs");
        let mut there = BTreeSet::new();
        for entry in std::fs::read_dir(&folder)? {
            there.insert(entry?.file_name());
        }
        let mut fresh = false;
        for name in there.difference(&self.blobs) {
            match sync(&folder.join(name)) {
                Err(why) if why.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
            fresh = true;
        }
        if fresh {
            sync(&folder)?;
        }
        self.blobs = there;
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
        match Sealed::from_bytes(&value.ok_or_else(|| gone("message"))?) {
            Ok((place, sealed)) if place == key.place() => Ok(sealed),
            Ok(_) => Err(gone("message")),
            Err(why) => Err(Unread::Damaged(why)),
        }
    }

    /// Messages in the order in which they leave when room is short: least class first, in it the oldest first.
    pub fn least(&self) -> impl Iterator<Item = Key> + '_ {
        self.classes.values().rev().flatten().copied()
    }

    /// Places of all messages.
    pub fn places(&self) -> BTreeSet<u64> {
        self.index.keys().map(|key| key.place()).collect()
    }

    /// The oldest message of a class.
    pub fn oldest(&self, class: Class) -> Option<Key> {
        self.classes.get(&class)?.first().copied()
    }

    /// Bytes of a message, packed.
    pub fn size(&self, key: Key) -> u64 {
        self.index.get(&key).map_or(0, |entry| u64::from(entry.bytes))
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

/// One place's share of the digest (the finalizer of splitmix64): every bit of it depends on every bit of the place.
fn fold(key: Key) -> u64 {
    let mut x = key.place().wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
