//! What is bounded at sensors and outputs: frames, questions, lines, the guard.

use std::time::Duration;

/// Longest frame of a source, bytes, unless configured: eight 12-digit numbers, sequence, clock make 140; room for 60 columns.
pub const FRAME_BYTES: usize = 1024;
/// Largest `frame_max_bytes` that a configuration may ask for: 64 KiB is 5.7 s of line time at 115,200 baud.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// One read from a port, bytes: larger than the 4 KiB a tty hands out at a time, and few enough rows (170 of 95 bytes)
/// that the signal stage is done with them well within a lane's patience.
pub const READ_BYTES: usize = 16 * 1024;
/// A frame whose bytes stop for so long is searched again: a byte is 33 ms at 300 baud; a laptop's port delivers after 16 ms.
pub const FRAME_SILENCE: Duration = Duration::from_millis(150);
/// What ends a line, at most, bytes: CR LF, and controls such as ETX around a check, are 4.
pub const LINE_END_BYTES: usize = 8;
/// Regular expressions of one source: a device has three or four kinds of lines; each line is tried with all of them, and 16 take
/// 10 µs of a line of 80 characters.
pub const PATTERNS: usize = 16;
/// One of them when it is compiled, bytes: `(?<x>[-+0-9.]+)` takes 2 KiB; a class of a thousand repetitions 100.
pub const PATTERN_BYTES: usize = 256 * 1024;
/// Groups within groups of one of them: two or three are usual; each costs stack while it is compiled.
pub const PATTERN_DEPTH: u32 = 32;
/// Words and suffixes of one channel: a multimeter has ten prefixes; each field is compared with all of them.
pub const WORDS: usize = 64;
/// Characters of a number's text: a double needs 24, with blanks and marks of thousands 40.
pub const NUMBER_CHARS: usize = 64;
/// Patterns of one clock: a device that switches its language has two.
pub const TIME_PATTERNS: usize = 8;
/// Registers in one Modbus answer: 125 × 2 bytes and 5 are the 255 that its length byte allows.
pub const MODBUS_WORDS: u16 = 125;
/// Bits in one Modbus answer.
pub const MODBUS_BITS: u16 = 2000;
/// Reads of one bus: at 9,600 baud one of 10 registers takes 50 ms, so 128 of them are 6 s of line time.
pub const MODBUS_READS: usize = 128;
/// Requests of one source: each takes 50 ms or more of a line, so 64 of them are 3 s.
pub const REQUESTS: usize = 64;
/// How long a line is quiet before the next of several requests, unless configured, ms: a laptop's port delivers after 16 ms,
/// and a device pauses between the lines of a response for less.
pub const POLL_PAUSE_MS: u64 = 50;
/// How long a Modbus device may take, unless configured, ms: most answer within 100 ms, some gateways take 300.
pub const MODBUS_ANSWER_MS: u64 = 500;
/// Longest pause before a device that does not answer is asked again: on a shared bus its time-outs delay the others.
pub const MODBUS_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Questions in a row that no device of a TCP connection answers, after which another connection is tried: one may be dead
/// without a sign of it.
pub const MODBUS_SILENT: u32 = 3;
/// On a line that outputs write on, the source leaves at least this much between two questions: five looks of
/// the guard's for its turn.
pub const MODBUS_SHARE: Duration = Duration::from_millis(5);
/// How often a turn on a shared line is looked for.
pub const MODBUS_TURN_LOOK: Duration = Duration::from_millis(1);
/// A turn that is held for longer than an unanswered question (1.5 × `answer_ms`) and this is not waited for: its process hangs.
pub const MODBUS_TURN: Duration = Duration::from_secs(1);
/// GPIO lines of one source: what one request of the kernel's holds.
pub const GPIO_LINES: usize = 64;
/// Samples of one column in a frame: 64 KiB of bytes hold more, but a frame is worked through in one go, and 8,192 rows take 3 ms.
pub const BLOCK_ROWS: usize = 8192;
/// Rows of a source that are known for a repeat: a gateway that sends twice does so within a second of 64 rows.
pub const ROWS_KNOWN: usize = 64;
/// The same of a source whose frames hold many rows, in frames.
pub const FRAMES_KNOWN: u64 = 4;
/// Rows that a counter which begins again at 0 or 1 may have lost: a spoilt line loses a few in a row; a counter of 8 bits
/// lands there by chance after one loss in 128.
pub const ROWS_LOST: u64 = 16;
/// A sensor's pace is measured over so many of its rows at least, and over so long (ns of the rows' times): a gateway hands
/// out what it gathered in a second or two.
pub const PACE_ROWS: u64 = 64;
/// See `PACE_ROWS`.
pub const PACE_NS: i64 = 2_000_000_000;
/// A sensor may be so many times as fast as it was before a number of missing rows is not believed.
pub const PACE_SLACK: u64 = 4;
/// Sentences after which one that differed in a letter is forgotten: a spoilt one whose checksum is right comes once in 256
/// spoilt ones.
pub const LETTER_SENTENCES: u32 = 64;
/// So many that differ within these are no accident: the sensor sends several kinds.
pub const LETTER_OTHERS: u32 = 3;
/// A port's noise is looked at over this long (ns of stamp time).
pub const NOISE_NS: u64 = 10_000_000_000;
/// Frames within that below which nothing is said of noise.
pub const NOISE_FRAMES: u64 = 4;
/// A source is lost after so long (ns of stamp time): a port is opened again within 4 s, a device restarts within 5.
pub const LOST_NS: u64 = 10_000_000_000;
/// Or for so many of its usual periods, or for its `stale_ms`, if that is longer.
pub const LOST_PERIODS: u64 = 10;
/// The same where its period is not known yet: most sensors give a value a minute.
pub const LOST_FIRST_NS: u64 = 60_000_000_000;
/// Samples kept for an alarm's rate of change, one of each such part of its span: exact to 2 %, 1 KiB for each alarm.
pub const RATE_POINTS: usize = 64;
/// What the signal stage counted of values is handed to those who look this often (ns of stamp time).
pub const METER_NS: u64 = 500_000_000;
/// A pipeline whose last answered window is older than this, or than `LOST_PERIODS` of its usual periods, has no current score.
pub const SCORE_NS: u64 = LOST_NS;
/// The values of a channel are looked at over this long (ns of stamp time).
pub const BAD_NS: u64 = 10_000_000_000;
/// Values within that below which no share is taken: they are waited for.
pub const BAD_VALUES: u64 = 4;
/// A channel with a larger share of bad values is bad.
pub const BAD_SHARE: f64 = 0.5;
/// And good again below this one, so that it does not flap.
pub const GOOD_SHARE: f64 = 0.25;
/// Bytes of a frame that an event shows as an example; escaped they are four times as many characters at most.
pub const EXAMPLE_BYTES: usize = 120;
/// Default interval at which levels are reported and counters read, ms.
pub const GPIO_SAMPLE_MS: u64 = 100;
/// Edges a second of one line that are a storm unless configured: 1,000 × 48 bytes are 3 % of one core of a Pi.
pub const GPIO_STORM_HZ: u32 = 1000;
/// The kernel's queue of edges, for each line: 64 ms of 1 kHz are 64; this is a second of a storm.
pub const GPIO_EDGES: u32 = 1024;
/// Edges taken with one read: 64 × 48 bytes are 3 KiB.
pub const GPIO_READ: usize = 64;
/// After a storm edges are tried again after this.
pub const GPIO_CALM: Duration = Duration::from_secs(5);
/// Outputs: the guard hears from the daemon this often.
pub const GUARD_BEAT: Duration = Duration::from_millis(100);
/// And sets the safe state when it heard nothing for so long: four beats may be late.
pub const GUARD_SILENCE: Duration = Duration::from_millis(500);
/// A guard that does not answer within this is killed, and another one started.
pub const GUARD_ANSWER: Duration = Duration::from_millis(500);
/// How long a guard may take to start and ask for its lines.
pub const GUARD_START: Duration = Duration::from_secs(5);
/// How long to wait before a guard that could not start is tried again.
pub const GUARD_RETRY: Duration = Duration::from_secs(1);
/// The stages that decide beat every second; one that did not move for so long hangs, and outputs go to their safe state.
pub const GUARD_STALL: Duration = Duration::from_secs(4);
/// Outputs of one device: one bit each in a message to the guard.
pub const OUTPUTS: usize = 64;
/// The first message to the guard: 64 lines of 200 bytes, or coils of 400.
pub const GUARD_BYTES: usize = 32 * 1024;
/// A coil or register that could not be written is tried again after this, twice as long each time,
pub const OUTPUT_RETRY: Duration = Duration::from_millis(100);
/// up to this: a relay that has power again is set within two seconds.
pub const OUTPUT_RETRY_MAX: Duration = Duration::from_secs(2);
/// How long a device may take to accept a connection of the guard's.
pub const OUTPUT_CONNECT: Duration = Duration::from_secs(2);
/// A guard whose outputs are no longer configured writes their safe state within this, or ends without: two tries of 500 ms.
pub const OUTPUT_SETTLE: Duration = Duration::from_millis(1500);
/// Files of readings that could not be read are reopened after this.
pub const SYSFS_RETRY: Duration = Duration::from_secs(4);
