//! The audit log on the disk. One owner: control's thread.
//!
//! ```text
//! STATE/audit/000000000001.jsonl    entries 1 …; a file is closed at `AUDIT_FILE_BYTES`
//!             000000000412.jsonl    named after its first entry, which continues the last one of the file before
//! STATE/erased                      the head of the log that `erase` removed, by kentledge-erase
//! ```
//!
//! An entry is written and synced before `write` returns. What a kill or a power cut left of one that was not is removed when
//! the log is opened, and the next entry says so. Anything else that does not verify stays as it is: the log goes on behind
//! it. Entries that the disk does not take wait in memory, a few; those for which there is no room are counted.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::chain::{self, Head, Report};
use crate::limits;

/// Beside the log, by `kentledge-erase`.
const ERASED: &str = "erased";

/// The log, and what waits for it.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    /// The file that is written; `None`: the log is to be read first.
    open: Option<Open>,
    head: Head,
    waiting: VecDeque<Map<String, Value>>,
    /// Entries for which there was no room.
    missed: u64,
    /// The file whose write failed, by its first entry, and its bytes that are synced: what follows them may look written.
    failed: Option<(u64, u64)>,
    /// The note of `kentledge-erase` is in use, and goes when the log continues it.
    noted: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Number of its first entry.
    first: u64,
    /// Bytes of it that are synced.
    len: u64,
}

/// What was found when the log was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What does not verify; empty: nothing.
    pub problems: Vec<String>,
    /// Bytes of an entry that was not written to its end.
    pub torn: usize,
    /// The process of the last entry about a start.
    pub process: Option<String>,
}

impl Log {
    /// Below the state directory. Reads and writes nothing.
    pub fn at(state_dir: &Path) -> Self {
        Self {
            folder: state_dir.join("audit"),
            open: None,
            head: Head::default(),
            waiting: VecDeque::new(),
            missed: 0,
            failed: None,
            noted: false,
        }
    }

    /// The last entry that is safe on the disk.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Reads the log and removes what was not written to its end.
    ///
    /// # Errors
    /// The disk cannot be read or written. `write` tries it again.
    pub fn open(&mut self) -> Result<Found, String> {
        self.take_up().map_err(|why| format!("open the audit log {}: {why}", self.folder.display()))
    }

    /// Adds an entry; it is safe on the disk when this returns.
    ///
    /// # Errors
    /// The disk is not writable: the entry waits in memory for the next one.
    pub fn write(&mut self, entry: Map<String, Value>) -> Result<(), String> {
        if self.waiting.len() >= limits::AUDIT_WAITING {
            self.missed += 1;
        } else {
            self.waiting.push_back(entry);
        }
        self.flush()
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn flush(&mut self) -> Result<(), String> {
        let written = self.write_waiting();
        if written.is_err() {
            self.failed = self.open.take().map(|open| (open.first, open.len)).or(self.failed);
        }
        let waits = self.waiting.len() as u64 + self.missed;
        written.map_err(|why| format!("write the audit log {}: {why}; {waits} entries wait", self.folder.display()))
    }

    /// Whether entries wait for the disk.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Ids of commands and of local work whose results are in the log.
    pub fn ids(&self) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        for (_, path) in files(&self.folder).unwrap_or_default() {
            let bytes = fs::read(path).unwrap_or_default();
            let id = |line| member(line, "command", "id").or_else(|| member(line, "local", "id"));
            ids.extend(bytes.split(|b| *b == b'\n').filter_map(id));
        }
        ids
    }

