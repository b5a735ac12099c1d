//! Every bound of the daemon, each with the arithmetic behind it. A number that limits something lives here.

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
/// Registers in one Modbus answer: 125 × 2 bytes and 5 are the 255 that its length byte allows.
pub const MODBUS_WORDS: u16 = 125;
/// Bits in one Modbus answer.
pub const MODBUS_BITS: u16 = 2000;
/// Reads of one bus: at 9,600 baud one of 10 registers takes 50 ms, so 128 of them are 6 s of line time.
pub const MODBUS_READS: usize = 128;
/// How long a Modbus device may take, unless configured, ms: most answer within 100 ms, some gateways take 300.
pub const MODBUS_ANSWER_MS: u64 = 500;
/// Longest pause before a device that does not answer is asked again: on a shared bus its time-outs delay the others.
pub const MODBUS_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// GPIO lines of one source: what one request of the kernel's holds.
pub const GPIO_LINES: usize = 64;
/// Rows of a source that are known for a repeat: a gateway that sends twice does so within a second of 64 rows.
pub const ROWS_KNOWN: usize = 64;
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
/// The first message to the guard: 64 lines of 200 bytes.
pub const GUARD_BYTES: usize = 16 * 1024;
/// Files of readings that could not be read are reopened after this.
pub const SYSFS_RETRY: Duration = Duration::from_secs(4);

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

