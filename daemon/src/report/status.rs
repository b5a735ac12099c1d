//! How the device is, as one JSON document: what `kentledge status`, `top`, D-Bus and the command `status` show. Its
//! shape is `docs/schema/status.json`.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
};

use serde_json::{Value, json};

use crate::{
    config::{self, Config, Watches},
    flow::{
        alarm::{AlarmSign, Unwatched},
        board::Board,
        meter::{ChannelMeter, ChannelState, Histogram, Lost, Meters, PipelineMeter, SourceMeter},
        samples::CLASS_WORDS,
        verdict::Serving,
    },
    host::{Clock, clock::rfc3339_ms},
    limits,
    outbox::Writer,
};

use super::{
    counters::{Counters, rss_kib},
    escalation::escalation,
};

/// Scores of the last minutes, by pipeline: the highest of each half second.
#[derive(Debug, Default)]
pub struct History(Mutex<Vec<VecDeque<f32>>>);

impl History {
    /// The next half second.
    pub fn note(&self, meters: &Meters) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.resize_with(meters.pipelines.len(), VecDeque::new);
        for (scores, meter) in all.iter_mut().zip(&meters.pipelines) {
            scores.push_back(meter.take_peak());
            while scores.len() > limits::HISTORY {
                scores.pop_front();
            }
        }
    }

    fn of(&self, pipeline: usize) -> Vec<f32> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(pipeline).map(|scores| scores.iter().copied().collect()).unwrap_or_default()
    }
}

/// All that is looked at.
#[derive(Clone)]
pub struct Status {
    /// What is in use.
    pub config: Arc<Config>,
    /// What stages count.
    pub meters: Arc<Meters>,
    /// What stages show each other.
    pub board: Arc<Board>,
    /// What stages tell.
    pub counters: Arc<Counters>,
    /// Scores of the last minutes.
    pub history: Arc<History>,
    /// The outbox.
    pub writer: Writer,
    /// The time.
    pub clock: Arc<Clock>,
    /// This boot.
    pub boot: String,
    /// When the daemon started, ns since boot.
    pub began_ns: u64,
}

