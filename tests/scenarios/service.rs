//! As a service: what systemd hears, TLS with client certificates, signals.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::OpenOptionsExt, net::UnixDatagram},
    time::Duration,
};

use nix::{
    libc::O_NONBLOCK,
    sys::{
        ptrace,
        signal::Signal,
        stat::Mode,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, mkfifo},
};
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
    daemon.stop_well();
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
    assert!((10..=48).contains(&named.len()));
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

/// Stops one thread alone, as a debugger does; it goes on when this is dropped.
struct Held(Pid);

impl Held {
    fn new(thread: Pid) -> Self {
        ptrace::attach(thread).expect("attach");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        Self(thread)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn one_thread_that_hangs_silences_the_watchdog_whichever_it_is() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model();
    let path = site.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    let mut command = daemon::command();
    command.args(["run", "--config"]).arg(site.config()).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000000");
    let daemon = site.spawn(&mut command);
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("time-out");
    // Signs of life within so long.
    let heard = |how_long: Duration| {
        let (mut buffer, mut n, began) = ([0u8; 4096], 0, std::time::Instant::now());
        while began.elapsed() < how_long {
            let Ok(bytes) = socket.recv(&mut buffer) else { continue };
            n += usize::from(String::from_utf8_lossy(&buffer[..bytes]).contains("WATCHDOG=1"));
        }
        n
    };
    // The first thread is the one that runs the ports, the link, the bus and the metrics.
    let thread = |name: &str| -> Option<Pid> {
        if name == "runtime" {
            return Some(Pid::from_raw(daemon.pid()));
        }
        let mut all = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("threads").flatten();
        let named = |entry: &std::fs::DirEntry| {
            std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        all.find(named).map(|entry| Pid::from_raw(entry.file_name().to_string_lossy().parse().expect("id")))
    };
    eventually("a model serves", || {
        heard(Duration::from_millis(50));
        daemon.own_log().contains("serving").then_some(())
    });
    assert!(heard(Duration::from_secs(3)) > 0, "signs of life");
    for (name, stages) in [("runtime", "runtime, source s, link"), ("signal", "signal"), ("prove", "prove")] {
        let held = Held::new(thread(name).unwrap_or_else(|| panic!("no thread {name}")));
        heard(Duration::from_millis(2200)); // what was said of the time before
        assert_eq!(heard(Duration::from_secs(3)), 0, "a sign of life while {name} hangs: {}", daemon.own_log());
        let seen = format!("stages make no progress: {stages}");
        assert!(daemon.own_log().contains(&seen), "{seen}: {}", daemon.own_log());
        drop(held);
        assert!(heard(Duration::from_secs(4)) > 0, "and it goes on after {name}");
    }
    daemon.stop_well();
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
    daemon.stop_well();

    let wrong = Site::offline().with_sensor(&tty).with(&mqtt("other"));
    let mut daemon = wrong.run();
    eventually("refused", || daemon.log().contains("no connection: ").then_some(()));
    assert!(!daemon.log().contains("connected broker") && daemon.is_alive());
    daemon.stop_well();
}

/// The rows that the daemon counted so far; its runtime's thread answers.
fn rows_counted(port: u16) -> Option<u64> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    let line = page.lines().find(|line| line.starts_with("kentledge_source_rows_total{"))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[test]
fn rows_flow_while_the_certificates_for_the_next_connection_cannot_be_read() {
    let (mut tty, metrics) = (Tty::default(), rig::free_port());
    let site = Site::offline().with_sensor(&tty).with("[stream.raw]\nchannels = [\"a\"]\n");
    let dir = site.dir.path().to_owned();
    let ca = tls::authority(&dir, "ca");
    tls::certificate(&dir, "broker", &ca);
    let at = |name: &str| dir.join(name);
    fs::copy(at("ca.pem"), at("known.pem")).expect("copy");
    let (mut broker, port) = Mosquitto::with_tls_port(&at("ca.pem"), &at("broker.pem"), &at("broker.key"));
    let sub = Sub::new(broker.port);
    let mqtt = format!("[mqtt]\nurl = \"mqtts://localhost:{port}\"\nca_file = \"{}\"\n", at("known.pem").display());
    let daemon = site.with(&mqtt).with_metrics(&format!("listen = \"{metrics}\"")).run();
    sub.wait_state("online");
    tty.rows(0..100, |i| format!("{i},{i},0"));
    sub.wait_records("m/raw", 100);
    // A disk that does not answer: who opens this file waits for one who writes.
    fs::rename(at("known.pem"), at("kept.pem")).expect("rename");
    mkfifo(&at("known.pem"), Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe");
    broker.stop();
    let mut writer = eventually("the daemon reads its certificates again", || {
        fs::OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(at("known.pem")).ok()
    });
    tty.rows(100..600, |i| format!("{i},{i},0"));
    eventually("every row is counted", || (rows_counted(metrics)? >= 600).then_some(()));
    // It comes after all.
    fs::rename(at("kept.pem"), at("known.pem")).expect("rename");
    broker.up();
    writer.write_all(&fs::read(at("known.pem")).expect("read")).expect("write");
    drop(writer);
    sub.wait_records("m/raw", 600);
    daemon.stop_well();
}
