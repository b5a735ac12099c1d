//! Clocks of recordings: which column, which format, and what is rejected rather than guessed.

use super::*;

fn found(names: &[&str], rows: &[&[&str]], declared: &Declared) -> Found {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut seen: Vec<Seen> = names.iter().map(|name| Seen::new(name)).collect();
    for (i, row) in rows.iter().enumerate() {
        seen.iter_mut().zip(*row).for_each(|(seen, cell)| seen.note(i as u64 + 2, cell));
    }
    decide(&names, &seen, declared)
}

fn plain(names: &[&str], rows: &[&[&str]]) -> Found {
    found(names, rows, &Declared::default())
}

#[test]
fn names_of_clocks_are_known_with_units_and_other_words() {
    for name in
        ["ts", "Time (s)", "epoch", "TIMESTAMP", "Date/Time", "unix_time_ms", "Zeitstempel", "t [ms]", "UTC", "时间"]
    {
        assert!(is_named(name), "{name}");
    }
    for name in ["temp", "T", "t", "response time", "run time (h)", "data", "s", "ms", ""] {
        assert!(!is_named(name), "{name}");
    }
}

#[test]
fn numbers_since_1970_tell_their_unit_by_their_size() {
    for (cells, ns) in [
        (["1741000001", "1741000061"], 1_000_000_000),
        (["1741000001250", "1741000061250"], 1_000_000),
        (["1741000001250000", "1741000061250000"], 1_000),
        (["1741000001250000000", "1741000061250000000"], 1),
    ] {
        let rows: Vec<&[&str]> = cells.iter().map(std::slice::from_ref).collect();
        assert_eq!(plain(&["epoch"], &rows), Ok((vec![0], Clock::Ticks(ns, 0))), "{cells:?}");
        // A name that says nothing is not taken for a clock in silence.
        let (line, why) = plain(&["x"], &rows).expect_err("no clock");
        assert!(line == Some(2) && why.contains("--time"), "{why}");
    }
    let (line, why) = plain(&["time_ms"], &[&["1741000001"], &["1741000061"]]).expect_err("another unit");
    assert!(line == Some(2) && why.contains("another unit"), "{why}");
}

#[test]
fn a_day_first_or_month_first_date_is_decided_by_evidence_or_not_at_all() {
    let of = |rows: &[&[&str]]| plain(&["timestamp", "x"], rows);
    let written = |order| Ok((vec![0], Clock::Written(order)));
    assert_eq!(of(&[&["04.05.2027 01:00:00"], &["14.05.2027 01:00:00"]]), written(Order::DayFirst));
    assert_eq!(of(&[&["05/04/2027 1:00 PM"], &["05/14/2027 1:00 PM"]]), written(Order::MonthFirst));
    assert_eq!(of(&[&["2027/05/04 01:00"], &["2027/05/14 01:00"]]), written(Order::DayFirst), "year first is certain");
    assert_eq!(of(&[&["05.05.2027 01:00"]]), written(Order::DayFirst), "both mean the same day");
    for rows in [
        &[&["04.05.2027 01:00:00"][..], &["04.05.2027 02:00:00"]][..],
        &[&["04/05/2027"], &["14/05/2027"], &["05/14/2027"]],
    ] {
        let (line, why) = of(rows).expect_err("not certain");
        assert!(line == Some(2) && why.contains("`04") && why.contains("day first"), "{why}");
    }
    let day_first = Declared { format: Some(Clock::Written(Order::DayFirst)), ..Declared::default() };
    assert_eq!(found(&["timestamp"], &[&["04.05.2027 01:00:00"]], &day_first), written(Order::DayFirst));
}

#[test]
fn date_and_time_of_day_in_two_columns_are_one_clock() {
    let rows: &[&[&str]] = &[&["7", "2027-05-14", "01:00:00"], &["8", "2027-05-14", "01:00:05"]];
    assert_eq!(plain(&["x", "Day", "At"], rows), Ok((vec![1, 2], Clock::Written(Order::DayFirst))));
    let (_, why) = plain(&["x", "Time"], &[&["7", "01:00:00"], &["8", "01:00:05"]]).expect_err("no date");
    assert!(why.contains("`Time` has no date"), "{why}");
    let (_, why) = plain(&["x", "Date"], &[&["7", "2027-05-14"], &["8", "2027-05-14"]]).expect_err("no time");
    assert!(why.contains("without a time of day"), "{why}");
    assert!(plain(&["x", "Date"], &[&["7", "2027-05-14"], &["8", "2027-05-15"]]).is_ok(), "a row a day");
}

