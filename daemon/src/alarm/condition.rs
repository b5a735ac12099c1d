//! Evaluates the condition of one alarm: from samples or scores to a verdict. Pure: time is the stamps' `boot_ns`.
//!
//! ```text
//! below the clearing level │ between            │ beyond the level
//! Normal                   │ Held: stays as is  │ Met
//! ```
//!
//! A sample that is not good never gives a verdict on a level: it neither raises nor clears.

use std::collections::VecDeque;

use crate::{
    config::{Clear, Condition},
    flow::{Direction, Quality, Scored, alarm::Unwatched},
    limits,
};

/// What one look at the condition found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The condition is met.
    Met,
    /// Within the hysteresis: raised stays raised, cleared stays cleared.
    Held,
    /// The condition has ended.
    Normal,
}

/// A verdict with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// The verdict.
    pub verdict: Verdict,
    /// What was compared: a value, a score, a rate per second, or seconds of silence.
    pub value: f64,
    /// What it was compared with.
    pub level: f64,
}

/// A level passed upwards. `clear` is at or below `level`.
fn upwards(value: f64, level: f64, clear: f64) -> Seen {
    let verdict = match value {
        _ if value > level => Verdict::Met,
        // Without hysteresis a value at the level is normal: `outside = [0, 1]` clears at 0.
        _ if value >= clear && clear < level => Verdict::Held,
        _ => Verdict::Normal,
    };
    Seen { verdict, value, level }
}

/// A level passed downwards. `clear` is at or above `level`.
fn downwards(value: f64, level: f64, clear: f64) -> Seen {
    Seen { value, level, ..upwards(-value, -level, -clear) }
}

/// A silence, in seconds.
fn silence(silent_ns: u64, after_ns: u64) -> Seen {
    upwards(seconds(silent_ns), seconds(after_ns), seconds(after_ns))
}

/// Where a score clears: away from the level on its good side, whatever its sign. In single precision, as scores are.
fn clearing(level: f32, clear: Clear, direction: Direction) -> f64 {
    let distance = match clear {
        Clear::Factor(factor) if level > 0.0 && direction == Direction::High => return f64::from(level * factor),
        Clear::Factor(factor) => level.abs() * (1.0 - factor),
        Clear::Difference(difference) => difference as f32,
    };
    f64::from(match direction {
        Direction::High => level - distance,
        Direction::Low => level + distance,
    })
}

/// How often samples come.
#[derive(Debug, Default)]
struct Pace {
    last_ns: Option<u64>,
    period_ns: Option<u64>,
}

impl Pace {
    fn heard(&mut self, now_ns: u64) {
        let step = self.last_ns.replace(now_ns).map_or(0, |last| now_ns.saturating_sub(last));
        if step > 0 {
            // The newest step weighs an eighth: a single pause does not count for long.
            self.period_ns = Some(self.period_ns.map_or(step, |period| period - period / 8 + step / 8));
        }
    }

    /// A silence up to this is normal, ns.
    fn patience_ns(&self, stale_ns: u64) -> u64 {
        let most = match self.period_ns {
            Some(period) => limits::LOST_NS.max(period.saturating_mul(limits::LOST_PERIODS)),
            None => limits::LOST_FIRST_NS,
        };
        most.max(stale_ns)
    }
}

/// The condition of one alarm, and what it remembers of its channel.
#[derive(Debug)]
pub struct Watch {
    condition: Condition,
    /// Which end of the score is bad.
    direction: Direction,
    /// The channel's source is stale after this, ns.
    stale_ns: u64,
    began_ns: Option<u64>,
    pace: Pace,
    good_ns: Option<u64>,
    bad_since_ns: Option<u64>,
    /// Time and value of samples of the last span, at most `limits::RATE_POINTS` and one.
    points: VecDeque<(u64, f64)>,
}

