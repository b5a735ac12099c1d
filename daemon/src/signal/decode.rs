//! Frames into rows: lines of text, NMEA sentences, binary numbers, Modbus registers and the edges of GPIO lines into the
//! channels of one source. Pure.

use super::{
    block::Times,
    edges::Edges,
    nmea::Nmea,
    registers::Registers,
    row::{Column, Scales},
    text::Text,
};
use crate::{
    config::{Block, Channel, Format, Layout, Source, TimeFormat},
    flow::{Flaw, Quality, Stamp},
};

pub use super::row::{Refused, Row};

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
    Block { numbers: Numbers, block: Block, times: Times, next: usize },
    Answers(Answers),
    Registers(Registers),
    Edges(Edges),
}

/// Responses to several requests; which one a frame is of stands before it.
#[derive(Debug)]
struct Answers {
    /// By request: its decoder, and by channel whether it is of this response.
    all: Vec<(Decoder, Vec<bool>)>,
}

impl Answers {
    fn new(source: &Source, formats: &[Format], channels: &[&Channel]) -> Self {
        let one = |format: &Format| {
            let own = Decoder::new(&Source { format: format.clone(), ..source.clone() }, channels);
            let columns = format.columns().unwrap_or_default();
            (own, channels.iter().map(|c| columns.contains(&c.column.as_str())).collect())
        };
        Self { all: formats.iter().map(one).collect() }
    }

    fn decode(&mut self, frame: &[u8], stamp: Stamp, row: &mut Row) -> Result<bool, Refused> {
        let (tag, frame) = frame.split_first_chunk::<2>().ok_or(Refused::Length)?;
        let (decoder, own) = self.all.get_mut(usize::from(u16::from_le_bytes(*tag))).ok_or(Refused::Length)?;
        let made = decoder.decode(Ok(frame), stamp, row)?;
        let others = row.quality.iter_mut().zip(own).filter(|(quality, own)| !**own && **quality == Quality::Missing);
        others.for_each(|(quality, _)| *quality = Quality::Absent);
        Ok(made)
    }
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
            date: false,
            channels: (0..channels.len()).filter(|i| channels[*i].column == *name).collect(),
        };
        let numbers = |layout: &Layout| Numbers {
            layout: layout.clone(),
            columns: layout.fields.iter().map(|field| column(&field.column)).collect(),
        };
        let text = Text::new(source, channels).map(|text| Shape::Text(Box::new(text)));
        let shape = match &source.format {
            Format::Nmea(sentences) => Shape::Nmea(Nmea::new(sentences, channels)),
            Format::Binary(layout @ Layout { block: Some(block), .. }) => {
                Shape::Block { numbers: numbers(layout), times: Times::new(block), block: block.clone(), next: 0 }
            }
            Format::Answers(formats) => Shape::Answers(Answers::new(source, formats, channels)),
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
            Shape::Block { numbers, block, times, next } => {
                *next = block.rows;
                if frame.len() != numbers.layout.bytes {
                    return Err(Refused::Length);
                }
                self.scales.clear(row, Quality::Absent);
                take(frame, numbers, &block.steps, 0, &self.time, &self.scales, row)?;
                times.frame(stamp.boot_ns, row.t_ns, row.seq);
                *next = 0;
                Ok(self.more(frame, row))
            }
            Shape::Answers(answers) => answers.decode(frame, stamp, row),
            Shape::Edges(edges) => {
                self.scales.clear(row, Quality::Absent);
                edges.take(frame, stamp, &self.scales, row)
            }
        }
    }

    /// The bytes that came from the device.
    pub fn bare<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let tag = if matches!(self.shape, Shape::Answers(_)) { 2 } else { 0 };
        frame.get(tag..).unwrap_or_default()
    }

    /// The next row of the same frame, where a frame holds several. `false`: it has no further row.
    pub fn more(&mut self, frame: &[u8], row: &mut Row) -> bool {
        let Shape::Block { numbers, block, times, next } = &mut self.shape else { return false };
        if *next >= block.rows {
            return false;
        }
        self.scales.clear(row, Quality::Absent);
        if take(frame, numbers, &block.steps, *next, &self.time, &self.scales, row).is_err() {
            return false;
        }
        row.seq = row.seq.map(|seq| seq.saturating_mul(block.rows as u64).saturating_add(*next as u64));
        row.t_ns = Some(times.row_ns(*next));
        *next += 1;
        true
    }

    /// What follows does not join what was before: a port was closed, or bytes are lost.
    pub fn reset(&mut self) {
        if let Shape::Text(text) = &mut self.shape {
            text.reset();
        }
        if let Shape::Answers(answers) = &mut self.shape {
            answers.all.iter_mut().for_each(|(decoder, _)| decoder.reset());
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
    take(bytes, numbers, &[], 0, time, scales, row)
}

/// Numbers out of a frame of the right length; `steps`: by field, bytes from one sample to the next.
fn take(
    bytes: &[u8],
    numbers: &Numbers,
    steps: &[usize],
    sample: usize,
    time: &TimeFormat,
    scales: &Scales,
    row: &mut Row,
) -> Result<(), Refused> {
    let steps = steps.iter().copied().chain(std::iter::repeat(0));
    for ((field, column), step) in numbers.layout.fields.iter().zip(&numbers.columns).zip(steps) {
        let at = field.at + step * sample;
        let bytes = bytes.get(at..at + field.number.bytes()).ok_or(Refused::Length)?;
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
