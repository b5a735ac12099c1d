//! Windows on their way to a larger model elsewhere, and its answers: the queues between the stage that runs models and the
//! link, and what is counted of them. Both queues are bounded, and nothing in them outlives a connection or the process.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::count::Count;

/// A window to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Index of its pipeline in the configuration.
    pub pipeline: usize,
    /// Name of its pipeline.
    pub name: Arc<str>,
    /// As `docs/reference/escalation.md` draws it.
    pub payload: Vec<u8>,
    /// It is not sent later than this, ns since boot.
    pub deadline_ns: u64,
}

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The last part of its topic.
    pub digest: String,
    /// Its payload.
    pub payload: Bytes,
    /// The broker had kept it.
    pub retained: bool,
}

/// The queues. Windows go one way, answers the other; neither side waits.
#[derive(Debug, Default)]
pub struct Exchange {
    out: Mutex<VecDeque<Outgoing>>,
    waiting_most: usize,
    wake: Notify,
    /// A connection stands on which answers arrive. Written by the link.
    open: AtomicBool,
    /// By pipeline.
    inboxes: Vec<Inbox>,
    inbox_most: usize,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Looked at with each turn, so without the lock.
    any: AtomicBool,
    answers: Mutex<VecDeque<Answer>>,
}

impl Exchange {
    /// For so many pipelines, with room for so many windows of all of them, and so many answers of each.
    pub fn new(pipelines: usize, waiting_most: usize, inbox_most: usize) -> Self {
        let inboxes = std::iter::repeat_with(Inbox::default).take(pipelines).collect();
        Self { inboxes, waiting_most, inbox_most, ..Self::default() }
    }

    /// Whether windows may be sent now: a broker is there, and answers would arrive.
    pub fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Answers arrive from now on.
    pub fn open(&self) {
        self.open.store(true, Relaxed);
    }

    /// No connection: returns the windows that waited for it, which are not sent.
    pub fn close(&self) -> Vec<Outgoing> {
        self.open.store(false, Relaxed);
        self.lock().drain(..).collect()
    }

    /// Hands a window over.
    ///
    /// # Errors
    /// Why it is not sent.
    pub fn send(&self, window: Outgoing) -> Result<(), NotSent> {
        let mut out = self.lock();
        // Under the lock, so that none is left behind by `close`.
        if !self.is_open() {
            return Err(NotSent::Offline);
        }
        if out.len() >= self.waiting_most {
            return Err(NotSent::Full);
        }
        out.push_back(window);
        drop(out);
        self.wake.notify_one();
        Ok(())
    }

    /// The next window.
    pub fn take(&self) -> Option<Outgoing> {
        self.lock().pop_front()
    }

    /// Waits until there may be one.
    pub async fn ready(&self) {
        let any = !self.lock().is_empty();
        if !any {
            self.wake.notified().await;
        }
    }

    /// Hands an answer over. `false`: there is no room, and it is dropped.
    pub fn answer(&self, pipeline: usize, answer: Answer) -> bool {
        let Some(inbox) = self.inboxes.get(pipeline) else { return false };
        let mut answers = inbox.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let room = answers.len() < self.inbox_most;
        if room {
            answers.push_back(answer);
            inbox.any.store(true, Relaxed);
        }
        room
    }

