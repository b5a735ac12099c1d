//! `[output.NAME]`: a GPIO line, or a coil or register of a Modbus device, that alarms drive.

use super::{
    Alarm, Bus, Manners, PinName, Port, Source, layouts, modbus, parts,
    parts::is_same_port,
    paths::device,
    problem::instead,
    raw::{Node, Table},
};

/// `[output.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Name.
    pub name: String,
    /// What it drives.
    pub target: Target,
    /// On while one of these alarms is raised; indices.
    pub alarms: Vec<usize>,
    /// The safe state: what it is at start, stop, hang and crash.
    pub safe_on: bool,
    /// Minimum time in one state, ms.
    pub dwell_ms: u64,
}

/// What an output drives.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A GPIO line.
    Line {
        /// Path, name or label of the chip.
        chip: String,
        /// Number or name of the line.
        line: PinName,
        /// Active low.
        active_low: bool,
    },
    /// A coil or a holding register.
    Modbus(Box<Point>),
}

/// A coil or a holding register.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Where its device is.
    pub bus: Bus,
    /// How the bus talks.
    pub manners: Manners,
    /// The device.
    pub slave: u8,
    /// A coil, else a holding register.
    pub coil: bool,
    /// Written with the function for several, 15 or 16.
    pub several: bool,
    /// Address, from 0.
    pub address: u16,
    /// What is written to a register when it is on, and when it is off.
    pub words: (u16, u16),
    /// It is written again this often though nothing changed, ms; 0: only what changed.
    pub refresh_ms: u64,
}

pub(super) fn output(name: &str, mut t: Table<'_>, alarms: &[Alarm], sources: &[Source]) -> Output {
    let list = t.strs("alarms").unwrap_or_default();
    if list.is_empty() {
        t.problem("alarms", "is needed: the output is on while one of these is raised");
    }
    let mut indices = Vec::new();
    for alarm in &list {
        match alarms.iter().position(|a| a.name == *alarm) {
            Some(i) => indices.push(i),
            None => {
                let instead = instead(alarm, alarms.iter().map(|a| a.name.as_str()));
                t.problem("alarms", format!("no alarm is called `{alarm}`{instead}"));
            }
        }
    }
    let target = match t.node("modbus") {
        Some(node) => modbus_target(&mut t, node, sources),
        None => Target::Line {
            chip: device(&mut t, "chip", "/dev"),
            line: layouts::pin_name(&mut t, "line"),
            active_low: t.word("active", &[("high", false), ("low", true)]).unwrap_or(false),
        },
    };
    let output = Output {
        name: name.to_owned(),
        target,
        alarms: indices,
        safe_on: t.word("safe", &[("off", false), ("on", true)]).unwrap_or(false),
        dwell_ms: t.int("dwell_ms", 0..=3_600_000).map_or(0, |n| n as u64),
    };
    t.finish();
    output
}

fn modbus_target(t: &mut Table<'_>, node: Node, sources: &[Source]) -> Target {
    for key in ["chip", "line", "active"] {
        if t.node(key).is_some() {
            t.problem(key, "belongs to a GPIO line, not to an output with `modbus`");
        }
    }
    let mut t = t.sub("modbus".into(), node);
    let point = point(&mut t, sources);
    t.finish();
    Target::Modbus(Box::new(point))
}

fn point(t: &mut Table<'_>, sources: &[Source]) -> Point {
    let (bus, manners) = bus(t, sources);
    let slave = modbus::slave(t, matches!(bus, Bus::Tcp(_)));
    let (coil, register) = (t.int("coil", 0..=65_535), t.int("register", 0..=65_535));
    match (t.has("coil"), t.has("register")) {
        (false, false) => t.problem("coil", "is needed, or `register`: one of them, its address from 0"),
        (true, true) => t.problem("register", "cannot be used together with `coil`: an output writes one of them"),
        _ => {}
    }
    let mut word = |key, usual: u16| t.int(key, 0..=65_535).map_or(usual, |n| n as u16);
    let words = (word("on", 1), word("off", 0));
    if t.has("coil") {
        for key in ["on", "off"].into_iter().filter(|key| t.has(key)).collect::<Vec<_>>() {
            t.problem(key, "belongs to a register: a coil is on or off");
        }
    } else if words.0 == words.1 {
        t.problem("on", "is the same as `off`");
    }
    let (one, several) = if t.has("coil") { (5, 15) } else { (6, 16) };
    let function = t.int("function", 5..=16).unwrap_or(one);
    if ![one, several].contains(&function) {
        t.problem("function", format!("must be {one} or {several} here"));
    }
    let usual_ms = if t.has("coil") { 1000 } else { 0 };
    let refresh_ms = t.int("refresh_ms", 0..=3_600_000).map_or(usual_ms, |n| n as u64);
    if (1..100).contains(&refresh_ms) {
        t.problem("refresh_ms", "must be 0 or at least 100");
    }
    let address = coil.or(register).unwrap_or(0) as u16;
    Point { bus, manners, slave, coil: t.has("coil"), several: function == several, address, words, refresh_ms }
}

