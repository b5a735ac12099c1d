//! What devices write according to their data sheets and the sketches that people copy, from bytes to rows: each with the
//! configuration that reads it, what is good, and what is bad and why.

use crate::{
    config::{Channel, Config, Port},
    flow::{Clk, Flaw, Quality, SourceId, Stamp},
    signal::decode::{Decoder, Row},
    source::framing::Cutter,
};

/// Plays bytes through framing and decoder of a source; a text for each frame that is a row or is refused.
pub(super) fn rows(keys: &str, bytes: &[u8]) -> Vec<String> {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("c.toml");
    std::fs::write(&file, format!("[source.s]\npath = \"/dev/x\"\n{keys}\n")).expect("write");
    let config = match Config::local(Some(&file)) {
        Ok(config) => config,
        Err(problems) => return problems.iter().map(|p| format!("problem {}: {}", p.key, p.why)).collect(),
    };
    let channels: Vec<&Channel> = config.channels_of(SourceId(0)).iter().map(|i| &config.channels[*i]).collect();
    let Port::Serial(serial) = &config.sources[0].port else { unreachable!("a serial source") };
    let (mut cutter, mut decoder) = (Cutter::new(serial), Decoder::new(&config.sources[0], &channels));
    let (mut row, mut shown, mut at) = (Row::default(), Vec::new(), 0);
    let value = |row: &Row, i: usize| match row.quality[i] {
        Quality::Good => format!("{}={}", channels[i].name, row.values[i]),
        other => format!("{}:{}", channels[i].name, other.word()),
    };
    // A read brings what came: the ends of frames lie anywhere in it.
    for read in bytes.chunks(11) {
        let cut = cutter.feed(read);
        for &(from, to) in &cut.ranges {
            at += 500_000_000;
            let stamp = Stamp { boot_ns: at, wall_ms: None, clk: Clk::Unset };
            let frame = cut.bytes.get(from as usize..to as usize);
            let flaw = Flaw::ALL.into_iter().find(|flaw| flaw.mark() == (from, to)).unwrap_or(Flaw::Garbage);
            match decoder.decode(frame.ok_or(flaw), stamp, &mut row) {
                Err(why) => shown.push(format!("refused {}", why.word())),
                Ok(false) => {}
                Ok(true) => {
                    let own = row.t_ns.map(|t| format!("@{}", t / 1_000_000)).into_iter();
                    let values = (0..channels.len()).filter(|i| row.quality[*i] != Quality::Absent);
                    let all: Vec<String> = own.chain(values.map(|i| value(&row, i))).collect();
                    shown.push(all.join(" "));
                }
            }
        }
    }
    shown
}

/// A device: what the configuration says, what it sends, what its owner expects.
pub(super) type Sheet = (&'static str, &'static str, &'static [u8], &'static [&'static str]);

fn wrong(sheets: &[Sheet]) -> Vec<String> {
    let differs = |(name, keys, bytes, expected): &Sheet| {
        let got = rows(keys, bytes);
        (got != *expected).then(|| format!("{name}\n  expected {expected:?}\n  got      {got:?}"))
    };
    sheets.iter().filter_map(differs).collect()
}

pub(super) fn check(sheets: &[Sheet]) {
    let wrong = wrong(sheets);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), sheets.len(), wrong.join("\n"));
}

