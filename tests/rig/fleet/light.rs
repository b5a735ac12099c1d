//! One light device: what it says of itself, by the schemas, as the daemon does. Whose connection carries it is not its concern.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    Ills, Size,
    rollout::{Follower, Played},
};

/// One light device.
pub struct Device {
    pub id: String,
    pub number: usize,
    pub away: bool,
    pub plans: Option<Follower>,
    pub played: Played,
    pub next_tick: Instant,
    pub next_h: Instant,
    pub next_score: Instant,
    seq: u64,
    began: Instant,
    ill: Ill,
    random: fastrand::Rng,
}

/// What is wrong with it.
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
    pub fn new(n: usize, size: Size, ills: Ills) -> Self {
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
            played: Played::default(),
            next_tick: now,
            next_h,
            next_score,
            seq: 0,
            began: now,
            ill,
            random,
        }
    }

    pub fn is_online(&self) -> bool {
        self.ill != Ill::Offline && !self.away
    }

    pub fn state(&self) -> (String, Value) {
        let state = if self.is_online() { "online" } else { "offline" };
        (self.topic("state"), Self::merged(self.head(), json!({"state": state, "session": 1})))
    }

    /// Of `up/reported`.
    pub fn reported_record(&self) -> Value {
        let slot = json!({"state": "steady", "version": "1.2.0", "seq": 12});
        let mut record = json!({"version": 0, "state": "none",
            "config": {"digest": null, "set_aside": [], "desired": null, "overridden": false},
            "models": {"pump-anomaly": {"serving": "a", "a": slot, "b": {"state": "empty"}}}});
        if let Some(plans) = &self.plans {
            record["plans"] = plans.reported();
        }
        record
    }

    pub fn reported(&mut self) -> (String, Value) {
        let record = self.reported_record();
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

    /// The members of `up/birth` after its head; the link of a device adds a nonce of its own.
    pub fn birth(&mut self) -> Value {
        let model = if self.random.f64() < 0.85 { "1.2.0" } else { "1.1.0" };
        let version = if self.random.f64() < 0.9 { "0.2.0" } else { "0.1.4" };
        json!({
            "device": self.id, "version": version, "schema": 1,
            "models": [{"pipeline": "pump", "model": format!("pump-anomaly@{model}"), "slot": "a", "sha256": "a".repeat(64)}],
            "streams": ["m/raw", "p/pump", "a/pump"], "commands": ["ping", "status", "report", "config.set", "restart"],
        })
    }

    /// What is said with a connection, retained.
    pub fn announce(&mut self) -> Vec<(String, Value)> {
        let mut birth = self.birth();
        birth["nonce"] = json!(format!("{:016x}", self.random.u64(..)));
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

    /// Of `up/h`.
    pub fn health_record(&mut self) -> Value {
        let (degraded, backlog) = match self.ill {
            Ill::Degraded(i) => (vec![DEGRADED[i]], if i == 1 { 18_000 + self.random.u64(..4000) } else { 0 }),
            _ => (Vec::new(), 0),
        };
        json!({
            "uptime_s": 80_000 + self.began.elapsed().as_secs(), "rss_kib": 9000 + self.random.u64(..900), "online": true,
            "disk_ok": self.ill != Ill::Degraded(1), "ram_records": self.random.u64(..3), "ram_bytes": 400,
            "stored_records": backlog, "stored_bytes": backlog * 40, "quarantines": 0, "delivered": 800_000 + self.seq * 60,
            "lost": if backlog > 0 { 412 } else { 0 }, "frames_waiting": 0, "models": 1, "models_serving": 1,
            "workers_lost": 0, "lost_by": [], "degraded": degraded,
        })
    }

    pub fn health(&mut self) -> (String, Value) {
        let record = self.health_record();
        (self.topic("h"), self.envelope(record, false))
    }

    /// Of `up/p/pump`.
    pub fn score_record(&mut self) -> Value {
        let t = self.began.elapsed().as_secs_f64();
        let wave = 0.9 + 0.3 * (t / 9.0).sin() + 0.15 * self.random.f64();
        let peak = if (t % 40.0) > 33.0 { 1.2 } else { 0.0 };
        json!({"in_seq": [self.seq, self.seq + 9], "in_t_ns": [1, 2], "score": wave + peak, "threshold": 1.75,
                            "took_us": 21, "out": {}})
    }

    pub fn score(&mut self) -> (String, Value) {
        let record = self.score_record();
        (self.topic("p/pump"), self.envelope(record, true))
    }
}

fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_millis();
    kentledge::host::clock::rfc3339_ms(since as i64)
}
