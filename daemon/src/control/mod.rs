//! Commands, the desired state, configurations on trial. One loop (handle an order, or check deadlines) owns the state
//! that they change. It runs in a thread, because it writes to the disk before it acts.
//!
//! ```text
//! accepted ─▶ running ─▶ success │ failed │ rolled_back          and at once: rejected │ expired
//! ```
//!
//! An id and its issuer's sequence are saved before a command is executed. A command that ends the process (`restart`,
//! `reboot`, a configuration that needs other stages) is finished by the next process, from the saved state.

mod act;
mod args;
mod back;
mod bring;
mod memory;
mod models;
pub mod request;
mod show;
mod system;
mod tell;
mod trial;
mod trust;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::sync::watch;

pub use models::{Local, floor};
pub use system::Slots;
pub use trial::Trials;

use self::{
    memory::{Known, Memory, State},
    models::{Models, News},
    request::{Refusal, Request, Why},
    system::System,
    tell::Outcome,
    trial::{Asker, Trial},
};
use crate::{
    config::{Config, Mqtt},
    flow::{
        Class, Clk, Draft, Retain, StreamId,
        board::Board,
        event::{COMMAND_FINISHED, EventStreams, Kind},
        meter::Meters,
        order::{Addressee, Arrived, Asked, LinkNews, LogQuery, Orders, Respond, Response, Ticket},
    },
    host::{Clock, Defence, Keep, clock::rfc3339_ms},
    limits,
    model::{keyset::Keyset, rollout::Desk, store::Store},
};

/// How this run of the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Reload: read the configuration again, in the same process.
    Reload,
    /// Restart: the process ends, and systemd starts it again.
    Restart,
}

/// Requests another connection: the broker, the count of such changes, and the longest wait between two connects while
/// the change is on trial.
pub type Want = Box<dyn Fn(Mqtt, u64, Option<Duration>) + Send>;

/// Reads a part of the journal.
pub type ReadLog = Box<dyn Fn(&LogQuery) -> Result<Value, String> + Send>;

/// Access to the machine.
pub struct Machine {
    /// Restarts the machine.
    pub reboot: Box<dyn Fn() -> Result<(), String> + Send>,
    /// Reads the journal.
    pub log: ReadLog,
    /// The status document.
    pub status: Box<dyn Fn() -> Value + Send>,
}

/// The surroundings of the stage.
pub struct Setup {
    /// The configuration in use.
    pub config: Config,
    /// The clock.
    pub clock: Arc<Clock>,
    /// Id of this boot.
    pub boot: String,
    /// Id of this process.
    pub process: String,
    /// `STATE/control`.
    pub keep: Keep,
    /// This device ran before, so it must have a memory of commands.
    pub ran_before: bool,
    /// Configurations on trial.
    pub trials: Trials,
    /// Orders from the link; closed: the process stops.
    pub orders: Orders,
    /// `up/res` and `up/reported`.
    pub streams: (StreamId, StreamId),
    /// `up/blob`
    pub blob: StreamId,
    /// `up/e/…`
    pub events: EventStreams,
    /// To the outbox; never waits. Returns the record's number.
    pub put: Box<dyn Fn(Draft) -> u64 + Send>,
    /// Reports that an order is settled: the link then acknowledges it to the broker.
    pub settled: Box<dyn Fn(Ticket) + Send>,
    /// To a response topic; never waits.
    pub respond: Box<dyn Fn(Response) + Send>,
    /// State of the connection.
    pub link: watch::Receiver<LinkNews>,
    /// Requests another connection.
    pub want: Want,
    /// Counters.
    pub meters: Arc<Meters>,
    /// What other stages show, and which pipelines are to learn again.
    pub board: Arc<Board>,
    /// Access to the machine.
    pub machine: Machine,
    /// Ends this run of the process.
    pub leave: Box<dyn Fn(Leave) + Send>,
    /// Requests to the rollout of models, and its reports.
    pub rollout: Desk,
    /// Requests of local callers.
    pub local: mpsc::Receiver<Local>,
    /// Publishes the state of model installs for status and D-Bus.
    pub show_models: Box<dyn Fn(Value) + Send>,
    /// Access to the system's slots.
    pub slots: Slots,
}

/// A command that was accepted and is not finished.
struct Job {
    request: Request,
    respond: Option<Respond>,
    verified: bool,
    due_ns: u64,
}

/// The key that signed a command, or why the signature is missing or invalid.
type Verified = Result<String, Refusal>;

