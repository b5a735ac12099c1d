//! The edge to the broker: MQTT 5. A session for each connection, resending from our own cursor: what is unacknowledged when a
//! connection ends is in the outbox.
//!
//! ```text
//! run ─▶ open (dial: addresses, proxy, TLS, WebSocket ─▶ CONNECT, CONNACK) ─▶ connection ⇄ session (bytes, packets)
//!  ▲ backoff, the next broker of the list                                        ├ offer: what the broker takes
//!  └───────────────────────────────────────────────────────────────────────────  └ flight, packet, suspect, seen: what was sent
//! ```

mod alias;
mod backoff;
mod beside;
pub mod client;
mod dial;
mod error;
mod escalate;
mod flight;
mod hand;
mod offer;
mod open;
mod outage;
mod pace;
mod packet;
mod reason;
mod seen;
mod send;
mod session;
mod suspect;
mod talk;
mod tally;
mod tls;
mod topic;
mod wire;
mod ws;

use std::{collections::VecDeque, fmt::Write, pin::pin, sync::Arc, time::Duration};

use rumqttc::v5::mqttbytes::v5::{Disconnect, DisconnectReasonCode, Packet};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

pub use beside::Beside;
pub use topic::Topics;

use self::{
    alias::Aliases,
    backoff::Cause,
    flight::Flight,
    hand::{Gone, Handed, Settles},
    offer::Offer,
    outage::Outage,
    pace::Pace,
    packet::Parcels,
    session::Session,
    suspect::Name,
};
use crate::{
    config::{Broker, Mqtt},
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
    /// For other programs.
    pub beside: Beside,
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
    /// Pipelines that escalate: names and places.
    pub escalating: Vec<(String, usize)>,
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
    /// Another client came with our client id, as the broker says, with what it says beside.
    Twin(String),
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
    /// A refusal taught what the broker does not offer: the next connect asks for less.
    taught: bool,
    /// It was reached, and did not answer CONNECT or SUBSCRIBE in time: it gets longer next time.
    slow: bool,
}

