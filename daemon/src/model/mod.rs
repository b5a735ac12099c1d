//! Models as files: bundles, whose keys they are signed with, what they say of themselves, in which slot they lie, and
//! whether they may be handed to the runtime. Knows no runtime.

pub mod baseline;
pub mod bundle;
#[cfg(test)]
mod bundle_tests;
pub mod file;
pub mod golden;
pub mod keyset;
pub mod manifest;
pub mod onnx;
pub mod scan;
pub mod slot;
pub mod store;
