//! Engines: sealed as they were built, and found damaged, foreign or stale where they are not what was sealed.

use super::*;

fn made_for() -> MadeFor {
    MadeFor {
        model: "ab".repeat(32),
        window: "64 rows of 8".into(),
        provider: "tensorrt".into(),
        runtime: "libonnxruntime.so.1.31.1 (0123)".into(),
        driver: "NVIDIA 580.95.05".into(),
        device: "NVIDIA H200".into(),
    }
}

fn built(engines: &Engines, made_for: &MadeFor, bundle: Option<&str>) -> PathBuf {
    let building = engines.build(made_for).expect("begins");
    fs::write(building.files().join("a.engine"), [7u8; 5000]).expect("write");
    fs::write(building.files().join("a.profile"), b"profile").expect("write");
    building.seal(bundle.map(str::to_owned)).expect("sealed")
}

fn damage(engines: &Engines) -> String {
    match engines.find(&made_for()) {
        Err(Unusable::Damaged(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn engine_is_found_as_it_was_sealed_and_not_before() {
    let dir = tempfile::tempdir().expect("folder");
    let engines = Engines::below(dir.path());
    assert_eq!(engines.find(&made_for()), Err(Unusable::Absent));
    let building = engines.build(&made_for()).expect("begins");
    fs::write(building.files().join("a.engine"), b"half").expect("write");
    assert_eq!(engines.find(&made_for()), Err(Unusable::Absent));
    drop(building);
    assert_eq!(
        fs::read_dir(dir.path().join("engines")).expect("folder").count(),
        0,
        "a build that ended leaves nothing"
    );
    let files = built(&engines, &made_for(), None);
    assert_eq!(engines.find(&made_for()), Ok(files));
}

#[test]
fn engine_with_any_byte_changed_cut_added_or_replaced_is_damaged_and_says_which_file() {
    let dir = tempfile::tempdir().expect("folder");
    let engines = Engines::below(dir.path());
    let engine = |files: &Path| files.join("a.engine");
    let whole = [7u8; 5000];
    for at in [0, 1, 2500, 4999] {
        let files = built(&engines, &made_for(), None);
        let mut bytes = whole;
        bytes[at] ^= 1;
        fs::write(engine(&files), bytes).expect("write");
        assert_eq!(damage(&engines), "file `a.engine` was changed");
        fs::write(engine(&files), whole).expect("write");
        assert_eq!(engines.find(&made_for()), Ok(files));
    }
    let files = built(&engines, &made_for(), None);
    fs::write(engine(&files), &whole[..4999]).expect("write");
    assert_eq!(damage(&engines), "file `a.engine` was changed");
    fs::remove_file(engine(&files)).expect("remove");
    assert_eq!(damage(&engines), "file `a.engine` is missing");
    // The same bytes behind a link may be others a moment later.
    fs::write(dir.path().join("elsewhere"), whole).expect("write");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), engine(&files)).expect("link");
    assert_eq!(damage(&engines), "`a.engine` is no plain file");
    let files = built(&engines, &made_for(), None);
    fs::write(files.join("b.engine"), b"more").expect("write");
    assert_eq!(damage(&engines), "file `b.engine` was added");
}

#[test]
fn torn_seal_is_damage_and_one_good_copy_is_enough() {
    let dir = tempfile::tempdir().expect("folder");
    let engines = Engines::below(dir.path());
    let files = built(&engines, &made_for(), None);
    let seal = files.with_file_name(SEAL);
    fs::write(&seal, "torn").expect("write");
    assert_eq!(engines.find(&made_for()), Ok(files));
    fs::write(seal.with_extension("json.bak"), "torn").expect("write");
    assert_eq!(damage(&engines), "seal.json cannot be read");
}

#[test]
fn engine_of_another_model_runtime_driver_or_device_is_not_used_and_says_what_differs() {
    let dir = tempfile::tempdir().expect("folder");
    let engines = Engines::below(dir.path());
    built(&engines, &made_for(), None);
    let now = |change: &dyn Fn(&mut MadeFor)| {
        let mut now = made_for();
        change(&mut now);
        engines.find(&now).expect_err("not this one").to_string()
    };
    let why = now(&|now| now.driver = "NVIDIA 590.10".into());
    assert!(why.ends_with("it was made for driver NVIDIA 580.95.05, and this is NVIDIA 590.10"), "{why}");
    assert!(now(&|now| now.device = String::new()).ends_with("device NVIDIA H200, and this is none"));
    assert!(now(&|now| now.runtime = "libonnxruntime.so.1.32.0".into()).contains("runtime libonnxruntime.so.1.31.1"));
    // These are other engines, beside this one.
    for change in [&|now: &mut MadeFor| now.model = "cd".repeat(32), &|now: &mut MadeFor| now.window = "32".into()]
        as [&dyn Fn(&mut MadeFor); 2]
    {
        assert_eq!(now(change), "there is none yet");
    }
    // What was sealed for one model, put in the place of another.
    let other = MadeFor { model: "cd".repeat(32), ..made_for() };
    let folder = dir.path().join("engines");
    fs::rename(folder.join(made_for().key()), folder.join(other.key())).expect("rename");
    assert!(matches!(engines.find(&other), Err(Unusable::Foreign(why)) if why.contains("made for model abab")));
}

#[test]
fn engine_that_fits_again_after_an_update_replaces_the_stale_one() {
    let dir = tempfile::tempdir().expect("folder");
    let engines = Engines::below(dir.path());
    built(&engines, &made_for(), None);
    let updated = MadeFor { driver: "NVIDIA 590.10".into(), ..made_for() };
    let files = built(&engines, &updated, None);
    assert_eq!(
        (engines.find(&updated), fs::read_dir(dir.path().join("engines")).expect("folder").count()),
        (Ok(files), 1)
    );
}

#[test]
fn engine_is_built_once_at_a_time() {
    let dir = tempfile::tempdir().expect("folder");
    let engines = Engines::below(dir.path());
    let first = engines.build(&made_for()).expect("begins");
    assert!(engines.build(&made_for()).expect_err("twice").to_string().contains("another pipeline"));
    engines.sweep(&[]);
    assert!(first.files().is_dir(), "a build in progress is swept by nothing");
    drop(first);
    engines.build(&made_for()).expect("again");
}

#[test]
fn what_a_builder_must_not_leave_is_not_sealed() {
    let dir = tempfile::tempdir().expect("folder");
    let engines = Engines::below(dir.path());
    let refused = |leave: &dyn Fn(&Path)| {
        let building = engines.build(&made_for()).expect("begins");
        leave(&building.files());
        building.seal(None).expect_err("refused").to_string()
    };
    assert_eq!(refused(&|_| {}), "the provider wrote no file");
    assert!(refused(&|files| fs::create_dir(files.join("d")).expect("folder")).contains("`d` is no plain file"));
    let link = |files: &Path| std::os::unix::fs::symlink("/etc/passwd", files.join("l")).expect("link");
    assert!(refused(&link).contains("`l` is no plain file"));
    let pipe = |files: &Path| nix::unistd::mkfifo(&files.join("p"), nix::sys::stat::Mode::S_IRUSR).expect("pipe");
    assert!(refused(&pipe).contains("`p` is no plain file"));
    let many = |files: &Path| {
        for i in 0..=limits::ENGINE_FILES {
            fs::write(files.join(i.to_string()), b"x").expect("write");
        }
    };
    assert!(refused(&many).contains("more than 32 files"));
    let large = |files: &Path| {
        let file = File::create(files.join("large")).expect("file");
        file.set_len(limits::ENGINE_BYTES + 1).expect("sparse");
    };
    assert!(refused(&large).contains("it has more than"));
    assert_eq!(engines.find(&made_for()), Err(Unusable::Absent));
}

#[test]
fn engines_leave_with_their_bundle_and_the_oldest_when_they_are_too_many() {
    let dir = tempfile::tempdir().expect("folder");
    let engines = Engines::below(dir.path());
    let of = |i: usize| MadeFor { model: format!("{i:064}"), ..made_for() };
    built(&engines, &of(0), Some("in-a-slot"));
    built(&engines, &of(1), Some("gone"));
    built(&engines, &of(2), None);
    fs::create_dir_all(dir.path().join("engines/left.new/files")).expect("what a kill leaves");
    engines.sweep(&["in-a-slot"]);
    assert!(engines.find(&of(0)).is_ok() && engines.find(&of(2)).is_ok());
    assert_eq!(engines.find(&of(1)), Err(Unusable::Absent));
    assert!(!dir.path().join("engines/left.new").exists());
    for i in 3..3 + limits::ENGINES {
        let files = built(&engines, &of(i), None);
        let seal = File::options().append(true).open(files.with_file_name(SEAL)).expect("seal");
        let sealed = seal.metadata().and_then(|meta| meta.modified()).expect("time");
        seal.set_modified(sealed + std::time::Duration::from_secs(i as u64)).expect("time");
    }
    engines.sweep(&["in-a-slot"]);
    assert_eq!(fs::read_dir(dir.path().join("engines")).expect("folder").count(), limits::ENGINES);
    assert!((3..3 + limits::ENGINES).all(|i| engines.find(&of(i)).is_ok()), "the newest stay");
}
