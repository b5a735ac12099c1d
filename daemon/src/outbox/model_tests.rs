//! The outbox beside a model.

#[path = "fault_tests.rs"]
mod faults;

use super::*;
use crate::flow::Clk;

#[test]
fn a_disk_that_takes_nothing_stops_no_one_even_when_the_numbers_run_out() {
    let dir = tempfile::tempdir().expect("folder");
    let state_dir = dir.path().join("state");
    let setup = OpenWith {
        state_dir: state_dir.clone(),
        boot: "b".into(),
        streams: vec!["p/x".into(), "loss".into(), "e/x".into()],
        loss: StreamId(1),
        max_bytes: 1 << 20,
        expiry: Expiry::default(),
        program: None,
        now_s: 0,
        linger_ms: 0,
    };
    let Outbox { mut writer, committer, .. } = Outbox::open(setup);
    let stamp = Stamp { boot_ns: 1, wall_ms: None, clk: Clk::Unset };
    let close = committer.closer();
    let draft = move |stream| {
        let body = bytes::Bytes::from_static(b"\"a\":1");
        Draft { stream: StreamId(stream), class: Class::Score, stamp, lineage: None, body, retain: Retain::No }
    };
    let around = Around {
        now: Box::new(move || stamp),
        floor_ms: 0,
        beat: Box::new(|| {}),
        committed: Box::new(|_| {}),
        event: Box::new(move |_, _, _| draft(2)),
    };
    let thread = std::thread::spawn(move || committer.run(around));
    // A file in the folder's place: nothing can be made there again.
    while std::fs::write(&state_dir, "").is_err() {
        let _ = std::fs::remove_dir_all(&state_dir);
    }
    for _ in 0..2 * limits::SEQ_BLOCK / 32_768 {
        writer.lost(StreamId(0), 32_768, "gap");
    }
    writer.put(&mut vec![draft(0)]);
    let stats = writer.stats();
    assert!(!stats.disk_ok);
    assert_eq!(stats.lost[&("p/x".to_owned(), "gap".to_owned())], 2 * limits::SEQ_BLOCK);
    close();
    assert!(thread.join().expect("no panic").is_err(), "what was left could not be stored, and that is said");
}

#[test]
fn nobody_waits_for_a_disk_that_hangs_and_alarms_are_kept() {
    let dir = tempfile::tempdir().expect("folder");
    let setup = OpenWith {
        state_dir: dir.path().into(),
        boot: "b".into(),
        streams: vec!["p/x".into(), "loss".into(), "a/x".into()],
        loss: StreamId(1),
        max_bytes: 1 << 20,
        expiry: Expiry::default(),
        program: None,
        now_s: 0,
        linger_ms: 0,
    };
    let Outbox { mut writer, committer, .. } = Outbox::open(setup);
    let stamp = Stamp { boot_ns: 1, wall_ms: None, clk: Clk::Unset };
    let draft = |stream, class, bytes| {
        let body = vec![b'1'; bytes].into();
        Draft { stream: StreamId(stream), class, stamp, lineage: None, body, retain: Retain::No }
    };
    // The committer holds all there is and is in the middle of a write that does not come to an end.
    while writer.0.lock().tail.bytes() < limits::TAIL_OPENING_BYTES {
        writer.put_now(draft(0, Class::Score, 90_000));
    }
    let mut state = writer.0.lock();
    state.opening = false;
    let writing = state.tail.take_to_store(0, true);
    drop(state);
    assert!(writing.len() > 40);
    writer.0.on_disk_ns.store(Clock::boot_ns() - 2 * limits::DISK_PATIENCE.as_nanos() as u64, Relaxed);
    let began = std::time::Instant::now();
    for _ in 0..300 {
        writer.put(&mut vec![draft(0, Class::Score, 1000), draft(2, Class::Event, 100)]);
    }
    let stats = writer.stats();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(!stats.disk_ok && stats.ram_bytes <= (limits::TAIL_BYTES + limits::TAIL_ALARM_BYTES) as u64, "{stats:?}");
    assert!(stats.lost.keys().all(|(stream, why)| (stream.as_str(), why.as_str()) == ("p/x", "no_room")), "{stats:?}");
    drop(committer);
}

