//! Edges and levels of GPIO lines, as frames (`signal/edges.rs` has their form). Levels are read at every sample, so that
//! a lost edge is never more than a sample old; a line that storms is only sampled for a while.

use std::time::Duration;

use tokio::{io::unix::AsyncFd, time::Instant};

use super::{Outlet, Reopening, cut::Cut};
use crate::{
    config::{Bias, Gpio, Pin, PinName},
    flow::{Arrival, Fault},
    host::{
        Clock,
        gpiochip::{Chip, EDGE_BYTES, Edge, Input, Inputs, Pull},
    },
    limits,
};

/// Reads for ever; ends only when the task is dropped.
pub(super) async fn run(settings: Gpio, outlet: Outlet) {
    let mut reopening = Reopening::new(format!("GPIO chip {}", settings.chip));
    loop {
        match open(&settings) {
            Ok((inputs, offsets)) => {
                tracing::info!(chip = settings.chip, "GPIO lines open");
                reopening.opened();
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "opened")).await;
                let mut reading = Reading::new(inputs, offsets, &settings, &outlet);
                let why = reading.until_it_fails().await;
                if reading.samples > 0 {
                    reopening.was_healthy();
                }
                tracing::warn!(chip = settings.chip, "GPIO lines closed: {why}");
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "closed")).await;
            }
            Err(why) => reopening.failed(&why),
        }
        reopening.pause(&outlet).await;
    }
}

#[expect(deprecated, reason = "its successor is unsafe for the sake of handles that change; this one never does")]
fn open(settings: &Gpio) -> Result<(AsyncFd<Inputs>, Vec<u32>), String> {
    let chip = Chip::open(&settings.chip)?;
    let input = |pin: &Pin| {
        let offset = match &pin.line {
            PinName::Offset(offset) => *offset,
            PinName::Name(name) => chip.offset(name)?,
        };
        let pull = match pin.bias {
            Bias::AsIs => None,
            Bias::Up => Some(Pull::Up),
            Bias::Down => Some(Pull::Down),
            Bias::Off => Some(Pull::Off),
        };
        let (active_low, debounce_us, edges) = (pin.active_low, pin.debounce_us, pin.edges);
        Ok(Input { offset, active_low, pull, debounce_us, edges })
    };
    let inputs: Vec<Input> = settings.lines.iter().map(input).collect::<Result<_, String>>()?;
    let offsets = inputs.iter().map(|input| input.offset).collect();
    let inputs = chip.inputs(&inputs, limits::GPIO_EDGES)?;
    Ok((AsyncFd::new(inputs).map_err(|why| why.to_string().to_lowercase())?, offsets))
}

/// What is known of one line.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    seqno: Option<u32>,
    /// Edges in the second that began then, on the kernel's clock.
    second: (u64, u32),
}

/// One opening of the lines.
struct Reading<'a> {
    inputs: AsyncFd<Inputs>,
    offsets: Vec<u32>,
    settings: &'a Gpio,
    outlet: &'a Outlet,
    lines: Vec<Line>,
    /// As the edges tell them, where the kernel cannot be asked.
    levels: u64,
    /// Edges are not looked at until then.
    calm_at: Option<Instant>,
    samples: u64,
}

impl<'a> Reading<'a> {
    fn new(inputs: AsyncFd<Inputs>, offsets: Vec<u32>, settings: &'a Gpio, outlet: &'a Outlet) -> Self {
        let lines = vec![Line::default(); offsets.len()];
        Self { inputs, offsets, settings, outlet, lines, levels: 0, calm_at: None, samples: 0 }
    }

