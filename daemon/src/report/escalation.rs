//! Escalation of one pipeline in the status document.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Map, Value, json};

use crate::{
    config::Escalate,
    flow::{
        count::Count,
        escalation::{Came, EscalationMeter, NotSent},
    },
};

/// What was sent and answered since the start, and how much of the budget is used now. Counts of 0 are left out.
pub fn escalation(rules: &Escalate, meter: &EscalationMeter) -> Value {
    let counts = |words: &[&'static str], counts: &[Count]| -> Map<String, Value> {
        let all = words.iter().zip(counts).filter(|(_, count)| count.get() > 0);
        all.map(|(word, count)| ((*word).to_owned(), count.get().into())).collect()
    };
    json!({
        "sent": meter.sent.get(), "bytes": meter.bytes.get(), "pending": meter.pending.load(Relaxed),
        "hour": meter.hour.load(Relaxed), "max_per_hour": rules.max_per_hour,
        "day_bytes": meter.day_bytes.load(Relaxed), "max_day_bytes": rules.max_day_bytes,
        "not_sent": counts(&NotSent::ALL.map(NotSent::word), &meter.not_sent),
        "answers": counts(&Came::ALL.map(Came::word), &meter.answers),
        "alarms": meter.alarms.get(),
    })
}
