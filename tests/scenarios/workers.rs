//! The worker may crash, hang, or answer nonsense: that costs the window in it, and nothing else.

use nix::sys::signal::Signal;
use rig::{Crime, Daemon, Mosquitto, Site, Sub, Tty, eventually, measured, onnx};

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

/// Waits until every window of `rows` rows was predicted or recorded as lost; returns those that were not predicted.
#[track_caller]
fn settled(sub: &Sub, rows: u64) -> Vec<u64> {
    let all = rows - 3;
    let (firsts, _) = sub.wait("every window predicted or recorded as lost", |_| {
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
    daemon.stop_well();
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
    daemon.stop_well();
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
    let entered: Vec<_> = sub.records("loss").iter().map(|(l, _)| l["reason"].clone()).collect();
    assert!(entered.iter().all(|reason| reason == "not_finite"), "{entered:?}");
    assert_eq!(daemon.workers().len(), 1, "the worker did nothing wrong");
    daemon.stop_well();
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
    daemon.stop_well();
}

/// A daemon whose worker was taken over by a library that commits this crime, its deadline 300 ms.
fn taken_over(crime: Crime, sub: &Sub, tty: &Tty, port: u16) -> Daemon {
    taken_over_on("", crime, sub, tty, port)
}

/// The same with this in `[models]`.
fn taken_over_on(models: &str, crime: Crime, sub: &Sub, tty: &Tty, port: u16) -> Daemon {
    let site = Site::new(port).with_sensor(tty).with_hostile_runtime(crime).with_more_models(models);
    std::fs::write(site.dir.path().join("mean.onnx"), onnx::mean(&[1, 4, 2])).expect("model");
    let pipeline =
        "[pipeline.x]\nmodel = \"mean.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\ndeadline_ms = 300\n";
    let daemon = site.with(pipeline).run();
    sub.wait_state("online");
    daemon
}

#[test]
fn worker_that_was_taken_over_before_its_first_window_is_let_through_nothing() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = taken_over(Crime::Try, &sub, &tty, broker.port);
    let event = sub.wait_event("model.failed", "let through: ");
    measured(event["text"].as_str().expect("text"));
    assert!(event["text"].as_str().is_some_and(|text| text.ends_with("let through: nothing else")), "{event}");
    daemon.stop_well();
}

#[test]
fn worker_with_a_driver_that_was_taken_over_is_let_through_what_drivers_need() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let driver = "providers = [\"openvino\"]\nprovider_policy = \"require\"";
    let daemon = taken_over_on(driver, Crime::Try, &sub, &tty, broker.port);
    let event = sub.wait_event("model.failed", "let through: ");
    measured(event["text"].as_str().expect("text"));
    // Its own events, and reserving addresses: what it holds is looked at from outside.
    let needed = "let through: mmap MAP_SHARED, mmap MAP_GROWSDOWN, mmap 64 GiB, pipe2, epoll_create1, nothing else";
    assert!(event["text"].as_str().is_some_and(|text| text.ends_with(needed)), "{event}");
    daemon.stop_well();
}

#[track_caller]
fn answer_is_rejected(crime: Crime, why: &str) {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let mut daemon = taken_over(crime, &sub, &tty, broker.port);
    sub.wait_event("model.failed", why);
    assert!(daemon.is_alive());
    daemon.stop_well();
}

#[test]
fn worker_answer_without_sizes_is_rejected_and_the_daemon_goes_on() {
    answer_is_rejected(Crime::NoSizes, "sizes of 0 outputs, and 1 are wanted");
}

#[test]
fn worker_answer_with_a_wrapping_size_is_rejected_and_the_daemon_goes_on() {
    answer_is_rejected(Crime::WrappingSizes, "more than 8192 values");
}

#[test]
fn worker_answer_with_a_wrapping_shape_is_rejected_and_the_daemon_goes_on() {
    answer_is_rejected(Crime::HugeShape, "reject the worker's answer: a tensor has more than");
}

/// The worker gains neither time nor a prediction that no model made, and is lost for this reason.
#[track_caller]
fn lie_is_found_out(crime: Crime, why: &str) {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let mut daemon = taken_over(crime, &sub, &tty, broker.port);
    sub.wait_event("model.serving", "hostile");
    tty.rows(0..4, |i| format!("{i},1,1"));
    sub.wait("the first window is lost", |_| (account(&sub).1 == 1).then_some(()));
    tty.rows(4..5, |i| format!("{i},1,1"));
    let event = sub.wait_event("worker.lost", "");
    assert!(event["text"].as_str().is_some_and(|text| text.contains(why)), "{event}");
    assert!(daemon.is_alive());
    assert_eq!(sub.records("p/x").len(), 0, "no model wrote that");
    daemon.stop_well();
}

#[test]
fn worker_that_raises_its_counter_is_killed_at_its_deadline() {
    lie_is_found_out(Crime::RaiseDone, "deadline of 300 ms");
}

#[test]
fn worker_that_counts_windows_it_never_ran_makes_no_prediction() {
    lie_is_found_out(Crime::DoneAtOnce, "ended with code 4");
}

#[test]
fn worker_that_answers_a_ring_before_it_is_made_is_killed() {
    lie_is_found_out(Crime::StaleAnswers, "it answered what it was not asked");
}

#[test]
fn worker_that_shortens_the_shared_memory_does_not_end_the_daemon() {
    lie_is_found_out(Crime::Shorten, "ended with code 3");
}

#[test]
fn descriptors_that_a_worker_sends_do_not_pile_up_in_the_daemon() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = taken_over(Crime::SendDescriptors, &sub, &tty, broker.port);
    let starts = |n: usize| {
        sub.wait("starts", |_| (sub.records("e/model.failed").len() >= n).then_some(()));
        daemon.fds()
    };
    let (first, last) = (starts(1), starts(5));
    measured(&format!("{first} descriptors after one start, {last} after five"));
    assert!(last < first + 3, "{first} descriptors after one start, {last} after five");
    daemon.stop_well();
}

#[test]
fn worker_that_writes_to_stderr_without_end_fills_no_log() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = taken_over(Crime::FloodStderr, &sub, &tty, broker.port);
    sub.wait_event("model.serving", "hostile");
    tty.rows(0..8, |i| format!("{i},1,1"));
    sub.wait("every window is answered", |_| (account(&sub).1 == 5).then_some(()));
    let log = daemon.stop_well();
    measured(&format!("a log of {} bytes", log.len()));
    assert!(log.len() < 100_000, "a log of {} bytes", log.len());
    assert!(log.contains("lines to its standard error") && log.contains("were dropped"), "{log}");
}
