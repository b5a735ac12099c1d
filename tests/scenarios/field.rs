//! Field devices, played by other people's libraries: every framing and decoder, noise, polled devices, Modbus.

use std::collections::BTreeMap;

use rig::{Device, Line, Mosquitto, Site, Sub, eventually};
use serde_json::Value;

const FIELDS: &str = "fields = [\"n:u32le\", \"a:f32le\", \"b:i16le\"]\nseq = \"n\"\n";

/// What the configuration says for each kind of talker.
fn kinds() -> Vec<(&'static str, String)> {
    let lines = |text: &str| text.to_owned();
    vec![
        ("csv", lines("columns = [\"n\", \"a\", \"b\"]\nseq = \"n\"\n")),
        ("json", lines("format = \"json\"\nseq = \"n\"\n")),
        ("nmea", lines("format = \"nmea\"\nsentences = { MWV = [\"a\", \"\", \"b\"] }\n")),
        ("cobs", format!("framing = \"cobs\"\ncheck = \"crc16-modbus\"\n{FIELDS}")),
        ("slip", format!("framing = \"slip\"\ncheck = \"crc32\"\ncheck_order = \"big\"\n{FIELDS}")),
        (
            "fixed",
            format!(
                "framing = \"fixed\"\nstart = \"aa 55\"\nframe_bytes = 14\ncheck = \"crc16-xmodem\"\ncheck_order = \"big\"\n{FIELDS}"
            ),
        ),
        (
            "length",
            format!(
                "framing = \"length\"\nstart = \"7e\"\nlength = \"u16be\"\ncheck = \"crc16-modbus\"\ncheck_skip_bytes = 1\n{FIELDS}"
            ),
        ),
        (
            "delimited",
            format!(
                "framing = \"delimited\"\nstart = \"02\"\nstop = \"03\"\nescape = \"10\"\ncheck = \"sum8\"\n{FIELDS}"
            ),
        ),
    ]
}

fn site(broker: &Mosquitto, line: &Line, source: &str) -> Site {
    let path = line.path();
    Site::new(broker.port).with(&format!(
        "[source.s]\npath = \"{}\"\n{source}\n[channel.a]\n[channel.b]\n[stream.raw]\nchannels = [\"a\", \"b\"]\n",
        path.display()
    ))
}

/// Values of `a` and `b` by row; `a` is the row's number.
fn rows(sub: &Sub) -> BTreeMap<u64, f64> {
    let value = |record: &Value, name: &str| record["v"][name].as_f64();
    let records = sub.records("m/raw");
    records.iter().filter_map(|(r, _)| Some(((value(r, "a")? * 2.0) as u64, value(r, "b")?))).collect()
}

#[test]
fn every_framing_and_decoder_reads_what_other_peoples_libraries_write() {
    for (kind, source) in kinds() {
        let (broker, line) = (Mosquitto::start(), Line::default());
        let sub = Sub::new(broker.port);
        let daemon = site(&broker, &line, &source).run();
        sub.wait_state("online");
        eventually("the port is open", || daemon.log().contains("serial port open").then_some(()));
        let mut device = line.device(&["talk", kind, "PORT", "--rows", "300"]);
        assert_eq!(device.whole(), (0..300).collect::<Vec<_>>());
        let records = sub.wait_records("m/raw", 300);
        let values: Vec<(f64, f64)> =
            records.iter().map(|(r, _)| (r["v"]["a"].as_f64().expect("a"), r["v"]["b"].as_f64().expect("b"))).collect();
        let wanted: Vec<(f64, f64)> = (0..300).map(|n| (f64::from(n) / 2.0, f64::from(-n))).collect();
        assert_eq!(values, wanted, "{kind}");
        daemon.stop_well();
    }
}