#[test]
fn scales() {
    check(&[
        (
            "Mettler Toledo SICS",
            r#"format = "pattern"
patterns = ['S S +(?<g>[-0-9.]+) g', 'S (?<g>D) .*', 'S (?<g>[I+-])', '(?<g>E[SLT])']
words = { D = "bad:unstable", I = "bad:invalid", "+" = "bad:overload", "-" = "bad:underload", ES = "bad:invalid" }
[channel.g]"#,
            b"S S     436.12 g\r\nS D     436.05 g\r\nS S      -0.03 g\r\nS I\r\nS +\r\nS -\r\nES\r\nS S  436.12 oz\r\n",
            &[
                "g=436.12",
                "g:bad:unstable",
                "g=-0.03",
                "g:bad:invalid",
                "g:bad:overload",
                "g:bad:underload",
                "g:bad:invalid",
                "refused unmatched",
            ],
        ),
        (
            "Sartorius SBI, 22 characters",
            r#"format = "fixed"
columns = ["id:6", "g:9", "unit:4"]
[channel.g]
[channel.stable]
column = "unit"
words = { "g" = 1, "" = 0 }"#,
            b"N     +  153.21 g  \r\nN     -    0.04 g  \r\nN     +  153.19    \r\nStat       High    \r\n",
            &["g=153.21 stable=1", "g=-0.04 stable=1", "g=153.19 stable=0", "g:bad:not_a_number stable=0"],
        ),
        (
            "Sartorius SBI, pattern",
            r#"format = "pattern"
patterns = ['\w +(?<g>[-+] *[0-9.]+) g', '\w +(?<g>[-+]) *[0-9.]+', '.*(?<g>High|Low)']
words = { "+" = "bad:unstable", "-" = "bad:unstable", High = "bad:overload", Low = "bad:underload" }
[channel.g]"#,
            b"N     +  153.21 g  \r\nN     -    0.04 g  \r\nN     +  153.19    \r\nStat       High    \r\n",
            &["g=153.21", "g=-0.04", "g:bad:unstable", "g:bad:overload"],
        ),
        (
            "Ohaus, ? while it moves",
            "columns = [\"kg\"]\nsuffix = \"kg\"\n[channel.kg]",
            b"     12.340 kg \r\n     12.338 kg ?\r\n    -0.005 kg\r\n",
            &["kg=12.34", "kg:bad:not_a_number", "kg=-0.005"],
        ),
        (
            "A&D, OL with a number that is none",
            "columns = [\"\", \"g\"]\nsuffix = \"g\"\n[channel.g]",
            b"ST,+00123.45  g\r\nOL,+9999999E+19\r\nST,-00000.12  g\r\n",
            &["g=123.45", "g:bad:not_a_number", "g=-0.12"],
        ),
        (
            "GSV-2 load cell, mV/V",
            "columns = [\"x\"]\nsuffix = \"mV/V\"\n[channel.x]",
            b"+0.12345 mV/V\r\n-1.00000 mV/V\r\n",
            &["x=0.12345", "x=-1"],
        ),
        (
            "Kern, sign apart, unit and state letters",
            r#"format = "pattern"
patterns = ['(?<kg>[-+]? *[0-9.]+) kg +S', '(?<kg>[-+]? *[0-9.]+ kg +D)']
words = {}
[channel.kg]"#,
            b"+   1.234 kg  S\r\n-   0.010 kg  S\r\n+   1.230 kg  D\r\n",
            &["kg=1.234", "kg=-0.01", "kg:bad:not_a_number"],
        ),
    ]);
}

