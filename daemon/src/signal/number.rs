//! The text of a field into a number, as its channel says. Strict: what can be read in two ways is no number. Pure; no
//! allocation.

use crate::{
    config::{Base, NumberText, Word},
    flow::Why,
    limits,
};

/// What a field's text means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// A number; finite.
    Value(f64),
    /// No value.
    Missing,
    /// A value that must not be used.
    Bad(Why),
}

impl From<Option<f64>> for Reading {
    fn from(value: Option<f64>) -> Self {
        value.map_or(Self::Bad(Why::NotANumber), Self::Value)
    }
}

/// Reads the numbers of one channel.
#[derive(Debug, Clone)]
pub struct Numbers {
    rules: NumberText,
    /// Nothing is configured: most numbers are digits, a point and a sign.
    plain: bool,
    /// Words that are numbers, and say that there is no value: `-999.9` is meant by `-999.90` as well.
    no_values: Vec<(f64, Reading)>,
}

impl Numbers {
    /// As configured.
    pub fn new(rules: &NumberText) -> Self {
        let plain = NumberText { sign_behind: rules.sign_behind, ..NumberText::default() } == *rules;
        let bare = Self { rules: NumberText { suffixes: Vec::new(), ..rules.clone() }, plain, no_values: Vec::new() };
        let words = rules.words.iter().filter(|(_, word)| !matches!(word, Word::Number(_)));
        let no_values = words.filter_map(|(text, _)| Some((bare.number(text)?.0, bare.word(text)?))).collect();
        Self { rules: rules.clone(), plain, no_values }
    }

    /// A number and its factor, unless the number is one that says that there is no value.
    fn value(&self, number: Option<(f64, f64)>) -> Reading {
        let Some((number, factor)) = number else { return None.into() };
        if let Some((_, reading)) = self.no_values.iter().find(|(known, _)| *known == number) {
            return *reading;
        }
        instruments_word(number).unwrap_or_else(|| Some(number * factor).filter(|x| x.is_finite()).into())
    }

    /// Reads a field without blanks around it.
    #[inline(always)]
    pub fn read(&self, text: &str) -> Reading {
        let digits = |b: u8| matches!(b, b'0'..=b'9' | b'.' | b'-' | b'+');
        if self.plain
            && text.bytes().all(digits)
            && let Ok(value) = text.parse()
        {
            return Reading::Value(value);
        }
        self.word(text).unwrap_or_else(|| self.value(self.number(text)))
    }

    /// The same for bytes: what is no UTF-8 is no number.
    pub fn read_bytes(&self, bytes: &[u8]) -> Reading {
        match std::str::from_utf8(bytes.trim_ascii()) {
            Ok(text) => self.read(text),
            Err(_) => Reading::Bad(Why::NotANumber),
        }
    }

    /// A number that came as one, as JSON has them. It has no unit beside it.
    pub fn read_number(&self, value: f64, text: impl FnOnce() -> String) -> Reading {
        let word = if self.rules.words.is_empty() { None } else { self.word(&text()) };
        let Some(factor) = self.factor("") else { return word.unwrap_or(Reading::Bad(Why::NotANumber)) };
        word.unwrap_or_else(|| self.value(Some((value, factor))))
    }

    /// A text with a meaning of its own.
    pub fn word(&self, text: &str) -> Option<Reading> {
        let (_, word) = self.rules.words.iter().find(|(word, _)| word == text)?;
        Some(match *word {
            Word::Number(value) => Reading::Value(value),
            Word::Missing => Reading::Missing,
            Word::Bad(why) => Reading::Bad(why),
        })
    }

    /// What a number with this suffix is multiplied with; `None`: it must have another one.
    fn factor(&self, suffix: &str) -> Option<f64> {
        if self.rules.suffixes.is_empty() && suffix.is_empty() {
            return Some(1.0);
        }
        self.rules.suffixes.iter().find(|(text, _)| text == suffix).map(|(_, factor)| *factor)
    }

