//! The room as a whole: from samples and scores to records, and random streams of samples with what must hold for every alarm.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Alarms, Origin, Parts};
use crate::{
    config::Config,
    flow::{Clk, Draft, Quality, Retain, Stamp, StreamId, Why, alarm::AlarmSign, board::Board},
};

const MS: u64 = 1_000_000;

/// One alarm on a channel, with its time.
struct Bench {
    alarms: Alarms,
    board: Arc<Board>,
    now_ms: u64,
    rows: u64,
}

impl Bench {
    fn new(alarm: &str) -> Self {
        let text = format!(
            "[source.s]\npath = \"/dev/null\"\ncolumns = [\"t\"]\n[channel.temp]\ncolumn = \"t\"\n\
             [alarm.hot]\nchannel = \"temp\"\n{alarm}"
        );
        let config = Config::unwritten().expect("defaults").with_remote(Some(&text)).expect("valid");
        let board = Arc::new(Board::new(0, 1));
        let streams = [StreamId(0)];
        let setup = Parts { config: &config, streams: &streams, boot: "b", keep: None, board: board.clone() };
        Self { alarms: Alarms::of_channels(setup), board, now_ms: 1000, rows: 0 }
    }

    fn sign(&self) -> &AlarmSign {
        &self.board.alarms[0]
    }

    fn stamp(&self) -> Stamp {
        Stamp { boot_ns: self.now_ms * MS, wall_ms: None, clk: Clk::Unset }
    }

    fn sample(&mut self, value: f64, quality: Quality) -> Vec<(Value, Retain)> {
        self.rows += 1;
        let origin = Origin { seq: (self.rows, self.rows), t_ns: (0, 0), stamp: self.stamp() };
        let mut drafts = Vec::new();
        self.alarms.sample(0, (value, quality), origin, &mut drafts);
        drafts.iter().map(record).collect()
    }

    fn look(&mut self) -> Vec<(Value, Retain)> {
        let mut drafts = Vec::new();
        self.alarms.look(0, self.stamp(), &mut drafts);
        drafts.iter().map(record).collect()
    }
}

fn record(draft: &Draft) -> (Value, Retain) {
    let text = format!("{{{}}}", String::from_utf8_lossy(&draft.body));
    (serde_json::from_str(&text).expect("JSON"), draft.retain)
}

#[test]
fn channel_alarm_has_a_record_of_its_own_and_sets_its_flag_at_once() {
    let mut bench = Bench::new("above = 80\nhysteresis = 5\nseverity = \"critical\"\n");
    assert_eq!(bench.sample(80.0, Quality::Good), []);
    let (raised, retain) = bench.sample(81.5, Quality::Good).remove(0);
    let expected = json!({
        "alarm": "hot", "id": "b-1000000000", "phase": "raised", "severity": "critical", "channel": "temp",
        "condition": "above", "value": 81.5, "level": 80, "peak": 81.5, "in_seq": [2, 2], "in_t_ns": [0, 0],
        "raised_seq": [2, 2], "raised_t_ns": [0, 0],
    });
    assert!(raised == expected && retain == Retain::Keep && bench.sign().is_raised(), "{raised}");
    bench.sample(90.0, Quality::Good);
    let (cleared, retain) = bench.sample(74.0, Quality::Good).remove(0);
    assert_eq!((&cleared["phase"], &cleared["peak"], &cleared["value"]), (&json!("cleared"), &json!(90), &json!(74)));
    assert!(retain == Retain::Remove && !bench.sign().is_raised());
}

#[test]
fn channel_alarm_without_usable_values_is_unknown_with_its_reason_and_known_with_the_next_one() {
    let mut bench = Bench::new("below = 5\n");
    assert_eq!(bench.sign().shown().unknown.map(|why| why.word()), Some("no_samples"), "from the start on");
    assert_eq!(bench.sample(9.0, Quality::Good), []);
    assert_eq!(bench.sign().shown().unknown, None);
    bench.now_ms += 100;
    bench.sample(1.0, Quality::Good);
    assert!(bench.sign().is_raised());
    for _ in 0..200 {
        bench.now_ms += 100;
        bench.sample(f64::NAN, Quality::Bad(Why::NotANumber));
        if let [(unknown, retain)] = bench.look().as_slice() {
            assert_eq!((&unknown["phase"], &unknown["reason"]), (&json!("unknown"), &json!("bad_values")));
            assert!(*retain == Retain::Keep && bench.now_ms > 10_000 && bench.sign().is_raised(), "its line stays");
        }
    }
    assert_eq!(bench.sign().shown().unknown.map(|why| why.word()), Some("bad_values"));
    bench.now_ms += 20_000;
    assert_eq!(bench.look(), [], "reported once");
    assert_eq!(
        bench.sign().shown().unknown.map(|why| why.word()),
        Some("no_samples"),
        "the status has the newest reason"
    );
    let (cleared, _) = bench.sample(9.0, Quality::Good).remove(0);
    assert_eq!(cleared["phase"], "cleared");
    assert_eq!(bench.sign().shown(), Default::default());
}

#[test]
fn acknowledgement_of_another_episode_is_refused_and_of_this_one_clears() {
    let mut bench = Bench::new("above = 80\nlatch = true\n");
    bench.sample(81.0, Quality::Good);
    let id = bench.sign().shown().episode.expect("open");
    assert!(bench.sign().shown().latched && bench.sign().acknowledge(Some("b-0")).is_err());
    bench.now_ms += 1000;
    bench.sample(20.0, Quality::Good);
    assert_eq!((bench.look(), bench.sign().is_raised()), (vec![], true));
    assert_eq!(bench.sign().acknowledge(Some(&id)), Ok(id));
    let (cleared, _) = bench.look().remove(0);
    assert_eq!((&cleared["phase"], &cleared["acknowledged"]), (&json!("cleared"), &json!(true)));
    assert!(!bench.sign().is_raised() && bench.sign().acknowledge(None).is_err());
}

