//! What the broker may still keep of this device though it is not configured any more: alarms that were raised, and
//! descriptions of streams. It is found at the start of each run, so also after a reload, and where the configuration
//! changed while the daemon was stopped.
//!
//! ```text
//! STATE/alarms/NAME             an alarm that is raised
//!       retained/streams.json   streams whose `up/meta/STREAM` was announced, alarms that were configured, and topics of other
//!                               programs; two copies with checksums
//! ```
//!
//! The link removes what is gone with its next connection; an alarm that is gone while it is raised also gets a last record,
//! `removed`. Both are known on the disk until the broker has acknowledged it. An alarm's state is written after its record is sent,
//! so a power cut between may leave one at the broker that has no state here: hence the list of alarms.

use std::{collections::BTreeSet, path::Path};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    config::Config,
    flow::{Class, Draft, Retain, Stamp, StreamId, order::LinkNews, record::json_str},
    host::{Keep, Unloaded},
    integrations::homeassistant,
    limits,
};

use super::streams::{Removed, Table};

const FILE: &str = "streams.json";

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Announced {
    streams: BTreeSet<String>,
    /// Absent in the file of an older version.
    #[serde(default)]
    alarms: BTreeSet<String>,
    /// Topics of other programs, whole.
    #[serde(default)]
    beside: BTreeSet<String>,
}

/// What is gone.
pub struct Gone {
    alarms: Vec<(String, StreamId)>,
    /// Alarms that were configured, and are not known to be raised.
    quiet: Vec<String>,
    streams: Vec<String>,
    beside: Vec<String>,
    announced: Announced,
    keep: (Keep, Option<Keep>),
}

impl Gone {
    /// Compares what was retained with what is configured, and gives each alarm that is gone its old stream.
    pub fn find(state_dir: &Path, config: &Config, table: &mut Table) -> Self {
        let raised = Keep::at(state_dir.join("alarms"));
        let retained = Keep::at(state_dir.join("retained"));
        let measured = config.streams.iter().map(|stream| stream.name.clone());
        let predicted = config.pipelines.iter().map(|pipeline| format!("p/{}", pipeline.name));
        let configured = config.alarms.iter().map(|alarm| alarm.name.clone());
        let beside = homeassistant::discovery(config).into_iter().map(|one| one.topic);
        let beside = beside.chain(homeassistant::alarm_states(config).into_iter().map(|(_, topic)| topic)).collect();
        let announced =
            Announced { streams: measured.chain(predicted).collect(), alarms: configured.collect(), beside };
        let is_gone = |name: &String| !name.contains('.') && config.alarms.iter().all(|alarm| alarm.name != *name);
        let names = raised.names().into_iter().filter(is_gone).take(limits::RETAINED_GONE);
        let alarms: Vec<(String, StreamId)> =
            names.map(|name| (name.clone(), table.add(format!("a/{name}")))).collect();
        // A list that is damaged is made again; what it named is described once more when it is configured again.
        let before = match retained.load_checked::<Announced>(FILE) {
            Ok(before) => before.unwrap_or_default(),
            Err(Unloaded::Damaged) => Announced::default(),
            Err(why) => {
                // It stays as it is: the next start compares.
                tracing::error!(
                    "the list of announced streams {why}; streams that are not configured any more stay at the broker"
                );
                let (quiet, streams, beside) = (Vec::new(), Vec::new(), Vec::new());
                return Self { alarms, quiet, streams, beside, announced, keep: (raised, None) };
            }
        };
        let gone = |before: &BTreeSet<String>, now: &BTreeSet<String>| -> Vec<String> {
            before.difference(now).take(limits::RETAINED_GONE).cloned().collect()
        };
        let with = |now: &BTreeSet<String>, gone: &[String]| now.iter().chain(gone).cloned().collect();
        let streams = gone(&before.streams, &announced.streams);
        let mut quiet = gone(&before.alarms, &announced.alarms);
        let beside = gone(&before.beside, &announced.beside);
        let all = Announced {
            streams: with(&announced.streams, &streams),
            alarms: with(&announced.alarms, &quiet),
            beside: with(&announced.beside, &beside),
        };
        quiet.retain(|name| alarms.iter().all(|(raised, _)| raised != name));
        if all != before
            && let Err(why) = retained.save_checked(FILE, &all)
        {
            tracing::error!("save the list of announced streams: {why}; it is tried again at the next start");
        }
        Self { alarms, quiet, streams, beside, announced, keep: (raised, Some(retained)) }
    }

