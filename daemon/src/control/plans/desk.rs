//! Plans within `Control`: reads messages about them, verifies who signed them, and performs what the machine of plans decides.

use super::{At, Order, Plan, PlanAction, PlanEvent, State, Word, hash, plan};
use crate::{
    control::{
        Control,
        action::{About, Action, Call, OnError, Stop},
        command::{self, Command},
        command_state::CommandState,
        memory::Known,
        refusal::{Refusal, Why, malformed},
        request,
        tell::Outcome,
    },
    flow::order::{Arrived, Asked},
    limits,
};

/// A signed text and its signature.
type Signed = (String, String);

impl Control {
    /// A message about a plan. What is learnt of it is saved before the message is acknowledged.
    pub(in crate::control) fn plan_arrived(&mut self, arrived: Arrived) {
        let ticket = arrived.ticket;
        // An empty message says that a retained one was removed.
        if !self.rules.plans || arrived.payload.is_empty() {
            return self.settle(Some(ticket));
        }
        if self.memory.unread().is_some() {
            // Not acknowledged: after a kill the broker sends it again.
            if self.plans_later.len() < limits::PLANS_LATER {
                self.plans_later.push(arrived);
            }
            return;
        }
        match request::guarded(|| self.read_about_plan(&arrived)) {
            Ok(None) => {}
            Ok(Some(event)) => self.plans(event),
            Err(refusal) => self.refuse_about_plan(&what(&arrived.asked), &refusal),
        }
        self.settle(Some(ticket));
    }

    /// The memory of commands was read: handles what arrived meanwhile.
    pub(in crate::control) fn plans_came_later(&mut self) {
        for arrived in std::mem::take(&mut self.plans_later) {
            self.plan_arrived(arrived);
        }
    }

    /// Reads a message and verifies its signature. `None`: a plan that is here already.
    fn read_about_plan(&self, arrived: &Arrived) -> Result<Option<PlanEvent>, Refusal> {
        let text = request::checked(&arrived.payload)?;
        let signed = request::unwrap(text)?;
        match &arrived.asked {
            Asked::Plan { name } => {
                let signed = signed.ok_or_else(|| Refusal(Why::Unsigned, "a plan needs a signature".into()))?;
                self.read_plan(name, signed)
            }
            Asked::Gate { plan, wave } => {
                let (plan, wave, secret) = (plan.clone(), *wave, plan::secret(text)?);
                Ok(Some(PlanEvent::Word(Word::Gate { plan, wave, secret })))
            }
            Asked::Halt { plan } => match signed {
                Some(signed) => self.read_order(plan, &signed).map(Some),
                None => Ok(Some(PlanEvent::Word(Word::Halt { plan: plan.clone(), secret: plan::secret(text)? }))),
            },
            _ => Err(malformed("it is not about a plan")),
        }
    }

    fn read_plan(&self, name: &str, signed: Signed) -> Result<Option<PlanEvent>, Refusal> {
        let digest = hash(&signed.0);
        let known = self.memory.plans().entries().iter().find(|entry| entry.digest == digest);
        // Each connection brings it again. (What could not be saved is saved again with it.)
        if known.is_some_and(|entry| self.planner_key(&entry.plan.issuer) == Some(entry.key.as_str()))
            && !self.plans.unsaved
        {
            return Ok(None);
        }
        let plan = Plan::read(&signed.0)?;
        if plan.name != name {
            let text = format!("signed as plan `{}`, but sent as `{name}`", plan.name);
            return Err(Refusal(Why::NotAddressed, text));
        }
        if !self.plans.is_for_us(&plan) {
            return Err(Refusal(Why::NotAddressed, format!("it is for `{}`", plan.to)));
        }
        let key = self.planner(&plan.issuer, &signed)?;
        self.not_issued_ahead(Some(plan.issued_ms))?;
        if known.is_none() {
            let of_it =
                self.memory.plans().entries().iter().filter(|entry| entry.plan.name == name && entry.key == key);
            self.not_ahead("seq", plan.seq, of_it.map(|entry| entry.plan.seq).max().unwrap_or(0))?;
        }
        Ok(Some(PlanEvent::Plan(Box::new(plan), key, digest)))
    }

