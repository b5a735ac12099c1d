//! `[pipeline.NAME]`: the configuration's keys override the model's manifest.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use super::{
    Model, OnBad, Pipeline,
    bindings::bindings,
    escalate::escalate,
    names::{Names, channels},
    raw::Table,
    threshold::threshold,
};
use crate::{
    flow::Direction,
    limits,
    model::{
        bundle::Head,
        keyset::Keyset,
        manifest::{self, Calibration, Layout, Manifest},
        scoring::Reduce,
    },
};

/// Keys that say of a bare file what the signed manifest says of a bundle.
const OF_A_FILE: [&str; 13] = [
    "input",
    "inputs",
    "state",
    "layout",
    "score",
    "direction",
    "reduce",
    "reconstruction",
    "classes",
    "probabilities",
    "deadline_ms",
    "param",
    "calibration",
];

/// The effect of a bad sample or a gap on a window.
fn on_bad(t: &mut Table<'_>, steps: usize) -> OnBad {
    let rows = t.int("hold_rows", 1..=limits::WINDOW_STEPS_MAX as i64).map(|n| n as u32);
    match t.word("on_bad", &[("drop", 0), ("flag", 1), ("hold", 2)]) {
        Some(2) => match rows {
            Some(rows) if rows as usize <= steps => OnBad::Hold(rows),
            _ => {
                t.problem("hold_rows", "is needed: the last good value is held for so many rows, a window's at most");
                OnBad::Drop
            }
        },
        word => {
            if rows.is_some() {
                t.problem("hold_rows", "belongs to `on_bad = \"hold\"`");
            }
            if word == Some(1) { OnBad::Flag } else { OnBad::Drop }
        }
    }
}

pub(super) fn pipeline(name: &str, mut t: Table<'_>, names: &Names) -> Option<Pipeline> {
    let mut model = model(&mut t, names);
    let list = t.strs("channels").or_else(|| model.manifest.channels.clone()).unwrap_or_default();
    // What is said of a bundle, or beside it, was read and refused above.
    if model.manifest_sha256.is_empty() && !t.has("bundle") {
        bindings(&mut t, &list, &mut model.manifest);
    }
    let manifest = model.manifest.clone();
    // Where the model's file cannot be read, that is the problem.
    let unread = !model.file.as_os_str().is_empty() && !model.file.is_file();
    if list.is_empty() && !unread {
        t.problem("channels", "is needed: the model's channels, in its order");
    }
    let channels = channels(&mut t, "channels", &list, names);
    let steps_max = limits::WINDOW_STEPS_MAX as i64;
    let steps = t.int("window_steps", 1..=steps_max).map(|n| n as usize).or(manifest.steps).unwrap_or(0);
    if steps == 0 && !unread {
        t.problem("window_steps", "is needed: the rows of a window");
    }
    if steps * channels.len() > limits::WINDOW_VALUES_MAX {
        t.problem(
            "window_steps",
            format!("{steps} rows of {} channels are more than {} values", channels.len(), limits::WINDOW_VALUES_MAX),
        );
    }
    // A state takes each row once, unless something else is said.
    let hop_default = if manifest.state.as_ref().is_some_and(|state| !state.is_empty()) { steps.max(1) } else { 1 };
    let hop = t.int("hop_steps", 1..=steps_max).map(|n| n as usize).or(manifest.hop).unwrap_or(hop_default);
    let step_ms = t.int("step_ms", 1..=86_400_000).map(|n| n as u64).or(manifest.step_ms);
    let one_source = channels.windows(2).all(|pair| names.channel_source[pair[0]] == names.channel_source[pair[1]]);
    if !one_source && step_ms.is_none() {
        t.problem("step_ms", "is needed: channels of several sources meet only on a time grid");
    }
    let partial = |c: &usize| names.partial[usize::from(names.channel_source[*c].0)];
    if one_source && step_ms.is_none() && channels.len() > 1 && channels.iter().any(partial) {
        t.problem("step_ms", "is needed: this source's rows do not hold all of its columns at once");
    }
    let late_ms = t.int("late_ms", 0..=60_000).map_or(0, |n| n as u64);
    if t.has("late_ms") && step_ms.is_none() {
        t.problem("late_ms", "belongs to a time grid, which `step_ms` makes");
    }
    let span_ms = channels.iter().map(|c| names.span_ms[usize::from(names.channel_source[*c].0)]).max().unwrap_or(0);
    if !one_source && late_ms < span_ms {
        t.problem(
            "late_ms",
            format!("must be at least {span_ms}: frames of a source hold samples of so many ms, and come behind them"),
        );
    }
    let gap_max_ms = t.int("gap_max_ms", 1..=86_400_000).map(|n| n as u64).or(manifest.gap_max_ms);
    let on_bad = on_bad(&mut t, steps);
    let coverage_min = t.float("coverage_min").map_or(0.5, |x| x as f32);
    if !(0.0..=1.0).contains(&coverage_min) {
        t.problem("coverage_min", format!("{coverage_min} is not within 0 to 1"));
    }
    learnable(&mut t, &manifest, steps * channels.len());
    let (threshold, budget) = threshold(&mut t);
    let outputs = t.strs("outputs").unwrap_or_default();
    let lineage_full = t.word("lineage", &[("short", false), ("full", true)]).unwrap_or(false);
    let warm_up = t.bool("warm_up").unwrap_or(false);
    let escalate = escalate(&mut t, &model, steps * channels.len(), late_ms);
    t.finish();
    Some(Pipeline {
        name: name.to_owned(),
        channels,
        steps,
        hop,
        step_ms,
        late_ms,
        gap_max_ms,
        on_bad,
        coverage_min,
        model,
        threshold,
        budget,
        outputs,
        lineage_full,
        warm_up,
        escalate,
    })
}

