//! How a session is opened: the connection, CONNECT, and the broker's answer.

use std::time::Duration;

use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{ConnAck, Connect, ConnectProperties, ConnectReturnCode, LastWill, Packet},
};
use tokio::time::timeout;

use super::{
    Failed,
    dial::{Papers, dial},
    offer::Learnt,
    reason::{self, Stage},
    session::{Closed, Session},
    tls,
};
use crate::{
    config::{Broker, Mqtt},
    limits,
};

/// The will: topic and payload.
pub type Will = (String, Vec<u8>);

/// An accepted session.
pub struct Opened {
    /// Its packets.
    pub session: Session,
    /// What the broker said.
    pub ack: ConnAck,
}

/// Opens a session; waits `patience` for the answer to CONNECT. With the reason code of a refusal, where it is one.
pub(super) async fn open(
    broker: &Broker,
    mqtt: &Mqtt,
    learnt: Learnt,
    will: Will,
    patience: Duration,
) -> Result<Opened, (Failed, Option<u8>)> {
    // Files of this device: no other device has lost its connection with them.
    let papers = Papers::read(mqtt, broker).await.map_err(|why| (Failed::path(why), None))?;
    let late = || Failed::broker("no answer in time".into());
    let carried = match timeout(limits::CONNECT, Box::pin(dial(broker, mqtt, &papers))).await {
        Ok(carried) => carried.map_err(|failed| (failed, None))?,
        Err(_) => return Err((late(), None)),
    };
    let opened = async {
        let mut session = Session::new(carried);
        let connect = Packet::Connect(connect(mqtt), Some(last_will(will, learnt)), papers.login.clone());
        session.push(&connect).map_err(|why| (Failed::broker(format!("write CONNECT: {why}")), None))?;
        let ack = answer(&mut session, mqtt, broker).await?;
        Ok(Opened { session, ack })
    };
    match timeout(patience, Box::pin(opened)).await {
        Ok(opened) => opened,
        Err(_) => Err((Failed { slow: true, ..late() }, None)),
    }
}

fn connect(mqtt: &Mqtt) -> Connect {
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(limits::SESSION_EXPIRY_S);
    properties.max_packet_size = Some(limits::PACKET_BYTES);
    // Orders are acknowledged when they are settled: this is what paces chunks of a model.
    properties.receive_maximum = Some(limits::RECEIVE_MAXIMUM);
    Connect {
        keep_alive: u16::try_from(mqtt.keep_alive_s).unwrap_or(u16::MAX),
        client_id: mqtt.client_id.clone(),
        clean_start: false,
        properties: Some(properties),
    }
}

fn last_will((topic, payload): Will, learnt: Learnt) -> LastWill {
    let qos = if learnt.no_qos1 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    LastWill::new(topic, payload, qos, !learnt.no_retain, None)
}

/// The broker's answer to CONNECT.
pub(super) async fn answer(
    session: &mut Session,
    mqtt: &Mqtt,
    broker: &Broker,
) -> Result<ConnAck, (Failed, Option<u8>)> {
    loop {
        match session.next().await {
            Ok(None) => {}
            Ok(Some(Packet::ConnAck(ack))) if ack.code == ConnectReturnCode::Success => return Ok(ack),
            Ok(Some(Packet::ConnAck(ack))) => {
                let code = code(ack.code);
                let said = ack.properties.as_ref();
                let text = said.and_then(|p| p.reason_string.as_deref());
                let server = said.and_then(|p| p.server_reference.as_deref());
                return Err(refused(code, &reason::words(code, text, server, mqtt)));
            }
            Ok(Some(Packet::Disconnect(end))) => {
                let code = end.reason_code as u8;
                let text = end.properties.as_ref().and_then(|p| p.reason_string.as_deref());
                return Err(refused(code, &reason::words(code, text, None, mqtt)));
            }
            Ok(Some(_)) => {
                return Err((Failed::broker("the broker does not answer CONNECT as MQTT 5 does".into()), None));
            }
            Err(Closed::Mqtt3(code)) => {
                // Its codes are few and small; the first says that it does not know the version.
                let words = reason::words(if code == 1 { 0x84 } else { code }, None, None, mqtt);
                return Err((Failed::broker(format!("the broker refused and answers as MQTT 3 does: {words}")), None));
            }
            Err(Closed::Malformed(_, Some(code))) => {
                return Err(refused(code, &reason::words(code, None, None, mqtt)));
            }
            Err(closed) => return Err((ended(&closed, Stage::Connect, None, mqtt, "", broker), None)),
        }
    }
}

fn refused(code: u8, words: &str) -> (Failed, Option<u8>) {
    (Failed { closed: true, ..Failed::broker(format!("the broker refused: {words}")) }, Some(code))
}

/// Why a session ended that the broker did not end with a DISCONNECT.
pub(super) fn ended(
    closed: &Closed,
    stage: Stage,
    last: Option<(&str, usize)>,
    mqtt: &Mqtt,
    root: &str,
    broker: &Broker,
) -> Failed {
    let name = mqtt.tls.as_ref().and_then(|tls| tls.server_name.as_ref()).unwrap_or(&broker.host);
    let why = match closed {
        Closed::WebSocket(why) => format!("{}; {why}", reason::silent(stage, last, mqtt, root)),
        Closed::Mqtt3(_) => {
            let why = "what the broker sends is no MQTT 5: it answers as MQTT 3 does";
            return Failed { closed: true, ..Failed::broker(why.into()) };
        }
        Closed::Malformed(why, code) => {
            let failed = Failed::broker(format!("what the broker sends is no MQTT 5: {why}"));
            return Failed { closed: true, too_large: *code == Some(0x95), ..failed };
        }
        Closed::Io(why) => match tls::words(why, name) {
            Some(words) => words,
            None if silent(why) => reason::silent(stage, last, mqtt, root),
            // The network between, as the kernel found out.
            None => return Failed { closed: true, ..Failed::broker(why.to_string().to_lowercase()) },
        },
        Closed::End => reason::silent(stage, last, mqtt, root),
    };
    Failed { closed: true, ..Failed::broker(why) }
}

/// How a broker's closing looks to one who writes.
fn silent(why: &std::io::Error) -> bool {
    use std::io::ErrorKind as Io;
    [Io::UnexpectedEof, Io::ConnectionReset, Io::BrokenPipe, Io::ConnectionAborted].contains(&why.kind())
}

/// The number of a reason in CONNACK; the codec hides it.
fn code(reason: ConnectReturnCode) -> u8 {
    let mut bytes = bytes::BytesMut::new();
    let ack = ConnAck { session_present: false, code: reason, properties: None };
    // Written: type, length, flags, code.
    match ack.write(&mut bytes) {
        Ok(_) => bytes.get(3).copied().unwrap_or(0x80),
        Err(_) => 0x80,
    }
}

/// The keep-alive that counts: the broker's, or ours.
pub(super) fn keep_alive(mqtt: &Mqtt, demanded: Option<Duration>) -> Duration {
    demanded.unwrap_or(Duration::from_secs(mqtt.keep_alive_s))
}
