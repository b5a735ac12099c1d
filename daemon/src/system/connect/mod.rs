//! What `run` and `replay` build for the stages: what each works with, and the lines between control and the edges.

mod models;

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    bus,
    config::Config,
    control::{self, Leave, Local, Trials},
    error::{Context, Fatal},
    flow::{
        Arrival, Class,
        beat::Beat,
        board::Board,
        event::EventStreams,
        lane,
        meter::Meters,
        order::{self, Door, LinkNews, Orders, Response, Ticket},
    },
    host::{Clock, Host, Keep, Scribe, log, logind, rauc},
    infer::Keeps,
    limits,
    link::{self, Topics},
    model::rollout::Desk,
    outbox::{Around, Expiry, Reader, Setup, Writer},
    output,
    report::{
        health::{self, Counters},
        status::Status,
    },
    source::{ring, tape},
};

use super::{
    crew::Crew,
    streams::{self, Table},
};

pub use models::{engine, installed};

/// Control's ends of what lies between it and the edges.
pub struct Lines {
    orders: Orders,
    responses: tokio::sync::mpsc::Sender<Response>,
    settled: tokio::sync::mpsc::Sender<Ticket>,
    wanted: Option<watch::Sender<link::Wanted>>,
    news: watch::Receiver<LinkNews>,
    leave: tokio::sync::mpsc::Sender<Leave>,
    asks: mpsc::Receiver<Local>,
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
    /// What they ask of models.
    pub models: mpsc::SyncSender<Local>,
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
        let trial = Trials::open(&config.device.state_dir).wait_most();
        watch::channel(link::Wanted { mqtt, generation: 0, wait_most: trial })
    });
    let (wanted_tx, wanted) = wanted.unzip();
    let edges = wanted.map(|wanted| link::Edges { wanted, responses, settled });
    let asked = leave_tx.clone();
    let (models, asks) = mpsc::sync_channel(2);
    (
        Lines { orders, responses: responses_tx, settled: settled_tx, wanted: wanted_tx, news, leave: leave_tx, asks },
        Ends { orders: orders_tx, edges, news: news_tx, leave, asked, models },
    )
}

/// Counters, and what stages show each other.
pub fn meters(config: &Config) -> (Arc<Meters>, Arc<Board>) {
    let (sources, channels, pipelines) = (config.sources.len(), config.channels.len(), config.pipelines.len());
    (Arc::new(Meters::new(sources, channels, pipelines)), Arc::new(Board::new(pipelines, config.alarms.len())))
}

/// What D-Bus shows and does.
pub fn shown(status: &Status, ends: &Ends) -> bus::Shown {
    let (status, asked, models) = (status.clone(), ends.asked.clone(), ends.models.clone());
    let roll_back = models.clone();
    let busy = |_| "busy: the daemon has not taken up the last request yet".to_owned();
    bus::Shown {
        install: Arc::new(move |fd| models.try_send(Local::Install(fd)).map_err(busy)),
        roll_back: Arc::new(move |model| roll_back.try_send(Local::RollBack(model)).map_err(busy)),
        status: Arc::new(move || status.json()),
        restart: Arc::new(move || {
            let _ = asked.try_send(Leave::Restart);
        }),
    }
}

impl Host {
    /// Folders for what models and alarms keep, written by the scribe.
    pub fn keeps(&self, state_dir: &Path, scribe: &Scribe) -> Keeps {
        let folder = |name: &str| scribe.folder(Keep::at(state_dir.join(name)));
        Keeps { calibration: folder("calibration"), alarms: folder("alarms") }
    }

