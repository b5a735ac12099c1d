//! The edge to the broker: MQTT 5, one client and event loop for each connection, resending from our own cursor. The
//! client library's queue is not the truth: what is unacknowledged when a connection ends is in the outbox.

mod backoff;
mod flight;
mod hand;
mod outage;
mod pace;
mod packet;
mod seen;
mod suspect;
mod talk;
mod tally;
mod topic;
mod wire;

use std::{collections::VecDeque, fmt::Write, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, StateError,
        mqttbytes::{Error as WireError, v5::DisconnectReasonCode},
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

pub use topic::Topics;

use self::{
    backoff::Cause,
    flight::Flight,
    hand::{Gone, Handed, Settles},
    outage::Outage,
    pace::Pace,
    packet::{Parcels, Sizes},
    suspect::Name,
};
use crate::{
    config::Mqtt,
    flow::{
        Clk,
        beat::Beat,
        board::Board,
        event::Kind,
        meter::Meters,
        order::{Arrived, Door, LinkNews, Response, Ticket},
    },
    host::{Clock, clock::rfc3339_ms, nonce},
    limits,
    outbox::Reader,
};

/// What is announced with each connection, all retained.
pub struct Announce {
    /// This boot.
    pub boot: String,
    /// `up/birth`: JSON members after the head.
    pub birth: Box<dyn Fn() -> String + Send + Sync>,
    /// `up/meta/STREAM` by stream: JSON members after the head.
    pub meta: Vec<(String, String)>,
    /// Streams that are not configured any more: the broker may still keep a record of them.
    pub gone: Vec<String>,
}

/// Makes an event of a kind and a text.
pub type Tell = Box<dyn Fn(Kind, &str) + Send + Sync>;

/// Whether a stream's alarm is raised; `None`: it is no alarm's.
pub type Raised = Box<dyn Fn(&str) -> Option<bool> + Send + Sync>;

/// The connection that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The broker.
    pub mqtt: Mqtt,
    /// Counts changes of it.
    pub generation: u64,
    /// While a change is on trial: the longest wait between two connects.
    pub wait_most: Option<Duration>,
}

/// What the link works with.
pub struct Setup {
    /// Where what arrives goes.
    pub orders: Door,
    /// How the connection stands.
    pub news: watch::Sender<LinkNews>,
    /// What is counted.
    pub meters: Arc<Meters>,
    /// Takes what the broker acknowledged.
    pub board: Arc<Board>,
    /// Topics.
    pub topics: Topics,
    /// What is announced.
    pub announce: Announce,
    /// The outbox's end.
    pub reader: Reader,
    /// For the head of what is announced.
    pub clock: Arc<Clock>,
    /// How fast the backlog may go, KiB/s; 0: as it can.
    pub backlog_kib_s: u64,
    /// Makes an event; never waits.
    pub tell: Tell,
    /// Whether this stream's alarm is raised now; `None`: it is no alarm. What was kept in an outage is sent after what is
    /// live: an older record must not undo what the broker keeps of a newer one.
    pub raised: Raised,
    /// Says which broker is wanted now.
    pub going_to: Box<dyn Fn(&str) + Send + Sync>,
    /// Says in words how the connection is, for the status line.
    pub note: Box<dyn Fn(&str) + Send + Sync>,
}

/// What control asks of the link.
pub struct Edges {
    /// The broker.
    pub wanted: watch::Receiver<Wanted>,
    /// Answers for response topics.
    pub responses: mpsc::Receiver<Response>,
    /// Orders that are settled.
    pub settled: mpsc::Receiver<Ticket>,
}

/// Why a connection ended.
enum Ended {
    /// On request; everything that could be sent was.
    Stopped,
    /// It broke, or was not made.
    Failed(Failed),
    /// Another client came with our client id, as the broker says.
    Twin,
    /// Another connection is wanted.
    Changed,
}

/// What broke a connection, or kept it from being made.
struct Failed {
    cause: Cause,
    why: String,
    /// The broker closed it: something it was sent may be why.
    closed: bool,
    /// The broker says that a packet was larger than it takes.
    too_large: bool,
}

impl Failed {
    /// The broker went away, or this side left it for what it said.
    fn broker(why: String) -> Self {
        Self { cause: Cause::Broker, why, closed: false, too_large: false }
    }

    /// The network between, or this device's own.
    fn path(why: String) -> Self {
        Self { cause: Cause::Path, ..Self::broker(why) }
    }
}

