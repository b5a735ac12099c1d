//! mqtt-probe: QoS1 subscriber; stamps each message on arrival, extracts fields by JSON pointer, reports.
use hbench::*;
use std::{
    collections::HashMap,
    io::{Read, Write},
    sync::atomic::{AtomicBool, Ordering},
};
static STOP: AtomicBool = AtomicBool::new(false);
extern "C" fn on_sig(_: i32) {
    STOP.store(true, Ordering::SeqCst)
}
struct Rec {
    recv: u64,
    t: u64,
    seq: u64,
    score: f64,
    port: u32,
    flags: u32,
}
fn main() {
    let a = Args::new();
    if a.flag("help") {
        eprintln!("mqtt-probe --host H --port P --topic 'bench/#' --id probe [--clean] [--ptr-seq /seq_last --ptr-t /t_last_ns --ptr-score /score --ptr-port (default: last topic level) --ptr-batch ''] [--out raw.bin] [--stop-after N] [--idle S]");
        return;
    }
    unsafe {
        libc::signal(libc::SIGTERM, on_sig as *const () as usize);
        libc::signal(libc::SIGINT, on_sig as *const () as usize);
    }
    let (host, port) = (a.s("host", "127.0.0.1"), a.u("port", 1883) as u16);
    let topic = a.s("topic", "bench/#");
    let id = a.s("id", "probe");
    let (ps, pt, pc) = (
        a.s("ptr-seq", "/seq_last"),
        a.s("ptr-t", "/t_last_ns"),
        a.s("ptr-score", "/score"),
    );
    let pp = a.get("ptr-port");
    let pb = a.get("ptr-batch");
    let stop_after = a.u("stop-after", u64::MAX);
    let idle = a.f("idle", 1e9);
    let mut recs: Vec<Rec> = Vec::with_capacity(1 << 18);
    let (mut bad, mut bytes, mut msgs, mut reconnects, mut bad_sample) =
        (0u64, 0u64, 0u64, -1i64, String::new());
    let mut buf: Vec<u8> = Vec::with_capacity(1 << 20);
    let mut tmp = vec![0u8; 1 << 18];
    let mut acks: Vec<u8> = vec![];
    let mut last_status = mono_ns();
    let mut last_rx = mono_ns();
    let mut announced = false;
    'outer: while !STOP.load(Ordering::Relaxed) {
        let Ok((mut s, present)) = mqtt_open(&host, port, &id, a.flag("clean")) else {
            std::thread::sleep(std::time::Duration::from_millis(20));
            continue;
        };
        let mut prefix: Vec<u8> = vec![];
        s.set_read_timeout(Some(std::time::Duration::from_millis(50)))
            .unwrap();
        s.write_all(&mqtt::subscribe(1, &topic, 1)).ok();
        let _ = present;
        reconnects += 1;
        buf.clear();
        buf.append(&mut prefix);
        loop {
            if STOP.load(Ordering::Relaxed) {
                break 'outer;
            }
            let r = s.read(&mut tmp);
            let recv = now_ns();
            match r {
                Ok(0) => break,
                Ok(n) => {
                    buf.extend_from_slice(&tmp[..n]);
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::WouldBlock
                            | std::io::ErrorKind::TimedOut
                            | std::io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => break,
            }
            let mut at = 0;
            acks.clear();
            while let Some((ty, b, e)) = mqtt::next(&buf[at..]) {
                let p = &buf[at + b..at + e];
                match ty >> 4 {
                    3 => {
                        let qos = (ty >> 1) & 3;
                        let tl = u16::from_be_bytes([p[0], p[1]]) as usize;
                        let tp = &p[2..2 + tl];
                        let mut o = 2 + tl;
                        if qos > 0 {
                            acks.extend_from_slice(&[0x40, 2, p[o], p[o + 1]]);
                            o += 2;
                        }
                        let pay = &p[o..];
                        msgs += 1;
                        bytes += pay.len() as u64;
                        last_rx = mono_ns();
                        let flags = ((ty >> 3) & 1) as u32 | ((ty & 1) as u32) << 1;
                        let tport: u32 = tp
                            .rsplit(|c| *c == b'/')
                            .next()
                            .and_then(|x| std::str::from_utf8(x).ok())
                            .and_then(|x| x.parse().ok())
                            .unwrap_or(0);
                        match serde_json::from_slice::<serde_json::Value>(pay) {
                            Ok(v) => {
                                let root = pb.as_ref().and_then(|x| v.pointer(x)).unwrap_or(&v);
                                let one = std::slice::from_ref(root);
                                let items = root.as_array().map(|x| x.as_slice()).unwrap_or(one);
                                for it in items {
                                    let seq = it.pointer(&ps).and_then(|x| {
                                        x.as_u64().or_else(|| x.as_f64().map(|f| f as u64))
                                    });
                                    let t = it.pointer(&pt).and_then(|x| {
                                        x.as_u64()
                                            .or_else(|| x.as_f64().map(|f| f as u64))
                                            .or_else(|| x.as_str().and_then(|s| s.parse().ok()))
                                    });
                                    let sc = it.pointer(&pc).and_then(|x| x.as_f64());
                                    let po = match &pp {
                                        Some(k) => it
                                            .pointer(k)
                                            .or_else(|| v.pointer(k))
                                            .and_then(|x| x.as_u64())
                                            .unwrap_or(0)
                                            as u32,
                                        None => tport,
                                    };
                                    match (seq, sc) {
                                        (Some(seq), Some(score)) => recs.push(Rec {
                                            recv,
                                            t: t.unwrap_or(0),
                                            seq,
                                            score,
                                            port: po,
                                            flags,
                                        }),
                                        _ => {
                                            bad += 1;
                                            if bad_sample.is_empty() {
                                                bad_sample = String::from_utf8_lossy(
                                                    &pay[..pay.len().min(300)],
                                                )
                                                .into()
                                            }
                                        }
                                    }
                                }
                            }
                            Err(_) => {
                                bad += 1;
                                if bad_sample.is_empty() {
                                    bad_sample =
                                        String::from_utf8_lossy(&pay[..pay.len().min(300)]).into()
                                }
                            }
                        }
                    }
                    9 => {
                        if !announced {
                            announced = true;
                            println!("SUBSCRIBED");
                            std::io::stdout().flush().unwrap();
                        }
                    }
                    _ => {}
                }
                at += e;
            }
            buf.drain(..at);
            if !acks.is_empty() && s.write_all(&acks).is_err() {
                break;
            }
            let m = mono_ns();
            if m - last_status > 50_000_000 {
                last_status = m;
                println!(
                    "N {} {}",
                    recs.len(),
                    recs.last().map(|r| r.recv).unwrap_or(0)
                );
                std::io::stdout().flush().unwrap();
            }
            if recs.len() as u64 >= stop_after || (m - last_rx) as f64 > idle * 1e9 {
                break 'outer;
            }
        }
    }
    if let Some(o) = a.get("out") {
        let mut f = std::io::BufWriter::new(std::fs::File::create(o).unwrap());
        for r in &recs {
            f.write_all(&r.recv.to_le_bytes()).unwrap();
            f.write_all(&r.t.to_le_bytes()).unwrap();
            f.write_all(&r.seq.to_le_bytes()).unwrap();
            f.write_all(&r.score.to_le_bytes()).unwrap();
            f.write_all(&r.port.to_le_bytes()).unwrap();
            f.write_all(&r.flags.to_le_bytes()).unwrap();
        }
        f.flush().unwrap();
    }
    let mut lat: Vec<i64> = recs
        .iter()
        .filter(|r| r.t > 0)
        .map(|r| r.recv as i64 - r.t as i64)
        .collect();
    lat.sort();
    let q = |p: f64| {
        if lat.is_empty() {
            0.0
        } else {
            lat[((lat.len() as f64 * p).ceil() as usize).clamp(1, lat.len()) - 1] as f64 / 1e3
        }
    };
    let mut seen: HashMap<(u32, u64), u32> = HashMap::new();
    let mut lastseq: HashMap<u32, u64> = HashMap::new();
    let (mut dup, mut ooo, mut dupflag) = (0, 0, 0);
    for r in &recs {
        if r.flags & 1 == 1 {
            dupflag += 1
        }
        let c = seen.entry((r.port, r.seq)).or_insert(0);
        *c += 1;
        if *c > 1 {
            dup += 1
        }
        let l = lastseq.entry(r.port).or_insert(r.seq);
        if r.seq < *l {
            ooo += 1
        } else {
            *l = r.seq
        }
    }
    let span = if recs.len() > 1 {
        (recs.last().unwrap().recv - recs[0].recv) as f64 / 1e9
    } else {
        0.0
    };
    println!(
        "SUMMARY {}",
        serde_json::json!({"records": recs.len(), "messages": msgs, "payload_bytes": bytes, "bad": bad, "bad_sample": bad_sample, "reconnects": reconnects, "duplicates": dup, "out_of_order": ooo, "dup_flag": dupflag, "span_s": span, "rate": if span > 0.0 { recs.len() as f64 / span } else { 0.0 },
        "latency_us": {"p50": q(0.5), "p90": q(0.9), "p99": q(0.99), "p99.9": q(0.999), "max": q(1.0)}})
    );
}
