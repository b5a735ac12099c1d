//! When each read is due, which devices are left in peace, and how a read that a device refuses as a whole falls apart.
//! Pure: the caller passes the time.
//!
//! - The read that is due longest is asked first, so that each comes round whatever its neighbours do.
//! - A question without an answer is repeated later and later. Where two in a row had none, the device is taken to be
//!   silent: of the reads that had no answer one is tried at a time. Its other reads are asked when they are due.
//! - A joined read that is refused (illegal address or value) is asked in two parts from then on, each of which may fall
//!   apart further; what is refused alone is a hole. If no part at all is answered, the read is joined again.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use tokio::time::Instant;

use crate::{config::Read, flow::Fault, limits};

/// What one question brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Values.
    Values,
    /// Nothing usable.
    Failed(Fault),
}

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First address.
    pub address: u16,
    /// Number of registers or bits.
    pub count: u16,
}

/// A part of a read, or all of it.
#[derive(Debug, Clone)]
struct Part {
    /// Of the read's `parts`.
    of: Range<usize>,
    /// Times in a row that it was not answered, or refused.
    failed: u32,
    /// It was the device's silence.
    silent: bool,
    not_before: Option<Instant>,
    /// What was last reported.
    said: Option<Fault>,
    /// It brought values since the read fell apart.
    worked: bool,
}

impl Part {
    fn new(of: Range<usize>) -> Self {
        Self { of, failed: 0, silent: false, not_before: None, said: None, worked: false }
    }

    fn piece(&self, read: &Read) -> Piece {
        let first = read.parts[self.of.start].0;
        let end = read.parts[self.of.clone()].iter().map(|(from, count)| u32::from(*from) + u32::from(*count)).max();
        Piece { address: first, count: (end.unwrap_or(0) - u32::from(first)) as u16 }
    }
}

struct Entry {
    due: Instant,
    every: Duration,
    asked: Option<Instant>,
    parts: Vec<Part>,
    /// It was reported that it fell apart.
    apart: bool,
}

#[derive(Default)]
struct Device {
    /// Questions in a row without an answer.
    silent: u32,
    /// Its silent reads are not asked before this.
    not_before: Option<Instant>,
}

/// The schedule of one bus.
pub struct Pace {
    reads: Vec<Read>,
    entries: Vec<Entry>,
    devices: BTreeMap<u8, Device>,
}

/// What is to be reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// This piece fails in this way.
    Fails(Piece, Fault),
    /// The same, and it is asked in two parts from now on.
    FallsApart(Piece, Fault),
    /// It failed, and is answered again.
    Again(Piece),
}

/// How long something that failed so often is left alone.
fn wait(every: Duration, failed: u32) -> Duration {
    every.saturating_mul(1 << failed.clamp(1, 16).saturating_sub(1)).min(limits::MODBUS_BACKOFF_MAX.max(every))
}

impl Pace {
    /// All are due now.
    pub fn new(reads: &[Read], now: Instant) -> Self {
        let entry = |read: &Read| Entry {
            due: now,
            every: Duration::from_millis(read.every_ms),
            asked: None,
            parts: vec![Part::new(0..read.parts.len())],
            apart: false,
        };
        Self { entries: reads.iter().map(entry).collect(), reads: reads.to_vec(), devices: BTreeMap::new() }
    }

    /// When a part of a read may be asked.
    fn allowed(&self, at: usize, part: &Part) -> Instant {
        let due = self.entries[at].due;
        let device = self.devices.get(&self.reads[at].slave).and_then(|device| device.not_before);
        [part.not_before, device.filter(|_| part.silent)].into_iter().flatten().fold(due, Instant::max)
    }

    fn read_allowed(&self, at: usize) -> Instant {
        let entry = &self.entries[at];
        entry.parts.iter().map(|part| self.allowed(at, part)).min().unwrap_or(entry.due)
    }

    /// The read that is due first, and when.
    pub fn next(&self) -> Option<(usize, Instant)> {
        let all = (0..self.entries.len()).map(|at| (self.read_allowed(at), self.entries[at].asked, at));
        all.min().map(|(due, _, at)| (at, due))
    }

