//! Why a command is rejected, and the small readers that reject: times, base64, depth, bounds.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use crate::limits;

/// Why a command is rejected, as a word for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Not JSON of the right shape.
    Malformed,
    /// Unknown type, or not in this version.
    Unsupported,
    /// A retained message.
    Retained,
    /// The signature is missing.
    Unsigned,
    /// The signature is invalid, or of a key that is not trusted.
    BadSignature,
    /// The signed part names another addressee, type or id than the topic.
    NotAddressed,
    /// The id was used for another command.
    RepeatedId,
    /// The issuer's sequence does not increase.
    Replayed,
    /// The clock is not trusted, and the command does not echo the nonce of `up/birth`.
    Nonce,
    /// Too many commands, or a job is in progress.
    Busy,
    /// Invalid arguments, or not possible on this device.
    Invalid,
    /// It was made for another state of the device.
    Conflict,
}

impl Why {
    const ALL: [Self; 12] = [
        Self::Malformed,
        Self::Unsupported,
        Self::Retained,
        Self::Unsigned,
        Self::BadSignature,
        Self::NotAddressed,
        Self::RepeatedId,
        Self::Replayed,
        Self::Nonce,
        Self::Busy,
        Self::Invalid,
        Self::Conflict,
    ];

    /// The reason of this word.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|why| why.word() == word)
    }

    /// The word in the result.
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::Retained => "retained",
            Self::Unsigned => "unsigned",
            Self::BadSignature => "bad_signature",
            Self::NotAddressed => "not_addressed",
            Self::RepeatedId => "repeated_id",
            Self::Replayed => "replayed",
            Self::Nonce => "nonce",
            Self::Busy => "busy",
            Self::Invalid => "invalid",
            Self::Conflict => "conflict",
        }
    }
}

/// A rejection: the word, and a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub Why, pub String);

/// Not JSON of the right shape; why.
pub(super) fn malformed(why: impl std::fmt::Display) -> Refusal {
    Refusal(Why::Malformed, why.to_string())
}

/// A time as RFC 3339 writes it, in ms since 1970.
pub(super) fn time_ms(text: &str) -> Result<i64, Refusal> {
    let time: jiff::Timestamp =
        text.parse().map_err(|_| malformed(format!("`{text}` is no time such as 2026-11-20T09:14:03Z")))?;
    Ok(time.as_millisecond())
}

/// Base64 with or without padding. Line ends are skipped, because `base64` breaks lines by default.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    GeneralPurpose::new(&alphabet::STANDARD, LENIENT).decode(text).ok()
}

/// Checks the bounds of an issuer's name and of its sequence or version.
pub(super) fn issuer_and_number(issuer: &str, number: u64) -> Result<(), Refusal> {
    // A larger one would lock its issuer out: JSON numbers are exact only up to it.
    if number == 0 || number > limits::ISEQ_MAX {
        return Err(malformed(format!("{number} is not within 1 to {}", limits::ISEQ_MAX)));
    }
    if issuer.is_empty() || issuer.len() > limits::ISSUER_BYTES {
        return Err(malformed(format!("an issuer has 1 to {} characters", limits::ISSUER_BYTES)));
    }
    Ok(())
}

/// Rejects text that is not a JSON object or is nested too deeply, before a recursive parser reads it.
pub(super) fn shallow(text: &str) -> Result<(), Refusal> {
    // serde would accept a list as the members in their order.
    if !text.trim_start().starts_with('{') {
        return Err(malformed("it is no JSON object"));
    }
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                if depth > limits::COMMAND_DEPTH {
                    return Err(malformed(format!("nested more than {} deep", limits::COMMAND_DEPTH)));
                }
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}
