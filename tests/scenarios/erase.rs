//! The erasure, by the very script that the image runs before /data is mounted, on a loop image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const MARKER: &[u8] = b"KENTLEDGE-SECRET-MARKER-7f3a";

fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().expect(program);
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text").trim().to_owned()
}

/// An image on a loop device; both go when it is dropped.
struct Loop {
    dir: tempfile::TempDir,
    device: String,
}

impl Loop {
    fn new(mib: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("folder");
        let image = dir.path().join("image");
        fs::File::create(&image).and_then(|f| f.set_len(mib << 20)).expect("image");
        let made = Command::new("losetup").args(["--show", "-f"]).arg(&image).output().ok()?;
        let device = String::from_utf8(made.stdout).expect("text").trim().to_owned();
        made.status.success().then_some(Self { dir, device })
    }

    fn mounted<T>(&self, act: impl FnOnce(&Path) -> T) -> T {
        let at: PathBuf = self.dir.path().join("mnt");
        fs::create_dir_all(&at).expect("folder");
        run("mount", &[&self.device, &at.display().to_string()]);
        let done = act(&at);
        run("umount", &[&at.display().to_string()]);
        done
    }

    fn markers(&self) -> usize {
        let bytes = fs::read(self.dir.path().join("image")).expect("image");
        bytes.windows(MARKER.len()).filter(|w| *w == MARKER).count()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

fn script(device: &str) {
    run(&rig::root().join("systemd/kentledge-erase").display().to_string(), &[device]);
}

#[test]
fn what_was_on_data_is_gone_from_the_raw_partition_and_only_where_it_was_asked_for() {
    let Some(image) = Loop::new(64) else {
        return rig::skipped("no loop device here: erase");
    };
    run("mkfs.ext4", &["-q", "-F", "-L", "data", &image.device]);
    let text = MARKER.repeat(20_000);
    image.mounted(|at| {
        fs::create_dir_all(at.join("kentledge")).expect("folder");
        for name in ["live", "deleted", "renamed", "kentledge/inside"] {
            fs::write(at.join(name), &text).expect("write");
        }
        run("sync", &[]);
        fs::remove_file(at.join("deleted")).expect("remove");
        fs::rename(at.join("renamed"), at.join("new-name")).expect("rename");
    });
    let head = |seq: u64| format!("{{\"seq\":{seq},\"prev\":\"x\",\"sha256\":\"{}\"}}\n", "ab".repeat(32));
    image.mounted(|at| {
        fs::create_dir_all(at.join("kentledge/audit")).expect("folder");
        fs::write(at.join("kentledge/audit/000000000001.jsonl"), head(1) + &head(2)).expect("write");
        // A power cut left part of an entry.
        fs::write(at.join("kentledge/audit/000000000003.jsonl"), head(3) + "{\"seq\":4").expect("write");
    });
    let before = image.markers();
    assert!(before >= 60_000, "{before} markers of 80,000: deleted ones as well");
    script(&image.device);
    assert_eq!(image.markers(), before, "erased without a request");
    image.mounted(|at| assert!(at.join("live").exists()));
    image.mounted(|at| fs::write(at.join("kentledge/erase.request"), "erase\n").expect("ask"));
    script(&image.device);
    assert_eq!(image.markers(), 0);
    assert_eq!(run("blkid", &["-p", "-o", "value", "-s", "LABEL", &image.device]), "data");
    image.mounted(|at| {
        let names: Vec<_> = fs::read_dir(at).expect("list").map(|e| e.expect("entry").file_name()).collect();
        assert!(names.len() == 2 && names.iter().all(|name| name == "lost+found" || name == "kentledge"), "{names:?}");
        let left: Vec<_> = fs::read_dir(at.join("kentledge")).expect("list").collect();
        assert_eq!(left.len(), 1, "nothing but the head of the audit log: {left:?}");
        let erased = fs::read_to_string(at.join("kentledge/erased")).expect("the head");
        assert_eq!(erased, format!("3:{}\n", "ab".repeat(32)));
    });
    rig::measured(&format!(
        "erase: {before} markers in live, deleted and renamed files before, 0 in the raw image after"
    ));
    // Cut in between: the next start goes on.
    image.mounted(|at| fs::write(at.join("again"), &text).expect("write"));
    let mark = format!("KENTLEDGE-ERASING 57:{}", "cd".repeat(32));
    let bytes = [mark.as_bytes(), &vec![0; 65_536 - mark.len()]].concat();
    fs::OpenOptions::new()
        .write(true)
        .open(&image.device)
        .and_then(|mut f| std::io::Write::write_all(&mut f, &bytes))
        .expect("cut");
    script(&image.device);
    assert_eq!(image.markers(), 0);
    image.mounted(|at| {
        assert!(!at.join("again").exists());
        let erased = fs::read_to_string(at.join("kentledge/erased")).expect("the head");
        assert_eq!(erased, format!("57:{}\n", "cd".repeat(32)));
    });
}
