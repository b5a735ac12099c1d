//! The quality of a sensor's data: rates, constant values, repeats, noise, gaps; and which windows are made.

use rig::{Line, Mosquitto, Site, Sub, Tty, eventually};
use serde_json::Value;

fn quality(sub: &Sub, source: &str) -> Value {
    sub.records(&format!("q/{source}")).pop().map_or(Value::Null, |(record, _)| record)
}

#[test]
fn a_spike_a_stuck_value_a_repeat_and_a_step_back_have_their_names() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let text = format!(
        "[source.s]\npath = \"{}\"\ncolumns = [\"n\", \"t\", \"a\", \"b\"]\nseq = \"n\"\ntime = \"t\"\ntime_format = \"ms\"\n\
         gap_max_ms = 5000\n[channel.a]\nrate_max_per_s = 10\n[channel.b]\nstuck_ms = 3000\nstuck_band = 0.1\n\
         [stream.raw]\nchannels = [\"a\", \"b\"]\n",
        tty.path().display()
    );
    let daemon = Site::new(broker.port).with(&text).run();
    sub.wait_state("online");
    let rows = [
        "0,0,1,0",
        "1,1000,5,1",
        "2,2000,900,2", // a spike
        "3,3000,7,3",
        "3,3000,7,3", // a repeat
        "4,4000,8,4",
        "5,5000,8,4.05",
        "6,6000,8,4",
        "7,7000,8,4",  // stuck since 4000
        "8,6500,8,9",  // the clock steps back
        "9,20000,8,8", // a gap
        "7,21000,8,1", // an older number with another content
    ];
    for row in rows {
        tty.write(format!("{row}\n").as_bytes());
    }
    let records = sub.wait_records("m/raw", rows.len() - 1);
    assert_eq!(records.len(), rows.len() - 1, "the repeat is not used");
    let words: Vec<(u64, Value)> = records
        .iter()
        .filter(|(r, _)| !r["q"].is_null())
        .map(|(r, _)| (r["in_seq"][0].as_u64().expect("seq"), r["q"].clone()))
        .collect();
    let wanted = [(2, serde_json::json!({"a": "bad:rate"})), (7, serde_json::json!({"b": "bad:stuck"}))];
    assert_eq!(words, wanted);
    let seen = sub.wait("all of it", |_| Some(quality(&sub, "s")).filter(|q| q["reordered"] == 1));
    assert_eq!(seen["duplicates"], 1, "{seen}");
    assert_eq!(seen["backward"], 1, "{seen}");
    assert_eq!(seen["gaps"], 3, "{seen}: the step back, the gap, the older number");
    daemon.stop_well();
}

#[test]
fn what_is_held_is_held_for_its_rows_and_the_window_says_so() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty);
    std::fs::write(site.dir.path().join("mean.onnx"), rig::onnx::mean(&[1, 4, 2])).expect("model");
    let pipeline = "[pipeline.x]\nmodel = \"mean.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\non_bad = \"hold\"\nhold_rows = 2\n";
    let daemon = site.with(pipeline).run();
    sub.wait_state("online");
    let bad = [5, 6, 12, 13, 14];
    tty.rows(0..20, |i| if bad.contains(&i) { format!("{i},x,x") } else { format!("{i},{i},{i}") });
    // Every window but the four with the third bad row in a row.
    let got = sub.wait_records("p/x", 17 - 4);
    let by_last: Vec<(u64, f64)> = got
        .iter()
        .map(|(p, _)| (p["in_seq"][1].as_u64().expect("seq"), p["coverage"].as_f64().unwrap_or(1.0)))
        .collect();
    assert!(by_last.contains(&(6, 0.5)) && by_last.contains(&(10, 1.0)), "{by_last:?}");
    assert!((14..18).all(|last| by_last.iter().all(|(n, _)| *n != last)), "{by_last:?}");
    daemon.stop_well();
}

