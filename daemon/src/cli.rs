//! The command line: what may be written, and which part of the program does it.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{
    config::Config,
    demo,
    error::{Context, Fatal},
    host::Host,
    infer::worker_main,
    journal,
    outbox::probe_main,
    replay, run,
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
    /// The whole road on this machine: simulated pump or a CSV file → daemon → model → broker → what comes out
    Demo(demo::Args),
    /// A recorded tape or a CSV file through the same stages, deterministic; JSON lines on standard output
    Replay(replay::Args),
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
    /// The worker process; started by the daemon only
    #[command(hide = true)]
    InferWorker,
    /// Tries to open a store; started by the daemon only
    #[command(hide = true)]
    ProbeStore {
        /// Its folder
        folder: PathBuf,
    },
}

impl Cli {
    /// Does what was asked for.
    pub fn act(self) -> Result<(), Fatal> {
        match self.command {
            Command::Run { config } => {
                journal::start("info");
                let config = load(config.as_deref())?;
                runtime()?.block_on(async { run::run(Host::default(), config, run::signals()?).await })
            }
            Command::Check { config } => {
                let config = load(config.as_deref())?;
                for line in replay::describe(&config) {
                    say(&line)?;
                }
                Ok(())
            }
            Command::Demo(args) => demo::demo(&args),
            Command::Replay(args) => {
                journal::start("warn");
                replay::replay(&args)
            }
            Command::Record { config, out, seconds } => {
                journal::start("info");
                let config = load(config.as_deref())?;
                runtime()?.block_on(replay::record(Host::default(), config, &out, seconds))
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
