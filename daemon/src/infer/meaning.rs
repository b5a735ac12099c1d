//! Which outputs of a model are its score and its classes, and how values become them. Fits what a manifest or the
//! configuration says (`model::scoring`) to what the model declares; nothing is guessed in silence. Pure.

use std::{fmt, sync::Arc};

use super::{
    InferError,
    channel::{Loaded, Tensor},
};
use crate::{
    config::nearest,
    flow::{Classes, Direction},
    model::{
        manifest::Manifest,
        scoring::{Reduce, element},
    },
};

/// Something that does not fit between a model and what is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The key that is wrong or missing, of the manifest and of `[pipeline.NAME]`.
    pub key: &'static str,
    /// The name that is wrong, where the key holds several.
    pub of: String,
    /// Why.
    pub why: String,
}

/// All that does not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Misfits(pub Vec<Misfit>);

impl Misfits {
    /// Adds one.
    pub fn add(&mut self, key: &'static str, of: &str, why: impl Into<String>) {
        self.0.push(Misfit { key, of: of.to_owned(), why: why.into() });
    }

    /// Adds what is wrong, or gives back what is right.
    pub fn take<T>(&mut self, key: &'static str, of: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|why| self.add(key, of, why)).ok()
    }
}

impl fmt::Display for Misfits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<&str> = self.0.iter().map(|misfit| misfit.why.as_str()).collect();
        f.write_str(&all.join("; "))
    }
}

/// What is not about a key is about the model.
impl From<String> for Misfits {
    fn from(why: String) -> Self {
        Self(vec![Misfit { key: "model", of: String::new(), why }])
    }
}

impl From<InferError> for Misfits {
    fn from(why: InferError) -> Self {
        String::from(why).into()
    }
}

impl From<Misfits> for String {
    fn from(misfits: Misfits) -> Self {
        misfits.to_string()
    }
}

/// How the score comes out of one output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// This value of it.
    Value(usize),
    /// All its values, reduced.
    Reduced(Reduce),
    /// Its distance to the window.
    Distance(Reduce),
}

impl Score {
    /// The score; `window` as the model was fed it.
    pub fn of(self, values: &[f64], window: &[f32]) -> f64 {
        match self {
            Self::Value(index) => values.get(index).copied().unwrap_or(f64::NAN),
            Self::Reduced(reduce) => reduce.of(values.iter().copied()),
            Self::Distance(reduce) => reduce.of(values.iter().zip(window).map(|(y, x)| (y - f64::from(*x)).abs())),
        }
    }
}

/// What a model's outputs mean.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meaning {
    /// Place of the output among the wanted ones, and how the score comes out of it; `None`: the model only names classes.
    pub score: Option<(usize, Score)>,
    /// Place of the output with the classes' probabilities, and the names.
    pub classes: Option<(usize, Arc<[String]>)>,
}

impl Meaning {
    /// Finds the outputs; those that are needed are added to `wanted`, and what does not fit to `misfits`.
    pub fn of(loaded: &Loaded, manifest: &Manifest, wanted: &mut Vec<String>, misfits: &mut Misfits) -> Self {
        let scoring = &manifest.scoring;
        let mut want = |name: &str| {
            wanted.iter().position(|w| w == name).unwrap_or_else(|| {
                wanted.push(name.to_owned());
                wanted.len() - 1
            })
        };
        let score = match &scoring.reconstruction {
            Some(name) => misfits
                .take("reconstruction", name, numbers(loaded, name))
                .map(|output| (want(&output.name), Score::Distance(scoring.reduce.unwrap_or(Reduce::Rms)))),
            None => match misfits.take("score", "", score(loaded, manifest)) {
                None | Some(None) => None,
                Some(Some((name, index))) => {
                    let how = match (index, scoring.reduce) {
                        (None, Some(reduce)) => Score::Reduced(reduce),
                        (index, _) => Score::Value(index.unwrap_or(0)),
                    };
                    Some((want(&name), how))
                }
            },
        };
        let classes = (!scoring.classes.is_empty()).then(|| probabilities(loaded, manifest)).and_then(|found| {
            let key = if scoring.probabilities.is_some() { "probabilities" } else { "classes" };
            misfits.take(key, "", found)
        });
        let classes = classes.map(|name| (want(&name), scoring.classes.as_slice().into()));
        if manifest.calibration.is_some() && score.is_none() && misfits.0.is_empty() {
            misfits.add(
                "calibration",
                "",
                "needs a score, and the model only names classes; name an output as `score`",
            );
        }
        Self { score, classes }
    }

