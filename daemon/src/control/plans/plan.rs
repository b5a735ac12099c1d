//! What a plan is, how its signed text is read, and where a device stands in it. Pure, and public: `kentledge-fleet` makes
//! plans with it and refuses what devices would refuse.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::{
    control::{
        args::{Args, ConfigSet, Install, InstallSystem},
        refusal::{Refusal, Why, issuer_and_number, malformed, shallow, time_ms},
    },
    limits,
    model::file::hex,
};

/// What a plan brings: the command that a device runs for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `model.install`
    Model,
    /// `os.install`
    Os,
    /// `config.set`
    Config,
}

impl Kind {
    /// The type of the command.
    pub fn command(self) -> &'static str {
        match self {
            Self::Model => "model.install",
            Self::Os => "os.install",
            Self::Config => "config.set",
        }
    }
}

/// A wave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// Share of the devices in this wave and those before it, above 0 and up to 1.
    pub share: f64,
    /// SHA-256 of the secret that opens it, 64 hexadecimal digits.
    pub gate: String,
    /// So long it must have been open before the next one is, s.
    pub hold_s: u64,
}

/// Limits of a plan. The controller keeps to all but `spread_s`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Share of a wave that may fail.
    pub failed_max: f64,
    /// Share of a wave that may be offline.
    pub offline_max: f64,
    /// Devices that may run it at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_max: Option<u64>,
    /// The devices of a wave start within so many seconds.
    #[serde(default)]
    pub spread_s: u64,
}

/// A plan whose shape and bounds were checked. Its signature was not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Whom it is for: `site/device`, `site/_all` or `site/_c-cohort`.
    pub to: String,
    /// Name of the key that signed it.
    pub issuer: String,
    /// Its name.
    pub name: String,
    /// A higher one replaces a lower one of the same name.
    pub seq: u64,
    /// When it was signed, ms since 1970.
    pub issued_ms: i64,
    /// No start from then on, ms since 1970.
    pub expires_ms: i64,
    /// What it brings.
    pub kind: Kind,
    /// The arguments of the command, JSON.
    pub artifact: String,
    /// Makes the positions of this plan.
    pub seed: String,
    /// Waves, their shares grow.
    pub waves: Vec<Wave>,
    /// Limits.
    pub limits: Limits,
    /// A start needs so long a connection, s.
    pub freshness_s: u64,
    /// SHA-256 of the halt secret.
    pub halt: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw<'a> {
    v: u64,
    #[serde(rename = "type")]
    type_: String,
    to: String,
    issuer: String,
    name: String,
    seq: u64,
    issued: String,
    expires_at: String,
    kind: Kind,
    #[serde(borrow)]
    artifact: &'a RawValue,
    seed: String,
    waves: Vec<Wave>,
    limits: Limits,
    freshness_s: u64,
    halt: String,
}

/// The SHA-256 of a secret, as `gate` and `halt` of a plan write it.
pub fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret))
}

