//! The road that a sample takes through the daemon, played by the real rooms on one thread, without the worker and the network, while
//! valgrind counts instructions and calls of `malloc`: counts, not times, so that they are the same on a busy machine. The build is the
//! tests' own, without an optimiser for this crate: more work on the road shows, what an optimiser makes of it does not. `cost_tests` and
//! `scale_tests` compare what is counted.

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

const PLAYED: &str = "KL_COST";
/// Channels of a window: the first ones of its port.
pub const WIDTH: usize = 8;

/// What is played: so many ports with so many channels each, and on each port so many models with windows of 64 rows.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub ports: usize,
    pub channels: usize,
    pub models: usize,
    /// 0: no windows.
    pub hop: u32,
    /// Rows of each port that are counted.
    pub rows: u64,
}

/// The rooms along the road, and the lanes between them.
struct Road {
    cutters: Vec<Cutter>,
    signal: Signal,
    made: Made,
    frames: (lane::Sender<Arrival>, lane::Receiver<Arrival>),
    /// By port: its lane of that one.
    ports: Vec<lane::Sender<Arrival>>,
    /// By pipeline.
    served: Vec<Model>,
    writer: Writer,
    reader: Reader,
    _state: tempfile::TempDir,
    // Its thread is not started: nothing is stored.
    _committer: crate::outbox::Committer,
}

/// A pipeline with its windows, and what makes its predictions.
struct Model {
    windows: (lane::Sender<Window>, lane::Receiver<Window>),
    served: Served,
    fit: Fit,
}

impl Shape {
    fn config(self) -> Config {
        let mut text = String::new();
        for port in 0..self.ports {
            let names: Vec<String> = (0..self.channels).map(|i| format!("c{port}_{i}")).collect();
            let columns: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            text.push_str(&format!(
                "[source.s{port}]\npath = \"/dev/ttyS{port}\"\nframe_max_bytes = 8192\ncolumns = [\"n\", \"t\", {}]\n",
                columns.join(", ")
            ));
            text.push_str("seq = \"n\"\ntime = \"t\"\ntime_format = \"ns\"\n");
            names.iter().for_each(|name| text.push_str(&format!("[channel.{name}]\nsource = \"s{port}\"\n")));
            for model in (0..self.models).filter(|_| self.hop > 0) {
                text.push_str(&format!(
                    "[pipeline.p{port}_{model}]\nbundle = \"m{port}_{model}\"\nchannels = {:?}\nwindow_steps = 64\nhop_steps = {}\n\
                     threshold = 2.0\n",
                    &names[..WIDTH],
                    self.hop
                ));
            }
        }
        Config::unwritten().expect("defaults").with_remote(Some(&text)).unwrap_or_else(|why| panic!("{why:?}"))
    }

    /// Rows that are played before it is counted: buffers grow, a second of quality is over, the first window is due. Not more than that
    /// where each row is long.
    fn warm(self) -> u64 {
        if self.channels > 64 { 110 } else { 300 }
    }

    fn word(self) -> String {
        let Self { ports, channels, models, hop, rows } = self;
        format!("{ports} {channels} {models} {hop} {rows}")
    }

