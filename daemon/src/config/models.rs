//! `[models]`: ONNX Runtime, execution providers, and which models are accepted.

use std::collections::BTreeMap;

use super::{
    Models, Provider,
    paths::{self, Paths},
    raw::{Node, Table, Value},
};
use crate::{limits, model::manifest::is_name};

/// Execution providers that need no plugin, the fastest first. `infer/worker_main.rs` builds each of them, and a test there compares.
pub const PROVIDERS: [&str; 6] = ["tensorrt", "cuda", "openvino", "qnn", "xnnpack", "cpu"];

pub(super) fn models(root: &mut Table<'_>, node: Option<Node>, paths: &Paths) -> Models {
    let mut models = Models {
        runtime: None,
        allow_unsigned: false,
        providers: Vec::new(),
        require: false,
        provider: BTreeMap::new(),
        channel: "stable".into(),
        ca_file: None,
        memory_bytes: limits::WORKER_MIB << 20,
        shadow_s: limits::SHADOW_S,
        trial_s: limits::TRIAL_S,
        trial_windows: limits::TRIAL_WINDOWS,
    };
    let Some(node) = node else { return models };
    let mut t = root.sub("models".into(), node);
    t.only_local(&["allow_unsigned", "provider"]);
    models.allow_unsigned = t.bool("allow_unsigned").unwrap_or(false);
    models.runtime = paths::local(&mut t, "runtime");
    models.providers = t.strs("providers").unwrap_or_default();
    models.require = t.word("provider_policy", &[("prefer", false), ("require", true)]).unwrap_or(false);
    for (name, node) in t.tables("provider") {
        let provider = provider(&name, t.sub(format!("provider.{name}"), node), models.allow_unsigned);
        models.provider.insert(name, provider);
    }
    for name in models.providers.clone() {
        let plugin = models.provider.get(&name).is_some_and(|p| p.plugin.is_some());
        if !plugin && !PROVIDERS.contains(&name.as_str()) {
            let why = format!(
                "unknown provider `{name}`: expected {}, or a plugin in `models.provider.{name}`",
                PROVIDERS.join(", ")
            );
            t.problem("providers", why);
        }
    }
    if let Some(channel) = t.str("channel") {
        if !is_name(&channel) {
            let why = format!(
                "no model can be of `{channel}`: a channel is a name such as `stable`, of letters, digits, `.`, `_`, `-` and `+`, \
                 64 at most"
            );
            t.problem("channel", why);
        }
        models.channel = channel;
    }
    models.ca_file = paths.file(&mut t, "ca_file");
    let mut set = |key, range, to: &mut u64| {
        if let Some(n) = t.int(key, range) {
            *to = n as u64;
        }
    };
    let mut mib = limits::WORKER_MIB;
    set("memory_mib", 64..=1 << 20, &mut mib);
    models.memory_bytes = mib << 20;
    set("shadow_s", 0..=604_800, &mut models.shadow_s);
    set("trial_s", 0..=604_800, &mut models.trial_s);
    set("trial_windows", 1..=1 << 20, &mut models.trial_windows);
    t.finish();
    models
}

/// Plugins are native code: only those of the image are accepted, except in tests.
fn provider(name: &str, mut t: Table<'_>, bench: bool) -> Provider {
    const FOLDERS: [&str; 3] = ["/usr/lib/kentledge", "/usr/lib", "/opt/kentledge/lib"];
    let mut provider = Provider { name: name.to_owned(), ..Provider::cpu() };
    if let Some(path) = paths::local(&mut t, "plugin") {
        // The target of a link counts, not its place.
        match path.canonicalize() {
            Err(why) => t.problem("plugin", format!("{}: {why}", path.display())),
            Ok(real) if bench || FOLDERS.iter().any(|folder| real.starts_with(folder)) => {}
            Ok(real) => {
                t.problem("plugin", format!("{} lies outside the image's library folders", real.display()));
            }
        }
        provider.plugin = Some(path);
    }
    if let Some(node) = t.node("options") {
        match node.value {
            Value::Table(map) => {
                for (key, node) in map {
                    let value = match node.value {
                        Value::Str(text) => text,
                        Value::Int(n) => n.to_string(),
                        Value::Bool(yes) => yes.to_string(),
                        _ => {
                            t.problem("options", format!("`{key}` is text, an integer, true or false"));
                            continue;
                        }
                    };
                    provider.options.insert(key, value);
                }
            }
            _ => t.problem("options", "must be a table"),
        }
    }
    t.finish();
    provider
}
