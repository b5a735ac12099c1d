//! Finds stored messages in the files of a database that does not open any more, or opens with less than was stored. It
//! needs nothing of the database's own structure: a message is a version byte, a checksum, a place and a zstd frame, and
//! is taken only if its checksum fits. What cannot be read is stepped over and reported, so that it is tried again later.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::sealed::{HEAD, STORED_MAX, Sealed, VERSION};
use crate::limits;

/// First bytes of every zstd frame (RFC 8878, 3.1.1), little endian.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Read at a time.
const CHUNK: usize = 1 << 20;
/// What is stepped over where a disk does not read.
const BLOCK: u64 = 4096;
/// And so often in one file; beyond it the whole file is taken for unreadable now.
const SKIPS: usize = 64;

/// Messages that were found.
#[derive(Debug, Clone, Default)]
pub struct Salvage {
    sources: Vec<Source>,
    places: BTreeMap<u64, Where>,
    /// The first thing that could not be read.
    pub unread: Option<String>,
}

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    Bytes(Arc<Vec<u8>>),
}

#[derive(Debug, Clone, Copy)]
struct Where {
    source: usize,
    offset: u64,
    length: usize,
}

/// What the files of a store hold before it is opened: sled wipes what follows a place that it cannot read or does not
/// understand. Of a large store the newest messages, for those it wipes.
#[derive(Debug)]
pub enum Before {
    /// All files.
    Whole(Vec<(PathBuf, Arc<Vec<u8>>)>),
    /// The newest messages.
    Newest(Salvage),
}

impl Before {
    /// Reads all files below `folder`; `alive` is called now and then.
    ///
    /// # Errors
    /// Something cannot be read now: then the store is not to be opened.
    pub fn read(folder: &Path, oldest: u64, alive: &dyn Fn()) -> io::Result<Self> {
        let files = files(folder)?;
        let size = files.iter().map(|path| fs::metadata(path).map(|meta| meta.len())).sum::<io::Result<u64>>()?;
        if size <= limits::SALVAGE_BYTES {
            let read = |path: PathBuf| fs::read(&path).map(|bytes| (path, Arc::new(bytes)));
            return Ok(Self::Whole(files.into_iter().map(read).collect::<io::Result<_>>()?));
        }
        let all = Salvage::search_in(files.into_iter().map(Source::File).collect(), oldest, alive);
        match &all.unread {
            Some(why) => Err(io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32)).inspect_err(|_| {
                tracing::warn!("read the store before opening it: {why}; it is not opened now");
            }),
            None => Ok(Self::Newest(all.held(limits::SALVAGE_BYTES)?)),
        }
    }

    /// Puts the files back as they were, after an opening that failed: what it wiped would else be lost with the process. Of
    /// a large store only the process has it.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn put_back(&self, folder: &Path) -> io::Result<()> {
        let Self::Whole(before) = self else { return Ok(()) };
        for (path, bytes) in before {
            if fs::read(path).ok().as_ref() == Some(&**bytes) {
                continue;
            }
            // A file of its own: a thread of the database may still write to the old one.
            let fresh = path.with_extension("back");
            let mut file = File::create(&fresh)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            File::open(path.parent().unwrap_or(folder))?.sync_all()?;
        }
        for path in files(folder)? {
            if before.iter().all(|(known, _)| *known != path) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The messages in it from `oldest` on.
    pub fn salvage(&self, oldest: u64) -> Salvage {
        match self {
            Self::Whole(files) => {
                let sources = files.iter().map(|(_, bytes)| Source::Bytes(bytes.clone()));
                Salvage::search_in(sources.collect(), oldest, &|| {})
            }
            Self::Newest(salvage) => salvage.clone(),
        }
    }
}

impl Salvage {
    /// Looks through all files below `folder` for messages with a place of at least `oldest`: those before it were
    /// acknowledged. `alive` is called now and then.
    pub fn search(folder: &Path, oldest: u64, alive: &dyn Fn()) -> Self {
        match files(folder) {
            Ok(files) => Self::search_in(files.into_iter().map(Source::File).collect(), oldest, alive),
            Err(why) => Self { unread: Some(format!("{}: {why}", folder.display())), ..Self::default() },
        }
    }

