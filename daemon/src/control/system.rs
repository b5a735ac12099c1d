//! Installs another operating system, as a machine: from `os.install` until the boot loader marks the new slot good, or the
//! previous system runs again. The job is saved before each step, so the next process, in either slot, continues from there
//! and publishes the result. No I/O: `slots.rs` performs the actions.
//!
//! ```text
//! bring (HTTPS │ file) ─▶ [Bringing] ─▶ RAUC writes the other slot ─▶ [Installing] ─▶ restart ─▶ [Restarting]
//!     in the new slot: kentledge-boot-check finds it healthy, marks it good ─▶ success
//!     in the old slot: the boot loader, or the check, rolled back           ─▶ rolled_back
//! ```

use serde_json::{Value, json};

use super::{
    action::{Call, JobNews},
    args::{BundleFrom, InstallSystem},
    refusal::{Refusal, Why},
    tell::Outcome,
    update::{Saved, UpdateJob, UpdateStep},
};
use crate::{
    flow::event::Kind,
    host::Unloaded,
    limits,
    model::shelf::{End, Ended},
};

/// The kind of the command.
pub(super) const KIND: &str = "os.install";
/// Why the check leaves a system without an uplink; the system that runs afterwards compares with it.
pub const NO_UPLINK: &str = "no uplink";

/// A report of a job's thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// The bundle is received.
    Brought(Result<(), String>),
    /// RAUC's progress.
    Progress(i32, String),
    /// The other slot is written: the version of the system in it.
    Written(Result<String, String>),
}

/// The moment of an event, and when the broker acknowledged something last (0: never), in ns since boot.
#[derive(Debug, Clone, Copy)]
pub struct At {
    pub now_ns: u64,
    pub acked_ns: u64,
}

/// What the machine can learn.
#[derive(Debug)]
pub enum SystemEvent {
    /// The start.
    Began,
    /// Control saved the result of this command.
    Heard(String),
    /// The saved state was read again.
    Loaded(Result<Option<Saved>, Unloaded>),
    /// `os.install`; whether the system that runs is marked good, and whether the disk has room for the bundle.
    Install { call: Call, install: InstallSystem, good: bool, room: Result<(), String> },
    /// A report of the job's thread.
    Report(Word),
    /// Time passes.
    Tick,
    /// How the new system is: marked good, or the first reason why it is not healthy.
    Looked { good: bool, unwell: Option<String> },
    /// The machine is not restarted; why.
    NotRestarted(String),
    /// This could not be saved; what stood behind it was not done.
    Unsaved(Unsaved, String),
}

/// What could not be saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsaved {
    /// A new job: it is not begun.
    Begin(Call),
    /// That the bundle is here.
    Brought,
    /// That this version is in the other slot.
    Written(String),
    /// What is only worth a log line; this follows.
    Log(&'static str),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum SystemAction {
    /// Saves the state; the list ends if it cannot be saved, unless it is worth a log line only.
    Save(Result<Box<Saved>, String>, Unsaved),
    /// Reads the saved state again.
    Load,
    /// Receives the bundle and checks its digest.
    Bring(Box<UpdateJob>),
    /// Writes the bundle into the other slot.
    Write(Box<UpdateJob>),
    /// Removes the received bundle.
    RemoveIncoming,
    /// Restarts the machine.
    Restart,
    /// Looks how the system that runs is.
    Look,
    /// For `kentledge status`, and for `kentledge boot-check`.
    Show(Value),
    /// The command is done at once.
    Done(Call, Outcome),
    /// A report for control.
    Tell(JobNews),
}

/// This run, and what the machine needs to know of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The slot that runs; `None`: this machine has no slots.
    pub slot: Option<String>,
    /// Version of the system that runs.
    pub version: Option<String>,
    /// Id of this boot.
    pub boot: String,
    /// The new system must reach the broker within so many seconds.
    pub os_confirm_s: u64,
}

/// The machine.
#[derive(Debug)]
pub struct System {
    place: Place,
    at: At,
    actions: Vec<SystemAction>,
    saved: Saved,
    /// The saved state cannot be read so far: why, and since when.
    unread: Option<(String, u64)>,
    /// Progress that was published last, in percent.
    percent: i32,
    looked_ns: u64,
    began_ns: u64,
    /// When a restart was requested last, and why it was refused.
    asked_ns: u64,
    refused: Option<String>,
    /// A loss found at the start, to be published as an event.
    trouble: Option<String>,
}

