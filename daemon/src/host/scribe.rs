//! Writes small state files on a thread of its own, so that no stage waits for the disk: one that hangs delays no alarm.
//!
//! What is to be written waits in memory, the newest content of each file alone; the files are as many as alarms and
//! calibrations, so that is the bound. A power cut or a kill may lose what was not written yet: an alarm may then be
//! raised a second time, and a calibration is learnt again. What cannot be written is tried again.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{Defence, Keep};
use crate::limits;

/// What a file is to hold; `None`: it is to be gone.
type Content = Option<Vec<u8>>;

struct Waiting {
    keep: Keep,
    name: String,
    content: Content,
    /// Counts the changes: what was changed while it was written is written again.
    change: u64,
    /// Not before; after a failure.
    due: Option<Instant>,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<PathBuf, Waiting>,
    changes: u64,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

/// Takes what is to be written; never waits. Clones are of the same thread.
#[derive(Clone, Default)]
pub struct Scribe(Arc<Shared>);

impl std::fmt::Debug for Scribe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scribe")
    }
}

impl Scribe {
    /// A folder whose files it writes.
    pub fn folder(&self, keep: Keep) -> Later {
        Later { keep, scribe: self.clone() }
    }

    /// The stage as a thread: `turn` is called with each turn, `limits::BEAT` apart at most. Ends after `close`, when
    /// everything was written, or tried once more.
    pub fn run(&self, mut turn: impl FnMut()) {
        loop {
            turn();
            let mut state = self.lock();
            let closing = state.closing;
            let now = Instant::now();
            let due = |waiting: &&Waiting| closing || waiting.due.is_none_or(|at| at <= now);
            let next = state.waiting.values().find(due);
            let next = next.map(|w| (w.keep.clone(), w.name.clone(), w.content.clone(), w.change));
            let Some((keep, name, content, change)) = next else {
                if closing {
                    return;
                }
                let nothing = |state: &mut State| !state.closing && state.waiting.values().all(|w| w.due.is_some());
                drop(self.0.work.wait_timeout_while(state, limits::BEAT / 2, nothing));
                continue;
            };
            drop(state);
            let written = write(&keep, &name, content.as_deref());
            state = self.lock();
            let path = keep.path(&name);
            if written.is_ok() || closing {
                if state.waiting.get(&path).is_some_and(|waiting| waiting.change == change) {
                    state.waiting.remove(&path);
                }
            } else if let Some(waiting) = state.waiting.get_mut(&path) {
                let first = waiting.due.is_none();
                waiting.due = Some(Instant::now() + limits::SCRIBE_RETRY);
                if !first {
                    continue;
                }
            }
            drop(state);
            if let Err(why) = written {
                let follows = if closing { "" } else { "; trying again" };
                tracing::error!("write {}: {why}{follows}", path.display());
            }
        }
    }

    /// No more comes: the thread writes what waits and ends.
    pub fn close(&self) {
        self.lock().closing = true;
        self.0.work.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, keep: &Keep, name: &str, content: Content) {
        if !Defence::Scribe.stands() {
            let _ = write(keep, name, content.as_deref());
            return;
        }
        let mut state = self.lock();
        state.changes += 1;
        let waiting = Waiting { keep: keep.clone(), name: name.to_owned(), content, change: state.changes, due: None };
        state.waiting.insert(keep.path(name), waiting);
        drop(state);
        self.0.work.notify_all();
    }
}

fn write(keep: &Keep, name: &str, content: Option<&[u8]>) -> io::Result<()> {
    match content {
        Some(bytes) => keep.save(name, bytes),
        None => keep.remove(name),
    }
}

/// A folder of small state files that are written later, by the scribe.
#[derive(Debug, Clone)]
pub struct Later {
    keep: Keep,
    scribe: Scribe,
}

impl Later {
    /// What was saved last under `name`, written or not; what is on the disk is waited for, as `Keep::load_patiently` does.
    ///
    /// # Errors
    /// It could not be read all the while.
    pub fn load_patiently(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let waiting = self.scribe.lock().waiting.get(&self.keep.path(name)).map(|waiting| waiting.content.clone());
        waiting.map_or_else(|| self.keep.load_patiently(name), Ok)
    }

    /// Saves it; never waits.
    pub fn save(&self, name: &str, bytes: Vec<u8>) {
        self.scribe.put(&self.keep, name, Some(bytes));
    }

    /// What was saved last under `name` is on the disk, or nothing was.
    pub fn is_written(&self, name: &str) -> bool {
        !self.scribe.lock().waiting.contains_key(&self.keep.path(name))
    }

    /// Forgets it; never waits.
    pub fn remove(&self, name: &str) {
        self.scribe.put(&self.keep, name, None);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn scribe() -> (tempfile::TempDir, Scribe, Keep) {
        let dir = tempfile::tempdir().expect("folder");
        let keep = Keep::open(dir.path(), "alarms").expect("keep");
        (dir, Scribe::default(), keep)
    }

    #[test]
    fn newest_content_wins_and_is_read_before_it_is_written() {
        let (_dir, scribe, keep) = scribe();
        let later = scribe.folder(keep.clone());
        later.save("a", b"1".to_vec());
        later.save("a", b"2".to_vec());
        later.save("b", b"3".to_vec());
        assert_eq!(
            (later.load_patiently("a").expect("read"), keep.load("a").expect("read")),
            (Some(b"2".to_vec()), None),
            "the caller does not wait for the disk"
        );
        later.remove("b");
        assert_eq!(later.load_patiently("b").expect("read"), None);
        scribe.close();
        scribe.run(|| {});
        assert_eq!((keep.load("a").expect("read"), keep.load("b").expect("read")), (Some(b"2".to_vec()), None));
    }

    #[test]
    fn file_that_cannot_be_written_does_not_hold_up_the_others_and_is_kept() {
        let (dir, scribe, keep) = scribe();
        // A file stands where its folder would be.
        let folder = dir.path().join("nowhere");
        std::fs::write(&folder, "").expect("file");
        let bad = scribe.folder(Keep::at(folder.clone()));
        let good = scribe.folder(keep.clone());
        bad.save("a", b"1".to_vec());
        good.save("z", b"2".to_vec());
        let thread = std::thread::spawn({
            let scribe = scribe.clone();
            move || scribe.run(|| {})
        });
        let until = Instant::now() + Duration::from_secs(5);
        while keep.load("z").expect("read").is_none() {
            assert!(Instant::now() < until, "the good one waits for the bad one");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(bad.load_patiently("a").expect("read"), Some(b"1".to_vec()), "it is tried again");
        std::fs::remove_file(&folder).expect("file");
        scribe.close();
        thread.join().expect("no panic");
        assert!(folder.join("a").exists());
    }
}
