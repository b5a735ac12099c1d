//! Files of data loggers, read as they are: packed or not, in any encoding, with whatever separates columns and decimals,
//! under a preamble or not. `replay` and the demo share this reader.
//!
//! ```text
//! bytes ─ text ─▶ lines ─ layout ─▶ rows of cells ─ inspect ─▶ which column is what ─ play ─▶ TIME_NS \t NUMBER \t …
//! ```
//! The file is read twice before the first row is played: what a column is follows from all rows, not from the first. A row
//! that is played has a clock that is certain, and numbers with a decimal point; so the decoders of live lines read it. A
//! cell that is no number goes on as it is and is bad there.

mod cells;
mod clock;
mod layout;
mod made;
mod play;
mod text;
mod written;

use std::path::{Path, PathBuf};

use self::{
    cells::Separator,
    clock::{Clock, Seen},
    layout::{Layout, Rows},
    play::{Cells, Found},
    text::Lines,
};
pub use self::{
    layout::channel_names,
    made::{Made, Place},
    play::{Play, Row},
};
use crate::{
    config::{Channel, Config, NumberText, Source, nearest},
    error::Fatal,
    limits,
};

/// What is declared of a file, where it does not show that itself.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// What separates columns: one character, or comma, semicolon, tab, blanks
    #[arg(long, requires = "csv", value_parser = Separator::parse)]
    separator: Option<Separator>,
    /// The decimal sign: `.` or `,`
    #[arg(long, requires = "csv", value_parser = [".", ","])]
    decimal: Option<String>,
    /// The text's encoding, such as windows-1252 (Latin-1), utf-16le, shift_jis
    #[arg(long, requires = "csv", value_parser = text::encoding)]
    encoding: Option<&'static encoding_rs::Encoding>,
    /// Line of the header
    #[arg(long, requires = "csv", value_name = "LINE")]
    header: Option<u64>,
    /// The clock's column; twice for a date and a time of day
    #[arg(long, requires = "csv", value_name = "COLUMN")]
    time: Vec<String>,
    /// s, ms, us, ns, civil, day-first, month-first, spreadsheet, or a pattern such as "%d.%m.%Y %H:%M:%S"
    #[arg(long, requires = "csv", value_name = "FORMAT", value_parser = clock::format)]
    time_format: Option<Clock>,
    /// When the recording began, for a clock that counts from there, or for --every: 2026-03-12T10:00:00Z
    #[arg(long, requires = "csv", value_name = "TIME", value_parser = start)]
    start: Option<i64>,
    /// There is no clock: rows are so many seconds apart
    #[arg(long, requires = "csv", value_name = "SECONDS", value_parser = every, conflicts_with_all = ["time", "time_format"])]
    every: Option<i64>,
}

/// 1904-01-01, ns since 1970: LabVIEW's clock counts from there.
const LABVIEW_NS: i64 = -2_082_844_800_000_000_000;

fn start(text: &str) -> Result<i64, String> {
    let written = written::read(text, written::Order::DayFirst)
        .filter(|_| text.get(..4).is_some_and(|year| year.parse::<u16>().is_ok()));
    written
        .and_then(|seen| seen.t_ns())
        .filter(|ns| *ns >= LABVIEW_NS)
        .ok_or_else(|| "must be a time such as 2026-03-12T10:00:00Z".into())
}

fn every(text: &str) -> Result<i64, String> {
    match text.parse::<f64>() {
        Ok(s) if (1e-6..=86_400.0).contains(&s) => Ok((s * 1e9) as i64),
        _ => Err("must be a number of seconds from 0.000001 to 86400".into()),
    }
}

/// A file that was looked through.
#[derive(Debug, Clone)]
pub struct Recording {
    path: PathBuf,
    encoding: Option<&'static encoding_rs::Encoding>,
    layout: Layout,
    clock: Clock,
    clock_columns: Vec<usize>,
    /// The decimal sign is a comma.
    comma: bool,
    /// Columns with numbers.
    found: Vec<Found>,
    /// Time of the first row that has one, ns since 1970.
    first_ns: i64,
    order: Order,
    /// What is played: names for the decoder, their columns, and whether cells go on as they are, because the configuration
    /// says how they become numbers.
    played: Vec<(String, usize, bool)>,
}

