//! The same road with a simulated pump and an embedded broker: sensor → pseudo-terminal → the daemon → model → broker →
//! what comes out, on one machine.

mod broker;
pub mod csv;
mod pump;
mod sensor;
mod view;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use self::{
    sensor::{Plays, Pty},
    view::{Heard, View},
};
use crate::{
    cli::{runtime, say},
    config::Config,
    error::{Context, Fatal},
    host::Host,
    infer, journal, run,
};

/// `kentledge demo`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Rows of this file instead of the simulated pump; columns are mapped by its header
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Faster than life
    #[arg(long, default_value_t = 1.0, value_parser = speed)]
    speed: f64,
    /// Ends after this many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Port of the embedded broker; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// A model folder instead of the sample model
    #[arg(long)]
    model: Option<PathBuf>,
    /// The D-Bus on which `status` and `top` find it: session, system, unix:…
    #[arg(long, default_value = "off")]
    bus: String,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if (0.01..=1000.0).contains(&n) => Ok(n),
        _ => Err("must be a number from 0.01 to 1000".into()),
    }
}

/// Things the view may fall behind by: a second of 50 rows at speed 20.
const HEARD: usize = 1024;

/// No prediction for this long after the last row means that all arrived.
const SETTLE: Duration = Duration::from_millis(1000);

/// Runs it.
pub fn demo(args: &Args) -> Result<(), Fatal> {
    journal::start("error,rumqttd=off,rumqttc=off");
    infer::find_runtime(None).map_err(Fatal::failed)?;
    let folder = Folder::make("demo")?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => sample_model(&folder.0)?,
    };
    let port = broker::start(args.port)?;
    let pty = Pty::open()?;
    let shape = args.csv.as_deref().map(csv::Shape::read).transpose()?;
    let place = csv::Place {
        tty: pty.path.clone(),
        broker: Some(port),
        folder: folder.0.clone(),
        device: if shape.is_some() { "csv" } else { "pump" },
        bus: args.bus.clone(),
    };
    let host = Host::default();
    let began_ms = host.clock.now().wall_ms.unwrap_or(0);
    let (config, plays) = match (shape, &args.csv) {
        (Some(shape), Some(file)) => (shape.config(&model, &place)?, Plays::Csv(file.clone(), shape)),
        _ => (sensor::pump_shape().config(&model, &place)?, Plays::Pump(began_ms)),
    };
    let (heard_tx, heard) = mpsc::sync_channel(HEARD);
    view::listen(port, place.device, heard_tx.clone())?;
    say(&format!("broker on 127.0.0.1:{port}; watch along: mosquitto_sub -p {port} -V 5 -v -t 'kl/#'"))?;
    say(&format!("{} -> {} -> kentledge -> model -> broker -> here\n", config.sources[0].name, pty.path.display()))?;
    play(args, host, config, (pty, plays), (heard_tx, heard))
}

type Channel = (mpsc::SyncSender<Heard>, mpsc::Receiver<Heard>);

/// Daemon and sensor side by side until the time is up, the file is played, or a signal comes.
fn play(
    args: &Args,
    host: Host,
    config: Config,
    (pty, plays): (Pty, Plays),
    (heard_tx, heard): Channel,
) -> Result<(), Fatal> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).context("listen for signals")?;
    }
    let (stop_daemon, told) = tokio::sync::oneshot::channel::<()>();
    let daemon = std::thread::spawn(move || {
        let mut told = Box::pin(async {
            let _ = told.await;
            "the demo is over".to_owned()
        });
        runtime()?.block_on(run::run(&host, config, &mut told)).map(|_| ())
    });
    let sensor = {
        let (stop, speed) = (stop.clone(), args.speed);
        std::thread::spawn(move || sensor::play(pty, plays, speed, &stop, &heard_tx))
    };
    let mut view = View::default();
    let until = args.seconds.map(|s| Instant::now() + Duration::from_secs_f64(s.clamp(0.0, 1e9)));
    let over = || stop.load(Ordering::Relaxed) || until.is_some_and(|at| Instant::now() >= at);
    while !over() && !sensor.is_finished() && !daemon.is_finished() {
        show(&heard, &mut view, Duration::from_millis(50))?;
    }
    stop.store(true, Ordering::Relaxed);
    let (rows, _line) = sensor.join().map_err(|_| Fatal::failed("the sensor panicked"))??;
    // What is on the way arrives before the daemon is told to stop.
    let mut quiet = Instant::now();
    while quiet.elapsed() < SETTLE {
        if show(&heard, &mut view, Duration::from_millis(50))? {
            quiet = Instant::now();
        }
    }
    let _ = stop_daemon.send(());
    let ended = daemon.join().map_err(|_| Fatal::failed("the daemon panicked"))?;
    while show(&heard, &mut view, Duration::from_millis(50))? {}
    say(&format!(
        "\n{rows} rows sent, {} predictions received, {} alarms raised ({} before the first fault), {} cleared",
        view.predictions, view.raised, view.early, view.cleared
    ))?;
    ended
}

/// Shows the next thing heard; `false` when nothing came in time.
fn show(heard: &mpsc::Receiver<Heard>, view: &mut View, wait: Duration) -> Result<bool, Fatal> {
    match heard.recv_timeout(wait) {
        // Health and quality go on for ever; they are no reason to wait for more.
        Ok(Heard::Message { stream, payload }) => {
            let data = stream.starts_with("p/") || stream.starts_with("a/");
            view.hear(Heard::Message { stream, payload })?;
            Ok(data)
        }
        Ok(other) => view.hear(other).map(|()| true),
        Err(_) => Ok(false),
    }
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
        ("manifest.json", include_bytes!("../../../models/pump-anomaly/manifest.json")),
        ("model.onnx", include_bytes!("../../../models/pump-anomaly/model.onnx")),
    ];
    for (name, bytes) in files {
        std::fs::write(model.join(name), bytes).context(what())?;
    }
    Ok(model)
}
