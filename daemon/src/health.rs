//! What the daemon knows of itself: told to systemd (STATUS, WATCHDOG) and published under `up/h`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    crew::{Beat, Beats},
    flow::{Class, Draft, Retain, Sink, Stamp, StreamId, meter::Meters, record::json_str, verdict::Serving},
    host::notify,
    limits,
    status::Status,
};

/// Counters that stages keep for health.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames waiting for the signal stage.
    pub frames_waiting: AtomicU64,
    /// By group of pipelines: what serves it, and how many workers were lost since the start.
    models: Mutex<BTreeMap<usize, (Option<Serving>, u64)>>,
    /// Why there is no connection; empty while there is one.
    link: Mutex<String>,
    /// The broker that is wanted now.
    broker: Mutex<String>,
    /// Model slots and the install under way.
    slots: Mutex<serde_json::Value>,
    /// Which system runs, and the update under way.
    system: Mutex<serde_json::Value>,
}

impl Counters {
    /// What a model's stage tells.
    pub fn model(&self, group: usize, serving: Option<&Serving>, lost: u64) {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let known = models.entry(group).or_default();
        if known.0.as_ref() != serving {
            known.0 = serving.cloned();
        }
        known.1 = lost;
    }

    /// Why there is no connection; empty while there is one.
    pub fn link(&self, why: &str) {
        why.clone_into(&mut self.link.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Another broker is wanted.
    pub fn going_to(&self, broker: &str) {
        broker.clone_into(&mut self.broker.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The broker that is wanted now; `None`: there is none.
    pub fn broker(&self) -> Option<String> {
        let broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(broker).filter(|broker| !broker.is_empty())
    }

    /// Why there is no connection, or what is wrong with it.
    pub fn why_offline(&self) -> String {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Model slots and the install under way, as control shows them.
    pub fn slots(&self) -> serde_json::Value {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which system runs, and the update under way, as control shows it.
    pub fn system(&self) -> serde_json::Value {
        self.system.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// See `system`.
    pub fn show_system(&self, system: serde_json::Value) {
        *self.system.lock().unwrap_or_else(PoisonError::into_inner) = system;
    }

    /// See `slots`.
    pub fn show_slots(&self, slots: serde_json::Value) {
        *self.slots.lock().unwrap_or_else(PoisonError::into_inner) = slots;
    }

    /// What serves this group of pipelines.
    pub fn serving(&self, group: usize) -> Option<Serving> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.get(&group).and_then(|(serving, _)| serving.clone())
    }

    /// Models that serve, workers lost.
    pub fn models(&self) -> (usize, u64) {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        (models.values().filter(|(serving, _)| serving.is_some()).count(), models.values().map(|(_, lost)| lost).sum())
    }
}

/// What the stage works with.
pub struct Setup {
    /// `up/h`.
    pub stream: StreamId,
    /// How often it is published.
    pub every: Duration,
    /// Signs of life of all stages.
    pub beats: Beats,
    /// What is looked at.
    pub status: Status,
}

/// The stage as a thread; ends when `stopped` says so. `save_time` is called now and then and at the end.
pub fn run(
    mut setup: Setup,
    now: impl Fn() -> Stamp,
    beat: &Beat,
    save_time: impl Fn(),
    stopped: impl Fn(Duration) -> bool,
) {
    let step = Duration::from_millis(500);
    let began = now().boot_ns;
    let mut rates = Rates::default();
    let watchdog = notify::watchdog_interval().map(|interval| interval / 2);
    // At once: where a reload began this stage anew, the last word is already old.
    let (mut next_health, mut next_watchdog) = (Duration::ZERO, watchdog.map(|_| Duration::ZERO));
    let (mut since, mut status) = (Duration::ZERO, String::new());
    let mut next_save = limits::CLOCK_SAVE;
    loop {
        beat.beat();
        if watchdog.is_some() && next_watchdog.is_some_and(|at| since >= at) {
            let stuck = setup.beats.stuck();
            if stuck.is_empty() {
                notify::watchdog();
            } else {
                tracing::error!("stages do not move: {}", stuck.join(", "));
            }
            next_watchdog = watchdog.map(|interval| since + interval);
        }
        setup.status.history.note(&setup.status.meters);
        rates.note(&setup.status.meters, now().boot_ns);
        let line = setup.line();
        if line != status {
            notify::status(&line);
            status = line;
        }
        if since >= next_health {
            let stamp = now();
            let body = setup.body(stamp.boot_ns.saturating_sub(began) / 1_000_000_000);
            let stream = setup.stream;
            let draft =
                Draft { stream, class: Class::Status, stamp, lineage: None, body: body.into(), retain: Retain::No };
            setup.status.writer.put(&mut vec![draft]);
            next_health = since + setup.every;
        }
        if since >= next_save {
            save_time();
            next_save = since + limits::CLOCK_SAVE;
        }
        if stopped(step) {
            save_time();
            return;
        }
        since += step;
    }
}

impl Setup {
    /// One line for `systemctl status`.
    fn line(&self) -> String {
        let stats = self.status.writer.stats();
        let (serving, _) = self.status.counters.models();
        let degraded = self.status.degraded();
        let mut line = match degraded.as_slice() {
            [] => "running: online".to_owned(),
            why => format!("degraded: {}", why.join("; ")),
        };
        let _ = write!(line, "; {serving} of {} models serving", self.status.models());
        if !stats.online && stats.ram_records + stats.stored_records > 0 {
            line.push_str("; keeping records");
        }
        line
    }

    fn body(&self, uptime_s: u64) -> String {
        let stats = self.status.writer.stats();
        let lost: u64 = stats.lost.values().sum();
        let (serving, workers_lost) = self.status.counters.models();
        let mut out = format!(
            "\"uptime_s\":{uptime_s},\"rss_kib\":{},\"online\":{},\"disk_ok\":{},\"ram_records\":{},\"ram_bytes\":{},\
             \"stored_records\":{},\"stored_bytes\":{},\"quarantines\":{},\"delivered\":{},\"lost\":{lost},\"frames_waiting\":{},\
             \"models\":{},\"models_serving\":{serving},\"workers_lost\":{workers_lost},\"lost_by\":[",
            rss_kib(),
            stats.online,
            stats.disk_ok,
            stats.ram_records,
            stats.ram_bytes,
            stats.stored_records,
            stats.stored_bytes,
            stats.quarantines,
            stats.delivered,
            self.status.counters.frames_waiting.load(Ordering::Relaxed),
            self.status.models(),
        );
        for (i, ((stream, reason), n)) in stats.lost.iter().enumerate() {
            out.push_str(if i > 0 { ",{\"stream\":" } else { "{\"stream\":" });
            json_str(&mut out, stream);
            out.push_str(",\"reason\":");
            json_str(&mut out, reason);
            let _ = write!(out, ",\"n\":{n}}}");
        }
        out.push(']');
        out
    }
}

/// Rows a second of each source.
#[derive(Default)]
struct Rates(Vec<(u64, u64, f32)>);

impl Rates {
    /// Weighs what came since the last call with what was before: a change is seen within seconds.
    fn note(&mut self, meters: &Meters, now_ns: u64) {
        self.0.resize(meters.sources.len(), (0, 0, 0.0));
        for (seen, meter) in self.0.iter_mut().zip(&meters.sources) {
            let (rows, at_ns, before) = *seen;
            let (now, passed_ns) = (meter.rows.get(), now_ns.saturating_sub(at_ns));
            let latest = (now - rows) as f32 / (passed_ns.max(1) as f32 / 1e9);
            let rate = if at_ns == 0 { 0.0 } else { before + (latest - before) * 0.25 };
            meter.rate.set(rate);
            *seen = (now, now_ns, rate);
        }
    }
}

/// Resident memory of this process, KiB; 0 where /proc does not tell.
pub fn rss_kib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * 4
}
