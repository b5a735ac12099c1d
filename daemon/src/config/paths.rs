//! Checks which files a configuration may name. Every key whose value is a path is read here, so each has a rule for the
//! remote layer: the holder of a command key must not make the daemon open, read or send an arbitrary file of the device.
//!
//! ```text
//! file, secret   STATE/provision, /etc/kentledge, or credential:NAME       certificates, keys, passwords
//! model          the same, /usr/lib/kentledge, or beside the first file    bundles and ONNX files
//! device         /dev; for the kernel's sensors /sys                       what a source opens
//! local          nothing                                                   cannot be set remotely
//! ```

use std::{
    fs::File,
    io::Read,
    path::{Component, Path, PathBuf},
};

use super::{
    SettingError,
    layers::{ADMIN, VENDOR},
    raw::Table,
};
use crate::limits;

/// The folders in which a remote layer may name files.
pub(super) struct Paths {
    base: PathBuf,
    files: Vec<PathBuf>,
    models: Vec<PathBuf>,
}

impl Paths {
    /// `base` is the folder of the first layer: a model's relative path starts there.
    pub fn new(state_dir: &Path, base: &Path) -> Self {
        let files = vec![state_dir.join("provision"), PathBuf::from(ADMIN)];
        let models = files.iter().cloned().chain([PathBuf::from(VENDOR), base.to_owned()]).collect();
        Self { base: base.to_owned(), files, models }
    }

    /// A file that must exist; `credential:NAME` is one that systemd provides.
    pub fn file(&self, t: &mut Table<'_>, key: &'static str) -> Option<PathBuf> {
        let text = t.str(key)?;
        let path = match text.strip_prefix("credential:") {
            Some(name) if name.contains('/') || name.starts_with('.') => {
                t.problem(key, format!("`{name}` is no credential's name"));
                return None;
            }
            Some(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
                Some(folder) => PathBuf::from(folder).join(name),
                None => {
                    t.problem(key, "systemd handed over no credentials (LoadCredential=)");
                    return None;
                }
            },
            None => {
                let path = PathBuf::from(text);
                if !self.allowed(t, key, &path, &self.files) {
                    return None;
                }
                path
            }
        };
        if !path.is_file() {
            let what = if path.is_dir() { "this is a folder, and a file is needed" } else { "no such file" };
            t.problem(key, format!("{what}: {}", path.display()));
        }
        Some(path)
    }

    /// A file with a secret that is sent to the broker.
    pub fn secret(&self, t: &mut Table<'_>, key: &'static str) -> Option<PathBuf> {
        let path = self.file(t, key)?;
        // A file that is unreadable now may be readable when the connection is made.
        if let Ok(bytes) = read(&path)
            && let Err(why) = line(&bytes)
        {
            t.problem(key, format!("{} is no password: {why}", path.display()));
        }
        Some(path)
    }

    /// A model's path as written, and the path to read. The file may be missing.
    pub fn model(&self, t: &mut Table<'_>, key: &'static str) -> (String, PathBuf) {
        let given = t.need_str(key);
        let path = self.base.join(&given);
        if given.is_empty() || !self.allowed(t, key, &path, &self.models) {
            return (String::new(), PathBuf::new());
        }
        (given, path)
    }

    fn allowed(&self, t: &mut Table<'_>, key: &'static str, path: &Path, folders: &[PathBuf]) -> bool {
        let allowed = !t.is_remote(key) || is_below(path, folders);
        if !allowed {
            let all: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            let (path, all) = (path.display(), all.join(", "));
            t.problem(key, format!("{path} cannot be named remotely: only files below {all}, or `credential:NAME`"));
        }
        allowed
    }
}

/// What a source opens: a name without `/`, or a path, which a remote layer may name only below `root`.
pub(super) fn device(t: &mut Table<'_>, key: &'static str, root: &str) -> String {
    let text = t.need_str(key);
    if text.contains('/') && t.is_remote(key) && !is_below(Path::new(&text), &[PathBuf::from(root)]) {
        t.problem(key, format!("{text} cannot be named remotely: only what lies below {root}"));
    }
    text
}

/// A path that only a local layer may set.
pub(super) fn local(t: &mut Table<'_>, key: &'static str) -> Option<PathBuf> {
    t.only_local(&[key]);
    t.str(key).map(PathBuf::from)
}

