//! What the daemon reports about itself: counters, health each interval, the status document, metrics, and the journal.

pub mod counters;
mod escalation;
pub mod health;
pub mod journal;
pub mod metrics;
pub mod status;
