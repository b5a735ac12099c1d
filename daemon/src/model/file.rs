//! A model's bytes: read once into sealed memory, digested on the way, scanned there. The bytes that were checked are the
//! bytes that are handed to the worker.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use sha2::{Digest, Sha256};

use super::scan;
use crate::{host::sys::Sealed, limits};

/// A model that may be handed to the runtime.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// The ONNX bytes.
    pub bytes: Arc<Sealed>,
    /// Their SHA-256, hex.
    pub sha256: String,
}

impl ModelFile {
    /// Reads and checks; the error says what was tried and why it failed.
    pub fn read(path: &Path) -> Result<Self, String> {
        let what = |why: String| format!("use model {}: {why}", path.display());
        let mut file = File::open(path).map_err(|why| what(why.to_string()))?;
        Self::take(&mut file).map_err(what)
    }

    /// Takes in what a reader gives.
    pub fn take(from: &mut dyn Read) -> Result<Self, String> {
        let mut hash = Sha256::new();
        let bytes = Sealed::copy(from, limits::MODEL_BYTES_MAX, |part| hash.update(part));
        let bytes = bytes.map_err(|why| why.to_string())?;
        let mapped = bytes.map().map_err(|why| why.to_string())?;
        scan::scan(&mapped).map_err(|why| why.to_string())?;
        Ok(Self { bytes: Arc::new(bytes), sha256: hex(&hash.finalize()) })
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
