//! Why a command is rejected, and the small readers that reject: times and base64.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

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
