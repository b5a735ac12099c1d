//! Installs another operating system: from `os.install` until the boot loader marks the new slot good, or the previous system
//! runs again. The job is saved before each step, so the next process, in either slot, continues from there and publishes
//! the result.
//!
//! ```text
//! bring (HTTPS │ file) ─▶ [Bringing] ─▶ RAUC writes the other slot ─▶ [Installing] ─▶ restart ─▶ [Restarting]
//!     in the new slot: kentledge-boot-check finds it healthy, marks it good ─▶ success
//!     in the old slot: the boot loader, or the check, rolled back           ─▶ rolled_back
//! ```

use std::{
    collections::VecDeque,
    fs::{self, File},
    path::PathBuf,
    sync::atomic::Ordering,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Outcome, State,
    jobs::{JobNews, Jobs, respond_of, respond_to},
    models::{News, Refused, refuse},
    request::{Refusal, Why},
};
use crate::{
    flow::{event::Kind, order::Respond},
    host::{
        Clock, Keep, Unloaded,
        fetch::{self, Waits},
    },
    limits,
    model::bundle,
};

const FILE: &str = "system.json";
/// Why the check leaves a system without an uplink; the system that runs afterwards compares with it.
pub const NO_UPLINK: &str = "no uplink";

/// Writes the bundle into the other slot. Reports percent and text; returns the version.
pub type Write = dyn Fn(&std::path::Path, &mut dyn FnMut(i32, &str)) -> Result<String, String> + Send + Sync;

/// Access to the machine's slots.
pub struct Slots {
    /// The slot that runs; `None`: this machine has no slots.
    pub slot: Option<String>,
    /// Version of the system that runs.
    pub version: Option<String>,
    /// Whether the slot that runs is marked good in the boot loader's environment.
    pub good: Box<dyn Fn() -> bool + Send>,
    /// Writes the other slot.
    pub write: std::sync::Arc<Write>,
    /// Publishes the state of the update for status and D-Bus.
    pub show: Box<dyn Fn(Value) + Send>,
}

/// Arguments of `os.install`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallSystem {
    /// SHA-256 of the whole bundle.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Where it is.
    pub from: From,
}

/// Where a bundle is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// `https://…`
    Https(String),
    /// On this machine.
    File(PathBuf),
}

/// A report of a job's thread.
pub enum Word {
    /// The bundle is received.
    Brought(Result<(), String>),
    /// RAUC's progress.
    Progress(i32, String),
    /// The other slot is written.
    Written(Result<String, String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Bringing,
    Installing,
    Restarting,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    command: String,
    respond: Option<(String, Option<Vec<u8>>)>,
    sha256: String,
    size: u64,
    from: From,
    step: Step,
    /// Processes that began with this step.
    begun: u32,
    /// The boot in which the step was saved.
    boot: String,
    /// The slot that ran when the step was saved.
    slot: String,
    /// Version of the bundle, once RAUC has read it.
    #[serde(default)]
    version: String,
    /// The broker was reached within the day before the install.
    #[serde(default)]
    uplink: bool,
    /// Why the new system is not healthy so far; the new system writes it.
    #[serde(default)]
    why: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    job: Option<Job>,
    /// Digests of bundles that were rolled back, and why.
    failed: VecDeque<(String, String)>,
}

/// Control's state for systems.
pub(super) struct System {
    keep: Keep,
    saved: Saved,
    /// The saved state cannot be read so far: why, and since when.
    unread: Option<(String, u64)>,
    /// Progress that was published last, in percent.
    percent: i32,
    looked_ns: u64,
    began_ns: u64,
    /// When a restart was requested last, and why it was refused.
    asked_ns: u64,
    refused: String,
    /// A loss found at the start, to be published as an event.
    trouble: Option<String>,
    /// Dropping it ends a fetch.
    waits: Waits,
}

impl System {
    pub(super) fn open(keep: Keep) -> Self {
        let mut system = Self {
            keep,
            saved: Saved::default(),
            unread: None,
            percent: -1,
            looked_ns: 0,
            began_ns: Clock::boot_ns(),
            asked_ns: 0,
            refused: String::new(),
            trouble: None,
            waits: Waits::default(),
        };
        system.trouble = system.read().err();
        system
    }

    /// Reads the saved state. `Err`: it is lost, and an empty one begins; why. An unreadable file is read again for a minute.
    fn read(&mut self) -> Result<(), String> {
        let saved = self.keep.load_checked(FILE);
        let since_ns = self.unread.take().map_or(self.began_ns, |(_, since_ns)| since_ns);
        match saved {
            Ok(saved) => self.saved = saved.unwrap_or_default(),
            Err(Unloaded::Unreadable(why))
                if Clock::boot_ns().saturating_sub(since_ns) < limits::UNREADABLE_WAIT.as_nanos() as u64 =>
            {
                self.unread = Some((why, since_ns));
            }
            Err(why) => return Err(format!("what was known of an update of the system {why}; it is forgotten")),
        }
        Ok(())
    }