impl System {
    /// With the saved state.
    pub fn new(place: Place, loaded: Result<Option<Saved>, Unloaded>, now_ns: u64) -> Self {
        let mut system = Self {
            place,
            at: At { now_ns, acked_ns: 0 },
            actions: Vec::new(),
            saved: Saved::default(),
            unread: None,
            percent: -1,
            looked_ns: 0,
            began_ns: now_ns,
            asked_ns: 0,
            refused: None,
            trouble: None,
        };
        system.trouble = system.loaded(loaded).err();
        system
    }

    /// The saved state cannot be read so far.
    pub fn is_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// The job that ended and whose result control may not have saved.
    pub fn ended(&self) -> Option<Ended> {
        self.saved.ended.clone()
    }

    /// The command of the job in progress.
    pub fn command(&self) -> Option<&str> {
        self.saved.job.as_ref().map(|job| job.command.as_str())
    }

    /// What is to be done about this event, in this order.
    pub fn on(&mut self, at: At, event: SystemEvent) -> Vec<SystemAction> {
        self.at = at;
        match event {
            SystemEvent::Began => self.take_up(),
            SystemEvent::Heard(command) => {
                if self.saved.ended.take_if(|ended| ended.command == command).is_some() {
                    self.save(Unsaved::Log("the next start looks at the result of this update again"));
                }
            }
            SystemEvent::Loaded(loaded) => {
                self.trouble = self.loaded(loaded).err();
                if self.unread.is_none() {
                    self.take_up();
                }
            }
            SystemEvent::Install { call, install, good, room } => {
                let (id, respond) = (call.id.clone(), call.respond.clone());
                match self.check(&install, good, room) {
                    Err(refusal) => self.act(SystemAction::Done(call, Outcome::refused(refusal))),
                    Ok(slot) => {
                        let (InstallSystem { sha256, size, from }, boot) = (install, self.place.boot.clone());
                        let step = UpdateStep::Bringing;
                        let job = UpdateJob { command: id, respond, sha256, size, from, step, begun: 1, boot, slot };
                        self.saved.job = Some(job.clone());
                        self.save(Unsaved::Begin(call));
                        self.tell_running("it is brought");
                        self.act(SystemAction::Bring(Box::new(job)));
                    }
                }
            }
            SystemEvent::Report(word) => self.reported(word),
            SystemEvent::Tick => self.tick(),
            SystemEvent::Looked { good, unwell } => self.looked(good, unwell),
            SystemEvent::NotRestarted(why) => self.not_restarted(why),
            SystemEvent::Unsaved(what, why) => self.unsaved(what, &why),
        }
        std::mem::take(&mut self.actions)
    }

    fn act(&mut self, action: SystemAction) {
        self.actions.push(action);
    }

    /// Takes the saved state. `Err`: it is lost, and an empty one begins; why. An unreadable file is read again for a minute.
    fn loaded(&mut self, loaded: Result<Option<Saved>, Unloaded>) -> Result<(), String> {
        let since_ns = self.unread.take().map_or(self.began_ns, |(_, since_ns)| since_ns);
        match loaded {
            Ok(saved) => self.saved = saved.unwrap_or_default(),
            Err(Unloaded::Unreadable(why))
                if self.at.now_ns.saturating_sub(since_ns) < limits::UNREADABLE_WAIT.as_nanos() as u64 =>
            {
                self.unread = Some((why, since_ns));
            }
            Err(why) => return Err(format!("what was known of an update of the system {why}; it is forgotten")),
        }
        Ok(())
    }

    /// A file that could not be read is never overwritten.
    fn save(&mut self, what: Unsaved) {
        let saved = match &self.unread {
            Some((why, _)) => {
                Err(format!("save the state of the system update: the saved state cannot be read: {why}"))
            }
            None => Ok(Box::new(self.saved.clone())),
        };
        self.act(SystemAction::Save(saved, what));
    }

    /// Whether this bundle may be installed now; the slot that runs.
    fn check(&self, install: &InstallSystem, good: bool, room: Result<(), String>) -> Result<String, Refusal> {
        let refuse = |why, text: &str| Err(Refusal(why, text.to_owned()));
        let Some(slot) = &self.place.slot else {
            return refuse(Why::Unsupported, "this machine was not started from a slot of Kentledge's image");
        };
        if self.saved.job.is_some() {
            return refuse(Why::Busy, "another system is on its way");
        }
        if !good {
            let text = "the system that runs is not marked good yet; the other slot is needed for a rollback";
            return refuse(Why::Busy, text);
        }
        if let Some((_, why)) = self.saved.failed.iter().find(|(sha256, _)| *sha256 == install.sha256) {
            return refuse(Why::Invalid, &format!("it was left again before ({why}); a new bundle is needed"));
        }
        if matches!(install.from, BundleFrom::Https(_)) {
            room.map_err(|why| Refusal(Why::Invalid, why))?;
        }
        Ok(slot.clone())
    }

