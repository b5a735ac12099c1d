//! The simulated world: what lies around the daemon, under the test's control. Every stand-in is the real thing where
//! it can run here (mosquitto, ptys, the real binary with the real ONNX Runtime); each module's head lists the faults
//! it can make.

pub mod broker;
pub mod daemon;
pub mod onnx;
pub mod schema;
pub mod sub;
pub mod tty;

pub use broker::Mosquitto;
pub use daemon::{Daemon, Done, Site};
pub use sub::{Message, Sub};
pub use tty::Tty;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long anything that must happen may take: generous, for a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(12);

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

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// Real recordings beside the repository; `None`, said loudly, where they are missing.
pub fn recordings(folder: &str) -> Option<PathBuf> {
    let path = root().parent()?.join("shared/data").join(folder);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("SKIPPED: no recordings at {}", path.display());
    None
}