impl Status {
    /// The document.
    pub fn json(&self) -> Value {
        let now = self.clock.now();
        let config = &self.config;
        let stats = self.writer.stats();
        let (degraded, link) = (self.degraded(), self.counters.why_offline());
        let lost: Vec<Value> = (stats.lost.iter())
            .map(|((stream, reason), n)| json!({"stream": stream, "reason": reason, "n": n}))
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": {"site": config.device.site, "id": config.device.id},
            "state": if degraded.is_empty() { "running" } else { "degraded" },
            "degraded": degraded,
            "uptime_s": now.boot_ns.saturating_sub(self.began_ns) / 1_000_000_000,
            "boot": self.boot,
            "clock": {"ts": now.wall_ms.map(rfc3339_ms), "clk": now.clk.word()},
            "link": {
                "configured": config.mqtt.is_some(),
                "broker": self.counters.broker(),
                "online": stats.online,
                "why": Some(link).filter(|why| !why.is_empty()),
                "connections": self.meters.connections.get(),
                "acknowledge": latency(&self.meters.acknowledge),
            },
            "sources": self.sources(now.boot_ns),
            "channels": self.channels(),
            "pipelines": self.pipelines(now.boot_ns),
            "alarms": self.alarms(now.boot_ns),
            "outbox": {
                "ram_records": stats.ram_records, "ram_bytes": stats.ram_bytes,
                "stored_records": stats.stored_records, "stored_bytes": stats.stored_bytes,
                "max_bytes": config.outbox.max_bytes,
                "oldest_s": stats.oldest_ns.map(|ns| ns / 1_000_000_000),
                "delivered": stats.delivered, "disk_ok": stats.disk_ok, "opening": stats.opening,
                "quarantines": stats.quarantines,
                "commit": latency(&self.meters.commit),
            },
            "lost": lost,
            "signal": latency(&self.meters.signal),
            "commands": {
                "accepted": self.meters.commands_accepted.get(), "refused": self.meters.commands_refused.get(),
                "dropped": self.meters.commands_dropped.get(),
            },
            "samples": self.samples(),
            "models": self.counters.slots(),
            "system": self.counters.system(),
            "unwell": self.unwell(),
            "config": {"set_aside": config.set_aside},
            "machine": machine(&self.counters),
        })
    }

    /// The store of samples; null: no window is kept, and nothing is fetched.
    fn samples(&self) -> Value {
        let meters = &self.meters.samples;
        let pull = meters.pull();
        if !self.config.samples.is_on() && pull.is_none() {
            return Value::Null;
        }
        let by_class = |n: &dyn Fn(usize) -> u64| {
            let all = CLASS_WORDS.iter().enumerate().map(|(i, word)| ((*word).to_owned(), n(i).into()));
            all.collect::<serde_json::Map<_, _>>()
        };
        json!({
            "max_bytes": self.config.samples.max_bytes, "bytes": meters.bytes.load(Relaxed),
            "windows": by_class(&|i| meters.windows[i].load(Relaxed)), "labels": meters.labels.load(Relaxed),
            "evicted": by_class(&|i| meters.evicted[i].get()),
            "dropped": {"lane": meters.lane.get(), "full": meters.full.get(),
                        "rate": meters.rate.get(), "disk": meters.disk.get()},
            "damaged": meters.damaged.get(), "pulled_bytes": meters.pulled.get(),
            "pull": pull.map(|pull| json!({
                "type": pull.kind, "id": pull.id, "size": pull.size, "sent": pull.sent, "waits": pull.waits,
            })),
        })
    }

    /// Everything that is not as it should be, one sentence each; empty: healthy.
    pub fn degraded(&self) -> Vec<String> {
        let stats = self.writer.stats();
        let mut why = Vec::new();
        if self.config.mqtt.is_none() {
            why.push("no broker is configured".to_owned());
        } else if !stats.online {
            let link = self.counters.why_offline();
            why.push(if link.is_empty() { "offline".into() } else { format!("offline ({link})") });
        } else if let Some(link) = Some(self.counters.why_offline()).filter(|why| !why.is_empty()) {
            why.push(link);
        }
        if self.config.sources.is_empty() {
            why.push("no source is configured".into());
        }
        for (source, meter) in self.config.sources.iter().zip(&self.meters.sources) {
            match meter.noise.load(Relaxed) {
                2 => why.push(format!("source {}: nothing but noise, perhaps its baud is wrong", source.name)),
                3 => why.push(format!("source {}: what comes is not in its format", source.name)),
                1 => why.push(format!("source {}: more than half of its frames are refused", source.name)),
                _ => {}
            }
            why.extend(meter.lost().text().map(|lost| format!("source {} is lost: {lost}", source.name)));
        }
        for (channel, meter) in self.config.channels.iter().zip(&self.meters.channels) {
            match meter.state() {
                ChannelState::Good => {}
                ChannelState::Bad => why.push(format!("channel {}: most of its values are bad", channel.name)),
                ChannelState::Silent => why.push(format!("channel {}: no value comes", channel.name)),
            }
        }
        let now_ns = self.clock.now().boot_ns;
        for (place, pipeline) in self.config.pipelines.iter().enumerate() {
            // Where a source is lost or a model is missing, that is the reason.
            if self.is_stale(place, now_ns) && !self.lacks_source(pipeline) && self.serves(place) {
                why.push(format!("pipeline {}: no new prediction", pipeline.name));
            }
        }
        if !self.config.outputs.is_empty() {
            if !self.board.outputs_held.load(Relaxed) {
                why.push("the outputs are not held".into());
            } else if !self.board.outputs_follow.load(Relaxed) {
                why.push("an output's Modbus device cannot be written".into());
            }
        }
        let (serving, models) = (self.counters.models().0, self.models());
        if serving < models {
            why.push(format!("{serving} of {models} models serving"));
        }
        let pipelines = self.config.pipelines.iter().zip(&self.meters.pipelines);
        why.extend(
            pipelines
                .filter(|(_, meter)| meter.behind.load(Relaxed))
                .map(|(p, _)| format!("pipeline {} is behind", p.name)),
        );
        if self.counters.slots()["stale"] == true {
            why.push("the word on the newest models is out of date".into());
        }
        if stats.opening {
            why.push("the stored records are being opened".into());
        } else if self.counters.is_disk_hanging() {
            why.push("the disk does not answer".into());
        } else if !stats.disk_ok {
            why.push("the disk is not writable".into());
        }
        if stats.quarantines > 0 {
            why.push(format!("{} damaged stores set aside", stats.quarantines));
        }
        why.extend(self.config.not_provisioned.as_ref().map(|_| "provision.toml was not taken over".to_owned()));
        if !self.config.set_aside.is_empty() {
            why.push("the configuration that was set remotely does not validate".into());
        }
        why
    }

    /// The last score of this pipeline is too old to be shown as its state.
    fn is_stale(&self, pipeline: usize, now_ns: u64) -> bool {
        let meter = &self.meters.pipelines[pipeline];
        let (last_ns, period_ns) = (meter.last_ns.load(Relaxed), meter.period_ns.load(Relaxed));
        let most_ns = match period_ns {
            0 => limits::LOST_FIRST_NS,
            period_ns => limits::SCORE_NS.max(period_ns.saturating_mul(limits::LOST_PERIODS)),
        };
        // What goes on without a source that is lost, over what it had last, says so by its coverage.
        let most_ns = if self.lacks_source(&self.config.pipelines[pipeline]) { limits::SCORE_NS } else { most_ns };
        last_ns > 0 && now_ns.saturating_sub(last_ns) > most_ns
    }

    /// A source that this pipeline needs is lost.
    fn lacks_source(&self, pipeline: &config::Pipeline) -> bool {
        let source = |channel: &usize| usize::from(self.config.channels[*channel].source.0);
        pipeline.channels.iter().any(|channel| self.meters.sources[source(channel)].lost() != Lost::No)
    }

    /// A model serves this pipeline.
    fn serves(&self, pipeline: usize) -> bool {
        config::group_of(&self.config, pipeline).is_some_and(|group| self.counters.serving(group).is_some())
    }

    /// Why a system that has just started is unhealthy, beyond the broker; empty: healthy. Only what an operating system can
    /// break: not a silent sensor, nor a bundle that is still awaited.
    fn unwell(&self) -> Vec<String> {
        let mut why = Vec::new();
        let groups = config::groups(&self.config).into_iter().enumerate();
        let there = |group: &[usize]| !self.config.pipelines[group[0]].model.file.as_os_str().is_empty();
        for (place, group) in groups.filter(|(_, group)| there(group)) {
            if self.counters.serving(place).is_none() {
                why.push(format!("no model serves `{}`", self.config.pipelines[group[0]].name));
            }
        }
        if !self.writer.stats().disk_ok {
            why.push("the outbox cannot write".into());
        }
        why
    }

    /// Models that are configured: each has a worker, however many pipelines use it.
    pub fn models(&self) -> usize {
        config::groups(&self.config).len()
    }

    fn sources(&self, now_ns: u64) -> Vec<Value> {
        let of = |(source, meter): (&config::Source, &SourceMeter)| {
            let last_ns = meter.last_ns.load(Relaxed);
            let silent_ms = (last_ns > 0).then(|| now_ns.saturating_sub(last_ns) / 1_000_000);
            let quality = match (meter.noise.load(Relaxed), silent_ms) {
                (2, _) => "wrong_baud",
                (3, _) => "wrong_format",
                (1, _) => "noisy",
                (_, None) => "waiting",
                (_, Some(ms)) if ms > source.stale_ms => "stale",
                _ => "ok",
            };
            json!({
                "name": source.name, "path": source.port.shown(), "quality": quality, "silent_ms": silent_ms,
                "rows": meter.rows.get(), "rows_s": meter.rate.get(), "refused": meter.refused.get(),
                "missing": meter.missing.get(), "shed": meter.shed.get(), "lost": meter.lost().text(),
            })
        };
        self.config.sources.iter().zip(&self.meters.sources).map(of).collect()
    }

    fn pipelines(&self, now_ns: u64) -> Vec<Value> {
        let groups = config::groups(&self.config);
        let of = |(i, (pipeline, meter)): (usize, (&config::Pipeline, &PipelineMeter))| {
            let serving = groups.iter().position(|group| group.contains(&i)).and_then(|at| self.counters.serving(at));
            let model = model(pipeline, serving.as_ref());
            let stale = self.is_stale(i, now_ns);
            let escalation = pipeline.escalate.as_ref().map(|rules| escalation(rules, &meter.escalation));
            let mut pipeline = json!({
                "name": pipeline.name, "serving": serving.is_some(), "learning": meter.learning.load(Relaxed),
                "behind": meter.behind.load(Relaxed), "stale": stale, "predictions": meter.predictions.get(),
                "score": meter.score.get().filter(|_| !stale), "threshold": meter.threshold.get(),
                "history": self.history.of(i), "infer": latency(&meter.infer),
            });
            if let (Some(all), Value::Object(model)) = (pipeline.as_object_mut(), model) {
                all.extend(model);
                all.extend(escalation.map(|shown| ("escalation".to_owned(), shown)));
            }
            pipeline
        };
        self.config.pipelines.iter().zip(&self.meters.pipelines).enumerate().map(of).collect()
    }

    fn channels(&self) -> Vec<Value> {
        let of = |(channel, meter): (&config::Channel, &ChannelMeter)| {
            json!({
                "name": channel.name, "source": self.config.sources[usize::from(channel.source.0)].name,
                "state": meter.state().word(), "values": meter.values.get(), "bad": meter.bad.get(),
                "bad_share": meter.share.get(),
            })
        };
        self.config.channels.iter().zip(&self.meters.channels).map(of).collect()
    }

    fn alarms(&self, now_ns: u64) -> Vec<Value> {
        type One<'a> = (&'a config::Alarm, &'a AlarmSign);
        let of = |(alarm, sign): One<'_>| {
            let (raised, shown) = (sign.is_raised(), sign.shown());
            let stale = matches!(alarm.watches, Watches::Pipeline(pipeline) if self.is_stale(pipeline, now_ns));
            let state = match shown.unknown {
                Some(_) => "unknown",
                None if raised => "raised",
                None => "normal",
            };
            json!({
                "name": alarm.name, "severity": alarm.severity, "raised": raised, "stale": stale, "state": state,
                "reason": shown.unknown.map(Unwatched::word), "episode": shown.episode, "latched": shown.latched,
                "acknowledged": shown.acknowledged,
            })
        };
        self.config.alarms.iter().zip(&self.board.alarms).map(of).collect()
    }
}

