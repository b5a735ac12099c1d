//! Blocks of lines with a checksum; words that are numbers.

use super::*;

#[test]
fn word_that_is_a_number_is_meant_however_the_number_is_written() {
    let toml = "columns = [\"a\", \"b\"]\nwords = { \"-999.9\" = \"bad:fault\", \"9999\" = \"missing\", \"1\" = 5 }\n[channel.a]\n\
                [channel.b]\nsuffix = { \"\" = 1, mV = 0.001 }";
    let lines: [&[u8]; 4] = [b"-999.9,-999.90", b"- 999.900,9999.0 mV", b"9999.00,9998", b"1,1.0"];
    assert_eq!(rows(toml, &lines), ["a:bad:fault b:bad:fault", "a:bad:fault b:missing", "a:missing b=9998", "a=5 b=1"]);
    let json = "format = \"json\"\nwords = { \"-999\" = \"bad:fault\" }\n[channel.a]";
    assert_eq!(
        rows(json, &[br#"{"a":-999.0}"#, br#"{"a":"-999.00"}"#, br#"{"a":-998}"#]),
        ["a:bad:fault", "a:bad:fault", "a=-998"]
    );
}

#[test]
fn block_with_a_checksum_comes_as_one_frame_and_is_one_row() {
    let toml = "format = \"keyvalue\"\nlabel_end = \"\\t\"\nblock_end = \"Checksum\"\nblock_check = \"sum8-zero\"\n\
                words = { \"---\" = \"missing\" }\n[channel.i]\ncolumn = \"I\"\nscale = 0.001\n[channel.soc]\ncolumn = \"SOC\"";
    let frames: [&[u8]; 5] = [
        b"PID\t0x203\r\nI\t-1450\r\nSOC\t876\r\nChecksum\t",
        b"I\t-1451\r\nSOC\t---\r\nChecksum\t",
        b"I\t5\r\nSOC\t1\r\nI\t6\r\nChecksum\t",
        b":7F0ED0071\nI\t7\r\nChecksum\t",
        b"V\t26201\r\nChecksum\t",
    ];
    let twice = format!("i:{NAN} soc=1");
    assert_eq!(
        rows(toml, &frames),
        ["i=-1.45 soc=876", "i=-1.451 soc:missing", &twice, "i=0.007 soc:missing", "no row"]
    );
    let meter = "format = \"keyvalue\"\nlabel_end = \"(\"\nblock_end = \"!\"\nblock_check = \"crc16-arc\"\n[channel.kw]\n\
                 column = \"1-0:1.7.0\"\nsuffix = \"*kW)\"";
    let telegram = b"/ISK5\\2M550T-1012\r\n\r\n0-0:96.1.1(4530303434)\r\n1-0:1.7.0(01.193*kW)\r\n!";
    assert_eq!(rows(meter, &[telegram]), ["kw=1.193"]);
}

#[test]
fn keys_of_blocks_that_cannot_be_meant_are_refused_with_advice() {
    for (keys, wanted) in [
        ("block_check = \"sum8-zero\"", "4:source.s.block_check: needs `block_end` beside it: the label of the line"),
        ("block_end = \"C\"\nblock_check = \"sum8-zer\"", "`sum8-zer` is invalid: expected one of `sum8-zero`, `sum8`"),
        ("block_end = \"C\"\nblock_chek = \"sum8\"", "block_chek: unknown key; did you mean `block_check`?"),
        (
            "block_end = \"C\"\nblock_check = \"sum8\"\nrequest = \"A\"",
            "block_check: is for a device that sends its blocks unasked",
        ),
        (
            "block_end = \"C\"\nblock_check = \"sum8\"\ncheck = \"sum8\"",
            "check: is of single lines; `block_check` is of",
        ),
        ("block_end = \"C\"\nblock_check = \"sum8\"\nline_end = \";\"", "line_end: is of single lines"),
    ] {
        let text = problems(&format!("format = \"keyvalue\"\n{keys}"));
        assert!(text.contains(wanted), "{keys}\ngave\n{text}");
    }
    let csv = problems("columns = [\"a\"]\nblock_check = \"sum8\"");
    assert!(csv.contains("source.s.block_check: does not belong to `format = \"csv\"`"), "{csv}");
}
