//! The edge to the broker: MQTT 5, one client and event loop for each connection, resending from our own cursor. The
//! client library's queue is not the truth: what is unacknowledged when a connection ends is in the outbox.

mod backoff;
mod flight;
mod topic;
mod wire;

use std::{fmt::Write, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, Incoming,
        mqttbytes::{
            QoS,
            v5::{ConnAck, PubAckReason},
        },
    },
};
use tokio::{sync::watch, time::Instant};

pub use topic::Topics;

use self::flight::Flight;
use crate::{
    config::Mqtt,
    flow::Retain,
    host::{Clock, clock::rfc3339_ms},
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
}

/// The stage as a task: connects for ever; ends some time after `stop` becomes true.
pub async fn run(setup: Setup, mut stop: watch::Receiver<bool>) {
    let mut session = 0u64;
    let mut lost = Instant::now();
    let mut said = String::new();
    loop {
        session += 1;
        let mut link = Link { setup: &setup, session, flight: Flight::default(), window: 0, connected: false };
        let ended = link.connection(&mut stop).await;
        if link.connected {
            setup.reader.offline();
            lost = Instant::now();
            said.clear();
        }
        match ended {
            Ended::Stopped => return,
            Ended::Lost(why) => {
                let broker = format!("{}:{}", setup.mqtt.host, setup.mqtt.port);
                if why != said {
                    tracing::warn!(broker, "no connection: {why}; trying again");
                    said = why;
                }
            }
        }
        let wait = backoff::wait(lost.elapsed(), fastrand::f64());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// One connection.
struct Link<'a> {
    setup: &'a Setup,
    session: u64,
    flight: Flight<Settles>,
    /// Messages that may be in flight; 0 before CONNACK.
    window: usize,
    connected: bool,
}

impl Link<'_> {
    async fn connection(&mut self, stop: &mut watch::Receiver<bool>) -> Ended {
        let setup = self.setup;
        let will = self.state("offline");
        let options = match wire::options(&setup.mqtt, &setup.topics.state(), will) {
            Ok(options) => options,
            Err(why) => return Ended::Lost(why),
        };
        // Room for every message of the window: handing over never waits.
        let (client, events) =
            AsyncClient::new(options, usize::from(limits::IN_FLIGHT) + setup.announce.meta.len() + 8);
        let mut events = pin!(stream(events));
        let mut drain_until: Option<Instant> = None;
        loop {
            if let Some(until) = drain_until
                && (self.setup.reader.is_drained() || Instant::now() >= until)
            {
                return self.leave(&client, events).await;
            }
            let may_send = self.window > self.flight.len();
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Ok(event)) => if let Err(why) = self.event(event, &client) {
                        return Ended::Lost(why);
                    },
                    Some(Err(why)) => return Ended::Lost(reason(&why)),
                    None => return Ended::Lost("the client ended".into()),
                },
                () = setup.reader.ready(), if may_send => {
                    while self.window > self.flight.len() {
                        let Some(message) = setup.reader.take() else { break };
                        if let Err(why) = self.send(&client, &message) {
                            return Ended::Lost(why);
                        }
                    }
                }
                _ = stop.wait_for(|stop| *stop), if drain_until.is_none() => {
                    if !self.connected {
                        return Ended::Stopped;
                    }
                    drain_until = Some(Instant::now() + limits::DRAIN_LINK);
                    if let Err(why) = self.publish(&client, setup.topics.state(), self.state("stopping"), true) {
                        return Ended::Lost(why);
                    }
                }
                () = tokio::time::sleep(Duration::from_millis(20)), if drain_until.is_some() => {}
            }
        }
    }

    fn event(&mut self, event: Event, client: &AsyncClient) -> Result<(), String> {
        match event {
            Event::Incoming(Incoming::ConnAck(ack)) => self.connected(&ack, client),
            Event::Outgoing(Outgoing::Publish(id)) => {
                self.flight.written(id);
                Ok(())
            }
            Event::Incoming(Incoming::PubAck(ack)) => {
                let Some(Settles::Parcel(parcel)) = self.flight.answered(ack.pkid) else {
                    return Ok(());
                };
                self.settle(parcel, ack.reason)
            }
            Event::Incoming(Incoming::Disconnect(bye)) => Err(format!("the broker closed: {:?}", bye.reason_code)),
            _ => Ok(()),
        }
    }

    /// Only a successful answer removes a record. An answer that no repetition can change books it as lost; any other
    /// ends the connection, and everything unacknowledged is sent again after a pause.
    fn settle(&self, parcel: ParcelId, reason: PubAckReason) -> Result<(), String> {
        match reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => self.setup.reader.acked(parcel),
            PubAckReason::NotAuthorized | PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
                tracing::error!("the broker refuses a message for good: {reason:?}");
                self.setup.reader.refused(parcel, "refused_by_broker");
            }
            other => return Err(format!("the broker could not take a message: {other:?}")),
        }
        Ok(())
    }

    fn connected(&mut self, ack: &ConnAck, client: &AsyncClient) -> Result<(), String> {
        let theirs = ack.properties.as_ref().and_then(|p| p.receive_max).unwrap_or(u16::MAX);
        self.window = usize::from(limits::IN_FLIGHT.min(theirs));
        self.connected = true;
        let setup = self.setup;
        tracing::info!(
            broker = format!("{}:{}", setup.mqtt.host, setup.mqtt.port),
            session = self.session,
            "connected"
        );
        self.publish(client, setup.topics.state(), self.state("online"), true)?;
        self.publish(client, setup.topics.birth(), self.head(&setup.announce.birth), true)?;
        for (stream, members) in &setup.announce.meta {
            self.publish(client, setup.topics.meta(stream), self.head(members), true)?;
        }
        setup.reader.online();
        Ok(())
    }

    fn send(&mut self, client: &AsyncClient, message: &ToSend) -> Result<(), String> {
        let topic = self.setup.topics.stream(&message.sealed.stream);
        let payload = wire::encode(message.sealed.envelope(message.hist), self.setup.mqtt.cbor);
        let retain = message.sealed.retain;
        if retain == Retain::Remove {
            self.put(client, topic.clone(), Vec::new(), true, Settles::Nothing)?;
        }
        self.put(client, topic, payload, retain == Retain::Keep, Settles::Parcel(message.id))
    }

    fn publish(&mut self, client: &AsyncClient, topic: String, json: String, retain: bool) -> Result<(), String> {
        let payload = wire::encode(json, self.setup.mqtt.cbor);
        self.put(client, topic, payload, retain, Settles::Nothing)
    }

    fn put(
        &mut self,
        client: &AsyncClient,
        topic: String,
        payload: Vec<u8>,
        retain: bool,
        settles: Settles,
    ) -> Result<(), String> {
        client
            .try_publish(topic, QoS::AtLeastOnce, retain, payload)
            .map_err(|why| format!("hand a message to the client: {why}"))?;
        self.flight.handed(settles);
        Ok(())
    }

    /// Says that we are gone, waits for the broker to know it, and closes.
    async fn leave(
        &mut self,
        client: &AsyncClient,
        mut events: impl futures_util::Stream<Item = Polled> + Unpin,
    ) -> Ended {
        let said = self.publish(client, self.setup.topics.state(), self.state("offline"), true);
        let until = Instant::now() + Duration::from_secs(1);
        while said.is_ok() && self.flight.len() > 0 {
            match tokio::time::timeout_at(until, events.next()).await {
                Ok(Some(Ok(event))) => {
                    let _ = self.event(event, client);
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
        self.head(&format!("\"state\":\"{word}\",\"session\":{}", self.session))
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

fn reason(why: &ConnectionError) -> String {
    match why {
        ConnectionError::Io(why) => why.to_string().to_lowercase(),
        ConnectionError::ConnectionRefused(code) => format!("the broker refused: {code:?}"),
        other => other.to_string().to_lowercase(),
    }
}
