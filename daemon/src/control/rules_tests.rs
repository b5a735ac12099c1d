//! Each rule of control, in a few lines.

use serde_json::{Value, json};

use super::{
    action::{Action, Event, JobNews, OnError, Record},
    refusal::Why,
    world::World,
};
use crate::{
    flow::{
        Clk,
        order::{Addressee, Arrived},
    },
    limits,
    model::shelf::{End, Ended},
};

/// A signed command of `ops`.
fn signed(world: &World, kind: &str, id: &str, iseq: u64) -> Arrived {
    world.command((kind, id), Some(("ops", iseq)), &json!({}))
}

fn set(world: &World, id: &str, iseq: u64, toml: &str) -> Arrived {
    world.command(("config.set", id), Some(("ops", iseq)), &json!({"toml": toml}))
}

/// The kinds of actions since `from`, in order, without records that are no results.
fn order_of(world: &World, from: usize) -> Vec<String> {
    let name = |action: &Action| match action {
        Action::Save(..) => Some("save".into()),
        Action::Publish(Record::Result { outcome, .. }) => Some(outcome.state.word().to_owned()),
        Action::Settle(_) => Some("settle".into()),
        Action::Respond(..) => Some("respond".into()),
        Action::Ask(..) => Some("ask".into()),
        Action::Begin(_) => Some("begin".into()),
        Action::Commit(_) => Some("commit".into()),
        Action::PutBack(..) => Some("put back".into()),
        Action::Forget => Some("forget".into()),
        Action::Connect(..) => Some("connect".into()),
        Action::Leave(_) => Some("leave".into()),
        Action::Install(..) => Some("install".into()),
        Action::Chunk(..) => Some("chunk".into()),
        _ => None,
    };
    world.done[from..].iter().filter_map(name).collect()
}

#[test]
fn signed_command_is_saved_before_it_is_settled_and_again_before_it_acts() {
    let mut world = World::new();
    let from = world.done.len();
    world.order(signed(&world, "reboot", "a", 1));
    let order = ["save", "accepted", "settle", "save", "ask", "running", "respond"];
    assert_eq!(order_of(&world, from), order);
    let from = world.done.len();
    world.order(signed(&world, "log.pull", "b", 2));
    let order = ["save", "accepted", "settle", "save", "ask", "save", "success", "respond"];
    assert_eq!(order_of(&world, from), order);
}

#[test]
fn unsigned_command_is_not_saved_and_settled_only_with_its_result() {
    let mut world = World::new();
    let from = world.done.len();
    world.order(world.command(("ping", "a"), None, &json!({})));
    assert_eq!(order_of(&world, from), ["accepted", "success", "settle", "respond"]);
}

#[test]
fn ping_returns_version_boot_and_device() {
    let mut world = World::new();
    world.order(world.command(("ping", "a"), None, &json!({})));
    let expected = json!({"version": env!("CARGO_PKG_VERSION"), "boot": "boot-0", "device": "s/d"});
    assert_eq!(world.result("a"), expected);
}

#[test]
fn chunk_is_written_before_its_order_is_settled() {
    let mut world = World::new();
    let mut chunk = world.command(("ping", "a"), None, &json!({}));
    chunk.asked = crate::flow::order::Asked::Blob { sha256: "a".into(), offset: 0 };
    let from = world.done.len();
    world.order(chunk);
    assert_eq!(order_of(&world, from), ["chunk", "settle"]);
}

