//! NMEA sentences: which are meant, which values are valid, what they mean.

use crate::{
    config::Config,
    flow::{Clk, Quality, Stamp, Why},
    limits,
    signal::decode::{Decoder, Refused, Row},
};

const STAMP: Stamp = Stamp { boot_ns: 0, wall_ms: None, clk: Clk::Unset };
const INVALID: Quality = Quality::Bad(Why::Invalid);
const AMBIGUOUS: Quality = Quality::Bad(Why::Ambiguous);

fn config(keys: &str, columns: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("c.toml");
    let channels: String = columns.iter().map(|c| format!("[channel.{c}]\n")).collect();
    let text = format!("[source.s]\npath = \"/dev/x\"\nformat = \"nmea\"\n{keys}\n{channels}");
    std::fs::write(&file, text).expect("write");
    let lines =
        |problems: Vec<crate::config::Problem>| problems.iter().map(|p| format!("{}: {}\n", p.key, p.why)).collect();
    Config::local(Some(&file)).map_err(lines)
}

/// Reads sentences; their values and qualities are in the order of `columns`, which is that of the alphabet.
struct Reader {
    decoder: Decoder,
    row: Row,
}

impl Reader {
    fn new(keys: &str, columns: &[&str]) -> Self {
        let config = config(keys, columns).expect("a valid configuration");
        let channels: Vec<_> = config.channels.iter().collect();
        Self { decoder: Decoder::new(&config.sources[0], &channels), row: Row::default() }
    }

    fn raw(&mut self, text: &str) -> Result<bool, Refused> {
        self.decoder.decode(Ok(text.as_bytes()), STAMP, &mut self.row)
    }

    /// The values, of a sentence with its checksum; `None`: it is passed over.
    fn read(&mut self, text: &str) -> Option<Vec<(f64, Quality)>> {
        let sum = text.bytes().fold(0, |sum, byte| sum ^ byte);
        let made = self.raw(&format!("${text}*{sum:02X}\r")).expect("a sentence");
        made.then(|| self.row.values.iter().copied().zip(self.row.quality.iter().copied()).collect())
    }

    fn one(&mut self, text: &str) -> (f64, Quality) {
        self.read(text).expect("a row")[0]
    }

    fn words(&mut self, text: &str) -> Vec<&'static str> {
        self.read(text).expect("a row").iter().map(|(_, quality)| quality.word()).collect()
    }
}

#[test]
fn sentences_are_checked_and_angles_have_their_sign() {
    let mut s = Reader::new("sentences = { GLL = [\"a:ddmm\", \"\", \"b\"] }", &["a", "b"]);
    let (value, _) = s.one("GPGLL,4916.45,S,3,W");
    assert!((value + 49.0 + 16.45 / 60.0).abs() < 1e-9, "{value}");
    assert_eq!(s.words("GPGLL,4916.45,N,"), ["good", "missing"]);
    assert_eq!(s.words("GPGLL,4916.45,Q,3,W")[0], "bad:not_a_number");
    assert_eq!(s.read("GPRMC,1,2,3"), None, "a sentence that is not configured");
    assert_eq!(s.raw("$GPGLL,4916.45,N,3,W*00"), Err(Refused::Checksum));
    for text in ["GPGLL,1", "$GPGLL*", "$*0", "$", "*00", "$GPGLL,1,N,3*zz", "$5.00"] {
        assert_eq!(s.raw(text), Err(Refused::NotNmea), "{text}");
    }
    for text in ["$GPGLL,1,N,3", "$GPRMC,1"] {
        assert_eq!(s.raw(text), Err(Refused::NoChecksum), "{text}");
    }
}

#[test]
fn checksum_may_be_left_out_where_that_is_said_but_not_be_wrong() {
    let mut s = Reader::new("checksum = \"optional\"\nsentences = { DPT = [\"a\"] }", &["a"]);
    assert_eq!(s.raw("$SDDPT,17.4,0.3\r"), Ok(true));
    assert_eq!((s.row.values[0], s.row.quality[0]), (17.4, Quality::Good));
    assert_eq!(s.raw("$SDDPT,17.4,0.3*00"), Err(Refused::Checksum));
    assert_eq!(s.raw("$SDDPT,17.4,0.3*"), Err(Refused::NotNmea));
    for text in ["$ 12.5", "12.5", "$,1", "$SDDPT"] {
        assert_eq!(s.raw(text), Err(Refused::NotNmea), "{text}");
    }
    assert_eq!(s.one("SDDPT,17.5,0.3"), (17.5, Quality::Good));
}

