//! Frames into rows: CSV and JSON lines, NMEA sentences, binary numbers, Modbus registers and the edges of GPIO lines into
//! the channels of one source. Pure.

use super::{edges::Edges, nmea::Nmea, registers::Registers, row::Scales};
use crate::{
    config::{Channel, Format, Layout, Source, TimeFormat},
    flow::{Flaw, Quality, Stamp},
};

pub use super::row::{Refused, Row};

/// What one CSV column is for.
#[derive(Debug, Clone, Default)]
struct Column {
    seq: bool,
    time: bool,
    channels: Vec<usize>,
}

/// Where a binary layout's numbers go.
#[derive(Debug)]
struct Numbers {
    layout: Layout,
    /// One for each field.
    columns: Vec<Column>,
}

#[derive(Debug)]
enum Shape {
    Csv { delimiter: u8, columns: Vec<Column> },
    Json { keys: Vec<String>, seq: Option<String>, time: Option<String> },
    Nmea(Nmea),
    Binary(Numbers),
    Registers(Registers),
    Edges(Edges),
}

/// Decodes the frames of one source.
#[derive(Debug)]
pub struct Decoder {
    shape: Shape,
    time: TimeFormat,
    scales: Scales,
}

impl Decoder {
    /// A decoder for `source`, whose channels are `channels` in this order.
    pub fn new(source: &Source, channels: &[&Channel]) -> Self {
        let time_column = source.time.as_ref().map(|(column, _)| column.clone());
        let column = |name: &String| Column {
            seq: source.seq.as_ref() == Some(name),
            time: time_column.as_ref() == Some(name),
            channels: (0..channels.len()).filter(|i| channels[*i].column == *name).collect(),
        };
        let numbers = |layout: &Layout| Numbers {
            layout: layout.clone(),
            columns: layout.fields.iter().map(|field| column(&field.column)).collect(),
        };
        let shape = match &source.format {
            Format::Csv { delimiter, columns } => {
                Shape::Csv { delimiter: *delimiter, columns: columns.iter().map(column).collect() }
            }
            Format::Json => Shape::Json {
                keys: channels.iter().map(|c| c.column.clone()).collect(),
                seq: source.seq.clone(),
                time: time_column,
            },
            Format::Nmea(sentences) => Shape::Nmea(Nmea::new(sentences, channels)),
            Format::Binary(layout) => Shape::Binary(numbers(layout)),
            Format::Registers(rows) => Shape::Registers(Registers::new(rows, channels)),
            Format::Edges(lines) => Shape::Edges(Edges::new(lines, channels)),
        };
        let time = source.time.as_ref().map_or(TimeFormat::Unit(1), |(_, format)| *format);
        Self { shape, time, scales: Scales::new(channels) }
    }

    /// Decodes one frame into `row`; `false`: it makes none. A number that cannot be used spoils its sample, not the row.
    pub fn decode(&mut self, frame: Result<&[u8], Flaw>, stamp: Stamp, row: &mut Row) -> Result<bool, Refused> {
        let frame = frame?;
        let text = || std::str::from_utf8(frame).map_err(|_| Refused::NotText);
        match &mut self.shape {
            Shape::Csv { delimiter, columns } => {
                self.scales.clear(row, Quality::Missing);
                csv(text()?, *delimiter, columns, self.time, &self.scales, row).map(|()| true)
            }
            Shape::Json { keys, seq, time } => {
                self.scales.clear(row, Quality::Missing);
                let own = (seq.as_deref(), time.as_deref(), self.time);
                json(text()?, keys, own, &self.scales, row).map(|()| true)
            }
            Shape::Nmea(nmea) => {
                self.scales.clear(row, Quality::Absent);
                nmea.decode(text()?, &self.scales, row)
            }
            Shape::Binary(numbers) => {
                self.scales.clear(row, Quality::Absent);
                binary(frame, numbers, self.time, &self.scales, row).map(|()| true)
            }
            Shape::Registers(registers) => {
                self.scales.clear(row, Quality::Absent);
                registers.decode(frame, &self.scales, row).map(|()| true)
            }
            Shape::Edges(edges) => {
                self.scales.clear(row, Quality::Absent);
                edges.take(frame, stamp, &self.scales, row)
            }
        }
    }
}

