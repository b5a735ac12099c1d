//! `[integrations]`: what is published for other programs, beside the device's own topics.

use super::{
    mqtt::Mqtt,
    raw::{Node, Table},
};
use crate::limits;

/// `[integrations]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Integrations {
    /// Where Home Assistant listens for discovery messages; `None`: nothing is published for it.
    pub homeassistant: Option<String>,
}

pub(super) fn integrations(root: &mut Table<'_>, node: Option<Node>, mqtt: Option<&Mqtt>) -> Integrations {
    let Some(node) = node else { return Integrations::default() };
    let mut t = root.sub("integrations".into(), node);
    let on = t.bool("homeassistant").unwrap_or(false);
    let prefix = t.str("homeassistant_prefix").unwrap_or_else(|| "homeassistant".into());
    if !is_topic(&prefix) {
        let most = limits::DISCOVERY_PREFIX_BYTES;
        t.problem(
            "homeassistant_prefix",
            format!("`{prefix}` is no topic: parts between `/` without `+`, `#`, `$`, spaces, {most} bytes at most"),
        );
    }
    if on && mqtt.is_some_and(|mqtt| mqtt.cbor) {
        t.problem("homeassistant", "Home Assistant reads JSON only, and `mqtt.payload` is `cbor`");
    }
    t.finish();
    Integrations { homeassistant: on.then_some(prefix) }
}

fn is_topic(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && !b"+#$\"\\".contains(&b));
    text.len() <= limits::DISCOVERY_PREFIX_BYTES && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Integrations};

    fn read(lines: &str) -> Result<Integrations, Vec<String>> {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        std::fs::write(&file, format!("[device]\nsite = \"s\"\nid = \"d\"\n{lines}\n")).expect("write");
        let config = Config::local(Some(&file));
        config
            .map(|config| config.integrations)
            .map_err(|all| all.into_iter().map(|p| format!("{}: {}", p.key, p.why)).collect())
    }

    #[test]
    fn home_assistant_is_off_unless_it_is_switched_on() {
        assert_eq!(read("").expect("valid").homeassistant, None);
        assert_eq!(read("[integrations]\nhomeassistant = false").expect("valid").homeassistant, None);
        let on = read("[integrations]\nhomeassistant = true").expect("valid");
        assert_eq!(on.homeassistant.as_deref(), Some("homeassistant"));
        let other = read("[integrations]\nhomeassistant = true\nhomeassistant_prefix = \"ha/main\"").expect("valid");
        assert_eq!(other.homeassistant.as_deref(), Some("ha/main"));
    }

    #[test]
    fn wrong_keys_of_integrations_are_rejected_with_their_reason() {
        let why = |lines: &str| read(lines).expect_err("invalid").join("; ");
        assert!(why("[integrations]\nhomeasistant = true").contains("homeassistant"), "the nearest name");
        for prefix in ["", "/a", "a//b", "a/#", "a b", "$SYS/a"] {
            let said = why(&format!("[integrations]\nhomeassistant_prefix = \"{prefix}\""));
            assert!(said.contains("is no topic"), "{prefix}: {said}");
        }
        let cbor = "[mqtt]\nurl = \"mqtt://localhost\"\npayload = \"cbor\"\n[integrations]\nhomeassistant = true";
        assert!(why(cbor).contains("reads JSON only"));
    }
}