    /// What does not fit once the sizes of the wanted outputs and of the window are known.
    pub fn check(&self, manifest: &Manifest, outputs: &[String], sizes: &[usize], window: usize) -> Misfits {
        let mut misfits = Misfits::default();
        match self.score {
            Some((place, Score::Value(index))) => {
                let (name, n) = (&outputs[place], sizes[place]);
                let says_which = manifest.scoring.score.as_deref().is_some_and(|score| score != name.as_str());
                if index >= n {
                    misfits.add("score", name, format!("output `{name}` has no value {index}: it has {n}, from 0 on"));
                } else if n != 1 && !says_which {
                    let more = if n == window {
                        format!("; if it repeats the window, say `reconstruction = \"{name}\"`")
                    } else {
                        "; if they are probabilities, name the `classes`".to_owned()
                    };
                    let why = format!(
                        "output `{name}` has {n} values, and a score is one; name one as `score`, `{name}[0]` to \
                         `{name}[{}]`, or reduce them: `reduce` is `max`, `mean`, `mse` or `rms`{more}",
                        n - 1
                    );
                    misfits.add("score", name, why);
                }
            }
            Some((place, Score::Distance(_))) if sizes[place] != window => {
                let (name, n) = (&outputs[place], sizes[place]);
                let why = format!("output `{name}` has {n} values, and the window it is to repeat has {window}");
                misfits.add("reconstruction", name, why);
            }
            _ => {}
        }
        if let Some((place, names)) = &self.classes
            && names.len() != sizes[*place]
        {
            let (named, name, n) = (names.len(), &outputs[*place], sizes[*place]);
            misfits.add("classes", name, format!("{named} classes are named, and output `{name}` has {n} values"));
        }
        misfits
    }

    /// In words, for `check` and `prepare`: `score: output scores, low is bad; classes: ok, wear of output probabilities`.
    pub fn describe(&self, manifest: &Manifest, outputs: &[String]) -> String {
        let mut all = Vec::new();
        if let Some((place, how)) = self.score {
            let (name, reduced) = (&outputs[place], |reduce: Reduce| reduce.word());
            let what = match how {
                Score::Value(_) => format!("output {}", manifest.scoring.score.as_ref().unwrap_or(name)),
                Score::Reduced(reduce) => format!("{} of output {name}", reduced(reduce)),
                Score::Distance(reduce) => format!("{} distance of output {name} to the window", reduced(reduce)),
            };
            let bad = if manifest.scoring.direction == Direction::Low { "low" } else { "high" };
            all.push(format!("score: {what}, {bad} is bad"));
        }
        if let Some((place, names)) = &self.classes {
            all.push(format!("classes: {} of output {}", names.join(", "), outputs[*place]));
        }
        all.join("; ")
    }

    /// The classes of an answer; `values` of their output.
    pub fn classes(names: &Arc<[String]>, values: &[f64]) -> Classes {
        Classes { names: names.clone(), probabilities: values.iter().map(|x| *x as f32).collect() }
    }
}

const NUMBERS: [&str; 13] = [
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "bool",
];

/// Whether a type is a tensor of numbers.
pub fn is_number(kind: &str) -> bool {
    NUMBERS.contains(&kind)
}

fn is_float(output: &Tensor) -> bool {
    is_number(&output.kind) && output.kind.contains("float")
}

/// The declared tensor of this name.
///
/// # Errors
/// It does not exist; the text has the nearest name, and all of them.
pub fn find<'a>(there: &'a [Tensor], what: &str, name: &str) -> Result<&'a Tensor, String> {
    there.iter().find(|t| t.name == name).ok_or_else(|| {
        let names: Vec<&str> = there.iter().map(|t| t.name.as_str()).collect();
        let near = nearest(name, names.iter().copied()).map(|near| format!("; did you mean `{near}`?"));
        let all: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        format!("it has no {what} `{name}`; it has {}{}", all.join(", "), near.unwrap_or_default())
    })
}