    fn read_order(&self, name: &str, signed: &Signed) -> Result<PlanEvent, Refusal> {
        let order = Order::read(&signed.0)?;
        if order.plan != name {
            let text = format!("signed for plan `{}`, but sent to `{name}`", order.plan);
            return Err(Refusal(Why::NotAddressed, text));
        }
        let key = self.planner(&order.issuer, signed)?;
        self.not_issued_ahead(Some(order.issued_ms))?;
        let of_it = self.memory.plans().entries().iter().find(|e| e.plan.name == name && e.plan.seq == order.seq);
        self.not_ahead("n", order.n, of_it.map_or(0, |entry| entry.n))?;
        Ok(PlanEvent::Word(Word::Signed { order, key }))
    }

    /// Verifies a signature by a key with the role `rollout`. Returns the key, as the keyset writes it.
    fn planner(&self, issuer: &str, (text, minisig): &Signed) -> Result<String, Refusal> {
        let keys = self.keys.trusted.as_ref().map_err(|why| Refusal(Why::BadSignature, why.clone()))?;
        match keys.planner(text, minisig).map_err(|why| Refusal(Why::BadSignature, why.into()))? {
            name if name == issuer => Ok(keys.planner_key(&name).unwrap_or_default().to_owned()),
            name => Err(Refusal(Why::BadSignature, format!("issuer is `{issuer}`, but `{name}` signed"))),
        }
    }

    fn planner_key(&self, name: &str) -> Option<&str> {
        self.keys.trusted.as_ref().ok()?.planner_key(name)
    }

    /// Logs a rejection; `commands.refused` reports a flood.
    fn refuse_about_plan(&mut self, what: &str, Refusal(why, text): &Refusal) {
        let now_ns = self.now_ns();
        self.act(Action::CountRefused);
        if self.others.refusals.take(now_ns) {
            tracing::warn!("reject {what}: {}: {text}", why.word());
        } else {
            self.unanswered += 1;
        }
    }

    /// What is due. Only if nothing else is done in this turn: what can fail stands last in a list of actions, and alone.
    pub(in crate::control) fn look_at_plans(&mut self) {
        if self.rules.plans && self.memory.unread().is_none() && self.actions.is_empty() {
            self.plans(PlanEvent::Tick);
        }
    }

    /// The machine of plans decides; its actions are performed.
    pub(in crate::control) fn plans(&mut self, event: PlanEvent) {
        let trusted = self.keys.trusted.as_ref().ok().cloned();
        let turn_ns = limits::CONTROL_TURN.as_nanos() as u64;
        let at = At {
            now_ns: self.now.stamp.boot_ns,
            now_ms: self.now.stamp.wall_ms.unwrap_or(0).max(self.now.floor_ms),
            clk: self.now.stamp.clk,
            session: self.link.subscribed.then_some(self.link.session),
            acked: self.link.acked,
            quiet: self.now.stamp.boot_ns.saturating_sub(self.arrived_ns) >= turn_ns,
            busy: self.live.is_some() || self.leaving,
            key_of: &|name| trusted.as_deref()?.planner_key(name),
        };
        for action in self.plans.on(self.memory.plans_mut(), &at, event) {
            match action {
                PlanAction::Refuse(what, refusal) => self.refuse_about_plan(&what, &refusal),
                PlanAction::Save => self.save(OnError::Stop(Stop::Learn)),
                PlanAction::Probe(kind, id) => {
                    let outcome = Outcome::new(CommandState::Accepted, "it starts when the broker acknowledges this");
                    self.result_about(kind.command(), &id, &outcome, Some(About::Plan(id.clone())));
                }
                PlanAction::Start(id) => self.start_plan(&id),
                PlanAction::Report => self.report(),
            }
        }
    }

