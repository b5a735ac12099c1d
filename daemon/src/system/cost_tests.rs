//! What a sample and a window cost on their way through the daemon, in instructions and in calls of `malloc`: counts, not times,
//! so that they are the same on a busy machine. The road is played by the real rooms on one thread, without the worker and the
//! network; valgrind counts. The build is the tests' own, without an optimiser for this crate: more work on the road shows, what an
//! optimiser makes of it does not.

use std::{path::Path, process::Command, sync::Arc};

use super::streams::Table;
use crate::{
    alarm::{Alarms, Parts},
    config::{Config, Port},
    flow::{Arrival, Clk, FrameBatch, Sink, SourceId, Stamp, Window, board::Board, lane, meter::Meters},
    infer::{Answered, Artifact, Fit, Known, Served, State},
    limits,
    model::manifest::Manifest,
    outbox::{Expiry, OpenWith, Outbox, Reader, Writer},
    signal::{Made, Signal},
    source::framing::Cutter,
};

/// What a row of eight channels cost, and what a window of 64 rows cost beside its row at hop 1, to the acknowledged message.
const COST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/system/cost.json");

/// The counts may be so much higher. Other processors take other ways through memchr and memcpy: 2 %.
const TOLERANCE: f64 = 0.05;

const ROWS: u64 = 400;
const PLAYED: &str = "KL_COST";

/// The rooms along the road, and the lanes between them.
struct Road {
    cutter: Cutter,
    signal: Signal,
    made: Made,
    frames: (lane::Sender<Arrival>, lane::Receiver<Arrival>),
    windows: (lane::Sender<Window>, lane::Receiver<Window>),
    served: Option<(Served, Fit)>,
    writer: Writer,
    reader: Reader,
    _state: tempfile::TempDir,
    // Its thread is not started: nothing is stored.
    _committer: crate::outbox::Committer,
}

fn config(hop: Option<u32>) -> Config {
    let names: Vec<String> = (0..8).map(|i| format!("c{i}")).collect();
    let mut text = format!(
        "[source.s]\npath = \"/dev/null\"\ncolumns = [\"n\", \"t\", {}]\nseq = \"n\"\ntime = \"t\"\ntime_format = \"ns\"\n",
        names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    );
    names.iter().for_each(|name| text.push_str(&format!("[channel.{name}]\n")));
    if let Some(hop) = hop {
        text.push_str(&format!(
            "[pipeline.p]\nbundle = \"m\"\nchannels = {names:?}\nwindow_steps = 64\nhop_steps = {hop}\nthreshold = 2.0\n"
        ));
    }
    Config::unwritten().expect("defaults").with_remote(Some(&text)).unwrap_or_else(|why| panic!("{why:?}"))
}

fn lane_of<T: lane::Weigh>() -> (lane::Sender<T>, lane::Receiver<T>) {
    lane::lane(lane::Bounds { items: 100, bytes: 1 << 20, patience: Some(limits::LANE_PATIENCE) })
}

impl Road {
    fn new(config: &Config) -> Self {
        let table = Table::new(config);
        let meters = Arc::new(Meters::new(config.sources.len(), config.channels.len(), config.pipelines.len()));
        let board = Arc::new(Board::new(config.pipelines.len(), config.alarms.len()));
        let parts = Parts { config, streams: &table.alarms, boot: "boot", keep: None, board: board.clone() };
        let Port::Serial(serial) = &config.sources[0].port else { unreachable!("a serial source") };
        let state = tempfile::tempdir().expect("folder");
        let opened = Outbox::open(OpenWith {
            state_dir: state.path().into(),
            boot: "boot".into(),
            streams: table.names.clone(),
            loss: table.loss,
            max_bytes: 1 << 20,
            expiry: Expiry::default(),
            program: None,
            now_s: 0,
            linger_ms: 0,
        });
        let Outbox { writer, reader, committer, .. } = opened;
        reader.online();
        let served = config.pipelines.first().map(|pipeline| {
            let streams = (table.signal.prediction[0], table.drift[0], table.shadow[0]);
            let shown = (meters.clone(), board.clone());
            let served = Served::new(0, config, streams, &table.alarms, "boot", None, shown);
            let known = Known {
                sha256: "0123456789abcdef0123456789abcdef",
                provider: "cpu",
                features: 0,
                inputs: Vec::new(),
                state: State::new(std::iter::empty()),
            };
            (served, Fit::new(pipeline, &Artifact::of_manifest(Manifest::bare(Path::new("m.onnx"))), known, None))
        });
        Self {
            cutter: Cutter::new(serial),
            signal: Signal::new(config, table.signal.clone(), Alarms::of_channels(parts), meters),
            made: Made::default(),
            frames: lane_of(),
            windows: lane_of(),
            served,
            writer,
            reader,
            _state: state,
            _committer: committer,
        }
    }

