//! What the broker keeps of a device is so: nothing that is not configured any more, no alarm that nothing looks at.

use std::fs;

use rig::{Message, Mosquitto, Operator, Site, Sub, Tty, eventually, operator::end};
use serde_json::json;

const STREAMS: &str = "[stream.one]\nchannels = [\"a\"]\n";
const FAR: &str = "[alarm.far]\npipeline = \"x\"\n[stream.two]\nchannels = [\"b\"]\n";
const HIGH: &str = "[alarm.high]\npipeline = \"x\"\nclear_factor = 0.5\nseverity = \"critical\"\n";

/// What a client that comes now gets of alarms and descriptions, by stream.
fn retained(port: u16) -> Vec<String> {
    let late = std::thread::scope(|s| s.spawn(|| Sub::new(port)).join().expect("late subscriber"));
    late.wait_state("online");
    // What the broker keeps comes all at once, in no order.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let kept = |m: &&std::sync::Arc<Message>| {
        m.retain && !m.removed && (m.stream.starts_with("a/") || m.stream.starts_with("meta/"))
    };
    let mut kept: Vec<String> = late.messages().iter().filter(kept).map(|m| m.stream.clone()).collect();
    kept.sort();
    kept
}

fn phases(sub: &Sub, alarm: &str) -> Vec<String> {
    let records = sub.records(&format!("a/{alarm}"));
    records.iter().map(|(record, _)| record["phase"].as_str().expect("phase").to_owned()).collect()
}

#[test]
fn alarm_and_stream_not_configured_any_more_are_removed_at_the_broker_after_a_reload_and_at_start() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = Site::new(broker.port).with_sensor(&tty).with(&operator.table()).with_mean_model().with(STREAMS);
    let daemon = site.run();
    sub.wait_state("online");
    operator.order(&sub, "config.set", "c-1", &json!({"toml": FAR}));
    assert_eq!(end(&sub, "config.set", "c-1")["state"], "success");
    tty.rows(0..10, |i| format!("{i},50,50"));
    sub.wait_records("a/high", 1);
    sub.wait_records("a/far", 1);
    assert_eq!(retained(broker.port), ["a/far", "a/high", "meta/one", "meta/p/x", "meta/two"]);

    // A reload: what was set remotely is taken away.
    operator.order(&sub, "config.set", "c-2", &json!({"toml": ""}));
    assert_eq!(end(&sub, "config.set", "c-2")["state"], "success");
    eventually("alarm `far` and stream `two` are removed at the broker", || {
        (retained(broker.port) == ["a/high", "meta/one", "meta/p/x"]).then_some(())
    });
    sub.wait_records("a/far", 2);
    assert_eq!(phases(&sub, "far"), ["raised", "removed"]);
    let records = sub.records("a/far");
    assert_eq!((&records[0].0["id"], &records[1].0["reason"]), (&records[1].0["id"], &json!("not_configured")));
    eventually("it is forgotten when the broker has removed it", || {
        (!site.state().join("alarms/far").exists()).then_some(())
    });
    daemon.stop_well();

    // A start: the configuration changed while the daemon was stopped.
    let site = site.without(HIGH).without(STREAMS);
    let daemon = site.run();
    eventually("alarm `high` and stream `one` are removed at the broker", || {
        (retained(broker.port) == ["meta/p/x"]).then_some(())
    });
    sub.wait_records("a/high", 2);
    assert_eq!(phases(&sub, "high"), ["raised", "removed"]);
    eventually("it is forgotten", || (!site.state().join("alarms/high").exists()).then_some(()));
    daemon.stop_well();
    let known = sub.messages().len();
    let daemon = site.run();
    sub.wait("it is online again", |m| m[known..].iter().any(|m| m.stream == "birth").then_some(()));
    assert_eq!((phases(&sub, "high").len(), phases(&sub, "far").len()), (2, 2), "each is reported once");
    daemon.stop_well();
}

#[test]
fn raised_alarm_whose_model_is_gone_becomes_unknown_and_goes_on_when_it_serves_again() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model();
    let daemon = site.run();
    sub.wait_state("online");
    tty.rows(0..10, |i| format!("{i},50,50"));
    sub.wait_records("a/high", 1);
    daemon.stop_well();
    let (model, good) =
        (site.dir.path().join("mean.onnx"), fs::read(site.dir.path().join("mean.onnx")).expect("model"));
    fs::write(&model, "no model").expect("write");
    let daemon = site.run();
    let most = std::time::Duration::from_secs(60);
    let unknown = sub.wait_most(most, "the alarm is not reported as current", |_| {
        (phases(&sub, "high") == ["raised", "unknown"]).then(|| sub.records("a/high")[1].0.clone())
    });
    assert_eq!((&unknown["reason"], &unknown["severity"]), (&json!("model_not_serving"), &json!("critical")));
    let late = std::thread::scope(|s| s.spawn(|| Sub::new(broker.port)).join().expect("late subscriber"));
    late.wait("what the broker keeps says so", |m| {
        m.iter().find(|m| m.stream == "a/high" && m.retain && m.payload["data"][0]["phase"] == "unknown").map(|_| ())
    });
    daemon.stop_well();
    fs::write(&model, good).expect("write");
    let daemon = site.run();
    tty.rows(10..20, |i| format!("{i},50,50"));
    sub.wait_records("a/high", 3);
    tty.rows(20..30, |i| format!("{i},0,0"));
    let records = sub.wait_records("a/high", 4);
    assert_eq!(phases(&sub, "high"), ["raised", "unknown", "raised", "cleared"]);
    assert!(records.iter().all(|(record, _)| record["id"] == records[0].0["id"]), "one episode");
    daemon.stop_well();
}

#[test]
fn raised_alarm_whose_model_learns_anew_is_unknown_until_there_is_a_score_again() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = Site::new(broker.port).with(&operator.table()).with(&format!(
        "[source.s]\npath = \"{}\"\ncolumns = [\"n\", \"x\", \"y\", \"z\"]\nseq = \"n\"\n\
         [channel.accelerometer1rms]\ncolumn = \"x\"\n[channel.accelerometer2rms]\ncolumn = \"y\"\n[channel.volume_flow_raterms]\ncolumn = \"z\"\n\
         [pipeline.p]\nmodel = \"{}\"\n[alarm.odd]\npipeline = \"p\"\n",
        tty.path().display(),
        rig::root().join("models/pump-anomaly").display()
    ));
    let row = |i: u64| format!("{i},{},{},{}", i * 7919 % 13, i * 104_729 % 17, i * 1_299_709 % 19);
    let daemon = site.run();
    sub.wait_state("online");
    tty.rows(0..420, row);
    sub.wait_event("model.calibrated", "380 windows");
    tty.rows(420..440, |i| format!("{i},900,900,900"));
    sub.wait_records("a/odd", 1);
    operator.order(&sub, "model.calibrate", "c-1", &json!({"pipeline": "p"}));
    assert_eq!(end(&sub, "model.calibrate", "c-1")["state"], "success");
    tty.rows(440..450, row);
    let records = sub.wait_records("a/odd", 2);
    assert_eq!(
        (phases(&sub, "odd"), &records[1].0["reason"]),
        (vec!["raised".into(), "unknown".into()], &json!("learning"))
    );
    tty.rows(450..900, row);
    sub.wait_records("a/odd", 3);
    assert_eq!(phases(&sub, "odd"), ["raised", "unknown", "cleared"]);
    daemon.stop_well();
}
