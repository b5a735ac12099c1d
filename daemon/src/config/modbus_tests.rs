//! The register map: what is joined, what keys mean, and which are refused.

use super::super::Config;
use super::*;

/// The reads and rows of a source with these keys and registers, or its problems.
fn built(keys: &str, registers: &str) -> Result<(Modbus, Vec<RegisterRow>), String> {
    let text = format!("[source.m]\n{keys}\n[source.m.registers]\n{registers}\n");
    let dir = tempfile::TempDir::new().expect("folder");
    let file = dir.path().join("kentledge.toml");
    std::fs::write(&file, text).expect("write");
    let config = Config::load(Some(&file));
    let mut config = config.map_err(|problems| problems.iter().map(|p| format!("{p}\n")).collect::<String>())?;
    let source = config.sources.remove(0);
    match (source.port, source.format) {
        (Port::Modbus(modbus), Format::Registers(rows)) => Ok((modbus, rows)),
        other => panic!("{other:?}"),
    }
}

const RTU: &str = "kind = \"modbus-rtu\"\npath = \"/dev/null\"\nbaud = 9600";
const TCP: &str = "kind = \"modbus-tcp\"\naddress = \"127.0.0.1:502\"";

fn spans(modbus: &Modbus) -> Vec<(u16, u16)> {
    modbus.reads.iter().map(|read| (read.address, read.count)).collect()
}

#[test]
fn neighbours_are_joined_up_to_join_max_and_over_join_gap() {
    let registers: String = (0..20).map(|i| format!("r{i} = {{ address = {} }}\n", 100 + i)).collect();
    let (one, _) = built(RTU, &registers).expect("valid");
    assert_eq!(spans(&one), [(100, 20)]);
    let (two, _) = built(&format!("{RTU}\njoin_max = 10"), &registers).expect("valid");
    assert_eq!(spans(&two), [(100, 10), (110, 10)]);
    let apart = "a = { address = 1 }\nb = { address = 4, type = \"f32\" }\n";
    assert_eq!(spans(&built(TCP, apart).expect("valid").0), [(1, 1), (4, 2)]);
    let (joined, rows) = built(&format!("{TCP}\njoin_gap = 2"), apart).expect("valid");
    assert_eq!((spans(&joined), &joined.reads[0].parts), (vec![(1, 5)], &vec![(1, 1), (4, 2)]));
    assert_eq!((rows[0].bytes, rows[0].columns[1].at), (10, 6));
}

#[test]
fn value_and_its_scale_register_are_one_part_whichever_comes_first() {
    let (modbus, rows) =
        built(RTU, "w = { address = 40, type = \"i16\", scale_register = 43 }\nb = { address = 44 }\n").expect("valid");
    assert_eq!(modbus.reads[0].parts, [(40, 4), (44, 1)]);
    assert_eq!((rows[0].columns[0].at, rows[0].columns[0].scale_at), (0, Some(6)));
    let (modbus, rows) = built(RTU, "w = { address = 40, type = \"u32\", scale_register = 38 }\n").expect("valid");
    assert_eq!((modbus.reads[0].parts[0], rows[0].columns[0].at, rows[0].columns[0].scale_at), ((38, 4), 4, Some(0)));
    // Three phases with one scale register, as SunSpec has them.
    let (modbus, _) = built(
        RTU,
        "a = { address = 76, scale_register = 79 }\nb = { address = 77, scale_register = 79 }\nc = { address = 90 }\n",
    )
    .expect("valid");
    assert_eq!((&modbus.reads[0].parts, spans(&modbus)), (&vec![(76, 4)], vec![(76, 4), (90, 1)]));
}

#[test]
fn manners_have_defaults_of_the_specification_and_can_be_said() {
    let (line, _) = built(RTU, "a = { address = 1 }").expect("valid");
    let default = Manners { tcp_frames: false, echo: false, lenient_ids: false, answer_ms: 500, pause_us: 4010 };
    assert_eq!(line.manners, default);
    let keys = format!("{RTU}\necho = true\npause_ms = 60\nanswer_ms = 200\nlenient_ids = true");
    let (line, _) = built(&keys, "a = { address = 1 }").expect("valid");
    let said = Manners { tcp_frames: false, echo: true, lenient_ids: true, answer_ms: 200, pause_us: 60_000 };
    assert_eq!(line.manners, said);
    let (serial_server, _) =
        built(&format!("{TCP}\nframing = \"rtu\"\necho = true"), "a = { address = 1 }").expect("valid");
    assert_eq!((serial_server.manners.tcp_frames, serial_server.manners.echo), (false, true));
}

