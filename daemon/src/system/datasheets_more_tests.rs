//! What devices write, continued: process instruments, ships, handshakes, and values of several parts.

use super::datasheets_tests::{check, rows};

#[test]
fn process_instruments() {
    check(&[
        (
            "Pfeiffer TPG 262, two gauges with a status each",
            r#"format = "pattern"
patterns = [
  '0,(?<a>[^,]+),0,(?<b>.+)', '0,(?<a>[^,]+),(?<b>[1-6],).+',
  '(?<a>[1-6],)[^,]+,0,(?<b>.+)', '(?<a>[1-6],)[^,]+,(?<b>[1-6],).+',
]
words = { "1," = "bad:underload", "2," = "bad:overload", "3," = "bad:fault", "4," = "missing", "5," = "missing", "6," = "bad:invalid" }
[channel.a]
[channel.b]"#,
            b"0,+8.3400E-03,1,+5.0000E-04\r\n0,+1.0000E+00,0,+2.0000E+00\r\n2,+1.0000E+03,5,+0.0000E+00\r\n",
            &["a=0.00834 b:bad:underload", "a=1 b=2", "a:bad:overload b:missing"],
        ),
        (
            "Dimetix laser",
            r#"format = "pattern"
patterns = ['g0g(?<mm>[-+][0-9]+)', 'g0@(?<mm>E)[0-9]+']
words = { E = "bad:fault" }
[channel.mm]
scale = 0.1"#,
            b"g0g+00012345\r\ng0@E255\r\n",
            &["mm=1234.5", "mm:bad:fault"],
        ),
        (
            "Maxbotix, 5000 is no target",
            "format = \"pattern\"\npatterns = ['R(?<mm>[0-9]{4})']\nwords = { 5000 = \"bad:overload\" }\n[channel.mm]",
            b"R1234\rR5000\rR0300\rHRXL-MaxSonar-WRL\r",
            &["mm=1234", "mm:bad:overload", "mm=300", "refused unmatched"],
        ),
        (
            "Omron host link, digits before the terminator",
            "format = \"pattern\"\nline_end = \"*\\r\"\ncheck = \"xor8\"\ncheck_mark = \"\"\npatterns = \
              ['@00RD00(?<w>[0-9A-F]{4})']\nbase = \"hex\"\n[channel.w]",
            b"@00RD00102356*\r@00RD00FFFF01*\r@00RD00FFFF56*\r",
            &["w=4131", "refused checksum", "w=65535"],
        ),
        (
            "ELM327 without blanks",
            "format = \"pattern\"\nline_end = \"\\r\"\npatterns = ['>?410C(?<rpm>[0-9A-F]{4})', '>', '>?NO DATA']\nbase = \
              \"hex\"\n[channel.rpm]\nscale = 0.25",
            b"410C1AF8\r\r>410C1AF4\r\r>NO DATA\r\r>",
            &["rpm=1726", "rpm=1725"],
        ),
        (
            "Alicat",
            "delimiter = \" \"\ncolumns = [\"\", \"p\", \"t\", \"v\", \"m\", \"sp\", \"\"]\n[channel.p]\n[channel.m]",
            b"A +014.70 +025.00 +02.004 +02.004 000.00     Air\rA +014.71 +025.00 +02.004 +02.004 000.00     Air MOV\r",
            &["m=2.004 p=14.7", "refused columns"],
        ),
        (
            "Modbus ASCII by pattern",
            "format = \"pattern\"\nrequest = \":010300000002FA\\r\\n\"\npatterns = [':010304(?<a>[0-9A-F]{4})(?<b>[0-9A-F]{4})\
              [0-9A-F]{2}', '(?i):0183.*']\n[channel.a]\nbase = \"hex-i16\"\n[channel.b]\nbase = \"hex\"",
            b":010304FFF60102A1\r\n:01830276\r\n",
            &["a=-10 b=258"],
        ),
        (
            "Campbell, quoted NAN and time",
            "columns = [\"at\", \"n\", \"t\", \"rh\"]\ntime = \"at\"\ntime_format = \"civil\"\n[channel.t]\n[channel.rh]",
            b"\"2024-01-02 03:04:05\",123,12.3,\"NAN\"\r\n\"2024-01-02 03:04:06.5\",124,-7999,41\r\n",
            &["@1704164645000 rh:bad:not_a_number t=12.3", "@1704164646500 rh=41 t=-7999"],
        ),
        (
            "NUL between lines",
            "columns = [\"a\", \"b\"]\nline_end = \"\\u0000\"\n[channel.a]\n[channel.b]",
            b"1.5,2.5\x001.6,2.6\x00",
            &["a=1.5 b=2.5", "a=1.6 b=2.6"],
        ),
        (
            "Logger of ESPHome with colours",
            r#"format = "pattern"
patterns = [".*'Temp': Sending state (?<t>[-0-9.]+) .*", '.*']
[channel.t]"#,
            "\x1b[0;36m[D][sensor:127]: 'Temp': Sending state 23.40000 °C with 1 decimals of accuracy\x1b[0m\r\n\x1b[0;\
              32m[I][app:102]: ok\x1b[0m\r\n".as_bytes(),
            &["t=23.4"],
        ),
        (
            "rtl_433: one of several senders",
            r#"format = "pattern"
patterns = ['.*"id" : 1234,.*"temperature_C" : (?<t>[-0-9.]+).*', '\{.*\}']
[channel.t]"#,
            b"{\"time\" : \"2023-01-02 03:04:05\", \"model\" : \"Acurite-Tower\", \"id\" : 1234, \"battery_ok\" : 1, \
              \"temperature_C\" : 12.3}\n{\"model\" : \"Nexus\", \"id\" : 99, \"temperature_C\" : 40.0}\n",
            &["t=12.3"],
        ),
        (
            "Tasmota",
            "format = \"json\"\n[channel.t]\ncolumn = \"BME280.Temperature\"\n[channel.on]\ncolumn = \"POWER\"\nwords = { ON \
              = 1, OFF = 0 }",
            b"{\"Time\":\"2024-01-02T03:04:05\",\"BME280\":{\"Temperature\":21.5,\"Humidity\":null},\"POWER\":\"ON\"}\n\
              {\"BME280\":{\"Temperature\":null},\"POWER\":\"?\"}\n",
            &["on=1 t=21.5", "on:bad:not_a_number t:bad:not_a_number"],
        ),
    ]);
}