    /// A number without its suffix, and what it is multiplied with.
    fn number(&self, text: &str) -> Option<(f64, f64)> {
        let listed =
            self.rules.suffixes.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)));
        let (text, factor) = if self.rules.suffixes.is_empty() { (text, 1.0) } else { listed? };
        let text = text.trim_ascii();
        let sign = |byte: Option<&u8>| matches!(byte, Some(b'+' | b'-'));
        let bytes = text.as_bytes();
        let (sign, digits) = if sign(bytes.first()) {
            (bytes.first(), text[1..].trim_ascii())
        } else if self.rules.sign_behind && sign(bytes.last()) {
            (bytes.last(), text[..text.len() - 1].trim_ascii())
        } else {
            (None, text)
        };
        let value = match self.rules.base {
            Base::Decimal => self.decimal(digits.as_bytes())?,
            Base::Hex(bits) => whole(digits, ["0x", "0X"], 16, if sign.is_none() { bits } else { 0 })?,
            Base::Binary => whole(digits, ["0b", "0B"], 2, 0)?,
        };
        let value = if sign == Some(&b'-') { -value } else { value };
        value.is_finite().then_some((value, factor))
    }

    /// Digits, marks of thousands, a decimal mark, an exponent; without sign.
    fn decimal(&self, text: &[u8]) -> Option<f64> {
        let mut plain = Plain::default();
        let exponent = text.iter().position(|b| matches!(b, b'e' | b'E')).unwrap_or(text.len());
        let (mantissa, exponent) = text.split_at(exponent);
        let mark = mantissa.iter().position(|b| *b == self.rules.decimal);
        let (whole, fraction) = mantissa.split_at(mark.unwrap_or(mantissa.len()));
        self.grouped(whole, &mut plain)?;
        let fraction = fraction.get(1..).unwrap_or_default();
        plain.push(b'.')?;
        plain.digits(fraction)?;
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        if let [_, rest @ ..] = exponent {
            let signed = matches!(rest.first(), Some(b'+' | b'-'));
            // `1E5` may as well be a hexadecimal word: an exponent is believed behind a decimal mark or with a sign.
            if !signed && mark.is_none() || rest.len() == usize::from(signed) {
                return None;
            }
            plain.push(b'e')?;
            let (sign, digits) = rest.split_at(usize::from(signed));
            sign.iter().try_for_each(|b| plain.push(*b))?;
            plain.digits(digits)?;
        }
        plain.value()
    }

    /// Digits in groups of three, or without any marks between.
    fn grouped(&self, whole: &[u8], plain: &mut Plain) -> Option<()> {
        let mut buffer = [0; 4];
        let mark = self.rules.thousands.map(|c| &*c.encode_utf8(&mut buffer)).unwrap_or_default().as_bytes();
        let Some(first) = (!mark.is_empty()).then(|| memchr::memmem::find(whole, mark)).flatten() else {
            return plain.digits(whole);
        };
        if !(1..=3).contains(&first) {
            return None;
        }
        let (group, mut rest) = whole.split_at(first);
        plain.digits(group)?;
        while !rest.is_empty() {
            let group = rest.strip_prefix(mark)?.get(..3)?;
            plain.digits(group)?;
            rest = &rest[mark.len() + 3..];
        }
        Some(())
    }
}

/// Numbers by which instruments (SCPI, IEEE 488.2) say that they have none: 9.9E37 is above the range, -9.9E37 below it, 9.91E37
/// is not a number. Nothing that is measured is as large.
fn instruments_word(number: f64) -> Option<Reading> {
    match number {
        9.91e37 => Some(Reading::Bad(Why::NotANumber)),
        9.9e37.. => Some(Reading::Bad(Why::Overload)),
        ..=-9.9e37 => Some(Reading::Bad(Why::Underload)),
        _ => None,
    }
}

/// A number where nothing is configured, as sentences of NMEA 0183 have them.
pub fn plain(text: &str) -> Option<f64> {
    let usual = Numbers { rules: NumberText::default(), plain: true, no_values: Vec::new() };
    match usual.read(text) {
        Reading::Value(value) => Some(value),
        Reading::Missing | Reading::Bad(_) => None,
    }
}

/// Whole numbers of another base; `bits`: of a two's complement, 0 where it has no sign.
fn whole(digits: &str, prefixes: [&str; 2], radix: u32, bits: u32) -> Option<f64> {
    let digits = prefixes.iter().find_map(|prefix| digits.strip_prefix(prefix)).unwrap_or(digits);
    // It would take a sign.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    if bits == 0 {
        return Some(value as f64);
    }
    if value >> bits != 0 {
        return None;
    }
    let unused = 64 - bits;
    Some(((value << unused) as i64 >> unused) as f64)
}

/// A number as the standard library reads it.
struct Plain {
    bytes: [u8; limits::NUMBER_CHARS],
    n: usize,
}

impl Default for Plain {
    fn default() -> Self {
        Self { bytes: [0; limits::NUMBER_CHARS], n: 0 }
    }
}

impl Plain {
    fn push(&mut self, byte: u8) -> Option<()> {
        *self.bytes.get_mut(self.n)? = byte;
        self.n += 1;
        Some(())
    }

    fn digits(&mut self, digits: &[u8]) -> Option<()> {
        digits.iter().try_for_each(|b| if b.is_ascii_digit() { self.push(*b) } else { None })
    }

    fn value(&self) -> Option<f64> {
        std::str::from_utf8(self.bytes.get(..self.n)?).ok()?.parse().ok()
    }
}
