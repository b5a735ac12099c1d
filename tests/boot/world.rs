//! A machine, the broker it reports to, and those who provision and command it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rig::{
    Board, Mosquitto, Operator, Sub,
    machine::{HOST, Machine, START, keys},
    maker, operator, tls,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// One update: writing a slot under emulation, and starts of up to two systems.
pub const UPDATE: Duration = Duration::from_secs(1200);

pub struct Device {
    pub dir: TempDir,
    pub broker: Mosquitto,
    tls_port: u16,
    pub sub: Sub,
    pub operator: Operator,
    pub machine: Machine,
    /// For `ssh admin@`.
    pub key: PathBuf,
    servers: Vec<Child>,
}

impl Device {
    /// Provisioned, not switched on yet.
    pub fn new() -> Self {
        Self::on(Board::Virtual, "")
    }

    /// The same on a board; `more` goes into its provision.toml.
    pub fn on(board: Board, more: &str) -> Self {
        let mut device = Self::unprovisioned(board, "test");
        device.provision(true, more);
        device
    }

    /// A card of a flavour as it comes from the writer; its broker waits for it.
    pub fn unprovisioned(board: Board, flavour: &'static str) -> Self {
        let dir = TempDir::new().expect("folder");
        let ca = tls::authority(dir.path(), "ca");
        tls::certificate(dir.path(), "server", &ca);
        let path = |name: &str| dir.path().join(name);
        let (broker, tls_port) = Mosquitto::with_tls_port(&path("ca.pem"), &path("server.pem"), &path("server.key"));
        let sub = Sub::new(broker.port);
        let operator = Operator::with_key(broker.port, "ops", &keys().join("ops.sec"));
        let key = path("ssh");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.expect("ssh-keygen").success());
        let machine = Machine::with(board, flavour);
        Self { dir, broker, tls_port, sub, operator, machine, key, servers: Vec::new() }
    }

    /// Puts its provision.toml onto the card: with the administrator's SSH key, or without.
    pub fn provision(&mut self, with_key: bool, more: &str) {
        let key = fs::read_to_string(self.key.with_extension("pub")).expect("key");
        let keys = if with_key { format!("authorized_keys = [{}]\n", json!(key.trim())) } else { String::new() };
        let text = format!(
            "site = \"plant\"\ndevice = \"pump-1\"\n{keys}[broker]\nurl = \"mqtts://{HOST}:{}\"\nca = '''\n{}'''\n{more}",
            self.tls_port,
            fs::read_to_string(self.dir.path().join("ca.pem")).expect("ca"),
        );
        self.machine.onto_boot("provision.toml", &text);
    }

    /// Switched on, at its shell, and heard of by the broker.
    pub fn start(&mut self) {
        let before = self.onlines();
        self.machine.start();
        self.machine.shell();
        self.online_after(before);
    }

    /// How often it came online.
    pub fn onlines(&self) -> usize {
        self.sub.messages().iter().filter(|m| m.stream == "state" && m.payload["state"] == "online").count()
    }

    /// Until it came online once more than `before`.
    #[track_caller]
    pub fn online_after(&self, before: usize) {
        let is = |m: &&std::sync::Arc<rig::Message>| m.stream == "state" && m.payload["state"] == "online";
        self.sub.wait_most(START * self.machine.board.slowness(), "the device is online", |messages| {
            (messages.iter().filter(is).count() > before).then_some(())
        });
    }

    /// The sensor sends, and the model learns what is normal.
    #[track_caller]
    pub fn learn(&mut self) {
        self.machine.sense();
        self.sub.wait_most(
            Duration::from_secs(180) * self.machine.board.slowness(),
            "it has learnt what is normal",
            |m| (!rig::sub::records(m, "e/model.calibrated").is_empty()).then_some(()),
        );
    }

    /// The bearing shakes until the alarm is heard, once more than `before` it.
    #[track_caller]
    pub fn alarm(&mut self) {
        let raised =
            |m: &&std::sync::Arc<rig::Message>| m.stream == "a/anomaly" && m.payload.to_string().contains("\"raised\"");
        let before = self.sub.messages().iter().filter(raised).count();
        self.machine.odd(true);
        self.sub.wait_most(Duration::from_secs(60) * self.machine.board.slowness(), "the alarm", |m| {
            (m.iter().filter(raised).count() > before).then_some(())
        });
        self.machine.odd(false);
    }

    /// What made the newest prediction that was not kept for later: the envelope's `lineage`, and its boot.
    pub fn lineage(&self) -> Option<(Value, String)> {
        let messages = self.sub.messages();
        let live = messages.iter().rev().find(|m| m.stream == "p/anomaly" && m.payload["hist"] == false)?;
        Some((live.payload["lineage"].clone(), live.payload["boot"].as_str()?.to_owned()))
    }

    /// Waits until the check after the start marked the slot good.
    #[track_caller]
    pub fn good(&mut self) {
        let line = "for i in $(seq 240); do test -e /run/kentledge-boot/good && break; sleep 1; done; cat /run/kentledge-boot/good";
        self.machine.run(line);
    }

    /// The slot it runs from, and its version.
    pub fn runs(&mut self) -> (String, String) {
        let slot = self.machine.run("sed -n 's/.*rauc\\.slot=\\([AB]\\).*/\\1/p' /proc/cmdline");
        let version = self.machine.run("sed -n 's/^IMAGE_VERSION=//p' /etc/os-release");
        (slot, version)
    }

    /// The same where the console may be busy: as it says of itself to the broker.
    #[track_caller]
    pub fn running(&self) -> (String, String) {
        for n in 0.. {
            let id = format!("status-{}-{n}", self.operator.next());
            self.operator.plain("status", &id, &json!({}));
            let stream = format!("res/status/{id}");
            let found =
                self.sub.wait_most(Duration::from_secs(120) * self.machine.board.slowness(), "its status", |_| {
                    let records = self.sub.records(&stream);
                    records.iter().find(|(r, _)| r["state"] == "success").map(|(r, _)| r["result"]["system"].clone())
                });
            if let (Some(slot), Some(version)) = (found["slot"].as_str(), found["version"].as_str()) {
                return (slot.to_owned(), version.to_owned());
            }
        }
        unreachable!()
    }

    /// Orders an update from a server on this host.
    pub fn update(&mut self, id: &str, bundle: &Path) {
        self.order("os.install", id, bundle);
    }

    /// Orders what brings a file, which a server on this host has.
    pub fn order(&mut self, kind: &str, id: &str, file: &Path) {
        let mut python = Command::new("python3");
        python.arg(rig::root().join("tests/client/https_server.py"));
        python.arg(self.dir.path().join("server.pem")).arg(self.dir.path().join("server.key")).arg(file).arg("good");
        let mut child = python.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("python3");
        let mut line = String::new();
        let out = child.stdout.take().expect("stdout");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("its port");
        self.servers.push(child);
        let url = format!("https://{HOST}:{}/bundle", line.trim());
        let size = file.metadata().expect("bundle").len();
        let args = json!({"url": url, "sha256": maker::sha256(file), "size": size});
        self.operator.order(&self.sub, kind, id, &args);
    }

    /// The result of an update.
    #[track_caller]
    pub fn end(&self, id: &str, most: Duration) -> Value {
        self.end_of("os.install", id, most)
    }

    /// The result of an order.
    #[track_caller]
    pub fn end_of(&self, kind: &str, id: &str, most: Duration) -> Value {
        let stream = format!("res/{kind}/{id}");
        self.sub.wait_most(most * self.machine.board.slowness(), &format!("{kind} came to its end"), |_| {
            let records = self.sub.records(&stream);
            let over = |r: &&(Value, bool)| !["accepted", "running"].contains(&r.0["state"].as_str().unwrap_or(""));
            records.iter().find(over).map(|(record, _)| record.clone())
        })
    }

    /// An update came to its end.
    pub fn is_over(&self, id: &str) -> bool {
        let records = self.sub.records(&format!("res/os.install/{id}"));
        records.iter().any(|(r, _)| !["accepted", "running"].contains(&r["state"].as_str().unwrap_or("")))
    }

    /// State and text of each report of the update.
    pub fn texts(&self, id: &str) -> Vec<String> {
        let records = self.sub.records(&format!("res/os.install/{id}"));
        records.iter().map(|(r, _)| format!("{} {}", r["state"], r["text"].as_str().unwrap_or(""))).collect()
    }

    /// Settings of the image are over this one.
    pub fn config(&mut self, id: &str, toml: &str) {
        self.operator.order(&self.sub, "config.set", id, &json!({"toml": toml}));
        let state = self.sub.wait_most(
            Duration::from_secs(120) * self.machine.board.slowness(),
            "the setting is in use",
            |_| {
                let states = operator::states(&self.sub, "config.set", id);
                states.last().filter(|s| !["accepted", "running"].contains(&s.as_str())).cloned()
            },
        );
        assert_eq!(state, "success");
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// This board, as bundles name it.
pub const BOARD: &str = "kentledge-qemuarm64";

/// A bundle of the image's own system with something else in it: lines for debugfs, which edits the file system without a
/// mount.
pub fn bundle(at: &Path, version: &str, edits: &[String]) -> PathBuf {
    bundle_for(Board::Virtual, at, version, edits)
}

/// The same for a board.
pub fn bundle_for(board: Board, at: &Path, version: &str, edits: &[String]) -> PathBuf {
    let rootfs = at.join(format!("rootfs-{version}.ext4"));
    let done = Command::new("cp")
        .arg("--sparse=always")
        .arg(board.image("test", "rootfs.ext4"))
        .arg(&rootfs)
        .status()
        .expect("cp");
    assert!(done.success());
    let release = at.join(format!("os-release-{version}"));
    let text = debugfs(&rootfs, &["cat /usr/lib/os-release".to_owned()]);
    let mut lines: Vec<String> = text.lines().filter(|l| l.contains('=')).map(str::to_owned).collect();
    for line in &mut lines {
        if line.starts_with("IMAGE_VERSION=") {
            *line = format!("IMAGE_VERSION={version}");
        } else if line.starts_with("BUILD_ID=") {
            *line = format!("BUILD_ID=of-{version}");
        }
    }
    fs::write(&release, lines.join("\n") + "\n").expect("write");
    let mut all = vec!["rm /usr/lib/os-release".to_owned(), format!("write {} /usr/lib/os-release", release.display())];
    all.extend(edits.iter().cloned());
    debugfs(&rootfs, &all);
    let out = bundle_of(&rootfs, version, &keys(), &at.join(format!("{version}.raucb")), board.compatible());
    let _ = fs::remove_file(rootfs);
    out
}

/// The image's model once more, as a later version.
pub fn model(at: &Path) -> PathBuf {
    let (folder, out) = (at.join("model"), at.join("pump-anomaly-1.1.0.kmb"));
    fs::create_dir(&folder).expect("folder");
    let ours = rig::root().join("models/pump-anomaly");
    for name in ["model.onnx", "card.md"] {
        fs::copy(ours.join(name), folder.join(name)).expect("copy");
    }
    let text = fs::read_to_string(ours.join("manifest.json")).expect("manifest");
    let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
    manifest["version"] = json!("1.1.0");
    manifest["seq"] = json!(2);
    fs::write(folder.join("manifest.json"), manifest.to_string()).expect("write");
    let show = |path: &Path| path.display().to_string();
    let prepared = rig::daemon::run(&["model", "prepare", &show(&folder)]);
    assert_eq!(prepared.code, Some(0), "{}", prepared.err);
    let mut minisign = Command::new("minisign");
    minisign.args(["-S", "-q", "-m"]).arg(folder.join("manifest.json")).arg("-s").arg(keys().join("release.sec"));
    assert!(minisign.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("minisign").success());
    let packed = rig::daemon::run(&["model", "pack", &show(&folder), "-o", &show(&out)]);
    assert_eq!(packed.code, Some(0), "{}", packed.err);
    out
}

/// A bundle of a file system, signed with the keys in `keys`, for a board.
pub fn bundle_of(rootfs: &Path, version: &str, keys: &Path, out: &Path, board: &str) -> PathBuf {
    let mut make = Command::new(rig::root().join("image/quick/bundle"));
    make.arg(rootfs).arg(version).arg(keys).arg(out).arg(board);
    let made = make.env("KENTLEDGE_SQUASHFS", "lzo -Xalgorithm lzo1x_1").output().expect("image/quick/bundle");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    out.to_owned()
}

/// Runs lines of debugfs on a file system; what they print.
pub fn debugfs(image: &Path, lines: &[String]) -> String {
    let script = image.with_extension("debugfs");
    fs::write(&script, lines.join("\n") + "\n").expect("write");
    let out = Command::new("debugfs").args(["-w", "-f"]).arg(&script).arg(image).output().expect("debugfs");
    assert!(out.status.success());
    String::from_utf8_lossy(&out.stdout).into_owned()
}
