//! Whether the shape that a model declares for an input takes a window, and in which order. Pure.

use super::channel::Tensor;
use crate::model::manifest::Layout;

/// The shape of an input that takes `len` values; an open first dimension is 1, one other open one is what is left.
pub fn sized(input: &Tensor, len: usize) -> Result<Vec<i64>, String> {
    let whole = fill_open(&input.shape, len);
    whole.ok_or_else(|| format!("input `{}` has shape {:?}, and {len} values are given", input.name, input.shape))
}

/// A shape without open dimensions that has `len` values.
fn fill_open(of: &[i64], len: usize) -> Option<Vec<i64>> {
    let fixed: i64 = of.iter().filter(|d| **d > 0).product();
    let mut shape = of.to_vec();
    let open = shape.iter().filter(|d| **d < 0).count();
    let mut left = open;
    for dimension in &mut shape {
        if *dimension < 0 {
            left -= 1;
            *dimension = if left == 0 { len as i64 / fixed.max(1) } else { 1 };
        }
    }
    (shape.iter().product::<i64>() == len as i64).then_some(shape)
}

/// The shape with this pair at the last two of these places, where it can stand there; other open dimensions are 1.
fn paired(of: &[i64], places: &[usize], pair: [i64; 2]) -> Option<Vec<i64>> {
    let [.., a, b] = *places else { return None };
    let mut shape: Vec<i64> = of.iter().map(|d| if *d < 0 { 1 } else { *d }).collect();
    for (at, want) in [(a, pair[0]), (b, pair[1])] {
        if of[at] >= 0 && of[at] != want {
            return None;
        }
        shape[at] = want;
    }
    Some(shape)
}

/// The shape of an input that takes windows, the order of their values, and how many it takes at once. Dimensions of 1 may
/// stand anywhere.
///
/// # Errors
/// The shape does not fit, or could be meant in two ways.
pub fn window_shape(
    input: &Tensor,
    layout: Option<Layout>,
    steps: usize,
    width: usize,
) -> Result<(Vec<i64>, Layout, usize), String> {
    let whole = one_window(input, &input.shape, layout, steps, width);
    let n = input.shape.first().copied().unwrap_or(1);
    let whole = match (whole, layout) {
        (Err(why), Some(_)) if one_window(input, &input.shape, None, steps, width).is_ok() => {
            return Err(format!("{why}; without `layout` it fits"));
        }
        (whole, _) => whole,
    };
    let (Err(why), true) = (&whole, n > 1) else { return whole.map(|(shape, layout)| (shape, layout, 1)) };
    // An exporter may have fixed the batch: then it takes so many windows at once.
    let first = [&[1], &input.shape[1..]].concat();
    match one_window(input, &first, layout, steps, width) {
        Ok((mut shape, layout)) => {
            shape[0] = n;
            Ok((shape, layout, usize::try_from(n).unwrap_or(1)))
        }
        Err(_) => Err(why.clone()),
    }
}