/// One frame in a hundred is spoilt, one is cut, and the line hangs up. What has no check cannot tell one digit from
/// another: those framings are in `sensor::noise…`.
#[test]
fn noise_cuts_and_hang_ups_cost_no_clean_frame_and_make_no_wrong_value() {
    let checked = kinds().into_iter().filter(|(kind, _)| !matches!(*kind, "csv" | "json"));
    for (i, (kind, source)) in checked.enumerate() {
        let (broker, line) = (Mosquitto::start(), Line::default());
        let sub = Sub::new(broker.port);
        let daemon = site(&broker, &line, &source).run();
        sub.wait_state("online");
        let mut clean = Vec::new();
        for round in 0..2u64 {
            eventually("the port is open", || {
                (daemon.log().matches("serial port open").count() as u64 > round).then_some(())
            });
            let (first, seed) = ((round * 1000).to_string(), (10 * i as u64 + round).to_string());
            let args = [
                "talk",
                kind,
                "PORT",
                "--rows",
                "1000",
                "--noise",
                "0.01",
                "--truncate",
                "0.01",
                "--first",
                &first,
                "--seed",
                &seed,
            ];
            clean.extend(line.device(&args).whole());
            eventually(&format!("{kind}: every clean frame arrives"), || {
                let got = rows(&sub);
                clean.iter().all(|n| got.contains_key(n)).then_some(())
            });
            if round == 0 {
                line.pull();
                eventually("the hang-up is noticed", || daemon.log().contains("serial port closed").then_some(()));
                line.plug_in();
            }
        }
        let got = rows(&sub);
        let wrong: Vec<_> = got.iter().filter(|(n, b)| **n >= 2000 || **b != -(**n as f64)).collect();
        // A sum of 8 bits lets one spoilt frame in 256 pass, two flips of one bit each more easily: that is said in the
        // documentation. The others must be clean.
        let allowed = if kind == "delimited" || kind == "nmea" { 2 } else { 0 };
        assert!(wrong.len() <= allowed, "{kind}: {wrong:?}");
        let seen = sub.wait("damaged frames are reported", |_| {
            let (q, _) = sub.records("q/s").pop()?;
            (q["refused"].as_object().is_some_and(|all| !all.is_empty())).then_some(q)
        });
        rig::measured(&format!(
            "{kind}: {} clean of 2000, {} delivered, refused {}",
            clean.len(),
            got.len(),
            seen["refused"]
        ));
        daemon.stop_well();
    }
}

#[test]
fn a_polled_device_is_asked_and_its_silence_is_named() {
    let (broker, line) = (Mosquitto::start(), Line::default());
    let sub = Sub::new(broker.port);
    let _device = line.device(&["answer", "PORT", "--deaf", "4"]);
    let source = "columns = [\"n\", \"a\", \"b\"]\nrequest = \"?\\n\"\npoll_ms = 100\nanswer_ms = 60\n";
    let daemon = site(&broker, &line, source).run();
    let records = sub.wait_records("m/raw", 12);
    let n: Vec<u64> = records.iter().map(|(r, _)| (r["v"]["a"].as_f64().expect("a") * 2.0) as u64).collect();
    assert!(n.iter().all(|n| n % 4 != 0) && n.windows(2).all(|pair| pair[1] > pair[0]), "{n:?}");
    sub.wait("silence is reported", |_| {
        let (q, _) = sub.records("q/s").pop()?;
        (q["faults"]["no_answer"].as_u64()? >= 2).then_some(())
    });
    daemon.stop_well();
}

fn modbus(site: Site, how: &str) -> Site {
    let registers = "poll_ms = 100\nanswer_ms = 200\n[source.m.registers]\n\
        u = { slave = 1, address = 3 }\n\
        v = { slave = 1, address = 4 }\n\
        f = { slave = 1, address = 10, type = \"f32\" }\n\
        i = { slave = 2, address = 12, type = \"i32\", order = \"cdab\" }\n\
        s = { slave = 2, address = 20, type = \"i16\" }\n\
        in = { slave = 2, read = \"input\", address = 3 }\n\
        coil = { slave = 1, read = \"coil\", address = 6 }\n\
        bit = { slave = 1, read = \"discrete\", address = 7 }\n\
        beyond = { slave = 1, address = 500 }\n\
        dead = { slave = 9, address = 0 }\n";
    let names = ["u", "v", "f", "i", "s", "in", "coil", "bit", "beyond", "dead"];
    let mut text = format!("[source.m]\n{how}\n{registers}");
    for name in names {
        text.push_str(&format!("[channel.{name}]\n[stream.{name}]\nchannels = [\"{name}\"]\n"));
    }
    site.with(&text.replace("[channel.u]\n", "[channel.u]\nscale = 0.1\n"))
}