    /// Takes the answers for a pipeline.
    pub fn take_answers(&self, pipeline: usize) -> VecDeque<Answer> {
        match self.inboxes.get(pipeline) {
            Some(inbox) if inbox.any.load(Relaxed) => {
                let mut answers = inbox.answers.lock().unwrap_or_else(PoisonError::into_inner);
                inbox.any.store(false, Relaxed);
                std::mem::take(&mut *answers)
            }
            _ => VecDeque::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Outgoing>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a window that should be escalated is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum NotSent {
    /// The number an hour, or the bytes a day, are used up.
    Budget,
    /// No connection on which an answer would arrive.
    Offline,
    /// Its deadline passed: it had waited, or the disk was slow.
    Late,
    /// Some of its rows were sent with another window.
    Repeated,
    /// Too many await an answer, or wait for the link.
    Full,
    /// The broker does not take a packet of its size, or its header is too large.
    TooLarge,
    /// The broker refused it.
    Refused,
}

impl NotSent {
    /// All of them, in order.
    pub const ALL: [Self; 7] =
        [Self::Budget, Self::Offline, Self::Late, Self::Repeated, Self::Full, Self::TooLarge, Self::Refused];

    /// The word in status and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Offline => "offline",
            Self::Late => "late",
            Self::Repeated => "repeated",
            Self::Full => "full",
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
        }
    }
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Came {
    /// To a request that awaits it.
    InTime,
    /// To a request whose deadline has passed.
    Late,
    /// To a request that was answered.
    Double,
    /// To no request of this pipeline.
    Foreign,
    /// It is no answer.
    Malformed,
    /// There was no room for it.
    Dropped,
    /// None: the deadline of a request passed without one.
    None,
}

impl Came {
    /// All of them, in order.
    pub const ALL: [Self; 7] =
        [Self::InTime, Self::Late, Self::Double, Self::Foreign, Self::Malformed, Self::Dropped, Self::None];

    /// The word in status and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::InTime => "in_time",
            Self::Late => "late",
            Self::Double => "double",
            Self::Foreign => "foreign",
            Self::Malformed => "malformed",
            Self::Dropped => "dropped",
            Self::None => "none",
        }
    }
}

/// What is counted of one pipeline.
#[derive(Debug, Default)]
pub struct EscalationMeter {
    /// Windows written to a connection.
    pub sent: Count,
    /// Bytes of their packets.
    pub bytes: Count,
    /// Windows that were not sent, by reason.
    pub not_sent: [Count; NotSent::ALL.len()],
    /// Answers, by what they are.
    pub answers: [Count; Came::ALL.len()],
    /// Alarms that an answer raised or cleared.
    pub alarms: Count,
    /// Windows that await an answer now.
    pub pending: AtomicU64,
    /// Windows that count to the last hour now.
    pub hour: AtomicU64,
    /// Bytes that count to the last day now.
    pub day_bytes: AtomicU64,
}

impl EscalationMeter {
    /// One more was not sent.
    pub fn skipped(&self, why: NotSent) {
        self.not_sent[why as usize].add(1);
    }

    /// One more answer.
    pub fn came(&self, what: Came) {
        self.answers[what as usize].add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(n: u64) -> Outgoing {
        Outgoing { pipeline: 0, name: "x".into(), payload: Vec::new(), deadline_ns: n }
    }

    #[test]
    fn words_and_places_of_counters_are_in_order() {
        assert!(NotSent::ALL.iter().enumerate().all(|(i, why)| *why as usize == i));
        assert!(Came::ALL.iter().enumerate().all(|(i, what)| *what as usize == i));
    }

    #[test]
    fn nothing_waits_without_a_connection_and_what_waited_is_given_back_when_it_ends() {
        let exchange = Exchange::new(1, 2, 1);
        assert_eq!(exchange.send(window(1)), Err(NotSent::Offline));
        exchange.open();
        assert_eq!((exchange.send(window(1)), exchange.send(window(2))), (Ok(()), Ok(())));
        assert_eq!(exchange.send(window(3)), Err(NotSent::Full));
        assert_eq!(exchange.take().map(|w| w.deadline_ns), Some(1));
        assert_eq!(exchange.close().iter().map(|w| w.deadline_ns).collect::<Vec<_>>(), [2]);
        assert!(exchange.take().is_none() && !exchange.is_open());
    }

    #[test]
    fn answers_are_bounded_and_taken_once_by_their_pipeline() {
        let exchange = Exchange::new(2, 1, 1);
        let answer = |digest: &str| Answer { digest: digest.into(), payload: Bytes::new(), retained: false };
        assert!(exchange.answer(1, answer("a")));
        assert!(!exchange.answer(1, answer("b")), "no room");
        assert!(!exchange.answer(2, answer("c")), "no such pipeline");
        assert!(exchange.take_answers(0).is_empty());
        assert_eq!((exchange.take_answers(1).len(), exchange.take_answers(1).len()), (1, 0));
    }
}
