//! What control asks of the store of samples, what the store answers, and what it counts.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
    mpsc::{Receiver, SyncSender, sync_channel},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{count::Count, kept::Kept, order::Respond};

/// A label of a window or an alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Label {
    /// It was right, or it was not.
    Truth(bool),
    /// It is of this class.
    Class(String),
}

/// What a label is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// An episode of this alarm; `None`: the newest that is kept.
    Alarm(String, Option<String>),
    /// A window, by the digest of its values, hex.
    Window(String),
}

/// A label as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feedback {
    /// What it is about.
    pub about: About,
    /// The label.
    pub label: Label,
    /// Who says so.
    pub by: Option<String>,
    /// A remark.
    pub note: Option<String>,
}

/// Which samples are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this pipeline.
    pub pipeline: Option<String>,
    /// Of this class.
    pub class: Option<Kept>,
    /// Only those with a label.
    pub labelled: bool,
    /// Not older, ms since 1970.
    pub since_ms: Option<i64>,
    /// Not newer.
    pub until_ms: Option<i64>,
}

/// What is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Records of the store.
    Samples(Filter),
    /// A tape: this one, or the newest of this alarm, or the newest.
    Tape {
        /// Its file name.
        name: Option<String>,
        /// The alarm that saved it.
        alarm: Option<String>,
    },
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A label.
    Feedback(Feedback),
    /// Something is to be fetched, with so many bytes at most, and bytes a second at most.
    Pull {
        /// What.
        wanted: Wanted,
        /// Bytes a second; `None`: as the configuration says.
        bytes_s: Option<u64>,
        /// Bytes at most; `None`: what the configuration allows in a day.
        most: Option<u64>,
    },
    /// The pull in progress ends.
    Cancel,
}

/// An order for the store.
#[derive(Debug, Clone)]
pub enum Order {
    /// A command.
    Ask {
        /// Type of the command.
        kind: String,
        /// Its id.
        id: String,
        /// Where its result goes beside `up/res`.
        respond: Option<Respond>,
        /// What it asks.
        ask: Ask,
    },
    /// The result of this command is saved: the store need not remember it any more.
    Heard(String),
}

/// Why something is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no such window, alarm or tape, or it does not fit.
    Invalid,
    /// Another pull is in progress.
    Busy,
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// It goes on.
    Running(String),
    /// It is done: a text, and data.
    Done(String, Value),
    /// It is rejected.
    Refused(Refused, String),
    /// It could not be done.
    Failed(String),
}

/// An answer of the store.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Type of the command.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// Where its result goes beside `up/res`.
    pub respond: Option<Respond>,
    /// Its result.
    pub said: Said,
}

/// Control's end.
#[derive(Debug)]
pub struct Desk {
    orders: SyncSender<Order>,
    answers: Receiver<Answer>,
    /// The command whose pull a previous process began.
    pub left: Option<String>,
}

/// The store's end.
#[derive(Debug)]
pub struct Inbox {
    /// What is asked.
    pub orders: Receiver<Order>,
    /// Where answers go.
    pub answers: SyncSender<Answer>,
}

/// The two ends; `left`: the command whose pull a previous process began.
pub fn desk(orders: usize, left: Option<String>) -> (Desk, Inbox) {
    let (to_store, from_control) = sync_channel(orders);
    // Control takes all answers at each turn; a pull says a word an hour.
    let (to_control, from_store) = sync_channel(2 * orders);
    let desk = Desk { orders: to_store, answers: from_store, left };
    (desk, Inbox { orders: from_control, answers: to_control })
}

impl Desk {
    /// Hands an order in; never waits. `false`: the store is not there, or its queue is full.
    pub fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }

    /// The next answer.
    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

/// A pull in progress, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullShown {
    /// Type of the command.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes that the broker acknowledged.
    pub sent: u64,
    /// Why it waits.
    pub waits: Option<String>,
}

/// Classes of windows by their worth: those of `Kept`, and those with a label.
pub const CLASSES: usize = Kept::ALL.len() + 1;

/// The words of these classes.
pub const CLASS_WORDS: [&str; CLASSES] = ["uniform", "drift", "escalated", "alarm", "labelled"];

/// What the store counts. Written by the store, but for `lane`, which the engines count.
#[derive(Debug, Default)]
pub struct SampleMeters {
    /// Windows that are kept, by class.
    pub windows: [AtomicU64; CLASSES],
    /// Labels.
    pub labels: AtomicU64,
    /// Bytes on the disk.
    pub bytes: AtomicU64,
    /// Windows removed for room or by age, by class.
    pub evicted: [Count; CLASSES],
    /// Windows that did not reach the store: its queue was full.
    pub lane: Count,
    /// Windows that were not kept, because all that is kept is worth more.
    pub full: Count,
    /// Windows that were not kept, because many were kept in the last hours: the disk is spared.
    pub rate: Count,
    /// Windows that were not kept, because the disk is full or cannot be written.
    pub disk: Count,
    /// Files that were damaged, and removed.
    pub damaged: Count,
    /// Bytes of pulls that the broker acknowledged.
    pub pulled: Count,
    pull: Mutex<Option<PullShown>>,
}

impl SampleMeters {
    /// Shows the pull in progress.
    pub fn show_pull(&self, pull: Option<PullShown>) {
        *self.pull.lock().unwrap_or_else(PoisonError::into_inner) = pull;
    }

    /// The pull in progress.
    pub fn pull(&self) -> Option<PullShown> {
        self.pull.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Windows that were not kept.
    pub fn dropped(&self) -> u64 {
        self.lane.get() + self.full.get() + self.rate.get() + self.disk.get()
    }

    /// Windows that are kept.
    pub fn kept(&self) -> u64 {
        self.windows.iter().map(|n| n.load(Relaxed)).sum()
    }
}
