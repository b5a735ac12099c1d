//! The configuration as the daemon uses it: valid, defaults filled in, names resolved to indices. `raw` is its shape on
//! disk, `layers` which files it comes from, `build` turns one into the other and finds every problem on the way.

mod build;
mod certs;
mod changes;
mod layers;
mod layouts;
mod models;
mod paths;
mod pipeline;
mod port;
mod problem;
mod raw;
mod source;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use changes::{Changes, merge};
pub use layers::Layer;
pub use paths::secret;
pub use port::{
    Bias, Bus, Check, CheckKind, Field, Format, Framing, Gpio, GpioLine, GpioRead, Layout, Line, Modbus, Number, Order,
    Output, Pin, PinName, Poll, Port, Read, Registers, Sentence, Serial, Source, Sysfs, SysfsClass,
};
pub use problem::Problem;

use crate::{flow::SourceId, model::manifest::Manifest};

/// A valid configuration.
#[derive(Debug, Clone, PartialEq)]
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
    /// Lines that alarms drive.
    pub outputs: Vec<Output>,
    /// What alarms save of the sources.
    pub tapes: Tapes,
    /// The store's settings.
    pub outbox: Outbox,
    /// Where ONNX Runtime is, and which models may run.
    pub models: Models,
    /// What may be asked of the device from afar.
    pub commands: Commands,
    /// How it tells how it is.
    pub metrics: Metrics,
    /// What it was read from, in order.
    pub layers: Vec<Layer>,
    /// Why the layer that was set remotely does not validate and is not in use.
    pub set_aside: Vec<String>,
    /// Why a provision.toml was not taken over.
    pub not_provisioned: Option<String>,
}

/// `[device]`
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// First part of the topic.
    pub site: String,
    /// Second part of the topic; empty until `Config::named`, where nobody gave one.
    pub id: String,
    /// Folder for everything that outlives the process.
    pub state_dir: PathBuf,
    /// Groups of devices this one obeys with.
    pub cohorts: Vec<String>,
    /// What kind of board it is, as bundles name it; empty: not said.
    pub class: String,
    /// The D-Bus we are on: `system`, `session`, or an address; `None`: none.
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
    /// Whose signatures count; `None`: nobody's.
    pub keyset: Option<PathBuf>,
    /// For the bench: commands need no signature.
    pub allow_unsigned: bool,
    /// A change that could cut the device off is confirmed within this, or put back.
    pub confirm_s: u64,
    /// Another operating system reaches the broker within this after its start, or is left, s.
    pub os_confirm_s: u64,
    /// Devices that are asked together begin within this.
    pub jitter_s: u64,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// How often health is published.
    pub interval_s: u64,
    /// Where Prometheus may ask.
    pub listen: Option<std::net::SocketAddr>,
}

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// Certificates that may sign the broker's; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain and key.
    pub client: Option<(PathBuf, PathBuf)>,
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
#[derive(Debug, Clone, PartialEq)]
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
    /// Fastest change that can be true, units a second.
    pub rate_max_per_s: Option<f64>,
    /// A value that has not moved for so long is stuck, ms.
    pub stuck_ms: Option<u64>,
    /// What counts as not moved: within this, units.
    pub stuck_band: f64,
}

/// `[stream.NAME]`
#[derive(Debug, Clone, PartialEq)]
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
    /// What a bad sample or a gap does to a window.
    pub on_bad: OnBad,
    /// Least coverage of a flagged window that is still inferred, 0–1.
    pub coverage_min: f32,
    /// The model.
    pub model: Model,
    /// Score above this is an anomaly; `None`: as the model's manifest says, from calibration, or none.
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
    /// The last good value is held for so many rows at most, and the window carries its coverage; beyond, as `Drop`.
    Hold(u32),
}

/// A model file and how it is fed.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The bundle, or the ONNX file; empty: a bundle is to be installed first.
    pub file: PathBuf,
    /// What it says of itself, or what the configuration says for a bare file.
    pub manifest: Manifest,
    /// The sequence of the bundle: nothing older is installed, or serves. 0: nobody signed it.
    pub floor: u64,
    /// Its signatures were not looked at.
    pub unsigned: bool,
}

/// `[alarm.NAME]`
#[derive(Debug, Clone, PartialEq)]
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
    /// It saves what the sources delivered before it and after it.
    pub tape: bool,
}

/// `[tapes]`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tapes {
    /// Seconds before the alarm.
    pub before_s: u64,
    /// And after it.
    pub after_s: u64,
    /// Packed bytes in memory.
    pub ring_bytes: usize,
    /// Tapes that are kept; the oldest leaves first.
    pub kept: usize,
}

