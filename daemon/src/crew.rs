//! Starts stages, knows which of them still make progress, and learns when one ends. A core stage that ends before the
//! stop ends the daemon: a dead thread must never only be logged while the process lives on.
//!
//! Threads and tasks alike have a sign of life.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, task::AbortHandle};

pub use crate::flow::beat::Beat;
use crate::host::Defence;

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

    fn begin(&self, name: &str, is_thread: bool) -> Beat {
        let beat = Beat::default();
        let watched =
            Watched { name: name.to_owned(), beat: beat.clone(), is_thread, asked: u64::MAX, looked: u64::MAX };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        beat
    }

    fn remove(&self, name: &str) {
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

/// How a stage ended.
#[derive(Debug)]
pub struct End {
    /// Which.
    pub name: String,
    /// Why, if it failed.
    pub result: Result<(), String>,
}

/// The stages.
pub struct Crew {
    ended: mpsc::Receiver<End>,
    report: mpsc::Sender<End>,
    alive: BTreeSet<String>,
    tasks: Vec<(String, AbortHandle)>,
    /// Signs of life.
    pub beats: Beats,
}

/// Stages of one daemon: ports, models and six others; a bound for the channel of ends only.
const STAGES_MAX: usize = 256;

impl Default for Crew {
    fn default() -> Self {
        let (report, ended) = mpsc::channel(STAGES_MAX);
        Self { ended, report, alive: BTreeSet::new(), tasks: Vec::new(), beats: Beats::default() }
    }
}

/// Does work on a helper thread whose caller waits for the answer: a panic is one.
///
/// # Errors
/// What went wrong, or that it panicked; the panic itself is in the log.
pub fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("internal error: it panicked; see the log".into()))
}

impl Crew {
    /// Starts a stage on a thread of its own.
    pub fn thread(
        &mut self,
        name: &str,
        stage: impl FnOnce(Beat) -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<()> {
        let (beat, report, own) = (self.beats.add(name), self.report.clone(), name.to_owned());
        self.alive.insert(name.to_owned());
        std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| stage(beat))).unwrap_or_else(|_| Err("it panicked".into()));
            // The receiver is closed only when the daemon has already ended.
            let _ = report.blocking_send(End { name: own, result });
        })?;
        Ok(())
    }

    /// Starts a stage as a task. It beats as threads do: a task that hangs, or a runtime that does not come round to it,
    /// is a stage that makes no progress.
    pub fn task<F>(&mut self, name: &str, stage: impl FnOnce(Beat) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (beat, report, own) = (self.beats.begin(name, false), self.report.clone(), name.to_owned());
        self.alive.insert(name.to_owned());
        let stage = tokio::spawn(stage(beat));
        self.tasks.push((name.to_owned(), stage.abort_handle()));
        tokio::spawn(async move {
            let result = match stage.await {
                Err(why) if why.is_panic() => Err("it panicked".into()),
                _ => Ok(()),
            };
            let _ = report.send(End { name: own, result }).await;
        });
    }

    /// The first stage to end.
    pub async fn first_end(&mut self) -> End {
        match self.ended.recv().await {
            Some(end) => {
                self.gone(&end);
                end
            }
            None => End { name: "crew".into(), result: Err("no stage is left".into()) },
        }
    }

    /// Ends tasks whose name begins so.
    pub fn abort(&self, prefix: &str) {
        self.tasks.iter().filter(|(name, _)| name.starts_with(prefix)).for_each(|(_, task)| task.abort());
    }

    /// Waits until every stage whose name begins with one of `prefixes` has ended, `most` at the longest. Returns what
    /// went wrong.
    pub async fn join(&mut self, prefixes: &[&str], most: Duration) -> Vec<String> {
        let mut wrong = Vec::new();
        let until = tokio::time::Instant::now() + most;
        while let Some(name) = self.alive.iter().find(|name| prefixes.iter().any(|p| name.starts_with(p))).cloned() {
            match tokio::time::timeout_at(until, self.ended.recv()).await {
                Ok(Some(end)) => {
                    self.gone(&end);
                    if let Err(why) = end.result {
                        wrong.push(format!("{}: {why}", end.name));
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    wrong.push(format!("{name} did not end in time"));
                    self.alive.remove(&name);
                }
            }
        }
        wrong
    }

    fn gone(&mut self, end: &End) {
        self.alive.remove(&end.name);
        self.beats.remove(&end.name);
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn helper_that_panics_answers_with_an_error() {
        let empty: Vec<u8> = Vec::new();
        assert!(caught(|| Ok(empty[std::hint::black_box(0)])).is_err_and(|why| why.contains("panicked")));
        assert_eq!(caught(|| Ok(7)), Ok(7));
    }

    #[tokio::test]
    async fn task_that_hangs_is_stuck_and_one_that_waits_for_the_outside_is_not() {
        let mut crew = Crew::default();
        crew.task("waits", |beat| async move { beat.during(std::future::pending()).await });
        crew.task("hangs", |beat| async move {
            beat.beat();
            std::future::pending().await
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        crew.beats.stuck();
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(crew.beats.stuck(), ["hangs"]);
        crew.abort("");
        assert_eq!(crew.join(&[""], Duration::from_secs(5)).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_stage_that_panics_is_an_end_with_a_reason_and_a_stuck_one_is_named() {
        let mut crew = Crew::default();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        crew.thread("moves", move |beat| {
            while stopped.recv_timeout(Duration::from_millis(1)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                beat.beat();
            }
            Ok(())
        })
        .expect("thread");
        let (hold, held) = std::sync::mpsc::channel::<()>();
        crew.thread("stuck", move |_| held.recv().map_err(|why| why.to_string())).expect("thread");
        crew.beats.stuck();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(crew.beats.stuck(), ["stuck"]);
        crew.thread("panics", |_| panic!("on purpose")).expect("thread");
        let end = crew.first_end().await;
        assert_eq!((end.name.as_str(), end.result), ("panics", Err("it panicked".into())));
        drop((hold, stop));
        assert_eq!(crew.join(&["stuck", "moves"], Duration::from_secs(5)).await.len(), 1);
    }
}
