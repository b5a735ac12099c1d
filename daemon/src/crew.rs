//! Starts stages, knows which of them still move, and learns when one ends. A core stage that ends before the stop ends
//! the daemon: a dead thread must never only be logged while the process lives on.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::AbortHandle};

/// A stage's sign of life.
#[derive(Clone, Default)]
pub struct Beat(Arc<AtomicU64>);

impl Beat {
    /// The stage moved.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// All signs of life, for the watchdog.
#[derive(Clone, Default)]
pub struct Beats(Arc<Mutex<Vec<(String, Beat, u64)>>>);

impl Beats {
    fn add(&self, name: &str) -> Beat {
        let beat = Beat::default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), beat.clone(), u64::MAX));
        beat
    }

    fn remove(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, ..)| other != name);
    }

    /// How often each stage moved so far.
    pub fn counts(&self) -> Vec<(String, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, beat, _)| (name.clone(), beat.0.load(Ordering::Relaxed))).collect()
    }

    /// Names of stages that did not move since this was asked before.
    pub fn stuck(&self) -> Vec<String> {
        let mut stuck = Vec::new();
        for (name, beat, seen) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let now = beat.0.load(Ordering::Relaxed);
            if now == *seen {
                stuck.push(name.clone());
            }
            *seen = now;
        }
        stuck
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
            // Nobody listens any more only when the daemon is already gone.
            let _ = report.blocking_send(End { name: own, result });
        })?;
        Ok(())
    }

    /// Starts a stage as a task.
    pub fn task(&mut self, name: &str, stage: impl Future<Output = ()> + Send + 'static) {
        let (report, own) = (self.report.clone(), name.to_owned());
        self.alive.insert(name.to_owned());
        let stage = tokio::spawn(stage);
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
            None => End { name: "crew".into(), result: Err("nobody is left".into()) },
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
