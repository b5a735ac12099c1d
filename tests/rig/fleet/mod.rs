//! Many light devices at one broker, over a few connections: they publish `state`, `birth`, `h`, `reported`, alarms and scores by the
//! schemas, as the daemon does, and decide about plans by its code (`rollout`). Not real here: sensors, the outbox, commands, a
//! connection for each device. Faults: devices that are offline, raise alarms, are degraded, whose clock is not set, on which the
//! command of a plan fails.

pub mod rollout;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kentledge::model::keyset::Keyset;
use rumqttc::v5::{Client, Connection, Event, Incoming, MqttOptions, mqttbytes::QoS};
use serde_json::{Value, json};

use self::rollout::{Done, Follower, Play, Start};

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
    /// No fault.
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
    shared: Shared,
    lines: Vec<JoinHandle<()>>,
}

#[derive(Clone, Default)]
struct Shared {
    stop: Arc<AtomicBool>,
    announced: Arc<AtomicUsize>,
    done: Arc<Mutex<Done>>,
    /// Devices from the first that are offline.
    away: Arc<AtomicUsize>,
}

impl Fleet {
    /// Starts it; devices are `plant/pump-00001` and on. With `play` they obey plans.
    pub fn start(port: u16, size: Size, ills: Ills, play: Option<Play>) -> Self {
        let shared = Shared::default();
        let keys = play.as_ref().map(|play| Arc::new(Keyset::read(&play.keyset).expect("a keyset")));
        let play = play.map(Arc::new).zip(keys);
        let lines = (0..size.lines).map(|i| {
            let ids = (0..size.devices).filter(|d| d % size.lines == i).map(|d| d + 1).collect::<Vec<_>>();
            let (shared, play) = (shared.clone(), play.clone());
            std::thread::spawn(move || Line::open(port, i, &ids, size, ills, shared, play).run())
        });
        Self { lines: lines.collect(), shared }
    }

    /// Devices that have announced themselves.
    pub fn announced(&self) -> usize {
        self.shared.announced.load(Ordering::Relaxed)
    }

    /// So many devices, from the first, are offline from now on.
    pub fn away(&self, devices: usize) {
        self.shared.away.store(devices, Ordering::Relaxed);
    }

    /// Commands of plans so far.
    pub fn starts(&self) -> Vec<Start> {
        self.shared.done.lock().expect("done").starts.clone()
    }

    /// Messages about plans that were refused so far.
    pub fn refused(&self) -> Vec<String> {
        self.shared.done.lock().expect("done").refused.clone()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for line in self.lines.drain(..) {
            let _ = line.join();
        }
    }
}

/// How often a device looks at its plans: the daemon does so ten times a second. More than 1000 share two processors with the rest.
fn tick(size: Size) -> Duration {
    Duration::from_millis(if size.devices > 1000 { 1000 } else { 200 })
}

/// One light device.
struct Device {
    id: String,
    number: usize,
    away: bool,
    plans: Option<Follower>,
    next_tick: Instant,
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
        let (id, now) = (format!("plant/pump-{n:05}"), Instant::now());
        Self {
            id,
            number: n,
            away: false,
            plans: None,
            next_tick: now,
            seq: 0,
            next_h,
            next_score,
            began: now,
            ill,
            random,
        }
    }

    fn is_online(&self) -> bool {
        self.ill != Ill::Offline && !self.away
    }

    fn state(&self) -> (String, Value) {
        let state = if self.is_online() { "online" } else { "offline" };
        (self.topic("state"), Self::merged(self.head(), json!({"state": state, "session": 1})))
    }

    fn reported(&mut self) -> (String, Value) {
        let slot = json!({"state": "steady", "version": "1.2.0", "seq": 12});
        let mut record = json!({"version": 0, "state": "none",
            "config": {"digest": null, "set_aside": [], "desired": null, "overridden": false},
            "models": {"pump-anomaly": {"serving": "a", "a": slot, "b": {"state": "empty"}}}});
        if let Some(plans) = &self.plans {
            record["plans"] = plans.reported();
        }
        (self.topic("reported"), self.envelope(record, false))
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
        let model = if self.random.f64() < 0.85 { "1.2.0" } else { "1.1.0" };
        let version = if self.random.f64() < 0.9 { "0.2.0" } else { "0.1.4" };
        let birth = json!({
            "device": self.id, "version": version, "schema": 1, "nonce": format!("{:016x}", self.random.u64(..)),
            "models": [{"pipeline": "pump", "model": format!("pump-anomaly@{model}"), "slot": "a", "sha256": "a".repeat(64)}],
            "streams": ["m/raw", "p/pump", "a/pump"], "commands": ["ping", "status", "report", "config.set", "restart"],
        });
        let mut said = vec![self.state(), (self.topic("birth"), Self::merged(self.head(), birth)), self.reported()];
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
    shared: Shared,
    keys: Option<Arc<Keyset>>,
}

