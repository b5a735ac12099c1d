//! What `run` and `replay` build alike: a model's engine, the folders it keeps things in, the health stage.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use crate::{
    config::{Config, Mqtt},
    crew::{Beat, Crew},
    error::{Context, Fatal},
    flow::{Class, event::EventStreams},
    health::{self, Counters},
    host::{Host, Keep},
    infer::{self, Keeps, Served},
    link::{self, Topics},
    outbox::{Around, Expiry, Reader, Setup, Writer},
    streams::{self, Table},
};

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
    pub fn around(&self, events: EventStreams) -> impl FnOnce(Beat) -> Around + Send + 'static {
        let clock = self.clock.clone();
        move |beat| Around {
            floor_ms: clock.floor_ms(),
            now: Box::new(move || clock.now()),
            beat: Box::new(move || beat.beat()),
            event: Box::new(move |kind, stamp, text| events.draft(kind, stamp, "store", text)),
        }
    }

    /// What the link works with.
    pub fn link(
        &self,
        config: &Config,
        mqtt: Mqtt,
        reader: Reader,
        writer: &Writer,
        table: &Table,
        counters: &Arc<Counters>,
    ) -> link::Setup {
        let (writer, events, clock) = (writer.clone(), table.events.clone(), self.clock.clone());
        let counters = counters.clone();
        link::Setup {
            mqtt,
            topics: Topics::new(&config.device.site, &config.device.id),
            announce: streams::announce(self, config),
            reader,
            clock: self.clock.clone(),
            backlog_kib_s: config.outbox.backlog_kib_s,
            tell: Box::new(move |kind, text| writer.put_now(events.draft(kind, clock.now(), "link", text))),
            note: Box::new(move |text| counters.link(text)),
        }
    }

    /// The engine of one model and its pipelines. Without `keeps` it is a replay: nothing is kept, nothing is late.
    pub fn engine(&self, config: &Config, table: &Table, group: &[usize], keeps: Option<Keeps>) -> infer::Setup {
        let replay = keeps.is_none();
        let served = group.iter().map(|pipeline| {
            let stream = table.signal.prediction[*pipeline];
            Served::new(*pipeline as u16, config, stream, &table.alarms, &self.boot, keeps.clone(), replay)
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
        writer: Writer,
        counters: Arc<Counters>,
        times: Keep,
    ) -> Result<mpsc::Sender<()>, Fatal> {
        let setup = health::Setup {
            writer,
            stream: table.health,
            every: Duration::from_secs(config.health_s),
            beats: self.beats.clone(),
            counters,
            models: infer::groups(config).len() as u64,
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
