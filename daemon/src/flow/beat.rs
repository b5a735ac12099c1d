//! A sign of life: counted up by a stage, looked at by the watchdog and by those who must not trust a stage that hangs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// A wait for something outside the process is a sign of life this often.
const TURN: Duration = Duration::from_millis(500);

/// The sign of life of one stage; clones are of the same stage.
#[derive(Debug, Clone, Default)]
pub struct Beat(Arc<AtomicU64>);

impl Beat {
    /// The stage made progress.
    pub fn beat(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// How often it did so far.
    pub fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Waits for something outside the process, which may take for ever, and beats meanwhile. Never for another stage:
    /// that this one waits for a stage that hangs must be seen.
    pub async fn during<T>(&self, waited_for: impl Future<Output = T>) -> T {
        let mut waited_for = std::pin::pin!(waited_for);
        loop {
            self.beat();
            if let Ok(done) = tokio::time::timeout(TURN, &mut waited_for).await {
                return done;
            }
        }
    }
}
