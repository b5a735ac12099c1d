//! What sensors do: garbage, gaps, silence, hang-ups.

use std::io::{Read, Write};

use rig::{Mosquitto, Site, Sub, Tty, eventually};
use serde_json::Value;

fn quality(sub: &Sub) -> Value {
    sub.records("q/s").last().map_or(Value::Null, |(record, _)| record.clone())
}

#[test]
fn garbage_on_the_line_is_counted_and_costs_nothing_but_itself() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = Site::new(broker.port).with_sensor(&tty).with("[stream.raw]\nchannels = [\"a\", \"b\"]\n").run();
    sub.wait_state("online");
    let megabyte = vec![b'7'; 1 << 20];
    let garbage: [(&[u8], &str); 8] = [
        (b"\0\0\0\n", "sequence"),
        (b"\xc3(,1\xa0,2\n", "not_text"),
        (b"1,2\n", "columns"),
        (b"1,2,3,4,5\n", "columns"),
        (b"x,1,2\n", "sequence"),
        (b"99999999999999999999,1,2\n", "sequence"),
        (&megabyte, "oversize"),
        (b"\r\n\n", ""),
    ];
    let mut n = 0;
    for (bytes, _) in &garbage {
        tty.write(format!("{n},1.5,2\n").as_bytes());
        tty.write(bytes);
        if !bytes.ends_with(b"\n") {
            tty.write(b"\n");
        }
        n += 1;
    }
    tty.write(format!("{n},1e999,nan\n{},-0.5e-3,3\n", n + 1).as_bytes());
    let rows = sub.wait_records("m/raw", garbage.len() + 2);
    let seqs: Vec<u64> = rows.iter().map(|(r, _)| r["in_seq"][0].as_u64().expect("seq")).collect();
    assert_eq!(seqs, (0..n + 2).collect::<Vec<_>>(), "every good frame is delivered, in order");
    assert_eq!(rows[n as usize].0["q"], serde_json::json!({"a": "bad:not_a_number", "b": "bad:not_a_number"}));
    let seen =
        sub.wait("quality of all of it", |_| Some(quality(&sub)).filter(|q| q["bad"]["b"]["bad:not_a_number"] == 1));
    assert_eq!(seen["refused"], serde_json::json!({"not_text": 1, "columns": 2, "sequence": 3, "oversize": 1023}));
    assert_eq!(seen["gaps"], 0, "{seen}: the sensor's own sequence shows that no row is missing");
    daemon.stop_well();
}

#[test]
fn a_window_over_a_gap_is_never_published_as_if_it_were_whole() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = Site::new(broker.port).with_sensor(&tty).with_mean_model().run();
    sub.wait_state("online");
    let missing = [20u64, 21, 50];
    for i in (0..100u64).filter(|i| !missing.contains(i)) {
        // One row in the middle is bad in one channel.
        let b = if i == 80 { "junk" } else { "1" };
        tty.write(format!("{i},1,{b}\n").as_bytes());
    }
    let whole = |first: u64| !(first..first + 4).any(|i| missing.contains(&i) || i == 80);
    let expected: Vec<u64> = (0..97).filter(|first| whole(*first)).collect();
    let got = sub.wait_records("p/x", expected.len());
    let firsts: Vec<u64> = got.iter().map(|(p, _)| p["in_seq"][0].as_u64().expect("seq")).collect();
    assert_eq!(firsts, expected);
    // What was not made is in the ledger: three due windows after each gap, four with the bad row.
    let entered = |reason: &str| -> u64 {
        let of = sub.records("loss").into_iter().filter(|(r, _)| r["reason"] == reason && r["stream"] == "p/x");
        of.map(|(r, _)| r["n"].as_u64().expect("n")).sum()
    };
    sub.wait("the ledger", |_| (entered("gap") == 6 && entered("bad_sample") == 4).then_some(()));
    daemon.stop_well();
}

