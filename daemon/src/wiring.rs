//! What `run` and `replay` build for the stages: what each works with, and the lines between control and the edges.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    bus,
    config::Config,
    control::{self, Leave, Trials},
    crew::{Beat, Crew},
    error::{Context, Fatal},
    flow::{
        Class,
        event::EventStreams,
        meter::Meters,
        order::{self, Door, LinkNews, Orders, Response, Ticket},
    },
    health::{self, Counters},
    host::{Clock, Host, Keep, log, logind},
    infer::{self, Keeps, Served},
    limits,
    link::{self, Topics},
    outbox::{Around, Expiry, Reader, Setup, Writer},
    status::Status,
    streams::{self, Table},
};

/// Control's ends of what lies between it and the edges.
pub struct Lines {
    orders: Orders,
    responses: tokio::sync::mpsc::Sender<Response>,
    settled: tokio::sync::mpsc::Sender<Ticket>,
    wanted: Option<watch::Sender<link::Wanted>>,
    news: watch::Receiver<LinkNews>,
    leave: tokio::sync::mpsc::Sender<Leave>,
}

/// The other ends. Control ends when these and the link are gone.
pub struct Ends {
    /// To control; full: counted and dropped.
    pub orders: Door,
    /// For the link, where there is a broker.
    pub edges: Option<link::Edges>,
    /// How the connection stands.
    pub news: watch::Sender<LinkNews>,
    /// How the process is to go on.
    pub leave: tokio::sync::mpsc::Receiver<Leave>,
    /// The same, for those on the machine who ask.
    pub asked: tokio::sync::mpsc::Sender<Leave>,
}

/// The lines between control and the edges.
pub fn lines(config: &Config) -> (Lines, Ends) {
    let (orders_tx, orders) = order::queue(limits::ORDERS, limits::ORDER_BYTES);
    let (responses_tx, responses) = tokio::sync::mpsc::channel(limits::RESPONSES);
    let (settled_tx, settled) = tokio::sync::mpsc::channel(limits::ORDERS);
    let (news_tx, news) = watch::channel(LinkNews::default());
    let (leave_tx, leave) = tokio::sync::mpsc::channel(2);
    let wanted = config.mqtt.clone().map(|mqtt| {
        // A change that another run of this process began is on trial: then the link hurries.
        let trial = Trials::open(&config.device.state_dir).ok().and_then(|trials| trials.wait_most());
        watch::channel(link::Wanted { mqtt, generation: 0, wait_most: trial })
    });
    let (wanted_tx, wanted) = wanted.unzip();
    let edges = wanted.map(|wanted| link::Edges { wanted, responses, settled });
    let asked = leave_tx.clone();
    (
        Lines { orders, responses: responses_tx, settled: settled_tx, wanted: wanted_tx, news, leave: leave_tx },
        Ends { orders: orders_tx, edges, news: news_tx, leave, asked },
    )
}

/// What D-Bus shows and does.
pub fn shown(status: &Status, ends: &Ends) -> bus::Shown {
    let (status, asked) = (status.clone(), ends.asked.clone());
    bus::Shown {
        status: Arc::new(move || status.json()),
        restart: Arc::new(move || {
            let _ = asked.try_send(Leave::Restart);
        }),
    }
}

impl Host {
    /// Folders for what models and alarms keep.
    pub fn keeps(&self, state_dir: &Path) -> Result<Keeps, Fatal> {
        let open = |name: &str| Keep::open(state_dir, name).context(format!("open {}/{name}", state_dir.display()));
        Ok(Keeps { calibration: open("calibration")?, alarms: open("alarms")? })
    }

    /// The folder of the last known time, which is taken up.
    pub fn times(&self, state_dir: &Path) -> Result<Keep, Fatal> {
        let keep = Keep::open(state_dir, "clock").context(format!("open {}/clock", state_dir.display()))?;
        self.clock.load_floor(&keep);
        Ok(keep)
    }

    /// What the outbox is opened with.
    pub fn outbox(&self, config: &Config, table: &Table) -> Setup {
        const HOUR_NS: u64 = 3_600_000_000_000;
        let (outbox, now) = (&config.outbox, self.clock.now());
        let mut ages = vec![(Class::Reply, outbox.expire_reply_h), (Class::Status, outbox.expire_status_h)];
        ages.extend([Class::Score, Class::Measurement].map(|class| (class, outbox.expire_data_h)));
        let ages = ages.into_iter().filter(|(_, hours)| *hours > 0).map(|(class, hours)| (class, hours * HOUR_NS));
        Setup {
            state_dir: config.device.state_dir.clone(),
            boot: self.boot.clone(),
            streams: table.names.clone(),
            loss: table.loss,
            max_bytes: outbox.max_bytes,
            expiry: Expiry(ages.collect()),
            program: Some(self.program.clone()),
            now,
            now_s: now.wall_ms.unwrap_or(0).max(self.clock.floor_ms()) as u64 / 1000,
        }
    }

