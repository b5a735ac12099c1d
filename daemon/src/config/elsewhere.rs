//! Keys that are unknown where they stand: what other programs call a key, and keys of another section.

use std::collections::BTreeSet;

/// Section, what others write there, and the key that is meant. `NAME` stands for any name.
const MEANT: &[(&str, &[&str], &str)] = &[
    ("mqtt", &["host", "hostname", "server", "broker", "address", "uri", "endpoint"], "url"),
    ("mqtt", &["ca", "cafile", "ca_cert", "ca_certs", "cacert", "root_ca"], "ca_file"),
    ("mqtt", &["cert", "certfile", "certificate", "client_cert", "crt"], "cert_file"),
    ("mqtt", &["key", "keyfile", "private_key", "client_key"], "key_file"),
    ("mqtt", &["user", "login"], "username"),
    ("mqtt", &["pass", "pw", "passwd"], "password_file"),
    ("mqtt", &["base_topic", "prefix", "root_topic"], "topic_prefix"),
    ("mqtt", &["heartbeat", "ping_interval"], "keep_alive_s"),
    ("mqtt", &["encoding", "format"], "payload"),
    ("device", &["name", "device_id", "hostname", "serial"], "id"),
    ("device", &["location", "plant", "tenant"], "site"),
    ("device", &["groups", "tags", "group"], "cohorts"),
    ("device", &["data_dir", "state", "storage"], "state_dir"),
    ("source.NAME", &["port", "tty", "dev"], "path"),
    ("source.NAME", &["host", "hostname", "ip", "server", "url", "port"], "address"),
    ("source.NAME", &["baudrate", "baud_rate", "speed", "bitrate", "bps"], "baud"),
    ("source.NAME", &["type", "protocol", "driver"], "kind"),
    ("source.NAME", &["separator", "sep"], "delimiter"),
    ("source.NAME", &["header", "headers", "names"], "columns"),
    ("source.NAME", &["regex", "regexp", "pattern"], "patterns"),
    ("source.NAME", &["terminator", "eol", "newline"], "line_end"),
    ("source.NAME", &["timeout", "timeout_ms", "timeout_s", "response_timeout"], "answer_ms"),
    ("source.NAME", &["interval", "interval_ms", "interval_s", "period", "period_ms", "poll_interval"], "poll_ms"),
    ("source.NAME", &["interval", "interval_ms", "interval_s", "period", "period_ms", "poll_ms"], "sample_ms"),
    ("source.NAME", &["delay", "delay_ms"], "pause_ms"),
    ("source.NAME", &["command", "query"], "request"),
    ("source.NAME", &["pins", "gpios"], "lines"),
    ("source.NAME", &["crc"], "check"),
    ("source.NAME.registers.NAME", &["unit_id", "slave_id", "station", "node", "id"], "slave"),
    ("source.NAME.registers.NAME", &["function", "function_code", "fc", "table"], "read"),
    ("source.NAME.registers.NAME", &["register", "reg", "offset", "start", "addr"], "address"),
    ("source.NAME.registers.NAME", &["count", "quantity", "length", "data_type", "datatype", "format"], "type"),
    ("source.NAME.registers.NAME", &["byte_order", "word_order", "byteorder", "endian", "endianness", "swap"], "order"),
    ("source.NAME.lines.NAME", &["pin", "gpio", "offset"], "line"),
    ("source.NAME.lines.NAME", &["mode", "type", "function", "direction"], "read"),
    ("source.NAME.lines.NAME", &["pull", "pullup", "pull_up"], "bias"),
    ("source.NAME.lines.NAME", &["active_low", "inverted", "invert"], "active"),
    ("channel.NAME", &["factor", "multiplier", "gain", "slope"], "scale"),
    ("channel.NAME", &["field", "register", "label", "name"], "column"),
    ("channel.NAME", &["zero", "bias"], "offset"),
    ("stream.NAME", &["interval", "period"], "interval_ms"),
    ("pipeline.NAME", &["window", "window_size", "window_s", "window_ms", "window_rows"], "window_steps"),
    ("pipeline.NAME", &["stride", "hop", "step", "overlap"], "hop_steps"),
    ("pipeline.NAME", &["inputs_channels", "features", "signals"], "channels"),
    ("pipeline.NAME", &["output"], "score"),
    ("pipeline.NAME", &["labels"], "classes"),
    ("alarm.NAME", &["threshold", "limit", "level", "max", "high", "greater", "gt"], "above"),
    ("alarm.NAME", &["min", "low", "less", "lt"], "below"),
    ("alarm.NAME", &["range"], "outside"),
    ("alarm.NAME", &["delay", "duration", "delay_s", "debounce_s"], "for_s"),
    ("alarm.NAME", &["deadband", "deadband_percent"], "hysteresis"),
    ("alarm.NAME", &["priority", "level_name"], "severity"),
    ("alarm.NAME", &["timeout", "timeout_s"], "stale_s"),
    ("output.NAME", &["pin", "gpio", "offset"], "line"),
    ("output.NAME", &["default", "initial", "failsafe", "fail_safe"], "safe"),
    ("output.NAME", &["active_low", "inverted", "invert"], "active"),
    ("output.NAME", &["min_on_ms", "hold_ms"], "dwell_ms"),
    ("outbox", &["size", "max_size", "capacity"], "max_mib"),
    ("outbox", &["retention", "retention_h", "max_age"], "expire_data_h"),
    ("samples", &["size", "max_size"], "max_mib"),
    ("metrics", &["port", "address", "bind"], "listen"),
    ("models", &["provider", "execution_providers", "device"], "providers"),
    ("models", &["onnxruntime", "library"], "runtime"),
    ("", &["broker", "uplink", "cloud"], "mqtt"),
    ("", &["sensor", "sensors", "input", "inputs", "serial", "modbus"], "source"),
    ("", &["signal", "signals", "tag", "measurement"], "channel"),
    ("", &["rule", "rules", "alert", "alerts", "threshold"], "alarm"),
    ("", &["gpio", "relay", "relays", "actuator"], "output"),
    ("", &["buffer", "queue", "storage", "store"], "outbox"),
    ("", &["prometheus"], "metrics"),
];

