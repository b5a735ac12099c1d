//! Windows that are kept, and pulls: the example client puts a blob together. Kills while they are written: `labels`.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use rig::{Mosquitto, Operator, Site, Sub, Tty, eventually, operator, within};
use serde_json::{Value, json};

#[test]
fn example_client_puts_a_pull_together_over_an_outage_and_a_restart() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let samples = "[samples]\nmax_mib = 8\nnormal_per_day = 0\naround_windows = 8\npull_kib_s = 8\n";
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with(samples).with(&operator.table());
    let mut daemon = site.run();
    sub.wait_event("model.serving", "mean");
    tty.rows(0..40, |i| format!("{i},{},0", i as f64 * 0.3));
    tty.rows(40..80, |i| format!("{i},{},0", 100 + i));
    let raised = sub.wait_records("a/high", 1)[0].0.clone();
    operator.order(&sub, "feedback", "f-1", &json!({"alarm": "high", "label": true, "by": "ana", "note": "bearing"}));
    let end = operator::end(&sub, "feedback", "f-1");
    assert_eq!((&end["state"], &end["result"]["id"]), (&json!("success"), &raised["id"]), "{end}");
    assert_eq!(end["result"]["lineage"]["model"], "mean@0");
    operator.order(&sub, "feedback", "f-2", &json!({"alarm": "high", "id": "b-0", "label": true}));
    let end = operator::end(&sub, "feedback", "f-2");
    assert!(
        end["why"] == "invalid" && end["text"].as_str().is_some_and(|text| text.contains("episode `b-0`")),
        "{end}"
    );
    operator.order(&sub, "tape.pull", "t-1", &json!({}));
    assert_eq!(operator::end(&sub, "tape.pull", "t-1")["why"], "invalid", "no alarm saves one");
    eventually("all of them are kept", || {
        let seen = sub.records("h");
        seen.iter().any(|(health, _)| health["samples"]["windows"] == 17).then_some(())
    });

    let out = site.dir.path().join("pump.kls");
    let mut python = Command::new("python3");
    python.arg(rig::root().join("tests/client/kentledge_pull.py")).env("PYTHONPATH", rig::python());
    python.args(["--host", "127.0.0.1", "--port", &broker.port.to_string(), "--to", "plant/pump-1", "--issuer", "ops"]);
    python.arg("--secret").arg(operator.secret()).arg("--out").arg(&out).args(["--id", "pull-1", "samples.pull", "{}"]);
    let client = python.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3");
    let chunks = || sub.messages().iter().filter(|m| m.stream.starts_with("blob/")).count();
    within(rig::SOON, "the first chunk", || chunks() > 0);
    broker.stop();
    std::thread::sleep(Duration::from_millis(200));
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    broker.up();
    let daemon = site.run();
    let done = client.wait_with_output().expect("the client");
    let (text, why) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.status.code(), Some(0), "{text}{why}");
    let heads: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let windows: Vec<&Value> = heads.iter().filter(|head| head["kind"] == "window").collect();
    let label: Vec<&Value> = heads.iter().filter(|head| head["kind"] == "label").collect();
    assert_eq!((windows.len(), label.len()), (17, 1), "{text}");
    let at = |word: &str| windows.iter().filter(|head| head["at"] == word).collect::<Vec<_>>();
    assert_eq!((at("before").len(), at("raised").len(), at("after").len()), (8, 1, 8));
    let raising = at("raised")[0];
    assert_eq!((&raising["in_seq"], &raising["alarms"][0]["id"]), (&raised["raised_seq"], &raised["id"]));
    assert_eq!(
        (&label[0]["wins"][0], &label[0]["by"], &label[0]["id"]),
        (&raising["win"], &json!("ana"), &raised["id"])
    );
    assert_eq!(raising["lineage"]["model"], "mean@0");
    daemon.stop_well();
}
