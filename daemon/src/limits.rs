//! Every bound of the daemon, each with the arithmetic behind it. A number that limits something lives here: a file for each
//! part of the road, and in this file what several parts share.

use std::time::Duration;

pub use control::*;
pub use escalation::*;
pub use link::*;
pub use models::*;
pub use outbox::*;
pub use recordings::*;
pub use samples::*;
pub use selftest::*;
pub use sources::*;

mod control;
mod escalation;
mod link;
mod models;
mod outbox;
mod recordings;
mod samples;
mod selftest;
mod sources;

/// Frame lane: batches. At the slowest tick (100 ms) of 16 ports this is 25 s; under flood a batch is one 4 KiB
/// read, so 4,096 of them are at most the bytes below.
pub const FRAME_BATCHES: usize = 4096;
/// Frame lane, bytes: 1 MiB is 3.4 s of a port at 3 Mbaud (300 kB/s); a worker's deadline and restart are 3 s.
pub const FRAME_LANE_BYTES: usize = 1024 * 1024;
/// Frames in one batch: 256 rows are 13 ms of work even where every row makes a window at 20,000/s, so another source has
/// its turn after that.
pub const BATCH_FRAMES: usize = 256;
/// Batches the signal stage takes at a time.
pub const FRAME_TAKE: usize = 1;
/// How long a full lane makes its producer wait before it sheds: 50 ms of 3 Mbaud are 15 kB, which the kernel's
/// tty buffer (64 KiB) still holds.
pub const LANE_PATIENCE: Duration = Duration::from_millis(50);
/// Frames, and windows, may wait so long before a source that can be held back reads no more. What lies between a read and an answer
/// under flood is then two of these, one read of 4 KiB, and one ring of the doorbell (64 × 40 µs): below 20 ms. At 25,000 windows/s,
/// 100 of them wait, more than a ring takes: the worker always has one. A stage that has not caught up after `LANE_PATIENCE` is slow
/// or hangs: the source reads on at its full pace until it has, and the lanes' other bounds hold.
pub const LANE_AGE: Duration = Duration::from_millis(4);
/// So many windows at least wait in a flood: 32 in 4 ms are 8,000/s. A model of 10 ms beside a sensor of 100 Hz has one or two waiting,
/// and its source is not held back.
pub const LANE_LATE_WINDOWS: usize = 32;

/// A source without bytes emits a Tick at least this often, so that silence can be seen.
pub const TICK: Duration = Duration::from_millis(100);
// A source that is held back reads on after a patience, before its tick begins the wait again.
const _: () = assert!(LANE_PATIENCE.as_millis() < TICK.as_millis());
/// Reopening a port: 0.5–30 s, but the first retry comes within 0.5 s so that a short hang-up costs less than 1 s.
pub const REOPEN_MIN: Duration = Duration::from_millis(250);
/// Longest wait between two tries to open a port. A port that came back is noticed within 5 s at the latest.
pub const REOPEN_MAX: Duration = Duration::from_secs(4);
/// Quality of a source is published when it changed, at most this often (ns of stamp time).
pub const QUALITY_EVERY_NS: u64 = 1_000_000_000;

