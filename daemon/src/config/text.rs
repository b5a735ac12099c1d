//! Text on a line: how a line ends and is checked, and the formats `fixed`, `keyvalue` and `pattern`; clocks by patterns.

use jiff::fmt::strtime;

use super::{
    Check, CheckKind, Format, Framing, Serial, SettingError, TimeFormat,
    parts::twice,
    raw::{Node, Table, Value},
};
use crate::limits;

/// How lines end and are checked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LineForm {
    /// What ends a line; empty: LF, CR LF or CR.
    pub end: Vec<u8>,
    /// The checksum at its end.
    pub check: Option<LineCheck>,
    /// Lines come in blocks that have one checksum; the block is the frame then.
    pub block: Option<Box<BlockForm>>,
}

/// How a block of lines ends.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockForm {
    /// The label of its last line, at the beginning of that line.
    pub label: Vec<u8>,
    /// What stands between label and check.
    pub label_end: u8,
    /// What stands behind.
    pub check: BlockCheck,
}

/// The checksum of a block of lines, behind its last label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BlockCheck {
    /// One byte that makes the sum of all bytes since the previous block 0.
    Zero8,
    /// Hexadecimal digits over the block's first character to the digits.
    Digits(CheckKind),
}

impl BlockCheck {
    /// How many bytes it takes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Zero8 => 1,
            Self::Digits(kind) => 2 * kind.bytes(),
        }
    }
}

/// A checksum at the end of a line, as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LineCheck {
    /// Which checksum.
    pub kind: CheckKind,
    /// Least significant byte first; usual is the other order, as digits are written.
    pub little: bool,
    /// Number of bytes at the line's start that are not covered.
    pub skip: usize,
    /// What stands between the covered text and the digits.
    pub mark: Option<u8>,
    /// The mark is covered as well.
    pub covers_mark: bool,
}

/// A column between two places of a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Column.
    pub column: String,
    /// First byte.
    pub from: usize,
    /// The byte behind the last.
    pub to: usize,
}

/// Labels with values.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyValue {
    /// What stands between two pairs; `None`: a line is one pair.
    pub delimiter: Option<u8>,
    /// What stands between label and value.
    pub label_end: u8,
    /// The last label of a block of lines that makes one row; `None`: each line is a row.
    pub block_end: Option<String>,
    /// The checksum behind that label: a frame is a whole block then.
    pub block_check: Option<BlockCheck>,
}

/// One kind of line.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    /// The regular expression; it covers the whole line.
    pub expression: String,
    /// The names of its captures: columns.
    pub columns: Vec<String>,
}

impl Pattern {
    /// Parses the expression.
    ///
    /// # Errors
    /// Where it is no regular expression, or a larger one than `limits` allow.
    pub fn new(expression: &str) -> Result<Self, SettingError> {
        let parsed = Self { expression: expression.to_owned(), columns: Vec::new() }.compile()?;
        let columns = parsed.capture_names().flatten().map(str::to_owned).collect();
        Ok(Self { expression: expression.to_owned(), columns })
    }

    /// The expression over a whole line. It works on bytes: a device's text may have any encoding.
    ///
    /// # Errors
    /// See `new`.
    pub fn compile(&self) -> Result<regex::bytes::Regex, SettingError> {
        regex::bytes::RegexBuilder::new(&format!("^(?:{})$", self.expression))
            .unicode(false)
            .size_limit(limits::PATTERN_BYTES)
            .dfa_size_limit(limits::PATTERN_BYTES)
            .nest_limit(limits::PATTERN_DEPTH)
            .build()
            .map_err(|why| {
                SettingError(match why {
                    regex::Error::CompiledTooBig(_) => {
                        format!("is larger than {} KiB when compiled", limits::PATTERN_BYTES / 1024)
                    }
                    // The last line says what is wrong; those before it draw where.
                    why => why.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
                })
            })
    }
}

