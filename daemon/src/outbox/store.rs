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
//! opening whether all that was synced is still there.
//!
//! sled panics on a damaged store, and on errors of the disk that it unwraps, also when it is dropped: every call of it and
//! its drop are guarded here. Not every damage ends in a panic, so the caller tries a store in a process of its own first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use super::{
    key::Key,
    packed::{Entry, Packed},
    sealed::Sealed,
    trouble::{Unopened, Unread, guarded, is_full, panicked, passes, text_passes, unopened},
    watermark::{Mark, Watermark},
};
use crate::{flow::Class, host::Defence, limits};

struct Segment {
    tree: sled::Tree,
    records: u64,
    next: u32,
}

/// The store.
pub struct Store {
    folder: PathBuf,
    /// `None` only while it is dropped.
    db: Option<sled::Db>,
    /// The database's file, open as long as the database: where a sync of sled's fails unseen, Linux reports that once to
    /// each descriptor that was open then, and to none that is opened later.
    file: File,
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
    /// The disk failed in a write or a sync: what was written since the last commit may be lost though it can be read.
    unsynced: bool,
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

fn sorted(why: sled::Error) -> Unopened {
    let passing = match &why {
        sled::Error::Io(io) => passes(io),
        other => text_passes(&other.to_string()),
    };
    if passing { Unopened::Disk(why.to_string()) } else { Unopened::Damaged(why.to_string()) }
}

/// Another process or thread still holds the database's file: a child between fork and exec, or a thread of the one just
/// let go. sled says so in words only.
fn is_locked(why: &sled::Error) -> bool {
    matches!(why, sled::Error::Io(io) if io.to_string().contains("could not acquire lock"))
}

fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

impl Store {
    /// Opens or makes the store; `alive` is called now and then.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn open(folder: &Path, alive: &dyn Fn()) -> Result<Self, Unopened> {
        Self::caught(|| Self::try_open(folder, alive))
    }

