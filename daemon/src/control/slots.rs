//! Performs what the machine of the system's update (`system.rs`) decides: files, threads, RAUC, the restart.

use std::{
    collections::VecDeque,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use serde_json::Value;

use super::{
    action::Call,
    args::{BundleFrom, InstallSystem},
    jobs::{Jobs, News},
    system::{At, SystemAction, SystemEvent, Unsaved, Word},
    tell::Outcome,
    update::{Saved, UpdateJob},
};
use crate::{
    host::{Clock, Keep, fetch},
    model::bundle,
};

/// The name of the saved state.
pub(super) const FILE: &str = "system.json";

impl Jobs {
    /// `os.install`. `None`: it is in progress.
    pub(super) fn install_system(&mut self, call: Call, install: InstallSystem) -> Option<(Call, Outcome)> {
        let good = self.slots.slot.is_some() && (self.slots.good)();
        let there = self.incoming_system().metadata().map_or(0, |meta| meta.len());
        let room = self.room(install.size.saturating_sub(there));
        self.system(SystemEvent::Install { call, install, good, room })
    }

    /// Handles an event of the system's update, and those that its actions result in. The command that is done at once.
    pub(super) fn system(&mut self, event: SystemEvent) -> Option<(Call, Outcome)> {
        let (mut events, mut done) = (VecDeque::from([event]), None);
        while let Some(event) = events.pop_front() {
            let at = At { now_ns: Clock::boot_ns(), acked_ns: self.board.acked_ns.load(Ordering::Relaxed) };
            for action in self.system.on(at, event) {
                match action {
                    SystemAction::Done(call, outcome) => done = Some((call, outcome)),
                    SystemAction::Save(saved, what) => {
                        let saved = saved.and_then(|saved| {
                            let saved = self.keep.save_checked(FILE, &*saved);
                            saved.map_err(|why| format!("save the state of the system update: {why}"))
                        });
                        if let Err(why) = saved {
                            let log = matches!(what, Unsaved::Log(_));
                            events.push_back(SystemEvent::Unsaved(what, why));
                            if !log {
                                break;
                            }
                        }
                    }
                    action => events.extend(self.perform_on_system(action)),
                }
            }
        }
        done
    }

    fn perform_on_system(&mut self, action: SystemAction) -> Option<SystemEvent> {
        match action {
            SystemAction::Load => return Some(SystemEvent::Loaded(self.keep.load_checked(FILE))),
            SystemAction::Restart => {
                return (self.machine.reboot)().err().map(|why| SystemEvent::NotRestarted(why.into()));
            }
            SystemAction::Look => {
                let status = (self.machine.status)();
                let unwell = status["unwell"].as_array().and_then(|all| all.first()).and_then(Value::as_str);
                let unwell = unwell.filter(|why| !why.is_empty()).map(str::to_owned);
                return Some(SystemEvent::Looked { good: (self.slots.good)(), unwell });
            }
            SystemAction::Bring(job) => self.bring_system(*job),
            SystemAction::Write(job) => self.write_system(&job),
            SystemAction::RemoveIncoming => {
                let _ = fs::remove_file(self.incoming_system());
            }
            SystemAction::Show(shown) => (self.slots.show)(shown),
            SystemAction::Tell(news) => self.tell(news),
            SystemAction::Save(..) | SystemAction::Done(..) => {}
        }
        None
    }

    fn incoming_system(&self) -> PathBuf {
        self.config.device.state_dir.join("system").join("incoming.raucb")
    }

    /// Where the job's bundle is, or will be.
    fn bundle_of(&self, job: &UpdateJob) -> PathBuf {
        match &job.from {
            BundleFrom::File(path) => path.clone(),
            BundleFrom::Https(_) => self.incoming_system(),
        }
    }

    fn bring_system(&mut self, job: UpdateJob) {
        let to = self.bundle_of(&job);
        let wanted = match job.from {
            BundleFrom::File(_) => None,
            BundleFrom::Https(url) => Some(self.wanted(url, job.size, self.system_waits.stopped())),
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

    fn write_system(&mut self, job: &UpdateJob) {
        let path = self.bundle_of(job);
        let (write, news) = (self.slots.write.clone(), self.reports.0.clone());
        let work = move || {
            let mut tell = |percent: i32, words: &str| {
                // A progress report may be lost, the result may not.
                let _ = news.try_send(News::System(Word::Progress(percent, words.to_owned())));
            };
            Ok(write(&path, &mut tell)?)
        };
        self.long(work, |written| News::System(Word::Written(written)));
    }
}

/// Reads the saved state at the start.
pub(super) fn load(keep: &Keep) -> Result<Option<Saved>, crate::host::Unloaded> {
    keep.load_checked(FILE)
}

/// Checks that the file has the requested digest and size.
fn is_it(path: &Path, sha256: &str, size: u64) -> Result<(), String> {
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
