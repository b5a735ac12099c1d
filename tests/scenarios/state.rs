//! The state directory: it cannot be written from the first start on, its files cannot be read, or are gone. And what a stolen
//! key that is used once leaves behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rig::{
    Disk, Mosquitto, Operator, Site, Sub, Tty, eventually,
    operator::{end, nonce, time},
};
use serde_json::{Value, json};

const RAW: &str = "[stream.raw]\nchannels = [\"a\"]\n";

/// Its kernel says that the clock is synchronised; `None`, said loudly, where that cannot be made.
pub fn synced(site: Site) -> Option<Site> {
    let (source, library) = (site.dir.path().join("sync.c"), site.dir.path().join("sync.so"));
    fs::write(&source, "struct timex;\nint adjtimex(struct timex *t) { return *((int *)t + 10) = 0; }\n")
        .expect("write");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    if !made.is_ok_and(|status| status.success()) {
        rig::skipped("no C compiler here: the clock is not synchronised");
        return None;
    }
    Some(site.with_env("LD_PRELOAD", library.to_str().expect("path")))
}

fn why(sub: &Sub, kind: &str, id: &str) -> Value {
    let end = end(sub, kind, id);
    assert_eq!(end["state"], "rejected", "{end}");
    end["why"].clone()
}

/// A link to itself in the place of both copies: reading them fails, also for root, and writing over them does not.
fn hide(folder: &Path, name: &str) -> [PathBuf; 2] {
    let copies = [folder.join(name), folder.join(format!("{name}.bak"))];
    for path in &copies {
        fs::rename(path, path.with_extension("hidden")).expect("hide");
        std::os::unix::fs::symlink(path, path).expect("link");
    }
    copies
}

fn show(copies: &[PathBuf]) {
    for path in copies {
        assert!(path.is_symlink(), "{} was written over", path.display());
        fs::rename(path.with_extension("hidden"), path).expect("show");
    }
}

/// Samples, alarms, publishes, and says what is wrong.
fn works_without_its_disk(operator: &Operator, tty: &mut Tty, sub: &Sub, n: u64) {
    sub.wait("the disk is reported", |m| (!rig::sub::records(m, "e/disk.failed").is_empty()).then_some(()));
    sub.wait_event("model.serving", "mean");
    tty.rows(n..n + 8, |i| format!("{i},5000,0"));
    sub.wait_records("m/raw", 8);
    sub.wait_records("a/high", 1);
    operator.plain("status", &format!("status-{n}"), &json!({}));
    let status = end(sub, "status", &format!("status-{n}"))["result"].clone();
    assert_eq!((&status["state"], &status["outbox"]["disk_ok"]), (&"degraded".into(), &false.into()), "{status}");
    assert!(status["degraded"].to_string().contains("disk"), "{}", status["degraded"]);
    // What cannot be remembered is not done, and the answer says so.
    operator.order(sub, "log.pull", &format!("pull-{n}"), &json!({}));
    let end = end(sub, "log.pull", &format!("pull-{n}"));
    assert!(end["state"] == "failed" || end["why"] == "busy", "{end}");
}

#[test]
fn state_directory_read_only_or_full_from_the_first_start_stops_neither_sampling_nor_alarms() {
    for full in [false, true] {
        let (broker, mut tty) = (Mosquitto::start(), Tty::default());
        let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
        let Some(disk) = Disk::new(24) else { return };
        let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with(RAW).with(&operator.table());
        let site = site.with_state(&disk.path().join("state"));
        let filler = full.then(|| disk.fill());
        if !full {
            disk.read_only(true);
        }
        let daemon = site.run();
        works_without_its_disk(&operator, &mut tty, &sub, 0);
        match filler {
            Some(filler) => fs::remove_file(filler).expect("space"),
            None => disk.read_only(false),
        }
        eventually("the disk is used", || {
            let (last, _) = sub.records("h").pop()?;
            (last["disk_ok"] == true).then_some(())
        });
        eventually("a command is remembered again", || {
            let id = format!("again-{}", fastrand::u64(..));
            operator.order(&sub, "log.pull", &id, &json!({}));
            disk.path().join("state/control/memory.json").exists().then_some(())
        });
        daemon.stop_well();
        assert!(disk.path().join("state/outbox/sequences.json").exists());
    }
}

