//! Frames: the specification's example, noise, echoes, other ids.

use super::*;

const RTU: Talk = Talk { tcp: false, echo: false, lenient: false };
const ECHO: Talk = Talk { echo: true, ..RTU };
const TCP: Talk = Talk { tcp: true, ..RTU };

fn question(function: u8, address: u16, word: u16) -> Question {
    Question { number: 7, slave: 17, function, address, word }
}

fn rtu(slave: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![slave];
    bytes.extend(content);
    bytes.extend(crc(&bytes));
    bytes
}

fn tcp(number: u16, slave: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend([0, 0, 0, content.len() as u8 + 1, slave]);
    bytes.extend(content);
    bytes
}

/// The example of the Modbus specification: holding registers 108 to 110 of device 17.
#[test]
fn question_and_answer_are_the_bytes_of_the_specification() {
    let asked = question(READ_HOLDING, 0x6B, 3);
    assert_eq!(asked.bytes(RTU), [0x11, 0x03, 0x00, 0x6B, 0x00, 0x03, 0x76, 0x87]);
    assert_eq!(asked.bytes(TCP), [0, 7, 0, 0, 0, 6, 0x11, 0x03, 0x00, 0x6B, 0x00, 0x03]);
    let answer = [0x11, 0x03, 0x06, 0xAE, 0x41, 0x56, 0x52, 0x43, 0x40, 0x49, 0xAD];
    assert_eq!(asked.listen(RTU, &answer), Heard::Answer(answer[3..9].to_vec()));
    for part in 0..answer.len() {
        assert_eq!(asked.listen(RTU, &answer[..part]), Heard::Part, "{part} bytes");
    }
}

#[test]
fn bytes_before_and_behind_an_rtu_answer_do_not_matter_and_a_wrong_checksum_does() {
    let asked = question(READ_INPUT, 5, 1);
    let answer = rtu(17, &[4, 2, 9, 8]);
    let heard = [&[0, 0xFF, 17][..], &answer, &[0, 0]].concat();
    assert_eq!(asked.listen(RTU, &heard), Heard::Answer(vec![9, 8]));
    for i in 0..answer.len() {
        let mut spoilt = answer.clone();
        spoilt[i] ^= 0x10;
        assert_eq!(asked.listen(RTU, &spoilt), Heard::Part, "byte {i}");
        assert!(matches!(asked.wrong(RTU, &spoilt), Some(Wrong::Bytes(_))), "byte {i}");
    }
    assert_eq!(asked.wrong(RTU, &[]), None);
}

#[test]
fn exceptions_and_bits_are_read() {
    let asked = question(READ_COILS, 3, 10);
    assert_eq!(asked.listen(RTU, &rtu(17, &[1, 2, 0xCD, 1])), Heard::Answer(vec![0xCD, 1]));
    assert_eq!(asked.listen(RTU, &rtu(17, &[0x81, 2])), Heard::Exception(2));
    assert_eq!(asked.listen(TCP, &tcp(7, 17, &[0x81, 11])), Heard::Exception(11));
}

#[test]
fn answer_of_another_device_or_with_another_length_is_no_answer_and_says_why() {
    let asked = question(READ_HOLDING, 0, 2);
    let other = rtu(18, &[3, 4, 0, 1, 0, 2]);
    assert_eq!(asked.listen(RTU, &other), Heard::Part);
    assert_eq!(asked.wrong(RTU, &other), Some(Wrong::Bytes("device 18 answered".into())));
    assert_eq!(asked.listen(Talk { lenient: true, ..RTU }, &other), Heard::Answer(vec![0, 1, 0, 2]));
    assert_eq!(asked.listen(RTU, &rtu(17, &[3, 2, 0, 1])), Heard::Part);
}

#[test]
fn echo_is_skipped_where_it_is_declared_and_named_where_it_is_not() {
    let asked = question(READ_HOLDING, 100, 1);
    let answer = rtu(17, &[3, 2, 0x13, 0x89]);
    let both = [asked.bytes(RTU), answer.clone()].concat();
    assert_eq!(asked.listen(ECHO, &both), Heard::Answer(vec![0x13, 0x89]));
    assert_eq!(asked.listen(ECHO, &answer), Heard::Answer(vec![0x13, 0x89]), "an adapter that suppresses it");
    assert_eq!(asked.listen(RTU, &both), Heard::Echo);
    let alone = asked.bytes(RTU);
    assert_eq!((asked.listen(RTU, &alone), asked.wrong(RTU, &alone)), (Heard::Part, Some(Wrong::Echo)));
    assert_eq!(asked.wrong(ECHO, &alone), None, "nothing but the echo: the device did not answer");
}

