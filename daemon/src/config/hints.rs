//! What to write instead of a value of the wrong type, or of a line that is no TOML: readers come from YAML, INI and Python.

/// A value that is there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Got<'a> {
    /// Text.
    Text(&'a str),
    /// An integer.
    Whole(i64),
    /// A number.
    Number(f64),
    /// True or false.
    Truth,
    /// A list or a table.
    Several,
}

/// What to write for `key` in place of `got`, where that is clear. `want` is the type in words, as the error has it.
pub(super) fn written(key: &str, want: &str, got: Got<'_>) -> Option<String> {
    let quotes = |plain: &str| format!("write `{key} = {plain}`, without quotes");
    match (want, got) {
        ("true or false", Got::Text(text)) => truth(text).map(|yes| quotes(if yes { "true" } else { "false" })),
        ("true or false", Got::Whole(n @ (0 | 1))) => Some(format!("write `{key} = {}`", n == 1)),
        ("an integer" | "a number", Got::Text(text)) => match number(text.trim(), want == "an integer")? {
            (plain, "") => Some(quotes(&plain)),
            (plain, unit) => match own_unit(key) {
                // `60s` for `…_s`. What another unit amounts to is the reader's to work out.
                Some(own) if own.eq_ignore_ascii_case(unit) => Some(quotes(&plain)),
                Some(own) => {
                    Some(format!("write the number alone, in the unit that stands in the key's name, `{own}`"))
                }
                None if unit.chars().all(|c| c.is_alphabetic() || "°%".contains(c)) => {
                    Some(format!("write the number alone, without `{unit}`"))
                }
                None => None,
            },
        },
        ("an integer", Got::Number(x)) if x.fract() == 0.0 && x.abs() < 1e15 => Some(format!("write `{key} = {x}`")),
        ("text", Got::Whole(_) | Got::Number(_) | Got::Truth) => {
            Some(format!("a text stands in quotes, `{key} = \"…\"`"))
        }
        ("a list of texts", Got::Text(text)) => {
            let parts: Vec<String> = text.split([',', ';']).map(|part| format!("\"{}\"", part.trim())).collect();
            Some(format!("write `{key} = [{}]`", parts.join(", ")))
        }
        _ => None,
    }
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" | "1" | "enabled" => Some(true),
        "false" | "no" | "off" | "n" | "0" | "disabled" => Some(false),
        _ => None,
    }
}

/// The unit at the end of a key's name.
fn own_unit(key: &str) -> Option<&str> {
    let (_, unit) = key.rsplit_once('_')?;
    ["ns", "us", "ms", "s", "h", "hz", "kib", "mib", "bytes"].contains(&unit).then_some(unit)
}

