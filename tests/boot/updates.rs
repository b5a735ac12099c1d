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
use serde_json::{Value, json};

use crate::world::{BOARD, Device, UPDATE, bundle, bundle_of, model};

/// A start whose check waits for what does not come.
const UNWELL: Duration = Duration::from_secs(600);

/// A script instead of a program of the system.
fn instead(dir: &Path, of: &str, script: &str) -> Vec<String> {
    let file = dir.join(format!("instead-{}", of.replace('/', "-")));
    fs::write(&file, script).expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("mode");
    vec![format!("rm {of}"), format!("write {} {of}", file.display())]
}

/// A bundle that holds next to nothing: to be refused before that matters.
pub fn tiny(dir: &Path, name: &str, version: &str, keys: &Path, board: &str) -> PathBuf {
    let (rootfs, content) = (dir.join(format!("{name}.ext4")), dir.join(name));
    // What does not shrink: RAUC takes no bundle of a single block.
    fs::create_dir(&content).expect("folder");
    fs::write(content.join("noise"), (0..200_000).map(|_| fastrand::u8(..)).collect::<Vec<u8>>()).expect("write");
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-b", "4096", "-d"]).arg(&content).arg(&rootfs).arg("2M");
    assert!(make.status().expect("mke2fs").success());
    bundle_of(&rootfs, version, keys, &dir.join(format!("{name}.raucb")), board)
}

/// A newer model is installed into its slot and has learnt: what made its predictions, and in which boot.
fn another_model_serves(device: &mut Device) -> (Value, String) {
    device.learn();
    device.config("c1", "[models]\ntrial_s = 0\ntrial_windows = 20\n");
    let newer = model(device.dir.path());
    device.order("model.install", "m1", &newer);
    let end = device.end_of("model.install", "m1", Duration::from_secs(300));
    assert_eq!(end["state"], "success", "{end}");
    let (lineage, boot) = device.sub.wait("the newer model serves", |_| {
        device.lineage().filter(|(lineage, _)| lineage["model"] == "pump-anomaly@1.1.0")
    });
    assert_eq!(lineage["slot"], "a", "{lineage}");
    (lineage, boot)
}

/// The same model with the same calibration serves in another boot, and no number of its stream is missing: delivered,
/// stored and delivered late, or in the loss ledger. Returns what serves now, and how many predictions of the previous boot
/// came late.
#[track_caller]
fn survived(device: &Device, before: &(Value, String), what: &str) -> ((Value, String), u64) {
    let now = device.sub.wait_most(Duration::from_secs(120), "predictions in another boot", |_| {
        device.lineage().filter(|(lineage, boot)| *boot != before.1 && *lineage == before.0)
    });
    // What was kept comes behind what is new.
    device.sub.wait_most(Duration::from_secs(120), "each number is delivered or in the loss ledger", |messages| {
        (rig::feed::unbooked(messages, "p/anomaly") == 0).then_some(())
    });
    let messages = device.sub.messages();
    let kept = |m: &&std::sync::Arc<rig::Message>| {
        m.stream == "p/anomaly" && m.payload["hist"] == true && m.payload["boot"] == before.1.as_str()
    };
    let late: u64 = messages.iter().filter(kept).filter_map(|m| m.payload["seq"]["n"].as_u64()).sum();
    let entries = rig::sub::records(&messages, "loss").len();
    measured(&format!(
        "{what}: {} serves with its calibration; {late} predictions were kept over it, {entries} entries in the ledger, \
         0 numbers in neither",
        before.0["model"]
    ));
    (now, late)
}

/// What is not for it: refused, and the other slot is as it was.
fn refuses(device: &mut Device) {
    let dir = device.dir.path().to_owned();
    let others = dir.join("others");
    let made = Command::new(rig::root().join("image/keys/make")).arg(&others).output().expect("image/keys/make");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let flipped = tiny(&dir, "flipped", "0.9.0", &keys(), BOARD);
    let mut bytes = fs::read(&flipped).expect("bundle");
    // The signature lies at the end, before its length.
    let at = bytes.len() - 300;
    bytes[at] ^= 1;
    fs::write(&flipped, bytes).expect("write");
    let spoilt = tiny(&dir, "spoilt", "0.9.1", &keys(), BOARD);
    let mut bytes = fs::read(&spoilt).expect("bundle");
    // In the content, which nothing but its own blocks' digests covers.
    bytes[100_000] ^= 1;
    fs::write(&spoilt, bytes).expect("write");
    // All of it, and what the kernel still holds is written.
    let slot = |device: &mut Device| {
        device.machine.run("sync");
        device.machine.partition_sha256("rootfs-a")
    };
    // What the kernel has to say of spoilt blocks is not the answer.
    device.machine.run("dmesg -n 1");
    let untouched = slot(device);
    for (n, bundle) in [
        tiny(&dir, "older", "0.1.9", &keys(), BOARD),
        tiny(&dir, "foreign", "0.9.0", &others, BOARD),
        tiny(&dir, "another-board", "0.9.0", &keys(), "kentledge-raspberrypi5"),
        flipped,
        spoilt,
    ]
    .iter()
    .enumerate()
    {
        let id = format!("no-{n}");
        device.update(&id, bundle);
        let end = device.end(&id, Duration::from_secs(120));
        assert_eq!(end["state"], "failed", "{}: {:#?}", bundle.display(), device.texts(&id));
        measured(&format!("refused: {}: {}", bundle.file_name().expect("name").to_string_lossy(), end["text"]));
    }
    assert_eq!(slot(device), untouched, "not a byte of the other slot was written");
}

