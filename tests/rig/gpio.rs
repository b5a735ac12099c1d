//! GPIO without a chip: pipes that carry the kernel's edge structs in, and what outputs are set to out. Faults: edges that
//! the kernel lost, storms; the guard that holds the outputs is killed or frozen.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use tempfile::TempDir;

use crate::{eventually, within};

fn pipe(dir: &TempDir) -> (PathBuf, File) {
    let path = dir.path().join("gpiochip");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe");
    let options = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path);
    (path, options.expect("open the pipe"))
}

/// Inputs.
pub struct Edges {
    _dir: TempDir,
    pub path: PathBuf,
    pipe: File,
    seqnos: [u32; 64],
}

impl Default for Edges {
    fn default() -> Self {
        let dir = TempDir::new().expect("folder");
        let (path, pipe) = pipe(&dir);
        Self { _dir: dir, path, pipe, seqnos: [0; 64] }
    }
}

/// CLOCK_MONOTONIC, on which the kernel stamps edges.
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    Duration::from(now).as_nanos() as u64
}

impl Edges {
    /// `struct gpio_v2_line_event`, as linux/gpio.h has it.
    pub fn edge(&mut self, line: u32, rising: bool, at_ns: u64) {
        self.seqnos[line as usize] += 1;
        let mut bytes = at_ns.to_ne_bytes().to_vec();
        for word in [if rising { 1 } else { 2 }, line, 0, self.seqnos[line as usize], 0, 0, 0, 0, 0, 0u32] {
            bytes.extend(word.to_ne_bytes());
        }
        eventually("the daemon reads the edges", || self.pipe.write_all(&bytes).ok());
    }

    /// The kernel's queue was full.
    pub fn lose(&mut self, line: u32, n: u32) {
        self.seqnos[line as usize] += n;
    }
}

/// Outputs.
pub struct Lamp {
    _dir: TempDir,
    pub path: PathBuf,
    seen: Arc<Mutex<Vec<(bool, Instant)>>>,
}

impl Default for Lamp {
    fn default() -> Self {
        // Below /dev: elsewhere a remote layer may not name a chip.
        let dir = TempDir::new_in("/dev/shm").expect("folder");
        let (path, mut pipe) = pipe(&dir);
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let looked = Arc::downgrade(&seen);
        std::thread::spawn(move || {
            let mut bytes = [0u8; 256];
            while let Some(seen) = looked.upgrade() {
                if let Ok(n) = pipe.read(&mut bytes) {
                    let now = Instant::now();
                    let changes = bytes[..n].iter().filter(|b| **b != b'\n').map(|b| (*b == b'1', now));
                    seen.lock().expect("lamp").extend(changes);
                }
                drop(seen);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self { _dir: dir, path, seen }
    }
}

impl Lamp {
    /// What it was set to, and when that was seen.
    pub fn seen(&self) -> Vec<(bool, Instant)> {
        self.seen.lock().expect("lamp").clone()
    }

    /// What it is now.
    pub fn is_on(&self) -> Option<bool> {
        self.seen.lock().expect("lamp").last().map(|(on, _)| *on)
    }

    /// Until it is so; returns how long that took.
    #[track_caller]
    pub fn wait(&self, on: bool, what: &str) -> Duration {
        let began = Instant::now();
        let until = began + crate::SOON;
        while self.is_on() != Some(on) {
            assert!(Instant::now() < until, "in vain: {what}");
            std::thread::sleep(Duration::from_micros(200));
        }
        began.elapsed()
    }
}

/// The guard of one state directory.
pub struct Guard(pub PathBuf);

impl Guard {
    /// Its process, where there is one.
    pub fn pid(&self) -> Option<i32> {
        let socket = self.0.join("guard.socket");
        let all = std::fs::read_dir("/proc").expect("proc").flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("gpio-guard") && line.contains(&*socket.to_string_lossy())
        })
    }

    pub fn signal(&self, signal: Signal) -> i32 {
        let pid = eventually("a guard", || self.pid());
        kill(Pid::from_raw(pid), signal).expect("signal the guard");
        pid
    }
}

impl Drop for Guard {
    /// It would hold its lines for ever.
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            within(crate::SOON, "the guard ends", || self.pid() != Some(pid));
        }
    }
}
