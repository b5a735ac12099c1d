//! JSON lines: objects and arrays, values by key or by path. Pure.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::number::{Numbers, Reading};
use crate::flow::Why;

/// Where a value stands: `meas.temp`, `v[0]`, `[2].t`.
#[derive(Debug, Clone)]
pub struct Path {
    /// As it is written: a key of the outermost object may be called so.
    whole: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Step {
    key: String,
    index: Option<usize>,
}

impl Path {
    /// Parses a column's name.
    pub fn new(text: &str) -> Self {
        let steps = text.split(['.', '[']).filter(|part| !part.is_empty()).map(|part| {
            let key = part.trim_end_matches(']');
            Step { key: key.to_owned(), index: key.parse().ok() }
        });
        Self { whole: text.to_owned(), steps: steps.collect() }
    }

    /// Its value in a line.
    pub fn find<'a>(&self, line: &'a Value) -> Option<&'a Value> {
        if let Some(value) = line.as_object().and_then(|object| object.get(&self.whole)) {
            return Some(value);
        }
        self.steps.iter().try_fold(line, |value, step| match value {
            Value::Object(object) => object.get(&step.key),
            Value::Array(items) => items.get(step.index?),
            _ => None,
        })
    }
}

/// Parses a line. Numbers that JSON does not have (`NaN`, `Infinity`), which many libraries write, are null.
pub fn parse(text: &str) -> Option<Value> {
    let Once(value) = serde_json::from_str(text).or_else(|_| serde_json::from_str(&without_nan(text))).ok()?;
    (value.is_object() || value.is_array()).then_some(value)
}

/// A value in which a key that stands twice has no meaning: an empty object is no number, and nothing is found inside.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Once(Value::Null))
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<Self, E> {
        Ok(Self(Value::Bool(yes)))
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<Self, E> {
        Ok(Self(n.into()))
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<Self, E> {
        Ok(Self(n.into()))
    }

    fn visit_f64<E: Error>(self, x: f64) -> Result<Self, E> {
        Ok(Self(Number::from_f64(x).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self, E> {
        Ok(Self(text.into()))
    }

    fn visit_unit<E: Error>(self) -> Result<Self, E> {
        Ok(Self(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        let mut all = Vec::new();
        while let Some(Self(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Self(Value::Array(all)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Self, A::Error> {
        let mut map = Map::new();
        while let Some((key, Self(value))) = pairs.next_entry::<String, Self>()? {
            let value = if map.contains_key(&key) { Value::Object(Map::new()) } else { value };
            map.insert(key, value);
        }
        Ok(Self(Value::Object(map)))
    }
}

fn without_nan(text: &str) -> String {
    const WORDS: [&str; 7] = ["-Infinity", "Infinity", "-NaN", "NaN", "nan", "-inf", "inf"];
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    let mut quoted = false;
    while let Some(c) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !quoted && rest.starts_with(**word));
        let n = match (c, word) {
            (_, Some(word)) => {
                out.push_str("null");
                rest = &rest[word.len()..];
                continue;
            }
            ('\\', _) if quoted => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => c.len_utf8(),
        };
        quoted ^= c == '"';
        out.push_str(&rest[..n]);
        rest = &rest[n..];
    }
    out
}

/// What a value means to a channel.
pub fn reading(value: &Value, numbers: &Numbers) -> Reading {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(value) => numbers.read_number(value, || number.to_string()),
            None => Reading::Bad(Why::NotANumber),
        },
        Value::Bool(yes) => {
            let word = numbers.word(if *yes { "true" } else { "false" });
            word.unwrap_or(Reading::Value(f64::from(*yes)))
        }
        Value::String(text) => numbers.read(text.trim_ascii()),
        Value::Null => numbers.word("null").unwrap_or(Reading::Bad(Why::NotANumber)),
        Value::Array(_) | Value::Object(_) => Reading::Bad(Why::NotANumber),
    }
}