    fn reported(&mut self, word: Word) {
        match word {
            Word::Brought(Ok(())) => {
                let step = UpdateStep::Installing { uplink: self.reached_lately() };
                let Some(job) = self.step(step) else { return };
                self.save(Unsaved::Brought);
                self.tell_running("it is here, whole; RAUC looks at it");
                self.percent = -1;
                self.act(SystemAction::Write(Box::new(job)));
            }
            Word::Progress(percent, words) => {
                if percent >= self.percent + 10 || (percent == 100 && self.percent < 100) {
                    self.percent = percent;
                    self.tell_running(&format!("{percent} %: {words}"));
                }
            }
            Word::Written(Ok(version)) => {
                let uplink = self.reached_lately();
                let Some(_) = self.step(UpdateStep::Restarting { version: version.clone(), uplink, why: None }) else {
                    return;
                };
                self.save(Unsaved::Written(version.clone()));
                self.act(SystemAction::RemoveIncoming);
                self.tell_running(&format!("{version} is in the other slot; the system restarts"));
                self.restart();
            }
            Word::Brought(Err(why)) | Word::Written(Err(why)) => self.end(End::Failed, &why, false),
        }
    }

    fn unsaved(&mut self, what: Unsaved, why: &str) {
        match what {
            Unsaved::Begin(call) => {
                self.saved.job = None;
                self.act(SystemAction::Done(call, Outcome::failed(why)));
            }
            Unsaved::Brought => self.end(End::Failed, why, false),
            // The boot loader already starts the other slot next, but no job is saved there. The result says so.
            Unsaved::Written(version) => {
                self.end(End::Failed, &format!("{why}; {version} runs after the next restart"), false);
            }
            Unsaved::Log(then) => tracing::error!("{why}; {then}"),
        }
    }

    /// The job at its next step.
    fn step(&mut self, step: UpdateStep) -> Option<UpdateJob> {
        let job = self.saved.job.as_mut()?;
        job.begun = 1;
        if matches!(step, UpdateStep::Restarting { .. }) {
            job.boot.clone_from(&self.place.boot);
        }
        job.step = step;
        Some(job.clone())
    }

    /// Whether the broker acknowledged anything within the last day.
    fn reached_lately(&self) -> bool {
        let At { now_ns, acked_ns } = self.at;
        acked_ns > 0 && now_ns.saturating_sub(acked_ns) < limits::UPLINK_BEFORE.as_nanos() as u64
    }

    /// Restarts the machine. logind asks polkit, which may have to start first: on a slow machine that exceeds the call's
    /// timeout. So the request is repeated until the system restarts; each new reason is reported once.
    fn restart(&mut self) {
        self.asked_ns = self.at.now_ns;
        self.act(SystemAction::Restart);
    }

    fn not_restarted(&mut self, why: String) {
        if self.refused.as_ref() == Some(&why) {
            return;
        }
        if let Some(UpdateJob { step: UpdateStep::Restarting { version, .. }, .. }) = &self.saved.job {
            let text = format!("{version} waits for a restart of the system: {why}");
            self.tell_running(&text);
        }
        self.refused = Some(why);
    }

    /// At the start: continues with what the previous process, in either slot, left.
    fn take_up(&mut self) {
        if let Some(why) = self.trouble.take() {
            self.act(SystemAction::Tell(JobNews::Event(Kind::StoreDamaged, "system".into(), why)));
        }
        let Some(mut job) = self.saved.job.clone() else { return self.show() };
        if let UpdateStep::Installing { uplink } = job.step
            && self.place.slot.as_ref() != Some(&job.slot)
        {
            // RAUC finished and the machine restarted before its result was saved: this is the new system.
            let version = self.place.version.clone().unwrap_or_default();
            job.step = UpdateStep::Restarting { version, uplink, why: None };
            self.saved.job = Some(job.clone());
        }
        if matches!(job.step, UpdateStep::Restarting { .. }) {
            if job.boot == self.place.boot {
                self.restart();
            }
            return self.show();
        }
        if job.begun >= limits::INSTALL_STARTS {
            let why = format!("the daemon ended {} times while it was installed", job.begun);
            return self.end(End::Failed, &why, false);
        }
        tracing::info!(job = job.command, "going on with the installation of a system");
        job.begun += 1;
        self.saved.job = Some(job.clone());
        self.save(Unsaved::Log("this attempt is not counted"));
        // RAUC never leaves a half-written slot bootable: write the slot from the beginning.
        self.act(SystemAction::Bring(Box::new(job)));
        self.show();
    }