/// Whether the windows of a calibration fit the memory for them; `values`: of a window.
fn learnable(t: &mut Table<'_>, manifest: &Manifest, values: usize) {
    if let Some(cal) = &manifest.calibration
        && cal.windows.saturating_mul(values * 4) > limits::CALIBRATION_BYTES
    {
        let (n, mib) = (cal.windows, limits::CALIBRATION_BYTES >> 20);
        t.problem("calibration", format!("{n} windows of this size are more than {mib} MiB"));
    }
}

/// The bundle, or the model file with its manifest; the manifest of a bare file is made from the pipeline's keys.
fn model(t: &mut Table<'_>, names: &Names) -> Model {
    if let Some(name) = t.str("bundle") {
        return to_be_installed(t, &name);
    }
    let (given, path) = names.paths.model(t, "model");
    if path.extension().is_some_and(|ext| ext == "kmb") {
        return bundle(t, path, names);
    }
    if !given.is_empty() && !names.allow_unsigned {
        t.problem("model", "is not signed; `models.allow_unsigned = true` lets it run");
    }
    let (file, mut manifest) = if path.is_dir() {
        match Manifest::read(&path) {
            Ok(manifest) => (path.join(&manifest.file), manifest),
            Err(why) => {
                t.problem("model", why.to_string());
                (path.clone(), Manifest::bare(&path))
            }
        }
    } else {
        let bare = Manifest::bare(&path);
        (path, bare)
    };
    if !given.is_empty() && !file.is_file() {
        t.problem("model", format!("no such file: {}", file.display()));
    }
    if let Some(input) = t.str("input") {
        manifest.input = Some(input);
    }
    let layouts = [("steps_first", Layout::StepsFirst), ("channels_first", Layout::ChannelsFirst)];
    if let Some(layout) = t.word("layout", &layouts) {
        manifest.layout = Some(layout);
    }
    scoring(t, &mut manifest);
    if let Some(ms) = t.int("deadline_ms", 1..=60_000) {
        manifest.deadline_ms = ms as u64;
    }
    params(t, &mut manifest);
    if let Some(node) = t.node("calibration") {
        manifest.calibration = calibration(t.sub("calibration".into(), node));
    }
    Model { file, manifest, floor: 0, unsigned: true, manifest_sha256: String::new() }
}

/// What the score means. Keys of the configuration override those of a manifest beside the file.
fn scoring(t: &mut Table<'_>, manifest: &mut Manifest) {
    let scoring = &mut manifest.scoring;
    let (score, reconstruction) = (t.str("score"), t.str("reconstruction"));
    // Either takes the place of what the manifest says of both.
    if score.is_some() || reconstruction.is_some() {
        (scoring.score, scoring.reconstruction) = (score, reconstruction);
    }
    if let Some(direction) = t.word("direction", &[("high", Direction::High), ("low", Direction::Low)]) {
        scoring.direction = direction;
    }
    scoring.reduce = t.word("reduce", &Reduce::WORDS).or(scoring.reduce);
    scoring.classes = t.strs("classes").unwrap_or_else(|| std::mem::take(&mut scoring.classes));
    scoring.probabilities = t.str("probabilities").or_else(|| scoring.probabilities.take());
    for (key, why) in scoring.problems() {
        t.problem(key, why);
    }
}

