//! The arguments of commands: their shapes and bounds. Pure.

use std::path::PathBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::refusal::{Refusal, base64, malformed, time_ms};
use crate::{flow::order::LogQuery, limits};

/// The arguments of a command.
pub trait Args: Sized {
    /// Reads them from the text of a JSON object, and checks their bounds.
    ///
    /// # Errors
    /// They have another shape, or are out of bounds.
    fn read(text: &str) -> Result<Self, Refusal>;
}

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Refusal> {
    serde_json::from_str(text).map_err(|why| malformed(format!("args: {why}")))
}

/// No arguments.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoArgs {}

impl Args for NoArgs {
    fn read(text: &str) -> Result<Self, Refusal> {
        parse(text)
    }
}

/// Arguments of `config.get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigGet {
    /// All layers, merged.
    Merged,
    /// The remote layer.
    Remote,
}

impl Args for ConfigGet {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            layer: Option<String>,
        }
        match parse::<Raw>(text)?.layer.as_deref() {
            None | Some("merged") => Ok(Self::Merged),
            Some("remote") => Ok(Self::Remote),
            Some(other) => Err(malformed(format!("args: invalid layer `{other}`: expected `merged` or `remote`"))),
        }
    }
}

/// Arguments of `config.set`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigSet {
    /// TOML.
    pub toml: String,
    /// Seconds until it is rolled back unless confirmed.
    pub confirm_s: Option<u64>,
    /// Merge into the remote layer, instead of replacing it.
    pub merge: bool,
    /// Only if this is the digest of the remote layer; `none`: only without a remote layer.
    pub if_digest: Option<String>,
}

impl Args for ConfigSet {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            toml: String,
            confirm_s: Option<u64>,
            mode: Option<String>,
            if_digest: Option<String>,
        }
        let Raw { toml, confirm_s, mode, if_digest } = parse(text)?;
        let Layer { toml, confirm_s } = bounded(Layer { toml, confirm_s })?;
        let merge = match mode.as_deref() {
            None | Some("replace") => false,
            Some("merge") => true,
            Some(other) => {
                return Err(malformed(format!("args: invalid mode `{other}`: expected `merge` or `replace`")));
            }
        };
        let digest = |text: &String| {
            let hex = text.strip_prefix("sha256:").unwrap_or("");
            text == "none" || hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !if_digest.as_ref().is_none_or(digest) {
            return Err(malformed("args: if_digest is `sha256:` with 64 of 0-9 a-f, or `none`"));
        }
        Ok(Self { toml, confirm_s, merge, if_digest })
    }
}

/// A remote layer as `config.set` and `dn/desired` carry it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    /// TOML.
    pub toml: String,
    /// Seconds until it is rolled back unless confirmed.
    pub confirm_s: Option<u64>,
}

/// Arguments of `model.calibrate`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrate {
    /// Name of the pipeline.
    pub pipeline: String,
}

impl Args for Calibrate {
    fn read(text: &str) -> Result<Self, Refusal> {
        parse(text)
    }
}

/// Arguments of `alarm.ack`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acknowledge {
    /// Name of the alarm.
    pub alarm: String,
    /// Only this episode.
    pub id: Option<String>,
}

impl Args for Acknowledge {
    fn read(text: &str) -> Result<Self, Refusal> {
        parse(text)
    }
}

/// Arguments of `audit.pull`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditPull {
    /// Number of the first entry; 0: the oldest there is.
    #[serde(default)]
    pub from: u64,
}

impl Args for AuditPull {
    fn read(text: &str) -> Result<Self, Refusal> {
        parse(text)
    }
}

/// Arguments of `erase`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erase {
    /// SITE/DEVICE.
    pub confirm: String,
}

impl Args for Erase {
    fn read(text: &str) -> Result<Self, Refusal> {
        parse(text)
    }
}

/// Arguments of `model.rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// The model; needed if there are several.
    pub model: Option<String>,
}

impl Args for RollBack {
    fn read(text: &str) -> Result<Self, Refusal> {
        parse(text)
    }
}

/// Arguments of `keyset.update`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysetUpdate {
    /// The next keyset.
    pub text: String,
    /// Its signatures, each the text of a `.minisig` file.
    pub minisigs: Vec<String>,
}