    /// What the outbox's thread needs from the rest.
    pub fn around(&self, events: EventStreams, meters: Arc<Meters>) -> impl FnOnce(Beat) -> Around + Send + 'static {
        let clock = self.clock.clone();
        move |beat| Around {
            floor_ms: clock.floor_ms(),
            now: Box::new(move || clock.now()),
            beat: Box::new(move || beat.beat()),
            event: Box::new(move |kind, stamp, text| events.draft(kind, stamp, "store", text)),
            committed: Box::new(move |time| meters.commit.took_time(time)),
        }
    }

    /// What the link works with.
    pub fn link(
        &self,
        config: &Config,
        reader: Reader,
        writer: &Writer,
        table: &Table,
        (counters, meters): (&Arc<Counters>, &Arc<Meters>),
        ends: &Ends,
    ) -> link::Setup {
        let (writer, events, clock) = (writer.clone(), table.events.clone(), self.clock.clone());
        let counters = counters.clone();
        let device = &config.device;
        let alarms: Vec<String> = config.alarms.iter().map(|alarm| alarm.name.clone()).collect();
        let raised = meters.clone();
        link::Setup {
            orders: ends.orders.clone(),
            news: ends.news.clone(),
            meters: meters.clone(),
            topics: Topics::new(&device.site, &device.id, &device.cohorts),
            announce: streams::announce(self, config),
            reader,
            clock: self.clock.clone(),
            backlog_kib_s: config.outbox.backlog_kib_s,
            tell: Box::new(move |kind, text| {
                writer.put_now(events.draft(kind, clock.now(), "link", text));
            }),
            going_to: Box::new({
                let counters = counters.clone();
                move |broker| counters.going_to(broker)
            }),
            note: Box::new(move |text| counters.link(text)),
            raised: Box::new(move |stream| {
                let place = alarms.iter().position(|name| stream.strip_prefix("a/") == Some(name))?;
                Some(raised.alarms[place].load(Ordering::Relaxed))
            }),
        }
    }

    /// What there is to look at.
    pub fn status(&self, config: &Config, meters: &Arc<Meters>, counters: &Arc<Counters>, writer: &Writer) -> Status {
        Status {
            config: Arc::new(config.clone()),
            meters: meters.clone(),
            counters: counters.clone(),
            history: Arc::default(),
            writer: writer.clone(),
            clock: self.clock.clone(),
            boot: self.boot.clone(),
            began_ns: Clock::boot_ns(),
        }
    }

    /// What control works with.
    pub fn control(
        &self,
        config: Config,
        table: &Table,
        writer: &Writer,
        status: Status,
        lines: Lines,
    ) -> Result<control::Setup, Fatal> {
        let Lines { orders, responses, settled, wanted, news, leave } = lines;
        let state = config.device.state_dir.clone();
        let what = |name: &str| format!("open {}/{name}", state.display());
        let (writer, meters) = (writer.clone(), status.meters.clone());
        let (bus, runtime) = (config.device.bus.clone(), tokio::runtime::Handle::current());
        Ok(control::Setup {
            keep: Keep::open(&state, "control").context(what("control"))?,
            trials: Trials::open(&state).context(what("config"))?,
            config,
            clock: self.clock.clone(),
            boot: self.boot.clone(),
            process: self.process.clone(),
            orders,
            streams: (table.results, table.reported),
            events: table.events.clone(),
            put: Box::new(move |draft| writer.put_now(draft)),
            settled: Box::new(move |ticket| {
                // As many as orders fit; without a link nobody waits for it.
                let _ = settled.try_send(ticket);
            }),
            respond: Box::new(move |response| {
                if responses.try_send(response).is_err() {
                    tracing::warn!("an answer for a response topic is dropped: too many at once");
                }
            }),
            link: news,
            want: Box::new(move |mqtt, generation, wait_most| {
                if let Some(wanted) = &wanted {
                    wanted.send_replace(link::Wanted { mqtt, generation, wait_most });
                }
            }),
            meters,
            machine: control::Machine {
                reboot: Box::new(move || {
                    let bus = bus.as_deref().ok_or("restart the system: there is no D-Bus (device.bus = \"off\")")?;
                    runtime.block_on(logind::reboot(bus))
                }),
                log: Box::new(log::pull),
                status: Box::new(move || status.json()),
            },
            leave: Box::new(move |how| {
                let _ = leave.try_send(how);
            }),
        })
    }

    /// The engine of one model and its pipelines. Without `keeps` it is a replay: nothing is kept, nothing is late.
    pub fn engine(
        &self,
        config: &Config,
        table: &Table,
        group: &[usize],
        keeps: Option<Keeps>,
        meters: &Arc<Meters>,
    ) -> infer::Setup {
        let replay = keeps.is_none();
        let served = group.iter().map(|pipeline| {
            let stream = table.signal.prediction[*pipeline];
            let place = *pipeline as u16;
            Served::new(place, config, stream, &table.alarms, &self.boot, keeps.clone(), meters.clone())
        });
        infer::Setup {
            program: self.program.clone(),
            runtime: infer::find_runtime(config.models.runtime.as_deref()),
            model: config.pipelines[group[0]].model.file.clone(),
            served: served.collect(),
            events: table.events.clone(),
            patient: replay,
        }
    }
}

impl Crew {
    /// Starts the health stage; it ends when the result is dropped.
    pub fn health(
        &mut self,
        host: &Host,
        config: &Config,
        table: &Table,
        status: Status,
        times: Keep,
    ) -> Result<mpsc::Sender<()>, Fatal> {
        let setup = health::Setup {
            stream: table.health,
            every: Duration::from_secs(config.metrics.interval_s),
            beats: self.beats.clone(),
            status,
        };
        let (stop, stopped) = mpsc::channel();
        let clock = host.clock.clone();
        let save = host.clock.clone();
        let wait = move |most| stopped.recv_timeout(most) != Err(mpsc::RecvTimeoutError::Timeout);
        self.thread("health", move |beat| {
            health::run(setup, || clock.now(), &beat, || save.save_floor(&times), wait);
            Ok(())
        })
        .context("start a thread")?;
        Ok(stop)
    }
}
