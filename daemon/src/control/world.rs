//! A world for tests of `Control`: a disk that keeps what was saved, a broker that sends what was not settled again, a
//! clock that only the test moves. It performs actions as `effects.rs` does, in memory, and a crash can fall after
//! any of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    Control, Leave, Rules,
    action::{About, Action, Ask, Event, Going, JobNews, Keys, Left, Now, OnError, Record, Stop, Trusted, Which},
    audit::{self, Act},
    candidate::{Candidate, Changed},
    command::needs_signature,
    command_state::CommandState,
    memory::Saved,
    model_action::{ModelAction, ModelEvent, Moment},
    models::Models,
    refusal::{Refusal, Why},
    tell::Outcome,
    trial::{Asker, digest},
    world_disk::Disk,
};
use crate::{
    flow::{
        Clk, Stamp,
        order::{Addressee, Arrived, Asked, LinkNews, Respond, Ticket},
    },
    host::{Unloaded, clock::rfc3339_ms},
    model::error::KeysetError,
};

pub const NONCE: &str = "nonce";
const WALL_MS: i64 = 1_800_000_000_000;

/// Keys by name; a signature is `by:NAME`.
#[derive(Debug)]
pub struct TestKeys(pub BTreeMap<String, String>);

impl Trusted for TestKeys {
    fn signer(&self, _: &str, minisig: &str) -> Result<String, KeysetError> {
        let name = minisig.strip_prefix("by:").filter(|name| self.0.contains_key(*name));
        name.map(str::to_owned).ok_or_else(|| "no key of this device made the signature".into())
    }

    fn public(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn planner(&self, text: &str, minisig: &str) -> Result<String, KeysetError> {
        self.signer(text, minisig)
            .and_then(|name| self.planner_key(&name).map(|_| name.clone()).ok_or("no planner".into()))
    }

    fn planner_key(&self, name: &str) -> Option<&str> {
        name.starts_with("release").then(|| self.public(name))?
    }
}

/// A result as it was published.
#[derive(Debug, Clone)]
pub struct Published {
    pub seq: u64,
    pub kind: String,
    pub id: String,
    pub outcome: Outcome,
    /// The command had been saved when it was published.
    pub accepted: bool,
}

/// Two kinds of actions that a seeded fault swaps in each list that holds them in this order.
pub type Swap<A = Action> = (fn(&A) -> bool, fn(&A) -> bool);

/// Work that goes on beside control, until the story lets it end.
#[derive(Debug, Clone, PartialEq)]
pub enum Thread {
    Fetch {
        number: u64,
        sha256: String,
        size: u64,
    },
    Open {
        number: u64,
        sha256: String,
    },
    Prove {
        number: u64,
    },
    /// The engines run this bundle on trial.
    Watch {
        bundle: String,
    },
}

pub struct World {
    pub disk: Disk,
    pub control: Control,
    pub now: Now,
    pub link: LinkNews,
    pub keys: BTreeMap<String, String>,
    pub rules: Rules,
    /// Every action, as it was performed.
    pub done: Vec<Action>,
    /// Results that the broker has, and those on their way.
    pub delivered: Vec<Published>,
    pub pending: Vec<Published>,
    /// Orders that were not acknowledged to the broker.
    pub orders: BTreeMap<u16, Arrived>,
    /// How often each id acted.
    pub acted: BTreeMap<String, u32>,
    /// Ids that were saved as accepted.
    pub accepted: BTreeSet<String>,
    /// Ids of commands that came, and of those that got a final result, which a crash may have lost.
    pub sent: BTreeSet<String>,
    pub ended: BTreeSet<String>,
    /// Ids whose change was committed.
    pub committed_by: BTreeSet<String>,
    /// The layer that was committed last.
    pub committed: Option<String>,
    /// What the broken promise is.
    pub broken: Option<String>,
    /// Actions until a crash.
    pub fuse: Option<usize>,
    pub swap: Option<Swap>,
    /// A seeded fault: such actions are not performed.
    pub skip: Option<fn(&Action) -> bool>,
    pub swap_models: Option<Swap<ModelAction>>,
    pub models: Models,
    /// Every action on models, as it was performed.
    pub done_models: Vec<ModelAction>,
    /// What goes on beside control.
    pub threads: Vec<Thread>,
    /// The bundle that was opened, and the one that was proven last.
    pub opened: Option<String>,
    pub proven: String,
    /// Reports of jobs that control has not heard.
    pub news: VecDeque<JobNews>,
    /// Ids whose bundle passed its trial, as it was saved.
    pub steady_by: BTreeSet<String>,
    /// The process died.
    pub dead: bool,
    pub crashes: u64,
    /// Requested: a restart of the machine.
    pub rebooting: bool,
    leaving: Option<Leave>,
    process: u64,
    boot: u64,
    next_seq: u64,
    acked: u64,
    pub session: u64,
    /// The connection looks alive, and the broker acknowledges nothing.
    pub silent: bool,
    pub next_ticket: u16,
    high: u64,
}

impl World {
    pub fn new() -> Self {
        let stamp = Stamp { boot_ns: 1_000_000_000, wall_ms: Some(WALL_MS), clk: Clk::Sync };
        let now = Now { stamp, floor_ms: 0 };
        let rules = Rules {
            site: "s".into(),
            id: "d".into(),
            cohorts: vec!["c".into()],
            pipelines: vec![("p".into(), true), ("q".into(), false)],
            keyset: true,
            boot: "boot-0".into(),
            process: "process-0".into(),
            ..Rules::default()
        };
        let mut world = Self {
            disk: Disk::default(),
            control: Control::new(rules.clone(), now, 7),
            now,
            link: LinkNews { subscribed: true, ..LinkNews::default() },
            keys: BTreeMap::from([("ops".to_owned(), "RWQ1".to_owned())]),
            rules,
            done: Vec::new(),
            delivered: Vec::new(),
            pending: Vec::new(),
            orders: BTreeMap::new(),
            acted: BTreeMap::new(),
            accepted: BTreeSet::new(),
            sent: BTreeSet::new(),
            ended: BTreeSet::new(),
            committed_by: BTreeSet::new(),
            committed: None,
            broken: None,
            fuse: None,
            swap: None,
            skip: None,
            swap_models: None,
            models: Disk::default().files.machine(Moment { now_ns: 1, now_ms: WALL_MS }),
            done_models: Vec::new(),
            threads: Vec::new(),
            opened: None,
            proven: String::new(),
            news: VecDeque::new(),
            steady_by: BTreeSet::new(),
            dead: false,
            crashes: 0,
            rebooting: false,
            leaving: None,
            process: 0,
            boot: 0,
            next_seq: 1,
            acked: 0,
            session: 0,
            silent: false,
            next_ticket: 1,
            high: 0,
        };
        world.begin();
        world
    }

