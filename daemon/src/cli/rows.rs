//! What `kentledge model prepare --rows` makes of the rows of a healthy machine: windows, their scores, golden cases.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    flow::{Clk, Stamp, Window, WindowTag},
    infer::{Outcome, Running},
    limits,
};

/// Values by input of the model.
pub type Inputs = BTreeMap<String, Vec<f32>>;

/// What the model says of the rows.
#[derive(Debug, Default)]
pub struct Played {
    /// Windows for golden cases: those with the lowest, the middle and the highest score.
    pub cases: Vec<Inputs>,
    /// The scores, without those of windows that a calibration learnt from.
    pub scores: Vec<f64>,
}

/// Runs the model on the windows of rows, as a pipeline does: a calibration learns from the first ones.
///
/// # Errors
/// There are too few rows, or the model does not answer.
pub fn play(
    running: &mut Running,
    columns: &[(String, Vec<f64>)],
    (steps, hop): (usize, usize),
    deadline: Duration,
) -> Result<Played, String> {
    let windows = windows(columns, steps, hop);
    if windows.is_empty() {
        return Err(format!("the rows hold no window of {steps} rows without a missing value"));
    }
    let (mut answered, beat) = (Vec::new(), &|| {});
    for window in &windows {
        let learning = running.is_learning();
        running.put(0, 0, window);
        if let Some(why) = running.ring(1, Some(deadline), beat).died {
            return Err(why);
        }
        match running.answer(0, 0, window) {
            Outcome::Answer(answer) if !learning => answered.push((window, answer.score)),
            Outcome::Answer(_) => {}
            Outcome::None(why) => return Err(format!("the model does not answer a window of the rows: {why}")),
        }
        running.calibrate_if_due(Some(deadline), beat)?;
    }
    if running.is_learning() || answered.is_empty() {
        let n = windows.len();
        return Err(format!(
            "the rows hold {n} windows, and the calibration has not ended with them: give rows for more than `calibration.windows`"
        ));
    }
    let score = |score: &Option<f32>| score.map(f64::from).filter(|score| score.is_finite());
    let scores = answered.iter().filter_map(|(_, of)| score(of)).collect();
    answered.sort_by(|(_, a), (_, b)| a.unwrap_or(0.0).total_cmp(&b.unwrap_or(0.0)));
    let mut places = vec![0, answered.len() / 2, answered.len() - 1];
    places.dedup();
    let cases = places.into_iter().map(|place| running.fed(&answered[place].0.values)).collect();
    Ok(Played { cases, scores })
}

/// Windows of rows that follow each other, without a missing value.
fn windows(columns: &[(String, Vec<f64>)], steps: usize, hop: usize) -> Vec<Window> {
    let rows = columns.iter().map(|(_, values)| values.len()).min().unwrap_or(0);
    let of = |n: usize| {
        let first = n * hop;
        let values = (first..first + steps).flat_map(|row| columns.iter().map(move |(_, values)| values[row] as f32));
        Window { tag: tag(n as u64, first, steps), values: values.collect() }
    };
    let starts = (0..).take_while(|n| n * hop + steps <= rows).take(limits::ROWS_WINDOWS);
    starts.map(of).filter(|window| window.values.iter().all(|x| x.is_finite())).collect()
}

fn tag(number: u64, first: usize, steps: usize) -> WindowTag {
    let (first, last) = (first as u64, (first + steps - 1) as u64);
    let last_at = Stamp { boot_ns: last, wall_ms: None, clk: Clk::Unset };
    let in_t_ns = (first as i64, last as i64);
    WindowTag { pipeline: 0, last: last_at, in_seq: (first, last), in_t_ns, number, coverage: 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_rows_that_follow_each_other_without_a_missing_value() {
        let columns =
            [("a", vec![1.0, 2.0, 3.0, f64::NAN, 5.0, 6.0]), ("b", vec![7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0])];
        let columns = columns.map(|(name, values)| (name.to_owned(), values));
        let found = windows(&columns, 2, 1);
        let seen: Vec<(u64, Vec<f32>)> = found.iter().map(|w| (w.tag.number, w.values.to_vec())).collect();
        let expected = [(0, vec![1.0, 7.0, 2.0, 8.0]), (1, vec![2.0, 8.0, 3.0, 9.0]), (4, vec![5.0, 11.0, 6.0, 12.0])];
        assert_eq!(seen, expected);
        assert!(windows(&columns, 7, 1).is_empty() && windows(&[], 1, 1).is_empty());
    }
}
