//! How a model's declared inputs and outputs meet its pipelines: what fills each input (`feeds`), which outputs are wanted,
//! and what they mean (`meaning`). Pure; says everything that does not fit.

use super::{
    channel::{Loaded, Prepare, Tensor},
    feeds::{Fed, Feed, Windows, fit, one_answer},
    meaning::{Meaning, Misfits, numbers},
};
use crate::{
    limits,
    model::manifest::{Layout, Manifest},
};

/// How the model is fed, and where its answers are.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// By pipeline, and by input in the order of `Prepare`.
    pub feeds: Vec<Vec<Feed>>,
    /// What the wanted outputs mean.
    pub meaning: Meaning,
    /// Place of the features, where the calibration takes statistics of them.
    pub features: Option<usize>,
    /// Names of the wanted outputs.
    pub outputs: Vec<String>,
    /// Names of the inputs, in the order of `feeds`.
    pub inputs: Vec<String>,
    /// What is carried from window to window: places of an output and of the input that takes it.
    pub state: Vec<(usize, usize)>,
    /// Windows that the model takes at once; each is given so often, and the first answer counts.
    pub batch: usize,
    /// By wanted output: it holds an answer for each of these windows.
    pub batched: Vec<bool>,
    /// What is worth knowing of the inputs, in words.
    pub notes: Vec<String>,
}

impl Plan {
    /// The order in which the model is fed a window.
    pub fn layout(&self) -> Layout {
        let feeds = self.feeds.iter().flatten();
        let mut window = feeds.filter_map(|feed| if let Feed::Window(layout) = feed { Some(*layout) } else { None });
        window.next().unwrap_or(Layout::StepsFirst)
    }

    /// How many of an output's values answer one window; `whole`: how many it has.
    pub fn answer_len(&self, output: usize, whole: usize) -> usize {
        if self.batched.get(output) == Some(&true) { whole / self.batch.max(1) } else { whole }
    }

    /// States that do not fit once the sizes are known: values of each wanted output, and of each input.
    pub fn check_state(&self, outputs: impl Fn(usize) -> usize, inputs: impl Fn(usize) -> usize) -> Misfits {
        let mut misfits = Misfits::default();
        for (output, input) in &self.state {
            let (given, taken) = (outputs(*output), inputs(*input));
            if given != taken {
                let (output, input) = (&self.outputs[*output], &self.inputs[*input]);
                let why = format!("output `{output}` gives {given} values, and input `{input}` takes {taken}");
                misfits.add("state", output, why);
            }
        }
        misfits
    }
}

/// Plans a model for windows; `extra` are outputs to be published beside the score.
///
/// # Errors
/// All that does not fit.
pub fn plan(
    loaded: &Loaded,
    manifest: &Manifest,
    windows: &Windows,
    extra: &[String],
) -> Result<(Prepare, Plan), Misfits> {
    let mut misfits = Misfits::default();
    let fed = fit(loaded, manifest, windows).map_err(|mut wrong| misfits.0.append(&mut wrong.0)).ok();
    let state_is_wrong = misfits.0.iter().any(|misfit| misfit.key == "state");
    let batch = fed.as_ref().map_or(1, |fed| fed.batch);
    let one = of_one_window(loaded, manifest, batch);
    let mut outputs = Vec::new();
    let meaning = Meaning::of(&one, manifest, &mut outputs, &mut misfits);
    if state_is_wrong && manifest.scoring.score.is_none() {
        // Which outputs are left for the score is not known yet.
        misfits.0.retain(|misfit| misfit.key != "score");
    }
    let features = manifest.calibration.as_ref().and_then(|cal| cal.features.as_ref());
    let mut want = |key, name: &String, misfits: &mut Misfits| {
        misfits.take(key, name, numbers(loaded, name)).map(|_| place_of(name, &mut outputs))
    };
    let features = features.and_then(|name| want("calibration", name, &mut misfits));
    for name in extra {
        want("outputs", name, &mut misfits);
    }
    let (Some(fed), true) = (fed, misfits.0.is_empty()) else { return Err(misfits) };
    let Fed { inputs, feeds, state, batch } = fed;
    let place = |of: usize| feeds[0].iter().position(|feed| *feed == Feed::State(of)).unwrap_or(0);
    let state = state.iter().enumerate().map(|(i, output)| (place_of(output, &mut outputs), place(i))).collect();
    let declared = |name: &String| loaded.outputs.iter().find(|o| o.name == *name);
    let batched = outputs.iter().map(|name| declared(name).is_some_and(|o| is_batched(o, batch))).collect();
    let mut plan = Plan {
        inputs: inputs.iter().map(|(name, _)| name.clone()).collect(),
        notes: Vec::new(),
        feeds,
        meaning,
        features,
        outputs,
        state,
        batch,
        batched,
    };
    plan.check_batch(loaded)?;
    plan.notes = plan.describe(loaded, windows);
    let known = plan.known(manifest, &inputs);
    Ok((Prepare { inputs, outputs: plan.outputs.clone(), known }, plan))
}

