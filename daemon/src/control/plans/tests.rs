//! Each rule of plans, in a few lines; and what the stories make their messages with.

use serde_json::{Value, json};

use super::{Kind, Plan, hash, position};
use crate::{
    control::{
        action::{Action, Record},
        world::{World, arrived, wrap},
    },
    flow::{
        Clk,
        order::{Addressee, Arrived, Asked, LinkNews},
    },
    host::clock::rfc3339_ms,
    limits,
};

/// A plan to be signed.
#[derive(Debug, Clone)]
pub struct Draft {
    pub name: &'static str,
    pub seq: u64,
    pub to: &'static str,
    /// Who is named as its issuer, and who signs it.
    pub issuer: &'static str,
    pub by: &'static str,
    pub kind: Kind,
    pub artifact: Value,
    /// Share and hold time of each wave, s.
    pub waves: Vec<(f64, u64)>,
    pub freshness_s: u64,
    pub spread_s: u64,
    pub issued_ms: i64,
    pub life_s: i64,
    pub seed: String,
}

/// A secret of a plan: of a wave, or with `halt` and a number.
pub fn secret(name: &str, seq: u64, what: &str) -> String {
    format!("{name}.{seq}.{what}.0123456789abcdef0123456789abcdef")
}

impl Draft {
    /// One wave with all devices.
    pub fn new(world: &World, seq: u64) -> Self {
        Self {
            name: "p",
            seq,
            to: "s/_all",
            issuer: "release",
            by: "release",
            kind: Kind::Config,
            artifact: json!({"toml": "calm-stages = 1"}),
            waves: vec![(1.0, 0)],
            freshness_s: 10,
            spread_s: 0,
            issued_ms: world.now.stamp.wall_ms.unwrap_or(0),
            life_s: 3600,
            seed: "0123456789".into(),
        }
    }

    pub fn text(&self) -> String {
        let gate = |(n, (share, hold_s)): (usize, &(f64, u64))| {
            let gate = hash(&secret(self.name, self.seq, &(n + 1).to_string()));
            json!({"share": share, "gate": gate, "hold_s": hold_s})
        };
        json!({"v": 1, "type": "plan", "to": self.to, "issuer": self.issuer, "name": self.name, "seq": self.seq,
            "issued": rfc3339_ms(self.issued_ms), "expires_at": rfc3339_ms(self.issued_ms + self.life_s * 1000),
            "kind": self.kind, "artifact": self.artifact, "seed": self.seed,
            "waves": self.waves.iter().enumerate().map(gate).collect::<Vec<_>>(),
            "limits": {"failed_max": 0.02, "offline_max": 0.5, "spread_s": self.spread_s},
            "freshness_s": self.freshness_s, "halt": hash(&secret(self.name, self.seq, "halt0"))})
        .to_string()
    }

    pub fn id(&self) -> String {
        format!("_plan.{}.{}", self.name, self.seq)
    }

    pub fn message(&self) -> Arrived {
        let inner: Value = serde_json::from_str(&self.text()).expect("JSON");
        to_all(Asked::Plan { name: self.name.into() }, wrap(self.by, &inner))
    }

    pub fn gate(&self, wave: usize) -> Arrived {
        self.gate_by(wave, &secret(self.name, self.seq, &wave.to_string()))
    }

    pub fn gate_by(&self, wave: usize, secret: &str) -> Arrived {
        to_all(Asked::Gate { plan: self.name.into(), wave }, json!({"v": 1, "secret": secret}).to_string())
    }

    /// By the halt secret of this number: a resume brings the next one.
    pub fn halt(&self, number: u64) -> Arrived {
        let secret = secret(self.name, self.seq, &format!("halt{number}"));
        to_all(Asked::Halt { plan: self.name.into() }, json!({"v": 1, "secret": secret}).to_string())
    }

    /// Signed: a halt, or a resume with the halt secret of this number.
    pub fn order(&self, by: &str, n: u64, resume: Option<u64>) -> Arrived {
        let mut inner = json!({"v": 1, "type": "halt", "to": self.to, "issuer": by, "plan": self.name, "seq": self.seq, "n": n,
            "issued": rfc3339_ms(self.issued_ms)});
        if let Some(number) = resume {
            inner["type"] = "resume".into();
            inner["halt"] = hash(&secret(self.name, self.seq, &format!("halt{number}"))).into();
        }
        to_all(Asked::Halt { plan: self.name.into() }, wrap(by, &inner))
    }
}