/// `[outbox]`
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, PartialEq)]
pub struct Models {
    /// ONNX Runtime's library; `None`: looked for in the usual places.
    pub runtime: Option<PathBuf>,
    /// Bare files and unsigned bundles may run.
    pub allow_unsigned: bool,
    /// What is to run models, the best first; empty: as the model's manifest says, else the processor.
    pub providers: Vec<String>,
    /// One of them must run it; otherwise the processor does where none can.
    pub require: bool,
    /// Plugins and options, by provider.
    pub provider: BTreeMap<String, Provider>,
    /// Releases of this channel are installed.
    pub channel: String,
    /// Certificates that may sign a server that bundles are fetched from; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Memory a worker may take, bytes.
    pub memory_bytes: u64,
    /// A new model runs beside the old one for at least this long before it serves.
    pub shadow_s: u64,
    /// A new model is on trial for at least this long.
    pub trial_s: u64,
    /// And for so many windows.
    pub trial_windows: u64,
}

/// What runs a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provider {
    /// `cpu`, `openvino`, `cuda`, …, or the name of a plugin.
    pub name: String,
    /// A vendor's library.
    pub plugin: Option<PathBuf>,
    /// Handed to it.
    pub options: BTreeMap<String, String>,
}

impl Provider {
    /// The processor.
    pub fn cpu() -> Self {
        Self { name: "cpu".into(), plugin: None, options: BTreeMap::new() }
    }
}

impl Models {
    /// What is tried for a model, in this order.
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

/// The file that is set remotely, below the state directory.
pub fn remote_file(state_dir: &Path) -> PathBuf {
    state_dir.join("config").join("remote.toml")
}

impl Config {
    /// What someone with the device in hand wrote: `file`, or the layers of the image and of the administrator. On
    /// failure every problem is returned.
    pub fn local(file: Option<&Path>) -> Result<Self, Vec<Problem>> {
        Self::provisioned(layers::local(file))
    }

    /// The same for a device nobody wrote a file on.
    pub fn local_in(state_dir: &Path) -> Result<Self, Vec<Problem>> {
        let provision = state_dir.join("provision").join("kentledge.toml");
        build::build(&[Layer::Local(provision)])
    }

    /// Nothing written: what holds unless somebody says otherwise.
    pub fn unwritten() -> Result<Self, Vec<Problem>> {
        build::build(&[])
    }

    /// With what was taken over at the first boot laid over it.
    fn provisioned(mut layers: Vec<Layer>) -> Result<Self, Vec<Problem>> {
        let config = build::build(&layers)?;
        let provision = config.device.state_dir.join("provision").join("kentledge.toml");
        if !provision.exists() {
            return Ok(config);
        }
        layers.push(Layer::Local(provision));
        build::build(&layers)
    }

    /// The same with what was set remotely laid over it, where that validates: what was set remotely must never keep
    /// the daemon from starting, for an older daemon may meet a newer key.
    pub fn load(file: Option<&Path>) -> Result<Self, Vec<Problem>> {
        let local = Self::local(file)?;
        let mut why = Vec::new();
        for name in ["remote.toml", "previous"] {
            let path = local.device.state_dir.join("config").join(name);
            if !path.exists() {
                // A device that has never been set remotely has no previous state of that either.
                return Ok(Self { set_aside: why, ..local });
            }
            match local.with(Layer::Remote(path)) {
                Ok(config) => return Ok(Self { set_aside: why, ..config }),
                Err(problems) => why.extend(problems.iter().map(ToString::to_string)),
            }
        }
        Ok(Self { set_aside: why, ..local })
    }

    /// This configuration with another remote layer, or with none.
    pub fn with_remote(&self, text: Option<&str>) -> Result<Self, Vec<Problem>> {
        let mut layers = self.local_layers();
        layers.extend(text.map(|text| Layer::Given(text.to_owned())));
        // A device that named itself keeps that name.
        let config = build::build(&layers)?.named(&self.device.id);
        Ok(Self { not_provisioned: self.not_provisioned.clone(), ..config })
    }

    /// What is written, all layers laid over one another, as JSON.
    pub fn written(&self) -> serde_json::Value {
        layers::json(&layers::read(&self.layers, &mut problem::Problems::default()))
    }

    /// Where a key such as `pipeline.x.model` was written; for one that was not, the nearest table around it.
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

    /// Gives the device its name, where the configuration does not.
    pub fn named(mut self, id: &str) -> Self {
        if self.device.id.is_empty() {
            id.clone_into(&mut self.device.id);
        }
        if let Some(mqtt) = self.mqtt.as_mut().filter(|mqtt| mqtt.client_id.is_empty()) {
            mqtt.client_id = format!("kl-{}-{}", self.device.site, self.device.id);
        }
        self
    }

    /// Whether a device that goes over to `other` might not be reached any more.
    pub fn could_cut_off(&self, other: &Self) -> bool {
        self.mqtt != other.mqtt || self.device != other.device || self.commands != other.commands
    }

    /// Whether `other` differs in nothing but the connection to the broker.
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

    /// By source: its place in the frame lane. Sources that meet in one pipeline share one, for they are needed in the
    /// order in which they arrive.
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