    /// The folder of the last known time, which is taken up.
    pub fn times(&self, state_dir: &Path) -> Keep {
        let keep = Keep::at(state_dir.join("clock"));
        self.clock.load_floor(&keep);
        keep
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
            now_s: now.wall_ms.unwrap_or(0).max(self.clock.floor_ms()) as u64 / 1000,
        }
    }

    /// What drives lines.
    pub fn outputs(&self, config: &Config, board: &Arc<Board>, crew: &Crew) -> output::Setup {
        let beats = crew.beats.clone();
        let decides = |(name, _): &(String, u64)| name == "signal" || name.starts_with("infer ");
        output::Setup {
            outputs: config.outputs.clone(),
            board: board.clone(),
            program: self.program.clone(),
            socket: config.device.state_dir.join("guard.socket"),
            moved: Box::new(move || beats.counts().into_iter().filter(decides).collect()),
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
        status: &Status,
        (ends, gone): (&Ends, Vec<String>),
    ) -> link::Setup {
        let (writer, events, clock) = (writer.clone(), table.events.clone(), self.clock.clone());
        let (meters, board, counters) = (status.meters.clone(), status.board.clone(), status.counters.clone());
        let device = &config.device;
        let alarms: Vec<String> = config.alarms.iter().map(|alarm| alarm.name.clone()).collect();
        let raised = board.clone();
        link::Setup {
            orders: ends.orders.clone(),
            news: ends.news.clone(),
            meters,
            board,
            topics: Topics::new(&device.site, &device.id, &device.cohorts),
            announce: streams::announce(self, config, &counters, gone),
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
                let name = stream.strip_prefix("a/")?;
                let place = alarms.iter().position(|alarm| alarm == name);
                // One that is not configured any more is not raised.
                Some(place.is_some_and(|place| raised.alarms[place].is_raised()))
            }),
        }
    }

    /// What there is to look at.
    pub fn status(
        &self,
        config: &Config,
        (meters, board): (&Arc<Meters>, &Arc<Board>),
        counters: &Arc<Counters>,
        writer: &Writer,
    ) -> Status {
        Status {
            config: Arc::new(config.clone()),
            meters: meters.clone(),
            board: board.clone(),
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
        rollout: Desk,
    ) -> control::Setup {
        let Lines { orders, responses, settled, wanted, news, leave, asks } = lines;
        let state = config.device.state_dir.clone();
        let (writer, meters, board) = (writer.clone(), status.meters.clone(), status.board.clone());
        let (bus, runtime) = (config.device.bus.clone(), tokio::runtime::Handle::current());
        let (bus_of_slots, counters) = (bus.clone(), status.counters.clone());
        let shown = counters.clone();
        control::Setup {
            rollout,
            local: asks,
            show_models: Box::new(move |models| shown.show_slots(models)),
            blob: table.blob,
            keep: Keep::at(state.join("control")),
            ran_before: false,
            trials: Trials::open(&state),
            config,
            clock: self.clock.clone(),
            boot: self.boot.clone(),
            process: self.process.clone(),
            orders,
            streams: (table.results, table.reported),
            events: table.events.clone(),
            put: Box::new(move |draft| writer.put_now(draft)),
            settled: Box::new(move |ticket| {
                // It has room for as many tickets as there are orders; without a link they are not needed.
                let _ = settled.try_send(ticket);
            }),
            respond: Box::new(move |response| {
                if responses.try_send(response).is_err() {
                    tracing::warn!("drop a response: the queue of responses to the link is full");
                }
            }),
            link: news,
            want: Box::new(move |mqtt, generation, wait_most| {
                if let Some(wanted) = &wanted {
                    wanted.send_replace(link::Wanted { mqtt, generation, wait_most });
                }
            }),
            meters,
            board,
            machine: control::Machine {
                reboot: Box::new(move || {
                    let bus = bus.as_deref().ok_or("restart the system: there is no D-Bus (device.bus = \"off\")")?;
                    runtime.block_on(logind::reboot(bus))
                }),
                log: Box::new(log::pull),
                status: Box::new(move || status.json()),
            },
            slots: self.slots(bus_of_slots, tokio::runtime::Handle::current(), counters),
            leave: Box::new(move |how| {
                let _ = leave.try_send(how);
            }),
        }
    }

    /// What systems are run by.
    fn slots(&self, bus: Option<String>, runtime: tokio::runtime::Handle, counters: Arc<Counters>) -> control::Slots {
        control::Slots {
            slot: rauc::slot(),
            version: rauc::version(),
            good: Box::new(rauc::marked_good),
            write: Arc::new(move |path, tell| {
                let bus = bus.as_deref().ok_or("ask RAUC: there is no D-Bus (device.bus = \"off\")")?;
                runtime.block_on(rauc::install(bus, path, tell))
            }),
            show: Box::new(move |system| counters.show_system(system)),
        }
    }
}

