//! One plan as a device remembers it, and where the device stands in it. Pure. Saved with the memory of commands.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{At, Rules, plan::Plan};
use crate::{
    control::command_state::CommandState,
    flow::Clk,
    host::{Defence, clock::rfc3339_ms},
    limits,
};

/// The state of a plan, as `up/reported` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not its turn.
    Waiting,
    /// Its turn, but something here prevents the start.
    Blocked,
    /// The command runs.
    Running,
    /// As the command ended.
    Success,
    /// As the command ended.
    Failed,
    /// As the command ended.
    RolledBack,
    /// It will not start here.
    Skipped,
}

impl State {
    /// Whether no other state follows.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Waiting | Self::Blocked | Self::Running)
    }
}

/// Why it does not run, as `up/reported` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// A secret is not known.
    Gate,
    /// An earlier wave has not been open for long enough.
    Hold,
    /// Its moment has not come.
    Spread,
    /// The plan is halted.
    Halted,
    /// No connection that is old enough and has all subscriptions.
    Link,
    /// The clock is not synchronised.
    Clock,
    /// The key that signed it has lost its role.
    Key,
    /// The plan is for another cohort or device than this one is now.
    Cohort,
    /// Another job or change is in progress.
    Busy,
    /// Another plan of this kind runs.
    OtherPlan,
    /// The command was rejected.
    Rejected,
    /// No wave holds this device.
    Outside,
    /// It has expired.
    Expired,
}

/// The gate of a wave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// Its secret is known.
    pub open: bool,
    /// Since when, ms since 1970; `None`: the clock was not synchronised so far.
    pub since_ms: Option<i64>,
}

/// What is shown of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub state: State,
    pub why: Option<Because>,
    pub text: String,
    /// Since when, ms since 1970.
    pub since_ms: Option<i64>,
}

/// A plan that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub plan: Plan,
    /// The key that signed it, as the keyset writes it.
    pub key: String,
    /// Digest of the signed text.
    pub digest: String,
    /// `Waiting`, `Running`, or how it ended.
    pub state: State,
    /// Why it ended so, or does not begin.
    pub why: Option<Because>,
    /// The text of its result.
    pub text: String,
    /// By wave.
    pub gates: Vec<Gate>,
    pub halted: bool,
    /// Hash of the secret that halts it.
    pub halt: String,
    /// Number of the last signed order about it.
    pub n: u64,
    pub shown: Shown,
}

/// What makes another report when it changes: id, state, why, gates, halted, number of the last order.
pub type Told = (String, State, Option<Because>, usize, bool, u64);

/// Where this device stands in a plan, as far as the plan says. The connection is looked at afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It ended.
    Ended,
    /// The command runs.
    Running,
    /// It ends now, without a start.
    Skip(Because),
    /// It does not start now.
    Not(State, Because, String),
    /// It starts if the connection allows it.
    Turn,
}

impl Entry {
    pub fn new(plan: Plan, key: String, digest: String) -> Self {
        let gates = vec![Gate::default(); plan.waves.len()];
        let shown = Shown { state: State::Waiting, why: None, text: String::new(), since_ms: None };
        let (state, halt, text) = (State::Waiting, plan.halt.clone(), String::new());
        let (why, halted, n) = (None, false, 0);
        Self { plan, key, digest, state, why, text, gates, halted, halt, n, shown }
    }

    /// So many waves, from the first, whose secret is known.
    pub fn gates_known(&self) -> usize {
        self.gates.iter().take_while(|gate| gate.open).count()
    }

