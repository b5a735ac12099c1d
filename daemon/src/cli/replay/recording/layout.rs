//! Where the table of a file begins: separator, header, rows of units. Pure, but for the lines that it is given.

use std::collections::VecDeque;

use super::{
    cells::{self, Separator, split},
    clock, written,
};
use crate::{error::Fatal, limits};

/// Rows of lines: a quoted cell may extend over several.
pub struct Rows<F> {
    lines: F,
    /// Lines that were looked at for the end of a quoted cell, and did not have it.
    pending: VecDeque<String>,
    line: u64,
    separator: Separator,
}

impl<F: FnMut() -> Result<Option<String>, Fatal>> Rows<F> {
    /// Of the lines that `lines` gives one by one.
    pub fn new(lines: F, separator: Separator) -> Self {
        Self { lines, pending: VecDeque::new(), line: 0, separator }
    }

    fn line(&mut self) -> Result<Option<String>, Fatal> {
        match self.pending.pop_front() {
            Some(line) => Ok(Some(line)),
            None => (self.lines)(),
        }
    }

    /// The next row that is not blank: its first line, and its cells.
    ///
    /// # Errors
    /// Those of the lines.
    pub fn next(&mut self) -> Result<Option<(u64, Vec<String>)>, Fatal> {
        loop {
            let Some(mut text) = self.line()? else { return Ok(None) };
            self.line += 1;
            let first = self.line;
            if text.trim().is_empty() {
                continue;
            }
            let (cells, mut open) = split(&text, self.separator);
            let mut more = VecDeque::new();
            while open && more.len() < limits::RECORDING_CELL_LINES {
                let Some(line) = self.line()? else { break };
                text.push('\n');
                text.push_str(&line);
                more.push_back(line);
                let whole = split(&text, self.separator);
                open = whole.1;
                if !open {
                    self.line += more.len() as u64;
                    return Ok(Some((first, whole.0)));
                }
            }
            // A quote without a partner is a letter like others.
            more.append(&mut self.pending);
            self.pending = more;
            return Ok(Some((first, cells)));
        }
    }
}

/// What the first lines show.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Between cells.
    pub separator: Separator,
    /// Line of the header; 0: the file has none.
    pub header: u64,
    /// The header's cells as they are in the file: a row like this is a repeated header.
    pub head: Vec<String>,
    /// A name for each column.
    pub names: Vec<String>,
    /// Rows between header and values: their lines and cells.
    pub units: Vec<(u64, Vec<String>)>,
}

impl Layout {
    /// The last line that is not a row of values.
    pub fn begins_after(&self) -> u64 {
        self.units.last().map_or(self.header, |(line, _)| *line)
    }
}

/// What was declared of the layout.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// Between cells.
    pub separator: Option<Separator>,
    /// Line of the header.
    pub header: Option<u64>,
    /// Names of the columns of a file without a header.
    pub names: Option<Vec<String>>,
}

type Row = (u64, Vec<String>);

fn is_comment(cells: &[String]) -> bool {
    cells.first().is_some_and(|cell| cell.starts_with('#'))
}

/// A row with a number or a time.
fn has_values(cells: &[String]) -> bool {
    !is_comment(cells) && cells.iter().any(|cell| cells::form(cell).is_some() || written::looks(cell))
}

fn rows(sample: &[String], separator: Separator) -> Vec<Row> {
    let mut lines = sample.iter();
    let mut rows = Rows::new(|| Ok(lines.next().cloned()), separator);
    let mut all = Vec::new();
    while let Ok(Some(row)) = rows.next() {
        all.push(row);
    }
    all
}

/// The number of cells that most rows have, and in how many of all rows.
fn width(rows: &[Row]) -> (usize, f64) {
    let mut counts = std::collections::BTreeMap::new();
    for (_, cells) in rows {
        *counts.entry(cells.len()).or_insert(0usize) += 1;
    }
    let (width, count) = counts.into_iter().max_by_key(|(_, count)| *count).unwrap_or((0, 0));
    (width, count as f64 / rows.len().max(1) as f64)
}

/// Whether a row has as many columns: a separator at the end of a line makes none.
fn fits(cells: &[String], width: usize) -> bool {
    let filled = cells.len() - cells.iter().rev().take_while(|cell| cell.is_empty()).count();
    filled <= width && cells.len() >= width
}

/// The place of the header in `rows`, whose rows of values have `width` columns.
fn header(rows: &[Row], width: usize) -> Option<usize> {
    // Where all rows end with a separator, the header may lack it.
    let idle = rows
        .iter()
        .filter(|(_, cells)| cells.len() == width && has_values(cells))
        .all(|(_, cells)| cells[width - 1].is_empty());
    let head = |cells: &[String]| fits(cells, width) || (width > 1 && idle && cells.len() + 1 == width);
    let (mut best, mut best_follow) = (None, 0);
    let mut at = 0;
    while at < rows.len() {
        let run = rows[at..].iter().take_while(|(_, cells)| head(cells) && !has_values(cells)).count();
        if run == 0 {
            at += 1;
            continue;
        }
        let follow = rows[at + run..].iter().take_while(|(_, cells)| has_values(cells) || !head(cells));
        let follow = follow
            .filter(|(_, cells)| has_values(cells) && fits(cells, width - usize::from(idle && width > 1)))
            .count();
        if follow > best_follow {
            best = Some((at, run));
            best_follow = follow;
        }
        at += run;
    }
    let (at, run) = best?;
    let run = at..at + run;
    let clock = |at: &usize| rows[*at].1.iter().any(|cell| clock::is_named(cell.trim_start_matches('#')));
    // A line above the header that ends a preamble may be filled up with separators.
    let filled = |at: &usize| rows[*at].1.iter().filter(|cell| !cell.is_empty()).count();
    let most = run.clone().map(|at| filled(&at)).max().unwrap_or(0);
    let plain = |at: &usize| !is_comment(&rows[*at].1) && 2 * filled(at) >= most;
    run.clone()
        .find(|at| plain(at) && clock(at))
        .or_else(|| run.clone().find(plain))
        .or_else(|| run.clone().next_back())
}

