//! What stages count, for Prometheus: `GET /metrics` on a port of this machine. The names are frozen in
//! `docs/reference/metrics.md`. Counts restart at 0 with the daemon, except `lost`.

use std::{collections::VecDeque, fmt::Write, net::SocketAddr, sync::atomic::Ordering::Relaxed};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use crate::{
    flow::{
        beat::Beat,
        escalation::{Came, NotSent},
        meter::{BUCKETS, ChannelMeter, ChannelState, Histogram, PipelineMeter, SourceMeter},
        samples::CLASS_WORDS,
    },
    limits,
};

use super::status::Status;

/// The stage as a task: answers for ever, several at a time. A client that is slow or silent is closed at its deadline and
/// delays no other; where there are too many, the oldest connection is closed.
pub async fn serve(address: SocketAddr, status: Status, beat: Beat) {
    let mut said = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "metrics");
                let (mut open, mut order) = (JoinSet::new(), VecDeque::new());
                loop {
                    let accepted = tokio::select! {
                        accepted = beat.during(listener.accept()) => accepted,
                        Some(_) = open.join_next() => continue,
                    };
                    let Ok((stream, _)) = accepted else {
                        tokio::time::sleep(limits::LINK_TICK).await;
                        continue;
                    };
                    order.retain(|open: &AbortHandle| !open.is_finished());
                    if order.len() >= limits::METRICS_CONNECTIONS
                        && let Some(first) = order.pop_front()
                    {
                        first.abort();
                    }
                    let status = status.clone();
                    order.push_back(open.spawn(async move {
                        let _ = timeout(limits::METRICS_ANSWER, answer(stream, &status)).await;
                    }));
                }
            }
            Err(why) if !said => {
                tracing::error!("listen on {address} for metrics: {why}; trying again");
                said = true;
            }
            Err(_) => {}
        }
        beat.during(tokio::time::sleep(limits::BUS_RETRY)).await;
    }
}

async fn answer(mut stream: TcpStream, status: &Status) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        if request.len() > limits::METRICS_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let (code, text) = if request.starts_with(b"GET /metrics ") || request.starts_with(b"GET /metrics?") {
        ("200 OK", text(status))
    } else {
        ("404 Not Found", "the metrics are at /metrics\n".to_owned())
    };
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// A metric of each source, channel or pipeline: name, kind, help, and its value. To add one: a row here, and one in
/// `docs/reference/metrics.md`.
type Row<M> = (&'static str, &'static str, &'static str, fn(&M) -> f64);

/// The metrics of each source.
const SOURCES: [Row<SourceMeter>; 6] = [
    ("source_rows_total", "counter", "Rows read.", |m| m.rows.get() as f64),
    ("source_refused_total", "counter", "Frames that were no rows.", |m| m.refused.get() as f64),
    ("source_missing_total", "counter", "Rows known to be missing.", |m| m.missing.get() as f64),
    ("source_shed_total", "counter", "Frames shed.", |m| m.shed.get() as f64),
    ("source_rows_per_second", "gauge", "Rows a second.", |m| f64::from(m.rate.get().unwrap_or(0.0))),
    ("source_lost", "gauge", "1: it delivers nothing.", |m| flag(m.lost().text().is_some())),
];

/// The metrics of each channel.
const CHANNELS: [Row<ChannelMeter>; 4] = [
    ("channel_values_total", "counter", "Values that came.", |m| m.values.get() as f64),
    ("channel_bad_total", "counter", "Values that cannot be used.", |m| m.bad.get() as f64),
    ("channel_bad_share", "gauge", "Share of bad values in the last look, 10 s long or longer.", |m| {
        m.share.get().map_or(f64::NAN, f64::from)
    }),
    ("channel_degraded", "gauge", "1: most of its values are bad, or none come.", |m| {
        flag(m.state() != ChannelState::Good)
    }),
];

/// The metrics of each pipeline.
const PIPELINES: [Row<PipelineMeter>; 3] = [
    ("predictions_total", "counter", "Predictions made.", |m| m.predictions.get() as f64),
    ("threshold", "gauge", "What it is compared with.", |m| m.threshold.get().map_or(f64::NAN, f64::from)),
    ("learning", "gauge", "1: statistics are being taken.", |m| flag(m.learning.load(Relaxed))),
];

/// One family after the other, as the text format wants them.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP kentledge_{name} {help}\n# TYPE kentledge_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.0, "kentledge_{name}");
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if i == 0 { "{" } else { "," });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn each<'a>(&mut self, name: &str, kind: &str, help: &str, label: &str, of: impl Iterator<Item = (&'a str, f64)>) {
        self.family(name, kind, help);
        of.for_each(|(text, value)| self.sample(name, &[(label, text)], value));
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let (counts, mut below) = (histogram.counts(), 0);
        for (i, n) in counts.iter().enumerate() {
            below += n;
            let bound = if i == BUCKETS - 1 { "+Inf".to_owned() } else { format!("{}", (1u64 << i) as f64 / 1e6) };
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&format!("{name}_bucket"), &labels, below as f64);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum_us() as f64 / 1e6);
        self.sample(&format!("{name}_count"), labels, below as f64);
    }
}

