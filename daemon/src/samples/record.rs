//! The form of a record, which is a window or a label: on the disk a file of its own, in a blob one behind the other. Pure.
//! `docs/reference/samples.md` is the same for readers.
//!
//! ```text
//! "KLS1" │ u32 length of the head │ u32 length of the values │ u32 CRC-32 of both │ head: JSON │ values: f32 …   (little-endian)
//! ```

use serde::Deserialize;
use serde_json::{Value, json};

use super::index::Episode;
use crate::{
    flow::{Finished, Kept, samples::Label},
    host::clock::rfc3339_ms,
    limits,
};

const MAGIC: &[u8; 4] = b"KLS1";
const FIXED: usize = 16;

/// Where a window lies, seen from an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Before it was raised.
    Before,
    /// It raised the alarm.
    Raised,
    /// After it.
    After,
}

impl At {
    fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Raised => "raised",
            Self::After => "after",
        }
    }
}

/// A pipeline as the head of its windows describes it.
#[derive(Debug, Clone, Default)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Its channels, in the model's order.
    pub channels: Vec<String>,
    /// Their units.
    pub units: Vec<String>,
    /// Rows of a window.
    pub steps: usize,
    /// Windows from one to the next that has no row in common with it.
    pub apart: u64,
}

/// What is read of a head again.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Head {
    /// Of a window.
    Window {
        /// `sha256:…` of the values.
        win: String,
        /// Why it is kept.
        class: String,
        /// Name of its pipeline.
        pipeline: String,
        /// When its last row arrived.
        ts: Option<String>,
        /// The alarms that it lies around.
        #[serde(default)]
        alarms: Vec<Episode>,
        /// `raised`: it raised them.
        #[serde(default)]
        at: Option<String>,
        /// The model that judged it.
        lineage: Value,
        /// Its score.
        #[serde(default)]
        score: Option<f32>,
    },
    /// Of a label.
    Label {
        /// The label.
        label: Label,
        /// The windows that it is about.
        wins: Vec<String>,
        /// The alarm that it is about.
        alarm: Option<String>,
        /// Its episode.
        id: Option<String>,
        /// Who said so.
        by: Option<String>,
        /// A remark.
        note: Option<String>,
    },
}

/// Whether the window raised its alarms.
pub fn is_raised(at: Option<&str>) -> bool {
    at == Some(At::Raised.word())
}

/// The bytes of a record.
pub fn encode(head: &Value, values: &[u8]) -> Vec<u8> {
    let head = head.to_string().into_bytes();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head);
    crc.update(values);
    let mut out = Vec::with_capacity(FIXED + head.len() + values.len());
    out.extend_from_slice(MAGIC);
    for n in [head.len() as u32, values.len() as u32, crc.finalize()] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend(head);
    out.extend_from_slice(values);
    out
}

/// The head and the values of one whole record; `None`: damaged.
pub fn decode(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let (fixed, rest) = bytes.split_at_checked(FIXED)?;
    let number = |at: usize| Some(u32::from_le_bytes(fixed.get(at..at + 4)?.try_into().ok()?));
    let (head, body) = (number(4)? as usize, number(8)? as usize);
    let whole =
        fixed.starts_with(MAGIC) && head <= limits::SAMPLE_HEAD_BYTES && head.checked_add(body) == Some(rest.len());
    if !whole || crc32fast::hash(rest) != number(12)? {
        return None;
    }
    let (head, values) = rest.split_at(head);
    Some((serde_json::from_slice(head).ok()?, values))
}