#[track_caller]
fn wait_registers(sub: &Sub, dead: &str) {
    let wanted = [
        ("u", 10.3),
        ("v", 104.0),
        ("f", 100.25),
        ("i", -100_200.0),
        ("s", -200.0),
        ("in", 406.0),
        ("coil", 1.0),
        ("bit", 0.0),
    ];
    for (name, value) in wanted {
        let records = sub.wait_records(&format!("m/{name}"), 2);
        let got = records[0].0["v"][name].as_f64().expect("a value");
        assert!((got - value).abs() < 1e-9, "{name}: {got}, not {value}");
    }
    sub.wait("faults by name", |_| {
        let (q, _) = sub.records("q/m").pop()?;
        let at_least = |word: &str| q["faults"][word].as_u64().unwrap_or(0) >= 2;
        (at_least(dead) && at_least("illegal_data_address")).then_some(())
    });
    assert!(sub.records("m/beyond").is_empty() && sub.records("m/dead").is_empty());
}

#[test]
fn modbus_rtu_reads_several_devices_of_one_line_and_a_dead_one_holds_up_none() {
    let (broker, line) = (Mosquitto::start(), Line::default());
    let sub = Sub::new(broker.port);
    let _device = line.device(&["modbus-rtu", "PORT"]);
    let how = format!("kind = \"modbus-rtu\"\npath = \"{}\"\nbaud = 115200\n", line.path().display());
    let daemon = modbus(Site::new(broker.port), &how).run();
    wait_registers(&sub, "no_answer");
    // The dead device is asked less and less often: the others go on at their pace.
    let before = sub.records("m/u").len();
    std::thread::sleep(std::time::Duration::from_secs(3));
    let made = sub.records("m/u").len() - before;
    assert!(made >= 15, "{made} of 30 in 3 s");
    line.pull();
    eventually("the hang-up is noticed", || daemon.log().contains("closed: ").then_some(()));
    line.plug_in();
    let before = sub.records("m/u").len();
    sub.wait_records("m/u", before + 3);
    daemon.stop_well();
}

#[test]
fn modbus_tcp_reads_the_same_map() {
    let broker = Mosquitto::start();
    let sub = Sub::new(broker.port);
    let port = rig::free_port();
    let device = Device::start(&["modbus-tcp", &port.to_string()]);
    let how = format!("kind = \"modbus-tcp\"\naddress = \"127.0.0.1:{port}\"\n");
    let daemon = modbus(Site::new(broker.port), &how).run();
    // What stands between, not the device itself, says that it is not there.
    wait_registers(&sub, "device_failure");
    drop(device);
    eventually("the end is noticed", || daemon.log().contains("closed: ").then_some(()));
    rig::within(std::time::Duration::from_secs(20), "the source is lost", || !sub.records("e/source.lost").is_empty());
    let (lost, _) = sub.records("e/source.lost").remove(0);
    let text = lost["text"].as_str().expect("text");
    assert!(lost["subject"] == "m" && text.ends_with("its device does not answer"), "{lost}");
    let _device = Device::start(&["modbus-tcp", &port.to_string()]);
    let before = sub.records("m/u").len();
    sub.wait_records("m/u", before + 3);
    sub.wait_records("e/source.back", 1);
    daemon.stop_well();
}

