//! A private D-Bus with a real dbus-daemon, under the policy that systemd/ ships. Faults: not there yet, gone, a
//! subscriber that reads nothing, callers of any user.

use std::{
    fs,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;

use crate::{eventually, root};

pub struct Bus {
    dir: TempDir,
    child: Child,
}

impl Bus {
    /// Started. Like a system bus: only what our policy allows may be owned or called.
    pub fn start() -> Self {
        let policy = root().join("systemd/org.kentledge.Daemon.conf");
        Self::with(&format!("<include>{}</include>", policy.display()))
    }

    /// Without a policy: any client may own and call everything.
    pub fn open_to_all() -> Self {
        Self::with("<policy context=\"default\"><allow own=\"*\"/><allow send_type=\"method_call\"/></policy>")
    }

    fn with(policy: &str) -> Self {
        let dir = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("folder");
        let path = dir.path().display();
        let text = format!(
            "<busconfig><type>system</type><listen>unix:path={path}/bus</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow user=\"*\"/><deny own=\"*\"/><deny send_type=\"method_call\"/>\
             <allow send_type=\"signal\"/><allow send_requested_reply=\"true\" send_type=\"method_return\"/>\
             <allow send_requested_reply=\"true\" send_type=\"error\"/><allow receive_type=\"method_call\"/>\
             <allow receive_type=\"method_return\"/><allow receive_type=\"error\"/><allow receive_type=\"signal\"/>\
             <allow send_destination=\"org.freedesktop.DBus\"/></policy>\
             <policy user=\"root\"><allow own=\"org.freedesktop.login1\"/>\
             <allow send_destination=\"org.freedesktop.login1\"/></policy>\
             {policy}</busconfig>"
        );
        fs::write(dir.path().join("bus.conf"), text).expect("write");
        let mut daemon = Command::new("dbus-daemon");
        daemon.arg("--nofork").arg(format!("--config-file={path}/bus.conf")).stderr(Stdio::null());
        let child = daemon.spawn().expect("dbus-daemon is installed (tests/run installs it)");
        eventually("the bus is there", || dir.path().join("bus").exists().then_some(()));
        Self { dir, child }
    }

    /// For `[device] bus`.
    pub fn address(&self) -> String {
        format!("unix:path={}/bus", self.dir.path().display())
    }

    /// `busctl` on it, as root or as another user.
    pub fn busctl(&self, uid: u32, args: &[&str]) -> Output {
        let mut busctl = Command::new("setpriv");
        busctl.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups", "busctl"]);
        busctl.arg(format!("--address={}", self.address())).args(["--no-pager", "--timeout=5"]).args(args);
        busctl.stdin(Stdio::null()).output().expect("busctl is installed (tests/run installs it)")
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// logind as far as a restart goes: a real service on the bus that counts the calls.
pub struct Logind {
    reboots: Arc<AtomicUsize>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

struct Manager(Arc<AtomicUsize>);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn reboot(&self, _interactive: bool) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Logind {
    /// On this bus.
    pub fn start(bus: &Bus) -> Self {
        let (reboots, address) = (Arc::<AtomicUsize>::default(), bus.address());
        let ((stop, stopped), (ready, wait)) = (tokio::sync::oneshot::channel(), std::sync::mpsc::channel());
        let manager = Manager(reboots.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let builder = zbus::connection::Builder::address(address.as_str());
                let builder = builder.name("org.freedesktop.login1");
                let builder = builder.serve_at("/org/freedesktop/login1", manager);
                let _connection = builder.build().await.expect("on the bus");
                ready.send(()).expect("ready");
                let _ = stopped.await;
            });
        });
        wait.recv_timeout(crate::SOON).expect("logind is there");
        Self { reboots, _stop: stop }
    }

    /// Restarts that were asked for.
    pub fn reboots(&self) -> usize {
        self.reboots.load(Ordering::SeqCst)
    }
}
