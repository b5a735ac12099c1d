//! A real mosquitto under the test's control. Faults: not there yet, stopped, killed, frozen (SIGSTOP), TLS with client
//! certificates.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{eventually, free_port};

pub struct Mosquitto {
    dir: TempDir,
    pub port: u16,
    /// Where people and services connect, if that is another port.
    pub people: u16,
    child: Option<Child>,
    tls: bool,
    extra: String,
}

impl Mosquitto {
    /// Started, reachable in plain text on loopback.
    pub fn start() -> Self {
        let mut broker = Self::down();
        broker.up();
        broker
    }

    /// Configured, not started.
    pub fn down() -> Self {
        let port = free_port();
        let dir = TempDir::new().expect("folder");
        Self { dir, port, people: port, child: None, tls: false, extra: String::new() }
    }

    /// Started with these lines more in its configuration.
    pub fn with(lines: &str) -> Self {
        let mut broker = Self::down();
        broker.extra = format!("{lines}\n");
        broker.up();
        broker
    }

    /// Started with TLS; clients must show a certificate that `ca` signed.
    pub fn tls(ca: &Path, cert: &Path, key: &Path) -> Self {
        let mut broker = Self::down();
        broker.tls = true;
        let show = |p: &Path| p.display().to_string();
        let extra =
            format!("cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n", show(ca), show(cert), show(key));
        broker.launch(&extra);
        broker
    }

    /// Started, in plain text on its port and with TLS on another, which is returned; clients need no certificate there.
    pub fn with_tls_port(ca: &Path, cert: &Path, key: &Path) -> (Self, u16) {
        let (mut broker, port) = (Self::down(), free_port());
        let show = |p: &Path| p.display().to_string();
        let (ca, cert, key) = (show(ca), show(cert), show(key));
        broker.extra = format!("listener {port} 127.0.0.1\ncafile {ca}\ncertfile {cert}\nkeyfile {key}\n");
        broker.up();
        (broker, port)
    }

    /// Started with the configuration and the ACLs that the README ships, with certificates in `dir`.
    pub fn guarded(dir: &Path) -> Self {
        let mut broker = Self::down();
        let ships = crate::root().join("daemon/docs/broker");
        let text = fs::read_to_string(ships.join("mosquitto.conf")).expect("mosquitto.conf");
        broker.people = free_port();
        let text = text.replace("listener 8883", &format!("listener {} 127.0.0.1", broker.port));
        let text = text.replace("listener 8884", &format!("listener {} 127.0.0.1", broker.people));
        let text = text.replace("/etc/mosquitto/", &format!("{}/", dir.display()));
        let text = text.replace("/var/lib/mosquitto/", &format!("{}/", broker.dir.path().display()));
        fs::copy(ships.join("acl"), dir.join("acl")).expect("acl");
        broker.spawn(&format!("{text}user root\n"));
        broker
    }

    /// Starts it, with what it kept when it was stopped in order.
    pub fn up(&mut self) {
        self.launch(&self.extra.clone());
    }

    fn launch(&mut self, extra: &str) {
        assert!(self.child.is_none(), "it is up");
        let (dir, port) = (self.dir.path().display(), self.port);
        let plain = if self.tls { String::new() } else { "allow_anonymous true\n".into() };
        let text = format!(
            "listener {port} 127.0.0.1\n{plain}{extra}user root\npersistence true\npersistence_location {dir}/\n\
             max_inflight_messages 0\nmax_queued_messages 0\nlog_dest file {dir}/log\n"
        );
        let text = if self.tls { format!("{text}allow_anonymous true\n") } else { text };
        self.spawn(&text);
    }

    fn spawn(&mut self, text: &str) {
        let port = self.port;
        let config = self.dir.path().join("mosquitto.conf");
        fs::write(&config, text).expect("write mosquitto.conf");
        let child =
            Command::new("mosquitto").arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child = Some(child.expect("mosquitto is installed (tests/run installs it)"));
        eventually("mosquitto answers", || TcpStream::connect(("127.0.0.1", port)).ok());
        eventually("mosquitto answers people", || TcpStream::connect(("127.0.0.1", self.people)).ok());
    }

    /// Stops it in order: sessions and retained messages are kept.
    pub fn stop(&mut self) {
        // A SIGTERM between its first open port and its main loop is lost: mosquitto sets its own flag again there.
        eventually("mosquitto stops", || {
            self.signal(Signal::SIGTERM);
            self.child
                .as_mut()
                .is_none_or(|child| child.try_wait().expect("wait for mosquitto").is_some())
                .then_some(())
        });
        self.child = None;
    }

    /// Kills it: what it had not written is lost.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill mosquitto");
            child.wait().expect("wait for mosquitto");
        }
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(child.id() as i32), signal).expect("signal mosquitto");
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