impl Line {
    fn open(
        port: u16,
        n: usize,
        ids: &[usize],
        size: Size,
        ills: Ills,
        shared: Shared,
        play: Option<(Arc<Play>, Arc<Keyset>)>,
    ) -> Self {
        let name = format!("fleet-{n}-{:08x}", fastrand::u32(..));
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_max_packet_size(Some(1 << 18)).set_clean_start(true);
        options.set_outgoing_inflight_upper_limit(200);
        let (client, connection) = Client::new(options, 1000);
        let mut devices: Vec<Device> = ids.iter().map(|id| Device::new(*id, size, ills)).collect();
        let keys = play.as_ref().map(|(_, keys)| keys.clone());
        if let Some((play, keys)) = play {
            for device in &mut devices {
                let seed = device.number as u64;
                device.plans = Some(Follower::new(&device.id, play.clone(), keys.clone(), shared.done.clone(), seed));
            }
            for filter in ["plan/+", "gate/+/+", "halt/+"] {
                client.try_subscribe(format!("kl/plant/+/dn/{filter}"), QoS::AtLeastOnce).expect("subscribe");
            }
        }
        Self { client, connection, devices, waiting: VecDeque::new(), size, shared, keys }
    }

    fn run(mut self) {
        for i in 0..self.devices.len() {
            let said = self.devices[i].announce();
            self.say(said, true);
            self.shared.announced.fetch_add(1, Ordering::Relaxed);
            if i % 50 == 0 {
                self.turn(Duration::ZERO);
            }
        }
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.turn(Duration::from_millis(20));
            self.tick();
        }
    }

    /// A plan, gate or halt came.
    fn hear(&mut self, topic: &str, payload: &[u8]) {
        let Some(keys) = self.keys.clone() else { return };
        let Some((to, rest)) = topic.strip_prefix("kl/plant/").and_then(|t| t.split_once("/dn/")) else { return };
        if payload.is_empty() {
            return;
        }
        let message = match rollout::read(rest, payload, &keys) {
            Ok(message) => message,
            Err(why) => return self.shared.done.lock().expect("done").refused.push(format!("{rest}: {why}")),
        };
        let mut said = Vec::new();
        for device in self.devices.iter_mut().filter(|device| device.is_online()) {
            let is = to == "_all" || device.id.ends_with(&format!("/{to}"));
            if is && device.plans.as_mut().is_some_and(|plans| plans.hear(&message)) {
                said.push(device.reported());
            }
        }
        self.say(said, true);
    }

    fn say(&mut self, said: Vec<(String, Value)>, retain: bool) {
        self.waiting.extend(said.into_iter().map(|(topic, value)| (topic, retain, value.to_string())));
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for i in 0..self.devices.len() {
            let away = self.devices[i].number <= self.shared.away.load(Ordering::Relaxed);
            let device = &mut self.devices[i];
            let mut kept = Vec::new();
            if std::mem::replace(&mut device.away, away) != away {
                kept.push(device.state());
                device.plans.as_mut().filter(|_| !away).into_iter().for_each(Follower::reconnected);
            }
            let online = device.is_online();
            if now > device.next_tick {
                device.next_tick = now + tick(self.size);
                if device.plans.as_mut().is_some_and(|plans| plans.tick(online)) && online {
                    kept.push(device.reported());
                }
            }
            self.say(kept, true);
            let device = &mut self.devices[i];
            if !online {
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
                Ok(Ok(Event::Incoming(Incoming::Publish(p)))) => {
                    self.hear(&String::from_utf8_lossy(&p.topic), &p.payload);
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) => std::thread::sleep(Duration::from_millis(50)),
                Err(_) => break,
            }
        }
    }
}
