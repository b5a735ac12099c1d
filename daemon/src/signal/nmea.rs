//! NMEA 0183: `$` address, fields with commas between, `*` and the exclusive or of what lies between as two digits. Pure.
//!
//! A value is good only where its sentence says so and where it is certain what it means: a field that names its unit or its
//! reference, and that the configuration says nothing of, must stay what it was first.

use super::{
    number::plain,
    row::{Refused, Row, Scales},
};
use crate::{
    config::{self, Channel, FieldAt, Reading},
    flow::{Quality, Why},
    limits,
};

#[derive(Debug)]
struct Value {
    channels: Vec<usize>,
    config: config::SentenceValue,
    /// One for each field in `config.constant`, or for the unit of a transducer.
    letters: Vec<Letter>,
}

/// The sentences of one source.
#[derive(Debug)]
pub struct Nmea {
    sentences: Vec<(config::Sentence, Vec<Value>)>,
    checksum_optional: bool,
}

impl Nmea {
    /// `channels`: of the source, in the order of its rows.
    pub fn new(nmea: &config::Nmea, channels: &[&Channel]) -> Self {
        let value = |value: &config::SentenceValue| {
            let letters = match value.at {
                FieldAt::Field(_) => value.constant.len(),
                FieldAt::Transducer { .. } => 1,
            };
            let channels: Vec<_> = (0..channels.len()).filter(|i| channels[*i].column == value.column).collect();
            let letters = std::iter::repeat_with(Letter::default).take(letters).collect();
            (!channels.is_empty()).then(|| Value { channels, config: value.clone(), letters })
        };
        let sentence = |s: &config::Sentence| (s.clone(), s.values.iter().filter_map(value).collect());
        Self { sentences: nmea.sentences.iter().map(sentence).collect(), checksum_optional: nmea.checksum_optional }
    }

    /// Decodes one line. `false`: the sentence is not configured.
    pub fn decode(&mut self, text: &str, scales: &Scales, row: &mut Row) -> Result<bool, Refused> {
        let inner = self.checked(text)?;
        let mut fields = inner.split(',').map(str::trim_ascii);
        let address = fields.next().unwrap_or_default();
        let is = |name: &str| address == name || address.len() == 5 && address.get(2..) == Some(name);
        let fields: Vec<&str> = fields.collect();
        let mut taken = false;
        for (sentence, values) in self.sentences.iter_mut().filter(|(sentence, _)| is(&sentence.name)) {
            if !sentence.only.iter().all(|c| c.test.fits(fields.get(c.place).copied().unwrap_or_default())) {
                continue;
            }
            let transducers = sentence.values.iter().any(|v| matches!(v.at, FieldAt::Transducer { .. }));
            taken |= !transducers;
            for value in values {
                let Some((text, result)) = value.read(&fields) else { continue };
                taken = true;
                for channel in &value.channels {
                    match result {
                        _ if text.is_empty() => row.quality[*channel] = Quality::Missing,
                        Ok(number) => scales.set(row, *channel, number),
                        Err(why) => row.quality[*channel] = Quality::Bad(why),
                    }
                }
            }
        }
        Ok(taken)
    }

    /// What stands between `$` and `*`, whose checksum is right.
    fn checked<'a>(&self, text: &'a str) -> Result<&'a str, Refused> {
        let text = untagged(text.trim_ascii())?;
        let inner = text.strip_prefix(['$', '!']).ok_or(Refused::NotNmea)?;
        let Some((inner, sum)) = inner.rsplit_once('*') else {
            // A sentence has an address and a field at least; other text may begin with a dollar too.
            let is_sentence = inner.split_once(',').is_some_and(|(address, _)| (3..=8).contains(&address.len()));
            return match (is_sentence, self.checksum_optional) {
                (false, _) => Err(Refused::NotNmea),
                (true, false) => Err(Refused::NoChecksum),
                (true, true) => Ok(inner),
            };
        };
        matches(inner, sum).map(|()| inner)
    }
}

/// Whether the two digits are the checksum of what stands before them.
fn matches(inner: &str, sum: &str) -> Result<(), Refused> {
    let digits = Some(sum).filter(|sum| sum.len() == 2 && sum.bytes().all(|b| b.is_ascii_hexdigit()));
    let sum = digits.and_then(|sum| u8::from_str_radix(sum, 16).ok()).ok_or(Refused::NotNmea)?;
    if sum == inner.bytes().fold(0, |sum, byte| sum ^ byte) { Ok(()) } else { Err(Refused::Checksum) }
}

/// A sentence without the tag block that receivers put before it: `\s:ID,c:TIME*hh\$…`.
fn untagged(text: &str) -> Result<&str, Refused> {
    let Some(tagged) = text.strip_prefix('\\') else { return Ok(text) };
    let (block, sentence) = tagged.split_once('\\').ok_or(Refused::NotNmea)?;
    let (inner, sum) = block.rsplit_once('*').ok_or(Refused::NotNmea)?;
    matches(inner, sum).map(|()| sentence)
}

