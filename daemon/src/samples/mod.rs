//! Windows that are kept for training, labels, and how both leave the device when a signed command asks for them.
//!
//! ```text
//! infer ─ finished windows ─▶ choose ─▶ store (STATE/samples: a file each) ─▶ blob ─ chunks ─▶ outbox ─▶ up/blob
//!        (drops old, counts)            ▲ label                              ▲ samples.pull, tape.pull
//! control ──────────────────────────────┴── orders, answers ─────────────────┘
//! ```
//!
//! One thread owns all of it. The engines never wait for it: a full lane drops its oldest windows and counts them. Control does
//! not wait either: an order is answered when the disk has it. Nothing leaves without a pull.

mod blob;
mod choose;
mod index;
mod pull;
mod record;
mod store;

use std::{
    fs::File,
    path::PathBuf,
    sync::{Arc, mpsc::RecvTimeoutError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use self::{
    blob::Blob,
    choose::Chooser,
    pull::{Job, Moment, Pull, Saved, Step},
    store::Store,
};
pub use self::{choose::Rules, record::Described, store::Place};
use crate::{
    flow::{
        Class, Draft, Finished, Retain, Stamp, StreamId,
        lane::{Receiver, Took},
        meter::Meters,
        order::Respond,
        samples::{Answer, Ask, Filter, Inbox, Order, PullShown, Refused, Said, Wanted},
    },
    host::Keep,
    limits,
};

/// What the stage works with.
pub struct Setup {
    /// The state directory.
    pub state_dir: PathBuf,
    /// The store; `None`: no window is kept, but tapes are fetched.
    pub place: Option<Place>,
    /// What is kept.
    pub rules: Rules,
    /// By index of the pipeline.
    pub pipelines: Vec<Described>,
    /// Rate and budget of a day of pulls, bytes; budget 0: no limit.
    pub pulls: (u64, u64),
    /// Id of this boot.
    pub boot: String,
    /// What it counts.
    pub meters: Arc<Meters>,
    /// `up/blob`
    pub blob: StreamId,
    /// To the outbox; never waits. Returns the record's number.
    pub put: Box<dyn Fn(Draft) -> u64 + Send>,
    /// The highest number of these that the broker acknowledged.
    pub acked: Box<dyn Fn() -> u64 + Send>,
    /// Whether there is a connection.
    pub online: Box<dyn Fn() -> bool + Send>,
    /// The time.
    pub now: Box<dyn Fn() -> Stamp + Send>,
}

const FILE: &str = "pull.json";

/// The id of the command whose pull a previous process began and did not end.
pub fn left(state_dir: &std::path::Path) -> Option<String> {
    saved(&Keep::at(state_dir.join("samples")))?.job.map(|job| job.id)
}

fn saved(keep: &Keep) -> Option<Saved> {
    keep.load_checked(FILE).unwrap_or_else(|why| {
        tracing::error!("samples/{FILE} {why}; a pull that was in progress is forgotten");
        None
    })
}

/// The stage as a thread: ends when control is gone and all windows are taken.
pub fn run(setup: Setup, inbox: Inbox, windows: Receiver<Finished>, beat: impl Fn()) {
    let mut stage = Stage::new(setup, (inbox, windows), &beat);
    loop {
        beat();
        let turn = if stage.sends() { limits::PULL_TURN } else { limits::SAMPLES_TURN };
        let gone = stage.orders(turn, &beat);
        stage.take_windows(&beat);
        stage.look();
        if gone && stage.windows.is_closed() && stage.windows.depth() == 0 {
            return;
        }
    }
}

struct Stage {
    setup: Setup,
    inbox: Inbox,
    windows: Receiver<Finished>,
    keep: Keep,
    store: Option<Store>,
    choosers: Vec<Chooser>,
    random: fastrand::Rng,
    pull: Pull,
    blob: Option<Blob>,
    /// Windows that may be written, and when that was so, ns since boot.
    allowed: (f64, u64),
    /// When ages were looked at, ns since boot.
    expired_ns: u64,
    /// When the state of a pull could not be saved, so that it is logged once.
    unsaved: bool,
}

impl Stage {
    fn new(mut setup: Setup, (inbox, windows): (Inbox, Receiver<Finished>), beat: &dyn Fn()) -> Self {
        let folder = setup.state_dir.join("samples");
        let keep = Keep::at(folder.clone());
        let now = (setup.now)();
        let pull = Pull::new(saved(&keep), setup.pulls.1, moment(&setup.boot, now));
        let links = folder.join("pull");
        let blob = if pull.saved.job.is_some() {
            Blob::open(links).inspect_err(|why| tracing::error!("read samples/pull: {why}; the pull cannot go on")).ok()
        } else {
            let _ = blob::clear(&links);
            None
        };
        if setup.place.is_some() {
            // The folder itself must outlive a power cut, before a label is answered that lies in it.
            let made = std::fs::create_dir_all(&folder).and_then(|()| File::open(&setup.state_dir)?.sync_all());
            made.unwrap_or_else(|why| {
                tracing::error!("make {}: {why}; windows are kept when this ends", folder.display())
            });
        }
        let store = setup.place.take().map(|place| Store::open(place, beat));
        let choosers = setup.pipelines.iter().map(|pipeline| Chooser::new(setup.rules, pipeline)).collect();
        let mut stage = Self {
            setup,
            inbox,
            windows,
            keep,
            store,
            choosers,
            random: fastrand::Rng::new(),
            pull,
            blob,
            allowed: (limits::SAMPLES_BURST, now.boot_ns),
            expired_ns: 0,
            unsaved: false,
        };
        stage.go_on();
        stage
    }

    /// Takes up the pull that the previous process began.
    fn go_on(&mut self) {
        match self.pull.saved.job.clone() {
            Some(job) if job.done => self.end(done(&job)),
            Some(job) => {
                tracing::info!(command = job.id, "going on with {} at byte {} of {}", job.kind, job.from, job.size);
                self.show();
            }
            None => {}
        }
    }

    fn sends(&self) -> bool {
        self.pull.saved.job.as_ref().is_some_and(|job| !job.done)
    }

    /// Takes orders; the first is waited for. Whether control is gone.
    fn orders(&mut self, turn: Duration, beat: &dyn Fn()) -> bool {
        let mut next = self.inbox.orders.recv_timeout(turn);
        loop {
            match next {
                Ok(Order::Heard(id)) => self.heard(&id),
                Ok(Order::Ask { kind, id, respond, ask }) => {
                    // A label may come as soon as its alarm is published: the window is in the lane before that.
                    self.take_windows(beat);
                    let said = self.asked(&ask, (&kind, &id, &respond), beat);
                    self.answer(Answer { kind, id, respond, said });
                }
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => {
                    // Do not spin while engines still have windows.
                    std::thread::sleep(limits::PULL_TURN);
                    return true;
                }
            }
            beat();
            next = self.inbox.orders.recv_timeout(Duration::ZERO);
        }
    }

    fn answer(&self, answer: Answer) {
        // It has room for every order; a full one means that control is gone.
        let _ = self.inbox.answers.try_send(answer);
    }

    fn asked(&mut self, ask: &Ask, of: (&String, &String, &Option<Respond>), beat: &dyn Fn()) -> Said {
        match (ask, &mut self.store) {
            (Ask::Feedback(feedback), Some(store)) => store.feedback(feedback, of.1, (self.setup.now)()),
            (Ask::Feedback(_), None) => off(),
            (Ask::Pull { wanted, bytes_s, most }, _) => {
                let limits = (*bytes_s, *most);
                self.begin(wanted, limits, of, beat).unwrap_or_else(|said| said)
            }
            (Ask::Cancel, _) => self.cancel(),
        }
    }

    fn cancel(&mut self) -> Said {
        let Some(job) = self.pull.saved.job.clone().filter(|job| !job.done) else {
            return Said::Refused(Refused::Invalid, "no pull is in progress".into());
        };
        let sent = self.pull.progress().0;
        self.end(Said::Failed(format!("cancelled after {sent} of {} bytes", job.size)));
        self.forget();
        Said::Done(format!("{} {} is cancelled", job.kind, job.id), json!({"command": job.id, "sent": sent}))
    }

    /// Begins a pull. `Err`: it is over already.
    fn begin(
        &mut self,
        wanted: &Wanted,
        (bytes_s, most): (Option<u64>, Option<u64>),
        (kind, id, respond): (&String, &String, &Option<Respond>),
        beat: &dyn Fn(),
    ) -> Result<Said, Said> {
        if let Some(job) = &self.pull.saved.job {
            let text = format!(
                "{} {} is in progress; wait for its end, or send `samples.pull` with `cancel`",
                job.kind, job.id
            );
            return Err(Said::Refused(Refused::Busy, text));
        }
        let (rate, day) = self.setup.pulls;
        let most = most.unwrap_or(if day == 0 { u64::MAX } else { day });
        let (from, names, tape) = self.wanted(wanted, most)?;
        let failed = |why: std::io::Error| Said::Failed(format!("prepare the pull: {why}"));
        let blob = Blob::make(self.setup.state_dir.join("samples/pull"), &from, &names, beat).map_err(failed)?;
        let bytes_s = bytes_s.unwrap_or(rate).min(rate);
        let (size, files, sha256) = (blob.size(), blob.files(), blob.digest(beat).map_err(failed)?);
        let job = Job {
            kind: kind.clone(),
            id: id.clone(),
            respond: respond.clone(),
            sha256: sha256.clone(),
            size,
            chunk: pull::chunk(bytes_s),
            bytes_s,
            files,
            tape,
            from: 0,
            done: false,
        };
        self.pull.begin(job);
        self.blob = Some(blob);
        if let Err(why) = self.keep.save_checked(FILE, &self.pull.saved) {
            self.forget();
            return Err(Said::Failed(format!("save the pull: {why}")));
        }
        self.show();
        let wait_s = self.pull.wait_s(size);
        let seconds = (size / bytes_s.max(1)).max(wait_s);
        Ok(Said::Running(format!(
            "sends {size} bytes of {files} files as up/blob/{sha256}, in {} min or more",
            seconds.div_ceil(60)
        )))
    }

    /// The files of a pull: their folder, their names, and the tape's name.
    fn wanted(&self, wanted: &Wanted, most: u64) -> Result<(PathBuf, Vec<String>, Option<String>), Said> {
        match wanted {
            Wanted::Samples(filter) => {
                let folder = self.setup.state_dir.join("samples");
                let names = self.store.as_ref().map(|store| store.index().select(filter, most)).ok_or_else(off)?;
                if names.is_empty() {
                    return Err(Said::Refused(Refused::Invalid, self.why_none(filter, most)));
                }
                Ok((folder, names, None))
            }
            Wanted::Tape { name, alarm } => {
                let folder = self.setup.state_dir.join("tapes");
                let names = Keep::at(folder.clone()).names();
                let tapes: Vec<&String> = names.iter().filter(|name| name.ends_with(".tape")).collect();
                let of = |tape: &&&String| {
                    name.as_ref().is_none_or(|name| name == **tape)
                        && alarm.as_ref().is_none_or(|alarm| tape.ends_with(&format!("-{alarm}.tape")))
                };
                let Some(tape) = tapes.iter().rev().find(of).map(|tape| (*tape).clone()) else {
                    let newest = tapes.iter().rev().take(limits::TAPES_NAMED).map(|tape| tape.as_str());
                    let text = match newest.collect::<Vec<_>>() {
                        none if none.is_empty() => "no tape is saved (an alarm saves one with `tape = true`)".into(),
                        some => format!("no such tape is saved; saved are {}", some.join(", ")),
                    };
                    return Err(Said::Refused(Refused::Invalid, text));
                };
                let size = std::fs::metadata(folder.join(&tape)).map_or(0, |meta| meta.len());
                if size > most {
                    let text = format!("tape {tape} has {size} bytes, more than {most}");
                    return Err(Said::Refused(Refused::Invalid, text));
                }
                Ok((folder, vec![tape.clone()], Some(tape)))
            }
        }
    }

    fn why_none(&self, filter: &Filter, most: u64) -> String {
        match self.store.as_ref().map(|store| store.index().select(filter, u64::MAX).len()) {
            None | Some(0) => "no window that is kept fits".into(),
            Some(n) => format!("{n} records fit, but none within {most} bytes"),
        }
    }

    /// Takes the windows that wait now. Those that come meanwhile wait for the next turn: orders must have theirs.
    fn take_windows(&mut self, beat: &dyn Fn()) {
        let mut taken = Vec::new();
        if self.windows.take(&mut taken, self.windows.depth(), Duration::ZERO) == Took::Some {
            taken.into_iter().for_each(|finished| self.finished(finished, beat));
        }
    }

    fn finished(&mut self, finished: Finished, beat: &dyn Fn()) {
        let at = usize::from(finished.window.tag.pipeline);
        let (Some(store), Some(chooser)) = (&mut self.store, self.choosers.get_mut(at)) else { return };
        let chosen = chooser.take(finished, |of| store.index().knows(of), |n| self.random.u64(..n));
        for chosen in &chosen {
            beat();
            if allows(&mut self.allowed, (self.setup.now)().boot_ns) {
                store.add(&self.setup.pipelines[at], chosen);
            } else {
                self.setup.meters.samples.rate.add(1);
            }
        }
    }

    /// What is due by time.
    fn look(&mut self) {
        let now = (self.setup.now)();
        if let Some(store) = &mut self.store
            && now.boot_ns.saturating_sub(self.expired_ns) >= limits::EXPIRY_EVERY.as_nanos() as u64
        {
            self.expired_ns = now.boot_ns;
            store.expire(now.wall_ms);
        }
        if self.sends() {
            self.send(now);
        }
    }

    fn send(&mut self, now: Stamp) {
        let before = self.pull.progress().0;
        let boot = self.setup.boot.clone();
        let step = self.pull.step(moment(&boot, now), (self.setup.acked)(), (self.setup.online)());
        self.setup.meters.samples.pulled.add(self.pull.progress().0 - before);
        match step {
            Step::Nothing => {}
            Step::Save => match self.keep.save_checked(FILE, &self.pull.saved) {
                Ok(()) => self.unsaved = false,
                Err(why) => {
                    if !std::mem::replace(&mut self.unsaved, true) {
                        tracing::error!("save the pull: {why}; it waits until this ends");
                    }
                    self.pull.not_saved(moment(&boot, now));
                }
            },
            Step::Send(offset, len) => self.send_chunk(offset, len, now),
            Step::Tell(text) => {
                if let Some(Job { kind, id, respond, .. }) = self.pull.saved.job.clone() {
                    self.answer(Answer { kind, id, respond, said: Said::Running(text) });
                }
            }
            Step::Done => {
                let Some(job) = &mut self.pull.saved.job else { return };
                job.done = true;
                let said = done(job);
                // Without that the next process sends the last part again.
                if let Err(why) = self.keep.save_checked(FILE, &self.pull.saved) {
                    tracing::warn!("save the end of the pull: {why}");
                }
                self.end(said);
            }
            Step::Failed(why) => self.fail(why),
        }
        self.show();
    }

    /// The pull cannot go on: it is forgotten as soon as control has saved that.
    fn fail(&mut self, why: String) {
        let _ = blob::clear(&self.setup.state_dir.join("samples/pull"));
        if let Some(job) = &mut self.pull.saved.job {
            job.done = true;
        }
        self.end(Said::Failed(why));
    }

    fn send_chunk(&mut self, offset: u64, len: u64, now: Stamp) {
        let Some(job) = self.pull.saved.job.clone() else { return };
        let read = match &self.blob {
            Some(blob) => blob.read(offset, len).map_err(|why| why.to_string()),
            None => Err("its files are gone".into()),
        };
        match read {
            Err(why) => self.fail(format!("read byte {offset} of the pull: {why}")),
            Ok(bytes) => {
                let members = json!({
                    "sha256": job.sha256, "size": job.size, "offset": offset, "bytes": STANDARD.encode(bytes),
                    "type": job.kind, "command": job.id,
                });
                let body = members.to_string();
                let body = body.get(1..body.len() - 1).unwrap_or_default().to_owned();
                let seq = (self.setup.put)(Draft {
                    stream: self.setup.blob,
                    class: Class::Reply,
                    stamp: now,
                    lineage: None,
                    body: body.into(),
                    retain: Retain::No,
                });
                self.pull.sent(seq, len, moment(&self.setup.boot, now));
            }
        }
    }

    fn end(&self, said: Said) {
        if let Some(Job { kind, id, respond, .. }) = self.pull.saved.job.clone() {
            self.answer(Answer { kind, id, respond, said });
        }
    }

    /// Control saved the result of this command.
    fn heard(&mut self, id: &str) {
        if self.pull.saved.job.as_ref().is_some_and(|job| job.id == id && job.done) {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.pull.forget();
        self.blob = None;
        if let Err(why) = self.keep.save_checked(FILE, &self.pull.saved) {
            tracing::warn!("save the end of the pull: {why}; the next start reports it again");
        }
        if let Err(why) = blob::clear(&self.setup.state_dir.join("samples/pull")) {
            tracing::warn!("remove samples/pull: {why}");
        }
        self.show();
    }

    fn show(&self) {
        let (sent, waits) = self.pull.progress();
        let job = self.pull.saved.job.as_ref().filter(|job| !job.done);
        self.setup.meters.samples.show_pull(job.map(|job| PullShown {
            kind: job.kind.clone(),
            id: job.id.clone(),
            size: job.size,
            sent,
            waits: waits.map(str::to_owned),
        }));
    }
}

/// Whether one more window may be written: a flapping alarm must not wear out the disk.
fn allows((windows, at_ns): &mut (f64, u64), now_ns: u64) -> bool {
    let passed_h = now_ns.saturating_sub(*at_ns) as f64 / 3.6e12;
    *at_ns = now_ns;
    *windows = (*windows + passed_h * limits::SAMPLES_PER_HOUR).min(limits::SAMPLES_BURST);
    let allowed = *windows >= 1.0;
    *windows -= f64::from(u8::from(allowed));
    allowed
}

fn moment(boot: &str, now: Stamp) -> Moment<'_> {
    Moment { boot, ns: now.boot_ns, ms: now.wall_ms }
}

fn off() -> Said {
    Said::Refused(Refused::Invalid, "no window is kept on this device (samples.max_mib)".into())
}

fn done(job: &Job) -> Said {
    let mut result = json!({"sha256": job.sha256, "size": job.size, "files": job.files});
    if let (Some(tape), Value::Object(members)) = (&job.tape, &mut result) {
        members.insert("tape".into(), tape.as_str().into());
    }
    Said::Done(format!("{} bytes are sent", job.size), result)
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
