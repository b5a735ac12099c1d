//! Bytes into frames: pure, no I/O, no clock. Lines end with LF or CR LF; a line longer than the bound is skipped up
//! to its end and counted, so one broken line costs one line.

use bytes::{Bytes, BytesMut};

/// Splits a byte stream at line feeds.
#[derive(Debug)]
pub struct Lines {
    carry: BytesMut,
    frame_max: usize,
    /// In the middle of a line that is already too long.
    skipping: bool,
    oversize: u32,
}

/// What one read completed.
#[derive(Debug, Default)]
pub struct Cut {
    /// The bytes the ranges point into.
    pub bytes: Bytes,
    /// Start and end of each frame, without line ends; empty lines are left out.
    pub ranges: Vec<(u32, u32)>,
    /// Lines that were too long and are skipped, counted when their skipping begins.
    pub oversize: u32,
}

impl Lines {
    /// Frames of at most `frame_max` bytes.
    pub fn new(frame_max: usize) -> Self {
        Self { carry: BytesMut::new(), frame_max, skipping: false, oversize: 0 }
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
                return Cut { oversize: std::mem::take(&mut self.oversize), ..Cut::default() };
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
        if self.carry.len() > self.frame_max {
            self.carry.clear();
            self.skipping = true;
            self.oversize += 1;
        }
        cut.oversize = std::mem::take(&mut self.oversize);
        cut
    }

    fn ranges(&mut self, bytes: &Bytes, ranges: &mut Vec<(u32, u32)>) {
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let to = if end > from && bytes[end - 1] == b'\r' { end - 1 } else { end };
            if to - from > self.frame_max {
                self.oversize += 1;
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

    fn run(frame_max: usize, chunks: &[&[u8]]) -> (Vec<String>, u32) {
        let (mut lines, mut got, mut oversize) = (Lines::new(frame_max), Vec::new(), 0);
        for chunk in chunks {
            let cut = lines.feed(chunk);
            oversize += cut.oversize;
            got.extend(cut.ranges.iter().map(|&(a, b)| String::from_utf8_lossy(&cut.bytes[a as usize..b as usize]).into_owned()));
        }
        (got, oversize)
    }

    #[test]
    fn frames_are_the_same_however_the_bytes_are_cut() {
        let all = b"1,2\r\n3,4\n\n5,6\n7";
        for size in 1..all.len() {
            let chunks: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(run(64, &chunks), (vec!["1,2".into(), "3,4".into(), "5,6".into()], 0), "chunks of {size}");
        }
    }

    #[test]
    fn a_line_of_a_megabyte_costs_one_line_and_no_memory() {
        let long = vec![b'x'; 1 << 20];
        let mut chunks: Vec<&[u8]> = vec![b"a\n"];
        chunks.extend(long.chunks(4096));
        chunks.push(b"tail\nb\n");
        assert_eq!(run(1024, &chunks), (vec!["a".into(), "b".into()], 1));
    }

    #[test]
    fn a_long_line_inside_one_chunk_is_skipped_alone() {
        assert_eq!(run(4, &[b"ok\ntoo long\nfine\n"]), (vec!["ok".into(), "fine".into()], 1));
    }
}
