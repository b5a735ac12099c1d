//! The connection to the broker: subscriptions that come back with each connection, messages handed to one function, publishes that
//! are sent until they are acknowledged. It owns the session; nothing of it is on disk.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    time::Duration,
};

use kentledge::{
    config::{Broker as Address, Config, Mqtt, Tls},
    error::{Context, Fatal},
    link::client::{Closed, Session, connect},
};
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{
        ConnAck, Filter, Packet, PubAck, PubAckReason, Publish, PublishProperties, SubAck, Subscribe,
        SubscribeReasonCode, Unsubscribe,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use crate::limits;

/// Which broker.
#[derive(Debug, clap::Args)]
pub struct Whom {
    /// A configuration file with `device.site` and the table [mqtt], as a device has it; without it
    /// ~/.config/kentledge/fleet.toml, then /etc/kentledge-fleet.toml
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// The broker's address, where no file is needed: mqtt://127.0.0.1:1883, mqtts://broker.example
    #[arg(long, global = true, conflicts_with = "config")]
    broker: Option<String>,
    /// Only the devices of this site, instead of the file's; + means all sites
    #[arg(long, global = true)]
    site: Option<String>,
}

impl Whom {
    /// The settings of the connection.
    ///
    /// # Errors
    /// The file or the address is invalid, or there is neither.
    pub fn mqtt(&self) -> Result<Mqtt, Fatal> {
        let mut mqtt = match (&self.broker, self.file()) {
            (Some(url), _) => plain(url)?,
            (None, Some(file)) => {
                let config = Config::only(&file).map_err(|problems| Fatal::problems(&problems))?;
                config.mqtt.ok_or_else(|| Fatal::failed(format!("{} has no table [mqtt]", file.display())))?
            }
            (None, None) => {
                return Err(Fatal::failed(
                    "no broker: give --broker URL, or write device.site and [mqtt] into ~/.config/kentledge/fleet.toml",
                ));
            }
        };
        // Two with one id would end each other's connections.
        if mqtt.client_id.is_empty() {
            mqtt.client_id = format!("kl-fleet-{:08x}", fastrand::u32(..));
        }
        Ok(mqtt)
    }

    /// The site for filters, that of the file unless given; `+` means all.
    pub fn site(&self) -> String {
        let of_file = || match (&self.broker, self.file()) {
            (None, Some(file)) => Config::only(&file).ok().map(|config| config.device.site),
            _ => None,
        };
        self.site.clone().or_else(of_file).filter(|site| !site.is_empty()).unwrap_or_else(|| "+".into())
    }

    fn file(&self) -> Option<PathBuf> {
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".config/kentledge/fleet.toml"));
        let usual = home.into_iter().chain([PathBuf::from("/etc/kentledge-fleet.toml")]);
        self.config.clone().or_else(|| usual.into_iter().find(|path| path.is_file()))
    }
}

/// An address without a file: the system's certificates, no password.
fn plain(url: &str) -> Result<Mqtt, Fatal> {
    let broker = Address::parse(url).context("--broker")?;
    let tls = Tls { ca_file: None, client: None, server_name: None, alpn: Vec::new() };
    Ok(Mqtt {
        tls: broker.secure.then_some(tls),
        brokers: vec![broker],
        proxy: None,
        username: None,
        password_file: None,
        keep_alive_s: 15,
        cbor: false,
        client_id: String::new(),
        topic_prefix: String::new(),
    })
}

/// What happens on the connection.
#[derive(Debug)]
pub enum Heard<'a> {
    /// A connection stands.
    Connected,
    /// The broker has answered all subscriptions; retained messages follow.
    Subscribed,
    /// A message.
    Message {
        /// Topic.
        topic: &'a str,
        /// Payload.
        payload: &'a [u8],
        /// The broker kept it.
        retain: bool,
    },
    /// The connection ended; it is tried again.
    Lost(String),
}

struct Parcel {
    topic: String,
    payload: Vec<u8>,
    retain: bool,
    expires_s: Option<u32>,
    done: oneshot::Sender<Result<(), String>>,
}

enum Order {
    Subscribe(String),
    Unsubscribe(String),
    Publish(Parcel),
}

/// The end that asks for something; cheap to clone.
#[derive(Clone)]
pub struct Line(mpsc::Sender<Order>);

impl Line {
    /// Publishes with QoS 1 and waits for the broker's acknowledgement, over reconnects.
    ///
    /// # Errors
    /// The broker refused it; in words.
    pub async fn publish(&self, topic: &str, payload: Vec<u8>, retain: bool) -> Result<(), String> {
        self.send(topic, payload, retain, None).await
    }