#[test]
fn not_available_is_bits_or_the_number_that_they_mean() {
    let of = |register: &str| built(RTU, register).expect("valid").1[0].columns[0].not_available.clone();
    assert_eq!(of("a = { address = 1, type = \"i16\", not_available = 0x8000 }"), [0x8000]);
    assert_eq!(of("a = { address = 1, type = \"i16\", not_available = [-32768, 0x7FFF] }"), [0x8000, 0x7FFF]);
    assert_eq!(of("a = { address = 1, type = \"u64\", not_available = -1 }"), [u64::MAX]);
    assert_eq!(of("a = { address = 1, type = \"bcd32\", not_available = 0xFFFFFFFF }"), [0xFFFF_FFFF]);
    // A float's bits are seldom known: the number counts as well.
    let f32_bits = |x: f32| u64::from(x.to_bits());
    assert_eq!(of("a = { address = 1, type = \"f32\", not_available = -9999.9 }"), [f32_bits(-9999.9)]);
    assert!(of("a = { address = 1, type = \"f32\", not_available = -9999 }").contains(&f32_bits(-9999.0)));
    assert!(of("a = { address = 1, type = \"f64\", not_available = [1e30, -1] }").contains(&1e30f64.to_bits()));
    assert!(of("a = { address = 1, type = \"f32\", not_available = 0x7F800000 }").contains(&0x7F80_0000));
    assert!(of("a = { address = 1, type = \"f64\", not_available = -9223372036854775808 }").contains(&(1 << 63)));
    assert!(of("a = { address = 1, type = \"bcd16\", not_available = 9999 }").contains(&0x9999));
}

#[test]
fn wrong_keys_are_refused_with_the_key_and_the_reason() {
    for (keys, registers, key, why) in [
        (RTU, "a = { slave = 0, address = 1 }", "registers.a.slave", "0 is not within 1 to 247"),
        (RTU, "a = { address = 1, type = \"u24\" }", "registers.a.type", "expected a type of registers"),
        (RTU, "a = { address = 1, type = \"bcd8\" }", "registers.a.type", "expected a type of registers"),
        (RTU, "a = { address = 1, type = \"i16\", mask = 3 }", "registers.a.mask", "unsigned register"),
        (RTU, "a = { address = 1, mask = 0x10000 }", "registers.a.mask", "0x10000 has bits"),
        (RTU, "a = { read = \"coil\", address = 1, mask = 1 }", "registers.a.mask", "unsigned register"),
        (RTU, "a = { read = \"coil\", address = 1, scale_register = 2 }", "registers.a.scale_register", "not to coils"),
        (RTU, "a = { address = 1, scale_register = 200 }", "registers.a.scale_register", "these are 200 registers"),
        (RTU, "a = { address = 1, not_available = 65536 }", "registers.a.not_available", "does not fit into 2 bytes"),
        (RTU, "a = { address = 1, not_available = 0.5 }", "registers.a.not_available", "must be a whole number"),
        (
            RTU,
            "a = { address = 1, type = \"f32\", not_available = \"n\" }",
            "registers.a.not_available",
            "such as `-9999`",
        ),
        (
            RTU,
            "a = { address = 1, type = \"bcd16\", not_available = 99999 }",
            "registers.a.not_available",
            "more than 4 digits",
        ),
        (RTU, "a = { address = 1, not_available = \"x\" }", "registers.a.not_available", "whole number"),
        (RTU, "a = { address = 65535, type = \"f32\" }", "registers.a.address", "up to address 65535"),
        (RTU, "a = { address = 1, maks = 1 }", "registers.a.maks", "did you mean `mask`?"),
        (TCP, "a = { slave = 256, address = 1 }", "registers.a.slave", "0 to 255"),
    ] {
        let problems = built(keys, registers).expect_err(registers);
        assert!(
            problems.lines().any(|line| line.contains(&format!("source.m.{key}: ")) && line.contains(why)),
            "{problems}"
        );
    }
    for (keys, key, why) in [
        (format!("{RTU}\njoin_max = 0"), "join_max", "not within"),
        (format!("{RTU}\njoin_max = 1"), "registers.a.type", "more than the 1 that one answer holds"),
        (format!("{RTU}\npause = 60"), "pause", "`pause_ms`"),
        (format!("{RTU}\nframing = \"rtu\""), "framing", "unknown key"),
        (format!("{TCP}\nframing = \"ascii\""), "framing", "expected one of `tcp`, `rtu`"),
        (format!("{TCP}\necho = true"), "echo", "Modbus TCP has no echo"),
        (TCP.replace(":502", ""), "address", "expected HOST:PORT"),
    ] {
        let problems = built(&keys, "a = { address = 1, type = \"f32\" }").expect_err(&keys);
        assert!(
            problems.lines().any(|line| line.contains(&format!("source.m.{key}: ")) && line.contains(why)),
            "{problems}"
        );
    }
}
