//! Everything that the machine of models (`models.rs`) can learn, and everything that it can do. `bundles.rs` performs it.
//!
//! A list of actions ends with the first that fails (`ModelEvent::NotDone`), except a save that is worth a log line only.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use super::{
    action::{Call, JobNews},
    args::Install,
    tell::Outcome,
};
use crate::{
    flow::order::Respond,
    model::{
        manifest::Release,
        rollout::Report,
        shelf::{High, Saved},
        slot::SlotId,
        store::There,
    },
};

/// What the machine needs to know of the configuration.
#[derive(Debug, Clone)]
pub struct ModelRules {
    /// Device class; empty: not configured.
    pub class: String,
    /// The release channel in use.
    pub channel: String,
    /// Version of this daemon.
    pub version: semver::Version,
    /// Each model that a pipeline uses, and its sequence in the read-only root.
    pub floors: BTreeMap<String, u64>,
    /// Minimum time of a trial, ns.
    pub trial_ns: u64,
}

/// What the machine needs to know of the keyset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelKeys {
    /// Its version, if there is one.
    pub version: Option<u64>,
    /// When it expires, ms since 1970; or why nothing is installed.
    pub expires_ms: Result<i64, String>,
}

/// The moment of an event: ns since boot; the time, or a bound below it, ms since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub now_ns: u64,
    pub now_ms: i64,
}

/// The requester of a job: it gets the result that is known at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A command.
    Command(Call),
    /// A local caller, by D-Bus: the id of its request.
    Local(String),
}

/// A bundle that was read and verified from the first byte to the last.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// Whether it may be installed.
    pub release: Release,
    /// The names of the keys that signed it.
    pub signed_by: Vec<String>,
}

/// What the machine can learn. A number is that of the job in progress: another job may have started meanwhile.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelEvent {
    /// The start.
    Began,
    /// `model.install`; whether the disk has room for the bundle.
    Install(Call, Install, Result<(), String>),
    /// `model.rollback`; the model, if one is named.
    RollBack(Call, Option<String>),
    /// A local caller has a file to install: its size; whether the disk has room for it.
    LocalFile(Result<u64, String>, Result<(), String>),
    /// A local caller requests a rollback; the model, if one is named.
    LocalRollBack(Option<String>),
    /// The file of a local caller was copied: its digest and size.
    Copied(String, Result<(String, u64), String>),
    /// How much of the bundle is there.
    Found(u64, There),
    /// The bundle is received, or will not be.
    Brought(u64, Result<(), String>),
    /// A part of a bundle came: its digest, the offset, the bytes.
    Chunk(String, u64, Bytes),
    /// The bundle was verified.
    Opened(u64, Result<Box<Opened>, String>),
    /// A report of the rollout.
    Rollout(Report),
    /// The keyset in use changed.
    Keys(ModelKeys),
    /// Whether `dn/channel` is out of date.
    Stale(bool),
    /// Control saved the result of this command.
    Heard(String),
    /// Time passes.
    Tick,
    /// A requested restart or reload.
    Leaving,
    /// An action failed, and what stood behind it was not done; why.
    NotDone(Undone, String),
}

/// What an action belongs to, and so what follows if it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undone {
    /// The beginning of a job: it is not begun.
    Begin(Caller),
    /// A step of the job in progress: it fails.
    Step,
    /// The end of a job whose model serves already: this command gets another result.
    Commit {
        /// The command.
        command: String,
        /// Where its result goes.
        respond: Option<Respond>,
        /// The model.
        model: String,
    },
    /// Nothing: it is logged with this text, and the list goes on.
    Log(String),
}

/// Where a bundle to open is, and what is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It was received just now.
    Incoming,
    /// It is in the store.
    Stored,
    /// It is in the store and served here before: it stays trusted, whatever the keyset in use is.
    Served,
}

/// What is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proving {
    /// The bundle that was opened last, in this slot.
    Opened(SlotId),
    /// The model that the configuration names.
    Factory(String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelAction {
    /// Saves slots and jobs.
    Save(Result<Box<Saved>, String>, Undone),
    /// Saves the highest sequences. A failure is logged with this text.
    SaveHigh(Result<Box<High>, String>, String),
    /// Looks how much of a bundle is there: `Found`.
    Find(u64, String),
    /// Fetches a bundle of this digest and size: `Brought`.
    Fetch { number: u64, sha256: String, url: String, size: u64 },
    /// Ends a fetch in progress.
    StopFetch,
    /// Copies the file of the local caller: `Copied`.
    Copy(String),
    /// The copy becomes the incoming bundle of this digest.
    TakeCopy(String),
    /// Appends to the incoming bundle of this digest; on the disk before anything behind it.
    Append(String, Bytes),
    /// Opens and verifies the bundle of this digest: `Opened`.
    Open(u64, String, Open),
    /// Moves the incoming bundle to its final place, unless it is there.
    TakeIn(String),
    /// Removes an incoming bundle.
    RemoveIncoming(String),
    /// Removes all bundles but these, and all incoming bundles but this one.
    Sweep(Vec<String>, Option<String>),
    /// Proves a model in workers that could serve: `Rollout(Proven)`.
    Prove { number: u64, what: Proving, watched: bool },
    /// Offers the proven model to the engines: `Rollout(Verdict)`.
    Offer(u64),
    /// The engines of this model roll back; why.
    Back(String, String),
    /// For status and D-Bus.
    Show(Value),
    /// The command is done at once.
    Done(Call, Outcome),
    /// A report for control.
    Tell(JobNews),
}