/// How the clock goes on from row to row.
#[derive(Debug, Clone, Default)]
struct Order {
    /// Rows older than the row before.
    older: Steps,
    /// Rows with the time of the row before.
    same: Steps,
}

/// Rows of one kind, and the line of the first of them.
#[derive(Debug, Clone, Default, PartialEq)]
struct Steps {
    rows: u64,
    first_line: u64,
}

impl Steps {
    fn count(&mut self, is_one: bool, line: u64) {
        if is_one && self.rows == 0 {
            self.first_line = line;
        }
        self.rows += u64::from(is_one);
    }
}

impl Recording {
    /// Looks through the file. `config`: the configuration that reads it, which names its columns.
    ///
    /// # Errors
    /// Where the file is no table of values, or its clock or decimal sign is not certain: with its line.
    pub fn inspect(path: &Path, options: &Options, config: Option<&Config>) -> Result<Self, Fatal> {
        let known = config.and_then(|config| config.sources.first());
        let layout = Self::layout(path, options, known)?;
        let inspected = play::inspect(path, options.encoding, &layout)?;
        let declared = declared(path, &layout, options, known)?;
        let seen: Vec<Seen> = inspected.columns.iter().map(|column| column.clock.clone()).collect();
        let (clock_columns, clock) = clock::decide(&layout.names, &seen, &declared)
            .map_err(|(line, why)| at(path, line.unwrap_or(layout.header.max(1)), &why))?;
        let comma = match options.decimal.as_deref() {
            Some(sign) => sign == ",",
            None => inspected.comma(&clock_columns).map_err(|(line, why)| at(path, line, &why))?,
        };
        let found = inspected.found(comma);
        let (path, encoding) = (path.to_owned(), options.encoding);
        let mut recording = Self {
            path,
            encoding,
            layout,
            clock,
            clock_columns,
            comma,
            found,
            first_ns: 0,
            order: Order::default(),
            played: Vec::new(),
        };
        recording.look(&inspected)?;
        Ok(recording)
    }

    fn layout(path: &Path, options: &Options, known: Option<&Source>) -> Result<Layout, Fatal> {
        let mut lines = Lines::open(path, options.encoding)?;
        let mut sample = Vec::new();
        while sample.len() < limits::RECORDING_SAMPLE_LINES
            && let Some(line) = lines.next()?
        {
            sample.push(line);
        }
        let columns = known.and_then(|source| source.format.columns());
        let names = columns.map(|all| all.into_iter().map(str::to_owned).collect());
        let declared = layout::Declared { separator: options.separator, header: options.header, names };
        layout::find(&sample, &declared).map_err(|(line, why)| at(path, line, &why))
    }

    /// Reads the clock of all rows, and reports what was found.
    fn look(&mut self, inspected: &play::Inspected) -> Result<(), Fatal> {
        let mut first = None;
        let (mut rows, mut unread, mut first_unread) = (0u64, 0u64, None);
        let (mut last, mut order) = (None, Order::default());
        let mut cells = self.cells()?;
        while let Some((line, row)) = cells.next()? {
            let Some(row) = row else { continue };
            let text = self.clock_text(&row);
            match self.clock.t_ns(&text, rows) {
                Some(ns) => {
                    first.get_or_insert(ns);
                    order.older.count(last.is_some_and(|last| ns < last), line);
                    order.same.count(last == Some(ns), line);
                    last = Some(ns);
                }
                None => {
                    unread += 1;
                    first_unread.get_or_insert((line, text));
                }
            }
            rows += 1;
        }
        let name = self.clock_names();
        if let Some((line, text)) = first_unread {
            let words = self.clock.words();
            if unread * limits::RECORDING_CLOCK_FLAWS > rows {
                let why = format!("the clock {name} cannot be read as {words}: `{text}` ({unread} of {rows} rows)");
                return Err(at(&self.path, line, &why));
            }
            self.warn(&format!(
                "{unread} of {rows} rows have no readable clock (first: line {line}, `{text}`): they are bad"
            ));
        }
        self.first_ns = first.unwrap_or(0).max(0);
        if self.clock.is_elapsed(self.first_ns) {
            let why = format!(
                "the clock {name} counts from the start of the recording: say when that was, such as --start 2026-03-12T10:00:00Z"
            );
            return Err(at(&self.path, self.layout.header.max(1), &why));
        }
        self.order = order;
        self.warn_of_order(rows);
        inspected.report(self);
        let layout = &self.layout;
        let units: Vec<String> = layout.units.iter().map(|(line, _)| line.to_string()).collect();
        tracing::info!(
            "{}: {rows} rows, separator {}, decimal {}, clock: {}{}{}",
            self.path.display(),
            layout.separator.words(),
            if self.comma { "comma" } else { "point" },
            if name.is_empty() {
                "none, rows at a declared distance".into()
            } else {
                format!("{name} ({})", self.clock.words())
            },
            if layout.header > 1 { format!(", header in line {}", layout.header) } else { String::new() },
            if units.is_empty() { String::new() } else { format!(", line {} passed over (units)", units.join(", ")) },
        );
        Ok(())
    }

