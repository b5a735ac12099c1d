//! Accelerators as the kernel and the file system show them, before any vendor's library is loaded: what an engine that was built
//! for this machine depends on, and what a provider misses. Reads a few small files below a root, so that trees of other machines
//! can be read as well.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use crate::limits;

/// Where the NVIDIA driver reports its version.
const NVIDIA: &str = "proc/driver/nvidia/version";
/// Beginnings of the names of device nodes that NVIDIA's libraries open.
const NVIDIA_NODES: [&str; 4] = ["nvidia", "nvhost", "nvgpu", "nvmap"];
/// Where distributions and NVIDIA's installer put the driver's libraries. Not `/usr/local/cuda/compat`: those are made to differ.
const LIBRARIES: [&str; 7] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu/nvidia",
    "usr/lib/aarch64-linux-gnu/tegra",
    "usr/lib64",
    "usr/lib",
    "usr/local/nvidia/lib64",
];
/// Kernel modules whose version is that of a driver.
const MODULES: [&str; 6] = ["nvidia", "i915", "xe", "amdgpu", "amdxdna", "intel_vpu"];

/// The machine below a root.
#[derive(Debug, Clone)]
pub struct Machine(PathBuf);

impl Default for Machine {
    fn default() -> Self {
        Self::at("/")
    }
}

impl Machine {
    /// The machine whose files lie below this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// Versions of the drivers that an accelerator's engine may depend on; empty: none is loaded.
    pub fn driver(&self) -> String {
        let modules = MODULES.iter().filter_map(|name| {
            let version = self.text(&format!("sys/module/{name}/version"))?;
            Some(format!("{name} {version}"))
        });
        let tegra = self.text("etc/nv_tegra_release").and_then(|text| Some(text.lines().next()?.to_owned()));
        let mut all: Vec<String> = self.nvidia().map(|version| format!("NVIDIA {version}")).into_iter().collect();
        all.extend(modules.filter(|module| !module.starts_with("nvidia ") || self.nvidia().is_none()));
        all.extend(tegra);
        all.join(", ")
    }

    /// The accelerators and the processor: an engine fits these.
    pub fn device(&self) -> String {
        let mut all: Vec<String> = self.gpus();
        for node in self.names("sys/class/drm", "renderD") {
            let id = |what: &str| self.text(&format!("sys/class/drm/{node}/device/{what}")).unwrap_or_default();
            all.push(format!("{node} {}:{}", id("vendor"), id("device")));
        }
        let line = |text: String, key: &str| {
            let value = text.lines().find(|line| line.starts_with(key))?.split_once(':')?.1.trim().to_owned();
            Some(value)
        };
        let processor = self.text("proc/cpuinfo").and_then(|text| line(text, "model name"));
        all.extend(processor.or_else(|| self.text("proc/device-tree/model")));
        all.join(", ")
    }

    /// What keeps this provider from running here, as far as it shows before its libraries are loaded. `runtime` is ONNX Runtime's
    /// library. `None`: nothing is known to be missing.
    pub fn missing(&self, provider: &str, runtime: &Path) -> Option<String> {
        if !["cuda", "tensorrt"].contains(&provider) {
            return None;
        }
        let library = runtime.with_file_name(format!("libonnxruntime_providers_{provider}.so"));
        if !library.is_file() {
            return Some(format!("this ONNX Runtime was built without it: no {}", library.display()));
        }
        let nodes = self.names("dev", "nv");
        if !nodes.iter().any(|node| NVIDIA_NODES.iter().any(|start| node.starts_with(start))) {
            return Some(
                "there is no NVIDIA device in /dev: its driver is not loaded, or the service may not use it".into(),
            );
        }
        let (kernel, (library, installed)) = (self.nvidia()?, self.libcuda()?);
        (kernel != installed).then(|| {
            format!(
                "the NVIDIA driver in the kernel is {kernel}, and {} is {installed}: both must be of one version; restart the machine \
                 after an update of the driver",
                library.display()
            )
        })
    }

    /// Version of the NVIDIA driver in the kernel.
    fn nvidia(&self) -> Option<String> {
        let text = self.text(NVIDIA)?;
        let first = text.lines().next()?;
        first.split_whitespace().find(|word| is_version(word)).map(str::to_owned)
    }

    /// Driver's library for CUDA, and the version in the name of its file.
    fn libcuda(&self) -> Option<(PathBuf, String)> {
        LIBRARIES.iter().find_map(|folder| {
            let path = fs::canonicalize(self.0.join(folder).join("libcuda.so.1")).ok()?;
            let version = path.file_name()?.to_str()?.strip_prefix("libcuda.so.")?.to_owned();
            // On a Jetson the file is called libcuda.so.1.1 whatever the driver: a driver's version begins with three digits.
            let of_a_driver = is_version(&version) && version.find('.') == Some(3);
            of_a_driver.then_some((path, version))
        })
    }

