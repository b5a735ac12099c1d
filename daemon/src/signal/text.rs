//! Lines of text into rows: separated values, fixed columns, labels with values, patterns, JSON. Pure. What a field's text
//! means is said once, in `number`.

use regex::bytes::{CaptureLocations, Regex};

use super::{
    json::{self, Path},
    number::{Numbers, Reading},
    row::{Column, Refused, Row, Scales},
    time::parse_time,
};
use crate::{
    config::{Base, Channel, Format, KeyValue, Source, Span, TimeFormat},
    flow::{Quality, Stamp, Why},
};

#[derive(Debug)]
enum Shape {
    Csv { delimiter: u8, columns: Vec<Column> },
    Fixed { columns: Vec<(Span, Column)>, least: usize, width: usize },
    KeyValue(Labels),
    Pattern(Vec<Kind>),
    Json { columns: Vec<(Path, Column)> },
}

/// One kind of line.
#[derive(Debug)]
struct Kind {
    expression: Regex,
    places: CaptureLocations,
    /// By number of the capture.
    columns: Vec<(usize, Column)>,
}

/// The label of a column, and which part of its value is meant.
#[derive(Debug, Clone)]
struct Label {
    /// As it is written: a label may be called so.
    whole: String,
    /// `0-1:24.2.1[1]`: the label without the number, and the number of the part.
    part: Option<(String, usize)>,
}

impl Label {
    fn new(text: &str) -> Self {
        let inner = text.strip_suffix(']').and_then(|inner| inner.rsplit_once('['));
        let part = inner.and_then(|(label, n)| Some((label.to_owned(), n.parse().ok()?)));
        Self { whole: text.to_owned(), part: part.filter(|(label, _)| !label.is_empty()) }
    }

    /// What of the value behind this label is meant; `None`: it is another label.
    fn of<'a>(&self, label: &[u8], value: &'a [u8], label_end: u8) -> Option<&'a [u8]> {
        if self.whole.as_bytes() == label {
            return Some(value);
        }
        let (_, n) = self.part.as_ref().filter(|(own, _)| own.as_bytes() == label)?;
        // A part that is not there is no number.
        Some(value.split(|byte| *byte == label_end).nth(*n).unwrap_or_default())
    }
}

/// Labels with values.
#[derive(Debug)]
struct Labels {
    form: KeyValue,
    columns: Vec<(Label, Column)>,
    /// Which of them came in this line, or in this block.
    seen: Vec<bool>,
    /// The block so far, and when it began.
    block: Row,
    began_ns: Option<u64>,
    /// A block that began longer ago than this is not continued.
    stale_ns: u64,
}

/// Reads fields into a row.
#[derive(Debug)]
struct Fields {
    /// By channel.
    numbers: Vec<Numbers>,
    time: TimeFormat,
    /// Date and time of day are two columns.
    dated: bool,
    /// Base of the sensor's sequence.
    radix: u32,
    scales: Scales,
}

/// Decodes the lines of one source.
#[derive(Debug)]
pub struct Text {
    shape: Shape,
    fields: Fields,
}

impl Text {
    /// A decoder for `source`, whose channels are `channels` in this order; `None` where its frames are no text.
    pub fn new(source: &Source, channels: &[&Channel]) -> Option<Self> {
        let column = |name: &String| Column {
            seq: source.seq.as_ref() == Some(name),
            time: source.time.as_ref().is_some_and(|(time, _)| time == name),
            date: source.date.as_ref() == Some(name),
            channels: (0..channels.len()).filter(|i| channels[*i].column == *name).collect(),
        };
        let shape = match &source.format {
            Format::Csv { delimiter, columns } => {
                Shape::Csv { delimiter: *delimiter, columns: columns.iter().map(column).collect() }
            }
            Format::Fixed { columns, width } => Shape::Fixed {
                columns: columns.iter().map(|span| (span.clone(), column(&span.column))).collect(),
                least: columns.iter().map(|span| span.to).max().unwrap_or(0),
                width: *width,
            },
            Format::KeyValue(form) => {
                let labelled = |name: &String| (Label::new(name), column(name));
                let columns: Vec<_> = names(source, channels).iter().map(labelled).collect();
                Shape::KeyValue(Labels {
                    form: form.clone(),
                    seen: vec![false; columns.len()],
                    columns,
                    block: Row::default(),
                    began_ns: None,
                    stale_ns: source.stale_ms * 1_000_000,
                })
            }
            Format::Pattern(patterns) => {
                // `check` compiled them.
                let compiled = patterns.iter().filter_map(|pattern| pattern.compile().ok());
                let kind = |expression: Regex| Kind {
                    places: expression.capture_locations(),
                    columns: (expression.capture_names().enumerate())
                        .filter_map(|(i, name)| Some((i, column(&name?.to_owned()))))
                        .collect(),
                    expression,
                };
                Shape::Pattern(compiled.map(kind).collect())
            }
            Format::Json => {
                let names = names(source, channels);
                Shape::Json { columns: names.iter().map(|name| (Path::new(name), column(name))).collect() }
            }
            _ => return None,
        };
        let radix = match source.numbers.base {
            Base::Decimal => 10,
            Base::Hex(_) => 16,
            Base::Binary => 2,
        };
        let fields = Fields {
            numbers: channels.iter().map(|channel| Numbers::new(&channel.numbers)).collect(),
            time: source.time.as_ref().map_or(TimeFormat::Unit(1), |(_, format)| format.clone()),
            dated: source.date.is_some(),
            radix,
            scales: Scales::new(channels),
        };
        Some(Self { shape, fields })
    }