    pub fn keys_now(&self) -> Keys {
        Keys { trusted: Ok(Arc::new(TestKeys(self.keys.clone()))), trouble: None }
    }

    /// Starts a run: in this process, or in another one.
    fn begin(&mut self) -> bool {
        (self.rules.process, self.rules.boot) = (format!("process-{}", self.process), format!("boot-{}", self.boot));
        // Before the configuration is read.
        self.disk.recover(&self.rules.process);
        self.threads.clear();
        self.news.clear();
        self.dead = false;
        self.models = self.disk.files.machine(self.moment());
        let bad = self.disk.layer.as_deref().is_some_and(|layer| layer.contains("bad"));
        self.session += 1;
        self.link = LinkNews { subscribed: !bad, session: self.session, ..LinkNews::default() };
        self.control = Control::new(self.rules.clone(), self.now, self.process);
        let event = Event::Began {
            left: self.left(),
            keys: self.keys_now(),
            in_use: digest(self.disk.layer.as_deref().unwrap_or("")),
            ran_before: true,
        };
        self.handle(event) && self.jobs_event(ModelEvent::Began)
    }

    fn left(&self) -> Left {
        let memory = match &self.disk.memory {
            _ if self.disk.damaged => Err(Unloaded::Damaged),
            _ if self.disk.unreadable => Err(Unloaded::Unreadable("input/output error".into())),
            Some(saved) => Ok(Some(saved.clone())),
            // Only the first start has none.
            None => Ok(Some(Saved::default())),
        };
        let (command, ended) = self.models.going();
        let ended = ended.into_iter().map(|ended| (None, ended)).collect();
        let going = Going { commands: command.iter().map(|id| (*id).to_owned()).collect(), ended, ..Going::default() };
        Left { memory, trial: Ok(self.disk.trial.clone()), going, audited: self.disk.audited.clone() }
    }

