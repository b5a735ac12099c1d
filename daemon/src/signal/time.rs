//! A sensor's clock: numbers of a unit, ISO 8601, patterns of strptime. Pure.

use jiff::{Timestamp, civil::DateTime, fmt::strtime, tz::Offset};

use crate::config::TimeFormat;

/// A sensor's time in nanoseconds since its epoch.
pub fn parse_time(text: &str, format: &TimeFormat) -> Option<i64> {
    match format {
        TimeFormat::Unit(ns) => match text.parse::<i64>() {
            Ok(n) => n.checked_mul(*ns as i64),
            Err(_) => {
                let t = text.parse::<f64>().ok().filter(|_| is_whole(text))? * *ns as f64;
                (t.abs() < 9e18).then_some(t as i64)
            }
        },
        TimeFormat::Civil => civil(text),
        TimeFormat::Patterns(patterns) => patterns.iter().find_map(|pattern| {
            let read = strtime::parse(pattern, text).ok()?;
            let at = match read.to_timestamp() {
                Ok(at) => at,
                Err(_) if read.offset().is_none() => utc(read.to_datetime().ok()?)?,
                Err(_) => return None,
            };
            ns(at)
        }),
    }
}

/// Whether a number of seconds (or of another unit) has all of its digits: `1.80939E+09`, as spreadsheets save a time, lacks the last
/// four.
fn is_whole(text: &str) -> bool {
    let Some((mantissa, power)) = text.split_once(['e', 'E']) else { return true };
    let written = mantissa.split_once('.').map_or(0, |(_, part)| part.len());
    power.parse::<i64>().is_ok_and(|power| power <= written as i64)
}

/// ISO 8601, also with `/` or `.` in a date that begins with the year, and with `UTC` or `GMT` behind. A date alone is no time.
fn civil(text: &str) -> Option<i64> {
    let zone = ["UTC", "GMT", "utc"].iter().find_map(|zone| text.strip_suffix(zone));
    let text = zone.map_or(text, str::trim_ascii_end);
    let mut buffer = [0; 64];
    let bytes = text.as_bytes();
    if !bytes.iter().any(|b| matches!(b, b'T' | b't' | b' ')) {
        return None;
    }
    let text = match *bytes {
        // Year first: the rest of the order is the same everywhere.
        [y1, y2, y3, y4, a @ (b'/' | b'.'), _, _, b, ..]
            if a == b && [y1, y2, y3, y4].iter().all(u8::is_ascii_digit) =>
        {
            let copy = buffer.get_mut(..bytes.len())?;
            copy.copy_from_slice(bytes);
            (copy[4], copy[7]) = (b'-', b'-');
            std::str::from_utf8(copy).ok()?
        }
        _ => text,
    };
    match text.parse::<Timestamp>() {
        Ok(at) => ns(at),
        Err(_) => ns(utc(text.parse::<DateTime>().ok()?)?),
    }
}

/// A time zone is not guessed.
fn utc(at: DateTime) -> Option<Timestamp> {
    Offset::UTC.to_timestamp(at).ok()
}

fn ns(at: Timestamp) -> Option<i64> {
    i64::try_from(at.as_nanosecond()).ok()
}
