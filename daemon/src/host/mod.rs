//! All that lies outside the process and is not one stage's own edge: the clock, systemd, state files, raw system calls.

pub mod attempt;
pub mod clock;
pub mod defence;
pub mod fetch;
pub mod gpiochip;
pub mod identity;
pub mod keep;
pub mod log;
pub mod logind;
pub mod notify;
pub mod rauc;
pub mod scribe;
pub mod sleepers;
pub mod sys;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use attempt::Attempt;
pub use clock::Clock;
pub use defence::Defence;
pub use keep::Keep;
pub use scribe::{Later, Scribe};

use crate::error::{Context, Fatal};

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

/// 128 bits nobody can guess, as hex.
pub fn nonce() -> String {
    use std::io::Read;
    let mut bytes = [0u8; 16];
    if File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).is_err() {
        fastrand::fill(&mut bytes);
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Host {
    /// Makes the state directory and locks it for as long as the result lives.
    pub fn lock_state(&self, state_dir: &Path) -> Result<File, Fatal> {
        let what = || format!("use the state directory {}", state_dir.display());
        let path = state_dir.join("lock");
        // A disk that cannot be written now does not keep the daemon from starting: the lock is there from before.
        let made = std::fs::create_dir_all(state_dir).and_then(|()| File::create(&path));
        let lock = made.or_else(|why| File::open(&path).map_err(|_| why)).context(what())?;
        lock.try_lock().map_err(|why| match why {
            std::fs::TryLockError::WouldBlock => Fatal::failed(format!("{}: another kentledge uses it", what())),
            std::fs::TryLockError::Error(why) => Fatal::failed(format!("{}: {why}", what())),
        })?;
        Ok(lock)
    }
}
