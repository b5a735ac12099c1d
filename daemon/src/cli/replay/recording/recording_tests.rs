//! Whole files: what is played of them, and what is rejected.

use super::*;
use std::io::Write;

/// Rows as played (time in ms, cells), or the error.
pub(super) fn played(bytes: &[u8], options: &Options) -> Result<(Vec<String>, Vec<String>), String> {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(bytes).expect("write");
    let dir = tempfile::TempDir::new().expect("folder");
    let shown = file.path().display().to_string();
    let strip = |why: Fatal| why.text.replace(&shown, "FILE");
    let mut recording = Recording::inspect(file.path(), options, None).map_err(strip)?;
    let model = super::super::sample_model(dir.path()).expect("model");
    let config = recording.config(&model, &Place::replay(dir.path())).map_err(strip)?;
    let names = config.channels.iter().map(|channel| channel.name.clone()).collect();
    let rows = recording.play().map_err(strip)?.map(|row| row.map(|row| row.text.replace('\t', " ")));
    Ok((names, rows.collect::<Result<_, _>>().map_err(strip)?))
}

pub(super) fn plain(text: &str) -> (Vec<String>, Vec<String>) {
    played(text.as_bytes(), &Options::default()).unwrap_or_else(|why| panic!("{text}\n{why}"))
}

pub(super) fn why(text: &str) -> String {
    played(text.as_bytes(), &Options::default()).expect_err(text)
}

/// 2027-05-04 01:00:00 in ns.
pub(super) const BEGIN: &str = "1809392400000000000";

#[test]
fn a_column_is_a_channel_if_any_row_has_a_number_in_it() {
    let (names, rows) = plain("time,a,b,c,state\n2027-05-04 01:00:00,,n/a,OL,run\n2027-05-04 01:00:01,1.5,2,3,run\n");
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(rows, [format!("{BEGIN}   OL"), "1809392401000000000 1.5 2 3".into()]);
}

#[test]
fn decimal_commas_and_thousands_are_read_where_they_are_certain() {
    let (names, rows) = plain("Zeit;n;p;q\n2027-05-04 01:00:00;1;0,5;1.234\n2027-05-04 01:00:01;2;1.234,5;7\n");
    assert_eq!((names.len(), rows[0].as_str()), (3, &*format!("{BEGIN} 1 0.5 1234")));
    assert!(rows[1].ends_with(" 2 1234.5 7"), "{rows:?}");
    let both = why("t;p;q\n2027-05-04 01:00:00;0,5;7\n2027-05-04 01:00:01;1,5;0.25\n");
    assert!(both.starts_with("FILE:3: `0,5` (line 2) has a decimal comma, `0.25` (line 3) a decimal point"), "{both}");
    let neither = "t;p\n2027-05-04 01:00:00;1,234\n2027-05-04 01:00:01;2,345\n";
    assert!(why(neither).starts_with("FILE:2: `1,234` has a decimal comma or is in thousands"), "{}", why(neither));
    let declared = Options { decimal: Some(",".into()), ..Options::default() };
    assert!(played(neither.as_bytes(), &declared).expect("declared").1[0].ends_with(" 1.234"));
}

#[test]
fn words_of_a_channel_and_the_decimal_comma_of_a_file_go_together() {
    let dir = tempfile::TempDir::new().expect("folder");
    let (csv, toml) = (dir.path().join("scale.csv"), dir.path().join("kentledge.toml"));
    std::fs::write(&csv, "time;kg;n\n2027-05-04 01:00:00;12,31;7\n2027-05-04 01:00:01;OL;8\n").expect("write");
    let text = "[device]\nsite = \"a\"\nid = \"b\"\n[mqtt]\nurl = \"mqtt://127.0.0.1\"\n[source.s]\npath = \"/dev/ttyX\"\n\
                columns = [\"kg\", \"n\"]\n[channel.kg]\nwords = { OL = \"bad:overload\" }\n[channel.n]\n\
                [stream.raw]\nchannels = [\"kg\", \"n\"]\n";
    std::fs::write(&toml, text).expect("write");
    let mut config = Config::local(Some(&toml)).expect("configuration");
    let mut recording =
        Recording::inspect(&csv, &Options::default(), Some(&config)).unwrap_or_else(|why| panic!("{}", why.text));
    recording.bind(&mut config).unwrap_or_else(|why| panic!("{}", why.text));
    assert_eq!(config.channels[0].numbers.decimal, b',');
    assert_eq!(config.channels[1].numbers.decimal, b'.', "its cells are normalised");
}