    fn save(&self) -> Result<(), String> {
        if let Some((why, _)) = &self.unread {
            return Err(format!("save the state of the system update: the saved state cannot be read: {why}"));
        }
        self.keep.save_checked(FILE, &self.saved).map_err(|why| format!("save the state of the system update: {why}"))
    }

    /// The saved state cannot be read so far.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// The command of the job in progress.
    pub(super) fn command(&self) -> Option<&str> {
        self.saved.job.as_ref().map(|job| job.command.as_str())
    }
}

impl Jobs {
    fn incoming_system(&self) -> PathBuf {
        self.config.device.state_dir.join("system").join("incoming.raucb")
    }

    /// `os.install`. `None`: it is in progress.
    pub(super) fn install_system(
        &mut self,
        id: &str,
        install: InstallSystem,
        respond: Option<Respond>,
    ) -> Refused<Option<Outcome>> {
        let Some(slot) = self.slots.slot.clone() else {
            return refuse(Why::Unsupported, "this machine was not started from a slot of Kentledge's image");
        };
        if self.system.saved.job.is_some() {
            return refuse(Why::Busy, "another system is on its way");
        }
        if !(self.slots.good)() {
            return refuse(
                Why::Busy,
                "the system that runs is not marked good yet; the other slot is needed for a rollback",
            );
        }
        if let Some((_, why)) = self.system.saved.failed.iter().find(|(sha256, _)| *sha256 == install.sha256) {
            return refuse(Why::Invalid, format!("it was left again before ({why}); a new bundle is needed"));
        }
        if matches!(install.from, From::Https(_)) {
            self.room_for_system(install.size).map_err(|why| Refusal(Why::Invalid, why))?;
        }
        let InstallSystem { sha256, size, from } = install;
        let respond = respond_to(respond);
        let (step, boot) = (Step::Bringing, self.boot.clone());
        let (version, uplink, why) = (String::new(), false, String::new());
        let job =
            Job { command: id.into(), respond, sha256, size, from, step, begun: 1, boot, slot, version, uplink, why };
        self.system.saved.job = Some(job);
        if let Err(why) = self.system.save() {
            self.system.saved.job = None;
            return Ok(Some(Outcome::new(State::Failed, why)));
        }
        self.tell_system("it is brought");
        self.bring_system();
        Ok(None)
    }

    fn room_for_system(&self, size: u64) -> Result<(), String> {
        let there = self.incoming_system().metadata().map_or(0, |meta| meta.len());
        self.room(size.saturating_sub(there))
    }

    /// Where the job's bundle is, or will be.
    fn bundle_of(&self, job: &Job) -> PathBuf {
        match &job.from {
            From::File(path) => path.clone(),
            From::Https(_) => self.incoming_system(),
        }
    }

    fn bring_system(&mut self) {
        let Some(job) = self.system.saved.job.clone() else { return };
        let to = self.bundle_of(&job);
        let wanted = match job.from {
            From::File(_) => None,
            From::Https(url) => Some(self.wanted(url, job.size, self.system.waits.stopped())),
        };
        let work = move || {
            if let Some(wanted) = wanted {
                fs::create_dir_all(to.parent().unwrap_or(&to)).map_err(|why| why.to_string())?;
                fetch::fetch(&wanted, &to)?;
            }
            is_it(&to, &job.sha256, job.size)
        };
        self.long(work, |brought| News::System(Word::Brought(brought)));
    }

    fn write_system(&mut self) {
        let Some(job) = &self.system.saved.job else { return };
        let path = self.bundle_of(job);
        let (write, news) = (self.slots.write.clone(), self.reports.0.clone());
        self.system.percent = -1;
        let work = move || {
            let mut tell = |percent: i32, words: &str| {
                // A progress report may be lost, the result may not.
                let _ = news.try_send(News::System(Word::Progress(percent, words.to_owned())));
            };
            write(&path, &mut tell)
        };
        self.long(work, |written| News::System(Word::Written(written)));
    }

    /// Handles a report of the job's thread.
    pub(super) fn heard_of_system(&mut self, word: Word) {
        match word {
            Word::Brought(Ok(())) => {
                let uplink = self.reached_lately();
                let done = self.step_system(|job| {
                    job.step = Step::Installing;
                    job.uplink = uplink;
                });
                if let Err(why) = done {
                    return self.end_system(State::Failed, &why, false);
                }
                self.tell_system("it is here, whole; RAUC looks at it");
                self.write_system();
            }
            Word::Progress(percent, words) => {
                if percent >= self.system.percent + 10 || (percent == 100 && self.system.percent < 100) {
                    self.system.percent = percent;
                    self.tell_system(&format!("{percent} %: {words}"));
                }
            }
            Word::Written(Ok(version)) => self.restart_system(version),
            Word::Brought(Err(why)) | Word::Written(Err(why)) => self.end_system(State::Failed, &why, false),
        }
    }

