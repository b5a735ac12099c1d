//! What a score means: models as scikit-learn's tools export them (`tests/onnx/sklearn_models.py`), served as they are.

use std::{fs, path::PathBuf};

use rig::{Done, Mosquitto, Site, Sub, Tty, daemon, onnx, world::World};
use serde_json::{Value, json};

fn exported(name: &str) -> PathBuf {
    rig::root().join("tests/onnx/sklearn").join(name)
}

/// A pipeline `x` of windows of 4 rows with an exported model.
fn pipeline(model: &str, more: &str) -> String {
    let model = exported(model);
    format!("[pipeline.x]\nmodel = \"{}\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\n{more}\n", model.display())
}

/// A row of a machine whose channels are `a` and `b` times its load, which swings.
fn row(a: f64, b: f64, swing: f64) -> impl Fn(u64) -> String {
    move |i| {
        let load = 10.0 + swing * (i as f64 / 7.0).sin();
        let noise = |step: u64, most: u64| ((i * step % most) as f64 - most as f64 / 2.0) / (most as f64 * 5.0);
        format!("{i},{:.3},{:.3}", a * load + noise(7919, 13), b * load + noise(104_729, 17))
    }
}

fn check(site: &Site) -> (Done, String) {
    let mut command = daemon::command();
    command.args(["check", "--config"]).arg(site.config());
    (Done::from(command.output().expect("kentledge")), fs::read_to_string(site.config()).expect("config"))
}

fn line(config: &str, key: &str) -> usize {
    1 + config.lines().position(|line| line.starts_with(key)).expect("a line")
}

/// Rows of a healthy machine, of a broken one, and of a healthy one again. Returns the predictions of the three.
fn healthy_broken_healthy(model: &str, more: &str, swing: f64, broken: (f64, f64)) -> [Vec<Value>; 3] {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty).with(&pipeline(model, more));
    let (checked, _) = check(&site);
    assert_eq!(checked.code, Some(0), "{}", checked.err);
    assert!(checked.out.contains("pipeline x: score: "), "{}", checked.out);
    let daemon = site.run();
    sub.wait_state("online");
    let phases = |n: usize| -> Vec<String> {
        let all = sub.wait_records("a/odd", n);
        all.iter().map(|(alarm, _)| alarm["phase"].as_str().expect("phase").to_owned()).collect()
    };
    tty.rows(0..150, row(1.0, 2.0, swing));
    sub.wait_records("p/x", 147);
    assert_eq!(sub.count("a/odd"), 0, "the machine is healthy");
    tty.rows(150..170, row(broken.0, broken.1, swing));
    assert_eq!(phases(1), ["raised"]);
    tty.rows(170..200, row(1.0, 2.0, swing));
    assert_eq!(phases(2), ["raised", "cleared"]);
    let all: Vec<Value> = sub.wait_records("p/x", 197).into_iter().map(|(record, _)| record).collect();
    daemon.stop_well();
    [all[..147].to_vec(), all[150..167].to_vec(), all[170..].to_vec()]
}

#[test]
fn isolation_forest_without_a_named_score_is_rejected_and_its_label_raises_no_alarm() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let more = "[alarm.odd]\npipeline = \"x\"\nraise_above = 0.0";
    let site = Site::new(broker.port).with_sensor(&tty).with(&pipeline("forest.onnx", more));
    let why = "it has 2 outputs, and none is named as `score`, `reconstruction` or by `classes`: \
               `label` int64 [-1, 1], `scores` float32 [-1, 1]";
    let (done, config) = check(&site);
    assert_eq!(done.code, Some(78), "{}", done.out);
    let place = format!(":{}: pipeline.x.score: {why}", line(&config, "model ="));
    assert!(done.err.contains(&place), "{place}\n{}", done.err);
    let daemon = site.run();
    sub.wait_event("model.failed", why);
    tty.rows(0..40, row(1.0, 2.0, 0.0));
    assert_eq!((sub.count("p/x"), sub.count("a/odd")), (0, 0));
    daemon.stop_well();
}

#[test]
fn isolation_forest_learns_its_threshold_and_raises_when_the_score_falls() {
    let more = "score = \"scores\"\ndirection = \"low\"\ncalibration = { windows = 100, factor = 1.75 }\n\
                [alarm.odd]\npipeline = \"x\"";
    let [healthy, broken, again] = healthy_broken_healthy("forest.onnx", more, 0.0, (3.0, 0.5));
    assert!(healthy[..100].iter().all(|p| p["score"].is_null()), "it learns");
    let threshold = healthy[146]["threshold"].as_f64().expect("a threshold");
    let beyond = |all: &[Value]| all.iter().filter(|p| p["score"].as_f64().expect("score") < threshold).count();
    assert_eq!((beyond(&healthy[100..]), beyond(&again)), (0, 0), "{threshold}");
    assert_eq!(beyond(&broken), broken.len(), "{threshold}");
}

