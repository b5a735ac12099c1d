//! The real binary. Faults: kill -9, SIGTERM, a worker that is killed or frozen, a missing ONNX Runtime.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{Tty, eventually, onnx};

/// A device's folder: configuration, model and state.
#[derive(Clone)]
pub struct Site {
    pub dir: Arc<TempDir>,
    state: PathBuf,
    device: String,
    mqtt: String,
    body: String,
    env: Vec<(String, String)>,
}

impl Site {
    /// A device that talks to a broker on this port.
    pub fn new(port: u16) -> Self {
        Self::offline().with_broker(port)
    }

    /// A device without a broker.
    pub fn offline() -> Self {
        let dir = Arc::new(TempDir::new().expect("folder"));
        let state = dir.path().join("state");
        let body = "[models]\nallow_unsigned = true\n[metrics]\ninterval_s = 1\n".into();
        // No D-Bus, unless the test sets one.
        let device = "site = \"plant\"\nid = \"pump-1\"\nbus = \"off\"\n".into();
        Self { dir, state, device, mqtt: String::new(), body, env: Vec::new() }
    }

    /// Talks to a broker on this port.
    pub fn with_broker(mut self, port: u16) -> Self {
        self.mqtt = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\n");
        self
    }

    /// Adds to `[mqtt]`.
    pub fn with_mqtt(mut self, text: &str) -> Self {
        self.mqtt.push_str(text);
        self.mqtt.push('\n');
        self
    }

    /// Another `[device]`, but for its state.
    pub fn with_device(mut self, text: &str) -> Self {
        self.device = format!("{text}\n");
        self
    }

    /// Keeps its state elsewhere.
    pub fn with_state(mut self, state: &Path) -> Self {
        self.state = state.to_owned();
        self
    }

    /// Runs with this in its environment.
    pub fn with_env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Adds to the configuration.
    pub fn with(mut self, text: &str) -> Self {
        self.body.push_str(text);
        self.body.push('\n');
        self
    }

    /// Adds to `[models]`.
    pub fn with_more_models(mut self, text: &str) -> Self {
        self.body = self.body.replace("allow_unsigned = true\n", &format!("allow_unsigned = true\n{text}\n"));
        self
    }

    /// Adds to the `[models]` of a release.
    pub fn with_more_in_models(mut self, text: &str) -> Self {
        self.body = self.body.replace("[models]\n", &format!("[models]\n{text}"));
        self
    }

    /// Adds to `[commands]`.
    pub fn with_more_commands(mut self, text: &str) -> Self {
        self.body = self.body.replace("[commands]\n", &format!("[commands]\n{text}"));
        self
    }

    /// Takes something out of the configuration.
    pub fn without(mut self, text: &str) -> Self {
        assert!(self.body.contains(text), "{text} is not in {}", self.body);
        self.body = self.body.replace(text, "");
        self
    }

    /// A device of a release: another `[models]`, in which nothing unsigned is allowed.
    pub fn with_models(mut self, text: &str) -> Self {
        self.body = self.body.replace("allow_unsigned = true\n", &format!("{text}\n"));
        self
    }

    /// Adds to `[metrics]`.
    pub fn with_metrics(mut self, text: &str) -> Self {
        self.body = self.body.replace("interval_s = 1\n", &format!("interval_s = 1\n{text}\n"));
        self
    }

    /// A sensor `n,a,b` with its own sequence.
    pub fn with_sensor(self, tty: &Tty) -> Self {
        let path = tty.path();
        self.with(&format!(
            "[source.s]\npath = \"{}\"\ncolumns = [\"n\", \"a\", \"b\"]\nseq = \"n\"\n[channel.a]\nmax = 1e6\n[channel.b]\n",
            path.display()
        ))
    }

    /// A pipeline `x`: the mean of windows of 4 rows of both channels, threshold 10, with an alarm `high`.
    pub fn with_mean_model(self) -> Self {
        fs::write(self.dir.path().join("mean.onnx"), onnx::mean(&[1, 4, 2])).expect("write the model");
        self.with(
            "[pipeline.x]\nmodel = \"mean.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\nthreshold = 10.0\n\
             [alarm.high]\npipeline = \"x\"\nclear_factor = 0.5\nseverity = \"critical\"\n",
        )
    }

    pub fn config(&self) -> PathBuf {
        let path = self.dir.path().join("kentledge.toml");
        let state = self.state.display();
        let head = format!("[device]\nstate_dir = \"{state}\"\n{}", self.device);
        fs::write(&path, format!("{head}{}{}", self.mqtt, self.body)).expect("write the configuration");
        path
    }

