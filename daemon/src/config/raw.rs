//! The shape of the TOML: values with their position in the file, and typed reading of tables that reports every unknown
//! key.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    elsewhere,
    hints::{self, Got, written},
    problem::{At, Problems, meant, twin},
};

/// A value and its position.
#[derive(Debug, Clone)]
pub struct Node {
    /// Position.
    pub at: At,
    /// The value.
    pub value: Value,
}

/// The TOML types a configuration uses.
#[derive(Debug, Clone)]
pub enum Value {
    /// Text.
    Str(String),
    /// Integer.
    Int(i64),
    /// Float.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// List.
    List(Vec<Node>),
    /// Table, by key.
    Table(BTreeMap<String, Node>),
}

impl Value {
    fn shown(&self) -> Got<'_> {
        match self {
            Value::Str(text) => Got::Text(text),
            Value::Int(n) => Got::Whole(*n),
            Value::Float(x) => Got::Number(*x),
            Value::Bool(_) => Got::Truth,
            Value::List(_) | Value::Table(_) => Got::Several,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Value::Str(_) => "text",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// Parses one file's text.
pub fn parse(file: &str, text: &str, remote: bool, problems: &mut Problems) -> Option<Node> {
    let file = From { file: file.into(), remote };
    let line_of = |offset: usize| text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
    match DeTable::parse(text) {
        Ok(table) => {
            let at = file.at(1);
            let value = table_value(table.into_inner(), &file, &line_of, problems);
            Some(Node { at, value })
        }
        Err(why) => {
            let line = why.span().map_or(0, |span| line_of(span.start));
            let hint = hints::of_line(text.lines().nth(line.saturating_sub(1)).unwrap_or(""), why.message());
            let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
            problems.add(&file.at(line), "toml", format!("{}{hint}", why.message()));
            None
        }
    }
}

/// The file of a node.
struct From {
    file: Arc<str>,
    remote: bool,
}

impl From {
    fn at(&self, line: usize) -> At {
        At { file: self.file.clone(), line, remote: self.remote }
    }
}

fn table_value(table: DeTable<'_>, file: &From, line_of: &dyn Fn(usize) -> usize, problems: &mut Problems) -> Value {
    let nodes = table.into_iter().map(|(key, value)| {
        let line = line_of(key.span().start);
        (key.into_inner().into_owned(), node(value, line, file, line_of, problems))
    });
    Value::Table(nodes.collect())
}

fn node(
    value: Spanned<DeValue<'_>>,
    line: usize,
    file: &From,
    line_of: &dyn Fn(usize) -> usize,
    problems: &mut Problems,
) -> Node {
    let at = file.at(line);
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Str(text.into_owned()),
        DeValue::Boolean(yes) => Value::Bool(yes),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Value::Int(n),
            Err(why) => {
                let n = n.as_str();
                let text = format!("`{n}`: {why}: whole numbers are -2^63 to 2^63 - 1; 64 bits that are all 1 are -1");
                problems.add(&at, "toml", text);
                Value::Int(0)
            }
        },
        DeValue::Float(n) => Value::Float(n.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Datetime(at) => Value::Str(at.to_string()),
        DeValue::Array(items) => {
            let items = items.into_iter().map(|item| {
                let line = line_of(item.span().start);
                node(item, line, file, line_of, problems)
            });
            Value::List(items.collect())
        }
        DeValue::Table(table) => table_value(table, file, line_of, problems),
    };
    Node { at, value }
}

/// Merges `over` into `under`, key by key; two tables are merged, anything else is replaced.
pub fn overlay(under: &mut Node, over: Node) {
    match (&mut under.value, over) {
        (Value::Table(below), Node { value: Value::Table(above), .. }) => {
            for (key, node) in above {
                match below.get_mut(&key) {
                    Some(existing) => overlay(existing, node),
                    None => {
                        below.insert(key, node);
                    }
                }
            }
        }
        (_, over) => *under = over,
    }
}

/// Reads a table key by key; `finish` reports keys that were not read.
pub struct Table<'a> {
    path: String,
    /// Position of the table.
    pub at: At,
    map: BTreeMap<String, Node>,
    known: BTreeSet<&'static str>,
    /// Which keys belong here is not known: one of them that decides it is wrong, and was reported.
    undecided: bool,
    problems: &'a mut Problems,
}

