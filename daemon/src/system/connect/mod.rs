//! Builds the stages: a file for each, with what the stage works with and how it is started. `run` calls them in the order
//! of the data. `replay` uses `engine` and `channel_alarms` alone.

mod control;
mod disk;
mod ends;
mod link;
mod looks;
mod models;
mod outbox;
mod outputs;
mod ring;
mod samples;
mod signal;
mod sources;

use std::sync::Arc;

use super::streams::Table;
use crate::{
    config::Config,
    flow::{Draft, Sink, board::Board, escalation::Exchange, event::Kind, meter::Meters},
    host::{Clock, Host, sys},
    limits,
    outbox::Writer,
    report::{counters::Counters, status::Status},
};

pub use self::{
    disk::{keeps, times},
    ends::{ControlEnds, EdgeEnds, ends},
    models::{Windows, engine, installed},
    outbox::setup as outbox_setup,
    signal::channel_alarms,
    sources::Frames,
};

/// What stages are built from.
pub struct Base<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The configuration in use.
    pub config: &'a Config,
    /// The streams of records.
    pub table: &'a Table,
    /// Into the outbox.
    pub writer: &'a Writer,
    /// What is looked at: counters, and what stages show each other.
    pub status: &'a Status,
}

impl Base<'_> {
    /// Puts records into the outbox.
    pub fn put(&self, mut drafts: Vec<Draft>) {
        self.writer.clone().put(&mut drafts);
    }

    /// Publishes an event.
    pub fn event(&self, kind: Kind, subject: &str, text: &str) {
        self.put(vec![self.table.events.draft(kind, self.host.clock.now(), subject, text)]);
    }

    fn counters(&self) -> Arc<Counters> {
        self.status.counters.clone()
    }

    fn board(&self) -> Arc<Board> {
        self.status.board.clone()
    }
}

/// Gives the memory back that the start took for pages of the program, once it is over. Ends with the run at the latest.
pub async fn release_program() {
    tokio::time::sleep(limits::PROGRAM_RELEASE).await;
    sys::release_program();
}

/// Counters, and what stages show each other.
pub fn meters(config: &Config) -> (Arc<Meters>, Arc<Board>) {
    let (sources, channels, pipelines) = (config.sources.len(), config.channels.len(), config.pipelines.len());
    let mut board = Board::new(pipelines, config.alarms.len());
    board.exchange = Exchange::new(pipelines, limits::ESCALATIONS_WAITING, limits::ESCALATION_ANSWERS);
    (Arc::new(Meters::new(sources, channels, pipelines)), Arc::new(board))
}

/// What there is to look at.
pub fn status(host: &Host, config: &Config, writer: &Writer) -> Status {
    let (meters, board) = meters(config);
    Status {
        config: Arc::new(config.clone()),
        meters,
        board,
        counters: Arc::default(),
        history: Arc::default(),
        writer: writer.clone(),
        clock: host.clock.clone(),
        boot: host.boot.clone(),
        began_ns: Clock::boot_ns(),
    }
}
