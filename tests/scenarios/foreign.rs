//! Models of others, as their tools export them (`tests/onnx/foreign_models.py`, `torch_models.py`, `tf_models.py`): several
//! inputs, other number formats, a batch that is fixed, a state, names that the exporter makes.

use std::fs;

use nix::sys::signal::Signal;
use rig::{
    Mosquitto, Site, Sub, Tty, daemon, eventually,
    maker::{Draft, SHAPE},
    onnx, root,
    world::World,
};
use serde_json::{Value, json};

fn model(name: &str) -> String {
    root().join("tests/onnx/foreign").join(name).display().to_string()
}

/// The scores of a pipeline in what `replay` printed.
fn scores(out: &str, pipeline: &str) -> Vec<f64> {
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON lines"));
    let of = lines.filter(|line| line["stream"] == format!("p/{pipeline}"));
    of.map(|line| line["score"].as_f64().unwrap_or(f64::NAN)).collect()
}

/// A site whose source is a file of these rows; returns it with the file.
fn with_rows(rows: &[Value]) -> (Site, String) {
    let site = Site::offline()
        .with("[source.s]\npath = \"/dev/null\"\ncolumns = [\"temp\", \"flow\"]\n[channel.temp]\n[channel.flow]\n");
    let mut text = "temp,flow\n".to_owned();
    rows.iter().for_each(|row| text.push_str(&format!("{},{}\n", row[0], row[1])));
    let file = site.dir.path().join("rows.csv");
    fs::write(&file, text).expect("rows");
    (site, file.display().to_string())
}

fn near(got: &[f64], expected: &[f64]) -> bool {
    got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-3 * b.abs().max(1.0))
}

