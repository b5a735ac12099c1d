//! Reads and bounds the arguments of each command. Pure. The shapes are those of `docs/schema/dn.args.*.json`.

use std::path::PathBuf;

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    request::{Command, Install, Refusal, base64, malformed, time_ms},
    system::{From, InstallSystem},
};
use crate::{flow::order::LogQuery, limits};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InstallArgs {
    sha256: String,
    size: u64,
    url: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InstallSystemArgs {
    sha256: String,
    size: u64,
    url: Option<String>,
    file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollBackArgs {
    model: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysetArgs {
    keyset: String,
    signatures: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArgs {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigSetArgs {
    pub toml: String,
    pub confirm_s: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigChangeArgs {
    toml: String,
    confirm_s: Option<u64>,
    mode: Option<String>,
    if_digest: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigGetArgs {
    layer: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CalibrateArgs {
    pipeline: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AcknowledgeArgs {
    alarm: String,
    id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EraseArgs {
    confirm: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogArgs {
    unit: Option<String>,
    since: Option<String>,
    until: Option<String>,
    priority: Option<u8>,
    lines: Option<u32>,
}

pub(super) fn read_args(kind: &str, args: &str) -> Result<Command, Refusal> {
    fn args_of<T: DeserializeOwned>(text: &str) -> Result<T, Refusal> {
        serde_json::from_str(text).map_err(|why| malformed(format!("args: {why}")))
    }
    if !args.starts_with('{') {
        return Err(malformed("args: no JSON object"));
    }
    let none = |command| args_of::<NoArgs>(args).map(|_| command);
    match kind {
        "ping" => none(Command::Ping),
        "status" => none(Command::Status),
        "report" => none(Command::Report),
        "restart" => none(Command::Restart),
        "reboot" => none(Command::Reboot),
        "erase" => args_of(args).map(|EraseArgs { confirm }| Command::Erase { confirm }),
        "model.calibrate" => args_of(args).map(|CalibrateArgs { pipeline }| Command::Calibrate { pipeline }),
        "alarm.ack" => args_of(args).map(|AcknowledgeArgs { alarm, id }| Command::Acknowledge { alarm, id }),
        "config.get" => match args_of::<ConfigGetArgs>(args)?.layer.as_deref() {
            None | Some("merged") => Ok(Command::ConfigGet { merged: true }),
            Some("remote") => Ok(Command::ConfigGet { merged: false }),
            Some(other) => Err(malformed(format!("args: invalid layer `{other}`: expected `merged` or `remote`"))),
        },
        "config.set" => {
            let ConfigChangeArgs { toml, confirm_s, mode, if_digest } = args_of(args)?;
            let ConfigSetArgs { toml, confirm_s } = bounded(ConfigSetArgs { toml, confirm_s })?;
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
            Ok(Command::ConfigSet { toml, confirm_s, merge, if_digest })
        }
        "model.install" => install(args_of(args)?).map(Command::Install),
        "model.rollback" => args_of(args).map(|RollBackArgs { model }| Command::RollBack { model }),
        "keyset.update" => {
            let KeysetArgs { keyset, signatures } = args_of(args)?;
            let text = |sig: &String| base64(sig).and_then(|bytes| String::from_utf8(bytes).ok());
            let minisigs: Option<Vec<String>> = signatures.iter().map(text).collect();
            let minisigs = minisigs.ok_or_else(|| malformed("args: a signature is no base64 of a .minisig file"))?;
            Ok(Command::Keyset { text: keyset, minisigs })
        }
        "log.pull" => log_query(args_of(args)?).map(Command::LogPull),
        "os.install" => install_system(args_of(args)?).map(Command::InstallSystem),
        other => Err(malformed(format!("args: nothing is known of `{other}`"))),
    }
}

pub(super) fn bounded(args: ConfigSetArgs) -> Result<ConfigSetArgs, Refusal> {
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

fn install_system(args: InstallSystemArgs) -> Result<InstallSystem, Refusal> {
    wanted(&args.sha256, args.size, limits::SYSTEM_BYTES_MAX, args.url.as_ref())?;
    let from = match (args.url, args.file) {
        (Some(url), None) => From::Https(url),
        (None, Some(path)) if path.is_absolute() => From::File(path),
        _ => return Err(malformed("args: either `url` or `file`, an absolute path")),
    };
    Ok(InstallSystem { sha256: args.sha256, size: args.size, from })
}

fn install(args: InstallArgs) -> Result<Install, Refusal> {
    wanted(&args.sha256, args.size, limits::BUNDLE_BYTES_MAX, args.url.as_ref())?;
    Ok(Install { sha256: args.sha256, size: args.size, url: args.url })
}

fn log_query(args: LogArgs) -> Result<LogQuery, Refusal> {
    let unit = args.unit.unwrap_or_else(|| "kentledge.service".into());
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"@._:-".contains(&b);
    if unit.is_empty() || unit.len() > 128 || unit.starts_with('-') || !unit.bytes().all(ok) {
        return Err(malformed(format!("args: `{unit}` is no unit")));
    }
    let (priority, lines) = (args.priority.unwrap_or(6), args.lines.unwrap_or(200));
    if priority > 7 || !(1..=1000).contains(&lines) {
        return Err(malformed("args: priority is 0 to 7, lines 1 to 1000"));
    }
    let time = |text: Option<String>| text.as_deref().map(time_ms).transpose();
    Ok(LogQuery { unit, since_ms: time(args.since)?, until_ms: time(args.until)?, priority, lines })
}
