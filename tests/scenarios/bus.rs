//! On the machine itself: D-Bus with its policy, `kentledge status`, the restart of the machine.

use std::{fs, io::Read, time::Duration};

use rig::{
    Mosquitto, Operator, Site, Sub, Tty,
    bus::{Bus, Logind},
    daemon, eventually,
    operator::end,
};
use serde_json::{Value, json};

const NAME: &str = "org.kentledge.Daemon";
const PATH: &str = "/org/kentledge/Daemon";
const FACE: &str = "org.kentledge.Daemon1";
const NOBODY: u32 = 65534;

fn on(bus: &Bus) -> String {
    format!("site = \"plant\"\nid = \"pump-1\"\nbus = \"{}\"", bus.address())
}

#[track_caller]
fn wait_for_name(bus: &Bus) {
    eventually("the daemon is on the bus", || {
        let list = bus.busctl(0, &["list"]);
        String::from_utf8_lossy(&list.stdout)
            .lines()
            .any(|line| line.starts_with("org.kentledge.Daemon "))
            .then_some(())
    });
}

#[test]
fn the_interface_is_the_frozen_one_and_says_how_the_device_is() {
    let (broker, tty, bus) = (Mosquitto::start(), Tty::default(), Bus::start());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_device(&on(&bus)).with_sensor(&tty).with_mean_model();
    let daemon = site.run();
    sub.wait_event("model.serving", "mean");
    wait_for_name(&bus);
    let seen = bus.busctl(0, &["introspect", "--xml-interface", NAME, PATH]);
    let seen = String::from_utf8(seen.stdout).expect("XML");
    let frozen = rig::root().join("daemon/dbus/org.kentledge.Daemon1.xml");
    // KENTLEDGE_UPDATE=1 rewrites it.
    if std::env::var_os("KENTLEDGE_UPDATE").is_some() {
        fs::write(&frozen, &seen).expect("write");
    }
    assert_eq!(seen, fs::read_to_string(frozen).expect("the frozen interface"));
    eventually("its properties are true", || {
        let got = bus.busctl(0, &["get-property", NAME, PATH, FACE, "Device", "State", "Online", "Slots", "Alarms"]);
        let text = String::from_utf8(got.stdout).expect("text");
        let expected = "s \"plant/pump-1\"\ns \"running\"\nb true\na(sssbb) 1 \"x\" \"mean@0\" \"factory\" true false\na(ssb) 1 \"high\" \"critical\" false\n";
        (text == expected).then_some(())
    });
    let status = daemon::run(&["status", "--json", "--bus", &bus.address()]);
    let status: Value = serde_json::from_str(&status.out).expect("JSON");
    assert_eq!(rig::schema::status_problems(&status), Vec::<String>::new());
    assert_eq!((&status["device"]["id"], &status["link"]["online"]), (&"pump-1".into(), &true.into()));
    let config = site.dir.path().join("kentledge.toml").display().to_string();
    let shown = daemon::run(&["status", "--config", &config]);
    for line in [
        "device    plant/pump-1",
        "state     running; up",
        "source    s: waiting",
        "alarm     high: clear (critical)",
        "lost      nothing",
    ] {
        assert!(shown.out.contains(line), "{line} is not in\n{}", shown.out);
    }
    daemon.stop_well();
    let gone = daemon::run(&["status", "--bus", &bus.address()]);
    assert_eq!(gone.code, Some(1));
    assert!(gone.err.contains("ask the daemon") && gone.err.contains("is it running?"), "{}", gone.err);
}

