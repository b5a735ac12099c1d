//! Tests of the store: sequences, slots and keysets, also with unreadable files.

use super::*;

fn release(seq: u64) -> Release {
    Release {
        channel: "stable".into(),
        model: "m".into(),
        version: "1".into(),
        seq,
        expires_ms: 2000,
        created_ms: 500,
        device_class: vec!["any".into()],
        min_supervisor: semver::Version::new(0, 1, 0),
        files: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    }
}

fn device() -> Device {
    Device { class: "pi".into(), channel: "stable".into(), now_ms: 1000, version: semver::Version::new(0, 1, 0) }
}

#[test]
fn what_is_old_expired_or_for_others_is_not_admitted() {
    let try_it = |release: Release, device: Device| admit(&release, &device, 5, false);
    assert_eq!(try_it(release(6), device()), Ok(()));
    for (seq, word) in [(5, "not above 5"), (4, "not above 5"), (u64::MAX, "more than")] {
        assert!(try_it(release(seq), device()).is_err_and(|why| why.contains(word)), "{seq}");
    }
    assert_eq!(admit(&release(5), &device(), 5, true), Ok(()), "a bundle that a slot holds may be installed again");
    assert!(try_it(Release { expires_ms: 1000, ..release(6) }, device()).is_err_and(|why| why.contains("expired")));
    let other = Release { device_class: vec!["jetson".into()], ..release(6) };
    assert!(try_it(other, device()).is_err_and(|why| why.contains("jetson")));
    let beta = Release { channel: "beta".into(), ..release(6) };
    assert!(try_it(beta, device()).is_err_and(|why| why.contains("beta")));
    let newer = Release { min_supervisor: semver::Version::new(9, 0, 0), ..release(6) };
    assert!(try_it(newer, device()).is_err_and(|why| why.contains("9.0.0")));
}

#[test]
fn an_old_copy_put_back_lowers_nothing() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut store, damaged) = Store::open(dir.path());
    assert!(damaged.is_none() && store.high("m", 3) == 3);
    store.raise("m", 7).expect("raise");
    let path = dir.path().join("models/high.json");
    let old = fs::read(&path).expect("read");
    store.raise("m", 9).expect("raise");
    fs::write(&path, old).expect("put back");
    let (store, _) = Store::open(dir.path());
    assert_eq!((store.high("m", 3), store.high("m", 12)), (9, 12));
}

#[test]
fn a_disk_that_takes_nothing_keeps_nobody_from_starting() {
    let (mut store, damaged) = Store::open(Path::new("/proc/self/no-folder-can-be-here"));
    assert!(damaged.is_some() && store.line("m") == Line::default() && store.serving("m", 0).0.is_none());
    assert!(store.set_job(None).is_err() && store.raise("m", 1).is_err());
}

#[test]
fn slots_that_cannot_be_read_are_begun_anew() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut store, _) = Store::open(dir.path());
    let mut line = Line::default();
    line.stage(Held { sha256: "x".into(), version: "1".into(), seq: 1 });
    store.change("m", line.clone(), None).expect("change");
    assert_eq!(Store::open(dir.path()).0.line("m"), line);
    for copy in ["slots.json", "slots.json.bak"] {
        fs::write(dir.path().join("models").join(copy), "torn").expect("tear");
    }
    let (store, damaged) = Store::open(dir.path());
    assert!(damaged.is_some() && store.line("m") == Line::default());
}

#[test]
fn unreadable_slots_and_sequences_are_not_written_over_and_no_bundle_is_removed() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut store, _) = Store::open(dir.path());
    store.raise("m", 7).expect("raise");
    let mut line = Line::default();
    line.stage(Held { sha256: "x".into(), version: "1".into(), seq: 7 });
    store.change("m", line.clone(), None).expect("change");
    let bundle = dir.path().join("models/bundles/x.kmb");
    fs::write(&bundle, "bundle").expect("write");
    for name in ["slots.json", "high.json"] {
        let copies = ["", ".bak"].map(|end| dir.path().join("models").join(format!("{name}{end}")));
        copies.iter().for_each(|path| crate::host::keep::unreadable::make(path));
        let (mut store, trouble) = Store::open(dir.path());
        assert!(trouble.is_some_and(|why| why.contains("cannot be read")), "{name}");
        assert!(store.raise("m", 8).is_err() && store.set_job(None).is_err(), "{name} is not written over");
        store.sweep();
        assert!(bundle.exists(), "{name}: a bundle was removed");
        copies.iter().for_each(|path| crate::host::keep::unreadable::mend(path));
        let (store, trouble) = Store::open(dir.path());
        assert!(trouble.is_none() && store.line("m") == line && store.high("m", 0) == 7, "{name}");
    }
}

#[test]
fn unreadable_successor_keyset_is_not_taken_for_absent() {
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    let dir = tempfile::tempdir().expect("folder");
    let base = dir.path().join("keyset.json");
    let text = format!(
        r#"{{"_type":"kentledge.keyset","version":1,"expires":"2036-01-01T00:00:00Z",
            "keys":[{{"name":"ops","public":"{KEY}","roles":["command"]}}]}}"#
    );
    fs::write(&base, text).expect("write");
    let (mut store, _) = Store::open(dir.path());
    assert!(store.keyset(&base).is_ok_and(|(keys, trouble)| keys.version == 1 && trouble.is_none()));
    // The unreadable keyset may revoke a key that the previous keyset still holds.
    let next = dir.path().join("keys/2.json");
    std::os::unix::fs::symlink(&next, &next).expect("link");
    let why = store.keyset(&base).expect_err("an unreadable keyset is not skipped");
    assert!(why.contains("read keyset 2"), "{why}");
}
