//! Alarms: one condition each, on samples of a channel or on a pipeline's score. Fed by the stage that has the data (`signal`
//! for channels, `infer` for scores), so that no queue lies between a sample and the line it switches. Needs no model.
//!
//! ```text
//! signal ─ samples, time ─┐                                       ┌─▶ flag and bell: outputs, tapes (at once)
//!                         ├─▶ condition ─ verdict ─▶ state ─ change ┼─▶ the scribe: STATE/alarms/NAME
//! infer ─── scores ───────┘      (pure)              (pure)        └─▶ record on up/a/NAME
//! ```

mod condition;
pub mod explain;
pub mod overrule;
mod record;
mod state;
#[cfg(test)]
mod story_tests;

use std::sync::Arc;

pub use self::state::Origin;
use self::{
    condition::{Seen, Verdict, Watch},
    record::Subject,
    state::{Change, Episode, Lifecycle, Rules},
};
use crate::{
    config::{self, Condition, Config, Watches},
    flow::{
        Class, Draft, Phase, Quality, Retain, Scored, Stamp, StreamId, WindowTag,
        alarm::{AlarmShown, Unwatched},
        board::Board,
        event::{ALARM_ACKNOWLEDGED, ALARM_CLEARED, ALARM_RAISED},
    },
    host::Later,
};

/// One alarm.
struct Alarm {
    config: config::Alarm,
    /// Name of its channel; `None`: it watches a score.
    channel: Option<String>,
    watch: Watch,
    state: Lifecycle,
    stream: StreamId,
    /// Its place in the configuration.
    place: usize,
    shown: AlarmShown,
    /// Of the model whose score was judged last.
    lineage: Option<Arc<str>>,
    /// Until when an answer from elsewhere stands while the model is unsure, ns since boot.
    stands_until_ns: Option<u64>,
}

/// The alarms that one stage evaluates.
pub struct Alarms {
    alarms: Vec<Alarm>,
    keep: Option<Later>,
    board: Arc<Board>,
}

/// What alarms are made with.
#[derive(Clone)]
pub struct Parts<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// `up/a/NAME`, by alarm.
    pub streams: &'a [StreamId],
    /// Id of this boot; names episodes.
    pub boot: &'a str,
    /// Where open episodes are kept; `None`: nowhere (replay).
    pub keep: Option<Later>,
    /// Where flags are shown.
    pub board: Arc<Board>,
}

impl Alarms {
    /// The alarms on channels, for the signal stage.
    pub fn of_channels(setup: Parts<'_>) -> Self {
        Self::new(setup, |watches| matches!(watches, Watches::Channel(_)))
    }

    /// The alarms on the score of one pipeline.
    pub fn of_pipeline(setup: Parts<'_>, pipeline: usize) -> Self {
        Self::new(setup, |watches| watches == Watches::Pipeline(pipeline))
    }

    fn new(setup: Parts<'_>, mine: impl Fn(Watches) -> bool) -> Self {
        let Parts { config, streams, boot, keep, board } = setup;
        let all = config.alarms.iter().zip(streams).enumerate().filter(|(_, (alarm, _))| mine(alarm.watches));
        let alarms = all.map(|(place, (alarm, stream))| {
            let open =
                keep.as_ref().and_then(|keep| serde_json::from_slice::<Episode>(&saved(keep, &alarm.name)?).ok());
            let (channel, stale_ns, unknown) = match alarm.watches {
                Watches::Channel(at) => {
                    let channel = &config.channels[at];
                    let stale_ms = config.sources[usize::from(channel.source.0)].stale_ms;
                    (Some(channel.name.clone()), stale_ms * 1_000_000, Unwatched::NoSamples)
                }
                Watches::Pipeline(_) => (None, 0, Unwatched::ModelNotServing),
            };
            let rules = Rules { after: alarm.after, hold_off_ns: alarm.hold_off_ms * 1_000_000, latch: alarm.latch };
            let mut made = Alarm {
                config: alarm.clone(),
                channel,
                watch: Watch::new(alarm.condition.clone(), stale_ns),
                state: Lifecycle::new(rules, boot, open),
                stream: *stream,
                place,
                shown: AlarmShown::default(),
                lineage: None,
                stands_until_ns: None,
            };
            board.alarms[place].begin(made.is_raised());
            made.show(&board, Some(unknown));
            made
        });
        Self { alarms: alarms.collect(), keep, board }
    }

    /// Places here of alarms on a channel.
    pub fn on_channel(&self, channel: usize) -> impl Iterator<Item = usize> {
        let mine = move |(_, alarm): &(usize, &Alarm)| alarm.config.watches == Watches::Channel(channel);
        self.alarms.iter().enumerate().filter(mine).map(|(at, _)| at)
    }

    /// Whether any of its alarms is raised.
    pub fn is_raised(&self) -> bool {
        self.alarms.iter().any(Alarm::is_raised)
    }