impl Crew {
    /// The ring of what arrives, where an alarm is to save it; the way into it never waits.
    pub fn ring(
        &mut self,
        host: &Host,
        config: &Config,
        board: &Arc<Board>,
    ) -> Result<impl Fn(&Arrival) + Send + use<>, Fatal> {
        let alarms = config.alarms.iter().enumerate().filter(|(_, alarm)| alarm.tape);
        let alarms: Vec<_> = alarms.map(|(i, alarm)| (i, alarm.name.clone())).collect();
        let (bytes, patience) = (limits::FRAME_LANE_BYTES, Some(Duration::ZERO));
        let (to_ring, arrivals) = lane::lane(lane::Bounds { items: limits::TAPE_LANE, bytes, patience });
        let wanted = !alarms.is_empty();
        if wanted {
            let state_dir = &config.device.state_dir;
            let sources = config.sources.iter().map(|source| source.name.clone()).collect();
            let setup = ring::Setup {
                tapes: config.tapes,
                head: tape::Head::new(&host.boot, sources),
                alarms,
                board: board.clone(),
                keep: Keep::at(state_dir.join("tapes")),
            };
            self.thread("ring", move |beat| {
                ring::run(setup, arrivals, || beat.beat());
                Ok(())
            })
            .context("start a thread")?;
        }
        Ok(move |arrival: &Arrival| {
            if wanted {
                to_ring.push(arrival.clone(), &mut Vec::new());
            }
        })
    }

    /// Starts the thread that may wait for the disk: it writes what the scribe was given, saves the time now and then and
    /// at the end, and looks how much room there is.
    pub fn scribe(
        &mut self,
        host: &Host,
        scribe: &Scribe,
        (state_dir, times): (&Path, Keep),
        counters: &Arc<Counters>,
    ) -> Result<(), Fatal> {
        let (clock, counters) = (host.clock.clone(), counters.clone());
        let (scribe, state_dir) = (scribe.clone(), state_dir.to_owned());
        self.thread("scribe", move |beat| {
            let (mut look, mut save) = (None::<Instant>, Instant::now());
            scribe.run(|| {
                beat.beat();
                if look.is_none_or(|at| at.elapsed() >= limits::DISK_LOOK) {
                    look = Some(Instant::now());
                    counters.look_at_disk(&state_dir);
                }
                if save.elapsed() >= limits::CLOCK_SAVE {
                    save = Instant::now();
                    clock.save_floor(&times);
                }
            });
            clock.save_floor(&times);
            Ok(())
        })
        .context("start a thread")
    }

    /// Starts the health stage; it ends when the result is dropped.
    pub fn health(
        &mut self,
        host: &Host,
        config: &Config,
        table: &Table,
        status: Status,
    ) -> Result<mpsc::Sender<()>, Fatal> {
        let setup = health::Setup {
            stream: table.health,
            every: Duration::from_secs(config.metrics.interval_s),
            beats: self.beats.clone(),
            status,
        };
        let (stop, stopped) = mpsc::channel();
        let clock = host.clock.clone();
        let wait = move |most| stopped.recv_timeout(most) != Err(mpsc::RecvTimeoutError::Timeout);
        self.thread("health", move |beat| {
            health::run(setup, || clock.now(), &beat, wait);
            Ok(())
        })
        .context("start a thread")?;
        Ok(stop)
    }
}
