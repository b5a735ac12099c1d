//! What lines of text look like where they are no plain separated values: labels, units, decimal commas, columns of words,
//! checksums. A suggestion for `kentledge ports`, never a decision of the daemon's. Pure.

use std::collections::BTreeSet;

use crate::limits;

/// What some lines seem to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// In words: `speaks WHAT at 9600 baud`.
    pub what: String,
    /// The keys of a source, a line each.
    pub keys: String,
}

/// What a field is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Number {
        comma: bool,
        suffix: String,
    },
    Word,
    /// Digits that are no number: the line was cut at the wrong places.
    Odd,
}

/// What these lines are, most likely; `None`: nothing that is known here, or plain numbers.
pub fn suggest(lines: &[&str]) -> Option<Suggestion> {
    let texts: Vec<&str> = lines.iter().filter_map(|line| summed(line)).collect();
    if texts.len() * 2 <= lines.len() {
        return labels(lines).or_else(|| columns(lines, true));
    }
    let mut found = labels(&texts).or_else(|| columns(&texts, false))?;
    found.what += ", with a checksum";
    found.keys += "check = \"xor8\"\n";
    Some(found)
}

/// The text before `*` and the exclusive or of it.
fn summed(line: &str) -> Option<&str> {
    let (text, sum) = line.rsplit_once('*')?;
    let sum = u8::from_str_radix(sum, 16).ok().filter(|_| sum.len() == 2)?;
    (sum == text.bytes().fold(0, |x, b| x ^ b)).then_some(text)
}

fn most(n: usize, lines: &[&str]) -> bool {
    n * 2 > lines.len()
}

/// `T=23.5;P=1.013`, or a label and a value on each line.
fn labels(lines: &[&str]) -> Option<Suggestion> {
    let forms = [';', ',', ' '].into_iter().flat_map(|d| ['=', ':'].map(|end| (Some(d), end)));
    forms.chain(['=', ':', '\t'].map(|end| (None, end))).find_map(|(delimiter, end)| {
        let pairs = |line: &&str| -> Option<Vec<(String, Field)>> {
            let parts = line.split(|c| Some(c) == delimiter).map(str::trim).filter(|part| !part.is_empty());
            let pair = |part: &str| {
                let (label, value) = part.split_once(end)?;
                let (label, value) = (label.trim(), field(value.trim()));
                let is_label = label.starts_with(|c: char| c.is_ascii_alphabetic())
                    && label.chars().all(|c| c.is_ascii_alphanumeric() || " _.-".contains(c))
                    && label.len() <= limits::PORTS_LABEL;
                (is_label && value != Field::Odd).then(|| (label.to_owned(), value))
            };
            let pairs: Option<Vec<_>> = parts.map(pair).collect();
            pairs.filter(|pairs| !pairs.is_empty() && (delimiter.is_none() || pairs.len() > 1))
        };
        // The byte behind this label makes the sum of a block 0 (VE.Direct).
        let summed = |line: &&&str| end == '\t' && line.starts_with("Checksum\t");
        let blocks = lines.iter().any(|line| summed(&line));
        let all: Vec<_> = lines.iter().filter(|line| !summed(line)).filter_map(pairs).collect();
        let names: BTreeSet<&str> = all.iter().flatten().map(|(label, _)| label.as_str()).collect();
        let fields: Vec<&Field> = all.iter().flatten().map(|(_, value)| value).collect();
        let numbers = fields.iter().filter(|field| matches!(field, Field::Number { .. })).count();
        if !most(all.len(), lines) || names.len() < 2 || numbers == 0 {
            return None;
        }
        let names: Vec<_> = names.into_iter().take(limits::PORTS_COLUMNS).collect();
        let mut keys = String::from("format = \"keyvalue\"\n");
        keys += &delimiter.map(|d| format!("delimiter = \"{d}\"\n")).unwrap_or_default();
        keys += &if end == '=' { String::new() } else { format!("label_end = {}\n", quoted(&end.to_string())) };
        keys += if blocks { "block_end = \"Checksum\"\nblock_check = \"sum8-zero\"\n" } else { "" };
        keys += &number_keys(&fields);
        Some(Suggestion { what: format!("labels with values: {}", names.join(", ")), keys })
    })
}

/// Columns of numbers and words. `plain`: only those that need more than a separator.
fn columns(lines: &[&str], plain: bool) -> Option<Suggestion> {
    [';', '\t', ',', ' '].into_iter().find_map(|delimiter| {
        let split = |line: &&str| -> Vec<Field> {
            match delimiter {
                ' ' => line.split_ascii_whitespace().map(field).collect(),
                _ => line.split(delimiter).map(|text| field(text.trim())).collect(),
            }
        };
        let rows: Vec<Vec<Field>> = lines.iter().map(split).collect();
        let n = rows.last()?.len();
        let rows: Vec<_> = rows.into_iter().filter(|row| row.len() == n && !row.contains(&Field::Odd)).collect();
        if !most(rows.len(), lines) || !(1..=limits::PORTS_COLUMNS).contains(&n) {
            return None;
        }
        let is_number = |i: &usize| {
            let numbers = rows.iter().filter(|row| matches!(row[*i], Field::Number { .. })).count();
            numbers * 2 > rows.len()
        };
        let numbers: Vec<bool> = (0..n).map(|i| is_number(&i)).collect();
        let fields: Vec<&Field> =
            rows.iter().flat_map(|row| row.iter().zip(&numbers)).filter(|(_, n)| **n).map(|f| f.0).collect();
        let more = number_keys(&fields);
        let words = numbers.contains(&false);
        // `1,5` alone may be two columns; so may a line of one word.
        if fields.is_empty() || n == 1 && more.contains("decimal") || plain && more.is_empty() && !words {
            return None;
        }
        let name = |(i, number): (usize, &bool)| if *number { format!("\"c{}\"", i + 1) } else { "\"\"".to_owned() };
        let names: Vec<_> = numbers.iter().enumerate().map(name).collect();
        let mut keys = format!("columns = [{}]\n", names.join(", "));
        keys +=
            &if delimiter == ',' { String::new() } else { format!("delimiter = {}\n", quoted(&delimiter.to_string())) };
        let what = format!("lines of {n} columns, {} of them numbers", numbers.iter().filter(|n| **n).count());
        let state = "# an empty name skips a text; if it is a state, such as overload, its values count as good: use `pattern`\n";
        Some(Suggestion { what, keys: keys + &more + if words { state } else { "" } })
    })
}

