//! Long outages, compressed: all of it arrives, in order, flagged, much faster than it was made, and live data does not
//! wait behind it.

use std::time::{Duration, Instant};

use rig::{Mosquitto, Site, Sub, Tty, eventually, within};

/// `rows` rows of `bytes` bytes each are made while the broker is away.
fn outage(what: &str, rows: u64, per_s: u64, bytes: usize) {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    // A record's own members take about 90 bytes beside the value of `note`-like columns; here wide numbers fill it.
    let columns: Vec<String> = (0..(bytes.saturating_sub(90) / 14).max(1)).map(|i| format!("c{i}")).collect();
    let quoted = columns.iter().map(|c| format!("\"{c}\"")).collect::<Vec<_>>().join(", ");
    let channels: String = columns.iter().map(|c| format!("[channel.{c}]\n")).collect();
    let site = Site::new(broker.port).with(&format!(
        "[source.s]\npath = \"{}\"\ncolumns = [\"n\", {quoted}]\nseq = \"n\"\n{channels}[stream.raw]\nchannels = [{quoted}]\n",
        tty.path().display()
    ));
    let row = |i: u64| {
        let values =
            (0..columns.len() as u64).map(|c| format!("{:.4}", (i * 7919 + c * 104_729) as f64 % 99_991.0 / 7.0));
        format!("{i},{}", values.collect::<Vec<_>>().join(","))
    };
    let daemon = site.run();
    eventually("the port is open", || daemon.log().contains("serial port open").then_some(()));
    let began = Instant::now();
    daemon.read_rows(&mut tty, 0..rows, row);
    let made = began.elapsed();
    let peak = daemon.rss_kib();
    std::thread::sleep(Duration::from_millis(1500));
    broker.up();
    sub.wait_state("online");
    let back = Instant::now();
    // Live rows go on meanwhile, and arrive long before the backlog is through.
    let live = 50;
    for i in 0..live {
        tty.rows(rows + i..rows + i + 1, row);
        std::thread::sleep(Duration::from_millis(10));
    }
    within(Duration::from_secs(300), "all of it arrives", || {
        std::thread::sleep(Duration::from_millis(100));
        sub.count("m/raw") >= rows + live
    });
    let drained = back.elapsed();
    let rate = rows as f64 / drained.as_secs_f64();
    rig::measured(&format!(
        "{what}: {rows} rows of {bytes} B made in {:.1} s; drained in {:.1} s, {rate:.0} rows/s = {:.0} times the live rate; \
         RSS {peak} KiB in the outage, {} KiB after it",
        made.as_secs_f64(),
        drained.as_secs_f64(),
        rate / per_s as f64,
        daemon.rss_kib(),
    ));
    assert!(rate >= 10.0 * per_s as f64, "{rate:.0} rows/s");
    daemon.stop_well();
    let records = sub.records("m/raw");
    for hist in [false, true] {
        let lane: Vec<u64> =
            records.iter().filter(|(_, h)| *h == hist).map(|(r, _)| r["seq"].as_u64().expect("seq")).collect();
        assert!(lane.is_sorted(), "hist {hist}: in order");
    }
    let mut seqs: Vec<u64> = records.iter().map(|(r, _)| r["in_seq"][0].as_u64().expect("in_seq")).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (0..rows + live).collect::<Vec<_>>(), "each once, none missing");
    let flagged = records.iter().filter(|(_, hist)| *hist).count() as u64;
    assert!(flagged + 2000 >= rows, "{flagged} of {rows} are flagged as history");
    let live_row = |r: &serde_json::Value| r["in_seq"][0].as_u64().is_some_and(|row| row >= rows);
    let place = records.iter().position(|(r, _)| live_row(r)).expect("a live row");
    assert!(place < records.len() / 2, "live rows do not wait for the backlog: the first came after {place} others");
}

/// The long form plays all of it, the short one a part.
fn of(rows: u64, part: u64) -> u64 {
    if rig::long() { rows } else { rows / part }
}

#[test]
fn an_hour_at_1_000_records_a_second_is_delivered_in_order() {
    outage("an hour at 1,000/s", of(3_600_000, 36), 1000, 110);
}

#[test]
fn three_days_at_10_records_a_second_are_delivered_in_order() {
    outage("72 h at 10/s", of(2_592_000, 36), 10, 200);
}

/// Half an hour at 100 rows/s with a broker that goes away now and then: memory and descriptors stay where they are.
#[test]
fn a_soak_leaves_memory_and_descriptors_where_they_were() {
    let how_long = Duration::from_secs(if rig::long() { 1800 } else { 20 });
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon =
        Site::new(broker.port).with_sensor(&tty).with("[stream.raw]\nchannels = [\"a\"]\n").with_mean_model().run();
    sub.wait_state("online");
    let (began, mut n, mut samples, mut up) = (Instant::now(), 0, Vec::new(), true);
    while began.elapsed() < how_long {
        for _ in 0..100 {
            tty.rows(n..n + 1, |i| format!("{i},{},0", i % 7));
            n += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        let second = began.elapsed().as_secs();
        match second % 60 {
            40..50 if up => {
                broker.stop();
                up = false;
            }
            0..40 | 50.. if !up => {
                broker.up();
                up = true;
            }
            _ => {}
        }
        samples.push((began.elapsed().as_secs_f64(), daemon.rss_kib() as f64, daemon.fds()));
    }
    if !up {
        broker.up();
    }
    // The slope of the second half, by least squares: the first half fills caches.
    let half = &samples[samples.len() / 2..];
    let mean = |f: fn(&(f64, f64, usize)) -> f64| half.iter().map(f).sum::<f64>() / half.len() as f64;
    let (t, m) = (mean(|s| s.0), mean(|s| s.1));
    let slope =
        half.iter().map(|s| (s.0 - t) * (s.1 - m)).sum::<f64>() / half.iter().map(|s| (s.0 - t).powi(2)).sum::<f64>();
    let fds: Vec<usize> = half.iter().map(|s| s.2).collect();
    let (least, most) = (fds.iter().min().expect("samples"), fds.iter().max().expect("samples"));
    rig::measured(&format!(
        "soak {} s: RSS {m:.0} KiB, slope {:.0} KiB a day, descriptors {least} to {most}",
        how_long.as_secs(),
        slope * 86_400.0
    ));
    if rig::long() {
        assert!(slope * 86_400.0 < 1024.0, "{slope} KiB/s");
    }
    assert!(most - least <= 4, "{fds:?}");
    within(Duration::from_secs(60), "all rows arrive", || sub.count("m/raw") == n);
    daemon.stop_well();
}
