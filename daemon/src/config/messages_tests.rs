//! What `check` says of wrong configurations, by section of the field's work: text, Modbus, brokers, models. Each message names the
//! line, the key, the reason, and what is right; a wrong word that decides what other keys mean is reported alone.

use super::{Config, Problem};

/// All problems of `toml`, a line each, without the file's name. The first line of `toml` is line 1.
fn messages(toml: &str) -> String {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::write(dir.path().join("m.onnx"), "never opened").expect("model");
    let file = dir.path().join("c.toml");
    std::fs::write(&file, toml.trim_start()).expect("write");
    let line = |p: &Problem| format!("{}: {}: {}", p.at.line, p.key, p.why);
    match Config::local(Some(&file)) {
        Ok(_) => String::new(),
        Err(problems) => problems.iter().map(line).collect::<Vec<_>>().join("\n"),
    }
}

/// Keys below a head, and the whole text that `check` says, or its beginning where it ends with `…`.
fn assert_each(head: &str, cases: &[(&str, &str)]) {
    for (keys, wanted) in cases {
        let text = messages(&format!("{head}\n{keys}\n"));
        let fits = match wanted.strip_suffix('…') {
            Some(start) => text.starts_with(start) && text.lines().count() == start.lines().count(),
            None => text == *wanted,
        };
        assert!(fits, "{keys}\nsays\n{text}\nnot\n{wanted}");
    }
}

#[test]
fn wrong_lines_of_text_are_named_with_line_key_reason_and_what_is_right() {
    let head = "[source.s]\npath = \"/dev/x\"";
    assert_each(
        head,
        &[
            (
                "format = \"regex\"\npatterns = ['x']",
                "3: source.s.format: `regex` is invalid: expected one of `csv`, `fixed`, `keyvalue`, `pattern`, `json`, \
                  `nmea`, `binary`",
            ),
            (
                "format = \"patern\"\npatterns = ['x']",
                "3: source.s.format: `patern` is invalid: expected one of `csv`, `fixed`, `keyvalue`, `pattern`, `json`, `nmea`, \
                 `binary`; did you mean `pattern`?",
            ),
            ("format = \"pattern\"\npatterns = ['T=(?<t>.*']", "4: source.s.patterns: `T=(?<t>.*`: unclosed group"),
            (
                "columns = [\"t\"]\ndecimal = \",\"",
                "4: source.s.decimal: is the delimiter between the columns too: set `delimiter` to the one that the lines \
                  have, such as `\";\"`",
            ),
            (
                "delimiter = \"tab\"\ncolumns = [\"t\"]",
                "3: source.s.delimiter: must be one character, `\"\\t\"` for a tab; `\" \"` stands for any number of blanks \
                  and tabs",
            ),
            (
                "columns = [\"t\"]\nwords = { OL = \"overload\" }",
                "4: source.s.words: `OL` = `overload`: expected a number, `missing` or one of `bad:overload`, `bad:underload`, \
                 `bad:fault`, `bad:unstable`, `bad:invalid`; did you mean `bad:overload`?",
            ),
            (
                "columns = [\"at\", \"t\"]\ntime = \"at\"\ntime_format = \"dd/MM/yyyy\"",
                "5: source.s.time_format: `dd/MM/yyyy`: expected one of `ns`, `us`, `ms`, `s`, `civil`, or a pattern such as \
                 `%d/%m/%Y %H:%M:%S`",
            ),
            (
                "format = \"fixed\"\ncolumns = [\"kg\"]",
                "4: source.s.columns: `kg` is invalid: expected NAME:WIDTH, such as `kg:9`",
            ),
            (
                "format = \"nmea\"\nsentences = { MWV = [\"a\", \"only:R\", \"v:knot\"] }",
                "4: source.s.sentences: `MWV`: `v:knot`: unknown word `knot`; did you mean `knots`?",
            ),
            (
                "request = \"SI\\r\"\nanswer_ms = 2000\ncolumns = [\"kg\"]",
                "4: source.s.answer_ms: 2000 is longer than `poll_ms`, which is 1000: a device must answer before it is asked \
                  again",
            ),
            ("columns = [\"t\"]\n[channel.temp]", "4: channel.temp.column: unknown column `temp`: the source has t…"),
            (
                "framing = \"cobs\"\nfields = [\"x:float\"]",
                "4: source.s.fields: `x:float`: invalid type: expected one of u8, i8, u16, i16, u24, i24, u32, i32, u64, i64, \
                  f32, f64, \
                 bcd16, bcd32, bcd64, with `le` or `be` behind, and `[N]` for N samples; did you mean `f32`?",
            ),
        ],
    );
}

