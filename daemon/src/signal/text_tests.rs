//! Lines of text as devices send them, each with the configuration that reads it: what is good, what is bad and why.

use proptest::prelude::*;

use super::*;
use crate::{
    config::{Config, Problem},
    flow::{Clk, SourceId},
    signal::decode::Decoder,
};

fn config(toml: &str) -> Result<Config, Vec<Problem>> {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("c.toml");
    std::fs::write(&file, format!("[source.s]\npath = \"/dev/x\"\n{toml}")).expect("write");
    Config::local(Some(&file))
}

/// Decodes lines, half a second apart; one text for each.
fn rows(toml: &str, lines: &[&[u8]]) -> Vec<String> {
    let config = config(toml).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let channels: Vec<_> = config.channels_of(SourceId(0)).iter().map(|i| &config.channels[*i]).collect();
    let mut decoder = Decoder::new(&config.sources[0], &channels);
    let (mut row, mut at) = (Row::default(), 0);
    let show = |line: &&[u8]| {
        at += 500_000_000;
        let stamp = Stamp { boot_ns: at, wall_ms: None, clk: Clk::Unset };
        match decoder.decode(Ok(line), stamp, &mut row) {
            Err(why) => format!("refused {}", why.word()),
            Ok(false) => "no row".into(),
            Ok(true) => {
                let value = |(i, channel): (usize, &&Channel)| match row.quality[i] {
                    Quality::Good => format!("{}={}", channel.name, row.values[i]),
                    other => format!("{}:{}", channel.name, other.word()),
                };
                let own = row.seq.map(|n| format!("#{n}")).into_iter();
                let own = own.chain(row.t_ns.map(|t| format!("@{}", t / 1_000_000)));
                own.chain(channels.iter().enumerate().map(value)).collect::<Vec<_>>().join(" ")
            }
        }
    };
    lines.iter().map(show).collect()
}

/// What each text is as the only value of a line.
fn values(keys: &str, texts: &[&str]) -> Vec<String> {
    let toml = format!("delimiter = \"|\"\ncolumns = [\"x\"]\n[channel.x]\n{keys}");
    let texts: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
    let shown = rows(&toml, &texts);
    shown.iter().map(|text| text.trim_start_matches("x=").trim_start_matches("x:").to_owned()).collect()
}

const NAN: &str = "bad:not_a_number";

/// The problems of a configuration, as `key: why`.
fn problems(toml: &str) -> String {
    let problems = config(toml).expect_err("problems");
    problems.iter().map(|p| format!("{}:{}: {}", p.at.line, p.key, p.why)).collect::<Vec<_>>().join("\n")
}

#[test]
fn plain_numbers_are_read_and_what_can_be_read_in_two_ways_is_bad() {
    let good = [
        ("7", "7"),
        ("-0.5", "-0.5"),
        ("+12", "12"),
        (".5", "0.5"),
        ("5.", "5"),
        ("007.50", "7.5"),
        ("- 0.120", "-0.12"),
        ("+  12.345", "12.345"),
        ("1.5e3", "1500"),
        ("1E+05", "100000"),
        ("2e-3", "0.002"),
    ];
    for (text, value) in good {
        assert_eq!(values("", &[text]), [value], "{text}");
    }
    // A word of hexadecimal digits; a decimal comma; marks of thousands; units; a sign behind.
    for text in [
        "1E5",
        "12e3",
        "0x10",
        "1F",
        "20,5",
        "1,234.5",
        "1.234.5",
        "1'000",
        "1 000",
        "3kg",
        "45%",
        "12-",
        "--5",
        "+-5",
        "- -5",
        "",
        "-",
        ".",
        "e5",
        "1.5e",
        "1.5e+",
        "nan",
        "NaN",
        "inf",
        "-Infinity",
        "1e999",
        "1.0e999",
        "½",
        "٣",
        "--.---",
        "1_000",
        "12:30",
        "0b1",
        "\u{2212}5",
    ] {
        assert_eq!(values("", &[text]), [NAN], "{text}");
    }
    let long = format!("{}.5", "1".repeat(80));
    assert_eq!(values("", &[&format!("{long}kg"), &"9".repeat(400)]), [NAN, NAN]);
}

