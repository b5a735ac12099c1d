//! What is handed to the client library, and what its acknowledgement means.

use rumqttc::v5::mqttbytes::v5::PubAckReason;
use tokio::sync::watch;

use super::Topics;
use crate::{flow::order::LinkNews, host::Defence, outbox::ParcelId};

/// What an acknowledgement settles.
#[derive(Debug, Clone, Copy)]
pub(super) enum Settles {
    /// One message of the outbox; of a command's result, its sequence.
    Parcel(ParcelId, Option<u64>),
    /// The subscriptions.
    Subscriptions,
    /// That what is not configured any more is removed.
    Gone,
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

/// What is not configured any more: the broker is asked with each connection to keep nothing of it.
#[derive(Default)]
pub(super) struct Gone {
    left: usize,
}

impl Gone {
    /// An empty retained message for each of these streams.
    pub fn handed(&mut self, streams: &[String], topics: &Topics) -> Vec<Handed> {
        if !Defence::ClearGone.stands() {
            return Vec::new();
        }
        self.left = streams.len();
        let nothing = |stream: &String| Handed {
            settles: Settles::Gone,
            ..Handed::nothing(topics.stream(stream), Vec::new(), true)
        };
        streams.iter().map(nothing).collect()
    }

    /// Reports it when the broker has acknowledged all of them.
    pub fn acked(&mut self, settles: Option<Settles>, reason: PubAckReason, news: &watch::Sender<LinkNews>) {
        let done = matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
        if matches!(settles, Some(Settles::Gone)) && done {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                news.send_modify(|news| news.cleared = true);
            }
        }
    }
}