/// A pipeline without a model until a bundle of this name is installed.
fn to_be_installed(t: &mut Table<'_>, name: &str) -> Model {
    for key in ["model"].into_iter().chain(OF_A_FILE) {
        if t.has(key) {
            t.problem(key, "does not go with `bundle`: the bundle brings it");
        }
    }
    if !manifest::is_name(name) {
        t.problem("bundle", format!("`{name}` is no model's name: 1 to 64 of a-z A-Z 0-9 . _ - +"));
    }
    let manifest = Manifest { model: name.to_owned(), ..Manifest::bare(Path::new(name)) };
    Model { file: PathBuf::new(), manifest, floor: 0, unsigned: false, manifest_sha256: String::new() }
}

/// Reads the manifest of a configured bundle, and nothing behind it: what is in the bundle is read where it is used. The
/// manifest is verified with the configured keyset, which is installed beside the bundle, not with a successor.
fn bundle(t: &mut Table<'_>, path: PathBuf, names: &Names) -> Model {
    for key in OF_A_FILE {
        if t.has(key) {
            t.problem(key, "belongs to a bare file; what a bundle's manifest says is signed");
        }
    }
    let unknown = |path: PathBuf| {
        let manifest = Manifest::bare(&path);
        Model { file: path, manifest, floor: 0, unsigned: true, manifest_sha256: String::new() }
    };
    if names.keyset_refused {
        return unknown(path);
    }
    let keys = match &names.keyset {
        Some(keyset) => Keyset::read(keyset).map(Some).map_err(String::from),
        None if names.allow_unsigned => Ok(None),
        None => Err("no keyset is installed (commands.keyset) that could say whose signature counts".into()),
    };
    let read = keys.and_then(|keys| {
        let file = File::open(&path).map_err(|why| why.to_string())?;
        Head::read(&file, keys.as_ref()).map_err(String::from)
    });
    match read {
        Ok(head) => {
            let (manifest, unsigned) = (head.manifest, head.signed_by.is_empty());
            let floor = if unsigned { 0 } else { head.release.seq };
            Model { file: path, manifest, floor, unsigned, manifest_sha256: head.sha256 }
        }
        Err(why) => {
            t.problem("model", format!("{}: {why}", path.display()));
            unknown(path)
        }
    }
}

fn params(t: &mut Table<'_>, manifest: &mut Manifest) {
    for (name, node) in t.tables("param") {
        let mut table = t.sub(format!("param.{name}"), node);
        let values = table.floats("values");
        if values.is_none() && !table.has("values") {
            table.problem("values", "is needed: the numbers of this input");
        }
        table.finish();
        manifest.params.insert(name, values.unwrap_or_default());
    }
}

fn calibration(mut t: Table<'_>) -> Option<Calibration> {
    let windows = t.int("windows", 2..=100_000).map(|n| n as usize);
    if windows.is_none() && !t.has("windows") {
        t.problem("windows", "is needed: how many windows are learnt from");
    }
    let calibration = Calibration {
        windows: windows.unwrap_or(2),
        features: t.str("features"),
        center: t.str("center"),
        scale: t.str("scale"),
        factor: t.float("factor").unwrap_or(1.0),
        scale_floor: t.floats("scale_floor").unwrap_or_default(),
    };
    for key in ["center", "scale", "scale_floor"] {
        if t.has(key) && calibration.features.is_none() {
            t.problem(key, "belongs to `features`: the output whose mean and deviation are learnt");
        }
    }
    if calibration.factor <= 0.0 {
        t.problem("factor", "must be above 0");
    }
    if calibration.scale_floor.iter().any(|x| *x <= 0.0) {
        t.problem("scale_floor", "must be above 0");
    }
    t.finish();
    Some(calibration)
}

#[cfg(test)]
mod tests {
    use crate::{config::Config, flow::Direction, model::scoring::Reduce};

