//! Alarms: raise, clear with hysteresis, hold-off. Pure; time is the windows' stamps.

use std::fmt::Write;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    config,
    flow::{
        Direction, Phase, Scored, WindowTag,
        record::{json_num, json_str},
    },
};

/// An alarm that is raised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Raised {
    /// Names this episode: boot and the moment it was raised.
    pub id: String,
    /// Level that was passed.
    pub level: f32,
    /// Highest score so far.
    pub peak: f32,
    /// First and last sensor sequence of the window that raised it.
    pub in_seq: (u64, u64),
    /// First and last sensor time of that window, ns.
    pub in_t_ns: (i64, i64),
    /// It was reported that nothing looks at it.
    #[serde(default)]
    pub unknown: bool,
}

/// One alarm's state.
#[derive(Debug)]
pub struct Alarm {
    config: config::Alarm,
    boot: String,
    raised: Option<Raised>,
    above: u32,
    changed_ns: Option<u64>,
}

/// A change of the alarm's state, to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What it is now.
    pub phase: Phase,
    /// The record's members.
    pub body: Bytes,
}

impl Alarm {
    /// Not raised, or still raised since before the restart.
    pub fn new(config: config::Alarm, boot: &str, raised: Option<Raised>) -> Self {
        Self { config, boot: boot.to_owned(), raised, above: 0, changed_ns: None }
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What must be kept across a restart.
    pub fn raised(&self) -> Option<&Raised> {
        self.raised.as_ref()
    }

    /// Takes what a model said of a window.
    pub fn step(&mut self, said: &Scored, tag: &WindowTag) -> Option<Change> {
        let (score, direction) = (said.score?, said.direction);
        let level = self.config.raise_above.or(said.threshold)?;
        let now = tag.last.boot_ns;
        let held_off = self.changed_ns.is_some_and(|at| now.saturating_sub(at) < self.config.hold_off_ms * 1_000_000);
        self.above = if direction.is_beyond(score, level) { self.above.saturating_add(1) } else { 0 };
        let phase = match &mut self.raised {
            None if self.above >= self.config.raise_windows && !held_off => {
                let id = format!("{}-{now}", self.boot);
                self.raised =
                    Some(Raised { id, level, peak: score, in_seq: tag.in_seq, in_t_ns: tag.in_t_ns, unknown: false });
                Phase::Raised
            }
            None => return None,
            Some(raised) => {
                raised.peak = direction.worse(raised.peak, score);
                let clear = clears_at(level, self.config.clear_factor, direction);
                let still = !direction.is_beyond(clear, score) || held_off;
                match (still, std::mem::take(&mut raised.unknown)) {
                    (false, _) => Phase::Cleared,
                    // The same episode goes on.
                    (true, true) => Phase::Raised,
                    (true, false) => return None,
                }
            }
        };
        self.changed_ns = Some(now);
        let body = self.body(phase, Some((score, tag)), "");
        if phase == Phase::Cleared {
            self.raised = None;
        }
        Some(Change { phase, body })
    }

    /// Nothing looks at it any more, for this reason: what was raised must not look as if it were current.
    pub fn unwatched(&mut self, reason: &str) -> Option<Change> {
        let raised = self.raised.as_mut().filter(|raised| !raised.unknown)?;
        raised.unknown = true;
        Some(Change { phase: Phase::Unknown, body: self.body(Phase::Unknown, None, reason) })
    }

    fn body(&self, phase: Phase, window: Option<(f32, &WindowTag)>, reason: &str) -> Bytes {
        let Some(raised) = &self.raised else {
            return Bytes::new();
        };
        let mut out = String::from("\"alarm\":");
        json_str(&mut out, &self.config.name);
        out.push_str(",\"id\":");
        json_str(&mut out, &raised.id);
        let word = match phase {
            Phase::Raised => "raised",
            Phase::Cleared => "cleared",
            Phase::Unknown => "unknown",
        };
        let _ = write!(out, ",\"phase\":\"{word}\",\"severity\":\"{}\"", self.config.severity);
        if let Some((score, _)) = window {
            out.push_str(",\"score\":");
            json_num(&mut out, f64::from(score));
        }
        let _ = write!(out, ",\"level\":{},\"peak\":{}", raised.level, raised.peak);
        if let Some((_, tag)) = window {
            let (seq, t) = (tag.in_seq, tag.in_t_ns);
            let _ = write!(out, ",\"in_seq\":[{},{}],\"in_t_ns\":[{},{}]", seq.0, seq.1, t.0, t.1);
        }
        if !reason.is_empty() {
            let _ = write!(out, ",\"reason\":\"{reason}\"");
        }
        let (seq, t) = (raised.in_seq, raised.in_t_ns);
        let _ = write!(out, ",\"raised_seq\":[{},{}],\"raised_t_ns\":[{},{}]", seq.0, seq.1, t.0, t.1);
        out.into()
    }
}

/// Where an alarm clears: a share of the level away from it, on its good side, whatever its sign.
fn clears_at(level: f32, factor: f32, direction: Direction) -> f32 {
    match direction {
        Direction::High if level > 0.0 => level * factor,
        Direction::High => level - level.abs() * (1.0 - factor),
        Direction::Low => level + level.abs() * (1.0 - factor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Clk, Stamp};

    fn said(score: f32) -> Scored {
        Scored { score: Some(score), threshold: Some(10.0), ..Scored::default() }
    }

    fn run(config: config::Alarm, scores: &[f32]) -> Vec<(usize, Phase)> {
        let mut alarm = Alarm::new(config, "b", None);
        let step = |(i, score): (usize, &f32)| {
            let last = Stamp { boot_ns: i as u64 * 1_000_000_000, wall_ms: None, clk: Clk::Unset };
            let tag = WindowTag { pipeline: 0, last, in_seq: (0, i as u64), in_t_ns: (0, i as i64), coverage: 1.0 };
            alarm.step(&said(*score), &tag).map(|change| (i, change.phase))
        };
        scores.iter().enumerate().filter_map(step).collect()
    }

    fn config(raise_windows: u32, hold_off_ms: u64) -> config::Alarm {
        config::Alarm {
            name: "a".into(),
            pipeline: 0,
            severity: "warning",
            raise_above: None,
            clear_factor: 0.6,
            raise_windows,
            hold_off_ms,
            tape: false,
        }
    }

    #[test]
    fn it_clears_below_its_hysteresis_only() {
        let got = run(config(1, 0), &[9.0, 11.0, 9.0, 6.0, 11.0, 5.9, 9.0, 10.5]);
        assert_eq!(got, [(1, Phase::Raised), (5, Phase::Cleared), (7, Phase::Raised)]);
    }

    #[test]
    fn low_score_raises_and_it_clears_above_the_level_also_below_0() {
        let mut alarm = Alarm::new(config(1, 0), "b", None);
        let mut got = Vec::new();
        for (i, score) in [0.1, -0.1, -0.2, -0.3, -0.15, -0.1, 0.0].into_iter().enumerate() {
            let last = Stamp { boot_ns: i as u64, wall_ms: None, clk: Clk::Unset };
            let tag = WindowTag { pipeline: 0, last, in_seq: (0, 0), in_t_ns: (0, 0), coverage: 1.0 };
            let said = Scored { score: Some(score), threshold: Some(-0.18), direction: Direction::Low, classes: None };
            got.extend(alarm.step(&said, &tag).map(|change| (i, change.phase)));
        }
        // clear_factor 0.6: it clears above -0.18 + 0.072.
        assert_eq!(got, [(2, Phase::Raised), (5, Phase::Cleared)]);
    }

    #[test]
    fn hold_off_delays_a_change_and_loses_none() {
        let got = run(config(1, 3000), &[11.0, 1.0, 1.0, 1.0, 11.0, 11.0, 11.0, 11.0]);
        assert_eq!(got, [(0, Phase::Raised), (3, Phase::Cleared), (6, Phase::Raised)]);
    }

    #[test]
    fn raised_alarm_that_nothing_looks_at_is_unknown_once_and_goes_on_with_the_next_score() {
        let window = |i: u64| {
            let last = Stamp { boot_ns: i * 1_000_000_000, wall_ms: None, clk: Clk::Unset };
            WindowTag { pipeline: 0, last, in_seq: (0, i), in_t_ns: (0, i as i64), coverage: 1.0 }
        };
        let mut alarm = Alarm::new(config(1, 0), "b", None);
        assert_eq!(alarm.unwatched("learning"), None, "one that is not raised is known");
        alarm.step(&said(11.0), &window(1)).expect("raised");
        let id = alarm.raised().expect("raised").id.clone();
        let change = alarm.unwatched("model_not_serving").expect("unknown");
        let body = String::from_utf8(change.body.to_vec()).expect("text");
        assert!(change.phase == Phase::Unknown && body.contains("\"reason\":\"model_not_serving\""), "{body}");
        assert!(body.contains(&id) && !body.contains("score"), "{body}");
        assert_eq!(alarm.unwatched("model_not_serving"), None, "it is reported once");
        // Also over a restart.
        let saved = serde_json::to_vec(alarm.raised().expect("raised")).expect("saved");
        let mut alarm = Alarm::new(config(1, 0), "c", serde_json::from_slice(&saved).expect("read"));
        let again = alarm.step(&said(9.0), &window(2)).expect("the same episode");
        assert!(again.phase == Phase::Raised && alarm.raised().is_some_and(|raised| raised.id == id));
        assert_eq!(alarm.step(&said(9.0), &window(3)), None);
        alarm.unwatched("learning").expect("unknown");
        assert_eq!(alarm.step(&said(1.0), &window(4)).map(|change| change.phase), Some(Phase::Cleared));
    }

    #[test]
    fn several_windows_in_a_row_may_be_asked_for() {
        assert_eq!(run(config(3, 0), &[11.0, 11.0, 9.0, 11.0, 11.0, 11.0]), [(5, Phase::Raised)]);
    }
}
