//! Lines: the same frames however the bytes are cut, each end that devices use, checksums.

use proptest::prelude::*;

use super::*;
use crate::config::CheckKind;

fn cut(mut lines: Lines, chunks: &[&[u8]]) -> Vec<String> {
    let mut got = Vec::new();
    for chunk in chunks {
        let cut = lines.feed(chunk);
        got.extend(
            cut.ranges
                .iter()
                .map(|&(a, b)| cut.bytes.get(a as usize..b as usize).unwrap_or_default())
                .map(|frame| String::from_utf8_lossy(frame).into_owned()),
        );
    }
    got
}

fn run(frame_max: usize, chunks: &[&[u8]]) -> Vec<String> {
    cut(Lines::new(frame_max, LineForm::default()), chunks)
}

fn with_end(end: &[u8]) -> LineForm {
    LineForm { end: end.to_vec(), check: None, ..LineForm::default() }
}

fn with_check(kind: CheckKind, mark: Option<u8>) -> LineCheck {
    LineCheck { kind, little: false, skip: 0, mark, covers_mark: false }
}

#[test]
fn frames_are_the_same_however_the_bytes_are_cut() {
    for all in [&b"1,2\r\n3,4\n\n5,6\n7"[..], b"1,2\r3,4\r\r5,6\r7", b"\r\n1,2\n\r3,4\n\r5,6\n\r7"] {
        for size in 1..all.len() {
            let chunks: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(run(64, &chunks), ["1,2", "3,4", "5,6"], "chunks of {size}");
        }
    }
}

#[test]
fn declared_end_of_line_is_the_only_one() {
    let cases: [(&[u8], &[u8]); 5] = [
        (b";", b"1,2;3,4;\r\n;5,6;7"),
        (b"\0", b"1,2\x003,4\x00\x005,6\x007"),
        (b"\x03", b"1,2\x03\r\n3,4\x03\r\n5,6\x03\r\n"),
        (b"#\r", b"1,2#\r3,4#\r#\r5,6#\r7#"),
        (b"END", b"1,2END3,4ENDEND5,6ENDEN"),
    ];
    for (end, all) in cases {
        for size in 1..all.len() {
            let chunks: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(cut(Lines::new(64, with_end(end)), &chunks), ["1,2", "3,4", "5,6"], "{end:?}, chunks of {size}");
        }
    }
    assert_eq!(cut(Lines::new(64, with_end(b"#\r")), &[b"a\rb#c#\r"]), ["a\rb#c"]);
}

#[test]
fn longest_line_fits_also_when_its_end_is_cut_in_two() {
    assert_eq!(run(4, &[b"full\r", b"\nok\n"]), ["full", "ok"]);
    assert_eq!(run(4, &[b"full\r", b"\r\nok\n"]), ["full", "ok"]);
    assert_eq!(run(4, &[b"fully", b"x\nok\n"]), ["", "ok"]);
    assert_eq!(cut(Lines::new(4, with_end(b"END")), &[b"fullE", b"N", b"DokEND"]), ["full", "ok"]);
    assert_eq!(cut(Lines::new(4, with_end(b"END")), &[b"too longE", b"N", b"DokEND"]), ["", "ok"]);
}

#[test]
fn bytes_without_any_end_are_marked_again_and_again_and_cost_no_memory() {
    let long = vec![b'x'; 1 << 20];
    for form in [LineForm::default(), with_end(b"#\n")] {
        let mut lines = Lines::new(1024, form);
        let mut marks: usize = long.chunks(4096).map(|chunk| lines.feed(chunk).ranges.len()).sum();
        assert!(lines.carry.len() <= 1024, "{}", lines.carry.len());
        let cut = lines.feed(b"tail#\nb#\n");
        let frames = cut.ranges.iter().filter(|(from, to)| from <= to).count();
        marks += cut.ranges.len() - frames;
        // One for each kilobyte begun, but the last.
        assert_eq!((marks, frames), (1024, 1));
    }
}

