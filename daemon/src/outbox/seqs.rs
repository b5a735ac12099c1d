//! Sequence numbers: unsigned 64 bit for each stream, growing through restarts, never used twice. They are reserved on
//! disk in blocks; a restart goes on at the next block.

use std::collections::BTreeMap;

use crate::{host::Keep, limits};

/// Numbers of all streams.
#[derive(Debug)]
pub struct Seqs {
    keep: Keep,
    names: Vec<String>,
    next: Vec<u64>,
    /// End of the block that is reserved on disk, exclusive.
    reserved: Vec<u64>,
}

const FILE: &str = "sequences.json";

impl Seqs {
    /// Reserves a block for each stream. A file that cannot be read would mean numbers used twice, so it is an error
    /// unless there is none.
    pub fn open(keep: Keep, names: Vec<String>) -> Result<Self, String> {
        let kept: BTreeMap<String, u64> = match keep.load(FILE) {
            None => BTreeMap::new(),
            Some(bytes) => {
                read(&bytes).or_else(|| read(&keep.load("sequences.bak")?)).ok_or("sequences.json is damaged")?
            }
        };
        let next: Vec<u64> = names.iter().map(|name| kept.get(name).copied().unwrap_or(1)).collect();
        let mut seqs = Self { keep, reserved: next.clone(), names, next };
        let renewal = seqs.renewal();
        seqs.apply(renewal.save()?);
        Ok(seqs)
    }

    /// The next blocks, to be saved without holding up anyone who takes numbers.
    pub fn renewal(&self) -> Renewal {
        let ends = self.next.iter().map(|next| next.saturating_add(limits::SEQ_BLOCK)).collect();
        Renewal { keep: self.keep.clone(), names: self.names.clone(), ends }
    }

    /// What was saved may be used.
    pub fn apply(&mut self, ends: Vec<u64>) {
        self.reserved = ends;
    }

    /// Takes `n` numbers of a stream, the first of them; `None` when the block does not hold them.
    pub fn take(&mut self, stream: usize, n: u64) -> Option<u64> {
        let first = self.next[stream];
        let end = first.checked_add(n)?;
        if end > self.reserved[stream] {
            return None;
        }
        self.next[stream] = end;
        Some(first)
    }

    /// Takes `n` numbers although the block is used up and the disk takes no other: going on counts for more than a
    /// number that might be used again if the power fails now as well.
    pub fn take_unreserved(&mut self, stream: usize, n: u64) -> u64 {
        let first = self.next[stream];
        self.next[stream] = first.saturating_add(n);
        first
    }

    /// Half of some block is used up.
    pub fn is_low(&self) -> bool {
        self.next
            .iter()
            .zip(&self.reserved)
            .any(|(next, reserved)| reserved.saturating_sub(*next) < limits::SEQ_BLOCK / 2)
    }
}

/// Blocks on their way to the disk.
pub struct Renewal {
    keep: Keep,
    names: Vec<String>,
    ends: Vec<u64>,
}

impl Renewal {
    /// Writes them down, beside those of streams that are not configured now.
    pub fn save(self) -> Result<Vec<u64>, String> {
        let mut kept = self.keep.load(FILE).and_then(|bytes| read(&bytes)).unwrap_or_default();
        kept.extend(self.names.into_iter().zip(self.ends.iter().copied()));
        let bytes = write(&kept);
        for file in ["sequences.bak", FILE] {
            self.keep.save(file, &bytes).map_err(|why| format!("reserve sequence numbers: {why}"))?;
        }
        Ok(self.ends)
    }
}

/// `crc hex, line feed, JSON`.
fn write(kept: &BTreeMap<String, u64>) -> Vec<u8> {
    let json = serde_json::to_vec(kept).unwrap_or_default();
    [format!("{:08x}\n", crc32fast::hash(&json)).into_bytes(), json].concat()
}

fn read(bytes: &[u8]) -> Option<BTreeMap<String, u64>> {
    let (head, json) = bytes.split_at_checked(9)?;
    let crc = u32::from_str_radix(std::str::from_utf8(&head[..8]).ok()?, 16).ok()?;
    (crc32fast::hash(json) == crc).then(|| serde_json::from_slice(json).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_never_uses_a_number_again_and_a_torn_file_has_a_second_copy() {
        let dir = std::env::temp_dir().join(format!("kentledge-seqs-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let open = || Seqs::open(Keep::open(&dir, "s").expect("keep"), vec!["a".into(), "b".into()]);
        let mut seqs = open().expect("open");
        assert_eq!(seqs.take(0, 10), Some(1));
        assert_eq!(seqs.take(0, limits::SEQ_BLOCK), None);
        assert_eq!(seqs.take(0, limits::SEQ_BLOCK / 2), Some(11));
        assert!(seqs.is_low());
        let ends = seqs.renewal().save().expect("renew");
        seqs.apply(ends);
        assert!(!seqs.is_low());
        let used = seqs.take(0, 1).expect("number");
        drop(seqs);
        std::fs::write(dir.join("s").join(FILE), b"torn").expect("write");
        assert!(open().expect("open").take(0, 1).expect("number") > used);
        std::fs::write(dir.join("s").join(FILE), b"torn").expect("write");
        std::fs::write(dir.join("s/sequences.bak"), b"torn").expect("write");
        assert!(open().is_err());
    }
}
