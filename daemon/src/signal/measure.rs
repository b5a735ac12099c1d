//! `[stream.NAME]`: channels published as measurements — every row, every n-th, or least, mean and largest of an
//! interval — each with its quality. Pure.

use std::fmt::Write;

use bytes::Bytes;

use super::{quality::join, row::Row};
use crate::{
    config::{Stream, StreamMode},
    flow::{
        Quality, StreamId,
        record::{json_num, json_str},
    },
};

/// Least, mean and largest of one channel in the open interval.
#[derive(Debug, Clone)]
struct Stat {
    min: f64,
    max: f64,
    sum: f64,
    n: u64,
    worst: Quality,
}

impl Stat {
    const EMPTY: Self = Self { min: f64::INFINITY, max: f64::NEG_INFINITY, sum: 0.0, n: 0, worst: Quality::Good };

    fn add(&mut self, value: f64, quality: Quality) {
        if quality.is_good() {
            self.min = self.min.min(value);
            self.max = self.max.max(value);
            self.sum += value;
            self.n += 1;
        } else if quality != Quality::Absent {
            self.worst = quality;
        }
    }
}

/// Publishes one stream.
#[derive(Debug)]
pub struct Measure {
    /// Its place in the outbox.
    pub stream: StreamId,
    mode: StreamMode,
    /// Places in the source's row, and names.
    channels: Vec<(usize, String)>,
    rows: u64,
    bucket: Option<i64>,
    stats: Vec<Stat>,
    first: (Option<u64>, i64),
    last: (Option<u64>, i64),
}

impl Measure {
    /// `channels`: where each channel of the stream stands in its source's row, and its name.
    pub fn new(stream: StreamId, config: &Stream, channels: Vec<(usize, String)>) -> Self {
        let stats = vec![Stat::EMPTY; channels.len()];
        Self { stream, mode: config.mode, channels, rows: 0, bucket: None, stats, first: (None, 0), last: (None, 0) }
    }

    /// Takes a row at sensor time (or ours) `t_ns`; returns the members of a record that is ready.
    pub fn row(&mut self, row: &Row, t_ns: i64) -> Option<Bytes> {
        if self.channels.iter().all(|(i, _)| row.quality[*i] == Quality::Absent) {
            return None;
        }
        match self.mode {
            StreamMode::Raw => Some(self.values(row, t_ns)),
            StreamMode::Decimate(every) => {
                self.rows += 1;
                ((self.rows - 1).is_multiple_of(u64::from(every))).then(|| self.values(row, t_ns))
            }
            StreamMode::Stats(interval_ms) => {
                let bucket = t_ns.div_euclid(interval_ms as i64 * 1_000_000);
                let ready = if self.bucket.is_some_and(|open| open != bucket) { self.flush() } else { None };
                if self.bucket.is_none() {
                    self.bucket = Some(bucket);
                    self.first = (row.seq, t_ns);
                }
                self.last = (row.seq, t_ns);
                for ((i, _), stat) in self.channels.iter().zip(&mut self.stats) {
                    stat.add(row.values[*i], row.quality[*i]);
                }
                ready
            }
        }
    }

    /// Closes the open interval when time has passed its end.
    pub fn tick(&mut self, t_ns: i64) -> Option<Bytes> {
        let StreamMode::Stats(interval_ms) = self.mode else {
            return None;
        };
        let now = t_ns.div_euclid(interval_ms as i64 * 1_000_000);
        if self.bucket.is_some_and(|open| open < now) { self.flush() } else { None }
    }

    /// Closes the open interval at once: the stop.
    pub fn flush(&mut self) -> Option<Bytes> {
        self.bucket.take()?;
        let mut out = String::with_capacity(160);
        origin(&mut out, self.first, self.last);
        out.push_str(",\"v\":{");
        join(&mut out, self.channels.iter().zip(&self.stats), |out, ((_, name), stat)| {
            json_str(out, name);
            if stat.n == 0 {
                return out.write_str(":null");
            }
            out.push_str(":{\"min\":");
            json_num(out, stat.min);
            out.push_str(",\"mean\":");
            json_num(out, stat.sum / stat.n as f64);
            out.push_str(",\"max\":");
            json_num(out, stat.max);
            write!(out, ",\"n\":{}}}", stat.n)
        });
        out.push('}');
        let words = self.channels.iter().zip(&self.stats).map(|((_, name), stat)| (name.as_str(), stat.worst));
        qualities(&mut out, words);
        self.stats.fill(Stat::EMPTY);
        Some(out.into())
    }

