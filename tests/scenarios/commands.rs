//! Commands from afar, with plain tools: what is done, what is refused, and that nothing is done twice.

use rig::{
    Mosquitto, Operator, Site, Sub, Tty,
    operator::{end, nonce, states, time},
};
use serde_json::{Value, json};

fn device(broker: &Mosquitto, operator: &Operator) -> Site {
    Site::new(broker.port).with(&operator.table())
}

/// The rejection's word.
fn why(sub: &Sub, kind: &str, id: &str) -> Value {
    let end = end(sub, kind, id);
    assert_eq!(end["state"], "rejected", "{end}");
    end["why"].clone()
}

#[test]
fn every_command_is_answered_with_what_became_of_it() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let daemon = device(&broker, &operator).with_sensor(&tty).with_mean_model().run();
    sub.wait_event("model.serving", "mean");
    let nothing = json!({});
    let said = |stream| sub.messages().iter().filter(|m| m.stream == stream).count();
    let before = ["state", "birth", "reported"].map(|stream| (stream, said(stream)));
    for kind in ["ping", "status", "report"] {
        operator.plain(kind, &format!("{kind}-1"), &nothing);
        assert_eq!(end(&sub, kind, &format!("{kind}-1"))["state"], "success");
        assert_eq!(states(&sub, kind, &format!("{kind}-1")), ["accepted", "success"]);
    }
    assert_eq!(end(&sub, "ping", "ping-1")["result"]["device"], "plant/pump-1");
    for (stream, before) in before {
        let again = sub.wait(&format!("`report` brings {stream} again"), |messages| {
            messages.iter().filter(|m| m.stream == stream).nth(before).cloned()
        });
        assert!(stream != "state" || again.payload["state"] == "online", "{again:?}");
    }
    let status = &end(&sub, "status", "status-1")["result"];
    assert_eq!((&status["state"], &status["sources"][0]["name"]), (&"running".into(), &"s".into()));
    operator.plain("config.get", "get-1", &nothing);
    let got = end(&sub, "config.get", "get-1");
    assert_eq!(got["result"]["config"]["alarm"]["high"]["severity"], "critical");
    for (kind, args, expected) in [
        ("model.install", json!({}), "malformed"),
        ("model.rollback", json!({}), "invalid"),
        ("os.install", json!({"url": "x"}), "malformed"),
    ] {
        operator.order(&sub, kind, &format!("{kind}-1"), &args);
        assert_eq!(why(&sub, kind, &format!("{kind}-1")), expected);
    }
    let system = json!({"sha256": "0".repeat(64), "size": 1, "file": "/nowhere"});
    operator.order(&sub, "os.install", "os-2", &system);
    assert_eq!(why(&sub, "os.install", "os-2"), "unsupported", "this machine has no slots");
    // What a device without logind, with a model that is not calibrated, or with the wrong name cannot do.
    operator.order(&sub, "model.calibrate", "cal-1", &json!({"pipeline": "x"}));
    assert_eq!(why(&sub, "model.calibrate", "cal-1"), "invalid");
    operator.order(&sub, "reboot", "reboot-1", &nothing);
    assert_eq!(end(&sub, "reboot", "reboot-1")["state"], "failed");
    operator.order(&sub, "erase", "erase-1", &json!({"confirm": "plant/pump-2"}));
    assert_eq!(why(&sub, "erase", "erase-1"), "invalid");
    operator.plain("shell", "shell-1", &json!({"run": "id"}));
    assert_eq!(why(&sub, "shell", "shell-1"), "unsupported");
    daemon.stop_well();
}

#[test]
fn restart_ends_in_order_and_the_next_start_says_success() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator);
    let mut daemon = site.run();
    sub.wait_state("online");
    operator.order(&sub, "restart", "r-1", &json!({}));
    assert_eq!(daemon.wait(), Some(0), "systemd starts it again");
    assert_eq!(states(&sub, "restart", "r-1"), ["accepted", "running"]);
    let daemon = site.run();
    assert_eq!(end(&sub, "restart", "r-1")["state"], "success");
    // The same id again is answered, not done again.
    operator.order(&sub, "log.pull", "p-0", &json!({}));
    end(&sub, "log.pull", "p-0");
    let again = operator.command("restart", "r-1", &nonce(&sub), &json!({}));
    operator.send("pump-1/dn/cmd/restart/r-1", &again);
    sub.wait("the answer to the repeated id", |messages| {
        let found = rig::sub::records(messages, "res/restart/r-1");
        found.into_iter().find(|(r, _)| r["repeated"] == true && r["state"] == "success")
    });
    let other = operator.command("restart", "p-0", &nonce(&sub), &json!({}));
    operator.send("pump-1/dn/cmd/restart/p-0", &other);
    assert_eq!(why(&sub, "restart", "p-0"), "repeated_id");
    daemon.stop_well();
}

