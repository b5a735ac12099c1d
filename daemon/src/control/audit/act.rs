//! The entries of the audit log, and their members. Pure.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    control::{command_state::CommandState, memory::Known},
    flow::Stamp,
    host::clock::rfc3339_ms,
    limits,
};

/// Who sent a command without a signature, or none is known.
pub const UNSIGNED: &str = "unsigned";

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Act {
    /// A process started.
    Start {
        /// Of the program.
        version: &'static str,
        /// The process.
        process: String,
        /// Digest of the remote layer in use; without one, of an empty text.
        config: String,
        /// What did not verify in the log; empty: nothing.
        #[serde(skip_serializing_if = "String::is_empty")]
        found: String,
    },
    /// A command has its final result.
    Command {
        /// Its type.
        #[serde(rename = "type")]
        kind: String,
        /// Its id.
        id: String,
        /// The name of the key that signed it.
        by: String,
        /// Digest of type and arguments, hex.
        args: String,
        /// Its final state.
        state: &'static str,
        /// For people.
        #[serde(skip_serializing_if = "String::is_empty")]
        text: String,
    },
    /// A desired state begins (`applying`), or has its result.
    Desired {
        /// Its version.
        version: u64,
        /// The name of the key that signed it; with `applying`.
        #[serde(skip_serializing_if = "String::is_empty")]
        by: String,
        /// Its state.
        state: String,
        /// For people.
        #[serde(skip_serializing_if = "String::is_empty")]
        text: String,
    },
    /// A configuration is on trial, in use, or was rolled back.
    Config {
        /// `on_trial`, `in_use`, `rolled_back`.
        state: &'static str,
        /// Digest of the remote layer.
        sha256: String,
        /// The command or the desired state: `config.set ID`, `desired VERSION`.
        by: String,
    },
    /// Work on models or the system that no command asked for ended: a local caller, or the device itself.
    Local {
        /// `local-…` or `failing-…`.
        id: String,
        /// Its final state.
        state: &'static str,
        /// For people.
        #[serde(skip_serializing_if = "String::is_empty")]
        text: String,
    },
}

impl Act {
    /// The final result of a command.
    pub fn command(known: &Known, state: CommandState, text: &str) -> Self {
        let by = if known.issuer.is_empty() { UNSIGNED } else { &known.issuer };
        Self::Command {
            kind: known.kind.clone(),
            id: known.id.clone(),
            by: by.to_owned(),
            args: known.digest.clone(),
            state: state.word(),
            text: short(text),
        }
    }

    /// The members of the entry. The time is when it was made.
    pub fn members(&self, now: Stamp, boot: &str) -> Map<String, Value> {
        let mut members = match serde_json::to_value(self) {
            Ok(Value::Object(members)) => members,
            _ => Map::new(),
        };
        members.insert("ts".into(), now.wall_ms.map(rfc3339_ms).into());
        members.insert("clk".into(), now.clk.word().into());
        members.insert("boot".into(), boot.into());
        members
    }
}

/// As much of a text as is kept.
pub fn short(text: &str) -> String {
    text.chars().take(limits::RESULT_TEXT).collect()
}
