//! Installs that are interrupted, repeated, and attacked: old or new runs, never neither, and nothing older ever again.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rig::{
    Disk, Maker, daemon, eventually,
    maker::{self, Draft},
    measured,
    operator::{connections, end, time},
    within,
    world::World,
};
use serde_json::{Value, json};

const QUICK: &str = "trial_s = 0\ntrial_windows = 5\n";

/// From a window's last row to its prediction at the subscriber, ms: sorted.
fn latencies_ms(world: &World, from: usize) -> Vec<f64> {
    let messages = world.sub.messages();
    let mut all: Vec<f64> = (messages.iter().skip(from).filter(|m| m.stream == "p/x"))
        .flat_map(|m| {
            let mono = m.payload["mono_ns"].as_i64().expect("mono_ns");
            let data = m.payload["data"].as_array().cloned().unwrap_or_default();
            data.into_iter().map(move |r| (m.at_ns as i64 - mono - r["t"].as_i64().expect("t")) as f64 / 1e6)
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all
}

#[test]
fn models_are_swapped_under_load_without_losing_or_doubling_a_window() {
    let swaps = 100;
    let mut world = World::new(QUICK);
    let bundles: Vec<_> = (2..swaps + 2).map(|seq| world.maker.bundle(&Draft::mean(seq))).collect();
    let daemon = world.run();
    // The sensor never stops: about 2,000 rows a second.
    let stop = Arc::new(AtomicBool::new(false));
    let (mut tty, stopped) = (std::mem::take(&mut world.tty), stop.clone());
    let sensor = std::thread::spawn(move || {
        let mut n = 0;
        while !stopped.load(Ordering::Relaxed) {
            tty.rows(n..n + 20, |i| format!("{i},{},{}", i % 7, i % 5));
            n += 20;
            std::thread::sleep(Duration::from_millis(10));
        }
        (tty, n)
    });
    std::thread::sleep(Duration::from_secs(2));
    let before = latencies_ms(&world, 0);
    let from = world.sub.messages().len();
    for (i, bundle) in bundles.iter().enumerate() {
        let id = format!("swap-{i}");
        world.install(&id, bundle);
        let ended = end(&world.sub, "model.install", &id);
        assert_eq!(ended["state"], "success", "{ended}");
    }
    let after = latencies_ms(&world, from);
    stop.store(true, Ordering::Relaxed);
    let (tty, rows) = sensor.join().expect("sensor");
    (world.tty, world.rows) = (tty, rows);
    within(Duration::from_secs(60), "every window is predicted", || world.sub.count("p/x") >= rows - 3);
    world.settled(1);
    let versions: BTreeMap<String, usize> =
        world.sub.messages().iter().filter(|m| m.stream == "p/x").fold(BTreeMap::new(), |mut all, m| {
            *all.entry(m.payload["lineage"]["model"].to_string()).or_default() += 1;
            all
        });
    assert_eq!(versions.len() as u64, swaps + 1, "each of them served");
    let at = |all: &[f64], share: f64| all[((all.len() - 1) as f64 * share) as usize];
    measured(&format!(
        "{swaps} swaps at 2,000 rows/s, {} windows: 0 lost, 0 doubled; latency before p50 {:.1} ms, worst {:.1} ms; \
         while swapping p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms",
        rows - 3,
        at(&before, 0.5),
        at(&before, 1.0),
        at(&after, 0.5),
        at(&after, 0.99),
        at(&after, 1.0)
    ));
    daemon.stop_well();
}

/// The state in which the slots are saved.
fn slots(state: &Path) -> Option<Value> {
    let bytes = fs::read(state.join("models/slots.json")).ok()?;
    serde_json::from_slice(&bytes[9..]).ok()
}

/// A model serves, whichever: rows come through it.
#[track_caller]
fn something_serves(world: &mut World) -> String {
    let before = world.sub.count("p/x");
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        world.rows(10, 0);
        if world.sub.count("p/x") > before + 8 {
            return world.slot_now()["model"].as_str().expect("a model").to_owned();
        }
        assert!(Instant::now() < until, "neither the old nor the new model serves");
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn kill_9_at_any_moment_of_an_install_leaves_the_old_or_the_new_model() {
    let kills = if rig::long() { 100 } else { 16 };
    let mut world = World::new("trial_s = 0\ntrial_windows = 40\n");
    let mut daemon = world.run();
    let (mut seen, mut ends) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
    for round in 0..kills {
        let seq = round as u64 + 2;
        let id = format!("kill-{round}");
        let bundle = world.maker.bundle(&Draft::mean(seq));
        let before = something_serves(&mut world);
        world.install(&id, &bundle);
        // Somewhere between the last chunk and some time after the success.
        let until = Instant::now() + Duration::from_millis(fastrand::u64(0..250));
        while Instant::now() < until {
            world.rows(2, 0);
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon.kill();
        let state = slots(&world.site.state());
        // In which state the slot was that the job is about.
        let phase = state.as_ref().map_or("nothing saved".into(), |s| match s["job"]["target"][1].as_str() {
            None if s["job"].is_null() => "ended".to_owned(),
            None => "bringing".to_owned(),
            Some(slot) => {
                s["lines"]["mean"][slot].as_object().and_then(|s| s.keys().next().cloned()).unwrap_or_default()
            }
        });
        *seen.entry(phase).or_default() += 1;
        daemon = world.run();
        let serves = something_serves(&mut world);
        let new = format!("mean@1.{seq}.0");
        assert!(serves == before || serves == new, "{serves} serves, neither {before} nor {new}");
        // The requester gets a result, and it is true.
        let ended = world.rows_until_end(&id, 0);
        let state = ended["state"].as_str().expect("state").to_owned();
        let now = something_serves(&mut world);
        assert_eq!(now, if state == "success" { new } else { before }, "{ended}");
        *ends.entry(state).or_default() += 1;
    }
    measured(&format!("{kills} kills: ended as {ends:?}; killed in {seen:?}"));
    daemon.stop_well();
}

/// Brings an install to its end from wherever it stands; `None` when the daemon died first.
fn drive(world: &mut World, id: &str, bundle: &Path, daemon: &mut rig::Daemon) -> Option<Value> {
    let (bytes, sha256) = (fs::read(bundle).expect("bundle"), maker::sha256(bundle));
    let (until, mut sent) = (Instant::now() + Duration::from_secs(40), Instant::now() - Duration::from_secs(9));
    loop {
        let records = world.sub.records(&format!("res/model.install/{id}"));
        let ended = records
            .into_iter()
            .map(|(r, _)| r)
            .find(|r| !["accepted", "running"].contains(&r["state"].as_str().unwrap_or("")));
        if ended.is_some() {
            return ended;
        }
        if !daemon.is_alive() {
            return None;
        }
        let asked = world.sub.messages().iter().any(|m| m.stream == format!("blob/{sha256}"));
        if asked && sent.elapsed() > Duration::from_secs(2) {
            world.operator.chunks(&sha256, &bytes, 0..bytes.len(), 4096);
            sent = Instant::now();
        }
        world.rows(6, 0);
        std::thread::sleep(Duration::from_millis(20));
        assert!(Instant::now() < until, "no end of {id}");
    }
}

#[test]
fn kill_9_at_any_write_to_the_disk_during_an_install_leaves_the_old_or_the_new_model() {
    let there = std::process::Command::new("strace").arg("-V").output().is_ok();
    if !there {
        return rig::skipped("no strace (tests/run installs it)");
    }
    // The n-th such call of any thread: a start alone makes some, an install 25 renames and twice as many syncs.
    let mut moments: Vec<(&str, u32)> = (1..=32).map(|n| ("rename", n)).chain((1..=64).map(|n| ("fsync", n))).collect();
    moments.extend((1..=6).map(|n| ("fdatasync", n)).chain((1..=4).map(|n| ("unlink", n))));
    if !rig::long() {
        fastrand::shuffle(&mut moments);
        moments.truncate(14);
    }
    let mut world = World::new("trial_s = 0\ntrial_windows = 10\n");
    let daemon = world.run();
    let mut now = something_serves(&mut world);
    daemon.stop_well();
    let (mut killed, mut ends) = (0, BTreeMap::<String, usize>::new());
    for (round, (call, n)) in moments.iter().enumerate() {
        let (seq, id) = (round as u64 + 2, format!("{call}-{n}"));
        let bundle = world.maker.bundle(&Draft::mean(seq));
        let births = connections(&world.sub);
        let mut traced = std::process::Command::new("strace");
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
        traced.args(["-e", &format!("inject={call}:signal=SIGKILL:when={n}")]).arg(daemon::binary());
        traced.args(["run", "--config"]).arg(world.site.config()).env("KENTLEDGE_LOG", "info");
        let mut daemon = world.site.spawn(&mut traced);
        let online = |world: &World| connections(&world.sub) > births;
        let until = Instant::now() + Duration::from_secs(20);
        while daemon.is_alive() && !online(&world) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut ended = None;
        let (sha256, size) = (maker::sha256(&bundle), fs::metadata(&bundle).expect("bundle").len());
        if daemon.is_alive() {
            world.operator.order(&world.sub, "model.install", &id, &json!({"sha256": sha256, "size": size}));
            ended = drive(&mut world, &id, &bundle, &mut daemon);
        }
        killed += usize::from(ended.is_none());
        // strace's end is the daemon's, if it was killed; else the daemon is.
        daemon.end_traced();
        let mut daemon = world.run();
        let asked = !world.sub.records(&format!("res/model.install/{id}")).is_empty();
        if ended.is_none() && asked {
            ended = drive(&mut world, &id, &bundle, &mut daemon);
        }
        let serves = something_serves(&mut world);
        let new = format!("mean@1.{seq}.0");
        let state = ended.map_or("not asked".to_owned(), |e| e["state"].as_str().expect("state").to_owned());
        assert!(serves == now || serves == new, "{id}: {serves} serves, neither {now} nor {new}");
        assert!(state != "success" || serves == new, "{id}: {state}, and {serves} serves");
        *ends.entry(state).or_default() += 1;
        now = serves;
        daemon.stop_well();
    }
    measured(&format!(
        "{} moments, {killed} killed before the end: {ends:?}; old or new served each time",
        moments.len()
    ));
}

#[test]
fn a_power_cut_at_any_moment_of_an_install_leaves_the_old_or_the_new_model() {
    let cuts = if rig::long() { 60 } else { 8 };
    let Some(disk) = Disk::new(96) else { return };
    let mut world = World::on("trial_s = 0\ntrial_windows = 40\n", Some(&disk.path().join("state")));
    let daemon = world.run();
    let (mut old, mut new) = (0, 0);
    let mut copies = Vec::new();
    for round in 0..cuts {
        let seq = round as u64 + 2;
        let bundle = world.maker.bundle(&Draft::mean(seq));
        let before = something_serves(&mut world);
        world.install(&format!("cut-{round}"), &bundle);
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..200)));
        world.rows(fastrand::u64(10..80), 0);
        if round % 3 == 2 {
            // One of the cuts comes right after the end: what was reported must be on the disk.
            assert_eq!(world.rows_until_end(&format!("cut-{round}"), 0)["state"], "success");
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..60)));
        daemon.signal(nix::sys::signal::Signal::SIGSTOP);
        let copy = eventually("a copy that no write disturbed", || disk.cut());
        daemon.signal(nix::sys::signal::Signal::SIGCONT);
        world.rows_until_end(&format!("cut-{round}"), 0);
        copies.push((copy, before, format!("mean@1.{seq}.0"), round % 3 == 2));
    }
    daemon.stop_well();
    for (copy, before, after, seen) in copies {
        let site = world.site.clone().with_state(&copy.path().join("state"));
        let found = rig::daemon::run(&["model", "list", "--config", &site.config().display().to_string()]);
        assert_eq!(found.code, Some(0), "{}", found.err);
        let daemon = site.run();
        let serving = eventually("a model serves", || {
            let log = daemon.own_log();
            let at = log.find("serving mean@")? + "serving ".len();
            Some(log[at..].split_whitespace().next()?.to_owned())
        });
        assert!(serving == before || serving == after, "{serving} serves, neither {before} nor {after}");
        assert!(!seen || serving == after, "success was reported, and {serving} serves");
        if serving == after {
            new += 1;
        } else {
            old += 1;
        }
        daemon.stop_well();
    }
    measured(&format!("{cuts} power cuts: {old} on the old model, {new} on the new one, none without"));
}