/// What these numbers need beside the usual.
fn number_keys(fields: &[&Field]) -> String {
    let (mut suffixes, mut commas) = (BTreeSet::new(), false);
    for field in fields {
        if let Field::Number { comma, suffix } = field {
            commas |= comma;
            suffixes.insert(suffix.as_str());
        }
    }
    let mut keys = if commas { "decimal = \",\"\n".to_owned() } else { String::new() };
    match suffixes.into_iter().take(limits::PORTS_COLUMNS).collect::<Vec<_>>().as_slice() {
        [] | [""] => {}
        [one] => keys += &format!("suffix = {}\n", quoted(one)),
        all => {
            let each: Vec<_> = all.iter().map(|suffix| format!("{} = 1", quoted(suffix))).collect();
            keys += &format!("suffix = {{ {} }}    # what a number with it is multiplied with\n", each.join(", "));
        }
    }
    keys
}

/// What a field is: a sign, digits with one mark, a unit.
fn field(text: &str) -> Field {
    let digits = text.strip_prefix(['+', '-']).map_or(text, str::trim_start);
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ',').unwrap_or(digits.len());
    let (number, suffix) = (&digits[..end], digits[end..].trim());
    let marks = number.matches(['.', ',']).count();
    let is_number = number.starts_with(|c: char| c.is_ascii_digit()) && number.ends_with(|c: char| c.is_ascii_digit());
    let is_unit = suffix.chars().count() <= 4
        && suffix.chars().all(|c| c.is_alphabetic() || "%°/²³µ".contains(c))
        && !suffix.starts_with(['e', 'E', 'x']);
    match () {
        () if is_number && marks <= 1 && is_unit => {
            Field::Number { comma: number.contains(','), suffix: suffix.to_owned() }
        }
        // A time of day.
        () if text.contains(':') && !text.contains('=') => Field::Word,
        () if text.parse::<f64>().is_ok() => Field::Number { comma: false, suffix: String::new() },
        () if text.contains(|c: char| c.is_ascii_digit()) || matches!(text, "+" | "-") => Field::Odd,
        () => Field::Word,
    }
}

/// Text in a configuration.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(lines: &[&str]) -> String {
        suggest(lines).map(|found| found.keys.replace('\n', "|")).unwrap_or_default()
    }

    #[test]
    fn lines_with_labels_units_and_commas_are_recognised_and_plain_ones_are_not() {
        for (lines, wanted) in [
            (["T=23.5;P=1.013", "T=23.6;P=1.012"], "format = \"keyvalue\"|delimiter = \";\"|"),
            (
                ["a:1,5C b:2,5C", "a:1,5C b:2,5C"],
                "format = \"keyvalue\"|delimiter = \" \"|label_end = \":\"|decimal = \",\"|suffix = \"C\"|",
            ),
            (["V\t26201", "I\t-1450"], "format = \"keyvalue\"|label_end = \"\\t\"|"),
            (["Temp: 21.5", "Hum: 40"], "format = \"keyvalue\"|label_end = \":\"|"),
            (["20,5;1,00", "20,6;1,01"], "columns = [\"c1\", \"c2\"]|delimiter = \";\"|decimal = \",\"|"),
            (["20,5 1,00", "20,6 1,01"], "columns = [\"c1\", \"c2\"]|delimiter = \" \"|decimal = \",\"|"),
            (
                ["ST,GS,+   0.000kg", "ST,GS,-  12.345kg"],
                "columns = [\"\", \"\", \"c3\"]|suffix = \"kg\"|# an empty name skips a text; if it is a state",
            ),
            (["S S     100.00 g", "S D     -12.34 g"], "columns = [\"\", \"\", \"c3\", \"\"]|delimiter = \" \"|"),
            (["21.5C,40%", "21.6C,41%"], "columns = [\"c1\", \"c2\"]|suffix = { \"%\" = 1, \"C\" = 1 }"),
            (["7,1.5*31", "7,2.5*32"], "columns = [\"c1\", \"c2\"]|check = \"xor8\"|"),
            (["2026-03-12 10:00:05,1.5", "2026-03-12 10:00:06,1.6"], "columns = [\"\", \"c2\"]|"),
            (["1,2", "3,4"], ""),
            (["1;2", "3;4"], ""),
            (["21.5", "21.6"], ""),
            (["1.5E+00,2", "1e3,2"], ""),
            (["hello world", "ready."], ""),
            (["-- 12:00 --", "= 5 ="], ""),
        ] {
            let got = keys(&lines);
            assert!(if wanted.is_empty() { got.is_empty() } else { got.starts_with(wanted) }, "{lines:?}: {got}");
        }
        let monitor = ["PID\t0x203", "V\t26201", "I\t-1450", "SOC\t876", "Checksum\t\u{fffd}"];
        let wanted = "format = \"keyvalue\"|label_end = \"\\t\"|block_end = \"Checksum\"|block_check = \"sum8-zero\"|";
        assert_eq!(keys(&monitor), wanted);
    }
}