    fn step_system(&mut self, change: impl FnOnce(&mut Job)) -> Result<(), String> {
        self.system.saved.job.iter_mut().for_each(|job| job.begun = 1);
        self.system.saved.job.as_mut().map(change);
        self.system.save()
    }

    /// Whether the broker acknowledged anything within the last day.
    fn reached_lately(&self) -> bool {
        let acked_ns = self.board.acked_ns.load(Ordering::Relaxed);
        acked_ns > 0 && Clock::boot_ns().saturating_sub(acked_ns) < limits::UPLINK_BEFORE.as_nanos() as u64
    }

    fn restart_system(&mut self, version: String) {
        let uplink = self.reached_lately();
        let boot = self.boot.clone();
        let done = self.step_system(|job| {
            job.step = Step::Restarting;
            job.version.clone_from(&version);
            job.uplink = uplink;
            job.boot = boot;
        });
        if let Err(why) = done {
            // The boot loader already starts the other slot next, but no job is saved there. The result says so.
            return self.end_system(State::Failed, &format!("{why}; {version} runs after the next restart"), false);
        }
        let _ = fs::remove_file(self.incoming_system());
        self.tell_system(&format!("{version} is in the other slot; the system restarts"));
        self.ask_for_restart();
    }

    /// Asks logind to restart the machine. logind asks polkit, which may have to start first: on a slow machine that exceeds
    /// the call's timeout. So the request is repeated until the system restarts; each new reason is reported once.
    fn ask_for_restart(&mut self) {
        self.system.asked_ns = Clock::boot_ns();
        let Err(why) = (self.machine.reboot)() else { return };
        if why != self.system.refused {
            let version = self.system.saved.job.as_ref().map_or("", |job| &job.version);
            self.tell_system(&format!("{version} waits for a restart of the system: {why}"));
            self.system.refused = why;
        }
    }

    /// At the start: continues with what the previous process, in either slot, left.
    pub(super) fn take_up_system(&mut self) {
        if let Some(why) = self.system.trouble.take() {
            self.event(Kind::StoreDamaged, "system", &why);
        }
        let Some(mut job) = self.system.saved.job.clone() else { return self.show_system() };
        if job.step == Step::Installing && self.slots.slot.as_ref() != Some(&job.slot) {
            // RAUC finished and the machine restarted before its result was saved: this is the new system.
            job.step = Step::Restarting;
            job.version = self.slots.version.clone().unwrap_or_default();
            self.system.saved.job = Some(job.clone());
        }
        if job.step == Step::Restarting {
            if job.boot == self.boot {
                self.ask_for_restart();
            }
            return self.show_system();
        }
        if job.begun >= limits::INSTALL_STARTS {
            let why = format!("the daemon ended {} times while it was installed", job.begun);
            return self.end_system(State::Failed, &why, false);
        }
        tracing::info!(job = job.command, "going on with the installation of a system");
        self.system.saved.job = Some(Job { begun: job.begun + 1, ..job });
        if let Err(why) = self.system.save() {
            tracing::error!("{why}; this attempt is not counted");
        }
        // RAUC never leaves a half-written slot bootable: write the slot from the beginning.
        self.bring_system();
        self.show_system();
    }

    /// After a restart: ends the job if its result is known.
    pub(super) fn look_at_system(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.system.looked_ns) < 1_000_000_000 {
            return;
        }
        self.system.looked_ns = now_ns;
        if self.system.unread.is_some() {
            self.system.trouble = self.system.read().err();
            if self.system.unread.is_none() {
                self.take_up_system();
            }
        }
        let Some(job) = self.system.saved.job.clone() else { return };
        if job.step != Step::Restarting {
            return;
        }
        if job.boot == self.boot {
            let asked = now_ns.saturating_sub(self.system.asked_ns);
            if asked > limits::RESTART_AGAIN.as_nanos() as u64 {
                self.ask_for_restart();
            }
            return;
        }
        let slot = self.slots.slot.clone().unwrap_or_default();
        let acked = self.board.acked_ns.load(Ordering::Relaxed) > 0;
        if slot == job.slot {
            return self.came_back(&job, acked, now_ns);
        }
        if (self.slots.good)() {
            return self.end_system(State::Success, &format!("{} runs in slot {slot}", job.version), false);
        }
        // The previous system learns only from this text why the new one was not healthy.
        let status = (self.machine.status)();
        let unwell = status["unwell"].as_array().and_then(|all| all.first()).and_then(Value::as_str).unwrap_or("");
        let why = if unwell.is_empty() && job.uplink && !acked { NO_UPLINK } else { unwell };
        if why != job.why {
            let why = why.to_owned();
            self.system.saved.job.iter_mut().for_each(|job| job.why.clone_from(&why));
            if let Err(why) = self.system.save() {
                tracing::error!("{why}; after a rollback the result may lack the reason");
            }
            self.show_system();
        }
    }

