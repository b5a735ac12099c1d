//! Models that cannot brick a device: signed bundles, proven before they serve, rolled back by themselves.

use std::{
    fs,
    time::{Duration, Instant},
};

use rig::{
    daemon, eventually,
    maker::{self, Draft, SHAPE},
    measured, onnx,
    operator::end,
    world::World,
};
use serde_json::json;

#[test]
fn a_bundle_comes_by_mqtt_alone_is_proven_tried_and_kept_and_a_bad_one_is_rolled_back() {
    let mut world = World::new("");
    let daemon = world.run();
    world.rows(40, 0);
    world.settled(1);
    assert_eq!(world.slot_now()["slot"], "factory");
    // The outage in the middle: half of it, another process, the rest.
    let bundle = world.maker.bundle(&Draft::mean(2));
    let (bytes, sha256) = (fs::read(&bundle).expect("bundle"), maker::sha256(&bundle));
    world.operator.order(&world.sub, "model.install", "good", &json!({"sha256": sha256, "size": bytes.len()}));
    let missing = |world: &World| {
        world.sub.wait("what is missing", |messages| {
            let seen = messages.iter().rev().find(|m| m.stream == format!("blob/{sha256}"))?;
            seen.payload["data"][0]["missing"][0][0].as_u64()
        }) as usize
    };
    assert_eq!(missing(&world), 0);
    world.operator.chunks(&sha256, &bytes, 0..bytes.len() / 2, 1000);
    let half = world.site.state().join("models/incoming").join(&sha256);
    eventually("half of it is there", || (half.metadata().ok()?.len() as usize >= bytes.len() / 2).then_some(()));
    daemon.stop_well();
    let daemon = world.run();
    let from = world.sub.wait("what is missing after the restart", |messages| {
        let seen = messages.iter().rev().find(|m| m.stream == format!("blob/{sha256}"))?;
        seen.payload["data"][0]["missing"][0][0].as_u64().filter(|from| *from > 0)
    }) as usize;
    assert!(from >= bytes.len() / 2, "{from}");
    // A hole is answered with what is missing, and what came twice is taken once.
    world.operator.chunks(&sha256, &bytes, from + 100..from + 200, 100);
    world.operator.chunks(&sha256, &bytes, from - 50..bytes.len(), 3000);
    let ended = world.rows_until_end("good", 0);
    assert_eq!(ended["state"], "success", "{ended}");
    world.settled(2);
    let lineage = world.slot_now();
    assert_eq!(
        (&lineage["slot"], &lineage["model"], &lineage["unsigned"]),
        (&json!("a"), &json!("mean@1.2.0"), &json!(false))
    );

    // The same way, and bad: no number once it is on trial.
    world.install("bad", &world.maker.bundle(&Draft::new(3, &onnx::nan_above_100(&SHAPE), 4.5)));
    let ended = world.rows_until_end("bad", 200);
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    world.settled(2);
    assert_eq!(world.slot_now()["model"], "mean@1.2.0");
    // What serves is the same after a start.
    daemon.stop_well();
    let daemon = world.run();
    world.rows(10, 0);
    world.sub.wait("a prediction of the next process", |m| {
        let now = m.iter().rev().find(|m| m.stream == "p/x")?;
        (now.payload["lineage"]["slot"] == "a").then_some(())
    });
    daemon.stop_well();
}

