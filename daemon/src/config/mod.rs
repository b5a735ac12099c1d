//! The configuration as the daemon uses it: valid, defaults filled in, names resolved to indices. `raw` is its shape on
//! disk, `layers` which files it comes from, `build` turns one into the other and finds every problem on the way.

mod build;
mod layers;
mod pipeline;
mod problem;
mod raw;

use std::path::{Path, PathBuf};

pub use problem::Problem;

use crate::{flow::SourceId, model::manifest::Manifest};

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who this device is and where it keeps its state.
    pub device: Device,
    /// The broker; without it the daemon runs and keeps.
    pub mqtt: Option<Mqtt>,
    /// Ports, by index `SourceId`.
    pub sources: Vec<Source>,
    /// Channels; each belongs to one source.
    pub channels: Vec<Channel>,
    /// Channels published as measurements.
    pub streams: Vec<Stream>,
    /// Windows that go through a model.
    pub pipelines: Vec<Pipeline>,
    /// Alarms on scores.
    pub alarms: Vec<Alarm>,
    /// The store's settings.
    pub outbox: Outbox,
    /// Where ONNX Runtime is, and which models may run.
    pub models: Models,
    /// How often health is published, s.
    pub health_s: u64,
    /// Layers under /data that did not validate and are not in use, each with its first problem.
    pub set_aside: Vec<String>,
}

/// `[device]`
#[derive(Debug, Clone)]
pub struct Device {
    /// First part of the topic.
    pub site: String,
    /// Second part of the topic.
    pub id: String,
    /// Folder for everything that outlives the process.
    pub state_dir: PathBuf,
}

/// `[mqtt]`
#[derive(Debug, Clone)]
pub struct Mqtt {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS, with what it needs; `None` is plain text.
    pub tls: Option<Tls>,
    /// User name.
    pub username: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// Seconds of silence after which a ping is sent.
    pub keep_alive_s: u64,
    /// CBOR instead of JSON.
    pub cbor: bool,
    /// Client id.
    pub client_id: String,
}

/// TLS files, PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificates that may sign the broker's; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// `[source.NAME]`
#[derive(Debug, Clone)]
pub struct Source {
    /// Name.
    pub name: String,
    /// The port.
    pub serial: Serial,
    /// What a frame looks like.
    pub format: Format,
    /// Column or key with the sensor's own sequence number.
    pub seq: Option<String>,
    /// Column or key with the sensor's own clock, and how it is written.
    pub time: Option<(String, TimeFormat)>,
    /// No frame for this long makes its channels stale.
    pub stale_ms: u64,
}

/// One serial port's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Serial {
    /// Path of the device node, best a stable one under /dev/serial.
    pub path: String,
    /// Bits per second.
    pub baud: u32,
    /// `8N1` and its relatives.
    pub line: Line,
    /// Longest frame, bytes.
    pub frame_max: usize,
}

/// Bits of a character, as `8N1` writes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// 5–8.
    pub data: u8,
    /// `N`, `E` or `O`.
    pub parity: u8,
    /// 1 or 2.
    pub stop: u8,
}

impl Line {
    /// Reads `8N1`; `None` if it is no such word.
    pub fn parse(text: &str) -> Option<Self> {
        match *text.as_bytes() {
            [d @ b'5'..=b'8', p @ (b'N' | b'E' | b'O'), s @ (b'1' | b'2')] => {
                Some(Self { data: d - b'0', parity: p, stop: s - b'0' })
            }
            _ => None,
        }
    }
}

/// What a frame looks like.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// Separated values.
    Csv {
        /// Separator.
        delimiter: u8,
        /// Names of all columns, in order.
        columns: Vec<String>,
    },
    /// One JSON object a line; keys are columns.
    Json,
}

/// How a sensor writes its clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TimeFormat {
    /// A number; this many nanoseconds each.
    Unit(u64),
    /// `2020-03-09 10:14:33` or RFC 3339; taken as UTC where it has no offset.
    Civil,
}

/// `[channel.NAME]`
#[derive(Debug, Clone)]
pub struct Channel {
    /// Name.
    pub name: String,
    /// Where it comes from.
    pub source: SourceId,
    /// Column name or JSON key.
    pub column: String,
    /// Engineering unit, free text.
    pub unit: String,
    /// value = raw × scale + offset.
    pub scale: f64,
    /// See `scale`.
    pub offset: f64,
    /// Least value that can be true.
    pub min: Option<f64>,
    /// Largest value that can be true.
    pub max: Option<f64>,
}

