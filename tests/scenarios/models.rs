//! Models: ordinary ones run, bad ones are refused with a reason, and the daemon lives on.

use rig::{Mosquitto, Site, Sub, Tty, daemon, onnx};

#[track_caller]
fn refused(bytes: &[u8], why: &str) {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty);
    std::fs::write(site.dir.path().join("bad.onnx"), bytes).expect("model");
    let pipeline = "[pipeline.x]\nmodel = \"bad.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\n[stream.raw]\nchannels = [\"a\"]\n";
    let mut daemon = site.with(pipeline).run();
    sub.wait_state("online");
    sub.wait_event("model.failed", why);
    tty.rows(0..20, |i| format!("{i},1,1"));
    sub.wait_records("m/raw", 20);
    assert!(daemon.is_alive());
    daemon.stop_well();
}

#[test]
fn a_model_of_the_wrong_shape_is_refused_with_both_shapes() {
    refused(&onnx::mean(&[1, 5, 2]), "has shape [1, 5, 2], and the pipeline makes windows of 4 rows × 2 channels");
}

#[test]
fn a_truncated_model_is_refused() {
    let whole = onnx::mean(&[1, 4, 2]);
    refused(&whole[..whole.len() - 3], "no whole ONNX file");
}

#[test]
fn a_model_with_external_data_is_refused() {
    refused(&onnx::external_data(&[1, 4, 2]), "external data");
}

#[test]
fn a_model_with_an_unknown_operator_is_refused_by_its_name() {
    refused(&onnx::unknown_op(&[1, 4, 2]), "Sorcery");
}

#[test]
fn a_missing_onnx_runtime_is_answered_with_the_command_that_gets_it() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with("[stream.raw]\nchannels = [\"a\"]\n");
    let mut command = daemon::command();
    command.args(["run", "--config"]).arg(site.config()).env("KENTLEDGE_ORT_LIB", "/nowhere/libonnxruntime.so");
    let daemon = site.spawn(&mut command);
    sub.wait_state("online");
    let event = sub.wait_event("model.failed", "pip install");
    assert!(event["text"].as_str().is_some_and(|t| t.contains("onnxruntime==1.31.1")), "{event}");
    tty.rows(0..20, |i| format!("{i},1,1"));
    sub.wait_records("m/raw", 20);
    daemon.stop_well();
}

#[test]
fn a_model_of_integers_with_a_static_parameter_and_a_model_with_two_outputs_run() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port).with_sensor(&tty);
    std::fs::write(site.dir.path().join("int.onnx"), onnx::integers(&[1, 4, 2])).expect("model");
    std::fs::write(site.dir.path().join("two.onnx"), onnx::two_outputs(&[1, 2, 4])).expect("model");
    let daemon = site
        .with("[pipeline.int]\nmodel = \"int.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\n[pipeline.int.param.bias]\nvalues = [100]\n")
        .with("[pipeline.two]\nmodel = \"two.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\noutputs = [\"twice\"]\nlineage = \"full\"\n")
        .run();
    sub.wait_state("online");
    tty.rows(0..5, |i| format!("{i},{i},10"));
    let int = sub.wait_records("p/int", 2);
    // Means of 0..3 and ten, and of 1..4 and ten, as whole numbers.
    assert_eq!(int.iter().map(|(p, _)| p["score"].as_f64()).collect::<Vec<_>>(), [Some(105.0), Some(106.0)]);
    let two = sub.wait_records("p/two", 2);
    // The model wants channels first: four times `a`, then four times `b`.
    assert_eq!(two[0].0["out"]["twice"], serde_json::json!([0, 2, 4, 6, 20, 20, 20, 20]));
    assert!(two[0].0["win"].as_str().is_some_and(|w| w.starts_with("sha256:")));
    daemon.stop_well();
}

