//! Style as an ordinary test: what is looked at by eye once too seldom.

#[path = "tidy_docs.rs"]
mod docs;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// Files git knows, relative to the root.
fn files() -> Vec<String> {
    let out =
        Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(root()).output().expect("git");
    String::from_utf8(out.stdout)
        .expect("UTF-8")
        .lines()
        .map(str::to_owned)
        .filter(|f| root().join(f).exists())
        .collect()
}

fn rust(under: &str) -> Vec<(String, String)> {
    let names = files().into_iter().filter(|f| f.starts_with(under) && f.ends_with(".rs"));
    names.map(|f| (f.clone(), fs::read_to_string(root().join(f)).expect("read"))).collect()
}

/// The part of a file before its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn files_fit_a_head() {
    let long: Vec<_> = rust("").into_iter().filter(|(_, text)| text.lines().count() > 600).map(|(f, _)| f).collect();
    assert!(long.is_empty(), "above 600 lines: {long:?}");
}

#[test]
fn lines_fit_a_screen() {
    for (file, text) in rust("daemon/") {
        for (n, line) in text.lines().enumerate() {
            assert!(line.chars().count() <= 140, "{file}:{}: {} characters", n + 1, line.chars().count());
        }
    }
}

#[test]
fn every_module_says_what_it_owns() {
    for (file, text) in rust("") {
        assert!(text.starts_with("//!"), "{file} has no head");
    }
}

#[test]
fn only_the_agreed_names_stand_at_the_top() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "CHANGELOG.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "deny.toml",
        "README.md",
        "daemon",
        "yocto-layer",
        "image",
        "models",
        "udev",
        "systemd",
        "tests",
    ];
    for file in files() {
        let top = file.split('/').next().unwrap_or("");
        assert!(allowed.contains(&top) || top.starts_with('.'), "{top} stands at the top");
    }
}

