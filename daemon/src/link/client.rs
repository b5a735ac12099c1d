//! A session of the operator's tools: the same addresses, proxies, TLS files and reasons in words as the device's link, without its
//! outbox. It starts clean and has no will; what to send and what to do with what comes is the caller's.

use rumqttc::v5::mqttbytes::v5::{ConnAck, Connect, ConnectProperties, Packet};
use tokio::time::timeout;

use super::{dial, open};
pub use super::{
    error::LinkError,
    session::{Closed, Session},
};
use crate::{
    config::{Broker, Mqtt},
    limits,
};

/// Opens a session that takes packets of up to `packet_most` bytes, so many QoS 1 messages at once.
///
/// # Errors
/// The broker cannot be reached or refuses; in words that say what to do.
pub async fn connect(
    broker: &Broker,
    mqtt: &Mqtt,
    packet_most: u32,
    at_once: u16,
) -> Result<(Session, ConnAck), LinkError> {
    let papers = dial::Papers::read(mqtt, broker).await?;
    let opened = async {
        let carried = dial::dial(broker, mqtt, &papers).await.map_err(|failed| failed.why)?;
        let mut session = Session::taking(carried, packet_most);
        let mut properties = ConnectProperties::new();
        properties.session_expiry_interval = Some(limits::TOOL_SESSION_S);
        properties.max_packet_size = Some(packet_most);
        properties.receive_maximum = Some(at_once);
        let connect = Connect {
            keep_alive: u16::try_from(mqtt.keep_alive_s).unwrap_or(u16::MAX),
            client_id: mqtt.client_id.clone(),
            clean_start: true,
            properties: Some(properties),
        };
        let packet = Packet::Connect(connect, None, papers.login.clone());
        session.push(&packet).map_err(|why| LinkError(format!("write CONNECT: {why}")))?;
        let ack = open::answer(&mut session, mqtt, broker).await.map_err(|(failed, _)| failed.why)?;
        Ok((session, ack))
    };
    match timeout(limits::CONNECT, Box::pin(opened)).await {
        Ok(opened) => opened,
        Err(_) => Err("no answer in time".into()),
    }
}
