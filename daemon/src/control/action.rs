//! Everything that control can learn, and everything that it can do. `Control::on` turns one into the other; `effects.rs`
//! performs actions in order and turns their results into events.
//!
//! A list of actions ends with the first that fails and whose error says so (`OnError::Stop`): what stands behind it is not
//! done, and `Event::Failed` comes. So "saved before done" is an order: `Save`, then what must not happen unsaved.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value};

use super::{
    args::{Install, InstallSystem, KeysetUpdate, RollBack},
    audit::act::Act,
    candidate::{Candidate, Change, Changed},
    memory::Saved,
    refusal::Refusal,
    tell::Outcome,
    trial::Trial,
};
use crate::{
    flow::{
        Stamp,
        event::Kind,
        order::{Arrived, LinkNews, LogQuery, Respond, Ticket},
        samples,
    },
    host::Unloaded,
    model::{
        error::KeysetError,
        keyset::{Keyset, Role},
        shelf::Ended,
    },
};

/// How this run of the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Reload: read the configuration again, in the same process.
    Reload,
    /// Restart: the process ends, and systemd starts it again.
    Restart,
}

/// The moment of an event.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Time since boot and wall time.
    pub stamp: Stamp,
    /// The last known time, ms since 1970: the wall time is not before it.
    pub floor_ms: i64,
}

/// A command that was accepted and is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Type of the command.
    pub kind: String,
    /// Id of the command.
    pub id: String,
    /// Where its result goes beside `up/res`.
    pub respond: Option<Respond>,
    /// The order is settled with the result: the command is not saved, so the broker must send it again after a kill.
    pub ticket: Option<Ticket>,
}

/// Keys that may sign commands.
pub trait Trusted: Debug + Send + Sync {
    /// The name of the key that signed this text; `minisig` is the text of the `.minisig` file.
    ///
    /// # Errors
    /// No trusted key made the signature.
    fn signer(&self, text: &str, minisig: &str) -> Result<String, KeysetError>;
    /// The public key of this name, as the keyset writes it.
    fn public(&self, name: &str) -> Option<&str>;
    /// `signer` for keys that may sign plans.
    ///
    /// # Errors
    /// No key with the role `rollout` made the signature.
    fn planner(&self, text: &str, minisig: &str) -> Result<String, KeysetError>;
    /// `public` for keys that may sign plans.
    fn planner_key(&self, name: &str) -> Option<&str>;
}

impl Trusted for Keyset {
    fn signer(&self, text: &str, minisig: &str) -> Result<String, KeysetError> {
        Self::signer(self, Role::Command, text.as_bytes(), minisig).map(str::to_owned)
    }

    fn public(&self, name: &str) -> Option<&str> {
        Self::public(self, Role::Command, name)
    }

    fn planner(&self, text: &str, minisig: &str) -> Result<String, KeysetError> {
        Self::signer(self, Role::Rollout, text.as_bytes(), minisig).map(str::to_owned)
    }

    fn planner_key(&self, name: &str) -> Option<&str> {
        Self::public(self, Role::Rollout, name)
    }
}

/// Trusted keys, and why nothing may be installed with them.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The keyset in use, or why it is missing.
    pub trusted: Result<Arc<dyn Trusted>, String>,
    /// Why a successor is not in use.
    pub trouble: Option<String>,
}

/// A report of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum JobNews {
    /// It goes on. `kind`: the type of its command; `None`: as it is remembered, and no result if it is not.
    Running {
        /// Type of the command.
        kind: Option<&'static str>,
        /// Its id.
        command: String,
        /// For people.
        text: String,
    },
    /// It ended. The type of its command, as above.
    Ended(Option<&'static str>, Ended),
    /// `up/e/…`: the subject and the text.
    Event(Kind, String, String),
    /// What the slots hold changed.
    Slots,
    /// The store of samples answered a command.
    Answered(Call, Outcome),
    /// `up/blob`: what is missing of a bundle.
    Blob(Map<String, Value>),
}

/// The jobs that another process began, as far as they can be read.
#[derive(Debug, Clone, Default)]
pub struct Going {
    /// Ids of the commands of those that go on.
    pub commands: Vec<String>,
    /// Those that ended, and the types of their commands: the process may have died before control saved the result.
    pub ended: Vec<(Option<&'static str>, Ended)>,
    /// The job of an install or rollback of a model cannot be read so far.
    pub models_unread: bool,
    /// The job of an install of a system cannot be read so far.
    pub system_unread: bool,
}

/// What was saved, as it is read at the start and after the disk was unreadable.
#[derive(Debug)]
pub struct Left {
    /// The memory of commands.
    pub memory: Result<Option<Saved>, Unloaded>,
    /// The configuration on trial.
    pub trial: Result<Option<Trial>, String>,
    /// Jobs in progress.
    pub going: Going,
    /// Ids whose results are in the audit log.
    pub audited: BTreeSet<String>,
}

/// Everything that control can learn.
#[derive(Debug)]
pub enum Event {
    /// The start of this run.
    Began {
        /// What the previous run left.
        left: Left,
        /// The keyset.
        keys: Keys,
        /// Digest of the remote layer in use.
        in_use: String,
        /// This device ran before, so it must have a memory of commands.
        ran_before: bool,
    },
    /// An order from the broker.
    Arrived(Arrived),
    /// Time passes: what is due, is done. How the connection stands, and the highest result that the broker acknowledged.
    Tick(LinkNews, u64),
    /// The memory was read again.
    Reread(Left),
    /// The trial was read again.
    TrialRead(Result<Option<Trial>, String>),
    /// The keyset was read again.
    KeysRead(Keys),
    /// `keyset.update` took effect, or not.
    KeysTaken(Call, Result<(Keys, u64), String>),
    /// This record got this number.
    Numbered(About, u64),
    /// A command is done, or goes on (`Running`) and is finished by the next process.
    Done(Call, Outcome),
    /// A change was compared with what is set.
    Compared(Change, Result<Box<Candidate>, Refusal>),
    /// A change was committed, and is the configuration in use.
    Committed(Box<Trial>, Changed),
    /// A report about a job.
    Job(JobNews),
    /// The rest of the list was not done, because this action failed; why.
    Failed(Stop, String),
}

/// What the number of a record is needed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// Nothing.
    Nothing,
    /// The final result of this command: its acknowledgement is remembered.
    Final(String),
    /// The acknowledgement confirms the configuration on trial.
    Proof,
    /// The acknowledgement shows that the connection is alive: the plan of this command may start.
    Plan(String),
}

