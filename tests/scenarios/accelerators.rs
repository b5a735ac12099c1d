//! A model on an accelerator whose provider builds an engine first. `tests/gpu` plays these on a machine with an NVIDIA board
//! (KENTLEDGE_ACCELERATOR names the provider, KENTLEDGE_ORT_LIB the library); elsewhere OpenVINO's plugin is in its place, on the
//! processor: it compiles a model, keeps the result in a folder, and reads it at the next start.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use rig::{
    Daemon, Done, Site, daemon, eventually, maker::Draft, measured, onnx, operator::end, root, skipped, world::World,
};
use serde_json::Value;

const PLUGIN: &str =
    "onnxruntime-ep-openvino-1.8.1/onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so";

/// What models run on here, as keys of `[models]`.
struct Accelerator {
    provider: String,
    /// Tables behind the keys.
    tables: String,
}

impl Accelerator {
    fn find() -> Option<Self> {
        if let Ok(provider) = std::env::var("KENTLEDGE_ACCELERATOR") {
            // In full float32, or its answers could not be compared with the processor's.
            let exact = if provider == "cuda" { "[models.provider.cuda.options]\nuse_tf32 = 0\n" } else { "" };
            return Some(Self { provider, tables: exact.into() });
        }
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).expect("HOME");
        let plugin = cache.join("kentledge").join(PLUGIN);
        if !plugin.is_file() {
            skipped(&format!("no {} (daemon/get-onnxruntime openvino-plugin)", plugin.display()));
            return None;
        }
        if !fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("GenuineIntel")) {
            skipped("OpenVINO's plugin offers a device on Intel's processors only");
            return None;
        }
        // A plugin's first device is OpenVINO's CPU, which computes in bfloat16 where the processor can, unless an option says float32.
        let load = r#"{"CPU": {"CACHE_DIR": "{cache}", "INFERENCE_PRECISION_HINT": "f32"}}"#;
        let tables = format!(
            "[models.provider.vendor]\nplugin = \"{}\"\n[models.provider.vendor.options]\nload_config = '{load}'\n",
            plugin.display()
        );
        Some(Self { provider: "vendor".into(), tables })
    }

    /// The same for a replay, which keeps no engine.
    fn replayed(&self) -> String {
        self.required().replace("\"CACHE_DIR\": \"{cache}\", ", "")
    }

    fn keeps_engines(&self) -> bool {
        self.provider != "cuda"
    }

    /// Keys and tables of a configuration in which nothing but it runs models.
    fn required(&self) -> String {
        let Self { provider, tables } = self;
        format!(
            "allow_unsigned = true\nproviders = [\"{provider}\"]\nprovider_policy = \"require\"\nmemory_mib = 16384\n{tables}"
        )
    }

    /// A device whose models are signed; a trial is short.
    fn world(&self) -> World {
        World::new(&format!("trial_s = 1\ntrial_windows = 20\n{}", self.required()))
    }
}

/// Its files, by path.
fn engines(site: &Site) -> BTreeMap<PathBuf, Vec<u8>> {
    let folders = fs::read_dir(site.state().join("models/engines")).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.path().join("files")).into_iter().flatten().flatten());
    files.map(|file| (file.path(), fs::read(file.path()).expect("file"))).collect()
}

/// The line of the log that says what serves.
fn serving(daemon: &Daemon, model: &str) -> String {
    eventually("it serves", || {
        let log = daemon.own_log();
        let line = log.lines().rev().find(|line| line.contains(&format!("serving {model}")))?;
        Some(line.to_owned())
    })
}

#[test]
fn engine_is_built_once_read_by_the_next_start_and_changed_by_nobody() {
    let Some(accelerator) = Accelerator::find().filter(Accelerator::keeps_engines) else { return };
    let mut world = accelerator.world();
    let daemon = world.run();
    let first = serving(&daemon, "mean@");
    assert!(first.contains("its engine was built in") && first.contains("(there is none yet)"), "{first}");
    let built = engines(&world.site);
    assert!(!built.is_empty(), "{first}");
    world.rows(20, 0);
    world.sub.wait_records("p/x", 17);
    daemon.stop_well();
    let began = Instant::now();
    let daemon = world.run();
    let second = serving(&daemon, "mean@");
    measured(&format!(
        "{}: a start with the engine that was kept: {:.2} s",
        accelerator.provider,
        began.elapsed().as_secs_f64()
    ));
    assert!(second.contains("its engine is the one that was kept"), "{second}");
    world.rows(20, 0);
    world.sub.wait_records("p/x", 34);
    assert_eq!(world.slot_now()["provider"], accelerator.provider.as_str());
    daemon.stop_well();
    assert_eq!(engines(&world.site), built);
}

