//! Many light devices with a connection of its own each: the daemon's link (sessions that live on, wills, back-off, the next broker of
//! the list), its outbox (the tail in RAM; of some the store too), its keyset and its decisions about plans. Not real here: sensors,
//! models, the memory of commands, and what the command of a plan does. Faults: devices that are away, slow links, commands that fail,
//! and whatever the test does to the brokers.
//!
//! ```text
//! shard (two of them) ─┬─ thread "links":   a task of the daemon's link for each device
//!                      └─ thread "devices": orders, plans, health, one device after the other
//! ```

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kentledge::{
    config::{Broker, Mqtt},
    flow::{
        Class, Draft, Retain, StreamId,
        beat::Beat,
        board::Board,
        meter::Meters,
        order::{self, Addressee, Arrived, Asked, LinkNews, Orders, Ticket},
    },
    host::Clock,
    link::{self, Announce, Beside, Edges, Setup, Topics, Wanted},
    model::keyset::Keyset,
    outbox::{Around, Expiry, OpenWith, Outbox, Writer},
};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::{
    Ills, Size,
    light::Device,
    rollout::{self, Done, Follower, Message, Play, Standing, Start, Ties},
};
use crate::{Cable, Wire};

/// Streams of a device, in the order of their numbers.
const STREAMS: [&str; 5] = ["res", "reported", "h", "loss", "p/pump"];
const RESULTS: StreamId = StreamId(0);
const REPORTED: StreamId = StreamId(1);
const HEALTH: StreamId = StreamId(2);
const LOSS: StreamId = StreamId(3);
const SCORES: StreamId = StreamId(4);

/// How a fleet is made.
#[derive(Debug, Clone)]
pub struct Manner {
    /// The address list of each device; those with an odd number have it turned by one, and so on.
    pub brokers: Vec<u16>,
    /// Of so many devices the outbox has its store on the disk; of the others it is in RAM alone.
    pub stores: usize,
    /// So many, the last ones, have a link of 25 kbit/s.
    pub slow: usize,
    /// s.
    pub keep_alive_s: u64,
    /// So many connect for the first time each second; `None`: all at once.
    pub arrive_per_s: Option<f64>,
}

/// A connection that came to stand: the broker granted all subscriptions.
#[derive(Debug, Clone, Copy)]
pub struct Connected {
    pub device: usize,
    pub at: Instant,
}

/// A fleet that runs until it is dropped.
pub struct Linked {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// In memory where the machine has such a folder: its files are small and many.
    dir: tempfile::TempDir,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Devices from the first that are away.
    away: AtomicUsize,
    standing: AtomicUsize,
    connected: Mutex<Vec<Connected>>,
    done: Arc<Mutex<Done>>,
}

impl Shared {
    fn connected(&self) -> MutexGuard<'_, Vec<Connected>> {
        self.connected.lock().expect("connected")
    }
}

impl Linked {
    /// Starts it; devices are `plant/pump-00001` and on.
    pub fn start(manner: &Manner, size: Size, ills: Ills, play: Play) -> Self {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.expect("folder");
        let keys = Arc::new(Keyset::read(&play.keyset).expect("a keyset"));
        let (shared, play) = (Arc::new(Shared::default()), Arc::new(play));
        let cable = (manner.slow > 0).then(|| Cable::to(manner.brokers[0]));
        cable.iter().for_each(|cable| cable.set(Wire::Drips(32)));
        let shards = 2.min(size.devices);
        let mut threads = Vec::new();
        for shard in 0..shards {
            let shared = shared.clone();
            let (manner, play, keys, dir) = (manner.clone(), play.clone(), keys.clone(), dir.path().to_owned());
            let cable = cable.as_ref().map(|cable| cable.port);
            let (hand, tasks) = std::sync::mpsc::channel();
            threads.push(std::thread::spawn({
                let shared = shared.clone();
                move || links(&tasks, &shared)
            }));
            threads.push(std::thread::spawn(move || {
                let numbers = (1..=size.devices).filter(|n| n % shards == shard);
                let own = manner.brokers.clone();
                let mut make = Make { manner, size, ills, play, keys, dir, shared: shared.clone() };
                let devices: Vec<One> = numbers
                    .map(|n| {
                        let is_slow = n + make.manner.slow > size.devices;
                        make.manner.brokers = cable.filter(|_| is_slow).map_or_else(|| own.clone(), |port| vec![port]);
                        let (one, task) = make.device(n);
                        hand.send(task).expect("the links run");
                        one
                    })
                    .collect();
                devices_run(devices, &make);
            }));
        }
        Self { shared, threads, dir }
    }