    async fn until_it_fails(&mut self) -> String {
        let mut samples = tokio::time::interval(Duration::from_millis(self.settings.sample_ms));
        samples.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut ticks = tokio::time::interval(limits::TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut chunk = vec![0u8; EDGE_BYTES * limits::GPIO_READ];
        loop {
            let done = tokio::select! {
                biased;
                _ = samples.tick() => self.sample().await,
                _ = ticks.tick() => {
                    self.outlet.send(Arrival::Tick(self.outlet.source, self.outlet.clock.now())).await;
                    Ok(())
                }
                ready = self.inputs.readable() => match ready {
                    Ok(mut ready) => match ready.try_io(|inputs| inputs.get_ref().read(&mut chunk)) {
                        Ok(Ok(0)) => Err("it is gone".into()),
                        Ok(Ok(n)) => {
                            drop(ready);
                            self.edges(&chunk[..n]).await
                        }
                        Ok(Err(why)) => Err(why.to_string().to_lowercase()),
                        Err(_) => Ok(()),
                    },
                    Err(why) => Err(why.to_string().to_lowercase()),
                },
            };
            if let Err(why) = done {
                return why;
            }
        }
    }

    /// All levels, and the end of a storm.
    async fn sample(&mut self) -> Result<(), String> {
        if self.calm_at.is_some_and(|at| Instant::now() >= at) {
            self.calm_at = None;
            self.lines.fill(Line::default());
            self.inputs.get_ref().set_edges(true)?;
            tracing::info!(chip = self.settings.chip, "edges are looked at again");
        }
        self.samples += 1;
        let kind = if self.calm_at.is_some() { 2 } else { 1 };
        let frame = self.level_frame(kind)?;
        self.outlet.send_frame(frame).await;
        Ok(())
    }

    fn level_frame(&mut self, kind: u8) -> Result<Vec<u8>, String> {
        self.levels = self.inputs.get_ref().levels()?.unwrap_or(self.levels);
        let mut frame = vec![kind];
        frame.extend(self.levels.to_le_bytes());
        Ok(frame)
    }

    /// What one read brought.
    async fn edges(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.calm_at.is_some() {
            return Ok(());
        }
        let stamp = self.outlet.clock.now();
        // The kernel stamps edges on a clock that stands still in suspend; ours does not.
        let ahead_ns = Clock::boot_ns().saturating_sub(Clock::monotonic_ns());
        let (mut frames, mut ranges, mut lost, mut storm) = (Vec::new(), Vec::new(), 0u32, None);
        for edge in bytes.as_chunks::<EDGE_BYTES>().0.iter().map(Edge::parse) {
            let Some(bit) = self.offsets.iter().position(|offset| *offset == edge.offset) else { continue };
            let line = &mut self.lines[bit];
            if let Some(last) = line.seqno.replace(edge.line_seqno) {
                lost = lost.saturating_add(edge.line_seqno.wrapping_sub(last).saturating_sub(1));
            }
            if edge.at_ns.saturating_sub(line.second.0) >= 1_000_000_000 {
                line.second = (edge.at_ns, 0);
            }
            line.second.1 += 1;
            if line.second.1 > self.settings.storm_hz {
                storm = Some(bit);
            }
            self.levels = self.levels & !(1 << bit) | u64::from(edge.rising) << bit;
            let from = frames.len() as u32;
            frames.extend([0, bit as u8, u8::from(edge.rising)]);
            frames.extend((edge.at_ns + ahead_ns).to_le_bytes());
            ranges.push((from, frames.len() as u32));
        }
        self.outlet.send_cut(Cut { bytes: frames.into(), ranges }, stamp).await;
        if lost > 0 {
            tracing::warn!(chip = self.settings.chip, lost, "the kernel lost edges");
            self.outlet.fault(Fault::LostEdges, lost).await;
            let frame = self.level_frame(2)?;
            self.outlet.send_frame(frame).await;
        }
        if let Some(bit) = storm {
            let line = &self.settings.lines[bit].line;
            tracing::warn!(
                chip = self.settings.chip,
                "more than {} edges a second on line {line}: edges are ignored for a while, levels are still sampled",
                self.settings.storm_hz
            );
            self.outlet.fault(Fault::Storm, 1).await;
            self.inputs.get_ref().set_edges(false)?;
            self.calm_at = Some(Instant::now() + limits::GPIO_CALM);
        }
        Ok(())
    }
}
