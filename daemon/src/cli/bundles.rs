//! `kentledge model …`: makes, checks, installs and measures bundles. minisign signs; no secret key is read here.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    replay::recording::numbers,
    rows::{self, Inputs, Played},
};
use crate::{
    bus,
    cli::{self, Whom, say},
    config::{self, Config, Models, OnBad, Provider},
    error::{Context, Fatal},
    host::Host,
    infer::{self, Artifact, Column, Launching, Running},
    limits,
    model::{
        baseline::{Baseline, Spread},
        bundle::{self, Bundle},
        file::hex,
        keyset::Keyset,
        manifest::Manifest,
        slot::{ModelSlots, Slot, SlotId},
        store::Store,
    },
};

/// The subcommands of `kentledge model`.
#[derive(Debug, Subcommand)]
pub enum Act {
    /// Completes a folder: file digests, what the model declares, and golden cases if it has no golden.jsonl
    Prepare {
        /// The folder: manifest.json (a few keys of it) and one ONNX file
        dir: PathBuf,
        /// CSV rows of the manifest's channels, of a healthy machine; writes baseline.json with the scores, and takes golden
        /// cases from them
        #[arg(long)]
        rows: Option<PathBuf>,
        /// The distance from the baseline above which drift is reported
        #[arg(long, default_value_t = 0.5)]
        drift: f64,
    },
    /// Packs a signed folder into a bundle
    Pack {
        /// The folder
        dir: PathBuf,
        /// The bundle
        #[arg(short, long)]
        out: PathBuf,
    },
    /// Checks a bundle as a device would
    Verify {
        /// The bundle
        file: PathBuf,
        /// The keyset to verify with; without it, the keyset of the configuration
        #[arg(long)]
        keyset: Option<PathBuf>,
        /// Only this configuration file
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Shows what each slot holds
    List {
        /// Only this configuration file
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Installs a bundle in the running daemon: verify, prove, trial, then commit or roll back
    Install {
        /// The bundle
        file: PathBuf,
        /// The daemon to use
        #[command(flatten)]
        whom: Whom,
    },
    /// Rolls back to the previous model
    Rollback {
        /// The model; needed if several were installed
        model: Option<String>,
        /// The daemon to use
        #[command(flatten)]
        whom: Whom,
    },
    /// Measures latency, memory, placement and sandbox on each provider of this machine
    Bench {
        /// A bundle, a folder with a manifest, or an ONNX file with a manifest beside it
        file: PathBuf,
        /// Runs on each provider
        #[arg(long, default_value_t = 1000)]
        runs: usize,
        /// Providers, ONNX Runtime and plugins of this configuration file
        #[arg(long)]
        config: Option<PathBuf>,
        /// Only these providers
        #[arg(long, value_delimiter = ',')]
        providers: Vec<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

impl Act {
    /// Runs the subcommand.
    pub fn act(self) -> Result<(), Fatal> {
        match self {
            Self::Prepare { dir, rows, drift } => prepare(&dir, rows.as_deref(), drift).map_err(Fatal::failed),
            Self::Pack { dir, out } => {
                let bundle =
                    bundle::pack(&dir, &out).map_err(|why| Fatal::failed(format!("pack {}: {why}", dir.display())))?;
                say(&format!("{}: sha256 {}", out.display(), bundle.sha256))
            }
            Self::Verify { file, keyset, config } => verify(&file, keyset, config.as_deref()),
            Self::List { config } => list(&Config::load(config.as_deref())?),
            Self::Install { file, whom } => {
                let bundle = File::open(&file).context(format!("open {}", file.display()))?;
                bundle::is_tar(&bundle).context(format!("install {}", file.display()))?;
                let bus = whom.bus()?;
                let asked = async {
                    let daemon = bus::Asked::connect(bus.as_deref()).await?;
                    daemon.install(&bundle, |phase| drop(say(phase))).await
                };
                let text = cli::runtime()?
                    .block_on(asked)
                    .map_err(|why| Fatal::failed(format!("install {}: {why}", file.display())))?;
                say(&format!("installed: {text}"))
            }
            Self::Rollback { model, whom } => {
                let bus = whom.bus()?;
                let asked = async {
                    let daemon = bus::Asked::connect(bus.as_deref()).await?;
                    daemon.roll_back(model.as_deref().unwrap_or(""), |phase| drop(say(phase))).await
                };
                let text = cli::runtime()?.block_on(asked).map_err(|why| Fatal::failed(format!("go back: {why}")))?;
                say(&format!("back: {text}"))
            }
            Self::Bench { file, runs, config, providers, json } => {
                bench(&file, runs, config.as_deref(), &providers, json)
            }
        }
    }
}

fn verify(path: &Path, keyset: Option<PathBuf>, config: Option<&Path>) -> Result<(), Fatal> {
    let what = |why: String| Fatal::failed(format!("verify {}: {why}", path.display()));
    let keyset = match keyset {
        Some(keyset) => Some(keyset),
        None => Config::local(config).map_err(|problems| Fatal::problems(&problems))?.commands.keyset,
    };
    let keyset =
        keyset.ok_or_else(|| what("no keyset is installed (commands.keyset); name one with --keyset".into()))?;
    let keys = Keyset::read(&keyset).map_err(|why| what(why.into()))?;
    let file = File::open(path).map_err(|why| what(why.to_string()))?;
    let bundle = Bundle::open(&file, Some(&keys)).map_err(|why| what(why.into()))?;
    let release = &bundle.release;
    say(&format!("{}@{}, sequence {}, channel {}", release.model, release.version, release.seq, release.channel))?;
    say(&format!("signed by {}; for {}", bundle.signed_by.join(", "), release.device_class.join(", ")))?;
    say(&format!("{} golden cases; sha256 {}", bundle.golden.len(), bundle.sha256))
}

fn list(config: &Config) -> Result<(), Fatal> {
    let mut models: BTreeMap<&str, &config::Pipeline> = BTreeMap::new();
    config.pipelines.iter().for_each(|p| {
        models.insert(&p.model.manifest.model, p);
    });
    if models.is_empty() {
        say("no pipeline of this configuration has a model; `--config FILE` names another configuration")?;
    }
    // Listing must not create a state directory.
    let store = match config.device.state_dir.join("models").is_dir() {
        true => Some(Store::open(&config.device.state_dir).0),
        false => None,
    };
    for (model, pipeline) in models {
        let line = store.as_ref().map_or_else(ModelSlots::default, |store| store.shelf.line(model));
        let serving = line.serving().word();
        let manifest = &pipeline.model.manifest;
        let signed = if pipeline.model.unsigned { ", unsigned" } else { "" };
        let mark = |word: &str| if word == serving { "  <- serves" } else { "" };
        say(model)?;
        say(&format!("  factory  {}{signed}, {}{}", manifest.version, pipeline.model.file.display(), mark("factory")))?;
        for (word, id) in [("a", SlotId::A), ("b", SlotId::B)] {
            let slot = line.slot(id);
            let text = match slot {
                Slot::Empty => "empty".to_owned(),
                Slot::Rejected { held, why } => format!("{}, sequence {}, rejected: {why}", held.version, held.seq),
                slot => match slot.held() {
                    Some(held) => format!("{}, sequence {}, {}", held.version, held.seq, slot.word()),
                    None => slot.word().to_owned(),
                },
            };
            say(&format!("  {word}        {text}{}", mark(word)))?;
        }
    }
    Ok(())
}

/// A file that no configuration names.
fn model_of(manifest: &Manifest, file: &Path) -> config::Model {
    let manifest = manifest.clone();
    config::Model { file: file.into(), manifest, floor: 0, unsigned: true, manifest_sha256: String::new() }
}

/// A pipeline that makes the windows that the manifest describes.
fn pipeline_of(manifest: &Manifest, file: &Path) -> Result<config::Pipeline, String> {
    let channels = manifest.channels.as_ref().ok_or("the manifest says no `window`")?;
    Ok(config::Pipeline {
        name: manifest.model.clone(),
        channels: (0..channels.len()).collect(),
        steps: manifest.steps.unwrap_or(1),
        hop: manifest.hop.or(manifest.steps).unwrap_or(1),
        step_ms: None,
        late_ms: 0,
        gap_max_ms: None,
        on_bad: OnBad::Drop,
        coverage_min: 1.0,
        model: model_of(manifest, file),
        threshold: None,
        budget: None,
        outputs: Vec::new(),
        lineage_full: false,
        warm_up: false,
        escalate: None,
    })
}

fn columns_of(manifest: &Manifest) -> Vec<Column> {
    let names = manifest.channels.iter().flatten();
    names.map(|name| Column { name: name.clone(), meaning: String::new() }).collect()
}

fn launching(models: &Models, manifest: &Manifest, file: &Path) -> Result<Launching, String> {
    Ok(Launching {
        program: Host::default().program,
        runtime: infer::find_runtime(models.runtime.as_deref()),
        models: models.clone(),
        pipelines: vec![pipeline_of(manifest, file)?],
        columns: vec![columns_of(manifest)],
        keep: None,
        engines: None,
    })
}

/// Completes the manifest of a folder, and writes what can be derived from the model and from rows.
fn prepare(dir: &Path, rows: Option<&Path>, drift: f64) -> Result<(), String> {
    bundle::is_folder(dir).map_err(|why| format!("prepare {}: {why}", dir.display()))?;
    let path = dir.join("manifest.json");
    let text = fs::read(&path).map_err(|why| format!("read {}: {why}", path.display()))?;
    let what = |why: String| format!("{}: {why}", path.display());
    let mut json: Value = serde_json::from_slice(&text).map_err(|why| what(why.to_string()))?;
    let object = json.as_object_mut().ok_or_else(|| what("it is no object".into()))?;
    let now = jiff::Timestamp::now().as_second();
    let time = |s: i64| jiff::Timestamp::from_second(s).map(|t| t.to_string()).unwrap_or_default();
    let onnx = files_of(dir, |name| name.ends_with(".onnx"))?;
    let first =
        onnx.iter().find(|name| *name == "model.onnx").or(onnx.first()).ok_or("there is no .onnx file")?.clone();
    let defaults = [
        ("_type", json!("model")),
        ("product", json!("kentledge")),
        ("channel", json!("stable")),
        ("seq", json!(now)),
        ("created", json!(time(now))),
        ("expires", json!(time(now + 5 * 365 * 86_400))),
        ("device_class", json!(["any"])),
        ("min_supervisor", json!(env!("CARGO_PKG_VERSION"))),
        ("files", json!([{"name": first}])),
    ];
    for (key, value) in defaults {
        object.entry(key).or_insert(value);
    }
    let draft = Value::Object(object.clone()).to_string();
    let manifest = Manifest::parse(draft.as_bytes()).map_err(|why| what(why.into()))?;
    let at = |key: &str| position(&path, &text, key);
    let models = Models { memory_bytes: limits::WORKER_MIB << 20, ..models_of(None).map_err(|why| why.to_string())? };
    let launching = launching(&models, &manifest, &dir.join(&first)).map_err(what)?;
    let source = Artifact::factory(&launching.pipelines[0].model)?;
    let outputs: Vec<String> = names(&json, "outputs");
    let mut running =
        Running::start_on(&launching, &source, &Provider::cpu(), &outputs, None, &|| {}).map_err(|all| {
            let lines = all.0.iter().map(|misfit| format!("{}: {}: {}", at(misfit.key), misfit.key, misfit.why));
            lines.collect::<Vec<_>>().join("\n")
        })?;
    let object = json.as_object_mut().ok_or("it is no object")?;
    for (key, declared) in [("inputs", running.inputs()), ("outputs", running.outputs())] {
        let all = object.entry(key).or_insert_with(|| json!([]));
        describe(all, declared);
    }
    from_rows(dir, &mut running, (&manifest, &launching), rows, drift)?;
    let entries = entries(dir, &first, onnx, &object["files"])?;
    object.insert("files".into(), entries.into());
    let text = serde_json::to_string_pretty(&json).unwrap_or_default() + "\n";
    crate::model::manifest::Release::parse(text.as_bytes())?;
    write(&path, text.as_bytes())?;
    say(&format!("{}: {}", path.display(), running.meaning())).map_err(|why| why.to_string())?;
    say(&format!("{}: complete; now sign it: minisign -Sm {}", path.display(), path.display()))
        .map_err(|why| why.to_string())
}

/// The distance at which a trial rejects the scores, in units of `--drift`.
const SCORE_DRIFT: f64 = 4.0;

/// Golden cases, unless the folder has some, and with rows a baseline.
fn from_rows(
    dir: &Path,
    running: &mut Running,
    (manifest, launching): (&Manifest, &Launching),
    rows: Option<&Path>,
    drift: f64,
) -> Result<(), String> {
    let deadline = Duration::from_millis(manifest.deadline_ms);
    let columns = match rows {
        Some(rows) => {
            let channels = manifest.channels.as_ref().ok_or("manifest.json says no `window`")?;
            Some(numbers(rows, channels).map_err(|why| why.text)?)
        }
        None => None,
    };
    let (mut played, pipeline) = (Played::default(), &launching.pipelines[0]);
    if let Some(columns) = &columns {
        played = rows::play(running, columns, (pipeline.steps, pipeline.hop), deadline)?;
    }
    if !dir.join("golden.jsonl").is_file() {
        let from = if played.cases.is_empty() { "made-up values" } else { "the rows" };
        let cases = if played.cases.is_empty() { made_up(running) } else { played.cases };
        write(&dir.join("golden.jsonl"), golden(running, cases, deadline)?.as_bytes())?;
        tracing::info!("golden.jsonl: {from}, and what the model answers on this machine");
    }
    if let Some(columns) = columns {
        let mut baseline = baseline(columns, drift)?;
        // The windows of a trial are fewer than those of the rows, follow each other, and are of one machine of a kind: an odd one was
        // 1.15 away. Swapped channels or another scale are much farther.
        baseline.score = Spread::of(&mut played.scores, drift * SCORE_DRIFT);
        write(
            &dir.join("baseline.json"),
            (serde_json::to_string_pretty(&baseline).unwrap_or_default() + "\n").as_bytes(),
        )?;
    }
    Ok(())
}

/// The manifest's `files`, in a bundle's order: the model that was tried first. What `files` says of providers stays.
fn entries(dir: &Path, first: &str, onnx: Vec<String>, files: &Value) -> Result<Vec<Value>, String> {
    let rest = ["golden.jsonl", "baseline.json", "card.md"].map(str::to_owned);
    let order = std::iter::once(first.to_owned()).chain(onnx.into_iter().filter(|name| name != first)).chain(rest);
    let mut entries = Vec::new();
    for name in order.filter(|name| dir.join(name).is_file()) {
        let bytes = fs::read(dir.join(&name)).map_err(|why| format!("read {name}: {why}"))?;
        let mut entry = json!({"name": name, "size": bytes.len(), "sha256": hex(&Sha256::digest(&bytes))});
        let before = files.as_array().and_then(|all| all.iter().find(|f| f["name"] == entry["name"]).cloned());
        if let Some(providers) = before.as_ref().and_then(|f| f.get("providers")) {
            entry["providers"] = providers.clone();
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// `FILE:LINE` of a key; the file alone where the key is not written.
fn position(path: &Path, text: &[u8], key: &str) -> String {
    let quoted = format!("\"{key}\"");
    match String::from_utf8_lossy(text).lines().position(|line| line.contains(&quoted)) {
        Some(line) => format!("{}:{}", path.display(), line + 1),
        None => path.display().to_string(),
    }
}

fn names(json: &Value, key: &str) -> Vec<String> {
    let all = json[key].as_array().into_iter().flatten();
    all.filter_map(|io| Some(io["name"].as_str()?.to_owned())).collect()
}

/// Completes the declared inputs or outputs of a manifest from those of the model.
fn describe(all: &mut Value, declared: Vec<(String, String, Vec<i64>)>) {
    let Some(list) = all.as_array_mut() else { return };
    for (name, kind, shape) in declared {
        let at = list.iter().position(|io| io["name"] == name.as_str());
        let entry = match at {
            Some(at) => &mut list[at],
            None => {
                list.push(json!({"name": name}));
                let last = list.len() - 1;
                &mut list[last]
            }
        };
        entry["type"] = kind.into();
        entry["shape"] = shape.into();
    }
}

fn files_of(dir: &Path, of: impl Fn(&str) -> bool) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(dir).map_err(|why| format!("read {}: {why}", dir.display()))?;
    let mut names: Vec<String> =
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| of(n)).collect();
    names.sort();
    Ok(names)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|why| format!("write {}: {why}", path.display()))
}

/// Inputs of golden cases without rows: all ones, a ramp, and noise that is the same on every machine.
fn made_up(running: &Running) -> Vec<Inputs> {
    let mut noise = fastrand::Rng::with_seed(7);
    let mut cases = Vec::new();
    for case in 0..3 {
        let mut inputs = Inputs::new();
        // A state begins as zeros, in a case as in the field.
        for (name, len) in running.input_sizes().into_iter().filter(|(name, _)| !running.is_state(name)) {
            let value = |i: usize, noise: &mut fastrand::Rng| match case {
                0 => 1.0,
                1 => (i + 1) as f32 / len as f32,
                // Above 0, because the input may be a scale.
                _ => noise.f32() * 2.0 + 0.5,
            };
            let values: Vec<f32> = (0..len).map(|i| value(i, &mut noise)).collect();
            inputs.insert(name, values);
        }
        cases.push(inputs);
    }
    cases
}

/// Golden cases of these inputs: the outputs are the model's own.
fn golden(running: &mut Running, cases: Vec<Inputs>, deadline: Duration) -> Result<String, String> {
    let mut text = String::new();
    for inputs in cases {
        let (outputs, _) = running.case(&inputs, deadline, &|| {})?;
        let finite = |values: &[f64]| values.iter().all(|x| x.is_finite());
        let outputs: BTreeMap<String, Vec<f64>> = outputs.into_iter().filter(|(_, values)| finite(values)).collect();
        if outputs.is_empty() {
            return Err("the model answers no finite number; write golden.jsonl yourself".into());
        }
        text.push_str(&json!({"inputs": inputs, "outputs": outputs, "atol": 1e-5, "rtol": 1e-3}).to_string());
        text.push('\n');
    }
    Ok(text)
}

/// The baseline of the columns of rows.
fn baseline(columns: Vec<(String, Vec<f64>)>, drift: f64) -> Result<Baseline, String> {
    let mut baseline = Baseline::default();
    for (name, mut values) in columns {
        values.retain(|x| x.is_finite());
        let channel = Spread::of(&mut values, drift).ok_or_else(|| format!("column `{name}` has no number"))?;
        baseline.channels.insert(name, channel);
    }
    Ok(baseline)
}

fn models_of(config: Option<&Path>) -> Result<Models, Fatal> {
    match config {
        Some(_) => Ok(Config::load(config)?.models),
        None => Ok(Config::unwritten().map_err(|problems| Fatal::problems(&problems))?.models),
    }
}

fn source_of(path: &Path) -> Result<(Artifact, Manifest, PathBuf), String> {
    if path.extension().is_some_and(|ext| ext == "kmb") {
        let file = File::open(path).map_err(|why| format!("open {}: {why}", path.display()))?;
        let bundle = Bundle::open(&file, None)?;
        let manifest = bundle.manifest.clone();
        return Ok((Artifact::bundle(bundle, crate::model::slot::Origin::Factory), manifest, path.into()));
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    let manifest = Manifest::read(folder)?;
    let file = folder.join(&manifest.file);
    Ok((Artifact::factory(&model_of(&manifest, &file))?, manifest, file))
}

fn bench(path: &Path, runs: usize, config: Option<&Path>, only: &[String], as_json: bool) -> Result<(), Fatal> {
    let models = models_of(config)?;
    let what = |why: String| Fatal::failed(format!("measure {}: {why}", path.display()));
    let (source, manifest, file) = source_of(path).map_err(what)?;
    let launching = launching(&models, &manifest, &file).map_err(what)?;
    let names: Vec<String> = match only {
        [] => config::PROVIDERS.iter().rev().map(|name| (*name).to_owned()).collect(),
        only => only.to_vec(),
    };
    let more = models.provider.keys().filter(|name| only.is_empty() && !names.contains(name)).cloned();
    let mut worked = false;
    for name in names.clone().into_iter().chain(more) {
        let provider = models.provider.get(&name).cloned().unwrap_or(Provider { name, ..Provider::cpu() });
        let answer = measure(&launching, &source, &provider, runs);
        worked |= answer.is_ok();
        say(&match (as_json, answer) {
            (true, Ok(value)) => value.to_string(),
            (true, Err(why)) => json!({"provider": provider.name, "error": why}).to_string(),
            (false, Ok(value)) => format!(
                "{:<10} p50 {} µs  p99 {} µs  memory {} MiB  nodes {}\n           {}; tried from inside: {}{}",
                provider.name,
                value["p50_us"],
                value["p99_us"],
                value["memory_mib"],
                value["placement"],
                value["sandbox"].as_str().unwrap_or(""),
                value["judged"],
                attempts(&value["tried"]),
            ),
            (false, Err(why)) => format!("{:<10} not here: {why}", provider.name),
        })?;
    }
    if worked { Ok(()) } else { Err(what("no provider runs it".into())) }
}

/// The attempts from inside the worker, one line each.
fn attempts(tried: &Value) -> String {
    let tried = tried.as_object().into_iter().flatten();
    tried.map(|(what, came)| format!("\n             {what}: {}", came.as_str().unwrap_or(""))).collect()
}

fn measure(launching: &Launching, source: &Artifact, provider: &Provider, runs: usize) -> Result<Value, String> {
    let keys = Path::new("/etc/kentledge/keyset.json");
    let mut running = Running::start_on(launching, source, provider, &[], Some(keys.into()), &|| {})?;
    let inputs: BTreeMap<String, Vec<f32>> =
        running.input_sizes().into_iter().map(|(name, len)| (name, vec![1.0; len])).collect();
    let deadline = Duration::from_secs(60);
    let mut took = Vec::with_capacity(runs);
    for _ in 0..runs.max(1) {
        took.push(running.case(&inputs, deadline, &|| {})?.1);
    }
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let placement: serde_json::Map<String, Value> =
        running.serving.placement.iter().map(|(name, nodes)| (name.clone(), (*nodes).into())).collect();
    let allowed: Vec<&str> =
        running.judged().iter().filter(|(_, came)| came != "refused").map(|(what, _)| what.as_str()).collect();
    let refused = running.judged().len() - allowed.len();
    let judged = if allowed.is_empty() {
        format!("{refused} refused")
    } else {
        format!("{refused} refused, but not: {}", allowed.join(", "))
    };
    Ok(json!({
        "provider": provider.name, "p50_us": at(0.5), "p99_us": at(0.99),
        "memory_mib": running.memory_bytes().unwrap_or(0) >> 20,
        "placement": placement, "sandbox": running.serving.sandbox, "judged": judged, "runtime": running.runtime,
        "tried": running.judged().iter().cloned().collect::<BTreeMap<_, _>>(),
    }))
}