impl Failed {
    /// The broker went away, or this side left it for what it said.
    fn broker(why: String) -> Self {
        Self { cause: Cause::Broker, why, closed: false, too_large: false, taught: false, slow: false }
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
    let mut wait = first_wait(edges.wanted.borrow().wait_most.is_some());
    loop {
        let wanted = edges.wanted.borrow_and_update().clone();
        let (wait_most, generation) = (wanted.wait_most.unwrap_or(Duration::MAX), wanted.generation);
        tokio::select! {
            () = beat.during(tokio::time::sleep(wait.min(wait_most))) => {}
            () = until(&mut edges.wanted, |wanted| wanted.generation != generation) => {
                wait = Duration::ZERO;
                continue;
            }
            () = until(&mut stop, |stop| *stop) => return,
        }
        if std::mem::replace(&mut before, generation) != generation {
            // Another broker takes other sizes.
            outage.begin(&wanted.mqtt);
        }
        let Some(broker) = outage.broker(&wanted.mqtt).cloned() else { return };
        setup.news.send_replace(LinkNews { taken: generation, session: outage.session + 1, ..LinkNews::default() });
        (setup.going_to)(&broker.to_string());
        if broker.secure && setup.clock.now().clk == Clk::Unset {
            // Certificates are valid at times. A clock that cannot be right would refuse them all, for ever.
            let why = "waiting for the time: TLS needs a clock that is not before the last known time";
            outage.say(&setup, &broker, why);
            wait = limits::CLOCK_WAIT;
            outage.report(&setup);
            continue;
        }
        outage.session += 1;
        let began = Instant::now();
        let mut link = Link::new(&setup, &wanted, &broker, &mut outage);
        let ended = Box::pin(link.connection(&mut stop, &mut edges, &beat)).await;
        let left =
            Left { connected: link.connected, flying: link.flying(), largest: link.largest(), after: began.elapsed() };
        match after(&setup, &wanted.mqtt, &broker, &mut outage, ended, left) {
            Some(pause) => wait = pause,
            None => return,
        }
        outage.report(&setup);
    }
}

/// Power returns to all devices of a plant at once; so do their first connects, but for this. `hurries`: a change is on trial.
fn first_wait(hurries: bool) -> Duration {
    let just_booted = Clock::boot_ns() < limits::JUST_BOOTED.as_nanos() as u64;
    if just_booted && !hurries { limits::RECONNECT_SPREAD.mul_f64(fastrand::f64()) } else { Duration::ZERO }
}

/// What a connection left.
struct Left {
    connected: bool,
    flying: Vec<(Name, Duration)>,
    largest: Option<usize>,
    after: Duration,
}

/// Takes in how a connection ended. Returns the wait before the next one; `None`: the stop.
fn after(
    setup: &Setup,
    mqtt: &Mqtt,
    broker: &Broker,
    outage: &mut Outage,
    ended: Ended,
    left: Left,
) -> Option<Duration> {
    if left.connected {
        setup.reader.offline();
        escalate::closed(setup);
        outage.since = Instant::now();
        outage.why.clear();
        if left.after > limits::TWIN_WAIT_MAX {
            outage.twins = 0;
        }
    }
    Some(match ended {
        Ended::Stopped => return None,
        Ended::Changed => Duration::ZERO,
        Ended::Twin(why) => {
            let what = format!("another client connected as {} and took the session over{why}", mqtt.client_id);
            outage.twin(setup, broker, &what)
        }
        Ended::Failed(failed) if failed.taught => {
            tracing::info!(broker = %broker, "{}; connecting again without what the broker does not offer", failed.why);
            limits::RECONNECT_MIN.mul_f64(fastrand::f64())
        }
        Ended::Failed(failed) => {
            match left.largest.filter(|_| failed.too_large) {
                Some(size) => outage.known().sizes = outage.known().sizes.refused(size),
                None if left.connected && failed.closed => outage.closed(setup, left.flying, left.after, &failed.why),
                None => {}
            }
            outage.slow = if failed.slow { outage.slow + 1 } else { 0 };
            outage.say(setup, broker, &failed.why);
            let untried = outage.next_broker(left.connected && left.after >= limits::SOON);
            if untried && !left.connected {
                // The wait before this round has spread the devices already.
                return Some(limits::RECONNECT_MIN.mul_f64(fastrand::f64()));
            }
            backoff::wait(failed.cause, outage.since.elapsed(), outage.soon, fastrand::f64())
        }
    })
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
    broker: &'a Broker,
    topics: Topics,
    /// What `up/birth` says: a command that echoes it was made for this connection.
    nonce: Arc<str>,
    outage: &'a mut Outage,
    flight: Flight<Settles>,
    /// Messages of the outbox whose parts are not all settled.
    parcels: Parcels,
    /// Messages that ended two connections: others go first.
    later: VecDeque<Handed>,
    /// More wait because the broker cannot take them than may.
    all_refused: bool,
    /// One of them, which is in flight with no other.
    alone: Option<Name>,
    /// A message of the outbox was acknowledged on this connection.
    acknowledged: bool,
    /// What the broker takes, by its own word.
    offer: Offer,
    aliases: Aliases,
    /// Subscriptions without an answer, and those that were refused, with the last one's reason.
    subscriptions_left: usize,
    subscriptions_refused: (usize, String),
    /// The status says that connections are short-lived.
    short_lived: bool,
    /// What is sent next, one by one.
    hand: VecDeque<Handed>,
    /// The newest message that was sent: its id, topic and bytes.
    newest: Option<(u16, String, usize)>,
    /// Orders that control has no room for yet.
    waiting: VecDeque<Box<Arrived>>,
    /// Orders the broker may forget.
    settled: VecDeque<u16>,
    pace: Pace,
    connected: bool,
    began: Instant,
    /// When the broker was heard last, and when it was pinged, since `began`.
    heard: Duration,
    pinged: Duration,
    keep_alive: Duration,
    /// What was announced, and when that was looked at, since `began`.
    birth: String,
    announced: Duration,
    is_stopping: bool,
    gone: Gone,
}

impl<'a> Link<'a> {
    fn new(setup: &'a Setup, wanted: &'a Wanted, broker: &'a Broker, outage: &'a mut Outage) -> Self {
        Self {
            setup,
            wanted,
            broker,
            topics: setup.topics.below(&wanted.mqtt.topic_prefix),
            nonce: nonce().into(),
            outage,
            flight: Flight::default(),
            parcels: Parcels::default(),
            later: VecDeque::new(),
            all_refused: false,
            alone: None,
            acknowledged: false,
            offer: Offer::default(),
            aliases: Aliases::default(),
            subscriptions_left: 0,
            subscriptions_refused: (0, String::new()),
            short_lived: false,
            hand: VecDeque::new(),
            newest: None,
            waiting: VecDeque::new(),
            settled: VecDeque::new(),
            pace: Pace::new(setup.backlog_kib_s),
            connected: false,
            began: Instant::now(),
            heard: Duration::ZERO,
            pinged: Duration::ZERO,
            keep_alive: Duration::from_secs(wanted.mqtt.keep_alive_s),
            birth: String::new(),
            announced: Duration::ZERO,
            is_stopping: false,
            gone: Gone::default(),
        }
    }

    /// Opens the session; orders are settled meanwhile.
    async fn open(
        &mut self,
        stop: &mut watch::Receiver<bool>,
        edges: &mut Edges,
        beat: &Beat,
    ) -> Result<Session, Ended> {
        let (wanted, broker) = (self.wanted, self.broker);
        let will = (self.topics.state(), wire::encode(self.state("offline"), wanted.mqtt.cbor));
        let patience = backoff::patience(self.outage.slow);
        let mut opening = pin!(open::open(broker, &wanted.mqtt, self.outage.known().learnt, will, patience));
        let opened = loop {
            beat.beat(); // at least every tick, below
            tokio::select! {
                biased;
                opened = &mut opening => break opened,
                Some(ticket) = edges.settled.recv() => self.outage.seen.settled(ticket),
                () = until(stop, |stop| *stop) => return Err(Ended::Stopped),
                () = until(&mut edges.wanted, |now| now.generation != wanted.generation) => return Err(Ended::Changed),
                () = tokio::time::sleep(limits::LINK_TICK) => {}
            }
        };
        match opened {
            Ok(opened) => {
                self.heard = self.began.elapsed();
                self.connected(&opened.ack);
                Ok(opened.session)
            }
            Err((failed, code)) => {
                let taught = code.is_some_and(|code| self.outage.known().learnt.refused(code));
                Err(Ended::Failed(Failed { taught, ..failed }))
            }
        }
    }

