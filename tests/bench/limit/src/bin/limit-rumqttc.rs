//! The same limit with rumqttc as the client, used plainly.
use limit::*;
use rumqttc::{Client, MqttOptions, QoS};
use std::time::Duration;
fn main() {
    let c = cfg();
    let mut s = session(&c);
    let mut o = MqttOptions::new(
        std::env::var("HB_CLIENT_ID").unwrap_or("limit".into()),
        &c.host,
        c.port,
    );
    o.set_keep_alive(Duration::from_secs(30));
    o.set_inflight(1000);
    let (cl, mut conn) = Client::new(o, 10000);
    std::thread::spawn(move || {
        for n in conn.iter() {
            if n.is_err() {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    });
    let fds: Vec<i32> = c.ttys.iter().map(|t| open_tty(t)).collect();
    let mut w: Vec<Win> = fds.iter().map(|_| Win::new()).collect();
    let mut buf = vec![0u8; 65536];
    let mut p = vec![];
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
        unsafe {
            libc::poll(pf.as_mut_ptr(), pf.len() as u64, -1);
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
            w[i].feed(&buf[..r as usize], c.hop, |seq, t, x| {
                let sc = infer(&mut s, x);
                payload(&mut p, seq, t, sc);
                cl.publish(&topics[i], QoS::AtLeastOnce, false, p.clone())
                    .unwrap();
            });
        }
    }
}
