//! What is shipped: no way in but the owner's key, and none without keys of one's own.

use std::{
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use rig::{Board, measured};

use crate::world::Device;

#[test]
fn no_image_is_built_without_keys_from_outside() {
    let all: [&[&str]; 4] = [
        &["qemu", "release"],
        &["raspberrypi5"],
        &["yocto", "raspberrypi5"],
        &["yocto", "jetson-orin-nano-devkit-nvme"],
    ];
    for of in all {
        let mut build = Command::new(rig::root().join("image/build"));
        let began = Instant::now();
        let done = build.args(of).env_remove("KENTLEDGE_KEYS").output().expect("image/build");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && said.contains("KENTLEDGE_KEYS"), "{of:?}: {said}");
        assert!(began.elapsed() < Duration::from_secs(5), "{of:?}: said before anything is fetched");
    }
    // Nor with half of them.
    let dir = tempfile::tempdir().expect("folder");
    let mut build = Command::new(rig::root().join("image/build"));
    let done = build.args(["qemu", "release"]).env("KENTLEDGE_KEYS", dir.path()).output().expect("image/build");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && said.contains("is missing"), "{said}");
    // And none are made where they could be committed.
    let within = rig::root().join("target/keys-that-must-not-be");
    let made = Command::new(rig::root().join("image/keys/make")).arg(&within).output().expect("image/keys/make");
    assert!(!made.status.success() && !within.exists());
}

#[test]
fn a_release_has_no_console_and_lets_in_the_owner_of_the_key_alone() {
    if !rig::long() {
        return rig::skipped("the release flavour is built and booted in the long form only");
    }
    let mut device = Device::unprovisioned(Board::Virtual, "release");
    // Provisioned without an SSH key: it runs, and there is no way in.
    device.provision(false, "");
    let before = device.onlines();
    device.machine.start();
    device.online_after(before);
    std::thread::sleep(Duration::from_secs(10));
    assert!(!accepts_ssh(&device), "SSH runs without a provisioned key");
    device.machine.type_at_console("root\n\nid\n");
    std::thread::sleep(Duration::from_secs(5));
    let said = device.machine.console();
    let after = said.rsplit("KENTLEDGE: starting slot").next().unwrap_or("");
    for way_in in ["login:", "kl#", "uid=", "Password", "emergency"] {
        assert!(!after.contains(way_in), "the console lets in: {after}");
    }
    device.machine.cut();
    // With one: the administrator, by that key.
    device.provision(true, "");
    let before = device.onlines();
    device.machine.start();
    device.online_after(before);
    let key = device.key.clone();
    let until = Instant::now() + Duration::from_secs(120);
    let log = loop {
        let log = device.machine.ssh(&key, "kentledge status && id && journalctl -u kentledge -n 3 --no-pager");
        if log.status.success() || Instant::now() > until {
            break log;
        }
        std::thread::sleep(Duration::from_secs(2));
    };
    let text = String::from_utf8_lossy(&log.stdout).into_owned();
    assert!(text.contains("(admin)"), "{text} {}", String::from_utf8_lossy(&log.stderr));
    let by_password = device.machine.ssh_as("root", &["-v", "-o", "PubkeyAuthentication=no"], "id");
    let said = String::from_utf8_lossy(&by_password.stderr).into_owned();
    assert!(said.contains("Permission denied (publickey)"), "nothing but a key is asked for: {said}");
    measured("release: no SSH and no console without a key; with one, the administrator alone, by that key alone");
}

/// QEMU takes the connection; what answers is the machine, if anything.
fn accepts_ssh(device: &Device) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", device.machine.ssh_port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let mut banner = [0; 4];
    std::io::Read::read_exact(&mut stream, &mut banner).is_ok_and(|()| &banner == b"SSH-")
}
