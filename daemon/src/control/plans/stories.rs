//! Random stories of plans, gates, halts, resumes, outages, restarts, kills after any action, clocks that are not synchronised and
//! keys that are dropped; forged, replayed, foreign, expired and premature messages among them. What a device promises in each:
//!
//! - it starts only a plan that a trusted key signed for it, that has not expired, in a wave whose gates it was given, after
//!   their hold times, on a connection that is old enough;
//! - it starts nothing after it acknowledged a halt, until it is resumed;
//! - no plan has an effect twice, and none starts after it ended; one plan of a kind runs at a time;
//! - in the end, every plan whose turn it is has ended.
//!
//! What is true is known by the story, not by the device. KENTLEDGE_LONG=1 plays more.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    Kind, State, position,
    tests::{Draft, device, reconnect, restart},
};
use crate::{
    control::{
        action::{Action, OnError, Record, Stop},
        trial::Asker,
        world::{Swap, World},
    },
    flow::{
        Clk,
        order::{Arrived, Asked},
    },
    host::{Defence, defence::without},
};

/// What a message means if it is obeyed.
#[derive(Debug, Clone, PartialEq)]
enum Truth {
    /// Nothing: it must not be obeyed.
    Bad,
    Plan,
    /// Opens this wave.
    Gate(usize),
    /// Halts it, if no resume with this number or a later one came: by secret.
    Halt(u64),
    /// A signed halt (`None`) or resume, with its number.
    Order(u64, Option<u64>),
}

/// What the story has sent and seen of a plan.
#[derive(Debug, Clone)]
struct Known {
    draft: Draft,
    /// It was delivered.
    here: bool,
    /// It was acknowledged.
    taken: bool,
    /// When the gates were delivered, ms.
    gates: BTreeMap<usize, i64>,
    halted: bool,
    n: u64,
    /// Number of the order that was signed last.
    signed: u64,
    /// Number of the halt secret that counts.
    halt: u64,
    starts: u32,
    ended: bool,
    /// A result was published.
    said: bool,
}

impl Known {
    /// A signed halt, or a resume with the number of the next halt secret.
    fn obey(&mut self, n: u64, resume: Option<u64>) {
        if n > self.n {
            (self.n, self.halted) = (n, resume.is_none());
            self.halt = resume.unwrap_or(self.halt);
        }
    }
}

struct Story {
    world: World,
    random: fastrand::Rng,
    plans: Vec<Known>,
    /// What was sent: the plan, what it means, the message.
    sent: Vec<(usize, Truth, Arrived)>,
    /// What the broker keeps, by topic, and what waits in the session.
    kept: BTreeMap<String, usize>,
    waiting: Vec<usize>,
    /// Not acknowledged by the device: by ticket.
    flying: BTreeMap<u16, usize>,
    online: bool,
    /// Actions of the world that were looked at.
    looked: usize,
    /// Since when this connection stands, ns.
    connected_ns: u64,
    session: u64,
    steps: Vec<String>,
}

