//! What concerns the board: `kentledge selftest` on this machine, and cards that `image/write` refuses.

use std::{fs, process::Command};

use rig::{Mosquitto, daemon::run};
use serde_json::Value;

#[test]
fn selftest_reports_each_part_of_this_machine_and_names_a_missing_port() {
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().expect("folder");
    let config = dir.path().join("kentledge.toml");
    let text = format!(
        "[device]\nid = \"b\"\nsite = \"s\"\nstate_dir = {:?}\n[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n",
        dir.path(),
        broker.port
    );
    fs::write(&config, &text).expect("write");
    let path = config.display().to_string();
    let done = run(&["selftest", "--json", "--config", &path]);
    let report: Value =
        serde_json::from_str(done.out.trim()).unwrap_or_else(|why| panic!("{why}: {} {}", done.out, done.err));
    let checks = report["checks"].as_array().expect("checks");
    let names: Vec<_> = checks.iter().filter_map(|check| check["check"].as_str()).collect();
    let expected = [
        "board",
        "ports",
        "gpio",
        "watchdog",
        "accelerators",
        "clock",
        "storage",
        "wear",
        "thermal",
        "power",
        "network",
        "broker",
    ];
    assert_eq!(names, expected);
    let of = |name: &str| checks.iter().find(|check| check["check"] == name).expect("a part").clone();
    assert_eq!(of("broker")["verdict"], "ok", "{report}");
    assert!(of("storage")["found"].as_str().is_some_and(|found| found.contains("MB/s")), "{report}");
    // Nothing of the measurement remains.
    assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 1);
    // The same in lines; and a port that is not there.
    fs::write(&config, text + "[source.pump]\npath = \"/dev/ttyUSB77\"\ncolumns = [\"a\"]\n").expect("write");
    let done = run(&["selftest", "--no-write", "--config", &path]);
    assert_eq!(done.code, Some(1), "{} {}", done.out, done.err);
    let lines: Vec<_> = done.out.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{}", done.out);
    assert!(
        lines[1].starts_with("fail    ports") && lines[1].contains("source pump: /dev/ttyUSB77 does not exist"),
        "{}",
        done.out
    );
}

#[test]
fn card_that_is_too_small_or_no_disk_is_refused_with_words_and_a_larger_one_is_written() {
    let dir = tempfile::tempdir().expect("folder");
    let path = |name: &str| dir.path().join(name);
    let image: Vec<u8> = (0..4 << 20).map(|_| fastrand::u8(..)).collect();
    fs::write(path("disk.img"), &image).expect("write");
    for (name, bytes) in [("small", 2 << 20), ("large", 8 << 20)] {
        fs::File::create(path(name)).and_then(|card| card.set_len(bytes)).expect("card");
    }
    let write = |image: &str, card: &str, more: &[&str]| {
        let mut write = Command::new(rig::root().join("image/write"));
        let done = write
            .arg(path(image))
            .arg(path(card))
            .args(more)
            .stdin(std::process::Stdio::null())
            .output()
            .expect("image/write");
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let refused = |(done, said): (bool, String), why: &str| assert!(!done && said.contains(why), "{said}");
    refused(write("disk.img", "small", &["--yes"]), "the card is too small");
    assert!(fs::read(path("small")).expect("read").iter().all(|byte| *byte == 0));
    refused(write("disk.img", "", &["--yes"]), "is neither a disk nor a file");
    refused(write("none.img", "large", &["--yes"]), "none.img is missing");
    refused(write("disk.img", "large", &["--provision", "/none.toml"]), "/none.toml is missing");
    refused(write("disk.img", "large", &[]), "nothing was written");
    let (done, said) = write("disk.img", "large", &["--yes"]);
    assert!(done && said.contains("written"), "{said}");
    assert!(fs::read(path("large")).expect("read").starts_with(&image));
    assert_eq!(fs::metadata(path("large")).expect("card").len(), 8 << 20);
}
