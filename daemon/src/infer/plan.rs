//! How a model's declared inputs and outputs meet a pipeline: which input takes the window, which the calibration, which
//! fixed values, and which outputs are wanted (`meaning` says what they mean). Pure; says everything that does not fit.

use super::{
    channel::{Loaded, Prepare, Tensor},
    meaning::{Meaning, Misfits, find, is_number, numbers},
};
use crate::{
    limits,
    model::manifest::{Layout, Manifest},
};

/// What fills one input.
#[derive(Debug, Clone, PartialEq)]
pub enum Feed {
    /// The window's values in this order.
    Window(Layout),
    /// Mean of the features.
    Center,
    /// Standard deviation of the features.
    Scale,
    /// Fixed values.
    Param(Vec<f32>),
}

/// How the model is fed, and where its answers are.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// By input, in the order of `Prepare`.
    pub feeds: Vec<Feed>,
    /// What the wanted outputs mean.
    pub meaning: Meaning,
    /// Place of the features, where the calibration takes statistics of them.
    pub features: Option<usize>,
    /// Names of the wanted outputs.
    pub outputs: Vec<String>,
    /// Names of the inputs, in the order of `feeds`.
    pub inputs: Vec<String>,
}

impl Plan {
    /// The order in which the model is fed a window.
    pub fn layout(&self) -> Layout {
        let window =
            self.feeds.iter().find_map(|feed| if let Feed::Window(layout) = feed { Some(*layout) } else { None });
        window.unwrap_or(Layout::StepsFirst)
    }
}

/// Plans a model for windows of `steps` × `width`; `extra` are outputs to be published beside the score.
///
/// # Errors
/// All that does not fit.
pub fn plan(
    loaded: &Loaded,
    manifest: &Manifest,
    window: (usize, usize),
    extra: &[String],
) -> Result<(Prepare, Plan), Misfits> {
    let mut misfits = Misfits::default();
    let mut outputs = Vec::new();
    let meaning = Meaning::of(loaded, manifest, &mut outputs, &mut misfits);
    let features = manifest.calibration.as_ref().and_then(|cal| cal.features.as_ref());
    let mut want = |key, name: &String, misfits: &mut Misfits| {
        misfits.take(key, name, numbers(loaded, name)).map(|_| {
            outputs.iter().position(|output| output == name).unwrap_or_else(|| {
                outputs.push(name.clone());
                outputs.len() - 1
            })
        })
    };
    let features = features.and_then(|name| want("calibration", name, &mut misfits));
    for name in extra {
        want("outputs", name, &mut misfits);
    }
    let fed = inputs(loaded, manifest, window, features.map(|place| outputs[place].as_str()));
    let fed = fed.map_err(|mut wrong| misfits.0.append(&mut wrong.0)).ok();
    let (Some((inputs, feeds)), true) = (fed, misfits.0.is_empty()) else { return Err(misfits) };
    let names = inputs.iter().map(|(name, _): &(String, Vec<i64>)| name.clone()).collect();
    let fixed = |(name, values): (&String, &Vec<f64>)| (name.clone(), values.iter().map(|x| *x as f32).collect());
    let known = manifest.params.iter().filter(|(_, values)| values.len() <= limits::TRIAL_VALUES).map(fixed).collect();
    Ok((Prepare { inputs, outputs: outputs.clone(), known }, Plan { feeds, meaning, features, outputs, inputs: names }))
}

type Fed = (Vec<(String, Vec<i64>)>, Vec<Feed>);

