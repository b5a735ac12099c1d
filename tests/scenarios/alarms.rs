//! Alarms on channels: no model, no ONNX Runtime; records, outputs, the latch over a restart, replay, and what `check` rejects.

use std::time::Duration;

use rig::{
    Mosquitto, Operator, Site, Sub, Tty, daemon, eventually,
    gpio::{Guard, Lamp},
    operator::{end, time},
};
use serde_json::{Value, json};

const THREE: &str = "[alarm.hot]\nchannel = \"a\"\nabove = 80\nhysteresis = 5\nseverity = \"critical\"\nlatch = true\n\
                     [alarm.fast]\nchannel = \"b\"\nrate_above_per_s = 50\nover_s = 0.2\n\
                     [alarm.silent]\nchannel = \"a\"\nstale_s = 1.5\nseverity = \"info\"\n";

fn phases(sub: &Sub, alarm: &str) -> Vec<String> {
    let records = sub.records(&format!("a/{alarm}"));
    records.iter().map(|(record, _)| record["phase"].as_str().expect("phase").to_owned()).collect()
}

#[test]
fn three_alarms_on_channels_work_without_model_and_runtime_and_drive_a_line() {
    let (broker, mut tty, lamp) = (Mosquitto::start(), Tty::default(), Lamp::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let output = format!("[output.lamp]\nchip = \"{}\"\nline = 3\nalarms = [\"hot\"]\n", lamp.path.display());
    let site = Site::new(broker.port).with_sensor(&tty).with(&operator.table()).with(THREE).with(&output);
    // No ONNX Runtime can be found on this machine.
    let site = site.with_env("KENTLEDGE_ORT_LIB", "/nowhere/libonnxruntime.so").with_env("HOME", "/nowhere");
    let _guard = Guard(site.state());
    let daemon = site.run();
    sub.wait_state("online");
    lamp.wait(false, "the safe state from the start on");
    let mut n = 0;
    let mut give = |tty: &mut Tty, a: f64, b: f64| {
        tty.rows(n..n + 1, |i| format!("{i},{a},{b}"));
        n += 1;
    };
    give(&mut tty, 20.0, 0.0);
    give(&mut tty, 80.5, 0.0);
    lamp.wait(true, "the alarm turns it on");
    let (raised, retained) = sub.wait_records("a/hot", 1).remove(0);
    let shown =
        ["phase", "severity", "channel", "condition", "value", "level", "acknowledged"].map(|key| raised[key].clone());
    let expected =
        [json!("raised"), json!("critical"), json!("a"), json!("above"), json!(80.5), json!(80), json!(false)];
    assert!(shown == expected && !retained, "{raised}");

    // From the row to the line, and the latch holds it.
    give(&mut tty, 20.0, 0.0);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((phases(&sub, "hot"), lamp.is_on()), (vec!["raised".into()], Some(true)), "it is latched");

    // Its own episode and no other one.
    operator.order(&sub, "alarm.ack", "ack-1", &json!({"alarm": "hot", "id": "earlier"}));
    assert_eq!(end(&sub, "alarm.ack", "ack-1")["why"], "conflict");
    let plain = json!({"id": "ack-2", "expires_at": time(60), "args": {"alarm": "hot"}});
    operator.send("pump-1/dn/cmd/alarm.ack/ack-2", &plain.to_string());
    assert_eq!(end(&sub, "alarm.ack", "ack-2")["why"], "unsigned");
    for (id, alarm) in [("ack-3", "cold"), ("ack-4", "silent")] {
        operator.order(&sub, "alarm.ack", id, &json!({ "alarm": alarm }));
        assert_eq!(end(&sub, "alarm.ack", id)["why"], "invalid");
    }
    // It is latched over a restart too.
    daemon.stop_well();
    lamp.wait(false, "stopped is safe");
    let daemon = site.run();
    lamp.wait(true, "raised from the start on");
    sub.wait("the second start is online", |m| (m.iter().filter(|m| m.stream == "birth").count() >= 2).then_some(()));
    give(&mut tty, 20.0, 0.0);
    operator.order(&sub, "alarm.ack", "ack-5", &json!({"alarm": "hot", "id": raised["id"]}));
    assert_eq!(end(&sub, "alarm.ack", "ack-5")["state"], "success");
    lamp.wait(false, "acknowledged, and its condition has ended");
    let records = sub.wait_records("a/hot", 2);
    let (cleared, _) = records.last().expect("two");
    assert_eq!((&cleared["phase"], &cleared["acknowledged"]), (&json!("cleared"), &json!(true)));
    assert!(records.iter().all(|(record, _)| record["id"] == raised["id"]), "one episode");

    // The rate of another channel, and silence.
    for i in 0..12 {
        give(&mut tty, 20.0, f64::from(i) * 40.0);
        std::thread::sleep(Duration::from_millis(40));
    }
    sub.wait("the rate raises", |_| phases(&sub, "fast").contains(&"raised".into()).then_some(()));
    sub.wait("silence raises", |_| phases(&sub, "silent").last().filter(|phase| *phase == "raised").map(drop));
    give(&mut tty, 20.0, 440.0);
    sub.wait("a row ends both", |_| {
        let ended = |alarm| phases(&sub, alarm).last().is_some_and(|phase| phase == "cleared");
        (ended("fast") && ended("silent")).then_some(())
    });
    operator.plain("status", "status-1", &json!({}));
    let alarms = end(&sub, "status", "status-1")["result"]["alarms"].clone();
    let of = |name: &str| alarms.as_array().and_then(|all| all.iter().find(|one| one["name"] == name)).cloned();
    assert_eq!(of("hot").map(|one| one["state"].clone()), Some(json!("normal")), "{alarms}");
    assert!(!daemon.own_log().to_lowercase().contains("onnx"), "{}", daemon.own_log());
    daemon.stop_well();
}

#[test]
fn row_to_line_latency_of_a_channel_alarm_is_that_of_one_stage() {
    let (mut tty, lamp) = (Tty::default(), Lamp::default());
    let output = format!("[output.lamp]\nchip = \"{}\"\nline = 3\nalarms = [\"hot\"]\n", lamp.path.display());
    let site = Site::offline().with_sensor(&tty).with("[alarm.hot]\nchannel = \"a\"\nabove = 80\n").with(&output);
    let _guard = Guard(site.state());
    let daemon = site.run();
    lamp.wait(false, "the safe state from the start on");
    eventually("the port is open", || daemon.own_log().contains("serial port open").then_some(()));
    let mut took: Vec<Duration> = Vec::new();
    for (i, on) in [true, false].into_iter().cycle().take(100).enumerate() {
        std::thread::sleep(Duration::from_millis(5));
        let (row, began) = (i as u64, std::time::Instant::now());
        tty.rows(row..row + 1, |i| format!("{i},{},0", if on { 90 } else { 10 }));
        lamp.wait(on, "it follows the alarm");
        took.push(began.elapsed());
    }
    took.sort();
    rig::measured(&format!(
        "output of a channel alarm: p50 of 100 changes {:.2} ms, the longest {:.1} ms after the row was given",
        took[50].as_secs_f64() * 1e3,
        took[99].as_secs_f64() * 1e3
    ));
    assert!(took[50] < Duration::from_millis(200), "{took:?}");
    daemon.stop_well();
}

#[test]
fn channel_alarm_whose_values_are_bad_is_unknown_and_known_again() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty).with("[alarm.hot]\nchannel = \"a\"\nabove = 80\n");
    let daemon = site.run();
    sub.wait_state("online");
    tty.rows(0..10, |i| format!("{i},90,0"));
    sub.wait_records("a/hot", 1);
    let mut n = 10;
    let unknown = sub.wait_most(Duration::from_secs(40), "the alarm is not reported as current", |_| {
        tty.rows(n..n + 1, |i| format!("{i},nan,0"));
        n += 1;
        (phases(&sub, "hot") == ["raised", "unknown"]).then(|| sub.records("a/hot")[1].0.clone())
    });
    assert_eq!(unknown["reason"], "bad_values");
    tty.rows(n..n + 1, |i| format!("{i},10,0"));
    sub.wait_records("a/hot", 3);
    assert_eq!(phases(&sub, "hot"), ["raised", "unknown", "cleared"]);
    daemon.stop_well();
}

