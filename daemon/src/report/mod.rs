//! What the daemon reports about itself: counters and their figures each interval, the status document, metrics, and the journal.

pub mod health;
pub mod journal;
pub mod metrics;
pub mod status;
