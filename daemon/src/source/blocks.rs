//! Blocks of lines with one checksum behind their last label, as battery monitors (VE.Direct) and smart meters (DSMR P1) send them.
//! The block is the frame, so one spoilt byte costs the block and never a wrong value. Pure.
//!
//! ```text
//! CR LF V TAB 26201 CR LF … CR LF Checksum TAB ?      ? makes the sum of all these bytes 0; it may be a line feed too
//! /ISK5… CR LF … CR LF !E47C                          digits of the check over `/` to `!`
//! ```

use bytes::{Buf, BytesMut};

use super::{
    cut::{Cut, Skipped, hexadecimal},
    packets::sum,
};
use crate::{
    config::{BlockCheck, BlockForm},
    flow::Flaw,
};

/// Cuts one port's bytes into blocks.
#[derive(Debug)]
pub struct Blocks {
    carry: BytesMut,
    frame_max: usize,
    form: BlockForm,
    /// In the middle of a block that is already too long, or whose beginning is lost.
    skipping: bool,
    skipped: Skipped,
}

/// Where a block ends.
#[derive(Debug, Clone, Copy)]
struct End {
    /// Behind the last byte before the check.
    text: usize,
    /// Behind the check.
    whole: usize,
}

impl Blocks {
    /// Blocks of at most `frame_max` bytes, their check not included.
    pub fn new(frame_max: usize, form: BlockForm) -> Self {
        Self { carry: BytesMut::new(), frame_max, form, skipping: false, skipped: Skipped::default() }
    }

    /// Bytes are lost: what is half received has no end, and what follows has no beginning.
    pub fn reset(&mut self) {
        self.carry.clear();
        (self.skipping, self.skipped) = (true, Skipped::default());
    }

    /// What follows is the beginning of a block.
    pub fn forget(&mut self) {
        self.carry.clear();
        self.skipping = false;
    }

    /// The longest end of a block with the byte before it, in bytes.
    fn room(&self) -> usize {
        self.form.label.len() + 3 + self.form.check.bytes()
    }

    /// Takes what one read brought.
    pub fn feed(&mut self, chunk: &[u8]) -> Cut {
        let mut cut = Cut::default();
        // A label that waits may get its check now.
        let mut seen = self.carry.len().saturating_sub(self.room());
        self.carry.extend_from_slice(chunk);
        if self.skipping {
            let Some(end) = self.end(&self.carry, 0, seen) else {
                self.skip(&mut cut);
                return cut;
            };
            self.skipped.pass(&self.carry[..end.whole], self.frame_max, &mut cut);
            self.carry.advance(end.whole);
            (self.skipping, seen) = (false, 0);
        }
        let mut from = 0;
        while let Some(end) = self.end(&self.carry, from, seen.max(from)) {
            let mark = match self.checked(&self.carry[from..end.whole], end.text - from) {
                Ok((first, last)) => ((from + first) as u32, (from + last) as u32),
                Err(flaw) => flaw.mark(),
            };
            cut.ranges.push(mark);
            from = end.whole;
        }
        cut.bytes = self.carry.split_to(from).freeze();
        if self.carry.len() > self.frame_max + self.room() {
            (self.skipping, self.skipped) = (true, Skipped::default());
            self.skip(&mut cut);
        }
        cut
    }

    /// Forgets what waits, but for what may be the beginning of an end.
    fn skip(&mut self, cut: &mut Cut) {
        let kept = (self.room()).min(self.carry.len());
        let gone = self.carry.split_to(self.carry.len() - kept);
        self.skipped.pass(&gone, self.frame_max, cut);
    }

    /// The end of the block that begins at `from`, where it is there whole. Looks from `seen` on.
    fn end(&self, bytes: &[u8], from: usize, seen: usize) -> Option<End> {
        let mut at = seen;
        loop {
            at += memchr::memmem::find(bytes.get(at..)?, &self.form.label)?;
            let behind = at + self.form.label.len();
            let begins_line = at == from || matches!(bytes[at - 1], b'\r' | b'\n');
            let is_blank = |at: usize| usize::from(bytes.get(at) == Some(&b' '));
            // `!E47C` needs nothing between, but `CRC` may be the beginning of a longer label.
            let bare = !self.form.label.last().is_some_and(u8::is_ascii_alphanumeric);
            let text = match (bytes.get(behind) == Some(&self.form.label_end), self.form.check) {
                (true, BlockCheck::Zero8) => Some(behind + 1),
                (true, BlockCheck::Digits(_)) => Some(behind + 1 + is_blank(behind + 1)),
                (false, BlockCheck::Digits(_)) if bare => Some(behind),
                _ => None,
            };
            if let Some(text) = text.filter(|_| begins_line) {
                let whole = text + self.form.check.bytes();
                return (whole <= bytes.len()).then_some(End { text, whole });
            }
            // The last label may be the beginning of a longer one.
            at = behind;
        }
    }