/// Stop: every queue empties into the next within this, then what is left is stored. systemd's default kills at 90 s.
pub const DRAIN: Duration = Duration::from_secs(8);
/// Of which a model may use this for windows that wait: the one that is being served then has as long again.
pub const DRAIN_MODEL: Duration = Duration::from_secs(4);
/// The same for the outbox while its store is being opened: with the rest of a stop, which is quick then, it stays below the
/// unit's 30 s.
pub const DRAIN_OPENING: Duration = Duration::from_secs(20);
/// Of which the link may use this to get the last acknowledgements.
pub const DRAIN_LINK: Duration = Duration::from_secs(3);
/// So long after the start, the pages of the program are given back that the start touched: the store is open by then (3.4 s with
/// 8 MiB on a busy machine), and the first connection is made. What comes later maps what it needs again.
pub const PROGRAM_RELEASE: Duration = Duration::from_secs(5);
/// Core stages beat at least this often when they have nothing to do.
pub const BEAT: Duration = Duration::from_secs(1);
/// How often health looks at the stages and writes the status line.
pub const WATCHDOG_LOOK: Duration = Duration::from_millis(500);
/// Of what the kernel says of a thread (proc_pid_status(5)), in one read: 1.4 KiB with 8 processors, and lists of those it may use.
pub const THREAD_STATUS_BYTES: usize = 8 * 1024;
/// Looks in a row at a thread in one and the same sleep after which its stage is held to wait for the disk.
pub const DISK_WAIT_LOOKS: u32 = 2;
/// And after which that is reported: 2 s, and a commit on a slow card takes 1.
pub const DISK_HANGS_LOOKS: u32 = 4;
/// How often the free space of the disk is looked at.
pub const DISK_LOOK: Duration = Duration::from_secs(2);
/// A state file that could not be written is written again after this.
pub const SCRIBE_RETRY: Duration = Duration::from_secs(4);
/// Health is published every so often unless configured.
pub const HEALTH_S: u64 = 60;
/// Configuration: bytes of one file, files of one layer.
pub const CONFIG_BYTES: u64 = 1024 * 1024;
/// A password in a file, bytes: a JSON web token, as some brokers take them, has 300 to 800.
pub const SECRET_BYTES: usize = 2048;
/// Names in each list of what a change of the configuration did: with 100 bytes each, three lists are 20 KiB of a result.
pub const CHANGES_TOLD: usize = 64;
/// Alarms, and streams, that are not configured any more and are removed at the broker: more than a device ever has.
pub const RETAINED_GONE: usize = 256;
/// A raised alarm is `unknown` when its model has not served for so long: a worker that died is back within a second, and
/// the start of a large model takes ten.
pub const ALARM_UNKNOWN: Duration = Duration::from_secs(30);
/// Scores kept for a look, two a second: two minutes.
pub const HISTORY: usize = 240;
/// Problems of one configuration that are listed.
pub const PROBLEMS: usize = 100;
/// What `kentledge ports` reads of one port: 2 s of 300 kB/s.
pub const PORTS_BYTES: usize = 600 * 1024;
/// Columns of a line, and kinds of sentences, that it shows: a frame of 1 KiB holds 200 numbers of four digits.
pub const PORTS_COLUMNS: usize = 256;
/// Characters of a label that is suggested for a device's lines: `Battery voltage (V)` has 19.
pub const PORTS_LABEL: usize = 32;
/// Processes it names that have a port open: mostly one.
pub const PORTS_USERS: usize = 4;
/// Characters of the keys that it shows of JSON lines.
pub const PORTS_KEYS: usize = 400;
/// Tape: longest record, which is one read with its head, where each of its frames has one byte.
pub const TAPE_RECORD_BYTES: usize = 9 * (READ_BYTES + FRAME_BYTES_MAX) + 64;
/// A block of a tape closes at this size: 64 KiB of text pack to a fifth, and a torn tape loses one.
pub const TAPE_BLOCK_BYTES: usize = 64 * 1024;
/// Seconds before an alarm that its tape holds, unless configured.
pub const TAPE_BEFORE_S: u64 = 60;
/// And after it.
pub const TAPE_AFTER_S: u64 = 10;
/// All calibrations that a tape of an alarm holds: 1,024 features of two numbers of 12 characters are 24 KiB.
pub const TAPE_CALIBRATIONS_BYTES: usize = 256 * 1024;
/// Packed bytes of the ring in RAM: 60 s of 300 kB/s pack to a fifth, 3.6 MB.
pub const TAPE_RING_BYTES: usize = 4 * 1024 * 1024;
/// Tapes of alarms that are kept; the oldest leaves first. 16 × 4 MiB.
pub const TAPES_KEPT: usize = 16;
/// An arrival's way to the ring: 1,024 reads are seconds, and a full lane sheds, for the ring holds up nothing.
pub const TAPE_LANE: usize = 1024;