    /// The process dies, or the machine; half of what was not acknowledged is lost.
    pub fn crash(&mut self, reboot: bool, random: &mut fastrand::Rng) {
        self.crashes += 1;
        self.fuse = None;
        self.pending.retain(|_| random.bool());
        self.process += 1;
        self.boot += u64::from(reboot);
        self.leaving = None;
        self.rebooting &= !reboot;
        self.begin();
        self.redeliver();
    }

    /// What the broker does with each new connection.
    fn redeliver(&mut self) -> bool {
        let orders: Vec<Arrived> = self.orders.values().cloned().collect();
        orders.into_iter().all(|arrived| self.handle(Event::Arrived(arrived)))
    }

    /// Handles an event and what follows. Returns whether the process lived.
    pub fn handle(&mut self, event: Event) -> bool {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut actions = self.control.on(self.now, event);
            if let Some((first, second)) = self.swap
                && let Some(a) = actions.iter().position(first)
                && let Some(b) = actions.iter().skip(a).position(second)
            {
                actions.swap(a, a + b);
            }
            actions.retain(|action| !self.skip.is_some_and(|skip| skip(action)));
            for action in actions {
                self.done.push(action.clone());
                let done = self.perform(action);
                self.check_layer();
                if self.burnt() {
                    return false;
                }
                events.extend(std::mem::take(&mut self.news).into_iter().map(Event::Job));
                match done {
                    Ok(event) => events.extend(event),
                    Err(event) => {
                        events.push_back(*event);
                        break;
                    }
                }
            }
        }
        if let Some(how) = self.leaving.take() {
            // As the end of `Effects::run`.
            self.on_models(ModelEvent::Leaving);
            self.disk.memory = self.control.memory().to_save().ok().or(self.disk.memory.take());
            self.process += u64::from(how == Leave::Restart);
            return self.begin() && self.redeliver();
        }
        true
    }

    /// After an action: whether the process died of a crash.
    pub fn burnt(&mut self) -> bool {
        self.dead |= self.fuse.as_mut().is_some_and(|left| std::mem::replace(left, left.saturating_sub(1)) == 0);
        self.dead
    }

    /// Control hears the reports of jobs. Returns whether the process lived.
    pub fn hear(&mut self) -> bool {
        while let Some(news) = self.news.pop_front().filter(|_| !self.dead) {
            self.handle(Event::Job(news));
        }
        !self.dead
    }

    fn check_layer(&mut self) {
        let trial = self.disk.trial.as_ref().map(|trial| &trial.text);
        if self.disk.layer != self.committed && trial != Some(&self.disk.layer) {
            self.broke(format!("layer {:?} is in use, and {:?} was committed", self.disk.layer, self.committed));
        }
    }

    pub fn broke(&mut self, promise: String) {
        self.broken.get_or_insert(promise);
    }

    pub fn act(&mut self, id: &str) {
        let count = self.acted.entry(id.to_owned()).or_default();
        *count += 1;
        if *count > 1 {
            self.broke(format!("{id} acted twice"));
        }
    }

