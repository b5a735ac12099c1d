//! Rows of Modbus registers into channels: bit masks, values that are not available, scale registers. Pure.
//!
//! ```text
//! read:u16le  values…                          all of the read's registers
//! read:u16le | 0x8000  known:[bits]  values…   one bit for each byte of the values: whether it came
//! ```

use super::row::{Refused, Row, Scales};
use crate::{
    config::{Channel, Order, RegisterColumn, RegisterRow},
    flow::{Quality, Why},
};

/// The number of a read whose row has holes has this bit.
const HOLES: u16 = 0x8000;
/// A scale register's power of ten is at most this large, as SunSpec has it; anything else means that the device has no value.
const POWER_MAX: u16 = 10;

/// What a row says of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Number(f64),
    NotAvailable,
}

/// The reads of one source.
#[derive(Debug)]
pub struct Registers {
    /// Each with the channels of its columns.
    reads: Vec<(RegisterRow, Vec<Vec<usize>>)>,
}

impl Registers {
    /// For these reads and channels.
    pub fn new(rows: &[RegisterRow], channels: &[&Channel]) -> Self {
        let of = |name: &str| (0..channels.len()).filter(|i| channels[*i].column == *name).collect();
        let read = |row: &RegisterRow| (row.clone(), row.columns.iter().map(|column| of(&column.name)).collect());
        Self { reads: rows.iter().map(read).collect() }
    }

    /// Sets the channels of one read; those of others, and of registers that did not come, stay as they are.
    pub fn decode(&self, frame: &[u8], scales: &Scales, row: &mut Row) -> Result<(), Refused> {
        let (tag, rest) = frame.split_first_chunk::<2>().ok_or(Refused::Length)?;
        let tag = u16::from_le_bytes(*tag);
        let (read, channels) = self.reads.get(usize::from(tag & !HOLES)).ok_or(Refused::Length)?;
        let known_bytes = if tag & HOLES == 0 { 0 } else { read.bytes.div_ceil(8) };
        let (known, values) = rest.split_at_checked(known_bytes).ok_or(Refused::Length)?;
        if values.len() != read.bytes {
            return Err(Refused::Length);
        }
        let came = |at: usize| known.is_empty() || known[at / 8] >> (at % 8) & 1 == 1;
        for (column, channels) in read.columns.iter().zip(channels) {
            let bytes = column.at..column.at + column.number.bytes();
            if !bytes.clone().chain(column.scale_at).all(came) {
                continue;
            }
            let value = value(column, &values[bytes], column.scale_at.map(|at| [values[at], values[at + 1]]));
            for channel in channels {
                match value {
                    Value::Number(number) => scales.set(row, *channel, Some(number)),
                    Value::NotAvailable => {
                        scales.set(row, *channel, None);
                        row.quality[*channel] = Quality::Bad(Why::NotAvailable);
                    }
                }
            }
        }
        Ok(())
    }
}

fn value(column: &RegisterColumn, bytes: &[u8], scale: Option<[u8; 2]>) -> Value {
    let bits = column.number.bits(column.order, bytes);
    if column.not_available.contains(&bits) {
        return Value::NotAvailable;
    }
    let number = match column.mask {
        Some(mask) => ((bits & mask) >> mask.trailing_zeros()) as f64,
        None => column.number.value(column.order, bytes),
    };
    // What is no number stays one that the channel calls bad.
    match scale.map(|bytes| power(column, bytes)) {
        None => Value::Number(number),
        Some(power) if power.unsigned_abs() > POWER_MAX => Value::NotAvailable,
        // A division by ten is exact where a product with a tenth is not.
        Some(power) if power < 0 => Value::Number(number / 10f64.powi(-i32::from(power))),
        Some(power) => Value::Number(number * 10f64.powi(i32::from(power))),
    }
}

/// One register: its bytes are swapped where those of the value's registers are.
fn power(column: &RegisterColumn, bytes: [u8; 2]) -> i16 {
    match column.order {
        Order::Little | Order::BytesSwapped => i16::from_le_bytes(bytes),
        Order::Big | Order::WordsSwapped => i16::from_be_bytes(bytes),
    }
}

#[cfg(test)]
#[path = "registers_tests.rs"]
mod tests;
