//! A sealed message: records of one stream and one lineage, as they are sent and as they are stored.
//!
//! ```text
//! stored:  version: u8 = 2 │ crc: u32le over what follows │ place: u64be │ zstd frame of
//!          postcard { stream, class, retain, boot, clk, wall_ms, lineage, items: [{ seq, at_ns, body }] }
//! ```
//!
//! The place (see `store`) is in the value as well as in the key, so that a message can be known again in a database
//! that does not open any more. Version 1, which had no place, was never released.

use std::fmt::Write;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    flow::{Class, Clk, Retain},
    host::{Defence, clock::rfc3339_ms},
};

/// First byte of a stored message.
pub const VERSION: u8 = 2;
/// Bytes before the zstd frame.
pub const HEAD: usize = 13;
/// zstd's fastest regular level: a third of the size at 400 MB/s, and a Pi's core has other work. The code of higher ones is not in
/// the released binary (`.cargo/config.toml`): there they would pack like this one.
const LEVEL: i32 = 1;
/// A stored message never unpacks to more than this: `limits::MESSAGE_BYTES` and its head, doubled.
const UNPACKED_MAX: usize = 512 * 1024;
/// A stored message is never longer than this: what zstd cannot pack grows by less than 1 %.
pub const STORED_MAX: usize = UNPACKED_MAX + UNPACKED_MAX / 100 + HEAD;

/// One record of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Sequence number in its stream.
    pub seq: u64,
    /// When it happened, ns since boot.
    pub at_ns: u64,
    /// JSON members after `seq` and `t`.
    pub body: Bytes,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sealed {
    /// Topic below `up/`: `p/pump`.
    pub stream: String,
    /// What it is worth.
    pub class: Class,
    /// Whether the broker keeps it.
    pub retain: Retain,
    /// Boot it was made in.
    pub boot: String,
    /// What its wall time is worth.
    pub clk: Clk,
    /// Wall time of the first record.
    pub wall_ms: Option<i64>,
    /// The envelope's lineage, JSON.
    pub lineage: Option<String>,
    /// The records; at least one.
    pub items: Vec<Record>,
}

impl Sealed {
    /// Sequence numbers of the first and the last record.
    pub fn seqs(&self) -> (u64, u64) {
        (self.items.first().map_or(0, |item| item.seq), self.items.last().map_or(0, |item| item.seq))
    }

    /// The message packed, without the head that names its place.
    ///
    /// # Errors
    /// It cannot be packed; not for what the outbox makes.
    pub fn pack(&self) -> Result<Vec<u8>, String> {
        let plain = postcard::to_allocvec(self).map_err(|why| why.to_string())?;
        zstd::bulk::compress(&plain, LEVEL).map_err(|why| why.to_string())
    }

    /// The bytes to store at a place.
    pub fn frame(place: u64, packed: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + packed.len());
        out.push(VERSION);
        out.extend([0; 4]);
        out.extend(place.to_be_bytes());
        out.extend(packed);
        let crc = crc32fast::hash(&out[5..]);
        out[1..5].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Whole, and of a version that only a newer program knows: which. Every version begins with itself and a checksum.
    pub fn newer(bytes: &[u8]) -> Option<u8> {
        let (head, _) = bytes.split_first_chunk::<HEAD>()?;
        let [version, c0, c1, c2, c3, ..] = *head;
        let whole = crc32fast::hash(&bytes[5..]) == u32::from_le_bytes([c0, c1, c2, c3]);
        (version > VERSION && whole).then_some(version)
    }

