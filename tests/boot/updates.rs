//! Another system: installed by a command, confirmed by itself, or left again.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rig::{
    machine::{START, keys},
    measured,
};

use crate::world::{BOARD, Device, UPDATE, bundle, bundle_of};

/// A script instead of a program of the system.
fn instead(dir: &Path, of: &str, script: &str) -> Vec<String> {
    let file = dir.join(format!("instead-{}", of.replace('/', "-")));
    fs::write(&file, script).expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("mode");
    vec![format!("rm {of}"), format!("write {} {of}", file.display())]
}

/// A bundle that holds next to nothing: to be refused before that matters.
fn tiny(dir: &Path, name: &str, version: &str, keys: &Path, board: &str) -> PathBuf {
    let (rootfs, content) = (dir.join(format!("{name}.ext4")), dir.join(name));
    // What does not shrink: RAUC takes no bundle of a single block.
    fs::create_dir(&content).expect("folder");
    fs::write(content.join("noise"), (0..200_000).map(|_| fastrand::u8(..)).collect::<Vec<u8>>()).expect("write");
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-b", "4096", "-d"]).arg(&content).arg(&rootfs).arg("2M");
    assert!(make.status().expect("mke2fs").success());
    bundle_of(&rootfs, version, keys, &dir.join(format!("{name}.raucb")), board)
}

#[test]
fn a_system_is_updated_by_command_what_is_not_for_it_is_refused_and_one_without_a_daemon_is_left() {
    let mut device = Device::new();
    let dir = device.dir.path().to_owned();
    let good = bundle(&dir, "0.2.0", &[]);
    device.start();
    device.good();
    let id = device.machine.run("cat /etc/machine-id");
    let began = Instant::now();
    device.update("u1", &good);
    let end = device.end("u1", UPDATE);
    let told = device.told("u1");
    assert_eq!(end["state"], "success", "{told:#?}");
    measured(&format!("update: {:.0} s from the order to `success`: {told:?}", began.elapsed().as_secs_f64()));
    assert!(told.iter().any(|t| t.contains(" %: ")), "how far it is was told: {told:#?}");
    device.machine.since_its_start();
    device.machine.shell();
    assert_eq!(device.runs(), ("B".to_owned(), "0.2.0".to_owned()));
    assert_eq!(device.machine.run("cat /etc/machine-id"), id, "the same machine, with the same journal");
    let boots = device.machine.run("journalctl --list-boots --no-pager -q | wc -l");
    assert!(boots.parse::<u32>().expect("boots") >= 2, "{boots} boots in the journal");

    // What is not for it: refused, and the other slot is as it was.
    let others = dir.join("others");
    let made = Command::new(rig::root().join("image/keys/make")).arg(&others).output().expect("image/keys/make");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let flipped = tiny(&dir, "flipped", "0.9.0", &keys(), BOARD);
    let mut bytes = fs::read(&flipped).expect("bundle");
    // The signature lies at the end, before its length.
    let at = bytes.len() - 300;
    bytes[at] ^= 1;
    fs::write(&flipped, bytes).expect("write");
    let slot = "head -c 8M /dev/disk/by-partlabel/rootfs-a | sha256sum";
    let before = device.machine.run(slot);
    for (n, bundle) in [
        tiny(&dir, "older", "0.1.9", &keys(), BOARD),
        tiny(&dir, "foreign", "0.9.0", &others, BOARD),
        tiny(&dir, "another-board", "0.9.0", &keys(), "kentledge-raspberrypi5"),
        flipped,
    ]
    .iter()
    .enumerate()
    {
        let id = format!("no-{n}");
        device.update(&id, bundle);
        let end = device.end(&id, Duration::from_secs(120));
        assert_eq!(end["state"], "failed", "{}: {:#?}", bundle.display(), device.told(&id));
        measured(&format!("refused: {}: {}", bundle.file_name().expect("name").to_string_lossy(), end["text"]));
    }
    assert_eq!(device.machine.run(slot), before, "not a byte of the other slot was written");

    // One that lacks the very program that would say how it is.
    let without = bundle(&dir, "0.3.0", &["rm /usr/bin/kentledge".to_owned()]);
    let began = Instant::now();
    device.update("u2", &without);
    let end = device.end("u2", UPDATE);
    let text = end["text"].as_str().unwrap_or("").to_owned();
    measured(&format!("no daemon: {} after {:.0} s: {text}", end["state"], began.elapsed().as_secs_f64()));
    assert_eq!(end["state"], "rolled_back", "{:#?}", device.told("u2"));
    device.machine.since_its_start();
    device.machine.shell();
    assert_eq!(device.runs(), ("B".to_owned(), "0.2.0".to_owned()));
    // It is not tried again.
    device.update("u3", &without);
    assert_eq!(device.end("u3", Duration::from_secs(60))["state"], "rejected");
}

