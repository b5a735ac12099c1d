//! Brokers and wires that misbehave: what was accepted stays accepted, and what is not accepted is sent again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rig::{Cable, Evil, Manner, Mosquitto, Site, Sub, Tty, Wire, eventually, within};
use rumqttc::v5::{Client, MqttOptions, mqttbytes::v5::PubAckReason};

fn site(port: u16, tty: &Tty) -> Site {
    Site::new(port).with_sensor(tty).with("[stream.raw]\nchannels = [\"a\"]\n")
}

fn rows(tty: &mut Tty, range: std::ops::Range<u64>) {
    tty.rows(range, |i| format!("{i},{i},0"));
}

#[test]
fn a_broker_that_forgets_sessions_and_cuts_gets_every_row() {
    let (evil, mut tty) = (Evil::start(), Tty::default());
    let daemon = site(evil.port, &tty).run();
    for n in 0..5 {
        eventually("it is connected", || (evil.connections() as u64 > n).then_some(()));
        rows(&mut tty, n * 300..(n + 1) * 300);
        eventually("some of it arrives", || (evil.rows("m/raw", false).len() as u64 > n * 300).then_some(()));
        evil.cut();
    }
    evil.wait_rows("m/raw", 1500);
    daemon.stop_well();
}

#[test]
fn only_a_good_answer_counts_as_delivered() {
    let (evil, mut tty) = (Evil::start(), Tty::default());
    let daemon = site(evil.port, &tty).run();
    evil.behave(Manner::RefuseSome(PubAckReason::QuotaExceeded, 3));
    // Each refusal ends the connection.
    for n in 0..4 {
        rows(&mut tty, n * 50..(n + 1) * 50);
        eventually("it was sent", || (evil.rows("m/raw", false).len() as u64 > n * 50).then_some(()));
    }
    assert!(evil.rows("m/raw", true).len() < evil.rows("m/raw", false).len(), "some were refused");
    evil.behave(Manner::Good);
    evil.wait_rows("m/raw", 200);
    daemon.stop_well();
}

#[test]
fn what_a_broker_will_never_take_is_in_the_ledger_and_holds_up_nothing() {
    let (evil, mut tty) = (Evil::start(), Tty::default());
    let daemon = site(evil.port, &tty).run();
    evil.behave(Manner::Refuse(PubAckReason::NotAuthorized));
    // Several messages.
    for n in 0..10 {
        rows(&mut tty, n * 10..(n + 1) * 10);
        std::thread::sleep(Duration::from_millis(100));
    }
    let refused = eventually("all rejected rows are in the loss ledger", || {
        let entries = evil.records("loss");
        let n: u64 = entries.iter().filter_map(|e| e["n"].as_u64()).sum();
        (n == 100).then_some(entries)
    });
    assert!(refused.iter().all(|e| e["stream"] == "m/raw" && e["reason"] == "refused_by_broker"), "{refused:?}");
    let (first, last) = (&refused[0]["first"], &refused[refused.len() - 1]["last"]);
    assert_eq!((first.as_u64(), last.as_u64()), (Some(1), Some(100)));
    evil.behave(Manner::Good);
    rows(&mut tty, 100..200);
    eventually("what comes later arrives", || {
        (evil.rows("m/raw", true) == (100..200).collect::<Vec<_>>()).then_some(())
    });
    assert_eq!(evil.connections(), 1);
    let lines = daemon.log().lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).count();
    assert!(lines <= 3, "said once and counted, not a line for each message: {lines}\n{}", daemon.log());
    daemon.stop_well();
}

#[test]
fn a_receive_maximum_of_one_is_obeyed_by_live_data_and_backlog() {
    let (evil, mut tty) = (Evil::start().with_receive_max(1), Tty::default());
    let cable = Cable::to(evil.port);
    cable.set(Wire::Refused);
    let daemon = site(cable.port, &tty).run();
    daemon.read_rows(&mut tty, 0..3000, |i| format!("{i},{i},0"));
    std::thread::sleep(Duration::from_millis(1200));
    cable.set(Wire::Passes);
    rows(&mut tty, 3000..4000);
    evil.wait_rows("m/raw", 4000);
    assert_eq!(evil.in_flight_most(), 1, "never a second one before the first was answered");
    daemon.stop_well();
}