#[test]
fn state_directory_that_cannot_be_made_stops_neither_sampling_nor_alarms() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with(RAW).with(&operator.table());
    let site = site.with_state(Path::new("/proc/kentledge/state"));
    let daemon = site.run();
    works_without_its_disk(&operator, &mut tty, &sub, 0);
    assert!(daemon.own_log().contains("use the state directory"), "{}", daemon.own_log());
    daemon.kill();
    // Without a name of its own either.
    let daemon = site.with_device("site = \"plant\"\nbus = \"off\"").run();
    eventually("it runs", || daemon.own_log().contains("running").then_some(()));
    assert!(daemon.own_log().contains("save the device id"), "{}", daemon.own_log());
    daemon.kill();
}

/// The kernel answers each opening of a file of the state directory with this error (strace stands in for the medium).
#[test]
fn state_directory_that_answers_eio_or_emfile_at_the_start_stops_neither_sampling_nor_alarms() {
    if Command::new("strace").arg("-V").output().is_err() {
        return rig::skipped("no strace (tests/run installs it)");
    }
    for error in ["EIO", "EMFILE"] {
        let (broker, mut tty) = (Mosquitto::start(), Tty::default());
        let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
        let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with(RAW).with(&operator.table());
        let daemon = site.run();
        sub.wait_event("model.serving", "mean");
        daemon.stop_well();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=openat,mkdir", "-e"]);
        strace.arg(format!("inject=openat,mkdir:error={error}"));
        let mut folders = vec![site.state()];
        while let Some(folder) = folders.pop() {
            strace.arg("-P").arg(&folder);
            for entry in fs::read_dir(&folder).expect("folder").flatten() {
                match entry.file_type().expect("type").is_dir() {
                    true => folders.push(entry.path()),
                    false => drop(strace.arg("-P").arg(entry.path())),
                }
            }
        }
        strace.arg(rig::daemon::binary()).args(["run", "--config"]).arg(site.config()).env("KENTLEDGE_LOG", "info");
        let daemon = site.spawn(&mut strace);
        works_without_its_disk(&operator, &mut tty, &sub, 100);
        daemon.end_traced();
    }
}

#[test]
fn unreadable_sequence_numbers_are_not_begun_again() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty).with(RAW);
    let daemon = site.run();
    tty.rows(0..50, |i| format!("{i},1,0"));
    sub.wait_records("m/raw", 50);
    daemon.stop_well();
    let seqs = || -> Vec<u64> {
        sub.records("m/raw").iter().map(|(record, _)| record["seq"].as_u64().expect("seq")).collect()
    };
    let highest = *seqs().iter().max().expect("a row");
    let hidden = hide(&site.state().join("outbox"), "sequences.json");
    let daemon = site.run();
    tty.rows(50..100, |i| format!("{i},1,0"));
    sub.wait_records("m/raw", 100);
    let again: Vec<u64> = seqs().split_off(50);
    assert!(again.iter().all(|seq| *seq > highest), "numbers were used twice: {again:?} after {highest}");
    sub.wait_event("store.damaged", "sequence numbers");
    show(&hidden);
    eventually("they are reserved again", || {
        let text = fs::read_to_string(site.state().join("outbox/sequences.json")).expect("read");
        text.contains("\"clean\":false").then_some(())
    });
    daemon.stop_well();
}

/// A device that obeyed `log.pull` with id `a`, which was captured in flight, and was then killed. Needs a synchronised clock.
struct Captured {
    broker: Mosquitto,
    sub: Sub,
    operator: Operator,
    site: Site,
    payload: String,
    /// Its result the first time.
    state: Value,
}

