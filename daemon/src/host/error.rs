//! Why something that was asked of the machine or the network failed.

crate::error::text_error! {
    /// What was tried, on what, and why it failed.
    HostError;
}
