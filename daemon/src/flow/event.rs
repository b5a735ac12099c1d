//! Events: what happened to the device itself, each kind with its own stream under `up/e/`.

use std::fmt::Write;

use super::{
    record::{Class, Draft, Retain, StreamId, json_str},
    stamp::Stamp,
};

/// Kinds of events. The discriminant is the place in `Kind::ALL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The daemon started.
    Boot,
    /// The daemon stops on request: a signal, a command or D-Bus.
    Stopping,
    /// A configuration layer does not validate and is not used.
    ConfigSetAside,
    /// Another configuration is in use.
    ConfigChanged,
    /// A configuration was not confirmed; the previous one is in use again.
    ConfigRolledBack,
    /// Commands were refused without an answer.
    CommandsRefused,
    /// The store could not be opened; a new one was started.
    StoreSetAside,
    /// Something that was safe on disk is gone, or does not check.
    StoreDamaged,
    /// The disk is not writable: full, read-only, broken.
    DiskFailed,
    /// The connection to the broker was away and is back.
    Outage,
    /// Another client uses this device's client id.
    LinkTwin,
    /// A source delivers nothing.
    SourceLost,
    /// It delivers again.
    SourceBack,
    /// The values of a channel cannot be used, or none come.
    ChannelBad,
    /// They can be used again.
    ChannelGood,
    /// A model could not be loaded or used.
    ModelFailed,
    /// A model serves.
    ModelServing,
    /// The worker died or passed its deadline; its window is lost.
    WorkerLost,
    /// A model's calibration is finished.
    ModelCalibrated,
    /// A new model serves; it is watched.
    ModelSwapped,
    /// A model was unhealthy; the previous one serves.
    ModelRolledBack,
    /// What is known of the newest models is out of date.
    ModelUpdateStale,
    /// Another operating system runs and is healthy.
    SystemUpdated,
    /// Another operating system was unhealthy; the previous one runs.
    SystemRolledBack,
    /// A pipeline's windows wait for longer and longer: its model is too slow for what comes.
    PipelineBehind,
    /// They do not any more.
    PipelineCaughtUp,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 26] = [
        Kind::Boot,
        Kind::Stopping,
        Kind::ConfigSetAside,
        Kind::ConfigChanged,
        Kind::ConfigRolledBack,
        Kind::CommandsRefused,
        Kind::StoreSetAside,
        Kind::StoreDamaged,
        Kind::DiskFailed,
        Kind::Outage,
        Kind::LinkTwin,
        Kind::SourceLost,
        Kind::SourceBack,
        Kind::ChannelBad,
        Kind::ChannelGood,
        Kind::ModelFailed,
        Kind::ModelServing,
        Kind::WorkerLost,
        Kind::ModelCalibrated,
        Kind::ModelSwapped,
        Kind::ModelRolledBack,
        Kind::ModelUpdateStale,
        Kind::SystemUpdated,
        Kind::SystemRolledBack,
        Kind::PipelineBehind,
        Kind::PipelineCaughtUp,
    ];

    /// The last part of the topic.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Boot => "boot",
            Kind::Stopping => "stopping",
            Kind::ConfigSetAside => "config.set_aside",
            Kind::ConfigChanged => "config.changed",
            Kind::ConfigRolledBack => "config.rolled_back",
            Kind::CommandsRefused => "commands.refused",
            Kind::StoreSetAside => "store.set_aside",
            Kind::StoreDamaged => "store.damaged",
            Kind::DiskFailed => "disk.failed",
            Kind::Outage => "outage",
            Kind::LinkTwin => "link.twin",
            Kind::SourceLost => "source.lost",
            Kind::SourceBack => "source.back",
            Kind::ChannelBad => "channel.bad",
            Kind::ChannelGood => "channel.good",
            Kind::ModelFailed => "model.failed",
            Kind::ModelServing => "model.serving",
            Kind::WorkerLost => "worker.lost",
            Kind::ModelCalibrated => "model.calibrated",
            Kind::ModelSwapped => "model.swapped",
            Kind::ModelRolledBack => "model.rolled_back",
            Kind::ModelUpdateStale => "model.update_stale",
            Kind::SystemUpdated => "system.updated",
            Kind::SystemRolledBack => "system.rolled_back",
            Kind::PipelineBehind => "pipeline.behind",
            Kind::PipelineCaughtUp => "pipeline.caught_up",
        }
    }

    /// The journal's id of it; `catalog/kentledge.catalog` says what to do.
    pub fn message_id(self) -> &'static str {
        match self {
            Kind::Boot => "f57cbf94f4e740c5b7cb2393715fee07",
            Kind::Stopping => "5fd6d9c7253d4ddfa86c8d186342f7c1",
            Kind::ConfigSetAside => "d6ce9ab8daa443cab3beb01f0d4204a0",
            Kind::ConfigChanged => "48b1b97b8788429a8f1d0f2232a7776b",
            Kind::ConfigRolledBack => "c0a18a54eb4642f6a2a0515b6d280f4a",
            Kind::CommandsRefused => "8d9d1e67f6794dd0939303d374e91c16",
            Kind::StoreSetAside => "375ec024c399451684932920890b22a9",
            Kind::StoreDamaged => "62e97efe19f646acb874e8e0f3415f52",
            Kind::DiskFailed => "cd397bb5b2c44d42aa6b10d07dd06255",
            Kind::Outage => "1484456ef112453390240c455f8394ea",
            Kind::LinkTwin => "2f35908e1e0b4e29b8e5d308d9467079",
            Kind::SourceLost => "c887468061ec12b9f5b7299887236016",
            Kind::SourceBack => "9b946d4d5e91cc3ce4908d542206e321",
            Kind::ChannelBad => "c23c461659a30e9583f412f8522e0f04",
            Kind::ChannelGood => "021850f20220b26f6246e095059b4a88",
            Kind::ModelFailed => "c66e69bfc05f417387bf1185dc631f24",
            Kind::ModelServing => "1b9b2641025c44d88ee4ccb5ea1aa258",
            Kind::WorkerLost => "6e623037c5854d64b6159492cd81636d",
            Kind::ModelCalibrated => "0123964f6fb941f1becdfce85dc60233",
            Kind::ModelSwapped => "bcaa70105f074e02b8f3098b91d359d7",
            Kind::ModelRolledBack => "be20a6bc1128443d82d55c5cc678b2a5",
            Kind::ModelUpdateStale => "d30d9005e17f4c0c84a99e4f5af5a353",
            Kind::SystemUpdated => "7d0cf2a9f1a84e0f9a5c6f4f1b8a3e21",
            Kind::SystemRolledBack => "3b6f1de02c7b4c0c8f0f5f6f2a1d9c47",
            Kind::PipelineBehind => "5d0b9a2e7c3f4b6f8e1c64d2a7905b3e",
            Kind::PipelineCaughtUp => "e1a46c8f20d94f57b3d8097f5c2e6a14",
        }
    }

    fn severity(self) -> &'static str {
        match self {
            Kind::Boot | Kind::Stopping | Kind::ModelServing | Kind::ModelCalibrated => "info",
            Kind::ConfigChanged | Kind::ModelSwapped | Kind::SystemUpdated => "info",
            Kind::SourceBack | Kind::ChannelGood | Kind::PipelineCaughtUp => "info",
            Kind::ModelUpdateStale | Kind::PipelineBehind => "warning",
            Kind::WorkerLost
            | Kind::SourceLost
            | Kind::ChannelBad
            | Kind::Outage
            | Kind::SystemRolledBack
            | Kind::ConfigRolledBack
            | Kind::CommandsRefused => "warning",
            Kind::StoreDamaged | Kind::DiskFailed | Kind::LinkTwin => "critical",
            Kind::ConfigSetAside | Kind::StoreSetAside | Kind::ModelFailed | Kind::ModelRolledBack => "critical",
        }
    }
}

