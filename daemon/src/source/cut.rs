//! What a framing makes of one read: frames, as places in its bytes.

use bytes::Bytes;

/// What one read completed.
#[derive(Debug, Default)]
pub struct Cut {
    /// The bytes the ranges point into.
    pub bytes: Bytes,
    /// Start and end of each frame, without line ends, start bytes, stuffing and check; empty lines are left out.
    /// `Flaw::mark` where something was refused.
    pub ranges: Vec<(u32, u32)>,
}
