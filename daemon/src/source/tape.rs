//! A tape: what sources delivered, kept to be played again. Knows files, not ports.
//!
//! ```text
//! "KLTAPE" version:u8=1 '\n'           8 bytes
//! head: len:u32le crc:u32le JSON       {"boot":"…","sources":["pump",…]}
//! then records, each:                  len:u32le crc:u32le payload[len]
//!   payload = kind:u8 source:u16le boot_ns:u64le wall_ms:i64le clk:u8 bytes…
//!     kind 1 frames (joined by LF)   2 tick   3 break (bytes = why)
//! ```
//! The CRC-32 covers the payload. A torn last record ends the tape; anything else that does not check is an error.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    path::Path,
};

use bytes::Bytes;

use crate::{
    error::{Context, Fatal},
    flow::{Arrival, Clk, FrameBatch, SourceId, Stamp},
    limits,
};

const MAGIC: &[u8; 8] = b"KLTAPE\x01\n";

/// The tape's first record.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Head {
    /// Boot in which it was recorded.
    pub boot: String,
    /// Names of the sources; a record's source is an index into this.
    pub sources: Vec<String>,
}

/// Writes a tape.
pub struct Recorder {
    file: BufWriter<File>,
    payload: Vec<u8>,
}

impl Recorder {
    /// Creates the file; an existing one is never overwritten.
    pub fn create(path: &Path, head: &Head) -> Result<Self, Fatal> {
        let what = || format!("create tape {}", path.display());
        let file = File::create_new(path).context(what())?;
        let mut recorder = Self { file: BufWriter::new(file), payload: Vec::new() };
        recorder.file.write_all(MAGIC).context(what())?;
        recorder.payload = serde_json::to_vec(head).context(what())?;
        recorder.flush_payload().context(what())?;
        Ok(recorder)
    }

    /// Appends one arrival.
    pub fn write(&mut self, arrival: &Arrival) -> std::io::Result<()> {
        self.payload.clear();
        let (kind, source) = match arrival {
            Arrival::Frames(batch) => (1u8, batch.source),
            Arrival::Tick(source, _) => (2, *source),
            Arrival::Break(source, ..) => (3, *source),
        };
        let stamp = arrival.stamp();
        self.payload.push(kind);
        self.payload.extend(source.0.to_le_bytes());
        self.payload.extend(stamp.boot_ns.to_le_bytes());
        self.payload.extend(stamp.wall_ms.unwrap_or(i64::MIN).to_le_bytes());
        self.payload.push(stamp.clk as u8);
        match arrival {
            Arrival::Frames(batch) => {
                for frame in batch.frames() {
                    self.payload.extend_from_slice(frame);
                    self.payload.push(b'\n');
                }
            }
            Arrival::Tick(..) => {}
            Arrival::Break(_, _, why) => self.payload.extend_from_slice(why.as_bytes()),
        }
        self.flush_payload()
    }

    /// Everything to the disk.
    pub fn finish(mut self) -> std::io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    fn flush_payload(&mut self) -> std::io::Result<()> {
        self.file.write_all(&(self.payload.len() as u32).to_le_bytes())?;
        self.file.write_all(&crc32fast::hash(&self.payload).to_le_bytes())?;
        self.file.write_all(&self.payload)
    }
}

/// Reads a tape.
pub struct Player {
    file: BufReader<File>,
    path: String,
    record: u64,
    /// What the tape says of itself.
    pub head: Head,
}

impl Player {
    /// Opens and checks the head.
    pub fn open(path: &Path) -> Result<Self, Fatal> {
        let what = || format!("open tape {}", path.display());
        let mut file = BufReader::new(File::open(path).context(what())?);
        let mut magic = [0u8; 8];
        file.read_exact(&mut magic).context(what())?;
        if magic[..6] != MAGIC[..6] {
            return Err(Fatal::failed(format!("{}: not a tape", what())));
        }
        if magic != *MAGIC {
            return Err(Fatal::failed(format!("{}: tape version {} is not known here", what(), magic[6])));
        }
        let head = Head { boot: String::new(), sources: Vec::new() };
        let mut player = Self { file, path: path.display().to_string(), record: 0, head };
        let head = player.payload()?.ok_or_else(|| Fatal::failed(format!("{}: it has no head", what())))?;
        player.head = serde_json::from_slice(&head).context(what())?;
        Ok(player)
    }

