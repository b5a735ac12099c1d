//! A simulated pump: eight channels of a small physical model, with faults that come and go. No external data; the same
//! seed gives the same pump.

/// The columns of a row, in order: clock (ms), sequence, then the channels.
pub const COLUMNS: [&str; 10] = [
    "time",
    "seq",
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
];

/// Rows in a second of the pump's time.
pub const ROWS_PER_S: u64 = 50;

/// What can be wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Both bearings shake and warm up.
    BearingWear,
    /// The outlet valve closes: less flow, more pressure.
    ValveClosing,
    /// Bubbles: the flow flutters and the casing knocks.
    Cavitation,
    /// The flow meter shows what it showed last.
    StuckSensor,
}

impl Fault {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Fault::BearingWear => "bearing wear",
            Fault::ValveClosing => "valve closing",
            Fault::Cavitation => "cavitation",
            Fault::StuckSensor => "stuck flow sensor",
        }
    }
}

/// Begin and end of each fault, seconds of the pump's time; all of it again every `PERIOD_S`, but for the first 12 s.
const SCHEDULE: [(f64, f64, Fault); 4] = [
    (12.0, 20.0, Fault::BearingWear),
    (35.0, 45.0, Fault::ValveClosing),
    (60.0, 70.0, Fault::Cavitation),
    (85.0, 95.0, Fault::StuckSensor),
];
const PERIOD_S: f64 = 100.0;

/// The fault at a moment, and for how many seconds it has been there.
pub fn fault_at(t_s: f64) -> Option<(Fault, f64)> {
    let t = t_s % PERIOD_S;
    SCHEDULE.iter().find(|(from, to, _)| (*from..*to).contains(&t)).map(|(from, _, fault)| (*fault, t - from))
}

/// The pump.
pub struct Pump {
    random: fastrand::Rng,
    flow: f64,
    shown_flow: f64,
    warmth: f64,
}

impl Default for Pump {
    fn default() -> Self {
        Self { random: fastrand::Rng::with_seed(7), flow: 32.0, shown_flow: 32.0, warmth: 0.0 }
    }
}

impl Pump {
    /// Nearly normal noise: the sum of twelve uniform numbers (Irwin–Hall) has deviation 1 and mean 6.
    fn noise(&mut self) -> f64 {
        (0..12).map(|_| self.random.f64()).sum::<f64>() - 6.0
    }

    /// The next row's eight values, at this second of the pump's time.
    pub fn row(&mut self, t_s: f64) -> [f64; 8] {
        let fault = fault_at(t_s);
        // Faults grow over two seconds.
        let depth =
            |wanted: Fault| fault.filter(|(f, _)| *f == wanted).map_or(0.0, |(_, since)| (since / 2.0).min(1.0));
        let (wear, valve, bubbles) = (depth(Fault::BearingWear), depth(Fault::ValveClosing), depth(Fault::Cavitation));

        // Flow follows the opening of the valve with a time constant of half a second.
        let target = 32.0 * (1.0 - 0.35 * valve) - 2.0 * bubbles;
        self.flow += (target - self.flow) / (0.5 * ROWS_PER_S as f64);
        let flow = self.flow + (0.25 + 1.5 * bubbles) * self.noise();
        if depth(Fault::StuckSensor) == 0.0 {
            self.shown_flow = flow;
        }
        self.warmth += (wear * 6.0 - self.warmth) / (10.0 * ROWS_PER_S as f64);
        let shake = 1.0 + 0.9 * wear + 0.4 * bubbles;
        let knock = bubbles * 0.004 * self.noise().abs();
        [
            0.027 * shake + 0.0005 * self.noise() + knock,
            0.040 * shake + 0.0008 * self.noise() + knock,
            1.30 + 0.12 * valve + 0.05 * wear + 0.02 * self.noise(),
            0.20 + 0.45 * valve - 0.08 * bubbles + 0.03 * self.noise(),
            79.0 + self.warmth + 0.05 * self.noise(),
            26.0 + 0.2 * self.warmth + 0.02 * self.noise(),
            235.0 + 1.5 * self.noise(),
            self.shown_flow,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_twelve_seconds_are_healthy_and_the_first_fault_is_over_by_twenty() {
        let faulty = |from: u32, to: u32| (from..to).any(|i| fault_at(f64::from(i) / 10.0).is_some());
        assert!(!faulty(0, 120) && faulty(120, 200) && !faulty(200, 350));
        let mut pump = Pump::default();
        let rows: Vec<_> = (0..1500u32).map(|i| pump.row(f64::from(i) / 50.0)).collect();
        let mean =
            |from: usize, to: usize, c: usize| rows[from..to].iter().map(|r| r[c]).sum::<f64>() / (to - from) as f64;
        assert!(mean(800, 1000, 0) > 1.5 * mean(0, 600, 0));
        assert!((mean(1200, 1500, 0) / mean(0, 600, 0) - 1.0).abs() < 0.02);
    }
}