    /// NVIDIA's boards: model and serial number.
    fn gpus(&self) -> Vec<String> {
        let boards = self.names("proc/driver/nvidia/gpus", "");
        let of = |board: &String| {
            let text = self.text(&format!("proc/driver/nvidia/gpus/{board}/information"))?;
            let value = |key: &str| {
                let line = text.lines().find(|line| line.starts_with(key))?;
                line.split_once(':').map(|(_, value)| value.trim().to_owned())
            };
            Some([value("Model"), value("GPU UUID")].into_iter().flatten().collect::<Vec<_>>().join(" "))
        };
        boards.iter().filter_map(of).collect()
    }

    fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        File::open(self.0.join(path)).ok()?.take(limits::SELFTEST_FILE).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Sorted names in a folder that begin with `start`.
    fn names(&self, folder: &str, start: &str) -> Vec<String> {
        let all = fs::read_dir(self.0.join(folder)).into_iter().flatten().flatten();
        let named = all.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(start));
        let mut names: Vec<_> = named.take(limits::SELFTEST_ENTRIES).collect();
        names.sort();
        names
    }
}

/// `580.95.05`, and no word with a dot in it.
fn is_version(word: &str) -> bool {
    word.contains('.') && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with an NVIDIA board, and the folder of its ONNX Runtime.
    fn machine(kernel: &str, library: &str) -> (tempfile::TempDir, Machine, PathBuf) {
        let root = tempfile::tempdir().expect("folder");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, text).expect("write");
        };
        put("dev/nvidiactl", "");
        put("dev/nvidia0", "");
        put(
            NVIDIA,
            &format!(
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {kernel}  Release Build  (dvs)\nGCC version: 12.3\n"
            ),
        );
        put(
            "proc/driver/nvidia/gpus/0000:01:00.0/information",
            "Model: \t\t NVIDIA H200\nIRQ:   \t\t 16\nGPU UUID: \t GPU-7f\n",
        );
        put("proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n");
        put(&format!("usr/lib/x86_64-linux-gnu/libcuda.so.{library}"), "");
        let link = root.path().join("usr/lib/x86_64-linux-gnu/libcuda.so.1");
        std::os::unix::fs::symlink(format!("libcuda.so.{library}"), link).expect("link");
        for provider in ["cuda", "tensorrt"] {
            put(&format!("ort/libonnxruntime_providers_{provider}.so"), "");
        }
        let runtime = root.path().join("ort/libonnxruntime.so.1.31.1");
        let machine = Machine::at(root.path());
        (root, machine, runtime)
    }

    #[test]
    fn driver_and_library_of_one_version_are_no_trouble_and_of_two_are_named_with_both() {
        let (_root, same, runtime) = machine("580.95.05", "580.95.05");
        assert_eq!((same.missing("cuda", &runtime), same.missing("tensorrt", &runtime)), (None, None));
        let (_root, jetson, runtime) = machine("540.4.0", "1.1");
        assert_eq!(jetson.missing("cuda", &runtime), None);
        let (_root, other, runtime) = machine("580.82.07", "580.95.05");
        let why = other.missing("cuda", &runtime).expect("a mismatch");
        assert!(
            why.contains("in the kernel is 580.82.07") && why.contains("is 580.95.05: both must be of one version"),
            "{why}"
        );
    }

    #[test]
    fn provider_without_its_library_or_without_a_device_is_named_before_a_worker_starts() {
        let (root, here, runtime) = machine("580.95.05", "580.95.05");
        let plain = root.path().join("plain/libonnxruntime.so.1.31.1");
        let why = here.missing("tensorrt", &plain).expect("no library");
        assert!(why.contains("built without it") && why.contains("libonnxruntime_providers_tensorrt.so"), "{why}");
        fs::remove_dir_all(root.path().join("dev")).expect("remove");
        assert!(here.missing("cuda", &runtime).is_some_and(|why| why.contains("no NVIDIA device")));
        assert_eq!(here.missing("openvino", &plain), None);
    }

    #[test]
    fn engine_depends_on_the_versions_of_drivers_and_on_the_boards_of_this_machine() {
        let (root, here, _) = machine("580.95.05", "580.95.05");
        assert_eq!(here.driver(), "NVIDIA 580.95.05");
        assert_eq!(here.device(), "NVIDIA H200 GPU-7f, Some CPU @ 2 GHz");
        let bare = Machine::at(root.path().join("nowhere"));
        assert_eq!((bare.driver(), bare.device()), (String::new(), String::new()));
    }
}
