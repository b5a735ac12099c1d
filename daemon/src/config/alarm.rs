//! `[alarm.NAME]`: what an alarm watches, its one condition, and when it is raised and cleared.

use std::collections::BTreeMap;

use super::{
    Channel, Pipeline,
    names::Names,
    problem::{instead, nearest},
    raw::Table,
};
use crate::model::scoring::Scoring;

/// `[alarm.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    /// Name; published under `up/a/NAME`.
    pub name: String,
    /// What it watches.
    pub watches: Watches,
    /// When it is to be raised.
    pub condition: Condition,
    /// `info`, `warning` or `critical`.
    pub severity: &'static str,
    /// How long the condition must be met.
    pub after: After,
    /// Hold-off after a change, ms.
    pub hold_off_ms: u64,
    /// Stays raised until it is acknowledged.
    pub latch: bool,
    /// Saves a tape of the sources before and after the alarm.
    pub tape: bool,
}

/// What an alarm watches, by place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watches {
    /// Samples of a channel.
    Channel(usize),
    /// The score of a pipeline.
    Pipeline(usize),
}

/// The condition of an alarm. Levels are in the channel's unit; `hysteresis` is the distance from a level at which it ends.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// The value is above a level.
    Above {
        /// The level.
        level: f64,
        /// See `Condition`.
        hysteresis: f64,
    },
    /// The value is below a level.
    Below {
        /// The level.
        level: f64,
        /// See `Condition`.
        hysteresis: f64,
    },
    /// The value is outside a range, whose ends belong to it.
    Outside {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
        /// See `Condition`.
        hysteresis: f64,
    },
    /// The value changes faster, up or down.
    Rate {
        /// Mean change, units a second.
        level: f64,
        /// The span of the mean, ns.
        over_ns: u64,
        /// See `Condition`.
        hysteresis: f64,
    },
    /// No sample comes for longer.
    Stale {
        /// Than this, ns.
        after_ns: u64,
    },
    /// Samples are bad or missing.
    Quality,
    /// The score is above a level.
    Score {
        /// The level; `None`: the score's threshold.
        raise_above: Option<f32>,
        /// Where it ends.
        clear: Clear,
    },
    /// The probability of a class is above a level.
    Class {
        /// The class.
        class: String,
        /// The level, 0 to 1.
        probability: f64,
        /// See `Condition`.
        hysteresis: f64,
    },
}

impl Condition {
    /// The word in records.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Above { .. } => "above",
            Self::Below { .. } => "below",
            Self::Outside { .. } => "outside",
            Self::Rate { .. } => "rate",
            Self::Stale { .. } => "stale",
            Self::Quality => "quality",
            Self::Score { .. } => "score",
            Self::Class { .. } => "class",
        }
    }

    /// Whether it is on a rate of change.
    pub fn is_rate(&self) -> bool {
        matches!(self, Self::Rate { .. })
    }

    /// Whether silence meets it.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Stale { .. })
    }
}

/// Where the alarm on a score ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Clear {
    /// Below the level by this share of it: `level - |level| × (1 - factor)`.
    Factor(f32),
    /// Below the level by this much.
    Difference(f64),
}

/// How long the condition must be met before the alarm is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// So many samples or windows in a row.
    Times(u32),
    /// So long, ns.
    For(u64),
}

const OF_CHANNEL: [&str; 6] = ["above", "below", "outside", "rate_above_per_s", "stale_s", "quality"];

