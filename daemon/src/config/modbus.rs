//! `kind = "modbus-rtu"` and `"modbus-tcp"`: the bus, the register map, and how registers are grouped into reads.

use super::{
    Format, Number, Order, Port, Serial,
    parts::{number, usual_name},
    raw::{Node, Table, Value},
};
use crate::limits;

/// Devices on one Modbus bus.
#[derive(Debug, Clone, PartialEq)]
pub struct Modbus {
    /// The bus of the devices.
    pub bus: Bus,
    /// How the bus talks.
    pub manners: Manners,
    /// Outputs write on the same serial line: it is opened shared, and each question waits for its turn.
    pub shared: bool,
    /// The reads; the index in this list is the tag of their rows.
    pub reads: Vec<Read>,
}

/// The bus of the devices.
#[derive(Debug, Clone, PartialEq)]
pub enum Bus {
    /// RTU on a tty.
    Line(Serial),
    /// TCP, `HOST:PORT`.
    Tcp(String),
}

impl std::fmt::Display for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bus::Line(line) => write!(f, "Modbus line {}", line.path),
            Bus::Tcp(address) => write!(f, "Modbus device {address}"),
        }
    }
}

/// How a bus talks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manners {
    /// Frames of Modbus TCP, else of RTU.
    pub tcp_frames: bool,
    /// What is sent is heard before the answer.
    pub echo: bool,
    /// An answer counts whatever its slave, unit or transaction number is.
    pub lenient_ids: bool,
    /// Response timeout, ms.
    pub answer_ms: u64,
    /// Silence between an answer and the next question, µs.
    pub pause_us: u64,
}

/// Registers of one device that are read together.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The device, 1–247; by TCP also 0 and 255.
    pub slave: u8,
    /// Which table.
    pub table: Registers,
    /// First address, from 0.
    pub address: u16,
    /// Number of registers or bits.
    pub count: u16,
    /// Interval, ms.
    pub every_ms: u64,
    /// What is wanted of it, by address and without overlap: first address and number. A read can be divided between these.
    pub parts: Vec<(u16, u16)>,
}

/// The four tables of a Modbus device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Registers {
    /// Function 1: bits.
    Coil,
    /// Function 2: bits.
    Discrete,
    /// Function 3: words.
    Holding,
    /// Function 4: words.
    Input,
}

impl Registers {
    /// Whether its values are single bits.
    pub fn is_bits(self) -> bool {
        matches!(self, Self::Coil | Self::Discrete)
    }

    /// Bytes of a row for each address.
    pub fn unit(self) -> usize {
        if self.is_bits() { 1 } else { 2 }
    }
}

/// The row of one read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RegisterRow {
    /// Length, bytes: two for a register, one for a bit.
    pub bytes: usize,
    /// The numbers in it.
    pub columns: Vec<RegisterColumn>,
}

/// One number of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct RegisterColumn {
    /// Column.
    pub name: String,
    /// Offset, bytes.
    pub at: usize,
    /// Type.
    pub number: Number,
    /// Byte order.
    pub order: Order,
    /// These bits alone, moved down to bit 0.
    pub mask: Option<u64>,
    /// Bits that mean that there is no value.
    pub not_available: Vec<u64>,
    /// Offset of the register with the power of ten, bytes.
    pub scale_at: Option<usize>,
}

/// One register or bit, as written.
struct Register {
    slave: u8,
    table: Registers,
    every_ms: u64,
    /// First address and number of what must be read in one piece: the value and its scale register.
    part: (u16, u16),
    /// `at` and `scale_at` count from the first address of `part`.
    column: RegisterColumn,
}

/// What holds for the whole bus.
pub(super) fn manners(t: &mut Table<'_>, bus: &Bus) -> Manners {
    let tcp = matches!(bus, Bus::Tcp(_));
    let tcp_frames = if tcp { t.word("framing", &[("tcp", true), ("rtu", false)]).unwrap_or(true) } else { false };
    let echo = t.bool("echo").unwrap_or(false);
    if echo && tcp_frames {
        t.problem("echo", "belongs to RTU frames: Modbus TCP has no echo");
    }
    // The specification wants 3.5 characters of 11 bits, and 1.75 ms above 19,200 baud.
    let pause_us = match bus {
        Bus::Line(line) => (38_500_000 / u64::from(line.baud.max(1))).max(1750),
        Bus::Tcp(_) => 0,
    };
    Manners {
        tcp_frames,
        echo,
        lenient_ids: t.bool("lenient_ids").unwrap_or(false),
        answer_ms: t.int("answer_ms", 10..=60_000).map_or(limits::MODBUS_ANSWER_MS, |n| n as u64),
        pause_us: t.int("pause_ms", 0..=10_000).map_or(pause_us, |n| n as u64 * 1000),
    }
}

