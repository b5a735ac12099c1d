//! The plug is pulled at random moments: of an update, and of an outage in which everything waits on the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use rig::{
    machine::{ROW, START},
    measured,
};
use serde_json::json;

use crate::world::{Device, UPDATE, bundle};

/// Within this a row is on the disk (promises.md: 1.2 s), and what two emulated processors beside others add.
const ACCEPTED: Duration = Duration::from_millis(1200 + 2500);

#[test]
fn a_plug_pulled_at_any_moment_of_an_update_leaves_the_old_or_the_new_system() {
    if !rig::long() {
        return rig::skipped("plugs are pulled during updates in the long form only: 20 of them take an hour and more");
    }
    let wanted = 20;
    let mut device = Device::new();
    let dir = device.dir.path().to_owned();
    let (mut slot, mut version) = ("A".to_owned(), "0.1.0".to_owned());
    let (mut cuts, mut at, mut ends) = (0, BTreeMap::<String, u32>::new(), BTreeMap::<String, u32>::new());
    device.start();
    device.good();
    for n in 1.. {
        let next = format!("0.1.{n}");
        let bundle = bundle(&dir, &next, &[]);
        let id = format!("u{n}");
        device.update(&id, &bundle);
        // The system that starts next resumes the order: it is cut again until the order ends.
        let mut of_this = 0;
        while !device.is_over(&id) {
            std::thread::sleep(Duration::from_millis(fastrand::u64(2_000..100_000)));
            if device.is_over(&id) {
                break;
            }
            let reported = device.texts(&id).last().cloned().unwrap_or_default();
            *at.entry(reported.replace(&next, "it").replace(char::is_numeric, "")).or_default() += 1;
            device.machine.cut();
            (cuts, of_this) = (cuts + 1, of_this + 1);
            let before = device.onlines();
            device.machine.start();
            device.online_after(before);
            if cuts >= wanted {
                break;
            }
        }
        let end = device.end(&id, UPDATE);
        let (now_slot, now_version) = device.running();
        match end["state"].as_str() {
            Some("success") => assert_eq!(now_version, next, "{:#?}", device.texts(&id)),
            Some("failed" | "rolled_back") => assert_eq!((&now_slot, &now_version), (&slot, &version)),
            other => panic!("{other:?}: {:#?}", device.texts(&id)),
        }
        measured(&format!("update {n}, cut {of_this} times: {}: {}", end["state"], end["text"]));
        *ends.entry(end["state"].to_string()).or_default() += 1;
        (slot, version) = (now_slot, now_version);
        let _ = fs::remove_file(bundle);
        if cuts >= wanted {
            break;
        }
        // The next order is taken once this system was found well.
        device.machine.since_its_start();
        device.machine.shell();
        device.good();
    }
    measured(&format!("{cuts} plugs pulled during updates, when it had said {at:?}; the updates ended {ends:?}"));
}

#[test]
fn what_was_kept_in_an_outage_survives_a_plug_pulled_at_any_moment() {
    let cuts = if rig::long() { 20 } else { 1 };
    let mut device = Device::new();
    device.start();
    device.good();
    let raw = "[stream.raw]\nchannels = [\"accelerometer1rms\", \"volume_flow_raterms\"]\n";
    device.config("c1", raw);
    let (mut next, mut wanted) = (0, BTreeSet::new());
    for n in 1..=cuts {
        device.broker.stop();
        device.machine.sense_from(next);
        let (first, began) = (next, Instant::now());
        std::thread::sleep(Duration::from_millis(fastrand::u64(6_000..20_000)));
        // What the hardware does, and what a hand does.
        if n % 2 == 0 {
            device.machine.qmp(&json!({"execute": "system_reset"}));
        } else {
            device.machine.cut_power();
        }
        let safe = (began.elapsed().saturating_sub(ACCEPTED).as_millis() / ROW.as_millis()) as u64;
        // One more may be on its way.
        next = device.machine.sensed() + 5;
        device.machine.hush();
        wanted.extend(first..(first + safe).min(next));
        device.broker.up();
        let before = device.onlines();
        if n % 2 == 0 {
            device.machine.read_on();
        } else {
            device.machine.start();
        }
        device.machine.says("starting slot A", START);
        device.machine.shell();
        device.online_after(before);
        let missing = |device: &Device| {
            let records = device.sub.records("m/raw");
            let there: BTreeSet<u64> = records.iter().filter_map(|(record, _)| record["in_seq"][0].as_u64()).collect();
            wanted.difference(&there).copied().collect::<Vec<_>>()
        };
        device.sub.wait_most(Duration::from_secs(60), "what was kept is delivered", |_| {
            missing(&device).is_empty().then_some(())
        });
        device.good();
    }
    let messages = device.sub.messages();
    assert_eq!(rig::feed::unbooked(&messages, "m/raw"), 0, "numbers that are neither delivered nor in the loss ledger");
    let aside = rig::sub::records(&messages, "e/store.set_aside").len();
    assert_eq!(aside, 0, "stores that did not open");
    measured(&format!(
        "{cuts} plugs pulled in outages: {} rows were accepted, 0 of them lost, every store opened",
        wanted.len()
    ));
}
