//! Bounds of the reader of recordings (`kentledge replay --csv` and the demo).

/// Bytes that are read and decoded at a time.
pub const RECORDING_READ_BYTES: usize = 64 * 1024;
/// First bytes that show what a file is: gzip, UTF-16, a zip archive. A marker has 4 at most; the rest shows UTF-16 without one.
pub const RECORDING_HEAD_BYTES: usize = 4096;
/// Longest line, bytes: 1,000 columns of 25 characters are 25 kB, and a file that is no table of text has no line ends.
pub const RECORDING_LINE_BYTES: usize = 1024 * 1024;
/// Lines that a quoted cell may extend over: a remark has a few, and an unpaired quote must not swallow the file.
pub const RECORDING_CELL_LINES: usize = 20;
/// First lines that show separator and header: preambles have 5 to 60.
pub const RECORDING_SAMPLE_LINES: usize = 1000;
/// One in so many clock cells may be unreadable, for example where the power failed; if more are, it is no clock.
pub const RECORDING_CLOCK_FLAWS: u64 = 10;
