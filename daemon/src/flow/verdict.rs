//! The verdict on a model that was offered to a device: the stage that runs it reports it to the stage that owns the
//! slots. And what serves now, for the status document.

use std::sync::Arc;

/// What serves a group of pipelines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Serving {
    /// `name@version`
    pub model: String,
    /// Of the ONNX file, hex.
    pub sha256: String,
    /// `a`, `b`, or `factory`: what the configuration names.
    pub slot: &'static str,
    /// It has no signature.
    pub unsigned: bool,
    /// What runs it.
    pub provider: String,
    /// Nodes by provider, as the runtime says.
    pub placement: Vec<(String, usize)>,
    /// Which fences stand around the worker.
    pub sandbox: String,
}

/// Where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It serves now, and is watched.
    Swapped(String),
    /// It was healthy for the whole trial.
    Passed(String),
    /// It was unhealthy; the previous model serves again.
    Bad(String),
    /// What serves dies again and again.
    Failing(String),
}

/// One such word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which group of pipelines.
    pub group: usize,
    /// Of the bundle it is about; empty: of what the configuration names.
    pub bundle: Arc<str>,
    /// What.
    pub said: Said,
}
