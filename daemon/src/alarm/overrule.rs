//! What an answer from elsewhere does to alarms on scores and classes. It raises or clears an alarm at once, and stands while the
//! local model stays unsure, an hour at most: an unsure window neither raises nor clears then. With the first window of which the
//! model is sure, the local rules decide again. A latched alarm is never cleared by an answer before it is acknowledged.

use std::sync::Arc;

use super::{Alarm, Alarms};
use crate::{
    alarm::condition::{Seen, Verdict},
    config::Condition,
    flow::{Draft, Phase, Stamp, record::json_str},
    limits,
};

/// What the answer says.
pub struct Answer<'a> {
    /// The window is an anomaly.
    pub anomaly: bool,
    /// Its class, where the answer names one.
    pub class: Option<&'a str>,
    /// Of what answered.
    pub lineage: &'a Arc<str>,
    /// Of the window, 64 hexadecimal digits.
    pub digest: &'a str,
}

impl Alarm {
    /// The verdict of an unsure window while an answer stands: none.
    pub(super) fn heed_answer(&mut self, seen: Seen, unsure: bool, now_ns: u64) -> Seen {
        if !unsure || self.stands_until_ns.is_some_and(|until| now_ns >= until) {
            self.stands_until_ns = None;
        }
        if self.stands_until_ns.is_some() { Seen { verdict: Verdict::Held, ..seen } } else { seen }
    }

    /// Whether the answer meets its condition; `None`: it says nothing of it.
    fn is_met_by(&self, answer: &Answer<'_>) -> Option<bool> {
        match &self.config.condition {
            Condition::Score { .. } => Some(answer.anomaly),
            Condition::Class { class, .. } => answer.class.map(|named| named == class),
            _ => None,
        }
    }
}