/// `[stream.NAME]`
#[derive(Debug, Clone)]
pub struct Stream {
    /// Name; published under `up/m/NAME`.
    pub name: String,
    /// Indices of channels, all of one source.
    pub channels: Vec<usize>,
    /// That source.
    pub source: SourceId,
    /// What is published of them.
    pub mode: StreamMode,
}

/// What a stream publishes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StreamMode {
    /// Every row.
    Raw,
    /// Every n-th row.
    Decimate(u32),
    /// Least, mean and largest of each interval, ms.
    Stats(u64),
}

/// `[pipeline.NAME]`, joined with what the model's manifest says.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Name; published under `up/p/NAME`.
    pub name: String,
    /// Indices of channels, in the model's order.
    pub channels: Vec<usize>,
    /// Rows of a window.
    pub steps: usize,
    /// Rows from one window to the next.
    pub hop: usize,
    /// Time grid, ms; `None`: rows as they come.
    pub step_ms: Option<u64>,
    /// How long a sample may be late on the grid, ms.
    pub late_ms: u64,
    /// A step above this between two rows is a gap, ms.
    pub gap_max_ms: Option<u64>,
    /// What a bad sample or a gap does to a window.
    pub on_bad: OnBad,
    /// Least coverage of a flagged window that is still inferred, 0–1.
    pub coverage_min: f32,
    /// The model.
    pub model: Model,
    /// Score above this is an anomaly; `None`: from calibration, or none.
    pub threshold: Option<f32>,
    /// Outputs published beside the score.
    pub outputs: Vec<String>,
    /// Publish the digest of the window's values.
    pub lineage_full: bool,
}

/// What a bad sample or a gap does to a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OnBad {
    /// The window is dropped and counted.
    Drop,
    /// The last good value is held and the window carries its coverage.
    Flag,
}

/// A model file and how it is fed.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The ONNX file.
    pub file: PathBuf,
    /// What it says of itself, or what the configuration says for a bare file.
    pub manifest: Manifest,
}

/// `[alarm.NAME]`
#[derive(Debug, Clone)]
pub struct Alarm {
    /// Name; published under `up/a/NAME`.
    pub name: String,
    /// Index of the pipeline whose score it watches.
    pub pipeline: usize,
    /// `info`, `warning` or `critical`.
    pub severity: &'static str,
    /// Raised above this; `None`: above the score's threshold.
    pub raise_above: Option<f32>,
    /// Cleared below this share of the raising level.
    pub clear_factor: f32,
    /// Windows in a row above the level before it is raised.
    pub raise_windows: u32,
    /// After a change the next one is held off for this long, ms.
    pub hold_off_ms: u64,
}

/// `[outbox]`
#[derive(Debug, Clone)]
pub struct Outbox {
    /// Cap of what is kept, bytes of sealed messages.
    pub max_bytes: u64,
    /// Replies are of use for so many hours.
    pub expire_reply_h: u64,
    /// Health, quality and losses are.
    pub expire_status_h: u64,
    /// Predictions and measurements are; 0: for ever.
    pub expire_data_h: u64,
    /// How fast what was kept is sent, KiB/s; 0: as fast as it goes.
    pub backlog_kib_s: u64,
}

/// `[models]`
#[derive(Debug, Clone)]
pub struct Models {
    /// ONNX Runtime's library; `None`: looked for in the usual places.
    pub runtime: Option<PathBuf>,
    /// Bare files and unsigned bundles may run.
    pub allow_unsigned: bool,
}

impl Config {
    /// Reads `file`, or the three layers where none is given. On failure every problem is returned.
    pub fn load(file: Option<&Path>) -> Result<Self, Vec<Problem>> {
        if let Some(file) = file {
            return build::build(&[file.to_owned()], build::Trust::Local);
        }
        let mut files = layers::files_in(Path::new(layers::VENDOR));
        files.extend(layers::files_in(Path::new(layers::ADMIN)));
        let data = layers::files_in(Path::new(layers::DATA));
        if data.is_empty() {
            return build::build(&files, build::Trust::Local);
        }
        let with_data: Vec<PathBuf> = files.iter().chain(&data).cloned().collect();
        match build::build(&with_data, build::Trust::Remote) {
            Ok(config) => Ok(config),
            // What was set remotely must never keep the daemon from starting: an older daemon may meet a newer key.
            Err(problems) => {
                let mut config = build::build(&files, build::Trust::Local)?;
                config.set_aside = problems.iter().map(ToString::to_string).collect();
                Ok(config)
            }
        }
    }

    /// The channels of one source, as indices.
    pub fn channels_of(&self, source: SourceId) -> Vec<usize> {
        (0..self.channels.len()).filter(|i| self.channels[*i].source == source).collect()
    }
}
