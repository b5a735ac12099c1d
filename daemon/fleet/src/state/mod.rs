//! The state of the fleet: messages of the broker in, what is known of each device out. Pure and bounded; it is the only memory of
//! this program, and a restart makes it again from what the broker keeps and what devices say.

pub mod device;
pub mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

use self::{
    device::{Alarm, Device, Health, Line, Link, PlanState, Reported, Serving},
    read::{count, maybe, records, text, texts},
};
use crate::limits;

/// What was published to devices and the broker keeps: plans, gates, halts.
#[derive(Debug, Clone, PartialEq)]
pub struct Down {
    /// Site.
    pub site: String,
    /// `_all`, `_c-…` or a device.
    pub to: String,
    /// Payload.
    pub payload: Vec<u8>,
}

/// All devices.
#[derive(Debug, Default)]
pub struct Fleet {
    /// Empty, or it ends with `/`.
    prefix: String,
    /// By `site/device`.
    pub devices: BTreeMap<String, Device>,
    /// Plans, gates and halts by topic below `dn/`, as they came last: `plan/P`, `gate/P/1`, `halt/P`, before it `SITE/TO/`.
    pub down: BTreeMap<String, Down>,
    /// Counts changes.
    pub changes: u64,
    /// Messages of devices that found no room.
    pub ignored: u64,
    /// Messages that could not be read.
    pub unread: u64,
}

impl Fleet {
    /// An empty one; topics are below `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// The filters that feed it, below the prefix. Measurements and predictions are not among them: a fleet's are for
    /// databases, and a page follows one device at a time.
    pub fn filters(prefix: &str, site: &str) -> Vec<String> {
        let up = ["state", "birth", "reported", "h", "loss", "a/+", "e/+", "res/+/+"];
        let dn = ["plan/+", "gate/+/+", "halt/+"];
        // Plans come first: they are few, and all else of a large fleet takes its time.
        let dn = dn.iter().map(|rest| format!("{prefix}kl/{site}/+/dn/{rest}"));
        dn.chain(up.iter().map(|rest| format!("{prefix}kl/{site}/+/up/{rest}"))).collect()
    }

    /// The broker's retained messages come again: what it no longer keeps must not stay. Called with each connection.
    pub fn reconnected(&mut self) {
        self.down.clear();
        for device in self.devices.values_mut().filter(|device| !device.alarms.is_empty()) {
            self.changes += 1;
            device.changed = self.changes;
            device.alarms.clear();
        }
    }

    /// Takes a message. `now_ms`: this machine's clock. Returns the device that changed.
    pub fn on(&mut self, topic: &str, payload: &[u8], retain: bool, now_ms: i64) -> Option<String> {
        if let Some((site, to, rest)) = read::dn(topic, &self.prefix) {
            self.down(site, to, rest, payload);
            return None;
        }
        let (site, name, rest) = read::up(topic, &self.prefix)?;
        let id = format!("{site}/{name}");
        if !self.devices.contains_key(&id) && self.devices.len() >= limits::DEVICES {
            self.ignored += 1;
            return None;
        }
        let Some(value) = read::payload(payload) else {
            if payload.is_empty() {
                self.removed(&id, rest);
            } else {
                self.unread += 1;
            }
            return None;
        };
        self.changes += 1;
        let device = self.devices.entry(id.clone()).or_default();
        device.changed = self.changes;
        if !retain {
            device.heard_ms = Some(now_ms);
        }
        device.take(rest, &value);
        Some(id)
    }

    /// A retained message was removed.
    fn removed(&mut self, id: &str, rest: &str) {
        let Some(device) = self.devices.get_mut(id) else { return };
        if let Some(alarm) = rest.strip_prefix("a/")
            && device.alarms.remove(alarm).is_some()
        {
            self.changes += 1;
            device.changed = self.changes;
        }
    }

    fn down(&mut self, site: &str, to: &str, rest: &str, payload: &[u8]) {
        let key = format!("{site}/{to}/{rest}");
        self.changes += 1;
        if payload.is_empty() {
            self.down.remove(&key);
        } else if self.down.len() < limits::EACH * limits::EACH || self.down.contains_key(&key) {
            self.down.insert(key, Down { site: site.into(), to: to.into(), payload: payload.into() });
        }
    }
}

