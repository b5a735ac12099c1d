//! The configuration as the daemon uses it: valid, with defaults and resolved names. `raw` has its shape on
//! disk, `layers` the files it comes from, and `build` makes one from the other and reports every problem.

mod advice;
mod alarm;
mod bindings;
mod build;
mod certs;
mod changes;
mod elsewhere;
mod error;
mod escalate;
mod fields;
mod format;
mod groups;
mod hints;
mod integrations;
mod layers;
mod layouts;
mod modbus;
mod models;
mod mqtt;
mod names;
mod nmea;
mod number;
mod origin;
mod output;
mod parts;
mod paths;
mod pipeline;
mod poll;
mod port;
mod problem;
mod raw;
mod samples;
mod source;
mod standard;
mod text;
mod threshold;

#[cfg(test)]
mod messages_tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use alarm::{After, Alarm, Clear, Condition, Watches};
pub use certs::{identity, roots};
pub use changes::{Changes, merge};
pub use error::SettingError;
pub use escalate::{Band, Escalate};
pub use groups::{group_of, groups};
pub use integrations::Integrations;
pub use layers::Layer;
pub use modbus::{Bus, Manners, Modbus, Read, RegisterColumn, RegisterRow, Registers};
pub use models::PROVIDERS;
pub use mqtt::{Broker, Mqtt, Proxy, Tls, host_and_port};
pub use nmea::{FieldAt, Nmea, Reading, Sentence, SentenceValue};
pub use number::{Base, NumberText, Word};
pub use output::{Output, Point, Target};
pub use paths::secret;
pub use port::{
    Bias, Block, Check, CheckKind, Field, Format, Framing, Gpio, GpioLine, GpioRead, Layout, Line, Number, Order, Pin,
    PinName, Poll, Port, Serial, Source, Sysfs, SysfsClass,
};
pub use problem::{Problem, nearest};
pub use samples::Samples;
pub use standard::{FieldRule, FieldTest};
pub use text::{BlockCheck, BlockForm, KeyValue, LineCheck, LineForm, Pattern, Span, time_pattern};

use crate::{flow::SourceId, model::manifest::Manifest};

/// A valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Identity of the device and its state directory.
    pub device: Device,
    /// The broker; without it the daemon runs and stores.
    pub mqtt: Option<Mqtt>,
    /// Ports, by index `SourceId`.
    pub sources: Vec<Source>,
    /// Channels; each belongs to one source.
    pub channels: Vec<Channel>,
    /// Channels published as measurements.
    pub streams: Vec<Stream>,
    /// Windows that go through a model.
    pub pipelines: Vec<Pipeline>,
    /// Alarms on channels and scores.
    pub alarms: Vec<Alarm>,
    /// Lines, coils and registers that alarms drive.
    pub outputs: Vec<Output>,
    /// Tapes that alarms save of the sources.
    pub tapes: Tapes,
    /// Windows that are kept for training.
    pub samples: Samples,
    /// The store's settings.
    pub outbox: Outbox,
    /// Where ONNX Runtime is, and which models may run.
    pub models: Models,
    /// Remote commands.
    pub commands: Commands,
    /// Health messages and the metrics port.
    pub metrics: Metrics,
    /// What is published for other programs.
    pub integrations: Integrations,
    /// The layers it was read from, in order.
    pub layers: Vec<Layer>,
    /// Why the remote layer does not validate and is not in use.
    pub set_aside: Vec<String>,
    /// Why a provision.toml was rejected.
    pub not_provisioned: Option<String>,
}

/// `[device]`
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// First part of the topic.
    pub site: String,
    /// Second part of the topic. If the configuration has none, it is empty until `Config::named`.
    pub id: String,
    /// Folder for everything that outlives the process.
    pub state_dir: PathBuf,
    /// Cohorts: groups of devices that share commands.
    pub cohorts: Vec<String>,
    /// Device class, as bundles name it; empty: not configured.
    pub class: String,
    /// The D-Bus of the daemon: `system`, `session`, or an address; `None`: none.
    pub bus: Option<String>,
}

impl Default for Device {
    fn default() -> Self {
        let (site, id, class) = (String::new(), String::new(), String::new());
        Self { site, id, class, state_dir: "/data/kentledge".into(), cohorts: Vec::new(), bus: Some("system".into()) }
    }
}

