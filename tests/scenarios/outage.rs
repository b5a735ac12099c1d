//! The broker may be away: nothing that was made is lost. (Power cuts, full disks and evil brokers are the next issue's.)

use nix::sys::signal::Signal;
use rig::{Mosquitto, Site, Sub, Tty, eventually};

fn site(port: u16, tty: &Tty) -> Site {
    Site::new(port).with_sensor(tty).with("[stream.raw]\nchannels = [\"a\"]\n")
}

/// Sensor sequences of all rows that arrived, sorted; each once.
fn rows(sub: &Sub) -> Vec<u64> {
    let mut rows: Vec<u64> = sub.records("m/raw").iter().map(|(r, _)| r["in_seq"][0].as_u64().expect("seq")).collect();
    rows.sort_unstable();
    rows
}

#[test]
fn a_broker_that_is_not_there_yet_gets_everything_later_marked_as_history() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let daemon = site(broker.port, &tty).run();
    eventually("the port is open", || daemon.log().contains("serial port open").then_some(()));
    tty.rows(0..2000, |i| format!("{i},{i},0"));
    // Kept on disk, not only in memory: a commit closes within a second.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    broker.up();
    sub.wait_records("m/raw", 2000);
    assert_eq!(rows(&sub), (0..2000).collect::<Vec<_>>());
    let hist = sub.records("m/raw").iter().filter(|(_, hist)| *hist).count();
    assert!(hist > 1000, "most of it was kept during the outage: {hist}");
    daemon.stop_well();
}

#[test]
fn an_outage_in_the_middle_loses_nothing_and_keeps_each_lane_in_order() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = site(broker.port, &tty).run();
    sub.wait_state("online");
    let mut n = 0;
    for _ in 0..3 {
        tty.rows(n..n + 500, |i| format!("{i},{i},0"));
        broker.stop();
        tty.rows(n + 500..n + 1000, |i| format!("{i},{i},0"));
        n += 1000;
        broker.up();
    }
    sub.wait_records("m/raw", n as usize);
    assert_eq!(rows(&sub), (0..n).collect::<Vec<_>>());
    for lane in [false, true] {
        let seqs: Vec<u64> = sub
            .records("m/raw")
            .iter()
            .filter(|(_, hist)| *hist == lane)
            .map(|(r, _)| r["seq"].as_u64().expect("seq"))
            .collect();
        assert!(seqs.windows(2).all(|w| w[0] < w[1]), "hist {lane}: in order");
    }
    daemon.stop_well();
}

#[test]
fn a_daemon_that_is_killed_in_an_outage_still_has_what_it_had_stored() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let site = site(broker.port, &tty);
    let daemon = site.run();
    eventually("the port is open", || daemon.log().contains("serial port open").then_some(()));
    tty.rows(0..1000, |i| format!("{i},{i},0"));
    std::thread::sleep(std::time::Duration::from_millis(2000));
    daemon.kill();
    let daemon = site.run();
    broker.up();
    sub.wait_records("m/raw", 1000);
    tty.rows(1000..1100, |i| format!("{i},{i},0"));
    sub.wait_records("m/raw", 1100);
    assert_eq!(rows(&sub), (0..1100).collect::<Vec<_>>());
    let mut seqs: Vec<u64> = sub.records("m/raw").iter().map(|(r, _)| r["seq"].as_u64().expect("seq")).collect();
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs.len(), 1100, "no sequence number is used twice");
    daemon.stop_well();
}

#[test]
fn a_stop_in_an_outage_keeps_what_was_not_sent() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let site = site(broker.port, &tty);
    let daemon = site.run();
    eventually("the port is open", || daemon.log().contains("serial port open").then_some(()));
    daemon.read_rows(&mut tty, 0..300, |i| format!("{i},{i},0"));
    daemon.stop_well();
    broker.up();
    let daemon = site.run();
    sub.wait_records("m/raw", 300);
    assert_eq!(rows(&sub), (0..300).collect::<Vec<_>>());
    daemon.stop_well();
}