    fn of_word(word: &str) -> Option<Self> {
        let mut numbers = word.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (ports, channels, models) = (next()? as usize, next()? as usize, next()? as usize);
        Some(Self { ports, channels, models, hop: next()? as u32, rows: next()? })
    }
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
        let cutters = config.sources.iter().map(|source| {
            let Port::Serial(serial) = &source.port else { unreachable!("a serial source") };
            Cutter::new(serial)
        });
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
        let model = |(i, pipeline): (usize, &crate::config::Pipeline)| {
            let streams = (table.signal.prediction[i], table.drift[i], table.shadow[i]);
            let shown = (meters.clone(), board.clone());
            let served = Served::new(i as u16, config, streams, &table.alarms, "boot", None, shown);
            let known = Known {
                sha256: "0123456789abcdef0123456789abcdef",
                provider: "cpu",
                features: 0,
                inputs: Vec::new(),
                state: State::new(std::iter::empty()),
            };
            let source = Artifact::of_manifest(Manifest::bare(Path::new("m.onnx")));
            Model { windows: lane_of(), served, fit: Fit::new(pipeline, &source, known, None) }
        };
        let frames = lane_of();
        Self {
            cutters: cutters.collect(),
            signal: Signal::new(config, table.signal.clone(), Alarms::of_channels(parts), meters.clone()),
            made: Made::default(),
            ports: (0..config.sources.len()).map(|lot| frames.0.of_lot(lot)).collect(),
            frames,
            served: config.pipelines.iter().enumerate().map(model).collect(),
            writer,
            reader,
            _state: state,
            _committer: committer,
        }
    }

    #[inline(never)]
    fn read(&mut self, port: usize, line: &str, stamp: Stamp) {
        let cut = self.cutters[port].feed(line.as_bytes());
        let batch = FrameBatch { source: SourceId(port as u16), stamp, bytes: cut.bytes, ranges: cut.ranges };
        self.ports[port].push(Arrival::Frames(batch), &mut Vec::new());
    }

    #[inline(never)]
    fn judge(&mut self, taken: &mut Vec<Arrival>) {
        self.frames.1.take(taken, 1, limits::BEAT);
        for arrival in taken.drain(..) {
            self.signal.step(&arrival, &mut self.made);
        }
        for window in self.made.windows.drain(..) {
            self.served[usize::from(window.tag.pipeline)].windows.0.push(window, &mut Vec::new());
        }
    }

    /// The windows of a port: each of its models has one, or none.
    #[inline(never)]
    fn predict(&mut self, models: std::ops::Range<usize>, taken: &mut Vec<Window>) {
        if models.is_empty() {
            return;
        }
        for Model { windows, served, fit } in &mut self.served[models] {
            windows.1.take(taken, 1, std::time::Duration::ZERO);
            for window in taken.drain(..) {
                let answered =
                    Answered { score: Some(0.5), classes: None, took_us: 15, outputs: Vec::new(), contributions: None };
                served.predicted(fit, &window, &answered, &mut self.made.drafts);
            }
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

/// Rows one by one, as slow sensors send them. Valgrind counts in here.
#[inline(never)]
fn played(road: &mut Road, lines: &[(usize, String, Stamp)], models: usize) -> usize {
    play(road, lines, models)
}

fn play(road: &mut Road, lines: &[(usize, String, Stamp)], models: usize) -> usize {
    let (mut arrivals, mut windows, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (port, line, stamp) in lines {
        road.read(*port, line, *stamp);
        road.judge(&mut arrivals);
        road.predict(port * models..(port + 1) * models, &mut windows);
        bytes += road.send();
    }
    bytes
}

fn lines(shape: Shape, rows: std::ops::Range<u64>) -> Vec<(usize, String, Stamp)> {
    let line = |i: u64, port: usize| {
        let values = (0..shape.channels as u64).map(|c| format!("{:.6}", ((i * 8 + c) as f64 + port as f64).sin()));
        let stamp = Stamp { boot_ns: 1_000_000_000 + i * 10_000_000, wall_ms: Some(1_800_000_000_000), clk: Clk::Sync };
        let time = 1_800_000_000_000_000_000 + i * 10_000_000;
        (port, format!("{i},{time},{}\n", values.collect::<Vec<_>>().join(",")), stamp)
    };
    rows.flat_map(|i| (0..shape.ports).map(move |port| line(i, port))).collect()
}

#[test]
#[ignore = "played under valgrind by other tests"]
fn road_is_played_once() {
    let shape = std::env::var(PLAYED).ok().and_then(|word| Shape::of_word(&word)).expect(PLAYED);
    let mut road = Road::new(&shape.config());
    let models = if shape.hop > 0 { shape.models } else { 0 };
    warmed(&mut road, shape, models);
    let bytes = played(&mut road, &lines(shape, shape.warm()..shape.warm() + shape.rows), models);
    assert_eq!(bytes > 0, shape.hop > 0);
}

#[inline(never)]
fn warmed(road: &mut Road, shape: Shape, models: usize) {
    play(road, &lines(shape, 0..shape.warm()), models);
}

/// What callgrind counted: all of it, by stage, and calls of `malloc`. It counts calls also where it collects no cost: those of the start
/// and of the rows before are in the last number, which is one to compare, not one of a row.
pub struct Counted {
    pub instructions: f64,
    pub stages: Vec<(&'static str, f64)>,
    pub mallocs: f64,
}

/// By row of one port.
pub fn counted(shape: Shape) -> Counted {
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("callgrind.out");
    let own = std::env::current_exe().expect("own program");
    let run = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--compress-strings=no",
            "--compress-pos=no",
            "--toggle-collect=*road_tests::played*",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(own)
        .args(["--exact", "system::road_tests::road_is_played_once", "--ignored", "--test-threads=1"])
        .env(PLAYED, shape.word())
        .output()
        .expect("valgrind: install it (`daemon/packages valgrind`)");
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
    read(&std::fs::read_to_string(out).expect("counts"), shape.rows * shape.ports as u64)
}

/// Callgrind's file: `cfn=` names what is called, `calls=` how often, and the line behind it says what that cost.
fn read(text: &str, rows: u64) -> Counted {
    let (mut stages, mut mallocs) = ([("read", 0.0), ("judge", 0.0), ("predict", 0.0), ("send", 0.0)], 0.0);
    let (mut called, mut lines, mut instructions) = ("", text.lines(), 0.0);
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("cfn=") {
            called = name;
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let n: f64 = calls.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
            let cost = lines.next().and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0);
            mallocs += if ["malloc", "calloc", "realloc", "posix_memalign"].contains(&called) { n } else { 0.0 };
            let stage = stages.iter_mut().find(|(name, _)| called.ends_with(&format!("road_tests::Road::{name}")));
            stage.into_iter().for_each(|(_, sum)| *sum += cost);
        } else if let Some(sum) = line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")) {
            instructions = sum.trim().parse().unwrap_or(0.0);
        }
    }
    let by_row = |n: f64| n / rows as f64;
    let stages = stages.into_iter().map(|(name, sum)| (name, by_row(sum))).collect();
    Counted { instructions: by_row(instructions), stages, mallocs: by_row(mallocs) }
}
