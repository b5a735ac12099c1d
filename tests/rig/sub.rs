//! A subscriber that is no code of ours: sees everything a site says, in order, and checks each message against its
//! schema.

use std::{
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use rumqttc::v5::{Client, Event, Incoming, MqttOptions, mqttbytes::QoS};
use serde_json::Value;

use crate::{SOON, schema};

#[derive(Debug, Clone)]
pub struct Message {
    /// Topic after `up/`.
    pub stream: String,
    pub payload: Value,
    pub retain: bool,
    /// An empty payload: what the broker kept was removed.
    pub removed: bool,
    /// When it came, ns since boot.
    pub at_ns: u64,
}

#[derive(Default)]
struct Seen {
    messages: Vec<Arc<Message>>,
    problems: Vec<String>,
}

#[derive(Clone)]
pub struct Sub {
    seen: Arc<(Mutex<Seen>, Condvar)>,
    client: Client,
}

impl Sub {
    /// Subscribed to everything, on a session that survives the broker.
    pub fn new(port: u16) -> Self {
        let mut options = MqttOptions::new(format!("sub-{port}-{:?}", std::thread::current().id()), "127.0.0.1", port);
        options.set_max_packet_size(Some(1 << 20)).set_clean_start(false).set_session_expiry_interval(Some(3600));
        let (client, mut connection) = Client::new(options, 64);
        client.subscribe("kl/+/+/up/#", QoS::AtLeastOnce).expect("subscribe");
        let seen: Arc<(Mutex<Seen>, Condvar)> = Arc::default();
        let (theirs, (ready, wait)) = (seen.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Incoming::SubAck(_))) => drop(ready.send(())),
                    Ok(Event::Incoming(Incoming::Publish(p))) => {
                        let topic = String::from_utf8(p.topic.to_vec()).expect("topic");
                        let stream = topic.split("/up/").nth(1).unwrap_or(&topic).to_owned();
                        Self::take(&theirs, stream, &p.payload, p.retain);
                    }
                    Ok(Event::Incoming(Incoming::Disconnect(_))) => {}
                    Ok(_) => {}
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        wait.recv_timeout(SOON).expect("subscribed");
        Self { seen, client }
    }

    fn take(seen: &(Mutex<Seen>, Condvar), stream: String, payload: &[u8], retain: bool) {
        let mut all = seen.0.lock().expect("seen");
        let removed = payload.is_empty();
        // An escalated window is no JSON: its header is kept instead.
        let json = if stream.starts_with("x/") { schema::header(payload) } else { payload };
        let parsed = if removed { Value::Null } else { serde_json::from_slice(json).unwrap_or(Value::Null) };
        if !removed {
            let found = schema::problems(&stream, &parsed);
            all.problems.extend(found.into_iter().map(|p| format!("{p}\n    in {}", String::from_utf8_lossy(payload))));
            if payload.len() > 128 * 1024 {
                all.problems.push(format!("up/{stream}: {} bytes are more than 128 KiB", payload.len()));
            }
        }
        all.messages.push(Arc::new(Message { stream, payload: parsed, retain, removed, at_ns: crate::boot_ns() }));
        seen.1.notify_all();
    }

    /// Waits until `look` finds something in what was seen so far.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, look: impl FnMut(&[Arc<Message>]) -> Option<T>) -> T {
        self.wait_most(SOON, what, look)
    }

    /// The same for what takes longer than anything ordinary.
    #[track_caller]
    pub fn wait_most<T>(&self, most: Duration, what: &str, mut look: impl FnMut(&[Arc<Message>]) -> Option<T>) -> T {
        let (until, mut known) = (Instant::now() + most, usize::MAX);
        loop {
            // The lock is not held while looking: `look` may ask for more.
            let messages = self.newer_than(known);
            known = messages.len();
            if let Some(found) = look(&messages) {
                return found;
            }
            if Instant::now() > until {
                let last: Vec<_> =
                    messages.iter().rev().take(8).map(|m| format!("{} {}", m.stream, m.payload)).collect();
                panic!("in vain: {what}; {known} messages, the last: {last:#?}");
            }
        }
    }

    /// All messages when there are others than `known`, or after a while.
    fn newer_than(&self, known: usize) -> Vec<Arc<Message>> {
        let seen = self.seen.0.lock().expect("seen");
        let wait = Duration::from_millis(200);
        let (seen, _) = self.seen.1.wait_timeout_while(seen, wait, |s| s.messages.len() == known).expect("seen");
        seen.messages.clone()
    }

    /// Records of one stream so far, repeated ones counted again.
    pub fn count(&self, stream: &str) -> u64 {
        let seen = self.seen.0.lock().expect("seen");
        let of_stream = seen.messages.iter().filter(|m| m.stream == stream);
        of_stream.filter_map(|m| m.payload["seq"]["n"].as_u64()).sum()
    }

    /// All messages so far.
    pub fn messages(&self) -> Vec<Arc<Message>> {
        self.seen.0.lock().expect("seen").messages.clone()
    }

    /// All records of one stream so far, each with its envelope's `hist`, first copies only.
    pub fn records(&self, stream: &str) -> Vec<(Value, bool)> {
        records(&self.messages(), stream)
    }

    /// Waits until `n` records of a stream were seen.
    #[track_caller]
    pub fn wait_records(&self, stream: &str, n: usize) -> Vec<(Value, bool)> {
        self.wait(&format!("{n} records of {stream}"), |messages| {
            let found = records(messages, stream);
            (found.len() >= n).then_some(found)
        })
    }

    /// Waits for an event of this type whose text contains `text`.
    #[track_caller]
    pub fn wait_event(&self, kind: &str, text: &str) -> Value {
        self.wait(&format!("event {kind} with `{text}`"), |messages| {
            let mut found = records(messages, &format!("e/{kind}")).into_iter().map(|(record, _)| record);
            found.find(|record| record["text"].as_str().is_some_and(|t| t.contains(text)))
        })
    }

    /// Waits until the retained state is this.
    #[track_caller]
    pub fn wait_state(&self, state: &str) {
        self.wait(&format!("state {state}"), |messages| {
            messages.iter().rev().find(|m| m.stream == "state").filter(|m| m.payload["state"] == state).map(|_| ())
        });
    }
}

/// Records of a stream, first copies, in the order they came.
pub fn records(messages: &[Arc<Message>], stream: &str) -> Vec<(Value, bool)> {
    let mut known = std::collections::HashSet::new();
    let of_stream = messages.iter().filter(|m| m.stream == stream && !m.removed);
    let all = of_stream.flat_map(|m| {
        let hist = m.payload["hist"].as_bool().unwrap_or(false);
        m.payload["data"].as_array().cloned().unwrap_or_default().into_iter().map(move |record| (record, hist))
    });
    all.filter(|(record, _)| known.insert(record["seq"].as_u64())).collect()
}

impl Drop for Sub {
    fn drop(&mut self) {
        let _ = self.client.try_disconnect();
        if !std::thread::panicking() && Arc::strong_count(&self.seen) <= 2 {
            let seen = self.seen.0.lock().expect("seen");
            let shown: Vec<_> = seen.problems.iter().take(5).collect();
            assert!(seen.problems.is_empty(), "{} messages break the contract: {shown:#?}", seen.problems.len());
            assert!(!seen.messages.is_empty(), "a scenario with a subscriber sees messages");
        }
    }
}
