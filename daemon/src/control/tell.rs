//! The messages of control: results of commands, and `up/reported`. Pure.

use serde_json::{Map, Value, json};

use super::{
    command_state::CommandState,
    memory::{Known, Wish},
    refusal::{Refusal, Why},
    trial::digest,
};
use crate::limits;

/// One result.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub state: CommandState,
    /// For a rejection.
    pub why: Option<Why>,
    /// Text for people.
    pub text: String,
    /// The requested data.
    pub result: Option<Value>,
    /// The same command came before.
    pub repeated: bool,
}

impl Outcome {
    /// An outcome with a text.
    pub fn new(state: CommandState, text: impl Into<String>) -> Self {
        Self { state, why: None, text: text.into(), result: None, repeated: false }
    }

    /// Success, with the requested data: an object, as `up.res.json` has it.
    pub fn done(result: Value) -> Self {
        Self { result: Some(result), ..Self::new(CommandState::Success, "") }
    }

    /// Rejected.
    pub fn rejected(why: Why, text: impl Into<String>) -> Self {
        Self { why: Some(why), ..Self::new(CommandState::Rejected, text) }
    }

    /// The result of a command that is known, once more.
    pub fn again(known: &Known) -> Self {
        let why = Why::of(&known.why).or((known.state == CommandState::Rejected).then_some(Why::Invalid));
        Self { why, repeated: true, ..Self::new(known.state, known.text.clone()) }
    }

    /// Whether a final result of a command.
    pub fn is_final(&self) -> bool {
        self.state.is_final()
    }

    /// A rejection.
    pub fn refused(Refusal(why, text): Refusal) -> Self {
        Self::rejected(why, text)
    }

    /// Failed, with a text.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(CommandState::Failed, text)
    }

    /// The members of `up/res/{kind}/{id}`.
    pub fn members(&self, kind: &str, id: &str) -> Map<String, Value> {
        let mut members = Map::new();
        members.insert("type".into(), kind.into());
        members.insert("id".into(), id.into());
        members.insert("state".into(), self.state.word().into());
        if let Some(why) = self.why {
            members.insert("why".into(), why.word().into());
        }
        if !self.text.is_empty() || self.why.is_some() {
            let text: String = self.text.chars().take(limits::RESULT_TEXT_SENT).collect();
            members.insert("text".into(), text.into());
        }
        if self.repeated {
            members.insert("repeated".into(), true.into());
        }
        if let Some(result) = &self.result {
            members.insert("result".into(), result.clone());
        }
        members
    }
}

/// Members without the braces around them, as records carry them.
pub fn body(members: &Map<String, Value>) -> String {
    let text = serde_json::to_string(members).unwrap_or_default();
    text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or("").to_owned()
}

/// The members of `up/reported`. `in_use` is the digest of the remote layer in use; without one, of an empty text.
pub fn reported(wish: &Wish, in_use: &str, set_aside: &[String]) -> Map<String, Value> {
    let reflects = wish.applied.as_ref().filter(|applied| applied.digest == in_use).map(|applied| applied.version);
    let overridden = wish.applied.is_some() && reflects.is_none();
    // A layer that was applied and is no longer in use must not look as if it were.
    let (state, text) = match wish.state.as_str() {
        "" => ("none", wish.text.as_str()),
        "applied" if overridden && set_aside.is_empty() => ("overridden", "config.set replaced it"),
        "applied" if overridden => ("overridden", "it does not validate any more and is not in use"),
        state => (state, wish.text.as_str()),
    };
    let mut members = Map::new();
    members.insert("version".into(), wish.version.into());
    members.insert("state".into(), state.into());
    if !text.is_empty() {
        members.insert("text".into(), text.into());
    }
    let digest = (in_use != digest("")).then(|| format!("sha256:{in_use}"));
    let config = json!({"digest": digest, "set_aside": set_aside, "desired": reflects, "overridden": overridden});
    members.insert("config".into(), config);
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::memory::Applied;

    #[test]
    fn reported_after_config_set_over_a_desired_state_says_overridden() {
        let wish = |version, state: &str, applied: Option<(u64, &str)>| {
            let applied = applied.map(|(version, text)| Applied { version, digest: digest(text) });
            Wish { version, state: state.into(), text: String::new(), applied }
        };
        let summary = |wish: &Wish, text: &str, set_aside: &[String]| {
            let members = reported(wish, &digest(text), set_aside);
            (members["state"].clone(), members["config"]["desired"].clone(), members["config"]["overridden"].clone())
        };
        assert_eq!(summary(&wish(0, "", None), "", &[]), ("none".into(), Value::Null, false.into()));
        let applied = wish(1, "applied", Some((1, "x")));
        assert_eq!(summary(&applied, "x", &[]), ("applied".into(), 1.into(), false.into()));
        assert_eq!(summary(&applied, "y", &[]), ("overridden".into(), Value::Null, true.into()));
        assert_eq!(summary(&applied, "", &["why".into()]), ("overridden".into(), Value::Null, true.into()));
        // Version 2 was rejected: version 1 is still what is in use.
        let rejected = wish(2, "rejected", Some((1, "x")));
        assert_eq!(summary(&rejected, "x", &[]), ("rejected".into(), 1.into(), false.into()));
        assert_eq!(reported(&wish(0, "", None), &digest(""), &[])["config"]["digest"], Value::Null);
    }
}
