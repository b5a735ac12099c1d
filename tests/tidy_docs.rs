//! The documentation against the repository: links, anchors, and every key, metric, command, topic, event and exit code.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{code, files, root};

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// A page without its fenced blocks.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// The anchors of a page, as GitHub and most renderers make them from headings; and explicit ones.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).lines().filter(|l| l.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
    let slug = |heading: String| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.into_iter().map(slug).collect()
}

/// Targets of a page's links: `](target)` and `src="target"`.
fn links(text: &str) -> Vec<String> {
    let of = |start: &str, end: char| {
        let parts = text.match_indices(start).map(|(at, _)| &text[at + start.len()..]);
        parts.filter_map(|rest| rest.split(end).next().map(str::to_owned)).collect::<Vec<_>>()
    };
    [of("](", ')'), of("src=\"", '"')].concat()
}

fn pages() -> Vec<String> {
    files().into_iter().filter(|f| f.ends_with(".md") && !f.starts_with("yocto-layer/tests")).collect()
}

/// `a/b/../c` without the dots.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part.as_os_str().to_str() {
            Some("..") => drop(plain.pop()),
            _ => plain.push(part),
        }
        plain
    })
}

#[test]
fn links_and_anchors_of_every_page_resolve() {
    let mut seen = 0;
    for page in pages() {
        let text = read(&page);
        for link in links(&prose(&text)).into_iter().filter(|l| !l.contains("://")) {
            seen += 1;
            let (file, anchor) = link.split_once('#').map_or((link.as_str(), ""), |(file, anchor)| (file, anchor));
            let folder = Path::new(&page).parent().expect("a folder");
            let target = if file.is_empty() { PathBuf::from(&page) } else { plain(&folder.join(file)) };
            assert!(root().join(&target).exists(), "{page}: {link}: no such file");
            let there = anchor.is_empty() || anchors(&read(target.to_str().expect("UTF-8"))).contains(anchor);
            assert!(there, "{page}: {link}: no such heading");
        }
    }
    assert!(seen > 60, "{seen} links");
}

#[test]
fn every_page_of_the_documentation_is_linked_from_another() {
    let linked: BTreeSet<PathBuf> = pages()
        .iter()
        .flat_map(|page| {
            let folder = Path::new(page).parent().expect("a folder").to_owned();
            let targets = links(&prose(&read(page))).into_iter();
            targets.map(move |l| plain(&folder.join(l.split('#').next().unwrap_or("")))).collect::<Vec<_>>()
        })
        .collect();
    for page in pages().iter().filter(|p| p.starts_with("daemon/docs/")) {
        assert!(linked.contains(Path::new(page)), "no page links to {page}");
    }
}

/// Words in quotes that are arguments of a call: `.int("baud"`.
fn arguments(text: &str, calls: &[&str]) -> BTreeSet<String> {
    let word = |w: &str| w.len() > 1 && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let mut found = BTreeSet::new();
    for call in calls {
        for (at, _) in text.match_indices(call) {
            let rest = text[at + call.len()..].trim_start();
            let rest = ["&mut t, ", "&t, ", "t, "].iter().find_map(|table| rest.strip_prefix(table)).unwrap_or(rest);
            if let Some(key) = rest.strip_prefix('"').and_then(|r| r.split('"').next()).filter(|key| word(key)) {
                found.insert(key.to_owned());
            }
        }
    }
    found
}

#[test]
fn configuration_reference_has_every_key_that_the_code_reads() {
    let calls = [
        ".str(",
        ".strs(",
        ".int(",
        ".float(",
        ".floats(",
        ".bool(",
        ".word(",
        ".need_str(",
        ".node(",
        ".sub(",
        ".tables(",
        ".has(",
        ".problem(",
        ".path(",
        "file(",
        "path(",
        "set(",
    ];
    let documented = read("daemon/docs/reference/configuration.md") + &read("daemon/docs/reference/sensors.md");
    let names: BTreeSet<&str> = documented.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let mut keys = BTreeSet::new();
    for file in files().into_iter().filter(|f| f.starts_with("daemon/src/config/") && f.ends_with(".rs")) {
        keys.append(&mut arguments(code(&read(&file)), &calls));
    }
    let missing: Vec<_> = keys.iter().filter(|key| !names.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "not in reference/configuration.md or sensors.md: {missing:?}");
    assert!(keys.len() > 110, "{}: {keys:?}", keys.len());
}

#[test]
fn metrics_reference_has_every_metric_and_no_other() {
    let text = read("daemon/src/report/metrics.rs");
    let calls = [".one(", ".each(", ".family(", ".histogram(", ".seconds(", "    ("];
    let mut named = arguments(code(&text), &calls);
    // Labels stand in pairs such as `("accepted", …)` too.
    named.retain(|name| !["accepted", "refused", "dropped"].contains(&name.as_str()));
    let page = read("daemon/docs/reference/metrics.md");
    let rows = page.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<String> = rows.map(str::to_owned).collect();
    let missing: Vec<_> = named.difference(&documented).collect();
    assert!(missing.is_empty(), "not in reference/metrics.md: {missing:?}");
    let unknown: Vec<_> = documented.iter().filter(|name| !text.contains(&format!("\"{name}\""))).collect();
    assert!(unknown.is_empty(), "in reference/metrics.md alone: {unknown:?}");
    assert!(documented.len() > 35, "{}", documented.len());
}

