//! What only opening a model shows, for `kentledge check`: whether the file is whole, whether there is a library to run it with,
//! and whether its inputs and outputs are those of the pipeline. Starts a worker for each model as the daemon does, in the same
//! fences, and ends it.

use super::{
    artifact::Artifact,
    meaning::Misfit,
    running::{Launching, Running},
};
use crate::config::{Config, Problem, groups};

/// What opening the models showed.
#[derive(Debug, Default)]
pub struct Checked {
    /// All problems.
    pub problems: Vec<Problem>,
    /// What each pipeline's score is, a line each.
    pub lines: Vec<String>,
}

/// Opens the configuration's models; `launching` says how the workers of a group of pipelines are started.
pub fn check(config: &Config, launching: impl Fn(&[usize]) -> Launching) -> Checked {
    let (mut checked, mut no_runtime) = (Checked::default(), false);
    for group in groups(config) {
        let pipeline = &config.pipelines[group[0]];
        // Nothing to look at until its bundle is installed.
        if pipeline.model.file.as_os_str().is_empty() {
            continue;
        }
        let model = format!("pipeline.{}.model", pipeline.name);
        let source = match Artifact::factory(&pipeline.model) {
            Ok(source) => source,
            Err(why) => {
                checked.problems.push(Problem { at: config.at(&model), key: model, why: why.into() });
                continue;
            }
        };
        let launching = launching(&group);
        if let Err(why) = &launching.runtime {
            let key = if config.models.runtime.is_some() { "models.runtime".into() } else { model };
            // It is the same for all of them.
            if !std::mem::replace(&mut no_runtime, true) {
                checked.problems.push(Problem { at: config.at(&key), key, why: why.to_string() });
            }
            continue;
        }
        match Running::start(&launching, &source, &[], &|| {}) {
            Ok(running) => {
                let names = group.iter().map(|at| &config.pipelines[*at].name);
                checked.lines.extend(names.map(|name| format!("pipeline {name}: {}", running.meaning())));
            }
            Err(misfits) => {
                checked.problems.extend(misfits.0.iter().map(|misfit| problem(config, &group, misfit)));
            }
        }
    }
    checked
}

/// Where a misfit is to be mended: at its key, or at the model where the key is not written.
fn problem(config: &Config, group: &[usize], misfit: &Misfit) -> Problem {
    let mut of_group = group.iter().map(|at| &config.pipelines[*at]);
    let named = of_group.find(|p| misfit.key == "outputs" && p.outputs.contains(&misfit.of));
    let pipeline = named.unwrap_or(&config.pipelines[group[0]]);
    let table = format!("pipeline.{}", pipeline.name);
    let model = config.at(&format!("{table}.model"));
    if !pipeline.model.manifest_sha256.is_empty() && !["outputs", "model"].contains(&misfit.key) {
        // The manifest of a bundle is signed: only a new bundle mends it.
        let why = format!("manifest.json: {}: {}", misfit.key, misfit.why);
        return Problem { at: model, key: format!("{table}.model"), why };
    }
    let key = format!("{table}.{}", misfit.key);
    let at = config.at(&key);
    Problem { at: if at == config.at(&table) { model } else { at }, key, why: misfit.why.clone() }
}
