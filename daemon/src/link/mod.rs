//! The edge to the broker: MQTT 5, one client and event loop for each connection, resending from our own cursor. The
//! client library's queue is not the truth: what is unacknowledged when a connection ends is in the outbox.

mod backoff;
mod flight;
mod hand;
mod outage;
mod pace;
mod topic;
mod wire;

use std::{
    collections::VecDeque,
    fmt::Write,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, Incoming, StateError,
        mqttbytes::{
            QoS,
            v5::{
                ConnAck, DisconnectReasonCode, PubAckReason, Publish, PublishProperties, SubAck, SubscribeReasonCode,
            },
        },
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

pub use topic::Topics;

use self::{
    flight::Flight,
    hand::{Handed, Settles},
    outage::Outage,
    pace::Pace,
};
use crate::{
    config::Mqtt,
    flow::{
        Class, Clk, Retain,
        beat::Beat,
        event::Kind,
        meter::Meters,
        order::{Arrived, Door, LinkNews, Respond, Response, Ticket},
    },
    host::{Clock, Defence, clock::rfc3339_ms, nonce, sys},
    limits,
    outbox::{ParcelId, Reader, ToSend},
};

/// What is announced with each connection, all retained.
pub struct Announce {
    /// This boot.
    pub boot: String,
    /// `up/birth`: JSON members after the head.
    pub birth: Box<dyn Fn() -> String + Send + Sync>,
    /// `up/meta/STREAM` by stream: JSON members after the head.
    pub meta: Vec<(String, String)>,
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
    /// As told; everything that could be sent was.
    Stopped,
    /// It broke.
    Lost(String),
    /// Another client came with our client id.
    Twin,
    /// Another connection is wanted.
    Changed,
}

/// The stage as a task: connects for ever; ends some time after `stop` becomes true.
pub async fn run(setup: Setup, mut edges: Edges, mut stop: watch::Receiver<bool>, beat: Beat) {
    let mut outage = Outage::default();
    loop {
        let wanted = edges.wanted.borrow_and_update().clone();
        let (wait_most, generation) = (wanted.wait_most.unwrap_or(Duration::MAX), wanted.generation);
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
            let mut link = Link::new(&setup, &wanted, &outage);
            let ended = link.connection(&mut stop, &mut edges, &beat).await;
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
            let id = &wanted.mqtt.client_id;
            match ended {
                Ended::Stopped => return,
                Ended::Changed => Duration::ZERO,
                Ended::Twin => {
                    let what = format!("another client connected as {id} and took the session over");
                    outage.twin(&setup, &wanted.mqtt, &what)
                }
                Ended::Lost(why) if outage.thrown_out >= limits::THROWN_OUT => {
                    let times = outage.thrown_out;
                    let what =
                        format!("{times} connections in a row ended soon ({why}); is another client {id} as well?");
                    outage.twin(&setup, &wanted.mqtt, &what)
                }
                Ended::Lost(why) => {
                    outage.say(&setup, &wanted.mqtt, &why);
                    backoff::wait(outage.since.elapsed(), fastrand::f64())
                }
            }
        };
        tokio::select! {
            () = beat.during(tokio::time::sleep(wait.min(wait_most))) => {}
            () = until(&mut edges.wanted, |wanted| wanted.generation != generation) => {}
            () = until(&mut stop, |stop| *stop) => return,
        }
    }
}

/// Waits until what is watched is so, or nobody can change it any more.
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
    outage: &'a Outage,
    flight: Flight<Settles>,
    /// What is handed over next, one by one.
    hand: VecDeque<Handed>,
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
}

impl<'a> Link<'a> {
    fn new(setup: &'a Setup, wanted: &'a Wanted, outage: &'a Outage) -> Self {
        Self {
            setup,
            wanted,
            nonce: nonce().into(),
            outage,
            flight: Flight::default(),
            hand: VecDeque::new(),
            settled: VecDeque::new(),
            acks: 0,
            pace: Pace::new(setup.backlog_kib_s),
            connected: false,
            began: Instant::now(),
            heard: Duration::ZERO,
            keep_alive: Duration::from_secs(wanted.mqtt.keep_alive_s),
            birth: String::new(),
            announced: Duration::ZERO,
        }
    }

