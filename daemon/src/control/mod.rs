//! Commands, the desired state, configurations on trial: a machine. `Control::on` turns an event into actions; it does no
//! I/O, reads no clock and starts no thread. `effects.rs` performs the actions in a thread and brings their results back.
//!
//! ```text
//!            ┌──────────── Event ◀──────────────┐
//!            ▼                                  │
//!   Control::on (intake, handlers, change,      │            link, outbox, disk, D-Bus
//!                trust, memory)                 │                     ▲
//!            └──── [Action, Action, …] ──▶ effects ──▶ jobs (models, system) ── threads
//!
//! accepted ─▶ running ─▶ success │ failed │ rolled_back          and at once: rejected │ expired
//! ```
//!
//! "Saved before done" is an order of actions: `Save` stands before what must not happen unsaved, and a list ends with the
//! action that failed. A command that ends the process (`restart`, `reboot`, a configuration that needs other stages) is
//! finished by the next process, from the saved state.

mod action;
mod args;
pub mod audit;
mod back;
mod bring;
mod bundles;
mod candidate;
mod change;
pub mod command;
pub mod command_state;
mod effects;
mod handlers;
mod intake;
mod jobs;
mod memory;
mod model_action;
mod models;
pub mod plans;
mod refusal;
pub mod request;
mod samples;
mod samples_args;
mod setup;
mod show;
mod slots;
mod system;
mod tell;
mod trial;
mod trust;
mod update;

#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod world;
#[cfg(test)]
mod world_disk;
#[cfg(test)]
mod world_models;

use std::collections::{BTreeSet, VecDeque};

pub use action::Leave;
pub use effects::Effects;
pub use jobs::floor;
pub use setup::{ControlSetup, Local, Machine, ReadLog, Slots, Want};
pub use trial::Trials;

use self::{
    action::{About, Action, Call, Event, Keys, Now, OnError, Record, Stop},
    change::Live,
    command::needs_signature,
    command_state::CommandState,
    intake::{Intake, Waiting},
    memory::Memory,
    plans::PlanEvent,
    tell::Outcome,
};
use crate::{
    config::Config,
    flow::{
        event::{COMMAND_FINISHED, Kind},
        order::{Arrived, LinkNews},
    },
    limits,
};

/// What control needs to know of the configuration and of this run.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Name of the site.
    pub site: String,
    /// Name of the device.
    pub id: String,
    /// Cohorts of the device.
    pub cohorts: Vec<String>,
    /// Commands without a signature are accepted.
    pub allow_unsigned: bool,
    /// A command for many devices begins within so many seconds.
    pub jitter_s: u64,
    /// Names of the alarms.
    pub alarms: Vec<String>,
    /// Names of the pipelines, and whether their model is calibrated.
    pub pipelines: Vec<(String, bool)>,
    /// Why the remote layer is not in use.
    pub set_aside: Vec<String>,
    /// A keyset is configured.
    pub keyset: bool,
    /// Id of this boot.
    pub boot: String,
    /// Id of this process.
    pub process: String,
    /// Plans are obeyed.
    pub plans: bool,
}

impl Rules {
    fn of(config: &Config, boot: &str, process: &str) -> Self {
        let calibrated = |p: &crate::config::Pipeline| {
            (p.name.clone(), p.model.manifest.calibration.is_some() || p.budget.is_some())
        };
        Self {
            site: config.device.site.clone(),
            id: config.device.id.clone(),
            cohorts: config.device.cohorts.clone(),
            allow_unsigned: config.commands.allow_unsigned,
            jitter_s: config.commands.jitter_s,
            alarms: config.alarms.iter().map(|alarm| alarm.name.clone()).collect(),
            pipelines: config.pipelines.iter().map(calibrated).collect(),
            set_aside: config.set_aside.clone(),
            keyset: config.commands.keyset.is_some(),
            boot: boot.to_owned(),
            process: process.to_owned(),
            plans: config.commands.plans,
        }
    }
}