#[test]
fn multimeters() {
    check(&[
        (
            "SCPI overflow and not a number",
            "columns = [\"v\"]\n[channel.v]",
            b"+1.04530000E-05\n+9.90000000E+37\n-9.9E37\n+9.91E+37\n9.9E+36\n",
            &[
                "v=0.000010453",
                "v:bad:overload",
                "v:bad:underload",
                "v:bad:not_a_number",
                "v=9900000000000000000000000000000000000",
            ],
        ),
        (
            "Keithley 2000 with units",
            "columns = [\"v\", \"t\", \"n\"]\n[channel.v]\nsuffix = \"VDC\"\n[channel.t]\nsuffix = \"SECS\"",
            b"+1.2345E+00VDC,+1234.567SECS,+00001RDNG#\n+9.9E+37VDC,+1235.567SECS,+00002RDNG#\n",
            &["t=1234.567 v=1.2345", "t=1235.567 v:bad:overload"],
        ),
        (
            "Agilent 34970A scan",
            "columns = [\"a\", \"b\", \"c\"]\n[channel.a]\n[channel.b]\n[channel.c]",
            b"+2.61920000E+01,+2.70050000E+01,+9.90000000E+37\n",
            &["a=26.192 b=27.005 c:bad:overload"],
        ),
        (
            "Fluke 28x QM",
            r#"format = "pattern"
patterns = ['(?<v>[-+0-9.E]+),VDC,NORMAL,NONE', '[^,]*,VDC,(?<v>\w+),\w+', '[0-9]']
words = { OL = "bad:overload", OL_MINUS = "bad:underload" }
[channel.v]"#,
            b"0\r2.3456E0,VDC,NORMAL,NONE\r0\r9.99999999E37,VDC,OL,NONE\r0\r-12.5E-3,VDC,NORMAL,NONE\r",
            &["v=2.3456", "v:bad:overload", "v=-0.0125"],
        ),
        (
            "Fluke 189 QM",
            r#"format = "pattern"
patterns = ['QM,(?<v>.*) V DC', 'QM,(?<v>.*)mV DC', '[01]']
words = { OL = "bad:overload" }
[channel.v]"#,
            b"0\rQM,+0.5995 V DC\r0\rQM,+OL V DC\r",
            &["v=0.5995", "v:bad:not_a_number"],
        ),
        (
            "Fluke, V and mV",
            "columns = [\"\", \"v\"]\nsuffix = { \"V DC\" = 1, \"mV DC\" = 0.001 }\n[channel.v]",
            b"QM,+0.5995 V DC\rQM,+12.34 mV DC\rQM,+1.2 V AC\r",
            &["v=0.5995", "v=0.01234", "v:bad:not_a_number"],
        ),
        (
            "UT61/Metex 14 bytes",
            r#"format = "pattern"
patterns = ['DC +(?<v>[-0-9.]+) +V', 'DC +(?<v>-?\.?O.?L) +.?V']
[channel.v]
words = { ".OL" = "bad:overload" }"#,
            b"DC  1.234   V\rDC -0.567   V\rDC   .OL  MV\r",
            &["v=1.234", "v=-0.567", "v:bad:overload"],
        ),
    ]);
}

