//! The how-to pages, tried: every command in a block exists with its options, and the pages that need no second machine run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use rig::daemon;

use super::docs::{blocks, pages};

/// Programs of the system that pages may use, without a check of their options.
const TOOLS: &[&str] = &[
    "apt",
    "awk",
    "base64",
    "cargo",
    "cat",
    "cd",
    "cp",
    "cut",
    "do",
    "done",
    "echo",
    "editor",
    "export",
    "fi",
    "for",
    "grep",
    "head",
    "if",
    "install",
    "journalctl",
    "jq",
    "kill",
    "mkdir",
    "mosquitto",
    "printf",
    "python3",
    "read",
    "result",
    "scp",
    "sed",
    "sha256sum",
    "split",
    "sqlite3",
    "ssh",
    "stat",
    "strace",
    "sudo",
    "systemctl",
    "tail",
    "then",
    "tr",
    "until",
    "wait",
    "while",
];

/// A script without comments, heredocs, continued lines and quotes: what is left are words and operators.
fn plain(script: &str) -> String {
    let (mut out, mut heredoc) = (String::new(), None::<String>);
    for line in script.replace("\\\n", " ").lines() {
        if let Some(end) = &heredoc {
            if line.trim() == end {
                heredoc = None;
            }
            continue;
        }
        if let Some((_, end)) = line.split_once("<<") {
            heredoc = Some(end.trim().trim_matches('\'').to_owned());
        }
        out.push_str(line);
        out.push('\n');
    }
    let (mut bare, mut quote, mut comment) = (String::new(), None, false);
    for c in out.chars() {
        match (quote, c) {
            (_, '\n') if comment => {
                comment = false;
                bare.push(c);
            }
            _ if comment => {}
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => {
                quote = Some(c);
                bare.push('Q');
            }
            (None, '#') if bare.ends_with([' ', '\n']) || bare.is_empty() => comment = true,
            (None, _) => bare.push(c),
        }
    }
    bare
}

/// The commands of a script, each as its words. Redirections and assignments are not words.
fn commands(script: &str) -> Vec<Vec<String>> {
    let text = plain(script).replace("$(", "\n").replace("&&", "\n").replace("2>", ">");
    let of = |part: &str| -> Vec<String> {
        let words = part.split_whitespace().take_while(|w| !w.starts_with(['>', '<']));
        words
            .skip_while(|w| w.contains('='))
            .map(|w| w.trim_matches(')').to_owned())
            .filter(|w| !w.is_empty())
            .collect()
    };
    text.split(['\n', '|', ';', '&']).map(of).filter(|words| !words.is_empty()).collect()
}

/// What a program prints about its options.
fn help(program: &str, words: &[&str]) -> String {
    let done = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|why| panic!("{program}: {why}"));
    String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr)
}

/// Whether a help text names an option as a word of its own.
fn has(help: &str, option: &str) -> bool {
    help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == option)
}

/// What `sudo` and `ssh` run.
fn inner(mut words: &[String]) -> &[String] {
    while let [first, rest @ ..] = words {
        let skipped = match first.as_str() {
            "sudo" => 0,
            "ssh" => rest.iter().take_while(|w| w.starts_with('-')).count() + 1,
            _ => break,
        };
        words = &rest[skipped.min(rest.len())..];
    }
    words
}

