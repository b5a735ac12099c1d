//! The table of streams: every topic below `up/` that carries records, and what is announced of each.

use std::{fmt::Write, sync::Arc};

use crate::{
    config::{self, Config, Pipeline, StreamMode},
    control::command,
    flow::{
        StreamId,
        event::{EventStreams, Kind},
        record::json_str,
    },
    host::Host,
    integrations::homeassistant,
    link::{Announce, Beside},
    report::{counters::Counters, status},
    signal,
};

/// Places of all streams.
pub struct Table {
    /// Names below `up/`, by `StreamId`.
    pub names: Vec<String>,
    /// What the signal stage makes.
    pub signal: signal::Streams,
    /// `up/a/ALARM`, by alarm.
    pub alarms: Vec<StreamId>,
    /// `up/e/KIND`.
    pub events: EventStreams,
    /// `up/h`.
    pub health: StreamId,
    /// `up/loss`.
    pub loss: StreamId,
    /// `up/res/TYPE/ID`: one stream, each of its messages below a topic of its own.
    pub results: StreamId,
    /// `up/reported`
    pub reported: StreamId,
    /// `up/q/drift/PIPELINE`, by pipeline.
    pub drift: Vec<StreamId>,
    /// `up/blob/SHA256`: as results, each message below a topic of its own.
    pub blob: StreamId,
    /// `up/q/shadow/PIPELINE`, by pipeline.
    pub shadow: Vec<StreamId>,
    /// `up/p/PIPELINE/cloud`, by pipeline, where it escalates.
    pub cloud: Vec<Option<StreamId>>,
}

impl Table {
    /// The streams of a configuration.
    pub fn new(config: &Config) -> Self {
        let mut names: Vec<String> = Vec::new();
        let mut add = |name: String| {
            names.push(name);
            StreamId((names.len() - 1) as u16)
        };
        let quality = config.sources.iter().map(|s| add(format!("q/{}", s.name))).collect();
        let measurement = config.streams.iter().map(|s| add(format!("m/{}", s.name))).collect();
        let prediction = config.pipelines.iter().map(|p| add(format!("p/{}", p.name))).collect();
        let alarms = config.alarms.iter().map(|a| add(format!("a/{}", a.name))).collect();
        let events = EventStreams(Kind::ALL.iter().map(|kind| add(format!("e/{}", kind.word()))).collect());
        let health = add("h".into());
        let loss = add("loss".into());
        let (results, reported, blob) = (add("res".into()), add("reported".into()), add("blob".into()));
        let drift = config.pipelines.iter().map(|p| add(format!("q/drift/{}", p.name))).collect();
        let shadow = config.pipelines.iter().map(|p| add(format!("q/shadow/{}", p.name))).collect();
        let cloud = config.pipelines.iter().map(|p| p.escalate.as_ref().map(|_| add(format!("p/{}/cloud", p.name))));
        let cloud = cloud.collect();
        let signal = signal::Streams { quality, measurement, prediction, events: events.clone() };
        Self { names, signal, alarms, events, health, loss, results, reported, drift, blob, shadow, cloud }
    }

    /// One more stream: of something that is not configured any more.
    pub fn add(&mut self, name: String) -> StreamId {
        self.names.push(name);
        StreamId((self.names.len() - 1) as u16)
    }
}

/// What is announced with each connection.
pub fn announce(host: &Host, config: &Config, counters: &Arc<Counters>, gone: Removed) -> Announce {
    let mut birth = String::from("\"device\":");
    json_str(&mut birth, &format!("{}/{}", config.device.site, config.device.id));
    let _ = write!(birth, ",\"version\":\"{}\",\"schema\":1,\"streams\":[", env!("CARGO_PKG_VERSION"));
    let streams = config.streams.iter().map(|s| format!("m/{}", s.name));
    let predictions = config.pipelines.iter().map(|p| format!("p/{}", p.name));
    for (i, name) in streams.chain(predictions).enumerate() {
        birth.push_str(if i > 0 { "," } else { "" });
        json_str(&mut birth, &name);
    }
    birth.push_str("],\"commands\":[");
    // Without keys the device refuses every signed command: it does not offer them.
    let signed = config.commands.keyset.is_some() || config.commands.allow_unsigned;
    for (i, row) in command::TABLE.iter().filter(|row| signed || !row.signed).enumerate() {
        birth.push_str(if i > 0 { "," } else { "" });
        json_str(&mut birth, row.name);
    }
    birth.push(']');
    let measured = config.streams.iter().map(|s| (s.name.clone(), meta(config, s)));
    let predicted = config.pipelines.iter().map(|p| (format!("p/{}", p.name), meta_of_predictions(config, p)));
    let meta = measured.chain(predicted).collect();
    let beside = beside(config, gone.beside);
    let (config, counters) = (config.clone(), counters.clone());
    let birth = move || {
        let serving = |i: usize| config::group_of(&config, i).and_then(|group| counters.serving(group));
        let models = config.pipelines.iter().enumerate().map(|(i, pipeline)| {
            let mut model = status::model(pipeline, serving(i).as_ref());
            if let Some(model) = model.as_object_mut() {
                model.insert("pipeline".into(), pipeline.name.as_str().into());
            }
            model
        });
        format!("{birth},\"models\":{}", serde_json::Value::from_iter(models))
    };
    Announce { boot: host.boot.clone(), birth: Box::new(birth), meta, gone: gone.streams, beside }
}

