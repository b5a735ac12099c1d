//! How the text of a field becomes a number: the six keys that `[source.NAME]` has for all of its columns, and
//! `[channel.NAME]` for its own. One concept for every text format: csv, fixed, keyvalue, pattern and json.

use super::{
    Format, nearest,
    raw::{Node, Table, Value},
};
use crate::{flow::Why, limits};

/// The keys, in the order of the documentation.
const KEYS: [&str; 6] = ["decimal", "thousands", "sign", "suffix", "base", "words"];

/// How the text of a field becomes a number.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberText {
    /// The decimal mark, `.` or `,`.
    pub decimal: u8,
    /// What stands between groups of three digits.
    pub thousands: Option<char>,
    /// The sign may stand behind the digits, as in `12.3-`.
    pub sign_behind: bool,
    /// What stands behind the number, and what the number is multiplied with; empty: nothing stands there.
    pub suffixes: Vec<(String, f64)>,
    /// The base of its digits.
    pub base: Base,
    /// Whole texts that mean something of their own.
    pub words: Vec<(String, Word)>,
}

impl NumberText {
    /// Reads decimal commas, where nothing is said against it: another base, a mark of thousands.
    pub fn follow_decimal_comma(&mut self) {
        if self.base == Base::Decimal && self.thousands.is_none() {
            self.decimal = b',';
        }
    }
}

impl Default for NumberText {
    fn default() -> Self {
        Self {
            decimal: b'.',
            thousands: None,
            sign_behind: false,
            suffixes: Vec::new(),
            base: Base::Decimal,
            words: Vec::new(),
        }
    }
}

/// The base of a number's digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// 0–9.
    Decimal,
    /// 0–9 and A–F, perhaps behind `0x`; bits of a two's complement, 0 where it has no sign.
    Hex(u32),
    /// 0 and 1, perhaps behind `0b`.
    Binary,
}

impl Base {
    const NAMES: [(&str, Base); 6] = [
        ("decimal", Self::Decimal),
        ("hex", Self::Hex(0)),
        ("hex-i8", Self::Hex(8)),
        ("hex-i16", Self::Hex(16)),
        ("hex-i32", Self::Hex(32)),
        ("binary", Self::Binary),
    ];
}

/// What a whole text means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Word {
    /// This number.
    Number(f64),
    /// No value.
    Missing,
    /// A value that must not be used.
    Bad(Why),
}

/// Reads the keys over those of `usual`: each key that is there replaces the usual one, `words` are added.
pub(super) fn numbers(t: &mut Table<'_>, usual: &NumberText) -> NumberText {
    let mut numbers = usual.clone();
    if let Some(decimal) = t.word("decimal", &[(".", b'.'), (",", b',')]) {
        numbers.decimal = decimal;
    }
    if let Some(text) = t.str("thousands") {
        let mut chars = text.chars();
        let mark = (chars.next(), chars.next());
        let is_mark = |c: &char| !c.is_alphanumeric() && !"+-\"".contains(*c);
        match mark {
            (None, _) => numbers.thousands = None,
            (Some(c), None) if is_mark(&c) => numbers.thousands = Some(c),
            _ => {
                t.problem("thousands", "must be one character that stands between groups of three digits, such as `.`")
            }
        }
    }
    if numbers.thousands == Some(char::from(numbers.decimal)) {
        let text = format!(
            "is the decimal mark as well: say `decimal = \"{}\"`",
            if numbers.decimal == b'.' { ',' } else { '.' }
        );
        t.problem(if t.has("thousands") { "thousands" } else { "decimal" }, text);
    }
    if let Some(behind) = t.word("sign", &[("leading", false), ("trailing", true)]) {
        numbers.sign_behind = behind;
    }
    if let Some(base) = t.word("base", &Base::NAMES) {
        numbers.base = base;
    }
    if let Some(node) = t.node("suffix") {
        numbers.suffixes = suffixes(t, node);
    }
    if let Some(node) = t.node("words") {
        let own = words(t, node);
        numbers.words.retain(|(text, _)| own.iter().all(|(word, _)| word != text));
        numbers.words.extend(own);
    }
    check_suffixes(t, &numbers);
    numbers
}

