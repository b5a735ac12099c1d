//! Binary framings: COBS, SLIP, fixed length, length and check, start and stop bytes. Pure. After a frame that does not
//! check, the search goes on behind its first byte, so a false start costs no frame; memory is bounded by two frames.

use bytes::{Buf, Bytes, BytesMut};
use crc::Crc;

use super::cut::Cut;
use crate::{
    config::{Check, CheckKind, Framing},
    flow::Flaw,
};

/// What stands at the front of the bytes that wait.
enum Front {
    /// Not enough to say.
    More,
    /// So many bytes of a frame; its content is there, inside, as long as it is not refused.
    Frame(usize, std::ops::Range<usize>),
    /// So many bytes are refused.
    Refused(usize, Flaw),
    /// So many bytes belong to nothing.
    Garbage(usize),
    /// So many bytes mean nothing: a delimiter between frames.
    Idle(usize),
}

/// Cuts one port's bytes.
#[derive(Debug)]
pub struct Packets {
    framing: Framing,
    check: Option<Check>,
    frame_max: usize,
    carry: BytesMut,
    /// A frame was seen since the connection began: garbage before the first is only its missing half.
    joined: bool,
    /// The garbage before this place was marked already.
    marked: bool,
    /// Bytes that belonged to nothing, since then.
    skipped: usize,
}

impl Packets {
    /// Frames of at most `frame_max` bytes of content.
    pub fn new(framing: Framing, check: Option<Check>, frame_max: usize) -> Self {
        let (carry, joined, marked, skipped) = (BytesMut::new(), false, false, 0);
        Self { framing, check, frame_max, carry, joined, marked, skipped }
    }

    /// Takes what one read brought.
    pub fn feed(&mut self, chunk: &[u8]) -> Cut {
        self.carry.extend_from_slice(chunk);
        let mut out = Out::default();
        self.cut(&mut out);
        out.done()
    }

    /// What waits is not the beginning of a frame; with `lost`, the next byte does not follow it either.
    pub fn give_up(&mut self, lost: bool) -> Cut {
        let mut out = Out::default();
        // Self-delimiting framings know a broken frame by its end.
        let by_place = matches!(self.framing, Framing::Fixed { .. } | Framing::Length { .. });
        while by_place && !self.carry.is_empty() {
            self.garbage(1, &mut out);
            self.cut(&mut out);
        }
        if lost {
            self.carry.clear();
            (self.joined, self.marked, self.skipped) = (false, false, 0);
        }
        out.done()
    }

    fn cut(&mut self, out: &mut Out) {
        let mut carry = std::mem::take(&mut self.carry);
        loop {
            if carry.is_empty() {
                break;
            }
            match self.front(&carry) {
                Front::More => break,
                Front::Idle(n) => carry.advance(n),
                Front::Refused(n, flaw) => {
                    carry.advance(n);
                    // What a connection began in the middle of is not a fault.
                    if std::mem::replace(&mut self.joined, true) || !self.is_delimited() {
                        out.ranges.push(flaw.mark());
                    }
                }
                Front::Garbage(n) => {
                    carry.advance(n);
                    self.mark(n, Flaw::Garbage, out);
                }
                Front::Frame(n, content) => match self.content(&carry[..n], content, out) {
                    Ok(()) => {
                        carry.advance(n);
                        (self.joined, self.marked, self.skipped) = (true, false, 0);
                    }
                    Err(flaw) if self.is_delimited() => {
                        carry.advance(n);
                        if std::mem::replace(&mut self.joined, true) {
                            out.ranges.push(flaw.mark());
                        }
                    }
                    // A false start, perhaps: the search goes on behind its first byte.
                    Err(flaw) => {
                        carry.advance(1);
                        self.mark(1, flaw, out);
                    }
                },
            }
        }
        self.carry = carry;
    }

    fn is_delimited(&self) -> bool {
        matches!(self.framing, Framing::Cobs | Framing::Slip | Framing::Delimited { .. })
    }

    fn garbage(&mut self, n: usize, out: &mut Out) {
        self.carry.advance(n.min(self.carry.len()));
        self.mark(n, Flaw::Garbage, out);
    }

    /// One mark for each stretch between two frames, and for each length of a frame in it. The half frame at the start
    /// of a connection gets no mark.
    fn mark(&mut self, n: usize, flaw: Flaw, out: &mut Out) {
        self.skipped += n;
        let frame = if let Framing::Fixed { bytes, .. } = self.framing { bytes } else { self.frame_max };
        if self.skipped > frame {
            (self.joined, self.marked, self.skipped) = (true, false, 0);
        }
        if self.joined && !std::mem::replace(&mut self.marked, true) {
            out.ranges.push(flaw.mark());
        }
    }

