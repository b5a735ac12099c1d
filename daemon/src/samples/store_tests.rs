//! Tests of the store on a real folder.

use serde_json::json;

use super::*;
use crate::{
    flow::{Clk, samples::Label},
    samples::record::tests::finished,
};

fn place(folder: &std::path::Path, max_bytes: u64) -> Place {
    let meters = Arc::new(Meters::new(0, 0, 1));
    Place { folder: folder.join("samples"), max_bytes, days: 30, names: ("s/d".into(), "boot".into()), meters }
}

fn open(folder: &std::path::Path) -> Store {
    Store::open(place(folder, 1 << 20), &|| ())
}

fn described() -> Described {
    Described {
        name: "p".into(),
        channels: vec!["a".into(), "b".into()],
        units: vec![String::new(), String::new()],
        steps: 1,
        apart: 1,
    }
}

fn chosen(n: u64, class: Kept) -> Chosen {
    let episodes = vec![Episode { alarm: "high".into(), id: format!("b-{n}") }];
    let around = (class == Kept::Alarm).then_some((At::Raised, episodes));
    Chosen { finished: finished(n), class, around }
}

fn win(n: u64) -> String {
    record::values(&finished(n).window.values).1
}

fn label(about: About, label: Label) -> Feedback {
    Feedback { about, label, by: Some("ana".into()), note: None }
}

const NOW: Stamp = Stamp { boot_ns: 1, wall_ms: Some(1_800_000_100_000), clk: Clk::Sync };

fn state(store: &Store) -> String {
    format!("{:?}", store.index)
}

#[test]
fn store_of_the_next_process_knows_what_this_one_wrote() {
    let dir = tempfile::tempdir().expect("folder");
    let mut store = open(dir.path());
    for (n, class) in [(1, Kept::Uniform), (2, Kept::Alarm), (3, Kept::Escalated), (4, Kept::Drift)] {
        store.add(&described(), &chosen(n, class));
    }
    let of_alarm = label(About::Alarm("high".into(), None), Label::Truth(true));
    let said = store.feedback(&of_alarm, "f-1", NOW);
    let Said::Done(text, result) = said else { panic!("{said:?}") };
    assert_eq!(text, "the label is stored");
    let lineage = json!({"model": "m@1.0.0", "cal": "none"});
    let want = json!({"label": true, "win": format!("sha256:{}", win(2)), "pipeline": "p", "lineage": lineage,
                      "alarm": "high", "id": "b-2", "windows": 1, "score": 0.25});
    assert_eq!(result, want);
    let of_window = label(About::Window(win(1)), Label::Class("cavitation".into()));
    assert!(matches!(store.feedback(&of_window, "f-2", NOW), Said::Done(..)));
    assert_eq!((store.index.counts(), store.index.labels().len()), ([0, 1, 1, 0, 2], 2));
    assert_eq!(state(&open(dir.path())), state(&store));
    let shown = &store.meters.samples;
    assert_eq!((shown.kept(), shown.dropped()), (4, 0));
}

#[test]
fn window_that_is_chosen_for_several_reasons_keeps_the_weightiest_and_all_its_episodes() {
    let of = |class, ids: &[&str], at| {
        let episodes = ids.iter().map(|id| Episode { alarm: "high".into(), id: (*id).into() }).collect();
        Chosen { finished: finished(2), class, around: (class == Kept::Alarm).then_some((at, episodes)) }
    };
    let uniform = || of(Kept::Uniform, &[], At::After);
    let (first, second) = (|| of(Kept::Alarm, &["b-1"], At::Raised), || of(Kept::Alarm, &["b-2"], At::Before));
    for order in [
        vec![first(), of(Kept::Drift, &[], At::After), of(Kept::Escalated, &[], At::After), second(), uniform()],
        vec![uniform(), second(), first(), of(Kept::Escalated, &[], At::After)],
    ] {
        let dir = tempfile::tempdir().expect("folder");
        let mut store = open(dir.path());
        order.iter().for_each(|chosen| store.add(&described(), chosen));
        assert_eq!(store.index.counts(), [0, 0, 0, 1, 0]);
        let knows = |id: &str| store.index.knows(&Episode { alarm: "high".into(), id: id.into() });
        assert!(knows("b-1") && knows("b-2"), "{}", state(&store));
        assert!(store.index.raised("high", Some("b-1")).is_some());
        assert_eq!(state(&open(dir.path())), state(&store));
    }
}

#[test]
fn same_label_is_stored_once_and_another_replaces_it() {
    let dir = tempfile::tempdir().expect("folder");
    let mut store = open(dir.path());
    store.add(&described(), &chosen(2, Kept::Alarm));
    let named = || About::Alarm("high".into(), Some("b-2".into()));
    assert!(matches!(store.feedback(&label(named(), Label::Truth(true)), "f-1", NOW), Said::Done(..)));
    let newest = label(About::Alarm("high".into(), None), Label::Truth(true));
    assert!(matches!(store.feedback(&newest, "f-2", NOW), Said::Done(text, _) if text.contains("stored already")));
    let said = store.feedback(&label(named(), Label::Truth(false)), "f-3", NOW);
    assert!(matches!(&said, Said::Done(_, result) if result["replaced"]["label"] == true), "{said:?}");
    let next = open(dir.path());
    let labels: Vec<&Label> = next.index.labels().values().map(|label| &label.label).collect();
    assert_eq!(labels, [&Label::Truth(false)]);
}