    fn search_in(sources: Vec<Source>, oldest: u64, alive: &dyn Fn()) -> Self {
        let (mut places, mut unread) = (BTreeMap::new(), None);
        for (source, bytes) in sources.iter().enumerate() {
            alive();
            let each = |offset, length, place| {
                if place >= oldest {
                    places.insert(place, Where { source, offset, length });
                }
            };
            let failed = match bytes {
                Source::File(path) => File::open(path)
                    .map_or_else(Some, |file| each_message(|buffer, at| file.read_at(buffer, at), each, alive))
                    .map(|why| format!("{}: {why}", path.display())),
                Source::Bytes(bytes) => {
                    each_message(|buffer, at| Ok(copy(bytes, buffer, at)), each, alive).map(|why| why.to_string())
                }
            };
            unread = unread.or(failed);
        }
        Self { sources, places, unread }
    }

    /// The newest messages of it in memory, `bytes_max` at the most.
    fn held(&self, bytes_max: u64) -> io::Result<Self> {
        let (mut bytes, mut places) = (Vec::new(), BTreeMap::new());
        for (place, found) in self.places.iter().rev() {
            if bytes.len() + found.length > bytes_max as usize {
                break;
            }
            places.insert(*place, Where { source: 0, offset: bytes.len() as u64, length: found.length });
            bytes.extend(self.bytes(*found)?);
        }
        Ok(Self { sources: vec![Source::Bytes(Arc::new(bytes))], places, unread: None })
    }

    /// With what another one found besides.
    pub fn join(mut self, other: Self) -> Self {
        let shift = self.sources.len();
        self.sources.extend(other.sources);
        for (place, found) in other.places {
            self.places.entry(place).or_insert(Where { source: found.source + shift, ..found });
        }
        self.unread = self.unread.or(other.unread);
        self
    }

    /// The highest place that was found.
    pub fn last(&self) -> Option<u64> {
        self.places.keys().next_back().copied()
    }

    fn bytes(&self, found: Where) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; found.length];
        match &self.sources[found.source] {
            Source::File(path) => File::open(path)?.read_exact_at(&mut bytes, found.offset)?,
            Source::Bytes(all) => {
                copy(all, &mut bytes, found.offset);
            }
        }
        Ok(bytes)
    }

    /// The messages in their order, each with its place, without those that `known` has.
    pub fn messages(&self, known: impl Fn(u64) -> bool) -> impl Iterator<Item = (u64, Result<Sealed, String>)> {
        let unknown = self.places.iter().filter(move |(place, _)| !known(**place));
        unknown.map(|(place, found)| {
            let bytes = self.bytes(*found).map_err(|why| why.to_string());
            (*place, bytes.and_then(|bytes| Sealed::from_bytes(&bytes).map(|(_, sealed)| sealed)))
        })
    }
}

/// Copies what there is from `at` on. Returns how much.
fn copy(from: &[u8], to: &mut [u8], at: u64) -> usize {
    let from = from.get(at as usize..).unwrap_or_default();
    let n = from.len().min(to.len());
    to[..n].copy_from_slice(&from[..n]);
    n
}

/// Calls `each` with offset, length and place of each message. Returns the first error of reading.
fn each_message(
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    mut each: impl FnMut(u64, usize, u64),
    alive: &dyn Fn(),
) -> Option<io::Error> {
    let (mut buffer, mut base, mut end) = (Vec::new(), 0u64, false);
    let (mut failed, mut skips) = (None, 0);
    while !end {
        alive();
        let before = buffer.len();
        let at = base + before as u64;
        buffer.resize(before + CHUNK, 0);
        let n = match read(&mut buffer[before..], at) {
            Ok(n) => {
                end = n == 0;
                n
            }
            // A bad sector is stepped over: what is behind it may be whole.
            Err(why) => {
                failed.get_or_insert(why);
                skips += 1;
                end = skips > SKIPS;
                (BLOCK - at % BLOCK) as usize
            }
        };
        buffer.truncate(before + n);
        let mut from = 0;
        while let Some(at) = memchr::memmem::find(&buffer[from..], &ZSTD_MAGIC).map(|at| from + at) {
            if !end && buffer.len() - at < STORED_MAX {
                break;
            }
            from = at + 1;
            if let Some((start, length, place)) = message(&buffer, at) {
                each(base + start as u64, length, place);
            }
        }
        // What may be the beginning of a message stays for the next chunk.
        let done = from.max(buffer.len().saturating_sub(STORED_MAX)).saturating_sub(HEAD).min(buffer.len());
        buffer.drain(..done);
        base += done as u64;
    }
    failed
}

