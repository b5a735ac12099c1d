//! The outbox on a disk that fails: random histories of disk errors, played against the real outbox with faults put below
//! it (`tests/faults/disk.c`, preloaded). The test runs its own program again with the faults in it.

use std::{fs::File, os::unix::fs::FileExt, process::Command};

use super::*;

const FAULTS: &str = "KL_FAULTS";
const UNDER: &str = "KL_FAULTS_UNDER";

/// A fault for some time.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Open,
    Read,
    Write,
    Full,
    ReadOnly,
    Sync,
    OneBadSync,
    Hang,
}

const ALL: [Fault; 8] =
    [Fault::Open, Fault::Read, Fault::Write, Fault::Full, Fault::ReadOnly, Fault::Sync, Fault::OneBadSync, Fault::Hang];

/// The control file of the faults.
struct Control(File);

impl Control {
    fn set(&self, numbers: &[(u64, i32)]) {
        for (at, number) in numbers {
            self.0.write_all_at(&number.to_ne_bytes(), at * 4).expect("control");
        }
    }

    fn clear(&self) {
        self.set(&(0..11).map(|at| (at, 0)).collect::<Vec<_>>());
    }

    fn given(&self) -> u32 {
        let mut number = [0; 4];
        self.0.read_exact_at(&mut number, 44).expect("control");
        u32::from_ne_bytes(number)
    }

    fn begin(&self, fault: Fault) {
        use nix::errno::Errno::{EIO, EMFILE, ENFILE, ENOSPC, EROFS};
        let often = fastrand::choice([1000, 1000, 300, 30]).expect("one");
        match fault {
            Fault::Open => self.set(&[(0, fastrand::choice([EMFILE, ENFILE, EIO]).expect("one") as i32), (1, often)]),
            Fault::Read => self.set(&[(2, EIO as i32), (3, often)]),
            Fault::Write => self.set(&[(4, EIO as i32), (5, often)]),
            Fault::Full => self.set(&[(4, ENOSPC as i32), (5, often)]),
            Fault::ReadOnly => self.set(&[(0, EROFS as i32), (1, 1000), (4, EROFS as i32), (5, 1000)]),
            Fault::Sync => self.set(&[(6, EIO as i32), (7, often)]),
            Fault::OneBadSync => self.set(&[(10, 1)]),
            Fault::Hang => self.set(&[(8, 20), (9, 50)]),
        }
    }
}

impl World {
    /// What a power cut leaves of a copy of a life.
    pub(super) fn faults_cut(&self, from: &std::path::Path) {
        let word = format!("__cut__:{}:{}", from.display(), self.state_dir().display());
        if std::env::var_os(FAULTS).is_some() && fastrand::bool() {
            assert!(File::open(self.dir.path().join(word)).is_err());
        }
    }
}

/// One history. Returns how many records were accepted, and how many stores were set aside.
fn play(seed: u64, control: &Control, under: &std::path::Path) -> (usize, usize) {
    fastrand::seed(seed);
    control.clear();
    let dir = tempfile::tempdir_in(under).expect("folder");
    let mut world = World::on(dir, if fastrand::u8(..4) == 0 { 4 << 10 } else { 1 << 30 }, true);
    for _ in 0..fastrand::usize(10..60) {
        let step = match fastrand::u8(..20) {
            0..6 => Step::Put { stream: fastrand::u16(..4), n: fastrand::u16(1..300) },
            6 => Step::Lost { stream: fastrand::u16(..4), n: fastrand::u16(1..9) },
            7..9 => Step::Send { n: fastrand::u8(1..20) },
            9..11 => Step::Ack { from: fastrand::u8(..), n: fastrand::u8(1..20) },
            11 => Step::Online,
            12 => Step::Offline,
            13 => Step::Restart,
            14 if fastrand::bool() => Step::Kill,
            _ => Step::Wait { turns: fastrand::u8(1..40) },
        };
        world.play(&step);
        match fastrand::u8(..4) {
            0 => control.begin(ALL[fastrand::usize(..ALL.len())]),
            1 | 2 => control.clear(),
            _ => {}
        }
    }
    control.clear();
    let outbox = world.state_dir().join("outbox");
    let aside = std::fs::read_dir(outbox).into_iter().flatten().flatten();
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("quarantine")).count();
    let accepted = world.accepted.len();
    world.end();
    (accepted, aside)
}

#[test]
fn accepted_records_survive_disk_errors() {
    if let Some(control) = std::env::var_os(FAULTS) {
        let under = PathBuf::from(std::env::var_os(UNDER).expect("a folder"));
        let control = Control(File::options().read(true).write(true).open(control).expect("control"));
        let number = |key: &str, or: u64| std::env::var(key).ok().and_then(|n| n.parse().ok()).unwrap_or(or);
        let (first, n) = (number("KL_SEED", 1), number("KL_HISTORIES", 1));
        let (mut accepted, mut aside) = (0, 0);
        for seed in first..first + n {
            let _ = std::fs::write(under.join("seed"), seed.to_string());
            let (more, set_aside) = play(seed, &control, &under);
            (accepted, aside) = (accepted + more, aside + set_aside);
        }
        let text = format!(
            "MEASURED: {n} histories from {first}, {} errors, {accepted} records accepted, {aside} stores set aside\n",
            control.given()
        );
        std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).expect("stdout");
        return;
    }
    let dir = tempfile::tempdir().expect("folder");
    let (shim, under) = (dir.path().join("faults.so"), dir.path().join("disk"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/faults/disk.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source).status();
    assert!(built.expect("cc").success());
    std::fs::create_dir(&under).expect("folder");
    // Several at once: they wait for the disk, not for the processor.
    let (each, workers) = if std::env::var_os("KENTLEDGE_LONG").is_some() { (250, 4) } else { (12, 2) };
    let first = std::env::var("KL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or_else(|| fastrand::u64(..1 << 32));
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let (shim, under, dir) = (&shim, under.join(worker.to_string()), dir.path());
            scope.spawn(move || {
                let control = dir.join(format!("control-{worker}"));
                std::fs::create_dir(&under).expect("folder");
                std::fs::write(&control, [0; 64]).expect("control");
                let mut own = Command::new(std::env::current_exe().expect("own program"));
                own.args(["--exact", "outbox::tests::faults::accepted_records_survive_disk_errors", "--nocapture"]);
                own.env("LD_PRELOAD", shim).env(FAULTS, &control).env(UNDER, &under);
                own.env("KL_SEED", (first + worker * each).to_string()).env("KL_HISTORIES", each.to_string());
                let done = own.output().expect("own program");
                let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
                let seed = std::fs::read_to_string(under.join("seed")).unwrap_or_default();
                let tail: String = err.chars().rev().take(3000).collect::<Vec<_>>().into_iter().rev().collect();
                assert!(done.status.success(), "KL_SEED={seed}: {}: {out}\n{tail}", done.status);
                let measured =
                    out.lines().find(|line| line.contains("MEASURED")).expect("the inner test ran").to_owned();
                let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{measured}\n").as_bytes());
            });
        }
    });
}