fn to_all(asked: Asked, payload: String) -> Arrived {
    Arrived { to: Addressee::All, retained: true, ..arrived(asked, payload, None) }
}

/// A device that obeys plans.
pub fn device() -> World {
    let mut world = World::new();
    world.rules.plans = true;
    world.keys.insert("release".into(), "RWQ2".into());
    restart(&mut world);
    world
}

/// The daemon is killed and starts again.
pub fn restart(world: &mut World) {
    world.crash(false, &mut fastrand::Rng::with_seed(1));
}

/// The connection ends, and another begins.
pub fn reconnect(world: &mut World) {
    world.session += 1;
    world.link = LinkNews { subscribed: true, session: world.session, ..LinkNews::default() };
}

/// What is reported of plan `p`: state, and why.
fn shown(world: &World) -> (String, String) {
    let reports = world.done.iter().rev().find_map(|action| match action {
        Action::Publish(Record::Reported(members)) => Some(members["plans"]["p"].clone()),
        _ => None,
    });
    let plan = reports.expect("a report");
    let word = |key: &str| plan[key].as_str().unwrap_or("").to_owned();
    (word("state"), word("why"))
}

fn is(state: &str, why: &str) -> (String, String) {
    (state.into(), why.into())
}

/// Time passes in small steps.
fn pass(world: &mut World, s: u64) {
    for _ in 0..s * 2 {
        world.tick(500);
    }
}

/// A message is handled; whether it was settled.
#[track_caller]
fn send(world: &mut World, message: Arrived) {
    let before = world.orders.len();
    world.order(message);
    assert_eq!(world.orders.len(), before, "it is settled");
}

/// Whatever goes on beside control comes to a good end.
fn threads(world: &mut World) {
    for _ in 0..8 {
        world.thread(0, true);
    }
}

fn started(world: &World, id: &str) -> bool {
    world.states(id).iter().any(|state| state == "running")
}

#[test]
fn position_is_that_of_the_documentation() {
    // python3 -c 'import hashlib; d = hashlib.sha256(b"2026-11-27-a\nplant/pump-1").digest();
    //             print(int.from_bytes(d[:8], "big") // 2**11 / 2**53)'
    assert_eq!(position("2026-11-27-a", "plant/pump-1"), 0.09095180085479337);
    let n = 10_000;
    let below = (0..n).filter(|n| position("2026-11-27-a", &format!("plant/pump-{n}")) < 0.1).count();
    assert!((below as f64 / f64::from(n) - 0.1).abs() < 0.01, "{below} of {n} are in a wave of 10 %");
}

#[test]
fn plan_starts_when_its_gate_is_open_and_the_connection_is_old_enough_and_acknowledged() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    send(&mut world, plan.message());
    pass(&mut world, 60);
    assert_eq!(shown(&world), is("waiting", "gate"));
    reconnect(&mut world);
    world.tick(100);
    send(&mut world, plan.gate(1));
    pass(&mut world, 9);
    assert_eq!(shown(&world), is("blocked", "link"));
    assert!(!started(&world, &plan.id()));
    pass(&mut world, 10);
    assert_eq!(shown(&world), is("success", ""));
    assert_eq!(world.states(&plan.id()), ["accepted", "running", "running", "success"]);
    // The same plan again, and after a restart.
    send(&mut world, plan.message());
    restart(&mut world);
    send(&mut world, plan.message());
    pass(&mut world, 60);
    assert_eq!(world.acted[&plan.id()], 1);
}

#[test]
fn plan_does_not_start_on_a_connection_that_acknowledges_nothing() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    pass(&mut world, 5);
    world.silent = true;
    pass(&mut world, 200);
    assert!(!started(&world, &plan.id()), "it is not known whether the plan was halted meanwhile");
    world.silent = false;
    pass(&mut world, 5);
    assert!(started(&world, &plan.id()));
}

#[test]
fn wave_opens_after_the_hold_times_of_those_before_it_and_only_by_its_own_secret() {
    let mut world = device();
    let at = position("0123456789", "s/d");
    let plan = Draft { waves: vec![(at / 2.0, 100), (at, 50), (1.0, 0)], ..Draft::new(&world, 1) };
    send(&mut world, plan.message());
    send(&mut world, plan.gate(3));
    send(&mut world, plan.gate_by(2, &secret("p", 1, "1")));
    send(&mut world, plan.gate(1));
    pass(&mut world, 200);
    assert_eq!(shown(&world), is("waiting", "gate"));
    send(&mut world, plan.gate(2));
    pass(&mut world, 40);
    assert_eq!(shown(&world), is("waiting", "hold"), "100 s have passed since the first, not 50 since the second");
    pass(&mut world, 20);
    assert_eq!(shown(&world), is("success", ""));
}

