//! A window that a model has answered, on its way to the store of samples; and why a window is kept there.

use std::sync::Arc;

use super::{lane::Weigh, window::Window};

/// Why a window is kept. In this order they are evicted where room is short, the first one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kept {
    /// A random one of normal running.
    Uniform,
    /// The inputs drifted when it was taken.
    Drift,
    /// It was escalated to a larger model elsewhere.
    Escalated,
    /// It lies around an alarm.
    Alarm,
}

impl Kept {
    /// All of them, in their order.
    pub const ALL: [Kept; 4] = [Self::Uniform, Self::Drift, Self::Escalated, Self::Alarm];

    /// The word in files, payloads and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Drift => "drift",
            Self::Escalated => "escalated",
            Self::Alarm => "alarm",
        }
    }

    /// The reverse.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kept| kept.word() == word)
    }
}

/// A window and what came of it. The engine hands over each one; the store decides which it keeps.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The window.
    pub window: Window,
    /// The envelope's `lineage` of its prediction, a JSON object.
    pub lineage: Arc<str>,
    /// Its score; `None`: the model is being calibrated, or gives no score.
    pub score: Option<f32>,
    /// What the score is compared with.
    pub threshold: Option<f32>,
    /// Its score is on the bad side of the threshold.
    pub beyond: bool,
    /// The inputs of the pipeline drift, as the last look at them says.
    pub drifting: bool,
    /// Alarms of the pipeline that are raised with this window: name and episode.
    pub raised: Vec<(String, String)>,
    /// Keep it in any case, as this.
    pub keep: Option<Kept>,
}

impl Weigh for Finished {
    fn weight(&self) -> usize {
        self.window.weight() + size_of::<Self>()
    }
}
