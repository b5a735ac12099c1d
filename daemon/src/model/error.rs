//! Why bundles, keysets and the store fail. Each names the object; the caller adds what follows.

crate::error::text_error! {
    /// A bundle or a file of one (manifest, model, golden cases, baseline) is rejected, or cannot be read; why.
    BundleError;
    /// A keyset or a signature is rejected, or cannot be read; why.
    KeysetError;
    /// An engine is not built, or not sealed; why.
    EngineError;
    /// A model was not proven: it does not start, fails a golden case, or the rollout ended; why.
    Unproven;
}

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

impl From<StoreError> for String {
    fn from(why: StoreError) -> Self {
        why.to_string()
    }
}
