//! The parent's side of one worker process: start, ring, wait within the deadline, kill.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
    },
};

use super::channel::{self, Answer, Hello, Layout, Loaded, Prepare, Prepared, Ready};
use crate::{
    config::Provider,
    host::sys::{self, SharedMemory},
    limits,
    model::file::ModelFile,
};

/// What a worker is started with.
#[derive(Debug, Clone)]
pub struct Launch {
    /// This program.
    pub program: PathBuf,
    /// ONNX Runtime's library.
    pub runtime: PathBuf,
    /// The model.
    pub model: ModelFile,
    /// What is to run it.
    pub provider: Provider,
    /// Memory it may take, bytes.
    pub memory_bytes: u64,
    /// See `channel::Hello`.
    pub judge: Option<PathBuf>,
}

/// What a ring came to.
#[derive(Debug)]
pub struct Rung {
    /// Windows that were run.
    pub done: usize,
    /// Why the one after them was not: the worker is gone.
    pub died: Option<String>,
}

/// A worker that serves.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    socket: OwnedFd,
    layout: Layout,
    memory: SharedMemory,
    may_hold: u64,
    /// What it could do that it must not be able to, where that was asked.
    pub judged: Vec<(String, String)>,
}

/// A child that is ended when it is dropped.
struct Unborn(Option<Child>);

impl Drop for Unborn {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

impl Worker {
    /// Starts a worker. `plan` sees what the model declares and says how it is to be fed; `beat` is called while
    /// waiting.
    pub fn start<P>(
        launch: &Launch,
        plan: impl FnOnce(&Loaded) -> Result<(Prepare, P), String>,
        beat: &dyn Fn(),
    ) -> Result<(Self, Loaded, P), String> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|why| format!("make a socket: {why}"))?;
        let mut command = Command::new(&launch.program);
        command.arg("infer-worker").stdin(Stdio::from(theirs)).stdout(Stdio::null()).env_clear();
        // Since 1.31 the library writes a database into the user's cache and sends it home over HTTPS, unless told not
        // to before it is loaded; switching telemetry off by its API comes too late.
        command.env("ORT_DISABLE_TELEMETRY", "1");
        let child = sys::die_with_parent(&mut command).spawn().map_err(|why| format!("start the worker: {why}"))?;
        drop(command);
        let mut unborn = Unborn(Some(child));

        let hello = Hello {
            runtime: launch.runtime.clone(),
            provider: launch.provider.clone(),
            memory_bytes: launch.memory_bytes,
            judge: launch.judge.clone(),
        };
        channel::send(ours.as_fd(), &hello, Some(launch.model.bytes.as_fd()))?;
        // An accelerator may build an engine first.
        let most = if launch.provider.name == "cpu" { limits::WORKER_START } else { limits::WORKER_BUILD };
        let answer = |unborn: &mut Unborn| Waiting { socket: &ours, most, beat }.answer(unborn);
        let loaded: Loaded = answer(&mut unborn)?;
        let (prepare, planned) = plan(&loaded)?;
        channel::send(ours.as_fd(), &prepare, None)?;
        let answer = |unborn: &mut Unborn| Waiting { socket: &ours, most, beat }.answer(unborn);
        let prepared: Prepared = answer(&mut unborn)?;
        if prepared.outputs.iter().sum::<usize>() > limits::OUTPUT_VALUES_MAX {
            return Err(format!("the wanted outputs have more than {} values", limits::OUTPUT_VALUES_MAX));
        }