    pub fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// `kentledge run`.
    pub fn run(&self) -> Daemon {
        self.spawn(command().args(["run", "--config"]).arg(self.config()).envs(self.env.iter().cloned()))
    }

    /// Another command in this device's folder.
    pub fn spawn(&self, command: &mut Command) -> Daemon {
        let log = self.dir.path().join("log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).expect("log");
        let log_from = file.metadata().map_or(0, |meta| meta.len() as usize);
        let child = command.stdout(Stdio::null()).stderr(file).spawn().expect("start kentledge");
        Daemon { child, log, log_from, _dir: self.dir.clone() }
    }
}

/// The binary under test, beside this test's own.
pub fn binary() -> PathBuf {
    // `tests/defences` plays scenarios with a binary that can leave out a defence.
    if let Some(other) = std::env::var_os("KENTLEDGE_BINARY") {
        return other.into();
    }
    let own = std::env::current_exe().expect("own path");
    let target = own.parent().and_then(Path::parent).expect("target folder");
    let binary = target.join("kentledge");
    assert!(binary.is_file(), "{} is missing: cargo build --workspace", binary.display());
    binary
}

/// A command of it, with logs on.
pub fn command() -> Command {
    let mut command = Command::new(binary());
    command.env("KENTLEDGE_LOG", "info").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(args: &[&str]) -> Done {
    Done::from(command().args(args).output().expect("run kentledge"))
}

/// Runs the laptop's demo, a binary of its own beside the daemon's, to its end.
pub fn demo(args: &[&str]) -> Done {
    let program = binary().with_file_name("kentledge-demo");
    Done::from(Command::new(program).args(args).stdin(Stdio::null()).output().expect("run kentledge-demo"))
}

/// How a run ended.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

pub struct Daemon {
    child: Child,
    log: PathBuf,
    /// Where its own part of the log begins.
    log_from: usize,
    /// Its folder stays as long as it runs.
    _dir: Arc<TempDir>,
}

impl Daemon {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Resident memory, KiB, without its workers.
    pub fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok()).expect("VmRSS")
    }

    /// Open file descriptors.
    pub fn fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("fd").count()
    }

    /// Children that ended and were not waited for.
    pub fn zombies(&self) -> usize {
        let of = format!(" Z {} ", self.pid());
        let all = fs::read_dir("/proc").expect("proc").flatten();
        all.filter(|entry| fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| stat.contains(&of))).count()
    }

    /// Bytes it has read from anywhere so far.
    pub fn bytes_read(&self) -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", self.pid())).expect("io");
        io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).expect("rchar")
    }

    /// Sends rows and waits until the daemon has read them.
    #[track_caller]
    pub fn read_rows(&self, tty: &mut Tty, range: std::ops::Range<u64>, row: impl Fn(u64) -> String) {
        let before = self.bytes_read();
        let sent: u64 = range.clone().map(|i| row(i).len() as u64 + 1).sum();
        tty.rows(range, row);
        eventually("the rows are read", || (self.bytes_read() >= before + sent).then_some(()));
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What this run logged; the log goes on over all runs of a site.
    pub fn own_log(&self) -> String {
        self.log().get(self.log_from..).unwrap_or_default().to_owned()
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signal kentledge");
    }

    /// SIGTERM; returns the exit code.
    #[track_caller]
    pub fn stop(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// SIGTERM; it must end well. Returns its log.
    #[track_caller]
    pub fn stop_well(mut self) -> String {
        self.signal(Signal::SIGTERM);
        let code = self.wait();
        let log = self.log();
        assert_eq!(code, Some(0), "{log}");
        log
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("wait");
    }

    /// Ends one that runs under strace: first the daemon, which strace would let live on.
    pub fn end_traced(mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        for pid in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
            let _ = kill(Pid::from_raw(pid.parse().expect("a process")), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }

    /// Waits for its end; returns the exit code.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        eventually("kentledge ends", || self.child.try_wait().expect("wait")).code()
    }

    /// Process ids of its workers.
    pub fn workers(&self) -> Vec<i32> {
        let children = format!("/proc/{0}/task", self.pid());
        let tasks = fs::read_dir(children).into_iter().flatten().flatten();
        let of_task = tasks.flat_map(|task| {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        });
        let is_worker = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("infer-worker"))
        };
        of_task.filter(is_worker).collect()
    }

    /// Sends a signal to its only worker.
    #[track_caller]
    pub fn signal_worker(&self, signal: Signal) -> i32 {
        let pid = eventually("a worker", || self.workers().first().copied());
        kill(Pid::from_raw(pid), signal).expect("signal the worker");
        pid
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- kentledge's log:\n{}", self.log());
        }
    }
}