#[test]
fn a_captured_command_is_refused_also_as_another_type_for_another_device_or_cohort() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let stranger = Operator::new(broker.port, "ops");
    let site = device(&broker, &operator)
        .with_device("site = \"plant\"\nid = \"pump-1\"\nbus = \"off\"\ncohorts = [\"pumps\"]");
    let mut daemon = site.run();
    sub.wait_state("online");
    let captured = operator.command("log.pull", "a", &nonce(&sub), &json!({}));
    operator.send("pump-1/dn/cmd/log.pull/a", &captured);
    end(&sub, "log.pull", "a");
    for (topic, kind, id) in [
        ("pump-1/dn/cmd/log.pull/b", "log.pull", "b"),
        ("pump-1/dn/cmd/restart/c", "restart", "c"),
        ("_all/dn/cmd/log.pull/d", "log.pull", "d"),
        ("_c-pumps/dn/cmd/log.pull/e", "log.pull", "e"),
    ] {
        operator.send(topic, &captured);
        assert_eq!(why(&sub, kind, id), "not_addressed", "{topic}");
    }
    let refused = |id: &str, payload: &str, word: &str| {
        operator.send(&format!("pump-1/dn/cmd/restart/{id}"), payload);
        assert_eq!(why(&sub, "restart", id), word, "{id}");
    };
    refused("f", &stranger.command("restart", "f", &nonce(&sub), &json!({})), "bad_signature");
    refused("g", &json!({"id": "g", "expires_at": time(60), "args": {}}).to_string(), "unsigned");
    // A forged sequence on a command that needs no signature locks no operator out.
    let mut forged = operator.inner("plant/pump-1", "ping", "forged", "", &json!({}));
    forged["iseq"] = 9_007_199_254_740_991u64.into();
    operator.send("pump-1/dn/cmd/ping/forged", &stranger.sign(&forged.to_string()));
    end(&sub, "ping", "forged");
    operator.order(&sub, "log.pull", "still", &json!({}));
    assert_ne!(end(&sub, "log.pull", "still")["state"], "rejected");
    let fresh = operator.inner("plant/pump-1", "restart", "h", &nonce(&sub), &json!({}));
    let tampered = operator.sign(&fresh.to_string()).replace("\\\"args\\\":{}", "\\\"args\\\": {}");
    assert!(tampered.contains("\\\"args\\\": {}"));
    refused("h", &tampered, "bad_signature");
    let mut old = operator.inner("plant/pump-1", "restart", "i", &nonce(&sub), &json!({}));
    old["iseq"] = 1.into();
    refused("i", &operator.sign(&old.to_string()), "replayed");
    let mut other = operator.inner("plant/pump-1", "restart", "j", &nonce(&sub), &json!({}));
    other["issuer"] = "boss".into();
    refused("j", &operator.sign(&other.to_string()), "bad_signature");
    // After a restart as well: the sequence and the ids are on the disk.
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    daemon.wait();
    let daemon = site.run();
    sub.wait_state("online");
    operator.send("pump-1/dn/cmd/log.pull/k", &captured);
    assert_eq!(why(&sub, "log.pull", "k"), "not_addressed");
    let mut replayed = operator.inner("plant/pump-1", "restart", "l", &nonce(&sub), &json!({}));
    replayed["iseq"] = 1000.into();
    refused("l", &operator.sign(&replayed.to_string()), "replayed");
    daemon.stop_well();
}

#[test]
fn a_retained_reboot_and_five_reconnects_are_no_reboot() {
    let mut broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator);
    let mut daemon = site.run();
    sub.wait_state("online");
    let reboot = operator.command("reboot", "a", &nonce(&sub), &json!({}));
    operator.send_retained("pump-1/dn/cmd/reboot/a", &reboot);
    assert_eq!(why(&sub, "reboot", "a"), "retained");
    for _ in 0..5 {
        let births = |sub: &Sub| rig::operator::connections(sub);
        let before = births(&sub);
        broker.stop();
        broker.up();
        sub.wait("another connection", |_| (births(&sub) > before).then_some(()));
    }
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0));
    let daemon = site.run();
    operator.plain("ping", "p", &json!({}));
    end(&sub, "ping", "p");
    assert!(!states(&sub, "reboot", "a").iter().any(|state| state == "accepted"));
    daemon.stop_well();
}

