//! Compares a requested change of the remote layer with what is set. Reads configuration files, changes nothing.

use serde_json::Value;

use super::{
    args::ConfigSet,
    refusal::{Refusal, Why},
    trial::{self, Asker, digest},
};
use crate::{
    config::{self, Changes, Config},
    flow::order::Respond,
    limits,
};

/// A requested change of the remote configuration layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The requester.
    pub asker: Asker,
    /// The change.
    pub set: ConfigSet,
    /// Where its result goes beside `up/res`.
    pub respond: Option<Respond>,
}

/// A change that validates.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The layer that is set.
    pub previous: Option<String>,
    /// The layer to set; `None`: none.
    pub text: Option<String>,
    /// Its digest.
    pub digest: String,
    /// The change changes nothing.
    pub same: bool,
    /// It could cut the device off: it is rolled back unless it is confirmed within so many seconds.
    pub confirm_s: Option<u64>,
    /// Only the link is to change; otherwise the stages restart.
    pub link_only: bool,
    /// What it changes.
    pub changed: Changed,
}

/// What a change changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// For people.
    pub list: String,
    /// It removes keys.
    pub removes: bool,
    /// The changes and the digest, for the result.
    pub result: Value,
}

/// The candidate of a change, and the configuration with it.
///
/// # Errors
/// Why the change is rejected: another digest, not TOML, or a configuration that does not validate.
pub fn compare(
    config: &Config,
    previous: Option<String>,
    change: &Change,
) -> Result<(Box<Candidate>, Config), Refusal> {
    let invalid = |text: String| Refusal(Why::Invalid, text);
    let set = &change.set;
    let is_set = previous.as_ref().map_or_else(|| "none".to_owned(), |text| format!("sha256:{}", digest(text)));
    if let Some(other) = set.if_digest.as_ref().filter(|digest| **digest != is_set) {
        return Err(Refusal(Why::Conflict, format!("`if_digest` is {other}, but {is_set} is set")));
    }
    let toml = match &previous {
        Some(under) if set.merge => config::merge(under, &set.toml).map_err(|why| invalid(why.into()))?,
        _ => set.toml.clone(),
    };
    if toml.len() > limits::REMOTE_CONFIG_BYTES {
        let (is, most) = (toml.len(), limits::REMOTE_CONFIG_BYTES);
        return Err(invalid(format!("together with what is set it has {is} bytes, more than {most}")));
    }
    let text = Some(toml).filter(|toml| !toml.trim().is_empty());
    let next = config.with_remote(text.as_deref()).map_err(|problems| {
        let lines: Vec<String> = problems.iter().take(limits::PROBLEMS_TOLD).map(ToString::to_string).collect();
        invalid(lines.join("\n"))
    })?;
    if config.mqtt.is_some() && next.mqtt.is_none() {
        return Err(invalid("it would leave the device without a broker".into()));
    }
    if next.mqtt != config.mqtt {
        // Reject now what can be checked without a trial.
        let problems: Vec<String> = next.problems_of_files(None).iter().map(ToString::to_string).collect();
        if !problems.is_empty() {
            return Err(invalid(problems.join("\n")));
        }
    }
    let digest = digest(text.as_deref().unwrap_or(""));
    let changes = config.changes(previous.as_deref(), text.as_deref());
    let candidate = Candidate {
        same: previous == text && config.set_aside.is_empty(),
        confirm_s: config.could_cut_off(&next).then(|| set.confirm_s.unwrap_or(next.commands.confirm_s)),
        link_only: config.differs_in_link_only(&next),
        changed: changed(&changes, &digest),
        previous,
        text,
        digest,
    };
    Ok((Box::new(candidate), next))
}

/// The changed keys and, for the result, the digest of the layer.
pub(super) fn changed(changes: &Changes, digest: &str) -> Changed {
    let mut result = changes.json();
    let none = trial::digest("") == digest;
    result.insert("digest".into(), (!none).then(|| format!("sha256:{digest}")).into());
    Changed { list: changes.text(), removes: !changes.removed.is_empty(), result: Value::Object(result) }
}

/// Digest of the remote layer that this configuration contains; without a remote layer, the digest of an empty text.
pub(super) fn in_use(config: &Config) -> String {
    let text = config.layers.iter().rev().find_map(|layer| match layer {
        config::Layer::Remote(file) => std::fs::read_to_string(file).ok(),
        _ => None,
    });
    digest(text.as_deref().unwrap_or(""))
}

impl Config {
    /// Updates `layers` for the remote layer in use: its file is the last layer, or no remote file exists.
    pub(super) fn set_remote_layer(&mut self) {
        self.layers.retain(|layer| matches!(layer, config::Layer::Local(_)));
        let file = config::remote_file(&self.device.state_dir);
        if file.exists() {
            self.layers.push(config::Layer::Remote(file));
        }
        self.set_aside.clear();
    }
}
