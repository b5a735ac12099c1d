//! Jobs that take long: models and the system's update. Each is a machine (`models.rs`, `system.rs`); `bundles.rs` and `slots.rs`
//! perform their actions, the slow ones in threads. What they have to report goes to control (`JobNews`), which alone publishes
//! and finishes commands. This file holds what they work with.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::{Arc, mpsc},
};

use serde_json::Value;

use super::{
    action::{Going, JobNews, Keys, Trusted},
    model_action::{ModelEvent, ModelKeys, ModelRules},
    models::Models,
    setup::{Local, Machine, Slots},
    system::{self, System, SystemEvent, Word},
};
use crate::{
    config::Config,
    flow::{board::Board, samples},
    host::{
        Clock, Keep,
        fetch::{Stopped, Waits, Wanted},
    },
    limits,
    model::{bundle::Bundle, keyset::Keyset, rollout::Desk, shelf::Shelf, store::Disk},
};

/// A report of a thread. A number is that of the job that it worked for.
pub(super) enum News {
    /// The bundle of a model is received, or will not be.
    Brought(u64, Result<(), String>),
    /// The file of this local request was copied: its digest and size.
    Copied(String, Result<(String, u64), String>),
    /// A bundle was read and verified from the first byte to the last.
    Opened(u64, Result<Box<Bundle>, String>),
    /// A report about an operating system.
    System(Word),
}

/// The jobs and what they work with.
pub struct Jobs {
    /// The configuration in use.
    pub(super) config: Config,
    pub(super) clock: Arc<Clock>,
    /// Requests to the rollout of models, and its reports.
    pub(super) rollout: Desk,
    /// Requests of local callers.
    pub(super) local: mpsc::Receiver<Local>,
    /// Publishes the state of model installs for status and D-Bus.
    pub(super) show_models: Box<dyn Fn(Value) + Send>,
    /// Reports of the threads that bring and open.
    pub(super) reports: (mpsc::SyncSender<News>, mpsc::Receiver<News>),
    /// Access to the system's slots.
    pub(super) slots: Slots,
    /// Access to the machine.
    pub(super) machine: Machine,
    pub(super) board: Arc<Board>,
    /// The store of samples, where it is configured.
    pub(super) samples: Option<samples::Desk>,
    /// The keyset in use, or why it is missing.
    pub(super) keys: Result<Keyset, String>,
    /// Why a keyset after the first one is not in use.
    pub(super) keys_trouble: Option<String>,
    pub(super) models: Models,
    /// The files of the models.
    pub(super) disk: Disk,
    /// The bundle that was opened last, until it is proven.
    pub(super) opened: Option<Box<Bundle>>,
    /// The file of the local request that is handled.
    pub(super) local_file: Option<File>,
    /// Dropping it ends a fetch of a model.
    pub(super) model_waits: Waits,
    pub(super) system: System,
    /// `STATE/control`, for the system's update.
    pub(super) keep: Keep,
    /// Dropping it ends a fetch of a system.
    pub(super) system_waits: Waits,
    /// Not reported yet.
    pub(super) news: Vec<JobNews>,
}

impl Jobs {
    pub(super) fn tell(&mut self, news: JobNews) {
        self.news.push(news);
    }

    /// At the start: continues what the previous process did not end.
    pub(super) fn take_up(&mut self) {
        self.on_models(ModelEvent::Began);
        self.system(SystemEvent::Began);
    }

    /// Handles reports of threads and of the rollout and requests of local callers, and what is due.
    pub(super) fn look(&mut self) {
        while let Ok(local) = self.local.try_recv() {
            self.asked_locally(local);
        }
        while let Ok(news) = self.reports.1.try_recv() {
            match news {
                News::Brought(number, brought) => drop(self.on_models(ModelEvent::Brought(number, brought))),
                News::Copied(id, copied) => drop(self.on_models(ModelEvent::Copied(id, copied))),
                News::Opened(number, opened) => self.bundle_opened(number, opened),
                News::System(word) => drop(self.system(SystemEvent::Report(word))),
            }
        }
        while let Some(report) = self.rollout.report() {
            self.on_models(ModelEvent::Rollout(report));
        }
        self.hear_samples();
        self.on_models(ModelEvent::Tick);
        self.system(SystemEvent::Tick);
    }

    /// Control saved the result of this command.
    pub(super) fn heard(&mut self, command: String) {
        self.samples_heard(&command);
        self.on_models(ModelEvent::Heard(command.clone()));
        self.system(SystemEvent::Heard(command));
    }

    /// The jobs in progress, and those that ended.
    pub(super) fn going(&self) -> Going {
        let (model, ended) = self.models.going();
        let commands =
            [model, self.system.command(), self.pull_left()].into_iter().flatten().map(str::to_owned).collect();
        let ended = ended.into_iter().map(|ended| (None, ended));
        Going {
            commands,
            ended: ended.chain(self.system.ended().map(|ended| (Some(system::KIND), ended))).collect(),
            models_unread: self.models.shelf.is_unread(),
            system_unread: self.system.is_unread(),
        }
    }

    /// Reads the keyset and its successors.
    pub(super) fn read_keys(&mut self) -> Keys {
        (self.keys, self.keys_trouble) = keyset(&self.config, &self.disk, &mut self.models.shelf);
        self.show_keys();
        self.keys_now()
    }

