//! All that lies outside the process and is not one stage's own edge: the clock, systemd, state files, raw system calls.

pub mod accelerator;
pub mod attempt;
pub mod beats;
pub mod clock;
pub mod defence;
mod error;
pub mod fetch;
pub mod gpiochip;
pub mod identity;
pub mod keep;
pub mod log;
pub mod logind;
pub mod looks;
pub mod modbus;
pub mod notify;
pub mod rauc;
pub mod scribe;
pub mod signals;
pub mod sleepers;
pub mod sys;
pub mod tty;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use attempt::Attempt;
pub use clock::Clock;
pub use defence::Defence;
pub use error::HostError;
pub use keep::{Keep, Unloaded};
pub use scribe::{Later, Scribe};

use crate::error::Fatal;

/// The machine as the daemon sees it.
#[derive(Debug, Clone)]
pub struct Host {
    /// The only reader of time.
    pub clock: Arc<Clock>,
    /// This boot's id.
    pub boot: String,
    /// This process, as no other was or will be named.
    pub process: String,
    /// This program, which is also the worker: the very file that runs, even when another has taken its name.
    pub program: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { clock: Arc::default(), boot: clock::boot_id(), process: nonce(), program: "/proc/self/exe".into() }
    }
}

/// 128 unpredictable bits, as hex.
pub fn nonce() -> String {
    use std::io::Read;
    let mut bytes = [0u8; 16];
    if File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).is_err() {
        fastrand::fill(&mut bytes);
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The state directory is this process's alone for as long as this lives.
#[derive(Debug)]
pub struct StateLock {
    /// This device ran before with this directory.
    pub ran_before: bool,
    /// The directory cannot be written, or is not there and cannot be made.
    pub trouble: Option<String>,
    _file: Option<File>,
}

/// What every run leaves behind, each in a folder of its own: one that is deleted does not make the device look new.
const TRACES: [&str; 5] =
    ["lock", "outbox/sequences.json", "outbox/sequences.json.bak", "clock/floor.json", "models/high.json"];

impl Host {
    /// Makes the state directory and locks it. The daemon starts even if it cannot be made or written.
    ///
    /// # Errors
    /// Another process has locked it.
    pub fn lock_state(&self, state_dir: &Path) -> Result<StateLock, Fatal> {
        let what = || format!("use the state directory {}", state_dir.display());
        let absent = |why: std::io::Error| why.kind() == std::io::ErrorKind::NotFound;
        let there = |name: &str| !state_dir.join(name).symlink_metadata().is_err_and(absent);
        let ran_before = state_dir.exists() && TRACES.iter().any(|name| there(name));
        let path = state_dir.join("lock");
        let made = std::fs::create_dir_all(state_dir).and_then(|()| File::create(&path));
        let trouble = made
            .as_ref()
            .err()
            .map(|why| format!("{}: {why}; nothing can be saved there, and the daemon goes on in memory", what()));
        // A folder can be locked as well as a file, where the file cannot be made.
        let lock = made.or_else(|_| File::open(&path)).or_else(|_| File::open(state_dir)).ok();
        match lock.as_ref().map(File::try_lock) {
            Some(Err(std::fs::TryLockError::WouldBlock)) => {
                return Err(Fatal::failed(format!("{}: another kentledge uses it", what())));
            }
            Some(Err(std::fs::TryLockError::Error(why))) => {
                tracing::warn!("lock {}: {why}; another daemon on it is not detected", what())
            }
            Some(Ok(())) | None => {}
        }
        Ok(StateLock { ran_before, trouble, _file: lock })
    }
}
