//! One thread, no runtime: QoS1 PUBLISH written straight to the socket after inference; PUBACKs drained, never matched. Reconnects, but buffers nothing.
use limit::*;
use std::{
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
};
fn conn(c: &Cfg) -> Option<TcpStream> {
    let mut s = TcpStream::connect((c.host.as_str(), c.port)).ok()?;
    s.set_nodelay(true).ok()?;
    let id = std::env::var("HB_CLIENT_ID").unwrap_or("limit".into());
    let n = 10 + 2 + id.len();
    let mut v = vec![
        0x10,
        n as u8,
        0,
        4,
        b'M',
        b'Q',
        b'T',
        b'T',
        4,
        2,
        0,
        0,
        0,
        id.len() as u8,
    ];
    v.extend_from_slice(id.as_bytes());
    s.write_all(&v).ok()?;
    let mut b = [0u8; 4];
    s.read_exact(&mut b).ok()?;
    Some(s)
}
fn main() {
    let c = cfg();
    let mut s = session(&c);
    let noort = std::env::var("HB_NOORT").is_ok();
    let to = if std::env::var("HB_SPIN").is_ok() {
        0
    } else {
        -1
    };
    let mut m = conn(&c);
    let mut last = std::time::Instant::now();
    let fds: Vec<i32> = c.ttys.iter().map(|t| open_tty(t)).collect();
    let mut w: Vec<Win> = fds.iter().map(|_| Win::new()).collect();
    let mut buf = vec![0u8; 65536];
    let (mut p, mut out) = (vec![], vec![]);
    let mut pid = 0u16;
    let topics: Vec<String> = (0..fds.len()).map(|i| format!("{}/{i}", c.topic)).collect();
    loop {
        let mut pf: Vec<libc::pollfd> = fds
            .iter()
            .map(|f| libc::pollfd {
                fd: *f,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        if let Some(k) = &m {
            pf.push(libc::pollfd {
                fd: k.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
        }
        unsafe {
            libc::poll(pf.as_mut_ptr(), pf.len() as u64, to);
        }
        for i in 0..fds.len() {
            if pf[i].revents == 0 {
                continue;
            }
            let r = unsafe { libc::read(fds[i], buf.as_mut_ptr() as *mut _, buf.len()) };
            if r <= 0 {
                if r == 0 || pf[i].revents & libc::POLLHUP != 0 {
                    return;
                }
                continue;
            }
            let tp = topics[i].as_bytes();
            w[i].feed(&buf[..r as usize], c.hop, |seq, t, x| {
                let sc = if noort { 0.0 } else { infer(&mut s, x) };
                payload(&mut p, seq, t, sc);
                if let Some(k) = &mut m {
                    out.clear();
                    pid = pid.wrapping_add(1).max(1);
                    out.push(0x32);
                    let mut n = 4 + tp.len() + p.len();
                    loop {
                        let b = (n % 128) as u8;
                        n /= 128;
                        out.push(b | if n > 0 { 128 } else { 0 });
                        if n == 0 {
                            break;
                        }
                    }
                    out.extend_from_slice(&(tp.len() as u16).to_be_bytes());
                    out.extend_from_slice(tp);
                    out.extend_from_slice(&pid.to_be_bytes());
                    out.extend_from_slice(&p);
                    if k.write_all(&out).is_err() {
                        m = None;
                    }
                }
            });
        }
        if let Some(k) = &mut m {
            if pf.last().unwrap().revents != 0 && pf.len() > fds.len() {
                match k.read(&mut buf) {
                    Ok(n) if n > 0 => {}
                    _ => m = None,
                }
            }
        } else if last.elapsed().as_millis() > 100 {
            last = std::time::Instant::now();
            m = conn(&c);
        }
    }
}
