//! Finds stored messages in the files of a database that does not open any more, or opens with less than was stored. It
//! needs nothing of the database's own structure: a message is a version byte, a checksum, a place and a zstd frame, and
//! is taken only if its checksum fits.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::sealed::{HEAD, STORED_MAX, Sealed, VERSION};

/// First bytes of every zstd frame (RFC 8878, 3.1.1), little endian.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Read at a time.
const CHUNK: usize = 1 << 20;

/// Messages that were found.
#[derive(Debug)]
pub struct Salvage {
    sources: Vec<Source>,
    places: BTreeMap<u64, Where>,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone, Copy)]
struct Where {
    source: usize,
    offset: u64,
    length: usize,
}

impl Salvage {
    /// Looks through all files below `folder` for messages with a place of at least `oldest`: those before it were
    /// acknowledged.
    pub fn search(folder: &Path, oldest: u64) -> Self {
        Self::search_in(files(folder).into_iter().map(Source::File).collect(), oldest)
    }

    /// The same in what a file held.
    pub fn search_bytes(bytes: Vec<u8>, oldest: u64) -> Self {
        Self::search_in(vec![Source::Bytes(bytes)], oldest)
    }

    fn search_in(sources: Vec<Source>, oldest: u64) -> Self {
        let mut places = BTreeMap::new();
        for (source, bytes) in sources.iter().enumerate() {
            let each = |offset, length, place| {
                if place >= oldest {
                    places.insert(place, Where { source, offset, length });
                }
            };
            match bytes {
                Source::File(path) => File::open(path).map_or((), |file| each_message(file, each)),
                Source::Bytes(bytes) => each_message(bytes.as_slice(), each),
            }
        }
        Self { sources, places }
    }

    /// The messages in their order, each with its place.
    pub fn messages(&self) -> impl Iterator<Item = (u64, Sealed)> + '_ {
        self.places.values().filter_map(|found| {
            let mut bytes = vec![0; found.length];
            match &self.sources[found.source] {
                Source::File(path) => File::open(path).ok()?.read_exact_at(&mut bytes, found.offset).ok()?,
                Source::Bytes(all) => {
                    let start = found.offset as usize;
                    bytes.copy_from_slice(all.get(start..start + found.length)?);
                }
            }
            Sealed::from_bytes(&bytes).ok()
        })
    }
}

/// Calls `each` with offset, length and place of each message.
fn each_message(mut file: impl Read, mut each: impl FnMut(u64, usize, u64)) {
    let (mut buffer, mut base, mut end) = (Vec::new(), 0u64, false);
    while !end {
        let before = buffer.len();
        // A disk with bad sectors ends the file where it does not read.
        end = file.by_ref().take(CHUNK as u64).read_to_end(&mut buffer).is_err() || buffer.len() == before;
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

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all
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
        let found = Salvage::search(dir.path(), 3000);
        let expected: Vec<u64> = (3000..20_000).filter(|place| place % 3 != 0).collect();
        assert_eq!(found.places.keys().copied().collect::<Vec<_>>(), expected);
        let whole = || expected.iter().map(|place| (*place, all[*place as usize].clone()));
        assert!(found.messages().eq(whole()));
        let bytes = fs::read(dir.path().join("blobs/7")).expect("read");
        assert!(Salvage::search_bytes(bytes, 3000).messages().eq(whole()));
    }
}
