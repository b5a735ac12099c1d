//! What outputs mean, by what models of common tools declare.

use std::path::Path;

use super::*;
use crate::model::scoring::Scoring;

fn tensor(name: &str, kind: &str, shape: &[i64]) -> Tensor {
    Tensor { name: name.into(), kind: kind.into(), shape: shape.to_vec() }
}

fn loaded(outputs: &[Tensor]) -> Loaded {
    Loaded { outputs: outputs.to_vec(), ..Loaded::default() }
}

fn forest() -> Loaded {
    loaded(&[tensor("label", "int64", &[-1, 1]), tensor("scores", "float32", &[-1, 1])])
}

fn classifier() -> Loaded {
    loaded(&[tensor("label", "int64", &[-1]), tensor("probabilities", "float32", &[-1, 3])])
}

fn of(loaded: &Loaded, scoring: Scoring) -> Result<(Meaning, Vec<String>), Misfits> {
    let manifest = Manifest { scoring, ..Manifest::bare(Path::new("m.onnx")) };
    let (mut wanted, mut misfits) = (Vec::new(), Misfits::default());
    let meaning = Meaning::of(loaded, &manifest, &mut wanted, &mut misfits);
    if misfits.0.is_empty() { Ok((meaning, wanted)) } else { Err(misfits) }
}

fn named(score: &str) -> Scoring {
    Scoring { score: Some(score.into()), ..Scoring::default() }
}

fn classes() -> Scoring {
    Scoring { classes: ["ok", "wear", "leak"].map(str::to_owned).to_vec(), ..Scoring::default() }
}

#[track_caller]
fn rejected(loaded: &Loaded, scoring: Scoring, key: &str, words: &[&str]) {
    let misfits = of(loaded, scoring).expect_err("rejected");
    assert_eq!(misfits.0[0].key, key, "{misfits}");
    words.iter().for_each(|word| assert!(misfits.0[0].why.contains(word), "{word}: {misfits}"));
}

#[test]
fn several_outputs_and_none_named_are_rejected_with_names_types_and_shapes() {
    rejected(
        &forest(),
        Scoring::default(),
        "score",
        &["2 outputs", "`label` int64 [-1, 1]", "`scores` float32 [-1, 1]"],
    );
}

#[test]
fn whole_numbers_are_a_score_only_where_they_are_called_so() {
    let label = loaded(&[tensor("label", "int64", &[1])]);
    rejected(&label, Scoring::default(), "score", &["`label` int64 [1]", "classes"]);
    assert!(of(&label, named("label")).is_ok());
    assert!(of(&loaded(&[tensor("score", "int64", &[1])]), Scoring::default()).is_ok(), "the model calls it so");
    assert!(of(&loaded(&[tensor("y", "float64", &[1])]), Scoring::default()).is_ok(), "the only one, and a float");
}

#[test]
fn score_that_is_not_there_is_rejected_with_the_nearest_name() {
    rejected(&forest(), named("score"), "score", &["no output `score`", "did you mean `scores`?"]);
    rejected(&classifier(), named("probabilitys[1]"), "score", &["did you mean `probabilities`?"]);
}

#[test]
fn map_as_output_is_rejected_with_the_option_of_the_exporter() {
    let zip = loaded(&[
        tensor("output_label", "int64", &[-1]),
        tensor("output_probability", "Sequence<Map<Int64, Tensor<f32>(dyn)>>", &[]),
    ]);
    rejected(&zip, named("output_probability"), "score", &["not a tensor of numbers", "\"zipmap\": False"]);
    rejected(&zip, classes(), "classes", &["no output has 3 floats", "\"zipmap\": False"]);
    rejected(&zip, Scoring::default(), "score", &["\"zipmap\": False"]);
    let text = loaded(&[tensor("label", "string", &[-1])]);
    rejected(&text, named("label"), "score", &["`label` is string"]);
}

#[test]
fn classes_need_no_score_and_find_their_output_by_its_size() {
    let (meaning, wanted) = of(&classifier(), classes()).expect("it fits");
    assert!(meaning.score.is_none() && meaning.classes.as_ref().is_some_and(|(place, _)| *place == 0));
    assert_eq!(wanted, ["probabilities"]);
    let both = Scoring { score: Some("probabilities[1]".into()), ..classes() };
    let (meaning, wanted) = of(&classifier(), both).expect("it fits");
    assert_eq!(meaning.score, Some((0, Score::Value(1))));
    assert_eq!(wanted, ["probabilities"], "wanted once");
    let two = loaded(&[tensor("p", "float32", &[1, 3]), tensor("q", "float32", &[3])]);
    rejected(&two, classes(), "classes", &["name the right one as `probabilities`"]);
    let named = Scoring { probabilities: Some("q".into()), ..classes() };
    assert_eq!(of(&two, named).expect("it fits").1, ["q"]);
    let label = Scoring { probabilities: Some("label".into()), ..classes() };
    rejected(&classifier(), label, "probabilities", &["int64", "probabilities are floats"]);
}

