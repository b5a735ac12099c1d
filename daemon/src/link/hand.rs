//! What is sent next, and what its acknowledgement means.

use rumqttc::v5::mqttbytes::v5::PubAckReason;
use tokio::sync::watch;

use super::suspect::Name;
use crate::{flow::order::LinkNews, host::Defence, outbox::ParcelId};

/// What an acknowledgement settles.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Settles {
    /// A message of the outbox, or a part of one.
    Parcel(Part),
    /// Subscriptions with these filters.
    Subscriptions(Vec<String>),
    /// That what is not configured any more is removed.
    Gone,
    /// A window that is escalated, of the pipeline at this place.
    Window(usize),
    /// Nothing: announcements are repeated with each connection, and a response is sent once.
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

/// A message that is sent next.
pub(super) struct Handed {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
    pub settles: Settles,
    pub backlog: bool,
    pub correlation: Option<bytes::Bytes>,
    /// It is not written later than this, ns since boot, and the broker forgets it then; `None`: never.
    pub until_ns: Option<u64>,
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
            correlation: None,
            until_ns: None,
            wishes: Vec::new(),
        }
    }

    pub fn subscriptions(wishes: Vec<super::topic::Wish>) -> Self {
        let settles = Settles::Subscriptions(wishes.iter().map(|wish| wish.filter.clone()).collect());
        Self { settles, wishes, ..Self::nothing(String::new(), Vec::new(), false) }
    }
}

/// What is not configured any more: the broker is asked with each connection to keep nothing of it.
#[derive(Default)]
pub(super) struct Gone {
    left: usize,
}

impl Gone {
    /// An empty retained message for each of these topics.
    pub fn handed(&mut self, topics: Vec<String>) -> Vec<Handed> {
        if !Defence::ClearGone.stands() {
            return Vec::new();
        }
        self.left = topics.len();
        let nothing = |topic| Handed { settles: Settles::Gone, ..Handed::nothing(topic, Vec::new(), true) };
        topics.into_iter().map(nothing).collect()
    }

    /// One of them was acknowledged; reports it when it was the last.
    pub fn acked(&mut self, reason: PubAckReason, news: &watch::Sender<LinkNews>) {
        if matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                news.send_modify(|news| news.cleared = true);
            }
        }
    }
}
