//! Reads Modbus devices: asks the devices of one bus, one question at a time (`pace` decides which, `line` asks). A row is
//! the read's number and its registers as they came; `signal/registers.rs` draws it.

mod line;
mod pace;

use tokio::time::Instant;

use self::{
    line::{Failure, Line},
    pace::{News, Outcome, Pace, Piece},
};
use super::{Outlet, Reopening};
use crate::{
    config::{Bus, Modbus, Read, Registers},
    flow::{Arrival, Fault},
    host::modbus::{self, Question},
};

/// The number of a read whose row has holes has this bit.
const HOLES: u16 = 0x8000;

/// Asks for ever; ends only when the task is dropped.
pub(super) async fn run(settings: Modbus, outlet: Outlet) {
    let name = settings.bus.to_string();
    let mut reopening = Reopening::new(name.clone());
    let mut asking =
        Asking { settings: &settings, outlet: &outlet, pace: Pace::new(&settings.reads, Instant::now()), name };
    loop {
        match outlet.ticking(Line::open(&settings)).await {
            Ok(mut line) => {
                tracing::info!("{} open", asking.name);
                reopening.opened();
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "opened")).await;
                let mut answers = 0;
                let why = asking.until_it_fails(&mut line, &mut answers).await;
                if answers > 0 {
                    reopening.was_healthy();
                }
                tracing::warn!("{} closed: {why}", asking.name);
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "closed")).await;
            }
            Err(why) => {
                reopening.failed(&why);
                outlet.fault(Fault::NoAnswer, 1).await;
            }
        }
        reopening.pause(&outlet).await;
    }
}

struct Asking<'a> {
    settings: &'a Modbus,
    outlet: &'a Outlet,
    pace: Pace,
    name: String,
}

impl Asking<'_> {
    async fn until_it_fails(&mut self, line: &mut Line<'_>, answers: &mut u64) -> String {
        loop {
            let Some((at, due)) = self.pace.next() else { return "there is nothing to read".into() };
            self.outlet.pause(due.saturating_duration_since(Instant::now())).await;
            if let Err(gone) = self.read(line, at, answers).await {
                return gone;
            }
        }
    }

    /// One read, in one piece or in several. An error means that the bus is gone.
    async fn read(&mut self, line: &mut Line<'_>, at: usize, answers: &mut u64) -> Result<(), String> {
        let read = &self.settings.reads[at];
        let mut row = Row::new(read);
        for (part, piece) in self.pace.begin(at, Instant::now()) {
            let asked = line.ask(question(read, piece));
            let (outcome, text, gone) = match self.outlet.ticking(asked).await {
                Ok(values) => {
                    row.put(read, piece, &values);
                    (Outcome::Values, String::new(), None)
                }
                Err(failure) => {
                    let (fault, text, gone) = fault(failure);
                    self.outlet.fault(fault, 1).await;
                    (Outcome::Failed(fault), text, gone)
                }
            };
            let answered = !matches!(outcome, Outcome::Failed(Fault::NoAnswer));
            *answers += u64::from(answered);
            if let Some(news) = self.pace.took(at, part, outcome, Instant::now()) {
                let never = *answers == 0 && text.is_empty() && outcome == Outcome::Failed(Fault::NoAnswer);
                report(&self.name, read, news, if never { hint(self.settings) } else { &text });
            }
            if let Some(gone) = gone {
                self.pace.done(at, Instant::now());
                return Err(gone);
            }
        }
        self.pace.done(at, Instant::now());
        if let Some(frame) = row.frame(at) {
            self.outlet.send_frame(frame).await;
        }
        Ok(())
    }
}

fn question(read: &Read, piece: Piece) -> Question {
    let function = match read.table {
        Registers::Coil => modbus::READ_COILS,
        Registers::Discrete => modbus::READ_DISCRETE,
        Registers::Holding => modbus::READ_HOLDING,
        Registers::Input => modbus::READ_INPUT,
    };
    Question { number: 0, slave: read.slave, function, address: piece.address, word: piece.count }
}

