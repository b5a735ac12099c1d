//! A serial line with a device of third-party code at its other end (`tests/devices/device.py`). Faults: the daemon's
//! end is pulled and plugged in again; the device's own (noise, cut frames, deafness).

use std::{
    io::{Read, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{Tty, python, root};

/// Two ptys, back to back.
pub struct Line {
    daemon: Arc<Mutex<Tty>>,
    device: Arc<Mutex<Tty>>,
    stop: Arc<AtomicBool>,
    relay: Option<std::thread::JoinHandle<()>>,
}

impl Default for Line {
    fn default() -> Self {
        let (daemon, device) = (Arc::new(Mutex::new(Tty::default())), Arc::new(Mutex::new(Tty::default())));
        let stop = Arc::new(AtomicBool::new(false));
        let (a, b, end) = (daemon.clone(), device.clone(), stop.clone());
        let relay = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let moved = pass(&b, &a) + pass(&a, &b);
                if moved == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self { daemon, device, stop, relay: Some(relay) }
    }
}

/// What waits at one end goes to the other; nowhere, where that is pulled.
fn pass(from: &Mutex<Tty>, to: &Mutex<Tty>) -> usize {
    let mut chunk = [0u8; 1024];
    let read = from.lock().expect("line").master().map(|master| master.read(&mut chunk));
    let Some(Ok(n)) = read else { return 0 };
    let mut rest = &chunk[..n];
    while !rest.is_empty() {
        match to.lock().expect("line").master().map(|master| master.write(rest)) {
            Some(Ok(n)) => rest = &rest[n..],
            Some(Err(why)) if why.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => break,
        }
        if !rest.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    n
}

impl Line {
    /// What the daemon opens.
    pub fn path(&self) -> PathBuf {
        self.daemon.lock().expect("line").path()
    }

    /// Hangs up at the daemon's end.
    pub fn pull(&self) {
        self.daemon.lock().expect("line").pull();
    }

    /// Plugs it in again.
    pub fn plug_in(&self) {
        self.daemon.lock().expect("line").plug_in();
    }

    /// Raw bytes from the device's end, without a library.
    pub fn write(&self, bytes: &[u8]) {
        self.daemon.lock().expect("line").write(bytes);
    }

    /// A device at the other end.
    pub fn device(&self, args: &[&str]) -> Device {
        let port = self.device.lock().expect("line").path();
        let port = port.to_str().expect("text");
        Device::start(&args.iter().map(|arg| if *arg == "PORT" { port } else { arg }).collect::<Vec<_>>())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(relay) = self.relay.take() {
            let _ = relay.join();
        }
    }
}

/// The process that plays it.
pub struct Device(Child);

impl Device {
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new("python3");
        command.arg(root().join("tests/devices/device.py")).args(args).env("PYTHONPATH", python());
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3"))
    }

    /// The rows that left it whole, once it has sent all.
    pub fn whole(&mut self) -> Vec<u64> {
        use std::io::BufRead;
        let mut line = String::new();
        let out = self.0.stdout.as_mut().expect("its output");
        std::io::BufReader::new(out).read_line(&mut line).expect("its answer");
        serde_json::from_str(&line).unwrap_or_else(|why| panic!("the device says {line:?}: {why}"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