#[test]
fn suffix_must_be_there_and_carries_its_factor() {
    let keys = "suffix = \"kg\"";
    assert_eq!(
        values(keys, &["12.5kg", "- 0.5 kg", "12.5", "12.5g", "kg", "12.5kgx", "1.5e3kg"]),
        ["12.5", "-0.5", NAN, NAN, NAN, NAN, "1500"]
    );
    let keys = "suffix = { V = 1, mV = 0.001, kV = 1000 }";
    assert_eq!(
        values(keys, &["230V", "450 mV", "1.5kV", "-7mV", "3", "2 MV"]),
        ["230", "0.45", "1500", "-0.007", NAN, NAN]
    );
    assert_eq!(values("suffix = { \"\" = 1, \"%\" = 0.01 }", &["0.5", "45%", "45 %"]), ["0.5", "0.45", "0.45"]);
    assert_eq!(values("suffix = \"°C\"", &["21.5°C", "21.5 °C", "21.5C"]), ["21.5", "21.5", NAN]);
}

#[test]
fn decimal_comma_and_marks_of_thousands_are_read_where_they_are_declared() {
    assert_eq!(
        values("decimal = \",\"", &["20,5", "-0,25", "7", "20.5", "1.234,5", "1,2,3", "2,5e1"]),
        ["20.5", "-0.25", "7", NAN, NAN, NAN, "25"]
    );
    let keys = "decimal = \",\"\nthousands = \".\"";
    assert_eq!(
        values(keys, &["1.234,5", "12.345.678", "1234,5", "1.23", "1.2345", ".123", "12.34,5", "1..234", "-1.000"]),
        ["1234.5", "12345678", "1234.5", NAN, NAN, NAN, NAN, NAN, "-1000"]
    );
    assert_eq!(
        values("thousands = \",\"", &["1,234.5", "1,23", "1,234,567", "12,34"]),
        ["1234.5", NAN, "1234567", NAN]
    );
    assert_eq!(values("thousands = \"'\"", &["1'234.5", "1'23"]), ["1234.5", NAN]);
    assert_eq!(values("thousands = \" \"", &["1 234.5", "1 23", "- 1 234"]), ["1234.5", NAN, "-1234"]);
    assert_eq!(values("thousands = \"\u{a0}\"", &["1\u{a0}234.5", "1\u{a0}23"]), ["1234.5", NAN]);
}

#[test]
fn sign_behind_the_number_counts_where_it_is_declared() {
    let keys = "sign = \"trailing\"\nsuffix = { \"\" = 1, kg = 1 }";
    assert_eq!(
        values(keys, &["12.3-", "12.3 -", "12.3+", "12.3", "-12.3", "-12.3-", "12.3-kg", "-"]),
        ["-12.3", "-12.3", "12.3", "12.3", "-12.3", NAN, "-12.3", NAN]
    );
}

#[test]
fn hexadecimal_and_binary_words_are_read_where_they_are_declared() {
    assert_eq!(
        values("base = \"hex\"", &["1E5", "0x1f", "FF", "10", "ffffffff", "G1", "1.5", "-10", "--1", "0x", ""]),
        ["485", "31", "255", "16", "4294967295", NAN, NAN, "-16", NAN, NAN, NAN]
    );
    assert_eq!(
        values("base = \"hex-i16\"", &["FFFE", "7FFF", "0xFF38", "1FFFF", "0"]),
        ["-2", "32767", "-200", NAN, "0"]
    );
    assert_eq!(values("base = \"hex-i8\"", &["80", "7f", "100"]), ["-128", "127", NAN]);
    assert_eq!(values("base = \"binary\"", &["1010", "0b11", "2", "0x1"]), ["10", "3", NAN, NAN]);
    assert_eq!(values("base = \"hex\"\nsuffix = \"h\"", &["1Fh", "1F"]), ["31", NAN]);
}

#[test]
fn words_mean_numbers_nothing_or_why_a_value_is_bad() {
    let keys = "words = { OL = \"bad:overload\", \"---\" = \"missing\", ON = 1, OFF = 0, \"-999.9\" = \"bad:fault\" }";
    assert_eq!(
        values(keys, &["OL", "---", "ON", "OFF", "-999.9", "-999.8", "ol", "ON ", "12"]),
        ["bad:overload", "missing", "1", "0", "bad:fault", "-999.8", NAN, "1", "12"]
    );
}

