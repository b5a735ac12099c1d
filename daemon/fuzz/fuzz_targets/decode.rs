//! Any frame is decoded or refused; a value that is called good is a finite number.
#![no_main]

use kentledge::{
    config::{Channel, Format, Line, Serial, Source, TimeFormat},
    flow::{Quality, SourceId},
    signal::decode::{Decoder, Row},
};
use libfuzzer_sys::fuzz_target;

fn decoder(format: Format, time: TimeFormat) -> Decoder {
    let line = Line { data: 8, parity: b'N', stop: 1 };
    let source = Source {
        name: "s".into(),
        serial: Serial { path: String::new(), baud: 9600, line, frame_max: 1024 },
        format,
        seq: Some("n".into()),
        time: Some(("t".into(), time)),
        stale_ms: 1,
    };
    let channel = |name: &str| Channel {
        name: name.into(),
        source: SourceId(0),
        column: name.into(),
        unit: String::new(),
        scale: 2.0,
        offset: 1.0,
        min: Some(-1e9),
        max: Some(1e9),
    };
    Decoder::new(&source, &[&channel("a"), &channel("b")])
}

fuzz_target!(|data: &[u8]| {
    let csv = || Format::Csv { delimiter: b',', columns: ["n", "t", "a", "b"].map(String::from).to_vec() };
    for decoder in [
        decoder(csv(), TimeFormat::Unit(1_000_000)),
        decoder(csv(), TimeFormat::Civil),
        decoder(Format::Json, TimeFormat::Unit(1)),
    ] {
        let mut row = Row::default();
        if decoder.decode(data, &mut row).is_ok() {
            assert_eq!(row.values.len(), 2);
            for (value, quality) in row.values.iter().zip(&row.quality) {
                assert!(*quality != Quality::Good || value.is_finite());
            }
        }
    }
});
