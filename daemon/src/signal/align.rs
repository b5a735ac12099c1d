//! A time grid: samples of several channels, each with its own time, into rows of one step. Pure. A cell takes the last
//! sample that falls into it and is closed when time has passed its end by `late_ns`.

use std::collections::VecDeque;

/// One closed cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Cell number since the epoch of its clock: time / step.
    pub number: i64,
    /// One value for each channel.
    pub values: Vec<f32>,
    /// Which of them arrived and were good.
    pub good: Vec<bool>,
}

/// The grid of one pipeline.
#[derive(Debug)]
pub struct Grid {
    step_ns: i64,
    late_ns: i64,
    width: usize,
    /// After a silence longer than this many cells the grid restarts; the gap is not filled.
    cells_max: i64,
    open: VecDeque<Cell>,
    next: Option<i64>,
}

impl Grid {
    /// A grid of `step_ns` for `width` channels.
    pub fn new(step_ns: i64, late_ns: i64, width: usize, cells_max: usize) -> Self {
        Self { step_ns, late_ns, width, cells_max: cells_max as i64, open: VecDeque::new(), next: None }
    }

    /// Length of a cell, ns.
    pub fn step_ns(&self) -> i64 {
        self.step_ns
    }

    /// Start of a cell, ns.
    pub fn start_ns(&self, cell: &Cell) -> i64 {
        cell.number.saturating_mul(self.step_ns)
    }

    /// Takes one channel's sample at its time. `false`: too late.
    pub fn sample(&mut self, channel: usize, t_ns: i64, value: f32, good: bool) -> bool {
        let number = t_ns.div_euclid(self.step_ns);
        let next = *self.next.get_or_insert(number);
        // Far from the grid on either side is another era (a stepped clock, a long silence), not a late sample.
        if (number - next).abs() > self.cells_max.saturating_mul(2) {
            self.open.clear();
            self.next = Some(number);
        } else if number < next {
            return false;
        }
        let first = self.open.front().map_or(number, |cell| cell.number).min(number);
        while self.open.front().is_some_and(|cell| cell.number > first) || self.open.is_empty() {
            let number = self.open.front().map_or(number, |cell| cell.number - 1);
            self.open.push_front(self.empty(number));
        }
        while let Some(last) = self.open.back().map(|cell| cell.number).filter(|last| *last < number) {
            self.open.push_back(self.empty(last + 1));
        }
        let cell = &mut self.open[(number - first) as usize];
        if good || !cell.good[channel] {
            cell.values[channel] = value;
            cell.good[channel] = good;
        }
        true
    }

    /// Closes every cell that ended `late_ns` before `t_ns`, empty ones too.
    pub fn close(&mut self, t_ns: i64, mut closed: impl FnMut(&Self, Cell)) {
        let Some(mut next) = self.next else { return };
        let upto = t_ns.saturating_sub(self.late_ns).div_euclid(self.step_ns);
        if upto - next > self.cells_max.saturating_mul(2) && self.open.is_empty() {
            next = upto - self.cells_max;
        }
        while next < upto {
            let ready = self.open.front().is_some_and(|cell| cell.number == next);
            let cell = if ready { self.open.pop_front() } else { None };
            closed(self, cell.unwrap_or_else(|| self.empty(next)));
            next += 1;
        }
        self.next = Some(next);
    }