#[test]
fn a_frozen_broker_is_survived() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = site(broker.port, &tty).run();
    sub.wait_state("online");
    tty.rows(0..100, |i| format!("{i},{i},0"));
    sub.wait_records("m/raw", 100);
    broker.signal(Signal::SIGSTOP);
    tty.rows(100..600, |i| format!("{i},{i},0"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    broker.signal(Signal::SIGCONT);
    sub.wait_records("m/raw", 600);
    assert_eq!(rows(&sub), (0..600).collect::<Vec<_>>());
    daemon.stop_well();
}

#[test]
fn an_alarm_that_cleared_in_an_outage_is_not_left_raised_at_the_broker_by_its_older_record() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model();
    let daemon = site.run();
    eventually("the model serves", || daemon.log().contains("serving").then_some(()));
    tty.rows(0..20, |i| format!("{i},50,50"));
    eventually("the alarm is raised", || daemon.log().contains(" raised: ").then_some(()));
    daemon.stop_well();
    // The next start knows that it is raised, and sees it clear: that record is sent first.
    let daemon = site.run();
    eventually("the model serves again", || daemon.own_log().contains("serving").then_some(()));
    tty.rows(20..40, |i| format!("{i},0,0"));
    eventually("the alarm clears", || daemon.own_log().contains(" cleared: ").then_some(()));
    broker.up();
    sub.wait_records("a/high", 2);
    daemon.stop_well();
    let late = std::thread::scope(|s| s.spawn(|| Sub::new(broker.port)).join().expect("late"));
    late.wait_state("offline");
    let kept: Vec<_> = late.messages().into_iter().filter(|m| m.stream.starts_with("a/")).collect();
    assert!(kept.is_empty(), "the broker keeps {kept:?}");
}

/// The example consumer, following one stream from its first record.
struct Follow(std::process::Child, std::path::PathBuf);

impl Follow {
    fn start(port: u16, dir: &std::path::Path) -> Self {
        let out = dir.join("followed");
        let file = |name: &str| std::fs::File::create(dir.join(name)).expect("file");
        let mut python = std::process::Command::new("python3");
        python.arg(rig::root().join("tests/client/kentledge_follow.py")).env("PYTHONPATH", rig::python());
        python.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--to", "plant/pump-1", "m/raw"]);
        let child = python.stdout(file("followed")).stderr(file("log")).spawn().expect("python3");
        let log = dir.join("log");
        eventually("it follows", || std::fs::read_to_string(&log).ok().filter(|text| text.contains("following")));
        Self(child, out)
    }

    fn seqs(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(&self.1).expect("what it printed");
        // The last line may be half written.
        let records = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        records.filter_map(|record| record["seq"].as_u64()).collect()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn live_and_hist_records_are_each_in_order_and_the_example_consumer_merges_them() {
    let (broker, mut tty, dir) = (Mosquitto::start(), Tty::default(), tempfile::tempdir().expect("folder"));
    let (sub, follow) = (Sub::new(broker.port), Follow::start(broker.port, dir.path()));
    let cable = rig::Cable::to(broker.port);
    // Slow enough that live rows come while the backlog is sent.
    let daemon = site(cable.port, &tty).with("[outbox]\nbacklog_kib_s = 100\n").run();
    sub.wait_state("online");
    tty.rows(0..200, |i| format!("{i},{i},0"));
    sub.wait_records("m/raw", 200);
    cable.set(rig::Wire::Refused);
    cable.cut();
    daemon.read_rows(&mut tty, 200..8000, |i| format!("{i},{i},0"));
    std::thread::sleep(std::time::Duration::from_millis(1500));
    cable.set(rig::Wire::Passes);
    sub.wait_event("outage", "no connection for");
    tty.rows(8000..8100, |i| format!("{i},{i},0"));
    let records = sub.wait_records("m/raw", 8100);
    let lane = |lane: bool| -> Vec<u64> {
        let of_lane = records.iter().filter(|(_, hist)| *hist == lane);
        of_lane.map(|(record, _)| record["seq"].as_u64().expect("seq")).collect()
    };
    assert!(lane(false).is_sorted() && lane(true).is_sorted(), "each lane is in order");
    let place = |seq: u64| records.iter().position(|(record, _)| record["seq"] == seq);
    assert!(place(8001) < place(8000), "live rows overtake the backlog: between the two there is no order");
    eventually("the consumer has them all", || (follow.seqs().len() == 8100).then_some(()));
    assert_eq!(follow.seqs(), (1..=8100).collect::<Vec<_>>(), "in one order, each once");
    daemon.stop_well();
}