#[test]
fn keys_of_a_source_are_those_of_all_its_columns_and_a_channel_may_differ() {
    let toml = "delimiter = \";\"\ncolumns = [\"t\", \"h\", \"n\"]\ndecimal = \",\"\nsuffix = \"C\"\nwords = { X = 1, Y = 2 }\n\
                [channel.t]\n[channel.h]\nsuffix = \"%\"\nwords = { X = 9 }\n[channel.n]\nsuffix = \"\"\nbase = \"hex\"";
    assert_eq!(
        rows(toml, &[b"20,5C;45,5%;1F", b"X;X;Y", b"20,5%;45;10C"]),
        [
            "h=45.5 n=31 t=20.5".to_owned(),
            "h=9 n=2 t=1".to_owned(),
            // `10C` is a word of hexadecimal digits there.
            format!("h:{NAN} n=268 t:{NAN}"),
        ]
    );
}

#[test]
fn csv_skips_columns_and_reads_quotes_blanks_and_a_byte_order_mark() {
    let toml = "columns = [\"a\", \"\", \"_\", \"b\"]\n[channel.a]\n[channel.b]";
    assert_eq!(
        rows(toml, &[b"1,x,y,2", b"\xEF\xBB\xBF1,x,y,2", b"\x021,x,y,2\x03\0", b"1,x,2", b"1,x,y,2,3"]),
        ["a=1 b=2", "a=1 b=2", "a=1 b=2", "refused columns", "refused columns"]
    );
    assert_eq!(
        rows(toml, &[b"\"1\",\"x,\"\"z\"\"\", \"y\" ,\"2\"", b"1,\"x,y,2", b"1,5\",y,2", b"1,\"x\"z,y,2"]),
        ["a=1 b=2", "refused columns", "a=1 b=2", "a=1 b=2"]
    );
    let blanks = "delimiter = \" \"\ncolumns = [\"\", \"state\", \"g\", \"\"]\n[channel.g]";
    assert_eq!(
        rows(blanks, &[b"S S     100.00 g", b"  S\tD  -12.34 g  ", b"S I", b""]),
        ["g=100", "g=-12.34", "refused columns", "refused columns"]
    );
    let tabs = "delimiter = \"\\t\"\ncolumns = [\"a\", \"b\"]\n[channel.a]\n[channel.b]";
    assert_eq!(rows(tabs, &[b"\t2", b"1\t2\r"]), [format!("a:{NAN} b=2"), "a=1 b=2".to_owned()]);
}

#[test]
fn fixed_columns_are_read_by_their_places() {
    let toml = "format = \"fixed\"\ncolumns = [\"state:2\", \"_:1\", \"kg:8\", \"_:3\"]\n[channel.kg]";
    assert_eq!(
        rows(toml, &[b"ST   12.34 kg", b"ST  -12.34", b"ST   12.3", b"ST   12.34 kg too long", b"ST  \xb0 12.34"]),
        [
            "kg=12.34".to_owned(),
            "refused columns".into(),
            "refused columns".into(),
            "refused columns".into(),
            format!("kg:{NAN}")
        ]
    );
    assert_eq!(
        rows(toml, &[b"ST    12.34", b"ST 12.34   ", b"ST\xb0   12.34", b"ST   \xb012.34"]),
        ["kg=12.34".to_owned(), "kg=12.34".into(), "kg=12.34".into(), format!("kg:{NAN}")]
    );
}

