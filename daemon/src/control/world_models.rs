//! The models in the world of tests: the threads that bring, open and prove, and the engines. It performs
//! actions as `bundles.rs` does.

use std::collections::VecDeque;

use super::{
    action::Call,
    model_action::{Caller, ModelAction, ModelEvent, Moment, Open, Opened, Proving, Undone},
    tell::Outcome,
    world::{Thread, World},
};
use crate::{
    flow::{
        order::Asked,
        verdict::{Said, Verdict},
    },
    model::{
        manifest::Release,
        rollout::{Proof, Report},
        shelf::{Brings, Saved, Stage},
        slot::{Origin, Slot, SlotId},
    },
};

/// The release of a bundle of the tests: the first letter of its digest is its sequence.
pub fn release(sha256: &str) -> Release {
    let seq = u64::from(sha256.bytes().next().unwrap_or(b'a') - b'a' + 1);
    Release {
        channel: "stable".into(),
        model: "m".into(),
        version: seq.to_string(),
        seq,
        expires_ms: i64::MAX,
        created_ms: 1,
        device_class: vec!["any".into()],
        min_supervisor: semver::Version::new(0, 0, 0),
        files: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    }
}

impl World {
    pub fn moment(&self) -> Moment {
        Moment { now_ns: self.now.stamp.boot_ns, now_ms: self.now.stamp.wall_ms.unwrap_or(0) }
    }

    /// Handles an event of the models, and those that its actions result in. The command that is done at once.
    pub fn on_models(&mut self, event: ModelEvent) -> Option<(Call, Outcome)> {
        let (mut events, mut done) = (VecDeque::from([event]), None);
        while let Some(event) = events.pop_front() {
            let mut actions = self.models.on(self.moment(), event);
            if let Some((first, second)) = self.swap_models
                && let Some(a) = actions.iter().position(first)
                && let Some(b) = actions.iter().skip(a).position(second)
            {
                actions.swap(a, a + b);
            }
            for action in actions {
                self.done_models.push(action.clone());
                let result = self.perform_on_models(action, &mut done);
                self.check_slots();
                if self.burnt() {
                    return None;
                }
                match result {
                    Ok(event) => events.extend(event),
                    Err(event) => {
                        events.push_back(*event);
                        break;
                    }
                }
            }
        }
        done
    }

    fn perform_on_models(
        &mut self,
        action: ModelAction,
        done: &mut Option<(Call, Outcome)>,
    ) -> Result<Option<ModelEvent>, Box<ModelEvent>> {
        let failed = |why: String| Box::new(ModelEvent::NotDone(Undone::Step, why));
        let full = if self.disk.full { Err("no space left".to_owned()) } else { Ok(()) };
        let files = &mut self.disk.files;
        match action {
            ModelAction::Save(saved, undone) => match saved.and_then(|saved| full.map(|()| saved)) {
                Ok(saved) => self.slots_saved(*saved, &undone),
                Err(why) if matches!(undone, Undone::Log(_)) => return Ok(Some(ModelEvent::NotDone(undone, why))),
                Err(why) => return Err(Box::new(ModelEvent::NotDone(undone, why))),
            },
            ModelAction::SaveHigh(Ok(high), _) if full.is_ok() => files.high = Some(*high),
            ModelAction::SaveHigh(..) => {}
            ModelAction::Find(number, sha256) => return Ok(Some(ModelEvent::Found(number, files.find(&sha256)))),
            ModelAction::TakeCopy(sha256) => full.and_then(|()| files.take_copy(&sha256)).map_err(failed)?,
            ModelAction::Append(sha256, bytes) => full.map(|()| files.append(&sha256, &bytes)).map_err(failed)?,
            ModelAction::TakeIn(sha256) => full.and_then(|()| files.take_in(&sha256)).map_err(failed)?,
            ModelAction::RemoveIncoming(sha256) => files.remove_incoming(&sha256),
            ModelAction::Sweep(bundles, incoming) => files.sweep(&bundles, incoming.as_deref()),
            ModelAction::Fetch { number, sha256, size, .. } => {
                self.threads.push(Thread::Fetch { number, sha256, size });
            }
            ModelAction::StopFetch => self.threads.retain(|thread| !matches!(thread, Thread::Fetch { .. })),
            ModelAction::Open(number, sha256, which) => {
                assert!(which == Open::Incoming || files.bundles.contains(&sha256), "{sha256} is not in the store");
                self.threads.push(Thread::Open { number, sha256 });
            }
            ModelAction::Prove { number, what, .. } => {
                self.proven = match what {
                    Proving::Opened(_) => self.opened.take().expect("it was opened just now"),
                    Proving::Factory(_) => String::new(),
                };
                self.threads.retain(|thread| !matches!(thread, Thread::Prove { .. }));
                self.threads.push(Thread::Prove { number });
            }
            ModelAction::Offer(_) => self.threads.push(Thread::Watch { bundle: self.proven.clone() }),
            ModelAction::Back(..) => {
                self.threads.retain(|thread| !matches!(thread, Thread::Prove { .. } | Thread::Watch { .. }));
            }
            ModelAction::Done(call, outcome) => *done = Some((call, outcome)),
            ModelAction::Tell(news) => self.news.push_back(news),
            ModelAction::Copy(_) | ModelAction::Show(_) => {}
        }
        Ok(None)
    }

