//! Recorded trees of boards (paths and texts below /sys, /proc and /dev) from facts to verdicts, and the rules case by case.

use std::{fs, path::Path, time::Duration};

use super::{
    facts::{Facts, Interface, Root, Speed, Storage, Watchdog, Zone},
    judge::{Check, Verdict, judge, worst},
};

/// Lines `PATH = TEXT`, `\0` for a zero byte; `PATH -> TARGET` is a link.
fn recorded(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("folder");
    let at = |path: &str| {
        let path = dir.path().join(path.trim());
        fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
        path
    };
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        if let Some((path, text)) = line.split_once(" = ") {
            fs::write(at(path), text.replace("\\0", "\0").replace("\\n", "\n")).expect("write");
        } else if let Some((path, target)) = line.split_once(" -> ") {
            fs::create_dir_all(dir.path().join(target)).expect("folder");
            std::os::unix::fs::symlink(dir.path().join(target), at(path)).expect("link");
        } else {
            panic!("a line of a recorded tree: {line}");
        }
    }
    dir
}

fn read(tree: &str, device: (u64, u64)) -> Facts {
    let dir = recorded(tree);
    Root(dir.path().to_owned()).read(device)
}

fn of<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks.iter().find(|check| check.check == name).expect("a line")
}

fn verdict(facts: &Facts, name: &str) -> Verdict {
    of(&judge(facts), name).verdict
}

#[test]
fn recorded_raspberry_pi_4_is_read_and_judged_part_by_part() {
    let mut facts = read(include_str!("boards/raspberrypi4"), (179, 5));
    assert_eq!(facts.compatible, ["raspberrypi,4-model-b", "brcm,bcm2711"]);
    assert_eq!((facts.console.as_slice(), facts.gpio_chips), (["ttyS1".to_owned()].as_slice(), 2));
    assert_eq!(facts.ports, ["/dev/ttyAMA0", "/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0"]);
    assert_eq!((facts.storage.disk.as_str(), facts.storage.kind.as_str()), ("mmcblk0", "SD"));
    assert_eq!((facts.storage.bytes, facts.storage.written), (31_914_983_424, 2_097_152));
    assert_eq!(facts.routes, ["eth0"]);
    facts.class = "raspberrypi4".into();
    facts.clock = Some(false);
    facts.gpio_open = vec![("pinctrl-bcm2711".into(), 58, 3), ("raspberrypi-exp-gpio".into(), 8, 4)];
    let checks = judge(&facts);
    let words: Vec<_> = checks.iter().map(|check| format!("{} {}", check.verdict.word(), check.check)).collect();
    let expected = [
        "ok board",
        "ok ports",
        "ok gpio",
        "ok watchdog",
        "absent accelerators",
        "warn clock",
        "absent storage",
        "absent wear",
        "ok thermal",
        "absent power",
        "ok network",
        "absent broker",
    ];
    assert_eq!(words, expected, "{checks:#?}");
    assert!(of(&checks, "accelerators").found.contains("/dev/dri/renderD128 (v3d): no execution provider uses it"));
    // The same card in another board.
    facts.class = "raspberrypi5".into();
    let board = judge(&facts).remove(0);
    assert_eq!(board.verdict, Verdict::Fail);
    assert!(board.found.contains("Raspberry Pi 4 Model B") && board.found.contains("class raspberrypi5"), "{board:?}");
}

#[test]
fn recorded_compute_module_reports_the_wear_of_its_emmc() {
    let facts = read(include_str!("boards/emmc"), (179, 2));
    assert_eq!((facts.storage.life, facts.storage.reserve), (Some(10), Some(2)));
    assert_eq!((facts.storage.kind.as_str(), facts.storage.name.as_str()), ("MMC", "BJTD4R"));
    let checks = judge(&facts);
    let wear = of(&checks, "wear");
    assert_eq!(wear.verdict, Verdict::Warn);
    assert!(wear.found.contains("90-100 %") && wear.found.contains("a day written"), "{wear:?}");
    assert_eq!(facts.undervoltage, Some(true));
    assert_eq!(of(&checks, "power").verdict, Verdict::Warn);
    assert_eq!(of(&checks, "watchdog").found, "Broadcom BCM2835 Watchdog timer, 15 s; the last restart was its work");
}

#[test]
fn machine_without_anything_is_judged_without_a_failure() {
    let dir = tempfile::tempdir().expect("folder");
    let facts = Root(dir.path().to_owned()).read((0, 5));
    let checks = judge(&Facts { clock: Some(true), ..facts });
    assert!(checks.iter().all(|check| check.verdict != Verdict::Fail), "{checks:#?}");
    assert!(checks.iter().all(|check| !check.found.is_empty()));
    assert!(Path::new("/proc").exists() && worst(&checks) == Verdict::Warn);
}

