//! Orders that were handled: one that the broker sends again is acknowledged and not handled again. Pure. Without this an
//! order whose answer makes the broker close would come with each connection again, and be answered again, for ever.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use crate::{flow::order::Ticket, limits};

/// What is to be done with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// Hand it in.
    New,
    /// It was handled: acknowledge it again.
    Handled,
    /// It was handled, and the broker closed two connections soon after: acknowledge and count it.
    Dropped,
}

#[derive(Debug)]
struct Order {
    digest: u64,
    ticket: Ticket,
    at: Duration,
    /// Control is done with it.
    settled: bool,
    /// Connections that the broker closed soon after it had come.
    ends: u8,
}

/// The newest orders.
#[derive(Debug, Default)]
pub struct Seen {
    hasher: RandomState,
    orders: VecDeque<Order>,
}

impl Seen {
    /// One came: by its topic and payload. `again`: the broker says that it sent it before. `at`: since the connection began.
    pub fn came(&mut self, (topic, payload): (&[u8], &[u8]), again: bool, ticket: Ticket, at: Duration) -> Incoming {
        let digest = self.hasher.hash_one((topic, payload));
        if let Some(order) = self.orders.iter_mut().find(|order| order.digest == digest) {
            let done = match (order.settled, again, order.ends) {
                (true, _, 2..) => Incoming::Dropped,
                (true, true, _) => Incoming::Handled,
                _ => Incoming::New,
            };
            (order.ticket, order.at) = (ticket, at);
            order.settled &= done != Incoming::New;
            return done;
        }
        if self.orders.len() >= limits::ORDERS_SEEN {
            self.orders.pop_front();
        }
        self.orders.push_back(Order { digest, ticket, at, settled: false, ends: 0 });
        Incoming::New
    }

    /// Control is done with it.
    pub fn settled(&mut self, ticket: Ticket) {
        self.orders.iter_mut().filter(|order| order.ticket == ticket).for_each(|order| order.settled = true);
    }

    /// The broker closed this connection after so long.
    pub fn closed(&mut self, session: u64, after: Duration) {
        for order in self.orders.iter_mut().filter(|order| order.ticket.session == session) {
            let soon = after.saturating_sub(order.at) <= limits::BLAMED_WITHIN;
            order.ends = if soon { order.ends.saturating_add(1) } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn ticket(session: u64) -> Ticket {
        Ticket { session, id: 7 }
    }

    #[test]
    fn an_order_that_was_handled_and_comes_again_is_only_acknowledged() {
        let mut seen = Seen::default();
        let order: (&[u8], &[u8]) = (b"t", b"p");
        assert_eq!(seen.came(order, false, ticket(1), NOW), Incoming::New);
        assert_eq!(seen.came(order, true, ticket(2), NOW), Incoming::New, "a kill before it was settled");
        seen.settled(ticket(2));
        assert_eq!(seen.came(order, true, ticket(3), NOW), Incoming::Handled);
        assert_eq!(seen.came((b"t", b"q"), true, ticket(3), NOW), Incoming::New);
        assert_eq!(seen.came(order, false, ticket(4), NOW), Incoming::New, "the same request again");
    }

    #[test]
    fn an_order_after_which_the_broker_closed_twice_is_dropped() {
        let mut seen = Seen::default();
        let order: (&[u8], &[u8]) = (b"t", b"p");
        for session in 1..=2 {
            // This broker does not say that it sends it again.
            assert_eq!(seen.came(order, false, ticket(session), NOW), Incoming::New);
            seen.settled(ticket(session));
            seen.closed(session, Duration::from_millis(100));
        }
        assert_eq!(seen.came(order, false, ticket(3), NOW), Incoming::Dropped);
        seen.closed(3, limits::BLAMED_WITHIN * 3);
        assert_eq!(seen.came(order, false, ticket(4), NOW), Incoming::New, "that connection had held");
        (0..1000u32).for_each(|n| {
            seen.came((b"t", &n.to_be_bytes()), false, ticket(5), NOW);
        });
        assert!(seen.orders.len() <= limits::ORDERS_SEEN);
    }
}