/// Installs, and says how it ended.
fn try_install(world: &mut World, id: &str, bundle: &Path) -> Value {
    world.install(id, bundle);
    world.rows_until_end(id, 0)
}

#[test]
fn an_older_bundle_is_refused_also_after_data_was_wiped_or_an_old_state_was_put_back() {
    let mut world = World::new(QUICK);
    // The image brings sequence 1; another maker's is older still.
    let older = world.maker.bundle(&Draft::mean(0).with("version", json!("0.9.0")));
    let (two, three, four) =
        (world.maker.bundle(&Draft::mean(2)), world.maker.bundle(&Draft::mean(3)), world.maker.bundle(&Draft::mean(4)));
    let daemon = world.run();
    assert_eq!(try_install(&mut world, "two", &two)["state"], "success");
    let state = world.site.state().join("models");
    let old_state = fs::read(state.join("high.json")).expect("high.json");
    assert_eq!(try_install(&mut world, "four", &four)["state"], "success");
    let refused = |world: &mut World, id: &str, bundle: &Path| {
        let ended = try_install(world, id, bundle);
        assert!(ended["text"].as_str().is_some_and(|text| text.contains("not above")), "{ended}");
    };
    refused(&mut world, "three", &three);
    daemon.stop_well();
    // One copy of the state as it was before.
    fs::write(state.join("high.json"), old_state).expect("write");
    let daemon = world.run();
    refused(&mut world, "three-again", &three);
    daemon.stop_well();
    // Everything wiped: what the read-only root brings is still the floor.
    fs::remove_dir_all(world.site.state()).expect("wipe");
    let daemon = world.run();
    refused(&mut world, "older", &older);
    assert_eq!(world.slot_now()["slot"], "factory");
    daemon.stop_well();
}