/// The values of a window as bytes, and their digest: `win` of its prediction.
pub fn values(window: &[f32]) -> (Vec<u8>, String) {
    use sha2::{Digest, Sha256};
    let bytes: Vec<u8> = window.iter().flat_map(|x| x.to_le_bytes()).collect();
    let digest = hex(&Sha256::digest(&bytes));
    (bytes, digest)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The head of a window.
pub fn window(
    (device, boot): (&str, &str),
    pipeline: &Described,
    finished: &Finished,
    (class, win): (Kept, &str),
    around: Option<(At, &[Episode])>,
) -> Value {
    let (tag, at) = (&finished.window.tag, finished.window.tag.last);
    let finite = |x: Option<f32>| x.filter(|x| x.is_finite());
    let mut head = json!({
        "kind": "window", "win": format!("sha256:{win}"), "class": class.word(), "device": device,
        "pipeline": pipeline.name, "channels": pipeline.channels, "units": pipeline.units, "steps": pipeline.steps,
        "ts": at.wall_ms.map(rfc3339_ms), "clk": at.clk.word(), "boot": boot, "mono_ns": at.boot_ns,
        "in_seq": [tag.in_seq.0, tag.in_seq.1], "in_t_ns": [tag.in_t_ns.0, tag.in_t_ns.1], "coverage": tag.coverage,
        "score": finite(finished.score), "threshold": finite(finished.threshold),
        "lineage": serde_json::from_str::<Value>(&finished.lineage).unwrap_or_default(),
    });
    if let (Some((at, episodes)), Some(head)) = (around, head.as_object_mut()) {
        head.insert("at".into(), at.word().into());
        let alarms = episodes.iter().map(|of| json!({"alarm": of.alarm, "id": of.id}));
        head.insert("alarms".into(), alarms.collect());
    }
    head
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::flow::{Clk, Stamp, Window, WindowTag};

    pub fn finished(n: u64) -> Finished {
        let last =
            Stamp { boot_ns: n * 1_000_000_000, wall_ms: Some(1_800_000_000_000 + n as i64 * 1000), clk: Clk::Sync };
        let tag = WindowTag { pipeline: 0, last, in_seq: (n, n + 1), in_t_ns: (0, 9), number: n, coverage: 1.0 };
        let window = Window { tag, values: [n as f32, 0.5].into() };
        let lineage = "{\"model\":\"m@1.0.0\",\"cal\":\"none\"}".into();
        Finished {
            window,
            lineage,
            score: Some(0.25),
            threshold: None,
            beyond: false,
            drifting: false,
            raised: Vec::new(),
            keep: None,
        }
    }

    #[test]
    fn record_is_read_as_it_was_written_and_every_flipped_bit_is_found() {
        let pipeline = Described {
            name: "p".into(),
            channels: vec!["a".into(), "b".into()],
            units: vec!["mm/s".into(), String::new()],
            steps: 1,
            apart: 1,
        };
        let finished = finished(7);
        let (bytes, win) = values(&finished.window.values);
        let episodes = [Episode { alarm: "high".into(), id: "b-1".into() }];
        let head = window(("s/d", "boot"), &pipeline, &finished, (Kept::Alarm, &win), Some((At::Raised, &episodes)));
        let record = encode(&head, &bytes);
        let (Head::Window { win: again, class, alarms, at, lineage, .. }, values) = decode(&record).expect("whole")
        else {
            panic!("a window");
        };
        assert_eq!((again, class.as_str()), (format!("sha256:{win}"), "alarm"));
        assert_eq!((alarms.as_slice(), is_raised(at.as_deref())), (&episodes[..], true));
        assert_eq!((lineage["model"].as_str(), values), (Some("m@1.0.0"), &bytes[..]));
        for bit in 0..record.len() * 8 {
            let mut torn = record.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&torn).is_none(), "bit {bit}");
        }
        for len in 0..record.len() {
            assert!(decode(&record[..len]).is_none(), "{len} bytes");
        }
    }

    #[test]
    fn digest_of_the_values_is_that_of_predictions() {
        // sha256 of 1.0f32 and 2.0f32, little-endian: printf '\x00\x00\x80\x3f\x00\x00\x00\x40' | sha256sum
        let (bytes, win) = values(&[1.0, 2.0]);
        assert_eq!(bytes, [0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]);
        assert_eq!(win, "b9c80b5adeca450753a16950c3cc655d271f7bef7a485bc83f112b72fef21d37");
    }
}
