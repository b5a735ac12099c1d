//! Remote configuration: what is set, what is rolled back because the device cannot be reached with it, and that a device is
//! never cut off.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use rig::{
    Daemon, Disk, Mosquitto, Operator, Site, Sub, Tty, eventually,
    operator::{end, states, time},
};
use serde_json::{Value, json};

fn device(broker: &Mosquitto, operator: &Operator, tty: &Tty) -> Site {
    Site::new(broker.port).with_sensor(tty).with(&operator.table())
}

fn set(toml: &str) -> Value {
    json!({"toml": toml, "confirm_s": 10})
}

fn remote(site: &Site) -> Option<String> {
    fs::read_to_string(site.state().join("config/remote.toml")).ok()
}

fn dead_broker() -> String {
    format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", rig::free_port())
}

const STREAM: &str = "[stream.raw]\nchannels = [\"a\"]\n";

#[test]
fn a_stream_is_added_from_afar_and_stays() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator, &tty);
    let daemon = site.run();
    sub.wait_state("online");
    operator.order(&sub, "config.set", "c-1", &set(STREAM));
    assert_eq!(end(&sub, "config.set", "c-1")["state"], "success");
    assert_eq!(states(&sub, "config.set", "c-1"), ["accepted", "running", "success"]);
    tty.rows(0..100, |i| format!("{i},{i},1"));
    sub.wait_records("m/raw", 100);
    operator.plain("config.get", "g-1", &json!({"layer": "remote"}));
    let got = end(&sub, "config.get", "g-1");
    assert_eq!(got["result"]["toml"], STREAM);
    let reported = |sub: &Sub| sub.messages().into_iter().rev().find(|m| m.stream == "reported").expect("reported");
    assert_eq!(reported(&sub).payload["data"][0]["config"]["digest"], got["result"]["digest"]);
    operator.order(&sub, "config.set", "c-2", &set(STREAM));
    assert_eq!(end(&sub, "config.set", "c-2")["text"], "it is set already");
    daemon.stop_well();
    let daemon = site.run();
    tty.rows(100..200, |i| format!("{i},{i},1"));
    sub.wait_records("m/raw", 200);
    // An empty one takes it away.
    operator.order(&sub, "config.set", "c-3", &set(""));
    assert_eq!(end(&sub, "config.set", "c-3")["state"], "success");
    assert_eq!(remote(&site), None);
    daemon.stop_well();
}

#[test]
fn what_does_not_validate_or_may_not_be_set_from_afar_is_refused_with_every_problem() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator, &tty);
    let daemon = site.run();
    sub.wait_state("online");
    for (i, (toml, problem)) in [
        ("[stream.raw]\nchanels = [\"a\"]\n", "toml:2: stream.raw.chanels: unknown key; did you mean `channels`?"),
        ("[models]\nallow_unsigned = true\n", "toml:2: models.allow_unsigned: cannot be set remotely"),
        ("[commands]\nallow_unsigned = true\n", "toml:2: commands.allow_unsigned: cannot be set remotely"),
        ("[device]\nstate_dir = \"/tmp\"\n", "toml:2: device.state_dir: cannot be set remotely"),
        ("[mqtt\n", "toml:1: toml:"),
        ("[mqtt]\nurl = \"mqtt://example.org\"\n", "plain text is allowed to this machine only"),
    ]
    .into_iter()
    .enumerate()
    {
        operator.order(&sub, "config.set", &format!("c-{i}"), &set(toml));
        let end = end(&sub, "config.set", &format!("c-{i}"));
        assert_eq!((&end["state"], &end["why"]), (&"rejected".into(), &"invalid".into()));
        assert!(end["text"].as_str().expect("text").contains(problem), "{end}");
    }
    assert_eq!(remote(&site), None);
    daemon.stop_well();
}

#[test]
fn a_wrong_broker_is_put_back_within_confirm_s_and_nothing_is_lost() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator, &tty).with(STREAM);
    let daemon = site.run();
    sub.wait_state("online");
    operator.order(&sub, "config.set", "c-1", &set(&dead_broker()));
    sub.wait_state("offline");
    tty.rows(0..500, |i| format!("{i},{i},1"));
    let began = std::time::Instant::now();
    rig::within(Duration::from_secs(20), "it is put back", || {
        states(&sub, "config.set", "c-1").contains(&"rolled_back".to_owned())
    });
    rig::measured(&format!(
        "a wrong broker was put back {:.1} s after it was set, of confirm_s 10",
        began.elapsed().as_secs_f64()
    ));
    assert_eq!(remote(&site), None);
    sub.wait_records("m/raw", 500);
    sub.wait_event("config.rolled_back", "not confirmed in time");
    daemon.stop_well();
}