    /// After a restart: ends the job if its result is known.
    fn tick(&mut self) {
        let now_ns = self.at.now_ns;
        if now_ns.saturating_sub(self.looked_ns) < 1_000_000_000 {
            return;
        }
        self.looked_ns = now_ns;
        if self.unread.is_some() {
            return self.act(SystemAction::Load);
        }
        let Some(UpdateJob { step: UpdateStep::Restarting { version, why, .. }, boot, slot, .. }) =
            self.saved.job.clone()
        else {
            return;
        };
        if boot == self.place.boot {
            if now_ns.saturating_sub(self.asked_ns) > limits::RESTART_AGAIN.as_nanos() as u64 {
                self.restart();
            }
        } else if self.place.slot.as_ref().is_some_and(|runs| *runs == slot) {
            self.came_back(&version, why.as_deref());
        } else {
            self.act(SystemAction::Look);
        }
    }

    /// This is the new system: ends the job once it is marked good.
    fn looked(&mut self, good: bool, unwell: Option<String>) {
        let acked = self.at.acked_ns > 0;
        let slot = self.place.slot.clone().unwrap_or_default();
        let Some(UpdateJob { step: UpdateStep::Restarting { version, uplink, why }, .. }) = &mut self.saved.job else {
            return;
        };
        if good {
            let text = format!("{version} runs in slot {slot}");
            return self.end(End::Success, &text, false);
        }
        // The previous system learns only from this text why the new one was not healthy.
        let now = unwell.or_else(|| (*uplink && !acked).then(|| NO_UPLINK.to_owned()));
        if now != *why {
            *why = now;
            self.save(Unsaved::Log("after a rollback the result may lack the reason"));
            self.show();
        }
    }

    /// The previous system runs again: ends the job.
    fn came_back(&mut self, version: &str, why: Option<&str>) {
        if why == Some(NO_UPLINK) {
            let waited_s = self.at.now_ns.saturating_sub(self.began_ns) / 1_000_000_000;
            if self.at.acked_ns > 0 {
                let text = format!("{version} did not reach the broker, and this one does");
                self.end(End::RolledBack, &text, true);
            } else if waited_s > self.place.os_confirm_s {
                // Not the bundle's fault: it may be installed again.
                self.end(End::RolledBack, NO_UPLINK, false);
            }
            return;
        }
        let why = why.unwrap_or("it did not come to say how it is");
        self.end(End::RolledBack, &format!("{version} was left again: {why}"), true);
    }

    fn end(&mut self, end: End, why: &str, penalise: bool) {
        let Some(job) = self.saved.job.take() else { return };
        if penalise {
            while self.saved.failed.len() >= limits::SYSTEMS_FAILED {
                self.saved.failed.pop_front();
            }
            self.saved.failed.push_back((job.sha256.clone(), why.chars().take(200).collect()));
        }
        let UpdateJob { command, respond, .. } = job;
        let ended = Ended { command, end, text: why.to_owned(), respond };
        self.saved.ended = Some(ended.clone());
        self.save(Unsaved::Log("a restart handles this update again"));
        self.act(SystemAction::RemoveIncoming);
        let kind = match end {
            End::Success => Some(Kind::SystemUpdated),
            End::RolledBack => Some(Kind::SystemRolledBack),
            _ => None,
        };
        if let Some(kind) = kind {
            self.act(SystemAction::Tell(JobNews::Event(kind, "system".into(), why.to_owned())));
        }
        self.act(SystemAction::Tell(JobNews::Ended(Some(KIND), ended)));
        self.show();
    }

    fn tell_running(&mut self, text: &str) {
        let Some(command) = self.command().map(str::to_owned) else { return };
        self.act(SystemAction::Tell(JobNews::Running { kind: Some(KIND), command, text: text.to_owned() }));
        self.show();
    }

    fn show(&mut self) {
        let Place { slot, version, boot, os_confirm_s } = &self.place;
        let job = self.saved.job.as_ref();
        let restarting = job.and_then(|job| match &job.step {
            UpdateStep::Restarting { version, uplink, why } => Some((version.as_str(), *uplink, why.as_deref())),
            _ => None,
        });
        let elsewhere = job.is_some_and(|job| job.boot != *boot && slot.as_ref() != Some(&job.slot));
        let trial = restarting.is_some() && elsewhere;
        let (found, uplink, why) = restarting.unwrap_or(("", false, None));
        let why = why.unwrap_or("");
        let shown = json!({
            "slot": slot, "version": version, "trial": trial,
            "uplink_needed": trial && uplink,
            "confirm_s": os_confirm_s,
            "installing": job.map(|job| json!({"id": job.command, "version": found, "why": why})),
        });
        self.act(SystemAction::Show(shown));
    }
}

#[cfg(test)]
#[path = "system_tests.rs"]
mod tests;
