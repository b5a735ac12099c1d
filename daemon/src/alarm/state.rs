//! The state of one alarm: raise after so many verdicts or so long, clear, hold-off, latch, unknown. Pure: time is the
//! stamps' `boot_ns`, so steps of the wall clock do not matter.
//!
//! ```text
//!          met, long enough               ended, and acknowledged where latched
//! (none) ──────────────────▶ raised ──────────────────────────────────────────▶ cleared
//!    │                        │  ▲
//!    │ nothing evaluates it   ▼  │ evaluated again, not ended
//!    └─────▶ unknown ◀───── unknown ── evaluated again, ended ──▶ cleared
//! ```

use serde::{Deserialize, Serialize};

use super::condition::{Seen, Verdict};
use crate::{
    config::After,
    flow::{Phase, Stamp},
};

/// What a verdict was made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Origin {
    /// First and last sensor sequence.
    pub seq: (u64, u64),
    /// First and last sensor time, ns.
    pub t_ns: (i64, i64),
    /// When the last of it arrived.
    pub stamp: Stamp,
}

/// When an alarm is raised and cleared.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long the condition must be met.
    pub after: After,
    /// After a change the next one waits so long, ns.
    pub hold_off_ns: u64,
    /// Stays raised until acknowledged.
    pub latch: bool,
}

/// One episode: from the first record to the last, also over restarts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// Names it among those of this alarm: boot and the moment it began.
    pub id: String,
    /// Level that was passed.
    pub level: f64,
    /// The value furthest beyond it so far.
    pub peak: f64,
    /// First and last sensor sequence of what raised it.
    pub in_seq: (u64, u64),
    /// First and last sensor time of that, ns.
    pub in_t_ns: (i64, i64),
    /// It was reported that nothing evaluates it.
    #[serde(default)]
    pub unknown: bool,
    /// False: it only became unknown; `level`, `peak` and what follows say nothing.
    #[serde(default = "yes")]
    pub raised: bool,
    /// It was acknowledged.
    #[serde(default)]
    pub acknowledged: bool,
}

fn yes() -> bool {
    true
}

/// A change of the alarm's state, to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What it is now.
    pub phase: Phase,
    /// The episode, also where it has just ended.
    pub episode: Episode,
}

/// One alarm's state.
#[derive(Debug)]
pub struct Lifecycle {
    rules: Rules,
    boot: String,
    /// The moment in the newest episode's id, ns: two that begin at one moment still have two ids.
    named_ns: u64,
    episode: Option<Episode>,
    /// Verdicts in a row that met the condition, and since when.
    streak: u32,
    since_ns: Option<u64>,
    changed_ns: Option<u64>,
    /// The newest verdict.
    last: Option<(Seen, Origin)>,
    /// The newest verdict still holds: nothing came since that gave none.
    holds: bool,
}

impl Lifecycle {
    /// No episode, or one that was open before the restart.
    pub fn new(rules: Rules, boot: &str, episode: Option<Episode>) -> Self {
        let boot = boot.to_owned();
        Self {
            rules,
            boot,
            named_ns: 0,
            episode,
            streak: 0,
            since_ns: None,
            changed_ns: None,
            last: None,
            holds: false,
        }
    }

    /// The open episode, which is kept across a restart.
    pub fn episode(&self) -> Option<&Episode> {
        self.episode.as_ref()
    }

    /// The newest verdict, and what it was made from.
    pub fn last(&self) -> Option<&(Seen, Origin)> {
        self.last.as_ref()
    }

    /// Takes a verdict. `worse`: whether the first value is further beyond the level than the second.
    pub fn step(&mut self, seen: Seen, at: Origin, worse: impl Fn(f64, f64) -> bool) -> Option<Change> {
        let now_ns = at.stamp.boot_ns;
        if seen.verdict == Verdict::Met {
            self.streak = self.streak.saturating_add(1);
            self.since_ns.get_or_insert(now_ns);
        } else {
            (self.streak, self.since_ns) = (0, None);
        }
        if let Some(open) = self.episode.as_mut().filter(|open| open.raised && worse(seen.value, open.peak)) {
            open.peak = seen.value;
        }
        self.last = Some((seen, at));
        self.holds = true;
        self.decide(now_ns)
    }

