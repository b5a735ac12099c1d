//! `[pipeline.NAME.escalate]`: which windows go to a larger model elsewhere, how many, and what its answer may do.

use super::{
    Model,
    raw::{Node, Table},
};
use crate::limits;

/// `[pipeline.NAME.escalate]`; a pipeline without this table sends no window.
#[derive(Debug, Clone, PartialEq)]
pub struct Escalate {
    /// The score is near its threshold.
    pub band: Option<Band>,
    /// The likeliest class has a probability below this, 0–1.
    pub class_below: Option<f32>,
    /// The inputs drift from the model's baseline.
    pub drift: bool,
    /// Windows in any hour.
    pub max_per_hour: u32,
    /// Bytes in any day.
    pub max_day_bytes: u64,
    /// How long after the window's last row the answer may come, ms.
    pub deadline_ms: u64,
    /// The answer raises and clears alarms; otherwise it is only published.
    pub alarms: bool,
}

/// How near to its threshold a score is unsure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Band {
    /// Within so much of it, in units of the score.
    Width(f32),
    /// Within this share of it.
    Share(f32),
}

/// Reads the table; `values`: of a window, `late_ms`: how late a window of the time grid is made.
pub(super) fn escalate(t: &mut Table<'_>, model: &Model, values: usize, late_ms: u64) -> Option<Escalate> {
    let node: Node = t.node("escalate")?;
    let mut t = t.sub("escalate".into(), node);
    let band = band(&mut t);
    let class_below = t.float("class_below").map(|p| p as f32);
    if class_below.is_some_and(|p| p <= 0.0 || p > 1.0) {
        t.problem("class_below", "must be above 0, and 1 at most: it is a probability");
    }
    let drift = t.bool("drift").unwrap_or(false);
    if !["band", "band_percent", "class_below", "drift"].iter().any(|key| t.has(key)) {
        t.problem("band", "is needed, or `band_percent`, `class_below` or `drift`: which windows are sent");
    }
    // What a bundle that is installed later names is not known here.
    if !model.file.as_os_str().is_empty() {
        let manifest = &model.manifest;
        let names = !manifest.scoring.classes.is_empty();
        if class_below.is_some() && !names {
            t.problem("class_below", "belongs to a model that names classes");
        }
        let scores = !names || manifest.scoring.score.is_some() || manifest.scoring.reconstruction.is_some();
        if band.is_some() && !scores {
            let key = if t.has("band") { "band" } else { "band_percent" };
            t.problem(key, "belongs to a model with a score; this one only names classes: use `class_below`");
        }
    }
    let max_per_hour = t.int("max_per_hour", 1..=limits::ESCALATE_PER_HOUR_MAX).unwrap_or(limits::ESCALATE_PER_HOUR);
    let max_kib_day = t.int("max_kib_day", 1..=1 << 20).unwrap_or(limits::ESCALATE_KIB_DAY);
    let most_ms = limits::ESCALATE_DEADLINE_MS_MAX;
    let deadline_ms = t.int("deadline_ms", 100..=most_ms).unwrap_or(limits::ESCALATE_DEADLINE_MS) as u64;
    if deadline_ms <= late_ms {
        let why = format!("must be above `late_ms` {late_ms}: a window is that old when it is made");
        t.problem("deadline_ms", why);
    }
    let alarms = t.word("answer", &[("publish", false), ("alarm", true)]).unwrap_or(false);
    let (bytes, max_day_bytes) = (values * 4, max_kib_day as u64 * 1024);
    if bytes > limits::ESCALATE_WINDOW_BYTES {
        let most = limits::ESCALATE_WINDOW_BYTES;
        t.problem("", format!("a window of this pipeline has {bytes} bytes; at most {most} fit a message"));
    } else if (bytes + limits::ESCALATE_HEAD_BYTES) as u64 > max_day_bytes {
        let head = limits::ESCALATE_HEAD_BYTES;
        t.problem(
            "max_kib_day",
            format!("is less than one window, {bytes} bytes and {head} of its head: none would be sent"),
        );
    }
    t.finish();
    let max_per_hour = max_per_hour as u32;
    Some(Escalate { band, class_below, drift, max_per_hour, max_day_bytes, deadline_ms, alarms })
}