fn layout(separator: Separator, rows: &[Row], at: usize) -> Layout {
    let (line, head) = &rows[at];
    let filled = head.len() - head.iter().rev().take_while(|cell| cell.is_empty()).count();
    let name = |(i, cell): (usize, &String)| {
        let name = if i == 0 { cell.trim_start_matches('#').trim() } else { cell };
        if name.is_empty() { format!("column {}", i + 1) } else { name.to_owned() }
    };
    let units = rows[at + 1..].iter().take_while(|(_, cells)| !has_values(cells));
    let units = units.filter(|(_, cells)| !is_comment(cells)).cloned().collect();
    Layout {
        separator,
        header: *line,
        head: head.clone(),
        names: head[..filled].iter().enumerate().map(name).collect(),
        units,
    }
}

/// Finds the table in the first lines of a file.
///
/// # Errors
/// The line, and why there is no table.
pub fn find(sample: &[String], declared: &Declared) -> Result<Layout, (u64, String)> {
    // Excel's own declaration.
    let excel = sample.first().and_then(|line| line.trim().strip_prefix("sep=")).and_then(|rest| rest.chars().next());
    let blank = String::new();
    let sample: Vec<String> = match excel {
        Some(_) => std::iter::once(&blank).chain(&sample[1..]).cloned().collect(),
        None => sample.to_vec(),
    };
    let separator = declared.separator.or(excel.map(Separator::One));
    let tried = separator.map_or(Separator::TRIED.to_vec(), |one| vec![one]);
    let mut best: Option<(f64, usize, Layout)> = None;
    for separator in tried {
        let rows = rows(&sample, separator);
        let (width, share) = width(&rows);
        let at = match declared.header {
            Some(line) => rows.iter().position(|(at, _)| *at == line),
            None => header(&rows, width),
        };
        let Some(at) = at.filter(|_| width > 1) else { continue };
        // Blanks also stand between words and in times.
        let better = best.as_ref().is_none_or(|(most, widest, _)| {
            separator != Separator::Blanks
                && (share, width).partial_cmp(&(*most, *widest)) == Some(std::cmp::Ordering::Greater)
        });
        if better {
            best = Some((share, width, layout(separator, &rows, at)));
        }
    }
    if let Some((_, _, found)) = best {
        return Ok(found);
    }
    headless(&sample, separator, declared)
}

/// No header of several columns was found: a table of one column, or one whose names are known, or none.
fn headless(sample: &[String], separator: Option<Separator>, declared: &Declared) -> Result<Layout, (u64, String)> {
    if let Some(names) = &declared.names {
        // Blanks also stand in times, and no header says how many columns there are.
        let tried = Separator::TRIED.into_iter().filter(|one| *one != Separator::Blanks);
        for separator in separator.map_or(tried.collect(), |one| vec![one]) {
            let (width, share) = width(&rows(sample, separator));
            if width == names.len() && share > 0.5 {
                return Ok(Layout { separator, header: 0, head: Vec::new(), names: names.clone(), units: Vec::new() });
            }
        }
    }
    let single = Separator::One(';');
    let column = rows(sample, single);
    if let Some(line) = declared.header
        && !column.iter().any(|(at, _)| *at == line)
    {
        return Err((line, "there is no header: --header names a line that is blank or behind the first rows".into()));
    }
    let tried = separator.map_or(Separator::TRIED.to_vec(), |one| vec![one]);
    let values = |separator: &Separator| rows(sample, *separator).into_iter().find(|(_, cells)| has_values(cells));
    let Some(line) = tried.iter().filter_map(values).map(|(line, _)| line).min() else {
        return Err((1, "no line has a number: this is no table of values".into()));
    };
    let text: String = sample[line as usize - 1].chars().take(60).collect();
    // A file of one column has no separator at all, unless in a decimal comma.
    let all = width(&column) == (1, 1.0) && sample.iter().all(|text| text.matches([',', '\t', ' ']).count() <= 1);
    if let Some(at) = header(&column, 1).filter(|_| all || separator.is_some()) {
        return Ok(layout(separator.unwrap_or(single), &column, at));
    }
    Err((
        line,
        format!(
            "no header: `{text}` is a row of values, and no line above it has a name for each of its columns; add one, or say \
             where it is (--header LINE) and what separates columns (--separator)"
        ),
    ))
}

/// A name for each column that is a topic segment, and no two the same: `Volume Flow RateRMS` is `volume_flow_raterms`.
/// Columns are given with their place in the file. `taken` is used for something else.
pub fn channel_names(columns: &[(usize, &str)], taken: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for (at, name) in columns {
        let slug = slug(name).unwrap_or_else(|| format!("column_{}", at + 1));
        let free = |name: &String| *name != taken && !all.contains(name);
        let mut numbered = (2..).map(|n| format!("{slug}_{n}"));
        let name = if free(&slug) { slug.clone() } else { numbered.find(free).unwrap_or_default() };
        all.push(name);
    }
    all
}

/// A column's name as a topic segment; `None`: it has no letter or digit of ASCII.
pub fn slug(column: &str) -> Option<String> {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let word: String = column.chars().map(letter).take(56).collect();
    let word = word.trim_matches('_');
    (!word.is_empty()).then(|| word.to_owned())
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