/// The stage as a task: connects for ever; ends some time after `stop` becomes true.
pub async fn run(setup: Setup, mut edges: Edges, mut stop: watch::Receiver<bool>, beat: Beat) {
    let mut outage = Outage::default();
    let mut before = u64::MAX;
    loop {
        let wanted = edges.wanted.borrow_and_update().clone();
        let (wait_most, generation) = (wanted.wait_most.unwrap_or(Duration::MAX), wanted.generation);
        if std::mem::replace(&mut before, generation) != generation {
            // Another broker takes other sizes.
            outage.sizes = Sizes::default();
        }
        setup.news.send_replace(LinkNews { taken: generation, ..LinkNews::default() });
        (setup.going_to)(&format!("{}:{}", wanted.mqtt.host, wanted.mqtt.port));
        let wait = if wanted.mqtt.tls.is_some() && setup.clock.now().clk == Clk::Unset {
            // Certificates are valid at times. A clock that cannot be right would refuse them all, for ever.
            let why = "waiting for the time: TLS needs a clock that is not before the last known time";
            outage.say(&setup, &wanted.mqtt, why);
            limits::CLOCK_WAIT
        } else {
            outage.session += 1;
            let began = Instant::now();
            let mut link = Link::new(&setup, &wanted, &mut outage);
            let ended = link.connection(&mut stop, &mut edges, &beat).await;
            let (connected, flying, largest) = (link.connected, link.flying(), link.largest());
            if connected {
                setup.reader.offline();
                outage.since = Instant::now();
                outage.why.clear();
                if began.elapsed() > limits::TWIN_WAIT_MAX {
                    outage.twins = 0;
                }
            }
            match ended {
                Ended::Stopped => return,
                Ended::Changed => Duration::ZERO,
                Ended::Twin => {
                    let id = &wanted.mqtt.client_id;
                    let what = format!("another client connected as {id} and took the session over");
                    outage.twin(&setup, &wanted.mqtt, &what)
                }
                Ended::Failed(failed) => {
                    match largest.filter(|_| failed.too_large) {
                        Some(size) => outage.sizes = outage.sizes.refused(size),
                        None if connected && failed.closed => outage.closed(&setup, flying, began.elapsed()),
                        None => {}
                    }
                    outage.say(&setup, &wanted.mqtt, &failed.why);
                    backoff::wait(failed.cause, outage.since.elapsed(), outage.soon, fastrand::f64())
                }
            }
        };
        outage.report(&setup);
        tokio::select! {
            () = beat.during(tokio::time::sleep(wait.min(wait_most))) => {}
            () = until(&mut edges.wanted, |wanted| wanted.generation != generation) => {}
            () = until(&mut stop, |stop| *stop) => return,
        }
    }
}

/// Waits until the watched value fits, or its sender is dropped.
async fn until<T>(watched: &mut watch::Receiver<T>, so: impl FnMut(&T) -> bool) {
    // What `wait_for` gives is a lock; it must not live on in a select.
    let _ = watched.wait_for(so).await;
}

/// One connection.
struct Link<'a> {
    setup: &'a Setup,
    wanted: &'a Wanted,
    /// What `up/birth` says: a command that echoes it was made for this connection.
    nonce: Arc<str>,
    outage: &'a mut Outage,
    flight: Flight<Settles>,
    /// Messages of the outbox whose parts are not all settled.
    parcels: Parcels,
    /// Messages that ended two connections: others go first.
    later: VecDeque<Handed>,
    /// One of them, which is in flight with no other.
    alone: Option<Name>,
    /// A message of the outbox was acknowledged on this connection.
    acknowledged: bool,
    /// What the broker takes, by its own word.
    sizes: Sizes,
    /// Subscriptions without an answer, and those that were refused.
    subscriptions_left: usize,
    subscriptions_refused: usize,
    /// The status says that connections are short-lived.
    short_lived: bool,
    /// What is handed over next, one by one.
    hand: VecDeque<Handed>,
    /// Orders that control has no room for yet.
    waiting: VecDeque<Box<Arrived>>,
    /// Orders the broker may forget.
    settled: VecDeque<u16>,
    /// Acknowledgements of orders that are in the client's queue, which must keep a place for a message of ours.
    acks: usize,
    pace: Pace,
    connected: bool,
    began: Instant,
    /// When the broker was heard last, since `began`.
    heard: Duration,
    keep_alive: Duration,
    /// What was announced, and when that was looked at, since `began`.
    birth: String,
    announced: Duration,
    gone: Gone,
}

