//! Each rule of the models, in memory: lists of actions, and what they leave on the disk.

use bytes::Bytes;

use super::*;
use crate::{
    control::{action::Call, world_disk::Files, world_models::release},
    model::{
        slot::{ModelSlots, SlotId},
        store::There,
    },
};

const S: u64 = 1_000_000_000;
const HOUR_NS: u64 = 3600 * S;

/// A machine whose actions a test answers by hand.
struct Rig {
    models: Models,
    saved: Files,
    now_ns: u64,
    /// Saves fail.
    full: bool,
}

fn sha(letter: char) -> String {
    letter.to_string().repeat(64)
}

fn call(id: &str) -> Call {
    Call { kind: "model.install".into(), id: id.into(), respond: None, ticket: None }
}

fn install(letter: char, url: bool) -> Install {
    Install { sha256: sha(letter), size: 4, url: url.then(|| "https://a".into()) }
}

impl Rig {
    fn new() -> Self {
        let saved = Files::default();
        Self { models: saved.machine(Moment { now_ns: S, now_ms: 1 }), saved, now_ns: S, full: false }
    }

    /// Another process.
    fn start(&mut self) -> Vec<ModelAction> {
        self.models = self.saved.machine(Moment { now_ns: self.now_ns, now_ms: 1 });
        self.on(ModelEvent::Began)
    }

    /// Handles an event; saves are done, or fail. What is to be done otherwise is returned.
    fn on(&mut self, event: ModelEvent) -> Vec<ModelAction> {
        let (mut events, mut all) = (vec![event], Vec::new());
        while let Some(event) = events.pop() {
            for action in self.models.on(Moment { now_ns: self.now_ns, now_ms: 1 }, event) {
                all.push(action.clone());
                match action {
                    ModelAction::Save(Ok(saved), _) if !self.full => self.saved.saved = Some(*saved),
                    ModelAction::Save(_, undone) => {
                        let log = matches!(undone, Undone::Log(_));
                        events.push(ModelEvent::NotDone(undone, "no space left".into()));
                        if !log {
                            break;
                        }
                    }
                    ModelAction::Find(number, sha256) => {
                        let part = self.saved.incoming.get(&sha256).copied().unwrap_or(0);
                        events.push(ModelEvent::Found(number, There::Part(part)));
                    }
                    _ => {}
                }
            }
        }
        all
    }

    fn number(&self) -> u64 {
        self.models.work.as_ref().map_or(0, |work| work.number)
    }

    fn opened(&mut self, letter: char) -> Vec<ModelAction> {
        let opened = Opened { release: release(&sha(letter)), signed_by: Vec::new() };
        self.on(ModelEvent::Opened(self.number(), Ok(Box::new(opened))))
    }

    fn proven(&mut self) -> Vec<ModelAction> {
        let proof = Proof { text: "1 case".into(), groups: [0, 1].into() };
        self.on(ModelEvent::Rollout(Report::Proven(self.number(), Ok(proof))))
    }

    fn said(&mut self, group: usize, bundle: &str, said: Said) -> Vec<ModelAction> {
        self.on(ModelEvent::Rollout(Report::Verdict(Verdict { group, bundle: bundle.into(), said })))
    }

    fn passed(&mut self, letter: char) -> Vec<ModelAction> {
        self.said(0, &sha(letter), Said::Passed("healthy".into()));
        self.said(1, &sha(letter), Said::Passed("healthy".into()))
    }

    /// Installs a bundle until it is on trial.
    fn on_trial(&mut self, letter: char) {
        self.on(ModelEvent::Install(call(&letter.to_string()), install(letter, true), Ok(())));
        self.on(ModelEvent::Brought(self.number(), Ok(())));
        self.opened(letter);
        self.proven();
    }

    fn steady(&mut self, letter: char) {
        self.on_trial(letter);
        self.passed(letter);
        assert_eq!(self.serves(), Some(sha(letter)));
    }

    /// The bundle that serves after a restart.
    fn serves(&self) -> Option<String> {
        self.saved.shelf().line("m").held().map(|held| held.sha256.clone())
    }

    fn line(&self) -> ModelSlots {
        self.saved.shelf().line("m")
    }
}