#[test]
fn a_flagged_window_carries_its_coverage() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty);
    std::fs::write(site.dir.path().join("mean.onnx"), rig::onnx::mean(&[1, 4, 2])).expect("model");
    let pipeline = "[pipeline.x]\nmodel = \"mean.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\non_bad = \"flag\"\ncoverage_min = 0.6\n";
    let daemon = site.with(pipeline).run();
    sub.wait_state("online");
    tty.write(b"0,1,1\n1,1,1\n2,1,oops\n3,1,1\n4,1,1\n6,1,1\n");
    let got = sub.wait_records("p/x", 3);
    let coverage: Vec<_> = got.iter().map(|(p, _)| (p["in_seq"].clone(), p["coverage"].clone())).collect();
    assert_eq!(coverage[0], (serde_json::json!([0, 3]), 0.875.into()));
    assert_eq!(coverage[1], (serde_json::json!([1, 4]), 0.875.into()));
    assert_eq!(coverage[2], (serde_json::json!([3, 6]), 0.75.into()));
    daemon.stop_well();
}

#[test]
fn a_hang_up_costs_no_row_that_was_sent_and_the_port_is_back_by_its_name() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let mut daemon = Site::new(broker.port).with_sensor(&tty).with("[stream.raw]\nchannels = [\"a\"]\n").run();
    sub.wait_state("online");
    let mut n = 0;
    for round in 0..3 {
        tty.rows(n..n + 20, |i| format!("{i},{i},0"));
        n += 20;
        sub.wait_records("m/raw", n as usize);
        if round < 2 {
            tty.pull();
            eventually("the hang-up is noticed", || (daemon.log().matches("closed: ").count() > round).then_some(()));
            tty.plug_in();
        }
    }
    let seqs: Vec<u64> = sub.records("m/raw").iter().map(|(r, _)| r["in_seq"][0].as_u64().expect("seq")).collect();
    assert_eq!(seqs, (0..60).collect::<Vec<_>>());
    assert!(daemon.is_alive());
    daemon.stop_well();
}

#[test]
fn silence_is_told() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port);
    let daemon = site
        .with(&format!(
            "[source.s]\npath = \"{}\"\ncolumns = [\"a\"]\nstale_ms = 300\n[channel.a]\n[stream.raw]\nchannels = [\"a\"]\n",
            tty.path().display()
        ))
        .run();
    sub.wait_state("online");
    tty.write(b"1\n");
    sub.wait("stale", |_| Some(quality(&sub)).filter(|q| q["state"] == "stale"));
    // Changes are reported once a second at most, so it must last.
    let until = std::time::Instant::now() + std::time::Duration::from_millis(1500);
    while std::time::Instant::now() < until {
        tty.write(b"2\n");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    sub.wait("ok again", |_| {
        let records = sub.records("q/s");
        let stale = records.iter().position(|(q, _)| q["state"] == "stale")?;
        records[stale..].iter().find(|(q, _)| q["state"] == "ok").map(|_| ())
    });
    daemon.stop_well();
}

/// The yardstick's noise: junk bytes before frames, frames cut short.
#[test]
fn noise_makes_no_wrong_window_and_loses_no_clean_one() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = Site::new(broker.port).with_sensor(&tty).with_mean_model().run();
    sub.wait_state("online");
    let mut seed = 42u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let (rows, mut spoilt) = (3000u64, vec![false; 3000]);
    let (mut line, mut swallows) = (Vec::new(), false);
    for i in 0..rows {
        let text = format!("{i},{},{}\n", i % 7, i % 5);
        spoilt[i as usize] = swallows;
        swallows = false;
        if random(50) == 0 {
            // Junk that is no line end: it joins the frame it stands before.
            line.extend((0..1 + random(16)).map(|_| 128 + random(120) as u8));
            spoilt[i as usize] = true;
        }
        if random(50) == 0 {
            line.extend(&text.as_bytes()[..1 + random(text.len() as u64 - 2) as usize]);
            spoilt[i as usize] = true;
            // Without its line end it takes the next frame with it.
            swallows = true;
        } else {
            line.extend(text.as_bytes());
        }
    }
    line.extend(b"\n");
    tty.write(&line);
    let clean: Vec<u64> = (0..rows - 4).filter(|f| !(*f..f + 4).any(|i| spoilt[i as usize])).collect();
    let got = sub.wait_records("p/x", clean.len());
    for (p, _) in &got {
        let first = p["in_seq"][0].as_u64().expect("seq");
        assert_eq!(p["in_seq"][1], first + 3, "a published window is four rows in a row: {p}");
        let mean = (first..first + 4).map(|i| (i % 7 + i % 5) as f64).sum::<f64>() / 8.0;
        assert!((p["score"].as_f64().expect("score") - mean).abs() < 1e-4, "{p}");
    }
    let firsts: std::collections::HashSet<u64> =
        got.iter().map(|(p, _)| p["in_seq"][0].as_u64().expect("seq")).collect();
    let lost: Vec<_> = clean.iter().filter(|f| !firsts.contains(f)).collect();
    assert!(lost.is_empty(), "clean windows that did not come: {lost:?}");
    daemon.stop_well();
}

