//! What control says: results of commands, and the reported state. Pure.

use serde_json::{Map, Value, json};

use super::{memory::State, memory::Wish, request::Why};
use crate::limits;

/// One result.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What became of it.
    pub state: State,
    /// With a rejection.
    pub why: Option<Why>,
    /// For people.
    pub text: String,
    /// What was asked for.
    pub result: Option<Value>,
    /// The same command came before.
    pub repeated: bool,
}

impl Outcome {
    /// A state with words.
    pub fn new(state: State, text: impl Into<String>) -> Self {
        Self { state, why: None, text: text.into(), result: None, repeated: false }
    }

    /// Done, with what was asked for.
    pub fn done(result: Value) -> Self {
        Self { result: Some(result), ..Self::new(State::Success, "") }
    }

    /// Rejected.
    pub fn rejected(why: Why, text: impl Into<String>) -> Self {
        Self { why: Some(why), ..Self::new(State::Rejected, text) }
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

/// The members of `up/reported`.
pub fn reported(wish: &Wish, digest: Option<&str>, set_aside: &[String]) -> Map<String, Value> {
    let mut members = Map::new();
    members.insert("version".into(), wish.version.into());
    members.insert("state".into(), if wish.state.is_empty() { "none".into() } else { wish.state.as_str().into() });
    if !wish.text.is_empty() {
        members.insert("text".into(), wish.text.as_str().into());
    }
    let digest = digest.map(|d| format!("sha256:{d}"));
    members.insert("config".into(), json!({"digest": digest, "set_aside": set_aside}));
    members
}
