//! What an install must not do: delay a rollback, pass its trial before it was on trial, or serve a model that falls behind.

use std::time::{Duration, Instant};

use rig::{
    maker::{self, Draft},
    measured, onnx,
    operator::end,
    world::World,
};
use serde_json::json;

/// An install of which nothing comes.
fn abandoned(world: &World, id: &str) {
    let sha256 = format!("{:064}", id.len());
    world.operator.order(&world.sub, "model.install", id, &json!({"sha256": sha256, "size": 1000}));
    let stream = format!("blob/{sha256}");
    world.sub.wait("it waits for chunks", |m| m.iter().any(|m| m.stream == stream).then_some(()));
}

/// How often a command came to an end.
fn ends(world: &World, kind: &str, id: &str) -> Vec<String> {
    let records = world.sub.records(&format!("res/{kind}/{id}"));
    let state = |r: &serde_json::Value| r["state"].as_str().expect("state").to_owned();
    records.iter().map(|(r, _)| state(r)).filter(|state| state != "accepted" && state != "running").collect()
}

#[test]
fn rollback_cancels_an_install_whose_chunks_never_come() {
    let mut world = World::new("trial_s = 0\ntrial_windows = 5\n");
    let daemon = world.run();
    world.install("two", &world.maker.bundle(&Draft::mean(2)));
    assert_eq!(world.rows_until_end("two", 0)["state"], "success");
    abandoned(&world, "stopped");
    let began = Instant::now();
    world.operator.order(&world.sub, "model.rollback", "back", &json!({}));
    let ended = end(&world.sub, "model.rollback", "back");
    assert_eq!(ended["state"], "success", "{ended}");
    measured(&format!("a rollback beside an abandoned install took {:.1} s", began.elapsed().as_secs_f64()));
    let stopped = end(&world.sub, "model.install", "stopped");
    assert_eq!(stopped["state"], "failed", "{stopped}");
    assert!(stopped["text"].as_str().is_some_and(|text| text.contains("cancelled by a rollback")), "{stopped}");
    let before = world.sub.count("p/x");
    world.rows(10, 0);
    world.sub.wait("a prediction of the model before", |_| (world.sub.count("p/x") >= before + 10).then_some(()));
    assert_eq!(world.slot_now()["slot"], "factory");
    assert_eq!(ends(&world, "model.install", "stopped"), ["failed"]);

    // On trial: the trial ends, and the same bundle may come again.
    let three = world.maker.bundle(&Draft::mean(3));
    daemon.stop_well();
    world.site = world.site.clone().without("trial_windows = 5").with_more_in_models("trial_windows = 100000\n");
    let daemon = world.run();
    world.install("three", &three);
    world.sub.wait("it is on trial", |_| {
        let records = world.sub.records("res/model.install/three");
        records.iter().any(|(r, _)| r["text"].as_str().is_some_and(|text| text.contains("on trial"))).then_some(())
    });
    world.rows(10, 0);
    world.operator.order(&world.sub, "model.rollback", "no-trial", &json!({}));
    let ended = end(&world.sub, "model.rollback", "no-trial");
    assert_eq!(
        (&ended["state"], ended["text"].as_str()),
        (&json!("success"), Some("the trial is ended; the previous model serves"))
    );
    assert_eq!(end(&world.sub, "model.install", "three")["state"], "rolled_back");
    world.operator.order(
        &world.sub,
        "model.install",
        "three-again",
        &json!({"sha256": maker::sha256(&three), "size": 1}),
    );
    let records = || world.sub.records("res/model.install/three-again");
    world.sub.wait("it is taken again", |_| records().iter().any(|(r, _)| r["state"] == "running").then_some(()));
    daemon.stop_well();
}

