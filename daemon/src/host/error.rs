//! Why something that was asked of the machine or the network failed.

/// What was tried, on what, and why it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub(crate) String);

impl From<String> for HostError {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<&str> for HostError {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

impl From<HostError> for String {
    fn from(why: HostError) -> Self {
        why.0
    }
}
