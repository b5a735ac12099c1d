//! The chain of the audit log: how an entry continues the previous one, and what is wrong with lines that do not. Pure.
//!
//! ```text
//! {"seq":58,"prev":"<digest of entry 57>", … ,"sha256":"<digest>"}\n
//! └────────── the digest is SHA-256 of these bytes ──┘
//! ```
//!
//! An entry with `"from":N` says that the log keeps entries from number N on: earlier files were removed, or erased with
//! /data. So a log whose beginning was cut is noticed, too.
//!
//! Who edits an entry can compute the digests of all that follow. So the last digest, the head, is published in `up/h`: a
//! head that was noted elsewhere shows each edit and each cut before it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::super::tell;
use crate::model::file::hex;

/// What stands between an entry's members and its digest.
const MARK: &str = ",\"sha256\":\"";
/// Hex digits of a digest.
const HEX: usize = 64;

/// The last entry of a log, or any other that was noted: `SEQ:DIGEST`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Number of the entry; 0: no entry.
    pub seq: u64,
    /// Its digest, hex.
    pub sha256: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { seq: 0, sha256: "0".repeat(HEX) }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.sha256)
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |hex: &str| hex.len() == HEX && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let parts = text.trim().split_once(':').filter(|(_, digest)| digits(digest));
        let head = parts.and_then(|(seq, digest)| Some(Self { seq: seq.parse().ok()?, sha256: digest.to_owned() }));
        head.ok_or_else(|| format!("`{text}` is no head such as 57:0f3a…: a number, a colon, 64 of 0-9 a-f"))
    }
}

/// The line of the entry that continues `head`, without a line feed, and the head with it. Members named `seq`, `prev`,
/// `from` and `sha256` are the chain's own.
pub fn seal(head: &Head, members: &Map<String, Value>) -> (String, Head) {
    let seq = head.seq + 1;
    let mut line = format!("{{\"seq\":{seq},\"prev\":\"{}\",{}", head.sha256, tell::body(members));
    let sha256 = hex(&Sha256::digest(&line));
    line.push_str(MARK);
    line.push_str(&sha256);
    line.push_str("\"}");
    (line, Head { seq, sha256 })
}

/// An entry whose own digest is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// It as a head.
    pub head: Head,
    /// The digest of the entry before.
    pub prev: String,
    /// The log keeps entries from this number on.
    pub from: Option<u64>,
}

/// Reads a line without its line feed; `None`: it is no entry, or was edited.
pub fn read(line: &[u8]) -> Option<Link> {
    #[derive(Deserialize)]
    struct Own {
        seq: u64,
        prev: String,
        from: Option<u64>,
        sha256: String,
    }
    let sealed = line.len().checked_sub(MARK.len() + HEX + 2)?;
    let own: Own = serde_json::from_slice(line).ok()?;
    let right = line.get(sealed..)?.starts_with(MARK.as_bytes()) && hex(&Sha256::digest(&line[..sealed])) == own.sha256;
    right.then_some(Link { head: Head { seq: own.seq, sha256: own.sha256 }, prev: own.prev, from: own.from })
}

/// What lines say about themselves.
#[derive(Debug, Default)]
pub struct Report {
    /// The first entry that can be read.
    pub first: Option<u64>,
    /// The last entry: where the next one continues.
    pub head: Head,
    /// Entries that can be read.
    pub entries: u64,
    /// What was edited, cut or is missing; empty: nothing.
    pub problems: Vec<String>,
    /// What is no problem, and worth to know.
    pub remarks: Vec<String>,
    /// The entry that the log begins with, as its newest entry with `from` says.
    from: Option<u64>,
    /// The digest that the next entry must name; `None`: any, because the entry before cannot be read.
    expected: Option<String>,
    /// Lines that could not be read, and their entries are not counted yet.
    unread: u64,
}