#[test]
fn labels_name_the_values_of_a_line() {
    let toml = "format = \"keyvalue\"\ndelimiter = \";\"\n[channel.a]\ncolumn = \"T\"\n[channel.p]\ncolumn = \"P\"";
    assert_eq!(
        rows(toml, &[b"T=23.5;P=1.013", b" P = 1.0 ; T=-4 ;X=9;", b"T=1", b"X=1", b"T;P", b"T=1;P=2;T=3", b"T=;P=2"]),
        [
            "a=23.5 p=1.013".to_owned(),
            "a=-4 p=1".into(),
            "a=1 p:missing".into(),
            "no row".into(),
            "refused unmatched".into(),
            format!("a:{NAN} p=2"),
            format!("a:{NAN} p=2"),
        ]
    );
    let toml = "format = \"keyvalue\"\ndelimiter = \" \"\nlabel_end = \":\"\nsuffix = \"C\"\n[channel.a]\n[channel.b]";
    assert_eq!(rows(toml, &[b"a:1C  b:2C"]), ["a=1 b=2"]);
    // A comma declared as decimal mark cannot stand between pairs.
    let toml = "format = \"keyvalue\"\nlabel_end = \":\"\ndecimal = \",\"\n[channel.v]\ncolumn = \"V\"";
    assert_eq!(
        rows(toml, &[b"V: 26,2", b"I: 1,5", b"nothing", b"V:26.2"]),
        ["v=26.2".to_owned(), "no row".into(), "refused unmatched".into(), format!("v:{NAN}")]
    );
}

#[test]
fn label_lines_are_rows_of_their_own_or_one_row_a_block() {
    let lines: [&[u8]; 7] =
        [b"PID\t0x203", b"V\t26201", b"I\t-1450", b"Checksum\t\xd8", b"V\t26202", b"I\t-1451", b"Checksum\t\n"];
    let toml = "format = \"keyvalue\"\nlabel_end = \"\\t\"\n[channel.i]\ncolumn = \"I\"\nscale = 0.001\n[channel.v]\n\
                column = \"V\"\nscale = 0.001";
    assert_eq!(
        rows(toml, &lines),
        [
            "no row",
            "i:absent v=26.201",
            "i=-1.45 v:absent",
            "no row",
            "i:absent v=26.202",
            "i=-1.451 v:absent",
            "no row"
        ]
    );
    let block = toml.replacen("label_end", "block_end = \"Checksum\"\nlabel_end", 1);
    assert_eq!(
        rows(&block, &lines),
        ["no row", "no row", "no row", "i=-1.45 v=26.201", "no row", "no row", "i=-1.451 v=26.202"]
    );
    // An end that is lost is seen with the next block; a value that is lost is missing.
    let broken: [&[u8]; 6] = [b"V\t1", b"I\t2", b"V\t3000", b"Checksum\t", b"Checksum\t", b"garbage"];
    assert_eq!(
        rows(&block, &broken),
        ["no row", "no row", "refused columns", "i:missing v=3", "no row", "refused unmatched"]
    );
    // The last line's value belongs to the block.
    let last = toml.replacen("label_end", "block_end = \"I\"\nlabel_end", 1);
    assert_eq!(rows(&last, &lines[..3]), ["no row", "no row", "i=-1.45 v=26.201"]);
}

#[test]
fn block_is_not_continued_after_a_silence() {
    let toml = "format = \"keyvalue\"\nblock_end = \"E\"\nstale_ms = 900\n[channel.a]\n[channel.b]";
    // Half a second from line to line: the second is 0.5 s, the third 1 s after the first.
    assert_eq!(rows(toml, &[b"a=1", b"x=1", b"b=2", b"E="]), ["no row", "no row", "refused columns", "a:missing b=2"]);
}

