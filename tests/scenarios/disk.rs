//! A disk that loses its power, fills up, turns read-only, hangs: on a real ext4 of its own.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rig::{Disk, Feed, Mosquitto, Site, Sub, Tty, eventually, gpio::Lamp, within};

const RAW: &str = "[stream.raw]\nchannels = [\"a\"]\n";

fn site(port: u16, tty: &Tty, disk: &Disk) -> Site {
    Site::new(port).with_sensor(tty).with(RAW).with_state(&disk.path().join("state"))
}

/// What the medium holds while the writer stands still.
fn cut(disk: &Disk) -> Disk {
    // The kernel may write by itself while the copy is made; then another one is.
    let mut copy = None;
    eventually("a copy that no write disturbed", || {
        copy = disk.cut();
        copy.is_some().then_some(())
    });
    copy.expect("a copy")
}

/// Power cuts with the broker away; then all that was accepted arrives. `on_one`: each life goes on with the image that
/// the cut before left.
fn cuts(cuts: usize, on_one: bool) {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let Some(mut disk) = Disk::new(64) else { return };
    let mut feed = Feed::default();
    for n in 0..cuts {
        let daemon = site(broker.port, &tty, &disk).run();
        feed.give(&mut tty, &daemon, 2000, Duration::from_millis(fastrand::u64(1000..3600)));
        daemon.signal(Signal::SIGSTOP);
        let stopped = Instant::now();
        let left = cut(&disk);
        daemon.kill();
        feed.ended(stopped);
        disk = left;
        if !on_one || n + 1 == cuts {
            broker.up();
            let daemon = site(broker.port, &tty, &disk).run();
            feed.drain(&mut tty, &sub, Duration::from_secs(30));
            daemon.stop_well();
            broker.stop();
        }
    }
    let tally = feed.tally(&sub);
    rig::measured(&format!("{cuts} power cuts{}: {tally}", if on_one { " on one image" } else { "" }));
    let seen: Vec<_> = ["e/store.set_aside", "e/store.damaged"].iter().flat_map(|kind| sub.records(kind)).collect();
    assert!(seen.is_empty(), "a power cut damages nothing: {seen:?}");
    tally.check();
}

fn times(n: usize) -> usize {
    if rig::long() { n * 10 } else { n }
}

#[test]
fn stored_records_survive_power_cuts() {
    cuts(times(10), false);
}

#[test]
fn stored_records_survive_power_cuts_on_one_image() {
    cuts(times(10), true);
}

#[test]
fn the_ballast_keeps_the_outbox_writing_when_the_disk_is_full() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let Some(disk) = Disk::new(24) else { return };
    let mut feed = Feed::default();
    let daemon = site(broker.port, &tty, &disk).run();
    feed.give(&mut tty, &daemon, 500, Duration::from_secs(1));
    let filler = disk.fill();
    feed.give(&mut tty, &daemon, 500, Duration::from_secs(2));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!disk.path().join("state/outbox/ballast").exists(), "the ballast was given up");
    daemon.kill();
    feed.ended(Instant::now());
    fs::remove_file(filler).expect("space");
    broker.up();
    let daemon = site(broker.port, &tty, &disk).run();
    feed.drain(&mut tty, &sub, Duration::from_secs(30));
    let tally = feed.tally(&sub);
    rig::measured(&format!("full disk, killed: {tally}"));
    tally.check();
    eventually("the ballast is there again", || disk.path().join("state/outbox/ballast").exists().then_some(()));
    daemon.stop_well();
}

