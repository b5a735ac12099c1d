//! What a controller does next, by what devices report.

use kentledge::control::plans::{Plan, hash, position};
use serde_json::{Value, json};

use super::{
    decide::{Step, next},
    progress::{self, Progress, plans, progress},
};
use crate::state::Fleet;

const NOW: i64 = 1_795_759_200_000;

fn secret(what: &str) -> String {
    format!("{what}-0123456789abcdef0123456789abcdef")
}

fn text(limits: &Value) -> String {
    let waves = [(0.2, 60), (1.0, 0)];
    let waves = waves.iter().enumerate().map(
        |(i, (share, hold_s))| json!({"share": share, "gate": hash(&secret(&(i + 1).to_string())), "hold_s": hold_s}),
    );
    json!({"v": 1, "type": "plan", "to": "plant/_all", "issuer": "release", "name": "pumps", "seq": 7,
           "issued": "2026-11-27T05:59:00Z", "expires_at": "2026-11-28T06:00:00Z", "kind": "config",
           "artifact": {"toml": "[outbox]\nlinger_ms = 10\n"}, "seed": "0123456789", "waves": waves.collect::<Vec<_>>(),
           "limits": limits, "freshness_s": 5, "halt": hash(&secret("halt"))})
    .to_string()
}

struct World {
    fleet: Fleet,
    plan: Plan,
    seq: u64,
}

impl World {
    fn new(limits: &Value) -> Self {
        let text = text(limits);
        let mut world = Self { fleet: Fleet::new(""), plan: Plan::read(&text).expect("a plan"), seq: 0 };
        let payload = json!({"signed": text, "sig": "x"}).to_string();
        world.fleet.on("kl/plant/_all/dn/plan/pumps", payload.as_bytes(), true, NOW);
        (0..100).for_each(|i| world.device(i, "online", "waiting", 0));
        world
    }

    fn wave(&self, i: u32) -> u64 {
        self.plan.wave_of(position(&self.plan.seed, &format!("plant/p{i}"))).map_or(0, |wave| wave as u64 + 1)
    }

    fn device(&mut self, i: u32, link: &str, state: &str, gates: u64) {
        self.seq += 1;
        let link = json!({"state": link, "clk": "sync", "boot": "b", "ts": null});
        self.fleet.on(&format!("kl/plant/p{i}/up/state"), link.to_string().as_bytes(), true, NOW);
        let report = json!({"seq": 7, "state": state, "wave": self.wave(i), "gates": gates, "since": "2026-11-27T06:00:00.000Z"});
        let whole =
            json!({"ts": null, "clk": "sync", "seq": {"last": self.seq}, "data": [{"plans": {"pumps": report}}]});
        self.fleet.on(&format!("kl/plant/p{i}/up/reported"), whole.to_string().as_bytes(), true, NOW);
    }

    fn all(&mut self, of: u64, link: &str, state: &str, gates: u64) {
        (0..100)
            .filter(|i| self.wave(*i) == of)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|i| self.device(i, link, state, gates));
    }

    fn gate(&mut self, wave: usize) {
        let payload = json!({"v": 1, "secret": secret(&wave.to_string())}).to_string();
        self.fleet.on(&format!("kl/plant/_all/dn/gate/pumps/{wave}"), payload.as_bytes(), true, NOW);
    }

    fn look(&self) -> Progress {
        progress(&self.plan, &self.fleet)
    }

    fn step(&self, later_s: i64) -> Step {
        next(&self.plan, &self.look(), NOW + later_s * 1000)
    }
}

fn limits() -> Value {
    json!({"failed_max": 0.1, "offline_max": 0.3})
}

#[test]
fn waves_open_one_after_the_other_when_the_one_before_is_done_and_has_held() {
    let mut world = World::new(&limits());
    assert_eq!(world.step(0), Step::Open(1));
    world.gate(1);
    assert!(matches!(world.step(0), Step::Wait(why) if why.contains("have not come to their end")));
    world.all(1, "online", "success", 1);
    assert!(matches!(world.step(59), Step::Wait(why) if why.contains("opens in 1 s")), "it holds for a minute");
    assert_eq!(world.step(60), Step::Open(2));
    world.gate(2);
    world.all(2, "online", "success", 2);
    assert!(matches!(world.step(61), Step::Over(true, _)));
}

#[test]
fn without_devices_no_wave_opens() {
    let world = World::new(&limits());
    let none = progress(&world.plan, &Fleet::new(""));
    assert!(matches!(next(&world.plan, &none, NOW), Step::Wait(_)), "a view of nothing must not open everything");
}

#[test]
fn a_gate_with_a_wrong_secret_opens_nothing() {
    let mut world = World::new(&limits());
    world.fleet.on(
        "kl/plant/_all/dn/gate/pumps/1",
        br#"{"v":1,"secret":"wrong-0123456789abcdef0123456789abcdef"}"#,
        true,
        NOW,
    );
    assert_eq!((world.look().open, world.step(0)), (0, Step::Open(1)));
}

#[test]
fn more_failures_than_allowed_halt_and_a_halt_ends_the_run() {
    let mut world = World::new(&limits());
    world.gate(1);
    let first: Vec<u32> = (0..100).filter(|i| world.wave(*i) == 1).collect();
    let most = first.len() / 10;
    first.iter().take(most).for_each(|i| world.device(*i, "online", "failed", 1));
    assert!(matches!(world.step(0), Step::Wait(_)), "10 % may fail");
    world.device(first[most], "online", "rolled_back", 1);
    assert!(matches!(world.step(0), Step::Halt(_)));
    world.fleet.on(
        "kl/plant/_all/dn/halt/pumps",
        json!({"v": 1, "secret": secret("halt")}).to_string().as_bytes(),
        true,
        NOW,
    );
    assert!(matches!(world.step(0), Step::Over(false, why) if why.contains("halted")));
}