    /// The same for what is worth nothing after `expires_s`: a broker does not keep it for a device that is away for longer.
    ///
    /// # Errors
    /// The broker refused it; in words.
    pub async fn ask(&self, topic: &str, payload: Vec<u8>, expires_s: u32) -> Result<(), String> {
        self.send(topic, payload, false, Some(expires_s)).await
    }

    async fn send(&self, topic: &str, payload: Vec<u8>, retain: bool, expires_s: Option<u32>) -> Result<(), String> {
        let (done, acked) = oneshot::channel();
        let parcel = Parcel { topic: topic.into(), payload, retain, expires_s, done };
        self.0.send(Order::Publish(parcel)).await.map_err(|_| "the connection was closed".to_owned())?;
        acked.await.map_err(|_| "the connection was closed".to_owned())?
    }

    /// Subscribes, now and with each connection.
    pub async fn subscribe(&self, filter: &str) {
        let _ = self.0.send(Order::Subscribe(filter.into())).await;
    }

    /// Ends a subscription.
    pub async fn unsubscribe(&self, filter: &str) {
        let _ = self.0.send(Order::Unsubscribe(filter.into())).await;
    }
}

/// The end that works.
pub struct Work {
    mqtt: Mqtt,
    filters: Vec<String>,
    orders: mpsc::Receiver<Order>,
    waiting: VecDeque<Parcel>,
    flying: HashMap<u16, Parcel>,
    asked: HashMap<u16, Vec<String>>,
    last_id: u16,
    at_once: usize,
    /// The broker takes messages to keep.
    keeps: bool,
    /// Nothing is published before: the broker could not take these messages, so many times in a row.
    pause: Option<Instant>,
    untaken: Vec<Parcel>,
    refusals: u32,
}

/// Both ends; `filters` are subscribed with each connection.
pub fn line(mqtt: Mqtt, filters: Vec<String>) -> (Line, Work) {
    let (send, orders) = mpsc::channel(limits::PENDING);
    let work = Work {
        mqtt,
        filters,
        orders,
        waiting: VecDeque::new(),
        flying: HashMap::new(),
        asked: HashMap::new(),
        last_id: 0,
        at_once: 1,
        keeps: true,
        pause: None,
        untaken: Vec::new(),
        refusals: 0,
    };
    (Line(send), work)
}

