//! The effect of another remote layer on the whole configuration, by dotted keys; and the merge of two layers.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use toml::{Table, Value};

use super::{Config, Layer, SettingError, layers, problem::Problems};
use crate::limits;

/// The differences between two configurations. A table that is added or removed as a whole is one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys that only the new one has.
    pub added: Vec<String>,
    /// Keys with another value.
    pub changed: Vec<String>,
    /// Keys that only the old one had.
    pub removed: Vec<String>,
}

impl Changes {
    /// For results: bounded lists, and the number of keys that were left out.
    pub fn json(&self) -> Map<String, Json> {
        let (mut out, mut more) = (Map::new(), 0);
        for (name, keys) in [("added", &self.added), ("changed", &self.changed), ("removed", &self.removed)] {
            let shown = keys.iter().take(limits::CHANGES_TOLD).map(|key| short(key));
            out.insert(name.into(), shown.collect());
            more += keys.len().saturating_sub(limits::CHANGES_TOLD);
        }
        out.insert("more".into(), json!(more));
        out
    }

    /// For people: `1 added, 0 changed, 2 removed: alarm.hot, pipeline.pump`.
    pub fn text(&self) -> String {
        let mut text =
            format!("{} added, {} changed, {} removed", self.added.len(), self.changed.len(), self.removed.len());
        for (i, key) in self.removed.iter().take(8).enumerate() {
            text.push_str(if i == 0 { ": " } else { ", " });
            text.push_str(&short(key));
        }
        text.push_str(if self.removed.len() > 8 { ", …" } else { "" });
        text
    }

    fn compare(&mut self, path: &str, before: &Map<String, Json>, after: &Map<String, Json>) {
        let keys: BTreeMap<&String, ()> = before.keys().chain(after.keys()).map(|key| (key, ())).collect();
        for key in keys.into_keys() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match (before.get(key), after.get(key)) {
                (Some(Json::Object(before)), Some(Json::Object(after))) => self.compare(&path, before, after),
                (Some(before), Some(after)) if before != after => self.changed.push(path),
                (Some(gone), None) => whole(&path, gone, &mut self.removed),
                (None, Some(new)) => whole(&path, new, &mut self.added),
                _ => {}
            }
        }
    }
}

/// `pipeline` only has tables, one per pipeline; `pipeline.pump` is one of them.
fn whole(path: &str, value: &Json, list: &mut Vec<String>) {
    match value {
        Json::Object(map) if !map.is_empty() && map.values().all(Json::is_object) => {
            map.iter().for_each(|(key, value)| whole(&format!("{path}.{key}"), value, list));
        }
        _ => list.push(path.to_owned()),
    }
}

fn short(key: &str) -> String {
    key.chars().take(128).collect()
}

impl Config {
    /// The effect of another remote layer.
    pub fn changes(&self, before: Option<&str>, after: Option<&str>) -> Changes {
        let written = |text: Option<&str>| {
            let mut layers = self.local_layers();
            layers.extend(text.map(|text| Layer::Given(text.to_owned())));
            match layers::json(&layers::read(&layers, &mut Problems::default())) {
                Json::Object(map) => map,
                _ => Map::new(),
            }
        };
        let mut changes = Changes::default();
        changes.compare("", &written(before), &written(after));
        changes
    }
}

/// Merges one remote layer into another, key by key; comments are lost.
///
/// # Errors
/// One of them is not TOML.
pub fn merge(under: &str, over: &str) -> Result<String, SettingError> {
    let parse = |what: &str, text: &str| text.parse::<Table>().map_err(|why| format!("{what}: {}", why.message()));
    let mut merged = parse("the layer that is set", under)?;
    lay(&mut merged, parse("toml", over)?);
    toml::to_string(&merged).map_err(|why| SettingError(why.to_string()))
}

fn lay(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => lay(below, above),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIG: &str = "[pipeline.a]\nbundle = \"m\"\n[pipeline.b]\nbundle = \"m\"\n[alarm.hot]\npipeline = \"a\"\n\
                       [metrics]\ninterval_s = 5\n";

    #[test]
    fn config_set_of_one_value_lists_every_table_it_drops() {
        let config = Config::unwritten().expect("valid");
        let changes = config.changes(Some(BIG), Some("[metrics]\ninterval_s = 7\nlisten = \"1\"\n"));
        assert_eq!(changes.removed, ["alarm.hot", "pipeline.a", "pipeline.b"]);
        assert_eq!(
            (changes.changed.clone(), changes.added.clone()),
            (vec!["metrics.interval_s".into()], vec!["metrics.listen".into()])
        );
        assert_eq!(changes.text(), "1 added, 1 changed, 3 removed: alarm.hot, pipeline.a, pipeline.b");
        assert_eq!(config.changes(Some(BIG), Some(BIG)), Changes::default());
        let many: String = (0..100).map(|i| format!("[pipeline.p{i}]\nbundle = \"m\"\n")).collect();
        let json = config.changes(None, Some(&many)).json();
        assert_eq!(json["added"].as_array().map(Vec::len), Some(limits::CHANGES_TOLD));
        assert_eq!(json["more"], 100 - limits::CHANGES_TOLD);
    }

    #[test]
    fn merge_changes_the_given_keys_and_keeps_all_others() {
        let config = Config::unwritten().expect("valid");
        let merged = merge(BIG, "[metrics]\ninterval_s = 7\n[pipeline.b]\nhop_steps = 2\n").expect("merged");
        let changes = config.changes(Some(BIG), Some(&merged));
        assert_eq!((changes.removed.len(), changes.changed), (0, vec!["metrics.interval_s".to_owned()]));
        assert_eq!(changes.added, ["pipeline.b.hop_steps"]);
        assert_eq!(merge("", BIG).map(|text| config.changes(Some(BIG), Some(&text))), Ok(Changes::default()));
        assert!(merge(BIG, "[x").is_err());
    }
}
