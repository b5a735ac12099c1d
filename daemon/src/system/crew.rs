//! Starts stages, knows which of them still make progress, and learns when one ends. A core stage that ends before the
//! stop ends the daemon: a dead thread must never only be logged while the process lives on.
//!
//! Threads and tasks alike have a sign of life.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use tokio::{sync::mpsc, task::AbortHandle};

use crate::{
    error::{Context, Fatal},
    flow::beat::Beat,
    host::beats::Beats,
};

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

impl Crew {
    /// Starts a stage on a thread of its own.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn thread(
        &mut self,
        name: &str,
        stage: impl FnOnce(Beat) -> Result<(), String> + Send + 'static,
    ) -> Result<(), Fatal> {
        let (beat, report, own) = (self.beats.add(name), self.report.clone(), name.to_owned());
        self.alive.insert(name.to_owned());
        let started = std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| stage(beat))).unwrap_or_else(|_| Err("it panicked".into()));
            // The receiver is closed only when the daemon has already ended.
            let _ = report.blocking_send(End { name: own, result });
        });
        started.map(|_| ()).context("start a thread")
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