    /// An answer from elsewhere says whether the condition is met: the alarm is raised or cleared at once, where its latch allows it,
    /// and the newest verdict says nothing any more. `Some(None)`: it is that already, or latched. `None`: the answer does not
    /// count, for a change is held off, or nothing evaluates the alarm.
    pub fn overrule(&mut self, met: bool, now_ns: u64) -> Option<Option<Change>> {
        let (seen, at) = self.last?;
        let held_off = self.changed_ns.is_some_and(|at| now_ns.saturating_sub(at) < self.rules.hold_off_ns);
        if held_off || self.episode.as_ref().is_some_and(|open| open.unknown) {
            return None;
        }
        (self.streak, self.since_ns) = (0, None);
        self.last = Some((Seen { verdict: Verdict::Held, ..seen }, at));
        let change = match self.episode.take() {
            None if met => {
                let episode = Episode::new(self.name(now_ns), &seen, &at);
                self.episode = Some(episode.clone());
                Some(Change { phase: Phase::Raised, episode })
            }
            Some(episode) if !met && (episode.acknowledged || !self.rules.latch) => {
                Some(Change { phase: Phase::Cleared, episode })
            }
            same => {
                self.episode = same;
                None
            }
        };
        if change.is_some() {
            self.changed_ns = Some(now_ns);
        }
        Some(change)
    }

    /// Something came that gives no verdict: time alone must not raise or clear by the verdict before it.
    pub fn doubt(&mut self) {
        self.holds = false;
    }

    /// Time went on: the newest verdict holds until something else comes.
    pub fn settle(&mut self, now_ns: u64) -> Option<Change> {
        if self.holds { self.decide(now_ns) } else { None }
    }

    fn decide(&mut self, now_ns: u64) -> Option<Change> {
        let (seen, at) = self.last?;
        let held_off = self.changed_ns.is_some_and(|at| now_ns.saturating_sub(at) < self.rules.hold_off_ns);
        let long_enough = match self.rules.after {
            After::Times(times) => self.streak >= times,
            After::For(ns) => self.since_ns.is_some_and(|since| now_ns.saturating_sub(since) >= ns),
        };
        let due = seen.verdict == Verdict::Met && long_enough && !held_off;
        let fresh = if due && self.episode.is_none() { Some(self.name(now_ns)) } else { None };
        let phase = match &mut self.episode {
            Some(open) if open.raised => {
                let free = open.acknowledged || !self.rules.latch;
                let ended = seen.verdict == Verdict::Normal && !held_off && free;
                match (ended, std::mem::take(&mut open.unknown)) {
                    (true, _) => Phase::Cleared,
                    // The same episode goes on.
                    (false, true) => Phase::Raised,
                    (false, false) => return None,
                }
            }
            open if due => {
                let id = open.take().map(|unknown| unknown.id).or(fresh)?;
                *open = Some(Episode::new(id, &seen, &at));
                Phase::Raised
            }
            // It was unknown, and there is nothing to raise.
            Some(_) => return self.episode.take().map(|episode| Change { phase: Phase::Cleared, episode }),
            None => return None,
        };
        self.changed_ns = Some(now_ns);
        let episode = self.episode.clone()?;
        if phase == Phase::Cleared {
            self.episode = None;
        }
        Some(Change { phase, episode })
    }

    /// Nothing evaluates it any more: what was raised must not look as if it were current. `now_ns`: report also one that
    /// is not raised, as an episode that begins now.
    pub fn unwatched(&mut self, now_ns: Option<u64>) -> Option<Change> {
        (self.streak, self.since_ns, self.holds) = (0, None, false);
        if self.episode.is_none() {
            let id = self.name(now_ns?);
            self.episode = Some(Episode { raised: false, ..Episode::unseen(id) });
        }
        let open = self.episode.as_mut().filter(|open| !open.unknown)?;
        open.unknown = true;
        Some(Change { phase: Phase::Unknown, episode: open.clone() })
    }

    /// The id of an episode that begins now.
    fn name(&mut self, now_ns: u64) -> String {
        // All samples of one read have the same stamp.
        self.named_ns = now_ns.max(self.named_ns.saturating_add(1));
        format!("{}-{}", self.boot, self.named_ns)
    }

    /// Acknowledges this episode of a latched alarm: it clears now if its condition has ended, else as soon as it ends.
    pub fn acknowledge(&mut self, id: &str, now_ns: u64) -> Option<Change> {
        let open = self.episode.as_mut().filter(|open| open.raised && !open.acknowledged && open.id == id)?;
        open.acknowledged = true;
        let phase = if open.unknown { Phase::Unknown } else { Phase::Raised };
        let still = Change { phase, episode: open.clone() };
        Some(self.settle(now_ns).unwrap_or(still))
    }
}