impl Report {
    /// A check that begins with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next line, without its line feed. `place` says where it stands, for people. Returns the entry.
    pub fn line(&mut self, line: &[u8], place: &str) -> Option<Link> {
        let Some(link) = read(line) else {
            let after = self.head.seq;
            self.problems.push(format!("{place}: the entry after entry {after} was edited or is damaged"));
            self.unread += 1;
            self.expected = None;
            return None;
        };
        match self.first {
            None => self.begins(&link, place),
            Some(_) => self.follows(&link, place),
        }
        self.entries += 1;
        self.unread = 0;
        self.from = link.from.or(self.from);
        (self.head, self.expected) = (link.head.clone(), Some(link.head.sha256.clone()));
        Some(link)
    }

    fn begins(&mut self, link: &Link, place: &str) {
        self.first = Some(link.head.seq);
        if link.head.seq == 1 && link.prev != Head::default().sha256 {
            self.problems.push(format!("{place}: entry 1 names an entry before it"));
        }
    }

    /// Where the next entry continues: also behind lines that cannot be read.
    pub fn next(&self) -> Head {
        Head { seq: self.head.seq + self.unread, sha256: self.head.sha256.clone() }
    }

    /// After the last line of a log that should be whole: where it begins.
    pub fn ends(&mut self) {
        let (from, Some(first)) = (self.from.unwrap_or(1), self.first) else { return };
        if first > from {
            let most = first - 1;
            self.problems.push(format!("entries {from} to {most} are missing at the beginning of the log"));
        } else if first > 1 {
            self.remarks.push(format!("entries before {first} were rotated away, or erased with /data"));
        }
    }

    fn follows(&mut self, link: &Link, place: &str) {
        let (seq, next) = (link.head.seq, self.head.seq + self.unread + 1);
        if seq > next {
            let most = seq - 1;
            self.problems.push(format!("{place}: entries {next} to {most} are missing"));
        } else if seq < next {
            self.problems.push(format!("{place}: entry {seq} stands where entry {next} is expected"));
        } else if self.expected.as_ref().is_some_and(|digest| *digest != link.prev) {
            let before = self.head.seq;
            self.problems.push(format!(
                "{place}: entry {seq} does not continue entry {before}: entry {before} was edited or replaced"
            ));
        }
    }

    /// A head that was noted must be an entry of the log; `found`: the digest of the entry of that number.
    pub fn compare(&mut self, noted: &Head, found: Option<&str>, first_prev: Option<&str>) {
        let (seq, last, first) = (noted.seq, self.head.seq, self.first.unwrap_or(0));
        let problem = match found {
            Some(digest) if digest == noted.sha256 => return,
            Some(_) => format!("entry {seq} is not the one of the head that was given: it or one before it was edited"),
            None if seq > last => {
                format!("the log ends with entry {last}, and the head that was given is entry {seq}: the end was cut")
            }
            // What was rotated away last is still named by the first entry.
            None if seq + 1 == first && first_prev == Some(&noted.sha256) => return,
            None if seq < first => {
                format!("the log begins with entry {first}: the head that was given, entry {seq}, cannot be compared")
            }
            None => format!("entry {seq} of the head that was given is missing"),
        };
        self.problems.push(problem);
    }
}

/// Checks whole files: their bytes in order, each with a name for people, and the heads that were noted. `part`: it need not
/// begin where the log begins.
pub fn verify<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>, noted: &[Head], part: bool) -> Report {
    let mut report = Report::new();
    let (mut found, mut first_prev) = (vec![None; noted.len()], None);
    for (name, bytes) in files {
        let mut lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
        // What follows the last line feed was not written to its end: it was never reported as done.
        let torn = lines.pop().unwrap_or_default();
        for (n, line) in lines.into_iter().enumerate() {
            let Some(link) = report.line(line, &format!("{name}:{}", n + 1)) else { continue };
            first_prev.get_or_insert(link.prev);
            for (noted, found) in noted.iter().zip(&mut found).filter(|(noted, _)| noted.seq == link.head.seq) {
                if found.as_ref() != Some(&noted.sha256) {
                    *found = Some(link.head.sha256.clone());
                }
            }
        }
        if !torn.is_empty() {
            report
                .remarks
                .push(format!("{name} ends with a torn line of {} bytes; the next start removes it", torn.len()));
        }
    }
    if !part {
        report.ends();
    }
    for (noted, found) in noted.iter().zip(&found) {
        report.compare(noted, found.as_deref(), first_prev.as_deref());
    }
    report
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
