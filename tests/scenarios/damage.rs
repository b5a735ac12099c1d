//! Files torn in every way: the daemon starts, reports what it quarantined, and never uses damaged data.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::Duration,
};

use rig::{Feed, Mosquitto, SOON, Site, Sub, Tear, Tty, eventually};

const RAW: &str = "[stream.raw]\nchannels = [\"a\"]\n";

/// A state directory with some thousand rows in its store, left by a kill. Returns how many rows were made.
fn filled(site: &Site, tty: &mut Tty) -> Feed {
    let daemon = site.run();
    let mut feed = Feed::default();
    for _ in 0..4 {
        feed.give(tty, &daemon, 1500, Duration::from_millis(500));
        std::thread::sleep(Duration::from_millis(300));
    }
    std::thread::sleep(Duration::from_millis(1300));
    daemon.kill();
    feed
}

fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(done.expect("cp").success());
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() { all.extend(files(&entry.path())) } else { all.push(entry.path()) }
    }
    all.sort();
    all
}

/// Starts on a state directory, waits for READY, stops. Returns the log.
fn starts(state: &Path) -> String {
    let site = Site::offline().with_state(state);
    let path = site.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    socket.set_read_timeout(Some(SOON)).expect("time-out");
    let daemon = site.with_env("NOTIFY_SOCKET", path.to_str().expect("path")).run();
    let mut buffer = [0; 4096];
    loop {
        let n = socket.recv(&mut buffer).unwrap_or_else(|why| panic!("READY: {why}\n{}", daemon.log()));
        if String::from_utf8_lossy(&buffer[..n]).contains("READY=1") {
            break;
        }
    }
    daemon.stop_well()
}

#[test]
fn torn_files_never_keep_the_daemon_from_starting() {
    let (broker, mut tty) = (Mosquitto::down(), Tty::default());
    let site = Site::new(broker.port).with_sensor(&tty).with(RAW);
    filled(&site, &mut tty);
    let cases = if rig::long() { 1000 } else { 200 };
    let seen = std::sync::Mutex::new([0; 3]);
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (state, seen) = (site.state(), &seen);
            scope.spawn(move || {
                for case in (worker..cases).step_by(2) {
                    let dir = tempfile::TempDir::new().expect("folder");
                    let torn = dir.path().join("state");
                    copy(&state, &torn);
                    // Every other case tears the database itself, the rest any file of the outbox.
                    let all = files(&torn.join("outbox"));
                    let db = torn.join("outbox/store/db");
                    let target = if case % 4 < 2 { db } else { all[fastrand::usize(..all.len())].clone() };
                    let tear = Tear::ALL[case / 2 % 3];
                    if !tear.apply(&target, fastrand::f64()) {
                        continue;
                    }
                    let log = starts(&torn);
                    let aside = torn.join("outbox/quarantine-1").exists();
                    assert_eq!(aside, log.contains("it was set aside as"), "{tear:?} of {}:\n{log}", target.display());
                    let quiet = !log.contains("ERROR") && !aside;
                    seen.lock().expect("seen")[usize::from(aside) + 2 * usize::from(quiet && !aside)] += 1;
                    // What was mended once is whole.
                    assert!(!starts(&torn).contains("set aside as"), "{tear:?} of {}", target.display());
                }
            });
        }
    });
    let [mended, aside, unnoticed] = seen.into_inner().expect("seen");
    rig::measured(&format!(
        "tearings: {aside} stores set aside, {mended} others reported, {unnoticed} without a consequence"
    ));
    assert!(aside > 0 && aside + mended + unnoticed > cases / 2);
}

/// Torn copies of one store, each delivered to a broker of its own: what arrives is right, and what does not is reported.
fn torn_and_delivered(what: &str, cases: usize, tear: impl Fn(&Path)) {
    let (broker, mut tty) = (Mosquitto::down(), Tty::default());
    let site = Site::new(broker.port).with_sensor(&tty).with(RAW);
    let feed = filled(&site, &mut tty);
    let (mut made, mut delivered, mut reports) = (0, 0, 0);
    for case in 0..cases {
        let dir = tempfile::TempDir::new().expect("folder");
        let torn = dir.path().join("state");
        copy(&site.state(), &torn);
        tear(&torn.join("outbox/store/db"));
        let broker = Mosquitto::start();
        let sub = Sub::new(broker.port);
        let daemon = Site::new(broker.port).with_sensor(&Tty::default()).with(RAW).with_state(&torn).run();
        eventually("it is delivered", || {
            let messages = sub.messages();
            let health = messages.iter().rev().find(|m| m.stream == "h" && m.payload["hist"] == false)?;
            let health = health.payload["data"].as_array()?.last()?.clone();
            let open = health["disk_ok"] == true && health["stored_records"] == 0;
            (open && health["uptime_s"].as_u64()? >= 1).then_some(())
        });
        daemon.stop_well();
        let tally = feed.tally(&sub);
        let events = ["e/store.set_aside", "e/store.damaged"].iter().map(|kind| sub.records(kind).len()).sum::<usize>();
        (made, delivered, reports) = (made + tally.made, delivered + tally.delivered, reports + events);
        assert_eq!(tally.wrong, 0, "nothing wrong is taken for right");
        assert!(tally.missing == 0 || events > 0, "case {case}: {} rows are gone in silence", tally.missing);
    }
    rig::measured(&format!(
        "{what}: {cases} stores, {reports} reports, {delivered} of {made} rows still delivered, all right"
    ));
}

#[test]
fn a_store_cut_short_is_noticed() {
    let at = std::cell::Cell::new(0.2);
    torn_and_delivered("cut short", 8, |db| {
        Tear::CutShort.apply(db, at.get());
        at.set(at.get() + 0.1);
    });
}

#[test]
fn what_is_salvaged_from_a_damaged_store_is_what_was_stored() {
    torn_and_delivered("60 bits flipped in each", 6, |db| {
        for _ in 0..60 {
            Tear::FlippedBit.apply(db, fastrand::f64());
        }
    });
}