#[test]
fn alarm_that_is_not_raised_is_unknown_too_while_no_model_serves() {
    let broker = Mosquitto::start();
    let (sub, tty) = (Sub::new(broker.port), Tty::default());
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model();
    std::fs::write(site.dir.path().join("mean.onnx"), "no model").expect("write");
    let daemon = site.run();
    sub.wait_state("online");
    let (unknown, _) =
        sub.wait_most(Duration::from_secs(60), "the alarm is reported as unknown", |_| sub.records("a/high").pop());
    assert_eq!((&unknown["phase"], &unknown["reason"]), (&json!("unknown"), &json!("model_not_serving")));
    assert!(unknown["level"].is_null() && unknown["raised_seq"].is_null(), "{unknown}");
    let late = std::thread::scope(|s| s.spawn(|| Sub::new(broker.port)).join().expect("late subscriber"));
    late.wait("the broker keeps it", |m| m.iter().find(|m| m.stream == "a/high" && m.retain).map(drop));
    daemon.stop_well();
    std::fs::write(site.dir.path().join("mean.onnx"), rig::onnx::mean(&[1, 4, 2])).expect("write");
    let daemon = site.run();
    let mut tty = tty;
    tty.rows(0..10, |i| format!("{i},1,1"));
    sub.wait_records("a/high", 2);
    assert_eq!(phases(&sub, "high"), ["unknown", "cleared"]);
    daemon.stop_well();
}

