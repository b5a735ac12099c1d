//! What people script against: commands, exit codes, the form of problems.

use rig::{Mosquitto, Site, Sub, Tty, daemon};
use serde_json::{Value, json};

fn check(text: &str) -> (rig::Done, String) {
    let dir = tempfile::TempDir::new().expect("folder");
    let file = dir.path().join("k.toml");
    std::fs::write(&file, text).expect("write");
    let path = file.display().to_string();
    let done = daemon::run(&["check", "--config", &path]);
    (done, path)
}

#[test]
fn all_problems_of_a_configuration_are_told_at_once_with_file_line_key_and_why() {
    let text = "\
[device]
site = \"Plant 1\"
id = \"pump-1\"
sate_dir = \"/tmp/x\"

[mqtt]
url = \"mqtt://broker.example:1883\"
ca_file = \"/nowhere/ca.pem\"
keepalive_s = 5

[source.one]
path = \"/dev/ttyX\"
columns = [\"a\"]
stale_s = 3
baud = \"fast\"

[source.two]
path = \"/dev/ttyX\"
columns = [\"a\", \"a\"]
seq = \"n\"

[channel.a]
source = \"three\"
min = 5
max = 1

[stream.s]
channels = [\"b\"]
mode = \"stats\"

[pipeline.p]
model = \"missing.onnx\"
channels = [\"a\"]
window_steps = 0

[alarm.x]
pipeline = \"q\"

[surprise]
";
    let (done, path) = check(text);
    assert_eq!(done.code, Some(78));
    let want = [
        (2, "device.site", "no topic segment"),
        (4, "device.sate_dir", "did you mean `state_dir`?"),
        (7, "mqtt.url", "plain text is allowed to this machine only"),
        (8, "mqtt.ca_file", "no such file"),
        (9, "mqtt.keepalive_s", "did you mean `keep_alive_s`?"),
        (14, "source.one.stale_s", "the unit is part of the name: `stale_ms`"),
        (15, "source.one.baud", "must be an integer, not text"),
        (19, "source.two.columns", "`a` stands twice"),
        (20, "source.two.seq", "`n` is not in `columns`"),
        (23, "channel.a.source", "no source is called `three`"),
        (24, "channel.a.min", "5 is above `max` 1"),
        (27, "stream.s.interval_ms", "is needed with `mode = \"stats\"`"),
        (28, "stream.s.channels", "no channel is called `b`"),
        (32, "pipeline.p.model", "`models.allow_unsigned = true`"),
        (32, "pipeline.p.model", "no such file"),
        (34, "pipeline.p.window_steps", "0 is not within 1"),
        (37, "alarm.x.pipeline", "no pipeline is called `q`"),
        (39, "surprise", "unknown key"),
    ];
    for (line, key, why) in want {
        let start = format!("{path}:{line}: {key}: ");
        assert!(
            done.err.lines().any(|l| l.starts_with(&start) && l.contains(why)),
            "missing {start}{why} in\n{}",
            done.err
        );
    }
    assert!(done.err.contains("`one` and `two` read the same port /dev/ttyX"), "{}", done.err);
}

#[test]
fn broken_toml_and_missing_files_are_configuration_problems_too() {
    let (done, path) = check("[device\nsite = 1");
    assert_eq!(done.code, Some(78));
    assert!(done.err.starts_with(&format!("{path}:1: toml: ")), "{}", done.err);
    let done = daemon::run(&["run", "--config", "/nowhere/kentledge.toml"]);
    assert_eq!(done.code, Some(78));
    assert!(done.err.contains("/nowhere/kentledge.toml:0: file: read: "), "{}", done.err);
}

#[test]
fn a_valid_configuration_is_described() {
    let (done, _) = check("[device]\nsite = \"a\"\nid = \"b\"\n");
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
    assert!(done.out.starts_with("ok: 0 sources"), "{}", done.out);
    assert!(done.out.contains("about") && done.out.contains("mqtt: no broker is configured"), "{}", done.out);
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    assert_eq!(daemon::run(&["frobnicate"]).code, Some(2));
    assert_eq!(daemon::run(&["replay"]).code, Some(2));
    assert_eq!(daemon::run(&["replay", "/nowhere.tape", "--config", "/nowhere.toml"]).code, Some(78));
    let done = daemon::run(&["replay", "--csv", "/nowhere.csv"]);
    assert_eq!(done.code, Some(1));
    assert_eq!(done.err, "kentledge: read /nowhere.csv: No such file or directory (os error 2)\n");
    assert_eq!(daemon::run(&["--version"]).code, Some(0));
}

#[test]
fn a_state_directory_serves_one_daemon() {
    let tty = Tty::default();
    let site = Site::offline().with_sensor(&tty);
    let first = site.run();
    rig::eventually("the first runs", || first.log().contains("serial port open").then_some(()));
    let mut second = site.run();
    assert_eq!(second.wait(), Some(1));
    assert!(second.log().contains("another kentledge uses it"), "{}", second.log());
    first.stop_well();
}

#[test]
fn topics_and_retained_messages_are_those_of_the_contract() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon =
        Site::new(broker.port).with_sensor(&tty).with_mean_model().with("[stream.raw]\nchannels = [\"a\"]\n").run();
    sub.wait_state("online");
    sub.wait_records("h", 1);
    // Someone who comes later sees what is retained, and only that.
    let late = std::thread::scope(|s| s.spawn(|| Sub::new(broker.port)).join().expect("late"));
    late.wait_state("online");
    let retained = late.wait("what is retained", |m| {
        let mut kept: Vec<_> = m.iter().filter(|m| m.retain).map(|m| m.stream.clone()).collect();
        kept.sort();
        (kept.len() >= 5).then_some(kept)
    });
    assert_eq!(retained, ["birth", "meta/p/x", "meta/raw", "reported", "state"]);
    let birth = late.messages().into_iter().find(|m| m.stream == "birth").expect("birth").payload.clone();
    assert_eq!(birth["device"], "plant/pump-1");
    let model = &birth["models"][0];
    let named = ["pipeline", "model", "slot", "unsigned"].map(|key| model[key].clone());
    assert_eq!(named, [json!("x"), json!("mean@0"), json!("factory"), json!(true)]);
    assert_eq!(birth["streams"], json!(["m/raw", "p/x"]));
    // A daemon that vanishes is reported by its last will.
    daemon.kill();
    sub.wait_state("offline");
}

#[test]
fn the_schemas_of_commands_and_the_daemon_agree_on_what_is_well_formed() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), rig::Operator::new(broker.port, "ops"));
    let daemon = Site::new(broker.port).with(&operator.table()).run();
    sub.wait_state("online");
    let birth = sub.wait("birth", |m| m.iter().find(|m| m.stream == "birth").map(|m| m.payload.clone()));
    let seen: Vec<_> = birth["commands"].as_array().expect("commands").iter().filter_map(Value::as_str).collect();
    let mut schemas: Vec<_> = rig::schema::commands();
    schemas.sort_unstable();
    let mut types: Vec<_> = seen.iter().map(|kind| (*kind).to_owned()).collect();
    types.sort_unstable();
    assert_eq!(types, schemas);
    let cases = [
        ("ping", json!({}), true),
        ("ping", json!({"x": 1}), false),
        ("config.get", json!({"layer": "remote"}), true),
        ("config.get", json!({"layer": "top"}), false),
        ("config.set", json!({}), false),
        ("config.set", json!({"toml": 1}), false),
        ("config.set", json!({"toml": "x =", "confirm_s": 10}), true),
        ("config.set", json!({"toml": "", "confirm_s": 9}), false),
        ("config.set", json!({"toml": "#".repeat(49_153)}), false),
        ("model.calibrate", json!({"pipeline": "x"}), true),
        ("model.calibrate", json!({}), false),
        ("alarm.ack", json!({"alarm": "hot"}), true),
        ("alarm.ack", json!({"alarm": "hot", "id": "b-1"}), true),
        ("alarm.ack", json!({"id": "b-1"}), false),
        ("alarm.ack", json!({"alarm": "hot", "force": true}), false),
        ("feedback", json!({"alarm": "hot", "id": "b-1", "label": true, "by": "ana", "note": "a door"}), true),
        ("feedback", json!({"window": format!("sha256:{}", "a".repeat(64)), "label": "wear"}), true),
        ("feedback", json!({"window": "a".repeat(64), "label": true}), false),
        ("feedback", json!({"alarm": "hot", "window": format!("sha256:{}", "a".repeat(64)), "label": true}), false),
        ("feedback", json!({"alarm": "hot", "label": 1}), false),
        ("feedback", json!({"label": true}), false),
        ("samples.pull", json!({"class": "alarm", "labelled": true, "kib_s": 1, "max_kib": 1}), true),
        ("samples.pull", json!({"class": "all"}), false),
        ("samples.pull", json!({"kib_s": 0}), false),
        ("tape.pull", json!({"tape": "x.tape"}), true),
        ("tape.pull", json!({"file": "x.tape"}), false),
        ("log.pull", json!({"lines": 1, "priority": 0, "since": "2026-01-01T00:00:00Z"}), true),
        ("log.pull", json!({"lines": 0}), false),
        ("log.pull", json!({"priority": 8}), false),
        ("log.pull", json!({"unit": "a b"}), false),
        ("audit.pull", json!({}), true),
        ("audit.pull", json!({"from": 7}), true),
        ("audit.pull", json!({"from": -1}), false),
        ("erase", json!({"confirm": "x"}), true),
        ("erase", json!({}), false),
        ("restart", json!({"now": true}), false),
        ("reboot", json!({"force": 1}), false),
        ("os.install", json!({"sha256": "a".repeat(64), "size": 1, "file": "/x"}), true),
        ("os.install", json!({"sha256": "a".repeat(64), "size": 1, "file": "x"}), false),
        ("os.install", json!({"sha256": "a".repeat(64), "size": 1, "url": "http://x"}), false),
        ("os.install", json!({"sha256": "a".repeat(64), "size": 1}), false),
        ("os.install", json!({"sha256": "a".repeat(64), "size": 1, "file": "/x", "url": "https://x"}), false),
        ("os.install", json!({"sha256": "a".repeat(64), "size": 448 * 1024 * 1024 + 1, "file": "/x"}), false),
    ];
    for (i, (kind, args, well)) in cases.iter().enumerate() {
        assert_eq!(rig::schema::is_command(kind, args), *well, "the schema of {kind} on {args}");
        let id = format!("c{i}");
        operator.order(&sub, kind, &id, args);
        let end = rig::operator::end(&sub, kind, &id);
        assert_eq!(end["why"] != "malformed", *well, "{kind} {args}: {end}");
    }
    let sent: Value = serde_json::from_str(&operator.command("ping", "x", "n", &json!({}))).expect("JSON");
    assert!(rig::schema::fits("dn.cmd", &sent));
    let inner = serde_json::from_str(sent["signed"].as_str().expect("inner")).expect("JSON");
    assert!(rig::schema::fits("dn.inner", &inner) && rig::schema::fits("dn.cmd", &json!({"id": "a"})));
    assert!(!rig::schema::fits("dn.cmd", &json!({"id": "A"})));
    daemon.stop_well();
}