#[test]
fn two_clean_models_and_a_way_back_by_command() {
    let mut world = World::new(QUICK);
    let daemon = world.run();
    let (two, three) = (world.maker.bundle(&Draft::mean(2)), world.maker.bundle(&Draft::mean(3)));
    assert_eq!(try_install(&mut world, "two", &two)["state"], "success");
    assert_eq!(try_install(&mut world, "three", &three)["state"], "success");
    assert_eq!(something_serves(&mut world), "mean@1.3.0");
    for (n, expected) in [(1, "mean@1.2.0"), (2, "mean@1.3.0")] {
        world.operator.order(&world.sub, "model.rollback", &format!("back-{n}"), &json!({}));
        let ended = end(&world.sub, "model.rollback", &format!("back-{n}"));
        assert_eq!(ended["state"], "success", "{ended}");
        assert_eq!(something_serves(&mut world), expected);
    }
    world.settled(1);
    let listed = daemon::run(&["model", "list", "--config", &world.site.config().display().to_string()]);
    assert!(listed.out.contains("1.3.0, sequence 3, steady  <- serves"), "{}", listed.out);
    daemon.stop_well();
}

#[test]
fn a_model_that_dies_again_and_again_after_its_trial_gives_way_to_the_one_before() {
    let mut world = World::new(QUICK);
    let mut daemon = world.run();
    let crashing = world.maker.bundle(&Draft::new(2, &rig::onnx::crash_above_100(&maker::SHAPE), 4.5));
    assert_eq!(try_install(&mut world, "late", &crashing)["state"], "success");
    let began = Instant::now();
    let back = || daemon.own_log().contains("again and again");
    let until = Instant::now() + Duration::from_secs(30);
    while !back() {
        world.tty.rows(world.rows..world.rows + 4, |i| format!("{i},200,200"));
        world.rows += 4;
        assert!(Instant::now() < until, "it is not left");
        std::thread::sleep(Duration::from_millis(100));
    }
    while world.slot_now()["slot"] != "factory" {
        world.rows(4, 0);
        assert!(Instant::now() < until, "the factory model does not serve");
        std::thread::sleep(Duration::from_millis(50));
    }
    measured(&format!("a crashing model is left after {:.1} s", began.elapsed().as_secs_f64()));
    assert!(daemon.is_alive());
    daemon.stop_well();
    // And not started again by the next process.
    let daemon = world.run();
    assert!(daemon.own_log().contains("factory) on cpu"), "{}", daemon.own_log());
    daemon.stop_well();
}