    fn front(&mut self, carry: &[u8]) -> Front {
        let check = self.check.map_or(0, |c| c.kind.bytes());
        match &self.framing {
            Framing::Lines => Front::Idle(carry.len()),
            Framing::Cobs => self.delimited(carry, 0, 1 + self.frame_max / 254 + check),
            Framing::Slip => self.delimited(carry, SLIP_END, self.frame_max + check),
            Framing::Fixed { start, bytes } => match begins(carry, start) {
                Err(front) => front,
                Ok(()) if carry.len() < *bytes => Front::More,
                Ok(()) => Front::Frame(*bytes, start.len()..bytes - check),
            },
            Framing::Length { start, number, beside } => {
                if let Err(front) = begins(carry, start) {
                    return front;
                }
                let head = start.len() + number.0.bytes();
                if carry.len() < head {
                    return Front::More;
                }
                let length = number.0.bits(number.1, &carry[start.len()..head]) as usize;
                let whole = length + beside;
                if whole <= head + check || whole > head + check + self.frame_max {
                    // No length that can be: this was no start.
                    return Front::Garbage(1);
                }
                if carry.len() < whole { Front::More } else { Front::Frame(whole, head..whole - check) }
            }
            Framing::Delimited { start, stop, escape } if start == stop => {
                until(carry, (*stop, *escape), self.frame_max + check)
            }
            Framing::Delimited { start, stop, escape } => {
                between(carry, (*start, *stop, *escape), self.frame_max + check)
            }
        }
    }

    /// Up to the next `end`; `room` bytes beyond the longest content are allowed for stuffing.
    fn delimited(&self, carry: &[u8], end: u8, room: usize) -> Front {
        match memchr::memchr(end, carry) {
            Some(0) => Front::Idle(1),
            Some(at) if at > self.frame_max + room => Front::Refused(at + 1, Flaw::Oversize),
            Some(at) => Front::Frame(at + 1, 0..at),
            // The rest of it will come before the next end: kept short, one byte too long.
            None if carry.len() > 2 * (self.frame_max + room) => Front::Idle(carry.len() - (self.frame_max + room) - 1),
            None => Front::More,
        }
    }

    /// The content, unstuffed and checked, at the end of what was cut so far.
    fn content(&self, whole: &[u8], content: std::ops::Range<usize>, out: &mut Out) -> Result<(), Flaw> {
        let from = out.bytes.len();
        let inner = &whole[content];
        match &self.framing {
            Framing::Cobs => {
                out.bytes.resize(from + inner.len() + 1, 0);
                // The frame's end was cut off: if all the rest was parsed, the report is still that of a whole frame.
                let n = cobs::decode(inner, &mut out.bytes[from..]).map(|report| report.frame_size());
                out.bytes.truncate(from + *n.as_ref().unwrap_or(&0));
                n.map_err(|_| Flaw::Encoding)?;
            }
            Framing::Slip => unstuff(inner, &mut out.bytes).inspect_err(|_| out.bytes.truncate(from))?,
            Framing::Delimited { escape, .. } => {
                let mut bytes = inner.iter();
                while let Some(byte) = bytes.next() {
                    let plain = if Some(*byte) == *escape { bytes.next() } else { Some(byte) };
                    out.bytes.extend(plain);
                }
            }
            _ => out.bytes.extend_from_slice(inner),
        }
        let fine = match (self.check, self.is_delimited()) {
            (None, _) => true,
            // Stuffed with the content: it stands behind it.
            (Some(check), true) => {
                let at = out.bytes.len().checked_sub(check.kind.bytes()).filter(|at| *at >= from);
                let fine = at.is_some_and(|at| checks(check, &out.bytes[from..at], &out.bytes[at..]));
                out.bytes.truncate(at.unwrap_or(from));
                fine
            }
            (Some(check), false) => {
                let at = whole.len() - check.kind.bytes();
                checks(check, &whole[..at], &whole[at..])
            }
        };
        let flaw = match out.bytes.len() - from {
            _ if !fine => Some(Flaw::Checksum),
            0 => Some(Flaw::Encoding),
            n if n > self.frame_max => Some(Flaw::Oversize),
            _ => None,
        };
        match flaw {
            Some(flaw) => {
                out.bytes.truncate(from);
                Err(flaw)
            }
            None => {
                out.ranges.push((from as u32, out.bytes.len() as u32));
                Ok(())
            }
        }
    }
}

/// What a cut is made of while it goes on.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    ranges: Vec<(u32, u32)>,
}

impl Out {
    fn done(self) -> Cut {
        Cut { bytes: Bytes::from(self.bytes), ranges: self.ranges }
    }
}

/// Does a frame begin here? Else up to where one may.
fn begins(carry: &[u8], start: &[u8]) -> Result<(), Front> {
    let n = start.len().min(carry.len());
    if carry[..n] == start[..n] {
        return if n < start.len() { Err(Front::More) } else { Ok(()) };
    }
    let first = start.first().copied().unwrap_or_default();
    Err(Front::Garbage(memchr::memchr(first, &carry[1..]).map_or(carry.len(), |at| at + 1)))
}

