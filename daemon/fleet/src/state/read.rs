//! Messages as JSON values, whatever their encoding, and members of them within bounds. Pure. What a device sends is a stranger's:
//! nothing of it is trusted to have the right type or size.

use serde_json::Value;

use crate::limits;

/// A payload: JSON, or the same in CBOR. `None`: neither, or nothing.
pub fn payload(bytes: &[u8]) -> Option<Value> {
    match bytes.first()? {
        b'{' | b' ' | b'\n' | b'\t' | b'\r' => serde_json::from_slice(bytes).ok(),
        _ => ciborium::from_reader(bytes).ok(),
    }
}

/// A text, cut at a character.
pub fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or("");
    let mut end = text.len().min(limits::TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// A text that may be null.
pub fn maybe(value: &Value) -> Option<String> {
    value.as_str().map(|_| text(value))
}

/// A list of texts.
pub fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().take(limits::EACH).map(text).collect()
}

/// A count; 0 if it is no whole number.
pub fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// The records of an envelope.
pub fn records(value: &Value) -> &[Value] {
    value["data"].as_array().map_or(&[], Vec::as_slice)
}

/// `kl/{site}/{device}/up/{rest}` below a prefix.
pub fn up<'a>(topic: &'a str, prefix: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let (site, device, side, rest) = parts(topic, prefix)?;
    (side == "up" && !device.starts_with('_')).then_some((site, device, rest))
}

/// The same for `dn`, where the device may be `_all` or `_c-…`.
pub fn dn<'a>(topic: &'a str, prefix: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let (site, to, side, rest) = parts(topic, prefix)?;
    (side == "dn").then_some((site, to, rest))
}

fn parts<'a>(topic: &'a str, prefix: &str) -> Option<(&'a str, &'a str, &'a str, &'a str)> {
    let mut levels = topic.strip_prefix(prefix)?.strip_prefix("kl/")?.splitn(4, '/');
    let parts = (levels.next()?, levels.next()?, levels.next()?, levels.next()?);
    (!parts.0.is_empty() && !parts.1.is_empty() && !parts.3.is_empty()).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_devices_are_read_below_a_prefix_and_others_are_not() {
        assert_eq!(up("kl/s/d/up/h", ""), Some(("s", "d", "h")));
        assert_eq!(up("t/kl/s/d/up/res/ping/a", "t/"), Some(("s", "d", "res/ping/a")));
        for other in ["kl/s/d/dn/h", "kl/s/d/up", "kl/s/d/up/", "kl//d/up/h", "kl/s/_all/up/h", "x/kl/s/d/up/h", "kl/s"]
        {
            assert_eq!(up(other, ""), None, "{other}");
        }
        assert_eq!(dn("kl/s/_all/dn/plan/p", ""), Some(("s", "_all", "plan/p")));
    }

    #[test]
    fn cbor_reads_as_json_does_and_nonsense_is_nothing() {
        let json: Value = serde_json::json!({"v": 1, "data": [{"seq": 3, "t": 0, "lost": 7}]});
        let mut cbor = Vec::new();
        ciborium::into_writer(&json, &mut cbor).expect("written");
        assert_eq!(payload(&cbor), Some(json.clone()));
        assert_eq!(payload(json.to_string().as_bytes()), Some(json));
        assert_eq!((payload(b""), payload(b"{"), payload(&[0xff, 0xff])), (None, None, None));
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let long = Value::String("ä".repeat(400));
        assert!(text(&long).len() <= limits::TEXT && text(&long).chars().all(|c| c == 'ä'));
    }
}
