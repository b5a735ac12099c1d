//! How a store is opened: behind an attempt marker, tried in a process of its own first, set aside when it is damaged,
//! and what still checks in it taken over into a new one. The daemon always gets on: at worst without a store, until
//! the disk works.
//!
//! An error that may pass (see `trouble`) is no damage: the store stays where it is and is tried again. Damage is believed
//! when it was found twice while every byte of the store could be read and the disk worked. Before sled opens a store, what
//! it holds is read into memory, for sled wipes what follows a place that it cannot read; that is kept until the store is
//! whole again.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::{fs::FileExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    disk::Disk,
    key::Key,
    packed::Packed,
    quarantine::{self, Outcome, Todo},
    salvage::{Before, Salvage, files},
    store::{Store, watermark_path},
    trouble::{Unopened, is_full, is_of_medium, passes, unopened},
    watermark::{Mark, Watermark},
};
use crate::{
    flow::event::Kind,
    host::{Attempt, Keep, sys},
    limits,
};

/// The store's place, and what is remembered of it between two openings.
#[derive(Debug)]
pub struct Opening {
    /// The store's folder.
    folder: PathBuf,
    /// The partition it lies on.
    pub disk: Disk,
    /// For the marker.
    pub keep: Keep,
    /// This program, which also tries the store; `None`: the store is not tried in a process of its own.
    program: Option<PathBuf>,
    /// What the store held before it was first opened, until it is whole.
    before: Option<Before>,
    /// The same of a store that was set aside, until it is salvaged.
    aside: Option<(u64, Salvage)>,
    /// Since when an error keeps the store shut while the disk works otherwise.
    failing: Option<Instant>,
    /// Openings that ended though their marker is still there.
    ended: u32,
    /// Opening it was begun too often: it is not tried any more.
    deadly: bool,
    /// First segment that no failed commit can have used.
    unused_segment: u32,
    /// A sync failed: what can be read may not be on the medium.
    write_again: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Opened {
    /// `None`: the disk does not let it.
    pub store: Option<Store>,
    /// Why not.
    pub waiting: Option<String>,
    /// What the caller reports as events.
    pub reports: Vec<(Kind, String)>,
    /// Records that were safe and are gone, at least, by reason.
    pub lost: Vec<(u64, &'static str)>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("records", &self.records()).finish_non_exhaustive()
    }
}

impl Opening {
    /// Nothing was opened yet.
    pub fn new(outbox: &Path, keep: Keep, program: Option<PathBuf>) -> Self {
        Self {
            folder: outbox.join("store"),
            disk: Disk::new(outbox.to_owned()),
            keep,
            program,
            before: None,
            aside: None,
            failing: None,
            ended: 0,
            deadly: false,
            unused_segment: 0,
            write_again: false,
        }
    }

    /// Whether there is something to open; what cannot be known is taken for there.
    pub fn is_there(&self) -> bool {
        !matches!(self.folder.join("db").try_exists(), Ok(false))
    }

    /// Lets go of a store whose disk failed.
    pub fn close(&mut self, store: Store) {
        self.unused_segment = self.unused_segment.max(store.unused_segment());
        if store.close() {
            self.distrust();
        }
    }

    /// A sync failed, or may have: the store is written again before it is used.
    fn distrust(&mut self) {
        self.write_again = true;
        if let Err(why) = File::create(self.unsynced()).and_then(|file| file.sync_all()) {
            tracing::warn!("mark the store as not synced: {why}");
        }
    }

    /// There while a sync failed and the store was not written again: the next process has to know.
    fn unsynced(&self) -> PathBuf {
        self.folder.with_file_name("store.unsynced")
    }

    /// Opens the store, whatever it takes; `alive` is called meanwhile.
    pub fn open(&mut self, alive: &dyn Fn()) -> Opened {
        let mut opened = Opened::default();
        match self.try_open(alive, &mut opened) {
            Ok(store) => {
                (self.before, self.failing) = (None, None);
                opened.store = Some(store);
            }
            Err(why) => opened.waiting = Some(why),
        }
        opened
    }

