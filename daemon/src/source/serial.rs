//! One tty: opened by path, exclusive, read in chunks; a hang-up closes it and it is
//! opened again with jittered backoff, for ever. A device that speaks only when it is asked is asked here.

use std::{
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use futures_util::FutureExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Duration, Instant},
};

use super::{
    Outlet, Reopening,
    cut::Cut,
    framing::Cutter,
    polling::{Act, Polling},
};
use crate::{
    config::{Line, Serial},
    flow::{Arrival, Fault, Stamp},
    host::{
        sys,
        tty::{self, SerialStream},
    },
    limits,
};

/// Reads the port for ever; ends only when the task is dropped.
pub(super) async fn run(settings: Serial, outlet: Outlet) {
    let mut reopening = Reopening::new(format!("serial port {}", settings.path));
    loop {
        match open(&settings) {
            Ok(port) => {
                tracing::info!(port = settings.path, "serial port open");
                reopening.opened();
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "opened")).await;
                let mut reading = Reading::new(port, &settings, &outlet);
                let why = reading.until_it_fails().await;
                if reading.total > 0 {
                    reopening.was_healthy();
                }
                tracing::warn!(port = settings.path, "serial port closed: {why}");
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "closed")).await;
            }
            Err(why) => reopening.failed(&why),
        }
        reopening.pause(&outlet).await;
    }
}

/// Opens the port alone.
pub(super) fn open(settings: &Serial) -> Result<SerialStream, String> {
    let Line { data, parity, stop } = settings.line;
    Ok(tty::open(tty::Settings { path: &settings.path, baud: settings.baud, data, parity, stop, shared: false })?)
}

/// One connection.
struct Reading<'a> {
    port: SerialStream,
    path: &'a str,
    outlet: &'a Outlet,
    cutter: Cutter,
    total: u64,
    opened: Instant,
    /// When bytes came last, while a part of a frame may wait.
    heard: Option<Instant>,
    overruns: Option<u64>,
    /// What comes may wait in the kernel without a loss; and nothing asks for an answer in a time.
    can_wait: bool,
    polling: Option<Polling<'a>>,
}

impl<'a> Reading<'a> {
    fn new(port: SerialStream, settings: &'a Serial, outlet: &'a Outlet) -> Self {
        Self {
            overruns: sys::tty_overruns(port.as_raw_fd()),
            can_wait: settings.poll.is_none() && sys::tty_waits(port.as_raw_fd()),
            port,
            path: &settings.path,
            outlet,
            cutter: Cutter::new(settings),
            total: 0,
            opened: Instant::now(),
            heard: None,
            polling: settings.poll.as_ref().map(|poll| Polling::new(poll, Instant::now())),
        }
    }

    /// Reads until the port hangs up or fails; returns why.
    async fn until_it_fails(&mut self) -> String {
        let mut chunk = vec![0u8; limits::READ_BYTES];
        let mut ticks = tokio::time::interval(limits::TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let at = self.polling.as_ref().map(Polling::next);
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let (outlet, port, waits, held) = (self.outlet, &mut self.port, self.can_wait, AtomicBool::new(false));
            let first = async {
                if waits {
                    held.store(true, Relaxed);
                    outlet.clear().await;
                    held.store(false, Relaxed);
                }
                port.read(&mut chunk).await
            };
            tokio::select! {
                biased;
                first = first => {
                    match first.map_err(|why| why.to_string().to_lowercase()).and_then(|n| self.read_rest(&mut chunk, n)) {
                        Ok(n) => self.take(&chunk[..n]).await,
                        Err(why) => {
                            let cut = self.cutter.reset();
                            self.outlet.send_cut(cut, self.outlet.clock.now()).await;
                            return why;
                        }
                    }
                }
                () = due => {
                    if let Err(why) = self.poll().await {
                        return why;
                    }
                }
                _ = ticks.tick() => self.tick(held.load(Relaxed)).await,
            }
        }
    }

    async fn take(&mut self, bytes: &[u8]) {
        let stamp = self.outlet.clock.now();
        if self.total == 0 && begins_inside(self.opened.elapsed(), self.overruns.is_some(), self.polling.is_some()) {
            let _ = self.cutter.reset();
        }
        self.total += bytes.len() as u64;
        self.heard = Some(Instant::now());
        let cut = match &mut self.polling {
            Some(polling) => self.cutter.feed(&polling.take(bytes, Instant::now())),
            None => self.cutter.feed(bytes),
        };
        self.send_cut(cut, stamp).await;
    }