#[test]
fn a_hundred_stale_commands_after_an_outage_all_expire() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator);
    let daemon = site.run();
    sub.wait_state("online");
    operator.plain("ping", "before", &json!({}));
    end(&sub, "ping", "before");
    daemon.kill();
    for i in 0..100 {
        let stale = json!({"id": format!("s{i}"), "expires_at": time(-1), "args": {}});
        operator.send(&format!("pump-1/dn/cmd/ping/s{i}"), &stale.to_string());
    }
    let daemon = site.run();
    for i in 0..100 {
        assert_eq!(end(&sub, "ping", &format!("s{i}"))["state"], "expired");
    }
    daemon.stop_well();
}

#[test]
fn without_a_trusted_clock_a_command_must_echo_the_nonce_of_this_connection() {
    let mut broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let daemon = device(&broker, &operator).run();
    sub.wait_state("online");
    let old = nonce(&sub);
    let state = sub.messages().into_iter().find(|m| m.stream == "state").expect("state").payload.clone();
    if state["clk"] == "sync" {
        rig::skipped("this machine's clock is synchronised: a command needs no nonce here");
        return;
    }
    operator.send("pump-1/dn/cmd/log.pull/a", &operator.command("log.pull", "a", "", &json!({})));
    assert_eq!(why(&sub, "log.pull", "a"), "nonce");
    broker.stop();
    broker.up();
    sub.wait("another nonce", |_| (nonce(&sub) != old).then_some(()));
    operator.send("pump-1/dn/cmd/log.pull/b", &operator.command("log.pull", "b", &old, &json!({})));
    assert_eq!(why(&sub, "log.pull", "b"), "nonce");
    operator.order(&sub, "log.pull", "c", &json!({}));
    assert_ne!(end(&sub, "log.pull", "c")["state"], "rejected");
    daemon.stop_well();
}

#[test]
fn ten_thousand_commands_in_a_second_leave_sampling_alone() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = device(&broker, &operator).with_sensor(&tty).with("[stream.raw]\nchannels = [\"a\"]\n");
    let daemon = site.run();
    sub.wait_state("online");
    operator.plain("ping", "first", &json!({}));
    end(&sub, "ping", "first");
    let before_kib = daemon.rss_kib();
    let flood = std::thread::spawn({
        let port = broker.port;
        move || Operator::new(port, "flood").flood("pump-1", 10_000)
    });
    tty.rows(0..2000, |i| format!("{i},{i},1"));
    flood.join().expect("flood");
    sub.wait_records("m/raw", 2000);
    let grown_kib = daemon.rss_kib().saturating_sub(before_kib);
    rig::measured(&format!("10,000 commands at once: the daemon grew by {grown_kib} KiB"));
    assert!(grown_kib < 5 * 1024, "{grown_kib} KiB");
    let births = rig::operator::connections(&sub);
    assert_eq!(births, 1, "the connection stands through it");
    // It obeys again, and says that it refused.
    sub.wait_event("commands.refused", "refused without an answer");
    operator.plain("ping", "after", &json!({}));
    assert_eq!(end(&sub, "ping", "after")["state"], "success");
    daemon.stop_well();
}

#[test]
fn malformed_and_oversize_commands_are_refused_and_harm_nothing() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let daemon = device(&broker, &operator).run();
    sub.wait_state("online");
    let deep = "[".repeat(30_000);
    let big = format!("{{\"id\":\"x\",\"args\":{{\"a\":\"{}\"}}}}", "y".repeat(61_000));
    for (i, payload) in ["{", "null", "{\"id\":\"other\"}", "{\"id\":1}", &deep, &big, "\u{0}"].iter().enumerate() {
        operator.send(&format!("pump-1/dn/cmd/ping/m{i}"), payload);
        assert_eq!(why(&sub, "ping", &format!("m{i}")), "malformed");
    }
    // Above what the device takes the broker keeps it away; what is no command topic is nothing.
    operator.send("pump-1/dn/cmd/ping/huge", &"z".repeat(1 << 20));
    operator.send("pump-1/dn/cmd/ping/_bad", "{}");
    operator.plain("ping", "well", &json!({}));
    assert_eq!(end(&sub, "ping", "well")["state"], "success");
    assert!(states(&sub, "ping", "huge").is_empty());
    daemon.stop_well();
}