/// Serves every model of a folder by the keys beside it, and compares the scores with those of the tool that made it. Returns
/// how many there were, and what `check` says of them.
fn answers_of(folder: &str) -> (usize, String) {
    let folder = root().join("tests/onnx").join(folder);
    let text = fs::read_to_string(folder.join("expected.json")).expect("expected.json");
    let expected: Value = serde_json::from_str(&text).expect("JSON");
    let models = expected["models"].as_object().expect("models");
    let (mut site, rows) = with_rows(expected["rows"].as_array().expect("rows"));
    let name = |file: &str| file.trim_end_matches(".onnx").to_owned();
    for (file, of) in models {
        let (keys, path) = (of["keys"].as_str().expect("keys"), folder.join(file));
        let head =
            format!("[pipeline.{}]\nmodel = \"{}\"\nchannels = [\"temp\", \"flow\"]\n", name(file), path.display());
        site = site.with(&format!("{head}{keys}"));
    }
    let config = site.config().display().to_string();
    let checked = daemon::run(&["check", "--config", &config]);
    assert_eq!(checked.code, Some(0), "{}", checked.err);
    let done = daemon::run(&["replay", "--csv", &rows, "--every", "1", "--config", &config]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    for (file, of) in models {
        let expected: Vec<f64> = of["scores"].as_array().expect("scores").iter().filter_map(Value::as_f64).collect();
        let got = scores(&done.out, &name(file));
        assert!(near(&got, &expected), "{file}: {got:?}, expected {expected:?}");
    }
    (models.len(), checked.out)
}

#[test]
fn models_of_pytorch_answer_what_pytorch_answers_from_both_of_its_exporters() {
    let (models, said) = answers_of("torch");
    assert_eq!(models, 10, "five models, twice");
    for part in [
        "pipeline autoencoder_ts: score: rms distance of output 10 to the window",
        "pipeline lstm: score: output score, high is bad; state: cn into c0, hn into h0 of the next window",
        "pipeline cnn: score: output softmax[2], high is bad; classes: ok, wear, leak of output softmax",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
}

#[test]
fn models_of_keras_answer_what_tensorflow_answers_by_saved_model_export_and_lite() {
    let (models, said) = answers_of("tensorflow");
    assert_eq!(models, 8);
    for part in [
        "pipeline autoencoder_lite: score: rms distance of output StatefulPartitionedCall_1:0 to the window",
        "pipeline lstm: score: output output_0, high is bad; state: output_1 into h0, output_2 into c0 of the next window",
        "pipeline lstm_export: score: output Identity:0, high is bad; state: Identity_1:0 into h0, Identity_2:0 into c0",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
}

#[test]
fn models_of_other_tools_answer_what_their_own_tools_answer() {
    let (models, checked) = answers_of("foreign");
    assert!(models >= 12, "{models}");
    for said in [
        "pipeline columns: score: output variable, high is bad; inputs: Flow takes flow; temp takes temp",
        "state: hn into h0 of the next window",
        "batch: fixed at 8 by the export: each window is given 8 times, and the first answer counts",
        "input x is int64: values are rounded",
    ] {
        assert!(checked.contains(said), "{said}\n{checked}");
    }
    // What an input's type cannot hold is no answer.
    let (site, rows) = with_rows(&[1.0, 2.0, 3.0, 70_000.0].map(|x| json!([x, 1.0])));
    let keys = format!(
        "[pipeline.x]\nmodel = \"{}\"\nchannels = [\"temp\", \"flow\"]\nwindow_steps = 4\n",
        model("half.onnx")
    );
    let site = site.with(&keys);
    let config = site.config().display().to_string();
    let done = daemon::run(&["replay", "--csv", &rows, "--every", "1", "--config", &config]);
    assert!(done.out.contains("\"lost\":1,\"reason\":\"run_failed\""), "{}", done.out);
    assert!(done.err.contains("input `x` is float16, which cannot hold the value 70000"), "{}", done.err);
}

/// What `carried.onnx` answers: half of the state and the mean of the window. `begins`: windows with a new state.
fn carried(means: &[f64], begins: &[usize]) -> Vec<f64> {
    let mut state = 0.0;
    let next = |(i, mean): (usize, &f64)| {
        state = (if begins.contains(&i) { 0.0 } else { state } + mean) / 2.0;
        state
    };
    means.iter().enumerate().map(next).collect()
}

#[test]
fn state_of_each_pipeline_is_carried_and_begins_again_at_a_gap_and_after_a_lost_worker() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let pipeline = |name: &str, channels: &str| {
        let model = model("carried.onnx");
        let state = "state = { h_out = \"h_in\" }";
        format!("[pipeline.{name}]\nmodel = \"{model}\"\nchannels = {channels}\nwindow_steps = 4\n{state}\n")
    };
    let site = Site::new(broker.port).with_sensor(&tty).with("[channel.c]\ncolumn = \"a\"\nscale = 10\n");
    let site = site.with(&pipeline("x", "[\"a\", \"b\"]")).with(&pipeline("y", "[\"b\", \"c\"]"));
    let daemon = site.run();
    sub.wait_event("model.serving", "state: h_out into h_in of the next window");
    assert_eq!(daemon.workers().len(), 1, "one worker for both");
    // 3 windows, a gap of 4 rows, 3 windows, a worker that is lost between two windows, 2 windows.
    let row = |i: u64| format!("{i},{i},3");
    let means = |of: fn(f64) -> f64, firsts: &[u64]| -> Vec<f64> {
        firsts.iter().map(|first| (0..4).map(|i| of((first + i) as f64)).sum::<f64>() / 4.0).collect()
    };
    let firsts = [0, 4, 8, 16, 20, 24, 28, 32];
    tty.rows(0..12, row);
    tty.rows(16..28, row);
    sub.wait_records("p/x", 6);
    sub.wait_records("p/y", 6);
    let old = daemon.signal_worker(Signal::SIGKILL);
    // Only a worker that is rung is missed: the next window is lost with it, or served by the next worker.
    tty.rows(28..32, row);
    eventually("another worker", || daemon.workers().into_iter().find(|pid| *pid != old));
    tty.rows(32..36, row);
    for (pipeline, of) in [("x", (|i| (i + 3.0) / 2.0) as fn(f64) -> f64), ("y", |i| (3.0 + 10.0 * i) / 2.0)] {
        let stream = format!("p/{pipeline}");
        let got = sub.wait("the last window", |_| {
            let all = sub.records(&stream);
            all.iter().any(|(p, _)| p["in_seq"][0] == 32).then_some(all)
        });
        let seen: Vec<u64> = got.iter().filter_map(|(p, _)| p["in_seq"][0].as_u64()).collect();
        let scores: Vec<f64> = got.iter().filter_map(|(p, _)| p["score"].as_f64()).collect();
        let at = |first: u64| seen.iter().position(|s| *s == first);
        let began = at(28).or_else(|| at(32)).expect("the first window of the second worker");
        assert!(firsts[..6].iter().all(|first| seen.contains(first)), "{seen:?}");
        assert!(near(&scores, &carried(&means(of, &seen), &[0, 3, began])), "{pipeline}: {seen:?} {scores:?}");
    }
    daemon.stop_well();
}

#[test]
fn calibration_of_a_channel_that_was_changed_is_discarded_with_the_reason() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty);
    fs::write(site.dir.path().join("mean.onnx"), onnx::mean(&[1, 4, 2])).expect("model");
    let pipeline = "[pipeline.x]\nmodel = \"mean.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\n\
                    calibration = { windows = 20, factor = 2.0 }\n[alarm.odd]\npipeline = \"x\"\n";
    let site = site.with(pipeline);
    let mut next = 0;
    let mut run = |site: &Site, learns: bool| {
        let (daemon, before) = (site.run(), sub.records("p/x").len());
        eventually("it serves", || daemon.own_log().contains("serving mean@0").then_some(()));
        tty.rows(next..next + 30, |i| format!("{i},{},{}", i % 3, i % 2));
        next += 30;
        let all = sub.wait_records("p/x", before + 27);
        assert_eq!(all[before].0["score"].is_null(), learns, "{}", daemon.own_log());
        assert_eq!(sub.count("a/odd"), 0);
        let log = daemon.own_log();
        daemon.stop_well();
        log
    };
    run(&site, true);
    assert!(!run(&site, false).contains("calibrat"));
    let changed = site.without("[channel.a]\nmax = 1e6\n").with("[channel.a]\nscale = 0.06\nunit = \"m3/h\"\n");
    let log = run(&changed, true);
    let why = "channel 1 of the pipeline was `s.a × 1 + 0 [csv column 2]`, and is `s.a × 0.06 + 0 m3/h [csv column 2]`";
    assert!(log.contains(&format!("the saved calibration is discarded: {why}; calibrating again")), "{log}");
    sub.wait_event("model.serving", &format!("pipeline x calibrates again: {why}"));
    run(&changed, false);
    // The same digits mean other numbers.
    let read = changed.without("unit = \"m3/h\"\n").with("unit = \"m3/h\"\nbase = \"hex\"\n");
    let log = run(&read, true);
    let why = "was `s.a × 0.06 + 0 m3/h [csv column 2]`, and is `s.a × 0.06 + 0 m3/h [csv column 2, hex]`";
    assert!(log.contains(why), "{log}");
}

