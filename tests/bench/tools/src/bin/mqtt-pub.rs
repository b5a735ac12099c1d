//! mqtt-pub: load generator for the store-and-forward scenario: QoS1 JSON messages to a broker, in-flight window, reconnecting, at-least-once.
use hbench::*;
use std::{
    collections::VecDeque,
    io::{Read, Write},
};
fn main() {
    let a = Args::new();
    let (host, port) = (a.s("host", "127.0.0.1"), a.u("port", 1883) as u16);
    let topic = a.s("topic", "bench/0");
    let count = a.u("count", 10000);
    let rate = a.f("rate", 0.0);
    let infl = a.u("inflight", 100) as usize;
    let first = a.u("first", 0);
    let log = a.get("log");
    let mut lg: Vec<(u64, u64)> = vec![];
    let mut un: VecDeque<(u16, Vec<u8>)> = VecDeque::new();
    let mut seq = first;
    let mut pid = 1u16;
    let t0 = mono_ns();
    let mut done = false;
    let mut acked = 0u64;
    while !done {
        let Ok((mut s, _)) = mqtt_open(&host, port, &a.s("id", "pub"), true) else {
            std::thread::sleep(std::time::Duration::from_millis(20));
            continue;
        };
        s.set_nonblocking(true).unwrap();
        let mut out: Vec<u8> = vec![];
        for (_, p) in &un {
            out.extend_from_slice(p);
        }
        let mut buf = vec![];
        let mut tmp = [0u8; 65536];
        let mut off = 0;
        'c: loop {
            while un.len() < infl
                && seq < first + count
                && (rate == 0.0 || (mono_ns() - t0) as f64 / 1e9 * rate >= (seq - first) as f64)
            {
                let t = now_ns();
                let pay = format!("{{\"seq_last\":{seq},\"t_last_ns\":{t},\"score\":0.123456,\"device\":\"edge-01\",\"model\":\"ae32\",\"window\":64,\"quality\":\"ok\",\"pad\":\"0123456789abcdef\"}}");
                let mut p = vec![];
                mqtt::publish(&mut p, topic.as_bytes(), pid, pay.as_bytes());
                out.extend_from_slice(&p);
                un.push_back((pid, p));
                lg.push((seq, t));
                seq += 1;
                pid = if pid == 65535 { 1 } else { pid + 1 };
            }
            while off < out.len() {
                match s.write(&out[off..]) {
                    Ok(n) => off += n,
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(_) => break 'c,
                }
            }
            if off == out.len() {
                out.clear();
                off = 0;
            }
            let mut p = libc::pollfd {
                fd: std::os::fd::AsRawFd::as_raw_fd(&s),
                events: libc::POLLIN | if out.is_empty() { 0 } else { libc::POLLOUT },
                revents: 0,
            };
            unsafe {
                libc::poll(&mut p, 1, 1);
            }
            match s.read(&mut tmp) {
                Ok(0) => break 'c,
                Ok(n) => buf.extend_from_slice(&tmp[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break 'c,
            }
            let mut at = 0;
            while let Some((ty, b, e)) = mqtt::next(&buf[at..]) {
                if ty >> 4 == 4 {
                    let id = u16::from_be_bytes([buf[at + b], buf[at + b + 1]]);
                    if let Some(i) = un.iter().position(|x| x.0 == id) {
                        un.remove(i);
                        acked += 1;
                    }
                }
                at += e;
            }
            buf.drain(..at);
            if seq == first + count && un.is_empty() {
                done = true;
                break;
            }
        }
    }
    if let Some(l) = log {
        let mut f = std::io::BufWriter::new(std::fs::File::create(l).unwrap());
        for (s, t) in lg {
            f.write_all(&s.to_le_bytes()).unwrap();
            f.write_all(&t.to_le_bytes()).unwrap();
            f.write_all(&[0]).unwrap();
        }
    }
    println!(
        "PUB {}",
        serde_json::json!({"acked": acked, "secs": (mono_ns() - t0) as f64 / 1e9})
    );
}
