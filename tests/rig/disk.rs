//! A disk of its own: an ext4 file system in an image file, mounted over a loop device. Needs root. Faults: power cut
//! (the image copied while the writer stands still; what was not synced is not in it), filled, given space, remounted
//! read-only, hanging (every write waits until it is let go), torn (bits flipped, pages zeroed, files cut short). Counts what was written to the medium.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

pub struct Disk {
    dir: TempDir,
    image: PathBuf,
    device: String,
    mounted: bool,
}

fn run(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

impl Disk {
    /// An empty one of so many MiB; `None`, said loudly, where loop devices cannot be had.
    pub fn new(mib: u64) -> Option<Self> {
        let dir = TempDir::new().expect("folder");
        let image = dir.path().join("image");
        fs::File::create(&image).and_then(|f| f.set_len(mib << 20)).expect("image");
        // Without lazy initialisation nothing but the test writes; a journal as every card has it.
        let made =
            run("mkfs.ext4", &["-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", image.to_str()?]);
        made.and_then(|_| Self::mount(dir, image)).or_else(|| {
            crate::skipped("no loop device with ext4 here (root and /dev/loop-control are needed)");
            None
        })
    }

    fn mount(dir: TempDir, image: PathBuf) -> Option<Self> {
        let point = dir.path().join("mnt");
        fs::create_dir_all(&point).expect("mount point");
        let device = run("losetup", &["--find", "--show", image.to_str()?])?;
        let mut disk = Self { dir, image, device, mounted: false };
        run("mount", &["-o", "noatime,errors=remount-ro", &disk.device, point.to_str()?])?;
        disk.mounted = true;
        Some(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn stat(&self) -> String {
        let name = self.device.trim_start_matches("/dev/");
        fs::read_to_string(format!("/sys/block/{name}/stat")).expect("block counters")
    }

    /// Bytes written to the medium since it was made.
    pub fn written(&self) -> u64 {
        // Sectors written, in 512 bytes: the seventh field (Documentation/block/stat.rst).
        self.stat().split_whitespace().nth(6).and_then(|n| n.parse::<u64>().ok()).expect("sectors") * 512
    }

    /// What the medium holds at this moment, as another disk: the writers must stand still. `None` when the kernel wrote
    /// while it was copied: such a copy is torn as no power cut tears.
    pub fn cut(&self) -> Option<Self> {
        let dir = TempDir::new().expect("folder");
        let image = dir.path().join("image");
        let before = self.stat();
        // The page cache of the image file is the medium; reading through it sees each write the loop device was given.
        assert!(
            Command::new("cp").args(["--sparse=always"]).arg(&self.image).arg(&image).status().expect("cp").success()
        );
        if self.stat() != before {
            return None;
        }
        Self::mount(dir, image)
    }

    /// Fills it to the last byte. Returns the file to remove.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).expect("filler");
        for size in [1 << 16, 4096, 512, 1] {
            while file.write_all(&vec![0xA5; size]).and_then(|()| file.sync_data()).is_ok() {}
        }
        path
    }

    /// Bytes free.
    pub fn free(&self) -> u64 {
        let text = run("stat", &["-f", "-c", "%a %S", self.path().to_str().expect("path")]).expect("stat -f");
        text.split(' ').map(|n| n.parse::<u64>().expect("number")).product()
    }

    /// The file system meets an error, as ext4 does on a broken card, and turns read-only until it is mounted again.
    pub fn fail(&self) {
        let name = self.device.trim_start_matches("/dev/");
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "broken").expect("an ext4 error");
    }

    /// It hangs: every write and every fsync waits, in the kernel, until the result is dropped.
    pub fn freeze(&self) -> Frozen {
        let path = self.path();
        assert!(run("fsfreeze", &["--freeze", path.to_str().expect("path")]).is_some(), "freeze the disk");
        Frozen(path)
    }

    /// Read-only, or not; no file may be open for writing.
    pub fn read_only(&self, yes: bool) {
        let how = if yes { "remount,ro" } else { "remount,rw" };
        let done = run("mount", &["-o", how, self.path().to_str().expect("path")]);
        assert!(done.is_some(), "{how}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let point = self.path();
            let _ = run("umount", &["--lazy", point.to_str().unwrap_or_default()]);
        }
        let _ = run("losetup", &["--detach", &self.device]);
    }
}

/// A disk that hangs.
pub struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = run("fsfreeze", &["--unfreeze", self.0.to_str().unwrap_or_default()]);
    }
}

/// Ways to tear a file.
#[derive(Debug, Clone, Copy)]
pub enum Tear {
    FlippedBit,
    ZeroedPage,
    CutShort,
}

impl Tear {
    pub const ALL: [Tear; 3] = [Tear::FlippedBit, Tear::ZeroedPage, Tear::CutShort];

    /// Tears a file at a place between 0 and 1 of its length. Whether anything changed.
    pub fn apply(self, path: &Path, at: f64) -> bool {
        let mut file = fs::OpenOptions::new().read(true).write(true).open(path).expect("open");
        let length = file.metadata().expect("length").len();
        let place = ((length as f64 * at) as u64).min(length.saturating_sub(1));
        match self {
            _ if length == 0 => false,
            Self::FlippedBit => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, place).expect("read");
                file.write_all_at(&[byte[0] ^ (1 << (place % 8))], place).expect("write");
                true
            }
            Self::ZeroedPage => {
                let mut page = vec![0; 4096];
                file.seek(SeekFrom::Start(place / 4096 * 4096)).expect("seek");
                let n = file.read(&mut page).expect("read");
                file.write_all_at(&vec![0; n], place / 4096 * 4096).expect("write");
                page[..n].iter().any(|byte| *byte != 0)
            }
            Self::CutShort => {
                file.set_len(place).expect("cut");
                true
            }
        }
    }
}
