//! Kills and power cuts while labels, windows and entries of the audit log are written. A burst of signed labels is sent at once and rows
//! raise alarms meanwhile, so that at most kills a write of each kind is in progress. What the daemon answered is never lost.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rig::{
    Daemon, Disk, Mosquitto, Operator, Site, Sub, Tty, eventually,
    operator::{self, Sender},
    sub::records,
};
use serde_json::{Value, json};

const SAMPLES: &str =
    "[samples]\nmax_mib = 256\nnormal_per_day = 86400\naround_windows = 1\npull_kib_s = 1024\npull_mib_day = 0\n";
/// Labels that are sent at once.
const BURST: usize = 8;
/// So many kills or cuts are of one device; then another begins with an empty store. Each leaves about 33 windows, and a store holds
/// 32,768: a full one would evict, and a window that is gone would be no news.
const OF_ONE_DEVICE: usize = 100;

/// How often: as fits CI, or that of the long form times `KENTLEDGE_LONG`.
fn times(short: usize, long: f64) -> usize {
    let factor = std::env::var("KENTLEDGE_LONG").ok().map(|text| text.parse::<f64>().unwrap_or(1.0));
    factor.map_or(short, |factor| (factor * long).ceil() as usize)
}

/// Plays so many kills or cuts, in parts that are each of one device, and reports the sum.
fn parts(what: &str, count: usize, mut part: impl FnMut(usize) -> Option<Torn>) {
    let (mut sum, mut left) = (Torn::default(), count);
    while left > 0 {
        let Some(torn) = part(left.min(OF_ONE_DEVICE)) else { return };
        left -= left.min(OF_ONE_DEVICE);
        sum = sum.and(&torn);
        if left > 0 {
            eprintln!("{what}: {left} left; so far {sum:?}");
        }
    }
    sum.report(what);
}

/// What was in progress at the kills.
#[derive(Debug, Default, Clone, Copy)]
struct Torn {
    kills: usize,
    /// Labels that were sent, and answered with success.
    sent: usize,
    answered: usize,
    /// Windows on the disk at the end.
    windows: usize,
    /// Kills with a label that was sent and not answered, and such labels.
    amid_labels: usize,
    labels: usize,
    /// Files of windows and labels of which a part was written.
    files: usize,
    /// Kills at which the last entry of the audit log was written in part, or its result not yet published.
    entries: usize,
}

impl Torn {
    fn and(self, other: &Self) -> Self {
        Self {
            kills: self.kills + other.kills,
            sent: self.sent + other.sent,
            answered: self.answered + other.answered,
            windows: self.windows + other.windows,
            amid_labels: self.amid_labels + other.amid_labels,
            labels: self.labels + other.labels,
            files: self.files + other.files,
            entries: self.entries + other.entries,
        }
    }

    fn report(&self, what: &str) {
        let Self { kills, sent, answered, windows, amid_labels, labels, files, entries } = self;
        rig::measured(&format!(
            "{kills} {what}: {sent} labels sent, {answered} answered with success, {windows} windows kept; at {amid_labels} {what} \
             {labels} labels were in progress, {files} files were written in part, at {entries} an entry was; 0 labels, windows or \
             entries lost, and the log verified each time"
        ));
        assert!(*answered > 0, "no label was answered");
        assert!(*amid_labels > kills / 4, "too few {what} came while labels were written: {self:?}");
    }
}

/// A device under load, and what it answered.
struct Load<'a> {
    sub: &'a Sub,
    operator: &'a Operator,
    sender: Sender,
    row: u64,
    /// Messages that were looked at.
    known: usize,
    nonce: Option<String>,
    serving: bool,
    episodes: BTreeSet<String>,
    /// Episodes without a label.
    unlabelled: VecDeque<String>,
    sent: usize,
    /// By command: episode and label.
    pending: BTreeMap<String, (String, Value)>,
    /// By episode: its window and label, answered with success.
    answered: BTreeMap<String, (Value, Value)>,
    /// Commands whose entry was not looked for yet.
    unchecked: Vec<String>,
    /// Windows on the disk, as the device said last, or as they were seen.
    windows: usize,
    /// Newest head of the audit log that was published.
    head: Option<(u64, String)>,
    torn: Torn,
}

