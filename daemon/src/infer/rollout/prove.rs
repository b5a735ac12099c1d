//! Whether a model answers as it must, on this device and on the provider that would serve: its golden cases within their
//! tolerances and the deadline, in a worker of its own, while the previous model goes on serving.

use std::time::Duration;

use super::super::{
    artifact::Artifact,
    running::{Launching, Running},
};

/// A model that proved itself, in the worker that did; and the figures.
pub struct Proven {
    /// Ready to serve.
    pub running: Running,
    /// µs, at half and at 99 of 100 runs.
    pub took_us: (u32, u32),
}

impl Proven {
    /// The figures in words.
    pub fn describe(&self) -> String {
        let ((p50, p99), cases) = (self.took_us, self.running.source.golden.len());
        format!("{cases} golden cases, p50 {p50} µs, p99 {p99} µs, {}", self.running.describe())
    }
}

/// Runs that warm caches up and are measured.
const RUNS: usize = 50;

/// Starts a worker and proves the model in it. `beat` is called while waiting; between two golden cases the proof is left
/// when `stopped` says so.
///
/// # Errors
/// Why the model does not serve.
pub fn prove(
    launching: &Launching,
    source: &Artifact,
    beat: &dyn Fn(),
    stopped: &dyn Fn() -> bool,
) -> Result<Proven, String> {
    let mut extra: Vec<String> = source.golden.iter().flat_map(|case| case.outputs.keys().cloned()).collect();
    extra.sort();
    extra.dedup();
    let mut running = Running::start(launching, source, &extra, beat)?;
    let deadline = Duration::from_millis(source.manifest.deadline_ms);
    let mut took: Vec<u32> = Vec::new();
    for (i, case) in source.golden.iter().enumerate() {
        if stopped() {
            return Err("stopped".into());
        }
        let what = |why: String| format!("golden case {}: {why}", i + 1);
        let (outputs, us) = running.case(&case.inputs, deadline, beat).map_err(|why| what(why.into()))?;
        took.push(us);
        for (name, values) in &outputs {
            case.agrees(name, values).map_err(|why| what(why.into()))?;
        }
        beat();
    }
    if let Some(case) = source.golden.first() {
        for _ in 0..RUNS {
            took.push(running.case(&case.inputs, deadline, beat)?.1);
        }
    }
    if let Some(bytes) = running.over_memory() {
        return Err(format!("it holds {} MiB, more than models.memory_mib allows", bytes >> 20));
    }
    took.sort_unstable();
    let at = |share: f64| took.get(((took.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0);
    Ok(Proven { running, took_us: (at(0.5), at(0.99)) })
}