impl Alarms {
    /// Takes an answer in. How many alarms it raised or cleared.
    pub fn overrule(&mut self, answer: &Answer<'_>, stamp: Stamp, drafts: &mut Vec<Draft>) -> u64 {
        let mut changed = 0;
        for place in 0..self.alarms.len() {
            let alarm = &mut self.alarms[place];
            let Some(met) = alarm.is_met_by(answer) else { continue };
            let Some(counts) = alarm.state.overrule(met, stamp.boot_ns) else { continue };
            alarm.stands_until_ns = Some(stamp.boot_ns.saturating_add(limits::ESCALATION_STANDS_NS));
            let Some(change) = counts else { continue };
            let (name, phase) = (&alarm.config.name, if change.phase == Phase::Raised { "raised" } else { "cleared" });
            tracing::info!(alarm = name, "alarm {name} is {phase} by escalation: window {}", answer.digest);
            let own = alarm.lineage.replace(answer.lineage.clone());
            self.publish(place, change, stamp, drafts);
            self.alarms[place].lineage = own;
            if let Some(draft) = drafts.last_mut() {
                let mut members = String::from(",\"by\":\"escalation\",\"win\":");
                json_str(&mut members, &format!("sha256:{}", answer.digest));
                draft.body = [draft.body.as_ref(), members.as_bytes()].concat().into();
            }
            changed += 1;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{
        alarm::Parts,
        config::Config,
        flow::{Classes, Clk, Scored, StreamId, WindowTag, board::Board},
    };

    const S: u64 = 1_000_000_000;

    struct Bench {
        alarms: Alarms,
        now_s: u64,
    }

    impl Bench {
        /// One alarm on the score of a pipeline; its level is 10, and it clears below 5.
        fn new(alarm: &str) -> Self {
            let text = format!(
                "[source.s]\npath = \"/dev/null\"\ncolumns = [\"t\"]\n[channel.t]\n\
                 [pipeline.x]\nbundle = \"m\"\nchannels = [\"t\"]\nwindow_steps = 4\n[alarm.high]\npipeline = \"x\"\n{alarm}"
            );
            let config = Config::unwritten().expect("defaults").with_remote(Some(&text)).expect("valid");
            let board = Arc::new(Board::new(1, 1));
            let setup = Parts { config: &config, streams: &[StreamId(0)], boot: "b", keep: None, board };
            Self { alarms: Alarms::of_pipeline(setup, 0), now_s: 100 }
        }

        fn stamp(&self) -> Stamp {
            Stamp { boot_ns: self.now_s * S, wall_ms: None, clk: Clk::Unset }
        }

        /// A window with this score, a second later; whether the alarm is raised then.
        fn score(&mut self, score: f32, unsure: bool) -> bool {
            self.said(Scored { score: Some(score), threshold: Some(10.0), unsure, ..Scored::default() })
        }

        fn said(&mut self, said: Scored) -> bool {
            self.now_s += 1;
            let (last, lineage) = (self.stamp(), Arc::from("{\"model\":\"own@1\"}"));
            let tag = WindowTag { pipeline: 0, last, in_seq: (1, 4), in_t_ns: (0, 0), number: 1, coverage: 1.0 };
            self.alarms.scored(&said, false, (&tag, &lineage), &mut Vec::new());
            self.alarms.is_raised()
        }

        /// An answer; the records of the alarm.
        fn answer(&mut self, anomaly: bool, class: Option<&str>) -> Vec<(Value, Option<Arc<str>>)> {
            let mut drafts = Vec::new();
            let answer = Answer { anomaly, class, lineage: &Arc::from("{\"model\":\"cloud:big@2\"}"), digest: "ab" };
            let changed = self.alarms.overrule(&answer, self.stamp(), &mut drafts);
            assert_eq!(changed as usize, drafts.len());
            let record = |draft: &Draft| {
                let text = format!("{{{}}}", String::from_utf8_lossy(&draft.body));
                (serde_json::from_str(&text).expect("JSON"), draft.lineage.clone())
            };
            drafts.iter().map(record).collect()
        }
    }

    #[test]
    fn answer_raises_and_clears_by_escalation_with_its_own_lineage_and_stands_while_the_model_is_unsure() {
        let mut bench = Bench::new("clear_factor = 0.5\n");
        assert!(!bench.score(9.0, true));
        let (raised, lineage) = bench.answer(true, None).remove(0);
        assert_eq!(
            (&raised["phase"], &raised["by"], &raised["win"]),
            (&"raised".into(), &"escalation".into(), &"sha256:ab".into())
        );
        assert_eq!((&raised["score"], &raised["level"]), (&9.into(), &10.into()), "the local numbers");
        assert!(lineage.is_some_and(|lineage| lineage.contains("cloud:")));
        assert!(bench.answer(true, None).is_empty(), "it is raised already");
        assert!(bench.score(4.0, true), "an unsure window does not clear it");
        assert!(!bench.score(4.0, false), "a sure one does");
        assert!(bench.score(10.5, true), "no answer stands any more: the local rules decide");
        let (cleared, _) = bench.answer(false, None).remove(0);
        assert_eq!((&cleared["phase"], &cleared["by"]), (&"cleared".into(), &"escalation".into()));
        assert!(!bench.score(10.5, true), "an unsure window does not raise it again");
        assert!(bench.score(30.0, false), "a sure one does");
    }

    #[test]
    fn answer_that_changes_nothing_stands_too_and_ends_after_an_hour() {
        let mut bench = Bench::new("");
        assert!(!bench.score(9.9, true));
        assert!(bench.answer(false, None).is_empty(), "it is not raised");
        assert!(!bench.score(10.1, true));
        bench.now_s += 3_600;
        assert!(bench.score(10.1, true), "the answer is old");
    }

    #[test]
    fn latch_and_hold_off_are_respected_and_an_alarm_that_nothing_evaluates_stays_as_it_is() {
        let mut bench = Bench::new("latch = true\n");
        assert!(bench.score(10.1, true));
        assert!(bench.answer(false, None).is_empty(), "it is not acknowledged");
        assert!(bench.score(10.1, true));
        let mut bench = Bench::new("hold_off_ms = 10000\n");
        assert!(bench.score(10.1, true));
        assert!(bench.answer(false, None).is_empty());
        bench.now_s += 10;
        assert_eq!(bench.answer(false, None).len(), 1);
        let mut bench = Bench::new("");
        assert!(bench.answer(true, None).is_empty(), "no window was seen");
        assert!(bench.score(10.1, true));
        bench.alarms.unwatched(bench.stamp(), &mut Vec::new());
        assert!(bench.answer(false, None).is_empty() && bench.alarms.is_raised());
    }

    #[test]
    fn alarm_on_a_class_goes_by_the_class_that_the_answer_names() {
        let mut bench = Bench::new("class = \"wear\"\nprobability = 0.5\n");
        let names: Arc<[String]> = ["ok", "wear"].map(str::to_owned).into();
        let said = |wear: f32| Scored {
            classes: Some(Classes { names: names.clone(), probabilities: vec![1.0 - wear, wear] }),
            unsure: true,
            ..Scored::default()
        };
        assert!(!bench.said(said(0.4)));
        assert!(bench.answer(true, None).is_empty(), "it names no class");
        assert_eq!(bench.answer(true, Some("wear"))[0].0["class"], "wear");
        assert!(bench.said(said(0.4)));
        assert_eq!(bench.answer(true, Some("ok"))[0].0["phase"], "cleared");
    }
}
