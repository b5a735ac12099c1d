//! What is bounded at escalation: windows that go to a larger model elsewhere, and its answers.

/// Windows in any hour, unless configured: what is unsure for long is asked about every six minutes.
pub const ESCALATE_PER_HOUR: i64 = 10;
/// Most that may be configured: each one is a write of the budget, 8 KiB of flash, so 5 MB an hour.
pub const ESCALATE_PER_HOUR_MAX: i64 = 600;
/// KiB in any day, unless configured: 240 windows of 64 × 8 × 4 B with their heads are 0.7 MiB.
pub const ESCALATE_KIB_DAY: i64 = 1024;
/// How long after a window's last row the answer may come, unless configured, ms: a satellite's round trip, and a model of seconds.
pub const ESCALATE_DEADLINE_MS: i64 = 10_000;
/// The longest that may be configured, ms.
pub const ESCALATE_DEADLINE_MS_MAX: i64 = 600_000;
/// Largest window that is sent, bytes of its values: a payload stays within 128 KiB with the largest header.
pub const ESCALATE_WINDOW_BYTES: usize = 96 * 1024;
/// Largest header, bytes: 128 channels of 2 × 64 characters, 64 classes of 64 + 16, a lineage of 400, and the rest. A window with a
/// larger one is not sent.
pub const ESCALATE_HEADER_BYTES: usize = 24 * 1024;
/// A head that most windows have, to find budgets that no window fits: 8 channels, the packet and its topic.
pub const ESCALATE_HEAD_BYTES: usize = 1024;
/// Of a packet around payload and topic: fixed header 5, length of the topic 2, id 2, properties 1, expiry 5.
pub const ESCALATE_PACKET_BYTES: usize = 15;
/// Requests of one pipeline that await their answer: 16 × 300 B.
pub const ESCALATIONS_PENDING: usize = 16;
/// Windows of one pipeline that wait for the budget to be written: 4 × 128 KiB at most.
pub const ESCALATIONS_HELD: usize = 4;
/// Windows that wait for the link: it takes one a turn, and 4 × 128 KiB are held at most.
pub const ESCALATIONS_WAITING: usize = 4;
/// Requests that are remembered after their end, to tell a late or second answer from a foreign one: 64 × 16 B.
pub const ESCALATIONS_ENDED: usize = 64;
/// Answers of one pipeline that wait for its model's thread: as many as requests.
pub const ESCALATION_ANSWERS: usize = 16;
/// Largest answer, bytes: 64 classes of 64 + 24 characters are 5.6 KiB; with names of usual length they fit.
pub const ESCALATION_ANSWER_BYTES: usize = 4096;
/// Length of the slots in which what was sent is counted, ns. What is sent at a slot's begin counts until its end has left the
/// hour, or the day: five minutes too long at most.
pub const ESCALATION_SLOT_NS: u64 = 300 * 1_000_000_000;
/// Slots that are kept: those of a day, the one that leaves it, and the one that begins. 290 × 24 B.
pub const ESCALATION_SLOTS: usize = 290;
/// An answer stands so long while the model stays unsure, ns: then the local rules decide again, and by default ten further windows
/// could have been asked about.
pub const ESCALATION_STANDS_NS: u64 = 3_600_000_000_000;