#[test]
fn silence_before_a_sample_is_seen_without_ticks() {
    let mut bench = Bench::new("stale_s = 30\n");
    bench.sample(1.0, Quality::Good);
    bench.now_ms += 40_000;
    let phases: Vec<_> = bench.sample(1.0, Quality::Good).iter().map(|(record, _)| record["phase"].clone()).collect();
    assert_eq!(phases, ["raised", "cleared"]);
}

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
enum Happens {
    Good(f64),
    Bad(f64, Quality),
    Tick,
    Acknowledged,
}

fn happens() -> impl Strategy<Value = (u64, Happens)> {
    let value = prop_oneof![-20.0..20.0f64, Just(0.0), Just(10.0), Just(f64::NAN), Just(f64::INFINITY)];
    let good = prop_oneof![-20.0..20.0f64, Just(0.0), Just(10.0), Just(6.0)];
    let quality = prop_oneof![
        Just(Quality::Missing),
        Just(Quality::Absent),
        Just(Quality::Bad(Why::NotANumber)),
        Just(Quality::Bad(Why::Stuck))
    ];
    let one = prop_oneof![
        6 => good.prop_map(Happens::Good),
        2 => (value, quality).prop_map(|(value, quality)| Happens::Bad(value, quality)),
        2 => Just(Happens::Tick),
        1 => Just(Happens::Acknowledged),
    ];
    (prop_oneof![9 => 1..3000u64, 1 => 1..200_000u64], one)
}

/// Conditions on a level, which only a good sample meets.
const LEVELS: &[&str] = &[
    "above = 10\nhysteresis = 4\n",
    "below = -5\n",
    "outside = [-10, 10]\nhysteresis = 1.5\n",
    "rate_above_per_s = 2\nover_s = 3\n",
];

/// All others, with what says how long each must last.
const OTHERS: &[&str] = &["stale_s = 4\n", "quality = \"bad\"\nfor_s = 2\n"];

proptest! {
    #[test]
    fn alarm_keeps_its_rules_whatever_comes(
        which in 0..LEVELS.len() + OTHERS.len(),
        (after, hold_off_ms, latch) in (0..4usize, prop_oneof![Just(0u64), 1..20_000u64], any::<bool>()),
        story in prop::collection::vec(happens(), 1..200),
    ) {
        let is_level = which < LEVELS.len();
        let condition = LEVELS.iter().chain(OTHERS).nth(which).expect("a condition");
        let after = if is_level { ["", "raise_windows = 3\n", "for_s = 5\n", "for_s = 0\n"][after] } else { "" };
        let mut bench = Bench::new(&format!("{condition}{after}hold_off_ms = {hold_off_ms}\nlatch = {latch}\n"));
        // What a client that only reads records knows: the open episode, whether it is raised, unknown, acknowledged.
        let (mut open, mut raised, mut unknown, mut acknowledged) = (None::<String>, false, false, false);
        let (mut changed_ms, mut newest_good, mut asked) = (None::<u64>, false, None::<String>);
        for (step_ms, what) in story {
            bench.now_ms += step_ms;
            let records = match what {
                Happens::Good(value) => bench.sample(value, Quality::Good),
                Happens::Bad(value, quality) => bench.sample(value, quality),
                Happens::Tick => bench.look(),
                Happens::Acknowledged => {
                    asked = bench.sign().acknowledge(None).ok().or(asked);
                    bench.look()
                }
            };
            match what {
                Happens::Good(_) => newest_good = true,
                Happens::Bad(_, quality) if quality != Quality::Absent => newest_good = false,
                _ => {}
            }
            for (record, retain) in records {
                let id = record["id"].as_str().expect("id").to_owned();
                prop_assert!(open.as_ref().is_none_or(|open| *open == id), "one episode at a time");
                prop_assert_eq!(retain, if record["phase"] == "cleared" { Retain::Remove } else { Retain::Keep });
                let since_ms = changed_ms.map_or(u64::MAX, |at| bench.now_ms - at);
                match record["phase"].as_str().expect("phase") {
                    "raised" => {
                        let again = raised && (unknown || record["acknowledged"] == true && !acknowledged);
                        prop_assert!(!raised || again, "raised twice: {}", record);
                        if !raised {
                            prop_assert!(since_ms >= hold_off_ms, "raised within the hold-off");
                            prop_assert!(!is_level || newest_good, "a sample that is not good raised it: {:?}", what);
                        }
                        if !raised || unknown {
                            changed_ms = Some(bench.now_ms);
                        }
                        (open, raised, unknown) = (Some(id), true, false);
                        acknowledged = record["acknowledged"] == true;
                    }
                    "cleared" => {
                        prop_assert!(open.is_some(), "cleared and not open");
                        if raised {
                            prop_assert!(since_ms >= hold_off_ms, "cleared within the hold-off");
                            prop_assert!(!latch || asked == open, "a latched alarm cleared by itself");
                            changed_ms = Some(bench.now_ms);
                        }
                        (open, raised, unknown, acknowledged) = (None, false, false, false);
                    }
                    "unknown" => {
                        prop_assert!(!unknown || record["acknowledged"] == true, "unknown twice");
                        (open, unknown) = (Some(id), true);
                    }
                    other => prop_assert!(false, "{}", other),
                }
                prop_assert!(record["value"].is_number() || record["phase"] == "unknown", "{}", record);
            }
            prop_assert_eq!((bench.sign().is_raised(), bench.sign().shown().episode), (raised, open.clone()));
        }
    }
}