impl<'a> Load<'a> {
    fn new(sub: &'a Sub, operator: &'a Operator) -> Self {
        Self {
            sub,
            operator,
            sender: Sender::new(operator.port),
            row: 0,
            known: 0,
            nonce: None,
            serving: false,
            episodes: BTreeSet::new(),
            unlabelled: VecDeque::new(),
            sent: 0,
            pending: BTreeMap::new(),
            answered: BTreeMap::new(),
            unchecked: Vec::new(),
            windows: 0,
            head: None,
            torn: Torn::default(),
        }
    }

    /// Looks at what came since the last look.
    fn look(&mut self) {
        let messages = self.sub.messages();
        let fresh = &messages[self.known..];
        self.known = messages.len();
        for message in fresh {
            match message.stream.split('/').next() {
                Some("birth") => {
                    self.nonce = message.payload["nonce"].as_str().map(str::to_owned).or(self.nonce.take())
                }
                Some("e") => self.serving |= message.stream == "e/model.serving",
                Some("a") => {
                    for (record, _) in records(std::slice::from_ref(message), "a/high") {
                        let id = record["id"].as_str().expect("id").to_owned();
                        if record["phase"] == "raised" && self.episodes.insert(id.clone()) {
                            self.unlabelled.push_back(id);
                        }
                    }
                }
                Some("h") => {
                    for (record, _) in records(std::slice::from_ref(message), "h") {
                        let kept = record["samples"]["windows"].as_u64().unwrap_or(0) as usize;
                        self.windows = self.windows.max(kept);
                        let (seq, sha256) = (record["audit"]["seq"].as_u64(), record["audit"]["sha256"].as_str());
                        self.head = seq.zip(sha256.map(str::to_owned)).max(self.head.take());
                    }
                }
                Some("res") => {
                    for (record, _) in records(std::slice::from_ref(message), &message.stream) {
                        self.result(&record);
                    }
                }
                _ => {}
            }
        }
    }

    fn result(&mut self, record: &Value) {
        let (id, state) = (record["id"].as_str().expect("id"), record["state"].as_str().expect("state"));
        if ["accepted", "running"].contains(&state) {
            return;
        }
        let Some((episode, label)) = self.pending.remove(id) else { return };
        if state == "success" {
            self.answered.insert(episode, (record["result"]["win"].clone(), label));
            self.unchecked.push(id.to_owned());
        } else {
            // It came with the nonce of an earlier connection, or it was interrupted.
            self.unlabelled.push_back(episode);
        }
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut look: impl FnMut(&Self) -> bool) {
        eventually(what, || {
            self.look();
            look(self).then_some(())
        });
    }

    /// Raises and clears the alarm.
    fn flap(&mut self, tty: &mut Tty) {
        let value = 100 + self.row % 50;
        tty.rows(self.row..self.row + 4, |i| format!("{i},{value},0"));
        tty.rows(self.row + 4..self.row + 8, |i| format!("{i},0,0"));
        self.row += 8;
    }