/// The kinds of actions, without what is shown.
fn order(actions: &[ModelAction]) -> Vec<&'static str> {
    let name = |action: &ModelAction| match action {
        ModelAction::Save(..) => Some("save"),
        ModelAction::SaveHigh(..) => Some("save high"),
        ModelAction::Find(..) => Some("find"),
        ModelAction::Fetch { .. } => Some("fetch"),
        ModelAction::StopFetch => Some("stop fetch"),
        ModelAction::Copy(_) => Some("copy"),
        ModelAction::TakeCopy(_) => Some("take copy"),
        ModelAction::Append(..) => Some("append"),
        ModelAction::Open(..) => Some("open"),
        ModelAction::TakeIn(_) => Some("take in"),
        ModelAction::RemoveIncoming(_) => Some("remove"),
        ModelAction::Sweep(..) => Some("sweep"),
        ModelAction::Prove { .. } => Some("prove"),
        ModelAction::Offer(_) => Some("offer"),
        ModelAction::Back(..) => Some("back"),
        ModelAction::Done(_, outcome) => Some(outcome.state.word()),
        ModelAction::Tell(JobNews::Running { .. }) => Some("running"),
        ModelAction::Tell(JobNews::Ended(_, ended)) => Some(CommandState::from(ended.end).word()),
        ModelAction::Tell(JobNews::Blob(_)) => Some("blob"),
        ModelAction::Tell(JobNews::Event(..)) => Some("event"),
        ModelAction::Tell(JobNews::Slots) => Some("slots"),
        ModelAction::Tell(JobNews::Answered(..)) => Some("answered"),
        ModelAction::Show(_) => None,
    };
    actions.iter().filter_map(name).collect()
}

#[test]
fn each_step_of_an_install_is_saved_before_it_is_begun() {
    let mut rig = Rig::new();
    let begun = rig.on(ModelEvent::Install(call("a"), install('a', true), Ok(())));
    assert_eq!(order(&begun), ["save", "running", "find", "fetch"]);
    assert_eq!(order(&rig.on(ModelEvent::Brought(1, Ok(())))), ["open"]);
    assert_eq!(order(&rig.opened('a')), ["save high", "take in", "save", "prove"]);
    assert_eq!(order(&rig.proven()), ["save", "running", "offer"]);
    assert_eq!(rig.serves(), None, "on trial, a restart serves the previous model");
    assert_eq!(
        order(&rig.said(0, &sha('a'), Said::Passed("healthy".into()))),
        [""; 0],
        "the other group has not judged"
    );
    let ended = rig.said(1, &sha('a'), Said::Passed("healthy".into()));
    assert_eq!(order(&ended), ["save", "save high", "sweep", "success", "slots"]);
    assert_eq!(rig.serves(), Some(sha('a')));
}

