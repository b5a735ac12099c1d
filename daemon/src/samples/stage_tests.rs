//! Tests of the stage: windows and orders in, files and chunks out; with kills in between.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Instant,
};

use sha2::{Digest, Sha256};

use super::*;
use crate::{
    flow::{
        lane::{self, Sender},
        samples::{About, Desk, Feedback, Label, desk},
    },
    host::Clock,
    samples::record::{Head, hex, tests::finished},
};

/// A link that acknowledges chunks while it is there, and the stage behind it.
struct Rig {
    desk: Option<Desk>,
    windows: Option<Sender<Finished>>,
    thread: Option<JoinHandle<()>>,
    meters: Arc<Meters>,
    chunks: Arc<Mutex<Vec<Value>>>,
    online: Arc<AtomicBool>,
}

impl Rig {
    fn start(state: &Path, on: bool) -> Self {
        Self::with_budget(state, on, 0)
    }

    fn with_budget(state: &Path, on: bool, day: u64) -> Self {
        let meters = Arc::new(Meters::new(0, 0, 1));
        let (chunks, seq) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let online = Arc::new(AtomicBool::new(true));
        let (sender, windows) =
            lane::lane(lane::Bounds { items: 64, bytes: 1 << 20, patience: Some(Duration::from_secs(5)) });
        let (desk, inbox) = desk(16, left(state));
        let place = on.then(|| Place {
            folder: state.join("samples"),
            max_bytes: 8 << 20,
            days: 30,
            names: ("s/d".into(), "boot".into()),
            meters: meters.clone(),
        });
        let pipeline = Described {
            name: "p".into(),
            channels: vec!["a".into(), "b".into()],
            units: vec![String::new(); 2],
            steps: 1,
            apart: 1,
        };
        let (acked, told, there) = (seq.clone(), chunks.clone(), online.clone());
        let clock = Clock::default();
        let setup = Setup {
            state_dir: state.to_owned(),
            place,
            rules: Rules { around: 2, every_ns: None },
            pipelines: vec![pipeline],
            pulls: (1 << 20, day),
            boot: "boot".into(),
            meters: meters.clone(),
            blob: StreamId(0),
            put: Box::new(move |draft| {
                let body = [b"{", draft.body.as_ref(), b"}"].concat();
                told.lock().expect("chunks").push(serde_json::from_slice(&body).expect("JSON"));
                seq.fetch_add(1, Relaxed) + 1
            }),
            acked: Box::new(move || acked.load(Relaxed)),
            online: Box::new(move || there.load(Relaxed)),
            now: Box::new(move || clock.now()),
        };
        let thread = std::thread::spawn(move || run(setup, inbox, windows, || ()));
        Self { desk: Some(desk), windows: Some(sender), thread: Some(thread), meters, chunks, online }
    }

    fn ask(&self, kind: &str, id: &str, ask: Ask) {
        let order = Order::Ask { kind: kind.into(), id: id.into(), respond: None, ask };
        assert!(self.desk.as_ref().expect("desk").order(order));
    }

    fn answer(&self) -> (String, Said) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(answer) = self.desk.as_ref().expect("desk").answer() {
                return (answer.id, answer.said);
            }
            assert!(Instant::now() < until, "no answer");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn window(&self, finished: Finished) {
        self.windows.as_ref().expect("lane").push(finished, &mut Vec::new());
    }

