//! Random stories of commands, desired states, installs of models, crashes and restarts, and what control promises in each of them:
//!
//! - an id acts at most once;
//! - every order that was settled gets a final result, and exactly one that is not marked as repeated or lost with a crash;
//! - the committed layer is in use, or the one on trial, and in the end no trial is left;
//! - a result says what is true: `success` only for a committed change or a model that passed its trial, `rolled_back` and
//!   `failed` only for another;
//! - the old or the new model serves after a restart: what serves passed its trial, and what a slot names is whole;
//! - an issuer's sequence never goes back;
//! - the result of a signed command is in the audit log before it is published.
//!
//! A crash can fall after any action. KENTLEDGE_LONG=1 plays more.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    action::{Action, Ask, OnError, Record, Stop},
    command::needs_signature,
    command_state::CommandState,
    model_action::ModelAction,
    refusal::Why,
    world::{Swap, World},
};

const LAYERS: [&str; 6] = ["", "good = 1", "bad = 1", "good-stages = 1", "bad-stages = 1", "calm-stages = 1"];

/// One story; `Err`: the promise that was broken, and what led to it.
fn play(seed: u64, swap: Option<Swap>, swap_models: Option<Swap<ModelAction>>) -> Result<u64, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut world = World::new();
    (world.swap, world.swap_models) = (swap, swap_models);
    let (mut iseq, mut version, mut steps, mut sent) = (0, 0, Vec::new(), BTreeMap::new());
    for _ in 0..random.usize(5..40) {
        if random.u8(0..3) == 0 {
            world.fuse = Some(random.usize(0..14));
        }
        let step = random.u8(0..17);
        steps.push(step);
        let lived = match step {
            0..4 => {
                let id = format!("c{}", sent.len());
                iseq += 1;
                let order = command(&world, &mut random, &id, iseq);
                sent.insert(id, order.clone());
                world.order(order)
            }
            // The same message again, and an old message of an issuer.
            4 if !sent.is_empty() => {
                let id = format!("c{}", random.usize(0..sent.len()));
                let order = sent[&id].clone();
                world.order(order)
            }
            5 => {
                version += u64::from(random.bool());
                let order = world.desired("ops", version.max(1), LAYERS[random.usize(0..LAYERS.len())]);
                world.order(order)
            }
            6 => world.order(world.command(("ping", &format!("p{}", random.u8(0..4))), None, &json!({}))),
            7 | 9..13 => world.thread(random.usize(0..8), random.u8(0..5) > 0),
            13 => world.chunk(),
            14 if random.bool() => world.fail_serving(),
            8 if world.rebooting => false,
            _ => world.tick(random.u64(0..20_000)),
        };
        let reboot = !lived && world.rebooting || random.u8(0..4) == 0;
        if !lived {
            world.crash(reboot, &mut random);
        }
        world.fuse = None;
        if let Some(promise) = world.broken.take() {
            return Err(format!("seed {seed}: {promise}: {steps:?}"));
        }
    }
    settle(&mut world, &mut random);
    judge(&world).map_err(|promise| format!("seed {seed}: {promise}: {steps:?}"))?;
    Ok(world.crashes)
}

fn command(world: &World, random: &mut fastrand::Rng, id: &str, iseq: u64) -> crate::flow::order::Arrived {
    let layer = LAYERS[random.usize(0..LAYERS.len())];
    let digest = char::from(b'a' + random.u8(0..6)).to_string().repeat(64);
    let (kind, args) = match random.u8(0..12) {
        0..4 => ("config.set", json!({"toml": layer})),
        4..6 => ("model.install", json!({"sha256": digest, "size": random.u8(1..3)})),
        6..8 => ("model.install", json!({"sha256": digest, "size": 1, "url": "https://a"})),
        8 => ("model.rollback", json!({})),
        9 => ("restart", json!({})),
        10 => ("reboot", json!({})),
        _ => ("log.pull", json!({})),
    };
    world.command((kind, id), Some(("ops", iseq)), &args)
}

/// Nothing more happens, and all that was begun comes to its end.
fn settle(world: &mut World, random: &mut fastrand::Rng) {
    for turn in 0..120 {
        if world.rebooting {
            world.crash(true, random);
        }
        world.tick(1000);
        if turn > 60 {
            world.thread(0, true);
            world.chunk();
        }
    }
}

fn judge(world: &World) -> Result<(), String> {
    if let Some(promise) = &world.broken {
        return Err(promise.clone());
    }
    if let Some(trial) = &world.disk.trial {
        return Err(format!("a trial is left: {trial:?}"));
    }
    let models = world.disk.files.shelf();
    if models.job().is_some() || models.ended().next().is_some() {
        return Err(format!("a job of a model is left: {:?}, {:?}", models.job(), models.ended().next()));
    }
    if !world.orders.is_empty() {
        return Err(format!("{} orders are not settled", world.orders.len()));
    }
    if world.disk.layer != world.committed {
        return Err(format!("{:?} is in use, and {:?} was committed", world.disk.layer, world.committed));
    }
    if let Some(id) = world.sent.iter().find(|id| !world.accepted.contains(*id) && !world.ended.contains(*id)) {
        return Err(format!("{id} was settled, and is lost"));
    }
    world.sent.iter().try_for_each(|id| judge_results(world, id))
}

