//! Why the daemon is not reached over D-Bus, or refuses.

crate::error::text_error! {
    /// The bus or the daemon does not answer, or refuses what was asked; why.
    BusError;
}
