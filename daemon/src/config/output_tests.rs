//! Outputs by Modbus: where their bus is, what is shared, and which keys are refused.

use super::super::Config;
use super::*;

const SOURCES: &str = "[source.line]\nkind = \"modbus-rtu\"\npath = \"/dev/null\"\nbaud = 9600\necho = true\n\
    registers.a = { address = 1 }\n\
    [source.net]\nkind = \"modbus-tcp\"\naddress = \"10.0.0.7:502\"\nregisters.b = { address = 1 }\n\
    [source.server]\nkind = \"modbus-tcp\"\nframing = \"rtu\"\naddress = \"10.0.0.8:4001\"\nregisters.c = { address = 1 }\n\
    [source.text]\npath = \"/dev/zero\"\ncolumns = [\"d\"]\n\
    [channel.a]\nsource = \"line\"\n[alarm.hot]\nchannel = \"a\"\nabove = 80\n";

fn load(outputs: &str) -> Result<Config, String> {
    let dir = tempfile::TempDir::new().expect("folder");
    let file = dir.path().join("kentledge.toml");
    std::fs::write(&file, format!("{SOURCES}{outputs}")).expect("write");
    let config = Config::load(Some(&file));
    config.map_err(|problems| problems.iter().map(|p| format!("{p}\n")).collect::<String>())
}

fn output(modbus: &str) -> String {
    format!("[output.fan]\nalarms = [\"hot\"]\nmodbus = {{ {modbus} }}\n")
}

fn shared(config: &Config) -> Vec<bool> {
    let all = config.sources.iter().filter_map(|s| if let Port::Modbus(m) = &s.port { Some(m.shared) } else { None });
    all.collect()
}

#[test]
fn output_on_the_bus_of_a_source_talks_as_it_does_and_a_line_is_shared() {
    let config = load(&output("source = \"line\", slave = 3, coil = 7")).expect("valid");
    let Target::Modbus(point) = &config.outputs[0].target else { panic!("{:?}", config.outputs) };
    assert!(point.manners.echo && point.coil && (point.slave, point.address, point.refresh_ms) == (3, 7, 1000));
    assert_eq!(shared(&config), [true, false, false]);
    let config = load(&output("source = \"net\", register = 100, on = 500, off = 20")).expect("valid");
    let Target::Modbus(point) = &config.outputs[0].target else { panic!("{:?}", config.outputs) };
    assert_eq!((point.coil, point.several, point.words, point.refresh_ms), (false, false, (500, 20), 0));
    for (keys, several) in
        [("coil = 1, function = 15", true), ("register = 1, function = 16", true), ("coil = 1, function = 5", false)]
    {
        let config = load(&output(&format!("source = \"net\", {keys}"))).expect("valid");
        let Target::Modbus(point) = &config.outputs[0].target else { panic!("{:?}", config.outputs) };
        assert_eq!(point.several, several, "{keys}");
    }
    assert_eq!(shared(&config), [false; 3]);
}

#[test]
fn output_may_have_a_bus_of_its_own() {
    load(&output("path = \"/dev/full\", baud = 19200, line = \"8E1\", coil = 0, pause_ms = 20")).expect("a line");
    load(&output("address = \"10.0.0.9:502\", slave = 0, coil = 0, answer_ms = 300")).expect("a device");
    load(&output("address = \"10.0.0.9:4001\", framing = \"rtu\", coil = 0"))
        .expect("a serial server that nothing reads");
}

#[test]
fn wrong_keys_of_a_modbus_output_are_refused_with_the_key_and_the_reason() {
    for (modbus, key, why) in [
        ("coil = 1", "modbus.source", "is needed, or `path`, or `address`"),
        ("source = \"line\", address = \"10.0.0.7:502\", coil = 1", "modbus.source", "one of them"),
        ("source = \"lines\", coil = 1", "modbus.source", "no source is called `lines`"),
        ("source = \"text\", coil = 1", "modbus.source", "`text` is no Modbus source"),
        ("source = \"server\", coil = 1", "modbus.source", "disturb each other"),
        ("address = \"10.0.0.8:4001\", framing = \"rtu\", coil = 1", "modbus.address", "disturb each other"),
        ("path = \"/dev/null\", coil = 1", "modbus.path", "write `source = \"line\"` instead"),
        ("path = \"/dev/zero\", coil = 1", "modbus.path", "source `text` reads this port"),
        ("source = \"line\", baud = 9600, coil = 1", "modbus.baud", "is said by source `line`"),
        ("source = \"line\"", "modbus.coil", "is needed, or `register`"),
        ("source = \"line\", coil = 1, register = 2", "modbus.register", "writes one of them"),
        ("source = \"line\", coil = 1, on = 2", "modbus.on", "a coil is on or off"),
        ("source = \"line\", register = 1, on = 0", "modbus.on", "the same as `off`"),
        ("source = \"line\", coil = 1, function = 16", "modbus.function", "must be 5 or 15"),
        ("source = \"line\", register = 1, function = 5", "modbus.function", "must be 6 or 16"),
        ("source = \"line\", coil = 65536", "modbus.coil", "not within 0 to 65535"),
        ("source = \"line\", slave = 0, coil = 1", "modbus.slave", "not within 1 to 247"),
        ("source = \"line\", coil = 1, refresh_ms = 5", "modbus.refresh_ms", "at least 100"),
        ("source = \"line\", coils = 1", "modbus.coils", "did you mean `coil`?"),
    ] {
        let problems = load(&output(modbus)).expect_err(modbus);
        assert!(
            problems.lines().any(|line| line.contains(&format!("output.fan.{key}: ")) && line.contains(why)),
            "{problems}"
        );
    }
    let problems = load(&format!("{}chip = \"x\"\n", output("source = \"line\", coil = 1"))).expect_err("a chip");
    assert!(problems.contains("output.fan.chip: belongs to a GPIO line"), "{problems}");
    let two = format!(
        "{}[output.b]\nalarms = [\"hot\"]\nmodbus = {{ source = \"net\", coil = 1 }}\n",
        output("source = \"net\", coil = 1")
    );
    let problems = load(&two).expect_err("two");
    assert!(problems.contains("`b` and `fan` write the same coil"), "{problems}");
}
