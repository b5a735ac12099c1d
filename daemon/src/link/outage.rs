//! The time between two connections: why there is none, what is said of it, and who has the broker meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use super::{Setup, backoff};
use crate::{config::Mqtt, flow::event::Kind};

/// The time between two connections.
pub struct Outage {
    /// Connections tried so far.
    pub session: u64,
    /// Since when there is none.
    pub since: Instant,
    /// What was said last of why there is none.
    pub why: String,
    /// How many times in a row a twin threw us out.
    pub twins: u32,
    /// Connections in a row that were accepted at the first try and ended soon.
    pub thrown_out: u32,
}

impl Default for Outage {
    fn default() -> Self {
        Self { session: 0, since: Instant::now(), why: String::new(), twins: 0, thrown_out: 0 }
    }
}

impl Outage {
    /// Leaves the broker to a twin for some time, and says so. Returns how long.
    pub fn twin(&mut self, setup: &Setup, mqtt: &Mqtt, what: &str) -> Duration {
        self.twins += 1;
        self.thrown_out = 0;
        let wait = backoff::twin_wait(self.twins, fastrand::f64());
        let why = format!("{what}; leaving it the broker for {} s", wait.as_secs());
        self.say(setup, mqtt, &why);
        (setup.tell)(Kind::LinkTwin, &why);
        wait
    }

    /// Says why, where it is another reason than before.
    pub fn say(&mut self, setup: &Setup, mqtt: &Mqtt, why: &str) {
        if why != self.why {
            let broker = format!("{}:{}", mqtt.host, mqtt.port);
            tracing::warn!(broker, "no connection: {why}; trying again");
            (setup.note)(why);
            why.clone_into(&mut self.why);
        }
    }
}