/// A whole number of a clock, in its unit.
fn clock(ticks: u64, format: TimeFormat) -> Option<i64> {
    let TimeFormat::Unit(ns) = format else { return None };
    i64::try_from(u128::from(ticks) * u128::from(ns)).ok()
}

fn binary(bytes: &[u8], numbers: &Numbers, time: TimeFormat, scales: &Scales, row: &mut Row) -> Result<(), Refused> {
    if bytes.len() != numbers.layout.bytes {
        return Err(Refused::Length);
    }
    for (field, column) in numbers.layout.fields.iter().zip(&numbers.columns) {
        let bytes = &bytes[field.at..field.at + field.number.bytes()];
        if column.seq {
            row.seq = Some(field.number.bits(field.order, bytes));
        }
        if column.time {
            let ticks = field.number.bits(field.order, bytes);
            row.t_ns = Some(clock(ticks, time).ok_or(Refused::Clock)?);
        }
        for channel in &column.channels {
            scales.set(row, *channel, Some(field.number.value(field.order, bytes)));
        }
    }
    Ok(())
}

fn csv(
    text: &str,
    delimiter: u8,
    columns: &[Column],
    time: TimeFormat,
    scales: &Scales,
    row: &mut Row,
) -> Result<(), Refused> {
    let mut fields = Split { text, delimiter, done: false };
    for column in columns {
        let field = fields.next().ok_or(Refused::Columns)?.trim_ascii();
        if column.seq {
            row.seq = Some(field.parse().map_err(|_| Refused::Sequence)?);
        }
        if column.time {
            row.t_ns = Some(parse_time(field, time).ok_or(Refused::Clock)?);
        }
        if let [first, others @ ..] = column.channels.as_slice() {
            let raw = field.parse().ok();
            scales.set(row, *first, raw);
            others.iter().for_each(|i| scales.set(row, *i, raw));
        }
    }
    if fields.next().is_some() { Err(Refused::Columns) } else { Ok(()) }
}

fn json(
    text: &str,
    keys: &[String],
    (seq, time, format): (Option<&str>, Option<&str>, TimeFormat),
    scales: &Scales,
    row: &mut Row,
) -> Result<(), Refused> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|_| Refused::NotJson)?;
    if let Some(key) = seq {
        row.seq = Some(object.get(key).and_then(serde_json::Value::as_u64).ok_or(Refused::Sequence)?);
    }
    if let Some(key) = time {
        let value = object.get(key).ok_or(Refused::Clock)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        row.t_ns = Some(parse_time(&text, format).ok_or(Refused::Clock)?);
    }
    for (i, key) in keys.iter().enumerate() {
        if let Some(value) = object.get(key) {
            scales.set(row, i, value.as_f64().or_else(|| value.as_bool().map(f64::from)));
        }
    }
    Ok(())
}

/// Fields of a line; an empty last field counts.
struct Split<'a> {
    text: &'a str,
    delimiter: u8,
    done: bool,
}

impl<'a> Iterator for Split<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.done {
            return None;
        }
        match memchr::memchr(self.delimiter, self.text.as_bytes()) {
            Some(at) => {
                let (field, rest) = (self.text.get(..at)?, self.text.get(at + 1..)?);
                self.text = rest;
                Some(field)
            }
            None => {
                self.done = true;
                Some(self.text)
            }
        }
    }
}

/// A sensor's time in nanoseconds since its epoch.
pub fn parse_time(text: &str, format: TimeFormat) -> Option<i64> {
    match format {
        TimeFormat::Unit(ns) => match text.parse::<i64>() {
            Ok(n) => n.checked_mul(ns as i64),
            Err(_) => {
                let t = text.parse::<f64>().ok()? * ns as f64;
                (t.abs() < 9e18).then_some(t as i64)
            }
        },
        TimeFormat::Civil => {
            let at = match text.parse::<jiff::Timestamp>() {
                Ok(at) => at,
                Err(_) => {
                    text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()
                }
            };
            i64::try_from(at.as_nanosecond()).ok()
        }
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
