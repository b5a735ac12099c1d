//! The files of the configuration, and the order in which they are merged.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::{
    problem::{At, Problems},
    raw::{self, Node, Value},
};
use crate::limits;

/// The folder of the image, read-only.
pub const VENDOR: &str = "/usr/lib/kentledge";
/// The folder of the administrator.
pub const ADMIN: &str = "/etc/kentledge";

/// One text of the configuration; it overrides the layers before it.
#[derive(Debug, Clone, PartialEq)]
pub enum Layer {
    /// A file written on the device.
    Local(PathBuf),
    /// A file that was set remotely.
    Remote(PathBuf),
    /// A text that is about to be set remotely.
    Given(String),
}

/// The `*.toml` files of a folder, by name; none if the folder is missing.
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    files.sort();
    files
}

/// The local layers: one file, or those of the image and the administrator.
pub fn local(file: Option<&Path>) -> Vec<Layer> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => files_in(Path::new(VENDOR)).into_iter().chain(files_in(Path::new(ADMIN))).collect(),
    };
    files.into_iter().map(Layer::Local).collect()
}

/// Reads layers and merges each over those before it.
pub fn read(layers: &[Layer], problems: &mut Problems) -> Node {
    let whole = At { file: "configuration".into(), line: 0, remote: false };
    let mut merged = Node { at: whole, value: Value::Table(Default::default()) };
    for layer in layers {
        let (name, text, remote) = match layer {
            Layer::Local(path) => (path.display().to_string(), read_text(path), false),
            Layer::Remote(path) => (path.display().to_string(), read_text(path), true),
            Layer::Given(text) => ("toml".into(), Ok(text.clone()), true),
        };
        let at = At { file: name.as_str().into(), line: 0, remote };
        match text {
            Ok(text) => {
                if let Some(node) = raw::parse(&name, &text, remote, problems) {
                    if merged.at.line == 0 {
                        merged.at = node.at.clone();
                    }
                    raw::overlay(&mut merged, node);
                }
            }
            Err(why) => problems.add(&at, "file", why),
        }
    }
    merged
}

/// The merged configuration as JSON. It has no secrets, because secrets are given by path.
pub fn json(node: &Node) -> Json {
    match &node.value {
        Value::Str(text) => text.as_str().into(),
        Value::Int(n) => (*n).into(),
        Value::Float(x) => (*x).into(),
        Value::Bool(yes) => (*yes).into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Table(map) => Json::Object(map.iter().map(|(key, node)| (key.clone(), json(node))).collect()),
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|why| format!("read: {why}"))?.len();
    if size > limits::CONFIG_BYTES {
        return Err(format!("{size} bytes are more than the {} a configuration may have", limits::CONFIG_BYTES));
    }
    std::fs::read_to_string(path).map_err(|why| format!("read: {why}"))
}
