//! What alarms drive: lines, and coils and registers of Modbus devices. Owns what each is to be; a small process of its own,
//! the guard, holds them and goes to the safe state when it does not hear from here (`guard.rs`, `bus.rs`). An alarm gets here
//! by a bell, not by way of the broker or the disk.

mod bus;
pub mod guard;

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    config::{self, Output, PinName, Target},
    flow::board::Board,
    limits,
    output::{
        bus::Point,
        guard::{Line, Order},
    },
};

/// What the stage works with.
pub struct Setup {
    /// What is driven.
    pub outputs: Vec<Output>,
    /// Which alarms are raised.
    pub board: Arc<Board>,
    /// This program, which is also the guard.
    pub program: PathBuf,
    /// Where the guard can be found: it may outlive the daemon.
    pub socket: PathBuf,
    /// How often each stage that decides has moved.
    pub moved: Box<dyn Fn() -> Vec<(String, u64)> + Send>,
}

/// The stage as a thread: ends when `stop` says so. `beat` is called at every turn.
pub fn run(setup: Setup, stop: impl Fn() -> bool, beat: impl Fn()) {
    let mut stage = Stage::new(setup);
    while !stop() {
        beat();
        stage.turn();
        stage.setup.board.alarm_bell.wait(limits::GUARD_BEAT);
    }
    // Where the process ends, the guard hears the end of the connection and sets the safe state. Where it goes on with
    // another configuration, a lamp that stays on must not flicker.
    *BETWEEN_RUNS.lock().unwrap_or_else(PoisonError::into_inner) = stage.guard.take();
}

/// A reload ends the stage and begins another one in this process: the connection waits here for it, if it is soon enough.
static BETWEEN_RUNS: Mutex<Option<Guard>> = Mutex::new(None);

/// Where no outputs are configured, none is held: a guard of this process' last run, or of a daemon before it, sets the safe
/// state and ends.
pub fn release(socket: &Path) {
    let order = Order { version: guard::VERSION, lines: vec![], points: vec![] };
    let _ = serde_json::to_vec(&order).map(|text| Guard::meet(socket, &text));
}

/// In their safe state, and free to change.
fn at_rest(outputs: &[Output]) -> Vec<(bool, Instant)> {
    let now = Instant::now();
    let long_ago = now.checked_sub(Duration::from_secs(3600)).unwrap_or(now);
    outputs.iter().map(|output| (output.safe_on, long_ago)).collect()
}

struct Stage {
    setup: Setup,
    guard: Option<Guard>,
    retry_at: Instant,
    said: String,
    /// What each output is, and since when.
    states: Vec<(bool, Instant)>,
    moved: Vec<(String, u64)>,
    moved_at: Instant,
    stalled: bool,
}

impl Stage {
    fn new(mut setup: Setup) -> Self {
        let now = Instant::now();
        // In the order of the guard's bits: lines first.
        setup.outputs.sort_by_key(|output| matches!(output.target, Target::Modbus(_)));
        let states = at_rest(&setup.outputs);
        Self {
            setup,
            guard: None,
            retry_at: now,
            said: String::new(),
            states,
            moved: vec![],
            moved_at: now,
            stalled: false,
        }
    }

    fn turn(&mut self) {
        let now = Instant::now();
        if self.is_stalled(now) {
            return;
        }
        if self.guard.is_none() && now >= self.retry_at {
            match Guard::start(&self.setup) {
                Ok(guard) => {
                    tracing::info!(outputs = self.setup.outputs.len(), "the guard holds the outputs");
                    self.guard = Some(guard);
                    self.said.clear();
                    // How long a line rests is counted from when it is set, not from when it should have been.
                    self.states = at_rest(&self.setup.outputs);
                }
                Err(why) => {
                    if why != self.said {
                        tracing::error!("start the output guard: {why}; outputs do not follow their alarms; retrying");
                        self.said = why;
                    }
                    self.retry_at = now + limits::GUARD_RETRY;
                }
            }
        }
        let bits = if self.guard.is_some() { self.wanted(Instant::now()) } else { 0 };
        match self.guard.as_mut().map(|guard| guard.tell(bits)) {
            None => {}
            Some(Ok(all)) => self.setup.board.outputs_follow.store(all, Ordering::Relaxed),
            Some(Err(why)) => {
                tracing::error!("the output guard does not respond: {why}; starting another guard");
                if let Some(mut guard) = self.guard.take() {
                    guard.kill();
                }
            }
        }
        self.setup.board.outputs_held.store(self.guard.is_some(), Ordering::Relaxed);
    }