#[test]
fn sizes_that_do_not_fit_are_named_when_they_are_known() {
    let check = |loaded: &Loaded, scoring: Scoring, sizes: &[usize]| {
        let manifest = Manifest { scoring: scoring.clone(), ..Manifest::bare(Path::new("m.onnx")) };
        let (meaning, wanted) = of(loaded, scoring).expect("it fits");
        meaning.check(&manifest, &wanted, sizes, 8).0.first().map(|misfit| (misfit.key, misfit.why.clone()))
    };
    let y = loaded(&[tensor("y", "float32", &[-1, 1])]);
    let (key, why) = check(&y, Scoring::default(), &[8]).expect("8 values are no score");
    assert!(key == "score" && why.contains("`y[0]` to `y[7]`") && why.contains("`rms`"), "{why}");
    assert!(why.contains("repeats the window, say `reconstruction = \"y\"`"), "{why}");
    let (_, why) = check(&y, Scoring::default(), &[3]).expect("3 values are no score");
    assert!(why.contains("`classes`"), "{why}");
    assert_eq!(check(&y, named("y[7]"), &[8]), None);
    assert_eq!(check(&y, named("y[8]"), &[8]).map(|(key, _)| key), Some("score"));
    assert_eq!(check(&y, Scoring { reduce: Some(Reduce::Max), ..Scoring::default() }, &[8]), None);
    let repeats = Scoring { reconstruction: Some("y".into()), ..Scoring::default() };
    assert_eq!(check(&y, repeats.clone(), &[8]), None);
    assert_eq!(check(&y, repeats, &[9]).map(|(key, _)| key), Some("reconstruction"));
    assert_eq!(check(&classifier(), classes(), &[4]).map(|(key, _)| key), Some("classes"));
}

#[test]
fn score_is_a_value_a_reduction_or_the_distance_to_the_window() {
    assert_eq!(Score::Value(1).of(&[0.1, 0.7], &[]), 0.7);
    assert!(Score::Value(2).of(&[0.1, 0.7], &[]).is_nan());
    assert_eq!(Score::Reduced(Reduce::Mean).of(&[1.0, 3.0], &[]), 2.0);
    let distance = |reduce| Score::Distance(reduce).of(&[4.0, 2.0], &[1.0, 6.0]);
    assert_eq!((distance(Reduce::Max), distance(Reduce::Mean)), (4.0, 3.5));
    assert!((distance(Reduce::Rms) - 12.5f64.sqrt()).abs() < 1e-12);
}

#[test]
fn meaning_is_described_in_words() {
    let describe = |loaded: &Loaded, scoring: Scoring| {
        let manifest = Manifest { scoring: scoring.clone(), ..Manifest::bare(Path::new("m.onnx")) };
        let (meaning, wanted) = of(loaded, scoring).expect("it fits");
        meaning.describe(&manifest, &wanted)
    };
    let low = Scoring { direction: Direction::Low, ..named("scores") };
    assert_eq!(describe(&forest(), low), "score: output scores, low is bad");
    let both = Scoring { score: Some("probabilities[1]".into()), ..classes() };
    let expected = "score: output probabilities[1], high is bad; classes: ok, wear, leak of output probabilities";
    assert_eq!(describe(&classifier(), both), expected);
    let repeats = Scoring { reconstruction: Some("scores".into()), ..Scoring::default() };
    assert_eq!(describe(&forest(), repeats), "score: rms distance of output scores to the window, high is bad");
}

#[test]
fn calibration_without_a_score_is_rejected() {
    let calibration = Some(crate::model::manifest::Calibration {
        windows: 10,
        features: None,
        center: None,
        scale: None,
        factor: 1.5,
        scale_floor: Vec::new(),
    });
    let manifest = Manifest { scoring: classes(), calibration, ..Manifest::bare(Path::new("m.onnx")) };
    let mut misfits = Misfits::default();
    Meaning::of(&classifier(), &manifest, &mut Vec::new(), &mut misfits);
    assert_eq!(misfits.0.first().map(|misfit| misfit.key), Some("calibration"));
}