#[test]
fn weather_and_climate() {
    check(&[
        (
            "Vaisala PTU300",
            r#"format = "pattern"
patterns = ['P= *(?<p>\S+) hPa +T= *(?<t>\S+) .C +RH= *(?<rh>\S+) %RH']
[channel.p]
[channel.t]
[channel.rh]"#,
            b"P= 1013.25 hPa T= 23.1 'C RH= 45.2 %RH\r\nP= 1013.26 hPa T= **** 'C RH= **** %RH\r\n",
            &["p=1013.25 rh=45.2 t=23.1", "p=1013.26 rh:bad:not_a_number t:bad:not_a_number"],
        ),
        (
            "Vaisala HMT330 by labels",
            r#"format = "keyvalue"
delimiter = ";"
[channel.t]
column = "T"
suffix = "'C"
[channel.rh]
column = "RH"
suffix = "%RH""#,
            b"RH= 33.0 %RH;T= 22.1 'C;Tdf= 5.1 'C\r\nRH= 33.1%RH;T=-2.1'C\r\n",
            &["rh=33 t=22.1", "rh=33.1 t=-2.1"],
        ),
        (
            "Vaisala WXT536, messages of several kinds",
            r#"format = "keyvalue"
delimiter = ","
[channel.dir]
column = "Dm"
suffix = "D"
[channel.wind]
column = "Sm"
suffix = "M"
[channel.t]
column = "Ta"
suffix = "C""#,
            b"0R1,Dn=236D,Dm=283D,Dx=031D,Sn=0.0M,Sm=1.0M,Sx=2.2M\r\n0R2,Ta=23.6C,Ua=14.2P,Pa=1026.6H\r\n0R1,Dm=283#,Sm=0.0#\r\n",
            &[
                "dir=283 t:missing wind=1",
                "dir:missing t=23.6 wind:missing",
                "dir:bad:not_a_number t:missing wind:bad:not_a_number",
            ],
        ),
        (
            "Vaisala WXT536, a pattern for each kind",
            r#"format = "pattern"
patterns = ['0R1,.*Dm=(?<dir>[^,]*)D,.*Sm=(?<wind>[^,]*)M,.*', '0R2,Ta=(?<t>[^,]*)C,.*', '0R.*']
[channel.dir]
[channel.wind]
[channel.t]"#,
            b"0R1,Dn=236D,Dm=283D,Dx=031D,Sn=0.0M,Sm=1.0M,Sx=2.2M\r\n0R2,Ta=23.6C,Ua=14.2P,Pa=1026.6H\r\n0R1,Dm=283#,Sm=0.0#\r\n",
            &["dir=283 wind=1", "t=23.6"],
        ),
        (
            "Gill WindSonic",
            r#"format = "pattern"
check = "xor8"
check_mark = "\u0003"
check_skip_bytes = 1
patterns = ['Q,(?<dir>[0-9]*),(?<wind>[0-9.]+),M,00,', '.*,(?<wind>[0-9A-F][0-9A-F]),']
words = { "04" = "bad:fault" }
[channel.dir]
[channel.wind]"#,
            b"\x02Q,229,002.74,M,00,\x0316\r\n\x02Q,,000.04,M,00,\x032A\r\n\x02Q,229,002.75,M,00,\x0316\r\n",
            &["dir=229 wind=2.74", "dir:bad:not_a_number wind=0.04", "refused checksum"],
        ),
        (
            "Arduino BME680",
            r#"format = "keyvalue"
block_end = "Approx. Altitude"
[channel.t]
column = "Temperature"
suffix = "*C"
[channel.p]
column = "Pressure"
suffix = "hPa"
[channel.gas]
column = "Gas"
suffix = "KOhms""#,
            b"Temperature = 23.45 *C\r\nPressure = 1013.25 hPa\r\nHumidity = 45.67 %\r\nGas = 12.34 KOhms\r\nApprox. Altitude \
              = 123.45 m\r\n\r\n",
            &["gas=12.34 p=1013.25 t=23.45"],
        ),
        (
            "Arduino DHT tester",
            r#"format = "pattern"
patterns = ['Humidity: (?<rh>\S+)% +Temperature: (?<t>\S+)°C .*', 'Failed to read.*']
[channel.rh]
[channel.t]"#,
            "Humidity: 45.00%  Temperature: 23.50°C 74.30°F  Heat index: 23.1°C 73.6°F\r\nFailed to read from DHT sensor!\r\n\
              Humidity: nan%  Temperature: nan°C nan°F\r\n".as_bytes(),
            &["rh=45 t=23.5", "rh:bad:not_a_number t:bad:not_a_number"],
        ),
        (
            "Arduino DS18B20, disconnected is -127",
            r#"format = "keyvalue"
label_end = ":"
words = { "-127" = "bad:fault", "85" = "bad:invalid" }
[channel.t]
column = "Temperature for the device 1 (index 0) is""#,
            b"Requesting temperatures...DONE\r\nTemperature for the device 1 (index 0) is: 23.50\r\nTemperature for the \
              device 1 (index 0) is: -127.00\r\nTemperature for the device 1 (index 0) is: 85.00\r\n",
            &["refused unmatched", "t=23.5", "t:bad:fault", "t:bad:invalid"],
        ),
        (
            "Arduino plotter",
            "format = \"keyvalue\"\ndelimiter = \",\"\nlabel_end = \":\"\n[channel.temp]\n[channel.ax]",
            b"temp:23.5,hum:40,ax:-0.03\r\ntemp:nan,hum:41,ax:0.02\r\n",
            &["ax=-0.03 temp=23.5", "ax=0.02 temp:bad:not_a_number"],
        ),
        (
            "MPU6050, bars between",
            "format = \"keyvalue\"\ndelimiter = \"|\"\n[channel.x]\ncolumn = \"aX\"\n[channel.t]\ncolumn = \"tmp\"",
            b"aX = 0.12 | aY = -0.03 | aZ = 1.01 | tmp = 24.5\r\n",
            &["t=24.5 x=0.12"],
        ),
        (
            "MPU6050 of jrowberg, tabs",
            "delimiter = \"\\t\"\ncolumns = [\"\", \"ax\", \"ay\", \"az\", \"\", \"\", \"\"]\n[channel.ax]\n[channel.az]",
            b"a/g:\t123\t-45\t16384\t1\t2\t3\r\n",
            &["ax=123 az=16384"],
        ),
        (
            "Davis LOOP, a frame with a CRC",
            r#"framing = "fixed"
start = "4c 4f 4f"
frame_bytes = 15
check = "crc16-xmodem"
check_order = "big"
fields = ["_:2", "bar:u16le", "t:i16le", "rh:u8", "_:3"]
[channel.bar]
scale = 0.001
[channel.t]
scale = 0.1
max = 200
[channel.rh]
max = 100"#,
            b"LOO\x00\x01\x30\x75\xf5\x02\x2d\x00\x00\x00\x9d\xadLOO\x00\x01\x30\x75\xff\x7f\xff\x00\x00\x00\x00\x00",
            &["bar=30 rh=45 t=75.7", "refused checksum"],
        ),
        (
            "Plantower PMS5003, a sum of 16 bits",
            r#"framing = "length"
start = "42 4d"
length = "u16be"
length_beside_bytes = 4
check = "sum16"
check_order = "big"
fields = ["_:2", "pm2:u16be", "_:8"]
[channel.pm2]"#,
            b"\x42\x4d\x00\x0e\x00\x05\x00\x09\x00\x0a\x00\x01\x00\x02\x00\x03\x00\xbb\
              \x42\x4d\x00\x0e\x00\x05\x00\x19\x00\x0a\x00\x01\x00\x02\x00\x03\x00\xbb",
            &["pm2=9", "refused checksum"],
        ),
        (
            "MH-Z19, the sum is 0",
            r#"framing = "fixed"
start = "ff 86"
frame_bytes = 9
check = "sum8-zero"
check_skip_bytes = 1
request_hex = "ff 01 86 00 00 00 00 00 79"
fields = ["co2:u16be", "t:u8", "_:3"]
[channel.co2]
[channel.t]
offset = -40"#,
            b"\xff\x86\x02\x60\x47\x00\x00\x00\xd1\xff\x86\x03\x60\x47\x00\x00\x00\xd1",
            &["co2=608 t=31", "refused checksum"],
        ),
        (
            "SDS011, a stop byte behind the sum",
            r#"framing = "fixed"
start = "ab aa c0"
frame_bytes = 10
check = "sum8"
check_skip_bytes = 3
fields = ["pm2:u16le", "pm10:u16le", "_:2"]
[channel.pm2]
scale = 0.1
[channel.pm10]
scale = 0.1"#,
            b"\xaa\xc0\xd4\x04\x3a\x0a\xa1\x60\x1d\xab\xaa\xc0\xd4\x04\x3a\x0a\xa1\x60\x1d\xab\xaa",
            &["pm10=261.8 pm2=123.60000000000001"],
        ),
    ]);
}