    /// Reads what was stored, and its place.
    ///
    /// # Errors
    /// Another version, or damaged; why.
    pub fn from_bytes(bytes: &[u8]) -> Result<(u64, Self), String> {
        let (head, packed) = bytes.split_first_chunk::<HEAD>().ok_or("shorter than its head")?;
        let [version, c0, c1, c2, c3, place @ ..] = *head;
        if version != VERSION {
            return Err(format!("version {version} is not known here"));
        }
        if Defence::Crc.stands() && crc32fast::hash(&bytes[5..]) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err("its checksum does not match".into());
        }
        let plain = zstd::bulk::decompress(packed, UNPACKED_MAX).map_err(|why| why.to_string())?;
        let sealed: Self = postcard::from_bytes(&plain).map_err(|why| why.to_string())?;
        if sealed.items.is_empty() {
            return Err("it has no record".into());
        }
        Ok((u64::from_be_bytes(place), sealed))
    }

    /// The envelope as the broker gets it.
    pub fn envelope(&self, hist: bool) -> String {
        let size: usize = self.items.iter().map(|item| item.body.len() + 48).sum();
        let mut out = String::with_capacity(size + 512);
        out.push_str("{\"v\":1,\"ts\":");
        match self.wall_ms {
            Some(ms) => {
                let _ = write!(out, "\"{}\"", rfc3339_ms(ms));
            }
            None => out.push_str("null"),
        }
        let (first, last) = self.seqs();
        let mono_ns = self.items.first().map_or(0, |item| item.at_ns);
        let _ = write!(
            out,
            ",\"clk\":\"{}\",\"mono_ns\":{mono_ns},\"boot\":\"{}\",\"hist\":{hist},\"seq\":{{\"first\":{first},\"last\":{last},\"n\":{}}}",
            self.clk.word(),
            self.boot,
            self.items.len()
        );
        if let Some(lineage) = &self.lineage {
            let _ = write!(out, ",\"lineage\":{lineage}");
        }
        out.push_str(",\"data\":[");
        for (i, item) in self.items.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let t = item.at_ns.wrapping_sub(mono_ns) as i64;
            let _ = write!(out, "{comma}{{\"seq\":{},\"t\":{t},", item.seq);
            // Bodies are made by this program from text; what is no UTF-8 cannot be among them.
            out.push_str(std::str::from_utf8(&item.body).unwrap_or("\"error\":\"not text\""));
            out.push('}');
        }
        out.push_str("]}");
        out
    }
}

#[cfg(test)]
impl Sealed {
    /// A message of one record with a body of so many bytes, for tests of what only keeps messages.
    pub fn sample(seq: u64, bytes: usize) -> Self {
        let body = Bytes::from((0..bytes).map(|_| fastrand::alphanumeric() as u8).collect::<Vec<_>>());
        Self {
            stream: "p/x".into(),
            class: Class::Score,
            retain: Retain::No,
            boot: "b".into(),
            clk: Clk::Unset,
            wall_ms: None,
            lineage: None,
            items: vec![Record { seq, at_ns: 1, body }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Sealed {
        let item = |seq, at_ns| Record { seq, at_ns, body: Bytes::from_static(b"\"score\":0.5") };
        Sealed {
            stream: "p/pump".into(),
            class: Class::Score,
            retain: Retain::No,
            boot: "b".into(),
            clk: Clk::Sync,
            wall_ms: Some(1_795_166_043_120),
            lineage: Some("{\"slot\":\"a\"}".into()),
            items: vec![item(7, 1000), item(8, 900)],
        }
    }

    #[test]
    fn the_envelope_carries_every_record_with_its_own_time() {
        let json: serde_json::Value = serde_json::from_str(&sealed().envelope(true)).expect("json");
        assert_eq!(
            json,
            serde_json::json!({
                "v": 1, "ts": "2026-11-20T09:14:03.120Z", "clk": "sync", "mono_ns": 1000, "boot": "b", "hist": true,
                "seq": {"first": 7, "last": 8, "n": 2}, "lineage": {"slot": "a"},
                "data": [{"seq": 7, "t": 0, "score": 0.5}, {"seq": 8, "t": -100, "score": 0.5}],
            })
        );
    }

    #[test]
    fn what_was_stored_is_read_and_every_damage_is_noticed() {
        let bytes = Sealed::frame(77, &sealed().pack().expect("packed"));
        assert_eq!(Sealed::from_bytes(&bytes), Ok((77, sealed())));
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 4;
            assert!(Sealed::from_bytes(&torn).is_err(), "byte {at}");
            assert!(Sealed::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
    proptest::proptest! {
        #[test]
        fn message_is_read_or_refused_whatever_lies_on_the_disk_and_its_envelope_is_json(
            data in crate::flow::spoilt::spoilt(vec![sealed().pack().expect("packed"), Sealed::frame(7, b"x")])
        ) {
            let _ = Sealed::from_bytes(&data);
            // Also where an attacker made the checksum fit.
            if let Ok((place, mut sealed)) = Sealed::from_bytes(&Sealed::frame(7, &data)) {
                assert!(place == 7 && !sealed.items.is_empty());
                let again = Sealed::frame(8, &sealed.pack().expect("what was read can be written"));
                assert_eq!(Sealed::from_bytes(&again), Ok((8, sealed.clone())));
                sealed.items.iter_mut().for_each(|item| item.body = "\"a\":1".into());
                (sealed.lineage, sealed.boot) = (None, "b".into());
                let envelope: serde_json::Value = serde_json::from_str(&sealed.envelope(true)).expect("an envelope");
                assert_eq!(envelope["data"].as_array().map(Vec::len), Some(sealed.items.len()));
            }
        }
    }
}