/// Section, and keys of it that are found in other sections.
const HOMES: &[(&str, &[&str])] = &[
    ("device", &["site", "id", "cohorts", "state_dir"]),
    ("mqtt", &["url", "ca_file", "cert_file", "key_file", "username", "password_file", "client_id", "topic_prefix"]),
    ("source.NAME", &["path", "baud", "line", "columns", "poll_ms", "stale_ms", "framing", "time_format"]),
    ("channel.NAME", &["unit", "scale", "offset", "min", "max", "rate_max_per_s", "stuck_ms", "column"]),
    ("pipeline.NAME", &["window_steps", "hop_steps", "threshold", "escalate", "calibration", "model"]),
    (
        "alarm.NAME",
        &["above", "below", "outside", "severity", "hysteresis", "for_s", "latch", "raise_above", "hold_off_ms"],
    ),
    ("output.NAME", &["alarms", "dwell_ms", "safe"]),
    ("models", &["allow_unsigned", "runtime", "providers", "memory_mib", "trial_s"]),
    ("commands", &["keyset", "plans", "confirm_s"]),
    ("outbox", &["linger_ms", "expire_data_h", "backlog_kib_s"]),
    ("tapes", &["before_s", "after_s", "ring_mib"]),
    ("metrics", &["listen", "interval_s"]),
    ("integrations", &["homeassistant"]),
];

/// Keys that only some kinds of source have.
const OF_KINDS: &[(&[&str], &[&str])] = &[
    (&["serial"], &["columns", "format", "delimiter", "request", "requests", "patterns", "sentences", "fields"]),
    (&["serial", "modbus-rtu"], &["path", "baud", "line"]),
    (&["modbus-tcp"], &["address"]),
    (&["modbus-rtu", "modbus-tcp"], &["registers", "join_max", "join_gap"]),
    (&["gpio"], &["chip", "lines"]),
    (&["iio", "hwmon", "thermal"], &["device"]),
    (&["iio", "hwmon"], &["readings"]),
];