/// The output of this name, a tensor of numbers.
///
/// # Errors
/// It does not exist, or it is no tensor of numbers.
pub fn numbers<'a>(loaded: &'a Loaded, name: &str) -> Result<&'a Tensor, String> {
    let output = find(&loaded.outputs, "output", name)?;
    if is_number(&output.kind) {
        return Ok(output);
    }
    let hint = match output.kind.as_str() {
        "string" => "; of a classifier name the output with the `probabilities`, and `classes`",
        _ => zipmap_hint(&loaded.outputs),
    };
    Err(format!("output `{name}` is {}, not a tensor of numbers{hint}", output.kind))
}

/// The usual reason for maps among the outputs.
fn zipmap_hint(outputs: &[Tensor]) -> &'static str {
    if outputs.iter().any(|o| o.kind.contains("Map<")) {
        "; skl2onnx makes a map of the probabilities unless an option forbids it: export the model again with \
         `options={id(model): {\"zipmap\": False}}` (LightGBM: `convert_lightgbm(…, zipmap=False)`)"
    } else {
        ""
    }
}

/// Name, type and shape of each.
fn list(outputs: &[Tensor]) -> String {
    let all: Vec<_> = outputs.iter().map(|o| format!("`{}` {} {:?}", o.name, o.kind, o.shape)).collect();
    all.join(", ")
}

/// The output with the score, and which value of it; `None` for a model that only names classes.
fn score(loaded: &Loaded, manifest: &Manifest) -> Result<Option<(String, Option<usize>)>, String> {
    let outputs = &loaded.outputs;
    if let Some(said) = &manifest.scoring.score {
        let whole = outputs.iter().any(|o| o.name == *said);
        let (name, index) = if whole { (said.as_str(), None) } else { element(said) };
        return numbers(loaded, name).map(|output| Some((output.name.clone(), index)));
    }
    if !manifest.scoring.classes.is_empty() {
        return Ok(None);
    }
    let hint = zipmap_hint(outputs);
    match outputs.as_slice() {
        [] => Err("it has no output".into()),
        all if all.iter().any(|o| o.name == "score") => {
            numbers(loaded, "score").map(|output| Some((output.name.clone(), None)))
        }
        [only] if is_float(only) => Ok(Some((only.name.clone(), None))),
        [only] if is_number(&only.kind) => Err(format!(
            "its only output {} is no score unless you say so: whole numbers are usually classes; name it as `score`",
            list(outputs)
        )),
        [only] => numbers(loaded, &only.name).map(|_| None),
        all => Err(format!(
            "it has {} outputs, and none is named as `score`, `reconstruction` or by `classes`: {}{hint}",
            all.len(),
            list(all)
        )),
    }
}

/// The output with a probability for each class.
fn probabilities(loaded: &Loaded, manifest: &Manifest) -> Result<String, String> {
    let scoring = &manifest.scoring;
    let n = scoring.classes.len();
    if let Some(name) = &scoring.probabilities {
        return match numbers(loaded, name)? {
            output if is_float(output) => Ok(output.name.clone()),
            output => Err(format!("output `{name}` is {}: probabilities are floats", output.kind)),
        };
    }
    let fits = |o: &&Tensor| {
        let len = o.shape.iter().map(|d| usize::try_from((*d).max(1)).ok()).product::<Option<usize>>();
        is_float(o) && len == Some(n) && scoring.reconstruction.as_ref() != Some(&o.name)
    };
    let found: Vec<&Tensor> = loaded.outputs.iter().filter(fits).collect();
    let (all, hint) = (list(&loaded.outputs), zipmap_hint(&loaded.outputs));
    match found.as_slice() {
        [only] => Ok(only.name.clone()),
        [] => Err(format!("{n} classes are named, and no output has {n} floats: {all}{hint}")),
        _ => Err(format!("several outputs have {n} floats: {all}; name the right one as `probabilities`")),
    }
}

#[cfg(test)]
#[path = "meaning_tests.rs"]
mod tests;
