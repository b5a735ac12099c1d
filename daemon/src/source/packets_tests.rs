//! Binary framings: whatever the cuts, every clean frame comes out, and what is broken costs itself.

use proptest::prelude::*;

use super::*;
use crate::config::{Number, Order};

/// 32 bits: with 16, one broken frame in some 65,536 checks by chance, and these tests see that many.
const CHECK: Check = Check { kind: CheckKind::Crc32, little: true, skip: 0 };

fn framings() -> Vec<(Framing, Option<Check>)> {
    let start = vec![0xAA, 0x55];
    let big = (Number::U(2), Order::Big);
    vec![
        (Framing::Cobs, Some(CHECK)),
        (Framing::Slip, Some(CHECK)),
        (Framing::Fixed { start: start.clone(), bytes: 14 }, Some(CHECK)),
        (Framing::Fixed { start: vec![], bytes: 14 }, Some(CHECK)),
        (
            Framing::Length { start: start.clone(), number: big, beside: 8 },
            Some(Check { little: false, skip: 2, ..CHECK }),
        ),
        (Framing::Length { start, number: (Number::U(1), Order::Big), beside: 0 }, Some(CHECK)),
        (Framing::Delimited { start: 2, stop: 3, escape: Some(0x10) }, Some(CHECK)),
        (Framing::Delimited { start: 0x7E, stop: 0x7E, escape: Some(0x10) }, Some(CHECK)),
    ]
}

/// What a device with this framing sends.
fn encode(framing: &Framing, check: Option<Check>, content: &[u8]) -> Vec<u8> {
    let with_sum = |mut bytes: Vec<u8>| {
        if let Some(check) = check {
            let sum = sum(check.kind, &bytes[check.skip..]).to_be_bytes();
            let mut sum = sum[8 - check.kind.bytes()..].to_vec();
            if check.little {
                sum.reverse();
            }
            bytes.extend(sum);
        }
        bytes
    };
    match framing {
        Framing::Lines => unreachable!("lines are not binary"),
        Framing::Cobs => {
            let inner = with_sum(content.to_vec());
            let mut out = vec![0; inner.len() + inner.len() / 254 + 1];
            let n = cobs::encode(&inner, &mut out);
            out.truncate(n);
            out.push(0);
            out
        }
        Framing::Slip => {
            let mut out = Vec::new();
            for byte in with_sum(content.to_vec()) {
                match byte {
                    0xC0 => out.extend([0xDB, 0xDC]),
                    0xDB => out.extend([0xDB, 0xDD]),
                    byte => out.push(byte),
                }
            }
            out.push(0xC0);
            out
        }
        Framing::Fixed { start, .. } => with_sum([start.as_slice(), content].concat()),
        Framing::Length { start, number, beside } => {
            let sum = check.map_or(0, |c| c.kind.bytes());
            let length = start.len() + number.0.bytes() + content.len() + sum - beside;
            let length = (length as u64).to_be_bytes();
            with_sum([start.as_slice(), &length[8 - number.0.bytes()..], content].concat())
        }
        Framing::Delimited { start, stop, escape } => {
            let mut out = vec![*start];
            for byte in with_sum(content.to_vec()) {
                if byte == *start || byte == *stop || Some(byte) == *escape {
                    out.extend(*escape);
                }
                out.push(byte);
            }
            out.push(*stop);
            out
        }
    }
}

fn cut(framing: &Framing, check: Option<Check>, reads: &[&[u8]]) -> (Vec<Vec<u8>>, usize) {
    let mut packets = Packets::new(framing.clone(), check, 64);
    let (mut frames, mut flaws) = (Vec::new(), 0);
    let mut take = |cut: Cut| {
        for (from, to) in &cut.ranges {
            match cut.bytes.get(*from as usize..*to as usize) {
                Some(frame) => frames.push(frame.to_vec()),
                None => flaws += 1,
            }
        }
    };
    reads.iter().for_each(|read| take(packets.feed(read)));
    take(packets.give_up(false));
    assert!(packets.carry.len() <= 512, "{} bytes wait", packets.carry.len());
    (frames, flaws)
}

/// Ten bytes that are 8 where all frames are of one length: 2 start bytes and 4 of the check make 14.
fn content(framing: &Framing, bytes: &[u8]) -> Vec<u8> {
    match framing {
        Framing::Fixed { start, .. } => (0..10 - start.len()).map(|i| bytes[i % bytes.len()]).collect(),
        _ => bytes.to_vec(),
    }
}