    /// Those that are raised: name and episode.
    pub fn raised(&self) -> Vec<(String, String)> {
        let open = |alarm: &Alarm| {
            let open = alarm.state.episode().filter(|open| open.raised)?;
            Some((alarm.config.name.clone(), open.id.clone()))
        };
        self.alarms.iter().filter_map(open).collect()
    }

    /// A sample of the channel of the alarm at this place.
    pub fn sample(&mut self, place: usize, (value, quality): (f64, Quality), at: Origin, drafts: &mut Vec<Draft>) {
        if quality == Quality::Absent {
            return;
        }
        let alarm = &mut self.alarms[place];
        // A silence that this sample ends, where no tick showed it: a file that is replayed.
        let before = alarm.watch.look(at.stamp.boot_ns);
        let seen = alarm.watch.sample(value, quality, at.stamp.boot_ns);
        for seen in before.filter(|_| alarm.config.condition.is_stale()).into_iter().chain(seen) {
            self.step(place, seen, at, drafts);
        }
        if seen.is_none() {
            self.alarms[place].state.doubt();
        }
    }

    /// Time went on for the channel of the alarm at this place.
    pub fn look(&mut self, place: usize, stamp: Stamp, drafts: &mut Vec<Draft>) {
        let now_ns = stamp.boot_ns;
        self.take_acknowledged(place, stamp, drafts);
        let alarm = &mut self.alarms[place];
        if let Some(seen) = alarm.watch.look(now_ns) {
            let here = Origin { seq: (0, 0), t_ns: (now_ns as i64, now_ns as i64), stamp };
            let at = alarm.state.last().map_or(here, |(_, at)| Origin { stamp, ..*at });
            self.step(place, seen, at, drafts);
        } else if let Some(change) = alarm.state.settle(now_ns) {
            self.publish(place, change, stamp, drafts);
        }
        if let Some(why) = self.alarms[place].watch.unwatched(now_ns) {
            self.unknown(place, why, (stamp, true), drafts);
        }
    }

    /// What a model said of a window, for all of them. `learning`: its score says nothing yet. Returns the places in `drafts` of
    /// alarms on the score that were raised.
    pub fn scored(
        &mut self,
        said: &Scored,
        learning: bool,
        (tag, lineage): (&WindowTag, &Arc<str>),
        drafts: &mut Vec<Draft>,
    ) -> Vec<usize> {
        let at = Origin { seq: tag.in_seq, t_ns: tag.in_t_ns, stamp: tag.last };
        let mut raised = Vec::new();
        for place in 0..self.alarms.len() {
            let (draft, alarm) = (drafts.len(), &mut self.alarms[place]);
            alarm.lineage = Some(lineage.clone());
            let on_score = matches!(alarm.config.condition, Condition::Score { .. });
            let seen = if learning && on_score { Err(Some(Unwatched::Learning)) } else { alarm.watch.scored(said) };
            let seen = seen.map(|seen| alarm.heed_answer(seen, said.unsure, at.stamp.boot_ns));
            match seen {
                // While a model learns only what was raised is reported: that is a part of its life.
                Err(why) => {
                    why.into_iter().for_each(|why| self.unknown(place, why, (at.stamp, !learning), drafts));
                }
                Ok(seen) if self.step(place, seen, at, drafts) == Some(Phase::Raised) && on_score => raised.push(draft),
                Ok(_) => {}
            }
        }
        raised
    }

    /// No model serves: nothing evaluates any of them.
    pub fn unwatched(&mut self, stamp: Stamp, drafts: &mut Vec<Draft>) {
        for place in 0..self.alarms.len() {
            self.alarms[place].lineage = None;
            self.unknown(place, Unwatched::ModelNotServing, (stamp, true), drafts);
        }
    }

    /// Takes acknowledgements that control was asked for.
    pub fn acknowledged(&mut self, stamp: Stamp, drafts: &mut Vec<Draft>) {
        (0..self.alarms.len()).for_each(|place| self.take_acknowledged(place, stamp, drafts));
    }

    fn take_acknowledged(&mut self, place: usize, stamp: Stamp, drafts: &mut Vec<Draft>) {
        let alarm = &mut self.alarms[place];
        let Some(id) = self.board.alarms[alarm.place].take_acknowledged() else { return };
        if let Some(change) = alarm.state.acknowledge(&id, stamp.boot_ns) {
            tracing::info!(
                message_id = ALARM_ACKNOWLEDGED,
                alarm = alarm.config.name,
                episode = id,
                "alarm {} acknowledged: it clears when its condition has ended",
                alarm.config.name
            );
            self.publish(place, change, stamp, drafts);
        }
    }

