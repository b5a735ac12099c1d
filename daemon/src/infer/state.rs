//! The state of a recurrent model: what an output gave for a window is fed to an input with the next window. It begins as
//! zeros: at the start, after a lost worker, with a new model, and wherever windows are missing. Also: which inputs look like
//! a state. Pure.

use std::collections::BTreeSet;

use super::{
    channel::{Loaded, Tensor},
    meaning::is_number,
};

/// The state of one model in one pipeline. Empty where the model has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// By place in `Plan::state`: what the next window is fed.
    now: Vec<Vec<f32>>,
    /// What the newest window was fed.
    fed: Vec<Vec<f32>>,
    /// Number of the newest window that was answered.
    number: Option<u64>,
}

impl State {
    /// Zeros of these sizes.
    pub fn new(sizes: impl Iterator<Item = usize>) -> Self {
        let now: Vec<Vec<f32>> = sizes.map(|n| vec![0.0; n]).collect();
        Self { fed: now.clone(), now, number: None }
    }

    /// The model has none.
    pub fn is_empty(&self) -> bool {
        self.now.is_empty()
    }

    /// Back to zeros.
    pub fn reset(&mut self) {
        self.now.iter_mut().flatten().for_each(|x| *x = 0.0);
        self.number = None;
    }

    /// This window comes next: without the previous one, the state begins again.
    pub fn follow(&mut self, number: u64) {
        if self.number.is_some_and(|last| last.checked_add(1) != Some(number)) {
            self.reset();
        }
    }

    /// What the input at this place is fed.
    pub fn of(&self, place: usize) -> &[f32] {
        self.now.get(place).map_or(&[], Vec::as_slice)
    }

    /// The window of this number was answered with these values. Returns whether they are numbers; if not, it begins again.
    pub fn took(&mut self, number: u64, values: Vec<Vec<f32>>) -> bool {
        let finite = values.iter().flatten().all(|x| x.is_finite());
        self.fed = std::mem::replace(&mut self.now, values);
        self.number = Some(number);
        if !finite {
            self.reset();
        }
        finite
    }

    /// Between what the newest window was fed, and what the next one will be.
    pub fn swap(&mut self) {
        std::mem::swap(&mut self.now, &mut self.fed);
    }
}

/// For each of these inputs the output that seems to give its state back: one of the same type and shape that is not in use.
/// An output of the same name but for words such as `in`, `out`, `prev`, `next` comes first; without one any other counts
/// where `by_shape` says so, if it has more than one value.
pub fn partners<'a>(loaded: &'a Loaded, inputs: &[&'a Tensor], used: &[&str], by_shape: bool) -> Vec<Partner<'a>> {
    let mut used: BTreeSet<&str> = used.iter().copied().collect();
    let mut found: Vec<Partner<'a>> = Vec::new();
    for input in inputs {
        let mut free = loaded.outputs.iter().filter(|o| !used.contains(o.name.as_str()) && is_alike(input, o));
        let stem = stem(&input.name);
        let named = free.clone().find(|output| !stem.is_empty() && self::stem(&output.name) == stem);
        let large = |output: &&Tensor| output.shape.iter().map(|d| (*d).max(1)).product::<i64>() > 1;
        let others = free.clone().filter(large).count() > 1;
        if let Some(output) = named.or_else(|| free.find(large).filter(|_| by_shape)) {
            // The second of two that look alike is as unsure as the first was.
            let unsure = |p: &Partner<'_>| !p.sure && is_alike(input, p.output);
            let sure = named.is_some() || !others && !found.iter().any(unsure);
            used.insert(&output.name);
            found.push(Partner { input, output, sure });
        }
    }
    found
}

/// An input, and the output that seems to give its state back.
#[derive(Debug, Clone, Copy)]
pub struct Partner<'a> {
    /// Takes the state.
    pub input: &'a Tensor,
    /// Gives it.
    pub output: &'a Tensor,
    /// Their names say so, or no other output could be meant.
    pub sure: bool,
}

/// Whether what the output gives can be fed to the input.
pub fn is_alike(input: &Tensor, output: &Tensor) -> bool {
    let same = |(a, b): (&i64, &i64)| a == b || *a < 0 || *b < 0;
    is_number(&input.kind)
        && input.kind == output.kind
        && !input.shape.is_empty()
        && input.shape.len() == output.shape.len()
        && input.shape.iter().zip(&output.shape).all(same)
}