/// Names between a prefix and a suffix of the files in `daemon/docs/schema`.
fn schemas(prefix: &str) -> Vec<String> {
    let names = files().into_iter().filter_map(|f| f.strip_prefix("daemon/docs/schema/").map(str::to_owned));
    names.filter_map(|f| Some(f.strip_prefix(prefix)?.strip_suffix(".json")?.to_owned())).collect()
}

#[test]
fn command_reference_has_every_command_with_each_of_its_arguments() {
    let page = read("daemon/docs/reference/commands.md");
    let names = schemas("dn.args.");
    assert!(names.len() >= 14, "{names:?}");
    for name in names {
        let row = page.lines().find(|l| l.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("commands.md has no row for {name}"));
        let schema: serde_json::Value =
            serde_json::from_str(&read(&format!("daemon/docs/schema/dn.args.{name}.json"))).expect("JSON");
        for argument in schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key) {
            assert!(row.contains(&format!("`{argument}`")), "commands.md: {name} has an argument `{argument}`");
        }
    }
}

#[test]
fn mqtt_reference_has_every_topic_with_a_schema() {
    let page = read("daemon/docs/reference/mqtt.md");
    let topics = schemas("up.");
    assert!(topics.len() >= 14, "{topics:?}");
    for topic in topics {
        assert!(
            page.contains(&format!("(../schema/up.{topic}.json)")),
            "mqtt.md does not link the schema of up/{topic}"
        );
    }
}

/// Each kind of event as its topic says it, and its message id, in the order of the code.
fn events() -> (Vec<String>, Vec<String>) {
    let text = read("daemon/src/flow/event.rs");
    let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let ids: Vec<String> = text.lines().filter_map(quoted).filter(|w| w.len() == 32).collect();
    let (_, words) = text.split_once("fn word(").expect("fn word");
    let (words, _) = words.split_once("fn message_id(").expect("fn message_id");
    (words.lines().filter(|l| l.contains("=> \"")).filter_map(quoted).collect(), ids)
}

#[test]
fn message_ids_and_events_are_all_in_the_reference_and_in_troubleshooting() {
    let (words, ids) = events();
    assert!(words.len() >= 26 && ids.len() > words.len(), "{words:?} {ids:?}");
    let (table, help) = (read("daemon/docs/reference/message-ids.md"), read("daemon/docs/troubleshooting.md"));
    for id in ids {
        assert!(table.contains(&id), "message-ids.md does not have {id}");
    }
    for word in words {
        assert!(table.contains(&format!("`{word}`")), "message-ids.md does not have `{word}`");
        assert!(help.contains(&format!("\n### {word}\n")), "troubleshooting.md has no section {word}");
    }
}

#[test]
fn message_catalogue_points_to_sections_of_the_installed_documentation() {
    let there = anchors(&read("daemon/docs/troubleshooting.md"));
    let catalogue = read("daemon/catalog/kentledge.catalog");
    let supports: Vec<&str> = catalogue.lines().filter_map(|l| l.strip_prefix("Support: ")).collect();
    assert_eq!(supports.len(), catalogue.matches("\nSubject: ").count());
    for support in supports {
        let anchor = support.strip_prefix("file:///usr/share/kentledge/doc/troubleshooting.md#");
        assert!(anchor.is_some_and(|a| there.contains(a)), "no such section: {support}");
    }
    // Images and package install the documentation there.
    assert!(read("image/packages/debian/kentledge.install").contains("doc usr/share/kentledge\n"));
    assert!(read("image/quick/assemble").contains("/usr/share/kentledge/doc/"));
    assert!(read("yocto-layer/recipes-kentledge/kentledge/kentledge_0.1.0.bb").contains("${datadir}/kentledge/doc/"));
}

#[test]
fn exit_codes_of_the_code_are_in_the_reference() {
    let page = read("daemon/docs/reference/exit-codes.md");
    let text = read("daemon/src/error.rs");
    let codes = text.lines().filter_map(|l| l.trim().strip_suffix(',')?.split_once(" = ")?.1.parse::<u8>().ok());
    let codes: Vec<u8> = codes.collect();
    assert!(codes.len() >= 4, "{codes:?}");
    for code in codes {
        assert!(page.contains(&format!("| {code} |")), "exit-codes.md does not have {code}");
    }
}

#[test]
fn readme_is_read_to_its_end_and_has_the_two_commands() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 200, "{} lines", readme.lines().count());
    assert!(readme.contains("daemon/demo --for 30") && readme.contains("tests/run"));
}

/// What a script in `daemon/docs/pictures` prints.
fn drawn(script: &str, picture: Option<&str>) -> String {
    let mut python = Command::new("python3");
    let done = python.arg(root().join("daemon/docs/pictures").join(script)).args(picture).output().expect("python3");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("UTF-8")
}

#[test]
fn pictures_in_the_documentation_are_what_their_scripts_draw() {
    let committed = |name: &str| read(&format!("daemon/docs/pictures/{name}.svg"));
    assert!(drawn("road.py", None) == committed("road"), "run road.py > road.svg in daemon/docs/pictures");
    assert!(drawn("scale.py", None) == committed("scale"), "run scale.py > scale.svg in daemon/docs/pictures");
    let (names, page) = (drawn("concepts.py", None), read("daemon/docs/concepts.md"));
    assert!(names.lines().count() >= 6, "{names}");
    for name in names.lines() {
        let same = drawn("concepts.py", Some(name)) == committed(name);
        assert!(same, "run concepts.py {name} > {name}.svg in daemon/docs/pictures");
        assert!(page.contains(&format!("(pictures/{name}.svg)")), "concepts.md does not show {name}.svg");
    }
}
