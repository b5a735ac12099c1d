//! As a service: what systemd hears, TLS with client certificates, signals.

use std::{os::unix::net::UnixDatagram, time::Duration};

use nix::sys::signal::Signal;
use rig::{Mosquitto, Operator, SOON, Site, Sub, Tty, daemon, eventually, operator, tls};

#[test]
fn systemd_hears_ready_status_watchdog_and_stopping() {
    let tty = Tty::default();
    let site = Site::offline().with_sensor(&tty).with_mean_model();
    let path = site.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    socket.set_read_timeout(Some(SOON)).expect("time-out");
    let mut command = daemon::command();
    command.args(["run", "--config"]).arg(site.config()).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000000");
    let daemon = site.spawn(&mut command);
    let mut heard = String::new();
    let mut until = |word: &str| {
        let mut buffer = [0u8; 4096];
        let began = std::time::Instant::now();
        while !heard.contains(word) {
            assert!(began.elapsed() < SOON, "{word} is not among {heard}");
            let n = socket.recv(&mut buffer).expect("systemd hears in time");
            heard.push_str(&String::from_utf8_lossy(&buffer[..n]));
            heard.push('\n');
        }
        heard.clone()
    };
    until("STATUS=starting");
    until("READY=1");
    until("STATUS=degraded: no broker is configured; 1 of 1 models serving");
    until("WATCHDOG=1");
    daemon.signal(Signal::SIGTERM);
    until("STATUS=draining: SIGTERM");
    let all = until("STOPPING=1");
    assert!(all.find("READY=1") < all.find("STOPPING=1"));
    drop(daemon);
}

#[test]
fn a_reload_never_lets_the_watchdog_wait_for_another_interval() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = Site::new(broker.port).with_sensor(&tty).with(&operator.table());
    let path = site.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    socket.set_nonblocking(true).expect("nonblocking");
    let mut command = daemon::command();
    // Looked at every 10 s: what is heard within the few seconds of a reload is the reload's own.
    command.args(["run", "--config"]).arg(site.config()).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "20000000");
    let daemon = site.spawn(&mut command);
    sub.wait_state("online");
    let alive = || {
        let mut buffer = [0u8; 4096];
        let mut of = 0;
        while let Ok(bytes) = socket.recv(&mut buffer) {
            of += usize::from(String::from_utf8_lossy(&buffer[..bytes]).contains("WATCHDOG=1"));
        }
        of
    };
    assert_eq!(alive(), 1, "at the start");
    let toml = "[stream.raw]\nchannels = [\"a\"]\n";
    operator.order(&sub, "config.set", "c-1", &serde_json::json!({"toml": toml}));
    assert_eq!(operator::end(&sub, "config.set", "c-1")["state"], "success");
    assert!(alive() >= 2, "before the drain, and with the first look after it");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn the_catalogue_says_what_to_do_for_every_message_id_of_the_code() {
    let ids = |text: &str, line: &dyn Fn(&str) -> bool| -> Vec<String> {
        let of = |word: &str| word.len() == 32 && word.bytes().all(|b| b.is_ascii_hexdigit());
        let lines = text.lines().filter(|l| line(l));
        let words =
            lines.flat_map(|l| l.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_owned).collect::<Vec<_>>());
        let mut ids: Vec<_> = words.filter(|w| of(w)).collect();
        ids.sort();
        ids
    };
    let read = |path: &str| std::fs::read_to_string(rig::root().join(path)).expect(path);
    let catalog = read("daemon/catalog/kentledge.catalog");
    let (named, known) = (ids(&catalog, &|l| l.starts_with("-- ")), ids(&read("daemon/src/flow/event.rs"), &|_| true));
    assert_eq!(named, known);
    assert!((10..=24).contains(&named.len()));
    assert_eq!(catalog.matches("What to do: ").count(), named.len());
    // journalctl itself takes it.
    let root = tempfile::tempdir().expect("folder");
    let folder = root.path().join("usr/lib/systemd/catalog");
    std::fs::create_dir_all(&folder).expect("folder");
    std::fs::create_dir_all(root.path().join("var/lib/systemd/catalog")).expect("folder");
    std::fs::write(folder.join("kentledge.catalog"), catalog).expect("write");
    let root = format!("--root={}", root.path().display());
    let journalctl =
        |args: &[&str]| std::process::Command::new("journalctl").arg(&root).args(args).output().expect("journalctl");
    assert!(journalctl(&["--update-catalog"]).status.success());
    let listed = String::from_utf8(journalctl(&["--list-catalog"]).stdout).expect("text");
    assert_eq!(listed.lines().count(), named.len(), "{listed}");
}

#[test]
fn a_stage_that_does_not_move_silences_the_watchdog() {
    // The signal stage is one thread of the process: freezing the whole process freezes it, and the watchdog with it.
    let tty = Tty::default();
    let site = Site::offline().with_sensor(&tty);
    let path = site.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    let mut command = daemon::command();
    command.args(["run", "--config"]).arg(site.config()).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let daemon = site.spawn(&mut command);
    let mut buffer = [0u8; 4096];
    socket.set_read_timeout(Some(SOON)).expect("time-out");
    loop {
        let n = socket.recv(&mut buffer).expect("a sign of life");
        if String::from_utf8_lossy(&buffer[..n]).contains("WATCHDOG=1") {
            break;
        }
    }
    daemon.signal(Signal::SIGSTOP);
    eventually("it stands still", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).ok()?;
        stat.contains(") T ").then_some(())
    });
    // What it said before lies there.
    socket.set_nonblocking(true).expect("socket");
    while socket.recv(&mut buffer).is_ok() {}
    socket.set_nonblocking(false).expect("socket");
    socket.set_read_timeout(Some(Duration::from_millis(1500))).expect("time-out");
    assert!(socket.recv(&mut buffer).is_err(), "a sign of life of one that stands still");
    daemon.signal(Signal::SIGCONT);
    assert!(socket.recv(&mut buffer).is_ok(), "and it goes on");
}

#[test]
fn tls_with_client_certificates_connects_and_a_wrong_authority_does_not() {
    let tty = Tty::default();
    let site = Site::offline().with_sensor(&tty);
    let dir = site.dir.path().to_owned();
    let (ca, _other) = (tls::authority(&dir, "ca"), tls::authority(&dir, "other"));
    tls::certificate(&dir, "broker", &ca);
    tls::certificate(&dir, "device", &ca);
    let broker = Mosquitto::tls(&dir.join("ca.pem"), &dir.join("broker.pem"), &dir.join("broker.key"));
    let mqtt = |ca: &str| {
        let (show, port) = (dir.display(), broker.port);
        format!(
            "[mqtt]\nurl = \"mqtts://localhost:{port}\"\nca_file = \"{show}/{ca}.pem\"\n\
             cert_file = \"{show}/device.pem\"\nkey_file = \"{show}/device.key\"\n"
        )
    };
    let site = site.with(&mqtt("ca"));
    let daemon = site.run();
    eventually("connected", || daemon.log().contains("connected broker").then_some(()));
    assert_eq!(daemon.stop(), Some(0));

    let wrong = Site::offline().with_sensor(&tty).with(&mqtt("other"));
    let mut daemon = wrong.run();
    eventually("refused", || daemon.log().contains("no connection: ").then_some(()));
    assert!(!daemon.log().contains("connected broker") && daemon.is_alive());
    assert_eq!(daemon.stop(), Some(0));
}