/// The address of a device by TCP.
pub(super) fn tcp_address(t: &mut Table<'_>) -> String {
    let address = t.need_str("address");
    let invalid = |(host, port): (&str, &str)| host.is_empty() || port.parse::<u16>().is_err();
    if !address.is_empty() && address.rsplit_once(':').is_none_or(invalid) {
        t.problem("address", format!("`{address}` is invalid: expected HOST:PORT; the usual port of Modbus is 502"));
    }
    address
}

/// The register map, grouped into reads.
pub(super) fn source(t: &mut Table<'_>, bus: Bus) -> (Port, Format) {
    let manners = manners(t, &bus);
    let usual_ms = t.int("poll_ms", 10..=86_400_000).map_or(1000, |n| n as u64);
    let gap = t.int("join_gap", 0..=64).map_or(0, |n| n as u16);
    let most = t.int("join_max", 1..=i64::from(limits::MODBUS_BITS)).map_or(limits::MODBUS_BITS, |n| n as u16);
    let tcp = matches!(bus, Bus::Tcp(_));
    let nodes = t.tables("registers");
    if nodes.is_empty() {
        t.problem("registers", "is needed: a table for each column, with slave, read, address and type");
    }
    let mut all: Vec<Register> = Vec::new();
    for (column, node) in nodes {
        let sub = t.sub(format!("registers.{column}"), node);
        all.extend(register(column, sub, usual_ms, most, tcp));
    }
    all.sort_by_key(|r| (r.slave, r.table, r.every_ms, r.part));
    let (reads, rows) = group(all, gap, most);
    if reads.len() > limits::MODBUS_READS {
        t.problem("registers", format!("{} reads are more than {}", reads.len(), limits::MODBUS_READS));
    }
    (Port::Modbus(Modbus { bus, manners, shared: false, reads }), Format::Registers(rows))
}

/// Addresses that look like those of a manual that counts from 40001, with the name of each register.
pub(super) fn old_numbers(modbus: &Modbus, rows: &[RegisterRow]) -> Vec<String> {
    let first = |table| match table {
        Registers::Coil => None,
        Registers::Discrete => Some(10_001),
        Registers::Input => Some(30_001),
        Registers::Holding => Some(40_001),
    };
    let of = |(read, row): (&Read, &RegisterRow)| -> Vec<String> {
        let Some(first) = first(read.table) else { return Vec::new() };
        let address = |c: &RegisterColumn| usize::from(read.address) + c.at / read.table.unit();
        let old = row.columns.iter().map(|c| (c, address(c))).filter(|(_, at)| (first..first + 9999).contains(at));
        old.map(|(c, at)| {
            format!(
                "`{}` has address {at}: addresses count from 0; if {at} is the number in a manual that begins with {first}, write {}",
                c.name,
                at - first
            )
        })
        .collect()
    };
    modbus.reads.iter().zip(rows).flat_map(of).collect()
}

/// The device's number on the bus.
pub(super) fn slave(t: &mut Table<'_>, tcp: bool) -> u8 {
    t.int("slave", i64::from(!tcp)..=if tcp { 255 } else { 247 }).unwrap_or(1) as u8
}