impl Episode {
    fn new(id: String, seen: &Seen, at: &Origin) -> Self {
        Self {
            level: seen.level,
            peak: seen.value,
            in_seq: at.seq,
            in_t_ns: at.t_ns,
            unknown: false,
            ..Self::unseen(id)
        }
    }

    fn unseen(id: String) -> Self {
        let (in_seq, in_t_ns) = ((0, 0), (0, 0));
        Self { id, level: 0.0, peak: 0.0, in_seq, in_t_ns, unknown: false, raised: true, acknowledged: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Clk;

    const S: u64 = 1_000_000_000;

    fn at(s: u64) -> Origin {
        let stamp = Stamp { boot_ns: s * S, wall_ms: None, clk: Clk::Unset };
        Origin { seq: (0, s), t_ns: (0, s as i64), stamp }
    }

    fn rules(after: After, hold_off_s: u64, latch: bool) -> Lifecycle {
        Lifecycle::new(Rules { after, hold_off_ns: hold_off_s * S, latch }, "b", None)
    }

    /// A level of 10 that clears below 6, one value a second.
    fn step(state: &mut Lifecycle, s: u64, value: f64) -> Option<Phase> {
        let verdict = match value {
            _ if value > 10.0 => Verdict::Met,
            _ if value >= 6.0 => Verdict::Held,
            _ => Verdict::Normal,
        };
        state.step(Seen { verdict, value, level: 10.0 }, at(s), |a, b| a > b).map(|change| change.phase)
    }

    fn run(mut state: Lifecycle, values: &[f64]) -> Vec<(usize, Phase)> {
        let each = |(i, value): (usize, &f64)| step(&mut state, i as u64, *value).map(|phase| (i, phase));
        values.iter().enumerate().filter_map(each).collect()
    }

    #[test]
    fn it_clears_below_its_hysteresis_only() {
        let got = run(rules(After::Times(1), 0, false), &[9.0, 11.0, 9.0, 6.0, 11.0, 5.9, 9.0, 10.5]);
        assert_eq!(got, [(1, Phase::Raised), (5, Phase::Cleared), (7, Phase::Raised)]);
    }

    #[test]
    fn episodes_that_begin_within_one_read_have_ids_of_their_own() {
        let mut state = rules(After::Times(1), 0, false);
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..3 {
            assert_eq!(step(&mut state, 7, 11.0), Some(Phase::Raised));
            ids.insert(state.episode().expect("raised").id.clone());
            assert_eq!(step(&mut state, 7, 1.0), Some(Phase::Cleared));
        }
        ids.extend(state.overrule(true, 7 * S).flatten().map(|change| change.episode.id));
        step(&mut state, 7, 1.0);
        ids.extend(state.unwatched(Some(7 * S)).map(|change| change.episode.id));
        assert_eq!(ids.len(), 5, "{ids:?}");
        assert!(ids.contains(&format!("b-{}", 7 * S)), "the moment it began, where no other has it: {ids:?}");
    }

    #[test]
    fn hold_off_delays_a_change_and_loses_none() {
        let got = run(rules(After::Times(1), 3, false), &[11.0, 1.0, 1.0, 1.0, 11.0, 11.0, 11.0, 11.0]);
        assert_eq!(got, [(0, Phase::Raised), (3, Phase::Cleared), (6, Phase::Raised)]);
    }

    #[test]
    fn several_windows_in_a_row_may_be_asked_for() {
        let got = run(rules(After::Times(3), 0, false), &[11.0, 11.0, 9.0, 11.0, 11.0, 11.0]);
        assert_eq!(got, [(5, Phase::Raised)]);
    }

    #[test]
    fn condition_must_be_met_for_its_time_and_time_alone_completes_it() {
        let got = run(rules(After::For(3 * S), 0, false), &[11.0, 11.0, 9.0, 11.0, 11.0, 11.0, 11.0]);
        assert_eq!(got, [(6, Phase::Raised)]);
        let mut state = rules(After::For(3 * S), 0, false);
        assert_eq!(step(&mut state, 1, 11.0), None);
        assert_eq!(state.settle(3 * S), None);
        assert_eq!(state.settle(4 * S).map(|change| change.phase), Some(Phase::Raised), "a door that stays open");
        let mut state = rules(After::For(3 * S), 0, false);
        step(&mut state, 1, 11.0);
        state.doubt();
        assert_eq!(state.settle(9 * S), None, "what came since gave no verdict");
        assert_eq!(step(&mut state, 10, 11.0), Some(Phase::Raised));
    }

    #[test]
    fn latched_alarm_stays_raised_until_its_own_episode_is_acknowledged() {
        let mut state = rules(After::Times(1), 0, true);
        step(&mut state, 1, 11.0);
        let id = state.episode().expect("raised").id.clone();
        assert_eq!(step(&mut state, 2, 1.0), None);
        assert_eq!(state.acknowledge("b-other", 3 * S), None);
        assert_eq!(state.settle(3 * S), None);
        let cleared = state.acknowledge(&id, 3 * S).expect("its condition has ended");
        assert!(cleared.phase == Phase::Cleared && cleared.episode.acknowledged);
        // While the condition is met it only is acknowledged.
        step(&mut state, 4, 11.0);
        let id = state.episode().expect("raised").id.clone();
        let change = state.acknowledge(&id, 5 * S).expect("to be published");
        assert!(change.phase == Phase::Raised && change.episode.acknowledged);
        assert_eq!(state.acknowledge(&id, 5 * S), None, "once");
        assert_eq!((step(&mut state, 6, 11.0), step(&mut state, 7, 1.0)), (None, Some(Phase::Cleared)));
    }

    #[test]
    fn acknowledged_alarm_respects_hold_off_and_clears_by_time() {
        let mut state = rules(After::Times(1), 10, true);
        step(&mut state, 1, 11.0);
        step(&mut state, 2, 1.0);
        let id = state.episode().expect("raised").id.clone();
        assert_eq!(state.acknowledge(&id, 3 * S).map(|change| change.phase), Some(Phase::Raised));
        assert_eq!((state.settle(10 * S), state.settle(11 * S).map(|c| c.phase)), (None, Some(Phase::Cleared)));
    }

    #[test]
    fn raised_alarm_that_nothing_looks_at_is_unknown_once_and_goes_on_with_the_next_score() {
        let mut state = rules(After::Times(1), 0, false);
        assert_eq!(state.unwatched(None), None, "one that is not raised is known");
        step(&mut state, 1, 11.0);
        let id = state.episode().expect("raised").id.clone();
        assert_eq!(
            state.unwatched(None).map(|change| (change.phase, change.episode.id)),
            Some((Phase::Unknown, id.clone()))
        );
        assert_eq!(state.unwatched(None), None, "it is reported once");
        // Also over a restart.
        let saved = serde_json::to_vec(state.episode().expect("raised")).expect("saved");
        let rules_again = Rules { after: After::Times(1), hold_off_ns: 0, latch: false };
        let mut state = Lifecycle::new(rules_again, "c", serde_json::from_slice(&saved).expect("read"));
        assert_eq!(step(&mut state, 2, 9.0), Some(Phase::Raised));
        assert_eq!(state.episode().map(|open| open.id.clone()), Some(id), "the same episode");
        assert_eq!(step(&mut state, 3, 9.0), None);
        state.unwatched(None).expect("unknown");
        assert_eq!(step(&mut state, 4, 1.0), Some(Phase::Cleared));
    }

    #[test]
    fn alarm_that_is_not_raised_may_be_unknown_too_and_is_cleared_or_raised_in_the_same_episode() {
        let mut state = rules(After::Times(1), 0, false);
        let unknown = state.unwatched(Some(5 * S)).expect("unknown");
        assert!(unknown.phase == Phase::Unknown && !unknown.episode.raised);
        assert_eq!((state.unwatched(Some(6 * S)), step(&mut state, 7, 1.0)), (None, Some(Phase::Cleared)));
        let unknown = state.unwatched(Some(8 * S)).expect("unknown");
        assert_eq!(step(&mut state, 9, 11.0), Some(Phase::Raised));
        assert_eq!(state.episode().map(|open| &open.id), Some(&unknown.episode.id));
    }

    #[test]
    fn state_saved_by_an_older_version_is_read() {
        let old = "{\"id\":\"e-1\",\"level\":10.0,\"peak\":11.5,\"in_seq\":[1,4],\"in_t_ns\":[5,6],\"unknown\":false}";
        let open: Episode = serde_json::from_str(old).expect("read");
        assert!(open.raised && !open.acknowledged && open.peak == 11.5);
    }
}