#[test]
fn wrong_modbus_sources_are_named_with_line_key_reason_and_what_is_right() {
    let head = "[source.m]\nkind = \"modbus-tcp\"\naddress = \"10.0.0.7:502\"";
    assert_each(
        head,
        &[
            ("", "1: source.m.registers: is needed: a table for each column, with slave, read, address and type"),
            (
                "registers = { v = { adress = 1 } }",
                "4: source.m.registers.v.address: is needed: the register's address from 0 (register 40001 of the old way to count is 0)\n\
                 4: source.m.registers.v.adress: unknown key; did you mean `address`?",
            ),
            (
                "registers = { v = { address = 1, type = \"float\" } }",
                "4: source.m.registers.v.type: `float` is invalid: expected a type of registers, such as `u16`, `i32`, `f32`, \
                  `bcd16`; the order \
                 of their bytes is `order`; did you mean `f32`?",
            ),
            (
                "registers = { v = { address = 1, type = \"f32\", order = \"little\" } }",
                "4: source.m.registers.v.order: `little` is invalid: expected one of `abcd` (most significant byte first), `cdab`, \
                 `badc`, `dcba`; did you mean `dcba`?",
            ),
            (
                "registers = { v = { address = \"0x10\", type = \"float32\", order = \"big\" } }",
                "4: source.m.registers.v.address: must be an integer, not text: write `address = 0x10`, without quotes\n\
                 4: source.m.registers.v.order: `big` is invalid: expected one of `abcd` (most significant byte first), `cdab`, \
                 `badc`, `dcba`; did you mean `abcd`?\n\
                 4: source.m.registers.v.type: `float32` is invalid: expected a type of registers, such as `u16`, `i32`, `f32`, \
                 `bcd16`; the order of their bytes is `order`; did you mean `f32`?",
            ),
            (
                "registers = { v = { address = 1, slave = 300 } }",
                "4: source.m.registers.v.slave: 300 is not within 0 to 255",
            ),
            (
                "registers = { v = { address = 1, type = \"i16\", mask = 15 } }",
                "4: source.m.registers.v.mask: belongs to an unsigned register: `u16`, `u32` or `u64`",
            ),
            (
                "registers = { v = { address = 1, read = \"coils\" } }",
                "4: source.m.registers.v.read: `coils` is invalid: expected one of `holding`, `input`, `coil`, `discrete`; \
                  did you mean \
                 `coil`?",
            ),
            (
                "registers = { v = { address = 65535, type = \"u32\" } }",
                "4: source.m.registers.v.address: a value of this type needs more registers than there are up to address 65535",
            ),
            (
                "echo = true\nregisters = { v = { address = 1 } }",
                "4: source.m.echo: belongs to RTU frames: Modbus TCP has no echo",
            ),
            (
                "registers = { v = { address = 1 } }\n[channel.v]\n[alarm.a]\nchannel = \"v\"\nabove = 5\n[output.o]\n\
                 alarms = [\"a\"]\nmodbus = { source = \"m\", coil = 1, register = 2 }",
                "11: output.o.modbus.register: cannot be used together with `coil`: an output writes one of them",
            ),
        ],
    );
    let kind = messages(
        "[source.m]\nkind = \"modbus\"\naddress = \"h:502\"\nregisters = { v = { address = 1 } }\n[channel.v]",
    );
    let wanted = "2: source.m.kind: `modbus` is invalid: expected one of `serial`, `modbus-rtu`, `modbus-tcp`, `gpio`, `iio`, \
    `hwmon`, \
                  `thermal`; did you mean `modbus-rtu` or `modbus-tcp`?";
    assert_eq!(kind, wanted, "and nothing of the keys that belong to the right kind");
    let host = messages("[source.m]\nkind = \"modbus-tcp\"\naddress = \"h\"\nregisters = { v = { address = 1 } }");
    assert_eq!(host, "3: source.m.address: `h` is invalid: expected HOST:PORT; the usual port of Modbus is 502");
}

#[test]
fn channel_that_no_model_can_be_of_is_refused_and_a_relative_state_folder_is_remarked() {
    for channel in ["the stable one", "a/b", "", ".hidden"] {
        let said = messages(&format!("[models]\nchannel = \"{channel}\""));
        assert!(said.starts_with(&format!("2: models.channel: no model can be of `{channel}`")), "{said}");
    }
    let of = |folder: &str| {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        let text = format!("[device]\nstate_dir = \"{folder}\"\n[models]\nchannel = \"canary-2\"\n");
        std::fs::write(&file, text).expect("write");
        Config::local(Some(&file)).expect("valid").advice().join("\n")
    };
    assert!(of("state").starts_with("device.state_dir: `state` lies in the folder that the daemon is started in"));
    assert_eq!(of("/data/kentledge"), "");
}