type Read<'a> = (&'a str, Result<Option<f64>, Why>);

impl Value {
    /// The field's text, and its number or why it cannot be used; `None`: the sentence does not have it.
    fn read<'a>(&mut self, fields: &[&'a str]) -> Option<Read<'a>> {
        let field = |place: usize| fields.get(place).copied().unwrap_or_default();
        let (place, constant) = match &self.config.at {
            FieldAt::Field(place) => (*place, self.config.constant.as_slice()),
            FieldAt::Transducer { kind, name } => {
                let is = |group: &&[&str]| group[3] == name && kind.as_ref().is_none_or(|kind| group[0] == kind);
                let mut own = (fields.chunks_exact(4).enumerate()).filter_map(|(i, group)| is(&group).then_some(i * 4));
                let at = own.next()?;
                if own.next().is_some() {
                    // Which of the two is meant?
                    return Some((field(at + 1), Err(Why::Ambiguous)));
                }
                let unit: &[usize] = if self.config.reading == Reading::Number { &[at + 2] } else { &[] };
                return Some(self.judge(field(at + 1), field(at + 2), unit, fields));
            }
        };
        let constant = constant.to_owned();
        Some(self.judge(field(place), field(place + 1), &constant, fields))
    }

    fn judge<'a>(&mut self, text: &'a str, beside: &str, constant: &[usize], fields: &[&str]) -> Read<'a> {
        let fits = |c: &config::FieldRule| fields.get(c.place).is_none_or(|text| c.test.fits(text));
        if !self.config.valid.iter().all(fits) {
            return (text, Err(Why::Invalid));
        }
        if text.is_empty() {
            return (text, Ok(None));
        }
        let mut certain = true;
        for (letter, place) in self.letters.iter_mut().zip(constant) {
            certain &= letter.stays(fields.get(*place).copied().unwrap_or_default());
        }
        if !certain {
            return (text, Err(Why::Ambiguous));
        }
        let number = || plain(text);
        let result = match self.config.reading {
            Reading::Number => Ok(number()),
            Reading::Angle => Ok(angle(text, beside)),
            Reading::Signed => match (number(), beside) {
                (number, "E" | "N" | "R") => Ok(number),
                (number, "W" | "S" | "L") => Ok(number.map(|x| -x)),
                _ => Err(Why::Ambiguous),
            },
            Reading::Unit(unit) => match number() {
                Some(number) => unit.convert(number, beside).map(Some).ok_or(Why::Ambiguous),
                None => Ok(None),
            },
        };
        (text, result)
    }
}

/// A field that must stay what it was first.
#[derive(Debug, Default)]
struct Letter {
    first: Option<String>,
    /// How often the first one came, and others since it came a good while.
    seen: u32,
    others: u32,
    /// Others come again and again: which one is meant is not known, until only the first comes for a good while.
    ambiguous: bool,
}

impl Letter {
    /// Whether the value beside it means what it meant before.
    fn stays(&mut self, text: &str) -> bool {
        let is_first = self.first.get_or_insert_with(|| text.to_owned()) == text;
        if is_first {
            self.seen += 1;
            // Now and then one is spoilt, and its checksum is right nevertheless.
            if self.seen >= limits::LETTER_SENTENCES {
                (self.seen, self.others, self.ambiguous) = (2, 0, false);
            }
            return !self.ambiguous;
        }
        self.others = self.others.saturating_add(1);
        let often = self.others >= limits::LETTER_OTHERS;
        if often && self.seen == 1 {
            // The very first one was spoilt.
            *self = Self { first: Some(text.to_owned()), seen: 2, ..Self::default() };
            return true;
        }
        self.ambiguous |= often;
        if self.ambiguous {
            self.seen = 2;
        }
        false
    }
}

/// Degrees, south and west negative. The sign is in the hemisphere alone, and a degree has 60 minutes.
fn angle(text: &str, hemisphere: &str) -> Option<f64> {
    let number = plain(text).filter(|_| text.starts_with(|c: char| c.is_ascii_digit()))?;
    let degrees = (number / 100.0).trunc();
    let minutes = number - degrees * 100.0;
    let (sign, most) = match hemisphere {
        "N" => (1.0, 90.0),
        "E" => (1.0, 180.0),
        "S" => (-1.0, 90.0),
        "W" => (-1.0, 180.0),
        _ => return None,
    };
    let value = degrees + minutes / 60.0;
    (minutes < 60.0 && value <= most).then_some(sign * value)
}

#[cfg(test)]
#[path = "nmea_tests.rs"]
mod tests;