#[test]
fn a_calibration_is_learnt_once_and_kept_across_restarts() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let model = rig::root().join("models/pump-anomaly");
    let site = Site::new(broker.port).with(&format!(
        "[source.s]\npath = \"{}\"\ncolumns = [\"n\", \"x\", \"y\", \"z\"]\nseq = \"n\"\n\
         [channel.accelerometer1rms]\ncolumn = \"x\"\n[channel.accelerometer2rms]\ncolumn = \"y\"\n[channel.volume_flow_raterms]\ncolumn = \"z\"\n\
         [pipeline.p]\nmodel = \"{}\"\n[alarm.odd]\npipeline = \"p\"\n",
        tty.path().display(),
        model.display()
    ));
    let row = |i: u64| format!("{i},{},{},{}", i * 7919 % 13, i * 104_729 % 17, i * 1_299_709 % 19);
    let daemon = site.run();
    sub.wait_state("online");
    tty.rows(0..420, row);
    sub.wait_event("model.calibrated", "380 windows");
    let predictions = sub.wait_records("p/p", 401);
    assert!(predictions[..380].iter().all(|(p, _)| p["score"].is_null()), "no score before it is calibrated");
    assert!(predictions[380..].iter().all(|(p, _)| p["score"].is_number()));
    let lineage = |sub: &Sub| {
        sub.messages().iter().rev().find(|m| m.stream == "p/p").expect("p").payload["lineage"]["cal"].clone()
    };
    let (learnt, threshold) = (lineage(&sub), predictions[400].0["threshold"].clone());
    assert!(learnt.as_str().is_some_and(|cal| cal.starts_with("sha256:")));
    daemon.stop_well();

    let daemon = site.run();
    sub.wait_event("boot", "version");
    tty.rows(420..440, row);
    let after = sub.wait_records("p/p", 402);
    assert_eq!((lineage(&sub), after[401].0["threshold"].clone()), (learnt, threshold));
    daemon.stop_well();
}

#[test]
fn check_reports_what_only_running_a_model_shows_with_file_and_line() {
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let site = Site::new(broker.port).with_sensor(&tty);
    std::fs::write(site.dir.path().join("wrong.onnx"), onnx::mean(&[1, 5, 2])).expect("model");
    std::fs::write(site.dir.path().join("two.onnx"), onnx::two_outputs(&[1, 4, 2])).expect("model");
    let check = |pipelines: &str, more: &[(&str, &str)]| {
        let site = site.clone().with(pipelines);
        let mut command = daemon::command();
        command.args(["check", "--config"]).arg(site.config()).envs(more.iter().copied());
        let done = rig::Done::from(command.output().expect("kentledge"));
        (done, std::fs::read_to_string(site.config()).expect("config"))
    };
    let line = |config: &str, key: &str| 1 + config.lines().position(|line| line.starts_with(key)).expect("a line");
    let pipeline = |model: &str, more: &str| {
        format!("[pipeline.x]\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\nmodel = \"{model}\"\n{more}")
    };
    let good = pipeline("two.onnx", "outputs = [\"twice\"]\n");
    let (done, _) = check(&good, &[]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    for (pipelines, env, key, why) in [
        (
            pipeline("wrong.onnx", ""),
            None,
            "model",
            "has shape [1, 5, 2], and the pipeline makes windows of 4 rows × 2 channels",
        ),
        (
            pipeline("two.onnx", "outputs = [\"thrice\"]\n"),
            None,
            "outputs",
            "it has no output `thrice`; it has `score`, `twice`",
        ),
        (pipeline("two.onnx", "score = \"z\"\n"), None, "score", "it has no output `z`"),
        (good.clone(), Some(("KENTLEDGE_ORT_LIB", "/nowhere/libonnxruntime.so")), "model", "pip install"),
    ] {
        let (done, config) = check(&pipelines, env.as_slice());
        assert_eq!(done.code, Some(78), "{key}: {}", done.out);
        let place = format!(":{}: pipeline.x.{key}: ", line(&config, &format!("{key} =")));
        assert!(done.err.contains(&place) && done.err.contains(why), "{place}{why}\n{}", done.err);
    }
}
