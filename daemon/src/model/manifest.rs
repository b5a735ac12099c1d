//! A model's `manifest.json`, in a bundle or in a folder. `Manifest` is what the daemon needs to run the model,
//! `Release` what it needs to install the bundle.

use std::{collections::BTreeMap, fmt::Display, path::Path};

use serde::Deserialize;

use super::{
    error::BundleError,
    scoring::{Reduce, Scoring},
};
use crate::flow::Direction;

/// The order of a window's values in the input tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[…, steps, channels]`
    StepsFirst,
    /// `[…, channels, steps]`
    ChannelsFirst,
}

/// Calibration: fits a model to its machine, without data of other machines.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Number of windows to learn from.
    pub windows: usize,
    /// Output whose running statistics are taken; `None`: only the threshold is learnt, from the scores.
    #[serde(default)]
    pub features: Option<String>,
    /// Input that gets their mean.
    pub center: Option<String>,
    /// Input that gets their standard deviation.
    pub scale: Option<String>,
    /// How far the threshold lies beyond the worst score of the learned windows; `Learning::threshold` says from where.
    pub factor: f64,
    /// Minimum standard deviation of each feature (from the channel's resolution); one value serves all.
    #[serde(default)]
    pub scale_floor: Vec<f64>,
}

/// What the daemon needs to know to run a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Model name.
    pub model: String,
    /// Version.
    pub version: String,
    /// File name of the ONNX file, in the manifest's folder.
    pub file: String,
    /// Channel names, in the model's order.
    pub channels: Option<Vec<String>>,
    /// Rows of a window.
    pub steps: Option<usize>,
    /// Rows between windows.
    pub hop: Option<usize>,
    /// Time grid, ms.
    pub step_ms: Option<u64>,
    /// A longer step between rows is a gap, ms.
    pub gap_max_ms: Option<u64>,
    /// Input for the window; `None`: the only input that is not bound otherwise.
    pub input: Option<String>,
    /// Order of its values; `None`: read from its shape.
    pub layout: Option<Layout>,
    /// Inputs that take some of the channels: their names, in the input's order.
    pub feeds: BTreeMap<String, Vec<String>>,
    /// Outputs that are carried into inputs of the next window; `None`: not said whether the model has a state.
    pub state: Option<BTreeMap<String, String>>,
    /// Inputs with fixed values.
    pub params: BTreeMap<String, Vec<f64>>,
    /// What the outputs mean: the score, and classes.
    pub scoring: Scoring,
    /// Output with the contribution of each channel to the score.
    pub contributions: Option<String>,
    /// How the model is calibrated.
    pub calibration: Option<Calibration>,
    /// A fixed threshold.
    pub threshold: Option<f32>,
    /// Alarms clear below this share of their level.
    pub clear_factor: Option<f32>,
    /// Deadline of one window.
    pub deadline_ms: u64,
    /// Execution providers, the best first; empty: those of the device's configuration.
    pub providers: Vec<String>,
    /// Other ONNX files of the same model, and the providers they are for.
    pub variants: Vec<(String, Vec<String>)>,
}

