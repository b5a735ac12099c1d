//! The only file that reads the kernel's own sensors: IIO, hwmon, thermal zones. A row is one line of numbers in
//! engineering units, as the kernel's documentation of its files defines them.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Outlet, Reopening};
use crate::{
    config::{Sysfs, SysfsClass},
    flow::{Arrival, Fault},
};

/// Reads for ever; ends only when the task is dropped.
pub(super) async fn run(settings: Sysfs, outlet: Outlet) {
    let mut reopening = Reopening::new(settings.device.clone());
    loop {
        match open(&settings) {
            Ok(readings) => {
                tracing::info!("{} open", settings.device);
                reopening.opened();
                reopening.was_healthy();
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "opened")).await;
                sample(&settings, readings, &outlet).await;
                tracing::warn!("{} closed: none of its readings can be read", settings.device);
                outlet.send(Arrival::Break(outlet.source, outlet.clock.now(), "closed")).await;
            }
            Err(why) => reopening.failed(&why),
        }
        reopening.pause(&outlet).await;
    }
}

/// One reading: value = (number + offset) × scale.
struct Reading {
    file: File,
    offset: f64,
    scale: f64,
}

/// Until none of them can be read.
async fn sample(settings: &Sysfs, mut readings: Vec<Reading>, outlet: &Outlet) {
    loop {
        // A converter on a slow bus takes its time, and one that hangs takes for ever: not on the thread of all ports.
        let read = tokio::task::spawn_blocking(move || {
            let values: Vec<Option<f64>> = readings.iter().map(Reading::read).collect();
            (readings, values)
        });
        let Ok((back, values)) = outlet.ticking(read).await else { return };
        readings = back;
        let missing = values.iter().filter(|value| value.is_none()).count();
        if missing > 0 {
            outlet.fault(Fault::Unreadable, missing as u32).await;
        }
        if missing == values.len() {
            return;
        }
        let texts: Vec<String> = values.iter().map(|v| v.map_or_else(String::new, |v| v.to_string())).collect();
        outlet.send_frame(texts.join(",").into_bytes()).await;
        outlet.pause(Duration::from_millis(settings.every_ms)).await;
    }
}

impl Reading {
    fn read(&self) -> Option<f64> {
        let mut text = [0u8; 64];
        let n = self.file.read_at(&mut text, 0).ok()?;
        let number: f64 = std::str::from_utf8(&text[..n]).ok()?.trim().parse().ok()?;
        Some((number + self.offset) * self.scale)
    }
}

fn open(settings: &Sysfs) -> Result<Vec<Reading>, String> {
    let folder = find(settings)?;
    settings.readings.iter().map(|name| reading(&folder, settings.class, name)).collect()
}

/// The device's folder: a path, or the one whose driver names itself so.
fn find(settings: &Sysfs) -> Result<PathBuf, String> {
    if settings.device.contains('/') {
        return Ok(PathBuf::from(&settings.device));
    }
    let (root, file) = class(settings.class);
    let all = fs::read_dir(root).map_err(|why| format!("{root}: {}", why.to_string().to_lowercase()))?;
    let named = |folder: &PathBuf| fs::read_to_string(folder.join(file)).is_ok_and(|n| n.trim() == settings.device);
    let mut found: Vec<PathBuf> = all.filter_map(|entry| Some(entry.ok()?.path())).filter(named).collect();
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(format!("no device below {root} is called so")),
        several => Err(format!("{} devices below {root} are called so; give the path of one", several.len())),
    }
}

/// Where devices of a class are, and which file holds their name.
pub(super) fn class(class: SysfsClass) -> (&'static str, &'static str) {
    match class {
        SysfsClass::Iio => ("/sys/bus/iio/devices", "name"),
        SysfsClass::Hwmon => ("/sys/class/hwmon", "name"),
        SysfsClass::Thermal => ("/sys/class/thermal", "type"),
    }
}

/// Units: Documentation/ABI/testing/sysfs-bus-iio and sysfs-class-hwmon, Documentation/driver-api/thermal of Linux.
fn reading(folder: &Path, class: SysfsClass, name: &str) -> Result<Reading, String> {
    let open =
        |file: &str| File::open(folder.join(file)).map_err(|why| format!("{file}: {}", why.to_string().to_lowercase()));
    let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<f64>().ok();
    match class {
        SysfsClass::Thermal => Ok(Reading { file: open(name)?, offset: 0.0, scale: 0.001 }),
        SysfsClass::Hwmon => {
            let scale = match name.trim_end_matches(|c: char| c.is_ascii_digit()) {
                "fan" => 1.0,
                "power" | "energy" => 1e-6,
                _ => 0.001,
            };
            Ok(Reading { file: open(&format!("{name}_input"))?, offset: 0.0, scale })
        }
        SysfsClass::Iio => {
            if let Ok(file) = open(&format!("{name}_input")) {
                return Ok(Reading { file, offset: 0.0, scale: 1.0 });
            }
            // Of this channel, or of all of its kind: in_voltage0 → in_voltage, in_accel_x → in_accel.
            let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let kind = kind.strip_suffix(['x', 'y', 'z']).and_then(|kind| kind.strip_suffix('_')).unwrap_or(kind);
            let shared = |what: &str| number(&format!("{name}_{what}")).or_else(|| number(&format!("{kind}_{what}")));
            let (offset, scale) = (shared("offset").unwrap_or(0.0), shared("scale").unwrap_or(1.0));
            Ok(Reading { file: open(&format!("{name}_raw"))?, offset, scale })
        }
    }
}