#[test]
fn another_broker_that_answers_is_confirmed_through_it() {
    let (old, new, tty) = (Mosquitto::start(), Mosquitto::start(), Tty::default());
    let (sub, there) = (Sub::new(old.port), Sub::new(new.port));
    let operator = Operator::new(old.port, "ops");
    let site = device(&old, &operator, &tty);
    let daemon = site.run();
    sub.wait_state("online");
    let url = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", new.port);
    operator.order(&sub, "config.set", "c-1", &set(&url));
    assert_eq!(end(&there, "config.set", "c-1")["state"], "success");
    Operator::new(new.port, "anyone").plain("status", "s-1", &json!({}));
    assert_eq!(end(&there, "status", "s-1")["result"]["link"]["broker"], format!("127.0.0.1:{}", new.port));
    sub.wait_state("offline");
    there.wait_state("online");
    daemon.stop_well();
    // It stays over a restart.
    let daemon = site.run();
    there.wait_state("online");
    assert_eq!(remote(&site), Some(url));
    daemon.stop_well();
}

/// Changes and kills; whatever moment the kill meets, the old or the new one is in use, and the asker learns which.
#[test]
fn a_kill_at_any_moment_of_a_change_leaves_the_old_or_the_new_one() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator, &tty);
    let mut daemon = site.run();
    sub.wait_state("online");
    let (mut kept, mut back) = (0, 0);
    for round in 0..if rig::long() { 200 } else { 12 } {
        let id = format!("c-{round}");
        let before = remote(&site);
        // A stage's change and a connection's change in turn; none of them is wrong.
        let toml = match round % 2 {
            0 => format!("[stream.s{round}]\nchannels = [\"a\"]\n"),
            _ => format!("[mqtt]\nkeep_alive_s = {}\n", 20 + round),
        };
        operator.order(&sub, "config.set", &id, &set(&toml));
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..if round % 2 == 0 { 4500 } else { 400 })));
        let births = |sub: &Sub| rig::operator::connections(sub);
        let before_kill = births(&sub);
        daemon.kill();
        daemon = site.run();
        sub.wait("another birth, with another nonce", |_| (births(&sub) > before_kill).then_some(()));
        let last = sub.wait(&format!("the result of {id}"), |_| {
            let mut states = states(&sub, "config.set", &id);
            let last = states.pop()?;
            // A kill before it was taken in brings it again, to a connection with another nonce.
            ["success", "rolled_back", "failed", "rejected"].contains(&last.as_str()).then_some(last)
        });
        let now = remote(&site);
        if last == "success" {
            kept += 1;
            assert_eq!(now.as_deref(), Some(toml.as_str()));
        } else {
            back += 1;
            assert_eq!(now, before, "{last}");
        }
    }
    rig::measured(&format!(
        "kills while a configuration was changed: {kept} changes stayed, {back} were put back, 0 between"
    ));
    daemon.stop_well();
}

/// A wrong broker is on trial and the power fails: the device is back on the old one at its next start, whatever moment of
/// the change it was. Each life goes on with the image that the cut before left.
#[test]
fn a_power_cut_at_any_moment_of_a_wrong_change_ends_on_the_old_broker() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let Some(mut disk) = Disk::new(64) else { return };
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let births = |sub: &Sub| rig::operator::connections(sub);
    let site = |disk: &Disk| device(&broker, &operator, &tty).with_state(&disk.path().join("state"));
    let mut daemon = site(&disk).run();
    sub.wait_state("online");
    let (mut on_trial, cuts) = (0, if rig::long() { 100 } else { 8 });
    for round in 0..cuts {
        // The connection alone in even rounds, all stages in odd ones.
        let stream = if round % 2 == 0 { "" } else { STREAM };
        operator.order(&sub, "config.set", &format!("c-{round}"), &set(&format!("{}{stream}", dead_broker())));
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..60_000)));
        daemon.signal(Signal::SIGSTOP);
        let left = eventually("a copy that no write disturbed", || disk.cut());
        daemon.kill();
        disk = left;
        on_trial += u32::from(disk.path().join("state/control/trial.json").exists());
        let before = births(&sub);
        daemon = site(&disk).run();
        sub.wait("it is back on the old broker", |_| (births(&sub) > before).then_some(()));
        assert!(!disk.path().join("state/config/remote.toml").exists(), "what was set is put back");
        eventually("the trial is reported and over", || {
            (!disk.path().join("state/control/trial.json").exists()).then_some(())
        });
    }
    rig::measured(&format!(
        "{cuts} power cuts while a wrong broker was set, {on_trial} of them with it on trial: back on the old one each time"
    ));
    daemon.stop_well();
}

