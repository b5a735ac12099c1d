//! One open bus: sends a question, and listens until its answer is there or its time is over.

use std::{io, os::fd::AsRawFd, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    config::{Bus, Line as Setting, Modbus},
    host::{
        modbus::{FRAME_MAX, Heard, Question, Talk, Wrong},
        tty::{self, SerialStream},
    },
    limits,
};

/// Why a question brought no values.
#[derive(Debug)]
pub enum Failure {
    /// Nothing was heard in time.
    NoAnswer,
    /// Something else was heard; in words.
    Wrong(String),
    /// The question itself was heard.
    Echo,
    /// The device refuses, with this code.
    Exception(u8),
    /// The bus is gone.
    Gone(String),
}

enum Port {
    Tty(SerialStream),
    Tcp(TcpStream),
}

/// An open bus.
pub struct Line<'a> {
    settings: &'a Modbus,
    talk: Talk,
    /// By TCP absent between the end of a connection and the next question.
    port: Option<Port>,
    /// Of the last question.
    number: u16,
    /// When the bus was used last.
    used: Option<Instant>,
    /// Answers on this connection.
    answers: u64,
    /// Questions in a row without an answer.
    silent: u32,
    /// It was reported that the other side closes connections.
    said_closes: bool,
}

/// How a bus talks, for the frames.
pub fn talk(settings: &Modbus) -> Talk {
    let manners = settings.manners;
    Talk { tcp: manners.tcp_frames, echo: manners.echo, lenient: manners.lenient_ids }
}

fn words(why: &io::Error) -> String {
    why.to_string().to_lowercase()
}

impl<'a> Line<'a> {
    /// Opens the bus.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub async fn open(settings: &'a Modbus) -> Result<Self, String> {
        let port = open(settings).await?;
        Ok(Self {
            settings,
            talk: talk(settings),
            port: Some(port),
            number: fastrand::u16(..),
            used: None,
            answers: 0,
            silent: 0,
            said_closes: false,
        })
    }

    /// One question. A connection that gave answers and was closed by the other side is opened again, once, for the same
    /// question: some devices close after each answer, others after a minute of silence.
    pub async fn ask(&mut self, question: Question) -> Result<Vec<u8>, Failure> {
        // On a shared line another writer gets a turn first, and the pause is kept behind their answer too.
        let pause = if self.settings.shared { limits::MODBUS_SHARE } else { self.pause() };
        if let Some(used) = self.used {
            tokio::time::sleep_until(used + pause).await;
        }
        let had_answers = self.answers > 0;
        let mut outcome = self.try_once(question).await;
        if let (Err(Failure::Gone(_)), Bus::Tcp(address), true) = (&outcome, &self.settings.bus, had_answers) {
            if !self.said_closes {
                tracing::info!("Modbus device {address} closes its connections; opening one when there is a question");
                self.said_closes = true;
            }
            self.forget_connection();
            outcome = self.try_once(question).await;
        }
        self.used = Some(Instant::now());
        match outcome {
            Err(Failure::NoAnswer) => self.unanswered(),
            Ok(_) | Err(Failure::Exception(_)) => {
                (self.answers, self.silent) = (self.answers + 1, 0);
                outcome
            }
            other => other,
        }
    }

    /// By TCP a connection may be dead without a sign of it.
    fn unanswered(&mut self) -> Result<Vec<u8>, Failure> {
        self.silent += 1;
        if matches!(self.settings.bus, Bus::Tcp(_)) {
            if self.silent >= limits::MODBUS_SILENT {
                return Err(Failure::Gone("no device answers".into()));
            }
            if self.talk.tcp && self.talk.lenient {
                // Without numbers a late answer would be taken for that of the next question: another connection.
                self.forget_connection();
            }
        }
        Err(Failure::NoAnswer)
    }

    fn pause(&self) -> Duration {
        Duration::from_micros(self.settings.manners.pause_us)
    }

    fn forget_connection(&mut self) {
        (self.port, self.answers) = (None, 0);
    }

    async fn try_once(&mut self, question: Question) -> Result<Vec<u8>, Failure> {
        if self.port.is_none() {
            self.port = Some(open(self.settings).await.map_err(Failure::Gone)?);
        }
        self.number = self.number.wrapping_add(1);
        let question = Question { number: self.number, ..question };
        let (Some(port), settings, talk) = (&mut self.port, self.settings, self.talk) else {
            return Err(Failure::NoAnswer);
        };
        let shared = match port {
            Port::Tty(tty) if settings.shared => Some(tty.as_raw_fd()),
            _ => None,
        };
        if let Some(fd) = shared {
            take_turn(fd, settings.manners.answer_ms).await;
            tokio::time::sleep(Duration::from_micros(settings.manners.pause_us)).await;
        }
        let outcome = exchange(port, settings, talk, question).await;
        if matches!(outcome, Err(Failure::NoAnswer)) && !talk.tcp {
            // An answer that is only late has this long to come, and is thrown away: nothing says which question it is for.
            tokio::time::sleep(Duration::from_millis(settings.manners.answer_ms / 2)).await;
        }
        if let Some(fd) = shared {
            tty::free(fd);
        }
        outcome
    }
}