#[test]
fn a_resume_counts_only_failures_after_it() {
    let mut world = World::new(&limits());
    world.gate(1);
    world.all(1, "online", "failed", 1);
    assert!(matches!(world.step(0), Step::Halt(_)));
    let resume = |issued: &str| {
        let text = json!({"v": 1, "type": "resume", "to": "plant/_all", "issuer": "release", "plan": "pumps", "seq": 7, "n": 5,
                          "issued": issued, "halt": hash(&secret("halt2"))});
        json!({"signed": text.to_string(), "sig": "x"}).to_string()
    };
    world.fleet.on("kl/plant/_all/dn/halt/pumps", resume("2026-11-27T06:30:00Z").as_bytes(), true, NOW);
    assert_eq!(world.look().waves[0].bad, 0);
    assert_eq!(world.step(3600), Step::Open(2));
    world.fleet.on("kl/plant/_all/dn/halt/pumps", resume("2026-11-27T05:30:00Z").as_bytes(), true, NOW);
    assert!(matches!(world.step(0), Step::Halt(_)));
}

#[test]
fn a_wave_waits_while_too_many_are_offline_and_goes_on_without_a_few() {
    let mut world = World::new(&limits());
    let first: Vec<u32> = (0..100).filter(|i| world.wave(*i) == 1).collect();
    let most = first.len() * 3 / 10;
    first.iter().take(most + 1).for_each(|i| world.device(*i, "offline", "waiting", 0));
    assert!(matches!(world.step(0), Step::Wait(why) if why.contains("offline")));
    world.device(first[most], "online", "waiting", 0);
    assert_eq!(world.step(0), Step::Open(1));
    world.gate(1);
    first.iter().skip(most).for_each(|i| world.device(*i, "online", "success", 1));
    assert_eq!(world.step(60), Step::Open(2));
}

#[test]
fn no_more_devices_than_allowed_know_their_gate_at_a_time() {
    let mut world = World::new(&json!({"failed_max": 0.1, "offline_max": 0.3, "concurrent_max": 4}));
    let Step::Grant(1, some) = world.step(0) else { panic!("devices get it one by one") };
    assert_eq!(some.len(), 4);
    let ids: Vec<u32> = some.iter().map(|id| id["plant/p".len()..].parse().expect("a number")).collect();
    ids.iter().take(3).for_each(|i| world.device(*i, "online", "running", 1));
    let mut all = world.look();
    all.given(|id| id == some[3]);
    assert!(matches!(next(&world.plan, &all, NOW), Step::Wait(why) if why.contains("4 may at a time")));
    ids.iter().for_each(|i| world.device(*i, "online", "success", 1));
    assert!(
        matches!(world.step(0), Step::Grant(1, more) if more.len() == 4 && more.iter().all(|id| !some.contains(id)))
    );
}

#[test]
fn an_expired_plan_is_over_and_devices_that_lack_it_are_named() {
    let mut world = World::new(&limits());
    assert!(matches!(world.step(2 * 86_400), Step::Over(false, why) if why.contains("expired")));
    world.gate(1);
    let lacking = world.look().lacking;
    assert_eq!(lacking.len(), 100, "all lack the gate");
    assert_eq!(lacking[0].1, Some(0));
    let state = br#"{"state":"online","clk":"sync","boot":"b","ts":null}"#;
    world.fleet.on("kl/plant/new/up/state", state, true, NOW);
    assert!(world.look().lacking.contains(&("plant/new".into(), None)));
    world.fleet.on("kl/other/new/up/state", state, true, NOW);
    assert_eq!(world.look().waves.iter().map(|wave| wave.devices).sum::<u64>(), 101, "another site is not counted");
}

#[test]
fn of_two_plans_with_one_name_the_newer_counts_and_nonsense_is_none() {
    let mut world = World::new(&limits());
    world.fleet.on("kl/plant/_all/dn/plan/other", b"{}", true, NOW);
    world.fleet.on("kl/plant/p1/dn/plan/pumps", json!({"signed": "{}", "sig": "x"}).to_string().as_bytes(), true, NOW);
    let found = plans(&world.fleet);
    assert_eq!(found.len(), 1);
    let value = progress::json(&found[0].plan, &world.look(), NOW);
    assert_eq!((&value["what"], &value["waves"][0]["open"]), (&json!("[outbox]"), &json!(false)));
}

#[test]
fn a_controller_that_knows_a_part_of_the_devices_opens_nothing_and_ends_nothing_but_halts() {
    let mut world = World::new(&json!({"failed_max": 0.02, "offline_max": 0.3}));
    let step = |world: &World, least: u64| next(&world.plan, &Progress { least, ..world.look() }, NOW);
    assert_eq!(step(&world, 100), Step::Open(1));
    assert!(matches!(step(&world, 101), Step::Wait(why) if why.contains("100 devices are known")));
    world.all(1, "online", "success", 1);
    world.all(2, "online", "success", 1);
    assert!(matches!(step(&world, 100), Step::Over(true, _)) && matches!(step(&world, 101), Step::Wait(_)));
    world.all(1, "online", "failed", 1);
    assert!(matches!(step(&world, 101), Step::Halt(_)));
}