#[test]
fn autoencoder_is_scored_by_its_distance_to_the_window() {
    let more =
        "reconstruction = \"variable\"\ncalibration = { windows = 100, factor = 2.0 }\n[alarm.odd]\npipeline = \"x\"";
    let [healthy, broken, again] = healthy_broken_healthy("autoencoder.onnx", more, 2.0, (2.0, 2.0));
    let scores = |all: &[Value]| all.iter().filter_map(|p| p["score"].as_f64()).collect::<Vec<_>>();
    assert_eq!(scores(&healthy).len(), 47);
    assert!(scores(&healthy).iter().chain(&scores(&again)).all(|score| *score < 0.5));
    assert!(scores(&broken).iter().all(|score| *score > 2.0));
}

#[test]
fn classifier_publishes_its_classes_and_the_probability_of_one_is_a_score() {
    let more = "score = \"probabilities[1]\"\nclasses = [\"ok\", \"wear\", \"leak\"]\n\
                [alarm.odd]\npipeline = \"x\"\nraise_above = 0.8";
    let [healthy, worn, again] = healthy_broken_healthy("classes.onnx", more, 2.0, (2.0, 2.0));
    let classes = |all: &[Value]| {
        let mut all: Vec<_> = all.iter().map(|p| p["class"].as_str().expect("class").to_owned()).collect();
        all.dedup();
        all
    };
    assert_eq!(
        (classes(&healthy), classes(&worn), classes(&again)),
        (vec!["ok".into()], vec!["wear".into()], vec!["ok".into()])
    );
    for p in healthy.iter().chain(&worn) {
        let of = |class: &str| p["probabilities"][class].as_f64().expect("a probability");
        assert!(
            (of("ok") + of("wear") + of("leak") - 1.0).abs() < 1e-5 && p["score"] == p["probabilities"]["wear"],
            "{p}"
        );
    }
}

#[test]
fn alarm_on_a_class_is_raised_by_its_probability_alone_and_an_unknown_class_is_rejected() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let more = |class: &str| {
        let classes = "classes = [\"ok\", \"wear\", \"leak\"]\n[alarm.odd]\npipeline = \"x\"\nprobability = 0.8\nhysteresis = 0.3";
        format!("{classes}\nclass = \"{class}\"")
    };
    let site = |class| Site::new(broker.port).with_sensor(&tty).with(&pipeline("classes.onnx", &more(class)));
    let (done, config) = check(&site("waer"));
    let place =
        format!(":{}: alarm.odd.class: the model has no class `waer`; did you mean `wear`?", line(&config, "class ="));
    assert!(done.code == Some(78) && done.err.contains(&place), "{}", done.err);
    let daemon = site("wear").run();
    sub.wait_state("online");
    tty.rows(0..20, row(1.0, 2.0, 2.0));
    tty.rows(20..40, row(2.0, 2.0, 2.0));
    sub.wait_records("a/odd", 1);
    tty.rows(40..60, row(1.0, 2.0, 2.0));
    let all = sub.wait_records("a/odd", 2);
    let shown = |i: usize| ["phase", "class", "condition", "level"].map(|key| all[i].0[key].clone());
    assert_eq!(shown(0), [json!("raised"), json!("wear"), json!("class"), json!(0.8)]);
    assert_eq!(shown(1), [json!("cleared"), json!("wear"), json!("class"), json!(0.8)]);
    assert!(all[0].0["value"].as_f64() > Some(0.8) && all[0].0["score"].is_null(), "{}", all[0].0);
    daemon.stop_well();
}

#[test]
fn classifier_without_a_named_score_publishes_classes_and_no_score() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let more = "classes = [\"ok\", \"wear\", \"leak\"]";
    let daemon = Site::new(broker.port).with_sensor(&tty).with(&pipeline("classes.onnx", more)).run();
    sub.wait_state("online");
    tty.rows(0..10, row(1.0, 1.0, 2.0));
    let all = sub.wait_records("p/x", 7);
    assert!(all.iter().all(|(p, _)| p["score"].is_null() && p["class"] == "leak"), "{all:?}");
    daemon.stop_well();
}

