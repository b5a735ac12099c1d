//! Rules for what a sensor can say: how fast a value may change, how long it may stand still. Pure; runs on the times of
//! the rows.

use crate::{config::Channel, flow::Why};

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
}