/// What ends a line and how it is checked. `check`: as read for all framings.
pub(super) fn line_form(t: &mut Table<'_>, framing: &Framing, check: Option<Check>) -> LineForm {
    let end = t.str("line_end");
    let (mark, covers) = (t.str("check_mark"), t.bool("check_covers_mark"));
    let lines = *framing == Framing::Lines;
    for key in ["line_end", "check_mark", "check_covers_mark"] {
        if t.has(key) && !lines {
            t.problem(key, "belongs to `framing = \"lines\"`");
        } else if t.has(key) && key != "line_end" && check.is_none() {
            t.problem(key, "needs `check` beside it");
        }
    }
    if let Some((name, bytes)) = end.as_deref().and_then(named_end) {
        t.problem("line_end", format!("`{name}` are letters here: write `line_end = \"{bytes}\"`, in double quotes"));
    }
    let end = end.map(String::into_bytes).unwrap_or_default();
    if t.has("line_end") && !(1..=limits::LINE_END_BYTES).contains(&end.len()) {
        t.problem("line_end", format!("must be 1 to {} bytes, such as \";\" or \"\\u0003\"", limits::LINE_END_BYTES));
    }
    let end = if matches!(end.as_slice(), b"\n" | b"\r\n" | b"\r") { Vec::new() } else { end };
    let mark = match mark.as_deref().map(str::as_bytes) {
        None => Some(b'*'),
        Some([]) => None,
        Some([mark]) => Some(*mark),
        Some(_) => {
            t.problem("check_mark", "must be one character; empty where the digits follow the text without one");
            None
        }
    };
    let check = check.filter(|_| lines).map(|check| LineCheck {
        kind: check.kind,
        little: check.little && t.has("check_order"),
        skip: check.skip,
        mark,
        covers_mark: covers.unwrap_or(false),
    });
    LineForm { end, check, block: None }
}

/// The end that a name such as `CRLF` means, or an escape that single quotes left as it was, and how it is written.
fn named_end(text: &str) -> Option<(&str, &'static str)> {
    let bare: String = text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '\\').collect();
    let written = match bare.to_ascii_lowercase().as_str() {
        "crlf" | "\\r\\n" | "0x0d0x0a" => "\\r\\n",
        "cr" | "\\r" | "0x0d" => "\\r",
        "lf" | "nl" | "\\n" | "0x0a" => "\\n",
        "stx" | "0x02" => "\\u0002",
        "etx" | "0x03" => "\\u0003",
        _ => return None,
    };
    Some((text, written))
}

/// One character between columns or pairs.
fn one(t: &mut Table<'_>, key: &'static str) -> Option<u8> {
    let text = t.str(key)?;
    match text.as_bytes() {
        [byte] => Some(*byte),
        _ => {
            t.problem(
                key,
                "must be one character, `\"\\t\"` for a tab; `\" \"` stands for any number of blanks and tabs",
            );
            None
        }
    }
}

/// The keys of the text formats, and which format each belongs to.
pub(super) const KEYS: [&str; 6] = ["columns", "delimiter", "label_end", "block_end", "block_check", "patterns"];

/// Which of `KEYS` a format has.
pub(super) fn keys(word: &str) -> &'static [&'static str] {
    match word {
        "csv" => &["columns", "delimiter"],
        "fixed" => &["columns"],
        "keyvalue" => &["delimiter", "label_end", "block_end", "block_check"],
        "pattern" => &["patterns"],
        _ => &[],
    }
}

/// `format = "csv"`
pub(super) fn csv(t: &mut Table<'_>) -> Format {
    let delimiter = one(t, "delimiter").unwrap_or(b',');
    let columns = t.strs("columns").unwrap_or_default();
    if columns.is_empty() && !t.has("columns") {
        t.problem("columns", "is needed: the names of all columns, in order; an empty name skips one");
    }
    let columns: Vec<String> = columns.into_iter().map(|name| if name == "_" { String::new() } else { name }).collect();
    repeated(t, "columns", columns.iter());
    Format::Csv { delimiter, columns }
}

