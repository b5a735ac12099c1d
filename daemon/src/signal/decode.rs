//! Frames into rows: CSV and JSON lines into the channels of one source. Pure.

use crate::{
    config::{Channel, Format, Source, TimeFormat},
    flow::{Quality, Why},
};

/// Why a whole frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refused {
    /// Bytes that are no UTF-8 text.
    NotText,
    /// Fewer or more columns than declared.
    Columns,
    /// Not one JSON object.
    NotJson,
    /// The declared sequence column holds no whole number.
    Sequence,
    /// The declared clock column holds no time.
    Clock,
    /// Longer than a frame may be.
    Oversize,
}

impl Refused {
    /// Every reason, in the order of `index`.
    pub const ALL: [Refused; 6] =
        [Self::NotText, Self::Columns, Self::NotJson, Self::Sequence, Self::Clock, Self::Oversize];

    /// The word in payloads.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotText => "not_text",
            Self::Columns => "columns",
            Self::NotJson => "not_json",
            Self::Sequence => "sequence",
            Self::Clock => "clock",
            Self::Oversize => "oversize",
        }
    }
}

/// One decoded frame; reused from frame to frame.
#[derive(Debug, Default)]
pub struct Row {
    /// The sensor's own sequence number.
    pub seq: Option<u64>,
    /// The sensor's own time, ns.
    pub t_ns: Option<i64>,
    /// One value for each channel of the source, engineering units; NaN where there is none.
    pub values: Vec<f64>,
    /// One word for each value.
    pub quality: Vec<Quality>,
}

/// What one channel does with its raw number.
#[derive(Debug, Clone)]
struct Scaling {
    scale: f64,
    offset: f64,
    min: f64,
    max: f64,
}

impl Scaling {
    fn apply(&self, raw: Option<f64>) -> (f64, Quality) {
        let value = raw.unwrap_or(f64::NAN) * self.scale + self.offset;
        if !value.is_finite() {
            (f64::NAN, Quality::Bad(Why::NotANumber))
        } else if value < self.min || value > self.max {
            (value, Quality::Bad(Why::Range))
        } else {
            (value, Quality::Good)
        }
    }
}

/// What one CSV column is for.
#[derive(Debug, Clone, Default)]
struct Column {
    seq: bool,
    time: bool,
    channels: Vec<usize>,
}

#[derive(Debug)]
enum Shape {
    Csv { delimiter: u8, columns: Vec<Column> },
    Json { keys: Vec<String>, seq: Option<String>, time: Option<String> },
}

/// Decodes the frames of one source.
#[derive(Debug)]
pub struct Decoder {
    shape: Shape,
    time: TimeFormat,
    scaling: Vec<Scaling>,
}

impl Decoder {
    /// A decoder for `source`, whose channels are `channels` in this order.
    pub fn new(source: &Source, channels: &[&Channel]) -> Self {
        let time_column = source.time.as_ref().map(|(column, _)| column.clone());
        let shape = match &source.format {
            Format::Csv { delimiter, columns } => {
                let column = |name: &String| Column {
                    seq: source.seq.as_ref() == Some(name),
                    time: time_column.as_ref() == Some(name),
                    channels: (0..channels.len()).filter(|i| channels[*i].column == *name).collect(),
                };
                Shape::Csv { delimiter: *delimiter, columns: columns.iter().map(column).collect() }
            }
            Format::Json => Shape::Json {
                keys: channels.iter().map(|c| c.column.clone()).collect(),
                seq: source.seq.clone(),
                time: time_column,
            },
        };
        let scaling = |c: &&Channel| Scaling {
            scale: c.scale,
            offset: c.offset,
            min: c.min.unwrap_or(f64::NEG_INFINITY),
            max: c.max.unwrap_or(f64::INFINITY),
        };
        let time = source.time.as_ref().map_or(TimeFormat::Unit(1), |(_, format)| *format);
        Self { shape, time, scaling: channels.iter().map(scaling).collect() }
    }

    /// Decodes one frame into `row`; an empty one stands for one that was too long. A number that cannot be used spoils
    /// its sample, not the row.
    pub fn decode(&self, frame: &[u8], row: &mut Row) -> Result<(), Refused> {
        row.seq = None;
        row.t_ns = None;
        row.values.clear();
        row.values.resize(self.scaling.len(), f64::NAN);
        row.quality.clear();
        row.quality.resize(self.scaling.len(), Quality::Missing);
        if frame.is_empty() {
            return Err(Refused::Oversize);
        }
        let text = std::str::from_utf8(frame).map_err(|_| Refused::NotText)?;
        match &self.shape {
            Shape::Csv { delimiter, columns } => self.csv(text, *delimiter, columns, row),
            Shape::Json { keys, seq, time } => self.json(text, keys, seq.as_deref(), time.as_deref(), row),
        }
    }

    fn csv(&self, text: &str, delimiter: u8, columns: &[Column], row: &mut Row) -> Result<(), Refused> {
        let mut fields = Split { text, delimiter, done: false };
        for column in columns {
            let field = fields.next().ok_or(Refused::Columns)?.trim_ascii();
            if column.seq {
                row.seq = Some(field.parse().map_err(|_| Refused::Sequence)?);
            }
            if column.time {
                row.t_ns = Some(parse_time(field, self.time).ok_or(Refused::Clock)?);
            }
            if let [first, others @ ..] = column.channels.as_slice() {
                let raw = field.parse().ok();
                self.set(row, *first, raw);
                others.iter().for_each(|i| self.set(row, *i, raw));
            }
        }
        if fields.next().is_some() { Err(Refused::Columns) } else { Ok(()) }
    }

