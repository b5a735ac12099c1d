//! Commands, the desired state, configurations on trial: one loop (take an order, or look what is due) owns what they
//! change. It is a thread, because it writes to the disk before it acts.
//!
//! ```text
//! accepted ─▶ running ─▶ success │ failed │ rolled_back          and at once: rejected │ expired
//! ```
//!
//! An id and its issuer's sequence are on the disk before anything is done. What ends the process (`restart`, `reboot`,
//! a configuration that needs other stages) is finished by the next one, which finds what the last one had begun.

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
    sync::{Arc, atomic::Ordering, mpsc::RecvTimeoutError},
    time::Duration,
};

use serde_json::Value;
use tokio::sync::watch;

pub use models::{Local, News, Proof, Stage, What, floor};
pub use system::Slots;
pub use trial::Trials;

use self::{
    memory::{Known, Memory, State},
    models::Models,
    request::{Refusal, Request, Why},
    system::System,
    tell::Outcome,
    trial::{Asker, Trial},
};
use crate::{
    config::{Config, Mqtt},
    flow::{
        Class, Clk, Draft, Retain, StreamId,
        event::{COMMAND_FINISHED, EventStreams, Kind},
        meter::Meters,
        order::{Addressee, Arrived, Asked, LinkNews, LogQuery, Orders, Respond, Response, Ticket},
    },
    host::{Clock, Keep, clock::rfc3339_ms},
    limits,
    model::{
        keyset::{Keyset, Role},
        store::Store,
    },
};

/// How the process goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// With the configuration read anew, in the same process.
    Reload,
    /// It ends, and systemd starts it again.
    Restart,
}

/// Asks for another connection: the broker, the count of such changes, and the longest wait between two connects while
/// it is on trial.
pub type Want = Box<dyn Fn(Mqtt, u64, Option<Duration>) + Send>;

/// Reads a part of the log.
pub type ReadLog = Box<dyn Fn(&LogQuery) -> Result<Value, String> + Send>;

/// What is asked of the machine.
pub struct Machine {
    /// Restarts it.
    pub reboot: Box<dyn Fn() -> Result<(), String> + Send>,
    /// Reads the log.
    pub log: ReadLog,
    /// How the device is.
    pub status: Box<dyn Fn() -> Value + Send>,
}

/// What control works with.
pub struct Setup {
    /// What is in use.
    pub config: Config,
    /// The time.
    pub clock: Arc<Clock>,
    /// This boot.
    pub boot: String,
    /// This process.
    pub process: String,
    /// `STATE/control`.
    pub keep: Keep,
    /// Configurations on trial.
    pub trials: Trials,
    /// What arrives; closed: the stop.
    pub orders: Orders,
    /// `up/res` and `up/reported`.
    pub streams: (StreamId, StreamId),
    /// `up/blob`
    pub blob: StreamId,
    /// `up/e/…`
    pub events: EventStreams,
    /// To the outbox; never waits. Returns the record's number.
    pub put: Box<dyn Fn(Draft) -> u64 + Send>,
    /// Says that an order is settled: the broker may forget it.
    pub settled: Box<dyn Fn(Ticket) + Send>,
    /// To a response topic; never waits.
    pub respond: Box<dyn Fn(Response) + Send>,
    /// How the connection stands.
    pub link: watch::Receiver<LinkNews>,
    /// Which connection is wanted.
    pub want: Want,
    /// What is counted, and which pipelines are to learn anew.
    pub meters: Arc<Meters>,
    /// The machine.
    pub machine: Machine,
    /// How the process goes on.
    pub leave: Box<dyn Fn(Leave) + Send>,
    /// What models are run by.
    pub stage: Stage,
    /// What systems are run by.
    pub slots: Slots,
}

/// A command that was accepted and is not finished.
struct Job {
    request: Request,
    respond: Option<Respond>,
    due_ns: u64,
}

