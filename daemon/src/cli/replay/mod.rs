//! Tapes and CSV files through the same stages as live data, one after the other in one thread: the same input gives
//! the same output, to the byte, faster than life. And the recorder that makes tapes.

pub mod recording;

use std::{
    collections::BTreeMap,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args as ClapArgs;

use self::recording::{Options, Place, Recording};
use crate::{
    config::{self, Config},
    error::{Code, Context, Fatal},
    flow::{Arrival, Draft, FrameBatch, Sink, SourceId, Stamp, StreamId, Window, beat::Beat, lane},
    host::{Host, Keep, Later, Scribe, signals},
    infer::{self, Artifact, Engine},
    limits,
    model::store::Store,
    signal::{Made, Signal},
    source::{self, tape},
    system::{connect, streams::Table},
};

/// `kentledge replay`
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A tape made by `kentledge record`
    #[arg(required_unless_present = "csv", conflicts_with = "csv")]
    tape: Option<PathBuf>,
    /// A CSV file as a data logger writes it, plain or gzip, whose columns are mapped by name
    #[arg(long)]
    csv: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
    /// The configuration; for a CSV file it is made from the header where none is given
    #[arg(long, required_unless_present = "csv")]
    config: Option<PathBuf>,
    /// A model folder for a CSV file without a configuration; the sample model where none is given
    #[arg(long, requires = "csv", conflicts_with = "config")]
    model: Option<PathBuf>,
}

/// Plays what `args` name; predictions, alarms and measurements as JSON lines on standard output.
pub fn replay(args: &Args) -> Result<(), Fatal> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let folder = Folder::make("replay")?;
    let done = match (&args.csv, &args.tape) {
        (Some(file), _) => {
            let (config, recording, source) = opened(file, args, folder.path())?;
            play(config, csv_arrivals(&recording, source)?, Past::default(), &mut out)
        }
        (None, Some(tape)) => {
            let config = Config::load(args.config.as_deref())?;
            let player = tape::Player::open(tape)?;
            let past = Past::of(tape, &player.head.served, &config, folder.path())?;
            let arrivals = tape_arrivals(tape, player, &config)?;
            play(config, arrivals, past, &mut out)
        }
        (None, None) => Err(Fatal::failed("nothing to replay")),
    };
    match out.flush() {
        Err(why) if why.kind() != std::io::ErrorKind::BrokenPipe => Err(why).context("write to standard output"),
        _ => done,
    }
}

/// The file, the configuration that reads it, and the place of the source whose rows it has.
fn opened(file: &Path, args: &Args, folder: &Path) -> Result<(Config, Recording, SourceId), Fatal> {
    if let Some(config) = &args.config {
        let mut config = Config::load(Some(config))?;
        let mut recording = Recording::inspect(file, &args.options, Some(&config))?;
        let source = recording.bind(&mut config)?;
        return Ok((config, recording, SourceId(source as u16)));
    }
    let mut recording = Recording::inspect(file, &args.options, None)?;
    let model = args.model.clone().map_or_else(|| sample_model(folder), Ok)?;
    let config = recording.config(&model, &Place::replay(folder))?;
    Ok((config, recording, SourceId(0)))
}

/// Rows of the file as frames, stamped by the file's own clock.
fn csv_arrivals(
    recording: &Recording,
    source: SourceId,
) -> Result<impl Iterator<Item = Result<Arrival, Fatal>> + use<>, Fatal> {
    Ok(recording.play()?.map(move |row| {
        let row = row?;
        let stamp = Stamp::from_sensor(row.t_ns);
        let ranges = vec![(0, row.text.len() as u32)];
        Ok(Arrival::Frames(FrameBatch { source, stamp, bytes: row.text.into(), ranges }))
    }))
}

/// A tape's arrivals, its sources matched by name.
fn tape_arrivals(
    path: &Path,
    mut player: tape::Player,
    config: &Config,
) -> Result<impl Iterator<Item = Result<Arrival, Fatal>> + use<>, Fatal> {
    if player.head.program != env!("CARGO_PKG_VERSION") {
        let by = if player.head.program.is_empty() { "an older program" } else { &player.head.program };
        tracing::warn!("tape {} was recorded by {by}: this version may compute other results", path.display());
    }
    let place = |name: &String| {
        let at = config.sources.iter().position(|s| s.name == *name);
        at.map(|i| SourceId(i as u16)).ok_or_else(|| {
            Fatal::failed(format!("replay {}: its source `{name}` is not in the configuration", path.display()))
        })
    };
    let places: Vec<SourceId> = player.head.sources.iter().map(place).collect::<Result<_, _>>()?;
    Ok(std::iter::from_fn(move || {
        let mut arrival = match player.read() {
            Ok(arrival) => arrival?,
            Err(why) => return Some(Err(why)),
        };
        let (Arrival::Frames(FrameBatch { source, .. })
        | Arrival::Tick(source, _)
        | Arrival::Break(source, ..)
        | Arrival::Fault(source, ..)) = &mut arrival;
        *source = places[usize::from(source.0)];
        Some(Ok(arrival))
    }))
}