/// Topics that are not configured any more.
#[derive(Debug, Default)]
pub struct Removed {
    /// Below `up/`.
    pub streams: Vec<String>,
    /// Of other programs, whole.
    pub beside: Vec<String>,
}

/// Messages for other programs.
fn beside(config: &Config, gone: Vec<String>) -> Beside {
    // The members without the braces: the link adds what depends on the connection.
    let members = |payload: serde_json::Value| {
        let text = payload.to_string();
        text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or_default().to_owned()
    };
    let kept = homeassistant::discovery(config).into_iter().map(|one| (one.topic, members(one.payload))).collect();
    Beside { kept, alarms: homeassistant::alarm_states(config), gone }
}

fn meta(config: &Config, stream: &config::Stream) -> String {
    let mut out = String::from("\"stream\":");
    json_str(&mut out, &stream.name);
    let _ = match stream.mode {
        StreamMode::Raw => write!(out, ",\"type\":\"raw\""),
        StreamMode::Decimate(every) => write!(out, ",\"type\":\"decimate\",\"every\":{every}"),
        StreamMode::Stats(ms) => write!(out, ",\"type\":\"stats\",\"interval_ms\":{ms}"),
    };
    describe(config, &stream.channels, &mut out);
    out
}

/// What predictions are made of. Their stream is `p/NAME`, so that it differs from a measurement stream of that name.
fn meta_of_predictions(config: &Config, pipeline: &Pipeline) -> String {
    let mut out = String::from("\"stream\":");
    json_str(&mut out, &format!("p/{}", pipeline.name));
    out.push_str(",\"type\":\"prediction\"");
    describe(config, &pipeline.channels, &mut out);
    out
}

/// The clock and the unit of `in_t_ns`, and the unit of each channel; also its clock, where they differ.
fn describe(config: &Config, channels: &[usize], out: &mut String) {
    let own = |channel: &usize| config.sources[usize::from(config.channels[*channel].source.0)].time.is_some();
    let clock = match channels.iter().filter(|channel| own(channel)).count() {
        0 => "boot",
        n if n == channels.len() => "sensor",
        _ => "mixed",
    };
    let _ = write!(out, ",\"clock\":\"{clock}\",\"time_unit\":\"ns\",\"channels\":{{");
    for (i, index) in channels.iter().enumerate() {
        let channel = &config.channels[*index];
        out.push_str(if i > 0 { "," } else { "" });
        json_str(out, &channel.name);
        out.push_str(":{\"unit\":");
        json_str(out, &channel.unit);
        if clock == "mixed" {
            let _ = write!(out, ",\"clock\":\"{}\"", if own(index) { "sensor" } else { "boot" });
        }
        out.push('}');
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_names_clock_and_unit_of_the_times_of_measurements_and_of_each_channel_where_they_differ() {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        let text = "[device]\nsite = \"s\"\nid = \"d\"\n[source.own]\npath = \"/dev/a\"\ncolumns = [\"t\", \"a\"]\ntime = \"t\"\n\
                    time_format = \"ms\"\n[source.ours]\npath = \"/dev/b\"\ncolumns = [\"b\"]\n[channel.a]\nsource = \"own\"\n\
                    unit = \"bar\"\n[channel.b]\nsource = \"ours\"\n\
                    [stream.one]\nchannels = [\"a\"]\n[stream.two]\nchannels = [\"b\"]\n";
        std::fs::write(&file, text).expect("write");
        let config = Config::local(Some(&file)).expect("valid");
        let described = |channels: &[usize]| {
            let mut out = String::from("\"x\":0");
            describe(&config, channels, &mut out);
            serde_json::from_str::<serde_json::Value>(&format!("{{{out}}}")).expect("JSON")
        };
        let one = described(&config.streams[0].channels);
        assert_eq!((&one["clock"], &one["time_unit"]), (&"sensor".into(), &"ns".into()));
        assert_eq!(one["channels"], serde_json::json!({"a": {"unit": "bar"}}));
        assert_eq!(described(&config.streams[1].channels)["clock"], "boot");
        let both = described(&[0, 1]);
        assert_eq!((&both["clock"], &both["channels"]["a"]["clock"]), (&"mixed".into(), &"sensor".into()));
        assert_eq!(both["channels"]["b"]["clock"], "boot");
    }
}
