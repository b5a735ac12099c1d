//! The boards whose images are booted, and how QEMU plays each: its own arm64 machine with a virtio disk, or a Raspberry Pi 4
//! (`raspi4b`) with the card's own U-Boot, device tree and kernel arguments. QEMU's Pi has no Ethernet, no watchdog that
//! counts and no second PL011: its network is a USB adapter, its watchdog is off, its sensor is on the first UART.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::root;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Board {
    /// `image/build qemu`
    Virtual,
    /// `image/build raspberrypi4`
    RaspberryPi4,
}

impl Board {
    /// As `image/build` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtual => "qemu",
            Self::RaspberryPi4 => "raspberrypi4",
        }
    }

    /// As bundles name it.
    pub fn compatible(self) -> &'static str {
        match self {
            Self::Virtual => "kentledge-qemuarm64",
            Self::RaspberryPi4 => "kentledge-debian-raspberrypi4",
        }
    }

    /// How many times as long as the virtual board all of it takes: each four bytes of its card are a step of the processor's.
    pub fn slowness(self) -> u32 {
        match self {
            Self::Virtual => 1,
            Self::RaspberryPi4 => 4,
        }
    }

    /// A file of the image of a flavour.
    pub fn image(self, flavour: &str, file: &str) -> PathBuf {
        let path = self.folder(flavour).join(file);
        assert!(path.exists(), "{} is missing: image/boot-test builds it", path.display());
        path
    }

    fn folder(self, flavour: &str) -> PathBuf {
        root().join(format!("target/image/{}-{flavour}", self.name()))
    }

    /// Whether its image was built.
    pub fn is_built(self, flavour: &str) -> bool {
        self.folder(flavour).join("disk.img").exists()
    }

    /// QEMU's words for the board: everything but its serial lines' sockets, which are called `console` and `sensor`.
    pub fn qemu(self, flavour: &str, dir: &Path, ssh_port: u16) -> Vec<String> {
        let disk = dir.join("disk.img").display().to_string();
        let boot = self.image(flavour, "u-boot.bin").display().to_string();
        let net = format!("user,id=net,hostfwd=tcp:127.0.0.1:{ssh_port}-:22");
        let words: Vec<String> = match self {
            Self::Virtual => vec![
                "-M virt,gic-version=3 -cpu cortex-a53 -smp 2 -m 768 -serial chardev:console".into(),
                "-device pci-serial,chardev=sensor -device virtio-blk-pci,drive=card,bootindex=0".into(),
                "-device i6300esb -action watchdog=reset -device virtio-rng-pci".into(),
                "-device virtio-net-pci,netdev=net,romfile=".into(),
            ],
            Self::RaspberryPi4 => {
                vec![
                    "-M raspi4b -m 2G -serial chardev:sensor -serial chardev:console -device usb-net,netdev=net".into(),
                ]
            }
        };
        let mut words: Vec<String> = words.iter().flat_map(|text| text.split(' ')).map(str::to_owned).collect();
        words.extend(["-netdev".into(), net, "-drive".into()]);
        match self {
            Self::Virtual => words.extend([format!("if=none,id=card,format=raw,file={disk}"), "-bios".into(), boot]),
            Self::RaspberryPi4 => {
                // What QEMU lacks besides: its watchdog resets at once when it is armed. Its mini UART has no latch for the
                // divisor: the upper byte goes to the register of interrupts, and at 115200 baud it is not 0, which is an
                // interrupt without end. Tests of ciphers take a minute here.
                let more = "systemd.watchdog_sec=off cryptomgr.notests=1 maxcpus=2";
                let line = from_boot(dir, "cmdline.txt").trim().replace(",115200", ",3000000");
                let line = format!("{line} {more}");
                words.extend([format!("if=sd,format=raw,file={disk}"), "-kernel".into(), boot, "-dtb".into()]);
                words.extend([tree(dir).display().to_string(), "-append".into(), line]);
            }
        }
        words
    }

    /// The program.
    pub fn program(self) -> PathBuf {
        match self {
            Self::Virtual => "qemu-system-aarch64".into(),
            Self::RaspberryPi4 => root().join("image/quick/qemu-raspi"),
        }
    }
}

/// A text file of the card's boot partition.
pub fn from_boot(dir: &Path, name: &str) -> String {
    let image = format!("{}@@1M", dir.join("disk.img").display());
    let out = Command::new("mtype").args(["-i", &image, &format!("::{name}")]).output().expect("mtools is installed");
    assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The card's device tree, without what QEMU lacks; a test may have put one there already.
fn tree(dir: &Path) -> PathBuf {
    let (card, tree) = (dir.join("card.dtb"), dir.join("tree.dtb"));
    if !tree.exists() {
        let image = format!("{}@@1M", dir.join("disk.img").display());
        let copied = Command::new("mcopy").args(["-n", "-i", &image, "::bcm2711-rpi-4-b.dtb"]).arg(&card).status();
        assert!(copied.expect("mtools is installed").success());
        let made = Command::new(root().join("image/quick/boards/raspberrypi/qemu-tree")).arg(&card).arg(&tree).status();
        assert!(made.expect("qemu-tree").success());
        let _ = fs::remove_file(card);
    }
    tree
}
