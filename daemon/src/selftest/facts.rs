//! What this machine is, as the kernel tells it below /sys, /proc and /dev. Only reads; what it means is judged in `judge`.
//! Every path is below a root, so that recorded trees of other boards can be read as well.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use crate::limits;

/// All that is judged.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Facts {
    /// The words of `compatible` in the device tree, the board's own name first; empty on machines without one.
    pub compatible: Vec<String>,
    /// The name for people.
    pub model: String,
    /// `device.class` of the configuration.
    pub class: String,
    /// The kernel's release.
    pub kernel: String,
    /// Serial ports with something behind them, without the console: the most stable name of each.
    pub ports: Vec<String>,
    /// The console's port, which no sensor can use.
    pub console: Vec<String>,
    /// Names of sources whose port does not exist, and that port.
    pub missing_ports: Vec<(String, String)>,
    /// GPIO chips that the kernel has.
    pub gpio_chips: usize,
    /// Those that this user may open: label, lines, lines in use.
    pub gpio_open: Vec<(String, usize, usize)>,
    /// The first watchdog.
    pub watchdog: Option<Watchdog>,
    /// Accelerators' device nodes, and the driver of each.
    pub accelerators: Vec<(String, String)>,
    /// `None`: the clock was never set; else whether a time server confirms it.
    pub clock: Option<bool>,
    /// Names of battery-backed clocks.
    pub rtc: Vec<String>,
    /// Where the state directory lies.
    pub storage: Storage,
    /// The measurement, or why it failed.
    #[serde(skip)]
    pub speed: Option<Result<Speed, String>>,
    /// Temperatures.
    pub thermal: Vec<Zone>,
    /// The firmware's report of a supply voltage that was too low.
    pub undervoltage: Option<bool>,
    /// Network interfaces with hardware behind them.
    pub interfaces: Vec<Interface>,
    /// Interfaces with a default route.
    pub routes: Vec<String>,
    /// The configured brokers, in their order, and what came of a connection.
    #[serde(skip)]
    pub brokers: Vec<(String, Result<Duration, String>)>,
}

/// /sys/class/watchdog.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Watchdog {
    /// Its driver's name.
    pub identity: String,
    /// A process has armed it.
    pub active: bool,
    /// s.
    pub timeout_s: u64,
    /// It has caused the last restart.
    pub bit: bool,
}

/// The medium below the state directory.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Storage {
    /// The folder.
    pub folder: String,
    /// `mmcblk0`; empty: no block device (memory, network).
    pub disk: String,
    /// `SD`, `MMC` (eMMC), `nvme`, or empty.
    pub kind: String,
    /// The medium's own name.
    pub name: String,
    /// Bytes of the whole medium.
    pub bytes: u64,
    /// Bytes of the file system, and free ones.
    pub total: u64,
    /// See `total`.
    pub free: u64,
    /// Used life of an eMMC in steps of 10 %, the worse of its two kinds of memory; 11: used up.
    pub life: Option<u8>,
    /// An eMMC's reserve: 1 normal, 2 most used, 3 urgent.
    pub reserve: Option<u8>,
    /// Bytes written since the start of the machine.
    pub written: u64,
    /// The same time, s.
    pub uptime_s: u64,
}

/// A measurement.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Speed {
    /// Sequential writing, bytes in a second.
    pub bytes_s: u64,
    /// Median of small writes with a sync.
    pub commit: Duration,
    /// The longest.
    pub commit_longest: Duration,
}

/// A thermal zone.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// °C.
    pub celsius: f64,
    /// The lowest temperature at which the kernel slows down or stops, °C.
    pub trip: Option<f64>,
}

/// A network interface.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// A cable, or a radio's connection.
    pub carrier: bool,
}

/// A root to read below.
#[derive(Debug, Clone)]
pub struct Root(pub PathBuf);

