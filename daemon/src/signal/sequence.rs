//! The sensor's own count of its rows: what is missing, what came twice, and where the sensor restarted. Pure; runs on the
//! times of the rows.
//!
//! A count that goes ahead may be loss or a restart, and a count that wraps shows both as the same step. It is taken for loss
//! only where so many rows can have been made: a sensor that counts from 0 or 1 again has restarted, and so has one whose
//! rows would have come faster than it makes them. How many rows a restart cost is not known. Nor is it known after a silence in
//! which a count that wraps may have gone round, or in which far more rows were due than its number says.

use std::collections::VecDeque;

use crate::{config::Source, limits};

/// How a row follows the previous one by the sensor's own sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is the next one, or the first.
    Joins,
    /// So many are missing before it.
    Missing(u64),
    /// The same row came before.
    Duplicate,
    /// It is older than the previous row, and did not come yet; or the sensor restarted.
    Back,
    /// It came after a silence in which a count that wraps may have gone round, or begun again: it does not join, and how many are
    /// missing is not known.
    Unknown,
}

/// The sequence of one source.
#[derive(Debug)]
pub struct Sequence {
    modulo: u64,
    /// Rows of one frame: each number of the sensor stands for so many.
    rows: u64,
    /// The last number, counted on over its wraps.
    last: Option<u64>,
    /// The last rows: number and digest.
    recent: VecDeque<(u64, u64)>,
    pace: Pace,
}

impl Sequence {
    /// As the source is configured. A frame of it makes so many rows; row i of frame n has the number n × rows + i.
    pub fn new(source: &Source, rows: u64) -> Self {
        Self::of(source.seq_modulo, rows)
    }

    fn of(modulo: u64, rows: u64) -> Self {
        let recent = VecDeque::with_capacity(limits::ROWS_KNOWN);
        Self { modulo: modulo.saturating_mul(rows), rows, last: None, recent, pace: Pace::default() }
    }

    /// Whether the number is above what the sensor counts to: the row, or the configuration, is wrong. A count from 1 to
    /// `seq_modulo` is as good as one from 0.
    pub fn is_beyond(&self, raw: u64) -> bool {
        self.modulo > 0 && raw / self.rows > self.modulo / self.rows
    }

    /// Rows that stay known.
    fn known(&self) -> u64 {
        (limits::ROWS_KNOWN as u64).max(self.rows.saturating_mul(limits::FRAMES_KNOWN))
    }

    /// A row with this number, time and content. `own`: the time is the sensor's own clock. Returns the number counted on over
    /// its wraps; after a restart it begins again.
    pub fn step(&mut self, raw: u64, values: &[f64], t_ns: i64, own: bool) -> (u64, Step) {
        let seq = self.unwrapped(raw);
        let digest = digest(values, own.then_some(t_ns));
        let (seq, step) = match self.last {
            None => (seq, Step::Joins),
            Some(last) if self.says_little(seq.checked_sub(last), t_ns) => (raw, Step::Unknown),
            Some(last) if seq == last.wrapping_add(1) => (seq, Step::Joins),
            Some(last) if seq > last => match seq - last - 1 {
                missing if self.is_restart(raw, missing, t_ns) => (raw, Step::Back),
                missing => (seq, Step::Missing(missing)),
            },
            Some(_) if self.recent.contains(&(seq, digest)) => return (seq, Step::Duplicate),
            // A row that was overtaken is a few rows old.
            Some(last) if last - seq > self.known() => (raw, Step::Back),
            Some(_) => (seq, Step::Back),
        };
        if matches!(step, Step::Back | Step::Unknown) {
            self.pace.restart();
        }
        if step == Step::Unknown {
            // The same numbers mean other rows from here on.
            self.recent.clear();
        }
        self.pace.row(seq, t_ns);
        self.last = Some(seq);
        if self.recent.len() as u64 >= self.known() {
            self.recent.pop_front();
        }
        self.recent.push_back((seq, digest));
        (seq, step)
    }