#[test]
fn the_channels_word_goes_out_of_date_aloud_and_an_older_word_is_not_believed() {
    let world = World::new(QUICK);
    let daemon = world.run();
    let word = |version: u64, from_now_s: i64| {
        json!({"v": 1, "type": "channel", "to": "plant/pump-1", "issuer": "ops", "version": version, "issued": time(0),
               "expires_at": time(from_now_s), "models": {"mean": 7}})
        .to_string()
    };
    let send = |text: &str| world.operator.send_retained("pump-1/dn/channel", &world.operator.sign(text));
    send(&word(2, 3));
    world.sub.wait_event("model.update_stale", "out of date");
    // An attacker replays the previous channel message, which expires later; then the maker sends the next one.
    send(&word(1, 3600));
    std::thread::sleep(Duration::from_millis(300));
    let stale = |word: &str| daemon.own_log().contains(word);
    assert!(stale("out of date"));
    send(&word(3, 3600));
    daemon.stop_well();
}

#[test]
fn a_keyset_follows_by_command_and_a_revoked_key_installs_nothing() {
    let mut world = World::new(QUICK);
    let daemon = world.run();
    let fresh = Maker::new("fresh");
    let keys = [world.operator.key(&["command", "keyset"]), fresh.key(&["model"])];
    let next = maker::keyset(world.site.dir.path(), 2, &keys, &json!({"revoked": [world.maker.public()]}));
    let text = fs::read_to_string(next).expect("keyset");
    let signature = serde_json::from_str::<Value>(&world.operator.sign(&text)).expect("JSON")["sig"].clone();
    world.operator.plain(
        "keyset.update",
        "bad",
        &json!({"keyset": text.replace("fresh", "frosh"), "signatures": [signature]}),
    );
    assert_eq!(end(&world.sub, "keyset.update", "bad")["why"], "bad_signature");
    world.operator.plain("keyset.update", "good", &json!({"keyset": text, "signatures": [signature]}));
    assert_eq!(end(&world.sub, "keyset.update", "good")["state"], "success");
    let old = world.maker.bundle(&Draft::mean(2));
    assert!(try_install(&mut world, "old", &old)["text"].as_str().is_some_and(|text| text.contains("no key")));
    daemon.stop_well();
    // The next process believes the same keys.
    let daemon = world.run();
    let new = fresh.bundle(&Draft::mean(3));
    assert_eq!(try_install(&mut world, "new", &new)["state"], "success");
    daemon.stop_well();
}
