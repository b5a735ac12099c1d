//! Any ordinary model runs in the worker: the operators of the ONNX standard and the small real models that the Python package
//! `onnx` carries as test data, each with inputs and the outputs that must come (`tests/onnx/export.py` writes them).

#![allow(clippy::expect_used)] // A test ends where something is not as it must be.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kentledge::{
    config::Provider,
    infer::{
        channel::{Loaded, Prepare},
        find_runtime,
        worker::{Launch, Worker},
    },
    model::file::ModelFile,
};
use serde_json::Value;

/// What came of a case.
enum Came {
    Equal,
    Refused(String),
    Wrong(String),
}

fn cases() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let path = cache.join("kentledge/onnx-cases.jsonl");
    if !path.is_file() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no {} (tests/onnx/get makes it)", path.display());
        return None;
    }
    Some(path)
}

fn values(tensor: &Value) -> Vec<f64> {
    let number = |x: &Value| match x.as_str() {
        Some("nan") => f64::NAN,
        Some("inf") => f64::INFINITY,
        Some("-inf") => f64::NEG_INFINITY,
        _ => x.as_f64().expect("a number"),
    };
    tensor["values"].as_array().expect("values").iter().map(number).collect()
}

fn shape(tensor: &Value) -> Vec<i64> {
    tensor["shape"].as_array().expect("shape").iter().map(|n| n.as_i64().expect("a size")).collect()
}

fn play(case: &Value) -> Came {
    let bytes = STANDARD.decode(case["model"].as_str().expect("model")).expect("base64");
    let model = match ModelFile::take(&mut bytes.as_slice()) {
        Ok(model) => model,
        Err(why) => return Came::Refused(why.to_string()),
    };
    let (inputs, outputs) = match (case["inputs"].as_object(), case["outputs"].as_object()) {
        (Some(inputs), Some(outputs)) => (inputs.clone(), outputs.clone()),
        _ => (serde_json::Map::new(), serde_json::Map::new()),
    };
    let launch = Launch {
        name: "a case".into(),
        program: env!("CARGO_BIN_EXE_kentledge").into(),
        runtime: find_runtime(None).expect("ONNX Runtime (tests/run gets it)"),
        model,
        provider: Provider::cpu(),
        memory_bytes: 1 << 30,
        engine: None,
        warm_up: false,
        judge: None,
    };
    let names: Vec<String> = outputs.keys().cloned().collect();
    let plan = |loaded: &Loaded| {
        let all = loaded.inputs.iter().map(|input| match inputs.get(&input.name) {
            Some(tensor) => Ok((input.name.clone(), shape(tensor))),
            None => Err(format!("input `{}` is {}, not a tensor of numbers", input.name, input.kind)),
        });
        let all: Vec<(String, Vec<i64>)> = all.collect::<Result<_, String>>()?;
        let order = all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        // In a pipeline these would be the window and `param`s, which are known before.
        let small = inputs.iter().map(|(name, tensor)| (name.clone(), values(tensor)));
        let small = small.filter(|(_, v)| v.len() <= 2048 && v.iter().all(|x| x.is_finite()));
        let known = small.map(|(name, v)| (name, v.into_iter().map(|x| x as f32).collect())).collect();
        Ok((Prepare { inputs: all, outputs: names.clone(), known }, order))
    };
    let (mut worker, _, order) = match Worker::start(&launch, plan, &|| {}) {
        Ok(started) => started,
        Err(why) => return Came::Refused(why.into()),
    };
    for (place, name) in order.iter().enumerate() {
        let given: Vec<f32> = values(&inputs[name]).into_iter().map(|x| x as f32).collect();
        worker.write(0, place, &given);
    }
    if let Some(why) = worker.ring(1, Some(Duration::from_secs(20)), &|| {}).died {
        return Came::Wrong(why);
    }
    if !worker.outcome(0).0 {
        return Came::Refused("the run failed".into());
    }
    for (place, name) in names.iter().enumerate() {
        let (mut got, want) = (Vec::new(), values(&outputs[name]));
        worker.read(0, place, &mut got);
        // Fourier transforms add up hundreds of float32.
        let atol = if case["name"].as_str().is_some_and(|name| ["dft", "stft"].iter().any(|op| name.contains(op))) {
            1e-3
        } else {
            1e-5
        };
        let same = |(a, b): (&f64, &f64)| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= atol + 1e-3 * b.abs();
        if got.len() != want.len() || !got.iter().zip(&want).all(same) {
            let first: Vec<_> = got.iter().zip(&want).filter(|pair| !same(*pair)).take(3).collect();
            return Came::Wrong(format!("output `{name}`: {} values of {}, e.g. {first:?}", got.len(), want.len()));
        }
    }
    Came::Equal
}

/// Their answer is not one number (they draw it), or ONNX Runtime itself answers otherwise than the standard's reference.
const OTHERWISE: [&str; 6] =
    ["bernoulli", "random", "dropout", "training", "maxunpool_export_with_output_shape", "_align_corners"];

#[test]
fn the_standards_operators_and_real_models_answer_in_the_worker_as_they_must() {
    let Some(path) = cases() else { return };
    let lines = Mutex::new(BufReader::new(std::fs::File::open(path).expect("cases")).lines());
    let all: Mutex<Vec<(String, bool, Came)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(line) = lines.lock().expect("lines").next() else { return };
                    let case: Value = serde_json::from_str(&line.expect("line")).expect("JSON");
                    let name = case["name"].as_str().expect("name").to_owned();
                    let came = play(&case);
                    all.lock().expect("all").push((name, case["other"].is_null(), came));
                }
            });
        }
    });
    let all = all.into_inner().expect("all");
    let (mut equal, mut refused, mut wrong) = (0, BTreeMap::<String, usize>::new(), Vec::new());
    for (name, comparable, came) in &all {
        match came {
            Came::Equal => equal += 1,
            Came::Refused(why) => {
                let word = why.split(['`', ':']).next().unwrap_or("").trim().chars().take(48).collect();
                *refused.entry(word).or_default() += 1;
                if std::env::var_os("KENTLEDGE_ONNX_REFUSED").is_some() {
                    eprintln!("{name}: {why}");
                }
            }
            Came::Wrong(why) if *comparable && !OTHERWISE.iter().any(|word| name.contains(word)) => {
                wrong.push(format!("{name}: {why}"));
            }
            Came::Wrong(_) => {}
        }
    }
    let comparable = all.iter().filter(|(_, comparable, _)| *comparable).count();
    let _ = writeln!(
        std::io::stderr(),
        "MEASURED: {} cases of the package onnx, {comparable} of them tensors of numbers: {equal} equal in the worker, {} not, \
         refused with a reason: {refused:?}",
        all.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(equal * 100 >= comparable * 75, "{equal} of {comparable}");
}