    /// Long, because it is one arm for each action.
    fn perform(&mut self, action: Action) -> Result<Option<Event>, Box<Event>> {
        let full = self.disk.full;
        match action {
            Action::Save(saved, or) => {
                let saved = saved.and_then(|saved| if full { Err("no space left".into()) } else { Ok(saved) });
                match (saved, or) {
                    (Ok(saved), _) => self.saved(*saved),
                    (Err(_), OnError::Log(_)) => {}
                    (Err(why), OnError::Stop(stop)) => return Err(Box::new(Event::Failed(stop, why))),
                }
                Ok(None)
            }
            Action::Audit(act) => {
                if let Act::Command { id, .. } | Act::Local { id, .. } = act {
                    self.disk.audited.insert(id);
                }
                Ok(None)
            }
            Action::Publish(Record::Result { kind, id, outcome, about }) => {
                let entry = outcome.why.is_none() && audit::is_entry(&kind, outcome.state);
                if entry && self.accepted.contains(&id) && !self.disk.audited.contains(&id) {
                    self.broke(format!("{id}: its result is published before it is in the audit log"));
                }
                let seq = self.next_seq;
                self.next_seq += 1;
                let accepted = self.accepted.contains(&id);
                if outcome.is_final() {
                    self.ended.insert(id.clone());
                }
                self.pending.push(Published { seq, kind, id, outcome, accepted });
                Ok((about != About::Nothing).then_some(Event::Numbered(about, seq)))
            }
            Action::Settle(ticket) => {
                self.orders.remove(&ticket.id);
                Ok(None)
            }
            Action::Ask(call, ask) => {
                self.act(&call.id);
                let outcome = match ask {
                    Ask::Reboot => {
                        self.rebooting = true;
                        Outcome::new(CommandState::Running, "the system restarts")
                    }
                    _ => Outcome::done(json!({})),
                };
                Ok(Some(Event::Done(call, outcome)))
            }
            Action::Samples(call, _) => {
                self.act(&call.id);
                Ok(Some(Event::Job(JobNews::Answered(call, Outcome::done(json!({}))))))
            }
            Action::Compare(change) => {
                if let Asker::Command(id) = &change.asker
                    && !id.starts_with("_plan.")
                {
                    self.act(id);
                }
                // As `Effects::compare`: what could not be rolled back, because the disk was full, is rolled back first.
                if let Some(owed) = self.disk.trial.clone() {
                    if full {
                        return Ok(Some(Event::Compared(change, Err(Refusal(Why::Busy, "no space left".into())))));
                    }
                    self.disk.put_back(&owed, "the disk works again");
                    self.disk.forget();
                }
                let text = Some(change.set.toml.clone()).filter(|toml| !toml.is_empty());
                Ok(Some(Event::Compared(change, Ok(Box::new(self.candidate(text))))))
            }
            Action::Begin(trial) if full => Err(Box::new(Event::Failed(Stop::Begin(trial), "no space left".into()))),
            Action::Begin(trial) => {
                // A plan whose command did not begin is tried again.
                if let Asker::Command(id) = &trial.asker
                    && id.starts_with("_plan.")
                {
                    self.act(id);
                }
                self.disk.begin(&trial);
                Ok(None)
            }
            Action::Commit(_) if full => Err(Box::new(Event::Failed(Stop::Commit, "no space left".into()))),
            Action::Commit(trial) => {
                self.disk.forget();
                self.committed.clone_from(&trial.text);
                if let Asker::Command(id) = &trial.asker {
                    self.committed_by.insert(id.clone());
                }
                let changed = Changed { list: String::new(), removes: false, result: Value::Null };
                Ok(Some(Event::Committed(trial, changed)))
            }
            Action::PutBack(trial, why, generation) if full => {
                Err(Box::new(Event::Failed(Stop::PutBack(trial, why, generation), "no space left".into())))
            }
            Action::PutBack(trial, why, _) => {
                self.disk.put_back(&trial, &why);
                Ok(None)
            }
            Action::Forget => {
                self.disk.forget();
                Ok(None)
            }
            Action::Connect(which, generation, _) => {
                let layer = if which == Which::Candidate { &self.disk.layer } else { &self.committed };
                let subscribed = !layer.as_deref().is_some_and(|layer| layer.contains("bad"));
                self.session += 1;
                self.link = LinkNews { taken: generation, subscribed, session: self.session, ..LinkNews::default() };
                Ok(None)
            }
            Action::Install(call, install) => {
                let done = self.on_models(ModelEvent::Install(call, install, Ok(())));
                Ok(done.map(|(call, outcome)| Event::Done(call, outcome)))
            }
            Action::RollBack(call, back) => {
                self.act(&call.id);
                let done = self.on_models(ModelEvent::RollBack(call, back.model));
                Ok(done.map(|(call, outcome)| Event::Done(call, outcome)))
            }
            Action::Chunk(sha256, offset, bytes) => {
                self.on_models(ModelEvent::Chunk(sha256, offset, bytes));
                Ok(None)
            }
            Action::JobHeard(command) => {
                self.on_models(ModelEvent::Heard(command));
                Ok(None)
            }
            Action::Leave(how) => {
                self.leaving = Some(how);
                Ok(None)
            }
            Action::Reread => Ok(Some(Event::Reread(self.left()))),
            Action::ReadKeys => Ok(Some(Event::KeysRead(self.keys_now()))),
            Action::Again => Ok(Some(Event::Tick(self.link, self.acked))),
            _ => Ok(None),
        }
    }

    fn saved(&mut self, saved: Saved) {
        let high = saved.highest("ops");
        let signed = saved.ids().filter(|(_, kind)| needs_signature(kind)).map(|(id, _)| id.to_owned());
        self.accepted.extend(signed);
        if high < self.high {
            self.broke(format!("the sequence of ops went back from {} to {high}", self.high));
        }
        self.high = high;
        self.disk.memory = Some(saved);
        self.disk.damaged = false;
    }

