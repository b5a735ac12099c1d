//! When something happened. Only the source that read the bytes (or a tape) makes a stamp; later stages read no clock.

/// What the wall clock is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clk {
    /// Synchronised now, says the kernel.
    Sync,
    /// Carried on since a synchronisation or by a battery clock: later than the clock floor, not confirmed now.
    Hold,
    /// Not to be believed: earlier than the clock floor (the build time of this program).
    Unset,
}

impl Clk {
    /// The word in the envelope.
    pub fn word(self) -> &'static str {
        match self {
            Clk::Sync => "sync",
            Clk::Hold => "hold",
            Clk::Unset => "unset",
        }
    }
}

/// A moment: nanoseconds since boot (CLOCK_BOOTTIME, never steps) and, when it can be believed, wall time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    /// Nanoseconds since boot, suspend included.
    pub boot_ns: u64,
    /// Milliseconds since 1970-01-01T00:00:00Z; `None` while `clk` is `Unset`.
    pub wall_ms: Option<i64>,
    /// What `wall_ms` is worth.
    pub clk: Clk,
}

impl Stamp {
    /// A stamp on a sensor's declared clock, as replay uses it: `t_ns` since the sensor's epoch.
    pub fn from_sensor(t_ns: i64) -> Self {
        Self { boot_ns: t_ns.max(0) as u64, wall_ms: Some(t_ns / 1_000_000), clk: Clk::Hold }
    }
}
