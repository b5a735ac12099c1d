//! Discovery messages for Home Assistant: one retained message for each entity, which says where its state is and how it is read.
//! States are the device's own topics, read by templates, but for alarms: `up/a/ALARM` is kept while the alarm is raised only, and
//! Home Assistant would not know a state after its restart. So each alarm has a topic with `ON` or `OFF` beside its description.
//!
//! ```text
//! PREFIX/sensor/kl-SITE-DEVICE/m-CHANNEL/config        a channel of a measurement stream: the last live value
//! PREFIX/sensor/kl-SITE-DEVICE/p-PIPELINE/config       a score
//!                              model-PIPELINE          which model serves
//!                              backlog, lost
//! PREFIX/binary_sensor/kl-SITE-DEVICE/a-ALARM/config   an alarm
//!                                     a-ALARM/state    ON, OFF
//!                                     degraded, online
//! ```

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::config::{Config, StreamMode};

/// A message for Home Assistant.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    /// Topic; not below `mqtt.topic_prefix`.
    pub topic: String,
    /// A JSON object. Topics in it begin with `~`, which is what the device's `up/` topics begin with.
    pub payload: Value,
}

/// All discovery messages of this device; empty if that is not configured.
pub fn discovery(config: &Config) -> Vec<Discovery> {
    let Some(prefix) = &config.integrations.homeassistant else { return Vec::new() };
    let of = Of { config, prefix, node: node(config) };
    let channels = of.channels().into_iter().chain(of.scores()).chain(of.health());
    channels.chain(of.alarms()).collect()
}

/// By alarm: its stream, and the topic of its state.
pub fn alarm_states(config: &Config) -> Vec<(String, String)> {
    let Some(prefix) = &config.integrations.homeassistant else { return Vec::new() };
    let of = Of { config, prefix, node: node(config) };
    let state = |name: &String| (format!("a/{name}"), of.topic("binary_sensor", &format!("a-{name}"), "state"));
    config.alarms.iter().map(|alarm| state(&alarm.name)).collect()
}

/// The device in topics and unique ids. Site and device may hold `-`, and `a-b`/`c` must differ from `a`/`b-c`: the length of the
/// site is part of it.
fn node(config: &Config) -> String {
    let device = &config.device;
    format!("kl{}-{}-{}", device.site.len(), device.site, device.id)
}

/// The last record that is live: what was stored in an outage is no news.
const LIVE: &str = "{% if value_json.hist %}{% else %}{{ value_json.data[-1]";

struct Of<'a> {
    config: &'a Config,
    prefix: &'a str,
    node: String,
}