#[test]
fn patterns_feed_the_columns_of_their_named_groups() {
    let toml = "format = \"pattern\"\npatterns = ['W (?<state>\\w\\w) +(?<kg>[-+. 0-9]+)kg', 'T=(?<t>\\S+)( H=(?<h>\\S+))?', '#.*']\n\
                [channel.kg]\n[channel.t]\n[channel.h]";
    assert_eq!(
        rows(
            toml,
            &[b"W ST  -  12.5 kg", b"T=21.5 H=40", b"T=21.5", b"# hello", b"T=21.5x", b"W ST 1kg2", b"noise \xff"]
        ),
        [
            "h:absent kg=-12.5 t:absent".to_owned(),
            "h=40 kg:absent t=21.5".into(),
            "h:missing kg:absent t=21.5".into(),
            "no row".into(),
            format!("h:missing kg:absent t:{NAN}"),
            "refused unmatched".into(),
            "refused unmatched".into(),
        ]
    );
    // Date and time of day in two columns.
    let toml = "format = \"pattern\"\npatterns = ['(?<at>[^,]+,[^,]+),(?<t>[^,]+)']\ntime = \"at\"\ntime_format = \"%d/%m/%Y,%H:%M:%S\"\n\
                [channel.t]";
    assert_eq!(rows(toml, &[b"12/03/2026,10:00:05,21.5"]), ["@1773309605000 t=21.5"]);
    // A pattern covers the whole line: what it does not name is no value.
    let toml = "format = \"pattern\"\npatterns = ['T=(?<t>[0-9.]+)']\n[channel.t]";
    assert_eq!(rows(toml, &[b"T=23,5", b"T=23.5", b"  T=23.5\r"]), ["refused unmatched", "t=23.5", "t=23.5"]);
    // Bytes, not characters: a degree sign of Latin 1.
    let toml = "format = \"pattern\"\npatterns = ['(?<t>[0-9.]+) ?(\\xB0|°)C']\n[channel.t]";
    assert_eq!(rows(toml, &[b"21.5 \xb0C", "21.5°C".as_bytes()]), ["t=21.5", "t=21.5"]);
}

