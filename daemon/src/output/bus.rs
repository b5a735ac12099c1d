//! Coils and registers that the guard drives: a thread for each bus, which writes what is wanted, again where that is
//! configured, and tries again what failed. It never holds up the GPIO lines.
//!
//! On a serial line that the daemon reads, both open the port and take turns by the kernel's lock on it (`host/tty.rs`). A
//! daemon that dies loses its lock; one that hangs in the middle of a question is not waited for beyond the longest one.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    host::{
        modbus::{self, COIL_ON, FRAME_MAX, Heard, Question, Talk, Wrong},
        tty,
    },
    limits,
};

/// A bus, as the order to the guard has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bus {
    /// HOST:PORT, or
    pub address: Option<String>,
    /// path of a tty,
    pub path: Option<String>,
    /// with its speed,
    pub baud: u32,
    /// and data bits, parity and stop bits.
    pub line: (u8, u8, u8),
    /// Frames of Modbus TCP, else of RTU.
    pub tcp: bool,
    /// What is sent is heard before the answer.
    pub echo: bool,
    /// Answers with other ids count.
    pub lenient: bool,
    /// Response timeout, ms.
    pub answer_ms: u64,
    /// Silence before a question, µs.
    pub pause_us: u64,
}

/// One output on a bus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The output's name.
    pub output: String,
    /// Where its device is.
    pub bus: Bus,
    /// The device.
    pub slave: u8,
    /// A coil, else a holding register.
    pub coil: bool,
    /// Written with the function for several, 15 or 16.
    pub several: bool,
    /// Its address.
    pub address: u16,
    /// What is written to a register when it is on, and when it is off.
    pub words: (u16, u16),
    /// Written again this often, ms; 0: only what changed.
    pub refresh_ms: u64,
    /// Its safe state.
    pub safe_on: bool,
}

impl Point {
    fn question(&self, on: bool) -> Question {
        let function = match (self.coil, self.several) {
            (true, false) => modbus::WRITE_COIL,
            (true, true) => modbus::WRITE_COILS,
            (false, false) => modbus::WRITE_REGISTER,
            (false, true) => modbus::WRITE_REGISTERS,
        };
        let word = match (self.coil, on) {
            (true, on) => {
                if on {
                    COIL_ON
                } else {
                    0
                }
            }
            (false, true) => self.words.0,
            (false, false) => self.words.1,
        };
        Question { number: 0, slave: self.slave, function, address: self.address, word }
    }

    /// The same place, read.
    fn look(&self) -> Question {
        let function = if self.coil { modbus::READ_COILS } else { modbus::READ_HOLDING };
        Question { number: 0, slave: self.slave, function, address: self.address, word: 1 }
    }
}

/// What is wanted of one point, and whether the device took it. Pure.
#[derive(Debug, Clone, Copy)]
struct Aim {
    wanted: bool,
    /// What the device took last, and when.
    written: Option<(bool, Instant)>,
    failed: u32,
    not_before: Option<Instant>,
}

impl Aim {
    fn new(wanted: bool) -> Self {
        Self { wanted, written: None, failed: 0, not_before: None }
    }

    fn want(&mut self, on: bool) {
        if self.wanted != on {
            // A change is tried at once, whatever failed before.
            (self.wanted, self.not_before) = (on, None);
        }
    }

    fn is_there(&self) -> bool {
        self.failed == 0 && self.written.is_some_and(|(on, _)| on == self.wanted)
    }

    /// When it is to be written; `None`: not before it changes.
    fn due(&self, refresh: Duration, now: Instant) -> Option<Instant> {
        let due = match self.written {
            Some((on, at)) if on == self.wanted && self.failed == 0 => (!refresh.is_zero()).then_some(at + refresh)?,
            _ => now,
        };
        Some(self.not_before.map_or(due, |at| at.max(due)))
    }

