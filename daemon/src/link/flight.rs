//! Which acknowledgement belongs to which message, and what may be sent next. Pure.
//!
//! A broker that acknowledges nothing (QoS 0 only) is asked with a ping: it reads what it was sent in order, so its answer says
//! that it read all that was sent before the ping.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::limits;

/// What flies: a message of type `T`.
#[derive(Debug)]
struct Flying<T> {
    what: T,
    backlog: bool,
    since: Duration,
    /// Messages sent before it.
    place: u64,
}

/// Messages of type `T` between being sent and being acknowledged.
#[derive(Debug)]
pub struct Flight<T> {
    flying: HashMap<u16, Flying<T>>,
    /// Messages the broker takes at once; 0 before it said so.
    window: u16,
    /// The last id that was used.
    last: u16,
    backlog: usize,
    sent: u64,
    /// For each ping without an answer: messages sent before it.
    pings: VecDeque<u64>,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self { flying: HashMap::new(), window: 0, last: 0, backlog: 0, sent: 0, pings: VecDeque::new() }
    }
}

impl<T> Flight<T> {
    /// The broker takes so many at once.
    pub fn open(&mut self, window: u16) {
        self.window = window;
    }

    /// One more may be sent.
    pub fn has_room(&self) -> bool {
        self.flying.len() < usize::from(self.window)
    }

    /// One more of the backlog may be: some slots are left to alarms and live data, where there are as many.
    pub fn has_room_for_backlog(&self) -> bool {
        let slots = usize::from(self.window).saturating_sub(limits::LIVE_SLOTS).max(1);
        self.has_room() && self.backlog < slots
    }

    /// It is sent now, under the id that is returned; `now` on any clock that only grows. An id in use is passed over: the
    /// window is far smaller than the number of ids.
    pub fn begin(&mut self, what: T, backlog: bool, now: Duration) -> u16 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.flying.contains_key(&self.last) {
                break;
            }
        }
        self.backlog += usize::from(backlog);
        self.flying.insert(self.last, Flying { what, backlog, since: now, place: self.sent });
        self.sent += 1;
        self.last
    }

    /// The broker answered; with when it was sent.
    pub fn answered(&mut self, id: u16) -> Option<(T, Duration)> {
        let flying = self.flying.remove(&id)?;
        self.backlog -= usize::from(flying.backlog);
        Some((flying.what, flying.since))
    }

    /// What flies under this id.
    pub fn what(&self, id: u16) -> Option<&T> {
        self.flying.get(&id).map(|flying| &flying.what)
    }

    /// A ping is sent now.
    pub fn pinged(&mut self) {
        self.pings.push_back(self.sent);
    }

    /// A ping is without an answer.
    pub fn awaits_pong(&self) -> bool {
        !self.pings.is_empty()
    }

    /// The answer of the oldest ping came: the ids of all that was sent before it, in that order.
    pub fn ponged(&mut self) -> Vec<u16> {
        let Some(sent) = self.pings.pop_front() else { return Vec::new() };
        let before = self.flying.iter().filter(|(_, flying)| flying.place < sent);
        let mut before: Vec<(u64, u16)> = before.map(|(id, flying)| (flying.place, *id)).collect();
        before.sort_unstable();
        before.into_iter().map(|(_, id)| id).collect()
    }

    /// When the one was sent that waits longest for its answer.
    pub fn oldest(&self) -> Option<Duration> {
        self.flying.values().map(|f| f.since).min()
    }

    /// What was sent and is not answered, with when it was sent.
    pub fn flying(&self) -> impl Iterator<Item = (&T, Duration)> {
        self.flying.values().map(|flying| (&flying.what, flying.since))
    }

    /// How many fly.
    pub fn len(&self) -> usize {
        self.flying.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::ZERO;

    #[test]
    fn answers_in_any_order_find_their_messages_and_an_id_in_use_is_passed_over() {
        let mut flight = Flight::default();
        assert!(!flight.has_room(), "not before the broker said how many");
        flight.open(3);
        let ids: Vec<u16> = ["a", "b", "c"]
            .iter()
            .zip(1..)
            .map(|(what, s)| {
                assert!(flight.has_room());
                flight.begin(*what, false, Duration::from_secs(s))
            })
            .collect();
        assert_eq!(ids, [1, 2, 3]);
        assert!(!flight.has_room() && flight.len() == 3);
        assert_eq!(flight.answered(2).map(|a| a.0), Some("b"));
        assert!(flight.has_room(), "an answer out of order makes room");
        assert_eq!(flight.oldest(), Some(Duration::from_secs(1)));
        flight.last = u16::MAX;
        assert_eq!(flight.begin("d", false, T), 2, "0 is no id, 1 is in use");
        assert_eq!(flight.answered(9), None);
        for (id, what) in [(1, "a"), (3, "c"), (2, "d")] {
            assert_eq!(flight.answered(id).map(|a| a.0), Some(what));
        }
        assert_eq!((flight.len(), flight.oldest()), (0, None));
    }

    #[test]
    fn the_backlog_leaves_slots_to_live_data_and_gets_the_only_one_where_there_is_but_one() {
        let mut flight = Flight::default();
        flight.open(5);
        for _ in 0..3 {
            assert!(flight.has_room_for_backlog());
            flight.begin((), true, T);
        }
        assert!(flight.has_room() && !flight.has_room_for_backlog());
        let mut flight: Flight<()> = Flight::default();
        flight.open(1);
        assert!(flight.has_room_for_backlog());
    }

    #[test]
    fn an_answered_ping_covers_what_was_sent_before_it_and_nothing_after() {
        let mut flight = Flight::default();
        flight.open(10);
        let (a, b) = (flight.begin("a", false, T), flight.begin("b", true, T));
        flight.pinged();
        let c = flight.begin("c", false, T);
        flight.pinged();
        let d = flight.begin("d", false, T);
        assert!(flight.awaits_pong());
        assert_eq!(flight.ponged(), [a, b]);
        flight.answered(a);
        flight.answered(b);
        assert_eq!(flight.ponged(), [c]);
        assert!(!flight.awaits_pong());
        assert_eq!(flight.ponged(), Vec::<u16>::new(), "a pong without a ping");
        assert!(flight.answered(d).is_some());
    }
}
