//! The rows of a file, three times: to see what each column is, to check the clock, and to play them.

use std::path::Path;

use super::{
    Recording, Rows,
    cells::{self, Form},
    clock::Seen,
    layout::Layout,
    text::Lines,
};
use crate::error::Fatal;

/// Gives the next line.
type NextLine = Box<dyn FnMut() -> Result<Option<String>, Fatal>>;

/// A row of values: its line, and its cells; `None` where it has another number of them than the header.
type Numbered = (u64, Option<Vec<String>>);

/// Rows of values as cells.
pub struct Cells {
    rows: Rows<NextLine>,
    after: u64,
    columns: usize,
    head: Vec<String>,
    /// Rows that repeat the header.
    pub repeated: u64,
}

impl Cells {
    pub(super) fn open(
        path: &Path,
        encoding: Option<&'static encoding_rs::Encoding>,
        layout: &Layout,
    ) -> Result<Self, Fatal> {
        let mut lines = Lines::open(path, encoding)?;
        let rows = Rows::new(Box::new(move || lines.next()) as NextLine, layout.separator);
        let (columns, head) = (layout.names.len(), layout.head.clone());
        Ok(Self { rows, after: layout.begins_after(), columns, head, repeated: 0 })
    }

    /// The next row of values.
    ///
    /// # Errors
    /// Where the file cannot be read or decoded on.
    pub fn next(&mut self) -> Result<Option<Numbered>, Fatal> {
        loop {
            let Some((line, mut cells)) = self.rows.next()? else { return Ok(None) };
            if line <= self.after || cells[0].starts_with('#') {
                continue;
            }
            if cells == self.head {
                self.repeated += 1;
                continue;
            }
            let idle = cells.len() > self.columns && cells[self.columns..].iter().all(String::is_empty);
            if idle {
                cells.truncate(self.columns);
            }
            let row = (cells.len() == self.columns).then_some(cells);
            return Ok(Some((line, row)));
        }
    }
}

type At = Option<(u64, String)>;

/// What all cells of a column are.
#[derive(Debug, Clone)]
pub struct Column {
    pub(super) clock: Seen,
    /// Numbers, by form.
    plain: u64,
    point: (u64, At),
    comma: (u64, At),
    point_or_thousands: u64,
    comma_or_thousands: (u64, At),
    /// Neither number nor empty.
    texts: (u64, At),
    cells: u64,
    /// Digits alone.
    whole: bool,
}

fn count(place: &mut (u64, At), line: u64, cell: &str) {
    place.0 += 1;
    place.1.get_or_insert_with(|| (line, cell.to_owned()));
}

impl Column {
    fn new(name: &str) -> Self {
        let none = || (0, None);
        Self {
            clock: Seen::new(name),
            plain: 0,
            point: none(),
            comma: none(),
            point_or_thousands: 0,
            comma_or_thousands: none(),
            texts: none(),
            cells: 0,
            whole: true,
        }
    }

    fn note(&mut self, line: u64, cell: &str) {
        self.clock.note(line, cell);
        if cells::is_none(cell) {
            self.whole = false;
            return;
        }
        self.cells += 1;
        self.whole &= cell.bytes().all(|b| b.is_ascii_digit());
        match cells::form(cell) {
            Some(Form::Plain) => self.plain += 1,
            Some(Form::Point) => count(&mut self.point, line, cell),
            Some(Form::Comma) => count(&mut self.comma, line, cell),
            Some(Form::PointOrThousands) => self.point_or_thousands += 1,
            Some(Form::CommaOrThousands) => count(&mut self.comma_or_thousands, line, cell),
            None => count(&mut self.texts, line, cell),
        }
    }

    fn numbers(&self, comma: bool) -> u64 {
        let signed = if comma { self.comma.0 } else { self.point.0 };
        self.plain + self.point_or_thousands + self.comma_or_thousands.0 + signed
    }

    /// The first cell that is no number.
    fn odd(&self, comma: bool) -> &At {
        let other = if comma { &self.point.1 } else { &self.comma.1 };
        let line = |at: &At| at.as_ref().map_or(u64::MAX, |(line, _)| *line);
        if line(other) < line(&self.texts.1) { other } else { &self.texts.1 }
    }
}

/// A column with numbers.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its place.
    pub at: usize,
    /// Its name in the file.
    pub name: String,
    /// All cells are whole numbers.
    pub whole: bool,
}

/// What a file holds.
pub struct Inspected {
    pub(super) columns: Vec<Column>,
    names: Vec<String>,
    rows: u64,
    /// Rows with another number of cells.
    odd: (u64, Option<u64>),
    repeated: u64,
}

/// Reads all rows.
pub fn inspect(
    path: &Path,
    encoding: Option<&'static encoding_rs::Encoding>,
    layout: &Layout,
) -> Result<Inspected, Fatal> {
    let mut cells = Cells::open(path, encoding, layout)?;
    let names = layout.names.clone();
    let mut seen = Inspected {
        columns: names.iter().map(|name| Column::new(name)).collect(),
        names,
        rows: 0,
        odd: (0, None),
        repeated: 0,
    };
    while let Some((line, row)) = cells.next()? {
        match row {
            Some(row) => {
                seen.rows += 1;
                seen.columns.iter_mut().zip(&row).for_each(|(column, cell)| column.note(line, cell));
            }
            None => {
                seen.odd.0 += 1;
                seen.odd.1.get_or_insert(line);
            }
        }
    }
    seen.repeated = cells.repeated;
    match (seen.rows, seen.odd.1) {
        (0, Some(line)) => Err(super::at(
            path,
            line,
            &format!("no row has {} columns, as the header in line {}", layout.names.len(), layout.header),
        )),
        (0, None) => Err(super::at(path, layout.begins_after(), "no row of values stands behind the header")),
        _ => Ok(seen),
    }
}