/// What served when an alarm saved its tape: the tape plays with the same, so the alarm comes again.
#[derive(Default)]
struct Past {
    /// Calibrations.
    calibrations: Option<Later>,
    /// The model of a pipeline, where that is not the configured one.
    models: BTreeMap<usize, Artifact>,
}

impl Past {
    /// Of a tape: its models by their digests among those that are configured or installed here, and its calibrations.
    fn of(tape: &Path, served: &tape::Served, config: &Config, folder: &Path) -> Result<Self, Fatal> {
        let keep = Keep::open(folder, "calibration").context(format!("replay {}", tape.display()))?;
        for (name, text) in served.calibrations.iter().filter(|(name, _)| is_file_name(name)) {
            keep.save(name, text.as_bytes()).context(format!("replay {}: unpack calibrations", tape.display()))?;
        }
        let state = &config.device.state_dir;
        let slots = state.join("models").is_dir() && !served.models.is_empty();
        let mut installed = if slots { connect::installed(config, &Store::open(state).0).0 } else { BTreeMap::new() };
        let mut models = BTreeMap::new();
        for (at, pipeline) in config.pipelines.iter().enumerate() {
            let Some(then) = served.models.get(&pipeline.name) else { continue };
            let configured = Artifact::factory(&pipeline.model).ok();
            if configured.is_some_and(|model| model.has_file(&then.sha256)) {
                continue;
            }
            match installed.remove(&pipeline.model.manifest.model).filter(|model| model.has_file(&then.sha256)) {
                Some(model) => _ = models.insert(at, model),
                None => tracing::warn!(
                    pipeline = pipeline.name,
                    "tape {} was made with model {} (sha256 {}): it is neither configured nor installed here, so scores and \
                     alarms may be others",
                    tape.display(),
                    then.model,
                    then.sha256
                ),
            }
        }
        Ok(Self { calibrations: Some(Scribe::default().folder(keep)), models })
    }
}

/// A name without a path.
fn is_file_name(name: &str) -> bool {
    Path::new(name).components().count() == 1 && !name.contains(['/', '\0']) && !name.starts_with('.')
}

/// The stages, one after the other.
fn play(
    config: Config,
    arrivals: impl Iterator<Item = Result<Arrival, Fatal>>,
    mut past: Past,
    out: &mut impl Write,
) -> Result<(), Fatal> {
    let host = Host { boot: "replay".into(), ..Host::default() };
    let table = Table::new(&config);
    let (meters, board) = connect::meters(&config);
    let mut printer = Printer { out, names: &table.names, seqs: vec![1; table.names.len()], error: None };
    let mut engines = Vec::new();
    for group in config::groups(&config) {
        let mut setup = connect::engine(&host, &config, &table, &group, None, (&meters, &board));
        setup.launching.keep.clone_from(&past.calibrations);
        setup.installed = group.first().and_then(|pipeline| past.models.remove(pipeline));
        let mut engine = Engine::new(setup);
        engine.start(None, &mut printer, &|| {}).map_err(Fatal::failed)?;
        engines.push((group, engine));
    }
    let alarms = connect::channel_alarms(&host, &config, &table, None, &board);
    let mut signal = Signal::new(&config, table.signal.clone(), alarms, meters);
    let (mut made, mut last) = (Made::default(), None);
    for arrival in arrivals {
        let arrival = arrival?;
        last = Some(arrival.stamp());
        signal.step(&arrival, &mut made);
        if made.windows.len() >= limits::SLOTS_MAX {
            serve(&mut engines, &mut made, &mut printer)?;
        }
    }
    if let Some(stamp) = last {
        signal.finish(stamp, &mut made);
    }
    serve(&mut engines, &mut made, &mut printer)?;
    match printer.error {
        Some(why) if why.kind() != std::io::ErrorKind::BrokenPipe => Err(why).context("write to standard output"),
        _ => Ok(()),
    }
}