    fn try_open(&mut self, alive: &dyn Fn(), opened: &mut Opened) -> Result<Store, String> {
        let mark = match self.prepared(alive) {
            Ok(mark) => mark,
            Err(Unopened::Disk(why) | Unopened::Damaged(why)) => return self.lasting(why, alive, opened),
        };
        let mut tried = self.attempt(alive);
        // The ballast is what lets a full disk open it.
        if matches!(tried, Err(Unopened::Disk(_))) && self.disk.give_up_ballast() {
            tried = self.attempt(alive);
        }
        if let Err(Unopened::Damaged(why)) = &tried
            && !self.deadly
        {
            tracing::warn!("the store does not open: {why}; it is tried once more");
            self.readable(alive)?;
            tried = self.attempt(alive);
        }
        let mut store = match tried {
            Ok(store) => store,
            Err(Unopened::Disk(why)) => return self.lasting(why, alive, opened),
            Err(Unopened::Damaged(why)) => {
                self.readable(alive)?;
                return self.begin_new_store(&why, mark, alive, opened);
            }
        };
        store.begin_at(self.unused_segment);
        let done = self.mend(&mut store, mark, alive, opened);
        let done = done.and_then(|()| self.salvage_quarantines(&mut store, alive, opened));
        self.finished(store, done)
    }

    /// The store, or why it was let go again.
    fn finished(&mut self, store: Store, done: Result<(), String>) -> Result<Store, String> {
        match done {
            Ok(()) => Ok(store),
            Err(why) => {
                self.close(store);
                Err(why)
            }
        }
    }

    /// Everything before the database is touched. Returns what it is to hold.
    fn prepared(&mut self, alive: &dyn Fn()) -> Result<Mark, Unopened> {
        let outbox = self.folder.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(outbox).map_err(|why| unopened("make the outbox's folder", &why))?;
        let path = watermark_path(&self.folder);
        let there = self.folder.join("db").try_exists().map_err(|why| unopened("look for the store", &why))?;
        if !there && !self.disk.unsalvaged().is_empty() {
            // It tells of the store that was set aside.
            remove(&path).map_err(|why| unopened("remove the old watermark", &why))?;
        }
        let mark = Watermark::read(&path).map_err(|why| unopened("read the watermark", &why))?.unwrap_or_default();
        if there {
            self.put_back().map_err(|why| unopened("put the store back", &why))?;
        }
        let unsynced = self.unsynced();
        self.write_again |= unsynced.try_exists().map_err(|why| unopened("look for a failed sync", &why))?;
        if self.write_again {
            if there {
                self.write_again(alive).map_err(|why| unopened("write the store again after a failed sync", &why))?;
            }
            remove(&unsynced).map_err(|why| unopened("forget the failed sync", &why))?;
        }
        self.write_again = false;
        if there && self.before.is_none() {
            let before = Before::read(&self.folder, mark.oldest, alive);
            self.before = Some(before.map_err(|why| unopened("read the store", &why))?);
        }
        Ok(mark)
    }

    /// An error keeps it shut. Where it lasts though the disk works otherwise (a bad sector, another owner), it does not
    /// pass: what can be read is taken over.
    fn lasting(&mut self, why: String, alive: &dyn Fn(), opened: &mut Opened) -> Result<Store, String> {
        if is_full(&why) || self.disk.works().is_err() {
            self.failing = None;
            return Err(why);
        }
        if self.failing.get_or_insert_with(Instant::now).elapsed() < limits::PASSING {
            return Err(why);
        }
        let mark = Watermark::read(&watermark_path(&self.folder)).ok().flatten().unwrap_or_default();
        let why = format!("for {} s, though the disk works otherwise: {why}", limits::PASSING.as_secs());
        self.begin_new_store(&why, mark, alive, opened)
    }

    /// Every byte of the store can be read, and the disk works: only then its content can be to blame.
    fn readable(&self, alive: &dyn Fn()) -> Result<(), String> {
        self.disk.works().map_err(|why| format!("the store does not open, and the disk does not work: {why}"))?;
        let all = || {
            for path in files(&self.folder)? {
                io::copy(&mut File::open(path)?, &mut io::sink())?;
                alive();
            }
            Ok(())
        };
        all().map_err(|why: io::Error| format!("the store does not open, and cannot be read now: {why}"))
    }

