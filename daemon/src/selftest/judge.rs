//! Judges what `facts` found: a line for each part of the machine, with a verdict and what to do. Pure.

use std::time::Duration;

use serde::Serialize;

use super::facts::{Facts, Storage};
use crate::limits;

/// The verdict of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The machine has no such part, or nothing is known of it.
    Absent,
    /// It works, and will cost something sooner or later.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    /// As it is printed.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Absent => "absent",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The part: `board`, `ports`, …
    pub check: &'static str,
    /// The verdict.
    pub verdict: Verdict,
    /// What is there.
    pub found: String,
    /// What to do; empty where nothing is.
    pub advice: String,
}

/// The word of `compatible` for a device class, by the beginning of the class. Other classes are not compared.
const BOARDS: [(&str, &str); 4] = [
    ("raspberrypi4", "brcm,bcm2711"),
    ("raspberrypi5", "brcm,bcm2712"),
    ("jetson-orin", "nvidia,tegra234"),
    ("qemuarm64", "linux,dummy-virt"),
];
/// Kernel drivers of accelerators that some execution provider of ONNX Runtime uses.
const USED_DRIVERS: [&str; 8] = ["nvidia", "apex", "hailo", "i915", "xe", "intel_vpu", "amdxdna", "amdgpu"];
/// A commit above this holds up the outbox, which makes about 20 a second at most and one a second at least.
const COMMIT_SLOW: Duration = Duration::from_millis(500);
/// Sequential writing below this, bytes a second: an update of 200 MiB takes longer than a quarter of an hour.
const WRITE_SLOW: u64 = 250_000;
/// °C below the trip at which the kernel slows down.
const TRIP_NEAR: f64 = 10.0;
/// °C where no trip is known.
const HOT: f64 = 80.0;

fn check(check: &'static str, verdict: Verdict, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { check, verdict, found: found.into(), advice: advice.into() }
}

/// All lines, always in the same order.
pub fn judge(facts: &Facts) -> Vec<Check> {
    vec![
        board(facts),
        ports(facts),
        gpio(facts),
        watchdog(facts),
        accelerators(facts),
        clock(facts),
        storage(facts),
        wear(&facts.storage),
        thermal(facts),
        power(facts),
        network(facts),
        broker(facts),
    ]
}

/// The worst verdict; `absent` does not count: no machine has everything.
pub fn worst(checks: &[Check]) -> Verdict {
    checks.iter().map(|check| check.verdict).filter(|verdict| *verdict != Verdict::Absent).max().unwrap_or(Verdict::Ok)
}

/// Some names, and how many more.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(limits::SELFTEST_NAMES).cloned().collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(limits::SELFTEST_NAMES);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn board(facts: &Facts) -> Check {
    let model = if facts.model.is_empty() { "unknown board" } else { &facts.model };
    let found = format!("{model}, kernel {}", if facts.kernel.is_empty() { "unknown" } else { &facts.kernel });
    let wanted = BOARDS.iter().find(|(class, _)| facts.class.starts_with(class));
    match wanted {
        Some((_, word)) if !facts.compatible.iter().any(|is| is == word) => {
            let advice = "write the image of this board, or correct device.class: updates for another board would not start here";
            check("board", Verdict::Fail, format!("{found}; this system is for the class {}", facts.class), advice)
        }
        _ => check("board", Verdict::Ok, found, ""),
    }
}

fn ports(facts: &Facts) -> Check {
    if !facts.missing_ports.is_empty() {
        let missing: Vec<_> = facts
            .missing_ports
            .iter()
            .map(|(source, port)| format!("source {source}: {port} does not exist"))
            .collect();
        let there = if facts.ports.is_empty() { "no serial port".to_owned() } else { some(&facts.ports) };
        let advice = format!("plug the adapter in, or correct source.*.path; there is: {there}");
        return check("ports", Verdict::Fail, missing.join("; "), advice);
    }
    if facts.ports.is_empty() {
        let advice = "plug an adapter in; on a Raspberry Pi a UART of the header needs an overlay in provision.toml";
        return check("ports", Verdict::Absent, "no serial port beside the console", advice);
    }
    check("ports", Verdict::Ok, format!("{} serial: {}", facts.ports.len(), some(&facts.ports)), "")
}

fn gpio(facts: &Facts) -> Check {
    if facts.gpio_chips == 0 && facts.gpio_open.is_empty() {
        return check("gpio", Verdict::Absent, "no GPIO chip", "");
    }
    if facts.gpio_open.len() < facts.gpio_chips {
        let found = format!("{} chips, {} may be opened", facts.gpio_chips, facts.gpio_open.len());
        return check(
            "gpio",
            Verdict::Warn,
            found,
            "run it as root, or give this user the group dialout and 60-kentledge-gpio.rules",
        );
    }
    let chips: Vec<_> =
        facts.gpio_open.iter().map(|(label, lines, used)| format!("{label}: {lines} lines, {used} in use")).collect();
    check("gpio", Verdict::Ok, some(&chips), "")
}

