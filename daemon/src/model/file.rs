//! A model's bytes: read once into sealed memory, digested while reading, scanned there. The worker gets the same bytes
//! that were checked.

use std::{fmt::Display, fs::File, io::Read, path::Path, sync::Arc};

use sha2::{Digest, Sha256};

use super::{error::BundleError, scan};
use crate::{host::sys::Sealed, limits};

/// A checked model for the runtime.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// The ONNX bytes.
    pub bytes: Arc<Sealed>,
    /// Their SHA-256, hex.
    pub sha256: String,
}

impl ModelFile {
    /// Reads and checks the file; the error names the file and the reason.
    ///
    /// # Errors
    /// It cannot be read, or the scan rejects it.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let what = |why: &dyn Display| BundleError(format!("use model {}: {why}", path.display()));
        let mut file = File::open(path).map_err(|why| what(&why))?;
        Self::take(&mut file).map_err(|why| what(&why))
    }

    /// Reads the bytes of a reader.
    ///
    /// # Errors
    /// It is too large, cannot be read, or the scan rejects it.
    pub fn take(from: &mut dyn Read) -> Result<Self, BundleError> {
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
