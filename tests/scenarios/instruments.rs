//! Instruments that say with a value what it means: wind by its reference and unit, a scale that repeats the question, frames of many
//! samples. Played by other people's libraries.

use rig::{Line, Mosquitto, Site, Sub, eventually};
use serde_json::Value;

const WIND: &str =
    "format = \"nmea\"\nsentences = { MWV = [[\"angle\", \"only:R\", \"wind:m/s\"], [\"north\", \"only:T\"]] }\n";
const SCALE: &str = "poll_ms = 200\nanswer_ms = 150\npause_ms = 20\n\
    requests = { kg = \"SI\\r\\n\", air = { request = \"T\\r\\n\", columns = [\"c\", \"rh\"] } }\n";
const BEARING: &str = "framing = \"cobs\"\ncheck = \"crc16-modbus\"\nfields = [\"n:u16le\", \"x,y:i16le[8]\"]\nrate_hz = 1000\nseq = \"n\"\n";

/// Of each row: the value of a channel, and its quality word.
fn values(records: &[(Value, bool)], channel: &str) -> Vec<(Option<f64>, String)> {
    let of = |r: &Value| (r["v"][channel].as_f64(), r["q"][channel].as_str().unwrap_or("good").to_owned());
    records.iter().map(|(record, _)| of(record)).collect()
}

#[test]
fn instruments_that_say_what_a_value_means_are_understood() {
    let (broker, lines) = (Mosquitto::start(), [Line::default(), Line::default(), Line::default()]);
    let sub = Sub::new(broker.port);
    let mut text = String::new();
    for ((name, keys), line) in [("mast", WIND), ("scale", SCALE), ("bearing", BEARING)].into_iter().zip(&lines) {
        text += &format!("[source.{name}]\npath = \"{}\"\n{keys}", line.path().display());
    }
    for (source, stream, channels) in [
        ("mast", "relative", &["angle", "wind"][..]),
        ("mast", "true", &["north"]),
        ("scale", "kg", &["kg"]),
        ("scale", "air", &["c", "rh"]),
        ("bearing", "shake", &["x", "y"]),
    ] {
        channels.iter().for_each(|c| text += &format!("[channel.{c}]\nsource = \"{source}\"\n"));
        text += &format!("[stream.{stream}]\nchannels = {channels:?}\n");
    }
    let daemon = Site::new(broker.port).with(&text).run();
    sub.wait_state("online");
    eventually("the ports are open", || (daemon.log().matches("serial port open").count() == 3).then_some(()));
    let _mast = lines[0].device(&["talk", "wind", "PORT", "--rows", "10"]);
    let _scale = lines[1].device(&["scale", "PORT"]);
    let _bearing = lines[2].device(&["talk", "block", "PORT", "--rows", "20", "--pause", "0.008"]);

    let relative = sub.wait_records("m/relative", 10);
    let (angles, winds) = (values(&relative, "angle"), values(&relative, "wind"));
    for (n, ((angle, angle_q), (wind, wind_q))) in angles.iter().zip(&winds).enumerate() {
        if n % 5 == 4 {
            assert_eq!((angle, angle_q.as_str(), wind, wind_q.as_str()), (&None, "bad:invalid", &None, "bad:invalid"));
        } else {
            assert_eq!((*angle, angle_q.as_str(), wind_q.as_str()), (Some(n as f64 / 2.0), "good", "good"));
            assert!(wind.is_some_and(|wind| (wind - n as f64).abs() < 1e-9), "{n}: {wind:?} m/s");
        }
    }
    let north: Vec<_> = values(&sub.wait_records("m/true", 10), "north").into_iter().map(|(value, _)| value).collect();
    assert_eq!(north, (300..310).map(|n| Some(f64::from(n))).collect::<Vec<_>>());

    let kg = values(&sub.wait_records("m/kg", 4), "kg");
    assert!(kg.iter().all(|(kg, q)| q == "good" && kg.is_some_and(|kg| kg >= 12.5 && kg.fract() == 0.5)), "{kg:?}");
    let air = sub.wait_records("m/air", 4);
    assert!(values(&air, "c").iter().all(|c| *c == (Some(21.5), "good".into())), "{air:?}");
    assert!(values(&air, "rh").iter().all(|rh| *rh == (Some(40.0), "good".into())), "{air:?}");

    let shake = sub.wait_records("m/shake", 160);
    for (i, (row, _)) in shake.iter().enumerate() {
        let (n, x, y) = (&row["in_seq"][0], &row["v"]["x"], &row["v"]["y"]);
        assert_eq!((n.as_u64(), x.as_i64(), y.as_i64()), (Some(i as u64), Some(i as i64), Some(-(i as i64))), "{row}");
    }
    let times: Vec<i64> = shake.iter().map(|(row, _)| row["in_t_ns"][0].as_i64().expect("a time")).collect();
    assert!(times.windows(2).all(|pair| (400_000..6_000_000).contains(&(pair[1] - pair[0]))), "{times:?}");
    let (q, _) = sub.records("q/bearing").pop().expect("quality");
    assert_eq!((&q["gaps"], &q["refused"]), (&0.into(), &serde_json::json!({})), "{q}");
    daemon.stop_well();
}