/// What a key that is unknown in the table at `path` was meant to be.
pub(super) fn advice(path: &str, key: &str, known: &BTreeSet<&'static str>) -> Option<String> {
    let section = section(path);
    let lower = key.to_ascii_lowercase();
    let ours = |own: &str| known.contains(own);
    let meant =
        |(of, words, own): &&(&str, &[&str], &str)| *of == section && words.contains(&lower.as_str()) && ours(own);
    if let Some((.., own)) = MEANT.iter().find(meant) {
        return Some(format!("did you mean `{own}`?"));
    }
    if let Some(said) = said(&section, &lower) {
        return Some(said.to_owned());
    }
    let has = |keys: &&[&str]| keys.contains(&lower.as_str());
    if section == "source.NAME"
        && let Some((kinds, _)) = OF_KINDS.iter().find(|(_, keys)| has(keys))
    {
        let kinds: Vec<String> = kinds.iter().map(|kind| format!("`kind = \"{kind}\"`")).collect();
        return Some(format!("it belongs to {}", kinds.join(" or ")));
    }
    let homes: Vec<String> = HOMES
        .iter()
        .filter(|(home, keys)| *home != section && has(keys))
        .map(|(home, _)| format!("`[{home}]`"))
        .collect();
    (!homes.is_empty()).then(|| format!("it belongs to {}", homes.join(" or ")))
}

/// What is not a matter of another name.
fn said(section: &str, key: &str) -> Option<&'static str> {
    Some(match (section, key) {
        ("mqtt", "port") => "the port stands in `url`: `mqtts://HOST:PORT`",
        ("mqtt", "tls" | "ssl") => "`mqtts://` in `url` means TLS; its files are `ca_file`, `cert_file`, `key_file`",
        ("mqtt", "insecure" | "insecure_skip_verify" | "tls_insecure" | "verify") => {
            "the broker's certificate is always verified; `ca_file` names who signed it"
        }
        ("mqtt", "retain" | "clean_session" | "clean_start" | "session_expiry") => {
            "it cannot be set: each topic has its own rule of what is retained, and the session outlives the connection"
        }
        ("source.NAME", "parity" | "stopbits" | "stop_bits" | "databits" | "data_bits" | "bytesize") => {
            "data bits, parity and stop bits stand in `line`, such as `line = \"8E1\"`"
        }
        ("source.NAME.registers.NAME", "unit") => {
            "the unit id is `slave`; a unit such as V belongs to `[channel.NAME]`"
        }
        ("channel.NAME", "range" | "limits") => "the range is `min` and `max`",
        ("outbox", "path" | "dir" | "folder") => "it lies in `device.state_dir`",
        (_, "enabled" | "enable" | "disabled" | "disable") => {
            "there is no such switch: a section that is left out is off"
        }
        ("", "homeassistant" | "home_assistant") => "write `homeassistant = true` in `[integrations]`",
        ("", "log" | "logging" | "log_level") => "the environment variable `KENTLEDGE_LOG` filters the log",
        _ => return None,
    })
}

