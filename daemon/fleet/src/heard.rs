//! The fleet's state fed by the broker: one lock, held for a message at a time, and the moment of the last one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kentledge::{config::Mqtt, error::Fatal, host::Clock};
use tokio::time::{Instant, sleep};

use crate::{
    broker::{self, Heard, Line, Whom},
    limits,
    state::Fleet,
};

/// State that is fed as long as the program runs.
#[derive(Clone)]
pub struct Shared {
    inner: Arc<Mutex<Inner>>,
}

/// What the lock protects.
pub struct Inner {
    /// The devices.
    pub fleet: Fleet,
    /// Why there is no connection; `None`: there is one.
    pub lost: Option<String>,
    /// When the last retained message came, or the connection.
    last: Instant,
    /// How long the broker took to answer the subscriptions of this connection; `None`: it has not.
    answer: Option<Duration>,
}

impl Shared {
    fn new(prefix: &str) -> Self {
        let inner = Inner { fleet: Fleet::new(prefix), lost: None, last: Instant::now(), answer: None };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The state. Never hold it over an await.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in between leaves a device incomplete until its next message.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self, heard: &Heard<'_>, now_ms: i64) {
        let mut inner = self.lock();
        match heard {
            Heard::Connected => {
                (inner.lost, inner.answer, inner.last) = (None, None, Instant::now());
                inner.fleet.reconnected();
            }
            Heard::Subscribed => {
                inner.answer = inner.answer.or(Some(inner.last.elapsed()));
                inner.last = Instant::now();
            }
            Heard::Lost(why) => inner.lost = Some(why.clone()),
            Heard::Message { topic, payload, retain } => {
                inner.fleet.on(topic, payload, *retain, now_ms);
                if *retain {
                    inner.last = Instant::now();
                }
            }
        }
    }

    /// Whether the broker has sent what it keeps: it answered the subscriptions, and was silent for longer than it took to answer.
    pub fn is_settled(&self) -> bool {
        let inner = self.lock();
        inner.answer.is_some_and(|took| inner.last.elapsed() > limits::SETTLED.max(took * 3))
    }

    /// Waits for that; `false`: it takes too long, and what is known is only a part.
    pub async fn settled(&self) -> bool {
        let most = Instant::now() + limits::SETTLE_MOST;
        while Instant::now() < most {
            sleep(limits::SETTLED / 4).await;
            if self.is_settled() {
                return true;
            }
        }
        tracing::warn!("the broker has not sent all that it keeps within {} s", limits::SETTLE_MOST.as_secs());
        false
    }
}

/// Milliseconds since 1970 by this machine's clock.
pub fn now_ms() -> i64 {
    let now = Clock::default().now();
    now.wall_ms.unwrap_or(0)
}

/// Connects, and does `act` with the state and the connection; ends with it, or when the first connection fails.
///
/// # Errors
/// Those of the settings, of the first connection, and of `act`.
pub async fn with<T, F: Future<Output = Result<T, Fatal>>>(
    whom: &Whom,
    act: impl FnOnce(Shared, Line) -> F,
) -> Result<T, Fatal> {
    with_also(whom, whom.mqtt()?, act, |_| {}).await
}

/// The same with a function that sees every message as well.
///
/// # Errors
/// As `with`.
pub async fn with_also<T, F: Future<Output = Result<T, Fatal>>>(
    whom: &Whom,
    mqtt: Mqtt,
    act: impl FnOnce(Shared, Line) -> F,
    mut also: impl FnMut(&Heard<'_>),
) -> Result<T, Fatal> {
    let filters = Fleet::filters(&mqtt.topic_prefix, &whom.site());
    let shared = Shared::new(&mqtt.topic_prefix);
    let (line, work) = broker::line(mqtt, filters);
    let (connected, mut first) = tokio::sync::watch::channel(false);
    let clock = Clock::default();
    let theirs = shared.clone();
    let work = work.run(move |heard| {
        also(&heard);
        theirs.heard(&heard, clock.now().wall_ms.unwrap_or(0));
        connected.send_if_modified(|was| !std::mem::replace(was, true));
    });
    let act = async {
        let _ = first.wait_for(|connected| *connected).await;
        act(shared, line).await
    };
    tokio::select! {
        done = act => done,
        failed = work => match failed {
            Err(why) => Err(why),
            Ok(()) => Err(Fatal::failed("the connection ended")),
        },
    }
}