/// 1 or 0.
fn flag(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

/// A number of the status document; 0 without one.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// The whole page.
pub fn text(status: &Status) -> String {
    let (mut page, json) = (Page(String::with_capacity(16 * 1024)), status.json());
    device(&mut page, status, &json);
    sources(&mut page, status);
    pipelines(&mut page, status, &json);
    outbox(&mut page, status, &json["outbox"]);
    samples(&mut page, status);
    durations(&mut page, status);
    machine(&mut page, &json["machine"]);
    page.0
}

fn device(page: &mut Page, status: &Status, json: &Value) {
    let (meters, device) = (&status.meters, &status.config.device);
    page.family("info", "gauge", "1; what runs.");
    let device = format!("{}/{}", device.site, device.id);
    page.sample("info", &[("version", env!("CARGO_PKG_VERSION")), ("device", &device)], 1.0);
    page.one("uptime_seconds", "gauge", "Since the daemon started.", number(&json["uptime_s"]));
    page.one("online", "gauge", "1: the broker is there.", flag(json["link"]["online"] == true));
    page.one("degraded", "gauge", "1: something is not as it should be.", flag(json["state"] == "degraded"));
    page.one("connections_total", "counter", "Connections to the broker.", meters.connections.get() as f64);
    let commands = [
        ("accepted", &meters.commands_accepted),
        ("refused", &meters.commands_refused),
        ("dropped", &meters.commands_dropped),
    ];
    let commands = commands.map(|(outcome, count)| (outcome, count.get() as f64));
    page.each("commands_total", "counter", "Commands that came.", "outcome", commands.into_iter());
}

fn sources(page: &mut Page, status: &Status) {
    let (meters, config) = (&status.meters, &status.config);
    for (name, kind, help, of) in SOURCES {
        let names = config.sources.iter().map(|source| source.name.as_str());
        page.each(name, kind, help, "source", names.zip(meters.sources.iter().map(of)));
    }
    for (name, kind, help, of) in CHANNELS {
        page.family(name, kind, help);
        for (channel, meter) in config.channels.iter().zip(&meters.channels) {
            let source = &config.sources[usize::from(channel.source.0)].name;
            page.sample(name, &[("source", source), ("channel", &channel.name)], of(meter));
        }
    }
}

fn pipelines(page: &mut Page, status: &Status, json: &Value) {
    let (meters, config) = (&status.meters, &status.config);
    let names = || config.pipelines.iter().map(|pipeline| pipeline.name.as_str());
    for (name, kind, help, of) in PIPELINES {
        page.each(name, kind, help, "pipeline", names().zip(meters.pipelines.iter().map(of)));
    }
    escalation(page, status);
    let shown = json["pipelines"].as_array().into_iter().flatten();
    let scores = shown.clone().map(|p| p["score"].as_f64().unwrap_or(f64::NAN));
    let help = "The last score; NaN while learning, and when it is stale.";
    page.each("score", "gauge", help, "pipeline", names().zip(scores));
    let stale = shown.clone().map(|p| flag(p["stale"] == true));
    page.each("score_stale", "gauge", "1: there is no current score.", "pipeline", names().zip(stale));
    let serving = shown.map(|p| flag(p["serving"] == true));
    page.each("model_serving", "gauge", "1: a worker serves it.", "pipeline", names().zip(serving));
    page.family("alarm_raised", "gauge", "1: raised.");
    for (alarm, sign) in config.alarms.iter().zip(&status.board.alarms) {
        page.sample("alarm_raised", &[("alarm", &alarm.name), ("severity", alarm.severity)], flag(sign.is_raised()));
    }
}

/// Of pipelines that escalate.
fn escalation(page: &mut Page, status: &Status) {
    let all = status.config.pipelines.iter().zip(&status.meters.pipelines);
    let all: Vec<_> =
        all.filter(|(p, _)| p.escalate.is_some()).map(|(p, m)| (p.name.as_str(), &m.escalation)).collect();
    let sent = all.iter().map(|(name, m)| (*name, m.sent.get() as f64));
    page.each("escalated_total", "counter", "Windows sent to a larger model.", "pipeline", sent);
    let bytes = all.iter().map(|(name, m)| (*name, m.bytes.get() as f64));
    page.each("escalated_bytes_total", "counter", "Bytes of their packets.", "pipeline", bytes);
    page.family("not_escalated_total", "counter", "Windows that were not sent.");
    for (name, meter) in &all {
        for (why, count) in NotSent::ALL.iter().zip(&meter.not_sent) {
            page.sample("not_escalated_total", &[("pipeline", name), ("reason", why.word())], count.get() as f64);
        }
    }
    page.family("escalation_answers_total", "counter", "Answers, by what they are.");
    for (name, meter) in &all {
        for (what, count) in Came::ALL.iter().zip(&meter.answers) {
            page.sample(
                "escalation_answers_total",
                &[("pipeline", name), ("outcome", what.word())],
                count.get() as f64,
            );
        }
    }
    let alarms = all.iter().map(|(name, m)| (*name, m.alarms.get() as f64));
    page.each("escalation_alarms_total", "counter", "Alarms that an answer raised or cleared.", "pipeline", alarms);
}

fn outbox(page: &mut Page, status: &Status, outbox: &Value) {
    let of = |key: &str| number(&outbox[key]);
    let both = |what: &str| [("ram", of(&format!("ram_{what}"))), ("stored", of(&format!("stored_{what}")))];
    page.each("outbox_records", "gauge", "Records not acknowledged yet.", "place", both("records").into_iter());
    page.each("outbox_bytes", "gauge", "Bytes of them.", "place", both("bytes").into_iter());
    page.one(
        "outbox_oldest_seconds",
        "gauge",
        "Age of the oldest of them; 0: no record is unacknowledged.",
        of("oldest_s"),
    );
    page.one("outbox_disk_ok", "gauge", "1: the disk takes records.", flag(outbox["disk_ok"] == true));
    page.one("delivered_total", "counter", "Records acknowledged.", of("delivered"));
    page.family("lost_total", "counter", "Records lost since the device was set up.");
    for ((stream, reason), n) in &status.writer.stats().lost {
        page.sample("lost_total", &[("stream", stream), ("reason", reason)], *n as f64);
    }
}

/// The store of samples, where it is configured.
fn samples(page: &mut Page, status: &Status) {
    let meters = &status.meters.samples;
    if !status.config.samples.is_on() {
        return;
    }
    let by_class = |n: &dyn Fn(usize) -> u64| {
        CLASS_WORDS.iter().enumerate().map(|(i, word)| (*word, n(i) as f64)).collect::<Vec<_>>()
    };
    let windows = by_class(&|i| meters.windows[i].load(Relaxed));
    page.each("samples_windows", "gauge", "Windows that are kept.", "class", windows.into_iter());
    page.one("samples_labels", "gauge", "Labels that are kept.", meters.labels.load(Relaxed) as f64);
    page.one("samples_bytes", "gauge", "Bytes of both on the disk.", meters.bytes.load(Relaxed) as f64);
    let evicted = by_class(&|i| meters.evicted[i].get());
    page.each("samples_evicted_total", "counter", "Windows removed for room or by age.", "class", evicted.into_iter());
    let dropped = [("lane", &meters.lane), ("full", &meters.full), ("rate", &meters.rate), ("disk", &meters.disk)];
    let dropped = dropped.map(|(why, count)| (why, count.get() as f64));
    page.each("samples_dropped_total", "counter", "Windows that were not kept.", "reason", dropped.into_iter());
    page.one("samples_pulled_bytes_total", "counter", "Bytes of pulls that were sent.", meters.pulled.get() as f64);
}

fn durations(page: &mut Page, status: &Status) {
    let meters = &status.meters;
    page.family(
        "signal_seconds",
        "histogram",
        "From the bytes' arrival to the end of the signal stage's work on them.",
    );
    page.histogram("signal_seconds", &[], &meters.signal);
    page.family("infer_seconds", "histogram", "A run of the model.");
    for (pipeline, meter) in status.config.pipelines.iter().zip(&meters.pipelines) {
        page.histogram("infer_seconds", &[("pipeline", &pipeline.name)], &meter.infer);
    }
    page.family("commit_seconds", "histogram", "A commit of the store.");
    page.histogram("commit_seconds", &[], &meters.commit);
    page.family("acknowledge_seconds", "histogram", "From writing a message to its acknowledgement.");
    page.histogram("acknowledge_seconds", &[], &meters.acknowledge);
}

fn machine(page: &mut Page, machine: &Value) {
    page.one("rss_bytes", "gauge", "Memory of the daemon.", number(&machine["rss_kib"]) * 1024.0);
    for (name, key, help) in [
        ("disk_free_bytes", "disk_free_bytes", "Free on the partition of the state."),
        ("temperature_celsius", "temperature_c", "The hottest zone."),
    ] {
        if let Some(value) = machine[key].as_f64() {
            page.one(name, "gauge", help, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_of_a_source_channel_or_pipeline_has_a_row_in_the_docs() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metrics.md");
        let page = std::fs::read_to_string(page).expect("docs/reference/metrics.md");
        let names = SOURCES.iter().map(|row| (row.0, row.1));
        let names = names.chain(CHANNELS.iter().map(|row| (row.0, row.1)));
        let names = names.chain(PIPELINES.iter().map(|row| (row.0, row.1)));
        let missing: Vec<_> = names.filter(|(name, kind)| !page.contains(&format!("| `{name}` | {kind} |"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn metric_of_a_source_is_what_its_meter_counted() {
        let meter = SourceMeter::default();
        meter.refused.add(3);
        meter.shed.add(5);
        let value = |wanted: &str| SOURCES.iter().find(|(name, ..)| *name == wanted).map(|row| row.3(&meter));
        let names = ["source_rows_total", "source_refused_total", "source_shed_total"];
        assert_eq!(names.map(value), [Some(0.0), Some(3.0), Some(5.0)]);
    }
}
