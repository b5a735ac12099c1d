//! The documentation, tried: every command line of `getting-started.md` is run in order with the real parts, and every whole
//! configuration in the documentation passes `kentledge check`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rig::{daemon, free_port};

/// A fenced block: its language, its text, and the line of its fence.
pub struct Block {
    pub language: String,
    pub text: String,
    pub line: usize,
}

pub fn blocks(page: &str) -> Vec<Block> {
    // A block in a list is indented as its fence is.
    let (mut blocks, mut open, mut indent): (Vec<Block>, bool, usize) = (Vec::new(), false, 0);
    for (n, line) in page.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            if !open {
                blocks.push(Block { language: language.trim().to_owned(), text: String::new(), line: n + 1 });
            }
            (open, indent) = (!open, line.len() - line.trim_start().len());
        } else if open {
            let block = blocks.last_mut().expect("an open block");
            let blanks = line.len() - line.trim_start().len();
            block.text.push_str(&line[blanks.min(indent)..]);
            block.text.push('\n');
        }
    }
    blocks
}

/// Whether the pieces of `pattern` between `…` are in `line`, in order.
fn matches(pattern: &str, line: &str) -> bool {
    let mut rest = line;
    pattern.trim().split('…').all(|piece| match rest.find(piece) {
        Some(at) => {
            rest = &rest[at + piece.len()..];
            true
        }
        None => false,
    })
}

/// The first line of `wanted` that `seen` does not have, after the lines before it.
fn missing<'a>(wanted: &'a str, seen: &str) -> Option<&'a str> {
    let mut lines = seen.lines();
    wanted.lines().filter(|l| !l.trim().is_empty()).find(|pattern| !lines.any(|line| matches(pattern, line)))
}

#[test]
fn output_of_a_page_matches_with_gaps_and_in_order_only() {
    assert!(matches("a…c", "xabcx") && matches("…", "") && !matches("a…c", "cba"));
    assert_eq!(missing("one\ntwo…\n", "zero\none\ntwo 2\n"), None);
    assert_eq!(missing("two\none\n", "one\ntwo\n"), Some("one"));
}

/// What the page expects in `$REPO`: the broker's files with these ports, and the models.
fn repository(at: &Path, devices: u16, people: u16) {
    let broker = at.join("daemon/docs/broker");
    fs::create_dir_all(&broker).expect("folder");
    for name in ["mosquitto.conf", "acl"] {
        let text = fs::read_to_string(rig::root().join("daemon/docs/broker").join(name)).expect(name);
        let text = text.replace("8883", &devices.to_string()).replace("8884", &people.to_string());
        fs::write(broker.join(name), text).expect("write");
    }
    for folder in ["models", "tests"] {
        std::os::unix::fs::symlink(rig::root().join(folder), at.join(folder)).expect("link");
    }
}

#[test]
fn getting_started_runs_as_written_and_prints_what_it_shows() {
    let page = fs::read_to_string(rig::root().join("daemon/docs/getting-started.md")).expect("the page");
    let blocks = blocks(&page);
    let (devices, people) = (free_port(), free_port());
    let mut script = String::from("set -eu -o pipefail\nexec 2>&1\ntrap 'kill $(jobs -p) 2> /dev/null' EXIT\n");
    let shell: Vec<usize> = (0..blocks.len()).filter(|i| blocks[*i].language == "sh").collect();
    for i in &shell {
        let text = blocks[*i].text.replace("8883", &devices.to_string()).replace("8884", &people.to_string());
        script.push_str(&format!("echo '@@ {i}'\n{text}"));
    }
    let dir = tempfile::tempdir().expect("folder");
    repository(dir.path(), devices, people);
    fs::write(dir.path().join("script"), script).expect("write");
    let path =
        format!("{}:{}", daemon::binary().parent().expect("folder").display(), std::env::var("PATH").expect("PATH"));
    let mut bash = Command::new("timeout");
    bash.args(["--kill-after=5", "240", "bash", "script"]).current_dir(dir.path());
    let began = std::time::Instant::now();
    let out = bash.env("PATH", path).env("REPO", dir.path()).output().expect("bash");
    let seen = String::from_utf8_lossy(&out.stdout).into_owned();
    let log = || fs::read_to_string(dir.path().join("plant/kentledge.log")).unwrap_or_default();
    assert!(out.status.success(), "{}:\n{seen}\n{}", out.status, log());
    let parts: Vec<&str> = seen.split("@@ ").skip(1).collect();
    assert_eq!(parts.len(), shell.len());
    let mut shown = 0;
    for (i, part) in shell.iter().zip(parts) {
        if let Some(next) = blocks.get(i + 1).filter(|b| b.language == "text") {
            let line = missing(&next.text, part);
            assert_eq!(line, None, "the output at line {} of the page, in\n{part}", next.line);
            shown += 1;
        }
    }
    assert!(shell.len() >= 15 && shown >= 8, "{} blocks, {shown} outputs", shell.len());
    let took = Duration::as_secs_f64(&began.elapsed());
    rig::measured(&format!("getting started: {} blocks, {shown} outputs compared, {took:.0} s", shell.len()));
}

