//! The state of a command, as its results say it.

use serde::{Deserialize, Serialize};

use crate::model::shelf::End;

/// The state of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// Accepted, not started.
    Accepted,
    /// In progress.
    Running,
    /// Done.
    Success,
    /// It could not be executed.
    Failed,
    /// Not executed; the outcome has the reason.
    Rejected,
    /// Not executed: it expired.
    Expired,
    /// Executed, then undone.
    RolledBack,
}

impl CommandState {
    /// The word in the result.
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Whether no other state follows.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Accepted | Self::Running)
    }
}

impl From<End> for CommandState {
    fn from(end: End) -> Self {
        match end {
            End::Success => Self::Success,
            End::Failed => Self::Failed,
            End::RolledBack => Self::RolledBack,
        }
    }
}
