//! The store on a real disk, opened again after all kinds of endings.

use super::*;

fn packed(seq: u64, bytes: usize) -> Packed {
    Packed::new(&Sealed::sample(seq, bytes)).expect("packed")
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("folder");
    let store = dir.path().join("store");
    (dir, store)
}

#[test]
fn a_later_message_has_the_larger_key_even_when_all_before_it_are_gone() {
    let (_dir, folder) = folder();
    let mut store = Store::open(&folder, &|| {}).expect("open");
    let first = store.insert(&[packed(1, 9), packed(2, 9)]).expect("insert");
    store.remove(first.clone()).expect("remove");
    let second = store.insert(&[packed(3, 9)]).expect("insert");
    assert!(second[0] > first[1], "{second:?} after {first:?}");
    assert_eq!(store.next(Some(first[1])), Some(second[0]));
}

#[test]
fn what_was_committed_is_there_again_and_its_highest_number_is_known() {
    let (_dir, folder) = folder();
    let mut store = Store::open(&folder, &|| {}).expect("open");
    let keys = store.insert(&[packed(1, 9), packed(7, 99), packed(5, 9)]).expect("insert");
    store.remove([keys[0]]).expect("remove");
    store.commit().expect("commit");
    drop(store);
    let store = Store::open(&folder, &|| {}).expect("open");
    assert_eq!(store.found.missing, None);
    assert_eq!((store.records(), store.found.highest["p/x"]), (2, 7));
    assert_eq!(store.read(keys[2]).expect("read").seqs(), (5, 5));
    assert_eq!(store.least().collect::<Vec<_>>(), keys[1..]);
}

#[test]
fn a_store_that_ends_between_two_commits_misses_nothing() {
    let (_dir, folder) = folder();
    for round in 0..4 {
        let mut store = Store::open(&folder, &|| {}).expect("open");
        assert_eq!(store.found.missing, None, "round {round}");
        store.insert(&[packed(round, 9)]).expect("insert");
        if round % 2 == 0 {
            store.commit().expect("commit");
        } else {
            store.db().expect("open").flush().expect("flushed, but without an end");
        }
    }
    assert_eq!(Store::open(&folder, &|| {}).expect("open").records(), 4);
}

#[test]
fn an_older_state_of_the_store_is_noticed_and_said_once() {
    let (dir, folder) = folder();
    let old = dir.path().join("old");
    let mut store = Store::open(&folder, &|| {}).expect("open");
    store.insert(&[packed(1, 9)]).expect("insert");
    store.commit().expect("commit");
    drop(store);
    assert!(std::process::Command::new("cp").arg("-r").args([&folder, &old]).status().expect("cp").success());
    let mut store = Store::open(&folder, &|| {}).expect("open");
    for seq in 2..9 {
        store.insert(&[packed(seq, 9)]).expect("insert");
        store.commit().expect("commit");
    }
    drop(store);
    std::fs::remove_dir_all(&folder).expect("remove");
    std::fs::rename(&old, &folder).expect("rename");
    let missing = || Store::open(&folder, &|| {}).expect("open").found.missing;
    assert_eq!((missing(), missing()), (Some(7), Some(7)), "a start that ends too early hides nothing");
    Store::open(&folder, &|| {}).expect("open").settle().expect("settle");
    assert_eq!(missing(), None);
    std::fs::remove_dir_all(&folder).expect("remove");
    assert_eq!(missing(), Some(1), "a store that vanished");
}

#[test]
fn large_pages_lie_in_blobs_and_those_are_synced_too() {
    let (_dir, folder) = folder();
    let mut store = Store::open(&folder, &|| {}).expect("open");
    let messages: Vec<Packed> = (0..64).map(|seq| packed(seq, 60_000)).collect();
    for message in messages.chunks(4) {
        store.insert(message).expect("insert");
        store.commit().expect("commit");
    }
    let there: Vec<_> = std::fs::read_dir(folder.join("blobs")).expect("blobs").flatten().collect();
    assert!(!there.is_empty(), "sled puts such pages into files of their own");
    assert!(there.iter().all(|file| store.blobs.contains(&file.file_name())));
}

#[test]
fn a_store_that_somebody_else_holds_is_not_taken_for_a_damaged_one() {
    let (_dir, folder) = folder();
    let store = Store::open(&folder, &|| {}).expect("open");
    let held = Store::open(&folder, &|| {}).err();
    assert!(matches!(held, Some(Unopened::Disk(_))), "{held:?}");
    drop(store);
    assert!(Store::open(&folder, &|| {}).is_ok());
}

#[test]
fn a_store_with_messages_of_a_newer_program_is_left_as_it_is() {
    let (_dir, folder) = folder();
    let mut store = Store::open(&folder, &|| {}).expect("open");
    let keys = store.insert(&[packed(1, 9), packed(2, 9)]).expect("insert");
    store.commit().expect("commit");
    let tree = store.segments[&keys[1].segment].tree.clone();
    let mut newer = tree.get(keys[1].n.to_be_bytes()).expect("read").expect("a message").to_vec();
    newer[0] += 1;
    tree.insert(keys[1].n.to_be_bytes(), newer.clone()).expect("insert");
    store.db().expect("open").flush().expect("flush");
    drop((tree, store));
    for _ in 0..2 {
        let refused = Store::open(&folder, &|| {}).err();
        assert!(matches!(&refused, Some(Unopened::Damaged(why)) if why.contains("newer program")), "{refused:?}");
    }
    // The same byte with a wrong checksum is damage, and that is removed and said.
    let store = Store::unmarked(&folder).expect("open");
    let tree = store.db().expect("open").open_tree("seg-00000000").expect("tree");
    newer[1] ^= 1;
    tree.insert(keys[1].n.to_be_bytes(), newer).expect("insert");
    store.db().expect("open").flush().expect("flush");
    drop((tree, store));
    assert_eq!(Store::open(&folder, &|| {}).expect("open").found.damaged, 1);
}