    /// A read is asked now. Returns its parts that may be asked, by their number.
    pub fn begin(&mut self, at: usize, now: Instant) -> Vec<(usize, Piece)> {
        let parts = self.entries[at].parts.iter().enumerate();
        let allowed = parts.filter(|(_, part)| self.allowed(at, part) <= now);
        let pieces = allowed.map(|(i, part)| (i, part.piece(&self.reads[at]))).collect();
        // Where it was left alone, its period counts from here: two reads that disturb each other are asked apart.
        self.entries[at].due = self.read_allowed(at).min(now);
        pieces
    }

    /// What came of one part.
    pub fn took(&mut self, at: usize, part: usize, outcome: Outcome, now: Instant) -> Option<News> {
        let (every, slave) = (self.entries[at].every, self.reads[at].slave);
        let device = self.devices.entry(slave).or_default();
        let part = &mut self.entries[at].parts[part];
        let piece = part.piece(&self.reads[at]);
        let was_silent = device.silent;
        let fault = match outcome {
            Outcome::Values => {
                (part.failed, part.silent, part.not_before, part.worked) = (0, false, None, true);
                None
            }
            Outcome::Failed(fault) => {
                let silent = fault == Fault::NoAnswer;
                let refused =
                    matches!(fault, Fault::IllegalFunction | Fault::IllegalDataAddress | Fault::IllegalDataValue);
                part.failed = if silent || refused { part.failed.saturating_add(1) } else { 0 };
                part.silent = silent;
                part.not_before = (part.failed > 0).then(|| now + wait(every, part.failed));
                Some(fault)
            }
        };
        let changed = part.said != fault;
        part.said = fault;
        let (failed, whole) = (part.failed, part.of.len() == self.reads[at].parts.len());
        if fault == Some(Fault::NoAnswer) {
            device.silent = device.silent.saturating_add(1);
            let every = every.min(limits::MODBUS_BACKOFF_MAX);
            device.not_before = (device.silent > 1).then(|| now + wait(every, device.silent - 1));
        } else {
            *device = Device::default();
            if was_silent > 1 {
                self.came_back(slave);
            }
        }
        let Some(fault) = fault else { return changed.then_some(News::Again(piece)) };
        let divides = match fault {
            Fault::IllegalDataAddress | Fault::IllegalDataValue => true,
            // It answers other questions in between: some devices say nothing to an address that they do not have.
            Fault::NoAnswer => failed > 2 && failed > was_silent + 1,
            _ => false,
        };
        if !divides || !self.divide(at, piece) {
            return changed.then_some(News::Fails(piece, fault));
        }
        let first = !std::mem::replace(&mut self.entries[at].apart, true);
        (whole && first).then_some(News::FallsApart(piece, fault))
    }

    /// A device that was silent answers: its reads are asked as if nothing had been.
    fn came_back(&mut self, slave: u8) {
        for (read, entry) in self.reads.iter().zip(&mut self.entries) {
            for part in entry.parts.iter_mut().filter(|part| read.slave == slave && part.silent) {
                (part.failed, part.silent, part.not_before) = (0, false, None);
            }
        }
    }

    /// Divides the part that was refused, if it can be; its halves are asked with the next round.
    fn divide(&mut self, at: usize, piece: Piece) -> bool {
        let read = &self.reads[at];
        let parts = &mut self.entries[at].parts;
        let Some(i) = parts.iter().position(|part| part.piece(read) == piece && part.of.len() > 1) else {
            return false;
        };
        let of = parts[i].of.clone();
        let middle = of.start + of.len() / 2;
        // The second half comes behind all others, so that the numbers of the others stay.
        parts[i] = Part::new(of.start..middle);
        parts.push(Part::new(middle..of.end));
        true
    }

    /// The read was asked: when it is due again. What was missed while the bus was busy is not made up for.
    pub fn done(&mut self, at: usize, now: Instant) {
        let entry = &mut self.entries[at];
        entry.asked = Some(now);
        entry.due = (entry.due + entry.every).max(now);
        let read = &self.reads[at];
        let apart = entry.parts.len() > 1 && entry.parts.iter().all(|part| part.of.len() == 1);
        if apart && entry.parts.iter().all(|part| !part.worked && part.failed > 1) {
            // It was not the joining: the device refuses everything.
            let first = entry.parts[0].clone();
            entry.parts = vec![Part { of: 0..read.parts.len(), ..first }];
        }
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
