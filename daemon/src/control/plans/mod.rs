//! Rollout plans on the device, as a machine: what is to be done about a plan, a gate, a halt, or the passing of time. No I/O;
//! `desk.rs` verifies signatures and performs the actions, as a part of `Control`.
//!
//! ```text
//! plan ─▶ Waiting ─ gates, hold, spread ─▶ its turn ─ link, clock, others ─▶ Probe: `accepted` ─▶ the broker acknowledges it
//!            └─▶ Skipped (outside, expired)                                    ─▶ Save, Start ─▶ Running ─▶ as the command ends
//! ```
//!
//! What is saved (`Saved`) is part of the memory of commands: that a plan starts, and that its command was accepted, is one
//! write. So no crash lies between the two. Docs: `docs/reference/plans.md`.

mod desk;
mod entry;
mod plan;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use super::refusal::{Refusal, Why};
pub use entry::{Because, State};
pub use plan::{Kind, Limits, Order, Plan, Wave, hash, is_name, is_secret, position, secret};

pub use super::command_state::CommandState;
use crate::{flow::Clk, host::Defence, limits};
use entry::{Entry, Standing, Told};

/// What the machine needs to know of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Name of the site.
    pub site: String,
    /// Name of the device.
    pub device: String,
    /// Cohorts of the device.
    pub cohorts: Vec<String>,
}

/// The moment of an event, and how things stand at it.
pub struct At<'a> {
    /// ns since boot.
    pub now_ns: u64,
    /// The time, or a bound below it, ms since 1970.
    pub now_ms: i64,
    /// What the time is worth.
    pub clk: Clk,
    /// The connection, if all subscriptions were granted on it.
    pub session: Option<u64>,
    /// Highest result that was acknowledged on this connection.
    pub acked: u64,
    /// Everything that arrived was handled.
    pub quiet: bool,
    /// A change of the configuration is not confirmed, or this run is about to end.
    pub busy: bool,
    /// The key of this name with the role `rollout`.
    pub key_of: &'a dyn Fn(&str) -> Option<&'a str>,
}

impl At<'_> {
    /// The time, if it is known.
    fn known_ms(&self) -> Option<i64> {
        (self.clk != Clk::Unset).then_some(self.now_ms)
    }
}

/// A gate or halt, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// A secret of a wave, counted from 1.
    Gate {
        /// Name of the plan.
        plan: String,
        /// The wave.
        wave: usize,
        /// The secret.
        secret: String,
    },
    /// The halt secret.
    Halt {
        /// Name of the plan.
        plan: String,
        /// The secret.
        secret: String,
    },
    /// A signed halt or resume, and the key that signed it.
    Signed {
        /// The order.
        order: Order,
        /// The key, as the keyset writes it.
        key: String,
    },
}

impl Word {
    /// Name of the plan.
    pub fn plan(&self) -> &str {
        match self {
            Self::Gate { plan, .. } | Self::Halt { plan, .. } => plan,
            Self::Signed { order, .. } => &order.plan,
        }
    }

    /// Sequence of the plan, where it is said.
    fn seq(&self) -> Option<u64> {
        match self {
            Self::Gate { .. } | Self::Halt { .. } => None,
            Self::Signed { order, .. } => Some(order.seq),
        }
    }
}

/// What the machine can learn.
#[derive(Debug)]
pub enum PlanEvent {
    /// A plan whose signature was verified: the key, the digest of its text.
    Plan(Box<Plan>, String, String),
    /// A gate or halt. The signature of a signed one was verified.
    Word(Word),
    /// Time passes.
    Tick,
    /// The result that is the probe for this start got this number.
    Probed(String, u64),
    /// A start could not be saved; nothing was done.
    Unsaved(String),
    /// The command was rejected, because another job is in progress; nothing was done.
    PutOff(String, String),
    /// What was learnt could not be saved.
    NotLearnt,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanAction {
    /// Logs that a message was rejected: what it was, why.
    Refuse(String, Refusal),
    /// Saves what was learnt.
    Save,
    /// Publishes the result `accepted` of this command and reports its number.
    Probe(Kind, String),
    /// Saves that the plan whose command has this id starts, and starts the command.
    Start(String),
    /// Publishes `up/reported`.
    Report,
}

/// What is saved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// In the order in which they arrived.
    entries: Vec<Entry>,
    /// Gates and halts without their plan.
    early: VecDeque<Word>,
    /// The memory was lost: only plans that were issued after this count, ms since 1970. `None` inside: the time is not known.
    #[serde(default)]
    after: Option<After>,
}

