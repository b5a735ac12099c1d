//! Samples per core-second of each text format, from the bytes of a port to checked samples; prints a table.
//!
//! `cargo bench --bench lines`. CPU time of this process, so that a busy machine matters less.

#![allow(clippy::expect_used, clippy::print_stdout)] // A bench that cannot run says so and ends.

use kentledge::{
    config::{Channel, Config, Port},
    flow::{Clk, SourceId, Stamp},
    signal::decode::{Decoder, Row},
    source::framing::Cutter,
};
use nix::sys::resource::{UsageWho, getrusage};

const ROWS: usize = 20_000;
const ROUNDS: usize = 15;

/// Name, keys of the source, a row of four numbers.
type Lines = (&'static str, &'static str, fn([f64; 4]) -> String);

fn formats() -> Vec<Lines> {
    let csv = "columns = [\"a\", \"b\", \"c\", \"d\"]";
    let units =
        "columns = [\"a\", \"b\", \"c\", \"d\"]\nsuffix = { kg = 1, g = 0.001 }\nwords = { OL = \"bad:overload\" }";
    let comma = "columns = [\"a\", \"b\", \"c\", \"d\"]\ndelimiter = \";\"\ndecimal = \",\"";
    let summed = "columns = [\"a\", \"b\", \"c\", \"d\"]\ncheck = \"xor8\"";
    let patterns = "format = \"pattern\"\npatterns = ['x=(?<a>\\S+) y=(?<b>\\S+) z=(?<c>\\S+) t=(?<d>\\S+)']";
    vec![
        ("csv", csv, |[a, b, c, d]| format!("{a:.3},{b:.3},{c:.3},{d:.3}\n")),
        ("csv, xor8", summed, |[a, b, c, d]| {
            let text = format!("{a:.3},{b:.3},{c:.3},{d:.3}");
            format!("{text}*{:02X}\r\n", text.bytes().fold(0, |x, b| x ^ b))
        }),
        ("csv, units and words", units, |[a, b, c, d]| format!("{a:.3}kg,{b:.3} kg,{c:.3}g,{d:.3}kg\n")),
        ("csv, decimal comma", comma, |[a, b, c, d]| format!("{a:.3};{b:.3};{c:.3};{d:.3}\n").replace('.', ",")),
        ("blanks", "columns = [\"a\", \"b\", \"c\", \"d\"]\ndelimiter = \" \"", |[a, b, c, d]| {
            format!("{a:10.3}{b:10.3}{c:10.3}{d:10.3}\n")
        }),
        ("fixed", "format = \"fixed\"\ncolumns = [\"a:10\", \"b:10\", \"c:10\", \"d:10\"]", |[a, b, c, d]| {
            format!("{a:10.3}{b:10.3}{c:10.3}{d:10.3}\n")
        }),
        ("keyvalue", "format = \"keyvalue\"\ndelimiter = \";\"", |[a, b, c, d]| {
            format!("a={a:.3};b={b:.3};c={c:.3};d={d:.3}\n")
        }),
        ("keyvalue, blocks of lines", "format = \"keyvalue\"\nblock_end = \"d\"", |[a, b, c, d]| {
            format!("a={a:.3}\nb={b:.3}\nc={c:.3}\nd={d:.3}\n")
        }),
        (
            "keyvalue, blocks with xor8",
            "format = \"keyvalue\"\nblock_end = \"CRC\"\nblock_check = \"xor8\"",
            |[a, b, c, d]| {
                let text = format!("a={a:.3}\nb={b:.3}\nc={c:.3}\nd={d:.3}\nCRC=");
                format!("{text}{:02X}\n", text.bytes().fold(0, |x, b| x ^ b))
            },
        ),
        ("pattern", patterns, |[a, b, c, d]| format!("x={a:.3} y={b:.3} z={c:.3} t={d:.3}\n")),
        ("json", "format = \"json\"", |[a, b, c, d]| {
            format!("{{\"a\":{a:.3},\"b\":{b:.3},\"c\":{c:.3},\"d\":{d:.3}}}\n")
        }),
    ]
}

fn cpu_s() -> f64 {
    let used = getrusage(UsageWho::RUSAGE_SELF).expect("own usage").user_time();
    used.tv_sec() as f64 + used.tv_usec() as f64 / 1e6
}

/// Samples per core-second; the fastest round, in reads of 4 KiB.
fn measure(keys: &str, bytes: &[u8]) -> f64 {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("c.toml");
    let channels = "[channel.a]\n[channel.b]\n[channel.c]\n[channel.d]\n";
    std::fs::write(&file, format!("[source.s]\npath = \"/dev/x\"\n{keys}\n{channels}")).expect("write");
    let config = Config::local(Some(&file)).expect("a valid configuration");
    let channels: Vec<&Channel> = config.channels_of(SourceId(0)).iter().map(|i| &config.channels[*i]).collect();
    let Port::Serial(serial) = &config.sources[0].port else { unreachable!("a serial source") };
    let stamp = Stamp { boot_ns: 0, wall_ms: None, clk: Clk::Unset };
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let (mut cutter, mut decoder) = (Cutter::new(serial), Decoder::new(&config.sources[0], &channels));
        let (mut row, mut good) = (Row::default(), 0);
        let began = cpu_s();
        for read in bytes.chunks(4096) {
            let cut = cutter.feed(read);
            for &(from, to) in &cut.ranges {
                if decoder.decode(Ok(&cut.bytes[from as usize..to as usize]), stamp, &mut row) == Ok(true) {
                    good += row.quality.iter().filter(|quality| quality.is_good()).count();
                }
            }
        }
        best = best.min(cpu_s() - began);
        assert_eq!(good, 4 * ROWS, "{keys}");
    }
    4.0 * ROWS as f64 / best
}

fn main() {
    let row = |i: usize| {
        let x = i as f64;
        // 9 characters at most: a column has 10.
        [x * 0.01 - 50.0, (x * 0.1).sin() * 10.0, -(x % 1000.0), 1000.0 + x * 0.5]
    };
    let mut csv = None;
    println!("{:28} {:>12} {:>8}", "format", "Msamples/s", "of csv");
    for (name, keys, line) in formats() {
        let bytes: String = (0..ROWS).map(|i| line(row(i))).collect();
        let rate = measure(keys, bytes.as_bytes());
        let usual = *csv.get_or_insert(rate);
        println!("{name:28} {:>12.2} {:>8.2}", rate / 1e6, rate / usual);
    }
}
