//! Parses a message into a request, or rejects it with a reason. Pure. The shapes are those of `docs/schema/dn.*.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{
    args::{Layer, bounded},
    command::{self, Command},
    refusal::{Refusal, Why, base64, issuer_and_number, malformed, shallow, time_ms},
};
use crate::{limits, model::file::hex};

/// The signature of a request, not verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The signed text.
    pub text: String,
    /// The `.minisig` file.
    pub minisig: String,
    /// The claimed issuer.
    pub issuer: String,
    /// The issuer's sequence.
    pub iseq: u64,
}

/// A well-formed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Type of the command.
    pub kind: String,
    /// Id of the command.
    pub id: String,
    /// The command with its arguments.
    pub command: Command,
    /// Digest of type and arguments: the same id with another digest is another command.
    pub digest: String,
    /// When it was signed, ms since 1970.
    pub issued_ms: Option<i64>,
    /// Expires at, ms since 1970.
    pub expires_ms: Option<i64>,
    /// The echoed nonce of `up/birth`.
    pub nonce: Option<String>,
    /// Its signature, if it has one.
    pub signed: Option<Signed>,
}

/// A desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Increases with each desired state.
    pub version: u64,
    /// The remote layer.
    pub toml: String,
    /// Seconds until it is rolled back unless confirmed.
    pub confirm_s: Option<u64>,
    /// When it was signed, ms since 1970.
    pub issued_ms: i64,
    /// Expires at, ms since 1970.
    pub expires_ms: Option<i64>,
    /// Its signature; `iseq` is the version.
    pub signed: Signed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    signed: String,
    sig: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain<'a> {
    id: String,
    issued: Option<String>,
    expires_at: Option<String>,
    nonce: Option<String>,
    #[serde(borrow)]
    args: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inner<'a> {
    v: u64,
    id: String,
    #[serde(rename = "type")]
    kind: String,
    to: String,
    issuer: String,
    iseq: u64,
    issued: String,
    expires_at: String,
    nonce: Option<String>,
    #[serde(borrow)]
    args: Option<&'a RawValue>,
}

