//! `format = "nmea"`: which sentences are read, which of their fields are values, and which fields say what a value means.
//!
//! ```toml
//! sentences = { RMC = ["", "", "lat:ddmm", "", "lon:ddmm", "", "speed"], MWV = ["angle", "only:R", "wind:m/s"] }
//! ```
//!
//! The text behind the colon says how the field is read. What the standard knows of a sentence (`standard`) is added here, so that
//! the decoder knows no sentence by name.

use super::{
    parts::twice,
    problem::nearest,
    raw::{Node, Table, Value},
    standard::{self, FieldRule, FieldTest, Unit},
};

/// `sentences` and `checksum`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Nmea {
    /// The sentences that are read; the others are passed over.
    pub sentences: Vec<Sentence>,
    /// Sentences without a checksum are read. One that is there must match in any case.
    pub checksum_optional: bool,
}

/// One NMEA sentence.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sentence {
    /// Three letters, such as `RMC`, or the whole address.
    pub name: String,
    /// Only sentences whose fields fit are meant.
    pub only: Vec<FieldRule>,
    /// Its values.
    pub values: Vec<SentenceValue>,
}

/// One value of a sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct SentenceValue {
    /// Column.
    pub column: String,
    /// Where it stands.
    pub at: FieldAt,
    /// How it is read.
    pub reading: Reading,
    /// Where one of these fields does not fit, the device itself calls the value invalid.
    pub valid: Vec<FieldRule>,
    /// Fields that say what the value means (reference, unit, side), and which the configuration says nothing of: the value can
    /// be used as long as they stay what they are.
    pub constant: Vec<usize>,
}

/// Where a value stands.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldAt {
    /// At this place, from 0.
    Field(usize),
    /// In the group of four fields (type, value, unit, name) of this transducer.
    Transducer {
        /// Its type; `None`: any.
        kind: Option<String>,
        /// Its name.
        name: String,
    },
}

/// How a field is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// As a number.
    Number,
    /// As degrees and minutes, `4807.038`; the next field has the hemisphere.
    Angle,
    /// As a number that is negative where the next field is `W`, `S` or `L`.
    Signed,
    /// As a number with its unit in the next field, converted to this one.
    Unit(Unit),
}

impl Nmea {
    /// The names of all columns.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.sentences.iter().flat_map(|s| &s.values).map(|v| v.column.as_str())
    }

    /// Whether a row may lack columns.
    pub fn is_partial(&self) -> bool {
        let transducers = |s: &Sentence| s.values.iter().any(|v| matches!(v.at, FieldAt::Transducer { .. }));
        self.sentences.len() > 1 || self.columns().count() > 1 && self.sentences.iter().any(transducers)
    }
}

impl Sentence {
    /// What the configuration leaves open: fields, from 1, that say what values mean.
    pub(super) fn open(&self) -> Option<String> {
        let open = || self.values.iter().filter(|value| !value.constant.is_empty());
        let mut places: Vec<usize> = open().flat_map(|value| &value.constant).map(|place| place + 1).collect();
        places.sort_unstable();
        places.dedup();
        let columns: Vec<String> = open().map(|value| format!("`{}`", value.column)).collect();
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        (!places.is_empty()).then(|| {
            format!(
                "`{}`: the unit, reference or side of {} is in field {}: add `only:`, `:signed`, `:ddmm` or a unit; without it a value \
                 is bad where this field is another one than at first",
                self.name,
                columns.join(", "),
                places.join(", ")
            )
        })
    }
}

/// `sentences` and `checksum`.
pub(super) fn nmea(t: &mut Table<'_>, node: Option<Node>) -> Nmea {
    let checksum_optional = t.word("checksum", &[("required", false), ("optional", true)]).unwrap_or(false);
    let map = match node.map(|node| node.value) {
        Some(Value::Table(map)) => map,
        there => {
            let must = if there.is_some() { "must be a table" } else { "is needed" };
            let what = "for each sentence the names of its fields, empty where one is not of use, such as \
                        `{ RMC = [\"\", \"\", \"lat:ddmm\"] }`";
            t.problem("sentences", format!("{must}: {what}"));
            return Nmea::default();
        }
    };
    let mut sentences = Vec::new();
    for (name, node) in map {
        let letters = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        if !(3..=8).contains(&name.len()) || !letters {
            let meant = name.trim_start_matches(['$', '!']).to_uppercase();
            let meant = if meant == name { String::new() } else { format!("; did you mean `{meant}`?") };
            let why =
                format!("`{name}` is neither a sentence such as `RMC` nor a whole address such as `GPRMC`{meant}");
            t.problem("sentences", why);
        }
        sentences.extend(one_name(t, &name, node.value));
    }
    let all = Nmea { sentences, checksum_optional };
    let names: Vec<String> = all.columns().map(str::to_owned).collect();
    if let Some(twice) = twice(&names) {
        t.problem("sentences", format!("`{twice}` stands twice"));
    }
    all
}