/// The last value of a metric, as the text stands on the page.
fn metric(port: u16, name: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    let line = page.lines().find(|line| line.starts_with(name))?;
    line.rsplit_once(' ').map(|(_, value)| value.to_owned())
}

/// What `up/h` says is wrong.
fn degraded(sub: &Sub) -> Vec<String> {
    let last = sub.records("h").pop().map_or(Value::Null, |(record, _)| record);
    let list = last["degraded"].as_array().cloned().unwrap_or_default();
    list.iter().map(|why| why.as_str().unwrap_or("").to_owned()).collect()
}

#[test]
fn unplugged_source_is_lost_and_its_score_is_no_longer_shown() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let port = rig::free_port();
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model();
    let daemon = site.with_metrics(&format!("listen = \"{port}\"")).run();
    sub.wait_state("online");
    eventually("a model serves", || daemon.log().contains("serving").then_some(()));
    tty.rows(0..20, |i| format!("{i},1,1"));
    sub.wait_records("p/x", 17);
    let score = || metric(port, "kentledge_score{");
    eventually("a score", || (score().as_deref() == Some("1")).then_some(()));
    eventually("not degraded", || (metric(port, "kentledge_degraded").as_deref() == Some("0")).then_some(()));
    eventually("and up/h says so", || degraded(&sub).is_empty().then_some(()));
    tty.pull();
    let pulled = std::time::Instant::now();
    // A hang-up of half the bound does not count as lost.
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!((sub.records("e/source.lost").len(), score().as_deref()), (0, Some("1")));
    let lost = "source s is lost: its port is not there or cannot be opened".to_owned();
    rig::within(std::time::Duration::from_secs(15), "the source is lost", || degraded(&sub) == [lost.clone()]);
    rig::measured(&format!("an unplugged source is degraded after {:.1} s", pulled.elapsed().as_secs_f64()));
    let (event, _) = sub.wait_records("e/source.lost", 1).remove(0);
    assert_eq!((&event["subject"], &event["affects"]), (&"s".into(), &serde_json::json!(["p/x"])), "{event}");
    assert!(event["silent_ms"].as_u64().is_some_and(|ms| (10_000..12_000).contains(&ms)), "{event}");
    assert_eq!(score().as_deref(), Some("NaN"));
    assert_eq!(metric(port, "kentledge_source_lost{").as_deref(), Some("1"));
    assert_eq!(metric(port, "kentledge_degraded").as_deref(), Some("1"));
    tty.plug_in();
    sub.wait("it is back", |_| {
        tty.rows(20..24, |i| format!("{i},2,2"));
        std::thread::sleep(std::time::Duration::from_millis(200));
        (!sub.records("e/source.back").is_empty()).then_some(())
    });
    eventually("not degraded again", || degraded(&sub).is_empty().then_some(()));
    assert_eq!(metric(port, "kentledge_source_lost{").as_deref(), Some("0"));
    assert_eq!((sub.records("e/source.lost").len(), sub.records("e/source.back").len()), (1, 1));
    daemon.stop_well();
}

