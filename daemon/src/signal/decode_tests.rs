//! Frames into rows: what is decoded, and what is refused by which name.

use super::*;
use crate::{
    config::{Field, GpioLine, GpioRead, Number, NumberText, Order, Port, Sysfs, SysfsClass},
    flow::{Clk, SourceId, Why},
};

const STAMP: Stamp = Stamp { boot_ns: 0, wall_ms: None, clk: Clk::Unset };

fn channel(name: &str, max: Option<f64>) -> Channel {
    Channel {
        name: name.into(),
        source: SourceId(0),
        column: name.into(),
        unit: String::new(),
        scale: 2.0,
        offset: 1.0,
        min: None,
        max,
        rate_max_per_s: None,
        stuck_ms: None,
        stuck_band: 0.0,
        numbers: NumberText::default(),
    }
}

fn decoder(format: Format) -> Decoder {
    let own = !matches!(format, Format::Nmea(_) | Format::Edges(_) | Format::Answers(_));
    let source = Source {
        name: "s".into(),
        port: Port::Sysfs(Sysfs { device: "d".into(), class: SysfsClass::Iio, readings: vec![], every_ms: 1 }),
        format,
        numbers: NumberText::default(),
        seq: own.then(|| "n".into()),
        seq_modulo: 0,
        time: own.then(|| ("t".into(), TimeFormat::Unit(1_000_000))),
        date: None,
        stale_ms: 1,
        gap_max_ms: None,
    };
    let most = own.then_some(10.0);
    Decoder::new(&source, &[&channel("a", None), &channel("b", most)])
}

fn csv() -> Decoder {
    decoder(Format::Csv { delimiter: b',', columns: ["n", "t", "a", "b"].map(String::from).to_vec() })
}