fn desire(operator: &Operator, version: u64, toml: &str) {
    let inner = json!({"v": 1, "type": "desired", "to": "plant/pump-1", "issuer": "ops", "version": version,
        "issued": time(0), "config": {"toml": toml, "confirm_s": 10}});
    operator.send_retained("pump-1/dn/desired", &operator.sign(&inner.to_string()));
}

fn wait_reported(sub: &Sub, version: u64, state: &str) -> Value {
    let found = |messages: &[std::sync::Arc<rig::Message>]| {
        // One that was kept in an outage comes late, and is not retained.
        let reported = messages.iter().filter(|m| m.stream == "reported").map(|m| &m.payload["data"][0]);
        let data = reported.max_by_key(|data| data["seq"].as_u64())?.clone();
        (data["version"] == version && data["state"] == state).then_some(data)
    };
    let until = std::time::Instant::now() + Duration::from_secs(25);
    loop {
        let messages = sub.messages();
        if let Some(data) = found(&messages) {
            return data;
        }
        let reported: Vec<_> = messages.iter().filter(|m| m.stream == "reported").map(|m| &m.payload["data"]).collect();
        assert!(std::time::Instant::now() < until, "version {version} is not {state}: {reported:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_desired_state_outlives_an_offline_spell_and_one_that_was_put_back_is_not_tried_again() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator, &tty);
    desire(&operator, 3, STREAM);
    let daemon = site.run();
    wait_reported(&sub, 3, "applied");
    assert_eq!(remote(&site).as_deref(), Some(STREAM));
    // An older one, another's, and an unsigned one are nothing.
    desire(&operator, 2, "");
    desire(&Operator::new(broker.port, "ops"), 9, "");
    operator.send_retained("pump-1/dn/desired", "{\"version\":9}");
    desire(&operator, 4, "[nonsense]\nx = 1\n");
    let refused = wait_reported(&sub, 4, "rejected");
    assert!(refused["text"].as_str().expect("text").contains("nonsense"), "{refused}");
    let wrong = dead_broker();
    desire(&operator, 5, &wrong);
    wait_reported(&sub, 5, "rolled_back");
    assert_eq!(remote(&site).as_deref(), Some(STREAM));
    desire(&operator, 6, &wrong);
    let again = wait_reported(&sub, 6, "rejected");
    assert!(again["text"].as_str().expect("text").contains("put back before"), "{again}");
    daemon.stop_well();
}

#[test]
fn config_set_lists_what_it_drops_merges_on_request_and_reported_says_overridden() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator, &tty);
    let all = "[stream.one]\nchannels = [\"a\"]\n[stream.two]\nchannels = [\"b\"]\n[metrics]\ninterval_s = 5\n";
    desire(&operator, 1, all);
    let daemon = site.run();
    let reported = wait_reported(&sub, 1, "applied");
    let digest = reported["config"]["digest"].clone();
    assert_eq!((&reported["config"]["desired"], &reported["config"]["overridden"]), (&json!(1), &json!(false)));
    // Keys of it are laid over what is set.
    let merge = json!({"toml": "[metrics]\ninterval_s = 7\n", "mode": "merge", "if_digest": digest});
    operator.order(&sub, "config.set", "c-1", &merge);
    let merged = end(&sub, "config.set", "c-1");
    assert_eq!(merged["state"], "success", "{merged}");
    // The local configuration has the interval as well.
    assert_eq!(merged["result"]["changed"], json!(["metrics.interval_s"]));
    assert_eq!((&merged["result"]["removed"], &merged["result"]["added"]), (&json!([]), &json!([])));
    assert!(remote(&site).expect("set").contains("[stream.two]"), "{:?}", remote(&site));
    // It is another layer than the one of version 1, and says so.
    let reported = wait_reported(&sub, 1, "overridden");
    assert_eq!((&reported["config"]["desired"], &reported["config"]["overridden"]), (&json!(null), &json!(true)));
    assert_eq!(reported["config"]["digest"], merged["result"]["digest"]);
    // Made for what was set before.
    operator.order(&sub, "config.set", "c-2", &json!({"toml": "", "if_digest": digest}));
    assert_eq!(end(&sub, "config.set", "c-2")["why"], "conflict");
    // One value, in place of all that was set.
    operator.order(&sub, "config.set", "c-3", &json!({"toml": "[metrics]\ninterval_s = 9\n"}));
    let replaced = end(&sub, "config.set", "c-3");
    assert_eq!(replaced["result"]["removed"], json!(["stream.one", "stream.two"]), "{replaced}");
    assert!(replaced["text"].as_str().expect("text").contains("2 removed: stream.one, stream.two"), "{replaced}");
    wait_reported(&sub, 1, "overridden");
    daemon.stop_well();
    let known = sub.messages().len();
    let daemon = site.run();
    // Also after a restart, and with the desired state at the broker.
    let again = sub.wait("it is reported again", |m| {
        m[known..].iter().rev().find(|m| m.stream == "reported").map(|m| m.payload["data"][0].clone())
    });
    assert_eq!((&again["state"], &again["config"]["overridden"]), (&json!("overridden"), &json!(true)));
    daemon.stop_well();
}

