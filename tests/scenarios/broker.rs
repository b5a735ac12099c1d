//! Brokers with limits: packets, subscriptions, topics and keep-alives they do not take. What cannot be delivered is counted
//! as lost, and holds up nothing else.

use std::time::Duration;

use rig::{
    Cable, Evil, Manner, Mosquitto, Operator, Site, Sub, Tty, Wire, eventually,
    operator::{connections, end, states},
    within,
};
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use serde_json::json;

fn site(port: u16, tty: &Tty) -> Site {
    Site::new(port).with_sensor(tty).with("[stream.raw]\nchannels = [\"a\"]\n")
}

fn rows(tty: &mut Tty, range: std::ops::Range<u64>) {
    tty.rows(range, |i| format!("{i},{i},0"));
}

/// Records of the ledger with this reason: how many are lost.
fn lost(sub: &Sub, reason: &str) -> u64 {
    let entries = sub.records("loss").into_iter().map(|(entry, _)| entry).filter(|entry| entry["reason"] == reason);
    entries.filter_map(|entry| entry["n"].as_u64()).sum()
}

#[test]
fn response_topic_outside_the_devices_answers_is_ignored() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let daemon = site(broker.port, &tty).run();
    sub.wait_state("online");
    let deep = format!("kl/plant/pump-1/up/{}", ["a"; 230].join("/"));
    for (id, topic) in [("deep", deep.as_str()), ("alarm", "kl/plant/pump-1/up/a/high")] {
        let options = ["-V", "5", "-q", "1", "-D", "publish", "response-topic", topic];
        operator.publish(&options, &format!("pump-1/dn/cmd/ping/{id}"), &json!({"id": id}).to_string());
        assert_eq!(end(&sub, "ping", id)["state"], "success");
    }
    std::thread::sleep(Duration::from_secs(3));
    rows(&mut tty, 0..50);
    sub.wait_records("m/raw", 50);
    assert_eq!(connections(&sub), 1, "one connection for all of it");
    assert_eq!(states(&sub, "ping", "deep"), ["accepted", "success"], "answered once");
    assert!(sub.messages().iter().all(|m| m.stream != "a/high"), "nothing is said in the alarm's name");
    daemon.stop_well();
}

