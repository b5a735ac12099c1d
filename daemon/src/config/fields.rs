//! `fields` of binary frames: one number for each name, or arrays of samples: `"x:f32le[256]"`, `"x,y,z:i16le[64]"`.

use super::{
    Block, Field, Layout, Number, Order,
    parts::{number, twice, usual_name},
    raw::Table,
};
use crate::limits;

/// One of the texts of `fields`.
struct Part<'a> {
    names: Vec<&'a str>,
    kind: Kind,
    /// Samples of each name; 1: no array.
    samples: usize,
}

enum Kind {
    /// So many bytes that are not of use.
    Skip(usize),
    Number(Number, Order),
}

/// `["seq:u16le", "_:2", "x:i16be"]`, and `rate_hz` where there are arrays.
pub(super) fn fields(t: &mut Table<'_>, texts: &[String]) -> Layout {
    if texts.is_empty() {
        let why = "is needed: name and type of each number, such as `\"x:i16le\"`; `\"_:2\"` skips two bytes";
        t.problem("fields", why);
    }
    let (mut layout, mut steps, mut rows) = (Layout::default(), Vec::new(), 1);
    for text in texts {
        let part = match part(text) {
            Ok(part) => part,
            Err(why) => {
                t.problem("fields", why);
                continue;
            }
        };
        let Kind::Number(number, order) = part.kind else {
            let Kind::Skip(bytes) = part.kind else { continue };
            layout.bytes += bytes;
            continue;
        };
        // A name that is skipped gives no row.
        let of_use = part.names.iter().any(|name| *name != "_");
        if of_use && part.samples > 1 && rows > 1 && part.samples != rows {
            let why = format!("`{text}`: all arrays of a frame have one length; here are {rows} and {}", part.samples);
            t.problem("fields", why);
        }
        rows = if of_use { rows.max(part.samples) } else { rows };
        // Samples of several names stand in turns.
        let step = part.names.len() * number.bytes();
        for (i, name) in part.names.iter().enumerate().filter(|(_, name)| **name != "_") {
            let at = layout.bytes + i * number.bytes();
            layout.fields.push(Field { column: (*name).to_owned(), at, number, order });
            steps.push(if part.samples > 1 { step } else { 0 });
        }
        layout.bytes += step * part.samples;
    }
    let names: Vec<String> = layout.fields.iter().map(|f| f.column.clone()).collect();
    if let Some(twice) = twice(&names) {
        t.problem("fields", format!("`{twice}` stands twice"));
    }
    if layout.bytes > limits::FRAME_BYTES_MAX {
        t.problem("fields", format!("{} bytes are more than {}", layout.bytes, limits::FRAME_BYTES_MAX));
    }
    layout.block = block(t, rows, steps);
    layout
}

/// What arrays need beside their place: the rate of their samples.
fn block(t: &mut Table<'_>, rows: usize, steps: Vec<usize>) -> Option<Block> {
    let rate_hz = t.float("rate_hz");
    if let Some(rate) = rate_hz.filter(|rate| !(0.001..=10_000_000.0).contains(rate)) {
        t.problem("rate_hz", format!("{rate} is not within 0.001 to 10000000"));
    }
    match rate_hz {
        None if rows > 1 && !t.has("rate_hz") => {
            t.problem(
                "rate_hz",
                "is needed: samples a second of the arrays in `fields`; it gives each sample its time",
            );
        }
        Some(_) if rows == 1 => {
            t.problem("rate_hz", "belongs to frames with arrays, such as `\"x:f32le[256]\"` in `fields`")
        }
        _ => {}
    }
    (rows > 1).then(|| Block { rows, steps, period_ns: 1e9 / rate_hz.filter(|rate| *rate > 0.0).unwrap_or(1.0) })
}

/// `x:i16le`, `_:2`, `x,y,z:i16le[64]`
fn part(text: &str) -> Result<Part<'_>, String> {
    let Some((names, kind)) = text.split_once(':') else { return Err(format!("`{text}` is no NAME:TYPE")) };
    let names: Vec<&str> = names.split(',').map(str::trim).collect();
    let (kind, samples) = match kind.strip_suffix(']').and_then(|kind| kind.split_once('[')) {
        None => (kind, 1),
        Some((kind, n)) => {
            let n = n.trim().parse::<usize>().ok().filter(|n| (2..=limits::BLOCK_ROWS).contains(n));
            (kind, n.ok_or_else(|| format!("`{text}`: an array has 2 to {} samples", limits::BLOCK_ROWS))?)
        }
    };
    if names.iter().any(|name| name.is_empty()) {
        return Err(format!("`{text}`: a name is empty; `_` skips"));
    }
    match (names.as_slice(), kind.parse::<usize>(), number(kind)) {
        (["_"], Ok(bytes), _) if (1..=limits::FRAME_BYTES_MAX).contains(&bytes) && samples == 1 => {
            Ok(Part { names, kind: Kind::Skip(bytes), samples })
        }
        (_, _, Some((number, order))) => Ok(Part { names, kind: Kind::Number(number, order), samples }),
        _ => {
            let all: Vec<_> = Number::NAMES.iter().map(|(name, _)| *name).collect();
            let all = all.join(", ");
            let near = usual_name(kind).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            Err(format!(
                "`{text}`: invalid type: expected one of {all}, with `le` or `be` behind, and `[N]` for N samples{near}"
            ))
        }
    }
}