    async fn connection(&mut self, stop: &mut watch::Receiver<bool>, edges: &mut Edges, beat: &Beat) -> Ended {
        let (setup, generation) = (self.setup, self.wanted.generation);
        let mut session = match self.open(stop, edges, beat).await {
            Ok(session) => session,
            Err(ended) => return ended,
        };
        let mut drain_until: Option<Instant> = None;
        loop {
            beat.beat(); // at least every tick, below
            if let Some(until) = drain_until
                && (setup.reader.is_drained() || Instant::now() >= until)
            {
                self.leave(&mut session).await;
                return Ended::Stopped;
            }
            self.look();
            if let Err(failed) = self.check().and_then(|()| self.hand_over(&mut session)) {
                return Ended::Failed(failed);
            }
            let room = session.is_idle() && self.hand.is_empty() && self.flight.has_room() && !self.wants_alone();
            let backlog = self.flight.has_room_for_backlog() && self.pace.allows(self.began.elapsed());
            let tick = if drain_until.is_some() || self.pace.is_limited() {
                limits::LINK_TICK / 10
            } else {
                limits::LINK_TICK
            };
            tokio::select! {
                biased;
                event = session.next() => match event {
                    Ok(None) => {}
                    Ok(Some(packet)) => if let Err(ended) = self.packet(packet) {
                        return ended;
                    },
                    Err(closed) => return Ended::Failed(self.closed(&closed)),
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
                // Before the backlog, after what is live: it is worth nothing later.
                () = setup.board.exchange.ready(), if room && self.may_escalate() => self.escalate(),
                () = setup.reader.ready(backlog), if room => if let Some(message) = setup.reader.take(backlog) {
                    self.send(&message);
                },
                () = until(stop, |stop| *stop), if drain_until.is_none() => {
                    setup.reader.hurry();
                    drain_until = Some(Instant::now() + limits::DRAIN_LINK);
                    self.is_stopping = true;
                    self.publish(self.topics.state(), self.state("stopping"));
                }
                () = until(&mut edges.wanted, |wanted| wanted.generation != generation), if drain_until.is_none() => {
                    self.leave(&mut session).await;
                    return Ended::Changed;
                }
                () = tokio::time::sleep(tick) => {}
            }
        }
    }

    /// What is looked at now and then.
    fn look(&mut self) {
        if self.began.elapsed().saturating_sub(self.announced) >= limits::LINK_TICK {
            self.announce();
            self.outage.report(self.setup);
            if self.began.elapsed() >= limits::SOON * 2 {
                self.outage.soon = 0;
                if std::mem::take(&mut self.short_lived) {
                    (self.setup.note)("");
                }
            }
        }
        self.hand_in();
        self.try_alone();
    }

    /// A peer that is gone without a word, or that takes everything and acknowledges nothing.
    fn check(&mut self) -> Result<(), Failed> {
        if self.all_refused {
            self.outage.suspects.all_are_innocent();
            let n = limits::SUSPECTS_HELD;
            return Err(Failed::broker(format!(
                "the broker could not take more than {n} messages: they are sent again"
            )));
        }
        // What it does for subscriptions may keep it from answering pings.
        let subscribes = self.subscriptions_left > 0;
        let patience = if subscribes { backoff::patience(self.outage.slow) } else { Duration::ZERO };
        let (now, most) = (self.began.elapsed(), patience.max(self.keep_alive * 2));
        let failed = |why| Failed { slow: subscribes, ..Failed::broker(why) };
        if now.saturating_sub(self.heard) > most {
            // Others may have lost it too.
            return Err(failed(format!("the broker has not been heard for {} s", most.as_secs())));
        }
        match self.flight.oldest() {
            Some(since) if now.saturating_sub(since) > most.max(limits::ACK_WAIT) => {
                Err(failed("the broker does not acknowledge".into()))
            }
            _ => Ok(()),
        }
    }

    /// Says that we are gone, waits for the broker to know it, and closes.
    async fn leave(&mut self, session: &mut Session) {
        self.publish(self.topics.state(), self.state("offline"));
        let until = Instant::now() + Duration::from_secs(1);
        while self.flight.len() + self.hand.len() > 0 && self.hand_over(session).is_ok() {
            match tokio::time::timeout_at(until, session.next()).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(packet))) => {
                    let _ = self.packet(packet);
                }
                _ => break,
            }
        }
        let end = Disconnect::new(DisconnectReasonCode::NormalDisconnection);
        if session.push(&Packet::Disconnect(end)).is_ok() {
            while let Ok(Ok(Some(_))) = tokio::time::timeout_at(until, session.next()).await {}
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
