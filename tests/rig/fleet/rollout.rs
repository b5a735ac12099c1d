//! What a light device does about plans: the daemon's own decisions (`control::plans`) and its own keyset; the command that a plan
//! brings is played: it takes a while and ends as the test asked.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use kentledge::{
    control::plans::{At, CommandState, Order, Plan, PlanAction, PlanEvent, Plans, Rules, Saved, Word, hash, secret},
    flow::Clk,
    model::keyset::{Keyset, Role},
};
use serde_json::Value;

/// How commands of plans end.
#[derive(Debug, Clone)]
pub struct Play {
    /// Whose plans are obeyed.
    pub keyset: PathBuf,
    /// Share of the devices on which the command fails.
    pub fails: f64,
    /// How long it takes, s: a random part of this.
    pub takes_s: f64,
    /// Plans whose name begins so fail on every device.
    pub bad: &'static str,
}

/// A command that a plan started.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    pub device: String,
    pub plan: String,
    pub wave: u64,
    pub at: Instant,
}

/// What the fleet's devices did about plans.
#[derive(Debug, Default)]
pub struct Done {
    pub starts: Vec<Start>,
    /// Messages that devices refused, in their words.
    pub refused: Vec<String>,
    /// When a device heard the halt secret of a plan, by plan.
    pub halts: Vec<(String, Instant)>,
}

/// How a device's connection stands, as far as its plans need it.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// The connection, if all subscriptions were granted on it.
    pub session: Option<u64>,
    /// Highest result that was acknowledged on it.
    pub acked: u64,
    /// Everything that arrived was handled.
    pub quiet: bool,
}

/// A device's connection.
pub trait Ties {
    fn standing(&self) -> Standing;
    /// Publishes the result `accepted` of this command; its number.
    fn probe(&mut self, kind: &str, id: &str) -> u64;
}

/// A connection that is shared with others: the broker's acknowledgement of a single device's message is played.
#[derive(Debug)]
pub struct Played {
    pub online: bool,
    pub session: u64,
    acked: u64,
}

impl Default for Played {
    fn default() -> Self {
        Self { online: true, session: 1, acked: 0 }
    }
}

impl Ties for Played {
    fn standing(&self) -> Standing {
        Standing { session: self.online.then_some(self.session), acked: self.acked, quiet: true }
    }

    fn probe(&mut self, _: &str, _: &str) -> u64 {
        self.acked += 1;
        self.acked
    }
}

/// One device's part.
pub struct Follower {
    play: Arc<Play>,
    keys: Arc<Keyset>,
    done: Arc<Mutex<Done>>,
    id: String,
    machine: Plans,
    saved: Saved,
    job: Option<(String, Instant)>,
    /// A message came: before, there is nothing to look at.
    heard: bool,
    began: Instant,
    random: fastrand::Rng,
}

/// A message about a plan, read once for all devices of a connection.
pub enum Message {
    Plan(Box<Plan>, String, String),
    Word(Word),
}

/// Reads a message below `dn/`, with its signature, as the daemon does.
pub fn read(rest: &str, payload: &[u8], keys: &Keyset) -> Result<Message, String> {
    let text = std::str::from_utf8(payload).map_err(|why| why.to_string())?;
    let (kind, name) = rest.split_once('/').ok_or("no name")?;
    let value: Value = serde_json::from_str(text).map_err(|why| why.to_string())?;
    let signed = value["signed"].as_str().map(|inner| -> Result<(String, String, String), String> {
        let sig = kentledge_sig(value["sig"].as_str().unwrap_or(""))?;
        let by = keys.signer(Role::Rollout, inner.as_bytes(), &sig).map_err(|why| format!("bad_signature: {why}"))?;
        let key = keys.public(Role::Rollout, by).ok_or("no key")?;
        Ok((inner.to_owned(), by.to_owned(), key.to_owned()))
    });
    match (kind, signed.transpose()?) {
        ("plan", Some((inner, by, key))) => {
            let plan = Plan::read(&inner).map_err(|refusal| refusal.1)?;
            let named = plan.name == name && plan.issuer == by;
            named.then(|| Message::Plan(Box::new(plan), key, hash(&inner))).ok_or("not_addressed".into())
        }
        ("halt", Some((inner, by, key))) => {
            let order = Order::read(&inner).map_err(|refusal| refusal.1)?;
            let named = order.plan == name && order.issuer == by;
            named.then_some(Message::Word(Word::Signed { order, key })).ok_or("not_addressed".into())
        }
        ("halt", None) => {
            let secret = secret(text).map_err(|refusal| refusal.1)?;
            Ok(Message::Word(Word::Halt { plan: name.into(), secret }))
        }
        ("gate", None) => {
            let (plan, wave) = name.split_once('/').ok_or("no wave")?;
            let wave = wave.parse().map_err(|_| "no wave")?;
            let secret = secret(text).map_err(|refusal| refusal.1)?;
            Ok(Message::Word(Word::Gate { plan: plan.into(), wave, secret }))
        }
        _ => Err("unsigned".into()),
    }
}