    /// Whether so much time passed since the last row that a count that wraps says little: it may have gone half round, or many
    /// more rows were due than `ahead`, its step ahead.
    fn says_little(&self, ahead: Option<u64>, t_ns: i64) -> bool {
        let Some(due) = (self.modulo > 0).then(|| self.pace.due_after_silence(t_ns)).flatten() else { return false };
        let far_more = |ahead: u64| ahead > 1 && due / limits::PACE_SLACK > ahead.saturating_add(self.rows);
        due >= self.modulo / 2 || ahead.is_some_and(far_more)
    }

    /// Whether a step ahead over so many rows is no loss.
    fn is_restart(&self, raw: u64, missing: u64, t_ns: i64) -> bool {
        let from_the_start = self.modulo > 0 && raw / self.rows <= 1 && missing / self.rows > limits::ROWS_LOST;
        let too_many = |most: u64| missing > most.saturating_add(self.known());
        from_the_start || self.pace.made_at_most(t_ns).is_some_and(too_many)
    }

    /// A number that wraps, as one that does not: forward by less than half a turn, else backward.
    fn unwrapped(&self, raw: u64) -> u64 {
        let (modulo, Some(last)) = (self.modulo, self.last) else { return raw };
        if modulo == 0 {
            return raw;
        }
        let ahead = (raw % modulo + modulo - last % modulo) % modulo;
        if ahead <= modulo / 2 { last.saturating_add(ahead) } else { last.saturating_sub(modulo - ahead) }
    }
}

/// How fast a sensor makes rows, by its own count: between marks that are a while apart.
#[derive(Debug, Default)]
struct Pace {
    /// The previous mark, and the present one: number and time.
    marks: [Option<(u64, i64)>; 2],
    last: Option<(u64, i64)>,
    /// From mark to mark, the last two times: one of them may hold the time that a queue stood still.
    periods_ns: [Option<u64>; 2],
    /// The longest time from row to row between the last two marks, and since.
    longest_ns: [u64; 2],
}

impl Pace {
    fn row(&mut self, seq: u64, t_ns: i64) {
        let step = self.last.map_or(0, |(_, at)| t_ns.saturating_sub(at));
        self.longest_ns[1] = self.longest_ns[1].max(u64::try_from(step).unwrap_or(0));
        self.last = Some((seq, t_ns));
        match self.marks[1] {
            None => self.marks[1] = self.last,
            Some((at, since))
                if seq.saturating_sub(at) >= limits::PACE_ROWS && t_ns.saturating_sub(since) >= limits::PACE_NS =>
            {
                self.periods_ns = [self.periods_ns[1], self.period_ns()];
                self.marks = [self.marks[1], self.last];
                self.longest_ns = [self.longest_ns[1], 0];
            }
            Some(_) => {}
        }
    }

    fn restart(&mut self) {
        *self = Self::default();
    }

    /// From the present mark to the last row.
    fn period_ns(&self) -> Option<u64> {
        let ((from, since), (last, at)) = (self.marks[1]?, self.last?);
        let rows = last.checked_sub(from).filter(|rows| *rows > 0)?;
        u64::try_from(at.saturating_sub(since)).ok().map(|ns| ns / rows).filter(|period| *period > 0)
    }

    /// How many rows were due since the last one, where that is twice as long ago as is usual; `None`: it is not, or its pace is not
    /// known.
    fn due_after_silence(&self, t_ns: i64) -> Option<u64> {
        let period_ns = self.periods_ns.iter().flatten().copied().min()?;
        let silence = u64::try_from(t_ns.saturating_sub(self.last?.1)).ok()?;
        let usual = self.longest_ns.iter().copied().max().unwrap_or(0);
        (silence > usual.saturating_mul(2)).then(|| silence / period_ns)
    }