#[test]
fn json_is_read_by_keys_and_paths_and_a_number_may_be_text() {
    let toml = "format = \"json\"\n[channel.a]\ncolumn = \"env.t\"\n[channel.b]\ncolumn = \"h\"\n[channel.c]\ncolumn = \"v[1]\"\n\
                [channel.d]\ncolumn = \"v.0\"\n[channel.e]\ncolumn = \"s[1].x\"\n[channel.f]\ncolumn = \"k.l\"";
    let line = br#"{"env":{"t":21.5},"h":" 40.5 ","v":[1.5,"2.5"],"s":[{},{"x":7}],"k.l":8}"#;
    assert_eq!(rows(toml, &[line]), ["a=21.5 b=40.5 c=2.5 d=1.5 e=7 f=8"]);
    assert_eq!(
        rows(toml, &[br#"{"env":{"t":NaN},"h":null,"v":[-Infinity,2],"s":[1],"k.l":true}"#]),
        [format!("a:{NAN} b:{NAN} c=2 d:{NAN} e:missing f=1")]
    );
    assert_eq!(
        rows(toml, &[br#"{"env":21,"h":"NaN","v":{"0":3},"x":"NaN, \" inf"}"#]),
        [format!("a:missing b:{NAN} c:missing d=3 e:missing f:missing")]
    );
    assert_eq!(rows(toml, &[b"7", b"\"a\"", b"{\"h\":1", b"{\"h\":NaNs}"]), ["refused not_json"; 4]);
    assert_eq!(
        rows(toml, &[br#"{"env":{"t":1,"t":2},"h":1,"v":[1,2],"v":[3,4],"h":1,"x":1,"x":2}"#]),
        [format!("a:{NAN} b:{NAN} c:missing d:missing e:missing f:missing")],
        "of a key that stands twice it is not known which is meant"
    );
    let array = "format = \"json\"\nwords = { \"-99\" = \"missing\", open = 1 }\n[channel.a]\ncolumn = \"[0]\"\n[channel.b]\n\
                 column = \"[1].v\"";
    assert_eq!(
        rows(array, &[br#"[20.5,{"v":-99}]"#, br#"["open",{"v":"1E5"}]"#]),
        ["a=20.5 b:missing".to_owned(), format!("a=1 b:{NAN}")]
    );
    let unit = "format = \"json\"\nsuffix = { kg = 1, g = 0.001 }\n[channel.a]";
    assert_eq!(rows(unit, &[br#"{"a":"500 g"}"#, br#"{"a":500}"#]), ["a=0.5".to_owned(), format!("a:{NAN}")]);
}

#[test]
fn clocks_are_read_by_patterns_and_iso_without_guessing() {
    let toml = |format: &str| {
        format!(
            "delimiter = \";\"\ncolumns = [\"t\", \"n\", \"x\"]\ntime = \"t\"\nseq = \"n\"\ntime_format = {format}\n[channel.x]"
        )
    };
    let one = |format: &str, time: &str| {
        let line = format!("{time};7;1");
        rows(&toml(format), &[line.as_bytes()]).remove(0)
    };
    let at = |ms: i64| format!("#7 @{ms} x=1");
    // 2026-03-12 10:00:05 UTC
    let ms = 1_773_309_605_000;
    for (format, time) in [
        ("\"%d/%m/%Y %H:%M:%S\"", "12/03/2026 10:00:05"),
        ("\"%m/%d/%Y %I:%M:%S %p\"", "3/12/2026 10:00:05 AM"),
        ("\"%d.%m.%y %H:%M:%S\"", "12.03.26 10:00:05"),
        ("\"%Y%m%d%H%M%S\"", "20260312100005"),
        ("\"%d %b %Y %H:%M:%S %z\"", "12 Mar 2026 11:00:05 +0100"),
        ("\"%Y-%j %H:%M:%S\"", "2026-071 10:00:05"),
        ("[\"%d/%m/%Y %H:%M:%S\", \"%m/%d/%Y %I:%M:%S %p\"]", "3/12/2026 10:00:05 AM"),
        ("\"civil\"", "2026-03-12 10:00:05"),
        ("\"civil\"", "2026-03-12T11:00:05+01:00"),
        ("\"civil\"", "2026-03-12 10:00:05 UTC"),
        ("\"civil\"", "2026/03/12 10:00:05"),
        ("\"civil\"", "2026.03.12 10:00:05 GMT"),
        ("\"s\"", "1773309605"),
    ] {
        assert_eq!(one(format, time), at(ms), "{format} {time}");
    }
    assert_eq!(one("\"%H:%M:%S%.f %d-%m-%Y\"", "10:00:05.25 12-03-2026"), at(ms + 250));
    for (format, time) in [
        ("\"%d/%m/%Y %H:%M:%S\"", "31/02/2026 10:00:05"),
        ("\"%d/%m/%Y %H:%M:%S\"", "12/03/2026 10:00:05 PM"),
        ("\"civil\"", "12/03/2026 10:00:05"),
        ("\"civil\"", "12.03.2026 10:00:05"),
        ("\"civil\"", "2026-03-12"),
        ("\"civil\"", "10:00:05"),
        ("\"civil\"", ""),
        ("\"s\"", "nan"),
    ] {
        assert_eq!(one(format, time), "refused clock", "{format} {time}");
    }
}

#[test]
fn wrong_keys_are_refused_with_line_and_advice() {
    let cases: &[(&str, &[&str])] = &[
        (
            "columns = [\"a\"]\ndecimal = \",\"",
            &["4:source.s.decimal: is the delimiter between the columns too", "`delimiter`"],
        ),
        ("columns = [\"a\"]\ndecimal = \";\"", &["source.s.decimal: `;` is invalid: expected one of `.`, `,`"]),
        (
            "columns = [\"a\"]\nthousands = \".\"",
            &["source.s.thousands: is the decimal mark as well: say `decimal = \",\"`"],
        ),
        ("columns = [\"a\"]\nwords = { OL = \"bad:overlod\" }", &["did you mean `bad:overload`?"]),
        ("columns = [\"a\"]\nwords = { OL = \"overload\" }", &["`OL` = `overload`", "did you mean `bad:overload`?"]),
        ("columns = [\"a\"]\nsuffix = { kg = 0 }", &["`kg` must have a number to multiply with"]),
        ("columns = [\"a\"]\nsuffix = \"5V\"", &["`5V` begins with what may be a part of the number"]),
        ("columns = [\"a\"]\nbase = \"hex\"\nsuffix = \"C\"", &["`C` begins with what may be a part of the number"]),
        (
            "columns = [\"a\"]\nbase = \"octal\"",
            &["source.s.base: `octal` is invalid: expected one of `decimal`, `hex`"],
        ),
        ("columns = [\"a\"]\ndecmal = \",\"", &["source.s.decmal: unknown key; did you mean `decimal`?"]),
        ("columns = [\"a\", \"\", \"a\"]", &["source.s.columns: `a` stands twice"]),
        ("format = \"patern\"", &["`patern` is invalid: expected one of `csv`, `fixed`, `keyvalue`, `pattern`"]),
        ("format = \"pattern\"", &["source.s.patterns: is needed: a regular expression for each kind of line"]),
        ("format = \"pattern\"\npatterns = ['(?<a>x']", &["source.s.patterns: `(?<a>x`: unclosed group"]),
        ("format = \"pattern\"\npatterns = ['(?<a>(x{1000}){1000})']", &["is larger than 256 KiB when compiled"]),
        ("format = \"pattern\"\npatterns = ['T=(.*)']", &["have no named group `(?<NAME>…)`"]),
        ("format = \"pattern\"\npatterns = ['T=(?<t>.*)']\n[channel.x]", &["unknown column `x`: the source has t"]),
        ("format = \"fixed\"\ncolumns = [\"a:3\", \"b\"]", &["`b` is invalid: expected NAME:WIDTH, such as `kg:9`"]),
        ("format = \"keyvalue\"\ncolumns = [\"a\"]", &["source.s.columns: does not belong to `format = \"keyvalue\"`"]),
        ("format = \"keyvalue\"\ndelimiter = \"=\"", &["source.s.delimiter: is what stands behind a label as well"]),
        ("format = \"keyvalue\"\nseq = \"n\"", &["source.s.seq: not every row has `n`"]),
        (
            "columns = [\"a\"]\ntime = \"a\"\ntime_format = \"DD/MM/YYYY\"",
            &["expected one of `ns`", "`%d/%m/%Y %H:%M:%S`"],
        ),
        ("columns = [\"a\"]\ntime = \"a\"\ntime_format = \"%d/%m/%Y\"", &["has no time of day"]),
        ("columns = [\"a\"]\ntime = \"a\"\ntime_format = \"%H:%M:%S\"", &["has no whole date"]),
        ("columns = [\"a\"]\ntime = \"a\"\ntime_format = \"%d/%m/%Y %I:%M\"", &["which minute it is"]),
        ("columns = [\"a\"]\ntime = \"a\"\ntime_format = \"%d/%m/%Y %L\"", &["`%d/%m/%Y %L`: "]),
        ("columns = [\"a\"]\ncheck_mark = \"*\"", &["source.s.check_mark: needs `check` beside it"]),
        ("columns = [\"a\"]\ncheck = \"crc\"", &["source.s.check: `crc` is invalid"]),
        ("columns = [\"a\"]\nline_end = \"\"", &["source.s.line_end: must be 1 to 8 bytes"]),
        (
            "framing = \"cobs\"\nfields = [\"a:u8\"]\nline_end = \";\"",
            &["source.s.line_end: belongs to `framing = \"lines\"`"],
        ),
        (
            "framing = \"cobs\"\nfields = [\"a:u8\"]\n[channel.a]\nsuffix = \"kg\"",
            &["channel.a.suffix: belongs to values that are text"],
        ),
        (
            "format = \"nmea\"\nsentences = { GLL = [\"a\"] }\ncheck = \"xor8\"",
            &["source.s.check: NMEA sentences bring their own"],
        ),
    ];
    for (toml, wanted) in cases {
        let text = problems(toml);
        for part in *wanted {
            assert!(text.contains(part), "{toml}\ngave\n{text}\nnot\n{part}");
        }
    }
    // All at once.
    let all = problems(
        "columns = [\"a\"]\ndecimal = \"x\"\nbase = \"x\"\nsign = \"x\"\nwords = 1\nsuffix = 1\nthousands = \"xy\"",
    );
    assert_eq!(all.lines().count(), 6, "{all}");
}

proptest! {
    #[test]
    fn any_line_is_decoded_or_refused_and_a_good_value_is_finite(
        lines in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..60),
                "[-+0-9.,;=eExA-F:{}\" \t'k]{0,40}".prop_map(String::into_bytes),
            ],
            1..20,
        ),
        which in 0usize..6,
    ) {
        let numbers = "decimal = \",\"\nthousands = \"'\"\nsign = \"trailing\"\nsuffix = { \"\" = 1, k = 1000 }\n\
                       words = { x = \"missing\" }\n";
        let format = [
            "delimiter = \";\"\ncolumns = [\"a\", \"b\"]\n",
            "delimiter = \" \"\ncolumns = [\"a\", \"b\"]\n",
            "format = \"fixed\"\ncolumns = [\"a:3\", \"b:4\"]\n",
            "format = \"keyvalue\"\ndelimiter = \";\"\nblock_end = \"b\"\n",
            "format = \"pattern\"\npatterns = ['(?<a>.*)=(?<b>.*)', '(?<b>[^;]*);.*']\n",
            "format = \"json\"\n",
        ][which];
        let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        let shown = rows(&format!("{format}{numbers}[channel.a]\n[channel.b]"), &lines);
        for text in shown {
            prop_assert!(!text.contains("=NaN") && !text.contains("=inf") && !text.contains("=-inf"), "{text}");
        }
    }

    #[test]
    fn every_double_that_is_written_is_read_again(value in any::<f64>().prop_filter("below those of instruments", |x| x.abs() < 9.9e37)) {
        let plain = Numbers::new(&Default::default());
        prop_assert_eq!(plain.read(&format!("{value:e}").replace('e', "e+").replace("e+-", "e-")), Reading::Value(value));
        let comma = crate::config::NumberText { decimal: b',', ..Default::default() };
        let short = (value.abs() % 1e15 * 1000.0).trunc() / 1000.0;
        prop_assert_eq!(Numbers::new(&comma).read(&short.to_string().replace('.', ",")), Reading::Value(short));
    }
}

#[test]
fn a_date_and_a_time_of_day_in_two_columns_are_one_clock_in_any_order() {
    let keys = "time = [\"day\", \"clock\"]\ntime_format = \"%d.%m.%Y %H:%M:%S\"\n";
    let csv = |columns: &str| format!("{keys}delimiter = \";\"\ncolumns = {columns}\n[channel.a]\n");
    let wanted = ["@1795779967000 a=1", "refused clock", "refused clock", "@1795779968000 a=2"];
    assert_eq!(
        rows(
            &csv("[\"day\", \"clock\", \"a\"]"),
            &[b"27.11.2026;11:46:07;1", b"27.11.2026;;1", b"27.11.2026;25:00:00;1", b"27.11.2026; 11:46:08 ;2"]
        ),
        wanted
    );
    assert_eq!(
        rows(
            &csv("[\"clock\", \"a\", \"day\"]"),
            &[b"11:46:07;1;27.11.2026", b";1;27.11.2026", b"11:46:07;1;", b"11:46:08;2;27.11.2026"]
        ),
        wanted
    );
    let labels =
        "time = [\"D\", \"T\"]\ntime_format = \"civil\"\nformat = \"keyvalue\"\ndelimiter = \" \"\n[channel.a]\n";
    let lines: [&[u8]; 4] =
        [b"T=11:46:07 a=1 D=2026-11-27", b"a=1 D=2026-11-27", b"T=11:46:07 a=1", b"D=2026-11-27 T=11:46:08 a=2"];
    assert_eq!(rows(labels, &lines), wanted);
    let json = "time = [\"at.d\", \"at.t\"]\ntime_format = \"civil\"\nformat = \"json\"\n[channel.a]\n";
    assert_eq!(
        rows(json, &[br#"{"a":1,"at":{"d":"2026-11-27","t":"11:46:07"}}"#, br#"{"a":1,"at":{"d":"2026-11-27"}}"#]),
        wanted[..2]
    );
}

#[test]
fn wrong_columns_of_a_clock_are_named() {
    let of = |keys: &str| problems(&format!("columns = [\"d\", \"t\", \"a\"]\n{keys}\n[channel.a]\n"));
    let all = of("time = [\"d\", \"x\"]\ntime_format = \"civil\"");
    assert!(all.contains("time: `x` is not in `columns`"), "{all}");
    let all = of("time = [\"d\", \"t\"]\ntime_format = \"ms\"");
    assert!(all.contains("time_format: must be `civil` or a pattern"), "{all}");
    for wrong in ["[]", "[\"d\", \"t\", \"a\"]", "7", "[\"d\", 7]"] {
        let all = of(&format!("time = {wrong}\ntime_format = \"civil\""));
        assert!(all.contains("time: must be the name of a column, or a list of two"), "{wrong}: {all}");
    }
}

#[path = "text_more_tests.rs"]
mod more;
