//! Every command, in one table: its name, its arguments, whether it needs a signature, what handles it, and a help text.
//!
//! To add a command: a type for its arguments with `Args` below, one row in the table, its handler in `handlers.rs` (which
//! returns actions, see `action.rs`), `docs/schema/dn.args.NAME.json` and a row in `docs/reference/commands.md`. A test compares
//! the table with both.

use std::path::PathBuf;

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    Control,
    action::Call,
    request::{Refusal, base64, malformed, time_ms},
    system::{From, InstallSystem},
};
use crate::{flow::order::LogQuery, limits};

/// The command is signed with a key of the keyset for commands.
pub const SIGNED: bool = true;
/// Any client that may publish to the topic may send it.
pub const UNSIGNED: bool = false;

/// The arguments of a command.
pub trait Args: Sized {
    /// Reads them from the text of a JSON object, and checks their bounds.
    ///
    /// # Errors
    /// They have another shape, or are out of bounds.
    fn read(text: &str) -> Result<Self, Refusal>;
}

/// One row of the table.
pub struct Row {
    /// The type of the command, as in its topic.
    pub name: &'static str,
    /// It needs a signature.
    pub signed: bool,
    /// What it does, in one sentence.
    pub help: &'static str,
    read: fn(&str) -> Result<Command, Refusal>,
}

macro_rules! commands {
    ($($name:literal $variant:ident($args:ty) $signed:ident $handler:path, $help:literal;)*) => {
        /// A command with its arguments.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Command {
            $(#[doc = $help] $variant($args),)*
        }

        /// The table.
        pub const TABLE: &[Row] = &[$(Row {
            name: $name,
            signed: $signed,
            help: $help,
            read: |text| <$args>::read(text).map(Command::$variant),
        },)*];

        impl Command {
            /// Hands it to its handler, which pushes what is to be done.
            pub(super) fn handle(self, control: &mut Control, call: Call) {
                match self {
                    $(Self::$variant(args) => $handler(control, call, args),)*
                }
            }
        }
    };
}

commands! {
    "ping"            Ping(NoArgs)                  UNSIGNED Control::ping,           "Returns version and boot.";
    "status"          Status(NoArgs)                UNSIGNED Control::status,         "Returns the status document.";
    "report"          Report(NoArgs)                UNSIGNED Control::publish_report, "Publishes `up/reported` again.";
    "config.set"      ConfigSet(ConfigSet)          SIGNED   Control::config_set,     "Replaces or merges the remote layer.";
    "config.get"      ConfigGet(ConfigGet)          UNSIGNED Control::config_get,     "Returns all layers, or the remote one.";
    "model.install"   Install(Install)              SIGNED   Control::model_install,  "Installs a model bundle.";
    "model.rollback"  RollBack(RollBack)            SIGNED   Control::model_rollback, "Rolls back to the previous model.";
    "model.calibrate" Calibrate(Calibrate)          SIGNED   Control::calibrate,      "Learns again what is normal.";
    // It can switch an output off.
    "alarm.ack"       Acknowledge(Acknowledge)      SIGNED   Control::acknowledge,    "Acknowledges a latched alarm.";
    "os.install"      InstallSystem(InstallSystem)  SIGNED   Control::os_install,     "Installs another operating system.";
    "log.pull"        LogPull(LogQuery)             SIGNED   Control::log_pull,       "Returns a part of the journal.";
    "restart"         Restart(NoArgs)               SIGNED   Control::restart,        "Ends the process; systemd starts it again.";
    "reboot"          Reboot(NoArgs)                SIGNED   Control::reboot,         "Restarts the machine.";
    "erase"           Erase(Erase)                  SIGNED   Control::erase,          "Erases /data.";
    // The keyset itself is signed, by more keys than one command could be.
    "keyset.update"   Keyset(KeysetUpdate)          UNSIGNED Control::keyset_update,  "Replaces the keyset by its successor.";
}

/// The row of a command.
pub fn row(kind: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == kind)
}

/// Whether this type needs a signature.
pub fn needs_signature(kind: &str) -> bool {
    row(kind).is_some_and(|row| row.signed)
}

/// Reads a command of this type.
pub(super) fn read(row: &Row, args: &str) -> Result<Command, Refusal> {
    if !args.starts_with('{') {
        return Err(malformed("args: no JSON object"));
    }
    (row.read)(args)
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Refusal> {
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
            (Some(url), None) => From::Https(url),
            (None, Some(path)) if path.is_absolute() => From::File(path),
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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_command_of_the_table_has_a_schema_and_a_row_in_the_docs_and_nothing_else_has() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let page = fs::read_to_string(docs.join("reference/commands.md")).expect("docs/reference/commands.md");
        for row in TABLE {
            assert!(docs.join(format!("schema/dn.args.{}.json", row.name)).is_file(), "{} has no schema", row.name);
            assert!(
                page.contains(&format!("| `{}`", row.name)),
                "docs/reference/commands.md has no row for {}",
                row.name
            );
            assert!(row.help.ends_with('.'), "{}: the help is a sentence", row.name);
        }
        let schemas = fs::read_dir(docs.join("schema")).expect("docs/schema").flatten();
        let schemas = schemas.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix("dn.args.")?.strip_suffix(".json").map(str::to_owned)
        });
        assert_eq!(schemas.filter(|name| row(name).is_none()).collect::<Vec<_>>(), Vec::<String>::new());
    }

    #[test]
    fn arguments_out_of_bounds_are_malformed() {
        let digest = "a".repeat(64);
        for (kind, args) in [
            ("ping", r#"[]"#.to_owned()),
            ("config.get", r#"{"layer":"local"}"#.into()),
            ("config.set", r#"{"toml":"","confirm_s":5}"#.into()),
            ("config.set", r#"{"toml":"","mode":"patch"}"#.into()),
            ("config.set", r#"{"toml":"","if_digest":"sha256:1"}"#.into()),
            ("model.install", r#"{"sha256":"A","size":1}"#.into()),
            ("model.install", format!(r#"{{"sha256":"{digest}","size":0}}"#)),
            ("model.install", format!(r#"{{"sha256":"{digest}","size":1,"url":"http://a"}}"#)),
            ("os.install", format!(r#"{{"sha256":"{digest}","size":1}}"#)),
            ("os.install", format!(r#"{{"sha256":"{digest}","size":1,"file":"a"}}"#)),
            ("log.pull", r#"{"unit":"-x"}"#.into()),
            ("log.pull", r#"{"lines":0}"#.into()),
            ("keyset.update", r#"{"keyset":"","signatures":["%"]}"#.into()),
        ] {
            let refused = row(kind).map(|row| read(row, &args));
            assert!(matches!(refused, Some(Err(Refusal(super::super::request::Why::Malformed, _)))), "{kind} {args}");
        }
    }
}