#[test]
fn other_field_selects_which_sentences_feed_which_channels() {
    let keys = "sentences = { MWV = [[\"a\", \"only:R\", \"b:kn\"], [\"c\", \"only:T\", \"d:m/s\"]], \
                RPM = [\"only:E\", \"only:2\", \"e\"], PUBX = [\"only:00\", \"\", \"f:ddmm\"] }";
    let mut s = Reader::new(keys, &["a", "b", "c", "d", "e", "f"]);
    let row = s.read("WIMWV,33.5,R,18.52,K,A").expect("relative");
    assert_eq!(row[0], (33.5, Quality::Good));
    assert!((row[1].0 - 10.0).abs() < 1e-9 && row[2].1 == Quality::Absent, "{row:?}");
    let row = s.read("WIMWV,301.0,T,10,N,A").expect("true");
    assert_eq!((row[0].1, row[2], row[3].1), (Quality::Absent, (301.0, Quality::Good), Quality::Good));
    assert!((row[3].0 - 5.14444).abs() < 1e-4, "{row:?}");
    assert_eq!(s.read("WIMWV,1.0,X,1,N,A"), None);
    assert_eq!(s.read("IIRPM,E,1,1500,0,A"), None);
    assert_eq!(s.read("IIRPM,E,2,1480,0,A").expect("engine 2")[4], (1480.0, Quality::Good));
    assert_eq!(s.read("PUBX,04,1,2,3,4"), None);
    assert_eq!(s.read("PUBX,00,1,4807.038,N").expect("position")[5].1, Quality::Good);
}

#[test]
fn what_the_device_calls_invalid_is_never_good() {
    for (list, good, void) in [
        ("RMC = [\"\", \"\", \"a:ddmm\"]", "GPRMC,1,A,4807.0,N,", "GPRMC,1,V,0000.0,N,"),
        ("RMC = [\"\", \"\", \"\", \"\", \"\", \"\", \"a\"]", "GPRMC,1,A,1,N,1,E,7.5", "GPRMC,1,,1,N,1,E,0.0"),
        ("GLL = [\"a:ddmm\"]", "GPGLL,4807.0,N,1,E,1,A", "GPGLL,4807.0,N,1,E,1,V,N"),
        ("GGA = [\"\", \"a:ddmm\"]", "GNGGA,1,4807.0,N,1,E,4,9", "GNGGA,1,0.0,N,1,E,0,0"),
        (
            "GGA = [\"\", \"\", \"\", \"\", \"\", \"\", \"\", \"\", \"a\"]",
            "GNGGA,1,1,N,1,E,2,9,1.1,545.4,M",
            "GNGGA,1,1,N,1,E,6,9,1.1,545.4,M",
        ),
        ("GNS = [\"\", \"a:ddmm\"]", "GNGNS,1,4807.0,N,1,E,NA,9", "GNGNS,1,4807.0,N,1,E,NN,9"),
        ("VTG = [\"a\"]", "GPVTG,54.7,T,34.4,M,5.5,N,10.2,K,D", "GPVTG,54.7,T,34.4,M,0.0,N,0.0,K,N"),
        ("MWV = [\"a\"]", "WIMWV,33,R,4,N,A", "WIMWV,999,R,4,N,V"),
        ("ROT = [\"a\"]", "HEROT,-2.5,A", "HEROT,0.0,V"),
        ("RSA = [\"\", \"\", \"a\"]", "IIRSA,1.0,V,-3.5,A", "IIRSA,1.0,A,0.0,V"),
        ("GSA = [\"\", \"\", \"a\"]", "GPGSA,A,3,19", "GPGSA,A,1,0"),
        ("XTE = [\"\", \"\", \"a\"]", "GPXTE,A,A,0.67,L,N", "GPXTE,A,V,0.67,L,N"),
    ] {
        let mut s = Reader::new(&format!("sentences = {{ {list} }}"), &["a"]);
        assert_eq!(s.one(good).1, Quality::Good, "{good}");
        let (value, quality) = s.one(void);
        assert!(quality == INVALID && value.is_nan(), "{void}: {value} {quality:?}");
    }
    // An old VTG ends before its mode.
    let mut s = Reader::new("sentences = { VTG = [\"a\"] }", &["a"]);
    assert_eq!(s.one("GPVTG,54.7,T,34.4,M,5.5,N,10.2,K").1, Quality::Good);
    // Said by the configuration: another field, other texts, none.
    let mut s = Reader::new(
        "sentences = { XYZ = [\"a\", \"\", \"valid:OK|ok\"], GGA = [\"\", \"b:ddmm\", \"\", \"\", \"\", \"valid:1|2|6\"], \
         ROT = [\"c\", \"valid:*\"] }",
        &["a", "b", "c"],
    );
    assert_eq!(s.read("IIXYZ,4,,ok").expect("row")[0], (4.0, Quality::Good));
    assert_eq!(s.read("IIXYZ,4,,err").expect("row")[0].1, INVALID);
    assert_eq!(s.read("GPGGA,1,100.0,N,1,E,6").expect("row")[1].1, Quality::Good);
    assert_eq!(s.read("GPGGA,1,100.0,N,1,E,4").expect("row")[1].1, INVALID);
    assert_eq!(s.read("HEROT,1.0,V").expect("row")[2].1, Quality::Good);
}