impl Of<'_> {
    fn topic(&self, component: &str, object: &str, last: &str) -> String {
        format!("{}/{component}/{}/{object}/{last}", self.prefix, self.node)
    }

    /// An entity with what all have.
    fn entity(&self, component: &str, object: &str, name: &str, members: Value) -> Discovery {
        let device = &self.config.device;
        let class = if device.class.is_empty() { "kentledge" } else { &device.class };
        let mut payload = json!({
            "name": name,
            "unique_id": format!("{}-{object}", self.node),
            "availability": [{"topic": "~/state", "value_template":
                "{{ 'online' if value_json.state == 'online' else 'offline' }}"}],
            "device": {"identifiers": [self.node], "name": format!("{}/{}", device.site, device.id), "manufacturer": "Kentledge",
                       "model": class, "sw_version": env!("CARGO_PKG_VERSION")},
            "origin": {"name": "kentledge", "sw_version": env!("CARGO_PKG_VERSION")},
        });
        if let (Some(whole), Value::Object(members)) = (payload.as_object_mut(), members) {
            whole.extend(members);
        }
        Discovery { topic: self.topic(component, object, "config"), payload }
    }

    /// Each channel once, from the first stream that publishes it.
    fn channels(&self) -> Vec<Discovery> {
        let mut known = BTreeSet::new();
        let streams = self.config.streams.iter();
        let all = streams.flat_map(|stream| stream.channels.iter().map(move |index| (stream, *index)));
        let once = all.filter(|(_, index)| known.insert(*index));
        once.map(|(stream, index)| {
            let channel = &self.config.channels[index];
            let part = if matches!(stream.mode, StreamMode::Stats(_)) { ".mean" } else { "" };
            let mut members = json!({
                "state_topic": format!("~/m/{}", stream.name),
                "value_template": format!("{LIVE}.v['{}']{part} }}}}{{% endif %}}", channel.name),
                "state_class": "measurement",
            });
            if !channel.unit.is_empty() {
                let (unit, class) = unit(&channel.unit);
                members["unit_of_measurement"] = unit.into();
                if let Some(class) = class {
                    members["device_class"] = class.into();
                }
                if class == Some("energy") {
                    // A meter's reading. It may only be a total.
                    members["state_class"] = "total".into();
                }
            }
            self.entity("sensor", &format!("m-{}", channel.name), &channel.name, members)
        })
        .collect()
    }

    fn scores(&self) -> Vec<Discovery> {
        let of = |name: &String| {
            let score = json!({
                "state_topic": format!("~/p/{name}"),
                "value_template": format!("{LIVE}.score }}}}{{% endif %}}"),
                "state_class": "measurement",
            });
            let model = json!({
                "state_topic": "~/birth",
                "value_template": format!(
                    "{{{{ value_json.models | selectattr('pipeline', 'eq', '{name}') | map(attribute='model') | first \
                     | default('none') }}}}"
                ),
                "entity_category": "diagnostic",
            });
            [
                self.entity("sensor", &format!("p-{name}"), &format!("{name} score"), score),
                self.entity("sensor", &format!("model-{name}"), &format!("{name} model"), model),
            ]
        };
        self.config.pipelines.iter().flat_map(|pipeline| of(&pipeline.name)).collect()
    }

    fn health(&self) -> Vec<Discovery> {
        let number = |member: &str, class: &str| {
            json!({
                "state_topic": "~/h",
                "value_template": format!("{LIVE}.{member} }}}}{{% endif %}}"),
                "state_class": class,
                "unit_of_measurement": "records",
                "entity_category": "diagnostic",
            })
        };
        let degraded = json!({
            "state_topic": "~/h",
            "value_template": "{{ 'ON' if value_json.data[-1].degraded else 'OFF' }}",
            "json_attributes_topic": "~/h",
            "json_attributes_template": "{{ {'reasons': value_json.data[-1].degraded} | tojson }}",
            "device_class": "problem",
            "entity_category": "diagnostic",
        });
        let online = json!({
            "state_topic": "~/state",
            "value_template": "{{ 'ON' if value_json.state == 'online' else 'OFF' }}",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            // It is known when the device is not there.
            "availability": [],
        });
        vec![
            self.entity("sensor", "backlog", "backlog", number("stored_records", "measurement")),
            self.entity("sensor", "lost", "lost", number("lost", "total_increasing")),
            self.entity("binary_sensor", "degraded", "degraded", degraded),
            self.entity("binary_sensor", "online", "online", online),
        ]
    }

    fn alarms(&self) -> Vec<Discovery> {
        let of = |name: &String| {
            let object = format!("a-{name}");
            // An alarm that has cleared is removed with an empty payload, which has no JSON.
            let attributes = "{% if value_json is defined %}{{ value_json.data[-1] | tojson }}{% else %}{}{% endif %}";
            let members = json!({
                "state_topic": self.topic("binary_sensor", &object, "state"),
                "json_attributes_topic": format!("~/a/{name}"),
                "json_attributes_template": attributes,
                "device_class": "problem",
            });
            self.entity("binary_sensor", &object, name, members)
        };
        self.config.alarms.iter().map(|alarm| of(&alarm.name)).collect()
    }
}