#[test]
fn long_line_inside_one_chunk_is_skipped_alone() {
    assert_eq!(run(4, &[b"ok\ntoo long\nfine\n"]), ["ok", "", "fine"]);
}

#[test]
fn rest_of_a_line_whose_beginning_is_lost_is_no_line() {
    let mut lines = Lines::new(64, LineForm::default());
    assert_eq!(lines.feed(b"1,2\n12.").ranges.len(), 1);
    lines.reset();
    assert_eq!(cut(lines, &[b"345", b",7\n3,4\n"]), ["3,4"]);
}

#[test]
fn checksum_is_verified_and_cut_off() {
    let line = |check, text: &str| {
        cut(Lines::new(64, LineForm { end: vec![], check: Some(check), ..LineForm::default() }), &[text.as_bytes()])
    };
    let star = with_check(CheckKind::Xor8, Some(b'*'));
    assert_eq!(line(star, "7,1.5,9.75*09\r\n7,1.5,9.75*08 \r\n7,1.5,9.75\r\n*00\r\n7*3g\r\n7*37\r\n"), {
        ["", "7,1.5,9.75", "", "", "", "7"]
    });
    // "12" = 0x31 + 0x32, least digits of the sum.
    assert_eq!(line(with_check(CheckKind::Sum8, None), "1263\n1264\n"), ["12", ""]);
    assert_eq!(line(with_check(CheckKind::Sum8, Some(b',')), "12,63\n12.63\n"), ["12", ""]);
    let covers = LineCheck { covers_mark: true, skip: 1, ..with_check(CheckKind::Sum8, Some(3)) };
    assert_eq!(line(covers, "\u{2}12\u{3}66\n\u{2}12\u{3}63\n"), ["\u{2}12", ""]);
    // The check value of the catalogue.
    let crc = with_check(CheckKind::Crc16Modbus, Some(b';'));
    assert_eq!(line(crc, "123456789;4b37\n123456789;374B\n"), ["123456789", ""]);
    assert_eq!(line(LineCheck { little: true, ..crc }, "123456789;374B\n"), ["123456789"]);
    let crc32 = with_check(CheckKind::Crc32, None);
    assert_eq!(line(crc32, "123456789CBF43926\nCBF4392\n"), ["123456789", ""]);
}

proptest! {
    #[test]
    fn any_bytes_give_the_same_bounded_frames_however_they_are_cut(
        bytes in prop::collection::vec(prop::sample::select(b"12;#\r\n\x03*0".to_vec()), 0..200),
        size in 1usize..20,
        end in prop::sample::select(vec!["", ";", "#\r", "\r\n\x03"]),
        check in any::<bool>(),
    ) {
        let check = check.then(|| with_check(CheckKind::Xor8, Some(b'*')));
        let form = LineForm { end: end.as_bytes().to_vec(), check, block: None };
        let good = |chunks: &[&[u8]]| {
            let mut frames = cut(Lines::new(16, form.clone()), chunks);
            frames.retain(|frame| !frame.is_empty());
            frames
        };
        let whole = good(&[&bytes]);
        prop_assert_eq!(&whole, &good(&bytes.chunks(size).collect::<Vec<_>>()));
        prop_assert!(whole.iter().all(|frame| frame.len() <= 16));
    }
}

#[test]
fn bytes_without_an_end_are_too_long_where_they_are_text_and_garbage_where_they_are_not() {
    let flaws = |bytes: &[u8]| {
        let mut lines = Lines::new(64, LineForm::default());
        let cuts: Vec<Cut> = bytes.chunks(50).map(|chunk| lines.feed(chunk)).collect();
        cuts.into_iter().flat_map(|cut| cut.ranges).collect::<Vec<_>>()
    };
    assert_eq!(flaws(&[b'7'; 200]), [Flaw::Oversize.mark(); 3]);
    assert_eq!(flaws(&[0xfe, 0x83, b'x', 0x18].repeat(50)), [Flaw::Garbage.mark(); 3]);
}
