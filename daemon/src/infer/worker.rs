//! The parent's side of one worker process: start, ring, wait within the deadline, kill.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
};

use super::{
    channel::{self, EngineFolder, Hello, Layout, Loaded, Prepare, Prepared, Ready, Reply},
    meaning::Misfits,
    stderr::Stderr,
};
use crate::{
    config::Provider,
    host::{
        defence,
        sys::{self, SharedMemory},
    },
    limits,
    model::file::ModelFile,
};

/// What a worker is started with.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The model's name and version, for the log.
    pub name: String,
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
    pub engine: Option<EngineFolder>,
    /// See there too.
    pub warm_up: bool,
    /// And there.
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
    process: Process,
    layout: Layout,
    memory: SharedMemory,
    may_hold: u64,
    /// Number of the last ring.
    rung: u32,
    /// What it could do that it must not be able to, where that was asked.
    pub judged: Vec<(String, String)>,
}

/// A worker's process and the two ways to it. Ended when it is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    socket: OwnedFd,
    stderr: Stderr,
}

impl Worker {
    /// Starts a worker. `plan` sees what the model declares and says how it is to be fed; `beat` is called while
    /// waiting.
    pub fn start<P>(
        launch: &Launch,
        plan: impl FnOnce(&Loaded) -> Result<(Prepare, P), Misfits>,
        beat: &dyn Fn(),
    ) -> Result<(Self, Loaded, P), Misfits> {
        let go_on = || {
            beat();
            Ok(())
        };
        let (mut process, loaded, (prepare, prepared), planned) = Self::prepare(launch, plan, &go_on)?;
        let layout = lay_out(&prepare, &prepared)?;
        let (memory, memory_fd) =
            SharedMemory::create(layout.bytes()).map_err(|why| format!("make shared memory: {why}"))?;
        channel::tell(process.socket.as_fd(), &layout, Some(memory_fd.as_fd()))?;
        let Ready { judged } = process.answer(patience(launch), &go_on)?;
        let may_hold = launch.memory_bytes;
        Ok((Self { process, layout, memory, may_hold, rung: 0, judged }, loaded, planned))
    }

    /// Lets a worker fill the folder of its engine, and waits until it has ended. `go_on` is called while waiting; its error ends
    /// the build.
    pub fn build<P>(
        launch: &Launch,
        plan: impl FnOnce(&Loaded) -> Result<(Prepare, P), Misfits>,
        go_on: &dyn Fn() -> Result<(), String>,
    ) -> Result<(), Misfits> {
        let (mut process, ..) = Self::prepare(launch, plan, go_on)?;
        // It says no more: what there is to be heard is its end, with what its provider writes on the way.
        let began = Instant::now();
        while !ready(&process.socket, limits::BEAT) && began.elapsed() < limits::WORKER_START {
            go_on()?;
        }
        process.end();
        Ok(())
    }

    /// As far as a trial run on ones.
    fn prepare<P>(
        launch: &Launch,
        plan: impl FnOnce(&Loaded) -> Result<(Prepare, P), Misfits>,
        go_on: &dyn Fn() -> Result<(), String>,
    ) -> Result<(Process, Loaded, (Prepare, Prepared), P), Misfits> {
        let mut process = Process::spawn(launch)?;
        let hello = Hello {
            runtime: launch.runtime.clone(),
            provider: launch.provider.clone(),
            memory_bytes: launch.memory_bytes,
            engine: launch.engine.clone(),
            warm_up: launch.warm_up,
            judge: launch.judge.clone(),
        };
        channel::tell(process.socket.as_fd(), &hello, Some(launch.model.bytes.as_fd()))?;
        let loaded: Loaded = process.answer(patience(launch), go_on)?;
        let (prepare, planned) = plan(&loaded)?;
        channel::tell(process.socket.as_fd(), &prepare, None)?;
        let prepared: Prepared = process.answer(patience(launch), go_on)?;
        Ok((process, loaded, (prepare, prepared), planned))
    }

    /// Whether it is still there.
    pub fn is_alive(&mut self) -> bool {
        self.process.stderr.drain_in_turn();
        matches!(self.process.child.try_wait(), Ok(None))
    }

    /// What it holds, bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.process.child.id())).ok()?;
        resident(&statm, sys::page_bytes())
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

    /// Whether the run of a slot succeeded, and how long it took, µs. A slot that the worker did not write since it was rung
    /// did not.
    pub fn outcome(&self, slot: usize) -> (bool, u32) {
        let mut state = [0u32; 2];
        self.memory.read(self.layout.slot(slot), &mut state);
        (state[0] == channel::RAN, state[1])
    }

