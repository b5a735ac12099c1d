//! What labels do: a learnt threshold moves within its bounds, and a candidate is compared by them.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use rig::{
    Mosquitto, Operator, Site, Sub, Tty, eventually,
    maker::{Draft, SHAPE},
    onnx,
    operator::end,
    world::World,
};
use serde_json::{Value, json};

const SAMPLES: &str = "[samples]\nmax_mib = 8\nnormal_per_day = 0\naround_windows = 1\n";

/// A row near 1 that no other row is like.
fn low(i: u64) -> String {
    format!("{i},{},1", 1.0 + (i % 4096) as f32 / 4096.0)
}

/// The digest of the window that is kept because it lies before this episode.
fn window_before(world: &World, episode: &Value) -> Value {
    let all = fs::read_dir(world.site.state().join("samples")).expect("samples").flatten();
    let heads = all.filter_map(|entry| {
        let bytes = fs::read(entry.path()).ok().filter(|_| entry.file_name().to_string_lossy().starts_with("w-"))?;
        let size = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
        serde_json::from_slice::<Value>(bytes.get(16..16 + size)?).ok()
    });
    let mut before = heads.filter(|head| head["at"] == "before" && head["alarms"][0]["id"] == *episode);
    before.next().expect("a window before the alarm")["win"].clone()
}

#[test]
fn labels_that_come_while_a_candidate_runs_beside_count_into_its_agreement() {
    let mut world = World::new("trial_s = 0\ntrial_windows = 5\nshadow_s = 4\n");
    world.site = world.site.clone().with(SAMPLES).with("[alarm.high]\npipeline = \"x\"\nclear_factor = 0.5\n");
    let daemon = world.run();
    // 50 more: every window is above its threshold of 10.
    world.install("beside", &world.maker.bundle(&Draft::new(2, &onnx::mean_plus_50(&SHAPE), 54.5)));
    let (until, mut sent) = (Instant::now() + Duration::from_secs(30), 0);
    let over = |world: &World| world.sub.records("q/shadow/x").into_iter().rfind(|(r, _)| r["over"] == true);
    let agreement = loop {
        if let Some((agreement, _)) = over(&world) {
            break agreement;
        }
        assert!(Instant::now() < until, "no candidate took over");
        // Eight low rows, an alarm, and low rows again.
        let first = world.rows;
        let n = world.sub.records("a/high").len();
        world.tty.rows(first..first + 12, low);
        world.tty.rows(first + 12..first + 16, |i| format!("{i},100,{}", i % 1000));
        world.tty.rows(first + 16..first + 24, low);
        world.rows += 24;
        // When the candidate takes over, the alarm is not cleared any more.
        let cleared = |_: &[_]| (world.sub.records("a/high").len() >= n + 2 || over(&world).is_some()).then_some(());
        world.sub.wait("the alarm is raised and cleared", cleared);
        let Some((raised, _)) = world.sub.records("a/high").into_iter().nth(n) else { continue };
        let raised = raised["id"].clone();
        let mut label = |args: Value| {
            let id = format!("f-{sent}");
            sent += 1;
            world.operator.order(&world.sub, "feedback", &id, &args);
            let ended = end(&world.sub, "feedback", &id);
            assert!(ended["state"] == "success" || over(&world).is_some(), "{ended} of {args}");
            ended
        };
        if label(json!({"alarm": "high", "id": raised, "label": false}))["state"] == "success" {
            label(json!({"window": window_before(&world, &raised), "label": true}));
        }
    };
    let (labels, number) = (&agreement["labels"], |value: &Value| value.as_u64().expect("a number"));
    let (wrong, right) = (&labels["false"], &labels["true"]);
    assert!(number(&wrong["both_anomaly"]) > 0, "false alarms of both: {agreement}");
    assert!(number(&right["only_candidate"]) > 0, "windows that only the candidate finds: {agreement}");
    let counted = number(&wrong["both_anomaly"]) + number(&right["only_candidate"]);
    assert!(counted + number(&labels["uncounted"]) <= sent, "{agreement}, {sent} labels sent");
    assert_eq!((&wrong["only_serving"], &right["both_anomaly"]), (&json!(0), &json!(0)), "{agreement}");
    let event = world.sub.wait_event("model.swapped", "labels the previous model was right on 0, and it on");
    assert!(event["text"].as_str().is_some_and(|text| text.contains(&format!("of {counted} labels"))), "{event}");
    daemon.stop_well();
}

