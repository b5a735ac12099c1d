//! What fills each input of a model: the window, some of its channels, fixed values, what was learnt, or the state that the
//! previous window left. Channels go into inputs of their name, or as `inputs` says. Pure; says everything that does not fit.

use std::collections::BTreeMap;

use super::{
    channel::{Loaded, Tensor},
    meaning::{Misfits, find, is_number},
    shape::{sized, window_shape},
    state::{Partner, is_alike, partners},
};
use crate::{
    config::nearest,
    model::manifest::{Layout, Manifest},
};

/// What fills one input.
#[derive(Debug, Clone, PartialEq)]
pub enum Feed {
    /// The window's values in this order.
    Window(Layout),
    /// The values of the channels at these places, in this order.
    Channels(Vec<usize>, Layout),
    /// What an output gave for the previous window: the place in `Plan::state`.
    State(usize),
    /// Mean of the features.
    Center,
    /// Standard deviation of the features.
    Scale,
    /// Fixed values.
    Param(Vec<f32>),
}

/// The windows that a model is fed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Windows {
    /// Rows.
    pub steps: usize,
    /// Names of the channels in the model's order, by pipeline; all of the same number.
    pub names: Vec<Vec<String>>,
}

impl Windows {
    /// Channels of a window.
    pub fn width(&self) -> usize {
        self.names.first().map_or(0, Vec::len)
    }
}

/// How a model is fed.
#[derive(Debug, Clone, PartialEq)]
pub struct Fed {
    /// Name and whole shape of each input.
    pub inputs: Vec<(String, Vec<i64>)>,
    /// By pipeline: what fills each input.
    pub feeds: Vec<Vec<Feed>>,
    /// Outputs that are carried, in the order of `Feed::State`.
    pub state: Vec<String>,
    /// Windows that the model takes at once; each is given so often.
    pub batch: usize,
}

/// Finds what fills each input.
///
/// # Errors
/// All that does not fit.
pub fn fit(loaded: &Loaded, manifest: &Manifest, windows: &Windows) -> Result<Fed, Misfits> {
    let mut all: Option<Fed> = None;
    for names in &windows.names {
        let fed = (Fit { loaded, manifest, steps: windows.steps, names, misfits: Misfits::default() }).fit()?;
        match &mut all {
            None => all = Some(fed),
            // The same numbers of channels have the same shapes.
            Some(all) => all.feeds.extend(fed.feeds),
        }
    }
    all.ok_or_else(|| "no pipeline uses it".to_owned().into())
}

/// What an input is for, before its size is looked at.
#[derive(Debug, Clone, PartialEq)]
enum Role {
    Window,
    Channels(Vec<usize>),
    State(usize),
    Param,
    Center,
    Scale,
}

type Roles = BTreeMap<String, Role>;

struct Fit<'a> {
    loaded: &'a Loaded,
    manifest: &'a Manifest,
    steps: usize,
    names: &'a [String],
    misfits: Misfits,
}

impl<'a> Fit<'a> {
    fn fit(mut self) -> Result<Fed, Misfits> {
        let mut roles = self.said();
        if self.misfits.0.is_empty() {
            self.find_data(&mut roles);
            self.look_at_unbound(&roles);
            self.look_at_fixed(&roles);
            self.look_at_unused(&roles);
        }
        let mut sizes = BTreeMap::new();
        let mut batch = None;
        // First what takes windows: it says how many at once.
        for is_data in [true, false] {
            for input in &self.loaded.inputs {
                let Some(role) = roles.get(&input.name) else { continue };
                if matches!(role, Role::Window | Role::Channels(_)) != is_data {
                    continue;
                }
                let fed = self.fed(input, role, batch.unwrap_or(1));
                let Some((shape, feed, n)) = self.misfits.take("model", &input.name, fed) else { continue };
                if is_data && *batch.get_or_insert(n) != n {
                    let others = batch.unwrap_or(1);
                    let why = format!("input `{}` takes {n} windows at once, and the others take {others}", input.name);
                    self.misfits.add("model", &input.name, why);
                }
                sizes.insert(&input.name, (shape, feed));
            }
        }
        if !self.misfits.0.is_empty() {
            return Err(self.misfits);
        }
        let in_order = self.loaded.inputs.iter().filter_map(|input| Some((input, sizes.remove(&input.name)?)));
        let (inputs, feeds) = in_order.map(|(input, (shape, feed))| ((input.name.clone(), shape), feed)).unzip();
        let state = self.manifest.state.iter().flatten().map(|(output, _)| output.clone()).collect();
        Ok(Fed { inputs, feeds: vec![feeds], state, batch: batch.unwrap_or(1) })
    }