#[test]
fn who_may_not_is_denied_and_that_is_logged() {
    if !nix::unistd::Uid::effective().is_root() {
        return rig::skipped("only root can call as another user");
    }
    let bus = Bus::start();
    let site = Site::offline().with_device(&on(&bus));
    let mut daemon = site.run();
    wait_for_name(&bus);
    for call in [
        vec!["call", NAME, PATH, FACE, "Restart"],
        vec!["call", NAME, PATH, FACE, "Status"],
        vec!["get-property", NAME, PATH, FACE, "State"],
    ] {
        let denied = bus.busctl(NOBODY, &call);
        let why = String::from_utf8_lossy(&denied.stderr).to_lowercase();
        assert!(!denied.status.success() && why.contains("denied"), "{call:?}: {why}");
    }
    assert!(daemon.is_alive());
    assert!(bus.busctl(0, &["call", NAME, PATH, FACE, "Status"]).status.success());
    // Root may.
    assert!(bus.busctl(0, &["call", NAME, PATH, FACE, "Restart"]).status.success());
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn the_daemon_itself_denies_a_caller_whom_the_bus_would_let_in() {
    if !nix::unistd::Uid::effective().is_root() {
        return rig::skipped("only root can call as another user");
    }
    let bus = Bus::open_to_all();
    let site = Site::offline().with_device(&on(&bus));
    let mut daemon = site.run();
    wait_for_name(&bus);
    let denied = bus.busctl(NOBODY, &["call", NAME, PATH, FACE, "Restart"]);
    assert!(String::from_utf8_lossy(&denied.stderr).contains("denied"), "{denied:?}");
    assert!(bus.busctl(NOBODY, &["call", NAME, PATH, FACE, "Status"]).status.success());
    eventually("it is logged", || daemon.log().contains("D-Bus caller is denied `Restart`").then_some(()));
    assert!(daemon.is_alive());
}

#[test]
fn a_subscriber_that_reads_nothing_stalls_nobody() {
    let (broker, mut tty, bus) = (Mosquitto::start(), Tty::default(), Bus::start());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_device(&on(&bus)).with_sensor(&tty).with_mean_model();
    let daemon = site.run();
    sub.wait_event("model.serving", "mean");
    wait_for_name(&bus);
    // It gets every message of the bus, and then reads not a byte more.
    let path = bus.address();
    let mut deaf = std::process::Command::new("busctl")
        .args([&format!("--address={path}"), "monitor"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("busctl");
    let mut said = [0; 64];
    deaf.stdout.as_mut().expect("output").read_exact(&mut said).expect("it monitors");
    let pid = nix::unistd::Pid::from_raw(deaf.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stop it");
    for round in 0..200u64 {
        let value = if round % 2 == 0 { 50 } else { 0 };
        tty.rows(round * 20..round * 20 + 20, |i| format!("{i},{value},{value}"));
    }
    sub.wait_records("p/x", 3900);
    let asked = std::time::Instant::now();
    assert_eq!(daemon::run(&["status", "--bus", &path]).code, Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5));
    let _ = deaf.kill();
    let _ = deaf.wait();
    daemon.stop_well();
}

#[test]
fn a_reboot_is_asked_of_logind_once_and_never_again_by_the_next_start() {
    let (broker, bus) = (Mosquitto::start(), Bus::start());
    let logind = Logind::start(&bus);
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = Site::new(broker.port).with_device(&on(&bus)).with(&operator.table());
    let daemon = site.run();
    sub.wait_state("online");
    operator.order(&sub, "reboot", "r-1", &json!({}));
    eventually("logind is asked", || (logind.reboots() == 1).then_some(()));
    sub.wait("it says so", |m| {
        rig::sub::records(m, "res/reboot/r-1").into_iter().find(|(r, _)| r["state"] == "running")
    });
    // Killed over it, and started in the same boot: it is not asked again, and says that nothing came of it.
    daemon.kill();
    let daemon = site.run();
    assert_eq!(end(&sub, "reboot", "r-1")["state"], "failed");
    assert_eq!(logind.reboots(), 1);
    // Erase: the request lies where the oneshot looks, and the machine is restarted.
    operator.order(&sub, "erase", "e-1", &json!({"confirm": "plant/pump-1"}));
    assert_eq!(end(&sub, "erase", "e-1")["state"], "success");
    assert_eq!(logind.reboots(), 2);
    assert!(site.state().join("erase.request").exists());
    daemon.stop_well();
}
