//! A tape: what sources delivered, kept to be played again. Knows files, not ports.
//!
//! ```text
//! "KLTAPE" version:u8=2 '\n'           8 bytes
//! head: len:u32le crc:u32le JSON       {"boot":"…","sources":["pump",…],"models":{…},"calibrations":{…}}
//! then blocks, each:                   len:u32le crc:u32le zstd[len]
//!   unpacked, records, each:           len:u32le payload[len]
//!     payload = kind:u8 source:u16le boot_ns:u64le wall_ms:i64le clk:u8 body…
//!       kind 1 frames (n:u32le, n × from:u32le to:u32le, bytes)   2 tick   3 break (why)   4 fault (fault:u8 n:u32le)
//! ```
//! The CRC-32 covers what stands in the file. A torn last block ends the tape; anything else that does not check is an
//! error. Version 1 had records without blocks, and lines only; it is still played.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    path::Path,
};

use bytes::{Buf, Bytes};

use crate::{
    error::{Context, Fatal},
    flow::{Arrival, Clk, Fault, Flaw, FrameBatch, SourceId, Stamp},
    host::looks,
    limits,
};

const MAGIC: &[u8; 8] = b"KLTAPE\x02\n";
const MAGIC_1: &[u8; 8] = b"KLTAPE\x01\n";

impl Head {
    /// Of a tape that is recorded now.
    pub fn new(boot: &str, sources: Vec<String>) -> Self {
        let served = Served::default();
        Self { boot: boot.to_owned(), sources, program: env!("CARGO_PKG_VERSION").into(), served }
    }
}

/// The tape's first record.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Head {
    /// Boot in which it was recorded.
    pub boot: String,
    /// Names of the sources; a record's source is an index into this.
    pub sources: Vec<String>,
    /// The program that recorded it: another one may decode it otherwise.
    #[serde(default)]
    pub program: String,
    /// What evaluated the sources, on a tape of an alarm.
    #[serde(flatten)]
    pub served: Served,
}

/// The models that served while a tape was made: a replay with others gives other scores.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Served {
    /// The model of each pipeline, by the pipeline's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, Model>,
    /// What was learnt: the text of each file of calibrations, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub calibrations: BTreeMap<String, String>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Model {
    /// `name@version`
    pub model: String,
    /// Of the ONNX file, hex.
    pub sha256: String,
}

/// Records on their way into a block.
#[derive(Debug, Default)]
pub struct Block(Vec<u8>);

impl Block {
    /// Appends one arrival; `true`: the block is full.
    pub fn push(&mut self, arrival: &Arrival) -> bool {
        let (kind, source) = match arrival {
            Arrival::Frames(batch) => (1u8, batch.source),
            Arrival::Tick(source, _) => (2, *source),
            Arrival::Break(source, ..) => (3, *source),
            Arrival::Fault(source, ..) => (4, *source),
        };
        let (at, stamp) = (self.0.len(), arrival.stamp());
        self.0.extend([0; 4]);
        self.0.push(kind);
        self.0.extend(source.0.to_le_bytes());
        self.0.extend(stamp.boot_ns.to_le_bytes());
        self.0.extend(stamp.wall_ms.unwrap_or(i64::MIN).to_le_bytes());
        self.0.push(stamp.clk as u8);
        match arrival {
            Arrival::Frames(batch) => {
                self.0.extend((batch.ranges.len() as u32).to_le_bytes());
                batch
                    .ranges
                    .iter()
                    .for_each(|(from, to)| self.0.extend([from.to_le_bytes(), to.to_le_bytes()].concat()));
                self.0.extend_from_slice(&batch.bytes);
            }
            Arrival::Tick(..) => {}
            Arrival::Break(_, _, why) => self.0.extend_from_slice(why.as_bytes()),
            Arrival::Fault(_, _, fault, n) => {
                self.0.push(*fault as u8);
                self.0.extend(n.to_le_bytes());
            }
        }
        let len = (self.0.len() - at - 4) as u32;
        self.0[at..at + 4].copy_from_slice(&len.to_le_bytes());
        self.0.len() >= limits::TAPE_BLOCK_BYTES
    }

