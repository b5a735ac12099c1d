//! Tests of the store: sequences, slots and keysets, also with unreadable files.

use super::*;
use crate::model::slot::{Held, ModelSlots};

/// What control does in several steps, for tests.
impl Store {
    /// Changes a model's slots and saves them.
    pub(crate) fn change(&mut self, model: &str, line: ModelSlots) -> Result<(), StoreError> {
        self.shelf.set_line(model, line);
        self.shelf.to_save().and_then(|saved| self.disk.save(&saved))
    }

    /// Raises the highest sequence of a model and saves it.
    pub(crate) fn raise(&mut self, model: &str, seq: u64) -> Result<(), StoreError> {
        self.shelf.raise(model, seq);
        self.shelf.high_to_save().and_then(|high| self.disk.save_high(&high))
    }
}

#[test]
fn an_old_copy_put_back_lowers_nothing() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut store, damaged) = Store::open(dir.path());
    assert!(damaged.is_none() && store.shelf.high("m", 3) == 3);
    store.raise("m", 7).expect("raise");
    let path = dir.path().join("models/high.json");
    let old = fs::read(&path).expect("read");
    store.raise("m", 9).expect("raise");
    fs::write(&path, old).expect("put back");
    let (store, _) = Store::open(dir.path());
    assert_eq!((store.shelf.high("m", 3), store.shelf.high("m", 12)), (9, 12));
}

#[test]
fn a_disk_that_takes_nothing_keeps_nobody_from_starting() {
    let (mut store, damaged) = Store::open(Path::new("/proc/self/no-folder-can-be-here"));
    assert!(damaged.is_some() && store.shelf.line("m") == ModelSlots::default() && store.serving("m", 0).0.is_none());
    assert!(store.change("m", ModelSlots::default()).is_err() && store.raise("m", 1).is_err());
}

#[test]
fn slots_that_cannot_be_read_are_begun_anew() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut store, _) = Store::open(dir.path());
    let mut line = ModelSlots::default();
    line.stage(Held { sha256: "x".into(), version: "1".into(), seq: 1 });
    store.change("m", line.clone()).expect("change");
    assert_eq!(Store::open(dir.path()).0.shelf.line("m"), line);
    for copy in ["slots.json", "slots.json.bak"] {
        fs::write(dir.path().join("models").join(copy), "torn").expect("tear");
    }
    let (store, damaged) = Store::open(dir.path());
    assert!(damaged.is_some() && store.shelf.line("m") == ModelSlots::default());
}

#[test]
fn unreadable_slots_and_sequences_are_not_written_over_and_no_bundle_is_removed() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut store, _) = Store::open(dir.path());
    store.raise("m", 7).expect("raise");
    let mut line = ModelSlots::default();
    line.stage(Held { sha256: "x".into(), version: "1".into(), seq: 7 });
    store.change("m", line.clone()).expect("change");
    let bundle = dir.path().join("models/bundles/x.kmb");
    fs::write(&bundle, "bundle").expect("write");
    for name in ["slots.json", "high.json"] {
        let copies = ["", ".bak"].map(|end| dir.path().join("models").join(format!("{name}{end}")));
        copies.iter().for_each(|path| crate::host::keep::unreadable::make(path));
        let (mut store, trouble) = Store::open(dir.path());
        assert!(trouble.is_some_and(|why| why.contains("cannot be read")), "{name}");
        assert!(store.raise("m", 8).is_err() && store.shelf.to_save().is_err(), "{name} is not written over");
        copies.iter().for_each(|path| crate::host::keep::unreadable::mend(path));
        let (store, trouble) = Store::open(dir.path());
        assert!(trouble.is_none() && store.shelf.line("m") == line && store.shelf.high("m", 0) == 7, "{name}");
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
    assert!(
        store.disk.keyset(&mut store.shelf, &base).is_ok_and(|(keys, trouble)| keys.version == 1 && trouble.is_none())
    );
    // The unreadable keyset may revoke a key that the previous keyset still holds.
    let next = dir.path().join("keys/2.json");
    std::os::unix::fs::symlink(&next, &next).expect("link");
    let why = store.disk.keyset(&mut store.shelf, &base).expect_err("an unreadable keyset is not skipped");
    assert!(why.to_string().contains("read keyset 2"), "{why}");
}
