//! The card for a Raspberry Pi 4: what its firmware and U-Boot find on it, and the board itself as far as QEMU has it. The short
//! form looks at the card and starts its U-Boot; the long form goes from power-on to an alarm, an update, and back from a bad one.

use std::{fs, path::Path, process::Command, time::Duration};

use rig::{
    Board,
    board::from_boot,
    machine::{Machine, START, keys},
    measured,
};
use serde_json::Value;

use crate::{
    updates::tiny,
    world::{BOARD, Device, UPDATE, bundle_for, debugfs},
};

const PI: Board = Board::RaspberryPi4;

/// What the virtual board has in its image.toml: here an operator sets it.
const SENSOR: &str = r#"
[source.pump]
path = "/dev/ttyAMA0"
baud = 115200
columns = ["seq", "time", "Accelerometer1RMS", "Accelerometer2RMS", "Current", "Pressure", "Temperature", "Thermocouple", "Voltage", "Volume Flow RateRMS"]
seq = "seq"
time = "time"
time_format = "ms"
[channel.accelerometer1rms]
source = "pump"
column = "Accelerometer1RMS"
[channel.accelerometer2rms]
source = "pump"
column = "Accelerometer2RMS"
[channel.volume_flow_raterms]
source = "pump"
column = "Volume Flow RateRMS"
[pipeline.anomaly]
model = "/usr/lib/kentledge/models/pump-anomaly.kmb"
[alarm.anomaly]
pipeline = "anomaly"
"#;

/// The card was not built: said, and passed over.
fn is_missing() -> bool {
    if !PI.is_built("test") {
        rig::skipped("no card of a Raspberry Pi: image/build raspberrypi4 test");
    }
    !PI.is_built("test")
}

fn listed(disk: &Path) -> Vec<String> {
    let out = Command::new("mdir").args(["-b", "-i", &format!("{}@@1M", disk.display())]).output().expect("mtools");
    String::from_utf8_lossy(&out.stdout).lines().map(|l| l.trim_start_matches("::/").to_owned()).collect()
}

#[test]
fn card_of_a_raspberry_pi_has_what_its_firmware_its_u_boot_and_rauc_look_for() {
    if is_missing() {
        return;
    }
    let machine = Machine::with(PI, "test");
    let disk = machine.dir.path().join("disk.img");
    let files = listed(&disk);
    let wanted =
        ["bcm2711-rpi-4-b.dtb", "boot.scr", "cmdline.txt", "config.txt", "fixup4.dat", "start4.elf", "u-boot.bin"];
    assert!(wanted.iter().all(|name| files.iter().any(|file| file == name)), "{files:?}");
    let config = from_boot(machine.dir.path(), "config.txt");
    for line in ["arm_64bit=1", "enable_uart=1", "kernel=u-boot.bin", "upstream_kernel=1"] {
        assert!(config.lines().any(|l| l == line), "{config}");
    }
    assert_eq!(from_boot(machine.dir.path(), "cmdline.txt").trim(), "console=ttyS1,115200");
    let script = from_boot(machine.dir.path(), "boot.scr");
    assert!(
        script.contains("rauc.slot=${slot}") && script.contains("raspberrypi,4-model-b") && !script.contains('@'),
        "{script}"
    );
    let table = Command::new("sfdisk").arg("-J").arg(&disk).output().expect("sfdisk");
    let table: Value = serde_json::from_slice(&table.stdout).expect("a table");
    let names: Vec<_> =
        table["partitiontable"]["partitions"].as_array().expect("partitions").iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["boot", "uboot-env", "rootfs-a", "rootfs-b", "data"]);
    // The slot: its board by name for RAUC, its kernel, the overlays, the radio's firmware.
    let rootfs = machine.dir.path().join("rootfs.ext4");
    fs::copy(PI.image("test", "rootfs.ext4"), &rootfs).expect("copy");
    let has = |line: &str| debugfs(&rootfs, &[line.to_owned()]);
    assert!(has("cat /etc/rauc/system.conf").contains("compatible=kentledge-debian-raspberrypi4"));
    assert!(has("cat /usr/lib/kentledge/image.toml").contains("class = \"raspberrypi4\""));
    let overlays = has("ls -l /usr/lib/kentledge/overlays");
    for name in ["uart0", "uart3", "spi0", "w1"] {
        assert!(overlays.contains(&format!("{name}.dtbo")), "{overlays}");
    }
    assert!(has("ls /usr/lib/firmware/brcm").contains("brcmfmac43455-sdio"));
    let modules = has("ls /usr/lib/modules");
    let kernel = modules.split_whitespace().find(|word| word.contains("arm64")).expect("modules").to_owned();
    let depends = has(&format!("cat /usr/lib/modules/{kernel}/modules.dep"));
    for module in [
        "genet",
        "bcm2835_wdt",
        "i2c-bcm2835",
        "spi-bcm2835",
        "w1-gpio",
        "w1_therm",
        "dm-verity",
        "sdhci-iproc",
        "ftdi_sio",
    ] {
        assert!(depends.contains(&format!("/{module}.ko")), "{module}");
    }
}

