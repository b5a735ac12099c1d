//! A packet capture in front of a broker: a proxy that keeps all bytes of the daemon's connections, without encryption. No faults.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex},
};

#[derive(Clone)]
pub struct Recorder {
    /// For the daemon.
    pub port: u16,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    /// In front of a broker on this machine.
    pub fn before(broker_port: u16) -> Self {
        let listener = crate::listen();
        let port = listener.local_addr().expect("address").port();
        let recorder = Self { port, bytes: Arc::default() };
        let bytes = recorder.bytes.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", broker_port)) else { continue };
                let clone = |s: &TcpStream| s.try_clone().expect("clone");
                let (up, bytes) = ((clone(&near), clone(&far)), bytes.clone());
                std::thread::spawn(move || {
                    pump(up.0, up.1, |chunk| bytes.lock().expect("bytes").extend_from_slice(chunk))
                });
                std::thread::spawn(move || pump(far, near, |_| {}));
            }
        });
        recorder
    }

    /// How many bytes the daemon sent.
    pub fn sent(&self) -> usize {
        self.bytes.lock().expect("bytes").len()
    }

    /// How often these bytes stand in what the daemon sent.
    pub fn count(&self, needle: &[u8]) -> usize {
        let bytes = self.bytes.lock().expect("bytes");
        bytes.windows(needle.len()).filter(|part| *part == needle).count()
    }

    /// Every whole PUBLISH packet with this in its topic: the bytes of each packet.
    pub fn publishes(&self, topic_part: &str) -> Vec<usize> {
        let bytes = self.bytes.lock().expect("bytes");
        let (mut at, mut found) = (0, Vec::new());
        while at + 2 <= bytes.len() {
            let (mut length, mut shift, mut head) = (0usize, 0, 1);
            while let Some(byte) = bytes.get(at + head) {
                length |= usize::from(byte & 0x7f) << shift;
                (shift, head) = (shift + 7, head + 1);
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let end = at + head + length;
            if end > bytes.len() {
                break;
            }
            if bytes[at] >> 4 == 3 {
                let topic = usize::from(u16::from_be_bytes([bytes[at + head], bytes[at + head + 1]]));
                let topic = String::from_utf8_lossy(&bytes[at + head + 2..at + head + 2 + topic]);
                found.extend(topic.contains(topic_part).then_some(end - at));
            }
            at = end;
        }
        found
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut keep: impl FnMut(&[u8])) {
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(n) = from.read(&mut chunk) {
        if n == 0 {
            break;
        }
        // Before it goes on: what the broker has is recorded.
        keep(&chunk[..n]);
        if to.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
