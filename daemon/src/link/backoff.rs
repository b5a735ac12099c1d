//! How long to wait before the next connect, and for the broker's answer. Pure. Full jitter (a random share of a bound).
//!
//! Where the broker went away, all its devices lost it together: the first attempt is spread over seconds already, and the
//! bound grows with the outage and with connections that end soon. Where only this device's own network is gone, no other
//! device reconnects with it, and a failed attempt reaches no broker: after a short gap it reconnects at once.

use std::time::Duration;

use crate::limits;

/// What ended a connection, or kept it from being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The broker closed, refused or fell silent, or its host does not answer: others may have lost it too.
    Broker,
    /// This device has no interface, no address of its own, or no name service.
    Path,
}

/// The longest wait after an outage of this length so far. `soon`: connections in a row that the broker closed soon.
pub fn bound(cause: Cause, outage: Duration, soon: u32) -> Duration {
    match cause {
        Cause::Path => {
            (outage.saturating_sub(limits::RECONNECT_SHORT) / 10).clamp(limits::RECONNECT_MIN, limits::RECONNECT_MAX)
        }
        Cause::Broker => {
            let least = limits::RECONNECT_SPREAD.saturating_mul(1 << soon.saturating_sub(limits::SOON_SPARED).min(8));
            (outage / 4).max(least).min(limits::RECONNECT_MAX)
        }
    }
}

/// How long to wait for the answers to CONNECT and SUBSCRIBE, after `slow` connections in a row on which they did not come in time.
///
/// A broker that is flooded by its returning devices takes longer than usual, and what it does for a connection that was left is lost
/// work: with the same patience each time it would serve none of them, for ever.
pub fn patience(slow: u32) -> Duration {
    limits::CONNECT.saturating_mul(1 << slow.min(8)).min(limits::CONNECT_MOST)
}

/// How long to leave the broker to a twin that threw us out for the `n`th time: doubling, half of it random.
pub fn twin_wait(n: u32, share: f64) -> Duration {
    let bound = limits::TWIN_WAIT.saturating_mul(1 << n.saturating_sub(1).min(16)).min(limits::TWIN_WAIT_MAX);
    bound.mul_f64(0.5 + share.clamp(0.0, 1.0) / 2.0)
}

/// `bound` with full jitter; `share` is a random number, 0–1.
pub fn wait(cause: Cause, outage: Duration, soon: u32, share: f64) -> Duration {
    bound(cause, outage, soon).mul_f64(share.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_that_lost_its_broker_returns_over_seconds_and_not_together() {
        let mut random = fastrand::Rng::with_seed(7);
        for (outage_s, spread_s) in [(0, 5), (2, 5), (60, 15), (119, 29), (3600, 30)] {
            let outage = Duration::from_secs(outage_s);
            let mut waits: Vec<f64> =
                (0..10_000).map(|_| wait(Cause::Broker, outage, 0, random.f64()).as_secs_f64()).collect();
            waits.sort_by(f64::total_cmp);
            let (first, last) = (waits[0], waits[9_999]);
            assert!(first < 0.1 && last > f64::from(spread_s) * 0.99, "{outage_s} s: {first} to {last} s");
            // No tenth of the time sees more than a tenth and a bit of them: a uniform distribution.
            for tenth in 0..10 {
                let (from, to) = (last * f64::from(tenth) / 10.0, last * f64::from(tenth + 1) / 10.0);
                let n = waits.iter().filter(|wait| (from..to).contains(*wait)).count();
                assert!((850..1150).contains(&n), "{outage_s} s: {n} of 10,000 in tenth {tenth}");
            }
        }
    }

    #[test]
    fn a_short_gap_of_the_own_network_is_over_within_0_3_s_and_a_long_one_is_not_hammered() {
        assert_eq!(bound(Cause::Path, Duration::ZERO, 0), limits::RECONNECT_MIN);
        assert!(bound(Cause::Path, Duration::from_secs(60), 3) <= Duration::from_millis(300));
        assert_eq!(bound(Cause::Path, Duration::from_secs(3600), 0), limits::RECONNECT_MAX);
        assert_eq!(wait(Cause::Path, Duration::from_secs(220), 0, 0.5), Duration::from_secs(5));
        assert_eq!(wait(Cause::Path, Duration::from_secs(220), 0, 7.0), Duration::from_secs(10));
    }

    /// Devices at a broker that serves one CONNECT after the other, `a_second` of them, whether or not the device still waits. When all
    /// are served, s.
    fn served(devices: usize, a_second: f64, patience: impl Fn(u32) -> Duration) -> Option<f64> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut wait =
            |outage_s: f64| wait(Cause::Broker, Duration::from_secs_f64(outage_s), 0, random.f64()).as_secs_f64();
        // When each connects next, and how often it was left without an answer.
        let mut next: Vec<(f64, u32)> = (0..devices).map(|_| (wait(0.0), 0)).collect();
        let (mut busy_until, mut left, mut last) = (0_f64, devices, 0.0);
        while left > 0 {
            let (i, (at, slow)) =
                next.iter().copied().enumerate().min_by(|a, b| a.1.0.total_cmp(&b.1.0)).expect("a device");
            if at > 600.0 {
                return None;
            }
            busy_until = busy_until.max(at) + 1.0 / a_second;
            let gives_up = at + patience(slow).as_secs_f64();
            if busy_until <= gives_up {
                (left, last) = (left - 1, busy_until);
                next[i] = (f64::INFINITY, 0);
            } else {
                next[i] = (gives_up + wait(gives_up), slow + 1);
            }
        }
        Some(last)
    }

    #[test]
    fn a_fleet_that_its_broker_cannot_take_at_once_comes_through_and_with_a_fixed_patience_never() {
        assert_eq!(served(400, 8.0, |_| limits::CONNECT), None);
        let took = served(400, 8.0, patience).expect("all are served");
        assert!(took < 240.0, "{took} s");
        // One that can is not asked to wait longer.
        assert!(served(400, 80.0, patience).is_some_and(|took| took < 10.0));
        let waits: Vec<u64> = (0..5).map(|slow| patience(slow).as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 60, 60]);
    }

    #[test]
    fn connections_that_end_soon_are_made_less_and_less_often() {
        let bounds: Vec<u64> = (5..11).map(|soon| bound(Cause::Broker, Duration::ZERO, soon).as_secs()).collect();
        assert_eq!(bounds, [5, 5, 10, 20, 30, 30]);
        let waits: Vec<u64> = (1..8).map(|n| twin_wait(n, 1.0).as_secs()).collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 900, 900]);
        assert_eq!(twin_wait(1, 0.0).as_secs(), 15);
    }
}