#[test]
fn remote_layer_that_names_the_devices_private_key_as_password_is_rejected_and_nothing_is_sent() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator, &tty);
    let provision = site.state().join("provision");
    fs::create_dir_all(&provision).expect("folder");
    fs::write(provision.join("key.pem"), "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n").expect("write");
    // A listener at that address would get the key in the CONNECT.
    let thief = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let port = thief.local_addr().expect("port").port();
    let daemon = site.run();
    sub.wait_state("online");
    for (i, file) in [provision.join("key.pem"), "/etc/passwd".into()].iter().enumerate() {
        let (id, show) = (format!("c-{i}"), file.display());
        let toml = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\nusername = \"u\"\npassword_file = \"{show}\"\n");
        operator.order(&sub, "config.set", &id, &set(&toml));
        let end = end(&sub, "config.set", &id);
        assert_eq!((&end["state"], &end["why"]), (&json!("rejected"), &json!("invalid")), "{end}");
    }
    thief.set_nonblocking(true).expect("non-blocking");
    assert!(thief.accept().is_err(), "the device connected to it");
    daemon.stop_well();
}

#[test]
fn a_remote_layer_that_does_not_validate_any_more_is_set_aside_and_the_daemon_starts() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator, &tty);
    let folder = site.state().join("config");
    fs::create_dir_all(&folder).expect("folder");
    // As an older daemon finds it after the newer one was rolled back.
    fs::write(folder.join("remote.toml"), "[newer]\nkey = 1\n").expect("write");
    fs::write(folder.join("previous"), STREAM).expect("write");
    let daemon = site.run();
    sub.wait_event("config.set_aside", "remote.toml:1: newer: unknown key");
    let meta = sub.wait("the previous configuration is in use", |m| m.iter().find(|m| m.stream == "meta/raw").cloned());
    assert_eq!(meta.payload["stream"], "raw");
    operator.plain("status", "s-1", &json!({}));
    assert_eq!(end(&sub, "status", "s-1")["result"]["state"], "degraded");
    // It can be mended from afar.
    operator.order(&sub, "config.set", "c-1", &set(STREAM));
    assert_eq!(end(&sub, "config.set", "c-1")["state"], "success");
    daemon.stop_well();
}

#[test]
fn a_device_that_was_told_nothing_names_itself_runs_and_says_what_it_lacks() {
    let site = Site::offline().with_device("bus = \"off\"");
    let daemon = site.run();
    eventually("it runs", || daemon.log().contains("running").then_some(()));
    assert!(daemon.log().contains("this device has named itself"));
    let id = fs::read_to_string(site.state().join("identity/device-id")).expect("a name");
    daemon.stop_well();
    let mut daemon: Daemon = site.run();
    eventually("it runs", || daemon.own_log().contains("running").then_some(()));
    assert_eq!(fs::read_to_string(site.state().join("identity/device-id")).expect("a name"), id);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0));
}
