//! Text for logs and terminals, and a bounded part of the system's log, read by `journalctl`: the journal's files change
//! with its version, its tool does not.

use std::{
    fmt::{self, Write},
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use super::{Defence, HostError, clock::rfc3339_ms};
use crate::{flow::order::LogQuery, limits};

/// Writes text of any origin so that it can neither steer a terminal nor look like another line: what is not printable is
/// escaped, and so are the characters that turn the direction of text. Ends with `…` after `left` characters.
pub struct Escaping<'a> {
    out: &'a mut dyn Write,
    left: usize,
}

impl<'a> Escaping<'a> {
    /// Onto `out`.
    pub fn new(out: &'a mut dyn Write, most: usize) -> Self {
        Self { out, left: most }
    }
}

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let odd = |c: char| {
            c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        for c in text.chars() {
            match self.left {
                0 => return Ok(()),
                1 => self.out.write_char('…')?,
                _ if odd(c) && Defence::LogEscape.stands() => write!(self.out, "{}", c.escape_default())?,
                _ => self.out.write_char(c)?,
            }
            self.left -= 1;
        }
        Ok(())
    }
}

/// The same as a text.
pub fn escaped(text: impl fmt::Display, most: usize) -> String {
    let mut out = String::new();
    let _ = write!(Escaping::new(&mut out, most), "{text}");
    out
}

/// The newest lines that were asked for and fit. Takes `limits::LOG_WAIT` at most.
///
/// # Errors
/// There is no journal, it cannot be read, or it took too long.
pub fn pull(query: &LogQuery) -> Result<Value, HostError> {
    let what = |why: String| HostError(format!("read the log of {}: {why}", query.unit));
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--quiet", "--output=json", "--output-fields=MESSAGE,PRIORITY,MESSAGE_ID"]);
    command.arg(format!("--unit={}", query.unit)).arg(format!("--priority={}", query.priority));
    command.arg(format!("--lines={}", query.lines));
    // Seconds since 1970, which need no time zone.
    command.args(query.since_ms.map(|ms| format!("--since=@{}", ms as f64 / 1000.0)));
    command.args(query.until_ms.map(|ms| format!("--until=@{}", ms as f64 / 1000.0)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|why| what(format!("start journalctl: {why}")))?;
    let Some(out) = child.stdout.take() else { return Err(what("it has no output".into())) };
    let (send, lines) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let _ = send.send(read(out));
    });
    let read = lines.recv_timeout(limits::LOG_WAIT);
    let mut ended = if read.is_ok() { wait(&mut child) } else { None };
    if ended.is_none() {
        let _ = child.kill();
        ended = wait(&mut child);
    }
    let (lines, dropped) = read.map_err(|_| what(format!("no answer within {} s", limits::LOG_WAIT.as_secs())))?;
    match ended {
        Some(status) if status.success() => Ok(json!({"lines": lines, "dropped": dropped})),
        other => Err(what(format!("journalctl ended with {other:?}"))),
    }
}

/// Each line as time, priority and text; the newest that fit, and how many older ones did not.
fn read(out: impl Read) -> (Vec<Value>, u64) {
    let (mut kept, mut bytes, mut dropped) = (std::collections::VecDeque::new(), 0, 0);
    for line in BufReader::new(out.take(limits::LOG_READ)).lines().map_while(Result::ok) {
        let Ok(entry) = serde_json::from_str::<Map<String, Value>>(&line) else { continue };
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        let ts = text("__REALTIME_TIMESTAMP").and_then(|us| us.parse::<i64>().ok()).map(|us| rfc3339_ms(us / 1000));
        // What is not UTF-8 comes as a list of bytes.
        // Lines of other programs are not ours.
        let message = escaped(text("MESSAGE").unwrap_or("(not text)"), limits::LOG_LINE);
        let priority = text("PRIORITY").and_then(|p| p.parse::<u8>().ok());
        let line = json!({"ts": ts, "priority": priority, "id": text("MESSAGE_ID"), "text": message});
        let size = line.to_string().len() + 1;
        bytes += size;
        kept.push_back((line, size));
        while bytes > limits::LOG_BYTES {
            let Some((_, size)) = kept.pop_front() else { break };
            bytes -= size;
            dropped += 1;
        }
    }
    (kept.into_iter().map(|(line, _)| line).collect(), dropped)
}

/// It was killed or has ended: it is gone at once.
fn wait(child: &mut std::process::Child) -> Option<std::process::ExitStatus> {
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_stranger_is_escaped_and_bounded() {
        let text = "a\x1b[2J\r\nERROR forged\u{9b}31m\u{202e}\0 ä 漢";
        assert_eq!(escaped(text, 100), "a\\u{1b}[2J\\r\\nERROR forged\\u{9b}31m\\u{202e}\\u{0} ä 漢");
        assert_eq!(escaped("x".repeat(50), 10), format!("{}…", "x".repeat(9)));
        assert_eq!(escaped("x".repeat(9), 10), "x".repeat(9));
        // However it is cut into pieces.
        let mut out = String::new();
        let mut to = Escaping::new(&mut out, 4);
        "abcdef".chars().for_each(|c| to.write_char(c).expect("written"));
        assert_eq!(out, "abc…");
    }

    #[test]
    fn the_newest_lines_that_fit_are_kept() {
        let line = |n: usize| {
            format!(
                "{{\"__REALTIME_TIMESTAMP\":\"1795166043120000\",\"PRIORITY\":\"4\",\"MESSAGE\":\"{n} {}\"}}\n",
                "x".repeat(900)
            )
        };
        let text: String = (0..200).map(line).collect::<String>() + "no json\n{\"MESSAGE\":[1,2]}\n";
        let (lines, dropped) = read(text.as_bytes());
        assert_eq!(lines.len() as u64 + dropped, 201);
        assert!(dropped > 50 && lines.iter().map(|l| l.to_string().len() + 1).sum::<usize>() <= limits::LOG_BYTES);
        assert_eq!(lines[lines.len() - 1]["text"], "(not text)");
        let last = &lines[lines.len() - 2];
        assert_eq!((&last["ts"], &last["priority"]), (&"2026-11-20T09:14:03.120Z".into(), &4.into()));
        assert!(last["text"].as_str().is_some_and(|text| text.starts_with("199 ")));
    }
}