    /// Rows whose time is that of the row before, or older, are played as they are.
    fn warn_of_order(&self, rows: u64) {
        let Order { older, same } = &self.order;
        if older.rows > 0 {
            self.warn(&format!(
                "{} of {rows} rows are older than the row before them (first: line {}): windows begin again there; sort the file \
                 by its clock if it is not in that order",
                older.rows, older.first_line
            ));
        }
        if same.rows * limits::RECORDING_CLOCK_FLAWS > rows {
            self.warn(&format!(
                "{} of {rows} rows have the time of the row before them (first: line {}): the clock has too few digits, or the \
                 file has a row for each value and needs a column for each instead",
                same.rows, same.first_line
            ));
        }
    }

    /// Reads it with the source of a configuration whose columns it has; returns which.
    ///
    /// # Errors
    /// Where no source has all its columns in the file.
    pub fn bind(&mut self, config: &mut Config) -> Result<usize, Fatal> {
        let names = &self.layout.names;
        let mut wanted: Vec<(usize, Vec<String>)> = Vec::new();
        for (i, _) in config.sources.iter().enumerate() {
            let mine = config.channels.iter().filter(|channel| usize::from(channel.source.0) == i);
            let mut columns: Vec<String> = mine.map(|channel| channel.column.clone()).collect();
            columns.sort();
            columns.dedup();
            wanted.push((i, columns));
        }
        let lacks = |columns: &[String]| columns.iter().find(|column| !names.contains(column)).cloned();
        let fits: Vec<&(usize, Vec<String>)> =
            wanted.iter().filter(|(_, columns)| !columns.is_empty() && lacks(columns).is_none()).collect();
        let (at_source, columns) = match (fits.as_slice(), wanted.as_slice()) {
            ([one], _) => (*one).clone(),
            ([], [(_, columns)]) if columns.is_empty() => {
                return Err(Fatal::failed("the configuration has no channel"));
            }
            ([], []) => return Err(Fatal::failed("the configuration has no source")),
            ([], [(source, columns), ..]) => {
                let (name, column) = (&config.sources[*source].name, lacks(columns).unwrap_or_default());
                let near = nearest(&column, names.iter().map(String::as_str));
                let near = near.map_or_else(String::new, |near| format!(" (near: `{near}`)"));
                let all = names.join(", ");
                let why =
                    format!("no column is called `{column}`{near}, which source `{name}` reads; there are: {all}");
                return Err(at(&self.path, self.layout.header.max(1), &why));
            }
            _ => {
                let names: Vec<&str> = fits.iter().map(|(i, _)| config.sources[*i].name.as_str()).collect();
                let why =
                    format!("several sources read these columns: {}; leave one in the configuration", names.join(", "));
                return Err(at(&self.path, self.layout.header.max(1), &why));
            }
        };
        let of = |channel: &Channel, column: &String| {
            usize::from(channel.source.0) == at_source && channel.column == *column
        };
        let says: Vec<bool> = columns
            .iter()
            .map(|column| config.channels.iter().any(|c| of(c, column) && c.numbers != NumberText::default()))
            .collect();
        if self.comma {
            // The file's own decimal sign is certain; a configuration that was written for live lines need not repeat it.
            let own =
                |c: &&mut Channel| columns.iter().any(|column| of(c, column)) && c.numbers != NumberText::default();
            for channel in config.channels.iter_mut().filter(own) {
                channel.numbers.follow_decimal_comma();
            }
        }
        let source = &mut config.sources[at_source];
        let mut played = Vec::new();
        for (column, raw) in columns.into_iter().zip(says).chain(source.seq.clone().map(|seq| (seq, false))) {
            let places: Vec<usize> = (0..names.len()).filter(|i| names[*i] == column).collect();
            match places.as_slice() {
                [place] => played.push((column, *place, raw)),
                [] => source.seq = None,
                [first, second, ..] => {
                    let why = format!(
                        "`{column}` is the name of columns {} and {}: give them different names",
                        first + 1,
                        second + 1
                    );
                    return Err(at(&self.path, self.layout.header.max(1), &why));
                }
            }
        }
        played.dedup();
        let time = self.time_name(|name| played.iter().any(|(taken, ..)| taken == name));
        let columns = std::iter::once(&time).chain(played.iter().map(|(name, ..)| name)).cloned().collect();
        made::as_played(source, &time, columns);
        self.played = played;
        Ok(at_source)
    }