    /// Whether a stage that decides hangs: then what it decided last must not be held.
    fn is_stalled(&mut self, now: Instant) -> bool {
        let moved = (self.setup.moved)();
        let all = moved.iter().all(|(name, n)| self.moved.iter().all(|(other, m)| other != name || m != n));
        if all || self.moved.is_empty() {
            (self.moved, self.moved_at) = (moved, now);
        }
        let stalled = now.duration_since(self.moved_at) > limits::GUARD_STALL;
        if stalled != self.stalled {
            self.stalled = stalled;
            match stalled {
                true => tracing::error!("a stage is stalled: outputs go to their safe state"),
                false => tracing::info!("no stage is stalled any more: outputs follow their alarms again"),
            }
        }
        stalled
    }

    /// On while one of its alarms is raised, and not changed before its time.
    fn wanted(&mut self, now: Instant) -> u64 {
        let mut bits = 0;
        for (i, (output, (on, since))) in self.setup.outputs.iter().zip(&mut self.states).enumerate() {
            let raised = output.alarms.iter().any(|alarm| self.setup.board.alarms[*alarm].is_raised());
            let rested = now.duration_since(*since) >= Duration::from_millis(output.dwell_ms);
            if raised != *on && rested {
                (*on, *since) = (raised, now);
            }
            bits |= u64::from(*on) << i;
        }
        bits
    }
}

/// The process that holds the lines, as it is seen from here.
struct Guard {
    stream: UnixStream,
    /// What it holds.
    order: Vec<u8>,
    pid: i32,
    /// Where it was started here: to be waited for when it ends.
    child: Option<Child>,
}

