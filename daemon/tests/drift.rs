//! Drift on real recordings: quiet on the rig a baseline was made on, and firing on another state of it.

#![allow(clippy::expect_used)] // A test ends where something is not as it must be.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use kentledge::model::baseline::{Drift, Spread};

const CHANNELS: [&str; 8] = [
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
];
/// The recordings' first 400 rows are normal by their makers' protocol; a window of drift is 300 s of them.
const NORMAL: usize = 400;
const WINDOW: usize = 300;

type Recording = BTreeMap<&'static str, Vec<f64>>;

fn read(path: &Path) -> Recording {
    let text = fs::read_to_string(path).expect("recording");
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().expect("header").split(';').collect();
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(';').collect()).collect();
    let column = |name: &'static str| {
        let at = header.iter().position(|title| *title == name).expect("column");
        (name, rows.iter().map(|row| row[at].parse().expect("number")).collect())
    };
    CHANNELS.into_iter().map(column).collect()
}

fn read_all(folder: &Path) -> Vec<Recording> {
    let mut files: Vec<_> = fs::read_dir(folder).expect("folder").flatten().map(|e| e.path()).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "csv"));
    files.sort();
    files.iter().map(|path| read(path)).collect()
}

fn pooled(recordings: &[&Recording], name: &str) -> Vec<f64> {
    recordings.iter().flat_map(|r| r[name].iter().take(NORMAL).copied()).collect()
}

/// A baseline of these: the threshold is 1.5 times the largest distance of any of them from all the others.
fn baseline(recordings: &[&Recording]) -> BTreeMap<&'static str, Spread> {
    let of = |name: &'static str| {
        let distance = |left_out: usize| {
            let others: Vec<&Recording> =
                recordings.iter().enumerate().filter(|(i, _)| *i != left_out).map(|(_, r)| *r).collect();
            let channel = Spread::of(&mut pooled(&others, name), 1.0).expect("values");
            channel.distance(&mut recordings[left_out][name][..WINDOW].to_vec()).expect("values")
        };
        let largest = (0..recordings.len()).map(distance).fold(0.0, f64::max);
        (name, Spread::of(&mut pooled(recordings, name), 1.5 * largest).expect("values"))
    };
    CHANNELS.into_iter().map(of).collect()
}

fn state(baseline: &BTreeMap<&'static str, Spread>, recording: &Recording, from: usize) -> Drift {
    let beyond = |name: &&&str| {
        let channel = &baseline[**name];
        channel.distance(&mut recording[**name][from..from + WINDOW].to_vec()).is_some_and(|d| d > channel.threshold)
    };
    Drift::of(CHANNELS.iter().filter(beyond).count())
}

#[test]
fn drift_is_quiet_on_the_same_rig_and_fires_on_another() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/skab");
    if !folder.is_dir() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no recordings beside the repository");
        return;
    }
    let rig = read_all(&folder.join("valve1"));
    // Each recording against a baseline of the others alone, threshold and all.
    let same: Vec<Drift> = (0..rig.len())
        .map(|held_out| {
            let others: Vec<&Recording> =
                rig.iter().enumerate().filter(|(i, _)| *i != held_out).map(|(_, r)| r).collect();
            state(&baseline(&others), &rig[held_out], 0)
        })
        .collect();
    let whole = baseline(&rig.iter().collect::<Vec<_>>());
    let free = read(&folder.join("anomaly-free/anomaly-free.csv"));
    let windows = free[CHANNELS[0]].len() / WINDOW;
    let free: Vec<Drift> = (0..windows).map(|n| state(&whole, &free, n * WINDOW)).collect();
    let other: Vec<Drift> = read_all(&folder.join("other")).iter().map(|r| state(&whole, r, 0)).collect();
    let count = |all: &[Drift], drift: Drift| all.iter().filter(|d| **d == drift).count();
    let _ = writeln!(
        std::io::stderr(),
        "MEASURED: same rig, {} held-out recordings: {} none, {} sensor suspect, {} drift; another state of the rig: {} of {} \
         windows and {} of {} recordings drift",
        same.len(),
        count(&same, Drift::None),
        count(&same, Drift::SensorSuspect),
        count(&same, Drift::Drift),
        count(&free, Drift::Drift),
        free.len(),
        count(&other, Drift::Drift),
        other.len()
    );
    assert_eq!(count(&free, Drift::Drift), free.len());
    assert_eq!(count(&other, Drift::Drift), other.len());
    assert!(count(&same, Drift::Drift) * 6 <= same.len(), "{same:?}");
}
