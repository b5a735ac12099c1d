//! The whole road: sensor → windows → model → alarms → broker.

use rig::{Mosquitto, Site, Sub, Tty};

/// Rows of value 1 in both channels but for `hot`, where they are 20.
fn row(hot: std::ops::Range<u64>) -> impl Fn(u64) -> String {
    move |i| {
        if hot.contains(&i) { format!("{i},20,20") } else { format!("{i},1,1") }
    }
}

#[test]
fn a_sensor_stream_becomes_predictions_and_alarms_on_a_broker() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = Site::new(broker.port).with_sensor(&tty).with_mean_model();
    let daemon = daemon.run();
    sub.wait_state("online");
    tty.rows(0..100, row(40..60));

    let predictions = sub.wait_records("p/x", 97);
    for (i, (p, hist)) in predictions.iter().enumerate() {
        let last = i as u64 + 3;
        assert_eq!(p["in_seq"], serde_json::json!([last - 3, last]), "windows are contiguous and in order");
        let hot = (last - 3..=last).filter(|r| (40..60).contains(r)).count() as f64;
        assert!((p["score"].as_f64().expect("score") - (1.0 + 19.0 * hot / 4.0)).abs() < 1e-4, "{p}");
        assert!(!hist, "the broker was there all the time");
    }
    let seqs: Vec<u64> = predictions.iter().map(|(p, _)| p["seq"].as_u64().expect("seq")).collect();
    assert!(seqs.windows(2).all(|w| w[1] == w[0] + 1), "{seqs:?}");

    let alarms = sub.wait_records("a/high", 2);
    let phases: Vec<_> = alarms.iter().map(|(a, _)| (a["phase"].clone(), a["in_seq"][1].clone())).collect();
    // 10 is passed with the second hot row in the window, and half of it is left with the last one that goes.
    assert_eq!(phases, [("raised".into(), 41.into()), ("cleared".into(), 63.into())]);
    assert_eq!(alarms[0].0["id"], alarms[1].0["id"]);
    assert_eq!(alarms[0].0["severity"], "critical");
    daemon.stop_well();
    sub.wait_state("offline");
}

#[test]
fn a_raised_alarm_is_retained_until_it_is_cleared_even_over_a_restart() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model();
    let first = Sub::new(broker.port);
    let daemon = site.run();
    first.wait_state("online");
    tty.rows(0..10, row(5..10));
    first.wait_records("a/high", 1);
    daemon.stop_well();

    let late = std::thread::scope(|s| s.spawn(|| Sub::new(broker.port)).join().expect("late subscriber"));
    let retained = late.wait("the retained alarm", |m| m.iter().find(|m| m.stream == "a/high").cloned());
    assert!(retained.retain && retained.payload["data"][0]["phase"] == "raised");

    let daemon = site.run();
    late.wait_state("online");
    tty.rows(10..20, row(0..0));
    let cleared = late.wait_records("a/high", 2)[1].0.clone();
    assert_eq!((&cleared["phase"], &cleared["id"]), (&"cleared".into(), &retained.payload["data"][0]["id"]));
    late.wait("the retained alarm removed", |m| m.iter().find(|m| m.stream == "a/high" && m.removed).map(|_| ()));
    daemon.stop_well();
    let after = std::thread::scope(|s| s.spawn(|| Sub::new(broker.port)).join().expect("last subscriber"));
    after.wait_state("offline");
    assert!(after.messages().iter().all(|m| m.stream != "a/high"), "nothing is retained after it was cleared");
}

#[test]
fn several_sensors_meet_on_a_time_grid() {
    let (broker, mut one, mut two) = (Mosquitto::start(), Tty::default(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port);
    std::fs::write(site.dir.path().join("mean.onnx"), rig::onnx::mean(&[1, 5, 2])).expect("model");
    let source = |name: &str, tty: &Tty| {
        let path = tty.path();
        format!(
            "[source.{name}]\npath = \"{}\"\nformat = \"json\"\ntime = \"t\"\ntime_format = \"ms\"\n\
             [channel.{name}]\nsource = \"{name}\"\ncolumn = \"v\"\n",
            path.display()
        )
    };
    let daemon = site
        .with(&source("fast", &one))
        .with(&source("slow", &two))
        .with("[pipeline.g]\nmodel = \"mean.onnx\"\nchannels = [\"fast\", \"slow\"]\nwindow_steps = 5\nhop_steps = 5\nstep_ms = 100\nlate_ms = 300\n")
        .with("[stream.fast]\nchannels = [\"fast\"]\n[stream.slow]\nchannels = [\"slow\"]\n")
        .run();
    sub.wait_state("online");
    // 50 Hz and 10 Hz by the sensors' own clocks, written in any order within the lateness that is allowed.
    for cell in 0..40u64 {
        two.write(format!("{{\"t\":{},\"v\":4}}\n", cell * 100 + 7).as_bytes());
        (0..5).for_each(|i| one.write(format!("{{\"t\":{},\"v\":{i}}}\n", cell * 100 + i * 20).as_bytes()));
        // Two lines are read independently: neither may run ahead of the other by more than is allowed.
        sub.wait_records("m/slow", cell as usize + 1);
        sub.wait_records("m/fast", (cell as usize + 1) * 5);
    }
    let predictions = sub.wait_records("p/g", 6);
    for (p, _) in &predictions {
        // The last sample of each cell counts: 4 from both.
        assert_eq!(p["score"], 4.0, "{p}");
    }
    daemon.stop_well();
}

#[test]
fn memory_without_a_model_stays_small() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = Site::new(broker.port).with_sensor(&tty).with("[stream.raw]\nchannels = [\"a\"]\n").run();
    let field = |file: &str, name: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", daemon.pid())).expect(file);
        let kib =
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok());
        kib.unwrap_or_else(|| panic!("{name} {text}"))
    };
    // The pages of the program that only the start needed are given back soon after it: else these never become fewer.
    let mut most = 0;
    let program = rig::eventually("pages of the program are given back", || {
        let now = field("status", "RssFile:");
        most = most.max(now);
        Some(now).filter(|now| *now < most * 9 / 10)
    });
    sub.wait_records("h", 3);
    let (pss, own) = (field("smaps_rollup", "Pss:"), field("smaps_rollup", "Pss_Anon:"));
    eprintln!(
        "MEASURED: the daemon, idle, without a model: PSS {pss} KiB, of it {own} KiB heap, stacks and relocated data; pages of files \
         {program} KiB, {most} KiB at most"
    );
    // The rest is pages of the program itself: how many, the profile decides, and daemons beside this one share them.
    assert!(own < 4 * 1024, "{own} KiB");
    daemon.stop_well();
}