    /// Packed as it stands in the file, head and all; `None`: nothing is in it. It is empty afterwards.
    pub fn pack(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let packed = zstd::bulk::compress(&self.0, 1)?;
        self.0.clear();
        Ok(Some(framed(&packed)))
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_le_bytes().to_vec();
    out.extend(crc32fast::hash(payload).to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// A tape of blocks that were packed before.
pub fn whole<'a>(head: &Head, blocks: impl Iterator<Item = &'a [u8]>) -> std::io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(framed(&serde_json::to_vec(head)?));
    blocks.for_each(|block| bytes.extend_from_slice(block));
    Ok(bytes)
}

/// Writes a tape.
pub struct Recorder {
    file: BufWriter<File>,
    block: Block,
}

impl Recorder {
    /// Creates the file; an existing one is never overwritten.
    pub fn create(path: &Path, head: &Head) -> Result<Self, Fatal> {
        let what = || format!("create tape {}", path.display());
        let file = File::create_new(path).context(what())?;
        let mut recorder = Self { file: BufWriter::new(file), block: Block::default() };
        recorder.file.write_all(MAGIC).context(what())?;
        let head = serde_json::to_vec(head).context(what())?;
        recorder.file.write_all(&framed(&head)).context(what())?;
        Ok(recorder)
    }

    /// Appends one arrival.
    pub fn write(&mut self, arrival: &Arrival) -> std::io::Result<()> {
        if self.block.push(arrival) { self.close_block() } else { Ok(()) }
    }

    /// What came so far goes to the file: a torn tape ends here at the earliest.
    pub fn close_block(&mut self) -> std::io::Result<()> {
        if let Some(block) = self.block.pack()? {
            self.file.write_all(&block)?;
        }
        self.file.flush()
    }

    /// Everything to the disk.
    pub fn finish(mut self) -> std::io::Result<()> {
        self.close_block()?;
        self.file.get_ref().sync_all()
    }
}

/// Reads a tape.
pub struct Player {
    file: BufReader<File>,
    path: String,
    record: u64,
    version: u8,
    /// What is left of the block that is being read.
    block: Bytes,
    /// What the tape says of itself.
    pub head: Head,
}

impl Player {
    /// Opens and checks the head.
    pub fn open(path: &Path) -> Result<Self, Fatal> {
        let what = || format!("open tape {}", path.display());
        let mut file = BufReader::new(File::open(path).context(what())?);
        let head = file.fill_buf().context(what())?;
        if !head.starts_with(&MAGIC[..6]) {
            let text = format!("{}: not a tape but {}; `kentledge record` makes tapes", what(), looks::like(head));
            return Err(Fatal::failed(text));
        }
        let mut magic = [0u8; 8];
        file.read_exact(&mut magic).context(what())?;
        if magic != *MAGIC && magic != *MAGIC_1 {
            return Err(Fatal::failed(format!("{}: tape version {} is not known here", what(), magic[6])));
        }
        let head = Head { program: String::new(), ..Head::new("", Vec::new()) };
        let (version, block) = (magic[6], Bytes::new());
        let mut player = Self { file, path: path.display().to_string(), record: 0, version, block, head };
        let head = player.payload()?.ok_or_else(|| Fatal::failed(format!("{}: it has no head", what())))?;
        player.head = serde_json::from_slice(&head).context(what())?;
        Ok(player)
    }

    /// The next record; `None` at the end.
    fn record(&mut self) -> Result<Option<Bytes>, Fatal> {
        if self.version == 1 {
            return self.payload();
        }
        while self.block.is_empty() {
            let Some(packed) = self.payload()? else { return Ok(None) };
            let most = limits::TAPE_BLOCK_BYTES + limits::TAPE_RECORD_BYTES;
            self.block = zstd::bulk::decompress(&packed, most).map_err(|why| self.bad(&why.to_string()))?.into();
        }
        if self.block.len() < 4 {
            return Err(self.bad("it ends within a record"));
        }
        let len = self.block.get_u32_le() as usize;
        if len > self.block.len() {
            return Err(self.bad("it ends within a record"));
        }
        Ok(Some(self.block.split_to(len)))
    }

    fn bad(&self, why: &str) -> Fatal {
        Fatal::failed(format!("tape {}: record {}: {why}", self.path, self.record))
    }