impl Watch {
    /// Nothing seen yet. `stale_ns`: `stale_ms` of the channel's source; not used for scores.
    pub fn new(condition: Condition, stale_ns: u64) -> Self {
        Self {
            condition,
            direction: Direction::High,
            stale_ns,
            began_ns: None,
            pace: Pace::default(),
            good_ns: None,
            bad_since_ns: None,
            points: VecDeque::new(),
        }
    }

    /// Whether value `a` is further beyond the level than `b`.
    pub fn is_worse(&self, a: f64, b: f64) -> bool {
        match self.condition {
            Condition::Below { .. } => a < b,
            Condition::Outside { low, high, .. } => (low - a).max(a - high) > (low - b).max(b - high),
            Condition::Score { .. } if self.direction == Direction::Low => a < b,
            _ => a > b,
        }
    }

    /// Judges what a model said of a window.
    ///
    /// # Errors
    /// Why that gives no verdict: `None` for this window alone.
    pub fn scored(&mut self, said: &Scored) -> Result<Seen, Option<Unwatched>> {
        self.direction = said.direction;
        let finite = |x: f32| if x.is_finite() { Ok(f64::from(x)) } else { Err(None) };
        match &self.condition {
            Condition::Class { class, probability, hysteresis } => {
                let is = said.classes.as_ref().and_then(|classes| classes.of(class)).ok_or(Some(Unwatched::NoClass))?;
                Ok(upwards(finite(is)?, *probability, probability - hysteresis))
            }
            Condition::Score { raise_above, clear } => {
                let both = said.score.zip(raise_above.or(said.threshold)).ok_or(Some(Unwatched::NoScore))?;
                let (value, level, clear) =
                    (finite(both.0)?, f64::from(both.1), clearing(both.1, *clear, said.direction));
                Ok(match said.direction {
                    Direction::High => upwards(value, level, clear),
                    Direction::Low => downwards(value, level, clear),
                })
            }
            _ => Err(None),
        }
    }

    /// Takes a sample of the channel; `None`: it gives no verdict.
    pub fn sample(&mut self, value: f64, quality: Quality, now_ns: u64) -> Option<Seen> {
        self.began_ns.get_or_insert(now_ns);
        if quality == Quality::Absent {
            return None;
        }
        let good = quality.is_good() && value.is_finite();
        if quality != Quality::Missing {
            self.pace.heard(now_ns);
        }
        if good {
            self.good_ns = Some(now_ns);
            self.bad_since_ns = None;
        } else {
            self.bad_since_ns.get_or_insert(now_ns);
        }
        match self.condition {
            Condition::Quality => Some(self.badness(now_ns)),
            Condition::Stale { after_ns } if quality != Quality::Missing => Some(silence(0, after_ns)),
            Condition::Stale { .. } | Condition::Score { .. } | Condition::Class { .. } => None,
            _ if !good => None,
            Condition::Above { level, hysteresis } => Some(upwards(value, level, level - hysteresis)),
            Condition::Below { level, hysteresis } => Some(downwards(value, level, level + hysteresis)),
            Condition::Outside { low, high, hysteresis } => Some(match value - low < high - value {
                true => downwards(value, low, low + hysteresis),
                false => upwards(value, high, high - hysteresis),
            }),
            Condition::Rate { level, over_ns, hysteresis } => {
                let rate = self.rate(value, over_ns, now_ns)?;
                Some(upwards(rate, level, level - hysteresis))
            }
        }
    }

    /// Time went on without a sample; `None`: time alone gives no verdict.
    #[inline(always)]
    pub fn look(&mut self, now_ns: u64) -> Option<Seen> {
        let began_ns = *self.began_ns.get_or_insert(now_ns);
        match self.condition {
            Condition::Stale { after_ns } => {
                let silent_ns = now_ns.saturating_sub(self.pace.last_ns.unwrap_or(began_ns));
                (silent_ns > after_ns).then(|| silence(silent_ns, after_ns))
            }
            Condition::Quality if self.bad_since_ns.is_some() => Some(self.badness(now_ns)),
            _ => None,
        }
    }