/// Which model a pipeline has: what serves, or what would.
pub fn model(pipeline: &config::Pipeline, serving: Option<&Serving>) -> Value {
    let manifest = &pipeline.model.manifest;
    match serving {
        None => json!({
            "model": format!("{}@{}", manifest.model, manifest.version), "slot": "factory",
            "unsigned": pipeline.model.unsigned,
        }),
        Some(serving) => json!({
            "model": serving.model, "slot": serving.slot, "unsigned": serving.unsigned, "sha256": serving.sha256,
            "provider": serving.provider, "sandbox": serving.sandbox,
            "placement": serving.placement.iter().map(|(name, nodes)| (name.clone(), (*nodes).into())).collect::<serde_json::Map<_, _>>(),
        }),
    }
}

fn latency(histogram: &Histogram) -> Value {
    let n: u64 = histogram.counts().iter().sum();
    json!({"n": n, "p50_us": histogram.quantile_us(0.5), "p99_us": histogram.quantile_us(0.99)})
}

/// Memory, temperature, disk.
fn machine(counters: &Counters) -> Value {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let disk = counters.disk_bytes();
    json!({
        "rss_kib": rss_kib(),
        "memory_free_kib": kib("MemAvailable:"), "memory_kib": kib("MemTotal:"),
        "temperature_c": temperature_c(),
        "disk_free_bytes": disk.map(|(free, _)| free),
        "disk_bytes": disk.map(|(_, all)| all),
    })
}

/// The hottest zone the kernel knows.
fn temperature_c() -> Option<f64> {
    let zones = std::fs::read_dir("/sys/class/thermal").ok()?.flatten().map(|entry| entry.path());
    let temp = |zone: PathBuf| std::fs::read_to_string(zone.join("temp")).ok()?.trim().parse::<f64>().ok();
    zones
        .filter_map(temp)
        .fold(None, |most: Option<f64>, milli| Some(most.map_or(milli, |m| m.max(milli))))
        .map(|m| m / 1000.0)
}
