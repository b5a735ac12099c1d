//! The audit log on a real disk: kills, power cuts, rotation, a disk that fails, an erasure.

use super::{super::chain::verify, *};

fn entry(id: usize) -> Map<String, Value> {
    object(json!({"what": "command", "type": "log.pull", "id": format!("c{id}"), "text": "t".repeat(id % 50)}))
}

fn read_all(dir: &Path) -> Vec<Vec<u8>> {
    files(&dir.join("audit")).expect("list").iter().map(|(_, path)| fs::read(path).expect("read")).collect()
}

fn problems(dir: &Path, head: &Head) -> Vec<String> {
    let all = read_all(dir);
    verify(all.iter().map(|bytes| ("log", bytes.as_slice())), std::slice::from_ref(head), false).problems
}

fn opened(dir: &Path) -> (Log, Found) {
    let mut log = Log::at(dir);
    let found = log.open().expect("open");
    (log, found)
}

/// A power cut leaves all that was synced, and any part of what was not, or zeroes in its place.
#[test]
#[expect(clippy::print_stdout, reason = "how many there were is a result")]
fn log_survives_kills_and_power_cuts_at_any_byte_and_says_what_it_repaired() {
    let (kills, cuts) = if std::env::var_os("KENTLEDGE_LONG").is_some() { (1000, 200) } else { (100, 20) };
    let dir = tempfile::tempdir().expect("folder");
    let mut random = fastrand::Rng::with_seed(11);
    let (mut safe, mut torn) = (0, 0);
    for round in 0..kills + cuts {
        let (mut log, found) = opened(dir.path());
        assert_eq!(found.problems, Vec::<String>::new(), "round {round}");
        for _ in 0..random.usize(0..4) {
            log.write(entry(safe)).expect("write");
            safe += 1;
        }
        let head = log.head().clone();
        // The next entry was not reported: part of it is there.
        let (line, _) = chain::seal(&head, &entry(safe));
        let (_, path) = files(&log.folder).expect("list").pop().expect("a file");
        drop(log);
        let mut part = [line.as_bytes(), b"\n"].concat();
        part.truncate(random.usize(0..part.len()));
        if round >= kills && random.bool() {
            // The length reached the disk and the content did not.
            part = vec![0; part.len()];
            part.extend(b"}\n");
        }
        torn += usize::from(!part.is_empty());
        OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(&part)).expect("tear");
        let (log, found) = opened(dir.path());
        assert_eq!((found.torn > 0, found.problems), (!part.is_empty(), Vec::new()), "round {round}");
        assert_eq!(log.head(), &head, "round {round}: what was safe is there, and nothing else");
        // The repair was found: the next write says it.
        let mut log = log;
        log.write(entry(safe)).expect("write");
        safe += 1;
        assert_eq!(problems(dir.path(), log.head()), Vec::<String>::new(), "round {round}");
    }
    let ids = opened(dir.path()).0.ids();
    let lost = (0..safe).filter(|id| !ids.contains(&format!("c{id}"))).count();
    let says = String::from_utf8_lossy(&read_all(dir.path()).concat()).matches("\"repaired\"").count();
    println!(
        "MEASURED audit log: {kills} kills, {cuts} power cuts: {lost} of {safe} entries lost, {says} of {torn} repairs said"
    );
    assert_eq!((lost, says), (0, torn));
}

#[test]
fn rotation_keeps_the_chain_and_the_bound_and_a_crash_within_it_is_no_damage() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut log, _) = opened(dir.path());
    let long = object(json!({"what": "command", "id": "c", "text": "t".repeat(8000)}));
    for _ in 0..(limits::AUDIT_FILES as u64 + 2) * limits::AUDIT_FILE_BYTES / 8000 {
        log.write(long.clone()).expect("write");
    }
    let all = read_all(dir.path());
    assert_eq!(all.len(), limits::AUDIT_FILES);
    assert!(all.iter().all(|file| file.len() as u64 <= limits::AUDIT_FILE_BYTES + 1000));
    assert_eq!(problems(dir.path(), log.head()), Vec::<String>::new());
    // A file that goes beside the log's own rotation is missed.
    let (_, first) = files(&log.folder).expect("list").remove(0);
    let hidden = fs::read(&first).expect("read");
    fs::remove_file(&first).expect("remove");
    assert!(problems(dir.path(), log.head())[0].contains("missing at the beginning"));
    fs::write(&first, hidden).expect("write");
    // A new file was made, and its first entry was not written.
    let next = log.folder.join(format!("{:012}.jsonl", log.head().seq + 1));
    fs::write(&next, "{\"seq\"").expect("write");
    let (mut log, found) = opened(dir.path());
    assert_eq!((found.torn, found.problems), (6, Vec::new()));
    log.write(entry(1)).expect("write");
    assert!(fs::read_to_string(next).expect("read").lines().count() == 2, "what was repaired, and the entry");
    assert_eq!(problems(dir.path(), log.head()), Vec::<String>::new());
}

