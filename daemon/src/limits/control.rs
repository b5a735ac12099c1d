//! What is bounded at control: commands, configurations on trial, keysets, transfers, the system.

use std::time::Duration;

use super::SESSION_EXPIRY_S;

/// A state file that cannot be read is tried again so often, where it is looked at once: with the pause below for a second.
/// A card that resets its bus is back within that.
pub const READ_TRIES: u32 = 10;
/// The pause between two of these tries.
pub const READ_WAIT: Duration = Duration::from_millis(100);
/// A memory that cannot be read is tried again this often.
pub const UNREADABLE_TRY: Duration = Duration::from_secs(4);
/// And for so long, before it counts as damaged: EMFILE and a card's reset pass within seconds, a broken sector never does.
pub const UNREADABLE_WAIT: Duration = Duration::from_secs(60);
/// An issuer's sequence and the versions of `dn/desired` and `dn/channel` may be ahead of the last one by this at once where
/// they are no times: a counter that grows with each commit of a fleet's configuration takes years for it.
pub const VERSION_JUMP: u64 = 1 << 20;
/// A signed message may be issued so much ahead of this device's clock, ms: NTP holds clocks to well under a second, and one
/// set by hand is within minutes. It bounds versions that are times in the same way.
pub const ISSUED_AHEAD_MS: i64 = 5 * 60 * 1000;
/// Where the clock is not synchronised it may be behind by this: ten years after the build are those of the clock's floor.
pub const CLOCK_BEHIND_MS: i64 = 10 * 366 * 86_400_000;
/// Longest life of the channel's word: a maker who releases nothing still signs it every quarter.
pub const CHANNEL_LIFE_MS: i64 = 92 * 86_400_000;
/// Longest life of a desired state that names an end: a device that is away for a year gets it.
pub const DESIRED_LIFE_MS: i64 = 366 * 86_400_000;

