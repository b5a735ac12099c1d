//! Where in a frame the raw value of a channel stands and how it is read, in words: what was learnt from a channel belongs to that.
//! Pure.

use super::{
    Base, Channel, FieldAt, FieldTest, Format, GpioRead, Modbus, Number, NumberText, Order, Port, Reading, Registers,
    Source, Word,
};

impl Source {
    /// How the raw value of a channel is read, such as `csv column 3, decimal ,`.
    pub fn origin(&self, channel: &Channel) -> String {
        let own = match &self.format {
            Format::Answers(all) => answer(self, all, &channel.column),
            format => self.of_format(format, &channel.column),
        };
        let mut parts = vec![own];
        if self.format.is_text() {
            number(&channel.numbers, &mut parts);
        }
        parts.join(", ")
    }

    fn of_format(&self, format: &Format, column: &str) -> String {
        let is = |name: &String| name == column;
        match format {
            Format::Csv { columns, .. } => match &self.port {
                // One file for each column: their order says nothing.
                Port::Sysfs(device) => format!("file of {}", device.device),
                _ => format!("csv column {}", columns.iter().position(is).map_or(0, |at| at + 1)),
            },
            Format::Json => "json".into(),
            Format::KeyValue(_) => "keyvalue".into(),
            Format::Fixed { columns, .. } => {
                let span = columns.iter().find(|span| is(&span.column));
                span.map_or_else(String::new, |span| format!("fixed {} to {}", span.from + 1, span.to))
            }
            Format::Pattern(all) => {
                let own = all.iter().filter(|pattern| pattern.columns.iter().any(is));
                format!("pattern {}", own.map(|pattern| pattern.expression.as_str()).collect::<Vec<_>>().join(" or "))
            }
            Format::Nmea(nmea) => {
                let values = nmea.sentences.iter().flat_map(|s| s.values.iter().map(move |value| (s, value)));
                let own = values.filter(|(_, value)| is(&value.column)).map(|(sentence, value)| {
                    let at = match &value.at {
                        FieldAt::Field(place) => format!("field {}", place + 1),
                        FieldAt::Transducer { kind, name } => {
                            format!("{}{name}", kind.as_deref().map_or(String::new(), |k| format!("{k}:")))
                        }
                    };
                    let only = sentence.only.iter().map(|rule| match &rule.test {
                        FieldTest::OneOf(texts) => format!(" where field {} is {}", rule.place + 1, texts.join("|")),
                        _ => String::new(),
                    });
                    let only: String = only.collect();
                    let how = match value.reading {
                        Reading::Number => String::new(),
                        Reading::Angle => " as ddmm".into(),
                        Reading::Signed => " signed".into(),
                        Reading::Unit(unit) => format!(" in {}", unit.name()),
                    };
                    format!("{} {at}{how}{only}", sentence.name)
                });
                own.collect::<Vec<_>>().join(" or ")
            }
            Format::Binary(layout) => {
                let field = layout.fields.iter().find(|field| is(&field.column));
                field.map_or_else(String::new, |field| {
                    format!("{} at byte {}", kind(field.number, field.order), field.at)
                })
            }
            Format::Registers(rows) => match &self.port {
                Port::Modbus(modbus) => register(modbus, rows, column).unwrap_or_default(),
                _ => String::new(),
            },
            Format::Edges(lines) => match lines.iter().find(|line| is(&line.column)).map(|line| line.read) {
                Some(GpioRead::Quadrature(_)) => "quadrature".into(),
                Some(read) => format!("{read:?}").to_lowercase(),
                None => String::new(),
            },
            Format::Answers(_) => String::new(),
        }
    }
}

/// Of several responses, the one with this column, and what is asked for it.
fn answer(source: &Source, all: &[Format], column: &str) -> String {
    let has = |format: &&Format| format.columns().is_none_or(|columns| columns.contains(&column));
    let place = all.iter().position(|format| has(&format) && format.columns().is_some());
    let Some(at) = place.or_else(|| all.iter().position(|format| has(&format))) else { return String::new() };
    let request = match &source.port {
        Port::Serial(serial) => serial.poll.as_ref().and_then(|poll| poll.requests.get(at)),
        _ => None,
    };
    let request = request.map_or_else(String::new, |bytes| format!(" asked with {}", bytes.escape_ascii()));
    format!("{}{request}", source.of_format(&all[at], column))
}

/// What makes another number of the same text.
fn number(numbers: &NumberText, parts: &mut Vec<String>) {
    if numbers.decimal != b'.' {
        parts.push(format!("decimal {}", char::from(numbers.decimal)));
    }
    parts.extend(numbers.thousands.map(|mark| format!("thousands {mark}")));
    for (suffix, factor) in &numbers.suffixes {
        parts.push(format!("suffix {suffix} = {factor}"));
    }
    let base = match numbers.base {
        Base::Decimal => None,
        Base::Hex(0) => Some("hex".to_owned()),
        Base::Hex(bits) => Some(format!("hex-i{bits}")),
        Base::Binary => Some("binary".into()),
    };
    parts.extend(base);
    for (text, word) in &numbers.words {
        if let Word::Number(value) = word {
            parts.push(format!("word {text} = {value}"));
        }
    }
}

/// A type with its byte order, as the configuration writes it.
fn kind(number: Number, order: Order) -> String {
    let name = Number::NAMES.iter().find(|(_, known)| *known == number).map_or("", |(name, _)| name);
    let order = match order {
        _ if number.bytes() == 1 => "",
        Order::Big => "be",
        Order::Little => "le",
        Order::WordsSwapped => "cdab",
        Order::BytesSwapped => "badc",
    };
    format!("{name}{order}")
}

