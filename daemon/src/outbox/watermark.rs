//! What the store held when it was last synced, in a file of its own: sled opens a truncated database in silence, and
//! this is how it is noticed. Two slots on two pages are written in turn, so a torn write leaves the previous mark.
//!
//! ```text
//! slot (64 B at 0 and at 4096):
//!    magic "KLWM" │ version: u32le = 1 │ generation, messages, records, digest, oldest: u64le each │ crc: u32le
//! ```

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

const MAGIC: &[u8; 4] = b"KLWM";
const VERSION: u32 = 1;
const SLOT: usize = 52;
const PAGE: u64 = 4096;

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Commits since the store was made.
    pub generation: u64,
    /// Messages.
    pub messages: u64,
    /// Records in them.
    pub records: u64,
    /// All places, folded: two sets of the same size differ in it.
    pub digest: u64,
    /// The lowest place in use.
    pub oldest: u64,
}

impl Mark {
    fn to_bytes(self) -> [u8; SLOT] {
        let mut out = [0; SLOT];
        out[..4].copy_from_slice(MAGIC);
        out[4..8].copy_from_slice(&VERSION.to_le_bytes());
        let fields = [self.generation, self.messages, self.records, self.digest, self.oldest];
        for (to, from) in out[8..48].chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[..48]);
        out[48..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn from_bytes(slot: &[u8; SLOT]) -> Option<Self> {
        let (head, crc) = slot.split_at(48);
        if &head[..4] != MAGIC || head[4..8] != VERSION.to_le_bytes() || crc32fast::hash(head).to_le_bytes() != *crc {
            return None;
        }
        let mut fields = head[8..].chunks_exact(8).map(|b| b.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)));
        let mut next = || fields.next();
        Some(Self { generation: next()?, messages: next()?, records: next()?, digest: next()?, oldest: next()? })
    }
}

/// The file.
#[derive(Debug)]
pub struct Watermark {
    file: File,
}

impl Watermark {
    /// Opens it, or makes it; its two pages are there from the beginning, so a full disk does not stop it later.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() < 2 * PAGE {
            file.write_all_at(&[0; 2 * PAGE as usize], 0)?;
            file.sync_all()?;
            if let Some(folder) = path.parent() {
                File::open(folder)?.sync_all()?;
            }
        }
        Ok(Self { file })
    }

    /// The newest valid mark; `None` if neither slot is valid.
    ///
    /// # Errors
    /// It cannot be read now: that is not the same as none, which would hide what is missing.
    pub fn read(path: &Path) -> io::Result<Option<Mark>> {
        let file = match File::open(path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let slot = |at| {
            let mut bytes = [0; SLOT];
            match file.read_exact_at(&mut bytes, at) {
                Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                other => other.map(|()| Mark::from_bytes(&bytes)),
            }
        };
        Ok([slot(0)?, slot(PAGE)?].into_iter().flatten().max_by_key(|mark| mark.generation))
    }

    /// Writes a mark and syncs it.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn write(&self, mark: Mark) -> io::Result<()> {
        self.file.write_all_at(&mark.to_bytes(), mark.generation % 2 * PAGE)?;
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_slot_leaves_the_one_before_it() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("watermark");
        assert_eq!(Watermark::read(&path).expect("read"), None);
        let file = Watermark::open(&path).expect("open");
        assert_eq!(Watermark::read(&path).expect("read"), None);
        let mark = |generation| Mark { generation, messages: 2, records: 30, digest: 7, oldest: 1 << 32 };
        file.write(mark(4)).expect("write");
        file.write(mark(5)).expect("write");
        assert_eq!(Watermark::read(&path).expect("read"), Some(mark(5)));
        for at in 0..SLOT as u64 {
            let mut byte = [0];
            file.file.read_exact_at(&mut byte, PAGE + at).expect("read");
            file.file.write_all_at(&[byte[0] ^ 16], PAGE + at).expect("tear");
            assert_eq!(Watermark::read(&path).expect("read"), Some(mark(4)), "byte {at}");
            file.file.write_all_at(&byte, PAGE + at).expect("mend");
        }
        file.file.set_len(PAGE).expect("cut");
        assert_eq!(Watermark::read(&path).expect("read"), Some(mark(4)));
    }
}