impl Guard {
    /// One that is still there from before goes on, where it holds the same lines.
    fn start(setup: &Setup) -> Result<Self, String> {
        let order = order(&setup.outputs);
        let text = serde_json::to_vec(&order).map_err(|why| why.to_string())?;
        if let Some(guard) = Self::meet(&setup.socket, &text) {
            return Ok(guard);
        }
        let child = Command::new(&setup.program)
            .arg("gpio-guard")
            .arg(&setup.socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // What ends the daemon from a terminal must not end its guard.
            .process_group(0)
            .spawn()
            .map_err(|why| format!("start the guard: {why}"))?;
        let mut child = Some(child);
        let until = Instant::now() + limits::GUARD_START;
        loop {
            match Self::connect(&setup.socket, &text) {
                Ok(guard) => return Ok(Self { child, ..guard }),
                Err(Refusal::Not(why)) => {
                    end(&mut child);
                    return Err(why);
                }
                Err(Refusal::NotThere) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                Err(Refusal::NotThere) => {
                    end(&mut child);
                    return Err("the guard does not start".into());
                }
            }
        }
    }

    /// The one from before, where it holds these lines; one that holds others is over when this returns.
    fn meet(socket: &Path, order: &[u8]) -> Option<Self> {
        let kept = BETWEEN_RUNS.lock().unwrap_or_else(PoisonError::into_inner).take();
        let other = match kept {
            Some(guard) if guard.order == order => return Some(guard),
            other => other,
        };
        // The end of the connection: it sets the safe state.
        other.iter().for_each(|guard| drop(guard.stream.shutdown(Shutdown::Both)));
        let met = Self::connect(socket, order).ok();
        // It heard of other lines after that and ended, or it hangs.
        if let Some(mut guard) = other {
            guard.kill();
        }
        met
    }

    fn connect(socket: &Path, order: &[u8]) -> Result<Self, Refusal> {
        let not = |why: std::io::Error| Refusal::Not(format!("ask the guard: {why}"));
        let mut stream = guard::reach(socket).map_err(|_| Refusal::NotThere)?;
        stream.set_read_timeout(Some(limits::GUARD_START)).map_err(not)?;
        stream.set_write_timeout(Some(limits::GUARD_ANSWER)).map_err(not)?;
        let head = (order.len() as u32).to_le_bytes();
        stream.write_all(&head).and_then(|()| stream.write_all(order)).map_err(|_| Refusal::NotThere)?;
        let mut answer = [0u8; 8];
        // One that holds other lines ends, and so does one that is being replaced.
        stream.read_exact(&mut answer).map_err(|_| Refusal::NotThere)?;
        let (code, len) = (answer[0], u32::from_le_bytes(std::array::from_fn(|i| answer[4 + i])));
        if code == guard::HOLDS {
            stream.set_read_timeout(Some(limits::GUARD_ANSWER)).map_err(not)?;
            return Ok(Self { stream, order: order.to_vec(), pid: len as i32, child: None });
        }
        let mut why = vec![0u8; (len as usize).min(limits::GUARD_BYTES)];
        let _ = stream.read_exact(&mut why);
        Err(Refusal::Not(String::from_utf8_lossy(&why).into_owned()))
    }

    /// What all are to be. Returns whether all coils and registers could be written last; lines are set when it returns.
    fn tell(&mut self, bits: u64) -> Result<bool, String> {
        let mut answer = [0u8; 1];
        let exchanged = self.stream.write_all(&bits.to_le_bytes()).and_then(|()| self.stream.read_exact(&mut answer));
        exchanged.map_err(|why| why.to_string().to_lowercase())?;
        match answer[0] {
            guard::SET => Ok(true),
            guard::LINES_SET => Ok(false),
            _ => Err("a line cannot be set".into()),
        }
    }

    /// One that hangs would hold the lines for ever.
    fn kill(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL);
        end(&mut self.child);
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Why a guard is not to be had.
enum Refusal {
    /// No guard listens.
    NotThere,
    /// It says why.
    Not(String),
}

/// What the guard is to hold.
fn order(outputs: &[Output]) -> Order {
    let mut order = Order { version: guard::VERSION, lines: vec![], points: vec![] };
    for output in outputs {
        match &output.target {
            Target::Line { chip, line, active_low } => {
                let (offset, name) = match line {
                    PinName::Offset(offset) => (Some(*offset), None),
                    PinName::Name(name) => (None, Some(name.clone())),
                };
                let (active_low, safe_on) = (*active_low, output.safe_on);
                let (output, chip) = (output.name.clone(), chip.clone());
                order.lines.push(Line { output, chip, offset, name, active_low, safe_on });
            }
            Target::Modbus(point) => order.points.push(self::point(output, point)),
        }
    }
    order
}

fn point(output: &Output, point: &config::Point) -> Point {
    let manners = point.manners;
    let (address, line) = match &point.bus {
        config::Bus::Tcp(address) => (Some(address.clone()), None),
        config::Bus::Line(line) => (None, Some(line)),
    };
    let bus = bus::Bus {
        address,
        path: line.map(|line| line.path.clone()),
        baud: line.map_or(0, |line| line.baud),
        line: line.map_or((8, b'N', 1), |line| (line.line.data, line.line.parity, line.line.stop)),
        tcp: manners.tcp_frames,
        echo: manners.echo,
        lenient: manners.lenient_ids,
        answer_ms: manners.answer_ms,
        pause_us: manners.pause_us,
    };
    let (slave, coil, several) = (point.slave, point.coil, point.several);
    let (address, words, refresh_ms) = (point.address, point.words, point.refresh_ms);
    Point {
        output: output.name.clone(),
        bus,
        slave,
        coil,
        several,
        address,
        words,
        refresh_ms,
        safe_on: output.safe_on,
    }
}
