//! Keys of `[pipeline.NAME]` that say what fills the inputs of a model: `inputs` binds channels, `state` carries an output
//! into an input of the next window.

use std::collections::BTreeMap;

use super::{
    problem::instead,
    raw::{Table, Value},
};
use crate::model::manifest::{Manifest, twice};

/// Reads both keys into the manifest of a bare file; `channels` are the pipeline's.
pub(super) fn bindings(t: &mut Table<'_>, channels: &[String], manifest: &mut Manifest) {
    if let Some(map) = map(t, "inputs") {
        let mut feeds = BTreeMap::new();
        for (input, value) in map {
            let of_input = match value {
                Value::Str(channel) => Some(vec![channel]),
                Value::List(items) => items
                    .into_iter()
                    .map(|item| if let Value::Str(channel) = item.value { Some(channel) } else { None })
                    .collect(),
                _ => None,
            };
            match of_input.filter(|of_input| !of_input.is_empty()) {
                Some(of_input) => {
                    feeds.insert(input, of_input);
                }
                None => t.problem("inputs", format!("`{input}` must be a channel or a list of channels")),
            }
        }
        for (input, channel) in feeds.iter().flat_map(|(input, all)| all.iter().map(move |channel| (input, channel))) {
            if !channels.is_empty() && !channels.contains(channel) {
                let instead = instead(channel, channels.iter().map(String::as_str));
                t.problem("inputs", format!("`{input}`: the pipeline has no channel `{channel}`{instead}"));
            }
        }
        manifest.feeds = feeds;
    }
    if let Some(map) = map(t, "state") {
        let mut state = BTreeMap::new();
        for (output, value) in map {
            match value {
                Value::Str(input) => {
                    state.insert(output, input);
                }
                _ => t.problem("state", format!("`{output}` must name the input that takes this output")),
            }
        }
        if let Some(why) = twice(&state) {
            t.problem("state", why);
        }
        manifest.state = Some(state);
    }
}

/// The values of a table whose keys are names of a model.
fn map(t: &mut Table<'_>, key: &'static str) -> Option<BTreeMap<String, Value>> {
    match t.node(key)?.value {
        Value::Table(map) => Some(map.into_iter().map(|(name, node)| (name, node.value)).collect()),
        _ => {
            let example = if key == "state" { "h_out = \"h_in\"" } else { "INPUT = \"CHANNEL\"" };
            t.problem(key, format!("must be a table, such as `{{ {example} }}`"));
            None
        }
    }
}
