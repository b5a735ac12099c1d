//! Files as loggers and programs of the field write them: what is played of them, and what is rejected or warned of.

use super::{
    recording_tests::{BEGIN, plain, played, why},
    *,
};

fn options(set: impl FnOnce(&mut Options)) -> Options {
    let mut options = Options::default();
    set(&mut options);
    options
}

fn seconds(text: &str) -> Options {
    options(|o| (o.time_format, o.start) = (clock::format("s").ok(), start(text).ok()))
}

#[test]
fn labview_table_behind_two_preambles_is_played_from_its_start() {
    let rows: String = (0..30).map(|i| format!("0,{:03}\t-0,5\t1,{i:02}\t\n", 10 * i)).collect();
    let text = format!(
        "LabVIEW Measurement\t\nSeparator\tTab\nDecimal_Separator\t,\n***End_of_Header***\t\n\t\nChannels\t2\t\nX0\t0,0E+0\t0,0E+0\t\n\
         ***End_of_Header***\t\t\t\nX_Value\tp\tq\tComment\n{rows}"
    );
    let options = options(|o| {
        o.time = vec!["X_Value".into()];
        (o.time_format, o.start) = (clock::format("s").ok(), start("2027-05-04T01:00:00Z").ok());
    });
    let (names, rows) = played(text.as_bytes(), &options).expect("a table");
    assert_eq!((names.len(), rows.len()), (2, 30), "{names:?}");
    assert_eq!(rows[1], "1809392400010000000 -0.5 1.01");
}

#[test]
fn signs_that_stand_apart_are_read_and_words_of_a_recorder_are_bad() {
    let (_, rows) = plain("time,a,b\n2027-05-04 01:00:00,+    23.4,BURNOUT\n2027-05-04 01:00:01,-     0.5,+ 1.25\n");
    assert_eq!(rows, [format!("{BEGIN} 23.4 BURNOUT"), "1809392401000000000 -0.5 1.25".into()]);
}

#[test]
fn time_that_a_spreadsheet_saved_with_too_few_digits_is_no_time() {
    let text = why("ts,a\n1.80939E+09,1.5\n1.80939E+09,1.75\n");
    assert!(text.contains("`1.80939E+09`") && text.contains("cannot be read as seconds since 1970"), "{text}");
    let (_, rows) = plain("ts,a\n1.8093924005E+09,1.5\n1.8093924010E+09,1.75\n");
    assert_eq!(rows[0], "1809392400500000000 1.5");
}

#[test]
fn seconds_since_1904_are_not_taken_for_a_time_in_2093() {
    let text = "time,a\n3892248000.25,1\n3892248000.75,2\n";
    assert!(why(text).contains("seconds of LabVIEW --start 1904-01-01T00:00:00Z"), "{}", why(text));
    let (_, rows) = played(text.as_bytes(), &seconds("1904-01-01T00:00:00Z")).expect("its start is known");
    assert_eq!(rows[0], "1809403200250000000 1");
    assert!(start("1903-12-31T23:59:59Z").is_err());
}

#[test]
fn days_beyond_any_spreadsheet_are_no_time() {
    let options = options(|o| o.time_format = clock::format("spreadsheet").ok());
    let text = played(b"time,a\n740471.0416667,1\n740471.0416782,2\n", &options).expect_err("days since year 0");
    assert!(text.contains("cannot be read as days of a spreadsheet"), "{text}");
}

#[test]
fn zeros_of_a_power_cut_cost_the_rows_that_they_tore() {
    let text = [&b"time,a\n2027-05-04 01:00:00,20\n2027-05-04 01:0"[..], &[0; 512], b"\n"].concat();
    let rest: Vec<u8> = (10..30).flat_map(|s| format!("2027-05-04 01:05:{s},21\n").into_bytes()).collect();
    let (_, rows) =
        played(&[&text[..], &rest, b"2027-05-04 01:05:30,2", &[0; 4000]].concat(), &Options::default()).expect("text");
    assert_eq!((rows.len(), rows[0].as_str()), (23, &*format!("{BEGIN} 20")));
    assert!(rows[1].starts_with("a row with another number of columns"), "{rows:?}");
    assert_eq!(rows[22], "1809392730000000000 2\0", "no number for the decoder");
}

#[test]
fn rows_in_the_wrong_order_or_with_a_coarse_clock_are_warned_of() {
    let warned = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("write");
        let recording =
            Recording::inspect(file.path(), &Options::default(), None).unwrap_or_else(|why| panic!("{}", why.text));
        recording.order.clone()
    };
    let newest_first = warned("time,a\n2027-05-04 01:00:02,3\n2027-05-04 01:00:01,2\n2027-05-04 01:00:00,1\n");
    assert_eq!((newest_first.older, newest_first.same), (Steps { rows: 2, first_line: 3 }, Steps::default()));
    let long =
        warned("time,what,value\n2027-05-04 01:00:00,t,20.5\n2027-05-04 01:00:00,q,3\n2027-05-04 01:00:01,t,20\n");
    assert_eq!((long.older, long.same), (Steps::default(), Steps { rows: 1, first_line: 3 }));
}
