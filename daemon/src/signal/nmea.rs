//! NMEA 0183: `$` address, fields with commas between, `*` and the exclusive or of what lies between as two digits. Pure.

use super::row::{Refused, Row, Scales};
use crate::config::{Channel, Sentence};

/// What one field is for.
#[derive(Debug, Clone, Default)]
struct Place {
    channels: Vec<usize>,
    /// An angle as degrees and minutes, `4807.038`, its hemisphere in the next field.
    angle: bool,
}

/// The sentences of one source.
#[derive(Debug)]
pub struct Nmea {
    sentences: Vec<(String, Vec<Place>)>,
}

impl Nmea {
    /// `channels`: of the source, in the order of its rows.
    pub fn new(sentences: &[Sentence], channels: &[&Channel]) -> Self {
        let place = |column: &Option<(String, bool)>| match column {
            Some((name, angle)) => Place {
                channels: (0..channels.len()).filter(|i| channels[*i].column == *name).collect(),
                angle: *angle,
            },
            None => Place::default(),
        };
        let sentence = |s: &Sentence| (s.name.clone(), s.columns.iter().map(place).collect());
        Self { sentences: sentences.iter().map(sentence).collect() }
    }

    /// Decodes one line. `false`: the sentence is not configured.
    pub fn decode(&self, text: &str, scales: &Scales, row: &mut Row) -> Result<bool, Refused> {
        let inner = text.trim_ascii().strip_prefix(['$', '!']).ok_or(Refused::NotNmea)?;
        let (inner, sum) = inner.rsplit_once('*').ok_or(Refused::NotNmea)?;
        let sum = Some(sum).filter(|sum| sum.len() == 2).and_then(|sum| u8::from_str_radix(sum, 16).ok());
        if sum.ok_or(Refused::NotNmea)? != inner.bytes().fold(0, |sum, byte| sum ^ byte) {
            return Err(Refused::Checksum);
        }
        let mut fields = inner.split(',').map(str::trim_ascii);
        let address = fields.next().unwrap_or_default();
        let is = |name: &str| address == name || address.len() == 5 && address.get(2..) == Some(name);
        let Some((_, places)) = self.sentences.iter().find(|(name, _)| is(name)) else {
            return Ok(false);
        };
        let fields: Vec<&str> = fields.collect();
        for (i, place) in places.iter().enumerate().filter(|(_, place)| !place.channels.is_empty()) {
            let text = fields.get(i).copied().unwrap_or_default();
            let value = match place.angle {
                true => angle(text, fields.get(i + 1).copied().unwrap_or_default()),
                false => text.parse().ok(),
            };
            for channel in &place.channels {
                if text.is_empty() {
                    row.quality[*channel] = crate::flow::Quality::Missing;
                } else {
                    scales.set(row, *channel, value);
                }
            }
        }
        Ok(true)
    }
}

/// Degrees, south and west negative.
fn angle(text: &str, hemisphere: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    let degrees = (number / 100.0).trunc();
    let value = degrees + (number - degrees * 100.0) / 60.0;
    match hemisphere {
        "N" | "E" => Some(value),
        "S" | "W" => Some(-value),
        _ => None,
    }
}