/// `[commands]`
#[derive(Debug, Clone, PartialEq)]
pub struct Commands {
    /// The file with the keys that may sign commands; `None`: no signed command is accepted.
    pub keyset: Option<PathBuf>,
    /// For tests: commands need no signature.
    pub allow_unsigned: bool,
    /// Deadline to confirm a change that could cut the device off, s; after it the change is rolled back.
    pub confirm_s: u64,
    /// Deadline for another operating system to reach the broker after its start, s; after it the system is rolled back.
    pub os_confirm_s: u64,
    /// Devices that get a command together start it within this, s.
    pub jitter_s: u64,
    /// Rollout plans are obeyed.
    pub plans: bool,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Interval of health messages, s.
    pub interval_s: u64,
    /// Address of the metrics port.
    pub listen: Option<std::net::SocketAddr>,
}

/// The format of a sensor's clock.
#[derive(Debug, Clone, PartialEq)]
pub enum TimeFormat {
    /// A number of units; nanoseconds per unit.
    Unit(u64),
    /// `2020-03-09 10:14:33` or RFC 3339; taken as UTC where it has no offset.
    Civil,
    /// Patterns of strptime, the first that fits; taken as UTC where it has no offset.
    Patterns(Vec<String>),
}

/// `[channel.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct Channel {
    /// Name.
    pub name: String,
    /// Its source.
    pub source: SourceId,
    /// Column name, label, or JSON key or path.
    pub column: String,
    /// Engineering unit, free text.
    pub unit: String,
    /// value = raw × scale + offset.
    pub scale: f64,
    /// See `scale`.
    pub offset: f64,
    /// Lowest plausible value.
    pub min: Option<f64>,
    /// Highest plausible value.
    pub max: Option<f64>,
    /// Fastest plausible change, units a second.
    pub rate_max_per_s: Option<f64>,
    /// A value that does not change for so long is stuck, ms.
    pub stuck_ms: Option<u64>,
    /// A change within this counts as none, units.
    pub stuck_band: f64,
    /// How its text becomes a number.
    pub numbers: NumberText,
}

/// `[stream.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// Name; published under `up/m/NAME`.
    pub name: String,
    /// Indices of channels, all of one source.
    pub channels: Vec<usize>,
    /// The source of these channels.
    pub source: SourceId,
    /// Which rows are published.
    pub mode: StreamMode,
}

/// The rows that a stream publishes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StreamMode {
    /// Every row.
    Raw,
    /// Every n-th row.
    Decimate(u32),
    /// Minimum, mean and maximum of each interval, ms.
    Stats(u64),
}

/// `[pipeline.NAME]`, merged with the model's manifest.
#[derive(Debug, Clone, PartialEq)]
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
    /// The effect of a bad sample or a gap on a window.
    pub on_bad: OnBad,
    /// Minimum coverage of a flagged window for inference, 0–1.
    pub coverage_min: f32,
    /// The model.
    pub model: Model,
    /// A score above this is an anomaly; `None`: from the model's manifest, from calibration, or none.
    pub threshold: Option<f32>,
    /// In its place: false alarms a week, from which the device learns one.
    pub budget: Option<f64>,
    /// Outputs published beside the score.
    pub outputs: Vec<String>,
    /// Publish the digest of the window's values.
    pub lineage_full: bool,
    /// Run the model once before a window is due, where that pays.
    pub warm_up: bool,
    /// Which windows go to a larger model elsewhere; `None`: none ever does.
    pub escalate: Option<Escalate>,
}

/// The effect of a bad sample or a gap on a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OnBad {
    /// The window is dropped and counted.
    Drop,
    /// The last good value is held, and the window carries its coverage.
    Flag,
    /// As `Flag`, for at most so many rows; longer gaps as `Drop`.
    Hold(u32),
}

/// A model file and its manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The bundle, or the ONNX file; empty: a bundle is to be installed first.
    pub file: PathBuf,
    /// Its manifest, or one made from the configuration for a bare file.
    pub manifest: Manifest,
    /// The sequence of the bundle: nothing older is installed, or serves. 0: not signed.
    pub floor: u64,
    /// Its signatures were not verified.
    pub unsigned: bool,
    /// SHA-256 of the bundle's manifest.json as it was read with the configuration, hex; empty: it is no bundle.
    pub manifest_sha256: String,
}

