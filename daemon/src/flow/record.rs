//! A record on its way to the broker, and the door through which stages hand it over.

use std::sync::Arc;

use bytes::Bytes;

use super::stamp::Stamp;

/// Index of a stream in the outbox's table of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u16);

/// What a record is worth. When room is short the oldest of the least class leaves first; when sending, the highest
/// goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Class {
    /// Alarms and events: stored at once, beside sending.
    Event,
    /// Answers to commands.
    Reply,
    /// Health, quality, losses.
    Status,
    /// Predictions.
    Score,
    /// Measurements.
    Measurement,
}

/// Whether the broker keeps the message for later subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Retain {
    /// An ordinary message.
    No,
    /// Kept until the next one.
    Keep,
    /// An ordinary message, and what the broker kept before is removed.
    Remove,
}

/// How an alarm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The condition began.
    Raised,
    /// The condition ended.
    Cleared,
    /// It was raised, and nothing looks at it any more.
    Unknown,
}

/// A record before it has its sequence number. `docs/architecture.md` ("How a record stays safe") draws what it becomes.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Which stream it belongs to.
    pub stream: StreamId,
    /// What it is worth.
    pub class: Class,
    /// When what it tells happened.
    pub stamp: Stamp,
    /// The envelope's `lineage`, a JSON object; records of different lineage never share a message.
    pub lineage: Option<Arc<str>>,
    /// The record's JSON members after `seq` and `t`, without braces: `"score":0.4,"threshold":1.75`.
    pub body: Bytes,
    /// Whether the broker keeps it.
    pub retain: Retain,
}

/// Where stages put what they made: the outbox, or replay's standard output.
pub trait Sink {
    /// Hands records over. Waits when there is no room: records are never shed here.
    fn put(&mut self, drafts: &mut Vec<Draft>);
    /// `n` records of this stream will never be made: their input was lost. Their sequence numbers are used up and
    /// entered in the loss ledger.
    fn lost(&mut self, stream: StreamId, n: u64, reason: &'static str);
}

/// Appends `"key":"text"` escaped as JSON.
pub fn json_str(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

/// Appends a number as JSON; what JSON cannot hold becomes `null`.
pub fn json_num(out: &mut String, value: f64) {
    use std::fmt::Write;
    if value.is_finite() {
        let _ = write!(out, "{value}");
    } else {
        out.push_str("null");
    }
}

/// Appends numbers with commas between them.
pub fn json_list(out: &mut String, values: &[f64]) {
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        json_num(out, *value);
    }
}
