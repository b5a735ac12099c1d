//! The outbox on a disk that fails: random histories of disk errors, played against the real outbox with faults put below
//! it (`tests/faults/disk.c`, preloaded). The test runs its own program again with the faults in it.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
};

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
        self.set(&[(13, 0)]);
    }

    /// The same seed is the same dice, whatever was played before it.
    fn throw_anew(&self, seed: u64) {
        self.set(&[(12, (seed as i32) | 1)]);
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
            Fault::OneBadSync => self.set(&[(13, fastrand::i32(..12)), (10, 1)]),
            Fault::Hang => self.set(&[(8, 20), (9, 50)]),
        }
    }
}

impl World {
    /// What a power cut leaves of a copy of a life.
    pub(super) fn faults_cut(&mut self, from: &std::path::Path) {
        let word = format!("__cut__:{}:{}", from.display(), self.state_dir().display());
        if std::env::var_os(FAULTS).is_some() && fastrand::bool() {
            self.tell("power cut".into());
            assert!(File::open(self.dir.path().join(word)).is_err());
        }
    }
}

/// What came of histories.
#[derive(Default)]
struct Sum {
    accepted: usize,
    lost: usize,
    aside: usize,
    failing: Vec<u64>,
}

/// One history.
fn play(seed: u64, control: &Control, under: &std::path::Path, sum: &mut Sum) {
    fastrand::seed(seed);
    control.clear();
    control.throw_anew(seed);
    let dir = tempfile::tempdir_in(under).expect("folder");
    let mut world = World::on(dir, if fastrand::u8(..4) == 0 { 4 << 10 } else { 1 << 30 }, true);
    let played = catch_unwind(AssertUnwindSafe(|| {
        random_steps(&mut world, control);
        control.clear();
        world.tell("the disk works".into());
        let outbox = world.state_dir().join("outbox");
        let aside = std::fs::read_dir(outbox).into_iter().flatten().flatten();
        sum.aside += aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("quarantine")).count();
        world.end();
    }));
    control.clear();
    sum.accepted += world.accepted.len();
    sum.lost += world.lost_accepted;
    if played.is_err() {
        sum.failing.push(seed);
        let last = world.story.len().saturating_sub(60);
        let text = format!("KL_SEED={seed} failed; its last steps:\n    {}\n", world.story[last..].join("\n    "));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
}

fn random_steps(world: &mut World, control: &Control) {
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
            0 => {
                let fault = ALL[fastrand::usize(..ALL.len())];
                world.tell(format!("the disk: {fault:?}"));
                control.begin(fault);
            }
            1 | 2 => {
                world.tell("the disk works".into());
                control.clear();
            }
            _ => {}
        }
    }
}

#[test]
fn accepted_records_survive_disk_errors() {
    if !inside() {
        // Several at once: they wait for the disk, not for the processor.
        let (each, workers) = if is_long() { (250, 4) } else { (12, 2) };
        let first = std::env::var("KL_SEED").ok().and_then(|n| n.parse().ok());
        let first = first.unwrap_or_else(|| fastrand::u64(..1 << 32));
        let mut parts: Vec<_> = (0..workers).map(|worker| (first + worker * each, each)).collect();
        // A seed that failed once: a store that was wiped by an opening that failed was known to the process alone, which ended.
        parts.push((50643, 1));
        outside("accepted_records_survive_disk_errors", &parts);
    }
}

fn is_long() -> bool {
    std::env::var_os("KENTLEDGE_LONG").is_some()
}

/// In a process with the faults in it: plays the histories that it was given. Whether it is one.
fn inside() -> bool {
    let Some(control) = std::env::var_os(FAULTS) else { return false };
    let under = PathBuf::from(std::env::var_os(UNDER).expect("a folder"));
    let control = Control(File::options().read(true).write(true).open(control).expect("control"));
    let number = |key: &str, or: u64| std::env::var(key).ok().and_then(|n| n.parse().ok()).unwrap_or(or);
    let (first, n) = (number("KL_SEED", 1), number("KL_HISTORIES", 1));
    let (mut sum, mut played) = (Sum::default(), 0);
    for seed in first..first + n {
        let _ = std::fs::write(under.join("seed"), seed.to_string());
        play(seed, &control, &under, &mut sum);
        played += 1;
        // The short form ends at the first that fails.
        if !sum.failing.is_empty() && !is_long() {
            break;
        }
    }
    let Sum { accepted, lost, aside, failing } = sum;
    let text = format!(
        "MEASURED: {played} histories from {first}, {} errors, {accepted} records accepted, {lost} of them lost, \
         {aside} stores set aside, {} histories failed: {failing:?}\n",
        control.given(),
        failing.len()
    );
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).expect("stdout");
    assert!(failing.is_empty(), "{} of {played} histories failed: {failing:?}", failing.len());
    true
}

/// Builds the faults and plays histories in processes with them: from a seed on, so many, each at the same time.
fn outside(test: &str, parts: &[(u64, u64)]) {
    let dir = tempfile::tempdir().expect("folder");
    let (shim, under) = (dir.path().join("faults.so"), dir.path().join("disk"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/faults/disk.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source).status();
    assert!(built.expect("cc").success());
    std::fs::create_dir(&under).expect("folder");
    let measured: Vec<Result<String, String>> = std::thread::scope(|scope| {
        let workers: Vec<_> = parts
            .iter()
            .map(|part| {
                let (shim, dir, under) = (&shim, dir.path(), under.join(part.0.to_string()));
                scope.spawn(move || worker_of(test, shim, dir, &under, *part))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    let mut failed = Vec::new();
    for done in measured {
        let text = done.unwrap_or_else(|why| {
            failed.push(why.lines().next().unwrap_or_default().to_owned());
            why
        });
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Plays histories in a process of its own with the faults in it: what it measured, or with what it failed.
fn worker_of(
    test: &str,
    shim: &std::path::Path,
    dir: &std::path::Path,
    under: &std::path::Path,
    (first, n): (u64, u64),
) -> Result<String, String> {
    let control = dir.join(format!("control-{first}"));
    std::fs::create_dir(under).expect("folder");
    std::fs::write(&control, [0; 64]).expect("control");
    let mut own = Command::new(std::env::current_exe().expect("own program"));
    own.args(["--exact", &format!("outbox::tests::faults::{test}"), "--nocapture"]);
    own.env("LD_PRELOAD", shim).env(FAULTS, &control).env(UNDER, under);
    own.env("KL_SEED", first.to_string()).env("KL_HISTORIES", n.to_string());
    let done = own.output().expect("own program");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let measured = out.lines().find_map(|line| line.find("MEASURED").map(|at| line[at..].to_owned()));
    let seed = std::fs::read_to_string(under.join("seed")).unwrap_or_default();
    let measured = measured.unwrap_or_else(|| format!("ended in KL_SEED={seed}: {}", done.status));
    if done.status.success() { Ok(measured) } else { Err(format!("{measured}\n{err}")) }
}