#[test]
fn a_disk_full_to_the_last_byte_stops_neither_sampling_nor_alarms_and_is_used_again_within_10_s() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let Some(disk) = Disk::new(24) else { return };
    let daemon = site(broker.port, &tty, &disk).with_mean_model().run();
    sub.wait_state("online");
    let mut filler = disk.fill();
    // Also what the ballast gives free is taken, again and again.
    for _ in 0..5 {
        tty.rows(0..4, |_| "1,1,0".into());
        std::thread::sleep(Duration::from_millis(200));
        filler = disk.fill();
    }
    tty.rows(100..108, |i| format!("{i},5000,0"));
    sub.wait_records("a/high", 1);
    broker.stop();
    let mut feed = 1000;
    // What the ballast gave free is used up by the filler or by the outbox; then nothing can be written.
    eventually("the disk is not writable", || {
        // sled holds half a MiB of its file in reserve; numbers like these pack to about 10 bytes.
        daemon.read_rows(&mut tty, feed..feed + 2000, |i| format!("{i},{},0", fastrand::f64()));
        feed += 2000;
        filler = disk.fill();
        std::thread::sleep(Duration::from_millis(200));
        daemon.log().contains("the outbox cannot write").then_some(())
    });
    daemon.read_rows(&mut tty, feed..feed + 1000, |i| format!("{i},1,0"));
    feed += 1000;
    let works = || daemon.log().matches("the outbox's disk works again").count();
    let before = works();
    fs::remove_file(filler).expect("space");
    let freed = Instant::now();
    within(Duration::from_secs(10), "the disk is used again", || works() > before);
    rig::measured(&format!("full disk: used again {:.1} s after space was made", freed.elapsed().as_secs_f64()));
    daemon.read_rows(&mut tty, feed..feed + 500, |i| format!("{i},1,0"));
    broker.up();
    sub.wait("all rows since the outage", |m| {
        let records = rig::sub::records(m, "m/raw");
        let mut rows: Vec<u64> = records.iter().map(|(r, _)| r["in_seq"][0].as_u64().expect("seq")).collect();
        rows.retain(|row| *row >= 1000);
        rows.sort_unstable();
        (rows == (1000..feed + 500).collect::<Vec<_>>()).then_some(())
    });
    let lost: Vec<_> = sub.records("loss").into_iter().filter(|(entry, _)| entry["stream"] == "m/raw").collect();
    assert!(lost.iter().all(|(entry, _)| entry["reason"] == "gap" || entry["n"] == 0), "{lost:?}");
    daemon.stop_well();
}

#[test]
fn the_daemon_starts_on_a_full_disk_and_on_a_read_only_one() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let Some(disk) = Disk::new(24) else { return };
    let site = site(broker.port, &tty, &disk);
    // A store with something in it.
    broker.stop();
    let mut feed = Feed::default();
    let daemon = site.run();
    feed.give(&mut tty, &daemon, 500, Duration::from_secs(1));
    std::thread::sleep(Duration::from_secs(2));
    daemon.kill();
    feed.ended(Instant::now());
    let filler = disk.fill();
    broker.up();
    let daemon = site.run();
    feed.give(&mut tty, &daemon, 500, Duration::from_secs(1));
    sub.wait_records("m/raw", 900);
    fs::remove_file(filler).expect("space");
    feed.drain(&mut tty, &sub, Duration::from_secs(30));
    daemon.stop_well();
    disk.read_only(true);
    let daemon = site.run();
    feed.give(&mut tty, &daemon, 500, Duration::from_secs(1));
    let n = feed.times.len();
    sub.wait_records("m/raw", n);
    disk.read_only(false);
    feed.drain(&mut tty, &sub, Duration::from_secs(30));
    daemon.stop_well();
    feed.tally(&sub).check();
}

#[test]
fn a_disk_that_breaks_stops_neither_sampling_nor_delivery() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let Some(disk) = Disk::new(24) else { return };
    let mut feed = Feed::default();
    let mut daemon = site(broker.port, &tty, &disk).run();
    feed.give(&mut tty, &daemon, 500, Duration::from_secs(1));
    disk.fail();
    feed.give(&mut tty, &daemon, 500, Duration::from_secs(1));
    sub.wait_records("m/raw", feed.times.len());
    broker.stop();
    feed.give(&mut tty, &daemon, 500, Duration::from_secs(3));
    broker.up();
    sub.wait_records("m/raw", feed.times.len());
    sub.wait("the disk is reported", |m| (!rig::sub::records(m, "e/disk.failed").is_empty()).then_some(()));
    let tally = feed.tally(&sub);
    assert_eq!((tally.missing, tally.unbooked, tally.wrong), (0, 0, 0), "{tally:?}");
    assert!(daemon.is_alive());
}

/// Bytes written to the medium while rows come at a rate, and rows.
fn flash(broker_up: bool, per_s: u64, how_long: Duration) -> Option<(u64, u64)> {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    if !broker_up {
        broker.stop();
    }
    let disk = Disk::new(64)?;
    let daemon = site(broker.port, &tty, &disk).run();
    let mut feed = Feed::default();
    // The start writes: sequence numbers, the store's own files, the ballast, the first event.
    feed.give(&mut tty, &daemon, per_s, Duration::from_secs(3));
    nix::unistd::sync();
    std::thread::sleep(Duration::from_secs(1));
    let (before, first) = (disk.written(), feed.times.len());
    feed.give(&mut tty, &daemon, per_s, how_long);
    nix::unistd::sync();
    let written = disk.written() - before;
    daemon.stop_well();
    Some((written, (feed.times.len() - first) as u64))
}

