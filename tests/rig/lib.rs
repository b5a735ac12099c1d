//! The simulated world: what lies around the daemon, under the test's control. Every stand-in is the real thing where
//! it can run here (mosquitto, ptys, the real binary with the real ONNX Runtime); each module's head lists the faults
//! it can make.

pub mod board;
pub mod broker;
pub mod bus;
pub mod daemon;
pub mod disk;
pub mod evil;
pub mod faults;
pub mod feed;
pub mod fleet;
pub mod gate;
pub mod gpio;
pub mod hostile;
pub mod line;
pub mod machine;
pub mod maker;
pub mod onnx;
pub mod operator;
pub mod recorder;
pub mod schema;
pub mod sub;
pub mod tls;
pub mod tty;
pub mod wire;
pub mod world;

pub use board::Board;
pub use broker::Mosquitto;
pub use daemon::{Daemon, Done, Site};
pub use disk::{Disk, Tear};
pub use evil::{Evil, Manner};
pub use faults::{Faults, What};
pub use feed::{Feed, Tally};
pub use gate::Gate;
pub use hostile::Crime;
pub use line::{Device, Line};
pub use maker::Maker;
pub use operator::Operator;
pub use recorder::Recorder;
pub use sub::{Message, Sub};
pub use tty::Tty;
pub use wire::{Cable, Wire};

use std::{
    collections::BTreeSet,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

/// How long anything that must happen may take: generous, for a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(12);

/// A listener on a port that was not used before in this process, and is no port of an outgoing connection: a daemon that
/// still looks for the broker of another test must not find this one. Linux gives out 32768 and above.
pub fn listen() -> TcpListener {
    static USED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut used = USED.lock().expect("no panic in here");
    loop {
        let port = fastrand::u16(15_000..32_000);
        if used.insert(port)
            && let Ok(listener) = TcpListener::bind(("127.0.0.1", port))
        {
            return listener;
        }
    }
}

/// Such a port, free for another process to listen on.
pub fn free_port() -> u16 {
    listen().local_addr().expect("its address").port()
}

/// Waits until `look` finds something; panics with `what` when it does not.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `look` is true, `most` at the longest; for what takes longer than anything ordinary.
#[track_caller]
pub fn within(most: Duration, what: &str, mut look: impl FnMut() -> bool) {
    let until = Instant::now() + most;
    while !look() {
        assert!(Instant::now() < until, "not within {} s: {what}", most.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says that something cannot be tested here; past the test harness, which would keep it to itself.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// A figure for the record; past the test harness as well.
pub fn measured(what: &str) {
    let _ = writeln!(std::io::stderr(), "MEASURED: {what}");
}

/// Nanoseconds since boot, as the daemon's stamps count them.
pub fn boot_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("a clock");
    Duration::from(now).as_nanos() as u64
}

/// The long form of slow scenarios was asked for (`tests/long`).
pub fn long() -> bool {
    std::env::var_os("KENTLEDGE_LONG").is_some()
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// Where `tests/run` puts the Python packages: of the example client, of the metrics' parser, of field devices.
pub fn python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let path = cache.expect("HOME").join("kentledge/python");
    assert!(path.is_dir(), "{} is missing: tests/run makes it", path.display());
    path
}

/// Real recordings beside the repository; `None`, said loudly, where they are missing.
pub fn recordings(folder: &str) -> Option<PathBuf> {
    let path = root().parent()?.join("shared/data").join(folder);
    if path.is_dir() {
        return Some(path);
    }
    skipped(&format!("no recordings at {}", path.display()));
    None
}
