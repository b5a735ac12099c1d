//! How the program ends: exit codes, and the error that carries one; and the form of the errors that rooms hand to each other.

use std::fmt;

/// Exit codes a user may script against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A core stage ended, or the act failed.
    Failed = 1,
    /// Wrong usage of the command line.
    Usage = 2,
    /// `boot-check`: the system is healthy, but the broker was not reached.
    NoUplink = 3,
    /// Configuration refused; systemd does not restart on it.
    Config = 78,
}

/// An error that ends the program: what was tried, on what, and why; lower case, no full stop.
#[derive(Debug)]
pub struct Fatal {
    /// Exit code.
    pub code: Code,
    /// The text printed after `kentledge: `.
    pub text: String,
}

impl Fatal {
    /// The act failed: exit 1.
    pub fn failed(text: impl Into<String>) -> Self {
        Self { code: Code::Failed, text: text.into() }
    }

    /// The configuration was refused, for all of these: exit 78.
    pub fn problems<P: fmt::Display>(problems: &[P]) -> Self {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Self { code: Code::Config, text: lines.join("\n") }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fatal {}

/// `result.context("open store /data/outbox")`: puts what was tried before why it failed.
pub trait Context<T> {
    /// The error's text becomes `what: why`, exit code 1.
    fn context(self, what: impl fmt::Display) -> Result<T, Fatal>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T, Fatal> {
        self.map_err(|why| Fatal::failed(format!("{what}: {why}")))
    }
}

/// Defines errors of a room that its callers only pass on or show: a text that names the object and says why. Where a caller
/// decides by the reason, the error is an enum instead.
macro_rules! text_error {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error("{0}")]
        pub struct $name(pub(crate) String);

        impl From<String> for $name {
            fn from(why: String) -> Self {
                Self(why)
            }
        }

        impl From<&str> for $name {
            fn from(why: &str) -> Self {
                Self(why.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(why: $name) -> Self {
                why.0
            }
        }
    )+};
}
pub(crate) use text_error;