#[test]
fn power_meters_and_batteries() {
    check(&[
        (
            "DSMR P1: a value behind its time, gas and the peak of a month",
            r#"format = "keyvalue"
label_end = "("
block_end = "!"
block_check = "crc16-arc"
frame_max_bytes = 4096
[channel.gas]
column = "0-1:24.2.1[1]"
suffix = "*m3)"
[channel.kw]
column = "1-0:1.7.0"
suffix = "*kW)"
[channel.kwh]
column = "1-0:1.8.1"
suffix = "*kWh)""#,
            b"/KFM5KAIFA-METER\r\n\r\n1-0:1.8.1(000123.456*kWh)\r\n1-0:1.7.0(00.332*kW)\r\n0-1:24.2.1(210102030405W)\
              (00012.345*m3)\r\n!FF16\r\n",
            &["gas=12.345 kw=0.332 kwh=123.456"],
        ),
        (
            "IEC 62056-21 without a check of the block",
            r#"format = "keyvalue"
label_end = "("
block_end = "!"
[channel.kwh]
column = "1-0:1.8.0*255"
suffix = "*kWh)""#,
            b"/ESY5Q3DA1024 V3.04\r\n\r\n1-0:0.0.0*255(0273011003684)\r\n1-0:1.8.0*255(00026107.7034231*kWh)\r\n!\r\n\
              /ESY5Q3DA1024 V3.04\r\n\r\n1-0:1.8.0*255(00026107.8*kWh)\r\n!\r\n",
            &["refused unmatched", "kwh=26107.7034231", "refused unmatched", "kwh=26107.8"],
        ),
        (
            "Linky, historic",
            r#"format = "pattern"
patterns = ['PAPP (?<va>[0-9]+) .', 'IINST (?<a>[0-9]+) .', '[A-Z0-9]+ .*']
line_end = "\r"
[channel.va]
[channel.a]"#,
            b"\x02\nADCO 012345678901 B\r\nIINST 003 Z\r\nPAPP 00750 -\r\nMOTDETAT 000000 B\r\x03",
            &["a=3", "va=750"],
        ),
        (
            "VE.Direct, words and hex",
            r#"format = "keyvalue"
label_end = "\t"
block_end = "Checksum"
words = { ON = 1, OFF = 0 }
[channel.load]
column = "LOAD"
[channel.pid]
column = "PID"
base = "hex"
[channel.v]
column = "V"
scale = 0.001"#,
            b"\r\nPID\t0xA053\r\nSER#\tHQ2209\r\nV\t12810\r\nLOAD\tON\r\nChecksum\t\x99\r\nPID\t0xA053\r\nV\t-12\r\n\
              LOAD\tOFF\r\nChecksum\t\x10\r\n",
            &["load=1 pid=41043 v=12.81", "load=0 pid=41043 v=-0.012"],
        ),
        (
            "Axpert inverter, two bytes of a CRC behind the text",
            r#"format = "pattern"
patterns = ['\((?<vin>[0-9.]+) (?<hz>[0-9.]+) (?:\S+ ){5}(?<v>[0-9.]+) .*']
request_hex = "51 50 49 47 53 b7 a9 0d"
[channel.vin]
[channel.hz]
[channel.v]"#,
            b"(227.2 50.0 230.2 50.0 0000 0000 000 415 53.50 012 095 0042 00010110 00 00 03213 010\xab\xcd\r",
            &["hz=50 v=415 vin=227.2"],
        ),
        (
            "MightyOhm Geiger counter",
            "columns = [\"\", \"cps\", \"\", \"cpm\", \"\", \"usv\", \"\"]\n[channel.cpm]\n[channel.usv]",
            b"CPS, 1, CPM, 23, uSv/hr, 0.13, SLOW\r\n",
            &["cpm=23 usv=0.13"],
        ),
        (
            "Torque sensor, labels and units",
            "format = \"keyvalue\"\ndelimiter = \";\"\nlabel_end = \":\"\n[channel.m]\ncolumn = \"M\"\nsuffix = \"Nm\"\n\
              [channel.n]\ncolumn = \"N\"\nsuffix = \"rpm\"",
            b"M:+012.34 Nm;N:01500 rpm;P:001.94 kW;\r\nM:-000.01 Nm;N:00000 rpm;P:000.00 kW;\r\nM:ERR Nm;N:1 rpm\r\n",
            &["m=12.34 n=1500", "m=-0.01 n=0", "m:bad:not_a_number n=1"],
        ),
    ]);
}