    /// The previous system runs again: ends the job.
    fn came_back(&mut self, job: &Job, acked: bool, now_ns: u64) {
        let version = &job.version;
        if job.why == NO_UPLINK {
            let waited_s = now_ns.saturating_sub(self.system.began_ns) / 1_000_000_000;
            if acked {
                let text = format!("{version} did not reach the broker, and this one does");
                self.end_system(State::RolledBack, &text, true);
            } else if waited_s > self.config.commands.os_confirm_s {
                // Not the bundle's fault: it may be installed again.
                self.end_system(State::RolledBack, NO_UPLINK, false);
            }
            return;
        }
        let why = if job.why.is_empty() { "it did not come to say how it is" } else { &job.why };
        self.end_system(State::RolledBack, &format!("{version} was left again: {why}"), true);
    }

    fn end_system(&mut self, state: State, why: &str, penalise: bool) {
        let Some(job) = self.system.saved.job.take() else { return };
        if penalise {
            while self.system.saved.failed.len() >= limits::SYSTEMS_FAILED {
                self.system.saved.failed.pop_front();
            }
            self.system.saved.failed.push_back((job.sha256.clone(), why.chars().take(200).collect()));
        }
        if let Err(why) = self.system.save() {
            tracing::error!("{why}; a restart handles this update again");
        }
        let _ = fs::remove_file(self.incoming_system());
        match state {
            State::Success => self.event(Kind::SystemUpdated, "system", why),
            State::RolledBack => self.event(Kind::SystemRolledBack, "system", why),
            _ => {}
        }
        let (kind, text, respond) = (Some("os.install"), why.to_owned(), respond_of(job.respond));
        self.tell(JobNews::Ended { kind, command: job.command, state, text, respond });
        self.show_system();
    }

    fn tell_system(&mut self, text: &str) {
        let Some(command) = self.system.command().map(str::to_owned) else { return };
        self.tell(JobNews::Running { kind: Some("os.install"), command, text: text.to_owned() });
        self.show_system();
    }

    /// For `kentledge status`, and for `kentledge boot-check`.
    fn show_system(&self) {
        let slots = &self.slots;
        let job = self.system.saved.job.as_ref();
        let trial = job.is_some_and(|job| {
            job.step == Step::Restarting && job.boot != self.boot && slots.slot.as_ref() != Some(&job.slot)
        });
        (slots.show)(json!({
            "slot": slots.slot, "version": slots.version, "trial": trial,
            "uplink_needed": trial && job.is_some_and(|job| job.uplink),
            "confirm_s": self.config.commands.os_confirm_s,
            "installing": job.map(|job| json!({"id": job.command, "version": job.version, "why": job.why})),
        }));
    }
}

/// Checks that the file has the requested digest and size.
fn is_it(path: &std::path::Path, sha256: &str, size: u64) -> Result<(), String> {
    let file = File::open(path).map_err(|why| format!("open {}: {why}", path.display()))?;
    let is = file.metadata().map_err(|why| why.to_string())?.len();
    if is != size {
        return Err(format!("{} has {is} bytes, not {size}", path.display()));
    }
    match bundle::digest(&file)? {
        is if is == sha256 => Ok(()),
        is => {
            // Fetch the whole file again next time.
            if path.ends_with("incoming.raucb") {
                let _ = fs::remove_file(path);
            }
            Err(format!("its sha256 is {is}, and {sha256} was asked for"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::keep::unreadable;

    #[test]
    fn unreadable_update_is_not_forgotten_and_not_written_over() {
        let dir = tempfile::tempdir().expect("folder");
        let keep = Keep::at(dir.path().join("control"));
        let failed = VecDeque::from([("digest".to_owned(), "why".to_owned())]);
        keep.save_checked(FILE, &Saved { job: None, failed: failed.clone() }).expect("save");
        let copies = [FILE.to_owned(), format!("{FILE}.bak")].map(|name| dir.path().join("control").join(name));
        copies.iter().for_each(|path| unreadable::make(path));
        let mut system = System::open(keep);
        assert!(system.is_unread() && system.trouble.is_none() && system.save().is_err());
        copies.iter().for_each(|path| unreadable::mend(path));
        assert_eq!(system.read(), Ok(()));
        assert_eq!((system.is_unread(), &system.saved.failed), (false, &failed));
        for path in &copies {
            fs::write(path, "torn").expect("tear");
        }
        assert!(
            System::open(Keep::at(dir.path().join("control"))).trouble.is_some_and(|why| why.contains("is damaged"))
        );
    }
}
