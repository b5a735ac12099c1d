//! Rules for what a sensor can say: how fast a value may change, how long it may stand still, how its own sequence goes
//! on. Pure; runs on the times of the rows.

use std::collections::VecDeque;

use crate::{
    config::{Channel, Source},
    flow::Why,
    limits,
};

/// The rules of one channel.
#[derive(Debug)]
pub struct ChannelRules {
    rate_per_ns: Option<f64>,
    stuck_ns: Option<i64>,
    band: f64,
    /// The last value that could be true, and when.
    good: Option<(f64, i64)>,
    /// What it has not moved away from, and since when.
    anchor: Option<(f64, i64)>,
}

impl ChannelRules {
    /// As the channel is configured.
    pub fn new(channel: &Channel) -> Self {
        Self {
            rate_per_ns: channel.rate_max_per_s.map(|rate| rate / 1e9),
            stuck_ns: channel.stuck_ms.map(|ms| ms as i64 * 1_000_000),
            band: channel.stuck_band,
            good: None,
            anchor: None,
        }
    }

    /// A value that is good so far. What it may have become since the last one that could be true grows with the time
    /// that passed, so a spike costs one sample, and a real step is believed as soon as it was possible.
    pub fn check(&mut self, value: f64, t_ns: i64) -> Option<Why> {
        if let Some(rate) = self.rate_per_ns {
            match self.good {
                Some((last, at)) if t_ns > at => {
                    // A nanosecond's rounding is not a fault of the sensor's.
                    if (value - last).abs() > rate * (t_ns - at) as f64 * (1.0 + 1e-9) {
                        return Some(Why::Rate);
                    }
                    self.good = Some((value, t_ns));
                }
                // Rows of one read have one time where the sensor has no clock: the first of them is compared.
                Some((_, at)) if t_ns == at => {}
                _ => self.good = Some((value, t_ns)),
            }
        }
        let stuck_ns = self.stuck_ns?;
        match self.anchor {
            Some((held, since)) if (value - held).abs() <= self.band && t_ns >= since => {
                (t_ns - since >= stuck_ns).then_some(Why::Stuck)
            }
            _ => {
                self.anchor = Some((value, t_ns));
                None
            }
        }
    }
}

/// How a row follows the previous one by the sensor's own sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is the next one, or the first.
    Joins,
    /// So many are missing before it.
    Missing(u64),
    /// The same row came before.
    Duplicate,
    /// It is older than the previous row, and did not come yet; or the sensor restarted.
    Back,
}

/// The sequence of one source.
#[derive(Debug)]
pub struct Sequence {
    modulo: u64,
    /// The last number, counted on over its wraps.
    last: Option<u64>,
    /// The last rows: number and digest.
    recent: VecDeque<(u64, u64)>,
}

impl Sequence {
    /// As the source is configured.
    pub fn new(source: &Source) -> Self {
        Self { modulo: source.seq_modulo, last: None, recent: VecDeque::with_capacity(limits::ROWS_KNOWN) }
    }

    /// A row with this number and content. Returns the number counted on over its wraps.
    pub fn step(&mut self, raw: u64, values: &[f64], t_ns: Option<i64>) -> (u64, Step) {
        let seq = self.unwrapped(raw);
        let digest = digest(values, t_ns);
        let step = match self.last {
            None => Step::Joins,
            Some(last) if seq == last.wrapping_add(1) => Step::Joins,
            Some(last) if seq > last => Step::Missing(seq - last - 1),
            Some(_) if self.recent.contains(&(seq, digest)) => return (seq, Step::Duplicate),
            Some(_) => Step::Back,
        };
        self.last = Some(seq);
        if self.recent.len() == limits::ROWS_KNOWN {
            self.recent.pop_front();
        }
        self.recent.push_back((seq, digest));
        (seq, step)
    }