/// The number with which a text begins, as TOML writes it, and what stands behind it.
fn number(text: &str, whole: bool) -> Option<(String, &str)> {
    let hex = |text: &str| text.strip_prefix("0x").is_some_and(|digits| i64::from_str_radix(digits, 16).is_ok());
    let fits = |text: &str| match whole {
        true => text.parse::<i64>().is_ok() || hex(text),
        false => text.parse::<f64>().is_ok_and(f64::is_finite),
    };
    // `1,234` may be a thousand or one and a bit.
    let clear = |text: &str| text.split_once(',').is_some_and(|(_, behind)| behind.len() != 3);
    let dotted = |text: &str| if clear(text) { text.replacen(',', ".", 1) } else { text.to_owned() };
    if let Some(plain) = [text.to_owned(), dotted(text)].into_iter().find(|text| fits(text)) {
        return Some((plain, ""));
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.,".contains(c))?;
    let (start, rest) = text.split_at(end);
    let start = dotted(start);
    fits(&start).then_some((start, rest.trim()))
}

/// What a line that is no TOML was meant to be, where that can be seen. `why` is what the parser says of it.
pub(super) fn of_line(line: &str, why: &str) -> Option<&'static str> {
    let line = line.trim();
    let head = line.split(['=', '#']).next().unwrap_or("").trim();
    let value = line.split_once('=').map_or("", |(_, value)| value.trim());
    let after_colon =
        line.split_once(':').filter(|(key, _)| !key.contains(['=', '[', '"'])).map(|(_, rest)| rest.trim());
    let comma = |text: &str| {
        let (before, after) = text.split_once(',')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (digits(before.trim_start_matches(['+', '-'])) && digits(after)).then_some(())
    };
    if line.contains(['“', '”', '„', '‘', '’']) {
        return Some("the quotation marks are those of a word processor: write `\"`");
    }
    match after_colon {
        Some("") => {
            return Some("this is YAML: in TOML a section begins with `[NAME]`, and a key is `KEY = VALUE`");
        }
        Some(_) if !line.contains('=') => return Some("this is YAML: in TOML a key is `KEY = VALUE`"),
        _ => {}
    }
    if line.starts_with('[') && head.contains(char::is_whitespace) && !head.contains('"') {
        return Some("a name has no blanks: a-z, 0-9, `_` and `-`");
    }
    if why.contains("duplicate key") {
        return Some("it stands further up already: put the keys of one section into one place");
    }
    if value.contains("//") && !value.starts_with(['"', '\''])
        || value.split('"').nth(2).is_some_and(|rest| rest.trim_start().starts_with("//"))
    {
        return Some("a comment begins with `#`");
    }
    if comma(value).is_some() {
        return Some("the decimal mark is a point: `0.5`");
    }
    if value.starts_with('"') && value.contains('\\') {
        return Some("a backslash in `\"…\"` begins an escape such as `\\n`: write the text in single quotes, `'…'`");
    }
    if value.starts_with("None") || value.starts_with("null") {
        return Some("TOML has no such value: leave the key out");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_of_the_wrong_type_is_answered_with_what_to_write() {
        let text = Got::Text;
        for (want, got, expected) in [
            ("an integer", text("9600"), Some("write `k = 9600`, without quotes")),
            ("an integer", text("0x10"), Some("write `k = 0x10`, without quotes")),
            ("an integer", text("1G"), Some("write the number alone, without `G`")),
            ("an integer", text("1/10"), None),
            ("an integer", text("2.5 s"), None),
            ("an integer", text("fast"), None),
            ("an integer", text(""), None),
            ("an integer", Got::Number(60.0), Some("write `k = 60`")),
            ("an integer", Got::Number(0.5), None),
            ("a number", text("80 °C"), Some("write the number alone, without `°C`")),
            ("a number", text("-0,5"), Some("write `k = -0.5`, without quotes")),
            ("a number", text("1,234"), None),
            ("a number", text("nan"), None),
            ("true or false", text("yes"), Some("write `k = true`, without quotes")),
            ("true or false", text("Off"), Some("write `k = false`, without quotes")),
            ("true or false", Got::Whole(1), Some("write `k = true`")),
            ("true or false", Got::Whole(7), None),
            ("text", Got::Whole(0xAA), Some("a text stands in quotes, `k = \"…\"`")),
            ("a list of texts", text("a, b"), Some("write `k = [\"a\", \"b\"]`")),
            ("a table", text("a"), None),
        ] {
            assert_eq!(written("k", want, got).as_deref(), expected, "{want}: {got:?}");
        }
    }

    #[test]
    fn number_with_a_unit_is_never_taken_for_another_one() {
        let of = |key: &str, text: &str| written(key, "an integer", Got::Text(text));
        assert_eq!(of("keep_alive_s", "60s").as_deref(), Some("write `keep_alive_s = 60`, without quotes"));
        assert_eq!(of("max_mib", "100 MiB").as_deref(), Some("write `max_mib = 100`, without quotes"));
        for (key, text, unit) in [
            ("confirm_s", "2m", "s"),
            ("max_mib", "1G", "mib"),
            ("expire_data_h", "7d", "h"),
            ("gap_max_ms", "2s", "ms"),
        ] {
            let advice = format!("write the number alone, in the unit that stands in the key's name, `{unit}`");
            assert_eq!(of(key, text).as_deref(), Some(advice.as_str()), "{key} = {text}");
        }
    }

    #[test]
    fn line_that_is_no_toml_is_answered_with_what_was_meant() {
        for (line, why, part) in [
            ("device:", "", "in TOML a section begins with `[NAME]`"),
            ("  site: \"plant\"", "", "`KEY = VALUE`"),
            ("site = “s”", "", "write `\"`"),
            ("[source.my pump]", "", "no blanks"),
            ("[source.a]", "duplicate key", "into one place"),
            ("site = \"s\" // the site", "", "begins with `#`"),
            ("n = 5 // five", "", "begins with `#`"),
            ("scale = 0,1", "", "the decimal mark is a point"),
            ("path = \"C:\\Users\\COM3\"", "", "single quotes"),
            ("threshold = None", "", "leave the key out"),
        ] {
            assert!(of_line(line, why).is_some_and(|hint| hint.contains(part)), "{line}: {:?}", of_line(line, why));
        }
        for line in ["site = s", "", "url = \"mqtts://b\" x", "x = [1,2", "a = 2026-01-01T10:00:00X", "[source.a"] {
            assert_eq!(of_line(line, "unexpected"), None, "{line}");
        }
    }
}
