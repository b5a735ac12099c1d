//! Whom this device believes: public keys, each with a name and what it may sign. `keyset.json`:
//!
//! ```json
//! {"_type":"kentledge.keyset", "version":1, "expires":"2036-01-01T00:00:00Z",
//!  "keys":[{"name":"ops", "public":"RWQ…", "roles":["command"]}], "revoked":["RWQ…"]}
//! ```
//!
//! The keys are minisign's. An expired keyset goes on being believed: expiry blocks installing a new one, never running.

use std::path::Path;

use minisign_verify::{PublicKey, Signature};
use serde::Deserialize;

use crate::limits;

/// What a key may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Model bundles.
    Model,
    /// Commands and desired states.
    Command,
    /// The next keyset.
    Keyset,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    name: String,
    public: String,
    roles: Vec<Role>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(rename = "_type")]
    kind: String,
    #[allow(dead_code)] // read so that a file without it is refused; used when keysets follow one another
    version: u64,
    #[allow(dead_code)]
    expires: String,
    keys: Vec<RawKey>,
    #[serde(default)]
    revoked: Vec<String>,
}

#[derive(Debug, Clone)]
struct Key {
    name: String,
    public: PublicKey,
    roles: Vec<Role>,
}

/// Keys and their roles.
#[derive(Debug, Clone, Default)]
pub struct Keyset(Vec<Key>);

impl Keyset {
    /// Reads a keyset's file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let what = |why: String| format!("read keyset {}: {why}", path.display());
        let size = std::fs::metadata(path).map_err(|why| what(why.to_string()))?.len();
        if size > limits::KEYSET_BYTES {
            return Err(what(format!("{size} bytes are more than {}", limits::KEYSET_BYTES)));
        }
        let bytes = std::fs::read(path).map_err(|why| what(why.to_string()))?;
        Self::parse(&bytes).map_err(what)
    }

    /// Reads a keyset.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|why| why.to_string())?;
        if raw.kind != "kentledge.keyset" {
            return Err(format!("`_type` is `{}`, not `kentledge.keyset`", raw.kind));
        }
        let mut keys: Vec<Key> = Vec::new();
        for RawKey { name, public: text, roles } in raw.keys {
            let public = PublicKey::from_base64(text.trim()).map_err(|why| format!("key `{name}`: {why}"))?;
            if keys.iter().any(|key| key.name == name || key.public == public) {
                return Err(format!("key `{name}` stands twice"));
            }
            if !raw.revoked.iter().any(|revoked| revoked.trim() == text.trim()) {
                keys.push(Key { name, public, roles });
            }
        }
        Ok(Self(keys))
    }

    /// Nobody is believed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who signed this, with a key that may. `minisig` is the text of the whole `.minisig` file.
    pub fn signer(&self, role: Role, signed: &[u8], minisig: &str) -> Result<&str, String> {
        let signature = Signature::decode(minisig).map_err(|why| format!("the signature cannot be read: {why}"))?;
        let key = self.0.iter().find(|key| key.public.verify(signed, &signature, false).is_ok());
        match key {
            Some(key) if key.roles.contains(&role) => Ok(&key.name),
            Some(key) => Err(format!("key `{}` may not sign this", key.name)),
            None => Err("no key of this device made the signature".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The public key, message and signature of minisign-verify's own documentation.
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\n\
        RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n\
        trusted comment: timestamp:1633700835\tfile:test\tprehashed\n\
        wLMDjy9FLAuxZ3q4NlEvkgtyhrr0gtTu6KC4KBJdITbbOeAi1zBIYo0v4iTgt8jJpIidRJnp94ABQkJAgAooBQ==";

    fn keyset(role: &str, revoked: &str) -> Result<Keyset, String> {
        let text = format!(
            r#"{{"_type":"kentledge.keyset","version":1,"expires":"2036-01-01T00:00:00Z",
                "keys":[{{"name":"ops","public":"{KEY}","roles":["{role}"]}}],"revoked":[{revoked}]}}"#
        );
        Keyset::parse(text.as_bytes())
    }

    #[test]
    fn a_signature_counts_by_a_key_that_may_and_is_not_revoked() {
        let ops = keyset("command", "").expect("keyset");
        assert_eq!(ops.signer(Role::Command, b"test", SIGNATURE), Ok("ops"));
        assert!(ops.signer(Role::Command, b"tesu", SIGNATURE).is_err());
        assert!(ops.signer(Role::Model, b"test", SIGNATURE).is_err());
        assert!(ops.signer(Role::Command, b"test", "nonsense").is_err());
        let revoked = keyset("command", &format!("\"{KEY}\"")).expect("keyset");
        assert!(revoked.is_empty() && revoked.signer(Role::Command, b"test", SIGNATURE).is_err());
    }

    #[test]
    fn a_keyset_with_anything_unknown_is_refused() {
        assert!(keyset("king", "").is_err());
        assert!(Keyset::parse(b"{}").is_err());
        assert!(Keyset::parse(br#"{"_type":"other","version":1,"expires":"x","keys":[]}"#).is_err());
    }
}