/// When the memory was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct After {
    ms: Option<i64>,
}

impl Saved {
    /// Of a device that lost its memory: a plan that it may have run does not count again.
    pub fn lost() -> Self {
        Self { after: Some(After { ms: None }), ..Self::default() }
    }

    /// The plans.
    pub(in crate::control) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The command of this id came to this state.
    pub fn became(&mut self, id: &str, state: CommandState, text: &str) {
        if let Some(entry) = self.by_id(id).filter(|entry| entry.state == State::Running) {
            entry.became(state, text);
        }
    }

    fn by_id(&mut self, id: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.plan.id() == id)
    }

    /// `plans` of `up/reported`. Of two plans with one name: the one that runs, else the newer.
    pub fn reported(&self, rules: &Rules) -> Value {
        let mut members = Map::new();
        let runs = |entry: &&Entry| entry.state == State::Running;
        let all = self.entries.iter();
        for entry in all.clone().filter(|entry| !runs(entry)).chain(all.filter(runs)) {
            members.insert(entry.plan.name.clone(), entry.reported(rules));
        }
        Value::Object(members)
    }
}

/// The probe for a start: a result whose acknowledgement shows that the connection is alive.
#[derive(Debug)]
struct Probe {
    id: String,
    session: u64,
    since_ns: u64,
    seq: Option<u64>,
}

/// The machine: what is not saved.
#[derive(Debug, Default)]
pub struct Plans {
    rules: Rules,
    /// The connection that is listened to, and since when.
    listening: Option<(u64, u64)>,
    probe: Option<Probe>,
    /// Starts that were put off, until then, and why.
    put_off: BTreeMap<String, (u64, String)>,
    /// What was learnt is not on the disk.
    unsaved: bool,
    /// Tokens for gates and halts without a plan, and when they were counted.
    early: (f64, u64),
    /// What was reported last.
    told: Vec<Told>,
    actions: Vec<PlanAction>,
}

impl Plans {
    /// A machine that knows nothing of this run yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// `plans` of `up/reported`.
    pub fn reported(&self, saved: &Saved) -> Value {
        saved.reported(&self.rules)
    }

    /// Whether a plan is for this device.
    pub fn is_for_us(&self, plan: &Plan) -> bool {
        plan.is_for(&self.rules.site, &self.rules.device, &self.rules.cohorts)
    }

    /// What is to be done about this event, in this order.
    pub fn on(&mut self, saved: &mut Saved, at: &At<'_>, event: PlanEvent) -> Vec<PlanAction> {
        match event {
            PlanEvent::Plan(plan, key, digest) => self.plan(saved, at, *plan, key, digest),
            PlanEvent::Word(word) => self.word(saved, at, word),
            PlanEvent::Tick => self.tick(saved, at),
            PlanEvent::Probed(id, seq) => {
                if let Some(probe) = self.probe.as_mut().filter(|probe| probe.id == id) {
                    probe.seq = Some(seq);
                }
            }
            PlanEvent::Unsaved(id) => self.put_off(saved, at, &id, "that it starts could not be saved"),
            PlanEvent::PutOff(id, text) => {
                self.put_off(saved, at, &id, &text);
                self.actions.push(PlanAction::Save);
            }
            PlanEvent::NotLearnt => self.unsaved = true,
        }
        std::mem::take(&mut self.actions)
    }

    fn refuse(&mut self, what: String, why: Why, text: impl Into<String>) {
        self.actions.push(PlanAction::Refuse(what, Refusal(why, text.into())));
    }

    /// What was learnt is saved; what could not be saved before, too.
    fn save(&mut self) {
        self.unsaved = false;
        self.actions.push(PlanAction::Save);
    }

    fn put_off(&mut self, saved: &mut Saved, at: &At<'_>, id: &str, text: &str) {
        if let Some(entry) = saved.by_id(id) {
            entry.state = State::Waiting;
        }
        let until_ns = at.now_ns.saturating_add(limits::PLAN_AGAIN.as_nanos() as u64);
        self.put_off.insert(id.to_owned(), (until_ns, text.to_owned()));
    }