#[test]
fn retained_expired_replayed_repeated_and_unsigned_commands_are_not_executed() {
    let mut world = World::new();
    let mut retained = signed(&world, "reboot", "retained", 1);
    retained.retained = true;
    world.order(retained);
    assert_eq!((world.why("retained"), world.rebooting), (Some(Why::Retained), false));

    let late = signed(&world, "reboot", "late", 2);
    world.tick(601_000);
    world.order(late);
    assert_eq!(world.states("late"), ["expired"]);

    world.order(signed(&world, "log.pull", "a", 3));
    world.order(signed(&world, "log.pull", "b", 3));
    assert_eq!(world.why("b"), Some(Why::Replayed));

    let twice = signed(&world, "log.pull", "twice", 4);
    world.order(twice.clone());
    world.order(twice);
    assert_eq!(world.states("twice"), ["accepted", "success", "success*"]);
    world.order(signed(&world, "reboot", "twice", 5));
    assert_eq!(world.why("twice"), Some(Why::RepeatedId));

    world.order(world.command(("reboot", "plain"), None, &json!({})));
    assert_eq!(world.why("plain"), Some(Why::Unsigned));
    let stranger = world.command(("reboot", "stranger"), Some(("eve", 1)), &json!({}));
    world.order(stranger);
    assert_eq!(world.why("stranger"), Some(Why::BadSignature));
    assert!(!world.rebooting && world.orders.is_empty(), "each of them is settled");
}

#[test]
fn rejected_command_does_not_use_up_its_issuers_sequence() {
    let mut world = World::new();
    world.order(world.command(("reboot", "far"), Some(("ops", 1 << 52)), &json!({})));
    assert_eq!(world.why("far"), Some(Why::Invalid));
    world.order(signed(&world, "log.pull", "next", 1));
    assert_eq!(world.states("next"), ["accepted", "success"]);
}

#[test]
fn without_a_synchronised_clock_the_nonce_is_needed() {
    let mut world = World::new();
    world.now.stamp.clk = Clk::Hold;
    let good = signed(&world, "log.pull", "good", 1);
    let bad = Arrived { nonce: "another connection".into(), ..signed(&world, "log.pull", "bad", 2) };
    world.order(good);
    world.order(bad);
    assert_eq!((world.states("good").len(), world.why("bad")), (2, Some(Why::Nonce)));
}

#[test]
fn lost_memory_distrusts_an_issuer_until_it_echoes_the_nonce() {
    let mut world = World::new();
    world.handle(Event::Reread(super::action::Left {
        memory: Err(crate::host::Unloaded::Damaged),
        trial: Ok(None),
        going: super::action::Going::default(),
        audited: std::collections::BTreeSet::new(),
    }));
    world.order(Arrived { nonce: "another".into(), ..signed(&world, "log.pull", "a", 1) });
    assert_eq!(world.why("a"), Some(Why::Nonce));
    world.order(signed(&world, "log.pull", "b", 2));
    world.order(Arrived { nonce: "another".into(), ..signed(&world, "log.pull", "c", 3) });
    assert_eq!((world.states("b").len(), world.states("c").len()), (2, 2));
}

#[test]
fn unreadable_memory_obeys_no_signed_command_and_is_not_written_over() {
    let mut world = World::new();
    world.order(signed(&world, "log.pull", "before", 5));
    world.disk.unreadable = true;
    world.crash(false, &mut fastrand::Rng::with_seed(1));
    let from = world.done.len();
    world.order(signed(&world, "log.pull", "a", 6));
    assert_eq!(world.why("a"), Some(Why::Busy));
    assert!(!order_of(&world, from).contains(&"save".to_owned()));
    world.disk.unreadable = false;
    world.tick(limits::UNREADABLE_TRY.as_millis() as u64);
    world.order(signed(&world, "log.pull", "b", 5));
    assert_eq!(world.why("b"), Some(Why::Replayed), "the sequence is known again");
}

#[test]
fn flood_is_busy_and_a_stranger_takes_neither_place_nor_id_of_a_signed_command() {
    let mut world = World::new();
    for n in 0..400 {
        world.order(world.command(("ping", &format!("f{n}")), None, &json!({})));
    }
    assert_eq!(world.why("f150"), Some(Why::Busy));
    assert!(world.states("f399").is_empty(), "rejections have a rate limit too");
    assert!(world.orders.is_empty(), "all of them are settled");
    world.order(signed(&world, "log.pull", "f0", 1));
    assert_eq!(world.states("f0").last().map(String::as_str), Some("success"));
}