        let sizes: Vec<usize> =
            prepare.inputs.iter().map(|(_, shape)| shape.iter().product::<i64>() as usize).collect();
        let layout = Layout::plan(&sizes, &prepared.outputs, limits::SLOTS_MAX, limits::SHARED_BYTES)?;
        let memory_fd =
            memory_file(c"kentledge-tensors", layout.bytes()).map_err(|why| format!("make shared memory: {why}"))?;
        let memory =
            SharedMemory::map(memory_fd.as_fd(), layout.bytes()).map_err(|why| format!("map shared memory: {why}"))?;
        channel::send(ours.as_fd(), &layout, Some(memory_fd.as_fd()))?;
        let Ready { judged } = Waiting { socket: &ours, most, beat }.answer(&mut unborn)?;
        let child = unborn.0.take().ok_or("the worker ended")?;
        let may_hold = launch.memory_bytes;
        Ok((Self { child, socket: ours, layout, memory, may_hold, judged }, loaded, planned))
    }

    /// Whether it is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it holds, bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).ok()?;
        let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * 4096)
    }

    /// The same where that is more than it may.
    pub fn over_memory(&self) -> Option<u64> {
        self.memory_bytes().filter(|bytes| *bytes > self.may_hold)
    }

    /// Windows that fit one ring.
    pub fn slots(&self) -> usize {
        self.layout.slots
    }

    /// Values of an input.
    pub fn input_len(&self, input: usize) -> usize {
        self.layout.inputs[input].1
    }

    /// Values of an output.
    pub fn output_len(&self, output: usize) -> usize {
        self.layout.outputs[output].1
    }

    /// Puts an input's values into a slot; `values` has exactly the input's size.
    pub fn write(&mut self, slot: usize, input: usize, values: &[f32]) {
        let (offset, len) = self.layout.inputs[input];
        self.memory.write(self.layout.slot(slot) + offset, &values[..len.min(values.len())]);
    }

    /// Takes an output's values from a slot.
    pub fn read(&self, slot: usize, output: usize, into: &mut Vec<f64>) {
        let (offset, len) = self.layout.outputs[output];
        into.resize(len, 0.0);
        self.memory.read(self.layout.slot(slot) + offset, into);
    }

    /// Whether the run of a slot succeeded, and how long it took, µs.
    pub fn outcome(&self, slot: usize) -> (bool, u32) {
        let mut state = [0u32; 2];
        self.memory.read(self.layout.slot(slot), &mut state);
        (state[0] == 0, state[1])
    }

    /// Runs slots 0 to `count`; each window has `deadline` (`None`: for ever). On a miss the worker is killed.
    pub fn ring(&mut self, count: usize, deadline: Option<Duration>, beat: &dyn Fn()) -> Rung {
        self.memory.store(0, 0);
        let mut ring = [0u8; 8];
        ring[4..].copy_from_slice(&(count as u32).to_le_bytes());
        if let Err(why) = send(self.socket.as_raw_fd(), &ring, MsgFlags::MSG_NOSIGNAL) {
            return self.dead(&format!("ring: {why}"));
        }
        let (mut seen, mut waited) = (0, Duration::ZERO);
        loop {
            let slice = deadline.map_or(limits::BEAT, |all| (all - waited).min(limits::BEAT));
            if ready(&self.socket, slice) {
                return match recv(self.socket.as_raw_fd(), &mut ring, MsgFlags::empty()) {
                    Ok(8) => Rung { done: count, died: None },
                    Ok(_) => self.dead("ended"),
                    Err(why) => self.dead(&why.to_string()),
                };
            }
            beat();
            let done = self.memory.load(0) as usize;
            if done > seen {
                (seen, waited) = (done, Duration::ZERO);
                continue;
            }
            waited += slice;
            if deadline.is_some_and(|all| waited >= all) {
                return self.dead(&format!("deadline of {} ms passed", waited.as_millis()));
            }
        }
    }

    fn dead(&mut self, why: &str) -> Rung {
        let done = self.memory.load(0) as usize;
        let how = end(&mut self.child);
        Rung { done, died: Some(if why == "ended" { how } else { format!("{why}; {how}") }) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends a child and says how it ended.
fn end(child: &mut Child) -> String {
    // A worker that crashed is given a moment to be gone by itself, so that its own end is the one that is told.
    for _ in 0..20 {
        if let Ok(Some(status)) = child.try_wait() {
            return match (status.signal(), status.code()) {
                (Some(signal), _) => format!("the worker was ended by signal {signal}"),
                (_, code) => format!("the worker ended with code {}", code.unwrap_or(-1)),
            };
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    let _ = child.wait();
    "the worker was killed".into()
}

/// Waits until the socket has something to say.
fn ready(socket: &OwnedFd, wait: Duration) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let ms = u16::try_from(wait.as_millis().max(1)).unwrap_or(u16::MAX);
    matches!(poll(&mut fds, PollTimeout::from(ms)), Ok(n) if n > 0)
}

/// What is waited for while a worker is starting.
struct Waiting<'a> {
    socket: &'a OwnedFd,
    most: Duration,
    beat: &'a dyn Fn(),
}

impl Waiting<'_> {
    fn answer<T: serde::de::DeserializeOwned>(&self, child: &mut Unborn) -> Result<T, String> {
        let mut waited = Duration::ZERO;
        while !ready(self.socket, limits::BEAT) {
            (self.beat)();
            waited += limits::BEAT;
            if waited >= self.most {
                return Err(format!("the worker gave no answer within {} s", waited.as_secs()));
            }
        }
        match channel::recv::<Answer<T>>(self.socket.as_fd()) {
            Ok((answer, _)) => answer,
            Err(why) => {
                let how = child.0.as_mut().map(end).unwrap_or_default();
                Err(format!("{why} ({how})"))
            }
        }
    }
}

fn memory_file(name: &std::ffi::CStr, len: usize) -> std::io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&fd, len as i64)?;
    Ok(fd)
}