    /// A number that wraps, as one that does not: forward by less than half a turn, else backward.
    fn unwrapped(&self, raw: u64) -> u64 {
        let (modulo, Some(last)) = (self.modulo, self.last) else { return raw };
        if modulo == 0 {
            return raw;
        }
        let ahead = (raw % modulo + modulo - last % modulo) % modulo;
        if ahead <= modulo / 2 { last.saturating_add(ahead) } else { last.saturating_sub(modulo - ahead) }
    }
}

/// A digest to tell a repeat from another row with the same number; not for strangers.
fn digest(values: &[f64], t_ns: Option<i64>) -> u64 {
    let start = t_ns.unwrap_or(0) as u64 ^ 0x9E37_79B9_7F4A_7C15;
    values.iter().fold(start, |sum, value| (sum ^ value.to_bits()).wrapping_mul(0x100_0000_01B3).rotate_left(23))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::SourceId;

    fn rules(rate: Option<f64>, stuck_ms: Option<u64>, band: f64) -> ChannelRules {
        let channel = Channel {
            name: "a".into(),
            source: SourceId(0),
            column: "a".into(),
            unit: String::new(),
            scale: 1.0,
            offset: 0.0,
            min: None,
            max: None,
            rate_max_per_s: rate,
            stuck_ms,
            stuck_band: band,
            numbers: crate::config::NumberText::default(),
        };
        ChannelRules::new(&channel)
    }

    const S: i64 = 1_000_000_000;

    #[test]
    fn a_spike_costs_one_sample_and_a_step_is_believed_when_it_was_possible() {
        let mut r = rules(Some(2.0), None, 0.0);
        let rows = [(0, 10.0), (1, 11.9), (2, 500.0), (3, 12.0), (4, 20.0), (5, 20.0), (6, 20.0), (7, 20.0), (8, 20.0)];
        let got: Vec<_> = rows.map(|(t, v)| r.check(v, t * S)).to_vec();
        let rate = Some(Why::Rate);
        assert_eq!(got, [None, None, rate, None, rate, rate, rate, None, None]);
        assert_eq!(r.check(900.0, 8 * S), None, "rows of one time are not compared with one another");
        assert_eq!(r.check(21.0, 9 * S), None);
    }

    #[test]
    fn a_value_that_stands_still_for_too_long_is_stuck_until_it_moves() {
        let mut r = rules(None, Some(2000), 0.5);
        let rows = [(0, 1.0), (1, 1.4), (2, 0.6), (3, 1.0), (4, 1.6), (5, 1.6), (6, 1.6)];
        let got: Vec<_> = rows.map(|(t, v)| r.check(v, t * S)).to_vec();
        assert_eq!(got, [None, None, Some(Why::Stuck), Some(Why::Stuck), None, None, Some(Why::Stuck)]);
    }

    #[test]
    fn a_sequence_shows_gaps_repeats_and_steps_back_also_over_its_wrap() {
        let of = |modulo| Sequence { modulo, last: None, recent: VecDeque::new() };
        let mut s = of(0);
        let mut step = |raw, value| s.step(raw, &[value], None);
        assert_eq!(step(7, 0.0), (7, Step::Joins));
        assert_eq!(step(8, 1.0), (8, Step::Joins));
        assert_eq!(step(8, 1.0), (8, Step::Duplicate));
        assert_eq!(step(11, 2.0), (11, Step::Missing(2)));
        assert_eq!(step(9, 3.0), (9, Step::Back));
        assert_eq!(step(10, 4.0), (10, Step::Joins));
        assert_eq!(step(7, 9.0), (7, Step::Back), "the same number with another content is no repeat");
        let mut s = of(256);
        let got: Vec<_> = [254, 255, 0, 1, 4, 3].map(|raw| s.step(raw, &[f64::from(raw as u32)], None)).to_vec();
        let numbers: Vec<u64> = got.iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [254, 255, 256, 257, 260, 259]);
        assert_eq!(got[4].1, Step::Missing(2));
        assert_eq!(got[5].1, Step::Back);
    }
}