/// A register by its device, table and address.
fn register(modbus: &Modbus, rows: &[super::RegisterRow], column: &str) -> Option<String> {
    let pairs = modbus.reads.iter().zip(rows);
    let (read, own) =
        pairs.flat_map(|(read, row)| row.columns.iter().map(move |c| (read, c))).find(|(_, c)| c.name == column)?;
    let address = |at: usize| usize::from(read.address) + at / read.table.unit();
    let table = match read.table {
        Registers::Coil => "coil",
        Registers::Discrete => "discrete",
        Registers::Holding => "holding",
        Registers::Input => "input",
    };
    let mut text = format!("slave {} {table} {}", read.slave, address(own.at));
    if !read.table.is_bits() {
        text += &format!(" {}", kind(own.number, own.order));
    }
    if let Some(mask) = own.mask {
        text += &format!(", mask {mask:#x}");
    }
    if let Some(scale) = own.scale_at {
        text += &format!(", scale register {}", address(scale));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    /// The origin of the only channel, `x`.
    fn origin(source: &str, channel: &str) -> String {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        std::fs::write(&file, format!("[source.s]\n{source}\n[channel.x]\n{channel}\n")).expect("write");
        let config = Config::local(Some(&file)).unwrap_or_else(|why| panic!("{source}: {why:?}"));
        config.sources[0].origin(&config.channels[0])
    }

    #[test]
    fn each_way_to_read_a_channel_has_words_of_its_own_and_what_changes_a_value_changes_them() {
        let serial = |keys: &str| format!("path = \"/dev/x\"\n{keys}");
        let meter = |keys: &str| {
            format!(
                "kind = \"modbus-tcp\"\naddress = \"h:502\"\nregisters = {{ x = {{ {keys} }}, b = {{ address = 8 }} }}"
            )
        };
        let all = [
            (serial("columns = [\"a\", \"x\"]"), "", "csv column 2"),
            (serial("columns = [\"x\", \"a\"]"), "", "csv column 1"),
            (
                serial("columns = [\"x\"]\ndelimiter = \";\""),
                "decimal = \",\"\nthousands = \".\"",
                "csv column 1, decimal ,, thousands .",
            ),
            (serial("columns = [\"x\"]"), "base = \"hex-i16\"", "csv column 1, hex-i16"),
            (
                serial("columns = [\"x\"]"),
                "suffix = { V = 1, mV = 0.001 }",
                "csv column 1, suffix mV = 0.001, suffix V = 1",
            ),
            (serial("columns = [\"x\"]"), "words = { ON = 1, OL = \"bad:overload\" }", "csv column 1, word ON = 1"),
            (serial("format = \"json\""), "", "json"),
            (serial("format = \"keyvalue\"\ndelimiter = \";\""), "", "keyvalue"),
            (serial("format = \"fixed\"\ncolumns = [\"_:2\", \"x:6\"]"), "", "fixed 3 to 8"),
            (serial("format = \"pattern\"\npatterns = ['T=(?<t>.*)', 'X=(?<x>.*)']"), "", "pattern X=(?<x>.*)"),
            (serial("format = \"nmea\"\nsentences = { MTW = [\"x:°C\"] }"), "", "MTW field 1 in °C"),
            (
                serial("format = \"nmea\"\nsentences = { MWV = [\"x\", \"only:R\"] }"),
                "",
                "MWV field 1 where field 2 is R",
            ),
            (serial("format = \"nmea\"\nsentences = { XDR = { \"C:AIR\" = \"x\" } }"), "", "XDR C:AIR"),
            (serial("framing = \"cobs\"\nfields = [\"n:u8\", \"x:i16le\"]"), "", "i16le at byte 1"),
            (serial("requests = { x = \"A\\r\", y = \"B\\r\" }"), "", "csv column 1 asked with A\\r"),
            (meter("slave = 3, address = 7, type = \"u32\", order = \"cdab\""), "", "slave 3 holding 7 u32cdab"),
            (meter("read = \"coil\", address = 7"), "", "slave 1 coil 7"),
            (meter("read = \"input\", address = 7, mask = 0x10"), "", "slave 1 input 7 u16be, mask 0x10"),
            (meter("address = 7, type = \"i16\", scale_register = 9"), "", "slave 1 holding 7 i16be, scale register 9"),
        ];
        for (source, channel, wanted) in &all {
            assert_eq!(&origin(source, channel), wanted, "{source}");
        }
    }
    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn any_text_is_a_configuration_or_a_list_of_problems(data in crate::flow::spoilt::spoilt(vec![
            b"[source.s]\npath = \"/dev/x\"\nformat = \"keyvalue\"\ndelimiter = \";\"\nwords = { OL = \"bad:overload\" }\n\
              [channel.a]\nscale = 2\n".to_vec(),
            b"[mqtt]\nurl = [\"mqtts://a\", \"wss://b/mqtt\"]\nproxy = \"http://p\"\n[alarm.x]\nchannel = \"a\"\nabove = 5\n".to_vec(),
            b"[source.m]\nkind = \"modbus-tcp\"\naddress = \"h:502\"\nregisters = { a = { address = 1, type = \"u32\" } }\n".to_vec(),
            b"[pipeline.p]\nmodel = \"m.onnx\"\nchannels = [\"a\"]\nstate = { h_out = \"h_in\" }\n".to_vec(),
        ])) {
            let dir = tempfile::tempdir().expect("folder");
            let file = dir.path().join("c.toml");
            std::fs::write(&file, &data).expect("write");
            match Config::local(Some(&file)) {
                Err(problems) => assert!(!problems.is_empty()),
                Ok(config) => config.channels.iter().for_each(|channel| {
                    config.sources[usize::from(channel.source.0)].origin(channel);
                }),
            }
        }
    }
}