pub(super) fn alarm(
    name: &str,
    mut t: Table<'_>,
    names: &Names,
    pipelines: &[Pipeline],
    channels: &[Channel],
) -> Option<Alarm> {
    let channel = found(&mut t, "channel", &names.channels);
    let pipeline = found(&mut t, "pipeline", &names.pipelines);
    let condition_of_channel = OF_CHANNEL.iter().any(|key| t.has(key));
    let on_channel = match (t.has("channel"), t.has("pipeline")) {
        (true, true) => {
            t.problem("channel", "does not go with `pipeline`: an alarm watches one of them");
            condition_of_channel
        }
        (false, false) => {
            let written = if condition_of_channel { "`channel`" } else { "`channel` or `pipeline`" };
            t.problem("", format!("{written} is needed: what the alarm watches"));
            condition_of_channel
        }
        (on_channel, _) => on_channel,
    };
    let condition = match on_channel {
        true => of_channel(&mut t, channel.and_then(|at| channels.get(at))),
        false => of_pipeline(&mut t, pipeline.and_then(|at| pipelines.get(at))),
    };
    let after = after(&mut t);
    let severities = [("info", "info"), ("warning", "warning"), ("critical", "critical")];
    let severity = t.word("severity", &severities).unwrap_or("warning");
    let hold_off_ms = t.int("hold_off_ms", 0..=86_400_000).map_or(0, |n| n as u64);
    let latch = t.bool("latch").unwrap_or(false);
    let tape = t.bool("tape").unwrap_or(false);
    t.finish();
    let watches = if on_channel { channel.map(Watches::Channel) } else { pipeline.map(Watches::Pipeline) };
    Some(Alarm {
        name: name.to_owned(),
        // An alarm that watches nothing was reported; outputs may still name it.
        watches: watches.unwrap_or(Watches::Pipeline(usize::MAX)),
        condition: condition.unwrap_or(Condition::Quality),
        severity,
        after,
        hold_off_ms,
        latch,
        tape,
    })
}

/// The place of what the key names; reports an unknown name with the nearest one.
fn found(t: &mut Table<'_>, key: &'static str, known: &BTreeMap<String, usize>) -> Option<usize> {
    let word = t.str(key)?;
    let place = known.get(&word).copied();
    if place.is_none() {
        let instead = instead(&word, known.keys().map(String::as_str));
        t.problem(key, format!("no {key} is called `{word}`{instead}"));
    }
    place
}

/// Reports a key that belongs to the other kind of alarm.
fn foreign(t: &mut Table<'_>, key: &'static str, why: &str) {
    if t.node(key).is_some() {
        t.problem(key, why);
    }
}

/// Seconds as ns.
fn seconds(t: &mut Table<'_>, key: &'static str, (least, most): (f64, f64)) -> Option<u64> {
    let s = t.float(key)?;
    if !(least..=most).contains(&s) {
        t.problem(key, format!("{s} is not within {least} to {most}"));
        return None;
    }
    Some((s * 1e9) as u64)
}

const DAY_S: f64 = 86_400.0;
const WEEK_S: f64 = 7.0 * DAY_S;

/// How far from its level a condition ends; 0 where nothing is written.
fn hysteresis(t: &mut Table<'_>) -> f64 {
    let difference = t.float("hysteresis").unwrap_or(0.0);
    if difference < 0.0 {
        t.problem("hysteresis", format!("{difference} is below 0; it is a distance from the level"));
        return 0.0;
    }
    difference
}

fn of_channel(t: &mut Table<'_>, channel: Option<&Channel>) -> Option<Condition> {
    foreign(t, "raise_above", "belongs to the score of a pipeline; for a channel write `above`");
    foreign(t, "class", "belongs to a `pipeline`");
    foreign(t, "probability", "belongs to a `pipeline`");
    foreign(t, "clear_factor", "belongs to the score of a pipeline; for a channel write `hysteresis`, a difference");
    let written: Vec<&'static str> = OF_CHANNEL.into_iter().filter(|key| t.has(key)).collect();
    match written.as_slice() {
        [] => {
            let all = OF_CHANNEL.map(|key| format!("`{key}`")).join(", ");
            t.problem("", format!("needs a condition, one of {all}"));
        }
        [_] => {}
        [first, others @ ..] => {
            for key in others {
                t.problem(key, format!("does not go with `{first}`: an alarm has one condition"));
            }
        }
    }
    let hysteresis = hysteresis(t);
    let above = t.float("above").map(|level| Condition::Above { level, hysteresis });
    let below = t.float("below").map(|level| Condition::Below { level, hysteresis });
    let (outside, rate) = (outside(t, hysteresis), rate(t, hysteresis));
    let stale = seconds(t, "stale_s", (0.1, WEEK_S)).map(|after_ns| Condition::Stale { after_ns });
    let quality = t.word("quality", &[("bad", ())]).map(|()| Condition::Quality);
    let condition = above.or(below).or(outside).or(rate).or(stale).or(quality);
    for word in ["stale_s", "quality"] {
        if t.has(word) && t.has("hysteresis") {
            t.problem("hysteresis", format!("does not go with `{word}`, which has no level"));
        }
    }
    if let (Some(condition), Some(channel)) = (&condition, channel) {
        within_limits(t, condition, channel);
    }
    condition
}

