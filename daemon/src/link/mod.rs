//! The edge to the broker: MQTT 5, one client and event loop for each connection, resending from our own cursor. The
//! client library's queue is not the truth: what is unacknowledged when a connection ends is in the outbox.

mod backoff;
mod flight;
mod pace;
mod topic;
mod wire;

use std::{collections::VecDeque, fmt::Write, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, Incoming, StateError,
        mqttbytes::{
            QoS,
            v5::{ConnAck, DisconnectReasonCode, PubAckReason},
        },
    },
};
use tokio::{sync::watch, time::Instant};

pub use topic::Topics;

use self::{flight::Flight, pace::Pace};
use crate::{
    config::Mqtt,
    flow::{Clk, Retain, event::Kind},
    host::{Clock, Defence, clock::rfc3339_ms, sys},
    limits,
    outbox::{ParcelId, Reader, ToSend},
};

/// What is announced with each connection, all retained.
#[derive(Debug, Clone)]
pub struct Announce {
    /// This boot.
    pub boot: String,
    /// `up/birth`: JSON members after the head.
    pub birth: String,
    /// `up/meta/STREAM` by stream: JSON members after the head.
    pub meta: Vec<(String, String)>,
}

/// Makes an event of a kind and a text.
pub type Tell = Box<dyn Fn(Kind, &str) + Send + Sync>;

/// What the link works with.
pub struct Setup {
    /// The broker.
    pub mqtt: Mqtt,
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
    /// Says in words how the connection is, for the status line.
    pub note: Box<dyn Fn(&str) + Send + Sync>,
}

/// What an acknowledgement settles.
#[derive(Debug, Clone, Copy)]
enum Settles {
    /// One message of the outbox.
    Parcel(ParcelId),
    /// Nothing: announcements are made anew with each connection.
    Nothing,
}

/// Why a connection ended.
enum Ended {
    /// As told; everything that could be sent was.
    Stopped,
    /// It broke.
    Lost(String),
    /// Another client came with our client id.
    Twin,
}

/// A message on its way to the client library.
struct Handed {
    topic: String,
    payload: Vec<u8>,
    retain: bool,
    settles: Settles,
    backlog: bool,
}

