//! A message on its way into the store: its compressed bytes, and what is known of it without reading it.

use super::sealed::Sealed;
use crate::flow::Class;

/// What is known of a stored message without reading it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub bytes: u32,
    pub records: u32,
    pub class: Class,
}

/// A message on its way in.
#[derive(Debug)]
pub struct Packed {
    pub(super) bytes: Vec<u8>,
    pub(super) entry: Entry,
}

impl Packed {
    /// Packs a message.
    ///
    /// # Errors
    /// It cannot be packed.
    pub fn new(sealed: &Sealed) -> Result<Self, String> {
        let bytes = sealed.pack()?;
        let entry = Entry { bytes: bytes.len() as u32, records: sealed.items.len() as u32, class: sealed.class };
        Ok(Self { bytes, entry })
    }

    /// Bytes on disk, before sled's own overhead.
    pub fn size(&self) -> u64 {
        u64::from(self.entry.bytes)
    }
}