#[test]
fn changed_engine_is_named_never_read_and_built_again() {
    let Some(accelerator) = Accelerator::find().filter(Accelerator::keeps_engines) else { return };
    let world = accelerator.world();
    world.run().stop_well();
    let (path, mut bytes) = engines(&world.site).pop_first().expect("an engine");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).expect("write");
    let daemon = world.run();
    let line = serving(&daemon, "mean@");
    let name = path.file_name().expect("name").to_string_lossy().into_owned();
    let why = format!("the one that is there is damaged: file `{name}` was changed");
    assert!(line.contains(&why) && line.contains("its engine was built in"), "{line}");
    assert_ne!(engines(&world.site).get(&path), Some(&bytes));
    daemon.stop_well();
}

#[test]
fn engine_of_a_new_model_is_built_beside_the_serving_one_and_leaves_with_its_model() {
    let Some(accelerator) = Accelerator::find() else { return };
    let mut world = accelerator.world();
    let daemon = world.run();
    let before = memory_mib();
    for seq in 2..5 {
        let bundle = world.maker.bundle(&Draft::mean(seq));
        let id = format!("new-{seq}");
        world.install(&id, &bundle);
        let ended = world.rows_until_end(&id, 0);
        assert_eq!(ended["state"], "success", "{ended}");
    }
    assert_eq!(end(&world.sub, "model.install", "new-4")["state"], "success");
    // Every window had an answer while three engines were built, and none of the previous workers is left.
    world.settled(1);
    eventually("one worker is left", || (daemon.workers().len() == 1).then_some(()));
    if accelerator.keeps_engines() {
        let folders = fs::read_dir(world.site.state().join("models/engines")).expect("engines").count();
        assert!((1..=3).contains(&folders), "{folders} engines, and two slots and the image's model are there");
    }
    if let (Some(before), Some(after)) = (before, memory_mib()) {
        measured(&format!(
            "{}: memory of the board before three swaps {before} MiB, after them {after} MiB",
            accelerator.provider
        ));
        assert!(after <= before + before / 10 + 64, "{after} MiB after, {before} MiB before");
    }
    daemon.stop_well();
}

/// What is in use of the board's memory.
fn memory_mib() -> Option<u64> {
    let ask = ["--query-gpu=memory.used", "--format=csv,noheader,nounits"];
    let done = Command::new("nvidia-smi").args(ask).output().ok()?;
    String::from_utf8_lossy(&done.stdout).lines().next()?.trim().parse().ok()
}

/// A pipeline of each model of this repository: name, and its keys in a configuration.
fn models(folder: &Path) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut add = |name: String, path: &Path, keys: &str| {
        let head = format!("[pipeline.{name}]\nmodel = \"{}\"\nchannels = [\"temp\", \"flow\"]\n", path.display());
        all.push((name, head + keys));
    };
    for made_by in ["foreign", "torch", "tensorflow"] {
        let of = root().join("tests/onnx").join(made_by);
        let expected = fs::read_to_string(of.join("expected.json")).expect("expected.json");
        let expected: Value = serde_json::from_str(&expected).expect("JSON");
        for (file, model) in expected["models"].as_object().expect("models") {
            let name = format!("{made_by}_{}", file.trim_end_matches(".onnx"));
            add(name, &of.join(file), model["keys"].as_str().expect("keys"));
        }
    }
    let own: [(&str, Vec<u8>); 10] = [
        ("mean", onnx::mean(&[1, 4, 2])),
        ("plus_50", onnx::mean_plus_50(&[1, 4, 2])),
        ("mean_of_8", onnx::mean(&[1, 8, 2])),
        ("mean_of_16", onnx::mean(&[1, 16, 2])),
        ("partly", onnx::partly_for_delegates()),
        ("mean_of_12", onnx::mean(&[1, 12, 2])),
        ("mean_of_3", onnx::mean(&[1, 3, 2])),
        ("mean_of_6", onnx::mean(&[1, 6, 2])),
        ("mean_of_10", onnx::mean(&[1, 10, 2])),
        ("mean_of_24", onnx::mean(&[1, 24, 2])),
    ];
    for (name, bytes) in own {
        let path = folder.join(format!("{name}.onnx"));
        fs::write(&path, bytes).expect("model");
        let steps = name.rsplit_once("_of_").map_or(4, |(_, steps)| steps.parse().expect("steps"));
        add(name.to_owned(), &path, &format!("window_steps = {steps}\nhop_steps = {steps}\n"));
    }
    all
}