    /// What the manifest or the configuration says of inputs.
    fn said(&mut self) -> Roles {
        let (manifest, cal) = (self.manifest, self.manifest.calibration.as_ref());
        let mut all: Vec<(&'static str, &String, Role)> = Vec::new();
        all.extend(manifest.input.iter().map(|name| ("input", name, Role::Window)));
        all.extend(cal.iter().flat_map(|c| &c.center).map(|name| ("calibration", name, Role::Center)));
        all.extend(cal.iter().flat_map(|c| &c.scale).map(|name| ("calibration", name, Role::Scale)));
        all.extend(manifest.params.keys().map(|name| ("param", name, Role::Param)));
        let state = manifest.state.iter().flatten().enumerate();
        all.extend(state.map(|(place, (_, input))| ("state", input, Role::State(place))));
        for (input, channels) in &manifest.feeds {
            let places: Vec<usize> =
                channels.iter().filter_map(|c| self.names.iter().position(|name| name == c)).collect();
            if places.len() < channels.len() {
                let why = format!("input `{input}` takes {}, which the pipeline lacks in part", list(channels));
                self.misfits.add("inputs", input, why);
            }
            all.push(("inputs", input, Role::Channels(places)));
        }
        let mut roles: BTreeMap<String, (&'static str, Role)> = BTreeMap::new();
        for (key, name, role) in all {
            self.misfits.take(key, name, find(&self.loaded.inputs, "input", name));
            if let Some((other, _)) = roles.insert(name.clone(), (key, role)) {
                self.misfits.add(key, name, format!("input `{name}` is bound twice: by `{other}` and by `{key}`"));
            }
        }
        for (output, input) in manifest.state.iter().flatten() {
            self.state(output, input);
        }
        roles.into_iter().map(|(name, (_, role))| (name, role)).collect()
    }

    /// Whether an output can be carried into an input.
    fn state(&mut self, output: &str, input: &str) {
        let known = |all: &[Tensor], name: &str| all.iter().any(|t| t.name == name);
        let (inputs, outputs) = (&self.loaded.inputs, &self.loaded.outputs);
        if known(inputs, output) && known(outputs, input) && !known(inputs, input) && !known(outputs, output) {
            let why = format!("it is the wrong way round: write `state = {{ {} = \"{output}\" }}`", key(input));
            self.misfits.0.retain(|misfit| misfit.key != "state" || misfit.of != input);
            return self.misfits.add("state", output, why);
        }
        let from = self.misfits.take("state", output, find(&self.loaded.outputs, "output", output));
        let to = self.loaded.inputs.iter().find(|i| i.name == input);
        let (Some(from), Some(to)) = (from, to) else { return };
        if !is_alike(to, from) {
            let why = format!(
                "output `{output}` is {} {:?}, and input `{input}` takes {} {:?}: it cannot be carried there",
                from.kind, from.shape, to.kind, to.shape
            );
            self.misfits.add("state", output, why);
        }
    }

    fn free(&self, roles: &Roles) -> Vec<&'a Tensor> {
        self.loaded.inputs.iter().filter(|input| !roles.contains_key(&input.name)).collect()
    }

    /// Finds the inputs of the window: the one that is left, those called like channels, or the only one that fits.
    fn find_data(&self, roles: &mut Roles) {
        if self.manifest.input.is_some() {
            return;
        }
        let free = self.free(roles);
        let named = free.iter().filter_map(|i| Some((i.name.clone(), Role::Channels(vec![self.channel(&i.name)?]))));
        let named: Vec<_> = named.collect();
        let several = free.len() > 1 || !self.manifest.feeds.is_empty();
        if several && !named.is_empty() {
            return roles.extend(named);
        }
        if !self.manifest.feeds.is_empty() {
            return;
        }
        let fits = |input: &&&Tensor| window_shape(input, self.manifest.layout, self.steps, self.names.len()).is_ok();
        let fitting: Vec<_> = free.iter().filter(fits).collect();
        // Where a state fits too, because its batch is free, the window is what holds all of it whatever the batch is.
        let whole = |input: &&&&Tensor| {
            let fixed = input.shape.iter().filter(|d| **d > 0).product::<i64>();
            fixed == (self.steps * self.names.len()) as i64
        };
        let whole: Vec<_> = fitting.iter().filter(whole).collect();
        let window = match (fitting.as_slice(), whole.as_slice()) {
            ([only], _) => Some(**only),
            (_, [only]) => Some(***only),
            _ => free.first().copied(),
        };
        roles.extend(window.map(|input| (input.name.clone(), Role::Window)));
    }

    /// The channel that an input is called after: by its name, or as the name of a channel would be written.
    fn channel(&self, input: &str) -> Option<usize> {
        let plain = |name: &str| -> String {
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
        };
        // tf2onnx calls it `name:0`.
        let input = input.strip_suffix(":0").unwrap_or(input);
        let by = |same: &dyn Fn(&String) -> bool| self.names.iter().position(same);
        by(&|name| name == input).or_else(|| by(&|name| plain(name) == plain(input)))
    }

    /// Inputs that nothing fills.
    fn look_at_unbound(&mut self, roles: &Roles) {
        let mut free = self.free(roles);
        if !self.loaded.inputs.iter().any(|i| matches!(roles.get(&i.name), Some(Role::Window | Role::Channels(_)))) {
            self.misfits.add("model", "", "it has no input for the window");
        }
        if self.manifest.state.is_none() {
            let pairs = partners(self.loaded, &free, &self.used(), true);
            if let [first, ..] = pairs.as_slice() {
                let sure = pairs.iter().all(|p| p.sure);
                let to = |p: &Partner<'_>| if sure { p.input.name.clone() } else { "…".into() };
                let say: Vec<_> = pairs.iter().map(|p| format!("{} = \"{}\"", key(&p.output.name), to(p))).collect();
                let inputs = pairs.iter().map(|p| format!("`{}`", p.input.name)).collect::<Vec<_>>().join(", ");
                let which = if sure {
                    String::new()
                } else {
                    format!("; neither names nor shapes tell which output belongs to which input of {inputs}")
                };
                let (name, shape) = (&first.input.name, &first.input.shape);
                let why = format!(
                    "input `{name}` {shape:?} takes a state, which the model gives back as an output: carry it from window to \
                     window with `state = {{ {} }}`{which}",
                    say.join(", ")
                );
                self.misfits.add("state", name, why);
                free.retain(|input| pairs.iter().all(|p| p.input.name != input.name));
            }
        }
        for input in free {
            let name = &input.name;
            let near = Some(name).filter(|name| name.len() > 2);
            let near = near.and_then(|name| nearest(name, self.names.iter().map(String::as_str)));
            let near = near.map(|near| format!("; did you mean channel `{near}`?")).unwrap_or_default();
            let because = match &self.manifest.input {
                Some(window) => format!("`input` gives the whole window to `{window}`"),
                None => "no channel has its name".to_owned(),
            };
            let why = format!(
                "input `{name}` {:?} is bound to nothing: {because}; bind channels with `inputs = {{ {} = \"…\" }}` \
                 (here: {}), or a constant as `param.{name}`{near}",
                input.shape,
                key(name),
                list(self.names)
            );
            self.misfits.add("model", name, why);
        }
    }

    /// Outputs that are known not to be a state.
    fn used(&self) -> Vec<&'a str> {
        let scoring = &self.manifest.scoring;
        let score = scoring.score.as_deref().map(|score| crate::model::scoring::element(score).0);
        let features = self.manifest.calibration.as_ref().and_then(|cal| cal.features.as_deref());
        let all = [score, scoring.reconstruction.as_deref(), scoring.probabilities.as_deref(), features];
        all.into_iter().flatten().chain(["score"]).collect()
    }

