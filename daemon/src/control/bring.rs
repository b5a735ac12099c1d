//! The machine of models, while a bundle is received: by HTTPS, by chunks over MQTT, or from a file on the machine. Chunks are
//! accepted in order only and are on the disk before they are acknowledged. After a gap the sender gets the offset to continue
//! from.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    action::JobNews,
    args::Install,
    command_state::CommandState,
    model_action::{Caller, ModelAction, Open, Undone},
    models::{Goal, Models, Phase, Work, new_job, refuse},
    refusal::{Refusal, Why},
    tell::Outcome,
};
use crate::{
    limits,
    model::{
        shelf::{Brings, End, InstallJob, Stage},
        store::There,
    },
};

impl Models {
    /// Allows one install at a time. An install whose sender stopped sending chunks is cancelled.
    fn make_way(&mut self) -> Result<(), Refusal> {
        match &self.work {
            None => Ok(()),
            Some(Work { goal: Goal::Install(job), phase: Phase::Bringing { .. }, .. })
                if job.stage == Stage::Bringing(Brings::Chunks) =>
            {
                self.job_failed(End::Failed, "another one was asked for before it was here");
                Ok(())
            }
            Some(_) => refuse(Why::Busy, "another model is on its way"),
        }
    }

    /// Begins an install, unless something speaks against it. `copied`: the bundle is here, as the copy of a local file.
    pub(super) fn install(&mut self, caller: Caller, install: Install, room: Result<(), String>, copied: bool) {
        match self.may_install(&install, room) {
            Err(refusal) => self.answer(caller, Outcome::refused(refusal)),
            Ok(true) => self.answer(caller, Outcome::new(CommandState::Success, "it serves already")),
            Ok(false) => {
                let (job, sha256) = (new_job(&caller, install), copied.then_some(()));
                let text = match job.stage {
                    Stage::Bringing(Brings::Chunks) => "waiting for its chunks",
                    _ => "it is brought",
                };
                let (command, copy) = (job.command.clone(), sha256.map(|()| job.sha256.clone()));
                self.change(Undone::Begin(caller), |shelf| shelf.set_job(Some(job.clone())));
                self.tell_running(command, text);
                copy.into_iter().for_each(|sha256| self.act(ModelAction::TakeCopy(sha256)));
                self.bring(job);
            }
        }
    }

    /// Whether the bundle serves already.
    fn may_install(&mut self, install: &Install, room: Result<(), String>) -> Result<bool, Refusal> {
        let invalid = |why: String| Refusal(Why::Invalid, why);
        self.make_way()?;
        self.keys.expires_ms.clone().map_err(invalid)?;
        if let Some(why) = self.shelf.why_failed(&install.sha256) {
            return refuse(Why::Invalid, format!("it failed here before ({why}); a new release is needed"));
        }
        if self.shelf.lines().any(|(_, line)| line.held().is_some_and(|held| held.sha256 == install.sha256)) {
            return Ok(true);
        }
        fits(install.size).and(room).map_err(invalid)?;
        Ok(false)
    }

    /// Copies the file of a local caller: a large file takes seconds on a slow card.
    pub(super) fn local_file(&mut self, size: Result<u64, String>, room: Result<(), String>) {
        let (id, invalid) = (self.local_id(), |why: String| Refusal(Why::Invalid, why));
        let may = match &self.copying {
            Some(_) => refuse(Why::Busy, "another file is copied"),
            None => self.make_way().and_then(|()| size.and_then(fits).and(room).map_err(invalid)),
        };
        match may {
            Err(refusal) => self.answer(Caller::Local(id), Outcome::refused(refusal)),
            Ok(()) => {
                self.copying = Some(id.clone());
                self.act(ModelAction::Copy(id));
            }
        }
    }

    /// The copy is complete.
    pub(super) fn copied(&mut self, id: String, copied: Result<(String, u64), String>) {
        self.copying = None;
        match copied {
            Err(why) => self.answer(Caller::Local(id), Outcome::refused(Refusal(Why::Invalid, why))),
            // It is on the disk already: no more room is needed.
            Ok((sha256, size)) => self.install(Caller::Local(id), Install { sha256, size, url: None }, Ok(()), true),
        }
    }

