//! How long to wait before the next connect. Pure. Full jitter (a random share of the bound), and the bound grows with
//! the outage: a short one is over at once, a long one is not hammered, and twenty devices do not return in step.

use std::time::Duration;

use crate::limits;

/// The longest wait after an outage of this length so far: short while it is short, then a tenth of it.
pub fn bound(outage: Duration) -> Duration {
    (outage.saturating_sub(limits::RECONNECT_SHORT) / 10).clamp(limits::RECONNECT_MIN, limits::RECONNECT_MAX)
}

/// How long to leave the broker to a twin that threw us out for the `n`th time: doubling, half of it random.
pub fn twin_wait(n: u32, share: f64) -> Duration {
    let bound = limits::TWIN_WAIT.saturating_mul(1 << n.saturating_sub(1).min(16)).min(limits::TWIN_WAIT_MAX);
    bound.mul_f64(0.5 + share.clamp(0.0, 1.0) / 2.0)
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
        assert!(bound(Duration::from_secs(60)) <= Duration::from_millis(300));
        assert_eq!(bound(Duration::from_secs(3600)), limits::RECONNECT_MAX);
        assert_eq!(wait(Duration::from_secs(220), 0.5), Duration::from_secs(5));
        assert_eq!(wait(Duration::from_secs(220), 7.0), Duration::from_secs(10));
        let waits: Vec<u64> = (1..8).map(|n| twin_wait(n, 1.0).as_secs()).collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 900, 900]);
        assert_eq!(twin_wait(1, 0.0).as_secs(), 15);
    }
}