    /// Where the lines of a whole block begin and end, whose check must be right. `text`: where its check begins.
    fn checked(&self, block: &[u8], text: usize) -> Result<(usize, usize), Flaw> {
        let first = block.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count().min(text);
        let right = match self.form.check {
            BlockCheck::Zero8 => zero8(block) == 0,
            BlockCheck::Digits(kind) => hexadecimal(&block[text..]) == Some(sum(kind, &block[first..text])),
        };
        match right {
            _ if text - first > self.frame_max => Err(Flaw::Oversize),
            true => Ok((first, text)),
            false => Err(Flaw::Checksum),
        }
    }
}

/// The sum of a block. Lines from `:` to a line feed are messages between the blocks, which have a check of their own (VE.Direct's
/// HEX protocol).
fn zero8(block: &[u8]) -> u8 {
    let (mut sum, mut rest, mut begins_line) = (0u8, block, true);
    while let [byte, behind @ ..] = rest {
        rest = behind;
        let message = if begins_line && *byte == b':' { memchr::memchr(b'\n', behind) } else { None };
        if let Some(end) = message {
            rest = &behind[end + 1..];
            continue;
        }
        begins_line = *byte == b'\n';
        sum = sum.wrapping_add(*byte);
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::CheckKind;

    fn form(label: &str, label_end: u8, check: BlockCheck) -> BlockForm {
        BlockForm { label: label.into(), label_end, check }
    }

    fn flaw(a: u32, b: u32) -> Option<Flaw> {
        Flaw::ALL.into_iter().find(|flaw| flaw.mark() == (a, b))
    }

    fn monitor() -> Blocks {
        Blocks::new(256, form("Checksum", b'\t', BlockCheck::Zero8))
    }

    /// A block as a battery monitor sends it.
    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut all: Vec<u8> = fields.iter().flat_map(|(l, v)| format!("\r\n{l}\t{v}").into_bytes()).collect();
        all.extend(b"\r\nChecksum\t");
        let sum = all.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        all.push(sum.wrapping_neg());
        all
    }

    fn cut(blocks: &mut Blocks, chunks: &[&[u8]]) -> Vec<Result<String, Flaw>> {
        let mut got = Vec::new();
        for chunk in chunks {
            let cut = blocks.feed(chunk);
            got.extend(cut.ranges.iter().map(|(a, b)| match flaw(*a, *b) {
                Some(flaw) => Err(flaw),
                None => Ok(String::from_utf8_lossy(&cut.bytes[*a as usize..*b as usize]).into_owned()),
            }));
        }
        got
    }

    #[test]
    fn blocks_are_frames_however_their_bytes_are_cut_also_where_the_check_is_an_end_of_line() {
        // Every byte is the check of one of them: line feeds, tabs and the marker of messages too.
        let value = |n: u8| {
            [0, 93, 186].map(|from| char::from(b'!' + n.saturating_sub(from).min(93))).iter().collect::<String>()
        };
        let values: Vec<String> = (0..=255).map(value).collect();
        let all: Vec<Vec<u8>> = values.iter().map(|v| block(&[("PID", "0x203"), ("V", v)])).collect();
        assert!((0..=255).all(|check| all.iter().any(|block| block.last() == Some(&check))));
        let bytes = all.concat();
        for size in [1, 2, 7, 36, 1000, bytes.len()] {
            let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
            let got = cut(&mut monitor(), &chunks);
            assert_eq!(got.len(), 256, "chunks of {size}");
            for (v, frame) in values.iter().zip(&got) {
                assert_eq!(frame.as_deref(), Ok(&*format!("PID\t0x203\r\nV\t{v}\r\nChecksum\t")), "chunks of {size}");
            }
        }
    }

    #[test]
    fn spoilt_block_is_refused_and_the_next_is_read() {
        let good = block(&[("V", "26201"), ("I", "-1450")]);
        let mut spoilt = good.clone();
        spoilt[5] ^= 4;
        let cut_short = [&good[..8], &good[12..]].concat();
        let all = [spoilt, good.clone(), cut_short, good.clone()].concat();
        let got = cut(&mut monitor(), &[&all]);
        assert_eq!(got.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false, true]);
        assert_eq!(got[0], Err(Flaw::Checksum));
        // A block whose end is lost takes the next one with it.
        let lost = [&good[..12], &good, &good].concat();
        let got = cut(&mut monitor(), &[&lost]);
        assert_eq!(got.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn messages_between_blocks_and_a_beginning_that_was_missed_cost_no_block() {
        let good = block(&[("V", "26201")]);
        let all = [&b":7F0ED0071\n"[..], &good, b":A0102000543\n", &good].concat();
        assert_eq!(cut(&mut monitor(), &[&all]).iter().filter(|frame| frame.is_ok()).count(), 2);
        let mut late = monitor();
        late.reset();
        let got = cut(&mut late, &[&good[7..], &good]);
        assert_eq!(got, [Ok("V\t26201\r\nChecksum\t".into())], "half a block is no fault");
        // `Checksum` inside a line is no end, and neither is a label that begins so.
        let odd = block(&[("SER#", "Checksum\t1"), ("Checksums", "2")]);
        assert!(matches!(&cut(&mut monitor(), &[&odd])[..], [Ok(_)]));
    }

    #[test]
    fn telegram_of_a_smart_meter_has_its_digits_behind_the_end() {
        let text = b"/ISK5\\2MT382-1000\r\n\r\n1-0:1.8.1(000123.456*kWh)\r\n1-0:1.7.0(01.193*kW)\r\n!";
        let telegram = |text: &[u8]| {
            let digits = format!("{:04X}\r\n", sum(CheckKind::Crc16Arc, text));
            [text, digits.as_bytes()].concat()
        };
        let meter = || Blocks::new(1024, form("!", b'(', BlockCheck::Digits(CheckKind::Crc16Arc)));
        let one = telegram(text);
        let mut spoilt = one.clone();
        spoilt[45] = b'9';
        let got = cut(&mut meter(), &[&[&one[..], &spoilt, &one].concat()]);
        assert_eq!(got.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(got[2].as_deref(), Ok(std::str::from_utf8(text).expect("text")));
        // The one known to everyone: CRC-16/ARC of "123456789" is BB3D.
        let got = cut(&mut meter(), &[b"12345678!....\r\n123456789\r\n!BB3D\r\n"]);
        assert_eq!(got, [Err(Flaw::Checksum)], "`!` inside a line is no end, and the check is over all lines");
    }

    #[test]
    fn bytes_without_an_end_are_marked_and_bounded() {
        let mut blocks = monitor();
        let got = cut(&mut blocks, &[&[b'x'; 4096]]);
        assert!(got.len() >= 10 && got.iter().all(|frame| *frame == Err(Flaw::Oversize)), "{}", got.len());
        assert!(blocks.carry.len() < 64);
        let good = block(&[("V", "26201")]);
        let got = cut(&mut blocks, &[&good, &good]);
        assert_eq!(got.iter().filter(|frame| frame.is_ok()).count(), 1, "the first end is that of what was too long");
        let long = block(&[("SER#", &"7".repeat(260))]);
        assert_eq!(cut(&mut monitor(), &[&long]), [Err(Flaw::Oversize)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_cut_within_bounds_and_what_is_called_whole_sums_to_zero(
            parts in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                Just(b"\r\nChecksum\t".to_vec()),
                Just(b":A01\n".to_vec()),
                (0u32..400).prop_map(|v| block(&[("V", &v.to_string())])),
            ], 0..40)
        ) {
            let mut blocks = monitor();
            for part in parts {
                let cut = blocks.feed(&part);
                for (a, b) in cut.ranges {
                    if flaw(a, b).is_none() {
                        let (a, b) = (a as usize, b as usize);
                        prop_assert!(a <= b && b < cut.bytes.len() && b - a <= 256);
                    }
                }
                prop_assert!(blocks.carry.len() <= 256 + 12);
            }
        }
    }
}