#[test]
fn flash_is_not_touched_while_the_broker_acknowledges_and_little_in_an_outage() {
    let how_long = Duration::from_secs(if rig::long() { 120 } else { 12 });
    let all = std::thread::scope(|scope| {
        let cases =
            [(true, 1000), (false, 10), (false, 1000)].map(|(up, rate)| scope.spawn(move || flash(up, rate, how_long)));
        cases.map(|case| case.join().expect("a case"))
    });
    let [Some(online), Some(slow), Some(fast)] = all else { return };
    for ((written, rows), what) in
        [(online, "acknowledged, 1,000/s"), (slow, "outage, 10/s"), (fast, "outage, 1,000/s")]
    {
        rig::measured(&format!(
            "flash, {what}: {written} bytes for {rows} rows, {:.1} a row",
            written as f64 / rows as f64
        ));
    }
    assert_eq!(online.0, 0, "not a byte while the broker acknowledges");
    assert!(slow.0 <= 2048 * slow.1, "{slow:?}");
    assert!(fast.0 <= 2048 * fast.1, "{fast:?}");
}

/// A disk that hangs: every write and every fsync waits, for as long as it is frozen. None of what decides waits with them.
#[test]
fn disk_that_hangs_delays_no_alarm_no_output_and_no_watchdog() {
    let how_long = Duration::from_secs(if rig::long() { 60 } else { 15 });
    let (broker, mut tty, lamp) = (Mosquitto::start(), Tty::default(), Lamp::default());
    let sub = Sub::new(broker.port);
    let Some(disk) = Disk::new(24) else { return };
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with_state(&disk.path().join("state"));
    let site =
        site.with(&format!("[output.lamp]\nchip = \"{}\"\nline = 3\nalarms = [\"high\"]\n", lamp.path.display()));
    let path = site.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("time-out");
    let mut command = rig::daemon::command();
    command.args(["run", "--config"]).arg(site.config()).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "3000000");
    let daemon = site.spawn(&mut command);
    sub.wait_state("online");
    eventually("a model serves", || daemon.own_log().contains("serving").then_some(()));

    let (mut row, mut alarms) = (0, 0);
    // Raises or clears the alarm: how long it took to the broker, with the output in between.
    let mut turn = |on: bool| {
        let began = Instant::now();
        let value = if on { 50 } else { 0 };
        tty.rows(row..row + 4, |i| format!("{i},{value},{value}"));
        row += 4;
        alarms += 1;
        lamp.wait(on, "the output follows the alarm");
        sub.wait_records("a/high", alarms);
        began.elapsed()
    };
    let usual = turn(true).max(turn(false)).max(turn(true)).max(turn(false));
    let thaw = disk.freeze();
    let (frozen, mut slowest, mut on) = (Instant::now(), Duration::ZERO, false);
    let (mut heard, mut last, mut gap) = (Vec::new(), Instant::now(), Duration::ZERO);
    let mut next = Instant::now();
    let mut buffer = [0u8; 4096];
    while frozen.elapsed() < how_long {
        if Instant::now() >= next {
            on = !on;
            slowest = slowest.max(turn(on));
            next = Instant::now() + Duration::from_millis(500);
        }
        while let Ok(n) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if text.contains("WATCHDOG=1") {
                gap = gap.max(last.elapsed());
                last = Instant::now();
            }
            heard.push(text);
        }
    }
    gap = gap.max(last.elapsed());
    drop(thaw);
    rig::measured(&format!(
        "a disk that hangs for {} s: {} alarms, {} ms at most ({} ms before), WATCHDOG every {:.1} s at least",
        how_long.as_secs(),
        sub.records("a/high").len(),
        slowest.as_millis(),
        usual.as_millis(),
        gap.as_secs_f64()
    ));
    assert!(gap < Duration::from_secs(3), "systemd waits for 3 s: {gap:?}; {}", daemon.own_log());
    assert!(slowest < Duration::from_secs(1), "{slowest:?}, and {usual:?} while the disk answered");
    assert!(heard.iter().any(|text| text.contains("the disk does not answer")), "STATUS names it: {heard:?}");
    // What was not written meanwhile is written now: the next run knows whether the alarm is raised.
    if !on {
        turn(true);
    }
    eventually("it answers again", || daemon.own_log().contains("the disk answers again").then_some(()));
    daemon.stop_well();
    assert!(site.state().join("alarms/high").exists());
}