/// A first process that leaves on /data what only a newer system knows, and then crashes the kernel.
const CRASH: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
state=/data/kentledge
mount -t ext4 "$(findfs PARTLABEL=data)" /data && {
    # As its own config.set would: what was set before is kept beside it.
    grep -q colour $state/config/remote.toml || cp $state/config/remote.toml $state/config/previous
    printf '[device]\ncolour = "blue"\n' >$state/config/remote.toml
    mkdir -p $state/keys
    echo '{"_type": "kentledge.keyset.v2", "version": 2}' >$state/keys/2.json
    echo later >$state/keys/2.0.minisig
    chown -R --reference=$state $state/config $state/keys
    umount /data
}
echo c >/proc/sysrq-trigger
"#;

#[test]
fn a_system_is_updated_by_command_what_is_not_for_it_is_refused_and_one_without_a_daemon_is_left() {
    let mut device = Device::new();
    let dir = device.dir.path().to_owned();
    let good = bundle(&dir, "0.2.0", &[]);
    device.start();
    device.good();
    let id = device.machine.run("cat /etc/machine-id");
    let before = another_model_serves(&mut device);
    let began = Instant::now();
    device.update("u1", &good);
    // The broker is away from the first block written until the new system starts: what is decided meanwhile is kept.
    device.sub.wait_most(UPDATE, "the slot is written", |_| {
        device.texts("u1").iter().any(|t| t.contains(" %: ")).then_some(())
    });
    device.broker.stop();
    device.machine.says("starting slot B", UPDATE);
    device.broker.up();
    let end = device.end("u1", UPDATE);
    let texts = device.texts("u1");
    assert_eq!(end["state"], "success", "{texts:#?}");
    measured(&format!("update: {:.0} s from the order to `success`: {texts:?}", began.elapsed().as_secs_f64()));
    assert!(texts.iter().any(|t| t.contains(" %: ")), "no progress was reported: {texts:#?}");
    device.machine.since_its_start();
    device.machine.shell();
    assert_eq!(device.runs(), ("B".to_owned(), "0.2.0".to_owned()));
    assert_eq!(device.machine.run("cat /etc/machine-id"), id, "the same machine, with the same journal");
    let boots = device.machine.run("journalctl --list-boots --no-pager -q | wc -l");
    assert!(boots.parse::<u32>().expect("boots") >= 2, "{boots} boots in the journal");
    let (before, late) = survived(&device, &before, "update");
    assert!(late > 0, "predictions of the time without a broker came later");

    refuses(&mut device);

    // One that lacks the very program that would say how it is.
    let without = bundle(&dir, "0.3.0", &["rm /usr/bin/kentledge".to_owned()]);
    // Whom logind asks does not answer: the restart is asked for until it does.
    device.machine.run("systemctl start polkit");
    let polkit = device.machine.run("systemctl show -p MainPID --value polkit");
    device.machine.run(&format!("kill -STOP {polkit}"));
    let began = Instant::now();
    device.update("u2", &without);
    device.sub.wait_most(UPDATE, "it waits for a restart", |_| {
        device.texts("u2").iter().any(|t| t.contains("waits for a restart")).then_some(())
    });
    device.machine.run(&format!("kill -CONT {polkit}"));
    let end = device.end("u2", UPDATE);
    let text = end["text"].as_str().unwrap_or("").to_owned();
    measured(&format!("no daemon: {} after {:.0} s: {text}", end["state"], began.elapsed().as_secs_f64()));
    assert_eq!(end["state"], "rolled_back", "{:#?}", device.texts("u2"));
    device.machine.since_its_start();
    device.machine.shell();
    assert_eq!(device.runs(), ("B".to_owned(), "0.2.0".to_owned()));
    survived(&device, &before, "rollback");
    // It is not tried again.
    device.update("u3", &without);
    assert_eq!(device.end("u3", Duration::from_secs(60))["state"], "rejected");
}