#[test]
fn answer_that_ends_the_connection_is_given_once() {
    let dir = tempfile::tempdir().expect("folder");
    let acl = dir.path().join("acl");
    // mosquitto 2.0.11 closes on a publish that is not allowed.
    std::fs::write(&acl, "topic readwrite kl/#\ntopic deny kl/plant/pump-1/up/_r/#\n").expect("acl");
    let (broker, mut tty) = (Mosquitto::with(&format!("acl_file {}", acl.display())), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let daemon = site(broker.port, &tty).run();
    sub.wait_state("online");
    let options = ["-V", "5", "-q", "1", "-D", "publish", "response-topic", "kl/plant/pump-1/up/_r/x"];
    operator.publish(&options, "pump-1/dn/cmd/ping/once", "{\"id\":\"once\"}");
    assert_eq!(end(&sub, "ping", "once")["state"], "success");
    std::thread::sleep(Duration::from_secs(12));
    rows(&mut tty, 0..50);
    sub.wait_records("m/raw", 50);
    assert!(connections(&sub) <= 2, "{} connections", connections(&sub));
    assert_eq!(states(&sub, "ping", "once"), ["accepted", "success"], "answered once");
    daemon.stop_well();
}

#[test]
fn message_the_broker_closes_on_is_counted_as_lost_and_holds_up_nothing() {
    let (evil, mut tty) = (Evil::start(), Tty::default());
    evil.behave(Manner::CloseOn("m/bad"));
    let cable = Cable::to(evil.port);
    let site = site(cable.port, &tty).with("[stream.bad]\nchannels = [\"b\"]\n");
    cable.set(Wire::Refused);
    let daemon = site.run();
    // Made while there is no connection: one message of each stream.
    daemon.read_rows(&mut tty, 0..20, |i| format!("{i},{i},0"));
    std::thread::sleep(Duration::from_millis(1500));
    cable.set(Wire::Passes);
    // Which message it is shows within some connections; until then each costs up to 5 s.
    within(Duration::from_secs(60), "the other stream arrives", || evil.rows("m/raw", true).len() >= 20);
    within(Duration::from_secs(90), "the one that closes is in the ledger", || {
        let entries = evil.records("loss");
        let of_it = entries.iter().filter(|e| e["stream"] == "m/bad" && e["reason"] == "closed_by_broker");
        of_it.filter_map(|e| e["n"].as_u64()).sum::<u64>() == 20
    });
    let so_far = evil.connections();
    assert!(so_far < 12, "{so_far} connections");
    evil.behave(Manner::Good);
    rows(&mut tty, 20..40);
    evil.wait_rows("m/raw", 40);
    assert_eq!(evil.connections(), so_far, "the connection holds from there");
    daemon.stop_well();
}

/// RabbitMQ answers so for as long as a node is away that has any client's queue for these messages.
#[test]
fn message_that_the_broker_cannot_take_for_a_while_is_not_lost_and_others_go_first() {
    let (evil, mut tty) = (Evil::start(), Tty::default());
    evil.behave(Manner::RefuseStream(PubAckReason::ImplementationSpecificError, "m/raw"));
    let site = site(evil.port, &tty).with("[stream.other]\nchannels = [\"b\"]\n");
    let daemon = site.run();
    daemon.read_rows(&mut tty, 0..20, |i| format!("{i},{i},{i}"));
    within(Duration::from_secs(40), "the other stream arrives", || evil.rows("m/other", true).len() >= 20);
    let copies = || evil.rows("m/raw", false).iter().filter(|n| **n == 0).count();
    within(Duration::from_secs(120), "it was refused three times", || copies() >= 3);
    std::thread::sleep(Duration::from_secs(3));
    evil.behave(Manner::Good);
    within(Duration::from_secs(60), "it arrives", || evil.rows("m/raw", true).len() >= 20);
    let lost = evil.records("loss").iter().filter(|e| e["stream"] == "m/raw").count();
    assert_eq!(lost, 0, "no record of it is lost");
    daemon.stop_well();
}

#[test]
fn packet_above_the_brokers_maximum_is_split_and_a_single_record_above_it_counted() {
    let mut broker = Mosquitto::with("max_packet_size 1200");
    let mut tty = Tty::default();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let daemon = site(broker.port, &tty).run();
    sub.wait_state("online");
    broker.stop();
    daemon.read_rows(&mut tty, 0..2000, |i| format!("{i},{i},0"));
    std::thread::sleep(Duration::from_millis(1200));
    broker.up();
    sub.wait_records("m/raw", 2000);
    // One record that no splitting makes smaller.
    operator.plain("status", "big", &json!({}));
    sub.wait("the result is counted as lost", |_| (lost(&sub, "packet_too_large") == 1).then_some(()));
    rows(&mut tty, 2000..2100);
    sub.wait_records("m/raw", 2100);
    let said = || daemon.log().matches("do not fit the broker's largest packet").count();
    eventually("it is logged", || (said() > 0).then_some(()));
    assert_eq!(said(), 1, "once");
    assert_eq!(connections(&sub), 2);
    daemon.stop_well();
}

#[test]
fn message_refused_as_too_large_is_split_until_the_broker_takes_it() {
    // mosquitto does not announce this limit; it refuses with a reason that the client library does not know.
    let mut broker = Mosquitto::with("message_size_limit 4000");
    let mut tty = Tty::default();
    let sub = Sub::new(broker.port);
    let daemon = site(broker.port, &tty).run();
    sub.wait_state("online");
    broker.stop();
    daemon.read_rows(&mut tty, 0..2000, |i| format!("{i},{i},0"));
    std::thread::sleep(Duration::from_millis(1200));
    broker.up();
    // Some refusals until the size is found; each costs up to 5 s.
    within(Duration::from_secs(45), "all rows arrive", || sub.records("m/raw").len() == 2000);
    assert_eq!(lost(&sub, "packet_too_large") + lost(&sub, "closed_by_broker"), 0);
    daemon.stop_well();
}

#[test]
fn sixteen_cohorts_are_subscribed_in_packets_of_eight_and_each_answer_is_looked_at() {
    let cohorts: Vec<String> = (0..16).map(|i| format!("\"c{i}\"")).collect();
    let device = format!("site = \"plant\"\nid = \"pump-1\"\nbus = \"off\"\ncohorts = [{}]", cohorts.join(","));
    let (evil, mut tty) = (Evil::start().with_filters_most(8), Tty::default());
    let daemon = site(evil.port, &tty).with_device(&device).run();
    rows(&mut tty, 0..50);
    evil.wait_rows("m/raw", 50);
    assert_eq!((evil.filters().len(), evil.connections()), (21, 1));
    assert!(!daemon.log().contains("subscriptions"), "{}", daemon.log());
    daemon.stop_well();
    // A refusal in the first of three packets.
    let (evil, tty) = (Evil::start().with_filters_most(8).with_not_granted("_c-c1/"), Tty::default());
    let daemon = site(evil.port, &tty).with_device(&device).run();
    eventually("it is reported", || daemon.log().contains("the broker refuses 1 of 21 subscriptions").then_some(()));
    daemon.stop_well();
}

#[test]
fn keep_alive_of_0_keeps_the_connection_and_is_not_a_flood_of_pings() {
    let (evil, mut tty) = (Evil::start().with_keep_alive(0), Tty::default());
    let daemon = site(evil.port, &tty).run();
    rows(&mut tty, 0..50);
    evil.wait_rows("m/raw", 50);
    std::thread::sleep(Duration::from_secs(2));
    rows(&mut tty, 50..100);
    evil.wait_rows("m/raw", 100);
    assert_eq!(evil.connections(), 1);
    assert!(evil.pings() <= 2, "{} pings", evil.pings());
    daemon.stop_well();
}

#[test]
fn flood_beyond_the_receive_maximum_is_counted_and_reported_once() {
    // QoS 0 knows no receive maximum; control is busy meanwhile.
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let tools = tempfile::tempdir().expect("folder");
    let slow = tools.path().join("journalctl");
    std::fs::write(&slow, "#!/bin/sh\nsleep 5\n").expect("write");
    std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").expect("PATH"));
    let daemon = Site::new(broker.port).with(&operator.table()).with_env("PATH", &path).run();
    sub.wait_state("online");
    operator.order(&sub, "log.pull", "slow", &json!({}));
    sub.wait("it runs", |_| (!states(&sub, "log.pull", "slow").is_empty()).then_some(()));
    // 32 of them fill the queue to the last byte.
    let chunk = "x".repeat(32 * 1024);
    for i in 0..60 {
        let topic = format!("pump-1/dn/blob/{}/{}", "0a".repeat(32), i * chunk.len());
        operator.publish(&["-V", "5", "-q", "0"], &topic, &chunk);
    }
    // QoS 1 is flow controlled: it waits for its place, whatever a stranger floods.
    operator.plain("ping", "during", &json!({}));
    sub.wait_event("commands.refused", "messages for this device were dropped");
    end(&sub, "log.pull", "slow");
    assert_eq!(end(&sub, "ping", "during")["state"], "success");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(sub.records("e/commands.refused").len(), 1, "the first one, and a sum a minute later");
    assert_eq!(connections(&sub), 1);
    operator.plain("ping", "after", &json!({}));
    assert_eq!(end(&sub, "ping", "after")["state"], "success");
    daemon.stop_well();
}
