//! The only reader of time. A stamp is made here, where bytes arrive; no later stage asks again.

use std::{
    sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

use super::{Keep, sys};
use crate::flow::{Clk, Stamp};

/// No right clock is earlier than the moment this program was built, in seconds since 1970.
pub const BUILT_S: i64 = parse_s(env!("KENTLEDGE_BUILT_S"));

const FLOOR_FILE: &str = "floor.json";

/// The kernel's synchronisation state is asked for at most this often: it changes in minutes.
const SYNC_CHECK_NS: u64 = 1_000_000_000;

const fn parse_s(text: &str) -> i64 {
    let (bytes, mut i, mut n) = (text.as_bytes(), 0, 0i64);
    while i < bytes.len() {
        n = n * 10 + (bytes[i] - b'0') as i64;
        i += 1;
    }
    n
}

/// Reads the machine's clocks. Shared by reference; holds only a cache.
#[derive(Debug)]
pub struct Clock {
    checked_ns: AtomicU64,
    clk: AtomicU8,
    /// No right clock is earlier, ms since 1970: when this program was built, or the last time that was saved.
    floor_ms: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            checked_ns: AtomicU64::new(0),
            clk: AtomicU8::new(Clk::Unset as u8),
            floor_ms: AtomicI64::new(BUILT_S * 1000),
        }
    }
}

impl Clock {
    /// Nanoseconds on the clock that stands still in suspend, which the kernel stamps GPIO edges on.
    pub fn monotonic_ns() -> u64 {
        clock_gettime(ClockId::CLOCK_MONOTONIC).map(|t| Duration::from(t).as_nanos() as u64).unwrap_or(0)
    }

    /// Nanoseconds since boot, suspend included; never steps.
    pub fn boot_ns() -> u64 {
        // CLOCK_BOOTTIME cannot fail on any kernel this runs on (2.6.39).
        clock_gettime(ClockId::CLOCK_BOOTTIME).map(|t| Duration::from(t).as_nanos() as u64).unwrap_or(0)
    }

    /// Now.
    pub fn now(&self) -> Stamp {
        let boot_ns = Self::boot_ns();
        let wall_ms =
            clock_gettime(ClockId::CLOCK_REALTIME).map(|t| t.tv_sec() * 1000 + t.tv_nsec() / 1_000_000).unwrap_or(0);
        let clk = if wall_ms < self.floor_ms() { Clk::Unset } else { self.trust(boot_ns) };
        Stamp { boot_ns, wall_ms: (clk != Clk::Unset).then_some(wall_ms), clk }
    }

    /// No right clock is earlier, ms since 1970.
    pub fn floor_ms(&self) -> i64 {
        self.floor_ms.load(Ordering::Relaxed)
    }

    /// Takes up the time that was saved, unless it is that of a clock gone mad: more than ten years after the build.
    pub fn load_floor(&self, keep: &Keep) {
        const YEARS_10_MS: i64 = 10 * 366 * 86_400_000;
        let saved = keep.load_checked::<i64>(FLOOR_FILE).ok().flatten();
        if let Some(saved) = saved.filter(|saved| *saved < BUILT_S * 1000 + YEARS_10_MS) {
            self.floor_ms.fetch_max(saved, Ordering::Relaxed);
        }
    }

    /// Saves the time, where it is known to be right. What could not be read at the start may be readable by now.
    pub fn save_floor(&self, keep: &Keep) {
        self.load_floor(keep);
        let now = self.now();
        if let (Clk::Sync, Some(now_ms)) = (now.clk, now.wall_ms)
            && let Err(why) = keep.save_checked(FLOOR_FILE, &now_ms)
        {
            tracing::warn!("save the time to {FLOOR_FILE}: {why}; retried at the next save");
        }
    }

    /// `Sync` or `Hold`, asked of the kernel once a second.
    fn trust(&self, boot_ns: u64) -> Clk {
        let checked = self.checked_ns.load(Ordering::Relaxed);
        if checked == 0 || boot_ns.saturating_sub(checked) > SYNC_CHECK_NS {
            let clk = if sys::clock_is_synchronised() { Clk::Sync } else { Clk::Hold };
            self.clk.store(clk as u8, Ordering::Relaxed);
            self.checked_ns.store(boot_ns, Ordering::Relaxed);
        }
        if self.clk.load(Ordering::Relaxed) == Clk::Sync as u8 { Clk::Sync } else { Clk::Hold }
    }
}

/// This boot's id, as the kernel names it; where /proc hides it, one made up for this process.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_else(|_| format!("process-{:016x}", fastrand::u64(..)))
}

/// `2026-11-20T09:14:03.120Z`.
pub fn rfc3339_ms(wall_ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(wall_ms) {
        Ok(at) => format!("{at:.3}"),
        Err(_) => format!("@{wall_ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_never_go_back_and_the_floor_is_in_the_past() {
        let clock = Clock::default();
        let (a, b) = (clock.now(), clock.now());
        assert!(b.boot_ns >= a.boot_ns);
        const { assert!(BUILT_S > 1_700_000_000) };
        assert_eq!(a.wall_ms.is_none(), a.clk == Clk::Unset);
    }

    #[test]
    fn a_time_before_the_last_saved_one_is_not_believed_nor_is_a_saved_one_gone_mad() {
        let dir = tempfile::tempdir().expect("folder");
        let keep = Keep::at(dir.path().join("clock"));
        let clock = Clock::default();
        clock.load_floor(&keep);
        assert_eq!(clock.floor_ms(), BUILT_S * 1000);
        let later_ms = clock.floor_ms() + 9 * 365 * 86_400_000;
        keep.save_checked(FLOOR_FILE, &later_ms).expect("save");
        clock.load_floor(&keep);
        assert_eq!(clock.floor_ms(), later_ms);
        assert_eq!((clock.now().clk, clock.now().wall_ms), (Clk::Unset, None));
        keep.save_checked(FLOOR_FILE, &i64::MAX).expect("save");
        clock.load_floor(&keep);
        assert_eq!(clock.floor_ms(), later_ms);
    }

    #[test]
    fn wall_time_is_written_with_milliseconds_in_utc() {
        assert_eq!(rfc3339_ms(1_795_166_043_120), "2026-11-20T09:14:03.120Z");
    }
}
