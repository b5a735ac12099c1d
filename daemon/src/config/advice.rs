//! What is valid, and could mean something else than is wanted: the remarks of `kentledge check`.

use super::{Config, Format, Gpio, PinName, Poll, Port, Samples, Source, modbus::old_numbers, nmea::Sentence};

impl Config {
    /// The remarks, a line each; each names its object.
    pub fn advice(&self) -> Vec<String> {
        let of = |source: &Source| {
            let all = of_format(source).into_iter().chain(of_port(&source.port));
            all.map(|text| format!("source {}: {text}", source.name)).collect::<Vec<_>>()
        };
        let brokers = self.mqtt.iter().flat_map(|mqtt| &mqtt.brokers).filter_map(|broker| {
            let (usual, other) = if broker.secure { ("TLS", 1883) } else { ("plain text", 8883) };
            let of_other = if broker.secure { "plain text" } else { "TLS" };
            let unusual = broker.port == other && broker.path.is_none();
            unusual.then(|| format!("mqtt.url: {broker} speaks {usual} on the usual port of {of_other}"))
        });
        let state = Some(&self.device.state_dir).filter(|folder| folder.is_relative()).map(|folder| {
            let folder = folder.display();
            format!(
                "device.state_dir: `{folder}` lies in the folder that the daemon is started in; a path that begins with `/` is \
                 always the same"
            )
        });
        self.sources.iter().flat_map(of).chain(brokers).chain(state).chain(self.without_effect()).collect()
    }

    /// Keys that do nothing, because something else is missing.
    fn without_effect(&self) -> Vec<String> {
        let mut all = Vec::new();
        if !self.samples.is_on() && self.samples != Samples::default() {
            all.push("samples: nothing is kept, because `samples.max_mib` is 0".to_owned());
        }
        if self.mqtt.is_none() && self.integrations.homeassistant.is_some() {
            all.push("integrations.homeassistant: nothing is published without a broker in `[mqtt]`".to_owned());
        }
        for (at, pipeline) in self.pipelines.iter().enumerate() {
            let Some(escalate) = &pipeline.escalate else { continue };
            let watched = || self.alarms.iter().any(|alarm| alarm.watches == super::Watches::Pipeline(at));
            let name = &pipeline.name;
            if self.mqtt.is_none() {
                all.push(format!("pipeline {name}: no window is escalated without a broker in `[mqtt]`"));
            }
            if escalate.alarms && !watched() {
                all.push(format!("pipeline {name}: `escalate.answer` is `alarm`, and no alarm watches this pipeline"));
            }
        }
        all
    }
}

fn of_format(source: &Source) -> Vec<String> {
    match (&source.format, &source.port) {
        (Format::Nmea(nmea), _) => nmea.sentences.iter().filter_map(Sentence::open).collect(),
        (Format::Registers(rows), Port::Modbus(modbus)) => old_numbers(modbus, rows),
        _ => Vec::new(),
    }
}

fn of_port(port: &Port) -> Vec<String> {
    match port {
        Port::Serial(serial) => serial.poll.iter().flat_map(escapes).collect(),
        Port::Gpio(gpio) => numbers(gpio),
        _ => Vec::new(),
    }
}

/// Requests with an escape that single quotes left as it was: a backslash and a letter are sent.
fn escapes(poll: &Poll) -> Vec<String> {
    let has = |request: &&Vec<u8>| {
        let written = |escape: &[u8]| request.windows(escape.len()).any(|part| part == escape);
        written(br"\r") || written(br"\n") || written(br"\x") || written(br"\u")
    };
    let remark = |request: &Vec<u8>| {
        let text = String::from_utf8_lossy(request);
        format!("the request `{text}` has a backslash and a letter; for a control character write it in double quotes")
    };
    poll.requests.iter().filter(has).map(remark).collect()
}

/// Lines whose name is a number.
fn numbers(gpio: &Gpio) -> Vec<String> {
    let names = gpio.lines.iter().filter_map(|pin| if let PinName::Name(name) = &pin.line { Some(name) } else { None });
    let remark =
        |name: &String| format!("line \"{name}\" is a name; for the line of this number write {name} without quotes");
    names.filter(|name| name.parse::<u32>().is_ok()).map(remark).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn remarks(toml: &str) -> Vec<String> {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        std::fs::write(dir.path().join("m.onnx"), "never opened").expect("model");
        std::fs::write(&file, format!("[device]\nsite = \"s\"\nid = \"d\"\n{toml}")).expect("write");
        Config::local(Some(&file)).expect("valid").advice()
    }

    const PIPELINE: &str = "[models]\nallow_unsigned = true\n[source.s]\npath = \"/dev/x\"\ncolumns = [\"a\"]\n[channel.a]\n\
                            [pipeline.p]\nmodel = \"m.onnx\"\nchannels = [\"a\"]\nwindow_steps = 4\nthreshold = 1\n\
                            escalate = { band = 0.5, answer = \"alarm\" }\n";

    #[test]
    fn what_is_valid_and_probably_not_meant_is_remarked() {
        let broker = |url: &str| format!("[mqtt]\nurl = \"{url}\"\n");
        let polled = |request: &str| format!("[source.s]\npath = \"/dev/x\"\ncolumns = [\"a\"]\nrequest = {request}\n");
        let pin = |line: &str| format!("[source.s]\nkind = \"gpio\"\nchip = \"c\"\nlines.a = {{ line = {line} }}\n");
        for (toml, expected) in [
            (broker("mqtts://b:1883"), "mqtt.url: b:1883 speaks TLS on the usual port of plain text"),
            (broker("mqtt://localhost:8883"), "mqtt.url: localhost:8883 speaks plain text on the usual port of TLS"),
            (polled(r"'SI\r\n'"), r"source s: the request `SI\r\n` has a backslash and a letter"),
            (pin("\"17\""), "source s: line \"17\" is a name"),
            ("[samples]\ndays = 5\n".into(), "samples: nothing is kept"),
            ("[integrations]\nhomeassistant = true\n".into(), "integrations.homeassistant: nothing is published"),
            (PIPELINE.into(), "pipeline p: no window is escalated without a broker"),
        ] {
            let all = remarks(&toml);
            assert!(all.iter().any(|remark| remark.starts_with(expected)), "{toml}: {all:?}");
        }
        assert!(remarks(PIPELINE).iter().any(|remark| remark.contains("no alarm watches this pipeline")));
    }

    #[test]
    fn what_is_usual_is_not_remarked() {
        let alarm = "[alarm.a]\npipeline = \"p\"\n[mqtt]\nurl = \"mqtts://b\"\n";
        for toml in [
            "[mqtt]\nurl = \"wss://b:1883/mqtt\"\n[integrations]\nhomeassistant = true\n",
            "[source.s]\npath = \"/dev/x\"\ncolumns = [\"a\"]\nrequest = \"SI\\r\\n\"\n",
            "[source.s]\nkind = \"gpio\"\nchip = \"c\"\nlines.a = { line = \"GPIO17\" }\n",
            "[samples]\nmax_mib = 5\ndays = 5\n",
            &format!("{PIPELINE}{alarm}"),
        ] {
            assert_eq!(remarks(toml), Vec::<String>::new(), "{toml}");
        }
    }
}