/// `[tapes]`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tapes {
    /// Seconds before the alarm.
    pub before_s: u64,
    /// Seconds after the alarm.
    pub after_s: u64,
    /// Memory for compressed rows, bytes.
    pub ring_bytes: usize,
    /// Maximum number of saved tapes; the oldest is deleted first.
    pub kept: usize,
}

/// `[outbox]`
#[derive(Debug, Clone, PartialEq)]
pub struct Outbox {
    /// Maximum size of stored messages, bytes.
    pub max_bytes: u64,
    /// Replies expire after so many hours.
    pub expire_reply_h: u64,
    /// Health, quality and losses expire after so many hours.
    pub expire_status_h: u64,
    /// Predictions and measurements expire after so many hours; 0: never.
    pub expire_data_h: u64,
    /// Rate of the backlog, KiB/s; 0: unlimited.
    pub backlog_kib_s: u64,
    /// How long a live record may wait for others of its stream, so that they share a message, ms; 0: not at all.
    pub linger_ms: u64,
}

/// `[models]`
#[derive(Debug, Clone, PartialEq)]
pub struct Models {
    /// ONNX Runtime's library; `None`: searched in the usual places.
    pub runtime: Option<PathBuf>,
    /// Bare files and unsigned bundles may run.
    pub allow_unsigned: bool,
    /// Execution providers, the best first; empty: those of the model's manifest, else the processor.
    pub providers: Vec<String>,
    /// One of the providers must run the model; otherwise the processor is the fallback.
    pub require: bool,
    /// Plugins and options, by provider.
    pub provider: BTreeMap<String, Provider>,
    /// Releases of this channel are installed.
    pub channel: String,
    /// Certificates that may sign a server that bundles are fetched from; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Memory limit of a worker, bytes.
    pub memory_bytes: u64,
    /// A candidate runs beside the serving model for at least this long before it serves.
    pub shadow_s: u64,
    /// Minimum duration of a trial.
    pub trial_s: u64,
    /// Minimum number of windows of a trial.
    pub trial_windows: u64,
}

/// An execution provider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provider {
    /// `cpu`, `openvino`, `cuda`, …, or the name of a plugin.
    pub name: String,
    /// The vendor's library.
    pub plugin: Option<PathBuf>,
    /// Options of the provider.
    pub options: BTreeMap<String, String>,
}

impl Provider {
    /// The processor.
    pub fn cpu() -> Self {
        Self { name: "cpu".into(), plugin: None, options: BTreeMap::new() }
    }
}

impl Models {
    /// The providers to try for a model, in this order.
    pub fn providers_for(&self, manifest: &Manifest) -> Vec<Provider> {
        let wanted = if self.providers.is_empty() { &manifest.providers } else { &self.providers };
        let find = |name: &String| match self.provider.get(name) {
            Some(provider) => provider.clone(),
            None => Provider { name: name.clone(), ..Provider::cpu() },
        };
        let mut all: Vec<Provider> = wanted.iter().map(find).collect();
        if all.is_empty() || !self.require && all.iter().all(|p| p.name != "cpu") {
            all.push(Provider::cpu());
        }
        all
    }
}

/// The file of the remote layer, below the state directory.
pub fn remote_file(state_dir: &Path) -> PathBuf {
    state_dir.join("config").join("remote.toml")
}

impl Config {
    /// The local configuration: `file`, or the layers of the image and of the administrator. On
    /// failure every problem is returned.
    pub fn local(file: Option<&Path>) -> Result<Self, Vec<Problem>> {
        Self::provisioned(layers::local(file))
    }

    /// One file alone, without the layer of the first boot: for tools of the operator.
    ///
    /// # Errors
    /// Every problem of it.
    pub fn only(file: &Path) -> Result<Self, Vec<Problem>> {
        build::build(&[Layer::Local(file.to_owned())])
    }

    /// The same without the folders of the image and the administrator: only the provisioned layer.
    pub fn local_in(state_dir: &Path) -> Result<Self, Vec<Problem>> {
        let provision = state_dir.join("provision").join("kentledge.toml");
        build::build(&[Layer::Local(provision)])
    }

    /// The defaults: the configuration without any file.
    pub fn unwritten() -> Result<Self, Vec<Problem>> {
        build::build(&[])
    }