/// The answer to a write is the question again.
#[test]
fn echo_of_a_write_is_not_taken_for_its_answer() {
    let asked = question(WRITE_COIL, 3, COIL_ON);
    let once = asked.bytes(RTU);
    assert_eq!(asked.listen(RTU, &once), Heard::Answer(vec![]));
    assert_eq!(asked.listen(ECHO, &once), Heard::Part);
    assert_eq!(asked.listen(ECHO, &[once.clone(), once].concat()), Heard::Answer(vec![]));
    let other = question(WRITE_COIL, 4, COIL_ON).bytes(RTU);
    assert_eq!(asked.listen(RTU, &other), Heard::Part, "another coil was written");
}

#[test]
fn write_of_several_carries_one_value_and_its_answer_is_shorter() {
    let register = question(WRITE_REGISTERS, 0x0102, 500);
    assert_eq!(register.bytes(TCP)[4..], [0, 9, 17, 16, 1, 2, 0, 1, 2, 1, 244]);
    assert_eq!(register.listen(TCP, &tcp(7, 17, &[16, 1, 2, 0, 1])), Heard::Answer(vec![]));
    assert_eq!(register.listen(TCP, &tcp(7, 17, &[16, 1, 3, 0, 1])), Heard::Part, "another register was written");
    assert_eq!(register.listen(TCP, &tcp(7, 17, &[0x90, 2])), Heard::Exception(2));
    let coil = question(WRITE_COILS, 3, COIL_ON);
    assert_eq!(coil.bytes(RTU)[1..8], [15, 0, 3, 0, 1, 1, 1]);
    assert_eq!(question(WRITE_COILS, 3, 0).bytes(RTU)[1..8], [15, 0, 3, 0, 1, 1, 0]);
    let answer = rtu(17, &[15, 0, 3, 0, 1]);
    assert_eq!(coil.listen(RTU, &answer), Heard::Answer(vec![]));
    assert_eq!(coil.listen(ECHO, &answer), Heard::Part, "the echo must come first");
    assert_eq!(coil.listen(ECHO, &[coil.bytes(RTU), answer].concat()), Heard::Answer(vec![]));
    assert_eq!((coil.wire_bytes(RTU), coil.wire_bytes(ECHO)), (18, 28));
}

#[test]
fn late_tcp_answer_is_skipped_and_other_ids_are_accepted_only_if_lenient() {
    let asked = question(READ_HOLDING, 0, 1);
    let late = tcp(6, 17, &[3, 2, 0, 1]);
    let heard = [late.clone(), tcp(7, 17, &[3, 2, 0, 2])].concat();
    assert_eq!(asked.listen(TCP, &heard), Heard::Answer(vec![0, 2]));
    assert_eq!(asked.listen(TCP, &late), Heard::Part);
    let lenient = Talk { lenient: true, ..TCP };
    assert_eq!(asked.listen(lenient, &tcp(0, 255, &[3, 2, 0, 3])), Heard::Answer(vec![0, 3]));
    let says = |heard: &[u8], part: &str| match asked.wrong(TCP, heard) {
        Some(Wrong::Bytes(text)) => assert!(text.contains(part), "{text}"),
        other => panic!("{other:?}"),
    };
    says(&late, "lenient_ids");
    says(&rtu(17, &[3, 2, 0, 1]), "framing = \"rtu\"");
    says(b"HTTP/1.1 400", "12 bytes: 48 54");
}

#[test]
fn any_bytes_are_listened_to_without_a_panic() {
    let mut bytes = fastrand::Rng::with_seed(1);
    for _ in 0..20_000 {
        let heard: Vec<u8> =
            (0..bytes.usize(0..40)).map(|_| bytes.u8(..)).map(|b| if b > 200 { 17 } else { b % 8 }).collect();
        let asked = question([1, 2, 3, 4, 5, 6, 15, 16][bytes.usize(0..8)], bytes.u16(..), bytes.u16(1..20));
        for talk in [RTU, ECHO, TCP, Talk { lenient: true, ..TCP }] {
            let _ = (asked.listen(talk, &heard), asked.wrong(talk, &heard));
        }
    }
}