    /// Why the channel gives no verdict for longer than its pace explains.
    pub fn unwatched(&mut self, now_ns: u64) -> Option<Unwatched> {
        let (began_ns, most_ns) = (self.began_ns.unwrap_or(now_ns), self.pace.patience_ns(self.stale_ns));
        let over = |last_ns: Option<u64>| now_ns.saturating_sub(last_ns.unwrap_or(began_ns)) > most_ns;
        let why = match self.condition {
            Condition::Stale { .. } | Condition::Score { .. } | Condition::Class { .. } => None,
            _ if over(self.pace.last_ns) => Some(Unwatched::NoSamples),
            Condition::Quality => None,
            _ => over(self.good_ns).then_some(Unwatched::BadValues),
        };
        if why.is_some() {
            // What comes later does not join what came before.
            self.points.clear();
        }
        why
    }

    /// How long the values have been bad, in seconds; 0 and normal: the last one is good.
    fn badness(&self, now_ns: u64) -> Seen {
        let verdict = if self.bad_since_ns.is_some() { Verdict::Met } else { Verdict::Normal };
        let bad_ns = self.bad_since_ns.map_or(0, |since| now_ns.saturating_sub(since));
        Seen { verdict, value: seconds(bad_ns), level: 0.0 }
    }

    /// The mean change per second, without its sign, over the last `over_ns`; `None`: samples do not reach back so far.
    fn rate(&mut self, value: f64, over_ns: u64, now_ns: u64) -> Option<f64> {
        let part_ns = (over_ns / limits::RATE_POINTS as u64).max(1);
        // One sample of each part of the span is enough; the first of a part is kept.
        if self.points.back().is_none_or(|(at, _)| now_ns.saturating_sub(*at) >= part_ns) {
            self.points.push_back((now_ns, value));
        }
        // The newest point that is old enough stays in front.
        let old = |at: u64| now_ns.saturating_sub(at) >= over_ns;
        while self.points.get(1).is_some_and(|(at, _)| old(*at)) || self.points.len() > limits::RATE_POINTS + 2 {
            self.points.pop_front();
        }
        let (at, before) = *self.points.front().filter(|(at, _)| old(*at))?;
        Some((value - before).abs() / seconds(now_ns - at))
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Classes, Why};

    const S: u64 = 1_000_000_000;

    /// The verdicts on good values, one a second.
    fn verdicts(condition: Condition, values: &[f64]) -> Vec<Option<Verdict>> {
        let mut watch = Watch::new(condition, 0);
        let each =
            |(i, value): (usize, &f64)| watch.sample(*value, Quality::Good, i as u64 * S).map(|seen| seen.verdict);
        values.iter().enumerate().map(each).collect()
    }

    #[test]
    fn level_is_met_beyond_it_and_ends_at_the_clearing_level() {
        let (met, held, normal) = (Some(Verdict::Met), Some(Verdict::Held), Some(Verdict::Normal));
        let above = Condition::Above { level: 80.0, hysteresis: 5.0 };
        assert_eq!(verdicts(above, &[80.0, 80.1, 75.0, 74.9]), [held, met, held, normal]);
        let below = Condition::Below { level: -5.0, hysteresis: 1.0 };
        assert_eq!(verdicts(below, &[-5.0, -5.1, -4.0, -3.9]), [held, met, held, normal]);
        let outside = Condition::Outside { low: 2.0, high: 4.0, hysteresis: 0.5 };
        assert_eq!(verdicts(outside, &[1.9, 2.4, 3.0, 3.6, 4.1]), [met, held, normal, held, met]);
        let bare = Condition::Outside { low: 0.0, high: 1.0, hysteresis: 0.0 };
        assert_eq!(verdicts(bare, &[0.0, 1.0, 1.5]), [normal, normal, met], "the bounds are inside");
    }

