//! An MQTT broker inside the demo, on this machine's loopback only.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use rumqttd::Broker;

use kentledge::error::{Context, Fatal};

/// Starts it on `port` (0: one that is free) and waits until it answers. Returns the port.
pub fn start(port: u16) -> Result<u16, Fatal> {
    let port = free_port(port)?;
    let config = serde_json::json!({
        "id": 0,
        "router": {
            "id": 0, "max_connections": 64, "max_outgoing_packet_count": 200,
            "max_segment_size": 1_048_576, "max_segment_count": 10
        },
        "v5": { "demo": {
            "name": "demo", "listen": format!("127.0.0.1:{port}"), "next_connection_delay_ms": 1,
            "connections": {
                "connection_timeout_ms": 5000, "max_payload_size": 262_144, "max_inflight_count": 200, "dynamic_filters": true
            }
        }}
    });
    let config = serde_json::from_value(config).context("configure the demo's broker")?;
    std::thread::Builder::new()
        .name("broker".into())
        .spawn(move || {
            if let Err(why) = Broker::new(config).start() {
                tracing::error!("the demo's broker ended: {why}");
            }
        })
        .context("start the demo's broker")?;
    let until = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_err() {
        if Instant::now() > until {
            return Err(Fatal::failed(format!("start the demo's broker on port {port}: it does not answer")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(port)
}

fn free_port(port: u16) -> Result<u16, Fatal> {
    let socket =
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context(format!("take port {port} for the demo's broker"))?;
    Ok(socket.local_addr().context("take a port for the demo's broker")?.port())
}