#[test]
fn fallback_of_a_failing_model_cancels_an_install_whose_chunks_never_come() {
    let mut world = World::new("trial_s = 0\ntrial_windows = 5\n");
    let daemon = world.run();
    world.install("late", &world.maker.bundle(&Draft::new(2, &onnx::crash_above_100(&maker::SHAPE), 4.5)));
    assert_eq!(world.rows_until_end("late", 0)["state"], "success");
    abandoned(&world, "stopped");
    let until = Instant::now() + Duration::from_secs(30);
    while !daemon.own_log().contains("again and again") {
        world.tty.rows(world.rows..world.rows + 4, |i| format!("{i},200,200"));
        world.rows += 4;
        assert!(Instant::now() < until, "the failing model is not left");
        std::thread::sleep(Duration::from_millis(100));
    }
    let stopped = end(&world.sub, "model.install", "stopped");
    assert_eq!(stopped["state"], "failed", "{stopped}");
    while world.slot_now()["slot"] != "factory" {
        world.rows(4, 0);
        assert!(Instant::now() < until, "the factory model does not serve");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(ends(&world, "model.install", "stopped"), ["failed"]);
    daemon.stop_well();
}

#[test]
fn first_install_into_an_empty_pipeline_is_on_trial_by_the_clock_and_not_without_windows() {
    let mut world = World::new("trial_s = 3\ntrial_windows = 20\n");
    world.site = world.site.clone().without("model = \"factory.kmb\"\n").with("bundle = \"mean\"\nwindow_steps = 4\n");
    let daemon = world.site.run();
    world.sub.wait_state("online");
    // What waits for a model is older than a trial takes.
    for _ in 0..8 {
        world.rows(20, 0);
        std::thread::sleep(Duration::from_millis(500));
    }
    world.install("first", &world.maker.bundle(&Draft::mean(1)));
    world.sub.wait_event("model.swapped", "on trial");
    let swapped = Instant::now();
    let ended = end(&world.sub, "model.install", "first");
    let took = swapped.elapsed();
    assert_eq!(ended["state"], "success", "{ended}");
    measured(&format!(
        "first install with a backlog: success {:.1} s after the swap: {}",
        took.as_secs_f64(),
        ended["text"]
    ));
    assert!(took > Duration::from_millis(2500), "a trial of 3 s took {took:?}");
    world.settled(1);

    // Without windows it does not pass.
    world.install("second", &world.maker.bundle(&Draft::mean(2)));
    std::thread::sleep(Duration::from_secs(6));
    assert!(ends(&world, "model.install", "second").is_empty(), "it passed without a window");
    let ended = world.rows_until_end("second", 0);
    assert_eq!(ended["state"], "success", "{ended}");
    daemon.stop_well();
}

#[test]
fn trial_that_waits_for_windows_survives_restarts_by_command() {
    let mut world = World::new("trial_s = 0\ntrial_windows = 100\n");
    let mut daemon = world.run();
    world.install("waits", &world.maker.bundle(&Draft::mean(2)));
    for n in 1..=4 {
        let records = || world.sub.records("res/model.install/waits");
        let on_trial =
            |r: &&(serde_json::Value, bool)| r.0["text"].as_str().is_some_and(|text| text.contains("on trial"));
        world.sub.wait("it is on trial", |_| (records().iter().filter(on_trial).count() == n).then_some(()));
        world.operator.order(&world.sub, "restart", &format!("restart-{n}"), &json!({}));
        assert_eq!(daemon.wait(), Some(0));
        daemon = world.run();
    }
    let ended = world.rows_until_end("waits", 0);
    assert_eq!(ended["state"], "success", "{ended}");
    daemon.stop_well();
}

/// Rows come faster than the model takes them.
fn flood(world: &mut World) {
    world.rows(20, 0);
    std::thread::sleep(Duration::from_millis(50));
}

fn slow(seq: u64) -> Draft {
    Draft::new(seq, &onnx::slow(&maker::SHAPE, 30_000), 4.5).with("deadline_ms", json!(20_000))
}

#[test]
fn model_slower_than_its_windows_is_rolled_back_on_trial() {
    let mut world = World::new("trial_s = 60\ntrial_windows = 5\n");
    let daemon = world.run();
    let bundle = world.maker.bundle(&slow(2));
    world.install("slow", &bundle);
    let until = Instant::now() + Duration::from_secs(60);
    while ends(&world, "model.install", "slow").is_empty() {
        flood(&mut world);
        assert!(Instant::now() < until, "no end of it");
    }
    let ended = end(&world.sub, "model.install", "slow");
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    assert!(ended["text"].as_str().is_some_and(|text| text.contains("it falls behind")), "{ended}");
    // The model before takes what waited: none is lost.
    world.settled(1);
    assert_eq!(world.slot_now()["slot"], "factory");
    daemon.stop_well();
}

#[test]
fn pipeline_that_falls_behind_is_reported_and_so_is_that_it_caught_up() {
    let mut world = World::new("");
    let factory = world.site.dir.path().join("factory.kmb");
    std::fs::copy(world.maker.bundle(&slow(1)), factory).expect("copy");
    let daemon = world.run();
    let behind = |world: &World| world.sub.messages().iter().any(|m| m.stream == "e/pipeline.behind");
    let until = Instant::now() + Duration::from_secs(60);
    let mut longest = Duration::ZERO;
    let (mut seen, mut at) = (0, Instant::now());
    while !behind(&world) {
        // Twice as many as it takes, whatever machine this is; not more, or catching up takes for ever.
        let now = world.sub.count("p/x");
        world.rows(2 + 2 * (now - seen), 0);
        std::thread::sleep(Duration::from_millis(100));
        if now > seen {
            if seen > 0 {
                longest = longest.max(at.elapsed());
            }
            (seen, at) = (now, Instant::now());
        }
        assert!(Instant::now() < until, "it is not reported");
    }
    world.operator.plain("status", "how", &json!({}));
    let status = end(&world.sub, "status", "how").to_string();
    assert!(status.contains("pipeline x is behind"), "{status}");
    measured(&format!("a model that falls behind: its predictions come at least every {:.1} s", longest.as_secs_f64()));
    assert!(longest < Duration::from_secs(3), "{longest:?} without a prediction");
    let until = Instant::now() + Duration::from_secs(120);
    while !world.sub.messages().iter().any(|m| m.stream == "e/pipeline.caught_up") {
        world.rows(1, 0);
        std::thread::sleep(Duration::from_secs(1));
        assert!(Instant::now() < until, "it has not caught up");
    }
    // All that time its port was read.
    assert!(!world.sub.messages().iter().any(|m| m.stream == "e/source.lost"), "it lacked nothing but a faster model");
    daemon.stop_well();
}

#[test]
fn daemon_that_is_stopped_while_windows_wait_for_a_slow_model_ends_well_and_books_them() {
    let mut world = World::new("");
    let factory = world.site.dir.path().join("factory.kmb");
    std::fs::copy(world.maker.bundle(&slow(1)), factory).expect("copy");
    let daemon = world.run();
    rig::within(Duration::from_secs(60), "it serves", || {
        world.rows(4, 0);
        std::thread::sleep(Duration::from_millis(200));
        world.sub.count("p/x") > 0
    });
    // More than it serves within the time of a stop.
    for _ in 0..20 {
        world.rows(100, 0);
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon.stop_well();
    // What came too late for the connection is reported by the next start.
    let daemon = world.run();
    world.sub.wait("windows that were not served are in the ledger", |messages| {
        let loss = rig::sub::records(messages, "loss");
        loss.iter().any(|(entry, _)| entry["stream"] == "p/x" && entry["reason"] == "stopped").then_some(())
    });
    daemon.stop_well();
}
