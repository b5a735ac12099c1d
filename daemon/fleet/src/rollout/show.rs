//! A rollout on a terminal: a bar for each wave, drawn over itself; lines for a log; JSON lines for a script.

use std::io::{IsTerminal, Write};

use kentledge::{
    cli::say,
    control::plans::Plan,
    error::{Context, Fatal},
};
use serde_json::json;

use super::{
    decide::{Step, percent},
    progress::{self, Progress, Wave},
};
use crate::heard::now_ms;

/// Characters of a bar.
const WIDTH: usize = 40;

/// Where a rollout is shown.
pub struct Screen {
    json: bool,
    terminal: bool,
    drawn: usize,
    last: String,
}

impl Screen {
    /// On standard output: bars on a terminal, else lines.
    pub fn new(json: bool) -> Self {
        Self { json, terminal: !json && std::io::stdout().is_terminal(), drawn: 0, last: String::new() }
    }

    /// Shows where it stands and what is next, if that is news.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn show(&mut self, plan: &Plan, all: &Progress, step: &Step) -> Result<(), Fatal> {
        let (mut text, words) = (lines(plan, all), words(step));
        let now = format!("{text:?}{words}");
        if now == self.last {
            return Ok(());
        }
        self.last = now;
        if self.json {
            let mut value = progress::json(plan, all, now_ms());
            value["next"] = json!(words);
            return say(&value.to_string());
        }
        if !self.terminal {
            let short: Vec<String> = all.waves.iter().enumerate().map(|(i, wave)| short(i, wave, all)).collect();
            return say(&format!("{}: {} | {words}", plan.name, short.join(" | ")));
        }
        text.push(format!("next: {words}"));
        let mut out = std::io::stdout().lock();
        let up = if self.drawn > 0 { format!("\x1b[{}A\x1b[J", self.drawn) } else { String::new() };
        self.drawn = text.len();
        out.write_all(format!("{up}{}\n", text.join("\n")).as_bytes())
            .and_then(|()| out.flush())
            .context("write to standard output")
    }

    /// The last line.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn end(&mut self, plan: &Plan, why: &str) -> Result<(), Fatal> {
        match self.json {
            true => say(&json!({"name": plan.name, "end": why}).to_string()),
            false => say(&format!("{}: {why}", plan.name)),
        }
    }
}

/// A step in words.
pub fn words(step: &Step) -> String {
    match step {
        Step::Open(wave) => format!("open wave {wave}"),
        Step::Grant(wave, devices) => format!("give {} devices of wave {wave} their secret", devices.len()),
        Step::Halt(why) => format!("HALT: {why}"),
        Step::Wait(why) | Step::Over(_, why) => why.clone(),
    }
}

/// The rollout as lines: a head, and a bar for each wave.
pub fn lines(plan: &Plan, all: &Progress) -> Vec<String> {
    let state = if all.halted { "  HALTED" } else { "" };
    let head = format!("{} {} to {}: {}{state}", plan.name, plan.seq, plan.to, progress::what(plan));
    let bars = all.waves.iter().enumerate().map(|(i, wave)| {
        let mark = if i < all.open { "open  " } else { "closed" };
        format!("  wave {} {:>5} {mark} [{}] {}", i + 1, percent(plan.waves[i].share), bar(wave), counts(wave))
    });
    let reasons: Vec<String> = all.reasons.iter().map(|(why, n)| format!("{why} {n}")).collect();
    let mut lines: Vec<String> = std::iter::once(head).chain(bars).collect();
    if !reasons.is_empty() {
        lines.push(format!("  not started: {}", reasons.join(", ")));
    }
    lines
}

/// `#` success, `!` failed, `>` running, `.` the rest.
fn bar(wave: &Wave) -> String {
    let width = |n: u64| (n as usize * WIDTH).div_ceil(wave.devices.max(1) as usize);
    let bad = width(wave.count("failed") + wave.count("rolled_back"));
    let (good, running) = (width(wave.count("success")), width(wave.count("running")));
    let text = format!("{}{}{}{}", "!".repeat(bad), "#".repeat(good), ">".repeat(running), ".".repeat(WIDTH));
    text.chars().take(WIDTH).collect()
}

fn counts(wave: &Wave) -> String {
    let known =
        wave.counts.iter().map(|(state, n)| format!("{n} {}", if state == "none" { "not reported" } else { state }));
    let offline = wave.devices - wave.online;
    let rest = (offline > 0).then(|| format!("{offline} offline"));
    let all: Vec<String> = known.chain(rest).collect();
    if all.is_empty() { "no device".into() } else { all.join(", ") }
}

fn short(i: usize, wave: &Wave, all: &Progress) -> String {
    format!("wave {}{}: {}", i + 1, if i < all.open { "" } else { " (closed)" }, counts(wave))
}