    /// Takes a plan, or refuses it. The same one again is nothing new.
    fn plan(&mut self, saved: &mut Saved, at: &At<'_>, plan: Plan, key: String, digest: String) {
        let (name, seq) = (plan.name.clone(), plan.seq);
        let what = format!("plan {name}");
        let high = Self::high(saved, &name, at);
        if let Some(same) = saved.entries.iter().find(|entry| entry.digest == digest && entry.key == key) {
            if self.unsaved && same.plan.name == name {
                self.save();
            }
            return;
        }
        let of_it = |entry: &&Entry| entry.plan.name == name;
        let used = saved.entries.iter().filter(of_it).any(|entry| entry.plan.seq == seq);
        if Defence::PlanReplay.stands() {
            if seq <= high || used {
                return self.refuse(what, Why::Replayed, format!("seq {seq} is not above {high}"));
            }
            if let Some(After { ms }) = saved.after
                && ms.is_none_or(|ms| plan.issued_ms <= ms)
            {
                let text = "this device lost what it knew of plans, and this one was signed before; sign it again";
                return self.refuse(what, Why::Replayed, text);
            }
        }
        if at.now_ms >= plan.expires_ms {
            return self.refuse(what, Why::Invalid, "it has expired");
        }
        // What ended or was replaced stays: it must not begin again, without its halt, if the key of a newer one is dropped.
        let stays = |entry: &&Entry| !of_it(entry) || entry.state != State::Waiting;
        let bytes: usize = saved.entries.iter().filter(stays).map(|entry| entry.plan.artifact.len()).sum();
        let over = |entry: &Entry| entry.state.is_final() && (at.now_ms >= entry.plan.expires_ms || of_it(&entry));
        let full = saved.entries.len() >= limits::PLANS;
        if full && !saved.entries.iter().any(over) {
            let text = format!("{} plans are remembered until they expire", limits::PLANS);
            return self.refuse(what, Why::Busy, text);
        }
        if bytes + plan.artifact.len() > limits::PLANS_BYTES {
            return self.refuse(what, Why::Busy, "the plans that have not ended leave no room for it");
        }
        if full && let Some(place) = saved.entries.iter().position(over) {
            saved.entries.remove(place);
        }
        for entry in saved.entries.iter_mut().filter(|entry| !stays(&&**entry)) {
            entry.end(State::Skipped, Some(Because::OtherPlan), "a newer one replaced it");
        }
        let entry = Entry::new(plan, key, digest);
        let wave = entry.wave(&self.rules).map_or_else(|| "no wave".to_owned(), |wave| format!("wave {}", wave + 1));
        let (waves, kind) = (entry.plan.waves.len(), entry.plan.kind.command());
        tracing::info!(
            "plan {name} {seq} accepted from {}: {kind}; this device is in {wave} of {waves}",
            entry.plan.issuer
        );
        saved.entries.push(entry);
        // What came before it counts now, or waits for a later one.
        for word in std::mem::take(&mut saved.early) {
            let over = word.plan() == name && word.seq().is_some_and(|of| of <= seq);
            if !self.obey(saved, at, &word) && !over {
                saved.early.push_back(word);
            }
        }
        self.save();
    }

    /// The highest sequence of a plan of this name that a trusted key signed.
    fn high(saved: &Saved, name: &str, at: &At<'_>) -> u64 {
        let of_it = saved.entries.iter().filter(|entry| entry.plan.name == name);
        let trusted = of_it.filter(|entry| (at.key_of)(&entry.plan.issuer) == Some(entry.key.as_str()));
        trusted.map(|entry| entry.plan.seq).max().unwrap_or(0)
    }

    /// Obeys a gate or halt; without its plan it is remembered.
    fn word(&mut self, saved: &mut Saved, at: &At<'_>, word: Word) {
        if self.obey(saved, at, &word) {
            return;
        }
        let name = word.plan().to_owned();
        let newest = saved.entries.iter().filter(|entry| entry.plan.name == name).map(|entry| entry.plan.seq).max();
        if let Some(seq) = newest
            && word.seq() <= Some(seq)
        {
            let (what, text) = match &word {
                Word::Gate { plan, wave, .. } => (format!("gate {wave} of plan {plan}"), "its secret does not open it"),
                Word::Halt { plan, .. } => (format!("halt of plan {plan}"), "it is not its halt secret"),
                Word::Signed { order, .. } => (format!("signed halt of plan {}", order.plan), "it is for another one"),
            };
            self.refuse(what, Why::Invalid, format!("{text} (the plan here has seq {seq})"));
            // A secret may be that of a plan that comes later: a halt must not be lost because it came first.
            if word.seq().is_some() {
                return;
            }
        }
        if saved.early.contains(&word) {
            if self.unsaved {
                self.save();
            }
            return;
        }
        if let Word::Signed { order, .. } = &word
            && order.to.split('/').next() != Some(self.rules.site.as_str())
        {
            return;
        }
        let (tokens, counted_ns) = self.early;
        let passed_s = at.now_ns.saturating_sub(counted_ns) as f64 / 1e9;
        let most = limits::PLAN_EARLY as f64;
        let tokens = if counted_ns == 0 { most } else { (tokens + passed_s * limits::PLAN_EARLY_PER_S).min(most) };
        self.early = (tokens, at.now_ns.max(1));
        if tokens < 1.0 {
            return self.refuse(format!("message about plan {name}"), Why::Busy, "too many come without their plan");
        }
        self.early.0 -= 1.0;
        while saved.early.len() >= limits::PLAN_EARLY {
            saved.early.pop_front();
        }
        saved.early.push_back(word);
        self.save();
    }

