//! How fast the backlog may go. Pure: time comes in as a number.

use std::time::Duration;

/// So much may go at once after a pause, s of the rate.
const BURST_S: f64 = 1.0;

/// A rate in bytes a second, or none.
#[derive(Debug)]
pub struct Pace {
    bytes_s: f64,
    may: f64,
    since: Duration,
}

impl Pace {
    /// 0: as fast as it goes.
    pub fn new(kib_s: u64) -> Self {
        let bytes_s = kib_s as f64 * 1024.0;
        Self { bytes_s, may: bytes_s * BURST_S, since: Duration::ZERO }
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.bytes_s > 0.0
    }

    /// Whether a message may go now.
    pub fn allows(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.since).as_secs_f64();
        self.since = now;
        self.may = (self.may + passed * self.bytes_s).min(self.bytes_s * BURST_S);
        !self.is_limited() || self.may > 0.0
    }

    /// One went.
    pub fn went(&mut self, bytes: usize) {
        self.may -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_any_minute_no_more_goes_than_the_rate_a_burst_and_one_message() {
        let mut pace = Pace::new(10);
        let mut sent = 0;
        for ms in 0..60_000 {
            if pace.allows(Duration::from_millis(ms)) {
                pace.went(5000);
                sent += 5000;
            }
        }
        assert!((600 * 1024..=610 * 1024 + 10_000).contains(&sent), "{sent}");
        let mut free = Pace::new(0);
        free.went(1 << 30);
        assert!(free.allows(Duration::ZERO) && !free.is_limited());
    }
}
