//! What fills each input, by what models of common tools declare.

use std::path::Path;

use super::*;
use crate::model::scoring::Scoring;

fn tensor(name: &str, kind: &str, shape: &[i64]) -> Tensor {
    Tensor { name: name.into(), kind: kind.into(), shape: shape.to_vec() }
}

fn model(inputs: &[(&str, &[i64])], outputs: &[(&str, &[i64])]) -> Loaded {
    let all = |of: &[(&str, &[i64])]| of.iter().map(|(name, shape)| tensor(name, "float32", shape)).collect();
    Loaded { inputs: all(inputs), outputs: all(outputs), ..Loaded::default() }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn windows(steps: usize, names: &[&str]) -> Windows {
    Windows { steps, names: vec![strings(names)] }
}

fn bare() -> Manifest {
    Manifest::bare(Path::new("m.onnx"))
}

fn with_feeds(feeds: &[(&str, &[&str])]) -> Manifest {
    let feeds = feeds.iter().map(|(input, channels)| ((*input).to_owned(), strings(channels))).collect();
    Manifest { feeds, ..bare() }
}

fn with_state(pairs: &[(&str, &str)]) -> Manifest {
    let pairs = pairs.iter().map(|(output, input)| ((*output).to_owned(), (*input).to_owned()));
    Manifest { state: Some(pairs.collect()), ..bare() }
}

#[track_caller]
fn rejected(loaded: &Loaded, manifest: &Manifest, windows: &Windows, key: &str, words: &[&str]) -> Misfits {
    let misfits = fit(loaded, manifest, windows).expect_err("rejected");
    assert_eq!(misfits.0[0].key, key, "{misfits}");
    words.iter().for_each(|word| assert!(misfits.0[0].why.contains(word), "{word}: {misfits}"));
    misfits
}

const STEPS: Layout = Layout::StepsFirst;

#[test]
fn channels_go_into_inputs_of_their_name_for_each_pipeline_by_its_own_order() {
    let loaded = model(&[("flow", &[-1, 1]), ("temp", &[-1, 1])], &[("y", &[-1, 1])]);
    let two = Windows { steps: 3, names: vec![strings(&["temp", "flow"]), strings(&["flow", "temp"])] };
    let fed = fit(&loaded, &bare(), &two).expect("by name");
    let feed = |at| Feed::Channels(vec![at], STEPS);
    assert_eq!(fed.feeds, [vec![feed(1), feed(0)], vec![feed(0), feed(1)]]);
    assert_eq!(fed.inputs, [("flow".into(), vec![3, 1]), ("temp".into(), vec![3, 1])]);
    // As a data frame calls them.
    let loaded = model(&[("Volume Flow RateRMS", &[-1, 1]), ("Temp", &[-1, 1])], &[("y", &[-1, 1])]);
    let fed = fit(&loaded, &bare(), &windows(1, &["temp", "volume_flow_raterms"])).expect("as they would be written");
    assert_eq!(fed.feeds[0], [feed(1), feed(0)]);
    let loaded = model(&[("temp:0", &[-1, 1]), ("flow:0", &[-1, 1])], &[("y", &[-1, 1])]);
    assert_eq!(fit(&loaded, &bare(), &windows(1, &["flow", "temp"])).expect("tf2onnx").feeds[0], [feed(1), feed(0)]);
}

#[test]
fn single_input_takes_the_window_whatever_its_name() {
    let loaded = model(&[("temp", &[1, 4, 2])], &[("y", &[1])]);
    assert_eq!(fit(&loaded, &bare(), &windows(4, &["temp", "flow"])).expect("whole").feeds[0], [Feed::Window(STEPS)]);
}

#[test]
fn inputs_of_other_names_are_bound_by_the_key_to_one_or_several_channels() {
    let loaded = model(&[("fast", &[1, 4, 2]), ("slow", &[1, 4, 1])], &[("y", &[1])]);
    let manifest = with_feeds(&[("fast", &["v2", "v1"]), ("slow", &["temp"])]);
    let fed = fit(&loaded, &manifest, &windows(4, &["temp", "v1", "v2"])).expect("bound");
    assert_eq!(fed.feeds[0], [Feed::Channels(vec![2, 1], STEPS), Feed::Channels(vec![0], STEPS)]);
    // One by the key, the other by its name.
    let loaded = model(&[("fast", &[1, 4, 2]), ("temp", &[1, 4])], &[("y", &[1])]);
    assert!(fit(&loaded, &with_feeds(&[("fast", &["v2", "v1"])]), &windows(4, &["temp", "v1", "v2"])).is_ok());
    let of = windows(4, &["temp", "v1", "v2"]);
    rejected(&loaded, &with_feeds(&[("fats", &["v1"])]), &of, "inputs", &["no input `fats`", "did you mean `fast`?"]);
}

#[test]
fn channel_without_an_input_and_input_without_a_channel_are_rejected_with_advice() {
    let loaded = model(&[("temp", &[-1, 1]), ("flow", &[-1, 1])], &[("y", &[-1, 1])]);
    let of = windows(1, &["temp", "flow", "noise"]);
    rejected(&loaded, &bare(), &of, "channels", &["`noise` goes into no input"]);
    let misfits = rejected(&loaded, &bare(), &windows(1, &["temp", "flw"]), "model", &["`flow`", "inputs = { flow ="]);
    assert!(misfits.to_string().contains("did you mean channel `flw`?"), "{misfits}");
}

#[test]
fn window_is_the_input_that_fits_wherever_it_stands() {
    let loaded = model(&[("scale", &[3]), ("x", &[1, 4, 2])], &[("y", &[1])]);
    let misfits = fit(&loaded, &bare(), &windows(4, &["a", "b"])).expect_err("scale");
    assert!(misfits.0.len() == 1 && misfits.0[0].of == "scale", "{misfits}");
    let manifest = Manifest { params: [("scale".to_owned(), vec![1.0; 3])].into(), ..bare() };
    assert_eq!(fit(&loaded, &manifest, &windows(4, &["a", "b"])).expect("fits").feeds[0][1], Feed::Window(STEPS));
}

#[test]
fn state_that_is_not_said_is_rejected_with_the_key_and_never_with_a_constant() {
    let loaded = model(
        &[("x", &[1, 4, 1]), ("h0", &[1, 1, 4]), ("c0", &[1, 1, 4])],
        &[("y", &[1]), ("hn", &[1, 1, 4]), ("cn", &[1, 1, 4])],
    );
    let of = windows(4, &["a"]);
    let misfits = rejected(&loaded, &bare(), &of, "state", &["state = { hn = \"h0\", cn = \"c0\" }"]);
    assert!(!misfits.to_string().contains("param"), "{misfits}");
    let fed = fit(&loaded, &with_state(&[("hn", "h0"), ("cn", "c0")]), &of).expect("said");
    assert_eq!(fed.feeds[0], [Feed::Window(STEPS), Feed::State(1), Feed::State(0)]);
    assert_eq!(fed.state, ["cn", "hn"]);
}

#[test]
fn window_is_found_beside_states_of_a_free_batch_and_states_that_look_alike_are_never_guessed() {
    // As tf2onnx orders the inputs of a saved model: by name. Two states of 4 would be a window of 2 × 4 as well.
    let loaded = model(
        &[("c0", &[-1, 4]), ("h0", &[-1, 4]), ("x", &[-1, 4, 2])],
        &[("output_0", &[-1, 1]), ("output_1", &[-1, 4]), ("output_2", &[-1, 4])],
    );
    let of = windows(4, &["temp", "flow"]);
    let why = "state = { output_1 = \"…\", output_2 = \"…\" }`; neither names nor shapes tell which output belongs to which \
               input of `c0`, `h0`";
    let scoring = Scoring { score: Some("output_0".into()), ..Scoring::default() };
    let scored = Manifest { scoring, ..bare() };
    let misfits = rejected(&loaded, &scored, &of, "state", &[why]);
    assert_eq!(misfits.0.len(), 1, "{misfits}");
    let said = Manifest { state: with_state(&[("output_1", "h0"), ("output_2", "c0")]).state, ..scored };
    assert_eq!(fit(&loaded, &said, &of).expect("said").feeds[0][2], Feed::Window(STEPS));
}

#[test]
fn constants_in_the_place_of_a_state_are_rejected_unless_the_model_is_said_to_have_none() {
    let loaded = model(&[("x", &[1, 4, 1]), ("h_in", &[1, 1, 4])], &[("score", &[]), ("h_out", &[1, 1, 4])]);
    let of = windows(4, &["a"]);
    let params = BTreeMap::from([("h_in".to_owned(), vec![0.0; 4])]);
    let fixed = Manifest { params, ..bare() };
    rejected(&loaded, &fixed, &of, "param", &["state = { h_out = \"h_in\" }", "`state = {}`"]);
    assert!(fit(&loaded, &Manifest { state: Some(BTreeMap::new()), ..fixed }, &of).is_ok());
    // A constant like any other.
    let loaded = model(&[("x", &[1, 4, 1]), ("gain", &[4])], &[("score", &[]), ("bands", &[4])]);
    assert!(fit(&loaded, &Manifest { params: [("gain".to_owned(), vec![1.0; 4])].into(), ..bare() }, &of).is_ok());
}

#[test]
fn state_that_cannot_be_carried_is_named() {
    let loaded = model(&[("x", &[1, 4, 1]), ("h", &[1, 1, 4])], &[("y", &[1]), ("h_out", &[1, 1, 4])]);
    let of = windows(4, &["a"]);
    rejected(&loaded, &with_state(&[("hout", "h")]), &of, "state", &["no output `hout`", "did you mean `h_out`?"]);
    rejected(&loaded, &with_state(&[("h_out", "hh")]), &of, "state", &["no input `hh`", "did you mean `h`?"]);
    let turned =
        rejected(&loaded, &with_state(&[("h", "h_out")]), &of, "state", &["wrong way round", "{ h_out = \"h\" }"]);
    assert_eq!(turned.0.len(), 1, "{turned}");
    rejected(&loaded, &with_state(&[("y", "h")]), &of, "state", &["[1]", "[1, 1, 4]", "cannot be carried"]);
    let both = Manifest { params: [("h".to_owned(), vec![0.0; 4])].into(), ..with_state(&[("h_out", "h")]) };
    rejected(&loaded, &both, &of, "state", &["bound twice", "`param`"]);
}

#[test]
fn inputs_that_are_no_numbers_are_rejected() {
    let mut loaded = model(&[("temp", &[-1, 1]), ("site", &[-1, 1])], &[("y", &[1])]);
    loaded.inputs[1].kind = "string".into();
    rejected(&loaded, &bare(), &windows(1, &["temp", "site"]), "model", &["`site` is string"]);
    loaded.inputs[1].kind = "bfloat16".into();
    assert!(fit(&loaded, &bare(), &windows(1, &["temp", "site"])).is_ok());
}

#[test]
fn inputs_that_take_different_numbers_of_windows_at_once_are_rejected() {
    let loaded = model(&[("temp", &[8, 1]), ("flow", &[4, 1])], &[("y", &[8, 1])]);
    rejected(&loaded, &bare(), &windows(1, &["temp", "flow"]), "model", &["takes 4 windows at once", "take 8"]);
}
