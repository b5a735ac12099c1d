//! The update of the operating system as it is saved: the job, its step, and bundles that failed. The system of the other
//! slot reads it, also an older or a newer one.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::args::BundleFrom;
use crate::{flow::order::Respond, model::shelf::Ended};

/// The step of a job, with what is known then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateStep {
    /// The bundle is received.
    Bringing,
    /// RAUC writes the other slot. The broker was reached within the day before.
    Installing { uplink: bool },
    /// The other slot starts next: the version in it, and why it is not healthy so far; the new system writes that.
    Restarting { version: String, uplink: bool, why: Option<String> },
}

/// The job in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "UpdateJobFile", into = "UpdateJobFile")]
pub struct UpdateJob {
    pub command: String,
    pub respond: Option<Respond>,
    pub sha256: String,
    pub size: u64,
    pub from: BundleFrom,
    pub step: UpdateStep,
    /// Processes that began with this step.
    pub begun: u32,
    /// The boot in which the step was saved.
    pub boot: String,
    /// The slot that ran when the step was saved.
    pub slot: String,
}

/// The job as `system.json` holds it; the system of the other slot reads it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct UpdateJobFile {
    command: String,
    respond: Option<Respond>,
    sha256: String,
    size: u64,
    from: BundleFrom,
    step: UpdateStepFile,
    begun: u32,
    boot: String,
    slot: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    uplink: bool,
    #[serde(default)]
    why: String,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UpdateStepFile {
    Bringing,
    Installing,
    Restarting,
}

impl From<UpdateJobFile> for UpdateJob {
    fn from(file: UpdateJobFile) -> Self {
        let step = match file.step {
            UpdateStepFile::Bringing => UpdateStep::Bringing,
            UpdateStepFile::Installing => UpdateStep::Installing { uplink: file.uplink },
            UpdateStepFile::Restarting => {
                let why = Some(file.why).filter(|why| !why.is_empty());
                UpdateStep::Restarting { version: file.version, uplink: file.uplink, why }
            }
        };
        let UpdateJobFile { command, respond, sha256, size, from, begun, boot, slot, .. } = file;
        Self { command, respond, sha256, size, from, step, begun, boot, slot }
    }
}

impl From<UpdateJob> for UpdateJobFile {
    fn from(job: UpdateJob) -> Self {
        let (step, version, uplink, why) = match job.step {
            UpdateStep::Bringing => (UpdateStepFile::Bringing, String::new(), false, None),
            UpdateStep::Installing { uplink } => (UpdateStepFile::Installing, String::new(), uplink, None),
            UpdateStep::Restarting { version, uplink, why } => (UpdateStepFile::Restarting, version, uplink, why),
        };
        let (why, UpdateJob { command, respond, sha256, size, from, begun, boot, slot, .. }) =
            (why.unwrap_or_default(), UpdateJob { step: UpdateStep::Bringing, ..job });
        Self { command, respond, sha256, size, from, step, begun, boot, slot, version, uplink, why }
    }
}

/// What is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub job: Option<UpdateJob>,
    /// The last job that ended, until control saved its result; an older version did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// Digests of bundles that were rolled back, and why.
    pub failed: VecDeque<(String, String)>,
}