    /// The keyset in use, for control.
    pub(super) fn keys_now(&self) -> Keys {
        let trusted = self.keys.clone().map(|keys| Arc::new(keys) as Arc<dyn Trusted>);
        Keys { trusted, trouble: self.keys_trouble.clone() }
    }

    /// Verifies the next keyset and makes it the one in use. Returns its version.
    pub(super) fn take_keys(&mut self, text: &str, minisigs: &[String]) -> Result<u64, String> {
        let now = self.keys.clone()?;
        let now_ms = self.now_ms();
        let next = self.disk.take_keyset(&mut self.models.shelf, &now, (text.as_bytes(), minisigs), now_ms)?;
        let version = next.version;
        (self.keys, self.keys_trouble) = (Ok(next), None);
        self.show_keys();
        Ok(version)
    }

    /// The machine of models learns which keyset is in use.
    fn show_keys(&mut self) {
        let keys = model_keys(&self.keys, self.keys_trouble.as_deref());
        self.on_models(ModelEvent::Keys(keys));
    }

    pub(super) fn keys_for_models(&self) -> Result<&Keyset, String> {
        match &self.keys_trouble {
            Some(why) => Err(format!("nothing is installed: {why}")),
            None => self.keys.as_ref().map_err(Clone::clone),
        }
    }

    /// The time, or a bound below it, ms since 1970.
    pub(super) fn now_ms(&self) -> i64 {
        self.clock.now().wall_ms.unwrap_or(0).max(self.clock.floor_ms())
    }

    /// Bytes free on the disk of the state directory.
    pub(super) fn free_bytes(&self) -> Result<u64, String> {
        let disk = nix::sys::statvfs::statvfs(&self.config.device.state_dir).map_err(|why| why.to_string())?;
        Ok(disk.blocks_available() * disk.fragment_size())
    }

    /// Whether so many bytes leave the outbox its room on the disk.
    pub(super) fn room(&self, bytes: u64) -> Result<(), String> {
        let (free, needed) = (self.free_bytes()?, bytes + limits::BUNDLE_LEAVES_BYTES);
        if free < needed { Err(format!("{free} bytes are free on the disk, and {needed} are needed")) } else { Ok(()) }
    }

    /// The arguments of a fetch: URL, size, and the certificates to trust.
    pub(super) fn wanted(&self, url: String, size: u64, stopped: Stopped) -> Wanted {
        let config = &self.config;
        let broker_ca = config.mqtt.as_ref().and_then(|mqtt| mqtt.tls.as_ref()?.ca_file.clone());
        Wanted { url, size, ca_file: config.models.ca_file.clone(), broker_ca, stopped }
    }

    /// Runs a slow step in a thread; its result, a panic too, comes as `News`.
    pub(super) fn long<T: 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
        news: impl FnOnce(Result<T, String>) -> News + Clone + Send + 'static,
    ) {
        let (out, unborn) = (self.reports.0.clone(), news.clone());
        let thread = std::thread::Builder::new().name("model".into()).spawn(move || {
            let done = crate::host::beats::caught(work);
            // The channel has room for every report of every group; a full one means control is gone.
            let _ = out.try_send(news(done));
        });
        if let Err(why) = thread {
            let _ = self.reports.0.try_send(unborn(Err(format!("start a thread: {why}"))));
        }
    }
}

/// The keyset in use, and why a successor is not in use.
pub(super) fn keyset(config: &Config, disk: &Disk, shelf: &mut Shelf) -> (Result<Keyset, String>, Option<String>) {
    match &config.commands.keyset {
        Some(path) => match disk.keyset(shelf, path) {
            Ok((keyset, trouble)) => (Ok(keyset), trouble),
            Err(why) => (Err(why.into()), None),
        },
        None => (Err("no keyset is installed (commands.keyset)".into()), None),
    }
}

/// What the machine needs to know of the configuration.
pub(super) fn model_rules(config: &Config) -> ModelRules {
    let names = config.pipelines.iter().map(|pipeline| &pipeline.model.manifest.model);
    let floors: BTreeMap<String, u64> = names.filter_map(|name| Some((name.clone(), floor(config, name)?))).collect();
    ModelRules {
        class: config.device.class.clone(),
        channel: config.models.channel.clone(),
        version: semver::Version::parse(env!("CARGO_PKG_VERSION")).unwrap_or(semver::Version::new(0, 0, 0)),
        floors,
        trial_ns: (config.models.shadow_s + config.models.trial_s) * 1_000_000_000,
    }
}

/// What the machine needs to know of the keyset; `trouble`: why nothing is installed with it.
pub(super) fn model_keys(keys: &Result<Keyset, String>, trouble: Option<&str>) -> ModelKeys {
    let expires_ms = match trouble {
        Some(why) => Err(format!("nothing is installed: {why}")),
        None => keys.as_ref().map(|keys| keys.expires_ms).map_err(Clone::clone),
    };
    ModelKeys { version: keys.as_ref().ok().map(|keys| keys.version), expires_ms }
}

/// The sequence of the read-only root for a model; `None`: no pipeline uses it.
pub fn floor(config: &Config, model: &str) -> Option<u64> {
    let mut of = config.pipelines.iter().filter(|p| p.model.manifest.model == model).map(|p| p.model.floor);
    let first = of.next()?;
    Some(of.fold(first, u64::max))
}