    /// Runs slots 0 to `count`; each window has `deadline` (`None`: for ever), all of them `count` times that. On a miss the
    /// worker is killed. The worker's count of what is done names the window that was too slow; it gives no window more time
    /// than its own, for it never goes back, and never beyond `count`.
    pub fn ring(&mut self, count: usize, deadline: Option<Duration>, beat: &dyn Fn()) -> Rung {
        let count = count.min(self.layout.slots);
        self.memory.store(0, 0);
        for slot in 0..count {
            self.memory.write(self.layout.slot(slot), &[channel::PENDING, 0]);
        }
        self.rung = self.rung.wrapping_add(1);
        let mut ring = [0u8; 8];
        ring[..4].copy_from_slice(&self.rung.to_le_bytes());
        ring[4..].copy_from_slice(&(count as u32).to_le_bytes());
        // Not waited for: the bell of a worker that does not listen is full some time.
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if let Err(why) = send(self.process.socket.as_raw_fd(), &ring, flags) {
            return self.dead(0, Some(format!("wake the worker: {why}")));
        }
        let (mut seen, mut began) = (0, Instant::now());
        loop {
            let left = deadline.map_or(limits::BEAT, |all| all.saturating_sub(began.elapsed()));
            let is_heard = ready(&self.process.socket, left.min(limits::BEAT));
            self.process.stderr.drain_in_turn();
            if is_heard {
                let mut answer = [0u8; 8];
                return match recv(self.process.socket.as_raw_fd(), &mut answer, MsgFlags::MSG_TRUNC) {
                    Ok(8) if answer == ring => Rung { done: count, died: None },
                    Ok(0) => self.dead(count, None),
                    Ok(_) => self.dead(count, Some("it answered what it was not asked".into())),
                    Err(why) => self.dead(count, Some(why.to_string())),
                };
            }
            beat();
            let done = self.done(count);
            if done > seen {
                (seen, began) = (done, Instant::now());
            } else if let Some(all) = deadline.filter(|all| began.elapsed() >= *all) {
                return self.dead(count, Some(format!("deadline of {} ms passed", all.as_millis())));
            }
        }
    }

    /// How many windows of a ring the worker says are done.
    fn done(&self, count: usize) -> usize {
        (self.memory.load(0) as usize).min(count)
    }

    /// `why` it is ended; nothing where it ended itself.
    fn dead(&mut self, count: usize, why: Option<String>) -> Rung {
        let how = self.process.end();
        // Read when nothing runs there any more.
        Rung { done: self.done(count), died: Some(why.map_or_else(|| how.clone(), |why| format!("{why}; {how}"))) }
    }
}

impl Process {
    fn spawn(launch: &Launch) -> Result<Self, String> {
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|why| format!("make a socket: {why}"))?;
        let (stderr, errors) = Stderr::new(launch.name.clone()).map_err(|why| format!("make a pipe: {why}"))?;
        let mut command = Command::new(&launch.program);
        command.arg("infer-worker").stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(errors).env_clear();
        // Since 1.31 the library writes a database into the user's cache and uploads it over HTTPS, unless this is set
        // before it is loaded; switching telemetry off by its API comes too late.
        command.env("ORT_DISABLE_TELEMETRY", "1");
        command.envs(defence::taken_out().map(|words| ("KENTLEDGE_WITHOUT", words)));
        let child = sys::die_with_parent(&mut command).spawn().map_err(|why| format!("start the worker: {why}"))?;
        Ok(Self { child, socket, stderr })
    }

    /// Waits for the worker's next answer, `most` at the longest.
    fn answer<T: Reply>(&mut self, most: Duration, go_on: &dyn Fn() -> Result<(), String>) -> Result<T, String> {
        let began = Instant::now();
        while !ready(&self.socket, limits::BEAT) {
            go_on()?;
            self.stderr.drain();
            if began.elapsed() >= most {
                return Err(format!("the worker gave no answer within {} s", most.as_secs()));
            }
        }
        match channel::hear(self.socket.as_fd()) {
            Ok(bytes) => channel::understand(&bytes),
            Err(why) => Err(format!("{why} ({})", self.end())),
        }
    }

    /// Ends it and says how it ended.
    fn end(&mut self) -> String {
        let how = end(&mut self.child);
        self.stderr.drain();
        how
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// How long an answer may take: an accelerator may build an engine first.
fn patience(launch: &Launch) -> Duration {
    if launch.provider.name == "cpu" { limits::WORKER_START } else { limits::WORKER_BUILD }
}

/// Where the tensors of a model lie whose outputs have, by the worker's word, these sizes.
fn lay_out(prepare: &Prepare, prepared: &Prepared) -> Result<Layout, String> {
    let (wanted, sized) = (prepare.outputs.len(), prepared.outputs.len());
    if wanted != sized {
        return Err(format!("reject the worker's answer: sizes of {sized} outputs, and {wanted} are wanted"));
    }
    // Not a plain sum: two large sizes must not wrap into a small one.
    if prepared.outputs.iter().fold(0usize, |all, n| all.saturating_add(*n)) > limits::OUTPUT_VALUES_MAX {
        return Err(format!("the wanted outputs have more than {} values", limits::OUTPUT_VALUES_MAX));
    }
    let values = |shape: &Vec<i64>| shape.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?));
    let sizes: Option<Vec<usize>> = prepare.inputs.iter().map(|(_, shape)| values(shape)).collect();
    let sizes = sizes.ok_or("an input has no size")?;
    Layout::plan(&sizes, &prepared.outputs, limits::SLOTS_MAX, limits::SHARED_BYTES)
}