/// What may happen to an outbox.
#[derive(Debug, Clone)]
enum Step {
    Put { stream: u16, n: u16 },
    Lost { stream: u16, n: u16 },
    Send { n: u8 },
    Ack { from: u8, n: u8 },
    Refuse { at: u8 },
    Online,
    Offline,
    Wait { turns: u8 },
    Restart,
    Kill,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let step = prop_oneof![
        6 => (0u16..4, 1u16..300).prop_map(|(stream, n)| Step::Put { stream, n }),
        1 => (0u16..4, 1u16..9).prop_map(|(stream, n)| Step::Lost { stream, n }),
        5 => (1u8..20).prop_map(|n| Step::Send { n }),
        5 => (any::<u8>(), 1u8..20).prop_map(|(from, n)| Step::Ack { from, n }),
        1 => any::<u8>().prop_map(|at| Step::Refuse { at }),
        3 => Just(Step::Online),
        2 => Just(Step::Offline),
        5 => (1u8..12).prop_map(|turns| Step::Wait { turns }),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..60)
}

/// Streams of the model by place: class, name.
const STREAMS: [(Class, &str); 6] = [
    (Class::Score, "p/x"),
    (Class::Measurement, "m/y"),
    (Class::Event, "a/z"),
    (Class::Reply, "res/w"),
    (Class::Status, "loss"),
    (Class::Event, "e/x"),
];

/// The real outbox on a real disk, its thread played step by step, and beside it what must be true.
struct World {
    dir: tempfile::TempDir,
    life: u32,
    starts: u64,
    outbox: Option<(Writer, Reader, Committer)>,
    now_ns: u64,
    online: bool,
    flying: Vec<ToSend>,
    /// What was put: by its body, when.
    made: std::collections::BTreeMap<String, u64>,
    /// What was handed to the broker: body by stream and number.
    sent: std::collections::BTreeMap<(String, u64), String>,
    /// Highest number sent first, by stream and lane.
    last: std::collections::BTreeMap<(String, bool), u64>,
    /// Ranges of the ledger: stream, first, last, reason.
    lost: Vec<(String, u64, u64, String)>,
    /// Records that a kill may have cost: younger than 1.2 s, or not accepted because the disk failed.
    excused: std::collections::BTreeSet<String>,
    /// Records that are acknowledged or on disk, where disks fail.
    accepted: std::collections::BTreeSet<String>,
    killed: bool,
    /// The disk may fail.
    faulty: bool,
    max_bytes: u64,
    /// Stream and number of what was put, by its body.
    numbers: std::collections::BTreeMap<String, (&'static str, u64)>,
    /// Accepted records that did not arrive and were not evicted: known at the end.
    lost_accepted: usize,
    /// What happened, for a look at a failure.
    story: Vec<String>,
}

impl World {
    fn new(max_bytes: u64) -> Self {
        Self::on(tempfile::tempdir().expect("folder"), max_bytes, false)
    }

    fn on(dir: tempfile::TempDir, max_bytes: u64, faulty: bool) -> Self {
        let mut world = Self {
            dir,
            life: 0,
            starts: 0,
            outbox: None,
            now_ns: 1,
            online: false,
            flying: Vec::new(),
            made: Default::default(),
            sent: Default::default(),
            last: Default::default(),
            lost: Vec::new(),
            excused: Default::default(),
            accepted: Default::default(),
            killed: false,
            faulty,
            max_bytes,
            numbers: Default::default(),
            lost_accepted: 0,
            story: Vec::new(),
        };
        world.open();
        world
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join(format!("life-{}", self.life))
    }

    fn open(&mut self) {
        self.starts += 1;
        let opened = Outbox::open(OpenWith {
            state_dir: self.state_dir(),
            boot: "b".into(),
            streams: STREAMS.iter().map(|(_, name)| (*name).to_owned()).collect(),
            loss: StreamId(4),
            max_bytes: self.max_bytes,
            expiry: Expiry::default(),
            program: None,
            now_s: 1_800_000_000 + self.starts,
            linger_ms: 0,
        });
        let Outbox { writer, reader, committer, reports } = opened;
        assert!(self.faulty || reports.is_empty(), "nothing was damaged: {reports:?}");
        self.outbox = Some((writer, reader, committer));
        self.online = false;
        self.flying.clear();
    }

    fn parts(&mut self) -> &mut (Writer, Reader, Committer) {
        self.outbox.as_mut().expect("open")
    }

    fn stamp(&self) -> Stamp {
        Stamp { boot_ns: self.now_ns, wall_ms: None, clk: Clk::Unset }
    }

    fn turn(&mut self, closing: bool) {
        let done = self.try_turn(closing);
        assert!(self.faulty || done.is_ok(), "the disk works: {done:?}");
    }