/// From a start byte to the stop byte behind it. Another start byte in between starts the frame again.
fn between(carry: &[u8], (start, stop, escape): (u8, u8, Option<u8>), most: usize) -> Front {
    if carry[0] != start {
        return Front::Garbage(memchr::memchr(start, carry).unwrap_or(carry.len()));
    }
    let mut at = 1;
    while at < carry.len() {
        let byte = carry[at];
        if Some(byte) == escape {
            at += 2;
        } else if byte == stop {
            return Front::Frame(at + 1, 1..at);
        } else if byte == start || at > 2 * most {
            return Front::Refused(at, if byte == start { Flaw::Encoding } else { Flaw::Oversize });
        } else {
            at += 1;
        }
    }
    Front::More
}

/// Up to the stop byte, where it is the start byte of the next frame as well.
fn until(carry: &[u8], (stop, escape): (u8, Option<u8>), most: usize) -> Front {
    let mut at = 0;
    while at < carry.len() {
        let byte = carry[at];
        if Some(byte) == escape {
            at += 2;
        } else if byte == stop {
            return if at == 0 { Front::Idle(1) } else { Front::Frame(at + 1, 0..at) };
        } else if at > 2 * most {
            return Front::Refused(at, Flaw::Oversize);
        } else {
            at += 1;
        }
    }
    Front::More
}

const SLIP_END: u8 = 0xC0;
const SLIP_ESC: u8 = 0xDB;

/// RFC 1055.
fn unstuff(inner: &[u8], out: &mut Vec<u8>) -> Result<(), Flaw> {
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        out.push(match *byte {
            SLIP_ESC => match bytes.next() {
                Some(0xDC) => SLIP_END,
                Some(0xDD) => SLIP_ESC,
                _ => return Err(Flaw::Encoding),
            },
            plain => plain,
        });
    }
    Ok(())
}

fn checks(check: Check, covered: &[u8], sent: &[u8]) -> bool {
    let covered = covered.get(check.skip..).unwrap_or_default();
    let fold = |sent: &[u8]| sent.iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    let sent =
        if check.little { sent.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte)) } else { fold(sent) };
    sent == sum(check.kind, covered)
}

/// The checksum of some bytes. Polynomials: the catalogue of parametrised CRC algorithms, by the crate `crc`.
pub fn sum(kind: CheckKind, bytes: &[u8]) -> u64 {
    const CRC8: Crc<u8> = Crc::<u8>::new(&crc::CRC_8_SMBUS);
    const CRC8_MAXIM: Crc<u8> = Crc::<u8>::new(&crc::CRC_8_MAXIM_DOW);
    const MODBUS: Crc<u16> = Crc::<u16>::new(&crc::CRC_16_MODBUS);
    const CCITT: Crc<u16> = Crc::<u16>::new(&crc::CRC_16_IBM_3740);
    const XMODEM: Crc<u16> = Crc::<u16>::new(&crc::CRC_16_XMODEM);
    const KERMIT: Crc<u16> = Crc::<u16>::new(&crc::CRC_16_KERMIT);
    const X25: Crc<u16> = Crc::<u16>::new(&crc::CRC_16_IBM_SDLC);
    const ARC: Crc<u16> = Crc::<u16>::new(&crc::CRC_16_ARC);
    const CRC32: Crc<u32> = Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    const CRC32C: Crc<u32> = Crc::<u32>::new(&crc::CRC_32_ISCSI);
    const MPEG2: Crc<u32> = Crc::<u32>::new(&crc::CRC_32_MPEG_2);
    match kind {
        CheckKind::Sum8 => bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).into(),
        CheckKind::Sum16 => bytes.iter().fold(0u16, |sum, byte| sum.wrapping_add(u16::from(*byte))).into(),
        CheckKind::Zero8 => bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte)).into(),
        CheckKind::Xor8 => bytes.iter().fold(0u8, |sum, byte| sum ^ byte).into(),
        CheckKind::Crc8 => CRC8.checksum(bytes).into(),
        CheckKind::Crc8Maxim => CRC8_MAXIM.checksum(bytes).into(),
        CheckKind::Crc16Modbus => MODBUS.checksum(bytes).into(),
        CheckKind::Crc16Ccitt => CCITT.checksum(bytes).into(),
        CheckKind::Crc16Xmodem => XMODEM.checksum(bytes).into(),
        CheckKind::Crc16Kermit => KERMIT.checksum(bytes).into(),
        CheckKind::Crc16X25 => X25.checksum(bytes).into(),
        CheckKind::Crc16Arc => ARC.checksum(bytes).into(),
        CheckKind::Crc32 => CRC32.checksum(bytes).into(),
        CheckKind::Crc32c => CRC32C.checksum(bytes).into(),
        CheckKind::Crc32Mpeg2 => MPEG2.checksum(bytes).into(),
    }
}

#[cfg(test)]
#[path = "packets_tests.rs"]
mod tests;
