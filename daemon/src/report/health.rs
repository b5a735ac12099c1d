//! The daemon's own health: reported to systemd (STATUS, WATCHDOG) and published under `up/h`. Nothing here waits for the
//! disk or for room in the outbox: the watchdog must not.

use std::{fmt::Write, sync::atomic::Ordering, time::Duration};

use crate::{
    flow::{Class, Draft, Retain, Stamp, StreamId, beat::Beat, meter::Meters, record::json_str},
    host::{beats::Beats, notify, sleepers::Sleepers},
    limits,
};

use super::{counters::rss_kib, status::Status};

/// Says how the daemon fares; what the stage works with.
pub struct Reporter {
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
pub fn run(reporter: Reporter, now: impl Fn() -> Stamp, beat: &Beat, stopped: impl Fn(Duration) -> bool) {
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
        let still = reporter.beats.still();
        let asleep = if still.is_empty() { 0 } else { sleepers.look() };
        if asleep == 0 {
            sleepers.forget();
        }
        let counters = &reporter.status.counters;
        match (counters.is_disk_hanging(), asleep >= limits::DISK_HANGS_LOOKS) {
            (false, true) => tracing::error!("the disk does not answer: {} wait for it", still.join(", ")),
            (true, false) => tracing::info!("the disk answers again"),
            _ => {}
        }
        counters.disk_hangs(asleep >= limits::DISK_HANGS_LOOKS);
        if watchdog.is_some() && next_watchdog.is_some_and(|at| since >= at) {
            let stuck = reporter.beats.stuck();
            // A restart would not mend a disk that hangs, and would cost what is in memory.
            if stuck.is_empty() || asleep >= limits::DISK_WAIT_LOOKS {
                notify::watchdog();
            } else {
                tracing::error!("no watchdog message: stages make no progress: {}", stuck.join(", "));
            }
            next_watchdog = watchdog.map(|interval| since + interval);
        }
        reporter.status.history.note(&reporter.status.meters);
        rates.note(&reporter.status.meters, now().boot_ns);
        let line = reporter.line();
        if line != status {
            notify::status(&line);
            status = line;
        }
        if since >= next_health {
            let stamp = now();
            let body = reporter.body(stamp.boot_ns.saturating_sub(began) / 1_000_000_000);
            let stream = reporter.stream;
            let draft =
                Draft { stream, class: Class::Status, stamp, lineage: None, body: body.into(), retain: Retain::No };
            // Where memory is full this record is not made: it must not wait, and what waits is worth more.
            if reporter.status.writer.stats().ram_bytes < limits::TAIL_BYTES as u64 {
                reporter.status.writer.put_now(draft);
            }
            next_health = since + reporter.every;
        }
        if stopped(step) {
            return;
        }
        since += step;
    }
}

impl Reporter {
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
        out.push(']');
        if self.status.config.samples.is_on() {
            let meters = &self.status.meters.samples;
            let (kept, labels) = (meters.kept(), meters.labels.load(Ordering::Relaxed));
            let (bytes, dropped) = (meters.bytes.load(Ordering::Relaxed), meters.dropped());
            let _ = write!(
                out,
                ",\"samples\":{{\"windows\":{kept},\"labels\":{labels},\"bytes\":{bytes},\"dropped\":{dropped}}}"
            );
        }
        out.push_str(",\"degraded\":[");
        for (i, why) in self.status.degraded().iter().enumerate() {
            out.push_str(if i > 0 { "," } else { "" });
            json_str(&mut out, why);
        }
        out.push(']');
        let (seq, sha256) = self.status.counters.audit();
        if seq > 0 {
            let _ = write!(out, ",\"audit\":{{\"seq\":{seq},\"sha256\":\"{sha256}\"}}");
        }
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