/// A change in use, not confirmed yet.
struct Live {
    trial: Trial,
    /// What is in use when it stays.
    next: Config,
    /// The link must have taken up this change.
    generation: u64,
    began_ns: u64,
    deadline_ns: u64,
    /// Number of the record whose acknowledgement confirms it.
    told: Option<u64>,
}

/// How many may come: `per_s` each second, `burst` at once.
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

    /// What time has brought.
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

/// The stage.
pub struct Control {
    setup: Setup,
    keyset: Result<Keyset, String>,
    /// What is wrong with the keysets that followed the first one.
    keys_trouble: Option<String>,
    models: Models,
    system: System,
    memory: Memory,
    commands: Bucket,
    refusals: Bucket,
    /// Refused without an answer since it was last logged.
    unanswered: u64,
    waiting: Vec<Job>,
    /// Ends of commands that the broker does not have yet: number of the record, id.
    untold: VecDeque<(u64, String)>,
    live: Option<Live>,
    /// A desired state that came while another change was on trial.
    later: Option<Arrived>,
    generation: u64,
    /// The process, or this run of it, is about to end: what still arrives is the next one's.
    leaving: bool,
    device: String,
}

impl Control {
    /// Takes up what the last process left.
    pub fn new(setup: Setup, mut store: Store) -> Self {
        let (keyset, keys_trouble) = match &setup.config.commands.keyset {
            Some(path) => match store.keyset(path) {
                Ok((keyset, trouble)) => (Ok(keyset), trouble),
                Err(why) => (Err(why), None),
            },
            None => (Err("no keyset is installed (commands.keyset)".into()), None),
        };
        let (memory, damaged) = Memory::open(setup.keep.clone());
        let device = format!("{}/{}", setup.config.device.site, setup.config.device.id);
        let mut control = Self {
            keyset,
            keys_trouble,
            models: Models::new(store),
            system: System::open(setup.keep.clone()),
            memory,
            commands: Bucket::new(limits::COMMANDS_PER_S, limits::COMMANDS_BURST),
            refusals: Bucket::new(limits::REFUSALS_PER_S, limits::REFUSALS_BURST),
            unanswered: 0,
            waiting: Vec::new(),
            untold: VecDeque::new(),
            live: None,
            later: None,
            generation: 0,
            leaving: false,
            device,
            setup,
        };
        if damaged {
            let text = "what was remembered of commands cannot be read; each issuer's next one must echo the nonce";
            control.event(Kind::StoreDamaged, "commands", text);
        }
        if let Some(why) = control.keys_trouble.clone() {
            control.event(Kind::StoreDamaged, "keys", &format!("{why}; nothing is installed until it is put right"));
        }
        control.take_up();
        control.take_up_models();
        control.take_up_system();
        control
    }

