//! The audit log as control writes it: entries with their time, and what is shown of the log.

use std::{collections::BTreeSet, sync::Arc};

use super::{Act, Head, Log, short};
use crate::{control::tell::Outcome, host::Clock, limits};

/// Shows the head of the log: it is published in `up/h`.
pub type Show = Box<dyn Fn(&Head) + Send>;

/// The log, and what an entry needs beside its content.
pub struct Book {
    log: Log,
    clock: Arc<Clock>,
    boot: String,
    show: Show,
    /// When entries that wait for the disk are tried again, ns since boot.
    due_ns: u64,
    /// The last entry could not be written: it is logged once.
    failing: bool,
}

impl Book {
    /// Opens nothing yet: `started` comes first.
    pub fn new(log: Log, clock: Arc<Clock>, boot: String, show: Show) -> Self {
        Self { log, clock, boot, show, due_ns: 0, failing: false }
    }

    /// Opens the log, and adds an entry where this process has none yet. Returns what does not verify in it.
    pub fn started(&mut self, process: &str, config: &str) -> Option<String> {
        let found = self.log.open().unwrap_or_else(|why| {
            tracing::error!("{why}; it is tried again with the next entry");
            super::Found::default()
        });
        if found.torn > 0 {
            let torn = found.torn;
            tracing::warn!("audit log: the last entry was not written to its end; its {torn} bytes are removed");
        }
        (self.show)(self.log.head());
        if found.process.as_deref() == Some(process) {
            return None;
        }
        let problems = found.problems.len();
        let first: Vec<String> = found.problems.into_iter().take(limits::AUDIT_PROBLEMS).collect();
        let text = if problems == 0 { String::new() } else { format!("{problems} problems: {}", first.join("; ")) };
        let version = env!("CARGO_PKG_VERSION");
        let (process, config) = (process.to_owned(), config.to_owned());
        self.write(&Act::Start { version, process, config, found: short(&text) });
        (problems > 0).then_some(text)
    }

    /// Adds an entry. One that the disk does not take waits in memory.
    pub fn write(&mut self, act: &Act) {
        let now = self.clock.now();
        let written = self.log.write(act.members(now, &self.boot));
        self.wrote(written, now.boot_ns);
    }

    /// Tries again what waits for the disk, from time to time.
    pub fn look(&mut self) {
        let now_ns = self.clock.now().boot_ns;
        if self.log.waits() && now_ns >= self.due_ns {
            let written = self.log.flush();
            self.wrote(written, now_ns);
        }
    }

    fn wrote(&mut self, written: Result<(), String>, now_ns: u64) {
        match written {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the audit log is written again");
                }
                (self.show)(self.log.head());
            }
            Err(why) => {
                self.due_ns = now_ns + limits::UNREADABLE_TRY.as_nanos() as u64;
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!("{why}; they are tried again");
                }
            }
        }
    }

    /// Ids of commands and of local work whose results are in the log.
    pub fn ids(&self) -> BTreeSet<String> {
        self.log.ids()
    }

    /// The result of `audit.pull`.
    pub fn pull(&self, from: u64) -> Outcome {
        self.log.pull(from).map_or_else(|why| Outcome::failed(format!("read the audit log: {why}")), Outcome::done)
    }
}
