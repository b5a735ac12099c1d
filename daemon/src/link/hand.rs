//! What is handed to the client library, and what its acknowledgement means.

use super::suspect::Name;
use crate::outbox::ParcelId;

/// What an acknowledgement settles.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Settles {
    /// A message of the outbox, or a part of one.
    Parcel(Part),
    /// So many subscriptions.
    Subscriptions(usize),
    /// Nothing: announcements are made anew with each connection, and an answer is sent once.
    Nothing,
}

/// A message of the outbox, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub id: ParcelId,
    pub name: Name,
    /// Records.
    pub n: u64,
    /// Bytes of the packet.
    pub size: usize,
    /// Of a command's result, its sequence.
    pub result: Option<u64>,
}

/// A message on its way to the client library.
pub(super) struct Handed {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
    pub settles: Settles,
    pub backlog: bool,
    /// An answer for a response topic goes after the acknowledgement of its order.
    pub answer: bool,
    pub correlation: Option<bytes::Bytes>,
    /// Subscriptions.
    pub wishes: Vec<super::topic::Wish>,
}

impl Handed {
    pub fn nothing(topic: String, payload: Vec<u8>, retain: bool) -> Self {
        Self {
            topic,
            payload,
            retain,
            settles: Settles::Nothing,
            backlog: false,
            answer: false,
            correlation: None,
            wishes: Vec::new(),
        }
    }

    pub fn subscriptions(wishes: Vec<super::topic::Wish>) -> Self {
        let settles = Settles::Subscriptions(wishes.len());
        Self { settles, wishes, ..Self::nothing(String::new(), Vec::new(), false) }
    }
}