#[test]
fn address_of_a_manual_that_counts_from_40001_is_remarked() {
    let advice = |register: &str| {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        let text =
            format!("[source.m]\nkind = \"modbus-tcp\"\naddress = \"h:502\"\nregisters = {{ v = {{ {register} }} }}\n");
        std::fs::write(&file, text).expect("write");
        Config::local(Some(&file)).expect("valid").advice()
    };
    let wanted = "source m: `v` has address 40011: addresses count from 0; if 40011 is the number in a manual that begins \
    with 40001, \
                  write 10";
    assert_eq!(advice("address = 40011"), [wanted]);
    assert_eq!(advice("address = 30001, read = \"input\"").len(), 1);
    for usual in ["address = 40000", "address = 30001", "address = 50000", "address = 10001, read = \"coil\""] {
        assert_eq!(advice(usual), Vec::<String>::new(), "{usual}");
    }
}

#[test]
fn wrong_brokers_are_named_with_line_key_reason_and_what_is_right() {
    let of = |keys: &str| messages(&format!("[device]\nsite = \"s\"\n[mqtt]\n{keys}"));
    let must = "must be `mqtts://HOST[:PORT]`, or begin with `mqtt://`, `wss://` or `ws://`";
    for (keys, wanted) in [
        (
            "url = \"mqtt://b.example\"",
            "4: mqtt.url: b.example:1883: plain text is allowed to this machine only; use `mqtts://`, or set `allow_plaintext \
              = true`"
                .to_owned(),
        ),
        ("url = \"b.example:8883\"", format!("4: mqtt.url: {must}, not `b.example:8883`")),
        ("url = \"ssl://b.example\"", format!("4: mqtt.url: {must}; `ssl://` is invalid: did you mean `mqtts://`?")),
        ("url = \"mqtts://b/mqtt\"", "4: mqtt.url: `/mqtt` has no meaning here: only `wss://` and `ws://` have a path".into()),
        (
            "url = \"mqtts://b:99999\"",
            "4: mqtt.url: invalid address `b:99999`: expected HOST or HOST:PORT, with a port of 1 to 65535".into(),
        ),
        (
            "url = \"mqtts://b\"\nproxy = \"socks5://p:1080\"",
            "5: mqtt.proxy: `socks5://p:1080` is invalid: expected `http://HOST[:PORT]`; a user goes into `proxy_username` and \
             `proxy_password_file`"
                .into(),
        ),
        (
            "url = \"mqtts://b\"\ntopic_prefix = \"a/#\"",
            "5: mqtt.topic_prefix: `a/#` is invalid: `+` and `#` are wildcards: no topic to publish to may have them".into(),
        ),
        (
            "url = \"mqtts://b\"\npassword = \"secret\"",
            "5: mqtt.password: unknown key; did you mean `password_file`?".into(),
        ),
        ("url = \"mqtts://b\"\nkeepalive_s = 60", "5: mqtt.keepalive_s: unknown key; did you mean `keep_alive_s`?".into()),
        (
            "url = \"mqtts://b\"\nqos = 0",
            "5: mqtt.qos: cannot be set: every record is sent with QoS 1, because one that is sent with QoS 0 may be lost \
              unseen; a \
             broker that takes QoS 0 only says so, and gets it"
                .into(),
        ),
        ("url = \"mqtt://127.0.0.1\"\nalpn = [\"x\"]", "5: mqtt.alpn: works with TLS only: write `mqtts://` or `wss://`".into()),
        (
            "url = \"mqtts://b\"\npayload = \"jsn\"",
            "5: mqtt.payload: `jsn` is invalid: expected one of `json`, `cbor`; did you mean `json`?".into(),
        ),
    ] {
        assert_eq!(of(keys), wanted, "{keys}");
    }
}

