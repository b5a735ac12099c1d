//! Edges and levels of GPIO lines into rows: level, counter, frequency, pulse width, position. Pure; time is the kernel's
//! own stamp of each edge. A frame is `0 bit rising t_ns` (an edge, 11 bytes) or `1 levels` (all levels, 9 bytes), least
//! significant byte first; the second kind comes with every sample, after every loss, and makes a row of all
//! channels that are not reported edge by edge. `2 levels` is the same, but edges may have been missed.

use super::row::{Refused, Row, Scales};
use crate::{
    config::{Channel, GpioLine, GpioRead},
    flow::{Quality, Stamp},
};

/// Below this a frequency is 0, Hz.
const STILL_HZ: f64 = 0.1;

/// What one line did so far.
#[derive(Debug, Clone, Default)]
struct Line {
    /// As it was sampled.
    level: bool,
    /// As its edges tell it.
    seen: Option<bool>,
    rising: u64,
    /// Of the last edge into the active level.
    rising_ns: Option<u64>,
    pulse_us: Option<f64>,
    /// `rising` at the last sample, and the edge to count from: the last one before it, else the first one behind.
    sampled: (u64, Option<u64>),
    hz: f64,
}

/// One column.
#[derive(Debug)]
struct Column {
    read: GpioRead,
    bit: usize,
    channels: Vec<usize>,
    position: i64,
}

/// The lines of one source.
#[derive(Debug)]
pub struct Edges {
    lines: Vec<Line>,
    columns: Vec<Column>,
}

impl Edges {
    /// `channels`: of the source, in the order of its rows.
    pub fn new(lines: &[GpioLine], channels: &[&Channel]) -> Self {
        let column = |line: &GpioLine| Column {
            read: line.read,
            bit: line.bit as usize,
            channels: (0..channels.len()).filter(|i| channels[*i].column == line.column).collect(),
            position: 0,
        };
        Self { lines: vec![Line::default(); 64], columns: lines.iter().map(column).collect() }
    }

    /// One frame of the source's. `false`: it makes no row.
    pub fn take(&mut self, frame: &[u8], stamp: Stamp, scales: &Scales, row: &mut Row) -> Result<bool, Refused> {
        match *frame {
            [0, bit @ 0..64, rising @ (0 | 1), a, b, c, d, e, f, g, h] => {
                let t_ns = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                Ok(self.edge(usize::from(bit), rising == 1, t_ns, scales, row))
            }
            [kind @ (1 | 2), a, b, c, d, e, f, g, h] => {
                let levels = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                self.levels(levels, kind == 1, stamp.boot_ns, scales, row);
                Ok(self.columns.iter().any(|c| c.read != GpioRead::Edges))
            }
            _ => Err(Refused::Length),
        }
    }

    fn edge(&mut self, bit: usize, rising: bool, t_ns: u64, scales: &Scales, row: &mut Row) -> bool {
        self.moved(bit, rising);
        let line = &mut self.lines[bit];
        if rising {
            if line.rising_ns.is_none() {
                line.sampled = (1, Some(t_ns));
            }
            line.rising += 1;
            line.rising_ns = Some(t_ns);
        } else if let Some(from) = line.rising_ns {
            line.pulse_us = Some(t_ns.saturating_sub(from) as f64 / 1000.0);
        }
        let mut reported = false;
        for column in self.columns.iter().filter(|c| c.read == GpioRead::Edges && c.bit == bit) {
            column.channels.iter().for_each(|channel| scales.set(row, *channel, Some(f64::from(rising))));
            reported = true;
        }
        row.t_ns = Some(t_ns as i64);
        reported
    }

    /// A line's new level: positions go on.
    fn moved(&mut self, bit: usize, level: bool) {
        for column in &mut self.columns {
            let GpioRead::Quadrature(other) = column.read else { continue };
            let (a, b) = (column.bit, other as usize);
            if bit != a && bit != b || a == b {
                continue;
            }
            let of = |line: &Line| line.seen.unwrap_or(false);
            let (was_a, was_b) = (of(&self.lines[a]), of(&self.lines[b]));
            let (now_a, now_b) = if bit == a { (level, was_b) } else { (was_a, level) };
            // The place within a period, in the order 00 10 11 01; an edge is one step either way.
            let place = |a: bool, b: bool| i64::from(a ^ b) + 2 * i64::from(b);
            column.position += match (place(now_a, now_b) - place(was_a, was_b)).rem_euclid(4) {
                1 => 1,
                3 => -1,
                _ => 0,
            };
        }
        (self.lines[bit].level, self.lines[bit].seen) = (level, Some(level));
    }

    fn levels(&mut self, levels: u64, seen: bool, now_ns: u64, scales: &Scales, row: &mut Row) {
        for (bit, line) in self.lines.iter_mut().enumerate() {
            line.level = levels >> bit & 1 == 1;
            // A sample may be newer than edges that are still to come: it does not speak for them unless some are lost.
            if !seen || line.seen.is_none() {
                line.seen = Some(line.level);
            }
            let (edges, from) = line.sampled;
            let since = (line.rising - edges) as f64;
            line.hz = match (from, line.rising_ns) {
                (Some(from), Some(to)) if line.rising > edges && to > from => since * 1e9 / (to - from) as f64,
                // No edge since: it is slower than the time that passed says.
                (_, Some(last)) if line.rising == edges => line.hz.min(1e9 / now_ns.saturating_sub(last).max(1) as f64),
                _ => 0.0,
            };
            if line.hz < STILL_HZ {
                line.hz = 0.0;
            }
            line.sampled = (line.rising, line.rising_ns);
        }
        for column in &self.columns {
            let line = &self.lines[column.bit];
            let value = match column.read {
                GpioRead::Edges => continue,
                GpioRead::Level => Some(f64::from(line.level)),
                _ if !seen => None,
                GpioRead::Counter => Some(line.rising as f64),
                GpioRead::Frequency => Some(line.hz),
                GpioRead::PulseWidth => line.pulse_us,
                GpioRead::Quadrature(_) => Some(column.position as f64),
            };
            for channel in &column.channels {
                match value {
                    Some(value) => scales.set(row, *channel, Some(value)),
                    None => row.quality[*channel] = Quality::Missing,
                }
            }
        }
    }
}