fn topic(message: &Arrived) -> String {
    match &message.asked {
        Asked::Plan { name } => format!("plan/{name}"),
        Asked::Gate { plan, wave } => format!("gate/{plan}/{wave}"),
        Asked::Halt { plan } => format!("halt/{plan}"),
        _ => String::new(),
    }
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut world = device();
        world.keys.insert("release2".into(), "RWQ3".into());
        restart(&mut world);
        let looked = world.done.len();
        Self {
            random: fastrand::Rng::with_seed(seed),
            connected_ns: world.now.stamp.boot_ns,
            session: world.session,
            world,
            plans: Vec::new(),
            sent: Vec::new(),
            kept: BTreeMap::new(),
            waiting: Vec::new(),
            flying: BTreeMap::new(),
            online: true,
            looked,
            steps: Vec::new(),
        }
    }

    /// A new plan. One in three is bad: forged, foreign, expired, or an old number.
    fn plan(&mut self) -> (usize, Truth, Arrived) {
        let name = ["p", "q", "r"][self.random.usize(0..3)];
        let seq = 1 + self
            .plans
            .iter()
            .filter(|known| known.draft.name == name)
            .map(|known| known.draft.seq)
            .max()
            .unwrap_or(0);
        let mut share = 0.0;
        let waves: Vec<(f64, u64)> = (0..self.random.usize(1..4))
            .map(|_| {
                share += self.random.f64() * 0.9;
                (share.clamp(1e-9, 1.0), self.random.u64(0..90))
            })
            .collect();
        let grows = waves.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let digest = char::from(b'b' + self.random.u8(0..5)).to_string().repeat(64);
        let (kind, artifact) = match self.random.u8(0..3) {
            0 => (Kind::Model, json!({"sha256": digest, "size": 1, "url": "https://a"})),
            _ => {
                let layer = ["good", "bad", "calm-stages", "good-stages", "bad-stages"][self.random.usize(0..5)];
                (Kind::Config, json!({"toml": format!("{layer} = {seq}")}))
            }
        };
        let by = if self.random.bool() { "release" } else { "release2" };
        let mut draft = Draft {
            name,
            kind,
            artifact,
            waves: if grows { waves } else { vec![(1.0, 0)] },
            issuer: by,
            by,
            freshness_s: self.random.u64(1..30),
            life_s: self.random.i64(60..3000),
            spread_s: [0, 0, 60][self.random.usize(0..3)],
            seed: format!("seed-{}", self.random.u32(..)),
            to: ["s/_all", "s/_c-c", "s/d"][self.random.usize(0..3)],
            ..Draft::new(&self.world, seq)
        };
        let truth = match self.random.u8(0..18) {
            0 => Draft { by: "ops", ..draft.clone() },
            1 => Draft { by: "stranger", ..draft.clone() },
            2 => Draft { issuer: "ops", by: "ops", ..draft.clone() },
            3 => Draft { to: "s/_c-other", ..draft.clone() },
            4 => Draft { to: "s/e", ..draft.clone() },
            5 => Draft { issued_ms: draft.issued_ms - 4_000_000, ..draft.clone() },
            _ => draft.clone(),
        };
        let bad = truth.text() != draft.text() || truth.by != draft.by;
        draft = truth;
        let message = draft.message();
        let (here, taken, gates) = (false, false, BTreeMap::new());
        self.plans.push(Known {
            draft,
            here,
            taken,
            gates,
            halted: false,
            n: 0,
            signed: 0,
            halt: 0,
            starts: 0,
            ended: false,
            said: false,
        });
        (self.plans.len() - 1, if bad { Truth::Bad } else { Truth::Plan }, message)
    }

    /// A message about a plan that exists; some are wrong.
    fn word(&mut self) -> (usize, Truth, Arrived) {
        let place = self.random.usize(0..self.plans.len());
        let known = self.plans[place].clone();
        let draft = &known.draft;
        let wave = self.random.usize(1..=draft.waves.len());
        // A signer uses no number twice; replays are old messages again.
        let n = known.signed + 1;
        let (truth, message) = match self.random.u8(0..16) {
            0..9 => (Truth::Gate(wave), draft.gate(wave)),
            9 => (Truth::Bad, draft.gate_by(wave, &super::tests::secret(draft.name, draft.seq, "wrong"))),
            10 => (Truth::Halt(known.halt), draft.halt(known.halt)),
            11 => (Truth::Halt(0), draft.halt(0)),
            12 => (Truth::Bad, draft.halt(known.halt + 7)),
            13 => (Truth::Bad, draft.order(["ops", "stranger"][self.random.usize(0..2)], n, Some(known.halt + 1))),
            14 => (Truth::Order(n, None), draft.order("release", n, None)),
            _ => (Truth::Order(n, Some(n)), draft.order("release", n, Some(n))),
        };
        self.plans[place].signed += u64::from(matches!(truth, Truth::Order(..)));
        (place, truth, message)
    }

    /// Publishes it: the device gets it now, or with its next connection.
    fn publish(&mut self, message: (usize, Truth, Arrived)) {
        let number = self.sent.len();
        if self.random.u8(0..3) > 0 {
            self.kept.insert(topic(&message.2), number);
        } else if !self.online {
            self.waiting.push(number);
        }
        self.steps.push(format!(
            "{} {:?}{}",
            topic(&message.2),
            message.1,
            if self.online { "" } else { " (offline)" }
        ));
        self.sent.push(message);
        if self.online {
            self.deliver(number);
        }
    }

    fn deliver(&mut self, number: usize) -> bool {
        let ticket = self.world.next_ticket;
        self.flying.insert(ticket, number);
        // What allows a start counts when it is delivered, and what forbids one when it is acknowledged.
        let (place, truth, _) = &self.sent[number];
        let now_ms = self.world.now.stamp.wall_ms.unwrap_or(0);
        let known = &mut self.plans[*place];
        match truth {
            Truth::Plan => known.here |= now_ms < known.draft.issued_ms + known.draft.life_s * 1000,
            Truth::Gate(wave) => drop(known.gates.entry(*wave).or_insert(now_ms)),
            Truth::Order(n, Some(next)) => known.obey(*n, Some(*next)),
            _ => {}
        }
        let lived = self.world.order(self.sent[number].2.clone());
        self.acknowledged();
        lived
    }

    /// What the device acknowledged has its effect, in this order.
    fn acknowledged(&mut self) {
        let done: Vec<u16> =
            self.flying.keys().filter(|ticket| !self.world.orders.contains_key(ticket)).copied().collect();
        for ticket in done {
            let Some(number) = self.flying.remove(&ticket) else { continue };
            let (place, truth, _) = self.sent[number].clone();
            let now_ms = self.world.now.stamp.wall_ms.unwrap_or(0);
            let known = &mut self.plans[place];
            match truth {
                Truth::Halt(number) => known.halted |= number == known.halt,
                Truth::Order(n, resume) => known.obey(n, resume),
                // One that comes again after it expired replaces nothing.
                Truth::Plan => known.taken |= known.here && now_ms < known.draft.issued_ms + known.draft.life_s * 1000,
                Truth::Bad | Truth::Gate(_) => {}
            }
        }
    }

    /// The device connects again: the session's messages, then what is kept.
    fn connect(&mut self) -> bool {
        self.online = true;
        let kept: Vec<usize> = ["plan/", "halt/", "gate/"]
            .iter()
            .flat_map(|kind| {
                self.kept.iter().filter(move |(topic, _)| topic.starts_with(kind)).map(|(_, number)| *number)
            })
            .collect();
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().chain(kept).all(|number| self.deliver(number))
    }

    /// What started since the last look, against what the story knows.
    fn look(&mut self) -> Result<(), String> {
        let stamp = self.world.now.stamp;
        let done = self.world.done.len();
        let actions = self.world.done[self.looked..done].to_vec();
        self.looked = done;
        for action in actions {
            let (id, starts) = match &action {
                Action::Install(call, _) => (call.id.clone(), true),
                Action::Compare(change) => match &change.asker {
                    Asker::Command(id) => (id.clone(), true),
                    Asker::Desired(_) => continue,
                },
                Action::Publish(Record::Result { id, outcome, .. }) if outcome.is_final() => (id.clone(), false),
                _ => continue,
            };
            let Some(place) = self.plans.iter().position(|known| known.draft.id() == id) else { continue };
            if starts {
                self.judge_start(place).map_err(|why| format!("{id} {why}"))?;
                self.plans[place].starts += 1;
            } else {
                // A result that could not be saved is none after a crash; what it did is on the disk or did not happen.
                self.plans[place].ended |= !self.world.disk.full;
                self.plans[place].said = true;
            }
        }
        // A configuration that starts may bring another connection.
        if self.world.session != self.session {
            (self.session, self.connected_ns) = (self.world.session, stamp.boot_ns);
        }
        match self.world.broken.take() {
            Some(promise) => Err(promise),
            None => Ok(()),
        }
    }

    fn judge_start(&self, place: usize) -> Result<(), String> {
        let known = &self.plans[place];
        let (draft, stamp) = (&known.draft, self.world.now.stamp);
        let now_ms = stamp.wall_ms.unwrap_or(0);
        let refuse = |why: &str| Err(why.to_owned());
        if !known.here {
            return refuse("starts, and no such plan was sent");
        }
        if !self.world.keys.contains_key(draft.issuer) {
            return refuse("starts, and its key was dropped");
        }
        if now_ms >= draft.issued_ms + draft.life_s * 1000 {
            return refuse("starts after it expired");
        }
        if known.halted {
            return refuse("starts while it is halted");
        }
        if known.ended {
            return refuse("starts after it ended");
        }
        let at = position(&draft.seed, "s/d");
        let Some(wave) = draft.waves.iter().position(|(share, _)| at < *share) else {
            return refuse("starts outside its waves");
        };
        let mut open_ms = i64::MIN;
        for (n, (_, hold_s)) in draft.waves.iter().enumerate().take(wave + 1) {
            let Some(since_ms) = known.gates.get(&(n + 1)) else { return refuse("starts before its gate is open") };
            open_ms = open_ms.max(*since_ms);
            if now_ms < open_ms {
                return refuse("starts before a hold time is over");
            }
            open_ms += *hold_s as i64 * 1000;
        }
        if stamp.clk != Clk::Sync {
            return refuse("starts without a clock");
        }
        if stamp.boot_ns - self.connected_ns < draft.freshness_s * 1_000_000_000 {
            return refuse("starts on a connection that is too young");
        }
        let other = |other: &&Known| other.draft.kind == draft.kind && other.starts > 0 && !other.said;
        if self.plans.iter().filter(other).any(|other| other.draft.id() != draft.id()) {
            return refuse("starts while another one of its kind runs");
        }
        let newer = |other: &&Known| other.taken && other.draft.name == draft.name && other.draft.seq > draft.seq;
        if self.plans.iter().any(|other| newer(&other) && self.world.keys.contains_key(other.draft.issuer)) {
            return refuse("starts after it was replaced");
        }
        Ok(())
    }

    fn step(&mut self) -> bool {
        match self.random.u8(0..30) {
            0..3 => {
                let plan = self.plan();
                let draft = self.plans[plan.0].draft.clone();
                let gates = if self.random.bool() { draft.waves.len() } else { 0 };
                let (place, bad) = (plan.0, plan.1 == Truth::Bad);
                self.publish(plan);
                for wave in (1..=gates).filter(|_| !bad) {
                    self.publish((place, Truth::Gate(wave), draft.gate(wave)));
                }
            }
            3..12 if !self.plans.is_empty() => {
                let word = self.word();
                self.publish(word);
            }
            // An old message again.
            12 if !self.sent.is_empty() && self.online => {
                let number = self.random.usize(0..self.sent.len());
                return self.deliver(number);
            }
            13 => {
                self.steps.push("outage".into());
                self.online = false;
                self.world.link.subscribed = false;
            }
            14 | 15 if !self.online => {
                self.steps.push("connect".into());
                reconnect(&mut self.world);
                return self.connect();
            }
            16 => {
                let clk = [Clk::Sync, Clk::Hold][self.random.usize(0..2)];
                self.world.now.stamp.clk = clk;
                self.steps.push(format!("{clk:?}"));
            }
            17 if self.random.u8(0..6) == 0 => {
                self.steps.push("release2 is dropped".into());
                self.world.keys.remove("release2");
                return false;
            }
            18 => self.world.disk.full = self.random.u8(0..4) == 0,
            19 => self.world.silent = self.random.u8(0..3) == 0,
            20..23 => return self.world.thread(self.random.usize(0..8), self.random.u8(0..4) > 0),
            _ => {
                let ms = self.random.u64(50..20_000);
                self.steps.push(format!("{ms} ms"));
                return self.world.tick(ms);
            }
        }
        !self.world.dead
    }

    fn play(&mut self) -> Result<u64, String> {
        for _ in 0..self.random.usize(20..120) {
            if self.random.u8(0..4) == 0 {
                self.world.fuse = Some(self.random.usize(0..12));
            }
            let lived = self.step();
            self.look()?;
            if !lived {
                self.steps.push("killed".into());
                self.restart();
                self.look()?;
            }
            self.acknowledged();
            self.world.fuse = None;
        }
        self.settle()?;
        Ok(self.world.crashes)
    }

    fn restart(&mut self) {
        self.world.crash(self.random.u8(0..4) == 0, &mut self.random);
        self.acknowledged();
        if self.online {
            self.connect();
        } else {
            self.world.link.subscribed = false;
        }
    }

    /// The disk works, the clock is right, the connection stands: what may run has run.
    fn settle(&mut self) -> Result<(), String> {
        (self.world.disk.full, self.world.silent, self.world.now.stamp.clk) = (false, false, Clk::Sync);
        self.world.fuse = None;
        self.steps.push("the end".into());
        self.restart();
        reconnect(&mut self.world);
        self.connect();
        for turn in 0..400 {
            self.world.tick(1000);
            if turn % 4 == 0 {
                self.world.thread(0, true);
            }
            self.look()?;
        }
        self.acknowledged();
        let now_ms = self.world.now.stamp.wall_ms.unwrap_or(0);
        let entries = self.world.control.memory().plans().entries();
        if let Some(entry) = entries.iter().find(|entry| entry.state == State::Running) {
            return Err(format!("{} runs for ever", entry.plan.id()));
        }
        for (place, known) in self.plans.iter().enumerate() {
            let spread_ms = known.draft.spread_s as i64 * 1000;
            let later = known.gates.values().any(|since_ms| now_ms - since_ms < 300_000) || spread_ms > 0;
            if known.here && !known.ended && !later && self.judge_start(place).is_ok() {
                let entry = entries.iter().find(|entry| entry.plan.id() == known.draft.id());
                // A gate that came before its plan may have been pushed out, and so may a plan.
                let all = |entry: &&super::Entry| {
                    // A resume of a plan that was refused for a newer one is lost, until it is sent again.
                    entry.gates_known() == known.draft.waves.len() && entry.n == known.n
                };
                if entry.filter(all).is_some_and(|entry| entry.state == State::Waiting) {
                    return Err(format!("{} is stranded: {entry:?}", known.draft.id()));
                }
            }
        }
        Ok(())
    }
}

