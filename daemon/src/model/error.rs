//! Why bundles, keysets and the store fail. Each names the object; the caller adds what follows.

/// A bundle, or a file of one, is rejected, or cannot be read; why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BundleError(pub(crate) String);

/// A keyset or a signature is rejected, or cannot be read; why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeysetError(pub(crate) String);

/// The files of the installed models.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read at the start, so nothing is written over it until the next one.
    #[error("{0}; nothing is written over it")]
    Unread(String),
    /// The disk is not writable.
    #[error("{0}")]
    Disk(String),
}

impl From<String> for BundleError {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<&str> for BundleError {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

impl From<String> for KeysetError {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<&str> for KeysetError {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

impl From<BundleError> for String {
    fn from(why: BundleError) -> Self {
        why.0
    }
}

impl From<StoreError> for String {
    fn from(why: StoreError) -> Self {
        why.to_string()
    }
}

impl From<KeysetError> for String {
    fn from(why: KeysetError) -> Self {
        why.0
    }
}
