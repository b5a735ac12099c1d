//! What is wrong with a signature that does not count, in words: minisign-verify decides whether it counts, and says only that
//! it does not. Pure.
//!
//! ```text
//! untrusted comment: …
//! base64(algorithm: 2 │ key ID: 8 │ signature: 64)       `Ed` signs the bytes themselves, `ED` their BLAKE2b hash
//! trusted comment: timestamp:1700000000 file:manifest.json hashed
//! base64(global: 64)                                     signs signature and trusted comment
//! ```

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::signature::{ED25519, UnparsedPublicKey};

use crate::host::log::escaped;

/// Characters of a file's name that are shown.
const FILE_NAME: usize = 80;

/// The parts of a signature file.
struct Parts<'a> {
    prehashed: bool,
    key_id: [u8; 8],
    signature: [u8; 64],
    comment: &'a str,
    global: [u8; 64],
}

impl<'a> Parts<'a> {
    fn of(minisig: &'a str) -> Option<Self> {
        let mut lines = minisig.lines().skip(1);
        let first = STANDARD.decode(lines.next()?.trim()).ok()?;
        let comment = lines.next()?.strip_prefix("trusted comment: ")?;
        let global = STANDARD.decode(lines.next()?.trim()).ok()?;
        Some(Self {
            prehashed: first.get(..2)? == b"ED",
            key_id: first.get(2..10)?.try_into().ok()?,
            signature: first.get(10..74)?.try_into().ok()?,
            comment,
            global: global.try_into().ok()?,
        })
    }

    /// A field of the trusted comment, as minisign and rsign write it.
    fn field(&self, name: &str) -> Option<&'a str> {
        self.comment.split('\t').find_map(|field| field.strip_prefix(name)?.strip_prefix(':'))
    }
}

/// The key ID that a signature names, as minisign prints it.
pub fn key_id_of(minisig: &str) -> Option<String> {
    Some(shown(Parts::of(minisig)?.key_id))
}

/// The key ID of a public key, as minisign prints it.
pub fn key_id(public: &str) -> Option<String> {
    Some(shown(STANDARD.decode(public.trim()).ok()?.get(2..10)?.try_into().ok()?))
}

fn shown(id: [u8; 8]) -> String {
    format!("{:016X}", u64::from_le_bytes(id))
}

/// Why a signature that names the key `name` does not count; `of`: the file that it must sign, where that has a name.
pub fn wrong(name: &str, public: &str, signed: &[u8], minisig: &str, of: Option<&str>) -> String {
    let damaged = || format!("the signature by key `{name}` is damaged");
    let (Some(parts), Some(key)) = (Parts::of(minisig), STANDARD.decode(public.trim()).ok()) else { return damaged() };
    let Some(key) = key.get(10..42) else { return damaged() };
    let verifies =
        |bytes: &[u8], signature: &[u8]| UnparsedPublicKey::new(&ED25519, key).verify(bytes, signature).is_ok();
    if !verifies(&[&parts.signature, parts.comment.as_bytes()].concat(), &parts.global) {
        return format!(
            "key `{name}` signed, but the signature or its trusted comment was changed afterwards; sign it again"
        );
    }
    if !parts.prehashed && verifies(signed, &parts.signature) {
        return format!("key `{name}` signed, but without prehashing (minisign -l); sign it again without -l");
    }
    let at = parts.field("timestamp").and_then(|s| jiff::Timestamp::from_second(s.parse().ok()?).ok());
    let when = at.map(|at| format!(" at {at}")).unwrap_or_default();
    match (of, parts.field("file")) {
        (Some(of), Some(file)) if of != file => {
            format!("key `{name}` signed something else: the signature is of the file {}", escaped(file, FILE_NAME))
        }
        (Some(of), _) => format!(
            "key `{name}` signed something else: {of} was changed after it was signed{when}, or the signature is of another {of}"
        ),
        (None, file) => {
            let file = file.map(|file| format!(", the file {}", escaped(file, FILE_NAME))).unwrap_or_default();
            format!("key `{name}` signed something else{when}{file}: the text was changed after it was signed")
        }
    }
}