/// A validly signed bundle that must not stay; returns how it ended and how long after the first bad window.
#[track_caller]
fn bad(name: &str, draft: &Draft, models: &str, expected: &str, words: &str) {
    let mut world = World::new(models);
    let mut daemon = world.run();
    world.rows(30, 0);
    let bundle = world.maker.bundle(draft);
    world.install("bad", &bundle);
    let began = Instant::now();
    let ended = world.rows_until_end("bad", 200);
    let took = began.elapsed();
    assert_eq!(ended["state"], expected, "{name}: {ended}");
    assert!(ended["text"].as_str().is_some_and(|text| text.contains(words)), "{name}: {ended}");
    measured(&format!("{name}: {expected} {:.1} s after its last chunk", took.as_secs_f64()));
    assert!(took < Duration::from_secs(30));
    assert!(daemon.is_alive());
    // The sensors never stopped, and every window has an answer of the model before or of this one.
    world.rows(20, 0);
    let all = world.rows - 3;
    world.sub.wait("every window is predicted", |_| (world.sub.records("p/x").len() as u64 >= all).then_some(()));
    assert_eq!(world.slot_now()["slot"], "factory");
    // It is not tried again: no loop.
    if expected == "rolled_back" {
        let (sha256, size) = (maker::sha256(&bundle), fs::metadata(&bundle).expect("bundle").len());
        world.operator.order(&world.sub, "model.install", "again", &json!({"sha256": sha256, "size": size}));
        let ended = end(&world.sub, "model.install", "again");
        assert!(ended["text"].as_str().is_some_and(|text| text.contains("failed here before")), "{ended}");
    }
    daemon.stop_well();
}

#[test]
fn a_model_that_answers_no_number_is_rolled_back() {
    bad("NaN", &Draft::new(2, &onnx::nan_above_100(&SHAPE), 4.5), "", "rolled_back", "not_finite");
}

#[test]
fn a_model_that_answers_the_same_to_everything_is_rolled_back() {
    bad(
        "constant",
        &Draft::new(2, &onnx::constant_5(&SHAPE), 5.0),
        "trial_s = 1\ntrial_windows = 2000\n",
        "rolled_back",
        "gives one score",
    );
}

#[test]
fn a_model_that_hangs_is_rolled_back_at_its_deadline() {
    bad("hang", &Draft::new(2, &onnx::hang_above_100(&SHAPE), 4.5), "", "rolled_back", "deadline");
}

#[test]
fn a_model_that_crashes_its_worker_is_rolled_back() {
    bad("crash", &Draft::new(2, &onnx::crash_above_100(&SHAPE), 4.5), "", "rolled_back", "signal");
}

#[test]
fn a_model_that_wants_all_memory_is_rolled_back() {
    bad("memory bomb", &Draft::new(2, &onnx::bomb_above_100(&SHAPE), 4.5), "", "rolled_back", "run_failed");
}

#[test]
fn a_model_of_another_shape_is_refused_before_it_serves() {
    bad("wrong shape", &Draft::new(2, &onnx::mean(&[1, 5, 2]), 4.5), "", "failed", "4 rows × 2 channels");
}

#[test]
fn a_model_for_other_windows_is_refused_before_it_serves() {
    let draft = Draft::mean(2).with("window", json!({"channels": ["b", "a"], "length": 4}));
    bad("wrong window", &draft, "", "failed", "`channels` is");
}

#[test]
fn a_model_for_another_board_is_refused_before_it_serves() {
    let draft = Draft::mean(2).with("device_class", json!(["jetson-orin"]));
    bad("wrong device", &draft, "", "failed", "jetson-orin");
}

#[test]
fn a_model_that_does_not_answer_as_it_must_is_refused_before_it_serves() {
    bad("golden", &Draft::new(2, &onnx::mean_plus_50(&SHAPE), 4.5), "", "failed", "golden case 1");
}

#[test]
fn a_raised_alarm_says_which_channel_drove_it() {
    let mut world = World::new("");
    world.site = world.site.clone().with("[alarm.high]\npipeline = \"x\"\n");
    let daemon = world.run();
    world.rows(100, 0);
    world.tty.rows(100..110, |i| format!("{i},2,90"));
    let raised = world.sub.wait("an alarm", |messages| {
        let alarm = messages.iter().find(|m| m.stream == "a/high" && !m.removed)?;
        Some(alarm.payload["data"][0].clone())
    });
    let channels = &raised["explain"]["channels"];
    assert_eq!((&channels[0]["name"], &channels[1]["name"]), (&json!("b"), &json!("a")), "{raised}");
    assert!(channels[0]["drop"].as_f64() > Some(5.0) && channels[1]["drop"].as_f64() < Some(1.0), "{raised}");
    daemon.stop_well();
}