    /// Only looks whether it opens and can be read to its end; says nothing of what is missing, and mends nothing.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn probe(folder: &Path) -> Result<(), Unopened> {
        Self::caught(|| Self::unmarked(folder)?.scan(&|| {}).map(|_| ()))
    }

    fn caught<T>(act: impl FnOnce() -> Result<T, Unopened>) -> Result<T, Unopened> {
        catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|payload| {
            let text = panicked(payload.as_ref());
            Err(if text_passes(&text) { Unopened::Disk(text) } else { Unopened::Damaged(text) })
        })
    }

    fn try_open(folder: &Path, alive: &dyn Fn()) -> Result<Self, Unopened> {
        let fresh = !folder.join("db").try_exists().map_err(|why| unopened("look for the store", &why))?;
        let mark = Watermark::read(&watermark_path(folder)).map_err(|why| unopened("read the watermark", &why))?;
        let mut store = Self::unmarked(folder)?;
        let damaged = store.scan(alive)?;
        let whole = store.compare(mark)?;
        for key in damaged {
            store.begin().map_err(Unopened::Disk)?;
            let segment = store.segments.get(&key.segment);
            segment.map_or(Ok(None), |s| s.tree.remove(key.n.to_be_bytes())).map_err(sorted)?;
            store.digest ^= key.fold();
        }
        // The mark that tells of missing records stays until the caller has salvaged what can be, and settles.
        if store.found.missing.is_none() && (!whole || store.dirty) {
            store.settle().map_err(Unopened::Disk)?;
        }
        if fresh {
            let parent = folder.parent().unwrap_or(Path::new("/"));
            // sled syncs neither its folders nor its configuration, without which it does not open again.
            for path in [&folder.join("conf"), &folder.join("blobs"), folder, parent] {
                sync(path).map_err(|why| unopened("sync the new store", &why))?;
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
        // Before the database: what fails after it is open drops it.
        let watermark = Watermark::open(&watermark_path(folder)).map_err(|why| unopened("open the watermark", &why))?;
        let own = || File::open(folder.join("db")).map_err(|why| unopened("open the store's file", &why));
        let file = own();
        let mut tries = limits::STORE_LOCK_TRIES;
        let db = loop {
            match config.open() {
                Err(why) if is_locked(&why) && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(limits::STORE_LOCK_WAIT);
                }
                other => break other.map_err(sorted)?,
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            db: Some(db),
            file: file.or_else(|_| own())?,
            watermark,
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
            unsynced: false,
            found: Found::default(),
        })
    }

    /// Reads every message once; returns the keys of those that do not check.
    fn scan(&mut self, alive: &dyn Fn()) -> Result<Vec<Key>, Unopened> {
        let broken = |what: &str| Unopened::Damaged(format!("{what} is damaged"));
        let mut damaged = Vec::new();
        let db = self.db().map_err(Unopened::Disk)?.clone();
        for name in db.tree_names() {
            alive();
            let Some(number) = std::str::from_utf8(&name)
                .ok()
                .and_then(|n| n.strip_prefix("seg-"))
                .and_then(|n| u32::from_str_radix(n, 16).ok())
            else {
                continue;
            };
            let tree = db.open_tree(&name).map_err(sorted)?;
            let mut segment = Segment { tree, records: 0, next: 0 };
            for item in segment.tree.iter() {
                let (key, value) = item.map_err(sorted)?;
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
                        self.digest ^= key.fold();
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
        let value = self.db().map_err(Unopened::Disk)?.get(MARK).map_err(sorted)?;
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
    ///
    /// # Errors
    /// The disk is not writable.
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
        self.db()?.insert(MARK, &value).map(|_| ()).map_err(|why| why.to_string())
    }

    /// Puts messages in; they are safe after `commit`.
    ///
    /// # Errors
    /// What the disk or the database said; the store is to be closed then.
    pub fn insert(&mut self, messages: &[Packed]) -> Result<Vec<Key>, String> {
        self.noted(|store| store.put_in(messages))
    }

    fn put_in(&mut self, messages: &[Packed]) -> Result<Vec<Key>, String> {
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

    /// Puts a salvaged message back at its place, so that it keeps its turn; at another one where that is taken.
    ///
    /// # Errors
    /// As with `insert`.
    pub fn restore(&mut self, place: u64, message: &Packed) -> Result<(), String> {
        let key = Key::at(place);
        let (Some(next), Some(next_segment), false) =
            (key.n.checked_add(1), key.segment.checked_add(1), self.index.contains_key(&key))
        else {
            return self.insert(std::slice::from_ref(message)).map(|_| ());
        };
        self.noted(|store| {
            store.begin()?;
            if !store.segments.contains_key(&key.segment) {
                let tree = store.tree(key.segment)?;
                store.segments.insert(key.segment, Segment { tree, records: 0, next: 0 });
            }
            store.next_segment = store.next_segment.max(next_segment);
            let Some(segment) = store.segments.get_mut(&key.segment) else { return Err("no segment".into()) };
            segment
                .tree
                .insert(key.n.to_be_bytes(), Sealed::frame(place, &message.bytes))
                .map_err(|why| why.to_string())?;
            segment.next = segment.next.max(next);
            segment.records += u64::from(message.entry.records);
            store.enter(key, message.entry);
            Ok(())
        })
    }

    /// New messages begin a segment of at least this number: places that a failed commit may have used, or that are still
    /// to be salvaged, are not used again.
    pub fn begin_at(&mut self, segment: u32) {
        self.next_segment = self.next_segment.max(segment);
    }

    /// The first segment number that was never used.
    pub fn unused_segment(&self) -> u32 {
        self.next_segment
    }

    fn db(&self) -> Result<&sled::Db, String> {
        self.db.as_ref().ok_or_else(|| "the store is closed".into())
    }

    fn tree(&self, segment: u32) -> Result<sled::Tree, String> {
        self.db()?.open_tree(format!("seg-{segment:08x}")).map_err(|why| why.to_string())
    }

    fn enter(&mut self, key: Key, entry: Entry) {
        self.bytes += u64::from(entry.bytes);
        self.records += u64::from(entry.records);
        self.digest ^= key.fold();
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
        let tree = self.tree(number)?;
        self.segments.insert(number, Segment { tree, records: 0, next: 0 });
        self.next_segment = number.checked_add(1).ok_or("the store is used up")?;
        Ok(number)
    }

    /// Forgets messages. A segment is dropped whole when its last one goes.
    ///
    /// # Errors
    /// As with `insert`.
    pub fn remove(&mut self, keys: impl IntoIterator<Item = Key>) -> Result<(), String> {
        self.noted(|store| store.take_out(keys))
    }

    fn take_out(&mut self, keys: impl IntoIterator<Item = Key>) -> Result<(), String> {
        for key in keys {
            if !self.index.contains_key(&key) {
                continue;
            }
            self.begin()?;
            let Some(entry) = self.index.remove(&key) else { continue };
            self.bytes -= u64::from(entry.bytes);
            self.records -= u64::from(entry.records);
            self.digest ^= key.fold();
            if let Some(keys) = self.classes.get_mut(&entry.class) {
                keys.remove(&key);
            }
            let first = Key { segment: key.segment, n: 0 };
            let last = Key { segment: key.segment, n: u32::MAX };
            let empty = self.index.range(first..=last).next().is_none();
            if empty {
                self.segments.remove(&key.segment);
                self.db()?.drop_tree(format!("seg-{:08x}", key.segment)).map_err(|why| why.to_string())?;
            } else if let Some(segment) = self.segments.get(&key.segment) {
                segment.tree.remove(key.n.to_be_bytes()).map_err(|why| why.to_string())?;
            }
        }
        Ok(())
    }

    /// Makes everything before it safe against a power cut.
    ///
    /// # Errors
    /// As with `insert`; nothing of this commit counts as stored.
    pub fn commit(&mut self) -> Result<(), String> {
        if !self.dirty {
            return Ok(());
        }
        self.noted(|store| store.put_mark(WHOLE).and_then(|()| store.sync()))?;
        self.dirty = false;
        Ok(())
    }

    /// After one failed sync the next may succeed although pages are gone, and the first that sled says may come of a sync
    /// of its own threads. A full disk stores nothing new and loses nothing.
    fn noted<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        let done = guarded(|| act(self));
        self.unsynced |= done.as_ref().is_err_and(|why| !is_full(why));
        done
    }

    fn sync(&mut self) -> Result<(), String> {
        self.db()?.flush().map_err(|why| why.to_string())?;
        if Defence::SyncData.stands() {
            let file = self.folder.join("db");
            let what = |why: std::io::Error| format!("sync {}: {why}", file.display());
            self.file.sync_data().map_err(what)?;
            self.sync_blobs().map_err(what)?;
        }
        self.watermark.write(self.mark()).map_err(|why| format!("write the watermark: {why}"))
    }

    /// Lets go of the database. Returns whether its files must be written again before they are trusted: a sync failed, of
    /// a commit or at the end.
    pub fn close(mut self) -> bool {
        let ended = self.let_go();
        self.unsynced || ended.is_err_and(|why| !is_full(&why))
    }

    /// sled unwraps its last sync: a drop that panics.
    fn let_go(&mut self) -> Result<(), String> {
        let (db, segments) = (self.db.take(), std::mem::take(&mut self.segments));
        guarded(move || {
            drop((segments, db));
            Ok(())
        })
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
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.index.range((from, Unbounded)).next().map(|(key, _)| *key)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// Whether the disk or the message is to blame.
    pub fn read(&self, key: Key) -> Result<Sealed, Unread> {
        let read = catch_unwind(AssertUnwindSafe(|| self.look_up(key)));
        read.unwrap_or_else(|payload| Err(Unread::Disk(panicked(payload.as_ref()))))
    }

    fn look_up(&self, key: Key) -> Result<Sealed, Unread> {
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

    /// The messages of a class, the oldest first.
    pub fn of_class(&self, class: Class) -> impl Iterator<Item = Key> + '_ {
        self.classes.get(&class).into_iter().flatten().copied()
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

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(why) = self.let_go() {
            tracing::warn!("close the store: {why}");
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