    fn empty(&self, number: i64) -> Cell {
        Cell { number, values: vec![0.0; self.width], good: vec![false; self.width] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Closed = (i64, Vec<f32>, Vec<bool>);

    fn closed(grid: &mut Grid, t: i64) -> Vec<Closed> {
        let mut out = Vec::new();
        grid.close(t, |_, cell| out.push((cell.number, cell.values, cell.good)));
        out
    }

    #[test]
    fn channels_of_different_rates_meet_in_cells_and_what_is_missing_is_said() {
        let mut grid = Grid::new(10, 5, 2, 100);
        grid.sample(0, 100, 1.0, true);
        grid.sample(1, 103, 2.0, true);
        grid.sample(0, 108, 3.0, true);
        grid.sample(0, 121, 4.0, true);
        assert_eq!(closed(&mut grid, 114), []);
        assert_eq!(
            closed(&mut grid, 135),
            [
                (10, vec![3.0, 2.0], vec![true, true]),
                (11, vec![0.0, 0.0], vec![false, false]),
                (12, vec![4.0, 0.0], vec![true, false]),
            ]
        );
        assert!(!grid.sample(1, 129, 9.0, true));
    }

    #[test]
    fn a_clock_stepped_by_years_starts_a_new_era_without_filling_it() {
        let mut grid = Grid::new(10, 0, 1, 10);
        grid.sample(0, 100, 1.0, true);
        assert_eq!(closed(&mut grid, 120).len(), 2);
        grid.sample(0, i64::MAX / 2, 1.0, true);
        assert!(closed(&mut grid, i64::MAX / 2 + 20).len() <= 20);
        grid.sample(0, 500, 1.0, true);
        assert!(closed(&mut grid, 520).len() <= 20);
    }

    /// A plain grid: all samples are known, and each cell looks through all of them.
    fn reference(samples: &[(usize, i64, f32, bool)], (step, late, width): (i64, i64, usize)) -> (Vec<Closed>, usize) {
        let (mut newest, mut first, mut too_late) = (i64::MIN, None, 0);
        let mut in_time = Vec::new();
        for sample in samples {
            let cell = sample.1.div_euclid(step);
            first.get_or_insert(cell);
            // A cell is closed when the newest time has passed its end by `late`.
            if newest != i64::MIN && cell < (newest - late).div_euclid(step) || Some(cell) < first {
                too_late += 1;
            } else {
                in_time.push((cell, *sample));
            }
            newest = newest.max(sample.1);
        }
        let (Some(first), upto) = (first, (newest - late).div_euclid(step)) else { return (Vec::new(), too_late) };
        let cells = (first..upto).map(|number| {
            let (mut values, mut good) = (vec![0.0; width], vec![false; width]);
            for (_, (channel, _, value, is_good)) in in_time.iter().filter(|(cell, _)| *cell == number) {
                if *is_good || !good[*channel] {
                    (values[*channel], good[*channel]) = (*value, *is_good);
                }
            }
            (number, values, good)
        });
        (cells.collect(), too_late)
    }

    /// Three sources of 1, 10 and 1,000 Hz for 3 s, with jitter; some samples are late, some are missing, some bad.
    fn three_sources(seed: u64) -> Vec<(usize, i64, f32, bool)> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut arrivals = Vec::new();
        for (channel, period) in [(0, 1_000_000), (1, 100_000), (2, 1_000)] {
            for i in 0..3_000_000 / period {
                if random.u8(..) < 12 {
                    continue;
                }
                let jitter = random.i64(-period / 4..=period / 4);
                let t = 7_000_000 + i * period + jitter;
                let delay = if random.u8(..) < 25 { random.i64(0..250_000) } else { random.i64(0..2_000) };
                arrivals.push((t + delay, (channel, t, i as f32, random.u8(..) >= 8)));
            }
        }
        arrivals.sort_by_key(|(at, _)| *at);
        arrivals.into_iter().map(|(_, sample)| sample).collect()
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn three_sources_of_1_10_and_1000_hz_meet_as_a_plain_reference_says(
            seed in 0u64..,
            step in proptest::sample::select(vec![1_000i64, 10_000, 100_000, 1_000_000]),
            late in proptest::sample::select(vec![0i64, 5_000, 50_000, 300_000]),
        ) {
            let samples = three_sources(seed);
            let mut grid = Grid::new(step, late, 3, 100_000);
            let (mut cells, mut too_late, mut newest) = (Vec::new(), 0, i64::MIN);
            for (channel, t, value, good) in &samples {
                too_late += usize::from(!grid.sample(*channel, *t, *value, *good));
                newest = newest.max(*t);
                cells.extend(closed(&mut grid, newest));
            }
            let (wanted, late_wanted) = reference(&samples, (step, late, 3));
            proptest::prop_assert_eq!(too_late, late_wanted);
            proptest::prop_assert_eq!(cells, wanted);
        }
    }
}
