//! A worker that was taken over: `hostile.c`, compiled as a library that the real worker loads as its ONNX Runtime. Faults: each
//! `Crime`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::Site;

/// What it does.
#[derive(Debug, Clone, Copy)]
pub enum Crime {
    /// Tries what it can and reports what was let through.
    Try = 1,
    /// Answers with fewer sizes than there are outputs.
    NoSizes,
    /// Answers with a size that makes a sum wrap.
    WrappingSizes,
    /// Raises the counter of windows that are done and never answers.
    RaiseDone,
    /// Says that four billion windows are done, and ends.
    DoneAtOnce,
    /// Writes 8 MB to its standard error at each ring.
    FloodStderr,
    /// Shortens the shared memory.
    Shorten,
    /// Declares an input whose size wraps.
    HugeShape,
    /// Answers each ring twice.
    StaleAnswers,
    /// Sends two descriptors with its answer, which is an error.
    SendDescriptors,
}

/// The library, compiled into this folder.
#[track_caller]
pub fn library(folder: &Path, crime: Crime) -> PathBuf {
    let library = folder.join("libonnxruntime.so");
    let source = crate::root().join("tests/rig/hostile.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1"]).arg(format!("-DMODE={}", crime as u32)).arg("-o").arg(&library).arg(source);
    let done = cc.output().expect("cc, which Rust links with");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    library
}

impl Site {
    /// Workers load this instead of ONNX Runtime.
    #[track_caller]
    pub fn with_hostile_runtime(self, crime: Crime) -> Self {
        let library = library(self.dir.path(), crime);
        self.with_more_models(&format!("runtime = \"{}\"", library.display()))
    }
}