    /// What the link removes.
    pub fn removed(&self) -> Removed {
        Removed { streams: self.topics(), beside: self.beside.clone() }
    }

    /// Of it what is below `up/`.
    fn topics(&self) -> Vec<String> {
        let alarms = self.alarms.iter().map(|(name, _)| name).chain(&self.quiet).map(|name| format!("a/{name}"));
        alarms.chain(self.streams.iter().map(|name| format!("meta/{name}"))).collect()
    }

    /// The last record of each alarm that is gone.
    pub fn records(&self, stamp: Stamp) -> Vec<Draft> {
        let record = |(name, stream): &(String, StreamId)| {
            tracing::warn!(alarm = name, "alarm removed: its episode is open and it is not configured any more");
            let saved = self.keep.0.load(name).ok().flatten();
            Draft {
                stream: *stream,
                class: Class::Event,
                stamp,
                lineage: None,
                body: removed(name, saved.as_deref()).into(),
                retain: Retain::Remove,
            }
        };
        self.alarms.iter().map(record).collect()
    }

    /// Forgets what is gone when the broker has acknowledged that it is removed. Ends with the run at the latest.
    pub async fn settle(self, mut news: watch::Receiver<LinkNews>) {
        let none =
            [&self.quiet, &self.streams, &self.beside].iter().all(|gone| gone.is_empty()) && self.alarms.is_empty();
        if none || news.wait_for(|news| news.cleared).await.is_err() {
            return;
        }
        // The disk may take its time; this is the thread of all edges.
        let _ = tokio::task::spawn_blocking(move || self.forget()).await;
    }

    fn forget(&self) {
        let (alarms, retained) = &self.keep;
        let forgotten = self.alarms.iter().try_for_each(|(name, _)| alarms.remove(name));
        let listed = || retained.as_ref().map_or(Ok(()), |retained| retained.save_checked(FILE, &self.announced));
        if let Err(why) = forgotten.and_then(|()| listed()) {
            tracing::error!(
                "forget removed alarms and streams: {why}; the next start removes them at the broker again"
            );
        }
    }
}