#[test]
fn separators_quotes_units_and_preamble_change_nothing() {
    let want = plain("time,temp,flow\n2027-05-04 01:00:00,20.5,0.25\n2027-05-04 01:00:01,21.5,1.25\n");
    assert_eq!(want.1[0], format!("{BEGIN} 20.5 0.25"));
    for text in [
        "time;temp;flow\r\n2027-05-04 01:00:00;20,5;0,25\r\n2027-05-04 01:00:01;21,5;1,25\r\n",
        "time\ttemp\tflow\n2027-05-04 01:00:00\t20.5\t0.25\n2027-05-04 01:00:01\t21.5\t1.25",
        "\"time\",\"temp\",\"flow\"\n\"2027-05-04 01:00:00\",\"20.5\",\"0.25\"\n\"2027-05-04 01:00:01\",\"21.5\",\"1.25\"\n",
        "time,temp,flow\n,degC,l/min\n2027-05-04 01:00:00,20.5,0.25\n2027-05-04 01:00:01,21.5,1.25\n",
        "Logger 7\nBegin: 2027-05-04\n\ntime,temp,flow\n2027-05-04 01:00:00,20.5,0.25\n\n2027-05-04 01:00:01,21.5,1.25\n",
        "date,time,temp,flow\n2027-05-04,01:00:00,20.5,0.25\n2027-05-04,01:00:01,21.5,1.25\n",
        "date;time;temp;flow;\n14.05.2027;01:00:00;20,5;0,25;\n14.05.2027;01:00:01;21,5;1,25;\n",
        "Date       Time      temp   flow\n2027-05-04 01:00:00  20.5   0.25\n2027-05-04 01:00:01  21.5   1.25\n",
        "epoch,temp,flow\n1809392400,20.5,0.25\ntime repeats not\nepoch,temp,flow\n1809392401,21.5,1.25\n",
    ] {
        let (names, rows) = plain(text);
        assert_eq!(names, want.0, "{text}");
        let rows: Vec<&String> = rows.iter().filter(|row| !row.starts_with("a row with")).collect();
        let cells = |row: &str| row.split_once(' ').map(|(_, cells)| cells.to_owned());
        assert_eq!(
            rows.iter().map(|row| cells(row)).collect::<Vec<_>>(),
            want.1.iter().map(|row| cells(row)).collect::<Vec<_>>(),
            "{text}"
        );
    }
}

#[test]
fn no_row_is_played_at_an_invented_time() {
    for (text, word) in [
        (
            "time,x\n04.05.2027 01:00:00,1\n04.05.2027 01:00:01,2\n",
            "FILE:2: the clock in column `time`: `04.05.2027 01:00:00` may be day first",
        ),
        ("a,x\n5,1\n6,2\n", "FILE:1: no column is a clock"),
        ("Time (s),x\n0,1\n1,2\n", "FILE:1: column `Time (s)` counts from the start"),
        ("time,x\nnoon,1\nlater,2\n", "FILE:2: the clock in column `time`: `noon` cannot be read"),
        ("time,x\n10:00:00,1\n10:00:01,2\n", "has no date"),
    ] {
        assert!(why(text).contains(word), "{}", why(text));
    }
    let seconds = Options { time_format: clock::format("s").ok(), ..Options::default() };
    let text = b"Time,x\n0,1\n0.5,2\n";
    assert!(played(text, &seconds).expect_err("no start").contains("--start"));
    let started = Options { start: start("2027-05-04T01:00:00Z").ok(), ..seconds };
    assert_eq!(played(text, &started).expect("declared").1[1], "1809392400500000000 2");
    let every = Options { every: every("0.5").ok(), start: start("2027-05-04T01:00:00Z").ok(), ..Options::default() };
    let (_, rows) = played(b"a\n5\n6\n", &every).expect("declared");
    assert_eq!(rows, [format!("{BEGIN} 5"), "1809392400500000000 6".into()]);
}

#[test]
fn a_row_with_a_torn_clock_or_too_few_cells_is_bad_and_keeps_the_time_before() {
    let mut text = "time,x\n".to_owned();
    (0..20).for_each(|i| text.push_str(&format!("2027-05-04 01:00:{i:02},{i}\n")));
    text.push_str("2027-05-04 01:,7\n2027-05\n");
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(text.as_bytes()).expect("write");
    let recording = Recording::inspect(file.path(), &Options::default(), None).expect("a few bad rows");
    let rows: Vec<Row> = recording.play().expect("rows").map(|row| row.expect("row")).collect();
    assert_eq!(rows.len(), 22);
    assert!(rows[20..].iter().all(|row| row.t_ns == rows[19].t_ns), "{rows:?}");
    assert!(rows[20].text.starts_with("unreadable: 2027-05-04 01:") && !rows[21].text.contains('\t'), "{rows:?}");
}

#[test]
fn two_columns_never_fall_together() {
    let (names, rows) = plain("time,温度,湿度,Temp (C),Temp [C],Temp [C]\n2027-05-04 01:00:00,1,2,3,4,5\n");
    assert_eq!(names, ["column_2", "column_3", "temp__c", "temp__c_2", "temp__c_3"]);
    assert_eq!(rows, [format!("{BEGIN} 1 2 3 4 5")]);
}

#[test]
fn what_cannot_be_played_names_the_file_and_its_line() {
    for (text, word) in [
        ("time,x\n2027-05-04 01:00:00,run\n", "FILE:2: no column has numbers"),
        ("time,x\n", "FILE:1: no line has a number"),
        ("2027-05-04 01:00:00,1\n2027-05-04 01:00:01,2\n", "FILE:1: no header"),
    ] {
        assert!(why(text).starts_with(word), "{}", why(text));
    }
    let unknown = Options { time: vec!["tyme".into()], ..Options::default() };
    let why = played(b"time,x\n2027-05-04 01:00:00,1\n", &unknown).expect_err("unknown");
    assert!(why.starts_with("FILE:1: --time: no column is called `tyme`, did you mean `time`?"), "{why}");
}
