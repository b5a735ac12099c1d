//! Takes an order: read, known, expired, too many, signature, issuer, sequence, nonce. Then a command is remembered
//! on the disk, settled, and handed to its handler.

use super::{
    Control,
    action::{Action, Call, OnError, Record, Stop},
    command::needs_signature,
    command_state::CommandState,
    memory::Known,
    refusal::{Refusal, Why},
    request::{self, Request},
    tell::Outcome,
};
use crate::{
    flow::{
        Clk,
        order::{Addressee, Arrived, Asked, Respond, Ticket},
    },
    host::Defence,
    limits,
};

/// A token bucket: `per_s` tokens each second, at most `burst`.
#[derive(Debug)]
pub(super) struct Bucket {
    per_s: f64,
    pub burst: f64,
    pub tokens: f64,
    at_ns: u64,
}

impl Bucket {
    fn new(per_s: f64, burst: f64) -> Self {
        Self { per_s, burst, tokens: burst, at_ns: 0 }
    }

    /// Adds the tokens of the time since the last call.
    pub fn fill(&mut self, now_ns: u64) {
        let passed_s = now_ns.saturating_sub(self.at_ns) as f64 / 1e9;
        self.at_ns = now_ns;
        self.tokens = (self.tokens + passed_s * self.per_s).min(self.burst);
    }

    pub fn take(&mut self, now_ns: u64) -> bool {
        self.fill(now_ns);
        let ok = self.tokens >= 1.0;
        self.tokens -= if ok { 1.0 } else { 0.0 };
        ok
    }
}

/// The rate limits for one kind of sender: commands, and rejections.
#[derive(Debug)]
pub(super) struct Intake {
    pub commands: Bucket,
    pub refusals: Bucket,
}

impl Intake {
    pub fn new(per_s: f64, burst: f64) -> Self {
        let refusals = Bucket::new(limits::REFUSALS_PER_S, limits::REFUSALS_BURST);
        Self { commands: Bucket::new(per_s, burst), refusals }
    }
}

/// A command that waits for its turn: one for many devices begins at a random moment.
#[derive(Debug)]
pub(super) struct Waiting {
    pub request: Request,
    pub respond: Option<Respond>,
    pub verified: bool,
    pub due_ns: u64,
}

/// The key that signed a command, or why the signature is missing or invalid.
type Verified = Result<String, Refusal>;

impl Control {
    pub(super) fn arrived(&mut self, arrived: Arrived) {
        self.arrived_ns = self.now_ns();
        let to = match &arrived.to {
            Addressee::Device => self.device(),
            Addressee::All => format!("{}/_all", self.rules.site),
            // The subscription of a cohort that the device left still exists at the broker.
            Addressee::Cohort(name) if !self.rules.cohorts.contains(name) => {
                return self.act(Action::Settle(arrived.ticket));
            }
            Addressee::Cohort(name) => format!("{}/_c-{name}", self.rules.site),
        };
        let ticket = arrived.ticket;
        match &arrived.asked {
            Asked::Desired => self.desired(&to, arrived, Some(ticket)),
            Asked::Channel => {
                self.channel(&to, &arrived);
                self.act(Action::Settle(ticket));
            }
            Asked::Plan { .. } | Asked::Gate { .. } | Asked::Halt { .. } => self.plan_arrived(arrived),
            Asked::Blob { sha256, offset } => {
                // On the disk before the broker may delete it.
                self.act(Action::Chunk(sha256.clone(), *offset, arrived.payload.clone()));
                self.act(Action::Settle(ticket));
            }
            Asked::Command { kind, id } => {
                let (kind, id) = (kind.clone(), id.clone());
                let respond = self.respond_to(&arrived);
                let call = Call { kind, id, respond, ticket: Some(ticket) };
                let read = self.read(&to, &call, &arrived);
                let verified = read.as_ref().is_ok_and(|(_, verified)| verified.is_ok());
                let taken = read.and_then(|read| self.command(read, &arrived, call.clone()));
                if let Err(outcome) = taken {
                    self.refuse(call, &outcome, verified);
                }
            }
        }
    }

    /// Another response topic would let a requester publish in this device's name, or make the broker close the connection.
    fn respond_to(&self, arrived: &Arrived) -> Option<Respond> {
        let respond = arrived.respond.clone()?;
        let device = self.device();
        if Defence::ResponseTopic.stands() && !request::is_response_topic(&device, &respond.topic) {
            tracing::debug!(topic = respond.topic, "ignore a response topic: it is not below kl/{device}/up/_r/");
            return None;
        }
        Some(respond)
    }

