//! A sensor that talks faster than its windows can be served: what is too much waits where it comes from.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rig::{Mosquitto, Site, Sub, Tty};

/// Before lanes were bounded by time this was seconds, and it grew as long as the flood did: 16,000 rows fit the lanes.
#[test]
fn flood_waits_in_the_line_and_its_windows_are_served_while_they_are_young() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = Site::new(broker.port).with_sensor(&tty).with_mean_model().run();
    sub.wait_event("model.serving", "serving mean@");
    let stop = Arc::new(AtomicBool::new(false));
    let end = stop.clone();
    let flooding = std::thread::spawn(move || {
        let mut n = 0u64;
        while !end.load(Relaxed) {
            // Numbers of one length, 90 bytes with the rest.
            let rows: String = (n..n + 40).map(|i| format!("{i:012},1.{:040},2.{:030}\n", 0, 0)).collect();
            tty.write(rows.as_bytes());
            n += 40;
        }
        (tty, n)
    });
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
    }
    stop.store(true, Relaxed);
    let (_tty, rows) = flooding.join().expect("the flood");
    let last = sub.wait("the last window", |messages| {
        let records = rig::sub::records(messages, "p/x");
        records.last().filter(|(record, _)| record["in_seq"][1] == rows - 1).map(|_| records.len())
    });
    assert_eq!(last as u64, rows - 3, "every row is in its windows: nothing was dropped");
    let mut waited: Vec<f64> = sub.messages().iter().filter(|m| m.stream == "p/x").flat_map(|m| ages_ms(m)).collect();
    waited.sort_by(f64::total_cmp);
    let at = |share: f64| waited[(waited.len() as f64 * share) as usize];
    rig::measured(&format!(
        "flooded with {} windows/s: {:.0} ms from a read to the subscriber (p50), {:.0} ms (p99)",
        waited.len() / 3,
        at(0.5),
        at(0.99)
    ));
    assert!(at(0.5) < 500.0, "{} ms", at(0.5));
    daemon.stop_well();
}

/// How old each record of a message was when it arrived, since its last row was read.
fn ages_ms(message: &rig::sub::Message) -> Vec<f64> {
    let began_ns = message.payload["mono_ns"].as_f64().expect("mono_ns");
    let records = message.payload["data"].as_array().expect("records");
    let read_ns = |record: &serde_json::Value| began_ns + record["t"].as_f64().expect("t");
    records.iter().map(|record| (message.at_ns as f64 - read_ns(record)) / 1e6).collect()
}
