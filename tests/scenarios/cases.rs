//! The cases from the field beside the repository: each is played as its `run.sh` says, and its output is compared with what
//! its `expected.txt` says. Where a case needs a key of the configuration, the table below has it.
//!
//! Each case runs several processes for 5 to 26 s and mostly waits, so several are played at a time. They run at the lowest
//! priority (`lib/case.sh`): other tests come first on a busy machine.

use std::{
    fs,
    io::Read,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use rig::root;
use tempfile::TempDir;

/// Cases played at a time.
const AT_A_TIME: usize = 6;
/// The longest case has 26 s of its own.
const LIMIT: Duration = Duration::from_secs(75);

/// What is expected of the output, in which all blanks are one.
enum Expect {
    /// This stands in it, with one blank between words.
    Has(&'static str),
    /// At least one of these.
    One(&'static [&'static str]),
    /// This does not.
    Lacks(&'static str),
    /// The number behind this text is so large at least.
    AtLeast(&'static str, u64),
}
use Expect::{Has, Lacks, One};

struct Case {
    /// The folder.
    name: &'static str,
    /// Lines of its configuration that are replaced: a whole line, and what stands in its place.
    lines: &'static [(&'static str, &'static str)],
    expected: &'static [Expect],
}

const CASES: &[Case] = &[
    Case {
        name: "31-label-taken-for-the-score",
        lines: &[],
        expected: &[Has("none is named as `score`"), Has("`label` int64 [-1, 1], `scores` float32 [-1, 1]")],
    },
    Case {
        name: "32-lower-is-worse",
        lines: &[("score = \"scores\"", "score = \"scores\"\ndirection = \"low\"")],
        expected: &[Has("alarms: [('raised', -0.238)]"), Has("scores: [0.111, 0.073, 0.101,")],
    },
    Case {
        name: "34-answers-of-several-values",
        lines: &[("hop_steps = 8", "hop_steps = 8\nreconstruction = \"recon\"\nreduce = \"mse\"")],
        expected: &[Has("rc 0"), Lacks("scores: []")],
    },
    Case { name: "35-an-input-for-each-column", lines: &[], expected: &[Has("scores: [4, 4, 4.2, 3.9,")] },
    Case {
        name: "37-state-that-never-moves",
        lines: &[
            ("hop_steps = 4", "hop_steps = 4\nstate = { h_out = \"h_in\" }"),
            ("[pipeline.p.param.h_in]", ""),
            ("values = [0, 0, 0, 0]", ""),
        ],
        expected: &[Has("scores: [2.075, 3.137, 3.694,")],
    },
    Case {
        name: "40-signature-reasons",
        lines: &[],
        expected: &[
            Has("key `ops` signed, but without prehashing (minisign -l); sign it again without -l"),
            Has("key `ops` signed something else: manifest.json was changed after it was signed"),
            Has("as it should be: 3 golden cases"),
        ],
    },
    Case {
        name: "41-the-first-row-decides",
        lines: &[],
        expected: &[
            Has("input-missing.csv: rc 0 [1773309600000000000, 1773309600000000000] {'temp': None, 'flow': 0.25}"),
            Has("{'temp': 21.5, 'flow': 1.25}"),
            Has(
                "input-comma.csv: rc 0 [1773309600000000000, 1773309600000000000] {'count': 0, 'temp': 20.5, 'flow': 0.25}",
            ),
            Has("{'count': 3, 'temp': 23.5, 'flow': 3.25}"),
        ],
    },
    Case {
        name: "43-the-clock-of-a-file-ignored",
        lines: &[],
        expected: &[
            Has("input-points.csv: rc 1"),
            Has(
                "input-points.csv:2: the clock in column `timestamp`: `12.03.2026 10:00:00` may be day first or month first",
            ),
            Has("input-slashes.csv: rc 0 [1773309600000000000, 1773309600000000000] {'temp': 20.5}"),
            Has("[1773309780000000000, 1773309780000000000] {'temp': 23.5} input-ts.csv"),
            Has("input-ts.csv: rc 0 [1773309600000000000, 1773309600000000000] {'temp': 20.5}"),
            Lacks("[0, 0]"),
            Lacks("'ts'"),
        ],
    },
    Case {
        name: "44-headers-of-the-world",
        lines: &[],
        expected: &[
            Has(
                "input-names.csv: rc 0 [1773309600000000000, 1773309600000000000] {'column_2': 20.5, 'column_3': 0.25}",
            ),
            Has(
                "input-brackets.csv: rc 0 [1773309600000000000, 1773309600000000000] {'temp__c': 20.5, 'temp__c_2': 0.25}",
            ),
            Has("input-units.csv: rc 0 [1773309600000000000, 1773309600000000000] {'temp': 20.5, 'flow': 0.25}"),
            Has("input-latin1.csv: rc 1"),
            Has("input-latin1.csv:1: the text is not UTF-8"),
            Has("input-quoted.csv: rc 0 [1773309600000000000, 1773309600000000000] {'temp': 20.5, 'flow': 0.25}"),
            Lacks("kentledge.toml"),
        ],
    },
    Case {
        name: "25-broker-without-retain",
        lines: &[],
        expected: &[
            Expect::AtLeast("measurements that the broker took:", 10),
            Has("1 WARN the broker offers less than this device asks for: it keeps no retained messages"),
        ],
    },
    Case {
        name: "26-broker-with-qos-0-only",
        lines: &[],
        expected: &[
            Expect::AtLeast("measurements that the broker took:", 10),
            Has("1 WARN the broker offers less than this device asks for: it acknowledges no message (QoS 0 only)"),
        ],
    },
    Case {
        name: "28-packet-larger-than-the-broker-takes",
        lines: &[],
        expected: &[Expect::AtLeast("rows that arrived:", 500), Has("'connect': 1,"), Lacks("twin")],
    },
    Case {
        name: "29-alarm-that-was-renamed",
        lines: &[],
        expected: &[Has("up/meta/temps"), Lacks("up/a/bearing"), Lacks("up/meta/raw")],
    },
    Case {
        name: "30-tls-reasons",
        lines: &[],
        expected: &[
            Has("has no subjectAltName (X.509 version 1): it needs version 3 with localhost as subjectAltName"),
            Has("marked as a CA's and cannot be the broker's own"),
            Has("enc.key: the key is encrypted; a key with a password cannot be used"),
            Has("as it should be: INFO connected"),
        ],
    },
];

/// The folder of the cases; `None`, said loudly, where it is missing.
fn shared() -> Option<PathBuf> {
    let path = root().parent()?.join("shared/cases");
    if path.is_dir() {
        return Some(path);
    }
    rig::skipped(&format!("no cases at {}", path.display()));
    None
}

/// A copy of the case whose configuration has the lines of the table.
fn copy(shared: &Path, case: &Case, to: &Path) -> Result<PathBuf, String> {
    let (from, own) = (shared.join(case.name), to.join(case.name));
    fs::create_dir(&own).expect("folder");
    for entry in fs::read_dir(&from).map_err(|why| format!("{}: {why}", from.display()))?.flatten() {
        fs::copy(entry.path(), own.join(entry.file_name())).expect("copy");
    }
    let file = own.join("kentledge.toml");
    let mut text = fs::read_to_string(&file).expect("configuration");
    for (line, by) in case.lines {
        if !text.lines().any(|own| own == *line) {
            return Err(format!("kentledge.toml has no line `{line}`"));
        }
        let new: Vec<&str> = text.lines().map(|own| if own == *line { by } else { own }).collect();
        text = new.join("\n") + "\n";
    }
    fs::remove_file(&file).expect("the copy is read-only, as the case is");
    fs::write(&file, text).expect("write");
    Ok(own)
}

/// ONNX Runtime for this machine: `lib/case.sh` would take one of a board that lies in the cache too.
fn runtime() -> String {
    let script = Command::new(root().join("daemon/get-onnxruntime")).output().expect("get-onnxruntime");
    String::from_utf8_lossy(&script.stdout).trim().to_owned()
}

/// Plays it; its output with all blanks as one.
fn play(own: &Path, runtime: &str) -> Result<String, String> {
    let mut run = Command::new(own.join("run.sh"))
        .current_dir(root())
        .env("KENTLEDGE", rig::daemon::binary())
        .env("KENTLEDGE_ORT_LIB", runtime)
        .env("TMPDIR", own.parent().unwrap_or(own))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run.sh");
    let mut out = run.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = out.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let began = Instant::now();
    while run.try_wait().expect("run.sh").is_none() {
        if began.elapsed() > LIMIT {
            let _ = run.kill();
            let _ = run.wait();
            return Err(format!("it has not ended after {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = reader.join().expect("output");
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn compare(output: &str, expected: &[Expect]) -> Result<(), String> {
    let missing: Vec<String> = expected
        .iter()
        .filter_map(|expect| match expect {
            Has(text) => (!output.contains(text)).then(|| format!("lacks `{text}`")),
            One(texts) => (!texts.iter().any(|text| output.contains(text))).then(|| format!("has none of {texts:?}")),
            Lacks(text) => output.contains(text).then(|| format!("has `{text}`")),
            Expect::AtLeast(text, least) => {
                let behind = output.split_once(text).and_then(|(_, rest)| rest.split_whitespace().next());
                let number = behind.and_then(|word| word.trim_matches(',').parse::<u64>().ok());
                (number.is_none_or(|n| n < *least)).then(|| format!("`{text}` {number:?}, and not {least} or more"))
            }
        })
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("its output {}:\n{output}", missing.join("; "))) }
}

#[test]
fn cases_from_the_field_give_what_their_users_would_expect() {
    let Some(shared) = shared() else { return };
    let dir = TempDir::new().expect("folder");
    symlink(shared.join("lib"), dir.path().join("lib")).expect("lib");
    let runtime = runtime();
    let began = Instant::now();
    let (waiting, results) = (Mutex::new(CASES.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let Some(case) = waiting.lock().expect("cases").next() else { break };
                    let from = Instant::now();
                    let result = copy(&shared, case, dir.path()).and_then(|own| play(&own, &runtime));
                    let result = result.and_then(|output| compare(&output, case.expected));
                    results.lock().expect("results").push((case.name, from.elapsed(), result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("results");
    let mut all: Vec<String> = fs::read_dir(&shared)
        .expect("cases")
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    all.retain(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    all.sort();
    for name in &all {
        let seen = results.iter().find(|(case, ..)| case == name);
        let word = match seen {
            Some((_, took, Ok(()))) => format!("as expected ({:.0} s)", took.as_secs_f64()),
            Some((_, took, Err(_))) => format!("NOT as expected ({:.0} s)", took.as_secs_f64()),
            None => "not yet".into(),
        };
        rig::measured(&format!("case {name}: {word}"));
    }
    rig::measured(&format!("{} cases in {:.0} s", results.len(), began.elapsed().as_secs_f64()));
    results.retain(|(.., result)| result.is_err());
    let failed: Vec<String> =
        results.iter().filter_map(|(name, _, result)| Some(format!("{name}: {}", result.as_ref().err()?))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