    /// The stage as a thread: ends when nobody can order any more.
    pub fn run(mut self, beat: impl Fn()) {
        loop {
            beat();
            match self.setup.orders.take(limits::CONTROL_TURN) {
                // It stays unsettled, and the broker sends it again.
                Ok(_) if self.leaving => {}
                Ok(arrived) => {
                    // What was taken in is on the disk, what was refused is answered; a kill before this brings it again.
                    let ticket = arrived.ticket;
                    self.arrived(arrived);
                    (self.setup.settled)(ticket);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !self.leaving {
                self.look();
            }
        }
        self.look_at_answers();
        self.leave_models();
        if let Err(why) = self.memory.save() {
            tracing::warn!("{why}");
        }
    }

    fn arrived(&mut self, arrived: Arrived) {
        let site = &self.setup.config.device.site;
        let to = match &arrived.to {
            Addressee::Device => self.device.clone(),
            Addressee::All => format!("{site}/_all"),
            // A subscription of a cohort that was left lives on at the broker.
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
                if let Err(outcome) = self.command(&to, &kind, &id, &arrived, respond.clone()) {
                    self.refuse(&kind, &id, respond.as_ref(), &outcome);
                }
            }
        }
    }

    /// A response topic outside the site would let one device speak in another's name.
    fn respond_to(&self, arrived: &Arrived) -> Option<Respond> {
        let site = format!("kl/{}/", self.setup.config.device.site);
        let respond = arrived.respond.clone()?;
        let fits = respond.topic.starts_with(&site) && respond.topic.len() <= limits::TOPIC_BYTES;
        if !fits || respond.topic.contains(['+', '#', '\0']) {
            tracing::debug!(topic = respond.topic, "a response topic outside {site} is not answered");
            return None;
        }
        Some(respond)
    }

    fn command(
        &mut self,
        to: &str,
        kind: &str,
        id: &str,
        arrived: &Arrived,
        respond: Option<Respond>,
    ) -> Result<(), Outcome> {
        let refuse = |Refusal(why, text)| Outcome::rejected(why, text);
        if arrived.retained {
            return Err(Outcome::rejected(Why::Retained, "a command must not be retained"));
        }
        let request = request::guarded(|| request::command(to, kind, id, &arrived.payload)).map_err(refuse)?;
        if let Some(known) = self.memory.known(id) {
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
        if !self.commands.take(now.boot_ns) || self.waiting.len() >= limits::JOBS {
            return Err(Outcome::rejected(Why::Busy, "too many commands"));
        }
        self.authorise(&request, &arrived.nonce).map_err(refuse)?;
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
            told: false,
        };
        // Only what was verified counts: a forged sequence on a command that needs no signature would lock its issuer out.
        let verified = request.signed.as_ref().filter(|_| request::needs_signature(kind));
        let issuer = verified.map(|signed| (signed.issuer.as_str(), signed.iseq));
        self.memory.take(known, issuer);
        if request::needs_signature(kind) {
            // What cannot be remembered is not done: it could be done twice.
            if let Err(why) = self.memory.save() {
                self.memory.became(id, State::Failed, &why);
                return Err(Outcome::new(State::Failed, why));
            }
            tracing::info!(kind, id, issuer = issuer.map(|(name, _)| name), "command accepted");
        }
        self.setup.meters.commands_accepted.add(1);
        self.result(kind, id, None, &Outcome::new(State::Accepted, ""));
        let job = Job { request, respond, due_ns: now.boot_ns.saturating_add(job_ns) };
        if job_ns == 0 {
            self.act(job)
        } else {
            self.waiting.push(job)
        }
        Ok(())
    }

    /// Who may ask, and whether it is fresh.
    fn authorise(&self, request: &Request, nonce: &str) -> Result<(), Refusal> {
        if !request::needs_signature(&request.kind) {
            return Ok(());
        }
        let refuse = |why, text: String| Err(Refusal(why, text));
        if request.expires_ms.is_none() {
            return refuse(Why::Malformed, "`expires_at` is needed".into());
        }
        let allow_unsigned = self.setup.config.commands.allow_unsigned;
        match &request.signed {
            None if allow_unsigned => {}
            None => return refuse(Why::Unsigned, format!("`{}` needs a signature", request.kind)),
            Some(signed) => {
                self.verify(signed)?;
                if signed.iseq <= self.memory.issuer(&signed.issuer) {
                    let highest = self.memory.issuer(&signed.issuer);
                    return refuse(Why::Replayed, format!("iseq {} is not above {highest}", signed.iseq));
                }
            }
        }
        let distrusted = request.signed.as_ref().is_some_and(|signed| self.memory.distrusts(&signed.issuer));
        if (self.setup.clock.now().clk != Clk::Sync || distrusted) && request.nonce.as_deref() != Some(nonce) {
            let text = "this device's clock is not synchronised; the command must echo the nonce of up/birth";
            return refuse(Why::Nonce, text.into());
        }
        Ok(())
    }

    fn verify(&self, signed: &request::Signed) -> Result<(), Refusal> {
        let keyset = self.keyset.as_ref().map_err(|why| Refusal(Why::BadSignature, why.clone()))?;
        let signer = keyset.signer(Role::Command, signed.text.as_bytes(), &signed.minisig);
        match signer.map_err(|why| Refusal(Why::BadSignature, why))? {
            name if name == signed.issuer => Ok(()),
            name => Err(Refusal(Why::BadSignature, format!("issuer is `{}`, but `{name}` signed", signed.issuer))),
        }
    }

    /// The time, or a bound below it, ms since 1970.
    fn now_ms(&self) -> i64 {
        self.setup.clock.now().wall_ms.unwrap_or(0).max(self.setup.clock.floor_ms())
    }

    /// Answers what is not done, as long as that is not too much of it.
    fn refuse(&mut self, kind: &str, id: &str, respond: Option<&Respond>, outcome: &Outcome) {
        self.setup.meters.commands_refused.add(u64::from(!outcome.repeated));
        if self.refusals.take(Clock::boot_ns()) {
            // A flood is told by `commands.refused`, not by a line for each.
            if let Some(why) = outcome.why.filter(|why| *why != Why::Busy) {
                tracing::warn!(kind, id, why = why.word(), "command rejected: {}", outcome.text);
            }
            self.result(kind, id, respond, outcome);
        } else {
            self.unanswered += 1;
        }
    }

    /// What is due: jobs that waited, a trial that is confirmed or over, what was not answered.
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
        self.look_at_trial(now_ns);
        self.look_at_models(now_ns);
        self.look_at_system(now_ns);
        if self.live.is_none()
            && let Some(arrived) = self.later.take()
        {
            self.arrived(arrived);
        }
        self.look_at_answers();
        self.refusals.fill(now_ns);
        if self.unanswered > 0 && self.refusals.tokens >= self.refusals.burst / 2.0 {
            let text = format!("{} commands were refused without an answer: too many at once", self.unanswered);
            self.event(Kind::CommandsRefused, "commands", &text);
            self.unanswered = 0;
        }
    }