    fn try_turn(&mut self, closing: bool) -> Result<(), String> {
        self.now_ns += limits::OUTBOX_TURN.as_nanos() as u64;
        let stamp = self.stamp();
        let around = Around {
            now: Box::new(move || stamp),
            floor_ms: 0,
            beat: Box::new(|| {}),
            committed: Box::new(|_| {}),
            event: event(self.faulty),
        };
        let done = self.parts().2.turn(stamp, 0, closing, &around);
        self.tell(done.as_ref().map_or_else(|why| format!("turn: {why}"), |()| "turn: ok".into()));
        if self.faulty && done.is_ok() {
            let old = self.now_ns.saturating_sub(1_200_000_000);
            let safe = self.made.iter().filter(|(body, at)| **at <= old && !self.excused.contains(*body));
            self.accepted.extend(safe.map(|(body, _)| body.clone()));
        }
        done
    }

    /// Writes down what happened; the same thing again is counted.
    fn tell(&mut self, what: String) {
        match self.story.last_mut() {
            Some(last) if *last == what || last.starts_with(&format!("{what} × ")) => {
                let times = last.rsplit_once(" × ").and_then(|(_, n)| n.parse().ok()).unwrap_or(1u32);
                *last = format!("{what} × {}", times + 1);
            }
            _ => self.story.push(what),
        }
    }

    fn play(&mut self, step: &Step) {
        self.tell(format!("{step:?}"));
        match *step {
            Step::Put { stream, n } => {
                let (class, stamp) = (STREAMS[usize::from(stream)].0, self.stamp());
                let n = if class == Class::Event { n.min(3) } else { n };
                for _ in 0..n {
                    let body = format!("\"i\":{}", self.made.len());
                    self.made.insert(body.clone(), self.now_ns);
                    let bytes = bytes::Bytes::from(body.clone());
                    let draft = Draft {
                        stream: StreamId(stream),
                        class,
                        stamp,
                        lineage: None,
                        body: bytes,
                        retain: Retain::No,
                    };
                    let now_ns = self.now_ns;
                    let seq = self.parts().0.0.lock().push_now(draft, now_ns);
                    self.numbers.insert(body, (STREAMS[usize::from(stream)].1, seq));
                }
            }
            Step::Lost { stream, n } => self.parts().0.lost(StreamId(stream), u64::from(n), "gap"),
            Step::Send { n } if self.online => {
                for _ in 0..n {
                    let Some(message) = self.parts().1.take(true) else { break };
                    self.see(&message);
                    self.flying.push(message);
                }
            }
            Step::Ack { from, n } if !self.flying.is_empty() => {
                for _ in 0..n {
                    if self.flying.is_empty() {
                        break;
                    }
                    let message = self.flying.remove(usize::from(from) % self.flying.len());
                    self.parts().1.acked(message.id);
                }
            }
            Step::Refuse { at } if !self.flying.is_empty() => {
                let message = self.flying.remove(usize::from(at) % self.flying.len());
                self.parts().1.refused(message.id, "refused_by_broker");
            }
            Step::Online if !self.online => {
                self.online = true;
                self.parts().1.online();
            }
            Step::Offline if self.online => {
                self.online = false;
                self.flying.clear();
                self.parts().1.offline();
            }
            Step::Wait { turns } => (0..turns).for_each(|_| self.turn(false)),
            Step::Restart => {
                self.play(&Step::Offline);
                let stored = self.try_turn(true);
                let (writer, reader, mut committer) = self.outbox.take().expect("open");
                let ended = stored.and_then(|()| committer.end());
                drop((writer, reader, committer));
                if self.faulty && ended.is_err() {
                    self.excuse();
                } else {
                    ended.expect("the disk works");
                }
                self.open();
            }
            Step::Kill => self.kill(),
            _ => {}
        }
    }

    /// What a kill leaves is what is in the files now; the living one would still write at its end.
    fn kill(&mut self) {
        let from = self.state_dir();
        self.life += 1;
        let mut copy = std::process::Command::new("cp");
        let copied = copy.arg("-r").arg(&from).arg(self.state_dir()).env_remove("LD_PRELOAD").status();
        assert!(copied.expect("cp").success());
        if self.faulty {
            self.faults_cut(&from);
        }
        self.outbox = None;
        self.excuse();
        self.open();
    }

