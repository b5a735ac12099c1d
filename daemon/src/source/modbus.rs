//! The only file that speaks Modbus. Asks the devices of one bus, one read at a time, each at its pace; a device that
//! does not answer is asked less and less often. A row is the read's number (two bytes, least significant first) and
//! the registers as they came.

use std::{collections::BTreeMap, io, time::Duration};

use tokio::{net::TcpStream, time::Instant};
use tokio_modbus::{
    Error, ExceptionCode, Slave,
    client::{Context, Reader, rtu, tcp},
    prelude::SlaveContext,
};

use super::{Outlet, Reopening, serial};
use crate::{
    config::{Bus, Modbus, Read, Registers},
    flow::{Arrival, Fault},
    limits,
};

/// Asks for ever; ends only when the task is dropped.
pub(super) async fn run(settings: Modbus, outlet: Outlet) {
    let name = match &settings.bus {
        Bus::Line(line) => format!("Modbus line {}", line.path),
        Bus::Tcp(address) => format!("Modbus device {address}"),
    };
    let mut reopening = Reopening::new(name.clone());
    let mut pace = Pace::new(&settings.reads);
    loop {
        match open(&settings, &outlet).await {
            Ok(mut line) => {
                tracing::info!("{name} open");
                reopening.opened();
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "opened")).await;
                let mut answers = 0;
                let why = line.until_it_fails(&settings, &outlet, &mut pace, &name, &mut answers).await;
                if answers > 0 {
                    reopening.was_healthy();
                }
                tracing::warn!("{name} closed: {why}");
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

/// An open bus.
struct Line {
    context: Context,
    on_a_line: bool,
}

async fn open(settings: &Modbus, outlet: &Outlet) -> Result<Line, String> {
    match &settings.bus {
        Bus::Line(line) => Ok(Line { context: rtu::attach(serial::Quiet::open(line)?), on_a_line: true }),
        Bus::Tcp(address) => {
            let connect = tokio::time::timeout(limits::CONNECT, TcpStream::connect(address));
            let stream = outlet.ticking(connect).await.map_err(|_| "it does not answer".to_owned())?;
            let stream = stream.map_err(|why| why.to_string().to_lowercase())?;
            let _ = stream.set_nodelay(true);
            Ok(Line { context: tcp::attach(stream), on_a_line: false })
        }
    }
}

impl Line {
    async fn until_it_fails(
        &mut self,
        settings: &Modbus,
        outlet: &Outlet,
        pace: &mut Pace,
        name: &str,
        answers: &mut u64,
    ) -> String {
        loop {
            let (at, due) = pace.next();
            outlet.pause(due.saturating_duration_since(Instant::now())).await;
            let read = &settings.reads[at];
            let answer = Duration::from_millis(settings.answer_ms);
            let asked = tokio::time::timeout(answer, self.ask(read));
            let outcome = match outlet.ticking(asked).await {
                Err(_) => Err((Fault::NoAnswer, String::new())),
                Ok(Ok(registers)) => Ok(registers),
                Ok(Err(why)) => Err(why),
            };
            match outcome {
                Ok(registers) => {
                    *answers += 1;
                    pace.answered(at, read, None, name);
                    let mut frame = (at as u16).to_le_bytes().to_vec();
                    frame.extend(registers);
                    outlet.send_frame(frame).await;
                }
                Err((fault, ended)) => {
                    pace.answered(at, read, Some(fault), name);
                    outlet.fault(fault, 1).await;
                    if !ended.is_empty() {
                        return ended;
                    }
                    // By TCP a late answer would be taken for that of the next question: another connection.
                    if fault == Fault::NoAnswer && !self.on_a_line {
                        return "a device did not answer".into();
                    }
                    if fault == Fault::NoAnswer {
                        // On a line, an answer that is only late has this long to come, and is thrown away.
                        outlet.pause(answer / 2).await;
                    }
                }
            }
        }
    }

    /// One read. An error with a text means that the bus is gone.
    async fn ask(&mut self, read: &Read) -> Result<Vec<u8>, (Fault, String)> {
        self.context.set_slave(Slave(read.slave));
        let (from, count) = (read.address, read.count);
        let words = |answer: Result<Result<Vec<u16>, ExceptionCode>, Error>| {
            answer.map(|inner| inner.map(|words| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>()))
        };
        let bits = |answer: Result<Result<Vec<bool>, ExceptionCode>, Error>| {
            answer.map(|inner| inner.map(|bits| bits.iter().map(|bit| u8::from(*bit)).collect::<Vec<u8>>()))
        };
        let (answer, unit) = match read.table {
            Registers::Coil => (bits(self.context.read_coils(from, count).await), 1),
            Registers::Discrete => (bits(self.context.read_discrete_inputs(from, count).await), 1),
            Registers::Holding => (words(self.context.read_holding_registers(from, count).await), 2),
            Registers::Input => (words(self.context.read_input_registers(from, count).await), 2),
        };
        match answer {
            Ok(Ok(bytes)) if bytes.len() == usize::from(count) * unit => Ok(bytes),
            Ok(Ok(_)) | Err(Error::Protocol(_)) => Err((Fault::WrongAnswer, String::new())),
            Ok(Err(exception)) => Err((exception_fault(exception), String::new())),
            Err(Error::Transport(why)) if why.kind() == io::ErrorKind::InvalidData => {
                Err((Fault::WrongAnswer, String::new()))
            }
            Err(Error::Transport(why)) => Err((Fault::NoAnswer, why.to_string().to_lowercase())),
        }
    }
}

fn exception_fault(exception: ExceptionCode) -> Fault {
    match exception {
        ExceptionCode::IllegalFunction => Fault::IllegalFunction,
        ExceptionCode::IllegalDataAddress => Fault::IllegalDataAddress,
        ExceptionCode::IllegalDataValue => Fault::IllegalDataValue,
        ExceptionCode::Acknowledge | ExceptionCode::ServerDeviceBusy => Fault::DeviceBusy,
        ExceptionCode::GatewayPathUnavailable | ExceptionCode::GatewayTargetDevice => Fault::Gateway,
        _ => Fault::DeviceFailure,
    }
}

/// When each read is due, and which devices are to be left in peace.
struct Pace {
    /// When each read is due, how often, and of which device.
    reads: Vec<(Instant, Duration, u8)>,
    /// What was said of each read last.
    said: Vec<Option<Fault>>,
    slaves: BTreeMap<u8, Device>,
}

/// What is known of one device.
#[derive(Default)]
struct Device {
    /// Questions in a row without an answer.
    silent: u32,
    /// Asked again not before this.
    not_before: Option<Instant>,
}

impl Pace {
    fn new(reads: &[Read]) -> Self {
        let now = Instant::now();
        let reads = reads.iter().map(|read| (now, Duration::from_millis(read.every_ms), read.slave));
        let reads: Vec<_> = reads.collect();
        Self { said: vec![None; reads.len()], reads, slaves: BTreeMap::new() }
    }

    /// The read that is due first, and when.
    fn next(&self) -> (usize, Instant) {
        let due = |(at, (due, _, slave)): (usize, &(Instant, Duration, u8))| {
            let not_before = self.slaves.get(slave).and_then(|device| device.not_before);
            (not_before.map_or(*due, |at| at.max(*due)), at)
        };
        let (due, at) = self.reads.iter().enumerate().map(due).min().unwrap_or((Instant::now(), 0));
        (at, due)
    }

    fn answered(&mut self, at: usize, read: &Read, fault: Option<Fault>, name: &str) {
        let now = Instant::now();
        let (due, every, _) = &mut self.reads[at];
        // What was missed while the bus was busy is not made up for.
        *due = (*due + *every).max(now);
        let device = self.slaves.entry(read.slave).or_default();
        if fault == Some(Fault::NoAnswer) {
            device.silent = device.silent.saturating_add(1);
            let wait =
                every.saturating_mul(1 << device.silent.min(16).saturating_sub(1)).min(limits::MODBUS_BACKOFF_MAX);
            device.not_before = Some(now + wait);
        } else {
            (device.silent, device.not_before) = (0, None);
        }
        if self.said[at] != fault {
            match fault {
                Some(fault) => tracing::warn!(slave = read.slave, address = read.address, "{name}: {}", fault.word()),
                None => tracing::info!(slave = read.slave, address = read.address, "{name}: answers again"),
            }
            self.said[at] = fault;
        }
    }
}
