//! What goes wrong besides updates: a clock at 1970, a daemon or a kernel that hangs, a full /data, no slot that starts.

use std::{fs, os::unix::fs::FileExt, time::Instant};

use rig::{
    machine::{Machine, START},
    measured,
};

use crate::world::Device;

#[test]
fn a_device_lives_through_1970_a_hung_daemon_a_hung_kernel_and_a_full_disk() {
    let mut device = Device::new();
    device.machine.options = ["-rtc", "base=1970-01-01T00:00:00"].map(str::to_owned).to_vec();
    device.start();
    // No clock of a system is before its making.
    let year: u32 = device.machine.run("date -u +%Y").parse().expect("a year");
    assert!(year >= 2026, "the clock says {year}");
    assert!(!device.machine.run("kentledge status --json").contains("\"clk\":\"sync\""), "and it is not believed");
    device.good();
    device.learn();
    device.alarm();

    // The daemon hangs: systemd's watchdog ends it, and it is back.
    let before = device.machine.run("systemctl show -p MainPID --value kentledge");
    let began = Instant::now();
    device.machine.run(&format!("kill -STOP {before}"));
    let line = "for i in $(seq 120); do p=$(systemctl show -p MainPID --value kentledge); \
                test $p != 0 -a $p != {} && systemctl is-active -q kentledge && break; sleep 1; done; echo $p";
    let after = device.machine.run(&line.replace("{}", &before));
    assert_ne!(after, before);
    let restarts = device.machine.run("systemctl show -p NRestarts --value kentledge");
    measured(&format!(
        "a hung daemon: another one serves {:.0} s later ({restarts} restart)",
        began.elapsed().as_secs_f64()
    ));
    assert_eq!(restarts, "1");

    // /data is full: the daemon starts, and reports it.
    device.machine.run("fallocate -l $(df --output=avail -B1 /data | tail -n 1) /data/filler; sync");
    device.machine.try_run("dd if=/dev/zero of=/data/filler2 bs=4k; sync");
    // The kernel hangs: the hardware watchdog restarts it.
    let began = Instant::now();
    device.machine.run("echo 0 >/proc/sys/kernel/panic");
    device.machine.send("echo c >/proc/sysrq-trigger");
    device.machine.says("starting slot A", START);
    measured(&format!("a hung kernel: restarted after {:.0} s", began.elapsed().as_secs_f64()));
    device.machine.shell();
    let line = "for i in $(seq 120); do systemctl is-active -q kentledge && break; sleep 1; done; systemctl is-active kentledge";
    assert_eq!(device.machine.run(line), "active");
    device.alarm();
    let free = device.machine.run("df --output=avail -B1K /data | tail -n 1");
    measured(&format!(
        "/data is full ({free} KiB are left, the outbox's own reserve): it starts, decides, and the alarm is heard"
    ));
    device.machine.run("rm /data/filler /data/filler2");
    // And the disk is used again.
    let line = "for i in $(seq 60); do kentledge status --json | grep -q '\"disk_ok\":true' && break; sleep 1; done; \
                kentledge status --json | grep -o '\"disk_ok\":[a-z]*' | head -n 1";
    assert_eq!(device.machine.run(line), "\"disk_ok\":true");
}

#[test]
fn where_no_slot_starts_it_stops_at_a_message_and_does_not_go_round_for_ever() {
    let mut machine = Machine::new();
    // Both slots' file systems are gone. Slot A begins behind 64 MiB + 1 MiB, slot B 512 MiB later.
    let disk = fs::OpenOptions::new().write(true).open(machine.dir.path().join("disk.img")).expect("disk");
    for (mib, size) in [(66, 512), (66 + 512, 512)] {
        disk.write_all_at(&vec![0; 4 << 20], mib << 20).unwrap_or_else(|why| panic!("slot of {size} MiB: {why}"));
    }
    machine.start();
    let mut starts = 0;
    let began = Instant::now();
    while machine.says_one_of(&["did not start", "neither slot starts. Stopped"], START) == 0 {
        starts += 1;
        assert!(starts <= 12, "it goes round");
    }
    measured(&format!("no slot starts: stopped after {starts} starts, {:.0} s", began.elapsed().as_secs_f64()));
    assert_eq!(starts, 12, "3 of each slot, and once more");
}