    /// Receives the bundle of a job: first looks how much of it is there.
    pub(super) fn bring(&mut self, job: InstallJob) {
        let (now_ns, sha256) = (self.at.now_ns, job.sha256.clone());
        let phase = Phase::Bringing { have: 0, told_ns: 0, began_ns: now_ns, moved_ns: now_ns };
        let number = self.begin_work(Goal::Install(job), phase);
        self.act(ModelAction::Find(number, sha256));
    }

    /// So much of the bundle is there.
    pub(super) fn found(&mut self, there: There) {
        let Some(Work { number, goal: Goal::Install(job), phase }) = &mut self.work else { return };
        let (number, sha256, size) = (*number, job.sha256.clone(), job.size);
        match (there, phase) {
            // It is in the store already, or the previous process had just moved it there.
            (There::Whole, phase) => {
                *phase = Phase::Opening;
                self.act(ModelAction::Open(number, sha256, Open::Stored));
            }
            (There::Part(part), Phase::Bringing { have, .. }) => {
                *have = part;
                match &job.stage {
                    _ if part == size => self.open_incoming(),
                    Stage::Bringing(Brings::Https(url)) => {
                        let url = url.clone();
                        self.act(ModelAction::Fetch { number, sha256, url, size });
                    }
                    _ => self.tell_missing(),
                }
            }
            (There::Part(_), _) => {}
        }
    }

    /// The bundle is received.
    pub(super) fn open_incoming(&mut self) {
        let Some(Work { number, goal: Goal::Install(job), phase }) = &mut self.work else { return };
        *phase = Phase::Opening;
        let action = ModelAction::Open(*number, job.sha256.clone(), Open::Incoming);
        self.act(action);
    }

    /// Handles a chunk.
    pub(super) fn chunk(&mut self, sha256: &str, offset: u64, bytes: &Bytes) {
        let now_ns = self.at.now_ns;
        let Some(Work { goal: Goal::Install(job), phase: Phase::Bringing { have, told_ns, moved_ns, .. }, .. }) =
            &mut self.work
        else {
            return;
        };
        if job.sha256 != sha256 || job.stage != Stage::Bringing(Brings::Chunks) {
            return;
        }
        let (size, end) = (job.size, offset.saturating_add(bytes.len() as u64));
        if end > size || offset > *have {
            // A gap, or a chunk beyond the end: tell the sender the offset to continue from, once a second at most.
            if now_ns.saturating_sub(*told_ns) > limits::BLOB_TOLD_NS {
                *told_ns = now_ns;
                self.tell_missing();
            }
            return;
        }
        if end <= *have {
            return;
        }
        let fresh = bytes.slice((*have - offset) as usize..);
        (*have, *moved_ns) = (end, now_ns);
        // On the disk before the broker may delete the chunk.
        self.act(ModelAction::Append(sha256.to_owned(), fresh));
        if end == size {
            self.tell_missing();
            self.open_incoming();
        }
    }

    /// `up/blob/SHA256`: what is still missing.
    fn tell_missing(&mut self) {
        let Some(Work { goal: Goal::Install(job), phase: Phase::Bringing { have, .. }, .. }) = &self.work else {
            return;
        };
        let missing: Vec<[u64; 2]> = if *have < job.size { vec![[*have, job.size]] } else { Vec::new() };
        let members =
            json!({"sha256": job.sha256, "size": job.size, "missing": missing, "chunk_bytes": limits::BLOB_CHUNK});
        if let Value::Object(members) = members {
            self.act(ModelAction::Tell(JobNews::Blob(members)));
        }
    }
}

/// Whether a bundle may have this size.
fn fits(size: u64) -> Result<(), String> {
    match size {
        1..=limits::BUNDLE_BYTES_MAX => Ok(()),
        _ => Err(format!("a bundle has 1 to {} bytes, not {size}", limits::BUNDLE_BYTES_MAX)),
    }
}