    /// As many windows are kept.
    fn kept(&self, n: u64) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.meters.samples.kept() < n {
            assert!(Instant::now() < until, "{} of {n}", self.meters.samples.kept());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stop(mut self) -> Vec<Value> {
        (self.desk, self.windows) = (None, None);
        self.thread.take().expect("thread").join().expect("no panic");
        std::mem::take(&mut *self.chunks.lock().expect("chunks"))
    }
}

/// The blob that these chunks make, and its digest as they name it.
fn assembled(chunks: &[Value]) -> (Vec<u8>, String) {
    let first = chunks.first().expect("a chunk");
    let mut blob = vec![None; first["size"].as_u64().expect("size") as usize];
    for chunk in chunks {
        assert_eq!((&chunk["sha256"], &chunk["size"]), (&first["sha256"], &first["size"]));
        let bytes = STANDARD.decode(chunk["bytes"].as_str().expect("bytes")).expect("base64");
        let at = chunk["offset"].as_u64().expect("offset") as usize;
        for (i, byte) in bytes.into_iter().enumerate() {
            assert!(blob[at + i].is_none_or(|before| before == byte));
            blob[at + i] = Some(byte);
        }
    }
    let blob = blob.into_iter().collect::<Option<Vec<u8>>>().expect("no byte is missing");
    (blob, first["sha256"].as_str().expect("digest").to_owned())
}

fn alarmed(n: u64) -> Finished {
    Finished { raised: vec![("high".into(), "b-1".into())], beyond: true, ..finished(n) }
}

fn pull(wanted: Wanted) -> Ask {
    Ask::Pull { wanted, bytes_s: None, most: None }
}

#[test]
fn windows_and_labels_leave_as_one_blob_that_reads_as_records() {
    let dir = tempfile::tempdir().expect("folder");
    let rig = Rig::start(dir.path(), true);
    (1..=4).map(finished).chain((5..=10).map(alarmed)).for_each(|f| rig.window(f));
    rig.kept(5);
    let label = Feedback {
        about: About::Alarm("high".into(), None),
        label: Label::Truth(false),
        by: None,
        note: Some("door".into()),
    };
    rig.ask("feedback", "f-1", Ask::Feedback(label));
    assert!(matches!(rig.answer(), (id, Said::Done(..)) if id == "f-1"));
    rig.ask("samples.pull", "p-1", pull(Wanted::Samples(Filter::default())));
    assert!(matches!(rig.answer(), (_, Said::Running(text)) if text.contains("up/blob/")));
    let (_, said) = rig.answer();
    let Said::Done(_, result) = said else { panic!("{said:?}") };
    rig.ask("samples.pull", "p-2", pull(Wanted::Samples(Filter::default())));
    assert!(matches!(rig.answer(), (_, Said::Refused(Refused::Busy, _))), "until control has saved the result");
    assert!(rig.desk.as_ref().expect("desk").order(Order::Heard("p-1".into())));
    let (blob, digest) = assembled(&rig.stop());
    assert_eq!(
        (&hex(&Sha256::digest(&blob)), &result["sha256"], &result["files"]),
        (&digest, &json!(digest), &json!(6))
    );
    let (mut rest, mut windows, mut labels) = (blob.as_slice(), Vec::new(), 0);
    while !rest.is_empty() {
        let n = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("4 bytes")) as usize;
        let (one, more) = rest.split_at(16 + n(4) + n(8));
        match record::decode(one).expect("whole").0 {
            Head::Window { at, .. } => windows.push(at.expect("around an alarm")),
            Head::Label { label, note, .. } => {
                assert_eq!((label, note.as_deref()), (Label::Truth(false), Some("door")));
                labels += 1;
            }
        }
        rest = more;
    }
    assert_eq!((windows.join(" "), labels), ("before before raised after after".into(), 1));
    assert!(!dir.path().join("samples/pull").exists(), "nothing of it is left");
}

#[test]
fn pull_goes_on_after_restarts_and_an_outage_with_the_same_bytes() {
    let dir = tempfile::tempdir().expect("folder");
    let tapes = dir.path().join("tapes");
    std::fs::create_dir(&tapes).expect("folder");
    let tape: Vec<u8> = (0..1_500_000u32).map(|i| (i * 7 % 251) as u8).collect();
    std::fs::write(tapes.join("20260101T000000Z-high.tape"), &tape).expect("tape");
    std::fs::write(tapes.join("20260102T000000Z-low.tape"), "other").expect("tape");
    let rig = Rig::start(dir.path(), false);
    rig.ask("tape.pull", "t-0", pull(Wanted::Tape { name: Some("x".into()), alarm: None }));
    assert!(matches!(rig.answer(), (_, Said::Refused(_, text)) if text.contains("20260101T000000Z-high.tape")));
    rig.ask("tape.pull", "t-1", pull(Wanted::Tape { name: None, alarm: Some("high".into()) }));
    assert!(matches!(rig.answer(), (_, Said::Running(_))));
    std::thread::sleep(Duration::from_millis(500));
    let mut chunks = rig.stop();
    std::fs::remove_file(tapes.join("20260101T000000Z-high.tape")).expect("it is rotated out meanwhile");
    let rig = Rig::start(dir.path(), false);
    assert_eq!(rig.desk.as_ref().expect("desk").left.as_deref(), Some("t-1"), "control does not end it");
    rig.online.store(false, Relaxed);
    std::thread::sleep(Duration::from_millis(100));
    rig.online.store(true, Relaxed);
    let (_, said) = rig.answer();
    assert!(matches!(&said, Said::Done(_, result) if result["tape"] == "20260101T000000Z-high.tape"), "{said:?}");
    chunks.extend(rig.stop());
    let (blob, digest) = assembled(&chunks);
    assert!(blob == tape && digest == hex(&Sha256::digest(&tape)));
    let rig = Rig::start(dir.path(), false);
    assert!(matches!(rig.answer(), (id, Said::Done(..)) if id == "t-1"), "nobody heard it");
    assert!(rig.desk.as_ref().expect("desk").order(Order::Heard("t-1".into())));
    assert_eq!(rig.stop(), Vec::<Value>::new());
    assert_eq!(left(dir.path()), None);
}

