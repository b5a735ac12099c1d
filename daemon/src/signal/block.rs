//! Frames that hold many samples: one row for each, with times at the declared rate. Pure; runs on stamps.
//!
//! Where the sensor has a clock of its own, that of a frame is the time of its first sample. Else the last sample is as old as
//! the arrival of the frame; as frames arrive sooner and later than they are made, the rows keep to the rate, and follow the
//! arrivals slowly. A frame that comes later than half of its length starts again, unless the sensor's count says that it joins.

use crate::config::Block;

/// Times of the rows of one source.
#[derive(Debug)]
pub struct Times {
    rows: usize,
    period_ns: f64,
    /// When the next frame's first sample is due, ns, and the number of the last frame.
    due: Option<(f64, Option<u64>)>,
    /// Of the frame in work.
    first_ns: f64,
}

impl Times {
    /// Nothing came yet.
    pub fn new(block: &Block) -> Self {
        Self { rows: block.rows, period_ns: block.period_ns, due: None, first_ns: 0.0 }
    }

    /// A frame begins. `own_ns`: the sensor's clock, if it has one.
    pub fn frame(&mut self, arrived_ns: u64, own_ns: Option<i64>, seq: Option<u64>) {
        let span = self.rows as f64 * self.period_ns;
        let by_arrival = arrived_ns as f64 - span + self.period_ns;
        self.first_ns = match (own_ns, self.due) {
            (Some(own), _) => own as f64,
            (None, None) => by_arrival,
            (None, Some((due, last))) => {
                let late = by_arrival - due;
                let joins =
                    last.zip(seq).is_some_and(|(last, seq)| seq == last.wrapping_add(1) || seq <= 1 && last > seq);
                match late > span / 2.0 && !joins {
                    true => by_arrival,
                    // Never as far back as the previous sample.
                    false => due + (late / 16.0).clamp(-self.period_ns / 2.0, span / 16.0),
                }
            }
        };
        self.due = Some((self.first_ns + span, seq));
    }

    /// Time of a row of the frame, ns.
    pub fn row_ns(&self, row: usize) -> i64 {
        (self.first_ns + row as f64 * self.period_ns).round() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        flow::{Clk, Quality, Stamp},
        signal::decode::{Decoder, Refused, Row},
    };

    const MS: u64 = 1_000_000;

    fn times() -> Times {
        // 100 samples at 1 kHz: a frame each 100 ms.
        Times::new(&Block { rows: 100, steps: vec![], period_ns: 1e6 })
    }

