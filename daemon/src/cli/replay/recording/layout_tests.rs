//! Separators, preambles, headers and rows of units as loggers write them.

use super::*;

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn found(text: &str) -> Layout {
    find(&lines(text), &Declared::default()).unwrap_or_else(|why| panic!("{text}\n{why:?}"))
}

#[test]
fn separator_header_and_units_are_found_behind_a_preamble() {
    let rows = "2027-05-04 01:00:00;0,5;7\n2027-05-04 01:00:05;1,5;8\n2027-05-04 01:00:10;2,5;9\n";
    for (preamble, header, units) in [
        ("", 1, 0),
        ("Logger X\nSerial: 17\n\n", 4, 0),
        ("Site;Pump 7\nSerial;17\nInterval;5 s\n\n", 5, 0),
        ("Logger;Pump;A\n", 2, 0),
        ("# made by X; version 1\n#\n", 3, 0),
        ("sep=;\n", 2, 0),
        ("", 1, 1),
        ("Logger X\n", 2, 2),
    ] {
        let unit_rows = ";bar;1/min\n".to_owned() + ";Avg;Smp\n";
        let unit_rows: String = unit_rows.lines().take(units).map(|line| format!("{line}\n")).collect();
        let seen = found(&format!("{preamble}Zeit;Druck;Drehzahl\n{unit_rows}{rows}"));
        assert_eq!(seen.separator, Separator::One(';'), "{preamble}");
        assert_eq!((seen.header, seen.units.len()), (header, units), "{preamble}");
        assert_eq!(seen.names, ["Zeit", "Druck", "Drehzahl"], "{preamble}");
        assert_eq!(seen.begins_after(), header + units as u64);
    }
}

#[test]
fn a_campbell_table_has_its_names_in_the_second_line() {
    let text = "\"TOA5\",\"CR1000\",\"CR1000\"\n\"TIMESTAMP\",\"RECORD\",\"AirTC\"\n\"TS\",\"RN\",\"Deg C\"\n\"\",\"\",\"Avg\"\n\
                \"2027-05-04 01:00:00\",0,20.5\n\"2027-05-04 01:01:00\",1,20.6\n";
    let seen = found(text);
    assert_eq!((seen.header, seen.names.join(" ").as_str(), seen.units.len()), (2, "TIMESTAMP RECORD AirTC", 2));
    assert_eq!(seen.units[0].1[2], "Deg C");
}

#[test]
fn separators_are_told_from_decimal_commas_times_and_words() {
    for (text, separator, columns) in [
        ("t;a;b\n1;0,5;0,5\n2;1,5;1,5\n", ';', 3),
        ("t\ta\n1\t0,5\n", '\t', 2),
        ("Date Time,a\n2027-05-04 01:00:00,5\n", ',', 2),
        ("t|a, b|c\n1|2|3\n", '|', 3),
        ("t,a,b,\n1,2,3,\n4,5,6,\n", ',', 3),
        ("t,a,b\n1,2,3,\n4,5,6,\n", ',', 3),
        ("t,\"a\n(bar)\",b\n1,2,3\n4,5,6\n", ',', 3),
    ] {
        let seen = found(text);
        assert_eq!((seen.separator, seen.names.len()), (Separator::One(separator), columns), "{text}");
    }
    let seen = found("date      time      temp\n2027-05-04 01:00:00  20.5\n2027-05-04 01:00:01  21.5\n");
    assert_eq!((seen.separator, seen.names.len()), (Separator::Blanks, 3));
    let torn = "t,a b\n2027-05-04 01:00:00,1\n2027-05-04 01:00:01,2\n2027-05-04 01\n2027-05-04 01:00:03,4\n";
    assert_eq!(found(torn).separator, Separator::One(','));
    let single = found("temp\n20,5\n21\n");
    assert_eq!((single.names.join(""), single.header), ("temp".into(), 1));
}

#[test]
fn a_header_behind_a_hash_and_nameless_columns_have_names() {
    assert_eq!(found("# comment\n#time,temp\n1,2\n3,4\n").names, ["time", "temp"]);
    assert_eq!(found("time,,temp\n1,2,3\n4,5,6\n").names, ["time", "column 2", "temp"]);
}

#[test]
fn a_file_without_header_or_without_values_is_an_error_with_a_line() {
    let why = |text: &str| find(&lines(text), &Declared::default()).expect_err(text);
    let (line, text) = why("Logger\n\n1,2,3\n4,5,6\n");
    assert!(line == 3 && text.contains("`1,2,3` is a row of values"), "{text}");
    assert!(why("a,b\nc,d\n").1.contains("no table of values"));
    let known = Declared { names: Some(vec!["a".into(), "b".into()]), ..Declared::default() };
    assert_eq!(find(&lines("1,2\n3,4\n"), &known).map(|seen| (seen.header, seen.names.len())), Ok((0, 2)));
    let third = Declared { header: Some(3), ..Declared::default() };
    assert_eq!(find(&lines("1,2\n3,4\n5,6\n7,8\n"), &third).map(|seen| seen.names.join(" ")), Ok("5 6".into()));
}

#[test]
fn an_unpaired_quote_does_not_swallow_the_rows_behind_it() {
    let text: Vec<String> = std::iter::once("\"a,b".to_owned()).chain((0..50).map(|i| format!("{i},1"))).collect();
    assert_eq!(rows(&text, Separator::One(',')).len(), 51);
}

#[test]
fn no_two_columns_get_the_same_channel_name() {
    let long = "x".repeat(100);
    let names =
        ["温度", "湿度", "Temp (C)", "Temp [C]", "temp", "temp", "Time", "column_1", &long, &(long.clone() + "y")];
    let columns: Vec<(usize, &str)> = names.into_iter().enumerate().collect();
    let seen = channel_names(&columns, "time");
    assert_eq!(seen[..8], ["column_1", "column_2", "temp__c", "temp__c_2", "temp", "temp_2", "time_2", "column_1_2"]);
    assert!(seen[8] != seen[9] && seen.iter().all(|name| name.len() <= 64), "{seen:?}");
    assert_eq!(channel_names(&[(0, "Volume Flow RateRMS")], ""), ["volume_flow_raterms"]);
}