impl Captured {
    fn new() -> Option<Self> {
        let broker = Mosquitto::start();
        let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
        let site = synced(Site::new(broker.port).with(&operator.table()))?;
        let daemon = site.run();
        sub.wait_state("online");
        let payload = operator.command("log.pull", "a", "", &json!({}));
        let mut captured = Self { broker, sub, operator, site, payload, state: Value::Null };
        captured.state = captured.replay()["state"].clone();
        assert_ne!(captured.state, "rejected");
        daemon.kill();
        Some(captured)
    }

    /// Sends it again. Returns its next end.
    fn replay(&self) -> Value {
        let ends = |messages: &[std::sync::Arc<rig::Message>]| {
            let found = rig::sub::records(messages, "res/log.pull/a").into_iter().map(|(record, _)| record);
            found.filter(|r| r["state"] != "accepted" && r["state"] != "running").collect::<Vec<Value>>()
        };
        let before = ends(&self.sub.messages()).len();
        self.operator.send("pump-1/dn/cmd/log.pull/a", &self.payload);
        self.sub.wait("an end of the captured command", |messages| ends(messages).get(before).cloned())
    }
}

#[test]
fn captured_command_is_not_obeyed_while_the_memory_of_commands_is_unreadable() {
    let Some(captured) = Captured::new() else { return };
    let hidden = hide(&captured.site.state().join("control"), "memory.json");
    let daemon = captured.site.run();
    let end = captured.replay();
    assert_eq!((&end["state"], &end["why"]), (&"rejected".into(), &"busy".into()), "{end}");
    captured.sub.wait_event("disk.failed", "the memory of commands cannot be read");
    show(&hidden);
    eventually("it is read", || daemon.own_log().contains("the memory of commands was read again").then_some(()));
    let end = captured.replay();
    assert_eq!((&end["state"], &end["repeated"]), (&captured.state, &true.into()), "{end}");
    daemon.stop_well();
}

#[test]
fn captured_command_is_not_obeyed_after_the_memory_of_commands_was_deleted() {
    let Some(captured) = Captured::new() else { return };
    fs::remove_dir_all(captured.site.state().join("control")).expect("delete");
    let daemon = captured.site.run();
    let end = captured.replay();
    assert_eq!((&end["state"], &end["why"]), (&"rejected".into(), &"nonce".into()), "{end}");
    captured.sub.wait_event("store.damaged", "the memory of commands is gone");
    // Who echoes the nonce is believed again, and needs it once.
    let Captured { sub, operator, .. } = &captured;
    for (id, nonce) in [("b", nonce(sub)), ("c", String::new())] {
        operator.send(&format!("pump-1/dn/cmd/log.pull/{id}"), &operator.command("log.pull", id, &nonce, &json!({})));
        assert_ne!(rig::operator::end(sub, "log.pull", id)["state"], "rejected");
    }
    daemon.stop_well();
    drop(captured.broker);
}

#[test]
fn command_issued_in_the_future_or_with_a_sequence_out_of_reach_is_rejected() {
    let broker = Mosquitto::start();
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let Some(site) = synced(Site::new(broker.port).with(&operator.table())) else { return };
    let daemon = site.run();
    sub.wait_state("online");
    const YEAR_S: i64 = 365 * 86_400;
    let send = |id: &str, change: &[(&str, Value)]| {
        let mut inner = operator.inner("plant/pump-1", "log.pull", id, &nonce(&sub), &json!({}));
        change.iter().for_each(|(key, value)| inner[*key] = value.clone());
        operator.send(&format!("pump-1/dn/cmd/log.pull/{id}"), &operator.sign(&inner.to_string()));
    };
    send("far", &[("issued", time(YEAR_S).into()), ("expires_at", time(YEAR_S + 60).into())]);
    assert_eq!(why(&sub, "log.pull", "far"), "invalid");
    send("most", &[("iseq", 9_007_199_254_740_991u64.into())]);
    assert_eq!(why(&sub, "log.pull", "most"), "invalid");
    // A clock that is a minute ahead is no attack.
    send("near", &[("issued", time(60).into()), ("expires_at", time(120).into())]);
    assert_ne!(end(&sub, "log.pull", "near")["state"], "rejected");
    daemon.stop_well();
}