fn outside(t: &mut Table<'_>, hysteresis: f64) -> Option<Condition> {
    let [low, high] = t.floats("outside")?.try_into().map_or_else(
        |_| {
            t.problem("outside", "must be two numbers, [lowest, highest]");
            None
        },
        Some,
    )?;
    if low >= high {
        let swapped = if low > high { format!("; did you mean [{high}, {low}]?") } else { String::new() };
        t.problem("outside", format!("{low} is not below {high}: the lowest value comes first{swapped}"));
    } else if hysteresis * 2.0 >= high - low {
        let most = (high - low) / 2.0;
        t.problem(
            "hysteresis",
            format!("{hysteresis} is not below {most}, half of the range: the alarm would never clear"),
        );
    }
    Some(Condition::Outside { low, high, hysteresis })
}

fn rate(t: &mut Table<'_>, hysteresis: f64) -> Option<Condition> {
    let (level, over_ns) = (t.float("rate_above_per_s"), seconds(t, "over_s", (0.01, DAY_S)));
    if !t.has("rate_above_per_s") {
        if t.has("over_s") {
            t.problem("over_s", "belongs to `rate_above_per_s`");
        }
        return None;
    }
    if !t.has("over_s") {
        t.problem(
            "over_s",
            "is needed with `rate_above_per_s`: the span, in seconds, over which the change is measured",
        );
    }
    let level = level?;
    if level <= 0.0 {
        t.problem("rate_above_per_s", format!("{level} is not above 0; falling values count as rising ones do"));
    } else if hysteresis >= level {
        t.problem("hysteresis", format!("{hysteresis} is not below {level}, the level: the alarm would never clear"));
    }
    Some(Condition::Rate { level, over_ns: over_ns.unwrap_or(1), hysteresis })
}

/// A level or hysteresis that the channel's plausible values never reach.
fn within_limits(t: &mut Table<'_>, condition: &Condition, channel: &Channel) {
    let (min, max) = (channel.min.unwrap_or(f64::NEG_INFINITY), channel.max.unwrap_or(f64::INFINITY));
    let name = &channel.name;
    match *condition {
        Condition::Above { level, .. } if level >= max => {
            t.problem("above", format!("a value above {level} is bad: `max` of channel `{name}` is {max}"));
        }
        Condition::Below { level, .. } if level <= min => {
            t.problem("below", format!("a value below {level} is bad: `min` of channel `{name}` is {min}"));
        }
        Condition::Above { level, hysteresis } if level - hysteresis <= min && hysteresis > 0.0 => {
            let clear = level - hysteresis;
            t.problem(
                "hysteresis",
                format!("the alarm would never clear: below {clear} lies no value, `min` of channel `{name}` is {min}"),
            );
        }
        Condition::Below { level, hysteresis } if level + hysteresis >= max && hysteresis > 0.0 => {
            let clear = level + hysteresis;
            t.problem(
                "hysteresis",
                format!("the alarm would never clear: above {clear} lies no value, `max` of channel `{name}` is {max}"),
            );
        }
        Condition::Outside { low, high, .. } if low <= min && high >= max => {
            t.problem("outside", format!("a value outside is bad: channel `{name}` has `min` {min} and `max` {max}"));
        }
        _ => {}
    }
}