#[test]
fn rules_of_the_disk() {
    let speed = |mb_s: f64, longest_ms| {
        let commit_longest = Duration::from_millis(longest_ms);
        Some(Ok(Speed { bytes_s: (mb_s * 1e6) as u64, commit: Duration::from_millis(4), commit_longest }))
    };
    let with = |disk: &str, speed| Facts {
        storage: Storage { disk: disk.into(), ..Storage::default() },
        speed,
        ..Facts::default()
    };
    for (facts, expected) in [
        (with("mmcblk0", speed(20.0, 40)), Verdict::Ok),
        (with("mmcblk0", speed(0.2, 40)), Verdict::Warn),
        (with("mmcblk0", speed(20.0, 900)), Verdict::Warn),
        (with("", speed(900.0, 1)), Verdict::Warn),
        (with("mmcblk0", Some(Err("read-only".into()))), Verdict::Fail),
        (with("mmcblk0", None), Verdict::Absent),
    ] {
        assert_eq!(verdict(&facts, "storage"), expected, "{facts:?}");
    }
    for (life, reserve, expected) in [
        (Some(1), Some(1), Verdict::Ok),
        (Some(9), None, Verdict::Warn),
        (Some(2), Some(2), Verdict::Warn),
        (Some(11), Some(1), Verdict::Fail),
        (Some(3), Some(3), Verdict::Fail),
        (None, Some(1), Verdict::Absent),
    ] {
        let storage = Storage { disk: "mmcblk0".into(), life, reserve, ..Storage::default() };
        assert_eq!(verdict(&Facts { storage, ..Facts::default() }, "wear"), expected, "{life:?} {reserve:?}");
    }
}

#[test]
fn rules_of_the_other_parts() {
    let dog = |active, bit| Some(Watchdog { identity: "w".into(), active, timeout_s: 15, bit });
    for (watchdog, expected) in [
        (None, Verdict::Absent),
        (dog(false, false), Verdict::Warn),
        (dog(true, false), Verdict::Ok),
        (dog(true, true), Verdict::Warn),
    ] {
        assert_eq!(verdict(&Facts { watchdog, ..Facts::default() }, "watchdog"), expected);
    }
    let zone = |celsius, trip| vec![Zone { name: "cpu".into(), celsius, trip }];
    for (thermal, expected) in [
        (vec![], Verdict::Absent),
        (zone(50.0, Some(80.0)), Verdict::Ok),
        (zone(72.0, Some(80.0)), Verdict::Warn),
        (zone(81.0, Some(80.0)), Verdict::Fail),
        (zone(79.0, None), Verdict::Ok),
        (zone(85.0, None), Verdict::Warn),
    ] {
        assert_eq!(verdict(&Facts { thermal, ..Facts::default() }, "thermal"), expected);
    }
    let interface = |carrier| vec![Interface { name: "eth0".into(), carrier }];
    for (interfaces, routes, expected) in [
        (vec![], vec![], Verdict::Absent),
        (interface(false), vec![], Verdict::Fail),
        (interface(true), vec![], Verdict::Warn),
        (interface(true), vec!["eth0".to_owned()], Verdict::Ok),
    ] {
        assert_eq!(verdict(&Facts { interfaces, routes, ..Facts::default() }, "network"), expected);
    }
    let (good, bad) = (("a:8883".to_owned(), Ok(Duration::ZERO)), ("b:8883".to_owned(), Err("refused".to_owned())));
    for (brokers, expected) in [
        (vec![], Verdict::Absent),
        (vec![good.clone()], Verdict::Ok),
        (vec![bad.clone(), good], Verdict::Warn),
        (vec![bad], Verdict::Fail),
    ] {
        assert_eq!(verdict(&Facts { brokers, ..Facts::default() }, "broker"), expected);
    }
    let missing_ports = vec![("pump".to_owned(), "/dev/ttyUSB7".to_owned())];
    let checks = judge(&Facts { missing_ports, ..Facts::default() });
    assert!(of(&checks, "ports").found.contains("source pump: /dev/ttyUSB7 does not exist"));
    assert_eq!((verdict(&Facts::default(), "clock"), worst(&checks)), (Verdict::Fail, Verdict::Fail));
    assert_eq!(verdict(&Facts { gpio_chips: 2, ..Facts::default() }, "gpio"), Verdict::Warn);
}

#[test]
fn a_broker_with_several_addresses_is_reached_by_the_one_that_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let open = listener.local_addr().expect("address");
    let closed = {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        gone.local_addr().expect("address")
    };
    assert_eq!(super::any("b", [closed, open].into_iter()), Ok(()));
    assert!(super::any("b", [closed].into_iter()).is_err_and(|why| why.contains(&closed.to_string())));
    assert!(super::any("b", std::iter::empty()).is_err_and(|why| why.contains("no address")));
}