/// Home Assistant's spelling of a unit, and the device class that takes it. What is ambiguous (`g`, `%`, `C`) has no class.
fn unit(unit: &str) -> (&str, Option<&'static str>) {
    let unit = match unit {
        "degC" | "celsius" => "°C",
        "degF" => "°F",
        "m3/h" => "m³/h",
        "l/min" => "L/min",
        other => other,
    };
    let class = match unit {
        "°C" | "°F" | "K" => "temperature",
        "bar" | "mbar" | "cbar" | "Pa" | "hPa" | "kPa" | "psi" | "mmHg" | "inHg" => "pressure",
        "V" | "mV" => "voltage",
        "A" | "mA" => "current",
        "W" | "kW" => "power",
        "Wh" | "kWh" | "MWh" => "energy",
        "VA" => "apparent_power",
        "Hz" | "kHz" => "frequency",
        "m/s" | "km/h" => "speed",
        "m³/h" | "L/min" => "volume_flow_rate",
        "dB" | "dBA" => "sound_pressure",
        "dBm" => "signal_strength",
        "lx" => "illuminance",
        "mm" | "cm" | "m" | "km" => "distance",
        _ => return (unit, None),
    };
    (unit, Some(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "[device]\nsite = \"plant\"\nid = \"pump-1\"\n[source.s]\npath = \"/dev/null\"\ncolumns = [\"a\", \"b\"]\n\
        [channel.a]\nunit = \"bar\"\n[channel.b]\n[stream.raw]\nchannels = [\"a\"]\n[stream.slow]\nchannels = [\"a\", \"b\"]\n\
        mode = \"stats\"\ninterval_ms = 1000\n[alarm.high]\nchannel = \"a\"\nabove = 5.0\n";

    fn config(more: &str) -> Config {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        std::fs::write(&file, format!("{DEVICE}{more}")).expect("write");
        Config::local(Some(&file)).expect("valid")
    }

    #[test]
    fn nothing_is_made_unless_home_assistant_is_configured() {
        assert_eq!((discovery(&config("")), alarm_states(&config(""))), (Vec::new(), Vec::new()));
    }

    #[test]
    fn each_channel_alarm_and_health_has_one_message_with_a_unique_id_and_one_device() {
        let config = config("[integrations]\nhomeassistant = true\n");
        let all = discovery(&config);
        let topics: Vec<&str> = all.iter().map(|one| one.topic.as_str()).collect();
        let node = "kl5-plant-pump-1";
        let expected = [
            "sensor/N/m-a",
            "sensor/N/m-b",
            "sensor/N/backlog",
            "sensor/N/lost",
            "binary_sensor/N/degraded",
            "binary_sensor/N/online",
            "binary_sensor/N/a-high",
        ];
        let expected: Vec<String> =
            expected.iter().map(|rest| format!("homeassistant/{}/config", rest.replace('N', node))).collect();
        assert_eq!(topics, expected);
        let ids: BTreeSet<String> = all.iter().map(|one| one.payload["unique_id"].to_string()).collect();
        assert_eq!(ids.len(), all.len());
        assert!(all.iter().all(|one| one.payload["device"]["identifiers"] == json!([node])));
        let (a, b) = (&all[0].payload, &all[1].payload);
        assert_eq!(
            (&a["state_topic"], &a["unit_of_measurement"], &a["device_class"]),
            (&json!("~/m/raw"), &json!("bar"), &json!("pressure"))
        );
        assert_eq!(
            a["value_template"],
            "{% if value_json.hist %}{% else %}{{ value_json.data[-1].v['a'] }}{% endif %}"
        );
        assert!(
            b["value_template"].as_str().expect("text").contains(".v['b'].mean }}")
                && b.get("unit_of_measurement").is_none()
        );
        let state = "homeassistant/binary_sensor/kl5-plant-pump-1/a-high/state";
        assert_eq!(all[6].payload["state_topic"], state);
        assert_eq!(alarm_states(&config), [("a/high".to_owned(), state.to_owned())]);
    }

    #[test]
    fn devices_whose_names_join_to_the_same_text_have_ids_of_their_own() {
        let of = |site: &str, id: &str| {
            let mut config = config("");
            (config.device.site, config.device.id) = (site.into(), id.into());
            node(&config)
        };
        assert_ne!(of("a-b", "c"), of("a", "b-c"));
    }
}