    /// What came of writing `on`.
    fn took(&mut self, on: bool, done: bool, now: Instant) {
        if done {
            (self.written, self.failed, self.not_before) = (Some((on, now)), 0, None);
        } else {
            self.failed = self.failed.saturating_add(1);
            let wait = limits::OUTPUT_RETRY.saturating_mul(1 << (self.failed - 1).min(8)).min(limits::OUTPUT_RETRY_MAX);
            // A change that came meanwhile is not made to wait.
            self.not_before = (on == self.wanted).then(|| now + wait);
        }
    }
}

#[derive(Default)]
struct Shared {
    aims: Mutex<Vec<Aim>>,
    bell: Condvar,
}

impl Shared {
    fn aims(&self) -> MutexGuard<'_, Vec<Aim>> {
        self.aims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All points of an order; their threads live as long as the guard.
pub struct Points {
    /// By point: its bus, and its place there.
    places: Vec<(Arc<Shared>, usize)>,
}

impl Points {
    /// Starts the threads, which write the safe state first.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(points: &[Point]) -> io::Result<Self> {
        let mut buses: Vec<(Bus, Arc<Shared>, Vec<Point>)> = Vec::new();
        let mut places = Vec::new();
        for point in points {
            let at = buses.iter().position(|(bus, ..)| *bus == point.bus).unwrap_or_else(|| {
                buses.push((point.bus.clone(), Arc::default(), vec![]));
                buses.len() - 1
            });
            let (_, shared, of_bus) = &mut buses[at];
            places.push((shared.clone(), of_bus.len()));
            shared.aims().push(Aim::new(point.safe_on));
            of_bus.push(point.clone());
        }
        for (bus, shared, points) in buses {
            let thread = std::thread::Builder::new().name("modbus".into());
            thread
                .spawn(move || Writer { said: vec![false; points.len()], points, line: Line::new(bus) }.run(&shared))?;
        }
        Ok(Self { places })
    }

    /// What one of them is to be.
    pub fn want(&self, point: usize, on: bool) {
        let Some((shared, place)) = self.places.get(point) else { return };
        shared.aims()[*place].want(on);
        shared.bell.notify_one();
    }

    /// Whether one of them cannot be written.
    pub fn fails(&self) -> bool {
        self.places.iter().any(|(shared, place)| shared.aims()[*place].failed > 0)
    }