/// What a day of normal running would have taught, in the place of what so far was learnt.
fn as_if_a_day_had_passed(site: &Site) -> PathBuf {
    let folder = site.state().join("calibration");
    let all = fs::read_dir(&folder).expect("calibrations").flatten().map(|entry| entry.path());
    let tail = all.into_iter().find(|path| path.extension().is_some_and(|x| x == "tail")).expect("a tail");
    let mut learnt: Value = serde_json::from_slice(&fs::read(&tail).expect("read")).expect("JSON");
    assert_eq!((&learnt["limit"], &learnt["per_week"]), (&Value::Null, &json!(1.0)), "{learnt}");
    learnt["limit"] = json!({"threshold": 10.0, "low": 8.0, "high": 20.0, "peaks": 400, "shape": 0.1, "labels": 0});
    learnt["largest"] = json!([]);
    fs::write(&tail, learnt.to_string()).expect("write");
    tail
}

#[test]
fn labels_raise_a_learnt_threshold_within_its_bounds_and_it_stays_over_a_restart() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let site = Site::new(broker.port).with_sensor(&tty).with(SAMPLES).with(&operator.table());
    fs::write(site.dir.path().join("mean.onnx"), onnx::mean(&SHAPE)).expect("write the model");
    let site = site.with(
        "[pipeline.x]\nmodel = \"mean.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\n\
         threshold = { false_alarms_per_week = 1 }\n[alarm.high]\npipeline = \"x\"\nclear_factor = 0.5\n",
    );
    let daemon = site.run();
    tty.rows(0..520, |i| format!("{i},1,{}", i % 7));
    let first = sub.wait_records("p/x", 516).pop().expect("a prediction").0;
    assert_eq!(first["threshold"], Value::Null, "nothing is learnt after {first}");
    daemon.stop_well();
    as_if_a_day_had_passed(&site);

    let daemon = site.run();
    eventually("a model serves", || daemon.own_log().contains("serving mean").then_some(()));
    let mut row = 520;
    // Rows of this value and low ones; the alarm is labelled `false`, and low rows follow: the threshold moves with the next windows.
    let mut false_alarm = |tty: &mut Tty, id: &str, value: u64| {
        let alarms = sub.records("a/high").len();
        tty.rows(row..row + 8, |i| format!("{i},{0},{0}", if i < row + 4 { value } else { 0 }));
        sub.wait_records("a/high", alarms + 2);
        operator.order(&sub, "feedback", id, &json!({"alarm": "high", "label": false}));
        assert_eq!(end(&sub, "feedback", id)["state"], "success");
        for i in row + 8..row + 16 {
            tty.rows(i..i + 1, |i| format!("{i},0,0"));
            std::thread::sleep(Duration::from_millis(50));
        }
        row += 16;
    };
    false_alarm(&mut tty, "f-1", 12);
    let threshold = || sub.records("p/x").last().expect("a prediction").0["threshold"].as_f64();
    sub.wait_event("model.calibrated", "a label `false` for score 12: threshold 12.12");
    eventually("it counts", || (threshold().is_some_and(|t| (t - 12.12).abs() < 1e-5)).then_some(()));
    false_alarm(&mut tty, "f-2", 1000);
    sub.wait_event("model.calibrated", "a label `false` for score 250: threshold 20");
    eventually("its bound", || (threshold() == Some(20.0)).then_some(()));
    let calibrated = sub.records("e/model.calibrated").len();
    false_alarm(&mut tty, "f-3", 1000);
    assert_eq!(
        (threshold(), sub.records("e/model.calibrated").len()),
        (Some(20.0), calibrated),
        "no label goes beyond"
    );
    let lineage = |sub: &Sub| {
        let messages = sub.messages();
        messages.iter().rfind(|m| m.stream == "p/x").expect("a prediction").payload["lineage"]["cal"].clone()
    };
    let before = lineage(&sub);
    daemon.stop_well();

    let daemon = site.run();
    let known = sub.records("p/x").len();
    let mut row = 1000;
    eventually("a window", || {
        tty.rows(row..row + 4, |i| format!("{i},0,0"));
        row += 4;
        std::thread::sleep(Duration::from_millis(50));
        (sub.records("p/x").len() > known).then_some(())
    });
    assert_eq!((threshold(), lineage(&sub)), (Some(20.0), before), "also after a restart");
    daemon.stop_well();
}
