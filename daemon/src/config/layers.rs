//! Which files make up the configuration, and in which order they are laid over one another.

use std::path::{Path, PathBuf};

use super::{
    problem::{At, Problems},
    raw::{self, Node, Value},
};
use crate::limits;

/// The image's own, read-only.
pub const VENDOR: &str = "/usr/lib/kentledge";
/// The administrator's.
pub const ADMIN: &str = "/etc/kentledge";
/// Set remotely.
pub const DATA: &str = "/data/kentledge/config";

/// The `*.toml` files of a folder, by name; a missing folder has none.
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

/// Reads files and lays each over those before it.
pub fn read(files: &[PathBuf], problems: &mut Problems) -> Node {
    let whole = At { file: "configuration".into(), line: 0 };
    let mut merged = Node { at: whole, value: Value::Table(Default::default()) };
    for path in files {
        let name = path.display().to_string();
        let at = At { file: name.as_str().into(), line: 0 };
        match read_text(path) {
            Ok(text) => {
                if let Some(node) = raw::parse(&name, &text, problems) {
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

fn read_text(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|why| format!("read: {why}"))?.len();
    if size > limits::CONFIG_BYTES {
        return Err(format!("{size} bytes are more than the {} a configuration may have", limits::CONFIG_BYTES));
    }
    std::fs::read_to_string(path).map_err(|why| format!("read: {why}"))
}