/// A `dn/channel` message: the newest model releases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseChannel {
    /// Increases with each message.
    pub version: u64,
    /// When it was signed, ms since 1970.
    pub issued_ms: i64,
    /// Expires at, ms since 1970.
    pub expires_ms: i64,
    /// The newest sequence of each model.
    pub models: BTreeMap<String, u64>,
    /// Its signature; `iseq` is the version.
    pub signed: Signed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InnerChannel {
    v: u64,
    #[serde(rename = "type")]
    kind: String,
    to: String,
    issuer: String,
    version: u64,
    issued: String,
    expires_at: String,
    models: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InnerDesired {
    v: u64,
    #[serde(rename = "type")]
    kind: String,
    to: String,
    issuer: String,
    version: u64,
    issued: String,
    expires_at: Option<String>,
    config: Layer,
}

/// Rejects a payload that makes the parser panic: otherwise it would come again with each start.
///
/// # Errors
/// What `read` rejects; `malformed` for a panic.
pub fn guarded<T>(read: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    let read = read.unwrap_or_else(|_| Err(malformed("it cannot be read")));
    // The error text quotes the message of an untrusted sender: limit its length.
    read.map_err(|Refusal(why, text)| Refusal(why, text.chars().take(limits::RESULT_TEXT).collect()))
}

/// Whether a response may go to this topic: strictly below `kl/{site}/{device}/up/_r/`, printable ASCII without wildcards,
/// short. A broker closes the connection on some others. A response on a stream of the device would look like a record.
pub fn is_response_topic(device: &str, topic: &str) -> bool {
    let below = topic.strip_prefix("kl/").and_then(|rest| rest.strip_prefix(device)?.strip_prefix("/up/_r/"));
    topic.len() <= limits::TOPIC_BYTES
        && topic.split('/').count() <= limits::TOPIC_LEVELS
        && below.is_some_and(|below| {
            !below.is_empty()
                && below.split('/').all(|level| !level.is_empty())
                && below.bytes().all(|b| b.is_ascii_graphic() && !b"+#".contains(&b))
        })
}

/// Parses a message on `dn/cmd/{kind}/{id}` of `to` (`site/device`, `site/_all`, `site/_c-x`).
///
/// # Errors
/// Why it is rejected: shape, addressee, type, id, times or arguments.
pub fn command(to: &str, kind: &str, id: &str, payload: &[u8]) -> Result<Request, Refusal> {
    let text = checked(payload)?;
    let Some(row) = command::row(kind) else {
        return Err(Refusal(Why::Unsupported, format!("no command is called `{kind}`")));
    };
    let request = |args: Option<&RawValue>, (issued, expires): (Option<String>, Option<String>), nonce, signed| {
        let args = args.map_or("{}", RawValue::get);
        let digest = hex(&Sha256::digest(format!("{kind}\n{args}")));
        let (issued_ms, expires_ms) = lifetime(issued.as_deref(), expires.as_deref(), limits::COMMAND_LIFE_MS)?;
        let command = command::read(row, args)?;
        Ok(Request { kind: kind.into(), id: id.into(), command, digest, issued_ms, expires_ms, nonce, signed })
    };
    let Some((inner, minisig)) = unwrap(text)? else {
        let plain: Plain<'_> = serde_json::from_str(text).map_err(malformed)?;
        if plain.id != id {
            return Err(malformed(format!("its id is `{}`, the topic's is `{id}`", plain.id)));
        }
        return request(plain.args, (plain.issued, plain.expires_at), plain.nonce, None);
    };
    let fields: Inner<'_> = serde_json::from_str(&inner).map_err(malformed)?;
    for (what, signed, topic) in [("to", &fields.to, to), ("type", &fields.kind, kind), ("id", &fields.id, id)] {
        if signed != topic {
            let text = format!("signed for `{what}` `{signed}`, but sent to `{topic}`");
            return Err(Refusal(Why::NotAddressed, text));
        }
    }
    let signed = signature(fields.v, &inner, minisig, fields.issuer, fields.iseq)?;
    request(fields.args, (Some(fields.issued), Some(fields.expires_at)), fields.nonce, Some(signed))
}

/// Parses a message on `dn/desired` of `to`.
///
/// # Errors
/// Why it is rejected: shape, addressee or signature.
pub fn desired(to: &str, payload: &[u8]) -> Result<Desired, Refusal> {
    let text = checked(payload)?;
    let Some((inner, minisig)) = unwrap(text)? else {
        return Err(Refusal(Why::Unsigned, "a desired state needs a signature".into()));
    };
    let fields: InnerDesired = serde_json::from_str(&inner).map_err(malformed)?;
    addressed((&fields.kind, &fields.to), ("desired", to))?;
    let (_, expires_ms) = lifetime(Some(&fields.issued), fields.expires_at.as_deref(), limits::DESIRED_LIFE_MS)?;
    let issued_ms = time_ms(&fields.issued)?;
    let signed = signature(fields.v, &inner, minisig, fields.issuer, fields.version)?;
    let Layer { toml, confirm_s } = bounded(fields.config)?;
    Ok(Desired { version: fields.version, toml, confirm_s, issued_ms, expires_ms, signed })
}

/// Parses a message on `dn/channel` of `to`.
///
/// # Errors
/// Why it is rejected: shape, addressee or signature.
pub fn channel(to: &str, payload: &[u8]) -> Result<ReleaseChannel, Refusal> {
    let text = checked(payload)?;
    let Some((inner, minisig)) = unwrap(text)? else {
        return Err(Refusal(Why::Unsigned, "the channel's word needs a signature".into()));
    };
    let fields: InnerChannel = serde_json::from_str(&inner).map_err(malformed)?;
    addressed((&fields.kind, &fields.to), ("channel", to))?;
    lifetime(Some(&fields.issued), Some(&fields.expires_at), limits::CHANNEL_LIFE_MS)?;
    let (issued_ms, expires_ms) = (time_ms(&fields.issued)?, time_ms(&fields.expires_at)?);
    let signed = signature(fields.v, &inner, minisig, fields.issuer, fields.version)?;
    Ok(ReleaseChannel { version: fields.version, issued_ms, expires_ms, models: fields.models, signed })
}

/// Checks that the signed type and addressee are those of the topic.
fn addressed(signed: (&str, &str), sent: (&str, &str)) -> Result<(), Refusal> {
    if signed == sent {
        return Ok(());
    }
    let text = format!("signed as `{}` for `{}`, but sent as `{}` to `{}`", signed.0, signed.1, sent.0, sent.1);
    Err(Refusal(Why::NotAddressed, text))
}

/// Checks size, text and depth.
pub(super) fn checked(payload: &[u8]) -> Result<&str, Refusal> {
    if payload.len() > limits::COMMAND_BYTES {
        return Err(malformed(format!("{} bytes are more than {}", payload.len(), limits::COMMAND_BYTES)));
    }
    let text = std::str::from_utf8(payload).map_err(|_| malformed("it is not UTF-8"))?;
    shallow(text)?;
    Ok(text)
}

/// The inner text and the signature file of a signed message.
pub(super) fn unwrap(text: &str) -> Result<Option<(String, String)>, Refusal> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(malformed)?;
    if !object.contains_key("signed") && !object.contains_key("sig") {
        return Ok(None);
    }
    let Wrapped { signed, sig } = serde_json::from_str(text).map_err(malformed)?;
    shallow(&signed)?;
    let minisig = base64(&sig).and_then(|bytes| String::from_utf8(bytes).ok());
    let minisig = minisig.ok_or_else(|| malformed("`sig` is no base64 of a .minisig file"))?;
    Ok(Some((signed, minisig)))
}

fn signature(v: u64, text: &str, minisig: String, issuer: String, iseq: u64) -> Result<Signed, Refusal> {
    if v != 1 {
        return Err(Refusal(Why::Unsupported, format!("version {v} is not known here")));
    }
    issuer_and_number(&issuer, iseq)?;
    Ok(Signed { text: text.into(), minisig, issuer, iseq })
}

/// Reads when it was issued and when it expires; at most `most_ms` apart.
fn lifetime(issued: Option<&str>, expires: Option<&str>, most_ms: i64) -> Result<(Option<i64>, Option<i64>), Refusal> {
    let (issued, expires) = (issued.map(time_ms).transpose()?, expires.map(time_ms).transpose()?);
    if let (Some(issued), Some(expires)) = (issued, expires) {
        let life_ms = expires.saturating_sub(issued);
        if !(0..=most_ms).contains(&life_ms) {
            return Err(malformed(format!("it lives {} s; 0 to {} are allowed", life_ms / 1000, most_ms / 1000)));
        }
    }
    Ok((issued, expires))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