    /// After a sync failed the kernel takes what it could not write for written. Written once more it is, or the disk says
    /// so again.
    fn write_again(&self, alive: &dyn Fn()) -> io::Result<()> {
        tracing::warn!("a sync failed: the store is written again before it is used");
        let mut buffer = vec![0; 1 << 20];
        for path in files(&self.folder)?.into_iter().chain([watermark_path(&self.folder)]) {
            let file = match File::options().read(true).write(true).open(&path) {
                Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let mut at = 0;
            loop {
                alive();
                let n = file.read_at(&mut buffer, at)?;
                if n == 0 {
                    break;
                }
                file.write_all_at(&buffer[..n], at)?;
                at += n as u64;
            }
            file.sync_all()?;
        }
        for folder in [&self.folder.join("blobs"), &self.folder] {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    /// What sled wiped in an opening that failed is put back.
    fn put_back(&self) -> io::Result<()> {
        self.before.as_ref().map_or(Ok(()), |before| before.put_back(&self.folder))
    }

    /// Tries it once, behind the marker.
    fn attempt(&mut self, alive: &dyn Fn()) -> Result<Store, Unopened> {
        if !self.is_there() {
            return Store::open(&self.folder, alive);
        }
        // A disk that does not take the marker does not take anything: nothing is risked.
        let begun = Attempt::begin(&self.keep, "store");
        let (attempt, before) = begun.map_err(|why| Unopened::Disk(format!("mark the attempt: {why}")))?;
        let before = before.saturating_sub(self.ended);
        self.deadly = before >= limits::OPEN_ATTEMPTS;
        let opened = if self.deadly {
            Err(Unopened::Damaged(format!("opening it was begun {before} times and never came to an end")))
        } else {
            self.program.as_ref().map_or(Ok(()), |program| probe(program, &self.folder, alive))
        };
        let opened = opened.and_then(|()| Store::open(&self.folder, alive));
        // sled syncs while it opens, and does not say that it was a sync that failed.
        if matches!(&opened, Err(Unopened::Disk(why)) if is_of_medium(why)) {
            self.distrust();
        }
        if opened.is_err()
            && let Err(why) = self.put_back()
        {
            tracing::warn!("put back the store as it was before it was opened: {why}; it is tried again");
        }
        match attempt.ended() {
            Ok(()) => self.ended = 0,
            Err(why) => {
                // The next marker counts this one, which came to an end.
                self.ended += 1;
                tracing::warn!("remove the marker of opening the store: {why}");
            }
        }
        opened
    }

    /// Puts back what is missing in a store that opened, and takes the rest for gone.
    fn mend(&mut self, store: &mut Store, mark: Mark, alive: &dyn Fn(), opened: &mut Opened) -> Result<(), String> {
        if store.found.missing.is_some() {
            let before = self.before.as_ref().map_or_else(Salvage::default, |before| before.salvage(mark.oldest));
            let salvage = before.join(Salvage::search(&self.folder, mark.oldest, alive));
            let (had, there) = (store.records(), store.places());
            for (place, message) in salvage.messages(|place| there.contains(&place)) {
                alive();
                store.restore(place, &Packed::new(&message?)?)?;
            }
            let (found, gone) = (store.records() - had, mark.records.saturating_sub(store.records()));
            if let Some(why) = salvage.unread.filter(|_| gone > 0) {
                return Err(format!("salvage what is missing in the store: {why}"));
            }
            store.settle()?;
            let text = format!("the store was cut short: {found} records were salvaged, at least {gone} are gone");
            opened.reports.push((Kind::StoreDamaged, text));
            opened.lost.extend((gone > 0).then_some((gone, "truncated")));
        }
        if store.found.damaged > 0 {
            let n = store.found.damaged;
            let text = format!("{n} stored messages did not check and were removed");
            opened.reports.push((Kind::StoreDamaged, text));
            opened.lost.push((n, "damaged"));
        }
        Ok(())
    }

    /// Sets the damaged store aside and takes over what still checks in it.
    fn begin_new_store(
        &mut self,
        why: &str,
        mark: Mark,
        alive: &dyn Fn(),
        opened: &mut Opened,
    ) -> Result<Store, String> {
        Todo::new(mark.oldest, mark.records).save(&self.folder).map_err(|e| format!("{why}; {e}"))?;
        let number = self.disk.set_aside(&self.folder).map_err(|e| format!("{why}; set the store aside: {e}"))?;
        let aside = self.disk.quarantine(number);
        let text = format!("the store could not be opened ({why}); it was set aside as {}", aside.display());
        opened.reports.push((Kind::StoreSetAside, text));
        (self.aside, self.failing) = (self.before.take().map(|before| (number, before.salvage(mark.oldest))), None);
        // It tells of the store that is gone.
        remove(&watermark_path(&self.folder)).map_err(|why| format!("remove the old watermark: {why}"))?;
        let mut store = Store::open(&self.folder, alive).map_err(|why| match why {
            Unopened::Disk(why) | Unopened::Damaged(why) => why,
        })?;
        store.begin_at(self.unused_segment.max(Key::at(mark.oldest).segment));
        let done = self.salvage_quarantines(&mut store, alive, opened);
        self.finished(store, done)
    }

    /// Whether stores were set aside and are not salvaged yet.
    pub fn has_unsalvaged(&self) -> bool {
        !self.disk.unsalvaged().is_empty()
    }

    /// Takes over what can be had from stores that were set aside.
    ///
    /// # Errors
    /// The store in use does not take it.
    pub fn salvage_quarantines(
        &mut self,
        store: &mut Store,
        alive: &dyn Fn(),
        opened: &mut Opened,
    ) -> Result<(), String> {
        for number in self.disk.unsalvaged() {
            let folder = self.disk.quarantine(number);
            let held = self.aside.as_ref().filter(|(of, _)| *of == number).map(|(_, held)| held.clone());
            let terms = (self.disk.quota() / 2, self.disk.works().is_ok());
            let Outcome { saved, missing, why } = quarantine::salvage(&folder, held, store, terms, alive)?;
            let shown = folder.display();
            let Some(missing) = missing else {
                let why = why.unwrap_or_default();
                tracing::warn!("{saved} records were salvaged from {shown}, and more may be: {why}; it is tried again");
                continue;
            };
            if self.aside.as_ref().is_some_and(|(of, _)| *of == number) {
                self.aside = None;
            }
            let text = format!("{saved} records were salvaged from it, {missing} are missing");
            match opened.reports.last_mut().filter(|(kind, _)| *kind == Kind::StoreSetAside) {
                Some((_, report)) => *report = format!("{report}, {text}"),
                None => opened.reports.push((Kind::StoreSetAside, format!("the store set aside as {shown}: {text}"))),
            }
            opened.lost.extend((missing > 0).then_some((missing, "damaged")));
        }
        Ok(())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What `kentledge probe-store` prints when the store opens.
const GOOD: &str = "good";
/// What it prints before the reason when the disk does not let it.
const DISK: &str = "disk: ";

/// The probe process: opens the store and reads all of it. The answer is one line; a process that dies gives none.
pub fn probe_main(folder: &Path) -> String {
    sys::limit_memory(limits::PROBE_BYTES);
    // The result reports the panics.
    std::panic::set_hook(Box::new(|_| {}));
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
        Err(why) if passes(&why) => return Err(Unopened::Disk(format!("start the store's probe: {why}"))),
        // Without a program to try it with, it is tried here: better than no store.
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
        // A disk that hangs looks like that; a store that makes sled loop does it again, see `lasting`.
        Err(why) => Err(Unopened::Disk(why)),
        // Another process ended it, or the kernel for want of memory.
        Ok(status) if status.signal() == Some(Signal::SIGKILL as i32) => {
            Err(Unopened::Disk(format!("the process that tried it was killed: {status}")))
        }
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
