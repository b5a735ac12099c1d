//! Windows that are kept, labels, and pulls: nothing that was answered is lost by a kill or a power cut, and the example client
//! puts a blob together.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rig::{Disk, Mosquitto, Operator, Site, Sub, Tty, eventually, operator, sub::records, within};
use serde_json::{Value, json};

const SAMPLES: &str =
    "[samples]\nmax_mib = 8\nnormal_per_day = 86400\naround_windows = 1\npull_kib_s = 1024\npull_mib_day = 0\n";

fn site(port: u16, tty: &Tty) -> Site {
    Site::new(port).with_sensor(tty).with_mean_model().with(SAMPLES)
}

/// How often: as fits CI, or that of the long form times `KENTLEDGE_LONG`.
fn times(short: usize, long: f64) -> usize {
    let factor = std::env::var("KENTLEDGE_LONG").ok().map(|text| text.parse::<f64>().unwrap_or(1.0));
    factor.map_or(short, |factor| (factor * long).ceil() as usize)
}

/// Labels every alarm as it comes, and notes which labels were answered with success.
struct Labeller<'a> {
    sub: &'a Sub,
    operator: &'a Operator,
    row: u64,
    sent: u64,
    /// By episode: the window, and the label.
    answered: BTreeMap<String, (Value, Value)>,
}

