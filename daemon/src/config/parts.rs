//! What tables of several kinds have in common: a tty's settings, bytes, types of numbers, names that must differ.

use super::{Framing, Line, LineForm, Number, Order, Serial, paths::device, raw::Table};
use crate::limits;

/// A tty's path and speed.
pub(super) fn line(t: &mut Table<'_>) -> Serial {
    let text = t.str("line").unwrap_or_else(|| "8N1".into());
    let line = Line::parse(&text).unwrap_or_else(|| {
        let why = format!(
            "`{text}` is invalid: expected data bits 5 to 8, parity `N`, `E` or `O`, stop bits 1 or 2, such as `8E1`"
        );
        t.problem("line", why);
        Line { data: 8, parity: b'N', stop: 1 }
    });
    Serial {
        path: device(t, "path", "/dev"),
        baud: t.int("baud", 50..=4_000_000).map_or(115_200, |n| n as u32),
        line,
        frame_max: limits::FRAME_BYTES,
        framing: Framing::Lines,
        check: None,
        lines: LineForm::default(),
        poll: None,
    }
}

/// Bytes written as hexadecimal digits, `aa 55`.
pub(super) fn bytes(t: &mut Table<'_>, key: &'static str) -> Option<Vec<u8>> {
    let given = t.str(key)?;
    let text: String = given.split_whitespace().collect();
    let digits = text.len().is_multiple_of(2) && !text.is_empty() && text.len() <= 512 && text.is_ascii();
    let pair = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
    let bytes = digits.then(|| (0..text.len() / 2).map(pair).collect::<Option<Vec<u8>>>()).flatten();
    if bytes.is_none() {
        let bare: Vec<&str> =
            given.split([' ', ',']).map(|part| part.trim_start_matches("0x")).filter(|part| !part.is_empty()).collect();
        let digits = bare.iter().all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
        let meant =
            if digits && !bare.is_empty() { format!("; did you mean `{}`?", bare.join(" ")) } else { String::new() };
        t.problem(key, format!("must be bytes as hexadecimal digits, such as `aa 55`{meant}"));
    }
    bytes
}

/// The first name that occurs twice.
pub(super) fn twice(names: &[String]) -> Option<&String> {
    names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)).map(|(_, name)| name)
}

/// How a type is called here that others call `float`, `uint16` or `dint`.
pub(super) fn usual_name(text: &str) -> Option<&'static str> {
    const OTHERS: [(&str, &str); 22] = [
        ("float", "f32"),
        ("float32", "f32"),
        ("single", "f32"),
        ("real", "f32"),
        ("double", "f64"),
        ("float64", "f64"),
        ("byte", "u8"),
        ("uint8", "u8"),
        ("int8", "i8"),
        ("int", "i16"),
        ("short", "i16"),
        ("int16", "i16"),
        ("word", "u16"),
        ("uint", "u16"),
        ("uint16", "u16"),
        ("dint", "i32"),
        ("int32", "i32"),
        ("dword", "u32"),
        ("uint32", "u32"),
        ("int64", "i64"),
        ("uint64", "u64"),
        ("bcd", "bcd16"),
    ];
    let lower = text.to_ascii_lowercase();
    OTHERS.iter().find(|(other, _)| *other == lower).map(|(_, own)| *own)
}

/// `u16le`, `f32be`, `i32cdab`; big-endian by default.
pub(super) fn number(text: &str) -> Option<(Number, Order)> {
    let orders = [
        ("", Order::Big),
        ("be", Order::Big),
        ("le", Order::Little),
        ("abcd", Order::Big),
        ("dcba", Order::Little),
        ("cdab", Order::WordsSwapped),
        ("badc", Order::BytesSwapped),
    ];
    let (name, number) = Number::NAMES.iter().find(|(name, _)| text.starts_with(name))?;
    let (_, order) = orders.iter().find(|(order, _)| *order == &text[name.len()..])?;
    let words = matches!(order, Order::WordsSwapped | Order::BytesSwapped);
    (!words || number.bytes() % 2 == 0).then_some((*number, *order))
}

/// Whether two paths name one device.
pub(super) fn is_same_port(one: &str, other: &str) -> bool {
    let real = |path: &str| std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    real(one) == real(other)
}