#[test]
fn ships() {
    check(&[
        (
            "several talkers, and sentences that are not of use",
            r#"format = "nmea"
[source.s.sentences]
GGA = ["", "lat:ddmm", "", "lon:ddmm", "", "", "sats", "hdop", "alt:m"]
HDT = ["hdg"]
VTG = ["", "", "", "", "kn"]
[channel.lat]
[channel.lon]
[channel.alt]
[channel.hdg]
[channel.kn]"#,
            b"!AIVDM,1,1,,A,13HOI:0P0000VOHLCnHQKwvL05Ip,0*23\r\n$GNGGA,001043.00,4404.14036,N,12118.85961,W,1,12,0.98,1113.0,\
              M,-21.3,M,,*47\r\n$GPGSV,1,1,00*79\r\n$HEHDT,271.1,T*2A\r\n$GPVTG,054.7,T,034.4,M,005.5,N,010.2,K*48\r\n",
            &["alt=1113 lat=44.06900600000001 lon=-121.31432683333333", "hdg=271.1", "kn=5.5"],
        ),
        (
            "Garmin's own sentence, u-blox's own selected by its number",
            r#"format = "nmea"
checksum = "optional"
[source.s.sentences]
PGRMZ = ["alt:m"]
PUBX = ["only:00", "", "lat:ddmm", "", "lon:ddmm", "", "h", "valid:G2|G3|D2|D3"]
[channel.alt]
[channel.h]"#,
            b"$PGRMZ,93,f,3*21\r\n$PUBX,00,081350.00,4717.113210,N,00833.915187,E,546.589,G3,2.1,2.0\r\n$PUBX,00,081351.00,\
              4717.113210,N,00833.915187,E,546.589,NF,2.1,2.0\r\n$PUBX,04,073731.00,091202,113851.00,1196,15D\r\n",
            &["alt=28.346400000000003", "h=546.589", "h:bad:invalid"],
        ),
        (
            "weather station",
            r#"format = "nmea"
checksum = "optional"
[source.s.sentences]
MDA = ["", "", "p:hPa", "", "air:\u00b0C"]
MTW = ["water:\u00b0C"]
RSA = ["starboard", "", "port"]
XDR = { "A:PITCH" = "pitch", "A:ROLL" = "roll" }
[channel.p]
[channel.air]
[channel.water]
[channel.starboard]
[channel.port]
[channel.pitch]
[channel.roll]"#,
            b"$WIMDA,29.92,I,1.0132,B,22.5,C,,,45.2,,10.1,C,20,T,,M,5.1,N,2.6,M\r\n$YXMTW,64.4,F\r\n$IIRSA,-2.3,A,,V\r\n\
              $IIRSA,-2.3,A,7.0,V\r\n$YXXDR,A,-1.4,D,PITCH,A,2.9,D,ROLL\r\n",
            &[
                "air=22.5 p=1013.2000000000002",
                "water=18.000000000000007",
                "port:missing starboard=-2.3",
                "port:bad:invalid starboard=-2.3",
                "pitch=-1.4 roll=2.9",
            ],
        ),
        (
            "tag blocks before a sentence",
            "format = \"nmea\"\nsentences = { HDT = [\"hdg\"] }\n[channel.hdg]",
            b"\\s:r3669961,c:1120959341*7B\\$HEHDT,271.1,T*2A\r\n",
            &["hdg=271.1"],
        ),
        (
            "numbers that NMEA does not have",
            "format = \"nmea\"\nchecksum = \"optional\"\nsentences = { ROT = [\"rot\"], GLL = [\"lat:ddmm\"] }\n\
              [channel.rot]\n[channel.lat]",
            b"$HEROT,1E5,A\r\n$HEROT,nan,A\r\n$HEROT,0x10,A\r\n$HEROT,-3.25,A\r\n$GPGLL,4875.5,N,01131.0,E,120000,A\r\n$GPGLL,\
              9130.0,N,01131.0,E,120000,A\r\n$GPGLL,-4807.0,N,01131.0,E,120000,A\r\n",
            &[
                "rot:bad:not_a_number",
                "rot:bad:not_a_number",
                "rot:bad:not_a_number",
                "rot=-3.25",
                "lat:bad:not_a_number",
                "lat:bad:not_a_number",
                "lat:bad:not_a_number",
            ],
        ),
    ]);
}

