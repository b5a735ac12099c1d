//! `format` of a source, or of one answer of a polled device, with the keys that belong to it.

use super::{Format, Framing, fields, nmea, raw::Table, text};

pub(super) fn format(t: &mut Table<'_>, framing: &Framing) -> Format {
    let lines = *framing == Framing::Lines;
    let usual = if lines { "csv" } else { "binary" };
    let words = ["csv", "fixed", "keyvalue", "pattern", "json", "nmea", "binary"].map(|word| (word, word));
    let known = t.word("format", &words);
    let word = known.unwrap_or(usual);
    let texts = t.strs("fields");
    let sentences = t.node("sentences");
    if known.is_none() && t.has("format") {
        // Which keys belong to it, and which columns it has, is not known.
        t.leave_undecided();
        return Format::Json;
    }
    let used: &[&str] = match word {
        "nmea" => &["sentences", "checksum"],
        "binary" => &["fields", "rate_hz"],
        word => text::keys(word),
    };
    for key in ["fields", "rate_hz", "sentences", "checksum"].into_iter().chain(text::KEYS) {
        // Read here, so that one that stands beside the wrong format is no unknown key.
        t.node(key);
        if t.has(key) && !used.contains(&key) {
            t.problem(key, format!("does not belong to `format = \"{word}\"`"));
        }
    }
    match word {
        "json" => Format::Json,
        "fixed" => text::fixed(t),
        "keyvalue" => text::keyvalue(t),
        "pattern" => text::pattern(t),
        "nmea" => {
            if !lines {
                t.problem("format", "`nmea` comes in lines");
            }
            Format::Nmea(nmea::nmea(t, sentences))
        }
        "binary" => {
            if lines {
                t.problem(
                    "format",
                    "`binary` needs a framing that is not lines: a line feed may be a part of a number",
                );
            }
            Format::Binary(fields::fields(t, &texts.unwrap_or_default()))
        }
        _ => text::csv(t),
    }
}
