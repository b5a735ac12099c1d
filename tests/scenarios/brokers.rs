//! Brokers that offer less than MQTT 5 has, several of them, and what stands between: what was accepted arrives.

use std::{fs, time::Duration};

use rig::{Cable, Evil, Gate, Mosquitto, Site, Sub, Tty, Wire, eventually, free_port};
use rumqttc::v5::mqttbytes::v5::ConnectReturnCode;

const STREAM: &str = "[stream.raw]\nchannels = [\"a\"]\n";

fn rows(tty: &mut Tty, range: std::ops::Range<u64>) {
    tty.rows(range, |i| format!("{i},{i},0"));
}

#[test]
fn broker_without_qos_1_and_retain_that_cuts_gets_every_row_and_is_asked_for_less_once() {
    let (evil, mut tty) = (Evil::start().without_qos1_and_retain(), Tty::default());
    let daemon = Site::new(evil.port).with_sensor(&tty).with(STREAM).run();
    rows(&mut tty, 0..500);
    evil.wait_rows("m/raw", 500);
    let refused = [ConnectReturnCode::RetainNotSupported, ConnectReturnCode::QoSNotSupported];
    assert_eq!(evil.refused(), refused);
    // What is under way when the connection breaks is sent again: only the answer of a ping after it counts.
    rows(&mut tty, 500..1500);
    evil.cut();
    rows(&mut tty, 1500..2000);
    evil.wait_rows("m/raw", 2000);
    assert_eq!(evil.refused(), refused, "CONNACK says it, so it is not tried again");
    let log = daemon.log();
    assert_eq!(log.matches("the broker offers less").count(), 1, "{log}");
    assert!(log.contains("it acknowledges no message") && log.contains("it keeps no retained messages"), "{log}");
    assert!(evil.records("loss").is_empty());
    daemon.stop_well();
}

#[test]
fn broker_that_takes_one_filter_at_a_time_gets_them_one_by_one_and_the_log_names_the_stage() {
    let evil = Evil::start().with_filters_most(1);
    let daemon = Site::new(evil.port).run();
    eventually("all are subscribed", || (evil.filters().len() == 5).then_some(()));
    assert_eq!(evil.connections(), 4, "8, 4, 2, 1 in a packet");
    let log = daemon.log();
    assert!(
        log.contains("after SUBSCRIBE and gave no reason: likely its ACL forbids reading `kl/plant/pump-1/dn/#`"),
        "{log}"
    );
    assert!(!log.contains("another client connected"), "{log}");
    daemon.stop_well();
}

#[test]
fn second_broker_takes_over_where_the_first_is_gone_and_no_row_is_lost_between_them() {
    let (first, second, mut tty) = (Evil::start(), Evil::start(), Tty::default());
    let cable = Cable::to(first.port);
    let mqtt = format!("[mqtt]\nurl = [\"mqtt://127.0.0.1:{}\", \"mqtt://127.0.0.1:{}\"]\n", cable.port, second.port);
    let daemon = Site::offline().with(&mqtt).with_sensor(&tty).with(STREAM).run();
    rows(&mut tty, 0..500);
    first.wait_rows("m/raw", 500);
    assert_eq!(second.connections(), 0);
    cable.set(Wire::Refused);
    first.cut();
    rows(&mut tty, 500..1000);
    let at_second = eventually("the second has what the first did not get", || {
        let rows = second.rows("m/raw", true);
        (rows.last() == Some(&999) && rows.len() >= 500).then_some(rows)
    });
    let missing = (0..1000).find(|row| !first.rows("m/raw", true).contains(row) && !at_second.contains(row));
    assert_eq!(missing, None);
    assert!(at_second.is_sorted(), "in the order they were made");
    let log = daemon.log();
    assert!(log.contains(&format!("connected broker=127.0.0.1:{}", second.port)), "{log}");
    daemon.stop_well();
}

#[test]
fn broker_in_a_websocket_behind_a_proxy_that_demands_a_topic_prefix_gets_every_row() {
    let (evil, mut tty) = (Evil::start(), Tty::default());
    let gate = Gate::before(evil.port);
    let site = Site::offline().with_sensor(&tty).with(STREAM);
    let password = site.state().with_file_name("gate-password");
    fs::write(&password, "gate\n").expect("write");
    let daemon = site
        .with(&format!(
            "[mqtt]\nurl = \"ws://127.0.0.1:{}/mqtt\"\nproxy = \"http://127.0.0.1:{}\"\nproxy_username = \"plant\"\n\
             proxy_password_file = \"{}\"\ntopic_prefix = \"tenant/7\"\n",
            gate.websocket,
            gate.proxy,
            password.display()
        ))
        .run();
    rows(&mut tty, 0..3000);
    evil.wait_rows("m/raw", 3000);
    let filters = evil.filters();
    assert!(filters.len() == 5 && filters.iter().all(|f| f.starts_with("tenant/7/kl/plant/")), "{filters:?}");
    assert_eq!(evil.connections(), 1);
    daemon.stop_well();
}

#[test]
fn topics_are_sent_as_numbers_where_the_broker_takes_aliases_and_again_whole_on_the_next_connection() {
    let (evil, mut tty) = (Evil::start().with_aliases(1), Tty::default());
    let daemon = Site::new(evil.port).with_sensor(&tty).with(STREAM).run();
    rows(&mut tty, 0..500);
    evil.wait_rows("m/raw", 500);
    evil.cut();
    rows(&mut tty, 500..1500);
    evil.wait_rows("m/raw", 1500);
    // Of a slow machine's daemon a single message may hold all of these rows.
    let mut n = 1500;
    rig::within(Duration::from_secs(60), "a message has an alias alone", || {
        rows(&mut tty, n..n + 10);
        n += 10;
        evil.wait_rows("m/raw", n);
        evil.aliased() > 0
    });
    assert!(evil.records("loss").is_empty());
    daemon.stop_well();
}

#[test]
fn real_broker_takes_every_row_by_websocket_and_by_websocket_in_tls() {
    let (dir, mut tty) = (tempfile::tempdir().expect("folder"), Tty::default());
    let ca = rig::tls::authority(dir.path(), "ca");
    rig::tls::certificate(dir.path(), "server", &ca);
    let (ws, wss, at) = (free_port(), free_port(), dir.path().display());
    let broker = Mosquitto::with(&format!(
        "listener {ws} 127.0.0.1\nprotocol websockets\nlistener {wss} 127.0.0.1\nprotocol websockets\ncertfile {at}/server.pem\n\
         keyfile {at}/server.key"
    ));
    let sub = Sub::new(broker.port);
    let mut site = Site::offline().with_sensor(&tty).with(STREAM);
    let urls = [format!("ws://127.0.0.1:{ws}/mqtt"), format!("wss://localhost:{wss}\"\nca_file = \"{at}/ca.pem")];
    let mut from = 0;
    for url in urls {
        let mqtt = format!("[mqtt]\nurl = \"{url}\"\n");
        site = site.with(&mqtt);
        let daemon = site.run();
        sub.wait_state("online");
        rows(&mut tty, from..from + 1000);
        from += 1000;
        sub.wait_records("m/raw", from as usize);
        assert!(!daemon.own_log().contains("connection lost"), "{}", daemon.own_log());
        daemon.stop_well();
        sub.wait_state("offline");
        site = site.without(&mqtt);
    }
}