#[test]
fn edited_log_is_reported_kept_and_continued() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut log, _) = opened(dir.path());
    (0..5).for_each(|id| log.write(entry(id)).expect("write"));
    let (_, path) = files(&log.folder).expect("list").remove(0);
    for (from, to) in [("\"c2\"", "\"c9\""), ("\"c4\"", "\"c8\"")] {
        let text = fs::read_to_string(&path).expect("read").replace(from, to);
        fs::write(&path, &text).expect("edit");
    }
    let (mut log, found) = opened(dir.path());
    assert_eq!((found.problems.len(), found.torn), (2, 0), "{found:?}");
    log.write(entry(5)).expect("write");
    assert_eq!(log.head().seq, 6);
    let text = fs::read_to_string(&path).expect("read");
    assert!(text.contains("\"c9\"") && text.contains("\"c8\""), "the evidence stays");
    let problems = problems(dir.path(), log.head());
    assert!(problems.len() == 2 && problems[0].contains("after entry 2"), "{problems:?}");
}

#[test]
fn entries_that_the_disk_did_not_take_are_written_later_and_those_without_room_are_counted() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut log, _) = opened(dir.path());
    log.write(entry(0)).expect("write");
    let path = files(&log.folder).expect("list").remove(0).1;
    // The write failed after half an entry; then the folder cannot be read.
    let len = fs::metadata(&path).expect("file").len();
    let (line, _) = chain::seal(log.head(), &entry(1));
    OpenOptions::new().append(true).open(&path).and_then(|mut f| writeln!(f, "{line}")).expect("write");
    (log.failed, log.open) = (Some((1, len)), None);
    let hidden = dir.path().join("hidden");
    fs::rename(&log.folder, &hidden).expect("hide");
    fs::write(&log.folder, "no folder").expect("write");
    for id in 1..limits::AUDIT_WAITING + 4 {
        let why = log.write(entry(id)).expect_err("no folder");
        assert!(why.contains("entries wait"), "{why}");
    }
    assert!(log.waits());
    fs::remove_file(&log.folder).expect("remove");
    fs::rename(&hidden, &log.folder).expect("show");
    log.flush().expect("write");
    assert_eq!(problems(dir.path(), log.head()), Vec::<String>::new());
    let text = String::from_utf8(read_all(dir.path()).concat()).expect("text");
    assert_eq!(text.matches("\"c1\"").count(), 1, "what looked written and was not synced is written once");
    assert!(text.contains("\"entries\":3,") && text.contains("\"missed\""), "{text}");
}

#[test]
fn log_of_an_erased_device_continues_the_one_before_and_says_so() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut log, _) = opened(dir.path());
    (0..3).for_each(|id| log.write(entry(id)).expect("write"));
    let before = log.head().clone();
    fs::remove_dir_all(&log.folder).expect("erase");
    fs::write(dir.path().join(ERASED), format!("{before}\n")).expect("note");
    let (mut log, _) = opened(dir.path());
    log.write(entry(3)).expect("write");
    let text = String::from_utf8(read_all(dir.path()).concat()).expect("text");
    assert!(
        text.starts_with(&format!("{{\"seq\":4,\"prev\":\"{}\",\"from\":4,\"what\":\"erased\"", before.sha256)),
        "{text}"
    );
    assert!(!dir.path().join(ERASED).exists());
    assert_eq!(problems(dir.path(), &before), Vec::<String>::new(), "also with the head of before");
    assert_eq!(opened(dir.path()).0.head(), log.head());
}

#[test]
fn pull_returns_what_fits_and_where_to_go_on() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut log, _) = opened(dir.path());
    (0..800).for_each(|id| log.write(entry(id)).expect("write"));
    let (mut from, mut text, mut pulls) = (1, String::new(), 0);
    loop {
        let part = log.pull(from).expect("read");
        assert!(part.to_string().len() <= limits::RESULT_BYTES);
        for line in part["entries"].as_array().expect("entries") {
            text += line.as_str().expect("line");
            text.push('\n');
        }
        pulls += 1;
        match part["next"].as_u64() {
            Some(next) => from = next,
            None => break,
        }
    }
    assert!(pulls > 1);
    assert_eq!(
        verify([("pulled", text.as_bytes())], std::slice::from_ref(log.head()), false).problems,
        Vec::<String>::new()
    );
}
