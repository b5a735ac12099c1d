//! The command line: its arguments, and the part of the program that handles each command.

pub mod audit;
mod boot_check;
mod bundles;
pub mod replay;
mod rows;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    bus,
    config::Config,
    control::Trials,
    error::{Code, Context, Fatal},
    host::{Clock, Host, identity, log::escaped, signals},
    infer::{self, Launching, worker_main},
    limits,
    outbox::probe_main,
    output::guard,
    provision,
    report::journal,
    selftest,
    source::ports,
    system::run::{self, Ending},
};

/// Turns sensor signals into decisions on the spot.
#[derive(Debug, Parser)]
#[command(name = "kentledge", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon in the foreground
    Run {
        /// Only this file, instead of /usr/lib/kentledge, /etc/kentledge and /data/kentledge/config
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Reports all problems of the configuration at once
    Check {
        /// Only this file
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Shows the status of the running daemon
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        whom: Whom,
    },
    /// Shows the status live; q quits
    Top {
        #[command(flatten)]
        whom: Whom,
    },
    /// Reads a provision.toml (device identity and broker) into the state directory, then removes the file
    Provision {
        /// The file
        file: PathBuf,
        /// The state directory
        #[arg(long, default_value = "/data/kentledge")]
        state: PathBuf,
        /// The user that the daemon runs as
        #[arg(long)]
        owner: Option<String>,
        /// Folder for the machine's own settings: network, time servers, SSH keys
        #[arg(long)]
        settings: Option<PathBuf>,
    },
    /// Replays a tape or a CSV file through the same stages, deterministically; JSON lines on standard output
    Replay(replay::Args),
    /// Checks whether the system that just started is healthy; the image's unit runs it before it marks the slot good
    BootCheck {
        #[command(flatten)]
        whom: Whom,
    },
    /// Makes, checks, installs and measures model bundles
    Model {
        #[command(subcommand)]
        act: bundles::Act,
    },
    /// Checks the audit log: who did what to this device
    Audit {
        #[command(subcommand)]
        act: audit::Act,
    },
    /// Records the rows of the configured sources on a tape
    Record {
        /// Only the sources of this configuration file
        #[arg(long)]
        config: Option<PathBuf>,
        /// The tape; must not exist yet
        #[arg(long, short)]
        out: PathBuf,
        /// Stop after this many seconds
        #[arg(long = "for", value_name = "SECONDS")]
        seconds: Option<f64>,
    },
    /// Lists serial ports and their protocols, gpiochips and the kernel's sensors, with configuration lines
    Ports(ports::Args),
    /// Looks at this machine: board, ports, watchdog, clock, disk, network; a line each, with a verdict and what to do
    Selftest(selftest::Args),
    /// The worker process; started by the daemon only
    #[command(hide = true)]
    InferWorker,
    /// Holds output lines; started by the daemon only
    #[command(hide = true)]
    GpioGuard {
        /// The guard's socket
        socket: PathBuf,
    },
    /// Tries to open a store; started by the daemon only
    #[command(hide = true)]
    ProbeStore {
        /// The store's folder
        folder: PathBuf,
    },
}

/// The daemon to use.
#[derive(Debug, clap::Args)]
pub struct Whom {
    /// The daemon that uses this configuration file
    #[arg(long)]
    config: Option<PathBuf>,
    /// The D-Bus of the daemon: system, session, unix:…; without it, as in the configuration
    #[arg(long)]
    bus: Option<String>,
}

impl Whom {
    /// The address of the bus; `None`: the daemon is on no bus.
    pub fn bus(&self) -> Result<Option<String>, Fatal> {
        if self.bus.is_some() {
            return Ok(self.bus.clone());
        }
        match Config::local(self.config.as_deref()) {
            Ok(config) => Ok(config.device.bus),
            // The caller of `status` may lack the rights to read every file that the configuration names.
            Err(problems) if self.config.is_some() => Err(Fatal::problems(&problems)),
            Err(_) => Ok(Some("system".into())),
        }
    }
}