#[test]
fn job_ends_with_one_write_that_holds_its_result_until_control_has_it() {
    let mut rig = Rig::new();
    rig.steady('a');
    let shelf = rig.saved.shelf();
    assert!(shelf.job().is_none());
    assert_eq!(shelf.ended().map(|ended| ended.command.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(order(&rig.on(ModelEvent::Heard("a".into()))), ["save"]);
    assert_eq!(rig.saved.shelf().ended().count(), 0);
    assert_eq!(order(&rig.on(ModelEvent::Heard("a".into()))), [""; 0], "nothing is written for nothing");
}

#[test]
fn bundle_that_may_not_be_installed_is_refused_or_its_job_fails() {
    let mut rig = Rig::new();
    rig.steady('b');
    let serves = rig.on(ModelEvent::Install(call("b2"), install('b', true), Ok(())));
    assert_eq!(order(&serves), ["success"], "it serves already");
    let full = rig.on(ModelEvent::Install(call("c"), install('c', true), Err("3 bytes are free".into())));
    assert_eq!(order(&full), ["rejected"]);
    let none = Install { size: 0, ..install('c', true) };
    assert_eq!(order(&rig.on(ModelEvent::Install(call("c"), none, Ok(())))), ["rejected"]);
    // An older sequence.
    rig.on(ModelEvent::Install(call("a"), install('a', true), Ok(())));
    rig.on(ModelEvent::Brought(rig.number(), Ok(())));
    assert_eq!(order(&rig.opened('a')), ["stop fetch", "remove", "save", "sweep", "failed", "slots"]);
    rig.on(ModelEvent::Keys(ModelKeys { version: None, expires_ms: Err("no keyset".into()) }));
    assert_eq!(order(&rig.on(ModelEvent::Install(call("d"), install('d', true), Ok(())))), ["rejected"]);
}

#[test]
fn bad_bundle_is_rolled_back_and_not_tried_again() {
    let mut rig = Rig::new();
    rig.steady('a');
    rig.on_trial('b');
    let ended = rig.said(1, &sha('b'), Said::Bad("too slow".into()));
    assert_eq!(order(&ended), ["stop fetch", "back", "save", "rolled_back", "slots"]);
    assert_eq!(rig.serves(), Some(sha('a')));
    assert_eq!(order(&rig.on(ModelEvent::Install(call("b2"), install('b', true), Ok(())))), ["rejected"]);
    assert_eq!(order(&rig.said(1, &sha('b'), Said::Bad("late".into()))), [""; 0], "a late verdict");
}

#[test]
fn rollback_cancels_an_install_and_saves_both_results_with_one_write() {
    let mut rig = Rig::new();
    rig.on_trial('a');
    let back = rig.on(ModelEvent::RollBack(call("back"), None));
    assert_eq!(order(&back), ["stop fetch", "back", "save", "rolled_back", "slots", "success"]);
    let shelf = rig.saved.shelf();
    let ended: Vec<_> = shelf.ended().map(|ended| (ended.command.as_str(), ended.end)).collect();
    assert_eq!(ended, [("back", End::Success), ("a", End::RolledBack)]);
}

#[test]
fn rollback_proves_what_served_before_and_a_second_one_is_refused_meanwhile() {
    let mut rig = Rig::new();
    assert_eq!(order(&rig.on(ModelEvent::RollBack(call("x"), None))), ["rejected"], "nothing was installed");
    rig.steady('a');
    rig.steady('b');
    let back = rig.on(ModelEvent::RollBack(call("back"), Some("m".into())));
    assert!(back.contains(&ModelAction::Open(rig.number(), sha('a'), Open::Served)), "{back:?}");
    assert_eq!(order(&rig.on(ModelEvent::RollBack(call("again"), None))), ["rejected"]);
    assert_eq!(order(&rig.opened('a')), ["prove"]);
    assert_eq!(order(&rig.proven()), ["offer"]);
    assert_eq!(rig.serves(), Some(sha('b')), "not yet");
    assert_eq!(order(&rig.passed('a')), ["save", "sweep", "success", "slots"]);
    assert_eq!(rig.serves(), Some(sha('a')));
    // And from there to what the configuration names, which has no bundle.
    rig.on(ModelEvent::RollBack(call("factory"), None));
    assert_eq!(rig.serves(), Some(sha('a')));
    let line = rig.line();
    assert_eq!(line.previous(), Origin::Slot(SlotId::B), "the other slot is steady, so it is the previous one");
}

#[test]
fn chunks_are_taken_in_order_and_on_the_disk_before_the_bundle_is_opened() {
    let mut rig = Rig::new();
    let begun = rig.on(ModelEvent::Install(call("a"), install('a', false), Ok(())));
    assert_eq!(order(&begun), ["save", "running", "find", "blob"]);
    let chunk = |rig: &mut Rig, offset: u64, bytes: &'static [u8]| {
        order(&rig.on(ModelEvent::Chunk(sha('a'), offset, Bytes::from_static(bytes))))
    };
    assert_eq!(chunk(&mut rig, 2, b"xx"), [""; 0], "a gap that was reported a moment ago");
    rig.now_ns += 60 * S;
    assert_eq!(chunk(&mut rig, 2, b"xx"), ["blob"], "a gap");
    assert_eq!(chunk(&mut rig, 0, b"12"), ["append"]);
    assert_eq!(chunk(&mut rig, 0, b"12"), [""; 0], "the same again");
    let last = rig.on(ModelEvent::Chunk(sha('a'), 1, Bytes::from_static(b"234")));
    assert_eq!(order(&last), ["append", "blob", "open"]);
    assert!(last.contains(&ModelAction::Append(sha('a'), Bytes::from_static(b"34"))), "only what is new");
}

#[test]
fn install_that_waits_for_chunks_gives_way_and_another_one_does_not() {
    let mut rig = Rig::new();
    rig.on(ModelEvent::Install(call("a"), install('a', false), Ok(())));
    let next = rig.on(ModelEvent::Install(call("b"), install('b', true), Ok(())));
    let expected = ["stop fetch", "remove", "save", "sweep", "failed", "slots", "save", "running", "find", "fetch"];
    assert_eq!(order(&next), expected);
    assert_eq!(order(&rig.on(ModelEvent::Install(call("c"), install('c', true), Ok(())))), ["rejected"]);
}

#[test]
fn disk_that_is_not_writable_ends_the_job_and_leaves_the_slots_as_they_were() {
    let mut rig = Rig::new();
    rig.full = true;
    let begun = rig.on(ModelEvent::Install(call("a"), install('a', true), Ok(())));
    assert_eq!(order(&begun), ["save", "failed"]);
    assert!(rig.models.work.is_none() && rig.models.shelf.job().is_none());
    rig.full = false;
    rig.steady('a');
    for step in 0..2 {
        rig.on(ModelEvent::Install(call("b"), install('b', true), Ok(())));
        rig.on(ModelEvent::Brought(rig.number(), Ok(())));
        if step == 1 {
            rig.opened('b');
        }
        rig.full = true;
        let actions = if step == 0 { rig.opened('b') } else { rig.proven() };
        assert!(order(&actions).contains(&"failed") && !order(&actions).contains(&"success"), "{actions:?}");
        assert!(!order(&actions).contains(&"offer"));
        rig.full = false;
        assert_eq!(rig.models.shelf.why_failed(&sha('b')), None, "not the bundle's fault");
        assert_eq!(rig.models.shelf.line("m").held().map(|held| held.seq), Some(1));
    }
    rig.on_trial('b');
    rig.full = true;
    let actions = rig.passed('b');
    assert_eq!(order(&actions), ["save", "failed"], "it serves, but a restart serves the previous one");
    rig.full = false;
    assert!(order(&rig.start()).contains(&"open"), "and tries it again");
}

#[test]
fn model_that_dies_again_and_again_is_rejected_before_the_previous_one_is_proven() {
    let mut rig = Rig::new();
    rig.steady('a');
    rig.steady('b');
    let actions = rig.said(0, &sha('b'), Said::Failing("it crashed".into()));
    assert_eq!(order(&actions), ["save", "event", "open"]);
    assert_eq!(rig.serves(), Some(sha('a')));
    assert_eq!(order(&rig.said(0, &sha('b'), Said::Failing("it crashed".into()))), [""; 0], "it rolls back already");
    let mut rig = Rig::new();
    assert_eq!(order(&rig.said(0, "", Said::Failing("it crashed".into()))), ["event"]);
    assert_eq!(order(&rig.said(0, "", Said::Failing("it crashed".into()))), [""; 0], "reported once");
}

#[test]
fn interrupted_install_goes_on_three_times_at_most_and_a_requested_restart_does_not_count() {
    let mut rig = Rig::new();
    rig.on_trial('a');
    for _ in 0..2 * limits::INSTALL_STARTS {
        rig.on(ModelEvent::Leaving);
        assert_eq!(order(&rig.start()), ["save", "open"]);
        rig.opened('a');
        rig.proven();
    }
    for start in 1..=limits::INSTALL_STARTS {
        let went_on = order(&rig.start()).contains(&"open");
        assert_eq!(went_on, start < limits::INSTALL_STARTS, "start {start}");
    }
    assert!(rig.saved.shelf().job().is_none());
    assert!(rig.saved.shelf().why_failed(&sha('a')).is_some_and(|why| why.contains("the daemon ended 3 times")));
}

#[test]
fn interrupted_transfer_goes_on_where_it_was() {
    let mut rig = Rig::new();
    rig.on(ModelEvent::Install(call("a"), install('a', true), Ok(())));
    rig.saved.incoming.insert(sha('a'), 2);
    assert_eq!(order(&rig.start()), ["find", "fetch"]);
    rig.saved.incoming.insert(sha('a'), 4);
    assert_eq!(order(&rig.start()), ["find", "open"], "it was whole");
}

#[test]
fn unreadable_slots_are_not_written_over_and_no_bundle_is_removed() {
    let mut rig = Rig::new();
    rig.models.shelf = Shelf::new(None, Vec::new(), Some("what was known of the model slots cannot be read".into()));
    assert_eq!(order(&rig.on(ModelEvent::Began)), [""; 0], "nothing is swept");
    let begun = rig.on(ModelEvent::Install(call("a"), install('a', true), Ok(())));
    assert_eq!(order(&begun), ["save", "failed"]);
    assert!(matches!(&begun[0], ModelAction::Save(Err(why), _) if why.contains("nothing is written over it")));
    assert!(rig.saved.saved.is_none());
}

#[test]
fn file_of_a_local_caller_is_copied_then_installed_and_a_second_one_waits() {
    let mut rig = Rig::new();
    assert_eq!(order(&rig.on(ModelEvent::LocalFile(Ok(4), Ok(())))), ["copy"]);
    assert_eq!(order(&rig.on(ModelEvent::LocalFile(Ok(4), Ok(())))), [""; 0]);
    assert!(
        rig.models
            .ended
            .as_ref()
            .is_some_and(|(_, state, text)| *state == CommandState::Rejected && text.contains("copied"))
    );
    rig.saved.incoming.insert(sha('a'), 4);
    let copied = rig.on(ModelEvent::Copied("local-1".into(), Ok((sha('a'), 4))));
    assert_eq!(order(&copied), ["save", "running", "take copy", "find", "open"]);
}

#[test]
fn report_about_a_job_that_was_cancelled_is_ignored() {
    let mut rig = Rig::new();
    rig.on(ModelEvent::Install(call("a"), install('a', true), Ok(())));
    let number = rig.number();
    rig.on(ModelEvent::RollBack(call("back"), None));
    for event in [
        ModelEvent::Brought(number, Ok(())),
        ModelEvent::Opened(number, Err("bad".into())),
        ModelEvent::Rollout(Report::Proven(number, Err("bad".into()))),
    ] {
        assert_eq!(order(&rig.on(event)), [""; 0]);
    }
}

#[test]
fn bringing_ends_when_nothing_comes_and_in_any_case() {
    let bringing = |began_h: u64, moved_h: u64| Phase::Bringing {
        have: 1,
        told_ns: 0,
        began_ns: began_h * HOUR_NS,
        moved_ns: moved_h * HOUR_NS,
    };
    assert_eq!(bringing(0, 0).overdue(0, 24 * HOUR_NS), None);
    assert!(bringing(0, 0).overdue(0, 25 * HOUR_NS).is_some_and(|why| why.contains("no byte of it arrived for 24 h")));
    assert_eq!(bringing(0, 160).overdue(0, 168 * HOUR_NS), None, "a slow line");
    assert!(bringing(0, 168).overdue(0, 169 * HOUR_NS).is_some_and(|why| why.contains("after 168 h")));
    assert_eq!(Phase::Proving.overdue(0, 1000 * HOUR_NS), None);
}

#[test]
fn trial_without_windows_ends_a_day_after_it_could_have_passed() {
    let watched = Phase::Watched { groups: BTreeSet::new(), since_ns: 0 };
    assert_eq!(watched.overdue(168 * HOUR_NS, 191 * HOUR_NS), None, "a trial of a week takes a week");
    assert!(watched.overdue(168 * HOUR_NS, 193 * HOUR_NS).is_some());
    let mut rig = Rig::new();
    rig.on_trial('a');
    rig.now_ns += 25 * HOUR_NS;
    assert_eq!(order(&rig.on(ModelEvent::Tick)), ["stop fetch", "back", "save", "rolled_back", "slots"]);
    assert_eq!(rig.saved.shelf().why_failed(&sha('a')), None, "the same bundle may be installed again");
}
