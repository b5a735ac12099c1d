//! Any frame is decoded or refused; a value that is called good is a finite number.
#![no_main]

use kentledge::{
    config::{
        Base, Block, Channel, Field, FieldAt, Format, GpioLine, GpioRead, KeyValue, Layout, Nmea, Number, NumberText, Order, Pattern,
        Port, Reading, Sentence, SentenceValue, Source, Span, Sysfs, SysfsClass, TimeFormat, Word,
    },
    flow::{Clk, Quality, SourceId, Stamp},
    signal::decode::{Decoder, Row},
};
use libfuzzer_sys::fuzz_target;

/// Numbers with all that can be said of them.
fn numbers(base: Base) -> NumberText {
    NumberText {
        decimal: b',',
        thousands: Some('.'),
        sign_behind: true,
        suffixes: vec![("kg".into(), 1.0), (String::new(), 1.0)],
        base,
        words: vec![("OL".into(), Word::Missing)],
    }
}

fn decoder(format: Format, time: TimeFormat) -> Decoder {
    let own = format.columns().is_none_or(|columns| columns.contains(&"n"));
    let source = Source {
        name: "s".into(),
        port: Port::Sysfs(Sysfs { device: "d".into(), class: SysfsClass::Iio, readings: vec![], every_ms: 1 }),
        format,
        numbers: NumberText::default(),
        seq: own.then(|| "n".into()),
        seq_modulo: 0,
        time: own.then(|| ("t".into(), time)),
        date: None,
        stale_ms: 1,
        gap_max_ms: None,
    };
    let channel = |name: &str, numbers| Channel {
        name: name.into(),
        source: SourceId(0),
        column: name.into(),
        unit: String::new(),
        scale: 2.0,
        offset: 1.0,
        min: Some(-1e9),
        max: Some(1e9),
        rate_max_per_s: None,
        stuck_ms: None,
        stuck_band: 0.0,
        numbers,
    };
    Decoder::new(&source, &[&channel("a", numbers(Base::Decimal)), &channel("b", numbers(Base::Hex(16)))])
}

fn layout(n: usize) -> Layout {
    let field = |column: &str, at, number, order| Field { column: column.into(), at, number, order };
    let fields = vec![
        field("n", 0, Number::U(2), Order::Little),
        field("t", 2, Number::U(4), Order::Big),
        field("a", 6, Number::F(4), Order::WordsSwapped),
        field("b", 10 + n, Number::F(8), Order::Little),
    ];
    Layout { fields, bytes: 18 + n, block: None }
}

fuzz_target!(|data: &[u8]| {
    let csv = || Format::Csv { delimiter: b',', columns: ["n", "t", "a", "b"].map(String::from).to_vec() };
    let value = |column: &str, place, reading| SentenceValue {
        column: column.into(),
        at: FieldAt::Field(place),
        reading,
        valid: vec![],
        constant: vec![5],
    };
    let values = vec![value("a", 0, Reading::Angle), value("b", 2, Reading::Signed)];
    let sentence = Sentence { name: "GLL".into(), only: vec![], values };
    let nmea = Nmea { sentences: vec![sentence], checksum_optional: true };
    let block = || Layout { block: Some(Block { rows: 3, steps: vec![0, 0, 4, 0], period_ns: 1e6 }), ..layout(8) };
    let edge = |column: &str, bit, read| GpioLine { column: column.into(), bit, read };
    let span = |column: &str, from, to| Span { column: column.into(), from, to };
    let keyvalue = |delimiter, end: Option<&str>| {
        Format::KeyValue(KeyValue { delimiter, label_end: b'=', block_end: end.map(str::to_owned) })
    };
    let patterns: Vec<Pattern> =
        ["(?<a>.*),(?<b>.*)", "(?<b>[^;]*);.*"].iter().filter_map(|text| Pattern::new(text).ok()).collect();
    for mut decoder in [
        decoder(csv(), TimeFormat::Unit(1_000_000)),
        decoder(csv(), TimeFormat::Civil),
        decoder(csv(), TimeFormat::Patterns(vec!["%d/%m/%Y %H:%M:%S".into(), "%s".into()])),
        decoder(Format::Json, TimeFormat::Unit(1)),
        decoder(Format::Fixed { columns: vec![span("a", 1, 4), span("b", 4, 9)], width: 10 }, TimeFormat::Unit(1)),
        decoder(keyvalue(Some(b';'), None), TimeFormat::Unit(1)),
        decoder(keyvalue(None, Some("b")), TimeFormat::Unit(1)),
        decoder(Format::Pattern(patterns.clone()), TimeFormat::Unit(1)),
        decoder(Format::Nmea(nmea), TimeFormat::Unit(1)),
        decoder(Format::Binary(block()), TimeFormat::Unit(1)),
        decoder(Format::Binary(layout(0)), TimeFormat::Unit(1_000_000_000)),
        decoder(Format::Answers(vec![csv(), Format::Json, Format::Binary(layout(3))]), TimeFormat::Unit(1)),
        decoder(Format::Edges(vec![edge("a", 0, GpioRead::Frequency), edge("b", 1, GpioRead::Quadrature(0))]), TimeFormat::Unit(1)),
    ] {
        let (mut row, stamp) = (Row::default(), Stamp { boot_ns: 1, wall_ms: None, clk: Clk::Unset });
        // In pieces of eleven as well: that is an edge.
        for frame in std::iter::once(data).chain(data.chunks(11)) {
            let mut is_row = decoder.decode(Ok(frame), stamp, &mut row) == Ok(true);
            while is_row {
                assert_eq!(row.values.len(), 2);
                for (value, quality) in row.values.iter().zip(&row.quality) {
                    assert!(*quality != Quality::Good || value.is_finite());
                }
                is_row = decoder.more(frame, &mut row);
            }
        }
    }
});
