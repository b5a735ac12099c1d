//! The arguments of `feedback`, `samples.pull` and `tape.pull`. Pure.

use serde::Deserialize;

use super::{
    args::{Args, parse},
    refusal::{Refusal, malformed, time_ms},
};
use crate::{
    flow::{
        Kept,
        samples::{About, Ask, Feedback, Filter, Label, Wanted},
    },
    limits,
};

/// Arguments of `samples.pull`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamplesPull(pub(super) Ask);

/// Arguments of `tape.pull`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapePull(pub(super) Ask);

impl Args for Feedback {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            alarm: Option<String>,
            id: Option<String>,
            window: Option<String>,
            label: Label,
            by: Option<String>,
            note: Option<String>,
        }
        let Raw { alarm, id, window, label, by, note } = parse(text)?;
        let about = match (alarm, window) {
            (Some(alarm), None) => About::Alarm(alarm, id),
            (None, Some(window)) if id.is_none() => About::Window(digest(&window)?),
            _ => return Err(malformed("args: either `alarm`, with or without `id`, or `window`")),
        };
        if let Label::Class(class) = &label {
            is_text("label", class, limits::LABEL_TEXT)?;
        }
        for (key, text, most) in [("by", &by, limits::LABEL_TEXT), ("note", &note, limits::LABEL_NOTE)] {
            text.as_ref().map_or(Ok(()), |text| is_text(key, text, most))?;
        }
        Ok(Self { about, label, by, note })
    }
}

impl Args for SamplesPull {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            pipeline: Option<String>,
            class: Option<String>,
            labelled: Option<bool>,
            since: Option<String>,
            until: Option<String>,
            kib_s: Option<u64>,
            max_kib: Option<u64>,
            cancel: Option<bool>,
        }
        let raw: Raw = parse(text)?;
        if raw.cancel == Some(true) {
            return Ok(Self(Ask::Cancel));
        }
        let class = raw.class.as_deref().map(|word| {
            let words = Kept::ALL.map(Kept::word).join("`, `");
            Kept::of(word).ok_or_else(|| malformed(format!("args: invalid class `{word}`: expected one of `{words}`")))
        });
        let time = |text: Option<String>| text.as_deref().map(time_ms).transpose();
        let filter = Filter {
            pipeline: raw.pipeline,
            class: class.transpose()?,
            labelled: raw.labelled.unwrap_or(false),
            since_ms: time(raw.since)?,
            until_ms: time(raw.until)?,
        };
        pull(Wanted::Samples(filter), raw.kib_s, raw.max_kib).map(Self)
    }
}

impl Args for TapePull {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            tape: Option<String>,
            alarm: Option<String>,
            kib_s: Option<u64>,
            max_kib: Option<u64>,
        }
        let Raw { tape, alarm, kib_s, max_kib } = parse(text)?;
        pull(Wanted::Tape { name: tape, alarm }, kib_s, max_kib).map(Self)
    }
}

fn pull(wanted: Wanted, kib_s: Option<u64>, max_kib: Option<u64>) -> Result<Ask, Refusal> {
    let bound = |key: &str, kib: Option<u64>, most: u64| match kib {
        Some(n) if !(1..=most).contains(&n) => Err(malformed(format!("args: {key} is not within 1 to {most}"))),
        kib => Ok(kib.map(|kib| kib << 10)),
    };
    Ok(Ask::Pull { wanted, bytes_s: bound("kib_s", kib_s, 1024)?, most: bound("max_kib", max_kib, 1 << 20)? })
}

/// The digits of `sha256:…`.
fn digest(text: &str) -> Result<String, Refusal> {
    let hex = text.strip_prefix("sha256:").unwrap_or("");
    if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(malformed("args: window is `sha256:` with 64 of 0-9 a-f, as `win` of a prediction"));
    }
    Ok(hex.to_owned())
}

fn is_text(key: &str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.is_empty() || text.chars().count() > most || text.chars().any(char::is_control) {
        return Err(malformed(format!("args: {key} has 1 to {most} printable characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::control::refusal::Why;

    fn feedback(args: &Value) -> Result<Feedback, Refusal> {
        Feedback::read(&args.to_string())
    }

    #[test]
    fn feedback_is_about_an_alarm_or_a_window_and_its_label_is_a_truth_or_a_class() {
        let win = format!("sha256:{}", "0a".repeat(32));
        let read = feedback(&json!({"window": win, "label": "cavitation", "by": "ana", "note": "heard it"}));
        let read = read.expect("valid");
        assert_eq!((read.about, read.label), (About::Window("0a".repeat(32)), Label::Class("cavitation".into())));
        let read = feedback(&json!({"alarm": "high", "id": "b-1", "label": false})).expect("valid");
        assert_eq!((read.about, read.label), (About::Alarm("high".into(), Some("b-1".into())), Label::Truth(false)));
        for wrong in [
            json!({"alarm": "high"}),
            json!({"label": true}),
            json!({"alarm": "high", "window": win, "label": true}),
            json!({"window": win, "id": "b-1", "label": true}),
            json!({"window": "0a".repeat(32), "label": true}),
            json!({"alarm": "high", "label": 1}),
            json!({"alarm": "high", "label": ""}),
            json!({"alarm": "high", "label": "a\nb"}),
            json!({"alarm": "high", "label": true, "by": "x".repeat(65)}),
            json!({"alarm": "high", "label": true, "sure": true}),
        ] {
            assert!(feedback(&wrong).is_err_and(|refused| refused.0 == Why::Malformed), "{wrong}");
        }
    }

    #[test]
    fn pulls_have_bounds_and_times_in_utc() {
        let samples = |args: Value| SamplesPull::read(&args.to_string());
        let all = samples(
            json!({"class": "alarm", "labelled": true, "since": "2026-01-01T00:00:00Z", "kib_s": 4, "max_kib": 64}),
        );
        let Ok(SamplesPull(Ask::Pull { wanted: Wanted::Samples(filter), bytes_s, most })) = all else {
            panic!("valid")
        };
        assert_eq!(
            (filter.class, filter.labelled, filter.since_ms),
            (Some(Kept::Alarm), true, Some(1_767_225_600_000))
        );
        assert_eq!((bytes_s, most), (Some(4096), Some(65_536)));
        assert_eq!(samples(json!({"cancel": true})), Ok(SamplesPull(Ask::Cancel)));
        for wrong in [
            json!({"class": "all"}),
            json!({"kib_s": 0}),
            json!({"kib_s": 1025}),
            json!({"max_kib": 0}),
            json!({"since": "now"}),
        ] {
            assert!(samples(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(
            TapePull::read("{\"tape\":\"a.tape\",\"alarm\":\"high\"}").is_ok() && TapePull::read("{\"x\":1}").is_err()
        );
    }
}