#[test]
fn channel_with_nothing_but_bad_values_is_degraded_with_an_example() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let port = rig::free_port();
    let site = Site::new(broker.port).with_sensor(&tty).with("[stream.raw]\nchannels = [\"a\", \"b\"]\n");
    let daemon = site.with_metrics(&format!("listen = \"{port}\"")).run();
    sub.wait_state("online");
    let mut n = 0u64;
    rig::within(std::time::Duration::from_secs(25), "the channel is bad", || {
        tty.write(format!("{n},junk\x1b,1\n").as_bytes());
        n += 1;
        std::thread::sleep(std::time::Duration::from_millis(100));
        degraded(&sub) == ["channel a: most of its values are bad"]
    });
    let (event, _) = sub.wait_records("e/channel.bad", 1).remove(0);
    assert_eq!((&event["subject"], event["share"].as_f64()), (&"a".into(), Some(1.0)), "{event}");
    assert!(event["example"].as_str().is_some_and(|line| line.ends_with(",junk\\x1b,1")), "{event}");
    assert!(event["text"].as_str().is_some_and(|text| text.contains("bad:not_a_number in: ")), "{event}");
    assert_eq!(metric(port, "kentledge_channel_bad_share{source=\"s\",channel=\"a\"}").as_deref(), Some("1"));
    assert_eq!(metric(port, "kentledge_channel_bad_share{source=\"s\",channel=\"b\"}").as_deref(), Some("0"));
    rig::within(std::time::Duration::from_secs(25), "it is good again", || {
        tty.rows(n..n + 1, |i| format!("{i},1,1"));
        n += 1;
        std::thread::sleep(std::time::Duration::from_millis(100));
        degraded(&sub).is_empty()
    });
    assert_eq!(sub.wait_records("e/channel.good", 1)[0].0["subject"], "a");
    daemon.stop_well();
}

/// A sensor that never stops talking, beside one that says something ten times a second.
#[test]
fn source_that_floods_does_not_delay_another_one() {
    let (broker, mut good, mut flood) = (Mosquitto::start(), Tty::default(), Tty::default());
    let sub = Sub::new(broker.port);
    let names: Vec<String> = (0..40).map(|i| format!("x{i}")).collect();
    let channels = names.iter().map(|name| format!("[channel.{name}]\nsource = \"flood\"\ncolumn = \"x\"\n"));
    let text = format!(
        "[source.s]\npath = \"{}\"\ncolumns = [\"n\", \"a\"]\nseq = \"n\"\n[channel.a]\nsource = \"s\"\n\
         [stream.raw]\nchannels = [\"a\"]\n[source.flood]\npath = \"{}\"\ncolumns = [\"x\"]\n\
         {}[stream.flood]\nchannels = {names:?}\nmode = \"stats\"\ninterval_ms = 1000\n",
        good.path().display(),
        flood.path().display(),
        channels.collect::<String>()
    );
    let daemon = Site::new(broker.port).with(&text).run();
    sub.wait_state("online");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let end = stop.clone();
    let flooding = std::thread::spawn(move || {
        let rows = b"1\n".repeat(16 * 1024);
        while !end.load(std::sync::atomic::Ordering::Relaxed) {
            flood.write(&rows);
        }
        flood
    });
    let mut took = Vec::new();
    for n in 0..60u64 {
        let began = std::time::Instant::now();
        good.rows(n..n + 1, |i| format!("{i},{i}"));
        sub.wait_records("m/raw", n as usize + 1);
        took.push(began.elapsed());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let _flood = flooding.join().expect("the flood");
    took.sort();
    let rows = metric_rows(&sub);
    let (half, last) = (took[took.len() / 2], took[took.len() - 1]);
    rig::measured(&format!(
        "beside a flood of {rows} rows in a second: {} ms, {} ms at most",
        half.as_millis(),
        last.as_millis()
    ));
    assert!(last < std::time::Duration::from_secs(1), "{took:?}");
    daemon.stop_well();
}

/// The most rows that one interval of the flood had.
fn metric_rows(sub: &Sub) -> u64 {
    sub.records("m/flood")
        .iter()
        .filter_map(|(record, _)| record["v"]["x0"]["n"].as_u64().or(record["n"].as_u64()))
        .max()
        .unwrap_or(0)
}
