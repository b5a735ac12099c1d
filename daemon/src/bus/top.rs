//! `kentledge top`: the status document, live, in a terminal of 80×24 or more. Once a second and only what changed is
//! written, so that a slow SSH line carries it.

use std::time::{Duration, Instant};

use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, RenderDirection, Sparkline},
};
use serde_json::Value;

use super::{
    BusError,
    client::{Asked, age, bytes, list, number, quality, quantiles, rate, shown_score, unknown, word},
};

const TURN: Duration = Duration::from_secs(1);

/// Shows it until q, Esc or Ctrl-C.
pub async fn top(bus: Option<&str>) -> Result<(), BusError> {
    let asked = Asked::connect(bus).await?;
    let mut status = asked.status().await;
    // An error before the first picture belongs on an ordinary screen.
    status.as_ref().map_err(Clone::clone)?;
    let mut terminal = ratatui::try_init().map_err(|why| format!("use the terminal: {why}"))?;
    let done = loop {
        if let Err(why) = terminal.draw(|frame| draw(frame, &status)) {
            break Err(format!("write to the terminal: {why}").into());
        }
        match left() {
            Ok(true) => break Ok(()),
            Ok(false) => status = asked.status().await,
            Err(why) => break Err(format!("read from the terminal: {why}").into()),
        }
    };
    ratatui::restore();
    done
}

/// Waits a turn; whether the user wants to go.
fn left() -> std::io::Result<bool> {
    let until = Instant::now() + TURN;
    while event::poll(until.saturating_duration_since(Instant::now()))? {
        if let Event::Key(key) = event::read()? {
            let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn draw(frame: &mut Frame<'_>, status: &Result<Value, BusError>) {
    match status {
        Ok(status) => draw_status(frame, status),
        Err(why) => frame.render_widget(Paragraph::new(why.to_string()).style(alert()), frame.area()),
    }
}

fn alert() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

fn head(text: &str) -> Line<'static> {
    Line::styled(text.to_owned(), Style::new().add_modifier(Modifier::BOLD))
}

/// Sources, pipelines with their scores, alarms, outbox and losses, machine: from above, each as high as it needs.
fn draw_status(frame: &mut Frame<'_>, status: &Value) {
    let sources = list(&status["sources"]);
    let pipelines = list(&status["pipelines"]);
    let alarms = list(&status["alarms"]);
    let rows = |n: usize| Constraint::Length(if n > 0 { n as u16 + 1 } else { 0 });
    let [top, source, pipeline, alarm, outbox, lost, bottom] = Layout::vertical([
        Constraint::Length(3),
        rows(sources.len().min(4)),
        Constraint::Length(pipelines.len().min(3) as u16 * 4),
        rows(alarms.len().min(4)),
        Constraint::Length(2),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(headline(status)), top);
    frame.render_widget(Paragraph::new(source_lines(sources)), source);
    draw_pipelines(frame, pipeline, pipelines);
    frame.render_widget(Paragraph::new(alarm_lines(alarms)), alarm);
    frame.render_widget(Paragraph::new(outbox_lines(status)), outbox);
    frame.render_widget(Paragraph::new(lost_lines(status, lost.height)), lost);
    frame.render_widget(Paragraph::new(machine_line(status)), bottom);
}

fn headline(status: &Value) -> Vec<Line<'static>> {
    let (device, link) = (&status["device"], &status["link"]);
    let degraded: Vec<_> = list(&status["degraded"]).iter().map(word).collect();
    let name = format!(
        "kentledge {}  {}/{}  up {}",
        word(&status["version"]),
        word(&device["site"]),
        word(&device["id"]),
        age(&status["uptime_s"])
    );
    let state = if degraded.is_empty() {
        Line::styled(word(&status["state"]), Style::new().fg(Color::Green))
    } else {
        Line::styled(format!("{}: {}", word(&status["state"]), degraded.join("; ")), alert())
    };
    let online = if link["online"] == true { "online" } else { "offline" };
    let text = format!("link {online} {}  acknowledged {}", word(&link["broker"]), quantiles(&link["acknowledge"]));
    vec![head(&name), state, Line::raw(text)]
}

fn source_lines(sources: &[Value]) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if !sources.is_empty() {
        lines.push(head("SOURCE           QUALITY    ROWS/S        ROWS  REFUSED  MISSING     SHED"));
    }
    lines.extend(sources.iter().map(|source| {
        let quality = quality(source);
        let style = if quality == "ok" { Style::new() } else { alert() };
        let n = |key: &str| source[key].to_string();
        Line::from(vec![
            Span::raw(format!("{:<16.16} ", word(&source["name"]))),
            Span::styled(format!("{quality:<8}"), style),
            Span::raw(format!(
                " {:>8} {:>11} {:>8} {:>8} {:>8}",
                rate(&source["rows_s"]),
                n("rows"),
                n("refused"),
                n("missing"),
                n("shed")
            )),
        ])
    }));
    lines
}

/// Each pipeline: a line, and its scores of the last two minutes against the threshold.
fn draw_pipelines(frame: &mut Frame<'_>, area: Rect, pipelines: &[Value]) {
    let rows = Layout::vertical(pipelines.iter().take(3).map(|_| Constraint::Length(4))).split(area);
    for (pipeline, row) in pipelines.iter().zip(rows.iter()) {
        let [line, scores] = Layout::vertical([Constraint::Length(2), Constraint::Length(2)]).areas(*row);
        let (score, threshold) = (pipeline["score"].as_f64(), pipeline["threshold"].as_f64());
        let above = score.zip(threshold).is_some_and(|(score, threshold)| score > threshold);
        let state = match (pipeline["serving"] == true, pipeline["learning"] == true) {
            (false, _) => Span::styled("not serving", alert()),
            (true, true) => Span::raw("learning"),
            (true, false) => Span::raw("serving"),
        };
        let title = Line::from(vec![
            Span::styled(format!("PIPELINE {} ", word(&pipeline["name"])), Style::new().add_modifier(Modifier::BOLD)),
            state,
            Span::raw(format!(" {} slot {}", word(&pipeline["model"]), word(&pipeline["slot"]))),
        ]);
        let text = format!("score {} of {}", shown_score(pipeline), number(&pipeline["threshold"]));
        let text = Line::from(vec![
            Span::styled(text, if above || pipeline["stale"] == true { alert() } else { Style::new() }),
            Span::raw(format!(
                "   {} predictions   inference {}",
                pipeline["predictions"],
                quantiles(&pipeline["infer"])
            )),
        ]);
        frame.render_widget(Paragraph::new(vec![title, text]), line);
        // Full height is twice the threshold: half of it is the level.
        let full = threshold.filter(|t| *t > 0.0).map_or(1.0, |t| t * 2.0);
        let bars: Vec<u64> = list(&pipeline["history"])
            .iter()
            .rev()
            .map(|s| (s.as_f64().unwrap_or(0.0) / full * 1000.0) as u64)
            .collect();
        let color = if above { Color::Red } else { Color::Cyan };
        let sparkline = Sparkline::default().data(&bars).max(1000).direction(RenderDirection::RightToLeft);
        frame.render_widget(sparkline.style(Style::new().fg(color)), scores);
    }
}

fn alarm_lines(alarms: &[Value]) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if !alarms.is_empty() {
        lines.push(head("ALARM"));
    }
    lines.extend(alarms.iter().map(|alarm| {
        let (name, severity) = (word(&alarm["name"]), word(&alarm["severity"]));
        let unknown = unknown(alarm);
        if alarm["raised"] == true {
            let stale = if alarm["stale"] == true { "  as of the last score" } else { "" };
            Line::styled(format!("{name}  RAISED  {severity}{stale}{unknown}"), alert())
        } else {
            Line::raw(format!("{name}  clear  {severity}{unknown}"))
        }
    }));
    lines
}