/// A serial server passes RTU frames through a TCP port.
#[test]
fn modbus_rtu_over_tcp_reads_values_that_need_a_scale_register_a_mask_or_bcd() {
    let broker = Mosquitto::start();
    let sub = Sub::new(broker.port);
    let port = rig::free_port();
    let _device = Device::start(&["modbus-rtu-over-tcp", &port.to_string()]);
    // Holding register n of device 1 holds 100 + n; 30 to 35: what the device script sets.
    let text = format!(
        "[source.m]\nkind = \"modbus-tcp\"\naddress = \"127.0.0.1:{port}\"\nframing = \"rtu\"\npoll_ms = 100\n\
         join_max = 4\n[source.m.registers]\nu = {{ address = 3 }}\n\
         scaled = {{ address = 30, scale_register = 32 }}\nmasked = {{ address = 31, mask = 0x0F00 }}\n\
         bcd = {{ address = 33, type = \"bcd32\" }}\nnone = {{ address = 35, type = \"i16\", not_available = 0x8000 }}\n\
         beyond = {{ address = 99 }}\nhole = {{ address = 100 }}\n"
    );
    let names = ["u", "scaled", "masked", "bcd", "none", "beyond", "hole"];
    let channels: String =
        names.iter().map(|name| format!("[channel.{name}]\n[stream.{name}]\nchannels = [\"{name}\"]\n")).collect();
    let daemon = Site::new(broker.port).with(&(text + &channels)).run();
    for (name, value) in [("u", 103.0), ("scaled", 230.1), ("masked", 5.0), ("bcd", 12_345_678.0), ("beyond", 199.0)] {
        let records = sub.wait_records(&format!("m/{name}"), 2);
        assert_eq!(records[1].0["v"][name].as_f64(), Some(value), "{name}");
    }
    let none = sub.wait_records("m/none", 1);
    assert_eq!((&none[0].0["v"]["none"], &none[0].0["q"]["none"]), (&Value::Null, &"bad:not_available".into()));
    assert!(
        daemon.log().contains("holding registers 99 to 100: illegal_data_address; asking for them in smaller parts")
    );
    eventually("the hole is named", || {
        daemon.log().contains("holding register 100: illegal_data_address").then_some(())
    });
    daemon.stop_well();
}

/// Folders as Linux's documentation describes them; one of the readings goes away.
#[test]
fn the_kernels_sensors_are_read_in_their_units() {
    let broker = Mosquitto::start();
    let sub = Sub::new(broker.port);
    let dir = tempfile::TempDir::new().expect("folder");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("write");
    write("in_voltage0_raw", "1000\n");
    write("in_voltage1_raw", "-5\n");
    write("in_voltage1_offset", "5\n");
    write("in_voltage_scale", "0.5\n");
    write("in_accel_x_raw", "20\n");
    write("in_accel_scale", "0.25\n");
    write("temp1_input", "48500\n");
    write("fan1_input", "1200\n");
    write("temp", "51200\n");
    let folder = dir.path().display();
    let mut text = String::new();
    for (kind, readings) in [
        ("iio", "[\"in_voltage0\", \"in_voltage1\", \"in_accel_x\"]"),
        ("hwmon", "[\"temp1\", \"fan1\"]"),
        ("thermal", "[\"temp\"]"),
    ] {
        text.push_str(&format!(
            "[source.{kind}]\nkind = \"{kind}\"\ndevice = \"{folder}\"\nreadings = {readings}\nsample_ms = 50\n"
        ));
    }
    let channels = [
        ("iio", "in_voltage0", 500.0),
        ("iio", "in_voltage1", 0.0),
        ("iio", "in_accel_x", 5.0),
        ("hwmon", "temp1", 48.5),
        ("hwmon", "fan1", 1200.0),
        ("thermal", "temp", 51.2),
    ];
    for (i, (source, column, _)) in channels.iter().enumerate() {
        text.push_str(&format!(
            "[channel.c{i}]\nsource = \"{source}\"\ncolumn = \"{column}\"\n[stream.c{i}]\nchannels = [\"c{i}\"]\n"
        ));
    }
    let daemon = Site::new(broker.port).with(&text).run();
    for (i, (_, column, value)) in channels.iter().enumerate() {
        let records = sub.wait_records(&format!("m/c{i}"), 2);
        let got = records[1].0["v"][format!("c{i}")].as_f64().expect("a value");
        assert!((got - value).abs() < 1e-9, "{column}: {got}");
    }
    write("temp1_input", "none\n");
    let faults = || sub.records("q/hwmon").pop().and_then(|(q, _)| q["faults"]["unreadable"].as_u64()).map(drop);
    eventually("an unreadable reading is reported", faults);
    let before = sub.records("m/c4").len();
    sub.wait_records("m/c4", before + 2);
    daemon.stop_well();
}

