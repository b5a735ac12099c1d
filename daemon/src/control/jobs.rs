//! Jobs that take long: models (bring, open, prove, try, roll back) and the system's update. They do their own I/O, in steps
//! that are saved before they take effect; their slow steps run in threads. What they have to report goes to control
//! (`JobNews`), which alone publishes and finishes commands.

use std::sync::{Arc, mpsc};

use serde_json::{Map, Value};

use super::{
    Local, Machine, Slots,
    action::Going,
    memory::State,
    models::{Models, News},
    system::{System, SystemEvent},
    trust::Trusted,
};
use crate::{
    config::Config,
    flow::{board::Board, event::Kind, order::Respond},
    host::{Clock, Keep, fetch::Waits},
    limits,
    model::{keyset::Keyset, rollout::Desk, store::Store},
};

/// A report of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum JobNews {
    /// It goes on. `kind`: the type of its command; `None`: as it is remembered, and no result if it is not.
    Running { kind: Option<&'static str>, command: String, text: String },
    /// It ended.
    Ended { kind: Option<&'static str>, command: String, state: State, text: String, respond: Option<Respond> },
    /// `up/e/…`: the subject and the text.
    Event(Kind, String, String),
    /// What the slots hold changed.
    Slots,
    /// `up/blob`: what is missing of a bundle.
    Blob(Map<String, Value>),
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
    /// The keyset in use, or why it is missing.
    pub(super) keys: Result<Keyset, String>,
    /// Why a keyset after the first one is not in use.
    pub(super) keys_trouble: Option<String>,
    /// `dn/channel` is out of date.
    pub(super) stale: bool,
    pub(super) models: Models,
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

    pub(super) fn event(&mut self, kind: Kind, subject: &str, text: &str) {
        self.tell(JobNews::Event(kind, subject.into(), text.into()));
    }

    /// At the start: continues what the previous process did not end.
    pub(super) fn take_up(&mut self) {
        self.take_up_models();
        self.system(SystemEvent::Began);
    }

    /// Handles reports of threads and requests of local callers, and what is due.
    pub(super) fn look(&mut self, now_ns: u64) {
        self.look_at_models(now_ns);
        self.system(SystemEvent::Tick);
    }

    /// The jobs in progress.
    pub(super) fn going(&self) -> Going {
        let commands = [self.models.command(), self.system.command()].into_iter().flatten().map(str::to_owned);
        Going {
            commands: commands.collect(),
            models_unread: self.models.store.is_unread(),
            system_unread: self.system.is_unread(),
        }
    }

    /// Reads the keyset and its successors.
    pub(super) fn read_keys(&mut self) -> super::action::Keys {
        (self.keys, self.keys_trouble) = keyset(&self.config, &mut self.models.store);
        self.keys_now()
    }

    /// The keyset in use, for control.
    pub(super) fn keys_now(&self) -> super::action::Keys {
        let trusted = self.keys.clone().map(|keys| Arc::new(keys) as Arc<dyn Trusted>);
        super::action::Keys { trusted, trouble: self.keys_trouble.clone() }
    }

    /// Verifies the next keyset and makes it the one in use. Returns its version.
    pub(super) fn take_keys(&mut self, text: &str, minisigs: &[String]) -> Result<u64, String> {
        let now_ms = self.now_ms();
        let next = self.models.store.take_keyset(&self.keys.clone()?, (text.as_bytes(), minisigs), now_ms)?;
        let version = next.version;
        (self.keys, self.keys_trouble) = (Ok(next), None);
        self.show_models();
        Ok(version)
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

    /// Logs newer models that `dn/channel` names.
    pub(super) fn newest(&self, models: &std::collections::BTreeMap<String, u64>) {
        for (model, seq) in models {
            let held = self.models.store.line(model).held().map_or(0, |held| held.seq);
            if *seq > held.max(self.floor(model).unwrap_or(u64::MAX)) {
                tracing::info!("model {model}: dn/channel names a newer sequence, {seq}; it is not installed yet");
            }
        }
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
}

/// The keyset in use, and why a successor is not in use.
pub(super) fn keyset(config: &Config, store: &mut Store) -> (Result<Keyset, String>, Option<String>) {
    match &config.commands.keyset {
        Some(path) => match store.keyset(path) {
            Ok((keyset, trouble)) => (Ok(keyset), trouble),
            Err(why) => (Err(why), None),
        },
        None => (Err("no keyset is installed (commands.keyset)".into()), None),
    }
}

/// A response topic and its correlation data, as they are saved.
pub(super) type SavedRespond = Option<(String, Option<Vec<u8>>)>;

pub(super) fn respond_to(respond: Option<Respond>) -> SavedRespond {
    respond.map(|respond| (respond.topic, respond.correlation.map(|bytes| bytes.to_vec())))
}

pub(super) fn respond_of(saved: SavedRespond) -> Option<Respond> {
    saved.map(|(topic, bytes)| Respond { topic, correlation: bytes.map(Into::into) })
}
