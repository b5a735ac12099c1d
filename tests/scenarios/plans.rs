//! Rollout plans by a real broker: a device installs a model at the gate of its wave, does not start what is halted, and says in
//! its log why it rejects what is forged.

use std::{fs, path::Path};

use rig::{
    Daemon, Operator, eventually,
    maker::{self, Draft},
    operator::{states, time},
    world::World,
};
use serde_json::{Value, json};

const SEED: &str = "2026-11-27-a";

/// SHA-256 by coreutils.
fn sha256(dir: &Path, text: &str) -> String {
    let file = dir.join("hashed");
    fs::write(&file, text).expect("write");
    maker::sha256(&file)
}

/// Position of pump-1, by the documentation.
fn position(dir: &Path) -> f64 {
    let digest = sha256(dir, &format!("{SEED}\nplant/pump-1"));
    (u64::from_str_radix(&digest[..16], 16).expect("hex") >> 11) as f64 / (1u64 << 53) as f64
}

fn secret(seq: u64, what: &str) -> String {
    format!("{seq}-{what}-0123456789abcdef0123456789abcdef")
}

/// A device that obeys plans, whose clock is synchronised; and who signs them.
fn device() -> Option<(World, Operator)> {
    let mut world = World::new("trial_s = 0\ntrial_windows = 5\n");
    let planner = Operator::new(world.broker.port, "planner");
    let dir = world.site.dir.path().to_owned();
    let keys = [world.operator.key(&["command", "keyset"]), world.maker.key(&["model"]), planner.key(&["rollout"])];
    maker::keyset(&dir, 1, &keys, &json!({}));
    let site = std::mem::replace(&mut world.site, rig::Site::offline());
    let site = site.with_more_commands("plans = true\n");
    world.site = crate::state::synced(site)?;
    Some((world, planner))
}

/// A plan for a model, in two waves; this device is in the second.
fn plan(world: &World, name: &str, seq: u64, bundle: &Path) -> Value {
    let dir = world.maker.path("");
    let hash = |what: &str| sha256(&dir, &secret(seq, what));
    let at = position(&dir);
    let size = fs::metadata(bundle).expect("bundle").len();
    json!({"v": 1, "type": "plan", "to": "plant/_all", "issuer": "planner", "name": name, "seq": seq, "issued": time(0),
        "expires_at": time(600), "kind": "model", "artifact": {"sha256": maker::sha256(bundle), "size": size}, "seed": SEED,
        "waves": [{"share": at / 2.0, "gate": hash("1"), "hold_s": 1}, {"share": 1, "gate": hash("2"), "hold_s": 0}],
        "limits": {"failed_max": 0.02, "offline_max": 0.5}, "freshness_s": 1, "halt": hash("halt")})
}

fn word(secret: &str) -> String {
    json!({"v": 1, "secret": secret}).to_string()
}

/// What the device reported last of a plan.
fn reported(world: &World, name: &str) -> Value {
    let messages = world.sub.messages();
    let last = messages.iter().rev().find(|m| m.stream == "reported");
    last.map_or(Value::Null, |m| m.payload["data"][0]["plans"][name].clone())
}

#[track_caller]
fn wait_for(world: &World, name: &str, state: &str, why: &str) -> Value {
    eventually(&format!("plan {name} is {state} {why}"), || {
        let plan = reported(world, name);
        (plan["state"] == state && plan["why"].as_str().unwrap_or("") == why).then_some(plan)
    })
}

#[track_caller]
fn logged(daemon: &Daemon, text: &str) {
    eventually(&format!("`{text}` in the log"), || daemon.own_log().contains(text).then_some(()));
}