fn serve(engines: &mut [(Vec<usize>, Engine)], made: &mut Made, sink: &mut dyn Sink) -> Result<(), Fatal> {
    for ((stream, why), n) in std::mem::take(&mut made.lost) {
        sink.lost(stream, n, why);
    }
    sink.put(&mut made.drafts);
    let windows = std::mem::take(&mut made.windows);
    let mut by_engine: Vec<Vec<Window>> = engines.iter().map(|_| Vec::new()).collect();
    for window in windows {
        let pipeline = usize::from(window.tag.pipeline);
        if let Some(at) = engines.iter().position(|(group, _)| group.contains(&pipeline)) {
            by_engine[at].push(window);
        }
    }
    for ((_, engine), mut windows) in engines.iter_mut().zip(by_engine) {
        engine.take(&mut windows);
        while engine.waiting() > 0 {
            if engine.turn(sink, &|| {}).is_err() {
                engine.start(None, sink, &|| {}).map_err(Fatal::failed)?;
            }
        }
    }
    Ok(())
}

/// Records as JSON lines, numbered from 1 for each stream.
struct Printer<'a, W> {
    out: &'a mut W,
    names: &'a [String],
    seqs: Vec<u64>,
    error: Option<std::io::Error>,
}

impl<W: Write> Printer<'_, W> {
    fn line(&mut self, stream: StreamId, members: &str) {
        let at = usize::from(stream.0);
        let line = writeln!(self.out, "{{\"stream\":\"{}\",\"seq\":{},{members}}}", self.names[at], self.seqs[at]);
        self.seqs[at] += 1;
        self.error = self.error.take().or(line.err());
    }
}

impl<W: Write> Sink for Printer<'_, W> {
    fn put(&mut self, drafts: &mut Vec<Draft>) {
        for draft in drafts.drain(..) {
            let body = String::from_utf8_lossy(&draft.body);
            self.line(draft.stream, &format!("\"t_ns\":{},{body}", draft.stamp.boot_ns));
        }
    }

    fn lost(&mut self, stream: StreamId, n: u64, reason: &'static str) {
        self.line(stream, &format!("\"lost\":{n},\"reason\":\"{reason}\""));
        self.seqs[usize::from(stream.0)] += n - 1;
    }
}

/// Writes what the sources deliver onto a tape until a signal, or for `seconds`.
///
/// # Errors
/// Where a port is in use, no source could be opened, or the tape cannot be written; then no tape is left behind.
pub async fn record(host: Host, config: Config, path: &Path, seconds: Option<f64>) -> Result<(), Fatal> {
    let most = match seconds.map(Duration::try_from_secs_f64) {
        None => Duration::MAX,
        Some(Ok(most)) => most,
        Some(Err(why)) => return Err(Fatal { code: Code::Usage, text: format!("--for: {why}") }),
    };
    for source in &config.sources {
        if let Some(user) = source.port.path().and_then(|port| source::ports::in_use(Path::new(port))) {
            let (name, port) = (&source.name, source.port.shown());
            return Err(Fatal::failed(format!("record source {name}: {port} is in use by {user}; stop it first")));
        }
    }
    let names: Vec<String> = config.sources.iter().map(|source| source.name.clone()).collect();
    let sources = config.sources.iter().map(|s| s.name.clone()).collect();
    let recorder = tape::Recorder::create(path, &tape::Head::new(&host.boot, sources))?;
    let bounds = lane::Bounds {
        items: limits::FRAME_BATCHES,
        bytes: limits::FRAME_LANE_BYTES,
        patience: Some(limits::LANE_PATIENCE),
    };
    let (frames_tx, frames) = lane::lane(bounds);
    let mut ports = Vec::new();
    for (i, port) in config.sources.iter().enumerate() {
        let outlet = source::Outlet {
            source: SourceId(i as u16),
            clock: host.clock.clone(),
            frames: frames_tx.clone(),
            ahead: Vec::new(),
            shed: Arc::new(|_, frames| {
                tracing::warn!(frames, "write the tape: the disk is too slow: frames are dropped")
            }),
            beat: Beat::default(),
        };
        ports.push(tokio::spawn(source::run(port.port.clone(), outlet)));
    }
    drop(frames_tx);
    let what = format!("write tape {}", path.display());
    let count = names.len();
    let writer = std::thread::spawn(move || write(recorder, &frames, count));
    let signal = signals::stop()?;
    let _ = tokio::time::timeout(most, signal).await;
    for port in ports {
        port.abort();
        let _ = port.await;
    }
    let written = writer.join().map_err(|_| Fatal::failed(format!("{what}: it panicked")))?.context(&what);
    let closed = |opened: &[bool]| -> Vec<&String> {
        names.iter().zip(opened).filter(|(_, opened)| !**opened).map(|(name, _)| name).collect()
    };
    let (frames, opened) = match written {
        Ok((_, opened)) if !opened.contains(&true) => {
            let _ = std::fs::remove_file(path);
            return Err(Fatal::failed(format!("record {}: no source could be opened; see the log", path.display())));
        }
        other => other?,
    };
    for name in closed(&opened) {
        tracing::warn!(source = name, "the source was never open: the tape has no data of it");
    }
    tracing::info!(frames, "tape {} is complete", path.display());
    Ok(())
}