    /// One life of the daemon up to the moment of its death: labels are sent, and rows go on.
    fn live(&mut self, daemon: &Daemon, tty: &mut Tty) {
        self.until("it is connected and a model serves", |load| load.nonce.is_some() && load.serving);
        // What the broker sent again is settled first: it carries an earlier nonce.
        let until = Instant::now() + rig::SOON;
        while self.unlabelled.len() < BURST {
            assert!(Instant::now() < until, "too few alarms: {:?}", self.episodes);
            self.flap(tty);
            std::thread::sleep(Duration::from_millis(15));
            self.look();
        }
        let (issued, expires) = (operator::time(0), operator::time(600));
        let mut burst = Vec::new();
        for _ in 0..BURST {
            let Some(episode) = self.unlabelled.pop_front() else { break };
            self.sent += 1;
            let id = format!("f-{}", self.sent);
            let label = [json!(true), json!(false), json!("wear")][self.sent % 3].clone();
            let inner = json!({"v": 1, "id": id, "type": "feedback", "to": "plant/pump-1", "issuer": "ops", "iseq": self.operator.next(),
                "issued": issued, "expires_at": expires, "nonce": self.nonce,
                "args": {"alarm": "high", "id": episode, "label": label}});
            burst.push((format!("pump-1/dn/cmd/feedback/{id}"), self.operator.sign(&inner.to_string())));
            self.pending.insert(id, (episode, label));
        }
        for (topic, payload) in burst {
            self.sender.send(&topic, payload);
        }
        // Death comes some moment after so many answers.
        let (began, enough) = (Instant::now(), self.answered.len() + fastrand::usize(..BURST));
        let mut flapped = began;
        while self.answered.len() < enough && !self.pending.is_empty() && began.elapsed() < rig::SOON {
            // More windows than these would keep the store busy, and labels would wait.
            if flapped.elapsed() > Duration::from_millis(120) {
                self.flap(tty);
                flapped = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(3));
            self.look();
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(..50)));
        daemon.signal(Signal::SIGSTOP);
        self.look();
        self.torn.kills += 1;
        self.torn.amid_labels += usize::from(!self.pending.is_empty());
        self.torn.labels += self.pending.len();
    }

    /// After a death: the audit log verifies and has what was answered, and no window is gone.
    #[track_caller]
    fn check(&mut self, state: &Path) {
        (self.nonce, self.serving) = (None, false);
        let names = |folder: &str| -> Vec<String> {
            let all = fs::read_dir(state.join(folder)).expect("a folder").flatten();
            all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let files = names("samples");
        self.torn.files += files.iter().filter(|name| name.ends_with(".kls.new")).count();
        let windows = files.iter().filter(|name| name.starts_with("w-") && name.ends_with(".kls")).count();
        assert!(windows >= self.windows, "{windows} windows are on the disk, and {} were there before", self.windows);
        self.windows = windows;
        let log: Vec<String> = names("audit")
            .iter()
            .map(|name| fs::read_to_string(state.join("audit").join(name)).expect("log"))
            .collect();
        let torn = log.iter().any(|text| !text.is_empty() && !text.ends_with('\n'));
        let unpublished = self.pending.keys().filter(|id| log.iter().any(|text| has(text, id))).count();
        self.torn.entries += usize::from(torn || unpublished > 0);
        for id in std::mem::take(&mut self.unchecked) {
            assert!(log.iter().any(|text| has(text, &id)), "the entry of {id} is not in the audit log");
        }
        let mut verify = vec!["audit".to_owned(), "verify".into(), "--state".into(), state.display().to_string()];
        verify.extend(self.head.iter().flat_map(|(seq, sha256)| ["--head".to_owned(), format!("{seq}:{sha256}")]));
        let done = rig::daemon::run(&verify.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    }

    /// Everything that was answered is in what a pull fetches: its window, and its label.
    #[track_caller]
    fn all_is_there(&mut self) {
        self.until("it is connected", |load| load.nonce.is_some());
        let rest = Instant::now() + Duration::from_secs(1);
        while !self.pending.is_empty() && Instant::now() < rest {
            self.look();
            std::thread::sleep(Duration::from_millis(20));
        }
        let blob = fetch(self.sub, self.operator, &json!({"labelled": true, "max_kib": 1 << 20}));
        let all = samples(&blob);
        let of = |kind: &str| all.iter().filter(|head| head["kind"] == kind).collect::<Vec<_>>();
        let labels: BTreeMap<&str, &Value> =
            of("label").into_iter().filter_map(|head| Some((head["id"].as_str()?, head))).collect();
        let windows: BTreeSet<&str> = of("window").into_iter().filter_map(|head| head["win"].as_str()).collect();
        for (episode, (win, label)) in &self.answered {
            let stored = labels.get(episode.as_str()).unwrap_or_else(|| panic!("no label of episode {episode}"));
            assert_eq!(stored["label"], *label, "the label of episode {episode}");
            // A result that is published again has no data.
            assert!(win.is_null() || *win == stored["wins"][0], "{win} in the result, and in the store {stored}");
            assert!(stored["wins"][0].as_str().is_some_and(|win| windows.contains(win)), "the window of {episode}");
        }
    }

    fn torn(&self) -> Torn {
        Torn { sent: self.sent, answered: self.answered.len(), windows: self.windows, ..self.torn }
    }
}

/// Whether the audit log has the entry of this command.
fn has(log: &str, id: &str) -> bool {
    log.contains(&format!("\"id\":\"{id}\""))
}

/// Waits for the end of a pull; returns its blob.
fn fetch(sub: &Sub, operator: &Operator, args: &Value) -> Vec<u8> {
    operator.order(sub, "samples.pull", "all", args);
    let end = sub.wait_most(Duration::from_secs(120), "the end of the pull", |messages| {
        let of = records(messages, "res/samples.pull/all").into_iter().map(|(record, _)| record);
        of.into_iter().find(|r| !["accepted", "running"].contains(&r["state"].as_str().unwrap_or("")))
    });
    assert_eq!(end["state"], "success", "{end}");
    let result = &end["result"];
    let sha256 = result["sha256"].as_str().expect("digest");
    let mut blob = Vec::new();
    for (chunk, _) in sub.records(&format!("blob/{sha256}")) {
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

fn site(operator: &Operator, tty: &Tty) -> Site {
    Site::new(operator.port).with_sensor(tty).with_mean_model().with(SAMPLES).with(&operator.table())
}

fn kills(count: usize) -> Torn {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let (site, mut load) = (site(&operator, &tty), Load::new(&sub, &operator));
    for n in 0..count {
        let daemon = site.run();
        load.live(&daemon, &mut tty);
        daemon.kill();
        load.check(&site.state());
        if n % 8 == 7 {
            // In the start.
            let daemon = site.run();
            std::thread::sleep(Duration::from_millis(fastrand::u64(..400)));
            daemon.kill();
            load.look();
            load.check(&site.state());
        }
    }
    let daemon = site.run();
    load.all_is_there();
    daemon.stop_well();
    load.torn()
}

/// `None` where a disk of its own cannot be had.
fn power_cuts(count: usize) -> Option<Torn> {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let mut disk = Disk::new(96 + count as u64)?;
    let (site, mut load) = (site(&operator, &tty), Load::new(&sub, &operator));
    let state = |disk: &Disk| disk.path().join("state");
    for _ in 0..count {
        let daemon = site.clone().with_state(&state(&disk)).run();
        load.live(&daemon, &mut tty);
        let mut left = None;
        eventually("a copy that no write disturbed", || {
            left = disk.cut();
            left.is_some().then_some(())
        });
        daemon.kill();
        disk = left.expect("a copy");
        // What it had said when it stood still has arrived by now, and no more comes.
        load.look();
        load.check(&state(&disk));
    }
    let daemon = site.with_state(&state(&disk)).run();
    load.all_is_there();
    operator.plain("status", "s-1", &json!({}));
    let status = operator::end(&sub, "status", "s-1")["result"].clone();
    assert_eq!(status["samples"]["damaged"], 0, "a power cut damages nothing");
    daemon.stop_well();
    Some(load.torn())
}

#[test]
fn answered_labels_their_windows_and_the_audit_log_survive_kills() {
    parts("kills", times(3, 1000.0), |count| Some(kills(count)));
}

#[test]
fn answered_labels_their_windows_and_the_audit_log_survive_power_cuts() {
    parts("power cuts", times(2, 200.0), power_cuts);
}