#[test]
fn two_references_or_units_under_one_channel_are_never_both_good() {
    let mut s = Reader::new("sentences = { MWV = [\"a\", \"\", \"b\"] }", &["a", "b"]);
    assert_eq!(s.words("WIMWV,21.0,R,5.5,N,A"), ["good", "good"]);
    assert_eq!(s.words("WIMWV,270.0,T,9.9,N,A"), ["bad:ambiguous"; 2]);
    assert_eq!(s.words("WIMWV,22.0,R,5.6,N,A"), ["good", "good"], "one may have been spoilt");
    assert_eq!(s.words("WIMWV,23.0,R,2.8,M,A"), ["good", "bad:ambiguous"], "its unit alone");
    s.words("WIMWV,271.0,T,9.9,N,A");
    s.words("WIMWV,272.0,T,9.9,N,A");
    assert_eq!(s.words("WIMWV,24.0,R,5.6,N,A"), ["bad:ambiguous"; 2], "both come again and again: which is meant?");
    // It ends when only the first kind comes for a good while, and not before.
    for _ in 0..limits::LETTER_SENTENCES - 4 {
        assert_eq!(s.words("WIMWV,24.0,R,5.6,N,A"), ["bad:ambiguous"; 2]);
    }
    s.words("WIMWV,272.0,T,9.9,N,A");
    for _ in 0..limits::LETTER_SENTENCES - 3 {
        assert_eq!(s.words("WIMWV,24.0,R,5.6,N,A"), ["bad:ambiguous"; 2], "another one came in between");
    }
    assert_eq!(s.words("WIMWV,24.0,R,5.6,N,A"), ["good"; 2]);
    assert_eq!(s.words("WIMWV,272.0,T,9.9,N,A"), ["bad:ambiguous"; 2], "it is another one still");
    // The sign of a variation, the side of a wind, old and new forms of a course.
    for (list, first, other) in [
        ("HDG = [\"\", \"\", \"\", \"a\"]", "HCHDG,98.3,0.0,E,12.6,W", "HCHDG,98.3,0.0,E,12.6,E"),
        ("VWR = [\"a\"]", "IIVWR,30.0,R,1,N", "IIVWR,30.0,L,1,N"),
        ("VTG = [\"\", \"\", \"a\"]", "GPVTG,54.7,T,34.4,M,5.5,N,10.2,K", "GPVTG,54.7,34.4,5.5,10.2"),
        ("DBT = [\"\", \"\", \"a\"]", "SDDBT,10.2,f,3.1,M,1.7,F", "SDDBT,10.2,f,3.1,,1.7,F"),
        ("RMC = [\"\", \"\", \"a\"]", "GPRMC,1,A,4807.0,N,1,E", "GPRMC,1,A,4807.0,S,1,E"),
    ] {
        let mut s = Reader::new(&format!("sentences = {{ {list} }}"), &["a"]);
        assert_eq!(
            (s.one(first).1, s.one(other).1, s.one(first).1),
            (Quality::Good, AMBIGUOUS, Quality::Good),
            "{list}"
        );
    }
    // A spoilt letter in the very first sentence does not last; nor does one now and then.
    let mut s = Reader::new("sentences = { MTW = [\"a\"] }", &["a"]);
    s.one("YXMTW,17.0,G");
    for _ in 0..3 {
        s.one("YXMTW,17.0,C");
    }
    for i in 0..1000 {
        let letter = if i % 90 == 89 { "S" } else { "C" };
        assert_eq!(s.one(&format!("YXMTW,17.1,{letter}")).1.is_good(), letter == "C", "{i}");
    }
}

