//! Bounds of `kentledge selftest`.

use std::time::Duration;

/// What it writes to measure the disk, bytes: a second of a card with 16 MB/s, and above the cache of any card.
pub const SELFTEST_BYTES: usize = 16 * 1024 * 1024;
/// It writes nothing where less is free, bytes: four times that.
pub const SELFTEST_FREE: u64 = 64 * 1024 * 1024;
/// Small writes whose longest is looked for: the outbox commits about 20 in a second.
pub const SELFTEST_COMMITS: usize = 20;
/// The measurement of the disk ends after this, whatever it has written: a worn card may hang for seconds in each write.
pub const SELFTEST_DISK: Duration = Duration::from_secs(20);
/// How long a broker may take to accept a connection: a satellite's way there and back takes 1.5 s.
pub const SELFTEST_CONNECT: Duration = Duration::from_secs(5);
/// Entries of a folder below /sys that are read: a board has 40 thermal sensors at most.
pub const SELFTEST_ENTRIES: usize = 256;
/// Bytes of a file below /sys: one page.
pub const SELFTEST_FILE: u64 = 4096;
/// Names in one line of the report.
pub const SELFTEST_NAMES: usize = 6;