    /// Constants that are fed where the model takes a state: every window would begin with the same one.
    fn look_at_fixed(&mut self, roles: &Roles) {
        if self.manifest.state.is_some() {
            return;
        }
        let is_fixed = |input: &&Tensor| roles.get(&input.name) == Some(&Role::Param);
        let fixed: Vec<&Tensor> = self.loaded.inputs.iter().filter(is_fixed).collect();
        for Partner { input, output, .. } in partners(self.loaded, &fixed, &self.used(), false) {
            let (input, output) = (&input.name, &output.name);
            let why = format!(
                "input `{input}` takes a state, which output `{output}` gives back, and `param.{input}` feeds the same values to \
                 every window; write `state = {{ {} = \"{input}\" }}` instead, or `state = {{}}` if it is no state",
                key(output)
            );
            self.misfits.add("param", input, why);
        }
    }

    /// Channels that go into no input.
    fn look_at_unused(&mut self, roles: &Roles) {
        if roles.values().any(|role| *role == Role::Window) || !self.misfits.0.is_empty() {
            return;
        }
        let goes =
            |at: usize| roles.values().any(|role| matches!(role, Role::Channels(places) if places.contains(&at)));
        for (at, name) in self.names.iter().enumerate().filter(|(at, _)| !goes(*at)) {
            let _ = at;
            let why = format!("`{name}` goes into no input of the model: leave it out, or bind it with `inputs`");
            self.misfits.add("channels", name, why);
        }
    }