#[test]
fn all_secrets_at_once_open_a_wave_no_sooner_than_the_hold_times_allow() {
    let mut world = device();
    let at = position("0123456789", "s/d");
    let plan = Draft { waves: vec![(at / 2.0, 100), (at, 50), (1.0, 0)], ..Draft::new(&world, 1) };
    send(&mut world, plan.message());
    (1..=3).for_each(|wave| send(&mut world, plan.gate(wave)));
    pass(&mut world, 140);
    assert!(!started(&world, &plan.id()));
    // A restart does not begin again.
    restart(&mut world);
    pass(&mut world, 20);
    assert!(started(&world, &plan.id()));
}

#[test]
fn device_outside_all_waves_skips_and_a_moment_within_the_spread_follows_from_the_position() {
    let mut world = device();
    let at = position("0123456789", "s/d");
    let outside = Draft { waves: vec![(at / 2.0, 0)], ..Draft::new(&world, 1) };
    send(&mut world, outside.message());
    world.tick(100);
    assert_eq!(shown(&world), is("skipped", "outside"));
    let plan = Draft { spread_s: 1000, ..Draft::new(&world, 2) };
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    let moment_s = (at * 1000.0) as u64;
    pass(&mut world, moment_s - 2);
    assert_eq!(shown(&world), is("waiting", "spread"));
    pass(&mut world, 5);
    assert!(started(&world, &plan.id()));
}

#[test]
fn halted_plan_does_not_start_and_only_a_signed_resume_undoes_it() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    send(&mut world, plan.message());
    send(&mut world, plan.halt(0));
    send(&mut world, plan.gate(1));
    pass(&mut world, 60);
    assert_eq!(shown(&world), is("blocked", "halted"));
    send(&mut world, plan.order("ops", 1, Some(1)));
    send(&mut world, plan.order("stranger", 1, Some(1)));
    restart(&mut world);
    pass(&mut world, 60);
    assert_eq!(shown(&world), is("blocked", "halted"), "neither may resume it");
    send(&mut world, plan.order("release", 1, Some(1)));
    // The first halt secret was published: it counts no more.
    send(&mut world, plan.halt(0));
    send(&mut world, plan.order("release", 1, Some(1)));
    send(&mut world, plan.halt(1));
    pass(&mut world, 60);
    assert_eq!(shown(&world), is("blocked", "halted"));
    send(&mut world, plan.order("release", 3, Some(2)));
    send(&mut world, plan.order("release", 2, None));
    pass(&mut world, 60);
    assert!(started(&world, &plan.id()), "an older signed halt is a replay");
}

#[test]
fn halt_between_probe_and_acknowledgement_stops_the_start() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    world.silent = true;
    pass(&mut world, 15);
    assert_eq!(world.states(&plan.id()), ["accepted"]);
    send(&mut world, plan.halt(0));
    world.silent = false;
    pass(&mut world, 60);
    assert!(!started(&world, &plan.id()));
}

#[test]
fn gates_and_halts_that_come_before_their_plan_count() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    send(&mut world, plan.gate(1));
    send(&mut world, plan.halt(0));
    restart(&mut world);
    send(&mut world, plan.message());
    pass(&mut world, 60);
    assert_eq!(shown(&world), is("blocked", "halted"));
    send(&mut world, plan.order("release", 1, Some(1)));
    pass(&mut world, 60);
    assert!(started(&world, &plan.id()));
}

