//! What messages do to the state of the fleet.

use serde_json::json;

use super::{device::Link, *};

const NOW: i64 = 1_790_000_000_000;

fn say(fleet: &mut Fleet, rest: &str, value: &Value) {
    fleet.on(&format!("kl/plant/pump-1/up/{rest}"), value.to_string().as_bytes(), false, NOW);
}

fn envelope(seq: u64, hist: bool, record: &Value) -> Value {
    json!({"v": 1, "ts": "2026-11-27T06:00:00.000Z", "clk": "sync", "mono_ns": 1, "boot": "b", "hist": hist,
           "seq": {"first": seq, "last": seq, "n": 1}, "data": [record]})
}

fn pump(fleet: &Fleet) -> &Device {
    fleet.devices.get("plant/pump-1").expect("the device")
}

#[test]
fn a_device_is_what_it_said_last_and_the_will_makes_it_offline() {
    let mut fleet = Fleet::new("");
    let birth = json!({"clk": "sync", "boot": "b", "version": "0.2.0", "nonce": "n", "streams": ["m/raw"], "commands": ["ping"],
                       "models": [{"pipeline": "pump", "model": "pump-anomaly@1.0.0", "slot": "a"}]});
    say(&mut fleet, "birth", &birth);
    say(&mut fleet, "state", &json!({"state": "online", "clk": "sync", "boot": "b", "ts": null}));
    let health =
        json!({"uptime_s": 5, "ram_records": 2, "stored_records": 40, "lost": 7, "degraded": ["disk not writable"]});
    say(&mut fleet, "h", &envelope(1, false, &health));
    let device = pump(&fleet);
    assert_eq!((device.state, device.backlog(), device.models()), (Link::Online, 40, vec!["pump-anomaly@1.0.0"]));
    assert_eq!((device.degraded(), device.heard_ms), (&["disk not writable".to_owned()][..], Some(NOW)));
    say(&mut fleet, "state", &json!({"state": "offline", "clk": "sync", "boot": "b", "ts": null}));
    assert_eq!(pump(&fleet).state, Link::Offline);
}

#[test]
fn what_comes_late_from_an_outage_does_not_undo_what_is_newer() {
    let mut fleet = Fleet::new("");
    say(&mut fleet, "h", &envelope(9, false, &json!({"lost": 9})));
    say(&mut fleet, "h", &envelope(5, true, &json!({"lost": 5})));
    assert_eq!(pump(&fleet).health.as_ref().map(|h| h.lost), Some(9));
    // It lost its numbers.
    say(&mut fleet, "h", &envelope(1, false, &json!({"lost": 1})));
    assert_eq!(pump(&fleet).health.as_ref().map(|h| h.lost), Some(1));
}

#[test]
fn an_alarm_is_there_until_it_is_cleared_removed_or_not_retained_any_more() {
    let mut fleet = Fleet::new("");
    let raised = json!({"phase": "raised", "severity": "critical", "score": 3.5, "level": 1.7, "peak": 4.0});
    say(&mut fleet, "a/leak", &envelope(1, false, &raised));
    assert_eq!((pump(&fleet).worst(), pump(&fleet).raised()), (3, 1));
    say(&mut fleet, "a/leak", &envelope(2, false, &json!({"phase": "cleared"})));
    assert_eq!(pump(&fleet).worst(), 0);
    say(&mut fleet, "a/leak", &envelope(3, false, &raised));
    fleet.on("kl/plant/pump-1/up/a/leak", b"", false, NOW);
    assert_eq!(pump(&fleet).raised(), 0);
    say(&mut fleet, "a/leak", &envelope(4, false, &raised));
    fleet.reconnected();
    assert_eq!(pump(&fleet).raised(), 0, "the broker sends it again if it keeps it");
}

#[test]
fn a_flood_of_devices_alarms_and_results_stays_within_its_bounds() {
    let mut fleet = Fleet::new("");
    for i in 0..500 {
        let raised = json!({"phase": "raised", "severity": "info"});
        say(&mut fleet, &format!("a/a{i}"), &envelope(1, false, &raised));
        say(&mut fleet, &format!("res/ping/r{i}"), &envelope(1, false, &json!({"state": "success"})));
        fleet.on(&format!("kl/s/_all/dn/gate/p/{i}"), b"x", true, NOW);
    }
    let device = pump(&fleet);
    assert_eq!((device.alarms.len(), device.log.len()), (limits::EACH, limits::LOG));
    assert!(device.seqs.len() <= 4 * limits::EACH);
    assert!((0..10_000).all(|i| fleet.on(&format!("kl/s/_all/dn/plan/q{i}"), b"x", true, NOW).is_none()));
    assert!(fleet.down.len() <= limits::EACH * limits::EACH);
}

#[test]
fn plans_are_read_from_the_reported_state() {
    let mut fleet = Fleet::new("");
    let plans = json!({"pumps": {"seq": 3, "state": "failed", "wave": 1, "why": "golden case 2", "since": null}});
    say(&mut fleet, "reported", &envelope(1, false, &json!({"version": 0, "state": "none", "plans": plans})));
    let plan = &pump(&fleet).plans["pumps"];
    assert_eq!((plan.state.as_str(), plan.wave, plan.seq), ("failed", Some(1), 3));
}

#[test]
fn nonsense_is_counted_and_makes_no_device() {
    let mut fleet = Fleet::new("");
    fleet.on("kl/plant/x/up/h", b"{", false, NOW);
    fleet.on("kl/plant/y/up/h", b"", false, NOW);
    fleet.on("other/topic", b"{}", false, NOW);
    assert_eq!((fleet.devices.len(), fleet.unread), (0, 1));
    say(&mut fleet, "h", &json!([1, 2]));
    say(&mut fleet, "a/x", &json!({"data": [[]]}));
}