#[test]
fn pull_that_is_cancelled_ends_both_commands_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("folder");
    let rig = Rig::start(dir.path(), true);
    rig.ask("samples.pull", "p-0", Ask::Cancel);
    assert!(matches!(rig.answer(), (_, Said::Refused(Refused::Invalid, _))));
    rig.ask("samples.pull", "p-1", pull(Wanted::Samples(Filter::default())));
    assert!(matches!(rig.answer(), (_, Said::Refused(Refused::Invalid, text)) if text.contains("no window")));
    rig.online.store(false, Relaxed);
    (1..=4).map(alarmed).for_each(|f| rig.window(f));
    rig.kept(3);
    rig.ask("samples.pull", "p-2", pull(Wanted::Samples(Filter::default())));
    assert!(matches!(rig.answer(), (_, Said::Running(_))));
    assert!(rig.meters.samples.pull().is_some_and(|pull| pull.id == "p-2" && pull.sent == 0));
    rig.ask("samples.pull", "p-3", Ask::Cancel);
    let answers = [rig.answer(), rig.answer()];
    assert!(matches!(&answers[0], (id, Said::Failed(why)) if id == "p-2" && why.contains("cancelled")), "{answers:?}");
    assert!(matches!(&answers[1], (id, Said::Done(..)) if id == "p-3"), "{answers:?}");
    assert_eq!(rig.stop(), Vec::<Value>::new(), "nothing was made without a connection");
    assert!(!dir.path().join("samples/pull").exists() && left(dir.path()).is_none());
}

#[test]
fn device_that_keeps_no_windows_rejects_labels_and_pulls_of_them() {
    let dir = tempfile::tempdir().expect("folder");
    let rig = Rig::start(dir.path(), false);
    rig.window(alarmed(1));
    rig.ask("samples.pull", "p", pull(Wanted::Samples(Filter::default())));
    assert!(matches!(rig.answer(), (_, Said::Refused(Refused::Invalid, text)) if text.contains("samples.max_mib")));
    rig.ask("tape.pull", "t", pull(Wanted::Tape { name: None, alarm: None }));
    assert!(matches!(rig.answer(), (_, Said::Refused(Refused::Invalid, text)) if text.contains("no tape is saved")));
    rig.stop();
    assert!(!dir.path().join("samples").exists());
}

#[test]
fn alarm_that_flaps_all_day_writes_a_burst_and_then_a_bounded_number_an_hour() {
    let (mut allowed, second) = ((limits::SAMPLES_BURST, 0), 1_000_000_000);
    let kept = (0..86_400u64).flat_map(|s| [s; 17]).filter(|s| allows(&mut allowed, s * second)).count() as f64;
    assert!((kept - limits::SAMPLES_BURST - 24.0 * limits::SAMPLES_PER_HOUR).abs() < 2.0, "{kept}");
}

#[test]
fn pull_beyond_the_budget_of_a_day_waits_and_says_so_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("folder");
    let tapes = dir.path().join("tapes");
    std::fs::create_dir(&tapes).expect("folder");
    std::fs::write(tapes.join("a-high.tape"), vec![7; 700_000]).expect("tape");
    let day = 400 * 1024;
    let rig = Rig::with_budget(dir.path(), false, day);
    let whole = Ask::Pull { wanted: Wanted::Tape { name: None, alarm: None }, bytes_s: None, most: None };
    rig.ask("tape.pull", "t-0", whole);
    assert!(matches!(rig.answer(), (_, Said::Refused(_, text)) if text.contains("more than 409600")));
    let wanted = Wanted::Tape { name: None, alarm: None };
    rig.ask("tape.pull", "t-1", Ask::Pull { wanted, bytes_s: None, most: Some(1 << 20) });
    assert!(matches!(rig.answer(), (_, Said::Running(text)) if text.contains("up/blob/")));
    assert!(matches!(rig.answer(), (_, Said::Running(text)) if text.contains("samples.pull_mib_day")));
    assert!(rig.meters.samples.pull().is_some_and(|pull| pull.waits.is_some() && pull.sent > 300_000));
    let bytes =
        |chunks: &[Value]| chunks.iter().map(|c| c["bytes"].as_str().map_or(0, str::len) as u64).sum::<u64>() * 3 / 4;
    let first = bytes(&rig.stop());
    let rig = Rig::with_budget(dir.path(), false, day);
    assert!(matches!(rig.answer(), (id, Said::Running(text)) if id == "t-1" && text.contains("samples.pull_mib_day")));
    let second = bytes(&rig.stop());
    assert!(first + second <= day + 64, "{first} and {second} of {day}");
}