    fn values(&self, row: &Row, t_ns: i64) -> Bytes {
        let mut out = String::with_capacity(48 + 24 * self.channels.len());
        origin(&mut out, (row.seq, t_ns), (row.seq, t_ns));
        out.push_str(",\"v\":{");
        join(&mut out, self.channels.iter(), |out, (i, name)| {
            json_str(out, name);
            out.push(':');
            json_num(out, row.values[*i]);
            Ok(())
        });
        out.push('}');
        qualities(&mut out, self.channels.iter().map(|(i, name)| (name.as_str(), row.quality[*i])));
        out.into()
    }
}

/// `"in_seq":[…],"in_t_ns":[…]`; the sequence only where the sensor has one.
fn origin(out: &mut String, first: (Option<u64>, i64), last: (Option<u64>, i64)) {
    if let (Some(a), Some(b)) = (first.0, last.0) {
        let _ = write!(out, "\"in_seq\":[{a},{b}],");
    }
    let _ = write!(out, "\"in_t_ns\":[{},{}]", first.1, last.1);
}

/// `,"q":{…}` with what is not good; nothing when all is.
fn qualities<'a>(out: &mut String, words: impl Iterator<Item = (&'a str, Quality)>) {
    let bad: Vec<_> = words.filter(|(_, quality)| !quality.is_good()).collect();
    if !bad.is_empty() {
        out.push_str(",\"q\":{");
        join(out, bad.into_iter(), |out, (name, quality)| {
            json_str(out, name);
            write!(out, ":\"{}\"", quality.word())
        });
        out.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{SourceId, Why};

    fn measure(mode: StreamMode) -> Measure {
        let config = Stream { name: "s".into(), channels: vec![0, 1], source: SourceId(0), mode };
        Measure::new(StreamId(0), &config, vec![(0, "a".into()), (1, "b".into())])
    }

    fn row(seq: u64, a: f64, b: Quality) -> Row {
        Row { seq: Some(seq), t_ns: None, values: vec![a, f64::NAN], quality: vec![Quality::Good, b], ..Row::default() }
    }

    fn json(bytes: Option<Bytes>) -> serde_json::Value {
        let bytes = bytes.expect("a record");
        serde_json::from_str(&format!("{{{}}}", String::from_utf8_lossy(&bytes))).expect("json")
    }

    #[test]
    fn raw_rows_carry_values_origin_and_quality() {
        let got = json(measure(StreamMode::Raw).row(&row(7, 1.5, Quality::Bad(Why::NotANumber)), 99));
        assert_eq!(
            got,
            serde_json::json!({"in_seq":[7,7],"in_t_ns":[99,99],"v":{"a":1.5,"b":null},"q":{"b":"bad:not_a_number"}})
        );
    }

    #[test]
    fn decimation_takes_the_first_of_every_n() {
        let mut m = measure(StreamMode::Decimate(3));
        let taken: Vec<bool> = (0..7).map(|i| m.row(&row(i, 0.0, Quality::Good), 0).is_some()).collect();
        assert_eq!(taken, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn an_interval_is_closed_by_the_next_row_or_by_time() {
        let mut m = measure(StreamMode::Stats(1000));
        for (i, a) in [1.0, 2.0, 6.0].into_iter().enumerate() {
            assert_eq!(m.row(&row(i as u64, a, Quality::Missing), i as i64 * 300_000_000), None);
        }
        assert_eq!(m.tick(900_000_000), None);
        let got = json(m.tick(1_000_000_000));
        assert_eq!(got["v"], serde_json::json!({"a":{"min":1,"mean":3,"max":6,"n":3},"b":null}));
        assert_eq!(got["in_seq"], serde_json::json!([0, 2]));
        assert_eq!(got["q"]["b"], "missing");
        assert_eq!(m.tick(5_000_000_000), None);
    }
}
