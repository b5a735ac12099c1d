//! What `run` and `replay` build alike: a model's engine, the folders it keeps things in, the health stage.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use crate::{
    config::Config,
    crew::Crew,
    error::{Context, Fatal},
    health::{self, Counters},
    host::{Host, Keep},
    infer::{self, Keeps, Served},
    outbox::Writer,
    streams::Table,
};

impl Host {
    /// Folders for what models and alarms keep.
    pub fn keeps(&self, state_dir: &Path) -> Result<Keeps, Fatal> {
        let open = |name: &str| Keep::open(state_dir, name).context(format!("open {}/{name}", state_dir.display()));
        Ok(Keeps { calibration: open("calibration")?, alarms: open("alarms")? })
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
        let wait = move |most| stopped.recv_timeout(most) != Err(mpsc::RecvTimeoutError::Timeout);
        self.thread("health", move |beat| {
            health::run(setup, || clock.now(), &beat, wait);
            Ok(())
        })
        .context("start a thread")?;
        Ok(stop)
    }
}