#[test]
fn command_for_all_waits_and_expires_while_it_waits() {
    let mut world = World::new();
    world.rules.jitter_s = 3600;
    world.crash(false, &mut fastrand::Rng::with_seed(1));
    let mut all = signed(&world, "log.pull", "a", 1);
    let payload: Value = serde_json::from_slice(&all.payload).expect("JSON");
    let text = payload["signed"].as_str().expect("text").replace("\"s/d\"", "\"s/_all\"");
    (all.to, all.payload) = (Addressee::All, json!({"signed": text, "sig": payload["sig"]}).to_string().into());
    world.order(all);
    assert_eq!((world.states("a"), world.orders.len()), (vec!["accepted".to_owned()], 0));
    world.tick(3_600_000);
    assert_eq!(world.states("a"), ["accepted", "expired"]);
}

#[test]
fn command_that_cannot_be_saved_is_not_executed() {
    let mut world = World::new();
    world.disk.full = true;
    world.order(signed(&world, "reboot", "a", 1));
    assert_eq!((world.states("a"), world.rebooting), (vec!["failed".to_owned()], false));
    assert!(world.orders.is_empty());
    world.order(signed(&world, "restart", "b", 2));
    world.disk.full = false;
    world.order(signed(&world, "log.pull", "c", 3));
    assert_eq!(world.states("c"), ["accepted", "success"], "a restart that was not saved does not end the run");
}

#[test]
fn restart_and_reboot_are_finished_by_the_next_process_or_boot() {
    let mut world = World::new();
    world.order(signed(&world, "restart", "a", 1));
    assert_eq!(world.states("a"), ["accepted", "running", "success"]);
    world.order(signed(&world, "reboot", "b", 2));
    let mut random = fastrand::Rng::with_seed(1);
    let mut other = World::new();
    other.disk = world.disk.clone();
    other.crash(false, &mut random);
    assert_eq!(other.states("b"), ["failed"], "the same boot: the machine was not restarted");
    world.crash(true, &mut random);
    assert_eq!(world.states("b").last().map(String::as_str), Some("success"));
}

#[test]
fn change_of_the_connection_is_committed_by_the_acknowledgement_of_its_proof() {
    let mut world = World::new();
    let from = world.done.len();
    world.order(set(&world, "a", 1, "good = 1"));
    assert_eq!(order_of(&world, from)[4..], ["begin", "running", "connect"]);
    let from = world.done.len();
    world.tick(100);
    assert_eq!(order_of(&world, from), ["running"], "the proof");
    let from = world.done.len();
    world.tick(100);
    assert_eq!(order_of(&world, from), ["save", "commit", "connect", "success", "respond"]);
    assert_eq!((world.committed.as_deref(), &world.disk.trial), (Some("good = 1"), &None));
}

#[test]
fn change_that_is_not_confirmed_is_rolled_back_and_the_previous_layer_is_restored_first() {
    let mut world = World::new();
    world.order(set(&world, "a", 1, "bad = 1"));
    world.tick(29_000);
    let from = world.done.len();
    world.order(set(&world, "b", 2, "good = 1"));
    assert_eq!(world.why("b"), Some(Why::Busy), "one change at a time");
    world.tick(1_001);
    let order = ["put back", "connect", "save", "rolled_back", "respond", "forget"];
    assert_eq!(order_of(&world, from)[order_of(&world, from).len() - 6..], order);
    assert_eq!((world.disk.layer.clone(), world.states("a").last().cloned()), (None, Some("rolled_back".to_owned())));
}

#[test]
fn trial_goes_on_over_a_reload_and_is_rolled_back_by_another_process() {
    let mut world = World::new();
    world.order(set(&world, "a", 1, "good-stages = 1"));
    assert!(world.disk.trial.is_some(), "the stages restarted, and the trial goes on");
    world.tick(100);
    world.tick(100);
    assert_eq!(world.states("a").last().map(String::as_str), Some("success"));
    world.order(set(&world, "b", 2, "calm-stages = 1"));
    world.crash(false, &mut fastrand::Rng::with_seed(1));
    assert_eq!(world.states("b").last().map(String::as_str), Some("rolled_back"));
    assert_eq!((world.disk.layer.as_deref(), &world.disk.trial), (Some("good-stages = 1"), &None));
}