/// The fault, what more is known of it, and why the bus is gone where it is.
fn fault(failure: Failure) -> (Fault, String, Option<String>) {
    match failure {
        Failure::NoAnswer => (Fault::NoAnswer, String::new(), None),
        Failure::Wrong(text) => (Fault::WrongAnswer, text, None),
        Failure::Echo => (Fault::Echo, "the answer begins with the question: set `echo = true`".into(), None),
        Failure::Exception(code) => (exception(code), String::new(), None),
        Failure::Gone(why) => (Fault::NoAnswer, why.clone(), Some(why)),
    }
}

/// What to look for where nothing was ever answered.
fn hint(settings: &Modbus) -> &'static str {
    match settings.bus {
        Bus::Line(_) => "look at slave address, wires (A and B), baud and parity",
        Bus::Tcp(_) if settings.manners.tcp_frames => {
            "look at the slave address; a serial server that passes RTU frames needs `framing = \"rtu\"`"
        }
        Bus::Tcp(_) => {
            "look at slave address, wires, and the serial settings in the server; a Modbus TCP device needs no `framing`"
        }
    }
}

fn exception(code: u8) -> Fault {
    match code {
        1 => Fault::IllegalFunction,
        2 => Fault::IllegalDataAddress,
        3 => Fault::IllegalDataValue,
        5 | 6 => Fault::DeviceBusy,
        10 | 11 => Fault::Gateway,
        _ => Fault::DeviceFailure,
    }
}

/// What a piece is, for people: `device 1, input registers 0 to 9`.
fn shown(read: &Read, piece: Piece) -> String {
    let table = match read.table {
        Registers::Coil => "coil",
        Registers::Discrete => "discrete input",
        Registers::Holding => "holding register",
        Registers::Input => "input register",
    };
    let place = match piece.count {
        1 => format!("{table} {}", piece.address),
        n => format!("{table}s {} to {}", piece.address, u32::from(piece.address) + u32::from(n) - 1),
    };
    format!("device {}, {place}", read.slave)
}

fn report(name: &str, read: &Read, news: News, text: &str) {
    let more = if text.is_empty() { String::new() } else { format!(": {text}") };
    match news {
        News::Fails(piece, fault) => tracing::warn!("{name}: {}: {}{more}", shown(read, piece), fault.word()),
        News::FallsApart(piece, fault) => {
            let what = shown(read, piece);
            tracing::warn!("{name}: {what}: {}{more}; asking for them in smaller parts from now on", fault.word());
        }
        News::Again(piece) => tracing::info!("{name}: {}: answers again", shown(read, piece)),
    }
}

/// A row that is put together from the pieces of a read.
struct Row {
    bytes: Vec<u8>,
    known: Vec<bool>,
}

impl Row {
    fn new(read: &Read) -> Self {
        let bytes = usize::from(read.count) * read.table.unit();
        Self { bytes: vec![0; bytes], known: vec![false; bytes] }
    }

    /// Values of one answer: words as they are, a byte for each bit.
    fn put(&mut self, read: &Read, piece: Piece, values: &[u8]) {
        let unit = read.table.unit();
        let from = usize::from(piece.address - read.address) * unit;
        let bit = |i: usize| values.get(i / 8).map(|byte| byte >> (i % 8) & 1);
        for i in 0..usize::from(piece.count) * unit {
            let value = if unit == 1 { bit(i) } else { values.get(i).copied() };
            if let (Some(value), Some(place), Some(known)) =
                (value, self.bytes.get_mut(from + i), self.known.get_mut(from + i))
            {
                (*place, *known) = (value, true);
            }
        }
    }

    /// Nothing, where no piece came.
    fn frame(self, at: usize) -> Option<Vec<u8>> {
        if !self.known.contains(&true) {
            return None;
        }
        let holes = self.known.contains(&false);
        let mut frame = (at as u16 | if holes { HOLES } else { 0 }).to_le_bytes().to_vec();
        if holes {
            let bits =
                |eight: &[bool]| eight.iter().enumerate().fold(0u8, |byte, (i, known)| byte | u8::from(*known) << i);
            frame.extend(self.known.chunks(8).map(bits));
        }
        frame.extend(self.bytes);
        Some(frame)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