/// The place of a wanted output; one that is not wanted yet is added.
fn place_of(name: &str, outputs: &mut Vec<String>) -> usize {
    outputs.iter().position(|output| output == name).unwrap_or_else(|| {
        outputs.push(name.to_owned());
        outputs.len() - 1
    })
}

/// The outputs as they are for one window, without those that are a state.
fn of_one_window(loaded: &Loaded, manifest: &Manifest, batch: usize) -> Loaded {
    let is_state = |name: &String| manifest.state.as_ref().is_some_and(|state| state.contains_key(name));
    let named = manifest.scoring.score.as_deref().map(|score| crate::model::scoring::element(score).0);
    let kept = loaded.outputs.iter().filter(|o| !is_state(&o.name) || named == Some(o.name.as_str()));
    let one = |o: &Tensor| Tensor { shape: one_answer(&o.shape, batch), ..o.clone() };
    Loaded { outputs: kept.map(one).collect(), ..Loaded::default() }
}

fn is_batched(output: &Tensor, batch: usize) -> bool {
    batch > 1 && output.shape.first() == Some(&(batch as i64))
}

impl Plan {
    /// Answers that cannot be told apart by window.
    fn check_batch(&self, loaded: &Loaded) -> Result<(), Misfits> {
        let mut misfits = Misfits::default();
        let meant =
            [self.meaning.score.map(|(place, _)| place), self.meaning.classes.as_ref().map(|(place, _)| *place)];
        for place in meant.into_iter().flatten().chain(self.features).filter(|place| !self.batched[*place]) {
            let name = &self.outputs[place];
            let shape = loaded.outputs.iter().find(|o| o.name == *name).map(|o| o.shape.clone()).unwrap_or_default();
            if self.batch > 1 {
                let why = format!(
                    "it takes {} windows at once, and output `{name}` {shape:?} has no answer for each of them; export it with a \
                     batch of 1, or one that is open",
                    self.batch
                );
                misfits.add("model", name, why);
            }
        }
        if misfits.0.is_empty() { Ok(()) } else { Err(misfits) }
    }

    /// What the trial run is fed, where that is known: constants, and a state of zeros.
    fn known(
        &self,
        manifest: &Manifest,
        inputs: &[(String, Vec<i64>)],
    ) -> std::collections::BTreeMap<String, Vec<f32>> {
        let fixed = |(name, values): (&String, &Vec<f64>)| (name.clone(), values.iter().map(|x| *x as f32).collect());
        let state = self.state.iter().map(|(_, place)| {
            let (name, shape) = &inputs[*place];
            (
                name.clone(),
                vec![
                    0.0;
                    usize::try_from(shape.iter().product::<i64>()).unwrap_or(usize::MAX).min(limits::TRIAL_VALUES)
                ],
            )
        });
        let all = manifest.params.iter().map(fixed).chain(state);
        all.filter(|(_, values): &(String, Vec<f32>)| values.len() <= limits::TRIAL_VALUES).collect()
    }

