//! What is bounded at the outbox: its memory, its commits, its space on the disk, the ledger.

use std::time::Duration;

/// RAM tail, bytes: 1.2 s (until a record is accepted) of 10,000 records/s × 330 B = 4 MB. Larger would only make a
/// sensor that outruns the broker wait longer: at 12 MB/s this is a third of a second.
pub const TAIL_BYTES: usize = 4 * 1024 * 1024;
/// At this fill, and with no acknowledgement during a turn, the tail goes to the store although the link is up: a
/// quarter is left for what arrives during one commit.
pub const TAIL_SPILL_BYTES: usize = TAIL_BYTES / 4 * 3;
/// Above it only alarms are let in while the disk is slow: 1,000 of 0.5 KiB.
pub const TAIL_ALARM_BYTES: usize = TAIL_BYTES / 8;
/// RAM tail while the store is being opened, two minutes for the largest on a slow card: 400 records/s × 120 s × 330 B.
pub const TAIL_OPENING_BYTES: usize = 16 * 1024 * 1024;
/// A disk that has not completed a write for so long counts as hanging, and the callers stop waiting: an SD card that cleans
/// up takes half a second.
pub const DISK_PATIENCE: Duration = Duration::from_secs(1);
/// Alarms and events kept in RAM through an outage so that they go first after it; 256 × 0.5 KiB. Older ones are in
/// the store.
pub const EVENTS_IN_RAM: usize = 256;
/// A record counts this many bytes beside its body: the struct and its place in a queue.
pub const RECORD_OVERHEAD: usize = 128;
/// What stays unacknowledged this long goes to the store.
pub const UNACKED: Duration = Duration::from_millis(1000);
/// A commit closes after this long, or at the count below.
pub const COMMIT_EVERY: Duration = Duration::from_millis(800);
/// Records that close a commit early.
pub const COMMIT_RECORDS: usize = 256;
/// How often the outbox looks at ages: a sixth of the second above, so 1.2 s is kept with a commit of 30 ms.
pub const OUTBOX_TURN: Duration = Duration::from_millis(150);
/// Records in one message. 1,024 × 115 B of a short prediction fill the 120 KiB below.
pub const MESSAGE_RECORDS: usize = 1024;
/// A message closes at this size; the envelope's 128 KiB leave 8 KiB for its head and the topic.
pub const MESSAGE_BYTES: usize = 120 * 1024;
/// Largest single record body: one must fit a message.
pub const RECORD_BYTES: usize = 100 * 1024;
/// Messages read ahead from the store while the backlog is sent, bytes: 4 of the largest.
pub const BACKLOG_RAM_BYTES: usize = 4 * MESSAGE_BYTES;
/// Records in one segment tree of the store, dropped whole when all were acknowledged.
pub const SEGMENT_RECORDS: u64 = 4096;
/// sled's page cache, bytes: its default is 1 GiB.
pub const STORE_CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// After a disk failure the store is reopened this often: freed space is used within 10 s.
pub const STORE_REOPEN: Duration = Duration::from_secs(4);
/// A forked child holds the lock of the store's file until it calls exec, some ms: the lock is tried this many times, in
/// 1.5 s.
pub const STORE_LOCK_TRIES: u32 = 150;
/// The pause between two of these tries.
pub const STORE_LOCK_WAIT: Duration = Duration::from_millis(10);
/// Default cap of the store, MiB of sealed messages. 72 h × 3,600 s × 10 records/s × 200 B = 518 MB raw; zstd takes
/// JSON of this kind to about a fifth: 104 MB. sled's plateau is about 6 times the live bytes (24 MB for 4 MB).
pub const STORE_MIB: u64 = 128;
/// Messages made while there is no connection close at this size: 16 of them, packed to a fifth, are a page of sled's
/// (100 KiB); above 128 KiB a page goes into a file of its own, rewritten with every change.
pub const STORED_MESSAGE_BYTES: usize = 32 * 1024;
/// Share of the partition that all of the outbox may take, stores set aside included.
pub const DISK_SHARE_PERCENT: u64 = 35;
/// Given up first when the disk is full: sled reopens and takes some 40 commits of 100 KiB with it.
pub const BALLAST_BYTES: u64 = 4 * 1024 * 1024;
/// On a small partition the ballast is this part of the share: 1 MiB of 24 MiB.
pub const BALLAST_SHARE: u64 = 8;
/// How often it is looked whether the ballast can be made again.
pub const BALLAST_EVERY: Duration = Duration::from_secs(10);
/// A store up to this size is read into memory before it is opened, for the moment of the start; of a larger one the newest
/// messages up to this size, which is a store of five times as much.
pub const SALVAGE_BYTES: u64 = 16 * 1024 * 1024;
/// An error that keeps a store shut passes; where it lasts for so long though the disk works otherwise, the store is set
/// aside and what can be read of it is taken over: a hung disk or an exhausted table of files is over within seconds, or it
/// affects all of the disk.
pub const PASSING: Duration = Duration::from_secs(120);
/// How often it is looked again at stores that were set aside and are not salvaged yet.
pub const SALVAGE_EVERY: Duration = Duration::from_secs(300);
/// So often what cannot be read of them is tried again while the disk works otherwise: 40 minutes.
pub const SALVAGE_TRIES: u32 = 8;
/// A stop tries to store what is left for so long, where the disk fails: within `DRAIN`.
pub const STOP_RETRY: Duration = Duration::from_secs(6);
/// An opening of the store that was begun so often and never came to an end is not tried again.
pub const OPEN_ATTEMPTS: u32 = 3;
/// Longest probe of the store: 128 MiB × 6 (sled's plateau) at a cold SD card's 25 MB/s are 32 s; systemd waits 90 s.
pub const PROBE: Duration = Duration::from_secs(60);
/// Memory of the probe: sled's index of the largest store is under 100 MiB, but glibc reserves 64 MiB of addresses for each of its threads.
pub const PROBE_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// How often stored messages are looked at for their age.
pub const EXPIRY_EVERY: Duration = Duration::from_secs(10);
/// Shortest interval between two log lines that say that the store is full.
pub const FULL_SAID: Duration = Duration::from_secs(3600);
/// Health, quality and losses are of use for a week unless configured.
pub const EXPIRE_STATUS_H: u64 = 7 * 24;
/// Responses expire after a day unless configured: the requester no longer waits.
pub const EXPIRE_REPLY_H: u64 = 24;
/// The ledger's sums are saved at most this often: 3 × 4 KiB a minute is 17 MB a day, and only while losses go on.
pub const LEDGER_SAVE: Duration = Duration::from_secs(60);
/// Sequence numbers reserved on disk at a time: at 1,000 records/s a block lasts 17 minutes without a write, and
/// 2^53 (what a JSON reader holds exactly) / 2^20 allows 8 thousand million starts.
pub const SEQ_BLOCK: u64 = 1 << 20;
/// Damaged stores kept aside for a look; the oldest is removed first.
pub const QUARANTINES: usize = 3;
/// Ledger entries waiting to be published; beyond it, entries of one stream and reason are merged.
pub const LEDGER_ENTRIES: usize = 256;
/// Longest `outbox.linger_ms`: a minute of one record a second is 60 in a message, which saves what there is to save.
pub const LINGER_MS: i64 = 60_000;
/// With so much in RAM no record waits for others.
pub const LINGER_BYTES: usize = TAIL_BYTES / 4;