impl Cli {
    /// Runs the command.
    pub fn act(self) -> Result<(), Fatal> {
        match self.command {
            Command::Run { config } => {
                journal::start("info");
                serve(config.as_deref())
            }
            Command::Check { config } => check(config.as_deref()),
            Command::Status { json, whom } => {
                let bus = whom.bus()?;
                let asked = async { bus::Asked::connect(bus.as_deref()).await?.status().await };
                let status = runtime()?.block_on(asked).map_err(Fatal::failed)?;
                let shown = if json { status.to_string() } else { bus::show(&status) };
                // Names of models and error texts come from others: escape them.
                let lines = shown.trim_end().lines().map(|line| escaped(line, usize::MAX));
                say(&lines.collect::<Vec<_>>().join("\n"))
            }
            Command::Top { whom } => {
                let bus = whom.bus()?;
                runtime()?.block_on(bus::top(bus.as_deref())).map_err(Fatal::failed)
            }
            Command::BootCheck { whom } => {
                journal::start("info");
                let bus = whom.bus()?;
                runtime()?.block_on(boot_check::check(bus.as_deref()))
            }
            Command::Provision { file, state, owner, settings } => {
                journal::start("info");
                let check = || provisioned(None);
                provision::take(&file, &state, owner.as_deref(), settings.as_deref(), check).map_err(Fatal::failed)
            }
            Command::Replay(args) => {
                journal::start("warn");
                replay::replay(&args)
            }
            Command::Model { act } => {
                journal::start("info");
                act.act()
            }
            Command::Audit { act } => act.act(),
            Command::Record { config, out, seconds } => {
                journal::start("info");
                let config = Config::load(config.as_deref())?;
                runtime()?.block_on(replay::record(Host::default(), config, &out, seconds))
            }
            Command::Ports(args) => {
                let report = runtime()?.block_on(async { ports::tell(&args).await });
                say(report.trim_end())
            }
            Command::Selftest(args) => {
                journal::start("warn");
                let (report, failed) = selftest::report(&args);
                let lines = report.lines().map(|line| escaped(line, usize::MAX));
                say(&lines.collect::<Vec<_>>().join("\n"))?;
                if failed == 0 { Ok(()) } else { Err(Fatal::failed(format!("selftest: failed: {failed}"))) }
            }
            Command::GpioGuard { socket } => {
                journal::start("info");
                guard::main(&socket)
            }
            Command::ProbeStore { folder } => say(&probe_main(&folder)),
            Command::InferWorker => {
                let socket =
                    std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned().context("take the socket")?;
                worker_main::main(socket).map_err(Fatal::failed)
            }
        }
    }
}

/// Runs the daemon, again with each new configuration, until it is to stop.
fn serve(file: Option<&std::path::Path>) -> Result<(), Fatal> {
    let host = Host::default();
    runtime()?.block_on(async {
        let mut stop = Box::pin(signals::stop()?);
        let mut current = open(file, &host)?;
        while run::run(&host, current.clone(), &mut stop).await? == Ending::Reload {
            // A configuration file that became invalid meanwhile must not stop the daemon.
            match open(file, &host) {
                Ok(next) => current = next,
                Err(why) => {
                    tracing::error!("reload the configuration: {why}; the previous configuration stays in use")
                }
            }
        }
        Ok(())
    })
}

/// Checks the configuration, and what it names; prints what is in it.
fn check(file: Option<&std::path::Path>) -> Result<(), Fatal> {
    let config = Config::load(file)?;
    let now_s = Clock::default().now().wall_ms.map(|ms| ms / 1000);
    let mut problems = config.problems_of_files(now_s);
    let host = Host::default();
    let checked = infer::check(&config, |group| Launching::new(&host, &config, group, None));
    problems.extend(checked.problems);
    if !problems.is_empty() {
        return Err(Fatal::problems(&problems));
    }
    let remarks = config.remarks_on_files(now_s).into_iter().chain(config.advice());
    for line in replay::describe(&config).into_iter().chain(checked.lines).chain(remarks) {
        say(&line)?;
    }
    Ok(())
}

/// Loads the configuration. First rolls back a change that another process left unconfirmed. A device without a name in
/// its configuration gets its own.
fn open(file: Option<&std::path::Path>, host: &Host) -> Result<Config, Fatal> {
    let local = Config::local(file).map_err(|problems| Fatal::problems(&problems))?;
    let state = &local.device.state_dir;
    let mut not_provisioned = None;
    let provision = state.join("provision.toml");
    if provision.exists()
        && let Err(why) = provision::take(&provision, state, None, None, || provisioned(file))
    {
        tracing::error!("{why}; the device runs without it");
        not_provisioned = Some(why.into());
    }
    if let Err(why) = Trials::open(state).recover(&host.process) {
        tracing::error!("look for a configuration on trial: {why}");
    }
    let mut config = Config::load(file)?;
    config.not_provisioned = not_provisioned;
    if !config.device.id.is_empty() {
        return Ok(config);
    }
    Ok(config.named(&identity::device_id(state)))
}

/// The check of `provision`. It ignores dates of certificates: a board without a battery does not know the time yet.
fn provisioned(file: Option<&std::path::Path>) -> Result<Config, Fatal> {
    let config = Config::local(file).map_err(|problems| Fatal::problems(&problems))?;
    let problems = config.problems_of_files(None);
    if problems.is_empty() { Ok(config) } else { Err(Fatal::problems(&problems)) }
}

/// One thread serves all edges; the stages that compute have threads of their own.
pub fn runtime() -> Result<tokio::runtime::Runtime, Fatal> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

/// Prints a line on standard output. A reader that closed the pipe is not an error.
pub fn say(line: &str) -> Result<(), Fatal> {
    use std::io::{ErrorKind, Write};
    match writeln!(std::io::stdout().lock(), "{line}") {
        Err(why) if why.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to standard output"),
    }
}

/// Prints why `program` failed, if it did, and returns its exit code.
pub fn exit(program: &str, result: Result<(), Fatal>) -> ExitCode {
    let Err(fatal) = result else { return ExitCode::SUCCESS };
    // Problems of a configuration have no prefix, so that an editor can jump to them.
    let before = if fatal.code == Code::Config { String::new() } else { format!("{program}: ") };
    let lines: Vec<_> = fatal.text.lines().map(|line| escaped(line, limits::LOG_LINE)).collect();
    eprintln!("{before}{}", lines.join("\n"));
    ExitCode::from(fatal.code as u8)
}
