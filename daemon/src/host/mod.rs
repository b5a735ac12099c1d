//! All that lies outside the process and is not one stage's own edge: the clock, systemd, state files, raw system calls.

pub mod attempt;
pub mod clock;
pub mod defence;
pub mod keep;
pub mod notify;
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

use crate::error::{Context, Fatal};

/// The machine as the daemon sees it.
#[derive(Debug, Clone)]
pub struct Host {
    /// The only reader of time.
    pub clock: Arc<Clock>,
    /// This boot's id.
    pub boot: String,
    /// This program, which is also the worker: the very file that runs, even when another has taken its name.
    pub program: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { clock: Arc::default(), boot: clock::boot_id(), program: "/proc/self/exe".into() }
    }
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