    #[test]
    fn score_clears_below_its_share_of_the_level_for_every_sign() {
        let said =
            |score: f32, threshold, direction| Scored { score: Some(score), threshold, direction, ..Scored::default() };
        let verdict = |direction, level: f32, score: f32| {
            let condition = Condition::Score { raise_above: Some(level), clear: Clear::Factor(0.8) };
            Watch::new(condition, 0).scored(&said(score, None, direction)).map(|seen| seen.verdict)
        };
        let (high, low) = (Direction::High, Direction::Low);
        let (all, bare) =
            ([Verdict::Met, Verdict::Held, Verdict::Normal], [Verdict::Met, Verdict::Normal, Verdict::Normal]);
        assert_eq!([10.1, 8.0, 7.9].map(|x| verdict(high, 10.0, x)), all.map(Ok));
        assert_eq!([-9.9, -12.0, -12.1].map(|x| verdict(high, -10.0, x)), all.map(Ok));
        assert_eq!([0.1, 0.0, -0.1].map(|x| verdict(high, 0.0, x)), bare.map(Ok));
        assert_eq!([9.9, 12.0, 12.1].map(|x| verdict(low, 10.0, x)), all.map(Ok));
        assert_eq!([-0.2, -0.15, -0.1].map(|x| verdict(low, -0.18, x)), all.map(Ok));
        assert_eq!([-0.1, 0.0, 0.1].map(|x| verdict(low, 0.0, x)), bare.map(Ok));
        let by = Condition::Score { raise_above: Some(-10.0), clear: Clear::Difference(3.0) };
        let mut watch = Watch::new(by, 0);
        assert_eq!(watch.scored(&said(-12.9, None, high)).map(|seen| seen.verdict), Ok(Verdict::Held));
        assert_eq!(watch.scored(&said(f32::NAN, None, high)), Err(None));
        assert!(watch.is_worse(2.0, 1.0) && watch.scored(&said(-6.9, None, low)).is_ok() && watch.is_worse(1.0, 2.0));
        let mut none = Watch::new(Condition::Score { raise_above: None, clear: Clear::Factor(0.8) }, 0);
        assert_eq!(none.scored(&said(1e9, None, high)), Err(Some(Unwatched::NoScore)), "no level is known");
        assert_eq!(none.scored(&said(1e9, Some(1e8), high)).map(|seen| seen.verdict), Ok(Verdict::Met));
    }

    #[test]
    fn class_is_met_above_its_probability_and_unwatched_where_the_model_lacks_it() {
        let condition = Condition::Class { class: "wear".into(), probability: 0.75, hysteresis: 0.25 };
        let mut watch = Watch::new(condition, 0);
        let mut said = |p: f32, name: &str| {
            let names = vec!["ok".to_owned(), name.to_owned()].into();
            let classes = Some(Classes { names, probabilities: vec![1.0 - p, p] });
            watch.scored(&Scored { classes, ..Scored::default() }).map(|seen| seen.verdict)
        };
        assert_eq!([0.8, 0.5, 0.4].map(|p| said(p, "wear")), [Verdict::Met, Verdict::Held, Verdict::Normal].map(Ok));
        assert_eq!((said(0.8, "leak"), said(f32::NAN, "wear")), (Err(Some(Unwatched::NoClass)), Err(None)));
    }

