//! State that outlives a connection: why the link is down, what was reported of it, whether another client has our client
//! id, and what was learnt about this broker.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Setup, backoff,
    offer::Learnt,
    packet::Sizes,
    seen::Seen,
    suspect::{Name, Suspects},
    tally::Tally,
};
use crate::{
    config::{Broker, Mqtt},
    flow::event::Kind,
    limits,
};

/// What outlives a connection.
pub struct Outage {
    /// Connections tried so far.
    pub session: u64,
    /// Since when the link is down.
    pub since: Instant,
    /// The last reason that was reported.
    pub why: String,
    /// How many times in a row a twin threw us out.
    pub twins: u32,
    /// Connections in a row that the broker accepted and closed soon, without a reason.
    pub soon: u32,
    /// Connections in a row on which the broker did not answer CONNECT or SUBSCRIBE in time.
    pub slow: u32,
    /// Messages that may be what the broker closes on.
    pub suspects: Suspects,
    /// Orders that were handled.
    pub seen: Seen,
    /// The place of the broker in the list that is tried now, and what is known of each.
    at: usize,
    brokers: Vec<Known>,
    /// Why the last short-lived connection ended.
    ended: String,
    /// What happens often.
    pub tallies: Tallies,
    /// Times of what happened in earlier connections count from here.
    pub began: Instant,
}

/// What is known of one broker.
#[derive(Default)]
pub struct Known {
    /// How much it takes, as far as a refusal taught it.
    pub sizes: Sizes,
    /// What it does not offer, as far as a refusal taught it.
    pub learnt: Learnt,
    /// What it lacks, as it was logged last.
    pub lacks: String,
    /// How often it closed after SUBSCRIBE: each halves the filters in one packet.
    pub closed_on_filters: u32,
}

impl Known {
    /// Filters in one packet.
    pub fn filters(&self) -> usize {
        (limits::FILTERS >> self.closed_on_filters.min(8)).max(1)
    }
}

/// What happens often.
#[derive(Default)]
pub struct Tallies {
    /// Messages that the broker rejected permanently, and the last one's reason.
    pub refused: (Tally, String),
    /// Records that do not fit the broker's largest packet, and the last one.
    pub large: (Tally, String),
    /// Orders without room, or dropped for another reason.
    pub orders: Tally,
    /// Messages that the broker closed on, and the last one.
    pub closed: (Tally, String),
}

impl Default for Outage {
    fn default() -> Self {
        Self {
            session: 0,
            since: Instant::now(),
            why: String::new(),
            twins: 0,
            soon: 0,
            slow: 0,
            suspects: Suspects::default(),
            seen: Seen::default(),
            at: 0,
            brokers: vec![Known::default()],
            ended: String::new(),
            tallies: Tallies::default(),
            began: Instant::now(),
        }
    }
}

impl Outage {
    /// Begins with the first broker of another configuration, of which nothing is known.
    pub fn begin(&mut self, mqtt: &Mqtt) {
        (self.at, self.slow) = (0, 0);
        self.brokers = mqtt.brokers.iter().map(|_| Known::default()).collect();
        self.brokers.resize_with(self.brokers.len().max(1), Known::default);
    }

