//! The only file that names a tty. One port: opened by path, exclusive, read in chunks; a hang-up closes it and it is
//! opened again with jittered backoff, for ever.

use std::{os::fd::AsRawFd, time::Duration};

use futures_util::FutureExt;
use tokio::io::AsyncReadExt;
use tokio_serial::{DataBits, FlowControl, Parity, SerialPortBuilderExt, SerialStream, StopBits};

use super::{Outlet, framing::Lines};
use crate::{
    config::{Line, Serial},
    flow::{Arrival, SourceId},
    host::sys,
    limits,
};

/// Reads the port for ever; ends only when the task is dropped.
pub async fn run(settings: Serial, outlet: Outlet) {
    let mut wait = limits::REOPEN_MIN;
    let mut said = String::new();
    loop {
        match open(&settings) {
            Ok(mut port) => {
                tracing::info!(port = settings.path, "serial port open");
                said.clear();
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "opened")).await;
                let (read, why) = stream(&mut port, &settings, &outlet).await;
                // A port that gave bytes was healthy: its next open is tried at once.
                wait = if read > 0 { limits::REOPEN_MIN } else { wait };
                tracing::warn!(port = settings.path, "serial port closed: {why}");
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "closed")).await;
            }
            Err(why) => {
                let text = format!("open serial port {}: {why}", settings.path);
                if text != said {
                    tracing::warn!("{text}");
                    said = text;
                }
            }
        }
        pause(jitter(wait), &outlet).await;
        wait = (wait * 2).min(limits::REOPEN_MAX);
    }
}

/// Half to the whole of `wait`, so that many ports do not retry in step.
fn jitter(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Waits, ticking, so that silence is seen downstream.
async fn pause(wait: Duration, outlet: &Outlet) {
    let until = tokio::time::Instant::now() + wait;
    while tokio::time::Instant::now() < until {
        let step = limits::TICK.min(until - tokio::time::Instant::now());
        tokio::time::sleep(step).await;
        outlet.send(Arrival::Tick(outlet.source, outlet.clock.now())).await;
    }
}

fn open(settings: &Serial) -> Result<SerialStream, String> {
    let Line { data, parity, stop } = settings.line;
    let builder = tokio_serial::new(&settings.path, settings.baud)
        .data_bits(match data {
            5 => DataBits::Five,
            6 => DataBits::Six,
            7 => DataBits::Seven,
            _ => DataBits::Eight,
        })
        .parity(match parity {
            b'E' => Parity::Even,
            b'O' => Parity::Odd,
            _ => Parity::None,
        })
        .stop_bits(if stop == 2 { StopBits::Two } else { StopBits::One })
        .flow_control(FlowControl::None);
    let mut port = builder.open_native_async().map_err(|why| why.to_string().to_lowercase())?;
    port.set_exclusive(true).map_err(|why| format!("take exclusively: {why}"))?;
    Ok(port)
}

/// Reads until the port hangs up or fails. Returns the bytes read and why it ended.
async fn stream(port: &mut SerialStream, settings: &Serial, outlet: &Outlet) -> (u64, String) {
    let mut lines = Lines::new(settings.frame_max);
    let mut chunk = vec![0u8; limits::READ_BYTES];
    let mut total = 0u64;
    let mut overruns = sys::tty_overruns(port.as_raw_fd());
    let mut ticks = tokio::time::interval(limits::TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            first = port.read(&mut chunk) => {
                match first.map_err(|why| why.to_string().to_lowercase()).and_then(|n| read_rest(port, &mut chunk, n)) {
                    Ok(n) => {
                        let stamp = outlet.clock.now();
                        total += n as u64;
                        outlet.send_cut(lines.feed(&chunk[..n]), stamp).await;
                    }
                    Err(why) => return (total, why),
                }
            }
            _ = ticks.tick() => {
                let stamp = outlet.clock.now();
                outlet.send(Arrival::Tick(outlet.source, stamp)).await;
                if let (Some(before), Some(now)) = (overruns, sys::tty_overruns(port.as_raw_fd())) {
                    if now > before {
                        tracing::warn!(port = settings.path, lost = now - before, "the kernel lost bytes of this port");
                        lines.reset();
                        outlet.send(Arrival::Break(SourceId(outlet.source.0), stamp, "overrun")).await;
                    }
                    overruns = Some(now);
                }
            }
        }
    }
}

/// Adds what is there beside the first `n` bytes: a tty hands out 4 KiB at a time. Nothing at all is a hang-up.
fn read_rest(port: &mut SerialStream, chunk: &mut [u8], n: usize) -> Result<usize, String> {
    if n == 0 {
        return Err("hung up".into());
    }
    let mut n = n;
    while n < chunk.len() {
        match port.read(&mut chunk[n..]).now_or_never() {
            Some(Ok(more)) if more > 0 => n += more,
            // Not now, or the port failed after these bytes: they still count, and the next read meets the failure.
            _ => break,
        }
    }
    Ok(n)
}
