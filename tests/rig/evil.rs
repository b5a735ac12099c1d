//! A broker of our own that misbehaves on purpose, speaking MQTT 5 through rumqttc's codec. It keeps what it was given,
//! and whether it said so. Faults: forgets sessions, rejects by reason (for a while, or always), takes one message at
//! a time, answers out of order, answers late (CONNECT by as long as is wished), answers nothing (while it still answers pings), closes on messages of a
//! stream, takes few subscriptions at once or grants none of some, asks for a keep-alive of 0, offers
//! neither QoS 1 nor retained messages, takes topic aliases.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnAckProperties, ConnectReturnCode, Packet, PingResp, PubAck, PubAckReason, SubAck, SubscribeReasonCode,
};
use serde_json::Value;

use crate::eventually;

/// How long the broker takes for each batch of answers.
const PAUSE: Duration = Duration::from_millis(2);

/// How publishes are answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Manner {
    /// As they should be.
    Good,
    /// With this reason.
    Refuse(PubAckReason),
    /// With this reason, every nth of them.
    RefuseSome(PubAckReason, u64),
    /// Those of this stream, with this reason.
    RefuseStream(PubAckReason, &'static str),
    /// Each batch that one read brought in, last first.
    Backwards,
    /// Not at all.
    Silent,
    /// Those of this stream close the connection.
    CloseOn(&'static str),
}

#[derive(Debug)]
struct Inner {
    manner: Manner,
    receive_max: Option<u16>,
    /// `(stream, payload, acknowledged with success)`.
    seen: Vec<(String, Value, bool)>,
    connections: Vec<TcpStream>,
    /// When each connection began and ended.
    lives: Vec<(Instant, Option<Instant>)>,
    in_flight_most: usize,
    keep_alive: Option<u16>,
    /// How long it takes for CONNECT.
    connect_takes: Duration,
    /// Neither QoS 1 nor retained messages.
    poor: bool,
    /// Codes of CONNECTs that were refused.
    refused: Vec<ConnectReturnCode>,
    /// More filters in one packet close the connection.
    filters_most: usize,
    /// A filter with this in it is not granted.
    not_granted: Option<&'static str>,
    filters: Vec<String>,
    pings: usize,
    /// So many aliases are taken; those of the connection; messages that came with an alias alone.
    aliases_most: u16,
    aliases: HashMap<u16, String>,
    aliased: usize,
}

/// The broker.
#[derive(Clone)]
pub struct Evil {
    pub port: u16,
    inner: Arc<Mutex<Inner>>,
}

impl Evil {
    /// Started, well-mannered, but for forgetting every session.
    pub fn start() -> Self {
        let listener = crate::listen();
        let port = listener.local_addr().expect("address").port();
        let inner = Inner {
            manner: Manner::Good,
            receive_max: None,
            seen: Vec::new(),
            connections: Vec::new(),
            lives: Vec::new(),
            in_flight_most: 0,
            keep_alive: None,
            connect_takes: Duration::ZERO,
            poor: false,
            refused: Vec::new(),
            filters_most: usize::MAX,
            not_granted: None,
            filters: Vec::new(),
            pings: 0,
            aliases_most: 0,
            aliases: HashMap::new(),
            aliased: 0,
        };
        let evil = Self { port, inner: Arc::new(Mutex::new(inner)) };
        let own = evil.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || own.serve(stream));
            }
        });
        evil
    }

    /// Receive maximum; sent in the next CONNACK.
    pub fn with_receive_max(self, n: u16) -> Self {
        self.lock().receive_max = Some(n);
        self
    }

    /// Topic alias maximum; sent in the next CONNACK.
    pub fn with_aliases(self, n: u16) -> Self {
        self.lock().aliases_most = n;
        self
    }

    /// Messages that came with an alias in place of their topic.
    pub fn aliased(&self) -> usize {
        self.lock().aliased
    }

    /// Server keep-alive; sent in the next CONNACK.
    pub fn with_keep_alive(self, seconds: u16) -> Self {
        self.lock().keep_alive = Some(seconds);
        self
    }

    /// Takes so long for the answer to CONNECT.
    pub fn with_slow_connect(self, takes: Duration) -> Self {
        self.lock().connect_takes = takes;
        self
    }

    /// Takes QoS 0 only and keeps no retained messages: it refuses wills that ask for more, and says so in CONNACK.
    pub fn without_qos1_and_retain(self) -> Self {
        self.lock().poor = true;
        self
    }

    /// Codes of CONNECTs that were refused.
    pub fn refused(&self) -> Vec<ConnectReturnCode> {
        self.lock().refused.clone()
    }

    /// Takes so many filters in one packet, and closes on more.
    pub fn with_filters_most(self, n: usize) -> Self {
        self.lock().filters_most = n;
        self
    }

    /// Does not grant a filter with this in it.
    pub fn with_not_granted(self, part: &'static str) -> Self {
        self.lock().not_granted = Some(part);
        self
    }

    /// Filters that were granted or not, in the order they came.
    pub fn filters(&self) -> Vec<String> {
        self.lock().filters.clone()
    }

    /// Pings so far.
    pub fn pings(&self) -> usize {
        self.lock().pings
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic in the broker")
    }

    /// From now on.
    pub fn behave(&self, manner: Manner) {
        self.lock().manner = manner;
    }

    /// Closes all connections; the sessions are forgotten.
    pub fn cut(&self) {
        for stream in self.lock().connections.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Tells all connections that another client took their session over, and closes them.
    pub fn take_over(&self) {
        for mut stream in self.lock().connections.drain(..) {
            // DISCONNECT, two bytes: reason 0x8E, no properties.
            let _ = stream.write_all(&[0xE0, 0x02, 0x8E, 0x00]);
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.lock().lives.len()
    }

    /// How long the nth connection lasted, once it has ended.
    pub fn lasted(&self, n: usize) -> Option<Duration> {
        let (began, ended) = *self.lock().lives.get(n)?;
        Some(ended? - began)
    }

    /// Publishes that waited for their answer at the same time, at most.
    pub fn in_flight_most(&self) -> usize {
        self.lock().in_flight_most
    }

    /// First sensor sequence of each record of a stream, in the order they came; acknowledged ones only, or all.
    pub fn rows(&self, stream: &str, acknowledged: bool) -> Vec<u64> {
        let inner = self.lock();
        let messages = inner.seen.iter().filter(|(s, _, ok)| s == stream && (*ok || !acknowledged));
        let records = messages.flat_map(|(_, payload, _)| payload["data"].as_array().into_iter().flatten());
        records.map(|record| record["in_seq"][0].as_u64().expect("in_seq")).collect()
    }

    /// Records of a stream that were acknowledged.
    pub fn records(&self, stream: &str) -> Vec<Value> {
        let inner = self.lock();
        let messages = inner.seen.iter().filter(|(s, _, ok)| s == stream && *ok);
        messages.flat_map(|(_, payload, _)| payload["data"].as_array().cloned().into_iter().flatten()).collect()
    }

    /// Waits until these rows, each at least once, were acknowledged.
    #[track_caller]
    pub fn wait_rows(&self, stream: &str, n: u64) {
        eventually(&format!("{n} rows of {stream} are acknowledged"), || {
            let mut rows = self.rows(stream, true);
            rows.sort_unstable();
            rows.dedup();
            (rows == (0..n).collect::<Vec<_>>()).then_some(())
        });
    }

    fn serve(&self, mut stream: TcpStream) {
        let life = {
            let mut inner = self.lock();
            inner.connections.push(stream.try_clone().expect("clone"));
            inner.lives.push((Instant::now(), None));
            inner.lives.len() - 1
        };
        let (mut input, mut chunk) = (BytesMut::new(), vec![0; 64 * 1024]);
        while let Ok(n) = stream.read(&mut chunk) {
            if n == 0 {
                break;
            }
            input.extend_from_slice(&chunk[..n]);
            // Nothing is answered for a moment: whatever the client sends meanwhile, it sends on top.
            std::thread::sleep(PAUSE);
            stream.set_nonblocking(true).expect("non-blocking");
            while let Ok(more) = stream.read(&mut chunk) {
                if more == 0 {
                    break;
                }
                input.extend_from_slice(&chunk[..more]);
            }
            stream.set_nonblocking(false).expect("blocking");
            let packets: Vec<_> = std::iter::from_fn(|| Packet::read(&mut input, Some(1 << 20)).ok()).collect();
            let bye = packets.iter().any(|packet| matches!(packet, Packet::Disconnect(_)));
            let publishes = packets.iter().filter(|packet| matches!(packet, Packet::Publish(_))).count();
            // Counted before the first of them is answered: who waits for the answers may then look at the count.
            let backwards = {
                let mut inner = self.lock();
                inner.in_flight_most = inner.in_flight_most.max(publishes);
                inner.manner == Manner::Backwards
            };
            if packets.iter().any(|packet| matches!(packet, Packet::Connect(..))) {
                let takes = self.lock().connect_takes;
                std::thread::sleep(takes);
            }
            let closes = packets.iter().position(|packet| self.closes_on(packet));
            let read = closes.unwrap_or(packets.len());
            let mut answers: Vec<_> = packets.into_iter().take(read).filter_map(|packet| self.answer(packet)).collect();
            if backwards {
                answers.reverse();
            }
            let mut output = BytesMut::new();
            for answer in answers {
                answer.write(&mut output, None).expect("write");
            }
            if bye || stream.write_all(&output).is_err() || closes.is_some() {
                break;
            }
        }
        self.lock().lives[life].1 = Some(Instant::now());
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn closes_on(&self, packet: &Packet) -> bool {
        let inner = self.lock();
        match (packet, inner.manner) {
            (Packet::Subscribe(subscribe), _) => subscribe.filters.len() > inner.filters_most,
            (Packet::Publish(publish), Manner::CloseOn(stream)) => {
                String::from_utf8_lossy(&publish.topic).ends_with(&format!("/up/{stream}"))
            }
            _ => false,
        }
    }

    fn answer(&self, packet: Packet) -> Option<Packet> {
        let mut inner = self.lock();
        match packet {
            Packet::Connect(_, will, _) => {
                let mut properties = empty();
                inner.aliases.clear();
                properties.topic_alias_max = Some(inner.aliases_most).filter(|n| *n > 0);
                if inner.poor {
                    (properties.max_qos, properties.retain_available) = (Some(0), Some(0));
                    let code = match will {
                        Some(will) if will.retain => Some(ConnectReturnCode::RetainNotSupported),
                        Some(will) if will.qos != QoS::AtMostOnce => Some(ConnectReturnCode::QoSNotSupported),
                        _ => None,
                    };
                    if let Some(code) = code {
                        inner.refused.push(code);
                        return Some(Packet::ConnAck(ConnAck { session_present: false, code, properties: None }));
                    }
                }
                properties.receive_max = inner.receive_max;
                properties.server_keep_alive = inner.keep_alive;
                let code = ConnectReturnCode::Success;
                Some(Packet::ConnAck(ConnAck { session_present: false, code, properties: Some(properties) }))
            }
            Packet::Subscribe(subscribe) => {
                let no = inner.not_granted;
                let grant = |path: &str| match no.is_some_and(|part| path.contains(part)) {
                    true => SubscribeReasonCode::NotAuthorized,
                    false => SubscribeReasonCode::Success(QoS::AtLeastOnce),
                };
                let granted = subscribe.filters.iter().map(|filter| grant(&filter.path)).collect();
                inner.filters.extend(subscribe.filters.into_iter().map(|filter| filter.path));
                Some(Packet::SubAck(SubAck { pkid: subscribe.pkid, return_codes: granted, properties: None }))
            }
            Packet::PingReq(_) => {
                inner.pings += 1;
                Some(Packet::PingResp(PingResp))
            }
            Packet::Publish(publish) => {
                let mut topic = String::from_utf8(publish.topic.to_vec()).expect("topic");
                if let Some(alias) = publish.properties.as_ref().and_then(|p| p.topic_alias) {
                    assert!((1..=inner.aliases_most).contains(&alias), "CONNACK named this limit");
                    if topic.is_empty() {
                        inner.aliased += 1;
                        topic = inner.aliases[&alias].clone();
                    } else {
                        inner.aliases.insert(alias, topic.clone());
                    }
                }
                assert!(!topic.is_empty(), "a topic, or an alias");
                let stream = topic.split("/up/").nth(1).unwrap_or(&topic).to_owned();
                let is_data = stream.starts_with("m/");
                let reason = match inner.manner {
                    Manner::Silent => None,
                    Manner::Refuse(reason) if is_data => Some(reason),
                    Manner::RefuseStream(reason, of) if stream == of => Some(reason),
                    Manner::RefuseSome(reason, nth) if is_data && (inner.seen.len() as u64).is_multiple_of(nth) => {
                        Some(reason)
                    }
                    _ => Some(PubAckReason::Success),
                };
                let payload = serde_json::from_slice(&publish.payload).unwrap_or(Value::Null);
                inner.seen.push((stream, payload, reason == Some(PubAckReason::Success)));
                assert!(!inner.poor || (publish.qos == QoS::AtMostOnce && !publish.retain), "CONNACK named this limit");
                reason
                    .filter(|_| publish.pkid > 0)
                    .map(|reason| Packet::PubAck(PubAck { pkid: publish.pkid, reason, properties: None }))
            }
            _ => None,
        }
    }
}

fn empty() -> ConnAckProperties {
    ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}
