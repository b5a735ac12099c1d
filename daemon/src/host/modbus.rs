//! Modbus frames: a question as bytes, and what was heard of its answer. Pure; `source/modbus` reads with it, `output/bus`
//! writes with it.
//!
//! ```text
//! RTU   slave:u8  function:u8  content…  crc:u16le
//! TCP   number:u16be  0:u16be  length:u16be  slave:u8  function:u8  content…
//! ```

use crc::{CRC_16_MODBUS, Crc};

/// The functions that are used here.
pub const READ_COILS: u8 = 1;
/// Discrete inputs.
pub const READ_DISCRETE: u8 = 2;
/// Holding registers.
pub const READ_HOLDING: u8 = 3;
/// Input registers.
pub const READ_INPUT: u8 = 4;
/// Write one coil.
pub const WRITE_COIL: u8 = 5;
/// Write one holding register.
pub const WRITE_REGISTER: u8 = 6;
/// Write several coils; here one.
pub const WRITE_COILS: u8 = 15;
/// Write several holding registers; here one.
pub const WRITE_REGISTERS: u8 = 16;
/// The word that turns a coil on; 0 turns it off.
pub const COIL_ON: u16 = 0xFF00;
/// Longest frame: 256 bytes by RTU, 260 by TCP.
pub const FRAME_MAX: usize = 260;

/// How a bus and its devices talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Talk {
    /// Frames of Modbus TCP, else of RTU.
    pub tcp: bool,
    /// What is sent is heard before the answer: a two-wire adapter without echo suppression.
    pub echo: bool,
    /// An answer counts whatever its slave, unit or transaction number is.
    pub lenient: bool,
}

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Transaction number, by TCP alone.
    pub number: u16,
    /// The device.
    pub slave: u8,
    /// 1 to 6, 15 or 16.
    pub function: u8,
    /// First address, from 0.
    pub address: u16,
    /// How many are read, or the word that is written.
    pub word: u16,
}

/// What was heard so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Not yet a whole answer.
    Part,
    /// The values: two bytes for a register, a bit for a coil.
    Answer(Vec<u8>),
    /// The device refuses, with this code.
    Exception(u8),
    /// The question itself came before the answer, and no echo is configured.
    Echo,
}

fn crc(bytes: &[u8]) -> [u8; 2] {
    Crc::<u16>::new(&CRC_16_MODBUS).checksum(bytes).to_le_bytes()
}

