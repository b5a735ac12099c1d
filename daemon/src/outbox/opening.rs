//! How a store is opened: behind an attempt marker, tried in a process of its own first, set aside when it is damaged,
//! and what still checks in it taken over into a new one. The daemon always gets on: at worst without a store, until
//! the disk works.

use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    disk::Disk,
    salvage::Salvage,
    store::{Packed, Store, Unopened, watermark_path},
    watermark::{Mark, Watermark},
};
use crate::{
    flow::event::Kind,
    host::{Attempt, Keep, sys},
    limits,
};

/// What opening needs.
#[derive(Debug)]
pub struct Opening {
    /// The store's folder.
    pub folder: PathBuf,
    /// The partition it lies on.
    pub disk: Disk,
    /// For the marker.
    pub keep: Keep,
    /// This program, which also tries the store; `None`: the store is not tried in a process of its own.
    pub program: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Opened {
    /// `None`: the disk does not let it.
    pub store: Option<Store>,
    /// Why not.
    pub waiting: Option<String>,
    /// What is to be told.
    pub told: Vec<(Kind, String)>,
    /// Records that were safe and are gone, at least, by reason.
    pub lost: Vec<(u64, &'static str)>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("records", &self.records()).finish_non_exhaustive()
    }
}

impl Opening {
    /// Opens the store, whatever it takes; `alive` is called while it is tried.
    pub fn open(&self, alive: &dyn Fn()) -> Opened {
        let mark = Watermark::read(&watermark_path(&self.folder)).unwrap_or_default();
        // sled wipes what follows a damaged place while it opens. A small store is read before, so that all of it that
        // still checks can be found; of a large one no more than a segment of 512 KiB is wiped.
        let db = self.folder.join("db");
        let small = std::fs::metadata(&db).is_ok_and(|meta| meta.len() <= limits::SALVAGE_BYTES);
        let mut before = small.then(|| std::fs::read(&db).ok()).flatten();
        let first = self.attempt(alive);
        let tried = match first {
            // The ballast is what lets a full disk open it.
            Err(Unopened::Disk(_)) if self.disk.give_up_ballast() => self.attempt(alive),
            other => other,
        };
        let mut opened = Opened::default();
        match tried {
            Ok(store) => opened.store = Some(store),
            Err(Unopened::Disk(why)) => opened.waiting = Some(why),
            Err(Unopened::Damaged(why)) => self.begin_anew(&why, mark, before.take(), &mut opened),
        }
        if let Some(store) = &mut opened.store {
            if store.found.missing.is_some() {
                let had = store.records();
                let salvage = before.map_or_else(
                    || Salvage::search(&self.folder, mark.oldest),
                    |bytes| Salvage::search_bytes(bytes, mark.oldest),
                );
                let saved = take_over(store, &salvage, &mut store.places(), self.disk.quota() / 2);
                let saved = saved.and_then(|()| store.settle());
                let (found, gone) = (store.records() - had, mark.records.saturating_sub(store.records()));
                let problem = saved.err().map(|why| format!("; {why}")).unwrap_or_default();
                let text = format!(
                    "the store was cut short: {found} records were salvaged, at least {gone} are gone{problem}"
                );
                opened.told.push((Kind::StoreDamaged, text));
                opened.lost.extend((gone > 0).then_some((gone, "truncated")));
            }
            if store.found.damaged > 0 {
                let n = store.found.damaged;
                let text = format!("{n} stored messages did not check and were removed");
                opened.told.push((Kind::StoreDamaged, text));
                opened.lost.push((n, "damaged"));
            }
        }
        opened.told.iter().for_each(|(_, text)| tracing::error!("{text}"));
        opened
    }

    /// Tries it once, behind the marker.
    fn attempt(&self, alive: &dyn Fn()) -> Result<Store, Unopened> {
        if !self.folder.join("db").exists() {
            // A state directory that came later than the daemon has no folder for it yet.
            if let Some(outbox) = self.folder.parent() {
                std::fs::create_dir_all(outbox)
                    .map_err(|why| Unopened::Disk(format!("make {}: {why}", outbox.display())))?;
            }
            return Store::open(&self.folder);
        }
        // A disk that does not take the marker does not take anything: nothing is risked.
        let attempt = Attempt::begin(&self.keep, "store").ok();
        let before = attempt.as_ref().map_or(0, |(_, before)| *before);
        let opened = if before >= limits::OPEN_ATTEMPTS {
            Err(Unopened::Damaged(format!("opening it was begun {before} times and never came to an end")))
        } else {
            self.program.as_ref().map_or(Ok(()), |program| probe(program, &self.folder, alive))
        };
        let opened = opened.and_then(|()| Store::open(&self.folder));
        if let Some((attempt, _)) = attempt
            && let Err(why) = attempt.ended()
        {
            tracing::warn!("remove the marker of opening the store: {why}");
        }
        opened
    }