impl Labeller<'_> {
    /// Raises the alarm, labels it, clears it: until `over`.
    fn work(&mut self, tty: &mut Tty, over: &dyn Fn() -> bool) {
        while !over() {
            let (from, value) = (self.row, 100 + self.row % 50);
            self.row += 8;
            tty.rows(from..from + 4, |i| format!("{i},{value},0"));
            let raised = |m: &[_]| {
                records(m, "a/high").into_iter().rfind(|(r, _)| {
                    r["phase"] == "raised" && r["raised_seq"][1].as_u64().is_some_and(|seq| seq >= from)
                })
            };
            if let Some(raised) = self.look(over, |m| raised(m)) {
                self.label(raised["id"].as_str().expect("id"), over);
            }
            tty.rows(from + 4..from + 8, |i| format!("{i},0,0"));
            let cleared = |m: &[_]| {
                records(m, "a/high")
                    .into_iter()
                    .rfind(|(r, _)| r["phase"] == "cleared" && r["in_seq"][1].as_u64() >= Some(from))
            };
            self.look(over, |m| cleared(m));
        }
    }

    fn look(
        &self,
        over: &dyn Fn() -> bool,
        find: impl Fn(&[std::sync::Arc<rig::Message>]) -> Option<(Value, bool)>,
    ) -> Option<Value> {
        while !over() {
            if let Some((found, _)) = find(&self.sub.messages()) {
                return Some(found);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    fn label(&mut self, episode: &str, over: &dyn Fn() -> bool) {
        self.sent += 1;
        let (id, label) =
            (format!("f-{}", self.sent), [json!(true), json!(false), json!("wear")][self.sent as usize % 3].clone());
        send(self.sub, self.operator, "feedback", &id, &json!({"alarm": "high", "id": episode, "label": label}));
        let topic = format!("res/feedback/{id}");
        let end = |m: &[_]| {
            records(m, &topic)
                .into_iter()
                .find(|(r, _)| !["accepted", "running"].contains(&r["state"].as_str().unwrap_or("")))
        };
        if let Some(end) = self.look(over, |m| end(m)).filter(|end| end["state"] == "success") {
            self.answered.insert(episode.to_owned(), (end["result"]["win"].clone(), label));
        }
    }

    /// Everything that was answered is in what a pull fetches: its window, and its label.
    fn check(&self, port: u16) -> usize {
        let blob = fetch(self.sub, self.operator, "samples.pull", "all", &json!({"max_kib": 65536}));
        let all = samples(&blob);
        let of = |kind: &str| all.iter().filter(|head| head["kind"] == kind).collect::<Vec<_>>();
        let (windows, labels) = (of("window"), of("label"));
        for (episode, (win, label)) in &self.answered {
            let stored = labels.iter().find(|head| head["id"] == **episode);
            assert_eq!(stored.map(|head| &head["label"]), Some(label), "the label of episode {episode} (port {port})");
            assert!(windows.iter().any(|head| head["win"] == *win), "the window of episode {episode}");
        }
        self.answered.len()
    }
}

/// A command on a device that needs no signature.
fn send(sub: &Sub, operator: &Operator, kind: &str, id: &str, args: &Value) {
    let payload = json!({"id": id, "expires_at": operator::time(600), "nonce": operator::nonce(sub), "args": args});
    operator.send(&format!("pump-1/dn/cmd/{kind}/{id}"), &payload.to_string());
}

/// Waits for the end of a pull; returns its blob.
fn fetch(sub: &Sub, operator: &Operator, kind: &str, id: &str, args: &Value) -> Vec<u8> {
    send(sub, operator, kind, id, args);
    let end = operator::end(sub, kind, id);
    assert_eq!(end["state"], "success", "{end}");
    let result = &end["result"];
    let sha256 = result["sha256"].as_str().expect("digest");
    let mut blob = Vec::new();
    for (chunk, _) in sub.records(&format!("blob/{sha256}")).iter().filter(|(chunk, _)| chunk["command"] == id) {
        let at = chunk["offset"].as_u64().expect("offset") as usize;
        let bytes = base64(chunk["bytes"].as_str().expect("bytes"));
        blob.resize(blob.len().max(at + bytes.len()), 0);
        blob[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    assert_eq!((blob.len() as u64, digest(&blob)), (result["size"].as_u64().expect("size"), sha256.to_owned()));
    blob
}

fn piped(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child =
        Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program");
    let mut stdin = child.stdin.take().expect("stdin");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("write"));
        child.wait_with_output().expect("output").stdout
    })
}

fn base64(text: &str) -> Vec<u8> {
    piped("base64", &["-d"], text.as_bytes())
}

fn digest(bytes: &[u8]) -> String {
    String::from_utf8(piped("sha256sum", &[], bytes)).expect("text")[..64].to_owned()
}

/// The headers of a blob of samples.
fn samples(mut blob: &[u8]) -> Vec<Value> {
    let mut heads = Vec::new();
    while !blob.is_empty() {
        let n = |at: usize| u32::from_le_bytes(blob[at..at + 4].try_into().expect("4 bytes")) as usize;
        assert_eq!(&blob[..4], b"KLS1");
        heads.push(serde_json::from_slice(&blob[16..16 + n(4)]).expect("a header"));
        blob = &blob[16 + n(4) + n(8)..];
    }
    heads
}

#[test]
fn answered_labels_and_their_windows_survive_kills() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = site(broker.port, &tty).with("[commands]\nallow_unsigned = true\n");
    let mut labeller = Labeller { sub: &sub, operator: &operator, row: 0, sent: 0, answered: BTreeMap::new() };
    let kills = times(3, 1000.0);
    for n in 0..kills {
        let daemon = site.run();
        let (pid, dead) = (Pid::from_raw(daemon.pid()), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // In the start, or some labels later.
                let until = Instant::now() + Duration::from_secs(10);
                while n % 4 > 0 && !daemon.own_log().contains("model.serving") && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(10));
                }
                std::thread::sleep(Duration::from_millis(fastrand::u64(..1500)));
                kill(pid, Signal::SIGKILL).expect("kill");
                dead.store(true, Ordering::Relaxed);
            });
            labeller.work(&mut tty, &|| dead.load(Ordering::Relaxed));
        });
        daemon.kill();
    }
    let daemon = site.run();
    let until = Instant::now() + Duration::from_secs(2);
    labeller.work(&mut tty, &|| Instant::now() > until);
    let (labels, sent) = (labeller.check(broker.port), labeller.sent);
    rig::measured(&format!("{kills} kills: {sent} labels sent, {labels} answered with success, 0 lost"));
    assert!(labels > 0, "no label was answered");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn answered_labels_and_their_windows_survive_power_cuts() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let Some(mut disk) = Disk::new(96) else { return };
    let mut labeller = Labeller { sub: &sub, operator: &operator, row: 0, sent: 0, answered: BTreeMap::new() };
    let on = |tty: &Tty, disk: &Disk| {
        site(broker.port, tty).with("[commands]\nallow_unsigned = true\n").with_state(&disk.path().join("state"))
    };
    let cuts = times(1, 200.0);
    for _ in 0..cuts {
        let daemon = on(&tty, &disk).run();
        eventually("a model serves", || daemon.own_log().contains("model.serving").then_some(()));
        let until = Instant::now() + Duration::from_millis(500 + fastrand::u64(..1000));
        labeller.work(&mut tty, &|| Instant::now() > until);
        daemon.signal(Signal::SIGSTOP);
        let mut left = None;
        eventually("a copy that no write disturbed", || {
            left = disk.cut();
            left.is_some().then_some(())
        });
        daemon.kill();
        disk = left.expect("a copy");
    }
    let daemon = on(&tty, &disk).run();
    let until = Instant::now() + Duration::from_secs(2);
    labeller.work(&mut tty, &|| Instant::now() > until);
    let (labels, sent) = (labeller.check(broker.port), labeller.sent);
    rig::measured(&format!("{cuts} power cuts: {sent} labels sent, {labels} answered with success, 0 lost"));
    assert!(labels > 0, "no label was answered");
    let status = status(&sub, &operator, "s-1");
    assert_eq!(status["samples"]["damaged"], 0, "a power cut damages nothing");
    assert_eq!(daemon.stop(), Some(0));
}