proptest! {
    #[test]
    fn frames_are_the_same_however_the_bytes_are_cut(
        which in any::<prop::sample::Index>(),
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 1..8),
        size in 1usize..50,
    ) {
        let (framing, check) = which.get(&framings()).clone();
        let contents: Vec<Vec<u8>> = contents.iter().map(|bytes| content(&framing, bytes)).collect();
        let bytes: Vec<u8> = contents.iter().flat_map(|content| encode(&framing, check, content)).collect();
        let (frames, flaws) = cut(&framing, check, &bytes.chunks(size).collect::<Vec<_>>());
        prop_assert_eq!(frames, contents);
        prop_assert_eq!(flaws, 0);
    }

    #[test]
    fn a_broken_frame_costs_itself_and_every_clean_one_behind_it_comes(
        which in any::<prop::sample::Index>(),
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 4..20), 4..12),
        broken in 1usize..3,
        at in any::<prop::sample::Index>(),
        how in 0u8..4,
    ) {
        let (framing, check) = which.get(&framings()).clone();
        let contents: Vec<Vec<u8>> = contents.iter().map(|bytes| content(&framing, bytes)).collect();
        let mut bytes = Vec::new();
        for (i, content) in contents.iter().enumerate() {
            let mut frame = encode(&framing, check, content);
            if i == broken {
                let at = at.index(frame.len());
                match how {
                    0 => drop(frame.remove(at)),
                    1 => frame[at] ^= 0x41,
                    2 => frame.insert(at, 0x7e),
                    _ => frame.truncate(at),
                }
            }
            bytes.extend(frame);
        }
        let (frames, flaws) = cut(&framing, check, &[&bytes]);
        // A delimiter that was lost takes the next frame with it; by place and check, none.
        let is_delimited = Packets::new(framing.clone(), check, 64).is_delimited();
        let from = if is_delimited { broken + 2 } else { broken + 1 };
        for content in contents[..broken].iter().chain(&contents[from..]) {
            prop_assert!(frames.contains(content), "{framing:?}: {content:?} is lost");
        }
        for frame in &frames {
            prop_assert!(contents.contains(frame), "{framing:?}: {frame:?} was never sent");
        }
        if frames.len() < contents.len() {
            prop_assert!(flaws > 0 || how == 3, "{framing:?}: nothing is said of what was lost");
        }
    }
}

#[test]
fn what_a_connection_begins_in_the_middle_of_is_no_fault() {
    for (framing, check) in framings() {
        let content = content(&framing, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let frame = encode(&framing, check, &content);
        let bytes = [&frame[3..], &frame, &frame].concat();
        assert_eq!(cut(&framing, check, &[&bytes]), (vec![content.clone(), content], 0), "{framing:?}");
    }
}

#[test]
fn a_megabyte_without_an_end_waits_in_no_memory_and_costs_one_frame() {
    for (framing, check) in framings() {
        let content = content(&framing, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let frame = encode(&framing, check, &content);
        let mut packets = Packets::new(framing.clone(), check, 64);
        packets.feed(&frame);
        for _ in 0..256 {
            packets.feed(&[0x7f; 4096]);
            assert!(packets.carry.len() <= 4096 + 512, "{framing:?}: {}", packets.carry.len());
        }
        // The delimiter that ends what had no end.
        let tail = &frame[frame.len() - 1..];
        packets.feed(if packets.is_delimited() { tail } else { &[] });
        packets.give_up(false);
        let cut = packets.feed(&frame);
        assert_eq!(cut.bytes, content, "{framing:?}");
    }
}

/// Check values of the catalogue of parametrised CRC algorithms (Greg Cook): of the text `123456789`.
#[test]
fn checksums_give_the_catalogues_check_values() {
    let known = [
        (CheckKind::Crc8, 0xF4),
        (CheckKind::Crc8Maxim, 0xA1),
        (CheckKind::Crc16Modbus, 0x4B37),
        (CheckKind::Crc16Ccitt, 0x29B1),
        (CheckKind::Crc16Xmodem, 0x31C3),
        (CheckKind::Crc16Kermit, 0x2189),
        (CheckKind::Crc16X25, 0x906E),
        (CheckKind::Crc16Arc, 0xBB3D),
        (CheckKind::Crc32, 0xCBF4_3926),
        (CheckKind::Crc32c, 0xE306_9283),
        (CheckKind::Crc32Mpeg2, 0x0376_E6E7),
        (CheckKind::Sum8, 0xDD),
        (CheckKind::Sum16, 0x01DD),
        (CheckKind::Zero8, 0x23),
        (CheckKind::Xor8, 0x31),
    ];
    for (kind, value) in known {
        assert_eq!(sum(kind, b"123456789"), value, "{kind:?}");
    }
    assert_eq!(known.len(), CheckKind::NAMES.len());
}