    /// Whether a plan is here that this belongs to; it is obeyed then, or refused.
    fn obey(&mut self, saved: &mut Saved, at: &At<'_>, word: &Word) -> bool {
        let Some(entry) = saved.entries.iter_mut().find(|entry| belongs(entry, word)) else { return false };
        let (name, seq) = (entry.plan.name.clone(), entry.plan.seq);
        let changed = match word {
            Word::Gate { wave, .. } => {
                let gate = &mut entry.gates[wave - 1];
                let new = !std::mem::replace(&mut gate.open, true);
                if new {
                    gate.since_ms = (at.clk == Clk::Sync).then_some(at.now_ms);
                    tracing::info!("plan {name} {seq}: gate {wave} is open");
                }
                new
            }
            Word::Halt { .. } => {
                let new = !std::mem::replace(&mut entry.halted, true);
                if new {
                    tracing::warn!("plan {name} {seq} is halted by its secret");
                }
                new
            }
            Word::Signed { order, key } => {
                if (at.key_of)(&order.issuer) != Some(key.as_str()) || order.to != entry.plan.to {
                    let text = "its key has lost its role, or it is for another addressee";
                    self.refuse(format!("signed halt of plan {name}"), Why::NotAddressed, text);
                    return true;
                }
                if order.n <= entry.n {
                    // The retained message comes again with each connection.
                    if order.n < entry.n {
                        let text = format!("n {} is not above {}", order.n, entry.n);
                        self.refuse(format!("signed halt of plan {name}"), Why::Replayed, text);
                    }
                    false
                } else {
                    entry.n = order.n;
                    entry.halted = order.resume.is_none();
                    if let Some(next) = &order.resume {
                        entry.halt.clone_from(next);
                    }
                    let word = if entry.halted { "halted" } else { "resumed" };
                    tracing::warn!("plan {name} {seq} is {word} by {}", order.issuer);
                    true
                }
            }
        };
        if changed || self.unsaved {
            self.save();
        }
        true
    }

    fn tick(&mut self, saved: &mut Saved, at: &At<'_>) {
        self.listening = match (at.session, self.listening) {
            (Some(session), Some((before, since_ns))) if session == before => Some((session, since_ns)),
            (session, _) => session.map(|session| (session, at.now_ns)),
        };
        self.put_off.retain(|_, (until_ns, _)| *until_ns > at.now_ns);
        let mut changed = stamp(saved, at);
        let mut candidate = None;
        let running = saved.entries.iter().filter(|entry| entry.state == State::Running);
        let mut taken: Vec<Kind> = running.map(|entry| entry.plan.kind).collect();
        for (place, entry) in saved.entries.iter_mut().enumerate() {
            match entry.standing(&self.rules, at) {
                Standing::Skip(because) => {
                    entry.end(State::Skipped, Some(because), "");
                    entry.show((State::Skipped, Some(because)), "", at.known_ms());
                    changed = true;
                }
                Standing::Running | Standing::Ended => {
                    let text = entry.text.clone();
                    entry.show((entry.state, entry.why), &text, at.known_ms());
                }
                Standing::Not(state, because, text) => entry.show((state, Some(because)), &text, at.known_ms()),
                Standing::Turn => {
                    let stopped = self.stopped(entry, at, &taken);
                    taken.push(entry.plan.kind);
                    match stopped {
                        Some((because, text)) => entry.show((State::Blocked, Some(because)), &text, at.known_ms()),
                        None => candidate = candidate.or(Some(place)),
                    }
                }
            }
        }
        let started = self.look_at_probe(saved, at, candidate);
        let told: Vec<Told> = saved.entries.iter().map(Entry::told).collect();
        if self.told != told {
            self.told = told;
            // A start is reported when it is saved.
            if !started {
                self.actions.push(PlanAction::Report);
            }
        }
        if changed && !started {
            self.save();
        }
    }

