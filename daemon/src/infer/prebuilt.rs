//! Starts a worker on a provider that builds an engine for the model first. A worker of its own builds it, into a folder that it alone
//! may write, beside whatever serves; the files are digested and sealed (`model/engines.rs`); the worker that serves reads them and
//! cannot write. The next start finds the engine, unless anything that it depends on has changed.
//!
//! ```text
//! find ─ fits ──────────────▶ serve, folder read-only ─ taken ─▶ serves
//!   └ none, stale, damaged ─▶ build, folder writable ─▶ seal ─▶ serve, folder read-only
//!                               └ failed, or not taken ────────▶ serve without a folder: built in the worker, not kept
//! ```

use std::{
    cell::Cell,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{
    channel::{EngineFolder, Loaded, Prepare},
    meaning::Misfits,
    worker::{Launch, Worker},
};
use crate::{
    config::Provider,
    host::accelerator::Machine,
    limits,
    model::{
        engines::{Engines, MadeFor},
        file::hex,
    },
};

/// The placeholder for the folder in a provider's options.
const FOLDER: &str = "{cache}";
/// Options that TensorRT's provider gets beside those that are configured.
const TENSORRT: [(&str, &str); 4] = [
    ("trt_engine_cache_enable", "1"),
    ("trt_engine_cache_path", FOLDER),
    ("trt_timing_cache_enable", "1"),
    ("trt_timing_cache_path", FOLDER),
];

/// What is known of the engine of one model on one provider.
pub struct Prebuilt {
    engines: Engines,
    made_for: MadeFor,
    /// The bundle of the slot that the model lies in.
    bundle: Option<String>,
}

/// How a model is fed, by what it declares.
type Planner<'a, P> = dyn Fn(&Loaded) -> Result<(Prepare, P), Misfits> + 'a;

/// A worker that serves, what its model declares, how it is fed, and what is worth saying of its engine.
pub struct Started<P> {
    pub worker: Worker,
    pub loaded: Loaded,
    pub plan: P,
    pub note: Option<String>,
}

impl Prebuilt {
    /// `None`: this provider keeps no engine, or there is nowhere to keep one. `models` is the folder of installed models.
    pub fn new(models: Option<&Path>, launch: &Launch, window: String, bundle: Option<String>) -> Option<Self> {
        keeps_one(&launch.provider).then_some(())?;
        let machine = Machine::default();
        let folders = [Some(launch.runtime.as_path()), launch.provider.plugin.as_deref()].into_iter().flatten();
        let libraries: Vec<PathBuf> = folders.filter_map(|library| library.parent().map(Path::to_owned)).collect();
        let name = launch.runtime.file_name().unwrap_or_default().to_string_lossy();
        let made_for = MadeFor {
            model: launch.model.sha256.clone(),
            window,
            provider: described(&launch.provider),
            runtime: format!("{name} (libraries {})", fingerprint(&libraries)),
            driver: machine.driver(),
            device: machine.device(),
        };
        Some(Self { engines: Engines::below(models?), made_for, bundle })
    }
}

/// Starts a worker that serves.
///
/// # Errors
/// What does not fit, or why the provider does not take the model.
pub fn start<P>(
    launch: &Launch,
    prebuilt: Option<&Prebuilt>,
    plan: &Planner<'_, P>,
    beat: &dyn Fn(),
) -> Result<Started<P>, Misfits> {
    let serve = |folder: Option<PathBuf>, note: Option<String>| {
        let launch = with(launch, folder.map(|path| EngineFolder { path, writable: false }));
        let (worker, loaded, plan) = Worker::start(&launch, plan, beat)?;
        Ok(Started { worker, loaded, plan, note })
    };
    let Some(Prebuilt { engines, made_for, bundle }) = prebuilt else { return serve(None, None) };
    let on = format!("model {} on {}", launch.name, launch.provider.name);
    let why = match engines.find(made_for) {
        Ok(files) => match serve(Some(files), Some("its engine is the one that was kept".into())) {
            Ok(started) => return Ok(started),
            Err(misfits) => format!("the one that is there is not taken: {misfits}"),
        },
        Err(unusable) => unusable.to_string(),
    };
    tracing::info!("{on}: builds its engine: {why}");
    let began = Instant::now();
    let failed = match build(launch, (engines, made_for), bundle.as_ref(), plan, &on, beat) {
        Err(why) if began.elapsed() >= limits::WORKER_BUILD => return Err(why),
        Err(why) => why.to_string(),
        Ok(files) => {
            let note = format!("its engine was built in {:.1} s ({why})", began.elapsed().as_secs_f64());
            match serve(Some(files), Some(note)) {
                Ok(started) => return Ok(started),
                Err(misfits) => {
                    engines.remove(made_for);
                    format!("the engine that was just built is not taken: {misfits}")
                }
            }
        }
    };
    tracing::warn!("{on}: no engine is kept, each start builds it again: {failed}");
    serve(None, Some(format!("no engine is kept: {failed}")))
}

/// Builds and seals an engine; its files.
fn build<P>(
    launch: &Launch,
    (engines, made_for): (&Engines, &MadeFor),
    bundle: Option<&String>,
    plan: &Planner<'_, P>,
    on: &str,
    beat: &dyn Fn(),
) -> Result<PathBuf, Misfits> {
    let text = |why: crate::model::error::EngineError| Misfits::from(format!("build the engine: {why}"));
    let building = engines.build(made_for).map_err(text)?;
    let (began, said) = (Instant::now(), Cell::new(Duration::ZERO));
    let go_on = || {
        beat();
        let bytes = building.look().map_err(|why| format!("build the engine: {why}"))?;
        let since = began.elapsed();
        if is_due(&said, since) {
            tracing::info!("{on}: its engine has been built for {} s, {} KiB so far", since.as_secs(), bytes >> 10);
        }
        Ok(())
    };
    let builder = with(launch, Some(EngineFolder { path: building.files(), writable: true }));
    Worker::build(&builder, plan, &go_on)?;
    building.seal(bundle.cloned()).map_err(text)
}

/// Whether a build that has lasted for so long is to be reported; `said`: when it was last.
fn is_due(said: &Cell<Duration>, since: Duration) -> bool {
    let due = since >= said.get() + limits::ENGINE_PROGRESS;
    if due {
        said.set(since);
    }
    due
}

/// This launch with a folder for its engine, or without one.
fn with(launch: &Launch, engine: Option<EngineFolder>) -> Launch {
    let provider = with_folder(&launch.provider, engine.as_ref().map(|engine| engine.path.as_path()));
    Launch { provider, engine, ..launch.clone() }
}

/// Whether this provider builds an engine that is kept.
fn keeps_one(provider: &Provider) -> bool {
    let named = provider.options.values().any(|value| value.contains(FOLDER));
    // A cache that is set by hand is not ours.
    named || is_tensorrt(provider) && !provider.options.keys().any(|key| key.contains("_cache_"))
}

fn is_tensorrt(provider: &Provider) -> bool {
    provider.plugin.is_none() && provider.name == "tensorrt"
}

/// The provider as a worker gets it: with the folder, or without the options that name one.
fn with_folder(provider: &Provider, folder: Option<&Path>) -> Provider {
    let mut options = provider.options.clone();
    match folder.and_then(Path::to_str) {
        Some(folder) => {
            if is_tensorrt(provider) && keeps_one(provider) {
                for (key, value) in TENSORRT {
                    options.entry(key.into()).or_insert_with(|| value.into());
                }
            }
            options.values_mut().for_each(|value| *value = value.replace(FOLDER, folder));
        }
        None => options.retain(|_, value| !value.contains(FOLDER)),
    }
    Provider { options, ..provider.clone() }
}

/// Name, plugin and options.
fn described(provider: &Provider) -> String {
    let plugin = provider.plugin.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default();
    let options: Vec<String> = provider.options.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{}{plugin} [{}]", provider.name, options.join(", "))
}

/// A digest of the libraries in these folders: names, sizes and times. They have hundreds of MiB, and an image's own never change.
fn fingerprint(folders: &[PathBuf]) -> String {
    let mut all: Vec<String> = Vec::new();
    for entry in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Ok(meta) = fs::metadata(entry.path()).as_ref()
            && name.contains(".so")
        {
            all.push(format!("{name} {} {}.{}", meta.len(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    all.sort();
    hex(&Sha256::digest(all.join("\n"))[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(name: &str, options: &[(&str, &str)]) -> Provider {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Provider { name: name.into(), plugin: None, options }
    }

    #[test]
    fn folder_is_put_into_the_options_that_name_it_and_without_one_they_are_left_out() {
        let vendor = provider("vendor", &[("load_config", r#"{"CPU":{"CACHE_DIR":"{cache}"}}"#), ("device", "CPU")]);
        let here = with_folder(&vendor, Some(Path::new("/s/e")));
        assert_eq!(here.options["load_config"], r#"{"CPU":{"CACHE_DIR":"/s/e"}}"#);
        assert_eq!(here.options["device"], "CPU");
        let options: Vec<_> = with_folder(&vendor, None).options.into_keys().collect();
        assert_eq!(options, ["device"]);
        assert!(keeps_one(&vendor) && !keeps_one(&provider("vendor", &[])) && !keeps_one(&provider("cuda", &[])));
    }

    #[test]
    fn tensorrt_keeps_engines_and_timings_without_being_told_unless_its_cache_is_set_by_hand() {
        let plain = provider("tensorrt", &[("trt_fp16_enable", "1")]);
        let here = with_folder(&plain, Some(Path::new("/s/e"))).options;
        let set = |key: &str| here.get(key).map(String::as_str);
        assert_eq!((set("trt_engine_cache_enable"), set("trt_engine_cache_path")), (Some("1"), Some("/s/e")));
        assert_eq!((set("trt_timing_cache_enable"), set("trt_timing_cache_path")), (Some("1"), Some("/s/e")));
        assert_eq!(set("trt_fp16_enable"), Some("1"));
        assert_eq!(with_folder(&plain, None), plain);
        let own = provider("tensorrt", &[("trt_engine_cache_enable", "0")]);
        assert!(keeps_one(&plain) && !keeps_one(&own));
        assert_eq!(with_folder(&own, Some(Path::new("/s/e"))), own);
    }

    #[test]
    fn build_is_reported_every_ten_seconds_and_not_more_often() {
        let said = Cell::new(Duration::ZERO);
        let reports = (0..400).map(|tenths| Duration::from_millis(tenths * 100)).filter(|since| is_due(&said, *since));
        let seconds: Vec<u64> = reports.map(|since| since.as_secs()).collect();
        assert_eq!(seconds, [10, 20, 30]);
    }

    #[test]
    fn fingerprint_changes_with_a_library_and_not_with_other_files() {
        let dir = tempfile::tempdir().expect("folder");
        let print = || fingerprint(&[dir.path().to_owned()]);
        fs::write(dir.path().join("liba.so.1"), b"a").expect("write");
        let before = print();
        fs::write(dir.path().join("README"), b"a").expect("write");
        assert_eq!(print(), before);
        fs::write(dir.path().join("liba.so.1"), b"ab").expect("write");
        let changed = print();
        assert_ne!(changed, before);
        fs::write(dir.path().join("libb.so"), b"b").expect("write");
        assert_ne!(print(), changed);
    }
}