fn of_pipeline(t: &mut Table<'_>, pipeline: Option<&Pipeline>) -> Option<Condition> {
    foreign(t, "above", "belongs to a `channel`; for the score of a pipeline write `raise_above`");
    for key in OF_CHANNEL.into_iter().filter(|key| *key != "above").chain(["over_s"]) {
        foreign(t, key, "belongs to a `channel`");
    }
    if !t.has("class") {
        foreign(t, "probability", "belongs to `class`");
        return of_score(t, pipeline);
    }
    for key in ["raise_above", "clear_factor"] {
        foreign(t, key, "does not go with `class`: an alarm has one condition, on the score or on a class");
    }
    let (class, probability, hysteresis) = (t.str("class"), t.float("probability"), hysteresis(t));
    match probability {
        None if !t.has("probability") => {
            t.problem("probability", "is needed with `class`: the alarm is raised above this probability, 0 to 1");
        }
        Some(p) if !(0.0..1.0).contains(&p) => {
            t.problem("probability", format!("{p} is not within 0 to 1, without 1: no probability is above 1"));
        }
        Some(p) if hysteresis > 0.0 && hysteresis >= p => {
            t.problem(
                "hysteresis",
                format!("{hysteresis} is not below {p}, the probability: the alarm would never clear"),
            );
        }
        _ => {}
    }
    let class = class?;
    if let Some(pipeline) = pipeline.filter(|pipeline| has_model(pipeline)) {
        let known = &pipeline.model.manifest.scoring.classes;
        if known.is_empty() {
            t.problem("class", format!("the model of pipeline `{}` names no classes (`classes`)", pipeline.name));
        } else if !known.contains(&class) {
            let near = nearest(&class, known.iter().map(String::as_str));
            let hint = near.map_or_else(
                || format!(": expected one of {}", known.join(", ")),
                |near| format!("; did you mean `{near}`?"),
            );
            t.problem("class", format!("the model has no class `{class}`{hint}"));
        }
    }
    Some(Condition::Class { class, probability: probability.unwrap_or(0.5), hysteresis })
}

/// False: a bundle that is not installed yet, so that nothing is known of it.
fn has_model(pipeline: &Pipeline) -> bool {
    !pipeline.model.file.as_os_str().is_empty()
}

fn of_score(t: &mut Table<'_>, pipeline: Option<&Pipeline>) -> Option<Condition> {
    let scoring = pipeline.map(|pipeline| &pipeline.model.manifest.scoring);
    let names_classes_only =
        |scoring: &&Scoring| !scoring.classes.is_empty() && scoring.score.is_none() && scoring.reconstruction.is_none();
    let classes = scoring.filter(names_classes_only).map(|scoring| scoring.classes.join(", "));
    if let Some(classes) = &classes {
        t.problem("", format!("the model of the pipeline has no score; write `class`, one of {classes}"));
    }
    let default = pipeline.and_then(|pipeline| pipeline.model.manifest.clear_factor).unwrap_or(0.8);
    let factor = t.float("clear_factor").map_or(default, |x| x as f32);
    if !(0.0..=1.0).contains(&factor) {
        t.problem("clear_factor", format!("{factor} is not within 0 to 1"));
    }
    let difference = hysteresis(t);
    if t.has("hysteresis") && t.has("clear_factor") {
        t.problem("hysteresis", "does not go with `clear_factor`: both say where the alarm clears");
    }
    let raise_above = t.float("raise_above").map(|x| x as f32);
    if let Some(pipeline) = pipeline
        && raise_above.is_none()
        && pipeline.threshold.or(pipeline.model.manifest.threshold).is_none()
        && pipeline.model.manifest.calibration.is_none()
        && pipeline.budget.is_none()
        && has_model(pipeline)
        && classes.is_none()
    {
        t.problem("raise_above", "is needed: the pipeline has neither a threshold nor a calibration");
    }
    let clear = if t.has("hysteresis") { Clear::Difference(difference) } else { Clear::Factor(factor) };
    Some(Condition::Score { raise_above, clear })
}