/// The members of the last record, with what is known of the episode.
fn removed(name: &str, saved: Option<&[u8]>) -> String {
    let saved: serde_json::Value = saved.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
    let mut out = String::from("\"alarm\":");
    json_str(&mut out, name);
    out.push_str(",\"id\":");
    json_str(&mut out, saved["id"].as_str().unwrap_or("unknown"));
    out.push_str(",\"phase\":\"removed\",\"reason\":\"not_configured\"");
    for (key, from) in [("level", "level"), ("peak", "peak"), ("raised_seq", "in_seq"), ("raised_t_ns", "in_t_ns")] {
        // One that was only unknown has no level.
        if saved["raised"] != false && !saved[from].is_null() {
            out.push_str(&format!(",\"{key}\":{}", saved[from]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The device with these streams and no alarm.
    fn config(state: &Path, streams: &[&str]) -> Config {
        let file = state.join("c.toml");
        let all: String = streams.iter().map(|name| format!("[stream.{name}]\nchannels = [\"a\"]\n")).collect();
        let text = format!(
            "[device]\nsite = \"s\"\nstate_dir = \"{}\"\n[source.s]\npath = \"/dev/null\"\ncolumns = [\"a\"]\n[channel.a]\n{all}",
            state.display()
        );
        std::fs::write(&file, text).expect("write");
        Config::local(Some(&file)).expect("valid")
    }

    #[tokio::test]
    async fn retained_records_of_what_is_gone_are_known_until_the_broker_has_removed_them() {
        let dir = tempfile::tempdir().expect("folder");
        let raised = "{\"id\":\"e-1\",\"level\":10.0,\"peak\":11.5,\"in_seq\":[1,4],\"in_t_ns\":[5,6]}";
        Keep::open(dir.path(), "alarms").expect("keep").save("hot", raised.as_bytes()).expect("save");
        let find = |streams: &[&str]| {
            let config = config(dir.path(), streams);
            let mut table = Table::new(&config);
            (Gone::find(dir.path(), &config, &mut table), table)
        };
        find(&["x", "y"]);
        // However often it starts without a broker.
        for _ in 0..3 {
            let (gone, table) = find(&["y"]);
            assert_eq!(gone.topics(), ["a/hot", "meta/x"]);
            let record = gone.records(Stamp::from_sensor(0)).remove(0);
            assert_eq!(table.names[usize::from(record.stream.0)], "a/hot");
            let text = String::from_utf8(record.body.to_vec()).expect("text");
            assert_eq!(
                text,
                "\"alarm\":\"hot\",\"id\":\"e-1\",\"phase\":\"removed\",\"reason\":\"not_configured\",\"level\":10.0,\
                 \"peak\":11.5,\"raised_seq\":[1,4],\"raised_t_ns\":[5,6]"
            );
        }
        let (gone, _) = find(&["y"]);
        let (tell, news) = watch::channel(LinkNews::default());
        tell.send_replace(LinkNews { cleared: true, ..LinkNews::default() });
        gone.settle(news).await;
        assert_eq!(find(&["y"]).0.topics(), Vec::<String>::new());
    }

    #[test]
    fn an_alarm_that_is_gone_is_cleared_at_the_broker_though_no_state_of_it_was_saved() {
        let dir = tempfile::tempdir().expect("folder");
        let find = |alarms: &[&str]| {
            let mut config = config(dir.path(), &[]);
            let text: String =
                alarms.iter().map(|name| format!("[alarm.{name}]\nchannel = \"a\"\nabove = 1.0\n")).collect();
            if !text.is_empty() {
                let file = dir.path().join("c.toml");
                let whole = std::fs::read_to_string(&file).expect("read") + &text;
                std::fs::write(&file, whole).expect("write");
                config = Config::local(Some(&file)).expect("valid");
            }
            let mut table = Table::new(&config);
            Gone::find(dir.path(), &config, &mut table)
        };
        assert_eq!(find(&["hot", "loud"]).topics(), Vec::<String>::new());
        for _ in 0..2 {
            let gone = find(&["loud"]);
            assert_eq!((gone.topics(), gone.records(Stamp::from_sensor(0)).len()), (vec!["a/hot".to_owned()], 0));
        }
        find(&["loud"]).forget();
        assert_eq!(find(&["loud"]).topics(), Vec::<String>::new());
        assert_eq!(find(&["hot", "loud"]).topics(), Vec::<String>::new(), "configured again");
    }

    #[test]
    fn topics_of_home_assistant_are_removed_when_it_is_switched_off_and_known_until_then() {
        let dir = tempfile::tempdir().expect("folder");
        let find = |on: bool| {
            let mut config = config(dir.path(), &["x"]);
            config.integrations.homeassistant = on.then(|| "homeassistant".to_owned());
            Gone::find(dir.path(), &config, &mut Table::new(&config))
        };
        assert_eq!(find(true).removed().beside, Vec::<String>::new());
        for _ in 0..2 {
            let removed = find(false).removed();
            assert!(removed.streams.is_empty() && removed.beside.len() > 3, "{removed:?}");
            assert!(removed.beside.iter().all(|topic| topic.starts_with("homeassistant/")), "{removed:?}");
        }
        find(false).forget();
        assert!(find(false).removed().beside.is_empty());
    }

    #[test]
    fn a_damaged_alarm_state_still_makes_a_record() {
        for bytes in [&b""[..], b"{", b"[1]", b"{\"id\":7}"] {
            assert!(removed("hot", Some(bytes)).contains("\"id\":\"unknown\",\"phase\":\"removed\""));
        }
    }
}
