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

/// The known word that was meant by one that is unknown: the same but for case and marks, a few letters apart, its only
/// continuation, or its beginning. `None` rather than a word that only looks like it: `low` is not `on`, `crc16` is not `crc32`.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let bare = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    let meant = bare(word);
    let mut all: Vec<_> = known.map(|k| (strsim::damerau_levenshtein(&bare(k), &meant), k)).collect();
    all.sort_unstable();
    let near = match meant.chars().count() {
        0 | 1 => 0,
        2..=5 => 1, // below 4 letters the first must be the same
        6..=8 => 2,
        _ => 3,
    };
    let like = |k: &str| meant.chars().count() > 3 || bare(k).chars().next() == meant.chars().next();
    let (distance, first) = *all.iter().find(|(distance, k)| *distance == 0 || like(k))?;
    // Words that begin like `crc16` are more like it than `crc32` is.
    let mut longer = all.iter().filter(|(_, k)| meant.len() >= 3 && bare(k).starts_with(&meant)).map(|(_, k)| *k);
    match (distance, longer.next(), longer.next()) {
        (0, ..) => Some(first),
        (_, Some(only), None) => Some(only),
        (_, Some(_), Some(_)) => None,
        _ if distance <= near => Some(first),
        _ => {
            all.iter().map(|(_, k)| *k).filter(|k| k.len() >= 3 && meant.starts_with(&bare(k))).max_by_key(|k| k.len())
        }
    }
}

/// The same word but for case, marks or one letter: no other meaning is likely.
pub fn twin<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let bare = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let near = |k: &&str| strsim::damerau_levenshtein(&bare(k), &bare(word)) <= usize::from(word.len() >= 4);
    known.filter(near).min()
}

/// `; did you mean …?`, or nothing: the nearest word, or the few that begin so.
pub fn meant<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    const FEW: usize = 3;
    let known: Vec<&str> = known.collect();
    if let Some(near) = nearest(word, known.iter().copied()) {
        return format!("; did you mean `{near}`?");
    }
    let longer: Vec<String> =
        known.iter().filter(|k| word.len() >= 3 && k.starts_with(word)).map(|k| format!("`{k}`")).collect();
    if (2..=FEW).contains(&longer.len()) { format!("; did you mean {}?", longer.join(" or ")) } else { String::new() }
}

/// What is said behind "there is no such thing": the name that was meant, or all names where they are few.
pub fn instead<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    const FEW: usize = 12;
    let known: Vec<&str> = known.collect();
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("; did you mean `{near}`?"),
        None if (1..=FEW).contains(&known.len()) => format!("; expected one of {}", known.join(", ")),
        None => String::new(),
    }
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

    /// Whether a problem of this table, or of a key in it, was added.
    pub fn any_in(&self, table: &str) -> bool {
        let within = |key: &str| key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.list.iter().any(|problem| within(&problem.key))
    }

    /// All problems, by file and line, without those that only follow from another one.
    pub fn into_sorted(mut self) -> Vec<Problem> {
        self.list.sort();
        self.list.dedup();
        let all = self.list.clone();
        self.list.retain(|problem| !all.iter().any(|other| problem.follows(other)));
        self.list
    }
}

impl Problem {
    /// Whether it is clear without a word once `other` is mended: a key that is there with a wrong value is not missing too, and
    /// what is no table has no keys.
    fn follows(&self, other: &Self) -> bool {
        let weak = |problem: &Self| ["is needed", "unknown key"].iter().any(|start| problem.why.starts_with(start));
        let same = self.at.file == other.at.file;
        let below = |key: &str| key.strip_prefix(&other.key).is_some_and(|rest| rest.starts_with('.'));
        let no_table = other.why.starts_with("must be a table");
        same && (self.key == other.key && weak(self) && !weak(other) || no_table && below(&self.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word_differs_by_case_marks_or_a_few_letters_and_is_never_an_opposite() {
        let words =
            ["off", "on", "pull-up", "km/h", "km", "K", "°C", "crc32", "crc16-arc", "crc16-x25", "qos", "url", "line"];
        for (word, expected) in [
            ("pullup", Some("pull-up")),
            ("PULL_UP", Some("pull-up")),
            ("kmh", Some("km/h")),
            ("C", Some("°C")),
            ("crc16", None),
            ("crc32c", Some("crc32")),
            ("low", None),
            ("of", Some("off")),
            ("host", None),
            ("tls", None),
            ("Line", Some("line")),
            ("lines", Some("line")),
            ("qs", Some("qos")),
            ("ine", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, words.into_iter()), expected, "{word}");
        }
    }

    #[test]
    fn words_that_begin_alike_are_offered_where_they_are_few() {
        let kinds = ["serial", "modbus-rtu", "modbus-tcp"];
        assert_eq!(meant("modbus", kinds.into_iter()), "; did you mean `modbus-rtu` or `modbus-tcp`?");
        assert_eq!(meant("serail", kinds.into_iter()), "; did you mean `serial`?");
        assert_eq!(meant("i2c", kinds.into_iter()), "");
        assert_eq!(twin("alarms", ["alarm", "model"].into_iter()), Some("alarm"));
        assert_eq!(twin("scale", ["slave"].into_iter()), None);
    }

    #[test]
    fn unknown_name_is_answered_with_the_nearest_or_all_where_they_are_few() {
        let of = |word, known: &[&str]| instead(word, known.iter().copied());
        assert_eq!(of("temperature", &["temp", "flow"]), "; did you mean `temp`?");
        assert_eq!(of("x", &["temp", "flow"]), "; expected one of temp, flow");
        assert_eq!(of("x", &[]), "");
        let many: Vec<String> = (0..100).map(|i| format!("c{i}")).collect();
        assert_eq!(instead("pressure", many.iter().map(String::as_str)), "");
    }
}