    /// Makes a configuration for it: its number columns as channels; with the model where it has the model's channels, as
    /// measurements in any case.
    ///
    /// # Errors
    /// Where the model cannot be read.
    pub fn config(&mut self, model: &Path, place: &Place) -> Result<Config, Fatal> {
        let sequence = |found: &&Found| found.name == "seq" && found.whole;
        let seq = self.found.iter().find(sequence).map(|found| found.at);
        let time = self.time_name(|_| false);
        let own: Vec<&Found> = self
            .found
            .iter()
            .filter(|found| Some(found.at) != seq && !self.clock_columns.contains(&found.at))
            .collect();
        if own.is_empty() {
            return Err(at(
                &self.path,
                self.layout.begins_after() + 1,
                "no column has numbers, so there is nothing to play",
            ));
        }
        let columns: Vec<(usize, &str)> = own.iter().map(|found| (found.at, found.name.as_str())).collect();
        let slugs = channel_names(&columns, "seq");
        for (slug, found) in slugs.iter().zip(&own) {
            if layout::slug(&found.name).as_deref() != Some(slug) {
                self.warn(&format!("column {} `{}` is channel `{slug}`", found.at + 1, found.name));
            }
        }
        let unit = |found: &&Found| {
            self.layout.units.first().and_then(|(_, cells)| cells.get(found.at)).cloned().unwrap_or_default()
        };
        let made = Made {
            file: self.path.display().to_string(),
            delimiter: '\t',
            time: (time, "ns"),
            seq: seq.map(|_| "seq".into()),
            channels: slugs.iter().cloned().zip(own.iter().map(unit)).collect(),
        };
        self.played = slugs.into_iter().zip(&own).map(|(slug, found)| (slug, found.at, false)).collect();
        if let Some(at) = seq {
            self.played.insert(0, ("seq".into(), at, false));
        }
        made.config(model, place)
    }

    /// A name for the column of the clock that no other column has.
    fn time_name(&self, taken: impl Fn(&str) -> bool) -> String {
        let mut name = "clock of the row".to_owned();
        while taken(&name) {
            name.push('_');
        }
        name
    }

    fn clock_names(&self) -> String {
        let names: Vec<String> = self.clock_columns.iter().map(|at| format!("`{}`", self.layout.names[*at])).collect();
        names.join(" with ")
    }

    /// The cells of the clock, joined by a blank.
    fn clock_text(&self, row: &[String]) -> String {
        match self.clock_columns.as_slice() {
            [one] => row.get(*one).cloned().unwrap_or_default(),
            several => several.iter().filter_map(|at| row.get(*at)).map(String::as_str).collect::<Vec<_>>().join(" "),
        }
    }

    fn cells(&self) -> Result<Cells, Fatal> {
        Cells::open(&self.path, self.encoding, &self.layout)
    }

