//! Frames into rows: lines of text, NMEA sentences, binary numbers, Modbus registers and the edges of GPIO lines into the
//! channels of one source. Pure.

use super::{edges::Edges, nmea::Nmea, registers::Registers, row::Scales, text::Text};
use crate::{
    config::{Channel, Format, Layout, Source, TimeFormat},
    flow::{Flaw, Quality, Stamp},
};

pub use super::row::{Refused, Row};

/// What one number of a layout is for.
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
    Text(Box<Text>),
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
        let text = Text::new(source, channels).map(|text| Shape::Text(Box::new(text)));
        let shape = match &source.format {
            Format::Nmea(sentences) => Shape::Nmea(Nmea::new(sentences, channels)),
            Format::Binary(layout) => Shape::Binary(numbers(layout)),
            Format::Registers(rows) => Shape::Registers(Registers::new(rows, channels)),
            Format::Edges(lines) => Shape::Edges(Edges::new(lines, channels)),
            // Of all other formats `Text` makes a decoder.
            _ => text.unwrap_or(Shape::Registers(Registers::new(&[], channels))),
        };
        let time = source.time.as_ref().map_or(TimeFormat::Unit(1), |(_, format)| format.clone());
        Self { shape, time, scales: Scales::new(channels) }
    }

    /// Decodes one frame into `row`; `false`: it makes none. A number that cannot be used spoils its sample, not the row.
    pub fn decode(&mut self, frame: Result<&[u8], Flaw>, stamp: Stamp, row: &mut Row) -> Result<bool, Refused> {
        let frame = frame?;
        let text = || std::str::from_utf8(frame).map_err(|_| Refused::NotText);
        match &mut self.shape {
            Shape::Text(text) => text.decode(frame, stamp, row),
            Shape::Nmea(nmea) => {
                self.scales.clear(row, Quality::Absent);
                nmea.decode(text()?, &self.scales, row)
            }
            Shape::Binary(numbers) => {
                self.scales.clear(row, Quality::Absent);
                binary(frame, numbers, &self.time, &self.scales, row).map(|()| true)
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

    /// What follows does not join what was before: a port was closed, or bytes are lost.
    pub fn reset(&mut self) {
        if let Shape::Text(text) = &mut self.shape {
            text.reset();
        }
    }
}

/// A whole number of a clock, in its unit.
fn clock(ticks: u64, format: &TimeFormat) -> Option<i64> {
    let TimeFormat::Unit(ns) = format else { return None };
    i64::try_from(u128::from(ticks) * u128::from(*ns)).ok()
}

fn binary(bytes: &[u8], numbers: &Numbers, time: &TimeFormat, scales: &Scales, row: &mut Row) -> Result<(), Refused> {
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

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
