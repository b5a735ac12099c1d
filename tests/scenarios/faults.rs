//! Errors of the disk that pass, and a disk that hangs, below the real daemon.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use rig::{Faults, Feed, Mosquitto, Site, Sub, Tty, What, eventually, within};

const RAW: &str = "[stream.raw]\nchannels = [\"a\"]\n";

/// Rows are stored in an outage, then the disk fails for some seconds, then all is delivered.
fn passes(what: What, errno: Errno) {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let site = Site::new(broker.port).with_sensor(&tty).with(RAW);
    let faults = Faults::below(&site.state().join("outbox"));
    let site = faults.on(site);
    let mut feed = Feed::default();
    let mut daemon = site.run();
    feed.give(&mut tty, &daemon, 200, Duration::from_secs(3));
    faults.fail(what, errno);
    feed.give(&mut tty, &daemon, 200, Duration::from_secs(6));
    let met = faults.met();
    faults.end();
    assert!(met > 0, "the disk failed");
    assert!(daemon.is_alive(), "the daemon ended: {}", daemon.log());
    feed.give(&mut tty, &daemon, 200, Duration::from_secs(1));
    broker.up();
    feed.drain(&mut tty, &sub, Duration::from_secs(40));
    let tally = feed.tally(&sub);
    rig::measured(&format!("{what:?} {errno} for 6 s, {met} errors: {tally}"));
    assert_eq!((tally.missing, tally.unbooked, tally.wrong), (0, 0, 0), "{tally:?}");
    assert!(sub.records("e/store.set_aside").is_empty(), "an error that passes is no damage");
    daemon.stop_well();
}

#[test]
fn outbox_survives_descriptors_running_out() {
    passes(What::Open, Errno::EMFILE);
}

#[test]
fn outbox_survives_write_errors() {
    passes(What::Write, Errno::EIO);
}

#[test]
fn outbox_survives_failed_syncs() {
    passes(What::Sync, Errno::EIO);
}

#[test]
fn outbox_keeps_a_store_that_cannot_be_read_at_the_start() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let site = Site::new(broker.port).with_sensor(&tty).with(RAW);
    let faults = Faults::below(&site.state().join("outbox/store"));
    let site = faults.on(site);
    let mut feed = Feed::default();
    let daemon = site.run();
    feed.give(&mut tty, &daemon, 200, Duration::from_secs(3));
    daemon.kill();
    feed.ended(Instant::now());
    faults.fail(What::Read, Errno::EIO);
    let daemon = site.run();
    feed.give(&mut tty, &daemon, 200, Duration::from_secs(5));
    assert!(faults.met() > 0);
    faults.end();
    broker.up();
    feed.drain(&mut tty, &sub, Duration::from_secs(40));
    feed.tally(&sub).check();
    assert!(sub.records("e/store.set_aside").is_empty());
    daemon.stop_well();
}

#[test]
fn alarms_do_not_wait_for_a_store_that_is_slow_to_open() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let site = Site::new(broker.port).with_sensor(&tty).with(RAW).with_mean_model();
    let faults = Faults::below(&site.state().join("outbox/store"));
    let site = faults.on(site);
    let daemon = site.run();
    eventually("a model serves", || daemon.own_log().contains("serving mean@").then_some(()));
    daemon.read_rows(&mut tty, 0..500, |i| format!("{i},1,0"));
    std::thread::sleep(Duration::from_secs(2));
    daemon.kill();
    // Each call takes a second: the opening takes minutes.
    faults.hang(1000);
    broker.up();
    let began = Instant::now();
    let daemon = site.run();
    eventually("a model serves", || daemon.own_log().contains("serving mean@").then_some(()));
    sub.wait_state("online");
    daemon.read_rows(&mut tty, 500..508, |i| format!("{i},5000,0"));
    sub.wait_records("a/high", 1);
    rig::measured(&format!("alarm {:.1} s after the start, store still closed", began.elapsed().as_secs_f64()));
    let health = sub.wait("health", |m| rig::sub::records(m, "h").last().map(|(h, _)| h.clone()));
    assert_eq!(health["disk_ok"], false, "{health}");
    faults.end();
    within(Duration::from_secs(40), "the backlog is delivered", || {
        let records = sub.records("m/raw");
        let mut rows: Vec<u64> = records.iter().filter_map(|(r, _)| r["in_seq"][0].as_u64()).collect();
        rows.sort_unstable();
        rows.dedup();
        rows == (0..508).collect::<Vec<_>>()
    });
    assert!(sub.records("e/store.set_aside").is_empty());
    daemon.stop_well();
}
