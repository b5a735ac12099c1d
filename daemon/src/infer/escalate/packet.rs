//! The payload of `up/x/{pipeline}`: a header as JSON, and the window's values. Pure.
//!
//! ```text
//! "KLX1" │ H, u32 LE │ header: H bytes of JSON, filled up with spaces to a multiple of 8 │ values: f32 LE, row by row
//! ```
//!
//! The shape of the header is `docs/schema/up.x.json`.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::rules::Why;
use crate::{
    flow::{
        Direction, Scored, Stamp, WindowTag,
        record::{json_num, json_str},
    },
    host::clock::rfc3339_ms,
    limits,
    model::file::hex,
};

/// What is the same for all windows of a pipeline.
#[derive(Debug, Clone)]
pub struct Origin {
    /// `site/device`
    pub device: String,
    /// Id of this boot.
    pub boot: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name and unit of each channel.
    pub channels: Vec<(String, String)>,
}

/// What is sent of one window.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Of this request, 16 hexadecimal digits.
    pub id: &'a str,
    /// Of the values, 64 hexadecimal digits.
    pub digest: &'a str,
    /// Why it is sent.
    pub why: Why,
    /// Where it comes from.
    pub tag: &'a WindowTag,
    /// What the model says of it.
    pub said: &'a Scored,
    /// Of the model that says so, JSON.
    pub lineage: &'a str,
    /// Now.
    pub now: &'a Stamp,
    /// Until when the answer may come, ns since boot.
    pub deadline_ns: u64,
}

/// SHA-256 of a window's values as they are sent, hex.
pub fn digest(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    values.iter().for_each(|x| hash.update(x.to_le_bytes()));
    hex(&hash.finalize())
}

