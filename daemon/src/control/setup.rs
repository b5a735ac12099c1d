//! What the stage works with: the wiring hands it over, and nothing here decides.

use std::{
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use serde_json::Value;
use tokio::sync::watch;

use super::{action::Leave, audit, trial::Trials};
use crate::{
    config::{Config, Mqtt},
    flow::{
        Draft, StreamId,
        board::Board,
        event::EventStreams,
        meter::Meters,
        order::{LinkNews, LogQuery, Orders, Response, Ticket},
        samples,
    },
    host::{Clock, HostError, Keep},
    model::rollout::Desk,
};

/// Requests another connection: the broker, the count of such changes, and the longest wait between two connects while
/// the change is on trial.
pub type Want = Box<dyn Fn(Mqtt, u64, Option<Duration>) + Send>;

/// Reads a part of the journal.
pub type ReadLog = Box<dyn Fn(&LogQuery) -> Result<Value, HostError> + Send>;

/// Access to the machine.
pub struct Machine {
    /// Restarts the machine.
    pub reboot: Box<dyn Fn() -> Result<(), HostError> + Send>,
    /// Reads the journal.
    pub log: ReadLog,
    /// The status document.
    pub status: Box<dyn Fn() -> Value + Send>,
}

/// The surroundings of the stage.
pub struct ControlSetup {
    /// The configuration in use.
    pub config: Config,
    /// The clock.
    pub clock: Arc<Clock>,
    /// Id of this boot.
    pub boot: String,
    /// Id of this process.
    pub process: String,
    /// `STATE/control`.
    pub keep: Keep,
    /// This device ran before, so it must have a memory of commands.
    pub ran_before: bool,
    /// Configurations on trial.
    pub trials: Trials,
    /// The audit log, not opened yet.
    pub audit: audit::Log,
    /// Shows the head of the audit log.
    pub show_audit: audit::Show,
    /// Orders from the link; closed: the process stops.
    pub orders: Orders,
    /// `up/res` and `up/reported`.
    pub streams: (StreamId, StreamId),
    /// `up/blob`
    pub blob: StreamId,
    /// `up/e/…`
    pub events: EventStreams,
    /// To the outbox; never waits. Returns the record's number.
    pub put: Box<dyn Fn(Draft) -> u64 + Send>,
    /// Reports that an order is settled: the link then acknowledges it to the broker.
    pub settled: Box<dyn Fn(Ticket) + Send>,
    /// To a response topic; never waits.
    pub respond: Box<dyn Fn(Response) + Send>,
    /// State of the connection.
    pub link: watch::Receiver<LinkNews>,
    /// Requests another connection.
    pub want: Want,
    /// Counters.
    pub meters: Arc<Meters>,
    /// What other stages show, and which pipelines are to learn again.
    pub board: Arc<Board>,
    /// Access to the machine.
    pub machine: Machine,
    /// Ends this run of the process.
    pub leave: Box<dyn Fn(Leave) + Send>,
    /// Requests to the rollout of models, and its reports.
    pub rollout: Desk,
    /// The store of samples, where it is configured.
    pub samples: Option<samples::Desk>,
    /// Requests of local callers.
    pub local: mpsc::Receiver<Local>,
    /// Publishes the state of model installs for status and D-Bus.
    pub show_models: Box<dyn Fn(Value) + Send>,
    /// Access to the system's slots.
    pub slots: Slots,
}

/// A request of a local caller, by D-Bus.
pub enum Local {
    /// Install this file.
    Install(OwnedFd),
    /// Roll back.
    RollBack(String),
}

/// Writes the bundle into the other slot. Reports percent and text; returns the version.
pub type Write = dyn Fn(&Path, &mut dyn FnMut(i32, &str)) -> Result<String, HostError> + Send + Sync;

/// Access to the machine's slots.
pub struct Slots {
    /// The slot that runs; `None`: this machine has no slots.
    pub slot: Option<String>,
    /// Version of the system that runs.
    pub version: Option<String>,
    /// Whether the slot that runs is marked good in the boot loader's environment.
    pub good: Box<dyn Fn() -> bool + Send>,
    /// Writes the other slot.
    pub write: Arc<Write>,
    /// Publishes the state of the update for status and D-Bus.
    pub show: Box<dyn Fn(Value) + Send>,
}