/// What control decides, and the state that it decides from.
#[derive(Debug)]
pub struct Control {
    rules: Rules,
    random: fastrand::Rng,
    /// The moment of the event that is handled.
    now: Now,
    /// What is to be done about it.
    actions: Vec<Action>,
    link: LinkNews,
    /// The connection with which `up/reported` was published last.
    reported_on: u64,
    keys: Keys,
    /// When an unreadable keyset was read last, ns since boot.
    keys_ns: u64,
    memory: Memory,
    /// Rate limits, separate for verified and for other commands: a flood of unsigned commands does not delay signed ones.
    verified: Intake,
    others: Intake,
    /// Commands rejected without a result since the last event.
    unanswered: u64,
    waiting: Vec<Waiting>,
    /// Final results that the broker has not acknowledged: number of the record, id.
    unacked: VecDeque<(u64, String)>,
    live: Option<Live>,
    /// The configuration's trial could not be read; when it was read last.
    trial_unread_ns: Option<u64>,
    /// A desired state that arrived while another change was on trial.
    later: Option<Arrived>,
    generation: u64,
    /// Digest of the remote layer in use; without one, the digest of an empty text.
    in_use: String,
    /// `model.update_stale` was published.
    stale_told: bool,
    /// At the start: ids whose results are in the audit log.
    audited: BTreeSet<String>,
    /// What is not saved of plans, and what came while the memory could not be read.
    plans: plans::Plans,
    plans_later: Vec<Arrived>,
    /// When an order arrived last, ns since boot.
    arrived_ns: u64,
    /// The process, or this run of it, is about to end: later orders are left to the next one.
    leaving: bool,
}

impl Control {
    /// A machine that knows nothing yet: `Event::Began` comes first. `seed`: for the moments of commands for many devices.
    pub fn new(rules: Rules, now: Now, seed: u64) -> Self {
        let plans = plans::Plans::new(plans::Rules {
            site: rules.site.clone(),
            device: rules.id.clone(),
            cohorts: rules.cohorts.clone(),
        });
        Self {
            plans,
            plans_later: Vec::new(),
            arrived_ns: 0,
            rules,
            random: fastrand::Rng::with_seed(seed),
            now,
            actions: Vec::new(),
            link: LinkNews::default(),
            reported_on: 0,
            keys: Keys { trusted: Err("the keyset is not read yet".into()), trouble: None },
            keys_ns: now.stamp.boot_ns,
            memory: Memory::new(needs_signature),
            verified: Intake::new(limits::VERIFIED_PER_S, limits::VERIFIED_BURST),
            others: Intake::new(limits::COMMANDS_PER_S, limits::COMMANDS_BURST),
            unanswered: 0,
            waiting: Vec::new(),
            unacked: VecDeque::new(),
            live: None,
            trial_unread_ns: None,
            later: None,
            generation: 0,
            in_use: String::new(),
            stale_told: false,
            audited: BTreeSet::new(),
            leaving: false,
        }
    }

    /// What is to be done about this event, in this order.
    pub fn on(&mut self, now: Now, event: Event) -> Vec<Action> {
        self.now = now;
        match event {
            Event::Began { left, keys, in_use, ran_before } => {
                (self.keys, self.in_use) = (keys, in_use);
                self.began(left, ran_before);
            }
            // The order stays unsettled, and the broker sends it again.
            Event::Arrived(_) if self.leaving => {}
            Event::Arrived(arrived) => self.arrived(arrived),
            Event::Tick(link, acked) => self.tick(link, acked),
            Event::Reread(left) => self.reread(left),
            Event::TrialRead(found) => self.trial_read(found),
            Event::KeysRead(keys) => self.keys_read(keys),
            Event::KeysTaken(call, taken) => self.keys_taken(call, taken),
            Event::Numbered(about, seq) => self.numbered(about, seq),
            Event::Done(call, outcome) => self.done(call, outcome),
            Event::Compared(change, compared) => self.compared(change, compared),
            Event::Committed(trial, changed) => self.committed(&trial, changed),
            Event::Job(news) => self.job(news),
            Event::Failed(stop, why) => self.failed(stop, why),
        }
        std::mem::take(&mut self.actions)
    }

    /// Whether this run is about to end.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// The memory as it is saved at the end: with what the broker acknowledged.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Handles what is due. At most one of those that can fail in a turn, and last: its failure ends the list.
    fn tick(&mut self, link: LinkNews, acked: u64) {
        self.link = link;
        while let Some((_, id)) = self.unacked.front().filter(|(seq, _)| *seq <= acked) {
            // The mark is saved with the next change of the memory.
            self.memory.acked(id);
            self.unacked.pop_front();
        }
        if self.leaving {
            return;
        }
        self.look_at_keys();
        self.look_at_channel();
        self.tell_flood();
        if self.memory.is_due(self.now_ns()) {
            return self.act(Action::Reread);
        }
        if self.run_waiting() {
            return self.act(Action::Again);
        }
        if self.live.is_none()
            && let Some(arrived) = self.later.take()
        {
            let to = self.addressee(&arrived);
            return self.desired(&to, arrived, None);
        }
        self.look_at_trial();
        self.look_at_plans();
        self.report_again();
    }

    fn numbered(&mut self, about: About, seq: u64) {
        match about {
            About::Nothing => {}
            About::Proof => self.live.iter_mut().for_each(|live| live.proof_seq = Some(seq)),
            About::Plan(id) => self.plans(PlanEvent::Probed(id, seq)),
            About::Final(id) => {
                while self.unacked.len() >= limits::COMMANDS_KNOWN {
                    self.unacked.pop_front();
                }
                self.unacked.push_back((seq, id));
            }
        }
    }