#[test]
fn card_in_another_board_is_stopped_with_words_before_a_slot_is_chosen() {
    if is_missing() {
        return;
    }
    let mut machine = Machine::with(PI, "test");
    // The same machine, whose firmware's tree says that it is another one. Of the same chip: on another one this U-Boot has no
    // console.
    let card = machine.dir.path().join("card.dtb");
    let image = format!("{}@@1M", machine.dir.path().join("disk.img").display());
    assert!(
        Command::new("mcopy")
            .args(["-n", "-i", &image, "::bcm2711-rpi-4-b.dtb"])
            .arg(&card)
            .status()
            .expect("mcopy")
            .success()
    );
    let tree = machine.dir.path().join("tree.dtb");
    let made =
        Command::new(rig::root().join("image/quick/boards/raspberrypi/qemu-tree")).arg(&card).arg(&tree).status();
    assert!(made.expect("qemu-tree").success());
    let mut put = Command::new("fdtput");
    put.args(["-t", "s"]).arg(&tree).args(["/", "compatible", "raspberrypi,4-compute-module", "brcm,bcm2711"]);
    assert!(put.status().expect("fdtput").success());
    machine.start();
    let before = machine.says("and this board is raspberrypi,4-compute-module. Stopped", START);
    assert!(
        before.contains("this card is for a Raspberry Pi 4 or 400") && !before.contains("starting slot"),
        "{before}"
    );
}

#[test]
fn raspberry_pi_4_goes_from_power_on_to_an_alarm_by_a_sensor_on_its_own_uart() {
    if is_missing() {
        return;
    }
    if !rig::long() {
        return rig::skipped("the Raspberry Pi 4 beyond its U-Boot: four starts of a slow machine, in the long form");
    }
    let mut device = Device::on(PI, "[hardware]\noverlays = [\"uart0\"]\n");
    let began = std::time::Instant::now();
    device.machine.start();
    device.machine.says("starting slot A", START);
    // provision.toml is taken over, and the overlays are U-Boot's to apply: once more.
    device.machine.says("KENTLEDGE: overlay uart0", 2 * START);
    device.machine.shell();
    device.online_after(0);
    measured(&format!(
        "Raspberry Pi 4 in QEMU, network by USB: online after {:.0} s and two starts, {:.0} s of processor time",
        began.elapsed().as_secs_f64(),
        device.machine.cpu_s()
    ));
    device.good();
    assert_eq!(
        device.machine.run("fw_printenv -n OVERLAYS; cat /proc/device-tree/model | tr -d '\\0'"),
        "uart0\nRaspberry Pi 4 Model B"
    );
    // The board and its parts, as they say of themselves.
    let (_, selftest) = device.machine.try_run("kentledge selftest --no-write");
    measured(&format!("selftest on it:\n{selftest}"));
    let lines: Vec<_> =
        selftest.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    for line in ["ok board", "ok ports", "ok gpio", "ok network", "ok broker"] {
        assert!(lines.iter().any(|l| l == line), "{line}: {selftest}");
    }
    device.config("c1", SENSOR);
    device.learn();
    device.alarm();
    // A bundle for another board is refused before a byte is written.
    let dir = device.dir.path().to_owned();
    let other = tiny(&dir, "another-board", "0.9.0", &keys(), BOARD);
    device.update("no", &other);
    let end = device.end("no", Duration::from_secs(180));
    assert_eq!(end["state"], "failed", "{end}");
    measured(&format!("refused: a bundle for another board: {}", end["text"]));
    updated_and_back(&mut device, &dir);
}

/// An update that stays, and one without a daemon, which is left again.
fn updated_and_back(device: &mut Device, dir: &Path) {
    let good = bundle_for(PI, dir, "0.2.0", &[]);
    let without = bundle_for(PI, dir, "0.3.0", &["rm /usr/bin/kentledge".to_owned()]);
    let began = std::time::Instant::now();
    device.update("u1", &good);
    device.machine.says("starting slot B", UPDATE);
    let end = device.end("u1", UPDATE);
    assert_eq!(end["state"], "success", "{:#?}", device.texts("u1"));
    measured(&format!("Raspberry Pi 4: update: {:.0} s: {}", began.elapsed().as_secs_f64(), end["text"]));
    device.machine.since_its_start();
    device.machine.shell();
    assert_eq!(device.runs(), ("B".to_owned(), "0.2.0".to_owned()));
    assert_eq!(device.machine.run("fw_printenv -n OVERLAYS"), "uart0");
    device.alarm();
    let began = std::time::Instant::now();
    device.update("u2", &without);
    let end = device.end("u2", UPDATE);
    assert_eq!(end["state"], "rolled_back", "{:#?}", device.texts("u2"));
    measured(&format!(
        "Raspberry Pi 4: a system without a daemon: {:.0} s: {}",
        began.elapsed().as_secs_f64(),
        end["text"]
    ));
    device.machine.since_its_start();
    device.machine.shell();
    assert_eq!(device.runs(), ("B".to_owned(), "0.2.0".to_owned()));
}
