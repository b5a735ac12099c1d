//! What is bounded at models: windows, bundles, ONNX files, workers, trials, drift.

use std::time::Duration;

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
/// Jobs of models that ended and whose results are not saved yet: each event ends 2 at most (an install, and the rollback that
/// cancels it), and control saves the results before the next one.
pub const JOBS_ENDED: usize = 4;
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
/// An engine that a provider built, all its files, bytes: TensorRT keeps a model's weights once, and the kernels it chose; the
/// largest model (256 MiB) twice. One file may have so many, too.
pub const ENGINE_BYTES: u64 = 512 * 1024 * 1024;
/// Files of an engine: TensorRT writes an engine and a profile for each part of the graph that it takes, and one for its timings.
pub const ENGINE_FILES: usize = 32;
/// Engines that are kept: two slots and the image's model on two providers, and two to spare. 4 GiB at most.
pub const ENGINES: usize = 8;
/// An engine is not built, or its build ends, where the disk has less left: the ballast and the outbox need 35 % of a 160 MiB
/// partition.
pub const ENGINE_DISK_LEFT: u64 = 64 * 1024 * 1024;
/// How often it is reported how long an engine has been built for.
pub const ENGINE_PROGRESS: Duration = Duration::from_secs(10);
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
/// So many different windows in a row with the very same score end a trial.
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
/// How often it is published how a candidate compares with what serves, ns: 1 KiB a minute and pipeline.
pub const SHADOW_EVERY_NS: u64 = 60_000_000_000;
/// Windows with an anomaly whose verdicts are remembered beside, for labels that come later: a week of 24 an hour. 16 B each.
pub const SHADOW_ANOMALIES: usize = 4096;
/// And windows without one: 11 days at one a minute, four hours at one a second. 16 B each; together 320 KiB for each pipeline.
pub const SHADOW_WINDOWS: usize = 16_384;
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
/// Runs of one ring of the doorbell take about so long at most: a window of a backlog waits no longer for those of its ring. The
/// ring itself (about 20 µs) is 0.1 % of it, and 64 runs of 300 µs still fit.
pub const RING: Duration = Duration::from_millis(20);
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
/// A budget of false alarms, a week: one in two years, and one in ten minutes.
pub const FALSE_ALARMS_PER_WEEK: (f64, f64) = (0.01, 1000.0);
/// Windows that a threshold with a budget is learnt from, at least: 409 of them are the tail. With 4,096, two machines in a
/// hundred had more than 1.5 false alarms a week for a budget of one; with these, one.
pub const TAIL_WINDOWS: u64 = 8192;
/// And for so long, s: loads and temperatures change with the hour.
pub const TAIL_S: f64 = 86_400.0;
/// Longest time between two windows that counts, s: the rate of windows is that of running.
pub const TAIL_PAUSE_S: f64 = 600.0;
/// One of so many scores belongs to the tail: 5 %. Siffer et al. take 2 %, and learn for ever.
pub const TAIL_SHARE: u64 = 20;
/// Largest scores that are kept, the level below them with them: 4 KiB.
pub const TAIL_KEPT: usize = 1025;
/// Bounds of the shape. Below the lower one a tail ends somewhere, and a few hundred peaks never show where.
pub const TAIL_SHAPE: (f64, f64) = (0.05, 0.5);
/// Fewest peaks that are a distribution.
pub const TAIL_PEAKS_LEAST: usize = 40;
/// The shape is taken so many standard errors heavier than it was found.
pub const TAIL_ERRORS: f64 = 1.5;
/// The threshold is above the level of the tail by at most so many times the level's distance from the mean score.
pub const TAIL_SPREAD: f64 = 10.0;
/// A false alarm raises the threshold to its score, and by this share of the space between the bounds.
pub const TAIL_STEP: f32 = 0.01;
/// A larger share of windows with a raised alarm is no normal running.
pub const TAIL_ALARMED: f64 = 0.05;
/// What is learnt so far is kept every so many windows: 10 KiB.
pub const TAIL_SAVE: u64 = 512;
/// Labels that wait for a pipeline's next window: people send a few a day.
pub const LABELS_WAITING: usize = 16;
/// Windows of `prepare --rows`: at 1 ms each 20 s.
pub const ROWS_WINDOWS: usize = 20_000;
/// Warm-up runs: intervals by which the next window is foretold, 128 bytes: it is expected after the shortest of them.
pub const WARM_UP_INTERVALS: usize = 8;
/// One window of so many gets no warm-up: what it takes is what a warm-up spares.
pub const WARM_UP_CONTROL: u32 = 16;
/// Windows after which it is judged: 16 of them were cold.
pub const WARM_UP_JUDGED_AFTER: u32 = 256;
/// How long it is off then: at 100 windows a second it is tried for 2.6 s of each 600.
pub const WARM_UP_OFF: Duration = Duration::from_secs(600);
/// A window that comes earlier than its forerunners did by this still finds the warm-up ended.
pub const WARM_UP_LEAD: Duration = Duration::from_micros(500);
/// Windows that come faster than 250 a second keep the model warm by themselves.
pub const WARM_UP_PERIOD_MIN: Duration = Duration::from_millis(4);
/// After this much idle time a timer is no more exact than the windows; and alarms within seconds need no microseconds.
pub const WARM_UP_PERIOD_MAX: Duration = Duration::from_secs(2);