    /// An action that must not fail failed: nothing that stood behind it was done.
    fn failed(&mut self, stop: Stop, why: String) {
        // The end of this run stood behind it.
        self.leaving = false;
        match stop {
            // A command that cannot be saved is not executed, because it could be executed twice.
            Stop::Accept(mut call, ticket) => {
                call.ticket = call.ticket.or(ticket);
                self.waiting.retain(|waiting| waiting.request.id != call.id);
                self.memory.became(&call.id, CommandState::Failed, &why);
                self.refuse(call, &Outcome::failed(why), true);
            }
            Stop::Run(call) => self.finish(call, &Outcome::failed(why)),
            Stop::Desired(version, ticket) => {
                // Not saved, so not applied. The next connection delivers the retained message again.
                tracing::error!("desired state {version} is not applied: {why}; the next connection tries again");
                self.settle(ticket);
            }
            Stop::Learn => self.plans_not_learnt(&why),
            Stop::Start(id) => self.plan_not_started(id, &why),
            Stop::Begin(trial) => self.not_begun(&trial, &why),
            Stop::Commit => {
                tracing::error!("{why}; rolling back to the previous configuration");
                self.put_back(&why);
            }
            Stop::PutBack(trial, reason, generation) => {
                // The trial's file stays on the disk: another process rolls back, or this one does at the next attempt.
                tracing::error!("{why}; the next change or the next start tries again");
                self.after_put_back(&trial, &reason, generation, false);
            }
        }
    }

    /// Ends a command: saves its final state, then publishes the result.
    fn finish(&mut self, call: Call, outcome: &Outcome) {
        if self.put_plan_off(&call, outcome) {
            return;
        }
        self.memory.became(&call.id, outcome.state, &outcome.text);
        if let Some(why) = outcome.why {
            self.memory.rejected(&call.id, why);
        }
        let (kind, id) = (&call.kind, &call.id);
        if needs_signature(kind) {
            self.save(OnError::Log(format!("command {kind} {id}: a restart may publish another result")));
        }
        let (message_id, state) = (COMMAND_FINISHED, outcome.state.word());
        let text = if outcome.text.is_empty() { String::new() } else { format!(": {}", outcome.text) };
        tracing::info!(message_id, kind, id, state, "command {kind} {id} finished: {state}{text}");
        self.audit_result(&call.id, outcome);
        self.result(&call, outcome);
        self.settle(call.ticket);
        self.respond(&call, outcome);
    }

    /// The entry of a final result, before it is published.
    fn audit_result(&mut self, id: &str, outcome: &Outcome) {
        let Some(known) = self.memory.known(id).filter(|known| audit::is_entry(&known.kind, outcome.state)) else {
            return;
        };
        self.act(Action::Audit(audit::Act::command(known, outcome.state, &outcome.text)));
    }

    fn save(&mut self, or: OnError) {
        let saved = self.memory.to_save().map(Box::new);
        self.act(Action::Save(saved, or));
    }

    fn event(&mut self, kind: Kind, subject: &str, text: &str) {
        self.act(Action::Publish(Record::Event(kind, subject.into(), text.into())));
    }

    /// `up/reported`, retained.
    fn report(&mut self) {
        let mut members = tell::reported(self.memory.wish(), &self.in_use, &self.rules.set_aside);
        if self.rules.plans {
            members.insert("plans".into(), self.plans.reported(self.memory.plans()));
        }
        self.act(Action::Publish(Record::Reported(members)));
    }

    /// Once with each connection, where plans are obeyed: a broker that was killed has lost what it kept, and what was reported in an
    /// outage is no longer kept by any. A controller that starts then would not know which devices came to their end.
    fn report_again(&mut self) {
        // In a turn of its own: what can fail stands last in a list of actions.
        let is_new = self.actions.is_empty() && self.link.subscribed && self.link.session != self.reported_on;
        if is_new && self.rules.plans && self.memory.unread().is_none() {
            self.reported_on = self.link.session;
            self.report();
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn leave(&mut self, how: Leave) {
        self.leaving = true;
        self.act(Action::Leave(how));
    }

    /// SITE/DEVICE.
    fn device(&self) -> String {
        format!("{}/{}", self.rules.site, self.rules.id)
    }

    fn now_ns(&self) -> u64 {
        self.now.stamp.boot_ns
    }

    /// The time, or a bound below it, ms since 1970.
    fn now_ms(&self) -> i64 {
        self.now.stamp.wall_ms.unwrap_or(0).max(self.now.floor_ms)
    }
}