/// A change in use, not confirmed yet.
struct Live {
    trial: Trial,
    /// The configuration to use once the change is committed.
    next: Config,
    /// The change that the link must have applied.
    generation: u64,
    began_ns: u64,
    deadline_ns: u64,
    /// Number of the record whose acknowledgement confirms it.
    proof_seq: Option<u64>,
}

/// A token bucket: `per_s` tokens each second, at most `burst`.
struct Bucket {
    per_s: f64,
    burst: f64,
    tokens: f64,
    at_ns: u64,
}

impl Bucket {
    fn new(per_s: f64, burst: f64) -> Self {
        Self { per_s, burst, tokens: burst, at_ns: 0 }
    }

    /// Adds the tokens of the time since the last call.
    fn fill(&mut self, now_ns: u64) {
        let passed_s = now_ns.saturating_sub(self.at_ns) as f64 / 1e9;
        self.at_ns = now_ns;
        self.tokens = (self.tokens + passed_s * self.per_s).min(self.burst);
    }

    fn take(&mut self, now_ns: u64) -> bool {
        self.fill(now_ns);
        let ok = self.tokens >= 1.0;
        self.tokens -= if ok { 1.0 } else { 0.0 };
        ok
    }
}

/// The rate limits for one kind of sender: commands, and rejections.
struct Intake {
    commands: Bucket,
    refusals: Bucket,
}

impl Intake {
    fn new(per_s: f64, burst: f64) -> Self {
        let refusals = Bucket::new(limits::REFUSALS_PER_S, limits::REFUSALS_BURST);
        Self { commands: Bucket::new(per_s, burst), refusals }
    }
}

/// The control stage.
pub struct Control {
    setup: Setup,
    keyset: Result<Keyset, String>,
    /// When an unreadable keyset was read last, ns since boot.
    keyset_ns: u64,
    /// Why a keyset after the first one is not in use.
    keys_trouble: Option<String>,
    models: Models,
    /// Reports of the threads that bring and open.
    news: (mpsc::SyncSender<News>, mpsc::Receiver<News>),
    system: System,
    memory: Memory,
    /// Rate limits, separate for verified and for other commands: a flood of unsigned commands does not delay signed ones.
    verified: Intake,
    others: Intake,
    /// Messages for response topics; handed over when the order is settled.
    answers: Vec<Response>,
    /// Commands rejected without a result since the last event.
    unanswered: u64,
    waiting: Vec<Job>,
    /// Final results that the broker has not acknowledged: number of the record, id.
    unacked: VecDeque<(u64, String)>,
    live: Option<Live>,
    /// The configuration's trial could not be read at the start; when it was read last.
    trial_unread_ns: Option<u64>,
    /// A desired state that arrived while another change was on trial.
    later: Option<Arrived>,
    generation: u64,
    /// Digest of the remote layer in use; without one, the digest of an empty text.
    in_use: String,
    /// The process, or this run of it, is about to end: later orders are left to the next one.
    leaving: bool,
    device: String,
}

impl Control {
    /// Continues with what the previous process left.
    pub fn new(setup: Setup, mut store: Store) -> Self {
        let (keyset, keys_trouble) = trust::keyset(&setup.config, &mut store);
        let (memory, found) = Memory::open(setup.keep.clone(), setup.ran_before, Clock::boot_ns());
        let device = format!("{}/{}", setup.config.device.site, setup.config.device.id);
        let mut control = Self {
            keyset,
            keyset_ns: Clock::boot_ns(),
            keys_trouble,
            models: Models::new(store),
            news: mpsc::sync_channel(limits::MODEL_NEWS),
            system: System::open(setup.keep.clone()),
            memory,
            verified: Intake::new(limits::VERIFIED_PER_S, limits::VERIFIED_BURST),
            others: Intake::new(limits::COMMANDS_PER_S, limits::COMMANDS_BURST),
            answers: Vec::new(),
            unanswered: 0,
            waiting: Vec::new(),
            unacked: VecDeque::new(),
            live: None,
            trial_unread_ns: None,
            later: None,
            generation: 0,
            in_use: act::in_use(&setup.config),
            leaving: false,
            device,
            setup,
        };
        control.tell_memory(found);
        if let Some(why) = control.keys_trouble.clone() {
            control.event(Kind::StoreDamaged, "keys", &format!("{why}; nothing is installed until it is repaired"));
        }
        control.lower_versions();
        control.take_up();
        control.take_up_models();
        control.take_up_system();
        control
    }