#[test]
fn a_system_that_crashes_is_left_after_three_starts_and_one_without_a_network_after_its_time() {
    let mut device = Device::new();
    let dir = device.dir.path().to_owned();
    let crash = "#!/bin/sh\nmount -t proc proc /proc\necho c >/proc/sysrq-trigger\n";
    let crashes = bundle(&dir, "0.2.0", &instead(&dir, "/usr/lib/kentledge/preinit", crash));
    let mute = bundle(&dir, "0.3.0", &["rm /usr/lib/systemd/systemd-networkd".to_owned()]);
    device.start();
    device.good();
    device.config("c1", "[commands]\nos_confirm_s = 60\n");
    device.update("u1", &crashes);
    for start in 1..=3 {
        device.machine.says("starting slot B", if start == 1 { UPDATE } else { START });
    }
    device.machine.says("starting slot A", START);
    let end = device.end("u1", START);
    measured(&format!("a kernel that crashes: {}: {}", end["state"], end["text"]));
    assert_eq!(end["state"], "rolled_back", "{:#?}", device.told("u1"));
    device.machine.shell();
    assert_eq!(device.runs().0, "A");
    device.good();

    let began = Instant::now();
    device.update("u2", &mute);
    device.machine.says("starting slot B", UPDATE);
    // Once is enough: another start would wait as long again.
    device.machine.says("starting slot A", UPDATE);
    let end = device.end("u2", START);
    measured(&format!("no network: {} after {:.0} s: {}", end["state"], began.elapsed().as_secs_f64(), end["text"]));
    assert_eq!(end["state"], "rolled_back", "{:#?}", device.told("u2"));
    assert!(end["text"].as_str().unwrap_or("").contains("did not reach the broker"), "{end}");
}

#[test]
fn a_plug_pulled_at_any_moment_of_an_update_leaves_the_old_or_the_new_system() {
    if !rig::long() {
        return rig::skipped("plugs are pulled during updates in the long form only: 20 of them take an hour");
    }
    let cuts = 20;
    let mut device = Device::new();
    let dir = device.dir.path().to_owned();
    let (mut slot, mut version) = ("A".to_owned(), "0.1.0".to_owned());
    let mut ends = std::collections::BTreeMap::<String, u32>::new();
    for n in 1..=cuts {
        let next = format!("0.1.{n}");
        let bundle = bundle(&dir, &next, &[]);
        device.start();
        device.good();
        let id = format!("u{n}");
        device.update(&id, &bundle);
        // Between the order and some time after the restart.
        std::thread::sleep(Duration::from_millis(fastrand::u64(2_000..150_000)));
        let told = device.told(&id).last().cloned().unwrap_or_default();
        device.machine.cut();
        device.start();
        let end = device.end(&id, UPDATE);
        device.machine.read_on();
        let (now_slot, now_version) = device.running();
        match end["state"].as_str() {
            Some("success") => assert_eq!(now_version, next, "{:#?}", device.told(&id)),
            Some("failed" | "rolled_back") => assert_eq!((&now_slot, &now_version), (&slot, &version)),
            other => panic!("{other:?}: {:#?}", device.told(&id)),
        }
        *ends.entry(format!("{} (cut at: {told})", end["state"])).or_default() += 1;
        (slot, version) = (now_slot, now_version);
        device.machine.cut();
        let _ = fs::remove_file(bundle);
    }
    measured(&format!("{cuts} plugs pulled during updates: {ends:?}"));
}