    /// The next arrival; `None` at the end.
    pub fn read(&mut self) -> Result<Option<Arrival>, Fatal> {
        let Some(payload) = self.record()? else {
            return Ok(None);
        };
        let bad = |why: &str| self.bad(why);
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
            1 if self.version == 1 => {
                Arrival::Frames(FrameBatch { source, stamp, ranges: lines(body), bytes: payload.slice(20..) })
            }
            1 => {
                let (ranges, at) = ranges(body).ok_or_else(|| bad("its frames do not fit it"))?;
                Arrival::Frames(FrameBatch { source, stamp, ranges, bytes: payload.slice(20 + at..) })
            }
            2 => Arrival::Tick(source, stamp),
            3 => Arrival::Break(source, stamp, "recorded"),
            4 => {
                let fault = body.first().and_then(|fault| Fault::ALL.get(usize::from(*fault)));
                let n = body.get(1..5).map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]));
                let (fault, n) = fault.zip(n).ok_or_else(|| bad("a fault that is not known here"))?;
                Arrival::Fault(source, stamp, *fault, n)
            }
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

/// Ranges of frames, and where their bytes begin.
fn ranges(body: &[u8]) -> Option<(Vec<(u32, u32)>, usize)> {
    let word = |at: usize| Some(u32::from_le_bytes(body.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let n = word(0)? as usize;
    let begin = n.checked_mul(8)?.checked_add(4)?;
    let bytes = body.len().checked_sub(begin)? as u32;
    let fits = |(from, to): &(u32, u32)| from <= to && *to <= bytes || *from == u32::MAX;
    let all = (0..n).map(|i| Some((word(4 + 8 * i)?, word(8 + 8 * i)?))).collect::<Option<Vec<_>>>()?;
    all.iter().all(fits).then_some((all, begin))
}

/// Ranges of lines, in the tapes of version 1; empty ones stand for frames that were too long.
fn lines(body: &[u8]) -> Vec<(u32, u32)> {
    let mut from = 0;
    let range = |end: usize| match std::mem::replace(&mut from, end as u32 + 1) {
        from if from == end as u32 => Flaw::Oversize.mark(),
        from => (from, end as u32),
    };
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
        let head = Head { program: "1".into(), ..Head::new("b", vec!["pump".into()]) };
        let mut recorder = Recorder::create(&path, &head).expect("create");
        let stamp = Stamp { boot_ns: 5, wall_ms: None, clk: Clk::Unset };
        let bytes = Bytes::from_static(b"1,23,4");
        let batch =
            FrameBatch { source: SourceId(0), stamp, bytes, ranges: vec![(0, 3), Flaw::Checksum.mark(), (3, 6)] };
        recorder.write(&Arrival::Frames(batch)).expect("write");
        recorder.write(&Arrival::Fault(SourceId(0), stamp, Fault::Storm, 3)).expect("write");
        recorder.close_block().expect("write");
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
        assert_eq!(batch.frames().collect::<Vec<_>>(), [Ok(&b"1,2"[..]), Err(Flaw::Checksum), Ok(b"3,4")]);
        assert_eq!(batch.stamp, Stamp { boot_ns: 5, wall_ms: None, clk: Clk::Unset });
        assert!(matches!(player.read().expect("read"), Some(Arrival::Fault(_, _, Fault::Storm, 3))));
        assert!(matches!(player.read().expect("read"), Some(Arrival::Tick(..))));
        assert!(player.read().expect("read").is_none());
    }

    /// As the first recorder wrote them: records without blocks, lines joined by LF.
    #[test]
    fn a_tape_of_version_1_is_still_played() {
        let path = std::env::temp_dir().join(format!("kentledge-tape-v1-{}", std::process::id()));
        let mut bytes = MAGIC_1.to_vec();
        bytes.extend(framed(br#"{"boot":"b","sources":["pump"]}"#));
        let mut payload = vec![1, 0, 0];
        payload.extend(5u64.to_le_bytes());
        payload.extend(i64::MIN.to_le_bytes());
        payload.push(2);
        payload.extend(b"1,2\n\n3,4\n");
        bytes.extend(framed(&payload));
        std::fs::write(&path, bytes).expect("write");
        let mut player = Player::open(&path).expect("open");
        let Some(Arrival::Frames(batch)) = player.read().expect("read") else { panic!("frames expected") };
        assert_eq!(batch.frames().collect::<Vec<_>>(), [Ok(&b"1,2"[..]), Err(Flaw::Oversize), Ok(b"3,4")]);
        assert_eq!((batch.stamp.boot_ns, player.head.program.as_str()), (5, ""));
        assert!(player.read().expect("read").is_none());
        std::fs::remove_file(&path).expect("remove");
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
            assert!(outcome.as_ref().map_or(true, |n| *n < 3), "byte {at}: {outcome:?}");
        }
    }
}