impl<'a> Table<'a> {
    /// Reads `node`, which must be a table, under the key path `path`.
    pub fn new(path: impl Into<String>, node: Node, problems: &'a mut Problems) -> Self {
        let (path, at) = (path.into(), node.at);
        let map = match node.value {
            Value::Table(map) => map,
            other => {
                problems.add(&at, &path, format!("must be a table, not {}", other.kind()));
                BTreeMap::new()
            }
        };
        Self { path, at, map, known: BTreeSet::new(), undecided: false, problems }
    }

    fn key(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    /// Reports a problem with one key.
    pub fn problem(&mut self, key: &str, why: impl Into<String>) {
        let at = self.map.get(key).map_or_else(|| self.at.clone(), |node| node.at.clone());
        let key = self.key(key);
        self.problems.add(&at, key, why);
    }

    /// Reports a key that must not be set remotely, because it could let an attacker in.
    pub fn only_local(&mut self, keys: &[&'static str]) {
        for key in keys {
            if self.is_remote(key) {
                self.problem(key, "cannot be set remotely");
            }
        }
    }

    /// Whether the key, or anything below it, was set remotely.
    pub fn is_remote(&self, key: &str) -> bool {
        fn any(node: &Node) -> bool {
            node.at.remote
                || match &node.value {
                    Value::List(items) => items.iter().any(any),
                    // A merged table keeps its first position; keys from another layer have their own.
                    Value::Table(map) => map.values().any(any),
                    _ => false,
                }
        }
        self.map.get(key).is_some_and(any)
    }

    /// Whether the key exists.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Takes the key's node unchanged.
    pub fn node(&mut self, key: &'static str) -> Option<Node> {
        self.known.insert(key);
        self.map.get(key).cloned()
    }

    /// The tables below `key`, by name; read each with `sub`.
    pub fn tables(&mut self, key: &'static str) -> Vec<(String, Node)> {
        match self.node(key) {
            None => Vec::new(),
            Some(Node { value: Value::Table(map), .. }) => map.into_iter().collect(),
            Some(node) => {
                let whole = self.key(key);
                let kind = node.value.kind();
                self.problem(key, format!("must be a table of tables, not {kind}: each has a name, `[{whole}.NAME]`"));
                Vec::new()
            }
        }
    }

    /// The same, where a text may stand in the place of a table.
    pub fn tables_or_texts(&mut self, key: &'static str) -> Vec<(String, Node)> {
        let mut all = self.tables(key);
        for (name, node) in &all {
            if !matches!(node.value, Value::Str(_) | Value::Table(_)) {
                let whole = self.key(&format!("{key}.{name}"));
                self.problems.add(&node.at, whole, format!("must be a table or a text, not {}", node.value.kind()));
            }
        }
        all.retain(|(_, node)| matches!(node.value, Value::Str(_) | Value::Table(_)));
        all
    }

    /// A reader for a table below this one that has those keys of this one too that it `inherits`, where it has none of its own.
    pub fn inherit(&mut self, path: String, node: Node, inherits: impl Fn(&str) -> bool) -> Inherited<'_> {
        let own: BTreeSet<String> = match &node.value {
            Value::Table(map) => map.keys().cloned().collect(),
            _ => BTreeSet::new(),
        };
        let mut whole = Node { at: node.at.clone(), value: Value::Table(self.map.clone()) };
        if let Value::Table(map) = &mut whole.value {
            map.retain(|key, _| inherits(key));
        }
        overlay(&mut whole, node.clone());
        Inherited { own, table: Table { at: node.at, ..self.sub(path, whole) } }
    }

    /// No other key of this table is reported: which ones belong here is not known.
    pub fn leave_undecided(&mut self) {
        self.undecided = true;
    }

    /// Whether a key that decides what the others mean is wrong.
    pub fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// Whether something in this table was reported already.
    pub fn has_problems(&self) -> bool {
        self.problems.any_in(&self.path)
    }

    /// These keys were read by an inheriting table.
    pub fn know(&mut self, known: BTreeSet<&'static str>) {
        self.known.extend(known);
    }

    /// A reader for a table below this one.
    pub fn sub(&mut self, path: String, node: Node) -> Table<'_> {
        let path = self.key(&path);
        Table::new(path, node, self.problems)
    }

    /// A text.
    pub fn str(&mut self, key: &'static str) -> Option<String> {
        match self.node(key)?.value {
            Value::Str(text) => Some(text),
            other => self.wrong(key, "text", &other),
        }
    }

    /// A required text.
    pub fn need_str(&mut self, key: &'static str) -> String {
        let there = self.has(key);
        let text = self.str(key);
        if !there {
            self.problem(key, "is needed");
        }
        text.unwrap_or_default()
    }

