//! The names of a configuration: what a name may be, and what it means in the tables that refer to it.

use std::{collections::BTreeMap, path::PathBuf};

use super::{paths::Paths, problem::instead, raw::Table};
use crate::flow::SourceId;

/// Resolved names, for the tables that refer to them.
pub(super) struct Names {
    pub sources: BTreeMap<String, SourceId>,
    pub channels: BTreeMap<String, usize>,
    pub channel_source: Vec<SourceId>,
    /// Sources whose rows do not have all columns.
    pub partial: Vec<bool>,
    /// By source: how old the first sample of a frame is when the frame comes, ms.
    pub span_ms: Vec<u64>,
    pub pipelines: BTreeMap<String, usize>,
    pub allow_unsigned: bool,
    pub keyset: Option<PathBuf>,
    /// The keyset was reported as unusable: it is not reported again.
    pub keyset_refused: bool,
    pub paths: Paths,
}

/// A topic segment: `[a-z0-9][a-z0-9_-]*`.
pub(super) fn is_segment(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 64
        && ok(text.as_bytes()[0])
        && text.bytes().all(|b| ok(b) || b == b'_' || b == b'-')
}

/// Channel names to indices; reports unknown names.
pub(super) fn channels(t: &mut Table<'_>, key: &'static str, list: &[String], names: &Names) -> Vec<usize> {
    let unknown: Vec<_> = list.iter().filter(|name| !names.channels.contains_key(*name)).cloned().collect();
    for name in unknown {
        let instead = instead(&name, names.channels.keys().map(String::as_str));
        t.problem(key, format!("no channel is called `{name}`{instead}"));
    }
    list.iter().filter_map(|name| names.channels.get(name).copied()).collect()
}
