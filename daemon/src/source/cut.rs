//! What a framing makes of one read: frames, as places in its bytes; and what framings of text share.

use bytes::Bytes;

use crate::flow::Flaw;

/// What one read completed.
#[derive(Debug, Default)]
pub struct Cut {
    /// The bytes the ranges point into.
    pub bytes: Bytes,
    /// Start and end of each frame, without line ends, start bytes, stuffing and check; empty lines are left out.
    /// `Flaw::mark` where something was refused.
    pub ranges: Vec<(u32, u32)>,
}

/// Bytes that were skipped since the last mark, and how many of them are no text.
#[derive(Debug, Default)]
pub(super) struct Skipped {
    bytes: usize,
    strange: usize,
}

impl Skipped {
    /// These bytes are skipped. Each length of a frame is marked: bytes that come without any end must be seen.
    pub(super) fn pass(&mut self, gone: &[u8], frame_max: usize, cut: &mut Cut) {
        self.bytes += gone.len();
        self.strange += gone.iter().filter(|b| !matches!(b, b' '..=b'~' | b'\t')).count();
        // Bytes of another speed have no ends of lines either.
        let flaw = if self.strange * 4 < self.bytes { Flaw::Oversize } else { Flaw::Garbage };
        while self.bytes > frame_max {
            (self.bytes, self.strange) = (self.bytes - frame_max, 0);
            cut.ranges.push(flaw.mark());
        }
    }
}

/// Hexadecimal digits, the most significant first.
pub(super) fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let nibble = |n: Option<u64>, digit: &u8| Some(n? << 4 | u64::from(char::from(*digit).to_digit(16)?));
    digits.iter().fold(Some(0), nibble)
}
