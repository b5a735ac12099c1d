//! `kentledge selftest`: looks at the machine and prints a line for each part, with a verdict and what to do. For the first hour with
//! a board, and for a board that behaves oddly. `facts` reads, `judge` decides (pure), this file asks and prints.

mod disk;
mod facts;
mod judge;
#[cfg(test)]
mod tests;

use std::{
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use facts::{Facts, Root};
use judge::{Check, Verdict};
use serde_json::json;

use crate::{
    config::{Broker, Config, Device, Mqtt},
    flow::Clk,
    host::{Clock, gpiochip},
    limits,
};

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// With this configuration file: its ports, its state directory, its brokers
    #[arg(long)]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Write nothing: the disk is not measured
    #[arg(long)]
    no_write: bool,
}

/// Looks and judges; the report, and how many parts failed. A configuration that is invalid costs what it would have added, not the
/// report.
pub fn report(args: &Args) -> (String, usize) {
    let config = Config::local(args.config.as_deref());
    let config = config.inspect_err(|problems| {
        tracing::warn!("the configuration has problems ({}): selftest continues without it", problems.len());
    });
    let facts = look(args, config.ok().as_ref());
    let checks = judge::judge(&facts);
    let worst = judge::worst(&checks);
    let text = if args.json {
        json!({"v": 1, "verdict": worst, "checks": checks, "facts": facts}).to_string()
    } else {
        checks.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    (text, checks.iter().filter(|check| check.verdict == Verdict::Fail).count())
}

fn line(check: &Check) -> String {
    let advice = if check.advice.is_empty() { String::new() } else { format!(" -> {}", check.advice) };
    format!("{:<6}  {:<12}  {}{advice}", check.verdict.word(), check.check, check.found)
}

/// The facts of this machine.
fn look(args: &Args, config: Option<&Config>) -> Facts {
    let none = Device::default();
    let settings = config.map_or(&none, |config| &config.device);
    let folder = existing(&settings.state_dir);
    let device = std::fs::metadata(&folder).map_or(0, |meta| meta.dev());
    let mut facts = Root("/".into()).read((nix::sys::stat::major(device), nix::sys::stat::minor(device)));
    facts.class.clone_from(&settings.class);
    facts.missing_ports = config
        .iter()
        .flat_map(|config| &config.sources)
        .filter_map(|source| Some((source.name.clone(), source.port.path()?.to_owned())))
        .filter(|(_, port)| !facts::is_device(port))
        .collect();
    facts.gpio_open = gpiochip::list()
        .into_iter()
        .map(|chip| (chip.label, chip.lines.len(), chip.lines.iter().filter(|(_, user)| !user.is_empty()).count()))
        .collect();
    facts.clock = match Clock::default().now().clk {
        Clk::Unset => None,
        Clk::Hold => Some(false),
        Clk::Sync => Some(true),
    };
    facts.storage.folder = folder.display().to_string();
    if let Ok(fs) = nix::sys::statvfs::statvfs(&folder) {
        facts.storage.total = fs.blocks().saturating_mul(fs.fragment_size());
        facts.storage.free = fs.blocks_available().saturating_mul(fs.fragment_size());
    }
    facts.speed = (!args.no_write).then(|| disk::measure(&folder, facts.storage.free));
    let brokers = config
        .iter()
        .flat_map(|config| &config.mqtt)
        .flat_map(|mqtt| mqtt.brokers.iter().map(move |broker| (mqtt, broker)));
    facts.brokers = brokers.map(|(mqtt, broker)| (broker.to_string(), connect(mqtt, broker))).collect();
    facts
}

/// The folder, or the nearest one above it that exists: a device that never ran has no state directory.
fn existing(folder: &Path) -> PathBuf {
    folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// Opens a TCP connection to the broker, or to the proxy in front of it, and closes it again.
fn connect(mqtt: &Mqtt, broker: &Broker) -> Result<Duration, String> {
    let (host, port) = match &mqtt.proxy {
        Some(proxy) => (proxy.host.clone(), proxy.port),
        None => (broker.host.clone(), broker.port),
    };
    let (to, came) = mpsc::sync_channel(1);
    // A resolver may take longer than anyone waits; the thread ends with the process.
    std::thread::spawn(move || {
        let began = Instant::now();
        let tried =
            (host.as_str(), port).to_socket_addrs().map_err(|why| format!("the name {host} is not found: {why}"));
        let _ = to.send(tried.and_then(|all| any(&host, all)).map(|()| began.elapsed()));
    });
    let late = || Err(format!("no answer within {} s", 2 * limits::SELFTEST_CONNECT.as_secs()));
    came.recv_timeout(2 * limits::SELFTEST_CONNECT).unwrap_or_else(|_| late())
}

/// Connects to the first address that answers, as the daemon does; else the reason of the last.
fn any(host: &str, all: impl Iterator<Item = SocketAddr>) -> Result<(), String> {
    let mut last = format!("the name {host} has no address");
    for address in all {
        match TcpStream::connect_timeout(&address, limits::SELFTEST_CONNECT) {
            Ok(_) => return Ok(()),
            Err(why) => last = format!("{address}: {why}"),
        }
    }
    Err(last)
}