    #[test]
    fn rate_is_the_mean_over_its_span_in_both_directions() {
        let rate = Condition::Rate { level: 1.0, over_ns: 10 * S, hysteresis: 0.0 };
        let mut watch = Watch::new(rate, 0);
        let mut take = |s: u64, value: f64| watch.sample(value, Quality::Good, s * S);
        assert!((0..10).all(|s| take(s, s as f64 * 5.0).is_none()), "the span is not full");
        assert_eq!(take(10, 50.0).map(|seen| (seen.verdict, seen.value)), Some((Verdict::Met, 5.0)));
        let settled = (11..21).fold(None, |_, s| take(s, 50.0));
        assert_eq!(settled.map(|seen| (seen.verdict, seen.value)), Some((Verdict::Normal, 0.0)));
        let fallen = take(21, 30.0).map(|seen| (seen.verdict, seen.value));
        assert_eq!(fallen, Some((Verdict::Met, 2.0)));
        for i in 0..100_000 {
            watch.sample(0.0, Quality::Good, 30 * S + i * S / 1000);
            assert!(watch.points.len() <= limits::RATE_POINTS + 2);
        }
    }

    #[test]
    fn channel_is_stale_after_its_time_without_a_sample_and_not_with_the_next_one() {
        let mut watch = Watch::new(Condition::Stale { after_ns: 30 * S }, 5 * S);
        assert_eq!((watch.look(S), watch.look(31 * S)), (None, None));
        let seen = watch.look(32 * S).expect("stale");
        assert_eq!((seen.verdict, seen.value, seen.level), (Verdict::Met, 31.0, 30.0), "it never came");
        let seen = watch.sample(f64::NAN, Quality::Bad(Why::NotANumber), 40 * S).expect("a sample came");
        assert_eq!(seen.verdict, Verdict::Normal, "a bad sample is a sample");
        watch.sample(f64::NAN, Quality::Missing, 60 * S);
        assert_eq!(
            watch.look(71 * S).map(|seen| seen.verdict),
            Some(Verdict::Met),
            "a missing value does not end the silence"
        );
        assert_eq!(watch.unwatched(900 * S), None);
    }

    #[test]
    fn quality_is_met_by_bad_and_missing_samples_and_a_level_by_none_of_them() {
        for quality in [Quality::Bad(Why::Range), Quality::Bad(Why::NotANumber), Quality::Missing] {
            let mut watch = Watch::new(Condition::Quality, 0);
            assert_eq!(watch.sample(1.0, Quality::Good, S).map(|seen| seen.verdict), Some(Verdict::Normal));
            assert_eq!(watch.sample(1.0, quality, 2 * S).map(|seen| seen.verdict), Some(Verdict::Met));
            assert_eq!(watch.look(4 * S).map(|seen| (seen.verdict, seen.value)), Some((Verdict::Met, 2.0)));
            let mut above = Watch::new(Condition::Above { level: 0.0, hysteresis: 0.0 }, 0);
            assert_eq!(above.sample(9e9, quality, S), None);
        }
        let mut above = Watch::new(Condition::Above { level: 0.0, hysteresis: 0.0 }, 0);
        assert_eq!(above.sample(f64::NAN, Quality::Good, S), None);
    }

    #[test]
    fn channel_without_usable_values_is_unwatched_by_its_own_pace() {
        let mut watch = Watch::new(Condition::Above { level: 0.0, hysteresis: 0.0 }, 5 * S);
        watch.look(S);
        assert_eq!((watch.unwatched(60 * S), watch.unwatched(62 * S)), (None, Some(Unwatched::NoSamples)), "none ever");
        (100..200).for_each(|s| assert!(watch.sample(1.0, Quality::Good, s * S).is_some()));
        assert_eq!((watch.unwatched(209 * S), watch.unwatched(210 * S)), (None, Some(Unwatched::NoSamples)));
        (211..240).for_each(|s| assert_eq!(watch.sample(1.0, Quality::Bad(Why::Range), s * S), None));
        assert_eq!(watch.unwatched(240 * S), Some(Unwatched::BadValues));
        // One row a minute.
        let mut slow = Watch::new(Condition::Above { level: 0.0, hysteresis: 0.0 }, 5 * S);
        (0..20).for_each(|m| assert!(slow.sample(1.0, Quality::Good, m * 60 * S).is_some()));
        assert_eq!(slow.unwatched(1200 * S), None);
    }
}
