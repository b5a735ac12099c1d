//! The cases from the field beside the repository: each is played as its `run.sh` says, and its output is compared with what
//! its `expected.txt` says. Where a case needs a key of the configuration, the table below has it.
//!
//! Each case runs several processes for 5 to 26 s and mostly waits, so several are played at a time. They run at the lowest
//! priority (`lib/case.sh`): other tests come first on a busy machine.

use std::{
    fs,
    io::Read,
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, geteuid},
};
use rig::root;
use tempfile::TempDir;

/// Cases played at a time.
const AT_A_TIME: usize = 6;
/// The longest case has 26 s of its own; played again with `SLOWER`, 78 s.
const LIMIT: Duration = Duration::from_secs(150);
/// A case's processes get a fixed time. That is too short on a busy machine: what failed is played again with so many times it.
const SLOWER: u32 = 3;

/// What is expected of the output, in which all blanks are one.
enum Expect {
    /// This stands in it, with one blank between words.
    Has(&'static str),
    /// This does not.
    Lacks(&'static str),
    /// The number behind this text is so large at least.
    AtLeast(&'static str, u64),
}
use Expect::{AtLeast, Has, Lacks};

struct Case {
    /// The folder.
    name: &'static str,
    /// Lines of its configuration that are replaced: a whole line, and what stands in its place.
    lines: &'static [(&'static str, &'static str)],
    expected: &'static [Expect],
    /// It mounts.
    as_root: bool,
}

/// A case that needs no key.
const fn plain(name: &'static str, expected: &'static [Expect]) -> Case {
    with(name, &[], expected)
}

const fn with(name: &'static str, lines: &'static [(&'static str, &'static str)], expected: &'static [Expect]) -> Case {
    Case { name, lines, expected, as_root: false }
}

const CASES: &[Case] = &[
    with(
        "01-nmea-mwv-reference",
        &[(
            "sentences = { MWV = [\"angle\", \"\", \"speed\"] }",
            "sentences = { MWV = [\"angle\", \"only:R\", \"speed:kn\"] }",
        )],
        &[
            Has("{\"angle\": 40, \"speed\": 10}"),
            Has("{\"angle\": 41, \"speed\": 10.1}"),
            Has("{\"angle\": 42, \"speed\": 10.2}"),
            Has("\"angle\": \"bad:invalid\""),
            Lacks("\"angle\": 25"),
            Lacks("\"angle\": 999"),
        ],
    ),
    plain(
        "02-nmea-void-fix",
        &[Has("\"lat\": 51.541666"), Has("\"knots\": 4.2}"), Lacks("{\"lat\": 0, \"lon\": 0, \"knots\": 0}")],
    ),
    with(
        "03-nmea-no-checksum",
        &[("format = \"nmea\"", "format = \"nmea\"\nchecksum = \"optional\"")],
        &[Has("{\"metres\": 3.1}"), Has("{\"metres\": 10.1}"), Lacks("wrong_baud")],
    ),
    with(
        "05-value-with-unit",
        &[("columns = [\"state\", \"mode\", \"kg\"]", "columns = [\"\", \"\", \"kg\"]\nsuffix = \"kg\"")],
        &[
            Has("{\"kg\": 0}"),
            Has("{\"kg\": 7.31}"),
            Has("{\"kg\": 12.345}"),
            Has("{\"kg\": -0.12}"),
            Has("{\"kg\": null}, \"q\": {\"kg\": \"bad:not_a_number\"}"),
        ],
    ),
    with(
        "06-blank-padded-columns",
        &[("columns = [\"s\", \"state\", \"g\", \"unit\"]", "columns = [\"\", \"state\", \"g\", \"\"]")],
        &[Has("{\"g\": 100}"), Has("{\"g\": -12.34}"), Has("{\"g\": 1250}")],
    ),
    // `show.py` prints the first 40 rows; quality counts them all.
    plain(
        "07-cr-only-lines",
        &[
            Has("{\"a\": 30, \"b\": 3}"),
            Has("\"frames\": 400, \"refused\": {}"),
            Has("delimited by 0d: m/raw"),
            Lacks("\"garbage\""),
        ],
    ),
    plain("09-json-nested-and-text", &[Has("{\"t\": 21.5, \"h\": 40.5, \"v0\": 1.5}} ×6")]),
    // Its last line has changed digits, but also the sum that belongs to them (`*00`), so nothing can tell. That a wrong sum is
    // refused, the unit tests show.
    with(
        "10-csv-line-with-checksum",
        &[("seq = \"n\"", "seq = \"n\"\ncheck = \"xor8\"")],
        &[Has("{\"p\": 0.5, \"q\": 3.25}"), Has("{\"p\": 2.5, \"q\": 16.25}")],
    ),
    with(
        "11-decimal-comma",
        &[("delimiter = \";\"", "delimiter = \";\"\ndecimal = \",\"")],
        &[Has("{\"t\": 20.5, \"p\": 1}"), Has("{\"t\": 21.5, \"p\": 1.01}"), Has("{\"t\": 22.5, \"p\": 1.02}")],
    ),
    with(
        "13-dates-of-other-forms",
        &[(
            "time_format = \"civil\"",
            "time_format = [\"%d/%m/%Y %H:%M:%S\", \"%Y/%m/%d %H:%M:%S\", \"%d.%m.%Y %H:%M:%S\", \"%Y-%m-%d %H:%M:%S UTC\", \
             \"%m/%d/%Y %I:%M:%S %p\", \"%Y-%m-%d %H:%M:%S\"]",
        )],
        &[
            Has("{\"x\": 1}"),
            Has("{\"x\": 2}"),
            Has("{\"x\": 3}"),
            Has("{\"x\": 4}"),
            Has("{\"x\": 5}"),
            Has("{\"x\": 6}"),
        ],
    ),
    with(
        "14-label-value-lines",
        &[
            ("delimiter = \"\\t\"", "format = \"keyvalue\"\nlabel_end = \"\\t\"\nblock_end = \"SOC\""),
            ("columns = [\"label\", \"value\"]", ""),
            ("column = \"value\"", "column = \"V\""),
            (
                "[stream.raw]",
                "[channel.current]\ncolumn = \"I\"\nscale = 0.001\n[channel.charge]\ncolumn = \"SOC\"\nscale = 0.1\n[stream.raw]",
            ),
            ("channels = [\"volt\"]", "channels = [\"volt\", \"current\", \"charge\"]"),
        ],
        &[Has("{\"volt\": 26.201, \"current\": -1.45, \"charge\": 87.6"), Has("×5")],
    ),
    plain(
        "15-echo-of-the-request",
        &[
            Has("it echoes and answers: m/raw {\"v\": {\"kg\": 12.5}}"),
            Has("it only echoes, the device is off: nothing arrived on up/m"),
            Has("\"no_answer\": "),
            Lacks("\"kg\": null"),
        ],
    ),
    plain("16-counter-restarts", &[Has("{\"x\": 0}"), Has("{\"x\": 9}"), Lacks("2553")]),
    with(
        "18-modbus-echo",
        &[("answer_ms = 200", "answer_ms = 200\necho = true")],
        &[Has("\"v\": 2301, \"w\": 450, \"hz\": null"), Has("\"hz\": 5001}")],
    ),
    with(
        "19-modbus-pause-between-questions",
        // Ten more than the meter's 60: it counts from when it was done with writing, which on a busy machine is after we read it.
        &[("answer_ms = 200", "answer_ms = 200\npause_ms = 70")],
        &[Has("\"v\": 2301, \"w\": 450, \"hz\": null"), Has("\"hz\": 5001}"), Lacks("only …")],
    ),
    with(
        "20-modbus-registers-at-once",
        &[("answer_ms = 200", "answer_ms = 200\njoin_max = 10")],
        &[Has("\"r0\": 100"), Has("\"r19\": 119"), Has("address 0 count 10"), Has("address 10 count 10")],
    ),
    with(
        "23-modbus-rtu-over-tcp",
        &[("answer_ms = 200", "answer_ms = 200\nframing = \"rtu\"")],
        &[Has("\"v\": 2301, \"w\": 450, \"hz\": null"), Has("\"hz\": 5001}")],
    ),
    plain(
        "25-broker-without-retain",
        &[AtLeast("measurements that the broker took:", 100), Has("it keeps no retained messages")],
    ),
    plain(
        "26-broker-with-qos-0-only",
        &[AtLeast("measurements that the broker took:", 100), Has("it acknowledges no message (QoS 0 only)")],
    ),
    plain("28-packet-larger-than-the-broker-takes", &[AtLeast("rows that arrived:", 3000), Lacks("twin")]),
    plain(
        "29-alarm-that-was-renamed",
        &[Has("kept: kl/field/t/up/state"), Lacks("up/a/bearing"), Lacks("up/meta/raw")],
    ),
    plain(
        "30-tls-reasons",
        &[
            Has(
                "server's certificate of version 1: WARN no connection: the broker's certificate has no subjectAltName",
            ),
            Has("as ca_file: WARN no connection: the broker's certificate is marked as a CA's"),
            Has("enc.key: the key is encrypted"),
            Has("as it should be: INFO connected"),
        ],
    ),
    plain(
        "31-label-taken-for-the-score",
        &[
            Has("rc 1"),
            Has("it has 2 outputs, and none is named as `score`"),
            Has("`label` int64"),
            Has("`scores` float32"),
        ],
    ),
    with(
        "32-lower-is-worse",
        &[("score = \"scores\"", "score = \"scores\"\ndirection = \"low\"")],
        &[Has("rc 0"), Has("alarms: [('raised', -0.238)]")],
    ),
    // Its second model is played with the same keys, which are not for it.
    with(
        "34-answers-of-several-values",
        &[("hop_steps = 8", "hop_steps = 8\nreconstruction = \"recon\"\nreduce = \"mse\"")],
        &[Has("rc 0 scores: [0.041, 0.041, 0.426]"), Has("it has no output `recon`; it has `probabilities`")],
    ),
    plain("35-an-input-for-each-column", &[Has("rc 0 scores: [4, 4, 4.2,")]),
    with(
        "37-state-that-never-moves",
        &[("[pipeline.p.param.h_in]", "[pipeline.p.state]"), ("values = [0, 0, 0, 0]", "h_out = \"h_in\"")],
        &[Has("rc 0 scores: [2.075, 3.137, 3.694,")],
    ),
    plain("39-calibration-of-another-channel", &[Has("calibrated on 380 windows"), Has("nothing arrived on up/a/")]),
    plain(
        "40-signature-reasons",
        &[
            Has("key `ops` signed, but without prehashing (minisign -l); sign it again without -l"),
            Has("key `ops` signed something else: manifest.json was changed after it was signed"),
            Has("as it should be: 3 golden cases"),
        ],
    ),
    plain(
        "41-the-first-row-decides",
        &[
            Has("input-missing.csv: rc 0 [1773309600000000000, 1773309600000000000] {'temp': None, 'flow': 0.25}"),
            Has("{'temp': 21.5, 'flow': 1.25}"),
            Has(
                "input-comma.csv: rc 0 [1773309600000000000, 1773309600000000000] {'count': 0, 'temp': 20.5, 'flow': 0.25}",
            ),
            Has("{'count': 3, 'temp': 23.5, 'flow': 3.25}"),
        ],
    ),
    plain(
        "43-the-clock-of-a-file-ignored",
        &[
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
    ),
    plain(
        "44-headers-of-the-world",
        &[
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
    ),
    Case {
        as_root: true,
        ..plain(
            "45-state-on-a-read-only-partition",
            &[Has("it runs"), Has("{\"x\": 0}"), Has("{\"x\": 2}"), Has("Read-only file system")],
        )
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
    if own.exists() {
        fs::remove_dir_all(&own).expect("the first try");
    }
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

/// ONNX Runtime, where no other is named: `lib/case.sh` takes the first folder, which may be of another processor.
fn runtime() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let library = cache.join("kentledge/onnxruntime-1.31.1/onnxruntime/capi/libonnxruntime.so.1.31.1");
    (library.is_file() && std::env::var_os("KENTLEDGE_ORT_LIB").is_none()).then_some(library)
}

/// Plays it; its output with all blanks as one.
fn play(own: &Path) -> Result<String, String> {
    // By its interpreter: a test beside this one may be starting a program, and has inherited this script, still open for writing.
    let mut run = Command::new("bash")
        .arg(own.join("run.sh"))
        .current_dir(root())
        .env("KENTLEDGE", rig::daemon::binary())
        .env("TMPDIR", own.parent().unwrap_or(own))
        .envs(runtime().map(|library| ("KENTLEDGE_ORT_LIB", library)))
        .process_group(0)
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
            // The shell and all that it started.
            let group = Pid::from_raw(run.id() as i32);
            let _ = killpg(group, Signal::SIGTERM);
            std::thread::sleep(Duration::from_secs(1));
            let _ = killpg(group, Signal::SIGKILL);
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
            Lacks(text) => output.contains(text).then(|| format!("has `{text}`")),
            AtLeast(text, least) => {
                let behind = output.split_once(text).and_then(|(_, rest)| rest.split_whitespace().next());
                let number = behind.and_then(|word| word.trim_matches(',').parse::<u64>().ok());
                (number.is_none_or(|n| n < *least)).then(|| format!("`{text}` {number:?}, and not {least} or more"))
            }
        })
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("its output {}:\n{output}", missing.join("; "))) }
}

/// More than four processes wait for each core: a case's processes, which have the lowest priority, may not even start in time.
fn is_overloaded() -> bool {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    load > 4.0 * std::thread::available_parallelism().map_or(1, usize::from) as f64
}

/// The library of the cases for a second try: its processes have the usual priority and more time.
fn patient(shared: &Path, to: &Path) {
    let lib = to.join("lib");
    fs::create_dir(&lib).expect("lib");
    for file in fs::read_dir(shared.join("lib")).expect("lib").flatten().filter(|file| file.path().is_file()) {
        fs::copy(file.path(), lib.join(file.file_name())).expect("copy");
    }
    let script = fs::read_to_string(lib.join("case.sh")).expect("case.sh");
    let slower = script.replace("nice -n 10 ", "").replace("sleep \"$1\"", &format!("sleep $(($1 * {SLOWER}))"));
    assert!(slower.contains(&format!("$1 * {SLOWER}")), "lib/case.sh gives its daemon time in another way now");
    fs::remove_file(lib.join("case.sh")).expect("case.sh");
    fs::write(lib.join("case.sh"), slower).expect("case.sh");
}

/// Copies, plays and compares.
fn whole(shared: &Path, case: &Case, to: &Path) -> Result<(), String> {
    let own = copy(shared, case, to)?;
    compare(&play(&own)?, case.expected)
}

#[test]
fn cases_from_the_field_give_what_their_users_would_expect() {
    let Some(shared) = shared() else { return };
    let dir = TempDir::new().expect("folder");
    symlink(shared.join("lib"), dir.path().join("lib")).expect("lib");
    let began = Instant::now();
    let (waiting, results) = (Mutex::new(CASES.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let Some(case) = waiting.lock().expect("cases").next() else { break };
                    if case.as_root && !geteuid().is_root() {
                        rig::skipped(&format!("case {}: it mounts, and this is not root", case.name));
                        continue;
                    }
                    let from = Instant::now();
                    let result = whole(&shared, case, dir.path());
                    results.lock().expect("results").push((case, from.elapsed(), result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("results");
    let again = TempDir::new().expect("folder");
    patient(&shared, again.path());
    for (case, took, result) in &mut results {
        if let Err(why) = result {
            rig::measured(&format!("case {}: once more, alone: {}", case.name, why.lines().next().unwrap_or_default()));
            let from = Instant::now();
            *result = whole(&shared, case, again.path());
            *took = from.elapsed();
        }
    }
    let mut all: Vec<String> = fs::read_dir(&shared)
        .expect("cases")
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    all.retain(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    all.sort();
    for name in &all {
        let seen = results.iter().find(|(case, ..)| case.name == name);
        let word = match seen {
            Some((_, took, Ok(()))) => format!("as expected ({:.0} s)", took.as_secs_f64()),
            Some((_, took, Err(_))) => format!("NOT as expected ({:.0} s)", took.as_secs_f64()),
            None => "not yet".into(),
        };
        rig::measured(&format!("case {name}: {word}"));
    }
    rig::measured(&format!("{} cases in {:.0} s", results.len(), began.elapsed().as_secs_f64()));
    results.retain(|(.., result)| result.is_err());
    if !results.is_empty() && is_overloaded() {
        return rig::skipped("the cases that failed: the machine is too busy for their fixed times");
    }
    let failed: Vec<String> = results
        .iter()
        .filter_map(|(case, _, result)| Some(format!("{}: {}", case.name, result.as_ref().err()?)))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
