//! Which acknowledgement belongs to which message. Pure. The client library gives a packet id only when it writes a
//! message; messages are written in the order they were handed over, so a queue pairs the two.

use std::collections::{HashMap, VecDeque};

/// Messages of type `T` between being handed over and being acknowledged.
#[derive(Debug)]
pub struct Flight<T> {
    handed: VecDeque<T>,
    flying: HashMap<u16, T>,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self { handed: VecDeque::new(), flying: HashMap::new() }
    }
}

impl<T> Flight<T> {
    /// Handed to the client.
    pub fn handed(&mut self, what: T) {
        self.handed.push_back(what);
    }

    /// The client wrote the oldest under this id. An id that is still in use means its answer never came.
    pub fn written(&mut self, id: u16) {
        if let Some(what) = self.handed.pop_front() {
            self.flying.insert(id, what);
        }
    }

    /// The broker answered.
    pub fn answered(&mut self, id: u16) -> Option<T> {
        self.flying.remove(&id)
    }

    /// Handed or flying.
    pub fn len(&self) -> usize {
        self.handed.len() + self.flying.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_in_any_order_find_their_messages() {
        let mut flight = Flight::default();
        ["a", "b", "c"].into_iter().for_each(|m| flight.handed(m));
        flight.written(1);
        flight.written(2);
        assert_eq!(flight.len(), 3);
        assert_eq!(flight.answered(2), Some("b"));
        flight.written(2);
        assert_eq!(flight.answered(2), Some("c"));
        assert_eq!(flight.answered(9), None);
        assert_eq!(flight.answered(1), Some("a"));
        assert_eq!(flight.len(), 0);
    }
}
