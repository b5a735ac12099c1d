//! The command line: what may be written, and which part of the program does it.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    boot_check, bundles, bus,
    config::{self, Config},
    control::Trials,
    error::{Code, Context, Fatal},
    host::{Clock, Host, identity, log::escaped},
    infer::{self, worker_main},
    journal, limits,
    outbox::probe_main,
    output::guard,
    provision, replay,
    run::{self, Ending},
    source::ports,
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
    /// The daemon, in the foreground
    Run {
        /// This file alone, instead of /usr/lib/kentledge, /etc/kentledge and /data/kentledge/config
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// All problems of the configuration at once
    Check {
        /// This file alone
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// What the running daemon is doing
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        whom: Whom,
    },
    /// The same, live; q quits
    Top {
        #[command(flatten)]
        whom: Whom,
    },
    /// Takes over a provision.toml: who the device is and how it reaches its broker; the file is removed
    Provision {
        /// The file
        file: PathBuf,
        /// The state directory
        #[arg(long, default_value = "/data/kentledge")]
        state: PathBuf,
        /// The user the daemon runs as
        #[arg(long)]
        owner: Option<String>,
        /// Where the machine's own settings go: network, time servers, SSH keys
        #[arg(long)]
        settings: Option<PathBuf>,
    },
    /// A recorded tape or a CSV file through the same stages, deterministic; JSON lines on standard output
    Replay(replay::Args),
    /// Whether the system that just started is well; the image's own unit asks before it tells the boot loader
    BootCheck {
        #[command(flatten)]
        whom: Whom,
    },
    /// Model bundles: make, check, apply, measure
    Model {
        #[command(subcommand)]
        act: bundles::Act,
    },
    /// Records what the configured sources deliver onto a tape
    Record {
        /// Which sources
        #[arg(long)]
        config: Option<PathBuf>,
        /// The tape; must not exist yet
        #[arg(long, short)]
        out: PathBuf,
        /// Ends after this many seconds
        #[arg(long = "for", value_name = "SECONDS")]
        seconds: Option<f64>,
    },
    /// What is plugged in: serial ports and what they speak, gpiochips, the kernel's sensors; with configuration lines
    Ports(ports::Args),
    /// The worker process; started by the daemon only
    #[command(hide = true)]
    InferWorker,
    /// Holds output lines; started by the daemon only
    #[command(hide = true)]
    GpioGuard {
        /// Where it is found
        socket: PathBuf,
    },
    /// Tries to open a store; started by the daemon only
    #[command(hide = true)]
    ProbeStore {
        /// Its folder
        folder: PathBuf,
    },
}

/// Which daemon is asked.
#[derive(Debug, clap::Args)]
pub struct Whom {
    /// The daemon that runs with this file
    #[arg(long)]
    config: Option<PathBuf>,
    /// The D-Bus it is on: system, session, unix:…; without it, as in the configuration
    #[arg(long)]
    bus: Option<String>,
}

impl Whom {
    /// The bus.
    pub fn bus(&self) -> Result<Option<String>, Fatal> {
        if self.bus.is_some() {
            return Ok(self.bus.clone());
        }
        match Config::local(self.config.as_deref()) {
            Ok(config) => Ok(config.device.bus),
            // Whoever asks for status may not read every file the configuration names.
            Err(problems) if self.config.is_some() => Err(Fatal::problems(&problems)),
            Err(_) => Ok(Some("system".into())),
        }
    }
}

