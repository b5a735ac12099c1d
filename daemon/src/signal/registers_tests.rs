//! Rows of registers: holes, masks, BCD, values that are not available, scale registers.

use super::*;
use crate::{
    config::{Number, NumberText},
    flow::SourceId,
};

fn channel(name: &str) -> Channel {
    Channel {
        name: name.into(),
        source: SourceId(0),
        column: name.into(),
        unit: String::new(),
        scale: 1.0,
        offset: 0.0,
        min: None,
        max: None,
        rate_max_per_s: None,
        stuck_ms: None,
        stuck_band: 0.0,
        numbers: NumberText::default(),
    }
}

fn column(name: &str, at: usize, number: Number) -> RegisterColumn {
    let (mask, not_available, scale_at) = (None, vec![], None);
    RegisterColumn { name: name.into(), at, number, order: Order::Big, mask, not_available, scale_at }
}

/// The values of `a` and `b` with their quality; a frame of these bytes.
fn decode(rows: &[RegisterRow], frame: &[u8]) -> Result<Vec<(f64, &'static str)>, Refused> {
    let channels = [channel("a"), channel("b")];
    let channels: Vec<&Channel> = channels.iter().collect();
    let (scales, mut row) = (Scales::new(&channels), Row::default());
    scales.clear(&mut row, Quality::Absent);
    Registers::new(rows, &channels).decode(frame, &scales, &mut row)?;
    Ok(row.values.iter().copied().zip(row.quality.iter().map(|quality| quality.word())).collect())
}

fn one(column: RegisterColumn, bytes: &[u8]) -> (f64, &'static str) {
    let rows = [RegisterRow { bytes: bytes.len(), columns: vec![column] }];
    decode(&rows, &[&[0, 0], bytes].concat()).expect("a row")[0]
}

#[test]
fn row_sets_the_channels_of_its_read_and_leaves_the_others_absent() {
    let read = |name| RegisterRow { bytes: 2, columns: vec![column(name, 0, Number::U(2))] };
    let rows = [read("a"), read("b")];
    let got = decode(&rows, &[1, 0, 1, 2]).expect("a row");
    assert_eq!((got[0].1, got[1]), ("absent", (258.0, "good")));
    for wrong in [&[2, 0, 1, 2][..], &[0], &[], &[0, 0], &[0, 0, 1, 1, 1], &[0, 0x80, 1, 2]] {
        assert_eq!(decode(&rows, wrong), Err(Refused::Length), "{wrong:?}");
    }
}

#[test]
fn register_that_did_not_come_is_absent_and_the_others_of_its_read_are_good() {
    let rows = [RegisterRow { bytes: 6, columns: vec![column("a", 0, Number::U(4)), column("b", 4, Number::U(2))] }];
    let got = |known: u8| decode(&rows, &[0, 0x80, known, 0, 0, 0, 7, 0, 9]).expect("a row");
    assert_eq!(got(0b11_1111), [(7.0, "good"), (9.0, "good")]);
    let (holes_in_a, hole_b) = (got(0b11_0011), got(0b00_1111));
    assert_eq!((holes_in_a[0].1, holes_in_a[1]), ("absent", (9.0, "good")));
    assert_eq!((hole_b[0], hole_b[1].1), ((7.0, "good"), "absent"));
}

#[test]
fn mask_takes_its_bits_down_to_zero() {
    let masked = |mask| RegisterColumn { mask: Some(mask), ..column("a", 0, Number::U(2)) };
    assert_eq!(one(masked(0x0F00), &[0xA5, 0x3C]), (5.0, "good"));
    assert_eq!(one(masked(0x0004), &[0xA5, 0x3C]), (1.0, "good"));
    assert_eq!(one(masked(0x8000), &[0x25, 0x3C]), (0.0, "good"));
}

#[test]
fn bcd_digits_are_decimal_and_a_digit_above_nine_is_bad() {
    let bcd = |bytes: u8| column("a", 0, Number::Bcd(bytes));
    assert_eq!(one(bcd(2), &[0x12, 0x34]), (1234.0, "good"));
    assert_eq!(one(bcd(4), &[0x98, 0x76, 0x54, 0x32]), (98_765_432.0, "good"));
    assert_eq!(one(bcd(2), &[0x12, 0x3A]).1, "bad:not_a_number");
    let swapped = RegisterColumn { order: Order::WordsSwapped, ..bcd(4) };
    assert_eq!(one(swapped, &[0x54, 0x32, 0x98, 0x76]), (98_765_432.0, "good"));
}

#[test]
fn value_that_means_not_available_is_bad_with_that_reason() {
    let missing = |number, bits| RegisterColumn { not_available: vec![bits], ..column("a", 0, number) };
    assert_eq!(one(missing(Number::I(2), 0x8000), &[0x80, 0]).1, "bad:not_available");
    assert_eq!(one(missing(Number::I(2), 0x8000), &[0x80, 1]), (-32767.0, "good"));
    assert_eq!(one(missing(Number::U(4), 0xFFFF_FFFF), &[0xFF; 4]).1, "bad:not_available");
    assert_eq!(one(column("a", 0, Number::F(4)), &f32::NAN.to_be_bytes()).1, "bad:not_a_number");
}

#[test]
fn scale_register_is_a_power_of_ten_and_one_that_is_none_makes_the_value_bad() {
    let scaled = |order| RegisterColumn { scale_at: Some(4), order, ..column("a", 0, Number::U(2)) };
    let of = |power: i16| {
        let [a, b] = power.to_be_bytes();
        one(scaled(Order::Big), &[0x08, 0xFD, 0, 0, a, b])
    };
    assert_eq!(of(-1), (230.1, "good"));
    assert_eq!(of(-3), (2.301, "good"));
    assert_eq!(of(0), (2301.0, "good"));
    assert_eq!(of(2), (230_100.0, "good"));
    assert_eq!((of(i16::MIN).1, of(11).1), ("bad:not_available", "bad:not_available"));
    assert_eq!(one(scaled(Order::Little), &[0xFD, 0x08, 0, 0, 0xFF, 0xFF]), (230.1, "good"));
    // It did not come with the value: nothing is known of it.
    let rows = [RegisterRow { bytes: 6, columns: vec![scaled(Order::Big)] }];
    assert_eq!(decode(&rows, &[0, 0x80, 0b1111, 8, 0xFD, 0, 0, 0, 0]).expect("a row")[0].1, "absent");
}
