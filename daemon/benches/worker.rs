//! What a process of its own costs: the same model, the same windows, in the worker and in bare ONNX Runtime, in the same run.
//!
//!     cargo bench -p kentledge --bench worker

#![allow(clippy::expect_used, clippy::print_stdout)] // A bench that cannot run says so and ends.

use std::{path::Path, time::Instant};

use kentledge::{
    config::Provider,
    infer::{
        channel::{Loaded, Prepare},
        find_runtime,
        worker::{Launch, Worker},
    },
    model::file::ModelFile,
};
use nix::sys::resource::{UsageWho, getrusage};
use ort::{
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{Session, builder::GraphOptimizationLevel},
    value::Tensor,
};

const RUNS: usize = 20_000;
const ROUNDS: usize = 5;

/// CPU of this process and of children that ended, µs.
fn cpu_us() -> f64 {
    let of = |who| {
        let usage = getrusage(who).expect("usage");
        let us = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 * 1e6 + t.tv_usec() as f64;
        us(usage.user_time()) + us(usage.system_time())
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The inputs: what the window and the calibration take.
const INPUTS: [(&str, [i64; 3], usize); 3] = [("x", [1, 20, 3], 60), ("center", [9, 0, 0], 9), ("scale", [9, 0, 0], 9)];

fn shape(dims: [i64; 3]) -> Vec<i64> {
    dims.into_iter().filter(|d| *d > 0).collect()
}

fn bare(session: &mut Session) -> (f64, f64) {
    let mut binding = session.create_binding().expect("binding");
    for (name, dims, n) in INPUTS {
        binding.bind_input(name, &Tensor::from_array((shape(dims), vec![1f32; n])).expect("tensor")).expect("bind");
    }
    let cpu = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput).expect("memory");
    binding.bind_output_to_device("score", &cpu).expect("bind");
    let (mut took, before) = (Vec::with_capacity(RUNS), cpu_us());
    for _ in 0..RUNS {
        let began = Instant::now();
        session.run_binding(&binding).expect("run");
        took.push(began.elapsed().as_nanos() as f64 / 1e3);
    }
    (median(&mut took), (cpu_us() - before) / RUNS as f64)
}

/// `count` windows at each ring of the doorbell.
fn worker(launch: &Launch, count: usize) -> (f64, f64) {
    let plan = |_: &Loaded| {
        let inputs = INPUTS.map(|(name, dims, _)| (name.to_owned(), shape(dims))).to_vec();
        Ok((Prepare { inputs, outputs: vec!["score".into()], known: Default::default() }, ()))
    };
    let (mut worker, ..) = Worker::start(launch, plan, &|| {}).expect("worker");
    let windows: Vec<Vec<f32>> = INPUTS.iter().map(|(_, _, n)| vec![1f32; *n]).collect();
    let mut rounds = |n: usize| {
        let (mut took, mut score) = (Vec::with_capacity(n), Vec::new());
        for _ in 0..n {
            let began = Instant::now();
            for slot in 0..count {
                for (input, values) in windows.iter().enumerate() {
                    worker.write(slot, input, values);
                }
            }
            assert!(worker.ring(count, None, &|| {}).died.is_none());
            for slot in 0..count {
                worker.read(slot, 0, &mut score);
            }
            took.push(began.elapsed().as_nanos() as f64 / 1e3 / count as f64);
        }
        median(&mut took)
    };
    rounds(RUNS / 10 / count);
    // The worker's own share counts when it has ended: what its start took is taken off by a worker that only starts.
    let before = cpu_us();
    let p50 = rounds(RUNS / count);
    drop(worker);
    let with = cpu_us() - before;
    let before = cpu_us();
    let (idle, ..) = Worker::start(launch, plan, &|| {}).expect("worker");
    drop(idle);
    let start = cpu_us() - before;
    (p50, (with - start).max(0.0) / (RUNS as f64 * 1.1))
}

fn main() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pump-anomaly/model.onnx");
    let runtime = find_runtime(None).expect("ONNX Runtime");
    let launch = Launch {
        name: "bench".into(),
        program: env!("CARGO_BIN_EXE_kentledge").into(),
        runtime: runtime.clone(),
        model: ModelFile::read(&model).expect("model"),
        provider: Provider::cpu(),
        memory_bytes: 1 << 30,
        engine: None,
        warm_up: false,
        judge: None,
    };
    let environment = ort::init_from(&runtime).expect("library").build().expect("environment");
    let mut session = Session::builder(&environment)
        .and_then(|b| Ok(b.with_optimization_level(GraphOptimizationLevel::All)?))
        .and_then(|b| Ok(b.with_intra_threads(1)?.with_intra_op_spinning(false)?))
        .and_then(|mut b| b.commit_from_file(&model))
        .expect("session");
    bare(&mut session);
    let (mut a, mut b, mut c) = ((vec![], vec![]), (vec![], vec![]), (vec![], vec![]));
    for _ in 0..ROUNDS {
        for (all, (p50, cpu)) in
            [(&mut a, bare(&mut session)), (&mut b, worker(&launch, 1)), (&mut c, worker(&launch, 16))]
        {
            all.0.push(p50);
            all.1.push(cpu);
        }
    }
    println!("{ROUNDS} interleaved rounds of {RUNS} windows of 20 × 3, pump-anomaly, medians:");
    println!("                        p50 µs/window   CPU µs/window");
    for (name, all) in
        [("bare ONNX Runtime", &mut a), ("worker, 1 at a time", &mut b), ("worker, 16 at a time", &mut c)]
    {
        println!("{name:<24}{:>13.1}{:>16.1}", median(&mut all.0), median(&mut all.1));
    }
}
