//! The signs of life of all stages, as the watchdog and the health stage look at them; and panics of helper threads.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Defence, HostError};
use crate::flow::beat::Beat;

/// One stage's sign of life, and what was seen of it.
struct Watched {
    name: String,
    beat: Beat,
    is_thread: bool,
    /// At the last question of the watchdog.
    asked: u64,
    /// At the last look.
    looked: u64,
}

/// All signs of life, for the watchdog.
#[derive(Clone, Default)]
pub struct Beats(Arc<Mutex<Vec<Watched>>>);

impl Beats {
    /// A stage on a thread of its own begins.
    pub fn add(&self, name: &str) -> Beat {
        self.begin(name, true)
    }

    /// A stage begins, on a thread of its own or as a task.
    pub fn begin(&self, name: &str, is_thread: bool) -> Beat {
        let beat = Beat::default();
        let watched =
            Watched { name: name.to_owned(), beat: beat.clone(), is_thread, asked: u64::MAX, looked: u64::MAX };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        beat
    }

    /// A stage ended.
    pub fn remove(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|watched| watched.name != name);
    }

    /// How often each stage made progress so far.
    pub fn counts(&self) -> Vec<(String, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|watched| (watched.name.clone(), watched.beat.count())).collect()
    }

    /// Names of stages that made no progress since the last look.
    pub fn still(&self) -> Vec<String> {
        self.unmoved(|watched| &mut watched.looked)
    }

    /// The same since this was asked before: the question of the watchdog.
    pub fn stuck(&self) -> Vec<String> {
        self.unmoved(|watched| &mut watched.asked)
    }

    fn unmoved(&self, seen: impl Fn(&mut Watched) -> &mut u64) -> Vec<String> {
        let mut unmoved = Vec::new();
        for watched in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let now = watched.beat.count();
            if std::mem::replace(seen(watched), now) == now && (watched.is_thread || Defence::TaskBeats.stands()) {
                unmoved.push(watched.name.clone());
            }
        }
        unmoved
    }
}

/// Does work on a helper thread whose caller waits for the answer: a panic is one.
///
/// # Errors
/// What went wrong, or that it panicked; the panic itself is in the log.
pub fn caught<T, E: From<HostError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let panicked = |_| Err(HostError::from("internal error: it panicked; see the log").into());
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helper_that_panics_answers_with_an_error() {
        let empty: Vec<u8> = Vec::new();
        assert!(caught(|| Ok::<u8, String>(empty[std::hint::black_box(0)])).is_err_and(|why| why.contains("panicked")));
        assert_eq!(caught(|| Ok::<_, String>(7)), Ok(7));
    }
}
