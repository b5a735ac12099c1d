//! How long to wait before the next connect. Pure. Full jitter (a random share of the bound), and the bound grows with
//! the outage: a short one is over at once, a long one is not hammered, and twenty devices do not return in step.

use std::time::Duration;

use crate::limits;

/// The longest wait after an outage of this length so far: a tenth of it, within the limits.
pub fn bound(outage: Duration) -> Duration {
    (outage / 10).clamp(limits::RECONNECT_MIN, limits::RECONNECT_MAX)
}

/// `bound` with full jitter; `share` is a random number, 0–1.
pub fn wait(outage: Duration, share: f64) -> Duration {
    bound(outage).mul_f64(share.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_outage_is_over_within_0_3_s_and_a_long_one_is_not_hammered() {
        assert_eq!(bound(Duration::ZERO), limits::RECONNECT_MIN);
        assert!(bound(Duration::from_secs(3)) <= Duration::from_millis(300));
        assert_eq!(bound(Duration::from_secs(3600)), limits::RECONNECT_MAX);
        assert_eq!(wait(Duration::from_secs(10), 0.5), Duration::from_millis(500));
        assert_eq!(wait(Duration::from_secs(10), 7.0), Duration::from_secs(1));
    }
}