    fn step(&mut self, place: usize, seen: Seen, at: Origin, drafts: &mut Vec<Draft>) -> Option<Phase> {
        let alarm = &mut self.alarms[place];
        let change = alarm.state.step(seen, at, |a, b| alarm.watch.is_worse(a, b));
        if alarm.config.condition.is_rate() && seen.verdict == Verdict::Met {
            // Without a further sample it is unknown whether it still changes.
            alarm.state.doubt();
        }
        if alarm.shown.unknown.is_some() {
            alarm.show(&self.board, None);
        }
        let change = change?;
        let phase = change.phase;
        self.publish(place, change, at.stamp, drafts);
        Some(phase)
    }

    fn unknown(&mut self, place: usize, why: Unwatched, (stamp, all): (Stamp, bool), drafts: &mut Vec<Draft>) {
        let alarm = &mut self.alarms[place];
        let change = alarm.state.unwatched(all.then_some(stamp.boot_ns));
        if alarm.shown.unknown != Some(why) {
            alarm.show(&self.board, Some(why));
        }
        if let Some(change) = change {
            self.publish(place, change, stamp, drafts);
        }
    }

    /// An alarm's change: to its lines, onto the disk, and as a record. Nothing here waits for the disk.
    fn publish(&mut self, place: usize, change: Change, stamp: Stamp, drafts: &mut Vec<Draft>) {
        let alarm = &mut self.alarms[place];
        // The lamp of an alarm that nothing evaluates stays as it is.
        let flag = &self.board.alarms[alarm.place];
        if change.phase != Phase::Unknown && flag.is_raised() != alarm.is_raised() {
            flag.set_raised(alarm.is_raised());
            self.board.alarm_bell.ring();
        }
        if let Some(keep) = &self.keep {
            let name = &alarm.config.name;
            match alarm.state.episode() {
                Some(open) => keep.save(name, serde_json::to_vec(open).unwrap_or_default()),
                None => keep.remove(name),
            }
        }
        alarm.show(&self.board, alarm.shown.unknown);
        alarm.log(&change);
        let subject = match (&alarm.channel, &alarm.config.condition) {
            (Some(name), _) => Subject::Channel(name),
            (None, Condition::Class { class, .. }) => Subject::Class(class),
            (None, _) => Subject::Score,
        };
        let body = record::members(&alarm.config, &subject, &change, alarm.state.last(), alarm.shown.unknown);
        let retain = if change.phase == Phase::Cleared { Retain::Remove } else { Retain::Keep };
        let lineage = alarm.lineage.clone();
        drafts.push(Draft { stream: alarm.stream, class: Class::Event, stamp, lineage, body, retain });
    }
}

impl Alarm {
    fn is_raised(&self) -> bool {
        self.state.episode().is_some_and(|open| open.raised)
    }

    /// Shows others how it is now.
    fn show(&mut self, board: &Board, unknown: Option<Unwatched>) {
        let open = self.state.episode();
        let acknowledged = open.is_some_and(|open| open.acknowledged);
        self.shown = AlarmShown {
            unknown,
            episode: open.map(|open| open.id.clone()),
            latched: self.config.latch && self.is_raised() && !acknowledged,
            acknowledged,
        };
        board.alarms[self.place].show(self.shown.clone());
    }

    /// What was seen last, for the log: `channel temp 91.42`, `score 8.23`.
    fn seen(&self) -> String {
        let what = self.channel.as_ref().map_or("score".into(), |channel| format!("channel {channel}"));
        self.state.last().map_or(what.clone(), |(seen, _)| format!("{what} {}", self.figure(seen.value)))
    }

    /// A value or a level for the log. Scores are single precision.
    fn figure(&self, value: f64) -> String {
        if self.channel.is_none() { (value as f32).to_string() } else { value.to_string() }
    }

    fn log(&self, change: &Change) {
        let (alarm, seen) = (self.config.name.as_str(), self.seen());
        match change.phase {
            Phase::Raised if change.episode.acknowledged => {}
            Phase::Raised => {
                let (word, level) = (self.config.condition.word(), self.figure(change.episode.level));
                tracing::warn!(
                    message_id = ALARM_RAISED,
                    alarm,
                    "alarm {alarm} raised: {seen}, level {level} ({word})"
                );
            }
            Phase::Cleared => tracing::info!(message_id = ALARM_CLEARED, alarm, "alarm {alarm} cleared: {seen}"),
            Phase::Unknown => {
                let why = self.shown.unknown.map_or("nothing evaluates it", Unwatched::text);
                tracing::warn!(alarm, "alarm {alarm} unknown: {why}; it keeps its state until this ends");
            }
        }
    }
}

/// What was saved of an alarm. One that cannot be read counts as not raised: the next verdict decides.
fn saved(keep: &Later, alarm: &str) -> Option<Vec<u8>> {
    let unread = |why: &std::io::Error| {
        tracing::error!(alarm, "read the state of alarm {alarm}: {why}; it counts as not raised")
    };
    keep.load_patiently(alarm).inspect_err(unread).ok().flatten()
}