    fn json(
        &self,
        text: &str,
        keys: &[String],
        seq: Option<&str>,
        time: Option<&str>,
        row: &mut Row,
    ) -> Result<(), Refused> {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|_| Refused::NotJson)?;
        if let Some(key) = seq {
            row.seq = Some(object.get(key).and_then(serde_json::Value::as_u64).ok_or(Refused::Sequence)?);
        }
        if let Some(key) = time {
            let value = object.get(key).ok_or(Refused::Clock)?;
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            row.t_ns = Some(parse_time(&text, self.time).ok_or(Refused::Clock)?);
        }
        for (i, key) in keys.iter().enumerate() {
            if let Some(value) = object.get(key) {
                self.set(row, i, value.as_f64().or_else(|| value.as_bool().map(f64::from)));
            }
        }
        Ok(())
    }

    fn set(&self, row: &mut Row, channel: usize, raw: Option<f64>) {
        (row.values[channel], row.quality[channel]) = self.scaling[channel].apply(raw);
    }
}

/// Fields of a line; an empty last field counts.
struct Split<'a> {
    text: &'a str,
    delimiter: u8,
    done: bool,
}

impl<'a> Iterator for Split<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.done {
            return None;
        }
        match memchr::memchr(self.delimiter, self.text.as_bytes()) {
            Some(at) => {
                let (field, rest) = (self.text.get(..at)?, self.text.get(at + 1..)?);
                self.text = rest;
                Some(field)
            }
            None => {
                self.done = true;
                Some(self.text)
            }
        }
    }
}

/// A sensor's time in nanoseconds since its epoch.
pub fn parse_time(text: &str, format: TimeFormat) -> Option<i64> {
    match format {
        TimeFormat::Unit(ns) => match text.parse::<i64>() {
            Ok(n) => n.checked_mul(ns as i64),
            Err(_) => {
                let t = text.parse::<f64>().ok()? * ns as f64;
                (t.abs() < 9e18).then_some(t as i64)
            }
        },
        TimeFormat::Civil => {
            let at = match text.parse::<jiff::Timestamp>() {
                Ok(at) => at,
                Err(_) => {
                    text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()
                }
            };
            i64::try_from(at.as_nanosecond()).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Line, Serial},
        flow::SourceId,
    };

    fn channel(name: &str, max: Option<f64>) -> Channel {
        Channel {
            name: name.into(),
            source: SourceId(0),
            column: name.into(),
            unit: String::new(),
            scale: 2.0,
            offset: 1.0,
            min: None,
            max,
        }
    }

    fn decoder(format: Format) -> Decoder {
        let source = Source {
            name: "s".into(),
            serial: Serial {
                path: String::new(),
                baud: 9600,
                line: Line { data: 8, parity: b'N', stop: 1 },
                frame_max: 64,
            },
            format,
            seq: Some("n".into()),
            time: Some(("t".into(), TimeFormat::Unit(1_000_000))),
            stale_ms: 1,
        };
        Decoder::new(&source, &[&channel("a", None), &channel("b", Some(10.0))])
    }

    fn csv() -> Decoder {
        decoder(Format::Csv { delimiter: b',', columns: ["n", "t", "a", "b"].map(String::from).to_vec() })
    }

    #[test]
    fn a_row_is_scaled_checked_and_keeps_the_sensors_own_sequence_and_clock() {
        for (decoder, frame) in
            [(csv(), "7, 12.5,1.5,8"), (decoder(Format::Json), r#"{"n":7,"t":12.5,"a":1.5,"b":8,"x":[]}"#)]
        {
            let mut row = Row::default();
            assert_eq!(decoder.decode(frame.as_bytes(), &mut row), Ok(()));
            assert_eq!((row.seq, row.t_ns), (Some(7), Some(12_500_000)));
            assert_eq!(row.values, [4.0, 17.0]);
            assert_eq!(row.quality, [Quality::Good, Quality::Bad(Why::Range)]);
        }
    }

    #[test]
    fn garbage_is_refused_by_name_and_a_bad_number_spoils_one_sample() {
        let refused = |frame: &[u8]| csv().decode(frame, &mut Row::default()).err();
        assert_eq!(refused(b"1,2,3"), Some(Refused::Columns));
        assert_eq!(refused(b"1,2,3,4,5"), Some(Refused::Columns));
        assert_eq!(refused(b"x,2,3,4"), Some(Refused::Sequence));
        assert_eq!(refused(b"1,nan,3,4"), Some(Refused::Clock));
        assert_eq!(refused(b"1,2,\xc3,4"), Some(Refused::NotText));
        assert_eq!(decoder(Format::Json).decode(b"{\"n\":1", &mut Row::default()), Err(Refused::NotJson));
        for text in ["1e999", "nan", "inf", "", "1 2", "\0", "0x10"] {
            let mut row = Row::default();
            assert_eq!(csv().decode(format!("1,2,{text},4").as_bytes(), &mut row), Ok(()));
            assert_eq!(row.quality, [Quality::Bad(Why::NotANumber), Quality::Good], "{text:?}");
        }
    }

    #[test]
    fn civil_times_are_utc_unless_they_say_otherwise() {
        let parse = |text| parse_time(text, TimeFormat::Civil);
        assert_eq!(parse("1970-01-01 00:00:01"), Some(1_000_000_000));
        assert_eq!(parse("1970-01-01T01:00:01+01:00"), Some(1_000_000_000));
        assert_eq!(parse("yesterday"), None);
    }
}