    /// Parses a command and verifies its signature.
    fn read(&self, to: &str, call: &Call, arrived: &Arrived) -> Result<(Request, Verified), Outcome> {
        if arrived.retained {
            return Err(Outcome::rejected(Why::Retained, "a command must not be retained"));
        }
        let (kind, id) = (call.kind.as_str(), call.id.as_str());
        let request =
            request::guarded(|| request::command(to, kind, id, &arrived.payload)).map_err(Outcome::refused)?;
        let verified = match &request.signed {
            Some(signed) if needs_signature(kind) => self.verify(signed),
            _ => Err(Refusal(Why::Unsigned, format!("`{kind}` needs a signature"))),
        };
        Ok((request, verified))
    }

    /// Accepts a command: `Save` stands before everything that shows it to anybody.
    fn command(&mut self, read: (Request, Verified), arrived: &Arrived, mut call: Call) -> Result<(), Outcome> {
        let (request, verified) = read;
        self.is_new(&request, &verified)?;
        if request.expires_ms.is_some_and(|at| self.now_ms() >= at) {
            return Err(Outcome::new(CommandState::Expired, "it came too late"));
        }
        let now_ns = self.now_ns();
        let waiting = self.waiting.iter().filter(|waiting| waiting.verified == verified.is_ok()).count();
        let intake = if verified.is_ok() { &mut self.verified } else { &mut self.others };
        if !intake.commands.take(now_ns) || waiting >= limits::JOBS {
            return Err(Outcome::rejected(Why::Busy, "too many commands"));
        }
        self.authorise(&request, &verified, &arrived.nonce).map_err(Outcome::refused)?;
        if verified.is_ok() {
            // It takes the id of a command without a signature, which is then not executed.
            self.waiting.retain(|waiting| waiting.verified || waiting.request.id != request.id);
        }
        let wait_ns = match arrived.to {
            Addressee::Device => 0,
            _ => (self.random.f64() * self.rules.jitter_s as f64 * 1e9) as u64,
        };
        let saved = needs_signature(&call.kind);
        // What is not saved is settled only with its result; a command that waits is settled now in any case.
        let settle = if saved || wait_ns > 0 { call.ticket.take() } else { None };
        self.remember(&request, &verified);
        if saved {
            self.save(OnError::Stop(Stop::Accept(call.clone(), settle)));
        }
        self.act(Action::CountAccepted);
        self.result(&call, &Outcome::new(CommandState::Accepted, ""));
        self.settle(settle);
        if wait_ns == 0 {
            self.run(request, call);
        } else {
            let (respond, due_ns) = (call.respond, now_ns.saturating_add(wait_ns));
            self.waiting.push(Waiting { request, respond, verified: verified.is_ok(), due_ns });
        }
        Ok(())
    }

    /// An id acts at most once.
    fn is_new(&self, request: &Request, verified: &Verified) -> Result<(), Outcome> {
        // A command with a valid signature may use an id that an unsigned command used.
        let free = |known: &&Known| verified.is_ok() && !needs_signature(&known.kind);
        let Some(known) = self.memory.known(&request.id).filter(|known| !free(known)) else { return Ok(()) };
        if (&known.kind, &known.digest) == (&request.kind, &request.digest) {
            Err(Outcome::again(known))
        } else {
            Err(Outcome::rejected(Why::RepeatedId, "the id was used for another command"))
        }
    }

    fn remember(&mut self, request: &Request, verified: &Verified) {
        // Only a verified sequence counts: a forged one on a command without a signature would lock its issuer out.
        let signed = request.signed.as_ref().filter(|_| verified.is_ok());
        let known = Known {
            id: request.id.clone(),
            kind: request.kind.clone(),
            digest: request.digest.clone(),
            state: CommandState::Accepted,
            issuer: signed.map(|signed| signed.issuer.clone()).unwrap_or_default(),
            text: String::new(),
            why: String::new(),
            boot: self.rules.boot.clone(),
            acked: false,
        };
        let issuer = signed.map(|signed| (signed.issuer.as_str(), signed.iseq));
        let key = verified.as_deref().unwrap_or_default();
        self.memory.take(known, issuer.map(|(name, iseq)| (name, key, iseq)));
        if needs_signature(&request.kind) {
            let (kind, id) = (&request.kind, &request.id);
            let issuer = issuer.map_or("an unsigned request", |(name, _)| name);
            tracing::info!(kind, id, "command {kind} {id} accepted from {issuer}");
        }
    }