/// Reports what does not fit the source's format. `numbers`: as read from this table.
pub(super) fn fit(t: &mut Table<'_>, numbers: &NumberText, format: &Format) {
    if !format.is_text() {
        for key in KEYS.into_iter().filter(|key| t.has(key)).collect::<Vec<_>>() {
            t.problem(key, "belongs to values that are text: csv, fixed, keyvalue, pattern, json");
        }
        return;
    }
    let marks = [("decimal", Some(char::from(numbers.decimal))), ("thousands", numbers.thousands)];
    let (delimiter, label_end) = match format {
        Format::Csv { delimiter, .. } => (Some(*delimiter), None),
        Format::KeyValue(form) => (form.delimiter, Some(form.label_end)),
        _ => (None, None),
    };
    for (key, mark) in marks {
        if !t.has(key) || mark.is_none() {
            continue;
        }
        if delimiter.map(char::from) == mark {
            t.problem(
                key,
                "is the delimiter between the columns too: set `delimiter` to the one that the lines have, such as `\";\"`",
            );
        } else if label_end.map(char::from) == mark {
            t.problem(key, "is what stands behind a label as well; say what does with `label_end`");
        }
    }
}

/// `"kg"`, or `{ kg = 1, g = 0.001 }`.
fn suffixes(t: &mut Table<'_>, node: Node) -> Vec<(String, f64)> {
    let mut all = match node.value {
        Value::Str(text) if text.trim().is_empty() => Vec::new(),
        Value::Str(text) => vec![(text.trim().to_owned(), 1.0)],
        Value::Table(map) => {
            let factor = |(text, node): (String, Node)| {
                let factor = match node.value {
                    Value::Int(n) => n as f64,
                    Value::Float(x) => x,
                    _ => 0.0,
                };
                if !factor.is_finite() || factor == 0.0 {
                    t.problem("suffix", format!("`{text}` must have a number to multiply with, such as 1 or 0.001"));
                }
                (text.trim().to_owned(), factor)
            };
            map.into_iter().map(factor).collect()
        }
        _ => {
            t.problem(
                "suffix",
                "must be a text such as \"kg\", or a table of texts and factors: { kg = 1, g = 0.001 }",
            );
            Vec::new()
        }
    };
    if all.len() > limits::WORDS {
        t.problem("suffix", format!("{} suffixes are more than {}", all.len(), limits::WORDS));
    }
    // `kg` before `g`, or `12kg` would be read as `12k` with a suffix `g`.
    all.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    all
}

/// A suffix that could be a part of the number would cut it.
fn check_suffixes(t: &mut Table<'_>, numbers: &NumberText) {
    let wrong = |text: &str| {
        let first = text.chars().next()?;
        let digit = match numbers.base {
            Base::Hex(_) => first.is_ascii_hexdigit(),
            _ => first.is_ascii_digit(),
        };
        let mark = first == char::from(numbers.decimal) || Some(first) == numbers.thousands || "+-".contains(first);
        (digit || mark).then(|| format!("`{text}` begins with what may be a part of the number"))
    };
    if let Some(text) = numbers.suffixes.iter().find_map(|(text, _)| wrong(text)) {
        t.problem(if t.has("suffix") { "suffix" } else { "base" }, text);
    }
}

/// `{ "OL" = "bad:overload", "---" = "missing", "ON" = 1 }`
fn words(t: &mut Table<'_>, node: Node) -> Vec<(String, Word)> {
    let Value::Table(map) = node.value else {
        t.problem("words", "must be a table of texts and what they mean: { \"OL\" = \"bad:overload\", \"ON\" = 1 }");
        return Vec::new();
    };
    if map.len() > limits::WORDS {
        t.problem("words", format!("{} words are more than {}", map.len(), limits::WORDS));
    }
    let mut all = Vec::new();
    for (text, node) in map {
        let word = match node.value {
            Value::Int(n) => Some(Word::Number(n as f64)),
            Value::Float(x) if x.is_finite() => Some(Word::Number(x)),
            Value::Str(meaning) if meaning == "missing" => Some(Word::Missing),
            Value::Str(meaning) => bad_word(t, &text, &meaning),
            _ => {
                t.problem("words", format!("`{text}` must mean a number, \"missing\" or \"bad:REASON\""));
                None
            }
        };
        all.extend(word.map(|word| (text.trim().to_owned(), word)));
    }
    all
}

fn bad_word(t: &mut Table<'_>, text: &str, meaning: &str) -> Option<Word> {
    let known = || Why::BY_DEVICE.iter().map(|why| why.word());
    let reason = meaning.strip_prefix("bad:");
    let found = Why::BY_DEVICE.iter().find(|why| Some(why.word()) == reason);
    if found.is_none() {
        let near = nearest(reason.unwrap_or(meaning), known()).map(|near| format!("; did you mean `bad:{near}`?"));
        let all: Vec<_> = known().map(|word| format!("`bad:{word}`")).collect();
        let near = near.unwrap_or_default();
        let text = format!("`{text}` = `{meaning}`: expected a number, `missing` or one of {}{near}", all.join(", "));
        t.problem("words", text);
    }
    found.map(|why| Word::Bad(*why))
}
