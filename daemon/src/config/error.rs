//! Why what a setting names cannot be used.

crate::error::text_error! {
    /// A file, an address, a pattern or a layer that a setting names cannot be read or used; why.
    SettingError;
}
