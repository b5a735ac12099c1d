//! The audit log: kills while entries are written, an edit, a pull.

use std::{collections::BTreeSet, fs, time::Duration};

use rig::{Mosquitto, Operator, Site, Sub, eventually, operator::end};
use serde_json::{Value, json};

/// `kentledge audit verify` of this state directory.
fn verify(site: &Site, more: &[&str]) -> rig::Done {
    let state = site.state().display().to_string();
    rig::daemon::run(&[&["audit", "verify", "--state", &state], more].concat())
}

/// The newest head of `up/h`, as `--head` takes it.
fn head(sub: &Sub) -> Option<(u64, String)> {
    let (record, _) = sub.records("h").pop()?;
    let seq = record["audit"]["seq"].as_u64()?;
    Some((seq, format!("{seq}:{}", record["audit"]["sha256"].as_str()?)))
}

/// Ids of commands whose final result the broker has.
fn results(sub: &Sub) -> BTreeSet<String> {
    let messages = sub.messages();
    let of = messages.iter().filter(|m| m.stream.starts_with("res/log.pull/"));
    let records = of.flat_map(|m| m.payload["data"].as_array().cloned().unwrap_or_default());
    // What was rejected was not accepted before: the broker sent it again on a connection with another nonce.
    let ends = records.filter(|r| r["state"] != "accepted" && r["state"] != "running" && r["why"].is_null());
    ends.filter_map(|r| r["id"].as_str().map(str::to_owned)).collect()
}

#[test]
fn audit_log_survives_kills_has_every_published_result_and_shows_an_edit() {
    let kills = if rig::long() { 60 } else { 6 };
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = Site::new(broker.port).with(&operator.table());
    let (mut sent, mut published) = (0, None);
    for _ in 0..kills {
        let before = rig::operator::connections(&sub);
        let daemon = site.run();
        eventually("a birth", || (rig::operator::connections(&sub) > before).then_some(()));
        // The very first report may come before the log is opened.
        eventually("a head in up/h", || head(&sub));
        for _ in 0..3 {
            operator.order(&sub, "log.pull", &format!("p{sent}"), &json!({"lines": 1}));
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(..300)));
        daemon.kill();
        published = head(&sub).max(published);
        let (_, noted) = published.clone().expect("a head in up/h");
        let done = verify(&site, &["--head", &noted]);
        assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    }
    let before = rig::operator::connections(&sub);
    let daemon = site.run();
    eventually("a birth", || (rig::operator::connections(&sub) > before).then_some(()));
    let last = format!("p{}", sent - 1);
    end(&sub, "log.pull", &last);
    operator.order(&sub, "audit.pull", "pull", &json!({}));
    let pulled = end(&sub, "audit.pull", "pull")["result"].clone();
    let lines: Vec<&str> = pulled["entries"].as_array().expect("entries").iter().filter_map(Value::as_str).collect();
    let entries: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let logged = |id: &String| entries.iter().any(|e| e["what"] == "command" && e["id"] == **id && e["by"] == "ops");
    let results = results(&sub);
    let lost: Vec<_> = results.iter().filter(|id| !logged(id)).collect();
    let starts = entries.iter().filter(|entry| entry["what"] == "start").count();
    rig::measured(&format!(
        "audit log: {kills} kills, {} results at the broker, {} of them not in the log, {starts} starts",
        results.len(),
        lost.len()
    ));
    assert!(lost.is_empty() && starts == kills + 1, "{lost:?}, {starts} starts");
    assert!(results.len() > kills, "{results:?}");
    // What was pulled verifies elsewhere; the head is the one of up/h.
    let file = site.state().join("pulled");
    fs::write(&file, lines.join("\n") + "\n").expect("write");
    let noted = format!("{}:{}", pulled["head"]["seq"], pulled["head"]["sha256"].as_str().expect("digest"));
    let done = rig::daemon::run(&["audit", "verify", &file.display().to_string(), "--head", &noted]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    daemon.stop_well();
    // Another name in an entry.
    let log = site.state().join("audit/000000000001.jsonl");
    let text = fs::read_to_string(&log).expect("the log");
    fs::write(&log, text.replacen("\"by\":\"ops\"", "\"by\":\"foe\"", 1)).expect("edit");
    let done = verify(&site, &[]);
    assert!(done.code == Some(1) && done.err.contains("was edited or is damaged"), "{}{}", done.out, done.err);
    let daemon = site.run();
    sub.wait_event("store.damaged", "was edited or is damaged");
    daemon.stop_well();
}