    /// Adds the layer of the first boot.
    fn provisioned(mut layers: Vec<Layer>) -> Result<Self, Vec<Problem>> {
        let config = build::build(&layers)?;
        let provision = config.device.state_dir.join("provision").join("kentledge.toml");
        if !provision.exists() {
            return Ok(config);
        }
        layers.push(Layer::Local(provision));
        build::build(&layers)
    }

    /// Adds the remote layer, if it validates. A remote layer must never prevent a start, because an older daemon
    /// may meet a newer key.
    pub fn load(file: Option<&Path>) -> Result<Self, Vec<Problem>> {
        let local = Self::local(file)?;
        let mut why = Vec::new();
        for name in ["remote.toml", "previous"] {
            let path = local.device.state_dir.join("config").join(name);
            if !path.exists() {
                // Without a remote layer there is no previous one either.
                return Ok(Self { set_aside: why, ..local });
            }
            match local.with(Layer::Remote(path)) {
                Ok(config) => return Ok(Self { set_aside: why, ..config }),
                Err(problems) => why.extend(problems.iter().map(ToString::to_string)),
            }
        }
        Ok(Self { set_aside: why, ..local })
    }

    /// This configuration with another remote layer, or without one.
    pub fn with_remote(&self, text: Option<&str>) -> Result<Self, Vec<Problem>> {
        let mut layers = self.local_layers();
        layers.extend(text.map(|text| Layer::Given(text.to_owned())));
        // A device with a generated name keeps it.
        let config = build::build(&layers)?.named(&self.device.id);
        Ok(Self { not_provisioned: self.not_provisioned.clone(), ..config })
    }

    /// The merged configuration as JSON.
    pub fn written(&self) -> serde_json::Value {
        layers::json(&layers::read(&self.layers, &mut problem::Problems::default()))
    }

    /// The position of a key such as `pipeline.x.model`; if it is absent, of the nearest table around it.
    pub fn at(&self, key: &str) -> problem::At {
        let mut node = layers::read(&self.layers, &mut problem::Problems::default());
        for part in key.split('.') {
            let raw::Value::Table(map) = &node.value else { break };
            let Some(inner) = map.get(part).cloned() else { break };
            node = inner;
        }
        node.at
    }

    fn with(&self, layer: Layer) -> Result<Self, Vec<Problem>> {
        let mut layers = self.local_layers();
        layers.push(layer);
        build::build(&layers)
    }

    fn local_layers(&self) -> Vec<Layer> {
        self.layers.iter().filter(|layer| matches!(layer, Layer::Local(_))).cloned().collect()
    }

    /// Sets the device's name, if the configuration has none.
    pub fn named(mut self, id: &str) -> Self {
        if self.device.id.is_empty() {
            id.clone_into(&mut self.device.id);
        }
        if let Some(mqtt) = self.mqtt.as_mut().filter(|mqtt| mqtt.client_id.is_empty()) {
            mqtt.client_id = format!("kl-{}-{}", self.device.site, self.device.id);
        }
        self
    }

    /// Whether a change to `other` could make the device unreachable.
    pub fn could_cut_off(&self, other: &Self) -> bool {
        let own = self.mqtt != other.mqtt || self.device != other.device || self.commands != other.commands;
        // A broker may close on topics that it forbids.
        own || self.integrations != other.integrations
    }

    /// Whether `other` differs only in the connection to the broker.
    pub fn differs_in_link_only(&self, other: &Self) -> bool {
        let same = Self {
            mqtt: self.mqtt.clone(),
            layers: self.layers.clone(),
            set_aside: self.set_aside.clone(),
            ..other.clone()
        };
        self.mqtt.is_some() && other.mqtt.is_some() && *self == same
    }

    /// The channels of one source, as indices.
    pub fn channels_of(&self, source: SourceId) -> Vec<usize> {
        (0..self.channels.len()).filter(|i| self.channels[*i].source == source).collect()
    }

    /// By source: its queue in the frame lane. Sources that meet in one pipeline share a queue, because they are needed in the
    /// order of arrival.
    pub fn lots(&self) -> Vec<usize> {
        let mut lots: Vec<usize> = (0..self.sources.len()).collect();
        for pipeline in &self.pipelines {
            let of: Vec<usize> =
                pipeline.channels.iter().map(|c| lots[usize::from(self.channels[*c].source.0)]).collect();
            let Some(first) = of.iter().min().copied() else { continue };
            lots.iter_mut().filter(|lot| of.contains(lot)).for_each(|lot| *lot = first);
        }
        lots
    }
}