    /// Which ends of commands the broker has by now. Saved with what comes next; an end that is told twice says so.
    fn look_at_answers(&mut self) {
        let acked = self.setup.meters.result_acked.load(Ordering::Relaxed);
        while let Some((_, id)) = self.untold.front().filter(|(seq, _)| *seq <= acked) {
            self.memory.told(id);
            self.untold.pop_front();
        }
    }

    fn leave(&mut self, how: Leave) {
        self.leaving = true;
        (self.setup.leave)(how);
    }

    /// A command came to its end: remembered, then told.
    fn finish(&mut self, kind: &str, id: &str, respond: Option<&Respond>, outcome: &Outcome) {
        self.memory.became(id, outcome.state, &outcome.text);
        if request::needs_signature(kind)
            && let Err(why) = self.memory.save()
        {
            tracing::error!("{why}");
        }
        let (message_id, state) = (COMMAND_FINISHED, outcome.state.word());
        tracing::info!(message_id, kind, id, state, "command finished {}", outcome.text);
        self.result(kind, id, respond, outcome);
    }

    /// Tells what became of a command. Returns the record's number.
    fn result(&mut self, kind: &str, id: &str, respond: Option<&Respond>, outcome: &Outcome) -> u64 {
        let members = outcome.members(kind, id);
        let seq = self.put(self.setup.streams.0, Class::Reply, tell::body(&members), Retain::No);
        if outcome.state.is_final() && request::needs_signature(kind) {
            while self.untold.len() >= limits::COMMANDS_KNOWN {
                self.untold.pop_front();
            }
            self.untold.push_back((seq, id.to_owned()));
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
            (self.setup.respond)(Response { respond: respond.clone(), payload });
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
        let digest = self.setup.trials.current().map(|text| act::digest(&text));
        let digest = digest.filter(|_| self.setup.config.set_aside.is_empty());
        let mut members = tell::reported(self.memory.wish(), digest.as_deref(), &self.setup.config.set_aside);
        members.insert("models".into(), self.models_now());
        self.put(self.setup.streams.1, Class::Status, tell::body(&members), Retain::Keep);
    }
}