/// The stage as a task: connects for ever; ends some time after `stop` becomes true.
pub async fn run(setup: Setup, mut stop: watch::Receiver<bool>) {
    let mut outage = Outage { session: 0, since: Instant::now(), why: String::new(), twins: 0, thrown_out: 0 };
    loop {
        let wait = if setup.mqtt.tls.is_some() && setup.clock.now().clk == Clk::Unset {
            // Certificates are valid at times. A clock that cannot be right would refuse them all, for ever.
            outage.say(&setup, "waiting for the time: TLS needs a clock that is not before the last known time");
            limits::CLOCK_WAIT
        } else {
            outage.session += 1;
            let began = Instant::now();
            let mut link = Link::new(&setup, &outage);
            let ended = link.connection(&mut stop).await;
            let connected = link.connected;
            if connected {
                setup.reader.offline();
                outage.since = Instant::now();
                outage.why.clear();
                if began.elapsed() > limits::TWIN_WAIT_MAX {
                    outage.twins = 0;
                }
            }
            // Accepted at the first try and soon closed again and again: a twin that fights, where the broker does not
            // say so (mosquitto 2.0.11 does not), or a broker that does not want us.
            let soon = connected && began.elapsed() < limits::THROWN_OUT_WITHIN;
            outage.thrown_out = if soon { outage.thrown_out + 1 } else { 0 };
            let id = &setup.mqtt.client_id;
            match ended {
                Ended::Stopped => return,
                Ended::Twin => {
                    outage.twin(&setup, &format!("another client connected as {id} and took the session over"))
                }
                Ended::Lost(why) if outage.thrown_out >= limits::THROWN_OUT => {
                    let times = outage.thrown_out;
                    let what =
                        format!("{times} connections in a row ended soon ({why}); is another client {id} as well?");
                    outage.twin(&setup, &what)
                }
                Ended::Lost(why) => {
                    outage.say(&setup, &why);
                    backoff::wait(outage.since.elapsed(), fastrand::f64())
                }
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// The time between two connections.
struct Outage {
    session: u64,
    since: Instant,
    /// What was said last of why there is none.
    why: String,
    /// How many times in a row a twin threw us out.
    twins: u32,
    /// Connections in a row that were accepted at the first try and ended soon.
    thrown_out: u32,
}

impl Outage {
    /// Leaves the broker to a twin for some time, and says so. Returns how long.
    fn twin(&mut self, setup: &Setup, what: &str) -> Duration {
        self.twins += 1;
        self.thrown_out = 0;
        let wait = backoff::twin_wait(self.twins, fastrand::f64());
        let why = format!("{what}; leaving it the broker for {} s", wait.as_secs());
        self.say(setup, &why);
        (setup.tell)(Kind::LinkTwin, &why);
        wait
    }

    fn say(&mut self, setup: &Setup, why: &str) {
        if why != self.why {
            let broker = format!("{}:{}", setup.mqtt.host, setup.mqtt.port);
            tracing::warn!(broker, "no connection: {why}; trying again");
            (setup.note)(why);
            why.clone_into(&mut self.why);
        }
    }
}

/// One connection.
struct Link<'a> {
    setup: &'a Setup,
    outage: &'a Outage,
    flight: Flight<Settles>,
    /// What is handed over next, one by one.
    hand: VecDeque<Handed>,
    pace: Pace,
    connected: bool,
    began: Instant,
    /// When the broker was heard last, since `began`.
    heard: Duration,
    keep_alive: Duration,
}

impl<'a> Link<'a> {
    fn new(setup: &'a Setup, outage: &'a Outage) -> Self {
        Self {
            setup,
            outage,
            flight: Flight::default(),
            hand: VecDeque::new(),
            pace: Pace::new(setup.backlog_kib_s),
            connected: false,
            began: Instant::now(),
            heard: Duration::ZERO,
            keep_alive: Duration::from_secs(setup.mqtt.keep_alive_s),
        }
    }

    async fn connection(&mut self, stop: &mut watch::Receiver<bool>) -> Ended {
        let setup = self.setup;
        let will = self.state("offline");
        let options = match wire::options(&setup.mqtt, &setup.topics.state(), will) {
            Ok(options) => options,
            Err(why) => return Ended::Lost(why),
        };
        let (client, events) = AsyncClient::new(options, 2);
        let mut events = pin!(stream(events));
        let mut drain_until: Option<Instant> = None;
        loop {
            if let Some(until) = drain_until
                && (setup.reader.is_drained() || Instant::now() >= until)
            {
                return self.leave(&client, events).await;
            }
            if let Err(why) = self.check().and_then(|()| self.hand_over(&client)) {
                return Ended::Lost(why);
            }
            let room = self.connected && self.hand.is_empty() && self.flight.has_room();
            let backlog = self.flight.has_room_for_backlog() && self.pace.allows(self.began.elapsed());
            let tick = if drain_until.is_some() || self.pace.is_limited() {
                limits::LINK_TICK / 10
            } else {
                limits::LINK_TICK
            };
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Ok(event)) => if let Err(why) = self.event(event) {
                        return Ended::Lost(why);
                    },
                    Some(Err(why)) => return ended(&why),
                    None => return Ended::Lost("the client ended".into()),
                },
                () = setup.reader.ready(backlog), if room => if let Some(message) = setup.reader.take(backlog) {
                    self.send(&message);
                },
                _ = stop.wait_for(|stop| *stop), if drain_until.is_none() => {
                    if !self.connected {
                        return Ended::Stopped;
                    }
                    drain_until = Some(Instant::now() + limits::DRAIN_LINK);
                    self.publish(setup.topics.state(), self.state("stopping"));
                }
                () = tokio::time::sleep(tick) => {}
            }
        }
    }

    /// A peer that is gone without a word, or that takes everything and acknowledges nothing. The library's own look at
    /// its pings stands still while it writes into a connection that takes no more.
    fn check(&self) -> Result<(), String> {
        let (now, most) = (self.began.elapsed(), self.keep_alive * 2);
        if self.connected && now.saturating_sub(self.heard) > most {
            return Err(format!("the broker has not been heard for {} s", most.as_secs()));
        }
        match self.flight.oldest() {
            Some(since) if now.saturating_sub(since) > most.max(limits::ACK_WAIT) => {
                Err("the broker does not acknowledge".into())
            }
            _ => Ok(()),
        }
    }

    fn event(&mut self, event: Event) -> Result<(), String> {
        if matches!(event, Event::Incoming(_)) {
            self.heard = self.began.elapsed();
        }
        match event {
            Event::Incoming(Incoming::ConnAck(ack)) => self.connected(&ack),
            Event::Outgoing(Outgoing::Publish(id)) => self.flight.written(id, self.began.elapsed()),
            Event::Incoming(Incoming::PubAck(ack)) => {
                if let Some(Settles::Parcel(parcel)) = self.flight.answered(ack.pkid) {
                    return self.settle(parcel, ack.reason);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Only a successful answer removes a record. An answer that no repetition can change books it as lost; any other
    /// ends the connection, and everything unacknowledged is sent again after a pause.
    fn settle(&self, parcel: ParcelId, reason: PubAckReason) -> Result<(), String> {
        match reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => self.setup.reader.acked(parcel),
            _ if !Defence::PubackReason.stands() => self.setup.reader.acked(parcel),
            PubAckReason::NotAuthorized | PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
                tracing::error!("the broker refuses a message for good: {reason:?}");
                self.setup.reader.refused(parcel, "refused_by_broker");
            }
            other => return Err(format!("the broker could not take a message: {other:?}")),
        }
        Ok(())
    }

    fn connected(&mut self, ack: &ConnAck) {
        let properties = ack.properties.as_ref();
        let theirs = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX);
        if let Some(seconds) = properties.and_then(|p| p.server_keep_alive).filter(|seconds| *seconds > 0) {
            self.keep_alive = Duration::from_secs(u64::from(seconds));
        }
        let setup = self.setup;
        self.flight.open(limits::IN_FLIGHT.min(theirs));
        sys::limit_unsent(setup.mqtt.port, limits::UNSENT_BYTES);
        self.connected = true;
        let broker = format!("{}:{}", setup.mqtt.host, setup.mqtt.port);
        tracing::info!(broker, session = self.outage.session, "connected");
        (setup.note)("");
        let away = self.outage.since.elapsed();
        if away >= limits::OUTAGE_TOLD && !self.outage.why.is_empty() {
            (setup.tell)(Kind::Outage, &format!("no connection for {:.1} s: {}", away.as_secs_f64(), self.outage.why));
        }
        self.publish(setup.topics.state(), self.state("online"));
        self.publish(setup.topics.birth(), self.head(&setup.announce.birth));
        for (stream, members) in &setup.announce.meta {
            self.publish(setup.topics.meta(stream), self.head(members));
        }
        setup.reader.online();
    }

    fn send(&mut self, message: &ToSend) {
        let topic = self.setup.topics.stream(&message.sealed.stream);
        let payload = wire::encode(message.sealed.envelope(message.hist), self.setup.mqtt.cbor);
        let retain = message.sealed.retain;
        if retain == Retain::Remove {
            let topic = topic.clone();
            let settles = Settles::Nothing;
            self.hand.push_back(Handed { topic, payload: Vec::new(), retain: true, settles, backlog: false });
        }
        if message.backlog {
            self.pace.went(payload.len());
        }
        self.hand.push_back(Handed {
            topic,
            payload,
            retain: retain == Retain::Keep,
            settles: Settles::Parcel(message.id),
            backlog: message.backlog,
        });
    }

    /// Announces something, retained.
    fn publish(&mut self, topic: String, json: String) {
        let payload = wire::encode(json, self.setup.mqtt.cbor);
        self.hand.push_back(Handed { topic, payload, retain: true, settles: Settles::Nothing, backlog: false });
    }

    /// Gives the client library the next message when it is done with the one before.
    fn hand_over(&mut self, client: &AsyncClient) -> Result<(), String> {
        if !self.flight.has_room() {
            return Ok(());
        }
        let Some(next) = self.hand.pop_front() else { return Ok(()) };
        client
            .try_publish(next.topic, QoS::AtLeastOnce, next.retain, next.payload)
            .map_err(|why| format!("hand a message to the client: {why}"))?;
        self.flight.handed(next.settles, next.backlog);
        Ok(())
    }

    /// Says that we are gone, waits for the broker to know it, and closes.
    async fn leave(
        &mut self,
        client: &AsyncClient,
        mut events: impl futures_util::Stream<Item = Polled> + Unpin,
    ) -> Ended {
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
        Ended::Stopped
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
fn stream(events: EventLoop) -> impl futures_util::Stream<Item = Polled> {
    futures_util::stream::unfold(Some(events), |events| async {
        let mut events = events?;
        let polled = events.poll().await;
        // After an error the loop would connect again by itself; a new connection is a new loop.
        let next = polled.is_ok().then_some(events);
        Some((polled, next))
    })
}

fn ended(why: &ConnectionError) -> Ended {
    Ended::Lost(match why {
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => match reason_code {
            DisconnectReasonCode::SessionTakenOver => return Ended::Twin,
            other => format!("the broker closed: {other:?}"),
        },
        ConnectionError::Io(why) => why.to_string().to_lowercase(),
        ConnectionError::ConnectionRefused(code) => format!("the broker refused: {code:?}"),
        other => other.to_string().to_lowercase(),
    })
}