/// Writes what comes until all sources are closed; how many frames those were, and which of so many sources was ever open.
fn write(
    mut recorder: tape::Recorder,
    frames: &lane::Receiver<Arrival>,
    sources: usize,
) -> std::io::Result<(u64, Vec<bool>)> {
    let (mut arrivals, mut n, mut opened) = (Vec::new(), 0, vec![false; sources]);
    loop {
        match frames.take(&mut arrivals, usize::MAX, limits::BEAT) {
            lane::Took::Closed => break,
            // A recorder that is killed has lost what came since.
            lane::Took::Nothing => recorder.close_block()?,
            lane::Took::Some => {}
        }
        for arrival in arrivals.drain(..) {
            recorder.write(&arrival)?;
            if let Arrival::Break(source, _, "opened") = arrival {
                opened[usize::from(source.0)] = true;
            }
            if let Arrival::Frames(batch) = arrival {
                n += batch.ranges.len() as u64;
            }
        }
    }
    recorder.finish()?;
    Ok((n, opened))
}

/// What `kentledge check` says of a valid configuration.
pub fn describe(config: &Config) -> Vec<String> {
    let mut lines = vec![format!(
        "ok: {} sources, {} channels, {} streams, {} pipelines, {} alarms",
        config.sources.len(),
        config.channels.len(),
        config.streams.len(),
        config.pipelines.len(),
        config.alarms.len()
    )];
    let hours = hours_kept(config.outbox.max_bytes);
    lines.push(format!(
        "outbox: {} MiB hold about {hours:.0} h of 10 records/s with 200 B each",
        config.outbox.max_bytes >> 20
    ));
    lines.extend(config.samples_explained());
    lines.push(match &config.mqtt {
        Some(mqtt) => {
            let each = mqtt.brokers.iter().map(|broker| {
                let inside = if broker.path.is_some() { " in a WebSocket" } else { "" };
                format!("{broker}, {}{inside}", if broker.secure { "TLS" } else { "plain text" })
            });
            format!("mqtt: {}", each.collect::<Vec<_>>().join("; then "))
        }
        None => "mqtt: no broker is configured; records stay in the store".into(),
    });
    lines.push(match (&config.commands.keyset, config.commands.allow_unsigned) {
        (_, true) => "commands: without signatures".into(),
        (Some(path), false) => format!("commands: signed by the keys of {}", path.display()),
        (None, false) => "commands: no keyset; only ping, status, report and config.get are obeyed".into(),
    });
    let runtimes: BTreeMap<bool, String> = if config.pipelines.is_empty() {
        BTreeMap::new()
    } else {
        let found = infer::find_runtime(config.models.runtime.as_deref());
        [(found.is_ok(), found.map_or_else(String::from, |path| path.display().to_string()))].into()
    };
    lines.extend(runtimes.values().map(|text| format!("ONNX Runtime: {text}")));
    lines.extend(config.set_aside.iter().map(|why| format!("not in use: {why}")));
    lines
}

/// Stored records are JSON that zstd takes to about a fifth (`limits::STORE_MIB`).
fn hours_kept(bytes: u64) -> f64 {
    bytes as f64 / (10.0 * 200.0 / 5.0) / 3600.0
}

/// A folder of this run's own that goes when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it in the system's folder for such things.
    pub fn make(what: &str) -> Result<Self, Fatal> {
        let path =
            std::env::temp_dir().join(format!("kentledge-{what}-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        std::fs::create_dir_all(&path).context(format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes the sample model, which this program carries, into a folder; returns where.
pub fn sample_model(folder: &Path) -> Result<PathBuf, Fatal> {
    let model = folder.join("pump-anomaly");
    let what = || format!("write the sample model to {}", model.display());
    std::fs::create_dir_all(&model).context(what())?;
    let files: [(&str, &[u8]); 2] = [
        ("manifest.json", include_bytes!("../../../../models/pump-anomaly/manifest.json")),
        ("model.onnx", include_bytes!("../../../../models/pump-anomaly/model.onnx")),
    ];
    for (name, bytes) in files {
        std::fs::write(model.join(name), bytes).context(what())?;
    }
    Ok(model)
}
