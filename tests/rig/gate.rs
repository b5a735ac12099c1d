//! A proxy and a WebSocket server in front of a broker (`tests/devices/gate.py`). Faults: frames that begin anywhere in the stream.

use std::{
    net::TcpStream,
    process::{Child, Command},
};

use crate::{eventually, free_port, root};

/// Both, until it is dropped.
pub struct Gate {
    /// The HTTP proxy; user `plant`, password `gate`.
    pub proxy: u16,
    /// MQTT in a WebSocket, at `/mqtt`.
    pub websocket: u16,
    child: Child,
}

impl Gate {
    /// In front of the broker at this port.
    pub fn before(broker: u16) -> Self {
        let (proxy, websocket) = (free_port(), free_port());
        let ports = [proxy, websocket, broker].map(|port| port.to_string());
        let child = Command::new("python3").arg(root().join("tests/devices/gate.py")).args(ports).spawn();
        let gate = Self { proxy, websocket, child: child.expect("python3") };
        for port in [proxy, websocket] {
            eventually("the gate is open", || TcpStream::connect(("127.0.0.1", port)).ok());
        }
        gate
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