/// Name and shape of each input, and what fills it.
fn inputs(
    loaded: &Loaded,
    manifest: &Manifest,
    (steps, width): (usize, usize),
    features: Option<&str>,
) -> Result<Fed, Misfits> {
    let cal = manifest.calibration.as_ref();
    let bound = |name: &str| {
        manifest.params.contains_key(name)
            || cal.is_some_and(|c| c.center.as_deref() == Some(name) || c.scale.as_deref() == Some(name))
    };
    let window = match &manifest.input {
        Some(name) => name.clone(),
        None => loaded
            .inputs
            .iter()
            .find(|i| !bound(&i.name))
            .map(|i| i.name.clone())
            .ok_or_else(|| "it has no input for the window".to_owned())?,
    };
    let mut misfits = Misfits::default();
    let learnt = cal.iter().flat_map(|c| c.center.iter().chain(&c.scale)).map(|name| ("calibration", name));
    let fixed = manifest.params.keys().map(|name| ("param", name));
    for (key, name) in std::iter::once(("input", &window)).chain(learnt).chain(fixed) {
        misfits.take(key, name, find(&loaded.inputs, "input", name));
    }
    let features_len = features.and_then(|name| {
        let tensor = loaded.outputs.iter().find(|o| o.name == name)?;
        tensor.shape.iter().map(|d| usize::try_from((*d).max(1)).ok()).product::<Option<usize>>()
    });
    let fed = |input: &Tensor| {
        if !is_number(&input.kind) {
            return Err(format!("input `{}` is {}, not a tensor of numbers", input.name, input.kind));
        }
        if input.name == window {
            let (shape, layout) = window_shape(input, manifest.layout, steps, width)?;
            return Ok((shape, Feed::Window(layout)));
        }
        if let Some(values) = manifest.params.get(&input.name) {
            let shape = sized(input, values.len())?;
            return Ok((shape, Feed::Param(values.iter().map(|x| *x as f32).collect())));
        }
        if bound(&input.name) {
            let len = features_len.ok_or("the features' size is not declared")?;
            let is_center = cal.is_some_and(|c| c.center.as_deref() == Some(&input.name));
            return Ok((sized(input, len)?, if is_center { Feed::Center } else { Feed::Scale }));
        }
        Err(format!("input `{}` is bound to nothing; give it values as `param.{}`", input.name, input.name))
    };
    let (mut inputs, mut feeds) = (Vec::new(), Vec::new());
    for input in &loaded.inputs {
        if let Some((shape, feed)) = misfits.take("model", &input.name, fed(input)) {
            inputs.push((input.name.clone(), shape));
            feeds.push(feed);
        }
    }
    if misfits.0.is_empty() { Ok((inputs, feeds)) } else { Err(misfits) }
}

/// The shape of an input that takes `len` values; an open first dimension is 1, one other open one is what is left.
fn sized(input: &Tensor, len: usize) -> Result<Vec<i64>, String> {
    let fixed: i64 = input.shape.iter().filter(|d| **d > 0).product();
    let mut shape = input.shape.clone();
    let open = shape.iter().filter(|d| **d < 0).count();
    let mut left = open;
    for dimension in &mut shape {
        if *dimension < 0 {
            left -= 1;
            *dimension = if left == 0 { len as i64 / fixed.max(1) } else { 1 };
        }
    }
    if shape.iter().product::<i64>() == len as i64 {
        Ok(shape)
    } else {
        Err(format!("input `{}` has shape {:?}, and {len} values are given", input.name, input.shape))
    }
}