    /// How many rows can have been made since the last one; 0 where the sensor's clock went back. `None`: its pace is not known.
    fn made_at_most(&self, t_ns: i64) -> Option<u64> {
        if self.last.is_some_and(|(_, at)| t_ns < at) {
            return Some(0);
        }
        let period_ns = self.periods_ns.iter().flatten().copied().min().or_else(|| self.period_ns())?;
        let ((from, since), (last, at)) = (self.marks[0].or(self.marks[1])?, self.last?);
        let rows = |since: i64| Some(u64::try_from(t_ns.saturating_sub(since)).ok()? / period_ns);
        // What waited in a queue came late, and so does what was lost with it: from the mark on so many were made, and did not
        // come yet.
        let made = rows(since)?;
        let waiting = made.saturating_add(made / 8).saturating_sub(last.saturating_sub(from));
        Some(rows(at)?.saturating_mul(limits::PACE_SLACK).saturating_add(waiting))
    }
}

/// A digest to tell a repeat from another row with the same number; not for strangers.
fn digest(values: &[f64], t_ns: Option<i64>) -> u64 {
    let start = t_ns.unwrap_or(0) as u64 ^ 0x9E37_79B9_7F4A_7C15;
    values.iter().fold(start, |sum, value| (sum ^ value.to_bits()).wrapping_mul(0x100_0000_01B3).rotate_left(23))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    /// A row each 10 ms, unless said: number and steps, with the row's place as its value.
    fn steps(modulo: u64, rows: &[u64]) -> Vec<(u64, Step)> {
        let mut s = Sequence::of(modulo, 1);
        let step = |(i, raw): (usize, &u64)| s.step(*raw, &[i as f64], 10 * MS * i as i64, false);
        rows.iter().enumerate().map(step).collect()
    }

    fn words(modulo: u64, rows: &[u64]) -> Vec<Step> {
        steps(modulo, rows).into_iter().map(|(_, step)| step).collect()
    }

    #[test]
    fn sequence_shows_gaps_repeats_and_steps_back_also_over_its_wrap() {
        let mut s = Sequence::of(0, 1);
        let mut step = |raw, value| s.step(raw, &[value], 0, false);
        assert_eq!(step(7, 0.0), (7, Step::Joins));
        assert_eq!(step(8, 1.0), (8, Step::Joins));
        assert_eq!(step(8, 1.0), (8, Step::Duplicate));
        assert_eq!(step(11, 2.0), (11, Step::Missing(2)));
        assert_eq!(step(9, 3.0), (9, Step::Back));
        assert_eq!(step(10, 4.0), (10, Step::Joins));
        assert_eq!(step(7, 9.0), (7, Step::Back), "the same number with another content is no repeat");
        let got = steps(256, &[254, 255, 0, 1, 4, 3]);
        let numbers: Vec<u64> = got.iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [254, 255, 256, 257, 260, 259]);
        assert_eq!((got[4].1, got[5].1), (Step::Missing(2), Step::Back));
    }

    #[test]
    fn wrapping_counter_that_begins_again_is_a_restart_wherever_it_was() {
        use Step::{Back, Joins};
        // Above and below half a turn, at 0 and at 1, of 8, 16, 12 bits and decimal.
        for (modulo, at) in
            [(65536, 51_000), (65536, 33_000), (65536, 9_000), (256, 180), (256, 140), (4096, 3000), (10_000, 7777)]
        {
            for first in [0, 1] {
                let got = steps(modulo, &[at, at + 1, at + 2, first, first + 1, first + 2]);
                assert_eq!(
                    got.iter().map(|(_, s)| *s).collect::<Vec<_>>(),
                    [Joins, Joins, Joins, Back, Joins, Joins],
                    "{modulo} {at}"
                );
                assert_eq!(got[5].0, first + 2, "{modulo} {at}: its numbers begin again");
            }
        }
        // Its first rows were not heard: only the time tells.
        assert_eq!(words(65536, &[51_000, 51_001, 51_002, 130, 131]), [Joins, Joins, Joins, Back, Joins]);
        // In the second turn too.
        let mut turn: Vec<u64> = (65_000..65_536).chain(0..45_000).collect();
        turn.extend([0, 1]);
        let got = steps(65536, &turn);
        assert!(got[1..got.len() - 2].iter().all(|(_, step)| *step == Joins));
        assert_eq!(got[got.len() - 2..], [(0, Back), (1, Joins)]);
    }

    #[test]
    fn a_few_rows_lost_at_the_wrap_are_loss_and_odd_turns_join() {
        use Step::{Joins, Missing};
        assert_eq!(words(65536, &[65_533, 65_534, 1]), [Joins, Joins, Missing(2)]);
        assert_eq!(words(256, &[250, 0]), [Joins, Missing(5)]);
        assert_eq!(words(1000, &[998, 999, 0, 1]), [Joins; 4]);
        // A counter that leaves 0 out: from 1 to 255.
        assert_eq!(words(255, &[254, 255, 1, 2]), [Joins; 4]);
        assert_eq!(words(16, &[14, 15, 0, 3]), [Joins, Joins, Joins, Missing(2)]);
        let counter = Sequence::of(255, 1);
        assert!(counter.is_beyond(256) && !counter.is_beyond(255));
    }

    #[test]
    fn long_loss_is_loss_where_the_time_for_it_passed_and_where_the_pace_is_not_known() {
        let mut s = Sequence::of(65536, 1);
        for i in 0..200u64 {
            assert_eq!(s.step(1000 + i, &[i as f64], 10 * MS * i as i64, false).1, Step::Joins);
        }
        // 100 s without a cable, while the sensor counted on.
        assert_eq!(s.step(11_199, &[0.5], 102_000 * MS, false).1, Step::Missing(9_999));
        // The same step a moment later cannot be.
        assert_eq!(s.step(21_199, &[0.6], 102_010 * MS, false).1, Step::Back);
        // All in one read: no pace.
        let mut s = Sequence::of(65536, 1);
        let got: Vec<Step> = [10, 11, 900].map(|raw| s.step(raw, &[raw as f64], 0, false).1).to_vec();
        assert_eq!(got, [Step::Joins, Step::Joins, Step::Missing(888)]);
        // A spoilt digit of a counter that never wraps.
        assert_eq!(words(0, &[41, 42, 4_300_000_000, 44]), [Step::Joins, Step::Joins, Step::Back, Step::Back]);
    }

    /// 300 rows of a count that goes round at `modulo`, a row each 10 ms; then one with this number after so many ms.
    fn after(modulo: u64, raw: u64, silence_ms: i64) -> (u64, Step) {
        let mut s = Sequence::of(modulo, 1);
        for i in 0..300u64 {
            let number = if modulo == 0 { i } else { i % modulo };
            assert_eq!(s.step(number, &[i as f64], 10 * MS * i as i64, false), (i, Step::Joins));
        }
        s.step(raw, &[-1.0], (2990 + silence_ms) * MS, false)
    }

    #[test]
    fn count_of_8_bits_says_nothing_after_a_silence_in_which_it_may_have_gone_round_or_begun_again() {
        // The last number was 43. It says how many are missing where about as many were due.
        assert_eq!(after(256, 54, 110), (310, Step::Missing(10)));
        assert_eq!(after(256, 54, 300), (310, Step::Missing(10)), "late, but of the order of what was due");
        // 120 rows were due: 10 missing is not what happened.
        assert_eq!(after(256, 54, 1200), (54, Step::Unknown), "a restart that took a while");
        // Half a turn is 1.28 s: 500 rows later it is the same number as 244 later, and 256 later it looks like the next one.
        assert_eq!(after(256, (43 + 500) % 256, 5000), (31, Step::Unknown));
        assert_eq!(after(256, 44, 2570), (44, Step::Unknown), "256 rows are missing, and it looks like the next");
        assert_eq!(after(256, 44, 1000), (300, Step::Joins), "the sensor paused");
        // A wider count knows, and so does one that never wraps.
        assert_eq!(after(65536, 799, 5000), (799, Step::Missing(499)));
        assert_eq!(after(0, 300, 50_000).1, Step::Joins);
        // The numbers go on from there.
        let mut s = Sequence::of(256, 1);
        for i in 0..300u64 {
            s.step(i % 256, &[i as f64], 10 * MS * i as i64, false);
        }
        let got: Vec<_> = (0..4u64).map(|i| s.step(100 + i, &[i as f64], (9000 + 10 * i as i64) * MS, false)).collect();
        assert_eq!(got, [(100, Step::Unknown), (101, Step::Joins), (102, Step::Joins), (103, Step::Joins)]);
    }

    #[test]
    fn restart_of_a_short_count_near_its_wrap_is_a_gap_wherever_it_lands() {
        // What a restart at once costs is not claimed, but for a few rows; a window never joins over it.
        for at in 0..256u64 {
            let mut s = Sequence::of(256, 1);
            for i in 0..=at {
                s.step(i, &[i as f64], 10 * MS * i as i64, false);
            }
            let step = s.step(0, &[0.5], (10 * at as i64 + 20) * MS, false).1;
            match 255 - at {
                0 => assert_eq!(step, Step::Joins, "it wraps"),
                missing @ 1..=16 => assert_eq!(step, Step::Missing(missing), "{at}"),
                _ => assert_eq!(step, Step::Back, "{at}"),
            }
        }
    }

    #[test]
    fn gateway_that_hands_out_what_it_gathered_is_no_silence_after_the_first_time() {
        let mut s = Sequence::of(256, 1);
        let mut odd = 0;
        for i in 0..4000u64 {
            // 200 rows, each 2 s.
            let step = s.step(i % 256, &[i as f64], 2000 * MS * (i / 200) as i64, false).1;
            odd += u32::from(step != Step::Joins);
        }
        assert_eq!(odd, 0);
        // Three of its deliveries are lost.
        assert_eq!(s.step((4000 + 600) % 256, &[0.5], 2000 * MS * 23, false).1, Step::Unknown);
    }

    #[test]
    fn rows_that_waited_in_a_queue_do_not_make_loss_look_like_a_restart() {
        let mut s = Sequence::of(65536, 1);
        for i in 0..2000u64 {
            s.step(i, &[i as f64], 10 * MS * i as i64, false);
        }
        // The reader stood still for 60 s: the queue held the first 500 rows, which come in a moment; 5,500 are lost.
        let back = 80_000 * MS;
        for i in 2000..2500u64 {
            assert_eq!(s.step(i, &[i as f64], back, false).1, Step::Joins);
        }
        assert_eq!(s.step(8_000, &[0.5], back + MS, false).1, Step::Missing(5_500));
    }

    #[test]
    fn frames_of_several_rows_count_in_rows() {
        let mut s = Sequence::of(256, 10);
        let mut frame = |n: u64, at: i64| {
            let steps = (0..10u64).map(|i| s.step(n * 10 + i, &[(n * 10 + i) as f64], at * MS + i as i64 * MS, false));
            steps.map(|(_, step)| step).collect::<Vec<_>>()
        };
        assert_eq!(frame(254, 0), [Step::Joins; 10]);
        assert_eq!(frame(255, 10), [Step::Joins; 10]);
        assert_eq!(frame(0, 20), [Step::Joins; 10]);
        assert_eq!(frame(0, 20), [Step::Duplicate; 10]);
        assert_eq!(frame(3, 50)[..2], [Step::Missing(20), Step::Joins]);
        assert_eq!(frame(100, 60)[..2], [Step::Back, Step::Joins], "970 rows in 10 ms");
        assert_eq!(frame(0, 70)[..2], [Step::Back, Step::Joins]);
        let counter = Sequence::of(255, 10);
        assert!(!counter.is_beyond(2559) && counter.is_beyond(2560));
    }
}
