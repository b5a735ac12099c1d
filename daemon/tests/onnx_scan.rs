//! What the Python package `onnx` finds in an ONNX file (external data, foreign domains, too many subgraphs, training) our
//! scan must refuse, however the file is written; and it knows the same fields. `tests/onnx/fuzz.py` spoils good models.

#![allow(clippy::expect_used)] // A test ends where something is not as it must be.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kentledge::model::{
    onnx::Message,
    scan::{Refused, scan},
};
use serde_json::Value;

fn cached(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let path = cache.join("kentledge").join(name);
    if !path.exists() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no {} (tests/onnx/get makes it)", path.display());
        return None;
    }
    Some(path)
}

/// What the script writes, line by line; `None` where the package is not there.
fn script(args: &[String], mut line: impl FnMut(Value)) -> Option<()> {
    let package = cached("onnx-package/onnx")?;
    let package = package.parent().expect("a folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/onnx/fuzz.py");
    let mut python = Command::new("python3");
    python.arg(script).args(args).env("PYTHONPATH", package).stdout(Stdio::piped());
    let mut child = python.spawn().expect("python3");
    for text in BufReader::new(child.stdout.take().expect("stdout")).lines() {
        line(serde_json::from_str(&text.expect("line")).expect("JSON"));
    }
    assert!(child.wait().expect("python3").success());
    Some(())
}

#[test]
fn onnx_scan_refuses_whatever_the_onnx_package_finds_in_spoilt_files() {
    let long = std::env::var_os("KENTLEDGE_LONG").is_some();
    let (n, seed) = if long { (200_000, fastrand::u32(..)) } else { (5_000, 1) };
    let (mut good, mut found, mut passed, mut counts) = (0, BTreeMap::<String, usize>::new(), Vec::new(), Value::Null);
    let played = script(&[n.to_string(), seed.to_string()], |line| {
        let Some(words) = line["found"].as_array() else { return counts = line };
        let bytes = STANDARD.decode(line["model"].as_str().expect("model")).expect("base64");
        let scanned = scan(&bytes);
        if words.is_empty() {
            assert_eq!(scanned, Ok(()), "a good model");
            good += 1;
        } else {
            words.iter().for_each(|word| *found.entry(word.to_string()).or_default() += 1);
            if scanned.is_ok() {
                passed.push(line.to_string());
            }
        }
    });
    if played.is_none() {
        return;
    }
    let _ = writeln!(std::io::stderr(), "MEASURED: onnx scan, seed {seed}: {counts}, found {found:?}");
    assert!(passed.is_empty(), "{} passed, the first of them: {}", passed.len(), passed[0]);
    assert!(good == 2 && found.len() == 4 && found.values().all(|n| *n >= 5), "the files show too little: {found:?}");
}

#[test]
fn onnx_scan_knows_the_fields_of_the_onnx_package() {
    let mut theirs = BTreeMap::new();
    let played = script(&["table".into()], |line| {
        let fields = line["fields"].as_array().expect("fields").iter();
        let fields: Vec<(u64, String)> =
            fields.map(|f| (f[0].as_u64().expect("number"), f[1].as_str().expect("kind").to_owned())).collect();
        theirs.insert(line["message"].as_str().expect("name").to_owned(), fields);
    });
    if played.is_none() {
        return;
    }
    let word = |kind: kentledge::model::onnx::Kind| match kind {
        kentledge::model::onnx::Kind::Part(part) => format!("Part {}", part.name()),
        kentledge::model::onnx::Kind::Parts(part) => format!("Parts {}", part.name()),
        other => format!("{other:?}"),
    };
    let ours: BTreeMap<String, Vec<(u64, String)>> = Message::ALL
        .iter()
        .map(|m| (m.name().to_owned(), m.fields().iter().map(|(n, kind)| (u64::from(*n), word(*kind))).collect()))
        .collect();
    assert_eq!(ours, theirs);
}

#[test]
fn onnx_scan_takes_the_encoding_of_every_model_of_the_onnx_package() {
    let Some(path) = cached("onnx-cases.jsonl") else { return };
    let (mut taken, mut refused) = (0, BTreeMap::<String, usize>::new());
    for line in BufReader::new(std::fs::File::open(path).expect("cases")).lines() {
        let case: Value = serde_json::from_str(&line.expect("line")).expect("JSON");
        let bytes = STANDARD.decode(case["model"].as_str().expect("model")).expect("base64");
        match scan(&bytes) {
            Ok(()) => taken += 1,
            Err(why @ (Refused::NotCanonical(_) | Refused::OrtFormat)) => panic!("{}: {why}", case["name"]),
            Err(why) => *refused.entry(why.to_string()).or_default() += 1,
        }
    }
    let _ =
        writeln!(std::io::stderr(), "MEASURED: onnx scan takes {taken} models of the package onnx, not {refused:?}");
    assert!(taken > 1000);
}
