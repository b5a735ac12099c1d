//! Pipelines by model: those that share file, manifest and window share an engine and its worker.

use super::Config;

/// The groups, as places of pipelines.
pub fn groups(config: &Config) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, pipeline) in config.pipelines.iter().enumerate() {
        let same = |group: &&mut Vec<usize>| {
            let other = &config.pipelines[group[0]];
            other.model == pipeline.model
                && (other.steps, other.channels.len()) == (pipeline.steps, pipeline.channels.len())
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups
}

/// The group of a pipeline.
pub fn group_of(config: &Config, pipeline: usize) -> Option<usize> {
    groups(config).iter().position(|group| group.contains(&pipeline))
}
