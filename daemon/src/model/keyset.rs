//! The trusted public keys of this device, each with a name and its roles. `keyset.json`:
//!
//! ```json
//! {"_type":"kentledge.keyset", "version":1, "expires":"2036-01-01T00:00:00Z",
//!  "keys":[{"name":"ops", "public":"RWQ…", "roles":["command"]}],
//!  "threshold":{"model":2, "keyset":2}, "revoked":["RWQ…"], "min_seq":{"pump-anomaly":12}}
//! ```
//!
//! The keys are minisign's. `threshold` says how many different keys must sign (1 unless given). The first keyset lies in
//! the read-only root, its successors in the state directory; each must be signed by enough keys of the previous keyset
//! and by enough of its own. An expired keyset stays valid for what runs: expiry blocks installing, never running.

use std::{collections::BTreeMap, path::Path};

use minisign_verify::{PublicKey, Signature};
use serde::Deserialize;

use super::{error::KeysetError, signature};
use crate::limits;

/// What a key may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Model bundles.
    Model,
    /// Commands and desired states.
    Command,
    /// Rollout plans, and halts and resumes of them.
    Rollout,
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
    version: u64,
    expires: String,
    keys: Vec<RawKey>,
    #[serde(default)]
    threshold: BTreeMap<Role, usize>,
    #[serde(default)]
    revoked: Vec<String>,
    #[serde(default)]
    min_seq: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
struct Key {
    name: String,
    /// The public key, as the file writes it.
    text: String,
    public: PublicKey,
    roles: Vec<Role>,
}

/// Keys and their roles.
#[derive(Debug, Clone)]
pub struct Keyset {
    /// Version: increases by one with each successor.
    pub version: u64,
    /// Expiry: later, nothing new is accepted; ms since 1970.
    pub expires_ms: i64,
    /// The highest sequence of a model is lowered to this when this keyset takes effect and drops a key for models.
    pub min_seq: BTreeMap<String, u64>,
    keys: Vec<Key>,
    /// Key IDs that were trusted once.
    revoked: Vec<String>,
    threshold: BTreeMap<Role, usize>,
}

impl Keyset {
    /// Reads a keyset's file.
    ///
    /// # Errors
    /// The file cannot be read, is too large, or is rejected; with its path.
    pub fn read(path: &Path) -> Result<Self, KeysetError> {
        let what = |why: String| KeysetError(format!("read keyset {}: {why}", path.display()));
        let size = std::fs::metadata(path).map_err(|why| what(why.to_string()))?.len();
        if size > limits::KEYSET_BYTES {
            return Err(what(format!("{size} bytes are more than {}", limits::KEYSET_BYTES)));
        }
        let bytes = std::fs::read(path).map_err(|why| what(why.to_string()))?;
        Self::parse(&bytes).map_err(|why| what(why.to_string()))
    }

