//! The whole road on one machine: simulated pump (or the rows of a CSV file) → pseudo-terminal → the daemon → model →
//! MQTT broker → what comes out, printed as it comes. The daemon runs inside this program; its worker processes are the
//! `kentledge` binary that lies beside it. A program of its own because of the broker, which the field binary must not
//! carry.

mod broker;
mod pump;
mod sensor;
mod view;

use std::{
    path::PathBuf,
    process::ExitCode,
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
use clap::Parser;
use kentledge::{
    cli::{
        exit,
        replay::{
            Folder,
            recording::{Options, Place, Recording},
            sample_model,
        },
        runtime, say,
    },
    config::Config,
    error::{Context, Fatal},
    host::Host,
    infer,
    report::journal,
    system::run,
};

/// The whole road on this machine: simulated pump or a CSV file → daemon → model → broker → what comes out
#[derive(Debug, Parser)]
#[command(name = "kentledge-demo", version)]
struct Args {
    /// Rows of this file instead of the simulated pump; columns are mapped by its header
    #[arg(long)]
    csv: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
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

fn main() -> ExitCode {
    exit("kentledge-demo", demo(&Args::parse()))
}

/// The field binary beside this one: it is the worker process.
fn field_binary() -> Result<PathBuf, Fatal> {
    let own = std::env::current_exe().context("find the folder of this program")?;
    let program = own.with_file_name("kentledge");
    if program.is_file() {
        return Ok(program);
    }
    Err(Fatal::failed(format!(
        "{} is missing: build it first (cargo build --release), or use daemon/demo",
        program.display()
    )))
}

fn demo(args: &Args) -> Result<(), Fatal> {
    // What is passed over in a file is not passed over in silence.
    journal::start("error,rumqttd=off,rumqttc=off,kentledge::cli::replay=info");
    infer::find_runtime(None).map_err(Fatal::failed)?;
    let program = field_binary()?;
    let folder = Folder::make("demo")?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => sample_model(folder.path())?,
    };
    let port = broker::start(args.port)?;
    let pty = Pty::open()?;
    let recording = args.csv.as_deref().map(|file| Recording::inspect(file, &args.options, None)).transpose()?;
    let place = Place {
        tty: pty.path.clone(),
        broker: Some(port),
        folder: folder.path().to_owned(),
        device: if recording.is_some() { "csv" } else { "pump" },
        bus: args.bus.clone(),
    };
    let host = Host { program, ..Host::default() };
    let began_ms = host.clock.now().wall_ms.unwrap_or(0);
    let (config, plays) = match recording {
        Some(mut recording) => (recording.config(&model, &place)?, Plays::Recording(Box::new(recording))),
        None => (sensor::pump_rows().config(&model, &place)?, Plays::Pump(began_ms)),
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
    let (stop_daemon, stopped) = tokio::sync::oneshot::channel::<()>();
    let daemon = std::thread::spawn(move || {
        let mut stop = Box::pin(async {
            let _ = stopped.await;
            "the demo is over".to_owned()
        });
        runtime()?.block_on(run::run(&host, config, &mut stop)).map(|_| ())
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
    // Messages in flight arrive before the daemon is stopped.
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