impl Inspected {
    /// Whether the decimal sign is a comma.
    ///
    /// # Errors
    /// The line of a cell against it, where it is not certain.
    pub fn comma(&self, clock: &[usize]) -> Result<bool, (u64, String)> {
        let others = || self.columns.iter().enumerate().filter(|(at, _)| !clock.contains(at)).map(|(_, column)| column);
        let first =
            |of: fn(&Column) -> &At| others().filter_map(|column| of(column).clone()).min_by_key(|(line, _)| *line);
        let (comma, point) = (first(|column| &column.comma.1), first(|column| &column.point.1));
        match (comma, point, first(|column| &column.comma_or_thousands.1)) {
            (Some((line, cell)), Some((other, with)), _) => Err((
                line.max(other),
                format!(
                    "`{cell}` (line {line}) has a decimal comma, `{with}` (line {other}) a decimal point: say which by --decimal"
                ),
            )),
            (Some(_), None, _) => Ok(true),
            (None, None, Some((line, cell))) => {
                Err((line, format!("`{cell}` has a decimal comma or is in thousands: say --decimal , or --decimal .")))
            }
            _ => Ok(false),
        }
    }

    /// The columns with numbers.
    pub fn found(&self, comma: bool) -> Vec<Found> {
        let all = self.columns.iter().zip(&self.names).enumerate().filter(|(_, (column, _))| column.numbers(comma) > 0);
        all.map(|(at, (column, name))| Found {
            at,
            name: name.clone(),
            whole: column.whole && column.cells == self.rows,
        })
        .collect()
    }

    /// Logs what is not played, or is played as bad.
    pub fn report(&self, recording: &Recording) {
        if let (n, Some(line)) = self.odd {
            let all = self.rows + n;
            recording.warn(&format!(
                "{n} of {all} rows have another number of columns than the header (first: line {line}): they are bad"
            ));
        }
        if self.repeated > 0 {
            recording.note(&format!("{} rows repeat the header and are passed over", self.repeated));
        }
        for (at, (column, name)) in self.columns.iter().zip(&self.names).enumerate() {
            if recording.clock_columns.contains(&at) {
                continue;
            }
            let numbers = column.numbers(recording.comma);
            match column.odd(recording.comma) {
                _ if column.cells == 0 => recording.note(&format!("column `{name}` is empty: it is no channel")),
                Some((line, cell)) if numbers == 0 => {
                    recording.warn(&format!(
                        "column `{name}` has no numbers (first: line {line}, `{cell}`): it is no channel"
                    ));
                }
                Some((line, cell)) => {
                    let (n, all) = (column.cells - numbers, column.cells);
                    let text = format!(
                        "column `{name}`: {n} of {all} cells are no numbers (first: line {line}, `{cell}`): they are bad"
                    );
                    recording.warn(&text);
                }
                None => {}
            }
        }
    }
}

/// A row to be played.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its time, ns since 1970; that of the row before where its clock cannot be read.
    pub t_ns: i64,
    /// The line for the decoder: time and numbers, separated by tabs.
    pub text: String,
}

/// The rows of a file in the form that decoders read.
pub struct Play {
    cells: Cells,
    recording: Recording,
    row: u64,
    t_ns: i64,
}

impl Play {
    pub(super) fn new(cells: Cells, recording: Recording) -> Self {
        Self { cells, row: 0, t_ns: recording.first_ns, recording }
    }

    fn row(&mut self, cells: Option<Vec<String>>) -> Row {
        let recording = &self.recording;
        let Some(cells) = cells else {
            // Columns are missing: one cell alone is not what any decoder here expects.
            return Row { t_ns: self.t_ns, text: "a row with another number of columns".into() };
        };
        let time = recording.clock_text(&cells);
        let own = recording.clock.t_ns(&time, self.row).filter(|ns| *ns >= 0);
        self.row += 1;
        self.t_ns = own.unwrap_or(self.t_ns);
        // One that cannot be read is bad at the decoder, too.
        let mut text = own.map_or_else(|| format!("unreadable: {}", time.replace('\t', " ")), |ns| ns.to_string());
        for (_, at, raw) in &recording.played {
            text.push('\t');
            let cell = &cells[*at];
            match cells::number(cell, recording.comma).filter(|_| !raw) {
                Some(number) => text.push_str(&number),
                None if cells::is_none(cell) && !raw => {}
                None => text.push_str(&cell.replace(['\t', '\n', '\r'], " ")),
            }
        }
        Row { t_ns: self.t_ns, text }
    }
}

impl Iterator for Play {
    type Item = Result<Row, Fatal>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.cells.next() {
            Ok(Some((_, cells))) => Some(Ok(self.row(cells))),
            Ok(None) => None,
            Err(why) => Some(Err(why)),
        }
    }
}
