//! What is asked of this device from outside, and what goes straight back to the asker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Whom a message was sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressee {
    /// This device alone.
    Device,
    /// Every device of the site.
    All,
    /// The devices of a cohort.
    Cohort(String),
}

/// What kind of message it is, by its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// `dn/cmd/{kind}/{id}`
    Command {
        /// Type of the command.
        kind: String,
        /// Its id.
        id: String,
    },
    /// `dn/desired`
    Desired,
    /// `dn/channel`
    Channel,
    /// `dn/plan/{name}`
    Plan {
        /// Name of the plan.
        name: String,
    },
    /// `dn/gate/{plan}/{wave}`
    Gate {
        /// Name of the plan.
        plan: String,
        /// The wave, counted from 1.
        wave: usize,
    },
    /// `dn/halt/{plan}`
    Halt {
        /// Name of the plan.
        plan: String,
    },
    /// `dn/blob/{sha256}/{offset}`
    Blob {
        /// Of the whole bundle.
        sha256: String,
        /// Where in it the payload stands.
        offset: u64,
    },
}

impl Asked {
    /// Whether it is the command that asks who this is: control answers with `up/reported`, the link with `up/state` and `up/birth`.
    pub fn is_report(&self) -> bool {
        matches!(self, Self::Command { kind, .. } if kind == "report")
    }
}

/// Where an answer goes beside `up/res`: MQTT 5's response topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(String, Option<Vec<u8>>)", into = "(String, Option<Vec<u8>>)")]
pub struct Respond {
    /// Topic.
    pub topic: String,
    /// Given back as it came.
    pub correlation: Option<Bytes>,
}

impl From<(String, Option<Vec<u8>>)> for Respond {
    fn from((topic, correlation): (String, Option<Vec<u8>>)) -> Self {
        Self { topic, correlation: correlation.map(Bytes::from) }
    }
}

impl From<Respond> for (String, Option<Vec<u8>>) {
    fn from(respond: Respond) -> Self {
        (respond.topic, respond.correlation.map(|bytes| bytes.to_vec()))
    }
}

/// Names a message to the connection it came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Which connection.
    pub session: u64,
    /// Its packet id there.
    pub id: u16,
}

/// A message as it arrived, not parsed yet.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// Whom it was sent to.
    pub to: Addressee,
    /// What it is.
    pub asked: Asked,
    /// Its payload.
    pub payload: Bytes,
    /// The broker had kept it.
    pub retained: bool,
    /// Where the answer goes as well.
    pub respond: Option<Respond>,
    /// What `up/birth` of this connection says.
    pub nonce: Arc<str>,
    /// To say that it is settled.
    pub ticket: Ticket,
}

/// An answer for a response topic: sent once, never kept.
#[derive(Debug, Clone)]
pub struct Response {
    /// Where it goes.
    pub respond: Respond,
    /// JSON.
    pub payload: String,
}

/// How the connection to the broker stands, as far as control needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkNews {
    /// Changes of `[mqtt]` that were taken up.
    pub taken: u64,
    /// Which connection.
    pub session: u64,
    /// Connected, and the broker took all subscriptions.
    pub subscribed: bool,
    /// Highest sequence of a command's result that was acknowledged on this connection.
    pub acked: u64,
    /// What is not configured any more was removed at the broker.
    pub cleared: bool,
}

/// Which part of the log is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// Unit.
    pub unit: String,
    /// From, ms since 1970.
    pub since_ms: Option<i64>,
    /// Until.
    pub until_ms: Option<i64>,
    /// This and more urgent.
    pub priority: u8,
    /// The newest so many.
    pub lines: u32,
}

/// Where orders are handed in: bounded in number and in bytes, and never waiting.
#[derive(Debug, Clone)]
pub struct Door {
    queue: SyncSender<Box<Arrived>>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// Where they are taken out.
#[derive(Debug)]
pub struct Orders {
    queue: Receiver<Box<Arrived>>,
    bytes: Arc<AtomicUsize>,
}

/// A queue of orders for so many, and so many bytes of payload.
pub fn queue(orders: usize, bytes_max: usize) -> (Door, Orders) {
    let (tx, rx) = sync_channel(orders);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Door { queue: tx, bytes: bytes.clone(), bytes_max }, Orders { queue: rx, bytes })
}

impl Door {
    /// Hands one in.
    ///
    /// # Errors
    /// Gives it back where there is no room.
    pub fn hand_in(&self, arrived: Box<Arrived>) -> Result<(), Box<Arrived>> {
        let size = arrived.payload.len();
        if self.bytes.fetch_add(size, Ordering::Relaxed) + size > self.bytes_max {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            return Err(arrived);
        }
        self.queue.try_send(arrived).map_err(|why| {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            match why {
                TrySendError::Full(arrived) | TrySendError::Disconnected(arrived) => arrived,
            }
        })
    }
}

impl Orders {
    /// The next one, waited for; an error when none came, or none can come any more.
    pub fn take(&self, most: Duration) -> Result<Arrived, RecvTimeoutError> {
        let arrived = self.queue.recv_timeout(most)?;
        self.bytes.fetch_sub(arrived.payload.len(), Ordering::Relaxed);
        Ok(*arrived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_full_by_number_or_by_bytes() {
        let arrived = |bytes: usize| {
            Box::new(Arrived {
                to: Addressee::All,
                asked: Asked::Desired,
                payload: vec![0; bytes].into(),
                retained: false,
                respond: None,
                nonce: "".into(),
                ticket: Ticket { session: 0, id: 0 },
            })
        };
        let sizes = |given_back: Result<(), Box<Arrived>>| given_back.map_err(|arrived| arrived.payload.len());
        let (door, orders) = queue(2, 100);
        assert_eq!(sizes(door.hand_in(arrived(90))), Ok(()));
        assert_eq!(sizes(door.hand_in(arrived(20))), Err(20), "given back whole");
        assert_eq!(sizes(door.hand_in(arrived(5))), Ok(()));
        assert_eq!(sizes(door.hand_in(arrived(0))), Err(0), "two are all there is room for");
        assert_eq!(orders.take(Duration::ZERO).map(|a| a.payload.len()).ok(), Some(90));
        assert_eq!(sizes(door.hand_in(arrived(95))), Ok(()));
        drop(door);
        assert!(orders.take(Duration::ZERO).is_ok() && orders.take(Duration::ZERO).is_ok());
        assert_eq!(orders.take(Duration::ZERO).err(), Some(RecvTimeoutError::Disconnected));
    }
}
