//! Which columns of a recording are its clock, and how they are read. Pure.
//!
//! A clock is taken only where one reading of it is certain: otherwise the error says what to declare. A time without an
//! offset is UTC, as everywhere in this program.

use super::{
    cells,
    written::{self, Order},
};
use crate::{
    config::{TimeFormat, time_pattern},
    limits,
    signal::parse_time,
};

/// How a clock is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Clock {
    /// So many nanoseconds a tick, since the time that stands beside it (ns since 1970).
    Ticks(i64, i64),
    /// Days since 1899-12-30, as spreadsheets count.
    Days,
    /// As the configuration of a source says it.
    Configured(TimeFormat),
    /// Dates and times of many forms; two or more columns are joined.
    Written(Order),
    /// None: rows have this distance (ns), from this time on.
    Every(i64, i64),
}

/// `--time-format`
///
/// # Errors
/// With what is expected.
pub fn format(text: &str) -> Result<Clock, String> {
    Ok(match text {
        "s" => Clock::Ticks(1_000_000_000, 0),
        "ms" => Clock::Ticks(1_000_000, 0),
        "us" => Clock::Ticks(1_000, 0),
        "ns" => Clock::Ticks(1, 0),
        "civil" => Clock::Configured(TimeFormat::Civil),
        "spreadsheet" => Clock::Days,
        "day-first" => Clock::Written(Order::DayFirst),
        "month-first" => Clock::Written(Order::MonthFirst),
        pattern if pattern.contains('%') => {
            time_pattern(pattern).map_err(|why| format!("`{pattern}`: {why}"))?;
            Clock::Configured(TimeFormat::Patterns(vec![pattern.to_owned()]))
        }
        other => {
            return Err(format!(
                "`{other}` is invalid: expected s, ms, us, ns, civil, day-first, month-first, spreadsheet, or a pattern \
                 such as \"%d.%m.%Y %H:%M:%S\""
            ));
        }
    })
}

impl Clock {
    /// Nanoseconds since 1970 of a row's clock cells (joined by a blank), the `row`th from 0.
    pub fn t_ns(&self, text: &str, row: u64) -> Option<i64> {
        match self {
            Self::Ticks(ns, start) => start.checked_add(ticks(text, *ns)?),
            Self::Days => {
                let days: f64 = cells::number(text, text.contains(',')).and_then(|days| days.parse().ok())?;
                // A millisecond is what six to ten decimals of a day can mean.
                let ms = ((days - 25_569.0) * 86_400_000.0).round();
                (days >= 1.0 && ms.abs() < 9e12).then(|| ms as i64 * 1_000_000)
            }
            Self::Configured(format) => parse_time(text, format),
            Self::Written(order) => written::read(text, *order)?.t_ns(),
            Self::Every(ns, start) => start.checked_add(ns.checked_mul(i64::try_from(row).ok()?)?),
        }
    }

    /// Whether it counts from 1970, and this time (ns) is none that any recording has: it counts from somewhere else.
    pub fn is_elapsed(&self, t_ns: i64) -> bool {
        matches!(self, Self::Ticks(_, 0)) && t_ns < 946_684_800_000_000_000
    }

    /// In words, for messages.
    pub fn words(&self) -> String {
        match self {
            Self::Ticks(1_000_000_000, 0) => "seconds since 1970".into(),
            Self::Ticks(1_000_000, 0) => "milliseconds since 1970".into(),
            Self::Ticks(1_000, 0) => "microseconds since 1970".into(),
            Self::Ticks(_, 0) => "nanoseconds since 1970".into(),
            Self::Ticks(..) => "a number that counts from --start".into(),
            Self::Days => "days of a spreadsheet".into(),
            Self::Written(Order::DayFirst) => "a date (day first) and time".into(),
            Self::Written(Order::MonthFirst) => "a date (month first) and time".into(),
            Self::Configured(TimeFormat::Patterns(patterns)) => {
                format!("a time by the pattern \"{}\"", patterns.join("\" or \""))
            }
            Self::Configured(_) => "a time as the configuration says".into(),
            Self::Every(..) => "none".into(),
        }
    }
}

/// A decimal number of ticks, without the rounding of a double.
fn ticks(text: &str, ns: i64) -> Option<i64> {
    let text = text.replace(',', ".");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !digits(part) || !digits(whole.trim_start_matches(['-', '+'])) {
        return parse_time(&text, &TimeFormat::Unit(ns as u64));
    }
    let part: i128 = format!("{part:0<18}").get(..18)?.parse().ok()?;
    let size = i128::from(whole.trim_start_matches(['-', '+']).parse::<i64>().ok()?) * i128::from(ns)
        + part * i128::from(ns) / 1_000_000_000_000_000_000;
    i64::try_from(if whole.starts_with('-') { -size } else { size }).ok()
}

