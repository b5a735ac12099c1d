//! Which channels drove a score: as the model says by an output of its own, else by occlusion: each channel in turn is set
//! to what is usual for it, and what is left of the score says how much it was to blame (Zeiler and Fergus 2014,
//! "Visualizing and Understanding Convolutional Networks", for images). Runs in the worker, in one ring of the doorbell, and
//! only where that takes no longer than `limits::EXPLAIN`.

use std::fmt::Write;

use crate::{
    flow::{Window, record::json_str},
    limits,
};

/// What is usual for each channel of a pipeline: a slow mean over windows without an alarm.
#[derive(Debug, Default)]
pub struct Usual(Vec<f32>);

impl Usual {
    /// Takes a window's newest row.
    pub fn take(&mut self, window: &Window, width: usize) {
        let Some(row) = window.values.len().checked_sub(width).map(|at| &window.values[at..]) else { return };
        if self.0.len() != width {
            self.0 = row.to_vec();
        }
        for (mean, x) in self.0.iter_mut().zip(row).filter(|(_, x)| x.is_finite()) {
            *mean += (x - *mean) / 256.0;
        }
    }

    /// The window with one channel as usual, for each channel; none where nothing is known of them, or where that would
    /// take too long.
    pub fn occluded(&self, window: &Window, took_us: u32) -> Vec<Box<[f32]>> {
        let width = self.0.len();
        let cost_us = u128::from(took_us) * width as u128;
        if width == 0 || width > limits::SLOTS_MAX || cost_us > limits::EXPLAIN.as_micros() {
            return Vec::new();
        }
        let as_usual = |channel: usize| {
            let mut values = window.values.clone();
            values.iter_mut().skip(channel).step_by(width).for_each(|x| *x = self.0[channel]);
            values
        };
        (0..width).map(as_usual).collect()
    }
}

/// The members of an alarm's record: by how much each channel drove the score, the largest first.
pub fn members(by: &str, mut drops: Vec<(&str, f32)>) -> String {
    drops.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut out = format!(",\"explain\":{{\"by\":\"{by}\",\"channels\":[");
    for (i, (name, drop)) in drops.iter().filter(|(_, drop)| drop.is_finite()).enumerate() {
        out.push_str(if i > 0 { ",{\"name\":" } else { "{\"name\":" });
        json_str(&mut out, name);
        let _ = write!(out, ",\"drop\":{drop}}}");
    }
    out.push_str("]}");
    out
}
