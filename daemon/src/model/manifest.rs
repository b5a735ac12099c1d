//! What a model says of itself: `manifest.json` beside it. Signing and the rest of the bundle come with a later issue;
//! the fields read here are the same there.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

/// In which order a window's values stand in the input tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[…, steps, channels]`
    StepsFirst,
    /// `[…, channels, steps]`
    ChannelsFirst,
}

/// How a model is fitted to its machine without shipping anybody's data.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Windows learnt from.
    pub windows: usize,
    /// Output whose running statistics are taken.
    pub features: String,
    /// Input that gets their mean.
    pub center: Option<String>,
    /// Input that gets their standard deviation.
    pub scale: Option<String>,
    /// Threshold = factor × the largest score of the windows learnt from.
    pub factor: f64,
    /// Least standard deviation of each feature (from the channel's resolution); one value serves all.
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
    /// Time grid.
    pub step_ms: Option<u64>,
    /// A longer step between rows is a gap.
    pub gap_max_ms: Option<u64>,
    /// Input that takes the window; `None`: the only one not bound otherwise.
    pub input: Option<String>,
    /// Order of its values; `None`: read from its shape.
    pub layout: Option<Layout>,
    /// Inputs with fixed values.
    pub params: BTreeMap<String, Vec<f64>>,
    /// Output that is the score; `None`: an output called `score`, else the first.
    pub score: Option<String>,
    /// How it is fitted.
    pub calibration: Option<Calibration>,
    /// A fixed threshold.
    pub threshold: Option<f32>,
    /// Alarms clear below this share of their level.
    pub clear_factor: Option<f32>,
    /// One window may take this long.
    pub deadline_ms: u64,
}

/// A second is three orders of magnitude above what small models take on a board.
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
}

#[derive(Deserialize)]
struct File {
    name: String,
}

#[derive(Deserialize)]
struct Io {
    name: String,
    role: Option<String>,
    layout: Option<Layout>,
    values: Option<Vec<f64>>,
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
    /// What is known of a file without a manifest: nothing but its name.
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
            params: BTreeMap::new(),
            score: None,
            calibration: None,
            threshold: None,
            clear_factor: None,
            deadline_ms: DEADLINE_MS,
        }
    }

    /// Reads `manifest.json` in a folder.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join("manifest.json");
        let text = std::fs::read(&path).map_err(|why| format!("read {}: {why}", path.display()))?;
        let json: Json = serde_json::from_slice(&text).map_err(|why| format!("read {}: {why}", path.display()))?;
        let onnx = json.files.iter().find(|file| file.name.ends_with(".onnx"));
        let file = onnx.ok_or_else(|| format!("{}: names no .onnx file", path.display()))?.name.clone();
        if file.contains(['/', '\\']) {
            return Err(format!("{}: file `{file}` must lie beside the manifest", path.display()));
        }
        let input = json.inputs.iter().find(|io| io.role.as_deref() == Some("window"));
        let score = json.outputs.iter().find(|io| io.role.as_deref() == Some("score"));
        let window = json.window.as_ref();
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
            params: json.inputs.iter().filter_map(|io| Some((io.name.clone(), io.values.clone()?))).collect(),
            score: score.map(|io| io.name.clone()),
            calibration: json.calibration,
            threshold: json.thresholds.as_ref().and_then(|t| t.raise),
            clear_factor: json.thresholds.as_ref().and_then(|t| t.clear_factor),
            deadline_ms: json.deadline_ms.unwrap_or(DEADLINE_MS).clamp(1, 60_000),
        })
    }
}
