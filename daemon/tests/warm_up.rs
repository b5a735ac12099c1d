//! A worker with warm-up runs (`pipeline.NAME.warm_up`): it runs between regular windows, inside its sandbox, and answers the same.

#![allow(clippy::expect_used)] // A test ends where something is not as it must be.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use kentledge::{
    config::Provider,
    infer::{
        channel::{Loaded, Prepare},
        find_runtime,
        worker::{Launch, Worker},
    },
    model::file::ModelFile,
};

const PERIOD: Duration = Duration::from_millis(20);
/// A busy machine may wake the windows irregularly for a while; then none is warmed.
const LONGEST: Duration = Duration::from_secs(60);

/// Processes that this one started.
fn children() -> BTreeSet<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("tasks").flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// How often a process has waited so far.
fn waits(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|n| n.trim().parse().ok()).expect("a number")
}

fn start(warm_up: bool) -> (Worker, String) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pump-anomaly/model.onnx");
    let launch = Launch {
        name: "warm".into(),
        program: env!("CARGO_BIN_EXE_kentledge").into(),
        runtime: find_runtime(None).expect("ONNX Runtime (tests/run gets it)"),
        model: ModelFile::read(&model).expect("model"),
        provider: Provider::cpu(),
        memory_bytes: 1 << 30,
        engine: None,
        warm_up,
        judge: None,
    };
    let inputs = [("x", vec![1, 20, 3]), ("center", vec![9]), ("scale", vec![9])];
    let plan = |_: &Loaded| {
        let inputs = inputs.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())).collect();
        Ok((Prepare { inputs, outputs: vec!["score".into()], known: Default::default() }, ()))
    };
    let before = children();
    let (worker, ..) = Worker::start(&launch, plan, &|| {}).expect("worker");
    let pid = children().difference(&before).next().expect("a process").clone();
    (worker, pid)
}

/// The score of window `n`.
fn score(worker: &mut Worker, n: u32) -> f64 {
    let x: Vec<f32> = (0..60).map(|i| ((n * 7 + i * i) % 23) as f32 / 5.0).collect();
    worker.write(0, 0, &x);
    worker.write(0, 1, &[0.0; 9]);
    worker.write(0, 2, &[1.0; 9]);
    assert!(worker.ring(1, Some(Duration::from_secs(10)), &|| {}).died.is_none());
    let mut score = Vec::new();
    worker.read(0, 0, &mut score);
    score[0]
}

#[test]
fn worker_with_warm_up_runs_between_regular_windows_and_answers_as_one_without() {
    let (mut warm, pid) = start(true);
    let (mut cold, other) = start(false);
    let (began, mut n) = (Instant::now(), 0);
    let mut extra = 0;
    while extra < 10 {
        assert!(began.elapsed() < LONGEST, "it waits for windows only: {extra} waits more after {n} windows");
        let (one, two) = (score(&mut warm, n), score(&mut cold, n));
        assert!(one == two && one.is_finite(), "window {n}: {one} with a warm-up run before it, {two} without");
        n += 1;
        std::thread::sleep((began + PERIOD * n).saturating_duration_since(Instant::now()));
        extra = waits(&pid).saturating_sub(waits(&other));
    }
}