#[test]
fn answers_out_of_order_hold_up_nothing() {
    for receive_max in [2, 3, 20] {
        let (evil, mut tty) = (Evil::start().with_receive_max(receive_max), Tty::default());
        evil.behave(Manner::Backwards);
        let daemon = site(evil.port, &tty).run();
        // Until two messages are on their way together: a daemon that is slower than this feed makes one of it all.
        let mut n = 0;
        while n < 2_000 || (evil.in_flight_most() < 2 && n < 200_000) {
            rows(&mut tty, n..n + 50);
            n += 50;
            std::thread::sleep(Duration::from_millis(1));
        }
        evil.wait_rows("m/raw", n);
        assert_eq!(evil.connections(), 1, "receive maximum {receive_max}");
        let together = evil.in_flight_most();
        assert!((2..=usize::from(receive_max)).contains(&together), "{together} at once of {receive_max}");
        daemon.stop_well();
    }
}

#[test]
fn a_broker_that_answers_pings_and_nothing_else_is_left_and_gets_it_all_later() {
    let (evil, mut tty) = (Evil::start(), Tty::default());
    let daemon = site(evil.port, &tty).with_mqtt("keep_alive_s = 5").run();
    rows(&mut tty, 0..100);
    evil.wait_rows("m/raw", 100);
    evil.behave(Manner::Silent);
    rows(&mut tty, 100..200);
    within(Duration::from_secs(45), "the connection is given up", || evil.lasted(0).is_some());
    // The line is written a moment after the connection ended.
    eventually("it says why", || daemon.log().contains("the broker does not acknowledge").then_some(()));
    evil.behave(Manner::Good);
    evil.wait_rows("m/raw", 200);
    daemon.stop_well();
}

#[test]
fn a_broker_that_needs_longer_than_ten_seconds_for_a_connection_gets_longer_the_next_time() {
    let (evil, mut tty) = (Evil::start().with_slow_connect(Duration::from_secs(12)), Tty::default());
    let daemon = site(evil.port, &tty).run();
    rows(&mut tty, 0..100);
    within(Duration::from_secs(60), "the rows are there", || evil.rows("m/raw", true).len() >= 100);
    // The first was left after ten seconds.
    assert_eq!(evil.connections(), 2);
    daemon.stop_well();
}

#[test]
fn a_half_open_connection_is_noticed_within_35_s_at_keep_alive_15() {
    // Once with a quiet sensor, once with one that fills every buffer: a writer that is stuck must not stop the watch.
    std::thread::scope(|scope| {
        for flood in [false, true] {
            scope.spawn(move || {
                let (evil, mut tty) = (Evil::start(), Tty::default());
                let cable = Cable::to(evil.port);
                let daemon = site(cable.port, &tty).with_mqtt("keep_alive_s = 15").run();
                rows(&mut tty, 0..10);
                evil.wait_rows("m/raw", 10);
                cable.set(Wire::Stalled);
                let stalled = Instant::now();
                let mut n = 10;
                within(Duration::from_secs(40), "it is noticed", || {
                    // Enough to fill the kernel's buffers and the tail.
                    let more = if flood && n < 100_000 { 2000 } else { 1 };
                    rows(&mut tty, n..n + more);
                    n += more;
                    daemon.log().contains("no connection")
                });
                let noticed = stalled.elapsed();
                rig::measured(&format!(
                    "half-open, flood {flood}: noticed after {:.1} s, {n} rows",
                    noticed.as_secs_f64()
                ));
                assert!(noticed < Duration::from_secs(35), "{noticed:?}");
                cable.set(Wire::Passes);
                cable.cut();
                within(Duration::from_secs(60), "all rows arrive", || {
                    std::thread::sleep(Duration::from_millis(300));
                    let mut rows = evil.rows("m/raw", true);
                    rows.sort_unstable();
                    rows.dedup();
                    rows.len() as u64 == n
                });
                daemon.stop_well();
            });
        }
    });
}

