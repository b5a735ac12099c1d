//! Cells of a line, and the numbers that people and loggers write in them. Pure.
//!
//! A number is normalised to what every decoder here reads: digits, one decimal point, perhaps an exponent. Which of point
//! and comma is the decimal sign is decided for the whole file, from cells that can only mean one of them.

/// What stands between cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// This character.
    One(char),
    /// Any number of blanks and tabs.
    Blanks,
}

impl Separator {
    /// What is tried, the first of equals wins. Where a semicolon and a comma divide a file equally well, the comma is the
    /// decimal sign.
    pub const TRIED: [Self; 5] = [Self::One('\t'), Self::One(';'), Self::One('|'), Self::One(','), Self::Blanks];

    /// `--separator`: the character itself or its name.
    ///
    /// # Errors
    /// With what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut letters = text.chars();
        match (text, letters.next(), letters.next()) {
            ("tab" | "\\t", ..) => Ok(Self::One('\t')),
            ("comma", ..) => Ok(Self::One(',')),
            ("semicolon", ..) => Ok(Self::One(';')),
            ("blanks" | " ", ..) => Ok(Self::Blanks),
            (_, Some(one), None) if !one.is_alphanumeric() && one != '"' => Ok(Self::One(one)),
            _ => Err("must be one character, or one of comma, semicolon, tab, blanks".into()),
        }
    }

    /// In words, for messages.
    pub fn words(self) -> String {
        match self {
            Self::One('\t') => "tab".into(),
            Self::One(one) => format!("`{one}`"),
            Self::Blanks => "blanks".into(),
        }
    }

    fn is(self, letter: char) -> bool {
        match self {
            Self::One(one) => letter == one,
            Self::Blanks => letter == ' ' || letter == '\t',
        }
    }
}

/// The cells of a line, without quotes and blanks around them, and whether a quoted cell is still open at its end.
pub fn split(line: &str, separator: Separator) -> (Vec<String>, bool) {
    let line = if separator == Separator::Blanks { line.trim() } else { line };
    let (mut cells, mut cell, mut letters) = (Vec::new(), String::new(), line.chars().peekable());
    let (mut quoted, mut was_quoted) = (false, false);
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cell.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if !was_quoted && cell.trim().is_empty() => {
                cell.clear();
                (quoted, was_quoted) = (true, true);
            }
            _ if !quoted && separator.is(letter) => {
                cells.push(tidy(&cell));
                cell.clear();
                was_quoted = false;
                while separator == Separator::Blanks && letters.next_if(|next| separator.is(*next)).is_some() {}
            }
            _ => cell.push(letter),
        }
    }
    cells.push(tidy(&cell));
    (cells, quoted)
}

/// Line ends and blanks of any kind become one blank.
fn tidy(cell: &str) -> String {
    let cell = cell.trim();
    if cell.contains(|c: char| c.is_whitespace() && c != ' ') {
        cell.split_whitespace().collect::<Vec<_>>().join(" ")
    } else {
        cell.to_owned()
    }
}

/// What a cell shows of the decimal sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Digits alone, perhaps with an exponent.
    Plain,
    /// Only a decimal point can be meant: `20.5`, `1,234.5`, `1,234,567`.
    Point,
    /// Only a decimal comma can be meant: `20,5`, `1.234,5`, `1.234.567`.
    Comma,
    /// `1.234`: a decimal point, or 1234.
    PointOrThousands,
    /// `1,234`: a decimal comma, or 1234.
    CommaOrThousands,
}

/// Cells that say that there is no value.
const NONE: [&str; 18] = [
    "", "-", "--", "---", "----", ".", "?", "na", "n/a", "nan", "null", "none", "nil", "#n/a", "#na", "missing",
    "no data", "inf",
];

/// Whether the cell says that there is no value.
pub fn is_none(cell: &str) -> bool {
    cell.len() <= 8 && NONE.contains(&cell.to_lowercase().as_str())
}

