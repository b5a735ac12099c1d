//! The configuration that is made for a file, or for the simulated pump: all columns as measurements, and the model where
//! its channels are there.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use crate::{
    config::{Config, Format, Source, TimeFormat},
    error::{Context, Fatal},
    model::manifest::Manifest,
};

/// What a configuration is made of.
#[derive(Debug, Clone)]
pub struct Made {
    /// Where the rows come from, for messages.
    pub file: String,
    /// Separator of the rows.
    pub delimiter: char,
    /// The clock's column, which is the first, and its format.
    pub time: (String, &'static str),
    /// The column of the sensor's own numbers, which is the second.
    pub seq: Option<String>,
    /// The other columns in their order: name and unit.
    pub channels: Vec<(String, String)>,
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

/// Makes a source read rows as they are played.
pub(super) fn as_played(source: &mut Source, time: &str, columns: Vec<String>) {
    source.format = Format::Csv { delimiter: b'\t', columns };
    source.time = Some((time.to_owned(), TimeFormat::Unit(1)));
    source.date = None;
}

fn quote(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    serde_json::Value::from(text).to_string()
}

impl Made {
    /// Writes the configuration and reads it.
    ///
    /// # Errors
    /// Where the model cannot be read or the configuration cannot be written.
    pub fn config(&self, model: &Path, place: &Place) -> Result<Config, Fatal> {
        let text = self.toml(model, place)?;
        let what = || format!("make a configuration for {}", self.file);
        let file = place.folder.join("kentledge.toml");
        std::fs::write(&file, text).context(what())?;
        // Its lines mean nothing to the user, who has never seen it.
        Config::load(Some(&file)).map_err(|problems| {
            let list: Vec<String> =
                problems.iter().map(|problem| format!("{}: {}", problem.key, problem.why)).collect();
            Fatal::failed(format!("{}: {}", what(), list.join("; ")))
        })
    }

    fn toml(&self, model: &Path, place: &Place) -> Result<String, Fatal> {
        let path = |path: &Path| quote(&path.display().to_string());
        let list = |names: &[&String]| names.iter().map(|n| quote(n)).collect::<Vec<_>>().join(", ");
        let names: Vec<&String> = self.channels.iter().map(|(name, _)| name).collect();
        let columns: Vec<&String> = [&self.time.0].into_iter().chain(&self.seq).chain(names.iter().copied()).collect();
        let mut out = format!(
            "[device]\nsite = \"demo\"\nid = \"{}\"\nstate_dir = {}\nbus = {}\n\n[metrics]\ninterval_s = 1\n",
            place.device,
            path(&place.folder.join("state")),
            quote(&place.bus)
        );
        if let Some(port) = place.broker {
            let _ = write!(out, "\n[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\n");
        }
        let delimiter = if self.delimiter == '\t' { "\\t".into() } else { self.delimiter.to_string() };
        let _ = write!(
            out,
            "\n[source.{}]\npath = {}\ndelimiter = \"{delimiter}\"\ncolumns = [{}]\ntime = {}\ntime_format = \"{}\"\n\
             frame_max_bytes = 65536\n",
            place.device,
            path(&place.tty),
            list(&columns),
            quote(&self.time.0),
            self.time.1
        );
        if let Some(seq) = &self.seq {
            let _ = writeln!(out, "seq = {}", quote(seq));
        }
        for (name, unit) in &self.channels {
            let _ = write!(out, "\n[channel.{name}]\ncolumn = {}\nunit = {}\n", quote(name), quote(unit));
        }
        let _ =
            write!(out, "\n[stream.signals]\nchannels = [{}]\nmode = \"stats\"\ninterval_ms = 1000\n", list(&names));
        self.model(&mut out, model)?;
        Ok(out)
    }

    /// The pipeline with the model, where the file has its channels.
    fn model(&self, out: &mut String, model: &Path) -> Result<(), Fatal> {
        let manifest = Manifest::read(model).map_err(|why| Fatal::failed(why.to_string()))?;
        if manifest.channels.iter().flatten().all(|needed| self.channels.iter().any(|(name, _)| name == needed)) {
            let model = std::fs::canonicalize(model).context(format!("use model {}", model.display()))?;
            let _ = write!(
                out,
                "\n[models]\nallow_unsigned = true\n\n[pipeline.anomaly]\nmodel = {}\n\n\
                 [alarm.anomaly]\npipeline = \"anomaly\"\nseverity = \"warning\"\n",
                quote(&model.display().to_string())
            );
        } else {
            let needed: Vec<_> = manifest.channels.into_iter().flatten().collect();
            tracing::warn!(
                "{} lacks a channel of the model `{}` ({}); it is played as measurements only, unless `--model` names another one",
                self.file,
                manifest.model,
                needed.join(", ")
            );
        }
        Ok(())
    }
}