#[test]
fn units_and_signs_come_from_the_field_beside() {
    let keys = "sentences = { MTW = [\"a:°C\"], HDG = [\"\", \"b:signed\", \"\", \"c:signed\"], VWR = [\"d:signed\"], DBT = [\"e:m\"] }";
    let mut s = Reader::new(keys, &["a", "b", "c", "d", "e"]);
    let mut at = |i: usize, text: &str| s.read(text).expect("row")[i];
    assert_eq!(at(0, "YXMTW,17.9,C"), (17.9, Quality::Good));
    assert!((at(0, "YXMTW,50.0,F").0 - 10.0).abs() < 1e-9);
    assert_eq!((at(0, "YXMTW,17.9,").1, at(0, "YXMTW,17.9,Z").1), (AMBIGUOUS, AMBIGUOUS));
    assert_eq!(at(0, "YXMTW,-,C").1, Quality::Bad(Why::NotANumber));
    assert_eq!((at(1, "HCHDG,98,3.5,W,12.6,E").0, at(2, "HCHDG,98,3.5,W,12.6,E").0), (-3.5, 12.6));
    assert_eq!((at(1, "HCHDG,98,,,12.6,E").1, at(2, "HCHDG,98,,,12.6,").1), (Quality::Missing, AMBIGUOUS));
    assert_eq!((at(3, "IIVWR,45,L,1,N").0, at(3, "IIVWR,45,R,1,N").0), (-45.0, 45.0));
    assert!((at(4, "SDDBT,10.0,f,3.0,M").0 - 3.048).abs() < 1e-9);
}

#[test]
fn transducers_are_found_by_name_and_type_wherever_they_stand() {
    let keys = "sentences = { XDR = { AIR = \"a:°C\", \"P:\" = \"b:hPa\", \"A:ROLL\" = \"c\" } }";
    let mut s = Reader::new(keys, &["a", "b", "c"]);
    let row = s.read("WIXDR,P,1.0132,B,,C,21.4,C,AIR").expect("row");
    assert!(
        (row[1].0 - 1013.2).abs() < 1e-9 && row[0] == (21.4, Quality::Good) && row[2].1 == Quality::Absent,
        "{row:?}"
    );
    let row = s.read("YXXDR,C,70.7,F,AIR,A,-3.5,D,PITCH,A,1.25,D,ROLL").expect("row");
    assert!((row[0].0 - 21.5).abs() < 1e-9 && row[2] == (1.25, Quality::Good), "{row:?}");
    assert_eq!(s.read("YXXDR,A,-3.5,D,PITCH"), None, "none of them");
    assert_eq!(s.read("YXXDR,A,1.3,V,ROLL").expect("row")[2].1, AMBIGUOUS, "another unit than before");
    assert_eq!(s.read("YXXDR,C,,C,AIR").expect("row")[0].1, Quality::Missing);
    assert_eq!(s.read("YXXDR,C,1.0,C"), None, "cut short");
    assert_eq!(s.read("YXXDR,C,20,C,AIR,C,30,C,AIR").expect("row")[0].1, AMBIGUOUS, "two of one name: which is meant?");
}

#[test]
fn check_says_what_a_list_leaves_open() {
    let advice = |keys: &str| config(keys, &["a"]).expect("valid").advice();
    let open = advice("sentences = { MWV = [\"a\", \"\", \"b:kn\"] }");
    assert!(open.len() == 1 && open[0].contains("of `a`, `b` is in field 2: add `only:`"), "{open:?}");
    for closed in [
        "MWV = [\"a\", \"only:R\", \"b:kn\"]",
        "RMC = [\"\", \"\", \"a:ddmm\"]",
        "DPT = [\"a\"]",
        "HDG = [\"\", \"a:signed\"]",
    ] {
        assert_eq!(advice(&format!("sentences = {{ {closed} }}")), Vec::<String>::new(), "{closed}");
    }
}

#[test]
fn configuration_that_cannot_be_meant_is_rejected_with_advice() {
    for (keys, wanted) in [
        ("sentences = { MWV = [\"a:knts\"] }", "`a:knts`: unknown word `knts`; did you mean `knots`?"),
        ("sentences = { RMC = [\"a:ddm\"] }", "did you mean `ddmm`?"),
        ("sentences = { RMC = { AIR = \"a\" } }", "only `XDR` has names of transducers"),
        ("sentences = { XDR = { AIR = 3 } }", "`AIR` must be the name of its column"),
        ("sentences = { XDR = { AIR = \"a:ddmm\" } }", "no hemisphere"),
        ("sentences = { RMC = [\"a\", [\"b\"]] }", "several such lists"),
        ("sentences = { RMC = [[\"a\"], [\"a\"]] }", "`a` stands twice"),
        ("sentences = { rmc = [\"a\"] }", "`rmc` is neither a sentence"),
        ("checksum = \"none\"\nsentences = { RMC = [\"a\"] }", "expected one of `required`, `optional`"),
        ("chcksum = \"optional\"\nsentences = { RMC = [\"a\"] }", "did you mean `checksum`?"),
    ] {
        let problems = config(keys, &["a"]).expect_err(keys);
        assert!(problems.contains(wanted), "{keys}: {problems}");
    }
}