#[test]
fn a_row_is_scaled_checked_and_keeps_the_sensors_own_sequence_and_clock() {
    for (mut decoder, frame) in
        [(csv(), "7, 12.5,1.5,8"), (decoder(Format::Json), r#"{"n":7,"t":12.5,"a":1.5,"b":8,"x":[]}"#)]
    {
        let mut row = Row::default();
        assert_eq!(decoder.decode(Ok(frame.as_bytes()), STAMP, &mut row), Ok(true));
        assert_eq!((row.seq, row.t_ns), (Some(7), Some(12_500_000)));
        assert_eq!(row.values, [4.0, 17.0]);
        assert_eq!(row.quality, [Quality::Good, Quality::Bad(Why::Range)]);
    }
}

#[test]
fn garbage_is_refused_by_name_and_a_bad_number_spoils_one_sample() {
    let refused = |frame: &[u8]| csv().decode(Ok(frame), STAMP, &mut Row::default()).err();
    assert_eq!(refused(b"1,2,3"), Some(Refused::Columns));
    assert_eq!(refused(b"1,2,3,4,5"), Some(Refused::Columns));
    assert_eq!(refused(b"x,2,3,4"), Some(Refused::Sequence));
    assert_eq!(refused(b"1,nan,3,4"), Some(Refused::Clock));
    assert_eq!(refused(b"1,2,\xc3,4"), Some(Refused::NotText));
    assert_eq!(decoder(Format::Json).decode(Ok(b"{\"n\":1"), STAMP, &mut Row::default()), Err(Refused::NotJson));
    for text in ["1e999", "nan", "inf", "", "1 2", "\0", "0x10"] {
        let mut row = Row::default();
        assert_eq!(csv().decode(Ok(format!("1,2,{text},4").as_bytes()), STAMP, &mut row), Ok(true));
        assert_eq!(row.quality, [Quality::Bad(Why::NotANumber), Quality::Good], "{text:?}");
    }
}

fn field(column: &str, at: usize, number: Number, order: Order) -> Field {
    Field { column: column.into(), at, number, order }
}

#[test]
fn numbers_are_read_in_each_order_and_a_frame_of_another_length_is_refused() {
    let fields = vec![
        field("n", 0, Number::U(2), Order::Big),
        field("t", 2, Number::U(4), Order::Little),
        field("a", 6, Number::I(3), Order::Little),
        field("b", 9, Number::F(4), Order::WordsSwapped),
    ];
    let mut decoder = decoder(Format::Binary(Layout { fields, bytes: 13, block: None }));
    let mut row = Row::default();
    let mut frame = vec![1, 2, 0x10, 0x27, 0, 0, 0xfe, 0xff, 0xff];
    let bits = 2.5f32.to_be_bytes();
    frame.extend([bits[2], bits[3], bits[0], bits[1]]);
    assert_eq!(decoder.decode(Ok(&frame), STAMP, &mut row), Ok(true));
    assert_eq!((row.seq, row.t_ns), (Some(258), Some(10_000_000_000)));
    assert_eq!(row.values, [-3.0, 6.0]);
    assert_eq!(decoder.decode(Ok(&frame[..12]), STAMP, &mut row), Err(Refused::Length));
    assert_eq!(decoder.decode(Err(Flaw::Checksum), STAMP, &mut row), Err(Refused::Checksum));
    let swapped = [0x34, 0x12, 0x78, 0x56];
    assert_eq!(Number::U(4).bits(Order::BytesSwapped, &swapped), 0x1234_5678);
    assert_eq!(Number::I(8).value(Order::Little, &[0xff; 8]), -1.0);
    assert_eq!(Number::U(1).bits(Order::WordsSwapped, &[7]), 7);
}

#[test]
fn tag_names_the_response_and_channels_of_others_are_absent() {
    let csv = |name: &str| Format::Csv { delimiter: b',', columns: vec![name.into(), String::new()] };
    let mut decoder = decoder(Format::Answers(vec![csv("a"), Format::Json, csv("b")]));
    let mut row = Row::default();
    for (frame, values) in [(&b"\0\x004,9"[..], (Some(9.0), None)), (b"\x02\x004,9", (None, Some(9.0)))] {
        assert_eq!(decoder.decode(Ok(frame), STAMP, &mut row), Ok(true));
        let (a, b) = values;
        for (i, value) in [a, b].into_iter().enumerate() {
            let wanted = if value.is_some() { Quality::Good } else { Quality::Absent };
            assert_eq!((row.quality[i], value.is_none_or(|value| value == row.values[i])), (wanted, true), "{frame:?}");
        }
        assert_eq!(decoder.bare(frame), b"4,9");
    }
    assert_eq!(decoder.decode(Ok(b"\x01\0{\"b\": 1}"), STAMP, &mut row), Ok(true));
    assert_eq!((row.quality[0], row.quality[1]), (Quality::Absent, Quality::Good));
    assert_eq!(decoder.decode(Ok(b"\x02\x004"), STAMP, &mut row), Err(Refused::Columns));
    for wrong in [&b"\x03\x004,9"[..], b"\0", b""] {
        assert_eq!(decoder.decode(Ok(wrong), STAMP, &mut row), Err(Refused::Length), "{wrong:?}");
    }
}

fn edge(bit: u8, rising: bool, t_ns: u64) -> Vec<u8> {
    let mut frame = vec![0, bit, u8::from(rising)];
    frame.extend(t_ns.to_le_bytes());
    frame
}

fn edges(a: GpioRead, b: GpioRead) -> Decoder {
    let line = |column: &str, bit, read| GpioLine { column: column.into(), bit, read };
    decoder(Format::Edges(vec![line("a", 0, a), line("b", 1, b)]))
}

/// The raw values of a sample, without the channels' scale of 2 and offset of 1.
fn sampled(decoder: &mut Decoder, kind: u8, levels: u64, ms: u64) -> Vec<Option<f64>> {
    let mut frame = vec![kind];
    frame.extend(levels.to_le_bytes());
    let (mut row, stamp) = (Row::default(), Stamp { boot_ns: ms * 1_000_000, ..STAMP });
    assert_eq!(decoder.decode(Ok(&frame), stamp, &mut row), Ok(true));
    row.values.iter().zip(&row.quality).map(|(v, q)| q.is_good().then_some((v - 1.0) / 2.0)).collect()
}

#[test]
fn edges_are_counted_measured_and_timed_by_the_kernels_stamps() {
    const MS: u64 = 1_000_000;
    let mut d = edges(GpioRead::Counter, GpioRead::PulseWidth);
    let mut row = Row::default();
    assert_eq!(sampled(&mut d, 1, 0, 0), [Some(0.0), None]);
    for i in 0..5 {
        assert_eq!(d.decode(Ok(&edge(0, true, i * 10 * MS)), STAMP, &mut row), Ok(false));
        assert_eq!(d.decode(Ok(&edge(1, true, i * 10 * MS)), STAMP, &mut row), Ok(false));
        assert_eq!(d.decode(Ok(&edge(1, false, i * 10 * MS + 250_000)), STAMP, &mut row), Ok(false));
    }
    assert_eq!(sampled(&mut d, 1, 0, 50), [Some(5.0), Some(250.0)]);
    assert_eq!(sampled(&mut d, 2, 0, 60), [None, None], "where edges were not seen, nothing is said of them");

    let mut d = edges(GpioRead::Frequency, GpioRead::Edges);
    for i in 0..100 {
        let _ = d.decode(Ok(&edge(0, true, i * 10 * MS)), STAMP, &mut row);
        if i % 10 == 9 {
            let hz = sampled(&mut d, 1, 0, i * 10)[0].unwrap_or(-1.0);
            assert!(i < 10 || (hz - 100.0).abs() < 1e-6, "{i}: {hz}");
        }
    }
    assert_eq!(sampled(&mut d, 1, 0, 990 + 500)[0], Some(2.0), "half a second of silence: 2 Hz at most");
    assert_eq!(sampled(&mut d, 1, 0, 990 + 20_000)[0], Some(0.0));
    assert_eq!(d.decode(Ok(&edge(1, true, 7)), STAMP, &mut row), Ok(true));
    assert_eq!((row.t_ns, row.values[1], row.quality[0]), (Some(7), 3.0, Quality::Absent));
    for wrong in [&[0u8][..], &[3; 9], &[0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0], &[1; 8]]
    {
        assert_eq!(d.decode(Ok(wrong), STAMP, &mut row), Err(Refused::Length), "{wrong:?}");
    }
}

#[test]
fn a_position_goes_forward_and_back_and_a_sample_does_not_move_it() {
    let mut d = edges(GpioRead::Quadrature(1), GpioRead::Level);
    let mut row = Row::default();
    assert_eq!(sampled(&mut d, 1, 0, 0)[0], Some(0.0));
    let mut t = 0;
    let mut turn = |d: &mut Decoder, steps: &[(u8, bool)]| {
        for (bit, rising) in steps {
            t += 1;
            let _ = d.decode(Ok(&edge(*bit, *rising, t)), STAMP, &mut row);
        }
    };
    let period = [(0, true), (1, true), (0, false), (1, false)];
    turn(&mut d, &period);
    turn(&mut d, &period);
    assert_eq!(sampled(&mut d, 1, 0, 1)[0], Some(8.0));
    // The sample sees a level whose edge is still to come.
    assert_eq!(sampled(&mut d, 1, 0b10, 2)[0], Some(8.0));
    turn(&mut d, &[(1, true), (0, true), (1, false)]);
    assert_eq!(sampled(&mut d, 1, 0b01, 3)[0], Some(5.0));
}

proptest::proptest! {
    #[test]
    fn any_frame_of_any_format_is_decoded_or_refused_and_a_good_value_is_finite(
        data in crate::flow::spoilt::spoilt(vec![
            b"$GPGLL,4807.0,N,01131.0,W,1,A".to_vec(),
            b"\0\x01{\"a\":1,\"b\":[{}]}".to_vec(),
            vec![0x55; 18], vec![0xAA; 34], vec![0; 22],
        ])
    ) {
        for toml in [
            "format = \"nmea\"\nchecksum = \"optional\"\nsentences = { GLL = [\"a:ddmm\", \"\", \"b:ddmm\"], XDR = { T = \"c:K\" } }",
            "framing = \"cobs\"\nfields = [\"n:u16le\", \"t:u32\", \"a:f32cdab\", \"b:f64le\"]\nseq = \"n\"\n\
             time = \"t\"\ntime_format = \"s\"",
            "framing = \"cobs\"\nfields = [\"n:u16le\", \"a,b:f32badc[4]\"]\nrate_hz = 100\nseq = \"n\"",
            "[source.s.requests]\na = \"A\"\nb = { request = \"B\", format = \"json\" }",
        ] {
            let dir = tempfile::tempdir().expect("folder");
            let file = dir.path().join("c.toml");
            std::fs::write(&file, format!("[source.s]\npath = \"/dev/x\"\n{toml}\n[channel.a]\nscale = 2\n[channel.b]\n")).expect("write");
            let config = crate::config::Config::local(Some(&file)).unwrap_or_else(|why| panic!("{toml}: {why:?}"));
            let channels: Vec<_> = config.channels.iter().collect();
            let mut decoder = Decoder::new(&config.sources[0], &channels);
            let mut row = Row::default();
            let mut is_row = decoder.decode(Ok(&data), STAMP, &mut row) == Ok(true);
            while is_row {
                let finite = |(value, quality): (&f64, &Quality)| !quality.is_good() || value.is_finite();
                assert!(row.values.iter().zip(&row.quality).all(finite), "{toml}");
                is_row = decoder.more(&data, &mut row);
            }
        }
        let line = |column: &str, bit, read| GpioLine { column: column.into(), bit, read };
        let lines = vec![line("a", 0, GpioRead::Frequency), line("b", 1, GpioRead::Quadrature(0))];
        let (mut edges, mut row) = (decoder(Format::Edges(lines)), Row::default());
        // An edge has eleven bytes.
        for frame in data.chunks(11) {
            if edges.decode(Ok(frame), STAMP, &mut row) == Ok(true) {
                let finite = |(value, quality): (&f64, &Quality)| !quality.is_good() || value.is_finite();
                assert!(row.values.iter().zip(&row.quality).all(finite));
            }
        }
    }
}