    /// Sends frames on: of a polled device, those that are a response.
    async fn send_cut(&mut self, cut: Cut, stamp: Stamp) {
        let lines = matches!(self.cutter, Cutter::Lines(_));
        let (cut, unasked) = match &mut self.polling {
            Some(polling) => polling.frames(cut, lines),
            None => (cut, 0),
        };
        if unasked > 0 {
            self.outlet.fault(Fault::WrongAnswer, unasked).await;
        }
        self.outlet.send_cut(cut, stamp).await;
    }

    /// `held`: the port is not read now, so that nothing is heard of it.
    async fn tick(&mut self, held: bool) {
        let stamp = self.outlet.clock.now();
        if held {
            self.heard = self.heard.map(|_| Instant::now());
        }
        if self.heard.is_some_and(|at| at.elapsed() >= limits::FRAME_SILENCE) {
            self.heard = None;
            let cut = self.cutter.silent();
            self.send_cut(cut, stamp).await;
        }
        self.outlet.send(Arrival::Tick(self.outlet.source, stamp)).await;
        if let (Some(before), Some(now)) = (self.overruns, sys::tty_overruns(self.port.as_raw_fd())) {
            if now > before {
                tracing::warn!(port = self.path, lost = now - before, "the kernel lost bytes of this port");
                let cut = self.cutter.reset();
                self.outlet.send_cut(cut, stamp).await;
                self.outlet.send(Arrival::Break(self.outlet.source, stamp, "overrun")).await;
            }
            self.overruns = Some(now);
        }
    }

    /// Does what is due of polling. A device that takes no bytes for as long as it may take to respond has failed.
    async fn poll(&mut self) -> Result<(), String> {
        let Some(polling) = &mut self.polling else { return Ok(()) };
        let now = Instant::now();
        // What began like an echo, and was none.
        let held = if polling.is_due(now) { polling.give_back() } else { Vec::new() };
        if !held.is_empty() {
            let cut = self.cutter.feed(&held);
            self.send_cut(cut, self.outlet.clock.now()).await;
        }
        let Some(polling) = &mut self.polling else { return Ok(()) };
        let patience = polling.answer();
        match polling.act(now) {
            Act::Wait => {}
            Act::NoAnswer => self.outlet.fault(Fault::NoAnswer, 1).await,
            Act::Ask(request) => {
                if polling.is_fresh_line() {
                    self.cutter.forget();
                }
                match tokio::time::timeout(patience, self.port.write_all(request)).await {
                    Ok(written) => written.map_err(|why| format!("write: {}", why.to_string().to_lowercase()))?,
                    Err(_) => return Err("write: it takes no bytes".into()),
                }
            }
        }
        Ok(())
    }

    /// Adds what is there beside the first `n` bytes: a tty hands out 4 KiB at a time. Where the other side waits they may wait there:
    /// what is read is late from then on. Nothing at all is a hang-up.
    fn read_rest(&mut self, chunk: &mut [u8], n: usize) -> Result<usize, String> {
        if n == 0 {
            return Err("hung up".into());
        }
        let mut n = n;
        while !self.can_wait && n < chunk.len() {
            match self.port.read(&mut chunk[n..]).now_or_never() {
                Some(Ok(more)) if more > 0 => n += more,
                // Not now, or the port failed after these bytes: they still count, and the next read meets the failure.
                _ => break,
            }
        }
        Ok(n)
    }
}

/// Whether the first bytes may be the rest of a line, of which nobody could tell: `345` of `12.345` is a number too. A device that
/// talks by itself (not `polled`) was in the middle of one if no silence came before; a pseudo-terminal (not `real`) loses nothing.
fn begins_inside(since_open: Duration, real: bool, polled: bool) -> bool {
    real && !polled && since_open < limits::FRAME_SILENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_is_only_believed_after_a_silence_or_where_nothing_can_be_lost() {
        let (soon, late) = (Duration::from_millis(20), limits::FRAME_SILENCE);
        assert!(begins_inside(soon, true, false));
        assert!(!begins_inside(late, true, false));
        assert!(!begins_inside(soon, false, false));
        assert!(!begins_inside(soon, true, true));
    }
}