    /// Why a plan whose turn it is does not start now. `taken`: kinds of which another plan comes first.
    fn stopped(&self, entry: &Entry, at: &At<'_>, taken: &[Kind]) -> Option<(Because, String)> {
        if taken.contains(&entry.plan.kind) {
            return Some((Because::OtherPlan, String::new()));
        }
        if let Some((_, text)) = self.put_off.get(&entry.plan.id()) {
            return Some((Because::Busy, text.clone()));
        }
        if at.busy {
            return Some((Because::Busy, "a change of the configuration is not confirmed yet".into()));
        }
        let fresh_ns = entry.plan.freshness_s * 1_000_000_000;
        let fresh = |since_ns: u64| at.now_ns.saturating_sub(since_ns) >= fresh_ns || !Defence::PlanFresh.stands();
        let listens = self.listening.is_some_and(|(_, since_ns)| fresh(since_ns));
        (!listens).then(|| (Because::Link, String::new()))
    }

    /// Starts the first plan whose turn it is, once the broker has acknowledged its probe. Returns whether it did.
    fn look_at_probe(&mut self, saved: &mut Saved, at: &At<'_>, candidate: Option<usize>) -> bool {
        let entry = candidate.and_then(|place| saved.entries.get_mut(place));
        let (Some(entry), Some((session, _))) = (entry, self.listening) else {
            self.probe = None;
            return false;
        };
        // What arrived and was not handled may be a halt.
        if !at.quiet {
            return false;
        }
        let id = entry.plan.id();
        let lost = |since_ns: u64| at.now_ns.saturating_sub(since_ns) >= limits::PLAN_AGAIN.as_nanos() as u64;
        match &self.probe {
            Some(probe) if probe.id == id && probe.session == session && !lost(probe.since_ns) => {
                if probe.seq.is_none_or(|seq| at.acked < seq) {
                    return false;
                }
            }
            _ => {
                self.actions.push(PlanAction::Probe(entry.plan.kind, id.clone()));
                self.probe = Some(Probe { id, session, since_ns: at.now_ns, seq: None });
                return false;
            }
        }
        self.probe = None;
        (entry.state, entry.why) = (State::Running, None);
        entry.show((State::Running, None), "", at.known_ms());
        self.actions.push(PlanAction::Start(id));
        true
    }
}

/// Times that could not be known before, and plans that are forgotten. Returns whether anything changed.
fn stamp(saved: &mut Saved, at: &At<'_>) -> bool {
    if at.clk != Clk::Sync {
        return false;
    }
    let mut changed = false;
    let gates = saved.entries.iter_mut().flat_map(|entry| &mut entry.gates);
    for gate in gates.filter(|gate| gate.open && gate.since_ms.is_none()) {
        gate.since_ms = Some(at.now_ms);
        changed = true;
    }
    if let Some(After { ms: ms @ None }) = &mut saved.after {
        // A plan may be issued so far ahead.
        *ms = Some(at.now_ms.saturating_add(limits::ISSUED_AHEAD_MS));
        changed = true;
    }
    let before = saved.entries.len();
    let over = |entry: &Entry| at.now_ms.saturating_sub(entry.plan.expires_ms) > limits::PLAN_FORGET_MS;
    saved.entries.retain(|entry| !(entry.state.is_final() && over(entry)));
    changed || saved.entries.len() != before
}

/// Whether a gate or halt belongs to this plan.
fn belongs(entry: &Entry, word: &Word) -> bool {
    let plan = &entry.plan;
    match word {
        Word::Gate { plan: name, wave, secret } => {
            let gate = wave.checked_sub(1).and_then(|wave| plan.waves.get(wave));
            let opens = |wave: &Wave| wave.gate == hash(secret) || !Defence::PlanGate.stands();
            plan.name == *name && gate.is_some_and(opens)
        }
        Word::Halt { plan: name, secret } => plan.name == *name && entry.halt == hash(secret),
        Word::Signed { order, .. } => plan.name == order.plan && plan.seq == order.seq,
    }
}
