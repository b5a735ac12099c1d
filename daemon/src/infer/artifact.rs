//! What is to be run, wherever it comes from: a bundle in a slot, a bundle that the image brings, or a bare file.

use std::{collections::BTreeMap, fs::File, sync::Arc};

use crate::{
    config::{self, Provider},
    model::{baseline::Baseline, bundle::Bundle, file::ModelFile, golden::Case, manifest::Manifest, slot::Origin},
};

/// A model that may be handed to a worker.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// How to run it.
    pub manifest: Arc<Manifest>,
    /// The ONNX files by name.
    files: Arc<BTreeMap<String, ModelFile>>,
    /// Where it comes from.
    pub origin: Origin,
    /// It has no signature.
    pub unsigned: bool,
    /// SHA-256 of the bundle; empty for a bare file.
    pub bundle: Arc<str>,
    /// What it must answer.
    pub golden: Arc<Vec<Case>>,
    /// What its inputs looked like, where it says.
    pub baseline: Option<Arc<Baseline>>,
}

impl Artifact {
    /// A bundle that was checked.
    pub fn bundle(bundle: Bundle, origin: Origin) -> Self {
        Self {
            manifest: Arc::new(bundle.manifest),
            files: Arc::new(bundle.models),
            origin,
            unsigned: false,
            bundle: bundle.sha256.into(),
            golden: Arc::new(bundle.golden),
            baseline: bundle.baseline.map(Arc::new),
        }
    }

    /// A model without files, for tests that run no worker.
    #[cfg(test)]
    pub fn of_manifest(manifest: Manifest) -> Self {
        Self {
            manifest: Arc::new(manifest),
            files: Arc::default(),
            origin: Origin::Factory,
            unsigned: true,
            bundle: "".into(),
            golden: Arc::default(),
            baseline: None,
        }
    }

    /// What the configuration names: a bundle, or an ONNX file with what is known of it.
    pub fn factory(model: &config::Model) -> Result<Self, String> {
        let config::Model { file: path, manifest, unsigned, .. } = model;
        if path.as_os_str().is_empty() {
            return Err(format!("no bundle of `{}` is installed yet", manifest.model));
        }
        if path.extension().is_some_and(|ext| ext == "kmb") {
            // Its signatures were looked at with the configuration; here its digests are once more.
            let what = |why: String| format!("use bundle {}: {why}", path.display());
            let file = File::open(path).map_err(|why| what(why.to_string()))?;
            let source = Self::bundle(Bundle::open(&file, None).map_err(what)?, Origin::Factory);
            return Ok(Self { unsigned: *unsigned, ..source });
        }
        let mut files = BTreeMap::new();
        files.insert(manifest.file.clone(), ModelFile::read(path)?);
        for (name, _) in &manifest.variants {
            files.insert(name.clone(), ModelFile::read(&path.with_file_name(name))?);
        }
        Ok(Self {
            manifest: Arc::new(manifest.clone()),
            files: Arc::new(files),
            origin: Origin::Factory,
            unsigned: true,
            bundle: "".into(),
            golden: Arc::default(),
            baseline: None,
        })
    }

    /// The file for a provider.
    pub fn file_for(&self, provider: &Provider) -> Result<&ModelFile, String> {
        let name = self.manifest.file_for(&provider.name);
        self.files.get(name).ok_or_else(|| format!("it has no file `{name}`"))
    }

    /// `name@version`
    pub fn name(&self) -> String {
        format!("{}@{}", self.manifest.model, self.manifest.version)
    }
}