    /// The next arrival; `None` at the end.
    pub fn read(&mut self) -> Result<Option<Arrival>, Fatal> {
        let Some(payload) = self.payload()? else {
            return Ok(None);
        };
        let bad = |why: &str| Fatal::failed(format!("tape {}: record {}: {why}", self.path, self.record));
        let Some((head, body)) = payload.split_at_checked(20) else {
            return Err(bad("too short"));
        };
        let source = SourceId(u16::from_le_bytes([head[1], head[2]]));
        if usize::from(source.0) >= self.head.sources.len() {
            return Err(bad("names a source that the head does not have"));
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let clk = match head[19] {
            0 => Clk::Sync,
            1 => Clk::Hold,
            _ => Clk::Unset,
        };
        let wall_ms = Some(number(11) as i64).filter(|ms| *ms != i64::MIN);
        let stamp = Stamp { boot_ns: number(3), wall_ms, clk };
        Ok(Some(match head[0] {
            1 => Arrival::Frames(FrameBatch { source, stamp, ranges: lines(body), bytes: payload.slice(20..) }),
            2 => Arrival::Tick(source, stamp),
            3 => Arrival::Break(source, stamp, "recorded"),
            kind => return Err(bad(&format!("kind {kind} is not known here"))),
        }))
    }

    fn payload(&mut self) -> Result<Option<Bytes>, Fatal> {
        let mut head = [0u8; 8];
        if !read_whole(&mut self.file, &mut head).context(format!("read tape {}", self.path))? {
            return Ok(None);
        }
        self.record += 1;
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let (len, crc) = (number(0) as usize, number(4));
        let bad = |why: &str| Fatal::failed(format!("tape {}: record {}: {why}", self.path, self.record));
        if len > limits::TAPE_RECORD_BYTES {
            return Err(bad(&format!("{len} bytes are more than a record may have")));
        }
        let mut payload = vec![0u8; len];
        if !read_whole(&mut self.file, &mut payload).context(format!("read tape {}", self.path))? {
            return Ok(None);
        }
        if crc32fast::hash(&payload) != crc {
            return Err(bad("its checksum does not match"));
        }
        Ok(Some(payload.into()))
    }
}

/// Ranges of lines, empty ones too: they stand for frames that were too long.
fn lines(body: &[u8]) -> Vec<(u32, u32)> {
    let mut from = 0;
    let range = |end: usize| (std::mem::replace(&mut from, end as u32 + 1), end as u32);
    memchr::memchr_iter(b'\n', body).map(range).collect()
}

/// Fills `into`; `false` when the file ends before it is full.
fn read_whole(file: &mut impl Read, into: &mut [u8]) -> std::io::Result<bool> {
    match file.read_exact(into) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(dir: &str) -> (std::path::PathBuf, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("kentledge-tape-{dir}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let head = Head { boot: "b".into(), sources: vec!["pump".into()] };
        let mut recorder = Recorder::create(&path, &head).expect("create");
        let stamp = Stamp { boot_ns: 5, wall_ms: None, clk: Clk::Unset };
        let bytes = Bytes::from_static(b"1,23,4");
        let batch = FrameBatch { source: SourceId(0), stamp, bytes, ranges: vec![(0, 3), (3, 3), (3, 6)] };
        recorder.write(&Arrival::Frames(batch)).expect("write");
        recorder.write(&Arrival::Tick(SourceId(0), stamp)).expect("write");
        recorder.finish().expect("finish");
        let bytes = std::fs::read(&path).expect("read");
        (path, bytes)
    }

    #[test]
    fn what_was_recorded_is_played() {
        let (path, _) = recorded("round");
        let mut player = Player::open(&path).expect("open");
        let Some(Arrival::Frames(batch)) = player.read().expect("read") else { panic!("frames expected") };
        assert_eq!(batch.frames().collect::<Vec<_>>(), [&b"1,2"[..], b"", b"3,4"]);
        assert_eq!(batch.stamp, Stamp { boot_ns: 5, wall_ms: None, clk: Clk::Unset });
        assert!(matches!(player.read().expect("read"), Some(Arrival::Tick(..))));
        assert!(player.read().expect("read").is_none());
    }

    #[test]
    fn every_flipped_byte_is_an_error_or_the_end_and_never_a_panic() {
        let (path, bytes) = recorded("flip");
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 0x20;
            std::fs::write(&path, &torn).expect("write");
            let outcome = Player::open(&path).and_then(|mut player| {
                let mut n = 0;
                while player.read()?.is_some() {
                    n += 1;
                }
                Ok(n)
            });
            assert!(outcome.as_ref().map_or(true, |n| *n < 2), "byte {at}: {outcome:?}");
        }
    }
}
