//! What is wrong with a configuration, all of it at once: `file:line: key: why`.

use std::fmt;

use crate::limits;

/// Where a key stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The file as it was named.
    pub file: std::sync::Arc<str>,
    /// Line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// It was set over the network.
    pub remote: bool,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub at: At,
    /// The whole key: `source.pump.baud`.
    pub key: String,
    /// Why it cannot be used.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.at.file, self.at.line, self.key, self.why)
    }
}

/// All problems, collected while reading.
#[derive(Debug, Default)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// Adds one.
    pub fn add(&mut self, at: &At, key: impl Into<String>, why: impl Into<String>) {
        if self.list.len() < limits::PROBLEMS {
            self.list.push(Problem { at: at.clone(), key: key.into(), why: why.into() });
        }
    }

    /// None found.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// In the order of file and line.
    pub fn into_sorted(mut self) -> Vec<Problem> {
        self.list.sort();
        self.list.dedup();
        self.list
    }
}
