//! Warm-up runs: shortly before the next window is due the model runs once for nothing, so that the window finds code and weights in the
//! caches and the core awake. Pure: the worker asks how long to wait and says what a run took. It measures itself, with one window of
//! `WARM_UP_CONTROL` left cold, and stops for `WARM_UP_OFF` where it does not pay. Windows that come irregularly get none.
//!
//! All times are since the worker serves.

use std::time::Duration;

use crate::limits;

/// What is known of the windows so far.
#[derive(Debug, Default)]
pub struct WarmUp {
    /// When the last window came.
    last: Option<Duration>,
    intervals: [Duration; limits::WARM_UP_INTERVALS],
    /// Windows since it began to measure.
    windows: u32,
    /// The next window has had its warm-up.
    is_warm: bool,
    warm: Mean,
    cold: Mean,
    off_until: Duration,
}

#[derive(Debug, Default)]
struct Mean {
    all: Duration,
    n: u32,
}

impl Mean {
    fn add(&mut self, took: Duration) {
        self.all += took;
        self.n += 1;
    }

    fn value(&self) -> Option<Duration> {
        (self.n > 0).then(|| self.all / self.n)
    }
}

impl WarmUp {
    /// How long to wait for a window before the warm-up run; `None`: for ever, there is none before this window.
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        if self.is_warm
            || now < self.off_until
            || self.windows.is_multiple_of(limits::WARM_UP_CONTROL)
            || self.windows < limits::WARM_UP_INTERVALS as u32
        {
            return None;
        }
        let (least, most) = (self.intervals.iter().min()?, self.intervals.iter().max()?);
        let is_regular = *most <= *least + *least / 4;
        if !is_regular || *least < limits::WARM_UP_PERIOD_MIN || *most > limits::WARM_UP_PERIOD_MAX {
            return None;
        }
        let due =
            (self.last? + *least).checked_sub(limits::WARM_UP_LEAD + 2 * self.cold.value().unwrap_or_default())?;
        // Where no time is left, or the window is late already, it comes without one.
        due.checked_sub(now)
    }

    /// The warm-up run was made.
    pub fn warmed(&mut self) {
        self.is_warm = true;
    }

    /// Windows came, and their first run took so long.
    pub fn ran(&mut self, now: Duration, took: Duration) {
        if let Some(last) = self.last.replace(now) {
            self.intervals[self.windows as usize % limits::WARM_UP_INTERVALS] = now.saturating_sub(last);
        }
        self.windows += 1;
        if std::mem::take(&mut self.is_warm) {
            self.warm.add(took)
        } else {
            self.cold.add(took)
        }
        if self.windows >= limits::WARM_UP_JUDGED_AFTER {
            self.judge(now);
        }
    }

    /// It pays where it spares a fifth.
    fn judge(&mut self, now: Duration) {
        let cold = self.cold.value().unwrap_or_default();
        // Without a warm run there is nothing to judge: it is off, or they come irregularly.
        if self.warm.value().is_some_and(|warm| warm > cold / 5 * 4) {
            self.off_until = now + limits::WARM_UP_OFF;
        }
        // What is measured from here on counts: the machine's load changes.
        (self.windows, self.warm, self.cold) = (0, Mean::default(), Mean { all: cold, n: 1 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const US: Duration = Duration::from_micros(1);

    /// Plays `n` windows, one each `period`; a run takes `warm` or `cold`. Returns how many had a warm-up, and when it ended.
    fn play(
        warm_up: &mut WarmUp,
        from: Duration,
        n: u32,
        period: impl Fn(u32) -> Duration,
        runs: [Duration; 2],
    ) -> (u32, Duration) {
        let (mut now, mut warmed) = (from, 0);
        for i in 0..n {
            let next = now + period(i);
            let is_warm = warm_up.wait(now).is_some_and(|wait| now + wait < next);
            if is_warm {
                warm_up.warmed();
                assert_eq!(warm_up.wait(now + MS), None, "one for each window");
                warmed += 1;
            }
            now = next;
            warm_up.ran(now, runs[usize::from(!is_warm)]);
        }
        (warmed, now)
    }

    #[test]
    fn regular_windows_get_a_warm_up_before_the_earliest_moment_at_which_they_may_come() {
        let mut warm_up = WarmUp::default();
        let (_, now) = play(&mut warm_up, MS, 20, |i| 10 * MS + i % 2 * MS, [100 * US, 100 * US]);
        let wait = warm_up.wait(now).expect("regular");
        assert!(wait < 10 * MS - limits::WARM_UP_LEAD && wait > 9 * MS, "{wait:?}");
        assert_eq!(warm_up.wait(now + 20 * MS), None, "the window is late: it may come at any moment");
    }

    #[test]
    fn windows_that_come_irregularly_too_fast_or_too_seldom_get_none() {
        for period in [|i: u32| 10 * MS + i % 3 * 3 * MS, |_| MS, |_| 5000 * MS] {
            assert_eq!(play(&mut WarmUp::default(), MS, 200, period, [50 * US, 100 * US]).0, 0);
        }
    }

    #[test]
    fn one_window_of_sixteen_stays_cold_and_what_pays_goes_on() {
        let mut warm_up = WarmUp::default();
        let (warmed, _) = play(&mut warm_up, MS, 1600, |_| 10 * MS, [30 * US, 150 * US]);
        assert!((1400..1500).contains(&warmed), "{warmed} of 1600");
    }

    #[test]
    fn what_does_not_pay_stops_for_ten_minutes() {
        let mut warm_up = WarmUp::default();
        let slow = [90 * US, 100 * US];
        let (warmed, now) = play(&mut warm_up, MS, 1000, |_| 10 * MS, slow);
        assert!((200..256).contains(&warmed), "{warmed}: until it was judged");
        let (warmed, now) = play(&mut warm_up, now, 59_000, |_| 10 * MS, slow);
        assert_eq!(warmed, 0, "off until {now:?}");
        assert!(play(&mut warm_up, now, 1000, |_| 10 * MS, slow).0 > 100, "then it measures again");
    }
}