#[test]
fn label_of_what_is_not_kept_is_rejected_with_the_reason() {
    let dir = tempfile::tempdir().expect("folder");
    let mut store = open(dir.path());
    store.add(&described(), &chosen(2, Kept::Alarm));
    for (about, why) in [
        (About::Window(win(3)), format!("no window with the digest sha256:{} is kept", win(3))),
        (About::Alarm("high".into(), Some("b-9".into())), "no window of episode `b-9` of alarm `high` is kept".into()),
        (About::Alarm("low".into(), None), "no window of an episode of alarm `low` is kept".into()),
    ] {
        assert_eq!(store.feedback(&label(about, Label::Truth(true)), "f", NOW), Said::Refused(Refused::Invalid, why));
    }
    assert!(store.index.labels().is_empty());
}

#[test]
fn files_that_a_kill_left_unfinished_or_the_medium_damaged_are_removed_and_no_other_is_touched() {
    let dir = tempfile::tempdir().expect("folder");
    let mut store = open(dir.path());
    (1..=4).for_each(|n| store.add(&described(), &chosen(n, Kept::Uniform)));
    let folder = dir.path().join("samples");
    let names = store.keep.names();
    fs::write(folder.join(&names[0]), "KLS1 torn").expect("tear");
    let whole = fs::read(folder.join(&names[1])).expect("read");
    fs::write(folder.join(&names[1]), &whole[..whole.len() - 1]).expect("cut");
    fs::write(folder.join("w-00000000000009-aa.kls.new"), "half").expect("half");
    fs::write(folder.join("pull.json"), "{}").expect("not a record");
    fs::create_dir(folder.join("pull")).expect("not a record");
    let store = open(dir.path());
    assert_eq!((store.index.counts()[0], store.meters.samples.damaged.get()), (2, 2));
    let left = [names[2..].to_vec(), Vec::new()].concat();
    assert_eq!(store.keep.names(), [vec!["pull".into(), "pull.json".into()], left].concat());
}

#[test]
fn full_store_keeps_labelled_windows_and_never_takes_more_than_its_quota() {
    let dir = tempfile::tempdir().expect("folder");
    let quota = 100 * 1024;
    let mut store = Store::open(place(dir.path(), quota), &|| ());
    store.add(&described(), &chosen(1, Kept::Uniform));
    store.add(&described(), &chosen(2, Kept::Alarm));
    for about in [About::Window(win(1)), About::Alarm("high".into(), None)] {
        assert!(matches!(store.feedback(&label(about, Label::Truth(true)), "f", NOW), Said::Done(..)));
    }
    for n in 10..200 {
        store.add(&described(), &chosen(n, [Kept::Uniform, Kept::Drift, Kept::Escalated, Kept::Alarm][n as usize % 4]));
    }
    let files = fs::read_dir(dir.path().join("samples")).expect("folder").flatten();
    let on_disk: u64 = files.map(|file| on_disk(file.metadata().expect("size").len() as usize)).sum();
    assert_eq!((on_disk, on_disk <= quota), (store.index.bytes(), true));
    let counts = store.index.counts();
    assert_eq!((counts[4], store.index.labels().len()), (2, 2), "{counts:?}");
    assert!(store.index.window(&win(1)).is_some() && store.index.raised("high", Some("b-2")).is_some());
    let evicted: Vec<u64> = store.meters.samples.evicted.iter().map(|n| n.get()).collect();
    let kept = store.meters.samples.kept() + store.meters.samples.full.get() + evicted.iter().sum::<u64>();
    assert_eq!((kept, evicted[4]), (192, 0), "every window is counted: {evicted:?}");
}

#[test]
fn windows_without_a_label_leave_at_their_age() {
    let dir = tempfile::tempdir().expect("folder");
    let mut store = open(dir.path());
    store.add(&described(), &chosen(1, Kept::Uniform));
    store.add(&described(), &chosen(2, Kept::Alarm));
    store.feedback(&label(About::Alarm("high".into(), None), Label::Truth(true)), "f", NOW);
    store.expire(None);
    assert_eq!(store.index.counts(), [1, 0, 0, 0, 1], "without a clock no age is known");
    store.expire(Some(1_800_000_000_000 + 31 * DAY_MS as i64));
    assert_eq!(store.index.counts(), [0, 0, 0, 0, 1]);
    assert_eq!(open(dir.path()).index.counts(), [0, 0, 0, 0, 1]);
}

#[test]
fn store_without_a_folder_that_can_be_written_counts_what_it_drops_and_rejects_no_start() {
    let dir = tempfile::tempdir().expect("folder");
    fs::write(dir.path().join("samples"), "a file").expect("file");
    let mut store = open(dir.path());
    store.add(&described(), &chosen(1, Kept::Alarm));
    assert_eq!((store.meters.samples.disk.get(), store.index.counts()), (1, [0; 5]));
    fs::remove_file(dir.path().join("samples")).expect("mend");
    store.add(&described(), &chosen(2, Kept::Alarm));
    assert_eq!(store.index.counts(), [0, 0, 0, 1, 0]);
}