/// All pages, and the README.
pub fn pages() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("docs").flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => walk(&path, found),
                false if path.extension().is_some_and(|e| e == "md") => found.push(path),
                false => {}
            }
        }
    }
    let mut found = vec![rig::root().join("README.md")];
    walk(&rig::root().join("daemon/docs"), &mut found);
    found
}

/// Takes what only a real machine has out of a configuration: files, ports and models that are not here.
fn at_home(text: &str, dir: &Path) -> String {
    let home = |line: &str| -> String {
        let key = line.split('=').next().unwrap_or("").trim();
        match key {
            "ca_file" | "cert_file" | "key_file" | "password_file" | "keyset" | "plugin" => String::new(),
            "model" => format!("model = \"{}\"", rig::root().join("models/pump-anomaly").display()),
            "state_dir" => format!("state_dir = \"{}\"", dir.join("state").display()),
            _ => line.to_owned(),
        }
    };
    text.lines().map(home).collect::<Vec<_>>().join("\n")
}

/// What `check` says of a configuration: its exit code and its problems.
fn check(text: &str, dir: &Path) -> (Option<i32>, String) {
    let file = dir.join("k.toml");
    fs::write(&file, at_home(text, dir)).expect("write");
    let done = daemon::run(&["check", "--config", &file.display().to_string()]);
    (done.code, done.err)
}

#[test]
fn configurations_in_the_documentation_pass_check_and_excerpts_have_no_unknown_key() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut whole, mut excerpts) = (0, 0);
    for page in pages() {
        for block in blocks(&fs::read_to_string(&page).expect("page")).iter().filter(|b| b.language == "toml") {
            let place = format!("{}:{}", page.display(), block.line);
            if ["authorized_keys", "[hardware]"].iter().any(|word| block.text.contains(word)) {
                continue; // a provision.toml
            }
            if block.text.contains("[device]") {
                let (code, problems) = check(&block.text, dir.path());
                assert_eq!(code, Some(0), "{place}: {problems}");
                whole += 1;
            } else {
                let (_, problems) = check(&format!("[device]\nsite = \"a\"\n{}", block.text), dir.path());
                let wrong = |line: &&str| ["unknown key", "did you mean", ": toml: "].iter().any(|w| line.contains(w));
                assert_eq!(problems.lines().find(wrong), None, "{place}");
                excerpts += 1;
            }
        }
    }
    assert!(whole >= 2 && excerpts >= 8, "{whole} whole configurations, {excerpts} excerpts");
    rig::measured(&format!("documentation: {whole} whole configurations, {excerpts} excerpts checked"));
}

#[test]
fn excerpt_with_an_unknown_key_is_found() {
    let dir = tempfile::tempdir().expect("folder");
    let (_, problems) = check("[device]\nsite = \"a\"\n[alarm.x]\nseverty = \"critical\"\n", dir.path());
    assert!(problems.contains("did you mean"), "{problems}");
}

#[test]
fn command_line_reference_has_every_command() {
    let done = daemon::run(&["--help"]);
    let page = fs::read_to_string(rig::root().join("daemon/docs/reference/command-line.md")).expect("the page");
    let commands = done.out.lines().skip_while(|l| !l.starts_with("Commands:")).skip(1).take_while(|l| !l.is_empty());
    let names: Vec<&str> = commands.filter_map(|l| l.split_whitespace().next()).collect();
    assert!(names.len() >= 8, "{}", done.out);
    for name in names {
        assert!(page.contains(&format!("`kentledge {name}")), "command-line.md does not name `kentledge {name}`");
    }
}
