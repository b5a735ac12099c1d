//! Many light devices at one broker, over a few connections: they publish `state`, `birth`, `h`, `reported`, alarms and scores by the
//! schemas, as the daemon does, and decide about plans by its code (`rollout`). Not real here: sensors, the outbox, commands, a
//! connection for each device. `linked` has the last one, and the outbox. Faults: devices that are offline, raise alarms, are degraded,
//! whose clock is not set, on which the command of a plan fails.

mod light;
pub mod linked;
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
use serde_json::Value;

use self::{
    light::Device,
    rollout::{Done, Follower, Play, Start},
};

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
            let Device { plans, played, .. } = device;
            if is && plans.as_mut().is_some_and(|plans| plans.hear(&message, played)) {
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
                device.played.session += u64::from(!away);
            }
            let online = device.is_online();
            device.played.online = online;
            if now > device.next_tick {
                device.next_tick = now + tick(self.size);
                let Device { plans, played, .. } = device;
                if plans.as_mut().is_some_and(|plans| plans.tick(played)) && online {
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