fn status(sub: &Sub, operator: &Operator, id: &str) -> Value {
    operator.plain("status", id, &json!({}));
    operator::end(sub, "status", id)["result"].clone()
}

#[test]
fn example_client_puts_a_pull_together_over_an_outage_and_a_restart() {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let samples = "[samples]\nmax_mib = 8\nnormal_per_day = 0\naround_windows = 8\npull_kib_s = 8\n";
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with(samples).with(&operator.table());
    let mut daemon = site.run();
    sub.wait_event("model.serving", "mean");
    tty.rows(0..40, |i| format!("{i},{},0", i as f64 * 0.3));
    tty.rows(40..80, |i| format!("{i},{},0", 100 + i));
    let raised = sub.wait_records("a/high", 1)[0].0.clone();
    operator.order(&sub, "feedback", "f-1", &json!({"alarm": "high", "label": true, "by": "ana", "note": "bearing"}));
    let end = operator::end(&sub, "feedback", "f-1");
    assert_eq!((&end["state"], &end["result"]["id"]), (&json!("success"), &raised["id"]), "{end}");
    assert_eq!(end["result"]["lineage"]["model"], "mean@0");
    operator.order(&sub, "feedback", "f-2", &json!({"alarm": "high", "id": "b-0", "label": true}));
    let end = operator::end(&sub, "feedback", "f-2");
    assert!(
        end["why"] == "invalid" && end["text"].as_str().is_some_and(|text| text.contains("episode `b-0`")),
        "{end}"
    );
    operator.order(&sub, "tape.pull", "t-1", &json!({}));
    assert_eq!(operator::end(&sub, "tape.pull", "t-1")["why"], "invalid", "no alarm saves one");
    eventually("all of them are kept", || {
        let seen = sub.records("h");
        seen.iter().any(|(health, _)| health["samples"]["windows"] == 17).then_some(())
    });

    let out = site.dir.path().join("pump.kls");
    let mut python = Command::new("python3");
    python.arg(rig::root().join("tests/client/kentledge_pull.py")).env("PYTHONPATH", rig::python());
    python.args(["--host", "127.0.0.1", "--port", &broker.port.to_string(), "--to", "plant/pump-1", "--issuer", "ops"]);
    python.arg("--secret").arg(operator.secret()).arg("--out").arg(&out).args(["--id", "pull-1", "samples.pull", "{}"]);
    let client = python.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3");
    let chunks = || sub.messages().iter().filter(|m| m.stream.starts_with("blob/")).count();
    within(rig::SOON, "the first chunk", || chunks() > 0);
    broker.stop();
    std::thread::sleep(Duration::from_millis(200));
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    broker.up();
    let daemon = site.run();
    let done = client.wait_with_output().expect("the client");
    let (text, why) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.status.code(), Some(0), "{text}{why}");
    let heads: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let windows: Vec<&Value> = heads.iter().filter(|head| head["kind"] == "window").collect();
    let label: Vec<&Value> = heads.iter().filter(|head| head["kind"] == "label").collect();
    assert_eq!((windows.len(), label.len()), (17, 1), "{text}");
    let at = |word: &str| windows.iter().filter(|head| head["at"] == word).collect::<Vec<_>>();
    assert_eq!((at("before").len(), at("raised").len(), at("after").len()), (8, 1, 8));
    let raising = at("raised")[0];
    assert_eq!((&raising["in_seq"], &raising["alarms"][0]["id"]), (&raised["raised_seq"], &raised["id"]));
    assert_eq!(
        (&label[0]["wins"][0], &label[0]["by"], &label[0]["id"]),
        (&raising["win"], &json!("ana"), &raised["id"])
    );
    assert_eq!(raising["lineage"]["model"], "mean@0");
    assert_eq!(daemon.stop(), Some(0));
}