fn reported(sub: &Sub, version: u64, state: &str) {
    sub.wait(&format!("version {version} is {state}"), |messages| {
        let last = messages.iter().filter(|m| m.stream == "reported").map(|m| &m.payload["data"][0]);
        let last = last.max_by_key(|data| data["seq"].as_u64())?;
        (last["version"] == version && last["state"] == state).then_some(())
    });
}

#[test]
fn stolen_key_used_once_blocks_no_desired_state_after_its_rotation() {
    let broker = Mosquitto::start();
    let sub = Sub::new(broker.port);
    let (ops, stolen) = (Operator::new(broker.port, "ops"), Operator::new(broker.port, "stolen"));
    let dir = tempfile::TempDir::new().expect("folder");
    let keys = [ops.key(&["command", "keyset"]), stolen.key(&["command"])];
    let keyset = rig::maker::keyset(dir.path(), 1, &keys, &json!({}));
    let site = Site::new(broker.port).with(&format!("[commands]\nkeyset = \"{}\"\njitter_s = 0\n", keyset.display()));
    let Some(site) = synced(site) else { return };
    let daemon = site.run();
    sub.wait_state("online");
    let desire = |who: &Operator, name: &str, version: u64, interval: u64| {
        let toml = format!("[metrics]\ninterval_s = {interval}\n");
        let inner = json!({"v": 1, "type": "desired", "to": "plant/pump-1", "issuer": name, "version": version,
            "issued": time(0), "config": {"toml": toml, "confirm_s": 10}});
        who.send_retained("pump-1/dn/desired", &who.sign(&inner.to_string()));
    };
    desire(&ops, "ops", 1, 2);
    reported(&sub, 1, "applied");
    // The highest version of all is out of reach.
    desire(&stolen, "stolen", (1 << 53) - 1, 3);
    eventually("it is refused", || daemon.own_log().contains("is too far above 1").then_some(()));
    // The highest that is in reach is obeyed, and holds up the others until the key is dropped.
    let now_s: i64 = Command::new("date")
        .arg("+%s")
        .output()
        .map(|out| String::from_utf8_lossy(&out.stdout).trim().parse())
        .expect("date")
        .expect("time");
    let high = now_s as u64 * 1000;
    desire(&stolen, "stolen", high, 4);
    reported(&sub, high, "applied");
    desire(&ops, "ops", 2, 5);
    std::thread::sleep(std::time::Duration::from_millis(500));
    let next = rig::maker::keyset(dir.path(), 2, &[ops.key(&["command", "keyset"])], &json!({}));
    let text = fs::read_to_string(next).expect("keyset");
    let signature = serde_json::from_str::<Value>(&ops.sign(&text)).expect("JSON")["sig"].clone();
    ops.plain("keyset.update", "k", &json!({"keyset": text, "signatures": [signature]}));
    assert_eq!(end(&sub, "keyset.update", "k")["state"], "success");
    reported(&sub, 1, "none");
    desire(&ops, "ops", 2, 5);
    reported(&sub, 2, "applied");
    let remote = fs::read_to_string(site.state().join("config/remote.toml")).expect("read");
    assert!(remote.contains("interval_s = 5"), "{remote}");
    daemon.stop_well();
}

#[test]
fn provision_takes_a_bare_file_name() {
    let dir = tempfile::TempDir::new().expect("folder");
    fs::write(dir.path().join("provision.toml"), "site = \"s\"\n").expect("write");
    let mut command = rig::daemon::command();
    let out = command.args(["provision", "provision.toml", "--state", "state"]).current_dir(dir.path()).output();
    let done = rig::daemon::Done::from(out.expect("run kentledge"));
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(!dir.path().join("provision.toml").exists() && dir.path().join("state/provision/kentledge.toml").exists());
}
