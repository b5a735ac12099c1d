//! Opening a store that is whole, damaged, or deadly.

use super::*;
use crate::outbox::Sealed;

fn opening(dir: &Path, program: Option<&str>) -> Opening {
    let keep = Keep::open(dir, "outbox").expect("keep");
    Opening::new(&dir.join("outbox"), keep, program.map(PathBuf::from))
}

/// A store with ten messages, the first two of which are gone again.
fn filled(dir: &Path) {
    let opened = opening(dir, None).open(&|| {});
    assert!(opened.reports.is_empty() && opened.lost.is_empty(), "{opened:?}");
    let mut store = opened.store.expect("store");
    let packed: Vec<Packed> = (1..=10).map(|seq| Packed::new(&Sealed::sample(seq, 9)).expect("packed")).collect();
    let keys = store.insert(&packed).expect("insert");
    store.commit().expect("commit");
    store.remove(keys[..2].iter().copied()).expect("remove");
    store.commit().expect("commit");
}

#[test]
fn a_store_that_kills_whoever_opens_it_is_set_aside_and_what_is_in_it_is_taken_over() {
    let dir = tempfile::tempdir().expect("folder");
    filled(dir.path());
    // The probe is `false`: it exits with an error at once.
    let opened = opening(dir.path(), Some("false")).open(&|| {});
    assert!(opened.reports[0].1.contains("the process that tried it died"), "{opened:?}");
    assert!(opened.lost.is_empty());
    let store = opened.store.expect("store");
    let seqs: Vec<u64> = std::iter::successors(store.next(None), |key| store.next(Some(*key)))
        .map(|key| store.read(key).expect("read").seqs().0)
        .collect();
    assert_eq!(seqs, (3..=10).collect::<Vec<_>>(), "not what was acknowledged");
    assert_eq!(opening(dir.path(), None).disk.quarantines(), [1]);
}

#[test]
fn an_opening_that_was_begun_too_often_and_never_ended_is_not_tried_again() {
    let dir = tempfile::tempdir().expect("folder");
    filled(dir.path());
    for begun in 0..=limits::OPEN_ATTEMPTS {
        let opening = opening(dir.path(), None);
        let (_never_ends, before) = Attempt::begin(&opening.keep, "store").expect("begin");
        assert_eq!(before, begun);
    }
    let opened = opening(dir.path(), None).open(&|| {});
    assert!(opened.reports[0].1.contains("never came to an end"), "{opened:?}");
    assert_eq!(opened.store.expect("store").records(), 8);
    let opened = opening(dir.path(), None).open(&|| {});
    assert!(opened.reports.is_empty(), "{opened:?}");
    assert_eq!(opened.store.expect("store").records(), 8);
}

#[test]
fn what_sled_would_wipe_after_a_damaged_place_is_found_all_the_same() {
    let dir = tempfile::tempdir().expect("folder");
    filled(dir.path());
    let db = dir.path().join("outbox/store/db");
    let mut bytes = fs::read(&db).expect("read");
    // In sled's own structure, before the first message.
    let first = memchr::memmem::find(&bytes, &0xFD2F_B528_u32.to_le_bytes()).expect("a message");
    bytes[first / 2] ^= 0xFF;
    fs::write(&db, bytes).expect("write");
    let opened = opening(dir.path(), None).open(&|| {});
    assert_eq!(opened.reports.len(), 1, "{opened:?}");
    assert_eq!(opened.store.expect("store").records(), 8);
}

#[test]
fn store_that_cannot_be_read_now_stays_where_it_is() {
    let dir = tempfile::tempdir().expect("folder");
    filled(dir.path());
    let mut opening = opening(dir.path(), None);
    // Another process holds the store: an error of the disk as sled sees it.
    let held = Store::open(&dir.path().join("outbox/store"), &|| {}).expect("open");
    let opened = opening.open(&|| {});
    assert!(opened.store.is_none() && opened.reports.is_empty() && opened.lost.is_empty(), "{opened:?}");
    assert!(opened.waiting.is_some_and(|why| why.contains("lock")));
    drop(held);
    let opened = opening.open(&|| {});
    assert_eq!(opened.store.expect("store").records(), 8);
    assert!(opening.disk.quarantines().is_empty());
}

#[test]
fn markers_that_could_not_be_removed_are_no_failed_openings() {
    let dir = tempfile::tempdir().expect("folder");
    filled(dir.path());
    let mut opening = opening(dir.path(), None);
    for _ in 0..=limits::OPEN_ATTEMPTS {
        let begun = Attempt::begin(&opening.keep, "store").expect("begin");
        // What `attempt` does where the disk does not let it remove the marker.
        opening.ended += 1;
        drop(begun);
    }
    let opened = opening.open(&|| {});
    assert_eq!(opened.store.expect("store").records(), 8);
    assert!(opening.disk.quarantines().is_empty());
}

#[test]
fn store_set_aside_by_a_start_that_ended_early_is_salvaged_by_the_next() {
    let dir = tempfile::tempdir().expect("folder");
    filled(dir.path());
    let outbox = dir.path().join("outbox");
    let mark = Watermark::read(&outbox.join("watermark")).expect("read").expect("mark");
    Todo::new(mark.oldest, mark.records).save(&outbox.join("store")).expect("marker");
    let mut opening = opening(dir.path(), None);
    assert_eq!(opening.disk.set_aside(&outbox.join("store")).expect("set aside"), 1);
    let opened = opening.open(&|| {});
    assert_eq!(opened.reports.len(), 1, "{opened:?}");
    assert!(opened.reports[0].1.contains("8 records were salvaged from it, 0 are missing") && opened.lost.is_empty());
    assert_eq!(opened.store.expect("store").records(), 8);
    assert!(!opening.has_unsalvaged());
}