impl<'a> Link<'a> {
    fn new(setup: &'a Setup, wanted: &'a Wanted, outage: &'a mut Outage) -> Self {
        Self {
            setup,
            wanted,
            nonce: nonce().into(),
            outage,
            flight: Flight::default(),
            parcels: Parcels::default(),
            later: VecDeque::new(),
            alone: None,
            acknowledged: false,
            sizes: Sizes::default(),
            subscriptions_left: 0,
            subscriptions_refused: 0,
            short_lived: false,
            hand: VecDeque::new(),
            waiting: VecDeque::new(),
            settled: VecDeque::new(),
            acks: 0,
            pace: Pace::new(setup.backlog_kib_s),
            connected: false,
            began: Instant::now(),
            heard: Duration::ZERO,
            keep_alive: Duration::from_secs(wanted.mqtt.keep_alive_s),
            birth: String::new(),
            announced: Duration::ZERO,
            gone: Gone::default(),
        }
    }

    async fn connection(&mut self, stop: &mut watch::Receiver<bool>, edges: &mut Edges, beat: &Beat) -> Ended {
        let (setup, generation) = (self.setup, self.wanted.generation);
        let will = self.state("offline");
        let options = match wire::options(&self.wanted.mqtt, &setup.topics.state(), will) {
            Ok(options) => options,
            Err(why) => return Ended::Failed(Failed::path(why)),
        };
        let keep_alive = Duration::from_secs(self.wanted.mqtt.keep_alive_s);
        // One message of ours at a time, and acknowledgements of orders.
        let (client, events) = AsyncClient::new(options, limits::ACKS_QUEUED + 2);
        let mut events = pin!(stream(events, keep_alive));
        let mut drain_until: Option<Instant> = None;
        loop {
            beat.beat(); // at least every tick, below
            if let Some(until) = drain_until
                && (setup.reader.is_drained() || Instant::now() >= until)
            {
                self.leave(&client, events).await;
                return Ended::Stopped;
            }
            if self.connected && self.began.elapsed().saturating_sub(self.announced) >= limits::LINK_TICK {
                self.announce();
                self.outage.report(setup);
                if self.began.elapsed() >= limits::SOON * 2 {
                    self.outage.soon = 0;
                    if std::mem::take(&mut self.short_lived) {
                        (setup.note)("");
                    }
                }
            }
            self.hand_in();
            self.try_alone();
            if let Err(failed) = self.check().and_then(|()| self.hand_over(&client)) {
                return Ended::Failed(failed);
            }
            let room = self.connected && self.hand.is_empty() && self.flight.has_room() && !self.wants_alone();
            let backlog = self.flight.has_room_for_backlog() && self.pace.allows(self.began.elapsed());
            let tick = if drain_until.is_some() || self.pace.is_limited() {
                limits::LINK_TICK / 10
            } else {
                limits::LINK_TICK
            };
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Ok(event)) => if let Err(failed) = self.event(event) {
                        return Ended::Failed(failed);
                    },
                    Some(Err(why)) => return ended(&why),
                    None => return Ended::Failed(Failed::broker("the client ended".into())),
                },
                // Before answers: an order is acknowledged first.
                Some(ticket) = edges.settled.recv() => {
                    self.outage.seen.settled(ticket);
                    if ticket.session == self.outage.session {
                        self.settled.push_back(ticket.id);
                    }
                },
                // Few, and a requester waits for them: before the data, which may go on for ever.
                Some(response) = edges.responses.recv(), if room => self.respond(response),
                () = setup.reader.ready(backlog), if room => if let Some(message) = setup.reader.take(backlog) {
                    self.send(&message);
                },
                () = until(stop, |stop| *stop), if drain_until.is_none() => {
                    if !self.connected {
                        return Ended::Stopped;
                    }
                    drain_until = Some(Instant::now() + limits::DRAIN_LINK);
                    self.publish(setup.topics.state(), self.state("stopping"));
                }
                () = until(&mut edges.wanted, |wanted| wanted.generation != generation), if drain_until.is_none() => {
                    if self.connected {
                        self.leave(&client, events).await;
                    }
                    return Ended::Changed;
                }
                () = tokio::time::sleep(tick) => {}
            }
        }
    }

    /// A peer that is gone without a word, or that takes everything and acknowledges nothing. The library's own look at
    /// its pings stands still while it writes into a connection that takes no more.
    fn check(&self) -> Result<(), Failed> {
        let (now, most) = (self.began.elapsed(), self.keep_alive * 2);
        if self.connected && now.saturating_sub(self.heard) > most {
            return Err(Failed::path(format!("the broker has not been heard for {} s", most.as_secs())));
        }
        match self.flight.oldest() {
            Some(since) if now.saturating_sub(since) > most.max(limits::ACK_WAIT) => {
                Err(Failed::broker("the broker does not acknowledge".into()))
            }
            _ => Ok(()),
        }
    }

    /// Says that we are gone, waits for the broker to know it, and closes.
    async fn leave(&mut self, client: &AsyncClient, mut events: impl futures_util::Stream<Item = Polled> + Unpin) {
        self.publish(self.setup.topics.state(), self.state("offline"));
        let until = Instant::now() + Duration::from_secs(1);
        while self.flight.len() + self.hand.len() > 0 && self.hand_over(client).is_ok() {
            match tokio::time::timeout_at(until, events.next()).await {
                Ok(Some(Ok(event))) => {
                    let _ = self.event(event);
                }
                _ => break,
            }
        }
        if client.try_disconnect().is_ok() {
            // The client writes it while it is polled; its end is the end of the connection.
            while let Ok(Some(Ok(event))) = tokio::time::timeout_at(until, events.next()).await {
                if event == Event::Outgoing(Outgoing::Disconnect) {
                    break;
                }
            }
        }
    }

    fn state(&self, word: &str) -> String {
        self.head(&format!("\"state\":\"{word}\",\"session\":{}", self.outage.session))
    }

    /// `{"v":1,"ts":…,"clk":…,"boot":…,` and these members.
    fn head(&self, members: &str) -> String {
        let now = self.setup.clock.now();
        let mut out = String::from("{\"v\":1,\"ts\":");
        match now.wall_ms {
            Some(ms) => {
                let _ = write!(out, "\"{}\"", rfc3339_ms(ms));
            }
            None => out.push_str("null"),
        }
        let _ = write!(out, ",\"clk\":\"{}\",\"boot\":\"{}\",{members}}}", now.clk.word(), self.setup.announce.boot);
        out
    }
}

