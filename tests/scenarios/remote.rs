//! The whole of it as a user has it: a broker with TLS and the four ACL rules that the README ships, plain mosquitto
//! tools, and the example client.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rig::{Mosquitto, Operator, SOON, Site, Tty, eventually, tls, within};
use serde_json::{Value, json};

/// Certificates of a small site: its authority for devices and the one for people, the broker, the device, who commands,
/// and another device.
struct Certs(PathBuf);

impl Certs {
    fn new(dir: &Path) -> Self {
        let ca = tls::authority(dir, "ca");
        for name in ["broker", "pump-1", "pump-2"] {
            tls::certificate(dir, name, &ca);
        }
        tls::certificate(dir, "ops", &tls::authority(dir, "ops-ca"));
        Self(dir.to_owned())
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// A mosquitto tool as this user.
    fn tool(&self, tool: &str, port: u16, who: &str) -> Command {
        let mut command = Command::new(tool);
        command.args(["-h", "localhost", "-p", &port.to_string(), "-q", "1", "--cafile", &self.path("ca.pem")]);
        command.args(["--cert", &self.path(&format!("{who}.pem")), "--key", &self.path(&format!("{who}.key"))]);
        command
    }
}

/// mosquitto_sub on everything of the site, into a file.
struct Heard(Child, PathBuf);

impl Heard {
    fn new(certs: &Certs, port: u16) -> Self {
        let path = certs.0.join("heard");
        let file = fs::File::create(&path).expect("file");
        let mut sub = certs.tool("mosquitto_sub", port, "ops");
        let child =
            sub.args(["-V", "5", "-F", "%t %p", "-t", "kl/plant/+/up/#"]).stdout(file).spawn().expect("mosquitto_sub");
        Self(child, path)
    }

    /// Payloads of a topic so far.
    fn on(&self, topic: &str) -> Vec<Value> {
        let text = fs::read_to_string(&self.1).expect("heard");
        let of_topic = text.lines().filter_map(|line| line.strip_prefix(&format!("kl/plant/{topic} ")));
        of_topic.filter_map(|json| serde_json::from_str(json).ok()).collect()
    }

    fn end(&self, kind: &str, id: &str) -> Value {
        eventually(&format!("the end of {kind} {id}"), || {
            let seen = self.on(&format!("pump-1/up/res/{kind}/{id}"));
            let mut records = seen.iter().map(|payload| payload["data"][0].clone());
            records.find(|r| !["accepted", "running"].contains(&r["state"].as_str().unwrap_or("")))
        })
    }

