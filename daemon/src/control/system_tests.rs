//! Each rule of the system's update, in memory: what is saved outlives a process, and a restart starts one of two slots.

use std::collections::VecDeque;

use super::*;
use crate::control::command_state::CommandState;

const S: u64 = 1_000_000_000;

/// The machine of one process, and what outlives it.
struct Rig {
    system: System,
    place: Place,
    disk: Option<Saved>,
    at: At,
    full: bool,
    done: Vec<SystemAction>,
}

impl Rig {
    fn new() -> Self {
        let (slot, version) = (Some("A".to_owned()), Some("1".to_owned()));
        let place = Place { slot, version, boot: "boot-1".into(), os_confirm_s: 600 };
        let at = At { now_ns: S, acked_ns: 0 };
        let system = System::new(place.clone(), Ok(None), S);
        Self { system, place, disk: None, at, full: false, done: Vec::new() }
    }

    /// Another process; in this slot, after another boot.
    fn start(&mut self, slot: &str, boot: &str) -> Vec<SystemAction> {
        (self.place.slot, self.place.boot) = (Some(slot.into()), boot.into());
        self.system = System::new(self.place.clone(), Ok(self.disk.clone()), self.at.now_ns);
        self.on(SystemEvent::Began)
    }

    /// Handles an event as `slots.rs` does; a look finds `good` and `unwell`.
    fn on(&mut self, event: SystemEvent) -> Vec<SystemAction> {
        let (mut events, from) = (VecDeque::from([event]), self.done.len());
        while let Some(event) = events.pop_front() {
            for action in self.system.on(self.at, event) {
                self.done.push(action.clone());
                if let SystemAction::Save(saved, what) = action {
                    if self.full {
                        events.push_back(SystemEvent::Unsaved(what, "no space left".into()));
                        break;
                    }
                    self.disk = saved.ok().map(|saved| *saved).or(self.disk.take());
                }
            }
        }
        self.done[from..].to_vec()
    }

    fn install(&mut self, sha256: &str, good: bool) -> Vec<SystemAction> {
        let call = Call { kind: KIND.into(), id: "a".into(), respond: None, ticket: None };
        let from = BundleFrom::Https("https://a".into());
        let install = InstallSystem { sha256: sha256.into(), size: 1, from };
        self.on(SystemEvent::Install { call, install, good, room: Ok(()) })
    }

    /// From the command to the restart.
    fn written(&mut self) {
        self.install("digest", true);
        self.on(SystemEvent::Report(Word::Brought(Ok(()))));
        self.on(SystemEvent::Report(Word::Written(Ok("2".into()))));
    }

    fn tick(&mut self, s: u64) -> Vec<SystemAction> {
        self.at.now_ns += s * S;
        self.on(SystemEvent::Tick)
    }
}

/// The kinds of actions, without what is shown.
fn order(actions: &[SystemAction]) -> Vec<&'static str> {
    let name = |action: &SystemAction| match action {
        SystemAction::Save(..) => Some("save"),
        SystemAction::Load => Some("load"),
        SystemAction::Bring(_) => Some("bring"),
        SystemAction::Write(_) => Some("write"),
        SystemAction::RemoveIncoming => Some("remove"),
        SystemAction::Restart => Some("restart"),
        SystemAction::Look => Some("look"),
        SystemAction::Done(..) => Some("done"),
        SystemAction::Tell(JobNews::Running { .. }) => Some("running"),
        SystemAction::Tell(JobNews::Ended(_, ended)) => Some(CommandState::from(ended.end).word()),
        _ => None,
    };
    actions.iter().filter_map(name).collect()
}

/// The text of the result.
fn end(actions: &[SystemAction]) -> Option<(End, String)> {
    actions.iter().find_map(|action| match action {
        SystemAction::Tell(JobNews::Ended(_, ended)) => Some((ended.end, ended.text.clone())),
        _ => None,
    })
}

