//! What is to be run, wherever it comes from: a bundle in a slot, a bundle that the image brings, or a bare file.

use std::{collections::BTreeMap, fs::File, sync::Arc};

use super::InferError;
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
    ///
    /// # Errors
    /// The file cannot be read, or is rejected; the text names it.
    pub fn factory(model: &config::Model) -> Result<Self, InferError> {
        let config::Model { file: path, manifest, unsigned, manifest_sha256, .. } = model;
        if path.as_os_str().is_empty() {
            return Err(InferError(format!(
                "no bundle of `{}` is installed yet; its alarms are unknown until the command `model.install` brings one",
                manifest.model
            )));
        }
        if path.extension().is_some_and(|ext| ext == "kmb") {
            // The signatures were verified with the configuration, over the manifest, which has the digests of all files: the
            // same manifest needs no second look at them.
            let what = |why: String| InferError(format!("use bundle {}: {why}", path.display()));
            let file = File::open(path).map_err(|why| what(why.to_string()))?;
            let bundle = Bundle::open(&file, None).map_err(|why| what(why.into()))?;
            if bundle.manifest_sha256 != *manifest_sha256 {
                return Err(what(
                    "it is another bundle than when the configuration was read; reload the configuration".into(),
                ));
            }
            return Ok(Self { unsigned: *unsigned, ..Self::bundle(bundle, Origin::Factory) });
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

    /// Whether one of its files has this SHA-256.
    pub fn has_file(&self, sha256: &str) -> bool {
        self.files.values().any(|file| file.sha256 == sha256)
    }

    /// `name@version`
    pub fn name(&self) -> String {
        format!("{}@{}", self.manifest.model, self.manifest.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{bundle, file::hex};
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde_json::json;
    use sha2::{Digest, Sha256};

    /// A bundle with a signature that is only well-formed, and its manifest.
    fn packed(dir: &std::path::Path, version: &str) -> Bundle {
        let field = |number: u8, body: &[u8]| [&[number << 3 | 2, body.len() as u8], body].concat();
        let node = [field(1, b"x"), field(2, b"y"), field(4, b"Relu")].concat();
        let onnx = [field(7, &field(1, &node)), field(8, &[0x10, 18])].concat();
        let golden = b"{\"inputs\":{\"x\":[1]},\"outputs\":{\"y\":[1]}}\n".to_vec();
        let entry = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.join(name), bytes).expect("write");
            json!({"name": name, "size": bytes.len(), "sha256": hex(&Sha256::digest(bytes))})
        };
        let manifest = json!({
            "_type": "model", "product": "kentledge", "channel": "stable", "model": "m", "version": version, "seq": 1,
            "created": "2026-01-01T00:00:00Z", "expires": "2036-01-01T00:00:00Z", "device_class": ["any"],
            "min_supervisor": "0.1.0", "files": [entry("model.onnx", &onnx), entry("golden.jsonl", &golden)],
            "inputs": [], "outputs": [], "window": {"channels": ["a"], "length": 1},
        });
        entry("manifest.json", manifest.to_string().as_bytes());
        let (signature, global) = (STANDARD.encode([0; 74]), STANDARD.encode([0; 64]));
        let text = format!("untrusted comment: x\n{signature}\ntrusted comment: x\n{global}\n");
        entry("manifest.json.minisig", text.as_bytes());
        bundle::pack(dir, &dir.join("m.kmb")).expect("packed")
    }

    #[test]
    fn bundle_that_changed_since_the_configuration_was_read_is_rejected() {
        let dir = tempfile::tempdir().expect("folder");
        let Bundle { manifest, manifest_sha256, .. } = packed(dir.path(), "1");
        let file = dir.path().join("m.kmb");
        let head = bundle::Head::read(&File::open(&file).expect("open"), None).expect("head");
        assert_eq!(head.sha256, manifest_sha256);
        let model = config::Model { file, manifest, floor: 0, unsigned: true, manifest_sha256 };
        assert!(Artifact::factory(&model).is_ok());
        packed(dir.path(), "2");
        let why = Artifact::factory(&model).expect_err("another bundle");
        assert!(why.to_string().contains("another bundle than when the configuration was read"), "{why}");
    }
}