/// `columns = ["state:2", "_:1", "kg:9"]`
pub(super) fn fixed(t: &mut Table<'_>) -> Format {
    let texts = t.strs("columns").unwrap_or_default();
    if texts.is_empty() {
        t.problem(
            "columns",
            "is needed: name and width of each column, such as `\"kg:9\"`; `\"_:2\"` skips two characters",
        );
    }
    let (mut columns, mut width) = (Vec::new(), 0);
    for text in &texts {
        let parts = text.rsplit_once(':').and_then(|(name, n)| Some((name.trim(), n.trim().parse::<usize>().ok()?)));
        match parts.filter(|(_, n)| (1..=limits::FRAME_BYTES_MAX).contains(n)) {
            None => t.problem("columns", format!("`{text}` is invalid: expected NAME:WIDTH, such as `kg:9`")),
            Some((name, n)) => {
                if !matches!(name, "" | "_") {
                    columns.push(Span { column: name.to_owned(), from: width, to: width + n });
                }
                width += n;
            }
        }
    }
    if width > limits::FRAME_BYTES_MAX {
        t.problem("columns", format!("{width} characters are more than {}", limits::FRAME_BYTES_MAX));
    }
    repeated(t, "columns", columns.iter().map(|span| &span.column));
    Format::Fixed { columns, width }
}

/// `format = "keyvalue"`
pub(super) fn keyvalue(t: &mut Table<'_>) -> Format {
    let delimiter = one(t, "delimiter");
    let label_end = one(t, "label_end").unwrap_or(b'=');
    let block_end = t.str("block_end").map(|label| label.trim().to_owned());
    if delimiter == Some(label_end) {
        t.problem("delimiter", "is what stands behind a label as well (`label_end`)");
    }
    if block_end.as_ref().is_some_and(String::is_empty) {
        t.problem("block_end", "must be the label of the last line of a block");
    }
    // Of a block, this one is a byte of its own and no digits.
    let digits = CheckKind::NAMES.into_iter().filter(|(_, kind)| *kind != CheckKind::Zero8);
    let digits = digits.map(|(name, kind)| (name, BlockCheck::Digits(kind)));
    let checks: Vec<_> = [("sum8-zero", BlockCheck::Zero8)].into_iter().chain(digits).collect();
    let block_check = t.word("block_check", &checks);
    if t.has("block_check") && block_end.is_none() {
        t.problem("block_check", "needs `block_end` beside it: the label of the line with the checksum");
    }
    Format::KeyValue(KeyValue { delimiter, label_end, block_end, block_check })
}

/// Blocks of lines with one checksum are cut as a whole, where the format says so.
pub(super) fn block(t: &mut Table<'_>, serial: &mut Serial, format: &Format) {
    let checked = |format: &Format| match format {
        Format::KeyValue(KeyValue { block_check: Some(check), block_end, label_end, .. }) => {
            let label = block_end.clone().unwrap_or_default().into_bytes();
            Some(BlockForm { label, label_end: *label_end, check: *check })
        }
        _ => None,
    };
    let one = checked(format);
    let of_an_answer = matches!(format, Format::Answers(all) if all.iter().any(|format| checked(format).is_some()));
    if serial.poll.is_some() && (of_an_answer || one.is_some()) {
        t.problem("block_check", "is for a device that sends its blocks unasked");
    }
    if one.is_some() {
        for key in ["check", "line_end"] {
            if t.has(key) {
                t.problem(
                    key,
                    "is of single lines; `block_check` is of a whole block, whose lines end with LF, CR LF or CR",
                );
            }
        }
    }
    serial.lines.block = one.filter(|form| !form.label.is_empty()).map(Box::new);
}

/// `patterns = ['(?<kg>[-+0-9.]+) kg']`
pub(super) fn pattern(t: &mut Table<'_>) -> Format {
    let texts = t.strs("patterns").unwrap_or_default();
    if texts.is_empty() {
        let text = "is needed: a regular expression for each kind of line, such as `'(?<kg>[-+0-9.]+) kg'`; its named \
                    groups are the columns";
        t.problem("patterns", text);
    }
    if texts.len() > limits::PATTERNS {
        t.problem("patterns", format!("{} patterns are more than {}", texts.len(), limits::PATTERNS));
    }
    let mut all = Vec::new();
    for text in texts.iter().take(limits::PATTERNS) {
        match Pattern::new(text) {
            Ok(pattern) => all.push(pattern),
            Err(why) => t.problem("patterns", format!("`{text}`: {why}")),
        }
    }
    let none = all.iter().all(|pattern: &Pattern| pattern.columns.is_empty());
    if none && !all.is_empty() {
        t.problem("patterns", "have no named group `(?<NAME>…)`, so no line gives a value");
    }
    Format::Pattern(all)
}