#[test]
fn each_step_is_saved_before_it_is_begun() {
    let mut rig = Rig::new();
    assert_eq!(order(&rig.install("digest", true)), ["save", "running", "bring"]);
    assert_eq!(order(&rig.on(SystemEvent::Report(Word::Brought(Ok(()))))), ["save", "running", "write"]);
    let actions = rig.on(SystemEvent::Report(Word::Written(Ok("2".into()))));
    assert_eq!(order(&actions), ["save", "remove", "running", "restart"]);
}

#[test]
fn update_is_refused_without_slots_while_another_runs_and_on_a_system_that_is_not_good() {
    let mut rig = Rig::new();
    let why = |actions: &[SystemAction]| match actions {
        [SystemAction::Done(_, outcome)] => outcome.why,
        _ => None,
    };
    assert_eq!(why(&rig.install("digest", false)), Some(Why::Busy));
    rig.install("digest", true);
    assert_eq!(why(&rig.install("other", true)), Some(Why::Busy));
    let mut rig = Rig::new();
    rig.place.slot = None;
    rig.system = System::new(rig.place.clone(), Ok(None), S);
    assert_eq!(why(&rig.install("digest", true)), Some(Why::Unsupported));
}

#[test]
fn new_system_that_is_marked_good_is_a_success_and_one_that_is_left_is_not_installed_again() {
    let mut rig = Rig::new();
    rig.written();
    rig.start("B", "boot-2");
    assert_eq!(order(&rig.tick(2)), ["look"]);
    let ended = rig.on(SystemEvent::Looked { good: true, unwell: None });
    assert_eq!(end(&ended), Some((End::Success, "2 runs in slot B".into())));
    assert_eq!(rig.disk.as_ref().and_then(|saved| saved.job.clone()), None);

    let mut rig = Rig::new();
    rig.written();
    rig.start("B", "boot-2");
    rig.tick(2);
    rig.on(SystemEvent::Looked { good: false, unwell: Some("no sensor".into()) });
    rig.start("A", "boot-3");
    assert_eq!(end(&rig.tick(2)), Some((End::RolledBack, "2 was left again: no sensor".into())));
    let [SystemAction::Done(_, outcome)] = &rig.install("digest", true)[..] else { panic!("not refused") };
    assert!(outcome.text.contains("no sensor"), "{outcome:?}");
}

#[test]
fn new_system_without_an_uplink_is_to_blame_only_if_the_previous_one_has_it() {
    for (acked, penalised) in [(true, true), (false, false)] {
        let mut rig = Rig::new();
        rig.at.acked_ns = S;
        rig.written();
        rig.at.acked_ns = 0;
        rig.start("B", "boot-2");
        rig.tick(2);
        rig.on(SystemEvent::Looked { good: false, unwell: None });
        rig.start("A", "boot-3");
        assert_eq!(end(&rig.tick(2)), None, "it waits for the broker");
        rig.at.acked_ns = if acked { rig.at.now_ns } else { 0 };
        assert_eq!(end(&rig.tick(601)).map(|(state, _)| state), Some(End::RolledBack));
        assert_eq!(rig.disk.as_ref().is_some_and(|saved| !saved.failed.is_empty()), penalised);
    }
}

