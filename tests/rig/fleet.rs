//! Many light devices at one broker, over a few connections: they publish `state`, `birth`, `h`, `reported`, alarms and scores by the
//! schemas, as the daemon does. Not real here: sensors, the outbox, a connection for each device. Faults: devices that are offline,
//! that raise alarms, that are degraded, whose clock is not set.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rumqttc::v5::{Client, Connection, MqttOptions, mqttbytes::QoS};
use serde_json::{Value, json};

/// What is wrong with which share of the devices.
#[derive(Debug, Clone, Copy)]
pub struct Ills {
    pub offline: f64,
    pub alarms: f64,
    pub degraded: f64,
    pub clock: f64,
}

impl Ills {
    /// As in an ordinary fleet on a bad day.
    pub const SOME: Self = Self { offline: 0.02, alarms: 0.015, degraded: 0.03, clock: 0.004 };
    /// All is well.
    pub const NONE: Self = Self { offline: 0.0, alarms: 0.0, degraded: 0.0, clock: 0.0 };
}

/// How a fleet is made.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub devices: usize,
    /// Connections that they share.
    pub lines: usize,
    /// Each device publishes `up/h` this often.
    pub health_s: f64,
    /// Each device publishes a score this often; 0: never.
    pub score_s: f64,
}

/// A fleet that runs until it is dropped.
pub struct Fleet {
    stop: Arc<AtomicBool>,
    announced: Arc<AtomicUsize>,
    lines: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// Starts it; devices are `plant/pump-00001` and on.
    pub fn start(port: u16, size: Size, ills: Ills) -> Self {
        let (stop, announced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let lines = (0..size.lines).map(|i| {
            let ids = (0..size.devices).filter(|d| d % size.lines == i).map(|d| d + 1).collect::<Vec<_>>();
            let (stop, announced) = (stop.clone(), announced.clone());
            std::thread::spawn(move || Line::open(port, i, &ids, size, ills).run(&stop, &announced))
        });
        Self { lines: lines.collect(), stop, announced }
    }

    /// Devices that have announced themselves.
    pub fn announced(&self) -> usize {
        self.announced.load(Ordering::Relaxed)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for line in self.lines.drain(..) {
            let _ = line.join();
        }
    }
}

/// One light device.
struct Device {
    id: String,
    seq: u64,
    next_h: Instant,
    next_score: Instant,
    began: Instant,
    ill: Ill,
    random: fastrand::Rng,
}

#[derive(Clone, Copy, PartialEq)]
enum Ill {
    No,
    Offline,
    Alarm,
    Degraded(usize),
    Clock,
}

const DEGRADED: [&str; 4] = [
    "source pump: no data for 84 s: read /dev/ttyUSB0: no such device",
    "disk not writable: No space left on device (os error 28)",
    "channel vibration: 100 % of the last 500 values are bad (out of range)",
    "model pump-anomaly: the worker was lost 3 times",
];

impl Device {
    fn new(n: usize, size: Size, ills: Ills) -> Self {
        let mut random = fastrand::Rng::with_seed(n as u64);
        let at = random.f64();
        let bounds = [ills.offline, ills.alarms, ills.degraded, ills.clock];
        let within = |i: usize| at < bounds[..=i].iter().sum();
        let ill = match (0..4).find(|i| within(*i)) {
            Some(0) => Ill::Offline,
            Some(1) => Ill::Alarm,
            // Most have the same illness, as it is in life.
            Some(2) => Ill::Degraded(if random.f64() < 0.6 { 0 } else { random.usize(1..4) }),
            Some(_) => Ill::Clock,
            None => Ill::No,
        };
        let spread = |every: f64| Instant::now() + Duration::from_secs_f64(every.max(0.01) * fastrand::f64());
        let (next_h, next_score) = (spread(size.health_s), spread(size.score_s));
        Self { id: format!("plant/pump-{n:05}"), seq: 0, next_h, next_score, began: Instant::now(), ill, random }
    }

