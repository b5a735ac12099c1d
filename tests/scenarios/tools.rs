//! What stands beside the daemon is of use and does no harm: `record`, `ports`, `check`, the metrics port, the log.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use rig::{Mosquitto, Operator, Site, Sub, Tty, daemon, eventually, operator, tls};
use serde_json::json;

const STREAM: &str = "[stream.raw]\nchannels = [\"a\"]\n";

#[test]
fn record_and_ports_beside_the_running_daemon_name_it_and_leave_its_port_alone() {
    let mut tty = Tty::default();
    let broker = Mosquitto::start();
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty).with(STREAM);
    let daemon = site.run();
    eventually("the port is open", || daemon.log().contains("serial port open").then_some(()));
    let (config, tape) = (site.config().display().to_string(), site.dir.path().join("t.tape"));
    let record = ["record", "--config", &config, "--out", tape.to_str().expect("path"), "--for", "1"];
    let done = daemon::run(&record);
    assert!(
        done.code == Some(1) && done.err.contains(" is in use by ") && done.err.contains("kentledge (process "),
        "{done:?}"
    );
    assert!(!tape.exists(), "an empty tape is left behind");
    let port = tty.path().display().to_string();
    let done = daemon::run(&["ports", &port, "--listen", "0.3"]);
    assert!(
        done.code == Some(0) && done.out.contains("in use by ") && done.out.contains("kentledge (process "),
        "{done:?}"
    );
    // The daemon has lost nothing by it.
    tty.rows(0..200, |i| format!("{i},1,2"));
    sub.wait_records("m/raw", 200);
    daemon.stop_well();
}

#[test]
fn record_of_a_port_that_is_not_there_exits_1_and_leaves_no_tape() {
    let mut tty = Tty::default();
    let site = Site::offline().with_sensor(&tty).with(STREAM);
    tty.pull();
    let (config, tape) = (site.config().display().to_string(), site.dir.path().join("t.tape"));
    let record = |seconds: &str| {
        daemon::run(&["record", "--config", &config, "--out", tape.to_str().expect("path"), "--for", seconds])
    };
    let done = record("0.3");
    assert!(done.code == Some(1) && done.err.contains("no source could be opened"), "{done:?}");
    assert!(!tape.exists(), "an empty tape is left behind");
    for seconds in ["nan", "1e300"] {
        assert_eq!(record(seconds).code, Some(2), "--for {seconds}");
    }
}

#[test]
fn check_of_a_key_that_does_not_match_its_certificate_exits_78_and_names_both() {
    let site = Site::offline();
    let dir = site.dir.path().to_owned();
    let ca = tls::authority(&dir, "ca");
    tls::certificate(&dir, "device", &ca);
    tls::certificate(&dir, "other", &ca);
    let check = |key: &str| {
        let show = dir.display();
        let mqtt = format!(
            "[mqtt]\nurl = \"mqtts://localhost\"\nca_file = \"{show}/ca.pem\"\ncert_file = \"{show}/device.pem\"\n\
             key_file = \"{show}/{key}.key\"\n"
        );
        daemon::run(&["check", "--config", &site.clone().with(&mqtt).config().display().to_string()])
    };
    let good = check("device");
    assert_eq!(good.code, Some(0), "{}", good.err);
    let done = check("other");
    assert!(done.code == Some(78) && done.err.contains("mqtt.key_file: "), "{done:?}");
    assert!(done.err.contains("other.key is not the key of the certificate"), "{done:?}");
}

#[test]
fn provision_file_with_a_key_of_another_certificate_is_rejected_and_stays() {
    let dir = tempfile::tempdir().expect("folder");
    let ca = tls::authority(dir.path(), "ca");
    tls::certificate(dir.path(), "device", &ca);
    tls::certificate(dir.path(), "other", &ca);
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("PEM");
    let state = dir.path().join("state");
    // What the daemon takes over at its start; the folders of the machine play no part.
    let config = dir.path().join("c.toml");
    fs::write(&config, format!("[device]\nstate_dir = \"{}\"\nbus = \"off\"\n", state.display())).expect("write");
    let text = format!(
        "site = \"plant\"\n[broker]\nurl = \"mqtts://127.0.0.1:1\"\nca = '''{}'''\ncert = '''{}'''\nkey = '''{}'''\n",
        read("ca.pem"),
        read("device.pem"),
        read("other.key")
    );
    fs::create_dir_all(&state).expect("folder");
    fs::write(state.join("provision.toml"), text).expect("write");
    let site = Site::offline();
    let daemon = site.spawn(daemon::command().args(["run", "--config"]).arg(&config));
    eventually("it says what is wrong", || {
        daemon.log().contains("key.pem is not the key of the certificate").then_some(())
    });
    daemon.stop_well();
    assert!(state.join("provision.toml").exists(), "it stays to be mended");
}

#[test]
fn metrics_answers_while_silent_connections_are_held_open() {
    let port = rig::free_port();
    let site = Site::offline().with_metrics(&format!("listen = \"{port}\""));
    let daemon = site.run();
    let connect = || TcpStream::connect(("127.0.0.1", port));
    eventually("the port is open", || connect().ok());
    let silent: Vec<TcpStream> = (0..60).map(|_| connect().expect("connected")).collect();
    let half: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = connect().expect("connected");
            stream.write_all(b"GET /metrics HTTP/1.1\r\n").expect("written");
            stream
        })
        .collect();
    let began = Instant::now();
    let mut stream = connect().expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("time-out");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("written");
    let mut page = String::new();
    let read = stream.read_to_string(&mut page);
    assert!(page.contains("kentledge_uptime_seconds"), "no page after {:?}: {read:?}", began.elapsed());
    rig::measured(&format!("a page behind {} silent connections: {:?}", silent.len() + half.len(), began.elapsed()));
    daemon.stop_well();
}

#[test]
fn text_of_a_command_with_control_characters_cannot_forge_a_log_line() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let daemon = Site::new(broker.port).with(&operator.table()).run();
    sub.wait_state("online");
    let evil = "x\u{1b}[2J\n2026-01-01T00:00:00Z ERROR forged\u{9b}31m";
    operator.send("pump-1/dn/cmd/ping/p-1", &json!({"id": evil}).to_string());
    assert_eq!(operator::end(&sub, "ping", "p-1")["state"], "rejected");
    let log = eventually("it is logged", || Some(daemon.log()).filter(|log| log.contains("ERROR forged")));
    assert!(!log.contains(['\u{1b}', '\u{9b}']), "it steers the terminal: {log:?}");
    assert!(log.lines().all(|line| !line.starts_with("2026-01-01")), "a forged line: {log}");
    daemon.stop_well();
}

#[test]
fn readmes_configuration_fits_the_unit_that_runs_it() {
    let read = |name: &str| fs::read_to_string(rig::root().join(name)).expect(name);
    let readme = read("README.md");
    let dir =
        readme.lines().find_map(|line| line.strip_prefix("state_dir = \"")?.split('"').next()).expect("state_dir");
    let unit = read("systemd/kentledge.service");
    let writable = unit.lines().filter_map(|line| line.strip_prefix("ReadWritePaths=")).flat_map(str::split_whitespace);
    let mut writable = writable.map(|path| path.trim_start_matches('-'));
    assert!(writable.any(|path| dir.starts_with(path)), "the unit may not write to {dir}");
    assert!(read("systemd/kentledge.tmpfiles").contains(&format!("d {dir} ")), "nothing makes {dir}");
}