    /// What a reader must know of the inputs.
    fn describe(&self, loaded: &Loaded, windows: &Windows) -> Vec<String> {
        let mut notes = Vec::new();
        let names = windows.names.first().map(Vec::as_slice).unwrap_or_default();
        let taken = self.inputs.iter().zip(&self.feeds[0]).filter_map(|(input, feed)| match feed {
            Feed::Channels(places, _) => {
                let channels: Vec<_> = places.iter().filter_map(|at| names.get(*at).map(String::as_str)).collect();
                Some(format!("{input} takes {}", channels.join(", ")))
            }
            _ => None,
        });
        let taken: Vec<_> = taken.collect();
        if !taken.is_empty() {
            notes.push(format!("inputs: {}", taken.join("; ")));
        }
        let carried = self.state.iter().map(|(from, to)| format!("{} into {}", self.outputs[*from], self.inputs[*to]));
        let carried: Vec<_> = carried.collect();
        if !carried.is_empty() {
            notes.push(format!("state: {} of the next window", carried.join(", ")));
        }
        if self.batch > 1 {
            let n = self.batch;
            notes.push(format!(
                "batch: fixed at {n} by the export: each window is given {n} times, and the first answer counts"
            ));
        }
        for (input, feed) in self.inputs.iter().zip(&self.feeds[0]) {
            let kind = loaded.inputs.iter().find(|i| i.name == *input).map(|i| i.kind.as_str()).unwrap_or_default();
            let is_data = matches!(feed, Feed::Window(_) | Feed::Channels(..));
            if is_data && kind.contains("int") {
                notes.push(format!("input {input} is {kind}: values are rounded"));
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tensor(name: &str, shape: &[i64]) -> Tensor {
        Tensor { name: name.into(), kind: "float32".into(), shape: shape.to_vec() }
    }

    fn windows(steps: usize, names: &[&str]) -> Windows {
        Windows { steps, names: vec![names.iter().map(|name| (*name).to_owned()).collect()] }
    }

    fn model(inputs: &[(&str, &[i64])], outputs: &[(&str, &[i64])]) -> Loaded {
        let all = |of: &[(&str, &[i64])]| of.iter().map(|(name, shape)| tensor(name, shape)).collect();
        Loaded { inputs: all(inputs), outputs: all(outputs), ..Loaded::default() }
    }

    #[test]
    fn inputs_bound_to_nothing_and_outputs_that_are_not_there_are_named() {
        let loaded = model(&[("x", &[1, 4, 2]), ("gain", &[1])], &[("y", &[1])]);
        let of = windows(4, &["a", "b"]);
        let mut manifest = Manifest::bare(Path::new("m.onnx"));
        let run = |manifest: &Manifest| {
            plan(&loaded, manifest, &of, &[]).map(|(_, plan)| plan.feeds[0].clone()).map_err(String::from)
        };
        let why = run(&manifest).expect_err("gain");
        assert!(
            why.contains("param.gain") && why.contains("inputs = { gain = \"…\" }") && why.contains("`a`, `b`"),
            "{why}"
        );
        manifest.params.insert("gain".into(), vec![2.0]);
        assert_eq!(run(&manifest).expect("bound")[1], Feed::Param(vec![2.0]));
        manifest.scoring.score = Some("z".into());
        assert!(run(&manifest).expect_err("z").contains("no output `z`; it has `y`"));
        manifest.input = Some("X".into());
        let mut named: Vec<_> = plan(&loaded, &manifest, &of, &["yy".into()])
            .expect_err("three problems")
            .0
            .iter()
            .map(|misfit| (misfit.key, misfit.of.clone()))
            .collect();
        named.sort_unstable();
        assert_eq!(named, [("input", "X".into()), ("outputs", "yy".into()), ("score", String::new())]);
    }

    #[test]
    fn batch_that_is_fixed_takes_each_window_so_often_and_its_first_answer_counts() {
        let of = windows(4, &["a", "b"]);
        let manifest = Manifest::bare(Path::new("m.onnx"));
        let loaded = model(&[("x", &[8, 4, 2])], &[("y", &[8, 1])]);
        let (prepare, planned) = plan(&loaded, &manifest, &of, &[]).expect("eight at once");
        assert_eq!((&prepare.inputs[0].1, planned.batch, &planned.batched), (&vec![8, 4, 2], 8, &vec![true]));
        assert_eq!((planned.answer_len(0, 8), planned.notes.len()), (1, 1));
        assert!(
            planned.notes[0].contains("fixed at 8") && planned.notes[0].contains("first answer"),
            "{:?}",
            planned.notes
        );
        // One answer for all of them says nothing of one.
        let loaded = model(&[("x", &[8, 4, 2])], &[("y", &[1])]);
        let why = plan(&loaded, &manifest, &of, &[]).expect_err("one answer").to_string();
        assert!(why.contains("8 windows at once") && why.contains("batch of 1"), "{why}");
        // Classes are counted for one window.
        let loaded = model(&[("x", &[8, 4, 2])], &[("p", &[8, 3])]);
        let mut manifest = manifest;
        manifest.scoring.classes = ["ok", "wear", "leak"].map(str::to_owned).to_vec();
        assert!(plan(&loaded, &manifest, &of, &[]).is_ok());
    }

    #[test]
    fn output_that_is_carried_is_no_score_and_its_size_must_fit() {
        let of = windows(4, &["a"]);
        let loaded = model(&[("x", &[1, 4, 1]), ("h0", &[1, -1, 3])], &[("y", &[1]), ("hn", &[1, -1, 3])]);
        let state = Some([("hn".to_owned(), "h0".to_owned())].into());
        let manifest = Manifest { state, ..Manifest::bare(Path::new("m.onnx")) };
        let (prepare, planned) = plan(&loaded, &manifest, &of, &[]).expect("a state");
        assert_eq!(prepare.inputs[1], ("h0".into(), vec![1, 1, 3]));
        assert_eq!((&planned.outputs, &planned.state), (&vec!["y".to_owned(), "hn".into()], &vec![(1, 1)]));
        assert_eq!(prepare.known["h0"], [0.0; 3]);
        assert_eq!(planned.notes, ["state: hn into h0 of the next window"]);
        assert!(planned.check_state(|_| 3, |_| 3).0.is_empty());
        let why = planned.check_state(|_| 6, |_| 3).to_string();
        assert!(why.contains("`hn` gives 6 values, and input `h0` takes 3"), "{why}");
    }
}
