//! Bytes of a port cut into frames: the frames are the same however the bytes are cut into reads, and none is longer
//! than allowed.
#![no_main]

use kentledge::{
    config::{Check, CheckKind, Framing, Line, LineCheck, LineForm, Number, Order, Serial},
    source::{cut::Cut, framing::Cutter},
};
use libfuzzer_sys::fuzz_target;

const FRAME_MAX: usize = 32;

fn frames<'a>(serial: &Serial, reads: impl Iterator<Item = &'a [u8]>) -> Vec<Option<Vec<u8>>> {
    let mut cutter = Cutter::new(serial);
    let mut all = Vec::new();
    let mut take = |cut: Cut| {
        all.extend(cut.ranges.iter().map(|&(a, b)| Some(cut.bytes.get(a as usize..b as usize)?.to_vec())));
    };
    for read in reads {
        take(cutter.feed(read));
    }
    take(cutter.silent());
    all
}

fuzz_target!(|data: &[u8]| {
    let Some((size, bytes)) = data.split_first() else { return };
    let check = Some(Check { kind: CheckKind::Xor8, little: true, skip: 0 });
    let number = (Number::U(1), Order::Big);
    let sum = LineCheck { kind: CheckKind::Xor8, little: false, skip: 0, mark: Some(b'*'), covers_mark: false };
    let forms = [
        LineForm::default(),
        LineForm { end: b";".to_vec(), check: None },
        LineForm { end: b"#\r".to_vec(), check: Some(sum) },
    ];
    let lines = forms.map(|form| (Framing::Lines, None, form));
    let packets = [
        (Framing::Cobs, check),
        (Framing::Slip, None),
        (Framing::Fixed { start: vec![0xaa], bytes: 6 }, check),
        (Framing::Length { start: vec![], number, beside: 2 }, check),
        (Framing::Delimited { start: 2, stop: 3, escape: Some(0x10) }, None),
        (Framing::Delimited { start: 0x7e, stop: 0x7e, escape: None }, None),
    ];
    for (framing, check, lines) in lines.into_iter().chain(packets.map(|(f, c)| (f, c, LineForm::default()))) {
        let line = Line { data: 8, parity: b'N', stop: 1 };
        let (path, baud, frame_max, poll) = (String::new(), 9600, FRAME_MAX, None);
        let serial = Serial { path, baud, line, frame_max, framing, check, lines, poll };
        let whole = frames(&serial, std::iter::once(bytes));
        let cut = frames(&serial, bytes.chunks(usize::from(*size).max(1)));
        let good = |all: &[Option<Vec<u8>>]| all.iter().flatten().cloned().collect::<Vec<_>>();
        assert_eq!(good(&whole), good(&cut), "{:?}", serial.framing);
        assert!(good(&whole).iter().all(|frame| frame.len() <= FRAME_MAX));
    }
});
