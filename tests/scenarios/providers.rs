//! What runs a model: the provider that is configured, reported as the runtime reports it, never a silent fallback to the
//! processor. And the worker's sandbox, tried from inside.

use std::{fs, path::PathBuf};

use rig::{Mosquitto, Site, Sub, Tty, daemon, measured, onnx, skipped};
use serde_json::Value;

/// A library of `daemon/get-onnxruntime FLAVOUR`, or a loud word that it is not here.
fn library(path: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).expect("HOME");
    let library = cache.join("kentledge").join(path);
    if !library.is_file() {
        skipped(&format!("no {} (daemon/get-onnxruntime openvino, openvino-plugin)", library.display()));
        return None;
    }
    Some(library)
}

fn openvino() -> Option<PathBuf> {
    library("onnxruntime-openvino-1.24.1/onnxruntime/capi/libonnxruntime.so.1.24.1")
}

/// A device with a pipeline `x` on this model.
fn device(tty: &Tty, port: u16, model: &[u8], models: &str) -> Site {
    let site = Site::new(port).with_sensor(tty);
    fs::write(site.dir.path().join("m.onnx"), model).expect("model");
    site.with_more_models(models)
        .with("[pipeline.x]\nmodel = \"m.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\n")
}

fn lineage(sub: &Sub) -> Value {
    sub.messages().iter().rev().find(|m| m.stream == "p/x").expect("p/x").payload["lineage"].clone()
}

#[test]
fn a_delegate_runs_its_part_and_the_placement_says_which() {
    let Some(library) = openvino() else { return };
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let models =
        format!("runtime = \"{}\"\nproviders = [\"openvino\"]\nprovider_policy = \"require\"\n", library.display());
    let daemon = device(&tty, broker.port, &onnx::partly_for_delegates(), &models).run();
    sub.wait_state("online");
    let event = sub.wait_event("model.serving", "openvino");
    measured(&format!("placement: {}", event["text"].as_str().expect("text")));
    let text = event["text"].as_str().expect("text").to_owned();
    // The determinant is not among OpenVINO's operators: that part stays on the processor, and is named.
    assert!(text.contains("OpenVINOExecutionProvider") && text.contains("CPUExecutionProvider"), "{text}");
    tty.rows(0..20, |i| format!("{i},{},{}", i % 7, i % 5));
    sub.wait_records("p/x", 17);
    assert_eq!(lineage(&sub)["provider"], "openvino");
    // A client that connects later finds it in the birth.
    let placement = sub.wait("a birth with the placement", |messages| {
        let birth = messages.iter().rev().find(|m| m.stream == "birth")?;
        birth.payload["models"][0].get("placement").cloned()
    });
    assert!(placement["OpenVINOExecutionProvider"].as_u64() > Some(0), "{placement}");
    assert!(placement["CPUExecutionProvider"].as_u64() > Some(0), "{placement}");
    daemon.stop_well();
}

#[test]
fn a_delegate_answers_as_the_processor_does() {
    let Some(library) = openvino() else { return };
    let run = |provider: &str| {
        let (broker, mut tty) = (Mosquitto::start(), Tty::default());
        let sub = Sub::new(broker.port);
        let models = format!("runtime = \"{}\"\nproviders = [\"{provider}\"]\n", library.display());
        let daemon = device(&tty, broker.port, &onnx::partly_for_delegates(), &models).run();
        sub.wait_state("online");
        sub.wait_event("model.serving", provider);
        tty.rows(0..50, |i| format!("{i},{},{}", i % 7, i % 5));
        let scores: Vec<f64> =
            sub.wait_records("p/x", 47).iter().map(|(p, _)| p["score"].as_f64().expect("score")).collect();
        assert_eq!(lineage(&sub)["provider"], provider);
        daemon.stop_well();
        scores
    };
    let (on_cpu, on_delegate) = (run("cpu"), run("openvino"));
    assert!(
        on_cpu.iter().zip(&on_delegate).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs() + 1e-5),
        "{on_cpu:?} {on_delegate:?}"
    );
}