    fn all(times: &Times) -> impl Iterator<Item = i64> + '_ {
        (0..100).map(|row| times.row_ns(row))
    }

    #[test]
    fn rows_stand_at_the_rate_and_the_last_one_is_as_old_as_the_frame() {
        let mut t = times();
        t.frame(5000 * MS, None, None);
        assert_eq!((t.row_ns(0), t.row_ns(1), t.row_ns(99)), (4_901_000_000, 4_902_000_000, 5_000_000_000));
        t.frame(5000 * MS, Some(77), None);
        assert_eq!((t.row_ns(0), t.row_ns(10)), (77, 10_000_077), "its own clock is that of the first sample");
    }

    #[test]
    fn frames_that_come_sooner_later_and_in_bursts_make_times_that_go_ahead_evenly() {
        let (mut t, mut last) = (times(), 0);
        let jitter = [0, 30, 5, 45, 0, 12, 49, 1];
        for i in 0..4000u64 {
            // The last 10 of each 1,000 wait, and come together.
            let made = if i % 1000 >= 990 { (i / 1000 * 1000 + 999) * 100 } else { i * 100 + jitter[i as usize % 8] };
            t.frame((1000 + made) * MS, None, Some(i));
            for at in all(&t) {
                let step = at - last;
                assert!(last == 0 || (400_000..8_000_000).contains(&step), "{step} at frame {i}");
                last = at;
            }
        }
        let behind = (1000 + 3999 * 100) * MS as i64 - last;
        assert!(behind.abs() < 200 * MS as i64, "{behind}");
    }

    #[test]
    fn sensor_whose_rate_is_not_quite_the_declared_one_is_followed() {
        let (mut t, mut last) = (times(), 0);
        for i in 0..20_000u64 {
            // 100.02 ms instead of 100.
            t.frame(1000 * MS + i * 100_020_000, None, None);
            last = t.row_ns(99);
        }
        assert!((1000 * MS as i64 + 19_999 * 100_020_000 - last).abs() < 2 * MS as i64);
    }

    #[test]
    fn pause_is_a_gap_unless_the_count_joins() {
        for (seq, gap_ms) in [(None, 5000), (Some(9), 5000), (Some(8), 7)] {
            let mut t = times();
            t.frame(1000 * MS, None, seq.map(|_| 7));
            let last = t.row_ns(99);
            t.frame(6100 * MS, None, seq);
            let step_ms = (t.row_ns(0) - last) / 1_000_000;
            assert!((step_ms - gap_ms).abs() <= 101, "{seq:?}: {step_ms}");
        }
    }

    fn config(keys: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        let text = format!(
            "[source.s]\npath = \"/dev/x\"\nframing = \"cobs\"\n{keys}\n[channel.x]\n[channel.y]\nscale = 0.5\n[channel.t]\n"
        );
        std::fs::write(&file, text).expect("write");
        let lines = |problems: Vec<crate::config::Problem>| {
            problems.iter().map(|p| format!("{}: {}\n", p.key, p.why)).collect()
        };
        Config::local(Some(&file)).map_err(lines)
    }

    /// Number, ns, and the values of `t`, `x`, `y`.
    type Seen = (Option<u64>, i64, Vec<f64>);

    /// The rows of one frame.
    fn rows(decoder: &mut Decoder, frame: &[u8], at_ms: u64) -> Result<Vec<Seen>, Refused> {
        let (stamp, mut row) = (Stamp { boot_ns: at_ms * MS, wall_ms: None, clk: Clk::Unset }, Row::default());
        let mut all = Vec::new();
        let mut is_row = decoder.decode(Ok(frame), stamp, &mut row)?;
        while is_row {
            assert!(row.quality.iter().all(|quality| *quality == Quality::Good));
            all.push((row.seq, row.t_ns.expect("a time"), row.values.clone()));
            is_row = decoder.more(frame, &mut row);
        }
        Ok(all)
    }

    #[test]
    fn frame_of_arrays_makes_a_row_for_each_sample() {
        // One after the other, and in turns; a number of the whole frame is that of all its rows.
        let apart = (b"\x05\x00\x01\x00\x02\x00\x03\x00\x0a\x00\x14\x00\x1e\x00\x19", "x:i16le[3]\", \"y:i16le[3]");
        let turns = (b"\x05\x00\x01\x00\x0a\x00\x02\x00\x14\x00\x03\x00\x1e\x00\x19", "x,y:i16le[3]");
        for (frame, arrays) in [apart, turns] {
            let keys = format!("fields = [\"n:u16le\", \"{arrays}\", \"t:u8\"]\nrate_hz = 200\nseq = \"n\"");
            let config = config(&keys).expect("valid");
            let mut decoder = Decoder::new(&config.sources[0], &config.channels.iter().collect::<Vec<_>>());
            let got = rows(&mut decoder, frame, 1000).expect("rows");
            let row = |n: u64, ms: i64, x: f64, y: f64| (Some(n), ms * MS as i64, vec![25.0, x, y]);
            assert_eq!(got, [row(15, 990, 1.0, 5.0), row(16, 995, 2.0, 10.0), row(17, 1000, 3.0, 15.0)], "{arrays}");
            assert_eq!(rows(&mut decoder, &frame[1..], 1000), Err(Refused::Length));
            assert_eq!(rows(&mut decoder, frame, 1015).expect("rows").len(), 3);
        }
        let own =
            "fields = [\"n:u16le\", \"x,y:i16le[3]\", \"t:u8\"]\nrate_hz = 1000\ntime = \"n\"\ntime_format = \"ms\"";
        let config = config(own).expect("valid");
        let mut decoder = Decoder::new(&config.sources[0], &config.channels.iter().collect::<Vec<_>>());
        let got = rows(&mut decoder, turns.0, 1000).expect("rows");
        assert_eq!(got.iter().map(|row| row.1 / MS as i64).collect::<Vec<_>>(), [5, 6, 7]);
    }

    #[test]
    fn configuration_of_arrays_that_cannot_be_meant_is_rejected_with_advice() {
        let other = "\"y:u8\", \"t:u8\"";
        for (keys, wanted) in [
            (format!("fields = [\"x:i16le[64]\", {other}]"), "rate_hz: is needed: samples a second"),
            (format!("fields = [\"x:i16le\", {other}]\nrate_hz = 5"), "belongs to frames with arrays"),
            (format!("fields = [\"x:i16le[64\", {other}]\nrate_hz = 5"), "invalid type"),
            (format!("fields = [\"x:i16le[0]\", {other}]\nrate_hz = 5"), "an array has 2 to 8192 samples"),
            (format!("fields = [\"x:i16le[4]\", {other}]\nrate_hz = 0"), "0 is not within 0.001"),
            ("fields = [\"x:i8[4]\", \"y:i8[5]\", \"t:u8\"]\nrate_hz = 5".into(), "here are 4 and 5"),
            ("fields = [\"x,,y:i8[4]\", \"t:u8\"]\nrate_hz = 5".into(), "a name is empty"),
            (format!("fields = [\"x:u8[4]\", {other}]\nrate_hz = 5\nseq = \"x\""), "`x` is an array"),
            (format!("fields = [\"x:f64[8192]\", \"n:u8\", {other}]\nrate_hz = 5"), "bytes are more than 65536"),
            (format!("fields = [\"x:u8[4]\", {other}]\nrate = 5"), "the unit is part of the name: `rate_hz`"),
        ] {
            let problems = config(&keys).expect_err(&keys);
            assert!(problems.contains(wanted), "{keys}: {problems}");
        }
        assert!(
            config(&format!("fields = [\"x:i16le[64]\", \"_:i16le[3]\", \"_:2\", {other}]\nrate_hz = 44.1")).is_ok()
        );
    }
}