    async fn connection(&mut self, stop: &mut watch::Receiver<bool>, edges: &mut Edges, beat: &Beat) -> Ended {
        let (setup, generation) = (self.setup, self.wanted.generation);
        let will = self.state("offline");
        let options = match wire::options(&self.wanted.mqtt, &setup.topics.state(), will) {
            Ok(options) => options,
            Err(why) => return Ended::Lost(why),
        };
        // One message of ours at a time, and acknowledgements of orders.
        let (client, events) = AsyncClient::new(options, limits::ACKS_QUEUED + 2);
        let mut events = pin!(stream(events));
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
                // Few, and somebody waits for them: before the data, which may go on for ever.
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
                Some(ticket) = edges.settled.recv() => if ticket.session == self.outage.session {
                    self.settled.push_back(ticket.id);
                },
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
            Event::Outgoing(Outgoing::PubAck(_)) => self.acks = self.acks.saturating_sub(1),
            Event::Outgoing(Outgoing::Subscribe(id)) => self.flight.written(id, self.began.elapsed()),
            Event::Incoming(Incoming::SubAck(ack)) => {
                self.flight.answered(ack.pkid);
                self.subscribed(&ack);
            }
            Event::Incoming(Incoming::Publish(publish)) => self.arrived(publish),
            Event::Incoming(Incoming::PubAck(ack)) => {
                let answered = self.flight.answered(ack.pkid);
                if let Some((Settles::Parcel(parcel, result), since)) = answered {
                    self.setup.meters.acknowledge.took_time(self.began.elapsed().saturating_sub(since));
                    self.setup.meters.acked_ns.store(Clock::boot_ns(), Ordering::Relaxed);
                    return self.settle(parcel, result, ack.reason);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Only a successful answer removes a record. An answer that no repetition can change books it as lost; any other
    /// ends the connection, and everything unacknowledged is sent again after a pause.
    fn settle(&self, parcel: ParcelId, result: Option<u64>, reason: PubAckReason) -> Result<(), String> {
        match reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                self.setup.reader.acked(parcel);
                if let Some(seq) = result {
                    self.setup.meters.result_acked.fetch_max(seq, Ordering::Relaxed);
                    self.setup.news.send_modify(|news| news.acked = news.acked.max(seq));
                }
            }
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
        let mqtt = &self.wanted.mqtt;
        sys::limit_unsent(mqtt.port, limits::UNSENT_BYTES);
        self.connected = true;
        self.setup.meters.connections.add(1);
        let broker = format!("{}:{}", mqtt.host, mqtt.port);
        tracing::info!(broker, session = self.outage.session, "connected");
        (setup.note)("");
        let away = self.outage.since.elapsed();
        if away >= limits::OUTAGE_TOLD && !self.outage.why.is_empty() {
            (setup.tell)(Kind::Outage, &format!("no connection for {:.1} s: {}", away.as_secs_f64(), self.outage.why));
        }
        let subscriptions =
            Handed { settles: Settles::Subscriptions, ..Handed::nothing(String::new(), Vec::new(), false) };
        self.hand.push_back(subscriptions);
        self.publish(setup.topics.state(), self.state("online"));
        self.announce();
        for (stream, members) in &setup.announce.meta {
            self.publish(setup.topics.meta(stream), self.head(members));
        }
        setup.reader.online();
    }

    /// Who this is and what serves, retained; said again when that changed.
    fn announce(&mut self) {
        self.announced = self.began.elapsed();
        let birth = (self.setup.announce.birth)();
        if birth != self.birth {
            let members = format!("{birth},\"nonce\":\"{}\"", self.nonce);
            self.publish(self.setup.topics.birth(), self.head(&members));
            self.birth = birth;
        }
    }

    /// What the broker said to our subscriptions. One that was refused leaves the device without commands: it is told,
    /// and data goes on.
    fn subscribed(&self, ack: &SubAck) {
        let refused = ack.return_codes.iter().filter(|code| !matches!(code, SubscribeReasonCode::Success(_))).count();
        if refused == 0 {
            self.setup.news.send_if_modified(|news| !std::mem::replace(&mut news.subscribed, true));
        } else {
            let text = format!("the broker refuses {refused} of {} subscriptions", ack.return_codes.len());
            tracing::error!("{text}");
            (self.setup.note)(&text);
        }
    }

    /// Hands an order to control, which says when it is settled; only then the broker may forget it.
    fn arrived(&mut self, publish: Publish) {
        let topic = String::from_utf8_lossy(&publish.topic);
        let Some((to, asked)) = self.setup.topics.read(&topic) else {
            tracing::debug!(%topic, "a message that is not for this device");
            return self.settled.push_back(publish.pkid);
        };
        let properties = publish.properties.as_ref();
        let respond = properties
            .and_then(|p| Some(Respond { topic: p.response_topic.clone()?, correlation: p.correlation_data.clone() }));
        let (payload, retained, nonce) = (publish.payload.clone(), publish.retain, self.nonce.clone());
        let ticket = Ticket { session: self.outage.session, id: publish.pkid };
        if !self.setup.orders.hand_in(Arrived { to, asked, payload, retained, respond, nonce, ticket }) {
            self.setup.meters.commands_dropped.add(1);
            self.settled.push_back(publish.pkid);
        }
    }

    fn respond(&mut self, response: Response) {
        let Respond { topic, correlation } = response.respond;
        let payload = wire::encode(response.payload, self.wanted.mqtt.cbor);
        self.hand.push_back(Handed { correlation, ..Handed::nothing(topic, payload, false) });
    }

    fn send(&mut self, message: &ToSend) {
        let result = message.sealed.class == Class::Reply;
        let (topics, stream) = (&self.setup.topics, &message.sealed.stream);
        let topic = match message.sealed.items.first().filter(|_| result) {
            Some(item) => topics.result(stream, &item.body),
            None => topics.stream(stream),
        };
        let payload = wire::encode(message.sealed.envelope(message.hist), self.wanted.mqtt.cbor);
        let retain = self.retain(message);
        if retain == Retain::Remove {
            self.hand.push_back(Handed::nothing(topic.clone(), Vec::new(), true));
        }
        if message.backlog {
            self.pace.went(payload.len());
        }
        self.hand.push_back(Handed {
            topic,
            payload,
            retain: retain == Retain::Keep,
            settles: Settles::Parcel(message.id, result.then(|| message.sealed.seqs().1)),
            backlog: message.backlog,
            correlation: None,
        });
    }

    fn retain(&self, message: &ToSend) -> Retain {
        let wanted = message.sealed.retain;
        if !message.backlog || wanted == Retain::No {
            return wanted;
        }
        let still = match (self.setup.raised)(&message.sealed.stream) {
            Some(true) => wanted == Retain::Keep,
            Some(false) => wanted == Retain::Remove,
            None => false,
        };
        if still { wanted } else { Retain::No }
    }

    /// Announces something, retained.
    fn publish(&mut self, topic: String, json: String) {
        let payload = wire::encode(json, self.wanted.mqtt.cbor);
        self.hand.push_back(Handed::nothing(topic, payload, true));
    }

    /// Gives the client library the next message when it is done with the one before.
    fn hand_over(&mut self, client: &AsyncClient) -> Result<(), String> {
        while self.acks < limits::ACKS_QUEUED
            && let Some(id) = self.settled.pop_front()
        {
            // What came with QoS 0 has no id, and nobody waits for its acknowledgement.
            if id > 0 {
                let publish = Publish { qos: QoS::AtLeastOnce, pkid: id, ..Publish::default() };
                client.try_ack(&publish).map_err(|why| format!("hand an acknowledgement to the client: {why}"))?;
                self.acks += 1;
            }
        }
        if !self.flight.has_room() {
            return Ok(());
        }
        let Some(next) = self.hand.pop_front() else { return Ok(()) };
        let Handed { topic, payload, retain, .. } = next;
        let handed = match (next.settles, next.correlation) {
            (Settles::Subscriptions, _) => client.try_subscribe_many(wire::filters(&self.setup.topics)),
            (_, None) => client.try_publish(topic, QoS::AtLeastOnce, retain, payload),
            (_, correlation_data) => {
                let properties = PublishProperties { correlation_data, ..PublishProperties::default() };
                client.try_publish_with_properties(topic, QoS::AtLeastOnce, retain, payload, properties)
            }
        };
        handed.map_err(|why| format!("hand a message to the client: {why}"))?;
        self.flight.handed(next.settles, next.backlog);
        Ok(())
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