#[test]
fn what_cannot_be_read_is_an_error_with_line_and_cell() {
    for (name, cells) in [
        ("timestamp", ["04.05.27 01:00:00", "04.05.27 01:00:01"]),
        ("time", ["yesterday", "today"]),
        ("when", ["2027-05-04 01:00:00 CET", "2027-05-04 01:00:01 CET"]),
    ] {
        let rows: Vec<&[&str]> = cells.iter().map(std::slice::from_ref).collect();
        let (line, why) = plain(&[name], &rows).expect_err(name);
        assert!(line == Some(2) && why.contains(cells[0]) && why.contains("cannot be read as a time"), "{why}");
    }
}

#[test]
fn elapsed_time_needs_its_start_and_no_clock_needs_a_distance() {
    let rows: &[&[&str]] = &[&["0", "5"], &["0.5", "6"]];
    let (_, why) = plain(&["Time (s)", "x"], rows).expect_err("no start");
    assert!(why.contains("--start"), "{why}");
    let start = Declared { start_ns: Some(7), ..Declared::default() };
    assert_eq!(found(&["Time (s)", "x"], rows, &start), Ok((vec![0], Clock::Ticks(1_000_000_000, 7))));
    let (_, why) = found(&["Time", "x"], rows, &start).expect_err("no unit");
    assert!(why.contains("its unit"), "{why}");
    let (_, why) = plain(&["a", "x"], rows).expect_err("no clock");
    assert!(why.contains("--every"), "{why}");
    let every = Declared { every_ns: Some(20), start_ns: Some(100), ..Declared::default() };
    assert_eq!(found(&["a", "x"], rows, &every).map(|(_, clock)| clock.t_ns("", 3)), Ok(Some(160)));
}

#[test]
fn two_clocks_are_not_chosen_from_unless_one_is_named_as_one() {
    let rows: &[&[&str]] = &[&["2027-05-14 01:00:00", "2027-05-14 02:00:00"]];
    assert_eq!(plain(&["installed", "time"], rows).map(|(at, _)| at), Ok(vec![1]));
    let (_, why) = plain(&["time_utc", "time_local"], rows).expect_err("two");
    assert!(why.contains("`time_utc` and `time_local`") && why.contains("--time"), "{why}");
    let second = Declared { columns: vec![1], ..Declared::default() };
    assert_eq!(found(&["time_utc", "time_local"], rows, &second).map(|(at, _)| at), Ok(vec![1]));
}

#[test]
fn declared_formats_are_read_to_the_nanosecond() {
    for (word, text, ns) in [
        ("s", "1741000001.123456789", 1_741_000_001_123_456_789),
        ("s", "1741000001,5", 1_741_000_001_500_000_000),
        ("ms", "1741000001250.5", 1_741_000_001_250_500_000),
        ("us", "-1", -1_000),
        ("spreadsheet", "45719.46298611", 1_741_000_002_000_000_000),
        ("spreadsheet", "45719,5", 1_741_003_200_000_000_000),
        ("%d.%m.%y %H:%M:%S", "03.03.25 11:06:41", 1_741_000_001_000_000_000),
        ("%m/%d/%Y %I:%M:%S %p", "03/03/2025 11:06:41 AM", 1_741_000_001_000_000_000),
        ("%Y-%m-%dT%H:%M:%S%z", "2025-03-03T12:06:41+0100", 1_741_000_001_000_000_000),
        ("day-first", "03.03.2025 11:06:41", 1_741_000_001_000_000_000),
        ("civil", "2025-03-03T11:06:41Z", 1_741_000_001_000_000_000),
    ] {
        let clock = format(word).expect(word);
        let seen = clock.t_ns(text, 0).expect(text);
        // A double of days has about 0.5 ms.
        assert!(seen == ns || word == "spreadsheet" && (seen - ns).abs() < 1_000_000, "{word} {text}: {seen}");
    }
    for wrong in ["seconds", "dd.mm.yyyy", "%H:%M:%S", "%Q", "%d.%m.%Y", ""] {
        assert!(format(wrong).is_err(), "{wrong}");
    }
}