impl Root {
    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// A small file's text, without the blanks and zeroes around it.
    fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        File::open(self.at(path)).ok()?.take(limits::SELFTEST_FILE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned())
    }

    fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// Sorted names in a folder that begin with `start`.
    fn names(&self, folder: &str, start: &str) -> Vec<String> {
        let Ok(all) = fs::read_dir(self.at(folder)) else { return Vec::new() };
        let names =
            all.flatten().take(limits::SELFTEST_ENTRIES).filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(start)).collect();
        names.sort();
        names
    }

    /// The last part of where a link leads.
    fn link_name(&self, path: &str) -> Option<String> {
        Some(fs::canonicalize(self.at(path)).ok()?.file_name()?.to_string_lossy().into_owned())
    }

    /// What needs nothing but files. `device` are the numbers of the state directory's file system.
    pub fn read(&self, device: (u64, u64)) -> Facts {
        let tree = "sys/firmware/devicetree/base";
        let words = self.text(&format!("{tree}/compatible")).unwrap_or_default();
        let product = || self.text("sys/class/dmi/id/product_name");
        Facts {
            compatible: words.split('\0').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
            model: self.text(&format!("{tree}/model")).or_else(product).unwrap_or_default(),
            kernel: self.text("proc/sys/kernel/osrelease").unwrap_or_default(),
            console: self.console(),
            ports: self.ports(),
            gpio_chips: self.names("sys/bus/gpio/devices", "gpiochip").len(),
            watchdog: self.watchdog(),
            accelerators: self.accelerators(),
            rtc: self
                .names("sys/class/rtc", "rtc")
                .iter()
                .filter_map(|rtc| self.text(&format!("sys/class/rtc/{rtc}/name")))
                .collect(),
            storage: self.storage(device),
            thermal: self
                .names("sys/class/thermal", "thermal_zone")
                .iter()
                .filter_map(|zone| self.zone(zone))
                .collect(),
            undervoltage: self.undervoltage(),
            interfaces: self.interfaces(),
            routes: self.routes(),
            ..Facts::default()
        }
    }

    fn console(&self) -> Vec<String> {
        let active = self.text("sys/class/tty/console/active").unwrap_or_default();
        active.split_whitespace().filter(|name| *name != "tty0").map(str::to_owned).collect()
    }

    fn ports(&self) -> Vec<String> {
        let console = self.console();
        let kinds = ["ttyACM", "ttyAMA", "ttyS", "ttyTHS", "ttyUSB"];
        let mut ports = kinds.iter().flat_map(|kind| self.names("sys/class/tty", kind)).collect::<Vec<_>>();
        ports.retain(|name| {
            // A port of the old kind that is not there has type 0.
            let there = self.text(&format!("sys/class/tty/{name}/type")).is_none_or(|kind| kind != "0");
            there && !console.contains(name)
        });
        ports.into_iter().map(|name| self.stable(&name).unwrap_or_else(|| format!("/dev/{name}"))).collect()
    }

    /// The name that stays when a device is plugged in elsewhere.
    fn stable(&self, port: &str) -> Option<String> {
        let folders = ["dev/serial/by-id", "dev/serial/by-path"];
        folders.iter().find_map(|folder| {
            let is = |name: &String| self.link_name(&format!("{folder}/{name}")).is_some_and(|to| to == port);
            self.names(folder, "").into_iter().find(is).map(|name| format!("/{folder}/{name}"))
        })
    }

    fn watchdog(&self) -> Option<Watchdog> {
        let at = |file: &str| format!("sys/class/watchdog/watchdog0/{file}");
        let identity = self.text(&at("identity"))?;
        // WDIOF_CARDRESET
        let bit = self.number::<u32>(&at("bootstatus")).is_some_and(|status| status & 0x20 != 0);
        let active = self.text(&at("state")).is_some_and(|state| state == "active");
        Some(Watchdog { identity, active, timeout_s: self.number(&at("timeout")).unwrap_or(0), bit })
    }

    fn accelerators(&self) -> Vec<(String, String)> {
        let kinds =
            [("dev", "nvidia"), ("dev", "apex_"), ("dev", "hailo"), ("dev/accel", "accel"), ("dev/dri", "renderD")];
        let mut found = Vec::new();
        for (folder, start) in kinds {
            for name in self.names(folder, start) {
                // nvidiactl and nvidia-uvm belong to nvidia0.
                if start == "nvidia" && !name[start.len()..].starts_with(|c: char| c.is_ascii_digit()) {
                    continue;
                }
                let class = if start == "accel" { "accel" } else { "drm" };
                let driver = self.link_name(&format!("sys/class/{class}/{name}/device/driver"));
                found.push((
                    format!("/{folder}/{name}"),
                    driver.unwrap_or_else(|| start.trim_end_matches('_').to_owned()),
                ));
            }
        }
        found
    }

    fn storage(&self, (major, minor): (u64, u64)) -> Storage {
        let uptime_s = self.text("proc/uptime").and_then(|up| up.split('.').next()?.parse().ok()).unwrap_or(0);
        let link = format!("sys/dev/block/{major}:{minor}");
        let Ok(mut at) = fs::canonicalize(self.at(&link)) else { return Storage { uptime_s, ..Storage::default() } };
        if at.join("partition").exists() {
            at.pop();
        }
        let disk = at.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let of = |file: &str| format!("sys/block/{disk}/{file}");
        let kind = if disk.starts_with("nvme") { Some("nvme".to_owned()) } else { self.text(&of("device/type")) };
        // The seventh number of `stat` is sectors of 512 bytes.
        let stat = self.text(&of("stat")).unwrap_or_default();
        let written =
            stat.split_whitespace().nth(6).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0).saturating_mul(512);
        let hex = |text: &str| u8::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let life = self.text(&of("device/life_time"));
        Storage {
            kind: kind.filter(|kind| ["SD", "MMC", "nvme"].contains(&kind.as_str())).unwrap_or_default(),
            name: self.text(&of("device/name")).or_else(|| self.text(&of("device/model"))).unwrap_or_default(),
            bytes: self.number::<u64>(&of("size")).unwrap_or(0).saturating_mul(512),
            // 0: the medium does not say.
            life: life.and_then(|text| text.split_whitespace().filter_map(hex).max()).filter(|used| *used > 0),
            reserve: self.text(&of("device/pre_eol_info")).and_then(|text| hex(&text)).filter(|reserve| *reserve > 0),
            written,
            uptime_s,
            disk,
            ..Storage::default()
        }
    }

    fn zone(&self, zone: &str) -> Option<Zone> {
        let at = |file: &str| format!("sys/class/thermal/{zone}/{file}");
        let celsius = |path: String| self.number::<f64>(&path).map(|milli| milli / 1000.0);
        let trips = (0..16).filter_map(|n| {
            let kind = self.text(&at(&format!("trip_point_{n}_type")))?;
            let slows = ["passive", "hot", "critical"].contains(&kind.as_str());
            celsius(at(&format!("trip_point_{n}_temp"))).filter(|trip| slows && *trip > 0.0)
        });
        let trip = trips.min_by(f64::total_cmp);
        Some(Zone { celsius: celsius(at("temp"))?, name: self.text(&at("type")).unwrap_or_default(), trip })
    }

    fn undervoltage(&self) -> Option<bool> {
        let at = |hwmon: &str, file: &str| format!("sys/class/hwmon/{hwmon}/{file}");
        let all = self.names("sys/class/hwmon", "hwmon");
        let rpi = all.iter().find(|hwmon| self.text(&at(hwmon, "name")).is_some_and(|name| name == "rpi_volt"))?;
        self.text(&at(rpi, "in0_lcrit_alarm")).map(|alarm| alarm != "0")
    }

    fn interfaces(&self) -> Vec<Interface> {
        let mut names = self.names("sys/class/net", "");
        names.retain(|name| self.at(&format!("sys/class/net/{name}/device")).exists());
        let carrier = |name: &String| self.text(&format!("sys/class/net/{name}/carrier")).is_some_and(|on| on == "1");
        names.into_iter().map(|name| Interface { carrier: carrier(&name), name }).collect()
    }

    fn routes(&self) -> Vec<String> {
        let old = self.text("proc/net/route").unwrap_or_default();
        let mut names: Vec<String> = old
            .lines()
            .skip(1)
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (name, to) = (words.next()?, words.next()?);
                (to == "00000000").then(|| name.to_owned())
            })
            .collect();
        let new = self.text("proc/net/ipv6_route").unwrap_or_default();
        names.extend(new.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let default = words.first().is_some_and(|to| to.bytes().all(|b| b == b'0')) && words.get(1) == Some(&"00");
            // What leads nowhere stands there as a route of lo.
            words.last().filter(|name| default && **name != "lo").map(|name| (*name).to_owned())
        }));
        names.sort();
        names.dedup();
        names
    }
}

/// Whether a path is a device, or a folder's link to one.
pub fn is_device(path: &str) -> bool {
    fs::metadata(Path::new(path)).is_ok_and(|meta| meta.file_type().is_char_device())
}