/// A kill between any two actions: the next process goes on from what was saved.
#[test]
fn kill_at_each_step_brings_the_bundle_again_and_after_the_slot_is_written_restarts() {
    let mut rig = Rig::new();
    rig.install("digest", true);
    assert_eq!(order(&rig.start("A", "boot-1")), ["save", "bring"]);
    rig.on(SystemEvent::Report(Word::Brought(Ok(()))));
    assert_eq!(order(&rig.start("A", "boot-1")), ["save", "bring"], "the slot is written from the beginning");
    rig.on(SystemEvent::Report(Word::Brought(Ok(()))));
    // RAUC finished and the machine restarted before its result was saved.
    (rig.place.version, _) = (Some("2".into()), rig.start("B", "boot-2"));
    rig.start("B", "boot-2");
    rig.tick(2);
    let ended = rig.on(SystemEvent::Looked { good: true, unwell: None });
    assert_eq!(end(&ended), Some((End::Success, "2 runs in slot B".into())));

    let mut rig = Rig::new();
    rig.written();
    assert_eq!(order(&rig.start("A", "boot-1")), ["restart"]);
    rig.install("digest", true);
    let again = order(&rig.tick(limits::RESTART_AGAIN.as_secs() + 1));
    assert_eq!(again, ["restart"], "it is requested until it comes");
}

#[test]
fn process_that_dies_with_each_attempt_ends_the_update() {
    let mut rig = Rig::new();
    rig.install("digest", true);
    let ended = (0..limits::INSTALL_STARTS + 1).find_map(|_| end(&rig.start("A", "boot-1")));
    assert_eq!(ended.map(|(state, _)| state), Some(End::Failed));
}

#[test]
fn refused_restart_is_reported_once_for_each_reason() {
    let mut rig = Rig::new();
    rig.written();
    let mut refused = |why: &str| order(&rig.on(SystemEvent::NotRestarted(why.into())));
    assert_eq!(refused("polkit"), ["running"]);
    assert!(refused("polkit").is_empty());
    assert_eq!(refused("inhibited"), ["running"]);
}

#[test]
fn step_that_cannot_be_saved_ends_the_update_before_it_is_begun() {
    let mut rig = Rig::new();
    rig.full = true;
    assert_eq!(order(&rig.install("digest", true)), ["save", "done"]);
    assert_eq!(rig.system.command(), None);
    rig.full = false;
    rig.install("digest", true);
    rig.full = true;
    let actions = rig.on(SystemEvent::Report(Word::Brought(Ok(()))));
    assert!(!order(&actions).contains(&"write"), "{actions:?}");
}

#[test]
fn unreadable_update_is_not_forgotten_and_not_written_over() {
    let (place, failed) = (Rig::new().place, VecDeque::from([("digest".to_owned(), "why".to_owned())]));
    let unreadable = || Err(Unloaded::Unreadable("input/output error".into()));
    let mut system = System::new(place.clone(), unreadable(), S);
    assert!(system.is_unread() && system.trouble.is_none());
    let at = At { now_ns: 3 * S, acked_ns: 0 };
    assert_eq!(order(&system.on(at, SystemEvent::Tick)), ["load"]);
    system.save(Unsaved::Brought);
    assert!(matches!(&std::mem::take(&mut system.actions)[..], [SystemAction::Save(Err(_), _)]));
    system.on(at, SystemEvent::Loaded(Ok(Some(Saved { failed: failed.clone(), ..Saved::default() }))));
    assert_eq!((system.is_unread(), &system.saved.failed), (false, &failed));
    let lost = System::new(place, Err(Unloaded::Damaged), S);
    assert!(lost.trouble.is_some_and(|why| why.contains("is damaged")));
}

/// The system of the other slot may be an older one.
#[test]
fn saved_job_has_the_members_that_earlier_systems_wrote() {
    let text = r#"{"job":{"command":"a","respond":null,"sha256":"d","size":1,"from":{"https":"https://a"},
        "step":"restarting","begun":1,"boot":"b","slot":"A","version":"2","uplink":true,"why":""},"failed":[]}"#;
    let saved: Saved = serde_json::from_str(text).expect("read");
    let step = UpdateStep::Restarting { version: "2".into(), uplink: true, why: None };
    assert_eq!(saved.job.as_ref().map(|job| &job.step), Some(&step));
    let (again, before): (Value, Value) =
        (serde_json::to_value(&saved).expect("write"), serde_json::from_str(text).expect("JSON"));
    assert_eq!(again, before);
}