impl Args for KeysetUpdate {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            keyset: String,
            signatures: Vec<String>,
        }
        let Raw { keyset, signatures } = parse(text)?;
        let text = |sig: &String| base64(sig).and_then(|bytes| String::from_utf8(bytes).ok());
        let minisigs: Option<Vec<String>> = signatures.iter().map(text).collect();
        let minisigs = minisigs.ok_or_else(|| malformed("args: a signature is no base64 of a .minisig file"))?;
        Ok(Self { text: keyset, minisigs })
    }
}

/// Arguments of `model.install`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// SHA-256 of the whole bundle.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// `https://…`; `None`: chunks come by MQTT.
    pub url: Option<String>,
}

impl Args for Install {
    fn read(text: &str) -> Result<Self, Refusal> {
        let install: Self = parse(text)?;
        wanted(&install.sha256, install.size, limits::BUNDLE_BYTES_MAX, install.url.as_ref())?;
        Ok(install)
    }
}

/// Arguments of `os.install`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallSystem {
    /// SHA-256 of the whole bundle.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Where it is.
    pub from: BundleFrom,
}

/// Where a bundle is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BundleFrom {
    /// `https://…`
    Https(String),
    /// On this machine.
    File(PathBuf),
}

impl Args for InstallSystem {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            sha256: String,
            size: u64,
            url: Option<String>,
            file: Option<PathBuf>,
        }
        let Raw { sha256, size, url, file } = parse(text)?;
        wanted(&sha256, size, limits::SYSTEM_BYTES_MAX, url.as_ref())?;
        let from = match (url, file) {
            (Some(url), None) => BundleFrom::Https(url),
            (None, Some(path)) if path.is_absolute() => BundleFrom::File(path),
            _ => return Err(malformed("args: either `url` or `file`, an absolute path")),
        };
        Ok(Self { sha256, size, from })
    }
}

impl Args for LogQuery {
    fn read(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            unit: Option<String>,
            since: Option<String>,
            until: Option<String>,
            priority: Option<u8>,
            lines: Option<u32>,
        }
        let Raw { unit, since, until, priority, lines } = parse(text)?;
        let unit = unit.unwrap_or_else(|| "kentledge.service".into());
        let ok = |b: u8| b.is_ascii_alphanumeric() || b"@._:-".contains(&b);
        if unit.is_empty() || unit.len() > 128 || unit.starts_with('-') || !unit.bytes().all(ok) {
            return Err(malformed(format!("args: `{unit}` is no unit")));
        }
        let (priority, lines) = (priority.unwrap_or(6), lines.unwrap_or(200));
        if priority > 7 || !(1..=1000).contains(&lines) {
            return Err(malformed("args: priority is 0 to 7, lines 1 to 1000"));
        }
        let time = |text: Option<String>| text.as_deref().map(time_ms).transpose();
        Ok(Self { unit, since_ms: time(since)?, until_ms: time(until)?, priority, lines })
    }
}

pub(super) fn bounded(args: Layer) -> Result<Layer, Refusal> {
    if args.toml.len() > limits::REMOTE_CONFIG_BYTES {
        let (is, most) = (args.toml.len(), limits::REMOTE_CONFIG_BYTES);
        return Err(malformed(format!("args: a configuration of {is} bytes is more than {most}")));
    }
    if args.confirm_s.is_some_and(|s| !(10..=3600).contains(&s)) {
        return Err(malformed("args: confirm_s is not within 10 to 3600"));
    }
    Ok(args)
}

/// Digest, size and URL of a bundle.
fn wanted(sha256: &str, size: u64, most: u64, url: Option<&String>) -> Result<(), Refusal> {
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if sha256.len() != 64 || !sha256.bytes().all(hex) {
        return Err(malformed("args: sha256 is 64 of 0-9 a-f"));
    }
    if size == 0 || size > most {
        return Err(malformed(format!("args: size is not within 1 to {most}")));
    }
    if url.is_some_and(|url| !url.starts_with("https://") || url.len() > limits::TOPIC_BYTES) {
        return Err(malformed("args: url begins with https:// and has 512 characters at most"));
    }
    Ok(())
}
