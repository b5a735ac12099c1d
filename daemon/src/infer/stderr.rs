//! What a worker writes to its standard error: a pipe that the daemon reads when it has to do with the worker anyway. A few
//! lines an hour are logged, the rest is counted and dropped. The worker's end never blocks: what finds no room is refused, and a
//! library that complains does not hold its model up.

use std::{
    io::{ErrorKind, Read},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::{fcntl::OFlag, unistd::pipe2};

use super::channel::line;
use crate::limits;

/// The daemon's end.
#[derive(Debug)]
pub struct Stderr {
    pipe: std::fs::File,
    began: Instant,
    /// When it was read last.
    drained: Instant,
    budget: Budget,
    /// Who writes, for the log.
    name: String,
}

impl Stderr {
    /// A pipe for the worker of this name; the second end is the worker's.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(name: String) -> std::io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let now = Instant::now();
        Ok((Self { pipe: ours.into(), began: now, drained: now, budget: Budget::default(), name }, theirs))
    }

    /// The same as `drain`, once in `limits::BEAT`: for those who come by with every window.
    pub fn drain_in_turn(&mut self) {
        if self.drained.elapsed() >= limits::BEAT {
            self.drain();
        }
    }

    /// Reads what is there, a pipe's worth at most, and logs what the budget allows.
    pub fn drain(&mut self) {
        self.drained = Instant::now();
        let (mut chunk, mut left) = ([0u8; 4096], limits::WORKER_STDERR);
        while left > 0 {
            match self.pipe.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => {
                    left = left.saturating_sub(n);
                    for text in self.budget.take(&chunk[..n], self.began.elapsed()) {
                        tracing::warn!("worker of {}: {text}", self.name);
                    }
                }
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.drain();
        if let Some(text) = self.budget.end() {
            tracing::warn!("worker of {}: {text}", self.name);
        }
    }
}

/// Which of a worker's lines are logged. Pure.
#[derive(Debug, Default)]
struct Budget {
    /// The line that is not complete yet, as much of it as is logged.
    part: Vec<u8>,
    period: u64,
    lines: u32,
    /// Lines that were dropped in this period, and whether that was logged.
    dropped: u64,
    is_logged: bool,
}

impl Budget {
    /// Takes bytes; returns the lines to log.
    fn take(&mut self, bytes: &[u8], now: Duration) -> Vec<String> {
        let mut log = Vec::new();
        let period = now.as_secs() / limits::WORKER_LINES_EVERY.as_secs();
        if period != self.period {
            log.extend(self.end());
            (self.period, self.lines, self.is_logged) = (period, 0, false);
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            // A character is 4 bytes at most.
            let room = (limits::WORKER_LINE * 4).saturating_sub(self.part.len());
            self.part.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                log.extend(self.line());
            }
        }
        log
    }

    fn line(&mut self) -> Option<String> {
        let part = std::mem::take(&mut self.part);
        if part.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        if self.lines < limits::WORKER_LINES {
            self.lines += 1;
            return Some(line(String::from_utf8_lossy(&part).trim()));
        }
        self.dropped += 1;
        let first = !std::mem::replace(&mut self.is_logged, true);
        first.then(|| {
            let minutes = limits::WORKER_LINES_EVERY.as_secs() / 60;
            format!(
                "it wrote more than {} lines to its standard error within {minutes} min; the others are dropped",
                self.lines
            )
        })
    }

    /// At the end of a period or of the worker: how many were dropped.
    fn end(&mut self) -> Option<String> {
        let rest = if self.part.is_empty() { None } else { self.line() };
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 { Some(format!("{dropped} lines of its standard error were dropped")) } else { rest }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_worker_that_writes_without_end_is_logged_a_few_lines_and_counted() {
        let (mut budget, mut logged) = (Budget::default(), Vec::new());
        for i in 0..10_000 {
            logged.extend(budget.take(format!("line {i}\n").as_bytes(), Duration::ZERO));
        }
        assert_eq!(logged.len() as u32, limits::WORKER_LINES + 1, "{logged:?}");
        assert!(logged.last().expect("a line").contains("dropped"));
        let after = budget.take(b"again\n", limits::WORKER_LINES_EVERY);
        assert_eq!(
            after,
            [format!("{} lines of its standard error were dropped", 10_000 - limits::WORKER_LINES), "again".into()]
        );
    }

    #[test]
    fn a_line_without_an_end_is_cut_and_control_characters_are_replaced() {
        let mut budget = Budget::default();
        for _ in 0..1000 {
            assert!(budget.take(&[b'x'; 4096], Duration::ZERO).is_empty());
        }
        assert!(budget.part.len() <= 4 * limits::WORKER_LINE);
        assert_eq!(budget.take(b"\n", Duration::ZERO)[0].len(), limits::WORKER_LINE);
        assert_eq!(budget.take(b"a\x1b[2J\r\n", Duration::ZERO), ["a\u{fffd}[2J"]);
    }

    #[test]
    fn a_pipe_that_is_full_refuses_and_does_not_block_the_worker() {
        let (mut stderr, theirs) = Stderr::new("a test".into()).expect("pipe");
        let mut theirs = std::fs::File::from(theirs);
        let full = (0..1000).find_map(|_| theirs.write(&[b'\n'; 4096]).err()).expect("full");
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        stderr.drain();
        assert!(theirs.write(b"x").is_ok());
    }
}
