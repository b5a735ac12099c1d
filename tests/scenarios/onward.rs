//! What other programs make of a device's messages: databases by the example consumer, and Home Assistant.

use std::{collections::BTreeMap, fs, process::Command};

use rig::{Done, Mosquitto, Site, Sub, Tty, daemon, eventually};
use serde_json::{Value, json};

#[test]
fn killed_consumers_store_every_record_once_in_each_database() {
    let mut script = Command::new("timeout");
    script.args(["120", "python3"]).arg(rig::root().join("tests/onward/databases.py")).arg(daemon::binary());
    let rows = if rig::long() { "20000" } else { "800" };
    let done = Done::from(script.args(["--rows", rows]).output().expect("python3"));
    passed(&done);
}

/// What is not installed here is named; what is measured too.
fn passed(done: &Done) {
    assert_eq!(done.code, Some(0), "{}\n{}", done.out, done.err);
    done.err.lines().filter_map(|line| line.strip_prefix("SKIPPED: ")).for_each(rig::skipped);
    done.out.lines().filter_map(|line| line.strip_prefix("MEASURED: ")).for_each(rig::measured);
}

/// What the broker keeps below `homeassistant/`, by topic: as a client sees it that connects now.
fn kept(broker: &Mosquitto) -> BTreeMap<String, String> {
    let mut sub = Command::new("mosquitto_sub");
    sub.args(["-h", "127.0.0.1", "-p", &broker.port.to_string(), "-t", "homeassistant/#", "-F", "%t %p", "-W", "1"]);
    let out = String::from_utf8(sub.output().expect("mosquitto_sub").stdout).expect("text");
    out.lines().filter_map(|line| line.split_once(' ')).map(|(t, p)| (t.to_owned(), p.to_owned())).collect()
}

#[test]
fn home_assistant_is_told_of_each_entity_and_of_alarms_and_all_is_removed_when_it_is_switched_off() {
    const ON: &str = "[integrations]\nhomeassistant = true\n";
    let mut tty = Tty::default();
    let broker = Mosquitto::start();
    let sub = Sub::new(broker.port);
    let site =
        Site::new(broker.port).with_sensor(&tty).with_mean_model().with("[stream.raw]\nchannels = [\"a\", \"b\"]\n");
    let daemon = site.clone().with(ON).run();
    sub.wait_event("model.serving", "mean");
    let node = "kl5-plant-pump-1";
    let state = format!("homeassistant/binary_sensor/{node}/a-high/state");
    let first = eventually("all is kept", || {
        let kept = kept(&broker);
        (kept.len() == 10 && kept.get(&state).is_some_and(|word| word == "OFF")).then_some(kept)
    });
    tty.rows(0..8, |i| format!("{i},5000,5000"));
    eventually("the alarm is on", || (kept(&broker)[&state] == "ON").then_some(()));
    tty.rows(8..16, |i| format!("{i},1,1"));
    eventually("and off again", || (kept(&broker)[&state] == "OFF").then_some(()));
    let mut all: Vec<Value> =
        first.iter().map(|(topic, payload)| json!({"topic": topic, "payload": payload, "discovery": true})).collect();
    sub.wait("health", |messages| messages.iter().any(|m| m.stream == "h").then_some(()));
    let of = |m: &std::sync::Arc<rig::Message>| {
        let payload = if m.removed { String::new() } else { m.payload.to_string() };
        json!({"topic": format!("kl/plant/pump-1/up/{}", m.stream), "payload": payload})
    };
    all.extend(sub.messages().iter().map(of));
    // Home Assistant's own schemas and templates, where it is installed.
    let file = site.dir.path().join("messages");
    fs::write(&file, all.iter().map(|one| format!("{one}\n")).collect::<String>()).expect("write");
    let script = rig::root().join("tests/onward/check_homeassistant.py");
    passed(&Done::from(Command::new("python3").arg(script).arg(&file).output().expect("python3")));
    daemon.stop_well();
    let daemon = site.run();
    eventually("nothing is kept", || kept(&broker).is_empty().then_some(()));
    daemon.stop_well();
}