impl Device {
    /// Takes one message of its own.
    fn take(&mut self, rest: &str, value: &Value) {
        let clk = text(&value["clk"]);
        match rest {
            "state" => return self.state(value),
            "birth" => return self.birth(value),
            _ => {}
        }
        if self.is_old(rest, value) {
            return;
        }
        if value["hist"] != true && !clk.is_empty() {
            self.clk = clk;
        }
        let ts = maybe(&value["ts"]);
        match rest.split_once('/').map_or((rest, ""), |(head, tail)| (head, tail)) {
            ("h", "") => self.health = records(value).last().map(health),
            ("reported", "") => self.reported(records(value).last().unwrap_or(&Value::Null)),
            ("a", name) => records(value).last().into_iter().for_each(|record| self.alarm(name, record, value)),
            ("e", kind) => records(value).iter().for_each(|r| {
                let (state, words) = (text(&r["severity"]), format!("{}: {}", text(&r["subject"]), text(&r["text"])));
                self.note(Line { ts: ts.clone(), kind: "event", what: kind.into(), state, text: words });
            }),
            ("res", what) => records(value).iter().for_each(|r| {
                let why = [&r["why"], &r["text"]].map(text).into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>();
                let (state, words) = (text(&r["state"]), why.join(": "));
                self.note(Line { ts: ts.clone(), kind: "result", what: what.into(), state, text: words });
            }),
            ("loss", "") => records(value).iter().for_each(|r| {
                let n = count(&r["n"]).max(count(&r["at_most"]));
                let (what, state) = (text(&r["stream"]), text(&r["reason"]));
                self.note(Line { ts: ts.clone(), kind: "loss", what, state, text: format!("{n} records") });
            }),
            _ => {}
        }
    }

    /// Comes late: a newer one of this stream was seen. A device that lost its numbers begins again with another boot.
    fn is_old(&mut self, rest: &str, value: &Value) -> bool {
        let last = count(&value["seq"]["last"]);
        let late = value["hist"] == true && self.seqs.get(rest).is_some_and(|seen| last <= *seen);
        if !late && (self.seqs.len() < 4 * limits::EACH || self.seqs.contains_key(rest)) && !rest.starts_with("res/") {
            self.seqs.insert(rest.into(), last);
        }
        late
    }

    fn state(&mut self, value: &Value) {
        let state = match value["state"].as_str() {
            Some("online") => Link::Online,
            Some("stopping") => Link::Stopping,
            Some("offline") => Link::Offline,
            _ => return,
        };
        // The will was written when the connection began: its time says nothing of the end.
        if state != Link::Offline || self.state != Link::Offline {
            self.state_ts = maybe(&value["ts"]);
        }
        (self.state, self.clk, self.boot) = (state, text(&value["clk"]), text(&value["boot"]));
    }

    fn birth(&mut self, value: &Value) {
        let models = value["models"].as_array().map_or(&[][..], Vec::as_slice);
        let serving = |m: &Value| Serving {
            pipeline: text(&m["pipeline"]),
            model: text(&m["model"]),
            slot: text(&m["slot"]),
            unsigned: m["unsigned"] == true,
        };
        self.serving = models.iter().take(limits::EACH).map(serving).collect();
        (self.version, self.nonce) = (text(&value["version"]), text(&value["nonce"]));
        (self.commands, self.streams) = (texts(&value["commands"]), texts(&value["streams"]));
        (self.clk, self.boot) = (text(&value["clk"]), text(&value["boot"]));
    }

    fn alarm(&mut self, name: &str, record: &Value, whole: &Value) {
        let phase = text(&record["phase"]);
        if phase != "raised" && phase != "unknown" {
            self.alarms.remove(name);
            return;
        }
        let of = [&record["channel"], &record["class"], &whole["lineage"]["model"]];
        let alarm = Alarm {
            phase,
            severity: text(&record["severity"]),
            value: record["value"].as_f64().or(record["score"].as_f64()),
            level: record["level"].as_f64(),
            peak: record["peak"].as_f64(),
            of: of.into_iter().map(text).find(|t| !t.is_empty()).unwrap_or_default(),
            ts: maybe(&whole["ts"]),
            acknowledged: record["acknowledged"] == true,
        };
        if self.alarms.len() < limits::EACH || self.alarms.contains_key(name) {
            self.alarms.insert(name.into(), alarm);
        }
    }

    fn reported(&mut self, record: &Value) {
        let models = record["models"].as_object().into_iter().flatten().take(limits::EACH);
        self.reported = Reported {
            version: count(&record["version"]),
            state: text(&record["state"]),
            text: text(&record["text"]),
            digest: maybe(&record["config"]["digest"]),
            set_aside: texts(&record["config"]["set_aside"]),
            models: models.map(|(name, slots)| (name.clone(), slots.clone())).collect(),
        };
        let plan = |p: &Value| PlanState {
            seq: count(&p["seq"]),
            state: text(&p["state"]),
            wave: p["wave"].as_u64(),
            gates: count(&p["gates"]),
            halted: p["halted"] == true,
            n: count(&p["n"]),
            why: text(&p["why"]),
            text: text(&p["text"]),
            since: maybe(&p["since"]),
        };
        let plans = record["plans"].as_object().into_iter().flatten().take(limits::EACH);
        self.plans = plans.map(|(name, p)| (name.clone(), plan(p))).collect();
    }
}

fn health(r: &Value) -> Health {
    Health {
        uptime_s: count(&r["uptime_s"]),
        rss_kib: count(&r["rss_kib"]),
        ram_records: count(&r["ram_records"]),
        stored_records: count(&r["stored_records"]),
        stored_bytes: count(&r["stored_bytes"]),
        delivered: count(&r["delivered"]),
        lost: count(&r["lost"]),
        disk_ok: r["disk_ok"] != false,
        models: count(&r["models"]),
        models_serving: count(&r["models_serving"]),
        degraded: texts(&r["degraded"]),
    }
}