    /// Sets the damaged store aside and takes over what still checks in it.
    fn begin_anew(&self, why: &str, mark: Mark, before: Option<Vec<u8>>, opened: &mut Opened) {
        let aside = match self.disk.set_aside(&self.folder) {
            Ok(aside) => aside,
            Err(e) => {
                opened.waiting = Some(format!("{why}; set the store aside: {e}"));
                return;
            }
        };
        // It tells of the store that is gone.
        let _ = std::fs::remove_file(watermark_path(&self.folder));
        let mut store = match Store::open(&self.folder) {
            Ok(store) => store,
            Err(Unopened::Disk(e) | Unopened::Damaged(e)) => {
                opened.waiting = Some(e);
                return;
            }
        };
        let found =
            [before.map(|bytes| Salvage::search_bytes(bytes, mark.oldest)), Some(Salvage::search(&aside, mark.oldest))];
        let (mut known, quota) = (BTreeSet::new(), self.disk.quota());
        let saved = found.iter().flatten().try_for_each(|found| take_over(&mut store, found, &mut known, quota / 2));
        let lost = mark.records.saturating_sub(store.records());
        let text = format!(
            "the store could not be opened ({why}); it was set aside as {}, {} records were salvaged from it, {lost} are missing",
            aside.display(),
            store.records(),
        );
        opened.told.push((Kind::StoreSetAside, text));
        if let Err(why) = saved {
            opened.told.push((Kind::StoreDamaged, format!("not all that was salvaged could be stored: {why}")));
        }
        if lost > 0 {
            opened.lost.push((lost, "damaged"));
        }
        opened.store = Some(store);
    }
}

/// Copies salvaged messages whose places are not known yet, a commit for each MiB.
fn take_over(store: &mut Store, salvage: &Salvage, known: &mut BTreeSet<u64>, bytes_max: u64) -> Result<(), String> {
    let (mut waiting, mut bytes) = (Vec::new(), 0);
    for (place, message) in salvage.messages() {
        if !known.insert(place) {
            continue;
        }
        let packed = Packed::new(&message)?;
        bytes += packed.size();
        waiting.push(packed);
        if bytes > 1 << 20 {
            store.insert(&std::mem::take(&mut waiting))?;
            store.commit()?;
            bytes = 0;
            if store.bytes() > bytes_max {
                return Err("there is no room for more".into());
            }
        }
    }
    store.insert(&waiting)?;
    store.commit()
}

/// What `kentledge probe-store` prints when the store opens.
const GOOD: &str = "good";
/// What it prints before the reason when the disk does not let it.
const DISK: &str = "disk: ";

/// The probe process: opens the store and reads all of it. The answer is one line; a process that dies gives none.
pub fn probe_main(folder: &Path) -> String {
    sys::limit_memory(limits::PROBE_BYTES);
    match Store::probe(folder) {
        Ok(()) => GOOD.into(),
        Err(Unopened::Disk(why)) => format!("{DISK}{why}"),
        Err(Unopened::Damaged(why)) => why,
    }
}

/// Opens the store in a process of its own, which may panic, loop or eat memory.
fn probe(program: &Path, folder: &Path, alive: &dyn Fn()) -> Result<(), Unopened> {
    let mut command = Command::new(program);
    command.arg("probe-store").arg(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = match sys::die_with_parent(&mut command).spawn() {
        Ok(child) => child,
        // Without a process to try it in, it is tried here: better than no store.
        Err(why) => {
            tracing::warn!("start the store's probe: {why}");
            return Ok(());
        }
    };
    let until = Instant::now() + limits::PROBE;
    let ended = loop {
        alive();
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => break Err(format!("reading it took longer than {} s", limits::PROBE.as_secs())),
            Err(why) => break Err(format!("wait for the probe: {why}")),
        }
    };
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let mut answer = String::new();
    let read = child.stdout.take().map(|out| out.take(4096).read_to_string(&mut answer));
    let answer = answer.trim();
    match ended {
        Err(why) => Err(Unopened::Damaged(why)),
        Ok(_) if answer == GOOD => Ok(()),
        Ok(_) if answer.starts_with(DISK) => Err(Unopened::Disk(answer[DISK.len()..].into())),
        Ok(status) if answer.is_empty() || !matches!(read, Some(Ok(_))) => {
            Err(Unopened::Damaged(format!("the process that tried it died: {status}")))
        }
        Ok(_) => Err(Unopened::Damaged(answer.into())),
    }
}

#[cfg(test)]
#[path = "opening_tests.rs"]
mod tests;