    /// The process ended without warning.
    fn excuse(&mut self) {
        let young = self.now_ns.saturating_sub(1_200_000_000);
        let faulty = self.faulty;
        let lost = |(body, at): &(&String, &u64)| {
            if faulty { !self.accepted.contains(*body) } else { **at >= young }
        };
        let lost: Vec<String> = self.made.iter().filter(lost).map(|(body, _)| body.clone()).collect();
        self.excused.extend(lost);
        self.killed = true;
    }

    /// The broker gets a message.
    fn see(&mut self, message: &ToSend) {
        let stream = &message.sealed.stream;
        for item in &message.sealed.items {
            let body = String::from_utf8(item.body.to_vec()).expect("text");
            let before = self.sent.insert((stream.clone(), item.seq), body.clone());
            if let Some(before) = before {
                assert_eq!(before, body, "{stream} {}: one number, two records", item.seq);
                continue;
            }
            // While the disk fails, what is in RAM goes before what is on disk.
            if message.sealed.class != Class::Event && !self.faulty {
                let last = self.last.entry((stream.clone(), message.hist)).or_default();
                assert!(item.seq > *last, "{stream} hist {}: {} after {last}", message.hist, item.seq);
                *last = item.seq;
            }
            if stream == "loss" {
                let entry: serde_json::Value = serde_json::from_str(&format!("{{{body}}}")).expect("json");
                let number = |key: &str| entry[key].as_u64().expect("number");
                let text = |key: &str| entry[key].as_str().expect("text").to_owned();
                self.lost.push((text("stream"), number("first"), number("last"), text("reason")));
            }
        }
    }

    /// Records that did not arrive: of which stream, which numbers, and whether an entry of the ledger names them.
    fn shown(&self, bodies: &[&String]) -> String {
        let mut ranges: Vec<(&str, u64, u64, u64, String)> = Vec::new();
        let mut numbers: Vec<_> = bodies.iter().map(|body| (self.numbers[*body], self.made[*body])).collect();
        numbers.sort_unstable();
        for ((stream, seq), at_ns) in numbers {
            let names =
                |(of, first, last, _): &&(String, u64, u64, String)| of == stream && (*first..=*last).contains(&seq);
            let why = self.lost.iter().find(names).map_or("in no ledger", |(.., why)| why).to_owned();
            match ranges.last_mut() {
                Some((of, _, last, at, reason)) if (*of, *last + 1, *at, &*reason) == (stream, seq, at_ns, &why) => {
                    *last = seq
                }
                _ => ranges.push((stream, seq, seq, at_ns, why)),
            }
        }
        let shown = ranges.iter().map(|(stream, first, last, at_ns, why)| {
            format!("{stream} {first}..={last} of {:.2} s: {why}", *at_ns as f64 / 1e9)
        });
        shown.collect::<Vec<_>>().join("; ")
    }