/// Sign, mantissa and exponent of something that looks like a number.
fn parts(cell: &str) -> Option<(bool, &str, &str)> {
    let (minus, rest) = match cell.strip_prefix(['-', '\u{2212}']) {
        Some(rest) => (true, rest),
        None => (false, cell.strip_prefix('+').unwrap_or(cell)),
    };
    // Blanks behind the sign do not matter, as on live lines.
    let rest = rest.trim_start();
    let (mantissa, exponent) = rest.split_once(['e', 'E']).map_or((rest, "0"), |parts| parts);
    let power = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    let digits = power.len() <= 4 && !power.is_empty() && power.bytes().all(|b| b.is_ascii_digit());
    // `1E5` may as well be a hexadecimal word: as on live lines an exponent is believed behind a decimal mark or with a sign.
    let digits = digits && (exponent == "0" || power != exponent || mantissa.contains(['.', ',']));
    let looks = mantissa.starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == ',')
        && mantissa.contains(|c: char| c.is_ascii_digit());
    (digits && looks).then_some((minus, mantissa, exponent))
}

const SPACES: [char; 5] = [' ', '\u{a0}', '\u{202f}', '\'', '\u{2019}'];

/// Groups of three digits behind one to three.
fn grouped(text: &str, mark: impl Fn(char) -> bool) -> bool {
    let mut groups = text.split(mark);
    let digits = |group: &str| group.bytes().all(|b| b.is_ascii_digit());
    groups.next().is_some_and(|first| (1..=3).contains(&first.len()) && digits(first))
        && groups.all(|group| group.len() == 3 && digits(group))
}

/// `Some` where the cell is a number, with what it shows of the decimal sign.
pub fn form(cell: &str) -> Option<Form> {
    let (_, mantissa, _) = parts(cell)?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if digits(mantissa) {
        return Some(Form::Plain);
    }
    let (points, commas) = (mantissa.matches('.').count(), mantissa.matches(',').count());
    let spaced = mantissa.contains(SPACES);
    // The whole part's groups, and the digits behind the decimal sign.
    let fits = |sign: char, thousands: Option<char>| {
        let (whole, part) = mantissa.split_once(sign).unwrap_or((mantissa, ""));
        let mark = |c: char| if spaced { SPACES.contains(&c) } else { Some(c) == thousands };
        digits(part) && (digits(whole) || grouped(whole, mark))
    };
    match (points, commas) {
        (0, 0) => (spaced && grouped(mantissa, |c| SPACES.contains(&c))).then_some(Form::Plain),
        (1, 0) => {
            let thousands = !spaced && grouped(mantissa, |c| c == '.') && !mantissa.starts_with('0');
            fits('.', None).then_some(if thousands { Form::PointOrThousands } else { Form::Point })
        }
        (0, 1) => {
            let thousands = !spaced && grouped(mantissa, |c| c == ',') && !mantissa.starts_with('0');
            fits(',', None).then_some(if thousands { Form::CommaOrThousands } else { Form::Comma })
        }
        (0, _) => (!spaced && grouped(mantissa, |c| c == ',')).then_some(Form::Point),
        (_, 0) => (!spaced && grouped(mantissa, |c| c == '.')).then_some(Form::Comma),
        // Of one point and one comma the last is the decimal sign.
        (1, 1) if mantissa.find('.') < mantissa.find(',') => (!spaced && fits(',', Some('.'))).then_some(Form::Comma),
        (1, _) => (!spaced && fits('.', Some(','))).then_some(Form::Point),
        (_, 1) => (!spaced && fits(',', Some('.'))).then_some(Form::Comma),
        _ => None,
    }
}

