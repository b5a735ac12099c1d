//! What only running a model shows, for `kentledge check`: whether there is a library to run it with, and whether its inputs and
//! outputs are those of the pipeline. Starts a worker for each model as the daemon does, in the same fences, and ends it.

use super::{
    artifact::Artifact,
    running::{Launching, Running},
};
use crate::config::{Config, Problem, groups};

/// All problems that the configuration's models have; `launching` says how the workers of a group of pipelines are started.
pub fn check(config: &Config, launching: impl Fn(&[usize]) -> Launching) -> Vec<Problem> {
    let mut problems = Vec::new();
    for group in groups(config) {
        let pipeline = &config.pipelines[group[0]];
        // Nothing to look at until its bundle is installed.
        if pipeline.model.file.as_os_str().is_empty() {
            continue;
        }
        let launching = launching(&group);
        if let Err(why) = &launching.runtime {
            let key = if config.models.runtime.is_some() {
                "models.runtime".into()
            } else {
                format!("pipeline.{}.model", pipeline.name)
            };
            problems.push(Problem { at: config.at(&key), key, why: why.clone() });
            // It is the same for all of them.
            break;
        }
        let started =
            Artifact::factory(&pipeline.model).and_then(|source| Running::start(&launching, &source, &[], &|| {}));
        let Err(why) = started else { continue };
        let missing = |output: &String| why.contains(&format!("no output `{output}`"));
        let of_group = group.iter().map(|at| &config.pipelines[*at]);
        let (name, key) = match of_group.clone().find(|p| p.outputs.iter().any(missing)) {
            Some(pipeline) => (&pipeline.name, "outputs"),
            None if pipeline.model.manifest.score.as_ref().is_some_and(missing) => (&pipeline.name, "score"),
            None => (&pipeline.name, "model"),
        };
        let key = format!("pipeline.{name}.{key}");
        problems.push(Problem { at: config.at(&key), key, why });
    }
    problems
}