#[test]
fn a_system_that_crashes_is_left_after_three_starts_and_one_without_a_network_after_its_time() {
    let mut device = Device::new();
    let dir = device.dir.path().to_owned();
    let crashes = bundle(&dir, "0.2.0", &instead(&dir, "/usr/lib/kentledge/preinit", CRASH));
    let mute = bundle(&dir, "0.3.0", &["rm /usr/lib/systemd/systemd-networkd".to_owned()]);
    device.start();
    device.good();
    device.config("c1", "[commands]\nos_confirm_s = 60\n");
    device.update("u1", &crashes);
    // The daemon dies while RAUC writes: the next one waits for RAUC and goes on.
    device.sub.wait_most(UPDATE, "the slot is written", |_| {
        device.texts("u1").iter().any(|t| t.contains(" %: ")).then_some(())
    });
    device.machine.run("systemctl kill -s KILL kentledge");
    for start in 1..=3 {
        device.machine.says("starting slot B", if start == 1 { UPDATE } else { START });
    }
    device.machine.says("starting slot A", START);
    let end = device.end("u1", START);
    measured(&format!("a kernel that crashes: {}: {}", end["state"], end["text"]));
    assert_eq!(end["state"], "rolled_back", "{:#?}", device.texts("u1"));
    device.machine.shell();
    assert_eq!(device.runs().0, "A");
    device.good();
    // The older system met what the newer one wrote: it started, put aside what it cannot read, said so, and goes on with
    // the last settings that it can.
    device.sub.wait_event("config.set_aside", "colour");
    let status = device.machine.run("kentledge status --json");
    assert!(status.contains("\"confirm_s\":60,"), "{status}");
    device.sub.wait_event("store.damaged", "keyset 2");

    let began = Instant::now();
    device.update("u2", &mute);
    device.machine.says("starting slot B", UPDATE);
    // Once is enough: another start would wait as long again.
    device.machine.says("starting slot A", UPDATE);
    let end = device.end("u2", START);
    measured(&format!("no network: {} after {:.0} s: {}", end["state"], began.elapsed().as_secs_f64(), end["text"]));
    assert_eq!(end["state"], "rolled_back", "{:#?}", device.texts("u2"));
    assert!(end["text"].as_str().unwrap_or("").contains("did not reach the broker"), "{end}");
}

#[test]
fn a_system_whose_model_cannot_run_is_left_and_one_that_missed_a_broker_that_was_away_may_come_again() {
    if !rig::long() {
        return rig::skipped("an unhealthy system: its three starts take a quarter of an hour, in the long form");
    }
    let mut device = Device::new();
    let dir = device.dir.path().to_owned();
    let runtime = "rm /usr/lib/kentledge/libonnxruntime.so.1.31.1".to_owned();
    let unwell = bundle(&dir, "0.2.0", &[runtime]);
    let good = bundle(&dir, "0.3.0", &[]);
    device.start();
    device.good();
    device.config("c1", "[commands]\nos_confirm_s = 60\n");
    let began = Instant::now();
    device.update("u1", &unwell);
    for start in 1..=3 {
        device.machine.says("starting slot B", if start == 1 { UPDATE } else { UNWELL });
    }
    device.machine.says("starting slot A", UNWELL);
    let end = device.end("u1", START);
    measured(&format!(
        "a model that cannot run: {} after {:.0} s: {}",
        end["state"],
        began.elapsed().as_secs_f64(),
        end["text"]
    ));
    assert_eq!(end["state"], "rolled_back", "{:#?}", device.texts("u1"));
    device.machine.shell();
    device.good();

    // The broker is away while a good one is on trial, and also for the old one afterwards.
    device.update("u2", &good);
    device.machine.says("starting slot B", UPDATE);
    device.broker.stop();
    device.machine.says("starting slot A", UPDATE);
    device.machine.shell();
    let over = "for i in $(seq 110); do kentledge status --json | grep -q '\"installing\":null' && break; sleep 1; done; \
                kentledge status --json | grep -o '\"installing\":null'";
    device.machine.run(over);
    device.broker.up();
    let end = device.end("u2", START);
    measured(&format!("a broker that was away: {}: {}", end["state"], end["text"]));
    assert_eq!(
        (&end["state"], &end["text"]),
        (&json!("rolled_back"), &json!("no uplink")),
        "{:#?}",
        device.texts("u2")
    );
    device.good();
    device.update("u3", &good);
    let end = device.end("u3", UPDATE);
    assert_eq!(end["state"], "success", "no fault of the bundle's: {:#?}", device.texts("u3"));
}
