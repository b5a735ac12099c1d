//! What is handed to the client library, and what its acknowledgement means.

use crate::outbox::ParcelId;

/// What an acknowledgement settles.
#[derive(Debug, Clone, Copy)]
pub(super) enum Settles {
    /// One message of the outbox; of a command's result, its sequence.
    Parcel(ParcelId, Option<u64>),
    /// The subscriptions.
    Subscriptions,
    /// Nothing: announcements are made anew with each connection.
    Nothing,
}

/// A message on its way to the client library.
pub(super) struct Handed {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
    pub settles: Settles,
    pub backlog: bool,
    pub correlation: Option<bytes::Bytes>,
}

impl Handed {
    pub fn nothing(topic: String, payload: Vec<u8>, retain: bool) -> Self {
        Self { topic, payload, retain, settles: Settles::Nothing, backlog: false, correlation: None }
    }
}