/// Bytes that a process holds, by its line in /proc/PID/statm.
fn resident(statm: &str, page_bytes: u64) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(page_bytes)
}

/// Ends a child and says how it ended.
fn end(child: &mut Child) -> String {
    // A worker that crashed gets a moment to exit by itself, so that its own exit status is reported.
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::{
        super::{feeds::Windows, plan::plan},
        *,
    };
    use crate::model::manifest::Manifest;

    #[test]
    fn resident_memory_counts_pages_of_any_size() {
        assert_eq!(resident("900 100 30 1 0 50 0", 16 * 1024), Some(1_638_400));
        assert_eq!(resident("900", 4096), None);
        assert_eq!(resident(&format!("1 {} 3", u64::MAX), 4096), None);
    }

    #[test]
    fn sizes_that_are_too_few_or_wrap_are_rejected() {
        let name = |i: i32| format!("y{i}");
        let prepare = Prepare {
            inputs: vec![("x".into(), vec![1, 8])],
            outputs: (0..2).map(name).collect(),
            known: std::collections::BTreeMap::default(),
        };
        let lay = |outputs: &[usize]| lay_out(&prepare, &Prepared { outputs: outputs.to_vec() });
        assert!(lay(&[1, 9]).is_ok());
        assert!(lay(&[]).is_err_and(|why| why.contains("2 are wanted")) && lay(&[1, 1, 1]).is_err());
        assert!(lay(&[usize::MAX, 2]).is_err_and(|why| why.contains("more than 8192")) && lay(&[8192, 1]).is_err());
    }

    fn json_numbers(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<i64>> {
        let dimension = prop_oneof![-3i64..70, Just(i64::MAX), Just(i64::MIN), any::<i64>()];
        prop::collection::vec(dimension, len)
    }

    proptest! {
        #[test]
        fn any_answer_of_a_worker_is_rejected_or_leads_to_memory_that_fits(
            shapes in prop::collection::vec(json_numbers(0..5), 0..4),
            outputs in prop::collection::vec(prop_oneof![0u64..10, any::<u64>()], 0..4),
            nodes in prop::collection::vec(any::<u64>(), 0..3),
            (steps, width) in (1usize..=limits::WINDOW_STEPS_MAX, 1usize..=limits::CHANNELS_MAX),
        ) {
            let tensor = |(i, shape): (usize, &Vec<i64>)| {
                format!(r#"{{"name":"t{i}","kind":"float32","shape":{shape:?}}}"#)
            };
            let tensors = shapes.iter().enumerate().map(tensor).collect::<Vec<_>>().join(",");
            let placed = |n: &u64| format!(r#"{{"provider":"p","nodes":{n},"ops":{{}}}}"#);
            let placement = nodes.iter().map(placed).collect::<Vec<_>>().join(",");
            let loaded = format!(
                r#"{{"Ok":{{"inputs":[{tensors}],"outputs":[{tensors}],"runtime":"","placement":[{placement}],"sandbox":""}}}}"#
            );
            let prepared = format!(r#"{{"Ok":{{"outputs":{outputs:?}}}}}"#);
            let windows = Windows { steps, names: vec![(0..width).map(|i| format!("c{i}")).collect()] };
            if let Ok(loaded) = channel::understand::<Loaded>(loaded.as_bytes()) {
                prop_assert!(loaded.placement.iter().map(|p| p.nodes).sum::<usize>() < usize::MAX);
                if let Ok((prepare, _)) = plan(&loaded, &Manifest::bare(Path::new("m.onnx")), &windows, &[])
                    && let Ok(prepared) = channel::understand::<Prepared>(prepared.as_bytes())
                    && let Ok(layout) = lay_out(&prepare, &prepared)
                {
                    prop_assert!(layout.bytes() <= limits::SHARED_BYTES && layout.slots >= 1);
                    prop_assert_eq!(layout.outputs.len(), prepare.outputs.len());
                    for (offset, values) in &layout.outputs {
                        prop_assert!(offset + values * 8 <= layout.stride);
                    }
                }
            }
        }

        #[test]
        fn any_bytes_of_a_worker_are_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = channel::understand::<Loaded>(&bytes);
            let _ = channel::understand::<Prepared>(&bytes);
            let _ = channel::understand::<Ready>(&bytes);
        }
    }
}
