//! The fleet's state fed by the broker: one lock, held for a message at a time, and the moment of the last one. A broker that sends
//! nothing it keeps, as RabbitMQ for filters with wildcards, says nothing of the fleet: there the devices are asked.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kentledge::{config::Mqtt, error::Fatal, host::Clock};
use serde_json::json;
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
    /// A retained message came on this connection.
    keeps: bool,
    /// When the devices that were asked on this connection have answered; `None`: none was asked.
    answered: Option<Instant>,
}

/// Whether devices may be asked who they are, where the broker says nothing of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// With each connection.
    Devices,
    /// What is done needs no picture of the fleet.
    Nobody,
}

impl Shared {
    fn new(prefix: &str) -> Self {
        let inner = Inner {
            fleet: Fleet::new(prefix),
            lost: None,
            last: Instant::now(),
            answer: None,
            keeps: false,
            answered: None,
        };
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
                (inner.keeps, inner.answered) = (false, None);
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
                    (inner.keeps, inner.last) = (true, Instant::now());
                }
            }
        }
    }

    /// Whether the broker has sent what it keeps: it answered the subscriptions, and was silent for longer than it took to answer.
    pub fn is_settled(&self) -> bool {
        let inner = self.lock();
        inner.answer.is_some_and(|took| inner.last.elapsed() > limits::SETTLED.max(took * 3))
    }

    /// Whether all that can be known is known: that, or what the devices answered.
    pub fn is_whole(&self) -> bool {
        let inner = self.lock();
        let answered = inner.answered.is_some_and(|at| at <= Instant::now());
        let keeps = inner.keeps;
        drop(inner);
        answered || (keeps && self.is_settled())
    }

    /// Whether the devices must be asked.
    fn must_ask(&self) -> bool {
        let is_settled = self.is_settled();
        let inner = self.lock();
        is_settled && !inner.keeps && inner.answered.is_none() && inner.lost.is_none()
    }

    /// Waits for what the broker keeps; `false`: it takes too long, and what is known is only a part.
    pub async fn settled(&self) -> bool {
        self.within(Self::is_settled).await
    }

    /// Waits for the whole picture, likewise.
    pub async fn whole(&self) -> bool {
        self.within(Self::is_whole).await
    }

    async fn within(&self, is: impl Fn(&Self) -> bool) -> bool {
        let most = Instant::now() + limits::SETTLE_MOST;
        while Instant::now() < most {
            sleep(limits::SETTLED / 4).await;
            if is(self) {
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
    with_also(whom, whom.mqtt()?, Asks::Devices, act, |_| {}).await
}

/// Asks the devices who they are, once with each connection on which the broker says nothing of them. Never ends.
async fn ask(shared: Shared, line: Line, site: String, prefix: String) {
    loop {
        sleep(limits::SETTLED / 2).await;
        if !shared.must_ask() {
            continue;
        }
        let nothing = "the broker keeps nothing of devices, or sends nothing that it keeps";
        if site == "+" {
            shared.lock().answered = Some(Instant::now());
            tracing::warn!("{nothing}; give --site SITE, and the devices of that site are asked");
            continue;
        }
        shared.lock().answered = Some(Instant::now() + limits::ANSWERS);
        tracing::warn!("{nothing}: the devices of {site} are asked, which takes {} s", limits::ANSWERS_S);
        let payload = json!({"id": format!("report-{}", now_ms()), "args": {}});
        let topic = format!("{prefix}kl/{site}/_all/dn/cmd/report/{}", payload["id"].as_str().unwrap_or("report"));
        if let Err(why) = line.ask(&topic, payload.to_string().into_bytes(), limits::ANSWERS_S).await {
            tracing::warn!("ask the devices of {site}: {why}; known are those that say something by themselves");
        }
    }
}

/// The same with a function that sees every message as well.
///
/// # Errors
/// As `with`.
pub async fn with_also<T, F: Future<Output = Result<T, Fatal>>>(
    whom: &Whom,
    mqtt: Mqtt,
    asks: Asks,
    act: impl FnOnce(Shared, Line) -> F,
    mut also: impl FnMut(&Heard<'_>),
) -> Result<T, Fatal> {
    let filters = Fleet::filters(&mqtt.topic_prefix, &whom.site());
    let shared = Shared::new(&mqtt.topic_prefix);
    let prefix = mqtt.topic_prefix.clone();
    let (line, work) = broker::line(mqtt, filters);
    let (connected, mut first) = tokio::sync::watch::channel(false);
    let clock = Clock::default();
    let theirs = shared.clone();
    let work = work.run(move |heard| {
        also(&heard);
        theirs.heard(&heard, clock.now().wall_ms.unwrap_or(0));
        connected.send_if_modified(|was| !std::mem::replace(was, true));
    });
    let asking = ask(shared.clone(), line.clone(), whom.site(), prefix);
    let act = async {
        let _ = first.wait_for(|connected| *connected).await;
        act(shared, line).await
    };
    tokio::select! {
        done = act => done,
        () = asking, if asks == Asks::Devices => Err(Fatal::failed("asking devices ended")),
        failed = work => match failed {
            Err(why) => Err(why),
            Ok(()) => Err(Fatal::failed("the connection ended")),
        },
    }
}
