//! What is known of the records in the store: who they are, which of them have a label, and which leave when room is short.
//! Pure; `store` has the files.
//!
//! Worth grows in the order of `Kept`; windows with a label are worth most. A window never makes one of more worth leave. Of the
//! classes between, none takes more than half of the room: a sensor that alarms all day must not displace all normal running.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    flow::{
        Kept,
        samples::{CLASSES, Filter, Label},
    },
    limits,
};

/// An alarm's episode. Alarms that rise at one moment have the same id: only both members together name an episode.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Episode {
    /// Name of the alarm.
    pub alarm: String,
    /// Id of the episode.
    pub id: String,
}

/// Names a record: when, ms since 1970 (0: not known), and its file.
pub type Key = (u64, String);

/// A window.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Digest of its values, hex.
    pub win: String,
    /// Why it is kept.
    pub class: Kept,
    /// Its pipeline.
    pub pipeline: String,
    /// Alarms that it lies around.
    pub episodes: Vec<Episode>,
    /// It raised them.
    pub raised: bool,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// A label.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// The label.
    pub label: Label,
    /// Digests of the windows that it is about, hex.
    pub wins: Vec<String>,
    /// The episode that it is about.
    pub episode: Option<Episode>,
    /// Who said so.
    pub by: Option<String>,
    /// A remark.
    pub note: Option<String>,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Index {
    windows: BTreeMap<Key, Window>,
    /// By file.
    labels: BTreeMap<String, Labelled>,
    /// What the labels name.
    wins: BTreeSet<String>,
    episodes: BTreeSet<Episode>,
    /// Windows and bytes by worth.
    counts: [(u64, u64); CLASSES],
    label_bytes: u64,
}

/// Place of those with a label.
const LABELLED: usize = CLASSES - 1;