    /// The broker to try next; `None` without any broker, which no valid configuration has.
    pub fn broker<'a>(&self, mqtt: &'a Mqtt) -> Option<&'a Broker> {
        mqtt.brokers.get(self.at)
    }

    /// What is known of it.
    pub fn known(&mut self) -> &mut Known {
        &mut self.brokers[self.at]
    }

    /// After a connection that held, the list starts again with the first broker, which is preferred. Otherwise the next is tried.
    /// `true`: it is one that was not tried yet in this round.
    pub fn next_broker(&mut self, held: bool) -> bool {
        self.at = if held { 0 } else { (self.at + 1) % self.brokers.len() };
        self.at > 0
    }

    /// Leaves the broker to a twin for some time, and says so. Returns how long.
    pub fn twin(&mut self, setup: &Setup, broker: &Broker, what: &str) -> Duration {
        self.twins += 1;
        self.soon = 0;
        let wait = backoff::twin_wait(self.twins, fastrand::f64());
        let why = format!("{what}; leaving it the broker for {} s", wait.as_secs());
        self.say(setup, broker, &why);
        (setup.tell)(Kind::LinkTwin, &why);
        wait
    }

    /// Says why, where it is another reason than before, or another broker of the list. What changes with each attempt is in
    /// parentheses at the end.
    pub fn say(&mut self, setup: &Setup, broker: &Broker, why: &str) {
        let text = if self.brokers.len() > 1 { format!("{broker}: {why}") } else { why.to_owned() };
        let same = |text: &str| text.split(" (the only").next().map(str::to_owned);
        if same(&text) != same(&self.why) {
            tracing::warn!(broker = %broker, "no connection: {why}; trying again");
            (setup.note)(&text);
            self.why = text;
        }
    }

    /// The broker closed a connection `after` it was accepted, with these messages unacknowledged.
    pub fn closed(&mut self, setup: &Setup, flying: Vec<(Name, Duration)>, after: Duration, why: &str) {
        self.suspects.closed(flying);
        self.seen.closed(self.session, after);
        self.soon = if after < limits::SOON { self.soon + 1 } else { 0 };
        why.clone_into(&mut self.ended);
        let more = self.soon > limits::SOON_TIMES && self.soon.is_power_of_two();
        if self.soon == limits::SOON_TIMES || more {
            (setup.tell)(Kind::Outage, &self.short_lived());
        }
    }

    /// In words, that connections end soon.
    pub fn short_lived(&self) -> String {
        let (n, within, why) = (self.soon, limits::SOON.as_secs(), &self.ended);
        format!("connections are short-lived: {n} in a row were accepted and ended within {within} s: {why}")
    }

    /// Logs what happened often.
    pub fn report(&mut self, setup: &Setup) {
        let now = self.began.elapsed();
        let tallies = &mut self.tallies;
        if let Some(n) = tallies.refused.0.due(now) {
            tracing::error!("the broker rejected {n} messages permanently ({}): counted as lost", tallies.refused.1);
        }
        if let Some(n) = tallies.large.0.due(now) {
            tracing::error!("{n} records do not fit the broker's largest packet: counted as lost; {}", tallies.large.1);
        }
        if let Some(n) = tallies.closed.0.due(now) {
            tracing::error!("{n} messages ended three connections each: counted as lost; {}", tallies.closed.1);
        }
        if let Some(n) = tallies.orders.due(now) {
            let text = format!("{n} messages for this device were dropped: more at once than it said it takes");
            (setup.tell)(Kind::CommandsRefused, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_tried_in_order_and_after_one_that_held_from_the_first() {
        let mut outage = Outage { brokers: (0..3).map(|_| Known::default()).collect(), ..Outage::default() };
        let turns: Vec<_> = (0..4).map(|_| (outage.next_broker(false), outage.at)).collect();
        assert_eq!(turns, [(true, 1), (true, 2), (false, 0), (true, 1)], "a round ends with a pause");
        assert!(!outage.next_broker(true) && outage.at == 0);
        let mut alone = Outage::default();
        assert!(!alone.next_broker(false), "a single broker is always a new round");
    }

    #[test]
    fn what_a_refusal_taught_is_of_one_broker() {
        let mut outage = Outage { brokers: (0..2).map(|_| Known::default()).collect(), ..Outage::default() };
        assert_eq!(outage.known().filters(), limits::FILTERS);
        let filters: Vec<usize> = (0..5)
            .map(|_| {
                outage.known().closed_on_filters += 1;
                outage.known().filters()
            })
            .collect();
        assert_eq!(filters, [4, 2, 1, 1, 1]);
        outage.known().sizes = outage.known().sizes.refused(4000);
        outage.next_broker(false);
        assert_eq!((outage.known().filters(), outage.known().sizes), (limits::FILTERS, Sizes::default()));
    }
}
