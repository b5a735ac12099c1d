//! The columns of a source: GPIO lines, readings of the kernel.

use super::{
    Bias, Format, Gpio, GpioLine, GpioRead, Pin, PinName, Port, Sysfs, SysfsClass,
    parts::twice,
    paths::device,
    raw::{Table, Value},
};
use crate::limits;

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
        there => {
            let must = if there.is_some() { "must be" } else { "is needed:" };
            t.problem(key, format!("{must} the line's number within its chip, 0 to 4095, or its name"));
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
    for (reading, name) in
        readings.iter().filter_map(|r| Some((r, r.strip_suffix("_raw").or(r.strip_suffix("_input"))?)))
    {
        t.problem("readings", format!("`{reading}` is a file: the reading's name is `{name}`"));
    }
    if let Some(twice) = twice(&readings) {
        t.problem("readings", format!("`{twice}` stands twice"));
    }
    let every_ms = t.int("sample_ms", 10..=3_600_000).map_or(1000, |n| n as u64);
    let format = Format::Csv { delimiter: b',', columns: readings.clone() };
    (Port::Sysfs(Sysfs { device, class, readings, every_ms }), format)
}