/// Window lane, windows of one model: 3 s (a worker's deadline and restart) at 1,365 windows/s.
pub const WINDOWS: usize = 4096;
/// Window lane, bytes: 4,096 windows of 64 steps × 8 channels × 4 B = 8 MiB.
pub const WINDOW_LANE_BYTES: usize = 8 * 1024 * 1024;
/// Largest window, values: 65,536 × 4 B = 256 KiB; 16 slots of it are 4 MiB of shared memory.
pub const WINDOW_VALUES_MAX: usize = 65_536;
/// Most rows of a window.
pub const WINDOW_STEPS_MAX: usize = 16_384;
/// Most channels of a configuration: with 32 B of state each, 32 KiB.
pub const CHANNELS_MAX: usize = 1024;
/// Most values that all wanted outputs of a model may have together: 8,192 × 8 B = 64 KiB for each slot.
pub const OUTPUT_VALUES_MAX: usize = 8192;
/// Most classes that a model names: of a prediction each takes up to 64 + 24 bytes, 6 KiB together.
pub const CLASSES: usize = 64;
/// Windows handed to the worker at one ring of the doorbell: the ring's cost (about 10 µs) is 1 % of 64 × 15 µs.
pub const SLOTS_MAX: usize = 64;
/// Shared memory of one worker, bytes; slots are reduced until they fit.
pub const SHARED_BYTES: usize = 8 * 1024 * 1024;
/// Largest model file read, bytes. A Pi with 1 GiB runs nothing larger beside the rest.
pub const MODEL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Largest bundle: two variants of the largest model would be more than a board has room for.
pub const BUNDLE_BYTES_MAX: u64 = MODEL_BYTES_MAX + 16 * 1024 * 1024;
/// Files of a bundle: manifest, 4 signatures, 8 variants, golden, baseline, card, and one to notice.
pub const BUNDLE_FILES_MAX: usize = 16;
/// Largest manifest: 1,000 channels of 64 characters, twice.
pub const MANIFEST_BYTES_MAX: u64 = 256 * 1024;
/// Largest signature: minisign's trusted comment has 8 KiB at most.
pub const MINISIG_BYTES_MAX: u64 = 16 * 1024;
/// Largest golden.jsonl, baseline.json, card.md: 100 windows of 512 values of 12 characters are 0.6 MB.
pub const BUNDLE_TEXT_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Golden cases: at a deadline of 1 s each a proof stays below 5 minutes.
pub const GOLDEN_CASES_MAX: usize = 256;
/// A model's sequence may grow by this at once: seconds since 1970 fit as a sequence, and a stolen key cannot spend it all.
pub const MODEL_SEQ_JUMP: u64 = 1 << 32;
/// Bundles that failed here and are not tried again: 32 × 0.5 KiB.
pub const BUNDLES_FAILED_KNOWN: usize = 32;
/// Signatures of one keyset.
pub const KEYSET_SIGNATURES: usize = 16;
/// Nesting of ONNX subgraphs that the scan follows.
pub const ONNX_DEPTH_MAX: usize = 16;
/// Messages inside one another in an ONNX file: 16 subgraphs are 3 each (graph, node, attribute), and a tensor or a type in
/// the innermost has 12 more; readers of protobuf themselves stop at 100.
pub const ONNX_NESTING_MAX: usize = 64;
/// Nodes of an ONNX file, subgraphs included.
pub const ONNX_NODES_MAX: usize = 200_000;
/// Dimensions of one tensor; the runtime's own operators take 8 at most.
pub const ONNX_RANK_MAX: usize = 32;
/// Values of one tensor that a file declares: the largest model file holds 2^28 bytes.
pub const ONNX_VALUES_MAX: u64 = 1 << 28;
/// Values of an input that the worker gets for its trial run: 4,096 × 12 characters fit its start message.
pub const TRIAL_VALUES: usize = 4096;
/// How long a worker may take to load library and model: a Pi 4 reads 25 MB/s of a cold SD card, the library in 1.2 s.
pub const WORKER_START: Duration = Duration::from_secs(30);
/// The same where an accelerator builds an engine first: TensorRT takes minutes on an Orin.
pub const WORKER_BUILD: Duration = Duration::from_secs(600);
/// Memory a worker may take unless configured, MiB: the library maps 30, a small model 40, and a Pi 4 has 1 to 8 GiB.
pub const WORKER_MIB: u64 = 512;
/// Addresses a worker on the processor may map beside its memory: the largest model (256 MiB) twice, the library and what it
/// needs (100 MiB), the shared memory (8 MiB), reserved heaps of the C library (64 MiB each).
pub const WORKER_MAPPED_BYTES: u64 = 1024 * 1024 * 1024;
/// Tasks (processes and threads) of our user beyond which a worker starts none: the unit's TasksMax (1,024) less 256 that
/// stay with the daemon.
pub const WORKER_TASKS: u64 = 768;
/// Lines of a worker's standard error that are logged within the time below: an ONNX Runtime that complains once a run would
/// write 50 a second.
pub const WORKER_LINES: u32 = 20;
/// See above.
pub const WORKER_LINES_EVERY: Duration = Duration::from_secs(3600);
/// Longest of those lines, and of any text in a worker's answer, characters: an ONNX Runtime error names the node, its file
/// and line in about 300.
pub const WORKER_LINE: usize = 1000;
/// Most of a worker's standard error that is read at once, bytes: what a pipe holds.
pub const WORKER_STDERR: usize = 64 * 1024;
/// Tensors a model may declare, inputs and outputs each; providers that may share it: an answer of 128 KiB holds no more.
pub const TENSORS_MAX: usize = 1024;
/// Dimensions of a tensor: ONNX Runtime's own kernels take 8 at most.
pub const TENSOR_RANK: usize = 16;
/// Values of a tensor by its fixed dimensions. Times the largest window (16,384 × 1,024) that stays below 2^63.
pub const TENSOR_VALUES_MAX: i64 = 1 << 32;
/// Nodes of a model on one provider, as reported.
pub const NODES_MAX: usize = 1 << 24;
/// Different windows in a row that a model on trial may answer with the very same score.
pub const GATE_SAME: u64 = 50;
/// Flawed windows in a row that it may leave without an answer.
pub const GATE_UNANSWERED: u64 = 20;
/// Its newest scores that are compared with those it was made with: 1,024 × 8 B.
pub const GATE_SCORES: usize = 1024;
/// Workers that may be lost within the time below before what serves counts as failing.
pub const WORKERS_LOST: usize = 3;
/// See above, ns.
pub const WORKERS_LOST_WITHIN_NS: u64 = 600_000_000_000;
/// How often a worker's memory is looked at, ns.
pub const MEMORY_EVERY_NS: u64 = 1_000_000_000;
/// A new model runs beside the old one for at least so long before it serves, unless configured, s.
pub const SHADOW_S: u64 = 0;
/// A trial takes at least so long, unless configured: ten minutes show what a machine does every few minutes.
pub const TRIAL_S: u64 = 600;
/// And so many windows.
pub const TRIAL_WINDOWS: u64 = 100;
/// A trial that could be over and has had too few windows so long after that is given up.
pub const TRIAL_MOST: Duration = Duration::from_secs(24 * 3600);
/// The oldest window of a pipeline may wait so long, beyond what a time grid waits for late samples: a worker's start on a Pi 4
/// with a cold card is 1.2 s, a deadline and a restart 3 s.
pub const BEHIND: Duration = Duration::from_secs(5);
/// And where it waits for longer, that may last so long without getting better.
pub const BEHIND_FOR: Duration = Duration::from_secs(5);
/// Runs of one ring of the doorbell take about so long at most: then predictions are out five times a second even of a backlog, and
/// 64 runs of 15 µs still fit.
pub const RING: Duration = Duration::from_millis(200);
/// An alarm may wait so long for the answer which channels drove it.
pub const EXPLAIN: Duration = Duration::from_millis(20);
/// Inputs are compared with a model's baseline over this time, ns.
pub const DRIFT_NS: u64 = 300_000_000_000;
/// Values of one channel that are kept for it: 33 quantiles of 4,096 are known to 1 %; 8 channels are 256 KiB.
pub const DRIFT_VALUES: usize = 4096;
/// Windows kept while calibrating, bytes: 400 windows of 64 × 8 × 4 B = 0.8 MiB; 16 MiB leaves room for 20 times that.
pub const CALIBRATION_BYTES: usize = 16 * 1024 * 1024;
/// Restart of a failed worker: first retry after at most this, doubling up to the next figure.
pub const WORKER_RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest wait between two starts of a worker that keeps failing.
pub const WORKER_RETRY_MAX: Duration = Duration::from_secs(30);