    fn nonce(&self) -> String {
        eventually("a birth", || Some(self.on("pump-1/up/birth").last()?["nonce"].as_str()?.to_owned()))
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_command_goes_through_a_broker_with_tls_and_acls_and_the_example_client_works() {
    let (dir, tty) = (tempfile::tempdir().expect("folder"), Tty::default());
    let certs = Certs::new(dir.path());
    let broker = Mosquitto::guarded(dir.path());
    let operator = Operator::new(broker.people, "ops");
    let heard = Heard::new(&certs, broker.people);
    let mqtt = format!(
        "[mqtt]\nurl = \"mqtts://localhost:{}\"\nca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
        broker.port,
        certs.path("ca.pem"),
        certs.path("pump-1.pem"),
        certs.path("pump-1.key")
    );
    let site = Site::offline()
        .with_device("site = \"plant\"\nid = \"pump-1\"\nbus = \"off\"\ncohorts = [\"pumps\"]")
        .with(&mqtt)
        .with(&operator.table())
        .with_sensor(&tty)
        .with_mean_model();
    let mut daemon = site.run();
    heard.nonce();
    let publish = |who: &str, topic: &str, payload: &str| {
        let file = dir.path().join("payload");
        fs::write(&file, payload).expect("write");
        let port = if who == "ops" { broker.people } else { broker.port };
        let mut tool = certs.tool("mosquitto_pub", port, who);
        tool.args(["-V", "5", "-t", &format!("kl/plant/{topic}"), "-f"]).arg(&file);
        tool.stderr(Stdio::null()).status().expect("mosquitto_pub")
    };
    for (kind, args, expected) in [
        ("ping", json!({}), "success"),
        ("status", json!({}), "success"),
        ("report", json!({}), "success"),
        ("config.get", json!({}), "success"),
        ("config.set", json!({"toml": "[metrics]\ninterval_s = 2\n"}), "success"),
        ("model.calibrate", json!({"pipeline": "x"}), "rejected"),
        ("alarm.ack", json!({"alarm": "high"}), "rejected"),
        ("model.install", json!({}), "rejected"),
        ("model.rollback", json!({}), "rejected"),
        ("os.install", json!({}), "rejected"),
        ("reboot", json!({}), "failed"),
        ("erase", json!({"confirm": "no"}), "rejected"),
    ] {
        let id = kind.replace('.', "-");
        let payload = operator.command(kind, &id, &heard.nonce(), &args);
        assert!(publish("ops", &format!("pump-1/dn/cmd/{kind}/{id}"), &payload).success());
        assert_eq!(heard.end(kind, &id)["state"], expected, "{kind}");
    }
    // Another device may not command this one, nor speak in its name; the daemon hears nothing of it.
    publish("pump-2", "pump-1/dn/cmd/ping/evil", "{\"id\":\"evil\"}");
    publish("pump-2", "pump-1/up/res/ping/forged", "{}");
    publish("ops", "_c-pumps/dn/cmd/ping/cohort", "{\"id\":\"cohort\"}");
    assert_eq!(heard.end("ping", "cohort")["state"], "success");
    assert!(heard.on("pump-1/up/res/ping/evil").is_empty() && heard.on("pump-1/up/res/ping/forged").is_empty());

    let client = |args: &[&str]| {
        let mut python = Command::new("python3");
        python.arg(rig::root().join("tests/client/kentledge_command.py")).env("PYTHONPATH", rig::python());
        python.args([
            "--host",
            "localhost",
            "--port",
            &broker.people.to_string(),
            "--to",
            "plant/pump-1",
            "--wait",
            "20",
        ]);
        python.args(["--ca", &certs.path("ca.pem"), "--cert", &certs.path("ops.pem"), "--key", &certs.path("ops.key")]);
        let out = python.args(args).output().expect("python3");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        (out.status.code(), text + &String::from_utf8_lossy(&out.stderr))
    };
    let (code, text) = client(&["ping"]);
    assert!(code == Some(0) && text.contains("\"state\": \"success\""), "{text}");
    let secret = operator.secret().display().to_string();
    let set = "{\"toml\": \"[metrics]\\ninterval_s = 3\\n\"}";
    let (code, text) = client(&["--issuer", "ops", "--secret", &secret, "config.set", set]);
    assert!(code == Some(0) && text.contains("\"state\": \"success\""), "{text}");
    let (code, text) = client(&["restart"]);
    assert!(code == Some(1) && text.contains("unsigned"), "{text}");
    let restart = operator.inner("plant/pump-1", "restart", "r-1", &heard.nonce(), &json!({}));
    let mut restart = restart;
    // The example client counts by the time in milliseconds.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time");
    restart["iseq"] = (now.as_millis() as u64).into();
    publish("ops", "pump-1/dn/cmd/restart/r-1", &operator.sign(&restart.to_string()));
    within(SOON, "it ends to be started again", || !daemon.is_alive());
}

#[test]
fn the_log_is_pulled_by_unit_time_and_priority() {
    let broker = Mosquitto::start();
    let (sub, operator) = (rig::Sub::new(broker.port), Operator::new(broker.port, "ops"));
    // A real journal with entries of two units, read by the real journalctl: only its file is given.
    let dir = tempfile::tempdir().expect("folder");
    let (export, journal) = (dir.path().join("export"), dir.path().join("test.journal"));
    let entry = |i: u64, unit: &str, priority: u8| {
        format!(
            "__REALTIME_TIMESTAMP={}\n__MONOTONIC_TIMESTAMP={i}\n_BOOT_ID=0123456789abcdef0123456789abcdef\n\
             _SYSTEMD_UNIT={unit}\nPRIORITY={priority}\nMESSAGE={unit} line {i}\n\n",
            1_795_166_000_000_000 + i * 1_000_000
        )
    };
    let text: String = (0..300)
        .map(|i| entry(i, if i % 3 == 0 { "other.service" } else { "kentledge.service" }, (i % 7) as u8))
        .collect();
    fs::write(&export, text).expect("write");
    let made = Command::new("/lib/systemd/systemd-journal-remote").arg("-o").arg(&journal).arg(&export).output();
    assert!(made.expect("systemd-journal-remote is installed (tests/run installs it)").status.success());
    let wrapper = dir.path().join("journalctl");
    fs::write(&wrapper, format!("#!/bin/sh\nexec /usr/bin/journalctl --file={} \"$@\"\n", journal.display()))
        .expect("write");
    fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").expect("PATH"));
    let daemon = Site::new(broker.port).with(&operator.table()).with_env("PATH", &path).run();
    sub.wait_state("online");
    let pull = |id: &str, args: Value| {
        operator.order(&sub, "log.pull", id, &args);
        let end = rig::operator::end(&sub, "log.pull", id);
        assert_eq!(end["state"], "success", "{end}");
        end["result"]["lines"].as_array().expect("lines").clone()
    };
    let all = pull("a", json!({"lines": 1000, "priority": 7}));
    assert_eq!(all.len(), 200);
    assert!(all.iter().all(|line| line["text"].as_str().expect("text").starts_with("kentledge.service")));
    let few = pull("b", json!({"unit": "other.service", "lines": 5, "priority": 7}));
    assert_eq!(few.len(), 5);
    assert_eq!(few[4]["text"], "other.service line 297");
    assert!(pull("c", json!({"priority": 3})).iter().all(|line| line["priority"].as_u64().expect("priority") <= 3));
    let some = pull("d", json!({"since": "2026-11-20T09:13:30Z", "until": "2026-11-20T09:13:40Z", "priority": 7}));
    assert!((5..=8).contains(&some.len()), "{} lines of 10 s", some.len());
    // No option of journalctl, no other tool: a unit is a word.
    for (id, unit) in [("e", "--file=/etc/shadow"), ("f", "a;id"), ("g", "")] {
        operator.order(&sub, "log.pull", id, &json!({"unit": unit}));
        assert_eq!(rig::operator::end(&sub, "log.pull", id)["why"], "malformed");
    }
    daemon.stop_well();
}

#[test]
fn a_device_takes_over_its_provision_file_once_and_a_bad_one_is_told() {
    let broker = Mosquitto::start();
    let sub = rig::Sub::new(broker.port);
    let site = Site::offline().with_device("bus = \"off\"");
    fs::create_dir_all(site.state()).expect("folder");
    let file = site.state().join("provision.toml");
    fs::write(&file, "site = \"plant\"\n[broker]\nurl = \"https://nowhere\"\n").expect("write");
    let daemon = site.run();
    eventually("it says what is wrong", || daemon.log().contains("mqtt.url: must be `mqtts://HOST").then_some(()));
    daemon.stop_well();
    assert!(file.exists(), "it stays to be mended");
    let good = format!(
        "site = \"plant\"\ndevice = \"pump-9\"\nauthorized_keys = [\"ssh-ed25519 {} me\"]\nntp = [\"ntp.example\"]\n\
         [broker]\nurl = \"mqtt://127.0.0.1:{}\"\n[network]\ninterface = \"eth0\"\n",
        "A".repeat(68),
        broker.port
    );
    fs::write(&file, good).expect("write");
    let daemon = site.run();
    sub.wait("it is there by its name", |m| {
        m.iter().find(|m| m.stream == "birth" && m.payload["device"] == "plant/pump-9").map(|_| ())
    });
    assert!(!file.exists());
    eventually("what is the image's is left to it", || {
        daemon.log().contains("authorized_keys are not taken").then_some(())
    });
    daemon.stop_well();
}

#[test]
fn metrics_are_clean_their_names_documented_and_the_dashboards_queries_resolve() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = rig::Sub::new(broker.port);
    let port = rig::free_port();
    let site = Site::new(broker.port)
        .with_sensor(&tty)
        .with_mean_model()
        .with_metrics(&format!("listen = \"{port}\""))
        .with("[samples]\nmax_mib = 1\n");
    let daemon = site.run();
    sub.wait_event("model.serving", "mean");
    tty.rows(0..500, |i| format!("{i},1,2"));
    sub.wait_records("p/x", 497);
    let mut check = Command::new("python3");
    check.arg(rig::root().join("tests/client/check_metrics.py")).env("PYTHONPATH", rig::python());
    let docs = rig::root().join("daemon/docs");
    check
        .arg(format!("http://127.0.0.1:{port}/metrics"))
        .arg(docs.join("reference/metrics.md"))
        .arg(docs.join("grafana-dashboard.json"));
    let out = check.output().expect("python3");
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    rig::measured(String::from_utf8_lossy(&out.stdout).trim());
    daemon.stop_well();
}

#[test]
fn device_with_its_own_certificate_cannot_take_over_the_session_of_another() {
    let dir = tempfile::tempdir().expect("folder");
    let certs = Certs::new(dir.path());
    let broker = Mosquitto::guarded(dir.path());
    let heard = Heard::new(&certs, broker.people);
    let mqtt = format!(
        "[mqtt]\nurl = \"mqtts://localhost:{}\"\nca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
        broker.port,
        certs.path("ca.pem"),
        certs.path("pump-1.pem"),
        certs.path("pump-1.key")
    );
    let site = Site::offline().with(&mqtt);
    let mut daemon = site.run();
    heard.nonce();
    let connections = || heard.on("pump-1/up/birth").len();
    // With the client id that the device has by default, and with the one that the broker gives it.
    let steal = |port: u16, id: &str| {
        let mut tool = certs.tool("mosquitto_sub", port, "pump-2");
        tool.args(["-V", "5", "-i", id, "-t", "kl/plant/pump-2/dn/#", "-E"]).stderr(Stdio::null()).status()
    };
    for id in ["kl-plant-pump-1", "pump-1"] {
        steal(broker.port, id).expect("mosquitto_sub");
        assert!(!steal(broker.people, id).expect("mosquitto_sub").success(), "its certificate is not valid there");
    }
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!((connections(), daemon.is_alive()), (1, true), "it was not thrown out: {}", daemon.log());
    // While it is away, a command waits in its session; a clean start under its name would empty that.
    daemon.kill();
    let mut order = certs.tool("mosquitto_pub", broker.people, "ops");
    order.args(["-V", "5", "-t", "kl/plant/pump-1/dn/cmd/ping/waits", "-m", "{\"id\":\"waits\"}"]);
    assert!(order.status().expect("mosquitto_pub").success());
    for id in ["kl-plant-pump-1", "pump-1"] {
        steal(broker.port, id).expect("mosquitto_sub");
    }
    let daemon = site.run();
    assert_eq!(heard.end("ping", "waits")["state"], "success");
    daemon.stop_well();
}