fn after(t: &mut Table<'_>) -> After {
    let times = t.int("raise_windows", 1..=100_000).map(|n| n as u32);
    let for_ns = seconds(t, "for_s", (0.0, DAY_S));
    if t.has("for_s") && t.has("raise_windows") {
        t.problem("for_s", "does not go with `raise_windows`: both say how long the condition must be met");
    }
    for key in ["for_s", "raise_windows"] {
        if t.has("stale_s") && t.has(key) {
            t.problem(key, "does not go with `stale_s`, which says itself how long");
        }
    }
    if t.has("quality") && t.has("raise_windows") {
        t.problem("raise_windows", "does not go with `quality`; write `for_s`");
    }
    if t.has("quality") && !t.has("for_s") {
        t.problem("for_s", "is needed with `quality`: for how many seconds the samples must be bad");
    }
    for_ns.map_or_else(|| After::Times(times.unwrap_or(1)), After::For)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const BASE: &str = "[source.s]\npath = \"/dev/null\"\ncolumns = [\"t\"]\n[channel.temp]\ncolumn = \"t\"\nmin = -40\nmax = 120\n\
                        [pipeline.p]\nbundle = \"m\"\nchannels = [\"temp\"]\nwindow_steps = 4\n";

    fn read(alarm: &str) -> Result<Alarm, String> {
        let text = format!("{BASE}[alarm.x]\n{alarm}\n");
        let config = Config::unwritten().expect("defaults").with_remote(Some(&text));
        let problems = |all: Vec<crate::config::Problem>| all.iter().map(|one| format!("{one}\n")).collect();
        config.map(|mut config| config.alarms.remove(0)).map_err(problems)
    }

    #[test]
    fn each_condition_is_read() {
        let condition = |alarm: &str| read(&format!("channel = \"temp\"\n{alarm}")).expect("valid").condition;
        assert_eq!(condition("above = 80\nhysteresis = 5"), Condition::Above { level: 80.0, hysteresis: 5.0 });
        assert_eq!(condition("below = -5.5"), Condition::Below { level: -5.5, hysteresis: 0.0 });
        let outside = Condition::Outside { low: 2.0, high: 8.0, hysteresis: 1.0 };
        assert_eq!(condition("outside = [2, 8.0]\nhysteresis = 1"), outside);
        let rate = Condition::Rate { level: 0.5, over_ns: 60_000_000_000, hysteresis: 0.1 };
        assert_eq!(condition("rate_above_per_s = 0.5\nover_s = 60\nhysteresis = 0.1"), rate);
        assert_eq!(condition("stale_s = 1.5"), Condition::Stale { after_ns: 1_500_000_000 });
        assert_eq!(condition("quality = \"bad\"\nfor_s = 2"), Condition::Quality);
        let score = |alarm: &str| read(&format!("pipeline = \"p\"\n{alarm}")).expect("valid").condition;
        assert_eq!(score(""), Condition::Score { raise_above: None, clear: Clear::Factor(0.8) });
        let difference = Condition::Score { raise_above: Some(-3.0), clear: Clear::Difference(0.5) };
        assert_eq!(score("raise_above = -3\nhysteresis = 0.5"), difference);
        let wear = Condition::Class { class: "wear".into(), probability: 0.8, hysteresis: 0.2 };
        assert_eq!(score("class = \"wear\"\nprobability = 0.8\nhysteresis = 0.2"), wear);
        let alarm = read("channel = \"temp\"\nabove = 1\nfor_s = 0.5\nlatch = true").expect("valid");
        assert_eq!((alarm.after, alarm.latch), (After::For(500_000_000), true));
    }

    #[test]
    fn alarm_that_makes_no_sense_is_rejected_with_its_key_and_the_reason() {
        for (alarm, key, why) in [
            ("pipeline = \"p\"\nclass = \"wear\"", "alarm.x.probability: ", "is needed with `class`"),
            (
                "pipeline = \"p\"\nclass = \"wear\"\nprobability = 1",
                "alarm.x.probability: ",
                "no probability is above 1",
            ),
            ("pipeline = \"p\"\nprobability = 0.5", "alarm.x.probability: ", "belongs to `class`"),
            (
                "pipeline = \"p\"\nclass = \"wear\"\nprobability = 0.5\nraise_above = 1",
                "alarm.x.raise_above: ",
                "does not go with `class`",
            ),
            (
                "pipeline = \"p\"\nclass = \"wear\"\nprobability = 0.5\nhysteresis = 0.5",
                "alarm.x.hysteresis: ",
                "never clear",
            ),
            ("channel = \"temp\"\nclass = \"wear\"", "alarm.x.class: ", "belongs to a `pipeline`"),
            ("above = 1", "alarm.x: ", "`channel` is needed: what the alarm watches"),
            ("severity = \"info\"", "alarm.x: ", "`channel` or `pipeline` is needed"),
            ("channel = \"temp\"\npipeline = \"p\"\nabove = 1", "alarm.x.channel: ", "does not go with `pipeline`"),
            ("channel = \"temp\"", "alarm.x: ", "needs a condition, one of `above`, `below`"),
            ("channel = \"temp\"\nabove = 1\nbelow = 0", "alarm.x.below: ", "does not go with `above`"),
            ("channel = \"tmp\"\nabove = 1", "alarm.x.channel: ", "no channel is called `tmp`; did you mean `temp`?"),
            ("pipeline = \"q\"", "alarm.x.pipeline: ", "no pipeline is called `q`"),
            ("channel = \"temp\"\nabov = 1", "alarm.x.abov: ", "did you mean `above`?"),
            ("channel = \"temp\"\nraise_above = 1", "alarm.x.raise_above: ", "for a channel write `above`"),
            ("channel = \"temp\"\nabove = 1\nclear_factor = 0.5", "alarm.x.clear_factor: ", "write `hysteresis`"),
            ("pipeline = \"p\"\nabove = 1", "alarm.x.above: ", "write `raise_above`"),
            ("pipeline = \"p\"\nstale_s = 1", "alarm.x.stale_s: ", "belongs to a `channel`"),
            (
                "pipeline = \"p\"\nclear_factor = 0.5\nhysteresis = 1",
                "alarm.x.hysteresis: ",
                "does not go with `clear_factor`",
            ),
            (
                "channel = \"temp\"\noutside = [8, 2]",
                "alarm.x.outside: ",
                "8 is not below 2: the lowest value comes first; did you mean [2, 8]?",
            ),
            ("channel = \"temp\"\noutside = [2, 2]", "alarm.x.outside: ", "2 is not below 2"),
            ("channel = \"temp\"\noutside = [2]", "alarm.x.outside: ", "must be two numbers"),
            ("channel = \"temp\"\noutside = [2, 4]\nhysteresis = 1", "alarm.x.hysteresis: ", "never clear"),
            ("channel = \"temp\"\nabove = 80\nhysteresis = -1", "alarm.x.hysteresis: ", "-1 is below 0"),
            ("channel = \"temp\"\nabove = 80\nhysteresis = 120", "alarm.x.hysteresis: ", "below -40 lies no value"),
            ("channel = \"temp\"\nbelow = 80\nhysteresis = 40", "alarm.x.hysteresis: ", "above 120 lies no value"),
            ("channel = \"temp\"\nabove = 120", "alarm.x.above: ", "`max` of channel `temp` is 120"),
            ("channel = \"temp\"\nbelow = -40", "alarm.x.below: ", "`min` of channel `temp` is -40"),
            ("channel = \"temp\"\noutside = [-50, 130]", "alarm.x.outside: ", "a value outside is bad"),
            ("channel = \"temp\"\nrate_above_per_s = 1", "alarm.x.over_s: ", "is needed with `rate_above_per_s`"),
            ("channel = \"temp\"\nrate_above_per_s = 0\nover_s = 1", "alarm.x.rate_above_per_s: ", "is not above 0"),
            (
                "channel = \"temp\"\nrate_above_per_s = 1\nover_s = 1\nhysteresis = 1",
                "alarm.x.hysteresis: ",
                "never clear",
            ),
            ("channel = \"temp\"\nabove = 1\nover_s = 1", "alarm.x.over_s: ", "belongs to `rate_above_per_s`"),
            ("channel = \"temp\"\nstale_s = 0", "alarm.x.stale_s: ", "0 is not within 0.1 to"),
            ("channel = \"temp\"\nstale_s = 5\nfor_s = 1", "alarm.x.for_s: ", "does not go with `stale_s`"),
            ("channel = \"temp\"\nstale_s = 5\nhysteresis = 1", "alarm.x.hysteresis: ", "which has no level"),
            ("channel = \"temp\"\nquality = \"bad\"", "alarm.x.for_s: ", "is needed with `quality`"),
            ("channel = \"temp\"\nquality = \"poor\"\nfor_s = 1", "alarm.x.quality: ", "`bad`"),
            (
                "channel = \"temp\"\nabove = 1\nfor_s = 1\nraise_windows = 2",
                "alarm.x.for_s: ",
                "does not go with `raise_windows`",
            ),
        ] {
            let problems = read(alarm).expect_err(alarm);
            assert!(problems.lines().any(|line| line.contains(key) && line.contains(why)), "{alarm}: {problems}");
        }
    }

    #[test]
    fn all_problems_of_an_alarm_are_reported_at_once() {
        let problems =
            read("channel = \"tmp\"\nabove = 1\noutside = [8, 2]\nover_s = 1\nlatch = 1\nseverty = \"info\"");
        let problems = problems.expect_err("six");
        for key in ["x.channel", "x.outside: does not", "x.outside: 8", "x.over_s", "x.latch", "x.severty"] {
            assert!(problems.contains(key), "{key}: {problems}");
        }
        assert_eq!(problems.lines().count(), 6, "{problems}");
    }
}