/// The bus of a source, or one that no source reads.
fn bus(t: &mut Table<'_>, sources: &[Source]) -> (Bus, Manners) {
    let places = ["source", "path", "address"];
    if places.iter().filter(|key| t.has(key)).count() != 1 {
        t.problem("source", "is needed, or `path`, or `address`: one of them, where the device is");
    }
    let found = t.str("source");
    if let Some(name) = found {
        for key in ["baud", "line", "framing", "echo", "lenient_ids", "answer_ms", "pause_ms"] {
            if t.node(key).is_some() {
                t.problem(key, format!("is said by source `{name}`"));
            }
        }
        match sources.iter().find(|source| source.name == name).map(|source| &source.port) {
            Some(Port::Modbus(modbus)) => {
                if matches!(modbus.bus, Bus::Tcp(_)) && !modbus.manners.tcp_frames {
                    t.problem("source", serial_server(&name));
                }
                return (modbus.bus.clone(), modbus.manners);
            }
            Some(_) => t.problem("source", format!("`{name}` is no Modbus source")),
            None => {
                let instead = instead(&name, sources.iter().map(|source| source.name.as_str()));
                t.problem("source", format!("no source is called `{name}`{instead}"));
            }
        }
        return nowhere();
    }
    let bus = match (t.has("path"), t.has("address")) {
        (true, _) => Bus::Line(parts::line(t)),
        (_, true) => Bus::Tcp(modbus::tcp_address(t)),
        _ => return nowhere(),
    };
    let manners = modbus::manners(t, &bus);
    for source in sources {
        match (&bus, &source.port) {
            (Bus::Line(line), port) if port.path().is_some_and(|path| is_same_port(path, &line.path)) => {
                let advice = match port {
                    Port::Modbus(_) => {
                        format!("source `{0}` reads this line: write `source = \"{0}\"` instead", source.name)
                    }
                    _ => format!("source `{}` reads this port", source.name),
                };
                t.problem("path", advice);
            }
            (Bus::Tcp(address), Port::Modbus(modbus))
                if modbus.bus == Bus::Tcp(address.clone()) && !manners.tcp_frames =>
            {
                t.problem("address", serial_server(&source.name));
            }
            _ => {}
        }
    }
    (bus, manners)
}

fn serial_server(source: &str) -> String {
    format!(
        "source `{source}` reads by RTU frames over TCP: two connections to such a serial server disturb each other; \
         use a gateway that speaks Modbus TCP"
    )
}

/// In the place of a bus that was reported as a problem.
fn nowhere() -> (Bus, Manners) {
    let manners = Manners { tcp_frames: true, echo: false, lenient_ids: false, answer_ms: 500, pause_us: 0 };
    (Bus::Tcp(String::new()), manners)
}

/// Two outputs on one line, coil or register would fight for it; a line that a source reads is not free.
pub(super) fn fighting(root: &mut Table<'_>, outputs: &[Output], sources: &[Source]) {
    for (i, later) in outputs.iter().enumerate() {
        let same = |first: &&Output| match (&first.target, &later.target) {
            (Target::Line { chip, line, .. }, Target::Line { chip: other, line: drives, .. }) => {
                line == drives && is_same_port(chip, other)
            }
            (Target::Modbus(p), Target::Modbus(q)) => {
                (&p.bus, p.slave, p.coil, p.address) == (&q.bus, q.slave, q.coil, q.address)
            }
            _ => false,
        };
        if let Some(first) = outputs[..i].iter().find(same) {
            let what = match later.target {
                Target::Line { .. } => "drive the same line: name all alarms in one output",
                Target::Modbus(_) => "write the same coil or register",
            };
            root.problem("output", format!("`{}` and `{}` {what}", first.name, later.name));
        }
        let Target::Line { chip, line, .. } = &later.target else { continue };
        let reads = |source: &&Source| match &source.port {
            Port::Gpio(gpio) => is_same_port(&gpio.chip, chip) && gpio.lines.iter().any(|pin| pin.line == *line),
            _ => false,
        };
        if let Some(source) = sources.iter().find(reads) {
            root.problem("output", format!("`{}` drives the line that source `{}` reads", later.name, source.name));
        }
    }
}

/// A serial line that outputs write on is shared by the source that reads it.
pub(super) fn share(sources: &mut [Source], outputs: &[Output]) {
    let written = |bus: &Bus| {
        let line = matches!(bus, Bus::Line(_));
        line && outputs.iter().any(|output| matches!(&output.target, Target::Modbus(point) if point.bus == *bus))
    };
    for source in sources {
        if let Port::Modbus(modbus) = &mut source.port {
            modbus.shared = written(&modbus.bus);
        }
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
