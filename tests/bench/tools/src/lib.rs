//! Shared helpers: clock, args, minimal MQTT 3.1.1 codec.
use std::io::{Read, Write};
pub fn now_ns() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}
pub fn mono_ns() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}
pub struct Args(Vec<String>);
impl Args {
    pub fn new() -> Self {
        Args(std::env::args().skip(1).collect())
    }
    pub fn get(&self, k: &str) -> Option<String> {
        let k = format!("--{k}");
        self.0
            .iter()
            .position(|a| *a == k)
            .and_then(|i| self.0.get(i + 1).cloned())
    }
    pub fn s(&self, k: &str, d: &str) -> String {
        self.get(k).unwrap_or_else(|| d.into())
    }
    pub fn f(&self, k: &str, d: f64) -> f64 {
        self.get(k).map(|v| v.parse().expect(k)).unwrap_or(d)
    }
    pub fn u(&self, k: &str, d: u64) -> u64 {
        self.get(k).map(|v| v.parse().expect(k)).unwrap_or(d)
    }
    pub fn flag(&self, k: &str) -> bool {
        let k = format!("--{k}");
        self.0.iter().any(|a| *a == k)
    }
}
pub fn put_itoa(v: &mut Vec<u8>, mut x: u64) {
    let mut b = [0u8; 20];
    let mut i = 20;
    loop {
        i -= 1;
        b[i] = b'0' + (x % 10) as u8;
        x /= 10;
        if x == 0 {
            break;
        }
    }
    v.extend_from_slice(&b[i..]);
}
pub mod mqtt {
    pub fn put_len(v: &mut Vec<u8>, mut n: usize) {
        loop {
            let mut b = (n % 128) as u8;
            n /= 128;
            if n > 0 {
                b |= 128
            }
            v.push(b);
            if n == 0 {
                break;
            }
        }
    }
    pub fn put_str(v: &mut Vec<u8>, s: &[u8]) {
        v.extend_from_slice(&(s.len() as u16).to_be_bytes());
        v.extend_from_slice(s);
    }
    pub fn connect(id: &str, clean: bool, keepalive: u16) -> Vec<u8> {
        let mut b = vec![];
        put_str(&mut b, b"MQTT");
        b.push(4);
        b.push(if clean { 2 } else { 0 });
        b.extend_from_slice(&keepalive.to_be_bytes());
        put_str(&mut b, id.as_bytes());
        let mut v = vec![0x10];
        put_len(&mut v, b.len());
        v.extend(b);
        v
    }
    pub fn subscribe(pid: u16, topic: &str, qos: u8) -> Vec<u8> {
        let mut b = pid.to_be_bytes().to_vec();
        put_str(&mut b, topic.as_bytes());
        b.push(qos);
        let mut v = vec![0x82];
        put_len(&mut v, b.len());
        v.extend(b);
        v
    }
    pub fn publish(v: &mut Vec<u8>, topic: &[u8], pid: u16, payload: &[u8]) {
        v.push(0x32);
        put_len(v, 2 + topic.len() + 2 + payload.len());
        put_str(v, topic);
        v.extend_from_slice(&pid.to_be_bytes());
        v.extend_from_slice(payload);
    }
    /// Returns (type byte, body start, body end) of the first whole packet in buf.
    pub fn next(buf: &[u8]) -> Option<(u8, usize, usize)> {
        if buf.len() < 2 {
            return None;
        }
        let (mut n, mut m, mut i) = (0usize, 1usize, 1usize);
        loop {
            let b = *buf.get(i)?;
            n += (b & 127) as usize * m;
            m *= 128;
            i += 1;
            if b & 128 == 0 {
                break;
            }
            if i > 4 {
                return None;
            }
        }
        if buf.len() < i + n {
            return None;
        }
        Some((buf[0], i, i + n))
    }
}
pub fn tcp(host: &str, port: u16) -> std::io::Result<std::net::TcpStream> {
    let s = std::net::TcpStream::connect((host, port))?;
    s.set_nodelay(true)?;
    Ok(s)
}
pub fn mqtt_open(
    host: &str,
    port: u16,
    id: &str,
    clean: bool,
) -> std::io::Result<(std::net::TcpStream, bool)> {
    let mut s = tcp(host, port)?;
    s.write_all(&mqtt::connect(id, clean, 0))?;
    let mut b = [0u8; 4];
    s.read_exact(&mut b)?;
    if b[0] != 0x20 || b[3] != 0 {
        return Err(std::io::Error::new(std::io::ErrorKind::Other, "connack"));
    }
    Ok((s, b[2] & 1 == 1))
}
