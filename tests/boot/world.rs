//! A machine, the broker it reports to, and those who provision and command it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rig::{
    Mosquitto, Operator, Sub,
    machine::{HOST, Machine, image, keys},
    maker, operator, tls,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// One update: writing a slot under emulation, and starts of up to two systems.
pub const UPDATE: Duration = Duration::from_secs(1200);

pub struct Device {
    pub dir: TempDir,
    /// Ends with it.
    _broker: Mosquitto,
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
        let text = format!(
            "site = \"plant\"\ndevice = \"pump-1\"\nauthorized_keys = [{}]\n[broker]\nurl = \"mqtts://{HOST}:{tls_port}\"\n\
             ca = '''\n{}'''\n",
            json!(fs::read_to_string(key.with_extension("pub")).expect("key").trim()),
            fs::read_to_string(path("ca.pem")).expect("ca"),
        );
        let machine = Machine::new();
        machine.onto_boot("provision.toml", &text);
        Self { dir, _broker: broker, sub, operator, machine, key, servers: Vec::new() }
    }

    /// Switched on, at its shell, and heard of by the broker.
    pub fn start(&mut self) {
        self.machine.start();
        self.machine.shell();
        self.sub.wait_most(Duration::from_secs(120), "the device is online", |messages| {
            messages.iter().rev().find(|m| m.stream == "state").filter(|m| m.payload["state"] == "online").map(drop)
        });
    }

    /// Until the check after the start told the boot loader.
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
            let found = self.sub.wait_most(Duration::from_secs(120), "its status", |_| {
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
        let mut python = Command::new("python3");
        python.arg(rig::root().join("tests/client/https_server.py"));
        python.arg(self.dir.path().join("server.pem")).arg(self.dir.path().join("server.key")).arg(bundle).arg("good");
        let mut child = python.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("python3");
        let mut line = String::new();
        let out = child.stdout.take().expect("stdout");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("its port");
        self.servers.push(child);
        let url = format!("https://{HOST}:{}/bundle.raucb", line.trim());
        let size = bundle.metadata().expect("bundle").len();
        let args = json!({"url": url, "sha256": maker::sha256(bundle), "size": size});
        self.operator.order(&self.sub, "os.install", id, &args);
    }

    /// What became of it.
    #[track_caller]
    pub fn end(&self, id: &str, most: Duration) -> Value {
        let stream = format!("res/os.install/{id}");
        self.sub.wait_most(most, "the update came to its end", |_| {
            let records = self.sub.records(&stream);
            let over = |r: &&(Value, bool)| !["accepted", "running"].contains(&r.0["state"].as_str().unwrap_or(""));
            records.iter().find(over).map(|(record, _)| record.clone())
        })
    }

    /// Every text that was told of it.
    pub fn told(&self, id: &str) -> Vec<String> {
        let records = self.sub.records(&format!("res/os.install/{id}"));
        records.iter().map(|(r, _)| format!("{} {}", r["state"], r["text"].as_str().unwrap_or(""))).collect()
    }

    /// Settings of the image are over this one.
    pub fn config(&mut self, id: &str, toml: &str) {
        self.operator.order(&self.sub, "config.set", id, &json!({"toml": toml}));
        let state = self.sub.wait_most(Duration::from_secs(120), "the setting is in use", |_| {
            let states = operator::states(&self.sub, "config.set", id);
            states.last().filter(|s| !["accepted", "running"].contains(&s.as_str())).cloned()
        });
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
    let rootfs = at.join(format!("rootfs-{version}.ext4"));
    let done = Command::new("cp").arg("--sparse=always").arg(image("rootfs.ext4")).arg(&rootfs).status().expect("cp");
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
    let out = bundle_of(&rootfs, version, &keys(), &at.join(format!("{version}.raucb")), BOARD);
    let _ = fs::remove_file(rootfs);
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

fn debugfs(image: &Path, lines: &[String]) -> String {
    let script = image.with_extension("debugfs");
    fs::write(&script, lines.join("\n") + "\n").expect("write");
    let out = Command::new("debugfs").args(["-w", "-f"]).arg(&script).arg(image).output().expect("debugfs");
    assert!(out.status.success());
    String::from_utf8_lossy(&out.stdout).into_owned()
}
