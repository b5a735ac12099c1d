//! Rows into windows. Pure. A window over a gap or with bad samples is never made as if it were whole: it is dropped
//! and counted, or flagged with its coverage.

use std::collections::VecDeque;

use crate::{
    config::OnBad,
    flow::{Stamp, Window, WindowTag},
};

/// One row of the channels of one pipeline.
#[derive(Debug, Clone, Copy)]
pub struct RowRef<'a> {
    /// Values in the pipeline's channel order; what stands at a bad place is not used.
    pub values: &'a [f32],
    /// Which of them are good.
    pub good: &'a [bool],
    /// Sensor sequence (or our count).
    pub seq: u64,
    /// Sensor time (or ours), ns.
    pub t_ns: i64,
    /// When it arrived.
    pub stamp: Stamp,
}

/// Why a window that was due was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It would have crossed a gap.
    Gap,
    /// It holds bad samples.
    BadSample,
}

impl Dropped {
    /// The word in the ledger.
    pub fn word(self) -> &'static str {
        match self {
            Dropped::Gap => "gap",
            Dropped::BadSample => "bad_sample",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct RowMeta {
    seq: u64,
    t_ns: i64,
    good: u32,
    overheld: bool,
}

/// Makes the windows of one pipeline.
#[derive(Debug)]
pub struct Windower {
    pipeline: u16,
    steps: usize,
    width: usize,
    hop: usize,
    on_bad: OnBad,
    coverage_min: f32,
    /// Row-major history; the last `meta.len()` rows of it are the current window's.
    history: Vec<f32>,
    meta: VecDeque<RowMeta>,
    /// Good values in `meta`'s rows.
    good: u64,
    /// Rows in `meta` with a value that was held for too long.
    overheld: u64,
    /// For each channel, rows in a row without a good value.
    without: Vec<u32>,
    /// Rows until the next window is due.
    until: usize,
    /// `WindowTag::number` of the newest window that was due.
    number: u64,
    held: Vec<f32>,
}

impl Windower {
    /// Windows of `steps` rows × `width` channels, every `hop` rows, the first after `steps`.
    pub fn new(pipeline: u16, (steps, width, hop): (usize, usize, usize), on_bad: OnBad, coverage_min: f32) -> Self {
        Self {
            pipeline,
            steps,
            width,
            hop,
            on_bad,
            coverage_min,
            history: Vec::with_capacity(4 * steps * width),
            meta: VecDeque::with_capacity(steps),
            good: 0,
            overheld: 0,
            without: vec![0; width],
            until: steps,
            number: 0,
            held: vec![0.0; width],
        }
    }

    /// Takes a row. `missing` rows between the previous one and this one never came (0: it is the next one).
    pub fn push(&mut self, row: RowRef<'_>, missing: u64) -> Result<Option<Window>, Dropped> {
        if missing > 0 {
            // Held rows join what is before them with what comes behind; longer gaps leave no row of before in a window.
            self.number += u64::from(self.on_bad == OnBad::Drop || missing >= self.steps as u64);
            match self.on_bad {
                OnBad::Drop => self.clear(),
                OnBad::Flag | OnBad::Hold(_) => self.fill(missing, row),
            }
        }
        let mut good = 0;
        for (((held, without), value), is_good) in
            self.held.iter_mut().zip(&mut self.without).zip(row.values).zip(row.good)
        {
            if *is_good {
                *held = *value;
                *without = 0;
                good += 1;
            } else {
                *without = without.saturating_add(1);
            }
        }
        let overheld = self.is_overheld();
        self.append(RowMeta { seq: row.seq, t_ns: row.t_ns, good, overheld });
        self.until -= 1;
        if self.until > 0 {
            return Ok(None);
        }
        self.until = self.hop;
        self.number += 1;
        self.due(row.stamp)
    }

    fn due(&self, last: Stamp) -> Result<Option<Window>, Dropped> {
        let (Some(first_row), Some(last_row)) = (self.meta.front(), self.meta.back()) else {
            return Err(Dropped::Gap);
        };
        if self.meta.len() < self.steps {
            return Err(Dropped::Gap);
        }
        let all = (self.steps * self.width) as u64;
        let coverage = if self.good == all { 1.0 } else { (self.good as f64 / all as f64) as f32 };
        let too_bad = match self.on_bad {
            OnBad::Drop => self.good < all,
            OnBad::Flag => coverage < self.coverage_min,
            OnBad::Hold(_) => self.overheld > 0,
        };
        if too_bad {
            return Err(Dropped::BadSample);
        }
        let tag = WindowTag {
            pipeline: self.pipeline,
            last,
            in_seq: (first_row.seq, last_row.seq),
            in_t_ns: (first_row.t_ns, last_row.t_ns),
            number: self.number,
            coverage,
        };
        let values = &self.history[self.history.len() - self.steps * self.width..];
        Ok(Some(Window { tag, values: values.into() }))
    }

    /// Appends the held values as one row.
    fn append(&mut self, meta: RowMeta) {
        let window = self.steps * self.width;
        if self.history.len() + self.width > 4 * window {
            let keep = self.history.len().min((self.steps - 1) * self.width);
            self.history.drain(..self.history.len() - keep);
        }
        self.history.extend_from_slice(&self.held);
        if self.meta.len() == self.steps
            && let Some(old) = self.meta.pop_front()
        {
            self.good -= u64::from(old.good);
            self.overheld -= u64::from(old.overheld);
        }
        self.good += u64::from(meta.good);
        self.overheld += u64::from(meta.overheld);
        self.meta.push_back(meta);
    }

    fn is_overheld(&self) -> bool {
        matches!(self.on_bad, OnBad::Hold(most) if self.without.iter().any(|rows| *rows > most))
    }

    fn clear(&mut self) {
        self.meta.clear();
        (self.good, self.overheld) = (0, 0);
    }

    /// Puts held rows in the place of missing ones; more than a window of them tell nothing.
    fn fill(&mut self, missing: u64, next: RowRef<'_>) {
        let Some(last) = self.meta.back().copied() else {
            return;
        };
        for i in 0..missing.min(self.steps as u64) {
            let seq = next.seq.saturating_sub(missing.min(self.steps as u64) - i);
            self.without.iter_mut().for_each(|rows| *rows = rows.saturating_add(1));
            let overheld = self.is_overheld();
            self.append(RowMeta { seq, t_ns: last.t_ns, good: 0, overheld });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Clk;

    const STAMP: Stamp = Stamp { boot_ns: 1, wall_ms: None, clk: Clk::Unset };

    fn push(w: &mut Windower, seq: u64, good: bool, missing: u64) -> Result<Option<Window>, Dropped> {
        w.push(RowRef { values: &[seq as f32], good: &[good], seq, t_ns: seq as i64, stamp: STAMP }, missing)
    }

    #[test]
    fn windows_come_at_length_and_then_every_hop_with_exactly_their_rows() {
        let mut w = Windower::new(0, (4, 1, 3), OnBad::Drop, 0.0);
        let ends: Vec<u64> = (0..20)
            .filter_map(|i| push(&mut w, i, true, 0).expect("whole"))
            .map(|window| {
                let last = window.tag.in_seq.1;
                assert_eq!(&*window.values, [last - 3, last - 2, last - 1, last].map(|x| x as f32));
                assert_eq!((window.tag.in_seq.0, window.tag.coverage), (last - 3, 1.0));
                last
            })
            .collect();
        assert_eq!(ends, [3, 6, 9, 12, 15, 18]);
    }

    #[test]
    fn a_gap_drops_and_counts_every_window_that_would_cross_it() {
        let mut w = Windower::new(0, (4, 1, 1), OnBad::Drop, 0.0);
        let got: Vec<_> =
            (0..12).map(|i| push(&mut w, i + u64::from(i >= 6) * 5, true, u64::from(i == 6) * 5)).collect();
        let dropped = got.iter().filter(|r| matches!(r, Err(Dropped::Gap))).count();
        let made: Vec<_> = got.iter().filter_map(|r| r.as_ref().ok()?.as_ref()).map(|w| w.tag.in_seq).collect();
        assert_eq!((dropped, made), (3, vec![(0, 3), (1, 4), (2, 5), (11, 14), (12, 15), (13, 16)]));
    }

    #[test]
    fn number_of_a_window_is_one_higher_than_the_last_exactly_where_it_joins_it() {
        let numbers = |on_bad, rows: &[(u64, bool, u64)]| -> Vec<u64> {
            let mut w = Windower::new(0, (2, 1, 2), on_bad, 0.0);
            let due = rows.iter().filter_map(|(seq, good, missing)| push(&mut w, *seq, *good, *missing).ok()?);
            due.map(|window| window.tag.number).collect()
        };
        let whole: Vec<_> = (0..8).map(|i| (i, true, 0)).collect();
        assert_eq!(numbers(OnBad::Drop, &whole), [1, 2, 3, 4]);
        let bad: Vec<_> = (0..8).map(|i| (i, i != 2, 0)).collect();
        assert_eq!(numbers(OnBad::Drop, &bad), [1, 3, 4], "a window that was dropped");
        let gap = |missing| (0..8).map(|i| (i, true, if i == 4 { missing } else { 0 })).collect::<Vec<_>>();
        assert_eq!(numbers(OnBad::Drop, &gap(1)), [1, 2, 4, 5], "between two windows");
        assert_eq!(numbers(OnBad::Flag, &gap(1)), [1, 2, 3, 4], "the row that is missing is held");
        assert_eq!(numbers(OnBad::Flag, &gap(2)), [1, 2, 4, 5], "a window of them is not");
        assert_eq!(numbers(OnBad::Hold(1), &gap(1)), [1, 2, 3, 4]);
    }

    #[test]
    fn flagged_windows_hold_the_last_good_value_and_say_how_much_is_good() {
        let mut w = Windower::new(0, (4, 1, 1), OnBad::Flag, 0.5);
        for i in 0..4 {
            let _ = push(&mut w, i, true, 0);
        }
        let window = push(&mut w, 4, false, 0).expect("flagged").expect("due");
        assert_eq!((&*window.values, window.tag.coverage), (&[1.0, 2.0, 3.0, 3.0][..], 0.75));
        let window = push(&mut w, 6, true, 1).expect("flagged").expect("due");
        assert_eq!((&*window.values, window.tag.coverage), (&[3.0, 3.0, 3.0, 6.0][..], 0.5));
        assert_eq!(push(&mut w, 10, true, 3).err(), Some(Dropped::BadSample));
    }

    #[test]
    fn what_is_held_is_held_for_so_many_rows_and_no_longer() {
        let mut w = Windower::new(0, (4, 1, 1), OnBad::Hold(2), 0.0);
        let bad = [5, 9, 10, 11];
        let got: Vec<_> = (0..16).map(|i| push(&mut w, i, !bad.contains(&i), 0)).collect();
        let refused: Vec<usize> = (0..16).filter(|i| got[*i].is_err()).collect();
        assert_eq!(refused, [11, 12, 13, 14], "windows with the third bad row in a row");
        let window = got[6].as_ref().expect("held").as_ref().expect("due");
        assert_eq!((&*window.values, window.tag.coverage), (&[3.0, 4.0, 4.0, 6.0][..], 0.75));
        // Missing rows count as held ones.
        let mut w = Windower::new(0, (4, 1, 1), OnBad::Hold(2), 0.0);
        (0..4).for_each(|i| drop(push(&mut w, i, true, 0)));
        assert!(push(&mut w, 6, true, 2).expect("held").is_some());
        assert_eq!(push(&mut w, 10, true, 3).err(), Some(Dropped::BadSample));
    }

    #[test]
    fn bad_samples_drop_the_window_unless_flagging_is_asked_for() {
        let mut w = Windower::new(0, (2, 1, 1), OnBad::Drop, 0.0);
        let got: Vec<_> = (0..5).map(|i| push(&mut w, i, i != 2, 0).map(|w| w.is_some())).collect();
        assert_eq!(got, [Ok(false), Ok(true), Err(Dropped::BadSample), Err(Dropped::BadSample), Ok(true)]);
    }
}
