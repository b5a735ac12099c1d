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
    /// The daemon stops because it was told to.
    Stopping,
    /// A configuration layer does not validate and is not used.
    ConfigSetAside,
    /// Another configuration is in use.
    ConfigChanged,
    /// A configuration was not confirmed; the one before is back.
    ConfigRolledBack,
    /// Commands were refused without an answer.
    CommandsRefused,
    /// The store could not be opened; a new one was started.
    StoreSetAside,
    /// Something that was safe on disk is gone, or does not check.
    StoreDamaged,
    /// The disk takes nothing: full, read-only, broken.
    DiskFailed,
    /// The connection to the broker was away and is back.
    Outage,
    /// Another client uses this device's client id.
    LinkTwin,
    /// A model could not be loaded or used.
    ModelFailed,
    /// A model serves.
    ModelServing,
    /// The worker died or passed its deadline; its window is lost.
    WorkerLost,
    /// A model's calibration is finished.
    ModelCalibrated,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 15] = [
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
        Kind::ModelFailed,
        Kind::ModelServing,
        Kind::WorkerLost,
        Kind::ModelCalibrated,
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
            Kind::ModelFailed => "model.failed",
            Kind::ModelServing => "model.serving",
            Kind::WorkerLost => "worker.lost",
            Kind::ModelCalibrated => "model.calibrated",
        }
    }

    fn severity(self) -> &'static str {
        match self {
            Kind::Boot | Kind::Stopping | Kind::ModelServing | Kind::ModelCalibrated => "info",
            Kind::ConfigChanged => "info",
            Kind::WorkerLost | Kind::Outage | Kind::ConfigRolledBack | Kind::CommandsRefused => "warning",
            Kind::StoreDamaged | Kind::DiskFailed | Kind::LinkTwin => "critical",
            Kind::ConfigSetAside | Kind::StoreSetAside | Kind::ModelFailed => "critical",
        }
    }
}

/// Where each kind goes, in the order of `Kind::ALL`.
#[derive(Debug, Clone)]
pub struct EventStreams(pub Vec<StreamId>);

impl EventStreams {
    /// An event as a record: what happened in words, and the thing it happened to.
    pub fn draft(&self, kind: Kind, stamp: Stamp, subject: &str, text: &str) -> Draft {
        let mut body = format!("\"type\":\"{}\",\"severity\":\"{}\",\"subject\":", kind.word(), kind.severity());
        json_str(&mut body, subject);
        let _ = body.write_str(",\"text\":");
        json_str(&mut body, text);
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