    /// A boolean.
    pub fn bool(&mut self, key: &'static str) -> Option<bool> {
        match self.node(key)?.value {
            Value::Bool(yes) => Some(yes),
            other => self.wrong(key, "true or false", &other),
        }
    }

    /// An integer within bounds.
    pub fn int(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        match self.node(key)?.value {
            Value::Int(n) if range.contains(&n) => Some(n),
            Value::Int(n) => {
                self.problem(key, format!("{n} is not within {} to {}", range.start(), range.end()));
                None
            }
            other => self.wrong(key, "an integer", &other),
        }
    }

    /// A finite number.
    pub fn float(&mut self, key: &'static str) -> Option<f64> {
        match self.node(key)?.value {
            Value::Float(x) if x.is_finite() => Some(x),
            Value::Float(_) => {
                self.problem(key, "must be a finite number");
                None
            }
            Value::Int(n) => Some(n as f64),
            other => self.wrong(key, "a number", &other),
        }
    }

    /// One of several words.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.str(key)?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let near = meant(&text, words.iter().map(|(word, _)| *word));
            self.problem(key, format!("`{text}` is invalid: expected one of {}{near}", all.join(", ")));
        }
        found.map(|(_, value)| *value)
    }

    /// A list of texts.
    pub fn strs(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.list(key, "a list of texts", |value| match value {
            Value::Str(text) => Some(text),
            _ => None,
        })
    }

    /// A list of numbers.
    pub fn floats(&mut self, key: &'static str) -> Option<Vec<f64>> {
        self.list(key, "a list of numbers", |value| match value {
            Value::Float(x) if x.is_finite() => Some(x),
            Value::Int(n) => Some(n as f64),
            _ => None,
        })
    }

    fn list<T>(&mut self, key: &'static str, what: &str, each: impl Fn(Value) -> Option<T>) -> Option<Vec<T>> {
        match self.node(key)?.value {
            Value::List(items) => {
                let mut got = Vec::with_capacity(items.len());
                for item in items {
                    let kind = item.value.kind();
                    let Some(value) = each(item.value) else {
                        self.problem(key, format!("must be {what}, and one of them is {kind}"));
                        return None;
                    };
                    got.push(value);
                }
                Some(got)
            }
            other => self.wrong(key, what, &other),
        }
    }

    fn wrong<T>(&mut self, key: &str, want: &str, got: &Value) -> Option<T> {
        let write = written(key, want, got.shown()).map(|text| format!(": {text}")).unwrap_or_default();
        self.problem(key, format!("must be {want}, not {}{write}", got.kind()));
        None
    }

    /// Reports every unknown key, with the nearest known name.
    pub fn finish(self) {
        let Table { path, map, known, undecided, problems, .. } = self;
        for (key, node) in &map {
            if undecided || known.contains(key.as_str()) {
                continue;
            }
            let whole = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            problems.add(&node.at, whole, unknown(&path, key, &known));
        }
    }
}

/// A table that has the keys of the one around it too.
pub struct Inherited<'a> {
    own: BTreeSet<String>,
    table: Table<'a>,
}

impl Inherited<'_> {
    /// Reports its own unknown keys. Returns those that were read.
    pub fn finish_inherited(self) -> BTreeSet<&'static str> {
        let Self { own, mut table } = self;
        table.map.retain(|key, _| own.contains(key));
        let known = table.known.clone();
        table.finish();
        known
    }
}

impl<'a> std::ops::Deref for Inherited<'a> {
    type Target = Table<'a>;

    fn deref(&self) -> &Table<'a> {
        &self.table
    }
}

impl std::ops::DerefMut for Inherited<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.table
    }
}

fn unknown(path: &str, key: &str, known: &BTreeSet<&'static str>) -> String {
    const UNITS: [&str; 8] = ["_ns", "_us", "_ms", "_s", "_hz", "_kib", "_mib", "_bytes"];
    let stem = |key: &str| UNITS.iter().find_map(|unit| key.strip_suffix(unit)).unwrap_or(key).to_owned();
    if let Some(other) = known.iter().find(|k| stem(k) == stem(key)) {
        return format!("unknown key; the unit is part of the name: `{other}`");
    }
    if let Some(near) = twin(key, known.iter().copied()) {
        return format!("unknown key; did you mean `{near}`?");
    }
    if let Some(advice) = elsewhere::advice(path, key, known) {
        return format!("unknown key; {advice}");
    }
    let near = meant(key, known.iter().copied());
    if !near.is_empty() {
        return format!("unknown key{near}");
    }
    let all: Vec<_> = known.iter().copied().collect();
    format!("unknown key; known here: {}", all.join(", "))
}