/// What is wrong with one command, if anything.
fn wrong(words: &[String], helps: &mut BTreeMap<String, String>) -> Option<String> {
    let words = inner(words);
    let program = words.first()?.as_str();
    let ours = program.rsplit('/').next().filter(|name| ["kentledge", "kentledge-fleet"].contains(name));
    if let Some(ours) = ours {
        let mut chain: Vec<&str> = Vec::new();
        for word in &words[1..] {
            let nested =
                chain.is_empty() || [["model"], ["audit"], ["plan"], ["rollout"]].iter().any(|group| chain == *group);
            if !nested || !word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') || word.starts_with('-') {
                break;
            }
            chain.push(word);
        }
        let name = chain.join(" ");
        let binary = daemon::binary().with_file_name(ours).display().to_string();
        let text =
            helps.entry(format!("{ours} {name}")).or_insert_with(|| help(&binary, &[&chain[..], &["--help"]].concat()));
        if text.contains("unrecognized subcommand") || !text.contains("Usage:") {
            return Some(format!("no command `{ours} {name}`"));
        }
        let options = words[1..].iter().filter(|w| w.starts_with('-') && w.len() > 1);
        let unknown = options.map(|w| w.split('=').next().unwrap_or(w)).find(|option| !has(text, option))?;
        return Some(format!("`{ours} {name}` has no option {unknown}"));
    }
    match program {
        "mosquitto_sub" | "mosquitto_pub" => {
            let text = helps.entry(program.into()).or_insert_with(|| help(program, &["--help"]));
            let unknown = words[1..].iter().find(|w| w.starts_with('-') && !has(text, w))?;
            Some(format!("{program} has no option {unknown}"))
        }
        "minisign" => {
            let text = helps.entry(program.into()).or_insert_with(|| help(program, &["-h"]));
            let letters = words[1..].iter().filter_map(|w| w.strip_prefix('-')).flat_map(str::chars);
            let unknown = letters.into_iter().find(|letter| !has(text, &format!("-{letter}")))?;
            Some(format!("minisign has no option -{unknown}"))
        }
        "order" => {
            let schema = rig::root().join(format!("daemon/docs/schema/dn.args.{}.json", words.get(1)?));
            (!schema.exists()).then(|| format!("no command of the type {}", words[1]))
        }
        arithmetic if arithmetic.starts_with('(') => None,
        path if path.contains('/') => {
            let built = path.starts_with("target/");
            (!built && !rig::root().join(path).exists()).then(|| format!("no file {path} in the repository"))
        }
        tool => (!TOOLS.contains(&tool)).then(|| format!("`{tool}` is not a command that pages use")),
    }
}