/// The target of a link counts, not its place.
fn is_below(path: &Path, folders: &[PathBuf]) -> bool {
    let real = |path: &Path| path.canonicalize();
    match real(path) {
        Ok(path) => folders.iter().any(|folder| path.starts_with(real(folder).as_ref().unwrap_or(folder))),
        Err(_) if path.components().any(|part| part == Component::ParentDir) => false,
        Err(_) => folders.iter().any(|folder| path.starts_with(folder)),
    }
}

/// Reads a password: one printable line. Anything else is rejected, so that a private key is never sent as a password.
///
/// # Errors
/// The file cannot be read, or is not such a line; the text names the file.
pub fn secret(path: &Path) -> Result<String, SettingError> {
    let text = read(path).map_err(|why| format!("read password {}: {why}", path.display()))?;
    line(&text).map(str::to_owned).map_err(|why| SettingError(format!("{} is no password: {why}", path.display())))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte and a line end more than the limit: enough to detect an overlong line.
    File::open(path)?.take(limits::SECRET_BYTES as u64 + 3).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn line(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.len() > limits::SECRET_BYTES {
        return Err(format!("it has more than {} bytes", limits::SECRET_BYTES));
    }
    if text.chars().any(char::is_control) {
        return Err("it must be one line of printable text".into());
    }
    if text.contains("-----BEGIN") {
        return Err("it is a PEM file".into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Config, Problem};

    /// A device with its own certificate, and the problems of a remote layer on it.
    struct Device(tempfile::TempDir);

    impl Device {
        fn new(local: &str) -> Self {
            let device = Self(tempfile::tempdir().expect("folder"));
            fs::create_dir_all(device.path("state/provision")).expect("folder");
            fs::write(device.path("state/provision/key.pem"), "-----BEGIN PRIVATE KEY-----\nMC4=\n").expect("write");
            fs::write(device.path("state/provision/password"), "s3cret\n").expect("write");
            fs::write(device.path("outside"), "s3cret\n").expect("write");
            let state = device.path("state");
            let text = format!("[device]\nsite = \"s\"\nid = \"d\"\nstate_dir = \"{}\"\n{local}", state.display());
            fs::create_dir_all(device.path("etc")).expect("folder");
            fs::write(device.path("etc/kentledge.toml"), text).expect("write");
            device
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn set(&self, toml: &str) -> Result<Config, Vec<Problem>> {
            let toml = toml.replace("DIR", &self.0.path().display().to_string());
            Config::local(Some(&self.path("etc/kentledge.toml"))).expect("valid").with_remote(Some(&toml))
        }

        fn problems(&self, toml: &str) -> String {
            let problems = self.set(toml).err().unwrap_or_default();
            problems.iter().map(|p| format!("{p}\n")).collect()
        }
    }

    const BROKER: &str = "[mqtt]\nurl = \"mqtt://127.0.0.1\"\nusername = \"u\"\n";

    #[test]
    fn remote_layer_names_the_private_key_as_password_is_rejected() {
        let device = Device::new("");
        let with = |path: &str| device.problems(&format!("{BROKER}password_file = \"{path}\"\n"));
        assert_eq!(with("DIR/state/provision/password"), "");
        let problems = with("DIR/state/provision/key.pem");
        assert!(problems.contains("must be one line of printable text"), "{problems:?}");
        fs::write(device.path("state/provision/line"), "-----BEGIN PRIVATE KEY-----MC4=").expect("write");
        assert!(with("DIR/state/provision/line").contains("it is a PEM file"));
        fs::write(device.path("state/provision/long"), "x".repeat(limits::SECRET_BYTES + 1)).expect("write");
        assert!(with("DIR/state/provision/long").contains("more than"));
        fs::write(device.path("state/provision/windows"), "x y\r\n").expect("write");
        assert_eq!(secret(&device.path("state/provision/windows")).as_deref(), Ok("x y"));
    }

    #[test]
    fn remote_layer_names_a_file_elsewhere_is_rejected_for_every_key_that_is_a_path() {
        let device = Device::new("[models]\nallow_unsigned = true\n[models.provider.npu]\noptions.x = 1\n");
        std::os::unix::fs::symlink(device.path("outside"), device.path("state/provision/link")).expect("link");
        let tls = "[mqtt]\nurl = \"mqtts://127.0.0.1\"\nusername = \"u\"\n";
        for file in ["DIR/outside", "DIR/state/provision/../../outside", "DIR/state/provision/link", "/nowhere/at/all"]
        {
            for key in ["password_file", "ca_file", "cert_file", "key_file"] {
                let problems = device.problems(&format!("{tls}{key} = \"{file}\"\n"));
                assert!(
                    problems.contains(&format!("mqtt.{key}: ")) && problems.contains("cannot be named remotely"),
                    "{problems}"
                );
                assert!(!problems.contains("no such file"), "the error reveals which files exist: {problems}");
            }
            let problems = device.problems(&format!("[models]\nca_file = \"{file}\"\n"));
            assert!(
                problems.contains("models.ca_file: ") && problems.contains("cannot be named remotely"),
                "{problems}"
            );
            let problems = device.problems(&format!("[pipeline.x]\nmodel = \"{file}\"\n"));
            assert!(
                problems.contains("pipeline.x.model: ") && problems.contains("cannot be named remotely"),
                "{problems}"
            );
            for (table, key) in [
                ("[source.x]\ncolumns = [\"a\"]\n", "path"),
                ("[source.x]\nkind = \"modbus-rtu\"\n", "path"),
                ("[source.x]\nkind = \"gpio\"\nlines.a = { line = 1 }\n", "chip"),
                ("[source.x]\nkind = \"thermal\"\n", "device"),
                ("[output.x]\nline = 1\nalarms = [\"a\"]\n", "chip"),
            ] {
                let problems = device.problems(&format!("{table}{key} = \"{file}\"\n"));
                assert!(
                    problems.contains(&format!(".x.{key}: ")) && problems.contains("cannot be named remotely"),
                    "{problems}"
                );
            }
        }
        // Nested in an existing table.
        for (table, key) in [
            ("device", "state_dir = \"/tmp\""),
            ("commands", "keyset = \"/tmp\""),
            ("models", "runtime = \"/tmp\""),
            ("models.provider.npu", "plugin = \"/usr/lib/x.so\""),
            ("models.provider.other", "plugin = \"/usr/lib/x.so\""),
        ] {
            let problems = device.problems(&format!("[{table}]\n{key}\n"));
            assert!(problems.contains("cannot be set remotely"), "{table}.{key}: {problems}");
        }
        assert_eq!(device.problems("[source.x]\npath = \"/dev/ttyUSB7\"\ncolumns = [\"a\"]\n"), "");
        assert_eq!(device.problems("[source.x]\nkind = \"thermal\"\ndevice = \"cpu\"\n"), "");
    }

    #[test]
    fn remote_layer_that_would_send_the_local_password_in_plain_text_is_rejected() {
        let dir = tempfile::tempdir().expect("folder");
        let password = dir.path().join("password");
        fs::write(&password, "s3cret").expect("write");
        let local = |plain: &str| {
            let file = password.display();
            format!("[mqtt]\nurl = \"mqtts://a.example\"\nusername = \"u\"\npassword_file = \"{file}\"\n{plain}")
        };
        let thief = "[mqtt]\nurl = \"mqtt://b.example\"\nallow_plaintext = true\n";
        let problems = Device::new(&local("")).problems(thief);
        assert!(
            problems.contains("mqtt.allow_plaintext: cannot be set remotely where there is a password"),
            "{problems}"
        );
        // A local file may allow it.
        let device = Device::new(&local("allow_plaintext = true\n"));
        assert_eq!(device.problems("[mqtt]\nurl = \"mqtt://b.example\"\n"), "");
        assert_eq!(device.problems("[mqtt]\nurl = \"mqtts://b.example\"\n"), "");
    }

    /// A path key that is read elsewhere would have no rule for the remote layer.
    #[test]
    fn config_reads_paths_in_one_file_only() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
        for entry in fs::read_dir(folder).expect("sources").flatten() {
            let text = fs::read_to_string(entry.path()).expect("text");
            let product = text.split("#[cfg(test)]").next().unwrap_or("");
            let made = ["PathBuf::from(", "map(PathBuf::from)", "Path::new(&", ".into::<PathBuf>"];
            let found: Vec<_> = made.iter().filter(|word| product.contains(**word)).collect();
            let home = entry.file_name() == "paths.rs";
            assert!(home || found.is_empty(), "{} makes a path from text: {found:?}", entry.path().display());
        }
    }
}
