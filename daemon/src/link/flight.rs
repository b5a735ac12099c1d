//! Which acknowledgement belongs to which message, and what may be handed over next. Pure. The client library gives a
//! packet id only when it writes a message; messages are written in the order they were handed over, so a queue pairs
//! the two.
//!
//! One message at a time is handed over: an alarm then waits behind one message at most, and the id that the next one
//! will get is known. The library takes ids in turn; where a broker answers out of order the next one may still be in
//! use, and a message handed over then would hold up all others until that very answer, so none is.

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
}

/// Messages of type `T` between being handed over and being acknowledged.
#[derive(Debug)]
pub struct Flight<T> {
    handed: VecDeque<(T, bool)>,
    flying: HashMap<u16, Flying<T>>,
    /// Messages the broker takes at once; 0 before it said so.
    window: u16,
    /// The last id that was used.
    last: u16,
    backlog: usize,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self { handed: VecDeque::new(), flying: HashMap::new(), window: 0, last: 0, backlog: 0 }
    }
}

impl<T> Flight<T> {
    /// The broker takes so many at once.
    pub fn open(&mut self, window: u16) {
        self.window = window;
    }

    /// One more may be handed over.
    pub fn has_room(&self) -> bool {
        let next = if self.last >= self.window { 1 } else { self.last + 1 };
        self.handed.is_empty() && self.flying.len() < usize::from(self.window) && !self.flying.contains_key(&next)
    }

    /// One more of the backlog may be: some slots are left to alarms and live data, where there are as many.
    pub fn has_room_for_backlog(&self) -> bool {
        let slots = usize::from(self.window).saturating_sub(limits::LIVE_SLOTS).max(1);
        self.has_room() && self.backlog < slots
    }

    /// Handed to the client.
    pub fn handed(&mut self, what: T, backlog: bool) {
        self.backlog += usize::from(backlog);
        self.handed.push_back((what, backlog));
    }

    /// The client wrote the oldest under this id; `now` on any clock that only grows.
    pub fn written(&mut self, id: u16, now: Duration) {
        self.last = id;
        if let Some((what, backlog)) = self.handed.pop_front() {
            self.flying.insert(id, Flying { what, backlog, since: now });
        }
    }

    /// The broker answered; with when it was written.
    pub fn answered(&mut self, id: u16) -> Option<(T, Duration)> {
        let flying = self.flying.remove(&id)?;
        self.backlog -= usize::from(flying.backlog);
        Some((flying.what, flying.since))
    }

    /// When the one was written that waits longest for its answer.
    pub fn oldest(&self) -> Option<Duration> {
        self.flying.values().map(|f| f.since).min()
    }

    /// What was written and is not answered, with when it was written.
    pub fn flying(&self) -> impl Iterator<Item = (&T, Duration)> {
        self.flying.values().map(|flying| (&flying.what, flying.since))
    }

    /// Handed or flying.
    pub fn len(&self) -> usize {
        self.handed.len() + self.flying.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::ZERO;

    #[test]
    fn answers_in_any_order_find_their_messages_and_an_id_in_use_is_waited_for() {
        let mut flight = Flight::default();
        assert!(!flight.has_room(), "not before the broker said how many");
        flight.open(3);
        for (id, what) in [(1, "a"), (2, "b"), (3, "c")] {
            assert!(flight.has_room());
            flight.handed(what, false);
            assert!(!flight.has_room(), "one at a time");
            flight.written(id, Duration::from_secs(u64::from(id)));
        }
        assert_eq!(flight.len(), 3);
        assert_eq!(flight.answered(2).map(|a| a.0), Some("b"));
        assert!(!flight.has_room(), "id 1 is next and in use");
        assert_eq!(flight.oldest(), Some(Duration::from_secs(1)));
        assert_eq!(flight.answered(1).map(|a| a.0), Some("a"));
        assert!(flight.has_room());
        assert_eq!(flight.answered(9), None);
        assert_eq!(flight.answered(3).map(|a| a.0), Some("c"));
        assert_eq!((flight.len(), flight.oldest()), (0, None));
    }

    #[test]
    fn the_backlog_leaves_slots_to_live_data_and_gets_the_only_one_where_there_is_but_one() {
        let mut flight = Flight::default();
        flight.open(5);
        for id in 1..=3 {
            assert!(flight.has_room_for_backlog());
            flight.handed((), true);
            flight.written(id, T);
        }
        assert!(flight.has_room() && !flight.has_room_for_backlog());
        let mut flight: Flight<()> = Flight::default();
        flight.open(1);
        assert!(flight.has_room_for_backlog());
    }
}
