//! An alarm as other stages see it: the stage that evaluates the alarm writes, outputs, tapes, the link and the status read.
//! One request goes back: the acknowledgement of a latched alarm, by control.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// Why nothing evaluates an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwatched {
    /// No model serves its pipeline.
    ModelNotServing,
    /// The model of its pipeline learns what is normal.
    Learning,
    /// The model gives no score, or has no level to compare it with.
    NoScore,
    /// The model has no class of this name.
    NoClass,
    /// Its channel delivers no sample.
    NoSamples,
    /// Its channel delivers samples, but none can be used.
    BadValues,
}

impl Unwatched {
    /// The word in payloads.
    pub fn word(self) -> &'static str {
        match self {
            Self::ModelNotServing => "model_not_serving",
            Self::Learning => "learning",
            Self::NoScore => "no_score",
            Self::NoClass => "no_class",
            Self::NoSamples => "no_samples",
            Self::BadValues => "bad_values",
        }
    }

    /// In words, for the log.
    pub fn text(self) -> &'static str {
        match self {
            Self::ModelNotServing => "no model evaluates it any more",
            Self::Learning => "its model learns what is normal",
            Self::NoScore => "its model gives no score, or has no threshold",
            Self::NoClass => "its model has no class of this name",
            Self::NoSamples => "its channel delivers no sample",
            Self::BadValues => "no value of its channel can be used",
        }
    }
}

/// What is shown of an alarm beside whether it is raised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlarmShown {
    /// Why nothing evaluates it; `None`: it is evaluated.
    pub unknown: Option<Unwatched>,
    /// Id of the episode, as in the alarm's records; `None`: no episode is open.
    pub episode: Option<String>,
    /// It is raised and stays so until it is acknowledged.
    pub latched: bool,
    /// It was acknowledged: it clears as soon as its condition ends.
    pub acknowledged: bool,
}

/// Why an acknowledgement is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAcknowledged {
    /// The alarm is not latched: it clears by itself, or is not raised.
    NotLatched,
    /// Another episode is open: this one.
    OtherEpisode(String),
}

/// One alarm.
#[derive(Debug, Default)]
pub struct AlarmSign {
    raised: AtomicBool,
    /// How often it was raised in this run: who looks now and then sees also what was over before the next look.
    times: AtomicU64,
    /// An acknowledgement waits in `inner`: looked at with each sample, so without the lock.
    asked: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    shown: AlarmShown,
    acknowledged: Option<String>,
}

impl AlarmSign {
    /// Whether it is raised: outputs, tapes and the link go by this.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Relaxed)
    }

    /// How often it was raised since the start.
    pub fn times_raised(&self) -> u64 {
        self.times.load(Relaxed)
    }

    /// As the last run left it.
    pub fn begin(&self, raised: bool) {
        self.raised.store(raised, Relaxed);
    }

    /// Set by the stage that evaluates it.
    pub fn set_raised(&self, raised: bool) {
        if raised && !self.is_raised() {
            self.times.fetch_add(1, Relaxed);
        }
        self.raised.store(raised, Relaxed);
    }

    /// What is shown of it.
    pub fn shown(&self) -> AlarmShown {
        self.lock().shown.clone()
    }

    /// Set by the stage that evaluates it, when it changes.
    pub fn show(&self, shown: AlarmShown) {
        self.lock().shown = shown;
    }

    /// Requests the acknowledgement of the open episode, and returns its id. With `id` only of that episode.
    ///
    /// # Errors
    /// Nothing is to be acknowledged, or another episode is open.
    pub fn acknowledge(&self, id: Option<&str>) -> Result<String, NotAcknowledged> {
        let mut inner = self.lock();
        let open = inner.shown.episode.clone().filter(|_| inner.shown.latched || inner.shown.acknowledged);
        let open = open.ok_or(NotAcknowledged::NotLatched)?;
        if id.is_some_and(|id| id != open) {
            return Err(NotAcknowledged::OtherEpisode(open));
        }
        inner.acknowledged = Some(open.clone());
        self.asked.store(true, Relaxed);
        Ok(open)
    }

    /// Takes the episode whose acknowledgement was requested.
    pub fn take_acknowledged(&self) -> Option<String> {
        if !self.asked.load(Relaxed) {
            return None;
        }
        let mut inner = self.lock();
        self.asked.store(false, Relaxed);
        inner.acknowledged.take()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgement_is_of_the_open_episode_and_taken_once() {
        let sign = AlarmSign::default();
        assert_eq!(sign.acknowledge(None), Err(NotAcknowledged::NotLatched));
        sign.show(AlarmShown { episode: Some("b-1".into()), ..AlarmShown::default() });
        assert_eq!(sign.acknowledge(None), Err(NotAcknowledged::NotLatched), "it clears by itself");
        sign.show(AlarmShown { episode: Some("b-2".into()), latched: true, ..AlarmShown::default() });
        assert_eq!(sign.acknowledge(Some("b-1")), Err(NotAcknowledged::OtherEpisode("b-2".into())));
        assert_eq!(sign.take_acknowledged(), None);
        assert_eq!(sign.acknowledge(Some("b-2")), Ok("b-2".into()));
        assert_eq!((sign.take_acknowledged(), sign.take_acknowledged()), (Some("b-2".into()), None));
    }

    #[test]
    fn alarm_that_was_over_before_the_next_look_is_counted_and_one_of_the_last_run_is_not() {
        let sign = AlarmSign::default();
        sign.begin(true);
        assert_eq!((sign.is_raised(), sign.times_raised()), (true, 0));
        sign.set_raised(false);
        [true, true, false, true, false].into_iter().for_each(|raised| sign.set_raised(raised));
        assert_eq!((sign.is_raised(), sign.times_raised()), (false, 2));
    }
}
