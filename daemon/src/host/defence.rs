//! Defences that can be taken out, so that a test can show that each one is needed. In the product they always stand;
//! only a build with the feature `switches` reads KENTLEDGE_WITHOUT, a comma-separated list of words.

/// What stands between a fault and lost data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    /// fsync of the store after sled's flush, which is none.
    SyncData,
    /// Each stored message's own checksum.
    Crc,
    /// The synced mark that shows a truncated store.
    Watermark,
    /// The reserve file given up first on a full disk.
    Ballast,
    /// Looking at the reason in a PUBACK.
    PubackReason,
    /// Landlock around the worker: kernels without it have the list of system calls alone.
    Landlock,
    /// The list of system calls the worker may make.
    WorkerCalls,
    /// The seals that keep the worker from shortening the memory it shares with the daemon.
    SharedSeals,
}

impl Defence {
    /// Whether it stands.
    #[cfg(not(feature = "switches"))]
    pub const fn stands(self) -> bool {
        true
    }

    /// Whether it stands.
    #[cfg(feature = "switches")]
    pub fn stands(self) -> bool {
        let word = match self {
            Self::SyncData => "sync_data",
            Self::Crc => "crc",
            Self::Watermark => "watermark",
            Self::Ballast => "ballast",
            Self::PubackReason => "puback_reason",
            Self::Landlock => "landlock",
            Self::WorkerCalls => "worker_calls",
            Self::SharedSeals => "shared_seals",
        };
        !std::env::var("KENTLEDGE_WITHOUT").is_ok_and(|without| without.split(',').any(|w| w == word))
    }
}

/// What is taken out, to be handed to a worker, whose environment is empty otherwise.
#[cfg(not(feature = "switches"))]
pub const fn taken_out() -> Option<String> {
    None
}

/// What is taken out, to be handed to a worker, whose environment is empty otherwise.
#[cfg(feature = "switches")]
pub fn taken_out() -> Option<String> {
    std::env::var("KENTLEDGE_WITHOUT").ok()
}