/// A kill between the two: the next start published `success` from the memory, and then `rolled_back`.
#[test]
fn kill_between_the_saved_result_and_the_commit_publishes_only_the_rollback() {
    let mut world = World::new();
    world.order(set(&world, "a", 1, "good = 1"));
    world.tick(100);
    world.fuse = Some(0);
    assert!(!world.tick(100), "killed after the result was saved");
    world.crash(false, &mut fastrand::Rng::with_seed(1));
    world.tick(100);
    let ends: Vec<String> =
        world.states("a").into_iter().filter(|s| !["accepted", "running"].contains(&s.as_str())).collect();
    assert_eq!((ends, world.disk.layer), (vec!["rolled_back".to_owned()], None));
}

#[test]
fn trial_on_a_full_disk_fails_or_is_rolled_back_and_a_failed_rollback_stays_on_the_disk() {
    let mut world = World::new();
    world.order(set(&world, "a", 1, "good = 1"));
    world.tick(100);
    world.disk.full = true;
    world.tick(100);
    assert_eq!(world.states("a").last().map(String::as_str), Some("rolled_back"));
    assert!(world.disk.trial.is_some(), "the next start rolls it back");
    world.disk.full = false;
    world.crash(false, &mut fastrand::Rng::with_seed(1));
    assert_eq!((&world.disk.trial, &world.disk.layer), (&None, &None));
}

#[test]
fn layer_that_is_set_aside_while_on_trial_is_rolled_back() {
    let mut world = World::new();
    world.rules.set_aside = vec!["why".into()];
    world.order(set(&world, "a", 1, "good-stages = 1"));
    assert_eq!(world.states("a").last().map(String::as_str), Some("rolled_back"));
    assert_eq!(world.disk.layer, None);
}

#[test]
fn desired_state_is_applied_once_and_is_not_tried_again_after_a_rollback() {
    let mut world = World::new();
    world.order(world.desired("ops", 1, "good = 1"));
    world.tick(100);
    world.tick(100);
    assert_eq!(world.committed.as_deref(), Some("good = 1"));
    let from = world.done.len();
    world.order(world.desired("ops", 1, "good = 1"));
    assert_eq!(order_of(&world, from), ["settle"], "each connection delivers it again");
    world.order(world.desired("ops", 2, "bad = 1"));
    world.tick(31_000);
    assert_eq!(world.disk.layer.as_deref(), Some("good = 1"));
    let from = world.done.len();
    world.order(world.desired("ops", 3, "bad = 1"));
    assert!(!order_of(&world, from).contains(&"begin".to_owned()));
    let from = world.done.len();
    world.order(world.desired("eve", 4, "good-stages = 1"));
    assert_eq!(order_of(&world, from), ["settle"], "of no trusted key");
}

#[test]
fn desired_state_that_comes_during_a_trial_waits_for_its_end() {
    let mut world = World::new();
    world.order(set(&world, "a", 1, "bad = 1"));
    world.order(world.desired("ops", 1, "good = 1"));
    assert_eq!(world.disk.layer.as_deref(), Some("bad = 1"));
    world.tick(31_000);
    for _ in 0..4 {
        world.tick(100);
    }
    assert_eq!(world.committed.as_deref(), Some("good = 1"));
}

#[test]
fn keyset_update_lowers_versions_of_a_dropped_key_and_its_sequence_does_not_block_the_next() {
    let mut world = World::new();
    world.order(world.desired("ops", 900, "good = 1"));
    world.tick(100);
    world.tick(100);
    world.order(signed(&world, "log.pull", "a", 900));
    world.keys = [("ops".to_owned(), "RWQ2".to_owned())].into();
    let call = super::action::Call { kind: "keyset.update".into(), id: "k".into(), respond: None, ticket: None };
    world.handle(Event::KeysTaken(call, Ok((world.keys_now(), 2))));
    assert_eq!(world.states("k"), ["success"]);
    world.order(signed(&world, "log.pull", "b", 1));
    assert_eq!(world.states("b"), ["accepted", "success"]);
    world.order(world.desired("ops", 1, "calm-stages = 1"));
    assert_eq!(world.disk.layer.as_deref(), Some("calm-stages = 1"));
}