    #[inline(never)]
    fn read(&mut self, line: &str, stamp: Stamp) {
        let cut = self.cutter.feed(line.as_bytes());
        let batch = FrameBatch { source: SourceId(0), stamp, bytes: cut.bytes, ranges: cut.ranges };
        self.frames.0.push(Arrival::Frames(batch), &mut Vec::new());
    }

    #[inline(never)]
    fn judge(&mut self, taken: &mut Vec<Arrival>) {
        self.frames.1.take(taken, 1, limits::BEAT);
        for arrival in taken.drain(..) {
            self.signal.step(&arrival, &mut self.made);
        }
        for window in self.made.windows.drain(..) {
            self.windows.0.push(window, &mut Vec::new());
        }
    }

    #[inline(never)]
    fn predict(&mut self, taken: &mut Vec<Window>) {
        let Some((served, fit)) = &mut self.served else { return };
        self.windows.1.take(taken, 1, limits::BEAT);
        for window in taken.drain(..) {
            let answered =
                Answered { score: Some(0.5), classes: None, took_us: 15, outputs: Vec::new(), contributions: None };
            served.predicted(fit, &window, &answered, &mut self.made.drafts);
        }
        self.writer.put(&mut self.made.drafts);
    }

    #[inline(never)]
    fn send(&mut self) -> usize {
        let mut bytes = 0;
        while let Some(message) = self.reader.take(false) {
            bytes += message.sealed.envelope(false).len();
            self.reader.settled(message.id, &[]);
        }
        bytes
    }
}