    /// Reads a keyset.
    ///
    /// # Errors
    /// It has another shape, names a key twice, or has a threshold that its keys cannot reach.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeysetError> {
        let is_public = bytes.starts_with(b"untrusted comment:") || bytes.starts_with(b"RW");
        let raw: Raw = serde_json::from_slice(bytes).map_err(|why| {
            KeysetError(match is_public {
                true => "it is a public key of minisign; a keyset is JSON that names such keys and their roles".into(),
                false => format!("it is no keyset: {why}"),
            })
        })?;
        if raw.kind != "kentledge.keyset" {
            return Err(KeysetError(format!("`_type` is `{}`, not `kentledge.keyset`", raw.kind)));
        }
        let expires: jiff::Timestamp = raw.expires.parse().map_err(|_| {
            KeysetError(format!("`expires`: `{}` is no time such as 2036-01-01T00:00:00Z", raw.expires))
        })?;
        let mut keys: Vec<Key> = Vec::new();
        for RawKey { name, public: text, roles } in raw.keys {
            let public =
                PublicKey::from_base64(text.trim()).map_err(|why| KeysetError(format!("key `{name}`: {why}")))?;
            if keys.iter().any(|key| key.name == name || key.public == public) {
                return Err(KeysetError(format!("key `{name}` stands twice")));
            }
            if !raw.revoked.iter().any(|revoked| revoked.trim() == text.trim()) {
                keys.push(Key { name, text: text.trim().to_owned(), public, roles });
            }
        }
        for (role, needed) in &raw.threshold {
            let there = keys.iter().filter(|key| key.roles.contains(role)).count();
            if *needed == 0 || *needed > there.max(1) {
                return Err(KeysetError(format!("`threshold` {needed} for {role:?}, and {there} keys have that role")));
            }
            if matches!(role, Role::Command | Role::Rollout) && *needed > 1 {
                return Err("`threshold`: a command or plan carries one signature".into());
            }
        }
        let (version, min_seq, threshold) = (raw.version, raw.min_seq, raw.threshold);
        let revoked = raw.revoked.iter().filter_map(|key| signature::key_id(key)).collect();
        Ok(Self { version, expires_ms: expires.as_millisecond(), min_seq, keys, revoked, threshold })
    }

    /// The keyset holds no key: no signature is accepted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The public key of a name that has this role, as the file writes it.
    pub fn public(&self, role: Role, name: &str) -> Option<&str> {
        let mut keys = self.keys.iter().filter(|key| key.roles.contains(&role));
        keys.find(|key| key.name == name).map(|key| key.text.as_str())
    }

    /// The name of the key that signed this. The key must have the role. `minisig` is the text of the whole `.minisig` file.
    ///
    /// # Errors
    /// It is no signature, of no key of this keyset, or of a key without the role.
    pub fn signer(&self, role: Role, signed: &[u8], minisig: &str) -> Result<&str, KeysetError> {
        let signature =
            Signature::decode(minisig).map_err(|why| KeysetError(format!("the signature cannot be read: {why}")))?;
        let key = self.keys.iter().find(|key| key.public.verify(signed, &signature, false).is_ok());
        match key {
            Some(key) if key.roles.contains(&role) => Ok(&key.name),
            Some(key) => Err(KeysetError(format!("key `{}` may not sign this", key.name))),
            None => Err(KeysetError(self.why_not(role, signed, minisig))),
        }
    }

    /// Why a signature does not count, by the key that it names.
    fn why_not(&self, role: Role, signed: &[u8], minisig: &str) -> String {
        let id = signature::key_id_of(minisig).unwrap_or_default();
        let named = self.keys.iter().find(|key| signature::key_id(&key.text).as_ref() == Some(&id));
        match named {
            Some(key) => {
                let of = (role == Role::Model).then_some("manifest.json");
                signature::wrong(&key.name, &key.text, signed, minisig, of)
            }
            None if self.revoked.contains(&id) => {
                format!("no key of this device made the signature: the key with ID {id} is revoked")
            }
            None => format!("no key of this device made the signature: it names the unknown key ID {id}"),
        }
    }

    /// The names of the keys that signed this: at least as many different keys as the role's threshold. Signatures of unknown
    /// keys, or of keys without the role, are ignored: a bundle may carry those of the keys before and after a rotation.
    ///
    /// # Errors
    /// Fewer keys than the threshold signed it.
    pub fn signers(&self, role: Role, signed: &[u8], minisigs: &[String]) -> Result<Vec<&str>, KeysetError> {
        let (mut names, mut why): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
        for minisig in minisigs {
            match self.signer(role, signed, minisig) {
                Ok(name) if names.contains(&name) => why.push(format!("key `{name}` signed twice")),
                Ok(name) => names.push(name),
                Err(reason) => why.push(reason.into()),
            }
        }
        let needed = self.threshold.get(&role).copied().unwrap_or(1);
        if names.len() < needed {
            let count = format!("{} of {needed} needed signatures", names.len());
            return Err(KeysetError(match why.as_slice() {
                [] => count,
                [only] if needed == 1 => only.clone(),
                all => format!("{count} ({})", all.join("; ")),
            }));
        }
        Ok(names)
    }

    /// Verifies the next keyset: signed by enough keys of both, and with the next version.
    ///
    /// # Errors
    /// Too few signatures of either keyset, another version, or not a keyset.
    pub fn successor(&self, bytes: &[u8], minisigs: &[String]) -> Result<Self, KeysetError> {
        self.signers(Role::Keyset, bytes, minisigs)
            .map_err(|why| KeysetError(format!("by the keyset in use: {why}")))?;
        let next = Self::parse(bytes)?;
        if next.version != self.version + 1 {
            return Err(KeysetError(format!("version {} does not follow {}", next.version, self.version)));
        }
        next.signers(Role::Keyset, bytes, minisigs).map_err(|why| KeysetError(format!("by itself: {why}")))?;
        Ok(next)
    }

    /// Whether a key for models is in this keyset and not in the next.
    pub fn drops_a_model_key(&self, next: &Self) -> bool {
        let kept = |key: &Key| next.keys.iter().any(|k| k.public == key.public && k.roles.contains(&Role::Model));
        self.keys.iter().any(|key| key.roles.contains(&Role::Model) && !kept(key))
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

    fn keyset(role: &str, revoked: &str) -> Result<Keyset, KeysetError> {
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
    fn one_key_that_signs_twice_is_one_key() {
        let ops = keyset("model", "").expect("keyset");
        let one = SIGNATURE.to_owned();
        assert_eq!(ops.signers(Role::Model, b"test", std::slice::from_ref(&one)), Ok(vec!["ops"]));
        assert_eq!(ops.signers(Role::Model, b"test", &[one.clone(), one]), Ok(vec!["ops"]));
        assert!(ops.signers(Role::Model, b"test", &[]).is_err_and(|why| why.to_string().contains("0 of 1")));
    }

    #[test]
    fn a_keyset_with_anything_unknown_is_refused() {
        assert!(keyset("king", "").is_err());
        assert!(Keyset::parse(b"{}").is_err());
        assert!(Keyset::parse(br#"{"_type":"other","version":1,"expires":"x","keys":[]}"#).is_err());
        let two = format!(
            r#"{{"_type":"kentledge.keyset","version":1,"expires":"2036-01-01T00:00:00Z","threshold":{{"model":2}},
                "keys":[{{"name":"ops","public":"{KEY}","roles":["model"]}}]}}"#
        );
        assert!(Keyset::parse(two.as_bytes()).is_err_and(|why| why.to_string().contains("1 keys have that role")));
    }
}