#[test]
fn a_model_that_says_itself_what_drove_its_score_is_believed() {
    let mut world = World::new("");
    let draft = Draft::new(1, &onnx::with_contributions(&SHAPE), 4.5).with(
        "outputs",
        json!([{"name": "score", "type": "float32", "shape": [], "role": "score"},
               {"name": "why", "type": "float32", "shape": [2], "role": "contributions"}]),
    );
    fs::copy(world.maker.bundle(&draft), world.site.dir.path().join("factory.kmb")).expect("copy");
    world.site = world.site.clone().with("[alarm.high]\npipeline = \"x\"\n");
    let daemon = world.run();
    world.tty.rows(0..4, |i| format!("{i},30,90"));
    let raised = world.sub.wait("an alarm", |messages| {
        let alarm = messages.iter().find(|m| m.stream == "a/high" && !m.removed)?;
        Some(alarm.payload["data"][0]["explain"].clone())
    });
    assert_eq!(raised, json!({"by": "model", "channels": [{"name": "b", "drop": 90}, {"name": "a", "drop": 30}]}));
    daemon.stop_well();
}

#[test]
fn a_prepared_bundle_with_a_baseline_is_quiet_on_its_own_rows_and_tells_drift_on_others() {
    let world = World::new("");
    let dir = world.site.dir.path().join("my-model");
    fs::create_dir(&dir).expect("folder");
    fs::write(dir.join("model.onnx"), onnx::mean(&SHAPE)).expect("model");
    // Only the keys that cannot be derived from the model file.
    let manifest = json!({"model": "mean", "version": "2.0.0", "seq": 9, "thresholds": {"raise": 1000.0},
                          "window": {"channels": ["a", "b"], "length": 4}});
    fs::write(dir.join("manifest.json"), manifest.to_string()).expect("manifest");
    let csv = |shift: u64| {
        (0..700u64).fold("n,a,b\n".to_owned(), |all, i| {
            let moved = if i > 340 { shift } else { 0 };
            all + &format!("{i},{},{}\n", i * 37 % 101 + moved, i * 53 % 89 + moved)
        })
    };
    let rows = |name: &str, shift: u64| {
        let path = world.site.dir.path().join(name);
        fs::write(&path, csv(shift)).expect("rows");
        path.display().to_string()
    };
    let folder = dir.display().to_string();
    let done = daemon::run(&["model", "prepare", &folder, "--rows", &rows("normal.csv", 0), "--drift", "0.3"]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    // Golden cases are windows of the rows, and the baseline knows the scores.
    let golden = fs::read_to_string(dir.join("golden.jsonl")).expect("golden cases");
    let cases: Vec<serde_json::Value> = golden.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let score = |case: &serde_json::Value| case["outputs"]["score"][0].as_f64().expect("a score");
    let mean = |case: &serde_json::Value| {
        let values = case["inputs"]["x"].as_array().expect("a window").iter().filter_map(|x| x.as_f64());
        values.inspect(|x| assert!(x.fract() == 0.0 && *x < 101.0, "{x} is in no row")).sum::<f64>() / 8.0
    };
    assert!(cases.len() == 3 && cases.iter().all(|case| (mean(case) - score(case)).abs() < 1e-3), "{golden}");
    let baseline = fs::read_to_string(dir.join("baseline.json")).expect("baseline");
    let baseline: serde_json::Value = serde_json::from_str(&baseline).expect("JSON");
    let quantile = |at: usize| baseline["score"]["quantiles"][at].as_f64().expect("a quantile");
    assert!((quantile(0) - score(&cases[0])).abs() < 1e-3 && (quantile(32) - score(&cases[2])).abs() < 1e-3);
    fs::write(dir.join("manifest.json.minisig"), world.maker.sign(&dir.join("manifest.json"))).expect("sign");
    let bundle = world.maker.pack(&dir);
    fs::copy(&bundle, world.site.dir.path().join("factory.kmb")).expect("copy");
    let config = world.site.config().display().to_string();
    let states = |csv: String| -> Vec<String> {
        let done = daemon::run(&["replay", "--csv", &csv, "--every", "1", "--config", &config]);
        assert_eq!(done.code, Some(0), "{}", done.err);
        let lines = done.out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let drift = lines.filter(|line| line["stream"] == "q/drift/x");
        drift.map(|line| line["state"].as_str().expect("state").to_owned()).collect()
    };
    assert_eq!(states(rows("same.csv", 0)), ["none", "none"]);
    assert_eq!(states(rows("other.csv", 60)), ["none", "drift"]);
    // And the device runs it.
    let daemon = world.run();
    daemon.stop_well();
}

#[test]
fn a_pipeline_waits_for_the_bundle_it_names_and_goes_on_waiting_when_a_bad_one_comes() {
    let mut world = World::new("");
    let device = "[pipeline.x]\nbundle = \"mean\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\n[alarm.high]\npipeline = \"x\"\n";
    world.site =
        world.site.clone().without("[pipeline.x]\nmodel = \"factory.kmb\"\nchannels = [\"a\", \"b\"]\n").with(device);
    let daemon = world.site.run();
    world.sub.wait_event("model.failed", "no bundle of `mean` is installed yet");
    world.install("bad", &world.maker.bundle(&Draft::new(1, &onnx::nan_above_100(&SHAPE), 4.5)));
    let ended = world.rows_until_end("bad", 200);
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    world.install("good", &world.maker.bundle(&Draft::mean(2)));
    let ended = world.rows_until_end("good", 0);
    assert_eq!(ended["state"], "success", "{ended}");
    assert_eq!(world.slot_now()["model"], "mean@1.2.0");
    daemon.stop_well();
    let daemon = world.run();
    daemon.stop_well();
}

#[test]
fn a_model_that_is_fitted_to_its_machine_learns_beside_the_one_before_and_no_window_is_blind() {
    let draft = |seq: u64| {
        let golden = json!({"inputs": {"x": [1, 2, 3, 4, 5, 6, 7, 8], "center": [0.5], "scale": [2]}, "outputs": {"score": [2]}});
        let mut draft = Draft::new(seq, &onnx::calibrated(&SHAPE, seq as f32), 0.0).with("thresholds", json!({}));
        draft.files[1].1 = (golden.to_string() + "\n").into_bytes();
        let io = |name: &str, shape: &[u64], role: &str| json!({"name": name, "type": "float32", "shape": shape, "role": role});
        draft
            .with("inputs", json!([io("x", &SHAPE, "window"), io("center", &[1], "center"), io("scale", &[1], "scale")]))
            .with("outputs", json!([io("score", &[1], "score"), io("features", &[1], "features")]))
            .with(
                "calibration",
                json!({"windows": 40, "features": "features", "center": "center", "scale": "scale", "factor": 2.0, "scale_floor": [0.5]}),
            )
    };
    let mut world = World::new("");
    fs::copy(world.maker.bundle(&draft(1)), world.site.dir.path().join("factory.kmb")).expect("copy");
    let daemon = world.run();
    world.rows(100, 0);
    world.sub.wait_event("model.calibrated", "40 windows");
    world.install("two", &world.maker.bundle(&draft(2)));
    let ended = world.rows_until_end("two", 0);
    assert_eq!(ended["state"], "success", "{ended}");
    world.settled(1);
    // From the first score on each window has one, by either model.
    let predictions = world.sub.records("p/x");
    let blind = predictions.iter().filter(|(p, _)| p["score"].is_null()).count();
    assert_eq!(blind, 40, "only the first model's own learning");
    assert_eq!((&world.slot_now()["slot"], &world.slot_now()["model"]), (&json!("a"), &json!("mean@1.2.0")));
    // After the rollback no model learns again: each keeps its calibration.
    world.operator.order(&world.sub, "model.rollback", "back", &json!({}));
    assert_eq!(end(&world.sub, "model.rollback", "back")["state"], "success");
    world.rows(20, 0);
    world.settled(1);
    let predictions = world.sub.records("p/x");
    assert_eq!(predictions.iter().filter(|(p, _)| p["score"].is_null()).count(), 40);
    assert_eq!(world.slot_now()["model"], "mean@1.1.0");
    daemon.stop_well();
}

#[test]
fn a_model_runs_beside_the_one_before_and_what_it_sees_otherwise_is_counted() {
    let mut world = World::new("trial_s = 0\ntrial_windows = 5\nshadow_s = 2\n");
    let daemon = world.run();
    // 50 more, so that every window is above the threshold of 10, which none was before.
    world.install("beside", &world.maker.bundle(&Draft::new(2, &onnx::mean_plus_50(&SHAPE), 54.5)));
    let ended = world.rows_until_end("beside", 0);
    assert_eq!(ended["state"], "success", "{ended}");
    let event = world.sub.wait_event("model.swapped", "beside the previous model it differed on");
    let text = event["text"].as_str().expect("text").to_owned();
    let counts: Vec<u64> =
        text.rsplit("differed on ").next().expect("counts").split(' ').filter_map(|w| w.parse().ok()).collect();
    assert!(counts.len() == 2 && counts[0] == counts[1] && counts[0] > 50, "{text}");
    // The last message on `up/q/shadow` says the same.
    let (agreement, _) = world.sub.wait_records("q/shadow/x", 1).pop().expect("a record");
    let verdicts = json!({"both_normal": 0, "both_anomaly": 0, "only_serving": 0, "only_candidate": counts[1]});
    assert_eq!((&agreement["verdicts"], &agreement["over"]), (&verdicts, &json!(true)), "{agreement}");
    assert_eq!((&agreement["candidate"], &agreement["serving"]), (&json!("mean@1.2.0"), &json!("mean@1.1.0")));
    assert!(agreement["correlation"].as_f64().is_some_and(|r| r > 0.999), "50 more, always: {agreement}");
    world.settled(1);
    daemon.stop_well();
}

#[test]
fn an_alarm_and_the_first_bad_sign_in_one_breath_cost_no_window() {
    let mut world = World::new("trial_s = 1\ntrial_windows = 2000\n");
    world.site = world.site.clone().with("[alarm.high]\npipeline = \"x\"\n");
    let mut daemon = world.run();
    world.rows(30, 0);
    world.install("bad", &world.maker.bundle(&Draft::new(2, &onnx::nan_above_100(&SHAPE), 4.5)));
    world.sub.wait_event("model.swapped", "mean@1.2.0");
    // One read of the port: windows below the level, an alarm, and then windows that the new model cannot answer.
    let first = world.rows;
    world.tty.rows(first..first + 40, |i| {
        format!(
            "{i},{0},{0}",
            if i < first + 10 {
                1
            } else if i < first + 20 {
                50
            } else {
                200
            }
        )
    });
    world.rows += 40;
    let ended = world.rows_until_end("bad", 0);
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    world.rows(40, 0);
    world.tty.rows(world.rows..world.rows + 20, |i| format!("{i},90,90"));
    world.rows += 20;
    world.settled(1);
    assert!(daemon.is_alive(), "{}", daemon.log());
    // What is said of an alarm stands in its own record.
    assert!(world.sub.records("p/x").iter().all(|(p, _)| p.get("explain").is_none()));
    daemon.stop_well();
}