#[test]
fn what_is_wrong_with_a_source_is_told_by_its_key() {
    let cases = [
        ("framing = \"fixed\"\nframe_bytes = 9\nfields = [\"a:u8\"]", "framing", "one lost byte would shift"),
        ("framing = \"cobs\"\nstart = \"aa\"\nfields = [\"a:u8\"]", "start", "does not belong to `framing = \"cobs\"`"),
        ("framing = \"cobs\"\nfields = [\"a:u17\"]", "fields", "invalid type: expected one of u8"),
        ("framing = \"cobs\"\nfields = [\"a:u8\", \"a:u8\"]", "fields", "`a` stands twice"),
        (
            "framing = \"cobs\"\ncheck = \"crc17\"\nfields = [\"a:u8\"]",
            "check",
            "`crc17` is invalid: expected one of `sum8`",
        ),
        (
            "framing = \"length\"\nstart = \"7e\"\nlength = \"f32\"\nfields = [\"a:u8\"]",
            "length",
            "expected one of `u8`",
        ),
        ("framing = \"delimited\"\nstart = \"0203\"\nstop = \"03\"\nfields = [\"a:u8\"]", "start", "must be one byte"),
        ("format = \"binary\"\nfields = [\"a:u8\"]", "format", "needs a framing that is not lines"),
        ("format = \"nmea\"\nsentences = { gll = [\"a\"] }", "sentences", "neither a sentence"),
        ("columns = [\"a\"]\npoll_ms = 100", "poll_ms", "needs `request`"),
        ("columns = [\"a\"]\nrequest = \"x\"\npoll_ms = 100\nanswer_ms = 200", "answer_ms", "longer than `poll_ms`"),
        (
            "kind = \"modbus-rtu\"\n[source.s.registers]\na = { slave = 0, address = 1 }",
            "slave",
            "0 is not within 1 to 247",
        ),
        (
            "kind = \"modbus-rtu\"\n[source.s.registers]\na = { address = 1, type = \"u24\" }",
            "type",
            "expected a type of registers",
        ),
        ("kind = \"modbus-rtu\"\n[source.s.registers]\na = { slave = 1 }", "address", "is needed"),
        ("kind = \"gpio\"\nchip = \"x\"\n[source.s.lines]\na = { read = \"level\" }", "line", "is needed"),
        (
            "kind = \"gpio\"\nchip = \"x\"\n[source.s.lines]\na = { line = 1, read = \"speed\" }",
            "read",
            "`speed` is invalid: expected one of",
        ),
        ("kind = \"iio\"\ndevice = \"x\"\nreadings = [\"a\", \"../b\"]", "readings", "no reading's name"),
        ("kind = \"tty\"\ncolumns = [\"a\"]", "kind", "`tty` is invalid: expected one of `serial`"),
    ];
    for (text, key, why) in cases {
        let path = if text.contains("gpio") || text.contains("iio") { "" } else { "path = \"/dev/null\"\n" };
        let site = Site::offline().with(&format!("[source.s]\n{path}{text}\n[channel.a]\n"));
        let done = rig::daemon::run(&["check", "--config", site.config().to_str().expect("path")]);
        let found = done.err.lines().any(|line| line.contains(&format!("{key}: ")) && line.contains(why));
        assert!(done.code == Some(78) && found, "{text}: {done:?}");
    }
    // Columns of several reads do not come together.
    let site = Site::offline().with(
        "[source.s]\nkind = \"modbus-tcp\"\naddress = \"127.0.0.1:502\"\n[source.s.registers]\na = { address = 1 }\n\
         b = { address = 9 }\n[channel.a]\n[channel.b]\n[pipeline.x]\nmodel = \"mean.onnx\"\nchannels = [\"a\", \"b\"]\nwindow_steps = 4\n",
    );
    std::fs::write(site.dir.path().join("mean.onnx"), rig::onnx::mean(&[1, 4, 2])).expect("model");
    let done = rig::daemon::run(&["check", "--config", site.config().to_str().expect("path")]);
    assert!(done.code == Some(78) && done.err.contains("pipeline.x.step_ms: is needed"), "{done:?}");
}
