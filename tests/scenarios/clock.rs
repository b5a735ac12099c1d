//! The wall clock steps, starts in 1970, or is behind what was known before: nothing is lost or reordered, `clk` says
//! what the time is worth. libfaketime stands between the daemon and the wall clock; the boot clock is left alone.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rig::{Mosquitto, Site, Sub, Tty, eventually, tls};

/// Where the daemon's wall clock is set from; `None`, said loudly, where libfaketime is missing.
struct FakeClock {
    file: PathBuf,
    library: PathBuf,
}

impl FakeClock {
    fn new(dir: &Path, time: &str) -> Option<Self> {
        let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let library = folders.map(|f| f.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
        let Some(library) = library else {
            rig::skipped("no libfaketime here");
            return None;
        };
        let clock = Self { file: dir.join("time"), library };
        clock.set(time);
        Some(clock)
    }

    fn set(&self, time: &str) {
        let fresh = self.file.with_extension("new");
        fs::write(&fresh, format!("{time}\n")).expect("write");
        fs::rename(fresh, &self.file).expect("rename");
    }

    fn on(&self, site: Site) -> Site {
        site.with_env("LD_PRELOAD", self.library.to_str().expect("path"))
            .with_env("FAKETIME_TIMESTAMP_FILE", self.file.to_str().expect("path"))
            .with_env("FAKETIME_NO_CACHE", "1")
            .with_env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }
}

fn site(port: u16, tty: &Tty) -> Site {
    Site::new(port).with_sensor(tty).with("[stream.raw]\nchannels = [\"a\"]\n")
}

/// Every row once and in order, and time on the boot clock never goes back.
fn check(sub: &Sub, n: u64) {
    let records = sub.records("m/raw");
    let rows: Vec<u64> = records.iter().map(|(r, _)| r["in_seq"][0].as_u64().expect("seq")).collect();
    assert_eq!(rows, (0..n).collect::<Vec<_>>(), "in order, none missing");
    let monos: Vec<u64> = sub
        .messages()
        .iter()
        .filter(|m| m.stream == "m/raw")
        .map(|m| m.payload["mono_ns"].as_u64().expect("mono_ns"))
        .collect();
    assert!(monos.is_sorted(), "the boot clock never steps");
}

#[test]
fn steps_of_ten_years_lose_and_reorder_nothing() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = site(broker.port, &tty);
    let Some(clock) = FakeClock::new(site.dir.path(), "+0") else { return };
    let daemon = clock.on(site).run();
    let mut n = 0;
    for time in ["+0", "+3650d", "-3650d", "+0", "-3650d", "+3650d"] {
        clock.set(time);
        tty.rows(n..n + 200, |i| format!("{i},{i},0"));
        n += 200;
        sub.wait_records("m/raw", n as usize);
    }
    check(&sub, n);
    let clks: Vec<String> = sub
        .messages()
        .iter()
        .filter(|m| m.stream == "m/raw")
        .map(|m| format!("{} {}", m.payload["clk"], m.payload["ts"].is_null()))
        .collect();
    assert!(clks.contains(&"\"unset\" true".into()), "ten years ago is before this program was built: {clks:?}");
    assert!(clks.iter().any(|clk| clk.ends_with(" false")), "{clks:?}");
    daemon.stop_well();
}

#[test]
fn a_start_in_1970_with_an_outage_loses_nothing_and_says_unset() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    broker.stop();
    let site = site(broker.port, &tty);
    let Some(clock) = FakeClock::new(site.dir.path(), "@1970-01-01 00:00:10") else { return };
    let daemon = clock.on(site).run();
    eventually("the port is open", || daemon.log().contains("serial port open").then_some(()));
    daemon.read_rows(&mut tty, 0..500, |i| format!("{i},{i},0"));
    std::thread::sleep(Duration::from_millis(1200));
    clock.set("+0");
    daemon.read_rows(&mut tty, 500..1000, |i| format!("{i},{i},0"));
    std::thread::sleep(Duration::from_millis(1200));
    broker.up();
    sub.wait_records("m/raw", 1000);
    check(&sub, 1000);
    let unset: u64 = sub
        .messages()
        .iter()
        .filter(|m| m.stream == "m/raw" && m.payload["clk"] == "unset" && m.payload["ts"].is_null())
        .map(|m| m.payload["seq"]["n"].as_u64().expect("n"))
        .sum();
    assert_eq!(unset, 500, "what was made without a time says so, and only that");
    daemon.stop_well();
}

#[test]
fn tls_with_a_clock_that_cannot_be_right_waits_for_the_time() {
    let tty = Tty::default();
    let site = Site::offline().with_sensor(&tty);
    let dir = site.dir.path().to_owned();
    let ca = tls::authority(&dir, "ca");
    tls::certificate(&dir, "broker", &ca);
    tls::certificate(&dir, "device", &ca);
    let broker = Mosquitto::tls(&dir.join("ca.pem"), &dir.join("broker.pem"), &dir.join("broker.key"));
    let (show, port) = (dir.display(), broker.port);
    let site = site.with(&format!(
        "[mqtt]\nurl = \"mqtts://localhost:{port}\"\nca_file = \"{show}/ca.pem\"\n\
         cert_file = \"{show}/device.pem\"\nkey_file = \"{show}/device.key\"\n"
    ));
    let Some(clock) = FakeClock::new(site.dir.path(), "@1970-01-01 00:00:10") else { return };
    let daemon = clock.on(site).run();
    eventually("it waits", || daemon.log().contains("waiting for the time").then_some(()));
    assert!(!daemon.log().contains("certificate"), "it did not even try: {}", daemon.log());
    clock.set("+0");
    eventually("it connects once there is a time", || daemon.log().contains("connected broker=").then_some(()));
    daemon.stop_well();
}
