//! The other end: `kentledge status` asks the running daemon.

use std::fmt::Write;

use serde_json::Value;
use zbus::proxy;

use super::error::BusError;
use crate::{host::logind, limits};

#[proxy(
    interface = "org.kentledge.Daemon1",
    default_service = "org.kentledge.Daemon",
    default_path = "/org/kentledge/Daemon"
)]
trait Daemon1 {
    fn status(&self) -> zbus::Result<String>;
    fn install_model(&self, file: zbus::Fd<'_>) -> zbus::Result<()>;
    fn roll_back_model(&self, model: &str) -> zbus::Result<()>;
}

/// A daemon that is asked.
pub struct Asked(Daemon1Proxy<'static>);

impl Asked {
    /// Connects over this bus. `None`: the configuration has no bus (`device.bus = "off"`).
    pub async fn connect(bus: Option<&str>) -> Result<Self, BusError> {
        let bus =
            bus.ok_or("there is no D-Bus to ask over: `device.bus` is `off`; ask by the command `status` over MQTT")?;
        let connection = logind::connect_soon(bus).await;
        let connection =
            connection.map_err(|why| format!("{why}; the same is asked by the command `status` over MQTT"))?;
        let proxy = Daemon1Proxy::new(&connection).await.map_err(|why| format!("ask over `{bus}`: {why}"))?;
        Ok(Self(proxy))
    }

    /// The status document.
    pub async fn status(&self) -> Result<Value, BusError> {
        let text = self.0.status().await.map_err(|why| format!("ask the daemon: {why}; is it running?"))?;
        serde_json::from_str(&text).map_err(|why| BusError(format!("read the daemon's answer: {why}")))
    }
}

impl Asked {
    /// Installs a bundle and waits for its end, telling what is done on the way.
    pub async fn install(&self, file: &std::fs::File, say: impl FnMut(&str)) -> Result<String, BusError> {
        let before = self.job().await?;
        self.0.install_model(file.into()).await.map_err(|why| format!("ask the daemon: {why}"))?;
        self.end(&before, say).await
    }

    /// Goes back to the model before, and waits for that.
    pub async fn roll_back(&self, model: &str, say: impl FnMut(&str)) -> Result<String, BusError> {
        let before = self.job().await?;
        self.0.roll_back_model(model).await.map_err(|why| format!("ask the daemon: {why}"))?;
        self.end(&before, say).await
    }

    async fn job(&self) -> Result<Value, BusError> {
        Ok(self.status().await?["models"]["job"].clone())
    }

    async fn end(&self, before: &Value, mut say: impl FnMut(&str)) -> Result<String, BusError> {
        let (mut said, mut ours) = (String::new(), None);
        loop {
            tokio::time::sleep(limits::BUS_TURN / 4).await;
            let job = self.job().await?;
            if job.is_null() || job["id"] == before["id"] {
                continue;
            }
            if *ours.get_or_insert_with(|| job["id"].clone()) != job["id"] {
                return Err("cancelled: a rollback or another install took its place; see `kentledge status`".into());
            }
            if let Some(phase) = job["phase"].as_str().filter(|phase| *phase != said) {
                say(phase);
                phase.clone_into(&mut said);
            }
            let text = job["text"].as_str().unwrap_or("").to_owned();
            match job["state"].as_str() {
                Some("running") => {}
                Some("success") => return Ok(text),
                state => return Err(format!("{}: {text}", state.unwrap_or("failed")).into()),
            }
        }
    }
}

/// The document for people.
pub fn show(status: &Value) -> String {
    let mut out = Lines(String::new());
    connection(status, &mut out);
    road(status, &mut out);
    kept(status, &mut out);
    machine(status, &mut out);
    out.0
}

/// Lines with a name in front.
struct Lines(String);

impl Lines {
    fn line(&mut self, name: &str, text: String) {
        let _ = writeln!(self.0, "{name:<10}{text}");
    }
}

/// The device, how it is, and its broker.
fn connection(status: &Value, out: &mut Lines) {
    let device = &status["device"];
    out.line(
        "device",
        format!("{}/{}, version {}", word(&device["site"]), word(&device["id"]), word(&status["version"])),
    );
    let degraded: Vec<_> = list(&status["degraded"]).iter().map(word).collect();
    let why = if degraded.is_empty() { String::new() } else { format!(": {}", degraded.join("; ")) };
    out.line("state", format!("{}{why}; up {}", word(&status["state"]), age(&status["uptime_s"])));
    let link = &status["link"];
    let online = match (link["online"] == true, &link["why"]) {
        (true, _) => "online".to_owned(),
        (false, Value::String(why)) => format!("offline: {why}"),
        (false, _) => "offline".to_owned(),
    };
    let acknowledged = quantiles(&link["acknowledge"]);
    out.line("link", format!("{online}, {}; acknowledged within {acknowledged}", word(&link["broker"])));
}

/// From sensors to alarms.
fn road(status: &Value, out: &mut Lines) {
    for source in list(&status["sources"]) {
        out.line(
            "source",
            format!(
                "{}: {}, {} rows/s, {} rows, {} refused, {} missing, {} shed",
                word(&source["name"]),
                quality(source),
                rate(&source["rows_s"]),
                source["rows"],
                source["refused"],
                source["missing"],
                source["shed"]
            ),
        );
    }
    for pipeline in list(&status["pipelines"]) {
        let serving = match (pipeline["serving"] == true, pipeline["learning"] == true) {
            (false, _) => "not serving",
            (true, true) => "learning",
            (true, false) => "serving",
        };
        out.line(
            "pipeline",
            format!(
                "{}: {serving} {}{} ({}{}), score {} of {}, inference {}",
                word(&pipeline["name"]),
                word(&pipeline["model"]),
                if pipeline["unsigned"] == true { " (unsigned)" } else { "" },
                word(&pipeline["slot"]),
                fenced(pipeline),
                shown_score(pipeline),
                number(&pipeline["threshold"]),
                quantiles(&pipeline["infer"])
            ),
        );
    }
    let job = &status["models"]["job"];
    if !job.is_null() {
        let phase = job["phase"].as_str().or(job["state"].as_str()).unwrap_or("");
        let colon = if job["text"] == "" { "" } else { ": " };
        out.line("install", format!("{phase}{colon}{}", job["text"].as_str().unwrap_or("")));
    }
    for alarm in list(&status["alarms"]) {
        let raised = if alarm["raised"] == true { "RAISED" } else { "clear" };
        let stale = if alarm["stale"] == true { ", by the last score, which is stale" } else { "" };
        let unknown = unknown(alarm);
        out.line("alarm", format!("{}: {raised} ({}){stale}{unknown}", word(&alarm["name"]), word(&alarm["severity"])));
    }
}

/// What waits, is kept, or was lost.
fn kept(status: &Value, out: &mut Lines) {
    let outbox = &status["outbox"];
    let oldest =
        if outbox["oldest_s"].is_null() { String::new() } else { format!(", oldest {}", age(&outbox["oldest_s"])) };
    out.line(
        "outbox",
        format!(
            "{} in RAM, {} stored ({} of {}){oldest}; {} delivered; disk {}",
            outbox["ram_records"],
            outbox["stored_records"],
            bytes(&outbox["stored_bytes"]),
            bytes(&outbox["max_bytes"]),
            outbox["delivered"],
            match (outbox["disk_ok"] == true, outbox["opening"] == true) {
                (true, _) => "ok",
                (_, true) => "being opened",
                _ => "NOT WRITABLE",
            }
        ),
    );
    let samples = &status["samples"];
    if !samples.is_null() {
        let n = |of: &Value| of.as_object().map_or(0, |all| all.values().filter_map(Value::as_u64).sum::<u64>());
        let pull = &samples["pull"];
        let waits = pull["waits"].as_str().map(|why| format!(", {why}")).unwrap_or_default();
        let pull = match pull.is_null() {
            true => String::new(),
            false => {
                format!("; {}: {} of {} sent{waits}", word(&pull["type"]), bytes(&pull["sent"]), bytes(&pull["size"]))
            }
        };
        out.line(
            "samples",
            format!(
                "{} windows, {} labels ({} of {}), {} not kept{pull}",
                n(&samples["windows"]),
                samples["labels"],
                bytes(&samples["bytes"]),
                bytes(&samples["max_bytes"]),
                n(&samples["dropped"])
            ),
        );
    }
    let lost = list(&status["lost"]);
    out.line("lost", if lost.is_empty() { "nothing".into() } else { String::new() });
    for entry in lost {
        out.line("", format!("{:>10} {} {}", entry["n"].to_string(), word(&entry["stream"]), word(&entry["reason"])));
    }
}

/// Clock, memory and disk.
fn machine(status: &Value, out: &mut Lines) {
    let (clock, machine) = (&status["clock"], &status["machine"]);
    out.line("clock", format!("{} ({})", word(&clock["ts"]), word(&clock["clk"])));
    let kib = |key: &str| bytes(&Value::from(machine[key].as_u64().unwrap_or(0) * 1024));
    let temperature = machine["temperature_c"].as_f64().map(|c| format!(", {c:.0} °C")).unwrap_or_default();
    out.line(
        "machine",
        format!(
            "daemon {}, {} of {} memory free, {} of {} disk free{temperature}",
            kib("rss_kib"),
            kib("memory_free_kib"),
            kib("memory_kib"),
            bytes(&machine["disk_free_bytes"]),
            bytes(&machine["disk_bytes"])
        ),
    );
}

/// What runs it, and a word where a fence is missing.
fn fenced(pipeline: &Value) -> String {
    let provider = pipeline["provider"].as_str().map(|provider| format!(" on {provider}")).unwrap_or_default();
    match pipeline["sandbox"].as_str() {
        Some(sandbox) if sandbox.starts_with("landlock,") => provider,
        Some(sandbox) => format!("{provider}; sandbox: {sandbox}"),
        None => provider,
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// How a source is.
pub(super) fn quality(source: &Value) -> String {
    if source["lost"].is_string() { "LOST".into() } else { word(&source["quality"]) }
}

/// The score of a pipeline, where it has a current one.
pub(super) fn shown_score(pipeline: &Value) -> String {
    if pipeline["stale"] == true { "STALE".into() } else { number(&pipeline["score"]) }
}

/// Text without quotes; a dash for what is not known.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

pub(super) fn number(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), |x| format!("{x:.2}"))
}

pub(super) fn rate(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), |x| if x < 10.0 { format!("{x:.1}") } else { format!("{x:.0}") })
}