/// The lists of one sentence: a list of fields, several of them, or a table of transducers.
fn one_name(t: &mut Table<'_>, name: &str, value: Value) -> Vec<Sentence> {
    let texts = |items: Vec<Node>| -> Option<Vec<String>> {
        let text = |item: Node| if let Value::Str(text) = item.value { Some(text) } else { None };
        items.into_iter().map(text).collect()
    };
    let lists = match value {
        Value::Table(map) => return transducers(t, name, map).into_iter().collect(),
        Value::List(items) if items.iter().any(|item| matches!(item.value, Value::List(_))) => items
            .into_iter()
            .map(|item| if let Value::List(items) = item.value { texts(items) } else { None })
            .collect::<Option<Vec<_>>>(),
        Value::List(items) => texts(items).map(|list| vec![list]),
        _ => None,
    };
    let Some(lists) = lists else {
        t.problem("sentences", format!("`{name}` must be a list of names, or several such lists in one"));
        return Vec::new();
    };
    lists.into_iter().map(|list| sentence(t, name, &list)).collect()
}

fn sentence(t: &mut Table<'_>, name: &str, list: &[String]) -> Sentence {
    let mut sentence = Sentence { name: name.to_owned(), ..Sentence::default() };
    let (mut own, mut any) = (Vec::new(), false);
    for (place, text) in list.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        let texts = |all: &str| FieldTest::OneOf(all.split('|').map(str::to_owned).collect());
        match text.split_once(':') {
            Some(("only", all)) => sentence.only.push(FieldRule { place, test: texts(all) }),
            Some(("valid", "*")) => any = true,
            Some(("valid", all)) => own.push(FieldRule { place, test: texts(all) }),
            _ => {
                let (column, reading) = column(t, name, text);
                let at = FieldAt::Field(place);
                sentence.values.push(SentenceValue { column, at, reading, valid: Vec::new(), constant: Vec::new() });
            }
        }
    }
    let short = name.get(name.len().saturating_sub(3)..).unwrap_or(name);
    for value in &mut sentence.values {
        let FieldAt::Field(place) = value.at else { continue };
        value.valid = match own.is_empty() && !any {
            true => standard::valid(short, place),
            false => own.clone(),
        };
        let beside = (value.reading != Reading::Number).then_some(place + 1);
        let known = |letter: &usize| Some(*letter) == beside || sentence.only.iter().any(|c| c.place == *letter);
        value.constant = standard::letters(short, place).filter(|letter| !known(letter)).collect();
    }
    sentence
}

/// `XDR = { TEMP1 = "air", "P:BARO" = "pressure:hPa" }`
fn transducers(t: &mut Table<'_>, sentence: &str, map: std::collections::BTreeMap<String, Node>) -> Option<Sentence> {
    if !sentence.ends_with("XDR") {
        t.problem("sentences", format!("`{sentence}` must be a list of names; only `XDR` has names of transducers"));
        return None;
    }
    let mut values = Vec::new();
    for (key, node) in map {
        let Value::Str(text) = node.value else {
            t.problem("sentences", format!("`{sentence}`: `{key}` must be the name of its column"));
            continue;
        };
        let (kind, name) = match key.split_once(':') {
            Some((kind, name)) if kind.len() == 1 => (Some(kind.to_owned()), name.to_owned()),
            _ => (None, key.clone()),
        };
        let (column, reading) = column(t, sentence, &text);
        if matches!(reading, Reading::Angle | Reading::Signed) {
            t.problem("sentences", format!("`{text}`: a transducer has no hemisphere or side beside its value"));
        }
        let at = FieldAt::Transducer { kind, name };
        values.push(SentenceValue { column, at, reading, valid: Vec::new(), constant: Vec::new() });
    }
    Some(Sentence { name: sentence.to_owned(), only: Vec::new(), values })
}

/// `lat:ddmm`
fn column(t: &mut Table<'_>, sentence: &str, text: &str) -> (String, Reading) {
    let Some((name, word)) = text.split_once(':') else { return (text.to_owned(), Reading::Number) };
    let reading = match word {
        "ddmm" => Some(Reading::Angle),
        "signed" => Some(Reading::Signed),
        word => Unit::named(word).map(Reading::Unit),
    };
    if reading.is_none() {
        let words = ["ddmm", "signed"].into_iter().chain(Unit::names());
        let advice = match nearest(word, words.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("expected one of {}", words.collect::<Vec<_>>().join(", ")),
        };
        t.problem("sentences", format!("`{sentence}`: `{text}`: unknown word `{word}`; {advice}"));
    }
    (name.to_owned(), reading.unwrap_or(Reading::Number))
}
