//! The members of an alarm's record on `up/a/NAME`. Pure; the shape is that of `docs/schema/up.a.json`.

use std::fmt::Write;

use bytes::Bytes;

use super::{
    condition::Seen,
    state::{Change, Origin},
};
use crate::{
    config::{Alarm, Condition},
    flow::{
        Phase,
        alarm::Unwatched,
        record::{json_num, json_str},
    },
};

/// What the alarm watches, by name.
pub enum Subject<'a> {
    /// A pipeline's score.
    Score,
    /// The probability of a class.
    Class(&'a str),
    /// A channel.
    Channel(&'a str),
}

/// A number of this alarm as JSON: scores are single precision, and written as such.
fn number(out: &mut String, alarm: &Alarm, value: f64) {
    match alarm.condition {
        Condition::Score { .. } | Condition::Class { .. } => {
            let _ = write!(out, "{}", value as f32);
        }
        _ => json_num(out, value),
    }
}

/// The members. `now`: the verdict that made the change, and what it was made from; `why`: with `Phase::Unknown`.
pub fn members(
    alarm: &Alarm,
    subject: &Subject<'_>,
    change: &Change,
    now: Option<&(Seen, Origin)>,
    why: Option<Unwatched>,
) -> Bytes {
    let open = &change.episode;
    let mut out = String::from("\"alarm\":");
    json_str(&mut out, &alarm.name);
    out.push_str(",\"id\":");
    json_str(&mut out, &open.id);
    let word = match change.phase {
        Phase::Raised => "raised",
        Phase::Cleared => "cleared",
        Phase::Unknown => "unknown",
    };
    let _ = write!(out, ",\"phase\":\"{word}\",\"severity\":\"{}\"", alarm.severity);
    let named = match subject {
        Subject::Score => None,
        Subject::Class(name) => Some((",\"class\":", name)),
        Subject::Channel(name) => Some((",\"channel\":", name)),
    };
    if let Some((key, name)) = named {
        out.push_str(key);
        json_str(&mut out, name);
        let _ = write!(out, ",\"condition\":\"{}\"", alarm.condition.word());
    }
    let now = now.filter(|_| change.phase != Phase::Unknown);
    if let Some((seen, _)) = now {
        out.push_str(match subject {
            Subject::Score => ",\"score\":",
            Subject::Class(_) | Subject::Channel(_) => ",\"value\":",
        });
        number(&mut out, alarm, seen.value);
    }
    if open.raised {
        out.push_str(",\"level\":");
        number(&mut out, alarm, open.level);
        out.push_str(",\"peak\":");
        number(&mut out, alarm, open.peak);
    }
    if let Some((_, at)) = now {
        let _ = write!(out, ",\"in_seq\":[{},{}],\"in_t_ns\":[{},{}]", at.seq.0, at.seq.1, at.t_ns.0, at.t_ns.1);
    }
    if let Some(why) = why.filter(|_| change.phase == Phase::Unknown) {
        let _ = write!(out, ",\"reason\":\"{}\"", why.word());
    }
    if open.raised {
        let (seq, t) = (open.in_seq, open.in_t_ns);
        let _ = write!(out, ",\"raised_seq\":[{},{}],\"raised_t_ns\":[{},{}]", seq.0, seq.1, t.0, t.1);
    }
    if alarm.latch {
        let _ = write!(out, ",\"acknowledged\":{}", open.acknowledged);
    }
    out.into()
}