#[test]
fn replay_shows_alarms_on_channels() {
    let dir = tempfile::TempDir::new().expect("folder");
    let (config, csv) = (dir.path().join("k.toml"), dir.path().join("t.csv"));
    let text = format!(
        "[device]\nstate_dir = \"{}\"\n[source.s]\npath = \"/dev/null\"\ncolumns = [\"temp\", \"n\"]\n[channel.temp]\n\
         [alarm.hot]\nchannel = \"temp\"\nabove = 80\nfor_s = 2\n[alarm.odd]\nchannel = \"temp\"\noutside = [0, 50]\n",
        dir.path().join("state").display()
    );
    std::fs::write(&config, text).expect("write");
    // One row a second.
    std::fs::write(&csv, "temp,n\n20,0\n81,1\n82,2\n83,3\n20,4\n-1,5\n20,6\n").expect("write");
    let (csv, config) = (csv.to_str().expect("path"), config.to_str().expect("path"));
    let play = || daemon::run(&["replay", "--csv", csv, "--every", "1", "--config", config]);
    let (first, second) = (play(), play());
    assert_eq!((first.code, &first.out), (Some(0), &second.out), "{}", first.err);
    let all: Vec<Value> = first.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |alarm: &str| -> Vec<(String, f64)> {
        let mine = all.iter().filter(|line| line["stream"] == format!("a/{alarm}"));
        mine.map(|line| (line["phase"].as_str().unwrap_or("").to_owned(), line["value"].as_f64().unwrap_or(0.0)))
            .collect()
    };
    let want =
        |list: &[(&str, f64)]| list.iter().map(|(phase, value)| ((*phase).to_owned(), *value)).collect::<Vec<_>>();
    assert_eq!(of("hot"), want(&[("raised", 83.0), ("cleared", 20.0)]));
    assert_eq!(of("odd"), want(&[("raised", 81.0), ("cleared", 20.0), ("raised", -1.0), ("cleared", 20.0)]));
}

#[test]
fn bad_alarms_are_rejected_with_file_line_key_and_the_nearest_right_spelling() {
    let dir = tempfile::TempDir::new().expect("folder");
    let file = dir.path().join("k.toml");
    let text = "\
[source.s]
path = \"/dev/ttyX\"
columns = [\"temp\"]
[channel.temp]
[alarm.a]
channel = \"tmp\"
above = 80
[alarm.b]
channel = \"temp\"
above = 80
below = 10
[alarm.c]
channel = \"temp\"
[alarm.d]
channel = \"temp\"
outside = [8, 2]
[alarm.e]
channel = \"temp\"
rate_above_per_s = 2
[alarm.f]
channel = \"temp\"
outside = [2, 8]
hysteresis = 3
";
    std::fs::write(&file, text).expect("write");
    let path = file.display().to_string();
    let done = daemon::run(&["check", "--config", &path]);
    assert_eq!(done.code, Some(78));
    for (line, key, why) in [
        (6, "alarm.a.channel", "did you mean `temp`?"),
        (11, "alarm.b.below", "an alarm has one condition"),
        (12, "alarm.c", "needs a condition"),
        (16, "alarm.d.outside", "did you mean [2, 8]?"),
        (17, "alarm.e.over_s", "is needed"),
        (23, "alarm.f.hysteresis", "never clear"),
    ] {
        let start = format!("{path}:{line}: {key}: ");
        assert!(done.err.lines().any(|l| l.starts_with(&start) && l.contains(why)), "{start}{why} in\n{}", done.err);
    }
}