type Polled = Result<Event, ConnectionError>;

/// The event loop as a stream. A poll is never cancelled half-way: the stream keeps it between two `next`s.
fn stream(events: EventLoop, keep_alive: Duration) -> impl futures_util::Stream<Item = Polled> {
    futures_util::stream::unfold(Some(events), move |events| async move {
        let mut events = events?;
        let polled = events.poll().await;
        // A broker that does not ask for a keep-alive (0): the library would ping at once, again and again.
        if events.options.keep_alive().is_zero() {
            events.options.set_keep_alive(keep_alive);
        }
        // After an error the loop would connect again by itself; a new connection is a new loop.
        let next = polled.is_ok().then_some(events);
        Some((polled, next))
    })
}

/// MQTT 5's reason for a packet that is too large. The client library knows it in a DISCONNECT only.
const PACKET_TOO_LARGE: u8 = 0x95;

fn ended(why: &ConnectionError) -> Ended {
    let failed = |text: String| Failed { closed: true, ..Failed::broker(text) };
    Ended::Failed(match why {
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => match reason_code {
            DisconnectReasonCode::SessionTakenOver => return Ended::Twin,
            DisconnectReasonCode::PacketTooLarge => {
                Failed { too_large: true, ..failed("the broker closed: a packet was too large for it".into()) }
            }
            // It stops, or is busy: none of our messages is why.
            DisconnectReasonCode::ServerShuttingDown | DisconnectReasonCode::ServerBusy => {
                Failed { closed: false, ..failed(format!("the broker closed: {reason_code:?}")) }
            }
            other => failed(format!("the broker closed: {other:?}")),
        },
        ConnectionError::MqttState(StateError::Deserialization(
            WireError::InvalidConnectReturnCode(PACKET_TOO_LARGE) | WireError::InvalidReason(PACKET_TOO_LARGE),
        )) => Failed { too_large: true, ..failed("the broker refuses a packet as too large".into()) },
        ConnectionError::Io(why) if is_path(why) => Failed::path(why.to_string().to_lowercase()),
        ConnectionError::Io(why) => failed(why.to_string().to_lowercase()),
        ConnectionError::ConnectionRefused(code) => failed(format!("the broker refused: {code:?}")),
        ConnectionError::Timeout(_) => Failed::broker("no answer in time".into()),
        other => failed(other.to_string().to_lowercase()),
    })
}

/// This device has no route to the broker, or cannot look up its name.
fn is_path(why: &std::io::Error) -> bool {
    use std::io::ErrorKind as Io;
    let local = [Io::NetworkUnreachable, Io::HostUnreachable, Io::NetworkDown, Io::AddrNotAvailable];
    local.contains(&why.kind()) || (why.raw_os_error().is_none() && why.to_string().contains("failed to lookup"))
}
