//! What happens often is logged once, and from then on counted and logged as a number now and then. Pure.

use std::time::Duration;

use crate::limits;

/// A count of one thing.
#[derive(Debug, Default)]
pub struct Tally {
    n: u64,
    last: Option<Duration>,
}

impl Tally {
    /// It happened.
    pub fn add(&mut self, n: u64) {
        self.n += n;
    }

    /// How often it happened since this was reported last, if it is time to report it.
    pub fn due(&mut self, now: Duration) -> Option<u64> {
        let waited = self.last.is_none_or(|last| now.saturating_sub(last) >= limits::SAY_AGAIN);
        if self.n == 0 || !waited {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_reported_at_once_and_the_rest_as_a_number() {
        let mut tally = Tally::default();
        let at = |s| Duration::from_secs(s);
        assert_eq!(tally.due(at(0)), None);
        tally.add(1);
        assert_eq!(tally.due(at(5)), Some(1));
        (0..500).for_each(|_| tally.add(1));
        assert_eq!(tally.due(at(6)), None);
        assert_eq!(tally.due(at(5) + limits::SAY_AGAIN), Some(500));
        assert_eq!(tally.due(at(500)), None, "nothing more");
    }
}