/// Whether this may be a secret: 32 to 128 printable ASCII characters without spaces.
pub fn is_secret(text: &str) -> bool {
    (32..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Position of a device (`site/device`) among those of a plan with this seed: from 0 to below 1.
pub fn position(seed: &str, device: &str) -> f64 {
    let digest = Sha256::digest(format!("{seed}\n{device}"));
    let first = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    // 53 bits: what an f64 holds exactly.
    (first >> 11) as f64 / (1u64 << 53) as f64
}

impl Plan {
    /// Reads and checks the signed text of a plan.
    ///
    /// # Errors
    /// Why no device would take it.
    pub fn read(text: &str) -> Result<Self, Refusal> {
        shallow(text)?;
        let raw: Raw<'_> = serde_json::from_str(text).map_err(malformed)?;
        let (issued_ms, expires_ms) = (time_ms(&raw.issued)?, time_ms(&raw.expires_at)?);
        let plan = Self {
            to: raw.to,
            issuer: raw.issuer,
            name: raw.name,
            seq: raw.seq,
            issued_ms,
            expires_ms,
            kind: raw.kind,
            artifact: raw.artifact.get().to_owned(),
            seed: raw.seed,
            waves: raw.waves,
            limits: raw.limits,
            freshness_s: raw.freshness_s,
            halt: raw.halt,
        };
        head(raw.v, (&raw.type_, "plan"), &plan.issuer, plan.seq)?;
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), Refusal> {
        let life_ms = self.expires_ms.saturating_sub(self.issued_ms);
        let seed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        let bad = if !is_name(&self.name) {
            format!("invalid name `{}`: expected a-z 0-9 . _ -, {} characters at most", self.name, limits::PLAN_NAME)
        } else if !(0..=limits::PLAN_LIFE_MS).contains(&life_ms) {
            let most_s = limits::PLAN_LIFE_MS / 1000;
            format!("it lives {} s; 0 to {most_s} are allowed", life_ms / 1000)
        } else if !(8..=64).contains(&self.seed.len()) || !self.seed.bytes().all(seed) {
            "`seed` has 8 to 64 characters of a-z 0-9 . _ -".into()
        } else if self.waves.is_empty() || self.waves.len() > limits::PLAN_WAVES {
            format!("a plan has 1 to {} waves", limits::PLAN_WAVES)
        } else if !self.waves.iter().all(|wave| wave.share > 0.0 && wave.share <= 1.0)
            || !self.waves.windows(2).all(|pair| pair[0].share < pair[1].share)
        {
            "`share` grows from wave to wave, above 0 and up to 1".into()
        } else if self.waves.iter().any(|wave| wave.hold_s > limits::PLAN_HOLD_S) {
            format!("`hold_s` is not within 0 to {}", limits::PLAN_HOLD_S)
        } else if !self.waves.iter().all(|wave| is_hash(&wave.gate)) || !is_hash(&self.halt) {
            "`gate` and `halt` are SHA-256, 64 of 0-9 a-f".into()
        } else if !(0.0..=1.0).contains(&self.limits.failed_max) || !(0.0..=1.0).contains(&self.limits.offline_max) {
            "`failed_max` and `offline_max` are not within 0 to 1".into()
        } else if self.limits.concurrent_max == Some(0) || self.limits.spread_s > limits::PLAN_SPREAD_S {
            format!("`concurrent_max` is 1 or more, `spread_s` within 0 to {}", limits::PLAN_SPREAD_S)
        } else if !(1..=limits::PLAN_FRESH_S).contains(&self.freshness_s) {
            format!("`freshness_s` is not within 1 to {}", limits::PLAN_FRESH_S)
        } else {
            let read = match self.kind {
                Kind::Model => Install::read(&self.artifact).map(drop),
                Kind::Os => InstallSystem::read(&self.artifact).map(drop),
                Kind::Config => ConfigSet::read(&self.artifact).map(drop),
            };
            return read.map_err(|Refusal(why, text)| Refusal(why, format!("artifact: {text}")));
        };
        Err(malformed(bad))
    }

    /// Id of that command: no command that is sent can have it, for it begins with `_`.
    pub fn id(&self) -> String {
        format!("_plan.{}.{}", self.name, self.seq)
    }

    /// Whether it is for this device, which is in these cohorts.
    pub fn is_for(&self, site: &str, device: &str, cohorts: &[String]) -> bool {
        let Some(to) = self.to.strip_prefix(site).and_then(|rest| rest.strip_prefix('/')) else { return false };
        let cohort = |name: &str| cohorts.iter().any(|cohort| cohort == name);
        to == "_all" || to == device || to.strip_prefix("_c-").is_some_and(cohort)
    }

    /// The wave, counted from 0, of a device at this position; `None`: no wave holds it.
    pub fn wave_of(&self, position: f64) -> Option<usize> {
        self.waves.iter().position(|wave| position < wave.share)
    }

    /// How far the start of a device at this position is from the opening of its wave, ms.
    pub fn spread_ms(&self, wave: usize, position: f64) -> i64 {
        let from = if wave == 0 { 0.0 } else { self.waves[wave - 1].share };
        let within = (position - from) / (self.waves[wave].share - from);
        (within.clamp(0.0, 1.0) * self.limits.spread_s as f64 * 1000.0) as i64
    }
}

/// A name of a plan.
pub fn is_name(text: &str) -> bool {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= limits::PLAN_NAME
        && bytes.first().is_some_and(|b| first(*b))
        && bytes.iter().all(|b| first(*b) || b"._-".contains(b))
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Checks what all signed texts about plans share: version, type, issuer, number.
fn head(v: u64, (is, expected): (&str, &str), issuer: &str, number: u64) -> Result<(), Refusal> {
    if v != 1 {
        return Err(Refusal(Why::Unsupported, format!("version {v} is not known here")));
    }
    if is != expected {
        return Err(Refusal(Why::NotAddressed, format!("signed as `{is}`, but sent as `{expected}`")));
    }
    issuer_and_number(issuer, number)
}

/// A signed halt or resume, of a key that was not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Addressee of the plan.
    pub to: String,
    /// Name of the key that signed it.
    pub issuer: String,
    /// Name of the plan.
    pub plan: String,
    /// Sequence of the plan.
    pub seq: u64,
    /// Grows with each order about this plan.
    pub n: u64,
    /// When it was signed, ms since 1970.
    pub issued_ms: i64,
    /// A resume: SHA-256 of the next halt secret. A halt: `None`.
    pub resume: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOrder {
    v: u64,
    #[serde(rename = "type")]
    type_: String,
    to: String,
    issuer: String,
    plan: String,
    seq: u64,
    n: u64,
    issued: String,
    halt: Option<String>,
}

impl Order {
    /// Reads and checks the signed text of a halt or resume.
    ///
    /// # Errors
    /// Why no device would take it.
    pub fn read(text: &str) -> Result<Self, Refusal> {
        shallow(text)?;
        let raw: RawOrder = serde_json::from_str(text).map_err(malformed)?;
        let resume = match (raw.type_.as_str(), raw.halt) {
            ("halt", None) => None,
            ("resume", Some(halt)) if is_hash(&halt) => Some(halt),
            ("halt" | "resume", _) => {
                return Err(malformed("a resume has `halt`, SHA-256 of the next halt secret; a halt has none"));
            }
            (other, _) => {
                return Err(Refusal(Why::NotAddressed, format!("signed as `{other}`, but sent as a halt or resume")));
            }
        };
        head(raw.v, ("", ""), &raw.issuer, raw.n)?;
        let issued_ms = time_ms(&raw.issued)?;
        Ok(Self { to: raw.to, issuer: raw.issuer, plan: raw.plan, seq: raw.seq, n: raw.n, issued_ms, resume })
    }
}

/// Reads a message that holds a secret: `dn/gate/{plan}/{wave}`, or `dn/halt/{plan}`.
///
/// # Errors
/// It has another shape.
pub fn secret(text: &str) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Secret {
        v: u64,
        secret: String,
    }
    let Secret { v, secret } = serde_json::from_str(text).map_err(malformed)?;
    if v != 1 {
        return Err(Refusal(Why::Unsupported, format!("version {v} is not known here")));
    }
    if !is_secret(&secret) {
        return Err(malformed("a secret has 32 to 128 printable ASCII characters"));
    }
    Ok(secret)
}