#[test]
fn forged_foreign_expired_and_replayed_plans_are_refused() {
    let mut world = device();
    let new = Draft::new(&world, 5);
    let issued_ms = new.issued_ms;
    let bad = [
        ("signed by a key that is not in the keyset", Draft { by: "stranger", ..new.clone() }),
        ("signed by a key for commands", Draft { by: "ops", issuer: "ops", ..new.clone() }),
        ("another issuer", Draft { issuer: "release2", ..new.clone() }),
        ("another cohort", Draft { to: "s/_c-other", ..new.clone() }),
        ("another device", Draft { to: "s/e", ..new.clone() }),
        ("another site", Draft { to: "t/_all", ..new.clone() }),
        ("expired", Draft { issued_ms: issued_ms - 7_200_000, ..new.clone() }),
        ("issued tomorrow", Draft { issued_ms: issued_ms + 86_400_000, ..new.clone() }),
        ("too long a life", Draft { life_s: 93 * 86_400, ..new.clone() }),
        ("numbers used up", Draft { seq: limits::ISEQ_MAX, ..new.clone() }),
        ("an artifact that no command takes", Draft { artifact: json!({"toml": 1}), ..new.clone() }),
        ("waves that do not grow", Draft { waves: vec![(0.5, 0), (0.5, 0)], ..new.clone() }),
        ("no wave", Draft { waves: vec![], ..new.clone() }),
    ];
    for (what, plan) in bad {
        send(&mut world, plan.message());
        (1..=2).for_each(|wave| send(&mut world, plan.gate(wave)));
        pass(&mut world, 30);
        assert!(world.acted.is_empty(), "{what}");
    }
    // Sent under another name.
    let mut message = new.message();
    message.asked = Asked::Plan { name: "q".into() };
    send(&mut world, message);
    // For its cohort, and sent to the device alone: that is how a controller brings what a broker did not keep.
    let mut message = Draft { to: "s/_c-c", ..new.clone() }.message();
    message.to = Addressee::Device;
    send(&mut world, message);
    pass(&mut world, 30);
    assert_eq!(world.acted.keys().collect::<Vec<_>>(), [&new.id()], "its gate came before it");
    for seq in [4, 5] {
        let replay = Draft { seq, freshness_s: 11, ..new.clone() };
        send(&mut world, replay.message());
        send(&mut world, replay.gate(1));
    }
    pass(&mut world, 30);
    let next = Draft { seq: 6, ..Draft::new(&world, 6) };
    send(&mut world, next.message());
    send(&mut world, next.gate(1));
    pass(&mut world, 30);
    assert!(started(&world, &next.id()) && !started(&world, "_plan.p.4"));
    assert_eq!(world.states(&new.id()), ["accepted", "running", "running", "success"], "once");
}

#[test]
fn plan_that_failed_is_not_tried_again_and_a_newer_one_is() {
    let mut world = device();
    let plan = Draft { artifact: json!({"toml": "bad = 1"}), ..Draft::new(&world, 1) };
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    pass(&mut world, 120);
    assert_eq!(shown(&world), is("rolled_back", ""));
    reconnect(&mut world);
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    pass(&mut world, 120);
    assert_eq!(world.acted[&plan.id()], 1);
    let next = Draft::new(&world, 2);
    send(&mut world, next.message());
    send(&mut world, next.gate(1));
    pass(&mut world, 120);
    assert_eq!(shown(&world), is("success", ""));
}

#[test]
fn one_plan_of_a_kind_runs_at_a_time_and_a_start_waits_for_another_job() {
    let mut world = device();
    let model = json!({"sha256": "b".repeat(64), "size": 1, "url": "https://a"});
    let first = Draft { kind: Kind::Model, artifact: model, ..Draft::new(&world, 1) };
    let other = Draft {
        name: "q",
        artifact: json!({"sha256": "c".repeat(64), "size": 1, "url": "https://a"}),
        ..first.clone()
    };
    for plan in [&first, &other] {
        send(&mut world, plan.message());
        send(&mut world, plan.gate(1));
    }
    pass(&mut world, 60);
    assert!(started(&world, &first.id()) && !started(&world, &other.id()));
    threads(&mut world);
    pass(&mut world, 5);
    assert_eq!(shown(&world), is("success", ""));
    assert!(started(&world, &other.id()));
    threads(&mut world);
    pass(&mut world, 5);
    // A command that installs comes first: the plan waits, and is tried again.
    let args = json!({"sha256": "d".repeat(64), "size": 1, "url": "https://a"});
    world.order(world.command(("model.install", "i"), Some(("ops", 1)), &args));
    let next = Draft { artifact: json!({"sha256": "e".repeat(64), "size": 1, "url": "https://a"}), ..first };
    let next = Draft { seq: 2, issued_ms: world.now.stamp.wall_ms.unwrap_or(0), ..next };
    send(&mut world, next.message());
    send(&mut world, next.gate(1));
    pass(&mut world, 60);
    assert_eq!(shown(&world), is("blocked", "busy"));
    threads(&mut world);
    pass(&mut world, 70);
    assert!(started(&world, &next.id()));
}