/// The path of a table with `NAME` in place of each name.
fn section(path: &str) -> String {
    let named = ["source", "channel", "stream", "pipeline", "alarm", "output", "registers", "requests", "lines"];
    let mut after = "";
    let parts = path.split('.').map(|part| {
        let shown = if named.contains(&after) { "NAME" } else { part };
        after = if shown == "NAME" { "" } else { part };
        shown
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn problems(toml: &str) -> String {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        std::fs::write(&file, toml).expect("write");
        let all = Config::local(Some(&file)).err().unwrap_or_default();
        all.iter().map(|p| format!("{}: {}\n", p.key, p.why)).collect()
    }

    #[test]
    fn path_of_a_table_becomes_its_section() {
        for (path, expected) in [
            ("", ""),
            ("mqtt", "mqtt"),
            ("source.pump", "source.NAME"),
            ("source.m.registers.v", "source.NAME.registers.NAME"),
            ("source.lines.lines.lines", "source.NAME.lines.NAME"),
            ("pipeline.p.escalate", "pipeline.NAME.escalate"),
        ] {
            assert_eq!(section(path), expected, "{path}");
        }
    }

    #[test]
    fn key_of_another_program_or_section_is_answered_with_ours() {
        for (toml, expected) in [
            ("[mqtt]\nhost = \"b\"", "mqtt.host: unknown key; did you mean `url`?"),
            ("[mqtt.tls]\nca = \"x\"", "mqtt.tls: unknown key; `mqtts://` in `url` means TLS"),
            ("[source.a]\nport = \"/dev/x\"", "source.a.port: unknown key; did you mean `path`?"),
            ("[source.a]\nkind = \"modbus-tcp\"\nport = 502", "source.a.port: unknown key; did you mean `address`?"),
            (
                "[source.a]\nkind = \"modbus-tcp\"\nbaud = 9600",
                "source.a.baud: unknown key; it belongs to `kind = \"serial\"` or `kind = \"modbus-rtu\"`",
            ),
            (
                "[source.a]\nkind = \"modbus-rtu\"\ntimeout = 1",
                "source.a.timeout: unknown key; did you mean `answer_ms`?",
            ),
            (
                "[source.a]\nkind = \"modbus-rtu\"\nregisters.v = { address = 1, scale = 0.1, unit_id = 2 }",
                "source.a.registers.v.scale: unknown key; it belongs to `[channel.NAME]`\n\
                 source.a.registers.v.unit_id: unknown key; did you mean `slave`?",
            ),
            ("alarms.x = 1", "alarms: unknown key; did you mean `alarm`?"),
            (
                "[source.a]\nparity = \"even\"",
                "source.a.parity: unknown key; data bits, parity and stop bits stand in `line`",
            ),
            ("[channel.t]\nabove = 80", "channel.t.above: unknown key; it belongs to `[alarm.NAME]`"),
            ("[alarm.t]\nthreshold = 80", "alarm.t.threshold: unknown key; did you mean `above`?"),
            ("site = \"s\"", "site: unknown key; it belongs to `[device]`"),
            ("[broker]\nurl = \"x\"", "broker: unknown key; did you mean `mqtt`?"),
            ("[escalate]\nband = 1", "escalate: unknown key; it belongs to `[pipeline.NAME]`"),
            ("[samples]\nenabled = true", "samples.enabled: unknown key; there is no such switch"),
        ] {
            let text = problems(toml);
            assert!(text.contains(expected), "{toml}\nsays\n{text}");
        }
    }

    /// Advice that names a key must name one that exists.
    #[test]
    fn every_key_that_advice_names_exists_in_its_section() {
        let kinds = ["serial", "modbus-rtu", "modbus-tcp", "gpio", "iio"];
        let fits = |section: &str, key: &str| {
            let mut tables = vec![format!("[{}]\n{key} = 1\n", section.replace("NAME", "x"))];
            if section.is_empty() {
                tables = vec![format!("[{key}]\n")];
            } else if section.starts_with("source") {
                let inner =
                    section.strip_prefix("source.NAME").unwrap_or("").trim_start_matches('.').replace("NAME", "x");
                let key = if inner.is_empty() { key.to_owned() } else { format!("{inner}.{key}") };
                tables = kinds.map(|kind| format!("[source.x]\nkind = \"{kind}\"\n{key} = 1\n")).to_vec();
            }
            let whole = |table: &str| {
                if section.is_empty() { format!("{key}: unknown") } else { format!("{}.{key}: unknown key", table) }
            };
            let whole = whole(&section.replace("NAME", "x"));
            tables.iter().any(|toml| !problems(toml).contains(&whole))
        };
        for (section, _, key) in MEANT {
            assert!(fits(section, key), "{section}: {key}");
        }
        for (section, keys) in HOMES {
            for key in *keys {
                assert!(fits(section, key), "{section}: {key}");
            }
        }
        assert!(!fits("device", "nothing") && !fits("source.NAME", "nothing"), "the check itself");
        for (_, keys) in OF_KINDS {
            for key in *keys {
                assert!(fits("source.NAME", key), "source: {key}");
            }
        }
    }
}