#[test]
fn each_outside_thing_is_named_in_one_file_only() {
    let only = [
        ("sled::", "daemon/src/outbox/store.rs"),
        ("landlock::", "daemon/src/infer/sandbox.rs"),
        ("ureq::", "daemon/src/host/fetch.rs"),
        ("minisign_verify", "daemon/src/model/keyset.rs"),
        ("ratatui", "daemon/src/bus/top.rs"),
        ("tokio_serial", "daemon/src/host/tty.rs"),
        ("gpiocdev_uapi", "daemon/src/host/gpiochip.rs"),
        ("ClockId", "daemon/src/host/clock.rs"),
        ("SystemTime", "daemon/build.rs"),
        ("EventLoop", "daemon/src/link/mod.rs"),
    ];
    for (word, home) in only {
        for (file, text) in rust("daemon/") {
            let whole = |at: usize| !code(&text)[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let named = code(&text).match_indices(word).any(|(at, _)| whole(at));
            assert!(file == home || !named, "{file} names {word}, which belongs to {home}");
        }
    }
}

#[test]
fn the_runtime_and_unsafe_code_stand_in_two_files_each() {
    // `placement` asks ONNX Runtime what ort has no wrapper for; the bench measures bare ONNX Runtime.
    let homes: [(&str, &[&str]); 2] = [
        ("ort::", &["daemon/src/infer/worker_main.rs", "daemon/src/infer/placement.rs", "daemon/benches/worker.rs"]),
        ("unsafe {", &["daemon/src/host/sys.rs", "daemon/src/infer/placement.rs"]),
    ];
    for (word, homes) in homes {
        for (file, text) in rust("daemon/") {
            let whole = |at: usize| !code(&text)[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let named = code(&text).match_indices(word).any(|(at, _)| whole(at));
            assert!(homes.contains(&file.as_str()) || !named, "{file} names {word}");
        }
    }
}

#[test]
fn rooms_do_not_import_one_another() {
    // Which rooms a room may name beside the ground floor (flow, limits, error, host, config).
    let doors: [(&str, &[&str]); 12] = [
        ("source", &[]),
        ("alarm", &[]),
        ("signal", &["alarm"]),
        ("infer", &["alarm", "model"]),
        ("model", &[]),
        ("outbox", &[]),
        ("link", &["outbox"]),
        ("control", &["model"]),
        ("bus", &[]),
        ("output", &[]),
        ("selftest", &[]),
        ("integrations", &[]),
    ];
    let rooms = [
        "alarm",
        "output",
        "source",
        "signal",
        "infer",
        "model",
        "outbox",
        "link",
        "control",
        "bus",
        "provision",
        "cli",
        "report",
        "selftest",
        "integrations",
        "system",
    ];
    for (room, open) in doors {
        for (file, text) in rust(&format!("daemon/src/{room}/")) {
            for other in rooms.iter().filter(|other| **other != room && !open.contains(other)) {
                let direct = code(&text).contains(&format!("crate::{other}::"));
                // `use super::{…}` names a file of the same room.
                let imports = code(&text).split("use crate::{").skip(1).filter_map(|rest| rest.split("};").next());
                let grouped = imports.flat_map(str::lines).any(|line| line.starts_with(&format!("    {other}::")));
                assert!(!direct && !grouped, "{file} enters {other}");
            }
        }
    }
    for (file, text) in rust("daemon/src/flow/") {
        assert!(!code(&text).contains("crate::"), "{file}: the ground floor imports no room");
    }
}

/// The files beside a file that it imports by `use super::…;`, by their stems.
fn neighbours(text: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for import in code(text).split("\nuse super::").skip(1) {
        let import = import.split(';').next().unwrap_or_default();
        let mut depth = 0;
        // Names within the outermost braces, or the only one.
        let inner = import.trim_start_matches('{');
        let outermost = |c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0 && (c == ',' || c == '\n')
        };
        for name in inner.split(outermost) {
            names.extend(name.trim().split([':', ' ', '}']).next().filter(|name| !name.is_empty()));
        }
    }
    names
}

#[test]
fn files_of_a_folder_do_not_import_one_another_in_a_circle() {
    let files = rust("daemon/src/");
    let mut arrows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (file, text) in &files {
        let Some((folder, _)) = file.rsplit_once('/') else { continue };
        let beside = |stem: &str| [format!("{folder}/{stem}.rs"), format!("{folder}/{stem}/mod.rs")];
        let there = neighbours(text).into_iter().flat_map(beside).filter(|path| files.iter().any(|(f, _)| f == path));
        arrows.insert(file, there.collect());
    }
    assert!(arrows.values().map(Vec::len).sum::<usize>() > 200, "imports are read");
    // What imports nothing that is left is taken away, until only circles remain.
    loop {
        let before = arrows.len();
        let left: BTreeSet<String> = arrows.keys().map(|file| (*file).to_owned()).collect();
        arrows.retain(|_, to| to.iter().any(|file| left.contains(file)));
        if arrows.len() == before {
            break;
        }
    }
    assert!(arrows.is_empty(), "a circle, or what leads to one: {arrows:?}");
}

#[test]
fn nothing_waits_for_ever_or_grows_without_bound() {
    for (file, text) in rust("daemon/src/") {
        for word in ["unbounded", "todo!(", "unimplemented!(", "dbg!(", "process::exit"] {
            assert!(!code(&text).contains(word), "{file} uses {word}");
        }
    }
}

#[test]
fn no_path_or_host_of_some_machine_is_committed() {
    // Put together here, so that this file does not name them either.
    let roots = ["work", "farm"].map(|folder| format!("/{folder}/"));
    let hosts =
        [("pypi", "org"), ("crates", "io"), ("deb.debian", "org"), ("npmjs", "org")].map(|(a, b)| format!("{a}.{b}"));
    for file in files().into_iter().filter(|f| !f.ends_with(".lock")) {
        let Ok(text) = fs::read_to_string(root().join(&file)) else {
            continue;
        };
        let words = text.split(|c: char| c.is_whitespace() || "\"'`()=,".contains(c));
        for word in words {
            assert!(!roots.iter().any(|r| word.starts_with(r.as_str())), "{file} names {word}");
            assert!(!hosts.iter().any(|h| word.contains(h.as_str())), "{file} names {word}");
        }
    }
}

/// rustls-webpki 0.102 has advisories, and rumqttc depends on it where one of its TLS features is on. None is: the session is ours.
#[test]
fn the_old_webpki_is_no_dependency() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
    let packages = lock.split("[[package]]").filter(|package| package.contains("name = \"rustls-webpki\""));
    let versions: Vec<&str> =
        packages.filter_map(|package| package.lines().find(|line| line.starts_with("version"))).collect();
    assert!(versions.iter().all(|version| !version.contains("0.102")) && !versions.is_empty(), "{versions:?}");
}

