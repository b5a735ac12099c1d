//! Defences that can be taken out, so that a test can show that each one is needed. In the product they always stand;
//! only a build with the feature `switches` reads KENTLEDGE_WITHOUT, a comma-separated list of words.

/// What stands between a fault and lost data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    /// fsync of the store: sled's flush does not call it.
    SyncData,
    /// Each stored message's own checksum.
    Crc,
    /// The synced mark that shows a truncated store.
    Watermark,
    /// The reserve file given up first on a full disk.
    Ballast,
    /// Looking at the reason in a PUBACK.
    PubackReason,
    /// Escaping what others wrote before it is logged.
    LogEscape,
    /// Removing at the broker what is not configured any more.
    ClearGone,
    /// A state file that cannot be read is not taken for absent.
    Unreadable,
    /// A memory of commands that is gone is distrusted.
    Distrust,
    /// A signed version or sequence may not be out of reach of those that follow.
    VersionBound,
    /// Provisioning follows no link.
    NoFollow,
    /// Rejecting ONNX files in which a field that may occur once occurs twice.
    OnnxTwice,
    /// Lowering sequences by the keysets that came after they were saved.
    Rotation,
    /// Comparing a bundle's tar headers with those that `pack` writes.
    TarHeader,
    /// Ending an install that is under way when a rollback is asked for.
    RollbackWins,
    /// Landlock around the worker: kernels without it have the list of system calls alone.
    Landlock,
    /// The list of system calls the worker may make.
    WorkerCalls,
    /// The seals that keep the worker from shortening the memory it shares with the daemon.
    SharedSeals,
    /// Answers go only below the device's own `up/_r/`.
    ResponseTopic,
    /// Small state files are written by a thread of their own.
    Scribe,
    /// Tasks have signs of life, as threads do.
    TaskBeats,
    /// A halted plan does not start.
    PlanHalt,
    /// A wave is open only when those before it were open for their hold times.
    PlanHold,
    /// A gate is opened by its own secret only.
    PlanGate,
    /// A plan whose sequence was seen does not count again.
    PlanReplay,
    /// A plan starts only on a connection that was listened to for long enough.
    PlanFresh,
}

impl Defence {
    /// Whether it stands.
    #[cfg(not(any(test, feature = "switches")))]
    pub const fn stands(self) -> bool {
        true
    }

    /// Whether it stands: a unit test takes one out for its thread (`without`).
    #[cfg(all(test, not(feature = "switches")))]
    pub fn stands(self) -> bool {
        TAKEN_OUT.get() != Some(self)
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
            Self::LogEscape => "log_escape",
            Self::ClearGone => "clear_gone",
            Self::Unreadable => "unreadable",
            Self::Distrust => "distrust",
            Self::VersionBound => "version_bound",
            Self::NoFollow => "no_follow",
            Self::OnnxTwice => "onnx_twice",
            Self::Rotation => "rotation",
            Self::TarHeader => "tar_header",
            Self::RollbackWins => "rollback_wins",
            Self::Landlock => "landlock",
            Self::WorkerCalls => "worker_calls",
            Self::SharedSeals => "shared_seals",
            Self::ResponseTopic => "response_topic",
            Self::Scribe => "scribe",
            Self::TaskBeats => "task_beats",
            Self::PlanHalt => "plan_halt",
            Self::PlanHold => "plan_hold",
            Self::PlanGate => "plan_gate",
            Self::PlanReplay => "plan_replay",
            Self::PlanFresh => "plan_fresh",
        };
        !std::env::var("KENTLEDGE_WITHOUT").is_ok_and(|without| without.split(',').any(|w| w == word))
    }
}

#[cfg(test)]
std::thread_local! {
    static TAKEN_OUT: std::cell::Cell<Option<Defence>> = const { std::cell::Cell::new(None) };
}

/// Runs a test without this defence, in this thread.
#[cfg(test)]
pub fn without<T>(defence: Option<Defence>, test: impl FnOnce() -> T) -> T {
    TAKEN_OUT.set(defence);
    let done = test();
    TAKEN_OUT.set(None);
    done
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