#[test]
fn plan_waits_for_a_synchronised_clock_and_expires() {
    let mut world = device();
    world.now.stamp.clk = Clk::Hold;
    let plan = Draft { life_s: 300, ..Draft::new(&world, 1) };
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    pass(&mut world, 60);
    assert_eq!(shown(&world), is("blocked", "clock"));
    pass(&mut world, 300);
    assert_eq!(shown(&world), is("skipped", "expired"));
    let plan = Draft { life_s: 300, ..Draft::new(&world, 2) };
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    world.now.stamp.clk = Clk::Sync;
    pass(&mut world, 60);
    assert_eq!(shown(&world), is("success", ""));
}

#[test]
fn plan_of_a_key_that_lost_its_role_does_not_start() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    world.keys.remove("release");
    restart(&mut world);
    pass(&mut world, 60);
    assert_eq!(shown(&world), is("blocked", "key"));
    assert!(!started(&world, &plan.id()));
}

#[test]
fn device_that_lost_its_memory_runs_no_plan_again() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    pass(&mut world, 60);
    assert_eq!(world.acted[&plan.id()], 1);
    world.disk.damaged = true;
    restart(&mut world);
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    pass(&mut world, 600);
    assert_eq!(world.acted[&plan.id()], 1);
    let next = Draft::new(&world, 2);
    send(&mut world, next.message());
    send(&mut world, next.gate(1));
    pass(&mut world, 60);
    assert!(started(&world, &next.id()));
}

#[test]
fn what_cannot_be_saved_is_not_acknowledged_and_what_cannot_be_remembered_does_not_start() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    world.disk.full = true;
    world.order(plan.message());
    world.order(plan.gate(1));
    assert_eq!(world.orders.len(), 2, "the broker has them");
    pass(&mut world, 60);
    assert!(!started(&world, &plan.id()));
    world.disk.full = false;
    restart(&mut world);
    assert!(world.orders.is_empty(), "they came again");
    pass(&mut world, 60);
    assert!(started(&world, &plan.id()));
}

#[test]
fn messages_while_the_memory_cannot_be_read_are_handled_afterwards() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    world.disk.unreadable = true;
    restart(&mut world);
    world.order(plan.message());
    world.order(plan.gate(1));
    world.order(plan.halt(0));
    assert_eq!(world.orders.len(), 3);
    world.disk.unreadable = false;
    pass(&mut world, 60);
    assert!(world.orders.is_empty());
    assert_eq!(shown(&world), is("blocked", "halted"));
}

#[test]
fn plans_that_are_switched_off_are_ignored_and_not_reported() {
    let mut world = device();
    world.rules.plans = false;
    let from = world.done.len();
    restart(&mut world);
    let plan = Draft::new(&world, 1);
    send(&mut world, plan.message());
    send(&mut world, plan.gate(1));
    pass(&mut world, 60);
    assert!(!started(&world, &plan.id()));
    let member = |action: &Action| matches!(action, Action::Publish(Record::Reported(m)) if m.contains_key("plans"));
    assert!(!world.done[from..].iter().any(member));
}

#[test]
fn plans_are_reported_again_once_with_each_connection_because_its_broker_may_have_lost_them() {
    let mut world = device();
    let plan = Draft::new(&world, 1);
    send(&mut world, plan.message());
    pass(&mut world, 5);
    for session in 7..9 {
        let from = world.done.len();
        world.link.session = session;
        pass(&mut world, 5);
        let shown = |action: &Action| match action {
            Action::Publish(Record::Reported(members)) => Some(members["plans"]["p"]["state"].clone()),
            _ => None,
        };
        let said: Vec<Value> = world.done[from..].iter().filter_map(shown).collect();
        assert_eq!(said.len(), 1, "{said:?}");
    }
}

#[test]
fn text_of_a_plan_reads_as_it_was_written() {
    let world = device();
    let plan = Plan::read(&Draft::new(&world, 7).text()).expect("a plan");
    assert_eq!((plan.seq, plan.id().as_str(), plan.waves.len()), (7, "_plan.p.7", 1));
    assert!(plan.is_for("s", "d", &[]) && !plan.is_for("t", "d", &[]));
    let cohort = Plan { to: "s/_c-x".into(), ..plan.clone() };
    assert!(cohort.is_for("s", "d", &["x".into()]) && !cohort.is_for("s", "d", &[]) && !cohort.is_for("s", "x", &[]));
    let waves =
        Plan::read(&Draft { waves: vec![(0.25, 0), (0.5, 0)], ..Draft::new(&world, 7) }.text()).expect("a plan");
    assert_eq!(
        [0.0, 0.2499, 0.25, 0.4999, 0.5].map(|at| waves.wave_of(at)),
        [Some(0), Some(0), Some(1), Some(1), None]
    );
}