    /// Executes a command: that it runs is saved before.
    fn run(&mut self, request: Request, call: Call) {
        self.memory.became(&call.id, CommandState::Running, "");
        if needs_signature(&call.kind) {
            self.save(OnError::Stop(Stop::Run(call.clone())));
        }
        request.command.handle(self, call);
    }

    /// Begins a command whose moment came.
    pub(super) fn run_waiting(&mut self) -> bool {
        let now_ns = self.now_ns();
        let Some(at) = self.waiting.iter().position(|waiting| waiting.due_ns <= now_ns) else { return false };
        let Waiting { request, respond, .. } = self.waiting.swap_remove(at);
        let call = Call { kind: request.kind.clone(), id: request.id.clone(), respond, ticket: None };
        if request.expires_ms.is_some_and(|at| self.now_ms() >= at) {
            self.finish(call, &Outcome::new(CommandState::Expired, "it came too late"));
        } else {
            self.run(request, call);
        }
        true
    }

    /// Checks signature, issuer, sequence and freshness.
    fn authorise(&self, request: &Request, verified: &Verified, nonce: &str) -> Result<(), Refusal> {
        if !needs_signature(&request.kind) {
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
        let mut distrusted = false;
        match &request.signed {
            None if self.rules.allow_unsigned => {}
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
        if (self.now.stamp.clk != Clk::Sync || distrusted) && request.nonce.as_deref() != Some(nonce) {
            let why = if distrusted {
                "this device lost what it remembered of commands"
            } else {
                "this device's clock is not synchronised"
            };
            return refuse(Why::Nonce, format!("{why}; the command must echo the nonce of up/birth"));
        }
        Ok(())
    }

    /// Publishes the result of a command that is not executed, within the rate limit.
    pub(super) fn refuse(&mut self, call: Call, outcome: &Outcome, verified: bool) {
        let now_ns = self.now_ns();
        let intake = if verified { &mut self.verified } else { &mut self.others };
        let within = intake.refusals.take(now_ns);
        if !outcome.repeated {
            self.act(Action::CountRefused);
        }
        if within {
            // `commands.refused` reports a flood, instead of one line for each command.
            if let Some(why) = outcome.why.filter(|why| *why != Why::Busy && !outcome.repeated) {
                let (kind, id) = (&call.kind, &call.id);
                tracing::warn!(kind, id, "command {kind} {id} rejected: {}: {}", why.word(), outcome.text);
            }
            self.result(&call, outcome);
        } else {
            self.unanswered += 1;
        }
        self.settle(call.ticket);
        // The response topic gets one result: a repeat only gets its record.
        if within && !outcome.repeated {
            self.respond(&call, outcome);
        }
    }

    /// Publishes an event about commands without a result, once the flood is over.
    pub(super) fn tell_flood(&mut self) {
        let now_ns = self.now_ns();
        let refusals = &mut self.others.refusals;
        refusals.fill(now_ns);
        if self.unanswered > 0 && refusals.tokens >= refusals.burst / 2.0 {
            let text = format!("{} commands were refused without an answer: too many at once", self.unanswered);
            self.event(crate::flow::event::Kind::CommandsRefused, "commands", &text);
            self.unanswered = 0;
        }
    }

    pub(super) fn settle(&mut self, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            self.act(Action::Settle(ticket));
        }
    }

    /// Publishes `up/res` of a command.
    pub(super) fn result(&mut self, call: &Call, outcome: &Outcome) {
        self.result_about(&call.kind, &call.id, outcome, None);
    }

    /// The same; `about`: what the number of the record is needed for beside the acknowledgement of a final result.
    pub(super) fn result_about(
        &mut self,
        kind: &str,
        id: &str,
        outcome: &Outcome,
        about: Option<super::action::About>,
    ) {
        use super::action::About;
        let ends = outcome.is_final() && needs_signature(kind);
        let about = about.unwrap_or(if ends { About::Final(id.into()) } else { About::Nothing });
        let (kind, id, outcome) = (kind.into(), id.into(), outcome.clone());
        self.act(Action::Publish(Record::Result { kind, id, outcome, about }));
    }

    /// Sends a result to the response topic of a command, if it has one. Only after its order is settled: the broker may close
    /// the connection on it, and would send the order again.
    pub(super) fn respond(&mut self, call: &Call, outcome: &Outcome) {
        if let Some(respond) = &call.respond {
            self.act(Action::Respond(respond.clone(), outcome.members(&call.kind, &call.id)));
        }
    }
}