/// The rest of a bundle's manifest: it decides whether the bundle may be installed here.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// Release channel: `stable`, `beta`, …
    pub channel: String,
    /// Model name.
    pub model: String,
    /// Version, for people.
    pub version: String,
    /// Sequence: increases with each release.
    pub seq: u64,
    /// Expiry: not installed later, ms since 1970.
    pub expires_ms: i64,
    /// When it was made, ms since 1970.
    pub created_ms: i64,
    /// Boards it was made for; `any`: all.
    pub device_class: Vec<String>,
    /// The oldest daemon that can run it.
    pub min_supervisor: semver::Version,
    /// All other files of the bundle, in their order.
    pub files: Vec<FileEntry>,
    /// Declared inputs and outputs: name, type, shape.
    pub inputs: Vec<(String, String, Vec<i64>)>,
    /// Declared outputs: name, type, shape.
    pub outputs: Vec<(String, String, Vec<i64>)>,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct FileEntry {
    /// Name, no path.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// The default deadline of 1 s: a thousand times what small models take on a board.
const DEADLINE_MS: u64 = 1000;

#[derive(Deserialize)]
struct Json {
    model: String,
    version: String,
    files: Vec<File>,
    #[serde(default)]
    inputs: Vec<Io>,
    #[serde(default)]
    outputs: Vec<Io>,
    window: Option<WindowJson>,
    thresholds: Option<Thresholds>,
    calibration: Option<Calibration>,
    deadline_ms: Option<u64>,
    #[serde(default)]
    providers: Vec<String>,
    score: Option<String>,
    #[serde(default)]
    direction: Direction,
    reduce: Option<Reduce>,
    reconstruction: Option<String>,
    #[serde(default)]
    classes: Vec<String>,
    probabilities: Option<String>,
    state: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct ReleaseJson {
    #[serde(rename = "_type")]
    kind: String,
    product: String,
    channel: String,
    model: String,
    version: String,
    seq: u64,
    created: String,
    expires: String,
    device_class: Vec<String>,
    min_supervisor: String,
    files: Vec<File>,
    inputs: Vec<Io>,
    outputs: Vec<Io>,
    #[allow(dead_code)] // read so that a bundle without it is refused
    window: WindowJson,
}

#[derive(Deserialize)]
struct File {
    name: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    sha256: String,
    #[serde(default)]
    providers: Vec<String>,
}

#[derive(Deserialize)]
struct Io {
    name: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    shape: Vec<i64>,
    role: Option<String>,
    layout: Option<Layout>,
    values: Option<Vec<f64>>,
    channels: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct WindowJson {
    channels: Vec<String>,
    length: usize,
    #[serde(default)]
    hop: Option<usize>,
    #[serde(default)]
    step_ms: Option<u64>,
    #[serde(default)]
    gap_max_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Thresholds {
    raise: Option<f32>,
    clear_factor: Option<f32>,
}

impl Manifest {
    /// The manifest of a bare file: only its name is known.
    pub fn bare(file: &Path) -> Self {
        let stem = file.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
        Self {
            model: stem,
            version: "0".into(),
            file: file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            channels: None,
            steps: None,
            hop: None,
            step_ms: None,
            gap_max_ms: None,
            input: None,
            layout: None,
            feeds: BTreeMap::new(),
            state: None,
            params: BTreeMap::new(),
            scoring: Scoring::default(),
            contributions: None,
            calibration: None,
            threshold: None,
            clear_factor: None,
            deadline_ms: DEADLINE_MS,
            providers: Vec::new(),
            variants: Vec::new(),
        }
    }

    /// Reads `manifest.json` in a folder.
    ///
    /// # Errors
    /// It cannot be read, or `parse` rejects it; the text names the file.
    pub fn read(folder: &Path) -> Result<Self, BundleError> {
        let path = folder.join("manifest.json");
        let what = |why: &dyn Display| BundleError(format!("read {}: {why}", path.display()));
        let text = std::fs::read(&path).map_err(|why| what(&why))?;
        Self::parse(&text).map_err(|why| what(&why))
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// It has another shape, or parts of it contradict each other.
    pub fn parse(text: &[u8]) -> Result<Self, BundleError> {
        let json: Json = serde_json::from_slice(text).map_err(|why| why.to_string())?;
        if json.files.iter().any(|file| file.name.contains(['/', '\\'])) {
            return Err("a file must lie beside the manifest".into());
        }
        let mut onnx = json.files.iter().filter(|file| file.name.ends_with(".onnx"));
        let file = onnx.next().ok_or("it names no .onnx file")?.name.clone();
        let variants = onnx.map(|file| (file.name.clone(), file.providers.clone())).collect();
        let input = json.inputs.iter().find(|io| io.role.as_deref() == Some("window"));
        let scoring = scoring(&json)?;
        let contributions = json.outputs.iter().find(|io| io.role.as_deref() == Some("contributions"));
        let window = json.window.as_ref();
        let feeds = feeds(&json.inputs, window.map(|w| w.channels.as_slice()))?;
        if let Some(why) = json.state.as_ref().and_then(twice) {
            return Err(format!("`state`: {why}").into());
        }
        Ok(Self {
            model: json.model,
            version: json.version,
            file,
            channels: window.map(|w| w.channels.clone()),
            steps: window.map(|w| w.length),
            hop: window.and_then(|w| w.hop),
            step_ms: window.and_then(|w| w.step_ms),
            gap_max_ms: window.and_then(|w| w.gap_max_ms),
            input: input.map(|io| io.name.clone()),
            layout: input.and_then(|io| io.layout),
            feeds,
            state: json.state,
            params: json.inputs.iter().filter_map(|io| Some((io.name.clone(), io.values.clone()?))).collect(),
            scoring,
            contributions: contributions.map(|io| io.name.clone()),
            calibration: json.calibration,
            threshold: json.thresholds.as_ref().and_then(|t| t.raise),
            clear_factor: json.thresholds.as_ref().and_then(|t| t.clear_factor),
            deadline_ms: json.deadline_ms.unwrap_or(DEADLINE_MS).clamp(1, 60_000),
            providers: json.providers,
            variants,
        })
    }

    /// The ONNX file for a provider: its variant, else the plain file.
    pub fn file_for(&self, provider: &str) -> &str {
        let variant = self.variants.iter().find(|(_, providers)| providers.iter().any(|p| p == provider));
        variant.map_or(&self.file, |(file, _)| file)
    }
}

/// Inputs that say which channels they take.
fn feeds(inputs: &[Io], channels: Option<&[String]>) -> Result<BTreeMap<String, Vec<String>>, BundleError> {
    let mut feeds = BTreeMap::new();
    for (name, taken) in inputs.iter().filter_map(|io| Some((&io.name, io.channels.as_ref()?))) {
        let unknown = taken.iter().find(|channel| channels.is_none_or(|all| !all.contains(channel)));
        match unknown {
            Some(channel) => return Err(format!("input `{name}`: the window has no channel `{channel}`").into()),
            None if taken.is_empty() => return Err(format!("input `{name}`: `channels` names no channel").into()),
            None => feeds.insert(name.clone(), taken.clone()),
        };
    }
    Ok(feeds)
}

/// Why a state cannot be carried so: two outputs go into one input.
pub fn twice(state: &BTreeMap<String, String>) -> Option<String> {
    let mut seen = BTreeMap::new();
    state.iter().find_map(|(output, input)| {
        let other = seen.insert(input, output)?;
        Some(format!("outputs `{other}` and `{output}` go into one input, `{input}`"))
    })
}

/// What the manifest says of the score; a role of an output says the same as the key of that name.
fn scoring(json: &Json) -> Result<Scoring, BundleError> {
    let said = |key: &str, value: &Option<String>| -> Result<Option<String>, BundleError> {
        let role = json.outputs.iter().find(|io| io.role.as_deref() == Some(key)).map(|io| io.name.clone());
        match (value, role) {
            (Some(value), Some(role)) if super::scoring::element(value).0 != role => {
                Err(format!("`{key}` is `{value}`, and output `{role}` has the role `{key}`: name one of them").into())
            }
            (value, role) => Ok(value.clone().or(role)),
        }
    };
    let scoring = Scoring {
        score: said("score", &json.score)?,
        direction: json.direction,
        reduce: json.reduce,
        reconstruction: said("reconstruction", &json.reconstruction)?,
        classes: json.classes.clone(),
        probabilities: said("probabilities", &json.probabilities)?,
    };
    let problems: Vec<_> = scoring.problems().iter().map(|(key, why)| format!("`{key}`: {why}")).collect();
    if problems.is_empty() { Ok(scoring) } else { Err(problems.join("; ").into()) }
}

impl Release {
    /// Parses the release part of a bundle's manifest. The signature was verified before.
    ///
    /// # Errors
    /// A member is missing or wrong; the text names it.
    pub fn parse(text: &[u8]) -> Result<Self, BundleError> {
        let json: ReleaseJson = serde_json::from_slice(text).map_err(|why| format!("manifest.json: {why}"))?;
        let wrong = |what: &str, why: &str| Err(BundleError(format!("manifest.json: `{what}` {why}")));
        if json.kind != "model" || json.product != "kentledge" {
            return wrong(
                "_type",
                &format!("and `product` are `{}`, `{}`, not `model`, `kentledge`", json.kind, json.product),
            );
        }
        if !is_name(&json.model) || !is_name(&json.channel) || !is_name(&json.version) {
            return wrong("model", "`version` and `channel` are 1 to 64 of a-z A-Z 0-9 . _ - +");
        }
        let time = |what: &str, text: &str| {
            let time: Result<jiff::Timestamp, _> = text.parse();
            time.map(|t| t.as_millisecond()).map_err(|_| format!("manifest.json: `{what}` `{text}` is no time"))
        };
        let (created_ms, expires_ms) = (time("created", &json.created)?, time("expires", &json.expires)?);
        let min_supervisor =
            json.min_supervisor.parse().map_err(|why| format!("manifest.json: `min_supervisor`: {why}"))?;
        if json.device_class.is_empty() {
            return wrong("device_class", "names no class; `any` is every one");
        }
        let io = |all: Vec<Io>| all.into_iter().map(|io| (io.name, io.kind, io.shape)).collect();
        let mut files: Vec<FileEntry> = Vec::new();
        for File { name, size, sha256, .. } in json.files {
            let hex = sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if !is_name(&name) || !hex || files.iter().any(|file| file.name == name) {
                return wrong(
                    "files",
                    &format!("`{name}` needs a plain name that stands once, its size and its sha256"),
                );
            }
            files.push(FileEntry { name, size, sha256 });
        }
        Ok(Self {
            channel: json.channel,
            model: json.model,
            version: json.version,
            seq: json.seq,
            expires_ms,
            created_ms,
            device_class: json.device_class,
            min_supervisor,
            files,
            inputs: io(json.inputs),
            outputs: io(json.outputs),
        })
    }
}

/// Whether a name is valid as a file name and as a topic segment.
pub fn is_name(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
    (1..=64).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(more: &Value) -> Result<Manifest, BundleError> {
        let mut json = json!({"model": "m", "version": "1", "files": [{"name": "m.onnx"}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            json[key] = value.clone();
        }
        Manifest::parse(json.to_string().as_bytes())
    }

    #[test]
    fn score_is_named_by_a_key_or_by_a_role_but_not_by_both_differently() {
        let role = json!([{"name": "y", "role": "score"}, {"name": "p", "role": "probabilities"}]);
        let named = parse(&json!({"outputs": role, "classes": ["ok", "wear"]})).expect("roles").scoring;
        assert_eq!((named.score.as_deref(), named.probabilities.as_deref()), (Some("y"), Some("p")));
        let one =
            parse(&json!({"outputs": role, "score": "y[1]", "classes": ["ok", "wear"]})).expect("one value of it");
        assert_eq!(one.scoring.score.as_deref(), Some("y[1]"));
        let why = parse(&json!({"outputs": role, "score": "z"})).expect_err("two outputs");
        assert!(why.0.contains("`score` is `z`, and output `y` has the role `score`"), "{why}");
    }

    #[test]
    fn channels_of_inputs_and_the_state_are_read_and_wrong_ones_are_named() {
        let window = json!({"channels": ["a", "b", "c"], "length": 4});
        let of = |more: Value| parse(&json!({"window": window, "inputs": more}));
        let manifest = of(json!([{"name": "x", "channels": ["c", "a"]}, {"name": "y"}])).expect("two of three");
        assert_eq!(manifest.feeds, BTreeMap::from([("x".into(), vec!["c".into(), "a".into()])]));
        let why = of(json!([{"name": "x", "channels": ["d"]}])).expect_err("no such channel");
        assert!(why.0.contains("input `x`: the window has no channel `d`"), "{why}");
        assert!(of(json!([{"name": "x", "channels": []}])).is_err());
        assert_eq!(parse(&json!({})).expect("unsaid").state, None);
        assert_eq!(parse(&json!({"state": {}})).expect("none").state, Some(BTreeMap::new()));
        let why = parse(&json!({"state": {"h": "s", "c": "s"}})).expect_err("two into one");
        assert!(why.0.contains("outputs `c` and `h` go into one input, `s`"), "{why}");
    }

    #[test]
    fn words_of_the_score_are_read_and_wrong_ones_are_named() {
        let low =
            json!({"score": "s", "direction": "low", "reduce": "rms", "calibration": {"windows": 10, "factor": 2.0}});
        let manifest = parse(&low).expect("valid");
        assert_eq!((manifest.scoring.direction, manifest.scoring.reduce), (Direction::Low, Some(Reduce::Rms)));
        assert!(manifest.calibration.is_some_and(|cal| cal.features.is_none()));
        for (wrong, word) in [
            (json!({"direction": "down"}), "down"),
            (json!({"reduce": "median"}), "median"),
            (json!({"classes": ["ok", "ok"]}), "`classes`: `ok` occurs twice"),
            (json!({"score": "y", "reconstruction": "y"}), "`reconstruction`: does not go with `score`"),
        ] {
            let why = parse(&wrong).expect_err("wrong");
            assert!(why.0.contains(word), "{why}");
        }
    }
}