/// One story; `Err`: the promise that was broken, and what led to it. The crashes and starts otherwise.
fn play(seed: u64, swap: Option<Swap>, skip: Option<fn(&Action) -> bool>) -> Result<(u64, u64), String> {
    let mut story = Story::new(seed);
    (story.world.swap, story.world.skip) = (swap, skip);
    let crashes = story.play().map_err(|promise| format!("seed {seed}: {promise}: {}", story.steps.join("; ")))?;
    Ok((crashes, story.plans.iter().map(|known| u64::from(known.starts)).sum()))
}

/// A fixed part and a random part; the numbers are printed.
#[test]
#[expect(clippy::print_stdout, reason = "how many stories there were is a result")]
fn stories_of_plans_with_a_crash_after_any_action_keep_what_the_device_promises() {
    let count = if std::env::var_os("KENTLEDGE_LONG").is_some() { 20_000 } else { 400 };
    let start = fastrand::u64(1 << 20..1 << 40);
    let (mut crashes, mut starts) = (0, 0);
    for seed in (0..count / 2).chain(start..start + count / 2) {
        let (crashed, started) = play(seed, None, None).unwrap_or_else(|promise| panic!("{promise}"));
        crashes += crashed;
        starts += started;
    }
    println!(
        "{count} stories of plans with {crashes} crashes and {starts} starts keep the promises (random seeds from {start})"
    );
    assert!(crashes > count && starts > count / 8, "{crashes} crashes and {starts} starts in {count} stories");
}