#[test]
fn handshakes_and_tag_blocks_are_no_rows_and_a_wrong_one_is_refused() {
    check(&[
        (
            "Pfeiffer: ACK, then the value that ENQ asks for",
            r#"pause_ms = 20
[source.s.requests]
a = { request = "PR1\r\n", columns = ["_", "a"] }
b = { request_hex = "05", columns = ["_", "p"] }
[channel.p]"#,
            b"\x00\x00\x06\r\n",
            &[],
        ),
        (
            "lines of STX and of ACK alone, and of other bytes",
            "columns = [\"x\"]\n[channel.x]",
            b"\x02\r\n\x06\r\n1.5\r\n\x03\r\n\x07\r\n",
            &["x=1.5", "x:bad:not_a_number"],
        ),
        (
            "tag blocks with a wrong checksum, and without an end",
            "format = \"nmea\"\nsentences = { HDT = [\"hdg\"] }\n[channel.hdg]",
            b"\\s:r1,c:1*00\\$HEHDT,271.1,T*2A\r\n\\s:r1$HEHDT,271.1,T*2A\r\n\\s:r1\\$HEHDT,271.1,T*2A\r\n",
            &["refused checksum", "refused not_nmea", "refused not_nmea"],
        ),
    ]);
}

#[test]
fn parts_of_a_value_behind_a_label_are_named_by_their_number() {
    let keys = "format = \"keyvalue\"\nlabel_end = \"(\"\n[channel.at]\ncolumn = \"1.6.0[1]\"\nsuffix = \")\"\n\
                [channel.peak]\ncolumn = \"1.6.0[0]\"\nsuffix = \"*kW)\"\n[channel.none]\ncolumn = \"1.6.0[2]\"";
    assert_eq!(
        rows(keys, b"1.6.0(04.250*kW)(2301)\r\n1.6.0(4.5*kW)\r\n"),
        ["at=2301 none:bad:not_a_number peak=4.25", "at:bad:not_a_number none:bad:not_a_number peak=4.5"]
    );
    // A label may be written so itself.
    let own =
        "format = \"keyvalue\"\ndelimiter = \";\"\n[channel.a]\ncolumn = \"T[1]\"\n[channel.b]\ncolumn = \"T[2]\"";
    assert_eq!(
        rows(own, b"T[1]=20.5;T[2]=21.5\r\nT[1]=1;T[1]=2\r\n"),
        ["a=20.5 b=21.5", "a:bad:not_a_number b:missing"]
    );
}