fn watchdog(facts: &Facts) -> Check {
    let Some(watchdog) = &facts.watchdog else {
        let advice = "load the board's driver: without it a kernel that hangs stays so until someone pulls the plug";
        return check("watchdog", Verdict::Absent, "no hardware watchdog", advice);
    };
    let found = format!("{}, {} s", watchdog.identity, watchdog.timeout_s);
    if watchdog.bit {
        let advice = "look into the journal of the previous start: journalctl -b -1 -e";
        return check("watchdog", Verdict::Warn, format!("{found}; the last restart was its work"), advice);
    }
    if !watchdog.active {
        let advice = "set RuntimeWatchdogSec= in /etc/systemd/system.conf.d";
        return check("watchdog", Verdict::Warn, format!("{found}, not armed"), advice);
    }
    check("watchdog", Verdict::Ok, format!("{found}, armed"), "")
}

fn accelerators(facts: &Facts) -> Check {
    let shown = |of: &[&(String, String)]| {
        some(&of.iter().map(|(node, driver)| format!("{node} ({driver})")).collect::<Vec<_>>())
    };
    let (used, unused): (Vec<_>, Vec<_>) =
        facts.accelerators.iter().partition(|(_, driver)| USED_DRIVERS.contains(&driver.as_str()));
    if !used.is_empty() {
        return check("accelerators", Verdict::Ok, shown(&used), "");
    }
    let found = if unused.is_empty() {
        "none; models run on the processor".to_owned()
    } else {
        format!("{}: no execution provider uses it; models run on the processor", shown(&unused))
    };
    check("accelerators", Verdict::Absent, found, "")
}

fn clock(facts: &Facts) -> Check {
    let rtc = if facts.rtc.is_empty() { "no battery-backed clock".to_owned() } else { some(&facts.rtc) };
    let after = "after a power cut without a network, records have no true time until a time server answers";
    match facts.clock {
        Some(true) if facts.rtc.is_empty() => {
            check("clock", Verdict::Warn, format!("confirmed by a time server; {rtc}"), format!("add one: {after}"))
        }
        Some(true) => check("clock", Verdict::Ok, format!("confirmed by a time server; {rtc}"), ""),
        Some(false) => {
            let advice =
                "reach a time server: ntp in provision.toml, UDP port 123; signed commands need the nonce until then";
            check("clock", Verdict::Warn, format!("set, but no time server confirms it; {rtc}"), advice)
        }
        None => check(
            "clock",
            Verdict::Fail,
            format!("before this program was built; {rtc}"),
            "set it, or reach a time server",
        ),
    }
}