fn judge_results(world: &World, id: &str) -> Result<(), String> {
    let states = world.states(id);
    let of_it = |published: &&super::world::Published| {
        // A rejection of a message that came again is no result of the command.
        let again = matches!(published.outcome.why, Some(Why::RepeatedId | Why::Replayed));
        published.id == id && published.accepted && published.outcome.is_final() && !again
    };
    let ends: Vec<_> = world.delivered.iter().filter(of_it).collect();
    let Some(first) = ends.first() else {
        return if world.accepted.contains(id) { Err(format!("{id} has no final result: {states:?}")) } else { Ok(()) };
    };
    if !needs_signature(&first.kind) {
        return Ok(());
    }
    if ends.iter().any(|end| end.outcome.state != first.outcome.state) {
        return Err(format!("{id} has two results: {states:?}"));
    }
    if ends.iter().filter(|end| !end.outcome.repeated).count() > 1 {
        return Err(format!("{id} has a repeat that is not marked: {states:?}"));
    }
    let (state, committed) = (first.outcome.state, world.committed_by.contains(id));
    let same = first.outcome.text.contains("set already");
    if first.kind == "config.set" && committed != (state == CommandState::Success) && !same {
        return Err(format!("{id}: {}, committed: {committed}", state.word()));
    }
    let (steady, served) = (world.steady_by.contains(id), first.outcome.text.contains("serves already"));
    if first.kind == "model.install" && steady != (state == CommandState::Success) && !served {
        return Err(format!("{id}: {}, passed its trial: {steady}", state.word()));
    }
    Ok(())
}

/// A fixed part and a random part; the number is printed.
#[test]
#[expect(clippy::print_stdout, reason = "how many stories there were is a result")]
fn stories_with_a_crash_after_any_action_keep_what_control_promises() {
    let count = if std::env::var_os("KENTLEDGE_LONG").is_some() { 20_000 } else { 400 };
    let start = fastrand::u64(1 << 20..1 << 40);
    let mut crashes = 0;
    for seed in (0..count / 2).chain(start..start + count / 2) {
        crashes += play(seed, None, None).unwrap_or_else(|promise| panic!("{promise}"));
    }
    println!("{count} stories of control with {crashes} crashes keep its promises (random seeds from {start})");
    assert!(crashes > count / 2, "{crashes} crashes in {count} stories");
}

fn saves(action: &Action) -> bool {
    matches!(action, Action::Save(..))
}

fn accepts(action: &Action) -> bool {
    matches!(action, Action::Save(_, OnError::Stop(Stop::Accept(..))))
}

fn ends(action: &Action) -> bool {
    matches!(action, Action::Publish(Record::Result { outcome, .. }) if outcome.is_final())
}

/// Each seeded fault swaps two actions; the stories find each.
#[test]
#[expect(clippy::print_stdout, reason = "which story found it is a result")]
fn stories_find_each_order_of_actions_that_is_swapped() {
    let faults: [(&str, Swap, &str); 6] = [
        ("published before it is in the audit log", (|action| matches!(action, Action::Audit(_)), ends), "audit log"),
        ("settled before it is saved", (accepts, |action| matches!(action, Action::Settle(_))), "is lost"),
        (
            "executed before it is saved",
            (accepts, |action| {
                matches!(action, Action::Ask(_, Ask::Reboot) | Action::Compare(_) | Action::Install(..))
            }),
            "acted twice",
        ),
        (
            "committed before its result is saved",
            (saves, |action| matches!(action, Action::Commit(_))),
            "committed: true",
        ),
        (
            "the end of a job is forgotten before its result is saved",
            (saves, |action| matches!(action, Action::JobHeard(_))),
            "failed, passed its trial: true",
        ),
        (
            "the trial is removed before the layer is restored",
            (|action| matches!(action, Action::PutBack(..)), |action| matches!(action, Action::Forget)),
            "in use",
        ),
    ];
    for (fault, swap, expected) in faults {
        // A fault may break other promises, too.
        let names_it = |promise: &String| promise.contains(expected);
        let found = (0..2000).find_map(|seed| play(seed, Some(swap), None).err().filter(names_it)).unwrap_or_default();
        println!("{fault}: {found}");
        assert!(!found.is_empty(), "{fault}: no story breaks `{expected}`");
    }
}

/// The same of the actions on models.
#[test]
#[expect(clippy::print_stdout, reason = "which story found it is a result")]
fn stories_find_a_slot_that_names_a_bundle_before_it_is_in_the_store() {
    let takes_in = |action: &ModelAction| matches!(action, ModelAction::TakeIn(_));
    let swap: Swap<ModelAction> = (takes_in, |action| matches!(action, ModelAction::Save(..)));
    let found = (0..2000).find_map(|seed| play(seed, None, Some(swap)).err()).unwrap_or_default();
    println!("{found}");
    assert!(found.contains("is missing"), "{found}");
}
