//! Someone who makes model bundles, with minisign and with our own `kentledge model pack`. Faults: every kind of bundle that
//! must not be taken, validly signed or not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{daemon, onnx};

/// The window of the rig's models: 4 rows of `a` and `b`.
pub const SHAPE: [u64; 3] = [1, 4, 2];

/// A person with a key for models.
pub struct Maker {
    dir: TempDir,
    pub name: String,
}

/// What a bundle is made of, before it is signed.
pub struct Draft {
    pub manifest: Value,
    pub files: Vec<(String, Vec<u8>)>,
}

impl Draft {
    /// A model `mean` of this sequence, that answers `score(x)` for its golden case 1…8.
    pub fn new(seq: u64, onnx: &[u8], score: f64) -> Self {
        let golden =
            json!({"inputs": {"x": [1, 2, 3, 4, 5, 6, 7, 8]}, "outputs": {"score": [score]}}).to_string() + "\n";
        let manifest = json!({
            "_type": "model", "product": "kentledge", "channel": "stable", "model": "mean", "version": format!("1.{seq}.0"),
            "seq": seq, "created": "2026-01-01T00:00:00Z", "expires": "2036-01-01T00:00:00Z", "device_class": ["any"],
            "min_supervisor": "0.1.0", "files": [],
            "inputs": [{"name": "x", "type": "float32", "shape": SHAPE}],
            "outputs": [{"name": "score", "type": "float32", "shape": [], "role": "score"}],
            "window": {"channels": ["a", "b"], "length": 4}, "thresholds": {"raise": 10.0},
            "providers": ["cpu"], "deadline_ms": 1000,
        });
        let files = vec![("model.onnx".into(), onnx.to_vec()), ("golden.jsonl".into(), golden.into_bytes())];
        Self { manifest, files }
    }

    /// The mean, as this sequence.
    pub fn mean(seq: u64) -> Self {
        Self::new(seq, &onnx::mean_tagged(&SHAPE, seq as f32), 4.5)
    }

    /// With something else in the manifest.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.manifest[key] = value;
        self
    }
}

/// SHA-256 of a file, hex, by coreutils.
pub fn sha256(path: &Path) -> String {
    let out = Command::new("sha256sum").arg(path).output().expect("sha256sum");
    String::from_utf8(out.stdout).expect("text").split_whitespace().next().expect("a digest").to_owned()
}

impl Maker {
    pub fn new(name: &str) -> Self {
        let maker = Self { dir: TempDir::new().expect("folder"), name: name.into() };
        let mut minisign = Command::new("minisign");
        minisign.args(["-G", "-f", "-W"]).arg("-p").arg(maker.path("pub")).arg("-s").arg(maker.path("sec"));
        let made = minisign.stdout(Stdio::null()).stdin(Stdio::null()).status();
        assert!(made.expect("minisign is installed (tests/run installs it)").success());
        maker
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The public key.
    pub fn public(&self) -> String {
        let text = fs::read_to_string(self.path("pub")).expect("public key");
        text.lines().nth(1).expect("a key").to_owned()
    }

    /// As a keyset names it.
    pub fn key(&self, roles: &[&str]) -> Value {
        json!({"name": self.name, "public": self.public(), "roles": roles})
    }

    /// Signs a file; returns the signature's text.
    pub fn sign(&self, file: &Path) -> String {
        let sig = self.path("sig");
        let mut minisign = Command::new("minisign");
        minisign.args(["-S", "-q", "-m"]).arg(file).arg("-x").arg(&sig).arg("-s").arg(self.path("sec"));
        assert!(minisign.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("minisign").success());
        fs::read_to_string(sig).expect("signature")
    }

    /// A folder with everything a bundle needs but the signature.
    pub fn folder(&self, draft: &Draft) -> PathBuf {
        let folder = self.path(&format!("bundle-{}", fastrand::u64(..)));
        fs::create_dir(&folder).expect("folder");
        let mut manifest = draft.manifest.clone();
        let mut entries = Vec::new();
        for (name, bytes) in &draft.files {
            fs::write(folder.join(name), bytes).expect("write");
            let sha256 = sha256(&folder.join(name));
            entries.push(json!({"name": name, "size": bytes.len(), "sha256": sha256}));
        }
        manifest["files"] = entries.into();
        fs::write(folder.join("manifest.json"), manifest.to_string()).expect("write");
        folder
    }

    /// A signed and packed bundle.
    #[track_caller]
    pub fn bundle(&self, draft: &Draft) -> PathBuf {
        self.bundle_by(draft, &[self])
    }

    /// The same, signed by these.
    #[track_caller]
    pub fn bundle_by(&self, draft: &Draft, makers: &[&Maker]) -> PathBuf {
        let folder = self.folder(draft);
        for (i, maker) in makers.iter().enumerate() {
            let name = if i == 0 { "manifest.json.minisig".to_owned() } else { format!("manifest.json.k{i}.minisig") };
            fs::write(folder.join(name), maker.sign(&folder.join("manifest.json"))).expect("write");
        }
        self.pack(&folder)
    }

    /// Packs a signed folder.
    #[track_caller]
    pub fn pack(&self, folder: &Path) -> PathBuf {
        let out = folder.with_extension("kmb");
        let done = daemon::run(&["model", "pack", &folder.display().to_string(), "-o", &out.display().to_string()]);
        assert_eq!(done.code, Some(0), "{}", done.err);
        out
    }
}

/// A keyset's file of these keys.
pub fn keyset(at: &Path, version: u64, keys: &[Value], more: &Value) -> PathBuf {
    let mut keyset =
        json!({"_type": "kentledge.keyset", "version": version, "expires": "2036-01-01T00:00:00Z", "keys": keys});
    for (key, value) in more.as_object().into_iter().flatten() {
        keyset[key] = value.clone();
    }
    let path = at.join(format!("keyset-{version}.json"));
    fs::write(&path, keyset.to_string()).expect("write");
    path
}