/// The same where the input has this shape and takes one window.
fn one_window(
    input: &Tensor,
    of: &[i64],
    layout: Option<Layout>,
    steps: usize,
    width: usize,
) -> Result<(Vec<i64>, Layout), String> {
    let (s, w) = (steps as i64, width as i64);
    let fits = |layout: Layout| {
        let pair = if layout == Layout::StepsFirst { [s, w] } else { [w, s] };
        // The last two dimensions, or the last two that are not 1.
        let all: Vec<usize> = (0..of.len()).collect();
        let long = all.iter().copied().filter(|at| of[*at] != 1).collect::<Vec<_>>();
        let whole = |shape: &Vec<i64>| shape.iter().product::<i64>() == s * w;
        [all, long].iter().find_map(|places| paired(of, places, pair).filter(whole))
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
            let long = of.iter().filter(|d| **d != 1).count();
            let pair_of_another = layout.is_some() && long > 2;
            // What is open in front is the batch: values of one window are no batch.
            let mut one = of.to_vec();
            one.iter_mut().take(usize::from(of.len() > 1)).filter(|d| **d < 0).for_each(|d| *d = 1);
            let shape = fill_open(&one, steps * width).ok_or_else(wrong)?;
            let flat = shape.iter().filter(|d| **d > 1).count() <= 1;
            if flat && !pair_of_another { Ok((shape, layout.unwrap_or(Layout::StepsFirst))) } else { Err(wrong()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[i64]) -> Tensor {
        Tensor { name: "x".into(), kind: "float32".into(), shape: shape.to_vec() }
    }

    const STEPS: Layout = Layout::StepsFirst;
    const CHANNELS: Layout = Layout::ChannelsFirst;

    /// For windows of 64 rows of 8 channels.
    fn of(shape: &[i64], layout: Option<Layout>) -> Result<(Vec<i64>, Layout), String> {
        match window_shape(&tensor(shape), layout, 64, 8)? {
            (shape, layout, 1) => Ok((shape, layout)),
            (.., n) => Err(format!("{n} at once")),
        }
    }

    #[test]
    fn order_of_a_windows_values_is_read_from_the_shape() {
        assert_eq!(of(&[1, 8, 64], None), Ok((vec![1, 8, 64], CHANNELS)));
        assert_eq!(of(&[-1, 64, 8], None), Ok((vec![1, 64, 8], STEPS)));
        assert_eq!(of(&[-1, -1, 8], None), Ok((vec![1, 64, 8], STEPS)));
        assert_eq!(of(&[1, 512], None), Ok((vec![1, 512], STEPS)));
        assert_eq!(of(&[-1, 1, 8, 64], None), Ok((vec![1, 1, 8, 64], CHANNELS)));
    }

    #[test]
    fn dimensions_of_1_may_stand_anywhere() {
        for (shape, whole, layout) in [
            (&[1, 64, 8, 1][..], &[1, 64, 8, 1][..], STEPS),
            (&[-1, 8, 64, 1], &[1, 8, 64, 1], CHANNELS),
            (&[-1, 8, 1, 64], &[1, 8, 1, 64], CHANNELS),
            (&[-1, 64, 1, 8, 1], &[1, 64, 1, 8, 1], STEPS),
            (&[64, 8, 1], &[64, 8, 1], STEPS),
            (&[-1, -1, 8, 1], &[1, 64, 8, 1], STEPS),
            (&[-1, 512, 1], &[1, 512, 1], STEPS),
            (&[-1, 512, 1, 1], &[1, 512, 1, 1], STEPS),
        ] {
            assert_eq!(of(shape, None), Ok((whole.to_vec(), layout)), "{shape:?}");
        }
        for shape in [&[1, 64, 9, 1][..], &[1, 64, 8, 2], &[2, 1, 32, 8]] {
            assert!(of(shape, None).is_err(), "{shape:?}");
        }
        // One channel, one row, one of both.
        let one =
            |shape: &[i64], steps, width| window_shape(&tensor(shape), None, steps, width).map(|(shape, ..)| shape);
        assert_eq!(one(&[-1, 64, 1, 1], 64, 1), Ok(vec![1, 64, 1, 1]));
        assert_eq!(one(&[-1, 1, 1, 8, 1], 1, 8), Ok(vec![1, 1, 1, 8, 1]));
        assert_eq!(one(&[-1, 1], 1, 1), Ok(vec![1, 1]));
        assert_eq!(one(&[], 1, 1), Ok(vec![]));
    }

    #[test]
    fn shape_that_does_not_fit_is_rejected_with_both_sides() {
        let why = of(&[1, 9, 64], None).expect_err("wrong shape");
        assert!(why.contains("[1, 9, 64]") && why.contains("64 rows × 8 channels"), "{why}");
        assert!(of(&[1, 8, 64], Some(STEPS)).is_err_and(|why| why.ends_with("without `layout` it fits")));
        assert!(of(&[1, 16, 32], None).is_err());
        let square = window_shape(&tensor(&[1, 8, 8]), None, 8, 8).expect_err("two ways");
        assert!(square.contains("say `layout`"), "{square}");
    }

    #[test]
    fn batch_that_is_fixed_is_known_by_the_rest_of_the_shape() {
        let at_once = |shape: &[i64]| window_shape(&tensor(shape), None, 64, 8);
        assert_eq!(at_once(&[16, 64, 8]), Ok((vec![16, 64, 8], STEPS, 16)));
        assert_eq!(at_once(&[2, 8, 64]), Ok((vec![2, 8, 64], CHANNELS, 2)));
        assert_eq!(at_once(&[32, 512]), Ok((vec![32, 512], STEPS, 32)));
        assert_eq!(at_once(&[4, 64, 8, 1]), Ok((vec![4, 64, 8, 1], STEPS, 4)));
        assert_eq!(at_once(&[4, -1, 8]), Ok((vec![4, 64, 8], STEPS, 4)));
        assert_eq!(at_once(&[64, 8]), Ok((vec![64, 8], STEPS, 1)), "a window, not 64 of them");
        assert_eq!(window_shape(&tensor(&[16, 8]), None, 1, 8), Ok((vec![16, 8], STEPS, 16)), "rows of features");
        let why = at_once(&[4, 63, 8]).expect_err("63 rows");
        assert!(why.contains("[4, 63, 8]"), "{why}");
    }

    #[test]
    fn rows_of_features_take_a_flattened_window_in_the_order_that_is_named() {
        assert_eq!(of(&[-1, 512], None), Ok((vec![1, 512], STEPS)));
        assert_eq!(of(&[-1, 512], Some(CHANNELS)), Ok((vec![1, 512], CHANNELS)));
        assert_eq!(of(&[-1, 8], None), Ok((vec![64, 8], STEPS)), "a row at a time");
        assert!(of(&[-1, 511], None).is_err());
        for shape in [&[-1, 1][..], &[-1, 1, 1], &[-1, 4]] {
            assert!(of(shape, None).is_err(), "{shape:?}: values of several channels, one after the other");
        }
        assert_eq!(of(&[-1], None), Ok((vec![512], STEPS)));
    }
}