impl Cli {
    /// Does what was asked for.
    pub fn act(self) -> Result<(), Fatal> {
        match self.command {
            Command::Run { config } => {
                journal::start("info");
                let host = Host::default();
                runtime()?.block_on(async {
                    let mut stop = Box::pin(run::signals()?);
                    let mut current = open(config.as_deref(), &host)?;
                    while run::run(&host, current.clone(), &mut stop).await? == Ending::Reload {
                        // A file that somebody broke on the device meanwhile must not take it down now.
                        match open(config.as_deref(), &host) {
                            Ok(next) => current = next,
                            Err(why) => {
                                tracing::error!("read the configuration anew: {why}; going on with the one before")
                            }
                        }
                    }
                    Ok(())
                })
            }
            Command::Check { config } => {
                let config = load(config.as_deref())?;
                let now_s = Clock::default().now().wall_ms.map(|ms| ms / 1000);
                let mut problems = config.problems_of_files(now_s);
                let host = Host::default();
                problems.extend(infer::check(&config, |group| host.launching(&config, group, None)));
                if !problems.is_empty() {
                    return Err(Fatal::problems(&problems));
                }
                for line in replay::describe(&config) {
                    say(&line)?;
                }
                Ok(())
            }
            Command::Status { json, whom } => {
                let bus = whom.bus()?;
                let asked = async { bus::Asked::connect(bus.as_deref()).await?.status().await };
                let status = runtime()?.block_on(asked).map_err(Fatal::failed)?;
                say(if json { status.to_string() } else { bus::show(&status) }.trim_end())
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
                let check = || config_or_text(None);
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
            Command::Record { config, out, seconds } => {
                journal::start("info");
                let config = load(config.as_deref())?;
                runtime()?.block_on(replay::record(Host::default(), config, &out, seconds))
            }
            Command::Ports(args) => {
                let told = runtime()?.block_on(async { ports::tell(&args).await });
                say(told.trim_end())
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

/// The configuration to run with: a change that another process left unconfirmed is put back first, and a device that
/// was given no name has its own.
fn open(file: Option<&std::path::Path>, host: &Host) -> Result<Config, Fatal> {
    let local = Config::local(file).map_err(|problems| Fatal::problems(&problems))?;
    let state = &local.device.state_dir;
    let mut not_provisioned = None;
    let provision = state.join("provision.toml");
    if provision.exists()
        && let Err(why) = provision::take(&provision, state, None, None, || config_or_text(file))
    {
        tracing::error!("{why}");
        not_provisioned = Some(why);
    }
    if let Err(why) = Trials::open(state).recover(&host.process) {
        tracing::error!("look for a configuration on trial: {why}");
    }
    let mut config = load(file)?;
    config.not_provisioned = not_provisioned;
    if !config.device.id.is_empty() {
        return Ok(config);
    }
    Ok(config.named(&identity::device_id(state)))
}

/// What provisioning checks. Dates of certificates are not looked at: a board without a battery does not know the time yet.
fn config_or_text(file: Option<&std::path::Path>) -> Result<Config, String> {
    let lines =
        |problems: Vec<config::Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let config = Config::local(file).map_err(lines)?;
    let problems = config.problems_of_files(None);
    if problems.is_empty() { Ok(config) } else { Err(lines(problems)) }
}

/// Reads the configuration, or tells all its problems.
pub fn load(file: Option<&std::path::Path>) -> Result<Config, Fatal> {
    Config::load(file).map_err(|problems| Fatal::problems(&problems))
}

/// One thread serves all edges; the stages that compute have threads of their own.
pub fn runtime() -> Result<tokio::runtime::Runtime, Fatal> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

/// A line on standard output. A reader that went away is not an error of ours.
pub fn say(line: &str) -> Result<(), Fatal> {
    use std::io::{ErrorKind, Write};
    match writeln!(std::io::stdout().lock(), "{line}") {
        Err(why) if why.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to standard output"),
    }
}

/// Prints why `program` failed, if it did, and gives its exit code.
pub fn exit(program: &str, result: Result<(), Fatal>) -> ExitCode {
    let Err(fatal) = result else { return ExitCode::SUCCESS };
    // Problems of a configuration stand alone, so that an editor can jump to them.
    let before = if fatal.code == Code::Config { String::new() } else { format!("{program}: ") };
    let lines: Vec<_> = fatal.text.lines().map(|line| escaped(line, limits::LOG_LINE)).collect();
    eprintln!("{before}{}", lines.join("\n"));
    ExitCode::from(fatal.code as u8)
}
