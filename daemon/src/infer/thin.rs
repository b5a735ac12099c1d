//! A bounded sample of a series: every value at first, then every second, every fourth … as it grows. Pure; the same series always
//! leaves the same values, so a replay says the same.

use crate::limits;

/// Values of a series, thinned out evenly.
pub struct Thinned {
    values: Vec<f64>,
    stride: u64,
    seen: u64,
}

impl Default for Thinned {
    fn default() -> Self {
        Self { values: Vec::new(), stride: 1, seen: 0 }
    }
}

impl Thinned {
    /// The next value.
    pub fn take(&mut self, value: f64) {
        if self.seen.is_multiple_of(self.stride) {
            if self.values.len() == limits::DRIFT_VALUES {
                let mut keep = false;
                self.values.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.values.push(value);
            }
        }
        self.seen += 1;
    }

    /// How many values came.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Those that are kept, in any order.
    pub fn values(&mut self) -> &mut [f64] {
        &mut self.values
    }

    /// The values below which these shares of them lie, by linear interpolation; `None` without values.
    pub fn quantiles<const N: usize>(&self, shares: [f64; N]) -> Option<[f64; N]> {
        let mut all = self.values.clone();
        all.sort_unstable_by(f64::total_cmp);
        let last = all.len().checked_sub(1)?;
        Some(shares.map(|share| {
            let place = share * last as f64;
            let (low, rest) = (place.floor() as usize, place.fract());
            all[low] + (all[(low + 1).min(last)] - all[low]) * rest
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_spread_evenly() {
        let mut thinned = Thinned::default();
        (0..3 * limits::DRIFT_VALUES as u64).for_each(|n| thinned.take((n % 100) as f64));
        assert_eq!(thinned.seen(), 3 * limits::DRIFT_VALUES as u64);
        let n = thinned.values().len();
        assert!(n <= limits::DRIFT_VALUES && n > limits::DRIFT_VALUES / 4, "{n}");
        let [low, middle] = thinned.quantiles([0.1, 0.5]).expect("values");
        assert!((low - 10.0).abs() < 4.0 && (middle - 50.0).abs() < 4.0, "{low} {middle}");
        assert_eq!(Thinned::default().quantiles([0.5]), None);
    }
}