    /// Its rows, from the first.
    ///
    /// # Errors
    /// Where the file cannot be read any more.
    pub fn play(&self) -> Result<Play, Fatal> {
        Ok(Play::new(self.cells()?, self.clone()))
    }

    fn warn(&self, text: &str) {
        tracing::warn!("{}: {text}", self.path.display());
    }

    fn note(&self, text: &str) {
        tracing::info!("{}: {text}", self.path.display());
    }
}

/// The numbers of the columns that are called like these channels, NaN where a row has none. No clock is needed.
///
/// # Errors
/// Where the file is no table of values, its decimal sign is not certain, or a channel has not exactly one column.
pub fn numbers(path: &Path, channels: &[String]) -> Result<Vec<(String, Vec<f64>)>, Fatal> {
    let layout = Recording::layout(path, &Options::default(), None)?;
    let inspected = play::inspect(path, None, &layout)?;
    let comma = inspected.comma(&[]).map_err(|(line, why)| at(path, line, &why))?;
    let mut places = Vec::new();
    for channel in channels {
        let letter = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let plain = |name: &str| name.to_lowercase().chars().map(letter).collect::<String>();
        let called = |name: &str| plain(name) == *channel || layout::slug(name).as_ref() == Some(channel);
        let found: Vec<usize> = (0..layout.names.len()).filter(|i| called(&layout.names[*i])).collect();
        match found.as_slice() {
            [one] => places.push(*one),
            [] => {
                let all = layout.names.join(", ");
                return Err(at(
                    path,
                    layout.header,
                    &format!("no column is called like channel `{channel}`; there are: {all}"),
                ));
            }
            _ => return Err(at(path, layout.header, &format!("several columns are called like channel `{channel}`"))),
        }
    }
    let mut all: Vec<(String, Vec<f64>)> = channels.iter().map(|name| (name.clone(), Vec::new())).collect();
    let mut cells = Cells::open(path, None, &layout)?;
    while let Some((_, row)) = cells.next()? {
        let Some(row) = row else { continue };
        for ((_, values), place) in all.iter_mut().zip(&places) {
            let number = cells::number(&row[*place], comma).and_then(|text| text.parse::<f64>().ok());
            values.push(number.unwrap_or(f64::NAN));
        }
    }
    Ok(all)
}

fn at(path: &Path, line: u64, why: &str) -> Fatal {
    Fatal::failed(format!("{}:{line}: {why}", path.display()))
}

/// What was declared of the clock: by options, else by the source of the configuration whose clock the file has.
fn declared(path: &Path, layout: &Layout, options: &Options, known: Option<&Source>) -> Result<clock::Declared, Fatal> {
    let place = |name: &String| {
        let places: Vec<usize> = (0..layout.names.len()).filter(|i| layout.names[*i] == *name).collect();
        match places.as_slice() {
            [one] => Ok(*one),
            [] => {
                let near = nearest(name, layout.names.iter().map(String::as_str));
                let near = near.map_or_else(|| "; there".into(), |near| format!(", did you mean `{near}`? There"));
                let why = format!("--time: no column is called `{name}`{near} are: {}", layout.names.join(", "));
                Err(at(path, layout.header.max(1), &why))
            }
            _ => Err(at(path, layout.header.max(1), &format!("--time: `{name}` is the name of several columns"))),
        }
    };
    let mut columns: Vec<usize> = options.time.iter().map(place).collect::<Result<_, _>>()?;
    let mut format = options.time_format.clone();
    if let Some((name, configured)) = known.and_then(|source| source.time.as_ref())
        && options.every.is_none()
        && columns.is_empty()
        && let Some(at) = layout.names.iter().position(|n| n == name)
    {
        let date = known.and_then(|source| source.date.as_ref());
        columns.extend(date.and_then(|date| layout.names.iter().position(|n| n == date)));
        columns.push(at);
        format = format.or(Some(Clock::Configured(configured.clone())));
    }
    Ok(clock::Declared { columns, format, start_ns: options.start, every_ns: options.every })
}

#[cfg(test)]
#[path = "loggers_tests.rs"]
mod loggers_tests;

#[cfg(test)]
#[path = "recording_tests.rs"]
mod recording_tests;