#[test]
fn check_names_all_that_does_not_fit_with_line_key_and_nearest_name() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let site = Site::new(broker.port).with_sensor(&tty);
    let two = "score = \"scroes\"\noutputs = [\"lable\"]";
    for (model, more, expected) in [
        (
            "classes_zipmap.onnx",
            "score = \"output_probability\"",
            vec![("score", "options={id(model): {\"zipmap\": False}}")],
        ),
        ("forest.onnx", two, vec![("score", "did you mean `scores`?"), ("outputs", "did you mean `label`?")]),
        ("classes.onnx", "score = \"probabilities\"", vec![("score", "`probabilities[0]` to `probabilities[2]`")]),
        ("classes.onnx", "score = \"probabilities[3]\"", vec![("score", "has no value 3")]),
        ("classes.onnx", "classes = [\"ok\", \"wear\"]", vec![("classes", "no output has 2 floats")]),
        ("forest.onnx", "reconstruction = \"scores\"", vec![("reconstruction", "the window it is to repeat has 8")]),
        (
            "autoencoder.onnx",
            "reconstruction = \"variable\"\nscore = \"variable\"\nclasses = [\"ok\", \"ok\"]",
            vec![("reconstruction", "does not go with `score`"), ("classes", "`ok` occurs twice")],
        ),
        ("forest.onnx", "score = \"scores\"\ndirection = \"down\"", vec![("direction", "`high`, `low`")]),
        (
            "../foreign/carried.onnx",
            "",
            vec![("state", "carry it from window to window with `state = { h_out = \"h_in\" }`")],
        ),
        (
            "../foreign/carried.onnx",
            "param.h_in.values = [0]",
            vec![("param", "write `state = { h_out = \"h_in\" }` instead")],
        ),
        ("../foreign/gru.onnx", "state = { hm = \"h0\" }", vec![("state", "did you mean `hn`?")]),
    ] {
        let (done, config) = check(&site.clone().with(&pipeline(model, more)));
        assert_eq!(done.code, Some(78), "{more}: {}", done.out);
        for (key, why) in expected {
            // A key that is not written is reported at the model.
            let written = |start: &&String| config.lines().any(|l| l.starts_with(start.as_str()));
            let starts = [format!("{key} ="), format!("{key}."), "model =".to_owned()];
            let place = format!(":{}: pipeline.x.{key}: ", line(&config, starts.iter().find(written).expect("a line")));
            assert!(done.err.lines().any(|l| l.contains(&place) && l.contains(why)), "{place}{why}\n{}", done.err);
        }
    }
}

#[test]
fn prepare_names_what_a_manifest_does_not_say_of_the_score_and_completes_it_once_it_does() {
    let world = World::new("");
    let dir = world.site.dir.path().join("forest");
    fs::create_dir(&dir).expect("folder");
    fs::copy(exported("forest.onnx"), dir.join("model.onnx")).expect("model");
    let prepare = |manifest: &Value| {
        fs::write(dir.join("manifest.json"), format!("{manifest:#}")).expect("manifest");
        daemon::run(&["model", "prepare", &dir.display().to_string()])
    };
    let mut manifest = json!({"model": "mean", "version": "2.0.0", "seq": 9, "thresholds": {"raise": -0.1},
                              "window": {"channels": ["a", "b"], "length": 4}});
    let done = prepare(&manifest);
    assert!(done.code != Some(0) && done.err.contains("manifest.json: score: it has 2 outputs"), "{}", done.err);
    manifest["score"] = json!("scroes");
    let done = prepare(&manifest);
    let at = fs::read_to_string(dir.join("manifest.json")).expect("manifest");
    let place =
        format!("manifest.json:{}: score: ", 1 + at.lines().position(|l| l.contains("\"score\"")).expect("a line"));
    assert!(done.err.contains(&place) && done.err.contains("did you mean `scores`?"), "{place}\n{}", done.err);
    (manifest["score"], manifest["direction"]) = (json!("scores"), json!("low"));
    let done = prepare(&manifest);
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.out.contains("manifest.json: score: output scores, low is bad"), "{}", done.out);
    // As a bundle the device serves it, and the alarm is right.
    fs::write(dir.join("manifest.json.minisig"), world.maker.sign(&dir.join("manifest.json"))).expect("sign");
    fs::copy(world.maker.pack(&dir), world.site.dir.path().join("factory.kmb")).expect("copy");
    let mut world = world;
    world.site = world.site.clone().with("[alarm.odd]\npipeline = \"x\"\n");
    let daemon = world.run();
    world.tty.rows(0..40, row(1.0, 2.0, 0.0));
    world.sub.wait_records("p/x", 37);
    assert_eq!(world.sub.count("a/odd"), 0);
    world.tty.rows(40..50, row(3.0, 0.5, 0.0));
    let alarm = world.sub.wait_records("a/odd", 1)[0].0.clone();
    assert_eq!((&alarm["phase"], alarm["level"].as_f64().map(|x| x as f32)), (&json!("raised"), Some(-0.1)), "{alarm}");
    daemon.stop_well();
}

#[test]
fn bundle_whose_model_is_damaged_is_reported_by_check_and_the_daemon_starts_without_it() {
    let world = World::new("");
    let factory = world.site.dir.path().join("factory.kmb");
    let mut bytes = fs::read(&factory).expect("bundle");
    let model = onnx::mean_tagged(&[1, 4, 2], 1.0);
    let at = bytes.windows(model.len()).position(|part| part == model).expect("the model in the bundle");
    bytes[at + model.len() / 2] ^= 1;
    fs::write(&factory, bytes).expect("write");
    let (done, config) = check(&world.site);
    let place = format!(":{}: pipeline.x.model: use bundle ", line(&config, "model ="));
    assert_eq!(done.code, Some(78), "{}", done.out);
    assert!(done.err.contains(&place) && done.err.contains("model.onnx: its sha256 is"), "{place}\n{}", done.err);
    let daemon = world.site.run();
    world.sub.wait_event("model.failed", "model.onnx: its sha256 is");
    daemon.stop_well();
}