    /// Where this device stands.
    pub fn standing(&self, rules: &Rules, at: &At<'_>) -> Standing {
        let not = |state, why, text: &str| Standing::Not(state, why, text.to_owned());
        let plan = &self.plan;
        if self.state != State::Waiting {
            return if self.state == State::Running { Standing::Running } else { Standing::Ended };
        }
        let Some(wave) = self.wave(rules) else { return Standing::Skip(Because::Outside) };
        if at.now_ms >= plan.expires_ms {
            return Standing::Skip(Because::Expired);
        }
        if !plan.is_for(&rules.site, &rules.device, &rules.cohorts) {
            let text = format!("it is for `{}`", plan.to);
            return not(State::Blocked, Because::Cohort, &text);
        }
        if (at.key_of)(&plan.issuer) != Some(self.key.as_str()) {
            let text = format!("the key `{}` that signed it is not in the keyset with the role `rollout`", plan.issuer);
            return not(State::Blocked, Because::Key, &text);
        }
        if self.halted && Defence::PlanHalt.stands() {
            return not(State::Blocked, Because::Halted, "");
        }
        if self.gates_known() <= wave {
            return not(State::Waiting, Because::Gate, "");
        }
        if at.clk != Clk::Sync {
            return not(State::Blocked, Because::Clock, "the clock is not synchronised");
        }
        let open_ms = match self.open_ms(wave) {
            Some(open_ms) if at.now_ms >= open_ms => open_ms,
            Some(_) => return not(State::Waiting, Because::Hold, ""),
            None => return not(State::Blocked, Because::Clock, "the clock was not synchronised so far"),
        };
        if at.now_ms < open_ms.saturating_add(plan.spread_ms(wave, self.position(rules))) {
            return not(State::Waiting, Because::Spread, "");
        }
        Standing::Turn
    }

    /// Since when a wave is open here, ms since 1970: all gates up to its own are known, and each wave before it was open for
    /// its hold time.
    fn open_ms(&self, wave: usize) -> Option<i64> {
        let mut open_ms = i64::MIN;
        let mut hold_ms = 0;
        for (gate, wave) in self.gates.iter().zip(&self.plan.waves).take(wave + 1) {
            open_ms = open_ms.saturating_add(hold_ms).max(gate.since_ms?);
            hold_ms = if Defence::PlanHold.stands() { wave.hold_s as i64 * 1000 } else { 0 };
        }
        Some(open_ms)
    }

    fn position(&self, rules: &Rules) -> f64 {
        super::plan::position(&self.plan.seed, &format!("{}/{}", rules.site, rules.device))
    }

    /// The wave of this device, counted from 0.
    pub fn wave(&self, rules: &Rules) -> Option<usize> {
        self.plan.wave_of(self.position(rules))
    }

    /// It ends: the artifact is not needed any more.
    pub fn end(&mut self, state: State, why: Option<Because>, text: &str) {
        (self.state, self.why) = (state, why);
        self.text = text.chars().take(limits::RESULT_TEXT).collect();
        self.plan.artifact.clear();
    }

    /// Its command came to this state.
    pub fn became(&mut self, state: CommandState, text: &str) {
        match state {
            CommandState::Accepted | CommandState::Running => {}
            CommandState::Success => self.end(State::Success, None, text),
            CommandState::RolledBack => self.end(State::RolledBack, None, text),
            CommandState::Rejected => self.end(State::Failed, Some(Because::Rejected), text),
            CommandState::Failed | CommandState::Expired => self.end(State::Failed, None, text),
        }
    }

    /// Shows this state; since now if it is another one.
    pub fn show(&mut self, state: (State, Option<Because>), text: &str, now_ms: Option<i64>) {
        if (self.shown.state, self.shown.why) != state || self.shown.since_ms.is_none() {
            self.shown.since_ms = now_ms;
        }
        (self.shown.state, self.shown.why) = state;
        text.clone_into(&mut self.shown.text);
    }

    /// What makes another report when it changes.
    pub fn told(&self) -> Told {
        let Shown { state, why, .. } = &self.shown;
        (self.plan.id(), *state, *why, self.gates_known(), self.halted, self.n)
    }

    /// Its member of `plans` in `up/reported`.
    pub fn reported(&self, rules: &Rules) -> Value {
        let Shown { state, why, text, since_ms } = &self.shown;
        let mut members = Map::new();
        members.insert("seq".into(), self.plan.seq.into());
        members.insert("state".into(), json!(state));
        if let Some(wave) = self.wave(rules) {
            members.insert("wave".into(), (wave + 1).into());
        }
        members.insert("gates".into(), self.gates_known().into());
        if self.n > 0 {
            members.insert("n".into(), self.n.into());
        }
        if self.halted {
            members.insert("halted".into(), true.into());
        }
        if let Some(why) = why {
            members.insert("why".into(), json!(why));
        }
        if !text.is_empty() {
            members.insert("text".into(), text.as_str().into());
        }
        members.insert("since".into(), since_ms.map(rfc3339_ms).into());
        Value::Object(members)
    }
}