#[test]
fn plan_installs_a_model_at_the_gate_of_its_wave_and_forged_ones_are_rejected_with_reasons() {
    let Some((mut world, planner)) = device() else { return };
    let daemon = world.run();
    let bundle = world.maker.bundle(&Draft::mean(2));
    let good = plan(&world, "mean", 1, &bundle);
    assert!(rig::schema::fits("dn.plan.inner", &good), "{good}");
    let with = |name: &str, key: &str, value: Value| {
        let mut bad = plan(&world, name, 1, &bundle);
        bad[key] = value;
        bad
    };
    let send = |by: &Operator, name: &str, inner: &Value| {
        by.send_retained(&format!("_all/dn/plan/{name}"), &by.sign(&inner.to_string()));
    };
    send(&world.operator, "forged", &plan(&world, "forged", 1, &bundle));
    logged(&daemon, "reject plan forged: bad_signature: key `ops` may not sign this");
    send(&planner, "foreign", &with("foreign", "to", "plant/_c-fans".into()));
    logged(&daemon, "reject plan foreign: not_addressed: it is for `plant/_c-fans`");
    send(&planner, "other", &good);
    logged(&daemon, "reject plan other: not_addressed: signed as plan `mean`");
    let mut expired = with("old", "issued", time(-600).into());
    expired["expires_at"] = time(-60).into();
    send(&planner, "old", &expired);
    logged(&daemon, "reject plan old: invalid: it has expired");
    send(&planner, "mean", &good);
    let waiting = wait_for(&world, "mean", "waiting", "gate");
    assert_eq!((&waiting["wave"], &waiting["gates"]), (&2.into(), &0.into()), "{waiting}");
    let gate = |wave: u64, of: &str| planner.send_retained(&format!("_all/dn/gate/mean/{wave}"), &word(&secret(1, of)));
    gate(1, "2");
    logged(&daemon, "reject gate 1 of plan mean: invalid: its secret does not open it");
    gate(2, "2");
    gate(1, "1");
    // The hold time of the first wave, then the install: the bundle comes in parts by MQTT.
    let sha256 = maker::sha256(&bundle);
    world.sub.wait("it waits for parts", |messages| {
        messages.iter().any(|m| m.stream == format!("blob/{sha256}")).then_some(())
    });
    assert_eq!(reported(&world, "mean")["state"], "running");
    let bytes = fs::read(&bundle).expect("bundle");
    world.operator.chunks(&sha256, &bytes, 0..bytes.len(), 4096);
    let end = world.rows_until_end("_plan.mean.1", 0);
    assert_eq!(end["state"], "success", "{end}");
    wait_for(&world, "mean", "success", "");
    let states = states(&world.sub, "model.install", "_plan.mean.1");
    assert_eq!(states.first().map(String::as_str), Some("accepted"), "{states:?}");
    daemon.stop_well();
}

#[test]
fn halted_plan_starts_neither_at_its_gate_nor_after_a_kill_until_a_signed_resume() {
    let Some((world, planner)) = device() else { return };
    let daemon = world.run();
    let bundle = world.maker.bundle(&Draft::mean(2));
    let good = plan(&world, "mean", 1, &bundle);
    planner.send_retained("_all/dn/plan/mean", &planner.sign(&good.to_string()));
    planner.send("pump-1/dn/halt/mean", &word(&secret(1, "none")));
    logged(&daemon, "reject halt of plan mean: invalid: it is not its halt secret");
    // To this device alone and not retained: what a controller sends to a device that lacks it.
    planner.send("pump-1/dn/halt/mean", &word(&secret(1, "halt")));
    (1..=2).for_each(|wave| {
        planner.send_retained(&format!("_all/dn/gate/mean/{wave}"), &word(&secret(1, &wave.to_string())));
    });
    let halted = wait_for(&world, "mean", "blocked", "halted");
    assert_eq!((&halted["halted"], &halted["wave"]), (&true.into(), &2.into()));
    let next = sha256(&world.maker.path(""), &secret(1, "halt2"));
    let resume = |by: &str| {
        json!({"v": 1, "type": "resume", "to": "plant/_all", "issuer": by, "plan": "mean", "seq": 1, "n": 1, "issued": time(0),
            "halt": next})
    };
    assert!(rig::schema::fits("dn.halt.inner", &resume("planner")));
    world.operator.send("_all/dn/halt/mean", &world.operator.sign(&resume("ops").to_string()));
    logged(&daemon, "reject halt of plan mean: bad_signature: key `ops` may not sign this");
    daemon.kill();
    let daemon = world.run();
    // It listens for longer than the plan asks, and what is retained has come again.
    std::thread::sleep(std::time::Duration::from_secs(3));
    wait_for(&world, "mean", "blocked", "halted");
    assert!(states(&world.sub, "model.install", "_plan.mean.1").is_empty());
    planner.send("_all/dn/halt/mean", &planner.sign(&resume("planner").to_string()));
    wait_for(&world, "mean", "running", "");
    daemon.stop_well();
}
