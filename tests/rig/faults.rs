//! A disk that fails below the real daemon, whose calls pass through `tests/faults/disk.c`. Faults: an error number for
//! opening, reading, writing or syncing files below one folder, and a disk that hangs.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::Site;

/// The faults of files below one folder.
pub struct Faults {
    dir: TempDir,
    under: PathBuf,
    control: File,
}

/// What fails, as the control file numbers it.
#[derive(Debug, Clone, Copy)]
pub enum What {
    Open = 0,
    Read = 2,
    Write = 4,
    Sync = 6,
}

impl Faults {
    /// No fault yet.
    pub fn below(under: &Path) -> Self {
        let dir = TempDir::new().expect("folder");
        let source = crate::root().join("tests/faults/disk.c");
        let library = dir.path().join("faults.so");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
        assert!(built.expect("cc").success());
        fs::write(dir.path().join("control"), [0; 64]).expect("control");
        let control = File::options().write(true).read(true).open(dir.path().join("control")).expect("control");
        Self { dir, under: under.to_owned(), control }
    }

    /// A device whose disk has these faults.
    pub fn on(&self, site: Site) -> Site {
        let path = |name: &str| self.dir.path().join(name).to_str().expect("path").to_owned();
        site.with_env("LD_PRELOAD", &path("faults.so"))
            .with_env("KL_FAULTS", &path("control"))
            .with_env("KL_FAULTS_UNDER", self.under.to_str().expect("path"))
    }

    fn set(&self, at: u64, numbers: [u32; 2]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
        self.control.write_all_at(&bytes, at * 4).expect("control");
    }

    /// Everything of this kind fails.
    pub fn fail(&self, what: What, errno: nix::errno::Errno) {
        self.set(what as u64, [errno as u32, 1000]);
    }

    /// Every call takes so long.
    pub fn hang(&self, ms: u32) {
        self.set(8, [ms, 1000]);
    }

    /// The disk works again.
    pub fn end(&self) {
        (0..5).for_each(|n| self.set(2 * n, [0, 0]));
    }

    /// Faults that were met so far.
    pub fn met(&self) -> u32 {
        let mut number = [0; 4];
        self.control.read_exact_at(&mut number, 44).expect("control");
        u32::from_ne_bytes(number)
    }
}