fn outbox_lines(status: &Value) -> Vec<Line<'static>> {
    let outbox = &status["outbox"];
    let disk =
        if outbox["disk_ok"] == true { Span::raw("disk ok") } else { Span::styled("DISK NOT WRITABLE", alert()) };
    let (stored, most) = (bytes(&outbox["stored_bytes"]), bytes(&outbox["max_bytes"]));
    let kept = format!(
        "OUTBOX  {} in RAM  {} stored ({stored} of {most})  oldest {}",
        outbox["ram_records"],
        outbox["stored_records"],
        age(&outbox["oldest_s"])
    );
    let commit = format!("  commit {}  ", quantiles(&outbox["commit"]));
    vec![
        head(&kept),
        Line::from(vec![Span::raw(format!("{} delivered", outbox["delivered"])), Span::raw(commit), disk]),
    ]
}

fn lost_lines(status: &Value, height: u16) -> Vec<Line<'static>> {
    let mut lost: Vec<&Value> = list(&status["lost"]).iter().collect();
    lost.sort_by_key(|entry| std::cmp::Reverse(entry["n"].as_u64()));
    if lost.is_empty() {
        return vec![head("LOST  nothing")];
    }
    let entries = lost.iter().take(usize::from(height.saturating_sub(1)));
    let lines =
        entries.map(|e| Line::raw(format!("{:>12} {} {}", e["n"].to_string(), word(&e["stream"]), word(&e["reason"]))));
    std::iter::once(head("LOST")).chain(lines).collect()
}

fn machine_line(status: &Value) -> Line<'static> {
    let (clock, machine) = (&status["clock"], &status["machine"]);
    let kib = |key: &str| bytes(&Value::from(machine[key].as_u64().unwrap_or(0) * 1024));
    let temperature = machine["temperature_c"].as_f64().map(|c| format!("  {c:.0} °C")).unwrap_or_default();
    Line::raw(format!(
        "{} {}  daemon {}  mem free {}  disk free {}{temperature}  q quits",
        word(&clock["ts"]).get(..19).unwrap_or("-"),
        word(&clock["clk"]),
        kib("rss_kib"),
        kib("memory_free_kib"),
        bytes(&machine["disk_free_bytes"])
    ))
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    #[test]
    fn stale_score_is_not_shown_as_current() {
        let mut status: Value = serde_json::from_str(include_str!("top_status.json")).expect("status");
        status["pipelines"][0]["stale"] = true.into();
        status["alarms"][0]["stale"] = true.into();
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("terminal");
        terminal.draw(|frame| draw(frame, &Ok(status))).expect("draw");
        let picture = terminal.backend().to_string();
        assert!(picture.contains("score STALE of 5.97") && !picture.contains("8.23"), "{picture}");
        assert!(picture.contains("RAISED  critical  as of the last score"), "{picture}");
    }

    /// KENTLEDGE_UPDATE=1 rewrites the picture.
    #[test]
    fn the_picture_in_80_by_24_is_as_it_was() {
        let status = serde_json::from_str(include_str!("top_status.json")).expect("status");
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("terminal");
        terminal.draw(|frame| draw(frame, &Ok(status))).expect("draw");
        let picture = terminal.backend().to_string();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bus/top_80x24.txt");
        if std::env::var_os("KENTLEDGE_UPDATE").is_some() {
            std::fs::write(path, &picture).expect("write");
        }
        assert_eq!(picture, std::fs::read_to_string(path).expect("picture"));
    }
}
