//! Models as files: bundles, keysets, manifests, slots and the store, and the checks before the runtime gets a file. Does
//! not depend on a runtime.

pub mod baseline;
pub mod bundle;
#[cfg(test)]
mod bundle_tests;
pub mod engines;
pub mod error;
pub mod file;
pub mod golden;
pub mod keyset;
pub mod manifest;
pub mod onnx;
pub mod rollout;
pub mod scan;
pub mod scoring;
pub mod shelf;
mod signature;
pub mod slot;
pub mod store;