fn kentledge_sig(text: &str) -> Result<String, String> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let bytes = STANDARD.decode(text).map_err(|why| why.to_string())?;
    String::from_utf8(bytes).map_err(|why| why.to_string())
}

impl Follower {
    pub fn new(id: &str, play: Arc<Play>, keys: Arc<Keyset>, done: Arc<Mutex<Done>>, seed: u64) -> Self {
        let (site, device) = id.split_once('/').expect("site/device");
        let rules = Rules { site: site.into(), device: device.into(), cohorts: Vec::new() };
        Self {
            play,
            keys,
            done,
            id: id.into(),
            machine: Plans::new(rules),
            saved: Saved::default(),
            job: None,
            heard: false,
            began: Instant::now(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// `plans` of `up/reported`.
    pub fn reported(&self) -> Value {
        self.machine.reported(&self.saved)
    }

    /// A message came; whether `up/reported` changed.
    pub fn hear(&mut self, message: &Message, ties: &mut dyn Ties) -> bool {
        let event = match message {
            Message::Plan(plan, key, digest) => {
                if !self.machine.is_for_us(plan) {
                    return false;
                }
                PlanEvent::Plan(plan.clone(), key.clone(), digest.clone())
            }
            Message::Word(word) => {
                if let Word::Halt { plan, .. } = word {
                    self.done.lock().expect("done").halts.push((plan.clone(), Instant::now()));
                }
                PlanEvent::Word(word.clone())
            }
        };
        self.heard = true;
        let changed = self.on(event, ties);
        changed | self.on(PlanEvent::Tick, ties)
    }

    /// Time passes; whether `up/reported` changed.
    pub fn tick(&mut self, ties: &mut dyn Ties) -> bool {
        if !self.heard {
            return false;
        }
        if self.job.as_ref().is_some_and(|(_, until)| Instant::now() >= *until)
            && let Some((id, _)) = self.job.take()
        {
            let fails = self.random.f64() < self.play.fails || of(&id).starts_with(self.play.bad);
            let (state, text) = match fails {
                true if self.random.bool() => (CommandState::Failed, "golden case 2: expected 0.31, got 4.4"),
                true => (CommandState::RolledBack, "trial: score out of range"),
                false => (CommandState::Success, ""),
            };
            self.saved.became(&id, state, text);
        }
        self.on(PlanEvent::Tick, ties)
    }

    fn on(&mut self, event: PlanEvent, ties: &mut dyn Ties) -> bool {
        let (mut changed, mut events) = (false, vec![event]);
        while let Some(event) = events.pop() {
            let keys = self.keys.clone();
            let now_ms =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_millis();
            let Standing { session, acked, quiet } = ties.standing();
            let at = At {
                now_ns: self.began.elapsed().as_nanos() as u64,
                now_ms: now_ms as i64,
                clk: Clk::Sync,
                session,
                acked,
                quiet,
                busy: false,
                key_of: &|name| keys.public(Role::Rollout, name),
            };
            for action in self.machine.on(&mut self.saved, &at, event) {
                match action {
                    PlanAction::Refuse(what, why) => {
                        self.done.lock().expect("done").refused.push(format!("{}: {what}: {}", self.id, why.1));
                    }
                    PlanAction::Save => {}
                    PlanAction::Probe(kind, id) => {
                        let seq = ties.probe(kind.command(), &id);
                        events.push(PlanEvent::Probed(id, seq));
                    }
                    PlanAction::Start(id) => {
                        let takes = Duration::from_secs_f64(self.play.takes_s * self.random.f64());
                        self.job = Some((id.clone(), Instant::now() + takes));
                        self.started(id);
                        changed = true;
                    }
                    PlanAction::Report => changed = true,
                }
            }
        }
        changed
    }

    fn started(&self, plan: String) {
        let wave = self.reported()[of(&plan)]["wave"].as_u64().unwrap_or(0);
        let start = Start { device: self.id.clone(), plan, wave, at: Instant::now() };
        self.done.lock().expect("done").starts.push(start);
    }
}

/// The plan of a command's id.
fn of(id: &str) -> &str {
    id.split('.').nth(1).unwrap_or("")
}