/// The predictions of pipeline `x` so far, each with the model that made it.
fn by_model(sub: &Sub) -> Vec<(Value, String)> {
    let messages = sub.messages();
    let of_x = messages.iter().filter(|m| m.stream == "p/x");
    let all = of_x.flat_map(|m| {
        let by = m.payload["lineage"]["model"].as_str().unwrap_or("").to_owned();
        m.payload["data"].as_array().cloned().unwrap_or_default().into_iter().map(move |record| (record, by.clone()))
    });
    let mut known = std::collections::HashSet::new();
    all.filter(|(record, _)| known.insert(record["seq"].as_u64())).collect()
}

/// How often the state of the models whose names begin so began at zeros; each score must follow from its predecessor.
fn begun(all: &[(Value, String)], models: &str, value: impl Fn(u64) -> f64) -> usize {
    let (mut state, mut before, mut begun) = (0.0, String::new(), 0);
    for (p, by) in all {
        let first = p["in_seq"][0].as_u64().expect("seq");
        let mean = (first..first + 4).map(&value).sum::<f64>() / 4.0;
        if by.starts_with(models) {
            let begins = before != *by;
            begun += usize::from(begins);
            state = (if begins { 0.0 } else { state } + mean) / 2.0;
            assert!(near(&[p["score"].as_f64().expect("score")], &[state]), "{p}: {state}");
        }
        before.clone_from(by);
    }
    begun
}

#[test]
fn candidate_with_a_state_begins_at_zeros_beside_the_serving_model_and_goes_on_with_its_own_when_it_serves() {
    let mut world = World::new("trial_s = 0\ntrial_windows = 3\nshadow_s = 2\n");
    let bundle = |world: &World, version: &str, seq: u64| {
        let dir = world.site.dir.path().join(format!("carried-{seq}"));
        fs::create_dir(&dir).expect("folder");
        fs::copy(model("carried.onnx"), dir.join("model.onnx")).expect("model");
        fs::write(dir.join("card.md"), "# carried\n").expect("card");
        let manifest = json!({
            "model": "mean", "version": version, "seq": seq, "state": {"h_out": "h_in"},
            "window": {"channels": ["a", "b"], "length": 4}
        });
        fs::write(dir.join("manifest.json"), manifest.to_string()).expect("manifest");
        let done = daemon::run(&["model", "prepare", &dir.display().to_string()]);
        assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
        fs::write(dir.join("manifest.json.minisig"), world.maker.sign(&dir.join("manifest.json"))).expect("sign");
        world.maker.pack(&dir)
    };
    fs::copy(bundle(&world, "1.1.0", 1), world.site.dir.path().join("factory.kmb")).expect("copy");
    let two = bundle(&world, "1.2.0", 2);
    let daemon = world.run();
    // The serving model's state is near 200 when the other one begins at 0.
    world.rows(60, 200);
    world.install("beside", &two);
    let ended = eventually("it serves after its trial", || {
        world.rows(4, 200);
        std::thread::sleep(std::time::Duration::from_millis(100));
        let records = world.sub.records("res/model.install/beside");
        let last = records.last()?.0.clone();
        (!["accepted", "running"].contains(&last["state"].as_str().unwrap_or(""))).then_some(last)
    });
    assert_eq!(ended["state"], "success", "{ended}");
    // Its trial ended after three windows of its own.
    world.rows(12, 200);
    let (agreement, _) = world.sub.wait_records("q/shadow/x", 1).pop().expect("a record");
    let score = |of: &str, at: &str| agreement[of][at].as_f64().expect("a score");
    let lower = score("serving_score", "p10") - score("candidate_score", "p10");
    assert!(lower > 1.0, "it began at zeros, and the serving model did not: {agreement}");
    let near_in_the_end = score("serving_score", "p99") - score("candidate_score", "p99");
    assert!(near_in_the_end.abs() < 10.0, "its own state moves with each window: {agreement}");
    let last = (world.rows / 4 - 1) * 4;
    let all = world.sub.wait("the last window", |_| {
        let all = by_model(&world.sub);
        all.iter().any(|(p, _)| p["in_seq"][0] == last).then_some(all)
    });
    let value = |i: u64| 200.0 + ((i % 7) + (i % 5)) as f64 / 2.0;
    assert_eq!(begun(&all, "mean@1.1.0", value), 1, "the serving model's state is its own");
    let new: Vec<&Value> = all.iter().filter(|(_, by)| by == "mean@1.2.0").map(|(p, _)| p).collect();
    let score = |p: &Value| p["score"].as_f64().expect("a score");
    assert!(new.len() > 3 && score(new[0]) > 190.0, "it saw the windows before: {}", new[0]);
    for pair in new.windows(2) {
        let first = pair[1]["in_seq"][0].as_u64().expect("seq");
        let mean = (first..first + 4).map(value).sum::<f64>() / 4.0;
        assert!(near(&[score(pair[1])], &[(score(pair[0]) + mean) / 2.0]), "{}", pair[1]);
    }
    daemon.stop_well();
}