    /// The stage as a thread. It ends when every sender of orders is gone.
    pub fn run(mut self, beat: impl Fn()) {
        loop {
            beat();
            match self.setup.orders.take(limits::CONTROL_TURN) {
                // The order stays unsettled, and the broker sends it again.
                Ok(_) if self.leaving => {}
                Ok(arrived) => {
                    // An accepted command is saved, a rejected one has a result. After a kill before this the broker sends it again.
                    let ticket = arrived.ticket;
                    self.arrived(arrived);
                    (self.setup.settled)(ticket);
                    self.answer();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !self.leaving {
                self.look();
            }
            self.answer();
        }
        self.look_at_answers();
        self.leave_models();
        if let Err(why) = self.memory.save() {
            tracing::warn!("{why}; the next start may publish acknowledged results again");
        }
    }

    fn arrived(&mut self, arrived: Arrived) {
        let site = &self.setup.config.device.site;
        let to = match &arrived.to {
            Addressee::Device => self.device.clone(),
            Addressee::All => format!("{site}/_all"),
            // The subscription of a cohort that the device left still exists at the broker.
            Addressee::Cohort(name) if !self.setup.config.device.cohorts.contains(name) => return,
            Addressee::Cohort(name) => format!("{site}/_c-{name}"),
        };
        match &arrived.asked {
            Asked::Desired => self.desired(&to, arrived),
            Asked::Channel => self.channel(&to, &arrived),
            Asked::Blob { sha256, offset } => self.chunk(&sha256.clone(), *offset, &arrived.payload),
            Asked::Command { kind, id } => {
                let (kind, id) = (kind.clone(), id.clone());
                let respond = self.respond_to(&arrived);
                let read = self.read(&to, &kind, &id, &arrived);
                let verified = read.as_ref().is_ok_and(|(_, verified)| verified.is_ok());
                let taken = read.and_then(|read| self.command(read, &arrived, respond.clone()));
                if let Err(outcome) = taken {
                    self.refuse(&kind, &id, respond.as_ref(), &outcome, verified);
                }
            }
        }
    }

    /// Sends the responses of settled orders.
    fn answer(&mut self) {
        self.answers.drain(..).for_each(&self.setup.respond);
    }

    /// Another response topic would let a requester publish in this device's name, or make the broker close the connection.
    fn respond_to(&self, arrived: &Arrived) -> Option<Respond> {
        let respond = arrived.respond.clone()?;
        if Defence::ResponseTopic.stands() && !request::is_response_topic(&self.device, &respond.topic) {
            let device = &self.device;
            tracing::debug!(topic = respond.topic, "ignore a response topic: it is not below kl/{device}/up/_r/");
            return None;
        }
        Some(respond)
    }

    /// Parses a command and verifies its signature.
    fn read(&self, to: &str, kind: &str, id: &str, arrived: &Arrived) -> Result<(Request, Verified), Outcome> {
        let refuse = |Refusal(why, text)| Outcome::rejected(why, text);
        if arrived.retained {
            return Err(Outcome::rejected(Why::Retained, "a command must not be retained"));
        }
        let request = request::guarded(|| request::command(to, kind, id, &arrived.payload)).map_err(refuse)?;
        let verified = match &request.signed {
            Some(signed) if request::needs_signature(kind) => self.verify(signed),
            _ => Err(Refusal(Why::Unsigned, format!("`{kind}` needs a signature"))),
        };
        Ok((request, verified))
    }

    fn command(
        &mut self,
        (request, verified): (Request, Verified),
        arrived: &Arrived,
        respond: Option<Respond>,
    ) -> Result<(), Outcome> {
        let (kind, id) = (request.kind.as_str(), request.id.as_str());
        let known = self.memory.known(id);
        // A command with a valid signature may use an id that an unsigned command used.
        let free = |known: &&Known| verified.is_ok() && !request::needs_signature(&known.kind);
        if let Some(known) = known.filter(|known| !free(known)) {
            return Err(if (known.kind.as_str(), &known.digest) == (kind, &request.digest) {
                Outcome { repeated: true, ..Outcome::new(known.state, known.text.clone()) }
            } else {
                Outcome::rejected(Why::RepeatedId, "the id was used for another command")
            });
        }
        let now = self.setup.clock.now();
        if request.expires_ms.is_some_and(|at| self.now_ms() >= at) {
            return Err(Outcome::new(State::Expired, "it came too late"));
        }
        let waiting = self.waiting.iter().filter(|job| job.verified == verified.is_ok()).count();
        let intake = if verified.is_ok() { &mut self.verified } else { &mut self.others };
        if !intake.commands.take(now.boot_ns) || waiting >= limits::JOBS {
            return Err(Outcome::rejected(Why::Busy, "too many commands"));
        }
        self.authorise(&request, &verified, &arrived.nonce)
            .map_err(|Refusal(why, text)| Outcome::rejected(why, text))?;
        if verified.is_ok() {
            self.waiting.retain(|job| job.verified || job.request.id != request.id);
        }
        let job_ns = match arrived.to {
            Addressee::Device => 0,
            _ => (fastrand::f64() * self.setup.config.commands.jitter_s as f64 * 1e9) as u64,
        };
        let known = Known {
            id: id.into(),
            kind: kind.into(),
            digest: request.digest.clone(),
            state: State::Accepted,
            text: String::new(),
            boot: self.setup.boot.clone(),
            acked: false,
        };
        // Only a verified sequence counts: a forged one on a command without a signature would lock its issuer out.
        let signed = request.signed.as_ref().filter(|_| verified.is_ok());
        let issuer = signed.map(|signed| (signed.issuer.as_str(), signed.iseq));
        let key = verified.as_deref().unwrap_or_default();
        self.memory.take(known, issuer.map(|(name, iseq)| (name, key, iseq)));
        if request::needs_signature(kind) {
            // A command that cannot be saved is not executed, because it could be executed twice.
            if let Err(why) = self.memory.save() {
                self.memory.became(id, State::Failed, &why);
                return Err(Outcome::new(State::Failed, why));
            }
            tracing::info!(kind, id, issuer = issuer.map(|(name, _)| name), "command accepted");
        }
        self.setup.meters.commands_accepted.add(1);
        self.result(kind, id, None, &Outcome::new(State::Accepted, ""));
        let verified = verified.is_ok();
        let job = Job { request, respond, verified, due_ns: now.boot_ns.saturating_add(job_ns) };
        if job_ns == 0 {
            self.act(job)
        } else {
            self.waiting.push(job)
        }
        Ok(())
    }

    /// Checks signature, issuer, sequence and freshness.
    fn authorise(&self, request: &Request, verified: &Verified, nonce: &str) -> Result<(), Refusal> {
        if !request::needs_signature(&request.kind) {
            return Ok(());
        }
        let refuse = |why, text: String| Err(Refusal(why, text));
        if request.expires_ms.is_none() {
            return refuse(Why::Malformed, "`expires_at` is needed".into());
        }
        if let Some(why) = self.memory.unread() {
            let text = format!("what was remembered of commands cannot be read ({why}); send it again later");
            return refuse(Why::Busy, text);
        }
        let allow_unsigned = self.setup.config.commands.allow_unsigned;
        let mut distrusted = false;
        match &request.signed {
            None if allow_unsigned => {}
            None => return verified.clone().map(|_| ()),
            Some(signed) => {
                let key = verified.clone()?;
                let highest = self.memory.issuer(&signed.issuer, &key);
                if signed.iseq <= highest {
                    return refuse(Why::Replayed, format!("iseq {} is not above {highest}", signed.iseq));
                }
                self.not_ahead("iseq", signed.iseq, highest)?;
                self.not_issued_ahead(request.issued_ms)?;
                distrusted = self.memory.distrusts(&signed.issuer, &key);
            }
        }
        if (self.setup.clock.now().clk != Clk::Sync || distrusted) && request.nonce.as_deref() != Some(nonce) {
            let why = if distrusted {
                "this device lost what it remembered of commands"
            } else {
                "this device's clock is not synchronised"
            };
            return refuse(Why::Nonce, format!("{why}; the command must echo the nonce of up/birth"));
        }
        Ok(())
    }

    /// The time, or a bound below it, ms since 1970.
    fn now_ms(&self) -> i64 {
        self.setup.clock.now().wall_ms.unwrap_or(0).max(self.setup.clock.floor_ms())
    }

    /// Publishes the result of a command that is not executed, within the rate limit.
    fn refuse(&mut self, kind: &str, id: &str, respond: Option<&Respond>, outcome: &Outcome, verified: bool) {
        self.setup.meters.commands_refused.add(u64::from(!outcome.repeated));
        // The response topic gets one result: a repeat only gets its record.
        let respond = respond.filter(|_| !outcome.repeated);
        let intake = if verified { &mut self.verified } else { &mut self.others };
        if intake.refusals.take(Clock::boot_ns()) {
            // `commands.refused` reports a flood, instead of one line for each command.
            if let Some(why) = outcome.why.filter(|why| *why != Why::Busy) {
                tracing::warn!(kind, id, why = why.word(), "command rejected: {}", outcome.text);
            }
            self.result(kind, id, respond, outcome);
        } else {
            self.unanswered += 1;
        }
    }

    /// Handles what is due: waiting jobs, the deadline of a trial, the event about commands without a result.
    fn look(&mut self) {
        let now_ns = Clock::boot_ns();
        while let Some(at) = self.waiting.iter().position(|job| job.due_ns <= now_ns) {
            let job = self.waiting.swap_remove(at);
            if job.request.expires_ms.is_some_and(|at| self.now_ms() >= at) {
                let outcome = Outcome::new(State::Expired, "it came too late");
                self.finish(&job.request.kind, &job.request.id, job.respond.as_ref(), &outcome);
            } else {
                self.act(job);
            }
        }
        self.look_at_memory(now_ns);
        self.look_at_trial(now_ns);
        self.look_at_models(now_ns);
        self.look_at_system(now_ns);
        if self.live.is_none()
            && let Some(arrived) = self.later.take()
        {
            self.arrived(arrived);
        }
        self.look_at_answers();
        let refusals = &mut self.others.refusals;
        refusals.fill(now_ns);
        if self.unanswered > 0 && refusals.tokens >= refusals.burst / 2.0 {
            let text = format!("{} commands were refused without an answer: too many at once", self.unanswered);
            self.event(Kind::CommandsRefused, "commands", &text);
            self.unanswered = 0;
        }
    }

    /// Marks results that the broker acknowledged. The mark is saved with the next change of the memory.
    fn look_at_answers(&mut self) {
        let acked = self.setup.board.result_acked.load(Ordering::Relaxed);
        while let Some((_, id)) = self.unacked.front().filter(|(seq, _)| *seq <= acked) {
            self.memory.acked(id);
            self.unacked.pop_front();
        }
    }

    fn leave(&mut self, how: Leave) {
        self.leaving = true;
        (self.setup.leave)(how);
    }

    /// Ends a command: saves its final state, then publishes the result.
    fn finish(&mut self, kind: &str, id: &str, respond: Option<&Respond>, outcome: &Outcome) {
        self.memory.became(id, outcome.state, &outcome.text);
        if request::needs_signature(kind)
            && let Err(why) = self.memory.save()
        {
            tracing::error!("command {kind} {id}: {why}; a restart may publish another result");
        }
        let (message_id, state) = (COMMAND_FINISHED, outcome.state.word());
        tracing::info!(message_id, kind, id, state, "command finished {}", outcome.text);
        self.result(kind, id, respond, outcome);
    }

    /// Publishes the result of a command. Returns the record's number.
    fn result(&mut self, kind: &str, id: &str, respond: Option<&Respond>, outcome: &Outcome) -> u64 {
        let members = outcome.members(kind, id);
        let seq = self.put(self.setup.streams.0, Class::Reply, tell::body(&members), Retain::No);
        if outcome.state.is_final() && request::needs_signature(kind) {
            while self.unacked.len() >= limits::COMMANDS_KNOWN {
                self.unacked.pop_front();
            }
            self.unacked.push_back((seq, id.to_owned()));
        }
        if let Some(respond) = respond {
            let now = self.setup.clock.now();
            let mut payload = serde_json::Map::new();
            payload.insert("v".into(), 1.into());
            payload.insert("ts".into(), now.wall_ms.map(rfc3339_ms).into());
            payload.insert("clk".into(), now.clk.word().into());
            payload.insert("device".into(), self.device.as_str().into());
            payload.extend(members);
            let payload = Value::Object(payload).to_string();
            self.answers.push(Response { respond: respond.clone(), payload });
        }
        seq
    }

    fn put(&self, stream: StreamId, class: Class, body: String, retain: Retain) -> u64 {
        let stamp = self.setup.clock.now();
        (self.setup.put)(Draft { stream, class, stamp, lineage: None, body: body.into(), retain })
    }

    fn event(&self, kind: Kind, subject: &str, text: &str) {
        (self.setup.put)(self.setup.events.draft(kind, self.setup.clock.now(), subject, text));
    }

    /// `up/reported`, retained.
    fn report(&self) {
        let mut members = tell::reported(self.memory.wish(), &self.in_use, &self.setup.config.set_aside);
        members.insert("models".into(), self.models_now());
        self.put(self.setup.streams.1, Class::Status, tell::body(&members), Retain::Keep);
    }
}