    /// Decodes one line into `row`; `false`: it makes none.
    pub fn decode(&mut self, frame: &[u8], stamp: Stamp, row: &mut Row) -> Result<bool, Refused> {
        let line = bare(frame);
        if line.is_empty() && !frame.is_empty() && frame.iter().all(|byte| SIGNALS.contains(byte)) {
            // What says only that a device heard, or that text begins or ends, is no line.
            return Ok(false);
        }
        let text = || std::str::from_utf8(line).map_err(|_| Refused::NotText);
        let fields = &self.fields;
        match &mut self.shape {
            Shape::Csv { delimiter, columns } => {
                fields.scales.clear(row, Quality::Missing);
                let text = text()?;
                match *delimiter {
                    b' ' => fields.csv(text.split_ascii_whitespace(), columns, row),
                    delimiter => fields.csv(Split { text, delimiter, done: false }, columns, row),
                }
            }
            Shape::Fixed { columns, least, width } => {
                fields.scales.clear(row, Quality::Missing);
                // A line that is cut, or longer, has its numbers at other places.
                if line.len() < *least || line.len() > *width {
                    return Err(Refused::Columns);
                }
                for (span, column) in columns {
                    fields.put(row, column, line.get(span.from..span.to).unwrap_or_default())?;
                }
                Ok(true)
            }
            Shape::KeyValue(labels) => labels.decode(line, stamp.boot_ns, fields, row),
            Shape::Pattern(kinds) => pattern(line, kinds, fields, row),
            Shape::Json { columns } => {
                fields.scales.clear(row, Quality::Missing);
                fields.json(text()?, columns, row)
            }
        }
    }

    /// What follows does not join what was before.
    pub fn reset(&mut self) {
        if let Shape::KeyValue(labels) = &mut self.shape {
            labels.began_ns = None;
        }
    }
}