/// A record for the outbox.
#[derive(Debug, Clone)]
pub enum Record {
    /// `up/res/{kind}/{id}`
    Result {
        /// Type of the command.
        kind: String,
        /// Its id.
        id: String,
        /// Its state.
        outcome: Outcome,
        /// What its number is needed for.
        about: About,
    },
    /// `up/reported`; the slots of models are added.
    Reported(Map<String, Value>),
    /// `up/e/{kind}`: the subject and the text.
    Event(Kind, String, String),
    /// `up/blob`
    Blob(Map<String, Value>),
}

/// Whose failure ends a list of actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// A command could not be remembered: it is not executed. The ticket of its order.
    Accept(Call, Option<Ticket>),
    /// That a command runs could not be remembered: it is not executed.
    Run(Call),
    /// A desired state could not be remembered: it is not applied. The version, and the ticket of its order.
    Desired(u64, Option<Ticket>),
    /// What was learnt of plans could not be saved.
    Learn,
    /// That a plan starts could not be saved: its command, of this id, is not executed.
    Start(String),
    /// The trial could not be begun; everything is as it was.
    Begin(Box<Trial>),
    /// The trial could not be committed.
    Commit,
    /// The previous configuration could not be restored. The trial stays on the disk.
    PutBack(Box<Trial>, String, u64),
}

/// What follows when an action fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnError {
    /// It is logged with this text, and the list goes on.
    Log(String),
    /// The list ends.
    Stop(Stop),
}

/// What only the machine or a file knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The status document.
    Status,
    /// The merged configuration.
    Config,
    /// The remote layer.
    RemoteLayer,
    /// A part of the journal.
    Log(LogQuery),
    /// Entries of the audit log from this number on.
    Audit(u64),
    /// A restart of the machine.
    Reboot,
    /// That the alarm of this index is acknowledged; only this episode, if one is named.
    Acknowledge(usize, Option<String>),
    /// That /data is erased at the next start, and a restart.
    Erase,
}

/// A configuration that the link is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one that was compared last.
    Candidate,
    /// The one in use.
    InUse,
}

/// Everything that control can do. Nothing else in control's decisions touches the world.
#[derive(Debug, Clone)]
pub enum Action {
    /// Writes the memory of commands. `Err`: it must not be written now.
    Save(Result<Box<Saved>, String>, OnError),
    /// Adds an entry to the audit log. It is on the disk when this is done, or the disk does not take it.
    Audit(Act),
    /// Hands a record to the outbox.
    Publish(Record),
    /// Sends members of a result to a response topic, once.
    Respond(Respond, Map<String, Value>),
    /// The order is settled: the link acknowledges it to the broker.
    Settle(Ticket),
    /// Counts an accepted command.
    CountAccepted,
    /// Counts a rejected command.
    CountRefused,
    /// Asks for this; `Event::Done` brings the result.
    Ask(Call, Ask),
    /// Asks the store of samples; `JobNews::Answered` brings the result.
    Samples(Call, samples::Ask),
    /// The pipeline of this index learns again.
    Recalibrate(usize),
    /// Compares a change with what is set; `Event::Compared` brings the candidate.
    Compare(Change),
    /// Saves the trial with the previous layer, then writes the new layer; in full, or not at all. `Stop::Begin`.
    Begin(Box<Trial>),
    /// Commits the change: the trial is removed, and the candidate is the configuration in use. `Event::Committed` brings the
    /// changes. `Stop::Commit`.
    Commit(Box<Trial>),
    /// Restores the previous layer, and marks the trial as rolled back for this reason. The change of the connection that it
    /// was. `Stop::PutBack`.
    PutBack(Box<Trial>, String, u64),
    /// Removes a trial whose rollback was published.
    Forget,
    /// The link uses this broker: the count of such changes, and the longest wait between two connects.
    Connect(Which, u64, Option<Duration>),
    /// Reads the memory, the trial and the jobs again.
    Reread,
    /// Reads the trial again.
    ReadTrial,
    /// Reads the keyset again.
    ReadKeys,
    /// Verifies the next keyset and makes it the one in use.
    TakeKeys(Call, KeysetUpdate),
    /// Installs a model.
    Install(Call, Install),
    /// Rolls a model back.
    RollBack(Call, RollBack),
    /// Installs a system.
    InstallSystem(Call, InstallSystem),
    /// A part of a bundle came: its digest, the offset, the bytes.
    Chunk(String, u64, bytes::Bytes),
    /// The newest sequence of each model, as `dn/channel` says.
    Newest(BTreeMap<String, u64>),
    /// Shows whether `dn/channel` is out of date.
    ShowStale(bool),
    /// The result of this command is saved: its job need not remember it any more.
    JobHeard(String),
    /// Ends this run.
    Leave(Leave),
    /// Comes back with the same tick: more is due.
    Again,
}