#[test]
fn bundle_with_a_state_is_proven_from_zeros_and_begins_again_after_a_model_on_trial() {
    let mut world = World::new("trial_s = 600\ntrial_windows = 10000\n");
    // As its maker makes it: the golden cases name no state.
    let dir = world.site.dir.path().join("carried");
    fs::create_dir(&dir).expect("folder");
    fs::copy(model("carried.onnx"), dir.join("model.onnx")).expect("model");
    fs::write(dir.join("card.md"), "# carried\n").expect("card");
    let mut manifest =
        json!({"model": "mean", "version": "1.1.0", "seq": 1, "window": {"channels": ["a", "b"], "length": 4}});
    let prepare = |manifest: &Value| {
        fs::write(dir.join("manifest.json"), manifest.to_string()).expect("manifest");
        daemon::run(&["model", "prepare", &dir.display().to_string()])
    };
    let done = prepare(&manifest);
    assert!(done.code != Some(0) && done.err.contains("state = { h_out = \"h_in\" }"), "{}", done.err);
    manifest["state"] = json!({"h_out": "h_in"});
    let done = prepare(&manifest);
    assert!(done.code == Some(0) && done.out.contains("state: h_out into h_in"), "{}{}", done.out, done.err);
    let golden = fs::read_to_string(dir.join("golden.jsonl")).expect("golden");
    for case in golden.lines().map(|line| serde_json::from_str::<Value>(line).expect("a case")) {
        let x: Vec<f64> = case["inputs"]["x"].as_array().expect("x").iter().filter_map(Value::as_f64).collect();
        let score = case["outputs"]["score"][0].as_f64().expect("a score");
        assert!(near(&[score], &[x.iter().sum::<f64>() / 16.0]), "{case}");
        assert!(case["inputs"].get("h_in").is_none(), "{case}");
    }
    fs::write(dir.join("manifest.json.minisig"), world.maker.sign(&dir.join("manifest.json"))).expect("sign");
    fs::copy(world.maker.pack(&dir), world.site.dir.path().join("factory.kmb")).expect("copy");
    let daemon = world.run();
    world.rows(20, 0);
    world.install("two", &world.maker.bundle(&Draft::new(2, &onnx::nan_above_100(&SHAPE), 4.5)));
    eventually("the model on trial serves", || {
        world.rows(1, 0);
        by_model(&world.sub).iter().any(|(_, by)| by == "mean@1.2.0").then_some(())
    });
    let high = world.rows;
    world.rows(12, 200);
    world.sub.wait_event("model.rolled_back", "mean@1.1.0 serves again");
    let last = (world.rows / 4 - 1) * 4;
    let all = world.sub.wait("the last window", |_| {
        let all = by_model(&world.sub);
        all.iter().any(|(p, _)| p["in_seq"][0] == last).then_some(all)
    });
    let of = |i: u64| if i < high { 0.0 } else { 200.0 };
    let value = |i: u64| of(i) + ((i % 7) + (i % 5)) as f64 / 2.0;
    let begun = begun(&all, "mean@1.1.0", value);
    assert_eq!(begun, 2, "at the start, and after the model on trial");
    daemon.stop_well();
}