impl Index {
    /// Bytes on the disk.
    pub fn bytes(&self) -> u64 {
        self.label_bytes + self.counts.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// Windows by worth.
    pub fn counts(&self) -> [u64; CLASSES] {
        self.counts.map(|(n, _)| n)
    }

    /// Labels, by file.
    pub fn labels(&self) -> &BTreeMap<String, Labelled> {
        &self.labels
    }

    /// Whether windows of this episode are kept.
    pub fn knows(&self, episode: &Episode) -> bool {
        let of = |window: &Window| window.episodes.contains(episode);
        // Only the newest are of interest: an episode that is open.
        self.windows.values().rev().any(of)
    }

    /// How much a window is worth.
    pub fn worth(&self, window: &Window) -> usize {
        let labelled = self.wins.contains(&window.win) || window.episodes.iter().any(|of| self.episodes.contains(of));
        if labelled { LABELLED } else { window.class as usize }
    }

    /// The window of this key.
    pub fn get(&self, key: &Key) -> Option<&Window> {
        self.windows.get(key)
    }

    /// Adds a window, or replaces the one of this key.
    pub fn add(&mut self, key: Key, window: Window) {
        self.take_out(&key);
        let worth = self.worth(&window);
        self.counts[worth].0 += 1;
        self.counts[worth].1 += window.bytes;
        self.windows.insert(key, window);
    }

    /// Removes a window. Returns its worth, and the files of labels that have no window left.
    pub fn remove(&mut self, key: &Key) -> Option<(usize, Vec<String>)> {
        let (window, worth) = self.take_out(key)?;
        if worth < LABELLED {
            return Some((worth, Vec::new()));
        }
        let without = |label: &Labelled| {
            let about = |window: &Window| is_about(label, window);
            is_about(label, &window) && !self.windows.values().any(about)
        };
        let gone: Vec<String> = self.labels.iter().filter(|(_, l)| without(l)).map(|(name, _)| name.clone()).collect();
        Some((worth, gone))
    }

    fn take_out(&mut self, key: &Key) -> Option<(Window, usize)> {
        let window = self.windows.remove(key)?;
        let worth = self.worth(&window);
        self.counts[worth].0 -= 1;
        self.counts[worth].1 -= window.bytes;
        Some((window, worth))
    }

    /// Adds a label, or replaces the one in this file.
    pub fn add_label(&mut self, file: String, label: Labelled) {
        self.label_bytes += label.bytes;
        if let Some(before) = self.labels.insert(file, label) {
            self.label_bytes -= before.bytes;
        }
        self.count_again();
    }

    /// Removes a label.
    pub fn remove_label(&mut self, file: &str) {
        if let Some(label) = self.labels.remove(file) {
            self.label_bytes -= label.bytes;
            self.count_again();
        }
    }

    /// What the labels name changed, and so the worth of windows.
    fn count_again(&mut self) {
        let labels = self.labels.values();
        self.wins = labels.clone().flat_map(|label| label.wins.iter().cloned()).collect();
        self.episodes = labels.filter_map(|label| label.episode.clone()).collect();
        let mut counts = [(0, 0); CLASSES];
        for window in self.windows.values() {
            let worth = self.worth(window);
            counts[worth].0 += 1;
            counts[worth].1 += window.bytes;
        }
        self.counts = counts;
    }

    /// The windows that leave so that one of this class and size has room within the quota. `None`: all that is kept is worth
    /// more.
    pub fn room(&self, class: Kept, bytes: u64, quota: u64) -> Option<Vec<Key>> {
        let class = class as usize;
        let between = class != Kept::Uniform as usize;
        let mut own = if between && self.counts[class].1 + bytes > quota / 2 {
            (self.counts[class].1 + bytes).saturating_sub(quota / 2)
        } else {
            0
        };
        let mut over = (self.bytes() + bytes).saturating_sub(quota);
        let mut records = (self.windows.len() + self.labels.len() + 1).saturating_sub(limits::SAMPLES_MAX);
        let mut leave = Vec::new();
        // An alarm may make one with a label leave, as the last.
        let last = if class == Kept::Alarm as usize { LABELLED } else { class };
        // Its own class first where that has more than its share.
        let order =
            [class].into_iter().filter(|_| own > 0).chain((0..=last).filter(|worth| own == 0 || *worth != class));
        for worth in order.collect::<Vec<_>>() {
            let of = self.windows.iter().filter(|(_, window)| self.worth(window) == worth);
            for (key, window) in of {
                let more = over > 0 || records > 0 || worth == class && own > 0;
                if !more {
                    break;
                }
                over = over.saturating_sub(window.bytes);
                records = records.saturating_sub(1);
                own = if worth == class { own.saturating_sub(window.bytes) } else { own };
                leave.push(key.clone());
            }
        }
        (over == 0 && records == 0).then_some(leave)
    }

    /// The windows that leave so that a label has room; fewer where only windows with a label are left.
    pub fn room_for_label(&self, bytes: u64, quota: u64) -> Vec<Key> {
        let mut over = (self.bytes() + bytes).saturating_sub(quota);
        let mut leave = Vec::new();
        for worth in 0..LABELLED {
            for (key, window) in self.windows.iter().filter(|(_, window)| self.worth(window) == worth) {
                if over == 0 {
                    return leave;
                }
                over = over.saturating_sub(window.bytes);
                leave.push(key.clone());
            }
        }
        leave
    }

    /// Windows without a label that are older than this, ms since 1970. Where the clock was not set the age is not known.
    pub fn older(&self, than_ms: u64) -> Vec<Key> {
        let old = self.windows.range((1, String::new())..(than_ms.max(1), String::new()));
        old.filter(|(_, window)| self.worth(window) < LABELLED).map(|(key, _)| key.clone()).collect()
    }

    /// The window that a label is about: the one with this digest, or the one that raised an alarm, the newest of several.
    pub fn window(&self, win: &str) -> Option<(&Key, &Window)> {
        self.windows.iter().rev().find(|(_, window)| window.win == win)
    }

    /// The window that raised this alarm, in this episode, or in the newest that is kept.
    pub fn raised(&self, alarm: &str, id: Option<&str>) -> Option<(&Key, &Window, &Episode)> {
        self.windows.iter().rev().filter(|(_, window)| window.raised).find_map(|(key, window)| {
            let of = |of: &&Episode| of.alarm == alarm && id.is_none_or(|id| of.id == id);
            Some((key, window, window.episodes.iter().find(of)?))
        })
    }

    /// How many windows a label is about that names this digest, and this episode.
    pub fn about(&self, win: &str, episode: Option<&Episode>) -> usize {
        self.windows.keys().filter(|key| self.is(key, win, episode)).count()
    }

    /// Whether such a label is about the window of this key.
    pub fn is(&self, key: &Key, win: &str, episode: Option<&Episode>) -> bool {
        let of = |window: &Window| window.win == win || episode.is_some_and(|of| window.episodes.contains(of));
        self.windows.get(key).is_some_and(of)
    }

    /// The files that a pull takes, with their labels: those of most worth, the newest of them first, up to `most` bytes.
    pub fn select(&self, filter: &Filter, most: u64) -> Vec<String> {
        let since = filter.since_ms.map_or(0, |ms| ms.max(0) as u64);
        let until = filter.until_ms.map_or(u64::MAX, |ms| ms.max(0) as u64);
        let fits = |(key, window): &(&Key, &Window)| {
            filter.pipeline.as_ref().is_none_or(|name| *name == window.pipeline)
                && filter.class.is_none_or(|class| class == window.class)
                && (!filter.labelled || self.worth(window) == LABELLED)
                && (since..=until).contains(&key.0)
        };
        let mut all: Vec<_> = self.windows.iter().filter(fits).collect();
        all.sort_by_key(|(key, window)| (std::cmp::Reverse(self.worth(window)), std::cmp::Reverse(*key)));
        let (mut files, mut labels, mut left) = (Vec::new(), BTreeSet::new(), most);
        for (key, window) in all {
            let any = if self.worth(window) == LABELLED { usize::MAX } else { 0 };
            let of = self.labels.iter().take(any);
            let of = of.filter(|(file, label)| is_about(label, window) && !labels.contains(*file));
            let of: Vec<(&String, u64)> = of.map(|(file, label)| (file, label.bytes)).collect();
            let bytes = window.bytes + of.iter().map(|(_, bytes)| bytes).sum::<u64>();
            let Some(rest) = left.checked_sub(bytes) else { break };
            left = rest;
            labels.extend(of.into_iter().map(|(file, _)| file.clone()));
            files.push(key.1.clone());
        }
        files.into_iter().chain(labels).collect()
    }
}

/// Whether a label says something of a window.
fn is_about(label: &Labelled, window: &Window) -> bool {
    label.wins.contains(&window.win) || label.episode.as_ref().is_some_and(|episode| window.episodes.contains(episode))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn window(n: u64, class: Kept) -> (Key, Window) {
        let episodes = match class {
            Kept::Alarm => vec![Episode { alarm: "high".into(), id: format!("b-{n}") }],
            _ => Vec::new(),
        };
        let win = format!("{n:064x}");
        let window = Window { win, class, pipeline: "p".into(), episodes, raised: true, bytes: 4 * KIB };
        ((n, format!("w-{n:014}.kls")), window)
    }

    fn label(n: u64) -> Labelled {
        let episode = Some(Episode { alarm: "high".into(), id: format!("b-{n}") });
        let wins = vec![format!("{n:064x}")];
        Labelled { label: Label::Truth(true), wins, episode, by: None, note: None, bytes: 4 * KIB }
    }

    fn index(windows: &[(u64, Kept)]) -> Index {
        let mut index = Index::default();
        windows.iter().map(|(n, class)| window(*n, *class)).for_each(|(key, window)| index.add(key, window));
        index
    }

    fn times(keys: Option<Vec<Key>>) -> Option<Vec<u64>> {
        keys.map(|keys| keys.into_iter().map(|(ms, _)| ms).collect())
    }

    #[test]
    fn full_store_evicts_uniform_first_and_labelled_last_and_never_for_less_worth() {
        use Kept::{Alarm, Drift, Escalated, Uniform};
        let mut index = index(&[(1, Alarm), (2, Drift), (3, Uniform), (4, Escalated), (5, Uniform), (6, Alarm)]);
        index.add_label("l-1".into(), label(1));
        assert_eq!((index.bytes(), index.counts()), (28 * KIB, [2, 1, 1, 1, 1]));
        let room = |class, bytes: u64| times(index.room(class, bytes * KIB, 28 * KIB));
        assert_eq!(room(Alarm, 4), Some(vec![3]));
        assert_eq!(room(Alarm, 8), Some(vec![3, 5]));
        assert_eq!(room(Uniform, 4), Some(vec![3]), "its own class, the oldest");
        assert_eq!(room(Uniform, 12), None, "all that is left is worth more");
        assert_eq!(room(Escalated, 16), Some(vec![4, 3, 5, 2]), "its own class has no more than half");
        assert_eq!(room(Drift, 16), None);
        let full = times(index.room(Alarm, 24 * KIB, 28 * KIB));
        assert_eq!(full, Some(vec![6, 3, 5, 2, 4, 1]), "what has a label leaves last");
        assert_eq!(times(index.room(Alarm, 4 * KIB, 1 << 30)), Some(vec![]));
    }

    #[test]
    fn alarms_all_day_take_half_of_the_room_and_leave_normal_running_the_rest() {
        let quota = 400 * KIB;
        let mut index = index(&(1..=50).map(|n| (n, Kept::Uniform)).collect::<Vec<_>>());
        for n in 100..1000 {
            let (key, window) = window(n, Kept::Alarm);
            index.room(Kept::Alarm, window.bytes, quota).expect("room").iter().for_each(|key| drop(index.remove(key)));
            index.add(key, window);
        }
        assert_eq!(index.counts(), [50, 0, 0, 50, 0]);
    }

    #[test]
    fn label_makes_its_windows_labelled_and_goes_with_the_last_of_them() {
        let mut index = index(&[(1, Kept::Uniform), (2, Kept::Alarm)]);
        let (_, before) = window(2, Kept::Alarm);
        index.add((3, "w-3".into()), Window { win: "x".into(), raised: false, ..before });
        index.add_label("l-2".into(), label(2));
        assert_eq!(index.counts(), [1, 0, 0, 0, 2], "the window before it as well: it is of the episode");
        assert_eq!(index.older(100), [window(1, Kept::Uniform).0], "a label keeps windows for longer");
        assert_eq!(index.remove(&window(2, Kept::Alarm).0), Some((LABELLED, Vec::new())));
        assert_eq!(index.remove(&(3, "w-3".into())), Some((LABELLED, vec!["l-2".into()])));
        index.remove_label("l-2");
        assert_eq!((index.bytes(), index.counts()), (4 * KIB, [1, 0, 0, 0, 0]));
    }

    #[test]
    fn window_of_an_alarm_is_the_one_that_raised_the_named_or_the_newest_episode() {
        let mut index = index(&[(1, Kept::Alarm), (2, Kept::Alarm)]);
        let (_, before) = window(2, Kept::Alarm);
        index.add((9, "w-9".into()), Window { raised: false, ..before });
        let found = |alarm, id| index.raised(alarm, id).map(|(key, ..)| key.0);
        assert_eq!((found("high", None), found("high", Some("b-1"))), (Some(2), Some(1)));
        assert_eq!((found("low", None), found("high", Some("b-3"))), (None, None));
        assert_eq!(index.window(&format!("{:064x}", 1)).map(|(key, _)| key.0), Some(1));
        let knows = |alarm: &str, id: &str| index.knows(&Episode { alarm: alarm.into(), id: id.into() });
        assert!(knows("high", "b-2") && !knows("high", "b-3") && !knows("low", "b-2"));
    }

    #[test]
    fn label_of_an_alarm_does_not_count_for_another_alarm_that_rose_at_the_same_moment() {
        let mut index = index(&[(1, Kept::Alarm)]);
        let (key, other) = window(2, Kept::Alarm);
        let episodes = vec![Episode { alarm: "low".into(), id: "b-1".into() }];
        index.add(key.clone(), Window { episodes, ..other });
        index.add_label("l-1".into(), label(1));
        assert_eq!(index.counts(), [0, 0, 0, 1, 1]);
        let (episode, win) = (label(1).episode, format!("{:064x}", 1));
        assert_eq!(index.about(&win, episode.as_ref()), 1);
        assert!(!index.is(&key, &win, episode.as_ref()));
        let labelled = Filter { labelled: true, ..Filter::default() };
        assert_eq!(index.select(&labelled, 1024 * KIB), [window(1, Kept::Alarm).0.1, "l-1".into()]);
        assert_eq!(
            index.remove(&window(1, Kept::Alarm).0),
            Some((LABELLED, vec!["l-1".into()])),
            "it has no window left"
        );
    }

    #[test]
    fn pull_takes_what_is_worth_most_and_newest_with_its_labels_within_the_budget() {
        let mut index = index(&[(1, Kept::Alarm), (2, Kept::Alarm), (3, Kept::Uniform), (4, Kept::Uniform)]);
        index.add_label("l-1".into(), label(1));
        let all = Filter::default();
        let names = |filter: &Filter, kib: u64| index.select(filter, kib * KIB);
        let file = |n| window(n, Kept::Uniform).0.1;
        assert_eq!(names(&all, 1024), [file(1), file(2), file(4), file(3), "l-1".into()]);
        assert_eq!(names(&all, 12), [file(1), file(2), "l-1".into()]);
        assert_eq!(names(&Filter { labelled: true, ..all.clone() }, 1024), [file(1), "l-1".into()]);
        assert_eq!(names(&Filter { class: Some(Kept::Uniform), since_ms: Some(4), ..all.clone() }, 1024), [file(4)]);
        assert_eq!(names(&Filter { pipeline: Some("q".into()), ..all }, 1024), Vec::<String>::new());
    }

    #[test]
    fn age_counts_only_where_the_clock_was_set() {
        let index = index(&[(0, Kept::Uniform), (5, Kept::Uniform), (9, Kept::Alarm)]);
        assert_eq!(times(Some(index.older(9))), Some(vec![5]));
    }
}