    /// Everything is sent and acknowledged; then every number is accounted for, once.
    fn end(&mut self) {
        if self.faulty {
            // The disk works again: it is opened, and what was set aside is looked at.
            (0..60).for_each(|_| self.turn(false));
            self.now_ns += limits::SALVAGE_EVERY.as_nanos() as u64;
            self.turn(false);
        }
        self.play(&Step::Online);
        let mut idle = 0;
        while idle < 8 {
            self.turn(false);
            self.play(&Step::Send { n: 255 });
            idle = if self.flying.is_empty() { idle + 1 } else { 0 };
            self.play(&Step::Ack { from: 0, n: 255 });
        }
        let stats = self.parts().0.stats();
        assert_eq!((stats.ram_records, stats.stored_records, stats.ram_bytes), (0, 0, 0), "all is gone: {stats:?}");
        // Ranges that are left out may be wide, and nothing in them was ever made.
        let is_exact =
            |(.., why): &&(String, u64, u64, String)| !["unclean_stop", "renumbered"].contains(&why.as_str());
        let (exact, unknown): (Vec<_>, Vec<_>) = self.lost.iter().partition(is_exact);
        // Entries of the ledger rank below replies: where those alone are more than the cap, entries leave, and that is
        // all that is known then.
        let entries_left = exact.iter().any(|(stream, .., why)| stream == "loss" && why == "evicted");
        for (_, name) in STREAMS {
            let mut known: std::collections::BTreeMap<u64, u32> = Default::default();
            for (stream, seq) in self.sent.keys() {
                if stream == name {
                    *known.entry(*seq).or_default() += 1;
                }
            }
            // Only what was acknowledged counts as delivered, so what was sent and then entered in the ledger is lost, once.
            for (_, first, last, why) in exact.iter().filter(|(stream, ..)| stream == name) {
                for seq in *first..=*last {
                    let sent = known.insert(seq, 1).unwrap_or(0);
                    assert!(
                        sent == 0 || ["evicted", "refused_by_broker", "no_room"].contains(&why.as_str()),
                        "{name} {seq}: {why}"
                    );
                }
            }
            let mut left_out: Vec<_> =
                unknown.iter().filter(|(s, ..)| s == name).map(|(_, a, b, _)| (*a, *b)).collect();
            left_out.sort_unstable();
            let mut next = 1;
            for seq in known.keys() {
                let mut open = next;
                for (first, last) in &left_out {
                    if *first <= open {
                        open = open.max(last + 1);
                    }
                }
                // Where the disk fails, an entry in RAM may be lost with the process after the records it tells of.
                assert!(self.faulty || entries_left || open >= *seq, "{name}: {open}..{seq} are in no ledger");
                next = seq + 1;
            }
        }
        let arrived: std::collections::BTreeSet<&String> = self.sent.values().collect();
        let sum = |reasons: &dyn Fn(&str) -> bool| {
            let of = exact.iter().filter(|(.., why)| reasons(why));
            of.map(|(_, first, last, _)| last - first + 1).sum::<u64>()
        };
        let entered = sum(&|why| why != "gap");
        let missing: Vec<&String> =
            self.made.keys().filter(|body| !arrived.contains(body) && !self.excused.contains(*body)).collect();
        let lost: Vec<&String> = self.accepted.iter().filter(|body| !arrived.contains(body)).collect();
        let left = sum(&|why| ["evicted", "refused_by_broker"].contains(&why));
        if !entries_left && lost.len() as u64 > left {
            self.lost_accepted = lost.len() - left as usize;
        }
        // An accepted loss is worse than one of what was in RAM, which is worse than numbers that no entry names.
        assert!(
            !self.faulty || self.lost_accepted == 0,
            "ACCEPTED records are lost: {}, {left} entered; {}",
            lost.len(),
            self.shown(&lost)
        );
        assert!(
            entries_left || missing.len() as u64 <= entered,
            "{} missing that were only in RAM, {entered} entered; {}",
            missing.len(),
            self.shown(&missing)
        );
        if self.faulty {
            let damage: Vec<_> = exact.iter().filter(|(stream, ..)| stream == "store").collect();
            assert!(damage.is_empty(), "errors that pass are no damage: {damage:?}");
        }
        assert!(self.killed || self.faulty || unknown.is_empty(), "only a kill leaves anything unknown");
    }
}

/// How the outbox tells of itself.
fn event(faulty: bool) -> committer::Event {
    Box::new(move |kind, stamp, why| {
        assert!(faulty, "the disk works: {why}");
        let body = format!("\"kind\":\"{}\"", kind.word()).into();
        Draft { stream: StreamId(5), class: Class::Event, stamp, lineage: None, body, retain: Retain::No }
    })
}

/// Stories to try; the long form tries more.
fn cases() -> u32 {
    if std::env::var_os("KENTLEDGE_LONG").is_some() { 3000 } else { 64 }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: cases(), failure_persistence: None, ..Default::default() })]

    #[test]
    fn delivered_stored_and_booked_is_all_that_was_made(steps in steps(), small in proptest::bool::ANY) {
        let mut world = World::new(if small { 4 << 10 } else { 1 << 30 });
        steps.iter().for_each(|step| world.play(step));
        world.end();
    }
}

#[test]
fn what_is_too_old_leaves_by_class_and_is_booked() {
    let mut world = World::new(1 << 30);
    world.parts().2.expire_after(Class::Status, 3_600_000_000_000);
    world.play(&Step::Put { stream: 4, n: 1 });
    world.play(&Step::Put { stream: 0, n: 1 });
    world.play(&Step::Wait { turns: 10 });
    assert_eq!(world.parts().0.stats().stored_records, 2);
    world.now_ns += 3_500_000_000_000;
    world.turn(false);
    assert_eq!(world.parts().0.stats().stored_records, 2);
    world.now_ns += 200_000_000_000;
    world.turn(false);
    // The score stays; the entry that tells of the other one has taken its place.
    let stats = world.parts().0.stats();
    assert_eq!((stats.stored_records, stats.lost[&("loss".into(), "expired".into())]), (2, 1));
}