#[test]
fn a_required_provider_that_is_missing_is_refused_aloud_and_a_preferred_one_is_passed_over_aloud() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let model = onnx::mean(&[1, 4, 2]);
    let required = "providers = [\"cuda\", \"openvino\"]\nprovider_policy = \"require\"\n";
    let daemon = device(&tty, broker.port, &model, required).run();
    sub.wait_state("online");
    let event = sub.wait_event("model.failed", "cuda: ");
    assert!(event["text"].as_str().is_some_and(|text| text.contains("openvino: ")), "{event}");
    assert_eq!(daemon.workers().len(), 0, "nothing runs on the processor instead");
    daemon.stop_well();

    let daemon = device(&tty, broker.port, &model, "providers = [\"cuda\"]\n").run();
    sub.wait_event("model.serving", "passed over cuda");
    tty.rows(0..20, |i| format!("{i},1,1"));
    sub.wait_records("p/x", 17);
    assert_eq!(lineage(&sub)["provider"], "cpu");
    daemon.stop_well();
}

#[test]
fn a_plugin_runs_nodes_or_is_refused_and_none_from_outside_the_image_is_loaded() {
    let Some(plugin) =
        library("onnxruntime-ep-openvino-1.8.1/onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so")
    else {
        return;
    };
    let table = format!(
        "providers = [\"vendor\"]\nprovider_policy = \"require\"\n[models.provider.vendor]\nplugin = \"{}\"\n",
        plugin.display()
    );
    let (broker, tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let daemon = device(&tty, broker.port, &onnx::mean(&[1, 4, 2]), &table).run();
    sub.wait_state("online");
    // OpenVINO's plugin offers a device on Intel's processors only.
    let word = sub.wait("the plugin's end", |messages| {
        let seen = messages.iter().find(|m| m.stream == "e/model.serving" || m.stream == "e/model.failed")?;
        seen.payload["data"][0]["text"].as_str().map(str::to_owned)
    });
    measured(&format!("plugin: {word}"));
    assert!(word.contains("OpenVINOExecutionProvider") || word.contains("finds no device"), "{word}");
    daemon.stop_well();
    // In a release only the image's own folders count.
    let release = Site::offline().with_models(&table);
    let done = daemon::run(&["check", "--config", &release.config().display().to_string()]);
    assert_eq!(done.code, Some(78));
    assert!(done.err.contains("outside the image's library folders"), "{}", done.err);
}

/// What the worker could do, as `kentledge model bench` finds it out.
fn judged(library: Option<&PathBuf>, provider: &str) -> Value {
    let site = Site::offline();
    let folder = site.dir.path().join("m");
    fs::create_dir(&folder).expect("folder");
    fs::write(folder.join("model.onnx"), onnx::partly_for_delegates()).expect("model");
    let manifest =
        r#"{"model":"m","version":"1","files":[{"name":"model.onnx"}],"window":{"channels":["a","b"],"length":4}}"#;
    fs::write(folder.join("manifest.json"), manifest).expect("manifest");
    let mut command = daemon::command();
    command.args(["model", "bench", "--json", "--runs", "10", "--providers", provider]).arg(&folder);
    if let Some(library) = library {
        command.env("KENTLEDGE_ORT_LIB", library);
    }
    let done = rig::Done::from(command.output().expect("kentledge"));
    assert_eq!(done.code, Some(0), "{} {}", done.out, done.err);
    serde_json::from_str(&done.out).expect("JSON")
}

#[test]
fn a_worker_can_do_nothing_but_answer_windows() {
    let found = judged(None, "cpu");
    assert_eq!(found["sandbox"], "landlock, seccomp", "{found}");
    let tried = found["tried"].as_object().expect("tried");
    assert!(tried.len() >= 70 && tried.values().all(|came| came == "refused"), "{found}");
}

#[test]
fn a_worker_with_a_driver_can_open_nothing_but_libraries_and_devices() {
    let Some(library) = openvino() else { return };
    let found = judged(Some(&library), "openvino");
    assert_eq!(found["sandbox"], "landlock, seccomp", "{found}");
    let tried = found["tried"].as_object().expect("tried");
    // A device that is not there cannot be opened either.
    let held = |came: &Value| came == "refused" || came.as_str().is_some_and(|came| came.contains("No such file"));
    assert!(tried.len() >= 70 && tried.values().all(held), "{found}");
}
