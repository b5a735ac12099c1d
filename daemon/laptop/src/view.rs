//! What comes out of the broker, shown as it comes: one line a second of the sensor's time, and each alarm.

use std::{fmt::Write, sync::mpsc, time::Duration};

use rumqttc::v5::{Client, Event, Incoming, MqttOptions, mqttbytes::QoS};
use serde_json::Value;

use super::pump::Fault;
use kentledge::{
    cli::say,
    error::{Context, Fatal},
};

/// An input of the view.
#[derive(Debug)]
pub enum Heard {
    /// A message from the broker.
    Message {
        /// Topic after `up/`.
        stream: String,
        /// Payload.
        payload: Value,
    },
    /// The simulated pump breaks or heals.
    Fault {
        /// Second of the pump's time.
        t_s: f64,
        /// What is wrong.
        fault: Option<Fault>,
        /// It begins; else it ends.
        begins: bool,
    },
}

/// Subscribes to everything the device says; messages go to `heard`.
pub fn listen(port: u16, device: &str, heard: mpsc::SyncSender<Heard>) -> Result<(), Fatal> {
    let mut options = MqttOptions::new("demo-view", "127.0.0.1", port);
    options.set_max_packet_size(Some(2 * kentledge::limits::MESSAGE_BYTES as u32));
    let (client, mut connection) = Client::new(options, 16);
    let prefix = format!("kl/demo/{device}/up/");
    client.try_subscribe(format!("{prefix}#"), QoS::AtLeastOnce).context("subscribe at the demo's broker")?;
    let (ready, wait) = mpsc::sync_channel(1);
    let listener = move || {
        for event in connection.iter() {
            match event {
                Ok(Event::Incoming(Incoming::SubAck(_))) => {
                    let _ = ready.try_send(());
                }
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    let topic = String::from_utf8_lossy(&publish.topic);
                    let Some(stream) = topic.strip_prefix(&prefix).map(str::to_owned) else {
                        continue;
                    };
                    let Ok(payload) = serde_json::from_slice(&publish.payload) else {
                        continue;
                    };
                    if heard.send(Heard::Message { stream, payload }).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
        drop(client);
    };
    std::thread::Builder::new().name("view".into()).spawn(listener).context("start the view")?;
    wait.recv_timeout(Duration::from_secs(5)).context("subscribe at the demo's broker")
}

/// What was seen, for the last lines.
#[derive(Debug, Default)]
pub struct View {
    began_ns: Option<i64>,
    last_line_s: Option<i64>,
    signals: String,
    learning: u64,
    queued: u64,
    raised_now: u64,
    first_fault_s: Option<f64>,
    /// Predictions received.
    pub predictions: u64,
    /// Alarms raised.
    pub raised: u64,
    /// Alarms cleared.
    pub cleared: u64,
    /// Alarms raised before the first injected fault.
    pub early: u64,
}

impl View {
    /// Takes one thing heard and shows it.
    pub fn hear(&mut self, heard: Heard) -> Result<(), Fatal> {
        match heard {
            Heard::Fault { t_s, fault, begins } => {
                if begins {
                    self.first_fault_s.get_or_insert(t_s);
                }
                let what = fault.map_or("fault", Fault::words);
                say(&format!("{t_s:8.1} s  pump: {what} {}", if begins { "begins" } else { "ends" }))
            }
            Heard::Message { stream, payload } => {
                let data = payload["data"].as_array().cloned().unwrap_or_default();
                data.iter().try_for_each(|record| match stream.split('/').next() {
                    Some("p") => self.prediction(record),
                    Some("a") => self.alarm(record),
                    Some("m") => self.measured(record),
                    Some("h") => {
                        let count = |key: &str| record[key].as_u64().unwrap_or(0);
                        self.queued = count("ram_records") + count("stored_records");
                        Ok(())
                    }
                    Some("e") if stream == "e/model.calibrated" => {
                        say(&format!("            {}", text(&record["text"])))
                    }
                    Some("e") if stream == "e/model.failed" => {
                        say(&format!("            model failed: {}", text(&record["text"])))
                    }
                    _ => Ok(()),
                })
            }
        }
    }

    fn seconds(&mut self, record: &Value) -> f64 {
        let t_ns = record["in_t_ns"][1].as_i64().unwrap_or(0);
        let first = record["in_t_ns"][0].as_i64().unwrap_or(t_ns);
        (t_ns - *self.began_ns.get_or_insert(first)) as f64 / 1e9
    }

    /// Least, mean and largest of a second: the signal's line.
    fn measured(&mut self, record: &Value) -> Result<(), Fatal> {
        let t_s = self.seconds(record);
        let mut line = String::new();
        for (name, stat) in record["v"].as_object().into_iter().flatten().take(16) {
            let short = [("accelerometer1rms", "vib1"), ("accelerometer2rms", "vib2"), ("volume_flow_raterms", "flow")];
            let Some((_, short)) = short.iter().find(|(long, _)| long == name) else {
                continue;
            };
            let _ = write!(line, "{short} {:<8.4}", stat["mean"].as_f64().unwrap_or(f64::NAN));
        }
        if line.is_empty() {
            for (name, stat) in record["v"].as_object().into_iter().flatten().take(4) {
                let _ = write!(line, "{name} {:.4}  ", stat["mean"].as_f64().unwrap_or(f64::NAN));
            }
        }
        self.signals = line;
        // Without a model nothing else shows that data arrives.
        if self.predictions == 0 && self.learning == 0 {
            say(&format!("{t_s:8.1} s  {}", self.signals))
        } else {
            Ok(())
        }
    }

    fn prediction(&mut self, record: &Value) -> Result<(), Fatal> {
        let t_s = self.seconds(record);
        self.predictions += 1;
        let second = t_s as i64;
        let Some(score) = record["score"].as_f64() else {
            self.learning += 1;
            if self.last_line_s.replace(second) != Some(second) {
                say(&format!("{t_s:8.1} s  {}  learning what is normal, window {}", self.signals, self.learning))?;
            }
            return Ok(());
        };
        if self.last_line_s.replace(second) == Some(second) {
            return Ok(());
        }
        let threshold = record["threshold"].as_f64().unwrap_or(f64::INFINITY);
        let filled = ((score / threshold * 10.0) as usize).min(20);
        let bar: String = (0..20)
            .map(|i| {
                if i == 10 {
                    '|'
                } else if i < filled {
                    '#'
                } else {
                    '.'
                }
            })
            .collect();
        let state = if self.raised_now > 0 { "ALARM" } else { "ok   " };
        say(&format!(
            "{t_s:8.1} s  {}  score {score:7.2} of {threshold:5.2} [{bar}]  {state}  {} queued",
            self.signals, self.queued
        ))
    }

    fn alarm(&mut self, record: &Value) -> Result<(), Fatal> {
        let t_s = self.seconds(record);
        let raised = record["phase"] == "raised";
        if raised {
            self.raised += 1;
            self.raised_now += 1;
            if self.first_fault_s.is_some_and(|fault| t_s < fault) {
                self.early += 1;
            }
        } else if record["phase"] == "cleared" {
            self.cleared += 1;
            self.raised_now = self.raised_now.saturating_sub(1);
        }
        let (score, level) = (record["score"].as_f64().unwrap_or(0.0), record["level"].as_f64().unwrap_or(0.0));
        let what = text(&record["phase"]);
        say(&format!("{t_s:8.1} s  alarm {} {what:7}: score {score:.2}, level {level:.2}", text(&record["alarm"])))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