/// The journal's ids of what is no event of its own.
pub const ALARM_RAISED: &str = "096d84f188074bd5bc90094b069f8669";
/// See `ALARM_RAISED`.
pub const ALARM_CLEARED: &str = "1672d33b65904e00af12f67279830231";
/// See `ALARM_RAISED`.
pub const ALARM_ACKNOWLEDGED: &str = "4c1f6f0f2a5e4b0d9d5f0a7b3e8c2d61";
/// See `ALARM_RAISED`.
pub const COMMAND_FINISHED: &str = "5523063e296945ec9777f81248dcc356";

/// Where each kind goes, in the order of `Kind::ALL`.
#[derive(Debug, Clone)]
pub struct EventStreams(pub Vec<StreamId>);

impl EventStreams {
    /// An event as a record: what happened in words, and the thing it happened to. It is logged here, once.
    pub fn draft(&self, kind: Kind, stamp: Stamp, subject: &str, text: &str) -> Draft {
        self.draft_with(kind, stamp, (subject, text), "")
    }

    /// The same with more JSON members: `,"silent_ms":12000`.
    pub fn draft_with(&self, kind: Kind, stamp: Stamp, (subject, text): (&str, &str), members: &str) -> Draft {
        let (message_id, event) = (kind.message_id(), kind.word());
        match kind.severity() {
            "info" => tracing::info!(message_id, event, subject, "{event} {subject}: {text}"),
            "warning" => tracing::warn!(message_id, event, subject, "{event} {subject}: {text}"),
            _ => tracing::error!(message_id, event, subject, "{event} {subject}: {text}"),
        }
        let mut body = format!("\"type\":\"{}\",\"severity\":\"{}\",\"subject\":", kind.word(), kind.severity());
        json_str(&mut body, subject);
        let _ = body.write_str(",\"text\":");
        json_str(&mut body, text);
        body.push_str(members);
        let stream = self.0[kind as usize];
        Draft { stream, class: Class::Event, stamp, lineage: None, body: body.into(), retain: Retain::No }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_at_its_own_place() {
        Kind::ALL.iter().enumerate().for_each(|(i, kind)| assert_eq!(*kind as usize, i));
    }
}