/// The shape of the window's input and the order of its values.
fn window_shape(
    input: &Tensor,
    layout: Option<Layout>,
    steps: usize,
    width: usize,
) -> Result<(Vec<i64>, Layout), String> {
    let (s, w) = (steps as i64, width as i64);
    let fits = |layout: Layout| {
        let pair = if layout == Layout::StepsFirst { [s, w] } else { [w, s] };
        let mut shape = input.shape.clone();
        let n = shape.len();
        if n >= 2 {
            shape[..n - 2].iter_mut().filter(|d| **d < 0).for_each(|d| *d = 1);
            shape[n - 2..].iter_mut().zip(pair).filter(|(d, _)| **d < 0).for_each(|(d, want)| *d = want);
        }
        let tail = n >= 2 && shape[n - 2..] == pair;
        (tail && shape.iter().product::<i64>() == s * w).then_some(shape)
    };
    let wrong = || {
        format!(
            "input `{}` has shape {:?}, and the pipeline makes windows of {steps} rows × {width} channels",
            input.name, input.shape
        )
    };
    match (layout, fits(Layout::StepsFirst), fits(Layout::ChannelsFirst)) {
        (Some(Layout::StepsFirst) | None, Some(shape), None) => Ok((shape, Layout::StepsFirst)),
        (Some(Layout::ChannelsFirst) | None, None, Some(shape)) => Ok((shape, Layout::ChannelsFirst)),
        (Some(layout), Some(steps_first), Some(channels_first)) => {
            Ok((if layout == Layout::StepsFirst { steps_first } else { channels_first }, layout))
        }
        (None, Some(shape), Some(_)) if width == 1 || steps == 1 => Ok((shape, Layout::StepsFirst)),
        (None, Some(_), Some(_)) => {
            Err(format!("input `{}` could be steps × channels or channels × steps; say `layout`", input.name))
        }
        // A flat input, or one of another rank with the same number of values.
        _ => {
            let pair_of_another = layout.is_some() && input.shape.len() > 2;
            let shape = sized(input, steps * width).map_err(|_| wrong())?;
            let flat = shape.iter().filter(|d| **d > 1).count() <= 1;
            if flat && !pair_of_another { Ok((shape, layout.unwrap_or(Layout::StepsFirst))) } else { Err(wrong()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tensor(name: &str, shape: &[i64]) -> Tensor {
        Tensor { name: name.into(), kind: "float32".into(), shape: shape.to_vec() }
    }

    fn plan_for(shape: &[i64], layout: Option<Layout>) -> Result<(Vec<i64>, Feed), String> {
        let loaded = Loaded { inputs: vec![tensor("x", shape)], outputs: vec![tensor("y", &[1])], ..Loaded::default() };
        let manifest = Manifest { layout, ..Manifest::bare(Path::new("m.onnx")) };
        plan(&loaded, &manifest, (64, 8), &[])
            .map(|(prepare, plan)| (prepare.inputs[0].1.clone(), plan.feeds[0].clone()))
            .map_err(String::from)
    }

    #[test]
    fn the_order_of_a_windows_values_is_read_from_the_shape() {
        assert_eq!(plan_for(&[1, 8, 64], None), Ok((vec![1, 8, 64], Feed::Window(Layout::ChannelsFirst))));
        assert_eq!(plan_for(&[-1, 64, 8], None), Ok((vec![1, 64, 8], Feed::Window(Layout::StepsFirst))));
        assert_eq!(plan_for(&[-1, -1, 8], None), Ok((vec![1, 64, 8], Feed::Window(Layout::StepsFirst))));
        assert_eq!(plan_for(&[1, 512], None), Ok((vec![1, 512], Feed::Window(Layout::StepsFirst))));
        assert_eq!(plan_for(&[-1, 1, 8, 64], None), Ok((vec![1, 1, 8, 64], Feed::Window(Layout::ChannelsFirst))));
    }

    #[test]
    fn a_shape_that_does_not_fit_is_refused_with_both_sides() {
        let why = plan_for(&[1, 9, 64], None).expect_err("wrong shape");
        assert!(why.contains("[1, 9, 64]") && why.contains("64 rows × 8 channels"), "{why}");
        assert!(plan_for(&[2, 8, 64], None).is_err());
        assert!(plan_for(&[1, 8, 64], Some(Layout::StepsFirst)).is_err());
        assert!(plan_for(&[1, 16, 32], None).is_err());
    }

    #[test]
    fn inputs_bound_to_nothing_and_outputs_that_are_not_there_are_named() {
        let loaded = Loaded {
            inputs: vec![tensor("x", &[1, 64, 8]), tensor("gain", &[1])],
            outputs: vec![tensor("y", &[1])],
            ..Loaded::default()
        };
        let mut manifest = Manifest::bare(Path::new("m.onnx"));
        let run = |manifest: &Manifest| {
            plan(&loaded, manifest, (64, 8), &[]).map(|(_, plan)| plan.feeds).map_err(String::from)
        };
        assert!(run(&manifest).expect_err("gain").contains("param.gain"));
        manifest.params.insert("gain".into(), vec![2.0]);
        assert_eq!(run(&manifest).expect("bound")[1], Feed::Param(vec![2.0]));
        manifest.scoring.score = Some("z".into());
        assert!(run(&manifest).expect_err("z").contains("no output `z`; it has `y`"));
        manifest.input = Some("X".into());
        let (key, of): (Vec<_>, Vec<_>) = plan(&loaded, &manifest, (64, 8), &["yy".into()])
            .expect_err("three problems")
            .0
            .iter()
            .filter(|misfit| misfit.key != "model")
            .map(|misfit| (misfit.key, misfit.of.clone()))
            .unzip();
        assert_eq!((key, of), (vec!["score", "outputs", "input"], vec!["".into(), "yy".into(), "X".into()]));
    }

    #[test]
    fn rows_of_features_take_a_flattened_window_in_the_order_that_is_named() {
        assert_eq!(plan_for(&[-1, 512], None), Ok((vec![1, 512], Feed::Window(Layout::StepsFirst))));
        let by_channel = Some(Layout::ChannelsFirst);
        assert_eq!(plan_for(&[-1, 512], by_channel), Ok((vec![1, 512], Feed::Window(Layout::ChannelsFirst))));
        assert_eq!(plan_for(&[-1, 8], None), Ok((vec![64, 8], Feed::Window(Layout::StepsFirst))), "a row at a time");
        assert!(plan_for(&[-1, 511], None).is_err());
    }
}