    /// Entries from this number on, as many as fit a result, and the number that the next request begins with.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn pull(&self, from: u64) -> io::Result<Value> {
        let (mut lines, mut bytes, mut next) = (Vec::new(), 0, None);
        'files: for (_, path) in files(&self.folder)? {
            for line in fs::read(path)?.split(|b| *b == b'\n') {
                let Some(link) = chain::read(line).filter(|link| link.head.seq >= from) else { continue };
                let line = String::from_utf8_lossy(line).into_owned();
                // As a string in JSON: quotes are escaped.
                bytes += Value::from(line.as_str()).to_string().len() + 1;
                if bytes > limits::AUDIT_PULL_BYTES {
                    next = Some(link.head.seq);
                    break 'files;
                }
                lines.push(line);
            }
        }
        Ok(json!({"entries": lines, "next": next, "head": self.head}))
    }

    fn take_up(&mut self) -> io::Result<Found> {
        fs::create_dir_all(&self.folder)?;
        if let Some((first, len)) = self.failed {
            let file = OpenOptions::new().append(true).open(self.path(first))?;
            file.set_len(len)?;
            file.sync_all()?;
            self.failed = None;
        }
        let (mut report, mut found) = (Report::new(), Found::default());
        let all = files(&self.folder)?;
        let mut last = None;
        for (n, (first, path)) in all.iter().enumerate() {
            let bytes = fs::read(path)?;
            let whole = whole(&bytes);
            for (at, line) in bytes[..whole].split_inclusive(|b| *b == b'\n').enumerate() {
                let line = &line[..line.len() - 1];
                report.line(line, &format!("{first:012}.jsonl:{}", at + 1));
                found.process = member(line, "start", "process").or(found.process);
            }
            match bytes.len() - whole {
                torn if n + 1 == all.len() => (last, found.torn) = (Some((*first, path, whole as u64)), torn),
                0 => {}
                torn => report.problems.push(format!("{first:012}.jsonl ends with {torn} bytes that are no entry")),
            }
        }
        report.ends();
        // The chain of the log that was erased goes on.
        let erased = if report.first.is_none() && report.problems.is_empty() { self.erased()? } else { None };
        self.head = erased.clone().unwrap_or_else(|| report.next());
        self.open = match last {
            Some((first, path, len)) => {
                let file = OpenOptions::new().append(true).open(path)?;
                if found.torn > 0 {
                    file.set_len(len)?;
                }
                // Also what the previous process wrote and did not sync.
                file.sync_all()?;
                Some(Open { file, first, len })
            }
            None => Some(self.create()?),
        };
        self.announce(&found, erased.is_some());
        found.problems = report.problems;
        Ok(found)
    }

    /// What the next entry is to say before all others.
    fn announce(&mut self, found: &Found, erased: bool) {
        let from = self.head.seq + 1;
        if erased && !self.noted {
            self.noted = true;
            self.waiting.push_front(object(json!({"what": "erased", "from": from})));
        }
        if found.torn > 0 {
            self.waiting.push_front(object(json!({"what": "repaired", "torn_bytes": found.torn})));
        }
    }

    fn erased(&self) -> io::Result<Option<Head>> {
        match fs::read_to_string(self.folder.with_file_name(ERASED)) {
            Ok(text) => Ok(text.parse().ok()),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(why),
        }
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        if self.open.is_none() {
            self.take_up()?;
        }
        while let Some(entry) = self.waiting.front().cloned() {
            self.append(&entry)?;
            self.waiting.pop_front();
        }
        if self.missed > 0 {
            self.append(&object(json!({"what": "missed", "entries": self.missed})))?;
            self.missed = 0;
        }
        if self.noted {
            match fs::remove_file(self.folder.with_file_name(ERASED)) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
                _ => self.noted = false,
            }
        }
        Ok(())
    }

    fn append(&mut self, entry: &Map<String, Value>) -> io::Result<()> {
        let bytes = entry.iter().map(|(name, value)| name.len() + value.to_string().len() + 4).sum::<usize>() as u64;
        if self.open.as_ref().is_some_and(|open| open.len > 0 && open.len + bytes > limits::AUDIT_FILE_BYTES) {
            self.rotate()?;
        }
        self.put(entry)
    }

    fn put(&mut self, entry: &Map<String, Value>) -> io::Result<()> {
        let (line, head) = chain::seal(&self.head, entry);
        let Some(open) = &mut self.open else { return Err(io::Error::other("it is not open")) };
        let bytes = [line.as_bytes(), b"\n"].concat();
        open.file.write_all(&bytes)?;
        open.file.sync_data()?;
        open.len += bytes.len() as u64;
        self.head = head;
        Ok(())
    }

    /// Begins another file. Its first entry says with which number the log begins from now on; then older files are removed.
    fn rotate(&mut self) -> io::Result<()> {
        let all = files(&self.folder)?;
        let leave = all.len().saturating_sub(limits::AUDIT_FILES - 1);
        let from = all.get(leave).map_or(self.head.seq + 1, |(first, _)| *first);
        self.open = Some(self.create()?);
        self.put(&object(json!({"what": "rotated", "from": from})))?;
        for (_, path) in &all[..leave] {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    fn path(&self, first: u64) -> PathBuf {
        self.folder.join(format!("{first:012}.jsonl"))
    }

    fn create(&self) -> io::Result<Open> {
        let first = self.head.seq + 1;
        let file = OpenOptions::new().append(true).create(true).open(self.path(first))?;
        let len = file.metadata()?.len();
        File::open(&self.folder)?.sync_all()?;
        Ok(Open { file, first, len })
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// A member of an entry of this kind.
fn member(line: &[u8], what: &str, name: &str) -> Option<String> {
    // Most lines are of another kind.
    let text = std::str::from_utf8(line).ok().filter(|text| text.contains(what))?;
    let entry: Value = serde_json::from_str(text).ok().filter(|entry: &Value| entry["what"] == what)?;
    entry[name].as_str().map(str::to_owned)
}

/// Bytes up to the end of the last line that was written to its end. A line with a zero byte was not: the file was made
/// longer, and its content did not reach the disk.
fn whole(bytes: &[u8]) -> usize {
    let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let start = bytes[..end.saturating_sub(1)].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if bytes[start..end].contains(&0) { start } else { end }
}

/// The files of a log in order: number of the first entry, path.
///
/// # Errors
/// The folder cannot be read. One that is not there has no files.
pub fn files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let all = match fs::read_dir(folder) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        all => all?,
    };
    let mut files = Vec::new();
    for entry in all {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jsonl"));
        if let Some(first) = name.and_then(|name| name.parse().ok()) {
            files.push((first, path));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