    /// Starts the command of a plan: that it runs is saved before.
    fn start_plan(&mut self, id: &str) {
        let Some(entry) = self.memory.plans().entries().iter().find(|entry| entry.plan.id() == id) else { return };
        let plan = entry.plan.clone();
        let kind = plan.kind.command();
        let digest = hash(&format!("{kind}\n{}", plan.artifact));
        let command = match command_of(&plan) {
            Ok(command) => command,
            // It was read when it arrived; another version of this program may read it differently.
            Err(Refusal(_, why)) => {
                self.memory.became(id, CommandState::Rejected, &why);
                self.save(OnError::Log(format!("plan {} {}: a restart tries it again", plan.name, plan.seq)));
                return self.report();
            }
        };
        let (state, text, why) = (CommandState::Running, String::new(), String::new());
        let (issuer, boot) = (plan.issuer.clone(), self.rules.boot.clone());
        let known = Known { id: id.into(), kind: kind.into(), issuer, digest, state, text, why, boot, acked: false };
        self.memory.take(known, None);
        self.save(OnError::Stop(Stop::Start(id.into())));
        let (name, seq) = (&plan.name, plan.seq);
        tracing::info!(kind, id, "plan {name} {seq} starts {kind} here");
        self.act(Action::CountAccepted);
        let call = Call { kind: kind.into(), id: id.into(), respond: None, ticket: None };
        self.result(&call, &Outcome::new(CommandState::Running, format!("plan {name} {seq} of {}", plan.issuer)));
        self.report();
        command.handle(self, call);
    }

    /// What was learnt is not on the disk: it is saved with the next message, which the broker sends again.
    pub(in crate::control) fn plans_not_learnt(&mut self, why: &str) {
        tracing::error!("a message about plans could not be saved: {why}; it is not acknowledged to the broker");
        self.plans(PlanEvent::NotLearnt);
    }

    /// That a plan starts could not be saved: nothing was done, and it is tried again later.
    pub(in crate::control) fn plan_not_started(&mut self, id: String, why: &str) {
        tracing::error!("{id} does not start: {why}; it is tried again");
        self.memory.forget(&id);
        self.plans(PlanEvent::Unsaved(id));
    }

    /// Whether this is the command of a plan that was rejected because another job is in progress: it is tried again later.
    pub(in crate::control) fn put_plan_off(&mut self, call: &Call, outcome: &Outcome) -> bool {
        let busy = outcome.state == CommandState::Rejected && outcome.why == Some(Why::Busy);
        if !busy || !self.is_running_plan(&call.id) {
            return false;
        }
        tracing::info!("{} is put off: {}", call.id, outcome.text);
        self.memory.forget(&call.id);
        self.plans(PlanEvent::PutOff(call.id.clone(), outcome.text.clone()));
        true
    }

    /// At the start: a plan whose command is not remembered any more, and of which no job goes on, has failed.
    pub(in crate::control) fn plans_taken_up(&mut self, going: &[String]) {
        let running = self.memory.plans().entries().iter().filter(|entry| entry.state == State::Running);
        let ids: Vec<String> = running.map(|entry| entry.plan.id()).collect();
        for id in ids.into_iter().filter(|id| !going.contains(id)) {
            let (state, text) = match self.memory.known(&id) {
                Some(known) if known.state.is_final() => (known.state, known.text.clone()),
                Some(_) => continue,
                None => (CommandState::Failed, "its command is not remembered any more".into()),
            };
            self.memory.became(&id, state, &text);
        }
    }

    fn is_running_plan(&self, id: &str) -> bool {
        self.memory.plans().entries().iter().any(|entry| entry.plan.id() == id && entry.state == State::Running)
    }
}

/// What a message is, for the log.
fn what(asked: &Asked) -> String {
    match asked {
        Asked::Gate { plan, wave } => format!("gate {wave} of plan {plan}"),
        Asked::Halt { plan } => format!("halt of plan {plan}"),
        Asked::Plan { name } => format!("plan {name}"),
        _ => "message about a plan".into(),
    }
}

/// The command that this device runs for a plan.
fn command_of(plan: &Plan) -> Result<Command, Refusal> {
    let kind = plan.kind.command();
    let row = command::row(kind).ok_or_else(|| Refusal(Why::Unsupported, format!("no command is called `{kind}`")))?;
    command::read(row, &plan.artifact).map_err(|Refusal(why, text)| Refusal(why, format!("artifact: {text}")))
}