/// `h_in`, `h_out`, `h0`, `hn`, `prevH` → `h`; `stateN` → `state`; `past_kv.0`, `present_kv.0` → `kv`.
fn stem(name: &str) -> String {
    const SIDES: [&str; 24] = [
        "in", "out", "input", "output", "inputs", "outputs", "prev", "previous", "past", "present", "next", "new",
        "old", "last", "init", "initial", "final", "cur", "current", "n", "t", "i", "o", "tm1",
    ];
    let mut parts = vec![String::new()];
    let mut lower = false;
    for c in name.chars() {
        if !c.is_alphabetic() || (c.is_uppercase() && lower) {
            parts.push(String::new());
        }
        if c.is_alphabetic() {
            parts.last_mut().into_iter().for_each(|part| part.extend(c.to_lowercase()));
        }
        lower = c.is_lowercase();
    }
    let short = |part: String| match part.as_str() {
        // hn, cn
        two if two.len() == 2 && two.ends_with('n') && two != "in" => two[..1].to_owned(),
        _ => part,
    };
    let kept = parts.into_iter().filter(|part| !part.is_empty() && !SIDES.contains(&part.as_str())).map(short);
    kept.collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_goes_from_window_to_window_and_begins_again_where_one_is_missing() {
        let mut state = State::new([2, 1].into_iter());
        state.follow(7);
        assert_eq!((state.of(0), state.of(1)), (&[0.0, 0.0][..], &[0.0][..]));
        assert!(state.took(7, vec![vec![1.0, 2.0], vec![3.0]]));
        state.follow(8);
        assert_eq!((state.of(0), state.of(1)), (&[1.0, 2.0][..], &[3.0][..]));
        // Run, and not answered: its number is never taken.
        state.follow(9);
        assert_eq!(state.of(0), [0.0, 0.0]);
        assert!(state.took(9, vec![vec![4.0, 4.0], vec![4.0]]));
        state.follow(9);
        assert_eq!(state.of(0), [0.0, 0.0], "the same window once more");
    }

    #[test]
    fn state_that_is_no_number_begins_again() {
        let mut state = State::new([1].into_iter());
        state.took(1, vec![vec![5.0]]);
        assert!(!state.took(2, vec![vec![f32::NAN]]));
        state.follow(3);
        assert_eq!(state.of(0), [0.0]);
    }

    #[test]
    fn window_can_be_run_once_more_with_the_state_that_it_was_fed() {
        let mut state = State::new([1].into_iter());
        state.took(1, vec![vec![5.0]]);
        state.took(2, vec![vec![6.0]]);
        state.swap();
        assert_eq!(state.of(0), [5.0]);
        state.swap();
        state.follow(3);
        assert_eq!(state.of(0), [6.0]);
    }

    fn tensor(name: &str, shape: &[i64]) -> Tensor {
        Tensor { name: name.into(), kind: "float32".into(), shape: shape.to_vec() }
    }

    fn pairs(inputs: &[(&str, &[i64])], outputs: &[(&str, &[i64])], by_shape: bool) -> Vec<(String, String)> {
        let all = |of: &[(&str, &[i64])]| of.iter().map(|(name, shape)| tensor(name, shape)).collect::<Vec<_>>();
        let loaded = Loaded { inputs: all(inputs), outputs: all(outputs), ..Loaded::default() };
        let inputs: Vec<_> = loaded.inputs.iter().collect();
        let found = partners(&loaded, &inputs, &["score"], by_shape);
        found.into_iter().map(|p| (p.input.name.clone(), p.output.name.clone())).collect()
    }

    #[test]
    fn states_that_look_alike_are_unsure_unless_their_names_tell_them_apart() {
        let shape: &[i64] = &[-1, 4];
        let sure = |inputs: &[&str], outputs: &[&str]| -> Vec<bool> {
            let all = |names: &[&str]| names.iter().map(|name| tensor(name, shape)).collect::<Vec<_>>();
            let loaded = Loaded { inputs: all(inputs), outputs: all(outputs), ..Loaded::default() };
            let inputs: Vec<_> = loaded.inputs.iter().collect();
            partners(&loaded, &inputs, &["score"], true).into_iter().map(|p| p.sure).collect()
        };
        assert_eq!(sure(&["c0", "h0"], &["output_1", "output_2"]), [false, false]);
        assert_eq!(sure(&["c0", "h0"], &["hn", "cn"]), [true, true]);
        assert_eq!(sure(&["11"], &["15"]), [true]);
        assert_eq!(sure(&["h0"], &["hn", "15"]), [true]);
    }

    #[test]
    fn names_of_common_exporters_are_known_as_a_state() {
        let shape: &[i64] = &[1, -1, 4];
        for (input, output) in [
            ("h_in", "h_out"),
            ("h0", "hn"),
            ("state", "stateN"),
            ("hidden_state", "new_hidden_state"),
            ("prevH", "nextH"),
            ("past_kv.0", "present_kv.0"),
            ("lstm/initial_h", "lstm/final_h"),
            ("state_in_1", "state_out_1"),
        ] {
            let outputs = [("score", shape), ("other", shape), (output, shape)];
            assert_eq!(pairs(&[(input, shape)], &outputs, false), [(input.into(), output.into())], "{input}");
        }
        let two = pairs(&[("c0", shape), ("h0", shape)], &[("hn", shape), ("cn", shape)], false);
        assert_eq!(two, [("c0".into(), "cn".into()), ("h0".into(), "hn".into())]);
    }

    #[test]
    fn output_of_another_name_is_a_state_only_where_the_shape_is_to_decide() {
        let (four, one): (&[i64], &[i64]) = (&[1, 4], &[1]);
        assert_eq!(pairs(&[("11", four)], &[("15", four)], true), [("11".into(), "15".into())]);
        assert!(pairs(&[("11", four)], &[("15", four)], false).is_empty());
        assert!(pairs(&[("gain", one)], &[("level", one)], true).is_empty(), "one value is no evidence");
        assert!(pairs(&[("h_in", four)], &[("h_out", &[1, 5])], true).is_empty());
        assert!(pairs(&[("input", four)], &[("output", four)], false).is_empty(), "words that say nothing");
    }
}