    /// `stages`: the stages restart; `calm`: no confirmation is needed; `bad`: the broker is not reached with it.
    fn candidate(&self, text: Option<String>) -> Candidate {
        let has = |word: &str| text.as_deref().is_some_and(|text| text.contains(word));
        Candidate {
            previous: self.disk.layer.clone(),
            digest: digest(text.as_deref().unwrap_or("")),
            same: text == self.disk.layer,
            confirm_s: (!has("calm")).then_some(30),
            link_only: !has("stages"),
            changed: Changed { list: String::new(), removes: false, result: Value::Null },
            text,
        }
    }

    /// Time passes, and the broker acknowledges what it got, if it is reached.
    pub fn tick(&mut self, ms: u64) -> bool {
        self.now.stamp.boot_ns += ms * 1_000_000;
        self.now.stamp.wall_ms = self.now.stamp.wall_ms.map(|wall_ms| wall_ms + ms as i64);
        if self.link.subscribed && !self.silent {
            self.acked = self.pending.last().map_or(self.acked, |last| last.seq);
            self.link.acked = self.acked;
            self.delivered.append(&mut self.pending);
        }
        self.handle(Event::Tick(self.link, self.acked)) && self.jobs_event(ModelEvent::Tick)
    }

    /// The broker sends this order.
    pub fn order(&mut self, mut arrived: Arrived) -> bool {
        arrived.ticket = Ticket { session: 1, id: self.next_ticket };
        self.next_ticket += 1;
        if let Asked::Command { id, .. } = &arrived.asked {
            self.sent.insert(id.clone());
        }
        self.orders.insert(arrived.ticket.id, arrived.clone());
        self.handle(Event::Arrived(arrived))
    }

    /// A command of this device. `signed`: by whom, and the sequence.
    pub fn command(&self, (kind, id): (&str, &str), signed: Option<(&str, u64)>, args: &Value) -> Arrived {
        let wall_ms = self.now.stamp.wall_ms.unwrap_or(WALL_MS);
        let (issued, expires) = (rfc3339_ms(wall_ms), rfc3339_ms(wall_ms + 600_000));
        let payload = match signed {
            Some((by, iseq)) => wrap(
                by,
                &json!({"v": 1, "id": id, "type": kind, "to": "s/d", "issuer": by, "iseq": iseq, "issued": issued,
                    "expires_at": expires, "nonce": NONCE, "args": args}),
            ),
            None => json!({"id": id, "expires_at": expires, "args": args}).to_string(),
        };
        let respond = Some(Respond { topic: format!("kl/s/d/up/_r/{id}"), correlation: None });
        arrived(Asked::Command { kind: kind.into(), id: id.into() }, payload, respond)
    }

    /// A desired state with this layer.
    pub fn desired(&self, by: &str, version: u64, toml: &str) -> Arrived {
        let issued = rfc3339_ms(self.now.stamp.wall_ms.unwrap_or(WALL_MS));
        let inner = json!({"v": 1, "type": "desired", "to": "s/d", "issuer": by, "version": version, "issued": issued,
            "config": {"toml": toml}});
        arrived(Asked::Desired, wrap(by, &inner), None)
    }

    /// The states of a command's results so far, in order; a repeated one has a `*`.
    pub fn states(&self, id: &str) -> Vec<String> {
        let all = self.delivered.iter().chain(&self.pending).filter(|published| published.id == id);
        let star = |outcome: &Outcome| if outcome.repeated { "*" } else { "" };
        all.map(|published| format!("{}{}", published.outcome.state.word(), star(&published.outcome))).collect()
    }

    /// What a command returned.
    pub fn result(&self, id: &str) -> Value {
        let all = self.delivered.iter().chain(&self.pending).filter(|published| published.id == id);
        all.filter_map(|published| published.outcome.result.clone()).next_back().unwrap_or_default()
    }

    /// Why a command was rejected last.
    pub fn why(&self, id: &str) -> Option<Why> {
        let all = self.delivered.iter().chain(&self.pending);
        all.rev().find(|published| published.id == id)?.outcome.why
    }
}

pub fn wrap(by: &str, inner: &Value) -> String {
    json!({"signed": inner.to_string(), "sig": STANDARD.encode(format!("by:{by}"))}).to_string()
}

pub fn arrived(asked: Asked, payload: String, respond: Option<Respond>) -> Arrived {
    Arrived {
        to: Addressee::Device,
        asked,
        payload: payload.into(),
        retained: false,
        respond,
        nonce: NONCE.into(),
        ticket: Ticket { session: 1, id: 0 },
    }
}
