//! `[source.NAME]` and `[channel.NAME]`: builds what is opened and how it is read from the tables.

use super::{
    Bus, Channel, Check, CheckKind, Format, Framing, Layout, Number, NumberText, Order, Port, Serial, Source, Sysfs,
    SysfsClass, TimeFormat, layouts, modbus,
    names::Names,
    number,
    parts::{self, bytes, is_same_port, line},
    poll,
    problem::{instead, nearest},
    raw::Table,
    text,
};
use crate::{flow::SourceId, limits};

pub(super) fn source(name: &str, mut t: Table<'_>) -> Source {
    let kinds = ["serial", "modbus-rtu", "modbus-tcp", "gpio", "iio", "hwmon", "thermal"].map(|kind| (kind, kind));
    let kind = t.word("kind", &kinds);
    let (port, format) = match kind.unwrap_or("serial") {
        _ if kind.is_none() && t.has("kind") => {
            t.leave_undecided();
            let device = Sysfs { device: String::new(), class: SysfsClass::Iio, readings: Vec::new(), every_ms: 1000 };
            (Port::Sysfs(device), Format::Json)
        }
        "serial" => {
            let mut serial = serial(&mut t);
            // A framing that is not known leaves the format open too.
            let read = if t.is_undecided() { (None, Format::Json) } else { poll::poll(&mut t, &serial.framing) };
            let (poll, format) = read;
            serial.poll = poll;
            text::block(&mut t, &mut serial, &format);
            if matches!(format, Format::Nmea(_)) && serial.lines.check.is_some() {
                t.problem("check", "NMEA sentences bring their own");
            }
            (Port::Serial(serial), format)
        }
        "modbus-rtu" => {
            let line = line(&mut t);
            modbus::source(&mut t, Bus::Line(line))
        }
        "modbus-tcp" => {
            let address = modbus::tcp_address(&mut t);
            modbus::source(&mut t, Bus::Tcp(address))
        }
        "gpio" => layouts::gpio(&mut t),
        kind => layouts::sysfs(&mut t, kind),
    };
    if format.columns().is_some_and(|columns| columns.is_empty()) && !t.has_problems() {
        t.problem("", "gives no column: every name is empty or skipped");
    }
    if let (Port::Serial(serial), Format::Binary(layout)) = (&port, &format) {
        fits(&mut t, serial, layout);
    }
    let numbers = number::numbers(&mut t, &NumberText::default());
    number::fit(&mut t, &numbers, &format);
    let Counters { seq, seq_modulo, time, date } = counters(&mut t, &port, &format);
    let stale_ms = t.int("stale_ms", 10..=86_400_000).map_or(5_000, |n| n as u64);
    let gap_max_ms = t.int("gap_max_ms", 1..=86_400_000).map(|n| n as u64);
    t.finish();
    Source { name: name.to_owned(), port, format, numbers, seq, seq_modulo, time, date, stale_ms, gap_max_ms }
}

/// Frames of one length hold their numbers and nothing else: a frame that is longer or shorter is refused.
fn fits(t: &mut Table<'_>, serial: &Serial, layout: &Layout) {
    let Framing::Fixed { start, bytes } = &serial.framing else { return };
    let check = serial.check.map_or(0, |check| check.kind.bytes());
    let content = bytes.saturating_sub(start.len() + check);
    if !t.has_problems() && layout.bytes != content {
        let (fields, start) = (layout.bytes, start.len());
        let advice =
            if fields < content { format!("; `\"_:{}\"` skips the rest", content - fields) } else { String::new() };
        t.problem(
            "fields",
            format!("have {fields} bytes, and {bytes} of a frame less {start} of `start` and {check} of `check` are {content}{advice}"),
        );
    }
}

fn serial(t: &mut Table<'_>) -> Serial {
    let mut serial = line(t);
    serial.frame_max =
        t.int("frame_max_bytes", 8..=limits::FRAME_BYTES_MAX as i64).map_or(limits::FRAME_BYTES, |n| n as usize);
    serial.check = check(t);
    serial.framing = framing(t, serial.check);
    serial.lines = text::line_form(t, &serial.framing, serial.check);
    if serial.framing == Framing::Lines {
        serial.check = None;
    }
    if let Framing::Fixed { bytes, .. } = serial.framing {
        serial.frame_max = serial.frame_max.max(bytes);
    }
    serial
}

fn check(t: &mut Table<'_>) -> Option<Check> {
    let little = t.word("check_order", &[("little", true), ("big", false)]);
    let skip = t.int("check_skip_bytes", 0..=64).map(|n| n as usize);
    let Some(kind) = t.word("check", &CheckKind::NAMES) else {
        let alone = !t.has("check");
        for key in ["check_order", "check_skip_bytes"].into_iter().filter(|key| alone && t.has(key)).collect::<Vec<_>>()
        {
            t.problem(key, "needs `check` beside it");
        }
        return None;
    };
    Some(Check { kind, little: little.unwrap_or(true), skip: skip.unwrap_or(0) })
}