    /// Devices whose connection stands, as far as they know.
    pub fn standing(&self) -> usize {
        self.shared.standing.load(Relaxed)
    }

    /// All connections that came to stand, in order.
    pub fn connected(&self) -> Vec<Connected> {
        self.shared.connected().clone()
    }

    /// So many devices, from the first, are away from now on; the others are not.
    pub fn away(&self, devices: usize) {
        self.shared.away.store(devices, Relaxed);
    }

    /// Commands of plans so far.
    pub fn starts(&self) -> Vec<Start> {
        self.shared.done.lock().expect("done").starts.clone()
    }

    /// Messages about plans that were refused so far.
    pub fn refused(&self) -> Vec<String> {
        self.shared.done.lock().expect("done").refused.clone()
    }

    /// When devices heard the halt secret of a plan, in order.
    pub fn halts(&self, plan: &str) -> Vec<Instant> {
        let done = self.shared.done.lock().expect("done");
        let mut all: Vec<Instant> = done.halts.iter().filter(|(of, _)| of == plan).map(|(_, at)| *at).collect();
        all.sort_unstable();
        all
    }

    /// Where their outboxes are.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The most connects in any second, and how long it took from `since` until so many devices had connected.
pub fn storm(connected: &[Connected], since: Instant, devices: usize) -> (usize, Option<Duration>) {
    let mut last = HashMap::new();
    let mut all: Vec<Duration> = Vec::new();
    let mut took = None;
    for one in connected.iter().filter(|one| one.at >= since) {
        all.push(one.at - since);
        last.insert(one.device, one.at);
        if last.len() == devices && took.is_none() {
            took = Some(one.at - since);
        }
    }
    all.sort_unstable();
    let second = Duration::from_secs(1);
    let most = (0..all.len()).map(|i| all[i..].partition_point(|at| *at < all[i] + second)).max();
    (most.unwrap_or(0), took)
}

/// What the thread of links gets.
struct Task {
    setup: Setup,
    edges: Edges,
    news: watch::Receiver<LinkNews>,
    number: usize,
    stop: watch::Receiver<bool>,
    /// How long the device waits with its first connect.
    wait: Duration,
}

/// Runs the links of a shard.
fn links(tasks: &std::sync::mpsc::Receiver<Task>, shared: &Arc<Shared>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        while !shared.stop.load(Relaxed) {
            while let Ok(task) = tasks.try_recv() {
                tokio::spawn(follow(task.news, task.number, shared.clone()));
                tokio::spawn(async move {
                    tokio::time::sleep(task.wait).await;
                    link::run(task.setup, task.edges, task.stop, Beat::default()).await
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // They say that they are gone.
        tokio::time::sleep(Duration::from_millis(200)).await;
    });
}

/// Notes when a connection comes to stand.
async fn follow(mut news: watch::Receiver<LinkNews>, device: usize, shared: Arc<Shared>) {
    let mut stands = false;
    while news.changed().await.is_ok() {
        let now = news.borrow_and_update().subscribed;
        match (std::mem::replace(&mut stands, now), now) {
            (false, true) => {
                shared.standing.fetch_add(1, Relaxed);
                shared.connected().push(Connected { device, at: Instant::now() });
            }
            (true, false) => {
                shared.standing.fetch_sub(1, Relaxed);
            }
            _ => {}
        }
    }
}

/// A device's ends of its connection.
struct Linkage {
    news: watch::Receiver<LinkNews>,
    writer: Writer,
    clock: Arc<Clock>,
    arrived: Instant,
}

impl Linkage {
    fn put(&self, stream: StreamId, class: Class, record: &Value, retain: Retain) -> u64 {
        let (stamp, body) = (self.clock.now(), members(record).into());
        self.writer.put_now(Draft { stream, class, stamp, lineage: None, body, retain })
    }
}

/// Members without the braces around them.
fn members(record: &Value) -> String {
    let text = record.to_string();
    text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).expect("an object").to_owned()
}

impl Ties for Linkage {
    fn standing(&self) -> Standing {
        let news = *self.news.borrow();
        let quiet = self.arrived.elapsed() >= kentledge::limits::CONTROL_TURN;
        Standing { session: news.subscribed.then_some(news.session), acked: news.acked, quiet }
    }

    fn probe(&mut self, kind: &str, id: &str) -> u64 {
        let record = serde_json::json!({"type": kind, "id": id, "state": "accepted", "text": "it starts when this is acknowledged"});
        self.put(RESULTS, Class::Reply, &record, Retain::No)
    }
}

/// One device.
struct One {
    light: Device,
    ties: Linkage,
    orders: Orders,
    settled: mpsc::Sender<Ticket>,
    wanted: watch::Sender<Wanted>,
    stop: watch::Sender<bool>,
    /// The connection on which `up/reported` was published.
    reported: u64,
    home: Mqtt,
    away: bool,
    store: Option<Box<dyn FnOnce() + Send>>,
}

/// What devices are made of.
struct Make {
    manner: Manner,
    size: Size,
    ills: Ills,
    play: Arc<Play>,
    keys: Arc<Keyset>,
    dir: PathBuf,
    shared: Arc<Shared>,
}

impl Make {
    fn device(&self, n: usize) -> (One, Task) {
        let mut light = Device::new(n, self.size, self.ills);
        let clock = Arc::new(Clock::default());
        let mqtt = mqtt(&self.manner, n, &light.id);
        let boot = format!("boot-{n}");
        let outbox = Outbox::open(OpenWith {
            state_dir: self.dir.join(n.to_string()),
            boot: boot.clone(),
            streams: STREAMS.map(str::to_owned).to_vec(),
            loss: LOSS,
            max_bytes: 4 << 20,
            expiry: Expiry::default(),
            program: None,
            now_s: 1_700_000_000,
            linger_ms: 0,
        });
        let store = (n <= self.manner.stores).then(|| keep(outbox.committer, clock.clone()));
        let birth = members(&light.birth());
        let (door, orders) = order::queue(64, 1 << 20);
        let (news, standing) = watch::channel(LinkNews::default());
        let (want, wanted) = watch::channel(Wanted { mqtt: mqtt.clone(), generation: 0, wait_most: None });
        // Nothing is answered here: the sender is dropped.
        let (_, responses) = mpsc::channel(1);
        let (settled, settles) = mpsc::channel(64);
        let (stop, stopped) = watch::channel(false);
        let setup = Setup {
            orders: door,
            news,
            meters: Arc::new(Meters::new(0, 0, 0)),
            board: Arc::new(Board::new(0, 0)),
            topics: Topics::new("plant", light.id.split_once('/').expect("site/device").1, &[]).with_plans(true),
            escalating: Vec::new(),
            announce: Announce {
                boot,
                birth: Box::new(move || birth.clone()),
                meta: Vec::new(),
                gone: Vec::new(),
                beside: Beside::default(),
            },
            reader: outbox.reader,
            clock: clock.clone(),
            backlog_kib_s: 0,
            tell: Box::new(|_, _| {}),
            raised: Box::new(|_| None),
            going_to: Box::new(|_| {}),
            note: Box::new(|_| {}),
        };
        light.plans = Some(Follower::new(
            &light.id,
            self.play.clone(),
            self.keys.clone(),
            self.shared.done.clone(),
            light.number as u64,
        ));
        let ties = Linkage { news: standing.clone(), writer: outbox.writer, clock, arrived: Instant::now() };
        let edges = Edges { wanted, responses, settled: settles };
        let wait = self.manner.arrive_per_s.map_or(Duration::ZERO, |pace| Duration::from_secs_f64(n as f64 / pace));
        let task = Task { setup, edges, news: standing, number: n, stop: stopped, wait };
        let one = One { light, ties, orders, settled, wanted: want, stop, reported: 0, home: mqtt, away: false, store };
        (one, task)
    }
}

fn mqtt(manner: &Manner, n: usize, id: &str) -> Mqtt {
    let mut ports = manner.brokers.clone();
    ports.rotate_left(n % manner.brokers.len());
    let parse = |port: &u16| Broker::parse(&format!("mqtt://127.0.0.1:{port}")).expect("an address");
    Mqtt {
        tls: None,
        brokers: ports.iter().map(parse).collect(),
        proxy: None,
        username: None,
        password_file: None,
        keep_alive_s: manner.keep_alive_s,
        cbor: false,
        client_id: id.replace('/', "-"),
        topic_prefix: String::new(),
    }
}

/// The thread of an outbox with a store. Returns how it ends.
fn keep(committer: kentledge::outbox::Committer, clock: Arc<Clock>) -> Box<dyn FnOnce() + Send> {
    let closer = committer.closer();
    let around = Around {
        now: Box::new(move || clock.now()),
        floor_ms: 0,
        beat: Box::new(|| {}),
        event: Box::new(|_, stamp, text| Draft {
            stream: LOSS,
            class: Class::Status,
            stamp,
            lineage: None,
            body: format!("\"text\":{}", Value::from(text)).into(),
            retain: Retain::No,
        }),
        committed: Box::new(|_| {}),
    };
    let thread =
        std::thread::Builder::new().stack_size(1 << 20).spawn(move || committer.run(around)).expect("a thread");
    Box::new(move || {
        closer();
        let _ = thread.join();
    })
}

/// The devices of a shard, one after the other, until the fleet stops.
fn devices_run(mut devices: Vec<One>, make: &Make) {
    let every = super::tick(make.size) / 2;
    let mut known: HashMap<(String, Vec<u8>), Result<Message, String>> = HashMap::new();
    while !make.shared.stop.load(Relaxed) {
        let began = Instant::now();
        let away = make.shared.away.load(Relaxed);
        for one in &mut devices {
            one.turn(make, away, &mut known);
        }
        // A secret is seldom heard twice; a plan by all of them.
        if known.len() > 256 {
            known.clear();
        }
        std::thread::sleep(every.saturating_sub(began.elapsed()));
    }
    for one in &devices {
        one.stop.send_replace(true);
    }
    devices.into_iter().filter_map(|one| one.store).for_each(|close| close());
}

impl One {
    fn turn(&mut self, make: &Make, away: usize, known: &mut HashMap<(String, Vec<u8>), Result<Message, String>>) {
        self.go(self.light.number <= away);
        let mut changed = false;
        while let Ok(arrived) = self.orders.take(Duration::ZERO) {
            self.ties.arrived = Instant::now();
            changed |= self.arrived(arrived, make, known);
        }
        if let Some(plans) = &mut self.light.plans {
            changed |= plans.tick(&mut self.ties);
        }
        let news = *self.ties.news.borrow();
        // As the daemon does: a broker may have lost what it kept.
        if changed || (news.subscribed && std::mem::replace(&mut self.reported, news.session) != news.session) {
            let record = self.light.reported_record();
            self.ties.put(REPORTED, Class::Status, &record, Retain::Keep);
        }
        let now = Instant::now();
        if now > self.light.next_h {
            self.light.next_h = now + Duration::from_secs_f64(make.size.health_s);
            let record = self.light.health_record();
            self.ties.put(HEALTH, Class::Status, &record, Retain::No);
        }
        if make.size.score_s > 0.0 && now > self.light.next_score {
            self.light.next_score = now + Duration::from_secs_f64(make.size.score_s);
            let record = self.light.score_record();
            self.ties.put(SCORES, Class::Score, &record, Retain::No);
        }
    }

    /// A device that is away looks for its broker where none is.
    fn go(&mut self, away: bool) {
        if std::mem::replace(&mut self.away, away) != away {
            let mut mqtt = self.home.clone();
            if away {
                mqtt.brokers = vec![Broker::parse("mqtt://127.0.0.1:1").expect("an address")];
            }
            let generation = self.wanted.borrow().generation + 1;
            self.wanted.send_replace(Wanted { mqtt, generation, wait_most: None });
        }
    }

    /// A plan, gate or halt came; other orders are settled as they are.
    fn arrived(
        &mut self,
        arrived: Arrived,
        make: &Make,
        known: &mut HashMap<(String, Vec<u8>), Result<Message, String>>,
    ) -> bool {
        let rest = match &arrived.asked {
            Asked::Plan { name } => format!("plan/{name}"),
            Asked::Gate { plan, wave } => format!("gate/{plan}/{wave}"),
            Asked::Halt { plan } => format!("halt/{plan}"),
            _ => String::new(),
        };
        let ours = !matches!(arrived.to, Addressee::Cohort(_)) && !rest.is_empty() && !arrived.payload.is_empty();
        let mut changed = false;
        if ours {
            let key = (rest.clone(), arrived.payload.to_vec());
            let read = known.entry(key).or_insert_with(|| rollout::read(&rest, &arrived.payload, &make.keys));
            match (read, &mut self.light.plans) {
                (Ok(message), Some(plans)) => changed = plans.hear(message, &mut self.ties),
                (Err(why), _) => {
                    make.shared.done.lock().expect("done").refused.push(format!("{}: {rest}: {why}", self.light.id));
                }
                _ => {}
            }
        }
        let _ = self.settled.try_send(arrived.ticket);
        changed || arrived.asked.is_report()
    }
}
