//! Whether the inputs of a model still look like what it was made with: values of 300 s are compared with the bundle's
//! baseline, channel by channel. Windows while an alarm is raised, or with flaws, are left out: they are not how the machine
//! usually is. Runs on stamps, so a replay says the same.

use std::fmt::Write;

use super::thin::Thinned;
use crate::{
    flow::{Window, record::json_str},
    limits,
    model::baseline::{Baseline, Drift, Spread},
};

/// One pipeline's inputs.
pub struct Inputs {
    channels: Vec<Column>,
    pipeline: String,
    width: usize,
    hop: usize,
    began_ns: Option<u64>,
    windows: u64,
    /// What the last stretch of time said.
    drift: Drift,
}

struct Column {
    name: String,
    baseline: Spread,
    /// Place in a row.
    at: usize,
    values: Thinned,
}

impl Inputs {
    /// For a pipeline with these channels in the model's order; `None`: the baseline says nothing of them.
    pub fn new(pipeline: &str, names: &[String], hop: usize, baseline: &Baseline) -> Option<Self> {
        let column = |(at, name): (usize, &String)| {
            let baseline = baseline.channels.get(name)?.clone();
            Some(Column { name: name.clone(), baseline, at, values: Thinned::default() })
        };
        let channels: Vec<Column> = names.iter().enumerate().filter_map(column).collect();
        let (pipeline, width) = (pipeline.to_owned(), names.len());
        (!channels.is_empty()).then_some(Self {
            channels,
            pipeline,
            width,
            hop,
            began_ns: None,
            windows: 0,
            drift: Drift::None,
        })
    }

    /// Whether at least one channel was away from the baseline in the last stretch of time.
    pub fn is_drifting(&self) -> bool {
        self.drift != Drift::None
    }

    /// Takes a window's newest rows. Returns the members of a record when a stretch of time is over.
    pub fn take(&mut self, window: &Window, alarmed: bool) -> Option<String> {
        let now_ns = window.tag.last.boot_ns;
        let began_ns = *self.began_ns.get_or_insert(now_ns);
        if !alarmed && window.tag.coverage >= 1.0 {
            let rows = window.values.len() / self.width.max(1);
            // Each row once: a window has as many new rows as it starts after the previous window.
            let fresh = if self.windows == 0 { rows } else { self.hop.min(rows) };
            for row in window.values.chunks(self.width.max(1)).skip(rows - fresh) {
                self.channels.iter_mut().for_each(|column| column.values.take(f64::from(row[column.at])));
            }
            self.windows += 1;
        }
        if now_ns.saturating_sub(began_ns) < limits::DRIFT_NS {
            return None;
        }
        self.began_ns = Some(now_ns);
        (std::mem::take(&mut self.windows) > 0).then(|| self.report())
    }

    fn report(&mut self) -> String {
        let (mut beyond, mut channels, mut n) = (0, String::new(), 0u64);
        for column in &mut self.channels {
            n = n.max(column.values.seen());
            let Some(distance) = column.baseline.distance(column.values.values()) else { continue };
            beyond += usize::from(distance > column.baseline.threshold);
            channels.push_str(if channels.is_empty() { "" } else { "," });
            json_str(&mut channels, &column.name);
            let _ = write!(channels, ":{{\"distance\":{distance},\"threshold\":{}}}", column.baseline.threshold);
            column.values = Thinned::default();
        }
        self.drift = Drift::of(beyond);
        let state = self.drift.word();
        let mut out = String::from("\"pipeline\":");
        json_str(&mut out, &self.pipeline);
        let _ = write!(out, ",\"state\":\"{state}\",\"rows\":{n},\"channels\":{{{channels}}}");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Clk, Stamp, WindowTag};

    fn window(n: u64, values: [f32; 4], coverage: f32) -> Window {
        let last = Stamp { boot_ns: n * 1_000_000_000, wall_ms: None, clk: Clk::Unset };
        let tag = WindowTag { pipeline: 0, last, in_seq: (n, n), in_t_ns: (0, 0), number: n, coverage };
        Window { tag, values: values.into() }
    }

    fn inputs() -> Inputs {
        let mut values: Vec<f64> = (0..100).map(f64::from).collect();
        let channel = Spread::of(&mut values, 0.3).expect("values");
        let channels = ["a", "b"].map(|name| (name.to_owned(), channel.clone()));
        Inputs::new("p", &["a".into(), "b".into()], 1, &Baseline { channels: channels.into(), score: None })
            .expect("inputs")
    }

    /// The last state reported in 300 s of these rows.
    fn state(row: impl Fn(u64) -> (f32, f32), alarmed: bool) -> Option<String> {
        let mut inputs = inputs();
        let reported = (0..=300).filter_map(|n| {
            let ((a, b), (c, d)) = (row(n), row(n + 1));
            inputs.take(&window(n, [a, b, c, d], 1.0), alarmed)
        });
        reported.last()
    }

    #[test]
    fn one_channel_away_is_a_sensor_two_are_drift_and_alarms_are_left_out() {
        let x = |n: u64| (n * 37 % 100) as f32;
        let word =
            |state: Option<String>, word: &str| assert!(state.as_ref().is_some_and(|t| t.contains(word)), "{state:?}");
        word(state(|n| (x(n), x(n + 50)), false), "\"none\"");
        word(state(|n| (x(n) + 60.0, x(n + 50)), false), "\"sensor_suspect\"");
        word(state(|n| (x(n) + 60.0, x(n + 50) - 60.0), false), "\"drift\"");
        assert_eq!(state(|n| (x(n) + 60.0, x(n)), true), None);
    }
}
