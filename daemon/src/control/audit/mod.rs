//! The audit log: who did what to this device. `Control` decides what is an entry, `chain` ties each to the previous one,
//! `file` keeps them.
//!
//! An entry of a command is on the disk before its final result is published. Commands that change nothing and show nothing
//! of value (`ping`, `status` …) are no entries, nor is what was rejected before it was accepted: a stranger could fill the
//! log with it.

pub mod act;
mod book;
pub mod chain;
mod file;

pub use act::{Act, short};
pub use book::{Book, Show};
pub use chain::Head;
pub use file::{Found, Log, files};

use super::{command::needs_signature, command_state::CommandState};

/// Whether this final result of a command is an entry. `keyset.update` comes without a signature of its own: what any client
/// may send is an entry only if it took effect.
pub fn is_entry(kind: &str, state: CommandState) -> bool {
    state.is_final() && (needs_signature(kind) || kind == "keyset.update" && state == CommandState::Success)
}
