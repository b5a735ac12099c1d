//! What is known of one device: the newest message of each topic, bounded. Members are those of the schemas, so `--json` needs no
//! page of its own.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::Value;

use crate::limits;

/// How the device is connected, as the broker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// No `up/state` came.
    #[default]
    Unknown,
    /// Connected.
    Online,
    /// Being stopped in order.
    Stopping,
    /// Its will was published.
    Offline,
}

/// A model that serves.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Serving {
    /// Pipeline.
    pub pipeline: String,
    /// `NAME@VERSION`.
    pub model: String,
    /// Slot.
    pub slot: String,
    /// It has no signature.
    pub unsigned: bool,
}

/// The last `up/h`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Health {
    /// Since the daemon's start, s.
    pub uptime_s: u64,
    /// Memory, KiB.
    pub rss_kib: u64,
    /// Records in RAM that the broker has not acknowledged.
    pub ram_records: u64,
    /// Records on disk.
    pub stored_records: u64,
    /// On disk, bytes.
    pub stored_bytes: u64,
    /// Delivered since the start.
    pub delivered: u64,
    /// Lost, ever.
    pub lost: u64,
    /// The disk can be written.
    pub disk_ok: bool,
    /// Models that are configured.
    pub models: u64,
    /// Serving.
    pub models_serving: u64,
    /// What is wrong, in words; empty: healthy.
    pub degraded: Vec<String>,
}

/// An alarm that is not cleared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alarm {
    /// `raised` or `unknown`.
    pub phase: String,
    /// `info`, `warning`, `critical`.
    pub severity: String,
    /// Score or value.
    pub value: Option<f64>,
    /// What was passed.
    pub level: Option<f64>,
    /// Furthest beyond it.
    pub peak: Option<f64>,
    /// Channel or model.
    pub of: String,
    /// Wall time of the record.
    pub ts: Option<String>,
    /// It was acknowledged and stays raised.
    pub acknowledged: bool,
}

/// A plan's state on the device, of `up/reported`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanState {
    /// The plan's sequence.
    pub seq: u64,
    /// `waiting`, `blocked`, `running`, `success`, `failed`, `rolled_back`, `skipped`, …
    pub state: String,
    /// Wave, from 1.
    pub wave: Option<u64>,
    /// So many waves, from the first, whose secret it knows.
    pub gates: u64,
    /// It is halted.
    pub halted: bool,
    /// Of the last signed halt or resume that it obeyed.
    pub n: u64,
    /// Why, as a word.
    pub why: String,
    /// Why, for people.
    pub text: String,
    /// Since when.
    pub since: Option<String>,
}

/// The last `up/reported`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Reported {
    /// Version of the desired state that was looked at last.
    pub version: u64,
    /// `none`, `applying`, `applied`, `rejected`, `rolled_back`, `overridden`.
    pub state: String,
    /// In words.
    pub text: String,
    /// Digest of the remote layer.
    pub digest: Option<String>,
    /// Files of settings that were set aside.
    pub set_aside: Vec<String>,
    /// Model slots, as they were reported.
    pub models: BTreeMap<String, Value>,
}

/// A line of a device's log: an event, a result, a loss.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Wall time.
    pub ts: Option<String>,
    /// `event`, `result`, `loss`.
    pub kind: &'static str,
    /// Type of the event or command, or the stream.
    pub what: String,
    /// Severity of an event, state of a command, reason of a loss.
    pub state: String,
    /// In words.
    pub text: String,
}

/// One device.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Device {
    /// Connection.
    pub state: Link,
    /// Since when, by the device's clock.
    pub state_ts: Option<String>,
    /// When something live was heard last, ms since 1970 by this machine's clock.
    pub heard_ms: Option<i64>,
    /// `sync`, `hold`, `unset`.
    pub clk: String,
    /// Boot.
    pub boot: String,
    /// Version of the daemon.
    pub version: String,
    /// Nonce of the connection.
    pub nonce: String,
    /// Commands that it obeys.
    pub commands: Vec<String>,
    /// Streams that it publishes.
    pub streams: Vec<String>,
    /// What serves.
    pub serving: Vec<Serving>,
    /// Health.
    pub health: Option<Health>,
    /// Alarms that are not cleared, by name.
    pub alarms: BTreeMap<String, Alarm>,
    /// Configuration and slots.
    pub reported: Reported,
    /// Plans, by name.
    pub plans: BTreeMap<String, PlanState>,
    /// Newest last.
    pub log: VecDeque<Line>,
    /// Highest sequences seen, by stream: what comes late from an outage changes nothing.
    #[serde(skip)]
    pub seqs: BTreeMap<String, u64>,
    /// The fleet's count of changes when this one changed last.
    #[serde(skip)]
    pub changed: u64,
}

impl Device {
    /// The worst alarm that is raised: 0 none, 1 info, 2 warning, 3 critical.
    pub fn worst(&self) -> u8 {
        let raised = self.alarms.values().filter(|alarm| alarm.phase == "raised");
        raised.map(|alarm| rank(&alarm.severity)).max().unwrap_or(0)
    }

    /// Alarms that are raised.
    pub fn raised(&self) -> usize {
        self.alarms.values().filter(|alarm| alarm.phase == "raised").count()
    }

    /// Records on disk, because the broker did not acknowledge them in time. Some in RAM are always in flight.
    pub fn backlog(&self) -> u64 {
        self.health.as_ref().map_or(0, |h| h.stored_records)
    }

    /// What is wrong with it, in words; empty: healthy.
    pub fn degraded(&self) -> &[String] {
        self.health.as_ref().map_or(&[], |h| &h.degraded)
    }

    /// `model@version` of what serves, each once.
    pub fn models(&self) -> Vec<&str> {
        let mut models: Vec<&str> = self.serving.iter().map(|serving| serving.model.as_str()).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// Adds a line to the log; the oldest one leaves.
    pub fn note(&mut self, line: Line) {
        if self.log.len() >= limits::LOG {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }
}

/// Severities in order.
pub fn rank(severity: &str) -> u8 {
    match severity {
        "critical" => 3,
        "warning" => 2,
        _ => 1,
    }
}