/// Names of clocks, in small letters, without the words of `BESIDE`.
const NAMES: [&str; 28] = [
    "time",
    "timestamp",
    "datetime",
    "date",
    "ts",
    "date time",
    "time stamp",
    "epoch",
    "unixtime",
    "clock",
    "elapsed",
    "elapsed time",
    "zeit",
    "zeitstempel",
    "datum",
    "uhrzeit",
    "datum uhrzeit",
    "fecha",
    "hora",
    "fecha hora",
    "heure",
    "horodatage",
    "date heure",
    "tid",
    "时间",
    "日期",
    "日時",
    "дата",
];
const BESIDE: [&str; 24] = [
    "utc",
    "gmt",
    "local",
    "unix",
    "posix",
    "epoch",
    "iso",
    "iso8601",
    "s",
    "sec",
    "secs",
    "seconds",
    "ms",
    "msec",
    "milliseconds",
    "us",
    "µs",
    "microseconds",
    "ns",
    "min",
    "h",
    "record",
    "sample",
    "log",
];

/// The words of a column's name.
fn words(name: &str) -> Vec<String> {
    let small = name.to_lowercase();
    small.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Whether a column is named as a clock: `Time (s)`, `ts`, `unix_time_ms`, `Date/Time`; but not `response time`.
pub fn is_named(name: &str) -> bool {
    let words = words(name);
    let left: Vec<&str> = words.iter().map(String::as_str).filter(|word| !BESIDE.contains(word)).collect();
    match left.as_slice() {
        [] => words.iter().any(|word| ["epoch", "unix", "utc"].contains(&word.as_str())),
        // `T` alone is more often a temperature.
        ["t"] => unit(name).is_some(),
        left => NAMES.contains(&left.join(" ").as_str()),
    }
}

/// Nanoseconds of the unit that a clock's name ends with.
fn unit(name: &str) -> Option<i64> {
    let words = words(name);
    Some(match words.last().filter(|_| words.len() > 1)?.as_str() {
        "s" | "sec" | "secs" | "seconds" => 1_000_000_000,
        "ms" | "msec" | "milliseconds" => 1_000_000,
        "us" | "µs" | "microseconds" => 1_000,
        "ns" => 1,
        "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// What a column's cells are, as far as a clock is concerned; filled row by row.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    named: bool,
    cells: u64,
    numbers: u64,
    /// The first number, for messages.
    number: Option<(u64, String)>,
    least: f64,
    most: f64,
    last: f64,
    falls: u64,
    /// The first cell is built like a time.
    looks: bool,
    day_only: u64,
    month_only: u64,
    both_same: u64,
    both_differ: u64,
    dates: u64,
    times: u64,
    /// Dates that are those of the row before.
    still: u64,
    last_date: Option<jiff::civil::Date>,
    /// The first cell that can mean two dates.
    differ: Option<(u64, String)>,
    /// The first cell that is not read.
    unread: Option<(u64, String)>,
}

/// What a column could be.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Nothing,
    /// Date and time of day, or a number since 1970.
    Whole(Clock),
    Date(Order, bool),
    TimeOfDay,
    /// A number that counts from some start, with its unit if the name says it.
    Elapsed(Option<i64>),
    /// A time that cannot be read with certainty: at this line, and why.
    Unclear(u64, String),
}

impl Seen {
    /// Of a column with this name.
    pub fn new(name: &str) -> Self {
        let (least, most, last) = (f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY);
        Self { named: is_named(name), least, most, last, ..Self::default() }
    }

    /// Takes a cell.
    pub fn note(&mut self, line: u64, cell: &str) {
        if cells::is_none(cell) {
            return;
        }
        self.cells += 1;
        if self.cells == 1 {
            let compact = matches!(cell.len(), 8 | 14) && (cell.starts_with("20") || cell.starts_with("19"));
            self.looks = written::looks(cell) || self.named && compact && cell.bytes().all(|b| b.is_ascii_digit());
        }
        if self.looks {
            self.note_written(line, cell);
        } else if let Some(number) = cells::number(cell, cell.contains(',')).and_then(|text| text.parse::<f64>().ok()) {
            self.numbers += 1;
            self.number.get_or_insert_with(|| (line, cell.to_owned()));
            (self.least, self.most) = (self.least.min(number), self.most.max(number));
            self.falls += u64::from(number < self.last);
            self.last = number;
        } else {
            self.unread.get_or_insert_with(|| (line, cell.to_owned()));
        }
    }

    fn note_written(&mut self, line: u64, cell: &str) {
        let (day, month) = (written::read(cell, Order::DayFirst), written::read(cell, Order::MonthFirst));
        let Some(seen) = day.or(month) else {
            self.unread.get_or_insert_with(|| (line, cell.to_owned()));
            return;
        };
        match (day, month) {
            (Some(day), Some(month)) if day == month => self.both_same += 1,
            (Some(_), Some(_)) => {
                self.both_differ += 1;
                self.differ.get_or_insert_with(|| (line, cell.to_owned()));
            }
            (Some(_), None) => self.day_only += 1,
            _ => self.month_only += 1,
        }
        self.dates += u64::from(seen.date.is_some());
        self.times += u64::from(seen.time.is_some());
        self.still += u64::from(seen.date.is_some() && seen.date == self.last_date);
        self.last_date = seen.date;
    }

    fn kind(&self, name: &str) -> Kind {
        let nearly = |n: u64| n * limits::RECORDING_CLOCK_FLAWS >= self.cells * (limits::RECORDING_CLOCK_FLAWS - 1);
        let unclear = |seen: &Option<(u64, String)>, why: &str| match seen {
            Some((line, cell)) => Kind::Unclear(*line, format!("`{cell}` {why}")),
            None => Kind::Nothing,
        };
        if self.cells == 0 {
            return Kind::Nothing;
        }
        if self.looks {
            let read = self.both_same + self.both_differ + self.day_only + self.month_only;
            if !nearly(read) {
                return unclear(&self.unread, "cannot be read as a time");
            }
            if self.day_only > 0 && self.month_only > 0 {
                return unclear(
                    &self.differ.clone().or(self.unread.clone()),
                    "is day first in some rows and month first in others",
                );
            }
            if self.both_differ > 0 && self.day_only + self.month_only == 0 {
                return unclear(
                    &self.differ,
                    "may be day first or month first: say --time-format day-first or month-first",
                );
            }
            let order = if self.month_only > 0 { Order::MonthFirst } else { Order::DayFirst };
            return match (nearly(self.dates), nearly(self.times)) {
                (true, true) => Kind::Whole(Clock::Written(order)),
                (true, false) => Kind::Date(order, self.still == 0),
                (false, true) => Kind::TimeOfDay,
                (false, false) => unclear(&self.unread, "cannot be read as a time"),
            };
        }
        if !nearly(self.numbers) {
            return if self.named { unclear(&self.unread, "cannot be read as a time") } else { Kind::Nothing };
        }
        self.counted(name)
    }

    /// A column of numbers.
    fn counted(&self, name: &str) -> Kind {
        // 2000 to 2066 in each unit: these ranges do not meet. What counts from 1904 (LabVIEW) would be in 2067 or later.
        let units = [1_000_000_000i64, 1_000_000, 1_000, 1];
        let range = |ns: &i64| {
            let ticks = 1e9 / *ns as f64;
            self.least >= 946_684_800.0 * ticks && self.most < 3_061_152_000.0 * ticks
        };
        let said = unit(name).filter(|_| self.named);
        match units.into_iter().find(range) {
            Some(ns) if said.is_some_and(|said| said != ns) && self.named => match &self.number {
                Some((line, cell)) => Kind::Unclear(
                    *line,
                    format!(
                        "`{cell}` has the size of {}, and its column's name says another unit: declare --time-format",
                        Clock::Ticks(ns, 0).words()
                    ),
                ),
                None => Kind::Nothing,
            },
            Some(ns) if self.named => Kind::Whole(Clock::Ticks(ns, 0)),
            Some(ns) if self.falls == 0 && self.cells > 1 => match &self.number {
                Some((line, cell)) => {
                    Kind::Unclear(*line, format!("`{cell}` counts as {} would", Clock::Ticks(ns, 0).words()))
                }
                None => Kind::Nothing,
            },
            None if self.named && self.falls == 0 => Kind::Elapsed(said),
            None if self.named && said.is_some() => Kind::Elapsed(said),
            _ if self.named => match &self.number {
                Some((line, cell)) => Kind::Unclear(*line, format!("`{cell}` cannot be read as a time")),
                None => Kind::Nothing,
            },
            _ => Kind::Nothing,
        }
    }
}

/// What was declared of the clock.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// Places of its columns.
    pub columns: Vec<usize>,
    /// How it is written.
    pub format: Option<Clock>,
    /// When the recording began, ns since 1970.
    pub start_ns: Option<i64>,
    /// Rows have this distance, ns.
    pub every_ns: Option<i64>,
}

/// A clock that was found, or the line of the cell that stands against it, and why.
pub type Found = Result<(Vec<usize>, Clock), (Option<u64>, String)>;

/// Decides which columns are the clock, and how it is read.
pub fn decide(names: &[String], seen: &[Seen], declared: &Declared) -> Found {
    if let Some(every_ns) = declared.every_ns {
        return Ok((Vec::new(), Clock::Every(every_ns, declared.start_ns.unwrap_or(0))));
    }
    let asked = !declared.columns.is_empty();
    let format = match &declared.format {
        Some(Clock::Ticks(ns, _)) => Some(Clock::Ticks(*ns, declared.start_ns.unwrap_or(0))),
        other => other.clone(),
    };
    if asked && let Some(format) = format {
        return Ok((declared.columns.clone(), format));
    }
    let kinds: Vec<Kind> = (0..names.len())
        .map(|at| if !asked || declared.columns.contains(&at) { seen[at].kind(&names[at]) } else { Kind::Nothing })
        .collect();
    let of = |fits: fn(&Kind) -> bool| (0..names.len()).filter(|at| fits(&kinds[*at])).collect::<Vec<usize>>();
    let quoted = |all: &[usize]| all.iter().map(|at| format!("`{}`", names[*at])).collect::<Vec<_>>().join(" and ");
    let whole = of(|kind| matches!(kind, Kind::Whole(_)));
    let named: Vec<usize> = whole.iter().copied().filter(|at| seen[*at].named).collect();
    let one = match (whole.as_slice(), named.as_slice()) {
        ([at], _) | (_, [at]) => Some(*at),
        ([], _) => None,
        _ => return Err((None, format!("{} hold times: name the clock by --time", quoted(&whole)))),
    };
    if let Some((at, Kind::Whole(clock))) = one.map(|at| (at, &kinds[at])) {
        let clock = format.unwrap_or_else(|| clock.clone());
        return Ok((vec![at], clock));
    }
    let (dates, times) = (of(|kind| matches!(kind, Kind::Date(..))), of(|kind| *kind == Kind::TimeOfDay));
    match (dates.as_slice(), times.as_slice()) {
        ([date], [time]) => {
            if let Kind::Date(order, _) = &kinds[*date] {
                return Ok((vec![*date, *time], Clock::Written(*order)));
            }
        }
        ([date], []) => {
            if let Kind::Date(order, true) = &kinds[*date] {
                return Ok((vec![*date], Clock::Written(*order)));
            }
        }
        _ => {}
    }
    // A declared format decides for the column whose cells alone do not.
    let unclear = of(|kind| matches!(kind, Kind::Unclear(..) | Kind::Elapsed(_)));
    if let (Some(format), [at]) = (format, unclear.as_slice()) {
        let columns = if times.len() == 1 && seen[*at].times == 0 { vec![*at, times[0]] } else { vec![*at] };
        return Ok((columns, format));
    }
    missing(names, &kinds, declared, (&dates, &times), &quoted)
}

/// No clock is certain: the first reason that there is.
fn missing(
    names: &[String],
    kinds: &[Kind],
    declared: &Declared,
    (dates, times): (&[usize], &[usize]),
    quoted: &dyn Fn(&[usize]) -> String,
) -> Found {
    for (at, kind) in kinds.iter().enumerate() {
        let name = &names[at];
        match (kind, declared.start_ns) {
            (Kind::Unclear(line, why), _) => {
                let advice = if why.contains("--time-format") {
                    String::new()
                } else {
                    format!(
                        "; name the clock and how it is written, such as --time \"{name}\" --time-format \"%d.%m.%y %H:%M:%S\""
                    )
                };
                return Err((Some(*line), format!("the clock in column `{name}`: {why}{advice}")));
            }
            (Kind::Elapsed(Some(ns)), Some(start)) => return Ok((vec![at], Clock::Ticks(*ns, start))),
            (Kind::Elapsed(unit), _) => {
                let also = if unit.is_some() { "" } else { " and its unit (--time-format s, ms, us or ns)" };
                return Err((
                    None,
                    format!(
                        "column `{name}` counts from the start of the recording: say when that was{also}, such as --start \
                         2026-03-12T10:00:00Z; days of a spreadsheet are --time-format spreadsheet, seconds of LabVIEW --start \
                         1904-01-01T00:00:00Z"
                    ),
                ));
            }
            _ => {}
        }
    }
    let why = match (dates, times) {
        ([], []) => {
            "no column is a clock: name it by --time COLUMN, or, if there is none, say how far rows are apart, such \
                     as --every 1 (seconds)"
                .into()
        }
        ([], times) => {
            format!(
                "{} has no date: name the column of the date too, --time DATE --time TIME; where the file has none, say how \
                 far rows are apart and when it began, such as --every 1 --start 2026-03-12T10:00:00Z",
                quoted(times)
            )
        }
        (dates, []) => format!("{} has dates without a time of day, and several rows of one date", quoted(dates)),
        (dates, times) => format!("dates stand in {}, times in {}: name both by --time", quoted(dates), quoted(times)),
    };
    Err((None, why))
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
