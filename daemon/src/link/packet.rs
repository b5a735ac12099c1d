//! What fits the broker: sizes of packets, messages split until each part fits, and how the parts of one message are
//! settled together. Pure.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use super::{topic::Wish, wire};
use crate::outbox::{Loss, ParcelId, Sealed};

/// What is known of the broker's limit, bytes of a whole packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Larger messages are split, where they can be.
    pub most: usize,
    /// Messages of this size and larger are not sent.
    pub never: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { most: usize::MAX, never: usize::MAX }
    }
}

impl Sizes {
    /// The broker's own word in CONNACK.
    pub fn announced(self, most: u32) -> Self {
        let most = most as usize;
        Self { most: self.most.min(most), never: self.never.min(most.saturating_add(1)) }
    }

    /// The broker refused a packet of this size as too large, without having said how much it takes.
    pub fn refused(self, size: usize) -> Self {
        // A quarter: few connections until it fits.
        Self { most: self.most.min(size / 4), never: self.never.min(size) }
    }
}

/// Bytes that MQTT takes for a length.
fn length_bytes(n: usize) -> usize {
    match n {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Bytes that a topic alias adds, with a length of the properties that may take a byte more, and one of the packet.
pub const ALIAS_BYTES: usize = 5;

/// Bytes of a PUBLISH with QoS 1.
pub fn publish_bytes(topic: usize, payload: usize, correlation: Option<usize>) -> usize {
    let properties = correlation.map_or(0, |bytes| 3 + bytes);
    let rest = 2 + topic + 2 + length_bytes(properties) + properties + payload;
    1 + length_bytes(rest) + rest
}

/// Splits subscriptions into packets that fit: few filters each (AWS IoT Core takes eight), and few bytes.
pub fn subscriptions(wishes: Vec<Wish>, filters: usize, most: usize) -> Vec<Vec<Wish>> {
    let mut packets: Vec<Vec<Wish>> = Vec::new();
    let mut bytes = 0;
    for wish in wishes {
        let one = 2 + wish.filter.len() + 1;
        match packets.last_mut().filter(|packet| packet.len() < filters && bytes + one <= most) {
            Some(packet) => packet.push(wish),
            None => {
                packets.push(vec![wish]);
                // Its head: type, length, id, no properties.
                bytes = 1 + 4 + 2 + 1;
            }
        }
        bytes += one;
    }
    packets
}

/// A part of a message, as the broker gets it.
#[derive(Debug, PartialEq)]
pub struct Part {
    /// First and last sequence.
    pub seqs: (u64, u64),
    /// Records.
    pub n: u64,
    /// The envelope.
    pub payload: Vec<u8>,
}

/// A message in parts of which each fits `most` bytes of payload, or is one record.
pub fn split(sealed: &Sealed, hist: bool, cbor: bool, most: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    add_parts(Cow::Borrowed(sealed), hist, cbor, most, &mut parts);
    parts
}

fn add_parts(sealed: Cow<'_, Sealed>, hist: bool, cbor: bool, most: usize, parts: &mut Vec<Part>) {
    let payload = wire::encode(sealed.envelope(hist), cbor);
    let n = sealed.items.len();
    if payload.len() <= most || n <= 1 {
        return parts.push(Part { seqs: sealed.seqs(), n: n as u64, payload });
    }
    let each = (n / payload.len().div_ceil(most.max(1))).clamp(1, n / 2);
    for first in (0..n).step_by(each) {
        let part = some(&sealed, first..(first + each).min(n));
        add_parts(Cow::Owned(part), hist, cbor, most, parts);
    }
}

/// Some records of a message as one of their own: its wall time is that of its first record.
fn some(sealed: &Sealed, range: Range<usize>) -> Sealed {
    let items = sealed.items[range].to_vec();
    let began_ns = sealed.items.first().map_or(0, |item| item.at_ns);
    let later_ns = items.first().map_or(0, |item| item.at_ns.wrapping_sub(began_ns) as i64);
    Sealed {
        stream: sealed.stream.clone(),
        class: sealed.class,
        retain: sealed.retain,
        boot: sealed.boot.clone(),
        clk: sealed.clk,
        wall_ms: sealed.wall_ms.map(|ms| ms + later_ns / 1_000_000),
        lineage: sealed.lineage.clone(),
        items,
    }
}

/// Messages whose parts are not all settled.
#[derive(Debug, Default)]
pub struct Parcels(HashMap<ParcelId, (usize, Vec<Loss>)>);

impl Parcels {
    /// A message goes in so many parts.
    pub fn begin(&mut self, id: ParcelId, parts: usize) {
        self.0.insert(id, (parts, Vec::new()));
    }

    /// One part is settled, delivered or lost. With the last one: what of the message is lost.
    pub fn settle(&mut self, id: ParcelId, lost: Option<Loss>) -> Option<Vec<Loss>> {
        let (left, all) = self.0.get_mut(&id)?;
        all.extend(lost);
        *left = left.saturating_sub(1);
        if *left > 0 {
            return None;
        }
        self.0.remove(&id).map(|(_, lost)| lost)
    }
}

#[cfg(test)]
mod tests {
    use rumqttc::v5::mqttbytes::{
        QoS,
        v5::{Publish, PublishProperties},
    };

    use super::*;
    use crate::limits;

    fn sealed(records: u64) -> Sealed {
        let mut sealed = Sealed::sample(1, 60);
        sealed.wall_ms = Some(1_000_000);
        let item = sealed.items[0].clone();
        for i in 1..records {
            let mut item = item.clone();
            (item.seq, item.at_ns) = (1 + i, 1 + i * 10_000_000);
            sealed.items.push(item);
        }
        sealed.items.iter_mut().for_each(|item| item.body = format!("\"n\":{}", item.seq).into());
        sealed
    }

    #[test]
    fn a_size_is_that_of_the_client_library() {
        for (payload, correlation) in [(0, None), (100, None), (130, Some(4)), (20_000, Some(200)), (3_000_000, None)] {
            let mut publish = Publish::new("kl/s/d/up/x", QoS::AtLeastOnce, vec![0; payload], None);
            publish.pkid = 1;
            publish.properties = correlation.map(|n| PublishProperties {
                correlation_data: Some(vec![0; n].into()),
                ..PublishProperties::default()
            });
            assert_eq!(publish_bytes(11, payload, correlation), publish.size(), "{payload} {correlation:?}");
        }
    }

    #[test]
    fn a_message_too_large_for_the_broker_is_split_and_every_record_keeps_its_number_and_time() {
        let whole = sealed(300);
        let parts = split(&whole, true, false, 1000);
        assert!(parts.len() > 1 && parts.iter().all(|part| part.payload.len() <= 1000));
        let (mut next, mut times) = (1, Vec::new());
        for part in &parts {
            let read: serde_json::Value = serde_json::from_slice(&part.payload).expect("json");
            assert_eq!(part.seqs.0, next);
            assert_eq!((read["seq"]["first"].as_u64(), read["seq"]["n"].as_u64()), (Some(next), Some(part.n)));
            let mono = read["mono_ns"].as_i64().expect("mono");
            let records = read["data"].as_array().expect("data");
            times.extend(records.iter().map(|r| mono + r["t"].as_i64().expect("t")));
            let wall = 1_000_000 + (mono - 1) / 1_000_000;
            assert_eq!(read["ts"], crate::host::clock::rfc3339_ms(wall), "its first record's time");
            next += part.n;
        }
        assert_eq!(next, 301);
        let meant: Vec<i64> = whole.items.iter().map(|item| item.at_ns as i64).collect();
        assert_eq!(times, meant);
        assert_eq!(split(&whole, true, false, 1 << 20).len(), 1);
        assert_eq!(split(&whole, true, false, 0).len(), 300, "one record cannot be split");
    }

    #[test]
    fn a_split_message_is_settled_with_its_last_part() {
        let mut parcels = Parcels::default();
        let id = ParcelId::default();
        let lost = Loss { seqs: (2, 2), n: 1, reason: "packet_too_large" };
        parcels.begin(id, 3);
        assert_eq!(parcels.settle(id, None), None);
        assert_eq!(parcels.settle(id, Some(lost.clone())), None);
        assert_eq!(parcels.settle(id, None), Some(vec![lost]));
        assert_eq!(parcels.settle(id, None), None);
    }

    #[test]
    fn subscriptions_are_split_by_number_and_by_size_and_none_is_left_out() {
        let wishes: Vec<Wish> =
            (0..21).map(|i| Wish { filter: format!("kl/s/_c-{i}/dn/cmd/+/+"), kept: false }).collect();
        let packets = subscriptions(wishes.clone(), limits::FILTERS, usize::MAX);
        assert!(packets.iter().all(|packet| packet.len() <= limits::FILTERS) && packets.len() == 3);
        assert_eq!(packets.concat(), wishes);
        let packets = subscriptions(wishes.clone(), limits::FILTERS, 64);
        assert!(packets.iter().all(|packet| packet.len() <= 2));
        assert_eq!(packets.concat(), wishes);
        assert_eq!(subscriptions(wishes.clone(), 1, usize::MAX).len(), 21);
    }

    #[test]
    fn what_was_refused_as_too_large_is_split_further_and_a_single_record_tried_once_more() {
        let sizes = Sizes::default().announced(5000);
        assert_eq!(sizes, Sizes { most: 5000, never: 5001 });
        let sizes = sizes.refused(4000);
        assert_eq!(sizes, Sizes { most: 1000, never: 4000 });
        assert_eq!(sizes.refused(3000), Sizes { most: 750, never: 3000 });
    }
}
