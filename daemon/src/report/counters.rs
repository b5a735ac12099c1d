//! What stages report of themselves for health, the status document and metrics, beside the counters in `flow/meter.rs`: what
//! serves, why there is no connection, the disk, what control shows.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::flow::verdict::Serving;

/// All of it.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames waiting for the signal stage.
    pub frames_waiting: AtomicU64,
    /// By group of pipelines: what serves it, and how many workers were lost since the start.
    models: Mutex<BTreeMap<usize, (Option<Serving>, u64)>>,
    /// Why there is no connection; empty while there is one.
    link: Mutex<String>,
    /// The broker that is wanted now.
    broker: Mutex<String>,
    /// Model slots and the install under way.
    slots: Mutex<serde_json::Value>,
    /// Which system runs, and the update under way.
    system: Mutex<serde_json::Value>,
    /// The last entry of the audit log: its number and digest.
    audit: Mutex<(u64, String)>,
    /// Threads wait for the disk, and have done so for a while.
    disk_hangs: AtomicBool,
    /// Bytes free on the disk of the state, and its size; 0: not known yet.
    disk_bytes: (AtomicU64, AtomicU64),
}

impl Counters {
    /// What a model's stage tells.
    pub fn model(&self, group: usize, serving: Option<&Serving>, lost: u64) {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let known = models.entry(group).or_default();
        if known.0.as_ref() != serving {
            known.0 = serving.cloned();
        }
        known.1 = lost;
    }

    /// Threads wait for the disk, or do no more.
    pub fn disk_hangs(&self, hangs: bool) {
        self.disk_hangs.store(hangs, Ordering::Relaxed);
    }

    /// Whether threads wait for the disk, and have done so for a while.
    pub fn is_disk_hanging(&self) -> bool {
        self.disk_hangs.load(Ordering::Relaxed)
    }

    /// Looks at the disk, which may take as long as the disk does.
    pub fn look_at_disk(&self, state_dir: &Path) {
        let Ok(disk) = nix::sys::statvfs::statvfs(state_dir) else { return };
        let block = disk.fragment_size();
        self.disk_bytes.0.store(disk.blocks_available().saturating_mul(block), Ordering::Relaxed);
        self.disk_bytes.1.store(disk.blocks().saturating_mul(block), Ordering::Relaxed);
    }

    /// Bytes free on the disk of the state, and its size, when it was looked at last.
    pub fn disk_bytes(&self) -> Option<(u64, u64)> {
        let (free, all) = (self.disk_bytes.0.load(Ordering::Relaxed), self.disk_bytes.1.load(Ordering::Relaxed));
        (all > 0).then_some((free, all))
    }

    /// Why there is no connection; empty while there is one.
    pub fn link(&self, why: &str) {
        why.clone_into(&mut self.link.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Another broker is wanted.
    pub fn going_to(&self, broker: &str) {
        broker.clone_into(&mut self.broker.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The broker to connect to now; `None`: no broker is configured.
    pub fn broker(&self) -> Option<String> {
        let broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(broker).filter(|broker| !broker.is_empty())
    }

    /// Why there is no connection, or what is wrong with it.
    pub fn why_offline(&self) -> String {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Model slots and the install under way, as control shows them.
    pub fn slots(&self) -> serde_json::Value {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which system runs, and the update under way, as control shows it.
    pub fn system(&self) -> serde_json::Value {
        self.system.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last entry of the audit log, as control shows it: its number and digest; 0: not known yet.
    pub fn audit(&self) -> (u64, String) {
        self.audit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// See `audit`.
    pub fn show_audit(&self, seq: u64, sha256: &str) {
        *self.audit.lock().unwrap_or_else(PoisonError::into_inner) = (seq, sha256.to_owned());
    }

    /// See `system`.
    pub fn show_system(&self, system: serde_json::Value) {
        *self.system.lock().unwrap_or_else(PoisonError::into_inner) = system;
    }

    /// See `slots`.
    pub fn show_slots(&self, slots: serde_json::Value) {
        *self.slots.lock().unwrap_or_else(PoisonError::into_inner) = slots;
    }

    /// What serves this group of pipelines.
    pub fn serving(&self, group: usize) -> Option<Serving> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.get(&group).and_then(|(serving, _)| serving.clone())
    }

    /// What serves all groups of pipelines.
    pub fn all_serving(&self) -> Vec<Serving> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.values().filter_map(|(serving, _)| serving.clone()).collect()
    }

    /// Models that serve, workers lost.
    pub fn models(&self) -> (usize, u64) {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        (models.values().filter(|(serving, _)| serving.is_some()).count(), models.values().map(|(_, lost)| lost).sum())
    }
}

/// Resident memory of this process, KiB; 0 where /proc does not say.
pub fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    rss_of(&status).unwrap_or(0)
}

/// In KiB, as the kernel writes it: a count of pages would need their size, which is not 4 KiB everywhere.
fn rss_of(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_without_the_size_of_a_page() {
        // Of a kernel with pages of 16 KiB: `statm` says 815 pages there.
        let status = "Name:\tkentledge\nVmHWM:\t   13056 kB\nVmRSS:\t   13040 kB\nRssAnon:\t    4096 kB\n";
        assert_eq!(rss_of(status), Some(13_040));
        assert_eq!(rss_of("Name:\tkentledge\n"), None);
        assert!((1024..1024 * 1024).contains(&rss_kib()), "{}", rss_kib());
    }
}
