//! Why a broker is not reached, by who is no stage.

crate::error::told! {
    /// The broker cannot be reached, refuses, or cannot be told this packet; in words that say what to do.
    LinkError;
}