    /// A configuration with a model file and these keys of its pipeline; or its problems.
    fn read(model: &str, keys: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join("m.onnx"), "no model, and it is never opened").expect("model");
        let file = dir.path().join("kentledge.toml");
        let text = format!(
            "[device]\nsite = \"s\"\nid = \"d\"\nstate_dir = \"{}\"\n[models]\nallow_unsigned = true\n\
             [source.s]\npath = \"/dev/null\"\ncolumns = [\"a\"]\n[channel.a]\n\
             [pipeline.x]\n{model}\nchannels = [\"a\"]\nwindow_steps = 4\n{keys}\n",
            dir.path().display()
        );
        std::fs::write(&file, text).expect("configuration");
        Config::local(Some(&file)).map_err(|all| all.iter().map(|problem| format!("{problem}\n")).collect())
    }

    const FILE: &str = "model = \"m.onnx\"";

    #[test]
    fn words_of_the_score_are_read_without_opening_the_model() {
        let keys =
            "score = \"scores\"\ndirection = \"low\"\nreduce = \"mean\"\ncalibration = { windows = 9, factor = 2.0 }";
        let config = read(FILE, keys).expect("valid");
        let manifest = &config.pipelines[0].model.manifest;
        let scoring = &manifest.scoring;
        assert_eq!((scoring.score.as_deref(), scoring.direction), (Some("scores"), Direction::Low));
        assert_eq!(scoring.reduce, Some(Reduce::Mean));
        assert!(manifest.calibration.as_ref().is_some_and(|cal| cal.features.is_none() && cal.windows == 9));
    }

    #[test]
    fn wrong_words_of_the_score_are_all_named() {
        let keys = "score = \"y\"\nreconstruction = \"y\"\ndirection = \"down\"\nclasses = [\"ok\"]\nscroe = 1\n\
                    calibration = { windows = 9, factor = 0.0, center = \"c\" }";
        let problems = read(FILE, keys).expect_err("wrong");
        for expected in [
            "reconstruction: does not go with `score`",
            "direction: `down` is invalid: expected one of `high`, `low`",
            "classes: must be 2 to 64 names, not 1",
            "scroe: unknown key; did you mean `score`?",
            "calibration.center: belongs to `features`",
            "calibration.factor: must be above 0",
        ] {
            assert!(problems.contains(&format!("pipeline.x.{expected}")), "{expected}\n{problems}");
        }
    }

    #[test]
    fn inputs_and_state_are_read_without_opening_the_model() {
        let keys = "inputs = { x = \"a\", y = [\"a\"] }\nstate = { h_out = \"h_in\", \"c.out\" = \"c.in\" }";
        let config = read(FILE, keys).expect("valid");
        let manifest = &config.pipelines[0].model.manifest;
        let a = vec!["a".to_owned()];
        assert_eq!(manifest.feeds, [("x".to_owned(), a.clone()), ("y".to_owned(), a)].into());
        let state = [("h_out", "h_in"), ("c.out", "c.in")].map(|(from, to)| (from.to_owned(), to.to_owned()));
        assert_eq!(manifest.state, Some(state.into()));
    }

    #[test]
    fn wrong_inputs_and_states_are_all_named() {
        let keys = "inputs = { x = \"aa\", y = 3, z = [] }\nstate = { h = 1, i = \"k\", j = \"k\" }";
        let problems = read(FILE, keys).expect_err("wrong");
        for expected in [
            "inputs: `x`: the pipeline has no channel `aa`; did you mean `a`?",
            "inputs: `y` must be a channel or a list of channels",
            "inputs: `z` must be a channel",
            "state: `h` must name the input",
            "state: outputs `i` and `j` go into one input, `k`",
        ] {
            assert!(problems.contains(&format!("pipeline.x.{expected}")), "{expected}\n{problems}");
        }
        let problems = read(FILE, "state = \"h\"").expect_err("no table");
        assert!(problems.contains("pipeline.x.state: must be a table, such as"), "{problems}");
    }

    #[test]
    fn windows_of_a_model_with_a_state_follow_each_other_unless_something_else_is_said() {
        let hop = |keys: &str| read(FILE, keys).expect("valid").pipelines[0].hop;
        assert_eq!((hop(""), hop("state = {}"), hop("state = { h = \"g\" }")), (1, 1, 4));
        assert_eq!(hop("hop_steps = 2\nstate = { h = \"g\" }"), 2);
    }

    #[test]
    fn words_of_the_score_beside_a_bundle_are_rejected() {
        for key in [
            "state = { h = \"g\" }",
            "inputs = { x = \"a\" }",
            "direction = \"low\"",
            "reduce = \"max\"",
            "reconstruction = \"y\"",
            "classes = [\"a\", \"b\"]",
        ] {
            let problems = read("bundle = \"m\"", key).expect_err("the bundle says it");
            assert!(problems.contains("does not go with `bundle`"), "{key}: {problems}");
        }
    }
}