    /// Waits until all are as wanted, or for the longest time that this may take.
    pub fn settle(&self) {
        let until = Instant::now() + limits::OUTPUT_SETTLE;
        let there = || self.places.iter().all(|(shared, place)| shared.aims()[*place].is_there());
        while !there() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The thread of one bus.
struct Writer {
    points: Vec<Point>,
    /// It was reported that a point cannot be written.
    said: Vec<bool>,
    line: Line,
}

impl Writer {
    fn run(mut self, shared: &Shared) {
        loop {
            let (place, on) = self.next(shared);
            let outcome = self.line.write(&self.points[place], on);
            shared.aims()[place].took(on, outcome.is_ok(), Instant::now());
            self.report(place, outcome.err());
        }
    }

    /// Waits for the next point that is to be written: changes before what is only written again, and what failed less
    /// often first, so that a dead device holds up no other by more than the question in progress.
    fn next(&self, shared: &Shared) -> (usize, bool) {
        let mut aims = shared.aims();
        loop {
            let now = Instant::now();
            let due = |(place, aim): (usize, &Aim)| {
                let refresh = Duration::from_millis(self.points[place].refresh_ms);
                Some((
                    aim.due(refresh, now)?.max(now),
                    aim.written.is_some_and(|(on, _)| on == aim.wanted),
                    aim.failed,
                    place,
                ))
            };
            match aims.iter().enumerate().filter_map(due).min() {
                Some((due, .., place)) if due <= now => return (place, aims[place].wanted),
                first => {
                    let wait = first.map_or(limits::OUTPUT_RETRY_MAX, |(due, ..)| due.saturating_duration_since(now));
                    aims = shared.bell.wait_timeout(aims, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn report(&mut self, place: usize, why: Option<String>) {
        let (point, said) = (&self.points[place], &mut self.said[place]);
        let what = if point.coil { "coil" } else { "register" };
        let what = format!("output {}: device {}, {what} {}", point.output, point.slave, point.address);
        match why {
            Some(why) if !*said => tracing::error!("{what} cannot be set: {why}; trying again"),
            None if *said => tracing::info!("{what} is set again"),
            _ => return,
        }
        *said = !*said;
    }
}

enum Port {
    Tty(tty::Shared),
    Tcp(TcpStream),
}

/// A bus as a thread uses it.
struct Line {
    bus: Bus,
    talk: Talk,
    port: Option<Port>,
    /// By RTU: this port's echo was looked for.
    looked: bool,
    number: u16,
    used: Option<Instant>,
}

fn words(why: &io::Error) -> String {
    why.to_string().to_lowercase()
}

impl Line {
    fn new(bus: Bus) -> Self {
        let talk = Talk { tcp: bus.tcp, echo: bus.echo, lenient: bus.lenient };
        Self { bus, talk, port: None, looked: false, number: fastrand::u16(..), used: None }
    }

    /// Writes one point. A connection that was closed meanwhile is opened again, once.
    fn write(&mut self, point: &Point, on: bool) -> Result<(), String> {
        let was_open = self.port.is_some();
        let mut outcome = self.ask(point.question(on));
        if outcome.is_err() && self.port.is_none() && was_open {
            outcome = self.ask(point.question(on));
        }
        outcome?;
        if !self.talk.tcp && !self.talk.echo && !self.looked {
            // The echo of a write looks like its answer: a line with an echo that is not configured would always seem to
            // be answered. A question shows it.
            let seen = self.ask(point.look());
            if matches!(&seen, Err(why) if why == ECHO) {
                return Err(ECHO.into());
            }
            self.looked = true;
        }
        Ok(())
    }

    /// One question. After an error the port is open no more, if that is what failed.
    fn ask(&mut self, question: Question) -> Result<(), String> {
        let pause = Duration::from_micros(self.bus.pause_us);
        if let (Some(used), None) = (self.used, &self.bus.path) {
            std::thread::sleep((used + pause).saturating_duration_since(Instant::now()));
        }
        if self.port.is_none() {
            (self.port, self.looked) = (Some(open(&self.bus)?), false);
        }
        self.number = self.number.wrapping_add(1);
        let question = Question { number: self.number, ..question };
        let answer = Duration::from_millis(self.bus.answer_ms);
        let Some(port) = &mut self.port else { return Err("it is not open".into()) };
        let turn = if let Port::Tty(tty) = &port { Some(tty.fd()) } else { None };
        if let Some(fd) = turn {
            // The longest question, and the time in which its late answer is waited for.
            let until = Instant::now() + answer * 3 / 2 + limits::MODBUS_TURN;
            while !tty::take(fd) && Instant::now() < until {
                std::thread::sleep(limits::MODBUS_TURN_LOOK);
            }
            // Whoever had the turn before: the pause is kept behind its answer.
            std::thread::sleep(pause);
        }
        let outcome = exchange(port, &self.bus, self.talk, question);
        if matches!(outcome, Err(Failure::NoAnswer)) && !self.talk.tcp {
            std::thread::sleep(answer / 2);
        }
        if let Some(fd) = turn {
            tty::free(fd);
        }
        self.used = Some(Instant::now());
        match outcome {
            Ok(()) => Ok(()),
            Err(Failure::NoAnswer) => {
                if matches!(self.port, Some(Port::Tcp(_))) {
                    // It may be dead without a sign of it, and a late answer must not be taken for another one's.
                    self.port = None;
                }
                Err("no answer".into())
            }
            Err(Failure::Said(why)) => Err(why),
            Err(Failure::Gone(why)) => {
                self.port = None;
                Err(why)
            }
        }
    }
}

const ECHO: &str = "the line echoes what is sent: set `echo = true`";

enum Failure {
    NoAnswer,
    Said(String),
    Gone(String),
}

fn gone(why: &io::Error) -> Failure {
    Failure::Gone(words(why))
}

fn open(bus: &Bus) -> Result<Port, String> {
    if let Some(path) = &bus.path {
        let (data, parity, stop) = bus.line;
        let settings = tty::Settings { path, baud: bus.baud, data, parity, stop, shared: true };
        return Ok(Port::Tty(tty::Shared::open(settings)?));
    }
    let name = bus.address.clone().unwrap_or_default();
    let mut last = "no address".to_owned();
    for address in name.to_socket_addrs().map_err(|why| words(&why))? {
        match TcpStream::connect_timeout(&address, limits::OUTPUT_CONNECT) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(Port::Tcp(stream));
            }
            Err(why) => last = words(&why),
        }
    }
    Err(last)
}

impl Port {
    fn forget(&mut self) -> Result<(), Failure> {
        match self {
            Port::Tty(tty) => tty.forget().map_err(|why| Failure::Gone(why.into())),
            Port::Tcp(stream) => {
                let mut old = [0u8; 256];
                stream.set_nonblocking(true).map_err(|why| gone(&why))?;
                let ended = loop {
                    match stream.read(&mut old) {
                        Ok(0) => break Err(Failure::Gone("the other side closed the connection".into())),
                        Ok(_) => {}
                        Err(why) if why.kind() == ErrorKind::WouldBlock => break Ok(()),
                        Err(why) => break Err(gone(&why)),
                    }
                };
                stream.set_nonblocking(false).map_err(|why| gone(&why))?;
                ended
            }
        }
    }

    fn patience(&mut self, wait: Duration) -> io::Result<()> {
        let wait = wait.max(Duration::from_millis(1));
        match self {
            Port::Tty(tty) => tty.patience(wait),
            Port::Tcp(stream) => {
                stream.set_read_timeout(Some(wait)).and_then(|()| stream.set_write_timeout(Some(wait)))
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Port::Tty(tty) => tty.write_all(bytes),
            Port::Tcp(stream) => stream.write_all(bytes),
        }
    }

    fn hear(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Port::Tty(tty) => tty.read(into),
            Port::Tcp(stream) => stream.read(into),
        }
    }
}

fn exchange(port: &mut Port, bus: &Bus, talk: Talk, question: Question) -> Result<(), Failure> {
    port.forget()?;
    let mut answer = Duration::from_millis(bus.answer_ms);
    if bus.path.is_some() {
        let bits = 11 * question.wire_bytes(talk) as u64;
        answer += Duration::from_micros(bits * 1_000_000 / u64::from(bus.baud.max(1)));
    }
    port.patience(answer).and_then(|()| port.send(&question.bytes(talk))).map_err(|why| gone(&why))?;
    let (mut heard, mut chunk) = (Vec::new(), [0u8; FRAME_MAX]);
    let until = Instant::now() + answer;
    while Instant::now() < until && heard.len() <= 4 * FRAME_MAX {
        port.patience(until.saturating_duration_since(Instant::now())).map_err(|why| gone(&why))?;
        match port.hear(&mut chunk) {
            Ok(0) => return Err(Failure::Gone("the other side closed the connection".into())),
            Ok(n) => heard.extend_from_slice(&chunk[..n]),
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(why) => return Err(gone(&why)),
        }
        match question.listen(talk, &heard) {
            Heard::Answer(_) => return Ok(()),
            Heard::Exception(code) => return Err(Failure::Said(format!("the device refuses it (exception {code})"))),
            Heard::Echo => return Err(Failure::Said(ECHO.into())),
            Heard::Part => {}
        }
    }
    match question.wrong(talk, &heard) {
        None => Err(Failure::NoAnswer),
        Some(Wrong::Echo) => Err(Failure::Said(ECHO.into())),
        Some(Wrong::Bytes(text)) => Err(Failure::Said(text)),
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
