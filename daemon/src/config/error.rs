//! Why what a setting names cannot be used.

crate::error::told! {
    /// A file, an address, a pattern or a layer that a setting names cannot be read or used; why.
    SettingError;
}