#[test]
fn install_ends_with_the_report_of_its_job_also_after_a_restart() {
    let mut world = World::new();
    let args = json!({"sha256": "a".repeat(64), "size": 1});
    world.order(world.command(("model.install", "a"), Some(("ops", 1)), &args));
    world.chunk();
    world.crash(false, &mut fastrand::Rng::with_seed(1));
    assert!(!world.states("a").contains(&"failed".to_owned()), "its job goes on");
    (0..3).for_each(|_| assert!(world.thread(0, true)));
    assert_eq!(world.states("a").last().map(String::as_str), Some("success"));
    // A job of a local caller is no command.
    let ended = Ended { command: "local-1".into(), end: End::Success, text: String::new(), respond: None };
    world.handle(Event::Job(JobNews::Ended(None, ended)));
    assert!(world.states("local-1").is_empty());
}

/// The model is committed and its job is gone from the disk, and the process dies before control saved the result.
#[test]
fn kill_between_the_end_of_a_job_and_its_result_loses_no_result() {
    let mut world = World::new();
    let args = json!({"sha256": "a".repeat(64), "size": 1});
    world.order(world.command(("model.install", "a"), Some(("ops", 1)), &args));
    world.chunk();
    (0..2).for_each(|_| assert!(world.thread(0, true)));
    world.fuse = Some(0);
    assert!(!world.thread(0, true), "it dies with the write that ends the job");
    assert!(world.steady_by.contains("a") && world.disk.files.shelf().job().is_none());
    world.crash(false, &mut fastrand::Rng::with_seed(1));
    assert_eq!(world.states("a").last().map(String::as_str), Some("success"));
    assert_eq!(world.disk.files.shelf().ended().count(), 0, "control has it");
}

#[test]
fn acknowledged_results_are_not_published_again_and_others_are_marked() {
    let mut world = World::new();
    world.order(signed(&world, "log.pull", "a", 1));
    world.tick(100);
    world.order(signed(&world, "log.pull", "b", 2));
    let (delivered, mut random) = (world.delivered.len(), fastrand::Rng::with_seed(1));
    world.crash(false, &mut random);
    world.tick(100);
    let again: Vec<_> =
        world.delivered[delivered..].iter().filter(|p| p.outcome.repeated).map(|p| p.id.clone()).collect();
    assert_eq!(again, ["b"]);
}

#[test]
fn rejection_that_is_published_again_names_its_reason_also_after_a_restart() {
    let mut world = World::new();
    let label = world.command(("feedback", "a"), Some(("ops", 1)), &json!({"alarm": "none", "label": true}));
    world.order(label.clone());
    assert_eq!((world.states("a"), world.why("a")), (vec!["accepted".into(), "rejected".into()], Some(Why::Invalid)));
    let delivered = world.delivered.len();
    world.crash(false, &mut fastrand::Rng::with_seed(1));
    world.tick(100);
    world.order(label);
    world.tick(100);
    let again: Vec<_> = world.delivered[delivered..].iter().filter(|p| p.id == "a" && p.outcome.repeated).collect();
    assert_eq!(again.len(), 2, "{again:?}");
    assert!(again.iter().all(|p| p.outcome.why == Some(Why::Invalid) && !p.outcome.text.is_empty()), "{again:?}");
}

#[test]
fn order_that_comes_while_the_run_ends_is_left_to_the_next() {
    let mut world = World::new();
    let restart = signed(&world, "restart", "a", 1);
    let actions = world.control.on(world.now, Event::Arrived(restart));
    assert!(actions.iter().any(|action| matches!(action, Action::Leave(_))));
    let next = signed(&world, "log.pull", "b", 2);
    assert!(world.control.on(world.now, Event::Arrived(next)).is_empty(), "not settled either");
}

#[test]
fn saves_that_may_fail_name_what_follows() {
    let mut world = World::new();
    world.order(set(&world, "a", 1, "bad = 1"));
    world.tick(31_000);
    for action in &world.done {
        if let Action::Save(_, OnError::Log(text)) = action {
            assert!(!text.is_empty());
        }
    }
}