    fn topic(&self, rest: &str) -> String {
        format!("kl/{}/up/{rest}", self.id)
    }

    fn clk(&self) -> (&'static str, Value) {
        match self.ill {
            Ill::Clock => ("unset", Value::Null),
            _ => ("sync", json!(now())),
        }
    }

    fn head(&self) -> Value {
        let (clk, ts) = self.clk();
        json!({"v": 1, "ts": ts, "clk": clk, "boot": format!("boot-{}", self.id)})
    }

    fn envelope(&mut self, record: Value, lineage: bool) -> Value {
        self.seq += 1;
        let mut whole = self.head();
        let mut record = record;
        (record["seq"], record["t"]) = (json!(self.seq), json!(0));
        whole["mono_ns"] = json!(self.began.elapsed().as_nanos() as u64);
        whole["hist"] = json!(false);
        whole["seq"] = json!({"first": self.seq, "last": self.seq, "n": 1});
        whole["data"] = json!([record]);
        if lineage {
            whole["lineage"] = json!({"model": "pump-anomaly@1.2.0", "sha256": "a".repeat(64), "slot": "a", "provider": "cpu",
                                      "cal": format!("sha256:{}", "b".repeat(64))});
        }
        whole
    }

    fn merged(mut head: Value, members: Value) -> Value {
        let Value::Object(members) = members else { return head };
        for (name, value) in members {
            head[name] = value;
        }
        head
    }

    /// What is said with a connection, retained.
    fn announce(&mut self) -> Vec<(String, Value)> {
        let state = if self.ill == Ill::Offline { "offline" } else { "online" };
        let model = if self.random.f64() < 0.85 { "1.2.0" } else { "1.1.0" };
        let version = if self.random.f64() < 0.9 { "0.2.0" } else { "0.1.4" };
        let birth = json!({
            "device": self.id, "version": version, "schema": 1, "nonce": format!("{:016x}", self.random.u64(..)),
            "models": [{"pipeline": "pump", "model": format!("pump-anomaly@{model}"), "slot": "a", "sha256": "a".repeat(64)}],
            "streams": ["m/raw", "p/pump", "a/pump"], "commands": ["ping", "status", "report", "config.set", "restart"],
        });
        let slot = json!({"state": "steady", "version": model, "seq": 12});
        let reported = json!({"version": 0, "state": "none",
            "config": {"digest": null, "set_aside": [], "desired": null, "overridden": false},
            "models": {"pump-anomaly": {"serving": "a", "a": slot, "b": {"state": "empty"}}}});
        let mut said = vec![
            (self.topic("state"), Self::merged(self.head(), json!({"state": state, "session": 1}))),
            (self.topic("birth"), Self::merged(self.head(), birth)),
            (self.topic("reported"), self.envelope(reported, false)),
        ];
        if self.ill == Ill::Alarm {
            let severity = ["critical", "warning", "warning"][self.random.usize(..3)];
            let name = if self.random.f64() < 0.7 { "bearing" } else { "leak" };
            let alarm = json!({"alarm": name, "id": format!("{}-1", self.id), "phase": "raised", "severity": severity,
                               "score": 2.91, "level": 1.75, "peak": 3.4, "in_seq": [1, 2], "in_t_ns": [1, 2],
                               "raised_seq": [1, 2], "raised_t_ns": [1, 2]});
            said.push((self.topic(&format!("a/{name}")), self.envelope(alarm, true)));
        }
        said
    }