fn at(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

impl Question {
    /// Function, address, and number of values or the value; of a write of several the values as well.
    fn content(&self) -> Vec<u8> {
        let [c, d] = self.word.to_be_bytes();
        let mut content = self.head().to_vec();
        match self.function {
            WRITE_COILS => content.extend([1, u8::from(self.word == COIL_ON)]),
            WRITE_REGISTERS => content.extend([2, c, d]),
            _ => {}
        }
        content
    }

    /// The first five bytes of the content. The answer to a write is the same.
    fn head(&self) -> [u8; 5] {
        let several = matches!(self.function, WRITE_COILS | WRITE_REGISTERS);
        let ([a, b], [c, d]) = (self.address.to_be_bytes(), if several { 1 } else { self.word }.to_be_bytes());
        [self.function, a, b, c, d]
    }

    fn writes(&self) -> bool {
        self.function >= WRITE_COIL
    }

    /// Bytes of the values that a read brings.
    fn bytes_read(&self) -> usize {
        let count = usize::from(self.word);
        if self.function <= READ_DISCRETE { count.div_ceil(8) } else { 2 * count }
    }

    /// As it is sent.
    pub fn bytes(&self, talk: Talk) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(12);
        if talk.tcp {
            bytes.extend(self.number.to_be_bytes());
            let content = self.content();
            bytes.extend([0, 0, 0, 1 + content.len() as u8, self.slave]);
            bytes.extend(content);
        } else {
            bytes.push(self.slave);
            bytes.extend(self.content());
            bytes.extend(crc(&bytes));
        }
        bytes
    }

    /// Bytes on the wire of question, echo and answer by RTU: how long a slow line needs for them.
    pub fn wire_bytes(&self, talk: Talk) -> usize {
        let answer = if self.writes() { 8 } else { 5 + self.bytes_read() };
        let asked = 3 + self.content().len();
        asked + answer + if talk.echo { asked } else { 0 }
    }

    /// Looks for the answer in all that was heard since the question. By RTU bytes before it do not matter (a glitch when
    /// the line turns round): its place is where device, function, length and checksum fit.
    pub fn listen(&self, talk: Talk, heard: &[u8]) -> Heard {
        if talk.tcp {
            let fits = |frame: &&TcpFrame<'_>| talk.lenient || (frame.number, frame.slave) == (self.number, self.slave);
            let answers = TcpFrames(heard).filter(|frame| fits(&frame));
            return answers
                .map(|frame| self.answer(frame.content))
                .find(|heard| *heard != Heard::Part)
                .unwrap_or(Heard::Part);
        }
        let echo = at(heard, &self.bytes(talk));
        let Some(behind) = self.behind_echo(talk, heard) else { return Heard::Part };
        match self.rtu(talk.lenient, behind) {
            Some((place, _)) if !talk.echo && !self.writes() && echo.is_some_and(|echo| echo < place) => Heard::Echo,
            Some((_, found)) => found,
            None => Heard::Part,
        }
    }

    /// What was heard without the echo, where one is expected. Of a write, whose answer is the same as its question, the
    /// echo must have come: otherwise it would be taken for the answer.
    fn behind_echo<'a>(&self, talk: Talk, heard: &'a [u8]) -> Option<&'a [u8]> {
        let asked = self.bytes(talk);
        match at(heard, &asked) {
            Some(at) if talk.echo => Some(&heard[at + asked.len()..]),
            None if talk.echo && self.writes() => None,
            _ => Some(heard),
        }
    }

    /// The first valid answer by RTU, and its place.
    fn rtu(&self, lenient: bool, heard: &[u8]) -> Option<(usize, Heard)> {
        (0..heard.len()).find_map(|at| {
            let frame = &heard[at..];
            let (slave, function) = (*frame.first()?, *frame.get(1)?);
            let len = match function {
                _ if slave != self.slave && !lenient => return None,
                f if f == self.function | 0x80 => 5,
                f if f == self.function && self.writes() => 8,
                f if f == self.function => 5 + self.bytes_read(),
                _ => return None,
            };
            let frame = frame.get(..len)?;
            let (bytes, sum) = frame.split_at(len - 2);
            let found = self.answer(&bytes[1..]);
            (sum == crc(bytes) && found != Heard::Part).then_some((at, found))
        })
    }

    /// What function and content say; `Part` where they do not belong to this question.
    fn answer(&self, content: &[u8]) -> Heard {
        match *content {
            [function, code] if function == self.function | 0x80 => Heard::Exception(code),
            _ if self.writes() => {
                if *content == self.head() {
                    Heard::Answer(Vec::new())
                } else {
                    Heard::Part
                }
            }
            [function, count, ref values @ ..]
                if function == self.function
                    && usize::from(count) == values.len()
                    && values.len() == self.bytes_read() =>
            {
                Heard::Answer(values.to_vec())
            }
            _ => Heard::Part,
        }
    }

    /// Whether all that an answer can have has come, so that no more of it is to be waited for.
    pub fn is_complete(&self, talk: Talk, heard: &[u8]) -> bool {
        !talk.tcp && heard.len() + 8 >= self.wire_bytes(talk)
    }

    /// The time is over: what is wrong with what was heard; `None` where nothing came but an expected echo.
    pub fn wrong(&self, talk: Talk, heard: &[u8]) -> Option<Wrong> {
        if talk.tcp {
            return match heard {
                [] => None,
                _ if TcpFrames(heard).any(|frame| self.answer(frame.content) != Heard::Part) => Some(Wrong::Bytes(
                    "the answer has another unit id or transaction number; `lenient_ids = true` accepts it".into(),
                )),
                _ if self.rtu(true, heard).is_some() => {
                    Some(Wrong::Bytes("the answer is an RTU frame: set `framing = \"rtu\"`".into()))
                }
                _ => Some(Wrong::Bytes(format!("no Modbus TCP answer in {}", shown(heard)))),
            };
        }
        if !talk.echo && !self.writes() && heard.starts_with(&self.bytes(talk)) {
            return Some(Wrong::Echo);
        }
        let behind = self.behind_echo(talk, heard).unwrap_or(heard);
        match behind {
            [] => None,
            _ if let Some(slave) = self.other_slave(behind) => Some(Wrong::Bytes(format!("device {slave} answered"))),
            _ => Some(Wrong::Bytes(format!("no valid answer in {}", shown(behind)))),
        }
    }

    /// The device whose answer this is, where it is another one's.
    fn other_slave(&self, heard: &[u8]) -> Option<u8> {
        let (at, _) = self.rtu(true, heard)?;
        heard.get(at).copied().filter(|slave| *slave != self.slave)
    }
}

/// What is wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// It begins with the question.
    Echo,
    /// Anything else, in words.
    Bytes(String),
}

/// The first bytes of what was heard, for people.
fn shown(heard: &[u8]) -> String {
    let first: Vec<String> = heard.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let more = if heard.len() > 16 { " …" } else { "" };
    format!("{} bytes: {}{more}", heard.len(), first.join(" "))
}

struct TcpFrame<'a> {
    number: u16,
    slave: u8,
    content: &'a [u8],
}

/// Whole frames from the start on; ends at the first that is incomplete or malformed.
struct TcpFrames<'a>(&'a [u8]);

impl<'a> Iterator for TcpFrames<'a> {
    type Item = TcpFrame<'a>;

    fn next(&mut self) -> Option<TcpFrame<'a>> {
        let [a, b, 0, 0, c, d, slave, rest @ ..] = self.0 else { return None };
        let len = usize::from(u16::from_be_bytes([*c, *d])).checked_sub(1)?;
        let content = rest.get(..len)?;
        self.0 = &rest[len..];
        Some(TcpFrame { number: u16::from_be_bytes([*a, *b]), slave: *slave, content })
    }
}

#[cfg(test)]
#[path = "modbus_tests.rs"]
mod tests;