impl Work {
    /// Connects and works for ever. The first connection must succeed; later ones are tried again.
    ///
    /// # Errors
    /// No broker of the list takes the first connection; in words.
    pub async fn run(mut self, mut on: impl FnMut(Heard<'_>)) -> Result<(), Fatal> {
        let mut opened = self.open().await.map_err(Fatal::failed)?;
        loop {
            on(Heard::Connected);
            let why = self.connected(opened.0, &opened.1, &mut on).await;
            tracing::warn!("{why}; connecting again");
            on(Heard::Lost(why));
            let mut wait = limits::RECONNECT.0;
            opened = loop {
                sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                match self.open().await {
                    Ok(opened) => break opened,
                    Err(why) => on(Heard::Lost(why)),
                }
                wait = (wait * 2).min(limits::RECONNECT.1);
            };
        }
    }

    async fn open(&self) -> Result<(Session, ConnAck), String> {
        let mut whys = Vec::new();
        for broker in &self.mqtt.brokers {
            match connect(broker, &self.mqtt, limits::PACKET_BYTES, limits::AT_ONCE).await {
                Ok(opened) => return Ok(opened),
                Err(why) => whys.push(format!("connect to {broker}: {why}")),
            }
        }
        Err(whys.join("; "))
    }

    /// Works on one connection until it ends; returns why.
    async fn connected(&mut self, mut session: Session, ack: &ConnAck, on: &mut impl FnMut(Heard<'_>)) -> String {
        let said = ack.properties.as_ref();
        self.at_once = usize::from(said.and_then(|p| p.receive_max).unwrap_or(100)).clamp(1, 100);
        self.keeps = said.and_then(|p| p.retain_available).is_none_or(|n| n != 0);
        self.asked.clear();
        // What was not acknowledged goes again, before what waits.
        let mut flown: Vec<(u16, Parcel)> = self.flying.drain().collect();
        flown.sort_unstable_by_key(|(id, _)| *id);
        flown.into_iter().rev().for_each(|(_, parcel)| self.waiting.push_front(parcel));
        self.unpause();
        let keep_alive = said.and_then(|p| p.server_keep_alive).map_or(self.mqtt.keep_alive_s, u64::from).max(2);
        let (every, silent) = (Duration::from_secs(keep_alive) / 2, Duration::from_secs(keep_alive) * 3 / 2);
        let (mut heard, mut ping) = (Instant::now(), Instant::now() + every);
        if let Err(why) = self.subscribe(&mut session, &self.filters.clone()) {
            return why;
        }
        loop {
            if let Err(why) = self.send(&mut session) {
                return why;
            }
            tokio::select! {
                packet = session.next() => match packet {
                    Ok(Some(packet)) => {
                        heard = Instant::now();
                        if let Err(why) = self.packet(&mut session, packet, on) {
                            return why;
                        }
                    }
                    Ok(None) => {}
                    Err(closed) => return closed_by(&closed),
                },
                // There may be no sender any more: the connection goes on.
                Some(order) = self.orders.recv(), if !self.orders.is_closed() || !self.orders.is_empty() => {
                    if let Err(why) = self.order(&mut session, order) {
                        return why;
                    }
                },
                () = tokio::time::sleep_until(self.pause.unwrap_or(ping)), if self.pause.is_some() => self.unpause(),
                () = tokio::time::sleep_until(ping) => {
                    if heard.elapsed() > silent {
                        return "the broker is silent".into();
                    }
                    ping = Instant::now() + every;
                    if let Err(why) = session.push(&Packet::PingReq(rumqttc::v5::mqttbytes::v5::PingReq)) {
                        return why.into();
                    }
                }
            }
        }
    }

    fn packet(&mut self, session: &mut Session, packet: Packet, on: &mut impl FnMut(Heard<'_>)) -> Result<(), String> {
        match packet {
            Packet::Publish(publish) => {
                let topic = String::from_utf8_lossy(&publish.topic);
                on(Heard::Message { topic: &topic, payload: &publish.payload, retain: publish.retain });
                if publish.qos == QoS::AtLeastOnce {
                    session.push(&Packet::PubAck(PubAck::new(publish.pkid, None)))?;
                }
            }
            Packet::PubAck(ack) => self.acked(ack),
            Packet::SubAck(ack) => {
                self.subscribed(&ack);
                if self.asked.is_empty() {
                    on(Heard::Subscribed);
                }
            }
            Packet::Disconnect(end) => return Err(format!("the broker closed: {:?}", end.reason_code)),
            _ => {}
        }
        Ok(())
    }

    /// What the broker refuses permanently goes back to who asked. What it cannot take now, as RabbitMQ says while a queue of a device has
    /// no majority, is sent again for as long as it is waited for.
    fn acked(&mut self, ack: PubAck) {
        let Some(parcel) = self.flying.remove(&ack.pkid) else { return };
        let text = ack.properties.and_then(|p| p.reason_string).map_or(String::new(), |text| format!(" ({text})"));
        let result = match ack.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                self.refusals = 0;
                Ok(())
            }
            reason if passes(reason) => {
                if self.pause.is_none() {
                    let wait = limits::RETRY.0.saturating_mul(1 << self.refusals.min(8)).min(limits::RETRY.1);
                    let (topic, wait_s) = (&parcel.topic, wait.as_secs_f64());
                    tracing::warn!("{topic}: the broker cannot take it now: {reason:?}{text}; again in {wait_s} s");
                    self.pause = Some(Instant::now() + wait);
                    self.refusals += 1;
                }
                self.untaken.push(parcel);
                return;
            }
            reason => Err(format!("the broker refused it: {reason:?}{text}")),
        };
        // Who asked may have gone.
        let _ = parcel.done.send(result);
    }

    /// What the broker could not take goes first, in its order.
    fn unpause(&mut self) {
        self.pause = None;
        self.untaken.drain(..).rev().for_each(|parcel| self.waiting.push_front(parcel));
    }

    fn subscribed(&mut self, ack: &SubAck) {
        let asked = self.asked.remove(&ack.pkid).unwrap_or_default();
        for (filter, code) in asked.iter().zip(&ack.return_codes) {
            if !matches!(code, SubscribeReasonCode::Success(_)) {
                tracing::error!("the broker refuses the subscription {filter}: {code:?}; nothing of it is shown");
            }
        }
    }

    fn order(&mut self, session: &mut Session, order: Order) -> Result<(), String> {
        match order {
            Order::Publish(parcel) => self.waiting.push_back(parcel),
            Order::Subscribe(filter) => {
                self.filters.push(filter.clone());
                self.subscribe(session, &[filter])?;
            }
            Order::Unsubscribe(filter) => {
                self.filters.retain(|known| *known != filter);
                let pkid = self.id();
                let packet = Unsubscribe { pkid, filters: vec![filter], properties: None };
                session.push(&Packet::Unsubscribe(packet))?;
            }
        }
        Ok(())
    }

    fn subscribe(&mut self, session: &mut Session, filters: &[String]) -> Result<(), String> {
        // AWS IoT Core takes eight in a packet.
        for some in filters.chunks(8) {
            let filters = some.iter().map(|path| Filter::new(path, QoS::AtLeastOnce));
            let mut packet = Subscribe::new_many(filters, None);
            packet.pkid = self.id();
            self.asked.insert(packet.pkid, some.to_vec());
            session.push(&Packet::Subscribe(packet))?;
        }
        Ok(())
    }

    fn send(&mut self, session: &mut Session) -> Result<(), String> {
        while self.pause.is_none()
            && self.flying.len() < self.at_once
            && let Some(parcel) = self.waiting.pop_front()
        {
            if parcel.done.is_closed() {
                continue;
            }
            let id = self.id();
            let expiry = |s| PublishProperties { message_expiry_interval: Some(s), ..PublishProperties::default() };
            let properties = parcel.expires_s.map(expiry);
            let mut publish = Publish::new(&parcel.topic, QoS::AtLeastOnce, parcel.payload.clone(), properties);
            (publish.pkid, publish.retain) = (id, parcel.retain && self.keeps);
            session.push(&Packet::Publish(publish))?;
            self.flying.insert(id, parcel);
        }
        Ok(())
    }

    /// A packet id that nothing in flight has.
    fn id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.flying.contains_key(&self.last_id) && !self.asked.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// Whether what the broker says of a message may pass with time.
fn passes(reason: PubAckReason) -> bool {
    matches!(
        reason,
        PubAckReason::UnspecifiedError | PubAckReason::ImplementationSpecificError | PubAckReason::QuotaExceeded
    )
}

fn closed_by(closed: &Closed) -> String {
    match closed {
        Closed::End => "the broker closed the connection".into(),
        Closed::Io(why) => format!("the connection broke: {why}"),
        Closed::WebSocket(why) => why.clone(),
        Closed::Mqtt3(_) => "the broker answers as MQTT 3 does".into(),
        Closed::Malformed(why, _) => format!("what the broker sends is no MQTT 5: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages `t1`, `t2`, … in flight, of which the first so many are answered with this.
    fn flown(reason: PubAckReason, messages: u16) -> (Work, Vec<oneshot::Receiver<Result<(), String>>>) {
        let (_, mut work) = line(plain("mqtt://127.0.0.1:1").expect("an address"), Vec::new());
        let heard = (1..=messages).map(|id| {
            let (done, heard) = oneshot::channel();
            let parcel = Parcel { topic: format!("t{id}"), payload: vec![1], retain: false, expires_s: None, done };
            work.flying.insert(id, parcel);
            heard
        });
        let heard = heard.collect();
        (1..=messages).for_each(|id| answer(&mut work, id, reason));
        (work, heard)
    }

    fn answer(work: &mut Work, id: u16, reason: PubAckReason) {
        let mut ack = PubAck::new(id, None);
        ack.reason = reason;
        work.acked(ack);
    }

    #[test]
    fn messages_that_the_broker_cannot_take_now_are_sent_again_in_their_order_after_a_pause() {
        for reason in [PubAckReason::ImplementationSpecificError, PubAckReason::QuotaExceeded] {
            let (mut work, mut heard) = flown(reason, 3);
            assert!(heard.iter_mut().all(|heard| heard.try_recv().is_err()) && work.pause.is_some(), "{reason:?}");
            assert_eq!((work.waiting.len(), work.flying.len(), work.refusals), (0, 0, 1), "{reason:?}");
            work.unpause();
            let topics: Vec<&str> = work.waiting.iter().map(|parcel| parcel.topic.as_str()).collect();
            assert!(topics == ["t1", "t2", "t3"] && work.pause.is_none(), "{reason:?}: {topics:?}");
        }
    }

    #[test]
    fn broker_that_cannot_take_a_message_is_asked_less_and_less_often() {
        let (mut work, _heard) = flown(PubAckReason::QuotaExceeded, 1);
        let mut pauses = Vec::new();
        for id in 2..8 {
            pauses.push((work.pause.expect("a pause") - Instant::now()).as_secs_f64().mul_add(2.0, 0.1) as u64);
            work.unpause();
            let parcel = work.waiting.pop_front().expect("it waits");
            work.flying.insert(id, parcel);
            answer(&mut work, id, PubAckReason::QuotaExceeded);
        }
        // Half seconds.
        assert_eq!(pauses, [1, 2, 4, 8, 8, 8]);
        let parcel = work.untaken.pop().expect("it waits");
        work.flying.insert(9, parcel);
        answer(&mut work, 9, PubAckReason::Success);
        assert_eq!(work.refusals, 0);
    }

    #[test]
    fn message_that_the_broker_takes_or_refuses_is_over() {
        for (reason, taken) in [(PubAckReason::Success, true), (PubAckReason::NotAuthorized, false)] {
            let (work, mut heard) = flown(reason, 1);
            assert_eq!(heard[0].try_recv().map(|result| result.is_ok()), Ok(taken), "{reason:?}");
            assert!(work.waiting.is_empty() && work.pause.is_none(), "{reason:?}");
        }
    }
}
