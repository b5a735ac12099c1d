//! Every edit and every cut of a log is noticed.

use serde_json::json;

use super::*;

/// A log of so many entries in files of a random size.
fn log(random: &mut fastrand::Rng, entries: usize) -> (Vec<Vec<u8>>, Head) {
    let (mut files, mut head) = (vec![Vec::new()], Head::default());
    for n in 0..entries {
        let text: String = (0..random.usize(0..40)).map(|_| random.alphanumeric()).collect();
        let members = json!({"what": "command", "type": "log.pull", "id": format!("c{n}"), "text": text});
        let (line, next) = seal(&head, members.as_object().expect("object"));
        head = next;
        if random.u8(0..8) == 0 {
            files.push(Vec::new());
        }
        let file: &mut Vec<u8> = files.last_mut().expect("a file");
        file.extend(line.bytes().chain([b'\n']));
    }
    (files, head)
}

fn check(files: &[Vec<u8>], noted: &[Head]) -> Report {
    verify(files.iter().map(|file| ("log", file.as_slice())), noted, false)
}

fn lines(files: &[Vec<u8>]) -> Vec<Vec<u8>> {
    files.concat().split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
}

#[test]
fn log_that_nobody_touched_verifies_with_each_of_its_heads() {
    let mut random = fastrand::Rng::with_seed(1);
    for entries in [1, 2, 30] {
        let (files, head) = log(&mut random, entries);
        let all = lines(&files);
        let heads: Vec<Head> = all.iter().map(|line| read(&line[..line.len() - 1]).expect("entry").head).collect();
        let report = check(&files, &heads);
        assert_eq!((report.problems, report.head, report.entries), (Vec::<String>::new(), head, entries as u64));
    }
    assert_eq!(check(&[], &[]).problems, Vec::<String>::new(), "a device that did nothing yet");
}

#[test]
fn digest_is_that_of_the_bytes_before_it_as_the_docs_say() {
    let (line, head) = seal(&Head::default(), json!({"what": "start"}).as_object().expect("object"));
    let before = line.split(",\"sha256\"").next().expect("a part");
    assert_eq!(hex(&Sha256::digest(before)), head.sha256);
    assert!(line.starts_with(&format!("{{\"seq\":1,\"prev\":\"{}\",", "0".repeat(64))), "{line}");
    assert_eq!(format!("1:{}", head.sha256).parse(), Ok(head));
    assert!("1:abc".parse::<Head>().is_err() && "x".parse::<Head>().is_err());
}

/// Seeded: each kind of edit, thousands of times, with the head that was published.
#[test]
#[expect(clippy::print_stdout, reason = "how many there were is a result")]
fn every_edit_and_every_cut_is_noticed_with_the_published_head() {
    let count = if std::env::var_os("KENTLEDGE_LONG").is_some() { 50_000 } else { 3_000 };
    let mut random = fastrand::Rng::with_seed(7);
    for n in 0..count {
        let entries = random.usize(2..25);
        let (files, head) = log(&mut random, entries);
        let whole = files.concat();
        let mut all = lines(&files);
        let (a, b) = (random.usize(0..all.len()), random.usize(0..all.len()));
        let edit = n % 9;
        match edit {
            0 => {
                let at = random.usize(0..all[a].len());
                all[a][at] ^= 1 << random.u8(0..8);
            }
            1 => drop(all.remove(a)),
            2 => all.swap(a, b),
            3 => all.insert(b, all[a].clone()),
            4 => all.truncate(a),
            5 => all = vec![whole[..random.usize(0..whole.len())].to_vec()],
            6 => {
                let (from, to) = (random.usize(0..whole.len()), random.usize(0..whole.len()));
                all = vec![whole[..from.min(to)].to_vec(), whole[from.max(to)..].to_vec()];
            }
            7 => all[a] = b"{}\n".to_vec(),
            // With all digests after it computed again.
            _ => all = forged(&all, a),
        }
        let edited = all.concat();
        if edited == whole {
            continue;
        }
        let report = check(&[edited], std::slice::from_ref(&head));
        assert!(!report.problems.is_empty(), "edit {edit}, round {n}: not noticed");
    }
    println!("MEASURED audit log: {count} edits and cuts of 9 kinds, each noticed with the published head");
}

fn forged(all: &[Vec<u8>], at: usize) -> Vec<Vec<u8>> {
    let mut head = Head::default();
    let again = all.iter().enumerate().map(|(n, line)| {
        let mut members: Map<String, Value> = serde_json::from_slice(line).expect("JSON");
        ["seq", "prev", "sha256"].iter().for_each(|own| drop(members.remove(*own)));
        if n == at {
            members.insert("by".into(), "nobody".into());
        }
        let (line, next) = seal(&head, &members);
        head = next;
        line.into_bytes().into_iter().chain([b'\n']).collect()
    });
    again.collect()
}

#[test]
fn problem_names_the_entry() {
    let mut random = fastrand::Rng::with_seed(3);
    let (files, head) = log(&mut random, 20);
    let all = lines(&files);
    let says = |edited: Vec<Vec<u8>>, noted: &[Head]| check(&[edited.concat()], noted).problems.join("; ");
    let mut edited = all.clone();
    let text = String::from_utf8(all[4].clone()).expect("text").replace("c4", "c5");
    edited[4] = text.into_bytes();
    assert_eq!(says(edited, &[]), "log:5: the entry after entry 4 was edited or is damaged");
    assert_eq!(says([&all[..4], &all[7..]].concat(), &[]), "log:5: entries 5 to 7 are missing");
    assert!(says(all[..12].to_vec(), std::slice::from_ref(&head)).contains("ends with entry 12"));
    assert!(says(forged(&all, 19), &[head]).contains("entry 20 is not the one"));
    assert_eq!(says(all[3..].to_vec(), &[]), "entries 1 to 3 are missing at the beginning of the log");
    // Without a head an end that was cut between two entries cannot be noticed.
    assert_eq!(says(all[..12].to_vec(), &[]), "");
}

#[test]
fn part_of_a_log_and_one_that_was_rotated_verify_and_a_cut_beginning_does_not() {
    let mut random = fastrand::Rng::with_seed(4);
    let (files, head) = log(&mut random, 9);
    let (line, last) = seal(&head, json!({"what": "rotated", "from": 5}).as_object().expect("object"));
    let all = [lines(&files), vec![[line.as_bytes(), b"\n"].concat()]].concat();
    let says = |from: usize, noted: &Head, part| {
        let bytes = all[from..].concat();
        verify([("log", bytes.as_slice())], std::slice::from_ref(noted), part).problems.join("; ")
    };
    assert_eq!((says(4, &last, false), says(2, &last, false)), (String::new(), String::new()));
    assert_eq!(says(5, &last, false), "entries 5 to 5 are missing at the beginning of the log");
    assert_eq!(says(7, &last, true), "");
    let of = |n: usize| read(&all[n][..all[n].len() - 1]).expect("entry").head;
    assert_eq!(says(4, &of(3), false), "", "the last one that was rotated away is named by the first");
    assert!(says(4, &of(2), false).contains("cannot be compared"));
}
