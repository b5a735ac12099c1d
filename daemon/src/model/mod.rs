//! Models as files: what they say of themselves, and whether they may be handed to the runtime. Knows no runtime.

pub mod file;
pub mod keyset;
pub mod manifest;
pub mod scan;