async fn open(settings: &Modbus) -> Result<Port, String> {
    match &settings.bus {
        Bus::Line(line) => {
            let Setting { data, parity, stop } = line.line;
            let shared = settings.shared;
            let settings = tty::Settings { path: &line.path, baud: line.baud, data, parity, stop, shared };
            Ok(Port::Tty(tty::open(settings)?))
        }
        Bus::Tcp(address) => {
            let stream = timeout(limits::CONNECT, TcpStream::connect(address)).await;
            let stream = stream.map_err(|_| "it does not answer".to_owned())?.map_err(|why| words(&why))?;
            let _ = stream.set_nodelay(true);
            Ok(Port::Tcp(stream))
        }
    }
}

/// Waits for the turn on a line that outputs write on too. One that does not give it back has failed.
async fn take_turn(fd: i32, answer_ms: u64) {
    let until = Instant::now() + Duration::from_millis(answer_ms * 3 / 2) + limits::MODBUS_TURN;
    while !tty::take(fd) && Instant::now() < until {
        tokio::time::sleep(limits::MODBUS_TURN_LOOK).await;
    }
}

impl Port {
    /// Discards what came before the question.
    fn forget(&mut self) -> Result<(), Failure> {
        let mut old = [0u8; 256];
        match self {
            Port::Tty(tty) => tty::forget(tty).map_err(|why| Failure::Gone(why.into())),
            Port::Tcp(stream) => loop {
                match stream.try_read(&mut old) {
                    Ok(0) => return Err(Failure::Gone("the other side closed the connection".into())),
                    Ok(_) => {}
                    Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(why) => return Err(Failure::Gone(words(&why))),
                }
            },
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Port::Tty(tty) => tty.write_all(bytes).await,
            Port::Tcp(stream) => stream.write_all(bytes).await,
        }
    }

    async fn hear(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Port::Tty(tty) => tty.read(into).await,
            Port::Tcp(stream) => stream.read(into).await,
        }
    }
}

/// Sends a question and listens.
async fn exchange(port: &mut Port, settings: &Modbus, talk: Talk, question: Question) -> Result<Vec<u8>, Failure> {
    port.forget()?;
    let mut answer = Duration::from_millis(settings.manners.answer_ms);
    if let Bus::Line(line) = &settings.bus {
        // What the frames themselves take is the line's time and not the device's: 11 bits a byte.
        let bits = 11 * question.wire_bytes(talk) as u64;
        answer += Duration::from_micros(bits * 1_000_000 / u64::from(line.baud.max(1)));
    }
    match timeout(answer, port.send(&question.bytes(talk))).await {
        Ok(sent) => sent.map_err(|why| Failure::Gone(words(&why)))?,
        Err(_) => return Err(Failure::Gone("it takes no bytes".into())),
    }
    let (mut heard, mut chunk) = (Vec::new(), [0u8; FRAME_MAX]);
    let mut until = Instant::now() + answer;
    while heard.len() <= 4 * FRAME_MAX {
        match timeout_at(until, port.hear(&mut chunk)).await {
            Err(_) => break,
            Ok(Ok(0)) => return Err(Failure::Gone("the other side closed the connection".into())),
            Ok(Err(why)) => return Err(Failure::Gone(words(&why))),
            Ok(Ok(n)) => heard.extend_from_slice(&chunk[..n]),
        }
        match question.listen(talk, &heard) {
            Heard::Answer(values) => return Ok(values),
            Heard::Exception(code) => return Err(Failure::Exception(code)),
            Heard::Echo => return Err(Failure::Echo),
            // All is there, and it is wrong: when nothing more comes, the bus need not wait for the whole time.
            Heard::Part if question.is_complete(talk, &heard) => until = Instant::now() + limits::FRAME_SILENCE,
            Heard::Part => until = until.max(Instant::now() + limits::FRAME_SILENCE),
        }
    }
    match question.wrong(talk, &heard) {
        None => Err(Failure::NoAnswer),
        Some(Wrong::Echo) => Err(Failure::Echo),
        Some(Wrong::Bytes(text)) => Err(Failure::Wrong(text)),
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