    fn slots_saved(&mut self, saved: Saved, undone: &Undone) {
        if let Undone::Begin(Caller::Command(call)) = undone {
            self.act(&call.id.clone());
        }
        let before = self.disk.files.shelf();
        self.disk.files.saved = Some(saved);
        let (job, after) = (before.job(), self.disk.files.shelf());
        if let Some(job) = job
            && after.lines().any(|(_, line)| line.held().is_some_and(|held| held.sha256 == job.sha256))
        {
            self.steady_by.insert(job.command.clone());
        }
    }

    /// The old or the new model serves after a restart: what the slots name is whole, and what serves passed its trial.
    fn check_slots(&mut self) {
        let shelf = self.disk.files.shelf();
        for (model, line) in shelf.lines() {
            if let Origin::Slot(id) = line.serving()
                && !matches!(line.slot(id), Slot::Steady(_))
            {
                self.broke(format!("{model}: a slot that is {} serves", line.slot(id).word()));
            }
            for id in [SlotId::A, SlotId::B] {
                let named = line.slot(id).held().filter(|_| !matches!(line.slot(id), Slot::Rejected { .. }));
                if named.is_some_and(|held| !self.disk.files.bundles.contains(&held.sha256)) {
                    self.broke(format!("{model}: the bundle of a slot that is {} is missing", line.slot(id).word()));
                }
            }
        }
    }

    /// One thread, or the engines, end with a result. Returns whether the process lived.
    pub fn thread(&mut self, place: usize, good: bool) -> bool {
        if self.threads.is_empty() {
            return true;
        }
        let thread = self.threads.remove(place % self.threads.len());
        let result = if good { Ok(()) } else { Err("it is bad".to_owned()) };
        let event = match thread {
            Thread::Fetch { number, sha256, size } => {
                self.disk.files.incoming.insert(sha256, size);
                ModelEvent::Brought(number, result)
            }
            Thread::Open { number, sha256 } => {
                let opened = Opened { release: release(&sha256), signed_by: vec!["a".into()] };
                self.opened = Some(sha256);
                ModelEvent::Opened(number, result.map(|()| Box::new(opened)))
            }
            Thread::Prove { number } => {
                let proof = Proof { text: "1 case".into(), groups: [0].into() };
                ModelEvent::Rollout(Report::Proven(number, result.map(|()| proof).map_err(Into::into)))
            }
            Thread::Watch { bundle } => {
                let said = result.map_or_else(Said::Bad, |()| Said::Passed("healthy".into()));
                ModelEvent::Rollout(Report::Verdict(Verdict { group: 0, bundle: bundle.into(), said }))
            }
        };
        self.jobs_event(event)
    }

    /// The worker of the model that serves dies again and again.
    pub fn fail_serving(&mut self) -> bool {
        let held = self.disk.files.shelf().line("m").held().map(|held| held.sha256.clone());
        let (bundle, said) = (held.unwrap_or_default().into(), Said::Failing("it crashed".into()));
        self.jobs_event(ModelEvent::Rollout(Report::Verdict(Verdict { group: 0, bundle, said })))
    }

    /// The sender of chunks sends the next one, if a job waits for it.
    pub fn chunk(&mut self) -> bool {
        let shelf = self.disk.files.shelf();
        let Some(job) = shelf.job().filter(|job| job.stage == Stage::Bringing(Brings::Chunks)) else { return true };
        let offset = self.disk.files.incoming.get(&job.sha256).copied().unwrap_or(0);
        let blob = super::world::arrived(Asked::Blob { sha256: job.sha256.clone(), offset }, "x".into(), None);
        self.order(blob)
    }

    /// Handles an event of the models, then hears their reports. Returns whether the process lived.
    pub fn jobs_event(&mut self, event: ModelEvent) -> bool {
        self.on_models(event);
        self.hear()
    }
}