#[test]
fn wrong_models_are_named_with_line_key_reason_and_what_is_right() {
    let head = "[models]\nallow_unsigned = true\n[source.s]\npath = \"/dev/x\"\ncolumns = [\"a\", \"b\"]\n[channel.a]\n\
    [channel.b]\n\
                [pipeline.p]\nmodel = \"m.onnx\"";
    let rest = |keys: &str| format!("channels = [\"a\", \"b\"]\nwindow_steps = 4\n{keys}");
    let with = [
        (
            "direction = \"lower\"",
            "12: pipeline.p.direction: `lower` is invalid: expected one of `high`, `low`; did you mean `low`?",
        ),
        ("state = [\"h\"]", "12: pipeline.p.state: must be a table, such as `{ h_out = \"h_in\" }`"),
        (
            "reduce = \"median\"",
            "12: pipeline.p.reduce: `median` is invalid: expected one of `max`, `mean`, `mse`, `rms`; did you mean `mean`?",
        ),
        ("classes = [\"ok\"]", "12: pipeline.p.classes: must be 2 to 64 names, not 1"),
        (
            "score = \"s\"\nreconstruction = \"r\"",
            "13: pipeline.p.reconstruction: does not go with `score`: both say what the score is",
        ),
        (
            "threshold = \"high\"",
            "12: pipeline.p.threshold: must be a number, or `{ false_alarms_per_week = 1 }`, not the text `high`",
        ),
        ("inputs = { x = \"c\" }", "12: pipeline.p.inputs: `x`: the pipeline has no channel `c`; expected one of a, b"),
        ("hop = 2", "12: pipeline.p.hop: unknown key; did you mean `hop_steps`?"),
        (
            "layout = \"chw\"",
            "12: pipeline.p.layout: `chw` is invalid: expected one of `steps_first`, `channels_first`",
        ),
        (
            "calibration = { windows = 0, factor = 2 }",
            "12: pipeline.p.calibration.windows: 0 is not within 2 to 100000",
        ),
        (
            "classes = [\"ok\", \"bad\"]\n[alarm.z]\npipeline = \"p\"\nclass = \"wrn\"\nprobability = 0.5",
            "15: alarm.z.class: the model has no class `wrn`: expected one of ok, bad",
        ),
        ("[alarm.z]\npipeline = \"pp\"", "13: alarm.z.pipeline: no pipeline is called `pp`; did you mean `p`?"),
    ];
    let with = with.map(|(keys, wanted)| (rest(keys), wanted));
    let with: Vec<(&str, &str)> = with.iter().map(|(keys, wanted)| (keys.as_str(), *wanted)).collect();
    assert_each(head, &with);
    assert_each(
        head,
        &[
            ("channels = [\"a\"]", "8: pipeline.p.window_steps: is needed: the rows of a window"),
            (
                "channels = [\"a\", \"bb\"]\nwindow_steps = 4",
                "10: pipeline.p.channels: no channel is called `bb`; did you mean `b`?",
            ),
        ],
    );
}

#[test]
fn wrong_value_is_reported_once_with_what_to_write_and_nothing_that_only_follows_from_it() {
    let source = "[source.s]\npath = \"/dev/x\"";
    assert_each(
        source,
        &[
            (
                "baud = \"9600\"\ncolumns = [\"t\"]",
                "3: source.s.baud: must be an integer, not text: write `baud = 9600`, without quotes",
            ),
            (
                "columns = \"t, h\"\n[channel.t]",
                "3: source.s.columns: must be a list of texts, not text: write `columns = [\"t\", \"h\"]`",
            ),
            (
                "framing = \"binary\"\nfields = [\"x:u16\"]",
                "3: source.s.framing: `binary` is invalid: expected one of…",
            ),
            (
                "framing = \"fixed\"\nframe_bytes = 8\nstart = 0xAA\nfields = [\"x:u16\"]",
                "5: source.s.start: must be text, not an integer: a text stands in quotes, `start = \"…\"`",
            ),
            ("format = \"pattern\"\npatterns = ['(']\n[channel.t]", "4: source.s.patterns: `(`: unclosed group"),
            (
                "requests = [\"01W\"]\ncolumns = [\"t\"]",
                "3: source.s.requests: must be a table of tables, not a list: each has a name, `[source.s.requests.NAME]`",
            ),
            ("format = \"nmea\"\nsentences = [\"RMC\"]", "4: source.s.sentences: must be a table: for each sentence…"),
        ],
    );
    let whole = [
        (
            "[source]\npath = \"/dev/x\"\ncolumns = [\"t\"]",
            "1: source: `columns` stands in `[source]` itself: write `[source.NAME]`…",
        ),
        (
            "[[source]]\npath = \"/dev/x\"",
            "1: source: must be a table of tables, not a list: each has a name, `[source.NAME]`",
        ),
        ("[channel.t]", "1: channel.t.source: there is no source: a section `[source.NAME]` is needed"),
        (
            "[source.m]\nkind = \"modbus-rtu\"\npath = \"/dev/x\"\nregisters = { v = 30001 }",
            "4: source.m.registers.v: must be a table, not an integer",
        ),
        (
            "[source.g]\nkind = \"gpio\"\nchip = \"c\"\nlines = { a = { line = -1 } }",
            "4: source.g.lines.a.line: must be the line's number within its chip, 0 to 4095, or its name",
        ),
    ];
    for (toml, wanted) in whole {
        let text = messages(toml);
        let fits = wanted
            .strip_suffix('…')
            .map_or(text == wanted, |start| text.starts_with(start) && text.lines().count() == 1);
        assert!(fits, "{toml}\nsays\n{text}\nnot\n{wanted}");
    }
}

