//! Bytes that were right once, for tests of what reads them: some are changed, inserted, removed, or the end is cut.

use proptest::prelude::*;

/// Any bytes, or one of these with a few faults.
pub fn spoilt(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..5), 0..6);
    let faulty = (prop::sample::select(seeds), edits).prop_map(|(mut bytes, edits)| {
        for (at, byte, kind) in edits {
            let at = at.index(bytes.len() + 1);
            match kind {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.insert(at, byte),
                3 => bytes.insert(at, b"{}[]\",:0-="[usize::from(byte) % 10]),
                _ => bytes.truncate(at),
            }
        }
        bytes
    });
    prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..200), 4 => faulty]
}