/// What crosses from one room into another is an error with a type, so that a signature says whose it is.
#[test]
fn rooms_that_others_call_return_typed_errors() {
    for room in ["bus", "config", "host", "model", "output", "provision"] {
        for (file, text) in rust(&format!("daemon/src/{room}/")) {
            let public = code(&text).split('\n').enumerate().filter(|(_, line)| {
                let line = line.trim_start();
                line.starts_with("pub fn ") || line.starts_with("pub async fn ")
            });
            for (n, _) in public {
                let signature: String =
                    code(&text).split('\n').skip(n).take_while(|line| !line.starts_with('}')).collect();
                let returned = signature.split('{').next().unwrap_or_default();
                assert!(!returned.ends_with(", String> "), "{file}:{}: the error is a String", n + 1);
            }
        }
    }
}

/// The promise of the field binary: what it links travels in every update, and each crate is one to watch.
const FIELD_CRATES_MAX: usize = 220;

#[test]
fn field_binary_links_no_more_crates_than_promised() {
    let tree = ["tree", "--package", "kentledge", "--edges", "normal", "--prefix", "none", "--no-dedupe"];
    let out = Command::new(env!("CARGO")).args(tree).args(["--locked", "--offline"]).current_dir(root()).output();
    let out = out.expect("cargo");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    // NAME VERSION, without "(proc-macro)" and the like: macros count too, they are code that is trusted.
    let crates: BTreeSet<String> =
        text.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert!((100..=FIELD_CRATES_MAX).contains(&crates.len()), "{} crates: {crates:?}", crates.len());
}

/// With an exception for the crate that makes a binary, cargo 1.95 forgets `strip` for it: 1.9 MB of symbols would travel along.
#[test]
fn release_profile_has_no_exception_for_our_own_crates_so_that_binaries_are_stripped() {
    let read = |file: &str| fs::read_to_string(root().join(file)).expect("read");
    let text = read("Cargo.toml");
    let table = |head: &str| -> String {
        let rest = text.split_once(&format!("\n[{head}]\n")).unwrap_or_else(|| panic!("[{head}]")).1;
        rest.split("\n[").next().unwrap_or_default().to_owned()
    };
    assert!(table("profile.release").contains("strip = \"symbols\""));
    let exceptions = table("profile.release.package");
    let manifests: Vec<String> = files().into_iter().filter(|f| f.ends_with("/Cargo.toml")).collect();
    let own: BTreeSet<String> = manifests
        .iter()
        .filter_map(|f| Some(read(f).lines().find(|line| line.starts_with("name = "))?.split('"').nth(1)?.to_owned()))
        .collect();
    assert!(own.contains("kentledge"), "{own:?}");
    for name in own {
        let has = exceptions.lines().any(|line| line.split(" =").next() == Some(&name));
        assert!(!has && !text.contains(&format!("[profile.release.package.{name}]")), "an exception for {name}");
    }
}
