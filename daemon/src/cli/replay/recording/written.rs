//! Dates and times as people and loggers write them. Pure.
//!
//! A year has four digits, else it is not known which of three numbers it is. Year first, and a month by its name, mean
//! one thing only; `03/12/2026` means two, and the caller says which.

use std::iter::Peekable;

use jiff::{
    civil::{Date, Time},
    tz::{Offset, TimeZone},
};

/// Which of two numbers is the day, where the year is last and the month is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `12.03.2026` is in March.
    DayFirst,
    /// `03/12/2026` is in March.
    MonthFirst,
}

/// What a text holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Written {
    /// A date.
    pub date: Option<Date>,
    /// A time of day.
    pub time: Option<Time>,
    /// The offset from UTC.
    pub offset: Option<Offset>,
}

impl Written {
    /// Nanoseconds since 1970; a time without an offset is UTC, a date without a time is midnight.
    pub fn t_ns(&self) -> Option<i64> {
        let at = self.date?.to_datetime(self.time.unwrap_or(Time::midnight()));
        let zone = self.offset.unwrap_or(Offset::UTC).to_time_zone();
        let at = if self.offset.is_some() { at.to_zoned(zone) } else { at.to_zoned(TimeZone::UTC) };
        i64::try_from(at.ok()?.timestamp().as_nanosecond()).ok()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'a> {
    Digits(&'a str),
    Word(&'a str),
    Mark(char),
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let (mut all, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        let run = |kind: fn(char) -> bool| rest.find(|c| !kind(c)).unwrap_or(rest.len());
        let length = if first.is_ascii_digit() {
            let length = run(|c| c.is_ascii_digit());
            all.push(Token::Digits(&rest[..length]));
            length
        } else if first.is_alphabetic() {
            let length = run(char::is_alphabetic);
            all.push(Token::Word(&rest[..length]));
            length
        } else {
            all.push(Token::Mark(first));
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    all
}

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// A name or its first letters, three at least.
fn named(word: &str, names: &[&str]) -> Option<usize> {
    let word = word.to_lowercase();
    let word = if word == "sept" { "sep" } else { &word };
    (word.len() >= 3).then(|| names.iter().position(|name| name.starts_with(word))).flatten()
}

struct Cursor<'a>(Peekable<std::vec::IntoIter<Token<'a>>>);

impl<'a> Cursor<'a> {
    fn mark(&mut self, marks: &[char]) -> Option<char> {
        match self.0.peek() {
            Some(Token::Mark(mark)) if marks.contains(mark) => {
                let mark = *mark;
                self.0.next();
                Some(mark)
            }
            _ => None,
        }
    }

    fn skip(&mut self, marks: &[char]) {
        while self.mark(marks).is_some() {}
    }

    fn blanks(&mut self) {
        self.skip(&[' ', '\u{a0}', '\u{202f}']);
    }

    fn digits(&mut self) -> Option<&'a str> {
        match self.0.peek() {
            Some(Token::Digits(digits)) => {
                let digits = *digits;
                self.0.next();
                Some(digits)
            }
            _ => None,
        }
    }

    fn word(&mut self, fits: impl Fn(&str) -> bool) -> Option<&'a str> {
        match self.0.peek() {
            Some(Token::Word(word)) if fits(word) => {
                let word = *word;
                self.0.next();
                Some(word)
            }
            _ => None,
        }
    }

    fn month(&mut self) -> Option<i8> {
        self.word(|word| named(word, &MONTHS).is_some()).and_then(|word| named(word, &MONTHS)).map(|i| i as i8 + 1)
    }

    fn ended(&mut self) -> bool {
        self.0.peek().is_none()
    }
}

fn small(text: &str) -> Option<i8> {
    (text.len() <= 2).then(|| text.parse().ok()).flatten()
}

fn year(text: &str) -> Option<i16> {
    (text.len() == 4).then(|| text.parse().ok()).flatten()
}

const BETWEEN: [char; 5] = ['-', '/', '.', ' ', ','];

/// Year, month and day in the order of the text.
fn date(at: &mut Cursor<'_>, order: Order) -> Option<Date> {
    if at.word(|word| named(word, &DAYS).is_some()).is_some() {
        at.skip(&[',', '.', ' ']);
    }
    if let Some(month) = at.month() {
        at.skip(&BETWEEN);
        let day = at.digits()?;
        at.skip(&BETWEEN);
        return Date::new(year(at.digits()?)?, month, small(day)?).ok();
    }
    let first = at.digits()?;
    if first.len() == 8 {
        return Date::new(year(&first[..4])?, small(&first[4..6])?, small(&first[6..])?).ok();
    }
    let mark = at.mark(&BETWEEN)?;
    at.skip(&[' ']);
    if let Some(month) = at.month() {
        at.skip(&BETWEEN);
        let last = at.digits()?;
        let (years, day) = if first.len() == 4 { (first, last) } else { (last, first) };
        return Date::new(year(years)?, month, small(day)?).ok();
    }
    let second = at.digits()?;
    at.mark(&[mark])?;
    at.skip(&[' ']);
    let third = at.digits()?;
    let (years, month, day) = match (first.len(), order) {
        (4, _) => (first, second, third),
        (_, Order::DayFirst) => (third, second, first),
        (_, Order::MonthFirst) => (third, first, second),
    };
    Date::new(year(years)?, small(month)?, small(day)?).ok()
}

/// `10:00`, `10:00:00.25`, `10:00:00,25 PM`, and behind a compact date `100000`.
fn time(at: &mut Cursor<'_>) -> Option<Time> {
    let first = at.digits()?;
    let (hour, minute, second);
    if first.len() == 6 {
        (hour, minute, second) = (small(&first[..2])?, small(&first[2..4])?, small(&first[4..])?);
    } else {
        hour = small(first)?;
        at.mark(&[':'])?;
        let next = at.digits().filter(|digits| digits.len() == 2)?;
        minute = small(next)?;
        second = match at.mark(&[':']) {
            Some(_) => small(at.digits().filter(|digits| digits.len() == 2)?)?,
            None => 0,
        };
    }
    let ns = match at.mark(&['.', ',']) {
        Some(_) => format!("{:0<9}", at.digits()?).get(..9)?.parse().ok()?,
        None => 0,
    };
    at.blanks();
    let half = at.word(|word| ["am", "pm"].contains(&word.to_lowercase().as_str()));
    let hour = match half {
        None => hour,
        Some(_) if !(1..=12).contains(&hour) => return None,
        Some(word) => hour % 12 + if word.eq_ignore_ascii_case("pm") { 12 } else { 0 },
    };
    Time::new(hour, minute, second, ns).ok()
}

fn offset(at: &mut Cursor<'_>) -> Option<Offset> {
    at.blanks();
    if at.word(|word| ["z", "utc", "gmt"].contains(&word.to_lowercase().as_str())).is_some() && at.ended() {
        return Some(Offset::UTC);
    }
    let minus = at.mark(&['+', '-', '\u{2212}'])? != '+';
    let digits = at.digits()?;
    let (hours, minutes) = match digits.len() {
        4 => (small(&digits[..2])?, small(&digits[2..])?),
        1 | 2 if at.mark(&[':']).is_some() => (small(digits)?, small(at.digits()?)?),
        1 | 2 => (small(digits)?, 0),
        _ => return None,
    };
    let seconds = (i32::from(hours) * 60 + i32::from(minutes)) * 60;
    Offset::from_seconds(if minus { -seconds } else { seconds }).ok()
}

/// Reads a date, a time of day or both.
pub fn read(text: &str, order: Order) -> Option<Written> {
    let text = text.trim();
    let dotted = ["a.m.", "p.m.", "A.M.", "P.M."].iter().find(|word| text.contains(*word));
    let text = dotted.map_or_else(
        || text.to_owned(),
        |word| text.replace(word, if word.starts_with(['a', 'A']) { "am" } else { "pm" }),
    );
    let all = tokens(&text);
    let cursor = || Cursor(all.clone().into_iter().peekable());
    let mut at = cursor();
    if let Some(time) = time(&mut at).filter(|_| text.contains(':')) {
        let offset = if at.ended() { None } else { Some(offset(&mut at)?) };
        return at.ended().then_some(Written { date: None, time: Some(time), offset });
    }
    // 20260312100000
    if let [Token::Digits(digits)] = all.as_slice()
        && digits.len() == 14
    {
        let split = vec![Token::Digits(&digits[..8]), Token::Digits(&digits[8..])];
        let mut at = Cursor(split.into_iter().peekable());
        let (date, time) = (date(&mut at, order)?, time(&mut at)?);
        return Some(Written { date: Some(date), time: Some(time), offset: None });
    }
    at = cursor();
    let date = date(&mut at, order)?;
    if at.ended() {
        return Some(Written { date: Some(date), time: None, offset: None });
    }
    let between = at.mark(&[' ', ',', '_']).is_some() || at.word(|word| word.eq_ignore_ascii_case("t")).is_some();
    at.blanks();
    let time = time(&mut at).filter(|_| between)?;
    let offset = if at.ended() { None } else { Some(offset(&mut at)?) };
    at.ended().then_some(Written { date: Some(date), time: Some(time), offset })
}

/// Whether the text is built like a date or a time of day, readable or not.
pub fn looks(text: &str) -> bool {
    let all = tokens(text.trim());
    let digits = |at: usize| matches!(all.get(at), Some(Token::Digits(digits)) if digits.len() <= 4);
    let mark = |at: usize| match all.get(at) {
        Some(Token::Mark(mark)) => Some(*mark),
        _ => None,
    };
    let clock = (0..all.len()).any(|at| digits(at) && mark(at + 1) == Some(':') && digits(at + 2));
    let three = digits(0)
        && digits(2)
        && digits(4)
        && mark(1) == mark(3)
        && mark(1).is_some_and(|mark| ['-', '/', '.'].contains(&mark));
    let month = all.iter().any(|token| matches!(token, Token::Word(word) if named(word, &MONTHS).is_some()));
    clock || three || (month && all.iter().filter(|token| matches!(token, Token::Digits(_))).count() >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, order: Order) -> Option<String> {
        let ns = read(text, order)?.t_ns()?;
        jiff::Timestamp::from_nanosecond(i128::from(ns)).ok().map(|at| at.to_string())
    }

    #[test]
    fn times_that_mean_one_thing_are_read_in_either_order() {
        for (text, seen) in [
            ("2026-03-12T10:00:00Z", "2026-03-12T10:00:00Z"),
            ("2026-03-12 10:00:00.250", "2026-03-12T10:00:00.25Z"),
            ("2026-03-12 10:00:00,5", "2026-03-12T10:00:00.5Z"),
            ("2026/03/12 10:00", "2026-03-12T10:00:00Z"),
            ("2026.3.2 9:05:01", "2026-03-02T09:05:01Z"),
            ("2026-03-12 10:00:00 UTC", "2026-03-12T10:00:00Z"),
            ("2026-03-12 10:00:00 +01:00", "2026-03-12T09:00:00Z"),
            ("2026-03-12T10:00:00-0530", "2026-03-12T15:30:00Z"),
            ("12-Mar-2026 10:00:00", "2026-03-12T10:00:00Z"),
            ("12 March 2026, 10:00:00 PM", "2026-03-12T22:00:00Z"),
            ("Mar 12, 2026 12:30 a.m.", "2026-03-12T00:30:00Z"),
            ("Thu, 12 Mar 2026 10:00:00 GMT", "2026-03-12T10:00:00Z"),
            ("20260312T100000Z", "2026-03-12T10:00:00Z"),
            ("20260312100000", "2026-03-12T10:00:00Z"),
            ("2026-03-12_10:00:00", "2026-03-12T10:00:00Z"),
            ("2026-03-12", "2026-03-12T00:00:00Z"),
            ("25.03.2026 10:00:00", "2026-03-25T10:00:00Z"),
        ] {
            assert_eq!(at(text, Order::DayFirst).as_deref(), Some(seen), "{text}");
        }
        assert_eq!(at("03/25/2026 1:00:00 PM", Order::MonthFirst).as_deref(), Some("2026-03-25T13:00:00Z"));
    }

    #[test]
    fn a_date_with_the_year_last_is_read_as_the_order_says() {
        let both = |text| (at(text, Order::DayFirst), at(text, Order::MonthFirst));
        let (day, month) = both("03/12/2026 10:00:00");
        assert_eq!(day.as_deref(), Some("2026-12-03T10:00:00Z"));
        assert_eq!(month.as_deref(), Some("2026-03-12T10:00:00Z"));
        assert_eq!(both("13.03.2026").1, None);
        assert_eq!(both("03.13.2026").0, None);
    }

    #[test]
    fn what_is_no_certain_time_is_none() {
        for text in [
            "",
            "12.03.26 10:00:00",
            "10:00",
            "20.5",
            "2026-03-12 25:00:00",
            "2026-02-30",
            "2026-03-12 10:00:00 CET",
            "2026-03-12 13:00 PM",
            "1773309600",
            "2026-03-12 10:00:00 x",
            "12/03-2026",
            "2026",
            "Mar",
            "2026-03-12T",
        ] {
            assert_eq!(at(text, Order::DayFirst), None, "{text}");
        }
        assert!(read("10:00:05", Order::DayFirst).is_some_and(|seen| seen.date.is_none() && seen.time.is_some()));
    }

    #[test]
    fn what_is_built_like_a_time_is_seen_even_if_it_is_not_read() {
        for text in ["12.03.26 10:00", "10:00:00", "2026-03-12", "12-Mar-26", "3/12/26", "2026-03-12 10:00:00 CET"] {
            assert!(looks(text), "{text}");
        }
        for text in ["20.5", "1,234", "degC", "OL", "1.2", "m/s", "-5", "may", ""] {
            assert!(!looks(text), "{text}");
        }
    }
}