/// The number with a decimal point, where the cell is one with this decimal sign.
pub fn number(cell: &str, comma: bool) -> Option<String> {
    let fits = match form(cell)? {
        Form::Plain | Form::PointOrThousands | Form::CommaOrThousands => true,
        Form::Point => !comma,
        Form::Comma => comma,
    };
    let (minus, mantissa, exponent) = parts(cell)?;
    let sign = if comma { ',' } else { '.' };
    let digits: String = mantissa
        .chars()
        .filter_map(|c| match c {
            '0'..='9' => Some(c),
            _ if c == sign => Some('.'),
            _ => None,
        })
        .collect();
    let power = if exponent == "0" { String::new() } else { format!("e{exponent}") };
    fits.then(|| format!("{}{digits}{power}", if minus { "-" } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_lose_quotes_and_blanks_and_keep_separators_within_quotes() {
        let of = |line, separator| split(line, separator).0;
        assert_eq!(of("a, b ,,\"c, d\",\"say \"\"x\"\"\"", Separator::One(',')), ["a", "b", "", "c, d", "say \"x\""]);
        assert_eq!(of("5\" pipe;3;", Separator::One(';')), ["5\" pipe", "3", ""]);
        assert_eq!(of("  a \t b   c ", Separator::Blanks), ["a", "b", "c"]);
        assert_eq!(of("a\t\tc", Separator::One('\t')), ["a", "", "c"]);
        assert!(split("a,\"b", Separator::One(',')).1);
        assert_eq!(split("a,\"Temp\n(C)\"", Separator::One(',')), (vec!["a".to_owned(), "Temp (C)".into()], false));
    }

    #[test]
    fn separators_have_names() {
        assert_eq!(Separator::parse("tab"), Ok(Separator::One('\t')));
        assert_eq!(Separator::parse("semicolon"), Ok(Separator::One(';')));
        assert_eq!(Separator::parse("^"), Ok(Separator::One('^')));
        for wrong in ["", "x", ";;", "\""] {
            assert!(Separator::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_show_their_decimal_sign_or_that_they_do_not() {
        use Form::*;
        for (cell, seen) in [
            ("17", Some(Plain)),
            ("-3e+5", Some(Plain)),
            ("3e5", None),
            ("1 234", Some(Plain)),
            ("1\u{a0}234\u{a0}567", Some(Plain)),
            ("20.5", Some(Point)),
            (".5", Some(Point)),
            ("0.125", Some(Point)),
            ("1234.567", Some(Point)),
            ("1,234.5", Some(Point)),
            ("1,234,567", Some(Point)),
            ("1'234.5", Some(Point)),
            ("20,5", Some(Comma)),
            ("-0,125", Some(Comma)),
            ("1.234,5", Some(Comma)),
            ("1.234.567", Some(Comma)),
            ("1 234,5", Some(Comma)),
            ("2,5E-3", Some(Comma)),
            ("+    23.4", Some(Point)),
            ("- 0,5", Some(Comma)),
            ("- -1", None),
            ("1.234", Some(PointOrThousands)),
            ("1,234", Some(CommaOrThousands)),
            ("12,34,5", None),
            ("1.2.3", None),
            ("1,2.3,4", None),
            ("0x1F", None),
            ("12:30", None),
            ("2026-03-12", None),
            ("5 °C", None),
            ("1e", None),
            ("e5", None),
            ("-", None),
            ("nan", None),
            ("1 23", None),
        ] {
            assert_eq!(form(cell), seen, "{cell}");
        }
    }

    #[test]
    fn numbers_are_normalised_by_the_decimal_sign_of_the_file() {
        for (cell, comma, seen) in [
            ("20,5", true, Some("20.5")),
            ("20,5", false, None),
            ("20.5", true, None),
            ("1.234", true, Some("1234")),
            ("1.234", false, Some("1.234")),
            ("1,234", true, Some("1.234")),
            ("1,234", false, Some("1234")),
            ("\u{2212}1\u{a0}234,5", true, Some("-1234.5")),
            ("+7.25e-3", false, Some("7.25e-3")),
            ("-     0.5", false, Some("-0.5")),
            ("OL", false, None),
        ] {
            let number = number(cell, comma);
            assert_eq!(number.as_deref(), seen, "{cell}");
            assert!(number.is_none_or(|text| text.parse::<f64>().is_ok()), "{cell}");
        }
    }

    #[test]
    fn words_for_no_value_are_known() {
        assert!(["", "NaN", "n/a", "NULL", "---", "#N/A"].into_iter().all(is_none));
        assert!(!["0", "OL", "error", "-1"].into_iter().any(is_none));
    }
}
