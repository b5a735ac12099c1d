//! The columns of a source: register maps, GPIO lines, readings of the kernel.

use super::{
    Bias, Bus, Field, Format, Gpio, GpioLine, GpioRead, Layout, Modbus, Pin, PinName, Port, Read, Registers, Sysfs,
    SysfsClass,
    paths::device,
    raw::{Table, Value},
    source::{number, twice},
};
use crate::limits;

/// One register or bit, as written.
struct Register {
    slave: u8,
    table: Registers,
    address: u16,
    every_ms: u64,
    field: Field,
}

/// The register map of `modbus-rtu` and `modbus-tcp`, grouped into reads.
pub(super) fn modbus(t: &mut Table<'_>, bus: Bus) -> (Port, Format) {
    let usual_ms = t.int("poll_ms", 10..=86_400_000).map_or(1000, |n| n as u64);
    let answer_ms = t.int("answer_ms", 10..=60_000).map_or(limits::MODBUS_ANSWER_MS, |n| n as u64);
    let join = t.int("join_gap", 0..=64).map_or(0, |n| n as u16);
    let tcp = matches!(bus, Bus::Tcp(_));
    let nodes = t.tables("registers");
    if nodes.is_empty() {
        t.problem("registers", "is needed: a table for each column, with slave, read, address and type");
    }
    let mut all: Vec<Register> = Vec::new();
    for (column, node) in nodes {
        let sub = t.sub(format!("registers.{column}"), node);
        all.extend(register(column, sub, usual_ms, tcp));
    }
    all.sort_by_key(|r| (r.slave, r.table, r.every_ms, r.address));
    let (reads, layouts) = group(all, join);
    if reads.len() > limits::MODBUS_READS {
        t.problem("registers", format!("{} reads are more than {}", reads.len(), limits::MODBUS_READS));
    }
    (Port::Modbus(Modbus { bus, answer_ms, reads }), Format::Tagged(layouts))
}

fn register(column: String, mut t: Table<'_>, usual_ms: u64, tcp: bool) -> Option<Register> {
    let least = i64::from(!tcp);
    let slave = t.int("slave", least..=if tcp { 255 } else { 247 }).unwrap_or(1) as u8;
    let tables = [
        ("holding", Registers::Holding),
        ("input", Registers::Input),
        ("coil", Registers::Coil),
        ("discrete", Registers::Discrete),
    ];
    let table = t.word("read", &tables).unwrap_or(Registers::Holding);
    let address = t.int("address", 0..=65_535);
    if address.is_none() && !t.has("address") {
        t.problem("address", "is needed: the register's address from 0 (register 40001 of the old way to count is 0)");
    }
    let bits = matches!(table, Registers::Coil | Registers::Discrete);
    let text = t.str("type");
    let order = t.str("order");
    let usual = if bits { "u8" } else { "u16" };
    let whole = format!("{}{}", text.as_deref().unwrap_or(usual), order.as_deref().unwrap_or(""));
    let number = number(&whole).filter(|(number, _)| bits || number.bytes() % 2 == 0);
    if number.is_none() {
        t.problem(
            "type",
            format!("`{whole}` is no type of registers, such as `u16`, `i32`, `f32` with order `abcd` or `cdab`"),
        );
    }
    if bits && text.is_some() {
        t.problem("type", "a coil and a discrete input are 0 or 1");
    }
    let every_ms = t.int("poll_ms", 10..=86_400_000).map_or(usual_ms, |n| n as u64);
    t.finish();
    let (number, order) = number?;
    let field = Field { column, at: 0, number, order };
    Some(Register { slave, table, address: address? as u16, every_ms, field })
}

/// Neighbouring registers of one device, table and interval are read together, as far as one response can hold them.
fn group(all: Vec<Register>, join: u16) -> (Vec<Read>, Vec<Layout>) {
    let (mut reads, mut layouts): (Vec<Read>, Vec<Layout>) = (Vec::new(), Vec::new());
    for mut r in all {
        let bits = matches!(r.table, Registers::Coil | Registers::Discrete);
        let (unit, most) = if bits { (1, limits::MODBUS_BITS) } else { (2, limits::MODBUS_WORDS) };
        let words = (r.field.number.bytes() / unit) as u16;
        let end = u32::from(r.address) + u32::from(words);
        let fits = |read: &&mut Read| {
            let same = (read.slave, read.table, read.every_ms) == (r.slave, r.table, r.every_ms);
            let next = u32::from(read.address) + u32::from(read.count) + u32::from(join);
            same && u32::from(r.address) <= next && end - u32::from(read.address) <= u32::from(most)
        };
        let at = match reads.last_mut().filter(fits) {
            Some(read) => {
                read.count = read.count.max((end - u32::from(read.address)) as u16);
                usize::from(r.address - read.address)
            }
            None => {
                reads.push(Read {
                    slave: r.slave,
                    table: r.table,
                    address: r.address,
                    count: words,
                    every_ms: r.every_ms,
                });
                layouts.push(Layout::default());
                0
            }
        };
        r.field.at = at * unit;
        if let (Some(layout), Some(read)) = (layouts.last_mut(), reads.last()) {
            layout.fields.push(r.field);
            layout.bytes = usize::from(read.count) * unit;
        }
    }
    (reads, layouts)
}