fn register(name: String, mut t: Table<'_>, usual_ms: u64, most: u16, tcp: bool) -> Option<Register> {
    let slave = slave(&mut t, tcp);
    let tables = [
        ("holding", Registers::Holding),
        ("input", Registers::Input),
        ("coil", Registers::Coil),
        ("discrete", Registers::Discrete),
    ];
    let table = t.word("read", &tables).unwrap_or(Registers::Holding);
    let address = t.int("address", 0..=65_535).map(|n| n as u16);
    if address.is_none() && !t.has("address") {
        t.problem("address", "is needed: the register's address from 0 (register 40001 of the old way to count is 0)");
    }
    let number = register_type(&mut t, table.is_bits());
    let every_ms = t.int("poll_ms", 10..=86_400_000).map_or(usual_ms, |n| n as u64);
    let mask = mask(&mut t, table.is_bits(), number);
    let not_available = not_available(&mut t, number);
    let scale = t.int("scale_register", 0..=65_535).map(|n| n as u16);
    if scale.is_some() && table.is_bits() {
        t.problem("scale_register", "belongs to registers, not to coils and discrete inputs");
    }
    let words = number.map_or(1, |(number, _)| (number.bytes() / table.unit()) as u16);
    let part = part(&mut t, address.unwrap_or(0), words, scale, most.min(limits::MODBUS_WORDS));
    t.finish();
    let ((number, order), address) = (number?, address?);
    let offset = |address: u16| usize::from(address - part.0) * table.unit();
    let column =
        RegisterColumn { name, at: offset(address), number, order, mask, not_available, scale_at: scale.map(offset) };
    Some(Register { slave, table, every_ms, part, column })
}

fn register_type(t: &mut Table<'_>, bits: bool) -> Option<(Number, Order)> {
    let (text, order) = (t.str("type"), t.str("order"));
    let usual = if bits { "u8" } else { "u16" };
    let kind = text.as_deref().unwrap_or(usual);
    let orders = ["abcd", "cdab", "badc", "dcba"];
    if let Some(order) = order.as_deref().filter(|order| !orders.contains(order)) {
        let meant = match order.to_ascii_lowercase().replace(['-', '_', ' '], "").as_str() {
            "big" | "bigendian" | "be" => "; did you mean `abcd`?",
            "little" | "littleendian" | "le" => "; did you mean `dcba`?",
            "wordswap" | "swapped" | "wordswapped" => "; did you mean `cdab`?",
            "byteswap" | "byteswapped" => "; did you mean `badc`?",
            _ => "",
        };
        let why = format!(
            "`{order}` is invalid: expected one of `abcd` (most significant byte first), `cdab`, `badc`, `dcba`{meant}"
        );
        t.problem("order", why);
    }
    let order = order.filter(|order| orders.contains(&order.as_str()));
    let whole = format!("{kind}{}", order.as_deref().unwrap_or(""));
    let found = number(&whole).filter(|(number, _)| bits || number.bytes() % 2 == 0);
    if found.is_none() {
        let why = "is invalid: expected a type of registers, such as `u16`, `i32`, `f32`, `bcd16`; the order of their bytes is `order`";
        let near = usual_name(kind).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        t.problem("type", format!("`{kind}` {why}{near}"));
    }
    if bits && text.is_some() {
        t.problem("type", "a coil and a discrete input are 0 or 1");
    }
    found
}

/// Bits of a number of so many bytes, all set.
fn all_bits(number: Number) -> u64 {
    u64::MAX >> (64 - 8 * number.bytes().clamp(1, 8))
}

fn mask(t: &mut Table<'_>, bits: bool, number: Option<(Number, Order)>) -> Option<u64> {
    let mask = t.int("mask", 1..=i64::MAX)? as u64;
    let Some((number, _)) = number else { return Some(mask) };
    if bits || !matches!(number, Number::U(_)) {
        t.problem("mask", "belongs to an unsigned register: `u16`, `u32` or `u64`");
    } else if mask > all_bits(number) {
        t.problem("mask", format!("{mask:#x} has bits that a number of {} bytes does not have", number.bytes()));
    }
    Some(mask)
}

/// `0x8000`, or a list of such: bits as they come, or the number that they mean. Both are meant where that cannot be told: no bits that
/// look like a number such as -9999 are a value that a float has by chance.
fn not_available(t: &mut Table<'_>, number: Option<(Number, Order)>) -> Vec<u64> {
    let nodes = match t.node("not_available") {
        None => return Vec::new(),
        Some(Node { value: Value::List(items), .. }) => items,
        Some(node) => vec![node],
    };
    let Some((number, _)) = number else { return Vec::new() };
    let mut all = Vec::new();
    for node in nodes {
        match no_value(number, &node.value) {
            Ok(bits) => all.extend(bits),
            Err(why) => {
                t.problem("not_available", why);
                return Vec::new();
            }
        }
    }
    all
}

