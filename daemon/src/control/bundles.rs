//! Performs what the machine of models (`models.rs`) decides: files, threads, the rollout.

use std::{collections::VecDeque, fs::File, io::Seek};

use super::{
    action::Call,
    jobs::{Jobs, News},
    model_action::{ModelAction, ModelEvent, Moment, Open, Opened, Proving, Undone},
    setup::Local,
    tell::Outcome,
};
use crate::{
    host::{
        Clock,
        fetch::{self, Waits},
    },
    model::{
        bundle,
        error::StoreError,
        rollout::{Report, Request, Target},
    },
};

/// The result of an action: the event that follows, or the one that ends the list.
type Done = Result<Option<ModelEvent>, Box<ModelEvent>>;

impl Jobs {
    /// Handles an event of the models, and those that its actions result in. The command that is done at once.
    pub(super) fn on_models(&mut self, event: ModelEvent) -> Option<(Call, Outcome)> {
        let (mut events, mut done) = (VecDeque::from([event]), None);
        while let Some(event) = events.pop_front() {
            let at = Moment { now_ns: Clock::boot_ns(), now_ms: self.now_ms() };
            for action in self.models.on(at, event) {
                match self.perform_on_models(action, &mut done) {
                    Ok(event) => events.extend(event),
                    Err(event) => {
                        events.push_back(*event);
                        break;
                    }
                }
            }
        }
        // A bundle that is left here belongs to a cancelled job.
        self.opened = None;
        done
    }

    fn perform_on_models(&mut self, action: ModelAction, done: &mut Option<(Call, Outcome)>) -> Done {
        let failed = |why: StoreError| Box::new(ModelEvent::NotDone(Undone::Step, why.into()));
        match action {
            ModelAction::Save(saved, undone) => match saved.and_then(|saved| Ok(self.disk.save(&saved)?)) {
                Err(why) if matches!(undone, Undone::Log(_)) => return Ok(Some(ModelEvent::NotDone(undone, why))),
                saved => saved.map_err(|why| Box::new(ModelEvent::NotDone(undone, why)))?,
            },
            ModelAction::SaveHigh(high, then) => {
                if let Err(why) = high.and_then(|high| Ok(self.disk.save_high(&high)?)) {
                    tracing::error!("{why}; {then}");
                }
            }
            ModelAction::Find(number, sha256) => return Ok(Some(ModelEvent::Found(number, self.disk.find(&sha256)))),
            ModelAction::TakeCopy(sha256) => self.disk.take_copy(&sha256).map_err(failed)?,
            ModelAction::Append(sha256, bytes) => self.disk.append(&sha256, &bytes).map_err(failed)?,
            ModelAction::TakeIn(sha256) => self.disk.take_in(&sha256).map_err(failed)?,
            ModelAction::RemoveIncoming(sha256) => self.disk.remove_incoming(&sha256),
            ModelAction::Sweep(bundles, incoming) => self.disk.sweep(&bundles, incoming.as_deref()),
            ModelAction::Fetch { number, sha256, url, size } => self.fetch(number, &sha256, url, size),
            // Dropping it ends a fetch.
            ModelAction::StopFetch => self.model_waits = Waits::default(),
            ModelAction::Copy(id) => self.copy(id),
            ModelAction::Open(number, sha256, which) => self.open(number, sha256, which),
            ModelAction::Prove { number, what, watched } => return Ok(self.prove(number, what, watched)),
            ModelAction::Offer(number) => self.rollout.request(Request::Offer { number }),
            ModelAction::Back(model, why) => self.rollout.request(Request::Back { model, why }),
            ModelAction::Show(shown) => (self.show_models)(shown),
            ModelAction::Done(call, outcome) => *done = Some((call, outcome)),
            ModelAction::Tell(news) => self.tell(news),
        }
        Ok(None)
    }

    fn fetch(&self, number: u64, sha256: &str, url: String, size: u64) {
        let (wanted, to) = (self.wanted(url, size, self.model_waits.stopped()), self.disk.incoming(sha256));
        self.long(move || Ok(fetch::fetch(&wanted, &to)?), move |brought| News::Brought(number, brought));
    }

    fn copy(&mut self, id: String) {
        let (file, to) = (self.local_file.take(), self.disk.copy());
        let work = move || {
            let mut file = file.ok_or("there is no file")?;
            let copied = file.rewind().and_then(|()| std::io::copy(&mut file, &mut File::create(&to)?));
            let size = copied.map_err(|why| format!("copy it: {why}"))?;
            let copy = File::open(&to).map_err(|why| why.to_string())?;
            Ok((bundle::digest(&copy)?, size))
        };
        self.long(work, move |copied| News::Copied(id, copied));
    }

    fn open(&self, number: u64, sha256: String, which: Open) {
        let (disk, keys) = (self.disk.clone(), self.keys_for_models().cloned());
        let work = move || {
            let opened = match which {
                Open::Incoming => disk.open_incoming(&sha256, &keys?),
                Open::Stored => disk.open_bundle(&sha256, Some(&keys?)),
                Open::Served => disk.open_bundle(&sha256, None),
            };
            Ok(Box::new(opened?))
        };
        self.long(work, move |opened| News::Opened(number, opened));
    }

    fn prove(&mut self, number: u64, what: Proving, watched: bool) -> Option<ModelEvent> {
        let target = match what {
            Proving::Factory(model) => Target::Factory(model),
            Proving::Opened(id) => match self.opened.take() {
                Some(bundle) => Target::Slot(bundle, id),
                None => {
                    let why = Err("its bundle is not open".into());
                    return Some(ModelEvent::Rollout(Report::Proven(number, why)));
                }
            },
        };
        self.rollout.request(Request::Prove { number, target, watched });
        None
    }

    /// A request of a local caller.
    pub(super) fn asked_locally(&mut self, local: Local) {
        let event = match local {
            Local::RollBack(model) => ModelEvent::LocalRollBack(Some(model).filter(|model| !model.is_empty())),
            Local::Install(fd) => {
                let file = File::from(fd);
                let size = file.metadata().map(|meta| meta.len()).map_err(|why| why.to_string());
                let room = self.room(*size.as_ref().unwrap_or(&0));
                self.local_file = Some(file);
                ModelEvent::LocalFile(size, room)
            }
        };
        self.on_models(event);
        self.local_file = None;
    }

    /// The bundle of the job in progress was opened, or was rejected.
    pub(super) fn bundle_opened(&mut self, number: u64, opened: Result<Box<bundle::Bundle>, String>) {
        let told = opened.as_ref().map_err(Clone::clone).map(|bundle| {
            let (release, signed_by) = (bundle.release.clone(), bundle.signed_by.clone());
            Box::new(Opened { release, signed_by })
        });
        self.opened = opened.ok();
        self.on_models(ModelEvent::Opened(number, told));
    }
}