fn framing(t: &mut Table<'_>, check: Option<Check>) -> Framing {
    let words = ["lines", "cobs", "slip", "fixed", "length", "delimited"].map(|word| (word, word));
    let known = t.word("framing", &words);
    let decided = known.is_some() || !t.has("framing");
    if !decided {
        // Which format and which keys belong to it is not known.
        t.leave_undecided();
    }
    let word = known.unwrap_or("lines");
    let start = bytes(t, "start");
    let stop = bytes(t, "stop");
    let escape = bytes(t, "escape");
    let (frame_bytes, length) = (t.int("frame_bytes", 1..=limits::FRAME_BYTES_MAX as i64), t.str("length"));
    let beside = t.int("length_beside_bytes", 0..=64);
    let used: &[&str] = match word {
        "fixed" => &["start", "frame_bytes"],
        "length" => &["start", "length", "length_beside_bytes"],
        "delimited" => &["start", "stop", "escape"],
        _ => &[],
    };
    for key in ["start", "stop", "escape", "frame_bytes", "length", "length_beside_bytes"] {
        if decided && t.has(key) && !used.contains(&key) {
            t.problem(key, format!("does not belong to `framing = \"{word}\"`"));
        }
    }
    if matches!(word, "fixed" | "length") && start.is_none() && check.is_none() && !t.has("start") && !t.has("check") {
        t.problem("framing", "needs `start` or `check`: else one lost byte would shift every frame behind it");
    }
    let one = |t: &mut Table<'_>, key, bytes: Option<Vec<u8>>, needed: bool| match bytes.as_deref() {
        Some([byte]) => Some(*byte),
        None if !needed => None,
        _ => {
            t.problem(key, "must be one byte, such as `02`");
            None
        }
    };
    match word {
        "cobs" => Framing::Cobs,
        "slip" => Framing::Slip,
        "fixed" => {
            if frame_bytes.is_none() {
                t.problem("frame_bytes", "is needed: the length of every frame, start bytes and check included");
            }
            let least = start.as_ref().map_or(0, Vec::len) + check.map_or(0, |c| c.kind.bytes());
            let bytes = frame_bytes.map_or(64, |n| n as usize);
            if bytes <= least {
                t.problem("frame_bytes", "leaves no byte beside start and check");
            }
            Framing::Fixed { start: start.unwrap_or_default(), bytes: bytes.max(least + 1) }
        }
        "length" => {
            let (text, number) = (length.clone().unwrap_or_default(), length.as_deref().and_then(parts::number));
            if number.is_none_or(|(number, _)| !matches!(number, Number::U(1 | 2))) {
                t.problem("length", format!("`{text}` is invalid: expected one of `u8`, `u16le`, `u16be`"));
            }
            let number = number.unwrap_or((Number::U(1), Order::Big));
            let start = start.unwrap_or_default();
            let own = start.len() + number.0.bytes() + check.map_or(0, |c| c.kind.bytes());
            Framing::Length { start, number, beside: beside.map_or(own, |n| n as usize) }
        }
        "delimited" => Framing::Delimited {
            start: one(t, "start", start, true).unwrap_or(2),
            stop: one(t, "stop", stop, true).unwrap_or(3),
            escape: one(t, "escape", escape, false),
        },
        _ => Framing::Lines,
    }
}

struct Counters {
    seq: Option<String>,
    seq_modulo: u64,
    time: Option<(String, TimeFormat)>,
    date: Option<String>,
}

/// The sensor's own sequence and clock.
fn counters(t: &mut Table<'_>, port: &Port, format: &Format) -> Counters {
    let (seq, modulo) = (t.str("seq"), t.int("seq_modulo", 2..=i64::MAX));
    let time_format = text::time_format(t);
    let (date, time) = text::time_columns(t, time_format.as_ref()).unzip();
    let date = date.flatten();
    let unnamed = time_format.is_none() && !t.has("time_format");
    if t.has("time_format") && !t.has("time") {
        t.problem("time_format", "needs `time` beside it: the column with the sensor's clock");
    }
    let time = time.map(|column| (column, time_format.unwrap_or(TimeFormat::Unit(1))));
    if time.is_some() && unnamed {
        t.problem(
            "time",
            "needs `time_format`: `ns`, `us`, `ms`, `s`, `civil` or a pattern such as `%d/%m/%Y %H:%M:%S`",
        );
    }
    if date.is_some() && matches!(format, Format::Binary(_)) {
        t.problem("time", "a frame of bytes has one field for its clock; two columns are for text");
    }
    for (key, column) in
        [("seq", seq.as_ref()), ("time", time.as_ref().map(|(column, _)| column)), ("time", date.as_ref())]
    {
        let Some(column) = column else { continue };
        if !matches!(port, Port::Serial(_)) || matches!(format, Format::Nmea(_)) {
            t.problem(key, "belongs to a sensor that writes its rows itself");
        } else if format.columns().is_some_and(|columns| !columns.contains(&column.as_str())) {
            t.problem(key, format!("`{column}` is not in `columns`"));
        } else if let Format::Binary(Layout { fields, block: Some(block), .. }) = format
            && fields.iter().zip(&block.steps).any(|(field, step)| field.column == *column && *step > 0)
        {
            t.problem(key, format!("`{column}` is an array: a frame has one number and one time"));
        } else if !format.always_has(column) {
            t.problem(key, format!("not every row has `{column}`"));
        }
    }
    let mut wraps = 0;
    if let (Some(seq), Format::Binary(layout)) = (&seq, format) {
        match layout.fields.iter().find(|f| f.column == *seq).map(|f| f.number) {
            Some(Number::U(8)) | None => {}
            Some(Number::U(bytes)) => wraps = 1u64 << (8 * u32::from(bytes)),
            Some(_) => t.problem("seq", "must be an unsigned number"),
        }
    }
    Counters { seq, seq_modulo: modulo.map_or(wraps, |n| n as u64), time, date }
}