#[test]
fn a_wrong_baud_is_named_and_so_is_noise() {
    let (broker, line) = (Mosquitto::start(), Line::default());
    let sub = Sub::new(broker.port);
    let text = format!(
        "[source.s]\npath = \"{}\"\ncolumns = [\"n\", \"a\", \"b\"]\nseq = \"n\"\n[channel.a]\n[stream.raw]\nchannels = [\"a\"]\n",
        line.path().display()
    );
    let daemon = Site::new(broker.port).with(&text).run();
    sub.wait_state("online");
    let state = |word: &str| (quality(&sub, "s")["state"] == word).then_some(());
    // Bytes at another speed: nothing of it is text.
    let mut n = 0u64;
    let mut feed = |line: &Line, good: bool, bad: bool| {
        if bad {
            line.write(&[0xfe, 0x83, 0x0a, 0xf8, 0x9e, 0x0a]);
        }
        if good {
            line.write(format!("{n},1,2\n").as_bytes());
            n += 1;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    let mut until = |word: &str, good: bool, bad: bool| {
        rig::within(std::time::Duration::from_secs(30), word, || {
            feed(&line, good, bad);
            state(word).is_some()
        });
    };
    until("wrong_baud", false, true);
    until("noisy", true, true);
    until("ok", true, false);
    let seen = sub.records("q/s");
    assert!(seen.iter().any(|(q, _)| q["noise"].as_f64() == Some(1.0)), "{seen:?}");
    daemon.stop_well();
}

/// Third-party recordings: gaps of up to 247 s in shared/data/skab, one time stamp that goes back in nab.
#[test]
fn gaps_and_the_backward_step_of_real_recordings_are_found_and_named() {
    let (Some(skab), Some(nab)) = (rig::recordings("skab"), rig::recordings("nab")) else { return };
    let mut files = vec![(nab.join("realKnownCause/machine_temperature_system_failure.csv"), ',', 400)];
    for part in ["valve1", "other", "anomaly-free"] {
        let all = std::fs::read_dir(skab.join(part)).expect("folder").flatten();
        files.extend(all.map(|entry| (entry.path(), ';', 3)));
    }
    files.sort();
    let (mut found, mut gaps_all, mut back_all) = (Vec::new(), 0, 0);
    for (file, delimiter, longest_s) in files {
        let text = std::fs::read_to_string(&file).expect("recording");
        let mut lines = text.lines();
        let columns: Vec<&str> = lines.next().expect("head").split(delimiter).collect();
        // The recording's own time stamps, evaluated only by this test.
        let stamps: Vec<i64> = lines.filter_map(|line| seconds(line.split(delimiter).next()?)).collect();
        let gaps = stamps.windows(2).filter(|pair| pair[1] - pair[0] > longest_s).count();
        let back = stamps.windows(2).filter(|pair| pair[1] < pair[0]).count();
        let site = Site::offline().with(&format!(
            "[source.rig]\npath = \"/dev/null\"\ndelimiter = \"{delimiter}\"\ncolumns = {columns:?}\ntime = {:?}\n\
             time_format = \"civil\"\ngap_max_ms = {longest_s}000\n[channel.p]\ncolumn = {:?}\n",
            columns[0], columns[1]
        ));
        let config = site.config();
        let args = ["replay", "--csv", file.to_str().expect("path"), "--config", config.to_str().expect("path")];
        let done = rig::daemon::run(&args);
        assert_eq!(done.code, Some(0), "{done:?}");
        let seen = done.out.lines().rfind(|line| line.contains("\"stream\":\"q/rig\""));
        let seen: Value = serde_json::from_str(seen.expect("quality")).expect("JSON");
        let of = |key: &str| seen[key].as_u64().expect("a count") as usize;
        assert_eq!((of("gaps"), of("backward")), (gaps + back, back), "{file:?}");
        (gaps_all, back_all) = (gaps_all + gaps, back_all + back);
        if gaps + back > 0 {
            let most = stamps.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            let name = file.file_name().expect("name").display().to_string();
            found.push(format!("{name}: {gaps} gaps, the longest step {most} s, {back} back"));
        }
    }
    assert!(gaps_all > 0 && back_all == 1, "{found:?}");
    rig::measured(&format!("real recordings: {}", found.join("; ")));
}

/// `2020-03-09 10:14:33` in seconds.
fn seconds(text: &str) -> Option<i64> {
    let numbers: Vec<i64> = text.split(['-', ' ', ':']).filter_map(|n| n.parse().ok()).collect();
    let [year, month, day, hour, minute, second] = numbers.as_slice() else { return None };
    // Days of the civil calendar, as Howard Hinnant counts them.
    let (y, m) = if *month <= 2 { (year - 1, month + 9) } else { (*year, month - 3) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[test]
fn an_alarm_saves_its_tape_and_the_tape_plays_the_same_again() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with("[tapes]\nbefore_s = 5\nafter_s = 1\n");
    let site = site
        .without("severity = \"critical\"\n")
        .with("[alarm.low]\npipeline = \"x\"\nraise_above = 90.0\ntape = true\n");
    let daemon = site.run();
    sub.wait_state("online");
    eventually("a model serves", || daemon.own_log().contains("serving").then_some(()));
    tty.rows(0..40, |i| format!("{i},{i},{i}"));
    tty.rows(40..44, |i| format!("{i},99,99"));
    sub.wait_records("a/low", 1);
    tty.rows(44..50, |i| format!("{i},1,1"));
    let live = sub.wait_records("p/x", 47);
    let folder = site.state().join("tapes");
    let tape = eventually("the tape", || {
        std::fs::read_dir(&folder).ok()?.flatten().map(|e| e.path()).find(|p| p.extension() == Some("tape".as_ref()))
    });
    daemon.stop_well();
    let config = site.config();
    let play = || {
        let done =
            rig::daemon::run(&["replay", tape.to_str().expect("path"), "--config", config.to_str().expect("path")]);
        assert_eq!(done.code, Some(0), "{done:?}");
        done.out
    };
    let out = play();
    assert_eq!(out, play(), "to the byte");
    let of = |record: &Value| (record["in_seq"].clone(), record["score"].clone());
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let played: Vec<_> = lines.filter(|r| r["stream"] == "p/x").map(|r| of(&r)).collect();
    let made: Vec<_> = live.iter().map(|(r, _)| of(r)).collect();
    assert_eq!(played, made);
}

#[test]
fn a_hundred_cycles_of_the_plug_under_load_cost_nothing_that_stays() {
    let cycles = if rig::long() { 100 } else { 12 };
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = Site::new(broker.port).with_sensor(&tty).with("[stream.raw]\nchannels = [\"a\"]\n").run();
    sub.wait_state("online");
    let cpu_s = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        (fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime")) / 100.0
    };
    let (mut n, mut fds, mut rss, mut pulled_cpu, mut pulled_s) = (0, 0, 0, 0.0, 0.0);
    let mut back = std::time::Duration::ZERO;
    for cycle in 0..cycles {
        tty.rows(n..n + 500, |i| format!("{i},{i},0"));
        n += 500;
        sub.wait_records("m/raw", n as usize);
        if cycle == 2 {
            (fds, rss) = (daemon.fds(), daemon.rss_kib());
        }
        let (began, cpu) = (std::time::Instant::now(), cpu_s());
        tty.pull();
        eventually("the hang-up is noticed", || (daemon.log().matches("closed: ").count() > cycle).then_some(()));
        std::thread::sleep(std::time::Duration::from_millis(300));
        pulled_cpu += cpu_s() - cpu;
        pulled_s += began.elapsed().as_secs_f64();
        tty.plug_in();
        let began = std::time::Instant::now();
        eventually("it is back", || (daemon.log().matches("port open").count() > cycle + 1).then_some(()));
        back = back.max(began.elapsed());
    }
    let (fds_end, rss_end, load) = (daemon.fds(), daemon.rss_kib(), 100.0 * pulled_cpu / pulled_s);
    rig::measured(&format!(
        "{cycles} cycles of the plug, {n} rows: 0 lost; descriptors {fds} to {fds_end}, RSS {rss} to {rss_end} KiB, {load:.1} % of a core while pulled, back after {:.1} s at most",
        back.as_secs_f64()
    ));
    assert!(fds_end <= fds + 2 && rss_end < rss + 2048 && back < std::time::Duration::from_secs(5));
    daemon.stop_well();
}

#[test]
fn ports_tells_what_hangs_on_a_port_and_its_lines_are_a_configuration() {
    for (kind, wanted) in [
        ("csv", "lines of 3 values"),
        ("nmea", "NMEA 0183 at 115200 baud: MWV"),
        ("json", "JSON lines"),
        ("cobs", "frames by cobs"),
    ] {
        let line = Line::default();
        let _device = line.device(&["talk", kind, "PORT", "--rows", "2000", "--pause", "0.002"]);
        let path = line.path();
        let done = eventually("it speaks", || {
            let done = rig::daemon::run(&["ports", "--listen", "0.5", path.to_str().expect("path")]);
            (!done.out.contains("silent")).then_some(done)
        });
        assert!(done.code == Some(0) && done.out.contains(wanted), "{kind}: {done:?}");
        if kind == "cobs" {
            continue;
        }
        let lines: Vec<&str> = done.out.lines().filter_map(|line| line.strip_prefix("    ")).collect();
        let site = Site::offline().with(&lines.join("\n"));
        let checked = rig::daemon::run(&["check", "--config", site.config().to_str().expect("path")]);
        assert!(checked.code == Some(0) && checked.out.contains("1 sources"), "{kind}: {checked:?}");
    }
    let done = rig::daemon::run(&["ports", "--listen", "0.2", "/nowhere"]);
    assert!(done.out.contains("cannot be opened: no such file"), "{done:?}");
    let done = rig::daemon::run(&["ports", "--listen", "0"]);
    assert_eq!(done.code, Some(0), "{done:?}");
}
