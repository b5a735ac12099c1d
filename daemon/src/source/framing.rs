//! Bytes into frames: pure, no I/O, no clock. What is refused leaves a mark at its place, so one broken frame costs one
//! frame. Lines end with LF or CR LF; the binary framings are in `packets`.

use bytes::{Bytes, BytesMut};

use super::{cut::Cut, packets::Packets};
use crate::{
    config::{Framing, Serial},
    flow::Flaw,
};

/// The framing of one port.
#[derive(Debug)]
pub enum Cutter {
    /// Text.
    Lines(Lines),
    /// Everything else.
    Packets(Packets),
}

impl Cutter {
    /// As the port is configured.
    pub fn new(serial: &Serial) -> Self {
        match serial.framing {
            Framing::Lines => Self::Lines(Lines::new(serial.frame_max)),
            _ => Self::Packets(Packets::new(serial.framing.clone(), serial.check, serial.frame_max)),
        }
    }

    /// Forgets what is half received: what follows is another connection, or bytes are known to be lost.
    pub fn reset(&mut self) -> Cut {
        match self {
            Self::Lines(lines) => {
                lines.reset();
                Cut::default()
            }
            Self::Packets(packets) => packets.give_up(true),
        }
    }

    /// Takes what one read brought.
    pub fn feed(&mut self, chunk: &[u8]) -> Cut {
        match self {
            Self::Lines(lines) => lines.feed(chunk),
            Self::Packets(packets) => packets.feed(chunk),
        }
    }

    /// The line is silent (`limits::FRAME_SILENCE`): a frame that is not whole by now will never be.
    pub fn silent(&mut self) -> Cut {
        match self {
            Self::Lines(_) => Cut::default(),
            Self::Packets(packets) => packets.give_up(false),
        }
    }
}

/// Splits a byte stream at line feeds.
#[derive(Debug)]
pub struct Lines {
    carry: BytesMut,
    frame_max: usize,
    /// In the middle of a line that is already too long.
    skipping: bool,
}

impl Lines {
    /// Frames of at most `frame_max` bytes.
    pub fn new(frame_max: usize) -> Self {
        Self { carry: BytesMut::new(), frame_max, skipping: false }
    }

    /// Forgets a half-received line: what follows is another connection.
    pub fn reset(&mut self) {
        self.carry.clear();
        self.skipping = false;
    }

    /// Takes what one read brought.
    pub fn feed(&mut self, chunk: &[u8]) -> Cut {
        let mut chunk = chunk;
        if self.skipping {
            let Some(end) = memchr::memchr(b'\n', chunk) else {
                return Cut::default();
            };
            self.skipping = false;
            chunk = &chunk[end + 1..];
        }
        let whole = memchr::memrchr(b'\n', chunk).map_or(0, |last| last + 1);
        let mut cut = Cut::default();
        if whole > 0 {
            self.carry.extend_from_slice(&chunk[..whole]);
            cut.bytes = self.carry.split().freeze();
            self.ranges(&cut.bytes, &mut cut.ranges);
        }
        self.carry.extend_from_slice(&chunk[whole..]);
        // A carriage return may be the first half of the line's end.
        let held = self.carry.strip_suffix(b"\r").unwrap_or(&self.carry);
        if held.len() > self.frame_max {
            self.carry.clear();
            self.skipping = true;
            cut.ranges.push(Flaw::Oversize.mark());
        }
        cut
    }

    fn ranges(&self, bytes: &Bytes, ranges: &mut Vec<(u32, u32)>) {
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let to = if end > from && bytes[end - 1] == b'\r' { end - 1 } else { end };
            if to - from > self.frame_max {
                ranges.push(Flaw::Oversize.mark());
            } else if to > from {
                ranges.push((from as u32, to as u32));
            }
            from = end + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(frame_max: usize, chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut got) = (Lines::new(frame_max), Vec::new());
        for chunk in chunks {
            let cut = lines.feed(chunk);
            got.extend(
                cut.ranges
                    .iter()
                    .map(|&(a, b)| cut.bytes.get(a as usize..b as usize).unwrap_or_default())
                    .map(|frame| String::from_utf8_lossy(frame).into_owned()),
            );
        }
        got
    }

    #[test]
    fn frames_are_the_same_however_the_bytes_are_cut() {
        let all = b"1,2\r\n3,4\n\n5,6\n7";
        for size in 1..all.len() {
            let chunks: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(run(64, &chunks), ["1,2", "3,4", "5,6"], "chunks of {size}");
        }
    }

    #[test]
    fn the_longest_line_fits_also_when_its_end_is_cut_in_two() {
        assert_eq!(run(4, &[b"full\r", b"\nok\n"]), ["full", "ok"]);
        assert_eq!(run(4, &[b"full\r", b"x\nok\n"]), ["", "ok"]);
        assert_eq!(run(4, &[b"full\r", b"\r\nok\n"]), ["", "ok"]);
    }

    #[test]
    fn a_line_of_a_megabyte_costs_one_line_and_no_memory() {
        let long = vec![b'x'; 1 << 20];
        let mut chunks: Vec<&[u8]> = vec![b"a\n"];
        chunks.extend(long.chunks(4096));
        chunks.push(b"tail\nb\n");
        assert_eq!(run(1024, &chunks), ["a", "", "b"]);
    }

    #[test]
    fn a_long_line_inside_one_chunk_is_skipped_alone() {
        assert_eq!(run(4, &[b"ok\ntoo long\nfine\n"]), ["ok", "", "fine"]);
    }
}