/// Reports a name that occurs twice; columns without one are skipped.
fn repeated<'a>(t: &mut Table<'_>, key: &str, names: impl Iterator<Item = &'a String>) {
    let names: Vec<String> = names.filter(|name| !name.is_empty()).cloned().collect();
    if let Some(twice) = twice(&names) {
        t.problem(key, format!("`{twice}` stands twice"));
    }
}

/// `time_format`: a word, a pattern such as `%d/%m/%Y %H:%M:%S`, or a list of patterns of which the first that fits counts.
pub(super) fn time_format(t: &mut Table<'_>) -> Option<TimeFormat> {
    const WORDS: [(&str, TimeFormat); 5] = [
        ("ns", TimeFormat::Unit(1)),
        ("us", TimeFormat::Unit(1_000)),
        ("ms", TimeFormat::Unit(1_000_000)),
        ("s", TimeFormat::Unit(1_000_000_000)),
        ("civil", TimeFormat::Civil),
    ];
    let node = t.node("time_format")?;
    let texts = match node.value {
        Value::Str(text) => match WORDS.iter().find(|(word, _)| *word == text) {
            Some((_, format)) => return Some(format.clone()),
            None => vec![text],
        },
        Value::List(items) => {
            let text = |item: Node| if let Value::Str(text) = item.value { text } else { String::new() };
            items.into_iter().map(text).collect()
        }
        _ => Vec::new(),
    };
    if texts.is_empty() || texts.len() > limits::TIME_PATTERNS {
        t.problem("time_format", format!("must be a text, or a list of 1 to {} patterns", limits::TIME_PATTERNS));
        return None;
    }
    for text in &texts {
        if let Err(why) = time_pattern(text) {
            t.problem("time_format", format!("`{text}`: {why}"));
        }
    }
    Some(TimeFormat::Patterns(texts))
}

/// `time`: the column with the clock, or a list of two: the column with the date and the one with the time of day.
pub(super) fn time_columns(t: &mut Table<'_>, format: Option<&TimeFormat>) -> Option<(Option<String>, String)> {
    let mut names = match t.node("time")?.value {
        Value::Str(text) => vec![text],
        Value::List(items) => {
            let text = |item: Node| if let Value::Str(text) = item.value { Some(text) } else { None };
            items.into_iter().map(text).collect::<Option<Vec<_>>>().unwrap_or_default()
        }
        _ => Vec::new(),
    };
    if !(1..=2).contains(&names.len()) || names.iter().any(String::is_empty) {
        t.problem(
            "time",
            "must be the name of a column, or a list of two: the one with the date, the one with the time of day",
        );
        return None;
    }
    if names.len() == 2 && names[0] == names[1] {
        t.problem("time", format!("`{}` stands twice", names[0]));
    }
    if names.len() == 2 && matches!(format, Some(TimeFormat::Unit(_))) {
        t.problem("time_format", "must be `civil` or a pattern where date and time of day are two columns");
    }
    let time = names.pop()?;
    Some((names.pop(), time))
}

/// Whether a pattern gives a date and a time of day: a known time is written and read again, and what the pattern cannot say
/// differs then.
///
/// # Errors
/// What it lacks.
pub fn time_pattern(pattern: &str) -> Result<(), SettingError> {
    if !pattern.contains('%') {
        return Err("expected one of `ns`, `us`, `ms`, `s`, `civil`, or a pattern such as `%d/%m/%Y %H:%M:%S`".into());
    }
    let known = jiff::civil::date(2031, 5, 27).at(22, 41, 0, 0);
    let zoned = known.to_zoned(jiff::tz::TimeZone::UTC).map_err(|why| why.to_string())?;
    let written = strtime::format(pattern, &zoned).map_err(|why| why.to_string())?;
    let read = strtime::parse(pattern, &written).map_err(|why| why.to_string())?;
    let at = match read.timestamp() {
        Some(at) => at.to_zoned(jiff::tz::TimeZone::UTC).datetime(),
        None if read.hour().is_none() => return Err("has no time of day: all rows of a day would have one time".into()),
        None => read.to_datetime().map_err(|_| "has no whole date: year, month and day are needed".to_owned())?,
    };
    if at == known { Ok(()) } else { Err("does not say which minute it is: `%I` needs `%p`, `%H` needs `%M`".into()) }
}
