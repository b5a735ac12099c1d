//! Where ONNX Runtime's shared library is. A plain search; loading it is the worker's business.

use std::path::{Path, PathBuf};

use super::InferError;

/// The version that the commands below fetch.
pub const VERSION: &str = "1.31.1";

/// The library: as configured, as `KENTLEDGE_ORT_LIB` says, or in the usual places.
///
/// # Errors
/// It is not there; the text tells how to get it.
pub fn find(configured: Option<&Path>) -> Result<PathBuf, InferError> {
    if let Some(path) = configured {
        let missing =
            || InferError(format!("no ONNX Runtime at {} (models.runtime); {}", path.display(), how_to_get_it()));
        return real(path).ok_or_else(missing);
    }
    if let Some(path) = std::env::var_os("KENTLEDGE_ORT_LIB").map(PathBuf::from) {
        let missing =
            || InferError(format!("no ONNX Runtime at {} (KENTLEDGE_ORT_LIB); {}", path.display(), how_to_get_it()));
        return real(&path).ok_or_else(missing);
    }
    let capi = cache().map(|cache| cache.join("onnxruntime/capi"));
    let folders = capi.into_iter().chain(["/usr/lib/kentledge", "/usr/local/lib", "/usr/lib"].map(PathBuf::from));
    let looked: Vec<PathBuf> = folders.collect();
    looked.iter().find_map(|folder| newest(folder)).ok_or_else(|| {
        let places: Vec<_> = looked.iter().map(|p| p.display().to_string()).collect();
        InferError(format!("no ONNX Runtime library in {}; {}", places.join(", "), how_to_get_it()))
    })
}

/// A file's own whole path: the loader searches for a bare name elsewhere, and the worker may read only the folder it is in.
fn real(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok().filter(|path| path.is_file())
}

/// `libonnxruntime.so*` with the highest version in a folder.
fn newest(folder: &Path) -> Option<PathBuf> {
    let version = |path: &Path| -> Vec<u32> {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        name.split('.').filter_map(|part| part.parse().ok()).collect()
    };
    let files = std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok().map(|e| e.path()));
    let named = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libonnxruntime.so"));
    files.filter(named).max_by_key(|path| version(path))
}

fn cache() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))?;
    Some(base.join(format!("kentledge/onnxruntime-{VERSION}")))
}

/// The exact command.
fn how_to_get_it() -> String {
    let target = cache().map_or_else(|| "/usr/local/lib".into(), |cache| cache.display().to_string());
    let arch = std::env::consts::ARCH;
    format!(
        "get it with: python3 -m pip install --no-deps --only-binary=:all: --python-version 3.12 \
         --platform manylinux_2_28_{arch} --target {target} onnxruntime=={VERSION}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_named_without_its_folder_or_by_a_link_is_found_by_its_whole_path() {
        let here = std::env::current_dir().expect("folder");
        assert_eq!(find(Some(Path::new("Cargo.toml"))), Ok(here.join("Cargo.toml")));
        let dir = tempfile::tempdir().expect("folder");
        let link = dir.path().join("lib.so");
        std::os::unix::fs::symlink(here.join("Cargo.toml"), &link).expect("link");
        assert_eq!(find(Some(&link)), Ok(here.join("Cargo.toml")));
    }

    #[test]
    fn a_missing_library_is_answered_with_the_command_that_gets_it() {
        let why = find(Some(Path::new("/nowhere/lib.so"))).expect_err("missing").to_string();
        assert!(why.contains("/nowhere/lib.so") && why.contains("pip install") && why.contains(VERSION), "{why}");
    }
}
