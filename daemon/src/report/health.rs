//! The daemon's own health: reported to systemd (STATUS, WATCHDOG) and published under `up/h`. Nothing here waits for the
//! disk or for room in the outbox: the watchdog must not.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    flow::{Class, Draft, Retain, Stamp, StreamId, beat::Beat, meter::Meters, record::json_str, verdict::Serving},
    host::{beats::Beats, notify, sleepers::Sleepers},
    limits,
};

use super::status::Status;

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
    /// Threads wait for the disk, and have done so for a while.
    disk_hangs: AtomicBool,
    /// Bytes free on the disk of the state, and its size; 0: not known yet.
    disk_bytes: (AtomicU64, AtomicU64),
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

    /// Threads wait for the disk, or do no more.
    pub fn disk_hangs(&self, hangs: bool) {
        self.disk_hangs.store(hangs, Ordering::Relaxed);
    }

    /// Whether threads wait for the disk, and have done so for a while.
    pub fn is_disk_hanging(&self) -> bool {
        self.disk_hangs.load(Ordering::Relaxed)
    }

    /// Looks at the disk, which may take as long as the disk does.
    pub fn look_at_disk(&self, state_dir: &Path) {
        let Ok(disk) = nix::sys::statvfs::statvfs(state_dir) else { return };
        let block = disk.fragment_size();
        self.disk_bytes.0.store(disk.blocks_available().saturating_mul(block), Ordering::Relaxed);
        self.disk_bytes.1.store(disk.blocks().saturating_mul(block), Ordering::Relaxed);
    }

    /// Bytes free on the disk of the state, and its size, when it was looked at last.
    pub fn disk_bytes(&self) -> Option<(u64, u64)> {
        let (free, all) = (self.disk_bytes.0.load(Ordering::Relaxed), self.disk_bytes.1.load(Ordering::Relaxed));
        (all > 0).then_some((free, all))
    }

    /// Why there is no connection; empty while there is one.
    pub fn link(&self, why: &str) {
        why.clone_into(&mut self.link.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Another broker is wanted.
    pub fn going_to(&self, broker: &str) {
        broker.clone_into(&mut self.broker.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The broker to connect to now; `None`: no broker is configured.
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

/// The stage as a thread; ends when `stopped` says so.
pub fn run(setup: Setup, now: impl Fn() -> Stamp, beat: &Beat, stopped: impl Fn(Duration) -> bool) {
    let step = limits::WATCHDOG_LOOK;
    let began = now().boot_ns;
    let mut rates = Rates::default();
    let watchdog = notify::watchdog_interval().map(|interval| interval / 2);
    // At once: when a reload restarts this stage, the last report is already old.
    let (mut next_health, mut next_watchdog) = (Duration::ZERO, watchdog.map(|_| Duration::ZERO));
    let (mut since, mut status) = (Duration::ZERO, String::new());
    let mut sleepers = Sleepers::default();
    loop {
        beat.beat();
        let still = setup.beats.still();
        let asleep = if still.is_empty() { 0 } else { sleepers.look() };
        if asleep == 0 {
            sleepers.forget();
        }
        let counters = &setup.status.counters;
        match (counters.is_disk_hanging(), asleep >= limits::DISK_HANGS_LOOKS) {
            (false, true) => tracing::error!("the disk does not answer: {} wait for it", still.join(", ")),
            (true, false) => tracing::info!("the disk answers again"),
            _ => {}
        }
        counters.disk_hangs(asleep >= limits::DISK_HANGS_LOOKS);
        if watchdog.is_some() && next_watchdog.is_some_and(|at| since >= at) {
            let stuck = setup.beats.stuck();
            // A restart would not mend a disk that hangs, and would cost what is in memory.
            if stuck.is_empty() || asleep >= limits::DISK_WAIT_LOOKS {
                notify::watchdog();
            } else {
                tracing::error!("no watchdog message: stages make no progress: {}", stuck.join(", "));
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
            // Where memory is full this record is not made: it must not wait, and what waits is worth more.
            if setup.status.writer.stats().ram_bytes < limits::TAIL_BYTES as u64 {
                setup.status.writer.put_now(draft);
            }
            next_health = since + setup.every;
        }
        if stopped(step) {
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
        let models = self.status.models();
        // Where they differ, that is among the reasons.
        if serving == models {
            let _ = write!(line, "; {serving} of {models} models serving");
        }
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
        out.push_str("],\"degraded\":[");
        for (i, why) in self.status.degraded().iter().enumerate() {
            out.push_str(if i > 0 { "," } else { "" });
            json_str(&mut out, why);
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

/// Resident memory of this process, KiB; 0 where /proc does not say.
pub fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    rss_of(&status).unwrap_or(0)
}

/// In KiB, as the kernel writes it: a count of pages would need their size, which is not 4 KiB everywhere.
fn rss_of(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_without_the_size_of_a_page() {
        // Of a kernel with pages of 16 KiB: `statm` says 815 pages there.
        let status = "Name:\tkentledge\nVmHWM:\t   13056 kB\nVmRSS:\t   13040 kB\nRssAnon:\t    4096 kB\n";
        assert_eq!(rss_of(status), Some(13_040));
        assert_eq!(rss_of("Name:\tkentledge\n"), None);
        assert!((1024..1024 * 1024).contains(&rss_kib()), "{}", rss_kib());
    }
}
