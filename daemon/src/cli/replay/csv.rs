//! Any CSV with a header as a sensor: which separator, which column is the clock, which are numbers; and the
//! configuration that maps its columns by name.

use std::{
    fmt::Write,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use crate::{
    config::{Config, TimeFormat},
    error::{Context, Fatal},
    model::manifest::Manifest,
    signal::parse_time,
};

/// What a file looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Separator.
    pub delimiter: u8,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Place of the clock and how it is written.
    pub time: Option<(usize, TimeFormat)>,
    /// Which columns hold numbers.
    pub numbers: Vec<bool>,
    /// The file's name, for messages.
    pub file: String,
}

/// Where a made configuration reads from and sends to.
#[derive(Debug, Clone)]
pub struct Place {
    /// The port.
    pub tty: PathBuf,
    /// The broker's port on this machine, if there is one.
    pub broker: Option<u16>,
    /// State directory and where the configuration is written.
    pub folder: PathBuf,
    /// The device's name in topics.
    pub device: &'static str,
    /// Its D-Bus.
    pub bus: String,
}

impl Place {
    /// For replay: no port and no broker; the configuration is written into this folder.
    pub fn replay(folder: &Path) -> Self {
        Self { tty: "/dev/null".into(), broker: None, folder: folder.to_owned(), device: "replay", bus: "off".into() }
    }
}

impl Shape {
    /// Reads the header and the first row.
    pub fn read(file: &Path) -> Result<Self, Fatal> {
        let what = || format!("read {}", file.display());
        let mut lines = BufReader::new(std::fs::File::open(file).context(what())?).lines();
        let mut line = || lines.next().transpose().context(what()).map(Option::unwrap_or_default);
        let (header, row) = (line()?, line()?);
        let count = |d: u8| header.bytes().filter(|b| *b == d).count();
        let delimiter = [b',', b';', b'\t'].into_iter().max_by_key(|d| count(*d)).unwrap_or(b',');
        if count(delimiter) == 0 || row.is_empty() {
            return Err(Fatal::failed(format!(
                "{}: it needs a header of several columns and at least one row",
                what()
            )));
        }
        let split = |line: &str| line.split(char::from(delimiter)).map(|f| f.trim().to_owned()).collect::<Vec<_>>();
        let (columns, fields) = (split(header.trim_start_matches('\u{feff}')), split(&row));
        if columns.len() != fields.len() {
            let (a, b) = (columns.len(), fields.len());
            return Err(Fatal::failed(format!("{}: the header has {a} columns and the first row {b}", what())));
        }
        let named = |name: &str| ["time", "timestamp", "datetime", "date"].contains(&name.to_lowercase().as_str());
        let format = |field: &str| match field.parse::<f64>() {
            Ok(seconds) if seconds < 1e11 => TimeFormat::Unit(1_000_000_000),
            Ok(millis) if millis < 1e14 => TimeFormat::Unit(1_000_000),
            Ok(_) => TimeFormat::Unit(1),
            Err(_) => TimeFormat::Civil,
        };
        let time = columns.iter().position(|name| named(name)).map(|at| (at, format(&fields[at])));
        let time = time.filter(|(at, format)| parse_time(&fields[*at], format).is_some());
        let numbers = fields.iter().map(|field| field.parse::<f64>().is_ok()).collect();
        Ok(Self { delimiter, columns, time, numbers, file: file.display().to_string() })
    }

    /// A configuration for the file: its number columns as channels; with the model where it has the model's channels,
    /// as measurements in any case.
    pub fn config(&self, model: &Path, place: &Place) -> Result<Config, Fatal> {
        let text = self.toml(model, place)?;
        let what = || format!("make a configuration for {}", self.file);
        let file = place.folder.join("kentledge.toml");
        std::fs::write(&file, text).context(what())?;
        Config::load(Some(&file)).map_err(|problems| Fatal::problems(&problems))
    }

    fn toml(&self, model: &Path, place: &Place) -> Result<String, Fatal> {
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        let path = |path: &Path| quote(&path.display().to_string());
        let list = |names: &[String]| names.iter().map(|n| quote(n)).collect::<Vec<_>>().join(", ");
        let mut out = format!(
            "[device]\nsite = \"demo\"\nid = \"{}\"\nstate_dir = {}\nbus = {}\n\n[metrics]\ninterval_s = 1\n",
            place.device,
            path(&place.folder.join("state")),
            quote(&place.bus)
        );
        if let Some(port) = place.broker {
            let _ = write!(out, "\n[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\n");
        }
        let _ = write!(
            out,
            "\n[source.{}]\npath = {}\ndelimiter = {}\ncolumns = [{}]\nframe_max_bytes = 8192\n",
            place.device,
            path(&place.tty),
            quote(&char::from(self.delimiter).to_string()),
            list(&self.columns)
        );
        if let Some((at, format)) = &self.time {
            let word = match format {
                TimeFormat::Civil | TimeFormat::Patterns(_) => "civil",
                TimeFormat::Unit(1_000_000_000) => "s",
                TimeFormat::Unit(1_000_000) => "ms",
                TimeFormat::Unit(1_000) => "us",
                TimeFormat::Unit(_) => "ns",
            };
            let _ = writeln!(out, "time = {}\ntime_format = \"{word}\"", quote(&self.columns[*at]));
        }
        if let Some(seq) = self.columns.iter().find(|name| *name == "seq") {
            let _ = writeln!(out, "seq = {}", quote(seq));
        }
        let special = |i: usize| self.time.as_ref().is_some_and(|(at, _)| *at == i) || self.columns[i] == "seq";
        let channels: Vec<(String, &String)> = (0..self.columns.len())
            .filter(|i| self.numbers[*i] && !special(*i))
            .map(|i| (slug(&self.columns[i]), &self.columns[i]))
            .collect();
        for (name, column) in &channels {
            let _ = write!(out, "\n[channel.{name}]\ncolumn = {}\n", quote(column));
        }
        let names: Vec<String> = channels.into_iter().map(|(name, _)| name).collect();
        let _ =
            write!(out, "\n[stream.signals]\nchannels = [{}]\nmode = \"stats\"\ninterval_ms = 1000\n", list(&names));
        let manifest = Manifest::read(model).map_err(Fatal::failed)?;
        if manifest.channels.iter().flatten().all(|needed| names.contains(needed)) {
            let model = std::fs::canonicalize(model).context(format!("use model {}", model.display()))?;
            let _ = write!(
                out,
                "\n[models]\nallow_unsigned = true\n\n[pipeline.anomaly]\nmodel = {}\n\n\
                 [alarm.anomaly]\npipeline = \"anomaly\"\nseverity = \"warning\"\n",
                path(&model)
            );
        } else {
            let needed: Vec<_> = manifest.channels.into_iter().flatten().collect();
            tracing::warn!(
                "{} lacks a channel of the model ({}); it is published as measurements only",
                self.file,
                needed.join(", ")
            );
        }
        Ok(out)
    }
}

/// A column's name as a topic segment: `Volume Flow RateRMS` → `volume_flow_raterms`.
pub fn slug(column: &str) -> String {
    let word: String =
        column.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).take(60).collect();
    let word = word.trim_matches('_').to_owned();
    if word.is_empty() { "column".into() } else { word }
}
