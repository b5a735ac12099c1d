//! What is bounded at the store of samples: its memory, its files, what a pull sends.

use std::time::Duration;

/// Windows that wait for the store: half a second of 2,000 windows a second. A full lane drops the oldest.
pub const SAMPLES_LANE: usize = 1024;
/// And their bytes: 1,024 windows of 64 rows of 16 channels.
pub const SAMPLES_LANE_BYTES: usize = 4 * 1024 * 1024;
/// Windows kept an hour in the long run, and at once: each costs about 20 KiB of writes (file, folder, journal), so an alarm that
/// flaps all day costs 115 MB of a card's life a day. 1,000 are the windows around 58 alarms.
pub const SAMPLES_PER_HOUR: f64 = 240.0;
/// See above.
pub const SAMPLES_BURST: f64 = 1000.0;
/// Windows in memory that an alarm may still need, bytes for each pipeline: 8 windows of 1,024 rows of 64 channels.
pub const SAMPLES_BEFORE_BYTES: usize = 2 * 1024 * 1024;
/// How often the store looks at its queues while nothing is sent. The lane holds five times as many windows.
pub const SAMPLES_TURN: Duration = Duration::from_millis(100);
/// And while a pull waits for an acknowledgement: 32 KiB each 20 ms are 1.6 MiB/s, more than any budget.
pub const PULL_TURN: Duration = Duration::from_millis(20);
/// Share of the partition that samples may take. With the 35 % of the outbox half of it stays for bundles, tapes and the system.
pub const SAMPLES_SHARE_PERCENT: u64 = 15;
/// Nothing is written where less is free: the outbox's ballast (4 MiB) and its commits come first.
pub const SAMPLES_LEAVE_BYTES: u64 = 16 * 1024 * 1024;
/// A file takes whole blocks.
pub const SAMPLES_BLOCK: u64 = 4096;
/// Records in the store: the index holds about 200 bytes of each, 6.5 MB.
pub const SAMPLES_MAX: usize = 32 * 1024;
/// Labels in the store, of these.
pub const LABELS_MAX: usize = 4096;
/// `samples.max_mib`, highest: 32,768 records of 32 KiB.
pub const SAMPLES_MIB_MAX: i64 = 1024;
/// Days that a window is kept unless configured.
pub const SAMPLES_DAYS: u64 = 30;
/// Windows of normal running a day, of each pipeline, unless configured: one an hour.
pub const SAMPLES_NORMAL_PER_DAY: u64 = 24;
/// Windows before and after an alarm unless configured.
pub const SAMPLES_AROUND: usize = 8;
/// Longest header of a record: channels with their units (64 × 100 bytes), a lineage (1 KiB), alarms (16 × 200 bytes).
pub const SAMPLE_HEAD_BYTES: usize = 64 * 1024;
/// Characters of `by`, of a class and of an alarm's name in a label.
pub const LABEL_TEXT: usize = 64;
/// Characters of `note`.
pub const LABEL_NOTE: usize = 1024;
/// Rate of pulls unless configured, KiB/s: a third of a slow 3G uplink (50 KiB/s).
pub const PULL_KIB_S: u64 = 16;
/// Bytes of pulls a day unless configured, MiB: 480 MiB a month.
pub const PULL_MIB_DAY: u64 = 16;
/// Largest chunk: 32 KiB are 43 KiB as base64. Below it, a chunk is half a second of the rate, so that an alarm does not wait
/// for longer behind one.
pub const PULL_CHUNK: u64 = 32 * 1024;
/// Smallest chunk: the envelope around it has 300 bytes.
pub const PULL_CHUNK_MIN: u64 = 2 * 1024;
/// A chunk is sent again when it was not acknowledged for so long while connected: it may have expired in the store.
pub const PULL_AGAIN_NS: u64 = 60 * 1_000_000_000;
/// A chunk that was sent so often without an acknowledgement ends the pull: the broker does not take it.
pub const PULL_TRIES: u32 = 5;
/// Progress, and the budget that it used, are saved each so many bytes, before they are sent: a restart repeats so much.
pub const PULL_SAVE_BYTES: u64 = 256 * 1024;
/// That a pull waits for its budget is reported once in this time: 24 results a day.
pub const PULL_TOLD_NS: u64 = 3600 * 1_000_000_000;
/// Orders for the store that wait: one pull, and as many labels as commands come in a burst.
pub const SAMPLES_ORDERS: usize = 128;
/// Tapes named in the answer to a pull of one that is not there.
pub const TAPES_NAMED: usize = 16;
