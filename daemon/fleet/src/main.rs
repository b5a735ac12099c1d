//! `kentledge-fleet`: one operator, many devices. It reads the broker only, keeps nothing on disk, and holds no signing key, so it can
//! be killed, moved or run twice. A program of its own beside the field binary, which must stay small.
//!
//! ```text
//! broker ─▶ state (pure: messages → devices) ─▶ table · console · rollout (pure: what to do next) ─▶ broker
//! ```

mod broker;
mod console;
mod heard;
mod limits;
mod plan;
mod rollout;
mod send;
mod state;
mod table;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use kentledge::{
    cli::{audit, exit, runtime, say},
    error::Fatal,
    host::{log::escaped, signals},
    report::journal,
};
use serde_json::Value;

use crate::heard::Shared;

/// Many devices: looked at, updated together by signed plans, and stopped in time
#[derive(Debug, Parser)]
#[command(name = "kentledge-fleet", version, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    whom: broker::Whom,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows all devices
    Devices {
        /// Shows the table again when something changed; Ctrl-C ends it
        #[arg(long)]
        watch: bool,
        /// One JSON object a device, with all that is known of it
        #[arg(long)]
        json: bool,
    },
    /// Makes, shows and publishes rollout plans
    Plan {
        #[command(subcommand)]
        act: plan::Act,
    },
    /// Runs a published plan: opens its waves as its limits allow, halts it when they do not
    Rollout {
        #[command(subcommand)]
        act: rollout::Act,
    },
    /// Writes a command to sign, or publishes the signed one and shows its results
    Send(send::Args),
    /// Serves the web page
    Console(console::Args),
    /// Checks a device's audit log, which was pulled from it
    Audit {
        #[command(subcommand)]
        act: audit::Act,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    journal::start("warn");
    exit("kentledge-fleet", run(cli))
}

fn run(cli: Cli) -> Result<(), Fatal> {
    let cli = match cli {
        // It needs no broker.
        Cli { command: Command::Audit { act }, .. } => return act.act(),
        cli => cli,
    };
    runtime()?.block_on(async {
        let stop = signals::stop()?;
        tokio::select! {
            done = act(&cli) => done,
            _ = stop => Ok(()),
        }
    })
}

async fn act(cli: &Cli) -> Result<(), Fatal> {
    match &cli.command {
        Command::Devices { watch, json } => {
            heard::with(&cli.whom, |shared, _| async move {
                shared.whole().await;
                if *watch { follow(&shared, *json).await } else { show(&shared, *json) }
            })
            .await
        }
        Command::Plan { act } => plan::act(act, &cli.whom).await,
        Command::Rollout { act } => rollout::act(act, &cli.whom).await,
        Command::Send(args) => send::act(args, &cli.whom).await,
        Command::Console(args) => console::serve(args, &cli.whom).await,
        Command::Audit { .. } => Ok(()),
    }
}

fn show(shared: &Shared, json: bool) -> Result<(), Fatal> {
    let inner = shared.lock();
    if json {
        return inner.fleet.devices.iter().try_for_each(|(id, device)| say(&table::json(id, device).to_string()));
    }
    // Names and texts are the devices' own: escape them.
    let table = table::table(&inner.fleet);
    let lines: Vec<String> = table.lines().map(|line| escaped(line, usize::MAX)).collect();
    say(&lines.join("\n"))
}

/// Shows what changes: the table again on a terminal, and lines of JSON for a script.
async fn follow(shared: &Shared, json: bool) -> Result<(), Fatal> {
    let mut seen = 0;
    loop {
        let changed: Vec<Value> = {
            let inner = shared.lock();
            let after = std::mem::replace(&mut seen, inner.fleet.changes);
            let devices = inner.fleet.devices.iter().filter(|(_, device)| device.changed > after);
            devices.map(|(id, device)| table::json(id, device)).collect()
        };
        if json {
            changed.iter().try_for_each(|device| say(&device.to_string()))?;
        } else if !changed.is_empty() {
            // Home, and clear what is below.
            print(&format!("\x1b[H\x1b[J{}\n", table_text(shared)))?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn table_text(shared: &Shared) -> String {
    let table = table::table(&shared.lock().fleet);
    table.lines().map(|line| escaped(line, usize::MAX)).collect::<Vec<_>>().join("\n")
}

fn print(text: &str) -> Result<(), Fatal> {
    use kentledge::error::Context;
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write to standard output")
}