pub(super) fn gpio(t: &mut Table<'_>) -> (Port, Format) {
    let mut gpio = Gpio {
        chip: device(t, "chip", "/dev"),
        sample_ms: t.int("sample_ms", 10..=60_000).map_or(limits::GPIO_SAMPLE_MS, |n| n as u64),
        storm_hz: t.int("storm_hz", 10..=100_000).map_or(limits::GPIO_STORM_HZ, |n| n as u32),
        lines: Vec::new(),
    };
    let nodes = t.tables("lines");
    if nodes.is_empty() {
        t.problem("lines", "is needed: a table for each column, with the line and how it is read");
    }
    let mut lines = Vec::new();
    for (column, node) in nodes {
        let mut sub = t.sub(format!("lines.{column}"), node);
        let pin = Pin {
            line: pin_name(&mut sub, "line"),
            active_low: sub.word("active", &[("high", false), ("low", true)]).unwrap_or(false),
            bias: sub
                .word(
                    "bias",
                    &[("as-is", Bias::AsIs), ("pull-up", Bias::Up), ("pull-down", Bias::Down), ("off", Bias::Off)],
                )
                .unwrap_or(Bias::AsIs),
            debounce_us: sub.int("debounce_us", 0..=1_000_000).map_or(0, |n| n as u32),
            edges: false,
        };
        let words = ["level", "edges", "counter", "frequency", "pulse_width", "quadrature"].map(|word| (word, word));
        let word = sub.word("read", &words).unwrap_or("level");
        let pin = Pin { edges: word != "level", ..pin };
        let second = (word == "quadrature").then(|| Pin { line: pin_name(&mut sub, "line_b"), ..pin.clone() });
        sub.finish();
        let bit = bit(&mut gpio.lines, pin);
        let read = match word {
            "edges" => GpioRead::Edges,
            "counter" => GpioRead::Counter,
            "frequency" => GpioRead::Frequency,
            "pulse_width" => GpioRead::PulseWidth,
            "quadrature" => GpioRead::Quadrature(second.map_or(bit, |pin| self::bit(&mut gpio.lines, pin))),
            _ => GpioRead::Level,
        };
        lines.push(GpioLine { column, bit, read });
    }
    if gpio.lines.len() > limits::GPIO_LINES {
        t.problem(
            "lines",
            format!("{} lines are more than the {} of one request", gpio.lines.len(), limits::GPIO_LINES),
        );
    }
    (Port::Gpio(gpio), Format::Edges(lines))
}

/// A line that is read in two ways is requested once.
fn bit(lines: &mut Vec<Pin>, pin: Pin) -> u32 {
    let at = lines.iter().position(|p| p.line == pin.line).unwrap_or(lines.len());
    match lines.get_mut(at) {
        Some(known) => known.edges |= pin.edges,
        None => lines.push(pin),
    }
    at as u32
}

/// A line by number or by name.
pub(super) fn pin_name(t: &mut Table<'_>, key: &'static str) -> PinName {
    match t.node(key).map(|node| node.value) {
        Some(Value::Int(n)) if (0..=4095).contains(&n) => PinName::Offset(n as u32),
        Some(Value::Str(name)) if !name.is_empty() => PinName::Name(name),
        _ => {
            t.problem(key, "is needed: the line's number within its chip, or its name");
            PinName::Offset(0)
        }
    }
}

pub(super) fn sysfs(t: &mut Table<'_>, kind: &str) -> (Port, Format) {
    let class = match kind {
        "iio" => SysfsClass::Iio,
        "hwmon" => SysfsClass::Hwmon,
        _ => SysfsClass::Thermal,
    };
    let device = device(t, "device", "/sys");
    let readings = match (t.strs("readings"), class) {
        (Some(readings), _) => readings,
        (None, SysfsClass::Thermal) => vec!["temp".into()],
        (None, _) => {
            t.problem("readings", "is needed: what is read, such as `in_voltage0` or `temp1`");
            Vec::new()
        }
    };
    if let Some(bad) = readings.iter().find(|r| r.is_empty() || r.contains(['/', '.'])) {
        t.problem("readings", format!("`{bad}` is no reading's name"));
    }
    if let Some(twice) = twice(&readings) {
        t.problem("readings", format!("`{twice}` stands twice"));
    }
    let every_ms = t.int("sample_ms", 10..=3_600_000).map_or(1000, |n| n as u64);
    let format = Format::Csv { delimiter: b',', columns: readings.clone() };
    (Port::Sysfs(Sysfs { device, class, readings, every_ms }), format)
}

/// One Modbus response holds at most 125 registers or 2000 bits.
const _: () = assert!(limits::MODBUS_WORDS <= 125 && limits::MODBUS_BITS <= 2000);