#[test]
fn settings_that_can_never_work_are_refused() {
    assert_each(
        "[source.s]\npath = \"/dev/x\"",
        &[
            (
                "framing = \"fixed\"\nstart = \"aa\"\nframe_bytes = 4\ncheck = \"sum8\"\nfields = [\"x:u16\", \"y:u16\"]",
                "7: source.s.fields: have 4 bytes, and 4 of a frame less 1 of `start` and 1 of `check` are 2",
            ),
            (
                "framing = \"fixed\"\nstart = \"aa\"\nframe_bytes = 9\nfields = [\"x:u16\"]",
                "6: source.s.fields: have 2 bytes, and 9 of a frame less 1 of `start` and 0 of `check` are 8; `\"_:6\"` skips the rest",
            ),
            (
                "columns = [\"t\"]\ntime_format = \"s\"",
                "4: source.s.time_format: needs `time` beside it: the column with the sensor's clock",
            ),
            (
                "columns = [\"t\"]\nline_end = \"CRLF\"",
                "4: source.s.line_end: `CRLF` are letters here: write `line_end = \"\\r\\n\"`, in double quotes",
            ),
            (
                "columns = [\"t\"]\nline_end = '\\n'",
                "4: source.s.line_end: `\\n` are letters here: write `line_end = \"\\n\"`, in double quotes",
            ),
            ("columns = [\"\", \"_\"]", "1: source.s: gives no column: every name is empty or skipped"),
            (
                "format = \"nmea\"\nsentences = { RMC = [\"\", \"\"] }",
                "1: source.s: gives no column: every name is empty or skipped",
            ),
            ("framing = \"cobs\"\nfields = [\"_:4\"]", "1: source.s: gives no column: every name is empty or skipped"),
            (
                "columns = [\"t\"]\n[channel.t]\n[stream.x]\nchannels = [\"t\", \"t\"]",
                "6: stream.x.channels: `t` stands twice",
            ),
            (
                "columns = [\"t\"]\n[channel.t]\n[stream.x]\nchannels = [\"t\"]\nmode = \"stats\"",
                "5: stream.x.interval_ms: is needed with `mode = \"stats\"`",
            ),
            (
                "columns = [\"t\"]\n[channel.t]\n[stream.x]\nchannels = [\"t\"]\nevery = 10",
                "7: stream.x.every: belongs to `mode = \"decimate\"`",
            ),
        ],
    );
    let line = "chip = \"c\"\nline = 22\nalarms = [\"a\"]\n";
    let alarm = "[alarm.a]\nchannel = \"t\"\nabove = 1\n";
    let text = format!(
        "[source.s]\npath = \"/dev/x\"\ncolumns = [\"t\"]\n[channel.t]\n{alarm}[output.x]\n{line}[output.y]\n{line}"
    );
    assert_eq!(messages(&text), "8: output: `x` and `y` drive the same line: name all alarms in one output");
    let read = "[source.s]\nkind = \"gpio\"\nchip = \"c\"\nlines.t = { line = 22 }\n[channel.t]\n";
    assert_eq!(
        messages(&format!("{read}{alarm}[output.x]\n{line}")),
        "9: output: `x` drives the line that source `s` reads"
    );
    for (kind, readings, wanted) in [
        (
            "iio",
            "in_voltage0_raw",
            "4: source.s.readings: `in_voltage0_raw` is a file: the reading's name is `in_voltage0`",
        ),
        ("hwmon", "temp1_input", "4: source.s.readings: `temp1_input` is a file: the reading's name is `temp1`"),
    ] {
        assert_eq!(
            messages(&format!("[source.s]\nkind = \"{kind}\"\ndevice = \"d\"\nreadings = [\"{readings}\"]")),
            wanted
        );
    }
}
