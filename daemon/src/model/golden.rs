//! Golden cases: expected outputs of a model, `golden.jsonl` of a bundle, one case a line. Pure.
//!
//! ```json
//! {"inputs":{"x":[…]}, "outputs":{"score":[0.42]}, "atol":1e-5, "rtol":1e-3}
//! ```
//!
//! Values are in row-major order. An output passes if |got − expected| ≤ atol + rtol × |expected|.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::error::BundleError;
use crate::limits;

/// One case.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Values of every input, by name.
    pub inputs: BTreeMap<String, Vec<f32>>,
    /// Expected values of the compared outputs.
    pub outputs: BTreeMap<String, Vec<f64>>,
    /// Absolute tolerance.
    #[serde(default = "atol")]
    pub atol: f64,
    /// Relative tolerance.
    #[serde(default = "rtol")]
    pub rtol: f64,
}

fn atol() -> f64 {
    1e-5
}

fn rtol() -> f64 {
    1e-3
}

/// Reads all cases; at least one is required.
///
/// # Errors
/// A line has another shape, or there is no case, or there are too many.
pub fn read(bytes: &[u8]) -> Result<Vec<Case>, BundleError> {
    let text = std::str::from_utf8(bytes).map_err(|_| "golden.jsonl is not UTF-8")?;
    let mut cases = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let case: Case = serde_json::from_str(line).map_err(|why| format!("golden.jsonl:{}: {why}", i + 1))?;
        let wrong = |why: &str| Err(format!("golden.jsonl:{}: {why}", i + 1).into());
        if case.outputs.is_empty() {
            return wrong("a case without outputs shows nothing");
        }
        if !(case.atol.is_finite() && case.rtol.is_finite() && case.atol >= 0.0 && case.rtol >= 0.0) {
            return wrong("a tolerance is a number, 0 or above");
        }
        if cases.len() == limits::GOLDEN_CASES_MAX {
            return Err(format!("golden.jsonl has more than {} cases", limits::GOLDEN_CASES_MAX).into());
        }
        cases.push(case);
    }
    if cases.is_empty() { Err("golden.jsonl has no case".into()) } else { Ok(cases) }
}

impl Case {
    /// Whether an output's values agree with what is expected.
    ///
    /// # Errors
    /// What differs, and by how much.
    pub fn agrees(&self, name: &str, got: &[f64]) -> Result<(), BundleError> {
        let Some(expected) = self.outputs.get(name) else { return Ok(()) };
        if got.len() != expected.len() {
            return Err(format!("output `{name}` has {} values, expected {}", got.len(), expected.len()).into());
        }
        let off = |(got, want): (&f64, &f64)| (got - want).abs() > self.atol + self.rtol * want.abs() || got.is_nan();
        match got.iter().zip(expected).position(off) {
            Some(at) => Err(format!("output `{name}`[{at}] is {}, expected {}", got[at], expected[at]).into()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_within_tolerances_and_never_with_nan() {
        let cases =
            read(b"{\"inputs\":{\"x\":[1]},\"outputs\":{\"score\":[100]},\"atol\":0,\"rtol\":0.01}\n").expect("read");
        assert_eq!(cases[0].agrees("score", &[100.9]), Ok(()));
        assert!(cases[0].agrees("score", &[101.1]).is_err());
        assert!(cases[0].agrees("score", &[f64::NAN]).is_err());
        assert!(cases[0].agrees("score", &[]).is_err());
    }

    #[test]
    fn what_shows_nothing_is_refused() {
        for bad in
            ["", "\n", "{}", "{\"inputs\":{},\"outputs\":{}}", "{\"inputs\":{},\"outputs\":{\"y\":[1]},\"atol\":-1}"]
        {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