fn mib(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

fn storage(facts: &Facts) -> Check {
    let storage = &facts.storage;
    let on = match (storage.disk.as_str(), storage.kind.as_str()) {
        ("", _) => "no disk".to_owned(),
        (disk, "") => format!("{disk}, {}", mib(storage.bytes)),
        (disk, kind) => format!("{disk} ({kind} {}), {}", storage.name, mib(storage.bytes)),
    };
    let found = format!("{}: {on}, {} of {} free", storage.folder, mib(storage.free), mib(storage.total));
    let speed = match &facts.speed {
        None => return check("storage", Verdict::Absent, format!("{found}; not measured"), ""),
        Some(Err(why)) => {
            let advice =
                "make room, or run it as the daemon's user: what the daemon cannot write is lost at the next power cut";
            return check("storage", Verdict::Fail, format!("{found}; not writable: {why}"), advice);
        }
        Some(Ok(speed)) => speed,
    };
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let measured = format!(
        "{:.1} MB/s, commit {} (longest {})",
        speed.bytes_s as f64 / 1e6,
        ms(speed.commit),
        ms(speed.commit_longest)
    );
    let found = format!("{found}; {measured}");
    if storage.disk.is_empty() {
        let advice = "/data is in memory or on a network: its partition was not mounted (journalctl -k | grep preinit)";
        return check("storage", Verdict::Warn, found, advice);
    }
    if speed.bytes_s < WRITE_SLOW || speed.commit_longest > COMMIT_SLOW {
        let advice =
            "try another card: this one is worn, counterfeit or too slow; the A1 or A2 class is for such writes";
        return check("storage", Verdict::Warn, found, advice);
    }
    check("storage", Verdict::Ok, found, "")
}

/// Used life, and how much is written in a day.
fn wear(storage: &Storage) -> Check {
    // Less than an hour after the start says nothing of a day.
    let daily = (storage.uptime_s >= 3600 && !storage.disk.is_empty())
        .then(|| format!("{} a day written", mib(storage.written / storage.uptime_s.max(1) * 86_400)));
    let with = |text: String| daily.iter().fold(text, |text, daily| format!("{text}; {daily}"));
    let Some(used) = storage.life else {
        let found = match storage.kind.as_str() {
            "SD" => "an SD card does not report its wear",
            "" if storage.disk.is_empty() => "no disk",
            "nvme" => "not read: use nvme smart-log",
            _ => "not reported",
        };
        return check("wear", Verdict::Absent, with(found.into()), "");
    };
    let range = if used > 10 {
        "more than its rated life is used".to_owned()
    } else {
        format!("{}-{} % of its life used", (used - 1) * 10, used * 10)
    };
    let reserve = match storage.reserve {
        Some(2) => "; most of its reserve is used",
        Some(3) => "; its reserve is nearly used up",
        _ => "",
    };
    let found = with(format!("{range}{reserve}"));
    if used > 10 || storage.reserve == Some(3) {
        return check("wear", Verdict::Fail, found, "replace it now: it may turn read-only at any time");
    }
    if used > 8 || storage.reserve == Some(2) {
        return check(
            "wear",
            Verdict::Warn,
            found,
            "plan its replacement, and look at what is written: up/h, kentledge top",
        );
    }
    check("wear", Verdict::Ok, found, "")
}

fn thermal(facts: &Facts) -> Check {
    let room = |zone: &&super::facts::Zone| zone.trip.unwrap_or(HOT + TRIP_NEAR) - zone.celsius;
    let Some(hottest) = facts.thermal.iter().min_by(|a, b| room(a).total_cmp(&room(b))) else {
        return check("thermal", Verdict::Absent, "no thermometer", "");
    };
    let trip = hottest.trip.map(|trip| format!(", slows down or stops at {trip:.0} °C")).unwrap_or_default();
    let found = format!("{}: {:.0} °C{trip}", hottest.name, hottest.celsius);
    let left = room(&hottest);
    if left <= 0.0 && hottest.trip.is_some() {
        return check("thermal", Verdict::Fail, found, "cool it: the kernel slows it down, or will stop it");
    }
    if left < TRIP_NEAR {
        return check("thermal", Verdict::Warn, found, "cool it: a heat sink, or air around the case");
    }
    check("thermal", Verdict::Ok, found, "")
}

fn power(facts: &Facts) -> Check {
    match facts.undervoltage {
        None => check("power", Verdict::Absent, "the board does not report its supply", ""),
        Some(false) => check("power", Verdict::Ok, "the supply voltage is high enough", ""),
        Some(true) => {
            let advice = "use the board's own supply and a short cable: cards are damaged by this first";
            check("power", Verdict::Warn, "the supply voltage is too low", advice)
        }
    }
}

fn network(facts: &Facts) -> Check {
    if facts.interfaces.is_empty() {
        return check("network", Verdict::Absent, "no network interface", "");
    }
    let all: Vec<_> = facts
        .interfaces
        .iter()
        .map(|one| format!("{} {}", one.name, if one.carrier { "connected" } else { "without a connection" }))
        .collect();
    let found = some(&all);
    if facts.interfaces.iter().all(|one| !one.carrier) {
        return check(
            "network",
            Verdict::Fail,
            found,
            "plug the cable in, or look at the switch; the device decides and stores without it",
        );
    }
    if facts.routes.is_empty() {
        let advice = "look at DHCP, or set [network] in provision.toml: address and gateway";
        return check("network", Verdict::Warn, format!("{found}; no default route"), advice);
    }
    check("network", Verdict::Ok, format!("{found}; default route by {}", some(&facts.routes)), "")
}

fn broker(facts: &Facts) -> Check {
    if facts.brokers.is_empty() {
        return check(
            "broker",
            Verdict::Absent,
            "no broker is configured",
            "set mqtt.url, or [broker] in provision.toml",
        );
    }
    let all: Vec<_> = facts
        .brokers
        .iter()
        .map(|(broker, came)| match came {
            Ok(took) => format!("{broker} accepts connections, {:.0} ms", took.as_secs_f64() * 1000.0),
            Err(why) => format!("{broker}: {why}"),
        })
        .collect();
    let found = some(&all);
    if facts.brokers.iter().all(|(_, came)| came.is_err()) {
        return check(
            "broker",
            Verdict::Fail,
            found,
            "look at name, port and firewall; then docs/troubleshooting.md, the device stays offline",
        );
    }
    if facts.brokers.iter().any(|(_, came)| came.is_err()) {
        return check("broker", Verdict::Warn, found, "one of them is not reached: the device has no second way out");
    }
    check("broker", Verdict::Ok, format!("{found}; TLS and login are shown by kentledge status"), "")
}
