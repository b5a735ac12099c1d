//! The worker may crash, hang, or answer nonsense: that costs the window in it, and nothing else.

use nix::sys::signal::Signal;
use rig::{Daemon, Mosquitto, Site, Sub, Tty, eventually, onnx};

/// Sensor sequences of all windows that were predicted, and the sums of the ledger for the pipeline by reason.
fn account(sub: &Sub) -> (Vec<u64>, u64) {
    let firsts = sub.records("p/x").iter().map(|(p, _)| p["in_seq"][0].as_u64().expect("seq")).collect();
    let lost = sub
        .records("loss")
        .iter()
        .filter(|(l, _)| l["stream"] == "p/x")
        .map(|(l, _)| l["n"].as_u64().expect("n"))
        .sum();
    (firsts, lost)
}

/// Waits until every window of `rows` rows was predicted or booked; returns those that were not predicted.
#[track_caller]
fn settled(sub: &Sub, rows: u64) -> Vec<u64> {
    let all = rows - 3;
    let (firsts, _) = sub.wait("every window predicted or booked", |_| {
        let (firsts, lost) = account(sub);
        (firsts.len() as u64 + lost == all).then_some((firsts, lost))
    });
    assert!(firsts.windows(2).all(|w| w[0] < w[1]), "in order, none twice");
    (0..all).filter(|f| !firsts.contains(f)).collect()
}

fn start(site: Site, sub: &Sub) -> (Site, Daemon) {
    let daemon = site.run();
    sub.wait_state("online");
    sub.wait_event("model.serving", "serving");
    (site, daemon)
}

#[test]
fn kill_9_of_the_worker_costs_at_most_its_window() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let (_site, mut daemon) = start(Site::new(broker.port).with_sensor(&tty).with_mean_model(), &sub);
    let mut n = 0;
    for round in 1..=3u64 {
        tty.rows(n..n + 100, |i| format!("{i},1,1"));
        n += 100;
        let old = daemon.signal_worker(Signal::SIGKILL);
        tty.rows(n..n + 100, |i| format!("{i},1,1"));
        n += 100;
        eventually("another worker", || daemon.workers().into_iter().find(|pid| *pid != old));
        let lost = settled(&sub, n);
        assert!(lost.len() as u64 <= round, "windows lost: {lost:?}");
    }
    sub.wait_event("worker.lost", "signal 9");
    assert!(daemon.is_alive());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_worker_that_hangs_is_killed_at_its_deadline_and_those_behind_it_are_served() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty);
    std::fs::write(site.dir.path().join("mean.onnx"), onnx::mean(&[1, 4, 2])).expect("model");
    let pipeline =
        "[pipeline.x]\nmodel = \"mean.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\ndeadline_ms = 300\n";
    let (_site, daemon) = start(site.with(pipeline), &sub);
    tty.rows(0..50, |i| format!("{i},1,1"));
    sub.wait_records("p/x", 47);
    daemon.signal_worker(Signal::SIGSTOP);
    tty.rows(50..150, |i| format!("{i},1,1"));
    assert_eq!(settled(&sub, 150).len(), 1, "only the window in the worker");
    sub.wait_event("worker.lost", "deadline of 300 ms");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_model_that_answers_nan_costs_those_windows_only_and_they_are_booked() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty);
    std::fs::write(site.dir.path().join("nan.onnx"), onnx::nan_on_zero(&[1, 4, 2])).expect("model");
    let pipeline = "[pipeline.x]\nmodel = \"nan.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\n";
    let (_site, daemon) = start(site.with(pipeline), &sub);
    tty.rows(0..100, |i| format!("{i},{},1", u64::from(i != 50)));
    assert_eq!(settled(&sub, 100), [47, 48, 49, 50]);
    let booked: Vec<_> = sub.records("loss").iter().map(|(l, _)| l["reason"].clone()).collect();
    assert!(booked.iter().all(|reason| reason == "not_finite"), "{booked:?}");
    assert_eq!(daemon.workers().len(), 1, "the worker did nothing wrong");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn workers_die_with_their_daemon() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let (_site, daemon) = start(Site::new(broker.port).with_sensor(&tty).with_mean_model(), &sub);
    let worker = eventually("a worker", || daemon.workers().first().copied());
    daemon.kill();
    // A process that ended but was not waited for yet has no command line.
    let gone = || std::fs::read(format!("/proc/{worker}/cmdline")).map_or(true, |line| line.is_empty());
    eventually("the worker is gone", || gone().then_some(()));
}

#[test]
fn the_runtime_in_the_worker_writes_no_file_and_calls_nobody() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let (site, daemon) = start(Site::new(broker.port).with_sensor(&tty).with_mean_model(), &sub);
    tty.rows(0..50, |i| format!("{i},1,1"));
    sub.wait_records("p/x", 47);
    let worker = eventually("a worker", || daemon.workers().first().copied());
    let target = |fd: &std::path::Path| std::fs::read_link(fd).map(|to| to.display().to_string()).unwrap_or_default();
    let folder = std::path::PathBuf::from(format!("/proc/{worker}/fd"));
    let (doorbell, log) = (target(&folder.join("0")), site.dir.path().join("log").display().to_string());
    for fd in std::fs::read_dir(&folder).expect("fds").flatten() {
        let to = target(&fd.path());
        let known = to.is_empty() || to == doorbell || to == log || to == "/dev/null";
        assert!(known || to.starts_with("/memfd:kentledge") || to.starts_with("pipe:"), "the worker has {to} open");
    }
    assert_eq!(daemon.stop(), Some(0));
}
