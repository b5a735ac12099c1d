//! The problems of a configuration, all at once: `file:line: key: why`.

use std::fmt;

use crate::{error::Fatal, limits};

/// The position of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The file, as given.
    pub file: std::sync::Arc<str>,
    /// Line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// It was set remotely.
    pub remote: bool,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Position.
    pub at: At,
    /// The whole key: `source.pump.baud`.
    pub key: String,
    /// Why it is invalid.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.at.file, self.at.line, self.key, self.why)
    }
}

/// The known word that was meant by one that is unknown: the nearest, where it is near enough, or one that begins so.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut all: Vec<_> = known.map(|k| (strsim::damerau_levenshtein(k, word), k)).collect();
    all.sort_unstable();
    let (distance, near) = *all.first()?;
    let begins = || all.iter().find(|(_, k)| word.len() >= 3 && k.starts_with(word)).map(|(_, k)| *k);
    if distance <= 1 + word.len() / 3 { Some(near) } else { begins() }
}

impl From<Vec<Problem>> for Fatal {
    fn from(problems: Vec<Problem>) -> Self {
        Self::problems(&problems)
    }
}

/// The problems found while reading.
#[derive(Debug, Default)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// Adds a problem.
    pub fn add(&mut self, at: &At, key: impl Into<String>, why: impl Into<String>) {
        if self.list.len() < limits::PROBLEMS {
            self.list.push(Problem { at: at.clone(), key: key.into(), why: why.into() });
        }
    }

    /// Whether there are no problems.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All problems, by file and line.
    pub fn into_sorted(mut self) -> Vec<Problem> {
        self.list.sort();
        self.list.dedup();
        self.list
    }
}