    fn health(&mut self) -> (String, Value) {
        let (degraded, backlog) = match self.ill {
            Ill::Degraded(i) => (vec![DEGRADED[i]], if i == 1 { 18_000 + self.random.u64(..4000) } else { 0 }),
            _ => (Vec::new(), 0),
        };
        let record = json!({
            "uptime_s": 80_000 + self.began.elapsed().as_secs(), "rss_kib": 9000 + self.random.u64(..900), "online": true,
            "disk_ok": self.ill != Ill::Degraded(1), "ram_records": self.random.u64(..3), "ram_bytes": 400,
            "stored_records": backlog, "stored_bytes": backlog * 40, "quarantines": 0, "delivered": 800_000 + self.seq * 60,
            "lost": if backlog > 0 { 412 } else { 0 }, "frames_waiting": 0, "models": 1, "models_serving": 1,
            "workers_lost": 0, "lost_by": [], "degraded": degraded,
        });
        (self.topic("h"), self.envelope(record, false))
    }

    fn score(&mut self) -> (String, Value) {
        let t = self.began.elapsed().as_secs_f64();
        let wave = 0.9 + 0.3 * (t / 9.0).sin() + 0.15 * self.random.f64();
        let peak = if (t % 40.0) > 33.0 { 1.2 } else { 0.0 };
        let record = json!({"in_seq": [self.seq, self.seq + 9], "in_t_ns": [1, 2], "score": wave + peak, "threshold": 1.75,
                            "took_us": 21, "out": {}});
        (self.topic("p/pump"), self.envelope(record, true))
    }
}

fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_millis();
    kentledge::host::clock::rfc3339_ms(since as i64)
}

/// A connection with its devices.
struct Line {
    client: Client,
    connection: Connection,
    devices: Vec<Device>,
    waiting: VecDeque<(String, bool, String)>,
    size: Size,
}

impl Line {
    fn open(port: u16, n: usize, ids: &[usize], size: Size, ills: Ills) -> Self {
        let name = format!("fleet-{n}-{:08x}", fastrand::u32(..));
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_max_packet_size(Some(1 << 18)).set_clean_start(true);
        options.set_outgoing_inflight_upper_limit(200);
        let (client, connection) = Client::new(options, 1000);
        let devices = ids.iter().map(|id| Device::new(*id, size, ills)).collect();
        Self { client, connection, devices, waiting: VecDeque::new(), size }
    }

    fn run(mut self, stop: &AtomicBool, announced: &AtomicUsize) {
        for i in 0..self.devices.len() {
            let said = self.devices[i].announce();
            self.say(said, true);
            announced.fetch_add(1, Ordering::Relaxed);
            if i % 50 == 0 {
                self.turn(Duration::ZERO);
            }
        }
        while !stop.load(Ordering::Relaxed) {
            self.turn(Duration::from_millis(20));
            self.tick();
        }
    }

    fn say(&mut self, said: Vec<(String, Value)>, retain: bool) {
        self.waiting.extend(said.into_iter().map(|(topic, value)| (topic, retain, value.to_string())));
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for i in 0..self.devices.len() {
            let device = &mut self.devices[i];
            if device.ill == Ill::Offline {
                continue;
            }
            let mut said = Vec::new();
            if now > device.next_h {
                device.next_h = now + Duration::from_secs_f64(self.size.health_s);
                said.push(device.health());
            }
            if self.size.score_s > 0.0 && now > device.next_score {
                device.next_score = now + Duration::from_secs_f64(self.size.score_s);
                said.push(device.score());
            }
            self.say(said, false);
        }
    }

    /// Hands over what waits, and works on the connection for a while.
    fn turn(&mut self, most: Duration) {
        while let Some((topic, retain, payload)) = self.waiting.pop_front() {
            if let Err(full) = self.client.try_publish(&topic, QoS::AtLeastOnce, retain, payload.clone()) {
                let _ = full;
                self.waiting.push_front((topic, retain, payload));
                break;
            }
        }
        let until = Instant::now() + most.max(Duration::from_millis(1));
        while Instant::now() < until {
            match self.connection.recv_timeout(Duration::from_millis(5)) {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => std::thread::sleep(Duration::from_millis(50)),
                Err(_) => break,
            }
        }
    }
}