/// The bits that one entry of `not_available` means.
fn no_value(number: Number, value: &Value) -> Result<Vec<u64>, String> {
    let float = matches!(number, Number::F(_));
    let of_float = |x: f64| if number == Number::F(4) { u64::from((x as f32).to_bits()) } else { x.to_bits() };
    match value {
        Value::Float(x) if float => Ok(vec![of_float(*x)]),
        Value::Int(n) => {
            let all = all_bits(number);
            let fits = if *n < 0 { *n >= -((all / 2) as i64) - 1 } else { *n as u64 <= all };
            let bits = fits.then_some(*n as u64 & all);
            match number {
                Number::F(_) => Ok(bits.into_iter().chain([of_float(*n as f64)]).collect()),
                Number::Bcd(digits) => {
                    let of_digits = u64::from_str_radix(&n.to_string(), 16).ok().filter(|bits| *n >= 0 && *bits <= all);
                    let why = || format!("{n} has more than {} digits", 2 * digits);
                    if bits.is_none() && of_digits.is_none() {
                        Err(why())
                    } else {
                        Ok(bits.into_iter().chain(of_digits).collect())
                    }
                }
                _ => {
                    bits.map(|bits| vec![bits]).ok_or_else(|| format!("{n} does not fit into {} bytes", number.bytes()))
                }
            }
        }
        _ if float => Err("must be a number, such as `-9999` or the bits `0x7FC00000`, or a list of them".into()),
        _ => Err("must be a whole number, such as `0x8000`, or a list of them".into()),
    }
}

/// What must come with one answer: the value, and the register with its power of ten.
fn part(t: &mut Table<'_>, address: u16, words: u16, scale: Option<u16>, most: u16) -> (u16, u16) {
    let first = scale.unwrap_or(address).min(address);
    let end = (u32::from(address) + u32::from(words)).max(scale.map_or(0, |scale| u32::from(scale) + 1));
    if end > 65_536 {
        t.problem("address", "a value of this type needs more registers than there are up to address 65535");
    }
    let count = end - u32::from(first);
    if count > u32::from(most) {
        let (key, what) = match scale {
            Some(_) => ("scale_register", "a value and its scale register are read together"),
            None => ("type", "a value is read with one question"),
        };
        t.problem(
            key,
            format!("{what}: these are {count} registers, more than the {most} that one answer holds (`join_max`)"),
        );
    }
    (first, count.min(u32::from(most)) as u16)
}

/// Neighbouring registers of one device, table and interval are read together, as far as one response can hold them.
fn group(all: Vec<Register>, gap: u16, most: u16) -> (Vec<Read>, Vec<RegisterRow>) {
    let (mut reads, mut rows): (Vec<Read>, Vec<RegisterRow>) = (Vec::new(), Vec::new());
    for mut r in all {
        let unit = r.table.unit();
        let most = most.min(if r.table.is_bits() { limits::MODBUS_BITS } else { limits::MODBUS_WORDS });
        let (first, end) = (u32::from(r.part.0), u32::from(r.part.0) + u32::from(r.part.1));
        let fits = |read: &&mut Read| {
            let same = (read.slave, read.table, read.every_ms) == (r.slave, r.table, r.every_ms);
            let from = u32::from(read.address);
            same && first <= from + u32::from(read.count) + u32::from(gap) && end - from <= u32::from(most)
        };
        match reads.last_mut().filter(fits) {
            Some(read) => {
                read.count = read.count.max((end - u32::from(read.address)) as u16);
                match read.parts.last_mut() {
                    // Two columns of one register, or two values with the same scale register.
                    Some((from, count)) if first < u32::from(*from) + u32::from(*count) => {
                        *count = (*count).max((end - u32::from(*from)) as u16);
                    }
                    _ => read.parts.push(r.part),
                }
            }
            None => {
                let (address, count) = r.part;
                let (slave, table, every_ms) = (r.slave, r.table, r.every_ms);
                reads.push(Read { slave, table, address, count, every_ms, parts: vec![r.part] });
                rows.push(RegisterRow::default());
            }
        }
        if let (Some(row), Some(read)) = (rows.last_mut(), reads.last()) {
            let moved = usize::from(r.part.0 - read.address) * unit;
            r.column.at += moved;
            r.column.scale_at = r.column.scale_at.map(|at| at + moved);
            row.columns.push(r.column);
            row.bytes = usize::from(read.count) * unit;
        }
    }
    (reads, rows)
}

/// One Modbus response holds at most 125 registers or 2000 bits.
const _: () = assert!(limits::MODBUS_WORDS <= 125 && limits::MODBUS_BITS <= 2000);

#[cfg(test)]
#[path = "modbus_tests.rs"]
mod tests;