#[test]
fn broadcasts_reach_the_site_and_the_cohort_and_old_clients_can_command() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = Site::new(broker.port)
        .with_device("site = \"plant\"\nid = \"pump-1\"\nbus = \"off\"\ncohorts = [\"pumps\"]")
        .with(&operator.table().replace("jitter_s = 0", "jitter_s = 1"));
    let daemon = site.run();
    sub.wait_state("online");
    operator.send("_all/dn/cmd/ping/a", "{\"id\":\"a\"}");
    operator.send("_c-pumps/dn/cmd/ping/b", "{\"id\":\"b\"}");
    operator.send("_c-fans/dn/cmd/ping/c", "{\"id\":\"c\"}");
    // MQTT 3.1.1 knows neither response topics nor reasons.
    operator.publish(&["-V", "311", "-q", "1"], "pump-1/dn/cmd/ping/d", "{\"id\":\"d\"}");
    for id in ["a", "b", "d"] {
        assert_eq!(end(&sub, "ping", id)["state"], "success");
    }
    assert!(states(&sub, "ping", "c").is_empty());
    daemon.stop_well();
}

#[test]
fn an_answer_goes_to_the_response_topic_with_its_correlation_data_once() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let daemon = device(&broker, &operator).run();
    sub.wait_state("online");
    let ask = |id: &str, topic: &str| {
        let mut rr = std::process::Command::new("mosquitto_rr");
        rr.args(["-p", &broker.port.to_string(), "-V", "5", "-q", "1", "-W", "3", "-F", "%t %D %p", "-D", "publish"]);
        rr.args(["correlation-data", "x-42", "-e", topic, "-t", &format!("kl/plant/pump-1/dn/cmd/ping/{id}")]);
        let out = rr.args(["-m", &format!("{{\"id\":\"{id}\"}}")]).output().expect("mosquitto_rr is installed");
        String::from_utf8(out.stdout).expect("text")
    };
    let topic = "kl/plant/pump-1/up/_r/ops/a";
    let answer = ask("a", topic);
    assert!(answer.starts_with(&format!("{topic} ")) && answer.contains("x-42"), "{answer}");
    let answer: Value = serde_json::from_str(&answer[answer.find('{').expect("JSON")..]).expect("JSON");
    assert_eq!(
        (&answer["state"], &answer["id"], &answer["device"]),
        (&"success".into(), &"a".into(), &"plant/pump-1".into())
    );
    assert_eq!(ask("a", topic), "", "a repeat is answered by its record alone");
    sub.wait("the repeat's record", |messages| {
        let found = rig::sub::records(messages, "res/ping/a");
        found.into_iter().find(|(r, _)| r["repeated"] == true)
    });
    // A broadcast names one device's place for answers: that device answers there, and every one by its record.
    for (id, elsewhere) in [("b", "kl/plant/ops/answers"), ("c", "kl/plant/pump-2/up/_r/c"), ("d", "elsewhere/answers")]
    {
        assert_eq!(ask(id, elsewhere), "", "only below the device's own up/_r/ is answered");
        assert_eq!(end(&sub, "ping", id)["state"], "success");
    }
    daemon.stop_well();
}

#[test]
fn verified_commands_are_answered_while_a_stranger_floods_and_takes_their_ids() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let daemon = device(&broker, &operator).run();
    sub.wait_state("online");
    let nonce = nonce(&sub);
    let kind = "model.rollback";
    let orders: Vec<String> =
        (0..40).map(|i| operator.command(kind, &format!("s{i}"), &nonce, &json!({"model": "none"}))).collect();
    let flood = Operator::new(broker.port, "flood");
    flood.plain("ping", "s0", &json!({}));
    assert_eq!(end(&sub, "ping", "s0")["state"], "success");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let mut options = rumqttc::v5::MqttOptions::new("stranger", "127.0.0.1", broker.port);
            options.set_outgoing_inflight_upper_limit(1000);
            let (client, mut connection) = rumqttc::v5::Client::new(options, 1000);
            let poll = scope.spawn(move || connection.iter().take_while(Result::is_ok).count());
            let mut n = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // The ids that signed commands will need, and others.
                let id = if n < 40 { format!("s{n}") } else { format!("f{n}") };
                let topic = format!("kl/plant/pump-1/dn/cmd/ping/{id}");
                let qos = rumqttc::v5::mqttbytes::QoS::AtLeastOnce;
                client.publish(topic, qos, false, format!("{{\"id\":\"{id}\"}}")).expect("publish");
                n += 1;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            client.disconnect().expect("disconnect");
            poll.join().expect("poll");
        });
        // More than a stranger's share, and more than may be refused with an answer each second.
        std::thread::sleep(std::time::Duration::from_secs(10));
        for (i, order) in orders.iter().enumerate() {
            operator.send(&format!("pump-1/dn/cmd/{kind}/s{i}"), order);
        }
        let words: Vec<Value> = (0..40).map(|i| end(&sub, kind, &format!("s{i}"))["why"].clone()).collect();
        assert!(words.iter().all(|word| word == "invalid"), "each is looked at: {words:?}");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        pings.join().expect("pings");
    });
    daemon.stop_well();
}