/// Commands waiting for control: what a session of a week brings at a reconnect comes within a moment.
pub const ORDERS: usize = 1024;
/// And bytes of them: 1,024 of 500 bytes, and one or the other large one.
pub const ORDER_BYTES: usize = 1024 * 1024;
/// Largest command: what is advertised to the broker (`PACKET_BYTES`) less its topic and properties.
pub const COMMAND_BYTES: usize = 60 * 1024;
/// Nesting of a command's JSON: its arguments need 3.
pub const COMMAND_DEPTH: usize = 16;
/// Longest life of a command: the broker's session lives as long.
pub const COMMAND_LIFE_MS: i64 = SESSION_EXPIRY_S as i64 * 1000;
/// Highest sequence of an issuer: what a JSON number holds exactly.
pub const ISEQ_MAX: u64 = (1 << 53) - 1;
/// Commands without a verified signature that are looked at, for each second.
pub const COMMANDS_PER_S: f64 = 5.0;
/// And at once.
pub const COMMANDS_BURST: f64 = 20.0;
/// Verified commands, for each second: each that acts costs two writes of 4 ms.
pub const VERIFIED_PER_S: f64 = 10.0;
/// And at once: a hundred devices' worth of work from one script.
pub const VERIFIED_BURST: f64 = 100.0;
/// Commands that are refused with an answer: 20/s × 300 B are 6 kB/s; further ones are counted.
pub const REFUSALS_PER_S: f64 = 20.0;
/// And at once: a hundred stale ones after an outage get their answer.
pub const REFUSALS_BURST: f64 = 200.0;
/// Broadcast commands waiting for their turn.
pub const JOBS: usize = 32;
/// Ids that are remembered: at one command a minute 17 hours; what acts is also held by its issuer's sequence.
pub const COMMANDS_KNOWN: usize = 1024;
/// Digests of configurations that were put back.
pub const PUT_BACK_KNOWN: usize = 64;
/// Characters of a result's text that are remembered.
pub const RESULT_TEXT: usize = 400;
/// Characters of a result's text: 20 problems of a configuration.
pub const RESULT_TEXT_SENT: usize = 8000;
/// Longest name of an issuer.
pub const ISSUER_BYTES: usize = 64;
/// Largest result of a command: a record's body less its head.
pub const RESULT_BYTES: usize = 96 * 1024;
/// What may be set remotely, bytes: fits a command, quoted and signed.
pub const REMOTE_CONFIG_BYTES: usize = 48 * 1024;
/// Problems of a configuration that a result tells.
pub const PROBLEMS_TOLD: usize = 20;
/// How often control looks what is due.
pub const CONTROL_TURN: Duration = Duration::from_millis(100);
/// A configuration that cannot cut the device off stays when the stages lived with it for so long.
pub const SETTLE: Duration = Duration::from_secs(3);
/// A change that could cut the device off is put back after this long, unless confirmed or configured.
pub const CONFIRM_S: u64 = 120;
/// Devices asked together begin within this, unless configured.
pub const JITTER_S: u64 = 10;
/// Longest response topic that is answered.
pub const TOPIC_BYTES: usize = 512;
/// And its levels: brokers have limits (mosquitto closes on more than 200).
pub const TOPIC_LEVELS: usize = 32;
/// Answers waiting for response topics.
pub const RESPONSES: usize = 32;
/// One fetch of a bundle: 272 MiB at 128 KiB/s.
pub const FETCH: Duration = Duration::from_secs(3600);
/// Bytes asked for at a time.
pub const FETCH_PIECE_BYTES: u64 = 512 * 1024;
/// One piece may take so long: slower than 8 KiB/s is no line to bring models over.
pub const FETCH_PIECE: Duration = Duration::from_secs(64);
/// A piece that broke off counts as going on when it brought so much.
pub const FETCH_LEAST: u64 = 16 * 1024;
/// Pieces in a row that brought less before it is given up: with the waits between them, a router's restart.
pub const FETCH_TRIES: u32 = 8;
/// Bytes that an install leaves free on the disk: the outbox's reserve and its next commits.
pub const BUNDLE_LEAVES_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of a chunk by MQTT that fit what is advertised.
pub const BLOB_CHUNK: usize = 48 * 1024;
/// A bundle of which nothing came for so long is given up: who sends it was away for a night and did not come back. (A
/// fetch by HTTPS ends by itself within `FETCH`.)
pub const BRING_SILENCE: Duration = Duration::from_secs(24 * 3600);
/// And any that is not here after so long: the broker's session lives no longer. 272 MiB in a week are 472 B/s.
pub const BRING_MOST: Duration = Duration::from_secs(SESSION_EXPIRY_S as u64);
/// Shortest interval between two reports of what is missing of a bundle, ns.
pub const BLOB_TOLD_NS: u64 = 1_000_000_000;
/// Orders that a broker may have on their way to us at once: 16 chunks of 60 KiB fit the queue above.
pub const RECEIVE_MAXIMUM: u16 = 16;
/// Largest bundle of an operating system: what a fetch brings within its hour at 128 KiB/s.
pub const SYSTEM_BYTES_MAX: u64 = 448 * 1024 * 1024;
/// Bundles of operating systems that were left again and are not tried once more, by digest.
pub const SYSTEMS_FAILED: usize = 8;
/// Where the broker was reached within so long before an update, it must be reached after it.
pub const UPLINK_BEFORE: Duration = Duration::from_secs(24 * 3600);
/// So long the check after a start waits for the broker, where it must be reached, s.
pub const OS_CONFIRM_S: u64 = 600;
/// So long it waits for the daemon and its models: the store's salvage (120 s) and their start.
pub const BOOT_CHECK: Duration = Duration::from_secs(180);
/// Between two questions for a restart into the other slot: three times what an answer may take (10 s).
pub const RESTART_AGAIN: Duration = Duration::from_secs(30);
/// Processes that may begin with an install before it is given up.
pub const INSTALL_STARTS: u32 = 3;
/// Shortest interval between two reports that no model serves, ns.
pub const NO_MODEL_TOLD_NS: u64 = 3_600_000_000_000;
/// Requests of control waiting for the rollout: the three of a job (prove, offer, roll back), of five jobs.
pub const ROLLOUT_REQUESTS: usize = 16;
/// Messages to an engine: the offer of a trial, its end, the offer of what follows, and one more.
pub const ROLLOUT_MESSAGES: usize = 4;
/// Words of threads and engines waiting for control.
pub const MODEL_NEWS: usize = 64;
/// Cohorts of a device: each is a subscription.
pub const COHORTS: usize = 16;
/// Largest keyset: 100 keys of 200 bytes, and room.
pub const KEYSET_BYTES: u64 = 64 * 1024;
/// What `log.pull` gives out at most, bytes: fits a result.
pub const LOG_BYTES: usize = 80 * 1024;
/// Characters of one line of it.
pub const LOG_LINE: usize = 4096;
/// Characters of one field of our own log: all problems of a configuration are about as many.
pub const LOG_FIELD: usize = 8192;
/// What it reads at most: 1,000 lines of 4 KiB.
pub const LOG_READ: u64 = 4 * 1024 * 1024;
/// How long the log's tool may take: a journal of 100 MB on an SD card is searched in 5 s.
pub const LOG_WAIT: Duration = Duration::from_secs(10);
/// How long to wait before the D-Bus, or a port for metrics, is tried again.
pub const BUS_RETRY: Duration = Duration::from_secs(10);
/// How often what D-Bus shows is looked at.
pub const BUS_TURN: Duration = Duration::from_secs(1);
/// How long the bus may take for our signals.
pub const BUS_ANSWER: Duration = Duration::from_secs(5);
/// One answer to Prometheus, and how long its request may be.
pub const METRICS_ANSWER: Duration = Duration::from_secs(2);
/// Connections to the metrics port at a time: a page is about 64 KiB, and Prometheus has one. One more closes the oldest.
pub const METRICS_CONNECTIONS: usize = 8;
/// Bytes of such a request.
pub const METRICS_REQUEST: usize = 8 * 1024;
/// Bytes of a file of the audit log: about 500 entries of 500 bytes. It is read whole at the start.
pub const AUDIT_FILE_BYTES: u64 = 256 * 1024;
/// Files of it: 2 MiB, about 4,000 entries, more than a year of ten a day.
pub const AUDIT_FILES: usize = 8;
/// Entries that wait in memory for a disk that is not writable: 64 × 2 KiB.
pub const AUDIT_WAITING: usize = 64;
/// What `audit.pull` gives out at most, bytes as they are in the result: fits one, with the head.
pub const AUDIT_PULL_BYTES: usize = 80 * 1024;
/// Problems of the audit log that the entry and the event of a start name; `kentledge audit verify` names all.
pub const AUDIT_PROBLEMS: usize = 5;
/// The file below the state directory that asks for the erasure.
pub const ERASE_REQUEST: &str = "erase.request";
/// Longest life of a plan: a rollout in waves of days ends within a quarter.
pub const PLAN_LIFE_MS: i64 = 92 * 86_400_000;
/// A plan is forgotten so long after its end: no clock that is synchronised is wrong by a day.
pub const PLAN_FORGET_MS: i64 = 86_400_000;
/// Plans that a device remembers: three kinds, a handful of models, and their predecessors that have not expired. With 16 waves
/// each they are 60 KiB of the memory's file, with three 20 KiB.
pub const PLANS: usize = 24;
/// Bytes of artifacts of the plans that have not ended: one configuration of the largest size for each kind, with room. They
/// are saved with the memory of commands.
pub const PLANS_BYTES: usize = 128 * 1024;
/// Characters of a plan's name: with `_plan.` and the sequence it is the id of a command, 71 characters.
pub const PLAN_NAME: usize = 48;
/// Waves of a plan: doubling from one in ten thousand takes 14.
pub const PLAN_WAVES: usize = 16;
/// Longest time between two waves, s.
pub const PLAN_HOLD_S: u64 = 30 * 86_400;
/// Longest time over which a wave starts, s.
pub const PLAN_SPREAD_S: u64 = 7 * 86_400;
/// Longest time of listening before a start, s.
pub const PLAN_FRESH_S: u64 = 3600;
/// Gates and halts that came before their plan: all waves of two plans. 32 × 200 bytes of the memory's file.
pub const PLAN_EARLY: usize = 32;
/// Of these, so many a second are remembered: each costs a write, and 10,000 writes a day are nothing to a card.
pub const PLAN_EARLY_PER_S: f64 = 0.1;
/// Messages about plans that wait while the memory of commands cannot be read: `RECEIVE_MAXIMUM` of them arrive at most.
pub const PLANS_LATER: usize = 16;
/// A start that was put off because another job is in progress is tried again after this.
pub const PLAN_AGAIN: Duration = Duration::from_secs(60);