fn band(t: &mut Table<'_>) -> Option<Band> {
    let (width, percent) = (t.float("band"), t.float("band_percent"));
    for (key, value) in [("band", width), ("band_percent", percent)] {
        if value.is_some_and(|value| value <= 0.0) {
            t.problem(key, "must be above 0");
        }
    }
    if width.is_some() && percent.is_some() {
        t.problem("band_percent", "does not go with `band`: one of them says how wide the band is");
    }
    width.map(|width| Band::Width(width as f32)).or(percent.map(|percent| Band::Share(percent as f32 / 100.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// A configuration whose pipeline has these keys below `escalate`, or its problems.
    fn read(pipeline: &str, keys: &str) -> Result<Escalate, String> {
        let text = format!(
            "[source.s]\npath = \"/dev/null\"\ncolumns = [\"a\"]\n[channel.a]\n\
             [pipeline.x]\nbundle = \"m\"\nchannels = [\"a\"]\n{pipeline}\n[pipeline.x.escalate]\n{keys}\n"
        );
        let config = Config::unwritten().expect("defaults").with_remote(Some(&text));
        let config = config.map_err(|all| all.iter().map(|problem| format!("{problem}\n")).collect::<String>())?;
        config.pipelines[0].escalate.clone().ok_or("none".into())
    }

    #[test]
    fn keys_have_defaults_and_without_the_table_nothing_is_escalated() {
        let rules = read("window_steps = 4", "band = 2").expect("valid");
        assert_eq!((rules.band, rules.class_below, rules.drift), (Some(Band::Width(2.0)), None, false));
        assert_eq!((rules.max_per_hour, rules.max_day_bytes), (10, 1 << 20));
        assert_eq!((rules.deadline_ms, rules.alarms), (10_000, false));
        let keys = "band_percent = 20\ndrift = true\nclass_below = 0.6\nmax_per_hour = 3\nmax_kib_day = 64\nanswer = \"alarm\"";
        let rules = read("window_steps = 4", keys).expect("valid");
        assert_eq!((rules.band, rules.class_below), (Some(Band::Share(0.2)), Some(0.6)));
        assert_eq!((rules.max_per_hour, rules.max_day_bytes, rules.alarms), (3, 65_536, true));
        let text = "[source.s]\npath = \"/dev/null\"\ncolumns = [\"a\"]\n[channel.a]\n\
                    [pipeline.x]\nbundle = \"m\"\nchannels = [\"a\"]\nwindow_steps = 4\n";
        let config = Config::unwritten().expect("defaults").with_remote(Some(text)).expect("valid");
        assert_eq!(config.pipelines[0].escalate, None);
    }

    #[test]
    fn each_wrong_key_is_named_with_its_reason() {
        for (pipeline, keys, expected) in [
            (
                "window_steps = 4",
                "max_per_hour = 3",
                "escalate.band: is needed, or `band_percent`, `class_below` or `drift`",
            ),
            ("window_steps = 4", "band = 0", "escalate.band: must be above 0"),
            ("window_steps = 4", "band = 1\nband_percent = 5", "escalate.band_percent: does not go with `band`"),
            ("window_steps = 4", "class_below = 1.5", "escalate.class_below: must be above 0, and 1 at most"),
            ("window_steps = 4", "bnad = 1", "escalate.bnad: unknown key; did you mean `band`?"),
            ("window_steps = 4", "band = 1\nmax_per_hour = 0", "escalate.max_per_hour: 0 is not within 1 to 600"),
            (
                "window_steps = 4",
                "band = 1\nanswer = \"act\"",
                "escalate.answer: `act` is invalid: expected one of `publish`, `alarm`",
            ),
            (
                "window_steps = 16000",
                "band = 1\nmax_kib_day = 8",
                "escalate.max_kib_day: is less than one window, 64000 bytes",
            ),
            (
                "window_steps = 4\nstep_ms = 100\nlate_ms = 5000",
                "band = 1\ndeadline_ms = 5000",
                "escalate.deadline_ms: must be above `late_ms` 5000",
            ),
        ] {
            let problems = read(pipeline, keys).expect_err("wrong");
            assert!(problems.contains(expected), "{expected}\n{problems}");
        }
    }
}