/// The columns that a source's lines name themselves: those that are used.
fn names(source: &Source, channels: &[&Channel]) -> Vec<String> {
    let own = source.seq.iter().chain(source.time.iter().map(|(column, _)| column)).chain(&source.date);
    let mut names: Vec<String> = own.chain(channels.iter().map(|channel| &channel.column)).cloned().collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// STX, ETX, EOT, ENQ, ACK, XON, XOFF, NAK.
const SIGNALS: [u8; 8] = [2, 3, 4, 5, 6, 0x11, 0x13, 0x15];

/// Without the mark of UTF-8 at its start, and without control characters around it (STX, ETX, XON).
fn bare(frame: &[u8]) -> &[u8] {
    let control = |b: &u8| *b < b' ' && *b != b'\t' || *b == 0x7f;
    let frame = frame.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(frame);
    let from = frame.iter().position(|b| !control(b)).unwrap_or(frame.len());
    let to = frame.iter().rposition(|b| !control(b)).map_or(from, |last| last + 1);
    &frame[from..to]
}

fn pattern(line: &[u8], kinds: &mut [Kind], fields: &Fields, row: &mut Row) -> Result<bool, Refused> {
    let line = line.trim_ascii();
    for Kind { expression, places, columns } in kinds {
        if expression.captures_read(places, line).is_none() {
            continue;
        }
        fields.scales.clear(row, Quality::Absent);
        for (i, column) in columns.iter() {
            match places.get(*i).and_then(|(from, to)| line.get(from..to)) {
                Some(field) => fields.put(row, column, field)?,
                None => fields.none(row, column)?,
            }
        }
        return Ok(!columns.is_empty());
    }
    Err(Refused::Unmatched)
}

impl Fields {
    /// One field to where it belongs.
    fn put(&self, row: &mut Row, column: &Column, field: &[u8]) -> Result<(), Refused> {
        if column.is_own() {
            self.own(row, column, std::str::from_utf8(field).unwrap_or_default().trim_ascii())?;
        }
        for channel in &column.channels {
            self.scales.put(row, *channel, self.numbers[*channel].read_bytes(field));
        }
        Ok(())
    }

    /// A column without a field.
    fn none(&self, row: &mut Row, column: &Column) -> Result<(), Refused> {
        match (column.seq, column.time || column.date) {
            (true, _) => return Err(Refused::Sequence),
            (_, true) => return Err(Refused::Clock),
            _ => column.channels.iter().for_each(|channel| self.scales.put(row, *channel, Reading::Missing)),
        }
        Ok(())
    }

    /// The sensor's own sequence and clock.
    fn own(&self, row: &mut Row, column: &Column, field: &str) -> Result<(), Refused> {
        if column.seq {
            let digits = field.strip_prefix("0x").filter(|_| self.radix == 16).unwrap_or(field);
            row.seq = Some(u64::from_str_radix(digits, self.radix).map_err(|_| Refused::Sequence)?);
        }
        match (column.date || column.time, self.dated) {
            (true, true) => self.dated(row, column, field),
            (true, false) => {
                row.t_ns = Some(parse_time(field, &self.time).ok_or(Refused::Clock)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Date or time of day; with the second of them the clock is known.
    fn dated(&self, row: &mut Row, column: &Column, field: &str) -> Result<(), Refused> {
        let [date, time] = &mut row.written;
        let part = if column.date { &mut *date } else { &mut *time };
        part.clear();
        part.push_str(field);
        if date.is_empty() || time.is_empty() {
            return if field.is_empty() { Err(Refused::Clock) } else { Ok(()) };
        }
        date.push(' ');
        date.push_str(time);
        row.t_ns = Some(parse_time(date, &self.time).ok_or(Refused::Clock)?);
        date.clear();
        Ok(())
    }

    fn csv<'a>(
        &self,
        mut texts: impl Iterator<Item = &'a str>,
        columns: &[Column],
        row: &mut Row,
    ) -> Result<bool, Refused> {
        for column in columns {
            let field = texts.next().ok_or(Refused::Columns)?.trim_ascii();
            if column.is_own() {
                self.own(row, column, field)?;
            }
            for channel in &column.channels {
                self.scales.put(row, *channel, self.numbers[*channel].read(field));
            }
        }
        if texts.next().is_some() { Err(Refused::Columns) } else { Ok(true) }
    }

    fn json(&self, text: &str, columns: &[(Path, Column)], row: &mut Row) -> Result<bool, Refused> {
        let line = json::parse(text).ok_or(Refused::NotJson)?;
        for (path, column) in columns {
            let Some(value) = path.find(&line) else {
                self.none(row, column)?;
                continue;
            };
            if column.is_own() {
                let text = value.as_str().map_or_else(|| value.to_string(), |text| text.trim_ascii().to_owned());
                self.own(row, column, &text)?;
            }
            for channel in &column.channels {
                self.scales.put(row, *channel, json::reading(value, &self.numbers[*channel]));
            }
        }
        Ok(true)
    }
}

impl Labels {
    fn decode(&mut self, line: &[u8], now_ns: u64, fields: &Fields, row: &mut Row) -> Result<bool, Refused> {
        // With a checksum of the whole, all lines of a block come as one frame.
        let whole = self.form.block_check.is_some();
        if self.form.block_end.is_some() && !whole {
            return self.block(line, now_ns, fields, row);
        }
        let quality = if self.form.delimiter.is_some() || whole { Quality::Missing } else { Quality::Absent };
        fields.scales.clear(row, quality);
        self.seen.fill(false);
        let (mut pairs, mut wanted) = (0, 0);
        let lines = line.split(|byte| whole && matches!(byte, b'\r' | b'\n'));
        for (label, value) in lines.flat_map(|line| pairs_of(line, &self.form)) {
            pairs += 1;
            for (at, (own, column)) in self.columns.iter().enumerate() {
                let Some(value) = own.of(label, value, self.form.label_end) else { continue };
                wanted += 1;
                if std::mem::replace(&mut self.seen[at], true) {
                    // Which of the two is meant?
                    let bad = Reading::Bad(Why::NotANumber);
                    column.channels.iter().for_each(|channel| fields.scales.put(row, *channel, bad));
                } else {
                    fields.put(row, column, value)?;
                }
            }
        }
        if pairs == 0 {
            return Err(Refused::Unmatched);
        }
        if wanted > 0 {
            self.whole(row)?;
        }
        Ok(wanted > 0)
    }

    /// A line of a block; the row is ready with the block's last label.
    fn block(&mut self, line: &[u8], now_ns: u64, fields: &Fields, row: &mut Row) -> Result<bool, Refused> {
        let (form, columns) = (&self.form, &self.columns);
        let end = form.block_end.as_deref().unwrap_or_default().as_bytes();
        let (mut pairs, mut ended, mut broken) = (0, false, false);
        for (label, value) in pairs_of(line, form) {
            pairs += 1;
            let last = end == label;
            let of = |own: &Label| own.of(label, value, form.label_end);
            let again = columns.iter().zip(&self.seen).any(|((own, _), seen)| *seen && of(own).is_some());
            let old = self.began_ns.is_some_and(|began| now_ns.saturating_sub(began) > self.stale_ns);
            if self.began_ns.is_some() && (old || again) {
                // The block before has no end.
                (broken, self.began_ns) = (true, None);
            }
            if !last && !columns.iter().any(|(own, _)| of(own).is_some()) {
                continue;
            }
            if self.began_ns.is_none() {
                self.began_ns = Some(now_ns);
                fields.scales.clear(&mut self.block, Quality::Missing);
                self.seen.fill(false);
            }
            for (seen, (own, column)) in self.seen.iter_mut().zip(columns) {
                let Some(value) = of(own) else { continue };
                *seen = true;
                if let Err(why) = fields.put(&mut self.block, column, value) {
                    self.began_ns = None;
                    return Err(why);
                }
            }
            ended |= last;
        }
        if pairs == 0 && is_bare_end(line, end) {
            // `!` of a smart meter has no value; without a block before it, it is the end of none.
            (pairs, ended) = (1, self.began_ns.is_some());
        }
        if ended {
            self.began_ns = None;
            std::mem::swap(&mut self.block, row);
            self.whole(row)?;
            return Ok(self.seen.contains(&true));
        }
        match (pairs, broken) {
            (0, _) => Err(Refused::Unmatched),
            (_, true) => Err(Refused::Columns),
            _ => Ok(false),
        }
    }

    /// Sequence and clock are there where they are declared.
    fn whole(&self, row: &Row) -> Result<(), Refused> {
        let declared = |own: fn(&Column) -> bool| self.columns.iter().any(|(_, column)| own(column));
        match () {
            _ if row.seq.is_none() && declared(|column| column.seq) => Err(Refused::Sequence),
            _ if row.t_ns.is_none() && declared(|column| column.time) => Err(Refused::Clock),
            _ => Ok(()),
        }
    }
}

/// A line that is the last label of a block without a value: `!`, also with a checksum directly behind it, `!E47C`.
fn is_bare_end(line: &[u8], end: &[u8]) -> bool {
    let line = line.trim_ascii();
    line == end || line.starts_with(end) && !end.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// Labels and values of a line, without blanks around them. What has no label is passed over.
fn pairs_of<'a>(line: &'a [u8], form: &KeyValue) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
    let (delimiter, label_end) = (form.delimiter, form.label_end);
    let is_delimiter = move |b: &u8| match delimiter {
        Some(b' ') => matches!(b, b' ' | b'\t'),
        other => Some(*b) == other,
    };
    line.split(is_delimiter).filter_map(move |pair| {
        let pair = if label_end == b'\t' { pair } else { pair.trim_ascii() };
        let at = memchr::memchr(label_end, pair)?;
        Some((pair[..at].trim_ascii(), pair[at + 1..].trim_ascii()))
    })
}

/// Fields of a line; an empty last field counts. One in quotes may hold the separator.
struct Split<'a> {
    text: &'a str,
    delimiter: u8,
    done: bool,
}

impl<'a> Iterator for Split<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.done {
            return None;
        }
        if matches!(self.text.as_bytes().first(), Some(b'"' | b' '))
            && let Some(field) = self.quoted()
        {
            return Some(field);
        }
        match memchr::memchr(self.delimiter, self.text.as_bytes()) {
            Some(at) => {
                let (field, rest) = (self.text.get(..at)?, self.text.get(at + 1..)?);
                self.text = rest;
                Some(field)
            }
            None => {
                self.done = true;
                Some(self.text)
            }
        }
    }
}

impl<'a> Split<'a> {
    /// A field in quotes, up to the separator behind it. A quote inside is written twice; one that never ends takes the rest.
    fn quoted(&mut self) -> Option<&'a str> {
        let inner = self.text.trim_start_matches(' ').strip_prefix('"')?;
        let (bytes, mut end) = (inner.as_bytes(), 0);
        while let Some(at) = memchr::memchr(b'"', bytes.get(end..)?) {
            end += at;
            if bytes.get(end + 1) != Some(&b'"') {
                let rest = inner.get(end + 1..)?.trim_start_matches(' ');
                match rest.as_bytes().first() {
                    None => self.done = true,
                    Some(byte) if *byte == self.delimiter => self.text = rest.get(1..)?,
                    Some(_) => return None,
                }
                return inner.get(..end);
            }
            end += 2;
        }
        self.done = true;
        Some(inner)
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