    /// Shape of an input, what fills it, and how many windows it takes at once.
    fn fed(&self, input: &Tensor, role: &Role, batch: usize) -> Result<(Vec<i64>, Feed, usize), String> {
        if !is_number(&input.kind) {
            return Err(format!("input `{}` is {}, not a tensor of numbers", input.name, input.kind));
        }
        let (cal, layout) = (self.manifest.calibration.as_ref(), self.manifest.layout);
        let learnt = || -> Result<Vec<i64>, String> {
            let name = cal.and_then(|c| c.features.as_ref());
            let output = name.and_then(|name| self.loaded.outputs.iter().find(|o| o.name == *name));
            let one = output.map(|output| one_answer(&output.shape, batch)).unwrap_or_default();
            let len = one.iter().map(|d| usize::try_from((*d).max(1)).ok()).product::<Option<usize>>();
            sized(input, len.filter(|_| output.is_some()).ok_or("the features' size is not declared")?)
        };
        match role {
            Role::Window => {
                let (shape, layout, n) = window_shape(input, layout, self.steps, self.names.len())?;
                Ok((shape, Feed::Window(layout), n))
            }
            Role::Channels(places) => {
                let (shape, layout, n) = window_shape(input, layout, self.steps, places.len())?;
                Ok((shape, Feed::Channels(places.clone(), layout), n))
            }
            // What the exporter left open is the batch.
            Role::State(place) => Ok((input.shape.iter().map(|d| (*d).max(1)).collect(), Feed::State(*place), batch)),
            Role::Param => {
                let values = self.manifest.params.get(&input.name).map(Vec::as_slice).unwrap_or_default();
                let shape = sized(input, values.len())?;
                Ok((shape, Feed::Param(values.iter().map(|x| *x as f32).collect()), batch))
            }
            Role::Center => Ok((learnt()?, Feed::Center, batch)),
            Role::Scale => Ok((learnt()?, Feed::Scale, batch)),
        }
    }
}

/// The shape of an output's answer to one window, where the model takes several at once.
pub fn one_answer(shape: &[i64], batch: usize) -> Vec<i64> {
    let mut one = shape.to_vec();
    if let Some(first) = one.first_mut().filter(|first| batch > 1 && **first == batch as i64) {
        *first = 1;
    }
    one
}

/// A name as TOML writes it before a `=`.
fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { format!("\"{name}\"") }
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "feeds_tests.rs"]
mod tests;
