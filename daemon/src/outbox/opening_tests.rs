//! Opening a store that is whole, damaged, or deadly.

use super::*;
use crate::outbox::Sealed;

fn opening(dir: &Path, program: Option<&str>) -> Opening {
    let keep = Keep::open(dir, "outbox").expect("keep");
    let folder = dir.join("outbox");
    Opening { folder: folder.join("store"), disk: Disk::new(folder), keep, program: program.map(PathBuf::from) }
}

/// A store with ten messages, the first two of which are gone again.
fn filled(dir: &Path) {
    let opened = opening(dir, None).open(&|| {});
    assert!(opened.told.is_empty() && opened.lost.is_empty(), "{opened:?}");
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
    // `false` stands for a probe that dies.
    let opened = opening(dir.path(), Some("false")).open(&|| {});
    assert!(opened.told[0].1.contains("the process that tried it died"), "{opened:?}");
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
    assert!(opened.told[0].1.contains("never came to an end"), "{opened:?}");
    assert_eq!(opened.store.expect("store").records(), 8);
    let opened = opening(dir.path(), None).open(&|| {});
    assert!(opened.told.is_empty(), "{opened:?}");
    assert_eq!(opened.store.expect("store").records(), 8);
}

#[test]
fn what_sled_would_wipe_after_a_damaged_place_is_found_all_the_same() {
    let dir = tempfile::tempdir().expect("folder");
    filled(dir.path());
    let db = dir.path().join("outbox/store/db");
    let mut bytes = std::fs::read(&db).expect("read");
    // In sled's own structure, before the first message.
    let first = memchr::memmem::find(&bytes, &0xFD2F_B528_u32.to_le_bytes()).expect("a message");
    bytes[first / 2] ^= 0xFF;
    std::fs::write(&db, bytes).expect("write");
    let opened = opening(dir.path(), None).open(&|| {});
    assert_eq!(opened.told.len(), 1, "{opened:?}");
    assert_eq!(opened.store.expect("store").records(), 8);
}