/// The scores of a model.
///
/// # Errors
/// What was printed where the replay did not come to its end.
fn play(pipeline: &str, keys: &str) -> Result<Vec<f64>, String> {
    let site = Site::offline()
        .with_models(keys)
        .with("[source.s]\npath = \"/dev/null\"\ncolumns = [\"temp\", \"flow\"]\n[channel.temp]\n[channel.flow]\n")
        .with(pipeline);
    let row = |i| format!("{},{}", 20.0 + f64::from(i % 7) * 0.7, 3.0 + f64::from(i % 5) * 0.4);
    let rows: Vec<String> = (0..48).map(row).collect();
    let file = site.dir.path().join("rows.csv");
    fs::write(&file, format!("temp,flow\n{}\n", rows.join("\n"))).expect("rows");
    let (config, rows) = (site.config().display().to_string(), file.display().to_string());
    let done = daemon::run(&["replay", "--csv", &rows, "--every", "1", "--config", &config]);
    if done.code != Some(0) {
        return Err(done.err);
    }
    let lines = done.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON lines"));
    let predictions = lines.filter(|line| line["stream"].as_str().is_some_and(|stream| stream.starts_with("p/")));
    Ok(predictions.map(|line| line["score"].as_f64().unwrap_or(f64::NAN)).collect())
}

#[test]
fn forty_models_answer_on_the_accelerator_as_on_the_processor() {
    let Some(accelerator) = Accelerator::find() else { return };
    // TensorRT rounds to TF32, and takes seconds for each engine.
    let (tolerance, most) = if accelerator.provider == "tensorrt" { (1e-2, 8) } else { (1e-3, 40) };
    let dir = tempfile::tempdir().expect("folder");
    let models = models(dir.path());
    assert_eq!(models.len(), 40);
    let (mut elsewhere, mut worst) = (Vec::new(), ("", 0.0f64));
    for (name, pipeline) in &models[..most] {
        let got = match play(pipeline, &accelerator.replayed()) {
            Ok(scores) => scores,
            // Refused before its first window, with a reason: with `prefer` the processor runs all of it.
            Err(why) if why.contains("kentledge: use model ") => {
                elsewhere.push(name.as_str());
                continue;
            }
            Err(why) => panic!("{name}: {why}"),
        };
        let expected = play(pipeline, "allow_unsigned = true\nproviders = [\"cpu\"]\n").expect("on the processor");
        assert!(!expected.is_empty() && got.len() == expected.len(), "{name}: {got:?}, {expected:?}");
        for (a, b) in got.iter().zip(&expected) {
            let off = (a - b).abs() / b.abs().max(1.0);
            let same = off <= tolerance || a.is_nan() && b.is_nan();
            assert!(same, "{name}: {got:?}, on the processor {expected:?}");
            if off > worst.1 {
                worst = (name, off);
            }
        }
    }
    let (provider, there) = (&accelerator.provider, most - elsewhere.len());
    measured(&format!(
        "{provider}: {there} of {most} models have nodes on it and answer as on the processor, to {tolerance}; the largest difference is {:.1e} \
         ({}); refused there before the first window: {}",
        worst.1,
        worst.0,
        elsewhere.join(", ")
    ));
    assert!(there >= most / 2, "{elsewhere:?}");
}

/// The script for a machine with an NVIDIA board, as far as it goes without one.
fn script(args: &[&str]) -> Done {
    Done::from(Command::new(root().join("tests/gpu")).args(args).output().expect("tests/gpu"))
}