/// Start, length and place of the message whose frame begins at `at`.
fn message(buffer: &[u8], at: usize) -> Option<(usize, usize, u64)> {
    let start = at.checked_sub(HEAD)?;
    if buffer[start] != VERSION {
        return None;
    }
    let length = HEAD + zstd::zstd_safe::find_frame_compressed_size(&buffer[at..]).ok()?;
    let (place, _) = Sealed::from_bytes(buffer.get(start..start.checked_add(length)?)?).ok()?;
    Some((start, length, place))
}

/// All files below a folder.
///
/// # Errors
/// A folder cannot be read.
pub fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_dir() {
            all.extend(files(&path)?);
        } else {
            all.push(path);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_messages_are_found_among_rubbish_and_torn_ones_are_not() {
        let dir = tempfile::tempdir().expect("folder");
        let all: Vec<Sealed> = (0..20_000).map(|seq| Sealed::sample(seq, 200)).collect();
        let mut bytes = Vec::new();
        for (place, message) in all.iter().enumerate() {
            bytes.extend((0..fastrand::usize(0..99)).map(|_| fastrand::u8(..)));
            bytes.extend(Sealed::frame(place as u64, &message.pack().expect("packed")));
            if place % 3 == 0 {
                let at = bytes.len() - 20;
                bytes[at] ^= 1;
            }
        }
        fs::create_dir(dir.path().join("blobs")).expect("folder");
        fs::write(dir.path().join("blobs/7"), bytes).expect("write");
        let found = Salvage::search(dir.path(), 3000, &|| {});
        let expected: Vec<u64> = (3000..20_000).filter(|place| place % 3 != 0).collect();
        assert_eq!(found.places.keys().copied().collect::<Vec<_>>(), expected);
        let whole = || expected.iter().map(|place| (*place, Ok(all[*place as usize].clone())));
        assert!(found.messages(|_| false).eq(whole()));
        let Ok(before) = Before::read(dir.path(), 3000, &|| {}) else { panic!("read") };
        assert!(before.salvage(3000).messages(|_| false).eq(whole()));
        let newest: Vec<u64> = found.held(10_000).expect("held").places.keys().copied().collect();
        assert!(newest.len() < expected.len() && expected.ends_with(&newest), "{newest:?}");
    }

    #[test]
    fn files_are_put_back_as_they_were_before_a_failed_opening() {
        let dir = tempfile::tempdir().expect("folder");
        let path = |name| dir.path().join(name);
        fs::create_dir(path("blobs")).expect("folder");
        for name in ["db", "conf", "blobs/7"] {
            fs::write(path(name), name).expect("write");
        }
        let before = Before::read(dir.path(), 0, &|| {}).expect("read");
        fs::write(path("db"), "wiped").expect("write");
        fs::write(path("snap.1"), "of what was wiped").expect("write");
        fs::remove_file(path("blobs/7")).expect("remove");
        before.put_back(dir.path()).expect("put back");
        let mut there: Vec<_> = files(dir.path()).expect("files");
        there.sort();
        assert_eq!(there, ["blobs/7", "conf", "db"].map(path));
        assert!(["blobs/7", "conf", "db"].iter().all(|name| fs::read(path(*name)).expect("read") == name.as_bytes()));
    }

    #[test]
    fn a_block_that_does_not_read_costs_its_messages_and_is_reported() {
        let frames: Vec<Vec<u8>> =
            (0..100).map(|seq| Sealed::frame(seq, &Sealed::sample(seq, 3000).pack().expect("packed"))).collect();
        let bytes = frames.concat();
        let bad = 50 * frames[0].len() as u64 / BLOCK * BLOCK;
        let read = |buffer: &mut [u8], at: u64| {
            let n = buffer.len().min(bad.checked_sub(at).filter(|n| *n > 0).map_or(usize::MAX, |n| n as usize));
            if at / BLOCK == bad / BLOCK {
                Err(io::Error::from(nix::errno::Errno::EIO))
            } else {
                Ok(copy(&bytes, &mut buffer[..n], at))
            }
        };
        let mut found = Vec::new();
        let failed = each_message(read, |_, _, place| found.push(place), &|| {});
        assert!(failed.is_some_and(|why| why.raw_os_error() == Some(nix::errno::Errno::EIO as i32)));
        assert!(found.contains(&0) && found.contains(&99) && (90..100).contains(&found.len()), "{found:?}");
    }
}