/// A source without bytes emits a Tick at least this often, so that silence can be seen.
pub const TICK: Duration = Duration::from_millis(100);
/// Reopening a port: 0.5–30 s, but the first retry comes within 0.5 s so that a short hang-up costs less than 1 s.
pub const REOPEN_MIN: Duration = Duration::from_millis(250);
/// Longest wait between two tries to open a port. A port that came back is noticed within 5 s at the latest.
pub const REOPEN_MAX: Duration = Duration::from_secs(4);
/// Quality of a source is published when it changed, at most this often (ns of stamp time).
pub const QUALITY_EVERY_NS: u64 = 1_000_000_000;

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

/// Messages in flight at once. 100 × 120 KiB would be 12 MB, but RAM is bounded by the tail, which holds them.
pub const IN_FLIGHT: u16 = 100;
/// Largest packet we accept from a broker, and advertise.
pub const PACKET_BYTES: u32 = 64 * 1024;
/// Keep-alive unless configured: with the client's ping time-out a dead peer is noticed within 2 × 15 s + 5 s.
pub const KEEP_ALIVE_S: u64 = 15;
/// While an outage of this device's own network is short the next connect comes within this (full jitter): 7 tries a
/// second on average, and none of them reaches a broker.
pub const RECONNECT_MIN: Duration = Duration::from_millis(300);
/// How long that is: a broker's restart or a router's.
pub const RECONNECT_SHORT: Duration = Duration::from_secs(120);
/// After the broker went away all its devices return within this at the soonest (full jitter): 10,000 devices are 2,000
/// connections a second.
pub const RECONNECT_SPREAD: Duration = Duration::from_secs(5);
/// Longest wait between two connects.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Another client uses our client id: each connect ends the other's session. Ours waits so long, doubling.
pub const TWIN_WAIT: Duration = Duration::from_secs(30);
/// The longest of these waits.
pub const TWIN_WAIT_MAX: Duration = Duration::from_secs(900);
/// A connection that the broker accepts and closes within this is short-lived.
pub const SOON: Duration = Duration::from_secs(5);
/// So many of them in a row are reported.
pub const SOON_TIMES: u32 = 3;
/// After so many of them each doubles the longest wait before the next connect.
pub const SOON_SPARED: u32 = 6;
/// A message that was sent within this before the broker closed may be why: twice a satellite's round trip, and room.
pub const BLAMED_WITHIN: Duration = Duration::from_secs(5);
/// Messages that ended connections and are remembered: 64 × 100 B.
pub const SUSPECTS: usize = 64;
/// Messages held back because they ended two connections: with `STORED_MESSAGE_BYTES` each they take half of what is read
/// ahead of the backlog.
pub const SUSPECTS_HELD: usize = 8;
/// One of them is tried a third time when the connection has held for so long.
pub const SUSPECT_AGAIN: Duration = Duration::from_secs(20);
/// Handled orders that are remembered by their digest: four times what may be in flight to us.
pub const ORDERS_SEEN: usize = 64;
/// Subscriptions in one packet: AWS IoT Core takes no more.
pub const FILTERS: usize = 8;
/// What happens often is logged once, and then as a number this often.
pub const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Slots of the broker's receive maximum that the backlog leaves to alarms and live data.
pub const LIVE_SLOTS: usize = 2;
/// Unsent bytes in the kernel at most, before an alarm: half a second at 1 Mbit/s.
pub const UNSENT_BYTES: u32 = 64 * 1024;
/// How often a connection is looked at when nothing happens on it.
pub const LINK_TICK: Duration = Duration::from_millis(500);
/// A broker that answers pings but acknowledges nothing for so long, or two keep-alives, is left: its queue may be full,
/// and a slow one of 64 KiB/s has taken 2 MiB by then.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
/// Outages of at least this length are reported.
pub const OUTAGE_TOLD: Duration = Duration::from_secs(1);
/// How often the clock is looked at while TLS waits for it.
pub const CLOCK_WAIT: Duration = Duration::from_secs(1);
/// How often the time is saved, where it is known to be right: 8 KiB an hour.
pub const CLOCK_SAVE: Duration = Duration::from_secs(3600);
/// TCP and MQTT handshake together.
pub const CONNECT: Duration = Duration::from_secs(10);
/// MQTT session expiry: a device off for a week gets the commands that wait for it.
pub const SESSION_EXPIRY_S: u32 = 7 * 24 * 3600;

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
/// Acknowledgements of orders in the client library's queue at once: it is emptied with each turn of its loop.
pub const ACKS_QUEUED: usize = 6;
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
/// The file below the state directory that asks for the erasure.
pub const ERASE_REQUEST: &str = "erase.request";

/// Stop: every queue empties into the next within this, then what is left is stored. systemd's default kills at 90 s.
pub const DRAIN: Duration = Duration::from_secs(8);
/// The same for the outbox while its store is being opened: with the rest of a stop, which is quick then, it stays below the
/// unit's 30 s.
pub const DRAIN_OPENING: Duration = Duration::from_secs(20);
/// Of which the link may use this to get the last acknowledgements.
pub const DRAIN_LINK: Duration = Duration::from_secs(3);
/// Core stages beat at least this often when they have nothing to do.
pub const BEAT: Duration = Duration::from_secs(1);
/// How often health looks at the stages and writes the status line.
pub const WATCHDOG_LOOK: Duration = Duration::from_millis(500);
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
/// Packed bytes of the ring in RAM: 60 s of 300 kB/s pack to a fifth, 3.6 MB.
pub const TAPE_RING_BYTES: usize = 4 * 1024 * 1024;
/// Tapes of alarms that are kept; the oldest leaves first. 16 × 4 MiB.
pub const TAPES_KEPT: usize = 16;
/// An arrival's way to the ring: 1,024 reads are seconds, and a full lane sheds, for the ring holds up nothing.
pub const TAPE_LANE: usize = 1024;