/// Rows one by one, as a slow sensor sends them. Valgrind counts in here.
#[inline(never)]
fn played(road: &mut Road, lines: &[(String, Stamp)]) -> usize {
    let (mut arrivals, mut windows, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (line, stamp) in lines {
        road.read(line, *stamp);
        road.judge(&mut arrivals);
        road.predict(&mut windows);
        bytes += road.send();
    }
    bytes
}

fn lines(from: u64, n: u64) -> Vec<(String, Stamp)> {
    let line = |i: u64| {
        let values: Vec<String> = (0..8).map(|c| format!("{:.6}", ((i * 8 + c) as f64).sin())).collect();
        let stamp = Stamp { boot_ns: 1_000_000_000 + i * 10_000_000, wall_ms: Some(1_800_000_000_000), clk: Clk::Sync };
        (format!("{i},{},{}\n", 1_800_000_000_000_000_000 + i * 10_000_000, values.join(",")), stamp)
    };
    (from..from + n).map(line).collect()
}

#[test]
#[ignore = "played under valgrind by the test below"]
fn road_is_played_once() {
    let hop = std::env::var(PLAYED).ok().and_then(|hop| hop.parse().ok()).filter(|hop| *hop > 0);
    let mut road = Road::new(&config(hop));
    // Buffers grow, a second of quality is over, the first window is due.
    warmed(&mut road);
    let bytes = played(&mut road, &lines(300, ROWS));
    assert_eq!(bytes > 0, hop.is_some());
}

#[inline(never)]
fn warmed(road: &mut Road) {
    for (line, stamp) in lines(0, 300) {
        road.read(&line, stamp);
        road.judge(&mut Vec::new());
        road.predict(&mut Vec::new());
        road.send();
    }
}

/// What callgrind counted: all of it, by stage, and calls of `malloc`. It counts calls also where it collects no cost: those of the start
/// and of the 300 rows before are in the last number, which is one to compare, not one of a row.
struct Counted {
    instructions: f64,
    stages: Vec<(&'static str, f64)>,
    mallocs: f64,
}

/// By row.
fn counted(hop: u32) -> Counted {
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("callgrind.out");
    let own = std::env::current_exe().expect("own program");
    let run = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--compress-strings=no",
            "--compress-pos=no",
            "--toggle-collect=*cost_tests::played*",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(own)
        .args(["--exact", "system::cost_tests::road_is_played_once", "--ignored", "--test-threads=1"])
        .env(PLAYED, hop.to_string())
        .output()
        .expect("valgrind: install it (`daemon/packages valgrind`)");
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
    read(&std::fs::read_to_string(out).expect("counts"))
}

/// Callgrind's file: `cfn=` names what is called, `calls=` how often, and the line behind it says what that cost.
fn read(text: &str) -> Counted {
    let (mut stages, mut mallocs) = ([("read", 0.0), ("judge", 0.0), ("predict", 0.0), ("send", 0.0)], 0.0);
    let (mut called, mut lines, mut instructions) = ("", text.lines(), 0.0);
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("cfn=") {
            called = name;
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let n: f64 = calls.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
            let cost = lines.next().and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0);
            mallocs += if ["malloc", "calloc", "realloc", "posix_memalign"].contains(&called) { n } else { 0.0 };
            let stage = stages.iter_mut().find(|(name, _)| called.ends_with(&format!("cost_tests::Road::{name}")));
            stage.into_iter().for_each(|(_, sum)| *sum += cost);
        } else if let Some(sum) = line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")) {
            instructions = sum.trim().parse().unwrap_or(0.0);
        }
    }
    let by_row = |n: f64| n / ROWS as f64;
    let stages = stages.into_iter().map(|(name, sum)| (name, by_row(sum))).collect();
    Counted { instructions: by_row(instructions), stages, mallocs: by_row(mallocs) }
}

/// Name and version: another one makes other instructions of the same source.
fn compiler() -> String {
    let rustc = Command::new("rustc").arg("--version").output().expect("rustc");
    String::from_utf8_lossy(&rustc.stdout).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[expect(clippy::print_stdout, reason = "what they cost is a result")]
#[test]
fn row_and_window_cost_no_more_instructions_and_allocations_than_they_did() {
    let (row, both) = (counted(0), counted(1));
    let window = (both.instructions - row.instructions, both.mallocs - row.mallocs);
    for (what, Counted { instructions, stages, mallocs }) in [("a row", &row), ("a row and its window", &both)] {
        let stages: Vec<String> = stages.iter().map(|(name, n)| format!("{name} {n:.0}")).collect();
        println!("MEASURED: {what}: {instructions:.0} instructions ({}), {mallocs:.2} allocations", stages.join(", "));
    }
    let known: serde_json::Value = serde_json::from_slice(&std::fs::read(COST).expect("read")).expect("JSON");
    let compiler = compiler();
    if !cfg!(target_arch = "x86_64") || known["compiler"] != compiler.as_str() {
        println!("SKIPPED: the counts are of {} on x86-64, and this is {compiler}: not compared", known["compiler"]);
        return;
    }
    for (what, (instructions, mallocs)) in [("row", (row.instructions, row.mallocs)), ("window", window)] {
        let number = |member: &str| known[what][member].as_f64().expect("a number");
        let (before, mallocs_before) = (number("instructions"), number("allocations"));
        assert!(
            instructions <= before * (1.0 + TOLERANCE) && mallocs <= mallocs_before + 0.1,
            "a {what} costs {instructions:.0} instructions and {mallocs:.2} allocations, and cost {before} and {mallocs_before}: find \
             what was added to the road. If it is worth it, write it into {COST}"
        );
        assert!(
            instructions >= before * (1.0 - 2.0 * TOLERANCE),
            "a {what} costs {instructions:.0} instructions, and cost {before}: write the new number into {COST}, so that it is kept"
        );
    }
}
