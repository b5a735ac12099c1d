//! Bytes into frames: pure, no I/O, no clock. What is refused leaves a mark at its place, so one broken frame costs one
//! frame. Lines end with LF, CR LF or CR, or with what is declared; the binary framings are in `packets`, and blocks of lines that
//! have one checksum in `blocks`.

use bytes::{Bytes, BytesMut};

use super::{
    blocks::Blocks,
    cut::{Cut, Skipped, hexadecimal},
    packets::{Packets, sum},
};
use crate::{
    config::{Framing, LineCheck, LineForm, Serial},
    flow::Flaw,
};

/// The framing of one port.
#[derive(Debug)]
pub enum Cutter {
    /// Text.
    Lines(Lines),
    /// Blocks of lines with one checksum.
    Blocks(Blocks),
    /// Everything else.
    Packets(Packets),
}

impl Cutter {
    /// As the port is configured.
    pub fn new(serial: &Serial) -> Self {
        match (&serial.framing, &serial.lines.block) {
            (Framing::Lines, Some(block)) => Self::Blocks(Blocks::new(serial.frame_max, (**block).clone())),
            (Framing::Lines, None) => Self::Lines(Lines::new(serial.frame_max, serial.lines.clone())),
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
            Self::Blocks(blocks) => {
                blocks.reset();
                Cut::default()
            }
            Self::Packets(packets) => packets.give_up(true),
        }
    }

    /// Forgets what is half received: what follows is the beginning of a frame.
    pub fn forget(&mut self) {
        match self {
            Self::Lines(lines) => {
                lines.carry.clear();
                lines.skipping = false;
            }
            Self::Blocks(blocks) => blocks.forget(),
            Self::Packets(packets) => drop(packets.give_up(true)),
        }
    }

    /// Takes what one read brought.
    pub fn feed(&mut self, chunk: &[u8]) -> Cut {
        match self {
            Self::Lines(lines) => lines.feed(chunk),
            Self::Blocks(blocks) => blocks.feed(chunk),
            Self::Packets(packets) => packets.feed(chunk),
        }
    }

    /// The line is silent (`limits::FRAME_SILENCE`): a frame that is not whole by now will never be.
    pub fn silent(&mut self) -> Cut {
        match self {
            Self::Lines(_) | Self::Blocks(_) => Cut::default(),
            Self::Packets(packets) => packets.give_up(false),
        }
    }
}

/// Splits a byte stream at the ends of lines.
#[derive(Debug)]
pub struct Lines {
    carry: BytesMut,
    frame_max: usize,
    form: LineForm,
    /// In the middle of a line that is already too long, or whose beginning is lost.
    skipping: bool,
    skipped: Skipped,
}

impl Lines {
    /// Frames of at most `frame_max` bytes, their checksum included.
    pub fn new(frame_max: usize, form: LineForm) -> Self {
        Self { carry: BytesMut::new(), frame_max, form, skipping: false, skipped: Skipped::default() }
    }

    /// Bytes are lost: what is half received has no end, and what follows has no beginning.
    pub fn reset(&mut self) {
        self.carry.clear();
        (self.skipping, self.skipped) = (true, Skipped::default());
    }

    /// Takes what one read brought.
    pub fn feed(&mut self, chunk: &[u8]) -> Cut {
        let mut cut = Cut::default();
        // The last bytes that wait may be the beginning of an end.
        let seen = self.carry.len().saturating_sub(self.form.end.len().saturating_sub(1));
        self.carry.extend_from_slice(chunk);
        if self.skipping {
            let Some((at, behind)) = self.end(&self.carry, seen) else {
                self.skip(&mut cut);
                return cut;
            };
            let gone = self.carry.split_to(at);
            self.skipped.pass(&gone, self.frame_max, &mut cut);
            self.skipping = false;
            let _ = self.carry.split_to(behind - at);
        }
        if let Some(behind) = self.last_end(&self.carry) {
            cut.bytes = self.carry.split_to(behind).freeze();
            self.ranges(&cut.bytes, &mut cut.ranges);
        }
        if self.carry.len() > self.frame_max + self.form.end.len() {
            (self.skipping, self.skipped) = (true, Skipped::default());
            self.skip(&mut cut);
        }
        cut
    }

    /// Forgets what waits, but for what may be the beginning of an end.
    fn skip(&mut self, cut: &mut Cut) {
        let kept = self.form.end.len().saturating_sub(1).min(self.carry.len());
        let gone = self.carry.split_to(self.carry.len() - kept);
        self.skipped.pass(&gone, self.frame_max, cut);
    }

    /// The next end of a line: where it begins, and the place behind it.
    fn end(&self, bytes: &[u8], from: usize) -> Option<(usize, usize)> {
        let rest = bytes.get(from..)?;
        match self.form.end.as_slice() {
            [] => memchr::memchr2(b'\n', b'\r', rest).map(|at| (from + at, from + at + 1)),
            [end] => memchr::memchr(*end, rest).map(|at| (from + at, from + at + 1)),
            end => memchr::memmem::find(rest, end).map(|at| (from + at, from + at + end.len())),
        }
    }

    /// The place behind the last end of a line.
    fn last_end(&self, bytes: &[u8]) -> Option<usize> {
        match self.form.end.as_slice() {
            [] => memchr::memrchr2(b'\n', b'\r', bytes).map(|at| at + 1),
            [end] => memchr::memrchr(*end, bytes).map(|at| at + 1),
            end => memchr::memmem::rfind(bytes, end).map(|at| at + end.len()),
        }
    }

    fn ranges(&self, bytes: &Bytes, ranges: &mut Vec<(u32, u32)>) {
        let mut from = 0;
        while let Some((at, behind)) = self.end(bytes, from) {
            let (mut first, mut last, length) = (from, at, at - from);
            if !self.form.end.is_empty() {
                // A device that ends its lines with another character may still send line feeds.
                let is_end = |b: &u8| matches!(b, b'\r' | b'\n');
                first += bytes[first..last].iter().take_while(|b| is_end(b)).count();
                last -= bytes[first..last].iter().rev().take_while(|b| is_end(b)).count();
            }
            from = behind;
            if length > self.frame_max {
                ranges.push(Flaw::Oversize.mark());
            } else if last > first {
                let checked = self.form.check.map_or(Ok(last - first), |check| checked(check, &bytes[first..last]));
                ranges.push(checked.map_or_else(Flaw::mark, |n| (first as u32, (first + n) as u32)));
            }
        }
    }
}

/// The length of the text before its checksum, which must be right.
fn checked(check: LineCheck, line: &[u8]) -> Result<usize, Flaw> {
    let line = line.trim_ascii_end();
    let parts = line.len().checked_sub(2 * check.kind.bytes()).map(|at| line.split_at(at));
    let (head, digits) = parts.ok_or(Flaw::Checksum)?;
    let text = match check.mark {
        Some(mark) => head.strip_suffix(&[mark]).ok_or(Flaw::Checksum)?,
        None => head,
    };
    let sent = hexadecimal(digits).ok_or(Flaw::Checksum)?;
    let sent = if check.little { sent.swap_bytes() >> (64 - 8 * check.kind.bytes()) } else { sent };
    let covered = if check.covers_mark { head } else { text };
    let covered = covered.get(check.skip..).ok_or(Flaw::Checksum)?;
    if sum(check.kind, covered) == sent { Ok(text.len()) } else { Err(Flaw::Checksum) }
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