/// The payload; `None`: its header is too large.
pub fn payload(origin: &Origin, facts: Facts<'_>, values: &[f32]) -> Option<Vec<u8>> {
    let mut header = header(origin, facts, values.len());
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    if padded > limits::ESCALATE_HEADER_BYTES {
        return None;
    }
    let mut out = Vec::with_capacity(8 + padded + values.len() * 4);
    out.extend_from_slice(b"KLX1");
    out.extend_from_slice(&(padded as u32).to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    values.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
    Some(out)
}

fn header(origin: &Origin, facts: Facts<'_>, values: usize) -> String {
    let Facts { id, digest, why, tag, said, lineage, now, deadline_ns } = facts;
    let Stamp { boot_ns, wall_ms, clk } = tag.last;
    let mut out = format!("{{\"v\":1,\"id\":\"{id}\",\"device\":");
    json_str(&mut out, &origin.device);
    out.push_str(",\"pipeline\":");
    json_str(&mut out, &origin.pipeline);
    let _ = write!(out, ",\"win\":\"sha256:{digest}\",\"why\":\"{}\",\"ts\":", why.word());
    time(&mut out, wall_ms);
    let _ = write!(out, ",\"clk\":\"{}\",\"mono_ns\":{boot_ns},\"boot\":", clk.word());
    json_str(&mut out, &origin.boot);
    out.push_str(",\"deadline\":");
    time(&mut out, wall_ms.map(|ms| ms + (deadline_ns.saturating_sub(boot_ns) / 1_000_000) as i64));
    let left_ms = deadline_ns.saturating_sub(now.boot_ns) / 1_000_000;
    let (seq, t) = (tag.in_seq, tag.in_t_ns);
    let _ = write!(out, ",\"left_ms\":{left_ms},\"in_seq\":[{},{}],\"in_t_ns\":[{},{}]", seq.0, seq.1, t.0, t.1);
    let _ = write!(out, ",\"coverage\":{},\"score\":", tag.coverage);
    single(&mut out, said.score);
    out.push_str(",\"threshold\":");
    single(&mut out, said.threshold);
    let direction = if said.direction == Direction::Low { "low" } else { "high" };
    let _ = write!(out, ",\"direction\":\"{direction}\"");
    if let Some(classes) = &said.classes {
        if let Some(class) = classes.likeliest() {
            out.push_str(",\"class\":");
            json_str(&mut out, class);
        }
        out.push_str(",\"probabilities\":{");
        for (i, (name, probability)) in classes.names.iter().zip(&classes.probabilities).enumerate() {
            out.push_str(if i > 0 { "," } else { "" });
            json_str(&mut out, name);
            out.push(':');
            single(&mut out, Some(*probability));
        }
        out.push('}');
    }
    let width = origin.channels.len().max(1);
    let _ = write!(out, ",\"lineage\":{lineage},\"dtype\":\"f32\",\"shape\":[{},{width}]", values / width);
    for (key, list) in [("channels", 0), ("units", 1)] {
        let _ = write!(out, ",\"{key}\":[");
        for (i, (name, unit)) in origin.channels.iter().enumerate() {
            out.push_str(if i > 0 { "," } else { "" });
            json_str(&mut out, if list == 0 { name } else { unit });
        }
        out.push(']');
    }
    out.push('}');
    out
}

/// A time as JSON, or null.
fn time(out: &mut String, wall_ms: Option<i64>) {
    match wall_ms {
        Some(ms) => {
            let _ = write!(out, "\"{}\"", rfc3339_ms(ms));
        }
        None => out.push_str("null"),
    }
}

/// A float of single precision as its shortest text, or null.
fn single(out: &mut String, value: Option<f32>) {
    match value.filter(|value| value.is_finite()) {
        Some(value) => {
            let _ = write!(out, "{value}");
        }
        None => json_num(out, f64::NAN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Clk;

    fn origin(channels: usize) -> Origin {
        let channel = |i| (format!("channel_{i:04}"), "°C \"x\"".to_owned());
        let channels = (0..channels).map(channel).collect();
        Origin { device: "s/d".into(), boot: "b".into(), pipeline: "x".into(), channels }
    }

    fn made(origin: &Origin, values: &[f32], clk: Clk) -> Option<Vec<u8>> {
        let wall_ms = (clk != Clk::Unset).then_some(1_700_000_000_000);
        let last = Stamp { boot_ns: 5_000_000_000, wall_ms, clk };
        let tag = WindowTag { pipeline: 0, last, in_seq: (1, 4), in_t_ns: (-5, 6), number: 1, coverage: 0.5 };
        let said = Scored { score: Some(0.1), threshold: None, ..Scored::default() };
        let now = Stamp { boot_ns: 5_250_000_000, ..last };
        let digest = digest(values);
        let facts = Facts {
            id: "0123456789abcdef",
            digest: &digest,
            why: Why::Band,
            tag: &tag,
            said: &said,
            lineage: "{\"model\":\"m@1\"}",
            now: &now,
            deadline_ns: 15_000_000_000,
        };
        payload(origin, facts, values)
    }

    #[test]
    fn header_is_json_of_a_multiple_of_eight_bytes_and_values_follow() {
        let values = [1.5f32, -2.0, f32::MIN_POSITIVE, 4.0, 5.0, 6.0];
        let bytes = made(&origin(2), &values, Clk::Sync).expect("made");
        let size = u32::from_le_bytes(bytes[4..8].try_into().expect("4")) as usize;
        assert!(&bytes[..4] == b"KLX1" && size.is_multiple_of(8));
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + size]).expect("JSON");
        assert_eq!((&header["shape"], &header["left_ms"]), (&serde_json::json!([3, 2]), &9750.into()));
        assert_eq!(
            (&header["ts"], &header["deadline"]),
            (&"2023-11-14T22:13:20.000Z".into(), &"2023-11-14T22:13:30.000Z".into())
        );
        assert_eq!(
            (&header["score"], &header["threshold"], &header["in_t_ns"][0]),
            (&0.1.into(), &serde_json::Value::Null, &(-5).into())
        );
        assert_eq!(header["units"][1], "°C \"x\"");
        let sent: Vec<f32> =
            bytes[8 + size..].chunks(4).map(|x| f32::from_le_bytes(x.try_into().expect("4"))).collect();
        assert_eq!(sent, values);
        assert_eq!(header["win"], format!("sha256:{}", hex(&Sha256::digest(&bytes[8 + size..]))));
        let unset = made(&origin(2), &values, Clk::Unset).expect("made");
        assert!(String::from_utf8_lossy(&unset).contains("\"ts\":null,\"clk\":\"unset\""));
    }

    #[test]
    fn header_beyond_its_bound_is_not_made() {
        assert!(made(&origin(64), &[0.0; 64], Clk::Unset).is_some());
        assert!(made(&origin(1000), &[0.0; 1000], Clk::Unset).is_none());
    }
}