#[test]
fn script_for_a_board_ends_where_there_is_none_with_an_exit_code_of_its_own() {
    if fs::read_dir("/dev").is_ok_and(|dev| dev.flatten().any(|node| node.file_name() == "nvidia0")) {
        return skipped("this machine has a board");
    }
    let done = script(&[]);
    assert!(done.code == Some(77) && done.err.contains("no device: there is no /dev/nvidia0 here"), "{done:?}");
    for (wrong, why) in [
        (&["--providers", "rocm"][..], "unknown provider rocm: expected cuda or tensorrt"),
        (&["--wheels", "/nonexistent"], "--wheels /nonexistent: no such folder"),
        (&["--kentledge", "k"], "--kentledge and --scenarios go together"),
    ] {
        let done = script(wrong);
        assert!(done.code == Some(2) && done.err.contains(why), "{done:?}");
    }
}

#[test]
fn script_for_a_board_finds_devices_libraries_and_figures_and_reports_what_did_not_hold() {
    let tried = r#"
import importlib.machinery, importlib.util, os, sys, tempfile
loader = importlib.machinery.SourceFileLoader("gpu", sys.argv[1])
gpu = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu", loader))
loader.exec_module(gpu)
root = tempfile.mkdtemp()
def put(path, text=""):
    os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
    open(os.path.join(root, path), "w").write(text)
assert gpu.device(root) == ""
put("dev/nvidiactl")
assert gpu.device(root) == ""
put("dev/nvidia0")
assert gpu.device(root)
# Libraries of the wheels come into one folder, Python's own modules do not, and the providers get that folder as their search path.
for path in ["onnxruntime/capi/libonnxruntime.so.1.31.1", "onnxruntime/capi/libonnxruntime_providers_cuda.so",
             "onnxruntime/capi/onnxruntime_pybind11_state.cpython-312-x86_64-linux-gnu.so", "nvidia/cublas/lib/libcublas.so.13",
             "tensorrt_libs/libnvinfer.so.10", "numpy/core/_multiarray.so"]:
    put("p/" + path, "x")
put("p/bin/patchelf", '#!/bin/sh\necho "$@" >>"$(dirname "$0")/told"\n')
os.chmod(os.path.join(root, "p/bin/patchelf"), 0o755)
library = gpu.one_folder(root + "/p", root + "/lib")
assert os.path.basename(library) == "libonnxruntime.so.1.31.1", library
assert sorted(os.listdir(root + "/lib")) == ["libcublas.so.13", "libnvinfer.so.10", "libonnxruntime.so.1.31.1",
                                             "libonnxruntime_providers_cuda.so"], os.listdir(root + "/lib")
assert open(root + "/p/bin/told").read().split() == ["--set-rpath", "$ORIGIN", root + "/lib/libonnxruntime_providers_cuda.so"]
said = "noise\nMEASURED: cuda: a start with the engine that was kept: 1.25 s\nMEASURED: other\n"
assert gpu.next_start_s(gpu.measured(said)) == 1.25 and gpu.next_start_s([]) is None
row = ("cuda", 16, 227.0, 300.0, 190.0, 260.0, 612, {"CUDAExecutionProvider": 17})
text = gpu.table("A board", ["a figure", "**did not hold**: why"], [row])
assert "| cuda | 16 | 227 | 300 | 190 | 260 | 612 | CUDAExecutionProvider 17 |" in text and "did not hold" in text, text
for command, why in [(["false"], "ended with 1"), (["sleep", "9"], "did not end within 1 s")]:
    try:
        gpu.run(command, 1)
    except gpu.Wrong as wrong:
        assert why in str(wrong), wrong
    else:
        raise AssertionError(command)
# A step that does not hold is in the report, and the others are made.
gpu.play = lambda scenarios, env, seconds: ["x: a start with the engine that was kept: 9 s"]
gpu.latencies = lambda *a: (_ for _ in ()).throw(gpu.Wrong("runs no node"))
gpu.obtain = lambda *a: ("lib.so", "python")
args = gpu.arguments(["--kentledge", "k", "--scenarios", "s", "--providers", "cuda"])
report, held = gpu.check(args, "A board", root)
assert not held and "cuda: the next start took 9.0 s" in report and "cuda: runs no node" in report, report
"#;
    let run = Command::new("python3").args(["-c", tried]).arg(root().join("tests/gpu")).output().expect("python3");
    let done = Done::from(run);
    assert_eq!(done.code, Some(0), "{done:?}");
}