/// Each seeded fault leaves out a check, or swaps or leaves out an action; the stories find each.
#[test]
#[expect(clippy::print_stdout, reason = "which story found it is a result")]
fn stories_of_plans_find_each_check_that_is_left_out() {
    let checks = [
        (Defence::PlanHalt, "while it is halted"),
        (Defence::PlanHold, "before a hold time is over"),
        (Defence::PlanGate, "before its gate is open"),
        (Defence::PlanReplay, "twice\u{0}after it ended\u{0}after it was replaced\u{0}while it is halted"),
        (Defence::PlanFresh, "a connection that is too young"),
    ];
    for (check, expected) in checks {
        let found =
            (0..2000).find_map(|seed| without(Some(check), || play(seed, None, None)).err()).unwrap_or_default();
        println!("without {check:?}: {found}");
        assert!(expected.split('\u{0}').any(|text| found.contains(text)), "{check:?}: {found}");
    }
}

/// Picks an action.
type Is = fn(&Action) -> bool;

fn learns(action: &Action) -> bool {
    matches!(action, Action::Save(_, OnError::Stop(Stop::Learn)))
}

fn starts(action: &Action) -> bool {
    matches!(action, Action::Save(_, OnError::Stop(Stop::Start(_))))
}

#[test]
#[expect(clippy::print_stdout, reason = "which story found it is a result")]
fn stories_of_plans_find_actions_that_are_swapped_or_left_out() {
    let settles: fn(&Action) -> bool = |action| matches!(action, Action::Settle(_));
    let faults: [(&str, Option<Swap>, Option<Is>, &str); 2] = [
        (
            "acknowledged before it is saved",
            Some((learns, settles)),
            None,
            "while it is halted\u{0}after it was replaced",
        ),
        (
            "started without a trace on the disk",
            None,
            Some(starts),
            "acted twice\u{0}starts after it ended\u{0}while another one of its kind runs",
        ),
    ];
    for (fault, swap, skip, expected) in faults {
        let found = (0..4000).find_map(|seed| play(seed, swap, skip).err()).unwrap_or_default();
        println!("{fault}: {found}");
        assert!(expected.split('\u{0}').any(|text| found.contains(text)), "{fault}: {found}");
    }
}
