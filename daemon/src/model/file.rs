//! A model's bytes: read once, scanned, digested. The bytes that were checked are the bytes that are handed on.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::scan;
use crate::limits;

/// A model that may be handed to the runtime.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// The ONNX bytes.
    pub bytes: std::sync::Arc<[u8]>,
    /// Their SHA-256, hex.
    pub sha256: String,
}

impl ModelFile {
    /// Reads and checks; the error says what was tried and why it failed.
    pub fn read(path: &Path) -> Result<Self, String> {
        let what = |why: String| format!("use model {}: {why}", path.display());
        let size = std::fs::metadata(path).map_err(|why| what(why.to_string()))?.len();
        if size > limits::MODEL_BYTES_MAX {
            return Err(what(format!("{size} bytes are more than {}", limits::MODEL_BYTES_MAX)));
        }
        let bytes = std::fs::read(path).map_err(|why| what(why.to_string()))?;
        scan::scan(&bytes).map_err(|why| what(why.to_string()))?;
        let sha256 = hex(&Sha256::digest(&bytes));
        Ok(Self { bytes: bytes.into(), sha256 })
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
