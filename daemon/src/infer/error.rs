//! Why models do not run.

use crate::model::error::BundleError;

crate::error::text_error! {
    /// A model or ONNX Runtime cannot be used, or the worker failed; why.
    InferError;
}

impl From<BundleError> for InferError {
    fn from(why: BundleError) -> Self {
        Self(why.into())
    }
}