/// Two sources on one port would each get half of the bytes.
pub(super) fn overlapping(root: &mut Table<'_>, sources: &[Source]) {
    let ports = || sources.iter().filter_map(|s| Some((s, s.port.path()?)));
    for (i, (later, path)) in ports().enumerate() {
        if let Some((first, _)) = ports().take(i).find(|(_, first)| is_same_port(first, path)) {
            root.problem("source", format!("`{}` and `{}` read the same port {path}", first.name, later.name));
        }
    }
}

pub(super) fn channel(name: &str, mut t: Table<'_>, names: &Names, sources: &[Source]) -> Channel {
    let known = match (t.str("source"), sources.len()) {
        (Some(word), _) => {
            let known = names.sources.get(&word).copied();
            if known.is_none() {
                let instead = instead(&word, sources.iter().map(|source| source.name.as_str()));
                t.problem("source", format!("no source is called `{word}`{instead}"));
            }
            known
        }
        (None, 1) => Some(SourceId(0)),
        (None, 0) => {
            t.problem("source", "there is no source: a section `[source.NAME]` is needed");
            None
        }
        (None, _) => {
            let all = sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
            t.problem("source", format!("is missing, and there are several sources: expected one of {all}"));
            None
        }
    };
    let source = known.unwrap_or(SourceId(0));
    let column = t.str("column").unwrap_or_else(|| name.to_owned());
    // Without its source nothing is known of its column.
    if let Some(mut columns) = known.and_then(|at| sources.get(usize::from(at.0))).and_then(|s| s.format.columns())
        && !columns.contains(&column.as_str())
        && !columns.is_empty()
    {
        let near = nearest(&column, columns.iter().copied()).map(|near| format!("; did you mean `{near}`?"));
        columns.sort_unstable();
        columns.dedup();
        let why = format!("unknown column `{column}`: the source has {}", columns.join(", "));
        t.problem("column", why + &near.unwrap_or_default());
    }
    let channel = Channel {
        name: name.to_owned(),
        source,
        column,
        unit: t.str("unit").unwrap_or_default(),
        scale: t.float("scale").unwrap_or(1.0),
        offset: t.float("offset").unwrap_or(0.0),
        min: t.float("min"),
        max: t.float("max"),
        rate_max_per_s: t.float("rate_max_per_s"),
        stuck_ms: t.int("stuck_ms", 10..=86_400_000).map(|n| n as u64),
        stuck_band: t.float("stuck_band").unwrap_or(0.0),
        numbers: numbers(&mut t, sources.get(usize::from(source.0))),
    };
    if channel.rate_max_per_s.is_some_and(|rate| rate <= 0.0) {
        t.problem("rate_max_per_s", "must be above 0");
    }
    if channel.stuck_band < 0.0 || (channel.stuck_band > 0.0 && channel.stuck_ms.is_none()) {
        t.problem("stuck_band", "must not be below 0, and needs `stuck_ms` beside it");
    }
    if channel.scale == 0.0 {
        t.problem("scale", "0 would make every value the same");
    }
    if let (Some(min), Some(max)) = (channel.min, channel.max)
        && min > max
    {
        t.problem("min", format!("{min} is above `max` {max}"));
    }
    t.finish();
    channel
}

/// How a channel's text becomes a number: its own keys over those of its source.
fn numbers(t: &mut Table<'_>, source: Option<&Source>) -> NumberText {
    let usual = source.map(|source| source.numbers.clone()).unwrap_or_default();
    let numbers = number::numbers(t, &usual);
    if let Some(source) = source {
        number::fit(t, &numbers, &source.format);
    }
    numbers
}