/// `p50 ≤ 128 µs, p99 ≤ 1 ms`
pub(super) fn quantiles(latency: &Value) -> String {
    let time = |us: &Value| match us.as_u64() {
        None => "-".to_owned(),
        Some(us) if us < 1000 => format!("{us} µs"),
        Some(us) if us < 1_000_000 => format!("{} ms", us / 1000),
        Some(us) => format!("{} s", us / 1_000_000),
    };
    format!("{} (p50), {} (p99)", time(&latency["p50_us"]), time(&latency["p99_us"]))
}

/// `, unknown: no_samples` after an alarm that nothing evaluates; `, latched` after one that waits for `alarm.ack`.
pub(super) fn unknown(alarm: &Value) -> String {
    let why = alarm["reason"].as_str().map(|why| format!(", unknown: {why}")).unwrap_or_default();
    let latched = if alarm["latched"] == true { ", latched" } else { "" };
    format!("{why}{latched}")
}

pub(super) fn bytes(value: &Value) -> String {
    match value.as_f64() {
        None => "-".into(),
        Some(n) if n < 1024.0 * 1024.0 => format!("{:.0} KiB", n / 1024.0),
        Some(n) if n < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", n / 1024.0 / 1024.0),
        Some(n) => format!("{:.1} GiB", n / 1024.0 / 1024.0 / 1024.0),
    }
}

pub(super) fn age(value: &Value) -> String {
    match value.as_u64() {
        None => "-".into(),
        Some(s) if s < 120 => format!("{s} s"),
        Some(s) if s < 7200 => format!("{} min", s / 60),
        Some(s) if s < 48 * 3600 => format!("{} h", s / 3600),
        Some(s) => format!("{} d", s / 86_400),
    }
}