#[test]
fn every_command_in_a_page_exists_with_its_options() {
    let (mut helps, mut seen, mut all) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for page in pages().iter().filter(|page| !page.ends_with("getting-started.md")) {
        for block in blocks(&fs::read_to_string(page).expect("page")).iter().filter(|b| b.language == "sh") {
            let place = format!("{}:{}", page.display(), block.line);
            let mut bash =
                Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash");
            bash.stdin.take().expect("stdin").write_all(block.text.as_bytes()).expect("write");
            let parsed = bash.wait_with_output().expect("bash");
            if !parsed.status.success() {
                all.push(format!("{place}: {}", String::from_utf8_lossy(&parsed.stderr)));
            }
            for words in commands(&block.text) {
                seen.insert(words.join(" "));
                all.extend(wrong(&words, &mut helps).map(|why| format!("{place}: {why}")));
            }
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
    assert!(seen.len() > 60, "{}: {seen:?}", seen.len());
    rig::measured(&format!("documentation: {} commands exist with their options", seen.len()));
}

#[test]
fn command_with_an_unknown_option_is_found() {
    let mut helps = BTreeMap::new();
    let mut why = |line: &str| commands(line).iter().find_map(|words| wrong(words, &mut helps)).unwrap_or_default();
    assert!(why("echo a | sudo kentledge check --confg x.toml").contains("--confg"));
    assert!(why("kentledge modell list").contains("no command"), "a command that does not exist");
    assert!(why("kentledge model lst").contains("no command"), "and one below it");
    assert!(why("x=1 mosquitto_sub -h b \\\n  --cafille ca.pem").contains("--cafille"));
    assert!(why("kentledge-fleet plan mke").contains("kentledge-fleet plan mke"), "the operator's program");
    assert!(why("kentledge-fleet rollout run a --secret b").contains("--secret"), "and its options");
    assert!(why("minisign -Sm a -y b").contains("-y") && why("order model.instal '{}' i-1").contains("model.instal"));
    assert!(why("image/bild qemu").contains("image/bild") && why("kentlegde check").contains("kentlegde"));
    let right =
        "cat > a <<END\nnonsense here\nEND\nssh admin@pump journalctl -u kentledge -x -n 50  # a comment; with more\n";
    assert_eq!(why(right), "");
}

/// The `sh` blocks of a page.
fn shell(page: &str) -> Vec<String> {
    let text = fs::read_to_string(rig::root().join("daemon/docs").join(page)).expect("the page");
    blocks(&text).into_iter().filter(|b| b.language == "sh").map(|b| b.text).collect()
}

fn run(script: &str, folder: &Path) -> String {
    let path =
        format!("{}:{}", daemon::binary().parent().expect("folder").display(), std::env::var("PATH").expect("PATH"));
    let mut bash = Command::new("timeout");
    bash.args(["60", "bash", "-eu", "-o", "pipefail", "-c", script]).current_dir(folder).env("PATH", path);
    let out = bash.stdin(Stdio::null()).output().expect("bash");
    let seen = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}: {seen}\n{script}", out.status);
    seen
}

#[test]
fn pages_on_bundles_and_on_keys_run_as_written() {
    let dir = tempfile::tempdir().expect("folder");
    let keys =
        shell("getting-started.md").into_iter().find(|b| b.contains("for name in release ops root")).expect("keys");
    run(&keys, dir.path());
    fs::copy(rig::root().join("tests/onnx/sklearn/forest.onnx"), dir.path().join("forest.onnx")).expect("model");
    let rows = (0..2800).map(|n| format!("{},{}\n", 10.0 + f64::from(n % 7) / 10.0, 20.0 + f64::from(n % 11) / 10.0));
    fs::write(dir.path().join("normal.csv"), format!("vib1,vib2\n{}", rows.collect::<String>())).expect("rows");
    let seen = run(&shell("howto/make-a-bundle.md").concat(), dir.path());
    assert!(seen.contains("my-model@1.0.0") && seen.contains("signed by release"), "{seen}");

    let rotate = shell("howto/rotate-keys.md");
    // Without a password: minisign would read it from the terminal.
    run(&rotate[..2].concat().replace("minisign -G", "minisign -G -W"), dir.path());
    run(
        "minisign -V -q -m keyset-2.json -p root.pub && jq -e '.version == 2 and .keys[2].name == \"ops2\"' keyset-2.json",
        dir.path(),
    );
}

#[test]
fn page_on_databases_stores_each_record_once_when_messages_come_twice() {
    let dir = tempfile::tempdir().expect("folder");
    let message = r#"kl/plant-1/pump-07/up/p/anomaly {"ts":"2026-11-27T00:00:00Z","data":[{"seq":1,"in_t_ns":[1,2],"score":0.5},
        {"seq":2,"in_t_ns":[3,4],"score":null}]}"#;
    let message = message.replace('\n', " ");
    fs::write(dir.path().join("messages"), format!("{message}\n{message}\n")).expect("write");
    // SQLite itself, by way of Python, and what mosquitto_sub would print.
    let parts = "sqlite3() { python3 -c 'import sqlite3, sys; db = sqlite3.connect(sys.argv[1])
db.executescript(sys.argv[2] if len(sys.argv) > 2 else sys.stdin.read()); db.commit()' \"$@\"; }
mosquitto_sub() { cat messages; }\n";
    let rows =
        "python3 -c 'import sqlite3; print(sqlite3.connect(\"plant.db\").execute(\"select * from p\").fetchall())'";
    let seen = run(&[parts, &shell("howto/feed-a-database.md").concat(), rows].concat(), dir.path());
    let stored = "[('plant-1/pump-07', 'p/anomaly', 1, '2026-11-27T00:00:00Z', 2, 0.5), \
                  ('plant-1/pump-07', 'p/anomaly', 2, '2026-11-27T00:00:00Z', 4, None)]";
    assert!(seen.contains(stored), "{seen}");
}
