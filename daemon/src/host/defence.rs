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
    /// Small state files are written by a thread of their own.
    Scribe,
    /// Tasks have signs of life, as threads do.
    TaskBeats,
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
            Self::Scribe => "scribe",
            Self::TaskBeats => "task_beats",
        };
        !std::env::var("KENTLEDGE_WITHOUT").is_ok_and(|without| without.split(',').any(|w| w == word))
    }
}