#[test]
fn short_connections_without_a_reason_are_reported_and_taken_for_no_twin() {
    // mosquitto 2.0.11 does not say that another client took the session over; it only closes.
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = site(broker.port, &tty).run();
    rows(&mut tty, 0..10);
    sub.wait_records("m/raw", 10);
    let (_client, mut connection) = Client::new(MqttOptions::new("kl-plant-pump-1", "127.0.0.1", broker.port), 4);
    let fights = Arc::new(AtomicBool::new(true));
    let twin = std::thread::spawn({
        let fights = fights.clone();
        // It comes back soon, whenever it is thrown out itself; not at once, or ours could send nothing in between.
        let soon = Duration::from_millis(500);
        let pause = move |event: &Result<_, _>| {
            if event.is_err() {
                std::thread::sleep(soon);
            }
        };
        move || connection.iter().inspect(pause).take_while(|_| fights.load(Ordering::Relaxed)).count()
    });
    within(Duration::from_secs(40), "it is reported", || {
        sub.records("e/outage").iter().any(|(e, _)| e["text"].as_str().is_some_and(|t| t.contains("short-lived")))
    });
    rows(&mut tty, 10..200);
    fights.store(false, Ordering::Relaxed);
    // The twin gives way once it is thrown out again; ours has lost nothing.
    within(Duration::from_secs(40), "all rows arrive", || sub.records("m/raw").len() == 200);
    assert!(sub.records("e/link.twin").is_empty(), "the broker did not say so");
    drop(twin);
    daemon.stop_well();
}

#[test]
fn a_broker_that_names_the_twin_is_believed_at_once() {
    let (evil, mut tty) = (Evil::start(), Tty::default());
    let daemon = site(evil.port, &tty).run();
    rows(&mut tty, 0..10);
    evil.wait_rows("m/raw", 10);
    evil.take_over();
    let named = "another client connected as kl-plant-pump-1";
    eventually("the twin is noticed", || daemon.log().contains(named).then_some(()));
    rows(&mut tty, 10..100);
    within(Duration::from_secs(40), "ours is back", || !evil.records("e/link.twin").is_empty());
    assert_eq!(evil.connections(), 2);
    evil.wait_rows("m/raw", 100);
    daemon.stop_well();
}

#[test]
fn alarms_and_live_data_overtake_the_backlog_on_a_slow_wire() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let cable = Cable::to(broker.port);
    cable.set(Wire::Refused);
    let daemon = site(cable.port, &tty).with_mean_model().run();
    // A backlog of 1.3 MB.
    daemon.read_rows(&mut tty, 0..20_000, |i| format!("{i},1,0"));
    std::thread::sleep(Duration::from_millis(1500));
    cable.set(Wire::Drips(2000));
    sub.wait_state("online");
    rows(&mut tty, 20_000..20_200);
    // Rows of 20,000 are far above the threshold: an alarm.
    sub.wait_records("a/high", 1);
    let live = sub.wait("live rows", |m| {
        let live = rig::sub::records(m, "m/raw").into_iter().filter(|(_, hist)| !hist).count();
        (live > 0).then(|| rig::sub::records(m, "m/raw").len())
    });
    assert!(live < 15_000, "they did not wait for the backlog: {live} rows before them");
    cable.set(Wire::Passes);
    sub.wait_records("m/raw", 20_200);
    daemon.stop_well();
}

#[test]
fn a_frozen_broker_is_left_and_gets_everything_when_it_is_back() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = site(broker.port, &tty).with_mqtt("keep_alive_s = 5").run();
    rows(&mut tty, 0..100);
    sub.wait_records("m/raw", 100);
    broker.signal(Signal::SIGSTOP);
    rows(&mut tty, 100..600);
    within(Duration::from_secs(20), "it is noticed", || daemon.log().contains("no connection"));
    broker.signal(Signal::SIGCONT);
    within(Duration::from_secs(30), "all rows arrive", || sub.records("m/raw").len() == 600);
    daemon.stop_well();
}
